"""Log-probs that are no log-probs of their tokens: found token by token, counted, and taken out of what follows."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reweigh.batch import POSITIVE_TOLERANCE
from reweigh.doctor.align import realigned
from reweigh.doctor.cells import Array, Cells, Ints
from reweigh.scan.tokens import Tokens, windows

Bools = NDArray[np.bool_]

WIDEST = 50.0  # nats: a sampled token is never less likely than e^-50; a wider gap counts as this one
LONG_RUN = 4  # tokens: shorter runs are stop tokens and the like, not text that came from elsewhere
KINDS = ("zero", "one", "not finite", "below -50")
# Cells of `placeholder`: a kind in a short run, in a long run inside the response, in what is left at its
# end, and alone at its first or last token.
PLACES = ("short", "inside", "end", "edge")
SURPRISE_WINDOW = 8  # tokens
_SURPRISE, _SURPRISE_Z = 2.5, 5.0  # nats a token more than the entropy; and standard errors
_AGREED = 0.25  # nats a token: text that was not sampled is scored alike by both

# Cells of `broken`, tokens that are left out: what they break.
BROKEN = ("log_mu is no log-prob", "log_pi is no log-prob", "log_pi is -inf")


@dataclass(frozen=True, eq=False)
class Structure:
    """What is left of some tokens, and the sums of what was taken out.

    Attributes:
        clean: tokens whose log-probs may be compared.
        sums: `placeholder` `[64, kind x place, (tokens, runs, gap^2)]`, `surprise` `[64, 1, (tokens, gap^2)]`,
            `alignment` (see `align`), `broken` `[64, kind, (tokens,)]`, `zeros`
            `[64, 1, (beside a rare token, beside a fairly certain one)]` of log_mu = 0,
            `whole` `[64, 1, (tokens, gap^2)]`.
    """

    clean: Tokens
    sums: Mapping[str, Cells]


def structure(tokens: Tokens) -> Structure:
    """Take out what is no log-prob of its token."""
    filler, placeholder, doubt = _placeholders(tokens)
    broken_at, broken = _broken(tokens, filler)
    seen = filler | ~broken_at
    gap = _gap(tokens)
    whole = Cells.of(tokens.bucket, zero_of(tokens), 1, seen, np.where(seen, gap**2, 0.0))
    left = tokens.take(~filler & ~broken_at)
    foreign, surprise = _surprises(left)
    aligned, alignment = realigned(left.take(~foreign))
    sums = {
        "placeholder": placeholder,
        "zeros": doubt,
        "broken": broken,
        "surprise": surprise,
        "alignment": alignment,
        "whole": whole,
    }
    return Structure(aligned, sums)


def zero_of(tokens: Tokens) -> Ints:
    """The one cell of sums that have no more."""
    return np.zeros(len(tokens), np.int64)


def _gap(tokens: Tokens) -> Array:
    with np.errstate(invalid="ignore"):
        gap = np.clip(tokens.gap, -WIDEST, WIDEST)
    return np.where(np.isnan(gap), 0.0, gap)


def _placeholders(tokens: Tokens) -> tuple[Bools, Cells, Cells]:
    """Which tokens have a value that stands for "none", in runs at least one token of which proves it."""
    log_pi, log_mu = tokens.log_pi, tokens.log_mu
    kind = np.select([log_mu == 0, log_mu == 1, ~np.isfinite(log_mu), log_mu < -WIDEST], [0, 1, 2, 3], default=-1)
    kind = np.where((kind == 3) & (log_pi < -WIDEST), -1, kind)
    special = kind >= 0
    # A logged 0 says that the token was certain: so it may be, under both policies, or where all others were cut off.
    proof = special & ((kind > 0) | (log_pi < np.log(0.5)))
    zeros = kind == 0
    certain = zeros & (log_pi >= np.log(0.5)) & (log_pi < np.log(0.98))
    doubt = Cells.of(tokens.bucket, zero_of(tokens), 1, proof & zeros, certain)
    # By response, so that the same is found however records are cut into batches.
    responses = len(tokens.rows.sizes)
    proofs, others = (np.bincount(tokens.seq, x, minlength=responses)[tokens.seq] for x in (proof & zeros, certain))
    special &= ~zeros | (proofs >= others)
    proof &= special
    # That some are fillers is proven: those beside which pi was fairly sure are, too.
    proof |= special & certain & (proofs > 0)
    run, runs = _runs(tokens, special)
    proven = np.zeros(runs, np.bool_)
    np.logical_or.at(proven, run[proof], True)
    filler = special.copy()
    filler[special] = proven[run[special]]
    size = np.bincount(run[special], minlength=runs)
    first, final = np.zeros(runs, np.bool_), np.zeros(runs, np.bool_)
    first[run[special & (tokens.position == 0)]] = True
    final[run[special & tokens.last]] = True
    # A response that is filler from end to end has lost its log-probs; one that ends in filler was cut or closed.
    place = np.where(size < LONG_RUN, 0, np.where(final, 2, np.where(first, 2, 1)))
    place = np.where((size == 1) & (first | final), 3, place)
    at = np.flatnonzero(filler)
    cell = kind[at] * len(PLACES) + place[run[at]]
    begins = np.ones(len(at))
    begins[1:] = run[at][1:] != run[at][:-1]
    gap = _gap(tokens)[at]
    cells = len(KINDS) * len(PLACES)
    return filler, Cells.of(tokens.bucket[at], cell, cells, np.ones(len(at)), begins, gap**2), doubt


def _runs(tokens: Tokens, which: Bools) -> tuple[Ints, int]:
    """Number of each token's run, for the tokens in `which`; and how many runs there are."""
    begins = which.copy()
    begins[1:] &= ~(
        which[:-1] & (tokens.seq[1:] == tokens.seq[:-1]) & (tokens.position[1:] == tokens.position[:-1] + 1)
    )
    return np.maximum(np.cumsum(begins) - 1, 0), int(begins.sum())


def _broken(tokens: Tokens, filler: Bools) -> tuple[Bools, Cells]:
    """Tokens that no test can use, by what is wrong with them; a placeholder that is not finite is counted here too."""
    log_pi, log_mu = tokens.log_pi, tokens.log_mu
    if all(bool((x <= POSITIVE_TOLERANCE).all() and (x > -np.inf).all()) for x in (log_pi, log_mu)):  # a NaN is neither
        none = np.zeros(0, np.int64)
        return np.zeros(len(tokens), np.bool_), Cells.of(none, none, len(BROKEN), np.zeros(0))
    kind = np.select(
        [
            ~np.isfinite(log_mu) | (log_mu > POSITIVE_TOLERANCE),
            log_pi == -np.inf,
            ~np.isfinite(log_pi) | (log_pi > POSITIVE_TOLERANCE),
        ],
        [0, 2, 1],
        default=-1,
    )
    at = kind >= 0
    return at & ~filler, Cells.of(tokens.bucket[at], kind[at], len(BROKEN), np.ones(int(at.sum())))


def _surprises(tokens: Tokens) -> tuple[Bools, Cells]:
    """Windows of tokens that neither policy can have sampled: far more surprising than either expects."""
    foreign = np.zeros(len(tokens), np.bool_)
    if tokens.entropy is not None and len(tokens):
        window, count = windows(tokens, SURPRISE_WINDOW)
        n = np.bincount(window, minlength=count)
        entropy = np.where(np.isfinite(tokens.entropy), tokens.entropy, np.inf)
        excess = np.minimum(-tokens.log_pi, -tokens.log_mu) - entropy
        total = np.bincount(window, np.where(np.isfinite(excess), excess, -WIDEST), minlength=count)
        spread = np.bincount(window, np.where(np.isfinite(entropy), np.maximum(entropy, 0.5), WIDEST), minlength=count)
        apart = np.bincount(window, np.abs(tokens.gap), minlength=count)
        odd = (
            (n >= SURPRISE_WINDOW // 2)
            & (apart < _AGREED * n)
            & (total > _SURPRISE * n)
            & (total > _SURPRISE_Z * np.sqrt(spread))
        )
        foreign = odd[window]
    gap = tokens.gap[foreign]
    none = np.zeros(len(gap), np.int64)
    return foreign, Cells.of(tokens.bucket[foreign], none, 1, np.ones(len(gap)), gap**2)
