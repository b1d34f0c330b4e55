"""tinker: an estimator as the loss function of `forward_backward_custom`, which sees the whole batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from reweigh.batch import Batch
from reweigh.estimators import Estimator
from reweigh.losses import policy_gradient
from reweigh.trainers.capture import Capture, prompt_id
from reweigh.trainers.seen import PREFIX, Measuring, factor, hold, refuse_centred, wide


@dataclass(frozen=True)
class CustomLoss:
    """`loss = -(1/D) sum_t w_t A_t log pi_t`, w from an estimator of `pi / mu` over the whole batch.

        training_client.forward_backward_custom(data, CustomLoss(group_snis(), group=prompts))

    Each datum's `loss_fn_inputs` must have `logprobs` (the sampler's), `advantages` and, unless all tokens count,
    `mask`. A custom loss costs tinker one more forward; to save it, put `weights(data, logprobs)` times the advantages
    in `advantages` and use the built-in `importance_sampling` or `cispo`, whose own ratio starts at 1 then only if
    `logprobs` are the trainer's.

    Args:
        estimator: any; this hook sees all sequences.
        denominator: D; None is the number of tokens that count.
        group: one integer a datum, equal for responses to one prompt; for estimators that normalise by prompt.
        capture: where to write records; None writes none.
        step: of the records.

    Raises:
        ValueError: the estimator is centred; a datum lacks `logprobs` or `advantages`, when called.
    """

    estimator: Estimator
    denominator: float | None = None
    group: Sequence[int] | None = None
    capture: Capture | None = None
    step: int = 0

    def __post_init__(self) -> None:
        """Refuse what this hook cannot compute."""
        refuse_centred("CustomLoss", self.estimator)

    def __call__(self, data: list[Any], logprobs: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Compute the loss that tinker asks for.

        Args:
            data: `Datum`s.
            logprobs: the trainer's log-probs of each, with gradient.
        """
        batch, live, advantage = self._batch(data, logprobs)
        weights = hold(self.estimator(batch))
        if self.capture is not None and self.capture.wants(self.step):
            prompts = [prompt_id([g]) for g in self.group] if self.group is not None else [None] * len(data)
            self.capture.write(batch, self.step, prompt_id=prompts)
        count = batch.layout.mask.sum().clamp(min=1) if self.denominator is None else self.denominator
        loss = policy_gradient(live, advantage, weights, count).to(torch.promote_types(live.dtype, torch.float32))
        metrics = _MEASURING.flat(batch, weights)
        return loss, metrics if self.capture is None else metrics | self.capture.metrics(PREFIX)

    def weights(self, data: list[Any], logprobs: list[Tensor]) -> list[Tensor]:
        """Compute the weights alone, one float32 tensor a datum."""
        batch, _, _ = self._batch(data, logprobs)
        rows = factor(self.estimator(batch))
        return [row[: len(x)] for row, x in zip(rows, logprobs, strict=True)]

    def _batch(self, data: list[Any], logprobs: list[Tensor]) -> tuple[Batch, Tensor, Tensor]:
        mu, advantage, mask = ([_input(d, i, name) for i, d in enumerate(data)] for name in _INPUTS)
        masks = [torch.ones_like(x) if m is None else m for x, m in zip(logprobs, mask, strict=True)]
        live = pad_sequence(logprobs, batch_first=True)
        adv = pad_sequence([x for x in advantage if x is not None], batch_first=True).to(live.device)
        sampled = pad_sequence([x for x in mu if x is not None], batch_first=True).to(live.device)
        counted = pad_sequence(masks, batch_first=True).to(live.device)
        group = None if self.group is None else torch.tensor(list(self.group), device=live.device)
        return Batch.padded(wide(live), wide(sampled), counted, advantage=adv, group=group, check=False), live, adv


_MEASURING = Measuring()
_INPUTS = ("logprobs", "advantages", "mask")


def _input(datum: Any, i: int, name: str) -> Tensor | None:
    given = datum.loss_fn_inputs.get(name)
    if given is None and name != "mask":
        raise ValueError(
            f"CustomLoss: datum {i}: loss_fn_inputs has no {name!r}, got {', '.join(sorted(datum.loss_fn_inputs))}\n"
            "hint: build each Datum with the sampler's logprobs, the advantages, and a mask that is 1 on the response."
        )
    return None if given is None else given if isinstance(given, Tensor) else given.to_torch()
