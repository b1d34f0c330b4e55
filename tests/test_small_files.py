"""A folder of many small files: tables of them are put together, and nothing that is said changes by it."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from doctor_records import every_column, table, write

from reweigh.audit import audit, question
from reweigh.audit.compare import compare
from reweigh.doctor import doctor
from reweigh.plan import plan_records
from reweigh.records import RunInfo
from reweigh.records.schema import Tally
from reweigh.report import document
from reweigh.scan import Job, Workers, look, measure
from reweigh.scan.measure import Task, read
from reweigh.scan.rows import Rows

ROWS = [{k: v for k, v in row.items() if k != "pack_index"} for row in every_column(prompts=12)]  # 48 responses
FILES = 12


@pytest.fixture
def folder(tmp_path):
    """Twelve files of four responses."""
    dumps = tmp_path / "dumps"
    dumps.mkdir()
    for i in range(FILES):
        write(dumps / f"{i:02}.parquet", ROWS[4 * i : 4 * i + 4])
    return dumps


def parts(path, job=None):
    known, tally = look(path), Tally()
    job = job or Job((question(),))
    return [one for task in known.tasks for one in read(task, job, tally)]


def close(a, b, where="", tol=1e-7):
    """Numbers of both agree but for rounding; all else is equal."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key, value in a.items():
            close(value, b[key], f"{where}.{key}", tol)
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, value in enumerate(a):
            close(value, b[i], f"{where}[{i}]", tol)
    elif isinstance(a, float) and isinstance(b, float):
        assert a == pytest.approx(b, rel=tol, abs=1e-12, nan_ok=True), where
    else:
        assert a == b, where


def alone(monkeypatch):
    """Each file by itself."""
    monkeypatch.setattr("reweigh.scan.run.PART_TOKENS", 1)


def test_small_files_are_measured_in_one_go(folder):
    assert [len(one.parts) for one in look(folder).tasks] == [FILES]
    (whole,) = parts(folder)
    assert whole.column("sequence_id").tolist() == [row["sequence_id"] for row in ROWS]
    assert [whole.origin.place(row).split("/")[-1] for row in (0, 3, 4, 47)] == [
        "00.parquet row 0",
        "00.parquet row 3",
        "01.parquet row 0",
        "11.parquet row 3",
    ]


@pytest.mark.parametrize("run", [audit, plan_records, doctor])
def test_together_says_what_each_alone_says(folder, monkeypatch, run):
    def said():
        found = run(folder)
        return document(found) if run is audit else found.to_dict()

    joined = said()
    alone(monkeypatch)
    assert [len(one.parts) for one in look(folder).tasks] == [1] * FILES
    close(joined, said())


def test_a_table_of_the_whole_is_cut_at_the_batch(folder):
    job = replace(Job((question(),)), batch_tokens=400)
    whole = parts(folder, job)
    assert len(whole) > 4
    assert max(sum(map(len, one.table["log_mu"])) for one in whole) <= 400
    assert [name for one in whole for name in one.column("sequence_id").tolist()] == [r["sequence_id"] for r in ROWS]


def test_rows_and_tokens_are_counted_by_file(folder):
    each = [audit(folder / f"{i:02}.parquet").files[0] for i in range(FILES)]
    assert [(one.rows, one.tokens) for one in audit(folder).files] == [(4, one.tokens) for one in each]
    found = audit(folder, rows=Rows.of(limit=6))
    assert [one.rows for one in found.files] == [4, 2] + [0] * 10


def test_an_error_names_the_file_and_its_row(folder):
    rows = [dict(row) for row in ROWS[20:24]]
    rows[2]["log_mu"] = np.array(rows[2]["log_mu"])
    rows[2]["log_mu"][5] = np.nan
    write(folder / "05.parquet", rows)
    for run in (audit, plan_records):
        with pytest.raises(
            ValueError, match=r"05\.parquet row 2: log_mu\[5\] = nan is not finite\nhint: .*05\.parquet"
        ):
            run(folder, keep_going=False)
    (note,) = doctor(folder).notes
    assert note.place.endswith("05.parquet row 2")


def test_a_row_that_is_left_out_moves_no_name(folder):
    """The place of a later fault is right although rows before it were taken out."""
    rows = [dict(row) for row in ROWS[12:16]]
    rows[0]["versions"] = rows[0]["versions"][:-1]
    rows[3]["log_pi"] = np.array(rows[3]["log_pi"])
    rows[3]["log_pi"][1] = 0.5
    write(folder / "03.parquet", rows)
    assert [one.place.split("/")[-1] for one in doctor(folder).notes] == ["03.parquet row 0", "03.parquet row 3"]
    assert sum(one.rows for one in audit(folder, keep_going=True).files) == len(ROWS) - 1


def test_files_of_other_columns_are_not_put_together(folder, monkeypatch):
    for i in (4, 5):
        write(
            folder / f"{i:02}.parquet",
            [{k: v for k, v in r.items() if k != "entropy_pi"} for r in ROWS[4 * i : 4 * i + 4]],
        )
    job = Job((doctor_question(folder),))
    assert [one.table.num_rows for one in parts(folder, job)] == [16, 8, 24]
    joined = doctor(folder).to_dict()
    alone(monkeypatch)
    close(joined, doctor(folder).to_dict())


def doctor_question(folder):
    from reweigh.doctor.diagnose import question as ask

    return ask(look(folder), ())


def test_files_of_other_runs_and_number_types_keep_their_names(folder, monkeypatch):
    """Which are put together in two steps: within a run before types are cast, all of them after it."""
    for i in range(6, FILES):
        whole = table(ROWS[4 * i : 4 * i + 4])
        at = whole.schema.get_field_index("log_mu")
        whole = whole.set_column(at, "log_mu", whole["log_mu"].cast(pa.list_(pa.field("element", pa.float64()))))
        write(folder / f"{i:02}.parquet", whole, info=RunInfo(engine_version=f"0.{i // 2}"))
    (whole,) = parts(folder)
    assert [whole.origin.place(row).split("/")[-1] for row in range(48)] == [
        f"{i:02}.parquet row {k}" for i in range(FILES) for k in range(4)
    ]
    assert [one.rows for one in audit(folder).files] == [4] * FILES
    joined = document(audit(folder))
    alone(monkeypatch)
    close(joined, document(audit(folder)))


def test_numbers_of_packed_rows_begin_anew_in_each_file(folder, monkeypatch):
    for i in range(FILES):
        write(folder / f"{i:02}.parquet", [{**r, "pack_index": 0} for r in ROWS[4 * i : 4 * i + 4]])
    job = Job((doctor_question(folder),))
    assert [one.table.num_rows for one in parts(folder, job)] == [4] * FILES
    joined = doctor(folder).to_dict()
    alone(monkeypatch)
    close(joined, doctor(folder).to_dict())


def test_a_copy_in_another_small_file_counts_once(folder):
    before = document(audit(folder))
    write(folder / "12.parquet", ROWS[8:12])
    found = audit(folder)
    assert [one.rows for one in found.files] == [4] * FILES + [0]
    assert any("stands here twice" in note and "12.parquet row 0" in note for note in found.notes)
    close(before["levels"], document(found)["levels"])


def test_by_source_and_conditions_on_it_read_files_apart(folder):
    cut = audit(folder, by=["source"]).slices["source"]
    assert len(cut) == FILES
    assert sorted(row.token.n for row in cut) == sorted(one.tokens for one in audit(folder).files)
    some = audit(folder, rows=Rows.of(where=["source ~ 03.parq"]))
    assert [one.rows for one in some.files] == [4 if i == 3 else 0 for i in range(FILES)]
    found = compare(folder / "00.parquet", folder / "01.parquet", by=["source"])
    assert found is not None


@pytest.mark.slow
def test_processes_and_resuming_give_the_same_bits(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("reweigh.scan.run._MOST_PARTS", 3)
    assert [len(one.parts) for one in look(folder).tasks] == [3] * 4
    whole = document(audit(folder))
    assert document(audit(folder, engine=Workers(2))) == whole
    state, seen = tmp_path / "state", []

    def stop(progress):
        seen.append(progress)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit(folder, state=state, on_progress=stop)
    assert document(audit(folder, state=state, resume=True)) == whole


def test_sums_of_several_files_travel_as_bytes(folder):
    job = Job((question(),))
    found = measure(look(folder).tasks[0], job)
    again = type(found).from_bytes(found.to_bytes(job), job)
    assert again.files == found.files
    assert len(found.files) == FILES


def test_a_task_adds_up_its_parts(folder):
    (task,) = look(folder).tasks
    assert task.rows == len(ROWS)
    assert task.tokens == sum(one.tokens for one in task.parts)
    assert Task((*task.parts, replace(task.parts[0], tokens=None))).tokens is None


def test_text_files_say_their_line(tmp_path):
    for name, rows in (("a", ROWS[:3]), ("b", ROWS[3:6])):
        lines = [
            {"sequence_id": r["sequence_id"], "log_mu": list(r["log_mu"]), "log_pi": list(r["log_pi"])} for r in rows
        ]
        if name == "b":
            lines[1]["log_pi"][2] = 1.0
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    with pytest.raises(ValueError, match=r"b\.jsonl:2: log_pi\[2\]"):
        audit(tmp_path)
