"""Measure what gap is normal for a model and engine, in a standard way, as rows of the table of known gaps."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from reweigh.guard import loads
from reweigh.probe.engine import ProbeError, Prompt
from reweigh.probe.matrix import Arm, ArmFailure, ArmResult, MatrixPlan, Setup, run_matrix
from reweigh.records import read_info


@dataclass(frozen=True)
class LevelRow:
    """One row in the format of `reweigh/audit/known.toml`, and the records that it is of."""

    values: dict[str, str | int | float]
    records: Path

    def to_toml(self) -> str:
        """Write it as one line."""
        # A JSON string is a TOML string, and so are its numbers.
        inside = ", ".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in self.values.items())
        return f"    {{ {inside} }},"


def measure_levels(
    base: Setup,
    prompts: Sequence[Prompt],
    lengths: Sequence[int],
    folder: Path,
    *,
    command: str,
    seconds: float | None = None,
    isolate: bool = True,
    told: Callable[[int, str | None], None] = lambda length, reason: None,
) -> list[LevelRow]:
    """Measure at each length; one that fails is told and left out.

    Args:
        base: the pair; temperature and top-p must be 1.
        prompts: the same for each length.
        lengths: most tokens of a response.
        folder: keeps what is measured, a folder in it for each length.
        command: how it was measured, for the row.
        seconds: that sampling or scoring may take.
        isolate: measure in processes of their own.
        told: called with a length and None when it begins, or why it has no row.

    Raises:
        ProbeError: the pair samples otherwise than the table's rows do.
    """
    if not base.sampling.plain:
        raise ProbeError("levels: temperature and top_p must be 1, as in all rows of the table\nhint: leave them out.")
    rows: list[LevelRow] = []
    for length in lengths:
        setup = replace(base, sampling=replace(base.sampling, max_tokens=length))
        told(length, None)
        plan = MatrixPlan(folder / f"{length}", setup, [Arm("base")], prompts, seconds, isolate)
        try:
            [result] = run_matrix(plan, _silent)
        except ProbeError as error:
            told(length, str(error).split("\nhint:")[0])
            continue
        if isinstance(result, ArmFailure):
            raise AssertionError(result.reason)  # a base that fails is raised
        rows.append(_row(result, setup, command))
    return rows


def _silent(*_: object) -> None:
    """Tell nobody of an arm."""


def _row(found: ArmResult, setup: Setup, command: str) -> LevelRow:
    info = read_info(found.records)
    scored: Any = loads(next((found.records.parents[1] / "parts").glob("trainer-*.json")).read_text("utf-8"))
    sums = list(found.prompts.values())
    gap, size, tokens = (sum(x) for x in zip(*sums, strict=True))
    args = " ".join(f"{key}={value}" for key, value in sorted(setup.engine.args.items()))
    trainer = f"{info.trainer} {info.trainer_version} in {info.dtype_pi}"
    date = datetime.now(timezone.utc).date().isoformat()
    responses = len(sums) * setup.sampling.n
    values: dict[str, str | int | float] = {
        "engine": info.engine or "",
        "version": info.engine_version or "",
        "types": info.dtype_mu or "",
        "more": args,
        "note": args,
        "trainer": trainer,
        "model": info.model or "",
        "size": float(f"{scored['parameters'] / 1e9:.3g}"),
        "length": round(tokens / responses),
        "kl": float(f"{gap / tokens:.3g}"),
        "mean_abs": float(f"{size / tokens:.3g}"),
        "state": "measured",
        "source": f"{command}, {responses} responses, {date}",
    }
    return LevelRow({key: value for key, value in values.items() if value != ""}, found.records)
