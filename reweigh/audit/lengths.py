"""Response lengths as the columns of a table: neighbouring bins are merged until they fit."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from reweigh.audit.result import TrialRow
from reweigh.audit.trial import Outcome
from reweigh.stats.sums import LENGTH_EDGES


@dataclass(frozen=True)
class LengthColumn:
    """Bins `first` to `last` of response length."""

    first: int
    last: int

    @property
    def low(self) -> int:
        """The shortest response in it, tokens."""
        return LENGTH_EDGES[self.first - 1] if self.first else 1

    @property
    def high(self) -> int | None:
        """The longest, None if there is no limit."""
        return LENGTH_EDGES[self.last] - 1 if self.last < len(LENGTH_EDGES) else None

    @property
    def label(self) -> str:
        """For example `16-31`."""
        return f"{self.low:,}+" if self.high is None else f"{self.low:,}-{self.high:,}"

    def of(self, trial: TrialRow) -> Outcome:
        """What an estimator did to responses of these lengths."""
        return sum(trial.by_bin[self.first : self.last + 1], Outcome())


def length_columns(trials: Sequence[TrialRow], limit: int) -> list[LengthColumn]:
    """Columns that cover all lengths there are; of more than `limit` bins, the pairs with fewest tokens are merged."""
    tokens = [sum(trial.by_bin[i].tokens for trial in trials) for i in range(len(LENGTH_EDGES) + 1)]
    columns = [LengthColumn(i, i) for i, n in enumerate(tokens) if n]
    while len(columns) > limit:
        sizes = [sum(tokens[a.first : b.last + 1]) for a, b in pairwise(columns)]
        i = sizes.index(min(sizes))
        columns[i : i + 2] = [LengthColumn(columns[i].first, columns[i + 1].last)]
    return columns
