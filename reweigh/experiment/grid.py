"""Which runs there are to do, the file of their results, and doing what is not yet done."""

import gzip
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import tomllib

from reweigh.experiment.gradients import measure
from reweigh.experiment.train import Method, Run, Setting, Training, key_of, run
from reweigh.guard import claimed, written_to
from reweigh.scan.engines import in_order, single_threaded

FORMAT = 1
MARK = "reweigh_experiment"
RESULTS, WARM, RECORDS = "results.jsonl", "warm", "records"
_HERE = Path(__file__).parent / "grid.toml"


@dataclass(frozen=True)
class Job:
    """A run to do.

    Attributes:
        setting: of the run.
        method: name of the method.
        seed: of everything that is drawn.
        records: steps whose rollouts are written.
        gradients: steps at which the estimators' gradients are measured.
    """

    setting: Setting
    method: str
    seed: int
    records: tuple[int, ...] = ()
    gradients: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """Name the run that comes of it."""
        return key_of(self.setting, self.method, self.seed)


@dataclass(frozen=True)
class Grid:
    """Runs under a title."""

    name: str
    title: str
    jobs: tuple[Job, ...]


def grid(name: str, path: Path = _HERE) -> Grid:
    """Read a grid of a file, `main`, `quarter` and `hour` if it is ours; a run that is named twice is there once.

    Args:
        name: of a table of the file.
        path: TOML as `grid.toml` beside this module.

    Raises:
        ValueError: there is none, or it says what cannot be run, with the place.
    """
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ValueError(f"{path}: is no TOML: {e}") from None
    jobs: dict[str, Job] = {}
    for job in _jobs(name, tables, path, ()):
        jobs.setdefault(job.key, job)
    return Grid(name, str(tables[name].get("title", name)), tuple(jobs.values()))


def _jobs(name: str, tables: Mapping[str, Any], path: Path, inside: tuple[str, ...]) -> Iterable[Job]:
    where = f"{path.name}, {name}"
    if name not in tables:
        raise ValueError(f"{path}: there is no grid {name!r}\nhint: one of {', '.join(tables)}, or --grid FILE:NAME.")
    if name in inside:
        raise ValueError(f"{where}: includes itself")
    table = tables[name]
    if not isinstance(table, dict) or set(table) - {"title", "include", "block", "records", "gradients"}:
        raise ValueError(f"{where}: must be a table of title, include, records, gradients and block")
    for other in _listed(table, "include", str, where):
        yield from _jobs(other, tables, path, (*inside, name))
    records, gradients = (tuple(_listed(table, key, int, where)) for key in ("records", "gradients"))
    for i, block in enumerate(_listed(table, "block", dict, where)):
        at = f"{where}, block {i + 1}"
        kinds = {"settings": dict, "methods": str, "seeds": int}
        missing = [key for key in kinds if not block.get(key)]
        if missing or set(block) - set(kinds):
            raise ValueError(f"{at}: must have settings, methods and seeds, each a list with something in it")
        settings, methods, seeds = (_listed(block, key, kind, at) for key, kind in kinds.items())
        pairs = [(Setting.from_dict(one, at), method) for one in settings for method in _methods(methods, at)]
        yield from (Job(*pair, seed, records, gradients) for seed in seeds for pair in pairs)


def _methods(names: Iterable[str], where: str) -> list[str]:
    try:
        return [Method.of(name).name for name in names]
    except ValueError as e:
        raise ValueError(f"{where}: {e}") from None


def _listed(table: Mapping[str, Any], key: str, kind: type, where: str) -> list[Any]:
    """Take a list of one kind of values from a table; empty where there is none."""
    values: Any = table.get(key, [])
    if not isinstance(values, list) or not all(type(x) is kind for x in values):
        word = {int: "integers", str: "texts", dict: "tables"}[kind]
        raise ValueError(f"{where}: {key} must be a list of {word}, got {values!r}")
    return values


def read(path: Path) -> list[Run]:
    """Read a file of results, packed with gzip or not; of runs that are there twice, the first.

    A last line that is no whole one is of a run that was ended while it was written, and is left out.

    Raises:
        ValueError: it is something else, with the line.
    """
    packed = path.read_bytes()
    data = gzip.decompress(packed) if packed[:2] == b"\x1f\x8b" else packed
    lines = data[: data.rfind(b"\n") + 1].splitlines()
    runs: dict[str, Run] = {}
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
            if number == 1:
                if not isinstance(value, dict) or value.get(MARK) != FORMAT:
                    raise ValueError(f"the first line must say {MARK}: {FORMAT}")
                continue
            one = Run.from_dict(value)
        except ValueError as e:
            raise ValueError(
                f"{path}:{number}: {e}\nhint: `reweigh experiment` writes such files, as {RESULTS} in its folder."
            ) from None
        runs.setdefault(one.key, one)
    if not lines:
        raise ValueError(f"{path}: has no results\nhint: `reweigh experiment --out DIR` makes DIR/{RESULTS}.")
    return list(runs.values())


def left(jobs: Sequence[Job], folder: Path) -> list[Job]:
    """Give the jobs that have no line yet in the results of a folder."""
    path = folder / RESULTS
    done = {one.key for one in read(path)} if path.exists() and path.stat().st_size else set[str]()
    return [job for job in jobs if job.key not in done]


def do(
    jobs: Sequence[Job],
    folder: Path,
    workers: int = 1,
    on_done: Callable[[Run], None] | None = None,
    with_records: bool = True,
) -> list[Run]:
    """Do the runs that have no line in the folder's results yet, and add a line for each.

    A run that is interrupted is begun again from its seed by whoever calls this next, which takes seconds and gives the
    same; what is in the file is done for good.

    Args:
        jobs: what is to be done, in order.
        folder: made if need be; results, warm starts and records are in it.
        workers: processes of one thread each.
        on_done: called with each run that was done, not with those that were there.
        with_records: whether the jobs' records are written.

    Returns:
        The results of all jobs, in their order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RESULTS
    with claimed(path):
        done = {one.key: one for one in read(path)} if path.exists() and path.stat().st_size else {}
        if not done:
            path.write_text(json.dumps({MARK: FORMAT}) + "\n", "utf-8")
        else:
            _cut_to_lines(path)
        todo = [job for job in jobs if job.key not in done]
        work = partial(_do, folder=folder, with_records=with_records)
        for one in _results(work, todo, min(workers, len(todo))):
            with written_to(path), open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(one.to_dict(), allow_nan=False, separators=(",", ":")) + "\n")
            done[one.key] = one
            if on_done is not None:
                on_done(one)
    return [done[job.key] for job in jobs]


def _results(work: Callable[[Job], Run], jobs: Sequence[Job], workers: int) -> Iterable[Run]:
    if workers <= 1:
        single_threaded()
        yield from map(work, jobs)
        return
    with closing(in_order(work, jobs, workers, "experiment", "give it less: --workers 1")) as results:
        yield from results


def _cut_to_lines(path: Path) -> None:
    """Take off the end of the file what is no whole line, before more is written to it."""
    with open(path, "r+b") as file:
        data = file.read()
        file.truncate(data.rfind(b"\n") + 1)


def _do(job: Job, folder: Path, with_records: bool) -> Run:
    where = None
    if job.records and with_records:
        (folder / RECORDS).mkdir(parents=True, exist_ok=True)
        where = folder / RECORDS / f"{file_name(job)}.parquet", job.records
    measured: list[dict[str, Any]] = []

    def look(training: Training) -> None:
        if training.step in job.gradients:
            measured.append({"step": training.step, "of": measure(training)})

    one = run(job.setting, Method.of(job.method), job.seed, folder / WARM, where, look)
    return replace(one, gradients=tuple(measured))


def file_name(job: Job) -> str:
    """Name a run in letters that every file system takes: `lag-12_token_tis-2_100`."""
    words = (job.setting.name, job.method, str(job.seed))
    return "_".join(re.sub(r"[^0-9A-Za-z._]+", "-", word).strip("-") for word in words)
