"""Log-probs that stand beside the wrong token: shifted in a whole response, or from some token on."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from reweigh.doctor.cells import Array, Cells, Ints
from reweigh.scan.tokens import Tokens, windows

WINDOW = 16  # tokens
_FEWEST = 8  # tokens of a window that says anything
FARTHEST = 4  # places that log_mu may be off by
OFFSETS = tuple(k for k in range(-FARTHEST, FARTHEST + 1) if k)
# Cells of `alignment`: an offset of the whole response, an offset that begins inside it, and neither.
CELLS = (*(str(k) for k in OFFSETS), "part of the way", "in place")
_PART, _IN_PLACE = len(OFFSETS), len(OFFSETS) + 1

_VARIED = 0.3  # nats: where neighbours' log-probs differ by less, one place is as good as the next
_FITS = 0.4  # of what neighbours differ by: below it log-probs are of the same tokens
_BETTER = 0.5  # of the gap in place: an offset at which the gap is below it
_MOST = 0.6  # of a response's windows
_FEW = 0.35


def realigned(tokens: Tokens) -> tuple[Tokens, Cells]:
    """Put log_mu beside its token where a whole response is off, and leave out what follows a break.

    Returns:
        The tokens, and sums `[64, CELLS, (responses, tokens, gap^2 before, gap^2 after)]`; responses that are too
        short or too even to tell count as in place.
    """
    responses = len(tokens.rows.sizes)
    window, count = windows(tokens, WINDOW)
    if not len(tokens):
        nothing = np.zeros(0)
        return tokens, Cells.of(tokens.seq, tokens.seq, len(CELLS), nothing, nothing, nothing, nothing)
    seq_of = np.zeros(count, np.int64)
    seq_of[window] = tokens.seq
    n = np.bincount(window, minlength=count)
    here = _mean(tokens.distance, window, n)
    place = WINDOW * _number_in_response(seq_of)
    pairs = {k: _pairs(tokens, k, n, place, tokens.counts[seq_of]) for k in range(1, FARTHEST + 1)}
    varied = _at_offset(tokens, tokens.log_pi, 1, pairs[1], window, count)
    apart = np.stack([_at_offset(tokens, tokens.log_mu, k, pairs[abs(k)], window, count) for k in OFFSETS])
    best = apart.argmin(0)
    least = apart.min(0)
    telling = (n >= _FEWEST) & (varied > _VARIED) & np.isfinite(varied)
    fits = telling & (here < _FITS * varied)
    off = telling & (least < _BETTER * here) & (least < _FITS * varied)

    told = np.bincount(seq_of[telling], minlength=responses)
    votes = np.zeros((responses, len(OFFSETS)))
    np.add.at(votes, (seq_of[off], best[off]), 1)
    which = votes.argmax(1)
    number = np.arange(count)
    first_off = _first(number[off], seq_of[off], responses, count)
    begun = np.bincount(seq_of[fits & (number < first_off[seq_of])], minlength=responses)  # windows in place before
    shifted = (votes.max(1) >= np.maximum(1, _MOST * told)) & (told > 0) & (begun == 0)
    after = telling & (number >= first_off[seq_of])
    mended = np.bincount(seq_of[after & fits], minlength=responses)
    later = np.bincount(seq_of[after], minlength=responses)
    kinds = (votes > 0).sum(1)
    parted = ~shifted & (first_off < count) & (mended <= _FEW * later) & ((begun > 0) | (kinds > 1))

    moved, has = _moved(tokens, np.where(shifted, np.take(OFFSETS, which), 0)[tokens.seq])
    last_fit = np.full(responses, -1)
    fine = fits & (number < first_off[seq_of])
    np.maximum.at(last_fit, seq_of[fine], number[fine])
    keep = has & ~(parted[tokens.seq] & (window > last_fit[tokens.seq]))

    cell = np.where(shifted, which, np.where(parted, _PART, _IN_PLACE))
    squares = np.bincount(tokens.seq, tokens.gap**2, minlength=responses)
    clean = replace(tokens, log_mu=moved).take(keep)
    left = np.bincount(clean.seq, clean.gap**2, minlength=responses)
    some = np.bincount(tokens.seq, minlength=responses) > 0
    sizes = np.bincount(tokens.seq, minlength=responses).astype(np.float64)
    ones = np.ones(responses)
    sums = [x[some] for x in (ones, sizes, squares, left)]
    return clean, Cells.of(tokens.rows.bucket[some], cell[some], len(CELLS), *sums)


Pairs = tuple[NDArray[np.bool_], Ints, Ints]
"""Which tokens have a partner some places on; and by window, how many have one that far on, and that far back."""


def _number_in_response(seq: Ints) -> Ints:
    """Count windows from the first of their response."""
    begins = np.concatenate([[True], seq[1:] != seq[:-1]])
    at = np.arange(len(seq))
    return at - np.maximum.accumulate(np.where(begins, at, 0))


def _pairs(tokens: Tokens, k: int, n: Ints, place: Ints, length: Ints) -> Pairs:
    """Find partners, given of each window its tokens, the place of its first, and the length of its response."""
    return (
        tokens.seq[:-k] == tokens.seq[k:],
        np.clip(length - k - place, 0, n),
        n - np.clip(k - place, 0, n),
    )


def _at_offset(tokens: Tokens, other: Array, k: int, pairs: Pairs, window: Ints, count: int) -> Array:
    """Mean distance of log_pi to `other` k places on, window by window; infinite where few tokens have a partner."""
    there, *numbers = pairs
    n = numbers[k < 0]
    a, b = (slice(None, -k), slice(k, None)) if k > 0 else (slice(-k, None), slice(None, k))
    near = np.subtract(tokens.log_pi[a], other[b])
    np.abs(near, out=near)
    near[~there] = 0.0
    total = np.bincount(window[a], near, minlength=count)
    return np.where(n >= _FEWEST - FARTHEST, total / np.maximum(n, 1), np.inf)


def _mean(x: Array, window: Ints, n: Ints) -> Array:
    return np.bincount(window, x, minlength=len(n)) / np.maximum(n, 1)


def _first(number: Ints, seq: Ints, responses: int, none: int) -> Ints:
    found = np.full(responses, none)
    np.minimum.at(found, seq, number)
    return found


def _moved(tokens: Tokens, k: Ints) -> tuple[Array, NDArray[np.bool_]]:
    """log_mu of the token k places on, and whether there is one in the response."""
    place = np.arange(len(tokens)) + k
    inside = (place >= 0) & (place < len(tokens))
    place = np.clip(place, 0, len(tokens) - 1)
    has = inside & (tokens.seq[place] == tokens.seq)
    return np.where(has, tokens.log_mu[place], tokens.log_mu), has
