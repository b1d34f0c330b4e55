"""Advice: every cause has it, it names real columns and programs, and it can be asked for by program."""

import pytest

from reweigh.doctor.advice import ADVICE, PROGRAMS, Advice, fix_for
from reweigh.doctor.diagnosis import BENIGN, CAUSES
from reweigh.records.schema import BY_NAME


def test_every_cause_has_advice_in_the_order_of_the_tests():
    assert tuple(ADVICE) == CAUSES
    assert len({a.title for a in ADVICE.values()}) == len(CAUSES)


@pytest.mark.parametrize("cause", CAUSES)
def test_advice_is_whole(cause):
    a = ADVICE[cause]
    assert len(a.title) < 60
    assert not a.title.endswith(".")
    for text in (a.meaning, a.rules_out, *a.fix.values()):
        assert text.strip() == text
        assert "  " not in text
    assert a.meaning.endswith(".")
    assert a.meaning.count(". ") == 0, "one sentence"
    assert a.experiment or cause == "none"
    assert set(a.needs) <= set(BY_NAME), "columns of the record"


def test_needed_columns_are_optional_ones():
    """A column that every file has turns no guess into a proof."""
    assert not [c for a in ADVICE.values() for c in a.needs if BY_NAME[c].required]


def test_every_trainer_and_engine_is_told_something_of_the_commonest_fault():
    assert tuple(fix_for("raw_logprobs")) == PROGRAMS


def test_fix_by_program():
    assert tuple(fix_for("dropout", ("verl", "slime"))) == ("general", "verl", "slime")
    assert tuple(fix_for("dropout", ())) == ("general",)
    assert tuple(fix_for("vocab_padding", ("vllm",))) == ("general",), "nothing is known, nothing is made up"
    assert fix_for("numerics")["general"].startswith("Mostly nothing")
    assert {"numerics", "none"} == BENIGN


def test_unknown_programs_are_refused():
    with pytest.raises(ValueError, match=r"(?s)fix_for: no program 'vLLM'\nhint: use one of general, vllm"):
        fix_for("dropout", ("vLLM",))
    with pytest.raises(ValueError, match="Advice: fix must have"):
        Advice("t", "m", "r", {"vllm": "x"})
    with pytest.raises(ValueError, match="Advice: fix must have"):
        Advice("t", "m", "r", {"general": "x", "megatron": "y"})
