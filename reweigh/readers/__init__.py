"""Readers of what training frameworks dump: files of slime, miles, NeMo-RL, prime-rl and others, as rollout records."""

from reweigh.readers.folders import Found, find
from reweigh.readers.form import Format, Skipped
from reweigh.readers.reading import DumpRow, formats, info_of, read, reader_of
from reweigh.readers.recognition import FORMATS, RECORDS, UnknownFormatError, recognise
from reweigh.readers.tinker import tinker_rows

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
    "reader_of",
    "recognise",
    "tinker_rows",
]
