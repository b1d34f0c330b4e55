"""Sequences of iid tokens by how often each token comes, and how far the sum of a choice of vectors can get."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def number_of_counts(vocab: int, length: int) -> int:
    """In how many ways the tokens of a sequence can be counted."""
    return math.comb(length + vocab - 1, vocab - 1)


def all_counts(vocab: int, length: int) -> NDArray[np.int64]:
    """`[K, V]`: every way in which a sequence of two or three tokens can be counted."""
    first = np.arange(length + 1)
    if vocab == 2:
        return np.stack([first, length - first], -1)
    a, b = np.repeat(first, length + 1 - first), np.concatenate([np.arange(length + 1 - k) for k in first])
    return np.stack([a, b, length - a - b], -1)


def log_probability(counts: NDArray[np.int64], p: Array) -> Array:
    """`[K]`: log of the probability of all sequences with these counts together, nats.

    Args:
        counts: `[K, V]`, all of one length.
        p: `[V]`, of each token.
    """
    length = int(counts[0].sum())
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, length + 1)))])
    return log_factorial[length] - log_factorial[counts].sum(-1) + counts @ np.log(p)


def score_directions(vocab: int) -> Array:
    """`[V, V - 1]`: an orthonormal basis of the vectors that sum to 0, which the scores of two or three tokens are."""
    if vocab == 2:
        return np.array([[1.0], [-1.0]]) / math.sqrt(2)
    return np.array([[1.0, 1.0], [-1.0, 1.0], [0.0, -2.0]]) / np.sqrt([2.0, 6.0])


def farthest(up: Array, down: Array) -> float:
    """How far from 0 a sum gets if each of its terms is `up`, `down` or nothing, at the best choice: exactly.

    The sums fill a polygon whose sides are those of the triangles (0, up, down), sorted by their direction: its
    corners are met by walking along them.

    Args:
        up: `[K, d]`, d = 1 or 2.
        down: `[K, d]`.
    """
    if up.shape[1] == 1:
        return float(max(np.maximum(np.maximum(up, down), 0).sum(), -np.minimum(np.minimum(up, down), 0).sum()))
    turn = np.where(up[:, :1] * down[:, 1:] < up[:, 1:] * down[:, :1], -1.0, 1.0)  # each triangle anticlockwise
    sides = np.concatenate([turn * up, turn * (down - up), -turn * down])
    low = np.stack([np.zeros_like(up), up, down])  # the walk starts at the sum of each one's lowest corner
    lowest = np.lexsort((low[:, :, 0], low[:, :, 1]), axis=0)[0]
    start = np.take_along_axis(low, lowest[None, :, None], 0)[0].sum(0)
    order = np.argsort(np.arctan2(sides[:, 1], sides[:, 0]) % (2 * math.pi))
    corners = start + np.cumsum(sides[order], 0)
    return float(np.sqrt(np.square(corners).sum(-1).max()))
