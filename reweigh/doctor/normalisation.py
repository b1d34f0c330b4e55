"""The family of log-probs that are not of the distribution that was sampled: the mean ratio is not 1."""

import numpy as np

from reweigh.doctor.cells import Cells, Estimate, ratio
from reweigh.doctor.content import content, explained
from reweigh.doctor.diagnosis import CannotTell
from reweigh.doctor.family import Case, Family, Findings, Suspicion, counted, evidence, p_above, p_below
from reweigh.doctor.tokens import Tokens

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
    "tokens at p > .99",
    "their gap",
    "their 1 - p",
)
N, FORWARD, BACKWARD, GAP, SQUARES, ABS, UP, KNOWN, SURPRISE, SURPRISE2, CERTAIN, SURE, SURE_GAP, SURE_ROOM = range(14)
_LEAST = 1e-3  # of the mean ratio: less is no matter


def _measure(tokens: Tokens) -> dict[str, Cells]:
    gap = tokens.gap
    bounded = np.clip(gap, -WIDEST, WIDEST)
    squares = gap**2
    if tokens.entropy is None:
        known = surprise = np.zeros(len(gap))
    else:
        known = np.isfinite(tokens.entropy) * 1.0
        surprise = np.where(known > 0, -tokens.log_pi - np.where(known > 0, tokens.entropy, 0.0), 0.0)
    sure = (tokens.scale < 0.01) * 1.0
    cells = Cells.of(
        tokens.bucket,
        np.zeros(len(gap), np.int64),
        1,
        np.ones(len(gap)),
        np.expm1(bounded),
        np.expm1(-bounded),
        gap,
        squares,
        np.abs(gap),
        np.where(gap > 0, squares, 0.0),
        known,
        surprise,
        surprise**2,
        ((tokens.log_mu > -1e-6) & (tokens.log_pi < -2e-3)) * 1.0,
        sure,
        sure * gap,
        sure * tokens.scale,
    )
    return {"identity": cells, "content": content(tokens)}


def _examine(case: Case) -> Findings:
    m = case.cells("identity").data[:, 0]
    total = m.sum(0)
    if total[N] == 0:
        return []
    forward, backward, gap = (ratio(m[:, i], m[:, N]) for i in (FORWARD, BACKWARD, GAP))
    mean = evidence(
        "mean_ratio", _plus(forward, 1), "mean of pi/mu over sampled tokens: 1 if log_mu is of what was sampled"
    )
    back = evidence("mean_inverse_ratio", _plus(backward, 1), "mean of mu/pi: 1 if pi is what was sampled from")
    shift = evidence("mean_log_ratio", gap, "mean log ratio, nats: above 0 is impossible for what was sampled")
    half = 0.5 * total[SQUARES] / total[N]  # what the means would be off by if mu and pi changed places
    content_share = explained(case.cells("content"))
    out: Findings = []
    out += _raw(case, forward, backward, gap, half, content_share, (mean, back, shift))
    out += _one_sided(case, m, forward, half, (mean, shift))
    out += _both_raw(case, m, half)
    return out


def _plus(x: Estimate, one: float) -> Estimate:
    return Estimate(x.value + one, x.se, x.df, x.n)


def _raw(case, forward, backward, gap, half, content_share, finds) -> Findings:  # noqa: ANN001
    # Sampled from pi and logged from another: E[mu/pi] = 1, and E[log pi/mu] = KL > 0, which mu = sampler forbids.
    p = max(p_above(forward), p_above(gap))
    size = min(forward.value, 2 * gap.value)
    least = max(_LEAST, 0.25 * half)
    reverse = abs(backward.value) < 0.5 * abs(forward.value) + 2 * backward.se
    share = content_share.share.value
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


def _one_sided(case, m, forward, half, finds) -> Findings:  # noqa: ANN001
    total = m.sum(0)
    below = total[SQUARES] - 2 * total[UP]
    above = total[SQUARES] - 2 * (total[SQUARES] - total[UP])
    engine = forward.value < 0
    share = case.share(below if engine else above)
    one_sided = (below if engine else above) / total[SQUARES] if total[SQUARES] > 0 else 0.0
    p = p_below(forward) if engine else 1.0
    size = -forward.value
    effect = min(size / max(_LEAST, 0.25 * half), one_sided / 0.25)
    certain = ratio(m[:, CERTAIN], m[:, N])
    sure = total[SURE_GAP] / total[SURE_ROOM] if total[SURE_ROOM] > 0 else 0.0
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
        counted("gap_where_certain", sure, total[SURE], "mean log ratio over mean 1 - p among tokens with p > .99"),
    )
    # Cutting tokens off cannot cost a certain token more than what it leaves to others; extra ids cost all tokens.
    padding = sure < -2.0 and certain.value < 1e-3
    cause, other = ("vocab_padding", "truncated_sampling") if padding else ("truncated_sampling", "vocab_padding")
    return [Suspicion(cause, p, effect, share, found), Suspicion(other, p, 0.5 * effect, share, found)]  # type: ignore[arg-type]


def _both_raw(case: Case, m, half) -> Findings:  # noqa: ANN001
    total = m.sum(0)
    if total[KNOWN] < 0.5 * total[N]:
        return [
            CannotTell(
                "both_raw",
                "without the trainer's entropies nothing shows that both sides log another distribution than was sampled",
                ("entropy_pi",),
            )
        ]
    surprise = ratio(m[:, SURPRISE], m[:, KNOWN])
    spread = np.sqrt(total[SURPRISE2] / total[KNOWN])
    # A proper gap moves it too: by at most its spread times sqrt(chi2), and chi2 is about the mean squared log ratio.
    room = spread * np.sqrt(2 * half)
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
