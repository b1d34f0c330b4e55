"""Which estimator to use and why, and the audit in one sentence for a tired reader."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reweigh.audit.known import Place
from reweigh.audit.trial import Asked, Limits, TrialRow, needs
from reweigh.batch import Batch
from reweigh.doctor.causes import ABOUT, BENIGN
from reweigh.doctor.diagnosis import Diagnosis, Evidence, Finding, Spread
from reweigh.estimators import Estimator
from reweigh.levels import SEQUENCE
from reweigh.named import seq_is
from reweigh.stats.intervals import Number, t_quantile
from reweigh.stats.numerals import interval, share, two
from reweigh.stats.summary import Summary, summarise
from reweigh.stats.sums import NUM_BUCKETS, RatioStats, bucket
from reweigh.stats.verdict import KEPT_LEAST, Verdict

Array = NDArray[np.float64]
MEANING = (
    "Share of the possible gain of a step that is guaranteed: <g, m>_+^2 / (|g|^2 (|m|^2 + variance / N)), g the "
    "gradient of pi and m the estimator's mean."
)
_NOISE = "the gradient cannot be told from noise: more responses are needed"


@dataclass(frozen=True)
class Guaranteed:
    """An estimator and `Gamma_N`, the share of the possible gain that it is sure of; 1 for the gradient itself."""

    name: str
    gamma: Number


def progress(batch: Batch, estimators: Mapping[str, Estimator], gradients: Tensor, n: float) -> tuple[Guaranteed, ...]:
    """Estimators by guaranteed progress, the best first; those for which it is refused last.

    `Gamma_N` is estimated without the square of the sample's own noise: products of means are of different responses.
    The gradient of pi is that of the sequence ratio, so that all is refused where its tail cannot be trusted.

    Args:
        batch: one batch; responses of a prompt are one cluster if it has `group`.
        estimators: by the name to show; self-normalised ones too, as this is a batch.
        gradients: token-shaped with one more axis, `[*tok, d]`: reward or advantage times the gradient of log pi of
            the token, or a sketch of it (a random projection to d numbers keeps inner products in the mean).
        n: N, responses averaged in one step, at least 1.

    Returns:
        with 95% intervals by a jackknife over clusters.

    Raises:
        ValueError: gradients of another shape, or n below 1.

    Example:
        >>> import torch
        >>> from reweigh import Batch, naive, seq_tis
        >>> batch = Batch.padded(torch.full((64, 2), -1.0), torch.full((64, 2), -1.0), torch.ones(64, 2))
        >>> ranked = progress(batch, {"naive": naive(), "seq_tis(2)": seq_tis(2.0)}, torch.ones(64, 2, 3), n=64)
        >>> print(ranked[0].name, round(ranked[0].gamma.value, 3))
        naive 1.0

    Source: `reweigh.theory.sga.Moments.efficiency`; Li and Liu (2025), Part 1, for the lemma.
    """
    layout = batch.layout
    if gradients.dim() != layout.mask.dim() + 1 or gradients.shape[:-1] != layout.mask.shape:
        raise ValueError(
            f"progress: gradients must be {[*layout.mask.shape, 'd']}, got {list(gradients.shape)}\n"
            "hint: one row a token: its reward or advantage times the gradient of its log pi."
        )
    if not n >= 1:
        raise ValueError(f"progress: n must be >= 1, got {n}")
    refusal = summarise(RatioStats.of(batch, SEQUENCE)).refusal
    where = bucket(batch).cpu().numpy()
    some = (layout.lengths > 0).cpu().numpy()
    true = _terms(batch, seq_is(), gradients)
    found: list[Guaranteed] = []
    for name, estimator in estimators.items():
        sums = _Sums.of(true[some], _terms(batch, estimator, gradients)[some], where[some])
        found.append(Guaranteed(name, _gamma(sums, n, refusal)))
    return tuple(sorted(found, key=lambda x: -math.inf if x.gamma.value is None else x.gamma.value, reverse=True))


@dataclass(frozen=True)
class _Sums:
    """Holds by cluster what the means, and the products of different responses, follow from."""

    n: Array  # [G]
    g: Array  # [G, d]
    m: Array  # [G, d]
    gm: Array  # [G]: of inner products of a response with itself
    gg: Array
    mm: Array

    @classmethod
    def of(cls, g: Array, m: Array, where: NDArray[np.int64]) -> "_Sums":
        each = np.eye(NUM_BUCKETS)[where].T
        each = each[each.sum(1) > 0]
        own = ((g * m).sum(1), (g * g).sum(1), (m * m).sum(1))
        return cls(each.sum(1), each @ g, each @ m, *(each @ x for x in own))

    def without(self, i: int) -> "_Sums":
        return _Sums(*(np.delete(x, i, 0) for x in (self.n, self.g, self.m, self.gm, self.gg, self.mm)))

    def gamma(self, batch: float) -> float:
        """NaN if a squared mean comes out as 0 or less."""
        n, g, m = float(self.n.sum()), self.g.sum(0), self.m.sum(0)
        pairs = n * (n - 1)
        if pairs <= 0:
            return math.nan
        along, gg, mm = (
            (float(x) - float(own.sum())) / pairs for x, own in ((g @ m, self.gm), (g @ g, self.gg), (m @ m, self.mm))
        )
        second = mm + max(0.0, float(self.mm.sum()) / n - mm) / batch
        return max(0.0, along) ** 2 / (gg * second) if gg > 0 and second > 0 else math.nan


def _gamma(sums: _Sums, n: float, refusal: str) -> Number:
    value = sums.gamma(n)
    if refusal or math.isnan(value):
        sample = None if math.isnan(value) else value
        return Number(None, sample=sample, meaning=MEANING, refused=refusal or _NOISE)
    groups = len(sums.n)
    left_out = np.array([sums.without(i).gamma(n) for i in range(groups)]) if groups > 2 else np.array([math.nan])
    if np.isnan(left_out).any():
        return Number(min(1.0, value), 0.0, 1.0, value, meaning=MEANING)
    error = math.sqrt((groups - 1) / groups * float(np.square(left_out - left_out.mean()).sum()))
    half = t_quantile(0.975, groups - 1) * error
    return Number(min(1.0, value), max(0.0, value - half), min(1.0, value + half), value, meaning=MEANING)


def _terms(batch: Batch, estimator: Estimator, gradients: Tensor) -> Array:
    """`[S, d]`: each response's term of the estimated gradient."""
    layout = batch.layout
    weights = estimator(batch).per_token
    columns = [
        layout.sum(torch.where(layout.mask, weights * gradients[..., i], 0)).double()
        for i in range(gradients.shape[-1])
    ]
    return torch.stack(columns, -1).cpu().numpy()


NO_GRADIENTS = (
    "not ranked: needs the gradient of each response, or a sketch of it, and records have no column for it; "
    "`reweigh.audit.recommend` ranks estimators where you have them"
)
_UNBOUNDED = "its weights have no upper bound: one response can decide a step"


class Judged(Protocol):
    """The parts of an audit that its recommendation and its headline follow from."""

    @property
    def verdict(self) -> Verdict:
        """Judges all levels together, with the cause."""
        ...

    @property
    def levels(self) -> Mapping[str, Summary]:
        """Numbers by name of the level."""
        ...

    @property
    def trials(self) -> tuple[TrialRow, ...]:
        """Says what each estimator would do."""
        ...

    @property
    def diagnosis(self) -> Diagnosis | None:
        """Holds what a doctor said; None if none was asked."""
        ...


@dataclass(frozen=True)
class Ranked:
    """An estimator and its worst-case error.

    Attributes:
        name: as one would write it.
        limits: its worst-case bias and second moment of one response.
        error: root mean squared error of a batch, in units of K, see `reweigh.audit.trial.Limits.error`.
        why_not: why it is not recommended whatever its rank; empty if nothing speaks against it.
    """

    name: str
    limits: Limits
    error: Number
    why_not: str = ""


@dataclass(frozen=True)
class Recommendation:
    """Names the estimator that the verdict says to use, beside what others could do at worst.

    Attributes:
        use: name of the estimator; None if none is needed, or none is any good: it is the verdict's.
        reason: the verdict's, and what to do.
        n: responses averaged in one step.
        best: of those that were tried, the one that the verdict's own rule takes; None if there is none.
        ranked: those whose worst-case error is known, the smallest that the data vouch for first.
        refused: why the others are not ranked, by name.
        progress: the ranking by guaranteed progress, or why there is none.
    """

    use: str | None
    reason: str
    n: float
    best: str | None
    ranked: tuple[Ranked, ...]
    refused: Mapping[str, str]
    progress: str = NO_GRADIENTS

    def __str__(self) -> str:
        """Put it in a line, for a terminal or a log."""
        return f"{'use ' + self.use if self.use else 'none'}: {self.reason}"


def recommend(audit: Judged, asked: Asked | None = None, n: float | None = None) -> Recommendation:
    """Rank what was tried by its worst case, beside the one estimator that the verdict says to use.

    What ranks is the upper end of the interval, so that an estimator whose error cannot be known from so few responses
    is not preferred for a lucky sample. Which of them is the best follows the verdict's rule: the smallest error among
    those that miss no more of a gradient than sequences capped at 2 may (`reweigh.stats.verdict.KEPT_LEAST`); where all
    miss more, the worst case is no guide, and it is the cap on tokens that moves least weight.

    Args:
        audit: with its trials; and its diagnosis, if there is one.
        asked: what was to be tried, for those that were not; what was tried if not given.
        n: responses averaged in one step; those of the records if not given.

    Raises:
        ValueError: n is below 1.
    """
    size = float(audit.levels["sequence"].n if n is None else n)
    if not size >= 1:
        raise ValueError(f"recommend: n must be >= 1, got {size:g}")
    refused = dict(asked.refused) if asked is not None else {}
    if asked is not None:
        have = {trial.name for trial in audit.trials}
        for name, estimator in asked.estimators.items():
            if name not in have:
                refused[name] = f"needs {' and '.join(needs(estimator))}, which no record has"
    ranked: list[Ranked] = []
    for trial in audit.trials:
        error = trial.limits.error(size)
        if error.value is None:
            refused[trial.name] = error.refused
        else:
            why_not = "drops everything" if not trial.all.kept else _UNBOUNDED if math.isinf(trial.high) else ""
            ranked.append(Ranked(trial.name, trial.limits, error, why_not))
    ranked.sort(key=lambda x: (x.error.high, x.error.value))
    told = audit.verdict
    best = _best(audit.trials, ranked) if told.use else None
    return Recommendation(told.use or None, told.sentence, size, best, tuple(ranked), refused)


def _best(trials: Sequence[TrialRow], ranked: Sequence[Ranked]) -> str | None:
    serve = [x for x in ranked if not x.why_not and (x.limits.bias.value or 0.0) <= 1 - KEPT_LEAST]
    if serve:
        return min(serve, key=lambda x: x.error.value or 0.0).name
    fit = [x for x in trials if x.unit == "token" and x.caps and x.all.kept_tokens_share > 0.5]
    return min(fit, key=lambda x: abs(x.all.log_mean_weight)).name if fit else None


@dataclass(frozen=True)
class Headline:
    """Says what stands above all else.

    Attributes:
        sentence: the verdict, the cause, and what to do.
        todo: the one thing to do.
        why: what the numbers say.
        use: name of the estimator to use; empty if none.
    """

    sentence: str
    todo: tuple[str, ...]
    why: tuple[str, ...]
    use: str


def headline(verdict: Verdict, diagnosis: Diagnosis | None, place: Place | None = None) -> Headline:
    """Puts a verdict, with or without a diagnosis, in one sentence, and says what to do and why.

    Args:
        verdict: on the records.
        diagnosis: of them; None if none was asked.
        place: of their gap among those that are known.
    """
    told = cause_sentence(diagnosis) if diagnosis is not None else ""
    first = first_cause(diagnosis)
    if first is not None and ABOUT[first.id].title in verdict.reason:
        told = ""
    parts = (verdict.reason, told, verdict.order)
    why = [_capital(one.reason) for one in verdict.findings]
    why += [] if place is None else [_capital(place.sentence)]
    why += [evidence_sentence(one) for one in first.evidence[:3]] if first is not None else []
    todo = _capital(verdict.hint or "nothing")
    return Headline("; ".join(x for x in parts if x), (todo,), tuple(why), verdict.use)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def first_cause(diagnosis: Diagnosis | None) -> Finding | None:
    """Find the cause that the verdict names, if there is something to be said for it."""
    if diagnosis is None:
        return None
    return next((one for one in diagnosis.causes if one.id == diagnosis.verdict), None)


def cause_sentence(diagnosis: Diagnosis) -> str:
    """`likely cause: the engine logs before temperature`."""
    if diagnosis.verdict == "none":
        return ABOUT["none"].title
    if diagnosis.verdict == "not_decided":
        some = " or ".join(ABOUT[one.id].title for one in diagnosis.causes[:2])
        return f"cause not decided: {some}" if some else "cause not decided"
    small = ", too small to matter" if diagnosis.small and diagnosis.verdict not in BENIGN else ""
    return f"likely cause: {ABOUT[diagnosis.verdict].title}{small}"


def spread_sentence(spread: Spread) -> str:
    """`8 of 48 responses, all of prompt p3, p7, carry 97% of the squared log ratio`."""
    shared = ", ".join(f"{name} {_listed(values)}" for name, values in spread.shared.items())
    whose = f", all of {shared}," if shared else ""
    return (
        f"{spread.responses:,} of {spread.of:,} responses{whose} carry {share(spread.share)} of the squared log ratio, "
        f"at {two(spread.times)} times the size of the others"
    )


def _listed(values: Sequence[str]) -> str:
    shown = " and ".join(values) if len(values) < 3 else ", ".join(values[:4])
    return shown if len(values) <= 4 else f"{shown} and {len(values) - 4} more"


def evidence_value(one: Evidence) -> tuple[str, str]:
    """Value and interval as shown; `-` if it could not be had."""
    if not math.isfinite(one.value):
        return "-", ""
    if one.low is None and one.value == round(one.value) and one.value > 1:  # a count; 1.0 may well be a share
        return f"{one.value:,.0f}", ""
    value, ends = interval(Number(one.value, one.low, one.high))
    if re.search(r"\b1\.0+\b", ends) and 1.0 not in (one.low, one.high):  # what is not 1 must not read as 1
        return f"{one.value:.4g}", f"[{one.low:.4g}, {one.high:.4g}]"
    return value, ends


def evidence_sentence(one: Evidence) -> str:
    """`mean_ratio 1.052 [1.041, 1.063]: mean token ratio, which must be 1`."""
    return f"{' '.join(x for x in (one.name, *evidence_value(one)) if x)}: {one.meaning}"
