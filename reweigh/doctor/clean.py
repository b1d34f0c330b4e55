"""Takes out log-probs that are no log-probs of their token, and puts right those that stand beside a neighbour's.

Found token by token or window by window, counted, and gone from everything that is tested afterwards: a hundred
placeholders would otherwise be a heavy tail, an impossible mean ratio, and old weights.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from reweigh.batch import POSITIVE_TOLERANCE
from reweigh.doctor.cells import Array, Cells, Ints
from reweigh.scan.tokens import Tokens, windows

Bools = NDArray[np.bool_]

WIDEST = 50.0  # nats: a sampled token is never less likely than e^-50; a wider gap counts as this one
_NEARLY = -0.01  # nats: of a token that was all but certain
LONG_RUN = 4  # tokens: shorter runs are stop tokens and the like, not text that came from elsewhere
KINDS = ("zero", "one", "not finite", "below -50")
# Cells of `placeholder`: a kind in a short run, in a long run inside the response, in what is left at its
# end, and alone at its first or last token.
PLACES = ("short", "inside", "end", "edge")

SURPRISE_WINDOW = 8  # tokens
_SURPRISE, _SURPRISE_Z = 2.5, 5.0  # nats a token more than the entropy; and standard errors
_AGREED = 0.25  # nats a token: text that was not sampled is scored alike by both

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


@dataclass(frozen=True, eq=False)
class Clean:
    """The tokens that are left, and the sums of what was taken out.

    Attributes:
        tokens: those whose log-probs may be compared.
        sums: `placeholder` `[64, kind x place, (tokens, runs, gap^2)]`, `surprise` `[64, 1, (tokens, gap^2)]`,
            `alignment` (see `realigned`), `zeros` `[64, 1, (beside a rare token, beside a fairly certain one, beside a
            rare one while mu was all but certain)]` of log_mu = 0, `whole` `[64, 1, (tokens, gap^2)]`.
    """

    tokens: Tokens
    sums: Mapping[str, Cells]


def clean(tokens: Tokens) -> Clean:
    """Takes out what is no log-prob of its token, and puts log_mu beside its token where a whole response is off."""
    units = _units(tokens)
    with np.errstate(invalid="ignore"):
        gap = np.clip(tokens.gap, -WIDEST, WIDEST)
    gap = np.where(np.isnan(gap), 0.0, gap)
    filler, placeholder, zeros = _placeholders(tokens, gap)
    # Values that are no log-probs at all, so that no test can use the token.
    broken, log_probs = np.zeros(len(tokens), np.bool_), (tokens.log_pi, tokens.log_mu)
    if not all(bool((x <= POSITIVE_TOLERANCE).all() and (x > -np.inf).all()) for x in log_probs):  # a NaN is neither
        for x in log_probs:
            broken |= ~np.isfinite(x) | (x > POSITIVE_TOLERANCE)
        broken &= ~filler
    whole = Cells.of(tokens.bucket, None, 1, ~broken, np.where(broken, 0.0, gap**2))
    # In this order: a placeholder would hide the foreign text around it, which shows in both policies' agreement.
    left = tokens.take(~filler & ~broken)
    foreign, surprise = _foreign(left)
    aligned, alignment = realigned(left.take(~foreign))
    sums = {"placeholder": placeholder, "zeros": zeros, "surprise": surprise, "alignment": alignment, "whole": whole}
    sums["units"] = units
    return Clean(aligned, sums)


UNITS = (
    "nats",
    "probabilities",
    "percent",
    "base 2",
    "base 10",
    "hundredths of a nat",
    "without the minus sign",
)
"""What a column of log-probs may hold, each a cell of `units` for log_mu, then for log_pi."""
_TOGETHER = 0.1  # nats: tokens that are as near say nothing against nats
_APART = 3.0  # nats: tokens farther apart count as this


def _in_nats(x: Array) -> Iterator[Array]:
    """Reads numbers as each of `UNITS`; NaN where they cannot be that."""
    positive = np.where(x > 0, x, np.nan)
    yield x
    logs = np.log(positive)
    yield np.where(x <= 1 + POSITIVE_TOLERANCE, logs, np.nan)
    yield logs - np.log(100.0)
    yield x * np.log(2.0)
    yield x * np.log(10.0)
    yield x / 100.0
    yield np.where(x >= 0, -x, np.nan)


def _units(tokens: Tokens) -> Cells:
    """Adds up how far the two columns are apart if either is in another unit, over tokens that are apart as they are:
    `[64, 2 x UNITS + 1, (n, distance)]`, in the last cell (all tokens, those with both columns over 0)."""
    # A NaN is not below; an exact 0 is 0 in every base.
    apart = ~(tokens.distance <= _TOGETHER) & (tokens.log_mu != 0) & (tokens.log_pi != 0)
    bucket, log_mu, log_pi = tokens.bucket[apart], tokens.log_mu[apart], tokens.log_pi[apart]
    one, cells = np.ones(len(bucket)), list[Array]()
    for column, other in ((log_mu, log_pi), (log_pi, log_mu)):
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            for x in _in_nats(column):
                distance = np.abs(x - other)
                distance = np.where(distance < _APART, distance, _APART)
                cells.append(Cells.of(bucket, None, 1, one, distance).data)
    positive = (tokens.log_mu > POSITIVE_TOLERANCE) & (tokens.log_pi > POSITIVE_TOLERANCE)
    cells.append(Cells.of(tokens.bucket, None, 1, np.ones(len(tokens)), positive).data)
    return Cells(np.concatenate(cells, 1))


def _placeholders(tokens: Tokens, gap: Array) -> tuple[Bools, Cells, Cells]:
    """Finds values that stand for "none", in runs at least one token of which proves it.

    Returns:
        Which tokens; the sums `placeholder`; and the sums `zeros`.
    """
    log_pi, log_mu = tokens.log_pi, tokens.log_mu
    # Candidates: the fixed values that programs put where they have no log-prob. A pair that both call impossible is
    # none: then the token was.
    kind = np.select([log_mu == 0, log_mu == 1, ~np.isfinite(log_mu), log_mu < -WIDEST], [0, 1, 2, 3], default=-1)
    kind = np.where((kind == 3) & (log_pi < -WIDEST), -1, kind)
    special = kind >= 0
    # A logged 0 says that the token was certain: so it may be, under both policies, or where all others were cut off.
    # It is proof where pi calls the token rare.
    proof = special & ((kind > 0) | (log_pi < np.log(0.5)))
    zeros = kind == 0
    certain = zeros & (log_pi >= np.log(0.5)) & (log_pi < np.log(0.98))
    # An engine that is contradicted where it was all but certain may be where it was certain to the last digit.
    nearly = (log_mu < 0) & (log_mu > _NEARLY) & (log_pi < np.log(0.5))
    doubt = Cells.of(tokens.bucket, None, 1, proof & zeros, certain, nearly)
    # Zeros of a response are candidates if at least as many are beside a rare token as beside a fairly certain one.
    # By response, so that the same is found however records are cut into batches.
    responses = len(tokens.rows.sizes)
    proofs, others = (np.bincount(tokens.seq, x, minlength=responses)[tokens.seq] for x in (proof & zeros, certain))
    special &= ~zeros | (proofs >= others)
    proof &= special
    # That some are fillers is proven: those beside which pi was fairly sure are, too.
    proof |= special & certain & (proofs > 0)
    # One proof in a run of candidates proves the run: those that follow each other in one response.
    starts = special.copy()
    starts[1:] &= ~(
        special[:-1] & (tokens.seq[1:] == tokens.seq[:-1]) & (tokens.position[1:] == tokens.position[:-1] + 1)
    )
    run, runs = np.maximum(np.cumsum(starts) - 1, 0), int(starts.sum())
    proven = np.zeros(runs, np.bool_)
    np.logical_or.at(proven, run[proof], True)
    filler = special.copy()
    filler[special] = proven[run[special]]
    # Where each run lies. A response that is filler from end to end has lost its log-probs; one that ends in filler was
    # cut or closed.
    size = np.bincount(run[special], minlength=runs)
    first, final = np.zeros(runs, np.bool_), np.zeros(runs, np.bool_)
    first[run[special & (tokens.position == 0)]] = True
    final[run[special & tokens.last]] = True
    place = np.where(size < LONG_RUN, 0, np.where(final, 2, np.where(first, 2, 1)))
    place = np.where((size == 1) & (first | final), 3, place)
    # Sums by kind and place; a run is counted at its first token.
    at = np.flatnonzero(filler)
    cell = kind[at] * len(PLACES) + place[run[at]]
    begins = np.ones(len(at))
    begins[1:] = run[at][1:] != run[at][:-1]
    cells = len(KINDS) * len(PLACES)
    return filler, Cells.of(tokens.bucket[at], cell, cells, np.ones(len(at)), begins, gap[at] ** 2), doubt


def _foreign(tokens: Tokens) -> tuple[Bools, Cells]:
    """Finds windows of tokens that neither policy can have sampled: far more surprising than either expects."""
    foreign = np.zeros(len(tokens), np.bool_)
    if tokens.entropy is not None and len(tokens):
        window, count = windows(tokens, SURPRISE_WINDOW)
        n = np.bincount(window, minlength=count)
        # Surprise to the policy that is less surprised, over what pi expects; where no entropy is known, none.
        entropy = np.where(np.isfinite(tokens.entropy), tokens.entropy, np.inf)
        excess = np.minimum(-tokens.log_pi, -tokens.log_mu) - entropy
        total = np.bincount(window, np.where(np.isfinite(excess), excess, -WIDEST), minlength=count)
        # Variance of a window's surprise, taken to be its entropy, at least half a nat a token.
        spread = np.bincount(window, np.where(np.isfinite(entropy), np.maximum(entropy, 0.5), WIDEST), minlength=count)
        apart = np.bincount(window, tokens.distance, minlength=count)
        odd = (
            (n >= SURPRISE_WINDOW // 2)
            & (apart < _AGREED * n)
            & (total > _SURPRISE * n)
            & (total > _SURPRISE_Z * np.sqrt(spread))
        )
        foreign = odd[window]
    gap = tokens.gap[foreign]
    return foreign, Cells.of(tokens.bucket[foreign], None, 1, np.ones(len(gap)), gap**2)


def realigned(tokens: Tokens) -> tuple[Tokens, Cells]:
    """Puts log_mu beside its token where a whole response is off, and leaves out what follows a break.

    Returns:
        The tokens, and sums `[64, CELLS, (responses, tokens, gap^2 before, gap^2 after)]`; responses that are too
        short or too even to tell count as in place.
    """
    responses = len(tokens.rows.sizes)
    window, count = windows(tokens, WINDOW)
    if not len(tokens):
        return tokens, Cells.of(tokens.seq, tokens.seq, len(CELLS), *np.zeros((4, 0)))
    seq_of = np.zeros(count, np.int64)
    seq_of[window] = tokens.seq

    # Of each window: how far log_pi is from log_mu in place; from log_pi of the next token, which is what there is to
    # tell places apart by; and from log_mu at each offset, the best of which is kept.
    n = np.bincount(window, minlength=count)
    here = np.bincount(window, tokens.distance, minlength=count) / np.maximum(n, 1)
    number = np.arange(count)
    begins = np.concatenate([[True], seq_of[1:] != seq_of[:-1]])
    place = WINDOW * (number - np.maximum.accumulate(np.where(begins, number, 0)))  # of its first token
    pairs: dict[int, Pairs] = {}
    for k in range(1, FARTHEST + 1):
        ahead, back = (np.clip(x, 0, n) for x in (tokens.counts[seq_of] - k - place, k - place))
        pairs[k] = tokens.seq[:-k] == tokens.seq[k:], ahead, n - back
    varied = _distance(tokens, tokens.log_pi, 1, pairs[1], window, count)
    at_offset = np.stack([_distance(tokens, tokens.log_mu, k, pairs[abs(k)], window, count) for k in OFFSETS])
    best, least = at_offset.argmin(0), at_offset.min(0)

    # A window tells something if neighbours differ. It fits if log_mu is of its tokens; it is off if another place is
    # better by half, and fits there.
    telling = (n >= _FEWEST) & (varied > _VARIED) & np.isfinite(varied)
    fits = telling & (here < _FITS * varied)
    off = telling & (least < _BETTER * here) & (least < _FITS * varied)

    # Windows that are off vote for their offset; where the first of them is divides a response in two.
    told = np.bincount(seq_of[telling], minlength=responses)
    votes = np.zeros((responses, len(OFFSETS)))
    np.add.at(votes, (seq_of[off], best[off]), 1)
    which = votes.argmax(1)
    first_off = np.full(responses, count)
    np.minimum.at(first_off, seq_of[off], number[off])
    early = fits & (number < first_off[seq_of])
    fit_before = np.bincount(seq_of[early], minlength=responses)

    # The whole response is shifted: most of its windows agree on one offset, and none fitted before the first.
    shifted = (votes.max(1) >= np.maximum(1, _MOST * told)) & (told > 0) & (fit_before == 0)

    # It loses step part of the way: windows fitted before, or the offset changes, and from the first that is off hardly
    # one fits again.
    after = telling & (number >= first_off[seq_of])
    fit_after = np.bincount(seq_of[after & fits], minlength=responses)
    told_after = np.bincount(seq_of[after], minlength=responses)
    offsets_seen = (votes > 0).sum(1)
    parted = ~shifted & (first_off < count) & (fit_after <= _FEW * told_after) & ((fit_before > 0) | (offsets_seen > 1))

    # A shift is undone, which leaves tokens at one end without a log_mu. What follows the last window that fitted
    # before a break is left out: where inside a window the break is cannot be told.
    source = np.arange(len(tokens)) + np.where(shifted, np.take(OFFSETS, which), 0)[tokens.seq]
    inside = (source >= 0) & (source < len(tokens))
    source = np.clip(source, 0, len(tokens) - 1)
    has = inside & (tokens.seq[source] == tokens.seq)
    moved = np.where(has, tokens.log_mu[source], tokens.log_mu)
    last_fit = np.full(responses, -1)
    np.maximum.at(last_fit, seq_of[early], number[early])
    keep = has & ~(parted[tokens.seq] & (window > last_fit[tokens.seq]))
    clean = replace(tokens, log_mu=moved).take(keep)

    # Sums by response.
    cell = np.where(shifted, which, np.where(parted, _PART, _IN_PLACE))
    sizes = np.bincount(tokens.seq, minlength=responses)
    before = np.bincount(tokens.seq, tokens.squares, minlength=responses)
    left = np.bincount(clean.seq, clean.squares, minlength=responses)
    some = sizes > 0
    sums = [x[some] for x in (np.ones(responses), sizes.astype(np.float64), before, left)]
    return clean, Cells.of(tokens.rows.bucket[some], cell[some], len(CELLS), *sums)


Pairs = tuple[Bools, Ints, Ints]
"""Which tokens have a partner some places on; and of each window, how many have one that far on, and that far back."""


def _distance(tokens: Tokens, other: Array, k: int, pairs: Pairs, window: Ints, count: int) -> Array:
    """Averages the distance of log_pi to `other` k places on, window by window; infinite where few have a partner."""
    there, *numbers = pairs
    n = numbers[k < 0]
    a, b = (slice(None, -k), slice(k, None)) if k > 0 else (slice(-k, None), slice(None, k))
    near = np.subtract(tokens.log_pi[a], other[b])
    np.abs(near, out=near)
    near[~there] = 0.0
    total = np.bincount(window[a], near, minlength=count)
    return np.where(n >= _FEWEST - FARTHEST, total / np.maximum(n, 1), np.inf)
