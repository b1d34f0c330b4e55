"""Every named estimator against the plain-loop reference, and by hand."""

import inspect
import math

import pytest
import reference
import torch
from batches import packed, random_batch, tight

from reweigh import Batch, naive, psis, seq_tis, token_mis, token_tis
from reweigh.named import NAMED

BATCH_KINDS = [("near", 0.02), ("usual", 0.3), ("far", 2.0)]
# With these the usual spread lies on both sides of the bounds; with the defaults nearly everything falls on one.
WIDER = {
    "geo_rs": (0.9, 1.1),
    "geo_mis": (0.9, 1.1),
    "k1_rs": (0.1,),
    "k3_rs": (0.05,),
    "trm": (0.2, 0.05),
    "dppo_tv": (0.05, 0.03, 1.5),
    "dppo_kl": (0.01, 1.5),
    "token_mis": (0.8, 1.2),
    "seq_mis": (0.5, 1.5),
    "token_tis": (1.1,),
    "prefix_tis": (1.1,),
    "turn_tis": (1.1,),
    "seq_tis": (1.1,),
    "cispo_cap": (1.2, 0.8),
    "vespo": ((1.0, 0.5), (0.7, 2.0)),
    "shrunk_seq_is": (2.0,),
    "opsm": (0.01,),
    "m2po": (0.01,),
    "ctpo": (0.1, 0.2),
    "pnpo": (0.9, 1.1),
    "minpro": (0.5, 1.1),
    "cppo": (0.06, 0.01, 0.5),
    "sapo": (3.0, 1.5),
    "ipo": (0.05, 1.2),
    "flash_reinforce": (0.01,),
    "kpop": (0.02,),
    "vaco": (0.2,),
    "topr": (0.8,),
    "rec_one_side": (0.1, 0.3),
    "rec_ring": (0.05, 0.1, 0.2, 0.3),
}


def check(name, args, batch):
    expected = torch.tensor(getattr(reference, name)(reference.rows(batch), *args), dtype=torch.float64)
    got = NAMED[name](*args)(batch)
    assert got.per_token.dtype == torch.float32
    torch.testing.assert_close(
        got.per_token.double(), expected, rtol=3e-6, atol=1e-7, msg=lambda m: f"{name}{args}: {m}"
    )
    torch.testing.assert_close(
        NAMED[name](*args)(packed(batch)).per_token.view(expected.shape).double(), expected, rtol=3e-6, atol=1e-7
    )
    torch.testing.assert_close(
        NAMED[name](*args)(tight(batch)).per_token.double(), expected[batch.layout.mask], rtol=3e-6, atol=1e-7
    )
    kept = expected[batch.layout.mask] > 0
    assert got.keep_tokens[batch.layout.mask].equal(kept) or name in ("vespo", "shrunk_seq_is"), name
    return kept


@pytest.mark.parametrize(("kind", "spread"), BATCH_KINDS)
@pytest.mark.parametrize("name", NAMED)
def test_equals_the_plain_loops(name, kind, spread):
    for seed in range(4):
        check(name, (), random_batch(seed, spread))


@pytest.mark.parametrize("name", WIDER)
def test_equals_the_plain_loops_with_both_sides_of_the_bounds_met(name):
    seen = torch.cat([check(name, WIDER[name], random_batch(seed, 0.3)) for seed in range(6)])
    if name in (
        "geo_rs",
        "geo_mis",
        "k1_rs",
        "k3_rs",
        "trm",
        "dppo_tv",
        "dppo_kl",
        "token_mis",
        "seq_mis",
        "opsm",
        "m2po",
        "ctpo",
        "pnpo",
        "cppo",
        "ipo",
        "flash_reinforce",
        "kpop",
        "vaco",
        "rec_one_side",
        "rec_ring",
    ):
        assert seen.any(), "the bounds keep nothing, so the test shows little"
        assert not seen.all(), "the bounds drop nothing, so the test shows little"


def test_the_reference_covers_every_name_with_the_same_defaults():
    for name, make in NAMED.items():
        ours = [p.default for p in inspect.signature(make).parameters.values()]
        theirs = [p.default for p in inspect.signature(getattr(reference, name)).parameters.values()][1:]
        assert ours == theirs[: len(ours)], name


def test_psis_equals_the_plain_loops_where_there_is_a_tail():
    for seed in range(3):
        batch = random_batch(seed, 0.6, size=(60, 9))
        expected = torch.tensor(reference.psis(reference.rows(batch)), dtype=torch.float64)
        got = psis()(batch).per_token.double()
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
        raw = torch.tensor(reference.seq_is(reference.rows(batch)), dtype=torch.float64)
        assert not torch.allclose(got, raw, rtol=1e-2), "nothing was smoothed"


# One sequence: ratios 2, 1/2 and 4 with mu = 1/8, so pi is 1/4, 1/16 and 1/2; product 4, geometric mean 4^(1/3).
R = (2.0, 0.5, 4.0)
G = 4 ** (1 / 3)
PI, MU = (0.25, 0.0625, 0.5), 0.125
K3 = [r - 1 - math.log(r) for r in R]


def hand(advantage=1.0):
    log = lambda xs: torch.tensor([[math.log(x) for x in xs]])  # noqa: E731
    return Batch.padded(
        log(PI),
        log([MU] * 3),
        torch.ones(1, 3),
        advantage=torch.tensor([advantage]),
        group=torch.tensor([0]),
        turn=torch.tensor([[0, 0, 1]]),
    )


GOLDEN = [
    ("naive", (), 1.0, (1, 1, 1)),
    ("seq_is", (), 1.0, (4, 4, 4)),
    ("snis", (), 1.0, (1, 1, 1)),
    ("group_snis", (), 1.0, (1, 1, 1)),
    ("token_is", (), 1.0, (2, 0.5, 4)),
    ("prefix_is", (), 1.0, (2, 1, 4)),
    ("suffix_is", (), 1.0, (4, 2, 4)),
    ("geo_is", (), 1.0, (G, G, G)),
    ("token_tis", (3.0,), 1.0, (2, 0.5, 3)),
    ("prefix_tis", (), 1.0, (2, 1, 2)),
    ("turn_tis", (), 1.0, (1, 1, 2)),
    ("seq_tis", (), 1.0, (2, 2, 2)),
    ("cispo_cap", (3.0, 1.0), 1.0, (2, 1, 3)),
    ("seq_mis", (), 1.0, (0, 0, 0)),
    ("seq_mis", (0.0, 5.0), 1.0, (4, 4, 4)),
    ("token_mis", (0.6, 3.0), 1.0, (2, 0, 0)),
    ("geo_rs", (1.0, 2.0), 1.0, (1, 1, 1)),
    ("geo_mis", (1.0, 2.0), 1.0, (G, G, G)),
    ("k1_rs", (math.log(4) / 3 + 1e-3,), 1.0, (1, 1, 1)),
    ("k1_rs", (math.log(4) / 3 - 1e-3,), 1.0, (0, 0, 0)),
    ("k3_rs", (sum(K3) / 3 + 1e-3,), 1.0, (1, 1, 1)),
    ("k3_rs", (sum(K3) / 3 - 1e-3,), 1.0, (0, 0, 0)),
    ("trm", (math.log(4) ** 2 / 2 + 1e-3, None), 1.0, (1, 1, 1)),
    ("trm", (math.log(4) ** 2 / 2 - 1e-3, None), 1.0, (0, 0, 0)),
    ("trm", (None, sum(K3) / 3 - 1e-3), 1.0, (0, 0, 0)),
    ("opsm", (), -1.0, (1, 1, 1)),  # the mean of log mu/pi is negative
    ("opsm", (-1.0,), -1.0, (0, 0, 0)),
    ("opsm", (-1.0,), 1.0, (1, 1, 1)),
    ("dppo_tv", (0.2, 0.05), 1.0, (2, 0.5, 0)),  # pi - mu: 0.125, -0.0625, 0.375
    ("dppo_tv", (0.2, 0.05), -1.0, (2, 0, 4)),
    ("dppo_tv", (0.2, 0.05), 0.0, (2, 0.5, 4)),
    ("dppo_tv", (0.2, 0.05, 1.5), 0.0, (1.5, 0.5, 1.5)),
    ("dppo_kl", (0.1,), 1.0, (2, 0.5, 0)),  # binary KL: 0.048, 0.026, 0.314
    ("dppo_kl", (0.02,), 1.0, (0, 0.5, 0)),
    ("dppo_kl", (0.02,), -1.0, (2, 0, 4)),
    ("m2po", (math.log(2) ** 2 + 1e-3,), 1.0, (1, 1, 0)),  # squares: log^2 of 2, 2 and 4
    ("m2po", (2 * math.log(2) ** 2 + 1e-3,), 1.0, (1, 1, 1)),
    ("psis", (), 1.0, (4, 4, 4)),
    ("shrunk_seq_is", (), 1.0, (2, 2, 2)),  # 16 * 4 / (16 + 16)
    ("vespo", (), 1.0, (16 * math.exp(-9),) * 3),
    ("vespo", (), -1.0, (64 * math.exp(-6),) * 3),
    ("vespo", (), 0.0, (1, 1, 1)),
    # prefix ratios 2, 1, 4, their logs over the root of the place .69, 0, .80
    ("ctpo", (0.1, 0.75), 1.0, (2, 1, 0)),
    ("ctpo", (0.1, 0.85), 1.0, (2, 1, 4)),
    ("ctpo", (0.1, 0.75), -1.0, (2, 1, 4)),  # none fell
    ("ctpo", (-0.1, 0.75), -1.0, (2, 0, 4)),
    ("pnpo", (), 1.0, (2, 1, G)),
    ("pnpo", (1.0, 1.9), 1.0, (0, 1, G)),
    ("minpro", (), 1.0, (2, 1, 2)),  # the first alone, 1/2 * 2, 4 * 1/2
    ("minpro", (1.2, 1.8), 1.0, (1.8, 1.2, 1.8)),
    # |pi - mu|: 1/8, 1/16, 3/8; with floor 1/2 weighed 1, 3/4, 1/2 to .125, .0469, .1875
    ("cppo", (0.2, 1.0, 0.5), 1.0, (2, 0.5, 4)),
    ("cppo", (0.15, 1.0, 0.5), 1.0, (2, 0.5, 0)),
    ("cppo", (0.2, 0.05, 0.5), 1.0, (2, 0.5, 0)),  # .1875 is over .2 + .05 * 1.75 - .1719 = .1156
    ("cppo", (0.04, 1.0, 0.5), -1.0, (2, 0, 4)),
    ("sapo", (2.0, 1.0), 1.0, (2 / math.cosh(1) ** 2, 0.5 / math.cosh(0.5) ** 2, 4 / math.cosh(3) ** 2)),
    ("sapo", (2.0, 1.0), -1.0, (2 / math.cosh(0.5) ** 2, 0.5 / math.cosh(0.25) ** 2, 4 / math.cosh(1.5) ** 2)),
    ("ipo", (), 1.0, (2, 0.5, 0)),
    ("ipo", (0.4, 3.0), -1.0, (2, 0.5, 3)),
    ("flash_reinforce", (0.131,), 1.0, (2, 0.5, 4)),  # the mean of .048, .026 and .316 is .130
    ("flash_reinforce", (0.129,), 1.0, (0, 0, 0)),
    ("kpop", (), 1.0, (1, 1, 1)),
    ("kpop", (0.35,), 1.0, (1, 1, 0)),  # KL(pi||mu) of the last is .413, its KL(mu||pi) .314
    ("kpop", (0.42,), 1.0, (1, 1, 1)),
    ("vaco", (1.4,), 1.0, (0, 0.5, 0)),  # the mean of |r - 1| is (1 + 1/2 + 3) / 3
    ("vaco", (1.4,), -1.0, (2, 0, 4)),
    ("vaco", (1.6,), 1.0, (2, 0.5, 4)),
    ("topr", (), 1.0, (1, 1, 1)),
    ("topr", (), -1.0, (1, 1, 1)),
    ("topr", (3.0,), -1.0, (3, 3, 3)),
    ("rec_one_side", (0.2, 1.5), 1.0, (1, 1, 0)),
    ("rec_one_side", (0.2, 1.5), -1.0, (1, 0, 1)),
    ("rec_ring", (0.2, 0.2, 0.5, 2.0), 1.0, (0, 1, 0)),  # 1/2 is far below
    ("rec_ring", (0.2, 0.2, 0.6, 2.0), 1.0, (0, 0, 0)),
    ("rec_ring", (0.2, 0.2, 0.6, 2.0), -1.0, (0, 0, 1)),  # 4 is far above
    ("rec_ring", (0.2, 0.2, 0.6, 2.0), 0.0, (1, 1, 1)),
]


@pytest.mark.parametrize(("name", "args", "advantage", "expected"), GOLDEN)
def test_by_hand(name, args, advantage, expected):
    assert NAMED[name](*args)(hand(advantage)).per_token.tolist() == [pytest.approx(list(expected), rel=1e-5)]


def test_every_name_is_worked_by_hand():
    assert {name for name, *_ in GOLDEN} == set(NAMED)


def test_self_normalisation_by_hand():
    """Sequence ratios 1 and 3 in one group, 5 alone in another, one empty."""
    lr = torch.tensor([[0.0], [math.log(3)], [math.log(5)], [0.0]])
    mask, group = torch.tensor([[1], [1], [1], [0]]), torch.tensor([7, 7, -2, 7])
    batch = Batch.padded(lr - 9, torch.full((4, 1), -9.0), mask, group=group)
    assert NAMED["snis"]()(batch).per_token.flatten().tolist() == pytest.approx([1 / 3, 1.0, 5 / 3, 0.0], rel=1e-5)
    assert NAMED["group_snis"]()(batch).per_token.flatten().tolist() == pytest.approx([0.5, 1.5, 1.0, 0.0], rel=1e-5)


def test_counts_of_units():
    lr = torch.tensor([[1.0, 0.0, -1.0, 9.0], [0.0, 0.0, 0.0, 0.0]])
    batch = Batch.padded(lr - 10, torch.full((2, 4), -10.0), torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0]]))
    token, sequence = token_tis(2.0)(batch), seq_tis(0.5)(batch)
    assert [int(x) for x in (token.num_units, token.num_kept, token.num_bounded)] == [3, 3, 1]
    assert [int(x) for x in (sequence.num_units, sequence.num_kept, sequence.num_bounded)] == [1, 1, 1]
    assert int(token_mis(0.5, 2.0)(batch).num_kept) == 1
    turns = Batch.padded(
        lr - 10, torch.full((2, 4), -10.0), torch.ones(2, 4), turn=torch.tensor([[0, 0, 1, 1], [0, 0, 0, 2]])
    )
    turn = NAMED["turn_tis"](2.0)(turns)
    assert [int(x) for x in (turn.num_units, turn.num_kept, turn.num_bounded)] == [4, 4, 2]


def test_naive_is_the_unit_of_the_product():
    assert naive() * token_tis(2.0) == token_tis(2.0) == token_tis(2.0) * naive()
