"""Which framework wrote a file, from what stands in it."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from reweigh.readers import martingale, miles, nemo_rl, open_instruct, openai, prime_rl, sglang, skyrl, slime, verifiers
from reweigh.readers.form import LINES, Format, Head
from reweigh.readers.lines import first_object
from reweigh.readers.tensors import load_torch
from reweigh.records.parquet import parquet_names
from reweigh.records.violation import UnreadableFileError

FORMATS: Mapping[str, Format] = {
    one.name: one
    for one in (
        slime.TRAIN,
        slime.ROLLOUT,
        miles.FORMAT,
        nemo_rl.FORMAT,
        prime_rl.FORMAT,
        verifiers.FORMAT,
        skyrl.FORMAT,
        martingale.FORMAT,
        open_instruct.FORMAT,
        openai.FORMAT,
        sglang.FORMAT,
    )
}
"""Every format that is read as it is, by the name that `--reader` takes."""
RECORDS = "records"
"""The name of reweigh's own format, Parquet or JSON lines, where a format is named."""

_START = 1 << 12  # bytes looked at; a pickle names its class in the first hundred
_MAGIC = (
    (b"SQLite format 3\0", "sqlite"),
    (b"PK\x03\x04", "torch"),
    (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", "torch"),  # before torch 1.6
    (b"\x80", "pickle"),
    (b"PAR1", "parquet"),
)
_OUR_OWN = {"reweigh", "log_mu", "log_pi", "sequence_id"}
# What other files of these frameworks have: text, but no tokens and no log-probs.
_TEXT_ONLY = (
    ({"input", "output", "score"}, "verl's rollout dump"),
    ({"seqlen", "prompt_len", "completion"}, "AReaL's rollout dump"),
    ({"content", "rewards", "idx"}, "NeMo-RL's validation data"),
    ({"input_prompt", "output_response"}, "SkyRL's evaluation dump"),
    ({"prompt", "completion"}, "completions that a trainer logged"),
)


class UnknownFormatError(UnreadableFileError):
    """A file that no reader knows."""


def look(path: Path) -> Head:
    """What recognition goes by.

    Raises:
        UnreadableFileError: a torch file that is damaged, or that holds more than plain data.
    """
    with open(path, "rb") as file:
        start = file.read(_START)
    packed = start[:2] == b"\x1f\x8b"
    kind = next((kind for magic, kind in _MAGIC if start.startswith(magic)), "json" if packed else "other")
    if not packed and start.lstrip()[:1] in (b"{", b"["):
        kind = "json"
    first: Any = {}
    if kind == "json":
        first = first_object(path)
    elif kind == "torch":
        first = load_torch(path)
    return Head(path, kind, first if isinstance(first, Mapping) else {}, start)


def recognise(path: str | PathLike[str]) -> Format | None:
    """The format of a file by its content; None for reweigh's own.

    Raises:
        UnknownFormatError: no reader knows it; the message lists what was tried, and what the file looks like.
        UnreadableFileError: it is damaged.
    """
    head = look(Path(path))
    found = [one for one in FORMATS.values() if one.recognises(head)]
    if found:
        return found[0]
    if head.path.name.endswith((".parquet", ".pq")) and _OUR_OWN & _columns(head.path):
        return None
    if broken_lines(head) or (_is_lines(head) and _OUR_OWN & set(head.first)):
        return None  # what is broken is told by the reader of records
    raise _unknown(head)


def _columns(path: Path) -> set[str]:
    try:
        return set(parquet_names(path))
    except UnreadableFileError:
        return _OUR_OWN  # damaged: what is wrong is told by the reader of records


def _is_lines(head: Head) -> bool:
    return head.kind in ("json", "other") and head.path.name.endswith(LINES)


def broken_lines(head: Head) -> bool:
    """Whether a file is named as JSON lines and does not begin with a JSON object."""
    return _is_lines(head) and not head.first


def _unknown(head: Head) -> UnknownFormatError:
    fields = ", ".join(list(map(str, head.first))[:12])
    looks = {"json": "JSON", "torch": "a torch file", "pickle": "a pickle", "sqlite": "an SQLite database"}
    seen = looks.get(head.kind, head.kind if head.kind == "parquet" else f"a file that starts with {head.start[:8]!r}")
    if fields:
        seen += f" with {fields}"
    for names, what in _TEXT_ONLY:
        if names <= set(head.first):
            return UnknownFormatError(
                f"{head.path}: {what} has text and no log-probs, so there is nothing to compare: it is {seen}\n"
                "hint: record the log-probs of both sides while training, see docs/readers.md."
            )
    tried = "".join(f"\n  {name}: {one.title}" for name, one in FORMATS.items())
    return UnknownFormatError(
        f"{head.path}: no reader knows this file. It is {seen}. Tried:{tried}\n"
        f"  {RECORDS}: Parquet or JSON lines with log_mu\n"
        "hint: --reader NAME takes it as that format; docs/records.md says how to write records from anything."
    )


def named(reader: str) -> Format | None:
    """The format that `--reader` names; None for reweigh's own."""
    if reader == RECORDS:
        return None
    if reader not in FORMATS:
        raise ValueError(f"--reader: must be one of {', '.join((*FORMATS, RECORDS))}, got {reader!r}")
    return FORMATS[reader]
