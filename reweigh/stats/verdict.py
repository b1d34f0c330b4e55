"""From sums to one verdict: how bad the mismatch is, why, the one thing to do, and the estimator with what decides."""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from reweigh.stats.numerals import count, interval, share, two
from reweigh.stats.summary import VERDICT_CAP, Summary, summarise
from reweigh.stats.sums import MIN_UNITS, RatioStats

Severity = Literal["ok", "warn", "fail"]
Action = Literal["nothing", "small", "correct", "reduce", "fix"]
SEVERITIES: tuple[Severity, ...] = ("ok", "warn", "fail")
_OF_ACTION: dict[Action, Severity] = {
    "nothing": "ok",
    "small": "ok",
    "correct": "warn",
    "reduce": "fail",
    "fix": "fail",
}

# Where a number turns into a word. Each with who says so; docs/audit.md has the table.
KL_NOTICEABLE = 1e-3  # nats a token: NeMo-RL's guide; Liu and Li (2025) report about this for healthy runs
# Nats a token. A judgement: of runs under stale weights, on seeds that nothing was chosen on, 77% of those that died
# were over it in time, and 29% of those that lived were over it too (docs/experiment.md).
KL_DYING = 0.25
KL_LARGE = 1e-2  # nats a token: the advice of tinker-cookbook and prime-rl for a run worth stopping
ESS_GOOD, ESS_POOR = 0.5, 0.3  # verl's guide to its rollout correction
# Mean weight under a cap of 2. In a log-normal ratio 0.87 is an effective share of a half, verl's "good". From 0.7 on
# sequences serve: in runs that staleness destroys, and that sequence ratios keep alive, it is 0.8 to 0.9, and under 0.6
# token ratios were nearer to the gradient in random worlds (docs/audit.md).
KEPT_GOOD, KEPT_LEAST = 0.87, 0.7
_NEARLY_ALL = 0.9999  # effective: more digits say nothing
_ALIKE = 0.01  # of a gradient: what both miss alike, as they do in responses of one token
NOTHING_TV, NOTHING_ESS = 0.05, 0.99  # of sequences: a weight then changes nothing that a step can show

SEQUENCE_CAP, TOKEN_CAP = f"seq_tis({VERDICT_CAP:g})", f"token_tis({VERDICT_CAP:g})"
NO_TOKENS = "there are no tokens to judge"
FIX_FIRST = "fix that first, no estimator mends it"
_NOT_SAMPLED = "the logged log-probs are not of what was sampled"
_RAISED = "does the engine log before temperature (vLLM: logprobs_mode=processed_logprobs)? are tokens shifted by one?"
_SWAPPED = "are log_pi and log_mu swapped? the log ratios are as if log_pi were of what sampled"
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
class Cause:
    """A cause of the gap, as far as a verdict needs to know it.

    Attributes:
        title: in a few plain words.
        remedy: what to do about it, or what would decide if it is not sure; empty if nothing is known.
        kind: "wrong": the log-probs are not of what was sampled; "bug": they are, and no weight is a remedy; "policy":
            the sampler is another policy, and weights are for that; "benign": nothing need be done about it.
        sure: whether it is named, or only suspected.
        stale: whether it is that the sampler is some updates behind, or that comes first of what it may be: sequence
            ratios are for that, however large the gap is.
    """

    title: str
    remedy: str
    kind: Literal["wrong", "bug", "policy", "benign"]
    sure: bool = True
    stale: bool = False


@dataclass(frozen=True)
class Option:
    """An estimator as the verdict sees it.

    Attributes:
        name: as one would write it.
        mean_weight: over all units; what a cap cuts off is missing from 1.
        effective: share of the units that the weights leave effective.
        missed: share of a gradient that it misses at worst, over all rewards; None if that is not known.
    """

    name: str
    mean_weight: float
    effective: float
    missed: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON."""
        return vars(self) | {}

    @property
    def line(self) -> str:
        """`mean weight 0.99, 93% effective`."""
        return f"mean weight {two(self.mean_weight)}, {share(self.effective)} effective"


@dataclass(frozen=True)
class Gap:
    """The numbers that a verdict follows from, measured or of a model.

    Attributes:
        kl: KL(mu||pi) of a token, nats; None if tokens were not measured.
        tv: total variation of sequences; None if they were not measured.
        effective: share of the sequences that importance sampling leaves effective, in this sample.
        refusal: why that share is no word on others; empty if it is one.
        sequence: sequences capped at 2; None if they were not measured.
        token: tokens capped at 2; None if they were not measured.
        few: how many sequences there are, if they are too few to tell; 0 otherwise.
        words: the numbers in a sentence, if they are not of a sample.
    """

    kl: float | None
    tv: float | None
    effective: float | None
    refusal: str
    sequence: Option | None
    token: Option | None
    few: int = 0
    words: str = ""


@dataclass(frozen=True)
class Verdict:
    """One level, one reason and one thing to do; every command prints it, and nothing else decides.

    Attributes:
        level: "ok", "warn" or "fail": fail means that no correction helps before something is changed, or that there is
            nothing to judge; warn that the correction matters.
        action: "nothing" to do; "small": a guard is enough; "correct" it; "reduce" it, as no weight makes up for it;
            "fix" what makes the log-probs wrong.
        reason: one sentence with its numbers.
        hint: what to do; empty if nothing.
        use: the estimator to use, as one would write it; empty if none is needed or none is any good.
        choice: its numbers; None without one.
        runner_up: what comes next, and its numbers.
        findings: all that was noticed, worst first.
    """

    level: Severity
    action: Action
    reason: str
    hint: str = ""
    use: str = ""
    choice: Option | None = None
    runner_up: Option | None = None
    findings: tuple[Finding, ...] = field(default=())

    def __repr__(self) -> str:
        """Write it in a line; `findings`, `choice` and the like are its own to ask for."""
        return f"Verdict({self.level}: {self.sentence})"

    def _repr_html_(self) -> str:
        """Write it for a notebook."""
        hint = f"<br>{html.escape(self.hint)}" if self.hint else ""
        return f"<b>{self.level}</b> {html.escape(self.reason)}{hint}"

    def __str__(self) -> str:
        """Write it for a terminal or a log line."""
        return f"{self.level}: {self.reason}" + (f"\nhint: {self.hint}" if self.hint else "")

    @property
    def sentence(self) -> str:
        """Put reason and what to do in a line."""
        return "; ".join(x for x in (self.reason, self.hint) if x)

    @property
    def order(self) -> str:
        """Put what to do in a few words, without its reasons; empty if there is nothing to do."""
        if self.action == "fix":
            return FIX_FIRST if self.findings and self.findings[0].reason != NO_TOKENS else ""
        words = {
            "nothing": "",
            "small": f"a guard is enough: {self.use}",
            "correct": f"use {self.use}",
            "reduce": f"reduce it; until then use {self.use}",
        }
        return words[self.action] if self.use else ""

    @property
    def deciding(self) -> str:
        """Say why this estimator and not the next, with the number that decides; empty without one."""
        return "" if self.choice is None else _deciding(self.choice, self.runner_up)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON."""
        return {
            "level": self.level,
            "action": self.action,
            "reason": self.reason,
            "hint": self.hint,
            "use": self.use or None,
            "deciding": self.deciding or None,
            "choice": None if self.choice is None else self.choice.to_dict(),
            "runner_up": None if self.runner_up is None else self.runner_up.to_dict(),
            "findings": [vars(one) | {} for one in self.findings],
        }


def judge(*stats: RatioStats | Summary, cause: Cause | None = None, positive: int = 0) -> Verdict:
    """Verdict on stats of one or more levels of the same tokens; the one host sync, once a step.

    Args:
        stats: `RatioStats` (or their `Summary`) at TOKEN, TURN or SEQUENCE level, each level at most once.
        cause: what a doctor says of the same tokens; None if none was asked, or it has nothing to say.
        positive: tokens that were left out because a log-prob is over 0.

    Raises:
        ValueError: without stats, or with one level twice.

    Example:
        >>> import torch
        >>> from reweigh import SEQUENCE, TOKEN, Batch, RatioStats, judge
        >>> batch = Batch.padded(torch.full((64, 8), -1.0), torch.full((64, 8), -1.0), torch.ones(64, 8))
        >>> judge(RatioStats.of(batch, TOKEN), RatioStats.of(batch, SEQUENCE)).action
        'nothing'
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
    left_out = [*_dropped(any_level), *_positive(positive, any_level.tokens)]
    if any_level.n == 0:
        nothing = Finding("fail", NO_TOKENS, "is the mask 1 for response tokens?")
        if left_out:
            nothing = replace(left_out[0], severity="fail")
        return Verdict(nothing.severity, "fix", nothing.reason, nothing.hint, findings=(nothing,))
    return advise(gap_of(levels.get("token"), levels.get("sequence")), wrong_of(levels.values()), cause, left_out)


def gap_of(token: Summary | None, sequence: Summary | None) -> Gap:
    """Take the numbers of a verdict from summaries, of which one may be missing."""
    kl = None
    option = None
    if token is not None:
        k1, k3 = token["kl_k1"].sample or 0.0, token["kl_k3"].sample or 0.0
        # Where the mean ratio drifts, so does k3, which it is part of.
        kl = max(0.0, k1 if token["mean_ratio"].value is None and k3 < k1 / 2 else k3)
        option = _option(TOKEN_CAP, token)
    if sequence is None:
        return Gap(kl, None, None, "", None, option)
    if option is not None and token is not None:
        length = token.n / max(1, sequence.n)
        missed = 2 * (sequence["hybrid"].sample or 0.0) / length + 1 - option.mean_weight
        option = replace(option, missed=min(1.0, max(0.0, missed)))
    few = sequence.n < MIN_UNITS  # then its own figure is all there is to go by
    return Gap(
        kl,
        sequence["tv"].value,
        sequence["ess_fraction"].sample,
        "" if few else sequence.refusal,
        replace(_option(SEQUENCE_CAP, sequence), missed=min(1.0, max(0.0, 1 - (sequence["kept_2"].sample or 0.0)))),
        option,
        sequence.n if few else 0,
    )


def _option(name: str, s: Summary) -> Option:
    return Option(name, s["kept_2"].sample or 0.0, s["effective_2"].sample or 0.0)


def wrong_of(levels: Iterable[Summary]) -> Finding | None:
    """Say which mean ratio cannot be 1, if one cannot: then the log-probs are not of what was sampled."""
    for s in levels:
        if not s.identity:
            mean = s["mean_ratio"]
            return Finding(
                "fail",
                f"the mean {s.level} ratio is {' '.join(interval(mean)).strip()} and must be 1: {_NOT_SAMPLED}",
                _SWAPPED if _are_swapped(s) else _RAISED if (mean.value or 0.0) > 1 else _LOWERED,
            )
    return None


def _are_swapped(s: Summary) -> bool:
    """Tell whether log ratios are as if pi had sampled: their mean is then plus half their variance, and not minus."""
    k1, sd = s["kl_k1"], s["sd"].sample
    if k1.low is None or k1.high is None or sd is None:
        return False
    # twice the interval, as 1 in 20 would miss the interval itself
    return k1.high < 0 and abs((k1.low + k1.high) / 2 + sd**2 / 2) <= k1.high - k1.low


def options(gap: Gap, stale: bool = False) -> tuple[Option, Option | None] | None:
    """Choose an estimator for a gap, and the one that comes next; None if neither level was measured.

    Sequence ratios where a cap of 2 leaves enough of them: they alone correct which states and returns are seen. Token
    ratios where it does not, or where they miss less even so, as with responses of one token that differs. If the
    sampler is some updates behind, sequence ratios in any case: a gap that token ratios let stand grows by itself
    (docs/experiment.md).
    """
    sequence, token = gap.sequence, gap.token
    if sequence is None or token is None:
        only = sequence or token
        return None if only is None else (only, None)
    return (sequence, token) if stale or _serves(sequence, token) else (token, sequence)


def _serves(sequence: Option, token: Option) -> bool:
    """Whether sequence ratios capped at 2 leave enough, and miss no more than token ratios do."""
    alike = token.missed is None or sequence.missed is None or sequence.missed <= token.missed + _ALIKE
    return sequence.mean_weight >= KEPT_LEAST and alike


def _deciding(choice: Option, other: Option | None) -> str:
    if other is None:
        return f"{choice.name}: {choice.line}"
    if choice.name == SEQUENCE_CAP and not _serves(choice, other):
        return f"{choice.line}; {other.name} does not correct which states a stale sampler visits, and runs died of it"
    if choice.missed is not None and other.missed is not None and choice.missed < other.missed:
        versus = f"at worst it misses {share(choice.missed)} of a gradient, {other.name} {share(other.missed)}"
        return f"{choice.line}; {versus}"
    return f"{choice.line}; {other.name} would leave {two(other.mean_weight)} and {share(other.effective)}"


def advise(
    gap: Gap, wrong: Finding | None = None, cause: Cause | None = None, left_out: Sequence[Finding] = ()
) -> Verdict:
    """Decide what to do about a gap. As it grows, with all else equal, it is nothing, small, to correct, to reduce.

    Args:
        gap: its numbers.
        wrong: why the log-probs are not of what was sampled, if the sums say so.
        cause: what a doctor says.
        left_out: tokens that were not judged.
    """
    found = list(left_out)
    named = cause if cause is not None and cause.sure and cause.kind in ("wrong", "bug") else None
    if wrong is not None or (named is not None and named.kind == "wrong"):
        reason = wrong.reason if wrong is not None else f"{_NOT_SAMPLED}; likely cause: {named.title if named else ''}"
        known = "" if named is None or named.kind != "wrong" else named.remedy
        todo = known or ("" if wrong is None else wrong.hint)
        hint = f"{FIX_FIRST}{': ' + _small(todo) if todo else ''}"
        found = [Finding("fail", reason, hint), *_size(gap), *found]
        return Verdict("fail", "fix", reason, hint, findings=_worst_first(found))
    action = _action(gap)
    if named is not None and action != "nothing":
        reason = f"likely cause: {named.title}; {_numbers(gap)}"
        hint = f"{FIX_FIRST}{': ' + _small(named.remedy) if named.remedy else ''}"
        level: Severity = "fail" if action == "reduce" else "warn"
        found = [Finding(level, reason, hint), *found]
        return Verdict(level, "fix", reason, hint, findings=_worst_first(found))
    best = None if action == "nothing" else options(gap, cause is not None and cause.stale)
    choice, other = (None, None) if best is None else best
    reason, hint = _said(gap, action, choice, other, cause)
    first = Finding(_OF_ACTION[action], reason, hint)
    findings = _worst_first([first, *found])
    level = findings[0].severity
    if findings[0] is not first:  # tokens left out of a gap that is no trouble by itself
        reason, hint = f"{findings[0].reason}; {reason}", findings[0].hint
    return Verdict(level, action, reason, hint, "" if choice is None else choice.name, choice, other, findings)


def _action(gap: Gap) -> Action:
    """Name the step that a gap is on, by numbers that only fall or only rise as it grows."""
    kl = 0.0 if gap.kl is None else gap.kl
    kept = None if gap.sequence is None else gap.sequence.mean_weight
    if kept is None:  # tokens alone
        return "small" if kl <= KL_NOTICEABLE else "correct" if kl <= KL_LARGE else "reduce"
    effective = 0.0 if gap.effective is None else gap.effective
    even = effective >= NOTHING_ESS and (
        not gap.refusal or effective > _NEARLY_ALL
    )  # no tail of ratios next to 1 is heavy
    if kl <= KL_NOTICEABLE and even and (gap.tv or 0.0) <= NOTHING_TV:
        return "nothing"
    if gap.kl is not None and kl <= KL_NOTICEABLE:
        return "small"
    if kl <= KL_LARGE:
        return "small" if kept >= KEPT_GOOD else "correct"
    return "correct" if kept >= KEPT_LEAST and kl <= KL_DYING else "reduce"


def _said(
    gap: Gap, action: Action, choice: Option | None, other: Option | None, cause: Cause | None
) -> tuple[str, str]:
    """Word the reason and the one thing to do."""
    numbers, best = _numbers(gap), "" if choice is None else f"{choice.name} ({_deciding(choice, other)})"
    if action == "nothing":
        return f"nothing to do: {numbers}", ""
    if action == "small":
        return f"small: {numbers}", f"a guard is enough: {best}"
    if action == "correct":
        look = ""
        if gap.kl is not None and gap.kl > KL_LARGE and (cause is None or not cause.sure):
            look = ", and look for the cause: a KL over 0.01 is more than rounding explains"
        return f"worth correcting: {numbers}", f"use {best}{look}"
    weight = None if gap.sequence is None else gap.sequence.mean_weight
    kept = (
        "" if weight is None or weight >= KEPT_LEAST else f"; sequences capped at 2 keep a mean weight of {two(weight)}"
    )
    if cause is None:
        first = "find the cause first"
    elif not cause.sure:
        first = f"find the cause first, perhaps that {_small(cause.title)}" if cause.title else "find the cause first"
    else:
        first = f"reduce it first{': ' + _small(cause.remedy) if cause.remedy else ''}"
    return f"too large to correct: {numbers}{kept}", f"{first}; until then use {best}"


def _numbers(gap: Gap) -> str:
    """`KL(mu||pi) is 0.048 nats a token, 12% of the responses effective`."""
    if gap.words:
        return gap.words
    said = [] if gap.kl is None else [f"KL(mu||pi) is {_nats(gap.kl)} nats a token"]
    if gap.effective is not None:
        sample = " here" if gap.refusal else ""
        most = share(gap.effective) if gap.effective <= _NEARLY_ALL or gap.effective == 1 else f"over {_NEARLY_ALL:.2%}"
        whole = f"the {count(gap.few, 'response')} read, which are few," if gap.few else "the responses"
        said.append(f"{most} of {whole} effective{sample}")
    return ", ".join(said)


def _size(gap: Gap) -> list[Finding]:
    """Say how large the gap is, beside a reason that has nothing to do with its size."""
    return [Finding("ok", _numbers(gap))] if gap.kl is not None or gap.effective is not None else []


def _worst_first(found: Sequence[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(found, key=lambda f: -SEVERITIES.index(f.severity)))


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


def _positive(count: int, tokens: int) -> list[Finding]:
    if not count:
        return []
    return [
        Finding(
            "warn",
            f"{count:,} tokens of the mask ({count / (count + tokens):.2g} of them) have a log-prob over 0: left out",
            "compute the log-softmax in float32, and check that these are not logits",
        )
    ]


def _nats(value: float) -> str:
    return two(value) if value < 100 else f"{value:,.0f}" if value < 1e6 else "over a million"


def _small(text: str) -> str:
    """Write it as inside of a sentence; a name such as RoPE keeps its letters."""
    word = text.split(" ", 1)[0]
    return (text[:1].lower() + text[1:] if word[1:].islower() or len(word) == 1 else text).rstrip(".")
