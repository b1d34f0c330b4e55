"""Two sets of records side by side: the interval of a difference, paired by prompt where prompts are shared."""

import json

import numpy as np
import pytest

from reweigh.__main__ import main
from reweigh.audit.compare import compare
from reweigh.records import RecordWriter, RunInfo
from reweigh.report.compare import headline
from reweigh.scan import Workers
from reweigh.scan.rows import Rows

EXAMPLES = "examples/records"


def write(path, seed, prompts, *, sd=0.05, spread=0.0, per=2, length=30, info=None, first=0):
    """Responses whose log ratios have, at each prompt, a spread of the prompt's own, the same in every file."""
    rng, rows = np.random.default_rng(seed), []
    for p in range(first, first + prompts):
        own = sd * np.exp(spread * np.random.default_rng(p).normal())
        for i in range(per):
            log_mu = -3.0 - rng.exponential(size=length)
            log_pi = log_mu + own * rng.normal(size=length) - own**2 / 2
            rows.append(
                {"sequence_id": f"{path.name}-{p}-{i}", "prompt_id": f"p{p}", "log_mu": log_mu, "log_pi": log_pi}
            )
    with RecordWriter(path, info or RunInfo()) as writer:
        writer.write(rows)
    return path


def test_equal_records_do_not_differ(tmp_path):
    path = write(tmp_path / "a.parquet", 0, 40)
    found = compare(path, path)
    for one in found.differences:
        assert one.change.value == 0
        assert (one.change.low, one.change.high) == (0, 0)
        assert not one.sure
    assert (found.shared, found.prompts, found.paired) == (40, (40, 40), True)


def test_a_real_difference_is_found_and_signed(tmp_path):
    a, b = write(tmp_path / "a.parquet", 0, 60, sd=0.03), write(tmp_path / "b.parquet", 1, 60, sd=0.06)
    found, back = compare(a, b), compare(b, a)
    assert found.kl.sure
    assert found.kl.change.value == pytest.approx(0.06**2 / 2 - 0.03**2 / 2, rel=0.1)
    assert found.kl.change.low < found.kl.change.value < found.kl.change.high
    for one, other in zip(found.differences, back.differences, strict=True):
        if one.change.value is None:
            assert (one.name, one.change.refused) == ("ess_fraction", other.change.refused)
            continue
        assert one.change.value == pytest.approx(-other.change.value)
        assert one.change.low == pytest.approx(-other.change.high)
    assert headline(found).startswith("the gap of the second is larger: KL(mu||pi) is 0.000")
    assert headline(back).startswith("the gap of the second is smaller: ")


def test_pairing_takes_out_what_prompts_vary_by(tmp_path):
    """Of prompts with very different gaps each, the same ones say more than others of their kind."""
    a = write(tmp_path / "a.parquet", 0, 100, spread=1.0, per=8)
    b = write(tmp_path / "b.parquet", 1, 100, spread=1.0, per=8, sd=0.06)
    other = write(tmp_path / "c.parquet", 2, 100, spread=1.0, per=8, sd=0.06, first=1000)
    same, apart = compare(a, b), compare(a, other)
    assert (same.paired, apart.paired, apart.shared) == (True, False, 0)
    widths = [x.kl.change.high - x.kl.change.low for x in (same, apart)]
    assert widths[0] < widths[1] / 2
    assert same.kl.sure


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_intervals_cover_no_difference_19_times_in_20(tmp_path, shared):
    hits = {}
    for draw in range(80):
        kind = {"prompts": 40, "spread": 0.5, "length": 12}
        a = write(tmp_path / "a.parquet", 2 * draw, first=100 * draw, **kind)
        b = write(tmp_path / "b.parquet", 2 * draw + 1, first=100 * draw + 50 * (not shared), **kind)
        for one in compare(a, b).differences:
            if one.change.low is not None and one.name != "length":
                hits.setdefault(f"{one.name} {one.level}", []).append(one.change.low <= 0 <= one.change.high)
    for name, inside in hits.items():
        assert np.mean(inside) >= 0.875, (name, np.mean(inside))  # 0.95 - 3 sd of 80 draws


def test_what_cannot_be_told_is_refused(tmp_path):
    few = write(tmp_path / "a.parquet", 0, 3)
    found = compare(few, write(tmp_path / "b.parquet", 1, 3))
    assert found.kl.change.refused == "a side has 3 clusters of prompts; 8 tell a difference from chance"
    assert headline(found).startswith("not told: KL(mu||pi) is ")
    heavy = compare(f"{EXAMPLES}/vllm_bfloat16.parquet", f"{EXAMPLES}/vllm_fp8_kv.parquet")
    [ess] = [one for one in heavy.differences if one.name == "ess_fraction"]
    assert ess.change.value is None
    assert "of the weight" in ess.change.refused
    with pytest.raises(ValueError, match="nothing to compare in"):
        compare(few, few, rows=Rows.of(["length > 99"]))


def test_slices_and_runs_and_prompts_of_one_side_are_said(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.parquet", 0, 30, info=RunInfo(engine="vllm", temperature=1.0))
    write(tmp_path / "b.parquet", 1, 30, first=10, info=RunInfo(engine="sglang", temperature=1.0))
    assert main(["compare", "a.parquet", "b.parquet", "--by", "length", "--by", "env", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["runs_differ"] == {"engine": ["vllm", "sglang"]}
    assert (told["shared_prompts"], told["paired"]) == (20, True)
    assert [row["label"] for row in told["slices"]["length"]] == ["16-31"]
    assert any(
        note.startswith("20 prompts are in both, 10 in the first alone and 10 in the second") for note in told["notes"]
    )
    assert main(["compare", "a.parquet", "b.parquet"]) == 0
    out = capsys.readouterr().out
    assert "the runs differ in: engine vllm and sglang" in out
    assert "note: 20 prompts are in both" in " ".join(out.split())
    assert main(["compare", "a.parquet", "gone.parquet"]) == 2
    assert "gone.parquet: no such file or folder" in capsys.readouterr().err


@pytest.mark.slow
def test_processes_find_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("reweigh.scan.run.PART_TOKENS", 300)
    a, b = write(tmp_path / "a.parquet", 0, 40), write(tmp_path / "b.parquet", 1, 40)
    assert compare(a, b, engine=Workers(2)).to_dict() == compare(a, b).to_dict()


@pytest.mark.filterwarnings("error")
def test_a_ratio_beyond_every_number_on_one_side_is_compared_without_a_warning(tmp_path):
    """e^1500: the sums of its cluster are infinite, those of clusters without a token stay 0."""
    for name, gap in (("a", -0.01), ("b", 1500.0)):
        rows = [
            {
                "sequence_id": f"{i}",
                "prompt_id": f"{i}",
                "log_mu": [-1600.0, -1.0],
                "log_pi": [-1600.0 + gap * (i == 3), -1.01],
            }
            for i in range(40)
        ]
        with RecordWriter(tmp_path / f"{name}.parquet") as writer:
            writer.write(rows)
    found = compare(tmp_path / "a.parquet", tmp_path / "b.parquet")
    by_name = {(one.name, one.level): one for one in found.differences}
    assert by_name["kl_k1", "token"].a.value is not None
    assert not by_name["mean_ratio", "token"].sure
