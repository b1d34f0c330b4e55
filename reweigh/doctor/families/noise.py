"""Tests which part of the chain makes noise, how large it is, and whether it is more than rounding."""

import numpy as np
from numpy.typing import NDArray

from reweigh.doctor.cells import Array, Cells, Estimate, Ints, binned, jackknife, ratio
from reweigh.doctor.diagnosis import CannotTell, Suspicion
from reweigh.doctor.families.distribution import SQUARES, N, improper
from reweigh.doctor.family import Case, Family, Findings, counted, evidence, p_above
from reweigh.scan.tokens import Tokens

BINS = np.array([0.05, 0.15, 0.35, 0.7, 1.2, 2.7, 4.7, 7.0])  # edges of -log p, nats
NUM = len(BINS) + 1
LEVELS: Array = np.log(10.0) * np.arange(-7, 2.25, 0.125)  # edges of log |gap| / (1 - p): eighths of a decade
NUM_LEVELS = len(LEVELS) + 1

# Median of |gap| / (1 - p), nats: bfloat16 against float32 gives .03 to .055 (135 M parameters, three engines).
BF16 = 0.05
QUANTISED = 0.07
OWN = 1.7  # times the engine's own noise (decode against prefill): where both sides only round it is 1.3
FAR = 12.0  # medians: of rounding and quantisation alike one token in ten thousand is beyond
NOTHING = 1e-5
_CERTAIN = 1e-6  # p-value of a size that is plain to see
_SEEN = 0.1  # nats over 1 - p: what is smaller is far from nothing that matters
_TRIFLE = 0.002  # nats over 1 - p
_FEWEST = 100  # tokens, below which no size is
_COARSE = ("fp8", "float8", "int8", "int4", "q4", "q8", "awq", "gptq", "fp4")
_INDEPENDENT = 0.06  # correlation of neighbours' sizes: rounding and dropout are below, other weights above


def _measure(tokens: Tokens) -> dict[str, Cells]:
    gap, bucket, scale = tokens.gap, tokens.bucket, tokens.scale
    size, squares = tokens.relative, tokens.squares
    p = binned(BINS, -(tokens.log_pi + tokens.log_mu) / 2)
    one = np.ones(len(gap))
    next_to = tokens.seq[1:] == tokens.seq[:-1]
    bounded = np.minimum(size, 5.0)
    a, b = bounded[:-1][next_to], bounded[1:][next_to]
    sums = {
        "sizes": Cells.of(bucket, _level(size), NUM_LEVELS, one, squares),
        "shape": Cells.of(bucket, p, NUM, one, tokens.distance, squares, squares * squares),
        # of the sizes a, b of tokens that follow each other
        "neighbours": Cells.of(bucket[1:][next_to], None, 1, np.ones(len(a)), a, b, a * a, b * b, a * b),
    }
    for name, other in (("repeat", tokens.repeat), ("prefill", tokens.prefill)):
        if other is None:
            continue
        known = np.isfinite(other)
        other = np.where(known, other, 0.0)
        to_pi = np.where(known, (tokens.log_pi - other) ** 2, 0.0)
        to_mu = np.where(known, (tokens.log_mu - other) ** 2, 0.0)
        sums[name] = Cells.of(bucket, None, 1, known, to_pi, to_mu, np.where(known, tokens.squares, 0.0))
        if name == "prefill":
            for side, apart in (("trainer_to_prefill", to_pi), ("decode_to_prefill", to_mu)):
                sums[side] = Cells.of(np.zeros_like(bucket), _level(np.sqrt(apart) / scale), NUM_LEVELS, known)
    return sums


def _level(size: Array) -> Ints:
    """Returns `np.searchsorted(LEVELS, np.log(size))`."""
    with np.errstate(divide="ignore"):
        logs = np.log(size)
    # Levels are evenly spaced: the cell is near where it should be, and at most one off for rounding.
    near = np.clip((logs - LEVELS[0]) * ((len(LEVELS) - 1) / (LEVELS[-1] - LEVELS[0])), 0, len(LEVELS) - 1)
    at = near.astype(np.int64)
    at -= logs <= LEVELS[at]
    at += 1
    at += logs > np.append(LEVELS, np.inf)[at]
    return at


def size_of(case: Case, quantile: float = 0.5, of: str = "sizes") -> float:
    """Returns a quantile of |gap| / (1 - p), nats, as at temperature 1: what rounds the scores is divided by T."""
    total = np.cumsum(case.cells(of).total[:, 0])
    at = int(np.searchsorted(total, quantile * total[-1]))
    return 0.0 if at == 0 else float(np.exp(LEVELS[min(at, len(LEVELS) - 1)])) * case.temperature


def matters(case: Case) -> float:
    """Returns 1, or less where nearly all sizes are too small for their structure to matter: two passes in float32."""
    return min(1.0, size_of(case, 0.9) / _TRIFLE)


def _dropout(case: Case) -> Findings:
    if "repeat" not in case.sums:
        # Noise as large as no number format makes, fresh at every token.
        together, middle = together_of(case), size_of(case)
        finds = (
            counted("median_size", middle, case.tokens, "median of |log ratio| / (1 - p), nats"),
            evidence(
                "neighbours",
                together,
                "correlation of neighbouring sizes: 0 where each token has noise of its own",
            ),
        )
        fresh = together.value < _INDEPENDENT
        smooth = case.by_content.share.value > 0.3  # a law, and no noise
        effect = middle / 0.16 if fresh and not smooth and not improper(case) else 0.0
        p = _CERTAIN if case.tokens >= _FEWEST else 1.0
        reason = "no second pass of the trainer: whether it repeats itself is not known"
        return [
            Suspicion("dropout", p, effect, case.share(0.9 * case.clean_squares), finds),
            CannotTell("dropout", reason, ("log_pi_repeat",)),
        ]
    m = case.cells("repeat").data[:, 0]
    own = ratio(0.5 * m[:, 1], m[:, 3])
    rms = float(np.sqrt(m[:, 1].sum() / max(m[:, 0].sum(), 1)))
    finds = (
        evidence("own_noise", own, "half the squared distance of two passes of the trainer over the squared log ratio"),
        counted(
            "own_rms", rms, m[:, 0].sum(), "rms distance of two passes of the trainer, nats: bfloat16 gives up to .06"
        ),
    )
    share = case.share(0.5 * m[:, 1].sum())
    return [Suspicion("dropout", p_above(own, 0.2), min(own.value / 0.3, rms / 0.08), share, finds)]


def decode_rms(case: Case) -> float:
    """Returns the rms distance of the engine's decode to its own prefill, nats."""
    n, _, squares, *_ = case.cells("prefill").total[0]
    return float(np.sqrt(squares / max(n, 1)))


def _decode(case: Case) -> Findings:
    if "prefill" not in case.sums:
        return [
            CannotTell(
                "engine_decode",
                "no prefill of the engine: whether it agrees with its own decode is not known",
                ("log_mu_prefill",),
            )
        ]
    m = case.cells("prefill").data[:, 0]
    own = ratio(m[:, 2] - m[:, 1], m[:, 3])
    rms = decode_rms(case)
    to_trainer = max(float(m[:, 1].sum()), 1e-12 * float(m[:, 2].sum()), 1e-300)  # 0 where it ran the same kernels
    over = float(np.sqrt(m[:, 2].sum() / to_trainer))
    finds = (
        evidence(
            "decode_less_prefill",
            own,
            "squared distance of decode to prefill less that of the trainer to prefill, over the squared log ratio",
        ),
        counted("decode_rms", rms, m[:, 0].sum(), "rms distance of the engine's decode to its own prefill, nats"),
        counted("decode_over_trainer", over, m[:, 0].sum(), "the same over the trainer's distance to that prefill"),
    )
    return [
        Suspicion(
            "engine_decode",
            p_above(own, 0.2),
            # Where log-probs are not of what was sampled, that prefill fits better says nothing of decoding.
            min(own.value / 0.4, over / 1.3, rms / 0.065) * (0.3 if improper(case) else 1.0),
            case.share(m[:, 2].sum() - m[:, 1].sum()),
            finds,
        )
    ]


def _tails(total: Array) -> float:
    """Divides the fourth moment by the square of the second within probabilities: 3 for Gaussian noise."""
    n, _, second, fourth = total.T
    some = (n > 20) & (second > 1e-12 * n)
    if not some.any():
        return float("nan")
    return float(np.average(fourth[some] * n[some] / second[some] ** 2, weights=n[some]))


def far_of(case: Case) -> tuple[float, NDArray[np.bool_]]:
    """Returns the usual size, and which levels of `sizes` are far beyond it."""
    # Where many tokens agree to the last bit the median is no size of the others: of rounding, the ninth decile is 2.7
    # medians.
    middle = max(size_of(case), size_of(case, 0.9) / 2.75)
    return middle, np.exp(np.concatenate([LEVELS, [np.inf]])) > max(FAR * middle, _SEEN)


def together_of(case: Case) -> Estimate:
    """Estimates the correlation of neighbouring tokens' sizes."""
    return jackknife(_together, case.cells("neighbours").data)


def _routing(case: Case) -> Findings:
    """Tests for tokens at a floor with now and then one far above it: another expert."""
    sizes = case.cells("sizes").data
    middle, far = far_of(case)
    beyond = ratio(sizes[:, far, 0].sum(1), sizes[:, :, 0].sum(1))
    together = together_of(case)
    finds = (
        evidence(
            "far_beyond",
            beyond,
            f"share of tokens whose size is over {FAR:.0f} times the median: .0001 for rounding",
        ),
        evidence(
            "kurtosis",
            jackknife(_tails, case.cells("shape").data),
            "of the log ratio within token probabilities: 3 if Gaussian, 5 to 12 for rounding",
        ),
        evidence("neighbours", together, "correlation of neighbouring sizes: .15 and more where stretches differ"),
    )
    # Where whole stretches are off, or log-probs are not of what was sampled, something else makes the tail.
    fits = together.value < 0.12 and middle < 2 * BF16 and not improper(case)
    share = case.share(sizes[:, far, 1].sum())
    effect = beyond.value / 1.5e-3 * (1.0 if fits else 0.05) if middle > NOTHING else 0.0
    return [Suspicion("moe_routing", p_above(beyond, 5e-4), effect, share, finds)]


def _floor(case: Case) -> Findings:
    middle = size_of(case)
    m = case.identity
    whole = ratio(m[:, SQUARES], m[:, N])
    finds = (
        counted(
            "median_size",
            middle,
            case.tokens,
            "median of |log ratio| / (1 - p), nats: bfloat16 on one side gives .02 to .05",
        ),
        evidence("mean_square", whole, "mean squared log ratio, nats^2"),
    )
    dtype = str(case.info.get("dtype_mu") or "").lower()
    coarse = any(word in dtype for word in _COARSE)
    size = middle / QUANTISED
    if case.baseline is not None:
        usual = size_of(Case(case.baseline, case.info))
        size = middle / (1.6 * usual) if usual > 0 else 0.0
        finds = (*finds, counted("usual_size", usual, case.tokens, "the same in the baseline"))
    elif "prefill" in case.sums:
        # The ninth decile: where both passes happen to run the same kernels, most tokens agree to the last bit.
        own = size_of(case, 0.9, "decode_to_prefill")
        times = size_of(case, 0.9, "trainer_to_prefill") / own if own > NOTHING else 0.0
        size = max(size, times / OWN)
        meaning = "ninth decile of trainer to prefill over that of decode to prefill: 1.3 if both only round"
        finds = (*finds, counted("over_own_noise", times, case.tokens, meaning))
    share = case.share(m[:, SQUARES].sum())
    gap = middle > NOTHING
    p = _CERTAIN if whole.df >= 1 and case.tokens >= _FEWEST else 1.0
    unsure: Findings = []
    if case.baseline is None and "prefill" not in case.sums and not coarse and 0.3 * QUANTISED < middle < QUANTISED:
        reason = "a mild quantisation is no larger than another model's rounding: nothing here says what is usual"
        unsure = [CannotTell("quantised_rollout", reason, ("log_mu_prefill",))]
    return [
        *unsure,
        Suspicion("quantised_rollout", p, size + coarse if gap else 0.0, share, finds),
        Suspicion("numerics", _CERTAIN, 1.0 if gap else 0.0, share, finds),
    ]


def _together(total: Array) -> float:
    """Returns the correlation of neighbouring tokens' sizes."""
    n, a, b, aa, bb, ab = total[0]
    cov, va, vb = ab - a * b / n, aa - a * a / n, bb - b * b / n
    return float(cov / np.sqrt(va * vb)) if va > 0 and vb > 0 else float("nan")


NOISE = Family(
    "noise",
    ("dropout", "engine_decode", "moe_routing", "quantised_rollout", "numerics", "none"),
    {
        "log_pi_repeat": "dropout and quantisation look alike",
        "log_mu_prefill": "faults of the engine's decode look like quantisation",
    },
    _measure,
    lambda case: [*_dropout(case), *_decode(case), *_routing(case), *_floor(case)],
)
