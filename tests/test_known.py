"""Levels that are known: the table is sound and measured again, and a run is put where it belongs."""

import runpy
from pathlib import Path

import pytest

from reweigh.audit import audit
from reweigh.audit.known import KnownRun, known_runs, place
from reweigh.records import RunInfo

ROOT = Path(__file__).parents[1]
RECORDS = [one for one in known_runs() if one.source.startswith("examples/")]


def test_every_example_is_in_the_table():
    assert {one.source for one in RECORDS} == {
        f"examples/records/{path.name}" for path in (ROOT / "examples" / "records").glob("*.parquet")
    }


@pytest.mark.parametrize("one", RECORDS, ids=lambda one: Path(one.source).stem)
def test_what_the_examples_hold_is_what_the_table_says(one):
    found = audit(ROOT / one.source, estimators={})
    token, info = found.levels["token"], found.info
    assert (one.engine, one.version, one.types) == (info.engine, info.engine_version, info.dtype_mu)
    assert token["kl_k3"].value == pytest.approx(one.kl, rel=0.01)
    assert token["mean_abs"].value == pytest.approx(one.mean_abs, rel=0.01)
    assert found.levels["sequence"].tokens / found.levels["sequence"].n == pytest.approx(one.length, abs=1)
    assert one in found.place.like
    assert found.place.sentence.startswith(f"usual for {one.engine} in {one.types}")
    assert found.place.sentence in found.headline.why[-1] or found.place.sentence[1:] in " ".join(found.headline.why)


def test_rows_have_a_size_a_state_and_a_source():
    for one in known_runs():
        assert one.source
        assert (one.state == "fault") == bool(one.fault), one
        assert 0 <= one.kl < 2, one
        assert 0 <= one.mean_abs < 2, one


def test_a_run_stands_beside_its_own_engine_and_cache():
    vllm = RunInfo(engine="vllm", dtype_mu="bfloat16")
    assert place(0.0013, 0.035, vllm).sentence.startswith("usual for vllm in bfloat16 (KL 0.00078 to 0.0019; ")
    far = place(0.05, 0.2, vllm)
    assert far.sentence.startswith("26 times what is known of vllm in bfloat16 (")
    assert "; of this size: vllm 0.32.0 in bfloat16, fp8 KV cache" in far.sentence
    assert far.times == pytest.approx(0.05 / 0.0019)
    with_cache = RunInfo(engine="vllm", dtype_mu="bfloat16", note="kv_cache_dtype=fp8")
    assert place(0.05, 0.2, with_cache).sentence.startswith("usual for vllm in bfloat16 with fp8 KV cache (")
    assert place(1e-7, 3e-4, vllm).sentence.startswith("less than is known of vllm in bfloat16 (")


def test_an_engine_that_nobody_named_is_put_by_size():
    sentence = place(0.045, 0.2, RunInfo()).sentence
    assert sentence.startswith("of this size: ")
    assert "W8A8" in sentence
    assert "a fault: dropout left on" in place(0.8, 0.85, RunInfo()).sentence
    assert "fault" not in place(0.0013, 0.036, RunInfo()).sentence  # which is usual, whatever makes as much
    assert place(0.0, 0.0, RunInfo()).sentence == "no run of this engine is known, and none of this size"
    assert place(50.0, 8.0, RunInfo(engine="x", dtype_mu="fp4")).times is None


def test_a_size_is_compared_by_kl_or_else_by_the_square_of_the_mean_size():
    assert KnownRun("measured", "x", kl=0.01).times(0.02, 9.9) == pytest.approx(2)
    assert KnownRun("measured", "x", mean_abs=0.1).times(9.9, 0.2) == pytest.approx(4)


def test_the_page_has_the_table():
    script = runpy.run_path(str(ROOT / "docs" / "normal.py"))
    text = (ROOT / "docs" / "normal.md").read_text()
    assert script["page"](text) == text, "python docs/normal.py"
