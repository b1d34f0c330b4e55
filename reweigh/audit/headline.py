"""The audit in one sentence for a tired reader; then what to do; then why."""

from dataclasses import dataclass

from reweigh.audit.causes import cause_sentence, evidence_sentence, first_cause
from reweigh.audit.recommend import CORRECTABLE, recommend
from reweigh.audit.result import Audit, TrialRow
from reweigh.doctor.causes import ABOUT, BENIGN
from reweigh.doctor.diagnosis import NAMED, Finding
from reweigh.stats.numerals import interval, of_log, share, two
from reweigh.stats.verdict import ESS_GOOD, KL_LARGE


@dataclass(frozen=True)
class Headline:
    """What stands above all else.

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


def headline(audit: Audit) -> Headline:
    """Of an audit, with or without a diagnosis."""
    trial, cause = recommended(audit), _named(audit)
    parts = [_state(audit)]
    if audit.diagnosis is not None:
        parts.append(cause_sentence(audit.diagnosis))
    wrong = not all(level.identity for level in audit.levels.values())
    if cause is None:
        ill = wrong or audit.verdict.level == "fail"
        none = "find the cause first: no estimator mends this" if ill else "no estimator tried here helps"
        parts.append(f"use {_called(trial)}" if trial else none)
    elif cause.id in CORRECTABLE and not wrong:
        meanwhile = f"meanwhile use {_called(trial)}" if trial else "no estimator tried here helps meanwhile"
        parts.append(f"lessen that; {meanwhile}")
    else:
        parts.append("fix that first: no estimator mends it")
    return Headline("; ".join(parts), _todo(audit, trial), _why(audit), trial.name if trial else "")


def recommended(audit: Audit) -> TrialRow | None:
    """The estimator that `recommend` says to use, of those that were tried; None if it says none."""
    name = recommend(audit).use
    return next((trial for trial in audit.trials if trial.name == name), None)


def _named(audit: Audit) -> Finding | None:
    """The cause that a doctor is sure of, unless nothing need be done about it."""
    cause = first_cause(audit.diagnosis)
    sure = cause is not None and cause.id not in BENIGN and cause.confidence >= NAMED
    return cause if sure else None


def _called(trial: TrialRow) -> str:
    return f"{trial.name} (no correction)" if trial.name == "naive" else trial.name


def _state(audit: Audit) -> str:
    token, sequence = audit.levels["token"], audit.levels["sequence"]
    if not token.identity:
        return f"no ratio can be trusted: the mean token ratio is {interval(token['mean_ratio'])[0]}, and must be 1"
    effective, khat = sequence["ess_fraction"], sequence["khat"].value
    said = f"{share(effective.sample or 0.0)} effective"
    if sequence.refusal:
        why = f"tail {khat:.2f}" if khat is not None and "tail index" in sequence.refusal else sequence.refusal
        return f"sequence ratios are untrustworthy: {why}, {said}"
    if (token.get("kl_k3") or 0.0) > KL_LARGE:
        return f"the gap is larger than numerics explain: KL {two(token['kl_k3'].value or 0.0)} nats a token, {said}"
    word = "can be trusted" if (effective.value or 0.0) >= ESS_GOOD else "are weak"
    return f"sequence ratios {word}: {said}"


def _todo(audit: Audit, trial: TrialRow | None) -> tuple[str, ...]:
    found: dict[str, None] = {}
    cause, known = first_cause(audit.diagnosis), _named(audit) is not None
    if cause is not None and cause.id != "none":
        fix = cause.fix.get("general") or next(iter(cause.fix.values()), "")
        verb = "Lessen the cause" if cause.id in CORRECTABLE else "Remove the cause"
        if not known:
            verb = "Nothing need be removed" if cause.id in BENIGN else "Look into"
        found[f"{verb} ({ABOUT[cause.id].title}){': ' + _small(fix) if fix else ''}"] = None
        if cause.rules_out:
            found[f"It is something else if {_small(cause.rules_out)}"] = None
    if known:
        found["Audit again: what is left of the gap decides which estimator is worth using"] = None
    else:  # what the numbers alone can say
        found.update({_capital(finding.hint): None for finding in audit.verdict.findings if finding.hint})
    if trial is not None:
        all_ = trial.all
        found[
            f"{'Until then use' if known else 'Use'} {_called(trial)}: it keeps {share(all_.kept_share)} of the "
            f"{trial.unit}s at a mean weight of {of_log(all_.log_mean_weight)}, {share(all_.effective_share)} effective"
        ] = None
    elif not found:
        found["Look for the cause: no estimator tried here mends this gap"] = None
    return tuple(found)


def _why(audit: Audit) -> tuple[str, ...]:
    found = [_capital(finding.reason) for finding in audit.verdict.findings]
    cause = first_cause(audit.diagnosis)
    if cause is not None:
        found += [evidence_sentence(one) for one in cause.evidence[:3]]
    return tuple(found)


def _small(text: str) -> str:
    """As it stands inside of a sentence; a name such as RoPE keeps its letters."""
    word = text.split(" ", 1)[0]
    return text[:1].lower() + text[1:] if word[1:].islower() or len(word) == 1 else text


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
