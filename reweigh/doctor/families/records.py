"""Tests for broken records: placeholders, foreign tokens in the loss, log-probs beside the wrong token."""

import numpy as np
from numpy.typing import NDArray

from reweigh.doctor.causes import CauseId
from reweigh.doctor.cells import Cells, Estimate, ratio
from reweigh.doctor.clean import CELLS, KINDS, OFFSETS, PLACES, UNITS
from reweigh.doctor.diagnosis import Suspicion
from reweigh.doctor.families.distribution import BACKWARD, BOUNDED, FORWARD, SQUARES, WIDE, N
from reweigh.doctor.family import Case, Family, Findings, counted, evidence, p_above
from reweigh.scan.tokens import Tokens

_CERTAIN = 1e-12  # p-value of what was found token by token
_RARE = 1.5  # nats
_BEGINNING = 16  # tokens of a turn
_WORDS = 32  # tokens of a response: two windows that agree


def _measure(tokens: Tokens) -> dict[str, Cells]:
    """Adds up how log_mu behaves where pi calls a token rare, and log_pi where mu does; and surprise by turn.

    `wrong` is `[64, 1, (rare to pi, rare to mu, likely to mu instead, likely to pi instead, gap^2 of both)]`; `turns`
    is `[64, first turn or later ones' beginnings or rests, (n, surprise = -log pi - entropy, gap^2)]`.
    """
    squares = tokens.squares
    # The level that the likeliest token is at: at least e^-entropy; without entropies, 1/e of all tokens' mean.
    entropy = tokens.entropy
    level = -1.0 if entropy is None else -np.where(np.isfinite(entropy), entropy, 1.0)
    rare_pi = tokens.log_pi < level - _RARE
    rare_mu = tokens.log_mu < level - _RARE
    up = rare_pi & (tokens.log_mu > level - 0.1)
    down = rare_mu & (tokens.log_pi > level - 0.1)
    either = np.where(up | down, squares, 0.0)
    wrong = Cells.of(tokens.bucket, None, 1, rare_pi, rare_mu, up, down, either)

    at = np.arange(len(tokens))
    since = at - np.maximum.accumulate(np.where(tokens.turn_start, at, 0))
    later = np.where(tokens.turn > 0, np.where(since < _BEGINNING, 1, 2), 0)
    if tokens.entropy is None:
        return {"turns": Cells.of(tokens.bucket, later, 3, *np.zeros((3, len(tokens)))), "wrong": wrong}
    known = np.isfinite(tokens.entropy)
    surprise = np.where(known, np.minimum(-tokens.log_pi, -tokens.log_mu) - np.where(known, tokens.entropy, 0.0), 0.0)
    turns = Cells.of(tokens.bucket, later, 3, known, surprise, np.where(known, squares, 0.0))
    return {"turns": turns, "wrong": wrong}


def _wrong_units(case: Case) -> Findings:
    """Tests whether one column is a probability, of another base, or of another sign, by which reading brings both
    together; or both, by what is over 0."""
    data = case.cells("units").data
    n, (whole, over) = float(data[:, 0, 0].sum()), data[:, -1].sum(0).tolist()
    if whole >= 20 and over > 0.5 * whole:
        both = counted("over_0", over / whole, whole, "share of tokens with both columns over 0, which no log-prob is")
        return [Suspicion("wrong_units", _CERTAIN, 10.0, 1.0, (both,), proven=True)]
    if n < 20 or n < 0.3 * whole:
        return []
    apart = data[:, :-1, 1].sum(0)
    as_is = min(apart[0], apart[len(UNITS)])
    best = int(np.argmin(apart))
    if best % len(UNITS) == 0:
        return []
    column, unit = ("log_mu", "log_pi")[best // len(UNITS)], UNITS[best % len(UNITS)]
    # In each cluster of responses, not in a few of them; and near, where it was far.
    some = data[:, 0, 0] > 0
    nearer = (data[some, best, 1] < 0.35 * data[some, 0, 1]).mean()
    if apart[best] > 0.25 * as_is or nearer < 0.9:
        return []
    finds = (
        counted(
            "apart_as_is",
            as_is / n,
            n,
            "mean |log_pi - log_mu| as recorded, nats, at most 3 each, of tokens more than .1 apart",
        ),
        counted("apart_in_nats", apart[best] / n, n, f"the same with {column} read as {unit}"),
    )
    return [Suspicion("wrong_units", _CERTAIN, 10.0, 1.0, finds, proven=True)]


def _not_sampled(case: Case) -> Findings:
    """Tests for values that are no log-probs, and for text that was not sampled."""
    data = case.cells("placeholder").data.reshape(64, len(KINDS), len(PLACES), 3)
    whole = case.cells("whole").data[:, 0]
    short, inside = (data[:, :, places].sum((1, 2)) for places in ([0, 2, 3], [1]))
    (num_short, _, squares), (num_inside, _, more_squares) = short.sum(0), inside.sum(0)
    by_kind = data[..., 0].sum((0, 2))
    no_gap = by_kind[2] > 0.5 * by_kind.sum()  # most are not finite
    rare, certain, nearly = case.cells("zeros").total[0]
    # Zeros of tokens that were certain: once others had been cut off, or to an engine that is as far off elsewhere.
    cut_off = (certain > rare or nearly > rare) and by_kind[1:].sum() == 0
    edge, shifted = data[:, :, 3, 0].sum(), case.cells("alignment").total[: len(OFFSETS), 0].sum()
    shift = edge > 0.8 * num_short and shifted > 0.3 * edge  # what a shift leaves open at one end
    out: Findings = []
    # Short runs beside long ones are the ends of such text.
    if num_short and num_inside <= num_short and not cut_off and not shift:
        rate = ratio(short[:, 0], whole[:, 0])
        kinds = ", ".join(f"{int(n):,} {kind}" for kind, n in zip(KINDS, by_kind, strict=True) if n)
        finds = (
            counted(
                "placeholder_tokens",
                num_short,
                whole[:, 0].sum(),
                f"tokens in the loss whose log_mu is a fixed value that pi contradicts: {kinds}",
            ),
            evidence("placeholder_share", rate, "share of the counted tokens"),
        )
        share = None if no_gap else case.share(squares, of_all=True)
        # Any is a fault; few of them among many tokens are not what a run dies of.
        out.append(Suspicion("placeholder_logprob", _CERTAIN, 1.0 + rate.value * 1e3, share, finds, proven=True))
    odd, odd_squares = case.cells("surprise").total[0]
    if num_inside and num_inside >= num_short:
        runs = counted(
            "filler_runs",
            num_inside,
            whole[:, 0].sum(),
            "tokens in runs of four and more inside responses whose log_mu is a fixed value that pi contradicts: "
            "text that was not sampled, counted in the loss",
        )
        effect = 1.0 + ratio(inside[:, 0], whole[:, 0]).value * 1e3
        share = None if no_gap else case.share(more_squares + squares, of_all=True)
        out.append(Suspicion("unmasked_context", _CERTAIN, effect, share, (runs,), proven=True))
    elif odd:
        rate = ratio(case.cells("surprise").data[:, 0, 0], whole[:, 0])
        stretches = evidence(
            "foreign_share",
            rate,
            "share of the counted tokens in stretches that are far more surprising than either policy expects: "
            "text that was not sampled, counted in the loss",
        )
        p = p_above(rate, 1e-3)
        share = None if odd_squares < 0.1 * case.squares else case.share(odd_squares, of_all=True)
        out.append(Suspicion("unmasked_context", p, rate.value / 0.005, share, (stretches,), proven=p < 1e-4))
    return out


def _later_turns(case: Case) -> Findings:
    """Tests for text of a tool, hardly odder than a model's own, by surprise where a turn begins."""
    data = case.cells("turns").data
    first, later = (ratio(data[:, i, 1], data[:, i, 0]) for i in (0, 1))
    if later.n < 50 or first.n < 50:
        return []
    squares = data[:, :, 2].sum() / max(data[:, :, 0].sum(), 1)
    se = float(np.hypot(later.se, first.se))
    more = Estimate(later.value - abs(first.value), se, min(later.df, first.df), later.n)
    finds = (
        evidence(
            "surprise_later",
            later,
            "mean of -log pi - entropy where later turns begin, nats: 0 for sampled tokens",
        ),
        evidence("surprise_first", first, "the same in the first turn"),
    )
    room = 1.5 * np.sqrt(squares)
    return [Suspicion("unmasked_context", p_above(more, room), more.value / (0.05 + room), None, finds)]


def _alignment(case: Case) -> Findings:
    cells = case.cells("alignment")
    total = cells.total
    out: Findings = []
    shifted, parted = np.arange(len(CELLS)) < len(OFFSETS), np.arange(len(CELLS)) == len(OFFSETS)
    if total[parted, 0].sum() > 0.25 * total[shifted, 0].sum():  # other ids from the first tokens on
        shifted, parted = np.zeros(len(CELLS), np.bool_), shifted | parted
    causes: tuple[tuple[CauseId, NDArray[np.bool_]], ...] = (("shift", shifted), ("retokenisation", parted))
    for cause, which in causes:
        responses = total[which, 0].sum()
        if responses < 2:
            continue
        rate = ratio(cells.data[:, which, 0].sum(1), cells.data[:, :, 0].sum(1), total[:, 0].sum())
        before, after = total[which, 2].sum(), total[which, 3].sum()
        by_offset = ", ".join(
            f"{int(n):,} by {k}" for k, n in zip(CELLS, total[:, 0], strict=True) if n and k in CELLS[:-2]
        )
        where = (
            f"put log_mu beside another token ({by_offset})"
            if cause == "shift"
            else "lose step with it part of the way"
        )
        finds = (
            evidence("responses", rate, f"share of the responses whose log-probs {where}"),
            counted(
                "squares_undone",
                1 - after / before if before > 0 else 0.0,
                total[which, 1].sum(),
                "share of their squared log ratios that goes away when put right or cut there",
            ),
        )
        # In a few words, or in a policy that repeats itself, one place in a hundred fits as well by chance.
        least = 0.01 if total[which, 1].sum() >= _WORDS * responses else 0.1
        effect = rate.value / least if responses >= 3 else 0.5
        share = case.share(before - after, of_all=True)
        out.append(Suspicion(cause, _CERTAIN, effect, share, finds, proven=True))
    return out


def _wrong(case: Case) -> Findings:
    data = case.cells("wrong").data[:, 0]
    rare_pi, rare_mu, _, down, squares = data.sum(0)
    if rare_pi < 10:
        return []
    rate = ratio(data[:, 2], data[:, 0])
    back = down / max(rare_mu, 1.0)
    # Honest noise crosses as often one way as the other; a likelier token's log-prob only one way.
    finds = (
        evidence(
            "likely_instead",
            rate,
            "of the tokens that pi calls rare, the share that log_mu puts at the likeliest token",
        ),
        counted("likely_instead_back", back, rare_mu, "the same with pi and mu exchanged: what noise alone would do"),
    )
    excess = rate.plus(-3 * back)
    share = case.share(squares)
    first = Suspicion("wrong_token", p_above(excess, 0.02), excess.value / 0.1, share, finds)
    return [first, *_other_token(case)]


def _other_token(case: Case) -> Findings:
    """Tests for a token other than the likeliest: ratios over 1 that no distribution allows, and no law in them."""
    m = case.identity
    total = m.sum(0)
    above = ratio(m[:, BOUNDED], m[:, N])
    smooth = case.by_content.share
    wide = total[WIDE] / total[SQUARES] if total[SQUARES] > 0 else 0.0
    finds = (
        evidence(
            "bounded_mean_ratio",
            above.plus(1),
            "mean of pi/mu, each counted as at most 20: no log-probs of what was sampled have more than 1",
        ),
        counted(
            "share_over_1_nat", wide, total[N], "share of the squared log ratios from tokens more than 1 nat apart"
        ),
        evidence(
            "explained_by_content",
            smooth,
            "share that token probability and entropy explain: nearly all if it is a temperature",
        ),
    )
    # A temperature logged on one side is as smooth as a law, and leaves the mean of mu/pi at 1.
    back = ratio(m[:, BACKWARD], m[:, N])
    tempered = smooth.value > 0.75 and abs(back.value) < 0.5 * above.value + 2 * back.se
    # With other noise beside it, still a line, and no ratio that a temperature would not make.
    line = case.by_content.linear.value > 0.2 and total[FORWARD] < 2 * total[N]
    # Of a log-prob that was looked up wrongly, the engine's prefill knows nothing: it is far nearer to the trainer.
    alien = False
    if "prefill" in case.sums:
        _, to_pi, _, squares = case.cells("prefill").total[0]
        alien = not to_pi < 0.25 * squares
    effect = min(above.value / 0.1, wide / 0.5) * (0.2 if tempered or line or alien else 1.0)
    return [Suspicion("wrong_token", p_above(above), effect, case.share(total[WIDE]), finds)]


STRUCTURAL = Family(
    "records",
    ("wrong_units", "placeholder_logprob", "unmasked_context", "retokenisation", "shift", "wrong_token"),
    {"entropy_pi": "foreign text that has real log-probs, and wrong tokens, are harder to see"},
    _measure,
    lambda case: [*_wrong_units(case), *_not_sampled(case), *_later_turns(case), *_alignment(case), *_wrong(case)],
)
