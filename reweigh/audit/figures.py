"""The pictures of an audit: how ratios are spread, where the gap is large, and what estimators keep at which length."""

import math
from collections.abc import Sequence

import numpy as np

from reweigh.audit.lengths import length_columns
from reweigh.audit.numerals import SMALLEST, digits, of_log, share, two
from reweigh.audit.pictures import PROBABILITY_BINS, Bars, Histogram, Point, position_start
from reweigh.audit.plot import SMALL, WIDE, Mark, Plot, Rect, Scale, points, ticks
from reweigh.audit.result import Audit, TrialRow
from reweigh.sums import NUM_BINS

CAPS = (2.0, 10.0)  # ratios marked in the histogram of sequences
MAX_OUTSIDE = 0.005  # share of sequences that may lie outside the picture
MIN_TOKENS = 10  # of a point of a profile; fewer say nothing and stretch the axis
_LEAST_RIGHT = 0.15  # of the left side, so that caps have room where nearly all ratios are below 1
_TOP_WEIGHT = 1.5  # of the panels; what is higher is cut, and said


def figures(audit: Audit) -> list[Plot]:
    """The pictures with one panel."""
    found = [sequence_histogram(audit.histograms["sequence"]), token_histogram(audit.histograms["token"])]
    for name, draw in (("position", by_position), ("probability", by_probability)):
        profile = [point for point in audit.profiles[name] if point.tokens >= MIN_TOKENS]
        if len(profile) > 1:
            found.append(draw(profile))
    return found


def sequence_histogram(histogram: Histogram) -> Plot:
    """Log ratio of sequences, with caps marked."""
    n = histogram.n
    bars = histogram.linear(8 if n < 200 else 16 if n < 5000 else 32, MAX_OUTSIDE)
    left_out = f" Beyond the picture: {bars.outside:,}." if bars.outside else ""
    text = f"Histogram of the log ratio of {n:,} sequences, nats. Marked: ratio 1, and caps 2 and 10.{left_out}"
    marks = [(0.0, "ratio 1"), *((math.log(cap), f"cap {cap:g}") for cap in CAPS)]
    return _histogram(
        "Sequence log ratio", text, "log ratio of the sequence, nats", "sequences", bars, marks, log=False
    )


def token_histogram(histogram: Histogram) -> Plot:
    """Log ratio of tokens, counts on a log scale."""
    bars = histogram.linear(32)
    text = f"Histogram of the log ratio of {histogram.n:,} tokens, nats; counts on a logarithmic scale."
    marks = [(0.0, "ratio 1")]
    return _histogram(
        "Token log ratio", text, "log ratio of the token, nats", "tokens (log scale)", bars, marks, log=True
    )


def by_position(profile: Sequence[Point]) -> Plot:
    """Mean |log ratio| by position in the response."""
    first, last = profile[0].bin, profile[-1].bin
    starts = [(i, position_start(i)) for i in range(first, last + 1)]
    labelled = [(i, start) for i, start in starts if start and start & (start - 1) == 0 and start >= 16] or starts
    text = (
        f"Mean |log ratio| from {two(profile[0].mean)} nats in the first tokens to {two(profile[-1].mean)} in the last."
    )
    x_ticks = [(float(i), f"{start:,}") for i, start in labelled]
    return _profile(
        "Gap by position", text, "position in the response, tokens (log scale)", profile, x_ticks, first, last
    )


def by_probability(profile: Sequence[Point]) -> Plot:
    """Mean |log ratio| by probability under mu, from rare tokens on the left to certain ones."""
    flipped = [Point(PROBABILITY_BINS - 1 - p.bin, p.tokens, p.mean, p.low, p.high) for p in reversed(profile)]
    first, last = flipped[0].bin, PROBABILITY_BINS - 1
    text = (
        f"Mean |log ratio| is {two(flipped[-1].mean)} nats for tokens that mu was almost sure of, "
        f"and {two(flipped[0].mean)} for the rarest."
    )
    decades = [(PROBABILITY_BINS - 1 - 4 * k + 0.5, "1" if k == 0 else f"1e-{k}") for k in range(7)]
    x_ticks = [(at, label) for at, label in decades if first - 0.5 <= at]
    return _profile(
        "Gap by token probability", text, "probability of the token under mu", flipped, x_ticks, first, last
    )


def retained(trials: Sequence[TrialRow]) -> list[Plot]:
    """One small panel an estimator: mean weight by response length."""
    return [_panel(trial) for trial in trials]


def _histogram(
    title: str, text: str, x_label: str, y_label: str, bars: Bars, marks: list[tuple[float, str]], *, log: bool
) -> Plot:
    half = len(bars.counts) // 2
    used = np.flatnonzero(bars.counts)
    low = (min(int(used[0]), half) - half - 1) * bars.width
    high = max((max(int(used[-1]), half) - half + 1) * bars.width, _LEAST_RIGHT * -low)
    inside = [(at, label) for at, label in marks if low < at < high]
    top = WIDE.top + 14.0 * (len(inside) - 1)  # labels of marks stand above the bars, each on its own line
    x = Scale(low, high, WIDE.left, WIDE.right)
    most = int(bars.counts.max())
    height_of = _log_height if log else float
    y = Scale(0.0, height_of(most) * 1.05, WIDE.bottom, top)
    rects: list[Rect] = []
    for i in used.tolist():
        count, start = int(bars.counts[i]), (i - half - 0.5) * bars.width
        tip = f"{digits(start, 3)} to {digits(start + bars.width, 3)} nats: {count:,}"
        at, above = x(start), y(height_of(count))
        rects.append(Rect(at, above, round(x(start + bars.width) - at - 1, 1), round(WIDE.bottom - above, 1), tip))
    if log:
        y_ticks = [Mark(y(_log_height(10**k)), f"{10**k:,}") for k in range(math.floor(math.log10(most)) + 1)]
    else:
        y_ticks = [Mark(y(t), f"{t:,.0f}") for t in ticks(0, most) if t == int(t)]
    return Plot(
        title,
        text,
        x_label,
        y_label,
        WIDE,
        tuple(Mark(x(t), f"{t:g}") for t in ticks(low, high, 9)),
        tuple(y_ticks),
        tuple(rects),
        marks=tuple(Mark(x(at), label, 14.0 * i) for i, (at, label) in enumerate(inside)),
    )


def _log_height(count: float) -> float:
    return math.log10(count) + 0.3  # so that a single token can be seen


def _profile(
    title: str,
    text: str,
    x_label: str,
    profile: Sequence[Point],
    x_ticks: list[tuple[float, str]],
    first: int,
    last: int,
) -> Plot:
    x = Scale(first - 0.5, last + 0.5, WIDE.left, WIDE.right)
    # A bin of few tokens may have an interval that dwarfs all else: it is drawn as far as the frame goes.
    high = max(max(p.mean for p in profile) * 1.3, min(max(p.high for p in profile), 2 * max(p.mean for p in profile)))
    y = Scale(0.0, max(high, SMALLEST), WIDE.bottom, WIDE.top)
    upper = [(x(p.bin), y(min(p.high, high))) for p in profile]
    lower = [(x(p.bin), y(p.low)) for p in reversed(profile)]
    dots = [Rect(x(p.bin), y(p.mean), 0, 0, f"{two(p.mean)} nats, {p.tokens:,} tokens") for p in profile]
    return Plot(
        title,
        text + f" The band is the 95% interval; bins of fewer than {MIN_TOKENS} tokens are not drawn.",
        x_label,
        "mean |log ratio|, nats",
        WIDE,
        tuple(Mark(x(at), label) for at, label in x_ticks),
        tuple(Mark(y(t), f"{t:g}") for t in ticks(0.0, y.high)),
        line=points([(d.x, d.y) for d in dots]),
        band=points(upper + lower),
        dots=tuple(dots),
    )


def _panel(trial: TrialRow) -> Plot:
    left, bottom = SMALL.left, SMALL.bottom
    columns = length_columns([trial], NUM_BINS)
    y = Scale(0.0, _TOP_WEIGHT, bottom, SMALL.top)
    step = (SMALL.right - left) / len(columns)
    bars: list[Rect] = []
    for i, column in enumerate(columns):
        x = column.of(trial)
        weight = math.exp(min(x.log_mean_weight, 1.0))
        tip = f"{column.label} tokens: mean weight {of_log(x.log_mean_weight)}, {share(x.kept_share)} kept"
        bars.append(Rect(round(left + i * step, 1), y(weight), round(step - 2, 1), round(bottom - y(weight), 1), tip))
    said = ", ".join(f"{of_log(c.of(trial).log_mean_weight)} at {c.label}" for c in columns)
    ends = (Mark(left, columns[0].label, anchor="start"), Mark(SMALL.right, columns[-1].label, anchor="end"))
    return Plot(
        trial.name,
        f"Mean weight of {trial.name} by response length in tokens: {said}.",
        "",
        "",
        SMALL,
        ends if len(columns) > 1 else ends[:1],
        tuple(Mark(y(t), f"{t:g}") for t in (0.0, 0.5, 1.0, 1.5)),
        tuple(bars),
        level=y(1.0),
    )
