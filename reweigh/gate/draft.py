"""Write a first policy from a good run: limits with the headroom that the run's own intervals ask for."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from reweigh.gate.numbers import KINDS, LevelName
from reweigh.gate.run import Cut, Run
from reweigh.number import Number

# A run of the same size from the same engine has an estimate within sqrt(2) half-widths of this one, 19 times of 20,
# and then half a width more to the end of its own interval: that end is what the limit must let pass.
HEADROOM = 1 + math.sqrt(2)  # half-widths
_EDGE = 0.5  # share of a bounded number's range; a limit beyond it says less than nothing of a gap


@dataclass(frozen=True)
class _Line:
    """One number that a first policy bounds: why, and what others say of it."""

    number: str
    level: LevelName
    reason: str
    others: str
    severity: str = "fail"


_LINES = (
    _Line(
        "mean_ratio",
        "token",
        "pi/mu must be 1 on average: beyond this the log-probs are not of what was sampled",
        "it is 1 by definition, whatever the gap; see docs/audit.md",
    ),
    _Line(
        "kl_k3",
        "token",
        "the gap between sampler and trainer has grown",
        "NeMo-RL's guide wants less than 0.001 nats a token; tinker-cookbook and prime-rl less than 0.01",
    ),
    _Line(
        "mean_abs",
        "token",
        "the typical token is further off than it was",
        "no figure is in common use; a few extreme tokens move it less than they move the KL",
    ),
    _Line(
        "prob_gap",
        "token",
        "probabilities differ by more than they did",
        "verl's FAQ: below 0.005 is fine, above 0.01 something is wrong with the engine",
    ),
    _Line(
        "beyond_2x",
        "token",
        "more tokens are off by a factor of 2",
        "AReaL counts the same tokens, |log ratio| over log 2, as extreme",
    ),
    _Line(
        "mean_abs",
        "sequence",
        "whole responses are further off than they were",
        "no figure is in common use; it grows with the length of responses",
        "warn",
    ),
    _Line(
        "ess_fraction",
        "sequence",
        "importance sampling would leave fewer sequences effective",
        "verl's guide: over 0.5 is good, under 0.3 is not",
        "warn",
    ),
)
_HISTORICAL = ("kl_k3", "mean_abs")
# Two runs: their estimates differ by sqrt(2) half-widths 19 times of 20, and so wide is the interval of the difference.
HEADROOM_OF_TWO = 2 * math.sqrt(2)  # half-widths, of the logarithm


def draft(run: Run, *, historical: bool) -> str:
    """A commented policy that a run as good as this one passes.

    Args:
        run: a good run.
        historical: whether bounds against a baseline are live; commented out otherwise.

    Raises:
        ValueError: no bound can be drawn from so little.
    """
    bounds = [text for line in _LINES if (text := _bound(line, run))]
    if not any(text.startswith("  - ") or "\n  - " in text for text in bounds):
        raise ValueError(
            f"{run.source}: too little to draw bounds from: no number has an interval that leaves headroom\n"
            "hint: give more sequences, of two prompts at least."
        )
    sequences = run.find("token", None, None)
    size = 0 if sequences is None else sequences.sequences
    head = [
        "# A policy for `reweigh gate`. Every limit is what the run below measured, plus the headroom that its own",
        f"# intervals ask for: {HEADROOM:.2f} half-widths, so that a run of the same size from the same engine passes.",
        "# With more sequences the intervals are narrower and the limits can be tighter.",
        f"# run: {_comment(run.source)}, {size:,} sequences; the audit says {_comment(run.verdict)}",
        "version: 1",
        "undecided: warn # pass, warn or fail: when the interval straddles the limit",
        "refused: fail   # warn or fail: when the data cannot tell the number",
        "bounds:",
    ]
    return "\n".join([*head, *bounds, *_against(run, historical)]) + "\n"


def _bound(line: _Line, run: Run) -> str:
    cut = run.find(line.level, None, None)
    number = None if cut is None else cut.numbers.get(line.number)
    if cut is None or number is None:
        return ""
    measured = _measured(line, number, cut)
    limits = list(_limits(line.number, number))
    if not limits:
        why = number.refused or "its interval leaves no room: more sequences would"
        return f"  # no bound on {line.level} {line.number}: {_comment(why)}\n"
    return "\n".join(
        [
            f"  - number: {line.number} # {measured}",
            f"    level: {line.level}",
            *(f"    {rule}: {limit:g}" for rule, limit in limits),
            f"    severity: {line.severity}",
            f'    reason: "{line.reason}"',
            f"    # what others use: {line.others}",
            "",
        ]
    )


def _limits(name: str, number: Number) -> Iterator[tuple[str, float]]:
    kind, value, low, high = KINDS[name], number.value, number.low, number.high
    if value is None or low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return
    if kind.worse == "either":  # around 1, the one value that it may have
        room = abs(value - 1) + HEADROOM * max(high - value, value - low)
        if 0 < room < _EDGE:
            yield "at_least", _rounded(1 - room, up=False)
            yield "at_most", _rounded(1 + room, up=True)
    elif kind.worse == "more":
        limit = _rounded(value + HEADROOM * (high - value), up=True)
        if limit < (kind.high * _EDGE if math.isfinite(kind.high) else math.inf):
            yield "at_most", limit
    else:
        limit = _rounded(value - HEADROOM * (value - low), up=False)
        if limit > kind.low:
            yield "at_least", limit


def _against(run: Run, historical: bool) -> list[str]:
    cut = run.find("token", None, None)
    lines = [
        "  # Against a baseline: `reweigh gate RECORDS --policy FILE --baseline BASE.json`. Both intervals count.",
        f"  # The factor is e to {HEADROOM_OF_TWO:.2f} half-widths of this run's logarithm: two runs of its size pass.",
    ]
    for name in _HISTORICAL:
        number = None if cut is None else cut.numbers.get(name)
        factor = None if number is None else _factor(number)
        if factor is None:
            lines.append(f"  # no factor for {name}: its interval reaches 0: more sequences would help")
            continue
        entry = [
            f"  - number: {name}",
            "    level: token",
            f"    no_worse_than_baseline: {{factor: {factor:g}}}",
            '    reason: "the gap has grown since the baseline"',
        ]
        lines += entry if historical else [f"  #{line[1:]}" for line in entry]
    return lines


def _factor(number: Number) -> float | None:
    value, low, high = number.value, number.low, number.high
    if value is None or low is None or high is None or low <= 0 or not math.isfinite(high):
        return None
    half = max(math.log(high / value), math.log(value / low))
    return math.ceil(100 * max(1.01, math.exp(HEADROOM_OF_TWO * half))) / 100


def _measured(line: _Line, number: Number, cut: Cut) -> str:
    if number.value is None or number.low is None or number.high is None:
        return "refused"
    return f"this run: {number.value:.3g} [{number.low:.3g}, {number.high:.3g}], {cut.n:,} {line.level}s"


def _rounded(x: float, *, up: bool) -> float:
    """To two significant digits of the distance from 1 (near 1) or from 0, away from what was measured."""
    base = 1.0 if 0.5 < x < 2 else 0.0
    rest = x - base
    if rest == 0:
        return x
    step = 10.0 ** (math.floor(math.log10(abs(rest))) - 1)
    count = rest / step
    return round(base + step * (math.ceil(count - 1e-9) if up else math.floor(count + 1e-9)), 12)


def _comment(words: str) -> str:
    return " ".join(words.split())
