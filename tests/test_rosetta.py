"""Profiles, words, configurations and nearest options: what a user asks about a trainer."""

import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
import torch

import reweigh
from reweigh import (
    GEOMETRIC,
    SEQUENCE,
    TOKEN,
    Batch,
    Clip,
    Estimator,
    Reject,
    Screen,
    Truncate,
    check_estimator,
    geo_rs,
    levels,
    naive,
    opsm,
    seq_mis,
    seq_tis,
    token_is,
    token_mis,
    token_tis,
    transforms,
    weigh,
)
from reweigh.__main__ import main
from reweigh.rosetta import (
    PROFILES,
    RATIOS,
    Plan,
    RefusedError,
    Situation,
    all_words,
    code,
    example,
    formula,
    meanings,
    nearest,
    parse_pairs,
    parts,
    profile_of,
    read_config,
    run,
    translate,
)
from reweigh.rosetta.metrics import EQUALS
from reweigh.rosetta.parts import TURN_GEOMETRIC, Within, bounded_geometric
from reweigh.rosetta.plan import SWITCHES
from reweigh.rosetta.profile import FOLDER, read_profile

ROOT = Path(__file__).parents[1]
NAMES = [p.name for p in PROFILES]


def composed(framework, **options):
    return profile_of(framework).read(options).plan.estimator


# Options -> composition, from the frameworks' documentation and code.
TRANSLATIONS = [
    ("verl", {}, naive()),
    ("verl", {"rollout_is": "sequence"}, seq_tis(2.0)),
    ("verl", {"rollout_is": "token", "rollout_is_threshold": "0.5_5.0"}, token_mis(0.5, 5.0)),
    ("verl", {"rollout_rs": "seq_sum_k1", "rollout_rs_threshold": "0.5_4.0"}, weigh(SEQUENCE, Screen(0.25, 2.0))),
    ("verl", {"rollout_rs": "token_k1", "rollout_rs_threshold": 4.0}, weigh(TOKEN, Screen(0.25, 4.0))),
    ("trl", {}, seq_mis(0.0, 3.0)),
    ("trl", {"vllm_importance_sampling_correction": False}, naive()),
    ("trl", {"vllm_importance_sampling_mode": "token_truncate"}, token_tis(3.0)),
    ("ms-swift", {"rollout_importance_sampling_mode": "sequence_truncate"}, weigh(GEOMETRIC, Truncate(2.0))),
    ("slime", {}, naive()),
    ("slime", {"use_tis": True}, token_tis(2.0)),
    ("slime", {"use_tis": True, "tis_mode": "clip"}, weigh(TOKEN, Clip(0.5, 2.0))),
    ("slime", {"use_rs": True}, naive()),
    ("miles", {"use_opsm": True, "opsm_delta": 0.1}, opsm(0.1)),
    ("skyrl", {"sequence_mask_metric": "geometric"}, geo_rs(0.99, 1.01)),
    ("skyrl", {"tis_ratio_type": "sequence"}, seq_tis(5.0)),
    ("skyrl", {"token_mask_is_threshold_high": 2.0}, naive()),
    ("openrlhf", {}, naive()),
    ("openrlhf", {"is_correction_level": "seq"}, token_is() * weigh(GEOMETRIC, Screen(0.5, 5.0))),
    ("nemo-rl", {"use_importance_sampling_correction": True}, token_is()),
    ("areal", {"level": "sequence", "agg": "sum"}, weigh(GEOMETRIC) * weigh(SEQUENCE, Screen(0.0, 5.0))),
    (
        "areal",
        {"metric": "kl_k1", "lower": -1.0, "upper": 1.0},
        token_is() * weigh(TOKEN, Screen(math.exp(-1), math.e)),
    ),
    ("roll", {"is_weight": {"enabled": True, "weight_type": "segment"}}, weigh(TURN_GEOMETRIC, Truncate(1.2))),
    ("open-instruct", {"use_rho_correction": False}, naive()),
]


@pytest.mark.parametrize(("framework", "options", "expected"), TRANSLATIONS)
def test_options_are_these_compositions(framework, options, expected):
    assert composed(framework, **options) == expected


@pytest.mark.parametrize("profile", PROFILES, ids=NAMES)
def test_a_profile_is_complete(profile):
    assert profile.options
    assert profile.quirks
    assert profile.metrics
    assert profile.words
    assert all(profile.conventions.__dict__.values())
    for names in ([o.name for o in profile.options], [q.name for q in profile.quirks]):
        assert len(set(names)) == len(names)
    for word in profile.words:
        assert set(word.options or {}) <= {o.name for o in profile.options}, word.word
    profile.read({})  # defaults alone are options, too


@pytest.mark.parametrize("profile", PROFILES, ids=NAMES)
def test_defaults_given_are_defaults_not_given(profile):
    given = {"areal": {"level": "token"}}.get(profile.name, {})  # its section is null by default: nothing is corrected
    plan = profile.read(given).plan
    for option in profile.options:
        if option.former:
            continue
        try:
            assert profile.read({**given, option.name: option.default}).plan == plan, option.name
        except RefusedError as e:
            pytest.fail(f"{option.name}={option.default!r}: {e}")


@pytest.mark.parametrize("profile", PROFILES, ids=NAMES)
def test_a_wrong_choice_names_the_right_ones(profile):
    choices = {
        "verl": {"rollout_is": "x"},
        "trl": {"vllm_importance_sampling_mode": "x"},
        "slime": {"use_tis": True, "tis_mode": "x"},
        "prime-rl": {"type": "x"},
        "skyrl": {"tis_ratio_type": "x"},
        "openrlhf": {"is_correction_level": "x"},
        "nemo-rl": {"use_importance_sampling_correction": True, "truncated_importance_sampling_type": "x"},
        "areal": {"level": "x"},
        "ms-swift": {"rollout_importance_sampling_mode": "x"},
        "roll": {"is_weight": {"enabled": True, "weight_type": "x"}},
    }
    if profile.name not in choices:
        return  # open-instruct has no words to choose from
    with pytest.raises(RefusedError, match="hint: ") as e:
        profile.read(choices[profile.name])
    assert "'x'" in str(e.value)


@pytest.mark.parametrize("profile", PROFILES, ids=NAMES)
def test_a_profile_survives_a_pickle(profile):
    again = pickle.loads(pickle.dumps(profile))
    assert again == profile
    assert again is not profile
    for word in profile.words:
        if word.options is not None:
            assert again.read(word.options) == profile.read(word.options)
    tensors, given = example(), again.given({})
    reading = again.read({})
    for quirk in again.quirks:
        quirk.apply(reading.plan, Situation(given, tensors, reading))


# A mistake in a data file: what of the file is replaced by what, and what is said of it.
MISTAKES = [
    ("trl", "version =", "versoin =", "trl.toml: version: is missing\nhint: give a text"),
    ("trl", "version = ", "version = 1 # ", "trl.toml: version: must be a text, got 1"),
    ("trl", "known = [", "known = [1, ", "trl.toml: known: must be an array of texts, got 1 in it"),
    ("trl", "[conventions]", "[convention]", "trl.toml: conventions: is missing"),
    ("trl", 'k1 = "-log r (OPSM)"', "", "trl.toml: conventions.k1: is missing"),
    ("trl", 'k1 = "-log r', 'k2 = ""\nk1 = "-log r', "trl.toml: conventions.k2: is not known\nhint: did you mean k1"),
    ("trl", "[quirks]", "[quirk]", "trl.toml: quirks: is missing"),
    ("trl", "epsilon = { default", "epsilon = { defualt", "trl.toml: options.epsilon.defualt: is not known"),
    ("trl", 'default = "dapo"', 'default = "dap"', "trl.toml: options.loss_type.default: 'dap' is not of its values"),
    (
        "trl",
        'options = { loss_type = "vespo", ',
        'options = { loss_typ = "vespo", ',
        "trl.toml: words.vespo.options.loss_typ: is no option of the framework\nhint: did you mean loss_type",
    ),
    (
        "trl",
        'options = { loss_type = "vespo", ',
        'options = { loss_type = "vesp", ',
        "trl.toml: words.vespo.options.loss_type: does not take 'vesp'\nhint: did you mean vespo",
    ),
    ("trl", "empty_rows_count =", "empty_row_count =", "quirks.empty_row_count: nothing computes 'empty_row_count'"),
    ("trl", "kernel_of_bounded_ratios =", "infinity_times_zero =", "nothing names 'kernel_of_bounded_ratios'"),
    (
        "trl",
        'equal = "known_dist',
        'equal = "known_dst',
        "difference/mean.equal: nothing computes 'known_dstance'",
    ),
    ("trl", '"logged_ratio"', '"mean_weight"', "trl.toml: metrics: nothing names 'logged_ratio', which the module has"),
    ("trl", '"<bound>"', '"<bond>"', "templates[1].options: no slot '<bond>'\nhint: <low>, <high>"),
    ("trl", 'makes = "screens"', 'makes = "screen"', "templates[1].makes: must be weights or screens, got 'screen'"),
    ("verl", 'metric = "rollout_corr/kl"', 'metric = "rollout_corr/k"', "words.k1.metric: no metric 'rollout_corr/k'"),
    (
        "verl",
        "bypass_pg_is = { ",
        "bypass_pg_is = { rollout = 1, ",
        "verl.toml: presets.bypass_pg_is.rollout: is no option",
    ),
    ("verl", "section =", "section", "verl.toml: is not TOML: "),
]


@pytest.mark.parametrize(("name", "right", "wrong", "says"), MISTAKES)
def test_a_mistake_in_a_data_file_is_told_with_its_key(tmp_path, name, right, wrong, says):
    text = (FOLDER / f"{name}.toml").read_text()
    assert right in text
    (tmp_path / f"{name}.toml").write_text(text.replace(right, wrong))
    profile = profile_of(name)
    quirks, equals = own_functions(name)
    with pytest.raises(ValueError, match="hint: ") as e:
        read_profile(name, profile.compose, quirks, equals, tmp_path)
    assert says in str(e.value)
    assert str(tmp_path) in str(e.value)
    (tmp_path / f"{name}.toml").write_text(text)
    assert read_profile(name, profile.compose, quirks, equals, tmp_path) == profile


def own_functions(name):
    """Quirks and equals that only this framework has, by the names that its data file gives them."""
    data, profile = tomllib.loads((FOLDER / f"{name}.toml").read_text()), profile_of(name)
    quirks = [q.apply for q in profile.quirks if SWITCHES.get(q.name) is not q.apply]
    named = zip(data["metrics"].values(), profile.metrics, strict=True)
    equals = {entry["equal"]: m.equal for entry, m in named if "equal" in entry}
    return quirks, {k: e for k, e in equals.items() if EQUALS.get(k) is not e}


def test_every_framework_has_a_data_file_and_every_data_file_a_framework():
    assert {p.stem for p in FOLDER.glob("*.toml")} == {p.name.replace("-", "_") for p in PROFILES}


def test_what_frameworks_share_is_named_by_a_data_file():
    data = [tomllib.loads(p.read_text()) for p in FOLDER.glob("*.toml")]
    assert set(EQUALS) <= {m.get("equal") for d in data for m in d.get("metrics", {}).values()}
    assert set(SWITCHES) <= {q for d in data for q in d.get("quirks", {})}


def test_options_fall_back_on_defaults_and_know_what_was_given():
    given = profile_of("verl").given({"rollout_is": "token", "rollout_correction": {"rollout_is_threshold": None}})
    assert (given["rollout_is"], given["rollout_is_threshold"], given["clip_ratio"]) == ("token", None, 0.2)
    assert ("rollout_is_threshold" in given, "clip_ratio" in given) == (True, False)
    assert given.get("clip_ratio", 7) == 7
    with pytest.raises(KeyError):
        given["rollout_iss"]
    assert profile_of("verl").given({"rollout_correction": None}).given == {}


def test_turns_have_a_geometric_mean():
    log_pi, turn = torch.log(torch.tensor([[2.0, 8.0, 3.0]])), torch.tensor([[0, 0, 1]])
    batch = Batch.padded(log_pi, torch.zeros(1, 3), torch.ones(1, 3), turn=turn, check=False)
    torch.testing.assert_close(weigh(TURN_GEOMETRIC)(batch).per_token, torch.tensor([[4.0, 4.0, 3.0]]))


def test_the_product_decides_whether_the_geometric_mean_is_bounded():
    log_pi = torch.log(torch.tensor([[2.0, 2.0], [2.0, 0.5]]))
    batch = Batch.padded(log_pi, torch.zeros(2, 2), torch.ones(2, 2), check=False)
    level = bounded_geometric(0.5, 1.5, SEQUENCE)
    torch.testing.assert_close(weigh(level)(batch).per_unit, torch.tensor([1.5, 1.0]))


@pytest.mark.parametrize(
    "estimator", [weigh(TURN_GEOMETRIC, Truncate(1.2)), weigh(bounded_geometric(0.5, 1.5, SEQUENCE))]
)
def test_new_levels_keep_the_laws(estimator):
    check_estimator(estimator)


def test_within_keeps_its_bounds():
    x = torch.tensor([0.1, 0.2, 0.3, 0.4])
    assert Within(0.2, 0.3)(x, torch.ones(4, dtype=torch.bool))[1].tolist() == [False, True, True, False]


# Words.


def test_sequence_mask_has_seven_meanings_and_their_numbers_differ():
    found = {m.framework: m for m in meanings("sequence_mask")}
    assert set(found) == {"trl", "skyrl", "openrlhf", "areal", "ms-swift", "open-instruct", "unsloth"}
    product, geo = 1.5 * 1.2 * 0.9 * 1.1, (1.5 * 1.2 * 0.9 * 1.1) ** 0.25
    assert found["trl"].weights[0] == pytest.approx([product] * 4, abs=1e-3)
    assert found["trl"].weights[1] == (0, 0, 0)  # 1.3 * 0.8 * 4 = 4.16 > 3
    assert found["ms-swift"].weights[0] == pytest.approx(RATIOS[0])
    assert found["areal"].weights[0] == pytest.approx([geo] * 4, abs=1e-3)
    assert found["skyrl"].weights[0] == (1, 1, 1, 1)
    assert found["trl"].formula == "w = r 1{r <= 3}"


@pytest.mark.parametrize("word", list(all_words()))
def test_every_word_has_a_formula_numbers_or_a_meaning(word):
    for m in meanings(word):
        assert m.says
        assert (m.options is None) == (m.weights is None)


def test_chi2_seq_is_not_one_quantity():
    found = {m.framework: m.value for m in meanings("chi2_seq")}
    products = [math.prod(r) for r in RATIOS]
    geometric = [math.prod(r) ** (1 / len(r)) for r in RATIOS]
    assert found["verl"] == found["slime"] == pytest.approx(sum(p * p - 1 for p in products) / 3, abs=1e-3)
    assert found["ms-swift"] == pytest.approx(sum(g * g - 1 for g in geometric) / 3, abs=1e-3)


def test_an_options_name_is_a_word_too():
    (m,) = meanings("rollout_rs_threshold")
    assert m.framework == "verl"
    assert "mu/pi" in m.says


def test_an_unknown_word_names_the_nearest():
    with pytest.raises(
        ValueError, match=r"no framework's word or option 'sequnce_mask'\nhint: did you mean sequence_mask"
    ):
        meanings("sequnce_mask")


def all_readings():
    for p in PROFILES:
        for w in p.words:
            plan = None if w.options is None else p.read(w.options).plan
            # A level that is made of bounds has no name of its own, so what is shown is no code.
            if plan is not None and "geometric_bounded" not in code(plan.estimator):
                yield pytest.param(plan, id=f"{p.name}-{w.word}")


@pytest.mark.parametrize("plan", list(all_readings()))
def test_the_code_that_is_shown_makes_what_runs(plan):
    """Names of the public API, of levels, transforms and the rosetta's own parts; bounds are shown to six digits."""
    public = {name: getattr(reweigh, name) for name in reweigh.__all__}
    names = {**vars(levels), **vars(transforms), **public, **vars(parts), "math": math}
    made = eval(code(plan.estimator), names)
    batch = example().batch()
    torch.testing.assert_close(made(batch).per_token, plan.estimator(batch).per_token, rtol=1e-5, atol=1e-6)


def test_formulas():
    assert formula(naive()) == "w = 1"
    assert formula(seq_mis(0.0, 3.0)) == "w = r 1{r <= 3}"
    assert formula(weigh(TOKEN, Clip(0.5, 2.0))) == "w = min(max(r_t, 0.5), 2)"
    assert formula(opsm(0.1)) == "w = (1{mean_t k1_t <= 0.1} where A < 0)"
    assert formula(Estimator(normalise="batch")) == "w = 1 / its mean over the batch"
    assert "vespo" not in formula(composed("trl", loss_type="vespo", vllm_importance_sampling_mode="token_mask"))


# Configurations.


def test_a_nested_configuration_is_read_where_its_section_is():
    config = {
        "algorithm": {
            "adv_estimator": "grpo",
            "rollout_correction": {"rollout_is": "token", "rollout_is_threshold": 3},
        },
        "trainer": {"total_epochs": 1},
    }
    told = translate("verl", config)
    assert told.reading.plan.estimator == token_tis(3)
    assert told.unknown == ()
    assert told.ignored == 1


def test_an_option_that_is_not_known_is_named_with_what_is():
    told = translate("verl", {"rollout_is": "token", "rollout_is_treshold": 3.0})
    assert told.unknown == (("rollout_is_treshold", ("rollout_is_threshold", "rollout_rs_threshold")),)
    with pytest.raises(ValueError, match=r"verl has no option tis_clip\nhint: known are rollout_is, "):
        translate("verl", {"tis_clip": 2.0})


def test_an_option_of_a_common_name_counts_in_its_section_only():
    config = {"logging": {"level": "INFO"}, "actor": {"rejection_sampling": {"level": "token", "upper": 2.0}}}
    assert translate("areal", config).reading.plan.estimator == token_is() * weigh(TOKEN, Screen(0.0, 2.0))


def test_a_version_that_was_not_looked_at_is_said():
    assert "verl 0.5.0 has not been looked at" in translate("verl@0.5.0", {}).version
    assert translate(f"verl=={profile_of('verl').known[0]}", {}).version == ""


def test_an_unknown_framework_names_the_nearest():
    with pytest.raises(ValueError, match=r"no profile of 'verll'\nhint: did you mean verl, "):
        profile_of("verll")
    assert profile_of("NeMo_RL").name == "nemo-rl"
    assert profile_of("swift").name == "ms-swift"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.json", '{"rollout_is": "token", "rollout_is_threshold": "0.5_5.0"}'),
        ("c.yaml", "rollout_is: token\nrollout_is_threshold: 0.5_5.0\n"),
    ],
)
def test_files_of_options(tmp_path, name, text):
    pytest.importorskip("yaml")
    path = tmp_path / name
    path.write_text(text)
    assert translate("verl", read_config(str(path))).reading.plan.estimator == token_mis(0.5, 5.0)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [("c.json", "{", "cannot be read"), ("c.json", "[1]", "expected a mapping"), ("c.yaml", "a: [", "cannot be read")],
)
def test_a_file_that_is_none(tmp_path, name, text, says):
    pytest.importorskip("yaml")
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=says):
        read_config(str(path))


def test_yamls_words_for_numbers_are_numbers(tmp_path):
    pytest.importorskip("yaml")
    path = tmp_path / "c.yaml"
    path.write_text("use_opsm: true\nopsm_delta: 1e-4\n")
    assert translate("slime", read_config(str(path))).reading.plan.estimator == opsm(1e-4)


def test_pairs():
    assert parse_pairs(["--a.b=1", "c=null", "d=x"]) == {"a": {"b": 1}, "c": None, "d": "x"}
    with pytest.raises(ValueError, match=r"'a' is not an option\nhint: key=value"):
        parse_pairs(["a"])


# Nearest options.


@pytest.mark.parametrize(
    ("estimator", "target", "options"),
    [
        (
            token_tis(2.0),
            "trl",
            {"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_max": 2.0},
        ),
        (
            seq_mis(0.5, 2.0),
            "nemo-rl",
            {"truncated_importance_sampling_type": "icepop", "sequence_level_importance_ratios": True},
        ),
        (geo_rs(0.99, 1.01), "skyrl", {"sequence_mask_metric": "geometric", "geo_mask_high": 1.01}),
        (geo_rs(0.8, 1.25) * token_tis(2.0), "verl", {"rollout_is": "token", "rollout_rs": "seq_mean_k1"}),
        (naive(), "trl", {"vllm_importance_sampling_correction": False}),
    ],
)
def test_what_another_framework_has_is_found(estimator, target, options):
    found = nearest(estimator, profile_of(target))
    assert found.exact, found.differs
    assert found.options.items() >= options.items()
    assert set(found.estimator.factors) == set(estimator.factors)


def test_what_it_has_not_is_said():
    found = nearest(seq_mis(0.0, 3.0), profile_of("ms-swift"))
    assert not found.exact
    assert any("product of the sequence" in d for d in found.differs)
    found = nearest(geo_rs(0.99, 1.01) * token_tis(2.0), profile_of("trl"))
    assert found.estimator == token_tis(2.0)
    assert found.differs == ("1{0.99 <= g <= 1.01} is not expressed",)


@pytest.mark.parametrize("source", PROFILES, ids=NAMES)
def test_a_frameworks_own_words_are_found_in_it(source):
    """A template that cannot express what the framework has is a wrong template."""
    for word in source.words:
        if word.options is None:
            continue
        estimator = source.read(word.options).plan.estimator
        found = nearest(estimator, source)
        bounded = {Clip, Reject, Screen, type(None)}
        if all(type(f.transform) in bounded and f.level in (TOKEN, SEQUENCE, GEOMETRIC) for f in estimator.factors):
            assert found.exact or estimator.normalise or len(estimator.factors) > 1, (word.word, found.differs)


def test_a_plan_without_options_weighs_everything_1():
    assert run(Plan(), example()).per_token[example().mask].eq(1).all()


# Commands and the page.


def run_cli(*args):
    return subprocess.run(
        [sys.executable, "-m", "reweigh", *args],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
    )


def test_explain_lists_words(capsys):
    assert main(["explain"]) == 0
    out = capsys.readouterr().out
    assert "sequence_mask" in out
    assert "icepop" in out


def test_explain_a_word(capsys):
    assert main(["explain", "sequence_mask"]) == 0
    out = capsys.readouterr().out
    assert "w = r 1{r <= 3}" in out
    assert "weigh(SEQUENCE, Reject(0, 3))" in out
    assert main(["explain", "sequence_mask", "--format", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["meanings"]) == 7


def test_explain_a_configuration(tmp_path, capsys):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"rollout_is": "sequence", "rollout_is_treshold": 1}))
    assert main(["explain", "--from", "verl@0.7", "--config", str(path), "--to", "trl"]) == 0
    told = capsys.readouterr()
    assert "w = min(r, 2)" in told.out
    assert "trl: the same" in told.out
    assert "vllm_importance_sampling_mode='sequence_truncate'" in told.out
    assert "verl has no option rollout_is_treshold; did you mean rollout_is_threshold" in told.err
    assert "verl 0.7 has not been looked at" in told.err


def test_explain_says_what_cannot_be_expressed(capsys):
    assert main(["explain", "--from", "trl", "--to", "ms-swift"]) == 0
    out = capsys.readouterr().out
    assert "ms-swift: cannot be expressed; the nearest:" in out
    assert "differs" in out
    assert main(["explain", "--from", "trl", "--to", "ms-swift", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["to"]["exact"] is False


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["explain", "nonsense"], "no framework's word"),
        (["explain", "--to", "trl"], "--to needs options"),
        (["explain", "--from", "nope"], "no profile of"),
        (["explain", "--from", "verl", "rollout_is"], "is not an option"),
        (
            ["explain", "--from", "verl", "rollout_is=tokens"],
            "no rollout_is 'tokens': it must be token, sequence or null\nhint: the nearest is token",
        ),
        (["conformance", "missing.json"], "missing.json"),
    ],
)
def test_bad_input_is_exit_code_2(args, says, capsys):
    assert main(args) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert says in told.err


def test_conformance_command(tmp_path, capsys):
    file = ROOT / "tests" / "data" / "conformance.json"
    data = json.loads(file.read_text())
    data["cases"] = [c for c in data["cases"] if c["framework"] == "trl"]
    path = tmp_path / "r.json"
    path.write_text(json.dumps(data))
    assert main(["conformance", str(path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("ok: 25 cases: 17 agree, 8 are explained by a named quirk, 0 differ")
    assert "trl empty_rows_count (3)" in out
    assert main(["conformance", str(path), "--verbose"]) == 0
    assert "of the loss's own clip" in capsys.readouterr().out
    data["cases"][0]["outputs"]["weight_per_token"][0][0] = 7.0
    path.write_text(json.dumps(data))
    assert main(["conformance", str(path), "--format", "json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], told["differs"]) == (False, 1)
    assert told["details"][0]["unexplained"] == ["weights"]


def test_the_console_says_nothing_but_data_on_stdout():
    done = run_cli("explain", "--from", "verl", "rollout_is=token", "nothing=1", "--format", "json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["unknown"] == {"nothing": []}


@pytest.mark.slow
def test_the_page_is_that_of_the_profiles():
    script, env = ROOT / "docs" / "rosetta.py", {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False, env=env
    )
    assert (done.returncode, done.stdout.strip()) == (0, "up to date")
