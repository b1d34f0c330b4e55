"""Reports: values that draw nothing, one table with three printers, and one wording of a number wherever it stands."""

import ast
import io
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from reweigh import report
from reweigh.__main__ import main
from reweigh.audit import Audit, audit
from reweigh.audit import result as results
from reweigh.doctor import Diagnosis, Finding, doctor
from reweigh.gate import Bound, Policy, gate, read_run
from reweigh.plan import plan
from reweigh.records import RecordWriter, RunInfo
from reweigh.report.tables import (
    WIDE,
    Cell,
    Column,
    Table,
    columns,
    in_markdown,
    line,
    to_html,
    to_markdown,
    to_terminal,
)
from reweigh.report.words import said, tip
from reweigh.stats.intervals import Number

PACKAGE = Path(report.__file__).parents[1]
DRAWS = {"rich", "jinja2", "plotly", "markupsafe"}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    path, g = tmp_path_factory.mktemp("records") / "a.parquet", np.random.default_rng(0)
    rows = []
    for i in range(96):
        log_mu = -1 - g.exponential(size=int(g.integers(5, 90)))
        log_pi = log_mu + 0.03 * g.normal(size=len(log_mu)) - 5e-4
        one = {"sequence_id": str(i), "step": i // 24, "advantage": float(g.normal())}
        rows.append(one | {"log_mu": log_mu, "log_pi": log_pi})
    with RecordWriter(path, RunInfo(engine="vllm")) as writer:
        writer.write(rows)
    return path


@pytest.fixture(scope="module")
def found(records):
    return replace(audit(records, by=["step"]), diagnosis=doctor(records))


# values that draw nothing


def test_results_load_nothing_that_draws():
    """In a fresh interpreter."""
    names = ("audit", "doctor", "plan", "gate", "watch", "report")
    imports = ", ".join(f"reweigh.{name}" for name in names)
    code = f"import sys; import {imports}; print(sorted(m.split('.')[0] for m in sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    loaded = set(ast.literal_eval(out.stdout))
    assert {"torch", "pyarrow"} <= loaded
    assert not loaded & (DRAWS | {"typer"})


def test_an_audit_travels_with_what_was_worked_out(found):
    sentence = found.headline.sentence
    there = pickle.loads(pickle.dumps(found))
    assert isinstance(there, Audit)
    assert there.headline.sentence == sentence
    assert report.document(there) == report.document(found)
    assert report.text(there) == report.text(found)


def test_headline_and_recommendation_are_worked_out_once(records, tmp_path, monkeypatch, capsys):
    calls = []
    for name in ("headline", "recommend"):
        real = getattr(results, name)
        counted = lambda *args, real=real, name=name: (calls.append(name), real(*args))[1]  # noqa: E731
        monkeypatch.setattr(results, name, counted)
    page = tmp_path / "a.html"
    main(["audit", str(records), "--html", str(page), "--estimators", "seq_tis(2), naive", "--batch", "64"])
    assert sorted(calls) == ["headline", "recommend"]
    assert "at N = 64" in capsys.readouterr().out
    calls.clear()
    main(["audit", str(records), "--html", str(page), "--json", "--estimators", "seq_tis(2), naive"])
    assert sorted(calls) == ["headline", "recommend"]


def test_another_diagnosis_is_another_headline(found):
    before = found.headline.sentence
    stale = Diagnosis("stale_weights", (Finding("stale_weights", 0.9, None, ()),))
    other = replace(found, diagnosis=stale)
    assert "the sampler is some updates behind" in other.headline.sentence
    assert found.headline.sentence == before
    assert replace(found, batch=7).recommendation.n == 7
    assert found.recommendation.n == 96


# one table, three printers

TABLE = Table.of(
    (*columns("n", "95% interval", first=[Column("name", "left", most=20, short="")]), Column("spare", spare=WIDE)),
    [["a <b>", Cell("1,000", "1,000 nats\nn = 5 tokens"), "[1, 2]", "x"], ["long" * 40, "2"]],
    "A title",
    ["a note | with a bar"],
)


def printed(width):
    console = Console(width=width, record=True, file=io.StringIO())
    to_terminal([line("one", "dim"), TABLE], console, 100)
    return [text.rstrip() for text in console.export_text().splitlines()]


def test_a_terminal_says_what_there_is_room_for():
    wide, small = printed(100), printed(99)
    assert wide[:2] == ["one", "A title"]
    assert re.fullmatch(r" +n +95% interval +spare", wide[2])
    assert re.fullmatch(r" +n +95% interval", small[2])
    assert re.fullmatch(r"a <b> +1,000 +\[1, 2\] +x", wide[4])
    assert wide[-1] == small[-1] == "a note | with a bar"
    assert "nats" not in "".join(wide)  # a tip


def test_a_page_has_tips_and_no_markup_of_ours_is_taken_from_names():
    html = to_html(TABLE)
    assert '<th scope="row">a &lt;b&gt;</th>' in html
    assert '<td><span class="n" tabindex="-1" title="1,000 nats\nn = 5 tokens">1,000</span></td>' in html
    assert '<td class="range">[1, 2]</td>' in html
    assert '<th scope="col" class="text">name</th>' in html
    assert ("long" * 40)[:117] + "..." in html
    assert html.count("<td") == 2 * 3  # a row that ends early is filled
    prose = Table.of([Column("says", "left", prose=True)], [["long" * 40]])
    assert "long" * 40 in to_html(prose)
    assert "<h2>" not in to_html(prose)


def test_markdown_has_a_column_each():
    lines = to_markdown(TABLE).splitlines()
    assert lines[:2] == ["| name | n | 95% interval | spare |", "|---|---|---|---|"]
    assert lines[2] == "| a &lt;b> | 1,000 | \\[1, 2\\] | x |"
    assert in_markdown("a|b\n\x00c") == "a\\|b \ufffdc"


# one wording of a number


def test_a_tip_says_the_number_and_its_interval_as_the_table_does():
    ratio = Number(0.97973, 0.9291, 1.0307, 0.97973, "ratio", "Mean of pi/mu.")
    value, ends = said("mean_ratio", ratio)
    assert (value, ends) == ("0.98", "[0.93, 1.03]")
    assert tip(ratio, 5623, "token", value, ends) == (
        "0.98 ratio\n95% interval [0.93, 1.03]\nn = 5,623 tokens\nMean of pi/mu."
    )
    part = Number(0.1234, 0.11, 0.14, 0.1234)
    value, ends = said("ess_fraction", part)
    assert tip(part, 1, "token", value, ends) == "12%\n95% interval [11%, 14%]\nn = 1 token"
    assert tip(part, 1, "token", value) == tip(part, 1, "token", value, ends)
    refused = Number(None, sample=0.5, refused="too few")
    assert tip(refused, 9, "sequence", "50%*") == "refused: too few; 50% in this sample\nn = 9 sequences"
    assert tip(Number(3.0, 2.0, None), 9, "token", "3.0") == "3.0\na bound at 95%\nn = 9 tokens"


def test_terminal_page_and_tips_agree(found):
    """What stands in a cell of a terminal's table stands in the page's, with its tip."""
    html, text = report.page(found), report.text(found, 120, full=True)
    rows = dict(re.findall(r"^(mean ratio \(must be 1\)|KL\(mu\|\|pi\) by k3, nats) +(\S+ +\[[^\]]*\])", text, re.M))
    assert len(rows) == 2
    for label, shown in rows.items():
        value, ends = re.match(r"(\S+) +(\[.*\])", shown).groups()
        cell = rf'<th scope="row">{re.escape(label)}</th><td><span [^>]*title="([^"]*)">{re.escape(value)}</span></td>'
        tips = re.search(cell + rf'<td class="range">{re.escape(ends)}</td>', html)
        assert tips, label
        assert tips.group(1).startswith(value)
        assert f"95% interval {ends}" in tips.group(1)
    for name in (trial.name for trial in found.trials):
        (kept,) = re.findall(rf"^{re.escape(name)} +\w+ +(\S+%) +\S+% +\S+% +\S+ +\S+$", text, re.M)
        assert re.search(
            rf'<th scope="row">{re.escape(name)}</th><td class="text">\w+</td><td><span [^>]*>{kept}<', html
        )


def test_the_script_of_the_page_rounds_nothing():
    script = (PACKAGE / "report" / "page.js").read_text()
    assert not re.findall(r"toFixed|toPrecision|toExponential|Math\.round|1e-12", script)
    assert re.findall(r".*toLocaleString.*", script) == ['  const whole = (n) => n.toLocaleString("en-US"); // a count']


def test_text_is_what_a_terminal_shows(records, found):
    console = Console(width=100, record=True, file=io.StringIO())
    report.terminal(found, console)
    assert console.export_text().rstrip("\n") == report.text(found)
    held = gate(read_run(records), Policy((Bound("kl_k3", "token", "at_most", 0.01),)))
    assert report.text(held).startswith("OK    1 bound: all kept\n  pass  ")
    assert report.document(held) == held.to_dict()
    assert report.text(plan(1e-3, [4096])).startswith("ok: small: at KL 0.001 and 4,096 tokens")
    assert report.text(found.diagnosis).startswith("verdict: ")
    assert report.document(found.diagnosis) == found.diagnosis.to_dict()


@pytest.mark.parametrize("width", [60, 80])
def test_plan_and_gate_are_readable_on_a_narrow_terminal(records, width):
    """Lines are broken between words, no cell is cut off, and what is to be copied is one line of its own."""
    held = gate(read_run(records), Policy((Bound("kl_k3", "token", "at_most", 1e-9, reason="a limit nobody keeps"),)))
    for found in (held, plan(1e-3, [4096]), plan(1e-3, [256, 4096])):
        out = io.StringIO()
        report.terminal(found, Console(file=out, width=width, force_terminal=True, color_system=None))
        lines = out.getvalue().splitlines()
        assert "…" not in out.getvalue()
        long = [one for one in lines if len(one.rstrip()) > width]
        assert all(("=" in one and "'" in one) or "=[" in one for one in long), long  # options of trainers
        piped = report.text(found, width).splitlines()
        assert len(piped) < len(lines)  # which a program reads a line at a time
