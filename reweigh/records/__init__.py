"""Rollout records: what two policies said about the same sampled tokens, in Parquet or JSON lines."""

from reweigh.records.convert import convert
from reweigh.records.describe import Described, describe
from reweigh.records.paths import expand
from reweigh.records.read import RecordBatch, read_batches, read_info, read_tables
from reweigh.records.schema import ARROW_SCHEMA, COLUMNS, ROLLOUT_REQUIRED, SCHEMA_VERSION, Column, RunInfo
from reweigh.records.validate import Validation, validate
from reweigh.records.violation import UnreadableFileError, Violation
from reweigh.records.write import RecordWriter

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
