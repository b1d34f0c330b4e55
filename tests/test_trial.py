"""The trial: the worst case against plain loops and known laws, and what is recommended and what is not."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from reweigh import SEQUENCE, Batch, RatioStats, geo_rs, naive, seq_is, seq_tis, summarise, token_is, token_tis
from reweigh.__main__ import main
from reweigh.audit import audit
from reweigh.audit.recommend import progress, recommend
from reweigh.audit.trial import Asked, Limits, Range, Trial, all_estimators, possible
from reweigh.doctor.causes import ABOUT, CAUSES
from reweigh.doctor.diagnosis import NAMED as NAMED_FROM
from reweigh.doctor.diagnosis import Diagnosis, Finding
from reweigh.named import NAMED
from reweigh.records import RecordWriter
from reweigh.scan.measure import pack, unpack
from reweigh.scan.tokens import Shared
from reweigh.stats.summary import excess, min2
from reweigh.theory.sga import Moments

TRIED = Asked.of(all_estimators()).estimators


def packed(rows, advantages=True, turns=True):
    """A batch of rows of log ratios, with masked tokens, turns and advantages."""
    flat = torch.tensor([x for row in rows for x in row], dtype=torch.float32)
    log_mu = torch.full_like(flat, -1.0)
    ends = np.cumsum([0, *(len(row) for row in rows)])
    mask = torch.tensor([not (len(row) > 2 and i == 1) for row in rows for i in range(len(row))])
    advantage = torch.tensor([1.0 if k % 2 else -1.0 for k, row in enumerate(rows) for _ in row])
    turn = torch.tensor([i // 3 for row in rows for i in range(len(row))])
    return Batch.packed(
        log_mu + flat,
        log_mu,
        torch.tensor(ends),
        mask,
        advantage=advantage if advantages else None,
        turn=turn if turns else None,
        check=False,  # ratios that no log-probs have
    )


def some_rows(seed=0, n=40, sd=0.3):
    g = np.random.default_rng(seed)
    return [(sd * g.normal(size=int(g.integers(1, 30))) - sd * sd / 2).tolist() for _ in range(n)]


def by_loop(estimator, batch):
    """Mean |w - r| by the identity and as it is, and mean (mean w)^2, sequence by sequence and token by token."""
    weights = estimator(batch).per_token.double().tolist()
    offsets, mask = batch.layout.offsets.tolist(), batch.layout.mask.tolist()
    l = batch.log_ratio.double().tolist()
    identity, plain, second, n = 0.0, 0.0, 0.0, 0
    for a, b in pairwise(offsets):
        live = [i for i in range(a, b) if mask[i]]
        if not live:
            continue
        r, w = math.exp(sum(l[i] for i in live)), [weights[i] for i in live]
        identity += 1 + sum(2 * max(x - r, 0) - x for x in w) / len(w)
        plain += sum(abs(x - r) for x in w) / len(w)
        second += (sum(w) / len(w)) ** 2
        n += 1
    return max(0.0, identity / n), plain / n, second / n


def limits(estimator, batch, refusal=""):
    trial = Trial.of(estimator, Shared.of(batch))
    return Limits.of(trial.limits, trial.range, False, refusal)


@pytest.mark.parametrize("name", TRIED)
def test_worst_case_against_a_plain_loop(name):
    batch = packed(some_rows())
    found, high = limits(TRIED[name], batch), Range.of(TRIED[name]).high
    identity, plain, second = by_loop(TRIED[name], batch)
    assert found.bias.value == pytest.approx(identity if math.isfinite(high) else plain, rel=2e-5, abs=2e-6)
    assert found.second.value == pytest.approx(second, rel=2e-5)
    assert found.bias.low <= found.bias.value <= found.bias.high
    assert found.error(16).value == pytest.approx(math.sqrt(found.bias.value**2 + found.second.value / 16))


@pytest.mark.parametrize("name", TRIED)
def test_a_weight_is_never_outside_the_range_that_the_worst_case_counts_on(name):
    range_ = Range.of(TRIED[name])
    batch = packed(some_rows(seed=1, n=200, sd=1.0))
    weights = TRIED[name](batch).per_token[batch.layout.mask]
    assert weights.max() <= range_.high * (1 + 1e-6)
    assert weights.min() >= range_.low * (1 - 1e-6)
    if range_.below_ratio:
        ratio = seq_is()(batch).per_token[batch.layout.mask]
        assert (weights <= ratio * (1 + 1e-5)).all()


def test_where_the_mean_ratio_is_one_the_identity_is_the_mean_distance():
    rows = [[math.log(0.5)], [math.log(1.5)], [math.log(0.25)], [math.log(1.75)]] * 8
    batch = packed(rows)
    for estimator in (naive(), seq_tis(1.2), geo_rs(0.4, 1.6), token_tis(1.2)):
        identity, plain, _ = by_loop(estimator, batch)
        assert identity == pytest.approx(plain, rel=1e-6)
        assert limits(estimator, batch).bias.value == pytest.approx(plain, rel=1e-5)


def test_it_is_what_the_bounds_of_the_core_say():
    batch = packed(some_rows(n=5000), advantages=False, turns=False)
    stats = RatioStats.of(batch, SEQUENCE)
    tis, lost, left = limits(seq_tis(2.0), batch), excess(stats, 2.0), min2(stats, 2.0)
    assert tis.bias.value == pytest.approx(lost.value, abs=1e-6)
    assert (tis.bias.low, tis.bias.high) == pytest.approx((lost.low, lost.high), abs=1e-2)
    assert tis.second.value == pytest.approx(left.value, rel=1e-6)
    assert limits(naive(), batch).bias.value == pytest.approx(2 * summarise(stats).value("tv"), rel=1e-6)


@pytest.mark.slow
def test_the_interval_covers_the_truth_of_a_known_law():
    """log r normal with variance 1: E min(r, 2), and TV, in closed form."""
    phi = lambda x: 0.5 * math.erfc(-x / math.sqrt(2))  # noqa: E731
    lost = 1 - (phi(math.log(2) - 0.5) + 2 * (1 - phi(math.log(2) + 0.5)))
    truth = {"tis": lost, "naive": 2 * (2 * phi(0.5) - 1)}
    g, missed, draws = np.random.default_rng(0), {"tis": 0, "naive": 0}, 300
    for _ in range(draws):
        batch = packed([[x] for x in g.normal(-0.5, 1.0, 64)], advantages=False, turns=False)
        for name, estimator in (("tis", seq_tis(2.0)), ("naive", naive())):
            bias = limits(estimator, batch).bias
            missed[name] += not bias.low <= truth[name] <= bias.high
    assert max(missed.values()) <= 0.05 * draws, missed


def test_two_parts_are_the_whole_and_travel_as_bytes():
    rows = some_rows(n=50)
    whole = {name: Trial.of(one, Shared.of(packed(rows))) for name, one in TRIED.items()}
    a, b = packed(rows[:20]), packed(rows[20:])
    b = replace(b, group=torch.arange(20, 50))
    a = replace(a, group=torch.arange(20))
    for name, one in TRIED.items():
        both = unpack(pack(Trial.of(one, Shared.of(a)), (Trial, Range)), (Trial, Range)) + Trial.of(one, Shared.of(b))
        assert both.limits.sum(0).tolist() == pytest.approx(whole[name].limits.sum(0).tolist(), rel=1e-7)
        assert (both.range, both.caps) == (whole[name].range, whole[name].caps)


@pytest.mark.parametrize("name", TRIED)
def test_ratios_that_no_float_holds_give_no_nan_and_no_warning(name):
    batch = packed([[800.0], [-800.0, 3.0, 2.0], [0.0] * 5, [400.0, -900.0, 3.0], [90.0] * 7])
    found = limits(TRIED[name], batch, "the tail is heavy")
    for number in (found.bias, found.second, found.error(8)):
        assert number.value is None or math.isfinite(number.value), number
        assert number.sample is None or not math.isnan(number.sample)
    if math.isinf(Range.of(TRIED[name]).high) and name != "seq_is":
        assert found.bias.refused == "its weights have no upper bound, and the tail is heavy"


def test_the_sequence_ratio_is_unbiased_unless_the_mean_ratio_is_wrong():
    batch = packed(some_rows())
    assert limits(seq_is(), batch, "heavy").bias.value == 0.0
    trial = Trial.of(seq_is(), Shared.of(batch))
    assert Limits.of(trial.limits, trial.range, True, "").bias.refused.startswith("the mean ratio is not 1")


def test_an_error_needs_a_batch():
    with pytest.raises(ValueError, match="n must be >= 1, got 0"):
        limits(naive(), packed(some_rows())).error(0)


def test_only_what_the_batch_has_columns_for_is_possible():
    bare = packed(some_rows(), advantages=False, turns=False)
    assert "turn_tis(2)" not in possible(TRIED, bare)
    assert "opsm(0.05)" not in possible(TRIED, bare)
    assert set(possible(TRIED, packed(some_rows()))) == set(TRIED)


# What to use.


def write(path, sd=0.02, shift=0.0, n=300, length=40, seed=0, **columns):
    g = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        noise = sd * g.normal(size=length) - sd * sd / 2 + shift
        log_mu = -1.5 - g.gamma(0.5, 2.0, length) - abs(noise)
        row = {"sequence_id": str(i), "prompt_id": str(i), "log_mu": log_mu, "log_pi": log_mu + noise}
        row |= {key: make(i) for key, make in columns.items()}
        rows.append({k: np.float32(v) if k.startswith("log") else v for k, v in row.items()})
    with RecordWriter(path) as writer:
        writer.write(rows)
    return str(path)


def diagnosed(found, cause, confidence=0.9):
    verdict = cause if confidence >= NAMED_FROM else "not_decided"
    return replace(found, diagnosis=Diagnosis(verdict, (Finding(cause, confidence, None, ()),)))


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    return audit(write(tmp_path_factory.mktemp("trial") / "healthy.parquet", sd=0.03), estimators=TRIED)


@pytest.fixture(scope="module")
def rough(tmp_path_factory):
    """A gap that matters, and that sequence ratios can correct."""
    return audit(write(tmp_path_factory.mktemp("trial") / "rough.parquet", sd=0.09, length=120))


def test_what_was_tried_is_ranked_beside_the_one_advice(healthy):
    found = recommend(healthy, Asked.of(all_estimators()))
    assert found.use == healthy.verdict.use == "seq_tis(2)"
    assert found.reason == f"{healthy.verdict.reason}; {healthy.verdict.hint}"
    fit = [x for x in found.ranked if not x.why_not]
    assert all(fit[0].error.high <= x.error.high for x in fit)
    best = next(x for x in fit if x.name == found.best)
    assert all(best.error.value <= x.error.value for x in fit)
    assert found.refused["turn_tis(2)"] == "needs turns, which no record has"
    assert found.refused["opsm(0.05)"] == "needs advantage, which no record has"
    assert "looks at a whole batch" in found.refused["snis"]
    by_name = {x.name: x for x in found.ranked}
    assert by_name["seq_is"].why_not.startswith("its weights have no upper bound")
    assert found.progress.startswith("not ranked: needs the gradient of each response")


def test_error_grows_as_the_batch_shrinks(healthy):
    small, big = recommend(healthy, n=8), recommend(healthy, n=8192)
    errors = lambda found: {x.name: x.error.value for x in found.ranked}  # noqa: E731
    assert all(errors(small)[name] > error for name, error in errors(big).items() if error > 0)
    with pytest.raises(ValueError, match="recommend: n must be >= 1, got 0"):
        recommend(healthy, n=0)


def test_wrong_log_probs_are_a_cause_to_fix_first(tmp_path):
    found = recommend(audit(write(tmp_path / "shifted.parquet", shift=0.05)))
    assert (found.use, found.best) == (None, None)
    assert "must be 1" in found.reason
    assert "fix that first, no estimator mends it" in found.reason
    assert "the mean ratio is not 1" in found.refused["seq_tis(2)"]
    assert str(found).startswith("none: the mean token ratio is")


@pytest.mark.parametrize("cause", CAUSES)
def test_a_cause_that_no_weight_mends_comes_first(rough, cause):
    found = diagnosed(rough, cause)
    assert (found.recommendation.use is not None) == ABOUT[cause].correctable
    if not ABOUT[cause].correctable:
        assert "fix that first, no estimator mends it" in found.recommendation.reason
        assert ABOUT[cause].title in found.headline.sentence
    assert diagnosed(rough, cause, confidence=0.3).recommendation.use  # a suspicion blocks nothing


def test_a_large_gap_is_to_be_reduced_and_what_is_used_until_then_follows_its_cause(tmp_path):
    large = audit(write(tmp_path / "large.parquet", sd=0.2, length=200))
    assert (large.verdict.level, large.verdict.action) == ("fail", "reduce")
    assert large.recommendation.use == "token_tis(2)"
    assert diagnosed(large, "quantised_rollout").recommendation.use == "token_tis(2)"
    assert diagnosed(large, "stale_weights").recommendation.use == "seq_tis(2)"
    assert "reduce it first: allow fewer steps of lag" in diagnosed(large, "stale_weights").verdict.hint
    assert diagnosed(large, "shift").recommendation.use is None


def test_of_estimators_that_all_miss_more_the_cap_that_moves_least_is_the_best(tmp_path):
    path = write(tmp_path / "long.parquet", sd=0.06, length=9000, n=40)
    tried = {"naive": naive(), "token_tis(2)": token_tis(2.0), "token_tis(1.1)": token_tis(1.1), "seq": seq_tis(2.0)}
    found = recommend(audit(path, estimators=tried))
    assert (found.use, found.best) == ("token_tis(2)", "token_tis(2)")
    alone = recommend(audit(path, estimators={"naive": naive(), "seq": seq_tis(2.0)}))
    assert (alone.use, alone.best) == ("token_tis(2)", None)


def test_few_responses_are_judged_all_the_same(tmp_path):
    found = audit(write(tmp_path / "few.parquet", n=4))
    assert (found.verdict.level, found.verdict.action) == ("ok", "small")


def test_the_command_prints_the_trial_and_its_json(tmp_path, capsys):
    path = write(tmp_path / "a.parquet", sd=0.03, advantage=lambda i: float(i % 2) - 0.5)
    asked = "seq_tis(2), naive, snis, turn_tis(2), opsm(0.05), geo_rs(0.999,1.001)"
    assert main(["audit", path, "--estimators", asked, "--batch", "64"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert max(map(len, out.splitlines())) <= 100
    for text in (
        "a guard is enough: seq_tis(2) (mean weight 1.0",
        "at N = 64 responses a step",
        "and sign of the advantage",
        "A < 0",
        "refused: snis: looks at a whole batch",
        "refused: turn_tis(2): needs turns, which no record has",
        "guaranteed progress: not ranked",
    ):
        assert text in out, text
    assert main(["audit", path, "--estimators", asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    trial = found["recommendation"]
    assert trial["use"] == "seq_tis(2)"
    assert [x["name"] for x in found["estimators"]] == ["seq_tis(2)", "naive", "opsm(0.05)", "geo_rs(0.999, 1.001)"]
    assert {x["name"] for x in trial["refused"]} == {"snis", "turn_tis(2)"}
    assert trial["ranked"][0]["worst_error"]["value"] > 0


def test_without_the_option_nothing_is_added(tmp_path, capsys):
    assert main(["audit", write(tmp_path / "a.parquet"), "--json"]) == 0
    assert "recommendation" not in json.loads(capsys.readouterr().out)


# Guaranteed progress.


def test_progress_is_the_lemmas_on_a_law_that_is_known():
    """One token of three, each with its gradient: every moment is a sum of three terms."""
    mu, pi = np.array([0.5, 0.3, 0.2]), np.array([0.3, 0.3, 0.4])
    f = np.array([[1.0, 0.0], [0.5, 1.0], [-0.2, 2.0]])
    tokens = np.random.default_rng(0).choice(3, size=20_000, p=mu)
    log_mu, log_pi = (torch.tensor(np.log(p)[tokens], dtype=torch.float32) for p in (mu, pi))
    n = len(tokens)
    batch = Batch.packed(log_pi, log_mu, torch.arange(n + 1), torch.ones(n, dtype=torch.bool))
    tried = {"naive": naive(), "seq_is": seq_is(), "seq_tis(1)": seq_tis(1.0), "geo_rs": geo_rs(0.9, 1.1)}
    weights = {
        "naive": np.ones(3),
        "seq_is": pi / mu,
        "seq_tis(1)": np.minimum(pi / mu, 1),
        "geo_rs": np.array([0.0, 1.0, 0.0]),
    }
    ranked = progress(batch, tried, torch.tensor(f[tokens], dtype=torch.float32), n=16)
    exact = {}
    for name, w in weights.items():
        mean = (mu * w) @ f
        variance = float((mu * w**2) @ (f**2).sum(1) - mean @ mean)
        exact[name] = Moments(pi @ f, mean, max(0.0, variance)).efficiency(16)
    for one in ranked:
        assert one.gamma.value == pytest.approx(exact[one.name], abs=0.02)
        assert one.gamma.low - 0.01 <= exact[one.name] <= one.gamma.high + 0.01
    assert [x.gamma.value for x in ranked] == sorted((x.gamma.value for x in ranked), reverse=True)
    assert ranked[-1].name == min(exact, key=exact.get)


def test_progress_is_scale_free_and_refuses_noise_and_tails():
    batch = packed(some_rows(n=100, sd=0.05), advantages=False, turns=False)
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(*batch.layout.mask.shape, 4, generator=g)
    signal = noise * 0.1 + 1
    [a] = progress(batch, {"token_is": token_is()}, signal, n=8)
    [b] = progress(batch, {"token_is": token_is()}, 100 * signal, n=8)
    assert a.gamma.value == pytest.approx(b.gamma.value, rel=1e-4)
    many = [progress(batch, {"naive": naive()}, torch.randn(*noise.shape, generator=g), n=8)[0] for _ in range(20)]
    assert any("cannot be told from noise" in x.gamma.refused for x in many)
    wild = packed(some_rows(n=100, sd=3.0), advantages=False, turns=False)
    ones = torch.ones(*wild.layout.mask.shape, 2)
    refused = progress(wild, {"naive": naive(), "seq_tis": seq_tis(2.0)}, ones, n=8)
    assert all(x.gamma.value is None and x.gamma.refused for x in refused)


def test_progress_refuses_another_shape_and_no_batch():
    batch = packed(some_rows())
    with pytest.raises(ValueError, match=r"progress: gradients must be \[\d+, 'd'\], got \[3\]"):
        progress(batch, {"naive": naive()}, torch.ones(3), n=8)
    with pytest.raises(ValueError, match="progress: n must be >= 1, got 0"):
        progress(batch, {"naive": naive()}, torch.ones(*batch.layout.mask.shape, 2), n=0)


def test_all_named_estimators_are_tried_or_refused():
    asked = Asked.of(all_estimators())
    assert len(asked.estimators) + len(asked.refused) >= len(NAMED)
