"""Readers of what training frameworks dump: files of slime, miles, NeMo-RL, prime-rl and others, as rollout records."""

from reweigh.dumps.form import Format, Skipped
from reweigh.dumps.open import (
    FORMATS,
    RECORDS,
    DumpRow,
    Found,
    UnknownFormatError,
    find,
    formats,
    info_of,
    read,
    recognise,
    source,
)
from reweigh.dumps.tinker import tinker_rows

__all__ = [
    "FORMATS",
    "RECORDS",
    "DumpRow",
    "Format",
    "Found",
    "Skipped",
    "UnknownFormatError",
    "find",
    "formats",
    "info_of",
    "read",
    "recognise",
    "source",
    "tinker_rows",
]
