"""prime-rl: an estimator as a custom loss of its trainer, one sequence a call."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from reweigh.batch import Batch, Candidates
from reweigh.centring import Centred
from reweigh.estimators import Estimator, Weights
from reweigh.trainers.seen import averaged, factor, hold, per_token, refuse_whole_batch, wide


@dataclass(frozen=True)
class CustomLoss:
    """`loss = -sum_t w_t A_t log pi_t`, w from an estimator of `pi / mu` (the live policy over the one that sampled).

    The sum over one sequence, as prime-rl wants it; it divides by the tokens of the whole batch. Put it in a module:

        # corrections.py
        loss = CustomLoss(geo_rs(0.99, 1.01) * token_tis(2.0))

        [trainer.loss]
        type = "custom"
        import_path = "corrections.loss"

    `CustomLoss(dppo_tv(0.2), kl_tau=1e-3)` has the gradient of prime-rl's own default: `kl_tau` adds
    `kl_tau sum_t (log pi_t - log mu_t)^2`.

    Args:
        estimator: whose weights are of one sequence each.
        kl_tau: of the squared log ratio, nats^-2; its gradient flows.
        outputs: what makes the returned value of `(loss, metrics)`; None is prime-rl's `LossOutputs`.

    Raises:
        ValueError: the estimator reads the whole batch.
    """

    estimator: Estimator | Centred
    kl_tau: float = 0.0
    outputs: Any = None

    def __post_init__(self) -> None:
        """Refuse what this hook cannot compute."""
        inner = self.estimator.estimator if isinstance(self.estimator, Centred) else self.estimator
        refuse_whole_batch("CustomLoss", "one sequence", inner)

    def __call__(self, inputs: Any) -> Any:
        """Compute the loss that prime-rl asks for.

        Args:
            inputs: its `LossInputs`: `trainer_logprobs`, `inference_logprobs`, `advantages`, `loss_mask`,
                `loss_weights`, all `[T]`; `trainer_mask_logprobs` and `inference_mask_logprobs`, `[T, mask]`, for a
                centred estimator.

        Returns:
            Its `LossOutputs`: the loss, 0-d, and 0-d metrics.
        """
        live, mu, mask = inputs.trainer_logprobs, inputs.inference_logprobs, inputs.loss_mask
        batch = Batch.padded(
            wide(live)[None],
            wide(mu)[None],
            mask[None],
            advantage=inputs.advantages[None],
            candidates=_support(inputs) if isinstance(self.estimator, Centred) else None,
            check=False,
        )
        weights = hold(self.estimator(batch))
        keep, on = weights.keep_tokens[0], batch.layout.mask[0]
        # What was dropped may be NaN: it is left out before anything is computed from it.
        gain = factor(weights)[0] * torch.where(keep, inputs.advantages, 0) * torch.where(keep, live, 0)
        gap = torch.where(on, live, 0) - torch.where(on, mu, 0)
        gain = gain - _subtracted(weights, inputs)
        terms = -gain + self.kl_tau * gap.square() if self.kl_tau else -gain
        if inputs.loss_weights is not None:
            terms = terms * torch.where(on, inputs.loss_weights, 0)
        metrics = averaged(per_token(batch, weights), on.sum().clamp(min=1))
        made = import_module("prime_rl.trainer.rl.loss").LossOutputs if self.outputs is None else self.outputs
        return made(loss=terms.sum(), metrics=metrics)


def _support(inputs: Any) -> Candidates:
    """Take the sampling mask that was replayed for what mu could have sampled; sampler padding is -inf."""
    live, mu = (getattr(inputs, f"{who}_mask_logprobs", None) for who in ("trainer", "inference"))
    if live is None or mu is None:
        raise ValueError(
            "CustomLoss: a centred estimator needs the log-probs of the sampling mask, and LossInputs has none\n"
            "hint: sample with top_p, top_k or min_p and sampling replay, in a version whose LossInputs has "
            "trainer_mask_logprobs; prime-rl itself fills it for score_centering."
        )
    there = mu.isfinite()
    ids = torch.where(there, torch.arange(mu.shape[-1], device=mu.device), -1)  # which token it is does not matter
    return Candidates(ids[None], wide(mu)[None], wide(live)[None], complete=True)


def _subtracted(weights: Weights, inputs: Any) -> Tensor | float:
    """Give what centring takes from each token's gain, `[T]`; 0 if the weights are not centred."""
    if weights.centre is None:
        return 0.0
    mass = weights.centre.log_mass.exp()[0].float()
    live = torch.where(weights.centre.there[0], inputs.trainer_mask_logprobs, 0)
    return torch.where(weights.layout.mask[0], inputs.advantages, 0) * (mass * live).sum(-1)
