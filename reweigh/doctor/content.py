"""Says how the gap depends on what a token's own distribution is like: sums by its probability and entropy."""

from dataclasses import dataclass

import numpy as np

from reweigh.doctor.cells import Array, Cells, Estimate, binned, jackknife
from reweigh.scan.tokens import Tokens

# Edges of -log pi, nats, and of the entropy: finer where a temperature acts most.
SURPRISAL_EDGES = np.array([0.01, 0.05, 0.15, 0.35, 0.7, 1.2, 1.9, 2.7, 3.6, 4.7, 6.0, 8.0])
ENTROPY_EDGES = np.array([0.05, 0.2, 0.5, 0.9, 1.4, 2.0, 2.8, 3.8, 5.0])
FAR = 3.0  # nats
NUM_SURPRISAL, NUM_ENTROPY = len(SURPRISAL_EDGES) + 1, len(ENTROPY_EDGES) + 1
MOMENTS = ("n", "gap", "gap^2", "x", "x^2", "x gap")  # x: log pi + entropy, 0 on average under pi


def content(tokens: Tokens) -> Cells:
    """Adds up `[64, surprisal x entropy, MOMENTS]`; without entropies all are in the first entropy bin, with x = 0."""
    gap = tokens.gap
    s = binned(SURPRISAL_EDGES, -tokens.log_pi)
    entropy = tokens.entropy
    if entropy is None:
        e, x = np.zeros(len(tokens), np.int64), np.zeros(len(tokens))
    else:
        known = np.isfinite(entropy)
        entropy = np.where(known, entropy, 0.0)
        e = binned(ENTROPY_EDGES, entropy)
        x = np.where(known, tokens.log_pi + entropy, 0.0)
    return Cells.of(
        tokens.bucket,
        s * NUM_ENTROPY + e,
        NUM_SURPRISAL * NUM_ENTROPY,
        np.ones(len(gap)),
        gap,
        tokens.squares,
        x,
        x**2,
        x * gap,
    )


def tail(tokens: Tokens) -> Cells:
    """Counts `[64, entropy, (n, far)]`: tokens, and those more than `FAR` nats more surprising than the entropy."""
    if tokens.entropy is None:
        known = np.zeros(len(tokens), np.bool_)
        entropy = np.zeros(len(tokens))
    else:
        known = np.isfinite(tokens.entropy)
        entropy = np.where(known, tokens.entropy, 0.0)
    far = known & (-tokens.log_pi - entropy > FAR)
    return Cells.of(tokens.bucket, binned(ENTROPY_EDGES, entropy), NUM_ENTROPY, known, far)


def cut_off(cells: Cells) -> bool:
    """Tells whether rare tokens are missing where the distribution is flat, as if sampling kept the likeliest only."""
    total = cells.total
    flat, middle = total[ENTROPY_EDGES.searchsorted(3.0) :].sum(0), total[4:6].sum(0)
    if flat[0] < 50 or middle[0] < 50:
        return True
    rate, usual = flat[1] / flat[0], middle[1] / middle[0]
    return usual < 0.006 or rate < 0.5 * usual


@dataclass(frozen=True)
class Explained:
    """How far the gap is a function of the token's own probability and its distribution's entropy.

    Attributes:
        share: of the squared gap, 0 to 1, less what chance would give.
        linear: share that a straight line in `log pi + entropy` explains, as a temperature makes it.
        slope: of the gap on `log pi + entropy`: about `1 - 1/T` where the trainer left out a temperature T of sampling.
    """

    share: Estimate
    linear: Estimate
    slope: Estimate


def explained(cells: Cells) -> Explained:
    """Reads how much of the gap is explained off the sums of `content`."""
    return Explained(jackknife(_share, cells.data), jackknife(_linear, cells.data), jackknife(_slope, cells.data))


def _share(total: Array) -> float:
    n, gap, squares = total[:, 0], total[:, 1], total[:, 2]
    some = n >= 2
    n, gap, squares = n[some], gap[some], squares[some]
    if squares.sum() <= 0:
        return float("nan")
    noise = (squares - gap**2 / n) / (n - 1)  # of one token; its mean over n has 1/n of it
    return float(np.maximum(gap**2 / n - noise, -noise).sum() / squares.sum())


def _linear(total: Array) -> float:
    cov, var = _moments(total)
    squares = total[:, 2].sum()
    return cov * cov / var / float(squares) if var > 0 and squares > 0 else float("nan")


def _slope(total: Array) -> float:
    cov, var = _moments(total)
    return cov / var if var > 0 else float("nan")


def _moments(total: Array) -> tuple[float, float]:
    """Covariance with the gap, and variance, of `log pi + entropy`, summed over tokens: within cells of entropy, so
    that what is common to a context drops out."""
    by = total.reshape(NUM_SURPRISAL, NUM_ENTROPY, -1).sum(0)
    n, gap, _, x, x2, xg = by.T
    some = n > 1
    cov = (xg - x * gap / np.maximum(n, 1))[some].sum()
    var = (x2 - x**2 / np.maximum(n, 1))[some].sum()
    return float(cov), float(var)
