"""What several processes compute together, for tests to compare with one process; started once for each number."""

import tempfile
from datetime import timedelta
from functools import cache
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from batches import random_batch, rows_of
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from reweigh import (
    GEOMETRIC,
    SEQUENCE,
    TOKEN,
    TURN,
    Batch,
    RatioStats,
    Reject,
    all_reduce,
    for_advantage,
    geo_rs,
    group_snis,
    k3_rs,
    naive,
    opsm,
    policy_gradient,
    self_normalised,
    seq_is,
    seq_mis,
    seq_tis,
    snis,
    token_is,
    token_tis,
    trm,
    weigh,
)
from reweigh.distributed import context_weights, log_normaliser, whole_sequences
from reweigh.estimators import Normaliser
from reweigh.transforms import MeanAtMost

LEVELS = (TOKEN, TURN, SEQUENCE)
ROWS, COLUMNS, VOCABULARY = 13, 9, 11
SPREADS = (0.3, 30.0)
# Rows, or columns, of each rank. One rank of each has nothing at all.
ROW_CUTS = {2: [0, 13, 13], 3: [0, 1, 1, 13], 4: [0, 5, 5, 6, 13]}
COLUMN_CUTS = {2: [0, 0, 9], 3: [0, 4, 4, 9], 4: [0, 2, 7, 7, 9]}
NORMALISED = (
    weigh(SEQUENCE),
    weigh(TOKEN),
    weigh(TURN),
    weigh(SEQUENCE, Reject(0.5, 2.0)),
    weigh(SEQUENCE, Reject(0.0, 0.0)),
)
CONTEXT = {
    "naive": naive(),
    "token_tis": token_tis(2.0),
    "seq_tis": seq_tis(2.0),
    "geo_rs * token_tis": geo_rs(0.9, 1.1) * token_tis(1.5),
    "geo_rs * seq_tis": geo_rs(0.9, 1.1) * seq_tis(1.5),
    "token_tis * seq_tis": token_tis(1.5) * seq_tis(1.5),
    "k3_rs * seq_mis": k3_rs(0.05) * seq_mis(0.2, 5.0),
    "trm": trm(0.3, 0.05),
    "opsm": opsm(0.02),
    "one sign": for_advantage(-1, seq_tis(1.1)) * token_tis(1.5) * geo_rs(0.8, 1.25),
    "sorted": weigh(GEOMETRIC, MeanAtMost(0.01)),
    "snis": snis(),
    "group_snis": group_snis(),
}


def whole(spread):
    return random_batch(11, spread, size=(ROWS, COLUMNS))


def columns_of(batch, index):
    """The tokens of a padded batch at `index`, as a batch of slices of the same sequences."""
    pick = lambda x: None if x is None else x[:, index]  # noqa: E731
    given = batch.layout.mask if batch.dropped is None else batch.layout.mask | batch.dropped
    mask, turn, advantage = pick(given), pick(batch.layout.turn), pick(batch.advantage)
    log_pi, log_mu = batch.log_pi[:, index], batch.log_mu[:, index]
    return Batch.padded(log_pi, log_mu, mask, advantage=advantage, group=batch.group, turn=turn)


def packed(batch):
    """The same slots end to end; there may be none."""
    s, t = batch.log_pi.shape
    flat = lambda x: x.reshape(-1)  # noqa: E731
    mask, turn, advantage = flat(batch.layout.mask), flat(batch.layout.turn), flat(batch.advantage)
    offsets = torch.arange(s + 1) * t
    log_pi, log_mu = flat(batch.log_pi), flat(batch.log_mu)
    return Batch.packed(log_pi, log_mu, offsets, mask, advantage=advantage, group=batch.group, turn=turn)


class Recorder(TorchDispatchMode):
    """Name of every collective, and bytes that this rank gives to it."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            given = args[1 if "gather" in func.__name__ else 0]  # a gather has its output first
            self.seen.append((func.__name__, sum(t.nbytes for t in given)))
        return func(*args, **(kwargs or {}))


def merged(rank, world):
    out = {}
    for spread in SPREADS:
        a, b = ROW_CUTS[world][rank : rank + 2]
        part = rows_of(whole(spread), torch.arange(a, b))
        mine = [RatioStats.of(part, level) for level in LEVELS]
        with Recorder() as recorder:
            *stats, normaliser, tokens = all_reduce((*mine, Normaliser.of(seq_is()(part)), part.layout.mask.sum()))
        alone = all_reduce(mine[0])
        shifts = [log_normaliser(e(part)) for e in NORMALISED]
        weights = [self_normalised(e)(part, s).per_token for e, s in zip(NORMALISED, shifts, strict=True)]
        out[spread] = {
            "stats": [fields(s) for s in stats],
            "alone": fields(alone),
            "log": normaliser.log,
            "tokens": tokens,
            "seen": recorder.seen,
            "shifts": shifts,
            "weights": weights,
        }
    return out


def fields(stats):
    return {k: v for k, v in vars(stats).items() if k != "level"}


def in_context(rank, world):
    """Weights of this rank's columns: contiguous, in another order, and packed; and the collectives they took."""
    batch, out = whole(0.3), {}
    a, b = COLUMN_CUTS[world][rank : rank + 2]
    indices = {"slice": torch.arange(a, b), "strided": torch.arange(rank, COLUMNS, world)}
    for name, e in CONTEXT.items():
        for where, index in indices.items():
            part = columns_of(batch, index)
            with Recorder() as recorder:
                w = context_weights(e, part, None)
            out[name, where] = (index, w.per_token, w.num_kept, w.num_bounded, recorder.seen)
            out[name, where, "packed"] = context_weights(e, packed(part), None).per_token.view(part.log_pi.shape)
    raw = geo_rs(0.9, 1.1) * token_is()
    part = columns_of(batch, indices["slice"])
    log = log_normaliser(context_weights(raw, part, None))
    out["per token"] = (indices["slice"], context_weights(self_normalised(raw), part, None, log).per_token)
    return out


def stats_in_context(rank, world):
    """Stats of whole sequences of which each rank has slices of one width, in order and in another one."""
    width = -(-COLUMNS // world)
    batch, out = wider(whole(0.3), width * world), []
    for columns in (torch.arange(rank * width, (rank + 1) * width), torch.arange(rank, width * world, world)):
        part = columns_of(batch, columns)
        position = None if columns[1] == columns[0] + 1 else columns
        with Recorder() as recorder:
            mine = whole_sequences(part, None, position)
        total = all_reduce(tuple(RatioStats.of(mine, level) for level in LEVELS))
        out.append(([fields(s) for s in total], mine.advantage, recorder.seen))
    return out


def wider(batch, width):
    """With masked slots at the end, and one dropped token."""
    more = width - COLUMNS
    pad = lambda x: torch.cat([x, x[:, :1].expand(-1, more)], 1)  # noqa: E731
    mask = torch.cat([batch.layout.mask, torch.zeros(ROWS, more, dtype=torch.bool)], 1)
    log_mu = pad(batch.log_mu)
    log_mu[0, 1] = torch.inf
    advantage, turn = pad(batch.advantage), pad(batch.layout.turn)
    return Batch.padded(pad(batch.log_pi), log_mu, mask, advantage=advantage, group=batch.group, turn=turn)


def in_two_groups(rank, world):
    """Four processes: two groups by rows, in each two slices by columns."""
    if world != 4:
        return None
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "context"))
    data, context = divmod(rank, 2)
    rows = torch.arange(0, 4) if data == 0 else torch.arange(4, ROWS)
    columns = torch.arange(0, 3) if context == 0 else torch.arange(3, COLUMNS)
    part = columns_of(rows_of(whole(0.3), rows), columns)
    group = mesh.get_group("context")
    out = []
    for raw, over in ((seq_is(), mesh.get_group("data")), (seq_is(), None), (geo_rs(0.9, 1.1) * token_is(), None)):
        log = log_normaliser(context_weights(raw, part, group), over)
        out.append(context_weights(self_normalised(raw), part, group, log).per_token)
    return rows, columns, out


class Model(nn.Module):
    """Log-probs of tokens given the token before."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.embed = nn.Embedding(VOCABULARY, 6)
        self.head = nn.Linear(6, VOCABULARY)

    def forward(self, tokens):
        logits = self.head(torch.tanh(self.embed(tokens[:, :-1])))
        return -nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")


def rollouts():
    g = torch.Generator().manual_seed(3)
    tokens = torch.randint(VOCABULARY, (ROWS, COLUMNS + 1), generator=g)
    log_mu = (Model()(tokens).detach() + 0.2 * torch.randn(ROWS, COLUMNS, generator=g)).clamp(max=0)
    mask = torch.rand(ROWS, COLUMNS, generator=g) < 0.7
    return tokens, log_mu, mask, torch.randn(ROWS, generator=g)


def train(model, rows, columns=None, ranks=1, group=None):
    """One backward pass on some of the rollouts, as a training loop would write it."""
    tokens, log_mu, mask, advantage = (x[rows] for x in rollouts())
    log_pi = model(tokens)
    if columns is not None:
        log_pi, log_mu, mask = log_pi[:, columns], log_mu[:, columns], mask[:, columns]
    batch, raw = Batch.padded(log_pi, log_mu, mask), geo_rs(0.8, 1.25) * seq_is()
    weigh_raw = raw(batch) if columns is None else context_weights(raw, batch, None)
    mean, count = Normaliser.of(weigh_raw), mask.sum()
    if ranks > 1:
        mean, count = all_reduce((mean, count), group)
    e = self_normalised(raw)
    weights = e(batch, mean.log) if columns is None else context_weights(e, batch, None, mean.log)
    # The mean over ranks that data parallelism takes of gradients is the sum that the loss wants, divided by `ranks`.
    policy_gradient(log_pi, advantage, weights, count / ranks).backward()
    return model


def gradients(rank, world):
    a, b = ROW_CUTS[world][rank : rank + 2]
    rows = torch.arange(a, b)
    ddp = train(DistributedDataParallel(Model()), rows, ranks=world)
    sharded = Model()
    for module in (sharded.embed, sharded):
        fully_shard(module, mesh=init_device_mesh("cpu", (world,)))
    train(sharded, rows, ranks=world)
    a, b = COLUMN_CUTS[world][rank : rank + 2]
    context = train(DistributedDataParallel(Model()), torch.arange(ROWS), torch.arange(a, b), ranks=world)
    return {
        "ddp": [p.grad for p in ddp.parameters()],
        "fsdp2": [p.grad.full_tensor() for p in sharded.parameters()],
        "context": [p.grad for p in context.parameters()],
    }


CASES = (merged, in_context, stats_in_context, in_two_groups, gradients)


def worker(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world, timeout=timedelta(minutes=10)
    )
    try:
        torch.save({case.__name__: case(rank, world) for case in CASES}, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@cache
def results(world):
    """What each rank of a group of `world` processes found, by case."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(worker, args=(world, folder), nprocs=world)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(world)]
