"""Reads metrics out of what a trainer printed: verl's lines, printed dicts, prime-rl's and NeMo-RL's summaries, AReaL's
and open-instruct's tables; with colours, prefixes of Ray, progress bars and wrapped lines."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from reweigh.doctor.diagnosis import InputNote
from reweigh.doctor.metrics.history import STEP_NAMES, History, Point, number

_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")
_RAY = re.compile(r"^\s*(?:\((?:[\w.:<>-]+ )?pid=\d+[^)]*\)\s?)+")
_REPEATED = re.compile(r"\s*\[repeated \d+x across cluster\].*$")
_BAR = re.compile(r"^.*?\d+%\|[^|]*\|\s*\d+/\d+\s*\[[^\]]*\]")
_LOGGED = re.compile(r"^\W{0,4}(?:\d{4}-\d\d-\d\d|\d\d:\d\d:\d\d|\d\d-\d\d \d\d|INFO|WARNING|ERROR|DEBUG|Traceback)\b")
_MOST = 200  # lines that one record is wrapped over

_NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|nan|inf|NaN|Infinity)"
_VALUE = rf"(?:(?:[a-z]+\.)?[a-z]+\d*\(\s*{_NUMBER}[^()]*\)|{_NUMBER})"
_VERL = re.compile(r"(?<![\w/])step:(\d+) ?(?=-\s|$|-$)")
_ITEM = re.compile(rf"^(.*\S):\s*({_VALUE})$")
_QUOTED = re.compile(rf"""(['"])([^'"\n]+?)\1\s*:\s*(['"]?)({_VALUE})\3(?=\s*[,}}\]])""")
_BEFORE = re.compile(r"(?:^|[^\w/])(?:global[ _])?(?:step|rollout|iteration|eval|perf)\s*[:= ]\s*(\d+)\W{0,3}$", re.I)
_PRIME = re.compile(r"(?<!Micro )\bStep (\d+) \|(.*)$")
_PRIME_NAMES = {
    "mismatch kl": "mismatch_kl/all/mean",
    "entropy": "entropy/all/mean",
    "grad. norm": "optim/grad_norm",
    "lr": "optim/lr",
    "loss": "loss/mean",
}
_HEADED = re.compile(r"={5,} Step (\d+)/\d+ ={5,}")
_BULLET = re.compile(rf"^\s*[•*-]\s*([A-Z][\w ]+?):\s*({_NUMBER})")
_NEMO_NAMES = {
    "generation kl error": "train/gen_kl_error",
    "loss": "train/loss",
    "mean generation length": "train/mean_gen_tokens_per_sample",
    "avg trajectory age": "train/avg_trajectory_age",
}
_AREAL = re.compile(r"Train step (\d+)/\d+ done")
_CELLS = re.compile(r"^\s*[│|](.*)[│|]\s*$")
_PAIR = re.compile(rf"([A-Za-z_][\w./@-]*): ({_VALUE})(?=\s|$)")


@dataclass(frozen=True)
class _Line:
    """One printed line without what the terminal and Ray put around it, and its number."""

    text: str
    number: int


def _lines(text: str) -> list[_Line]:
    out: list[_Line] = []
    for i, raw in enumerate(text.split("\n"), 1):
        for part in raw.split("\r"):
            part = _REPEATED.sub("", _RAY.sub("", _COLOURS.sub("", part)))
            if part.strip():
                out.append(_Line(_BAR.sub("", part).rstrip(), i))
    return out


@dataclass(frozen=True)
class _Record:
    """What was printed at once: the step if it says so, metrics, and its line.

    Attributes:
        step: None if it does not say.
        values: by metric.
        line: number of its first line.
        rounded: printed with four decimals.
    """

    step: float | None
    values: Mapping[str, float]
    line: int
    rounded: bool = False


def _whole(lines: Sequence[_Line], start: int) -> tuple[str, int]:
    """Puts a line of verl together that was wrapped; returns it and how many lines it took.

    A terminal wraps at a width, in the middle of a name or a number; a viewer wraps at a space.
    """
    text, used = lines[start].text, 1
    for line in lines[start + 1 : start + _MOST]:
        following = line.text.strip()
        if _VERL.search(following) or _LOGGED.match(following) or following.startswith(("{", "Training Progress")):
            break
        open_end = text.endswith(" -") or not _ITEM.match(text.rsplit(" - ", 1)[-1].strip())
        if following.startswith("- ") or text.endswith(" -"):
            text += f" {following}"
        elif re.match(rf"^[\w/@.:+-]*(?:{_NUMBER})?\)?(?: - |\s-$|$)", following) and (open_end or " - " in following):
            text += following
        else:
            break
        used += 1
    return text, used


def _of_verl(text: str, line: int) -> Iterator[_Record]:
    """Reads "step:3 - actor/entropy:0.1 - ...", also behind a progress bar that ends without a line's end."""
    starts = list(_VERL.finditer(text))
    for match, end in zip(starts, [*(m.start() for m in starts[1:]), len(text)], strict=True):
        values: dict[str, float] = {}
        for item in re.split(r"\s-\s", text[match.end() : end].strip(" -")):
            found = _ITEM.match(item.strip(" -"))
            if found and (value := number(found[2])) is not None:
                values[found[1].strip()] = value
        yield _Record(float(match[1]), values, line)


def _braced(lines: Sequence[_Line], start: int, at: int) -> tuple[str, int]:
    """Returns the text between the braces that open on a line, over as many lines as it takes."""
    text, used, depth = "", 0, 0
    for line in lines[start : start + _MOST]:
        part = line.text[at:] if not used else line.text
        used += 1
        if used > 1:
            soft = text.rstrip().endswith((",", "{")) or part.lstrip().startswith(("'", '"', "}"))
            text += f" {part.strip()}" if soft else part.strip()
        else:
            text = part
        depth = text.count("{") - text.count("}")
        if depth <= 0:
            break
    return (text, used) if depth <= 0 else ("", 1)


def _of_dict(text: str, before: str, line: int) -> _Record:
    """Reads a printed dict; its step stands before it or inside."""
    values = {m[2]: v for m in _QUOTED.finditer(text) if (v := number(m[4])) is not None}
    said = _BEFORE.search(before.rstrip(" -:|"))
    inside = next((values[n] for n in STEP_NAMES if n in values), None)
    return _Record(float(said[1]) if said else inside, values, line)


def _records(lines: Sequence[_Line]) -> Iterator[_Record]:
    i, headed, done = 0, None, None
    table: dict[str, float] = {}
    table_line = 0
    while i < len(lines):
        line = lines[i]
        text, used = line.text, 1
        if _VERL.search(text):
            whole, used = _whole(lines, i)
            yield from _of_verl(whole, line.number)
        elif match := _PRIME.search(text):
            parts = [part.strip().rsplit(" ", 1) for part in match[2].split("|")]
            read = {_PRIME_NAMES.get(p[0].strip().lower()): number(p[1]) for p in parts if len(p) == 2}
            values = {name: v for name, v in read.items() if name and v is not None}
            yield _Record(float(match[1]), values, line.number, rounded=True)
        elif match := _HEADED.search(text):
            headed = float(match[1])
        elif headed is not None and (match := _BULLET.match(text)) and match[1].lower() in _NEMO_NAMES:
            value = number(match[2])
            if value is not None:
                yield _Record(headed, {_NEMO_NAMES[match[1].lower()]: value}, line.number, rounded=True)
        elif match := _AREAL.search(text):
            done = float(match[1])
        elif done is not None and (match := _CELLS.match(text)):
            cells = [cell.strip() for cell in re.split(r"[│|]", match[1])]
            read = {a: number(b) for a, b in zip(cells[::2], cells[1::2], strict=False)}
            yield _Record(done, {a: v for a, v in read.items() if a and v is not None}, line.number)
        elif (at := _opens(text)) >= 0:
            inner, used = _braced(lines, i, at)
            if inner:
                record = _of_dict(inner, text[:at], line.number)
                if len(record.values) > 1:
                    yield record
        elif len(pairs := _PAIR.findall(text)) > 0 and "|" in text + "|" and re.match(r"^\s*[a-z_]+\s+\S", text):
            category = text.split()[0]
            if not table:
                table_line = line.number
            for name, raw in pairs:
                if (value := number(raw)) is not None:
                    table[name if category == "other" else f"{category}/{name}"] = value
            i += 1
            continue
        if table and "training_step" in table:
            yield _Record(table["training_step"], dict(table), table_line)
        table = {}
        i += used
    if table and "training_step" in table:
        yield _Record(table["training_step"], dict(table), table_line)


def _opens(text: str) -> int:
    """Finds where a printed dict of metrics begins; -1 if none does."""
    match = re.search(r"\{\s*(?:['\"]|$)", text)
    return match.start() if match else -1


def read_console(path: Path) -> History:
    """Reads the metrics that a run printed.

    Raises:
        ValueError: no line has metrics.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    records = [r for r in _records(_lines(text)) if r.values]
    if not records:
        raise ValueError(
            f"diagnose_metrics: {path}: no metrics are printed in it\n"
            "hint: what can be read is verl's `step:3 - actor/entropy:0.1 - ...`, printed dicts {'loss': ...}, the "
            "lines of prime-rl, NeMo-RL, AReaL and open-instruct; else export the history as CSV."
        )
    notes: list[InputNote] = []
    without = [r for r in records if r.step is None]
    cells: list[Point] = []
    rounded: set[str] = set()
    exact: set[str] = set()
    counted, before = 0, float("-inf")
    for r in records:
        if r.step is None:
            epoch = r.values.get("epoch", before)
            if epoch < before:  # another run in the same log
                counted = 0
            before = epoch
            counted += 1
        place = f"{path}:{r.line}"
        step = float(counted) if r.step is None else r.step
        (rounded if r.rounded else exact).update(r.values)
        cells += [Point(name, step, value, place) for name, value in r.values.items()]
    if without:
        hint = "they are counted instead; a tracker's export has steps"
        notes.append(
            InputNote("printed dicts without a step", len(without), "dicts", f"{path}:{without[0].line}", hint)
        )
    history = History.of(path, cells, notes)
    return replace(history, rounded=frozenset(rounded - exact))
