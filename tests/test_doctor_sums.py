"""The doctor's sums: they add in any order, and the diagnosis does not depend on how records are cut."""

import os
from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
from doctor_records import assert_same, every_column, visited, world, write
from hypothesis import given
from hypothesis import strategies as st

from reweigh.doctor import cells, doctor
from reweigh.doctor.cells import Cells, Estimate, Keyed, Prompts, Responses, contrast, jackknife, ratio
from reweigh.doctor.diagnose import MOST_SLICES, Slices, Visit
from reweigh.scan import Workers
from reweigh.scan.engines import in_order

BYS = ("step", "env", "length", "position", "lag", "turn", "source")


def some(g, n):
    """Buckets, steps, lags and a whole moment, so that sums are exact."""
    return g.integers(0, 64, n), g.integers(-3, 400, n), g.integers(-1, 9, n), g.integers(-9, 9, n).astype(float)


def keyed(rows):
    bucket, step, lag, x = rows
    return Keyed.of(bucket, step, lag, np.ones(len(x)), x)


def prompted(rows):
    _, step, lag, x = rows
    return Prompts.of(step * 7919 % 1009, lag, np.ones(len(x)), x)


def plain(x):
    """Whatever is compared, as plain values."""
    if isinstance(x, Cells):
        return x.data.tolist()
    if isinstance(x, Keyed):
        return x.width, {k: v.tolist() for k, v in sorted(x.data.items()) if v.any()}
    return x.group.tolist(), x.version.tolist(), x.sums.tolist()


def celled(rows):
    bucket, step, _, x = rows
    return Cells.of(bucket, step % 5, 5, np.ones(len(x)), x)


@pytest.mark.parametrize("of", [celled, keyed, prompted])
@given(seed=st.integers(0, 2**32 - 1), cuts=st.lists(st.integers(0, 300), max_size=5))
def test_sums_add_in_any_order_and_grouping(of, seed, cuts):
    g = np.random.default_rng(seed)
    rows = some(g, 300)
    edges = [0, *sorted(cuts), 300]
    parts = [of(tuple(x[a:b] for x in rows)) for a, b in pairwise(edges)]
    whole = plain(of(rows))
    assert plain(reduce(lambda a, b: a + b, parts)) == whole
    assert plain(reduce(lambda a, b: b + a, parts)) == whole
    assert plain(reduce(lambda a, b: b + a, reversed(parts))) == whole


@pytest.mark.parametrize("of", [celled, keyed, prompted])
def test_the_order_of_tokens_does_not_matter_and_nothing_adds_nothing(of):
    g = np.random.default_rng(1)
    rows = some(g, 200)
    order = g.permutation(200)
    assert plain(of(tuple(x[order] for x in rows))) == plain(of(rows))
    none = of(tuple(x[:0] for x in rows))
    assert plain(of(rows) + none) == plain(none + of(rows)) == plain(of(rows))


def test_steps_are_joined_into_ranges_that_hold_every_token():
    n = 5 * Keyed.RANGES
    step = np.arange(n)
    x = Keyed.of(np.zeros(n, np.int64), step, step % 2, np.ones(n), step.astype(float))
    starts = sorted({key[0] for key in x.data})
    assert len(starts) <= Keyed.RANGES
    assert x.width == 8
    assert starts == list(range(0, n, 8))
    total = sum(x.data.values()).sum(0)
    assert total.tolist() == [n, step.sum()]
    assert {key[1] for key in x.data} == {0, 1}
    for (start, parity), sums in x.data.items():
        inside = step[(step >= start) & (step < start + 8) & (step % 2 == parity)]
        assert sums[0].tolist() == [len(inside), inside.sum()]


@pytest.mark.parametrize("start", [0, 1_700_000_000_000_000_000, -(2**62)])
def test_a_step_may_be_any_number(start):
    step = start + np.arange(6) // 2
    x = Keyed.of(np.zeros(6, np.int64), step, np.array([-1, 8] * 3), np.ones(6))
    assert sorted(x.data) == [(start + i, lag) for i in range(3) for lag in (-1, 8)]


def test_a_coarse_and_a_fine_sum_meet_at_the_coarser_width():
    fine = Keyed.of(np.zeros(1, np.int64), np.array([5]), np.array([0]), np.ones(1))
    coarse = Keyed({(4, 0): np.ones((64, 1))}, 4)
    for both in (fine + coarse, coarse + fine):
        assert both.width == 4
        assert list(both.data) == [(4, 0)]
        assert both.data[4, 0][0, 0] == 2


@pytest.mark.parametrize("cuts", [1, 3, 10])
def test_the_same_prompts_are_kept_however_records_are_cut(cuts, monkeypatch):
    monkeypatch.setattr(cells, "MOST_PROMPTS", 20)
    g = np.random.default_rng(cuts)
    group, version = g.integers(-(2**63), 2**63 - 1, 100)[g.integers(0, 100, 3000)], g.integers(0, 3, 3000)
    x = g.integers(0, 9, 3000).astype(float)
    parts = [
        Prompts.of(a, b, c) for a, b, c in zip(*(np.array_split(v, cuts) for v in (group, version, x)), strict=True)
    ]
    found = reduce(lambda a, b: b + a, parts)
    lowest = np.sort(np.unique(group))[:20]
    assert np.array_equal(np.unique(found.group), lowest)
    assert found.sums.sum() == x[np.isin(group, lowest)].sum()


def sliced(names, width=1):
    one = Visit(sequences=1)
    return Slices("env" if isinstance(names[0], str) else "step", dict.fromkeys(names, one), width).limited()


@pytest.mark.parametrize("names", [[f"e{i}" for i in range(40)], list(range(7, 107, 2))])
@pytest.mark.parametrize("seed", range(4))
def test_slices_add_in_any_order_and_lose_nothing(names, seed):
    g = np.random.default_rng(seed)
    shuffled = [names[i] for i in g.permutation(np.repeat(np.arange(len(names)), 3))]
    whole = {k: v.sequences for k, v in reduce(lambda a, b: a + b, [sliced([n]) for n in shuffled]).labelled().items()}
    other = {
        k: v.sequences
        for k, v in reduce(lambda a, b: b + a, [sliced([n]) for n in sorted(shuffled, key=str)]).labelled().items()
    }
    assert whole == other
    assert sum(whole.values()) == 3 * len(names)
    assert len([k for k in whole if k != "other"]) <= MOST_SLICES
    if isinstance(names[0], str):
        assert list(whole)[-1] == "other"
    else:
        assert next(iter(whole)).split(" to ")[0] == "0"


def test_ratio_is_the_ratio_of_sums_with_the_sandwich_error():
    g = np.random.default_rng(0)
    count = np.where(np.arange(64) < 50, g.integers(1, 9, 64), 0).astype(float)
    total = g.normal(size=64) * count
    value = total.sum() / count.sum()
    variance = sum((t - value * c) ** 2 for t, c in zip(total, count, strict=True) if c) * 50 / 49
    found = ratio(total, count)
    assert found.value == pytest.approx(value, rel=1e-14)
    assert found.se == pytest.approx(np.sqrt(variance) / count.sum(), rel=1e-12)
    assert (found.df, found.n) == (49, count.sum())


def test_one_cluster_has_no_error_and_so_no_significance():
    one = np.eye(64)[3]
    found = ratio(5 * one, one)
    assert found.value == 5
    assert found.se == np.inf
    assert found.z == 0
    assert np.isnan(ratio(0 * one, 0 * one).value)
    assert ratio(0 * one, 0 * one).z == 0


def test_jackknife_of_a_mean_is_its_textbook_error():
    x = np.random.default_rng(0).normal(size=30)
    data = np.zeros((64, 2))
    data[:30] = np.stack([np.ones(30), x], -1)
    found = jackknife(lambda total: total[1] / total[0], data)
    assert found.value == pytest.approx(x.mean(), rel=1e-12)
    assert found.se == pytest.approx(x.std(ddof=1) / np.sqrt(30), rel=1e-9)
    assert found.df == 29


def test_contrast_is_of_logs_and_knows_nothing_of_what_is_not_positive():
    a, b = Estimate(2.0, 0.2, 9, 10), Estimate(1.0, 0.1, 5, 20)
    found = contrast(a, b)
    assert found.value == pytest.approx(np.log(2))
    assert found.se == pytest.approx(np.hypot(0.1, 0.1))
    assert (found.df, found.n) == (5, 30)
    assert contrast(a, Estimate(0.0, 0.1, 5, 20)).z == 0


def test_a_bucket_is_a_cluster_of_the_audit():
    import torch

    from reweigh.batch import Batch
    from reweigh.stats.sums import bucket, bucket_of

    group = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 500)
    x = torch.zeros(500)
    batch = Batch.packed(x, x, torch.arange(501), group=torch.from_numpy(group))
    assert torch.equal(bucket_of(torch.from_numpy(group)), bucket(batch))
    assert bucket(batch).unique().tolist() == list(range(64))


# -- however records are cut ------------------------------------------------------------------------------------------


ROWS = every_column(prompts=15)  # 60 responses


def zeros(rows, share):
    g = np.random.default_rng(0)
    return [{**r, "log_mu": np.where(g.uniform(size=len(r["log_mu"])) < share, 0.0, r["log_mu"])} for r in rows]


def ends(rows, value=0.0):
    return [{**r, "log_mu": np.append(r["log_mu"][:-1], value)} for r in rows]


def tool_text(rows):
    return [{**r, "log_mu": np.where(np.arange(len(r["log_mu"])) // 10 == 1, 1.0, r["log_mu"])} for r in rows]


def shifted(rows):
    return [{**r, "log_mu": np.append(r["log_mu"][1:], 0.0)} if i % 2 else r for i, r in enumerate(rows)]


def late(name, rows=ROWS):
    """A column that begins in the middle of the run, or has gaps of whole row groups."""
    return [{**r, name: None if i // 10 % 2 else r[name]} for i, r in enumerate(rows)]


CASES = {
    "every column": ROWS,
    "zeros here and there": zeros(ROWS, 0.05),
    "zeros most of the time": zeros(ROWS, 0.7),
    "zeros at the end": ends(ROWS),
    "NaN at the end": ends(ROWS, np.nan),
    "tool text": tool_text(ROWS),
    "shifted": shifted(ROWS),
    "many steps": [
        {**r, "step": i, "trainer_version": i, "versions": 0 * r["versions"] + i} for i, r in enumerate(ROWS)
    ],
    "many environments": [{**r, "env": f"e{i % 40}"} for i, r in enumerate(ROWS)],
    **{f"late {name}": late(name) for name in ROWS[0] if name not in ("sequence_id", "log_mu", "log_pi", "pack_index")},
}


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr("reweigh.scan.run.PART_TOKENS", 500)
    monkeypatch.setattr("reweigh.scan.run.BATCH_TOKENS", 250)
    monkeypatch.setattr("reweigh.scan.tokens.PIECE_TOKENS", 120)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if place >= 4 else ()) for place, name in enumerate(CASES)]
)
def test_row_groups_parts_and_batches_do_not_matter(name, tmp_path, small_batches, monkeypatch):
    """A packed row is told from the rows beside it, so that row must not be cut: pack_index has its own test."""
    rows = [{k: v for k, v in r.items() if k != "pack_index"} for r in CASES[name]]
    by = ("step", "turn", "env")
    cut_up = doctor(write(tmp_path / "many.parquet", rows, row_group=10), by=by).to_dict()
    monkeypatch.undo()
    whole = doctor(write(tmp_path / "one.parquet", rows), by=by).to_dict()
    for document in (cut_up, whole):
        for note in document["notes"]:
            note["place"] = ""
    assert_same(whole, cut_up)


@pytest.mark.parametrize("name", CASES)
def test_sums_of_parts_are_the_sums_of_the_whole(name):
    """Also those that no finding shows."""
    rows = [{k: v for k, v in r.items() if k != "pack_index"} for r in CASES[name]]
    whole = visited(rows).sums
    parts = reduce(lambda a, b: a + b, [visited(rows[i : i + 10]) for i in range(0, len(rows), 10)]).sums
    assert set(whole) == set(parts)
    for of, x in whole.items():
        assert_same({of: _listed(x)}, {of: _listed(parts[of])})


def _listed(x):
    if isinstance(x, Keyed):
        return [x.width, [[*key, *v.ravel().tolist()] for key, v in sorted(x.data.items())]]
    if isinstance(x, Cells):
        return x.data.ravel().tolist()
    if isinstance(x, Responses):
        return [x.key.tolist(), {k: list(v) for k, v in x.names.items()}, x.numbers.ravel().tolist()]
    return [x.group.tolist(), x.version.tolist(), x.sums.ravel().tolist()]


def test_packed_rows_may_be_in_row_groups_of_their_own(tmp_path):
    whole = doctor(write(tmp_path / "one.parquet", ROWS)).to_dict()
    assert "packing_leak" not in [x["id"] for x in whole["cannot_tell"]]
    assert_same(whole, doctor(write(tmp_path / "many.parquet", ROWS, row_group=15)).to_dict())


@pytest.fixture(scope="module")
def three_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    for i in range(3):
        write(folder / f"{i}.parquet", ROWS[i * 15 : i * 15 + 15] if i < 2 else ROWS[30:])
    return folder


def test_three_files_are_as_one(tmp_path, three_files):
    whole = doctor(write(tmp_path / "one.parquet", ROWS), by=BYS).to_dict()
    files = doctor(three_files, by=BYS).to_dict()
    apart, together = files["slices"].pop("source"), whole["slices"].pop("source")
    assert_same(whole, files)
    assert len(together) == 1
    # Advice is of all records alone.
    assert_same({**files, "slices": {}, "notes": [], "advice": None}, {**next(iter(together.values())), "notes": []})
    for i in range(3):
        alone = doctor(three_files / f"{i}.parquet").to_dict()
        assert_same(alone | {"advice": None}, apart[str(three_files / f"{i}.parquet")])


@pytest.mark.slow
def test_two_processes_are_as_one(three_files):
    seen = []
    one = doctor(three_files, by=BYS, on_progress=seen.append).to_dict()
    two = doctor(three_files, by=BYS, engine=Workers(2)).to_dict()
    assert one == two
    assert seen[-1].rows == one["sequences"]


def test_the_order_of_rows_does_not_matter(tmp_path):
    rows = world(1, prompts=20)
    g = np.random.default_rng(0)
    a = doctor(write(tmp_path / "a.parquet", rows)).to_dict()
    b = doctor(write(tmp_path / "b.parquet", [rows[i] for i in g.permutation(len(rows))])).to_dict()
    assert_same(a, b)


def test_each_slice_is_the_diagnosis_of_its_rows_alone(tmp_path):
    rows = [{k: v for k, v in r.items() if k != "pack_index"} for r in ROWS]
    found = doctor(write(tmp_path / "all.parquet", rows), by=("step", "env")).to_dict()["slices"]
    assert list(found["env"]) == ["code", "maths"]
    assert list(found["step"]) == ["0", "1", "2", "3", "4"]
    for by, cut in found.items():
        for label, one in cut.items():
            alone = [r for r in rows if str(r[by]) == label]
            assert one["sequences"] == len(alone)
            said = doctor(write(tmp_path / "part.parquet", alone)).to_dict()
            assert_same(said | {"advice": None}, {**one, "notes": []})


def test_slices_of_tokens_have_all_of_them(tmp_path):
    found = doctor(write(tmp_path / "all.parquet", ROWS), by=("turn", "lag"))
    for cut in found.slices.values():
        assert len(cut) > 1
        assert sum(one.tokens for one in cut.values()) == found.tokens


# -- processes --------------------------------------------------------------------------------------------------------


def _square(x):
    return x * x, os.getpid()


def _dies(x):
    if x == 3:
        os._exit(7)
    return x


def _raises(x):
    raise ValueError(f"part {x}: it is bad\nhint: take another.")


@pytest.mark.slow
def test_results_come_in_the_order_of_the_parts():
    found = list(in_order(_square, range(20), 2, "test", "none"))
    assert [x for x, _ in found] == [x * x for x in range(20)]
    assert os.getpid() not in {pid for _, pid in found}


@pytest.mark.slow
def test_a_process_that_dies_is_named():
    with pytest.raises(ChildProcessError, match=r"doctor: one of 2 worker processes died.*\nhint: fewer, please"):
        list(in_order(_dies, range(9), 2, "doctor", "fewer, please"))


@pytest.mark.slow
def test_an_error_of_a_part_is_raised_as_it_is():
    with pytest.raises(ValueError, match="part 0: it is bad\nhint: take another"):
        list(in_order(_raises, range(3), 1, "doctor", "none"))
