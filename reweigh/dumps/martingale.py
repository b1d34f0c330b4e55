"""martingale: tokens.db, an SQLite ledger of each token's log-prob and of every later score of it by the trainer."""

import os
import re
import sqlite3
import struct
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from reweigh.dumps.form import BadRecordError, Format, Head, Item, Row, itself, whole
from reweigh.guard import LINE_BYTES, loads, opened_regular
from reweigh.records.files import FilePart
from reweigh.records.schema import LogprobsMode, RunInfo, UnreadableFileError

_FLOATS = {"f32": (">f", 8), "f64": (">d", 16)}
_TABLES = {"llm_revisions", "sequences", "scores"}
_SEQUENCES = "SELECT digest, record_json FROM sequences ORDER BY actor_id, sequence_index"
_SCORES = "SELECT train_revision_digest, position, record_json FROM scores WHERE sequence_digest = ? ORDER BY rowid"
_COUNTS = ("SELECT COUNT(*) FROM sequences", "SELECT COUNT(DISTINCT sequence_digest) FROM scores")
_MODES: Mapping[str, LogprobsMode] = {"raw_logprobs": "raw", "processed_logprobs": "processed"}


_COMPUTED = re.compile(r"\bvirtual\s+table\b|\bas\s*\(", re.IGNORECASE)  # of the statement that makes a table


def _recognises(head: Head) -> bool:
    with closing(_opened(head.path)) as db:
        tables = _query(db, head.path, "SELECT name FROM sqlite_master WHERE type = 'table'")
        return {name for (name,) in tables} >= _TABLES


def _opened(path: Path) -> sqlite3.Connection:
    # Without a writer's log beside it nobody writes, and the file is read without leaving anything beside it.
    os.close(opened_regular(path))
    still = not path.with_name(path.name + "-wal").exists()
    db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro{'&immutable=1' if still else ''}", uri=True)
    if sys.version_info >= (3, 11):
        db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LINE_BYTES)  # of one value
    _query_all(db, path, "PRAGMA trusted_schema = OFF")
    views = _query_all(db, path, "SELECT name FROM sqlite_master WHERE type != 'table' AND type != 'index'")
    named = {name for (name,) in views}
    made = _query_all(db, path, "SELECT sql FROM sqlite_master WHERE type = 'table'")
    if named & _TABLES or any(_COMPUTED.search(sql or "") for (sql,) in made):
        db.close()
        raise UnreadableFileError(
            f"{path}: is a database that computes what it holds (a view, a virtual table or a generated column)\n"
            "hint: no recorder writes such a one; copy its tables into a database of plain tables."
        )
    return db


def _query_all(db: sqlite3.Connection, path: Path, sql: str) -> list[tuple[Any, ...]]:
    try:
        return list(_query(db, path, sql))
    except UnreadableFileError:
        db.close()
        raise


def _query(db: sqlite3.Connection, path: Path, sql: str, *values: Any) -> Generator[tuple[Any, ...], None, None]:
    try:
        yield from db.execute(sql, values)
    except sqlite3.DatabaseError as e:
        raise UnreadableFileError(
            f"{path}: truncated or damaged database: {e}\nhint: copy it again, with its -wal file if there is one."
        ) from None


def _items(part: FilePart) -> Iterator[Item]:
    path = part.path
    with closing(_opened(path)) as db, closing(_query(db, path, _SEQUENCES)) as sequences:
        steps = dict(_query(db, path, "SELECT digest, step FROM llm_revisions"))
        trained = any(True for _ in _query(db, path, "SELECT 1 FROM scores LIMIT 1"))
        for i, (digest, text) in enumerate(sequences):
            scores = list(_query(db, path, _SCORES, digest))
            if scores or not trained:
                yield Item(partial(_rows, text, scores, steps), i)


def _rows(text: str, scores: Sequence[tuple[str, int, str]], steps: Mapping[str, int]) -> Sequence[Row]:
    """One row for each revision that the trainer scored the sequence under; one without log_pi if it never did."""
    record = _json(text)
    tokens = record["tokens"]
    versions = [steps.get(token["revision_digest"]) for token in tokens]
    row: dict[str, Any] = {
        "sequence_id": f"actor{record['actor_id']}/{record['sequence_index']}",
        "prompt_id": record["prompt_digest"],
        "prompt_ids": record.get("prompt_ids"),
        "prompt_length": record["prompt_len"],
        "token_ids": np.array([token["token_id"] for token in tokens]),
        "log_mu": np.array([_float(token["logprob_bits"]) for token in tokens]),
        "versions": None if None in versions else np.array(versions),
    }
    sampled = row["log_mu"] != 0  # its recorder of TRL keeps a tool's tokens too, with log-prob 0 and no mask
    if not sampled.all():
        row["mask"] = sampled
    if record.get("reward_bits") is not None:
        row["advantage"] = _float(
            record["reward_bits"]
        )  # what martingale calls the reward is what the loss multiplies by
    by_revision: dict[str, dict[int, float]] = {}
    for revision, position, score in scores:
        by_revision.setdefault(revision, {})[position] = _float(_json(score)["logprob_bits"])
    rows: list[Row] = []
    for revision, log_pi in by_revision.items():
        if sorted(log_pi) != list(range(len(tokens))):
            raise BadRecordError(
                "lists: lengths differ",
                f"the sequence has {len(tokens)} tokens, revision {revision[:12]} scored {len(log_pi)} of them",
                "the trainer was stopped while it wrote; leave the sequence out (--skip-bad).",
            )
        step = steps.get(revision)
        name = f"{row['sequence_id']}@{revision[:12] if step is None else step}"
        scored = {"sequence_id": name, "step": step, "trainer_version": step}
        rows.append({**row, **scored, "log_pi": np.array([log_pi[i] for i in range(len(tokens))])})
    return rows or [row]


def _json(text: str) -> dict[str, Any]:
    try:
        return loads(text)
    except ValueError as e:
        raise BadRecordError(
            "record_json: not JSON", f"record_json is not JSON: {e}", "the database is damaged."
        ) from None


def _float(bits: str) -> float:
    """`f32:bf800000` -> -1.0."""
    kind, _, digits = bits.partition(":")
    form, width = _FLOATS.get(kind, ("", -1))
    try:
        if len(digits) != width:
            raise ValueError
        return struct.unpack(form, bytes.fromhex(digits))[0]
    except ValueError:
        hint = "another version of martingale wrote it, or the database is damaged."
        raise BadRecordError(
            "bits: not a float", f"logprob_bits must be f32: or f64: and hex digits, got {bits!r}", hint
        ) from None


def _info(path: Path) -> RunInfo:
    with closing(_opened(path)) as db:
        manifests = [m for (m,) in _query(db, path, "SELECT manifest_json FROM llm_revisions ORDER BY step LIMIT 1")]
        counts = [n for sql in _COUNTS for (n,) in _query(db, path, sql)]
    sampler = _json(manifests[0]).get("sampler", {}) if manifests else {}
    names = ("engine", "engine_version", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    return RunInfo(
        **{name: sampler.get(name) for name in names},
        dtype_mu=sampler.get("dtype"),
        logprobs_mode=_MODES.get(sampler.get("logprobs_mode") or ""),
        note="; ".join(filter(None, (_untrained(*counts), _own(sampler.get("logprobs_source"))))) or None,
    )


def _own(source: Any) -> str | None:
    """Say that what stands for the engine's log-probs are the trainer's, of which the recorder takes what there is."""
    if not isinstance(source, str) or not source.startswith("trainer"):
        return None
    return f"log_mu is the trainer's own ({source}), not an engine's: there is no gap between engines to see"


def _untrained(sequences: int, scored: int) -> str | None:
    """Say what is left out of a ledger that the trainer wrote to: what it did not come to."""
    if scored in (0, sequences):
        return None
    return f"{sequences - scored} of {sequences} sequences have no score of the trainer and are left out"


FORMAT = Format(
    name="martingale",
    title="martingale token ledger: an SQLite database with llm_revisions, sequences and scores",
    file="martingale, `tokens.db`",
    ask="its recorder",
    known="prompt, both weight versions, advantage, sampling settings",
    both_sides=True,
    endings=(".db", ".sqlite", ".sqlite3"),
    kind="sqlite",
    recognises=_recognises,
    items=_items,
    info=_info,
    parts=whole,
    lead=itself,
)
