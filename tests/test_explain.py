"""`reweigh explain` says only what it knows: values, options read together, sampling, earlier versions, scripts."""

import json
import re
from pathlib import Path

import pytest

from reweigh import GEOMETRIC, TOKEN, Clip, Reject, Screen, Truncate, naive, token_is, token_tis, weigh
from reweigh.__main__ import main
from reweigh.levels import WORST, k1, prob_gap
from reweigh.rosetta import PROFILES, RefusedError, profile_of
from reweigh.rosetta.config import detect, looks_like_a_correction, mistaken, registered, translate
from reweigh.rosetta.sources import Source, Unresolved, parse_pairs, read_script, read_source
from reweigh.rosetta.words import formula
from reweigh.transforms import AtMost

DATA = Path(__file__).parent / "data"
VALUES = json.loads((DATA / "registered_values.json").read_text())


def read(framework, **options):
    return profile_of(framework).read(options)


def composed(framework, **options):
    return read(framework, **options).plan.estimator


def told(capsys, *args):
    code = main(["explain", *args])
    out = capsys.readouterr()
    return code, out.out, out.err


# Values.


@pytest.mark.parametrize("profile", PROFILES, ids=[p.name for p in PROFILES])
def test_no_value_of_a_worded_option_is_answered_unknown(profile):
    for option in profile.options:
        if option.kind != "word":
            continue
        with pytest.raises(RefusedError, match="hint: the nearest is ") as e:
            profile.read({option.name: option.values[0] + "x"})
        assert option.values[0] + "x" in str(e.value)


@pytest.mark.parametrize("profile", PROFILES, ids=[p.name for p in PROFILES])
def test_flags_and_numbers_are_what_they_are(profile):
    for option in profile.options:
        if option.kind in ("flag", "number"):
            with pytest.raises(RefusedError, match=rf"{option.name} must be (a number|true or false), got 'x'"):
                profile.read({option.name: "x"})


def registered_cases():
    for framework, options in VALUES.items():
        for option, values in options.items():
            for value in values:
                yield pytest.param(framework, option, value, id=f"{framework}-{option}-{value}")


@pytest.mark.parametrize(("framework", "option", "value"), list(registered_cases()))
def test_every_value_that_a_framework_registers_is_known(framework, option, value):
    """Words of the framework's own registry, recorded from its package: each answered, or refused by name."""
    known = next(o for o in profile_of(framework).options if o.name.rpartition(".")[2] == option)
    if known.values:
        assert value in known.values
    why = ""
    try:
        read(framework, **{known.name: value})
    except RefusedError as e:
        why = str(e)
    assert f"no {known.name}" not in why  # what is refused needs another option, or cannot be told


def test_what_changes_the_loss_and_not_the_weight_is_said():
    for mode in ("gspo", "sapo", "gpg", "clip_cov", "kl_cov", "geo_mean", "cispo"):
        reading = read("verl", loss_mode=mode)
        assert reading.plan.estimator == naive()
        assert any(f"loss_mode={mode}: changes the loss, not the weight" in n for n in reading.notes), mode
    assert any("the loss, not the weight" in n for n in read("verl", loss_mode="dro", dro_beta=0.1).notes)
    assert any("the loss, not the weight" in n for n in read("verl", loss_agg_mode="token-sum").notes)


@pytest.mark.parametrize(
    ("args", "near"),
    [
        (["--from", "verl", "loss_mode=geomean"], "the nearest is geo_mean"),
        (["--from", "verl", "loss_agg_mode=token_mean"], "the nearest is token-mean"),
        (["--from", "verl", "rollout_rs=seq_mean_k4", "rollout_rs_threshold=1"], "the nearest is seq_mean_k"),
        (["--from", "trl", "loss_type=drgrpo"], "the nearest is dr_grpo"),
        (["--from", "skyrl", "policy_loss_type=dual-clip"], "the nearest is dual_clip"),
        (["--from", "prime-rl", "type=icepops"], "the nearest is icepop"),
        (["--from", "tinker", "loss_fn=ppoo"], "the nearest is ppo"),
        (["--from", "unsloth", "UNSLOTH_GRPO_VLLM_IS_MODE=geometric"], "the nearest is geometric_mask"),
        (["--from", "roll", 'is_weight={"enabled": true, "weight_typ": "token"}'], "the nearest is weight_type"),
        (["--from", "verl", "rollout_is=token", "rollout_is_threshold=two"], "a number over 0, got 'two'"),
        (["--from", "verl", "rollout_is=token", "rollout_is_threshold=-1"], "over 0"),
    ],
)
def test_a_value_of_which_nothing_is_known_is_exit_code_2_with_the_nearest(args, near, capsys):
    code, out, err = told(capsys, *args)
    assert (code, out) == (2, "")
    assert near in err


# Options that interact.


def test_verls_bypass_mode_is_read_with_each_loss_mode():
    given = {"rollout_is": "token", "bypass_mode": True}
    for mode in ("vanilla", "gspo", "cispo", "sapo", "gpg", "geo_mean", "clip_cov", "kl_cov"):
        reading = read("verl", loss_mode=mode, **given)
        assert reading.plan.estimator == naive()
        assert any("nothing is applied in the V1 trainer" in n for n in reading.notes), mode
    assert read("verl", loss_mode="dppo_tv", **given).mu == "log_mu"
    of_its_own = read("verl", loss_mode="bypass_mode", loss_type="reinforce", **given)
    assert any("policy_loss.rollout_correction here, which is not given" in n for n in of_its_own.notes)
    inner = {"rollout_is": "token", "rollout_is_threshold": 3.0, "loss_type": "reinforce"}
    reading = read("verl", loss_mode="bypass_mode", **{"policy_loss.rollout_correction": inner}, **given)
    assert reading.plan.estimator == token_tis(3.0)
    before = read("verl", use_v1=False, loss_type="reinforce", **given)
    assert before.plan.estimator == token_tis(2.0)
    assert "nothing is applied" not in " ".join(before.notes)
    without = read("verl", loss_mode="bypass_mode", rollout_is="token")
    assert any("the gap to the sampler is not corrected" in n for n in without.notes)


def test_geo_mean_folds_the_weights_of_tokens():
    (factor,) = composed("verl", rollout_is="token", loss_mode="geo_mean").factors
    assert factor.level.unit == "sequence"
    assert composed("verl", rollout_is="sequence", loss_mode="geo_mean") == composed("verl", rollout_is="sequence")
    with pytest.raises(RefusedError, match="counts as 1e-10"):
        read("verl", rollout_is="token", rollout_is_threshold="0.5_2.0", loss_mode="geo_mean")


@pytest.mark.parametrize(
    ("framework", "options", "says"),
    [
        ("slime", {"use_tis": True, "use_rollout_logprobs": True}, "exclude each other"),
        ("miles", {"use_tis": True, "use_rollout_logprobs": True}, "exclude each other"),
        ("vime", {"use_tis": True, "use_rollout_logprobs": True}, "vime: use_rollout_logprobs and use_tis exclude"),
        ("vime", {"use_score_centering": True, "use_opsm": True}, "excludes use_opsm"),
        ("slime", {"get_mismatch_metrics": True}, "needs custom_tis_function_path"),
        ("slime", {"use_tis": True, "custom_tis_function_path": "mine.weights"}, "cannot tell what"),
        ("slime", {"loss_type": "custom_loss"}, "cannot tell what"),
        ("verl", {"loss_mode": "dro"}, "needs dro_beta"),
        ("verl", {"bypass_mode": True, "router_replay.mode": "R2"}, "is refused"),
        ("open-instruct", {"use_vllm_logprobs": True}, "excludes use_rho_correction"),
        ("skyrl", {"policy_loss_type": "clip_cov", "tis_ratio_type": "token"}, "is refused"),
        ("skyrl", {"use_tis": True}, "would bound every ratio at -1"),
        ("nemo-rl", {"truncated_importance_sampling_type": "tis"}, "needs use_importance_sampling_correction"),
        ("nemo-rl", {"use_cispo": True, "ratio_clip_c": 3.0}, "excludes ratio_clip_c"),
        (
            "nemo-rl",
            {"use_importance_sampling_correction": True, "truncated_importance_sampling_ratio": 2.0},
            "type=tis",
        ),
        ("nemo-rl", {"async_grpo.enabled": True}, "needs use_importance_sampling_correction"),
        ("trl", {"loss_type": "vespo"}, "needs a token mode"),
        ("trl", {"vllm_importance_sampling_clip_min": 4.0}, "clip_min must be under clip_max"),
        ("prime-rl", {"type": "custom", "import_path": "mine"}, "cannot tell what"),
        ("prime-rl", {"type": "icepop", "eps": 0.2}, "type=icepop has no eps"),
        ("tinker", {"loss_fn": "stable_reinforce"}, "cannot tell what"),
        ("tinker", {"loss_fn": "importance_sampling", "loss_fn_config": {"clip_high_threshold": 2.0}}, "takes no"),
        ("areal", {"use_sapo_loss": True, "use_decoupled_loss": True}, "excludes use_decoupled_loss"),
    ],
)
def test_what_a_framework_refuses_is_refused_by_name(framework, options, says):
    with pytest.raises(RefusedError, match=r"hint: ") as e:
        read(framework, **options)
    assert says in str(e.value)


@pytest.mark.parametrize("kind", ["dppo", "rollout_is"])
def test_a_loss_with_a_ratio_to_the_sampler_and_weights_corrects_twice(kind):
    reading = read("skyrl", policy_loss_type=kind, tis_ratio_type="token")
    assert any("correcting twice" in n for n in reading.notes)
    assert not any("twice" in n for n in read("skyrl", policy_loss_type=kind).notes)


def test_switches_decide_whether_anything_is_corrected():
    assert composed("trl", use_vllm=False) == naive()
    assert composed("ms-swift", use_vllm=False, rollout_importance_sampling_mode="token_mask") == naive()
    assert composed("verl", rollout_is="token", calculate_log_probs=False) == naive()
    assert composed("areal", use_decoupled_loss=False, level="token") == naive()
    assert any("not read" in n for n in read("areal", use_decoupled_loss=False, level="token").notes)
    assert any("holds with use_vllm=true" in n for n in translate("trl", {"beta": 0.0}).reading.notes)
    assert not any("holds with" in n for n in translate("trl", {"use_vllm": True}).reading.notes)
    assert composed("unsloth", vllm_importance_sampling_mode="token_mask") == naive()  # its default is off


# Profiles.


def test_prime_rls_losses():
    gate = weigh(TOKEN, AtMost(0.3), of=prob_gap)
    assert composed("prime-rl") == gate * weigh(TOKEN, Truncate(1e4))
    assert composed("prime-rl", type="icepop") == weigh(TOKEN, Reject(0.2, 5.0))
    assert composed("prime-rl", type="cispo") == weigh(TOKEN, Clip(0.0, 5.0))
    assert composed("prime-rl", type="ppo") == naive()
    ppo = read("prime-rl", type="ppo").loss
    assert (ppo.kind, ppo.centre, ppo.low, ppo.high) == ("ppo_clip", "log_mu", pytest.approx(0.2), pytest.approx(0.2))
    assert any("centred(...)" in n and "complete=True" in n for n in read("prime-rl", score_centering=True).notes)
    before = composed("prime-rl", token_mask_high=4.0)
    assert before.factors[0] == token_is().factors[0]
    assert weigh(TOKEN, Screen(0.125, 4.0)).factors[0] in before.factors


def test_unsloths_modes_and_environment():
    on = {"vllm_importance_sampling_correction": True}
    assert composed("unsloth", vllm_importance_sampling_mode="geometric_mask", **on) == weigh(GEOMETRIC, Reject(0, 3.0))
    told = composed("unsloth", UNSLOTH_GRPO_VLLM_IS_MODE="geometric_truncate", UNSLOTH_GRPO_VLLM_IS_CLIP="0.5_2", **on)
    assert told == weigh(GEOMETRIC, Clip(0.5, 2.0))
    rs = {"UNSLOTH_GRPO_ROLLOUT_RS": "seq_mean_k1", "UNSLOTH_GRPO_ROLLOUT_RS_THRESHOLD": "0.5_2.0"}
    assert weigh(GEOMETRIC, Screen(0.5, 2.0)).factors[0] in composed("unsloth", **rs, **on).factors
    assert any("ignored" in n for n in read("unsloth", **rs).notes)
    as_old = read("unsloth", UNSLOTH_GRPO_ROLLOUT_LOGPROBS_AS_OLD=1, **on)
    assert (as_old.plan.estimator, as_old.loss.centre) == (naive(), "log_mu")
    with pytest.raises(RefusedError, match=r'"_2\.0" for a cap alone'):
        read("unsloth", UNSLOTH_GRPO_VLLM_IS_CLIP=2.0, **on)


def test_tinkers_losses():
    assert composed("tinker") == token_is()
    assert composed("tinker", loss_fn="cispo", loss_fn_config={"clip_high_threshold": 4.0}) == weigh(
        TOKEN, Clip(0.8, 4.0)
    )
    for kind in ("ppo", "gspo", "dro", "cross_entropy"):
        assert composed("tinker", loss_fn=kind) == naive()
        assert read("tinker", loss_fn=kind).notes
    with pytest.raises(RefusedError, match="stable_reinforce"):
        read("tinker", async_config={"max_steps_off_policy": 2})


def test_a_fork_has_its_origins_options():
    assert composed("vime", use_tis=True, tis_clip=3.0) == composed("slime", use_tis=True, tis_clip=3.0)
    assert {o.name for o in profile_of("trl").options} < {o.name for o in profile_of("unsloth").options}


# Sampling.


def sampling(framework, **options):
    return " / ".join(translate(framework, options).sampling)


def test_truncated_sampling_is_said_with_what_to_do():
    said = sampling("trl", top_p=0.9, top_k=50)
    assert "every ratio is too small by the kept mass" in said
    assert "0.9 a token" in said
    assert "top_p=1, top_k off" in said
    raw = translate("verl", {"rollout": {"top_p": 0.9, "logprobs_mode": "raw_logprobs"}}).sampling
    assert "the ratio leaves out the kept mass" in raw[0]
    same = {"algorithm": {"enable_sample_support_replay": True}, "sampling_params": {"top_p": 0.9}}
    assert "the ratios can be right" in translate("skyrl", same).sampling[0]
    assert "too small" in sampling("skyrl", top_k=20)
    assert "if the engine gives processed log-probs" in sampling("nemo-rl", top_p=0.95)


def test_temperature_and_penalties():
    assert "the trainer divides its logits by it, too" in sampling("trl", temperature=0.7)
    assert "no ratio is right" in sampling("nemo-rl", temperature=0.7, logprobs_mode="raw_logprobs")
    assert "of temperature 1: ratios compare two laws" in sampling("tinker", temperature=0.7)
    assert "greedy" in sampling("verl", temperature=0)
    assert "the trainer's do not" in sampling("trl", repetition_penalty=1.05)
    assert "neither log-prob has it" in sampling(
        "verl", repetition_penalty=1.05, logprobs_mode="raw_logprobs", top_p=1.0
    )
    assert "temperature=0.9" in sampling("ms-swift", rollout_importance_sampling_mode="token_mask")  # its default
    assert sampling("trl", vllm_importance_sampling_mode="token_mask") == ""
    assert "nothing truncated" in sampling("trl", temperature=1.0, top_k=-1)


def test_sampling_of_an_evaluation_is_not_that_of_training():
    config = {"actor_rollout_ref": {"rollout": {"top_p": 1.0, "val_kwargs": {"top_p": 0.7, "temperature": 0.6}}}}
    assert "truncated" in " ".join(translate("verl", config).sampling)
    assert "0.7" not in " ".join(translate("verl", config).sampling)


# Earlier versions.


def test_options_of_earlier_versions_are_read_as_that_version_did():
    capped = translate("verl", {"actor": {"tis_imp_ratio_cap": 2.0}})
    assert capped.reading.plan.estimator == token_tis(2.0)
    assert capped.of_before
    assert "rollout_is=token with rollout_is_threshold=CAP" in capped.former[0]
    veto = weigh(WORST, AtMost(9.210340371976182), of=k1)
    old = {"rollout_is": True, "rollout_is_threshold": 2.0, "rollout_is_level": "token", "rollout_is_mode": "truncate"}
    assert translate("verl", {"algorithm": old}).reading.plan.estimator == token_tis(2.0) * veto  # its default
    assert composed("verl", **{**old, "rollout_is_veto_threshold": None}) == token_tis(2.0)
    assert composed("verl", **{**old, "rollout_is": False}) == naive()
    geometric = {"rollout_rs": "geometric", "rollout_rs_threshold": 1.001, "rollout_rs_threshold_lower": 0.99}
    reading = read("verl", **geometric)
    assert reading.plan.estimator == weigh(GEOMETRIC, Screen(0.99, 1.001))
    assert any('rollout_rs_threshold="0.999001_1.0101"' in n for n in reading.notes)
    now = composed("verl", rollout_rs="seq_mean_k1", rollout_rs_threshold="0.999001_1.0101").factors[0].transform
    assert (now.low, now.high) == (pytest.approx(0.99, abs=1e-5), pytest.approx(1.001, abs=1e-5))
    assert composed("openrlhf", enable_vllm_is_correction=True, vllm_is_truncated_threshold=2) == weigh(
        TOKEN, Clip(0.0, 2.0)
    )
    assert composed("areal", behav_imp_weight_cap=5.0) == token_is() * weigh(TOKEN, Screen(0.0, 5.0))
    assert composed("slime", use_mis=True, mis_level="token", mis_mode="clip", mis_upper_bound=2.0) == weigh(
        TOKEN, Clip(0.5, 2.0)
    )


def test_what_is_of_before_and_unread_is_said(capsys):
    config = {"rollout_rs": "seq_mean_k1", "rollout_rs_threshold": "0.9_1.1", "rollout_token_veto_threshold": 1e-4}
    told_of = translate("verl", config)
    assert not told_of.of_before
    assert any("no version with these options reads it" in n for n in told_of.reading.notes)
    code, out, err = told(capsys, "--from", "verl", "-q", "tis_imp_ratio_cap=2.0")
    assert code == 0
    assert "tis_imp_ratio_cap is of verl 0.6 as it was made" in err
    assert "holds of" in out


# What is not known.


def test_what_looks_like_a_correction_is_a_warning_that_quiet_does_not_hide(capsys):
    code, out, err = told(
        capsys, "--from", "slime", "--use-tis", "--tis-clop", "3.0", "--rollout-batch-size", "32", "-q"
    )
    assert code == 0
    assert "w = min(r_t, 2)" in out
    assert "warning: slime has no option tis_clop; did you mean tis_clip" in err
    assert "rollout_batch_size" not in err
    code, _, err = told(capsys, "--from", "verl", "-q", "rollout_is=token", "trainer.my_is_veto=1", "trainer.nnodes=2")
    assert "my_is_veto; it looks like a correction and is not read" in err
    assert "nnodes" not in err


@pytest.mark.parametrize("profile", PROFILES, ids=[p.name for p in PROFILES])
def test_registered_names_that_look_like_a_correction_are_options_or_of_something_else(profile):
    """A framework's own option of a correction that the profile does not have would be passed over in silence."""
    known = {o.name.rpartition(".")[2] for o in profile.options}
    sections = {*profile.section.split("."), "off_policy_correction", "rollout_correction", "train_infer_correction"}
    for name in registered(profile.name):
        if looks_like_a_correction(name) and name not in known | sections:
            elsewhere = name.startswith(("rollout_", "is_", "mask_offpolicy", "max_off_policy", "max_steps_off_policy"))
            assert elsewhere or name.endswith(("is_better", "_mismatch")), name
            assert name not in ("rollout_is", "rollout_rs"), name


# Scripts, flags, Python, and whose options they are.

SCRIPT = """#!/bin/bash
# --tis-clip 9.0 is only a comment
CLIP=${1:-2.0}
GRPO_ARGS=(
   --advantage-estimator grpo
   --use-tis        # on
   # --use-opsm
   --tis-clip $CLIP
)
if [ "$OPSM" = 1 ]; then
   GRPO_ARGS+=(--use-opsm --opsm-delta 0.01)
fi
ray job submit -- python3 train.py \\
   --rollout-top-p 0.95 \\
   ${GRPO_ARGS[@]}
"""


def test_a_script_is_read_and_not_run(tmp_path):
    path = tmp_path / "run.sh"
    path.write_text(SCRIPT)
    source = read_source(str(path))
    assert source.values["use_tis"] is True
    assert source.values["tis_clip"] == 2.0
    assert source.values["rollout_top_p"] == 0.95
    assert source.values["opsm_delta"] == 0.01
    assert source.conditional
    assert detect(source).name == "slime"


def test_overrides_of_a_script():
    text = (
        "IS=token\npython3 -m verl.trainer.main_ppo \\\n"
        "  algorithm.rollout_correction.rollout_is=$IS \\\n  +a.b='[1, 2]' $@\n"
    )
    source = read_script(text)
    assert source.values == {"algorithm": {"rollout_correction": {"rollout_is": "token"}}, "a": {"b": [1, 2]}}
    assert detect(Source(source.values, {}, text)).name == "verl"


def test_what_a_file_does_not_say_is_not_guessed():
    source = read_script("python train.py --use-tis --tis-clip $2 --rollout-top-p $3\n")
    assert str(source.values["tis_clip"]) == "$2"
    with pytest.raises(ValueError, match=r"cannot tell: tis_clip is \$2, which is not said here\nhint: give it"):
        translate("slime", source.values)
    del source.values["tis_clip"]
    assert translate("slime", source.values).unresolved == ("rollout_top_p=$3",)
    both = read_script("if x; then\n A=1\nelse\n A=2\nfi\npython t.py --use-tis --tis-clip $A\n")
    assert isinstance(both.values["tis_clip"], Unresolved)


def test_interpolations_of_a_configuration(tmp_path):
    pytest.importorskip("yaml")
    path = tmp_path / "c.yaml"
    path.write_text(
        "a:\n  cap: 3.0\nrollout_is: token\nrollout_is_threshold: ${a.cap}\nx: ${oc.env:Y,2}\nz: ${nowhere}\n"
    )
    values = read_source(str(path)).values
    assert (values["rollout_is_threshold"], values["x"]) == (3.0, 2)
    assert isinstance(values["z"], Unresolved)


def test_python_is_read_and_not_run(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(
        "from unsloth import FastLanguageModel\nimport os\nos.environ['UNSLOTH_GRPO_VLLM_IS_MODE'] = 'geometric_mask'\n"
        "P = 0.9\nargs = GRPOConfig(vllm_importance_sampling_correction=True, top_p=P, output_dir=f())\n"
    )
    source = read_source(str(path))
    assert detect(source).name == "unsloth"
    found = translate("unsloth", source.values, source.environment)
    assert found.reading.plan.estimator == weigh(GEOMETRIC, Reject(0.0, 3.0))
    assert "top_p=0.9" in found.sampling[0]


def test_flags():
    assert parse_pairs(["--use-tis", "--tis-clip=2.0", "--no-x", "a=1"]) == {
        "use_tis": True,
        "tis_clip": 2.0,
        "no_x": True,
        "x": False,
        "a": 1,
    }
    assert parse_pairs(["--algo.advantage.is_correction_threshold", "0.5", "5.0"]) == {
        "algo": {"advantage": {"is_correction_threshold": [0.5, 5.0]}}
    }
    assert parse_pairs(["--use-tis --tis-clip 2"]) == {"use_tis": True, "tis_clip": 2}


@pytest.mark.parametrize(
    ("options", "framework"),
    [
        ({"use_tis": True, "tis_clip": 2.0}, "slime"),
        ({"vllm_importance_sampling_mode": "token_mask"}, "trl"),
        ({"rollout_importance_sampling_mode": "token_mask"}, "ms-swift"),
        ({"algorithm": {"rollout_correction": {"rollout_is": "token"}}}, "verl"),
        ({"trainer": {"algorithm": {"off_policy_correction": {"tis_ratio_type": "token"}}}}, "skyrl"),
        ({"loss_fn": {"use_importance_sampling_correction": True}}, "nemo-rl"),
        ({"actor": {"rejection_sampling": {"level": "token", "metric": "ratio", "upper": 2.0}}}, "areal"),
        ({"algo": {"advantage": {"is_correction_level": "token"}}}, "openrlhf"),
        ({"train_infer_correction": {"is_weight": {"enabled": True}}}, "roll"),
        ({"use_rho_correction": True}, "open-instruct"),
        ({"trainer": {"loss": {"type": "ipo", "eps": 0.2, "max_importance_ratio": 100.0}}}, "prime-rl"),
        ({"UNSLOTH_GRPO_VLLM_IS_MODE": "geometric_mask"}, "unsloth"),
        ({"loss_fn_config": {"clip_high_threshold": 2.0}}, "tinker"),
    ],
)
def test_whose_options_they_are(options, framework):
    assert detect(Source(options)).name == framework


def test_whose_options_cannot_be_told():
    with pytest.raises(ValueError, match="cannot tell of which framework this is\nhint: --from, one of verl"):
        detect(Source({"learning_rate": 1e-6, "temperature": 1.0}))


def test_a_misspelled_option_of_ours_is_not_a_flag_of_theirs(capsys):
    code, _, err = told(capsys, "--form", "verl", "rollout_is=token")
    assert code == 2
    assert "no such option: --form" in err


def test_json_has_all_of_it(capsys):
    code, out, _ = told(capsys, "--from", "trl", "top_p=0.9", "vllm_importance_samplng_cap=2", "--format", "json")
    answer = json.loads(out)
    assert code == 0
    assert "kept mass" in answer["sampling"][0]
    assert "vllm_importance_samplng_cap" in answer["warnings"][0]
    assert answer["of_before"] is False


LAUNCHER = '''
"""Not read: --tis-clip 9."""
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--tis-clip", default=7.0)
clip = 3.0
extra = make()
perf = ["--opsm-delta", "0.01"]
if args.mask:
    perf_args = "--custom-tis-function-path examples.train_infer_mismatch_helper.mis.icepop_function "
run(f"ray job submit -- python3 train.py --rollout-top-p 0.9 --tis-clip {clip} --use-tis {extra}")
'''


def test_flags_in_the_texts_of_a_python_launcher(tmp_path, capsys):
    path = tmp_path / "run.py"
    path.write_text(LAUNCHER)
    source = read_source(str(path))
    values = source.values
    assert (values["rollout_top_p"], values["tis_clip"], values["opsm_delta"]) == (0.9, 3.0, 0.01)
    assert source.conditional == ("custom-tis-function-path",)
    code, out, err = told(capsys, "--from", "slime", "--config", str(path), "-q")
    assert code == 0
    assert "use_tis=True" in out  # the variable after it is more flags, as it takes no value
    assert "top_p=0.9" in out
    assert "warning: set under a condition, taken as set: custom-tis-function-path" in err


def test_a_configuration_that_inherits(tmp_path, capsys):
    pytest.importorskip("yaml")
    (tmp_path / "base.yaml").write_text("loss_fn:\n  use_importance_sampling_correction: true\n  ratio_clip_min: 0.1\n")
    path = tmp_path / "run.yaml"
    path.write_text(
        "defaults: base.yaml\nloss_fn:\n  truncated_importance_sampling_type: tis\n"
        "  truncated_importance_sampling_ratio: 5\n"
    )
    code, out, _ = told(capsys, "--config", str(path), "-q")
    assert code == 0
    assert "w = min(r_t, 5)" in out
    (tmp_path / "base.yaml").unlink()
    code, _, err = told(capsys, "--from", "nemo-rl", "--config", str(path), "-q")
    assert code == 2
    assert "it inherits from base.yaml, which is not beside it" in err


def test_words_of_a_launcher_are_no_options_of_a_trainer():
    text = (
        "set -euo pipefail\nuv run --extra vllm python -u -m torch.distributed.run --use-tis\npip install --no-deps x\n"
    )
    assert read_script(text).values == {"use_tis": True}


PUBLIC = json.loads((Path(__file__).parent / "data" / "public_configs.json").read_text(encoding="utf-8"))
"""What public configurations and launch scripts say of the correction: names and values alone, and what we answer."""


def nested(options):
    out = {}
    for key, value in options.items():
        *path, last = key.split(".")
        place = out
        for step in path:
            place = place.setdefault(step, {})
        place[last] = Unresolved("$" + value["unresolved"]) if isinstance(value, dict) else value
    return out


def test_there_are_public_configurations_of_every_framework_that_publishes_some():
    assert len(PUBLIC) >= 60
    assert {row["framework"] for row in PUBLIC} >= {p.name for p in PROFILES} - {"trl", "tinker"}


@pytest.mark.parametrize("row", PUBLIC, ids=[row["from"] for row in PUBLIC])
def test_a_public_configuration_is_answered_or_refused_by_name(row):
    config, environment = nested(row["options"]), row.get("environment", {})
    if "refused" in row:
        with pytest.raises(ValueError, match=re.escape(row["refused"])) as e:
            translate(row["framework"], config, environment)
        assert str(e.value).splitlines()[0] == row["refused"]
        assert any(name.rpartition(".")[2] in row["refused"] for name in row["options"])
        return
    found = translate(row["framework"], config, environment)
    assert formula(found.reading.plan.estimator) == row["formula"]
    weighs = {
        o.name.rpartition(".")[2] for o in found.profile.options if o.role == "weight" and not o.at and "_" in o.name
    }
    read = {o.rpartition(".")[2] for o in found.options}
    assert {n.rpartition(".")[2] for n in row["options"]} & weighs <= read  # none is passed over


# a configuration of another framework than was named


def test_a_configuration_of_another_framework_is_recognised(tmp_path, capsys):
    path = tmp_path / "grpo.yaml"
    path.write_text("use_vllm: true\nvllm_importance_sampling_mode: token_mask\nvllm_importance_sampling_cap: 2.0\n")
    for framework in ("verl", "slime", "openrlhf"):
        assert main(["explain", "--from", framework, "--config", str(path)]) == 2
        assert capsys.readouterr().err.endswith("\nhint: these are options of trl: --from trl, or no --from\n")
    path.write_text(
        "algorithm:\n  rollout_correction: {rollout_is: token, rollout_is_threshold: 2.0}\ntemperature: 1.0\n"
    )
    assert main(["explain", "--from", "trl", "--config", str(path)]) == 0
    assert "warning: these seem to be options of verl, read as of trl; --from verl?" in capsys.readouterr().err


def test_no_public_configuration_is_taken_for_another_framework():
    configs = json.loads((DATA / "public_configs.json").read_text())
    for one in configs:
        assert mistaken(Source(dict(one["options"])), one["framework"]) is None, one["from"]


# What a run that samples nothing looks like: the file's ending, its text, which of it is named, and what is said.
OFFLINE = {
    "openrlhf_dpo": ("sh", "deepspeed --module openrlhf.cli.train_dpo --beta 0.1", "train_dpo", "a preference run"),
    "openrlhf_sft": ("sh", "deepspeed --module openrlhf.cli.train_sft \\\n --max_len 2048", "train_sft", "an SFT run"),
    "openrlhf_rm": ("sh", "deepspeed --module openrlhf.cli.train_rm", "train_rm", "a reward model's run"),
    "verl_sft": ("sh", "torchrun -m verl.trainer.fsdp_sft_trainer optim.lr=1e-4", "fsdp_sft_trainer", "an SFT run"),
    "open_instruct_dpo": ("sh", "accelerate launch open_instruct/dpo_tune_cache.py --dpo_beta 5", "dpo_tune", "a pref"),
    "open_instruct_sft": ("sh", "accelerate launch open_instruct/finetune.py --seed 8", "finetune", "an SFT run"),
    "swift_kto": ("sh", "swift rlhf --model a --rlhf_type kto --beta 0.1", "rlhf_type kto", "a preference run"),
    "swift_pt": ("sh", "CUDA_VISIBLE_DEVICES=0 swift pt --model a", "swift pt", "a run of pretraining"),
    "slime_sft": (
        "sh",
        "A=(--loss-type sft_loss --debug-train-only)\npython3 train_async.py ${A[@]}",
        "sft_loss",
        "SFT",
    ),
    "trl_dpo_cli": ("sh", "trl dpo --model_name_or_path a --beta 0.1", "trl dpo", "a preference run"),
    "trl_dpo": (
        "py",
        "from trl import DPOConfig\nargs = DPOConfig(loss_type='ipo')\n",
        "DPOConfig",
        "a preference run",
    ),
    "trl_sft": ("py", "from trl import SFTTrainer\nt = SFTTrainer('m', train_dataset=d)\n", "SFTTrainer", "an SFT run"),
    "trl_reward": (
        "py",
        "from trl import RewardConfig\na = RewardConfig(output_dir='x')\n",
        "RewardConfig",
        "a reward",
    ),
    "trl_dpo_yaml": ("yaml", "beta: 0.1\nloss_type: sigmoid\n", "loss_type=sigmoid", "a preference run"),
    "llama_factory_dpo": ("yaml", "stage: dpo\npref_beta: 0.1\n", "stage=dpo", "a preference run"),
    "llama_factory_sft": ("yaml", "stage: sft\ntemplate: llama3\n", "stage=sft", "an SFT run"),
    "axolotl_dpo": ("yaml", "base_model: a\nrl: dpo\ndatasets:\n - path: b\n", "rl=dpo", "a preference run"),
    "axolotl_sft": ("yaml", "base_model: a\ndatasets:\n - path: b\n   type: alpaca\n", "without rl", "an SFT run"),
    "nemo_dpo": ("yaml", "dpo:\n  reference_policy_kl_penalty: 0.05\n", "a section dpo", "a preference run"),
    "nemo_sft": ("yaml", "sft:\n  max_num_steps: 60\n", "a section sft", "an SFT run"),
    "roll_dpo": ("yaml", "pipeline_cls: roll.pipeline.dpo.dpo_pipeline.DPOPipeline\n", "DPOPipeline", "a preference"),
    "areal_sft": ("yaml", "model:\n  path: a\ntrain_dataset:\n  type: sft\n", "train_dataset.type=sft", "an SFT run"),
    "handbook_dpo": (
        "yaml",
        "dataset_mixture:\n  datasets:\n  - columns: [chosen, rejected]\n",
        "chosen and",
        "a pref",
    ),
    "handbook_sft": ("yaml", "model_name_or_path: a\ndataset_name: b\nmax_length: 9\n", "max_length", "an SFT or pref"),
    "verl_sft_yaml": ("yaml", "data:\n  prompt_key: q\n  response_key: a\n", "prompt_key and response_key", "an SFT"),
}


@pytest.mark.parametrize("name", OFFLINE)
@pytest.mark.parametrize("framework", [None, "trl"])
def test_a_run_that_samples_nothing_is_refused_by_name(name, framework, tmp_path, capsys):
    ending, text, evidence, kind = OFFLINE[name]
    path = tmp_path / f"run.{ending}"
    path.write_text(text)
    assert main(["explain", "--config", str(path), *([] if framework is None else ["--from", framework])]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    first = said.err.splitlines()[0]
    assert evidence in first
    assert kind in first
    assert "no importance ratio" in first


SAMPLED = {
    "both": (
        "sh",
        "trl sft --model_name_or_path a\ntrl grpo --use_vllm true --vllm_importance_sampling_mode token_mask",
    ),
    "a comment": (
        "sh",
        "# after trl sft\npython3 -m verl.trainer.main_ppo algorithm.rollout_correction.rollout_is=token",
    ),
    "online dpo": ("py", "from trl import OnlineDPOConfig, GRPOConfig\na = GRPOConfig(loss_type='dapo')\n"),
    "a name": ("yaml", "loss_type: dapo\nvllm_importance_sampling_mode: token_mask\nrun_name: sft-dpo\n"),
    "a part": ("yaml", "grpo:\n  seq_logprob_error_threshold: 1.5\nsft:\n  weight: 0.1\n"),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_a_run_that_samples_is_not_taken_for_one_that_does_not(name, tmp_path, capsys):
    ending, text = SAMPLED[name]
    path = tmp_path / f"run.{ending}"
    path.write_text(text)
    assert main(["explain", "--config", str(path)]) == 0
    assert "w =" in capsys.readouterr().out


def test_a_file_in_the_place_of_a_word_is_told_where_it_goes(tmp_path, capsys):
    path = tmp_path / "ppo.yaml"
    path.write_text("loss_type: dapo\n")
    assert main(["explain", str(path)]) == 2
    assert f"hint: `reweigh explain --config {path}`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ending", "text", "who"),
    [
        ("sh", "python3 -m verl.trainer.main config=examples/config.yaml worker.rollout.n=5", "of EasyR1"),
        ("yaml", "worker:\n  actor:\n    global_batch_size: 128\n  rollout:\n    n: 5\n", "of EasyR1"),
        ("sh", "python -m examples.train rllm.algorithm.rollout_correction.tis_mode=token", "rLLM's own"),
    ],
)
def test_a_program_without_a_profile_is_refused_by_name(ending, text, who, tmp_path, capsys):
    path = tmp_path / f"run.{ending}"
    path.write_text(text)
    for framework in ([], ["--from", "verl"]):
        assert main(["explain", "--config", str(path), *framework]) == 2
        assert who in capsys.readouterr().err.splitlines()[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("python3 -m recipe.sppo.main_sppo algorithm.adv_estimator=grpo actor_rollout_ref.rollout.n=4", True),
        ("python3 -m verl.trainer.main_ppo algorithm.adv_estimator=grpo actor_rollout_ref.rollout.n=4", False),
        ("python3 -m pip install x\npython3 -m verl.trainer.main_ppo actor_rollout_ref.rollout.n=4", False),
    ],
)
def test_a_script_that_starts_another_program_with_verls_options_says_so(text, said, tmp_path, capsys):
    path = tmp_path / "run.sh"
    path.write_text(text)
    assert main(["explain", "--config", str(path)]) == 0
    both = capsys.readouterr()
    assert ("it starts recipe.sppo.main_sppo, not verl's own trainer" in both.out + both.err) is said


def test_a_command_inside_a_shell_is_read_and_the_launchers_flags_are_not():
    text = 'srun --nodes=1 --ntasks=1 bash -c "pip install x && python3 -m openrlhf.cli.train_ppo_ray \\\n'
    text += '  --algo.advantage.is_correction_level token"'
    found = read_script(text)
    assert found.values == {"algo": {"advantage": {"is_correction_level": "token"}}}
    assert translate(detect(found).name, found.values).options == {"is_correction_level": "token"}


def test_a_distillation_has_a_loss_of_its_own():
    found = translate("prime-rl", {"orchestrator": {"algo": {"type": "opd"}}})
    assert formula(found.reading.plan.estimator) == "w = 1{(pi_t - mu_t) >= -0.2} * r_t"
    with pytest.raises(RefusedError, match="sft trains by cross-entropy"):
        translate("prime-rl", {"orchestrator": {"algo": {"type": "sft"}}})
    loss = {"use_task_rewards": False, "use_policy_gradient": False}
    with pytest.raises(RefusedError, match="has no policy loss: nothing is weighed"):
        translate("verl", {"distillation": {"enabled": True, "distillation_loss": loss}})
    found = translate("verl", {"distillation": {"enabled": True}, "algorithm": {"adv_estimator": "grpo"}})
    assert "distillation: its loss stands beside the task's, unweighed" in found.reading.notes


@pytest.mark.parametrize("option", ["tis_clip", "tis_clip_low"])
def test_a_number_that_is_switched_off_where_there_is_no_such_value_is_refused(option):
    with pytest.raises(ValueError, match=f"slime: {option} must be a number, got null\nhint: leave it out"):
        profile_of("slime").read({"use_tis": True, option: None})
