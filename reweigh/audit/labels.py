"""Words for the numbers of a report: which are shown, in what order, and how they are called."""

import math
from collections.abc import Mapping, Sequence

from reweigh.audit.result import Audit
from reweigh.audit.slices import SliceRow
from reweigh.audit.where import Cut
from reweigh.records import RunInfo
from reweigh.stats.intervals import Number
from reweigh.stats.numerals import interval, share, two
from reweigh.stats.summary import Summary

# Name in Summary.numbers, and label.
ROWS: tuple[tuple[str, str], ...] = (
    ("mean_ratio", "mean ratio (must be 1)"),
    ("kl_k3", "KL(mu||pi) by k3, nats"),
    ("kl_k1", "KL(mu||pi) by k1, nats"),
    ("mean_abs", "mean |log ratio|, nats"),
    ("sd", "sd of log ratio, nats"),
    ("tv", "total variation"),
    ("beyond_2x", "ratio outside [1/2, 2]"),
    ("excess_2", "weight lost by a cap of 2"),
    ("renyi2", "log(1 + chi2), nats"),
    ("renyi2_at_least", "log(1 + chi2) at least"),
    ("ess_fraction", "effective share (ESS / n)"),
    ("ess", "ESS of this sample, units"),
    ("largest_share", "weight of largest unit"),
    ("khat", "tail index (khat)"),
    ("prob_gap", "mean |pi - mu|"),
    ("largest_gap", "largest |pi - mu|"),
)
SHARES = ("beyond_2x", "ess_fraction", "largest_share")
HIDDEN = {"token": ("excess_2",)}  # of a token, the share beyond 2x says it better
_LARGE_RATIO = 100.0  # from here on decimals say nothing
PI_MU = "pi: the policy that trains; mu: the one that sampled; ratio: pi/mu; intervals: 95%, by prompt."
MEAN_WEIGHT = "mean weight: over all units, dropped ones at 0; caps and drops take it below 1."
RAW_STAR = "*: refused as a word on the next batch; a figure of this very sample."
BY_WORDS = {
    "step": "training step",
    "env": "environment",
    "length": "response length, tokens",
    "position": "position in the response, tokens",
    "lag": "lag (trainer version - sampling version; a sequence counts at its largest)",
    "turn": "turn, from 0",
    "source": "file",
}
CUT_WORDS: Mapping[Cut, str] = {
    "position": "position in the response",
    "probability": "probability of the token under mu",
    "length": "response length, tokens",
    "turn": "turn",
    "lag": "lag (trainer version - sampling version)",
    "env": "environment",
    "step": "training step",
}


def level_tables(audit: Audit, size: int = 2) -> list[list[Summary]]:
    """Levels that share a table, `size` of them: two fit a page."""
    levels = [audit.levels[name] for name in ("token", "sequence", "turn") if name in audit.levels]
    return [levels[i : i + size] for i in range(0, len(levels), size)]


def level_title(levels: list[Summary]) -> str:
    """Title of a table of levels; the first one needs no more words."""
    return "Size of the gap" if levels[0].level == "token" else f"Size of the gap, by {levels[0].level}"


def count(n: int, word: str) -> str:
    """`1 token`, `1,024 tokens`."""
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def shown(level: Summary, name: str) -> Number | None:
    """The number of that name, if the level has it and a reader wants it."""
    return None if name in HIDDEN.get(level.level, ()) else level.numbers.get(name)


def shown_rows(levels: list[Summary]) -> list[tuple[str, str]]:
    """The rows that at least one of the levels has."""
    return [(name, label) for name, label in ROWS if any(shown(level, name) for level in levels)]


def refusals(levels: list[Summary]) -> list[str]:
    """Why numbers of a level are refused, once each."""
    lines: list[str] = []
    for level in levels:
        if level.refusal:
            lines.append(f"refused at {level.level} level: {level.refusal}")
        for name, label in ROWS:
            number = shown(level, name)
            if number is not None and number.refused not in ("", level.refusal):
                lines.append(f"refused at {level.level} level, {label}: {number.refused}")
    return lines


def slice_refusals(rows: Sequence[SliceRow]) -> list[str]:
    """Why numbers of slices are refused, each reason once."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.sequence is not None and row.sequence.refusal:
            reasons.setdefault(row.sequence.refusal, []).append(row.label)
    whom = {reason: "all" if len(labels) == len(rows) else ", ".join(labels) for reason, labels in reasons.items()}
    return [f"refused for {labels}: {reason}" for reason, labels in whom.items()]


def cells(name: str, number: Number) -> tuple[str, str]:
    """Value and interval of a number as shown; shares in percent."""
    if name not in SHARES or number.value is None:
        return interval(number)
    if number.low is None or number.high is None:
        return share(number.value), ""
    return share(number.value), f"[{share(number.low)}, {share(number.high)}]"


def slice_ratio(token: Summary) -> tuple[str, str]:
    """Mean ratio of a slice and its interval: three decimals, since a gap of 0.001 is what begins to matter."""
    number = token["mean_ratio"]
    value, low, high = number.value, number.low, number.high
    if value is None or low is None or high is None or not math.isfinite(high) or value > _LARGE_RATIO:
        return interval(number)[0], ""
    return f"{value:.3f}", f"[{low:.3f}, {high:.3f}]"


def slice_tv(sequence: Summary) -> tuple[str, str]:
    """Total variation of a slice and its interval, in few columns."""
    number = sequence["tv"]
    return two(number.value or 0.0), f"[{_short(number.low or 0.0)}, {_short(number.high or 0.0)}]"


def counted(audit: Audit) -> str:
    """What was read, in a line."""
    token = audit.levels["token"]
    files = str(audit.files[0].path) if len(audit.files) == 1 else f"{len(audit.files)} files"
    text = f"{files}: {count(token.sequences, 'sequence')}, {count(token.tokens, 'token')}"
    idle = sum(file.rows for file in audit.files) - token.sequences
    return text + (f" ({count(idle, 'row')} without a token that counts)" if idle else "")


def run_line(info: RunInfo) -> str:
    """What is known of the run, in a line; empty if nothing is."""
    who = [
        f"{_versioned(info.engine, info.engine_version)}{_in(info.dtype_mu)} sampled" if info.engine else "",
        f"{_versioned(info.trainer, info.trainer_version)}{_in(info.dtype_pi)} trains" if info.trainer else "",
        f"model {info.model}" if info.model else "",
    ]
    how = [
        f"temperature {info.temperature:g}" if info.temperature is not None else "",
        f"top-p {info.top_p:g}" if info.top_p is not None else "",
        f"top-k {info.top_k}" if info.top_k is not None else "",
        f"min-p {info.min_p:g}" if info.min_p is not None else "",
        f"repetition penalty {info.repetition_penalty:g}" if info.repetition_penalty is not None else "",
        f"{info.logprobs_mode} log-probs" if info.logprobs_mode else "",
    ]
    return "; ".join(", ".join(part for part in parts if part) for parts in (who, how) if any(parts))


def _versioned(name: str | None, version: str | None) -> str:
    return f"{name} {version}" if version else str(name)


def _in(dtype: str | None) -> str:
    return f" ({dtype})" if dtype else ""


def _short(x: float) -> str:
    return "<1e-4" if 0 < x < 1e-4 else two(x)
