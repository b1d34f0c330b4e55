"""Rollout records: what two policies said about the same sampled tokens, in Parquet or JSON lines."""

from reweigh.records.files import RecordBatch, expand, read_batches, read_info, read_tables
from reweigh.records.schema import (
    ARROW_SCHEMA,
    COLUMNS,
    ROLLOUT_REQUIRED,
    SCHEMA_VERSION,
    Column,
    RunInfo,
    UnreadableFileError,
    Violation,
)
from reweigh.records.tools import Described, Validation, describe, validate
from reweigh.records.write import RecordWriter, convert

__all__ = [
    "ARROW_SCHEMA",
    "COLUMNS",
    "ROLLOUT_REQUIRED",
    "SCHEMA_VERSION",
    "Column",
    "Described",
    "RecordBatch",
    "RecordWriter",
    "RunInfo",
    "UnreadableFileError",
    "Validation",
    "Violation",
    "convert",
    "describe",
    "expand",
    "read_batches",
    "read_info",
    "read_tables",
    "validate",
]
