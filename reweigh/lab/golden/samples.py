"""The parts of a golden file that are of no world: statistics of given ratios, and the log-normal model."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch

from reweigh.batch import Batch
from reweigh.caps import Balance, mis_balance_cap
from reweigh.levels import SEQUENCE
from reweigh.named import seq_is, seq_mis, seq_tis
from reweigh.planner import LogNormalRatio
from reweigh.stats.intervals import bernoulli_kl, empirical_bernstein
from reweigh.stats.summary import summarise
from reweigh.stats.sums import RatioStats

SAMPLE_INPUTS = ("log_rho", "C")
MODEL_INPUTS = ("s2", "C")


def sample_statistics(given: Mapping[str, Any]) -> dict[str, Any]:
    """What `RatioStats`, `summarise` and the intervals say of a list of sequence log ratios."""
    log_ratio = torch.tensor(given["log_rho"], dtype=torch.float64)[:, None]
    cap, n = float(given["C"]), len(log_ratio)
    # Only the difference of the two is read, and with a log mu of 0 it is exact.
    batch = Batch.padded(log_ratio, torch.zeros_like(log_ratio), torch.ones_like(log_ratio))
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
    """What the log-normal model says of one variance and cap, and the balance caps at any N."""
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
