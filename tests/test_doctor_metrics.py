"""The doctor on metrics alone: verdicts on runs with one fault, names of every framework, files of every kind."""

import json
import math
import sys
from pathlib import Path

import metric_histories as h
import numpy as np
import pytest

from reweigh.doctor.metrics import FRAMEWORKS, diagnose_metrics
from reweigh.doctor.metrics.history import Series
from reweigh.doctor.metrics.read import flat, read_history
from reweigh.doctor.metrics.signals import _LAWS, recognise, translate
from reweigh.doctor.metrics.steps import correlation, fold, mean

DATA = Path(__file__).parent / "data" / "metrics"
_RUNS: dict[tuple[str, int], list[h.Step]] = {}
_FILES: dict[tuple[str, str, int], str] = {}


def steps(fault, n=40):
    """Runs are made once."""
    if (fault, n) not in _RUNS:
        _RUNS[fault, n] = h.run(fault, n)
    return _RUNS[fault, n]


@pytest.fixture
def diagnose(tmp_path):
    def of(fault, framework, n=40):
        logger = h.slime_plain if framework == "slime_plain" else h.LOGGERS[framework]
        file = tmp_path / "run.csv"
        if (fault, framework, n) not in _FILES:
            _FILES[fault, framework, n] = h.to_csv(file, steps(fault, n), logger).read_text()
        file.write_text(_FILES[fault, framework, n])
        return diagnose_metrics(file)

    return of


def evidence(diagnosis, name):
    return next(e for c in diagnosis.causes for e in c.evidence if e.name == name)


def confidence(diagnosis, cause):
    return next((c.confidence for c in diagnosis.causes if c.id == cause), 0.0)


# Verdicts, by what a framework logs


@pytest.mark.parametrize("framework", [*(f for f in h.LOGGERS if f != "openrlhf"), "slime_plain"])
def test_rounding_is_called_rounding(diagnose, framework):
    d = diagnose("clean", framework)
    assert d.verdict == "numerics"
    assert d.benign
    assert d.source == "metrics"
    assert d.cannot_tell, "scalars never show everything"


@pytest.mark.parametrize("framework", [f for f in h.LOGGERS if f != "reweigh"])
def test_no_gap_at_all(diagnose, framework):
    assert diagnose("copied", framework).verdict == "none"


@pytest.mark.parametrize("framework", ["verl", "slime", "slime_plain", "nemo-rl", "skyrl", "openrlhf", "reweigh"])
def test_raw_logprobs_are_named(diagnose, framework):
    d = diagnose("raw", framework)
    assert d.verdict == "raw_logprobs"
    assert 0.8 <= d.causes[0].confidence < 0.9, "named, not proven"
    assert d.causes[0].evidence
    assert set(d.causes[0].fix) <= {"general", "vllm", "sglang", framework.split("_")[0]}
    if framework not in ("skyrl",):
        k1 = evidence(d, "k1")
        assert k1.high < 0, "a KL divergence below 0"
        assert k1.n == 40


@pytest.mark.parametrize("framework", ["verl", "slime", "nemo-rl", "reweigh"])
def test_truncated_sampling_is_named(diagnose, framework):
    d = diagnose("top_p", framework)
    assert d.verdict == "truncated_sampling"
    assert d.causes[0].confidence == 0.8
    if framework == "verl":
        gap = evidence(d, "mean_ratio_minus_1")
        assert -0.1 < gap.low < gap.high < -0.04, "the kept mass, at least 0.9, less 1"


@pytest.mark.parametrize("framework", ["slime_plain", "skyrl"])
def test_without_k3_truncation_is_not_told_from_padding(diagnose, framework):
    d = diagnose("top_p", framework)
    assert d.verdict == "not_decided"
    assert d.causes[0].id == "truncated_sampling"
    assert confidence(d, "vocab_padding") > 0.3
    assert "numerics" not in [c.id for c in d.causes[:2]]


@pytest.mark.parametrize("framework", ["verl", "nemo-rl"])
def test_a_constant_shift_is_padding_or_truncation(diagnose, framework):
    """A flat distribution keeps much the same mass at every token under top-p, as it does beside padded rows."""
    d = diagnose("padding", framework)
    assert d.verdict == "not_decided"
    assert {c.id for c in d.causes[:2]} == {"vocab_padding", "truncated_sampling"}
    assert evidence(d, "constancy").value == pytest.approx(1, abs=0.02)
    if framework == "verl":
        assert evidence(d, "mean_ratio_minus_1").value == pytest.approx(-0.03, abs=1e-3)


@pytest.mark.parametrize("framework", ["verl", "slime", "nemo-rl"])
def test_log_probs_that_are_paired_wrongly(diagnose, framework):
    assert diagnose("shift", framework).verdict == "shift"


@pytest.mark.parametrize("framework", ["verl", "slime"])
def test_log_probs_of_the_likeliest_token_fit_other_causes_too(diagnose, framework):
    d = diagnose("top_1", framework)
    assert d.verdict == "not_decided", "placeholders and tool tokens have such numbers"
    assert d.causes[0].id == "wrong_token"
    assert d.cannot_tell[0].id == "wrong_token"
    assert d.cannot_tell[0].experiment, "what would decide comes first"


@pytest.mark.parametrize("framework", ["verl", "slime", "slime_plain"])
def test_both_raw_needs_entropy(diagnose, framework):
    d = diagnose("both_raw", framework)
    assert d.verdict == "both_raw"
    assert evidence(d, "surprise_minus_entropy").high < -0.1


def test_both_raw_without_entropy_looks_healthy_and_is_said_to_be_open(diagnose):
    d = diagnose("both_raw", "nemo-rl")
    assert d.verdict == "numerics"
    open_ = {c.id: c for c in d.cannot_tell}
    assert "entropy" in open_["both_raw"].reason
    assert open_["both_raw"].experiment
    assert open_["both_raw"].needs == ("entropy_pi", "entropy_mu")


def test_a_missing_temperature_is_suspected_only(diagnose):
    d = diagnose("no_temperature", "slime")
    assert d.verdict == "not_decided"
    assert d.causes[0].id == "trainer_temperature"
    assert "raw_logprobs" not in {c.id for c in d.causes}, "k1 is positive"


@pytest.mark.parametrize("framework", ["verl", "slime", "nemo-rl", "trl", "reweigh", "slime_plain"])
def test_growth_cannot_be_told_apart(diagnose, framework):
    d = diagnose("not_delivered", framework)
    family = {"stale_weights", "weight_sync", "update_below_precision"}
    assert d.verdict == "not_decided"
    assert family <= {c.id for c in d.causes}
    assert "numerics" not in {c.id for c in d.causes}, "rounding does not grow"
    assert evidence(d, "growth").low > 3
    open_ = {c.id: c for c in d.cannot_tell}
    assert family <= set(open_)
    assert all(open_[c].experiment and open_[c].needs for c in family)
    assert "looks the same" in open_["weight_sync"].reason


@pytest.mark.parametrize("framework", ["prime-rl", "skyrl"])
def test_a_lag_that_does_not_change_speaks_for_the_sync(diagnose, framework):
    d = diagnose("not_delivered", framework)
    assert d.verdict == "not_decided"
    assert d.causes[0].id == "weight_sync"
    assert confidence(d, "stale_weights") == 0, "the lag is 0 all along"


@pytest.mark.parametrize("framework", ["verl", "slime", "nemo-rl", "prime-rl", "trl", "skyrl"])
def test_a_jump_after_the_first_update(diagnose, framework):
    """Where the lag is logged and 0, the update did not arrive; else the sampler may be one update behind by design."""
    d = diagnose("rolled_back", framework)
    assert d.verdict == ("weight_sync" if framework in ("prime-rl", "skyrl") else "not_decided")
    assert d.causes[0].id == "weight_sync"
    assert evidence(d, "onset").low > 2


@pytest.mark.parametrize("framework", ["prime-rl", "skyrl"])
def test_a_gap_that_follows_the_lag(diagnose, framework):
    d = diagnose("lag", framework)
    assert d.verdict == "stale_weights"
    assert d.causes[0].confidence >= 0.8
    assert evidence(d, "with_lag").low > 0.3


@pytest.mark.parametrize("framework", ["verl", "slime", "nemo-rl", "trl", "slime_plain", "reweigh"])
def test_a_lag_that_is_not_logged_leaves_a_scatter_that_is_no_rounding(diagnose, framework):
    d = diagnose("lag", framework)
    assert d.verdict == "not_decided"
    assert d.causes[0].id == "stale_weights"
    assert evidence(d, "scatter").value > 0.3


@pytest.mark.parametrize("framework", ["verl", "slime", "trl"])
def test_climbs_that_fall_back(diagnose, framework):
    d = diagnose("restarts", framework)
    assert d.verdict == "not_decided"
    assert {c.id for c in d.causes[:2]} == {"stale_weights", "stale_kv"}
    assert evidence(d, "falls_back").value == 3
    assert evidence(d, "period").value == 10


def test_dropout_is_one_of_several(diagnose):
    d = diagnose("dropout", "verl")
    assert d.verdict == "not_decided"
    assert {"dropout", "template_prefix"} <= {c.id for c in d.causes}
    assert all(c.confidence < 0.5 for c in d.causes)


def test_a_largest_difference_near_the_mean_is_no_rounding(tmp_path):
    """TRL under top-p .97: no log ratio is over .03, and their mean is that of rounding."""
    gap = {"sampling__sampling_logp_difference__mean": 0.016}
    d = of(tmp_path, **gap, sampling__sampling_logp_difference__max=0.031)
    assert d.verdict == "not_decided"
    assert d.causes[0].id == "truncated_sampling"
    assert of(tmp_path, **gap, sampling__sampling_logp_difference__max=1.1).verdict == "numerics"


def test_rounding_is_not_told_from_a_lag_that_is_logged(tmp_path):
    columns = {"mismatch_kl__all__mean": 6e-4, "off_policy__mean": lambda t: 0 * t + 2.0}
    d = of(tmp_path, **columns)
    assert d.verdict == "not_decided"
    assert {c.id for c in d.causes} == {"numerics", "stale_weights"}
    assert of(tmp_path, **(columns | {"off_policy__mean": lambda t: 0 * t})).verdict == "numerics"


def test_trl_cannot_test_the_identity(diagnose):
    d = diagnose("raw", "trl")
    assert all(c.confidence < 0.5 for c in d.causes)
    assert any("logged after clamp and mask" in n.rule for n in d.notes)
    open_ = {c.id: c.reason for c in d.cannot_tell}
    assert "k1 and mean_ratio" in open_["raw_logprobs"]


def test_every_finding_has_numbers(diagnose):
    for fault in ("raw", "top_p", "not_delivered", "dropout"):
        for c in diagnose(fault, "verl").causes:
            assert c.evidence
            assert all(e.n and math.isfinite(e.value) for e in c.evidence)
            assert c.rules_out
            assert c.fix["general"]
            assert c.explained_share is None
            assert c.confidence < 0.5 or c.confidence >= 0.8, "shown, or only suspected"


def test_a_few_steps_name_nothing(diagnose):
    d = diagnose("raw", "verl", 3)
    assert all(c.confidence < 0.5 for c in d.causes), "no interval from three steps"


# Cases after public reports


def of(tmp_path, name="run.csv", n=40, **columns):
    """Diagnoses a history of columns; numbers scatter by 4% and are the same in every run of the tests."""
    rng = np.random.default_rng(11)
    steps_ = np.arange(1, n + 1)
    table = {"step": steps_}
    for column, value in columns.items():
        exact = callable(value)
        values = np.asarray(value(steps_) if exact else value * (1 + 0.04 * rng.normal(size=n)), dtype=float)
        table[column.replace("__", "/")] = np.broadcast_to(values, (n,))
    lines = [",".join(table), *(",".join(f"{v:.9g}" for v in row) for row in zip(*table.values(), strict=True))]
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    return diagnose_metrics(tmp_path / name)


@pytest.mark.parametrize(
    ("file", "verdict"),
    [
        ("nemo_sequence_weight.csv", "numerics"),
        ("grows_at_lr_0.csv", "not_decided"),
        ("verl_console.log", "numerics"),
        ("verl_old_names.csv", "numerics"),
        ("verl_only_corr.csv", "not_decided"),
    ],
)
def test_reported_cases(file, verdict):
    d = diagnose_metrics(DATA / "reported" / file)
    assert d.verdict == verdict
    assert all(c.confidence < 0.5 for c in d.causes) or verdict != "not_decided"


def test_what_grows_at_learning_rate_0_is_not_of_the_weights_and_no_rounding():
    d = diagnose_metrics(DATA / "reported" / "grows_at_lr_0.csv")
    ids = {c.id for c in d.causes}
    assert not ids & {"stale_weights", "weight_sync", "update_below_precision", "stale_kv", "numerics"}
    assert not {c.id for c in d.cannot_tell} & {"stale_weights", "weight_sync", "update_below_precision", "stale_kv"}
    assert evidence(d, "learning_rate").value == 0
    assert evidence(d, "with_length").value > 2, "responses grow by as much"
    assert {"engine_decode", "position_encoding"} <= ids


def test_numbers_that_are_not_finite_up_to_the_end_are_said():
    d = diagnose_metrics(DATA / "reported" / "verl_console.log")
    note = next(n for n in d.notes if "not finite" in n.rule)
    assert note.hint.startswith("from step 59 on up to the end of the run")
    assert any("rollout_corr/k3_kl ends before the run" in n.rule and n.place == "step 58" for n in d.notes)


def test_names_of_verl_before_and_now():
    assert recognise(["mismatch/mismatch_kl", "mismatch/mismatch_k3_kl"]) == "verl"
    assert recognise(["mismatch_kl", "mismatch_k3_kl"]) == "slime"
    assert recognise(["training/rollout_actor_probs_pearson_corr"]) == "verl"
    assert recognise(["actor/train_infer_ratio_token_mean@sum"]) == "roll"


@pytest.mark.parametrize(
    ("columns", "left_out"),
    [
        ({"sampling_importance_ratio": 0.06, "gen_kl_error": 2e-3, "token_mult_prob_error": 1.02}, "sampling_imp"),
        ({"sampling_importance_ratio": 2.4, "gen_kl_error": 1e-3}, "sampling_imp"),
        ({"policy__rollout_train_logprobs_abs_diff_mean": 0.012, "policy__is_ratio_mean": 0.3}, "is_ratio_mean"),
        (
            {"reweigh__token__kl_k3": 1e-3, "reweigh__token__mean_abs": 0.01, "reweigh__token__mean_ratio": 0.5},
            "mean_ra",
        ),
    ],
)
def test_a_weight_of_sequences_beside_means_over_tokens_names_no_cause(tmp_path, columns, left_out):
    if "token_mult_prob_error" in columns:  # 1 and a little, not scattered by 4% of 1
        columns = columns | {"token_mult_prob_error": lambda t: 1.02 + 1e-4 * (t % 3)}
    d = of(tmp_path, **columns)
    assert d.verdict == "numerics"
    note = next(n for n in d.notes if "cannot be of the same quantity" in n.rule)
    assert left_out in note.rule
    assert note.count == 40
    assert not {c.id for c in d.causes} & {"vocab_padding", "truncated_sampling", "raw_logprobs", "shift"}


def test_two_signals_that_contradict_each_other_say_nothing(tmp_path):
    d = of(tmp_path, rollout_corr__k3_kl=1e-4, training__rollout_probs_diff_mean=0.2)
    assert d.verdict == "not_decided"
    assert not d.causes, "which of them is wrong is not known"
    assert any("both are left out" in n.hint for n in d.notes)


@pytest.mark.slow
def test_honest_signals_do_not_contradict_each_other(diagnose):
    for fault in ("clean", "raw", "top_p", "shift", "dropout", "top_1", "lag"):
        for framework in ("verl", "slime", "nemo-rl", "skyrl", "reweigh"):
            assert not any("same quantity" in n.rule for n in diagnose(fault, framework).notes), (fault, framework)


@pytest.mark.parametrize(("level", "verdict"), [(0.9993, "numerics"), (0.6, "not_decided")])
def test_a_correlation_alone(tmp_path, level, verdict):
    d = of(tmp_path, training__rollout_actor_probs_pearson_corr=lambda t: level + 1e-4 * (t % 3))
    assert d.verdict == verdict
    assert evidence(d, "level").value == pytest.approx(1 - level, abs=2e-4)


def test_a_size_alone_near_the_end_of_rounding_is_not_decided(tmp_path):
    """k3 of .0025 is fp8, top-p .9 or a bf16 mixture of experts; a second signal or the mean ratio tells more."""
    assert of(tmp_path, mismatch_kl__all__mean=1.1e-3).verdict == "numerics"
    assert of(tmp_path, mismatch_kl__all__mean=2.5e-3).verdict == "not_decided"
    assert (
        of(tmp_path, gen_kl_error=2.5e-3, token_mult_prob_error=lambda t: 1.03 + 1e-4 * (t % 3)).verdict == "numerics"
    )


def test_k1_alone_is_rounding_where_it_is_measured_well(tmp_path):
    assert of(tmp_path, vllm_kl=6e-4).verdict == "numerics"
    assert of(tmp_path, vllm_kl=lambda t: 6e-4 * np.where(t % 2, 9.0, -7.0)).verdict == "not_decided"


def test_growth_that_ends_far_below_rounding_is_not_worth_a_fix(tmp_path):
    d = of(tmp_path, mismatch_kl__all__mean=lambda t: 1e-6 * np.exp(t / 20))
    assert d.verdict == "not_decided"
    assert any("far below what rounding makes" in n.rule for n in d.notes)
    assert d.small
    assert d.benign


def test_a_single_wild_step_changes_no_verdict(tmp_path):
    wild = of(
        tmp_path, rollout_corr__k3_kl=lambda t: np.where(t == 20, 4e8, 1e-3 + 1e-5 * (t % 5)), rollout_corr__kl=1e-3
    )
    assert wild.verdict == "numerics"
    assert any("up to" in n.rule and n.count == 1 for n in wild.notes)


def test_a_fault_that_begins_at_a_step_is_found_from_there_on(tmp_path):
    from functools import partial

    late = partial(lambda a, b, t: np.where(t < 30, a, b) * (1 + 0.02 * np.sin(7.0 * t)))
    d = of(tmp_path, n=60, rollout_corr__kl=partial(late, 1e-3, -0.2), rollout_corr__k3_kl=partial(late, 1e-3, 0.18))
    assert d.verdict == "raw_logprobs"
    assert any("verdict is on the steps from 30" in n.hint for n in d.notes)


def test_steps_of_a_period_are_not_rounding(tmp_path):
    """An engine that gets the weights every fourth step: the gap climbs and falls back."""
    d = of(tmp_path, mismatch_kl__all__mean=lambda t: 4e-4 * (1 + t % 4) * (1 + 0.03 * np.sin(5.0 * t)))
    assert d.verdict == "not_decided"
    assert d.causes[0].id == "stale_weights"
    assert evidence(d, "period").value == 4


def test_what_repeats_with_the_epochs_is_of_the_data(tmp_path):
    level = {"mismatch_kl__all__mean": lambda t: 4e-4 * (1 + t % 8) * (1 + 0.03 * np.sin(5.0 * t))}
    d = of(tmp_path, n=64, **level, progress__epoch=lambda t: t / 8)
    assert d.verdict == "not_decided"
    assert not {c.id for c in d.causes} & {"stale_weights", "stale_kv", "weight_sync"}
    assert evidence(d, "epoch").value == pytest.approx(8)
    assert of(tmp_path, n=64, **level, progress__epoch=lambda t: t / 50).causes[0].id == "stale_weights"


def test_a_gap_that_shrinks_with_the_learning_rate(tmp_path):
    decay = lambda t: np.exp(-t / 15)  # noqa: E731
    d = of(tmp_path, mismatch_kl__all__mean=lambda t: 0.02 * decay(t), optim__lr=lambda t: 1e-5 * decay(t))
    assert d.verdict == "not_decided"
    assert d.causes[0].id == "stale_weights"
    assert evidence(d, "with_learning_rate").value < 0.2


def test_a_gap_that_changes_where_the_run_was_resumed(tmp_path):
    rows = [(i, 1e-3 + 1e-5 * (i % 3)) for i in range(30)] + [(i, 8e-3 + 1e-4 * (i % 3)) for i in range(24, 50)]
    (tmp_path / "r.csv").write_text("step,rollout_corr/k3_kl\n" + "".join(f"{s},{v}\n" for s, v in rows))
    d = diagnose_metrics(tmp_path / "r.csv")
    assert d.verdict == "not_decided"
    assert evidence(d, "jump").value == pytest.approx(8, rel=0.05)
    note = next(n for n in d.notes if "went on from a checkpoint" in n.rule)
    assert note.place == "steps 24"


# Values that are none


def test_zeros_of_trl_without_a_counted_token_are_no_measurement(tmp_path):
    """TRL 1.16 logs a difference of 0 and a ratio of 1 when no token counts; the gap is .25 where some do."""
    none = lambda t: t % 5 != 0  # noqa: E731
    d = of(
        tmp_path,
        sampling__sampling_logp_difference__mean=lambda t: np.where(none(t), 0.0, 0.25),
        sampling__sampling_logp_difference__max=lambda t: np.where(none(t), 0.0, 3.0),
        sampling__importance_sampling_ratio__mean=lambda t: np.where(none(t), 1.0, 0.8),
        loss=lambda t: np.where(none(t), 0.0, 0.1),
    )
    assert d.verdict == "not_decided"
    assert evidence(d, "level").value == pytest.approx(0.25)
    assert next(n for n in d.notes if "nothing shows that a token counted" in n.rule).count == 32


def test_only_zeros_are_no_gap_where_the_loss_is_not_zero(tmp_path):
    column = "sampling__sampling_logp_difference__mean"
    assert of(tmp_path, **{column: lambda t: 0.0 * t, "grad_norm": 0.2}).verdict == "none"
    d = of(tmp_path, **{column: lambda t: 0.0 * t, "grad_norm": lambda t: 0.0 * t})
    assert d.verdict == "not_decided"
    assert not d.causes


def test_invalid_steps_of_verl_are_no_measurement(tmp_path):
    valid = lambda t: (t % 4 != 0).astype(float)  # noqa: E731
    d = of(
        tmp_path,
        training__rollout_probs_diff_valid=valid,
        training__rollout_probs_diff_mean=lambda t: 0.003 * valid(t),
        training__rollout_actor_probs_pearson_corr=lambda t: 0.9994 * valid(t),
        actor__grad_norm=0.2,
    )
    assert d.verdict == "numerics"
    assert evidence(d, "level").n == 30


def test_the_largest_float_is_an_infinity(tmp_path):
    """MLflow 3.18 gives an infinity back as 1.797e308."""
    big = lambda t: np.where(t == 7, 1.7976931348623157e308, 1e-3 + 1e-5 * (t % 3))  # noqa: E731
    d = of(tmp_path, rollout_corr__kl=big, rollout_corr__k3_kl=big)
    assert d.verdict == "numerics"
    assert next(n for n in d.notes if "not finite" in n.rule).count == 1


# What verl itself computes


@pytest.mark.parametrize(("file", "verdict"), [("verl_raw", "raw_logprobs"), ("verl_clean", "numerics")])
def test_numbers_out_of_verl(file, verdict):
    d = diagnose_metrics(DATA / f"{file}.jsonl")
    assert d.verdict == verdict


def test_our_formulas_are_those_of_verl():
    """The loggers of these tests against what verl 0.9.1 computed from the same pairs."""
    rows = [json.loads(line)["data"] for line in (DATA / "verl_raw.jsonl").read_text().splitlines()]
    for row, step in zip(rows, h.run("raw", 16, seed=7), strict=True):
        ours = h.verl(step)
        for name in set(ours) & set(row):
            assert ours[name] == pytest.approx(row[name], rel=2e-4, abs=2e-6), name
    assert len(set(ours) & set(row)) >= 8


# Names


@pytest.mark.parametrize("framework", h.LOGGERS)
def test_frameworks_are_recognised_by_their_names(framework):
    assert recognise(h.LOGGERS[framework](steps("clean")[0])) == framework


@pytest.mark.parametrize(
    ("names", "framework"),
    [
        (["mismatch_kl", "mismatch_k3_kl"], "slime"),
        (["train/train_rollout_kl", "train/train_rollout_logprob_abs_diff"], "slime"),
        (["actor/rollout_corr/kl", "actor/rollout_corr/k3_kl"], "verl"),
        (["rollout_correction/kl", "rollout_correction/k3_kl"], "ms-swift"),
        (["optim/kl_sample_train_v1"], "tinker"),
        (["debug/vllm_vs_local_logprob_diff_mean"], "open-instruct"),
        (["mismatch_kl/all/mean"], "prime-rl"),
        (["reweigh/token/mean_ratio", "reweigh/token/kl_k1", "rollout_corr/kl"], "reweigh"),
    ],
)
def test_other_names(names, framework):
    assert recognise(names) == framework


def test_unknown_names_are_refused_with_what_to_log():
    with pytest.raises(
        ValueError, match=r"(?s)no metric of a gap .*got loss, reward\nhint: log one of token/kl_k1, roll"
    ):
        recognise(["reward", "loss"])
    with pytest.raises(ValueError, match=r"(?s)fit verl and slime equally\nhint: say framework='verl'"):
        recognise(["rollout_corr/kl", "train/mis_kl"])


def test_the_framework_can_be_said(tmp_path):
    file = h.to_csv(tmp_path / "run.csv", steps("clean"), lambda s: h.verl(s) | h.trl(s))
    assert any("sampling_logp" in e.meaning for c in diagnose_metrics(file, "trl").causes for e in c.evidence)
    with pytest.raises(ValueError, match=r"no framework 'torch'\nhint: use one of reweigh, verl"):
        diagnose_metrics(file, "torch")
    with pytest.raises(ValueError, match=r"no metric of the gap that nemo-rl logs\nhint: log one of gen_kl_error"):
        diagnose_metrics(file, "nemo-rl")


def test_every_framework_has_a_usable_name():
    assert all(any(k.usable and k.mark for k in ks) for f, ks in FRAMEWORKS.items() if f != "areal")


def test_the_third_of_k1_k3_and_ratio_is_made(tmp_path):
    file = h.to_csv(tmp_path / "run.csv", steps("raw"), h.nemo_rl)
    k1 = translate(read_history(file)).readings["k1"].series.values
    truth = [h.verl(s)["rollout_corr/kl"] for s in steps("raw")]
    np.testing.assert_allclose(k1, truth, atol=1e-9)


def test_numbers_that_break_algebra_are_left_out(tmp_path):
    """k3 - k1 and the mean ratio of other tokens: the hazard of the identity."""
    other = steps("top_p")
    pairs = iter(range(len(other)))

    def logger(s):
        both = h.reweigh(s)
        return both | {"reweigh/token/mean_ratio": h.skyrl(other[next(pairs)])["policy/is_ratio_mean"]}

    d = diagnose_metrics(h.to_csv(tmp_path / "run.csv", steps("clean"), logger))
    note = next(n for n in d.notes if "reweigh/token/mean_ratio" in n.rule)
    assert note.count == 40
    assert "is not reweigh/token/mean_ratio - 1" in note.rule or "cannot be of the same quantity" in note.rule
    assert d.verdict == "numerics"


# Files


def test_all_kinds_of_file_say_the_same(tmp_path):
    import pandas as pd

    run, logger = steps("raw"), h.verl
    rows = [{"step": i, **logger(s)} for i, s in enumerate(run)]
    want = diagnose_metrics(h.to_csv(tmp_path / "a.csv", run, logger)).causes[0].evidence
    h.to_jsonl(tmp_path / "verl.jsonl", run, logger)
    (tmp_path / "state.json").write_text(json.dumps({"log_history": rows}))
    (tmp_path / "list.json").write_text(json.dumps(rows))
    pd.DataFrame([{"_step": r.pop("step"), "_runtime": 1.0, **r} for r in map(dict, rows)]).to_parquet(
        tmp_path / "w.parquet"
    )
    chart = pd.DataFrame(rows).rename(columns=lambda c: "Step" if c == "step" else f"happy-lake-3 - {c}")
    chart["happy-lake-3 - rollout_corr/kl__MIN"] = 7.0
    chart["happy-lake-3 - rollout_corr/kl__MAX"] = 9.0
    chart.to_csv(tmp_path / "chart.csv", index=False)
    long = [(r["step"], k, v) for r in rows for k, v in r.items() if k != "step"]
    pd.DataFrame(long, columns=["step", "tag", "value"]).to_csv(tmp_path / "long.csv", index=False)
    for name in ("verl.jsonl", "state.json", "list.json", "w.parquet", "chart.csv", "long.csv"):
        got = diagnose_metrics(tmp_path / name).causes[0].evidence
        assert [e.value for e in got] == pytest.approx([e.value for e in want]), name


def test_a_tensorboard_directory(tmp_path):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "run")) as writer:
        for i, s in enumerate(steps("raw")):
            for name, value in h.verl(s).items():
                writer.add_scalar(name, value, i)
    with SummaryWriter(str(tmp_path / "run" / "settings")) as writer:  # as transformers keeps its arguments
        writer.add_text("args", "{}")
    d = diagnose_metrics(tmp_path / "run")
    assert d.verdict == "raw_logprobs"
    assert evidence(d, "k1").n == 40, "every point, no sample of them"
    assert diagnose_metrics(next((tmp_path / "run").glob("events*"))).verdict == "raw_logprobs"
    with SummaryWriter(str(tmp_path / "other")) as writer:
        writer.add_scalar("rollout_corr/kl", 0.0, 1)
    with pytest.raises(ValueError, match=r"several runs: other, run\nhint: give the directory of one"):
        diagnose_metrics(tmp_path)


def test_without_tensorboard_it_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "events.out.tfevents.1.host").write_bytes(b"")
    for name in ("tensorboard", "tensorboard.backend.event_processing", "tensorboard.util"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match="needs the package tensorboard\nhint: pip install tensorboard, or"):
        diagnose_metrics(tmp_path)


def test_sparse_rows(tmp_path):
    """Weights & Biases writes a row for each call of log: metrics of one step stand in several rows."""
    lines = []
    for i, s in enumerate(steps("raw")):
        v = h.slime(s)
        lines.append({"_step": 2 * i, "rollout/reward": 1.0, "train/mis_kl": None})
        lines.append({"_step": 2 * i + 1, **v})
    (tmp_path / "w.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    d = diagnose_metrics(tmp_path / "w.jsonl")
    assert d.verdict == "raw_logprobs"
    assert evidence(d, "k1").n == 40


def test_metrics_without_a_common_step(tmp_path):
    """slime logs rollout/ and train/ at different steps of Weights & Biases: means are compared then."""
    lines = []
    for i, s in enumerate(steps("both_raw")):
        v = h.slime_plain(s)
        for at, part in ((2 * i, "rollout/"), (2 * i + 1, "train/")):
            lines.append({"_step": at} | {k: x for k, x in v.items() if k.startswith(part)})
    (tmp_path / "w.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert diagnose_metrics(tmp_path / "w.jsonl").verdict == "both_raw"


def test_what_is_not_finite_is_counted_with_its_place(tmp_path):
    rows = [{"step": i, **h.verl(s)} for i, s in enumerate(steps("raw"))]
    rows[4]["rollout_corr/kl"] = float("nan")
    rows[9]["rollout_corr/kl"] = float("inf")
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    d = diagnose_metrics(tmp_path / "r.jsonl")
    note = next(n for n in d.notes if n.rule == "rollout_corr/kl is not finite")
    assert (note.count, note.counted) == (2, "steps")
    assert note.hint == "left out; look for what made it so"
    assert note.place.endswith("r.jsonl:5")
    assert evidence(d, "k1").n == 38
    assert d.verdict == "raw_logprobs"


def test_steps_twice_are_counted_and_the_last_counts(tmp_path):
    (tmp_path / "r.csv").write_text("step,vllm_kl\n1,0.1\n2,0.5\n2,0.3\n3,0.2\n")
    d = diagnose_metrics(tmp_path / "r.csv")
    note = next(n for n in d.notes if "several values" in n.rule)
    assert note.count == 1
    assert note.place.endswith("r.csv:4")
    assert evidence(d, "level").value == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", r"a\.csv is empty\nhint: export the history again"),
        ("a.csv", "step,vllm_kl\n", r"a\.csv is empty\nhint"),
        (
            "a.csv",
            "vllm_kl,loss\n1,2\n",
            r"a\.csv:2: no column counts steps, got loss, vllm_kl\nhint: name one of them step",
        ),
        ("a.csv", "step,vllm_kl\n1,0.1\n2\n", r"a\.csv:3: 1 values, but 2 columns\nhint: the file is cut off"),
        ("a.csv", "step,vllm_kl\none,0.1\n", r"a\.csv:2: step must be a number, got 'one'\nhint"),
        ("a.csv", "step,vllm_kl\n1,nan\n2,nan\n", r"a\.csv has no numbers in it\nhint"),
        ("a.csv", "step,reward\n1,1\n2,1\n", r"no metric of a gap between sampler and trainer, got reward\nhint"),
        ("a.csv", "Step,a - vllm_kl,b - vllm_kl\n1,1,1\n", r"a\.csv has several runs: a, b\nhint: export one run"),
        ("a.csv", "Wall time,Step,Value\n1,1,1\n", r"a\.csv:2: one metric without its name.*\nhint: give the log dir"),
        (
            "a.jsonl",
            '{"step": 1, "vllm_kl": 0.1}\n{"step": 2, "vll',
            r"a\.jsonl:2: not JSON: .*\nhint: one object a line",
        ),
        ("a.jsonl", "[1, 2]\n", r"a\.jsonl:1: must be an object, got \[1, 2\]\nhint"),
        ("a.jsonl", '{"vllm_kl": 0.1}\n', r"a\.jsonl:1: no column counts steps, got vllm_kl\nhint"),
        ("a.parquet", "no parquet", r"a\.parquet is no Parquet file"),
        ("a.log", "loss: 3\nstep 4", r"a\.log: no metrics are printed in it\nhint: what can be read is verl's"),
        ("a.yaml", "x", r"a\.yaml: cannot tell what \.yaml is\nhint: give \.csv"),
        ("a.db", "no database, but long enough to be taken for one" * 50, r"a\.db is no database: .*\nhint: export"),
        ("a.csv", "run_id,key,value,step\na,vllm_kl,1,1\nb,vllm_kl,1,1\n", r"several runs: a, b\nhint: export one"),
    ],
)
def test_bad_files_are_refused_with_place_and_remedy(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="(?s)diagnose_metrics: .*" + message):
        diagnose_metrics(tmp_path / name)


# Trackers


def test_training_steps_come_before_calls_of_the_logger(tmp_path):
    """TRL 1.16 with Weights & Biases 0.31: `_step` is 10, 22, 34 at the training steps 2, 4, 6."""
    lines = [{"_step": 0, "_runtime": 1.0, "train/num_tokens": 5}]  # before the first step
    for i in range(1, 13):
        step = {"train/global_step": 2 * i, "train/sampling/sampling_logp_difference/mean": 0.012}
        lines += [{"_step": 12 * i - 2, "_runtime": 2.0 * i, **step}]
        lines += [{"_step": 12 * i - 1, "_runtime": 2.0 * i, "profiling/Time taken": 0.3}]
    (tmp_path / "w.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    series = read_history(tmp_path / "w.jsonl").metrics
    assert series["train/sampling/sampling_logp_difference/mean"].steps.tolist() == list(range(2, 25, 2))
    assert series["profiling/Time taken"].steps.tolist() == list(range(2, 25, 2)), "of the step before it"
    assert "train/num_tokens" not in series


def test_steps_that_frameworks_count_themselves(tmp_path):
    rows = [{"training_step": i, "global_step": 512 * i, "episode": 512 * i, "lr": 1e-6} for i in range(1, 5)]
    (tmp_path / "open.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert read_history(tmp_path / "open.jsonl").metrics["lr"].steps.tolist() == [1, 2, 3, 4], "not episodes"
    both = [{"rollout/step": i, "rollout/log_probs": -0.4} for i in range(3)]
    both += [{"train/step": i, "train/train_rollout_logprob_abs_diff": 0.01} for i in range(6)]
    (tmp_path / "slime.jsonl").write_text("".join(json.dumps(r) + "\n" for r in both))
    series = read_history(tmp_path / "slime.jsonl").metrics
    assert len(series["rollout/log_probs"]) == 3
    assert len(series["train/train_rollout_logprob_abs_diff"]) == 6


@pytest.mark.parametrize(
    ("steps_", "values", "kept", "rule", "count"),
    [
        ([0, 1, 2, 0, 1, 2], [1, 2, 3, 4, 5, 6], {0: 4, 1: 5, 2: 6}, "starts again from its first step", 3),
        ([0, 1, 2, 3, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7], {0: 1, 1: 2, 2: 5, 3: 6, 4: 7}, "goes back to an earlier", 2),
        ([0, 5, 10, 15, 10, 20], [1, 2, 3, 4, 5, 6], {0: 1, 5: 2, 10: 5, 20: 6}, "goes back to an earlier", 2),
        ([1, 3, 2, 4], [1, 3, 2, 4], {1: 1, 2: 2, 3: 3, 4: 4}, None, 0),
        ([0, 0, 0, 0], [4, 3, 2, 1], {0: 4, 1: 3, 2: 2, 3: 1}, "has one step for all values", 4),
        ([1, 1, 2, 2], [4, 3, 2, 1], {1: 3, 2: 1}, "has several values at one step", 2),
    ],
)
def test_runs_that_were_resumed_or_appended(tmp_path, steps_, values, kept, rule, count):
    rows = "".join(f"{s},{v}\n" for s, v in zip(steps_, values, strict=True))
    (tmp_path / "r.csv").write_text(f"step,vllm_kl\n{rows}")
    history = read_history(tmp_path / "r.csv")
    series = history.metrics["vllm_kl"]
    assert dict(zip(series.steps.tolist(), series.values.tolist(), strict=True)) == kept
    if rule is None:
        assert not history.notes
    else:
        (note,) = history.notes
        assert rule in note.rule
        assert note.count == count


def test_exports_that_mangle_names(tmp_path, diagnose):
    want = diagnose("raw", "verl").causes[0].evidence[0].value
    rows = [{"step": i, **h.verl(s)} for i, s in enumerate(steps("raw"))]
    run = "exp - v2 - lr 1e-6"
    changes = {
        "run.csv": lambda c: "Step" if c == "step" else f"{run} - {c}",
        "dots.csv": lambda c: c.replace("/", "."),
        "spaced.csv": lambda c: c.replace("/", " / "),
        "flat.csv": lambda c: c.replace("/", "_"),
        "semi.csv": lambda c: c,
        "tabs.tsv": lambda c: c,
    }
    for name, change in changes.items():
        sep = {"semi.csv": ";", "tabs.tsv": "\t"}.get(name, ",")
        lines = [sep.join(map(change, rows[0])), *(sep.join(map(str, r.values())) for r in rows)]
        (tmp_path / name).write_text("\ufeff" + "\n".join(lines) + "\n")
        d = diagnose_metrics(tmp_path / name)
        assert d.verdict == "raw_logprobs", name
        assert d.causes[0].evidence[0].value == pytest.approx(want), name
    by_step = {c: {str(r["step"]): r[c] for r in rows} for c in rows[0] if c != "step"}
    (tmp_path / "by_step.json").write_text(json.dumps(by_step))
    columns = {c: [r[c] for r in rows] for c in rows[0]}
    (tmp_path / "columns.json").write_text(json.dumps(columns))
    wide = ["metric," + ",".join(f"step_{r['step']}" for r in rows)]
    wide += [f"{c}," + ",".join(str(r[c]) for r in rows) for c in rows[0] if c != "step"]
    (tmp_path / "wide.csv").write_text("\n".join(wide))
    for name in ("by_step.json", "columns.json", "wide.csv"):
        assert diagnose_metrics(tmp_path / name).causes[0].evidence[0].value == pytest.approx(want), name


def test_metrics_of_evaluation_are_not_taken(tmp_path):
    column = "sampling/sampling_logp_difference/mean"
    rows = [f"{i},{0.01},{0.9}" for i in range(10)]
    (tmp_path / "e.csv").write_text("\n".join([f"step,train/{column},eval/{column}", *rows]))
    assert diagnose_metrics(tmp_path / "e.csv").verdict == "numerics"


def test_stores_of_mlflow_and_trackio(tmp_path):
    import sqlite3

    rows = [{"step": i, **h.verl(s)} for i, s in enumerate(steps("raw"))]
    folder = tmp_path / "mlruns" / "0" / "abc"
    for name in [c for c in rows[0] if c != "step"]:
        file = folder / "metrics" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"1700000000 {r[name]} {r['step']}\n" for r in rows))
    mlflow, trackio = sqlite3.connect(tmp_path / "mlflow.db"), sqlite3.connect(tmp_path / "trackio.db")
    mlflow.execute("CREATE TABLE metrics (key, value, timestamp, run_uuid, step, is_nan)")
    values = [(c, r[c], r["step"], "abc", r["step"], False) for r in rows for c in r if c != "step"]
    mlflow.executemany("INSERT INTO metrics VALUES (?, ?, ?, ?, ?, ?)", [*values, ("x", 0.0, 99, "abc", 99, True)])
    trackio.execute("CREATE TABLE metrics (id INTEGER PRIMARY KEY, timestamp, run_name, step, metrics)")
    packed = [(r["step"], "run", json.dumps({c: v for c, v in r.items() if c != "step"})) for r in rows]
    trackio.executemany("INSERT INTO metrics (step, run_name, metrics) VALUES (?, ?, ?)", packed)
    for base in (mlflow, trackio):
        base.commit()
    for place in (folder, tmp_path / "mlruns", tmp_path / "mlflow.db", tmp_path / "trackio.db"):
        d = diagnose_metrics(place)
        assert d.verdict == "raw_logprobs", place
        assert evidence(d, "k1").n == 40
    assert any("x is not finite" in n.rule for n in diagnose_metrics(tmp_path / "mlflow.db").notes)
    trackio.execute("INSERT INTO metrics (step, run_name, metrics) VALUES (1, 'other', '{}')")
    trackio.commit()
    with pytest.raises(ValueError, match=r"several runs: other, run\nhint: export one run"):
        diagnose_metrics(tmp_path / "trackio.db")
    for base in (mlflow, trackio):
        base.close()


def test_points_that_tensorboard_purged_are_gone(tmp_path):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path), filename_suffix=".a") as writer:
        for i in range(20):
            writer.add_scalar("rollout_corr/kl", 9.0 if i >= 10 else 1e-3, i)
    with SummaryWriter(str(tmp_path), filename_suffix=".b", purge_step=10) as writer:
        for i in range(10, 20, 3):
            writer.add_scalar("rollout_corr/kl", 2e-3, i)
    series = read_history(tmp_path).metrics["rollout_corr/kl"]
    assert series.steps.tolist() == [*range(10), 10, 13, 16, 19]
    assert series.values.max() == pytest.approx(2e-3)


# Consoles

_ITEMS = {"actor/entropy": 0.41, "actor/grad_norm": 0.3, "rollout_corr/kl": 9e-4, "rollout_corr/k3_kl": 1.1e-3}


def _verl_line(step, wrapped=False):
    items = [f"{k}:{f'np.float64({v})' if wrapped else v}" for k, v in _ITEMS.items()]
    return " - ".join([f"step:{step}", *items, f"training/global_step:{step}", "val-core/x/mean@3:0.5"])


def _hard(line, width):
    return "\n".join(line[i : i + width] for i in range(0, len(line), width))


@pytest.mark.parametrize(
    "line",
    [
        _verl_line,
        lambda i: _verl_line(i, wrapped=True),
        lambda i: f"\x1b[36m(TaskRunner pid=42)\x1b[0m {_verl_line(i)}",
        lambda i: f"(main_task pid=42, ip=10.0.0.3) {_verl_line(i)} [repeated 2x across cluster]",
        lambda i: f"Training Progress:   1%|          | {i}/140 [00:49<1:53:43, 49.09s/it]{_verl_line(i)}",
        lambda i: _hard(_verl_line(i), 80),
        lambda i: _hard(_verl_line(i), 37),
        lambda i: "\n".join(f"(TaskRunner pid=42) {part}" for part in _hard(_verl_line(i), 61).split("\n")),
        lambda i: _verl_line(i).replace(" - rollout_corr/k3", " -\nrollout_corr/k3"),
        lambda i: _verl_line(i).replace(" - rollout_corr", "\n - rollout_corr"),
        lambda i: f"INFO 08-05 09:08:37 [config.py:717] step 3: done\n{_verl_line(i)}\nINFO 08-05 saved global_step:9",
    ],
)
def test_lines_of_verl(tmp_path, line):
    (tmp_path / "a.log").write_text("\n".join(line(i) for i in range(1, 13)) + "\n")
    history = read_history(tmp_path / "a.log")
    for name, value in _ITEMS.items():
        series = history.metrics[name]
        assert series.steps.tolist() == list(range(1, 13)), name
        assert series.values == pytest.approx(value), name
    assert diagnose_metrics(tmp_path / "a.log").verdict == "numerics"


_TRL = {"loss": 0.01, "grad_norm": 0.4, "sampling/sampling_logp_difference/mean": 0.012, "entropy": 0.3}


@pytest.mark.parametrize(
    ("printed", "has_step"),
    [
        (lambda i: str({**_TRL, "epoch": i / 100}), False),
        (lambda i: str({k: str(v) for k, v in {**_TRL, "epoch": i / 100}.items()}), False),
        (lambda i: f"  3%|▎ | {i}/100 [00:10<05:00,  3.1s/it]{ {**_TRL, 'epoch': i / 100} }", False),
        (lambda i: f"\r 3%| | {i}/100 [00:10<05:00]\r{ {**_TRL, 'epoch': i / 100} }", False),
        (lambda i: _hard(str({**_TRL, "epoch": i / 100}), 70), False),
        (lambda i: str({**_TRL, "epoch": i / 100}).replace(", 'samp", ",\n 'samp"), False),
        (lambda i: f"[2026-01-01 00:00:00] model.py:918 - step {i}: {_TRL}", True),
        (lambda i: f"\x1b[36m(Actor pid=1)\x1b[0m INFO ✨ Global step {i}: {_TRL}", True),
        (lambda i: json.dumps({**_TRL, "system/step": i}), True),
        (
            lambda i: "{" + ",\n ".join(f"'{k}': '{v}'" for k, v in {**_TRL, "trainer/global_step": i}.items()) + "}",
            True,
        ),
        (lambda i: str(_TRL | {"grad_norm": "X", "step": i}).replace("'X'", "tensor(0.4, device='cuda:0')"), True),
    ],
)
def test_printed_dicts(tmp_path, printed, has_step):
    config = "{'model': {'path': 'x', 'dtypes': ['bf16',\n 'fp32']}, 'steps': 3}"
    (tmp_path / "a.txt").write_text("\n".join([config, *(printed(i) for i in range(1, 13))]) + "\n")
    history = read_history(tmp_path / "a.txt")
    for name, value in _TRL.items():
        assert history.metrics[name].steps.tolist() == list(range(1, 13)), name
        assert history.metrics[name].values == pytest.approx(value), name
    assert any("without a step" in n.rule for n in history.notes) is not has_step
    assert diagnose_metrics(tmp_path / "a.txt").verdict == "numerics"


def test_two_runs_in_one_log_of_dicts(tmp_path):
    """Epochs that go back are another run: the last one counts."""
    rows = [(0.9, e / 100) for e in range(1, 9)] + [(0.01, e / 100) for e in range(1, 13)]
    lines = [str({**_TRL, "sampling/sampling_logp_difference/mean": v, "epoch": e}) for v, e in rows]
    (tmp_path / "a.log").write_text("\n".join(lines))
    d = diagnose_metrics(tmp_path / "a.log")
    assert evidence(d, "level").value == pytest.approx(0.01)
    assert any("starts again" in n.rule and n.count == 8 for n in d.notes)


@pytest.mark.parametrize(
    ("framework", "text", "name", "value"),
    [
        (
            "prime-rl",
            "12:00:01 SUCCESS Step {i} |  1m 3s | Loss 0.0012 | Entropy 0.3012 | Mismatch KL 0.0012 | "
            "Grad. Norm 0.2000 | LR 1.00e-06 | Throughput 100 tokens/s | MFU 3.1% | Peak Mem. 20.0 GiB\n"
            "DEBUG Micro Step 3/4 | Loss 9.0000 | Entropy 9.0000 | Mismatch KL 9.0000",
            "mismatch_kl/all/mean",
            0.0012,
        ),
        (
            "nemo-rl",
            "========================= Step {i}/100 =========================\n📊 Training Results:\n  • Loss: 0.0100\n"
            "  • Generation KL Error: 0.0017\n  • Mean Generation Length: 812.0000\n  • Total step time: 9.10s",
            "train/gen_kl_error",
            0.0017,
        ),
        (
            "areal",
            "20260101 StatsLogger INFO: Epoch 1/10 Step {i}/100 Train step {i}/1000 done.\n╒═══╤═══╤═══╤═══╕\n"
            "│ ppo_actor/update/behave_approx_kl/avg │ -1.2000e-03 │ ppo_actor/grad_norm │ 3.0000e-01 │\n╘═══╧═══╛",
            "ppo_actor/update/behave_approx_kl/avg",
            -0.0012,
        ),
        (
            "open-instruct",
            " debug  vllm_vs_local_logprob_diff_mean: 0.02 | vllm_vs_local_logprob_diff_max: 3.2    \n"
            " loss   policy_avg: 0.1                                                               \n"
            " other  episode: 512 | global_step: 512 | training_step: {i} | lr: 1e-06              \n\nsaved",
            "debug/vllm_vs_local_logprob_diff_mean",
            0.02,
        ),
    ],
)
def test_summaries_of_frameworks(tmp_path, framework, text, name, value):
    (tmp_path / "a.out").write_text("\n".join(text.replace("{i}", str(i)) for i in range(1, 11)))
    history = read_history(tmp_path / "a.out")
    assert recognise(history.metrics) == framework
    assert history.metrics[name].steps.tolist() == list(range(1, 11))
    assert history.metrics[name].values == pytest.approx(value)


def test_a_gap_printed_as_0_is_below_what_is_printed(tmp_path):
    line = "SUCCESS Step {} | 1m | Loss 0.0012 | Entropy 0.3012 | Mismatch KL {:.4f} | LR 1.00e-06"
    (tmp_path / "a.log").write_text("\n".join(line.format(i, 1e-4 * (i % 2)) for i in range(40)))
    d = diagnose_metrics(tmp_path / "a.log")
    assert not any("nothing shows" in n.rule for n in d.notes), "rounded, not missing"
    assert d.verdict != "stale_weights"


def test_places_where_nothing_is(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*gone\.csv\nhint"):
        diagnose_metrics(tmp_path / "gone.csv")
    with pytest.raises(ValueError, match=r"no event file under .*\nhint: give the directory that holds"):
        diagnose_metrics(tmp_path)


def test_nested_names():
    assert flat({"a": {"b": {"c": 1}}, "d": 2}) == {"a/b/c": 1, "d": 2}


# Statistics of dependent steps


def test_intervals_hold_for_steps_that_depend_on_each_other():
    """First-order correlation 0.7: an interval for independent steps would cover 60%, that of blocks over 80%."""
    rng = np.random.default_rng(3)
    covered = naive = 0
    for _ in range(400):
        x = np.zeros(200)
        for i in range(1, 200):
            x[i] = 0.7 * x[i - 1] + rng.normal()
        e = mean(x)
        covered += e.low < 0 < e.high
        naive += abs(x.mean()) < 1.96 * x.std() / math.sqrt(200)
    assert covered > 330
    assert naive < 290


def test_no_interval_from_few_steps():
    e = mean(np.array([1.0, 2.0, 3.0]))
    assert e.ends == (None, None)
    assert mean(np.array([])).n == 0


def test_fold_of_exact_growth():
    steps_ = np.arange(50.0)
    e = fold(Series(steps_, 1e-3 * np.exp(0.05 * steps_)))
    assert e.value == pytest.approx(math.exp(0.05 * 49))
    assert e.low == pytest.approx(e.high)
    assert not math.isfinite(fold(Series(steps_[:3], steps_[:3] + 1)).value)


def test_two_trends_alone_do_not_correlate():
    rng = np.random.default_rng(0)
    t = np.arange(60.0)
    a, b = Series(t, t + rng.normal(size=60)), Series(t, 2 * t + rng.normal(size=60))
    e = correlation(a, b)
    assert e.low < 0 < e.high
    assert correlation(a, Series(t, np.full(60, 2.0))).ends == (None, None)


@pytest.mark.filterwarnings("error")
def test_steps_that_no_float_holds_say_nothing_of_the_course():
    steps = np.arange(60.0)
    steps[30] = np.inf
    assert math.isnan(fold(Series(steps, np.full(60, 0.1))).value)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [1e300, -1e300, 0.0])
def test_laws_of_means_take_any_number(value):
    some = np.array([0.1, value])
    for law in _LAWS:
        assert law.contradicts(some, np.array([value, 0.1]), 0.1).shape == (2,)
