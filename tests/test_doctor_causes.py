"""The table of causes: whole, with real columns and programs, every text once, and mistakes are refused by name."""

import ast
from pathlib import Path
from typing import get_args

import pytest

from reweigh.doctor import CAUSES, CauseId
from reweigh.doctor.causes import ABOUT, BENIGN, PROGRAMS, fix_for, read_causes
from reweigh.records.schema import BY_NAME

PACKAGE = Path(__file__).parents[1] / "reweigh"
TOML = (PACKAGE / "doctor" / "causes.toml").read_text(encoding="utf-8")


def test_names_and_tables_agree_both_ways():
    assert tuple(ABOUT) == CAUSES == get_args(CauseId)
    assert [known.id for known in ABOUT.values()] == list(CAUSES)
    at = TOML.index("[dropout]")
    with pytest.raises(ValueError, match=r"causes\.toml: dropout: has no table\nhint: every name of CauseId"):
        read_causes(TOML[:at] + TOML[TOML.index("[moe_routing]") :])
    with pytest.raises(ValueError, match=r"causes\.toml: sunspots: no such cause\nhint: add the name to CauseId"):
        read_causes(TOML + '\n[sunspots]\ntitle = "the sun"\n')
    shift = TOML[TOML.index("[shift]") : TOML.index("[wrong_token]")]
    with pytest.raises(ValueError, match=r"causes\.toml: wrong_token: must stand in the order of CauseId"):
        read_causes(TOML.replace(shift, "") + shift)


@pytest.mark.parametrize("cause", CAUSES)
def test_a_cause_is_told_whole(cause):
    a = ABOUT[cause]
    assert len(a.title) < 60
    assert not a.title.endswith(".")
    assert a.meaning.endswith(".")
    assert a.meaning.count(". ") == 0, "one sentence"
    assert set(a.needs) <= set(BY_NAME), "columns of the record"
    assert a.seen_in
    assert bool(a.unseen) == (cause not in BENIGN)
    assert a.experiment or cause == "none"
    assert "{" not in a.experiment + a.unseen
    assert cause not in a.looks_like


def test_a_text_stands_once():
    """In the table, but for what one option is called in two engines; and not again in the code that reads it."""
    texts = [x for a in ABOUT.values() for x in (a.title, a.meaning, a.looked_at, a.rules_out, a.fix["general"])]
    assert len(set(texts)) == len(texts) == 5 * len(CAUSES)
    telling = {x for x in texts if len(x) > 30}
    for path in PACKAGE.rglob("*.py"):
        words = {n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)}
        assert not telling & {w for w in words if isinstance(w, str)}, path


def test_a_shared_text_is_put_in():
    assert ABOUT["numerics"].experiment == f"{ABOUT['dropout'].experiment} Run a few steps at learning rate 0: " + (
        "what still grows does not come from training."
    )


def test_needed_columns_are_optional_ones():
    """A column that every file has turns no guess into a proof."""
    assert not [c for a in ABOUT.values() for c in a.needs if BY_NAME[c].required]


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


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('title = "rounding"\n', "", "numerics.title: is missing"),
        ('title = "rounding"', 'title = ""', "numerics.title: must be a text without spaces to spare, got ''"),
        ('title = "rounding"', 'title = " rounding"', "numerics.title: must be a text without spaces to spare"),
        ('title = "rounding"', "title = 3", "numerics.title: must be a text without spaces to spare, got 3"),
        ('title = "rounding"', 'titel = "rounding"', "numerics.titel: no such key; there are title, meaning"),
        (
            'cast_lm_head_to_fp32=True"',
            'cast_lm_head_to_fp32=True"\ntrll = "x"',
            "numerics.fix.trll: must be one of gen",
        ),
        ('general = "Mostly', 'vllm = "Mostly', "no TOML: Cannot overwrite a value"),
        ('[none.fix]\ngeneral = "N', '[none.fix]\nvllm = "N', "none.fix.general: is missing"),
        ("correctable = true", 'correctable = "yes"', "stale_weights.correctable: must be true or false, got 'yes'"),
        ('order = "last"', 'order = "first"', "moe_routing.order: must be one of own evidence, by evidence, last, ben"),
        ('"{rescore_twice}"', '"{rescore}"', "dropout.experiment: no text 'rescore' under [shared], which has resc"),
        ('experiment = "{restart} Or', 'experiments = "{restart} Or', "weight_sync.experiments: no such key"),
        ('unseen = "{proper}"\n', "", "template_prefix.unseen: is missing"),
        ("{ position_encoding =", "{ positions =", "repetition_penalty.looks_like.positions: must be one of wrong_u"),
        ('seen_in = ["identity", "density"]', 'seen_in = "identity"', "raw_logprobs.seen_in: must be a list of texts"),
        ('[shared]\nrescore_twice = "', "[shared]\nrescore_twice = 1 # ", "shared.rescore_twice: must be a text"),
        ("[none.fix]\ngeneral = ", "fix = ", 'none.fix: must be a table, got "Nothing to do.'),
    ],
)
def test_a_mistake_is_told_by_cause_and_key(old, new, said):
    assert old in TOML
    with pytest.raises(ValueError, match=r"^causes\.toml: ") as e:
        read_causes(TOML.replace(old, new, 1))
    assert str(e.value).startswith(f"causes.toml: {said}")


def test_the_prefix_cache_of_vllm_is_switched_off_by_name():
    """Leaving `--enable-prefix-caching` out changes nothing: it is on by default."""
    assert "--no-enable-prefix-caching" in fix_for("stale_kv", ["vllm"])["vllm"]
