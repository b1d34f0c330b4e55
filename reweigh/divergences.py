"""What a single sampled token says about the distance between the two policies."""

import torch
from jaxtyping import Float
from torch import Tensor

from reweigh.batch import Batch

# Each statistic is a module-level function of a Batch, so that an estimator that holds one pickles and prints.
# All are 0 off the mask, detached, and in float32 or better.


def log_ratio(batch: Batch) -> Float[Tensor, "*tok"]:
    """`log pi - log mu`, nats. Its mean over samples of mu is minus KL(mu||pi)."""
    return batch.log_ratio


def k1(batch: Batch) -> Float[Tensor, "*tok"]:
    """`-log r`, nats: unbiased for KL(mu||pi), of either sign.

    Also called: `k1` in verl; AReaL's `kl_k1` has the other sign. Source: Schulman (2020), Approximating KL Divergence.
    """
    return -batch.log_ratio


def k2(batch: Batch) -> Float[Tensor, "*tok"]:
    """`(log r)^2 / 2`, nats: never negative, biased, symmetric in the two policies.

    Source: Schulman (2020), Approximating KL Divergence.
    """
    return batch.log_ratio.square() / 2


def k3(batch: Batch) -> Float[Tensor, "*tok"]:
    """`r - 1 - log r`, nats: unbiased for KL(mu||pi) and never negative.

    Also called: `k3` in verl and slime, `mismatch_kl` in prime-rl. AReaL's `kl_k3` is `1/r - 1 + log r`: the other KL's
    formula on the same samples. Source: Schulman (2020), Approximating KL Divergence.
    """
    return torch.expm1(batch.log_ratio) - batch.log_ratio


def prob_diff(batch: Batch) -> Float[Tensor, "*tok"]:
    """`pi - mu` of the sampled token, a probability difference in [-1, 1].

    Its absolute value is a lower bound of the total variation between the policies at that token's state.

    Also called: binary TV in DPPO, prime-rl and SkyRL (absolute value).
    """
    log_mu = torch.where(batch.layout.mask, batch.log_mu.detach(), 0).to(batch.log_ratio.dtype)
    return torch.exp(log_mu + batch.log_ratio) - torch.exp(log_mu)


def binary_kl(batch: Batch) -> Float[Tensor, "*tok"]:
    """`mu log(mu/pi) + (1 - mu) log((1 - mu)/(1 - pi))`, nats: KL(mu||pi) of "this token or another one".

    A lower bound of KL(mu||pi) at that token's state (data processing). Infinite where pi is 1 and mu is not.

    Also called: `binary_kl` in SkyRL, OpenRLHF and DPPO.
    """
    both = (batch.log_mu.detach(), batch.log_pi.detach())
    # Near p = 1 the digits are in log p itself: log mu + log ratio would have lost them, as 1 - exp(log p) would.
    # Rounding can leave a log-prob just over 0; that is certainty, and no NaN.
    log_mu, log_pi = (torch.where(batch.layout.mask, x, -1).to(batch.log_ratio.dtype).clamp(max=0) for x in both)
    rest_mu, rest_pi = -torch.expm1(log_mu), -torch.expm1(log_pi)
    rest = torch.where(rest_mu > 0, rest_mu * (torch.log(rest_mu) - torch.log(rest_pi)), 0)
    return torch.where(batch.layout.mask, rest - log_mu.exp() * batch.log_ratio, 0)


def signed_binary_kl(batch: Batch) -> Float[Tensor, "*tok"]:
    """`binary_kl` with the sign of the log ratio: positive where pi gives the token more than mu did, nats."""
    return torch.copysign(binary_kl(batch), batch.log_ratio)
