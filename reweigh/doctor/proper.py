"""The family of another temperature or penalty on one side: a proper policy, other than the one that trains."""

import numpy as np

from reweigh.doctor.cells import Array, Cells, Estimate, Ints, binned, jackknife, ratio
from reweigh.doctor.content import explained
from reweigh.doctor.diagnosis import CannotTell
from reweigh.doctor.family import Case, Family, Findings, Suspicion, evidence, p_above, p_below
from reweigh.doctor.normalisation import CLEAN_MEAN, FORWARD, GAP, N
from reweigh.scan.tokens import Tokens

_BINS = np.array([0.05, 0.35, 1.2, 2.7, 4.7])  # edges of -log p, nats, p between both policies
_NUM = len(_BINS) + 1


def _measure(tokens: Tokens) -> dict[str, Cells]:
    """`seen` `[64, probability x whether the id occurred before, (n, gap, gap^2)]`."""
    if tokens.token_id is None:
        return {}
    again = _again(tokens)
    middle = -(tokens.log_pi + tokens.log_mu) / 2
    cell = binned(_BINS, middle) * 2 + again
    gap, known = tokens.gap, tokens.token_id >= 0
    moments = (known, np.where(known, gap, 0.0), np.where(known, gap**2, 0.0))
    return {"seen": Cells.of(tokens.bucket, cell, 2 * _NUM, *moments)}


def _again(tokens: Tokens) -> np.ndarray:
    """1 where the token's id stood earlier in the response."""
    assert tokens.token_id is not None
    order = _by_response_and_id(tokens.seq, tokens.token_id)
    seq, token = tokens.seq[order], tokens.token_id[order]
    again = np.zeros(len(tokens), np.int64)
    again[order[1:]] = (seq[1:] == seq[:-1]) & (token[1:] == token[:-1])
    return again


def _by_response_and_id(seq: Ints, token_id: Ints) -> Ints:
    """Order tokens by response, then id, then place."""
    low, high = (int(x) for x in (token_id.min(), token_id.max())) if len(seq) else (0, 0)
    places, ids = len(seq).bit_length(), (high - low).bit_length()
    if (int(seq[-1]).bit_length() if len(seq) else 0) + ids + places > 62:
        return np.lexsort((token_id, seq))
    # One number a token, all of them different, is sorted several times as fast as two keys.
    return np.sort((((seq << ids) + (token_id - low)) << places) + np.arange(len(seq))) & ((1 << places) - 1)


def _examine(case: Case) -> Findings:
    return [*_temperature(case), *_penalty(case)]


def _temperature(case: Case) -> Findings:
    m = case.cells("identity").data[:, 0]
    found = explained(case.cells("content"))
    forward, gap = ratio(m[:, FORWARD], m[:, N]), ratio(m[:, GAP], m[:, N])
    share, slope = found.share, found.slope
    # A proper gap has a mean of -KL; one above 0 is of log-probs that were not sampled from.
    proper = gap.value < max(-0.25 * 0.5 * case.clean_squares / max(case.tokens, 1), 0.0)
    normal = abs(forward.value) < max(0.25 * abs(2 * gap.value), 3 * forward.se, 1e-3)
    finds = (
        evidence(
            "explained_by_content", share, "share of the squared log ratio that token probability and entropy explain"
        ),
        evidence(
            "slope", slope, "of the log ratio on log pi + entropy: 1 - 1/T where the trainer leaves out a temperature T"
        ),
        evidence(
            CLEAN_MEAN,
            Estimate(forward.value + 1, forward.se, forward.df, forward.n),
            "mean of pi/mu without the tokens that a finding above takes out: stays 1",
        ),
    )
    p = p_above(share, 0.1)
    # Without entropies there is no line to fit; with them, what bends is no temperature.
    straight = found.linear.value / 0.35 if np.isfinite(found.linear.value) else share.value / 0.4
    effect = min(share.value / 0.3, straight) * (1.0 if proper and normal else 0.2)
    return [Suspicion("trainer_temperature", p, effect, case.share(max(share.value, 0.0) * case.clean_squares), finds)]


def _penalty(case: Case) -> Findings:
    if "seen" not in case.sums:
        return [
            CannotTell(
                "repetition_penalty", "no token ids: whether a token stood before cannot be seen", ("token_ids",)
            )
        ]
    cells = case.cells("seen")
    difference = jackknife(_difference, cells.data)
    squares = max(_between(cells.total), 0.0)
    share = case.share(squares)
    finds = (
        evidence(
            "repeated_less_new",
            difference,
            "mean log ratio of tokens whose id stood before, less that of new ones of like probability, nats",
        ),
    )
    effect = min(share / 0.08, abs(difference.value) / 0.02) if np.isfinite(difference.value) else 0.0
    return [Suspicion("repetition_penalty", 2 * min(p_above(difference), p_below(difference)), effect, share, finds)]


def _difference(total: Array) -> float:
    n, gap = (total[:, i].reshape(_NUM, 2) for i in (0, 1))
    some = (n > 0).all(1)
    if not some.any():
        return float("nan")
    n, gap = n[some], gap[some]
    weight = n[:, 0] * n[:, 1] / n.sum(1)
    return float((weight * (gap[:, 1] / n[:, 1] - gap[:, 0] / n[:, 0])).sum() / weight.sum())


def _between(total: Array) -> float:
    """Squares that knowing new from repeated explains, within probabilities, less what chance would."""
    n, gap, squares = (total[:, i].reshape(_NUM, 2) for i in range(3))
    some = (n > 1).all(1)
    n, gap, squares = n[some], gap[some], squares[some]
    mean = gap.sum(1) / n.sum(1)
    between = (gap**2 / n).sum(1) - n.sum(1) * mean**2
    noise = (squares.sum(1) - (gap**2 / n).sum(1)) / (n.sum(1) - 2)
    return float((between - noise).sum())


PROPER = Family(
    "another proper policy",
    ("trainer_temperature", "repetition_penalty"),
    {"token_ids": "repetition penalties cannot be seen", "entropy_pi": "temperatures are harder to see"},
    _measure,
    _examine,
)
