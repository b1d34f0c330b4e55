"""Say what gap is normal for an engine and its number type: levels that are known, and a run's place among them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import tomllib

from reweigh.records import RunInfo
from reweigh.stats.numerals import count, two
from reweigh.stats.verdict import KL_LARGE

State = Literal["measured", "reported", "fault"]
_ALIKE = 2.0  # times: a gap that is not further off is one of the same size
_TOY = 0.01  # billions of parameters: a model below it is no measure of others
_FEW = 1  # of runs to name beside the engine's own, and as many faults


@dataclass(frozen=True)
class KnownRun:
    """One run whose gap is known; empty or 0 where nobody said.

    Attributes:
        state: "measured" by reweigh or the scripts beside its probe, "reported" by others, or what was a "fault".
        source: where it stands.
        engine: what sampled; `version` its version, `types` the number type that it computed in.
        more: what else sets it apart; `note`: by what word of a record's note it is known.
        trainer: what rescored.
        model: its name; `size` in billions of parameters; `moe`: whether it is a mixture of experts.
        length: tokens of a response, about.
        kl: KL(mu||pi) of a token, nats, by k3.
        mean_abs: mean |log ratio| of a token, nats.
        fault: what it turned out to be.
    """

    state: State
    source: str
    engine: str = ""
    version: str = ""
    types: str = ""
    more: str = ""
    note: str = ""
    trainer: str = ""
    model: str = ""
    size: float = 0.0
    moe: bool = False
    length: int = 0
    kl: float = 0.0
    mean_abs: float = 0.0
    fault: str = ""

    @property
    def title(self) -> str:
        """`vllm 0.32.0 in bfloat16, fp8 KV cache (SmolLM2-135M-Instruct)`."""
        who = " ".join(x for x in (self.engine or self.trainer, self.version) if x)
        what = f" in {self.types}" if self.types else ""
        more = ", ".join(x for x in (self.more, "mixture of experts" if self.moe else "") if x)
        whose = f" ({self.model})" if self.model else ""
        return f"{who}{what}{', ' + more if more else ''}{whose}"

    def times(self, kl: float, mean_abs: float) -> float:
        """Say how many times the gap of this run another one is: by KL, or by the square of the mean size."""
        mine, other = (self.kl, kl) if self.kl else (self.mean_abs**2, mean_abs**2)
        return other / mine if mine else math.inf

    def like(self, info: RunInfo) -> bool:
        """Tell whether records of that run would be of this engine and number type, and this is no toy and no fault."""
        if not info.engine or not info.dtype_mu or self.state == "fault" or 0 < self.size < _TOY:
            return False
        return (self.engine, self.types) == (info.engine.lower(), info.dtype_mu.lower())


@cache
def known_runs() -> tuple[KnownRun, ...]:
    """Read the table.

    Raises:
        ValueError: a line of it has another key or state, or says no size.
    """
    text = Path(__file__).with_name("known.toml").read_text(encoding="utf-8")
    lines: list[dict[str, Any]] = tomllib.loads(text)["runs"]
    keys = {field.name for field in fields(KnownRun)}
    for i, one in enumerate(lines, 1):
        if not {"state", "source"} <= set(one) <= keys or one["state"] not in get_args(State):
            raise ValueError(f"known.toml: run {i}: keys must be of {', '.join(sorted(keys))}, got {one}")
        if not (one.get("kl") or one.get("mean_abs")):
            raise ValueError(f"known.toml: run {i}: must have kl or mean_abs, got {one}")
    return tuple(KnownRun(**one) for one in lines)


@dataclass(frozen=True)
class Place:
    """Where a gap stands among those that are known.

    Attributes:
        sentence: what is normal for this engine and number type, and what has a gap of this size.
        like: runs of the same engine and number type that are no fault.
        near: others of the same size, the nearest first.
        times: how many times the largest of those alike it is; None if none is known.
    """

    sentence: str
    like: tuple[KnownRun, ...]
    near: tuple[KnownRun, ...]
    times: float | None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON."""
        return {
            "sentence": self.sentence,
            "times": self.times,
            "like": [vars(one) | {} for one in self.like],
            "near": [vars(one) | {} for one in self.near],
        }


def place(kl: float, mean_abs: float, info: RunInfo) -> Place:
    """Find the place of a gap among those that are known.

    Args:
        kl: KL(mu||pi) of a token, nats, by k3.
        mean_abs: mean |log ratio| of a token, nats.
        info: what the records say of their run.

    Example:
        >>> from reweigh.records import RunInfo
        >>> place(0.0013, 0.035, RunInfo(engine="vllm", dtype_mu="bfloat16")).sentence.split(" (")[0]
        'usual for vllm in bfloat16'
    """
    runs = known_runs()
    alike = [one for one in runs if one.like(info)]
    noted = [one for one in alike if one.note and one.note in (info.note or "")]
    like = tuple(noted or [one for one in alike if not one.note])
    others = [one for one in runs if one not in like and kl > 0 and 1 / _ALIKE <= one.times(kl, mean_abs) <= _ALIKE]
    if kl <= KL_LARGE:  # so small a gap is usual, whatever a fault may have made as well
        others = [one for one in others if one.state != "fault"]
    engine = (info.engine or "").lower()
    others.sort(key=lambda one: (bool(engine) and one.engine != engine, abs(math.log(one.times(kl, mean_abs)))))
    healthy = [one for one in others if one.state != "fault"]
    near = (*healthy[:_FEW], *[one for one in others if one.state == "fault"][:1])
    who = f"{info.engine} in {info.dtype_mu}" if info.engine and info.dtype_mu else "this engine"
    if noted:
        who = f"{who} with {noted[0].more}"
    parts = [_of_like(like, kl, mean_abs, who)] if like else []
    if near and (not like or not _normal(like, kl, mean_abs)):
        parts.append(f"of this size: {'; '.join(_named(one) for one in near)}")
    if not parts:
        parts = [f"no run of {who} is known, and none of this size"]
    times = min(one.times(kl, mean_abs) for one in like) if like else None
    return Place("; ".join(parts), like, near, times)


def _normal(like: Sequence[KnownRun], kl: float, mean_abs: float) -> bool:
    return any(one.times(kl, mean_abs) <= _ALIKE for one in like)


def _of_like(like: Sequence[KnownRun], kl: float, mean_abs: float, who: str) -> str:
    sizes = sorted({two(one.kl) for one in like if one.kl}, key=lambda x: float(x.replace(",", "")))
    ends = "" if not sizes else f"KL {sizes[0]}{f' to {sizes[-1]}' if len(sizes) > 1 else ''}; "
    known = f"{ends}{count(len(like), 'run')}"
    times = min(one.times(kl, mean_abs) for one in like)
    if times > _ALIKE:
        return f"{two(times)} times what is known of {who} ({known})"
    smallest = max(one.times(kl, mean_abs) for one in like)
    word = "less than is known of" if smallest < 1 / _ALIKE else "usual for"
    return f"{word} {who} ({known})"


def _named(one: KnownRun) -> str:
    size = f"KL {two(one.kl)}" if one.kl else f"mean |log ratio| {two(one.mean_abs)}"
    what = f"a fault: {one.fault}, {one.title}" if one.state == "fault" else one.title
    return f"{what}, {size}"
