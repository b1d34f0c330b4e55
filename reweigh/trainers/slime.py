"""slime and miles: an estimator as the function of `--custom-tis-function-path`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from reweigh.batch import Batch
from reweigh.estimators import Estimator
from reweigh.trainers.seen import factor, hold, per_token, refuse_advantage, refuse_whole_batch, wide

_Lists = Callable[[list[Tensor]], list[Tensor]]
_CP_UTILS = {"slime": "slime.backends.megatron_utils.cp_utils", "miles": "miles.backends.training_utils.cp_utils"}


@dataclass(frozen=True)
class CustomTis:
    """`pg_loss <- w pg_loss` and rejected tokens out of the masks, w from an estimator of `pi_old / mu`, detached.

    Put it in a module of yours and name it on the command line:

        # corrections.py
        correct = CustomTis(geo_rs(0.99, 1.01) * seq_tis(2.0))

        --use-tis --custom-tis-function-path corrections.correct

    With `--use-rollout-logprobs` the framework hands over the live policy's log-probs in place of `pi_old`'s. The hook
    sees one micro-batch and no advantages. Rejected tokens leave the masks that are returned; slime keeps them in its
    denominators. With `--get-mismatch-metrics` and no `--use-tis` the loss stays as it was, and metrics are logged.
    No option of `args` that names a threshold is read.

    Args:
        estimator: whose weights are of one sequence each.
        framework: whose context-parallel functions to call when `args.context_parallel_size` is over 1.

    Raises:
        ValueError: the estimator reads the whole batch or the advantage's sign.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from reweigh import seq_tis
        >>> logp = [torch.tensor([-1.0, -1.0]), torch.tensor([-2.0])]
        >>> mu = [torch.tensor([-1.1, -1.1]), torch.tensor([-4.0])]
        >>> loss, masks, metrics = CustomTis(seq_tis(2.0))(
        ...     SimpleNamespace(context_parallel_size=1, use_tis=True),
        ...     pg_loss=torch.ones(3),
        ...     train_log_probs=logp,
        ...     rollout_log_probs=mu,
        ...     loss_masks=[torch.ones(2), torch.ones(1)],
        ...     total_lengths=[4, 3],
        ...     response_lengths=[2, 1],
        ... )
        >>> [round(x, 3) for x in loss.tolist()]
        [1.221, 1.221, 2.0]
    """

    estimator: Estimator
    framework: str = "slime"

    def __post_init__(self) -> None:
        """Refuse what this hook cannot compute."""
        refuse_whole_batch("CustomTis", "one micro-batch", self.estimator)
        refuse_advantage("CustomTis", self.estimator)
        if self.framework not in _CP_UTILS:
            raise ValueError(f"CustomTis: framework must be {' or '.join(_CP_UTILS)}, got {self.framework!r}")

    def __call__(
        self,
        args: Any,
        *,
        pg_loss: Tensor,
        train_log_probs: list[Tensor],
        rollout_log_probs: list[Tensor],
        loss_masks: list[Tensor],
        total_lengths: Sequence[int],
        response_lengths: Sequence[int],
        **kwargs: Any,
    ) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
        """Correct a loss as the framework asks for it: flat loss, lists of one tensor a sample, a metric a token.

        Returns:
            The loss with its weights, the masks without rejected tokens, and flat metrics that the framework reduces.
        """
        gather, cut = self._context(args, total_lengths, response_lengths, kwargs.get("max_seq_lens"))
        lists = (gather(train_log_probs), gather(rollout_log_probs), loss_masks)
        pi, mu, mask = (pad_sequence([x.detach() for x in xs], batch_first=True) for xs in lists)
        batch = Batch.padded(wide(pi), wide(mu), mask, check=False)
        weights = hold(self.estimator(batch))
        lengths = [len(m) for m in loss_masks]

        def flat(x: Tensor) -> Tensor:
            return torch.cat(cut([row[:n] for row, n in zip(x, lengths, strict=True)]))

        keep = weights.keep_tokens
        masks = [m * row[:n].to(m.dtype) for m, row, n in zip(loss_masks, keep, lengths, strict=True)]
        metrics = {name: flat(value) for name, value in per_token(batch, weights).items()}
        if args.use_tis:  # a loss that is NaN where a token was dropped must not come back as 0 * NaN
            w = flat(factor(weights))
            pg_loss = torch.where(w > 0, pg_loss, 0) * w
        return pg_loss, masks if args.use_tis else loss_masks, metrics

    def _context(
        self, args: Any, total: Sequence[int], response: Sequence[int], widths: Sequence[int] | None
    ) -> tuple[_Lists, _Lists]:
        """Whole responses from this rank's slices, and this rank's slices of whole responses."""
        if args.context_parallel_size == 1:
            return _same, _same
        cp = import_module(_CP_UTILS[self.framework])
        # Where a rank's slices lie depends in miles on the layout: packed, or padded to a width of each sample.
        layout = getattr(args, "qkv_format", "thd") if self.framework == "miles" else "thd"
        if layout != "thd" and widths is None:
            raise ValueError(
                f"CustomTis: qkv_format={layout} needs max_seq_lens, got none\n"
                "hint: miles hands them over by itself; without them a rank's slices are those of other tokens."
            )
        places: list[tuple[Any, ...]] = list(zip(total, response, strict=True))
        if layout != "thd" and widths is not None:
            places = [(*place, layout, width) for place, width in zip(places, widths, strict=True)]

        def gather(xs: list[Tensor]) -> list[Tensor]:
            return [cp.all_gather_with_cp(x, *place) for x, place in zip(xs, places, strict=True)]

        def cut(xs: list[Tensor]) -> list[Tensor]:
            return [cp.slice_log_prob_with_cp(x, *place) for x, place in zip(xs, places, strict=True)]

        return gather, cut


def _same(xs: list[Tensor]) -> list[Tensor]:
    return xs
