"""Describes a family of causes: what it adds up from tokens, and what it concludes from the sums."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from scipy.special import stdtr

from reweigh.doctor.causes import CauseId
from reweigh.doctor.cells import Cells, Estimate, Keyed
from reweigh.doctor.content import Explained, explained
from reweigh.doctor.diagnosis import CannotTell, Evidence, Suspicion
from reweigh.doctor.prompts import Prompts
from reweigh.scan.tokens import Tokens

Sums = Mapping[str, Cells | Keyed | Prompts]


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
class Case:
    """The sums that the families' `examine` reads.

    Attributes:
        sums: of all records, by name.
        info: what the files say of the run: number types, engine, trainer.
        baseline: sums of records from before the trouble, if given.
    """

    sums: Sums
    info: Mapping[str, object]
    baseline: Sums | None = None

    def cells(self, name: str) -> Cells:
        """Returns sums on a fixed grid."""
        found = self.sums[name]
        assert isinstance(found, Cells)
        return found

    def keyed(self, name: str) -> Keyed:
        """Returns sums by step and lag."""
        found = self.sums[name]
        assert isinstance(found, Keyed)
        return found

    @cached_property
    def by_content(self) -> Explained:
        """How much of the gap the token's own probability and entropy explain: asked for by several families."""
        return explained(self.cells("content"))

    @property
    def tokens(self) -> float:
        """Tokens that could be compared, after what is structurally wrong was taken out."""
        return float(self.cells("identity").total[0, 0])

    @property
    def squares(self) -> float:
        """Sum of squared log ratios, of everything that has one."""
        return float(self.cells("whole").total[0, 1])

    @property
    def clean_squares(self) -> float:
        """Sum of squared log ratios of the tokens that could be compared."""
        return float(self.cells("identity").total[0, 4])

    def share(self, squares: float) -> float:
        """Returns the share of the squared log ratios of the tokens that could be compared."""
        return _share(squares, self.clean_squares)

    def share_of_all(self, squares: float) -> float:
        """Returns the share of all squared log ratios."""
        return _share(squares, self.squares)


def _share(part: float, whole: float) -> float:
    share = part / whole if whole > 0 else 0.0
    return min(max(share, 0.0), 1.0) if math.isfinite(share) else 0.0


def p_above(estimate: Estimate, bound: float = 0.0) -> float:
    """Returns the one-sided p-value of the estimate being above a bound."""
    return float(stdtr(max(estimate.df, 1), -estimate.above(bound)))


def p_below(estimate: Estimate, bound: float = 0.0) -> float:
    """Returns the one-sided p-value of the estimate being below a bound."""
    return float(stdtr(max(estimate.df, 1), estimate.above(bound)))


def evidence(name: str, estimate: Estimate, meaning: str) -> Evidence:
    """Puts an estimate into words, with its interval."""
    low, high = estimate.interval
    ends = (low, high) if math.isfinite(low) and math.isfinite(high) else (None, None)
    return Evidence(name, estimate.value, meaning, *ends, n=estimate.n or None)


def counted(name: str, value: float, n: float, meaning: str) -> Evidence:
    """Puts a number without an interval into words."""
    return Evidence(name, float(value), meaning, n=int(n))
