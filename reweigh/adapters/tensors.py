"""What every adapter does to a framework's tensors: widen them, so that no layout changes a bit of a weight."""

import torch
from torch import Tensor

from reweigh.estimators import Estimator, Weights


def wide(log_prob: Tensor) -> Tensor:
    """The log-probs detached and in float64 (float32 on a device that has none).

    A difference of two float32 log-probs is exact in float64, and so is a sum of many thousands: nothing is rounded
    until the weight itself is. So padded, packed or one sequence a call, all frameworks get the same bits.
    """
    return log_prob.detach().to(torch.float32 if log_prob.device.type == "mps" else torch.float64)


def factor(weights: Weights) -> Tensor:
    """What to multiply each token's loss by: float32, token-shaped, 0 where dropped or off the mask."""
    return weights.per_token.float()


def refuse_whole_batch(where: str, sees: str, estimator: Estimator) -> None:
    """Raise if the estimator's weights depend on the batch, and this hook sees only a part of it.

    Args:
        where: the adapter, for the message.
        sees: what the hook is given, for example "one sequence".
        estimator: the user's.

    Raises:
        ValueError: it does.
    """
    if estimator.reads_batch:
        raise ValueError(
            f"{where}: the estimator reads the whole batch and this hook sees {sees}, got {estimator}\n"
            "hint: use an estimator whose weights are of one sequence each, such as seq_tis(2.0); self-normalised and "
            "fitted ones need a hook that sees the batch: TRL, verl's driver, tinker."
        )


def refuse_advantage(where: str, estimator: Estimator) -> None:
    """Raise if the estimator depends on the advantage's sign, and this hook has no advantage.

    Raises:
        ValueError: it does.
    """
    if any(f.sign for f in estimator.factors):
        raise ValueError(
            f"{where}: the estimator depends on the advantage's sign and this hook is called before or without "
            f"advantages, got {estimator}\nhint: use an estimator without a sign, such as geo_rs(0.99, 1.01)."
        )
