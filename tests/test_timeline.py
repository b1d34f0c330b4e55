"""A run in time: the gap of each step, beside what was logged at the same steps."""

import json

import numpy as np
import pytest

from reweigh.__main__ import main
from reweigh.audit import audit
from reweigh.audit.timeline import MOST, timeline
from reweigh.records import RecordWriter
from reweigh.scan.rows import Rows


def write(folder, steps, *, per=8, length=20, reward=True):
    """A gap that grows with the step."""
    g = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for step in steps:
        sd, rows = 0.02 * (1 + step / 10), []
        for i in range(per):
            log_mu = -3 - g.exponential(size=length)
            row = {"sequence_id": f"{step}-{i}", "prompt_id": f"{step}-{i // 2}", "step": step, "log_mu": log_mu}
            row["log_pi"] = log_mu + sd * g.normal(size=length) - sd**2 / 2
            rows.append(row | ({"reward": step / 4} if reward else {}))
        with RecordWriter(folder / f"step_{step}.parquet") as writer:
            writer.write(rows)
    return folder


def logged(path, steps, **columns):
    lines = [{"step": s, **{name: f(s) for name, f in columns.items()}} for s in steps]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_each_step_is_what_an_audit_of_it_says(tmp_path):
    folder = write(tmp_path / "r", range(10))
    found = timeline(folder)
    assert [(m.first, m.last, m.sequences, m.tokens) for m in found.moments] == [(s, s, 8, 160) for s in range(10)]
    for m in found.moments:
        alone = audit(folder, rows=Rows.of([f"step = {m.first}"]))
        assert m.numbers["kl_k3"] == alone.levels["token"]["kl_k3"]
        assert m.numbers["ess_fraction"].sample == alone.levels["sequence"]["ess_fraction"].sample
        assert m.beside["reward"] == m.first / 4
    assert found.logged == {"reward": "the records' reward"}
    assert found.ranks["reward"][0] > 0.9


def test_what_was_logged_stands_beside_its_steps(tmp_path):
    folder = write(tmp_path / "r", range(0, 20, 2))
    path = logged(
        tmp_path / "m.jsonl",
        range(20),
        **{
            "critic/rewards/mean": lambda s: 1 - s / 40,
            "critic/rewards/max": lambda s: 1.0,
            "actor/entropy": lambda s: s,
            "actor/entropy_coeff": lambda s: 0.0,
            "actor/grad_norm": lambda s: 0.5,
            "response_length/mean": lambda s: 20,
            "actor/lr": lambda s: 1e-6,
        },
    )
    found = timeline(folder, path, show=["actor/lr"])
    assert found.logged == {
        "reward": "critic/rewards/mean",
        "entropy": "actor/entropy",
        "length": "response_length/mean",
        "grad norm": "actor/grad_norm",
        "actor/lr": "actor/lr",
    }
    assert [m.beside["reward"] for m in found.moments] == pytest.approx([1 - s / 40 for s in range(0, 20, 2)])
    assert found.ranks["reward"][0] < -0.9
    assert set(found.ranks) == {"reward", "entropy"}  # what does not move has no rank
    with pytest.raises(ValueError, match="no metric is called 'actor/lrr'\nhint: did you mean actor/lr"):
        timeline(folder, path, show=["actor/lrr"])
    elsewhere = logged(tmp_path / "late.jsonl", range(500, 510), reward=lambda s: 1.0)
    assert "reward was logged at none of the records' steps" in timeline(folder, elsewhere).notes


def test_many_steps_are_put_together(tmp_path):
    folder = write(tmp_path / "r", range(0, 2 * MOST + 2), per=2, length=4)
    found = timeline(folder)
    assert len(found.moments) <= MOST
    assert (found.moments[0].first, found.moments[0].last) == (0, 3)
    assert sum(m.sequences for m in found.moments) == 2 * (2 * MOST + 2)


def test_the_command_says_it_in_a_line_a_table_and_json(tmp_path, capsys):
    folder = write(tmp_path / "r", range(12))
    assert main(["timeline", str(folder)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("steps 0 to 11: KL(mu||pi) is 0.000")
    assert "█" in out
    assert max(map(len, out.splitlines())) <= 100
    assert main(["timeline", str(folder), "--json", "--where", "step >= 4"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [m["first"] for m in told["moments"]] == list(range(4, 12))
    with RecordWriter(tmp_path / "none.parquet") as writer:
        writer.write([{"sequence_id": "a", "log_mu": [-1.0], "log_pi": [-1.0]}])
    assert main(["timeline", str(tmp_path / "none.parquet")]) == 2
    assert "no record says its step" in capsys.readouterr().err
