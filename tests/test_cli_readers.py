"""Dumps of training frameworks on the command line, as if they were records."""

import json
import shutil
from pathlib import Path

import pytest

from reweigh.__main__ import main
from reweigh.audit import audit
from reweigh.records import read_batches
from reweigh.report import document
from reweigh.scan import Workers

DATA = Path(__file__).parent / "data" / "readers"
BOTH = {"slime": (8, 32), "miles": (3, 20), "nemo_rl": (2, 8), "prime_rl": (8, 22)} | {
    "verifiers": (3, 13),
    "skyrl": (3, 8),
    "martingale": (3, 14),
}


def run(capsys, *args):
    code = main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    return code, out, err


def flat(value, name=""):
    """The numbers of nested values, by their path: the files are cut into other parts, so sums round differently."""
    if isinstance(value, dict):
        return {k: v for key, one in value.items() for k, v in flat(one, f"{name}/{key}").items()}
    if isinstance(value, list):
        return {k: v for i, one in enumerate(value) for k, v in flat(one, f"{name}/{i}").items()}
    return {name: value} if isinstance(value, int | float) else {}


@pytest.mark.parametrize(("folder", "counts"), BOTH.items())
def test_a_dump_is_audited_as_it_is(capsys, folder, counts):
    code, out, _ = run(capsys, "audit", DATA / folder, "--json", "--workers", 1, "--fail-on", "never")
    level = json.loads(out)["levels"]["token"]
    assert code == 0
    assert (level["sequences"], level["tokens"]) == counts


@pytest.mark.parametrize("folder", BOTH)
def test_an_audit_of_a_dump_is_that_of_its_records(capsys, folder, tmp_path):
    out = tmp_path / "a.parquet"
    code, _, err = run(capsys, "records", "convert", DATA / folder, out)
    assert (code, err.startswith("wrote ")) == (0, True)
    there, here = audit(DATA / folder, by=["step"]), audit(out, by=["step"])
    assert there.verdict.reason == here.verdict.reason
    assert flat(document(there)["levels"]) == pytest.approx(flat(document(here)["levels"]), rel=1e-6)


@pytest.mark.slow
def test_parts_travel_to_other_processes():
    alone, together = audit(DATA / "prime_rl"), audit(DATA / "prime_rl", engine=Workers(2))
    assert document(alone) == document(together)
    assert document(audit(DATA / "prime_rl", reader="prime_rl")) == document(alone)


@pytest.mark.parametrize("folder", ["open_instruct", "sglang", "openai/completions.jsonl", "slime/rollout_data"])
def test_one_side_says_to_rescore(capsys, folder):
    code, _, err = run(capsys, "audit", DATA / folder)
    assert code == 2
    assert "column log_pi is missing" in err
    assert "reweigh rescore" in err


def test_convert_skips_and_lists_the_bad(capsys, tmp_path):
    folder = Path(shutil.copytree(DATA / "prime_rl", tmp_path / "dump"))
    path = folder / "token_exports/step_4/rank_1.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    out = tmp_path / "a.parquet"
    code, _, err = run(capsys, "records", "convert", folder, out)
    assert code == 2
    assert f"{path}:4: the last line is cut short" in err
    assert not out.exists()
    code, _, err = run(capsys, "records", "convert", folder, out, "--skip-bad")
    assert code == 0
    assert "wrote 7 rows" in err
    assert "1 bad records are left out:" in err
    assert f"{path}:4: the last line is cut short" in err
    assert sum(part.batch.layout.num_seqs for part in read_batches(out)) == 7


def test_describe_and_validate(capsys):
    code, out, _ = run(capsys, "records", "describe", DATA / "martingale", "--json")
    assert (code, json.loads(out)["steps"]) == (0, {"first": 5, "last": 6})
    code, out, _ = run(capsys, "records", "validate", DATA / "slime", "--reader", "slime")
    assert (code, out.strip()) == (0, "valid: 8 rows in 2 files, no rule is broken")


def test_rounded_log_probs_are_told_and_kept(capsys, tmp_path):
    out = tmp_path / "a.parquet"
    run(capsys, "records", "convert", DATA / "verifiers", out)
    for path in (DATA / "verifiers", out):
        _, said, _ = run(capsys, "audit", path, "--json")
        assert "rounded to 4 decimals in the file: that alone gives a token's log ratio" in said
        assert "deviation of 4.1e-05 nats" in said
