"""Records as a table: ratio, weights and statistics of each token, response and token id."""

import csv
import json
import math

import pyarrow.parquet as pq
import pytest

from reweigh import geo_rs, opsm, seq_tis, token_tis
from reweigh.__main__ import main
from reweigh.audit.table import Asked, frame, tables
from reweigh.records import RecordWriter
from reweigh.scan.rows import Rows

EXAMPLE = "examples/records/vllm_fp8_kv.parquet"
ROWS = [
    {
        "sequence_id": "a",
        "prompt_id": "p",
        "step": 3,
        "token_ids": [5, 7, 5],
        "log_mu": [-1.0, -2.0, -0.5],
        "log_pi": [-1.5, -1.0, -0.5],
        "mask": [True, True, False],
    },
    {"sequence_id": "b", "prompt_id": "p", "step": 4, "token_ids": [7], "log_mu": [-3.0], "log_pi": [-1.0]},
    {"sequence_id": "c", "prompt_id": "q", "token_ids": [9], "log_mu": [-1.0], "log_pi": [-1.0], "mask": [False]},
]


@pytest.fixture
def path(tmp_path):
    with RecordWriter(tmp_path / "a.parquet") as writer:
        writer.write(ROWS)
    return tmp_path / "a.parquet"


def rows(path, asked, **options):
    return [row for piece in tables(path, asked, **options) for row in piece.to_pylist()]


def test_responses_by_hand(path):
    tried = {"capped": seq_tis(2.0), "tokens": token_tis(2.0), "band": geo_rs(0.5, 2.0)}
    a, b = rows(path, Asked("sequence", tried))  # of c no token counts
    assert (a["sequence_id"], a["prompt_id"], a["step"], a["tokens"], a["reward"]) == ("a", "p", 3, 2, None)
    assert a["log_ratio"] == pytest.approx(0.5)
    assert a["ratio"] == pytest.approx(math.exp(0.5))
    assert a["mean_abs"] == pytest.approx(0.75)
    assert a["k3"] == pytest.approx((math.exp(-0.5) - 0.5 + math.exp(1.0) - 2.0) / 2)
    assert (a["worst_position"], a["worst_log_ratio"]) == (1, pytest.approx(1.0))
    assert a["weight capped"] == pytest.approx(math.exp(0.5))
    assert a["weight tokens"] == pytest.approx((math.exp(-0.5) + 2) / 2)
    assert (b["weight capped"], b["weight band"]) == (pytest.approx(2.0), 0.0)


def test_tokens_by_hand(path):
    first, second, third = rows(path, Asked("token", {"w": seq_tis(2.0)}))
    assert [x["token_id"] for x in (first, second, third)] == [5, 7, 7]
    assert [x["position"] for x in (first, second, third)] == [0, 1, 0]
    assert [x["log_ratio"] for x in (first, second, third)] == pytest.approx([-0.5, 1.0, 2.0])
    assert [x["log_ratio_so_far"] for x in (first, second, third)] == pytest.approx([-0.5, 0.5, 2.0])
    assert second["k3"] == pytest.approx(math.exp(1.0) - 2.0)
    assert [x["w"] for x in ({"w": x["weight w"]} for x in (first, third))] == pytest.approx([math.exp(0.5), 2.0])


def test_token_ids_are_added_up_and_named(path):
    found = rows(path, Asked("id", decode={5: "five", 7: "seven", 9: "nine"}.__getitem__))
    assert [(row["token_id"], row["token"], row["count"]) for row in found] == [(7, "seven", 2), (5, "five", 1)]
    assert found[0]["mean_log_ratio"] == pytest.approx(1.5)
    assert found[0]["share_of_square"] == pytest.approx(5 / 5.25)
    assert len(rows(path, Asked("id", worst=1))) == 1


def test_the_worst_come_first_whatever_the_parts(tmp_path, monkeypatch):
    whole = rows(EXAMPLE, Asked("token"))
    ordered = sorted(whole, key=lambda row: -abs(row["log_ratio"]))
    lines = tmp_path / "a.jsonl"
    assert main(["records", "convert", EXAMPLE, str(lines)]) == 0
    monkeypatch.setattr("reweigh.scan.run.PART_TOKENS", 500)
    found = rows(lines, Asked("token", worst=7, decode=lambda i: f"<{i}>"))
    assert [row["log_ratio"] for row in found] == [row["log_ratio"] for row in ordered[:7]]
    assert [row["token"] for row in found] == [f"<{row['token_id']}>" for row in found]


def test_it_is_written_as_parquet_and_csv_and_chosen(path, tmp_path, capsys):
    for out in (tmp_path / "t.parquet", tmp_path / "sub" / "t.csv"):
        assert main(["table", EXAMPLE, "--out", str(out), "--weights", "seq_tis(2)", "--limit", "10"]) == 0
        assert capsys.readouterr().out == f"{out}\n"
    parquet = pq.read_table(tmp_path / "t.parquet").to_pylist()
    with open(tmp_path / "sub" / "t.csv") as file:
        lines = list(csv.DictReader(file))
    assert len(parquet) == len(lines) == 10
    assert [float(row["weight seq_tis(2)"]) for row in lines] == [row["weight seq_tis(2)"] for row in parquet]
    assert main(["table", EXAMPLE, "--out", str(tmp_path / "t.xlsx")]) == 2
    assert "a table is written as .parquet or .csv, got .xlsx" in capsys.readouterr().err
    assert main(["table", EXAMPLE, "--where", "length > 9999", "--out", str(tmp_path / "none.csv")]) == 2
    assert "nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "none.csv").exists()


def test_files_of_other_columns_make_one_table(path, tmp_path):
    with RecordWriter(tmp_path / "b.jsonl") as writer:
        writer.write([{"sequence_id": "z", "log_mu": [-1.0], "log_pi": [-900.0], "reward": 1.0}])
    found = frame(tmp_path, Asked("token"))
    assert list(found["sequence_id"]) == ["a", "a", "b", "z"]
    assert found["token_id"].isna().tolist() == [False, False, False, True]


def test_json_has_no_number_that_json_lacks(tmp_path, capsys):
    with RecordWriter(tmp_path / "a.parquet") as writer:
        writer.write([{"sequence_id": "z", "log_mu": [-900.0], "log_pi": [-1.0]}])
    assert main(["table", str(tmp_path), "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)["rows"]
    assert (row["ratio"], row["log_ratio"]) == (None, 899.0)


def test_what_cannot_be_asked_is_refused(path, tmp_path):
    with RecordWriter(tmp_path / "b.parquet") as writer:
        writer.write([{"sequence_id": "z", "log_mu": [-1.0], "log_pi": [-1.0]}])
    with pytest.raises(ValueError, match="there are no token ids"):
        rows(tmp_path / "b.parquet", Asked("id"))
    with pytest.raises(ValueError, match="a token id has no weight"):
        Asked("id", {"w": seq_tis(2.0)})
    with pytest.raises(ValueError, match="w needs the column advantage"):
        rows(path, Asked("sequence", {"w": opsm(0.05)}))
    assert len(rows(path, Asked("sequence"), rows=Rows.of(["step = 4"]))) == 1
