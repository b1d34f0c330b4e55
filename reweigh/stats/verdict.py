"""From numbers to a sentence: how bad the mismatch is, why, and what to look at first."""

from dataclasses import dataclass, replace
from typing import Literal

from reweigh.stats.numerals import interval, share, two
from reweigh.stats.summary import Summary, summarise
from reweigh.stats.sums import RatioStats
from reweigh.stats.tail import MIN_IDENTITY_GAP

Severity = Literal["ok", "warn", "fail"]
_ORDER: dict[Severity, int] = {"ok": 0, "warn": 1, "fail": 2}

# Where a number turns into a word. Rules of thumb in use; each with who says so.
KL_NOTICEABLE = 1e-3  # nats a token: NeMo-RL's guide; Liu and Li (2025) report about this for healthy runs
KL_LARGE = 1e-2  # nats a token: the advice of tinker-cookbook and prime-rl for a run worth stopping
ESS_GOOD, ESS_POOR = 0.5, 0.3  # verl's guide to its rollout correction

_NOT_SAMPLED = "the logged log mu is not of the distribution that was sampled from"
_RAISED = "does the engine log before temperature (vLLM: logprobs_mode=processed_logprobs)? are tokens shifted by one?"
_LOWERED = (
    "was sampling truncated (top-p, top-k, min-p) on one side only? is it the sampled token's log-prob that is logged?"
)


@dataclass(frozen=True)
class Finding:
    """One thing that was noticed: how bad, what the numbers say, and what to do."""

    severity: Severity
    reason: str
    hint: str = ""


@dataclass(frozen=True)
class Verdict:
    """The worst finding first, and the others behind it.

    Attributes:
        level: "ok", "warn" or "fail": fail means that no correction helps before a cause is removed, or that there is
            nothing to judge; warn that the correction matters.
        reason: one sentence with its numbers.
        hint: what to do.
        findings: all of them, worst first.
    """

    level: Severity
    reason: str
    hint: str
    findings: tuple[Finding, ...] = ()

    def __str__(self) -> str:
        """Write it for a terminal or a log line."""
        return f"{self.level}: {self.reason}" + (f"\nhint: {self.hint}" if self.hint else "")


def judge(*stats: RatioStats | Summary) -> Verdict:
    """Verdict on stats of one or more levels of the same tokens; the one host sync, once a step.

    Args:
        stats: `RatioStats` (or their `Summary`) at TOKEN, TURN or SEQUENCE level, each level at most once.

    Raises:
        ValueError: without stats, or with one level twice.

    Example:
        >>> import torch
        >>> from reweigh import SEQUENCE, TOKEN, Batch, RatioStats, judge
        >>> batch = Batch.padded(torch.full((64, 8), -1.0), torch.full((64, 8), -1.0), torch.ones(64, 8))
        >>> judge(RatioStats.of(batch, TOKEN), RatioStats.of(batch, SEQUENCE)).level
        'ok'
    """
    levels: dict[str, Summary] = {}
    for s in stats:
        if not isinstance(s, RatioStats | Summary):  # type: ignore[reportUnnecessaryIsInstance] - of a caller without types
            raise ValueError(
                f"judge: takes RatioStats or Summaries, got {type(s).__name__}\n"
                "hint: judge(*RatioStats.of_levels(batch, (TOKEN, SEQUENCE)))"
            )
        summary = s if isinstance(s, Summary) else summarise(s)
        if summary.level in levels:
            raise ValueError(f"judge: {summary.level} stats were given twice; add them first")
        levels[summary.level] = summary
    if not levels:
        raise ValueError("judge: give the stats of at least one level")
    any_level = next(iter(levels.values()))
    if any_level.n == 0:
        nothing = Finding("fail", "there are no tokens to judge", "is the mask 1 for response tokens?")
        if any_level.dropped:
            nothing = replace(_dropped(any_level)[0], severity="fail")
        return Verdict(nothing.severity, nothing.reason, nothing.hint, (nothing,))
    findings = _dropped(any_level)
    if "token" in levels:
        findings += _tokens(levels["token"])
    if "sequence" in levels:
        findings += _trust(levels["sequence"])
    findings.sort(key=lambda f: -_ORDER[f.severity])
    return Verdict(findings[0].severity, findings[0].reason, findings[0].hint, tuple(findings))


def _dropped(s: Summary) -> list[Finding]:
    if not s.dropped:
        return []
    part = s.dropped / (s.dropped + s.tokens)
    return [
        Finding(
            "warn",
            f"{s.dropped:,} tokens of the mask ({part:.2g} of them) have a log-prob that is not finite: left out",
            "find where they come from: a placeholder for a token that was not sampled, top-p on one side, float16",
        )
    ]


def _tokens(s: Summary) -> list[Finding]:
    """Tell whether log mu can be that of what was sampled from, and how far pi is from it."""
    findings: list[Finding] = []
    mean, k1, k3, gap = s["mean_ratio"], s["kl_k1"], s["kl_k3"], s["mean_abs"].value
    assert mean.value is not None
    assert k1.high is not None
    assert k3.value is not None
    assert gap is not None
    if not s.identity:
        said = f"the mean token ratio is {' '.join(interval(mean)).strip()} and must be 1: {_NOT_SAMPLED}"
        findings.append(Finding("fail", said, _RAISED if mean.value > 1 else _LOWERED))
    elif k1.high < -MIN_IDENTITY_GAP:
        said = f"KL(mu||pi) comes out as {two(k1.value or 0.0)} nats a token, and no KL is negative: {_NOT_SAMPLED}"
        findings.append(Finding("fail", said, _RAISED))
    said = f"KL(mu||pi) is {_nats(max(k3.value, 0))} nats a token (mean |log ratio| {_nats(gap)})"
    if k3.value > KL_LARGE:
        hint = "look for a cause before choosing a correction"
        findings.append(Finding("fail", f"{said}: more than numerics explain", hint))
    elif k3.value > KL_NOTICEABLE:
        findings.append(Finding("warn", f"{said}: noticeable", "correct for it, and watch whether it grows"))
    else:
        findings.append(Finding("ok", f"{said}: small"))
    return findings


def _nats(value: float) -> str:
    return two(value) if value < 100 else f"{value:,.0f}" if value < 1e6 else "over a million"


def _trust(s: Summary) -> list[Finding]:
    if s.refusal:
        tv = s["tv"]
        return [
            Finding(
                "warn",
                f"sequence ratios cannot be trusted as weights: {s.refusal}; sequence TV is {' '.join(interval(tv))}",
                "truncate them or use token or geometric levels, and take no sequence ESS or chi-square at its word",
            )
        ]
    fraction = s["ess_fraction"].value
    assert fraction is not None
    said = f"importance sampling would leave {share(fraction)} of the sequences effective"
    if fraction < ESS_POOR:
        return [Finding("warn", said, "truncate the sequence ratio, or use a finer level")]
    if fraction < ESS_GOOD:
        return [Finding("warn", said, "truncate the sequence ratio")]
    return [Finding("ok", said)]
