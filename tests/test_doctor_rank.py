"""From what the tests say to a ranked list: false discovery, confidence, which cause comes first, when none does."""

import math
from itertools import permutations

import numpy as np
import pytest
from doctor_records import check, diagnosed, noisy, world
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from reweigh.doctor.causes import ABOUT, CAUSES
from reweigh.doctor.diagnosis import (
    NAMED,
    CannotTell,
    Evidence,
    Finding,
    Spread,
    Suspicion,
    adjusted,
    confidence,
    diagnose,
)
from reweigh.doctor.families import FAMILIES

FLOOR = ("quantised_rollout", "numerics", "none")
NAMES = [cause for cause in CAUSES if cause not in FLOOR]


def suspicion(cause, p=1e-9, effect=9.0, share=0.5, proven=False):
    return Suspicion(cause, p, effect, share, (Evidence("what", 1.0, "a number"),), proven)


def ranked(*said, weighed=None, **options):
    found = diagnose(said, weighed or {}, tokens=10_000, **options)
    check(found)
    return found


def verdict(*said, **options):
    return ranked(*said, **options).verdict


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_adjusted_p_values_are_benjamini_and_hochberg_s(p):
    assert adjusted(p) == pytest.approx(false_discovery_control(p), abs=1e-12)


def test_of_no_test_there_is_nothing_to_adjust():
    assert adjusted([]) == []


@given(q=st.floats(0, 1), effect=st.floats(-5, 100), more=st.floats(0, 100), surer=st.floats(0, 1))
def test_confidence_grows_with_the_effect_and_falls_with_the_rate(q, effect, more, surer):
    one = confidence(q, effect)
    assert 0 <= one <= 1
    assert confidence(q, effect + more) >= one
    assert confidence(q * surer, effect) >= one


def test_confidence_of_a_test_is_half_where_the_effect_is_the_least_that_matters():
    assert confidence(0.0, 1.0) == 0.5
    assert confidence(0.05, 1e9) == 0
    assert confidence(0.0, 0.0) == confidence(0.0, math.nan) == confidence(0.0, -1.0) == confidence(0.0, math.inf) == 0


def test_where_nothing_is_sure_nothing_is_decided_and_the_likeliest_are_candidates():
    said = [suspicion(cause) for cause in NAMES]
    found = ranked(*said, weighed={"dropout": 0.3, "stale_kv": 0.5, "shift": 0.2, "packing_leak": 0.16})
    assert found.verdict == "not_decided"
    assert not found.decided
    assert [x.id for x in found.causes] == ["stale_kv", "dropout", "shift"]
    assert verdict() == "not_decided"


def test_a_confidence_of_eight_in_ten_is_named_and_less_is_not():
    said = [suspicion("dropout"), suspicion("stale_kv")]
    assert verdict(*said, weighed={"dropout": NAMED, "stale_kv": 0.1}) == "dropout"
    assert verdict(*said, weighed={"dropout": NAMED - 0.001, "stale_kv": 0.1}) == "not_decided"


@pytest.mark.parametrize("cause", [c for c in NAMES if c != "moe_routing"])
def test_a_test_that_speaks_loudly_where_all_others_are_silent_is_heard(cause):
    assert verdict(suspicion(cause, effect=9.0)) == cause
    assert verdict(suspicion(cause, effect=2.0)) == "not_decided"
    assert verdict(suspicion(cause, p=0.2, effect=1e6)) == "not_decided"
    other = next(name for name in NAMES if name != cause)
    assert verdict(suspicion(cause), suspicion(other, effect=1.0)) == "not_decided"


def test_a_tail_that_many_faults_make_is_no_loud_voice():
    assert verdict(suspicion("moe_routing", effect=1e6)) == "not_decided"


def test_a_cause_of_hardly_any_of_the_gap_is_not_named_unless_it_is_proven():
    assert verdict(suspicion("position_encoding", share=0.001), weighed={"position_encoding": 0.99}) == "not_decided"
    assert verdict(suspicion("shift", share=0.001, proven=True)) == "shift"
    assert verdict(suspicion("shift", share=0.001, effect=0.5, proven=True)) == "not_decided"


def test_what_is_ruled_out_is_not_named_whatever_speaks_for_it():
    for cause in NAMES:
        found = ranked(suspicion(cause), weighed={cause: 0.99}, ruled_out={cause: "it cannot be"})
        assert found.verdict == "not_decided"
        assert found.ruled_out == {cause: "it cannot be"}
    assert verdict(suspicion("shift", proven=True), ruled_out={"shift": "too few"}) == "shift"


def test_what_is_proven_comes_before_what_explains_more():
    said = [
        suspicion("raw_logprobs", share=0.9, effect=1e3),
        suspicion("quantised_rollout", share=1.0, effect=1e3),
        suspicion("shift", share=0.3, effect=3.0, proven=True),
    ]
    for order in permutations(said):
        found = ranked(*order, weighed={"raw_logprobs": 0.95, "quantised_rollout": 0.5})
        assert [x.id for x in found.causes][:2] == ["shift", "raw_logprobs"]


def test_of_numbers_in_another_unit_nothing_else_is_said():
    said = [
        suspicion("wrong_units", proven=True),
        suspicion("raw_logprobs"),
        suspicion("placeholder_logprob", proven=True),
    ]
    found = ranked(*said, weighed={"raw_logprobs": 0.99})
    assert [x.id for x in found.causes] == ["wrong_units"]


def test_a_column_of_its_own_comes_before_what_it_is_taken_for():
    for cause, known in ABOUT.items():
        for other in known.looks_like:
            if cause in FLOOR or other in FLOOR:
                continue
            said = [suspicion(other, share=0.9), suspicion(cause, share=0.5)]
            assert [x.id for x in ranked(*said, weighed={cause: 0.9, other: 0.99}).causes][:2] == [cause, other]


def test_a_cause_is_listed_once_with_the_best_that_is_said_for_it():
    weak, strong = suspicion("stale_kv", effect=1.2), suspicion("stale_kv", effect=8.0)
    for said in ([weak, strong], [strong, weak]):
        found = ranked(*said, weighed={"stale_kv": 0.97})
        assert [x.id for x in found.causes].count("stale_kv") == 1
        assert found.causes[0].confidence == pytest.approx(0.97)


def test_only_size_is_heard_where_nothing_else_speaks():
    floor = suspicion("numerics", effect=1.0, share=1.0)
    assert verdict(floor, by_size={"numerics": 0.9}) == "numerics"
    assert verdict(floor, suspicion("dropout", effect=1.0), by_size={"numerics": 0.9}) == "not_decided"
    assert verdict(floor, suspicion("stale_kv"), weighed={"stale_kv": 0.6}, by_size={"numerics": 0.9}) == "stale_kv"


def test_what_the_shape_points_to_is_the_first_candidate_and_not_named():
    spread = Spread(8, 48, 0.97, 40.0, {"prompt": ("p3", "p7")})
    first = suspicion("engine_decode", p=1.0, effect=0.0, share=0.97)
    found = ranked(
        suspicion("template_prefix", effect=1.0), to_test_first=first, spread=spread, weighed={"template_prefix": 0.4}
    )
    assert found.verdict == "not_decided"
    assert found.causes[0].id == "engine_decode"
    assert found.to_dict()["few_responses"]["shared"] == {"prompt": ["p3", "p7"]}


def test_a_gap_that_is_too_small_calls_for_nothing():
    found = ranked(suspicion("stale_weights"), small=True)
    assert found.verdict == "stale_weights"
    assert found.benign
    assert not ranked(suspicion("stale_weights")).benign


def test_what_is_named_is_not_also_undecided():
    doubt = CannotTell("stale_kv", "no versions", ("versions",))
    assert ranked(suspicion("stale_kv"), doubt).cannot_tell == ()
    left = ranked(suspicion("stale_kv", p=0.9), doubt).cannot_tell
    assert [x.id for x in left] == ["stale_kv"]
    assert left[0].experiment == ABOUT["stale_kv"].experiment


def test_a_share_or_an_effect_that_is_not_known_does_not_upset_the_order():
    """NaN compares with nothing: a sort with it among its keys puts others anywhere."""
    named = [suspicion("dropout", share=0.7), suspicion("stale_kv", share=0.4), suspicion("packing_leak", share=0.2)]
    odd = [suspicion("trainer_temperature", share=math.nan, effect=math.nan)]
    weighed = {"dropout": 0.9, "stale_kv": 0.9, "packing_leak": 0.9}
    for order in permutations([*named, *odd]):
        found = ranked(*order, weighed=weighed)
        assert [x.id for x in found.causes if x.confidence >= NAMED] == ["dropout", "stale_kv", "packing_leak"]


def test_a_hundred_honest_p_values_name_nothing():
    """Uniform p-values with huge effects: at a rate of 5% a set that names anything is one in twenty at most."""
    g = np.random.default_rng(0)
    named = 0
    for _ in range(400):
        said = [suspicion(cause, p=float(p)) for cause, p in zip(NAMES, g.uniform(size=len(NAMES)), strict=True)]
        named += ranked(*said).decided
    assert named <= 0.05 * 400


@pytest.mark.parametrize("cause", [c for c in CAUSES if c != "none"])
def test_each_cause_can_be_named_and_has_a_family_and_advice(cause):
    assert verdict(suspicion(cause), weighed={cause: 0.95}) == cause
    assert [f.name for f in FAMILIES if cause in f.causes]
    found: Finding = ranked(suspicion(cause), weighed={cause: 0.95}).causes[0]
    assert found.rules_out == ABOUT[cause].rules_out
    assert dict(found.fix) == dict(ABOUT[cause].fix)


def test_every_fix_is_in_the_words_that_were_asked_for():
    for cause in NAMES:
        for one in ranked(suspicion(cause), programs=("vllm",)).causes:
            assert set(one.fix) <= {"general", "vllm"}


def test_families_say_nothing_outside_their_causes():
    from doctor_records import every_column, visited

    from reweigh.doctor.family import Case

    case = Case(visited(every_column()).sums, {})
    for family in FAMILIES:
        assert {x.id for x in family.examine(case)} <= set(family.causes)


def test_honest_rounding_names_nothing():
    """Over 20 draws of a quarter of a percent of rounding; a false discovery now and then is what a rate allows."""
    found = [diagnosed(world(seed, prompts=40, pi=noisy(seed + 99, 0.01))) for seed in range(20)]
    wrong = [x.verdict for x in found if x.decided and not x.benign]
    assert len(wrong) <= 1, wrong
