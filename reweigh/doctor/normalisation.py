"""The family of log-probs that are not of the distribution that was sampled: the mean ratio is not 1."""

import numpy as np

from reweigh.doctor.cells import Array, Cells, Estimate, ratio
from reweigh.doctor.content import Explained, content, cut_off, explained, tail
from reweigh.doctor.diagnosis import CannotTell, Evidence
from reweigh.doctor.family import Case, Family, Findings, Suspicion, counted, evidence, p_above, p_below
from reweigh.scan.tokens import Tokens

CLEAN_MEAN = "mean_ratio_of_clean_tokens"  # another number than the audit's mean ratio, which is of all tokens
WIDEST = 10.0  # nats: a ratio counts at most e^10 in the means, so that one token cannot make them
IDENTITY = (
    "n",
    "r-1",
    "1/r-1",
    "gap",
    "gap^2",
    "|gap|",
    "gap^2 up",
    "n with entropy",
    "surprise",
    "surprise^2",
    "certain",  # tokens that mu was sure of and pi was not: log_mu = 0
    "min(r, 20)-1",
    "gap^2 of gaps over 1",
)
N, FORWARD, BACKWARD, GAP, SQUARES, ABS, UP, KNOWN, SURPRISE, SURPRISE2, CERTAIN, BOUNDED, WIDE = range(13)
_LEAST = 1e-3  # of the mean ratio: less is no matter


def _measure(tokens: Tokens) -> dict[str, Cells]:
    gap = tokens.gap
    bounded = np.clip(gap, -WIDEST, WIDEST)
    squares = tokens.squares
    more = np.expm1(bounded)
    if tokens.entropy is None:
        known = surprise = np.zeros(len(gap))
    else:
        known = np.isfinite(tokens.entropy) * 1.0
        surprise = np.where(known > 0, -tokens.log_pi - np.where(known > 0, tokens.entropy, 0.0), 0.0)
    cells = Cells.of(
        tokens.bucket,
        np.zeros(len(gap), np.int64),
        1,
        np.ones(len(gap)),
        more,
        np.expm1(-bounded),
        gap,
        squares,
        tokens.distance,
        np.where(gap > 0, squares, 0.0),
        known,
        surprise,
        surprise**2,
        (tokens.log_mu > -1e-6) & (tokens.log_pi < -2e-3),
        np.minimum(more, 19.0),
        np.where(tokens.distance > 1.0, squares, 0.0),
    )
    return {"identity": cells, "content": content(tokens), "tail": tail(tokens)}


def _examine(case: Case) -> Findings:
    m = case.cells("identity").data[:, 0]
    total = m.sum(0)
    if total[N] == 0:
        return []
    forward, backward, gap, least = (ratio(m[:, i], m[:, N]) for i in (FORWARD, BACKWARD, GAP, BOUNDED))
    mean = evidence(
        CLEAN_MEAN,
        _plus(forward, 1),
        "mean of pi/mu without the tokens that a finding above takes out, a ratio counted as at most e^10: 1 if log_mu "
        "is of what was sampled",
    )
    back = evidence("mean_inverse_ratio", _plus(backward, 1), "mean of mu/pi: 1 if pi is what was sampled from")
    shift = evidence("mean_log_ratio", gap, "mean log ratio, nats: above 0 is impossible for what was sampled")
    half = 0.5 * total[SQUARES] / total[N]  # what the means would be off by if mu and pi changed places
    content_share = explained(case.cells("content"))
    out: Findings = []
    out += _raw(case, least, backward, gap, half, content_share, (mean, back, shift))
    out += _one_sided(case, m, forward, backward, half, (mean, back, shift))
    out += _both_raw(case, m, half)
    return out


def improper(case: Case) -> bool:
    """True if the mean ratio shows that log_mu is not of what was sampled: then gaps say nothing of how it samples."""
    m = case.cells("identity").data[:, 0]
    above, whole = ratio(m[:, BOUNDED], m[:, N]), ratio(m[:, FORWARD], m[:, N])
    half = min(0.5 * float(m[:, SQUARES].sum() / max(m[:, N].sum(), 1)), 0.3)
    least = max(_LEAST, 0.25 * half)
    return (above.z > 4 and above.value > _LEAST) or (whole.z < -4 and whole.value < -least)


def _plus(x: Estimate, one: float) -> Estimate:
    return Estimate(x.value + one, x.se, x.df, x.n)


def _raw(
    case: Case,
    forward: Estimate,
    backward: Estimate,
    gap: Estimate,
    half: float,
    content_share: Explained,
    finds: tuple[Evidence, ...],
) -> Findings:
    # Sampled from pi and logged from another: E[mu/pi] = 1, and E[log pi/mu] = KL > 0, which mu = sampler forbids.
    p = max(p_above(forward), p_above(gap))
    size = min(forward.value, 2 * gap.value)
    least = max(_LEAST, 0.25 * half)
    share = content_share.share.value
    # What else there is of noise moves the mean of mu/pi by as much as its own mean square.
    noise = 2 * half * (1 - min(max(share, 0.0), 1.0)) if np.isfinite(share) else 0.0
    reverse = abs(backward.value) < 0.5 * abs(forward.value) + 2 * backward.se + noise
    found = (
        *finds,
        evidence(
            "explained_by_content",
            content_share.share,
            "share of the squared log ratio that token probability and entropy explain",
        ),
    )
    effect = size / least if reverse else 0.3 * size / least
    return [Suspicion("raw_logprobs", p, effect, case.share(max(share, 0.0) * case.clean_squares), found)]


def _one_sided(
    case: Case, m: Array, forward: Estimate, backward: Estimate, half: float, finds: tuple[Evidence, ...]
) -> Findings:
    """One side has mass that the other has not: the engine's log_mu are of fewer tokens (ratios below 1), or the
    trainer's log_pi are (ratios above 1, and of what it lacks not finite)."""
    total = m.sum(0)
    up = total[UP]
    engine = total[GAP] < 0
    excess = total[SQUARES] - 2 * up if engine else 2 * up - total[SQUARES]
    share = case.share(excess)
    one_sided = excess / total[SQUARES] if total[SQUARES] > 0 else 0.0
    lost = forward if engine else backward
    p = p_below(lost)
    effect = min(-lost.value / max(_LEAST, 0.25 * half), one_sided / 0.25)
    certain = ratio(m[:, CERTAIN], m[:, N])
    found = (
        *finds,
        counted(
            "one_sided",
            one_sided,
            total[N],
            "share of the squared log ratio on one side: 0 for noise, 1 if no token has pi over mu",
        ),
        evidence(
            "certain_to_mu_only",
            certain,
            "share of tokens with log_mu = 0 and log_pi below it: all other tokens had been cut off",
        ),
    )
    # Of what is cut off nothing is sampled; beside untrained ids rare tokens are as frequent as ever.
    padding = engine and certain.value < 1e-3 and not cut_off(case.cells("tail"))
    cause, other = ("vocab_padding", "truncated_sampling") if padding else ("truncated_sampling", "vocab_padding")
    return [Suspicion(cause, p, effect, share, found), Suspicion(other, p, 0.5 * effect, share, found)]  # type: ignore[arg-type]


def _both_raw(case: Case, m: Array, half: float) -> Findings:
    total = m.sum(0)
    if total[KNOWN] < 0.5 * total[N]:
        return [
            CannotTell(
                "both_raw",
                "without the trainer's entropies nothing shows that both sides log another distribution",
                ("entropy_pi",),
            )
        ]
    surprise = ratio(m[:, SURPRISE], m[:, KNOWN])
    spread = np.sqrt(total[SURPRISE2] / total[KNOWN])
    # A proper gap moves it too: by at most its spread times sqrt(chi2), and chi2 is about the mean squared log ratio.
    # An improper one by the mass that one side lacks, times how surprising it is.
    room = spread * np.sqrt(2 * half) + 6 * abs(total[FORWARD]) / total[N]
    finds = (
        evidence("surprise", surprise, "mean of -log pi - entropy, nats: 0 where tokens are sampled from pi"),
        counted("surprise_room", room, total[KNOWN], "nats that the log ratios seen could account for"),
    )
    p = 2 * min(p_above(surprise), p_below(surprise))
    return [Suspicion("both_raw", p, abs(surprise.value) / max(1.5 * room, 0.02), None, finds)]


NORMALISATION = Family(
    "normalisation",
    ("raw_logprobs", "truncated_sampling", "vocab_padding", "both_raw"),
    {"entropy_pi": "both sides raw looks like no gap at all"},
    _measure,
    _examine,
)
