"""Several processes: the same sums, whatever each of them has."""

import socket

import pytest
import torch
import torch.multiprocessing as mp
from batches import random_batch, rows_of

from reweigh import SEQUENCE, TOKEN, TURN, Batch, RatioStats, all_reduce, log_normaliser, self_normalised, snis, weigh
from reweigh.estimators import Estimator
from reweigh.transforms import Reject

ROWS = 13
LEVELS = (TOKEN, TURN, SEQUENCE)
# Rows of each rank, the whole batch in all. The second of each has nothing at all.
CUTS = {2: [0, 13, 13], 3: [0, 1, 1, 13], 4: [0, 5, 5, 6, 13]}
ESTIMATORS = (
    weigh(SEQUENCE),
    weigh(TOKEN),
    weigh(TURN),
    weigh(SEQUENCE, Reject(0.5, 2.0)),
    weigh(SEQUENCE, Reject(0.0, 0.0)),
)


def whole(spread):
    return random_batch(11, spread, size=(ROWS, 9))


def estimator_of(factor_estimator: Estimator) -> Estimator:
    return self_normalised(factor_estimator)


def worker(rank, world, port, spread, out):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    try:
        a, b = CUTS[world][rank : rank + 2]
        part = rows_of(whole(spread), torch.arange(a, b))
        got = {level.name: all_reduce(RatioStats.of(part, level)) for level in LEVELS}
        stats = {name: {k: v for k, v in vars(s).items() if k != "level"} for name, s in got.items()}
        shifts = [log_normaliser(e(part)) for e in ESTIMATORS]
        weights = [estimator_of(e)(part, s).per_token for e, s in zip(ESTIMATORS, shifts, strict=True)]
        torch.save((stats, shifts, weights), f"{out}/{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("world", "spread"), [(2, 0.3), pytest.param(3, 30.0, marks=SLOW), pytest.param(4, 0.3, marks=SLOW)]
)
def test_all_ranks_have_what_one_process_has(world, spread, tmp_path):
    mp.spawn(worker, args=(world, free_port(), spread, str(tmp_path)), nprocs=world)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world)]
    batch = whole(spread)
    for level in LEVELS:
        one = RatioStats.of(batch, level)
        for stats, _, _ in results:
            got = RatioStats(level, **stats[level.name])
            same_stats(got, one, exact=spread < 1 or level is SEQUENCE)
    for i, e in enumerate(ESTIMATORS):
        for _, shifts, _ in results:
            torch.testing.assert_close(shifts[i], e(batch).log_normaliser(), rtol=1e-6, atol=1e-6)
        together = torch.cat([weights[i] for _, _, weights in results])
        torch.testing.assert_close(together, estimator_of(e)(batch).per_token, rtol=2e-5, atol=1e-7)


def same_stats(got, one, exact):
    shift, blocks = one.shift, one.blocks[:, 3]
    assert torch.equal(got.shift, shift)
    a, b = vars(got.rescaled(shift, blocks)), vars(one.rescaled(shift, blocks))
    # Where the whole has a shift that a part has not, tokens were exponentiated in float32 at other places.
    rel = 1e-9 if exact else 1e-4
    for name in set(a) - {"level", "peaks", "top"}:
        torch.testing.assert_close(a[name], b[name], rtol=rel, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    for name in ("peaks", "top", "dropped"):
        assert torch.equal(a[name], b[name]), name
    assert torch.equal(a["moments"][[0, 1, -1]], b["moments"][[0, 1, -1]]), "counts are exact"
    assert torch.equal(a["grid"][0], b["grid"][0]), "counts are exact"


def test_one_process_is_the_identity(tmp_path):
    """A group of one, in this very process."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/one", rank=0, world_size=1)
    try:
        batch = whole(0.3)
        for level in LEVELS:
            same_stats(all_reduce(RatioStats.of(batch, level)), RatioStats.of(batch, level), exact=True)
            same_stats(all_reduce(RatioStats.empty(level)), RatioStats.empty(level), exact=True)
        nothing = Batch.padded(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3))
        assert log_normaliser(weigh(SEQUENCE)(nothing)) == 0
        raw = weigh(SEQUENCE)(batch)
        torch.testing.assert_close(snis()(batch, log_normaliser(raw)).per_token, snis()(batch).per_token)
    finally:
        torch.distributed.destroy_process_group()
