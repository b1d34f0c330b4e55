"""Levels and per-token statistics on numbers that can be checked by hand."""

import math

import pytest
import torch
from batches import packed, random_batch, tight

from reweigh import (
    GEOMETRIC,
    PREFIX,
    PREFIX_LEAST,
    PREFIX_MEAN,
    PREFIX_ROOT,
    SEQUENCE,
    SUFFIX,
    TOKEN,
    TURN,
    WORST,
    Batch,
)
from reweigh.layout import Packed, Padded
from reweigh.levels import (
    LEVELS,
    binary_kl,
    heads,
    k1,
    k2,
    k3,
    log_ratio,
    prefix_budget,
    prob_diff,
    prob_gap,
    reverse_binary_kl,
    signed_binary_kl,
    signed_gap_of_sequence,
)

LR = torch.tensor([[1.0, -2.0, 4.0, 8.0], [16.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
MASK = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]])
TURNS = torch.tensor([[5, 5, 3, 3], [0, 0, 0, 0], [0, 0, 0, 0]])
MU = torch.full((3, 4), -20.0)


def batch():
    return Batch.padded(MU + LR, MU, MASK, turn=TURNS)


BY_HAND = {
    TOKEN: [1.0, -2.0, 8.0, 16.0],
    PREFIX: [1.0, -1.0, 7.0, 16.0],
    PREFIX_MEAN: [1.0, -0.5, 7.0 / 3, 16.0],
    PREFIX_ROOT: [1.0, -1 / math.sqrt(2), 7 / math.sqrt(3), 16.0],
    PREFIX_LEAST: [1.0, -1.0, 6.0, 16.0],
    SUFFIX: [7.0, 6.0, 8.0, 16.0],
    TURN: [-1.0, -1.0, 8.0, 16.0],
    SEQUENCE: [7.0, 16.0, 0.0],
    GEOMETRIC: [7.0 / 3, 16.0, 0.0],
    WORST: [8.0, 16.0, -torch.inf],
}


@pytest.mark.parametrize("level", LEVELS, ids=lambda v: v.name)
def test_folds_by_hand(level):
    for b in (batch(), packed(batch()), tight(batch())):
        x = level.fold(b.log_ratio, b.layout)
        got = x if level.unit == "sequence" else x[b.layout.mask]
        assert got.tolist() == pytest.approx(BY_HAND[level], rel=1e-6)
        count = [True, True, False] if level.unit == "sequence" else b.layout.mask.tolist()
        assert level.valid(b.layout).tolist() == count


def test_every_level_has_a_name_and_prints_it():
    assert len({level.name for level in LEVELS}) == len(LEVELS) == len(BY_HAND)
    assert repr(SEQUENCE) == "Level(name='sequence', unit='sequence')"


def test_a_turn_is_counted_once_at_its_first_live_token():
    assert heads(batch().layout).tolist() == [[True, False, False, True], [True] + [False] * 3, [False] * 4]


def test_equal_turns_apart_are_two_turns_and_turns_end_with_the_sequence():
    turn = torch.tensor([0, 1, 0, 0, 0])
    b = Batch.packed(torch.arange(5.0) - 9, torch.full((5,), -9.0), torch.tensor([0, 4, 5]), turn=turn)
    assert TURN.fold(b.log_ratio, b.layout).tolist() == [0.0, 1.0, 5.0, 5.0, 4.0]
    assert heads(b.layout).sum() == 4


def test_turns_are_needed():
    plain = Batch.padded(MU, MU, MASK)
    with pytest.raises(ValueError, match=r"TURN: the batch has no turns\.\nhint: pass turn="):
        TURN.fold(plain.log_ratio, plain.layout)


def one(pi, mu):
    return Batch.padded(
        torch.tensor([[math.log(pi), 9.0]]), torch.tensor([[math.log(mu), 9.0]]), torch.tensor([[1, 0]])
    )


def test_statistics_by_hand():
    """pi = 1/2 against mu = 1/4: a ratio of 2."""
    b, log2 = one(0.5, 0.25), math.log(2)
    kl = 0.25 * math.log(0.5) + 0.75 * math.log(0.75 / 0.5)
    expected = {
        log_ratio: log2,
        k1: -log2,
        k2: log2**2 / 2,
        k3: 1 - log2,
        prob_diff: 0.25,
        binary_kl: kl,
        signed_binary_kl: kl,
    }
    for f, x in expected.items():
        assert f(b).tolist() == [[pytest.approx(x, rel=1e-6), 0.0]], f.__name__
    assert signed_binary_kl(one(0.25, 0.5))[0, 0].item() < 0 < binary_kl(one(0.25, 0.5))[0, 0].item()


def test_k3_keeps_its_digits_for_small_gaps():
    """`exp(x) - 1 - x` would be rounding noise at 1e-4."""
    b = Batch.padded(torch.tensor([[-1e-4]], dtype=torch.float64).float(), torch.tensor([[0.0]]), torch.ones(1, 1))
    assert k3(b).item() == pytest.approx(5e-9, rel=2e-3)


def test_binary_kl_where_a_policy_is_certain():
    sure, unsure = torch.tensor([[0.0]]), torch.tensor([[math.log(0.9)]])
    at = lambda pi, mu: Batch.padded(pi, mu, torch.ones(1, 1))  # noqa: E731
    assert binary_kl(at(sure, sure)).item() == 0
    assert binary_kl(at(sure, unsure)).item() == math.inf
    assert binary_kl(at(unsure, sure)).item() == pytest.approx(-math.log(0.9), rel=1e-6)


def test_binary_kl_near_certainty_keeps_its_digits():
    """pi = 1 - 1e-9 and mu = 0.9: 0.1 log(0.1 / 1e-9) + 0.9 log 0.9; a log ratio in float32 cannot tell pi from 1."""
    b = Batch.padded(torch.tensor([[-1e-9]]), torch.tensor([[math.log(0.9)]]), torch.ones(1, 1))
    assert binary_kl(b).item() == pytest.approx(0.1 * math.log(0.1 / 1e-9) + 0.9 * math.log(0.9), rel=1e-5)


def test_a_log_prob_just_over_0_is_certain_not_nan():
    """Rounding can leave pi at 1 + 1e-7; its divergence is infinite, and has a sign."""
    b = Batch.padded(torch.tensor([[1e-7]]), torch.tensor([[math.log(0.9)]]), torch.ones(1, 1))
    assert signed_binary_kl(b).item() == math.inf


@pytest.mark.parametrize(
    "statistic",
    [
        *(log_ratio, k1, k2, k3, prob_diff, prob_gap, binary_kl),
        *(reverse_binary_kl, signed_binary_kl, signed_gap_of_sequence),
    ],
)
def test_statistics_are_0_off_the_mask_and_detached(statistic):
    b = random_batch(1)
    x = statistic(b)
    assert (x[~b.layout.mask] == 0).all()
    assert torch.isfinite(x).all()
    live = Batch.padded(
        torch.full((1, 1), -1.0, requires_grad=True), torch.full((1, 1), -2.0, requires_grad=True), torch.ones(1, 1)
    )
    assert not statistic(live).requires_grad


def test_reverse_binary_kl_by_hand():
    """Of pi = 1/2 and mu = 1/4: log(2) / 2 + log(2/3) / 2; and it is the other one with the policies changed round."""
    b = Batch.padded(torch.tensor([[0.5]]).log(), torch.tensor([[0.25]]).log(), torch.ones(1, 1))
    assert reverse_binary_kl(b).item() == pytest.approx((math.log(2) + math.log(2 / 3)) / 2, rel=1e-6)
    batch = random_batch(3)
    turned = Batch.padded(batch.log_mu, batch.log_pi, batch.layout.mask)
    assert reverse_binary_kl(batch).equal(binary_kl(turned))


def test_running_levels_by_hand():
    """Values 1, -2, (a hole), 4; then a sequence of one, and an empty one."""
    x = torch.tensor([[1.0, -2.0, 0.0, 4.0], [3.0, 0.0, 0.0, 0.0], [0.0] * 4])
    mask = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
    rows = Padded(mask)
    runs = Packed(mask.flatten(), torch.tensor([0, 4, 8, 12]))
    expected = {
        PREFIX_MEAN: ([1, -0.5, 1], 3),
        PREFIX_ROOT: ([1, -1 / math.sqrt(2), 3 / math.sqrt(3)], 3),
        PREFIX_LEAST: ([1, -1, 2], 3),  # -2 + 1, 4 - 2
        # weights 1, 3/4, 1/2: own 1, 1.5, 2; over: 1, 2.5 - .1, 4.5 - .175; what moves back passes
        prefix_budget(0.1, 0.5): ([1, -math.inf, 4.325], 3),
    }
    for level, (first, second) in expected.items():
        got = level.fold(x, rows)
        assert got[0][mask[0]].tolist() == pytest.approx(first), level
        assert got[1, 0].item() == pytest.approx(second), level
        assert level.fold(x.flatten(), runs).view(3, 4)[mask].equal(got[mask]), level


@pytest.mark.parametrize("level", [TOKEN, PREFIX, PREFIX_MEAN, PREFIX_ROOT, PREFIX_LEAST])
def test_another_token_in_its_place_gives_what_a_fold_of_it_would(level):
    """`instead` against folding the sequence with the one token changed."""
    batch = random_batch(2)
    layout, x = batch.layout, batch.log_ratio
    others = torch.randn(*x.shape, 2, generator=torch.Generator().manual_seed(0))
    got = level.instead(x, others, layout)
    for i, t in layout.mask.nonzero().tolist():
        for k in range(2):
            changed = x.clone()
            changed[i, t] = others[i, t, k]
            assert got[i, t, k].item() == pytest.approx(level.fold(changed, layout)[i, t].item(), abs=1e-5)


def test_running_maxima_are_the_same_in_both_layouts():
    """To the last bit, with ties, runs of one slot, empty runs, and nothing at all."""
    g = torch.Generator().manual_seed(1)
    lengths = torch.tensor([0, 5, 1, 0, 0, 17, 3, 0])
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    x = torch.randint(-3, 4, (26,), generator=g).float() * 1e20
    x[7] = -torch.inf
    got = Packed(torch.ones(26, dtype=torch.bool), offsets).cummax_floored(x)
    expected = torch.cat([row.cummax(0).values for row in x.split(lengths.tolist()) if len(row)])
    assert got.equal(expected)
    for empty in (Packed(torch.ones(0, dtype=torch.bool), torch.tensor([0])), Padded(torch.ones(2, 0).bool())):
        nothing = torch.zeros(empty.mask.shape)
        assert empty.cummax_floored(nothing).shape == nothing.shape
        assert PREFIX_LEAST.fold(nothing, empty).shape == nothing.shape
