"""Compares two checkouts: the same inputs, the same commands, field by field; runs that fail count too.

    python benchmarks/same_outputs.py --before ../other --cache build/same            # against this checkout
    python benchmarks/same_outputs.py --before ../other --only audit,doctor --inputs 'records/*'
    python benchmarks/same_outputs.py --before ../other --terminal --out differences.txt

Inputs are a copy of the after-checkout's `examples/records` and `tests/data`, and of the folder of cases; every file is
one, and every folder of at least two. Each command runs with one worker in a process and an empty folder of its own.
What is compared: exit code, stderr, each field of the JSON, and the files that a command writes. Numbers are compared
exactly unless --rtol is given. A difference that is meant has a line in `MEANT` and is listed apart with its reason; a
field that was only renamed has one in `RENAMED`, and its values are still compared. Exit code 1 if any other difference
is found.

The before side is kept in --cache, by its code, inputs and arguments, so that it is run once.
"""

import argparse
import filecmp
import hashlib
import json
import math
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
LIMIT_S = 600  # seconds a command may take

# (command, field, reason); both may have wildcards. Fields are those that a line of the output names.
_WORDS = "causes are named in the doctor's words, of causes.toml"
_ROUNDED = "a number in a sentence has the digits that it has in the tables"
_CLEAN = "the doctor's mean ratio of what it leaves in has a name of its own"
_FIT = "the core's own Pareto fit: last digits"
_LAG = "a lag is counted from the step where no trainer version is recorded, and a note says so"
_BATCH = "the headline and the trial recommend for the same batch size"
_KEEP = "one rule for bad values: what is left out, and its remedy, in the same words for every command"
# The differences from version 0.1.0 before its rooms were rebuilt.
MEANT: list[tuple[str, str, str]] = [
    ("*", "*summary.sentence", _WORDS),
    ("*", "*summary.todo*", _WORDS),
    ("*", "*causes*.evidence*.name", _CLEAN),
    ("*", "*causes*.evidence*.meaning", _CLEAN),
    ("*", "*reason", _ROUNDED),
    ("*", "*refused", _ROUNDED),
    ("*", "*summary.why*", _ROUNDED),
    ("gate*", "audit", _ROUNDED),
    ("gate*", "*verdict", _ROUNDED),
    ("gate*", "file gate.yaml line *", _ROUNDED),
    ("gate", "bounds*.why", _ROUNDED),
    ("gate", "file gate.md line *", "notes and refusals, as above"),
    ("gate", "file gate.xml line *", "notes and refusals, as above"),
    ("*", "*khat*", _FIT),
    ("*", "*tails*", _FIT),
    ("*", "where.lag*", _LAG),
    ("*", "slices.lag*", _LAG),
    ("*", "*notes*", _LAG),
    ("doctor*", "slices.step*", "ranges are called `0 to 1`, as in the audit"),
    ("trial", "summary.use", _BATCH),
    ("*", "recommendation.guaranteed_progress", "the function's new place is named"),
    ("*", "stderr line *", _KEEP),
]
# (command, regular expression in a field of the before side, what stands there now)
RENAMED: list[tuple[str, str, str]] = []
# Fields that are of the run, not of the data.
IGNORED = ("*seconds", "*elapsed*", "file base.json.created", "file base.json.reweigh")

BY = [x for by in ("step", "env", "length", "position", "lag") for x in ("--by", by)]
DOCTOR_BY = [x for by in ("step", "lag", "turn", "env", "source") for x in ("--by", by)]
ONE = ["--workers", "1"]
# Arguments by command; words in capitals are replaced by places. `_kinds` says which input goes to which.
COMMANDS: dict[str, list[str]] = {
    "audit": ["audit", "INPUT", "--json", *ONE],
    "audit-by": ["audit", "INPUT", "--json", "--no-doctor", "--keep-going", *BY, *ONE],
    "trial": ["audit", "INPUT", "--json", "--no-doctor", "--estimators", "all", "--batch", "64", *ONE],
    "doctor": ["doctor", "INPUT", "--format", "json", *ONE],
    "doctor-by": ["doctor", "INPUT", "--format", "json", *DOCTOR_BY, *ONE],
    "doctor-baseline": ["doctor", "INPUT", "--baseline", "RECORDS/vllm_bfloat16.parquet", "--format", "json", *ONE],
    "metrics": ["doctor", "--metrics", "INPUT", "--format", "json"],
    "plan": ["plan", "--from", "INPUT", "--format", "json"],
    "gate": ["gate", "INPUT", "--policy", "POLICY", "--baseline", "BASELINE", "--junit", "gate.xml", "--summary",
             "gate.md", "--format", "json", *ONE],
    "gate-init": ["gate", "INPUT", "--init", "--save-baseline", "base.json", "--format", "json", *ONE],
    "explain": ["explain", "--from", "FRAMEWORK", "--config", "INPUT", "--format", "json"],
    "records": ["records", "validate", "INPUT", "--format", "json"],
    "conformance": ["conformance", "INPUT"],
    "audit-text": ["audit", "INPUT", *ONE],
    "doctor-text": ["doctor", "INPUT", *ONE],
}  # fmt: skip
# What needs no input, or is a mistake of the user.
OTHERS = (
    ["audit", "nothing-here.parquet"], ["audit"], ["audit", "RECORDS", "--by", "colour"], ["doctor"], ["plan"],
    ["audit", "RECORDS", "--reader", "abc"], ["audit", "RECORDS", "--estimators", "seq_tis(-1)"],
    ["audit", "RECORDS", "--estimators", "nonsense(2)"], ["plan", "--kl", "-1", "--length", "10"], ["gate", "RECORDS"],
    ["plan", "--kl", "1e-3", "--length", "256:16384", "--format", "json"], ["doctor", "RECORDS", "--program", "abc"],
    ["plan", "--kl", "1e-3", "--length", "4096", "--turns", "4", "--format", "json"], ["doctor", "nothing-*.parquet"],
    ["explain", "--format", "json"], ["explain", "sequence_mask"], ["explain", "nonsense"], ["--version"], ["nonsense"],
    ["explain", "--from", "verl", "rollout_is=sequence", "rollout_is_threshold=2.0", "--to", "trl", "--format", "json"],
)  # fmt: skip
# By the first word of a configuration's name.
FRAMEWORKS = {"verl": "verl", "trl": "trl", "slime": "slime", "swift": "ms-swift"}
LOADED_ONCE = ("torch", "numpy", "pyarrow.parquet", "pyarrow.dataset", "scipy.stats", "arviz_stats", "rich.console",
    "rich.table", "rich.progress", "jinja2", "plotly.graph_objects", "typer", "yaml")  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One run of a command.

    Attributes:
        command: of `COMMANDS`, or "other".
        name: of the input, as it is printed.
        arguments: of `reweigh`.
    """

    command: str
    name: str
    arguments: list[str]


@dataclass
class Outcome:
    """What a run left behind; `files` by name."""

    code: int
    stdout: str
    stderr: str
    files: dict[str, str] = field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        """Every value under its dotted name."""
        flat: dict[str, Any] = {"exit code": self.code}
        _texts(flat, "stderr", self.stderr)
        for name, text in (("", self.stdout), *((f"file {name}", text) for name, text in self.files.items())):
            value: Any = None
            with suppress(ValueError):
                value = json.loads(text)
            if isinstance(value, (dict, list)):
                _flatten(flat, name, value)
            else:
                _texts(flat, name or "stdout", text)
        return flat


def _texts(flat: dict[str, Any], name: str, text: str) -> None:
    lines = [line.rstrip() for line in text.splitlines()]
    flat.update({f"{name} line {i + 1}" if len(lines) > 1 else name: line for i, line in enumerate(lines)})


def _flatten(flat: dict[str, Any], name: str, value: Any) -> None:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            _flatten(flat, f"{name}.{key}" if name else key, inner)
    elif isinstance(value, list) and value:
        for i, inner in enumerate(value):
            _flatten(flat, f"{name}[{i}]", inner)
    else:
        flat[name] = value


def serve(root: Path) -> None:
    """Run the commands that come in as lines, each in a fork of a process that has loaded what is slow to load."""
    sys.path[:] = [str(root), *(p for p in sys.path if Path(p).resolve() != Path(__file__).resolve().parent)]
    for name in LOADED_ONCE:
        import_module(name)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(order)
        end = time.monotonic() + LIMIT_S
        done, status = os.waitpid(child, os.WNOHANG)
        while not done:
            time.sleep(0.01)
            if time.monotonic() > end:
                os.kill(child, 9)
            done, status = os.waitpid(child, os.WNOHANG)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _become(order: dict[str, Any]) -> None:
    """Be the command, and end."""
    code = 1
    try:
        os.chdir(order["folder"])
        for number, name in ((0, os.devnull), (1, order["stdout"]), (2, order["stderr"])):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = ["reweigh", *order["arguments"]]
        code = 0
        runpy.run_module("reweigh", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Server:
    """A process that runs the commands of one checkout, started when it is first asked."""

    def __init__(self, root: Path, python: str) -> None:
        self._root, self._python = root, python
        self._process: subprocess.Popen[str] | None = None

    def run(self, case: Case) -> Outcome:
        """Run one command in an empty folder and read what it left."""
        if self._process is None:
            env = {key: value for key, value in os.environ.items() if not key.startswith(("REWEIGH", "GITHUB"))}
            env |= {"OMP_NUM_THREADS": "1", "COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb", "PYTHONHASHSEED": "0"}
            env |= {"PYTHONPATH": str(self._root)}
            command = [self._python, __file__, "--serve", str(self._root)]
            self._process = subprocess.Popen(
                command, env=env, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory() as beside:
            folder = Path(beside, "here")
            folder.mkdir()
            out, err = Path(beside, "out"), Path(beside, "err")
            order = {"arguments": case.arguments, "folder": str(folder), "stdout": str(out), "stderr": str(err)}
            print(json.dumps(order), file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
            if not answer:
                raise SystemExit(f"same_outputs: the process of {self._root} ended at {case}")
            files = {str(p.relative_to(folder)): self._plain(p) for p in sorted(folder.rglob("*")) if p.is_file()}
            return Outcome(int(answer), self._plain(out), self._plain(err), files)

    def _plain(self, path: Path) -> str:
        text = path.read_text(encoding="utf-8", errors="replace")
        text = re.sub(re.escape(str(path.parents[1] if path.parent.name == "here" else path.parent)), "FOLDER", text)
        text = re.sub(r'timestamp="[^"]*"', 'timestamp="NOW"', text)  # of JUnit
        return text.replace(str(self._root), "CHECKOUT")

    def close(self) -> None:
        """End the process."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()


class Side:
    """One checkout; with a cache, what was run before is not run again."""

    def __init__(self, root: Path, python: str, jobs: int, cache: Path | None) -> None:
        self.root, self._cache = root, cache
        self._code = _fingerprint(root / "reweigh") if cache else ""
        self._free = [Server(root, python) for _ in range(jobs)]
        self._lock = threading.Lock()
        self.seconds = 0.0
        self.ran = 0

    def run(self, case: Case) -> Outcome:
        """Run a command, or recall what it left."""
        kept = None
        if self._cache is not None:
            key = hashlib.sha256(json.dumps([self._code, case.command, case.arguments]).encode()).hexdigest()[:24]
            kept = self._cache / f"{key}.json"
            if kept.is_file():
                return Outcome(**json.loads(kept.read_text(encoding="utf-8")))
        with self._lock:
            server = self._free.pop()
        start = time.monotonic()
        found = server.run(case)
        with self._lock:
            self._free.append(server)
            self.seconds += time.monotonic() - start
            self.ran += 1
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            beside = kept.with_suffix(f".{threading.get_ident()}")
            beside.write_text(json.dumps(asdict(found)), encoding="utf-8")
            beside.replace(kept)
        return found

    def close(self) -> None:
        """End its processes."""
        for server in self._free:
            server.close()


def _fingerprint(folder: Path) -> str:
    """Of names and bytes of all files under a folder, caches of the interpreter apart."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def copy_inputs(after: Path, cases: Path | None, into: Path) -> Path:
    """One copy that both sides read, named by its content."""
    with tempfile.TemporaryDirectory() as name:
        fresh = Path(name, "inputs")
        from_to = [(after / "examples" / "records", "records"), (after / "tests" / "data", "data")]
        for source, where in [*from_to, *([(cases, "cases")] if cases else [])]:
            kept = shutil.ignore_patterns("*.py", "*.sh", "*.md", "__pycache__")
            shutil.copytree(source, fresh / where, ignore=kept, copy_function=shutil.copyfile)
        for path in fresh.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        shutil.copyfile(after / "examples" / "gate.yaml", fresh / "gate.yaml")
        copy = into / f"inputs-{_fingerprint(fresh)}"
        if not copy.is_dir():
            shutil.copytree(fresh, copy)
        assert not filecmp.dircmp(fresh, copy).diff_files
        return copy


def _kinds(name: str, is_folder: bool) -> list[str]:
    """The commands that make sense for an input; that they fail is no reason to leave them out."""
    if "metrics/" in name:
        return ["metrics"]
    if "explain/" in name:
        return ["explain"]
    if name == "data/conformance.json":
        return ["conformance"]
    if name.startswith("data/") and "/readers/" not in name:
        return ["audit", "doctor", "plan", "records"]  # no records: each must be refused
    if is_folder:
        return ["audit", "audit-by", "doctor", "plan"]
    records = ["audit", "audit-by", "trial", "doctor", "doctor-by", "doctor-baseline", "plan", "gate", "gate-init"]
    return [*records, "records"]


def cases_of(inputs: Path, only: list[str], pattern: str, terminal: bool) -> list[Case]:
    """Every run: by file, by folder, then what needs none."""
    files = [p for p in sorted(inputs.rglob("*")) if p.is_file() and p.name != "gate.yaml"]
    above = Counter(p for file in files for p in file.parents if p != inputs and p.is_relative_to(inputs))
    folders = [p for p in sorted(above) if above[p] > 1 and len(_kinds(f"{p.relative_to(inputs)}/", True)) > 1]
    places = {"RECORDS": str(inputs / "records"), "POLICY": str(inputs / "gate.yaml")}
    found: list[Case] = []
    for path in [*files, *folders]:
        name = str(path.relative_to(inputs)) + ("/" if path.is_dir() else "")
        kinds = _kinds(name, path.is_dir())
        if terminal:
            kinds += [f"{kind}-text" for kind in ("audit", "doctor") if kind in kinds]
        for kind in kinds:
            framework = FRAMEWORKS.get(path.name.split("_")[0], "verl")
            arguments = [_placed(x, places | {"INPUT": str(path), "FRAMEWORK": framework}) for x in COMMANDS[kind]]
            found.append(Case(kind, name, arguments))
    for given in OTHERS:
        found.append(Case("other", " ".join(given), [_placed(x, places) for x in given]))
    return [
        case for case in found if (not only or case.command in only) and (not pattern or fnmatch(case.name, pattern))
    ]


def _placed(text: str, places: dict[str, str]) -> str:
    for name, place in places.items():
        if text == name or text.startswith(name + "/"):
            return place + text.removeprefix(name)
    return text


def with_baseline(case: Case, baseline: Path) -> Case:
    """The case with the place of the one baseline that both sides read."""
    return Case(case.command, case.name, [_placed(x, {"BASELINE": str(baseline)}) for x in case.arguments])


def same(a: Any, b: Any, rtol: float) -> bool:
    """Whether two values of JSON are equal; numbers to a relative tolerance, 0 for to the last bit."""
    numbers = [isinstance(x, (int, float)) and not isinstance(x, bool) for x in (a, b)]
    if all(numbers):
        return a == b or (a != a and b != b) or (rtol > 0 and math.isclose(a, b, rel_tol=rtol))
    return type(a) is type(b) and a == b


ABSENT = "(absent)"


def differences(case: Case, before: Outcome, after: Outcome, rtol: float) -> Iterator[tuple[str, str, str]]:
    """(field, line to print, reason if it was meant)."""
    old, new = before.fields(), after.fields()
    for command, pattern, instead in RENAMED:
        if fnmatch(case.command, command):
            old = {re.sub(pattern, instead, name): value for name, value in old.items()}
    for name in dict.fromkeys([*old, *new]):
        a, b = old.get(name, ABSENT), new.get(name, ABSENT)
        if same(a, b, rtol) or any(fnmatch(name, pattern) for pattern in IGNORED):
            continue
        reason = next((why for c, f, why in MEANT if fnmatch(case.command, c) and _matches(name, f)), "")
        say = [x if x is ABSENT else json.dumps(x, ensure_ascii=False) for x in (a, b)]
        yield name, f"{case.command} {case.name}: {name}: {say[0]} -> {say[1]}", reason


def _matches(name: str, pattern: str) -> bool:
    """As in a shell, but that brackets are those of an index."""
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), name) is not None


def main() -> None:
    """Run both sides and print what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, metavar="DIR", help="the checkout to compare with")
    parser.add_argument("--after", type=Path, metavar="DIR", default=HERE, help="this one if not given")
    parser.add_argument(
        "--cases", type=Path, metavar="DIR", help="more inputs; ../shared/cases beside --after, if there"
    )
    parser.add_argument("--python", default=sys.executable, metavar="PY", help="interpreter of both")
    parser.add_argument("--only", default="", metavar="LIST", help=f"of {', '.join([*COMMANDS, 'other'])}")
    parser.add_argument("--inputs", default="", metavar="GLOB", help="these inputs only, such as 'records/*'")
    parser.add_argument("--terminal", action="store_true", help="also what audit and doctor print on a terminal")
    parser.add_argument("--rtol", type=float, default=0.0, help="relative difference of numbers that is none")
    parser.add_argument("--jobs", type=int, default=2, choices=(1, 2), help="commands at a time")
    parser.add_argument("--lines", type=int, default=20, help="differences to print for a command and an input")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keeps the inputs and the outputs of the before side")
    parser.add_argument("--fill", action="store_true", help="run the before side into the cache, and compare nothing")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the report there, with all lines")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
        return
    if args.before is None:
        parser.error("--before is needed: the checkout to compare with")
    only = [name for name in args.only.split(",") if name]
    if unknown := set(only) - {*COMMANDS, "other"}:
        parser.error(f"--only: no command is called {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as name:
        sys.exit(_compared(args, only, (args.cache or Path(name)).resolve()))


def _compared(args: argparse.Namespace, only: list[str], place: Path) -> int:
    after = args.after.resolve()
    near = after.parent / "shared" / "cases"
    shared = args.cases or (near if near.is_dir() else None)
    inputs = copy_inputs(after, shared, place)
    sides = (
        Side(args.before.resolve(), args.python, args.jobs, place / "before" if args.cache else None),
        Side(after, args.python, args.jobs, None),
    )
    records = inputs / "records" / "vllm_bfloat16.parquet"
    made = sides[0].run(
        Case("gate-init", "baseline", [_placed(x, {"INPUT": str(records)}) for x in COMMANDS["gate-init"]])
    )
    baseline = inputs.parent / f"{inputs.name}-base.json"
    if made.files.get("base.json") is None:
        raise SystemExit(f"same_outputs: no baseline could be made\n{made.stderr}")
    if not baseline.is_file() or baseline.read_text(encoding="utf-8") != made.files["base.json"]:
        baseline.write_text(made.files["base.json"], encoding="utf-8")
    cases = [with_baseline(case, baseline) for case in cases_of(inputs, only, args.inputs, args.terminal)]
    if not cases:
        raise SystemExit("same_outputs: no command and input are left")

    def both(case: Case) -> tuple[Case, list[tuple[str, str, str]], int]:
        before = sides[0].run(case)
        now = before if args.fill else sides[1].run(case)
        return case, [*differences(case, before, now, args.rtol)], len(before.fields())

    unmeant, meant, report, fields, start = 0, 0, [], 0, time.monotonic()
    reasons: dict[str, int] = {}
    out = None if args.out is None else args.out.open("w", encoding="utf-8")
    with ThreadPoolExecutor(args.jobs) as pool:
        for case, found, count in pool.map(both, cases):
            fields += count
            wrong = [line for _, line, reason in found if not reason]
            for _, line, reason in found:
                if reason:
                    reasons[reason] = reasons.get(reason, 0) + 1
                    report.append(f"meant: {line}  ({reason})")
            unmeant, meant = unmeant + len(wrong), meant + len(found) - len(wrong)
            for line in wrong[: args.lines]:
                print(_cut(line), flush=True)
            if len(wrong) > args.lines:
                print(f"{case.command} {case.name}: and {len(wrong) - args.lines} more", flush=True)
            if out is not None:
                out.writelines(f"{line}\n" for line in wrong)
    for side in sides:
        side.close()
    told = [f"meant, {n} times: {reason}" for reason, n in reasons.items()]
    ran = ", ".join(f"{s.ran} runs {s.seconds:.0f} s {who}" for s, who in zip(sides, ("before", "after"), strict=True))
    told.append(
        f"{len(cases)} commands, {fields:,} fields: {unmeant} differences, and {meant} that were meant "
        f"({time.monotonic() - start:.0f} s; {ran})"
    )
    print("\n".join(told))
    if out is not None:
        out.writelines(f"{line}\n" for line in [*report, *told])
        out.close()
    return 1 if unmeant else 0


def _cut(line: str, most: int = 400) -> str:
    return line if len(line) <= most else line[:most] + " ..."


if __name__ == "__main__":
    main()
