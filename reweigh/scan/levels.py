"""The two levels that a verdict follows from, as a family of sums of its own: for commands that are no audit."""

from dataclasses import dataclass, field

from reweigh.levels import SEQUENCE, TOKEN
from reweigh.scan.measure import Family
from reweigh.scan.run import Scanned
from reweigh.scan.tokens import Part
from reweigh.stats.sums import RatioStats
from reweigh.stats.verdict import Cause, Verdict, judge

NAME = "levels"


@dataclass(frozen=True, eq=False)
class Levels:
    """Stats of tokens and sequences; `a + b` is of both.

    Attributes:
        token: stats of the tokens.
        sequence: stats of the sequences.
        positive: tokens that were left out because a log-prob is over 0.
    """

    token: RatioStats = field(default_factory=lambda: RatioStats.empty(TOKEN))
    sequence: RatioStats = field(default_factory=lambda: RatioStats.empty(SEQUENCE))
    positive: int = 0

    @classmethod
    def of(cls, part: Part) -> "Levels":
        """Add up some records."""
        token, sequence = RatioStats.of_levels(part.batch, (TOKEN, SEQUENCE))
        return cls(token, sequence, part.positive)

    def __add__(self, other: "Levels") -> "Levels":
        """Add up both."""
        return Levels(self.token + other.token, self.sequence + other.sequence, self.positive + other.positive)


def question() -> Family:
    """Ask for what a verdict needs of what is scanned."""
    return Family(NAME, Levels.of, (), (Levels,), without_pi=True)


def answer(found: Scanned, cause: Cause | None = None) -> Verdict:
    """Judge what was scanned.

    Args:
        found: with the sums of this family.
        cause: what a doctor says of the same records.
    """
    sums: Levels = found.sums.get(NAME, Levels())
    return judge(sums.token, sums.sequence, cause=cause, positive=sums.positive)
