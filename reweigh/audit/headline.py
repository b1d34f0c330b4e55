"""The audit in one sentence for a tired reader; then what to do; then why."""

from dataclasses import dataclass

from reweigh.audit.causes import CAUSE_WORDS, NAMED_FROM, cause_sentence, evidence_sentence, first_cause
from reweigh.audit.numerals import interval, of_log, share, two
from reweigh.audit.result import Audit, TrialRow
from reweigh.doctor.diagnosis import BENIGN
from reweigh.verdict import ESS_GOOD, KL_LARGE

_CLOSE = 0.5  # a mean weight this far from 1, or an effective share this low, is no recommendation


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
    trial, cause = recommended(audit), first_cause(audit.diagnosis)
    parts = [_state(audit)]
    if audit.diagnosis is not None:
        parts.append(cause_sentence(audit.diagnosis))
    if cause is not None and cause.id not in BENIGN and cause.confidence >= NAMED_FROM:
        parts.append(f"fix that first, then use {trial.name}" if trial else "fix that first: no estimator mends it")
    else:
        parts.append(f"use {trial.name}" if trial else "find the cause first: no estimator mends this")
    return Headline("; ".join(parts), _todo(audit, trial), _why(audit), trial.name if trial else "")


def recommended(audit: Audit) -> TrialRow | None:
    """The estimator to use: of the coarsest unit whose raw ratios can be trusted, the one that moves least weight.

    Coarser units are less biased, and finer ones less noisy. Tokens come last and need no trust: their caps bound what
    a heavy tail can do. `None` where the log-probs are not of what was sampled, or
    the gap is larger than numerics explain: no estimator mends that.
    """
    token = audit.levels["token"]
    if not token.identity or (token.get("kl_k3") or 0.0) > KL_LARGE:
        return None
    for name in ("sequence", "turn", "token"):
        level = audit.levels.get(name)
        if level is None or (name != "token" and (level.get("ess_fraction") or 0.0) < ESS_GOOD):  # refused is None
            continue
        fit = [trial for trial in audit.trials if trial.unit == name and _fits(trial)]
        if fit:
            return min(fit, key=lambda t: abs(t.all.log_mean_weight))
    return None


def _fits(trial: TrialRow) -> bool:
    """Whether it has a largest weight whatever comes, and leaves most of the weight here."""
    all_ = trial.all
    return trial.caps and abs(all_.log_mean_weight) < _CLOSE and all_.effective_share > _CLOSE


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
    cause = first_cause(audit.diagnosis)
    known = cause is not None and cause.id not in BENIGN and cause.confidence >= NAMED_FROM
    if cause is not None and cause.id != "none":
        fix = cause.fix.get("general") or next(iter(cause.fix.values()), "")
        verb = "Remove the cause" if known else "Nothing need be removed" if cause.id in BENIGN else "Look into"
        found[f"{verb} ({CAUSE_WORDS[cause.id]}){': ' + _small(fix) if fix else ''}"] = None
        if cause.rules_out:
            found[f"It is something else if {_small(cause.rules_out)}"] = None
    if known:
        found["Audit again: what is left of the gap decides which estimator is worth using"] = None
    else:  # what the numbers alone can say
        found.update({_capital(finding.hint): None for finding in audit.verdict.findings if finding.hint})
    if trial is not None:
        all_ = trial.all
        found[
            f"{'Until then use' if known else 'Use'} {trial.name}: it keeps {share(all_.kept_share)} of the "
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
