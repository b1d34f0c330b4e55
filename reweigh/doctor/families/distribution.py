"""Tests whether both log-probs are of the distribution that was sampled, and of the same.

If log_mu is of another (before temperature, or of fewer or more tokens), the mean ratio is not 1. If log_pi is (another
temperature, a penalty that one side does not know), it is 1, and the gap has a law.
"""

from dataclasses import replace

import numpy as np

from reweigh.doctor.causes import CauseId
from reweigh.doctor.cells import Array, Cells, Estimate, Ints, binned, jackknife, ratio
from reweigh.doctor.diagnosis import CannotTell, Evidence, Suspicion
from reweigh.doctor.family import (
    ENTROPY_EDGES,
    NUM_ENTROPY,
    NUM_SURPRISAL,
    SURPRISAL_EDGES,
    Case,
    Family,
    Findings,
    counted,
    evidence,
    p_above,
    p_below,
)
from reweigh.scan.tokens import HEADS, Tokens

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
N, FORWARD, BACKWARD, GAP, SQUARES, _, UP, KNOWN, SURPRISE, SURPRISE2, CERTAIN, BOUNDED, WIDE = range(13)
_PADDED = -0.25  # of the mean ratio: ids that nothing has trained do not take more than a quarter of the mass
_LEAST = 1e-3  # of the mean ratio: less is no matter
FAR = 3.0  # nats
_BY_CONTENT = "share of the squared log ratio that token probability and entropy explain"


def _measure_normalisation(tokens: Tokens) -> dict[str, Cells]:
    """Adds up `identity` `[64, 1, IDENTITY]`, and how gaps and surprises depend on a token's own distribution.

    `content` is `[64, surprisal x entropy, (n, gap, gap^2, x, x^2, x gap)]`, x = log pi + entropy, which is 0 on
    average under pi; without entropies all are in the first entropy bin, with x = 0. `tail` is `[64, entropy, (n,
    far, entropy)]`: tokens, those more than `FAR` nats more surprising than the entropy, and its sum. `support`, where
    the records say what mass pi has on what the sampler kept, is `[64, 1, SUPPORT]`.
    """
    gap, squares, bucket = tokens.gap, tokens.squares, tokens.bucket
    one = np.ones(len(gap))
    if tokens.entropy is None:
        known, entropy, x = np.zeros(len(gap), np.bool_), np.zeros(len(gap)), np.zeros(len(gap))
    else:
        known = np.isfinite(tokens.entropy)
        entropy = np.where(known, tokens.entropy, 0.0)
        x = np.where(known, tokens.log_pi + entropy, 0.0)
    surprise = -x
    bounded = np.clip(gap, -WIDEST, WIDEST)
    more = np.expm1(bounded)
    identity = Cells.of(
        bucket,
        None,
        1,
        one,
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
    e = binned(ENTROPY_EDGES, entropy)
    cell = binned(SURPRISAL_EDGES, -tokens.log_pi) * NUM_ENTROPY + e
    moments = (one, gap, squares, x, x**2, x * gap)
    sums = {
        "identity": identity,
        "content": Cells.of(bucket, cell, NUM_SURPRISAL * NUM_ENTROPY, *moments),
        "tail": Cells.of(bucket, e, NUM_ENTROPY, known, known & (-tokens.log_pi - entropy > FAR), entropy),
    }
    if tokens.log_mass is not None:
        told = np.isfinite(tokens.log_mass)
        mass = np.where(told, tokens.log_mass, 0.0)
        rest = np.where(told, gap - mass, 0.0)
        lost = np.expm1(mass)
        over = np.where(told, more, 0.0) - lost
        sums["support"] = Cells.of(
            bucket, None, 1, told, -lost, over, np.where(told, squares, 0.0), rest**2, told & (mass < -_LEAST)
        )
    return sums


SUPPORT = ("n", "1-mass", "r-mass", "gap^2", "(gap-log mass)^2", "n cut")


def _kept(case: Case) -> tuple[Suspicion, Suspicion] | None:
    """Judges truncation by what the sampler kept: pi over mu has a mean of pi's mass on it, token by token, if mu is
    renormalised over it and pi is not. None where the records do not say it of nearly all tokens."""
    if "support" not in case.sums:
        return None
    m = case.cells("support").data[:, 0]
    total = m.sum(0)
    if total[0] == 0 or total[0] < 0.9 * case.tokens:
        return None
    lost, off, cut = (ratio(m[:, i], m[:, 0]) for i in (1, 2, 5))
    taken = max(total[3] - total[4], 0.0)
    finds = (
        evidence(
            "mass_on_support",
            ratio(m[:, 0] - m[:, 1], m[:, 0]),
            "mean mass that log_pi's distribution has on what the sampler kept",
        ),
        evidence(
            "ratio_less_mass",
            off,
            "mean of pi/mu less pi's mass on what the sampler kept: 0 where the ratio lacks that mass and no more",
        ),
        evidence("tokens_cut", cut, "share of tokens at which the sampler had left out 0.1% or more of pi"),
        counted(
            "left_over_support",
            total[4] / total[3] if total[3] > 0 else 1.0,
            total[0],
            "share of the squared log ratio that is left over the support",
        ),
    )
    # Where pi was already taken over the same tokens the mean ratio is 1, and taking the mass out makes it larger.
    inside = total[4] < total[3] and abs(off.value) < 0.5 * lost.value + 3 * off.se
    effect = lost.value / _LEAST if inside else 0.0
    share = round(case.share(taken), 4)  # of an engine in the trainer's numbers it is 1 but for rounding
    found = Suspicion("truncated_sampling", p_above(lost), effect, share, finds, proven=inside)
    return found, Suspicion("vocab_padding", 1.0, 0.0, 0.0, finds)


def _mean_ratios(case: Case) -> Findings:
    """Tests whether the means of pi/mu, mu/pi and log pi/mu are what they are for tokens sampled from mu."""
    m = case.identity
    total = m.sum(0)
    if total[N] == 0:
        return []
    forward, backward, gap, bounded = (ratio(m[:, i], m[:, N]) for i in (FORWARD, BACKWARD, GAP, BOUNDED))
    means = (
        evidence(
            CLEAN_MEAN,
            forward.plus(1),
            "mean of pi/mu without the tokens that a finding above takes out, a ratio counted as at most e^10: 1 if "
            "log_mu is of what was sampled",
        ),
        evidence("mean_inverse_ratio", backward.plus(1), "mean of mu/pi: 1 if pi is what was sampled from"),
        evidence("mean_log_ratio", gap, "mean log ratio, nats: above 0 is impossible for what was sampled"),
    )
    half = 0.5 * total[SQUARES] / total[N]  # what the means would be off by if mu and pi changed places
    least = max(_LEAST, min(0.25 * half, 0.075))

    # Sampled from pi and logged from another: E[mu/pi] = 1, and E[log pi/mu] = KL > 0, which mu = sampler forbids.
    size = min(bounded.value, 2 * gap.value)
    by_content = case.by_content.share
    share = by_content.value
    # What else there is of noise moves the mean of mu/pi by as much as its own mean square.
    noise = 2 * half * (1 - min(max(share, 0.0), 1.0)) if np.isfinite(share) else 0.0
    reverse = abs(backward.value) < 0.5 * abs(bounded.value) + 2 * backward.se + noise
    raw = Suspicion(
        "raw_logprobs",
        max(p_above(bounded), p_above(gap)),
        size / least if reverse else 0.3 * size / least,
        case.share(max(share, 0.0) * case.clean_squares),
        (*means, evidence("explained_by_content", by_content, _BY_CONTENT)),
    )

    # One side has mass that the other has not: the engine's log_mu are of fewer tokens (ratios below 1), or the
    # trainer's log_pi are (ratios above 1, and of what it lacks not finite).
    engine = total[GAP] < 0
    excess = total[SQUARES] - 2 * total[UP] if engine else 2 * total[UP] - total[SQUARES]
    one_sided = excess / total[SQUARES] if total[SQUARES] > 0 else 0.0
    lost = forward if engine else backward
    p, share = p_below(lost), case.share(excess)
    effect = min(-lost.value / least, one_sided / 0.15)
    certain = ratio(m[:, CERTAIN], m[:, N])
    finds = (
        *means,
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
    padding = engine and certain.value < 1e-3 and not _cut_off(case.cells("tail").total)
    pair: tuple[CauseId, CauseId] = ("truncated_sampling", "vocab_padding")
    first, other = pair[::-1] if padding else pair
    rest = 0.5 if lost.value > _PADDED else 0.05
    kept = _kept(case)
    if kept is not None and kept[0].effect >= 1:
        return [raw, *kept]
    if kept is not None:
        return [raw, kept[0], Suspicion("vocab_padding", p, effect, share, finds)]
    return [raw, Suspicion(first, p, effect, share, finds), Suspicion(other, p, rest * effect, share, finds)]


def _cut_off(total: Array) -> bool:
    """Tells whether rare tokens are missing where the distribution is flat, as if sampling kept the likeliest only."""
    flat, middle = total[ENTROPY_EDGES.searchsorted(3.0) :].sum(0), total[4:6].sum(0)
    if flat[0] < 50 or middle[0] < 50:
        return True
    rate, usual = flat[1] / flat[0], middle[1] / middle[0]
    return usual < 0.006 or rate < 0.5 * usual


def improper(case: Case) -> bool:
    """Tells whether log_mu is not of what was sampled, by the mean ratio: gaps then say nothing of how it samples."""
    m = case.identity
    above, whole = ratio(m[:, BOUNDED], m[:, N]), ratio(m[:, FORWARD], m[:, N])
    half = min(0.5 * float(m[:, SQUARES].sum() / max(m[:, N].sum(), 1)), 0.3)
    least = max(_LEAST, 0.25 * half)
    return (above.z > 4 and above.value > _LEAST) or (whole.z < -4 and whole.value < -least)


def _both_raw(case: Case) -> Findings:
    m = case.identity
    total = m.sum(0)
    if total[N] == 0:
        return []
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
    room = spread * np.sqrt(total[SQUARES] / total[N]) + 6 * abs(total[FORWARD]) / total[N]
    finds = (
        evidence("surprise", surprise, "mean of -log pi - entropy, nats: 0 where tokens are sampled from pi"),
        counted("surprise_room", room, total[KNOWN], "nats that the log ratios seen could account for"),
    )
    unit = _scaled(case)
    if unit is not None:
        factor, name = unit
        finds = (*finds, counted("unit", factor, total[KNOWN], f"-log pi over the entropy, whatever it is: {name}"))
        return [Suspicion("wrong_units", 0.0, 10.0, 1.0, finds, proven=True)]
    p = 2 * min(p_above(surprise), p_below(surprise))
    return [Suspicion("both_raw", p, abs(surprise.value) / max(1.5 * room, 0.02), None, finds)]


def _scaled(case: Case) -> tuple[float, str] | None:
    """Tells by what factor both columns are off, and its name, if -log pi is that many entropies in all entropy bins:
    other distributions make it depend on the entropy."""
    n, _, entropy = case.cells("tail").total.T
    moments = case.cells("content").total.reshape(NUM_SURPRISAL, NUM_ENTROPY, -1).sum(0)
    enough = (n >= _BIN_TOKENS) & (ENTROPY_EDGES.searchsorted(entropy / np.maximum(n, 1)) >= _LEAST_ENTROPY)
    if enough.sum() < _LEAST_BINS:
        return None
    n, entropy, (x, x2) = n[enough], entropy[enough], moments[enough][:, 3:5].T
    times = 1 - x / entropy
    se = np.sqrt(np.maximum(x2 / n - (x / n) ** 2, 0) / n) / (entropy / n)
    for factor, name in _FACTORS.items():
        # Where nearly nothing is left of -log pi, its spread is what it is of its mean.
        off = np.minimum(se, 1.2 * factor / np.sqrt(n))
        if (np.abs(times - factor) < 4 * off + 0.03 * factor).all():
            return float(1 - x.sum() / entropy.sum()), name
    return None


_BIN_TOKENS, _LEAST_BINS, _LEAST_ENTROPY = 100, 3, 3  # of bins that are looked at; from .5 nats on
_FACTORS = {1 / np.log(10): "base 10", 1 / np.log(2): "base 2", 0.01: "hundreds of nats", 100.0: "hundredths of a nat"}

NORMALISATION = Family(
    "normalisation",
    ("wrong_units", "raw_logprobs", "truncated_sampling", "vocab_padding", "both_raw"),
    {"entropy_pi": "both sides raw looks like no gap at all"},
    _measure_normalisation,
    lambda case: [*_mean_ratios(case), *_both_raw(case)],
)


_BINS = np.array([0.05, 0.35, 1.2, 2.7, 4.7])  # edges of -log p, nats, p between both policies
_NUM = len(_BINS) + 1


def _measure_proper(tokens: Tokens) -> dict[str, Cells]:
    """Adds up `seen` `[64, probability x whether the id occurred before, (n, gap, gap^2)]`, and `heads` `[64, 1,
    (places, xx, xy, yy, agree, tv)]` of the sampler's likeliest tokens."""
    sums: dict[str, Cells] = {}
    if tokens.heads is not None:
        there = tokens.heads["n"] > 0
        sums["heads"] = Cells.of(tokens.bucket, None, 1, there, *(tokens.heads[name] for name in HEADS[1:]))
    if tokens.token_id is None:
        return sums
    again = _again(tokens.seq, tokens.token_id)
    middle = -(tokens.log_pi + tokens.log_mu) / 2
    cell = binned(_BINS, middle) * 2 + again
    gap, known = tokens.gap, tokens.token_id >= 0
    moments = (known, np.where(known, gap, 0.0), np.where(known, tokens.squares, 0.0))
    return {**sums, "seen": Cells.of(tokens.bucket, cell, 2 * _NUM, *moments)}


def _again(seq: Ints, token_id: Ints) -> Ints:
    """Returns 1 where the token's id stood earlier in the response."""
    again = np.zeros(len(seq), np.int64)
    if not len(seq):
        return again
    # By response, then id, then place. One number a token, all of them different, is sorted several times as fast as
    # two keys.
    low = int(token_id.min())
    places, ids = len(seq).bit_length(), (int(token_id.max()) - low).bit_length()
    if int(seq[-1]).bit_length() + ids + places > 62:
        order = np.lexsort((token_id, seq))
    else:
        order = np.sort((((seq << ids) + (token_id - low)) << places) + np.arange(len(seq))) & ((1 << places) - 1)
    seq, token_id = seq[order], token_id[order]
    again[order[1:]] = (seq[1:] == seq[:-1]) & (token_id[1:] == token_id[:-1])
    return again


def _temperature(case: Case) -> Findings:
    m = case.identity
    explained = case.by_content
    forward, gap = ratio(m[:, FORWARD], m[:, N]), ratio(m[:, GAP], m[:, N])
    share, slope = explained.share, explained.slope
    # A proper gap has a mean of -KL; one above 0 is of log-probs that were not sampled from.
    proper = gap.value < max(-0.25 * 0.5 * case.clean_squares / max(case.tokens, 1), 0.0)
    normal = abs(forward.value) < max(0.25 * abs(2 * gap.value), 3 * forward.se, 1e-3)
    finds = (
        evidence("explained_by_content", share, _BY_CONTENT),
        evidence(
            "slope", slope, "of the log ratio on log pi + entropy: 1 - 1/T where the trainer leaves out a temperature T"
        ),
        evidence(
            CLEAN_MEAN,
            forward.plus(1),
            "mean of pi/mu without the tokens that a finding above takes out: stays 1",
        ),
    )
    p = p_above(share, 0.1)
    # Without entropies there is no line to fit; with them, what bends is no temperature.
    straight = explained.linear.value / 0.35 if np.isfinite(explained.linear.value) else share.value / 0.4
    effect = min(share.value / 0.3, straight) * (1.0 if proper and normal else 0.2)
    size = case.share(max(share.value, 0.0) * case.clean_squares)
    found = Suspicion("trainer_temperature", p, effect, size, finds)
    pairs = _pairs(case)
    if pairs is None:
        return [found]
    slope, part, seen = pairs
    # Both policies are softmaxes of the same scores at two temperatures: nothing else makes a straight line of it.
    off = abs(slope.value - 1)
    if part > _OF_A_LINE and off > _OTHER_TEMPERATURE and off > 4 * slope.se and normal:
        size = case.share(part * case.clean_squares)
        return [Suspicion("trainer_temperature", _SURE, off / _OTHER_TEMPERATURE, size, (*seen, *finds), proven=True)]
    if off < _OTHER_TEMPERATURE:  # the scores are those of one temperature
        return [replace(found, effect=0.2 * effect, evidence=(*seen, *finds))]
    return [replace(found, evidence=(*finds, *seen))]


_SURE, _OF_A_LINE, _OTHER_TEMPERATURE = 1e-6, 0.8, 0.02
_FEWEST_PLACES = 30


def _pairs(case: Case) -> tuple[Estimate, float, tuple[Evidence, ...]] | None:
    """Compares both policies at the sampler's likeliest tokens: the slope of log pi on log mu within places, which is
    the sampler's temperature over the trainer's; the share of the squared gaps there, about the places' means, that it
    explains; and both in words, with how often both have one likeliest token and how far apart they are at least."""
    if "heads" not in case.sums:
        return None
    m = case.cells("heads").data[:, 0]
    places, xx, xy, yy, *_ = m.sum(0)
    if places < _FEWEST_PLACES or not xx > 0:
        return None
    slope, agree, tv = ratio(m[:, 2], m[:, 1]), ratio(m[:, 4], m[:, 0]), ratio(m[:, 5], m[:, 0])
    apart = yy - 2 * xy + xx
    part = (slope.value - 1) ** 2 * xx / apart if apart > 1e-12 * xx else 0.0
    seen = (
        evidence(
            "pair_slope",
            slope,
            "of log pi on log mu between the sampler's likeliest tokens of a place: its temperature over the trainer's",
        ),
        counted(
            "explained_by_slope", part, places, "share of the squared gaps between these tokens that the slope explains"
        ),
        evidence("greedy_agreement", agree, "share of places at which both policies have one likeliest token of these"),
        evidence("least_tv", tv, "mean total variation between both policies that these tokens alone leave, at least"),
    )
    return slope, part, seen


def _penalty(case: Case) -> Findings:
    if "seen" not in case.sums:
        return [
            CannotTell(
                "repetition_penalty", "no token ids: whether a token stood before cannot be seen", ("token_ids",)
            )
        ]
    cells = case.cells("seen")
    difference = jackknife(_difference, cells.data)
    # Squares that knowing new from repeated explains, within probabilities, less what chance would.
    n, gap, squares = (cells.total[:, i].reshape(_NUM, 2) for i in range(3))
    some = (n > 1).all(1)
    n, gap, squares = n[some], gap[some], squares[some]
    between = (gap**2 / n).sum(1) - n.sum(1) * (gap.sum(1) / n.sum(1)) ** 2
    noise = (squares.sum(1) - (gap**2 / n).sum(1)) / (n.sum(1) - 2)
    between = max(float((between - noise).sum()), 0.0)
    share = case.share(between)
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


PROPER = Family(
    "another proper policy",
    ("trainer_temperature", "repetition_penalty"),
    {"token_ids": "repetition penalties cannot be seen", "entropy_pi": "temperatures are harder to see"},
    _measure_proper,
    lambda case: [*_temperature(case), *_penalty(case)],
)
