"""Words for the numbers of a report: which are shown, in what order, under which name, and what each says of itself."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from reweigh.audit.result import Audit
from reweigh.audit.slices import SliceRow
from reweigh.audit.trial import Outcome, Sign, TrialRow
from reweigh.audit.where import Cut
from reweigh.records import RunInfo
from reweigh.report.tables import Cell
from reweigh.stats.intervals import Number
from reweigh.stats.numerals import count, interval, share, two
from reweigh.stats.summary import Summary
from reweigh.stats.sums import LENGTH_EDGES

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
SHARES = ("beyond_2x", "ess_fraction", "largest_share", "kept_share", "kept_tokens_share", "bounded_share")
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


SIGN_WORDS: Mapping[Sign, str] = {"negative": "A < 0", "none": "A = 0 or none", "positive": "A > 0"}


def shown(level: Summary, name: str) -> Number | None:
    """Look up a number by its name; None if the level has it not, or no reader wants it."""
    return None if name in HIDDEN.get(level.level, ()) else level.numbers.get(name)


def shown_rows(levels: Sequence[Summary]) -> list[tuple[str, str]]:
    """Choose the rows that at least one of the levels has."""
    return [(name, label) for name, label in ROWS if any(shown(level, name) for level in levels)]


def refusals(levels: Sequence[Summary]) -> list[str]:
    """Say why numbers of a level are refused, once each."""
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
    """Say why numbers of slices are refused, each reason once."""
    of = [(row.label, row.sequence.refusal) for row in rows if row.sequence is not None and row.sequence.refusal]
    alike = len(of) == len(rows) and len({reason for _, reason in of}) == 1
    return [f"refused for {'all' if alike else labels}: {reason}" for reason, labels in grouped(of).items()]


def said(name: str, number: Number) -> tuple[str, str]:
    """Word a number and its interval as they are shown wherever it stands; shares in percent."""
    if name not in SHARES or number.value is None:
        return interval(number)
    if number.low is None or number.high is None:
        return share(number.value), ""
    return share(number.value), f"[{share(number.low)}, {share(number.high)}]"


def slice_ratio(token: Summary) -> tuple[str, str]:
    """Word the mean ratio of a slice: three decimals, since a gap of 0.001 is what begins to matter."""
    number = token["mean_ratio"]
    value, low, high = number.value, number.low, number.high
    if value is None or low is None or high is None or not math.isfinite(high) or value > _LARGE_RATIO:
        return interval(number)[0], ""
    return f"{value:.3f}", f"[{low:.3f}, {high:.3f}]"


def slice_tv(sequence: Summary) -> tuple[str, str]:
    """Word the total variation of a slice and its interval, in few columns."""
    number = sequence["tv"]
    ends = ("<1e-4" if 0 < x < 1e-4 else two(x) for x in (number.low or 0.0, number.high or 0.0))
    return two(number.value or 0.0), f"[{', '.join(ends)}]"


def tip(number: Number, n: int, unit: str, text: str, ends: str = "") -> str:
    """Says of a number what a table has no room for: unit, interval, what it was computed from, what it means.

    Args:
        number: as it was measured.
        n: how many units it is of.
        unit: what they are.
        text: the number as it is shown.
        ends: its interval as it is shown, if it is; otherwise it has as many digits as the number's words.
    """
    percent = "%" in text
    if number.value is None:
        sample = None if number.sample is None else text.rstrip("*") if percent else two(number.sample)
        beside = "" if sample is None else f"; {sample} in this sample"
        first = f"refused: {number.refused or 'too few units, or all alike'}{beside}"
    else:
        first = f"{text} {'' if percent else number.unit}".strip()
    low, high, show = number.low, number.high, share if percent else two
    if number.value is None:
        between = ""
    elif low is None or high is None:
        between = "no interval: a fact about these units" if low is high else "a bound at 95%"
    elif math.isfinite(low) and math.isfinite(high):
        between = f"95% interval {ends or f'[{show(low)}, {show(high)}]'}"
    else:
        between = "no interval: fewer than two prompts"
    return "\n".join(x for x in (first, between, f"n = {count(n, unit)}", number.meaning) if x)


def pair(name: str, number: Number, n: int, unit: str) -> tuple[Cell, Cell]:
    """Make cells of a number, with its tip, and of its interval."""
    text, ends = said(name, number)
    return Cell(text, tip(number, n, unit, text, ends)), Cell(ends)


def counted(audit: Audit, brief: bool = False) -> str:
    """Count what was read, in a line.

    Args:
        audit: what was read.
        brief: leave out tokens and sequences, which stand over the numbers.
    """
    token = audit.levels["token"]
    text = str(audit.files[0].path) if len(audit.files) == 1 else f"{len(audit.files)} files"
    if not brief:
        text += f": {count(token.sequences, 'sequence')}, {count(token.tokens, 'token')}"
    idle = sum(file.rows for file in audit.files) - token.sequences
    return text + (f" ({count(idle, 'row')} without a token that counts)" if idle else "")


def run_line(info: RunInfo, brief: bool = False) -> str:
    """Say what is known of the run, in a line; empty if nothing is.

    Args:
        info: what the files say alike.
        brief: leave out what changes nothing: temperature 1, no truncation, no penalty.
    """
    programs = (
        (info.engine, info.engine_version, info.dtype_mu, "sampled"),
        (info.trainer, info.trainer_version, info.dtype_pi, "trains"),
    )
    who = [
        " ".join(x for x in (name, version, f"({dtype})" if dtype else "", did) if x) if name else ""
        for name, version, dtype, did in programs
    ]
    who.append(f"model {info.model}" if info.model else "")
    settings: dict[str, tuple[float | None, float]] = {
        "temperature": (info.temperature, 1),
        "top-p": (info.top_p, 1),
        "top-k": (info.top_k, 0),
        "min-p": (info.min_p, 0),
        "repetition penalty": (info.repetition_penalty, 1),
    }
    how = [f"{name} {x:g}" for name, (x, plain) in settings.items() if x is not None and not (brief and x == plain)]
    if info.logprobs_mode and not (brief and info.logprobs_mode == "processed"):
        how.append(f"{info.logprobs_mode} log-probs")
    return "; ".join(", ".join(part for part in parts if part) for parts in (who, how) if any(parts))


@dataclass(frozen=True)
class LengthColumn:
    """Bins `first` to `last` of response length.

    Attributes:
        first: index of a bin.
        last: index of a bin.
        low: the shortest response in them, tokens.
        high: the longest; None if there is no limit.
        label: for example `16-31`.
    """

    first: int
    last: int
    low: int
    high: int | None
    label: str

    def of(self, trial: TrialRow) -> Outcome:
        """Add up what an estimator did to responses of these lengths."""
        return sum(trial.by_bin[self.first : self.last + 1], Outcome())


def length_columns(trials: Sequence[TrialRow], limit: int) -> list[LengthColumn]:
    """Cover all lengths there are by columns; of more than `limit` bins, the pairs with fewest tokens are merged."""
    tokens = [sum(trial.by_bin[i].tokens for trial in trials) for i in range(len(LENGTH_EDGES) + 1)]
    ranges = [(i, i) for i, n in enumerate(tokens) if n]
    while len(ranges) > limit:
        sizes = [sum(tokens[a : b + 1]) for (a, _), (_, b) in pairwise(ranges)]
        i = sizes.index(min(sizes))
        ranges[i : i + 2] = [(ranges[i][0], ranges[i + 1][1])]
    columns: list[LengthColumn] = []
    for first, last in ranges:
        low = LENGTH_EDGES[first - 1] if first else 1
        high = LENGTH_EDGES[last] - 1 if last < len(LENGTH_EDGES) else None
        columns.append(LengthColumn(first, last, low, high, f"{low:,}+" if high is None else f"{low:,}-{high:,}"))
    return columns


def grouped(reasons: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Group names by what is said of them, each once: of `(name, reason)` the names of a reason, joined."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons:
        names.setdefault(reason, []).append(name)
    return {reason: ", ".join(some) for reason, some in names.items()}
