"""Matrices of probes on a tiny model: what each option carries, arms that fail, going on, and how arms are laid out."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tomllib
from test_probe import folder  # noqa: F401 - a fixture: a tiny model on disk

from reweigh.__main__ import main
from reweigh.audit import audit
from reweigh.audit.known import KnownRun
from reweigh.probe.engine import ProbeError, SamplingSettings, load_prompts
from reweigh.probe.engine_openai import Retry
from reweigh.probe.levels import measure_levels
from reweigh.probe.matrix import (
    Arm,
    ArmFailure,
    ArmResult,
    MatrixPlan,
    Setup,
    analyse,
    arms_of,
    parse_vary,
    read_arms,
    run_matrix,
    token_kl,
)
from reweigh.probe.part import check_answers, run_part
from reweigh.probe.run import EngineName, EngineOptions, Rollout, ScorerOptions
from reweigh.records import read_info
from reweigh.report.matrix import page, to_dict


def setup_of(model: Path, **args: object) -> Setup:
    engine = EngineOptions(EngineName.TRANSFORMERS, str(model), "bfloat16", batch_size=8, args=args)
    return Setup(engine, SamplingSettings(max_tokens=10, n=1), ScorerOptions(None))


def silent(*_: object) -> None:
    """Tell nobody."""


def plan_of(tmp_path: Path, base: Setup, arms: list[Arm], **more: object) -> MatrixPlan:
    return MatrixPlan(tmp_path / "m", base, arms, load_prompts(limit=8), isolate=False, **more)  # type: ignore[arg-type]


# the numbers -------------------------------------------------------------------------------------------------------


def test_the_gap_of_another_engine_s_tokens_is_its_own():
    """Of a vocabulary of three, drawn by a third law: the mean over that law is KL(mu||pi), whatever the law."""
    mu, pi, q = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.2, 0.3]), np.array([0.2, 0.3, 0.5])
    true = float((mu * np.log(mu / pi)).sum())
    found = token_kl(np.log(pi), np.log(mu), np.log(q))
    assert (found >= 0).all()
    assert float((q * found).sum()) == pytest.approx(true)
    with np.errstate(divide="ignore"):
        cut = np.log(np.array([0.75, 0.25, 0.0]))  # the engine cannot draw the third
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.2)
    assert float((q * token_kl(np.log(pi), cut, np.log(q))).sum()) == pytest.approx(expected)


def measured(name: str, changes: dict, gaps: list[float], seconds: float = 1.0) -> ArmResult:
    prompts = {f"p{i}": (gap * 10, gap * 10, 10) for i, gap in enumerate(gaps)}
    return ArmResult(Arm(name, changes), Path(f"{name}.parquet"), True, prompts, {}, (seconds, 0.0))


def test_shares_pairs_and_what_is_left_by_hand():
    """Gaps of 8, 4, 6, and 1 for both: the pair takes off 1 more than each alone, and each carries half of that."""
    noise = [-0.2, 0.0, 0.2, 0.0]
    rows = [("base", {}, 8.0), ("a=1", {"a": 1}, 4.0), ("b=1", {"b": 1}, 6.0), ("a=1 + b=1", {"a": 1, "b": 1}, 1.0)]
    found = analyse([measured(name, changes, [x + e for e in noise]) for name, changes, x in rows])
    first, second = found.effects
    assert (first.names, first.removed.value, first.share.value) == (("a=1",), pytest.approx(4), pytest.approx(0.5))
    assert first.carried is not None
    assert first.carried.value == pytest.approx(4.5 / 8)
    assert second.share.value == pytest.approx(0.25)
    assert first.removed.low == pytest.approx(4.0)  # the noise is shared, and so not in the difference
    [pair] = found.interactions
    assert pair.removed.value == pytest.approx(1.0)
    assert found.together is not None
    assert found.together.share.value == pytest.approx(7 / 8)
    assert found.unexplained is not None
    assert found.unexplained.value == pytest.approx(0.0, abs=1e-12)
    assert found.cheapest is first
    json.dumps(to_dict(found), allow_nan=False)


def test_intervals_of_shares_by_a_bootstrap_of_prompts():
    generator = np.random.default_rng(0)
    base, other = generator.gamma(2.0, 1.0, 200), generator.gamma(2.0, 0.5, 200)
    found = analyse([measured("base", {}, [*base]), measured("a=1", {"a": 1}, [*other])])
    draws = generator.integers(0, 200, (4000, 200))
    shares = 1 - other[draws].mean(1) / base[draws].mean(1)
    low, high = np.quantile(shares, [0.025, 0.975])
    assert found.effects[0].share.low == pytest.approx(low, abs=0.015)
    assert found.effects[0].share.high == pytest.approx(high, abs=0.015)


def test_the_cheapest_of_those_that_help():
    rows = [
        measured("base", {}, [8.0, 8.4, 8.2]),
        measured("a=1", {"a": 1}, [1.0, 1.2, 1.1], seconds=5.0),
        measured("b=1", {"b": 1}, [3.0, 3.2, 3.3], seconds=1.1),
        measured("c=1", {"c": 1}, [7.0, 7.3, 7.2], seconds=0.5),
    ]
    found = analyse(rows)
    assert found.cheapest is not None
    assert found.cheapest.names == ("b=1",)
    none = analyse([rows[0], measured("a=1", {"a": 1}, [9.0, 7.0, 8.6])])
    assert none.cheapest is None
    assert "no single change is sure" in none.why


# layouts -----------------------------------------------------------------------------------------------------------


def test_arms_of_each_design():
    factors = [parse_vary(x) for x in ("dtype=bfloat16,float32,float16", "kv-cache-dtype=fp8,auto", "batch_size=8,1")]
    assert factors[1].name == "kv_cache_dtype"
    assert [len(arms_of(factors, design)) for design in ("one", "pairs", "full")] == [5, 9, 12]
    names = [arm.name for arm in arms_of(factors, "pairs")]
    assert names[0] == "base"
    assert "dtype=float32 + kv_cache_dtype=auto" in names
    assert names[-1] == "dtype=float32 + kv_cache_dtype=auto + batch_size=1"


@pytest.mark.parametrize("text", ["dtype", "dtype=", "dtype=float32", "=a,b", "dtype=a,a"])
def test_vary_that_varies_nothing(text):
    with pytest.raises(ProbeError, match=r"--vary: must be NAME=a,b .*\nhint: "):
        parse_vary(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[arm]\n", "not TOML"),
        ("[arms]\n", "unknown arms"),
        ("[[arm]]\ndtype = 'float32'\n", "arm 1: name must be a word of its own, got None"),
        ("[[arm]]\nname = 'a'\n[[arm]]\nname = 'a'\n", "arm 2: name must be a word of its own, got 'a'"),
        ("[[arm]]\nname = 'a'\ndtype = ['x']\n", "arm 1: dtype must be a text"),
    ],
)
def test_files_of_arms_that_are_refused(tmp_path, text, message):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ProbeError, match="hint: ") as error:
        read_arms(tmp_path / "a.toml")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "fp3"}, "must be one of"),
        ({"batch_size": "many"}, "batch_size: must be a number over 0"),
        ({"trainer_dtype": "fp3"}, "trainer_dtype: must be one of"),
        ({"engine": "magic"}, "engine: must be one of"),
        ({"kv_cache": "fp8"}, "does not take kv_cache=fp8"),
        ({"temperature": 0}, "temperature: must be a number over 0"),
    ],
)
def test_a_wrong_option_is_told_before_any_work(folder, tmp_path, changes, message):  # noqa: F811
    plan = plan_of(tmp_path, setup_of(folder), [Arm("base"), Arm("x", changes)])
    with pytest.raises(ProbeError, match="hint: ") as error:
        run_matrix(plan, silent)
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


# runs --------------------------------------------------------------------------------------------------------------


def test_a_matrix_finds_the_cache_and_goes_on(folder, tmp_path, monkeypatch):  # noqa: F811
    """Each arm's records hold the base's tokens, and a second run measures nothing that is there."""
    factors = [parse_vary("kv_cache_dtype=fp8,auto"), parse_vary("trainer_dtype=float32,bfloat16")]
    base = setup_of(folder, kv_cache_dtype="fp8")
    plan = plan_of(tmp_path, base, arms_of(factors, "pairs"))
    told: list[object] = []
    results = run_matrix(plan, lambda *x: told.append(x))
    found = analyse(results)
    assert [x.arm.name for x in found.measured] == [arm.name for arm in plan.arms]
    assert len(told) == 2 * len(plan.arms)
    gaps = {name: x.value for name, x in found.gaps.items()}
    assert gaps["kv_cache_dtype=auto"] < 0.5 * gaps["base"]
    assert all(x.paired for x in found.measured)
    assert found.effects[0].names == ("kv_cache_dtype=auto",)
    held = audit(found.measured[0].records, estimators={}).levels["token"]
    assert held["kl_k3"].sample == pytest.approx(gaps["base"], rel=1e-4)
    assert held["mean_abs"].value == pytest.approx(found.sizes["base"].value, rel=1e-4)
    assert set(found.measured[0].parts) == {"all", "decode_prefill", "prefill_trainer", "trainer_itself"}
    assert "<table>" in page(found)

    def never(job):
        raise AssertionError(f"measured again: {job['out']}")

    monkeypatch.setattr("reweigh.probe.matrix.run_part", never)
    assert run_matrix(plan, silent) == results
    other = replace(plan, base=setup_of(folder))
    with pytest.raises(ProbeError, match="holds a matrix of another base"):
        run_matrix(other, silent)


def test_arms_that_fail_are_reported_and_the_rest_is_measured(folder, tmp_path, monkeypatch):  # noqa: F811
    arms = [
        Arm("base"),
        Arm("down", {"engine": "openai", "url": "http://127.0.0.1:9/v1"}),
        Arm("no vllm here", {"engine": "vllm", "python": sys.executable}),
        Arm("no such program", {"engine": "openai", "start": "/nowhere/llama-server"}),
        Arm("other temperature", {"temperature": 0.7}),
    ]
    plan = replace(plan_of(tmp_path, setup_of(folder), arms), seconds=0.5)
    monkeypatch.setattr("reweigh.probe.engine_openai.Retry", lambda: Retry(times=1, first=0.001))
    results = run_matrix(plan, silent)
    kinds = [type(x).__name__ for x in results]
    assert kinds == ["ArmResult", "ArmFailure", "ArmFailure", "ArmFailure", "ArmResult"]
    reasons = {x.arm.name: x.reason for x in results if isinstance(x, ArmFailure)}
    assert "cannot connect" in reasons["down"]
    assert reasons["no vllm here"] == "slow: not done after 0.5 s"
    assert "cannot run" in reasons["no such program"]
    found = analyse(results)
    assert not found.measured[1].paired  # tokens drawn at one temperature are not those of another
    assert {x["name"] for x in to_dict(found)["arms"] if "failed" in x} == set(reasons)


def test_an_arm_that_runs_out_of_memory_or_breaks_does_not_end_it(folder, tmp_path, monkeypatch):  # noqa: F811
    errors = iter([MemoryError("no room"), RuntimeError("CUDA out of memory")])

    def breaks(job):
        if job["kind"] == "engine" and job["engine"]["dtype"] == "float16":
            raise next(errors)
        run_part(job)

    monkeypatch.setattr("reweigh.probe.matrix.run_part", breaks)
    arms = [Arm("base"), Arm("a", {"dtype": "float16"}), Arm("b", {"dtype": "float16", "batch_size": 2})]
    results = run_matrix(plan_of(tmp_path, setup_of(folder), [*arms, Arm("c", {"dtype": "float32"})]), silent)
    assert [getattr(x, "reason", None) for x in results] == [
        None,
        "MemoryError: no room",
        "RuntimeError: CUDA out of memory",
        None,
    ]


@pytest.mark.parametrize(
    ("log_mu", "message"),
    [
        ([-0.5, 0.3], "a log-prob of 0.3"),
        ([-0.5, math.nan], "a log-prob of nan"),
        ([-0.5, -math.inf], "50% of the tokens have log-prob minus infinity"),
        ([0.0] * 20, "each of 20 tokens has the log-prob 0"),
        ([], "no log-probs"),
    ],
)
def test_garbage_answers(log_mu, message):
    with pytest.raises(ProbeError, match="garbage: ") as error:
        check_answers([Rollout("a", "p", [1], [2] * len(log_mu), log_mu)])
    assert message in str(error.value)
    check_answers([Rollout("a", "p", [1], [2, 3], [-0.5, 0.0])])


@pytest.mark.slow
def test_the_command(folder, tmp_path, capsys):  # noqa: F811
    """With parts in processes of their own."""
    out = tmp_path / "m"
    args = ["--model", folder, "--num-prompts", 3, "--samples-per-prompt", 1, "--max-tokens", 4, "--matrix", out]
    command = ["probe", *map(str, args), "--vary", "trainer_dtype=float32,bfloat16"]
    assert main([*command, "--json"]) == 0
    result = capsys.readouterr()
    found = json.loads(result.out)
    assert [x["name"] for x in found["arms"]] == ["base", "trainer_dtype=bfloat16"]
    assert "arm 2 of 2: trainer_dtype=bfloat16: KL " in result.err
    assert (out / "result.html").exists()
    assert main(command) == 0  # which only reads what is there
    assert "what each change takes off" in capsys.readouterr().out
    assert main([*command, "--num-prompts", "2"]) == 2
    assert "holds a matrix of another base or other prompts" in capsys.readouterr().err


def test_levels_are_rows_of_the_table(folder, tmp_path):  # noqa: F811
    told: list[tuple[int, str | None]] = []
    base = setup_of(folder, kv_cache_dtype="fp8")
    more = {"command": "reweigh levels", "isolate": False, "told": lambda *x: told.append(x)}
    rows = measure_levels(base, load_prompts(limit=4), [3, 8], tmp_path / "levels", **more)
    parsed = tomllib.loads("runs = [\n" + "\n".join(one.to_toml() for one in rows) + "\n]\n")["runs"]
    known = [KnownRun(**one) for one in parsed]
    assert [one.length for one in known] == [3, 8]
    assert told == [(3, None), (8, None)]
    for one, row in zip(known, rows, strict=True):
        held = audit(row.records, estimators={}).levels["token"]
        assert one.kl == pytest.approx(held["kl_k3"].sample, rel=0.01)
        assert one.mean_abs == pytest.approx(held["mean_abs"].value, rel=0.01)
        assert (one.engine, one.types, one.state, one.note) == (
            "transformers",
            "bfloat16",
            "measured",
            "kv_cache_dtype=fp8",
        )
        assert replace(one, size=1.0).like(read_info(row.records))  # a toy is like nothing
    warm = replace(base, sampling=SamplingSettings(temperature=0.7))
    with pytest.raises(ProbeError, match="temperature and top_p must be 1"):
        measure_levels(warm, load_prompts(limit=4), [3], tmp_path / "warm", **more)
