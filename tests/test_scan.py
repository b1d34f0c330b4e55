"""One reading for every command: families of sums over one pass, one lag, one rule for bad values, one open."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from doctor_records import every_column, world, write

from reweigh import doctor as diagnosing
from reweigh.__main__ import main
from reweigh.audit import answer, audit, question
from reweigh.doctor import doctor
from reweigh.plan import plan_records
from reweigh.records import RecordWriter
from reweigh.records.files import cut
from reweigh.records.schema import Tally
from reweigh.report import document
from reweigh.scan import BYS, Job, Measured, Workers, levels, look, measure, scan
from reweigh.scan.measure import Task, read
from reweigh.scan.rows import Rows

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples" / "records"
ROWS = every_column(prompts=12)  # 48 responses


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr("reweigh.scan.run.PART_TOKENS", 300)
    monkeypatch.setattr("reweigh.scan.tokens.PIECE_TOKENS", 100)


# one pass


def together(path, **options):
    known = look(path)
    by = options.get("by", ())
    found = scan(known, [question(by=by), diagnosing.question(known, by), levels.question()])
    return document(answer(found)), diagnosing.answer(found).to_dict()


def apart(path, **options):
    return document(audit(path, **options)), doctor(path, **options).to_dict()


@pytest.mark.parametrize("name", ["transformers_int8", "vllm_bfloat16"])
def test_an_audit_with_a_diagnosis_is_both_to_the_last_bit(name):
    path = EXAMPLES / f"{name}.parquet"
    assert together(path) == apart(path)


@pytest.mark.slow
def test_every_cut_together_is_every_cut_alone(tmp_path, small):
    path = write(tmp_path / "a.parquet", ROWS, row_group=5)
    assert together(path, by=BYS) == apart(path, by=BYS)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["parquet", "jsonl", "jsonl.gz"])
def test_an_audit_opens_its_file_once_and_reads_it_once(tmp_path, form):
    """By Python's own audit hook, in a fresh interpreter; Arrow is never given a path to open by itself."""
    path = tmp_path / f"a.{form}"
    with RecordWriter(path) as writer:
        writer.write(world(0, prompts=6))
    code = (
        "import sys; opened = []; mine = sys.argv[1];"
        "sys.addaudithook(lambda event, args: opened.append(args) if event == 'open' and str(args[0]) == mine else 0);"
        "import pyarrow.parquet as pq; plain = pq.ParquetFile;"
        "pq.ParquetFile = lambda source: opened.append(source) if str(source) == mine else plain(source);"
        "from reweigh.__main__ import main; main(['audit', mine, '-q', '--workers', '1']);"
        "print(len(opened))"
    )
    out = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.splitlines()[-1] == "1"


def test_each_part_is_read_once_whatever_is_asked(tmp_path, small, capsys, monkeypatch):
    import reweigh.records.files as files

    path, read = write(tmp_path / "a.parquet", ROWS, row_group=6), []
    plain = files.read_parquet
    monkeypatch.setattr(files, "read_parquet", lambda file, part, *rest: read.append(part) or plain(file, part, *rest))
    monkeypatch.chdir(tmp_path)
    assert main(["audit", path, "-q", "--workers", "1"]) == 0
    assert read == cut(path, 300)
    assert len(read) > 3


# one lag


def lagging(**columns):
    whole = {name: lambda i, n, g, value=value: value for name, value in columns.items() if name != "versions"}
    versions = columns.get("versions", lambda i, n, g: np.full(n, 5 - i % 3))
    return world(3, prompts=15, versions=versions, **whole)


@pytest.mark.parametrize("columns", [{"step": 5}, {"trainer_version": 5}, {"trainer_version": 5, "step": 900}])
def test_audit_and_doctor_count_the_same_lag(tmp_path, columns):
    path = write(tmp_path / "a.parquet", lagging(**columns))
    found = audit(path, by=["lag"])
    slices = {row.label: row.token.n for row in found.slices["lag"]}
    assert slices == {label: one.tokens for label, one in doctor(path, by=["lag"]).slices["lag"].items()}
    assert list(slices) == ["0", "1", "2"]
    assert ("counted from their step" in " ".join(found.notes)) == ("trainer_version" not in columns)


def test_what_a_lag_is_counted_from_is_said_where_a_lag_is_read(tmp_path):
    """Not of a run whose lags are all 0, unless it is cut by them; of one whose lags differ in any case."""
    same = write(tmp_path / "same.parquet", lagging(step=5, versions=lambda i, n, g: np.full(n, 5)))
    differ = write(tmp_path / "differ.parquet", lagging(step=5))
    said = lambda found: "counted from their step" in " ".join(found.notes)  # noqa: E731
    assert [said(audit(same)), said(audit(same, by=["lag"])), said(audit(differ))] == [False, True, True]


def test_a_step_below_the_versions_does_not_count_them(tmp_path):
    path = write(tmp_path / "a.parquet", lagging(step=2))
    assert [row.label for row in audit(path, by=["lag"]).slices["lag"]] == ["not recorded"]
    assert doctor(path, by=["lag"]).slices["lag"] == {}


@pytest.mark.parametrize("by", BYS)
def test_audit_and_doctor_cut_alike(tmp_path, by):
    path = write(tmp_path / "a.parquet", ROWS)
    theirs = {label: one.tokens for label, one in doctor(path, by=[by]).slices[by].items()}
    ours = {row.label: row.token.n for row in audit(path, by=[by]).slices[by] if row.label != "not recorded"}
    assert ours == theirs
    assert sum(ours.values()) > 0


# one name for one number


@pytest.mark.parametrize("name", ["transformers_int8", "vllm_fp8_kv"])
def test_no_two_numbers_of_one_page_have_one_name(name):
    ours, theirs = together(EXAMPLES / f"{name}.parquet")
    numbers = {key: x["value"] for key, x in ours["levels"]["token"]["numbers"].items()}
    evidence = {x["name"]: x["value"] for cause in theirs["causes"] for x in cause["evidence"]}
    shared = set(numbers) & set(evidence)
    assert {key: numbers[key] for key in shared} == {key: evidence[key] for key in shared}
    assert "mean_ratio" in numbers
    assert "mean_ratio" not in evidence


# one rule for bad values


def spoilt():
    rows = [dict(r) for r in ROWS]
    rows[4]["log_mu"] = np.array(rows[4]["log_mu"])
    rows[4]["log_mu"][5] = np.nan
    rows[7]["versions"] = rows[7]["versions"][:-1]
    rows[9]["entropy_pi"] = rows[9]["entropy_pi"][:-1]
    return rows


COMMANDS = {
    "audit": lambda path, **k: document(audit(path, **k)),
    "doctor": lambda path, **k: doctor(path, **k).to_dict(),
    "plan": lambda path, **k: plan_records(path, **k).to_dict(),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_bad_value_stops_every_command_with_the_same_words(tmp_path, name):
    rows = spoilt()
    rows[7], rows[9] = ROWS[7], ROWS[9]
    path = write(tmp_path / "a.parquet", rows)
    with pytest.raises(
        ValueError, match=r"a\.parquet row 4: log_mu\[5\] = nan is not finite\nhint: .*--keep-going"
    ) as e:
        COMMANDS[name](path, keep_going=False)
    with pytest.raises(ValueError, match="not finite") as other:
        audit(path)
    assert str(e.value) == str(other.value)


def test_what_is_left_out_is_counted_in_the_same_words(tmp_path):
    path = write(tmp_path / "a.parquet", spoilt())
    with pytest.raises(ValueError, match=r"row 7: versions has \d+ values"):
        audit(path)
    found = audit(path, keep_going=True)
    assert found.notes[0] == f"1 row left out: versions: list length differs, first in {path} row 7"
    assert found.files[0].rows == len(ROWS) - 1  # the audit does not read entropies
    said = {note.rule: note.count for note in doctor(path).notes}
    assert said == {
        "versions: list length differs": 1,
        "entropy_pi: list length differs": 1,
        "log_mu: not finite": 1,
    }


def test_a_column_that_only_the_doctor_reads_does_not_stop_an_audit(tmp_path):
    rows = spoilt()
    rows[4], rows[7] = ROWS[4], ROWS[7]
    path = write(tmp_path / "a.parquet", rows)
    ours, theirs = together(path)
    assert ours == document(audit(path))
    assert [(note["rule"], note["count"]) for note in theirs["notes"]] == [("entropy_pi: list length differs", 1)]
    assert theirs["sequences"] == len(ROWS) - 1


# one way to run, stop and go on


class Stop(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_goes_on_from_its_state_to_the_last_bit(tmp_path, small, name):
    path, state = write(tmp_path / "a.parquet", ROWS, row_group=4), tmp_path / "state"
    run, seen = COMMANDS[name], []

    def stop(progress):
        seen.append(progress)
        if len(seen) == 3:
            raise Stop

    whole = run(path)
    with pytest.raises(Stop):
        run(path, state=state, on_progress=stop)
    assert state.exists()
    after = []
    assert run(path, state=state, resume=True, on_progress=after.append) == whole
    assert after[0].resumed == seen[-1].tokens > 0
    assert not state.exists()
    with pytest.raises(ValueError, match=f"{name}: resume needs the state file"):
        run(path, resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_runs_in_processes_to_the_last_bit(tmp_path, small, name):
    path = write(tmp_path / "a.parquet", ROWS, row_group=4)
    assert COMMANDS[name](path, engine=Workers(2)) == COMMANDS[name](path)


def test_sums_of_every_family_travel_as_bytes(tmp_path):
    path = write(tmp_path / "a.parquet", spoilt())
    known = look(path)
    job = Job((question(by=BYS), diagnosing.question(known, BYS)), keep_going=True)
    found = measure(known.tasks[0], job)
    data = found.to_bytes(job)
    again = Measured.from_bytes(data, job)
    assert again.to_bytes(job) == data
    assert again.notes == found.notes
    assert list(again.sums) == ["audit", "doctor"]


# a sample


def test_a_sample_is_spread_over_the_records_and_said(tmp_path, small):
    path = write(tmp_path / "a.parquet", [{**r, "step": i} for i, r in enumerate(world(0, prompts=60))], row_group=20)
    whole, some = doctor(path), doctor(path, most=2000, by=["step"])
    assert 1000 < some.tokens < 3000 < whole.tokens
    starts = [int(label.split(" to ")[0]) for label in some.slices["step"]]
    assert len(starts) > 6
    assert max(starts) - min(starts) > 150
    [note] = some.notes
    assert (note.rule, note.count) == ("looked at a sample", some.sequences)
    assert doctor(path, most=10**6).to_dict() == whole.to_dict()


@pytest.mark.slow
def test_a_sample_does_not_depend_on_what_reads_it(tmp_path, monkeypatch):
    monkeypatch.setattr("reweigh.scan.run.PART_TOKENS", 80_000)
    path = write(tmp_path / "a.parquet", world(0, prompts=50, length=2000), row_group=20)  # 400,000 tokens
    alone = doctor(path, most=150_000)
    assert 80_000 < alone.tokens < 250_000
    assert alone.to_dict() == doctor(path, most=150_000, engine=Workers(2)).to_dict()


def test_the_command_line_goes_on_too(tmp_path, small, monkeypatch, capsys):
    path, state = write(tmp_path / "a.parquet", ROWS, row_group=4), tmp_path / "d.state"
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as m:
        m.setattr("reweigh.doctor.diagnose.answer", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        m.setattr("reweigh.scan.state.SAVE_SECONDS", 0.0)
        assert main(["doctor", path, "--state", str(state)]) == 130
    assert capsys.readouterr().err == f"interrupted: the same command with --resume goes on from {state}\n"
    assert main(["doctor", path, "--state", str(state), "--resume", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == doctor(path).to_dict()
    assert main(["plan", "--from", path, "--engine", "local", "--ray-address", "auto"]) == 2
    assert "--ray-address is of a Ray cluster" in capsys.readouterr().err


# a response that stands in several files


def without_files(found):
    return {k: v for k, v in found.items() if k not in ("files", "notes", "rows", "tokens")}


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_a_merged_file_beside_its_pieces_counts_once(tmp_path, small, form):
    pieces = [write(tmp_path / f"rank_{i}.parquet", ROWS[i::3], row_group=5) for i in range(3)]
    alone = document(audit(pieces))
    with RecordWriter(tmp_path / f"z.{form}") as writer:
        writer.write(ROWS)
    found = document(audit(tmp_path))
    assert without_files(found) == without_files(alone)
    assert [file["rows"] for file in found["files"]] == [*(file["rows"] for file in alone["files"]), 0]
    [note] = [note for note in found["notes"] if "read before" in note]
    assert note.startswith(f"{len(ROWS)} rows left out: ")
    assert f"z.{form}" in note


def test_what_is_new_in_a_file_counts_though_the_rest_was_read(tmp_path, small):
    write(tmp_path / "a.parquet", ROWS[:30], row_group=7)
    write(tmp_path / "b.parquet", ROWS[20:], row_group=7)
    found = audit(tmp_path)
    assert [file.rows for file in found.files] == [30, len(ROWS) - 30]
    assert found.levels["sequence"].n == len(ROWS)


def test_a_copy_in_one_file_counts_once(tmp_path, small):
    path = write(tmp_path / "a.parquet", [*ROWS, *ROWS[:10]], row_group=9)
    assert audit(path).files[0].rows == len(ROWS)
    assert audit(write(tmp_path / "b.parquet", [ROWS[0], *ROWS, ROWS[5]], row_group=100)).files[0].rows == len(ROWS)


def test_ids_that_begin_anew_at_each_step_are_of_other_responses(tmp_path, small):
    for step in range(3):
        rows = [{**row, "sequence_id": str(i)} for i, row in enumerate(world(step, prompts=4))]
        write(tmp_path / f"step_{step}.parquet", rows, row_group=5)
    found = audit(tmp_path)
    assert sum(file.rows for file in found.files) == 3 * len(rows)
    assert not [note for note in found.notes if "read before" in note]


def test_equal_short_answers_are_told_by_their_ids(tmp_path):
    one = {"prompt_id": "p", "log_mu": [-0.25], "log_pi": [-0.5]}
    path = write(tmp_path / "a.parquet", [{**one, "sequence_id": str(i)} for i in range(8)], row_group=3)
    assert audit(path).files[0].rows == 8


@pytest.mark.slow
def test_copies_are_found_by_processes_and_after_an_interruption(tmp_path, small):
    for name in "ab":
        write(tmp_path / f"{name}.parquet", ROWS, row_group=6)
    alone = document(audit(tmp_path))
    assert sum(file["rows"] for file in alone["files"]) == len(ROWS)
    assert document(audit(tmp_path, engine=Workers(2))) == alone
    state, after = tmp_path / "state", [0]

    def stop(progress):
        after[0] += 1
        if after[0] == 9:  # in the second file
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit(tmp_path, state=state, on_progress=stop)
    assert document(audit(tmp_path, state=state, resume=True)) == alone


def test_a_watch_counts_a_copy_once(tmp_path, small, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dumps = tmp_path / "dumps"
    dumps.mkdir()
    write(dumps / "a.parquet", ROWS, row_group=6)
    line = ["watch", "dumps", "--once", "--json"]
    assert main(line) == 0
    write(dumps / "b.parquet", ROWS, row_group=9)
    write(dumps / "c.parquet", ROWS[:4], row_group=9)
    capsys.readouterr()
    assert main(line) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == len(ROWS)


# which rows are read


def ids(path, **choice):
    """The responses that are read, by their id."""
    job = Job((question(),), rows=Rows.of(**choice))
    found = []
    for part in cut(path, 10**9):
        for one in read(Task((part,)), job, Tally()):
            found += one.column("sequence_id").tolist()
    return found


def test_conditions_choose_rows(tmp_path):
    rows = [{**row, "reward": i / 4} for i, row in enumerate(ROWS)]
    path = write(tmp_path / "a.parquet", rows, row_group=7)
    named = [row["sequence_id"] for row in rows]
    length = sorted(len(row["log_mu"]) for row in rows)[20]
    assert ids(path) == named
    for text, keep in (
        ("reward >= 2.5", lambda row: row["reward"] >= 2.5),
        ("reward < 1 and reward != .25", lambda row: row["reward"] < 1 and row["reward"] != 0.25),
        (f"length <= {length}", lambda row: len(row["log_mu"]) <= length),
        (f"prompt_id = {rows[3]['prompt_id']}", lambda row: row["prompt_id"] == rows[3]["prompt_id"]),
        ("source ~ a.parq", lambda row: True),
        ("source != a.parquet and finish_reason = none", lambda row: False),
    ):
        assert ids(path, where=[text]) == [name for name, row in zip(named, rows, strict=True) if keep(row)], text
    assert ids(path, where=["reward > 1", "reward < 2"]) == ids(path, where=["reward > 1 and reward < 2"])


def test_a_sample_is_of_whole_prompts_and_the_same_in_every_file(tmp_path):
    path = write(tmp_path / "a.parquet", ROWS, row_group=7)
    some = ids(path, share=0.5)
    prompts = {row["prompt_id"] for row in ROWS if row["sequence_id"] in some}
    assert 0 < len(prompts) < len({row["prompt_id"] for row in ROWS})
    assert some == [row["sequence_id"] for row in ROWS if row["prompt_id"] in prompts]
    again = write(tmp_path / "b.parquet", ROWS[::-1], row_group=11)
    assert ids(again, share=0.5) == some[::-1]


@pytest.mark.parametrize("engine", [Workers(1), pytest.param(Workers(2), marks=pytest.mark.slow)])
def test_a_limit_is_of_the_first_that_are_chosen(tmp_path, small, engine):
    for name, rows in (("a", ROWS[:20]), ("b", ROWS[20:])):
        write(tmp_path / f"{name}.parquet", rows, row_group=6)
    (tmp_path / "_first").mkdir()
    for limit in (1, 13, 20, 31, 1000):
        found = audit(tmp_path, rows=Rows(limit=limit), engine=engine)
        first = write(tmp_path / "_first" / "c.parquet", ROWS[:limit], row_group=6)
        assert sum(file.rows for file in found.files) == min(limit, len(ROWS))
        assert found.levels["sequence"].numbers["tv"] == audit(first).levels["sequence"].numbers["tv"]
        Path(first).unlink()


def test_what_was_not_asked_for_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "a.parquet", ROWS, row_group=7)
    middle = sorted(len(row["log_mu"]) for row in ROWS)[len(ROWS) // 2]
    assert main(["audit", path, "--where", f"length >= {middle}", "--json", "--no-doctor"]) in (0, 1)
    told = json.loads(capsys.readouterr().out)
    short = sum(len(row["log_mu"]) < middle for row in ROWS)
    assert any(f"{short} rows left out: rows that were not asked for" in note for note in told["notes"])
    assert main(["audit", path, "--where", "step > 10000"]) == 2
    err = capsys.readouterr().err
    assert f"nothing to judge: {len(ROWS)} rows left out" in err
    assert "--where and --sample say which rows are read" in err


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        ({"where": ["stepp > 3"]}, "no column of one value a row is called 'stepp'\nhint: did you mean step?"),
        ({"where": ["log_mu < -3"]}, "no column of one value a row is called 'log_mu'"),
        ({"where": ["step"]}, "must be COLUMN =, .* got 'step'"),
        ({"where": ["step > many"]}, "step must be compared with a number, got 'many'"),
        ({"where": ["env < b"]}, "env is a text, and has no order"),
        ({"where": ["step ~ 3"]}, "step is a number, and contains nothing"),
        ({"share": 0.0}, "--sample: must be a share"),
        ({"limit": 0}, "--limit: must be at least 1"),
    ],
)
def test_a_choice_of_rows_that_is_none_is_refused(choice, text):
    with pytest.raises(ValueError, match=text):
        Rows.of(**choice)
