"""Rules for a cap: given numbers, their definitions by brute force, and the balance cap from samples and from sums."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tabular import Tabular
from torch.utils._python_dispatch import TorchDispatchMode

from reweigh import SEQUENCE, TOKEN, Batch, RatioStats
from reweigh.caps import (
    balance_cap,
    balance_cap_of_sample,
    balance_cap_of_stats,
    cubic_cap,
    mis_balance_cap,
    post_batch_cap,
    post_cap,
    sqrt_n_cap,
)
from reweigh.theory.laws import FiniteRatio, LogNormalRatio

DATA = Path(__file__).parent / "data"
GIVEN = json.loads((DATA / "golden_worlds.json").read_text())
SAMPLE = json.loads((DATA / "sample_stats.json").read_text())


def law_of(w):
    seen = w.p_mu > 0
    with np.errstate(divide="ignore"):
        return FiniteRatio(np.log(w.rho[seen]), w.p_mu[seen])


@pytest.mark.parametrize("given", GIVEN["instances"], ids=lambda x: x["name"])
def test_given_caps_of_worlds(given):
    law, rules = law_of(Tabular.of_record(given)), given["C_rules"]
    n, chi2 = rules["N"], max(0.0, law.chi2) if given["mu_mask"] is None else law.chi2
    if given["mu_mask"] is None:
        assert post_cap(chi2) == pytest.approx(rules["C_post"], rel=1e-11)
        assert post_batch_cap(chi2, n) == pytest.approx(rules["C_post_N"], rel=1e-11)
        assert cubic_cap(chi2, n) == pytest.approx(rules["C_cubic"], rel=1e-11)
    assert balance_cap(law, n) == pytest.approx(rules["C_balance"], rel=1e-11)
    assert sqrt_n_cap(n) == pytest.approx(rules["C_ionides_sqrtN"], rel=1e-12)
    weights, C = given["weights_at_C"], given["C"]
    found = {
        "E_excess": law.excess(C),
        "E_min2": law.min2(C),
        "P_mu_gt": law.above(C),
        "P_pi_gt": law.lost(C),
        "E_mis2": law.mis_m2(C),
    }
    assert found == pytest.approx({k: weights[k] for k in found}, rel=1e-11, abs=1e-14)


@pytest.mark.parametrize("given", GIVEN["lognormal"], ids=lambda x: f"{x['s2']}-{x['C']}")
def test_given_caps_of_log_normal_ratios(given):
    law = LogNormalRatio(given["s2"])
    assert balance_cap(law, 64) == pytest.approx(given["C_opt_N64"], rel=1e-11)
    assert mis_balance_cap(law, 64) == pytest.approx(given["C_mis_opt_N64"], rel=1e-11)


@pytest.mark.parametrize(("n", "cap"), [(1, 0.73), (16, 5.9), (64, 14.5), (1024, 69.8)])
def test_the_balance_cap_grows_with_the_batch(n, cap):
    assert balance_cap(LogNormalRatio(4.0), n) == pytest.approx(cap, rel=5e-3)
    assert post_cap(LogNormalRatio(4.0).chi2) == pytest.approx(10.45, abs=5e-3)  # for every batch


def test_given_cap_of_a_sample():
    log_ratio = torch.tensor(SAMPLE["log_rho"], dtype=torch.float64)
    assert float(balance_cap_of_sample(log_ratio).exp()) == pytest.approx(SAMPLE["C_balance_hat"], rel=1e-12)


def test_post_cap():
    assert post_cap(0.0) == pytest.approx(math.sqrt(2))
    assert post_cap(math.inf) == math.inf
    assert post_batch_cap(1.0, 1) == post_cap(1.0)


def minimiser(error):
    caps = np.exp(np.linspace(math.log(1e-2), math.log(1e3), 20_001))
    return caps[np.argmin([error(float(c)) for c in caps])]


def test_caps_minimise_what_they_say():
    law, n = LogNormalRatio(4.0), 16
    m2 = 1 + law.chi2
    assert minimiser(lambda c: law.excess(c) ** 2 + law.min2(c) / n) == pytest.approx(balance_cap(law, n), rel=1e-3)
    assert minimiser(lambda c: law.lost(c) ** 2 + law.mis_m2(c) / n) == pytest.approx(mis_balance_cap(law, n), rel=1e-3)
    assert minimiser(lambda c: (2 * m2 / c) ** 2 + c * c / n) == pytest.approx(post_batch_cap(law.chi2, n), rel=1e-3)
    assert minimiser(lambda c: (m2 / 4 / c) ** 2 + c / n) == pytest.approx(cubic_cap(law.chi2, n), rel=1e-3)


def test_no_other_weight_has_a_smaller_worst_case():
    """Gradient descent over all weights of six outcomes ends at the truncated ratio."""
    g = torch.Generator().manual_seed(3)
    p = torch.rand(6, generator=g, dtype=torch.float64)
    r = torch.exp(torch.randn(6, generator=g, dtype=torch.float64))
    p, n = p / p.sum(), 5
    r = r / (p @ r)
    w = r.clone().requires_grad_()
    optimiser = torch.optim.Adam([w], lr=3e-3)
    for _ in range(3000):
        optimiser.zero_grad()
        ((p @ (r - w).abs()) ** 2 + p @ w**2 / n).backward()
        optimiser.step()
    cap = balance_cap(FiniteRatio(r.log().numpy(), p.numpy()), n)
    assert float(r.max()) > cap
    assert w.detach().numpy() == pytest.approx(r.clamp(max=cap).numpy(), abs=0.02)


def test_rejecting_the_largest_of_a_sample_changes_nothing_and_more_is_worse():
    """Why there is no `mis_balance_cap` of a sample."""
    r = np.sort(np.random.default_rng(0).lognormal(size=50))[::-1]
    n = len(r)
    error = [(r[:k].sum() / n) ** 2 + np.square(r[k:]).sum() / n / n for k in range(n)]
    assert error[1] == pytest.approx(error[0])
    assert np.all(np.diff(error[1:]) > 0)


def bisect(log_ratio, n):
    """The root of n mean (r - C)_+ = C, from its definition."""
    r, low, high = np.exp(log_ratio), 0.0, float(np.exp(log_ratio).sum() * n)
    for _ in range(200):
        c = (low + high) / 2
        low, high = (c, high) if n * np.maximum(r - c, 0).mean() > c else (low, c)
    return high


@pytest.mark.parametrize("size", [1, 2, 7, 500])
@pytest.mark.parametrize("s", [0.0, 0.1, 1.0, 3.0])
@pytest.mark.parametrize("n", [None, 1, 30, 1e5])
def test_cap_of_a_sample_is_the_root(size, s, n):
    l = torch.randn(size, dtype=torch.float64) * s - s * s / 2
    expected = bisect(l.numpy(), size if n is None else n)
    assert float(balance_cap_of_sample(l, n=n).exp()) == pytest.approx(expected, rel=1e-9)


def test_cap_of_a_sample_reads_units_only_in_any_order_and_past_any_float():
    l = torch.tensor([700.0, -3.0, 0.2, 900.0, 0.1])
    valid = torch.tensor([False, True, True, False, True])
    alone = balance_cap_of_sample(l[valid])
    assert float(balance_cap_of_sample(l, valid)) == pytest.approx(float(alone), rel=1e-12)
    assert float(balance_cap_of_sample(l.view(1, 5), valid.view(1, 5))) == float(balance_cap_of_sample(l, valid))
    assert float(balance_cap_of_sample(l.flip(0), valid.flip(0))) == float(balance_cap_of_sample(l, valid))
    assert float(balance_cap_of_sample(l)) == pytest.approx(900 - math.log(2))  # C = r / 2, in nats
    assert float(balance_cap_of_sample(l, torch.zeros(5, dtype=torch.bool))) == -math.inf
    assert float(balance_cap_of_sample(torch.zeros(0))) == -math.inf
    assert float(balance_cap_of_sample(torch.full((3,), -torch.inf))) == -math.inf


def test_cap_of_a_large_sample_is_near_that_of_its_law():
    l = torch.randn(200_000, dtype=torch.float64) - 0.5
    cap = float(balance_cap_of_sample(l, n=64).exp())
    assert cap == pytest.approx(balance_cap(LogNormalRatio(1.0), 64), rel=0.02)


def stats_of(l, level=SEQUENCE):
    l = l[:, None]
    return RatioStats.of(Batch.padded(l - 1000, torch.full_like(l, -1000), torch.ones(l.shape)), level)


@pytest.mark.parametrize("n", [None, 1, 64])
def test_cap_of_stats_is_exact_while_it_is_over_the_smallest_kept(n):
    for size, s in ((3, 1.0), (200, 0.5), (256, 0.01), (256, 20.0), (5000, 3.0)):
        l = torch.randn(size, dtype=torch.float64) * s - s * s / 2
        found, expected = balance_cap_of_stats(stats_of(l), n), float(balance_cap_of_sample(l, n=n))
        if size <= 256 or expected >= float(l.sort(descending=True).values[255]):
            assert float(found.low) == float(found.high)
            assert float(found.log_cap) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", [300, 5000, 20_000])
@pytest.mark.parametrize("s", [0.01, 0.1, 0.5, 1.0, 3.0])
def test_cap_of_stats_is_in_its_range_and_near_the_middle(size, s):
    l = torch.randn(size, dtype=torch.float64) * s - s * s / 2
    stats = stats_of(l[: size // 2]) + stats_of(l[size // 2 :])
    for n in (None, 1, 7, 64, 1024):
        found, expected = balance_cap_of_stats(stats, n), float(balance_cap_of_sample(l, n=n))
        assert float(found.low) - 1e-9 <= expected <= float(found.high) + 1e-9
        assert float(found.log_cap) == pytest.approx(expected, abs=0.07)


def test_cap_of_stats_with_more_over_the_grid_than_are_kept():
    """Ratios of e^20 to e^800: over the top of the grid there is a range only, and it holds the cap."""
    for low, high in ((20.0, 30.0), (20.0, 800.0)):
        l = torch.linspace(low, high, 1000, dtype=torch.float64)
        for n in (None, 2.0, 1e9):
            found, expected = balance_cap_of_stats(stats_of(l), n), float(balance_cap_of_sample(l, n=n))
            assert float(found.low) - 1e-9 <= expected <= float(found.high) + 1e-9
            assert math.isfinite(float(found.log_cap))


def test_cap_of_token_stats_and_of_nothing():
    l = torch.randn(40, 9)
    batch = Batch.padded(l - 20, torch.full_like(l, -20), torch.ones(40, 9))
    found = balance_cap_of_stats(RatioStats.of(batch, TOKEN), 64)
    expected = float(balance_cap_of_sample(batch.log_ratio, n=64))
    assert float(found.low) - 1e-6 <= expected <= float(found.high) + 1e-6
    nothing = balance_cap_of_stats(RatioStats.empty(SEQUENCE))
    assert float(nothing.low) == float(nothing.high) == float(nothing.log_cap) == -math.inf


class NoSync(TorchDispatchMode):
    """Refuses what would make a device wait: reading a value on the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert "_local_scalar_dense" not in str(func), func
        assert "nonzero" not in str(func), func
        return func(*args, **(kwargs or {}))


def test_caps_of_samples_and_stats_do_not_wait_for_the_device():
    l = torch.randn(300)
    stats = stats_of(l.double())
    with NoSync():
        balance_cap_of_sample(l, l > -1, n=64)
        _ = balance_cap_of_stats(stats, 64).log_cap


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: post_cap(-0.1), "post_cap: chi2 must be >= 0, got -0.1"),
        (lambda: post_cap(math.nan), "post_cap: chi2 must be >= 0, got nan"),
        (lambda: cubic_cap(-0.1, 4), "cubic_cap: chi2 must be >= 0, got -0.1"),
        (lambda: cubic_cap(1.0, 0), "cubic_cap: n must be >= 1, got 0"),
        (lambda: post_batch_cap(1.0, 0.5), "post_batch_cap: n must be >= 1, got 0.5"),
        (lambda: sqrt_n_cap(math.nan), "sqrt_n_cap: n must be >= 1, got nan"),
        (lambda: balance_cap(LogNormalRatio(1.0), 0), "balance_cap: n must be >= 1, got 0"),
        (lambda: mis_balance_cap(LogNormalRatio(1.0), 0), "mis_balance_cap: n must be >= 1, got 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
