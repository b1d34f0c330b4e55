"""Exact distances of two tabular policies: over sequences, over states, and step by step."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from reweigh.theory.lab.exact import prefixes
from reweigh.theory.lab.world import Policies, World
from reweigh.theory.laws import FiniteRatio


@dataclass(frozen=True, eq=False)
class StateDistances:
    """Distances between the policies' next tokens, one a context (a row of the tables), reachable or not.

    Attributes:
        tv: total variation.
        chi2: chi-square of pi from mu; inf where mu cannot sample a token.
        kl_mu_pi: KL(mu||pi), nats.
        hellinger2: squared Hellinger distance.
    """

    tv: Float[Tensor, " contexts"]
    chi2: Float[Tensor, " contexts"]
    kl_mu_pi: Float[Tensor, " contexts"]
    hellinger2: Float[Tensor, " contexts"]

    @classmethod
    def of(cls, policies: Policies) -> "StateDistances":
        """Measure them from the tables."""
        log_pi, log_mu = policies.log_pi, policies.log_mu
        pi, mu = log_pi.exp(), log_mu.exp()
        return cls(
            tv=(pi - mu).abs().sum(-1) / 2,
            chi2=((pi - mu).square() / mu).sum(-1),
            kl_mu_pi=torch.where(mu > 0, mu * (log_mu - log_pi), 0).sum(-1),
            hellinger2=1 - ((log_pi + log_mu) / 2).exp().sum(-1),
        )


@dataclass(frozen=True)
class Distances:
    """Distances between the policies' sequences, and what their states and steps make of them.

    Attributes:
        mean_ratio: `E_mu r`: 1 less what mu cannot sample.
        unsupported: `pi(mu = 0)`: what no weight can bring back.
        m2: `E_mu r^2`.
        chi2: `m2 - 1`; inf where mu is truncated.
        tv: total variation.
        kl_pi_mu: nats; inf where mu is truncated.
        kl_mu_pi: nats.
        hellinger2: squared Hellinger distance.
        ess_fraction: `(E_mu r)^2 / E_mu r^2`: the share of a large batch that stays effective.
        var_log_ratio: variance of log r under mu, nats squared.
        tv_tokens: `sum_t E_mu TV(pi, mu | s_t)`: at least `tv`.
        chi2_tokens: the same sum of chi-squares; contexts in which it is inf are left out.
        kl_tokens: the same sum of KL(mu||pi), nats: equal to `kl_mu_pi`.
        length_mu: mean length under mu.
        length_pi: mean length under pi.
        tv_states: for each step t, half of `sum |pi - mu|` over the states that are still going on before it.
        tv_one_step: for each step t, the total variation between pi and "mu, but pi at step t"; half of what mu cannot
            sample is in it, where there is any.
    """

    mean_ratio: float
    unsupported: float
    m2: float
    chi2: float
    tv: float
    kl_pi_mu: float
    kl_mu_pi: float
    hellinger2: float
    ess_fraction: float
    var_log_ratio: float
    tv_tokens: float
    chi2_tokens: float
    kl_tokens: float
    length_mu: float
    length_pi: float
    tv_states: tuple[float, ...]
    tv_one_step: tuple[float, ...]


def distances(world: World) -> Distances:
    """Measure every distance between the policies of a world; its reward is not read.

    Example:
        >>> from reweigh.theory.lab import distances, random_world
        >>> d = distances(random_world(vocab=2, length=4))
        >>> d.tv <= d.tv_tokens and 4 * d.tv**2 <= d.chi2
        True
    """
    every, s, mu = world.sequences, world.sampled, world.mu
    log_ratio = world.batch.layout.sum(world.batch.log_ratio)
    r = log_ratio.exp()
    mean, m2 = float(mu @ r), float(mu @ r.square())
    lost = float(every.pi[~every.sampled].sum())
    whole = bool(every.sampled.all())
    states = StateDistances.of(world.policies)
    visits = mu[:, None] * s.mask

    def along(x: Tensor) -> float:
        return float((visits * torch.where(torch.isfinite(x), x, 0)[s.row]).sum())

    tv_states: list[float] = []
    for t in range(world.policies.length):
        group, count = prefixes(every, t)
        gap = every.pi.new_zeros(count).index_add(0, group, torch.where(every.lengths > t, every.pi - every.mu, 0))
        tv_states.append(float(gap.abs().sum()) / 2)
    kl = -float(mu @ log_ratio)
    return Distances(
        mean_ratio=mean,
        unsupported=lost,
        m2=m2,
        # Not m2 - 1: near on-policy that would be rounding.
        chi2=float(mu @ (r - 1).square()) if whole else math.inf,
        tv=float(mu @ (1 - r).clamp(min=0)),
        kl_pi_mu=float(mu @ (r * log_ratio)) if whole else math.inf,
        kl_mu_pi=kl,
        hellinger2=1 - float(mu @ r.sqrt()),
        ess_fraction=mean * mean / m2,
        var_log_ratio=float(mu @ (log_ratio + kl).square()),
        tv_tokens=along(states.tv),
        chi2_tokens=along(states.chi2),
        kl_tokens=along(states.kl_mu_pi),
        length_mu=float(mu @ s.lengths),
        length_pi=float(every.pi @ every.lengths),
        tv_states=tuple(tv_states),
        tv_one_step=tuple((float(mu @ (one - r).abs()) + lost) / 2 for one in world.batch.log_ratio.exp().unbind(-1)),
    )


def ratio_law(world: World) -> FiniteRatio:
    """Give the exact law of the sequence ratio under mu, for the rules that choose a cap."""
    log_ratio = world.batch.layout.sum(world.batch.log_ratio)
    return FiniteRatio(log_ratio.numpy(), world.mu.numpy())


@dataclass(frozen=True)
class Norms:
    """How large scores and rewards are in a world: the constants of the bounds.

    Attributes:
        score_token: `K_s = sup |s_t|`.
        score: `K_S = sup |S|`.
        integrand: `K = sup |R S|`.
        reward: `R_max = sup |R|`.
        half_range: `(max R - min R) / 2`.
        gradient: `|g|`.
        integrand2_pi: `F_pi = E_pi |R S|^2`.
        integrand2_mu: `F_mu = E_mu |R S|^2`.
        score2_pi: `E_pi |S|^2`.
        score2_mu: `E_mu |S|^2`.
    """

    score_token: float
    score: float
    integrand: float
    reward: float
    half_range: float
    gradient: float
    integrand2_pi: float
    integrand2_mu: float
    score2_pi: float
    score2_mu: float


def norms(world: World) -> Norms:
    """Compute the constants of the bounds, exactly."""
    s, reward = world.sequences, world.reward
    p = world.policies.log_pi.exp()
    token = ((1 - p).square() + p.square().sum(-1, keepdim=True) - p.square()).sqrt()
    score2 = s.square_norms(torch.ones_like(s.log_pi))
    integrand2 = reward.square() * score2
    return Norms(
        score_token=float(token.max()),
        score=math.sqrt(float(score2.max())),
        integrand=math.sqrt(float(integrand2.max())),
        reward=float(reward.abs().max()),
        half_range=float(reward.max() - reward.min()) / 2,
        gradient=float(world.gradient.norm()),
        integrand2_pi=float(s.pi @ integrand2),
        integrand2_mu=float(s.mu @ integrand2),
        score2_pi=float(s.pi @ score2),
        score2_mu=float(s.mu @ score2),
    )
