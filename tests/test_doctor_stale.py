"""A lag that every token has: nothing in the records proves what it does, so it is what to test first, and no fault
that older weights could imitate is named.
"""

import math

import numpy as np
import pytest
from doctor_records import (
    check,
    diagnosed,
    diagnosis,
    every_column,
    log_softmax,
    noisy,
    temperature,
    top_p,
    visited,
    world,
)

from reweigh.doctor.diagnosis import Suspicion, diagnose
from reweigh.doctor.exclude import always_behind
from reweigh.doctor.family import Case
from reweigh.records import RunInfo
from reweigh.stats.verdict import Cause, Gap, Option, advise, options


def lagging(lag, seed=0, size=0.4, **of):
    """A run of five steps whose sampler is so many updates behind at each; other weights make other logits."""
    columns = {
        "step": lambda i, n, g: 20 + i % 5,
        "trainer_version": lambda i, n, g: 20 + i % 5,
        "versions": lambda i, n, g: np.full(n, 20 + i % 5 - lag),
    }
    return world(seed, **{"prompts": 40, "length": 80, "pi": noisy(seed + 1, size), **columns, **of})


@pytest.mark.parametrize("lag", [1, 3, 12])
@pytest.mark.parametrize("seed", [11, 12])
def test_one_lag_is_what_to_test_first(lag, seed):
    found = diagnosed(lagging(lag, seed))
    check(found)
    assert found.verdict == "not_decided"
    first = found.causes[0]
    assert first.id == "stale_weights"
    assert {e.name: e.value for e in first.evidence}["behind"] == min(lag, 8)
    assert ("8 or more" in str(found.cannot_tell)) == (lag > 8)
    assert "one lag" in {x.id: x.reason for x in found.cannot_tell}["stale_weights"]
    assert found.cause is not None
    assert (found.cause.stale, found.cause.sure) == (True, False)


@pytest.mark.parametrize("rows", [lagging(0, 13), world(13, prompts=40, length=80, pi=noisy(14, 0.4))])
def test_without_a_lag_there_is_nothing_to_say_of_it(rows):
    found = diagnosed(rows)
    assert "behind" not in {e.name for one in found.causes for e in one.evidence}
    assert found.cause is None or not found.cause.stale


def test_rounding_stays_rounding_whatever_the_lag_is():
    found = diagnosed(lagging(1, 15, size=0.02), RunInfo(dtype_mu="bfloat16"))
    assert found.verdict == "numerics"
    assert "stale_weights" not in {one.id for one in found.causes}


FAULTS = {
    "truncated_sampling": {"sample": top_p(0.8), "mu": top_p(0.8), "pi": log_softmax},
    "raw_logprobs": {"sample": temperature(0.6), "mu": log_softmax, "pi": temperature(0.6)},
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_the_mean_ratio_proves_is_named_beside_a_lag(name):
    found = diagnosed(lagging(2, 16, **FAULTS[name]))
    assert found.verdict == name


def test_what_old_weights_imitate_is_not_named():
    """A gap that follows the place: with a lag of its own to look at it is named, with one lag alone it is not."""

    def farther(logits):
        g = np.random.default_rng(3)
        grown = np.linspace(0.0, 1.2, len(logits))[:, None]
        return log_softmax(logits + grown * 0.5 * g.normal(size=logits.shape))

    fresh, old = (diagnosed(lagging(lag, 17, length=300, pi=farther)) for lag in (0, 4))
    assert fresh.verdict == "position_encoding"
    assert old.verdict == "not_decided"
    assert old.causes[0].id == "stale_weights"
    short = diagnosed(lagging(0, 17, length=24, prompts=160, pi=farther))
    assert short.verdict != "position_encoding"  # of 24 tokens positions are not told from what is done there


@pytest.mark.parametrize(("lags", "behind"), [((2,), 2), ((1, 5), 1), ((0, 4), None), ((0,), None), ((), None)])
def test_the_newest_token_says_whether_all_are_behind(lags, behind):
    def versions(i, n, g):
        return np.full(n, 20 + i % 5 - lags[i % len(lags)])

    rows = lagging(0, 18, versions=versions) if lags else world(18, prompts=10)
    visit = visited(rows)
    assert always_behind(Case(visit.sums, {})) == behind


def test_a_lag_that_varies_is_tested_as_before():
    found = diagnosed(every_column(19))
    assert "behind" not in {e.name for one in found.causes for e in one.evidence}


def gap(kept, token=0.96, kl=0.2):
    sequence = Option("seq_tis(2)", kept, kept / 2, 1 - kept)
    return Gap(kl, 0.4, 0.1, "", sequence, Option("token_tis(2)", token, 0.8, 0.2))


@pytest.mark.parametrize("kept", [0.05, 0.4, 0.69, 0.75, 0.95])
def test_stale_weights_take_sequence_ratios_however_much_they_cut(kept):
    stale = Cause("the sampler is some updates behind", "", "policy", sure=False, stale=True)
    told = advise(gap(kept), cause=stale)
    assert told.use == "seq_tis(2)"
    assert told.action == advise(gap(kept)).action  # how bad it is does not depend on why
    assert "states" in told.deciding or kept > 0.8
    assert advise(gap(kept)).use == ("seq_tis(2)" if kept > 0.8 else "token_tis(2)")
    assert options(gap(kept), stale=True)[1].name == "token_tis(2)"


def test_audit_plan_and_doctor_take_the_same(tmp_path):
    from reweigh import audit as audits
    from reweigh import doctor as doctors
    from reweigh.plan import plan_records
    from reweigh.scan import look, scan

    rows = lagging(6, 20, size=1.0)
    found = diagnosis(tmp_path, rows)
    path = str(tmp_path / "records.parquet")
    assert found.advice is not None
    assert found.advice.use == "seq_tis(2)"
    assert found.advice.choice is not None
    assert found.advice.choice.mean_weight < 0.7
    known = look(path)
    both = scan(known, [audits.question(), doctors.question(known)])
    from dataclasses import replace

    audit = replace(audits.answer(both), diagnosis=doctors.answer(both))
    assert audit.verdict.use == "seq_tis(2)"
    assert plan_records(path).verdict.use == "seq_tis(2)"
    assert math.isclose(audit.verdict.choice.mean_weight, found.advice.choice.mean_weight, rel_tol=1e-9)


def test_a_candidate_explains_something():
    """Of what is not decided nothing is shown that has no part in the gap, however little there is to say of others."""
    nothing = Suspicion("truncated_sampling", 1e-9, 3.0, 0.0, ())
    some = Suspicion("dropout", 1e-9, 3.0, 0.5, ())
    weighed = {"truncated_sampling": 0.1, "dropout": 0.1}
    assert diagnose([nothing], weighed).causes == ()
    assert [one.id for one in diagnose([nothing, some], weighed).causes] == ["dropout"]
