"""The records as a table to look into: ratio, weights and statistics of each token, each response, or each token id."""
# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false
# pyarrow ships no types.

import heapq
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from reweigh.audit.trial import needs, refuse_batch_readers
from reweigh.estimators import Estimator
from reweigh.guard import claimed, written_to
from reweigh.layout import Packed
from reweigh.records.arrays import numbers
from reweigh.records.files import Paths
from reweigh.records.schema import BY_NAME, Tally
from reweigh.records.table import single
from reweigh.scan.measure import Family, Job, Measured, Names, Task, fingerprints, read
from reweigh.scan.rows import EVERY, Rows
from reweigh.scan.run import Known, Progress, Report, look
from reweigh.scan.tokens import Part

Of = Literal["token", "sequence", "id"]
"""What a row of the table is: a token that counts, a response with one, or a token id."""
ENDINGS = (".parquet", ".csv")
_OF_ROWS = ("prompt_id", "step", "env", "reward", "finish_reason")
_COLUMNS = (*_OF_ROWS, "token_ids")

Decode = Callable[[int], str]
"""Gives the text of a token id."""


@dataclass(frozen=True)
class Asked:
    """The question that a table answers.

    Attributes:
        of: what a row is.
        estimators: whose weights to give, by name: of a token, or their mean over a response.
        worst: the rows that are farthest off alone, that many, worst first; all in the records' order if None.
        decode: text of a token id; no text if None.

    Raises:
        ValueError: a kind of row that is none, an estimator that reads whole batches, or weights of token ids.
    """

    of: Of = "sequence"
    estimators: Mapping[str, Estimator] = field(default_factory=dict[str, Estimator])
    worst: int | None = None
    decode: Decode | None = None

    def __post_init__(self) -> None:
        """Refuse what has no answer."""
        if self.of not in get_args(Of):
            raise ValueError(f"table: a row must be of {', '.join(get_args(Of))}, got {self.of!r}")
        if self.of == "id" and self.estimators:
            raise ValueError("table: a token id has no weight\nhint: --of token or --of sequence has --estimators.")
        if self.worst is not None and self.worst < 1:
            raise ValueError(f"table: worst must be at least 1, got {self.worst}")
        refuse_batch_readers(self.estimators)


def tables(
    paths: Paths | Known,
    asked: Asked = Asked(),
    *,
    keep_going: bool = False,
    reader: str | None = None,
    rows: Rows = EVERY,
    on_progress: Report | None = None,
) -> Iterator[pa.Table]:
    """Read records once, in order, and give the table's rows a piece at a time; nothing of a piece is kept.

    Args:
        paths: files, folders or globs with both sides' log-probs.
        asked: which table.
        keep_going: leave out rows and tokens that cannot be used; otherwise the first is an error.
        reader: name of the files' format; recognised by their content if not given.
        rows: which rows are read.
        on_progress: called after each part.

    Raises:
        ValueError: of the records, with file, row and remedy; a column that is needed and missing.
        FileNotFoundError: nothing is there.
    """
    pieces = _pieces(paths, asked, keep_going, reader, rows, on_progress)
    if asked.of == "id":
        yield _by_id(pieces, asked)
    elif asked.worst is not None:
        yield _worst(pieces, asked)
    else:
        yield from pieces


def frame(paths: Paths | Known, asked: Asked = Asked(), **options: Any) -> Any:
    """Give the whole table as a pandas DataFrame; see `tables` for the arguments.

    Example:
        >>> from reweigh.audit.table import Asked, frame
        >>> found = frame("examples/records/vllm_bfloat16.parquet", Asked("sequence"))  # doctest: +SKIP
        >>> found.nlargest(3, "log_ratio")  # doctest: +SKIP
    """
    return pa.concat_tables(list(tables(paths, asked, **options)), promote_options="default").to_pandas()


def write(pieces: Iterator[pa.Table], path: Path) -> int:
    """Write a table to a file, Parquet or CSV by its name's ending, whole or not at all.

    Returns:
        How many rows it has.

    Raises:
        ValueError: another ending; no row at all.
    """
    if not path.name.endswith(ENDINGS):
        raise ValueError(f"{path}: a table is written as {' or '.join(ENDINGS)}, got {path.suffix or 'no extension'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    count = 0
    try:
        with claimed(path), written_to(path, beside), ExitStack() as stack:
            writer: Any = None
            for piece in pieces:
                if writer is None:
                    make = pq.ParquetWriter if path.name.endswith(".parquet") else csv.CSVWriter
                    writer = stack.enter_context(make(beside, piece.schema))
                writer.write_table(piece)
                count += piece.num_rows
            if writer is None:
                raise ValueError(f"{path}: no row of the records is in the table, and nothing was written")
            writer.close()
            beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return count


def _pieces(
    paths: Paths | Known, asked: Asked, keep_going: bool, reader: str | None, rows: Rows, report: Report | None
) -> Iterator[pa.Table]:
    known = paths if isinstance(paths, Known) else look(paths, reader, rows=rows)
    family = Family("table", _no_sums, _COLUMNS, per_file=True)
    job = Job((family,), keep_going, reader=known.reader, formats=known.formats, rows=known.chosen)
    seen, count, tokens = Measured(), 0, 0

    def has(names: Names) -> NDArray[np.bool_]:
        return seen.has(names)

    for task in known.tasks:
        most = None if known.chosen.limit is None else known.chosen.limit - count
        if most == 0:
            break
        for part in _read(task, job, has, most):
            names = np.unique(fingerprints(part.table))
            seen += Measured(names=(names[names != 0],) if names.any() else ())
            count += part.table.num_rows
            tokens += int(part.batch.layout.lengths.sum())
            piece = _of_tokens(part, asked) if asked.of != "sequence" else _of_sequences(part, asked)
            if piece.num_rows:
                yield piece
        if report is not None:
            report(Progress(count, tokens, known.rows))


def _read(task: Task, job: Job, has: Any, most: int | None) -> Iterator[Part]:
    tally = Tally()
    yield from read(task, job, tally, has, most)


def _no_sums(_: Part) -> Any:  # rows are what is asked for
    raise AssertionError("a table has no sums")


def _shape(part: Part) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], NDArray[np.float64]]:
    """Row and place of each token, which count, and their log ratios."""
    layout = part.batch.layout
    assert isinstance(layout, Packed)
    offsets = layout.offsets.numpy()
    row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    place = np.arange(len(row)) - offsets[:-1][row]
    return row, place, layout.mask.numpy(), part.batch.log_ratio.numpy().astype(np.float64)


def _weights(part: Part, asked: Asked) -> dict[str, NDArray[np.float64]]:
    """Give the weight of each token by each estimator."""
    found: dict[str, NDArray[np.float64]] = {}
    have = {"turns": part.batch.layout.turn is not None, "advantage": part.batch.advantage is not None}
    for name, estimator in asked.estimators.items():
        for column in needs(estimator):
            if not have[column]:
                raise ValueError(
                    f"{part.path}: {name} needs the column {column}, which is not there\nhint: leave {name} out."
                )
        found[f"weight {name}"] = estimator(part.batch).per_token.numpy().astype(np.float64)
    return found


def _of_tokens(part: Part, asked: Asked) -> pa.Table:
    row, place, live, log_ratio = _shape(part)
    at, row, place = np.flatnonzero(live), row[live], place[live]
    l = log_ratio[at]
    before = np.cumsum(l) - l
    starts = np.searchsorted(row, np.arange(int(row[-1]) + 1 if len(row) else 0))
    with np.errstate(over="ignore"):
        columns: dict[str, Any] = {
            **_names(part, row),
            "position": place,
            **_ids(part, at, asked),
            "log_mu": part.batch.log_mu.numpy()[at],
            "log_pi": part.batch.log_pi.numpy()[at],
            "log_ratio": l,
            "ratio": np.exp(l),
            "k3": np.expm1(l) - l,
            "log_ratio_so_far": np.cumsum(l) - (before[starts][row] if len(row) else l),
            **{name: weight[at] for name, weight in _weights(part, asked).items()},
        }
    return pa.table(columns)


def _of_sequences(part: Part, asked: Asked) -> pa.Table:
    row, place, live, log_ratio = _shape(part)
    rows, at, row, place = part.table.num_rows, np.flatnonzero(live), row[live], place[live]
    l = log_ratio[at]
    length = np.bincount(row, minlength=rows)
    some = np.flatnonzero(length)
    total, size = np.bincount(row, l, rows)[some], length[some]
    order = np.lexsort((np.abs(l), row))
    last = np.cumsum(size) - 1  # of each response, in that order: its farthest token
    worst = order[last] if len(order) else order
    with np.errstate(over="ignore"):
        columns: dict[str, Any] = {
            **_names(part, some),
            "tokens": size,
            "log_ratio": total,
            "ratio": np.exp(total),
            "mean_log_ratio": total / size,
            "mean_abs": np.bincount(row, np.abs(l), rows)[some] / size,
            "k3": np.bincount(row, np.expm1(l) - l, rows)[some] / size,
            "worst_log_ratio": l[worst],
            "worst_position": place[worst],
            **{name: np.bincount(row, weight[at], rows)[some] / size for name, weight in _weights(part, asked).items()},
        }
    return pa.table(columns)


def _names(part: Part, row: NDArray[np.int64]) -> dict[str, Any]:
    """Give the columns that say which response it is."""
    some = part.table.take(pa.array(row, pa.int64()))
    path = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(row), np.int32)), pa.array([str(part.path)]))
    have = some.schema.names  # a column that a file has not got is null: all pieces have the same columns
    named = {
        name: some.column(name) if name in have else pa.nulls(len(row), BY_NAME[name].type)
        for name in ("sequence_id", *_OF_ROWS)
    }
    return {"source": path.cast(pa.string()), **named}


def _ids(part: Part, at: NDArray[np.int64], asked: Asked) -> dict[str, Any]:
    ids = part.per_token("token_ids")
    if ids is None:
        if asked.decode is not None or asked.of == "id":
            raise ValueError(
                f"{part.path}: there are no token ids, so no token can be named\n"
                "hint: write the column token_ids; docs/records.md."
            )
        return {"token_id": pa.nulls(len(at), pa.int64())}
    some = ids[at].astype(np.int64)
    found: dict[str, Any] = {"token_id": pa.array(some, mask=some < 0)}
    if asked.decode is not None and asked.worst is None and asked.of == "token":
        found["token"] = pa.array(_texts(some, asked.decode))
    return found


def _texts(ids: NDArray[np.int64], decode: Decode) -> list[str | None]:
    known = {int(i): decode(int(i)) for i in np.unique(ids) if i >= 0}
    return [known.get(int(i)) for i in ids]


def _worst(pieces: Iterator[pa.Table], asked: Asked) -> pa.Table:
    """Keep the rows that are farthest off, in memory of their number."""
    assert asked.worst is not None
    kept: list[tuple[float, int, pa.Table]] = []
    count = 0
    for piece in pieces:
        far = np.abs(numbers(single(piece, "log_ratio")))
        for i in np.argsort(-far, kind="stable")[: asked.worst]:
            entry = (float(far[i]), -count - int(i), piece.slice(int(i), 1))
            if len(kept) < asked.worst:
                heapq.heappush(kept, entry)
            elif entry[:2] > kept[0][:2]:
                heapq.heapreplace(kept, entry)
        count += piece.num_rows
    if not kept:
        return pa.table({})
    kept.sort(key=_far, reverse=True)
    found = pa.concat_tables([one[2] for one in kept]).combine_chunks()
    if asked.decode is not None and "token_id" in found.schema.names:
        ids = numbers(single(found, "token_id"), -1).astype(np.int64)
        at = found.schema.names.index("token_id") + 1
        found = found.add_column(at, "token", pa.array(_texts(ids, asked.decode)))
    return found


def _far(one: tuple[float, int, Any]) -> tuple[float, int]:
    return one[0], one[1]


def _by_id(pieces: Iterator[pa.Table], asked: Asked) -> pa.Table:
    """Add up by token id: those that carry most of the squared log ratio first."""
    sums: dict[int, NDArray[np.float64]] = {}
    for piece in pieces:
        ids, l, k3 = (numbers(single(piece, name), -1) for name in ("token_id", "log_ratio", "k3"))
        values, inverse = np.unique(ids, return_inverse=True)
        added = np.stack([np.bincount(inverse, x) for x in (np.ones_like(l), l, np.abs(l), l * l, k3)], 1)
        for value, row in zip(values.tolist(), added, strict=True):
            sums[value] = sums[value] + row if value in sums else row
    if not sums:
        return pa.table({})
    ids = np.array(list(sums), np.int64)
    n, l, far, square, k3 = np.array(list(sums.values())).T
    order = np.lexsort((ids, -square))[: asked.worst]
    found: dict[str, Any] = {"token_id": pa.array(ids[order], mask=ids[order] < 0)}
    if asked.decode is not None:
        found["token"] = pa.array(_texts(ids[order], asked.decode))
    found |= {
        "count": n[order].astype(np.int64),
        "mean_log_ratio": (l / n)[order],
        "mean_abs": (far / n)[order],
        "k3": (k3 / n)[order],
        "share_of_square": (square / max(float(square.sum()), 1e-300))[order],
    }
    return pa.table(found)


def plain_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Give rows as JSON has them: what is no number there is null."""
    return [
        {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in row.items()}
        for row in table.to_pylist()
    ]
