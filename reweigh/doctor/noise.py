"""The family of noise: which part of the chain makes it, how large it is, and whether it is more than rounding."""

import numpy as np

from reweigh.doctor.cells import Array, Cells, Estimate, jackknife, ratio
from reweigh.doctor.diagnosis import CannotTell
from reweigh.doctor.family import Case, Family, Findings, Suspicion, counted, evidence, p_above
from reweigh.doctor.normalisation import N, SQUARES
from reweigh.doctor.tokens import Tokens

BINS = np.array([0.05, 0.15, 0.35, 0.7, 1.2, 2.7, 4.7, 7.0])  # edges of -log p, nats
NUM = len(BINS) + 1
LEVELS = np.log(10.0) * np.arange(-7, 2.25, 0.125)  # edges of log |gap| / (1 - p): eighths of a decade

# Median of |gap| / (1 - p), nats: bfloat16 against float32 is .03 to .05 in models of 135 M parameters on three engines.
BF16 = 0.05
QUANTISED = 0.08
NOTHING = 1e-5


def _measure(tokens: Tokens) -> dict[str, Cells]:
    gap, bucket = tokens.gap, tokens.bucket
    zero = np.zeros(len(gap), np.int64)
    size = np.abs(gap) / tokens.scale
    p = np.searchsorted(BINS, -(tokens.log_pi + tokens.log_mu) / 2)
    with np.errstate(divide="ignore"):
        level = np.searchsorted(LEVELS, np.log(size))
    one = np.ones(len(gap))
    sums = {
        "sizes": Cells.of(zero, level, len(LEVELS) + 1, one),
        "shape": Cells.of(bucket, p, NUM, one, np.abs(gap), gap**2, gap**4),
    }
    for name, other in (("repeat", tokens.repeat), ("prefill", tokens.prefill)):
        if other is None:
            continue
        known = np.isfinite(other)
        other = np.where(known, other, 0.0)
        to_pi = np.where(known, (tokens.log_pi - other) ** 2, 0.0)
        to_mu = np.where(known, (tokens.log_mu - other) ** 2, 0.0)
        sums[name] = Cells.of(bucket, zero, 1, known * 1.0, to_pi, to_mu, np.where(known, gap**2, 0.0))
    return sums


def _examine(case: Case) -> Findings:
    return [*_dropout(case), *_decode(case), *_routing(case), *_floor(case)]


def size_of(case: Case, quantile: float = 0.5) -> float:
    """Quantile of |gap| / (1 - p), nats."""
    counts = case.cells("sizes").total[:, 0]
    total = np.cumsum(counts)
    at = int(np.searchsorted(total, quantile * total[-1]))
    return 0.0 if at == 0 else float(np.exp(LEVELS[min(at, len(LEVELS) - 1)]))


def _dropout(case: Case) -> Findings:
    if "repeat" not in case.sums:
        return [
            CannotTell(
                "dropout", "no second pass of the trainer: whether it repeats itself is not known", ("log_pi_repeat",)
            )
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
    rms = float(np.sqrt(m[:, 2].sum() / max(m[:, 0].sum(), 1)))
    finds = (
        evidence(
            "decode_less_prefill",
            own,
            "squared distance of decode to prefill less that of the trainer to prefill, over the squared log ratio",
        ),
        counted("decode_rms", rms, m[:, 0].sum(), "rms distance of the engine's decode to its own prefill, nats"),
    )
    return [
        Suspicion(
            "engine_decode",
            p_above(own, 0.2),
            min(own.value / 0.4, rms / 0.1),
            case.share(m[:, 2].sum() - m[:, 1].sum()),
            finds,
        )
    ]


def _tails(total: Array) -> float:
    """Fourth moment over the square of the second within probabilities, tokens-weighted: 3 for Gaussian noise."""
    n, _, second, fourth = total.T
    some = (n > 20) & (second > 0)
    if not some.any():
        return float("nan")
    return float(np.average((fourth * n / np.maximum(second, 1e-300) ** 2)[some], weights=n[some]))


def _routing(case: Case) -> Findings:
    tails = jackknife(_tails, case.cells("shape").data)
    middle, high = size_of(case), size_of(case, 0.99)
    heavy = high / middle if middle > 0 else 0.0
    finds = (
        evidence(
            "kurtosis", tails, "of the log ratio within token probabilities: 3 for Gaussian noise, 5 to 8 for bfloat16"
        ),
        counted(
            "top_over_middle",
            heavy,
            case.tokens,
            "99th percentile of |log ratio| / (1 - p) over its median: 4 to 6 for rounding",
        ),
    )
    m = case.cells("identity").data[:, 0].sum(0)
    return [
        Suspicion("moe_routing", p_above(tails, 9.0), min(heavy / 12, high / 0.3), case.share(0.7 * m[SQUARES]), finds)
    ]


def _floor(case: Case) -> Findings:
    middle = size_of(case)
    m = case.cells("identity").data[:, 0]
    whole = ratio(m[:, SQUARES], m[:, N])
    finds = (
        counted("median_size", middle, case.tokens, "median of |log ratio| / (1 - p), nats: bfloat16 gives .02 to .05"),
        evidence("mean_square", whole, "mean squared log ratio, nats^2"),
    )
    dtype = str(case.info.get("dtype_mu") or "").lower()
    coarse = any(word in dtype for word in ("fp8", "float8", "int8", "int4", "q4", "q8", "awq", "gptq", "fp4"))
    reference = BF16
    if case.baseline is not None:
        reference = size_of(Case(case.baseline, {}))
    effect = (middle / QUANTISED if case.baseline is None else middle / (1.6 * reference)) + (1.0 if coarse else 0.0)
    return [
        Suspicion(
            "quantised_rollout", 1e-6, effect if middle > NOTHING else 0.0, case.share(m[:, SQUARES].sum()), finds
        ),
        Suspicion("numerics", 1e-6, 1.0 if middle > NOTHING else 0.0, case.share(m[:, SQUARES].sum()), finds),
    ]


NOISE = Family(
    "noise",
    ("dropout", "engine_decode", "moe_routing", "quantised_rollout", "numerics", "none"),
    {
        "log_pi_repeat": "dropout and quantisation look alike",
        "log_mu_prefill": "faults of the engine's decode look like quantisation",
    },
    _measure,
    _examine,
)
