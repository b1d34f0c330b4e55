"""Kinds of cases that people reported: what is said of each, and that a column more or less does not turn it round."""

import warnings

import numpy as np
import pytest
from doctor_records import check, diagnosed, diagnosis, log_softmax, noisy, temperature, top_p, world

from reweigh.doctor import doctor
from reweigh.records.schema import RunInfo

COLUMNS = ("token_ids", "entropy_pi", "prompt_length", "prompt_id")


def with_noise(rows, where, size, seed=0):
    """Rows whose log_pi is off by noise on some tokens, about as rounding of scores makes it: `where(row, place)`."""
    g = np.random.default_rng(seed)
    out = []
    for i, row in enumerate(rows):
        p = np.exp(row["log_pi"])
        sd = size * (1 - p)
        off = sd * g.normal(size=len(p)) - sd**2 / 2  # so that the mean ratio stays 1
        on = np.array([where(i, place) for place in range(len(p))])
        out.append({**row, "log_pi": np.minimum(np.where(on, row["log_pi"] + off, row["log_mu"]), 0.0)})
    return out


def without(rows, *names):
    return [{name: x for name, x in row.items() if name not in names} for row in rows]


def test_a_gap_in_the_responses_of_a_few_prompts_is_said_before_any_cause():
    rows = with_noise(world(0, prompts=12, each=4, length=60), lambda i, place: True, 0.01)
    loud = with_noise(rows, lambda i, place: i // 4 in (3, 7), 0.8, seed=1)
    rows = [b if i // 4 in (3, 7) else a for i, (a, b) in enumerate(zip(rows, loud, strict=True))]
    found = diagnosed(rows)
    check(found)
    assert found.spread is not None
    assert (found.spread.responses, found.spread.of) == (8, 48)
    assert found.spread.shared["prompt"] == ("p3", "p7")
    assert found.spread.share > 0.9
    assert not found.decided
    assert found.causes[0].id == "engine_decode"
    assert "position_encoding" in found.ruled_out


@pytest.mark.parametrize("at", [16, 40, 64])
def test_a_step_is_no_slope_and_its_place_is_said(at):
    rows = with_noise(world(1, prompts=16, each=4, length=120), lambda i, place: place >= at, 0.1)
    found = diagnosed(rows)
    check(found)
    assert f"begins or ends at token {at}" in found.ruled_out["position_encoding"]
    assert found.verdict != "position_encoding"
    assert found.causes[0].id == "engine_decode"


def test_what_returns_at_each_block_has_its_period_said():
    rows = with_noise(world(2, prompts=16, each=4, length=200), lambda i, place: True, 0.01)
    loud = with_noise(rows, lambda i, place: True, 0.5, seed=3)
    rows = [
        {**a, "log_pi": np.where(np.arange(len(a["log_pi"])) % 32 == 0, b["log_pi"], a["log_pi"])}
        for a, b in zip(rows, loud, strict=True)
    ]
    found = diagnosed(rows)
    check(found)
    assert found.ruled_out["position_encoding"] == "the gap returns every 32 tokens"


@pytest.mark.parametrize("prompt", [None, 30, 3000])
def test_a_slope_by_place_is_named_whatever_the_length_of_prompts(prompt):
    rows = world(4, prompts=24, each=4, length=150)
    g = np.random.default_rng(5)
    out = []
    for row in rows:
        p = np.exp(row["log_pi"])
        sd = 0.02 * np.sqrt(np.arange(len(p)) + 1) * (1 - p)
        off = sd * g.normal(size=len(p)) - sd**2 / 2
        out.append(
            {**row, "log_pi": np.minimum(row["log_pi"] + off, 0.0)} | ({"prompt_length": prompt} if prompt else {})
        )
    found = diagnosed(without(out, "entropy_pi"))
    check(found)
    assert found.verdict == "position_encoding"


def test_few_tokens_leave_candidates_and_no_verdict():
    rows = world(6, prompts=4, each=1, length=8, sample=temperature(0.6), mu=log_softmax, pi=temperature(0.6))
    found = diagnosed(rows)
    check(found)
    assert found.tokens < 60
    assert found.verdict == "not_decided"
    assert "numerics" not in {one.id for one in found.causes}


def test_truncation_is_named_without_entropies():
    found = diagnosed(without(world(7, prompts=60, length=60, sample=top_p(0.6)), "entropy_pi", "token_ids"))
    check(found)
    assert found.verdict == "truncated_sampling"
    assert not set(found.causes[0].evidence) & {None}
    assert "trainer_temperature" not in {one.id for one in found.causes if one.confidence >= 0.8}


@pytest.mark.parametrize("column", ["log_mu", "log_pi"])
@pytest.mark.parametrize(
    "unit", [np.exp, lambda x: x / np.log(10), lambda x: x / np.log(2), lambda x: -x, lambda x: 100 * np.exp(x)]
)
def test_a_column_in_another_unit_is_named(column, unit):
    rows = [{**row, column: unit(row[column])} for row in world(8, prompts=20, pi=noisy(9, 0.05))]
    found = diagnosed(rows)
    check(found)
    assert found.verdict == "wrong_units"
    assert [one.id for one in found.causes] == ["wrong_units"]
    assert column in found.causes[0].evidence[1].meaning


@pytest.mark.parametrize("unit", [np.exp, lambda x: x / np.log(10), lambda x: x / np.log(2), lambda x: 0.01 * x])
def test_both_columns_in_another_unit_are_named(unit):
    rows = world(8, prompts=60, pi=noisy(9, 0.02))
    found = diagnosed([{**row, "log_mu": unit(row["log_mu"]), "log_pi": unit(row["log_pi"])} for row in rows])
    check(found)
    assert found.verdict == "wrong_units"
    assert [one.id for one in found.causes] == ["wrong_units"]


@pytest.mark.parametrize("t", [0.4, 0.7, 1.4, 2.3])
def test_a_temperature_is_no_unit(t):
    for rows in (
        world(10, prompts=30, sample=temperature(t), pi=log_softmax),
        world(11, prompts=30, sample=temperature(t), mu=log_softmax, pi=temperature(t)),
    ):
        assert "wrong_units" not in {one.id for one in diagnosed(rows).causes}


def test_the_engine_alone_is_looked_at(tmp_path):
    rows = with_noise(world(12, prompts=16, each=4, length=120), lambda i, place: place >= 32, 0.3)
    alone = [{**{k: v for k, v in row.items() if k != "log_pi"}, "log_mu_prefill": row["log_pi"]} for row in rows]
    found = diagnosis(tmp_path, without(alone, "entropy_pi"))
    assert found.verdict == "engine_decode"
    assert any("stands in for log_pi" in note.rule for note in found.notes)
    quiet = [{**row, "log_mu_prefill": row["log_mu"]} for row in alone]
    assert diagnosis(tmp_path, without(quiet, "entropy_pi")).benign


def test_a_gap_that_is_gone_at_every_second_step_is_nothing_steady():
    rows = world(13, prompts=60, each=4, length=30)
    other = noisy(14, 0.3)
    rows = [
        {**a, "step": i // 40, "log_pi": b["log_pi"] if (i // 40) % 2 else a["log_pi"]}
        for i, (a, b) in enumerate(zip(rows, world(13, prompts=60, each=4, length=30, pi=other), strict=True))
    ]
    found = diagnosed(rows)
    check(found)
    for cause in ("trainer_temperature", "position_encoding", "quantised_rollout", "weight_sync"):
        assert cause in found.ruled_out
    assert found.verdict in ("not_decided", "stale_weights")


def test_sizes_are_put_on_temperature_one():
    """An honest engine in bfloat16 at temperature .5: scores are divided by it, and what rounds them with them."""
    rows = with_noise(world(15, prompts=40, each=4), lambda i, place: True, 0.13)
    info = {"dtype_mu": "bfloat16", "dtype_pi": "float32"}
    assert diagnosed(rows, RunInfo(**info, temperature=0.5)).verdict == "numerics"
    assert diagnosed(rows, RunInfo(**info)).verdict != "numerics"


def test_float32_on_both_sides_is_neither_rounding_nor_fewer_bits():
    rows = with_noise(world(16, prompts=40, each=4), lambda i, place: True, 0.1)
    found = diagnosed(rows, RunInfo(dtype_mu="float32", dtype_pi="float32"))
    check(found)
    assert {"numerics", "quantised_rollout"} <= set(found.ruled_out)


KINDS = {
    "raw": lambda: world(20, sample=temperature(0.7), mu=log_softmax, pi=temperature(0.7)),
    "truncated": lambda: world(21, sample=top_p(0.8)),
    "temperature": lambda: world(22, sample=temperature(0.7)),
    "rounding": lambda: world(23, pi=noisy(24, 0.02)),
    "few prompts": lambda: with_noise(world(25, prompts=12), lambda i, place: i // 4 == 5, 0.8),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_true_column_more_takes_no_name_away_and_one_less_adds_none(kind):
    rows = [{**row, "prompt_length": 20 + i % 7} for i, row in enumerate(KINDS[kind]())]
    whole = diagnosed(rows)
    for name in COLUMNS:
        less = diagnosed(without(rows, name))
        check(less)
        if less.decided and not less.benign:
            assert whole.verdict == less.verdict, (name, less.verdict, whole.verdict)


def test_examples_of_real_engines_are_rounding_or_fewer_bits():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, verdict in (("vllm_bfloat16", "numerics"), ("llama_cpp_q4_1", "quantised_rollout")):
            assert doctor(f"examples/records/{name}.parquet").verdict == verdict
