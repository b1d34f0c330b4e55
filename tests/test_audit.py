"""The audit against plain loops, and what must not change its result: how records are cut, ordered and split."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from reweigh import Batch, m2po, report, seq_tis, snis, token_tis
from reweigh.audit import Audit, audit
from reweigh.audit.pictures import Density, Histogram
from reweigh.audit.where import TokenRows, position_start
from reweigh.records import RecordWriter, RunInfo
from reweigh.scan.tokens import Shared
from reweigh.stats.intervals import Number
from reweigh.stats.numerals import interval, of_log, share, two

BY = ("step", "env", "length", "position", "lag")


def write(path, rows, group=1000, info=None):
    with RecordWriter(path, info or RunInfo(engine="vllm", trainer="fsdp")) as writer:
        for i in range(0, len(rows), group):
            writer.write(rows[i : i + group])
    return path


def make_rows(n=60, seed=0, sd=0.1):
    g = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        length = int(g.integers(1, 90))
        log_mu = -0.5 - g.gamma(0.5, 2.0, length)
        lag = int(g.integers(0, 3))
        rows.append(
            {
                "sequence_id": f"s{i}",
                "prompt_id": f"p{i // 4}",
                "step": i // 2,
                "env": ["math", "code", "<script>alert(1)</script>"][i % 3],
                "log_mu": log_mu.astype(np.float32),
                "log_pi": np.minimum(log_mu + sd * g.normal(size=length) - sd * sd / 2, 0).astype(np.float32),
                "mask": (g.random(length) < 0.9) | (np.arange(length) == 0),
                "advantage": float(g.normal()),
                "versions": np.full(length, 5 - lag, np.int32),
                "trainer_version": 5,
                "turns": (np.arange(length) // 20).astype(np.int32),
            }
        )
    return rows


@pytest.fixture(scope="module")
def rows():
    return make_rows()


@pytest.fixture(scope="module")
def found(rows, tmp_path_factory):
    return audit(write(tmp_path_factory.mktemp("records") / "a.parquet", rows), by=BY)


def live_log_ratios(row):
    both = zip(row["log_pi"].astype(np.float64), row["log_mu"].astype(np.float64), row["mask"], strict=True)
    return [float(np.float32(p - m)) for p, m, counts in both if counts]


def test_numbers_equal_plain_loops(rows, found):
    tokens = [x for row in rows for x in live_log_ratios(row)]
    sums = [sum(live_log_ratios(row)) for row in rows]
    token, sequence = found.levels["token"], found.levels["sequence"]
    assert (token.n, sequence.n) == (len(tokens), len(rows))
    assert token.value("mean_ratio") == pytest.approx(np.mean(np.exp(tokens)), rel=1e-6)
    assert token.value("mean_abs") == pytest.approx(np.mean(np.abs(tokens)), rel=1e-6)
    assert token.value("kl_k3") == pytest.approx(np.mean(np.exp(tokens) - 1 - tokens), rel=1e-4)
    assert sequence.value("tv") == pytest.approx(np.mean([max(0, 1 - math.exp(s)) for s in sums]), rel=1e-6)
    lost = 1 - np.mean([min(math.exp(s), 2) for s in sums])
    assert sequence["excess_2"].value == pytest.approx(max(0, lost), abs=2e-3)  # 2 is a cap of the grid
    turns = sum(len({t for t, m in zip(row["turns"], row["mask"], strict=True) if m}) for row in rows)
    assert found.levels["turn"].n == turns


def test_trials_equal_plain_loops(rows, found):
    by_name = {trial.name: trial for trial in found.trials}
    # by estimator: unit, and per row (units, kept, bounded, kept tokens, weights)
    expect = {"token_tis(2)": [], "seq_tis(2)": [], "seq_mis(0, 2)": [], "geo_rs(0.999, 1.001)": []}
    for row in rows:
        x = live_log_ratios(row)
        n, r = len(x), math.exp(sum(x))
        geo = math.exp(sum(x) / n)
        inside = 0.999 <= geo <= 1.001
        capped = [min(math.exp(v), 2.0) for v in x]
        expect["token_tis(2)"].append((n, n, n, sum(math.exp(v) > 2 for v in x), n, sum(capped)))
        expect["seq_tis(2)"].append((n, 1, 1, int(r > 2), n, min(r, 2.0)))
        expect["seq_mis(0, 2)"].append((n, 1, int(r <= 2), 0, n * (r <= 2), r * (r <= 2)))
        expect["geo_rs(0.999, 1.001)"].append((n, 1, int(inside), 0, n * inside, float(inside)))
    for name, per_row in expect.items():
        for of, chosen in (
            (by_name[name].all, per_row),
            (by_name[name].by_bin[2], [p for p in per_row if 32 <= p[0] < 64]),
        ):
            _, units, kept, bounded, kept_tokens, weight = (sum(column) for column in zip(*chosen, strict=True))
            assert (of.units, of.kept, of.bounded, of.kept_tokens) == (units, kept, bounded, kept_tokens), name
            assert math.exp(of.log_weight) == pytest.approx(weight, rel=1e-5), name
    largest = max(math.exp(sum(live_log_ratios(row))) for row in rows)
    assert math.exp(by_name["seq_is"].all.log_largest) == pytest.approx(largest, rel=1e-5)
    assert {"turn_tis(2)", "opsm(0.05)", "dppo_tv(0.2, 0.2)"} <= set(by_name)


def test_default_estimators_follow_the_columns(rows, tmp_path):
    bare = [{k: v for k, v in row.items() if k not in ("advantage", "turns")} for row in rows]
    found = audit(write(tmp_path / "a.parquet", bare))
    assert not {"turn_tis(2)", "opsm(0.05)", "dppo_tv(0.2, 0.2)"} & {trial.name for trial in found.trials}
    assert set(found.levels) == {"token", "sequence"}


def flat(value, path=""):
    if isinstance(value, dict):
        return [x for k, v in value.items() for x in flat(v, f"{path}.{k}")]
    if isinstance(value, list):
        return [x for i, v in enumerate(value) for x in flat(v, f"{path}[{i}]")]
    return [(path, value)]


def test_result_does_not_depend_on_how_records_are_cut(rows, found, tmp_path, monkeypatch):
    order = np.random.default_rng(1).permutation(len(rows))
    write(tmp_path / "a.parquet", [rows[i] for i in order[:17]], group=5)
    write(tmp_path / "b.jsonl", [rows[i] for i in order[17:40]])
    write(tmp_path / "c.jsonl.gz", [rows[i] for i in order[40:]])
    monkeypatch.setattr("reweigh.scan.run.PART_TOKENS", 200)
    seen = []
    other = audit(tmp_path, by=BY, on_progress=seen.append)
    assert len(seen) > 10
    assert seen[-1].rows == len(rows)
    assert seen[-1].total_rows is None
    a, b = report.document(found), report.document(other)
    del a["files"], b["files"]
    one, two_ = flat(a), flat(b)
    assert [path for path, _ in one] == [path for path, _ in two_]
    for (path, x), (_, y) in zip(one, two_, strict=True):
        if isinstance(x, float):
            # Sums are float64; ends of intervals and differences such as 1 - mean lose some of that.
            assert y == pytest.approx(x, rel=1e-6, abs=1e-9), path
        else:
            assert x == y, path
    for name, histogram in found.histograms.items():
        assert torch.equal(histogram.counts, other.histograms[name].counts)
    assert torch.equal(found.density.counts, other.density.counts)


def test_slices_sum_to_the_whole(rows, found):
    token, sequence = found.levels["token"], found.levels["sequence"]
    for by, slices in found.slices.items():
        assert sum(row.token.n for row in slices) == token.n, by
        total = sum(row.token.n * row.token.value("mean_abs") for row in slices)
        assert total == pytest.approx(token.n * token.value("mean_abs"), rel=1e-6), by
        if by == "position":
            assert all(row.sequence is None for row in slices)
        else:
            assert sum(row.sequence.n for row in slices) == sequence.n, by
    by_env = {row.label: row for row in found.slices["env"]}
    code = [x for row in rows if row["env"] == "code" for x in live_log_ratios(row)]
    assert by_env["code"].token.n == len(code)
    assert by_env["code"].token.value("mean_ratio") == pytest.approx(np.mean(np.exp(code)), rel=1e-6)
    at = [x for r in rows for t, x in enumerate(np.float64(r["log_pi"]) - r["log_mu"]) if 16 <= t < 32 and r["mask"][t]]
    second = found.slices["position"][1]
    assert second.label == "16-31"
    assert (second.token.n, second.token.value("mean_abs")) == (len(at), pytest.approx(np.mean(np.abs(at)), rel=1e-5))
    assert [row.label for row in found.slices["lag"]] == ["0", "1", "2"]


def test_a_sequence_has_its_largest_lag(tmp_path):
    rows = [
        {"sequence_id": "a", "log_mu": [-1.0] * 3, "log_pi": [-1.0] * 3, "versions": [1, 1, 2], "trainer_version": 3}
    ]
    rows.append({"sequence_id": "b", "log_mu": [-1.0], "log_pi": [-1.0], "versions": [3], "trainer_version": None})
    slices = audit(write(tmp_path / "a.parquet", rows), by=["lag"]).slices["lag"]
    assert [(row.label, row.token.n) for row in slices] == [("1", 1), ("2", 2), ("not recorded", 1)]
    assert [row.sequence.n if row.sequence else 0 for row in slices] == [0, 1, 1]


def test_many_steps_become_ranges_and_many_envs_are_merged(tmp_path):
    rows = [
        {
            "sequence_id": str(i),
            "log_mu": [-1.0] * (1 + (i == 7)),
            "log_pi": [-1.0] * (1 + (i == 7)),
            "step": i,
            "env": f"e{i}",
        }
        for i in range(100)
    ]
    found = audit(write(tmp_path / "a.parquet", rows, group=9), by=["step", "env"])
    assert [row.label for row in found.slices["step"]][:2] == ["0 to 7", "8 to 15"]
    assert [row.sequence.n for row in found.slices["step"]] == [8] * 12 + [4]
    envs = found.slices["env"]
    assert (envs[0].label, envs[0].token.n) == ("e7", 2)
    assert (envs[-1].label, envs[-1].sequence.n, len(envs)) == ("other", 85, 16)


def test_memory_does_not_grow_with_rows(tmp_path, monkeypatch):
    held = []

    def spy(sums, files, left_out):
        tensors = [x for part in (sums.levels, sums.trials, sums.histograms) for x in part.values()]
        tensors += [x for s in sums.slices.values() for d in (s.token, s.sequence) for x in d.values()]
        held.append(sum(v.numel() for x in tensors for v in vars(x).values() if isinstance(v, torch.Tensor)))
        strata = [x for s in sums.strata.values() for d in (s.token, s.sequence) for x in d.values()]
        held[-1] += sum(x.numel() for x in (*strata, sums.density.counts))
        assert len(sums.worst.found) == 10
        raise InterruptedError

    monkeypatch.setattr("reweigh.audit.run.conclude", spy)
    monkeypatch.setattr("reweigh.scan.run.PART_TOKENS", 1500)
    # 32 steps each, so that the ranges of steps are the same
    for n in (64, 256):
        rows = [row | {"step": i % 32} for i, row in enumerate(make_rows(n))]
        with pytest.raises(InterruptedError):
            audit(write(tmp_path / f"{n}.parquet", rows, group=64), by=BY)
    # a longer response than any before may reach one more bin of positions, of which there are 53
    assert held[1] - held[0] <= 2 * 5 * 64


def test_huge_ratios_give_no_nan_or_infinity(tmp_path):
    rows = [{"sequence_id": str(i), "log_mu": [-600.0], "log_pi": [-601.0]} for i in range(30)]
    rows.append({"sequence_id": "up", "log_mu": [-1000.0, -1.0], "log_pi": [-1.0, -1.0]})
    found = audit(write(tmp_path / "a.parquet", rows), by=["length"])
    document = report.document(found)
    json.dumps(document, allow_nan=False)
    seq_is = next(x for x in document["estimators"] if x["name"] == "seq_is")
    assert seq_is["all"]["mean_weight"] is None
    assert seq_is["all"]["log_mean_weight"] == pytest.approx(999 - math.log(31))
    mean = document["levels"]["sequence"]["numbers"]["mean_ratio"]
    assert mean["value"] is None
    assert mean["refused"]
    assert "e^999" in report.page(found)
    assert seq_is["all"]["numbers"]["mean_weight"]["value"] is None


def test_all_ratios_far_below_one(tmp_path):
    rows = [{"sequence_id": str(i), "log_mu": [-1.0], "log_pi": [-2000.0]} for i in range(30)]
    found = audit(write(tmp_path / "a.parquet", rows))
    json.dumps(report.document(found), allow_nan=False)
    assert found.verdict.level == "fail"
    assert "fail" in report.page(found)


def test_document_schema(found):
    document = report.document(found)
    assert document["reweigh_audit"] == 2
    of_version_1 = {"verdict", "files", "notes", "left_out", "levels", "estimators", "slices"}
    new = {"summary", "normal", "diagnosis", "estimator_meanings", "where", "histograms", "density", "tails", "worst"}
    assert set(document) == {"reweigh_audit"} | of_version_1 | new
    advice = {"action", "use", "deciding", "choice", "runner_up"}
    assert set(document["verdict"]) == {"level", "reason", "hint", "findings"} | advice
    assert set(document["files"][0]) == {"path", "rows", "tokens", "run"}
    assert document["files"][0]["run"]["engine"] == "vllm"
    assert set(document["levels"]) == {"token", "sequence", "turn"}
    number = {"value", "low", "high", "sample", "unit", "refused", "meaning"}
    for level in document["levels"].values():
        assert set(level) == {"n", "sequences", "tokens", "refused", "numbers"}
        for x in level["numbers"].values():
            assert set(x) == number
            assert (x["value"] is None) <= bool(x["refused"])
    counts = {"units", "kept", "bounded", "tokens", "kept_tokens"}
    weights = {"mean_weight", "log_mean_weight", "largest_weight", "log_largest_weight"}
    for trial in document["estimators"]:
        assert set(trial) == {"name", "unit", "caps", "raw_effective_share", "all", "by_length", "by_advantage"}
        assert set(trial["all"]) == counts | weights | {"numbers"}
        assert set(trial["all"]["numbers"]) == set(document["estimator_meanings"])
        assert sum(x["units"] for x in trial["by_advantage"]) == trial["all"]["units"]
        assert sum(x["units"] for x in trial["by_length"]) == trial["all"]["units"]
        assert {"low", "high"} <= set(trial["by_length"][0])
    assert set(document["slices"]) == set(BY)
    row = document["slices"]["env"][0]
    assert set(row) == {"label", "token", "sequence"}
    assert set(row["token"]["numbers"]) == {"mean_ratio", "kl_k3", "mean_abs", "tv"}
    assert "ess_fraction" in row["sequence"]["numbers"]


def bad_row(rows, column, index, value):
    copy = {**rows[3], column: rows[3][column].copy(), "mask": None}
    copy[column][index] = value
    return [*rows[:3], copy, *rows[4:]]


def raw_parquet(path, rows):
    """As another program would write it: our writer would not."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ("sequence_id", "log_mu", "log_pi", "mask")
    pq.write_table(pa.Table.from_pylist([{k: row.get(k) for k in names} for row in rows]), path)
    return path


@pytest.mark.parametrize(
    ("column", "value", "word", "left_out"),
    [
        ("log_pi", math.nan, "not finite", {"not_finite": 1, "positive": 0}),
        ("log_mu", -math.inf, "not finite", {"not_finite": 1, "positive": 0}),
        ("log_mu", 0.5, "positive", {"not_finite": 0, "positive": 1}),
    ],
)
def test_bad_values_name_file_and_row_or_are_left_out(rows, tmp_path, column, value, word, left_out):
    path = raw_parquet(tmp_path / "a.parquet", bad_row(rows, column, 0, value))
    with pytest.raises(ValueError, match=rf"a\.parquet row 3: {column}\[0\] = .* is {word}") as error:
        audit(path)
    assert f"reweigh records validate {path}" in str(error.value)
    assert "--keep-going" in str(error.value)
    found = audit(path, keep_going=True)
    assert report.document(found)["left_out"] == left_out
    assert any("left out" in finding.reason for finding in found.verdict.findings)
    clean = raw_parquet(tmp_path / "b.parquet", bad_row(rows, "log_pi", 0, -1.0))
    assert found.levels["token"].n == audit(clean).levels["token"].n - 1


def test_nothing_to_judge(tmp_path):
    empty = write(tmp_path / "empty.parquet", [])
    with pytest.raises(ValueError, match=r"empty\.parquet: there are no records\nhint:"):
        audit(empty)
    masked = [{"sequence_id": "a", "log_mu": [-1.0], "log_pi": [-1.0], "mask": [False]}]
    path = raw_parquet(tmp_path / "masked.parquet", masked)
    with pytest.raises(ValueError, match=r"masked\.parquet: nothing to judge: no token of 1 rows counts\nhint:"):
        audit(path)


def test_rows_without_a_token_are_counted_and_not_an_error(rows, tmp_path):
    masked = {"sequence_id": "z", "log_mu": np.float32([-1.0]), "log_pi": np.float32([-1.0]), "mask": [False]}
    found = audit(raw_parquet(tmp_path / "a.parquet", [*rows, masked]))
    assert found.levels["sequence"].n == len(rows)
    assert found.files[0].rows == len(rows) + 1
    assert "(1 row without a token that counts)" in report.page(found)


def test_rollouts_need_rescoring(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"sequence_id": "a", "log_mu": [-1.0]}) + "\n")
    with pytest.raises(ValueError, match=r"a\.jsonl: column log_pi is missing\nhint: .*rescored"):
        audit(path)


def test_arguments_are_checked_before_anything_is_read():
    with pytest.raises(
        ValueError, match="by must be one of step, env, length, position, lag, turn, source, got 'colour'"
    ):
        audit("/nonexistent", by=["colour"])
    for estimator in (snis(), m2po()):
        with pytest.raises(ValueError, match="audit: mine looks at a whole batch"):
            audit("/nonexistent", estimators={"mine": estimator})


def test_given_estimators_replace_the_default_ones(rows, tmp_path):
    found = audit(write(tmp_path / "a.parquet", rows), estimators={"mine": seq_tis(1.5) * token_tis(3.0)})
    assert [(trial.name, trial.unit) for trial in found.trials] == [("mine", "token")]


def test_files_that_disagree_are_said(rows, tmp_path):
    write(tmp_path / "a.parquet", rows[:30], info=RunInfo(engine="vllm", temperature=1.0))
    write(tmp_path / "b.parquet", rows[30:], info=RunInfo(engine="vllm", temperature=0.7))
    found: Audit = audit(tmp_path, by=["step"])
    assert any("differ in temperature: 1.0" in note and "0.7" in note for note in found.notes)
    assert found.info.temperature is None
    assert found.info.engine == "vllm"
    assert (
        "by env: no record says it (env missing or null throughout)"
        in audit(raw_parquet(tmp_path / "c.parquet", rows), by=["env"]).notes
    )


def test_histogram_against_numpy():
    x = torch.tensor(np.random.default_rng(0).standard_t(2, 4000) * 0.3, dtype=torch.float64)
    x[:10] = 0.0
    edges = torch.tensor([2.0**-60, -(2.0**-60), 2.0**20, -(2.0**20), 1.0, -1.0, 2.0**-30, 2.0**14, -0.5, 0.5])
    single = torch.cat([x.float(), edges])
    assert torch.equal(Histogram.of(single).counts, Histogram.of(single.double()).counts)
    whole = Histogram.of(x)
    parts = Histogram.of(x[:1234]) + Histogram.of(x[1234:])
    assert torch.equal(whole.counts, parts.counts)
    for bins, outside in ((8, 0.01), (32, 0.0)):
        bars = whole.linear(bins, outside)
        edge = (len(bars.counts) / 2) * bars.width
        # ours are closed at the end that is nearer to 0
        magnitude = np.floor(np.abs(x.numpy()) / bars.width + 0.5)
        expected = np.bincount(
            (np.sign(x.numpy()) * magnitude).clip(-bins, bins).astype(int) + bins, minlength=2 * bins + 1
        )
        assert bars.counts.tolist() == expected[1:-1].tolist()
        assert bars.outside == expected[0] + expected[-1] <= outside * len(x)
        assert math.log2(edge / (1 - 1 / (2 * bins))) == pytest.approx(round(math.log2(edge / (1 - 1 / (2 * bins)))))


def test_position_bins_and_their_starts():
    starts = [position_start(i) for i in range(53)]
    assert starts[:9] == [0, 4, 8, 12, 16, 20, 24, 28, 32]
    assert starts[-2:] == [57344, 65536]
    assert sorted(set(starts)) == starts


def shared(log_ratio, lengths, mask=None, group=None):
    log_mu = torch.full((len(log_ratio),), -1.0)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return Shared.of(Batch.packed(log_mu + torch.tensor(log_ratio), log_mu, offsets, mask, group=group))


def test_strata_by_position_against_loops():
    g = np.random.default_rng(0)
    lengths = [3, 0, 1, 70_000, 16, 17, 0]
    n = sum(lengths)
    x, mask = g.normal(size=n).astype(np.float32), torch.from_numpy(g.random(n) < 0.8)
    batch = shared(x, lengths, mask, torch.arange(7) * 12345)
    position = np.concatenate([np.arange(k) for k in lengths])
    bins = np.searchsorted([position_start(i) for i in range(53)], position, side="right") - 1
    rows = TokenRows.of(batch)
    pieces = rows.by_position()
    l = batch.batch.log_ratio.double().numpy()  # 0 where the mask is off
    for i in range(53):
        here = (bins == i) & mask.numpy()
        each = (l[here] ** 0, l[here], np.abs(l[here]), l[here] ** 2, np.expm1(l[here]))
        expected = [x.sum() for x in each]
        np.testing.assert_allclose(pieces.sums[:, pieces.code == i].sum(1), expected, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(rows.by_sequence(pieces)[0], [mask[a : a + k].sum() for a, k in starts_of(lengths)])
    nothing = TokenRows.of(shared([], [0, 0])).by_position()
    assert nothing.sums.shape == (5, 0)


def starts_of(lengths):
    return zip(np.cumsum([0, *lengths[:-1]]), lengths, strict=True)


def test_density_against_loops():
    x = np.array([0.0, 0.3, -0.3, 2.0**-14, -(2.0**-15), 300.0, -300.0, 1.0], np.float32)
    batch = shared(x, [8], torch.tensor([True] * 7 + [False]))
    counts, rows, columns = Density.of(batch).counts, Density.row_edges(), Density.column_edges()
    assert len(rows) == counts.shape[1] + 1
    assert len(columns) == counts.shape[0] + 1
    assert int(counts.sum()) == 7
    column = next(i for i in range(len(columns)) if columns[i] <= 1.0 < columns[i + 1])  # log mu is -1
    assert int(counts[column].sum()) == 7
    middle = counts.shape[1] // 2
    assert rows[middle] == -rows[middle + 1] == -(2.0**-14)
    assert counts[column, middle] == 2  # 0 and what is nearer to it than 2^-14
    assert counts[column, 0] == counts[column, -1] == 1
    for value in (0.3, -0.3):
        cell = next(j for j in range(len(rows)) if rows[j] <= value < rows[j + 1])
        assert counts[column, cell] == 1
    assert torch.equal((Density.of(batch) + Density.empty()).counts, counts)


def strata_of(rows, path):
    return audit(write(path, rows)).strata


def test_strata_against_loops(rows, found):
    for cut in ("position", "probability", "length", "turn", "lag", "env", "step"):
        assert sum(row.tokens for row in found.strata[cut]) == found.levels["token"].n, cut
    by_env = {row.label: row for row in found.strata["env"]}
    code = [live_log_ratios(row) for row in rows if row["env"] == "code"]
    tokens, sums = np.concatenate(code), [sum(x) for x in code]
    one = by_env["code"]
    assert (one.tokens, one.sequences) == (len(tokens), len(sums))
    assert one.token["mean"].value == pytest.approx(tokens.mean(), rel=1e-5)
    assert one.token["sd"].value == pytest.approx(tokens.std(), rel=1e-5)
    assert one.token["mean_ratio"].value == pytest.approx(np.exp(tokens).mean(), rel=1e-5)
    assert one.sequence["mean"].value == pytest.approx(np.mean(sums), rel=1e-5)
    assert one.sequence["sd"].value == pytest.approx(np.std(sums), rel=1e-5)
    assert one.token["mean"].low < tokens.mean() < one.token["mean"].high
    # turns are numbered among those that have a token that counts
    turns = [{} for _ in rows]
    for seen, row in zip(turns, rows, strict=True):
        for x, mask, turn in zip(row["log_pi"] - row["log_mu"], row["mask"], row["turns"], strict=True):
            if mask:
                seen.setdefault(int(turn), []).append(float(x))
    second = [x for seen in turns for x in (list(seen.values())[1] if len(seen) > 1 else [])]
    assert found.strata["turn"][1].label == "2"
    assert found.strata["turn"][1].tokens == len(second)
    assert found.strata["turn"][1].token["mean"].value == pytest.approx(np.mean(second), rel=1e-4)
    # what is known only after the token is drawn need not have a mean ratio of 1
    assert "mean_ratio" not in found.strata["probability"][0].token
    assert [row.label for row in found.strata["lag"]] == ["0", "1", "2"]


def test_strata_are_those_of_the_columns(rows, tmp_path):
    bare = [{k: row[k] for k in ("sequence_id", "log_mu", "log_pi", "mask")} for row in rows]
    assert list(strata_of(bare, tmp_path / "a.parquet")) == ["position", "probability", "length"]
    nulls = [row | {"step": None, "env": None} for row in bare]
    nulls[3] |= {"env": "math"}
    by_env = strata_of(nulls, tmp_path / "b.parquet")["env"]
    assert {row.label for row in by_env} == {"math", "not recorded"}


def test_many_steps_and_environments_stay_few(tmp_path):
    one = {"log_mu": [-1.0, -1.0], "log_pi": [-1.1, -1.0]}
    rows = [one | {"sequence_id": str(i), "step": i, "env": f"e{i}"} for i in range(1000)]
    found = audit(write(tmp_path / "a.parquet", rows, group=90))
    assert [row.label for row in found.strata["step"]][:2] == ["0 to 15", "16 to 31"]
    assert len(found.strata["step"]) == 63
    assert len(found.strata["env"]) == 21
    assert found.strata["env"][-1].label == "other"
    assert sum(row.sequences for row in found.strata["env"]) == 1000


def test_a_ratio_that_no_float_holds_has_no_mean(tmp_path):
    rows = [{"sequence_id": str(i), "log_mu": [-1000.0, -1.0], "log_pi": [-1.0, -1.0]} for i in range(3)]
    found = audit(write(tmp_path / "a.parquet", rows))
    number = report.document(found)["where"]["position"]["rows"][0]["token"]["mean_ratio"]
    assert number["value"] is None
    assert number["refused"]


def test_applied_share_and_signs_against_loops(rows, found):
    trial = next(t for t in found.trials if t.name == "seq_tis(2)")
    weights = np.array([min(math.exp(sum(live_log_ratios(row))), 2.0) for row in rows])
    assert trial.all.effective_share == pytest.approx(weights.sum() ** 2 / (weights**2).sum() / len(rows), rel=1e-5)
    positive = np.array([row["advantage"] > 0 for row in rows])
    assert trial.by_sign["positive"].units == positive.sum()
    assert trial.by_sign["negative"].units == (~positive).sum()
    assert math.exp(trial.by_sign["positive"].log_mean_weight) == pytest.approx(weights[positive].mean(), rel=1e-5)
    assert trial.caps
    assert not next(t for t in found.trials if t.name == "seq_is").caps
    raw = next(t for t in found.trials if t.name == "token_tis(2)")
    assert raw.raw.sample == found.levels["token"]["ess_fraction"].sample
    tokens = np.concatenate([np.minimum(np.exp(live_log_ratios(row)), 2.0) for row in rows])
    assert raw.all.effective_share == pytest.approx(tokens.sum() ** 2 / (tokens**2).sum() / len(tokens), rel=1e-5)


def test_the_worst_sequences_whatever_the_order(rows, found):
    sums = sorted(((abs(sum(live_log_ratios(row))), row["sequence_id"]) for row in rows), reverse=True)
    assert [one.name for one in found.worst] == [name for _, name in sums[:10]]
    worst = found.worst[0]
    row = next(row for row in rows if row["sequence_id"] == worst.name)
    assert worst.length == len(row["log_mu"])
    assert float(worst.log_ratios.double().sum()) == pytest.approx(worst.log_ratio, rel=1e-5)
    assert worst.token_ids is None
    assert worst.text is None


def test_long_worst_sequences_keep_a_window(tmp_path):
    log_mu = np.full(5000, -1.0, np.float32)
    log_pi = log_mu.copy()
    log_pi[4000] = -9.0
    rows = [
        {"sequence_id": "a" * 500, "log_mu": log_mu, "log_pi": log_pi, "token_ids": np.arange(5000), "text": "x" * 9999}
    ]
    (one,) = audit(write(tmp_path / "a.parquet", rows)).worst
    assert (one.first, len(one.log_ratios), one.length) == (3800, 400, 5000)
    assert one.token_ids.tolist() == list(range(3800, 4200))
    assert int(one.log_ratios.abs().argmax()) == 200
    assert (len(one.name), len(one.text)) == (120, 4000)


def test_tails_are_those_of_the_largest(rows, found):
    sums = sorted((sum(live_log_ratios(row)) for row in rows), reverse=True)
    tail = found.tails["sequence"]
    assert tail.n == len(rows)
    assert list(tail.log_ratios[:5]) == pytest.approx(sums[:5], rel=1e-5)
    assert tail.khat == found.levels["sequence"].value("khat")
    assert len(tail.fitted) == len(rows) // 5
    assert list(tail.fitted) == sorted(tail.fitted, reverse=True)


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (0.012345, "0.012"),
        (12345, "12,000"),
        (1.23e-5, "1.2e-05"),
        (1.0, "1.0"),
        (0.0, "0"),
        (9.99, "10"),
        (-2.5e7, "-2.5e+07"),
    ],
)
def test_two_digits(x, text):
    assert two(x) == text


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (0.0, "0%"),
        (1.0, "100%"),
        (0.123, "12%"),
        (0.99962, "99.96%"),
        (0.0004, "0.040%"),
        (1 - 1e-15, "100%"),
        (0.05, "5.0%"),
    ],
)
def test_shares(x, text):
    assert share(x) == text


def test_intervals_have_the_digits_that_their_width_supports():
    assert interval(Number(0.99983, 0.99951, 1.00012)) == ("0.9998", "[0.9995, 1.0001]")
    assert interval(Number(0.00023, 0.0, 0.0113)) == ("0.00023", "[0, 0.011]")
    assert interval(Number(0.0, 0.0, 0.03)) == ("0", "[0, 0.030]")
    assert interval(Number(4.2e-5, 3.9e-5, 4.5e-5)) == ("4.2e-05", "[3.9e-05, 4.5e-05]")
    assert interval(Number(5.0, -math.inf, math.inf)) == ("5.0", "")
    assert interval(Number(None, refused="too few")) == ("refused", "")
    assert of_log(812.3) == "e^812"


def test_an_audit_is_written_in_a_line_and_for_a_notebook():
    found = audit(Path(__file__).parents[1] / "examples" / "records" / "vllm_bfloat16.parquet")
    assert repr(found).startswith(f"Audit({found.verdict.level}: ")
    assert repr(found).endswith("; 64 responses, 6,175 tokens)")
    shown = found._repr_html_()
    assert "<th>6,175 tokens</th>" in shown
    assert "<th>kl_k3</th><td>0.0014 [" in shown
