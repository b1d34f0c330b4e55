"""What `RatioStats` holds: the names and sizes of its sums, and how they are told apart by length and by cluster."""

import math

import torch
from torch import Tensor

from reweigh.batch import Batch

# The grid of caps: half octaves, 2^-4 to 2^20. Cell 0 is below the grid, the last cell above it.
GRID_LOW, GRID_STEP, GRID_CELLS = -4 * math.log(2), math.log(2) / 2, 49
GRID_TOP = GRID_LOW + (GRID_CELLS - 1) * GRID_STEP  # log of the largest cap, nats
CAPS = tuple(math.exp(GRID_LOW + i * GRID_STEP) for i in range(GRID_CELLS))
# Length bins: below 16, then octaves, then 65,536 and over.
FIRST_EDGE = 4
LENGTH_EDGES = tuple(2**k for k in range(FIRST_EDGE, 17))
NUM_BINS = len(LENGTH_EDGES) + 1
POWERS = (0.5, 1.0, 2.0, 3.0, 4.0)
BLOCK_SIZES = (16, 128, 1024)  # tokens; for extrapolating the second moment to another length
NUM_BUCKETS = 64  # clusters are hashed into this many; df of the clustered intervals is at most one less
SHIFT_STEP = 16.0  # nats: shifts are multiples, so that as a rule they are 0 and merging rounds nothing
TOP = 256  # largest log ratios kept, for the tail index: enough for 3 sqrt(n) up to n = 7,000, a fixed tail beyond

# Rows of `moments`: per length bin, float64, additive.
MOMENTS = (
    "n",  # units
    "seqs",  # sequences with a unit
    "l",  # sum of l = log ratio
    "l2",  # sum of l^2
    "abs",  # sum of |l|
    "tv",  # sum of (1 - r)_+
    "tv2",  # its squares
    "pd",  # sum over tokens of |pi - mu|: per-state TV is at least that
    "pu",  # sum over tokens of 1 - min(pi, mu): per-state TV is at most that
    "hybrid",  # sum over sequences of sum_t (min(r_t, top of grid) - r)_+
    "hybrid2",  # its squares
    "longer",  # sum over sequences of (min(r, top of grid) - 1) length: its mean is how much longer pi's responses are
    "tokens",  # tokens
)
# Columns of `clusters`: per bucket, additive after the shift.
CLUSTER = ("n", "l", "abs", "l2", "tv", "w1", "w2")


def length_bin(lengths: Tensor) -> Tensor:
    """Length bin of each sequence."""
    # Made on the device: a copy from the host would wait for it.
    edges = 2 ** torch.arange(FIRST_EDGE, FIRST_EDGE + NUM_BINS - 1, device=lengths.device)
    return (lengths[:, None] >= edges).sum(-1)


def sum_by_bin(rows: Tensor, bins: Tensor) -> Tensor:
    """Sum `[K, S]` over the sequences of each length bin: `[K, bins]`."""
    return torch.zeros(rows.shape[0], NUM_BINS, dtype=torch.float64, device=rows.device).index_add(1, bins, rows)


def bucket(batch: Batch) -> Tensor:
    """Bucket of each sequence's cluster: by hash of its group, or by its place if it has none."""
    key = batch.group
    if key is None:
        key = torch.arange(batch.layout.num_seqs, device=batch.log_pi.device)
        return key % NUM_BUCKETS
    # Multiplicative hashing (Knuth): the high bits of key times a large odd number.
    return (key.long() * 0x9E3779B97F4A7C1 >> 40) % NUM_BUCKETS


def exponents(device: torch.device) -> Tensor:
    """`POWERS` as `[5, 1]`, made on the device."""
    whole = torch.arange(len(POWERS), dtype=torch.float64, device=device)
    return torch.where(whole > 0, whole, POWERS[0])[:, None]
