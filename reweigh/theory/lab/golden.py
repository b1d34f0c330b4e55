"""Golden files: exact values computed elsewhere, recomputed here quantity by quantity and compared."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from reweigh.batch import Batch
from reweigh.caps import (
    Balance,
    Cubic,
    Post,
    PostBatch,
    SqrtN,
    mis_balance_cap,
)
from reweigh.estimators import Estimator
from reweigh.levels import SEQUENCE
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
from reweigh.stats.intervals import bernoulli_kl, empirical_bernstein
from reweigh.stats.summary import summarise
from reweigh.stats.sums import RatioStats
from reweigh.theory.lab.distances import Distances, Norms, StateDistances, distances, norms, ratio_law
from reweigh.theory.lab.exact import (
    Advantage,
    AnyAdvantage,
    Exact,
    Group,
    Loss,
    PPOClip,
    Reward,
    exact,
    exact_group_mean,
    exact_snis,
    reinforce,
)
from reweigh.theory.lab.inequalities import inequalities, weights_at
from reweigh.theory.lab.world import Policies, World
from reweigh.theory.laws import LogNormalRatio

__all__ = ["GoldenCheck", "Compared", "check_golden"]

INPUTS = (
    *("name", "V", "T", "ctx", "eos", "contexts", "pi_logits", "mu_logits", "mu_mask", "R"),
    *("leaves", "C", "lo", "hi", "b", "eps"),
)
"""Keys that a world of the file is made from, without which there is nothing to check."""


def world_of(given: Mapping[str, Any]) -> World:
    """Make the world of a golden instance.

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
    """List the tokens of every sequence."""
    rows: list[list[int]] = world.sequences.tokens.tolist()
    return [[a for a in row if a >= 0] for row in rows]


def estimators(given: Mapping[str, Any], world: World) -> dict[str, Exact]:
    """Compute the exact result of each estimator that the file names."""
    cap, low, high = float(given["C"]), float(given["lo"]), float(given["hi"])
    band = geo_rs(low, high)
    raw, less, a_mu, a_pi = Reward(), Reward(float(given["b"])), Advantage("mu"), Advantage("pi")
    clip = PPOClip(float(given["eps"]), float(given["eps"]))
    advantages: dict[str, AnyAdvantage] = {"R": raw, "Rb": less, "Amu": a_mu, "Api": a_pi}
    table: dict[str, tuple[Estimator, AnyAdvantage, Loss]] = {
        "suffix_is_R": (suffix_is(), raw, reinforce),
        "geo_rs_seq_is": (band * seq_is(), raw, reinforce),
        "geo_rs_tok_tis": (band * token_tis(cap), raw, reinforce),
    }
    whole = {"naive": naive(), "seq_is": seq_is(), "seq_tis": seq_tis(cap), "seq_mis": seq_mis(0.0, cap)}
    for name, estimator in (whole | {"geo_rs": band}).items():
        table |= {name: (estimator, raw, reinforce), f"{name}_b": (estimator, less, reinforce)}
    tokens = {"tok_is": token_is(), "tok_tis": token_tis(cap), "tok_mis": token_mis(0.0, cap)}
    for name, estimator in (tokens | {"prefix_is": prefix_is(), "prefix_tis": prefix_tis(cap)}).items():
        table |= {f"{name}_{key}": (estimator, a, reinforce) for key, a in advantages.items()}
    table |= {f"ppo_clip_{key}": (naive(), a, clip) for key, a in advantages.items()}
    wanted: Sequence[str] = [name for name in given.get("estimators", {}) if name in table]
    return {name: exact(world, table[name][0], table[name][1], loss=table[name][2]) for name in wanted}


def moments(given: Mapping[str, Any], result: Exact) -> dict[str, Any]:
    """Compute the entries of one estimator: those that are named, at any N."""
    out: dict[str, Any] = {
        "mean": result.mean.tolist(),
        "bias": result.bias.tolist(),
        "bias_norm": result.bias_norm,
        "second_moment": result.second_moment,
        "trace_cov": result.trace_cov,
        "cov": None if result.cov is None else result.cov.tolist(),
    }
    for key in given:
        if match := re.fullmatch(r"(mse|sga_eff)_N(\d+)", key):
            n = int(match[2])
            out[key] = result.mse(n) if match[1] == "mse" else result.efficiency(n)
    return out


def snis(given: Mapping[str, Any], world: World) -> dict[str, dict[str, Any]]:
    """Compute self-normalised importance sampling at each N of the file."""
    out: dict[str, dict[str, Any]] = {}
    for key in given:
        result = exact_snis(world, int(key))
        out[key] = {
            "N": result.n,
            "mean": result.mean.tolist(),
            "bias": result.bias.tolist(),
            "bias_norm": result.bias_norm,
            "trace_cov": result.trace_cov,
            "mse": result.mse,
            "E_inv_ess": result.inverse_ess,
            "delta_bias": result.delta_bias.tolist(),
            "delta_bias_norm": float(result.delta_bias.norm()),
            "delta_trace_cov": result.delta_trace_cov,
        }
    return out


def groups(given: Mapping[str, Any], world: World, cap: float) -> dict[str, Any]:
    """Compute the mean under group baselines for each weight."""
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
    """Compute every distance and constant."""
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


def caps(given: Mapping[str, Any], world: World, m2: float) -> dict[str, float]:
    """Apply every rule for the cap."""
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
    """List the probability of each sequence, and its log ratio; null where mu cannot sample."""
    s = world.sequences
    log_ratio = (s.log_pi - s.log_mu).sum(-1)
    return {"pi": s.pi.tolist(), "mu": s.mu.tolist(), "log_rho": log_ratio.tolist()}


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


SAMPLE_INPUTS = ("log_rho", "C")
MODEL_INPUTS = ("s2", "C")


def sample_statistics(given: Mapping[str, Any]) -> dict[str, Any]:
    """Compute what `RatioStats`, `summarise` and the intervals say of a list of sequence log ratios."""
    log_ratio = torch.tensor(given["log_rho"], dtype=torch.float64)[:, None]
    cap, n = float(given["C"]), len(log_ratio)
    # Only the difference of the two is read, and with a log mu of 0 it is exact.
    batch = Batch.padded(log_ratio, torch.zeros_like(log_ratio), torch.ones_like(log_ratio), check=False)
    stats = RatioStats.of(batch, SEQUENCE)
    host, summary = stats.host, summarise(stats)
    raw, truncated, rejected = (e(batch).per_unit for e in (seq_is(), seq_tis(cap), seq_mis(0.0, cap)))
    below = (1 - raw).clamp(min=0)
    mean, k1, tv = (float(summary[name].sample or 0.0) for name in ("mean_ratio", "kl_k1", "tv"))
    min1 = float(truncated.mean())
    low, high = given.get("eb_ci95_tv", (0.0, 1.0))
    log1, log2 = host.log_power(1.0), host.log_power(2.0)
    return {
        "mean_rho": mean,
        "ess": summary["ess"].sample,
        "chi2_plugin": math.exp(log2) / n - 1,
        "chi2_selfnorm": n * math.exp(log2 - 2 * log1) - 1,
        "tv_bounded": tv,
        "tv_half_abs": tv + (mean - 1) / 2,
        "kl_k1": k1,
        "kl_k3": mean - 1 + k1,
        "excess_bounded": 1 - min1,
        "excess_plugin": mean - min1,
        "mis_lost_bounded": 1 - float(rejected.mean()),
        # Ours keeps within what a mean of values in [0, 1] can be: so is the file's cut for the comparison.
        "eb_ci95_tv": _uncut(empirical_bernstein(tv, float(below.var()), n), (float(low), float(high))),
        "kl_ci95_tv": list(bernoulli_kl(tv, n)),
        "kl_ci95_min2": list(bernoulli_kl(min1, n, cap)),  # of min(r, 2), and not of its square
        "C_balance_hat": float(Balance().log_cap(log_ratio, torch.ones_like(log_ratio, dtype=torch.bool)).exp()),
        "khat_psis": summary["khat"].sample,
        "logsumexp1": log1,
        "logsumexp2": log2,
        "top_weight_share": summary["largest_share"].sample,
        "hell2_plugin": summary["hellinger"].sample,
    }


def log_normal(given: Mapping[str, Any]) -> dict[str, float]:
    """Compute what the log-normal model says of one variance and cap, and the balance caps at any N."""
    law, cap = LogNormalRatio(float(given["s2"])), float(given["C"])
    out = {
        "excess": law.excess(cap),
        "E_min2": law.min2(cap),
        "mis_lost": law.lost(cap),
        "mis_m2": law.mis_m2(cap),
        "tv": law.tv,
        "chi2": law.chi2,
        "kl": law.kl,
        "hell2": law.hellinger2,
        "ess_frac": law.ess_fraction,
    }
    for key in given:
        if match := re.fullmatch(r"C_(mis_)?opt_N(\d+)", key):
            n = float(match[2])
            out[key] = mis_balance_cap(law, n) if match[1] else Balance(n=n).of_law(law)
    return out


def _uncut(ours: tuple[float, float], given: tuple[float, float]) -> list[float]:
    """Our ends, but the given one where it lies beyond 0 or 1 and ours is that end of the range."""
    low = given[0] if ours[0] == 0 and given[0] < 0 else ours[0]
    high = given[1] if ours[1] == 1 and given[1] > 1 else ours[1]
    return [low, high]


TOLERANCE = 1e-9
SNIS_TOLERANCE = 1e-8  # an integral by quadrature on either side
# What is 0 up to rounding (a bias that there is not) has no relative error: a quantity below this share of the scale
# of its kind is compared as if it were that large.
FLOOR = 1e-3


@dataclass
class Compared:
    """One kind of quantity: how many were compared, and how far off the worst one is.

    Attributes:
        group: its name.
        tolerance: the largest relative error that passes.
        count: numbers compared; a vector of six counts six.
        worst: largest relative error.
        where: the place of the worst one.
    """

    group: str
    tolerance: float
    count: int = 0
    worst: float = 0.0
    where: str = ""

    @property
    def ok(self) -> bool:
        """Whether all are within the tolerance."""
        return self.worst <= self.tolerance  # False for NaN


@dataclass
class Comparison:
    """All tallies, and what there was nothing to compare with."""

    tallies: dict[str, Compared] = field(default_factory=lambda: {})
    uncovered: list[str] = field(default_factory=lambda: [])

    def add(self, group: str, where: str, given: Any, computed: Any, scale: float = 1.0) -> None:
        """Compare one quantity: a number, null, or a list of them of any depth.

        Args:
            group: the kind that it is counted under.
            where: its place in the file.
            given: what the file says; null stands for what is not finite.
            computed: what we say; None if we cannot say.
            scale: what quantities of its kind are of the size of.
        """
        if computed is None and given is not None:
            self.uncovered.append(where)
            return
        tolerance = SNIS_TOLERANCE if group.startswith("snis") else TOLERANCE
        tally = self.tallies.setdefault(group, Compared(group, tolerance))
        ours, theirs = numbers(computed), numbers(given)
        tally.count += len(theirs)
        error = _error(theirs, ours, scale)
        if not error <= tally.worst:
            tally.worst, tally.where = error, where

    def walk(
        self, group: str, where: str, given: Any, computed: Any, scales: Mapping[str, float] | None = None
    ) -> None:
        """Compare every quantity below a place of the file, and note which ones `computed` lacks.

        Args:
            group: of what is here.
            where: the place.
            given: what the file says.
            computed: the same tree.
            scales: the scale of each key, the key "" being for all others; if given, each key is a group of its own.
        """
        if not isinstance(given, Mapping):
            self.add(group, where, given, computed)
            return
        for key, value in cast("Mapping[str, Any]", given).items():
            mine = cast("Mapping[str, Any]", computed).get(key) if isinstance(computed, Mapping) else None
            if isinstance(value, Mapping):
                self.walk(f"{group}.{key}", f"{where}.{key}", value, mine)
            elif scales is None:
                self.add(group, f"{where}.{key}", value, mine)
            else:
                self.add(f"{group}.{key}", f"{where}.{key}", value, mine, scales.get(key, scales.get("", 1.0)))


def numbers(x: Any) -> list[float]:
    """Flatten a number or a nested list of numbers; null and what is not finite are NaN.

    Raises:
        ValueError: on anything else.
    """
    if isinstance(x, (list, tuple)):
        return [v for part in cast("Sequence[Any]", x) for v in numbers(part)]
    if x is None:
        return [math.nan]
    if not isinstance(x, (int, float)):
        raise ValueError(f"golden file: a number was expected, got {x!r}")
    return [float(x) if math.isfinite(x) else math.nan]


def _error(given: list[float], ours: list[float], scale: float) -> float:
    if len(given) != len(ours) or any(math.isnan(a) != math.isnan(b) for a, b in zip(given, ours, strict=True)):
        return math.inf
    pairs = [(a, b) for a, b in zip(given, ours, strict=True) if not math.isnan(a)]
    size = max([FLOOR * scale, *(abs(a) for a, _ in pairs)])
    away = max([0.0, *(abs(a - b) for a, b in pairs)])
    return away / size if size > 0 else (0.0 if away == 0 else math.inf)


Json = Mapping[str, Any]
_PROSE = ("format", "conventions")
_GRADIENTS = ("mean", "bias", "bias_norm", "delta_bias", "delta_bias_norm")


@dataclass(frozen=True)
class GoldenCheck:
    """Result of checking a file.

    Attributes:
        path: the file.
        instances: names of its worlds.
        tallies: one for each kind of quantity.
        uncovered: places in the file that nothing was computed for; empty if all was.
    """

    path: str
    instances: tuple[str, ...]
    tallies: tuple[Compared, ...]
    uncovered: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many numbers were compared."""
        return sum(t.count for t in self.tallies)

    @property
    def ok(self) -> bool:
        """Whether everything in the file was compared and is within its tolerance."""
        return not self.uncovered and all(t.ok for t in self.tallies)

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON has it; an error that is not finite is null."""
        return {
            "path": self.path,
            "ok": self.ok,
            "instances": list(self.instances),
            "count": self.count,
            "groups": [
                {
                    "group": t.group,
                    "count": t.count,
                    "worst": t.worst if t.worst < float("inf") else None,
                    "tolerance": t.tolerance,
                    "where": t.where,
                    "ok": t.ok,
                }
                for t in self.tallies
            ],
            "uncovered": list(self.uncovered),
        }


def check_golden(path: str | Path, on_instance: Callable[[int], None] | None = None) -> GoldenCheck:
    """Recompute every quantity of a golden file and compare.

    Args:
        path: a JSON file of the format that its `conventions` describe.
        on_instance: called with 1 after each world.

    Raises:
        ValueError: if the file is not of that format, or describes no world.
        OSError: if it cannot be read.
    """
    data = _read(Path(path))
    comparison = Comparison()
    for i, given in enumerate(data["instances"]):
        missing = [key for key in INPUTS if key not in given]
        if missing:
            raise ValueError(f"{path}: instance {i} has no {', '.join(missing)}\nhint: see the file's `conventions`")
        _instance(comparison, given)
        if on_instance is not None:
            on_instance(1)
    if "sample_stats" in data:
        given = _without(data["sample_stats"], SAMPLE_INPUTS)
        comparison.walk("sample_stats", "sample_stats", given, sample_statistics(data["sample_stats"]))
    for i, row in enumerate(data.get("lognormal", [])):
        comparison.walk("lognormal", f"lognormal[{i}]", _without(row, MODEL_INPUTS), log_normal(row))
    for key in data:
        if key not in (*_PROSE, "instances", "sample_stats", "lognormal"):
            comparison.uncovered.append(key)
    names = tuple(str(given["name"]) for given in data["instances"])
    return GoldenCheck(str(path), names, tuple(comparison.tallies.values()), tuple(comparison.uncovered))


def _instance(comparison: Comparison, given: Json) -> None:
    name, world = str(given["name"]), world_of(given)
    d, k = distances(world), norms(world)
    cap, band = float(given["C"]), (float(given["lo"]), float(given["hi"]))
    g = k.gradient
    sizes = {"": g * g, **dict.fromkeys(_GRADIENTS, g)}
    exacts = estimators(given, world)
    entries: dict[str, tuple[Callable[[Json], Mapping[str, Any]], Mapping[str, float]]] = {
        "estimators": (lambda x: {name: moments(x[name], exacts[name]) for name in exacts}, sizes),
        "snis": (lambda x: snis(x, world), sizes | {"N": 1.0, "E_inv_ess": 1.0}),
        "grpo": (lambda x: groups(x, world, cap), {"mean_self": g, "mean_loo": g}),
    }
    computed: dict[str, Callable[[Any], Any]] = {
        "leaves": lambda _: leaves(world),
        "dist": lambda _: dist(world, d, k),
        "weights_at_C": lambda _: weights_at(world, cap),
        "seq": lambda _: sequences(world),
        "geo_accept_mu": lambda _: float(world.mu @ geo_rs(*band)(world.batch).keep.double()),
        "C_rules": lambda x: caps(x, world, d.m2),
    }
    for key, value in given.items():
        where = f"{name}.{key}"
        if key in INPUTS and key != "leaves":
            continue
        if key in entries:
            compute, scales = entries[key]
            mine = compute(value)
            for entry, quantities in value.items():
                comparison.walk(key, f"{where}.{entry}", quantities, mine.get(entry), scales)
        elif key == "bounds":
            n = float(given.get("C_rules", {}).get("N", 64))
            sides = inequalities(world, d, k, cap, band, n)
            for row in value:
                left, right = sides.get(row["name"], (None, None))
                comparison.add("bounds.lhs", f"{where}[{row['name']}].lhs", row["lhs"], left)
                comparison.add("bounds.rhs", f"{where}[{row['name']}].rhs", row["rhs"], right)
        elif key == "g":
            comparison.add(key, where, value, world.gradient.tolist(), g)
        else:
            comparison.walk(key, where, value, computed[key](value) if key in computed else None)


def _without(given: Json, names: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key not in names}


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ValueError(f"{path}: not JSON: {e}\nhint: `lab check` takes a golden file of the lab") from e
    if not isinstance(data, dict) or not isinstance(data.get("instances"), list):  # pyright: ignore[reportUnknownMemberType]
        raise ValueError(f'{path}: a golden file is an object with "instances", a list\nhint: see its "conventions"')
    return data  # pyright: ignore[reportUnknownVariableType]
