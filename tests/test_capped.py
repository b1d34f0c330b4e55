"""What caps take away and leave: against the values themselves, on the grid and between its caps."""

import math

import pytest
import torch
from batches import random_batch

from reweigh import SEQUENCE, TOKEN, Batch, RatioStats, summarise
from reweigh.stats.intervals import bounded
from reweigh.stats.summary import excess, excess_plain, lost, min2
from reweigh.stats.sums import CAPS
from reweigh.theory.laws import LogNormalRatio

ON_GRID, BETWEEN = (CAPS[0], 1.0, 2.0, 32.0, CAPS[-1]), (0.01, 0.9, 1.9, 2.1, 10.0, 2 * CAPS[-1])


def stats_of(log_ratio, level=SEQUENCE):
    log_mu = torch.full_like(log_ratio, -60.0)
    return RatioStats.of(Batch.padded(log_mu + log_ratio, log_mu, torch.ones(log_ratio.shape), check=False), level)


def log_normal(s2, n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return math.sqrt(s2) * torch.randn(n, 1, generator=g, dtype=torch.float64) - s2 / 2


PLAIN = {
    excess: lambda r, c: max(0.0, float(1 - r.clamp(max=c).mean())),
    lost: lambda r, c: max(0.0, float(1 - torch.where(r <= c, r, 0).mean())),
    min2: lambda r, c: float(r.clamp(max=c).square().mean()),
    excess_plain: lambda r, c: float((r - c).clamp(min=0).mean()),
}


@pytest.mark.parametrize("of", PLAIN, ids=lambda f: f.__name__)
@pytest.mark.parametrize("s2", [0.5, 6.0])
def test_at_a_cap_of_the_grid_it_is_the_sample_mean(of, s2):
    lr = log_normal(s2, 700)
    for cap in ON_GRID:
        number = of(stats_of(lr), cap)
        assert number.value == number.sample == pytest.approx(PLAIN[of](lr.exp(), cap), rel=1e-9, abs=1e-12), cap


@pytest.mark.parametrize("of", [excess, lost, min2], ids=lambda f: f.__name__)
@pytest.mark.parametrize("method", ["best", "chernoff", "bernstein"])
def test_between_caps_the_interval_holds_that_of_the_exact_sample_mean(of, method):
    """What the grid hides can only widen it, and the value is close."""
    lr = log_normal(2.0, 5000)
    r, stats = lr.exp(), stats_of(lr)
    n_eff = stats.host.effective_n
    for cap in BETWEEN:
        z = {excess: r.clamp(max=cap), lost: torch.where(r <= cap, r, 0), min2: r.clamp(max=cap).square()}[of]
        top = cap * cap if of is min2 else cap
        low, high = bounded(float(z.mean()), float(z.square().mean()), 5000, n_eff, top, method)
        number = of(stats, cap, method)
        value = PLAIN[of](r, cap)
        if of is not min2:
            low, high = max(0.0, 1 - high), max(0.0, 1 - low)
        slack = 1e-9 * (1 + top)
        assert number.low <= low + slack, cap
        assert number.high >= high - slack, cap
        assert number.low <= number.value <= number.high
        assert number.value == pytest.approx(value, rel=0.03, abs=0.012), cap


def test_all_ratios_inside_the_cell_of_the_cap():
    """Ratios of 2.5 in a cell from 2 to 2.83: the grid cannot tell a cap of 2.4 from one of 2.6, and says so."""
    stats = stats_of(torch.full((400, 1), math.log(2.5), dtype=torch.float64))
    for cap in (2.4, 2.6):
        number = lost(stats, cap)
        assert number.low == 0.0
        assert number.high == 1.0
        square = min2(stats, cap)
        assert square.low <= min(cap, 2.5) ** 2 <= square.high
        assert square.low < square.value < square.high or square.value == pytest.approx(square.high)


def test_an_excess_at_1_is_the_total_variation():
    stats = stats_of(log_normal(1.0, 300))
    tv, number = summarise(stats)["tv"], excess(stats, 1.0)
    assert (number.value, number.low, number.high) == pytest.approx((tv.value, tv.low, tv.high), rel=1e-9)


def test_losses_fall_and_the_second_moment_rises_with_the_cap():
    stats = stats_of(log_normal(2.0, 500))
    for of, sign in ((excess, -1), (lost, -1), (min2, 1)):
        values = [sign * of(stats, c).value for c in (0.3, 0.5, 0.8, 1.0, 1.2, 2.0, 2.2, 2.9, 5.0, 50.0)]
        assert values == sorted(values), of.__name__


def test_lost_is_excess_and_what_is_over_the_cap():
    """`P_pi(r > C) = b(C) + C P_mu(r > C)`, in the sample too."""
    lr = log_normal(2.0, 500)
    stats = stats_of(lr)
    over = float((lr > math.log(2)).double().mean())
    assert lost(stats, 2.0).value == pytest.approx(excess(stats, 2.0).value + 2 * over, rel=1e-9)


def test_the_plain_excess_differs_by_the_mean_ratio():
    lr = log_normal(2.0, 500)
    stats = stats_of(lr)
    gap = float(lr.exp().mean()) - 1
    assert excess_plain(stats, 4.0).value == pytest.approx(excess(stats, 4.0).value + gap, rel=1e-9)
    assert excess_plain(stats, 4.0).low is None


def test_other_levels_and_clusters():
    batch = random_batch(3, size=(40, 9))
    r = batch.log_ratio[batch.layout.mask].exp()
    for of, plain in PLAIN.items():
        assert of(RatioStats.of(batch, TOKEN), 1.0).value == pytest.approx(plain(r.double(), 1.0), rel=1e-5), of


def test_copies_widen_the_interval():
    lr = log_normal(1.0, 50)
    copies = lr.repeat_interleave(8, 0)
    log_mu = torch.full_like(copies, -60.0)
    batch = Batch.padded(log_mu + copies, log_mu, torch.ones(400, 1), group=torch.arange(400) // 8)
    for of in (excess, lost, min2):
        number, plain = of(RatioStats.of(batch, SEQUENCE), 2.0), of(stats_of(copies), 2.0)
        assert number.high - number.low > 1.5 * (plain.high - plain.low)


@pytest.mark.parametrize("of", [excess, lost, min2], ids=lambda f: f.__name__)
def test_ratios_over_the_grid_and_far_below(of):
    for lr in (torch.full((40, 1), 300.0), torch.full((40, 1), -300.0)):
        for cap in (0.01, 2.0, 1e9):
            number = of(stats_of(lr.double()), cap)
            assert number.low <= number.value <= number.high
            assert math.isfinite(number.high)


@pytest.mark.parametrize("of", PLAIN, ids=lambda f: f.__name__)
def test_what_no_cap_is_and_nothing_to_cap(of):
    with pytest.raises(ValueError, match="cap must be over 0 and finite, got -1"):
        of(stats_of(torch.zeros(4, 1)), -1.0)
    with pytest.raises(ValueError, match="got inf"):
        of(stats_of(torch.zeros(4, 1)), math.inf)
    number = of(RatioStats.empty(SEQUENCE), 2.0)
    assert (number.value, number.refused) == (None, "there are no units")


def test_bernstein_is_the_narrower_for_many_units_close_to_1():
    stats = stats_of(log_normal(0.01, 20_000))
    width = lambda method: (lambda x: x.high - x.low)(excess(stats, 2.0, method))  # noqa: E731
    assert width("best") < 0.3 * width("chernoff")
    law = LogNormalRatio(0.01)
    number = lost(stats, 2.0)
    assert number.low <= law.lost(2.0) <= number.high
