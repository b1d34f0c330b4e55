"""NeMo-RL: an estimator as a `LossFunction`, for a run script that passes `loss_fn`."""

from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor

from reweigh.batch import Batch
from reweigh.estimators import Estimator
from reweigh.losses import policy_gradient, ppo_clip
from reweigh.trainers.seen import COUNTS, averaged, hold, per_token, refuse_whole_batch, wide


class CorrectedLoss:
    """`-(1/D) sum_t w_t min(r_t A_t, clip(r_t) A_t)`, `r = pi / pi_old` and w of `pi_old / mu`; D the global tokens.

    NeMo-RL's `setup` makes its own loss, so a run script passes this one: `grpo_train(..., loss_fn=CorrectedLoss(...))`
    in place of the `loss_fn` that `setup` returned, and the same for `async_grpo_train`. `policy.train` sends it to the
    workers; it pickles. Metrics are divided by global counts, and so add up over micro-batches.

    Args:
        estimator: whose weights are of one sequence each.
        objective: "ppo_clip" is decoupled; "policy_gradient" is `-w_t A_t log pi_t` with w of `pi / mu`.
        low: clip below 1.
        high: clip above 1.
        interfaces: the module that has `LossType`, `LossInputType` and `MetricNormalizer`; None is NeMo-RL's.

    Raises:
        ValueError: the estimator reads the whole batch.
    """

    def __init__(
        self,
        estimator: Estimator,
        objective: Literal["ppo_clip", "policy_gradient"] = "ppo_clip",
        *,
        low: float = 0.2,
        high: float = 0.2,
        interfaces: Any = None,
    ) -> None:
        refuse_whole_batch("CorrectedLoss", "one micro-batch", estimator)
        names = import_module("nemo_rl.algorithms.loss.interfaces") if interfaces is None else interfaces
        self.estimator, self.objective, self.low, self.high = estimator, objective, low, high
        self.loss_type, self.input_type = names.LossType.TOKEN_LEVEL, names.LossInputType.LOGPROB
        # What is not named here is taken to be divided as the loss is: by tokens.
        self.metric_normalizations = dict.fromkeys(("num_valid_samples", *COUNTS), names.MetricNormalizer.NONE)

    def __call__(
        self,
        next_token_logprobs: Tensor,
        data: Any,
        global_valid_seqs: Tensor,
        global_valid_toks: Tensor,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Compute the loss that NeMo-RL asks for.

        Args:
            next_token_logprobs: `[S, T - 1]`, with gradient.
            data: `advantages`, `prev_logprobs`, `generation_logprobs`, `token_mask` `[S, T]` and `sample_mask` `[S]`.
            global_valid_seqs: not used: the denominator is in tokens.
            global_valid_toks: 0-d.

        Returns:
            The loss and metrics that add up over micro-batches.
        """
        live, two = next_token_logprobs, self.objective == "policy_gradient"
        old, mu, advantage = (data[k][:, 1:] for k in ("prev_logprobs", "generation_logprobs", "advantages"))
        mask = data["token_mask"][:, 1:] * data["sample_mask"][:, None]
        batch = Batch.padded(wide(live if two else old), wide(mu), mask, advantage=advantage, check=False)
        weights = hold(self.estimator(batch))
        if two:
            loss = policy_gradient(live, advantage, weights, global_valid_toks)
        else:
            loss = ppo_clip(live, old, advantage, weights, global_valid_toks, low=self.low, high=self.high)
        sums = averaged(per_token(batch, weights), global_valid_toks)
        loss = loss.to(torch.promote_types(live.dtype, torch.float32))
        counted = {"loss": loss.item(), "num_valid_samples": data["sample_mask"].sum().item()}
        return loss, counted | dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True))
