"""Ratio statistics against the plain loops, and the laws of merging."""

import itertools
import math
from dataclasses import fields, replace

import pytest
import reference
import torch
from batches import blind, packed, random_batch, rows_of, tight
from hypothesis import given
from hypothesis import strategies as st

from reweigh import GEOMETRIC, SEQUENCE, TOKEN, TURN, Batch, RatioStats, native, summarise
from reweigh import layout as tiles_module
from reweigh.stats.summary import excess
from reweigh.stats.sums import BLOCK_SIZES, CAPS, GRID_TOP, LENGTH_EDGES, MOMENTS, POWERS

LEVELS = pytest.mark.parametrize("level", [TOKEN, TURN, SEQUENCE], ids=lambda v: v.name)


def arrays(stats):
    return {f.name: getattr(stats, f.name) for f in fields(stats) if f.name != "level"}


def assert_same(a, b, rel=1e-9, exact=True, blocks=True):
    """Equal sums, whatever the shifts; counts exactly, and peaks too unless float32 was summed in another order."""
    shift, down = torch.maximum(a.shift, b.shift), torch.maximum(a.blocks[:, 3], b.blocks[:, 3])
    x, y = (arrays(s.rescaled(shift, down)) for s in (a, b))
    if not blocks:
        x["blocks"] = y["blocks"]
    for part in (x, y):  # scaled sums of positive numbers agree down to where float32 ends
        part["weights"] = part["clusters"][:, 5:]
        part["clusters"] = part["clusters"][:, :5]
    for name in x:
        digits = 0 if exact and name in ("peaks", "top", "dropped", "shift") else rel
        floor = 1e-30 if digits and name in ("powers", "weights") else digits
        torch.testing.assert_close(x[name], y[name], rtol=digits, atol=floor, msg=lambda m, n=name: f"{n}: {m}")
    assert torch.equal(x["moments"][[0, 1, -1]], y["moments"][[0, 1, -1]])
    assert torch.equal(x["grid"][0], y["grid"][0])
    assert torch.equal(x["blocks"][:, 0], y["blocks"][:, 0])


@LEVELS
@pytest.mark.parametrize("spread", [0.02, 0.3, 1.5])
def test_numbers_equal_the_plain_loops(level, spread):
    batch = random_batch(1, spread, size=(40, 23))
    expected = reference.numbers(reference.rows(batch), level.name)
    for b in (batch, packed(batch), tight(batch)):
        got = summarise(RatioStats.of(b, level))
        for name, value in expected.items():
            # Near on-policy these subtract float32 means that are nearly 1.
            digits = 1e-7 if name in ("hellinger", "kl_k3", "renyi2") else 1e-9
            assert got[name].sample == pytest.approx(value, rel=3e-6, abs=digits), name
        assert (got.n, got.tokens) == (
            len(reference.unit_logs(reference.rows(batch), level.name)),
            int(batch.layout.mask.sum()),
        )
        assert got.sequences == int((batch.layout.lengths > 0).sum())


@LEVELS
@pytest.mark.parametrize("spread", [0.8, 8.0])
def test_every_sum_equals_the_plain_loops(level, spread):
    """At the larger spread there are ratios over the top of the grid, and sums that need a shift."""
    batch = random_batch(2, spread, size=(30, 40))
    digits = 1e-4 if spread > 1 else 2e-5
    seqs = reference.rows(batch)
    units = reference.unit_logs(seqs, level.name)
    stats = RatioStats.of(batch, level)
    bins = [sum(len(s.live()) >= e for e in LENGTH_EDGES) for s in seqs]
    moments = dict(zip(MOMENTS, stats.moments, strict=True))
    below = lambda x: max(0.0, 1 - math.exp(x))  # noqa: E731
    plain = {
        "n": lambda x: 1,
        "l": float,
        "l2": lambda x: x * x,
        "abs": abs,
        "tv": below,
        "tv2": lambda x: below(x) ** 2,
    }
    for b in set(bins):
        mine = [x for x, i in units if bins[i] == b]
        for name, f in plain.items():
            assert moments[name][b].item() == pytest.approx(sum(map(f, mine)), rel=3e-6, abs=1e-9), name
        for k, row in zip(POWERS, stats.powers, strict=True):
            got = row[b].item() * math.exp(k * stats.shift[b].item())
            assert got == pytest.approx(sum(math.exp(k * x) for x in mine), rel=digits), k
        live = [s for s, c in zip(seqs, bins, strict=True) if c == b and s.live()]
        assert moments["seqs"][b] == len(live)
        assert moments["tokens"][b] == sum(len(s.live()) for s in live)
        edges = [-math.inf, *map(math.log, CAPS), math.inf]
        for c, (low, high) in enumerate(itertools.pairwise(edges)):
            cell = [x for x in mine if low <= x < high]
            count, r, r2 = stats.grid[:, b, c].tolist()
            assert count == len(cell)
            over = c == len(CAPS)
            assert r == pytest.approx(0 if over else sum(map(math.exp, cell)), rel=digits)
            assert r2 == pytest.approx(0 if over else sum(math.exp(2 * x) for x in cell), rel=digits)
    total, squares = reference.hybrid(seqs, math.exp(GRID_TOP)) if level is SEQUENCE else (0.0, 0.0)
    assert moments["hybrid"].sum().item() == pytest.approx(total, rel=3e-6)
    assert moments["hybrid2"].sum().item() == pytest.approx(squares, rel=3e-6)
    longer = [(min(math.exp(x), math.exp(GRID_TOP)) - 1) * len(seqs[i].live()) for x, i in units]
    expected = sum(longer) if level is SEQUENCE else 0.0
    assert moments["longer"].sum().item() == pytest.approx(expected, rel=digits)
    l = sorted((x for x, _ in units), reverse=True)
    assert stats.peaks[:2].tolist() == pytest.approx([l[0], max(0.0, -l[-1])], rel=1e-6)
    top = stats.top[torch.isfinite(stats.top)].tolist()
    assert top == pytest.approx(l[: len(stats.top)], rel=1e-5, abs=1e-6)
    assert len(top) == min(len(l), len(stats.top))


def test_blocks_equal_the_plain_loops():
    """One sequence is whole, the others have a hole here and there, as tool output makes them."""
    batch = random_batch(3, 0.1, size=(5, 2600))
    batch = replace(batch, layout=batch.layout.masked(torch.rand(5, 2600, generator=torch.Generator()) < 0.998))
    batch = Batch.padded(batch.log_pi.nan_to_num(-1), batch.log_mu.clamp(min=-9), batch.layout.mask)
    stats = RatioStats.of(batch, SEQUENCE)
    for size, (count, squares, fourths, shift) in zip(BLOCK_SIZES, stats.blocks.tolist(), strict=True):
        l = reference.blocks(reference.rows(batch), size)
        assert count == len(l) > 0
        assert squares == pytest.approx(sum(math.exp(2 * (x - shift)) for x in l), rel=1e-4)
        assert fourths == pytest.approx(sum(math.exp(4 * (x - shift)) for x in l), rel=1e-4)
    assert_same(stats, RatioStats.of(packed(batch), SEQUENCE), 1e-12)


@LEVELS
@pytest.mark.parametrize("chunk", [1, 7, 64, 10_000])
def test_the_size_of_a_chunk_changes_nothing(level, chunk, monkeypatch):
    batch = random_batch(4, 0.5, size=(9, 50))
    layouts = (batch, packed(batch), tight(batch))
    whole = [RatioStats.of(b, level) for b in layouts]
    monkeypatch.setattr(tiles_module, "CHUNK_ROWS", chunk)
    for b, expected in zip(layouts, whole, strict=True):
        assert_same(RatioStats.of(replace(b, layout=b.layout.masked(b.layout.mask)), level), expected, rel=1e-14)


@LEVELS
@pytest.mark.parametrize("spread", [0.05, 0.5, 8.0])
def test_looking_changes_nothing(level, spread, monkeypatch):
    """On other devices, and in a compiled graph, no value decides what is computed."""
    monkeypatch.setattr(native, "library", lambda: None)
    batch = random_batch(4, spread, size=(9, 150))
    layouts = (batch, packed(batch), tight(batch))
    seen = [RatioStats.of(b, level) for b in layouts]
    blind(monkeypatch)
    for b, expected in zip(layouts, seen, strict=True):
        unseen = RatioStats.of(replace(b, layout=b.layout.masked(b.layout.mask)), level)
        assert_same(unseen, expected, rel=1e-6, blocks=b is not layouts[2])


@LEVELS
@given(
    seed=st.integers(0, 1000), spread=st.sampled_from([0.05, 1.0, 30.0]), cuts=st.lists(st.integers(0, 12), max_size=4)
)
def test_merging_parts_is_the_whole(level, seed, spread, cuts):
    batch = random_batch(seed, spread, size=(12, 9))
    ends = [0, *sorted(cuts), 12]
    parts = [RatioStats.of(rows_of(batch, torch.arange(a, b)), level) for a, b in itertools.pairwise(ends)]
    whole = RatioStats.of(batch, level)
    # The cluster of a sequence without a group is its place in the batch; these have groups.
    forward = backward = RatioStats.empty(level)
    for part in parts:
        forward, backward = forward + part, part + backward
    # A shift that only the whole has is applied to float32 tokens before summing, so digits of float32 are what agree.
    rel = 1e-9 if spread < 2 or level is SEQUENCE else 1e-4
    assert torch.equal(forward.shift, whole.shift)
    assert_same(forward, whole, rel)
    assert_same(backward, forward, 1e-12)


@LEVELS
def test_empty_is_the_zero_of_adding(level):
    zero, some = RatioStats.empty(level), RatioStats.of(random_batch(5), level)
    for a in (zero + some, some + zero):
        assert all(torch.equal(x, y) for x, y in zip(arrays(a).values(), arrays(some).values(), strict=True))
    masked = Batch.padded(
        torch.zeros(3, 4), torch.zeros(3, 4), torch.zeros(3, 4), turn=torch.zeros(3, 4, dtype=torch.long)
    )
    nothing = Batch.from_lists([], [], turn=[])
    for b in (masked, nothing):
        got = arrays(RatioStats.of(b, level))
        got["peaks"] = torch.where(got["peaks"] == 0, -torch.inf, got["peaks"])  # max(0, -l) of nothing may be 0
        assert all(torch.equal(x, y) for x, y in zip(got.values(), arrays(zero).values(), strict=True))
    assert summarise(zero).refusal == "there are no units"


@LEVELS
def test_layouts_give_the_same_sums(level):
    batch = random_batch(6, 0.5, size=(20, 17))
    for other in (packed(batch), tight(batch)):
        assert_same(RatioStats.of(batch, level), RatioStats.of(other, level), 3e-6, exact=False, blocks=False)


@LEVELS
def test_ratios_of_e_300_are_no_special_case(level):
    lr = torch.zeros(60, 20)
    lr[0], lr[1, 0], lr[2] = 15.0, 80.0, -15.0
    log_mu = torch.full((60, 20), -90.0)
    batch = Batch.padded(log_mu + lr, log_mu, torch.ones(60, 20), turn=torch.zeros(60, 20, dtype=torch.long))
    stats = RatioStats.of(batch, level)
    for name, x in arrays(stats).items():
        assert torch.isfinite(x).all() or name in ("peaks", "top"), name
    assert not any(torch.isnan(x).any() for x in arrays(stats).values())
    expected = reference.numbers(reference.rows(batch), level.name)
    got = summarise(stats)
    for name in ("renyi2", "ess", "tv", "largest_share", "mean_abs", "kl_k1", "hellinger"):
        assert got[name].sample == pytest.approx(expected[name], rel=1e-5), name
    assert got.refusal
    assert got["renyi2"].value is None
    assert got["renyi2"].refused == got.refusal
    assert_same(stats + RatioStats.empty(level), stats)
    alone = [RatioStats.of(rows_of(batch, torch.arange(i, i + 1)), level) for i in range(60)]
    for merged in (sum(alone[1:], alone[0]), sum(alone[-2::-1], alone[-1])):
        for name in ("renyi2", "ess", "tv", "largest_share"):
            assert summarise(merged)[name].sample == pytest.approx(expected[name], rel=1e-4), name


def test_a_ratio_that_float64_cannot_hold_is_summed_too():
    lr = torch.zeros(40, 10)
    lr[0] = 100.0
    log_mu = torch.full((40, 10), -101.0)
    got = summarise(RatioStats.of(Batch.padded(log_mu + lr, log_mu, torch.ones(40, 10)), SEQUENCE))
    assert got["renyi2"].sample == pytest.approx(math.log(40))
    assert got["ess"].sample == pytest.approx(1.0)
    assert got["mean_ratio"].value == math.inf
    assert got["tv"].value == 0


@pytest.mark.parametrize("kernel", [True, False])
def test_small_gaps_keep_their_digits(kernel, monkeypatch):
    """1 - e^l of a log ratio of 1e-4 nats, as a difference of float32 numbers, would have three digits."""
    if not kernel:
        monkeypatch.setattr(native, "library", lambda: None)
    g = torch.Generator().manual_seed(0)
    log_mu = -3 * torch.rand(50, 200, generator=g) - 0.1
    batch = Batch.padded(log_mu + 1e-4 * torch.randn(50, 200, generator=g), log_mu, torch.ones(50, 200))
    exact = replace(batch, log_mu=log_mu.double(), given=batch.log_ratio.double())
    for level in (TOKEN, SEQUENCE):
        a, b = RatioStats.of(batch, level), RatioStats.of(exact, level)
        for name, x, y in zip(MOMENTS, a.moments.sum(1).tolist(), b.moments.sum(1).tolist(), strict=True):
            assert x == pytest.approx(y, rel=1e-6, abs=1e-8 if name == "l" else 1e-12), (level, name)


def test_bfloat16_input_is_summed_at_float32_precision():
    batch = random_batch(7, 0.05, size=(8, 600), dtype=torch.bfloat16)
    expected = reference.numbers(reference.rows(batch), "sequence")
    got = summarise(RatioStats.of(batch, SEQUENCE))
    for name in ("tv", "kl_k1", "renyi2", "mean_ratio"):
        assert got[name].sample == pytest.approx(expected[name], rel=1e-5), name


def test_dropped_tokens_are_counted_and_merge():
    bad = Batch.padded(torch.tensor([[-1.0, torch.nan, -torch.inf]]), torch.full((1, 3), -1.0), torch.ones(1, 3))
    stats = RatioStats.of(bad, TOKEN) + RatioStats.of(bad, TOKEN)
    assert stats.dropped == 4
    assert summarise(stats).dropped == 4
    assert summarise(stats).n == 2


def test_sequences_of_one_prompt_are_one_cluster():
    columns = lambda group: RatioStats.of(random_groups(group), SEQUENCE).clusters  # noqa: E731
    assert (columns([7] * 6)[:, 0] > 0).sum() == 1
    assert (columns(None)[:, 0] > 0).sum() == 6
    assert torch.equal(columns([7, 7, 7, 8, 8, 8])[:, 0].unique(), torch.tensor([0.0, 3.0], dtype=torch.float64))
    torch.testing.assert_close(columns([1, 2, 3, 4, 5, 6]).sum(0), columns(None).sum(0), rtol=1e-12, atol=0)


def random_groups(group):
    g = torch.Generator().manual_seed(0)
    log_mu = -1 - torch.rand(6, 5, generator=g)
    log_pi = log_mu + 0.1 * torch.randn(6, 5, generator=g)
    return Batch.padded(log_pi, log_mu, torch.ones(6, 5), group=None if group is None else torch.tensor(group))


def test_consecutive_groups_spread_over_the_buckets():
    """Prompt numbers are consecutive, or multiples of the group size, as a rule: neither may share few buckets."""
    from reweigh.stats.sums import bucket

    log_p = torch.full((64, 1), -1.0)
    for step in (1, 8, 64, 1000):
        batch = Batch.padded(log_p, log_p, torch.ones(64, 1), group=torch.arange(64) * step)
        assert len(bucket(batch).unique()) > 30, step
        assert bucket(batch).min() >= 0


@pytest.mark.parametrize("cap", [0.5, 1.0, 2.0, 8.0])
@LEVELS
def test_excess_at_caps_of_the_grid_is_the_plain_mean(level, cap):
    batch = random_batch(8, 1.0, size=(50, 9))
    got = excess(RatioStats.of(batch, level), cap)
    expected = reference.excess(reference.rows(batch), level.name, cap)
    assert got.sample == pytest.approx(max(0.0, expected), rel=1e-5, abs=1e-6)
    assert got.low is not None
    assert got.high is not None
    assert 0 <= got.low <= max(0.0, expected) + 1e-9
    assert max(0.0, expected) <= got.high + 1e-6 <= 1 + 1e-6


def test_excess_between_caps_lies_between():
    stats = RatioStats.of(random_batch(8, 1.0, size=(50, 9)), TOKEN)
    values = [excess(stats, c).sample for c in (1.0, 1.1, 1.2, 1.3, 1.41, 1.5, 2.0)]
    assert values == sorted(values, reverse=True)


def test_hybrid_stops_at_the_top_of_the_grid():
    """A token ratio of e^80 beside a sequence ratio of 1: e^80 would drown the sum, the grid's top does not."""
    lr = torch.zeros(1, 4)
    lr[0, 0], lr[0, 1] = 80.0, -80.0
    batch = Batch.padded(lr - 90, torch.full((1, 4), -90.0), torch.ones(1, 4))
    row = dict(zip(MOMENTS, RatioStats.of(batch, SEQUENCE).moments.sum(-1).tolist(), strict=True))
    assert row["hybrid"] == pytest.approx(math.exp(GRID_TOP) - 1, rel=1e-5)


def test_levels_that_are_no_ratio_of_what_was_sampled_are_refused():
    with pytest.raises(ValueError, match=r"RatioStats\.of: level must be TOKEN, TURN or SEQUENCE, got GEOMETRIC"):
        RatioStats.of(random_batch(0), GEOMETRIC)
    with pytest.raises(ValueError, match="cannot add token stats and sequence stats"):
        RatioStats.empty(TOKEN) + RatioStats.empty(SEQUENCE)
    with pytest.raises(ValueError, match=r"TURN: the batch has no turns"):
        RatioStats.of(random_groups(None), TURN)


def test_the_host_has_the_same_sums():
    stats = RatioStats.of(random_batch(9), TOKEN)
    h = stats.host
    assert h.n == stats.moments[0].sum().item()
    assert h.log_power(2.0) == pytest.approx(math.log((stats.powers[2] * torch.exp(2 * stats.shift)).sum().item()))
