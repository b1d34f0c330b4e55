"""What is in a set of record files: sizes, columns, lengths, prompts, steps and the run they came from."""
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false, reportAttributeAccessIssue=false
# pyarrow ships no types, and makes the functions of pyarrow.compute when it is imported.

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reweigh.records.formats import Formats
from reweigh.records.packed import stable_hashes
from reweigh.records.paths import Paths
from reweigh.records.read import RECORDS, read_info, read_tables
from reweigh.records.schema import COLUMNS, ROLLOUT_REQUIRED, RunInfo
from reweigh.records.table import lengths_of, single, token_values


@dataclass(frozen=True)
class Described:
    """Counts over all files together.

    Attributes:
        files: in the order read.
        infos: what each file says of its run.
        rows: responses.
        tokens: response tokens; `tokens_counted` of them are in the mask.
        lengths: shortest, median and longest response, in tokens; None without rows.
        null_rows: rows in which a column is null, for each column that has a value somewhere.
        prompts: distinct prompt ids; None if no row has one.
        steps: first and last; None if no row has one.
        envs: rows in each environment.
    """

    files: tuple[Path, ...]
    infos: tuple[RunInfo, ...]
    rows: int
    tokens: int
    tokens_counted: int
    lengths: tuple[int, float, int] | None
    null_rows: dict[str, int]
    prompts: int | None
    steps: tuple[int, int] | None
    envs: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        shortest, median, longest = self.lengths or (None, None, None)
        return {
            "files": [str(path) for path in self.files],
            "rows": self.rows,
            "tokens": self.tokens,
            "tokens_counted": self.tokens_counted,
            "lengths": {"min": shortest, "median": median, "max": longest},
            "columns": {name: {"null_rows": n, "null_share": n / self.rows} for name, n in self.null_rows.items()},
            "prompts": self.prompts,
            "steps": self.steps and {"first": self.steps[0], "last": self.steps[1]},
            "envs": self.envs,
            "metadata": [info.to_dict() for info in self.infos],
        }


def describe(paths: Paths, on_rows: Callable[[int], None] | None = None, *, formats: Formats = RECORDS) -> Described:
    """Read all files once and count. Rollouts without log_pi are described too.

    Args:
        paths: files, folders or globs.
        on_rows: called with the number of rows just read, for a progress bar.
        formats: what files may be.
    """
    files = formats.expand(paths)
    lengths: list[np.ndarray] = []
    prompts: set[int] = set()
    values_of = dict.fromkeys((c.name for c in COLUMNS), 0)
    envs: dict[str, int] = {}
    steps: list[int] = []
    tokens_counted = 0
    for table, _ in read_tables(files, required=ROLLOUT_REQUIRED, formats=formats):
        lengths.append(lengths_of(single(table, "log_mu")))
        tokens_counted += _counted(table, lengths[-1])
        for name in table.schema.names:
            values_of[name] += table.num_rows - table.column(name).null_count
        if "prompt_id" in table.schema.names:
            prompts.update(stable_hashes(single(table, "prompt_id").drop_null(), "prompt").tolist())
        if "step" in table.schema.names:
            span = pc.min_max(table.column("step")).as_py()
            steps += [x for x in (span["min"], span["max"]) if x is not None]
        if "env" in table.schema.names:
            for pair in pc.value_counts(single(table, "env").drop_null()).to_pylist():
                envs[pair["values"]] = envs.get(pair["values"], 0) + pair["counts"]
        if on_rows is not None:
            on_rows(table.num_rows)
    length = np.concatenate(lengths) if lengths else np.zeros(0, np.int64)
    return Described(
        files=tuple(files),
        infos=tuple(read_info(path, formats) for path in files),
        rows=len(length),
        tokens=int(length.sum()),
        tokens_counted=tokens_counted,
        lengths=(int(length.min()), float(np.median(length)), int(length.max())) if len(length) else None,
        null_rows={name: len(length) - n for name, n in values_of.items() if n},
        prompts=len(prompts) or None,
        steps=(min(steps), max(steps)) if steps else None,
        envs=dict(sorted(envs.items())),
    )


def _counted(table: pa.Table, lengths: np.ndarray) -> int:
    if "mask" not in table.schema.names:
        return int(lengths.sum())
    return int(token_values(single(table, "mask"), lengths).true_count)
