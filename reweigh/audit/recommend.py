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

from reweigh.audit.trial import Asked, Limits, TrialRow, needs
from reweigh.batch import Batch
from reweigh.doctor.causes import ABOUT, BENIGN
from reweigh.doctor.diagnosis import NAMED, Diagnosis, Evidence, Finding, Spread
from reweigh.estimators import Estimator
from reweigh.levels import SEQUENCE
from reweigh.named import seq_is
from reweigh.stats.intervals import Number, t_quantile
from reweigh.stats.numerals import interval, of_log, share, two
from reweigh.stats.summary import Summary, summarise
from reweigh.stats.sums import NUM_BUCKETS, RatioStats, bucket
from reweigh.stats.verdict import ESS_GOOD, KL_LARGE, Verdict

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


NO_GRADIENT = 1.0  # K: the worst error of an estimator that gives no gradient at all
NOTHING_SURE = 0.9  # K: from here on the worst case is no guide, as nine tenths of a gradient may be lost
NO_GRADIENTS = (
    "not ranked: needs the gradient of each response, or a sketch of it, and records have no column for it; "
    "`reweigh.audit.recommend` ranks estimators where you have them"
)
_UNBOUNDED = "its weights have no upper bound: one response can decide a step"
_FIRST = "fix the cause first"


class Judged(Protocol):
    """The parts of an audit that its recommendation and its headline follow from."""

    @property
    def verdict(self) -> Verdict:
        """Judges all levels together."""
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
    """Names the estimator to use, and says why.

    Attributes:
        use: name of the estimator; None if the cause is to be fixed first, or none is any good.
        reason: one sentence.
        n: responses averaged in one step.
        ranked: those whose worst-case error is known, the smallest that the data vouch for first.
        refused: why the others are not ranked, by name.
        progress: the ranking by guaranteed progress, or why there is none.
    """

    use: str | None
    reason: str
    n: float
    ranked: tuple[Ranked, ...]
    refused: Mapping[str, str]
    progress: str = NO_GRADIENTS

    def __str__(self) -> str:
        """Put it in a line, for a terminal or a log."""
        return f"{'use ' + self.use if self.use else 'none'}: {self.reason}"


def recommend(audit: Judged, asked: Asked | None = None, n: float | None = None) -> Recommendation:
    """Choose the smallest worst-case error that the data vouch for, if the gap is one to be corrected.

    What ranks is the upper end of the interval, so that an estimator whose error cannot be known from so few responses
    is not preferred for a lucky sample. Nothing is recommended if the log-probs are not those of what was sampled, if a
    doctor has named a cause that no weight mends, or if the gap is larger than numerics explain and no doctor says that
    it is another policy's. Where every estimator may lose nearly all of the gradient, as with long responses, the worst
    case is no guide; then it is the token-level cap that moves least weight.

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
    use, reason = _choice(audit, ranked, size)
    return Recommendation(use, reason, size, tuple(ranked), refused)


def _choice(audit: Judged, ranked: list[Ranked], n: float) -> tuple[str | None, str]:
    cause = first_cause(audit.diagnosis)
    small = audit.diagnosis is not None and audit.diagnosis.small
    named = cause is not None and cause.confidence >= NAMED and not small
    if cause is not None and named and not ABOUT[cause.id].correctable:
        return None, f"{_FIRST}: {ABOUT[cause.id].title}, and no weight mends that"
    if not all(level.identity for level in audit.levels.values()):
        why = "the mean ratio is not 1, so the log-probs are not of what was sampled and no weight is right"
        return None, f"{_FIRST}: {why}"
    if audit.verdict.level == "fail" and not named:
        return None, f"{_FIRST}: {audit.verdict.reason}"
    fit = [x for x in ranked if not x.why_not]
    if not fit:
        return None, "no estimator that was tried has bounded weights and keeps anything"
    best, surest = min(fit, key=lambda x: x.error.value or 0.0), fit[0]
    assert best.error.value is not None
    if best.error.value >= NOTHING_SURE:
        return _by_token(audit, best)
    if (surest.error.high or 0.0) < NO_GRADIENT:
        naive = next((x for x in fit[1:] if x.name == "naive"), None)
        beside = "" if naive is None else f"; without a correction it is {_shown(naive.error)}"
        return (
            surest.name,
            f"its worst-case error at N = {n:,.0f} is the smallest, {_shown(surest.error)} K{beside}",
        )
    return best.name, (
        f"its worst-case error at N = {n:,.0f} is the smallest in this sample, {_shown(best.error)} K, but so few "
        "responses cannot vouch that any estimator is better than no gradient at all"
    )


def _by_token(audit: Judged, best: Ranked) -> tuple[str | None, str]:
    """Choose what corrects each token by itself and moves least weight, where no worst case is any good."""
    at_best = f"the best: {best.name}, {_shown(best.error)} K"
    said = f"over all rewards no estimator tried is surely better than none ({at_best})"
    fit = [x for x in audit.trials if x.unit == "token" and x.caps and x.all.kept_tokens_share > 0.5]
    if not fit:
        return None, f"{said}: make the gap smaller, with fresher weights or shorter responses"
    use = min(fit, key=lambda x: abs(x.all.log_mean_weight))
    return use.name, (
        f"{said}; it corrects each token by itself, at a mean weight of {of_log(use.all.log_mean_weight)}, and leaves "
        "how states and returns differ; a smaller gap or shorter responses would let more be said"
    )


def _shown(x: Number) -> str:
    ends = "" if x.low is None or x.high is None else f" [{two(x.low)}, {two(x.high)}]"
    return f"{two(x.value or 0.0)}{ends}"


@dataclass(frozen=True)
class Headline:
    """Says what stands above all else.

    Attributes:
        sentence: the verdict.
        todo: what to do, first things first.
        why: what the numbers say.
        use: name of the estimator to use; empty if none.
    """

    sentence: str
    todo: tuple[str, ...]
    why: tuple[str, ...]
    use: str


def headline(audit: Judged, use: str | None) -> Headline:
    """Puts an audit, with or without a diagnosis, in one sentence, and says what to do and why.

    Args:
        audit: what was found.
        use: name of the estimator that is recommended; None if none is.
    """
    trial = next((x for x in audit.trials if x.name == use), None)
    called = f"{use} (no correction)" if use == "naive" else use
    first = first_cause(audit.diagnosis)
    about = None if first is None else ABOUT[first.id]
    # A cause that the doctor is sure of, unless nothing need be done about it.
    calm = audit.diagnosis is not None and audit.diagnosis.benign
    sure = first is not None and not calm and first.confidence >= NAMED

    # The sentence: how far ratios can be trusted, the cause, and what to use.
    parts = [_state(audit)]
    if audit.diagnosis is not None:
        parts.append(cause_sentence(audit.diagnosis))
    wrong = not all(level.identity for level in audit.levels.values())
    if not sure:
        ill = wrong or audit.verdict.level == "fail"
        none = "find the cause first: no estimator mends this" if ill else "no estimator tried here helps"
        parts.append(f"use {called}" if trial else none)
    elif about is not None and about.correctable and not wrong:
        meanwhile = f"meanwhile use {called}" if trial else "no estimator tried here helps meanwhile"
        parts.append(f"lessen that; {meanwhile}")
    else:
        parts.append("fix that first: no estimator mends it")

    # What to do, each thing once: about the cause, then about the numbers, then the estimator.
    todo: dict[str, None] = {}
    if first is not None and about is not None and first.id != "none":
        fix = first.fix.get("general") or next(iter(first.fix.values()), "")
        verb = "Lessen the cause" if about.correctable else "Remove the cause"
        if not sure:
            verb = "Nothing need be removed" if calm else "Look into"
        todo[f"{verb} ({about.title}){': ' + _small(fix) if fix else ''}"] = None
        if first.rules_out:
            todo[f"It is something else if {_small(first.rules_out)}"] = None
    if first is None and audit.diagnosis is not None and not calm:
        for one in audit.diagnosis.causes[:2]:  # candidates
            known = ABOUT[one.id]
            todo[f"Look into ({known.title}){': ' + _small(known.experiment) if known.experiment else ''}"] = None
    if sure:
        todo["Audit again: what is left of the gap decides which estimator is worth using"] = None
    else:  # what the numbers alone can say
        todo.update({_capital(finding.hint): None for finding in audit.verdict.findings if finding.hint})
    if trial is not None:
        all_ = trial.all
        todo[
            f"{'Until then use' if sure else 'Use'} {called}: it keeps {share(all_.kept_share)} of the "
            f"{trial.unit}s at a mean weight of {of_log(all_.log_mean_weight)}, {share(all_.effective_share)} effective"
        ] = None
    elif not todo:
        todo["Look for the cause: no estimator tried here mends this gap"] = None

    why = [_capital(finding.reason) for finding in audit.verdict.findings]
    why += [evidence_sentence(one) for one in first.evidence[:3]] if first is not None else []
    return Headline("; ".join(parts), tuple(todo), tuple(why), trial.name if trial else "")


def _state(audit: Judged) -> str:
    token, sequence = audit.levels["token"], audit.levels["sequence"]
    if not token.identity:
        return f"no ratio can be trusted: the mean token ratio is {interval(token['mean_ratio'])[0]}, and must be 1"
    effective, khat = sequence["ess_fraction"], sequence["khat"]
    said = f"{share(effective.sample or 0.0)} effective"
    if sequence.refusal:
        heavy = khat.value is not None and "tail index" in sequence.refusal
        why = f"tail {interval(khat)[0]}" if heavy else sequence.refusal
        return f"sequence ratios are untrustworthy: {why}, {said}"
    if (token.value("kl_k3") or 0.0) > KL_LARGE:
        return f"the gap is larger than numerics explain: KL {two(token['kl_k3'].value or 0.0)} nats a token, {said}"
    word = "can be trusted" if (effective.value or 0.0) >= ESS_GOOD else "are weak"
    return f"sequence ratios {word}: {said}"


def _small(text: str) -> str:
    """Write it as inside of a sentence; a name such as RoPE keeps its letters."""
    word = text.split(" ", 1)[0]
    return text[:1].lower() + text[1:] if word[1:].islower() or len(word) == 1 else text


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
