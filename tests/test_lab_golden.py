"""`lab check`: values computed elsewhere agree, nothing is passed over, and what is wrong is found.

`golden_worlds.json` is part of a larger file of such values: four of its worlds, two of them with seven of their 27
estimators. They were computed by enumeration and confirmed in 40-digit arithmetic by another algorithm.
"""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reweigh.cli.lab import lab
from reweigh.theory.lab.golden import check_golden

GOLDEN = Path(__file__).parent / "data" / "golden_worlds.json"


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text())


def run(*args):
    return CliRunner().invoke(lab, ["check", *map(str, args)])


@pytest.fixture
def changed(golden, tmp_path):
    """Write the file with one thing changed; the path of the copy."""

    def write(change):
        copy = json.loads(json.dumps(golden))
        change(copy)
        path = tmp_path / "changed.json"
        path.write_text(json.dumps(copy))
        return path

    return write


def test_every_quantity_agrees(golden):
    found = check_golden(GOLDEN)
    assert found.uncovered == ()
    assert {t.group: t.worst for t in found.tallies if not t.ok} == {}
    assert found.ok
    assert found.instances == tuple(i["name"] for i in golden["instances"])
    assert max(t.worst for t in found.tallies if not t.group.startswith("snis")) < 1e-11  # what the file asks for


def test_every_number_of_the_file_is_counted(golden):
    def count(x):
        if isinstance(x, dict):
            return sum(map(count, x.values()))
        if isinstance(x, list):
            return sum(map(count, x))
        return int(x is None or isinstance(x, (int, float)))

    inputs = ("V", "T", "eos", "contexts", "pi_logits", "mu_logits", "mu_mask", "R", "C", "lo", "hi", "b", "eps")
    given = sum(count(v) for i in golden["instances"] for k, v in i.items() if k not in inputs)
    given += count({k: v for k, v in golden["sample_stats"].items() if k not in ("log_rho", "C")})
    given += sum(count(v) for row in golden["lognormal"] for k, v in row.items() if k not in ("s2", "C"))
    assert check_golden(GOLDEN).count == given > 4000


def test_the_command_prints_each_kind_and_passes():
    result = run(GOLDEN)
    assert result.exit_code == 0, result.output
    assert result.output.startswith("ok: ")
    for group in (
        "estimators.mean",
        "snis.trace_cov",
        "grpo.mean_loo",
        "dist",
        "bounds.rhs",
        "sample_stats",
        "lognormal",
    ):
        assert f"\n{group} " in result.output
    assert "not covered: nothing" in result.output


def test_json_is_one_object():
    result = run(GOLDEN, "--json")
    data = json.loads(result.output)
    assert data["ok"] is True
    assert data["uncovered"] == []
    assert data["count"] == sum(g["count"] for g in data["groups"])
    assert all(g["worst"] <= g["tolerance"] for g in data["groups"])


NUDGES = {
    "estimators.mean": lambda i: i["estimators"]["naive"]["mean"],
    "estimators.cov": lambda i: i["estimators"]["seq_tis"]["cov"][0],
    "estimators.mse_N64": lambda i: (i["estimators"]["seq_tis"], "mse_N64"),
    "snis.trace_cov": lambda i: (i["snis"]["3"], "trace_cov"),
    "grpo.mean_self": lambda i: i["grpo"]["tok_is"]["mean_self"],
    "dist": lambda i: i["dist"]["tv_hyb"],
    "bounds.lhs": lambda i: (i["bounds"][3], "lhs"),
    "bounds.rhs": lambda i: (i["bounds"][3], "rhs"),
    "C_rules": lambda i: (i["C_rules"], "C_balance"),
    "weights_at_C": lambda i: (i["weights_at_C"], "P_pi_gt"),
    "seq": lambda i: i["seq"]["log_rho"],
}


@pytest.mark.slow
@pytest.mark.parametrize("group", NUDGES)
def test_a_number_that_is_a_little_off_is_found(group, changed):
    def nudge(copy):
        place = NUDGES[group](copy["instances"][0])
        container, key = place if isinstance(place, tuple) else (place, 0)
        container[key] *= 1 + 1e-7

    result = run(changed(nudge))
    assert result.exit_code == 1
    assert result.output.startswith("fail: ")
    over = [line for line in result.output.splitlines() if "over, at A_V2T2_prefix." in line]
    assert len(over) == 1
    assert over[0].startswith(group)


def test_null_is_only_null(changed):
    def forget(copy):
        copy["instances"][0]["dist"]["chi2_seq"] = None

    assert run(changed(forget)).exit_code == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("add", "where"),
    [
        (lambda c: c.update(extra=1), "extra"),
        (lambda c: c["instances"][0].update(news=[1, 2]), "A_V2T2_prefix.news"),
        (lambda c: c["instances"][0]["dist"].update(wasserstein=0.5), "A_V2T2_prefix.dist.wasserstein"),
        (lambda c: c["instances"][0]["estimators"].update(best={"mean": [0]}), "A_V2T2_prefix.estimators.best.mean"),
        (
            lambda c: c["instances"][0]["bounds"].append({"name": "TV<=7", "lhs": 1, "rhs": 7}),
            "A_V2T2_prefix.bounds[TV<=7].lhs",
        ),
        (lambda c: c["sample_stats"].update(mode=1), "sample_stats.mode"),
    ],
)
def test_what_is_not_covered_is_said_and_does_not_pass(add, where, changed):
    result = run(changed(add))
    assert result.exit_code == 1
    said = result.output.replace("\n", "")
    assert f"not covered: {where}" in said


def swap(i):
    i["leaves"][0], i["leaves"][1] = i["leaves"][1], i["leaves"][0]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda i: i["R"].__setitem__(1, float("nan")), "every reward must be finite, and 1 of 4 are not"),
        (lambda i: i["pi_logits"][0].__setitem__(0, float("inf")), "pi_logits must be finite, and row 0"),
        (lambda i: i.update(mu_mask=[[0, 0], [1, 1], [1, 1]]), "leaves mu nothing to sample in row 0"),
        (lambda i: i["R"].pop(), "one value for each of the 4 sequences"),
        (lambda i: i.update(R=["a"] * 4), "A_V2T2_prefix: R is no table of numbers"),
        (lambda i: i.update(ctx="tree"), "ctx must be prefix, iid or markov:m, got 'tree'"),
        (
            lambda i: i.update(T=40, ctx="iid", pi_logits=[[0, 0]], mu_logits=[[0, 0]]),
            "sequences of 40 tokens are too many",
        ),
        (lambda i: i["snis"].update({"0": {"mean": [0]}}), "exact_snis: n must be >= 1, got 0"),
        (lambda i: i["estimators"]["naive"].update(mse_N0=1.0), "must be >= 1, got 0"),
        (lambda i: i.pop("mu_logits"), "instance 0 has no mu_logits"),
        (swap, "A_V2T2_prefix: its 4 leaves are not our 4 in our order; the first to differ is number 0"),
        (lambda i: i["dist"].update(m2="much"), "a number was expected, got 'much'"),
    ],
)
def test_what_is_no_world_is_refused(spoil, message, changed):
    with pytest.raises(ValueError, match=r"\S") as e:
        check_golden(changed(lambda copy: spoil(copy["instances"][0])))
    assert message in str(e.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"instances": 3}'])
def test_what_is_no_golden_file_is_refused(text, tmp_path):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"bad\.json: .*\nhint: "):
        check_golden(path)


def test_a_file_with_no_worlds_compares_nothing(tmp_path):
    path = tmp_path / "empty.json"
    path.write_text('{"instances": []}')
    assert "no quantity was compared" in run(path).output
