"""The parts of a reader of a foreign dump, and what readers share: reports, JSON lines, arrays of anything."""

import gzip
import hashlib
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from reweigh.guard import LimitError, finite, limited_lines, loads, open_regular, read_packed
from reweigh.records.files import FilePart, Opened, cut_at_lines, numbered_lines, open_lines
from reweigh.records.schema import RunInfo, UnreadableFileError, Violation
from reweigh.records.table import other_base, short, to_numpy, wrong_unit

Kind = Literal["json", "torch", "pickle", "sqlite", "parquet", "other"]
Row = Mapping[str, Any]
"""Values by column of the record schema; `prompt_ids` beside them, where the dump has them, is for a rescoring."""


class BadRecordError(ValueError):
    """One record of a dump that cannot be a row; the records around it are not touched by that.

    Attributes:
        rule: what is wrong, in words that are the same for every record of which it is.
        detail: names and values.
        hint: what to do.
    """

    def __init__(self, rule: str, detail: str, hint: str) -> None:
        super().__init__(f"{detail}\nhint: {hint}")
        self.rule, self.detail, self.hint = rule, detail, hint


@dataclass(frozen=True)
class Item:
    """One record of a dump before it is looked at.

    Attributes:
        load: its rows, most often one; raises BadRecordError.
        line: the line it stands on, from 1, in formats that have lines.
        number: which record of the file it is, from 0.
    """

    load: Callable[[], Sequence[Row]]
    number: int
    line: int | None = None

    def place(self, path: Path) -> str:
        """File and line, or file and record."""
        return f"{path} record {self.number}" if self.line is None else f"{path}:{self.line}"


@dataclass(frozen=True)
class Format:
    """How the dumps of one framework are recognised, found, cut and read.

    Attributes:
        name: as `--reader` takes it.
        title: what the files are, for a list of what was tried.
        file: the framework and its file, for the page of readers.
        ask: how a run is told to write it, or what a server is asked for.
        both_sides: whether the framework writes log_pi too; if not, `reweigh rescore` adds it.
        endings: how the files' names end.
        kind: of `Head`, that the files are of.
        recognises: whether a file of that kind is one, from what stands in it.
        items: the records of a part.
        info: what a file says of the run.
        parts: the parts of a file that can be read apart, of about so many tokens.
        lead: the file that stands for all that are read together with this one: itself, or the first of its ranks;
            None if it is only ever read beside another.
        known: what it says beside the log-probs, if it has both sides.
        decimals: decimals that the framework rounds log-probs to when it writes them; None if it does not.
        option: what turns on the sampler's log-probs in the framework, for the hint of an error.
    """

    name: str
    title: str
    file: str
    ask: str
    both_sides: bool
    endings: tuple[str, ...]
    kind: Kind
    recognises: "Callable[[Head], bool]"
    items: Callable[[FilePart], Iterator[Item]]
    info: Callable[[Path], RunInfo]
    parts: Callable[[Path, int], Iterator[FilePart]]
    lead: Callable[[Path], Path | None]
    known: str = ""
    decimals: int | None = None
    option: str = "the option that records them in the framework"


@dataclass(frozen=True)
class Head:
    """The beginning of a file, by which its format is recognised.

    Attributes:
        path: the file.
        kind: "json", "torch", "pickle", "sqlite", "parquet" or "other", by its first bytes.
        first: the first JSON object, or the object of a torch file; empty if there is none.
        start: the first bytes.
    """

    path: Path
    kind: Kind
    first: Mapping[str, Any]
    start: bytes


@dataclass
class Skipped:
    """The report that goes on: which records were left out, and why.

    Attributes:
        count: how many.
        listed: the first of them, at most `keep`.
        keep: how many to list.
    """

    keep: int = 100
    count: int = 0
    listed: list[Violation] = field(default_factory=list[Violation])

    def __call__(self, violation: Violation) -> None:
        """Count one more."""
        self.count += violation.count
        if len(self.listed) < self.keep:
            self.listed.append(violation)

    def lines(self) -> list[str]:
        """One line a record, and one for those that are not listed."""
        lines = [f"{v.place}: {v.detail}" for v in self.listed]
        if self.count > len(self.listed):
            lines.append(f"and {self.count - len(self.listed):,} more")
        return lines


LINES = (".jsonl", ".jsonl.gz")
JSON = (*LINES, ".json", ".json.gz")
TORCH = (".pt", ".pth")


def whole(path: Path, tokens: int) -> Iterator[FilePart]:
    """A file that is one object cannot be cut."""
    yield FilePart(path)


def has(*names: str) -> Callable[[Head], bool]:
    """Recognise a file by the names in its first object."""
    return lambda head: head.first.keys() >= set(names)


def itself(path: Path) -> Path:
    """A file that is read alone."""
    return path


def unknown_version(path: Path, name: str, known: str, got: object) -> UnreadableFileError:
    """The error for a file that another version of the framework wrote."""
    return UnreadableFileError(
        f"{path}: {name} must be {known}, got {got!r}\n"
        "hint: another version of the framework wrote it, and what its fields mean there is not known here."
    )


TOKEN_COLUMNS = ("token_ids", "log_pi", "mask", "advantage", "versions", "turns", "entropy_pi", "entropy_mu")


def array(value: Any, name: str) -> np.ndarray:
    """A flat list, array or tensor of numbers in this machine's byte order; None among floats becomes NaN."""
    try:
        numbers: np.ndarray | None = to_numpy(value)
        if numbers.dtype.kind == "O":
            numbers = numbers.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        numbers = None
    if numbers is None or numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "fiub"):
        raise BadRecordError(
            f"{name}: wrong type", f"{name} must be a flat list of numbers, got {short(value)}", "the dump is damaged."
        )
    return numbers if numbers.dtype.isnative else numbers.astype(numbers.dtype.newbyteorder("="))


def mask_of(value: Any, name: str) -> np.ndarray:
    """A mask in whatever numbers, each 1 or 0: a token counts or it does not; what is missing is neither."""
    given = array(value, name)
    counts = given == 1
    wrong = ~(counts | (given == 0))
    if wrong.any():
        at = int(np.argmax(wrong))
        what = "null or NaN" if np.isnan(given[at]) else f"{given[at]:.6g}"
        raise BadRecordError(
            f"{name}: neither 0 nor 1",
            f"{name}[{at}] is {what}, and {int(wrong.sum())} of {len(given)} values are neither 0 nor 1",
            "write 1 for tokens that were sampled and count, 0 for the others; or leave the record out (--skip-bad).",
        )
    return counts


def get(record: Mapping[str, Any], name: str, where: str = "the record") -> Any:
    """A field that every record has."""
    if name not in record:
        raise BadRecordError(
            f"{name}: missing",
            f"{where} has no {name}, only {', '.join(map(str, record)) or 'nothing'}",
            "the dump is damaged, or of another version.",
        )
    return record[name]


def same_length(lengths: Mapping[str, int]) -> None:
    """Refuse lists that should be as long as each other and are not."""
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} has {n}" for name, n in lengths.items())
        raise BadRecordError(
            "lists: lengths differ",
            f"lists of one record must have one length: {listed}",
            "the writer was stopped, or the fields are of different samples; leave the record out (--skip-bad).",
        )


def check_row(row: Mapping[str, Any], option: str = "the option that records them in the framework") -> None:
    """Refuse a row that has no sampler's side, whose lists do not line up, or whose values are not log-probs."""
    log_mu = row.get("log_mu")
    if log_mu is None:
        raise BadRecordError(
            "log_mu: not in the dump",
            "the record has no log-probs of the policy that sampled",
            f"they cannot be computed afterwards: turn on {option} and run again.",
        )
    for name in ("log_mu", "log_pi"):
        if row.get(name) is not None and np.ndim(row[name]) != 1:
            raise BadRecordError(f"{name}: wrong type", f"{name} must be one number a token", "the dump is damaged.")
    lengths = {name: len(row[name]) for name in TOKEN_COLUMNS if row.get(name) is not None and np.ndim(row[name]) == 1}
    same_length({"log_mu": len(log_mu), **lengths})
    counted = {name: _counted(row, name) for name in ("log_mu", "log_pi") if row.get(name) is not None}
    for name, values in counted.items():
        wrong = wrong_unit(values)
        if wrong is not None:
            raise BadRecordError(f"{name}: {wrong.kind}", f"{name} is no log-prob: {wrong.text}", wrong.hint)
    if len(counted) == 2:
        base = other_base(counted["log_mu"], counted["log_pi"])
        if base is not None:
            raise BadRecordError(base.kind, base.text, base.hint)


def _counted(row: Mapping[str, Any], name: str) -> np.ndarray:
    """Values of the tokens that count; those that are not finite too."""
    values = np.asarray(row[name], np.float64)
    return values if row.get("mask") is None else values[np.asarray(row["mask"], bool)]


class Constant:
    """Looks whether a column holds one number over and over, which no model's log-probs do."""

    TOKENS = 16  # of two responses or more: one may be as good as certain, but not each from its first token on
    ALONE = 64  # tokens of a single response
    MOST_ROWS = 256  # looked at, at most

    def __init__(self) -> None:
        self._value: dict[str, float] = {}
        self._tokens = {"log_mu": 0, "log_pi": 0}
        self._rows = 0

    def __call__(self, row: Mapping[str, Any]) -> bool:
        """Take one more row; say whether more of them would change nothing."""
        self._rows += 1
        for name in list(self._tokens):
            if row.get(name) is None:
                del self._tokens[name]
                continue
            values = _counted(row, name)
            if not len(values):
                continue
            first = self._value.setdefault(name, float(values[0]))
            same = np.isnan(values) if math.isnan(first) else values == first
            if same.all():
                self._tokens[name] += len(values)
            else:
                del self._tokens[name]
        return not self._tokens or self._found() is not None or self._rows >= self.MOST_ROWS

    def check(self, path: Path) -> None:
        """Refuse the file if a column was the same number for all that was looked at."""
        name = self._found()
        if name is None:
            return
        value = self._value[name]
        what, why = f"{value + 0.0:g}", "it was not recorded"  # -0 is 0
        if math.isnan(value):
            what = "null or NaN"
        elif value == 0:
            why = "it was not recorded, or tokens were drawn greedily (temperature 0), which leaves no ratio"
        raise UnreadableFileError(
            f"{path}: {name} is {what} for each of the first {self._tokens[name]} tokens: {why}\n"
            "hint: record the log-prob that each token was drawn with, and run again."
        )

    def _found(self) -> str | None:
        enough = self.TOKENS if self._rows > 1 else self.ALONE
        return next((name for name, n in self._tokens.items() if n >= enough), None)


def likeliest(places: Sequence[Sequence[tuple[Any, Any]]]) -> dict[str, Any]:
    """Make columns of the sampler's likeliest tokens at each place; none if a place has none.

    A server that was asked for k gives k + 1 where the sampled token is not among them: which tokens stand here must
    not depend on which was sampled, so that as many are taken of every place as the shortest has.

    Args:
        places: token ids and log-probs, in any order.
    """
    known = all(isinstance(i, int) and isinstance(x, int | float) for place in places for i, x in place)
    k = min((len(place) for place in places), default=0)
    if not k or not known or max(map(len, places)) == 1:  # one a place is the sampled one, whatever was likeliest
        return {}
    best = [sorted(place, key=lambda one: -one[1])[:k] for place in places]
    return {
        "top_ids": [np.array([i for i, _ in place], np.int64) for place in best],
        "top_log_mu": [np.array([x for _, x in place], np.float64) for place in best],
    }


def kept_ids(value: Any, name: str, length: int) -> dict[str, Any]:
    """Make the column of what the sampler kept at each place; none where the engine did not say it.

    Args:
        value: a list of ids a place, null or empty where all were kept; or vLLM's `SamplingMask`, which holds such
            lists under `token_ids`, or all ids end to end with `offsets`.
        name: where it stands, for the error.
        length: tokens that were sampled.
    """
    offsets = None
    if isinstance(value, Mapping):
        value, offsets = value.get("token_ids"), value.get("offsets")
    if value is None:
        return {}
    if offsets is not None:
        flat, ends = array(value, name), array(offsets, f"{name}.offsets")
        whole = ends == np.floor(ends)
        if not len(ends) or not whole.all() or ends[0] != 0 or ends[-1] != len(flat) or (np.diff(ends) < 0).any():
            raise BadRecordError(
                f"{name}: offsets are wrong",
                f"{name}.offsets must rise from 0 to the {len(flat)} ids, got {short(offsets)}",
                "the dump is damaged, or of another version of the engine.",
            )
        value = np.split(flat, ends[1:-1].astype(np.int64)) if len(ends) > 1 else []
    if not isinstance(value, list | tuple) or not all(
        x is None or isinstance(x, list | tuple | np.ndarray) for x in value
    ):
        raise BadRecordError(
            f"{name}: wrong type", f"{name} must be one list of ids a token, got {short(value)}", "the dump is damaged."
        )
    if len(value) != length:
        raise BadRecordError(
            f"{name}: count differs",
            f"{name} has {len(value)} lists, and {length} tokens were sampled",
            "places were lost on the way (pieces of a stream, drafts); leave the record out (--skip-bad).",
        )
    places = [None if x is None or not len(x) else array(x, f"{name}[{i}]") for i, x in enumerate(value)]
    for i, ids in enumerate(places):
        if ids is not None and (ids.dtype.kind == "f" and not (ids == np.floor(ids)).all()):
            raise BadRecordError(f"{name}: no ids", f"{name}[{i}] holds {short(ids.tolist())}", "ids are integers.")
    if all(ids is None for ids in places):
        return {}
    return {"support_ids": [None if ids is None else ids.astype(np.int64) for ids in places]}


def prompt_name(ids: Any) -> str:
    """A name for a prompt that the dump does not name: equal token ids, equal names."""
    given = array(ids, "prompt token ids")
    if not ((np.abs(given) < 1 << 53) & (given == np.floor(given))).all():  # NaN is neither
        raise BadRecordError("prompt: no ids", "the prompt's token ids are not all integers", "the dump is damaged.")
    flat = given.astype("<i8")
    return "prompt-" + hashlib.blake2b(flat.tobytes(), digest_size=8).hexdigest()


def turns_of(mask: np.ndarray) -> np.ndarray:
    """Turns, counted from 0: one begins where sampling begins again after a gap in the mask."""
    starts = mask & ~np.concatenate([[False], mask[:-1]])
    return np.maximum(np.cumsum(starts) - 1, 0)


def number(value: Any) -> float | None:
    """A finite number, or None for anything else (a reward may be a dictionary)."""
    if isinstance(value, torch.Tensor | np.ndarray) and math.prod(value.shape) == 1:
        value = value.item()
    return float(value) if finite(value) else None


def version(value: Any) -> int | None:
    """A weight version that is written as a number, or None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int) or (isinstance(value, str) and value.isdecimal() and len(value) < 20):
        found = int(value)
        return found if abs(found) < 1 << 31 else None
    return None


def one_version(values: Sequence[Any], length: int) -> np.ndarray | None:
    """The version of each token if one version sampled all; which token is of which is not told otherwise."""
    versions = {version(v) for v in values}
    only = versions.pop() if len(versions) == 1 else None
    return None if only is None else np.full(length, only, np.int32)


_TOKEN_BYTES = 48  # about what a token takes in these dumps: several numbers of nine digits
_WHOLE_FILE = 1 << 30  # bytes of a file that is one JSON object, at most


def cut_lines(path: Path, tokens: int) -> Iterator[FilePart]:
    """Parts of about so many tokens, cut at the ends of lines; a gzipped file is one part."""
    if path.suffix == ".gz" or not _is_lines(path):
        yield FilePart(path)
        return
    with open_regular(path) as file:
        for part in cut_at_lines(path, file, tokens * _TOKEN_BYTES, lambda _, text: bool(text.strip())):
            yield replace(part, rows=None)  # a line may be several


def items_of_lines(part: FilePart, rows: Callable[[Mapping[str, Any], int], Sequence[Row]]) -> Iterator[Item]:
    """The records of a part, one a line; `rows` makes rows of a line's object and its number in the file.

    A file that is one JSON object or list, over several lines, is its objects.
    """
    path = part.path
    if part == FilePart(path) and not _is_lines(path):
        for number, record in enumerate(_documents(path)):
            yield Item(partial(_rows_of, record, number, rows), number)
        return
    number, line = part.first_row, part.first_line - 1
    try:
        for line, text in numbered_lines(part):
            if text.strip():
                yield Item(partial(_rows_of_text, text, number, rows), number, line)
                number += 1
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise UnreadableFileError(
            f"{path}: truncated or damaged gzip after line {line}: {e}\nhint: copy the file again."
        ) from None


def first_object(path: Path, opened: Opened | None = None) -> Mapping[str, Any]:
    """Read the first object of a file of JSON; empty if it has none or is not JSON."""
    try:
        with open_lines(path, "rb") if opened is None else opened.lines() as file:
            text = next((x for x in limited_lines(file, path) if x.strip()), b"")
        value = _parsed(text)
        if value is None:
            value = next(iter(_documents(path)), None)
    except (EOFError, zlib.error, gzip.BadGzipFile, UnreadableFileError):
        return {}
    if isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, dict) else {}


def _rows_of_text(text: bytes, number: int, rows: Callable[[Mapping[str, Any], int], Sequence[Row]]) -> Sequence[Row]:
    try:
        record = loads(text)
    except ValueError as e:
        if isinstance(e, LimitError):
            raise BadRecordError("line: not read", str(e), "each line is one JSON object of one record.") from None
        if not text.endswith(b"\n"):
            raise BadRecordError(
                "line: cut short",
                f"the last line is cut short ({len(text)} bytes, no newline at its end): {e}",
                "the writer was stopped, or still writes; the lines before it are good (--skip-bad reads them).",
            ) from None
        raise BadRecordError("line: not JSON", f"not JSON: {e}", "each line is one JSON object.") from None
    return _rows_of(record, number, rows)


def _rows_of(record: Any, number: int, rows: Callable[[Mapping[str, Any], int], Sequence[Row]]) -> Sequence[Row]:
    if isinstance(record, list):  # an engine's answer to several prompts at once
        return [row for i, one in enumerate(record) for row in _rows_of(one, (number << 16) + i, rows)]
    if not isinstance(record, dict):
        raise BadRecordError(
            "record: not an object", f"must be a JSON object, got {type(record).__name__}", "see the dump."
        )
    return rows(record, number)


def _is_lines(path: Path) -> bool:
    """Whether the first line that is not blank is a JSON value by itself."""
    with open_lines(path, "rb") as file:
        text = next((x for x in limited_lines(file, path) if x.strip()), b"")
    return not text.endswith(b"\n") or _parsed(text) is not None


def _parsed(text: bytes) -> Any:
    try:
        return loads(text)
    except ValueError:
        return None


def _documents(path: Path) -> list[Any]:
    with open_lines(path, "rb") as file:
        try:
            value = loads(read_packed(file, path, _WHOLE_FILE))
        except UnreadableFileError:
            raise
        except LimitError as e:
            raise UnreadableFileError(f"{path}: {e}\nhint: write one record a line, as one JSON object.") from None
        except ValueError as e:
            raise UnreadableFileError(f"{path}: not JSON: {e}\nhint: one object a line, or one JSON value.") from None
    return value if isinstance(value, list) else [value]
