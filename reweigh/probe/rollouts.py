"""Samples on disk before they are scored, one a line, so that none is lost and another process may score them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from reweigh.probe.engine import EngineInfo, ProbeError, SamplingSettings

_FORMAT = 1


@dataclass(frozen=True)
class Rollout:
    """A sampled response with its prompt.

    Attributes:
        sequence_id: unique in the file.
        prompt_id: equal for responses to one prompt.
        prompt_ids: token ids of the prompt as the engine got it.
        token_ids: the response.
        log_mu: nats, a token.
        finish_reason: why it ended, if known.
        text: the response decoded, if asked for.
    """

    sequence_id: str
    prompt_id: str
    prompt_ids: list[int]
    token_ids: list[int]
    log_mu: list[float]
    finish_reason: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class RolloutFile:
    """What `read_rollouts` found.

    Attributes:
        model: what was asked for as `--model` when sampling.
        engine: what sampled.
        settings: how.
        rollouts: the samples.
        torn: True if the last line was cut off and left out.
    """

    model: str
    engine: EngineInfo
    settings: SamplingSettings
    rollouts: list[Rollout] = field(repr=False)
    torn: bool = False


class RolloutWriter:
    """Appends samples to a file, each on disk before the next; the first line says what sampled and how."""

    def __init__(self, path: Path, model: str, engine: EngineInfo, settings: SamplingSettings) -> None:
        self._path = path
        self._file: TextIO | None = None
        self._head = {
            "reweigh_rollouts": _FORMAT,
            "model": model,
            "engine": asdict(engine),
            "settings": asdict(settings),
        }

    def __enter__(self) -> "RolloutWriter":
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def write(self, rollout: Rollout) -> None:
        """Append one sample; the first one makes the file."""
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("w", encoding="utf-8")
            _put(self._file, self._head)
        _put(self._file, asdict(rollout))


def _put(file: TextIO, row: Mapping[str, Any]) -> None:
    file.write(json.dumps(row, ensure_ascii=False) + "\n")
    file.flush()


def read_rollouts(path: Path) -> RolloutFile:
    """Read what a `RolloutWriter` wrote, whole or cut off in its last line.

    Raises:
        ProbeError: no such file, not a rollout file, or a broken line; the message has the line's number.
    """
    if not path.is_file():
        raise ProbeError(f"--rescore: no file {path}\nhint: write one with `reweigh probe --sample-only {path}`.")
    lines = path.read_text("utf-8").split("\n")
    head = _parse(lines[0], path, 1)
    if head.get("reweigh_rollouts") != _FORMAT:
        raise ProbeError(
            f'--rescore: {path} line 1 must hold "reweigh_rollouts": {_FORMAT}, got {lines[0][:60]!r}\n'
            "hint: this is not a file of samples; write one with `reweigh probe --sample-only FILE`."
        )
    # A whole file ends in a newline, so what follows the last one is either nothing or half a line.
    rows = [(number, line) for number, line in enumerate(lines[1:-1], 2) if line]
    rollouts = [_rollout(_parse(line, path, number), path, number) for number, line in rows]
    return RolloutFile(
        head["model"], EngineInfo(**head["engine"]), SamplingSettings(**head["settings"]), rollouts, bool(lines[-1])
    )


def _parse(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ProbeError(
            f"--rescore: {path} line {number} is not JSON: {error}\nhint: delete that line, or sample again."
        ) from error
    if not isinstance(row, dict):
        raise ProbeError(f"--rescore: {path} line {number} is not an object\nhint: delete that line, or sample again.")
    return row


def _rollout(row: dict[str, Any], path: Path, number: int) -> Rollout:
    names = {f.name for f in fields(Rollout)}
    if set(row) != names:
        raise ProbeError(
            f"--rescore: {path} line {number} must have {sorted(names)}, got {sorted(row)}\n"
            "hint: delete that line, or sample again."
        )
    rollout = Rollout(**row)
    if len(rollout.token_ids) != len(rollout.log_mu):
        raise ProbeError(
            f"--rescore: {path} line {number}: {len(rollout.token_ids)} token_ids, {len(rollout.log_mu)} log_mu\n"
            "hint: they are one a token; delete that line, or sample again."
        )
    return rollout
