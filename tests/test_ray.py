"""The audit on a local Ray cluster: equal to one process, and a worker that is killed costs a retry."""

import json
import sys

import pytest
from test_audit_scale import HELPER, make_rows, write

from reweigh import TOKEN, weigh
from reweigh.audit import audit
from reweigh.report import document
from reweigh.scan import OnRay

pytest.importorskip("ray.data")
pytestmark = [
    pytest.mark.slow,
    # Ray's own: sockets and files that it leaves for the collector, and what it says of its next versions
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    rows, where = make_rows(), tmp_path_factory.mktemp("records")
    for i in range(12):
        write(where / f"{i:02d}.{('parquet', 'jsonl')[i % 2]}", rows[i * 8 : i * 8 + 8], group=4)
    return where


@pytest.fixture
def helper(tmp_path, monkeypatch):
    """A module that worker processes can import too: they start with this process's environment."""
    (tmp_path / "helper.py").write_text(HELPER.format(flag=str(tmp_path / "flag")))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    import helper

    yield helper
    del sys.modules["helper"]


def test_a_killed_worker_costs_a_retry_and_changes_nothing(folder, helper, tmp_path, monkeypatch):
    monkeypatch.setattr("reweigh.scan.run.PART_TOKENS", 300)
    estimators = {"mine": weigh(TOKEN, of=helper.dies_once)}
    seen = []
    found = audit(folder, estimators=estimators, by=["step"], engine=OnRay(workers=3), on_progress=seen.append)
    assert (tmp_path / "flag").exists()  # by now, one worker has been killed, and no other will be
    assert len(seen) > 20
    assert seen[-1].rows == 96
    assert document(found) == document(audit(folder, estimators=estimators, by=["step"]))


def test_errors_of_a_worker_are_those_of_one_process(folder, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"sequence_id": "a", "log_mu": [0.5, -1.0], "log_pi": [-1.0, -1.0]}) + "\n")
    said = []
    for engine in (OnRay(workers=2), None):
        with pytest.raises(ValueError, match=r"bad\.jsonl:1: log_mu\[0\] = 0.5 is positive") as e:
            audit([folder, bad], **({} if engine is None else {"engine": engine}))
        said.append(str(e.value))
    assert said[0] == said[1]


@pytest.mark.parametrize("lengths", [(3, 3), (3, 2)])
def test_arrays_that_ray_itself_wrote(tmp_path, lengths):
    """Here its extension types are registered; a process without Ray sees lists and structs, and reads the same."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from ray.data._internal.tensor_extensions.arrow import ArrowTensorArray

    from reweigh.records import read_batches

    log_mu = [-np.arange(1, n + 1, dtype=np.float32) for n in lengths]
    columns = {"sequence_id": ["a", "b"], "log_mu": ArrowTensorArray.from_numpy(log_mu)}
    columns["log_pi"] = ArrowTensorArray.from_numpy([x - 1 for x in log_mu])
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    assert isinstance(pq.read_table(tmp_path / "x.parquet").schema.field("log_mu").type, pa.BaseExtensionType)
    [part] = read_batches(tmp_path / "x.parquet")
    assert part.batch.log_mu.tolist() == np.concatenate(log_mu).tolist()
    assert part.batch.log_ratio.tolist() == [-1.0] * sum(lengths)
