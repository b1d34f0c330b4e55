"""Tests for broken records: placeholders, foreign tokens in the loss, log-probs beside the wrong token."""

from dataclasses import dataclass

import numpy as np

from reweigh.doctor.cells import Cells, Estimate, ratio
from reweigh.doctor.clean import CELLS, KINDS, OFFSETS, PLACES
from reweigh.doctor.diagnosis import Suspicion
from reweigh.doctor.families.distribution import BACKWARD, BOUNDED, FORWARD, SQUARES, WIDE, N, improper
from reweigh.doctor.family import Case, Family, Findings, counted, evidence, p_above
from reweigh.scan.tokens import Tokens

_CERTAIN = 1e-12  # p-value of what was found token by token
_WRONG_BINS = 3  # of surprise under pi: less than the entropy, up to 1.5 nats more, beyond
_RARE = 1.5  # nats
_BEGINNING = 16  # tokens of a turn


def _measure(tokens: Tokens) -> dict[str, Cells]:
    """Adds up `wrong`, how log_mu behaves where pi calls a token rare, and log_pi where mu does."""
    gap = tokens.gap
    # The level that the likeliest token is at: at least e^-entropy; without entropies, 1/e of all tokens' mean.
    entropy = tokens.entropy
    level = -1.0 if entropy is None else -np.where(np.isfinite(entropy), entropy, 1.0)
    rare_pi = tokens.log_pi < level - _RARE
    rare_mu = tokens.log_mu < level - _RARE
    up = rare_pi & (tokens.log_mu > level - 0.1)
    down = rare_mu & (tokens.log_pi > level - 0.1)
    zero = np.zeros(len(tokens), np.int64)
    return {
        "turns": _turns(tokens),
        "wrong": Cells.of(
            tokens.bucket,
            zero,
            1,
            rare_pi,
            rare_mu,
            up,
            down,
            np.where(up | down, tokens.squares, 0.0),
            np.where(up | down, gap, 0.0),
        ),
    }


def _turns(tokens: Tokens) -> Cells:
    """Adds up `[64, first turn or later ones' beginnings or rests, (n, surprise = -log pi - entropy, gap^2)]`."""
    at = np.arange(len(tokens))
    since = at - np.maximum.accumulate(np.where(tokens.turn_start, at, 0))
    later = np.where(tokens.turn > 0, np.where(since < _BEGINNING, 1, 2), 0)
    if tokens.entropy is None:
        return Cells.of(tokens.bucket, later, 3, *np.zeros((3, len(tokens))))
    known = np.isfinite(tokens.entropy)
    surprise = np.where(known, np.minimum(-tokens.log_pi, -tokens.log_mu) - np.where(known, tokens.entropy, 0.0), 0.0)
    return Cells.of(tokens.bucket, later, 3, known, surprise, np.where(known, tokens.squares, 0.0))


def _examine(case: Case) -> Findings:
    return [*_placeholder(case), *_context(case), *_later_turns(case), *_alignment(case), *_wrong(case)]


@dataclass(frozen=True)
class _Fillers:
    tokens: float
    squares: float
    clusters: Estimate


def _fillers(case: Case, places: tuple[int, ...]) -> _Fillers:
    cells = case.cells("placeholder").data.reshape(64, len(KINDS), len(PLACES), 3)[:, :, list(places)].sum((1, 2))
    whole = case.cells("whole").data[:, 0]
    total = cells.sum(0)
    return _Fillers(total[0], total[2], ratio(cells[:, 0], whole[:, 0]))


def _placeholder(case: Case) -> Findings:
    found = _fillers(case, (0, 2, 3))
    rare, certain = case.cells("zeros").total[0]
    other = case.cells("placeholder").total[len(PLACES) :, 0].sum()
    if certain > rare and other == 0:  # zeros of tokens that were certain once all others had been cut off
        return []
    inside = _fillers(case, (1,))
    if found.tokens == 0:
        return []
    if inside.tokens > found.tokens:  # short runs beside long ones are the ends of such text
        return []
    edge, shifted = _fillers(case, (3,)).tokens, case.cells("alignment").total[: len(OFFSETS), 0].sum()
    if edge > 0.8 * found.tokens and shifted > 0.3 * edge:  # what a shift leaves open at one end
        return []
    by_kind = case.cells("placeholder").total.reshape(len(KINDS), len(PLACES), 3)[:, :, 0].sum(1)
    kinds = ", ".join(f"{int(n):,} {kind}" for kind, n in zip(KINDS, by_kind, strict=True) if n)
    share = case.share_of_all(found.squares) if np.isfinite(found.squares) else None
    finds = [
        counted(
            "placeholder_tokens",
            found.tokens,
            case.cells("whole").total[0, 0],
            f"tokens in the loss whose log_mu is a fixed value that pi contradicts: {kinds}",
        ),
        evidence("placeholder_share", found.clusters, "share of the counted tokens"),
    ]
    if by_kind[2] > 0.5 * by_kind.sum():
        share = None
    return [Suspicion("placeholder_logprob", _CERTAIN, _size(found.clusters.value), share, tuple(finds), proven=True)]


def _size(share_of_tokens: float) -> float:
    """Returns the effect: any is a fault; few of them among many tokens are not what a run dies of."""
    return 1.0 + share_of_tokens * 1e3


def _context(case: Case) -> Findings:
    short, inside = _fillers(case, (0, 2, 3)), _fillers(case, (1,))
    surprise = case.cells("surprise")
    whole = case.cells("whole").data[:, 0]
    out: Findings = []
    if inside.tokens and inside.tokens >= short.tokens:
        found = counted(
            "filler_runs",
            inside.tokens,
            whole[:, 0].sum(),
            "tokens in runs of four and more inside responses whose log_mu is a fixed value that pi contradicts: "
            "text that was not sampled, counted in the loss",
        )
        kinds = case.cells("placeholder").total.reshape(len(KINDS), len(PLACES), 3)[:, :, 0].sum(1)
        share = None if kinds[2] > 0.5 * kinds.sum() else case.share_of_all(inside.squares + short.squares)
        out.append(Suspicion("unmasked_context", _CERTAIN, _size(inside.clusters.value), share, (found,), proven=True))
    foreign = float(surprise.total[0, 0])
    if foreign:
        rate = ratio(surprise.data[:, 0, 0], whole[:, 0])
        found = evidence(
            "foreign_share",
            rate,
            "share of the counted tokens in stretches that are far more surprising than either policy expects: "
            "text that was not sampled, counted in the loss",
        )
        p = p_above(rate, 1e-3)
        if not out:
            share = None if surprise.total[0, 1] < 0.1 * case.squares else case.share_of_all(surprise.total[0, 1])
            out.append(Suspicion("unmasked_context", p, rate.value / 0.005, share, (found,), proven=p < 1e-4))
    return out


def _later_turns(case: Case) -> Findings:
    """Tests for text of a tool, hardly odder than a model's own, by surprise where a turn begins."""
    data = case.cells("turns").data
    first, later = (ratio(data[:, i, 1], data[:, i, 0]) for i in (0, 1))
    if later.n < 50 or first.n < 50:
        return []
    squares = data[:, :, 2].sum() / max(data[:, :, 0].sum(), 1)
    more = Estimate(
        later.value - abs(first.value), float(np.hypot(later.se, first.se)), min(later.df, first.df), later.n
    )
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
    for cause, which in (("shift", shifted), ("retokenisation", parted)):
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
        effect = rate.value / 0.01 if responses >= 3 else 0.5
        share = case.share_of_all(before - after)
        out.append(Suspicion(cause, _CERTAIN, effect, share, finds, proven=True))  # type: ignore[arg-type]
    return out


def _wrong(case: Case) -> Findings:
    data = case.cells("wrong").data[:, 0]
    rare_pi, rare_mu, _, down, squares, _ = data.sum(0)
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
    excess = Estimate(rate.value - 3 * back, rate.se, rate.df, rate.n)
    share = case.share(squares)
    proven = excess.z > 6 and excess.value > 0.05 and improper(case)
    first = Suspicion("wrong_token", p_above(excess, 0.02), excess.value / 0.1, share, finds, proven)
    return [first, *_other_token(case)]


def prefill_agrees(case: Case) -> bool:
    """Tells whether the trainer is far nearer to the engine's prefill than to what the engine logged."""
    _, to_pi, _, squares = case.cells("prefill").total[0]
    return bool(to_pi < 0.25 * squares)


def _other_token(case: Case) -> Findings:
    """Tests for a token other than the likeliest: ratios over 1 that no distribution allows, and no law in them."""
    m = case.cells("identity").data[:, 0]
    total = m.sum(0)
    above = ratio(m[:, BOUNDED], m[:, N])
    smooth = case.by_content.share
    wide = total[WIDE] / total[SQUARES] if total[SQUARES] > 0 else 0.0
    finds = (
        evidence(
            "bounded_mean_ratio",
            Estimate(above.value + 1, above.se, above.df, above.n),
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
    # Of a log-prob that was looked up wrongly, the engine's prefill knows nothing: it agrees with the trainer.
    alien = "prefill" in case.sums and not prefill_agrees(case)
    effect = min(above.value / 0.1, wide / 0.5) * (0.2 if tempered or line or alien else 1.0)
    return [Suspicion("wrong_token", p_above(above), effect, case.share(total[WIDE]), finds)]


STRUCTURAL = Family(
    "records",
    ("placeholder_logprob", "unmasked_context", "retokenisation", "shift", "wrong_token"),
    {"entropy_pi": "foreign text that has real log-probs, and wrong tokens, are harder to see"},
    _measure,
    _examine,
)
