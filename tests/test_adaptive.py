"""Caps that the data choose: definitions, given caps, samples against sums, laws, one graph, no waiting, all ranks."""

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from batches import blind, packed, random_batch, rows_of
from test_compile import NoSync, flatten, tensors

from reweigh import (
    SEQUENCE,
    TOKEN,
    Batch,
    RatioStats,
    all_reduce,
    check_estimator,
    prefix_tis,
    self_normalised,
    seq_tis,
    token_mis,
    token_tis,
    weigh,
)
from reweigh import caps as cap_rules
from reweigh.caps import Balance, CapRule, Cubic, Post, PostBatch, SqrtN, Tradeoff
from reweigh.stats.sums import CAPS
from reweigh.theory.laws import FiniteRatio, LogNormalRatio
from reweigh.transforms import TruncateAt


def rules_of(a, stats=None):
    return (
        *(a.Balance(stats=stats), a.Balance(n=64, stats=stats), a.Post(stats=stats), a.PostBatch(stats=stats)),
        *(a.Cubic(stats=stats), a.Cubic(n=100.0, stats=stats), a.SqrtN(stats=stats), a.Tradeoff(stats=stats)),
        a.Tradeoff(2.0, n=7, stats=stats),
    )


RULES = rules_of(cap_rules)
rules = pytest.mark.parametrize("rule", RULES, ids=repr)
CAPPED = (seq_tis, token_tis, prefix_tis)


def sample(size, s=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    return s * torch.randn(size, generator=g, dtype=torch.float64) - s * s / 2


def every(l):
    return torch.ones_like(l, dtype=torch.bool)


def batch_of(l):
    l = l[:, None]
    return Batch.padded(l - 1000, torch.full_like(l, -1000), torch.ones(l.shape))


def cap(rule, l):
    return float(rule.log_cap(l, every(l)).exp())


def tradeoff_by_loops(l, noise, n):
    r = np.exp(l.numpy())
    values = []
    for c in CAPS[8:]:
        w = np.minimum(r, c)
        values.append(max(0.0, 1 - w.mean()) ** 2 + noise * np.mean(w * w) / np.mean(w) ** 2 / n)
    return CAPS[8 + int(np.argmin(values))]


@pytest.mark.parametrize("s", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("n", [None, 30, 5000.0])
def test_rules_are_their_definitions(s, n):
    l = sample(200, s)
    chi2, units = max(0.0, float((2 * l).exp().mean()) - 1), 200 if n is None else n
    assert units * np.maximum(np.exp(l.numpy()) - cap(Balance(n=n), l), 0).mean() == pytest.approx(cap(Balance(n=n), l))
    assert cap(Post(n=n), l) == pytest.approx(Post().of_chi2(chi2), rel=1e-12)
    assert cap(PostBatch(n=n), l) == pytest.approx(PostBatch(n=units).of_chi2(chi2), rel=1e-12)
    assert cap(Cubic(n=n), l) == pytest.approx(Cubic(n=units).of_chi2(chi2), rel=1e-12)
    assert cap(SqrtN(n=n), l) == pytest.approx(math.sqrt(units), rel=1e-12)
    for noise in (0.5, 16.0):
        assert cap(Tradeoff(noise, n=n), l) == pytest.approx(tradeoff_by_loops(l, noise, units), rel=1e-12)


def test_the_tradeoff_finds_caps_between_1_and_the_top():
    """Else the comparison above would be of two constants."""
    caps = {cap(Tradeoff(noise, n=n), sample(200, 2.5)) for noise in (0.5, 16.0) for n in (30, 5000.0)}
    assert len(caps) > 2


@pytest.mark.parametrize("n", [4, 64, 1024])
def test_the_tradeoff_of_a_law_is_that_of_a_sample_which_is_the_law(n):
    l = sample(400, 1.5)
    law = FiniteRatio((l - l.exp().mean().log()).numpy(), np.full(400, 1 / 400))
    own = l - l.exp().mean().log()  # a mean ratio of 1, as a law has it
    for noise in (2.0, 16.0):
        assert Tradeoff(noise, n=n).of_law(law) == pytest.approx(cap(Tradeoff(noise, n=n), own), rel=1e-12)


def test_the_tradeoff_of_a_law_grows_with_the_batch_and_the_gap():
    assert Tradeoff(n=16).of_law(LogNormalRatio(4.0)) < Tradeoff(n=4096).of_law(LogNormalRatio(4.0))
    assert Tradeoff(n=1024).of_law(LogNormalRatio(0.01)) > 1
    with pytest.raises(ValueError, match=r"^Tradeoff: n must be >= 1, got 0.5$"):
        Tradeoff(n=0.5)
    with pytest.raises(ValueError, match=r"^Tradeoff: noise must be > 0, got -1.0$"):
        Tradeoff(-1.0, n=64)


@rules
@pytest.mark.parametrize(("size", "s"), [(5, 1.0), (200, 2.0), (3000, 1.0)])
def test_stats_give_the_cap_of_the_sample(rule, size, s):
    l = sample(size, s)
    half = size // 2
    stats = RatioStats.of(batch_of(l[:half]), SEQUENCE) + RatioStats.of(batch_of(l[half:]), SEQUENCE)
    running = replace(rule, stats=stats)
    # Past 256 units the balance cap of stats lies in a range of the grid.
    rel = 0.07 if isinstance(rule, Balance) and size > 256 else 1e-9
    other = torch.tensor([5.0])
    assert float(running.log_cap(other, every(other)).exp()) == pytest.approx(cap(rule, l), rel=rel)


@rules
def test_a_rule_reads_units_only_in_any_order_past_any_float_and_before_there_are_any(rule):
    l = sample(30)
    valid = torch.arange(30) % 3 > 0
    garbage = torch.where(valid, l, torch.nan)
    alone = float(rule.log_cap(l[valid], every(l[valid])))
    assert float(rule.log_cap(garbage, valid)) == pytest.approx(alone, rel=1e-12)
    assert float(rule.log_cap(garbage.flip(0).view(5, 6), valid.flip(0).view(5, 6))) == pytest.approx(alone, rel=1e-12)
    assert math.isfinite(float(rule.log_cap(torch.tensor([800.0, -800.0, 0.1]), torch.ones(3, dtype=torch.bool))))
    assert math.isfinite(float(rule.log_cap(torch.tensor([-800.0]), torch.ones(1, dtype=torch.bool))))
    assert float(rule.log_cap(l, torch.zeros(30, dtype=torch.bool))) == math.inf
    assert float(rule.log_cap(l[:0], valid[:0])) == math.inf
    nothing = replace(rule, stats=RatioStats.empty(SEQUENCE))
    assert float(nothing.log_cap(l, valid)) == math.inf


@rules
@pytest.mark.parametrize("make", CAPPED)
def test_the_laws_hold(rule, make):
    for seed in range(2):
        check_estimator(make(rule), seed)
        check_estimator(make(rule) * token_mis(), seed)
    check_estimator(self_normalised(make(rule)))


@rules
@pytest.mark.parametrize("make", CAPPED)
def test_a_rule_is_the_number_it_comes_to(rule, make):
    for seed in range(3):
        batch = random_batch(seed, 1.0, size=(40, 9))
        level = make(2.0).factors[0].level
        c = float(rule.log_cap(level.fold(batch.log_ratio, batch.layout), level.valid(batch.layout)).exp())
        ours, fixed = make(rule)(batch), make(c)(batch)
        torch.testing.assert_close(ours.per_token, fixed.per_token, rtol=1e-6, atol=0)
        assert ours.bounded.equal(fixed.bounded)
        assert int(ours.num_bounded) == int((ours.keep & (ours.log_w < weigh(level)(batch).log_w)).sum())
        torch.testing.assert_close(make(rule)(packed(batch)).per_token.view(40, 9), ours.per_token)


def test_something_is_bounded():
    batch = random_batch(0, 1.0, size=(40, 9))
    assert int(seq_tis(Balance())(batch).num_bounded) > 0
    assert int(seq_tis(Tradeoff())(batch).num_bounded) > 0


def test_the_tradeoff_leaves_equal_policies_alone():
    batch = random_batch(5, spread=0.0)
    w = seq_tis(Tradeoff())(batch)
    assert (w.per_token[batch.layout.mask] == 1).all()
    assert not w.bounded.any()


def test_numbers_are_as_they_were():
    assert repr(seq_tis(2.0).factors[0]) == "SEQUENCE Clip(low=0.0, high=2.0)"
    assert not seq_tis(2.0).reads_batch
    assert repr(seq_tis(Balance(n=64)).factors[0]) == "SEQUENCE TruncateAt(rule=Balance(n=64))"
    assert seq_tis(Tradeoff()).reads_batch
    assert seq_tis(Balance()) == seq_tis(Balance()) != seq_tis(Balance(n=2))


def worker(rank, world, out):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{out}/meet", rank=rank, world_size=world)
    try:
        part = rows_of(random_batch(11, 1.0, size=(13, 9)), torch.arange(*((0, 4), (4, 13))[rank]))
        stats = all_reduce(RatioStats.of(part, SEQUENCE))
        torch.save([seq_tis(replace(r, stats=stats))(part).per_token for r in RULES], f"{out}/{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_ranks_agree_on_the_cap_of_all(tmp_path):
    mp.spawn(worker, args=(2, str(tmp_path)), nprocs=2)
    parts = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True)
    whole = random_batch(11, 1.0, size=(13, 9))
    for rule, part in zip(RULES, parts, strict=True):
        torch.testing.assert_close(torch.cat(part), seq_tis(rule)(whole).per_token, rtol=2e-5, atol=1e-7)


def test_anyones_rule_will_do():
    check_estimator(weigh(SEQUENCE, TruncateAt(Balance(n=3))))
    assert pickle.loads(pickle.dumps(Tradeoff(3.0))) == Tradeoff(3.0)
    with pytest.raises(TypeError, match="abstract"):
        CapRule()


REFUSED = [
    (lambda: Balance(n=0), r"^Balance: n must be >= 1, got 0$"),
    (lambda: Tradeoff(n=math.nan), r"^Tradeoff: n must be >= 1, got nan$"),
    (lambda: Tradeoff(0.0), r"^Tradeoff: noise must be > 0, got 0.0$"),
    (
        lambda: seq_tis(Balance(stats=RatioStats.empty(TOKEN))),
        r"^Balance: the cap is of sequence ratios, and the stats are token stats\nhint: RatioStats.of",
    ),
]


@pytest.mark.parametrize(("call", "text"), REFUSED)
def test_what_means_nothing_is_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call()


# Last, for it swaps the modules that the tests above have imported.
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["padded", "packed"])
@pytest.mark.parametrize("place", range(len(RULES)), ids=lambda i: repr(RULES[i]))
def test_one_graph_and_no_waiting(unchecked, place, kind, monkeypatch):
    """Of the batch, and of running stats that the step itself adds to."""
    rw = unchecked
    rule = rules_of(rw.caps)[place]
    x = tensors() if kind == "padded" else flatten(tensors())
    running = rw.RatioStats.of(rw.Batch.padded(**tensors(7)), rw.SEQUENCE)

    def step(**x):
        batch = getattr(rw.Batch, kind)(**x)
        own, out = rules_of(rw.caps, running + rw.RatioStats.of(batch, rw.SEQUENCE))[place], []
        for estimator in (rw.seq_tis(rule), rw.token_tis(rule), rw.seq_tis(own)):
            w = estimator(batch)
            out += [w.per_token, w.num_bounded]
        return out

    torch._dynamo.reset()
    got, expected = torch.compile(step, fullgraph=True, backend="eager")(**x), step(**x)
    torch._dynamo.reset()
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=1e-6)
    blind(monkeypatch)
    with NoSync():
        step(**x)
