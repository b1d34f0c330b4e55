"""Transforms on numbers that can be checked by hand, and bounds that are refused."""

import math

import pytest
import torch

from reweigh import AtMost, Clip, Outside, Power, Reject, Screen, Shrink, Truncate
from reweigh.caps import Post
from reweigh.transforms import Identity, MeanAtMost, ParetoSmooth, SigmoidGate, SoftKernel

RATIOS = (0.25, 1.0, 4.0)
L4 = math.log(4)

BY_HAND = [
    (Identity(), (0.25, 1.0, 4.0)),
    (Clip(0.5, 2.0), (0.5, 1.0, 2.0)),
    (Clip(), (0.25, 1.0, 4.0)),
    (Truncate(2.0), (0.25, 1.0, 2.0)),
    (Reject(0.5, 2.0), (0, 1.0, 0)),
    (Reject(0.5), (0, 1.0, 4.0)),
    (Reject(high=2.0), (0.25, 1.0, 0)),
    (Screen(0.5, 2.0), (0, 1.0, 0)),
    (Screen(0.1), (1.0, 1.0, 1.0)),
    (AtMost(0.0), (1.0, 1.0, 0)),  # of the log ratio
    (AtMost(-math.inf), (0, 0, 0)),
    (Shrink(16.0), (16 * 0.25 / (0.0625 + 16), 16 / 17, 2.0)),
    (Shrink(math.inf), (0.25, 1.0, 4.0)),
    (Power(0.5), (0.5, 1.0, 2.0)),
    (Power(0.0), (1.0, 1.0, 1.0)),
    (SoftKernel(2.0, 3.0), (0.0625 * math.exp(2.25), 1.0, 16 * math.exp(-9))),
    (ParetoSmooth(), (0.25, 1.0, 4.0)),  # three units have no tail
]


@pytest.mark.parametrize(("transform", "expected"), BY_HAND, ids=lambda v: repr(v))
def test_weights_by_hand(transform, expected):
    x = torch.tensor([math.log(r) for r in RATIOS] + [0.0])
    valid = torch.tensor([True, True, True, False])
    log_w, keep = transform(x, valid)
    assert torch.where(keep, log_w.exp(), 0).tolist() == pytest.approx([*expected, 0.0], rel=1e-6)
    assert keep.tolist() == [w > 0 for w in expected] + [False]


def test_the_bound_itself_is_kept():
    x, valid = torch.tensor([math.log(0.5), math.log(2.0)]), torch.tensor([True, True])
    for transform in (Reject(0.5, 2.0), Screen(0.5, 2.0)):
        assert transform(x, valid)[1].all()
    assert AtMost(0.5)(torch.tensor([0.5]), torch.tensor([True]))[1].all()


def test_an_infinite_statistic_is_over_any_finite_bound():
    x, valid = torch.tensor([torch.inf, torch.nan]), torch.tensor([True, True])
    assert not AtMost(1e30)(x, valid)[1].any()


@pytest.mark.parametrize(
    ("values", "bound", "kept"),
    [
        ([4.0, 1.0, 1.0], 2.0, [True, True, True]),  # the mean is 2
        ([4.1, 1.0, 1.0], 2.0, [False, True, True]),
        ([9.0, 8.0, 0.0], 1.0, [False, False, True]),
        ([9.0, 8.0, 7.0], 1.0, [False, False, False]),
    ],
)
def test_the_largest_go_until_the_mean_is_within_the_bound(values, bound, kept):
    x, valid = torch.tensor([*values, 0.0]), torch.tensor([True, True, True, False])
    log_w, keep = MeanAtMost(bound)(x, valid)
    assert keep.tolist() == [*kept, False]
    assert (log_w == 0).all()


def test_pareto_smoothing_moves_only_the_tail_and_not_above_the_largest():
    x = torch.randn(100, generator=torch.Generator().manual_seed(0)).double()
    valid = torch.arange(100) != 7
    log_w, keep = ParetoSmooth()(x, valid)
    assert keep.equal(valid)
    moved = (log_w - x).abs() > 1e-9
    assert 0 < moved.sum() <= 20  # a fifth of the units is the tail
    assert x[moved].min() >= x[valid & ~moved].max() - 1e-9
    assert log_w[valid].max() <= x[valid].max() + 1e-9


@pytest.mark.parametrize(
    "tail",
    [torch.zeros(50), torch.cat([torch.zeros(30), torch.linspace(0.1, 0.3, 4)]), torch.full((1,), 800.0)],
    ids=["all equal", "four over its foot", "no float holds it"],
)
def test_a_tail_that_cannot_be_fitted_is_left_as_it_is(tail):
    """Half of the sequences on-policy, say: their ratios are 1, all of them."""
    x = torch.cat([torch.linspace(-2, -1, 100 - len(tail)), tail])
    log_w, keep = ParetoSmooth()(x, torch.ones(100, dtype=torch.bool))
    assert torch.equal(log_w, x)
    assert keep.all()


def test_pareto_smoothing_leaves_ties_with_the_foot_as_they_are():
    """Some sequences on-policy: their ratios are 1, and no part of the tail that is fitted."""
    x = torch.cat([torch.linspace(-2, -1, 70), torch.zeros(17), torch.linspace(0.1, 0.3, 13)])
    log_w, _ = ParetoSmooth()(x, torch.ones(100, dtype=torch.bool))
    assert torch.equal(log_w[:87], x[:87])
    assert not torch.equal(log_w[87:], x[87:])
    assert log_w.isfinite().all()


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: Clip(2.0, 0.5), r"Clip: low must be <= high, got low=2\.0, high=0\.5"),
        (lambda: Truncate(-1.0), r"Clip: low must be <= high, got low=0\.0, high=-1\.0"),
        (lambda: Reject(2.0, 0.5), r"Reject: low must be <= high, got low=2\.0, high=0\.5"),
        (lambda: Reject(-0.1, 0.5), r"Reject: low must be >= 0, got low=-0\.1"),
        (lambda: Reject(math.nan, 0.5), r"Reject: low must be .*nan"),
        (lambda: Screen(2.0, 0.5), r"Screen: low must be <= high"),
        (lambda: Screen(0.0, math.nan), r"Screen: low must be <= high, got low=0\.0, high=nan"),
        (lambda: Outside(2.0, 0.5), r"Outside: low must be <= high, got low=2\.0, high=0\.5"),
        (lambda: SigmoidGate(0.0), r"SigmoidGate: tau must be > 0, got 0\.0"),
        (lambda: AtMost(math.nan), r"AtMost: bound must be a number, got nan"),
        (lambda: Shrink(0.0), r"Shrink: lam must be > 0, got 0\.0"),
        (lambda: Power(1.5), r"Power: alpha must be in \[0, 1\], got 1\.5"),
        (lambda: SoftKernel(0.0, 1.0), r"SoftKernel: a and b must be > 0, got a=0\.0, b=1\.0"),
        (lambda: MeanAtMost(-1.0), r"MeanAtMost: bound must be >= 0, got -1\.0"),
        (lambda: Post().of_chi2(-0.5), r"Post: chi2 must be >= 0, got -0\.5"),
        (lambda: Post().of_chi2(math.nan), r"Post: chi2 must be >= 0, got nan"),
    ],
)
def test_bounds_that_mean_nothing_are_refused(build, text):
    with pytest.raises(ValueError, match=text):
        build()


def test_the_cap_of_the_post():
    """`sqrt(2 (1 + chi2))`: 2 at chi2 = 1, sqrt 2 on-policy, none if chi2 is infinite."""
    assert Post().of_chi2(1.0) == 2.0
    assert Post().of_chi2(0.0) == math.sqrt(2)
    assert Post().of_chi2(math.inf) == math.inf
