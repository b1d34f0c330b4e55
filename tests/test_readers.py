"""Readers of foreign dumps: what frameworks' own writers wrote becomes the rows they meant; bad ones are named."""

import gzip
import json
import os
import pickle
import runpy
import shutil
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from reweigh import naive
from reweigh.__main__ import main
from reweigh.audit import audit
from reweigh.dumps import (
    FORMATS,
    RECORDS,
    Skipped,
    UnknownFormatError,
    find,
    formats,
    info_of,
    read,
    recognise,
    source,
    tinker_rows,
)
from reweigh.dumps.miles import zigzag
from reweigh.records import RecordWriter, RunInfo, UnreadableFileError, read_batches
from reweigh.records.files import FilePart
from reweigh.records.schema import fail

DATA = Path(__file__).parent / "data" / "readers"
FOLDERS = {
    "slime": 8,
    "miles": 3,
    "nemo_rl": 3,
    "prime_rl": 8,
    "verifiers": 3,
    "skyrl": 3,
    "martingale": 3,
    "open_instruct": 4,
    "openai": 7,
    "sglang": 4,
    "llama_cpp": 3,
    "tgi": 3,
}


def rows(path, **kwargs):
    return [row.columns for row in read(path, **kwargs)]


def copied(name, tmp_path):
    return Path(shutil.copytree(DATA / name, tmp_path / name))


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def error(path, kind=ValueError, **kwargs):
    with pytest.raises(kind) as caught:
        rows(path, **kwargs)
    return str(caught.value)


# Every format


def test_every_format_has_a_sample():
    """A dump of slime holds both of its formats."""
    assert set(FOLDERS) == set(FORMATS) - {"slime_rollout"}


def test_every_format_has_its_line_on_the_page():
    docs = Path(__file__).parents[1] / "docs"
    script = runpy.run_path(str(docs / "readers.py"))
    text = (docs / "readers.md").read_text()
    assert script["page"](text) == text, "python docs/readers.py"
    assert [name for name in FORMATS if text.count(f"| `{name}` |") != 1] == []
    with pytest.raises(ValueError, match="one place for the table 'sampler'"):
        script["page"](text.replace("<!-- /sampler -->", ""))


@pytest.mark.parametrize(("folder", "count"), FOLDERS.items())
def test_a_folder_is_recognised_and_read(folder, count):
    found = find(DATA / folder)
    assert {recognise(path).name for path in found.paths} == {folder}
    all_rows = list(read(DATA / folder))
    assert len(all_rows) == count
    for row in all_rows:
        columns = row.columns
        length = len(columns["log_mu"])
        assert len(columns["sequence_id"]) > 0
        assert columns["prompt_length"] > 0
        if row.prompt_ids is not None:
            assert len(row.prompt_ids) == columns["prompt_length"]
        live = columns.get("mask", np.ones(length, bool))
        assert np.isfinite(columns["log_mu"][live]).all()
        assert (columns["log_mu"][live] <= 0).all()


@pytest.mark.parametrize("folder", [name for name in FOLDERS if name not in ("openai", "sglang")])
def test_sequences_are_named_apart(folder):
    names = [row["sequence_id"] for row in rows(DATA / folder)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("folder", [name for name in FOLDERS if FORMATS[name].both_sides])
def test_a_dump_reads_as_record_batches(folder):
    """The interface that the functions on records take: the same rows as tables, and as Batches."""
    expected = rows(DATA / folder)
    dumps = formats()
    got_log_pi = []
    for path in dumps.expand(DATA / folder):
        reader = dumps.source(path)
        assert {"sequence_id", "log_mu", "log_pi"} <= set(reader.names())
        assert isinstance(reader.info(), RunInfo)
        for part in reader.parts(10):
            for table, origin in reader.read(part, ("sequence_id", "log_mu", "log_pi", "mask"), 10, fail):
                assert set(table.schema.names) <= {"sequence_id", "log_mu", "log_pi", "mask"}
                got_log_pi += table.column("log_pi").to_pylist()
                assert origin.place(0).startswith(str(path))
    assert len(got_log_pi) == len(expected)
    for got, row in zip(got_log_pi, expected, strict=True):
        np.testing.assert_array_equal(np.array(got, np.float32), np.asarray(row["log_pi"], np.float32))


@pytest.mark.parametrize("folder", FOLDERS)
def test_rows_are_what_a_record_writer_takes(folder, tmp_path):
    with RecordWriter(tmp_path / "a.parquet") as writer:
        writer.write(rows(DATA / folder))
    assert writer.rows_written == FOLDERS[folder]


def test_lines_may_be_gzipped(tmp_path):
    packed = tmp_path / "rank_0.jsonl.gz"
    packed.write_bytes(gzip.compress((DATA / "prime_rl/token_exports/step_4/rank_0.jsonl").read_bytes()))
    assert len(rows(packed)) == 4


def test_parts_of_a_file_together_are_the_file():
    path = DATA / "prime_rl/token_exports/step_4/rank_0.jsonl"
    reader = source(path)
    parts = list(reader.parts(1))
    assert len(parts) == 4
    names = [n for part in parts for t, _ in reader.read(part, None, 1000, fail) for n in t["sequence_id"].to_pylist()]
    assert names == [row["sequence_id"] for row in rows(path)]
    places = [origin.place(0) for part in parts for _, origin in reader.read(part, None, 1000, fail)]
    assert places == [f"{path}:{line}" for line in (1, 2, 3, 4)]


# What each format means


def test_slime_joins_the_rollout_dump():
    first, second, third, fourth = rows(DATA / "slime")[:4]
    assert [r["sequence_id"] for r in rows(DATA / "slime")][3:5] == ["rollout7/3", "rollout10/0"]  # 7 before 10
    rollout = torch.load(DATA / "slime/rollout_data/7.pt")["samples"]
    for row, sample in zip((first, second, third, fourth), rollout, strict=True):
        np.testing.assert_allclose(row["log_mu"], sample["rollout_log_probs"], rtol=1e-6)
        assert row["token_ids"].tolist() == sample["tokens"][3:]
        assert row["prompt_id"] == f"rollout7/group{sample['group_index']}"
        assert row["reward"] == sample["reward"]
    assert first["versions"].tolist() == [3, 3, 3]
    assert "versions" not in third  # sampled by two versions, and not said which token by which
    assert fourth["mask"].tolist() == [True, True, False, False, True, True]
    assert fourth["turns"].tolist() == [0, 0, 0, 0, 1, 1]
    assert third["finish_reason"] == "truncated"


def test_slime_train_dump_alone_groups_by_prompt(tmp_path):
    shutil.copy(DATA / "slime/train_data/7.pt", tmp_path / "7.pt")
    found = rows(tmp_path)
    groups = [row["prompt_id"] for row in found]
    assert groups[0] == groups[1] != groups[2] == groups[3]
    assert [row["reward"] for row in found] == [0.0, 1.0, 0.0, 1.0]  # the whole batch's, by position


def test_slime_refuses_a_rollout_dump_of_another_run(tmp_path):
    folder = copied("slime", tmp_path)
    dump = torch.load(folder / "rollout_data/7.pt")
    dump["samples"][1]["response_length"] = 2
    torch.save(dump, folder / "rollout_data/7.pt")
    message = error(folder)
    assert f"{folder}/train_data/7.pt record 1" in message
    assert "4 response tokens here, and 2 in" in message


def test_slime_rollout_dump_alone_has_one_side(tmp_path):
    shutil.copytree(DATA / "slime/rollout_data", tmp_path / "rollout_data")
    [first, *_] = rows(tmp_path)
    assert "log_pi" not in first
    assert recognise(find(tmp_path).paths[0]).name == "slime_rollout"


def test_slime_rollout_folder_is_read_by_itself_when_named():
    assert {path.stem for path in find(DATA / "slime/rollout_data").paths} == {"7", "10"}
    assert "log_pi" not in rows(DATA / "slime/rollout_data")[0]


def test_miles_slices_are_put_together():
    whole = json.loads((DATA / "miles/whole.json").read_text())
    found = rows(DATA / "miles")
    assert [len(row["log_mu"]) for row in found] == [1, 6, 13]
    for row, log_mu, log_pi in zip(found, whole["rollout_log_probs"], whole["log_probs"], strict=True):
        np.testing.assert_array_equal(row["log_mu"], np.float32(log_mu))
        np.testing.assert_array_equal(row["log_pi"], np.float32(log_pi))
    assert found[0]["versions"].tolist() == [5]
    assert found[0]["prompt_id"] == "rollout0/group0"  # from its rollout dump


def test_miles_any_rank_stands_for_all_of_its_rollout():
    path = DATA / "miles/train_data"
    assert find([path / "0_3.pt", path / "0_1.pt"]).paths == (path / "0_0.pt",)
    assert find(str(path / "*.pt")).paths == (path / "0_0.pt",)


def test_miles_names_the_missing_ranks(tmp_path):
    folder = copied("miles", tmp_path)
    for rank in (2, 3):
        (folder / f"train_data/0_{rank}.pt").unlink()
    assert "cut over 2 ranks, and cp_rank 1 is not in the folder" in error(folder)


def test_miles_before_it_recorded_the_cut(tmp_path):
    folder = copied("miles", tmp_path)
    for path in (folder / "train_data").glob("*.pt"):
        dump = torch.load(path)
        del dump["cp_rank"], dump["cp_size"]
        torch.save(dump, path)
    assert "does not say how they were cut" in error(folder)


def test_miles_since_one_rank_of_each_slice_writes(tmp_path):
    """Since September 2026 only the first tensor-parallel rank of the last pipeline stage writes."""
    folder = copied("miles", tmp_path)
    for rank in (1, 3):
        (folder / f"train_data/0_{rank}.pt").unlink()
    for row, whole in zip(rows(folder), rows(DATA / "miles"), strict=True):
        np.testing.assert_array_equal(row["log_mu"], whole["log_mu"])


def test_miles_folder_of_all_details(tmp_path):
    """What stands beside the train dumps is left out and named, and by itself it says where to look."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = copied("miles", tmp_path)
    for name in ("policy_loss_debug", "dashboard_columns"):
        (folder / name).mkdir()
    call, columns = folder / "policy_loss_debug/rank_0_call_0.pt", folder / "dashboard_columns/rollout_0.parquet"
    torch.save({"rank": 0, "call": 0, "samples": [], "ppo_kl": torch.zeros(1), "finite": {"ppo_kl": True}}, call)
    pq.write_table(
        pa.table({"sample_index": [1], "response_length": [2], "rollout_log_probs": [[-0.5, -0.5]]}), columns
    )
    assert len(rows(folder)) == 3
    assert {call, columns} <= set(find(folder).ignored)
    assert "name the folder beside it: train_data" in error(call, UnknownFormatError)
    assert "name the folder beside it: rollout_data or train_data" in error(columns, UnknownFormatError)


def test_miles_branches_of_a_conversation_are_samples(tmp_path):
    """Leaves of one conversation have one index: each is a sample with its own reward and text."""
    columns = {"response_lengths": [2, 2, 1], "total_lengths": [4, 4, 4], "sample_indices": [5, 5, 5]}
    columns["tokens"] = [torch.tensor(x) for x in ([1, 2, 7, 8], [1, 2, 7, 9], [1, 2, 7, 9])]
    columns |= {name: [torch.tensor(x) for x in ([-1.0, -2.0], [-1.0, -0.5], [-3.0])] for name in ("log_probs",)}
    columns["rollout_log_probs"] = columns["log_probs"]
    (tmp_path / "train_data").mkdir()
    for rank in (0, 1):  # two tensor-parallel copies
        dump = {"rollout_id": 0, "rank": rank, "cp_rank": 0, "cp_size": 1, "qkv_format": "thd", "rollout_data": columns}
        torch.save(dump, tmp_path / f"train_data/0_{rank}.pt")
    (tmp_path / "rollout_data").mkdir()
    leaves = [
        {"index": 5, "group_index": 0, "tokens": ids, "response_length": n, "response": text}
        for ids, n, text in (([1, 2, 7, 9], 2, "right"), ([1, 2, 7, 8], 2, "left"))
    ]
    torch.save({"rollout_id": 0, "samples": leaves}, tmp_path / "rollout_data/0.pt")
    skipped = Skipped()
    left, right = read(tmp_path, skip_bad=True, skipped=skipped)
    assert (left.columns["sequence_id"], right.columns["sequence_id"]) == ("rollout0/5", "rollout0/5.1")
    assert (left.columns["text"], right.columns["text"]) == ("left", "right")
    assert (left.columns["log_mu"].tolist(), right.columns["log_mu"].tolist()) == ([-1.0, -2.0], [-1.0, -0.5])
    assert "sample 5 has 1 response tokens here, and 2 in" in skipped.lines()[0]  # the third has the second's tokens


def test_torch_files_may_hold_numbers_of_numpy(tmp_path):
    """Rewards and routes of experts are NumPy's in what agents and routers give."""
    dump = torch.load(DATA / "slime/rollout_data/7.pt")
    plain = rows(DATA / "slime/rollout_data")[0]
    first = dump["samples"][0]
    first |= {"reward": np.float64(0.25), "rollout_log_probs": np.float32(first["rollout_log_probs"])}
    first |= {"routes": np.zeros((4, 2), np.int16), "response_length": np.int64(first["response_length"])}
    first |= {"none": np.zeros(0), "names": np.array(["a"]), "objects": np.array([{"a": 1}], dtype=object)}
    torch.save(dump, tmp_path / "7.pt")
    row = rows(tmp_path)[0]
    np.testing.assert_array_equal(np.asarray(row["log_mu"]), np.float32(plain["log_mu"]))
    assert row["reward"] == 0.25
    first["reward"] = np.array([Exploit(tmp_path / "was-here")], dtype=object)
    torch.save(dump, tmp_path / "7.pt")
    assert "holds objects that are not plain data" in error(tmp_path / "7.pt", UnreadableFileError)
    assert not (tmp_path / "was-here").exists()
    first["reward"] = np.array([1.0, 2.0])
    torch.save(dump, tmp_path / "7.pt")
    data = (tmp_path / "7.pt").read_bytes()
    (tmp_path / "7.pt").write_bytes(data.replace(b"f8", b"?!"))  # a type that there is not
    with pytest.raises(UnreadableFileError, match="truncated or damaged"):
        rows(tmp_path / "7.pt")


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize(("total", "length"), [(4, 1), (9, 9 - 1), (16, 13), (31, 5), (100, 99)])
def test_zigzag_covers_each_token_once(size, total, length):
    held = [t for rank in range(size) for a, b in zigzag(total, length, rank, size, total) for t in range(a, b)]
    assert sorted(held) == list(range(length))


def test_miles_padded_layout_needs_the_width(tmp_path):
    """In bshd the chunks are of the padded row: rank 0 of 2 has the first and the last quarter of it."""
    folder = copied("miles", tmp_path)
    shutil.rmtree(folder / "rollout_data")
    whole = torch.arange(13) / -16
    total, padded = 16, 20  # chunks of 5: logits 0-4, 5-9, 10-14, 15-19; the response's are 2 to 14
    cut = {0: whole[:3], 1: whole[3:]}
    for rank in range(4):
        path = folder / f"train_data/0_{rank}.pt"
        columns = {"response_lengths": [13], "total_lengths": [total], "tokens": [torch.arange(total)]}
        columns |= {name: [cut[rank // 2]] for name in ("rollout_log_probs", "log_probs")}
        columns |= {"max_seq_lens": [padded], "sample_indices": [5]}
        torch.save(torch.load(path) | {"rollout_data": columns, "qkv_format": "bshd"}, path)
    [row] = rows(folder)
    assert row["log_mu"].tolist() == whole.tolist()
    for rank in range(4):
        path = folder / f"train_data/0_{rank}.pt"
        dump = torch.load(path)
        del dump["rollout_data"]["max_seq_lens"]
        torch.save(dump, path)
    assert "qkv_format is bshd, and max_seq_lens is not in the dump" in error(folder)


def test_nemo_rl_trims_padding_and_the_dummy():
    first, _, third = rows(DATA / "nemo_rl")
    [line, *_] = lines_of(DATA / "nemo_rl/train_data_step3.jsonl")
    assert line["input_lengths"] == [5]  # the writer cuts its batch into batches of one
    assert first["log_mu"].tolist() == line["generation_logprobs"][0][2:5]
    assert first["log_pi"].tolist() == line["prev_logprobs"][0][2:5]
    assert first["token_ids"].tolist() == line["token_ids"][0][2:5]
    assert (first["step"], first["prompt_length"], first["reward"]) == (3, 2, 1.0)
    assert not third["mask"].any()  # its sample_loss_mask is 0


def test_nemo_rl_groups_by_prompt():
    groups = [row["prompt_id"] for row in rows(DATA / "nemo_rl")]
    assert groups[0] == groups[1] != groups[2]


def test_nemo_rl_takes_flat_lines_too(tmp_path):
    [line, *_] = lines_of(DATA / "nemo_rl/train_data_step3.jsonl")
    flat = {name: value[0] if isinstance(value, list) else value for name, value in line.items()}
    [row] = rows(write_lines(tmp_path / "train_data_step4.jsonl", [flat]))
    assert row["log_pi"].tolist() == line["prev_logprobs"][0][2:5]
    assert row["step"] == 4


def test_prime_rl_keeps_what_the_loss_weighs(tmp_path):
    first = rows(DATA / "prime_rl")[0]
    [line, *_] = lines_of(DATA / "prime_rl/token_exports/step_4/rank_0.jsonl")
    assert first["log_mu"].tolist() == line["inference_logprobs"][2:]
    np.testing.assert_allclose(first["log_pi"] - first["log_mu"], line["log_importance_ratio"][2:], rtol=1e-5)
    assert (first["step"], first["env"], first["pack_index"]) == (4, "maths", 0)
    masked = rows(DATA / "prime_rl")[4]
    assert masked["mask"].tolist() == [True, False, True, True]
    assert masked["turns"].tolist() == [0, 0, 1, 1]
    line["rl_weights"] = [0.0, 0.0, 1.0, 0.0, 1.0, 1.0]  # a token that is distilled, not sampled
    [weighed] = rows(write_lines(tmp_path / "rank_0.jsonl", [line]))
    assert weighed["mask"].tolist() == [True, False, True, True]


def test_verifiers_paths_turns_and_precision():
    first, trunk, fork = rows(DATA / "verifiers")
    [episode, _] = lines_of(DATA / "verifiers/traces.jsonl")
    nodes = episode["traces"][0]["nodes"]
    np.testing.assert_array_equal(
        first["log_mu"][first["mask"]], np.float32(nodes[1]["logprobs"] + nodes[3]["logprobs"])
    )
    np.testing.assert_array_equal(
        first["log_pi"][first["mask"]], np.float32(nodes[1]["trainer_logprobs"] + nodes[3]["trainer_logprobs"])
    )
    assert first["token_ids"].tolist() == [10, 11, 20, 21, 9, 12, 13, 14]
    assert first["mask"].tolist() == [True, True, False, False, False, True, True, True]
    assert first["turns"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert (first["reward"], first["env"], first["step"], first["prompt_id"]) == (0.75, "maths", 12, "group3")
    assert first["versions"].tolist() == [10] * 8
    assert trunk.get("versions") is None  # the episode spans two versions
    assert fork["token_ids"].tolist() == [10, 11, 9, 30]
    info = info_of(DATA / "verifiers/traces.jsonl")
    assert info.decimals == 4
    assert FORMATS["verifiers"].decimals == 4
    assert (info.temperature, info.model) == (0.8, "org/model")


def test_verifiers_with_all_digits_has_no_flag(tmp_path):
    records = lines_of(DATA / "verifiers/traces.jsonl")
    records[0]["traces"][0]["nodes"][1]["logprobs"][0] = -0.930312345
    assert info_of(write_lines(tmp_path / "traces.jsonl", records)).decimals is None


def test_verifiers_messages_without_token_ids(tmp_path):
    """A client that returns none: the message is not left out of the middle of a response."""
    records = lines_of(DATA / "verifiers/traces.jsonl")
    node = records[0]["traces"][0]["nodes"][1]
    for name in ("token_ids", "mask", "logprobs", "trainer_logprobs"):
        del node[name]
    path = write_lines(tmp_path / "traces.jsonl", records)
    assert "traces.jsonl:1: 1 of 2 sampled messages of a trace have no token ids" in error(path)
    assert len(rows(path, skip_bad=True)) == 2


def test_verifiers_messages_without_log_probs(tmp_path):
    records = lines_of(DATA / "verifiers/traces.jsonl")
    records[0]["traces"][0]["nodes"][1]["logprobs"] = []
    first = rows(write_lines(tmp_path / "traces.jsonl", records))[0]
    assert np.isnan(first["log_mu"][first["mask"]]).tolist() == [True, True, False, False, False]


def test_verifiers_leaves_out_what_does_not_train(tmp_path):
    judge, abandoned = lines_of(DATA / "verifiers/traces.jsonl")
    judge["traces"][0]["agent"]["trainable"] = False
    abandoned["traces"][0]["nodes"][4]["semantic_parents"] = [{"node": 3, "type": "compaction_attempt"}]
    found = rows(write_lines(tmp_path / "traces.jsonl", [judge, abandoned]))
    assert [row["sequence_id"] for row in found] == ["episode1/trace1/3"]


def test_skyrl_windows_and_groups():
    first, second, third = rows(DATA / "skyrl")
    assert first["token_ids"].tolist() == [50, 51]
    assert second["mask"].tolist() == [True, False, False, True, True]
    assert second["turns"].tolist() == [0, 0, 0, 1, 1]
    assert first["prompt_id"] == second["prompt_id"] != third["prompt_id"]
    assert first["step"] == 12
    rounded = torch.tensor(first["log_pi"]).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(first["log_pi"], rounded)  # written as bfloat16, through torch.save
    assert abs(first["log_pi"] - first["log_mu"]).max() < 0.05


def test_skyrl_0_4_writes_words_of_its_own():
    """What 0.4.0 itself wrote: an enumeration of formats, packed columns, views of arrays, a row of padding."""
    found = rows(DATA / "skyrl_0_4")
    assert [row["token_ids"].tolist() for row in found] == [[50, 51], [50, 51, 52, 53, 54], [50, 51, 52]]
    older = rows(DATA / "skyrl")
    for row, before in zip(found, older, strict=True):  # one seed; the padding was on the other side
        np.testing.assert_array_equal(row["log_mu"], before["log_mu"])
        assert row["mask"].tolist() == before["mask"].tolist()
    assert found[0]["prompt_id"] == found[1]["prompt_id"] != found[2]["prompt_id"]
    assert found[0]["step"] == 3
    assert info_of(next(iter(find(DATA / "skyrl_0_4").paths))).trainer == "skyrl"


def skyrl_with(tmp_path, **columns):
    """A dump of 0.4.0 in which some columns are written as said."""
    from reweigh.dumps.skyrl import _STUBS
    from reweigh.dumps.tensors import load_pickle

    module = "skyrl.backends.skyrl_train.training_batch"
    batch = load_pickle(DATA / "skyrl_0_4/dumped_data/global_step_3_training_input.pkl", "skyrl", _STUBS)
    state = {**batch.state, "batch_dict": {**batch.state["batch_dict"], **columns}}
    rebuild, kind = (f"c{module}\n{name}\n".encode() for name in ("_rebuild_tensor_batch", "TrainingInputBatch"))
    path = tmp_path / "global_step_3_training_input.pkl"
    path.write_bytes(b"\x80\x03" + rebuild + b"(" + kind + pickle.dumps(state, 3)[2:-1] + b"tR.")
    return path


def test_skyrl_columns_may_be_packed_or_views(tmp_path):
    whole = rows(DATA / "skyrl_0_4")
    values = np.concatenate([row["log_mu"] for row in whole] + [whole[0]["log_mu"]])
    ends = np.cumsum([0, 2, 5, 3, 2]).astype(np.int32)
    packed = {"format": "packed_tensor", "values": {"format": "numpy_view", "data": values}}
    packed["cu_seqlens"] = {"format": "numpy_view", "data": ends}
    found = rows(skyrl_with(tmp_path, rollout_logprobs=packed))
    for row, before in zip(found, whole, strict=True):
        np.testing.assert_array_equal(row["log_mu"], before["log_mu"])
    other = error(skyrl_with(tmp_path, rollout_logprobs={"format": "zarr"}), UnreadableFileError)
    assert "rollout_logprobs cannot be read as a tensor: its format is 'zarr'" in other
    objects = {"format": "numpy_view", "data": [1.0]}
    assert "must be an array of numbers, got list" in error(skyrl_with(tmp_path, rollout_logprobs=objects))
    assert "turn on generator.sampling_params.logprobs=1" in error(skyrl_with(tmp_path, rollout_logprobs=None))


def test_skyrl_says_what_the_sampler_kept(tmp_path):
    whole = rows(DATA / "skyrl_0_4")
    ids = [np.stack([row["token_ids"], row["token_ids"] + 1, np.full(len(row["token_ids"]), -1)], -1) for row in whole]
    ids[0][0] = -1  # not captured
    ends = np.cumsum([0] + [len(x) for x in ids] + [0]).astype(np.int32)
    packed = {
        "format": "packed_tensor",
        "values": {"format": "numpy_view", "data": np.concatenate(ids).astype(np.int32)},
    }
    packed["cu_seqlens"] = {"format": "numpy_view", "data": ends}
    found = rows(skyrl_with(tmp_path, rollout_sample_support=packed))
    for i, (row, kept) in enumerate(zip(found, ids, strict=True)):
        assert [None if x is None else list(x) for x in row["support_ids"]] == [
            None if (i, t) == (0, 0) else x[:2].tolist() for t, x in enumerate(kept)
        ]
    short = packed | {"cu_seqlens": {"format": "numpy_view", "data": np.maximum(ends - 1, 0)}}
    assert "rollout_sample_support has 1 lists, and 2 tokens" in error(
        skyrl_with(tmp_path, rollout_sample_support=short)
    )


def test_martingale_has_a_row_for_each_score():
    found = {row["sequence_id"]: row for row in rows(DATA / "martingale")}
    assert list(found) == ["actor0/0@5", "actor0/1@5", "actor0/1@6"]
    once, later = found["actor0/0@5"], found["actor0/1@6"]
    assert (once["trainer_version"] - once["versions"]).tolist() == [1] * 4
    assert (later["trainer_version"] - later["versions"]).tolist() == [2] * 5
    assert (once["advantage"], once["prompt_length"]) == (1.0, 3)
    info = info_of(DATA / "martingale/tokens.db")
    assert (info.temperature, info.logprobs_mode, info.engine) == (0.7, "processed", "vllm")
    assert "1 of 3 sequences have no score of the trainer and are left out" in str(info.note)


def test_martingale_tokens_of_a_tool_were_not_sampled(tmp_path):
    """Its recorder of TRL keeps them with log-prob 0, and no mask."""
    path = copied("martingale", tmp_path) / "tokens.db"
    with sqlite3.connect(path) as db:
        at, text = db.execute("SELECT rowid, record_json FROM sequences WHERE sequence_index = 1").fetchone()
        record = json.loads(text)
        record["tokens"][2]["logprob_bits"] = "f32:00000000"
        db.execute("UPDATE sequences SET record_json = ? WHERE rowid = ?", (json.dumps(record), at))
        sampler = "$.sampler.logprobs_source"
        db.execute(
            "UPDATE llm_revisions SET manifest_json = json_set(manifest_json, ?, 'trainer_old_logps')", (sampler,)
        )
    db.close()
    first, second, _ = rows(path)
    assert "mask" not in first
    assert second["mask"].tolist() == [True, True, False, True, True]
    assert "log_mu is the trainer's own (trainer_old_logps)" in str(info_of(path).note)


def test_martingale_before_any_training(tmp_path):
    path = copied("martingale", tmp_path) / "tokens.db"
    with sqlite3.connect(path) as db:
        db.execute("DELETE FROM scores")
    db.close()
    *_, last = rows(path)
    assert last["versions"].tolist() == [4, 4, 4, 5, 5, 5]  # the weights changed in the middle
    assert "log_pi" not in last
    assert "left out" not in str(info_of(path).note)


def test_martingale_leaves_nothing_beside_the_database():
    rows(DATA / "martingale")
    assert [path.name for path in (DATA / "martingale").iterdir()] == ["tokens.db"]


def test_open_instruct():
    first, second, third, _ = rows(DATA / "open_instruct")
    assert (first["step"], first["env"], first["advantage"], first["finish_reason"]) == (6, "maths", 0.5, "stop")
    assert first["prompt_id"] == second["prompt_id"] != third["prompt_id"]
    assert find(DATA / "open_instruct").ignored == (DATA / "open_instruct/run_metadata.jsonl",)


def test_openai_ids_come_from_fields_or_from_tokens():
    first, _, named, _ = rows(DATA / "openai/completions.jsonl")
    answer = lines_of(DATA / "openai/completions.jsonl")[0]["response"]["choices"][0]
    assert first["token_ids"].tolist() == answer["token_ids"]
    assert first["log_mu"].tolist() == answer["logprobs"]["token_logprobs"]
    assert named["token_ids"].tolist() == first["token_ids"].tolist()  # one seed; written as "token_id:1238"
    assert (first["finish_reason"], first["text"], first["prompt_length"]) == ("length", answer["text"], 4)


def test_openai_echo_is_taken_off():
    [echoed] = rows(DATA / "openai/echo.jsonl")
    answer = lines_of(DATA / "openai/echo.jsonl")[0]["response"]["choices"][0]
    assert len(answer["logprobs"]["token_logprobs"]) == 10
    assert echoed["log_mu"].tolist() == answer["logprobs"]["token_logprobs"][4:]
    assert len(echoed["token_ids"]) == 6


def test_openai_chat_and_texts():
    [chat] = read(DATA / "openai/chat.jsonl")
    [texts] = read(DATA / "openai/texts.json")  # one object over many lines, without ids
    assert len(chat.columns["token_ids"]) == 6
    assert chat.prompt_ids is not None
    assert texts.columns["token_ids"] is None
    assert texts.columns["log_mu"].tolist() == chat.columns["log_mu"].tolist()
    assert info_of(DATA / "openai/chat.jsonl").temperature == 0.8


def completion(values, sampled=None, prompt=5, *, request=None, choices=1, usage=True, **more):
    """A saved answer of /v1/completions."""
    n = len(values) if sampled is None else sampled
    choice = {"text": "...", "finish_reason": "stop"}
    choice["logprobs"] = {"tokens": [f"t{i}" for i in range(len(values))], "token_logprobs": values}
    answer = {"id": "a", "choices": [{**choice, "index": i, **more} for i in range(choices)]}
    if usage:
        answer["usage"] = {
            "prompt_tokens": prompt,
            "completion_tokens": n * choices,
            "total_tokens": prompt + n * choices,
        }
    return answer if request is None else {"request": request, "response": answer}


def one(tmp_path, *answers):
    return write_lines(tmp_path / "a.jsonl", answers)


def test_openai_a_null_first_log_prob_is_not_an_echo(tmp_path):
    """As many log-probs as sampled tokens: the first was lost, and nothing of the response is left out."""
    path = one(tmp_path, completion([None, *[-0.5, -0.25, -1.0] * 3], 10))
    [row] = rows(path)
    np.testing.assert_array_equal(row["log_mu"], [np.nan, *[-0.5, -0.25, -1.0] * 3])
    assert row["prompt_length"] == 5
    [row] = rows(one(tmp_path, completion([None, -0.5, -0.25], usage=False, token_ids=[7, 8, 9])))
    assert row["token_ids"].tolist() == [7, 8, 9]
    assert np.isnan(row["log_mu"][0])
    [row] = rows(one(tmp_path, completion([None, -0.5], usage=False, request={"prompt": [1], "logprobs": 1})))
    assert len(row["log_mu"]) == 2  # nobody asked for an echo


def test_openai_what_is_missing_is_named(capsys, tmp_path):
    path = one(tmp_path, completion([None, -0.5, -0.25]), completion([-1.0, None, -0.25]))
    for command in (("validate", path), ("describe", path), ("convert", path, tmp_path / "out.parquet")):
        code, out, err = run(capsys, "records", *command)
        assert code == (command[0] == "validate")
        assert "log_mu: not finite: 2 tokens" in out + err
        assert f"{path}:1: log_mu[0] = nan is not finite" in out + err
    [(table, _)] = source(tmp_path / "out.parquet").read(FilePart(tmp_path / "out.parquet"), None, 100, fail)
    assert [np.isnan(x).tolist() for x in table.column("log_mu").to_pylist()] == [
        [True, False, False],
        [False, True, False],
    ]


@pytest.mark.parametrize("given", [{}, {"request": {"prompt": [1, 2, 3, 4, 5], "echo": True}}])
def test_openai_an_echo_is_counted(tmp_path, given):
    values = [None, -9.0, -8.0, -7.0, -6.0, -0.5, -0.25]
    [row] = rows(one(tmp_path, completion(values, 2, **given)))
    assert row["log_mu"].tolist() == [-0.5, -0.25]
    two = list(read(one(tmp_path, completion(values, 2, choices=2, **given))))
    assert [r.columns["log_mu"].tolist() for r in two] == [[-0.5, -0.25]] * 2


def test_openai_an_echo_that_the_server_did_not_heed(tmp_path):
    """llama.cpp's server takes echo, and gives the log-probs of what it sampled."""
    request = {"prompt": [1, 2, 3, 4, 5], "echo": True}
    [row] = rows(one(tmp_path, completion([-0.5, -0.25], request=request)))
    assert row["log_mu"].tolist() == [-0.5, -0.25]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        # echo of llama-cpp-python: 12 tokens of the prompt, 4 sampled; some ids are left out of the list
        (
            completion([-0.5] * 13, 4, 12),
            r"counts 4 sampled tokens and 12 of the prompt, and has 13 log-probs\nhint: an echo",
        ),
        (completion([None, *[-0.5] * 14], 4, 12), "has 15 log-probs"),
        # a stop string, or a writer that lost some
        (
            completion([-0.5] * 8, 10),
            r"counts 10 sampled tokens and 5 of the prompt, and has 8 log-probs\nhint: ask without stop",
        ),
        (completion([-0.5] * 8, 10, choices=2), "counts 20 sampled tokens and 5 of the prompt, and has 16 log-probs"),
        (
            completion([-0.5] * 3, token_ids=[7, 8]),
            "in two ways: token_ids 2, usage.completion_tokens 3; it has 3 log-probs",
        ),
        (completion([-0.5] * 3, usage=False, token_ids=[7, 8]), "counts 2 sampled tokens"),
        # max_tokens 0: 12 log-probs of 12 tokens of the prompt; vLLM counts a token that nobody asked for
        (
            completion(
                [None, *[-0.5] * 11], 1, 12, token_ids=[7], request={"prompt": [1] * 12, "max_tokens": 0, "echo": True}
            ),
            "nothing was sampled: the 12 log-probs are of the prompt",
        ),
        (completion([None, *[-0.5] * 11], 1, 12, token_ids=[7]), "nothing was sampled"),
        (completion([None, *[-0.5] * 11], 0, 12), "nothing was sampled"),
        # neither usage, nor ids, nor request: an echo or a loss
        (completion([None, -0.5, -0.5], usage=False), "nothing in the answer tells which"),
        ({"choices": [], "usage": {"completion_tokens": 3}}, "the answer has no choices"),
        ({"choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": None}]}, "one piece of a stream"),
    ],
)
def test_openai_counts_that_do_not_add_up(tmp_path, answer, message):
    good = completion([-0.5, -0.25])
    path = one(tmp_path, good, answer, good)
    with pytest.raises(ValueError, match=rf"a\.jsonl:2: (?s:.*){message}"):
        rows(path)
    skipped = Skipped()
    assert len(rows(path, skip_bad=True, skipped=skipped)) == 2
    assert skipped.count == 1


def chat(entries, sampled=None, **more):
    n = len(entries) if sampled is None else sampled
    choice = {"index": 0, "message": {"role": "assistant", "content": "..."}, "finish_reason": "stop"}
    choice |= {"logprobs": {"content": entries}, **more}
    return {"id": "a", "usage": {"prompt_tokens": 4, "completion_tokens": n}, "choices": [choice]}


@pytest.mark.parametrize("name", ["token_id", "id"])
def test_openai_ids_beside_log_probs(tmp_path, name):
    entries = [{"token": f"w{i}", "logprob": -0.5 - i, "top_logprobs": [], name: 50 + i} for i in range(3)]
    [row] = rows(one(tmp_path, chat(entries)))
    assert row["token_ids"].tolist() == [50, 51, 52]
    assert row["log_mu"].tolist() == [-0.5, -1.5, -2.5]
    [row] = rows(one(tmp_path, chat(entries, token_ids=[50, 51, 52])))
    assert row["token_ids"].tolist() == [50, 51, 52]
    message = error(one(tmp_path, chat(entries, token_ids=[50, 99, 52])))
    assert f"token 1 of the response is 99 by token_ids and 51 by logprobs.content[].{name}" in message
    del entries[1][name]
    assert f"1 of 3 entries of logprobs have no {name}" in error(one(tmp_path, chat(entries)))


def test_openai_ids_where_others_put_them(tmp_path):
    """LiteLLM keeps what a provider adds aside; NeMo Gym puts ids and log-probs into the message."""
    entries = [{"token": "a", "logprob": -0.5 - i, "top_logprobs": []} for i in range(2)]
    aside = chat(entries, provider_specific_fields={"token_ids": [7, 8], "prompt_token_ids": [1, 2]})
    [row] = read(one(tmp_path, aside))
    assert row.columns["token_ids"].tolist() == [7, 8]
    assert row.prompt_ids == [1, 2]
    message = {"role": "assistant", "content": "...", "prompt_token_ids": [1, 2], "generation_token_ids": [7, 8]}
    message["generation_log_probs"] = [-0.5, -1.5]
    gym = chat([], 2, message=message)
    gym["choices"][0]["logprobs"] = None
    [row] = read(one(tmp_path, gym))
    assert row.columns["log_mu"].tolist() == [-0.5, -1.5]
    assert row.columns["token_ids"].tolist() == [7, 8]
    message["generation_log_probs"] = [-0.5]
    assert "counts 2 sampled tokens and 2 of the prompt, and has 1 log-probs" in error(one(tmp_path, gym))


def test_answers_without_a_name_are_named_apart(tmp_path):
    """Two files of answers that have no id: each names its own."""
    (tmp_path / "folder").mkdir()
    for name in ("a", "b"):
        write_lines(tmp_path / f"folder/{name}.jsonl", [llama(drawn_by_llama((7, -0.5)), [7])] * 2)
    names = [row["sequence_id"] for row in rows(tmp_path / "folder")]
    assert names == ["a/answer0/0", "a/answer1/0", "b/answer0/0", "b/answer1/0"]


def test_openai_ids_in_the_list_of_log_probs(tmp_path):
    answer = completion([-0.5, -0.25])
    answer["choices"][0]["logprobs"]["token_ids"] = [7, 8]
    [row] = rows(one(tmp_path, answer))
    assert row["token_ids"].tolist() == [7, 8]


def test_vllm_generate(tmp_path):
    """Tokens in, tokens out: entries have ids and no texts; the prompt is in what was asked."""
    entries = [{"token_id": 7 + i, "logprob": -0.5 - i, "rank": 1, "top_logprobs": []} for i in range(3)]
    answer = {
        "request_id": "r1",
        "choices": [{"index": 0, "finish_reason": "length", "logprobs": {"content": entries}}],
    }
    request = {"token_ids": [1, 2, 3], "sampling_params": {"temperature": 0.8, "top_p": 0.9, "logprobs": 1}}
    path = one(tmp_path, {"request": request, "response": answer})
    [row] = read(path)
    assert row.columns["log_mu"].tolist() == [-0.5, -1.5, -2.5]
    assert row.columns["token_ids"].tolist() == [7, 8, 9]
    assert row.prompt_ids == [1, 2, 3]
    assert row.columns["sequence_id"] == "r1/0"
    assert (info_of(path).temperature, info_of(path).top_p) == (0.8, 0.9)
    answer["choices"][0]["token_ids"] = [7, 8, 9]
    answer["prompt_token_ids"] = [1, 2, 3]
    for entry in entries:
        entry["token"] = f"token_id:{entry.pop('token_id')}"  # as it was before 0.30
    [alone] = read(one(tmp_path, answer))
    assert alone.columns["token_ids"].tolist() == [7, 8, 9]
    assert alone.prompt_ids == [1, 2, 3]
    del entries[1]["logprob"]
    assert "an entry of logprobs has no logprob, only rank, top_logprobs, token" in error(one(tmp_path, answer))


def test_responses_of_openai(tmp_path):
    entries = [{"token": "a", "logprob": -0.5 - i, "bytes": [97], "top_logprobs": []} for i in range(2)]
    part = {"type": "output_text", "text": "aa", "annotations": [], "logprobs": entries}
    answer = {"id": "resp_1", "object": "response", "status": "completed", "model": "m"}
    answer |= {"output": [{"type": "reasoning", "summary": []}, {"type": "message", "content": [part]}]}
    answer["usage"] = {"input_tokens": 4, "output_tokens": 2}
    [row] = rows(one(tmp_path, answer))
    assert row["log_mu"].tolist() == [-0.5, -1.5]
    assert (row["text"], row["prompt_length"]) == ("aa", 4)
    answer["usage"] = {"input_tokens": 4, "output_tokens": 9, "output_tokens_details": {"reasoning_tokens": 7}}
    assert "the log-probs of the reasoning are not in the answer" in error(one(tmp_path, answer))
    part["logprobs"] = []
    assert "has no logprobs" in error(one(tmp_path, answer))


def test_request_outputs_of_vllm(tmp_path):
    """What vLLM's own LLM.generate returns, kept as JSON: at each place the likeliest tokens and the sampled one."""

    def at(token, value, **others):
        given = {str(token): {"logprob": value, "rank": 1, "decoded_token": "a"}}
        return given | {name: {"logprob": x, "rank": 2, "decoded_token": "b"} for name, x in others.items()}

    sampled = [at(7, -0.5, **{"3": -1.5}), at(8, -0.25)]
    outputs = [{"index": 0, "text": "ab", "token_ids": [7, 8], "cumulative_logprob": -0.75, "finish_reason": "length"}]
    outputs[0]["logprobs"] = sampled
    answer = {"request_id": "3", "prompt": "Why?", "prompt_token_ids": [1, 2], "outputs": outputs, "finished": True}
    [row] = read(one(tmp_path, answer))
    assert row.columns["log_mu"].tolist() == [-0.5, -0.25]
    assert row.columns["token_ids"].tolist() == [7, 8]
    assert row.prompt_ids == [1, 2]
    outputs[0]["cumulative_logprob"] = -1.75
    assert "the log-probs add up to -0.75, and cumulative_logprob is -1.75" in error(one(tmp_path, answer))
    outputs[0]["logprobs"] = [sampled[0], at(9, -0.25)]
    [row] = rows(one(tmp_path, answer))
    np.testing.assert_array_equal(row["log_mu"], [-0.5, np.nan])  # the second place has another token's
    outputs[0]["logprobs"] = sampled[:1]
    assert "counts 2 sampled tokens and 2 of the prompt, and has 1 log-probs" in error(one(tmp_path, answer))
    outputs[0]["logprobs"] = None
    assert "choice 0 has no logprobs" in error(one(tmp_path, answer))


def test_openai_prompts_of_a_batch(tmp_path):
    """Two prompts, two answers to each, in their order."""
    answer = completion([-0.5, -0.25], choices=4)
    path = one(tmp_path, {"request": {"prompt": [[1, 2], [3, 4, 5]], "n": 2}, "response": answer})
    assert [row.prompt_ids for row in read(path)] == [[1, 2], [1, 2], [3, 4, 5], [3, 4, 5]]
    assert [row.columns["prompt_length"] for row in read(path)] == [2, 2, 3, 3]


def test_openai_reasoning_without_log_probs(tmp_path):
    answer = chat([{"token": "a", "logprob": -0.5, "top_logprobs": []}] * 3, 10)
    answer["usage"]["completion_tokens_details"] = {"reasoning_tokens": 7}
    assert "hint: the log-probs of the reasoning are not in the answer" in error(one(tmp_path, answer))


def test_openai_speculation_of_llama_cpp(tmp_path):
    entries = [{"id": 7, "token": "a", "logprob": -0.5, "top_logprobs": [{"id": 7, "token": "a", "logprob": -0.5}]}] * 3
    draft = {"id": 8, "token": "b", "logprob": 0.0, "top_logprobs": []}
    message = error(one(tmp_path, chat([*entries, draft, draft])))
    assert "2 of 5 tokens have log-prob 0 and no top_logprobs, which the others have: a draft proposed them" in message
    assert "hint: turn speculative decoding off" in message
    certain = [{"token": "b", "logprob": 0.0, "top_logprobs": []}, {"token": "a", "logprob": -0.5, "top_logprobs": []}]
    assert len(rows(one(tmp_path, chat(certain)))) == 1  # nobody asked for top_logprobs


@pytest.mark.parametrize("kind", ["chat", "completions"])
def test_openai_log_probs_of_base_10(tmp_path, kind):
    tops = [[0.7, 0.2, 0.05], [0.5, 0.3, 0.1], [0.6, 0.3, 0.05]]

    def answer(scale):
        logs = [[float(np.log(p)) / scale for p in top] for top in tops]
        if kind == "chat":
            entries = [
                {"token": "a", "logprob": x[0], "top_logprobs": [{"token": y, "logprob": y} for y in x]} for x in logs
            ]
            return chat(entries)
        made = completion([x[0] for x in logs])
        made["choices"][0]["logprobs"]["top_logprobs"] = [dict(zip("abc", x, strict=True)) for x in logs]
        return made

    assert len(rows(one(tmp_path, answer(1.0)))) == 1
    message = error(one(tmp_path, answer(np.log(10))))
    assert "these are no natural logarithms; as logarithms of base 10 they come to at most 0.95" in message


def llama(entries, tokens=(), **more):
    answer = {"index": 0, "content": "...", "tokens": list(tokens), "stop": True, "model": "m.gguf", "prompt": "Why?"}
    answer |= {"tokens_predicted": len(tokens) or len(entries), "tokens_evaluated": 4, "stop_type": "limit"}
    return {**answer, "completion_probabilities": entries, **more}


def drawn_by_llama(*pairs, name="logprob"):
    return [{"id": i, "token": "a", name: x, f"top_{name}s": [{"id": i, "token": "a", name: x}]} for i, x in pairs]


def test_llama_cpp_puts_log_probs_at_their_tokens(tmp_path):
    """Tokens of a stop string, and those that end inside a character, have none."""
    entries = drawn_by_llama((7, -0.5), (9, -0.25))
    [row] = rows(one(tmp_path, llama(entries, [7, 8, 9, 11])))
    np.testing.assert_array_equal(row["log_mu"], [-0.5, np.nan, -0.25, np.nan])
    assert row["token_ids"].tolist() == [7, 8, 9, 11]
    assert (row["prompt_id"], row["prompt_length"], row["finish_reason"]) == ("Why?", 4, "length")
    [row] = rows(one(tmp_path, llama(drawn_by_llama((7, -0.5)), [7, 7])))
    assert np.isnan(row["log_mu"]).all()  # of which of the two is not told
    message = error(one(tmp_path, llama(drawn_by_llama((7, -0.5), (6, -1.0)), [7, 8, 9])))
    assert "ids of completion_probabilities (2) are not among tokens (3) in their order" in message
    message = error(one(tmp_path, llama(entries, tokens_predicted=5)))
    assert "counts 5 sampled tokens, and has the log-probs of 2" in message
    assert "return_tokens" in message
    assert '"n_probs": 1' in error(one(tmp_path, llama([])))
    draft = {"id": 8, "token": "b", "logprob": 0.0, "top_logprobs": []}
    assert "turn speculative decoding off" in error(one(tmp_path, llama([*entries, draft])))


def test_llama_cpp_probabilities_under_their_own_name(tmp_path):
    found = rows(one(tmp_path, llama(drawn_by_llama((7, 0.5), (8, 0.0), name="prob"))))
    assert found[0]["log_mu"].tolist() == [np.log(0.5), -np.inf]
    before = [
        {"content": " a", "probs": [{"tok_str": " a", "prob": 0.25}]},
        {"content": "b", "probs": [{"tok_str": "c", "prob": 1}]},
    ]
    [row] = rows(one(tmp_path, llama(before)))
    np.testing.assert_array_equal(row["log_mu"], [np.log(0.25), np.nan])
    assert row["token_ids"] is None


def test_llama_cpp_tells_how_it_sampled():
    info = info_of(DATA / "llama_cpp/completion.jsonl")
    assert (info.engine, info.temperature, info.top_p, info.top_k, info.min_p) == ("llama.cpp", 0.8, 0.95, 40, 0.05)
    assert info.logprobs_mode == "raw"


def test_tgi(tmp_path):
    first, second, _ = read(DATA / "tgi/generate.jsonl")
    assert first.columns["log_mu"].tolist() == [-0.5, -1.25]
    assert first.columns["token_ids"].tolist() == [50, 51]
    assert (first.prompt_ids, first.columns["finish_reason"]) == ([1, 2, 3], "length")
    assert second.columns["sequence_id"] == "generate/answer0/1"  # the second of best_of
    bare = lines_of(DATA / "tgi/generate.jsonl")[1]
    del bare["response"]["details"]["prefill"]
    [row] = read(write_lines(tmp_path / "a.jsonl", [bare]))
    assert (row.prompt_ids, row.columns["prompt_id"]) == (None, "Why?")
    assert info_of(DATA / "tgi/generate.jsonl").temperature == 0.8
    assert '"details": true' in error(write_lines(tmp_path / "a.jsonl", [{"generated_text": "..."}]))
    [line, _] = lines_of(DATA / "tgi/generate.jsonl")
    line["response"]["details"]["generated_tokens"] = 3
    assert "counts 3 generated_tokens, and has 2 in tokens" in error(write_lines(tmp_path / "a.jsonl", [line]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output_ids": [50]}, "output_token_logprobs has 2 tokens, output_ids has 1"),
        ({"output_ids": [50, 99]}, "token 1 of the response is 99 in output_ids and 51 in output_token_logprobs"),
        ({"completion_tokens": 3}, "output_token_logprobs has 2 tokens, meta_info.completion_tokens is 3"),
    ],
)
def test_sglang_counts_that_do_not_add_up(tmp_path, change, message):
    record = lines_of(DATA / "sglang/generate.jsonl")[0]
    answer = record["response"]
    (answer if "output_ids" in change else answer["meta_info"]).update(change)
    assert message in error(one(tmp_path, record))


def test_openai_floor_is_infinity(tmp_path):
    record = lines_of(DATA / "openai/echo.jsonl")[0]
    record["response"]["choices"][0]["logprobs"]["token_logprobs"][-1] = -9999.0
    [row] = rows(write_lines(tmp_path / "a.jsonl", [record]))
    assert row["log_mu"][-1] == -np.inf


def test_sglang():
    first, second = rows(DATA / "sglang/generate.jsonl")
    assert first["log_mu"].tolist() == [-0.5, -0.25]
    assert first["versions"].tolist() == [7, 7]
    assert second["versions"] is None  # "default" is no number
    assert first["prompt_id"] == second["prompt_id"]
    assert (second["token_ids"].tolist(), second["finish_reason"]) == ([60, 61, 62], "length")
    assert info_of(DATA / "sglang/generate.jsonl").temperature == 0.8
    assert [r["log_mu"].tolist() for r in rows(DATA / "sglang/batch.json")] == [[-0.5, -0.25], [-1.5, -0.125, -2.0]]


# tinker


def datum(mask=(0.0, 1.0, 1.0), logprobs=(0.0, -1.0, -2.0), **more):
    inputs = {"target_tokens": [5, 6, 7], "logprobs": list(logprobs), **more}
    if mask is not None:
        inputs["mask"] = list(mask)
    return SimpleNamespace(model_input=None, loss_fn_inputs=inputs)


def test_tinker_objects_become_rows(tmp_path):
    data = {"data": [-9.0, -1.5, -2.0], "dtype": "float32", "shape": [3]}
    found = list(tinker_rows([datum(advantages=[0, 1, 1])], [{"logprobs": data}], step=3, prompt_ids=["p"]))
    [row] = found
    assert row["log_pi"].tolist() == [-1.5, -2.0]
    assert row["log_mu"].tolist() == [-1.0, -2.0]
    assert (row["sequence_id"], row["prompt_id"], row["prompt_length"]) == ("datum-3-0", "p", 2)
    with RecordWriter(tmp_path / "a.parquet") as writer:
        writer.write(found)
    [part] = read_batches(tmp_path / "a.parquet")
    assert part.check().batch.log_ratio.tolist() == [-0.5, 0.0]


@pytest.mark.parametrize("off", [0.0, -99999.0])
def test_tinker_without_its_mask(off):
    [row] = tinker_rows([datum(None, (off, -1.0, off))], [{"logprobs": torch.tensor([-9.0, -1.5, -2.0])}])
    assert row["mask"].tolist() == [True, False]


def test_tinker_names_what_is_wrong():
    with pytest.raises(ValueError, match="data and outputs must be as many, got 1 and 0"):
        list(tinker_rows([datum()], []))
    with pytest.raises(ValueError, match=r"datum 0: .*output have no logprobs, only elbo"):
        list(tinker_rows([datum()], [{"elbo": [1.0]}]))
    with pytest.raises(ValueError, match="logprobs of the output has 2"):
        list(tinker_rows([datum()], [{"logprobs": [-1.0, -2.0]}]))


def test_tinker_sdk():
    import tinker  # half a second, so not for every test

    inputs = {"target_tokens": np.array([5, 6, 7]), "logprobs": np.float32([0, -1, -2]), "mask": np.float32([0, 1, 1])}
    one = tinker.Datum(model_input=tinker.ModelInput.from_ints([4, 5, 6]), loss_fn_inputs=inputs)
    output = {"logprobs": tinker.TensorData.from_numpy(np.float32([-9, -1.5, -2]))}
    [row] = tinker_rows([one], [output])
    assert row["log_pi"].tolist() == [-1.5, -2.0]


# Bad input


class Exploit:
    """What a malicious pickle does: run a command when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class TrainingInputBatch(dict):
    """Named as SkyRL's, so that the file is taken for one."""


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_runs_nothing(tmp_path, protocol):
    mark = tmp_path / "was-here"
    path = tmp_path / "global_step_1_training_input.pkl"
    path.write_bytes(pickle.dumps({"TrainingInputBatch": Exploit(mark)}, protocol))
    pickle.loads(path.read_bytes())
    assert mark.exists()  # the file is dangerous
    mark.unlink()
    message = error(path, UnreadableFileError)
    assert (
        f"{path}: holds objects that are not plain data, and was not loaded: {os.system.__module__}.system" in message
    )
    assert "hint: a reader runs no code from a file" in message
    assert not mark.exists()


@pytest.mark.parametrize("name", ["builtins.eval", "builtins.getattr", "torch.load", "numpy.load", "os.system"])
def test_a_pickle_can_name_nothing_but_data(tmp_path, name):
    module, _, attribute = name.rpartition(".")
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x02(c" + f"{module}\n{attribute}\n".encode() + b"X\x12\x00\x00\x00TrainingInputBatcht.")
    assert f"was not loaded: {name}" in error(path, UnreadableFileError)


def test_a_torch_file_runs_nothing(tmp_path):
    mark = tmp_path / "was-here"
    torch.save({"samples": [Exploit(mark)], "dp_shards": [], "format_version": 2}, tmp_path / "0.pt")
    message = error(tmp_path / "0.pt", UnreadableFileError)
    assert f"holds objects that are not plain data, and was not loaded: {os.system.__module__}.system" in message
    assert not mark.exists()


def test_numpy_arrays_in_a_pickle_are_data(tmp_path):
    from reweigh.dumps.tensors import load_pickle

    value = {"a": np.arange(3), "b": np.float32(2), "c": {1, 2}, "d": torch.ones(2)}
    for protocol in (3, 4, 5):
        path = tmp_path / f"{protocol}.pkl"
        path.write_bytes(pickle.dumps(value, protocol))
        found = load_pickle(path, "skyrl", {})
        assert found["a"].tolist() == [0, 1, 2]
        assert found["b"] == 2
        assert found["d"].tolist() == [1.0, 1.0]
    path.write_bytes(pickle.dumps(np.array([Exploit("x")], dtype=object)))
    with pytest.raises(UnreadableFileError, match=r"not plain data|damaged"):
        load_pickle(path, "skyrl", {})


def test_unknown_files_list_what_was_tried(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"hello": 1}')
    message = error(path, UnknownFormatError)
    assert f"{path}: no reader knows this file. It is JSON with hello. Tried:" in message
    for name in (*FORMATS, RECORDS):
        assert f"\n  {name}: " in message
    assert "hint: --reader NAME" in message
    (tmp_path / "b.bin").write_bytes(b"\x00\x01")
    assert "a file that starts with b'\\x00\\x01'" in error(tmp_path / "b.bin", UnknownFormatError)


def test_text_only_dumps_say_so(tmp_path):
    path = write_lines(tmp_path / "1.jsonl", [{"input": "a", "output": "b", "gts": None, "score": 1.0, "step": 1}])
    message = error(path, UnknownFormatError)
    assert "verl's rollout dump has text and no log-probs" in message
    assert "docs/trainers.md" in message


@pytest.mark.parametrize(
    ("record", "what", "remedy"),
    [
        (
            {"input": "a", "output": "b", "gts": None, "score": 1.0, "step": 1},
            "verl's rollout dump",
            "calculate_log_probs",
        ),
        ({"input": "a", "output": "b", "reward": 1.0}, "OpenRLHF's batch inference", "docs/trainers.md"),
        (
            {"global_step": [1], "responses": ["a"], "scores": [1.0], "sampling_params": ["{}"]},
            "ROLL's rollout",
            "trainers",
        ),
        (
            {"step": [1], "prompt": ["a"], "completion": ["b"], "advantages": [0.5]},
            "(TRL, ms-swift)",
            "CorrectedGRPOTrainer",
        ),
        ({"example_id": 1, "prompt": [], "completion": [], "reward": 1.0}, "verifiers' results", "traces.jsonl"),
        ({"steps": [], "total_reward": 1.0, "final_ob_len": 3}, "tinker-cookbook's summary", "tinker_rows"),
        ({"seqlen": 3, "prompt_len": 1, "completion": "b"}, "AReaL's rollout dump", "docs/trainers.md"),
        ({"input_prompt": "a", "output_response": "b"}, "SkyRL's evaluation", "dump_data_batch"),
    ],
)
def test_dumps_of_text_say_what_to_turn_on(tmp_path, record, what, remedy):
    message = error(write_lines(tmp_path / "a.jsonl", [record]), UnknownFormatError)
    assert what in message
    assert "has text and no log-probs" in message
    assert remedy in message.partition("hint: ")[2]


def hook(tmp_path, record):
    """The lines of code of the error, by the comment that they stand under."""
    message = error(write_lines(tmp_path / "a.jsonl", [record]), UnknownFormatError)
    return [line.strip() for line in message.split("\n") if line.startswith("    ")]


def test_the_lines_that_make_records_in_openrlhf_do(tmp_path, monkeypatch):
    lines = hook(tmp_path, {"input": "a", "output": "b", "reward": 1.0})
    top, inside = lines[1:3], lines[4:]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    file = {"torch": torch}
    exec("\n".join(top), file)
    for _ in range(2):  # each call of the loss is a file of its own
        old, rollout = -torch.rand(3, 5) - 0.1, -torch.rand(3, 5) - 0.1
        given = {"old_log_probs": old, "rollout_log_probs": rollout, "action_mask": torch.ones(3, 5)}
        exec("\n".join(inside), {**file, **given})
    assert sum(file.rows for file in audit(tmp_path / "records").files) == 6


def test_the_lines_that_make_records_in_verl_name_what_there_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = hook(tmp_path, {"input": "a", "output": "b", "score": 1.0})
    written = {}
    exec("\n".join(lines), written)
    assert written["correction"].capture.folder == "records"
    assert written["correction"].estimator == naive()


def test_completions_of_trl_in_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"step": [1], "prompt": ["a"], "completion": ["b"], "accuracy_reward": [1.0], "advantage": [0.5]}
    pq.write_table(pa.table(columns), tmp_path / "completions_00001.parquet")
    message = error(tmp_path / "completions_00001.parquet", UnknownFormatError)
    assert "completions that a trainer logged (TRL, ms-swift) has text and no log-probs" in message
    assert "vllm_importance_sampling_correction=True" in message


def test_columns_that_may_be_log_probs_are_named(tmp_path):
    record = {
        "prompt_ids": [1],
        "completion_ids": [2, 3],
        "logprobs": [-0.5, -0.25],
        "old_per_token_logps": [-0.5, -0.2],
    }
    message = error(write_lines(tmp_path / "a.jsonl", [record]), UnknownFormatError)
    assert "rename logprobs to log_mu, old_per_token_logps to log_pi, completion_ids to token_ids" in message
    assert "docs/records.md" in message


def test_one_side_alone_is_named(tmp_path):
    record = {"prompt": "a", "response_tokens": ["b"], "logprobs": [-0.5], "ref_logprobs": [-0.5]}
    message = error(write_lines(tmp_path / "a.jsonl", [record]), UnknownFormatError)
    assert "ROLL's logging board has the trainer's log-probs and none of the sampler's" in message


def test_mixed_formats_in_one_folder(tmp_path):
    copied("prime_rl", tmp_path)
    copied("verifiers", tmp_path)
    message = error(tmp_path)
    assert f"{tmp_path}: files of several formats are in one folder: prime_rl: 2, such as" in message
    assert "verifiers: 1, such as" in message
    assert "hint: name the subfolder" in message
    assert len(rows(tmp_path, reader="verifiers")) == 3
    assert len(rows(tmp_path, reader="prime_rl")) == 8
    assert len(rows(tmp_path / "verifiers")) == 3


def test_records_and_a_dump_in_one_folder(tmp_path):
    folder = copied("verifiers", tmp_path)
    with RecordWriter(folder / "out.parquet") as writer:
        writer.write([{"sequence_id": "a", "log_mu": [-1.0], "log_pi": [-1.0]}])
    assert "several formats are in one folder" in error(folder)


def test_records_alone_are_left_to_their_reader(tmp_path):
    for name in ("b.parquet", "a.jsonl"):
        with RecordWriter(tmp_path / name) as writer:
            writer.write([{"sequence_id": name, "log_mu": [-1.0], "log_pi": [-1.0]}])
    assert find(tmp_path).paths == (tmp_path / "a.jsonl", tmp_path / "b.parquet")
    assert recognise(tmp_path / "a.jsonl") is None
    assert recognise(tmp_path / "b.parquet") is None
    [(table, _)] = source(tmp_path / "b.parquet").read(FilePart(tmp_path / "b.parquet"), None, 100, fail)
    assert table.num_rows == 1


def test_lists_that_do_not_line_up(tmp_path):
    records = lines_of(DATA / "prime_rl/token_exports/step_4/rank_0.jsonl")
    records[1]["trainer_logprobs"].pop()
    path = write_lines(tmp_path / "rank_0.jsonl", records)
    message = error(path)
    assert f"{path}:2: lists of one record must have one length: token_ids has 5" in message
    assert "trainer_logprobs has 4" in message
    assert "--skip-bad" in message
    skipped = Skipped()
    assert len(rows(path, skip_bad=True, skipped=skipped)) == 3
    assert skipped.count == 1
    assert skipped.lines()[0].startswith(f"{path}:2: lists of one record")


def test_lists_of_tensors_that_do_not_line_up(tmp_path):
    dump = torch.load(DATA / "slime/train_data/7.pt")
    dump["samples"][2]["log_probs"] = dump["samples"][2]["log_probs"][:-1]
    torch.save(dump, tmp_path / "7.pt")
    assert f"{tmp_path}/7.pt record 2: lists of one record" in error(tmp_path)
    assert "log_mu has 5, token_ids has 5, log_pi has 4" in error(tmp_path)
    assert len(rows(tmp_path, skip_bad=True)) == 3


def test_the_place_of_rows_after_a_bad_one(tmp_path):
    dump = torch.load(DATA / "slime/train_data/7.pt")
    del dump["samples"][1]["tokens"]
    torch.save(dump, tmp_path / "7.pt")
    skipped = Skipped()
    reader = formats(skipped=skipped).source(tmp_path / "7.pt")
    [(table, origin)] = reader.read(FilePart(tmp_path / "7.pt"), None, 1000, fail)
    assert [origin.place(i) for i in range(table.num_rows)] == [f"{tmp_path}/7.pt row {i}" for i in (0, 2, 3)]
    assert "record 1: the record has no tokens" in skipped.lines()[0]


def test_a_truncated_last_line(tmp_path):
    path = tmp_path / "rank_0.jsonl"
    path.write_bytes((DATA / "prime_rl/token_exports/step_4/rank_0.jsonl").read_bytes()[:-40])
    message = error(path)
    assert f"{path}:4: the last line is cut short" in message
    assert "the lines before it are good" in message
    skipped = Skipped()
    assert len(rows(path, skip_bad=True, skipped=skipped)) == 3
    assert skipped.count == 1


def test_a_line_that_is_not_json(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", lines_of(DATA / "open_instruct/run_rollouts_000000.jsonl"))
    path.write_text(path.read_text().replace('{"step": 6, "sample_idx": 2', '{"step": 6 "sample_idx": 2'))
    assert f"{path}:3: not JSON" in error(path)
    assert len(rows(path, skip_bad=True)) == 3


@pytest.mark.parametrize(
    ("folder", "file"),
    [
        ("slime", "train_data/10.pt"),
        ("miles", "train_data/0_2.pt"),
        ("skyrl", "dumped_data/global_step_12_training_input.pkl"),
        ("martingale", "tokens.db"),
    ],
)
def test_truncated_files(folder, file, tmp_path):
    path = copied(folder, tmp_path) / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = error(tmp_path / folder, UnreadableFileError)
    assert f"{path}: " in message
    assert "truncated or damaged" in message


def test_a_truncated_file_does_not_hide_the_others(tmp_path):
    folder = copied("slime", tmp_path)
    path = folder / "train_data/10.pt"
    path.write_bytes(path.read_bytes()[:1000])
    skipped = Skipped()
    assert [row["step"] for row in rows(folder, skip_bad=True, skipped=skipped)] == [7] * 4
    assert [(v.place, v.counted) for v in skipped.listed] == [(str(path), "files")]


def test_truncated_gzip(tmp_path):
    packed = gzip.compress((DATA / "prime_rl/token_exports/step_4/rank_0.jsonl").read_bytes())
    (tmp_path / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    assert "truncated or damaged gzip" in error(tmp_path / "a.jsonl.gz", UnreadableFileError, reader="prime_rl")


def test_unknown_versions(tmp_path):
    dump = torch.load(DATA / "slime/train_data/7.pt")
    torch.save(dump | {"format_version": 3}, tmp_path / "7.pt")
    assert "format_version of slime's train dump must be 2, got 3" in error(tmp_path / "7.pt", UnreadableFileError)
    records = lines_of(DATA / "prime_rl/token_exports/step_4/rank_0.jsonl")
    path = write_lines(tmp_path / "a.jsonl", [{**records[0], "schema_version": 2}])
    assert f"{path}:1: schema_version of the token export must be 1, got 2" in error(path)
    records = lines_of(DATA / "verifiers/traces.jsonl")
    records[1]["traces"][0]["version"] = 9
    assert "b.jsonl:2: version of the trace must be 1, got 9" in error(write_lines(tmp_path / "b.jsonl", records))


def test_a_dump_without_the_samplers_side(tmp_path):
    dump = torch.load(DATA / "slime/train_data/7.pt")
    for sample in dump["samples"]:
        del sample["rollout_log_probs"]
    torch.save(dump, tmp_path / "7.pt")
    message = error(tmp_path / "7.pt")
    assert "7.pt record 0: the record has no log-probs of the policy that sampled" in message
    assert "turn on return_logprob in the rollout function" in message


@pytest.mark.parametrize("bits", ["f32:bf8000", "f16:3c00", "zzz", "f32:bf80000g"])
def test_martingale_bits_that_are_no_float(tmp_path, bits):
    path = copied("martingale", tmp_path) / "tokens.db"
    with sqlite3.connect(path) as db:
        db.execute("UPDATE scores SET record_json = json_set(record_json, '$.logprob_bits', ?)", (bits,))
    db.close()
    assert f"tokens.db record 0: logprob_bits must be f32: or f64: and hex digits, got '{bits}'" in error(path)


def test_martingale_with_half_a_score(tmp_path):
    path = copied("martingale", tmp_path) / "tokens.db"
    with sqlite3.connect(path) as db:
        db.execute("DELETE FROM scores WHERE position = 2")
    db.close()
    assert "the sequence has 4 tokens, revision" in error(path)
    skipped = Skipped()
    assert rows(path, skip_bad=True, skipped=skipped) == []
    assert skipped.count == 2


def test_an_answer_that_failed(tmp_path):
    good = lines_of(DATA / "openai/chat.jsonl")[0]
    path = write_lines(tmp_path / "a.jsonl", [good, {"response": {"error": {"message": "overloaded"}}}])
    assert f"{path}:2: the answer has no choices" in error(path)
    assert len(rows(path, skip_bad=True)) == 1
    good["response"]["choices"][0]["logprobs"] = None
    assert '"logprobs": true (chat)' in error(write_lines(tmp_path / "b.jsonl", [good]))


def test_a_record_of_another_shape(tmp_path):
    records = lines_of(DATA / "verifiers/traces.jsonl")
    records[0]["traces"] = [7]
    assert "a.jsonl:1: not as verifiers writes it: AttributeError" in error(write_lines(tmp_path / "a.jsonl", records))


def exports(log_mu, log_pi=None):
    """Lines of prime-rl's export, one a response, of a prompt of one token."""
    for i, values in enumerate(log_mu):
        n = len(values)
        line = {"schema_version": 1, "step": 0, "rank": 0, "export_sequence_idx": i, "micro_step": 0}
        line |= {"token_ids": list(range(n + 1)), "loss_mask": [False] + [True] * n, "env_name": "maths"}
        line |= {"inference_logprobs": [0.0, *values]}
        line |= {"trainer_logprobs": [0.0, *(values if log_pi is None else log_pi[i])]}
        yield line


def drawn(seed, responses=4, tokens=40):
    rng = np.random.default_rng(seed)
    return [-rng.exponential(1.0, tokens).clip(1e-4) for _ in range(responses)]


@pytest.mark.parametrize(
    ("wrong", "named", "remedy"),
    [
        (lambda x: np.exp(x), r"these are probabilities \(\d+ of 40 values are over 0, none over 1\)", "log p, not p"),
        (lambda x: -x, r"these are log-probs with the sign turned, or logits", "negate"),
        (lambda x: x + 12, r"these are log-probs with the sign turned, or logits \(40 of 40", "log-softmax"),
        (lambda x: 3 * (x + 1), r"these are logits \(\d+ of 40 values are over 0", "log-softmax"),
    ],
)
@pytest.mark.parametrize("side", ["log_mu", "log_pi"])
def test_other_numbers_under_the_name_of_log_probs(tmp_path, wrong, named, remedy, side):
    good = drawn(0)
    bad = [good[0], *(wrong(x) for x in good[1:])]
    sides = (bad, good) if side == "log_mu" else (good, bad)
    path = write_lines(tmp_path / "rank_0.jsonl", [json.loads(json.dumps(x, default=list)) for x in exports(*sides)])
    with pytest.raises(ValueError, match=rf"rank_0\.jsonl:2: {side} is no log-prob: {named}") as caught:
        rows(path)
    assert remedy in str(caught.value)
    skipped = Skipped()
    assert len(rows(path, skip_bad=True, skipped=skipped)) == 1  # what was good before is kept
    assert skipped.count == 3


@pytest.mark.parametrize(("base", "factor"), [("10", np.log(10)), ("2", np.log(2))])
@pytest.mark.parametrize("side", [0, 1])
def test_log_probs_of_another_base(tmp_path, base, factor, side):
    sides = [drawn(1), [x * (1 + 0.005 * np.sin(range(40))) for x in drawn(1)]]
    sides[side] = [x / factor for x in sides[side]]
    path = write_lines(tmp_path / "rank_0.jsonl", [json.loads(json.dumps(x, default=list)) for x in exports(*sides)])
    message = error(path)
    assert f"rank_0.jsonl:1: {('log_mu', 'log_pi')[side]} is of base {base}: log_pi is" in message
    assert f"hint: write natural logarithms: multiply {('log_mu', 'log_pi')[side]} by {factor:.4f}" in message


def test_a_temperature_on_one_side_is_no_other_base(tmp_path):
    """Log-probs at temperature 1 against those at ln 10, and the other way round: both are read."""
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 3, (160, 50))
    token = [rng.choice(50, p=p) for p in np.exp(logits - np.logaddexp.reduce(logits, 1, keepdims=True))]
    sides = []
    for temperature in (1.0, np.log(10)):
        log_p = logits / temperature - np.logaddexp.reduce(logits / temperature, 1, keepdims=True)
        sides.append(log_p[range(160), token].reshape(4, 40))
    for pair in (sides, sides[::-1]):
        lines = [json.loads(json.dumps(x, default=list)) for x in exports(*pair)]
        assert len(rows(write_lines(tmp_path / "rank_0.jsonl", lines))) == 4


def test_rounding_over_0_is_no_unit(tmp_path):
    values = drawn(3)
    values[0][::2] = 0.004  # what a log-softmax in bfloat16 comes to for a token that is as good as certain
    lines = [json.loads(json.dumps(x, default=list)) for x in exports(values)]
    assert len(rows(write_lines(tmp_path / "rank_0.jsonl", lines))) == 4


@pytest.mark.parametrize("value", [0.0, -1.0, None])
def test_a_column_of_one_number(tmp_path, value):
    path = write_lines(tmp_path / "rank_0.jsonl", exports([[value] * 10] * 3, [[-0.5 - i] * 10 for i in range(3)]))
    message = error(path, UnreadableFileError)
    assert (
        f"{path}: log_mu is {'null or NaN' if value is None else f'{value:g}'} for each of the first 20 tokens"
        in message
    )
    assert ("greedily" in message) == (value == 0)
    skipped = Skipped()
    assert rows(path, skip_bad=True, skipped=skipped) == []
    assert [v.counted for v in skipped.listed] == ["files"]
    # one response of one number, among others, is read: that is for the doctor to say
    path = write_lines(tmp_path / "rank_1.jsonl", exports([[value] * 10, [-0.5] * 10, [-0.25] * 10]))
    assert len(rows(path)) == 3


@pytest.mark.parametrize("folder", ["openai", "sglang", "llama_cpp", "tgi", "verifiers", "prime_rl", "nemo_rl"])
def test_fields_that_are_something_else(tmp_path, folder):
    """Whatever stands in a field, the record is read or named, and the run is known as far as it can be."""
    path = next(path for path in sorted((DATA / folder).rglob("*.jsonl")))
    name, good = FORMATS[folder].name, lines_of(path)[-1]

    def places(value, place=()):
        yield place
        for key in value if isinstance(value, dict) else range(min(2, len(value))) if isinstance(value, list) else ():
            yield from places(value[key], (*place, key))

    counted = 0
    for place in list(places(good))[1:]:
        for other in (None, -1, 1e400, "x", [], [None], {"a": 1}, 10**30):
            bad = json.loads(json.dumps(good))
            at = bad
            for key in place[:-1]:
                at = at[key]
            at[place[-1]] = other
            file = write_lines(tmp_path / path.name, [bad, good])
            info_of(file, name)
            skipped = Skipped()
            found = rows(file, reader=name, skip_bad=True, skipped=skipped)
            assert len(found) + skipped.count > 0
            counted += skipped.count
    assert counted > 20


def test_skipped_lists_the_first_and_counts_all(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"prompt_tokens": [1], "response_tokens": [2], "prompt_idx": 0}] * 5)
    skipped = Skipped(keep=2)
    assert rows(path, skip_bad=True, skipped=skipped) == []
    assert skipped.count == 5
    assert skipped.lines()[-1] == "and 3 more"


def test_the_reader_can_be_named(tmp_path):
    path = tmp_path / "named.txt"
    path.write_bytes((DATA / "prime_rl/token_exports/step_4/rank_0.jsonl").read_bytes())
    assert len(rows(path, reader="prime_rl")) == 4
    with pytest.raises(ValueError, match=r"--reader: must be one of slime, .*, records, got 'verl'"):
        find(path, "verl")
    shutil.copytree(DATA / "verifiers", tmp_path / "verifiers")
    shutil.copytree(DATA / "martingale", tmp_path / "martingale")
    assert find(tmp_path, "martingale").paths == (tmp_path / "martingale/tokens.db",)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        find(tmp_path / "no")
    with pytest.raises(FileNotFoundError, match="no file matches"):
        find(str(tmp_path / "*.pt"))
    with pytest.raises(FileNotFoundError, match="no record file"):
        find(tmp_path)


def test_reading_streams(tmp_path):
    """The first row comes before the file's end is looked at."""
    path = write_lines(tmp_path / "a.jsonl", lines_of(DATA / "open_instruct/run_rollouts_000000.jsonl"))
    with open(path, "a") as file:
        file.write("{ no json\n")
    assert next(read(path)).columns["sequence_id"] == "step6/0"


# rescore


def run(capsys, *args):
    code = main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from transformers import LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=128, **sizes)).save_pretrained(path)
    return path


def test_rescore_adds_the_trainers_side(capsys, model, tmp_path):
    out = tmp_path / "a.parquet"
    args = (DATA / "open_instruct", "--model", model, "--temperature", 0.5, "--logprobs-mode", "processed")
    code, said, err = run(capsys, "rescore", *args, "--out", out)
    assert (code, said.strip()) == (0, str(out))
    assert "4 sequences, 14 tokens" in err
    assert f"next: reweigh audit {out}" in err
    assert "run_metadata.jsonl is left out, no reader knows it" in err
    [part] = read_batches(out)
    part.check()
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model)
    logits = network(torch.tensor([[1, 2, 50, 51, 52]])).logits[0, 1:4].detach() / 0.5
    expected = logits.log_softmax(-1)[range(3), [50, 51, 52]]
    torch.testing.assert_close(part.batch.log_pi[:3], expected)
    assert part.column("env").tolist() == ["maths", "maths", "code", "code"]
    assert part.tokens("entropy_pi").shape == (14,)


def test_rescore_asks_for_what_the_dump_does_not_say(capsys, model, tmp_path):
    args = ("rescore", DATA / "open_instruct", "--model", model, "--out", tmp_path / "a.parquet")
    code, _, err = run(capsys, *args)
    assert code == 2
    assert "does not say at which temperature" in err
    code, _, err = run(capsys, *args, "--temperature", 0.7)
    assert code == 2
    assert "after these (processed) or before (raw)" in err
    code, _, err = run(capsys, *args, "--temperature", 0)
    assert "temperature must be > 0" in err
    assert not (tmp_path / "a.parquet").exists()


def test_rescore_raw_logprobs_compares_the_untouched_softmax(capsys, model, tmp_path):
    out, plain = tmp_path / "a.parquet", tmp_path / "b.parquet"
    args = ("rescore", DATA / "open_instruct", "--model", model)
    _, _, err = run(capsys, *args, "--temperature", 0.7, "--logprobs-mode", "raw", "--out", out)
    assert "the gap is right and the weights are not" in err
    run(capsys, *args, "--temperature", 1, "--out", plain)
    torch.testing.assert_close(next(read_batches(out)).batch.log_pi, next(read_batches(plain)).batch.log_pi)


def test_rescore_refuses_a_dump_with_both_sides(capsys, model, tmp_path):
    args = ("--model", model, "--temperature", 1, "--out", tmp_path / "a.parquet")
    code, _, err = run(capsys, "rescore", DATA / "slime", *args)
    assert code == 2
    assert "train_data/7.pt record 0: the record has the trainer's log-probs already" in err
    assert list(tmp_path.iterdir()) == []


def test_rescore_skips_what_it_cannot_score(capsys, model, tmp_path):
    [*good] = lines_of(DATA / "open_instruct/run_rollouts_000000.jsonl")
    good[1]["prompt_tokens"] = []
    good[2]["logprobs"][0] = None
    path = write_lines(tmp_path / "a.jsonl", good)
    args = ("rescore", path, "--model", model, "--temperature", 1, "--out", tmp_path / "a.parquet")
    code, _, err = run(capsys, *args)
    assert code == 2
    assert f"{path}:2: the record has no token ids of the prompt" in err
    code, _, err = run(capsys, *args, "--skip-bad")
    assert code == 0
    assert "1 bad records are left out:" in err
    assert "1 tokens have no finite log-prob of the sampler and are out of the mask" in err
    [part] = read_batches(tmp_path / "a.parquet")
    assert part.batch.layout.lengths.tolist() == [3, 1, 4]


@pytest.mark.parametrize("where", ["", "ranks"], ids=["beside", "below"])
def test_a_foreign_file_does_not_end_a_folder_of_records(tmp_path, where):
    """Metrics, a data set, rewards by response, an empty file: each is left out, and said."""
    home = tmp_path / where
    home.mkdir(exist_ok=True)
    for name in ("step_10.parquet", "step_9.parquet", "step_9.jsonl"):
        with RecordWriter(home / name) as writer:
            writer.write([{"sequence_id": name, "log_mu": [-1.0, -2.0], "log_pi": [-1.0, -2.1]}])
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1, "reward": 0.5}])
    pq.write_table(pa.table({"prompt": ["a"], "answer": ["b"]}), tmp_path / "data.parquet")
    pq.write_table(pa.table({"sequence_id": ["step_9.parquet"], "reward": [1.0]}), tmp_path / "rewards.parquet")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "_temporary").mkdir()
    pq.write_table(pa.table({"log_mu": [1]}), tmp_path / "_temporary" / "part.parquet")
    found = find(tmp_path)
    assert [path.name for path in found.paths] == ["step_9.jsonl", "step_9.parquet", "step_10.parquet"]
    assert {path.name for path in found.ignored} == {"metrics.jsonl", "data.parquet", "rewards.parquet"}
    audited = audit(tmp_path)
    assert [file.rows for file in audited.files] == [1, 1, 1]
    assert "3 files left out: files of no format that is read, first in " in " ".join(audited.notes)
    assert f"1 file left out: the file is empty (0 bytes): {tmp_path / 'empty.jsonl'}" in audited.notes


def test_a_foreign_file_alone_is_told_why(tmp_path):
    pq.write_table(pa.table({"sequence_id": ["a"], "reward": [1.0]}), tmp_path / "rewards.parquet")
    with pytest.raises(ValueError, match=r"rewards\.parquet"):
        audit(tmp_path)
    with pytest.raises(ValueError, match="column log_mu is missing"):
        audit(tmp_path / "rewards.parquet")


def test_a_damaged_file_among_records_is_no_foreign_one(tmp_path):
    with RecordWriter(tmp_path / "a.parquet") as writer:
        writer.write([{"sequence_id": "a", "log_mu": [-1.0], "log_pi": [-1.0]}])
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"b\.parquet: truncated or not closed"):
        audit(tmp_path)


@pytest.mark.filterwarnings("error")
def test_a_log_prob_of_a_trace_that_float32_does_not_hold_is_told_as_any_other(tmp_path):
    from reweigh.dumps.verifiers import _spread

    path = [{"mask": [False, True, True], "logprobs": [-1.0, -1e300]}, {"mask": [True], "logprobs": [-2.0]}]
    whole = _spread(path, "logprobs", 4)
    assert whole is not None
    assert whole.tolist()[1:] == [-1.0, -float("inf"), -2.0]
