"""Several processes: the same sums, weights and gradients as one, whatever each of them has."""

from itertools import pairwise

import pytest
import ranks
import torch
from batches import random_batch

from reweigh import SEQUENCE, Batch, RatioStats, all_reduce, log_normaliser, seq_is, seq_tis, snis, turn_tis, weigh
from reweigh import distributed as merge
from reweigh.distributed import context_weights, whole_sequences
from reweigh.estimators import Normaliser
from reweigh.named import geo_rs, prefix_tis, psis, token_tis

every_world = pytest.mark.parametrize("world", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 4))])
TOP = RatioStats.empty(SEQUENCE).top.numel()


@every_world
@pytest.mark.parametrize("spread", ranks.SPREADS)
def test_all_ranks_have_what_one_process_has(world, spread):
    batch, found = ranks.whole(spread), [r["merged"][spread] for r in ranks.results(world)]
    ones = [RatioStats.of(batch, level) for level in ranks.LEVELS]
    for rank in found:
        for one, stats in zip([*ones, ones[0]], [*rank["stats"], rank["alone"]], strict=True):
            same_stats(RatioStats(one.level, **stats), one, exact=spread < 1 or one.level is SEQUENCE)
        assert rank["tokens"] == batch.layout.mask.sum()
        assert rank["tokens"].dtype == torch.int64
        torch.testing.assert_close(rank["log"].float(), seq_is()(batch).log_normaliser(), rtol=1e-6, atol=1e-6)
    for i, e in enumerate(ranks.NORMALISED):
        for rank in found:
            torch.testing.assert_close(rank["shifts"][i], e(batch).log_normaliser(), rtol=1e-6, atol=1e-6)
        together = torch.cat([rank["weights"][i] for rank in found])
        torch.testing.assert_close(together, ranks.self_normalised(e)(batch).per_token, rtol=2e-5, atol=1e-7)


def same_stats(got, one, exact):
    shift, blocks = one.shift, one.blocks[:, 3]
    assert torch.equal(got.shift, shift)
    a, b = vars(got.rescaled(shift, blocks)), vars(one.rescaled(shift, blocks))
    # Where the whole has a shift that a part has not, tokens were exponentiated in float32 at other places.
    rel = 1e-9 if exact else 1e-4
    for name in set(a) - {"level", "peaks", "top"}:
        torch.testing.assert_close(a[name], b[name], rtol=rel, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    for name in ("peaks", "top", "dropped"):
        assert torch.equal(a[name], b[name]), name
    assert torch.equal(a["moments"][[0, 1, -1]], b["moments"][[0, 1, -1]]), "counts are exact"
    assert torch.equal(a["grid"][0], b["grid"][0]), "counts are exact"


@every_world
def test_stats_of_three_levels_a_normaliser_and_a_count_take_two_collectives(world):
    for rank in ranks.results(world):
        for spread in ranks.SPREADS:
            (first, maxima), (second, sums) = rank["merged"][spread]["seen"]
            assert first == second == "allreduce_.default"
            assert maxima == 3 * (160 + 40 * world) + 8
            # 2,810 sums, and slots for as many of the largest ratios as all lists have, up to 7 lists.
            assert sums == 3 * 8 * (2810 + TOP * world) + 16 + 8


@pytest.fixture
def thousand():
    """One of 1,024 ranks whose collectives do nothing."""
    from torch.testing._internal.distributed import fake_pg

    torch.distributed.init_process_group("fake", store=fake_pg.FakeStore(), rank=5, world_size=1024)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("thousand")
@pytest.mark.parametrize("sequences", [3, 300])
def test_what_a_thousand_ranks_send_does_not_depend_on_the_batch(sequences):
    batch = random_batch(1, size=(sequences, 7))
    with ranks.Recorder() as recorder:
        all_reduce(tuple(RatioStats.of(batch, level) for level in ranks.LEVELS))
    assert [size for _, size in recorder.seen] == [3 * (160 + 40 * 1024), 3 * 8 * (2810 + 7 * TOP)]


@pytest.mark.usefixtures("thousand")
def test_nothing_waits_for_the_device():
    """On the meta device tensors have shapes only: whatever runs there reads no value."""
    batch = random_batch(1)
    meta = on_meta(batch)
    parts = (*(RatioStats.of(meta, level) for level in ranks.LEVELS), Normaliser.of(seq_is()(meta)))
    *stats, normaliser = all_reduce((*parts, meta.layout.lengths.sum()))[:-1]
    assert all(t.is_meta for s in stats for t in ranks.fields(s).values())
    assert normaliser.log.is_meta
    for name, e in ranks.CONTEXT.items():
        w = context_weights(e, meta, None)
        assert w.per_token.is_meta, name
        assert w.per_token.shape == meta.log_pi.shape
    assert whole_sequences(meta).log_pi.shape == (1, 1024 * 7)


def on_meta(batch):
    to = lambda x: x.to("meta")  # noqa: E731
    rest = {"advantage": to(batch.advantage), "group": to(batch.group), "turn": to(batch.layout.turn)}
    return Batch.padded(to(batch.log_pi), to(batch.log_mu), to(batch.layout.mask), **rest)


@pytest.mark.parametrize("world", [1, 2, 3, 7, 8, 40, 300])
@pytest.mark.parametrize("how", ["even", "one has all", "falling", "ties", "few", "nothing"])
def test_the_largest_ratios_of_any_number_of_ranks_are_found(world, how):
    """Without processes: what each rank would put into the sum, added up here."""
    g = torch.Generator().manual_seed(world)
    lists = torch.randn(world, TOP, generator=g, dtype=torch.float64)
    if how == "one has all":
        lists[world // 2] += 10
    elif how == "falling":  # the shares are at their largest where every rank shows a little less than the last
        lists = torch.arange(0, -world, -1.0, dtype=torch.float64)[:, None] / world - torch.arange(TOP) // 64
    elif how == "ties":
        lists = lists.round()
    elif how == "few":
        lists[torch.rand(lists.shape, generator=g) < 0.999] = -torch.inf
    elif how == "nothing":
        lists.fill_(-torch.inf)
    lists = lists.sort(-1, descending=True).values
    stats = [RatioStats(**{**vars(RatioStats.empty(SEQUENCE)), "top": row}) for row in lists]
    parts = [merge._Stats(s, world, rank) for rank, s in enumerate(stats)]
    maxima = [torch.stack(each).amax(0) for each in zip(*(p.maxima() for p in parts), strict=True)]
    sums = [torch.stack(each).sum(0) for each in zip(*(p.sums(maxima) for p in parts), strict=True)]
    assert sums[-1].numel() <= 7 * TOP
    assert merge._shares(maxima[-1], lists[0]).sum() <= sums[-1].numel()
    for part in (parts[0], parts[-1]):
        assert torch.equal(part.merged(maxima, sums).top, lists.flatten().topk(TOP).values)


@every_world
@pytest.mark.parametrize("name", ranks.CONTEXT)
@pytest.mark.parametrize("where", ["slice", "strided"])
def test_slices_of_sequences_weigh_as_the_whole(world, name, where):
    e, batch = ranks.CONTEXT[name], ranks.whole(0.3)
    w = e(batch)
    kept = bounded = 0
    for rank in ranks.results(world):
        index, per_token, num_kept, num_bounded, seen = rank["in_context"][name, where]
        torch.testing.assert_close(per_token, w.per_token[:, index], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(rank["in_context"][name, where, "packed"], per_token, rtol=1e-5, atol=1e-7)
        kept, bounded = kept + num_kept, bounded + num_bounded
        # Lengths and one sum for each statistic, and a maximum for TRM's worst token; nothing for tokens alone.
        words = {"naive": [], "token_tis": [], "trm": [2 * 8, 4], "k3_rs * seq_mis": [3 * 8]}.get(name, [2 * 8])
        assert [size for _, size in seen] == [ranks.ROWS * word for word in words]
    ranks_that_count = world if w.unit == "sequence" else 1
    assert (kept, bounded) == (ranks_that_count * w.num_kept, ranks_that_count * w.num_bounded)


@every_world
def test_slices_normalise_per_token_over_the_group(world):
    raw, batch = geo_rs(0.9, 1.1) * ranks.token_is(), ranks.whole(0.3)
    for rank in ranks.results(world):
        index, per_token = rank["in_context"]["per token"]
        expected = ranks.self_normalised(raw)(batch).per_token[:, index]
        torch.testing.assert_close(per_token, expected, rtol=1e-5, atol=1e-7)


@every_world
def test_stats_of_slices_are_those_of_whole_sequences(world):
    width = -(-ranks.COLUMNS // world)
    batch = ranks.wider(ranks.whole(0.3), width * world)
    for r, rank in enumerate(ranks.results(world)):
        first = rank["stats_in_context"][0][2]
        for stats, advantage, seen in rank["stats_in_context"]:
            for level, s in zip(ranks.LEVELS, stats, strict=True):
                same_stats(RatioStats(level, **s), RatioStats.of(batch, level), exact=True)
            assert torch.equal(advantage, batch.advantage[r::world])
            assert seen == [("allgather_.default", ranks.ROWS * width * 4 * (3 + 2 + (seen is not first)))]
        assert stats[0]["dropped"] == 1


@pytest.mark.slow
def test_data_and_context_parallel_together():
    batch = ranks.whole(0.3)
    for rank in ranks.results(4):
        rows, columns, found = rank["in_two_groups"]
        for raw, per_token in zip((seq_is(), seq_is(), geo_rs(0.9, 1.1) * ranks.token_is()), found, strict=True):
            expected = ranks.self_normalised(raw)(batch).per_token[rows][:, columns]
            torch.testing.assert_close(per_token, expected, rtol=1e-5, atol=1e-7)


@every_world
@pytest.mark.parametrize("way", ["ddp", "fsdp2", "context"])
def test_gradients_are_those_of_one_process_on_the_whole_batch(world, way):
    one = [p.grad for p in ranks.train(ranks.Model(), torch.arange(ranks.ROWS)).parameters()]
    assert max(float(g.abs().max()) for g in one) > 1e-2
    for rank in ranks.results(world):
        for got, expected in zip(rank["gradients"][way], one, strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.fixture
def alone(tmp_path):
    """A group of one, in this very process."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/one", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_one_process_is_the_identity():
    batch = ranks.whole(0.3)
    for level in ranks.LEVELS:
        same_stats(all_reduce(RatioStats.of(batch, level)), RatioStats.of(batch, level), exact=True)
        same_stats(all_reduce(RatioStats.empty(level)), RatioStats.empty(level), exact=True)
    nothing = Batch.padded(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3))
    assert log_normaliser(weigh(SEQUENCE)(nothing)) == 0
    raw = weigh(SEQUENCE)(batch)
    torch.testing.assert_close(snis()(batch, log_normaliser(raw)).per_token, snis()(batch).per_token)
    assert all_reduce(()) == ()
    with ranks.Recorder() as recorder:
        assert all_reduce(torch.tensor(3)) == 3
    assert len(recorder.seen) == 1  # there is no maximum to take


@pytest.mark.parametrize("spread", ranks.SPREADS)
def test_normalisers_of_micro_batches_add_up(spread):
    batch = random_batch(4, spread, size=(9, 5))
    for e in (*ranks.NORMALISED, turn_tis(2.0)):
        cuts = [0, 2, 3, 9]
        parts = [ranks.rows_of(batch, torch.arange(a, b)) for a, b in pairwise(cuts)]
        one, two, three = (Normaliser.of(e(part)) for part in parts)
        for total in ((one + two) + three, (three + one) + two):
            torch.testing.assert_close(total.log.float(), e(batch).log_normaliser(), rtol=1e-6, atol=1e-6)


def test_a_normaliser_of_nothing_changes_nothing():
    nothing = Batch.padded(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3))
    some = Batch.padded(torch.full((2, 3), -900.0), torch.full((2, 3), -1.0), torch.ones(2, 3))
    zero, one = Normaliser.of(seq_is()(nothing)), Normaliser.of(seq_is()(some))
    assert zero.log == 0
    for total in (zero + one, one + zero):
        assert total.log == one.log == -2697
    assert (zero + zero).log == 0


def test_what_slices_cannot_tell_is_refused():
    batch = ranks.whole(0.3)
    for e in (prefix_tis(2.0), turn_tis(2.0)):
        with pytest.raises(ValueError, match=r"level must be TOKEN, SEQUENCE, GEOMETRIC or WORST, got (PREFIX|TURN)"):
            context_weights(e * seq_tis(2.0), batch, None)
    with pytest.raises(ValueError, match=r"per token need log_normaliser\nhint: all_reduce"):
        context_weights(ranks.self_normalised(token_tis(2.0)), batch, None)
    with pytest.raises(ValueError, match="a factor with a sign must not read the whole batch, got SEQUENCE Pareto"):
        context_weights(ranks.for_advantage(1, psis()), batch, None)
    with pytest.raises(ValueError, match=r"slices must be padded, got a packed batch\nhint: Batch.padded"):
        whole_sequences(ranks.packed(batch))
