"""Batches and layouts: what is stored, what is refused and in which words."""

import subprocess
import sys

import pytest
import torch
from batches import packed, random_batch, tight

from reweigh import SEQUENCE, TOKEN, Batch, Candidates, RatioStats, geo_mis, geo_rs, seq_tis


def small(**kwargs):
    return Batch.padded(
        torch.full((2, 3), -1.0), torch.full((2, 3), -1.5), torch.tensor([[1, 1, 1], [1, 0, 0]]), **kwargs
    )


def test_log_ratio_by_hand():
    assert small().log_ratio.tolist() == [[0.5, 0.5, 0.5], [0.5, 0.0, 0.0]]


def test_half_precision_is_raised_before_the_subtraction():
    pi, mu = torch.tensor([[-1.0]]), torch.tensor([[-1.0078125]])  # neighbours in bfloat16
    batch = Batch.padded(pi.bfloat16(), mu.bfloat16(), torch.ones(1, 1))
    assert batch.log_ratio.dtype == torch.float32
    assert batch.log_ratio.item() == 0.0078125


HALF, SINGLE, DOUBLE = torch.bfloat16, torch.float32, torch.float64


@pytest.mark.parametrize(
    ("pi", "mu", "expected"),
    [(HALF, SINGLE, SINGLE), (torch.float16, torch.float16, SINGLE), (SINGLE, DOUBLE, DOUBLE)],
)
def test_precision_of_the_ratio(pi, mu, expected):
    assert (
        Batch.padded(torch.zeros(1, 1, dtype=pi), torch.zeros(1, 1, dtype=mu), torch.ones(1, 1)).log_ratio.dtype
        == expected
    )


def test_gradients_stop_at_the_ratio():
    log_pi = torch.full((1, 2), -1.0, requires_grad=True)
    batch = Batch.padded(log_pi, log_pi - 1, torch.ones(1, 2))
    assert not batch.log_ratio.requires_grad
    assert batch.log_pi is log_pi


def test_a_bad_token_leaves_the_mask_and_is_counted():
    log_mu = torch.tensor([[-1.0, torch.nan, -torch.inf, -1.0]])
    batch = Batch.padded(torch.full((1, 4), -1.0), log_mu, torch.tensor([[1, 1, 1, 0]]))
    assert batch.layout.mask.tolist() == [[True, False, False, False]]
    assert batch.dropped is not None
    assert batch.dropped.tolist() == [[False, True, True, False]]
    assert batch.log_ratio.tolist() == [[0.0, 0.0, 0.0, 0.0]]


def test_garbage_off_the_mask_is_no_bad_token():
    batch = random_batch(0)
    assert batch.dropped is None or not batch.dropped.any()
    assert torch.isnan(batch.log_pi).any()
    assert batch.check() is batch


@pytest.mark.parametrize("advantage", [torch.tensor([1.0, -2.0]), torch.tensor([[1.0], [-2.0]])])
def test_an_advantage_a_sequence_is_spread(advantage):
    batch = small(advantage=advantage)
    assert batch.advantage is not None
    assert batch.advantage.tolist() == [[1.0] * 3, [-2.0] * 3]
    flat = Batch.packed(torch.zeros(3), torch.zeros(3), torch.tensor([0, 1, 3]), advantage=advantage)
    assert flat.advantage is not None
    assert flat.advantage.tolist() == [1.0, -2.0, -2.0]


def test_layouts_by_hand():
    mask = torch.tensor([[1, 1, 0], [0, 0, 0], [0, 1, 1]])
    x = torch.tensor([[1.0, 2.0, 99.0], [99.0, 99.0, 99.0], [99.0, -3.0, 4.0]])
    batch = Batch.padded(torch.zeros(3, 3), torch.zeros(3, 3), mask)
    for layout, shape in ((batch.layout, (3, 3)), (packed(batch).layout, (9,))):
        live, flat = layout.mask, x.view(shape)
        assert layout.num_seqs == 3
        assert layout.lengths.tolist() == [2, 0, 2]
        assert layout.sum(flat).tolist() == [3.0, 0.0, 1.0]
        assert layout.max(flat).tolist() == [2.0, -torch.inf, 4.0]
        assert layout.cumsum(flat)[live].tolist() == [1.0, 3.0, -3.0, 1.0]
        assert layout.spread(torch.tensor([5.0, 6.0, 7.0]))[live].tolist() == [5.0, 5.0, 7.0, 7.0]


def test_packed_sequences_of_no_tokens():
    """Two empty ones at the start, one in the middle, two at the end."""
    batch = Batch.packed(torch.full((3,), -1.0), torch.full((3,), -2.0), torch.tensor([0, 0, 0, 2, 2, 3, 3, 3])).check()
    assert batch.layout.lengths.tolist() == [0, 0, 2, 0, 1, 0, 0]
    assert batch.layout.sum(batch.log_ratio).tolist() == [0.0, 0.0, 2.0, 0.0, 1.0, 0.0, 0.0]
    assert batch.layout.cumsum(batch.log_ratio).tolist() == [1.0, 2.0, 1.0]


def test_no_sequences_and_no_slots():
    assert Batch.from_lists([], []).layout.num_seqs == 0
    wide = Batch.padded(torch.zeros(3, 0), torch.zeros(3, 0), torch.zeros(3, 0))
    assert wide.layout.lengths.tolist() == [0, 0, 0]
    assert wide.layout.max(wide.log_ratio).tolist() == [-torch.inf] * 3


def test_a_running_sum_does_not_remember_other_sequences():
    """In float32 a neighbour of 1e8 nats would leave nothing of a tenth."""
    log_pi = torch.tensor([-1e8, -0.1, -0.1])
    batch = Batch.packed(log_pi, torch.zeros(3), torch.tensor([0, 1, 3]))
    assert batch.layout.cumsum(batch.log_ratio)[1:].tolist() == pytest.approx([-0.1, -0.2], rel=1e-6)


def test_lists_are_the_live_tokens():
    batch = random_batch(3)
    assert torch.equal(tight(batch).log_ratio, batch.log_ratio[batch.layout.mask])
    assert torch.equal(tight(batch).layout.lengths, batch.layout.lengths)


def test_a_small_positive_log_prob_is_rounding():
    """A float32 log-softmax can give 1e-6 for a certain token; the check must pass it."""
    assert Batch.padded(torch.full((1, 1), 1e-6), torch.full((1, 1), -1e-6), torch.ones(1, 1)).check()


ones, zeros = torch.ones, torch.zeros
SHAPES = [
    (lambda: Batch.padded(zeros(4), zeros(4), ones(4)), r"Batch\.padded: log_pi must be \[S, T\].*\(4,\)"),
    (
        lambda: Batch.padded(zeros(2, 3), zeros(2, 4), ones(2, 3)),
        r"log_mu and log_pi .* \(2, 4\) and \(2, 3\)(.|\n)*hint",
    ),
    (lambda: Batch.padded(zeros(2, 3), zeros(2, 3), ones(2, 2)), r"mask and log_pi .* \(2, 2\) and \(2, 3\)"),
    (lambda: small(turn=torch.zeros(2, 2, dtype=torch.long)), r"turn and log_pi"),
    (
        lambda: small(advantage=zeros(3)),
        r"advantage must have one value a token \(2, 3\) or one a sequence \(2,\).*\(3,\)",
    ),
    (lambda: small(group=torch.zeros(3, dtype=torch.long)), r"group must be integers, one a sequence \(2,\).*\(3,\)"),
    (lambda: small(group=zeros(2)), r"group must be integers.*float32"),
    (lambda: Batch.packed(zeros(2, 2), zeros(2, 2), torch.tensor([0, 4])), r"Batch\.packed: log_pi must be \[N\]"),
    (lambda: Batch.packed(zeros(4), zeros(4), torch.tensor([0.0, 4.0])), r"cu_seqlens must be integers.*float32"),
    (lambda: Batch.packed(zeros(4), zeros(4), torch.tensor(4)), r"cu_seqlens must be integers \[S \+ 1\]"),
    (lambda: Batch.packed(zeros(4), zeros(3), torch.tensor([0, 4])), r"log_mu and log_pi .* \(3,\) and \(4,\)"),
    (lambda: Batch.from_lists([zeros(2)], [zeros(2), zeros(1)]), r"log_mu has 2 sequences, log_pi has 1"),
    (
        lambda: Batch.from_lists([zeros(2), zeros(3)], [zeros(2), zeros(1)]),
        r"sequence 1: log_mu has shape \(1,\), log_pi \(3,\)",
    ),
]


@pytest.mark.parametrize(("build", "text"), SHAPES)
def test_misaligned_shapes_are_refused(build, text):
    with pytest.raises(ValueError, match=text):
        build()


def value(x, where="log_pi"):
    tensors = {"log_pi": torch.full((2, 3), -1.0), "log_mu": torch.full((2, 3), -1.0)}
    tensors[where][1, 2] = x
    return Batch.padded(**tensors, mask=torch.ones(2, 3))


def offsets(*cu_seqlens):
    return Batch.packed(zeros(4), zeros(4), torch.tensor(cu_seqlens), check=False)


VALUES = [
    (lambda: value(torch.nan), r"log_pi is NaN on 1 of 6 tokens in the mask, first log_pi\[1, 2\] = nan\nhint: "),
    (lambda: value(-torch.inf, "log_mu"), r"log_mu is infinite on 1 of 6 tokens.*log_mu\[1, 2\] = -inf\nhint: .*top-p"),
    (lambda: value(0.5), r"log_pi is positive on 1 of 6 tokens.*\[1, 2\] = 0\.5\nhint: .*logits"),
    (lambda: Batch.padded(zeros(2, 3), zeros(2, 3), zeros(2, 3)), r"the mask is empty: 0 of 6 tokens(.|\n)*hint: "),
    (
        lambda: offsets(0, 3, 2, 4),
        r"cu_seqlens must not decrease, got 3 then 2 at index 2",
    ),
    (lambda: offsets(0, 3), r"cu_seqlens must run from 0 .*\(4\), got 0 to 3"),
    (lambda: offsets(1, 4), r"got 1 to 4"),
]


@pytest.mark.parametrize(("build", "text"), VALUES)
def test_impossible_values_are_refused_by_check(build, text):
    batch = build()
    with pytest.raises(ValueError, match=text):
        batch.check()


LOG_P = torch.full((2, 3), -1.0)
ONE = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (
            lambda: Batch.padded(LOG_P.exp(), LOG_P.exp(), ONE),
            r"Batch\.padded: log_pi looks like probabilities: 100% .*\nhint: take their logarithm: log_pi\.log\(\)\.",
        ),
        (
            lambda: Batch.padded(LOG_P, 12 * torch.rand(2, 3) + 3, ONE),
            r"log_mu looks like no log-probs: 100% of the tokens are over 0, from .*\nhint: .*log_softmax of logits",
        ),
        (lambda: Batch.packed(-2 * LOG_P[0], LOG_P[0], torch.tensor([0, 3])), r"hint: .*is the sign turned\?"),
        (lambda: Batch.packed(LOG_P[0], LOG_P[0], torch.tensor([0, 2])), r"must run from 0 .*\(3\), got 0 to 2"),
        (lambda: Batch.packed(LOG_P[0], LOG_P[0], torch.tensor([3])), r"must run from 0 .*got 3 to 3"),
        (lambda: Batch.padded(LOG_P, LOG_P, ONE / 2), r"mask must be 0 or 1, got 0\.5\nhint: "),
        (lambda: Batch.padded(LOG_P, LOG_P, torch.where(ONE.cumsum(1) < 2, 0, -torch.inf)), r"mask must be 0 or 1"),
        (
            lambda: Batch.padded(LOG_P.long(), LOG_P, ONE),
            r"log_pi must be log-probs of a floating type, got torch\.int64\nhint: .*token ids\?",
        ),
        (lambda: Batch.from_lists([LOG_P[0].exp()], [LOG_P[0]]), r"log_pi looks like probabilities"),
        (
            lambda: Batch.from_lists([LOG_P], [LOG_P]),
            r"must be a list of 1-D tensors, got a list of torch\.Tensor .*2, 3",
        ),
        (lambda: Batch.padded(LOG_P[0], LOG_P[0], ONE[0]), r"must be \[S, T\].*\nhint: Batch\.packed"),
        (lambda: geo_rs(0.01), r"geo_rs: bounds are ratios around 1, got low=0\.01 .*\nhint: geo_rs\(0\.99, 1\.01\)"),
        (lambda: geo_mis(0.05), r"hint: geo_mis\(0\.95, 1\.05\)"),
    ],
)
def test_what_cannot_be_meant_is_refused_when_it_is_made(build, text):
    with pytest.raises(ValueError, match=text):
        build()


def test_what_may_be_is_left_to_be_counted():
    """One log-prob over 0, a NaN, bounds on one side: none of them says that something else was meant."""
    some = LOG_P.clone()
    some[0, 0], some[1, 1] = 0.004, torch.nan
    assert Batch.padded(some, LOG_P, ONE.bool()).layout.mask.sum() == 5
    assert Batch.padded(LOG_P, LOG_P, ONE.long()).layout.mask.all()
    assert Batch.padded(torch.where(ONE.cumsum(1) > 1, 7.0, LOG_P), LOG_P, ONE.cumsum(1) < 2).layout.mask.sum() == 2
    assert Batch.padded(LOG_P.exp(), LOG_P, ONE, check=False).layout.mask.all()
    for low, high in ((0.0, 1.001), (0.01, 100.0), (0.9, 1.001)):
        geo_rs(low, high)


# Run apart from the tests' own checker of types, which says no in its own words before the library can.
KINDS = r"""
import re, sys
import numpy as np, torch
from reweigh import *
from reweigh.estimators import self_normalised
x, one = torch.full((2, 3), -1.0), torch.ones(2, 3)
batch = Batch.padded(x, x, one)
cases = [
    (lambda: Batch.padded(x.numpy(), x, one), r"log_pi must be a tensor, got numpy.ndarray float32 \(2, 3\)\nhint: "),
    (lambda: Batch.padded(x, x.tolist(), one), r"log_mu must be a tensor, got a list of a list of float\nhint: .*list"),
    (lambda: Batch.padded(x, x, None), r"mask"),
    (lambda: Batch.packed(x[0], x[0], [0, 3]), r"cu_seqlens must be a tensor, got a list of int"),
    (lambda: Batch.from_lists([x[0].numpy()], [x[0]]), r"log_pi must be a list of 1-D tensors, got a list of numpy"),
    (lambda: Batch.from_lists(x, x), r"log_pi must be a list of 1-D tensors, got torch.Tensor"),
    (lambda: seq_tis(2.0)(x), r"an estimator weighs a Batch, got Tensor\nhint: "),
    (lambda: seq_tis(2.0) * "naive", r"must be an Estimator, got 'naive'\nhint: reweigh.spec.parse"),
    (lambda: seq_tis(2.0) * naive, r"hint: call it first: naive"),
    (lambda: seq_tis(2.0) * seq_tis(2.0)(batch), r"hint: multiply estimators before"),
    (lambda: self_normalised(seq_is(), by="step"), r"by must be 'batch' or 'prompt', got 'step'\nhint: "),
    (lambda: self_normalised("seq_is"), r"estimator must be an Estimator, got 'seq_is'"),
    (lambda: for_advantage(1, "seq_is"), r"for_advantage: estimator must be an Estimator"),
    (lambda: weigh("sequence"), r"level must be a Level, got 'sequence'\nhint: reweigh.SEQUENCE"),
    (lambda: weigh(SEQUENCE, 2.0), r"transform must be a Transform, got 2.0\nhint: Truncate"),
    (lambda: policy_gradient(x, one, seq_tis(2.0), 1.0), r"weights must be Weights, .*\nhint: .*estimator\(batch\)"),
    (lambda: ppo_clip(x, x, one, one, 1.0), r"ppo_clip: weights must be Weights"),
    (lambda: RatioStats.of(batch, "token"), r"level must be a Level, got 'token'\nhint: reweigh.TOKEN"),
    (lambda: RatioStats.of(x, TOKEN), r"takes a Batch, got Tensor"),
    (lambda: judge(batch), r"judge: takes RatioStats or Summaries, got Batch\nhint: "),
    (lambda: judge([RatioStats.of(batch, TOKEN)]), r"got list\nhint: judge\(\*RatioStats"),
]
weights = torch.compile(lambda a, b: seq_tis(2.0)(Batch.padded(a, b, one)).per_token, fullgraph=True, backend="eager")
weights(x.exp(), x)  # in a graph no value is looked at
for call, text in cases:
    try:
        call()
        print("no error:", text)
    except ValueError as e:
        if not re.search(text, str(e)):
            print("wanted", text, "got", e)
"""


def test_wrong_kinds_get_our_errors():
    done = subprocess.run([sys.executable, "-c", KINDS], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_batch_and_weights_are_said_in_a_line():
    batch = Batch.padded(LOG_P, LOG_P - 0.5, torch.tensor([[1, 1, 0], [1, 0, 0]]), group=torch.tensor([0, 1]))
    assert repr(batch) == "Batch(2 sequences, padded to 3; 3 tokens count; float32 on cpu; with group)"
    assert repr(seq_tis(2.0)(batch)) == "Weights(by sequence; 2 of 2 kept; mean 1.82, 1.65 to 2; 1 at a bound)"
    flat = Batch.packed(LOG_P.flatten(), LOG_P.flatten(), torch.tensor([0, 4, 6]))
    assert repr(flat) == "Batch(2 sequences, packed, 6 slots; 6 tokens count; float32 on cpu)"
    assert batch._repr_html_() == f"<code>{batch!r}</code>"
    meta = Batch.padded(LOG_P.to("meta"), LOG_P.to("meta"), ONE.to("meta"))
    assert "on meta" in repr(meta)
    assert "on meta" in repr(seq_tis(2.0)(meta))


def test_check_looks_at_the_given_mask_not_at_what_is_left_of_it():
    batch = Batch.padded(torch.full((1, 2), torch.nan), torch.zeros(1, 2), torch.ones(1, 2))
    assert not batch.layout.mask.any()
    with pytest.raises(ValueError, match="NaN on 2 of 2"):
        batch.check()


@pytest.mark.parametrize("first", range(9))
def test_a_batch_may_be_a_view_that_begins_anywhere(first):
    """Rows are read without a copy where they lie end to end, and counted eight slots at a time."""
    x, mask = -torch.rand(2 * 192 + first), torch.rand(2 * 192 + first) < 0.7
    batch = Batch.packed(x[first:], x[first:] * 2, torch.tensor([0, 192, 384]), mask[first:])
    assert batch.layout.lengths.tolist() == [int(mask[first : first + 192].sum()), int(mask[first + 192 :].sum())]
    padded = Batch.padded(x[first:].view(2, 192), (x * 2)[first:].view(2, 192), mask[first:].view(2, 192))
    for level in (TOKEN, SEQUENCE):
        a, b = RatioStats.of(batch, level), RatioStats.of(padded, level)
        assert torch.equal(a.moments, b.moments)
    loose = Batch.padded(*(t[first:].view(2, 192)[:, :150] for t in (x, x * 2, mask)))
    assert torch.equal(loose.layout.lengths, mask[first:].view(2, 192)[:, :150].sum(1))
    copy = Batch.padded(*(t[first:].view(2, 192)[:, :150].clone() for t in (x, x * 2, mask)))
    assert torch.equal(RatioStats.of(loose, TOKEN).moments, RatioStats.of(copy, TOKEN).moments)


def candidates(shape=(1, 2), k=3, complete=False, **changed):
    """k candidates a place, with half the mass, or all of it."""
    ids = torch.arange(k).expand(*shape, k)
    log_p = torch.full((*shape, k), (1.0 if complete else 0.5) / k).log()
    return Candidates(**{"ids": ids, "log_mu": log_p, "log_pi": log_p, "complete": complete, **changed})


def test_candidates_stay_with_their_tokens():
    """Through the ratio kept, the cut into parts, and both layouts."""
    log_p = torch.full((3, 2), -1.0)
    ids = torch.arange(3 * 2 * 4).view(3, 2, 4)
    given = candidates((3, 2), 4, ids=ids)
    batch = Batch.padded(log_p, log_p, torch.ones(3, 2), candidates=given)
    assert batch.with_ratio().candidates is given
    parts = [part.candidates for part in batch.parts(2)]
    assert len(parts) == 3
    assert torch.cat([part.ids for part in parts]).equal(ids)
    cu = torch.tensor([0, 2, 4, 6])
    flat = Batch.packed(log_p.flatten(), log_p.flatten(), cu, candidates=given.flat())
    assert torch.cat([part.candidates.ids for part in flat.parts(1)]).equal(ids.flatten(0, 1))
    assert batch.check() is batch
    assert repr(batch).endswith("with candidates)")
    assert repr(given) == "Candidates(4 a place at [3, 2]; the likeliest)"
    lists = Batch.from_lists(list(log_p), list(log_p), candidates=given.flat())
    assert lists.candidates.ids.shape == (6, 4)


EACH = torch.full((1, 2, 3), 0.2).log()
BAD_CANDIDATES = [
    ({"ids": torch.zeros(1, 2, 3)}, "ids must be integers"),
    ({"ids": torch.zeros(3, dtype=torch.long)}, r"must be \[S, T, k\] or \[N, k\]"),
    ({"log_mu": torch.zeros(1, 2, 2)}, r"log_mu and ids must have one shape, got \(1, 2, 2\) and \(1, 2, 3\)"),
    ({"log_mu": torch.zeros(1, 2, 3, dtype=torch.long)}, "log_mu must be log-probs of a floating type"),
]


@pytest.mark.parametrize(("changed", "text"), BAD_CANDIDATES)
def test_what_cannot_be_candidates_is_refused(changed, text):
    with pytest.raises(ValueError, match=text):
        candidates(**changed)


def with_one(value, at=(0, 1, 2)):
    out = EACH.clone()
    out[at] = value
    return out


WRONG_CANDIDATES = [
    ({"log_mu": with_one(torch.nan)}, r"log_mu is no log-prob at 1 places, first \[0, 1, 2\]"),
    ({"log_pi": with_one(0.5)}, r"log_pi is no log-prob at 1 places, first \[0, 1, 2\]"),
    ({"log_pi": with_one(-0.1)}, r"the probabilities of log_pi add up to more than 1 at 1 places, first \[0, 1\]"),
    ({"log_pi": with_one(-torch.inf)}, r"log_pi gives a candidate no probability at 1 places, first \[0, 1, 2\]"),
    ({"ids": torch.tensor([[[0, 1, 2], [0, 1, 0]]])}, r"a token stands twice at 1 places, first \[0, 1\]"),
    ({"complete": True, "log_mu": EACH, "log_pi": EACH}, r"add up to less than 1, and complete=True says"),
]


@pytest.mark.parametrize(("changed", "text"), WRONG_CANDIDATES)
def test_check_names_what_is_wrong_with_candidates(changed, text):
    log_p = torch.full((1, 2), -1.0)
    batch = Batch.padded(log_p, log_p, torch.ones(1, 2), candidates=candidates(**changed))
    with pytest.raises(ValueError, match=text):
        batch.check()
    nowhere = Batch.padded(log_p, log_p, torch.tensor([[1, 0]]), candidates=candidates(**changed))
    if "first [0, 1" in text.replace("\\", ""):  # a place that does not count may hold anything
        nowhere.check()


def test_ids_of_minus_1_are_no_candidates():
    ids = torch.tensor([[[4, -1, -1], [-1, -1, -1]]])
    given = candidates(ids=ids, log_mu=torch.where(ids < 0, torch.nan, EACH), log_pi=torch.where(ids < 0, 7.0, EACH))
    log_p = torch.full((1, 2), -1.0)
    Batch.padded(log_p, log_p, torch.ones(1, 2), candidates=given).check()
    assert given.there.tolist() == [[[True, False, False], [False, False, False]]]


def test_candidates_belong_to_the_places_of_the_batch():
    log_p = torch.full((1, 3), -1.0)
    with pytest.raises(ValueError, match=r"at the places of log_pi, \(1, 3, 'k'\), got \(1, 2, 3\)"):
        Batch.padded(log_p, log_p, torch.ones(1, 3), candidates=candidates())
