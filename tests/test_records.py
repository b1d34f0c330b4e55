"""Records: any file that means records comes out as the same Batch; any other is refused with its place."""

import gzip
import json
import math
import os
import signal
import subprocess
import sys
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from reweigh.__main__ import main
from reweigh.records import (
    ARROW_SCHEMA,
    COLUMNS,
    ROLLOUT_REQUIRED,
    RecordWriter,
    RunInfo,
    UnreadableFileError,
    convert,
    describe,
    expand,
    read_batches,
    read_info,
    read_tables,
    validate,
)
from reweigh.records.arrays import arrow, arrow_texts, numbers, valid
from reweigh.records.schema import Tally
from reweigh.records.table import single

ROWS = [
    {
        "sequence_id": "a",
        "prompt_id": "p",
        "log_mu": [-1.0, -0.25],
        "log_pi": [-1.5, -0.5],
        "advantage": 2.0,
        "step": 3,
    },
    {"sequence_id": "b", "prompt_id": "p", "log_mu": [], "log_pi": [], "mask": []},
    {
        "sequence_id": "c",
        "log_mu": [-0.5, -2.0, -4.0],
        "log_pi": [-0.25, -1.0, -8.0],
        "mask": [True, False, True],
        "advantage": [1.0, -1.0, 0.5],
        "turns": [0, 0, 1],
        "versions": [7, 7, 8],
        "token_ids": [5, 0, 9],
        "text": 'say "é"\n',
        "env": "maths",
        "step": 4,
    },
    {"sequence_id": "d", "prompt_id": "q", "log_mu": [-0.125], "log_pi": [-0.125], "reward": 0.5},
]
INFO = RunInfo(engine="vllm", engine_version="0.32", temperature=0.7, top_k=50, logprobs_mode="processed", seed=1)
FORMATS = ("parquet", "jsonl", "jsonl.gz")


def write(path, rows=ROWS, info=INFO):
    with RecordWriter(path, info) as writer:
        writer.write(rows)
    return path


def whole(paths, **options):
    parts = list(read_batches(paths, **options))
    return parts[0] if len(parts) == 1 else parts


def raw_parquet(path, **columns):
    """A file that another program wrote: pyarrow alone, any types."""
    pq.write_table(pa.table(columns), path)
    return path


def minimal(**columns):
    return {
        "sequence_id": pa.array(["a", "b"]),
        "log_mu": pa.array([[-1.0, -2.0], [-3.0]], pa.list_(pa.float32())),
        "log_pi": pa.array([[-1.5, -2.0], [-3.0]], pa.list_(pa.float32())),
    } | columns


# --- what is written is what is read


@pytest.mark.parametrize("ending", FORMATS)
def test_round_trip(tmp_path, ending):
    part = whole(write(tmp_path / f"x.{ending}"))
    batch = part.batch
    assert batch.layout.cu_seqlens.tolist() == [0, 2, 2, 5, 6]
    assert batch.log_mu.tolist() == [-1.0, -0.25, -0.5, -2.0, -4.0, -0.125]
    assert batch.log_ratio.tolist() == [-0.5, -0.25, 0.25, 0.0, -4.0, 0.0]  # 0 where the mask is false
    assert batch.layout.mask.tolist() == [True, True, True, False, True, True]
    assert batch.layout.lengths.tolist() == [2, 0, 2, 1]
    assert batch.layout.turn.tolist() == [-1, -1, 0, 0, 1, -1]
    torch.testing.assert_close(
        batch.advantage, torch.tensor([2.0, 2.0, 1.0, -1.0, 0.5, math.nan]), equal_nan=True, rtol=0, atol=0
    )
    assert part.tokens("versions").tolist() == [-1, -1, 7, 7, 8, -1]
    assert part.column("text").tolist() == [None, None, 'say "é"\n', None]
    np.testing.assert_array_equal(part.column("step"), [3, math.nan, 4, math.nan])
    assert part.column("trainer_version") is None
    assert part.tokens("entropy_pi") is None
    assert read_info(part.path) == INFO
    assert part.check() is part


@pytest.mark.slow
def test_group_is_the_prompt_or_else_the_row_itself_in_every_process(tmp_path):
    path = write(tmp_path / "x.parquet")
    group = whole(path).batch.group.tolist()
    assert group[0] == group[1]
    assert len(set(group)) == 3
    code = f"from reweigh.records import read_batches; print(next(read_batches({str(path)!r})).batch.group.tolist())"
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(again.stdout) == group
    # a response without a prompt is not grouped with a prompt that has its name
    clash = [{**ROWS[3], "sequence_id": "p", "prompt_id": None}, {**ROWS[3], "sequence_id": "z", "prompt_id": "p"}]
    a, b = whole(write(tmp_path / "y.parquet", clash)).batch.group.tolist()
    assert a != b


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("max_tokens", [1, 2, 3, 5, 100])
def test_small_batches_join_to_the_whole(tmp_path, ending, max_tokens):
    path = tmp_path / f"x.{ending}"
    with RecordWriter(path) as writer:
        for row in ROWS:
            writer.write([row])
        writer.write([{**row, "sequence_id": row["sequence_id"] + "2"} for row in ROWS])
    all_at_once = whole(path)
    parts = list(read_batches(path, max_tokens=max_tokens))
    assert all(len(p.batch.log_pi) <= max_tokens or p.batch.layout.num_seqs == 1 for p in parts)
    assert [p.first_row for p in parts] == np.cumsum([0] + [p.batch.layout.num_seqs for p in parts])[:-1].tolist()
    for name in ("log_ratio", "group", "advantage"):
        joined = torch.cat(
            [getattr(p.batch, name) for p in parts if p.batch.advantage is not None or name != "advantage"]
        )
        whole_of = getattr(all_at_once.batch, name)
        if name == "advantage":  # None where no row of the part has one
            joined, whole_of = joined[~joined.isnan()], whole_of[~whole_of.isnan()]
        torch.testing.assert_close(joined, whole_of, rtol=0, atol=0)
    ids = [name for p in parts for name in p.column("sequence_id")]
    assert ids == ["a", "b", "c", "d", "a2", "b2", "c2", "d2"]
    place = parts[-1].origin.place(parts[-1].batch.layout.num_seqs - 1)
    assert place == (f"{path} row 7" if ending == "parquet" else f"{path}:9")  # the first line is the metadata


def test_log_probs_are_views_of_the_buffers_that_were_read(tmp_path):
    raw_parquet(tmp_path / "x.parquet", **minimal())
    for part in (whole(tmp_path / "x.parquet"), list(read_batches(tmp_path / "x.parquet", max_tokens=1))[1]):
        for name in ("log_mu", "log_pi"):
            values = single(part.table, name).flatten()
            address = values.buffers()[1].address + values.offset * 4
            assert getattr(part.batch, name).data_ptr() == address
            assert part.tokens(name).ctypes.data == address


def test_columns_read_only_what_is_asked_for(tmp_path):
    part = whole(write(tmp_path / "x.parquet"), columns=("step",))
    assert "step" in part.table.schema.names
    assert "text" not in part.table.schema.names
    assert part.batch.advantage is not None
    with pytest.raises(ValueError, match="'steps' is not a column; the columns are sequence_id, "):
        whole(tmp_path / "x.parquet", columns=("steps",))
    with pytest.raises(ValueError, match=r"versions has one value a token\nhint: use .tokens\('versions'\)"):
        part.column("versions")
    with pytest.raises(ValueError, match="step has one value a row"):
        part.tokens("step")


# --- files that others wrote


@pytest.mark.parametrize(
    "kind",
    [
        pa.large_list(pa.float32()),
        pa.list_(pa.float64()),
        pa.list_(pa.float16()),
        pa.large_list(pa.float64()),
    ],
    ids=str,
)
def test_other_float_lists_are_cast(tmp_path, kind):
    numbers = [np.float16(-1), np.float16(-2), np.float16(-3)]  # older pyarrow makes halves of nothing else
    columns = minimal(log_mu=pa.array([numbers[:2], numbers[2:]], kind))
    part = whole(raw_parquet(tmp_path / "x.parquet", **columns))
    assert part.batch.log_mu.dtype == torch.float32
    assert part.batch.log_mu.tolist() == [-1.0, -2.0, -3.0]


def test_other_scalar_types_are_cast(tmp_path):
    columns = minimal(
        sequence_id=pa.array(["a", "b"], pa.large_string()),
        prompt_id=pa.array(["p", None]).dictionary_encode(),
        step=pa.array([1.0, None]),  # pandas holds integers with a gap as floats
        reward=pa.array([1.0, 2.0], pa.float64()),
        versions=pa.array([[1, 2], [3]], pa.large_list(pa.int64())),
        mask=pa.array([[1, 0], [1]], pa.list_(pa.int64())),
        env=pa.nulls(2),
        surprise=pa.array([1, 2]),
    )
    part = whole(raw_parquet(tmp_path / "x.parquet", **columns))
    assert all(part.table.schema.field(n).type == ARROW_SCHEMA.field(n).type for n in part.table.schema.names)
    assert "surprise" not in part.table.schema.names
    assert part.tokens("versions").tolist() == [1, 2, 3]
    assert part.batch.layout.mask.tolist() == [True, False, True]


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()], ids=str)
def test_advantage_may_be_one_number_a_row(tmp_path, kind):
    # two rows and two tokens: one value a row must not be taken for one a token
    columns = minimal(
        log_mu=pa.array([[], [-1.0, -2.0]], pa.list_(pa.float32())),
        log_pi=pa.array([[], [-1.0, -2.0]], pa.list_(pa.float32())),
        advantage=pa.array([5.0, -1.5], kind),
    )
    assert whole(raw_parquet(tmp_path / "x.parquet", **columns)).batch.advantage.tolist() == [-1.5, -1.5]
    columns = minimal(advantage=pa.array([None, -1.5], kind))
    advantage = whole(raw_parquet(tmp_path / "y.parquet", **columns)).batch.advantage
    assert advantage.isnan().tolist() == [True, True, False]


def test_sliced_arrays_and_hidden_values_under_null_lists(tmp_path):
    table = pa.table(minimal()).slice(1)
    pq.write_table(table, tmp_path / "x.parquet")
    part = whole(tmp_path / "x.parquet")
    assert part.batch.log_pi.tolist() == [-3.0]
    # a null list may have values under it, and an array may start in the middle of its buffer
    lists = pa.ListArray.from_arrays(
        pa.array([0, 1, 3, 4], pa.int32()), pa.array([9, 1, 2, 3], pa.int32()), mask=pa.array([False, True, False])
    )
    from reweigh.records.table import token_values

    assert token_values(lists, np.array([1, 2, 1])).to_pylist() == [9, -1, -1, 3]
    assert token_values(lists.slice(1), np.array([2, 1])).to_pylist() == [-1, -1, 3]
    assert token_values(lists.slice(2), np.array([1])).to_pylist() == [3]


def test_a_null_log_prob_leaves_the_mask_and_is_counted(tmp_path):
    columns = minimal(log_pi=pa.array([[-1.5, None], [-3.0]], pa.list_(pa.float32())))
    part = whole(raw_parquet(tmp_path / "x.parquet", **columns))
    assert part.batch.layout.mask.tolist() == [True, False, True]
    assert part.batch.dropped.tolist() == [False, True, False]
    with pytest.raises(ValueError, match=r"x.parquet row 0: log_pi\[1\] = nan is not finite\nhint: "):
        part.check()


def test_pandas_style_jsonl_without_metadata(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('\n{"sequence_id":"a","log_mu":[-1,-2],"log_pi":[-1,null],"foo":1}\n\n')
    part = whole(path)
    assert part.batch.dropped.tolist() == [False, True]
    assert part.origin.place(0) == f"{path}:2"
    assert read_info(path) == RunInfo(schema_version=None)


@pytest.mark.parametrize("ending", FORMATS)
def test_no_rows_is_no_batch(tmp_path, ending):
    with RecordWriter(tmp_path / f"x.{ending}", INFO):
        pass
    assert list(read_batches(tmp_path / f"x.{ending}")) == []
    assert read_info(tmp_path / f"x.{ending}") == INFO
    assert describe(tmp_path / f"x.{ending}").rows == 0
    assert validate(tmp_path / f"x.{ending}").ok


# --- refusals, with name, rule, values, place and remedy


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            minimal(log_pi=pa.array([[-1.0], [-3.0]], pa.list_(pa.float32()))),
            r"x.parquet row 0: log_pi has 1 values, log_mu has 2\nhint: all list columns of a row have one length",
        ),
        (
            minimal(token_ids=pa.array([None, [3, 4]], pa.list_(pa.int32()))),
            r"x.parquet row 1: token_ids has 2 values, log_mu has 1\n",
        ),
        (
            minimal(log_mu=pa.array([[-1.0, -2.0], None], pa.list_(pa.float32()))),
            r"x.parquet row 1: log_mu is null\nhint: log_mu is required in every row",
        ),
        (minimal(sequence_id=pa.array([None, "b"])), r"x.parquet row 0: sequence_id is null\n"),
        (
            minimal(log_pi=pa.array(["-1", "-2"])),
            r"x.parquet row 0: log_pi must be list<\w+: float>, got string\nhint: write log_pi as list",
        ),
        (
            minimal(versions=pa.array([[1, 2], [2**40]], pa.list_(pa.int64()))),
            r"x.parquet row 1: versions must be list<\w+: int32>, got .*1099511627776 not in range",
        ),
        (minimal(step=pa.array([1.5, 2.0])), r"x.parquet row 0: step must be int64, got double: .*1.5"),
        (
            minimal(mask=pa.array([[1, 0], [2]], pa.list_(pa.int64()))),
            r"x.parquet row 1: mask must be list<\w+: bool>, got .*an integer mask is 0 or 1",
        ),
        (
            minimal(mask=pa.array([[True, True], [None]], pa.list_(pa.bool_()))),
            r"x.parquet row 1: the mask has a null entry\n",
        ),
        (minimal(sequence_id=pa.array([1, 2])), r"x.parquet row 0: sequence_id must be string, got int64\n"),
    ],
)
def test_what_parquet_may_not_hold(tmp_path, columns, message):
    path = raw_parquet(tmp_path / "x.parquet", **columns)
    with pytest.raises(ValueError, match=message):
        whole(path)
    found = validate(path)
    assert not found.ok
    assert not found.unreadable


def test_missing_columns_are_named_with_what_to_do(tmp_path):
    columns = minimal()
    del columns["log_pi"]
    path = raw_parquet(tmp_path / "x.parquet", **columns)
    with pytest.raises(
        ValueError, match=r"x.parquet: column log_pi is missing\nhint: this is a rollout that no trainer has rescored"
    ):
        whole(path)
    tables = list(read_tables(path, required=ROLLOUT_REQUIRED))
    assert [t.num_rows for t, _ in tables] == [2]
    columns["logmu"] = columns.pop("log_mu")
    path = raw_parquet(tmp_path / "y.parquet", **columns)
    with pytest.raises(ValueError, match=r"column log_mu is missing\nhint: rename logmu to log_mu .*The file has: "):
        whole(path)


def test_values_that_break_a_rule_are_written_for_who_wants_them(tmp_path):
    """As a trainer's capture does; what is told is what a reader will count."""
    told, path = Tally(), tmp_path / "x.parquet"
    rows = [{"sequence_id": "a", "log_mu": [-1.0, math.nan, -math.inf], "log_pi": [0.5, -1.0, -1.0]}]
    with RecordWriter(path) as writer:
        with pytest.raises(ValueError, match=r"log_mu\[1\] = nan is not finite \(2 tokens in this batch\)"):
            writer.write(rows)
        writer.write(rows, report=told)
    assert {rule: seen.count for rule, seen in told.by_rule.items()} == {"log_mu: not finite": 2, "log_pi: positive": 1}
    (part,) = read_batches(path)
    assert part.batch.dropped.tolist() == [False, True, True]
    assert part.batch.log_pi[0] == 0.5


def test_a_rollout_can_be_written_before_it_is_rescored(tmp_path):
    path = write(tmp_path / "x.parquet", [{"sequence_id": "a", "log_mu": [-1.0], "token_ids": [4]}])
    assert describe(path).tokens == 1
    with pytest.raises(
        ValueError, match=r"row 0: log_pi is null\nhint: this is a rollout that no trainer has rescored"
    ):
        whole(path)


@pytest.mark.parametrize("keep", [0, 3, 200, -1])
def test_truncated_parquet(tmp_path, keep):
    path = write(tmp_path / "x.parquet")
    path.write_bytes(path.read_bytes()[:keep])
    message = r"x.parquet: truncated or not closed: \d+ bytes and no Parquet footer at the end\nhint: .*Copy it again"
    if keep == 3:  # not even the four bytes that say Parquet
        message = "x.parquet: not a Parquet file: it starts with b'PAR', not b'PAR1'"
    with pytest.raises(UnreadableFileError, match=message):
        whole(path)
    assert [m.split("\n")[0].startswith(str(path)) for m in validate(path).unreadable] == [True]


def test_damaged_pages_name_the_row(tmp_path):
    path = tmp_path / "x.parquet"
    with RecordWriter(path) as writer:
        for i in range(3):
            log_probs = -np.random.default_rng(i).random(4000, dtype=np.float32)
            writer.write([{"sequence_id": str(i), "log_mu": log_probs, "log_pi": log_probs}])
    group = pq.ParquetFile(path).metadata.row_group(1)
    chunk = next(
        group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema.startswith("log_mu")
    )
    damaged = bytearray(path.read_bytes())
    start = chunk.data_page_offset
    damaged[start : start + chunk.total_compressed_size] = os.urandom(1) * chunk.total_compressed_size
    path.write_bytes(damaged)
    with pytest.raises(
        UnreadableFileError, match=r"x.parquet: damaged after row 1 of 3: .*\nhint: .*copy the file again"
    ):
        list(read_batches(path, max_tokens=4000))


def test_a_file_that_is_not_parquet(tmp_path):
    path = tmp_path / "x.parquet"
    path.write_text('{"sequence_id": "a"}')
    with pytest.raises(UnreadableFileError, match=r"not a Parquet file: it starts with b'\{\"se'.*\nhint: name JSON"):
        whole(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"sequence_id": "e", "log_mu": [-1.0', r"x.jsonl:6: the last line is cut short \(36 bytes, no newline"),
        ('{"sequence_id": "e", "log_mu": [-1.0\n', r"x.jsonl:6: not JSON: .*\nhint: each line is one JSON object"),
        ("[1, 2]\n", r"x.jsonl:6: a line must be a JSON object, got list"),
        (b"\xff\xfe{}\n", r"x.jsonl:6: not JSON: "),
    ],
)
def test_unreadable_jsonl_gives_the_line(tmp_path, line, message):
    path = write(tmp_path / "x.jsonl")
    with open(path, "ab") as file:
        file.write(line if isinstance(line, bytes) else line.encode())
    with pytest.raises(UnreadableFileError, match=message):
        list(read_batches(path))
    assert len(list(validate(path).unreadable)) == 1
    # what came before is read
    stream = read_batches(path, max_tokens=1)
    assert next(stream).batch.log_pi.tolist() == [-1.5, -0.5]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"log_mu": ["-1"]}, r"x.jsonl:6: log_mu must be a list of numbers, got \['-1'\]\nhint: write log_mu as list"),
        ({"log_mu": -1.0}, r"x.jsonl:6: log_mu must be a flat list, got -1.0"),
        ({"log_mu": [[-1.0]]}, r"x.jsonl:6: log_mu must be a flat list, got \[\[-1.0\]\]"),
        ({"log_mu": [[-1.0], 2]}, r"x.jsonl:6: log_mu must be a flat list"),
        ({"log_mu": [-1.0, -2.0]}, r"x.jsonl:6: log_pi has 1 values, log_mu has 2"),
        ({"log_mu": [True]}, r"x.jsonl:6: log_mu must be a list of numbers, got \[True\]"),
        ({"token_ids": [1.5]}, r"x.jsonl:6: token_ids must be a list of integers, got \[1.5\]"),
        ({"token_ids": [2**40]}, r"x.jsonl:6: token_ids must fit in 32 bits, got 1099511627776 to 1099511627776"),
        ({"mask": ["yes"]}, r"x.jsonl:6: mask must be a list of true and false"),
        ({"mask": [2]}, r"x.jsonl:6: mask must be a list of true and false \(or 1 and 0\), got \[2\]"),
        ({"prompt_id": 7}, r"x.jsonl:6: prompt_id must be a string, got 7"),
        ({"step": "3"}, r"x.jsonl:6: step must be an integer, got '3'"),
        ({"step": 2**70}, r"x.jsonl:6: step must be an integer, got"),
        ({"reward": [1]}, r"x.jsonl:6: reward must be a number, got \[1\]"),
        ({"log_pi": None}, r"x.jsonl:6: log_pi is null"),
    ],
)
def test_wrong_values_in_jsonl_give_the_line(tmp_path, row, message):
    path = write(tmp_path / "x.jsonl")
    with open(path, "a") as file:
        file.write(json.dumps({"sequence_id": "e", "log_mu": [-1.0], "log_pi": [-1.0]} | row) + "\n")
    with pytest.raises(ValueError, match=message):
        whole(path)
    found = validate(path)
    assert found.rows == 5
    assert any(v.place == f"{path}:6" for v in found.violations)


def test_truncated_gzip(tmp_path):
    path = write(tmp_path / "x.jsonl.gz")
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(UnreadableFileError, match=r"x.jsonl.gz: truncated or damaged gzip after line \d+: "):
        list(read_batches(path))
    path.write_text("{}\n")
    with pytest.raises(UnreadableFileError, match=r"x.jsonl.gz: not a gzip file"):
        list(read_batches(path))


def test_another_schema_version_is_refused(tmp_path):
    path = raw_parquet(tmp_path / "x.parquet", **minimal())
    table = pq.read_table(path).replace_schema_metadata({b"reweigh": b'{"schema_version": 99}'})
    pq.write_table(table, path)
    with pytest.raises(UnreadableFileError, match=r"x.parquet: RunInfo: schema_version must be 1 or 2, got 99\nhint: "):
        whole(path)
    lines = tmp_path / "x.jsonl"
    lines.write_text('{"reweigh": {"schema_version": 99}}\n')
    with pytest.raises(UnreadableFileError, match=r"x.jsonl:1: RunInfo: schema_version must be 1 or 2, got 99"):
        whole(lines)


# --- writing


@pytest.mark.parametrize("ending", FORMATS)
def test_rows_written_before_an_error_stay_readable(tmp_path, ending):
    path = tmp_path / f"x.{ending}"
    writer = RecordWriter(path, INFO)

    def run():
        with writer:
            writer.write(ROWS[:2])
            writer.write([ROWS[3], {"sequence_id": "z", "log_mu": [-1.0], "log_pi": [-1.0, -2.0]}])

    with pytest.raises(ValueError, match="row 1: log_pi has 2 values"):
        run()
    assert writer.rows_written == 2
    assert whole(path).column("sequence_id").tolist() == ["a", "b"]
    with pytest.raises(ValueError, match="is closed"):
        writer.write(ROWS[:1])


def test_ctrl_c_leaves_a_readable_file(tmp_path):
    path = tmp_path / "x.parquet"
    code = f"""
import sys
from reweigh.records import RecordWriter
with RecordWriter({str(path)!r}) as writer:
    writer.write([{{"sequence_id": "a", "log_mu": [-1.0], "log_pi": [-1.0]}}])
    print("written", flush=True)
    sys.stdin.read()
"""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout.readline() == "written\n"
        child.send_signal(signal.SIGINT)
        assert child.wait(300) == -signal.SIGINT
    assert whole(path).batch.log_mu.tolist() == [-1.0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"logpi": [-1.0]},
            r"row 0: logpi is not a column of the schema; did you mean log_pi\?\nhint: the columns are",
        ),
        ({"log_pi": [0.5]}, r"row 0: log_pi\[0\] = 0.5 is positive\nhint: a log-prob is at most 0; .*not logits"),
        ({"log_mu": [math.nan]}, r"row 0: log_mu\[0\] = nan is not finite"),
        ({"log_mu": [-math.inf]}, r"row 0: log_mu\[0\] = -inf is not finite"),
        ({"log_mu": [None]}, r"row 0: log_mu\[0\] = nan is not finite"),
        ({"token_ids": [-4]}, r"row 0: token_ids\[0\] = -4 is negative"),
        ({"entropy_pi": [-1.0]}, r"row 0: entropy_pi\[0\] = -1 is negative"),
        ({"log_mu_prefill": [1.0]}, r"row 0: log_mu_prefill\[0\] = 1 is positive"),
        ({"advantage": math.inf}, r"row 0: advantage\[0\] = inf is infinite"),
        ({"prompt_length": -1}, r"row 0: prompt_length is negative: -1"),
        ({"sequence_id": ""}, r"row 0: sequence_id is empty"),
        ({"sequence_id": None}, r"row 0: sequence_id is null"),
        ({"log_mu": None}, r"row 0: log_mu is null"),
        ({"step": 1.5}, r"row 0: step must be an integer, got 1.5"),
    ],
)
def test_the_writer_refuses_what_validate_would(tmp_path, row, message):
    good = {"sequence_id": "a", "log_mu": [-1.0], "log_pi": [-1.0]}
    with RecordWriter(tmp_path / "x.parquet") as writer, pytest.raises(ValueError, match=message):
        writer.write([good | row])
    assert pq.read_metadata(tmp_path / "x.parquet").num_rows == 0


def test_values_off_the_mask_may_be_anything(tmp_path):
    row = {"sequence_id": "a", "log_mu": [math.nan, -1.0], "log_pi": [3.0, -1.0], "mask": [0, 1], "token_ids": [-1, 2]}
    assert validate(write(tmp_path / "x.parquet", [row])).ok


def test_the_writer_takes_arrays_and_tensors(tmp_path):
    row = {
        "sequence_id": "a",
        "log_mu": torch.tensor([-1.0, -2.0], dtype=torch.bfloat16, requires_grad=True),
        "log_pi": np.array([-1.0, -2.5]),
        "mask": torch.tensor([True, False]),
        "advantage": torch.tensor(1.5),
        "token_ids": torch.tensor([3, 4]),
        "step": np.int32(7),
    }
    for ending in FORMATS:
        part = whole(write(tmp_path / f"x.{ending}", [row]))
        assert part.batch.log_ratio.tolist() == [0.0, 0.0]
        assert part.batch.log_pi.tolist() == [-1.0, -2.5]
        assert part.batch.advantage.tolist() == [1.5, 1.5]
        assert part.column("step").tolist() == [7]


def test_files_have_the_schema_and_each_call_is_a_row_group(tmp_path):
    path = tmp_path / "x.parquet"
    with RecordWriter(path) as writer:
        writer.write(ROWS[:1])
        writer.write([])
        writer.write(ROWS[1:])
    file = pq.ParquetFile(path)
    assert file.schema_arrow.names == [c.name for c in COLUMNS]
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [1, 3]


def test_jsonl_keeps_every_float32(tmp_path):
    x = -np.random.default_rng(0).exponential(size=2000).astype(np.float32)
    x[:3] = [-1e-30, -3.4e38, -0.0]
    path = write(tmp_path / "x.jsonl", [{"sequence_id": "a", "log_mu": x, "log_pi": x}])
    assert np.array_equal(whole(path).tokens("log_mu"), x)


# --- metadata


def test_run_info_round_trip_and_refusals():
    assert RunInfo.from_metadata(INFO.to_metadata()) == INFO
    assert RunInfo.from_metadata(None) == RunInfo.from_metadata({b"pandas": b"{}"}) == RunInfo(schema_version=None)
    assert RunInfo.from_dict({"engine": "x", "mine": 1}).engine == "x"
    with pytest.raises(ValueError, match='logprobs_mode must be "processed", "raw" or None, got \'cooked\''):
        RunInfo(logprobs_mode="cooked")
    with pytest.raises(ValueError, match=r"temperature must be a number or None, got '1.0'"):
        RunInfo(temperature="1.0")
    with pytest.raises(ValueError, match="under 'reweigh' must be JSON: "):
        RunInfo.from_metadata({b"reweigh": b"{"})


# --- paths


def test_expand(tmp_path):
    for name in ("b.parquet", "a.jsonl", "c.jsonl.gz", "notes.txt", "d.json"):
        (tmp_path / name).touch()
    names = ["a.jsonl", "b.parquet", "c.jsonl.gz"]
    assert [p.name for p in expand(tmp_path)] == names
    assert [p.name for p in expand(f"{tmp_path}/*.*l*")] == ["a.jsonl", "c.jsonl.gz"]
    assert [p.name for p in expand([tmp_path / "c.jsonl.gz", tmp_path])] == ["c.jsonl.gz", "a.jsonl", "b.parquet"]
    with pytest.raises(FileNotFoundError, match=r"q\*.parquet: no file matches"):
        expand(f"{tmp_path}/q*.parquet")
    with pytest.raises(FileNotFoundError, match=r"gone.parquet: no such file or folder"):
        expand(tmp_path / "gone.parquet")
    with pytest.raises(ValueError, match=r"notes.txt: records are .parquet, .*, got .txt\nhint: "):
        expand(tmp_path / "notes.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty: the folder has no record file"):
        expand(tmp_path / "empty")
    with pytest.raises(ValueError, match="no path was given"):
        expand([])


def test_a_name_with_brackets_is_a_file_before_it_is_a_glob(tmp_path):
    path = write(tmp_path / "run[1].parquet")
    assert expand(path) == [path]


# --- what other writers make of a list


def ray_struct(values, shapes):
    """What Ray Data makes of arrays of unequal lengths: a struct of all values and the shape."""
    data = pa.array(values, pa.large_list(pa.float32()))
    return pa.StructArray.from_arrays([data, pa.array(shapes, pa.list_(pa.int64()))], ["data", "shape"])


def test_arrays_of_ray_data_are_lists(tmp_path):
    path = raw_parquet(tmp_path / "x.parquet", **minimal(log_mu=ray_struct([[-1.0, -2.0], [-3.0]], [[2], [1]])))
    [part] = read_batches(path)
    assert part.batch.log_mu.tolist() == [-1.0, -2.0, -3.0]
    assert part.batch.log_ratio.tolist() == [-0.5, 0.0, 0.0]
    twice = raw_parquet(tmp_path / "y.parquet", **minimal(log_mu=ray_struct([[-1.0, -2.0], [-3.0]], [[2, 1], [1, 1]])))
    with pytest.raises(ValueError, match=r"y\.parquet row 0: log_mu must be list<.*got struct<data"):
        next(read_batches(twice))


class Tensor(pa.ExtensionType):
    """An extension type as Ray registers one when it is imported."""

    def __init__(self, storage):
        super().__init__(storage, "reweigh.test_tensor")

    def __arrow_ext_serialize__(self):
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage, serialized):
        return cls(storage)


@pytest.mark.parametrize("unequal", [True, False])
def test_extension_types_are_what_they_stand_on(tmp_path, unequal):
    values = [[-1.0, -2.0], [-3.0]]
    storage = ray_struct(values, [[2], [1]]) if unequal else pa.array(values, pa.large_list(pa.float32()))
    array = pa.ExtensionArray.from_storage(Tensor(storage.type), storage)
    path = raw_parquet(tmp_path / "x.parquet", **minimal(log_mu=array))
    plain = next(read_batches(path)).batch.log_mu.tolist()  # without the type, its storage is read
    pa.register_extension_type(Tensor(storage.type))
    try:
        assert isinstance(pq.read_table(path).schema.field("log_mu").type, pa.ExtensionType)
        [part] = read_batches(path)
    finally:
        pa.unregister_extension_type("reweigh.test_tensor")
    assert part.batch.log_mu.tolist() == plain == [-1.0, -2.0, -3.0]


def test_decimals_of_duckdb_are_numbers(tmp_path):
    decimals = pa.array([[Decimal("-1.25"), Decimal("-0.50")], [Decimal("-3.00")]], pa.list_(pa.decimal128(18, 2)))
    reward = pa.array([Decimal("0.5"), None], pa.decimal128(2, 1))
    [part] = read_batches(raw_parquet(tmp_path / "x.parquet", **minimal(log_mu=decimals, reward=reward)))
    assert part.batch.log_mu.tolist() == [-1.25, -0.5, -3.0]
    assert part.column("reward").tolist()[0] == 0.5
    ids = raw_parquet(tmp_path / "y.parquet", **minimal(token_ids=decimals))
    with pytest.raises(ValueError, match=r"token_ids must be list<.*int32>, got list<.*decimal128"):
        next(read_batches(ids))


# --- describe, validate, convert


def test_describe(tmp_path):
    write(tmp_path / "x.parquet")
    write(tmp_path / "y.jsonl", [{**ROWS[3], "sequence_id": "e"}], RunInfo())
    found = describe(tmp_path)
    assert (found.rows, found.tokens, found.tokens_counted) == (5, 7, 6)
    assert found.lengths == (0, 1.0, 3)
    assert (found.prompts, found.steps, found.envs) == (2, (3, 4), {"maths": 1})
    assert found.null_rows["log_mu"] == 0
    assert found.null_rows["reward"] == 3
    assert "entropy_pi" not in found.null_rows
    assert found.infos == (INFO, RunInfo())
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ([0.9, 0.5, 0.25, 1e-6], "log_mu[0] = 0.9 is positive: these are probabilities (3 of 4 values are over 0"),
        ([12.0, -1.0, 3.0, 0.5], "log_mu[0] = 12 is positive: these are logits (3 of 4 values are over 0, up to 12)"),
        ([-0.5, 0.2, -0.5, -0.5], "log_mu[1] = 0.2 is positive"),
    ],
)
def test_validate_names_the_unit_of_a_column(tmp_path, values, named):
    path = write(tmp_path / "x.parquet", [{"sequence_id": "a", "log_mu": [-1.0] * 4, "log_pi": [-1.0] * 4}])
    table = pq.read_table(path)
    at = table.schema.get_field_index("log_mu")
    pq.write_table(table.set_column(at, "log_mu", pa.array([values], pa.list_(pa.float32()))), path)
    [violation] = validate(path).violations
    assert violation.detail.startswith(named)
    assert ("these are" in violation.detail) == ("these are" in named)


@pytest.mark.parametrize("side", ["log_mu", "log_pi"])
def test_validate_names_a_side_of_base_10(tmp_path, side):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(4):
        log_mu = -rng.exponential(1.5, 20) - 1e-3
        row = {
            "sequence_id": str(i),
            "log_mu": log_mu,
            "log_pi": np.minimum(log_mu + 0.03 * rng.normal(size=20), -1e-4),
        }
        rows.append(row)
    assert validate(write(tmp_path / "good.parquet", rows)).ok
    bad = [{**row, side: row[side] / math.log(10)} for row in rows]
    [violation] = validate(write(tmp_path / "bad.parquet", bad)).violations
    assert f"{side} is of base 10: log_pi is" in violation.detail
    assert "write natural logarithms" in violation.hint
    assert describe(tmp_path / "bad.parquet").broken[0].rule == f"{side}: of base 10"


def test_validate_counts_each_rule_and_names_its_first_place(tmp_path):
    floats = pa.list_(pa.float32())
    path = raw_parquet(
        tmp_path / "x.parquet",
        sequence_id=pa.array(["a", "b", "a", "d", "e"]),
        log_mu=pa.array([[-1.0, 0.5], [0.25], [-1.0], [-1.0, -1.0], [None]], floats),
        log_pi=pa.array([[-1.0, -1.0], [-1.0], [-1.0], [-1.0], [-1.0]], floats),
        mask=pa.array([None, None, [False], None, None], pa.list_(pa.bool_())),
        token_ids=pa.array([None, [-5], None, None, None], pa.list_(pa.int32())),
        log_pu=pa.array([1, 2, 3, 4, 5]),
    )
    other = write(tmp_path / "y.parquet", [ROWS[0]])
    found = validate([path, other])
    seen = {v.rule: (v.count, v.counted, v.place) for v in found.violations}
    assert seen == {
        "sequence_id: duplicated": (2, "rows", f"{path} row 2"),  # and "a" once more in the other file
        "log_pi: list length differs": (1, "rows", f"{path} row 3"),
        "mask: no token counts": (1, "rows", f"{path} row 2"),
        "log_mu: not finite": (1, "tokens", f"{path} row 4"),  # not row 3 of those that line up
        "log_mu: positive": (2, "tokens", f"{path} row 0"),
        "token_ids: negative": (1, "tokens", f"{path} row 1"),
    }
    assert found.rows == 6
    assert found.notes[0] == f"{path}: log_pu is not a column of the schema; did you mean log_pi?; it is ignored"
    assert "no run metadata" in found.notes[1]


def test_validate_goes_on_after_an_unreadable_file(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    write(tmp_path / "b.parquet", [ROWS[0]])
    found = validate(tmp_path)
    assert found.rows == 1
    assert len(found.unreadable) == 1
    assert not found.violations


def test_validate_notes_raw_log_probs_at_a_temperature(tmp_path):
    path = write(tmp_path / "x.parquet", ROWS[:1], RunInfo(temperature=0.5, logprobs_mode="raw"))
    assert "log_mu is raw and temperature was 0.5" in validate(path).notes[0]


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("start", FORMATS)
def test_convert_keeps_every_value(tmp_path, start, ending):
    source = write(tmp_path / f"x.{start}")
    out = tmp_path / f"out.{ending}"
    assert convert(source, out) == 4
    a, b = (pa.concat_tables([t for t, _ in read_tables(p)]) for p in (source, out))
    for column in COLUMNS:
        left = a.column(column.name).to_pylist() if column.name in a.schema.names else [None] * 4
        right = b.column(column.name).to_pylist() if column.name in b.schema.names else [None] * 4
        assert left == right, column.name
    assert read_info(out) == INFO
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({source.name, out.name})


def test_convert_merges_and_regroups(tmp_path):
    write(tmp_path / "x.parquet")
    rows = [{"sequence_id": f"n{i}", "log_mu": [-1.0] * i, "log_pi": [-1.0] * i} for i in range(1, 6)]
    write(tmp_path / "y.jsonl", rows, RunInfo(engine="vllm", seed=2))
    out = tmp_path / "out" / "z.parquet"
    out.parent.mkdir()
    assert convert(tmp_path, out, rows_per_group=2) == 9
    metadata = pq.read_metadata(out)
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [2, 2, 2, 2, 1]
    assert read_info(out) == RunInfo(engine="vllm")  # what only one file knows is not known of all
    assert whole(out).column("sequence_id").tolist() == ["a", "b", "c", "d", "n1", "n2", "n3", "n4", "n5"]


def test_convert_refuses(tmp_path):
    x = write(tmp_path / "x.parquet")
    y = write(tmp_path / "y.parquet", [{**ROWS[0], "sequence_id": "y"}], RunInfo(temperature=1.0))
    out = tmp_path / "out.parquet"
    with pytest.raises(
        ValueError, match=r"y.parquet is not of the same run .*: temperature was 0.7 and is 1.0\nhint: "
    ):
        convert([x, y], out)
    assert convert([x, y], out, force=True) == 5
    assert read_info(out).temperature is None
    with pytest.raises(FileExistsError, match="exists\nhint: --force replaces it"):
        convert(x, out)
    with pytest.raises(ValueError, match="is an input and the output"):
        convert(x, x, force=True)
    bad = raw_parquet(tmp_path / "bad.parquet", **minimal(log_pi=pa.array([[-1.0], [-3.0]], pa.list_(pa.float32()))))
    before = out.read_bytes()
    with pytest.raises(ValueError, match="log_pi has 1 values"):
        convert([x, bad], out, force=True)
    assert out.read_bytes() == before  # an older output is replaced only by a complete one
    assert not list(tmp_path.glob("partial-*"))


def test_jsonl_gz_is_gzip(tmp_path):
    path = write(tmp_path / "x.jsonl.gz")
    with gzip.open(path, "rt") as file:
        assert json.loads(file.readline())["reweigh"]["engine"] == "vllm"


@pytest.mark.parametrize(
    "kind", [pa.bool_(), pa.int8(), pa.uint16(), pa.int64(), pa.float16(), pa.float32(), pa.float64()]
)
@pytest.mark.parametrize("gaps", [False, True])
def test_arrays_are_numpys_and_back(kind, gaps):
    """Against pyarrow's own conversions, of slices that begin inside a byte of the bitmap."""
    values = [None if gaps and i % 5 == 1 else bool(i % 3) if kind == pa.bool_() else i for i in range(29)]
    whole = pa.array([None if v is None else np.float16(v) for v in values] if kind == pa.float16() else values, kind)
    for start, length in ((0, 29), (3, 20), (8, 9), (13, 0)):
        array = whole.slice(start, length)
        there = array.is_valid().to_numpy(zero_copy_only=False)
        got = numbers(array, 1)
        assert valid(array).tolist() == there.tolist()
        assert got.dtype == (np.bool_ if kind == pa.bool_() else kind.to_pandas_dtype())
        assert got.tolist() == [v.as_py() if v.is_valid else 1 for v in array]
        back = arrow(got, kind, there)
        back.validate(full=True)
        assert back.equals(array)
        assert arrow(got, kind).null_count == 0


def test_texts_are_arrows():
    for texts in ([], ["a", "", "déjà", None, "b" * 300], [None], ["x"]):
        array = arrow_texts(texts)
        array.validate(full=True)
        assert array.equals(pa.array(texts, pa.string()))
    assert arrow_texts(["\ud800"]).to_pylist() == ["\\ud800"]  # half a character, which UTF-8 has not got
    with pytest.raises(TypeError, match="string is no type of numbers"):
        numbers(pa.array(["a"]))


@pytest.mark.filterwarnings("error")
def test_an_advantage_that_float32_does_not_hold_is_infinite_and_told(tmp_path, capsys):
    row = {"sequence_id": "a", "log_mu": [-1.0] * 3, "log_pi": [-1.0] * 3, "advantage": -1e308}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    assert main(["records", "validate", str(tmp_path / "a.jsonl")]) == 1
    assert "advantage[0] = -inf is infinite" in capsys.readouterr().out


@pytest.mark.parametrize("value", [["a"], [[1.0]], [{}], ["\u202e"], [None, "x"], {"a": 1}, "7"])
@pytest.mark.parametrize(("name", "word"), [("reward", "a number"), ("step", "an integer")])
def test_a_list_in_the_place_of_a_number_is_told_with_its_line(tmp_path, name, value, word):
    row = {"sequence_id": "a", "log_mu": [-1.0], "log_pi": [-1.0], name: value}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=rf"a\.jsonl:1: {name} must be {word}, got "):
        list(read_batches(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_file_of_which_no_row_is_left_is_converted_to_none(tmp_path, capsys, ending):
    """Its one row does not line up: what is left has no row whose place could be said."""
    row = {"sequence_id": "a", "log_mu": [-1.0] * 3, "log_pi": [-1.0] * 3, "versions": [1]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    out = tmp_path / f"b.{ending}"
    assert main(["records", "convert", "--skip-bad", str(tmp_path / "a.jsonl"), str(out)]) == 0
    said = capsys.readouterr().err
    assert "a.jsonl:1: versions has 1 values, log_mu has 3" in said
    assert "wrote 0 rows" in said
