"""Everything that a golden file says of one world, computed anew with the library's own estimators."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from reweigh.caps import Balance, Cubic, Post, PostBatch, SqrtN
from reweigh.estimators import Estimator
from reweigh.lab.advantages import Advantage, AnyAdvantage, Reward
from reweigh.lab.distances import Distances, Norms, StateDistances, ratio_law
from reweigh.lab.exact import Exact, Loss, PPOClip, exact, reinforce
from reweigh.lab.groups import Group, exact_group_mean
from reweigh.lab.policies import Policies
from reweigh.lab.snis import exact_snis
from reweigh.lab.world import World
from reweigh.named import (
    geo_rs,
    naive,
    prefix_is,
    prefix_tis,
    seq_is,
    seq_mis,
    seq_tis,
    suffix_is,
    token_is,
    token_mis,
    token_tis,
)

INPUTS = (
    *("name", "V", "T", "ctx", "eos", "contexts", "pi_logits", "mu_logits", "mu_mask", "R"),
    *("leaves", "C", "lo", "hi", "b", "eps"),
)
"""What a world of the file is made from, without which there is nothing to check."""


def world_of(given: Mapping[str, Any]) -> World:
    """The world of a golden instance.

    Raises:
        ValueError: if its contexts or its sequences are not in the order that ours are in, or it makes no world.
    """
    mask = given["mu_mask"]
    policies = Policies.softmax(
        _tensor(given, "pi_logits"),
        _tensor(given, "mu_logits"),
        int(given["T"]),
        _memory(str(given["ctx"])),
        given["eos"],
        None if mask is None else torch.tensor(mask) != 0,
    )
    world = World(policies, _tensor(given, "R"))
    for name, mine in (("contexts", [list(c) for c in policies.contexts()]), ("leaves", leaves(world))):
        if mine != given[name]:
            at = next((i for i, (a, b) in enumerate(zip(mine, given[name], strict=False)) if a != b), len(mine))
            raise ValueError(
                f"golden instance {given['name']}: its {len(given[name])} {name} are not our {len(mine)} in our order; "
                f"the first to differ is number {at}"
            )
    return world


def leaves(world: World) -> list[list[int]]:
    """The tokens of every sequence."""
    rows: list[list[int]] = world.sequences.tokens.tolist()
    return [[a for a in row if a >= 0] for row in rows]


def estimators(given: Mapping[str, Any], world: World) -> dict[str, Exact]:
    """The exact result of each estimator of the file's conventions."""
    cap, low, high = float(given["C"]), float(given["lo"]), float(given["hi"])
    band = geo_rs(low, high)
    raw, less, a_mu, a_pi = Reward(), Reward(float(given["b"])), Advantage("mu"), Advantage("pi")
    clip = PPOClip(float(given["eps"]), float(given["eps"]))
    table: dict[str, tuple[Estimator, AnyAdvantage, Loss]] = {
        "naive": (naive(), raw, reinforce),
        "naive_b": (naive(), less, reinforce),
        "suffix_is_R": (suffix_is(), raw, reinforce),
        "prefix_is_R": (prefix_is(), raw, reinforce),
        "prefix_is_Amu": (prefix_is(), a_mu, reinforce),
        "prefix_is_Api": (prefix_is(), a_pi, reinforce),
        "prefix_tis_R": (prefix_tis(cap), raw, reinforce),
        "prefix_tis_Amu": (prefix_tis(cap), a_mu, reinforce),
        "prefix_tis_Api": (prefix_tis(cap), a_pi, reinforce),
        "seq_is": (seq_is(), raw, reinforce),
        "seq_is_b": (seq_is(), less, reinforce),
        "seq_tis": (seq_tis(cap), raw, reinforce),
        "seq_tis_b": (seq_tis(cap), less, reinforce),
        "seq_mis": (seq_mis(0.0, cap), raw, reinforce),
        "seq_mis_b": (seq_mis(0.0, cap), less, reinforce),
        "geo_rs": (band, raw, reinforce),
        "geo_rs_b": (band, less, reinforce),
        "geo_rs_seq_is": (band * seq_is(), raw, reinforce),
        "geo_rs_tok_tis": (band * token_tis(cap), raw, reinforce),
        "ppo_clip_Amu": (naive(), a_mu, clip),
        "ppo_clip_Api": (naive(), a_pi, clip),
        "ppo_clip_Rb": (naive(), less, clip),
    }
    tokens = {"tok_is": token_is(), "tok_tis": token_tis(cap), "tok_mis": token_mis(0.0, cap)}
    for name, estimator in tokens.items():
        for suffix, advantage in (("R", raw), ("Rb", less), ("Amu", a_mu), ("Api", a_pi)):
            table[f"{name}_{suffix}"] = (estimator, advantage, reinforce)
    wanted: Sequence[str] = [name for name in given.get("estimators", {}) if name in table]
    return {name: exact(world, table[name][0], table[name][1], loss=table[name][2]) for name in wanted}


def moments(given: Mapping[str, Any], found: Exact) -> dict[str, Any]:
    """The entries of one estimator: those that are named, at any N."""
    out: dict[str, Any] = {
        "mean": found.mean.tolist(),
        "bias": found.bias.tolist(),
        "bias_norm": found.bias_norm,
        "second_moment": found.second_moment,
        "trace_cov": found.trace_cov,
        "cov": None if found.cov is None else found.cov.tolist(),
    }
    for key in given:
        if match := re.fullmatch(r"(mse|sga_eff)_N(\d+)", key):
            n = int(match[2])
            out[key] = found.mse(n) if match[1] == "mse" else found.efficiency(n)
    return out


def snis(given: Mapping[str, Any], world: World) -> dict[str, dict[str, Any]]:
    """Self-normalised importance sampling at each N of the file."""
    out: dict[str, dict[str, Any]] = {}
    for key in given:
        found = exact_snis(world, int(key))
        out[key] = {
            "N": found.n,
            "mean": found.mean.tolist(),
            "bias": found.bias.tolist(),
            "bias_norm": found.bias_norm,
            "trace_cov": found.trace_cov,
            "mse": found.mse,
            "E_inv_ess": found.inverse_ess,
            "delta_bias": found.delta_bias.tolist(),
            "delta_bias_norm": float(found.delta_bias.norm()),
            "delta_trace_cov": found.delta_trace_cov,
        }
    return out


def groups(given: Mapping[str, Any], world: World, cap: float) -> dict[str, Any]:
    """Group baselines for each weight."""
    size = int(given["G"])
    weights = {"naive": naive(), "tok_is": token_is(), "seq_is": seq_is(), "seq_tis": seq_tis(cap)}
    weights |= {"tok_tis": token_tis(cap), "seq_mis": seq_mis(0.0, cap)}
    out: dict[str, Any] = {"G": size}
    for name in (n for n in given if n in weights):
        out[name] = {
            "mean_self": exact_group_mean(world, weights[name], Group(size, "mean")).tolist(),
            "mean_loo": exact_group_mean(world, weights[name], Group(size, "others")).tolist(),
        }
    return out


def dist(world: World, d: Distances, k: Norms) -> dict[str, Any]:
    """Every distance and constant."""
    states = StateDistances.of(world.policies)
    return {
        "E_mu_rho": d.mean_ratio,
        "unsupported_pi_mass": d.unsupported,
        "m2": d.m2,
        "chi2_seq": d.chi2,
        "tv_seq": d.tv,
        "kl_pi_mu": d.kl_pi_mu,
        "kl_mu_pi": d.kl_mu_pi,
        "hell2": d.hellinger2,
        "ess_frac_pop": d.ess_fraction,
        "var_logrho_mu": d.var_log_ratio,
        "delta_max": float(states.tv.max()),
        "chi2_max": float(states.chi2.max()),
        "chi2_min": float(states.chi2.min()),
        "kl_mu_pi_max": float(states.kl_mu_pi.max()),
        "hell2_max": float(states.hellinger2.max()),
        "tv_tok_sum_mu": d.tv_tokens,
        "tv_tok_mean_mu": d.tv_tokens / d.length_mu,
        "chi2_tok_mean_mu": d.chi2_tokens / d.length_mu,
        "kl_tok_mean_mu": d.kl_tokens / d.length_mu,
        "mean_len_mu": d.length_mu,
        "mean_len_pi": d.length_pi,
        "tv_t_state": list(d.tv_states),
        "tv_hyb": list(d.tv_one_step),
        "J_pi": world.value_pi,
        "J_mu": world.value_mu,
        "K_s": k.score_token,
        "K_S": k.score,
        "K_f": k.integrand,
        "R_max": k.reward,
        "F_pi": k.integrand2_pi,
        "F_mu": k.integrand2_mu,
        "ES2_pi": k.score2_pi,
        "ES2_mu": k.score2_mu,
        "g_norm": k.gradient,
    }


def weights_at(world: World, cap: float) -> dict[str, float]:
    """What truncation and rejection at a cap leave, by the library's weights."""
    law = ratio_law(world)
    truncated, rejected = (e(world.batch).per_unit for e in (seq_tis(cap), seq_mis(0.0, cap)))
    return {
        "E_excess": law.excess(cap),
        "E_min": float(world.mu @ truncated),
        "E_min2": float(world.mu @ truncated.square()),
        "P_mu_gt": law.above(cap),
        "P_pi_gt": law.lost(cap),
        "E_mis2": float(world.mu @ rejected.square()),
    }


def caps(given: Mapping[str, Any], world: World, m2: float) -> dict[str, float]:
    """Every rule for the cap."""
    n = float(given["N"])
    # Where mu is truncated m2 is below 1 and no chi-square; the rules that ask for one are functions of 1 + chi2 = m2.
    scale = min(1.0, m2)
    chi2, law = m2 / scale - 1, ratio_law(world)
    return {
        "N": n,
        "C_post": Post().of_chi2(chi2) * math.sqrt(scale),
        "C_post_N": PostBatch(n=n).of_chi2(chi2) * math.sqrt(scale),
        "C_cubic": Cubic(n=n).of_chi2(chi2) * scale ** (2 / 3),
        "C_balance": Balance(n=n).of_law(law),
        "C_ionides_sqrtN": SqrtN(n=n).of_law(law),
    }


def sequences(world: World) -> dict[str, list[float]]:
    """The probability of each sequence, and its log ratio; null where mu cannot sample."""
    s = world.sequences
    log_ratio = (s.log_pi - s.log_mu).sum(-1)
    return {"pi": s.pi.tolist(), "mu": s.mu.tolist(), "log_rho": log_ratio.tolist()}


def accepted(world: World, low: float, high: float) -> float:
    """What the band on the geometric ratio keeps under mu."""
    return float(world.mu @ geo_rs(low, high)(world.batch).keep.double())


def _memory(ctx: str) -> int | None:
    if ctx == "prefix":
        return None
    if ctx == "iid":
        return 0
    if match := re.fullmatch(r"markov:(\d+)", ctx):
        return int(match[1])
    raise ValueError(f"golden instance: ctx must be prefix, iid or markov:m, got {ctx!r}")


def _tensor(given: Mapping[str, Any], key: str) -> Tensor:
    try:
        return torch.tensor(given[key], dtype=torch.float64)
    except (TypeError, ValueError) as e:
        raise ValueError(f"golden instance {given['name']}: {key} is no table of numbers: {e}") from e
