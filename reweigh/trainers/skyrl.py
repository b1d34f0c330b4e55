"""SkyRL: an estimator as a policy loss of its registry, decoupled or with two policies."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor

from reweigh.batch import Batch
from reweigh.estimators import Estimator
from reweigh.losses import policy_gradient, ppo_clip
from reweigh.trainers.seen import Measuring, hold, refuse_whole_batch, wide

_MEASURING = Measuring()


@dataclass(frozen=True)
class PolicyLoss:
    """`sum_t w_t min(r_t A_t, clip(r_t) A_t)`, `r = pi / pi_old` and w of `pi_old / mu`; or two policies and no clip.

    SkyRL has divided the advantages by its denominator before, so losses are sums. `off_policy_correction` of its
    configuration is not read. Register it in the process that starts the run, before Ray does; it pickles:

        PolicyLoss(seq_tis(2.0)).register("corrected")     # trainer.algorithm.policy_loss_type=corrected

    Args:
        estimator: whose weights are of one sequence each.
        objective: "ppo_clip" is decoupled and clips with `config.eps_clip_low` and `eps_clip_high`;
            "policy_gradient" is `-sum_t w_t A_t log pi_t` with w of the live policy, `pi / mu`.

    Raises:
        ValueError: the estimator reads the whole batch; another objective.
    """

    estimator: Estimator
    objective: Literal["ppo_clip", "policy_gradient"] = "ppo_clip"

    def __post_init__(self) -> None:
        """Refuse what this hook cannot compute."""
        refuse_whole_batch("PolicyLoss", "one micro-batch", self.estimator)
        if self.objective not in ("ppo_clip", "policy_gradient"):
            raise ValueError(f"PolicyLoss: objective must be ppo_clip or policy_gradient, got {self.objective!r}")

    def __call__(
        self,
        log_probs: Tensor,
        old_log_probs: Tensor,
        advantages: Tensor,
        config: Any,
        loss_mask: Tensor | None = None,
        rollout_logprobs: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        """Compute the loss that SkyRL asks for, from `[S, T]` each.

        Returns:
            The summed loss and metrics.

        Raises:
            ValueError: no rollout log-probs.
        """
        if rollout_logprobs is None:
            raise ValueError(
                "PolicyLoss: rollout_logprobs is None: the engine returned no log-probs\n"
                "hint: set generator.sampling_params.logprobs (0 is enough)."
            )
        two = self.objective == "policy_gradient"
        mask = torch.ones_like(log_probs, dtype=torch.bool) if loss_mask is None else loss_mask
        centre = log_probs if two else old_log_probs
        batch = Batch.padded(wide(centre), wide(rollout_logprobs), mask, advantage=advantages, check=False)
        weights = hold(self.estimator(batch))
        if two:
            loss = policy_gradient(log_probs, advantages, weights, 1.0)
        else:
            low, high = config.eps_clip_low, config.eps_clip_high
            loss = ppo_clip(log_probs, old_log_probs, advantages, weights, 1.0, low=low, high=high)
        return loss.to(torch.promote_types(log_probs.dtype, torch.float32)), _MEASURING.flat(batch, weights)

    def register(self, name: str) -> None:
        """Put it into SkyRL's registry of policy losses under a name."""
        import_module("skyrl.backends.skyrl_train.utils.ppo_utils").PolicyLossRegistry.register(name, self)
