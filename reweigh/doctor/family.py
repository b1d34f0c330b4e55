"""Describes a family of causes: what it adds up from tokens, and what it concludes from the sums."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import TypeVar, cast

import numpy as np

from reweigh.doctor.causes import CauseId
from reweigh.doctor.cells import Array, Cells, Estimate, Keyed, Prompts, Responses, jackknife
from reweigh.doctor.diagnosis import CannotTell, Evidence, Suspicion
from reweigh.scan.tokens import Tokens
from reweigh.stats.intervals import t_below

# Cells of the sums `content`. Edges of -log pi, nats, and of the entropy: finer where a temperature acts most.
SURPRISAL_EDGES = np.array([0.01, 0.05, 0.15, 0.35, 0.7, 1.2, 1.9, 2.7, 3.6, 4.7, 6.0, 8.0])
ENTROPY_EDGES = np.array([0.05, 0.2, 0.5, 0.9, 1.4, 2.0, 2.8, 3.8, 5.0])
NUM_SURPRISAL, NUM_ENTROPY = len(SURPRISAL_EDGES) + 1, len(ENTROPY_EDGES) + 1

R = TypeVar("R")
AnySums = Cells | Keyed | Prompts | Responses
Sums = Mapping[str, AnySums]
Findings = list[Suspicion | CannotTell]


@dataclass(frozen=True)
class Family:
    """Causes that one set of sums can tell apart; adding a cause is adding one, or a line to one.

    Attributes:
        name: for people.
        causes: that it can name.
        needs: columns that it reads beside the log-probs, and what is lost without each.
        measure: tokens -> sums, which add over any parts of the records.
        examine: sums of all tokens, and of a baseline if there is one -> what it has to say.
    """

    name: str
    causes: tuple[CauseId, ...]
    needs: Mapping[str, str]
    measure: Callable[[Tokens], Sums]
    examine: Callable[["Case"], Findings]


@dataclass(frozen=True)
class Explained:
    """How far the gap is a function of the token's own probability and its distribution's entropy.

    Attributes:
        share: of the squared gap, 0 to 1, less what chance would give.
        linear: share that a straight line in `log pi + entropy` explains, as a temperature makes it.
        slope: of the gap on `log pi + entropy`: about `1 - 1/T` where the trainer left out a temperature T of sampling.
    """

    share: Estimate
    linear: Estimate
    slope: Estimate


class Case:
    """The sums that the families' `examine` reads.

    Args:
        sums: of all records, by name.
        info: what the files say of the run: number types, engine, trainer.
        baseline: sums of records from before the trouble, if given.

    Attributes:
        identity: `[64, IDENTITY]`: sums by cluster of the tokens that could be compared, after what is structurally
            wrong was taken out.
        tokens: how many they are.
        squares: sum of squared log ratios, of everything that has one.
        clean_squares: that of the tokens that could be compared.
    """

    def __init__(self, sums: Sums, info: Mapping[str, object], baseline: Sums | None = None) -> None:
        self.sums, self.info, self.baseline = sums, info, baseline
        self.kept: dict[object, object] = {}
        self.identity: Array = self.cells("identity").data[:, 0]
        self.tokens, self.clean_squares = (float(self.identity.sum(0)[i]) for i in (0, 4))
        self.squares = float(self.cells("whole").total[0, 1])

    @property
    def temperature(self) -> float:
        """Of sampling, by what the files say; 1 if they do not, or if log-probs are of before it."""
        told = self.info.get("temperature")
        raw = self.info.get("logprobs_mode") == "raw"
        return float(told) if isinstance(told, int | float) and 0.05 < told < 20 and not raw else 1.0

    def cells(self, name: str) -> Cells:
        """Returns sums on a fixed grid."""
        sums = self.sums[name]
        assert isinstance(sums, Cells)
        return sums

    def share(self, squares: float, *, of_all: bool = False) -> float:
        """Returns the share of the squared log ratios: of the tokens that could be compared, or of all."""
        return share_of(squares, self.squares if of_all else self.clean_squares)

    @cached_property
    def by_content(self) -> Explained:
        """How much of the gap the token's own probability and entropy explain: asked for by several families."""
        data = self.cells("content").data
        linear = jackknife(lambda total: _line(total)[0], data)
        slope = jackknife(lambda total: _line(total)[1], data)
        return Explained(jackknife(_explained, data), linear, slope)


def once(work: Callable[[Case], R]) -> Callable[[Case], R]:
    """Lets a function of a case be worked out once a case: several families ask for it."""

    @wraps(work)
    def kept(case: Case) -> R:
        if work not in case.kept:
            case.kept[work] = work(case)
        return cast(R, case.kept[work])

    return kept


def _explained(total: Array) -> float:
    """Returns the share of the squared gap that the cells of `content` explain, less what chance would."""
    n, gap, squares = total[:, 0], total[:, 1], total[:, 2]
    some = n >= 2
    n, gap, squares = n[some], gap[some], squares[some]
    if squares.sum() <= 0:
        return float("nan")
    noise = (squares - gap**2 / n) / (n - 1)  # of one token; its mean over n has 1/n of it
    return float(np.maximum(gap**2 / n - noise, -noise).sum() / squares.sum())


def _line(total: Array) -> tuple[float, float]:
    """Fits the gap by a line in `log pi + entropy`: the share of the squared gap that it explains, and its slope.

    Within cells of entropy, so that what is common to a context drops out.
    """
    n, gap, _, x, x2, xg = total.reshape(NUM_SURPRISAL, NUM_ENTROPY, -1).sum(0).T
    some = n > 1
    cov = float((xg - x * gap / np.maximum(n, 1))[some].sum())
    var = float((x2 - x**2 / np.maximum(n, 1))[some].sum())
    squares = float(total[:, 2].sum())
    share = cov * cov / var / squares if var > 0 and squares > 0 else float("nan")
    return share, cov / var if var > 0 else float("nan")


def share_of(part: float, whole: float) -> float:
    """Returns part over whole, between 0 and 1; 0 if there is no telling."""
    share = part / whole if whole > 0 else 0.0
    return float(min(max(share, 0.0), 1.0)) if math.isfinite(share) else 0.0


def p_above(estimate: Estimate, bound: float = 0.0) -> float:
    """Returns the one-sided p-value of the estimate being above a bound."""
    return t_below(-estimate.above(bound), max(estimate.df, 1))


def p_below(estimate: Estimate, bound: float = 0.0) -> float:
    """Returns the one-sided p-value of the estimate being below a bound."""
    return t_below(estimate.above(bound), max(estimate.df, 1))


def evidence(name: str, estimate: Estimate, meaning: str) -> Evidence:
    """Puts an estimate into words, with its interval."""
    low, high = estimate.interval
    ends = (low, high) if math.isfinite(low) and math.isfinite(high) else (None, None)
    return Evidence(name, estimate.value, meaning, *ends, n=estimate.n or None)


def counted(name: str, value: float, n: float, meaning: str) -> Evidence:
    """Puts a number without an interval into words."""
    return Evidence(name, float(value), meaning, n=int(n))
