"""A visit cut by step, lag, turn, environment or file, so that each part of the records gets a verdict of its own."""
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false, reportAttributeAccessIssue=false
# pyarrow ships no types, and makes the functions of pyarrow.compute when it is imported.

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import pyarrow as pa

from reweigh.doctor.tokens import Tokens
from reweigh.doctor.visit import Visit, visit_tokens
from reweigh.records.table import single

By = Literal["step", "lag", "turn", "env", "source"]
BYS: tuple[By, ...] = get_args(By)
MOST = 12  # slices: steps, lags and turns are joined into ranges, of environments and files the rest is one slice
OTHER = "others"


@dataclass(frozen=True, eq=False)
class Slices:
    """A visit of each slice; `a + b` is of both.

    Attributes:
        by: what the records are cut by.
        visits: by the first number of a range, or a name.
        width: of a range of numbers.
    """

    by: By
    visits: Mapping[int | str, Visit] = field(default_factory=dict[int | str, Visit])
    width: int = 1

    def __add__(self, other: "Slices") -> "Slices":
        """Both."""
        width = max(self.width, other.width)
        visits = dict(self._at(width).visits)
        for key, x in other._at(width).visits.items():
            visits[key] = visits[key] + x if key in visits else x
        return Slices(self.by, visits, width).few()

    def labelled(self) -> dict[str, Visit]:
        """By what to call each slice, in order."""
        numbers = sorted(k for k in self.visits if isinstance(k, int))
        names = sorted((k for k in self.visits if isinstance(k, str)), key=lambda k: (k == OTHER, k))
        return {self._label(k): self.visits[k] for k in (*numbers, *names)}

    def _label(self, key: int | str) -> str:
        if isinstance(key, str) or self.width == 1:
            return str(key)
        return f"{key}-{key + self.width - 1}"

    def few(self) -> "Slices":
        """With no more slices than `MOST`."""
        some = self
        while len([k for k in some.visits if isinstance(k, int)]) > MOST:
            some = some._at(some.width * 2)
        names = sorted((k for k in some.visits if isinstance(k, str) and k != OTHER), key=_hash)
        # By hash and not by who came first: the same ones are kept however the records are cut.
        rest = set(names[MOST:])
        return some._renamed(lambda k: OTHER if k in rest else k) if rest else some

    def _at(self, width: int) -> "Slices":
        if width == self.width:
            return self
        joined = self._renamed(lambda k: k // width * width if isinstance(k, int) else k)
        return Slices(self.by, joined.visits, width)

    def _renamed(self, name: Callable[[int | str], int | str]) -> "Slices":
        visits: dict[int | str, Visit] = {}
        for key, x in self.visits.items():
            new = name(key)
            visits[new] = visits[new] + x if new in visits else x
        return Slices(self.by, visits, self.width)


def _hash(name: int | str) -> bytes:
    return hashlib.blake2b(str(name).encode(), digest_size=8).digest()


def slices_of(by: By, tokens: Tokens, table: pa.Table, source: str) -> Slices:
    """Slices of one table; tokens of which the records do not say are left out."""
    found = Slices(by, {key: visit_tokens(part) for key, part in _cut(by, tokens, table, source)})
    return found.few()


def _cut(by: By, tokens: Tokens, table: pa.Table, source: str) -> Iterator[tuple[int | str, Tokens]]:
    if by == "source":
        yield source, tokens
        return
    if by == "env":
        if "env" not in table.schema.names:
            return
        names = np.array(single(table, "env").fill_null("").to_pylist())
        for name in np.unique(names):
            if name:
                yield str(name), tokens.take((names == name)[tokens.seq])
        return
    codes = _codes(by, tokens)
    if codes is None:
        return
    for code in np.unique(codes[codes >= 0]):
        yield int(code), tokens.take(codes == code)


def _codes(by: By, tokens: Tokens) -> np.ndarray | None:
    rows = tokens.rows
    if by == "step":
        return tokens.step
    if by == "lag":
        return tokens.lag
    turn = np.cumsum(tokens.turn_start)
    first = np.full(len(rows.sizes), np.iinfo(np.int64).max)
    np.minimum.at(first, tokens.seq, turn)
    return turn - first[tokens.seq]
