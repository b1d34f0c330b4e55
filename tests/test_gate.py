"""The gate: what is kept, broken, undecided or refused, how often noise alone breaks a bound, and its files."""

import json
import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from reweigh import SEQUENCE, TOKEN, Batch, RatioStats
from reweigh.__main__ import main
from reweigh.gate import Bound, LevelNumbers, Policy, Run, decide, draft, gate, read_baseline, read_policy, read_run
from reweigh.gate.numbers import INSTEAD, KINDS, measured
from reweigh.gate.policy import HEADROOM_OF_TWO
from reweigh.records import RecordWriter, RunInfo
from reweigh.report import junit, markdown, text
from reweigh.stats.intervals import Number

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "examples" / "records"
VLLM, FP8 = str(RECORDS / "vllm_bfloat16.parquet"), str(RECORDS / "vllm_fp8_kv.parquet")


@pytest.fixture(autouse=True)
def not_on_github(monkeypatch):
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)


@pytest.fixture(scope="module")
def vllm():
    return read_run(VLLM)


@pytest.fixture(scope="module")
def fp8():
    return read_run(FP8)


def write(path, sd=0.05, n=96, seed=0, length=40, envs=("math", "code"), prompts=48, each=None):
    """Records whose token ratios have a mean of 1; each env can have its own sd."""
    g = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        env = envs[i % len(envs)]
        s = (each or {}).get(env, sd)
        noise = s * g.normal(size=length) - s * s / 2
        log_mu = -1.5 - g.gamma(0.5, 2.0, length) - abs(noise)
        rows.append(
            {
                "sequence_id": f"{seed}-{i}",
                "prompt_id": f"{seed}-{i % prompts}",
                "env": env,
                "step": i // 32,
                "log_mu": log_mu.astype(np.float32),
                "log_pi": (log_mu + noise).astype(np.float32),
            }
        )
    with RecordWriter(path, RunInfo(engine="vllm", engine_version="1")) as writer:
        writer.write(rows)
    return str(path)


def policy_file(path, *bounds, **top):
    path.write_text(yaml.safe_dump({"version": 1, **top, "bounds": list(bounds)}, sort_keys=False))
    return path


def kl(limit=0.01, **more):
    return {"number": "kl_k3", "level": "token", "at_most": limit, **more}


# Decisions, by hand


@pytest.mark.parametrize(
    ("low", "value", "high", "status"),
    [(3, 4, 5, "broken"), (1, 1.5, 2, "pass"), (1.9, 2.5, 3, "undecided"), (1, 1.5, 2.1, "undecided")],
)
def test_a_bound_is_broken_only_when_the_whole_interval_is_beyond_it(low, value, high, status):
    assert decide(Bound("kl_k3", "token", "at_most", 2.0), Number(value, low, high)).status == status
    # the other way round: 7 - x
    mirrored = Bound("kl_k3", "token", "at_least", 5.0)
    assert decide(mirrored, Number(7 - value, 7 - high, 7 - low)).status == status


def test_how_many_more_would_decide():
    # 0.5 over the limit with half a width of 1: half the width needs four times as many
    found = decide(Bound("kl_k3", "token", "at_most", 2.0), Number(2.5, 1.5, 3.5))
    assert found.factor == pytest.approx(4)
    # a tail index has 3 sqrt(n) points, so half the width needs sixteen times as many
    found = decide(Bound("khat", "token", "at_most", 2.0), Number(2.5, 1.5, 3.5))
    assert found.factor == pytest.approx(16)
    # against a baseline that stays as it is: (0.5^2 - 0.3^2) = 0.4^2 is what is left for ours, of 1
    rise = Bound("kl_k3", "token", "rise_at_most", 0.5)
    found = decide(rise, Number(2.0, 1.0, 3.0), Number(1.0, 0.7, 1.3))
    assert found.factor == pytest.approx(1 / 0.4**2)
    found = decide(rise, Number(2.0, 1.0, 3.0), Number(1.0, 0.4, 1.6))
    assert found.factor is None
    assert "the baseline alone is less certain" in found.why


def test_a_difference_takes_the_near_ends_of_both():
    # 5 - 2, the lower end from ours below (3) and the baseline's above (4): a 3-4-5 triangle
    a, b = Number(5.0, 2.0, 6.0), Number(2.0, 1.0, 6.0)
    found = decide(Bound("kl_k1", "token", "rise_at_most", 0.0), a, b).compared
    assert (found.value, found.low) == (3, pytest.approx(-2))
    assert found.high == pytest.approx(3 + 2**0.5)
    fall = decide(Bound("kl_k1", "token", "fall_at_most", 0.0), b, a).compared
    assert (fall.value, fall.low, fall.high) == (found.value, found.low, found.high)


def test_a_multiple_is_compared_on_the_log_scale_and_near_zero_on_the_plain_one():
    bound = Bound("kl_k3", "token", "no_worse_than_baseline", 1.6)
    both = decide(bound, Number(4.0, 2.0, 8.0), Number(1.0, 0.5, 2.0))
    assert both.kind == "ratio"
    assert both.compared.value == pytest.approx(4)
    assert both.compared.low == pytest.approx(4 / 2**2**0.5)  # a factor of 2 on both sides
    assert both.status == "undecided"
    zero = decide(bound, Number(0.5, 0.4, 0.6), Number(0.0, 0.0, 0.001))
    assert (zero.kind, zero.status) == ("difference", "broken")
    assert decide(bound, Number(0.0, 0.0, 0.002), Number(0.0, 0.0, 0.002)).status == "undecided"


def test_less_is_worse_for_an_effective_share():
    bound = Bound("ess_fraction", "sequence", "no_worse_than_baseline", 1.2)
    good, bad = Number(0.8, 0.78, 0.82), Number(0.4, 0.38, 0.42)
    assert decide(bound, bad, good).status == "broken"
    assert decide(bound, bad, good).compared.value == pytest.approx(2)
    assert decide(bound, good, bad).status == "pass"


def test_a_refused_number_never_passes_and_can_be_broken_by_the_end_that_holds():
    refused = Number(None, None, 0.4, 0.1, refused="one unit carries 29% of the weight")
    found = decide(Bound("ess_fraction", "sequence", "at_least", 0.3), refused)
    assert (found.status, found.why) == ("refused", refused.refused)
    assert decide(Bound("ess_fraction", "sequence", "at_least", 0.5), refused).status == "broken"
    before = Number(0.8, 0.7, 0.9)
    assert decide(Bound("ess_fraction", "sequence", "fall_at_most", 0.1), refused, before).status == "refused"
    found = decide(Bound("ess_fraction", "sequence", "fall_at_most", 0.1), before, refused)
    assert found.why.startswith("the baseline's is refused")


# Bounds that nothing can break, or keep, are none


@pytest.mark.parametrize(
    ("number", "level", "rule", "limit", "message"),
    [
        ("kl_k4", "token", "at_most", 1, "there is no number 'kl_k4'\nhint: did you mean kl_k3"),
        ("kl_k3", "tokens", "at_most", 1, "there is no level 'tokens'\nhint: did you mean token"),
        ("kl_k3", "sequence", "at_most", 1, "kl_k3 is a number of the token level, got sequence\nhint: level: token"),
        ("tv", "sequence", "at_most", 1.0, "no data could break it: tv is never over 1"),
        ("kl_k3", "token", "at_least", 0.0, "no data could break it: kl_k3 is never under 0"),
        ("kl_k3", "token", "at_most", -0.1, "no data could keep it: kl_k3 is never under 0"),
        ("ess_fraction", "token", "at_least", 1.5, "no data could keep it: ess_fraction is never over 1"),
        ("kl_k3", "token", "at_most", float("nan"), "at_most must be a finite number, got nan"),
        ("delta_max", "token", "at_most", 0.5, "delta_max cannot be bounded\nhint: no sample can tell it"),
        ("unseen_at_most", "token", "at_most", 0.5, "a bound on it could never be broken: bound unseen"),
        ("mean_ratio", "token", "no_worse_than_baseline", 1.2, "a multiple of mean_ratio says nothing: it can be too"),
        ("kl_k1", "token", "no_worse_than_baseline", 1.2, "a multiple of kl_k1 says nothing: it can be negative"),
        ("kl_k3", "token", "no_worse_than_baseline", 0.9, "the factor must be at least 1, got 0.9"),
        ("kl_k3", "token", "rise_at_most", -1, "rise_at_most must be at least 0, got -1"),
        ("largest_gap", "token", "rise_at_most", 0.1, "largest_gap is a fact about the very records"),
    ],
)
def test_bounds_that_say_nothing_are_refused(number, level, rule, limit, message):
    with pytest.raises(ValueError, match=r"^Bound: ") as e:
        Bound(number, level, rule, limit)
    assert message in str(e.value)
    assert "\nhint: " in str(e.value)


def test_a_policy_needs_bounds_and_each_once():
    with pytest.raises(ValueError, match="there are no bounds: everything would pass"):
        Policy(())
    bound = Bound("kl_k3", "token", "at_most", 0.1)
    with pytest.raises(ValueError, match=r"bounds the same \(0.1\)"):
        Policy((bound, Bound("kl_k3", "token", "at_most", 0.2)))


def test_every_number_of_the_audit_can_be_bounded_or_has_a_reason_why_not(vllm):
    from reweigh.audit import audit

    there = {name for level in audit(VLLM, estimators={}).levels.values() for name in level.numbers}
    assert there == set(KINDS) | set(INSTEAD)
    for cut in vllm.cuts:
        for name, x in cut.numbers.items():
            assert x.low is not None, (cut.level, name)
            assert x.high is not None, (cut.level, name)
            assert x.value is None or x.low <= x.value <= x.high, (cut.level, name)


# Real records


def test_real_records_pass_fail_and_stay_undecided(tmp_path, capsys):
    path = policy_file(tmp_path / "p.yaml", kl(0.01, reason="find the cause"))
    assert main(["gate", VLLM, "--policy", str(path)]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "OK    1 bound: all kept"
    assert err == ""
    assert main(["gate", FP8, "--policy", str(path)]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "FAIL  1 bound: 1 is broken"
    assert "broken  token kl_k3 at most 0.01: 0.048 [0.039, 0.057]" in out
    assert f"{path}, line 5: find the cause" in out

    straddling = policy_file(tmp_path / "s.yaml", kl(0.0014))
    assert main(["gate", VLLM, "--policy", str(straddling)]) == 0
    out, _ = capsys.readouterr()
    assert out.startswith("WARN  1 bound: 1 is undecided")
    assert "more sequences would decide, if the estimate stays (64 read)" in out
    for undecided, code, word in (("fail", 1, "FAIL"), ("pass", 0, "OK")):
        policy_file(straddling, kl(0.0014), undecided=undecided)
        assert main(["gate", VLLM, "--policy", str(straddling), "-q"]) == code
        assert capsys.readouterr().out == f"{word:<5} 1 bound: 1 is undecided\n"
    policy_file(straddling, kl(0.0014, severity="warn"), undecided="fail")
    assert main(["gate", VLLM, "--policy", str(straddling)]) == 0


def test_more_sequences_decide_as_was_said(tmp_path):
    bound = Policy((Bound("mean_abs", "token", "at_most", 0.0405),))
    few = gate(write(tmp_path / "few.parquet"), bound).checks[0]
    assert few.decision.status == "undecided"
    n = few.sequences + int(1.5 * few.more)
    many = gate(write(tmp_path / "many.parquet", n=n, prompts=n // 2, seed=1), bound).checks[0]
    assert many.decision.status == "pass"  # 0.05 sqrt(2 / pi) = 0.0399


def test_a_refused_number_fails_unless_it_may_warn():
    bound = Bound("ess_fraction", "sequence", "at_least", 0.3)
    found = gate(FP8, Policy((bound,)))
    assert (found.checks[0].decision.status, found.level) == ("refused", "fail")
    assert found.checks[0].decision.why == "one unit carries 29% of the weight"
    assert gate(FP8, Policy((bound,), refused="warn")).level == "warn"


def test_a_fact_about_the_records_is_exact(vllm):
    gap = vllm.find("token", None, None).numbers["largest_gap"].value
    bounds = [Bound("largest_gap", "token", "at_most", gap + sign * 1e-6) for sign in (1, -1)]
    assert [gate(vllm, Policy((bound,))).checks[0].decision.status for bound in bounds] == ["pass", "broken"]


def test_the_example_policy_works_on_the_example_records(tmp_path, capsys):
    base, policy = str(tmp_path / "base.json"), str(ROOT / "examples" / "gate.yaml")
    assert main(["gate", VLLM, "--save-baseline", base]) == 0
    assert main(["gate", VLLM, "--policy", policy, "--baseline", base]) == 0
    assert main(["gate", FP8, "--policy", policy, "--baseline", base]) == 1
    assert (
        "token mean_abs no worse than 1.25 times the baseline: 0.20 [0.19, 0.22], baseline" in capsys.readouterr().out
    )


def test_the_example_workflow_is_yaml_and_gates():
    jobs = yaml.safe_load((ROOT / "examples" / "github-gate.yml").read_text())["jobs"]
    steps = [step.get("run", "") for step in jobs["gate"]["steps"]]
    assert any(
        step.startswith("reweigh gate records.parquet --policy gate.yaml --baseline base.json") for step in steps
    )


# The baseline


def test_a_baseline_file_comes_back_as_it_was(tmp_path):
    run = read_run(write(tmp_path / "a.parquet"), ["env", "step", "length", "position"])
    path = tmp_path / "base.json"
    path.write_text(run.to_json())
    back = read_baseline(path)
    assert [(c.level, c.by, c.label, c.n, c.sequences) for c in back.cuts] == [
        (c.level, c.by, c.label, c.n, c.sequences) for c in run.cuts
    ]
    for a, b in zip(run.cuts, back.cuts, strict=True):
        for name, x in a.numbers.items():
            y = b.numbers[name]
            assert (x.value, x.refused, x.unit) == (y.value, y.refused, y.unit)
            assert y.low == (x.low if x.low is not None and np.isfinite(x.low) else None)
    assert back.info == run.info
    document = json.loads(path.read_text())
    assert document["reweigh_gate_baseline"] == 1
    assert document["reweigh"]
    assert document["run"]["engine"] == "vllm"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(reweigh_gate_baseline=2), "reweigh_gate_baseline must be 1, got 2"),
        (lambda d: d.pop("reweigh_gate_baseline"), "the key reweigh_gate_baseline is missing"),
        (lambda d: d.pop("cuts"), "damaged: KeyError: 'cuts'"),
        (lambda d: d["cuts"][0].update(n="many"), "cuts[0].n: a baseline cannot hold 'many' there"),
        (lambda d: d["cuts"][0].update(level="word"), "cuts[0].level: a baseline cannot hold 'word' there"),
        (lambda d: d["cuts"][0]["numbers"]["tv"].update(low="0"), "cuts[0].numbers.tv.low: a baseline cannot hold '0'"),
        (lambda d: d["cuts"][0]["numbers"]["tv"].update(low=0.9), "cuts[0].numbers.tv: a baseline cannot hold [0.9"),
    ],
)
def test_a_damaged_baseline_is_named(tmp_path, vllm, change, message):
    path = tmp_path / "base.json"
    document = json.loads(vllm.to_json())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"base\.json") as e:
        read_baseline(path)
    assert message in str(e.value)
    assert "hint: write it with `reweigh gate --save-baseline FILE RECORDS`." in str(e.value)


def test_a_baseline_that_is_no_json(tmp_path, capsys):
    (tmp_path / "base.json").write_text("not json")
    path = policy_file(tmp_path / "p.yaml", kl())
    assert main(["gate", VLLM, "--policy", str(path), "--baseline", str(tmp_path / "base.json")]) == 2
    assert "base.json: not a baseline: Expecting value" in capsys.readouterr().err


@pytest.fixture(scope="module")
def pool():
    """The log-probs of a real engine's responses, by prompt."""
    table = pq.read_table(VLLM, columns=["prompt_id", "log_mu", "log_pi"]).to_pydict()
    prompts = {}
    for prompt, mu, pi in zip(*table.values(), strict=True):
        prompts.setdefault(prompt, []).append((mu, pi))
    return list(prompts.values())


def drawn(pool, g, grown=1.0):
    """A run of as many prompts drawn from the pool, or of each once; `grown` times the log ratio of each token."""
    mu, pi, group = [], [], []
    for prompt, i in enumerate(range(len(pool)) if g is None else g.integers(0, len(pool), len(pool))):
        for log_mu, log_pi in pool[i]:
            log_mu, log_pi = np.array(log_mu), np.array(log_pi)
            mu.append(torch.from_numpy(log_mu))
            pi.append(torch.from_numpy(np.minimum(log_mu + grown * (log_pi - log_mu), 0)))
            group.append(prompt)
    batch, cuts = Batch.from_lists(pi, mu, group=torch.tensor(group)), []
    for level in (TOKEN, SEQUENCE):
        summary, numbers = measured(RatioStats.of(batch, level))
        cuts.append(LevelNumbers(level.name, None, None, summary.n, summary.sequences, summary.tokens, numbers))
    return Run(tuple(cuts), RunInfo(), "drawn")


@pytest.fixture(scope="module")
def draws(pool):
    g = np.random.default_rng(0)
    return [drawn(pool, g) for _ in range(201)]


SCALES = (("kl_k3", "token"), ("mean_abs", "token"), ("sd", "token"), ("mean_abs", "sequence"), ("tv", "sequence"))


@pytest.mark.slow
def test_noise_breaks_few_bounds_and_a_real_drift_breaks_them(pool, draws):
    """At the strictest bound there is, 1 times the baseline, noise breaks one in 40 by design; at 1.2 next to none."""
    strict = Policy(tuple(Bound(n, level, "no_worse_than_baseline", 1.0) for n, level in SCALES))
    loose = Policy(tuple(Bound(n, level, "no_worse_than_baseline", 1.2) for n, level in SCALES))
    pairs = list(pairwise(draws))
    broken = dict.fromkeys(range(len(SCALES)), 0)
    for before, after in pairs:
        for i, check in enumerate(gate(after, strict, before).checks):
            broken[i] += check.decision.status == "broken"
    assert max(broken.values()) <= 0.05 * len(pairs), broken
    assert sum(broken.values()) > 0, "a bound at the very baseline that noise never breaks is no test"
    assert sum(gate(after, loose, before).level == "fail" for before, after in pairs) <= 0.01 * len(pairs)

    g, found = np.random.default_rng(1), []
    for before in draws[:40]:
        checks = gate(drawn(pool, g, 1.5), loose, before).checks
        found.append([check.decision.status == "broken" for check in checks[:3]])
    assert np.mean(found, axis=0).min() >= 0.9, found


@pytest.mark.slow
def test_drawn_intervals_of_what_the_audit_has_none_for_cover(pool, draws):
    """prob_gap, sd and ess_fraction have intervals of the gate's own: the pool's value is in them as it should be."""
    whole = drawn(pool, None)
    truth = {n: whole.find("token", None, None).numbers[n].value for n in ("prob_gap", "sd", "ess_fraction")}
    inside = dict.fromkeys(truth, 0)
    for run in draws:
        numbers = run.find("token", None, None).numbers
        for name, value in truth.items():
            low, high = numbers[name].low, numbers[name].high  # no lower end where the moment is refused
            inside[name] += (low is None or low <= value) and value <= high
    assert min(inside.values()) >= 0.88 * len(draws), inside


def test_drift_between_real_engines(vllm, fp8, tmp_path):
    policy = Policy((Bound("mean_abs", "token", "no_worse_than_baseline", 1.2),))
    assert gate(fp8, policy, vllm).level == "fail"
    assert gate(vllm, policy, fp8).level == "ok"
    other = read_run(RECORDS / "transformers_bfloat16.parquet")
    found = gate(other, policy, vllm)  # the same precision in another engine
    assert found.level == "ok"
    assert "engine was vllm in the baseline, and is transformers" in found.notes


def test_responses_of_another_length_are_noted(tmp_path):
    a, b = (read_run(write(tmp_path / f"{n}.parquet", length=n)) for n in (40, 60))
    policy = Policy((Bound("mean_abs", "token", "rise_at_most", 0.01),))
    assert "responses have 60 tokens on average, and had 40 in the baseline" in gate(b, policy, a).notes[-1]
    assert gate(a, policy, a).notes == ()


# Slices


def test_extreme_and_equal_log_probs_make_a_baseline_that_can_be_read(tmp_path):
    """Ratios of e^-900 and e^200, and two sides that are the same to the last bit."""
    g = np.random.default_rng(0)
    for name, log_ratio in (("small", -30 * g.random((40, 30))), ("large", 7 * g.random((40, 30))), ("same", None)):
        log_mu = -8 - g.exponential(size=(40, 30))
        log_pi = log_mu if log_ratio is None else log_mu + log_ratio
        with RecordWriter(tmp_path / f"{name}.parquet") as writer:
            writer.write([{"sequence_id": str(i), "log_mu": log_mu[i], "log_pi": log_pi[i]} for i in range(40)])
        run = read_run(tmp_path / f"{name}.parquet")
        (tmp_path / "base.json").write_text(run.to_json())
        base = read_baseline(tmp_path / "base.json")
        policy = Policy((Bound("kl_k3", "token", "rise_at_most", 0.001), Bound("mean_ratio", "sequence", "at_most", 2)))
        found = gate(run, policy, base)
        json.dumps(found.to_dict(), allow_nan=False)
        ET.fromstring(junit(found))
        expected = {"small": "refused", "large": "undecided", "same": "pass"}
        assert found.checks[1].decision.status == expected[name], text(found)


def test_slices_one_each_and_those_that_are_gone(tmp_path):
    records = write(tmp_path / "a.parquet", each={"math": 0.05, "code": 0.2})
    one = Bound("mean_abs", "token", "at_most", 0.1, by="env", label="math")
    each = Bound("mean_abs", "token", "at_most", 0.1, by="env", label="*")
    assert gate(records, Policy((one,))).level == "ok"
    found = gate(records, Policy((each,)))
    assert {c.bound.label: c.decision.status for c in found.checks} == {"math": "pass", "code": "broken"}
    with pytest.raises(ValueError, match="has no token, env maths\nhint: did you mean math\\? it has math, code"):
        gate(records, Policy((Bound("mean_abs", "token", "at_most", 0.1, by="env", label="maths"),)))

    base = read_run(write(tmp_path / "b.parquet", envs=("math", "code", "tools")), ["env"])
    gone = Bound("mean_abs", "token", "rise_at_most", 0.1, by="env", label="*")
    with pytest.raises(ValueError, match=r"a\.parquet has no token, env tools"):
        gate(records, Policy((gone,)), base)
    with pytest.raises(ValueError, match="has no token, env math\nhint: it was not cut by env"):
        gate(records, Policy((gone,)), read_run(tmp_path / "b.parquet"))
    with pytest.raises(ValueError, match=r"no record of .*vllm_bfloat16\.parquet says its env\nhint: records need the"):
        gate(VLLM, Policy((each,)))


def test_more_environments_than_a_report_shows_are_each_there(tmp_path):
    names = tuple(f"env{i}" for i in range(20))
    run = read_run(write(tmp_path / "a.parquet", n=80, envs=names, prompts=80), ["env"])
    assert set(run.labels("env")) == set(names)
    assert run.find("sequence", "env", "env7").sequences == 4


def test_a_level_that_the_data_has_not_got(vllm):
    with pytest.raises(ValueError, match="has no turn\nhint: it has token, sequence"):
        gate(vllm, Policy((Bound("mean_abs", "turn", "at_most", 1.0),)))


# The policy file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "p.yaml: empty"),
        ("version: 1\nbounds: [", "p.yaml, line 2: not YAML"),
        ("- 1", "p.yaml, line 1: the policy must have keys, got a list"),
        ("bounds: []", "p.yaml, line 1: version must be 1, got nothing"),
        ("version: 2\nbounds: []", "p.yaml, line 1: version must be 1, got 2"),
        ("version: 1\nbounds: []", "p.yaml: there are no bounds: everything would pass"),
        ("version: 1\nbounds: 3", "p.yaml, line 2: bounds must be a list"),
        ("version: 1\nbound: []", "p.yaml, line 2: there is no key 'bound'\nhint: did you mean bounds?"),
        ("version: 1\nundecided: maybe\nbounds: []", "p.yaml: there is no undecided 'maybe'\nhint: known are pass"),
        ("version: 1\nrefused: pass\nbounds:\n- {number: tv, level: token, at_most: .5}", "there is no refused 'pass'"),
        (
            "version: 1\nbounds:\n- number: kl_k4\n  level: token\n  at_most: 1\n",
            "p.yaml, line 3: there is no number 'kl_k4'\nhint: did you mean kl_k3",
        ),
        (
            "version: 1\nbounds:\n- number: kl_k3\n  level: token\n  at_mots: 1\n",
            "p.yaml, line 5: there is no key of a bound 'at_mots'\nhint: did you mean at_most",
        ),
        (
            "version: 1\nbounds:\n- number: kl_k3\n  level: token\n",
            "p.yaml, line 3: a bound needs a limit: one of at_most, at_least",
        ),
        ("version: 1\nbounds:\n- level: token\n", "p.yaml, line 3: a bound needs a number"),
        (
            "version: 1\nbounds:\n- number: kl_k3\n  level: token\n  at_most: a little\n",
            "p.yaml, line 5: at_most must be a number, got 'a little'",
        ),
        (
            "version: 1\nbounds:\n- number: tv\n  level: token\n  at_most: 2\n",
            "p.yaml, line 5: no data could break it: tv is never over 1",
        ),
        (
            "version: 1\nbounds:\n- number: tv\n  level: token\n  at_most: 0.1\n  at_most: 0.9\n",
            "p.yaml, line 6: at_most stands twice, first in line 5",
        ),
        (
            "version: 1\nbounds:\n- number: tv\n  level: token\n  no_worse_than_baseline: 1.2\n",
            "p.yaml, line 5: no_worse_than_baseline must have keys, got 1.2\nhint: {factor: 1.2}",
        ),
        (
            "version: 1\nbounds:\n- number: tv\n  level: token\n  slice: {envs: a}\n  at_most: 0.1",
            "p.yaml, line 5: there is no key of a slice 'envs'\nhint: did you mean env?",
        ),
        (
            "version: 1\nbounds:\n- number: tv\n  level: sequence\n  slice: {position: 0-15}\n  at_most: 0.1",
            "p.yaml, line 6: slices by position have the token level only, got sequence",
        ),
        ("version: 1\nbounds: &a\n- *a\n", "p.yaml, line 2: an alias holds itself"),
    ],
)
def test_a_wrong_policy_is_named_with_its_line(tmp_path, text, message, capsys):
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"p\.yaml") as e:
        read_policy(path)
    assert message in str(e.value)
    assert "\nhint: " in str(e.value)
    assert main(["gate", VLLM, "--policy", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert "Traceback" not in err


def test_numbers_as_people_write_them(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("version: 1\nbounds:\n- {number: kl_k3, level: token, slice: {step: 3}, at_most: 1e-3}\n")
    bound = read_policy(path).bounds[0]
    assert (bound.limit, bound.by, bound.label) == (0.001, "step", "3")  # YAML 1.1 takes 1e-3 for a word


def test_what_the_command_refuses(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cases = [
        (["gate", VLLM], "gate.yaml: there is no policy"),
        (["gate", VLLM, "--init", "--junit", "j.xml"], "--init gates nothing, so --junit has no use"),
        (["gate", VLLM, "--by", "env"], "--by is for a baseline"),
        (["gate", "nothing.parquet", "--save-baseline", "b.json"], "nothing.parquet"),
    ]
    policy_file(tmp_path / "p.yaml", {"number": "tv", "level": "token", "rise_at_most": 0.1})
    cases.append((["gate", VLLM, "--policy", "p.yaml"], "token tv at most 0.1 over the baseline: there is no baseline"))
    for args, message in cases:
        assert main(args) == 2, args
        out, err = capsys.readouterr()
        assert message in err
        assert out == ""
    assert not list(tmp_path.glob("*.json"))


# Reports


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """One that passes, one broken, one that warns, and a name and a reason that must be escaped."""
    path = write(tmp_path_factory.mktemp("mixed") / "a.parquet", envs=("a|b <i>\x07", "code"))
    policy = Policy(
        (
            Bound("kl_k3", "token", "at_most", 0.1),
            Bound("mean_abs", "token", "at_most", 0.01, reason="look | <b>here</b> `x`"),
            Bound("mean_abs", "token", "at_most", 0.04, severity="warn", by="env", label="a|b <i>\x07"),
        )
    )
    return gate(path, policy)


def test_junit_is_xml_that_counts_right(mixed):
    root = ET.fromstring(junit(mixed))
    suite = root.find("testsuite")
    assert suite is not None
    for place in (root, suite):
        assert [place.get(k) for k in ("tests", "failures", "errors", "skipped")] == ["3", "1", "0", "1"]
    cases = suite.findall("testcase")
    assert [len(c.findall("failure")) for c in cases] == [0, 1, 0]
    assert [len(c.findall("skipped")) for c in cases] == [0, 0, 1]
    failure = cases[1].find("failure")
    assert failure is not None
    assert failure.get("type") == "broken"
    assert "token mean_abs at most 0.01: 0.0" in (failure.get("message") or "")
    assert "reason: look | <b>here</b> `x`" in (failure.text or "")
    assert "env a|b <i>\ufffd" in (cases[2].get("name") or "")


def test_markdown_is_a_table_with_the_worst_first(mixed):
    lines = markdown(mixed).splitlines()
    assert lines[0] == "### ❌ reweigh gate: 3 bounds: 1 is broken, 1 is undecided"
    rows = [line for line in lines if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[1:]] == ["| ❌ broken", "| ⚠️ undecided", "| ✅ pass"]
    assert {len(re.split(r"(?<!\\)\|", row)) for row in rows} == {8}  # six columns, whatever the names hold
    assert "<b>" not in markdown(mixed)
    assert "<i>" not in markdown(mixed)


def test_json_says_the_same(tmp_path, capsys, mixed):
    document = mixed.to_dict()
    json.dumps(document, allow_nan=False)
    assert document["reweigh_gate"] == 1
    assert (document["level"], document["exit_code"]) == ("fail", 1)
    assert [b["status"] for b in document["bounds"]] == ["pass", "broken", "undecided"]
    assert [b["effect"] for b in document["bounds"]] == ["ok", "fail", "warn"]
    assert document["bounds"][2]["more_sequences"] > 0
    path = policy_file(tmp_path / "p.yaml", {"number": "ess_fraction", "level": "sequence", "at_least": 0.3})
    assert main(["gate", FP8, "--policy", str(path), "--format", "json"]) == 1
    out, _ = capsys.readouterr()
    bound = json.loads(out)["bounds"][0]
    assert (bound["status"], bound["value"], bound["low"]) == ("refused", None, None)
    assert 0.3 < bound["high"] < 0.5


def test_reports_are_written_where_asked_and_on_github_added(tmp_path, monkeypatch, capsys):
    policy = str(policy_file(tmp_path / "p.yaml", kl()))
    junit, summary, step = tmp_path / "out" / "j.xml", tmp_path / "s.md", tmp_path / "step.md"
    args = ["gate", VLLM, "--policy", policy, "--junit", str(junit), "--summary", str(summary)]
    assert main(args) == 0
    assert f"wrote {junit}\nwrote {summary}\n" == capsys.readouterr().err
    ET.fromstring(junit.read_text())
    assert summary.read_text().startswith("### ✅ reweigh gate: 1 bound: all kept")
    step.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(step))
    assert main(["gate", VLLM, "--policy", policy, "--quiet"]) == 0
    assert main(["gate", FP8, "--policy", policy, "--quiet"]) == 1
    assert step.read_text().startswith("before\n### ✅")
    assert step.read_text().count("### ") == 2
    assert capsys.readouterr().err == ""


def test_a_policy_that_can_only_warn_says_so(vllm):
    found = gate(vllm, Policy((Bound("kl_k3", "token", "at_most", 0.001, severity="warn"),)))
    assert (found.level, found.exit_code) == ("warn", 0)
    assert any("nothing can fail" in note for note in found.notes)


def test_a_baseline_that_no_bound_looks_at_is_noted(vllm):
    found = gate(vllm, Policy((Bound("kl_k3", "token", "at_most", 0.01),)), vllm)
    assert f"no bound of Policy is against a baseline: {VLLM} was not looked at" in found.notes


# A first policy


@pytest.mark.parametrize("engine", ["vllm_bfloat16", "transformers_bfloat16", "transformers_int8", "llama_cpp_q4_1"])
def test_a_first_policy_passes_the_run_that_it_is_from(engine, tmp_path, capsys):
    records, policy, base = str(RECORDS / f"{engine}.parquet"), str(tmp_path / "gate.yaml"), str(tmp_path / "b.json")
    assert main(["gate", "--init", "--policy", policy, "--save-baseline", base, records]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"wrote {policy}\n")
    assert err.endswith(f"wrote {base}\n")
    assert ("the audit does not call this a good run: fail" in err) == (engine == "transformers_int8")
    found = read_policy(policy)
    assert len(found.bounds) >= 6
    assert main(["gate", records, "--policy", policy, "--baseline", base]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("bounds: all kept")
    assert main(["gate", "--init", "--policy", policy, records]) == 2
    assert "there is a policy already\nhint: delete it" in capsys.readouterr().err


def test_a_first_policy_without_a_baseline_keeps_those_bounds_for_later(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["gate", "--init", VLLM, "-q"]) == 0
    text = Path("gate.yaml").read_text()
    assert "  # - number: kl_k3" in text
    assert read_policy("gate.yaml").historical == ()
    assert main(["gate", VLLM]) == 0
    Path("live.yaml").write_text(text.replace("  # - number", "  - number").replace("  #   ", "    "))
    assert len(read_policy("live.yaml").historical) == 2


@pytest.mark.slow
def test_the_headroom_lets_other_runs_of_the_engine_pass(pool, tmp_path):
    g = np.random.default_rng(2)
    good = drawn(pool, g)
    path = tmp_path / "gate.yaml"
    path.write_text(draft(good, historical=True))
    policy = read_policy(path)
    others = [gate(drawn(pool, g), policy, good) for _ in range(100)]
    assert not any(found.level == "fail" for found in others)
    kept = [c.decision.status == "pass" for found in others for c in found.checks]
    assert np.mean(kept) > 0.9
    assert all(gate(drawn(pool, g, 2.0), policy, good).level == "fail" for _ in range(10))
    number = good.find("token", None, None).numbers["mean_abs"]
    factor = next(b.limit for b in policy.historical if b.number == "mean_abs")
    half = max(np.log(number.high / number.value), np.log(number.value / number.low))
    assert factor == pytest.approx(np.exp(HEADROOM_OF_TWO * half), abs=0.01)


def test_too_little_to_draw_a_policy_from(tmp_path):
    run = read_run(write(tmp_path / "a.parquet", n=1, prompts=1))
    with pytest.raises(ValueError, match="too little to draw bounds from"):
        draft(run, historical=False)


def test_a_baseline_is_not_replaced_by_a_run_that_fails(tmp_path, capsys):
    policy, base = policy_file(tmp_path / "p.yaml", kl()), tmp_path / "b.json"
    assert main(["gate", FP8, "--policy", str(policy), "--save-baseline", str(base)]) == 1
    assert "was not written: a baseline should be a run that passes" in capsys.readouterr().err
    assert not base.exists()
    assert main(["gate", VLLM, "--policy", str(policy), "--save-baseline", str(base)]) == 0
    assert base.exists()


# The page


def test_the_page_names_every_number_that_can_be_bounded():
    page = (ROOT / "docs" / "gate.md").read_text()
    assert not [name for name in KINDS if f"`{name}`" not in page]


def test_an_empty_gate_in_json_says_what_was_written(tmp_path, capsys):
    base = str(tmp_path / "b.json")
    assert main(["gate", VLLM, "--save-baseline", base, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"reweigh_gate": 1, "wrote": [base]}
