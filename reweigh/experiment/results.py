"""What came out of runs: who collapsed, which number moved first, what the advice was worth, what the checks said."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import mean, median, stdev

from reweigh.experiment.train import EVERY, MISMATCH, NAIVE, Run, Setting
from reweigh.stats.intervals import bernoulli_kl, t_quantile
from reweigh.stats.verdict import KL_DYING

HALF = 0.5  # of the peak: a run that ends there or lower has collapsed
LAST = 4  # measurements whose mean a run ends at
ALIKE = 0.02  # of reward: methods whose ends are nearer than that are as good as each other
FIXED = "seq_tis(2)"
FIELD = (NAIVE, "token_tis(2)", "ppo_clip", FIXED, "geo_rs(0.95, 1.05) * token_tis(2)")
"""Methods that the advice is compared over: the same in every setting, however many more were run in one of them."""
ALONE = "the verdict without a doctor"

REPORTED = 100  # seeds from here on are reported; those below it choose

Interval = tuple[float, float, float]
"""A figure and its 95% interval; an end that cannot be known is NaN."""


@dataclass(frozen=True)
class Outcome:
    """How a run went: its best mean of three measurements in a row, the mean of its last four, and what that means.

    Attributes:
        peak: of pi's own reward.
        final: at the end; of a run that was over before, its last measurement counts for what was left.
        collapsed: whether it ended at half of its peak or less.
        halved: step at which pi's reward was first found under half of the most it had been; None if never.
        noticed: the same of the rollouts' reward, median of three steps, which is what a trainer logs.
    """

    peak: float
    final: float
    collapsed: bool
    halved: int | None
    noticed: int | None

    @classmethod
    def of(cls, run: Run) -> "Outcome":
        """Judge a run."""
        whole = math.ceil(run.setting.steps / EVERY) + 1
        evals = [*run.evals, *[run.evals[-1]] * (whole - len(run.evals))]
        thirds = [mean(evals[i : i + 3]) for i in range(max(1, len(evals) - 2))]
        peak, final = max(thirds), mean(evals[-LAST:])
        halved, noticed = _under_half(evals), _under_half(smoothed(run.series["reward"]))
        halved = None if halved is None else min(halved * EVERY, run.setting.steps)
        return cls(peak, final, final <= HALF * peak, halved, noticed)


def _under_half(values: Sequence[float]) -> int | None:
    """Index of the first value under half of the largest before it."""
    most = 0.0
    for i, value in enumerate(values):
        most = max(most, value)
        if value < most / 2:
            return i
    return None


def smoothed(values: Sequence[float]) -> list[float]:
    """Median of each value and the two before it: what one odd batch does not move."""
    return [median(values[max(0, i - 2) : i + 1]) for i in range(len(values))]


@dataclass(frozen=True)
class Row:
    """A method in a setting, over seeds."""

    setting: Setting
    method: str
    outcomes: tuple[Outcome, ...]

    @property
    def collapsed(self) -> int:
        """Count the seeds that collapsed."""
        return sum(one.collapsed for one in self.outcomes)

    @property
    def share(self) -> Interval:
        """Share of seeds that collapse."""
        return share_of(self.collapsed, len(self.outcomes))

    @property
    def final(self) -> Interval:
        """Mean reward at the end, with an interval of what a reward can be."""
        value, low, high = mean_of([one.final for one in self.outcomes])
        return value, max(0.0, low) if low == low else low, min(1.0, high) if high == high else high

    @property
    def peak(self) -> float:
        """Mean of the peaks."""
        return mean(one.peak for one in self.outcomes)


def share_of(count: int, n: int) -> Interval:
    """Give a share and its Chernoff interval."""
    if not n:
        return math.nan, math.nan, math.nan
    low, high = bernoulli_kl(count / n, n)
    return count / n, low, high


def mean_of(values: Sequence[float]) -> Interval:
    """Give a mean and its t interval; without one under two values."""
    if len(values) < 2:
        return (values[0] if values else math.nan), math.nan, math.nan
    half = t_quantile(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return mean(values), mean(values) - half, mean(values) + half


def rows(runs: Iterable[Run]) -> list[Row]:
    """Put the seeds of each setting and method together, in the order in which they come."""
    found: dict[tuple[Setting, str], list[Outcome]] = {}
    for run in runs:
        found.setdefault((run.setting, run.method), []).append(Outcome.of(run))
    return [Row(setting, method, tuple(outcomes)) for (setting, method), outcomes in found.items()]


@dataclass(frozen=True)
class AtBest:
    """A method at the learning rate that other seeds chose for it.

    Attributes:
        method: its name.
        rate: at which it ended highest, over the seeds that choose.
        chosen_by: how many these are.
        row: what came of it there, over the seeds that are reported.
        usual: the same at the rate of the setting.
    """

    method: str
    rate: float
    chosen_by: int
    row: Row
    usual: Row


def at_best(runs: Sequence[Run], setting: Setting) -> list[AtBest]:
    """Give each method the rate that is best for it; one that was not run there on seeds of both kinds is left out.

    Args:
        runs: of this setting and of others that differ from it in the rate alone.
        setting: with the usual rate.
    """
    alike = [run for run in runs if replace(run.setting, rate=setting.rate) == setting]
    choosing, told = (rows(x for x in alike if (x.seed < REPORTED) is young) for young in (True, False))
    found: list[AtBest] = []
    for method in dict.fromkeys(row.method for row in choosing):
        tried = [row for row in choosing if row.method == method]
        best = max(tried, key=lambda row: row.final[0])
        there = [row for row in told if row.method == method and row.setting == best.setting]
        usual = [row for row in told if row.method == method and row.setting == setting]
        if len(tried) > 1 and there and usual:
            found.append(AtBest(method, best.setting.rate, len(best.outcomes), there[0], usual[0]))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The advice


@dataclass(frozen=True)
class Advised:
    """What the verdict says of the first records of an uncorrected run, and how that would have ended.

    Attributes:
        setting: of the run.
        seed: of the run.
        action: of the verdict with what a doctor finds, as the commands print it.
        use: the method that it advises: `naive()` where there is nothing to do.
        alone: the method that the verdict advises on the two levels' sums alone, as a hook has them; empty if none.
        ends: mean reward at the end of each method that was run in the setting, over its seeds.
    """

    setting: Setting
    seed: int
    action: str
    use: str
    alone: str
    ends: Mapping[str, float]

    def among_best(self, use: str, most: int = 2) -> bool:
        """Tell whether a method is among the best, or ends as well as the last of them."""
        falling = sorted(self.ends.values(), reverse=True)
        return self.ends[use] >= falling[min(most, len(falling)) - 1] - ALIKE

    def lost(self, use: str) -> float:
        """Give what a method ends under the best."""
        return max(self.ends.values()) - self.ends[use]

    @property
    def at_random(self) -> tuple[float, float]:
        """Chance of a method picked at random to be among the best two, and what it loses on average."""
        n = len(self.ends)
        return sum(self.among_best(one) for one in self.ends) / n, mean(self.lost(one) for one in self.ends)


def advised(runs: Sequence[Run], window: int = 1, field: Sequence[str] = FIELD) -> list[Advised]:
    """Ask the verdict in each uncorrected run, on the records of the first steps with a mismatch alone.

    Args:
        runs: of all settings; a setting with a mismatch counts where all of the field were run.
        window: which five steps with a mismatch to ask in: 1 for the first.
        field: methods to compare.
    """
    ends: dict[Setting, dict[str, float]] = {}
    for row in rows(runs):
        if row.method in field:
            ends.setdefault(row.setting, {})[row.method] = row.final[0]
    found: list[Advised] = []
    for run in runs:
        if run.method != NAIVE or len(ends[run.setting]) < len(field):
            continue
        gap = [i for i, k3 in enumerate(run.windows["k3"]) if k3 > MISMATCH]
        if gap:
            at = gap[min(window, len(gap)) - 1]
            action = run.windows.get("told_action", {at: None})[at]
            if action is None:  # of a run in which no doctor was asked
                continue
            use = run.windows["told"][at] or NAIVE
            alone = "" if run.windows["action"][at] == "fix" else run.windows["use"][at] or NAIVE
            found.append(Advised(run.setting, run.seed, action, use, alone, ends[run.setting]))
    return found


@dataclass(frozen=True)
class Worth:
    """What a way to choose is worth: how often among the best two, and the reward that it loses to the best.

    Intervals are over settings, as seeds of one setting share the ends that they are judged by.
    """

    name: str
    best_two: Interval
    lost: Interval


def worth(found: Sequence[Advised]) -> tuple[list[Worth], Interval]:
    """Compare the advice with each fixed choice and with chance; and the advice's loss less that of `seq_tis(2)`.

    A verdict that says to fix the log-probs first names no method and takes no part.
    """
    found = [one for one in found if one.action != "fix"]
    fixed = list(dict.fromkeys(name for one in found for name in FIELD if name in one.ends))
    by_setting: dict[Setting, list[Advised]] = {}
    for one in found:
        by_setting.setdefault(one.setting, []).append(one)

    def over(value: Callable[[Advised], float]) -> Interval:
        return mean_of([mean(value(one) for one in group) for group in by_setting.values()])

    ways = [
        Worth("the advice", over(lambda a: a.among_best(a.use)), over(lambda a: a.lost(a.use))),
        Worth(ALONE, over(lambda a: a.among_best(a.alone or a.use)), over(lambda a: a.lost(a.alone or a.use))),
    ]
    for name in fixed:
        ways.append(Worth(f"always {name}", over(lambda a, n=name: a.among_best(n)), over(lambda a, n=name: a.lost(n))))
    ways.append(Worth("at random", over(lambda a: a.at_random[0]), over(lambda a: a.at_random[1])))
    return ways, over(lambda a: a.lost(a.use) - a.lost(FIXED))


# ---------------------------------------------------------------------------------------------------------------------
# Gradients


@dataclass(frozen=True)
class Direction:
    """A method's gradient at a step of runs of one method: see `gradients.NUMBERS`; figures are means over seeds."""

    run: str
    step: int
    method: str
    numbers: Mapping[str, Interval]


def directions(runs: Iterable[Run]) -> list[Direction]:
    """Put together what was measured of gradients, in order of run, step and method."""
    found: dict[tuple[str, int, str], list[Mapping[str, Sequence[float]]]] = {}
    for run in runs:
        for at in run.gradients:
            for method, numbers in at["of"].items():
                if numbers is not None:
                    found.setdefault((run.method, at["step"], method), []).append(numbers)
    return [
        Direction(run, step, method, {name: _pooled([one[name] for one in some]) for name in some[0]})
        for (run, step, method), some in found.items()
    ]


def _pooled(pairs: Sequence[Sequence[float]]) -> Interval:
    """Mean of figures with standard errors, and two errors of the mean to each side, what seeds differ by included."""
    values = [pair[0] for pair in pairs]
    error = math.sqrt(sum(pair[1] ** 2 for pair in pairs)) / len(pairs)
    if len(values) > 1:
        error = max(error, stdev(values) / math.sqrt(len(values)))
    return mean(values), mean(values) - 2 * error, mean(values) + 2 * error


# ---------------------------------------------------------------------------------------------------------------------
# Early warning


@dataclass(frozen=True)
class Signal:
    """A number that may warn, and the way in which it is bad.

    Attributes:
        name: of it.
        of: a run's, a value a step; what is larger is worse.
        at: a threshold that is in use; None to have it chosen.
    """

    name: str
    of: Callable[[Run], Sequence[float]]
    at: float | None = None


def _series(name: str, sign: float = 1.0) -> Callable[[Run], Sequence[float]]:
    return lambda run: [sign * x for x in run.series[name]]


_ESS = "sequence ESS under"
SIGNALS = (
    Signal("sequence log-ratio sd, nats", _series("sd")),
    Signal("mean |log ratio|, nats a token", _series("abs")),
    Signal("k3, nats a token", _series("k3")),
    Signal("k3, at the verdict's threshold", _series("k3"), KL_DYING),
    Signal(_ESS, _series("ess", -1.0)),
    Signal("mean token ratio off 1 by", lambda run: [abs(x - 1) for x in run.series["ratio"]]),
    Signal("gradient norm", _series("gradient")),
    Signal("entropy over its start of the lag by, nats", lambda run: _since_lag(run, "entropy", 1.0)),
    Signal("entropy under its start of the lag by, nats", lambda run: _since_lag(run, "entropy", -1.0)),
    Signal("rollout reward under its most by", lambda run: _fallen(run)),
)


def _since_lag(run: Run, name: str, sign: float) -> list[float]:
    values = run.series[name]
    start = values[min(run.setting.stale_from, len(values) - 1)]
    return [sign * (x - start) for x in values]


def _fallen(run: Run) -> list[float]:
    most, out = 0.0, []
    for x in run.series["reward"]:
        most = max(most, x)
        out.append(most - x)
    return out


def crossing(run: Run, signal: Signal, threshold: float) -> int | None:
    """Step after which the smoothed number is first over the threshold, from the first stale step on."""
    values = smoothed(signal.of(run))
    return next((i for i in range(run.setting.stale_from, len(values)) if values[i] > threshold), None)


@dataclass(frozen=True)
class Alarm:
    """A signal at a threshold that one half of the seeds chose, as it did on the other half.

    Attributes:
        name: of the signal.
        threshold: over which it is an alarm, in the signal's unit.
        hits: share of the runs that collapsed in which it came before the rollouts' reward had halved.
        false: share of the runs that did not in which it came at all.
        lead: steps from the alarm until the rollouts' reward had halved, in the hits: least, median, most.
        ahead: steps from the alarm to the measurement that found pi's own reward halved, in the same; below 0 if later.
        dead: runs that collapsed, of the half that tests.
        alive: the others.
    """

    name: str
    threshold: float
    hits: Interval
    false: Interval
    lead: tuple[float, float, float] | None
    ahead: tuple[float, float, float] | None
    dead: int
    alive: int


def alarms(runs: Sequence[Run]) -> list[Alarm]:
    """Set thresholds on runs of even seeds, and test them on those of odd ones. Runs without a lag take no part."""
    stale = [(run, Outcome.of(run)) for run in runs if run.setting.lag]
    learn = [pair for pair in stale if pair[0].seed % 2 == 0]
    test = [pair for pair in stale if pair[0].seed % 2]
    if not learn or not test:
        return []
    found: list[Alarm] = []
    for signal in SIGNALS:
        threshold = _best(learn, signal) if signal.at is None else signal.at
        hits, false, times, dead, alive = _tested(test, signal, threshold)
        lead, ahead = (_ends([pair[i] for pair in times]) for i in (0, 1))
        shown = -threshold if signal.name == _ESS else threshold
        shares = share_of(hits, dead), share_of(false, alive)
        found.append(Alarm(signal.name, shown, *shares, lead, ahead, dead, alive))
    return found


def _best(pairs: Sequence[tuple[Run, Outcome]], signal: Signal) -> float:
    """Choose the threshold, of a hundred or so, with the most hits less false alarms, each as a share."""
    values = sorted({x for run, _ in pairs for x in smoothed(signal.of(run))[run.setting.stale_from :]})
    return max(values[:: max(1, len(values) // 100)], key=lambda threshold: _youden(pairs, signal, threshold))


def _ends(values: Sequence[int]) -> tuple[float, float, float] | None:
    return (min(values), median(values), max(values)) if values else None


def _youden(pairs: Sequence[tuple[Run, Outcome]], signal: Signal, threshold: float) -> float:
    hits, false, _, dead, alive = _tested(pairs, signal, threshold)
    return (hits / dead if dead else 0.0) - (false / alive if alive else 0.0)


def _tested(
    pairs: Sequence[tuple[Run, Outcome]], signal: Signal, threshold: float
) -> tuple[int, int, list[tuple[int, int]], int, int]:
    hits = false = dead = alive = 0
    times: list[tuple[int, int]] = []
    for run, outcome in pairs:
        at = crossing(run, signal, threshold)
        end = len(run.series["reward"])
        noticed = end if outcome.noticed is None else outcome.noticed
        if not outcome.collapsed:
            alive += 1
            false += at is not None
            continue
        dead += 1
        if at is not None and at < noticed:
            hits += 1
            times.append((noticed - at, (end if outcome.halved is None else outcome.halved) - at))
    return hits, false, times, dead, alive


# ---------------------------------------------------------------------------------------------------------------------
# The identity check

K3_BINS = (0.0, 0.01, 0.05, 0.3, math.inf)


@dataclass(frozen=True)
class Blamed:
    """Windows of honest log-probs at a size of the gap: how often the verdict says that they are not honest.

    Attributes:
        low: nats a token, of k3.
        high: of the same.
        windows: how many there are.
        token: windows in which the mean token ratio is said to be impossible.
        sequence: the same of sequences.
        ratio: median over windows of how far the mean token ratio is from 1.
    """

    low: float
    high: float
    windows: int
    token: int
    sequence: int
    either: int
    ratio: float


def blamed(runs: Iterable[Run]) -> list[Blamed]:
    """Count false accusations by the size of the gap; top-p on one side, where the ratio is not 1, takes no part."""
    found: list[tuple[float, bool, bool, float]] = []
    for run in runs:
        if run.setting.top_p < 1 or run.setting.dropout or not run.windows:
            continue
        names = ("k3", "identity_token", "identity_sequence", "ratio_token")
        found += [
            (k3, not token, not sequence, abs(ratio - 1))
            for k3, token, sequence, ratio in zip(*(run.windows[name] for name in names), strict=True)
            if k3 > MISMATCH
        ]
    out: list[Blamed] = []
    for low, high in pairwise(K3_BINS):
        inside = [one for one in found if low <= one[0] < high]
        if inside:
            token, sequence = sum(one[1] for one in inside), sum(one[2] for one in inside)
            either = sum(one[1] or one[2] for one in inside)
            out.append(Blamed(low, high, len(inside), token, sequence, either, median(one[3] for one in inside)))
    return out
