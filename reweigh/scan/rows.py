"""Which rows of the records are read: those that conditions hold of, a share of the prompts, the first so many."""
# pyright: reportUnknownParameterType=false
# pyarrow ships no types.

import difflib
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reweigh.records.arrays import numbers, valid
from reweigh.records.schema import COLUMNS
from reweigh.records.table import groups_of, lengths_of, single

_OF_A_ROW = [column for column in COLUMNS if not column.per_token]
_NUMBERS = (*(c.name for c in _OF_A_ROW if not pa.types.is_string(c.type)), "length")
_TEXTS = (*(c.name for c in _OF_A_ROW if pa.types.is_string(c.type)), "source")
_COMPARE: Mapping[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_CONDITION = re.compile(r"\s*(\w+)\s*(==|=|!=|<=|>=|<|>|~)\s*(.*?)\s*")
_AND = re.compile(r"\s+and\s+")
_HINT = "--where 'step >= 100', --where 'env = maths and length < 4096', --where 'source ~ rank_0'"


@dataclass(frozen=True)
class Condition:
    """A condition on a row.

    Attributes:
        column: a column of one value a row, "length" (tokens of the response) or "source" (its file).
        sign: =, !=, <, <=, >, >=, or ~ for a text that contains another.
        value: what it is compared with.
    """

    column: str
    sign: str
    value: float | str

    def __str__(self) -> str:
        """Write it as it is read."""
        return (
            f"{self.column} {self.sign} {self.value:.15g}"
            if isinstance(self.value, float)
            else (f"{self.column} {self.sign} {self.value}")
        )

    def holds(self, table: pa.Table, path: Path) -> NDArray[np.bool_]:
        """Tell of which rows it holds; of none that has no value."""
        if self.column == "length":
            return _COMPARE[self.sign](lengths_of(single(table, "log_mu")), self.value)
        if self.column == "source":
            return np.full(table.num_rows, self._text(str(path)))
        if self.column not in table.schema.names:
            return np.zeros(table.num_rows, np.bool_)
        values = single(table, self.column)
        if isinstance(self.value, str):
            return np.array([x is not None and self._text(x) for x in values.to_pylist()], np.bool_)
        return valid(values) & _COMPARE[self.sign](numbers(values), self.value)

    def _text(self, x: str) -> bool:
        return str(self.value) in x if self.sign == "~" else bool(_COMPARE[self.sign](x, self.value))


@dataclass(frozen=True)
class Rows:
    """A choice of rows.

    Attributes:
        where: conditions, all of which must hold.
        share: of the prompts (responses where none is recorded), chosen by hash: the same in every file and run.
        limit: at most so many responses, the first that are chosen.
        replay: read log_pi over the sampler's support, where `log_support_pi` says what mass pi has there.

    Raises:
        ValueError: unless 0 < share <= 1 and limit >= 1.
    """

    where: tuple[Condition, ...] = ()
    share: float = 1.0
    limit: int | None = None
    replay: bool = False

    def __post_init__(self) -> None:
        """Refuse a choice of nothing."""
        if not 0 < self.share <= 1:
            raise ValueError(f"--sample: must be a share of the prompts, over 0 and at most 1, got {self.share:g}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit: must be at least 1, got {self.limit}")

    @classmethod
    def of(
        cls, where: Iterable[str] = (), share: float = 1.0, limit: int | None = None, replay: bool = False
    ) -> "Rows":
        """Read conditions as `--where` has them.

        Raises:
            ValueError: one is none, or of no such column; with the nearest.

        Example:
            >>> from reweigh.scan.rows import Rows
            >>> print(*Rows.of(["step >= 10 and env = maths"]).where, sep="; ")
            step >= 10; env = maths
        """
        return cls(tuple(_read(one) for text in where for one in _AND.split(text)), share, limit, replay)

    @property
    def columns(self) -> tuple[str, ...]:
        """Name the columns that the choice reads."""
        more = ("log_support_pi",) * self.replay
        return (*dict.fromkeys(c.column for c in self.where if c.column not in ("length", "source")), *more)

    @property
    def identity(self) -> dict[str, Any]:
        """Say what is chosen, by the name of the option."""
        chosen = {"--where": [str(one) for one in self.where], "--sample": self.share, "--limit": self.limit}
        return chosen | ({"--replay": True} if self.replay else {})

    def __str__(self) -> str:
        """Say it in words."""
        said = [" and ".join(map(str, self.where))] if self.where else []
        said += [f"{self.share:g} of the prompts"] if self.share < 1 else []
        said += [f"the first {self.limit:,}"] if self.limit is not None else []
        said += ["over the sampler's support"] if self.replay else []
        return ", ".join(said) or "all"

    def chosen(self, table: pa.Table, path: Path) -> NDArray[np.bool_]:
        """Tell which rows of a file are chosen; the limit aside."""
        keep = np.ones(table.num_rows, np.bool_)
        for one in self.where:
            keep &= one.holds(table, path)
        if self.share < 1:  # the hash's upper bits, as its lower ones say the cluster
            hashed = np.ascontiguousarray(groups_of(table)).view(np.uint64)
            keep &= (hashed >> np.uint64(11)).astype(np.float64) / 2.0**53 < self.share
        return keep


EVERY = Rows()


def _read(text: str) -> Condition:
    found = _CONDITION.fullmatch(text)
    if found is None or not found[3]:
        raise ValueError(f"--where: must be COLUMN =, !=, <, <=, >, >= or ~ VALUE, got {text!r}\nhint: {_HINT}")
    name, sign, value = found[1], found[2], found[3].strip("\"'")
    if name not in (*_NUMBERS, *_TEXTS):
        near = difflib.get_close_matches(name, (*_NUMBERS, *_TEXTS), 1)
        like = f"did you mean {near[0]}?" if near else f"columns are {', '.join((*_NUMBERS, *_TEXTS))}."
        raise ValueError(f"--where: no column of one value a row is called {name!r}\nhint: {like}")
    if name in _TEXTS:
        if sign not in ("=", "==", "!=", "~"):
            raise ValueError(f"--where: {name} is a text, and has no order for {sign}\nhint: =, != or ~ (contains).")
        return Condition(name, "=" if sign == "==" else sign, value)
    if sign == "~":
        raise ValueError(f"--where: {name} is a number, and contains nothing\nhint: =, !=, <, <=, > or >=.")
    try:
        return Condition(name, "=" if sign == "==" else sign, float(value))
    except ValueError:
        raise ValueError(f"--where: {name} must be compared with a number, got {value!r}\nhint: {_HINT}") from None
