# ruff: noqa: T201  # what it finds is printed
"""Give mutated files to every command, and tell which command ended other than it may (docs/trust.md).

    python -m tools.fuzz                            # 20,000 commands, one seed
    python -m tools.fuzz --commands 500 --seed 3
    python -m tools.fuzz --seed 3 --only 117        # that command alone, with what it says

A command may end with an exit code of 0, 1 or 2, and with 2 it says one error, which names no fault of ours; it takes
less than ten seconds. Some mutations change what a file means (a mask of .5, a key that stands twice): of these a
command has to say something. Samples are those of the readers' tests, records, histories of metrics, configurations,
policies, baselines and states; commands run in this process, which an end of it would tell too.
"""

import argparse
import contextlib
import gzip
import io
import json
import math
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from reweigh.__main__ import main as reweigh
from reweigh.records import RecordWriter, RunInfo

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "data"
SECONDS = 10.0  # that a command may take
ABORT = 60  # seconds after which it is ended: it hangs
INTERNAL = "--debug shows where it comes from"

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 0.5, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 1e308, -1e308, 5e-324),
    *(math.nan, math.inf, -math.inf, -9999.0, -3.4028235e38, "", "x", "nan", "\x00", "\x1b[2J", "\u202e", "\ud800"),
    *("a" * 5000, [], {}, [[]], [None], [[1, 2], [3]], {"a": None}, [True, 0.5], ["1"], "1970-01-01", "../../x"),
)
TOKENS = (
    b"NaN",
    b"null",
    b"-1",
    b"1e999",
    b"[[",
    b"{}",
    b"\x00",
    b"\xff\xfe",
    b'"',
    b"9" * 400,
    b"\r\n",
    b"\xe2\x80\xae",
)
BAD_MASKS: tuple[Any, ...] = (0.5, -1, 2, math.nan, "x", None)
# Of all cases, how many are of a kind of sample.
SHARES = {"dump": 45, "records": 32, "config": 10, "metrics": 4, "policy": 4, "baseline": 2, "state": 3}
MASKS = ("mask", "loss_mask", "loss_masks", "response_mask", "completion_mask", "token_mask")


@dataclass(frozen=True)
class Sample:
    """One good input.

    Attributes:
        name: of its kind; a command is drawn for it.
        path: the file, below `folder`, which is copied with its neighbours' names.
        folder: what a path inside it is kept relative to.
    """

    name: str
    path: Path
    folder: Path


@dataclass(frozen=True)
class Case:
    """One command on one mutated input.

    Attributes:
        number: which it is of this seed.
        arguments: of the command line.
        mutation: what was done, in words.
        must_say: the command has to say something of it: exit code 2, or a message, a note or a count.
    """

    number: int
    arguments: list[str]
    mutation: str
    must_say: bool = False


@dataclass(frozen=True)
class Fault:
    """A command that ended as it may not."""

    case: Case
    kind: str
    said: str


def made_samples(folder: Path) -> list[Sample]:
    """Write the samples that are not of the tests' data: records, a policy, a baseline, a state, configurations."""
    rng = random.Random(5)
    rows: list[dict[str, Any]] = []
    for i in range(24):
        n = rng.randrange(1, 40)
        mu = [-rng.random() * 3 for _ in range(n)]
        rows.append(
            {"sequence_id": f"s{i}", "prompt_id": f"p{i // 4}", "step": i // 12, "env": "ab"[i % 2], "log_mu": mu,
             "log_pi": [min(0.0, x + rng.gauss(0, 0.01)) for x in mu], "mask": [rng.random() < 0.9 for _ in mu],
             "token_ids": [rng.randrange(3000) for _ in mu], "advantage": [rng.gauss(0, 1)] * n, "reward": rng.random(),
             "versions": [max(0, i // 12 - j // 20) for j in range(n)], "trainer_version": i // 12,
             "turns": [j // 8 for j in range(n)], "entropy_pi": [rng.random() for _ in mu], "prompt_length": 7,
             "finish_reason": "stop", "text": f"response {i}"}
        )  # fmt: skip
    info = RunInfo(engine="vllm", trainer="transformers", temperature=1.0, model="m")
    found: list[Sample] = []
    for name in ("full.parquet", "full.jsonl", "full.jsonl.gz"):
        with RecordWriter(folder / name, info) as writer:
            for at in (0, 12):
                writer.write(rows[at : at + 12])
        found.append(Sample("records", folder / name, folder))
    lean = [{"sequence_id": f"s{i}", "log_mu": [-1.0] * 5, "log_pi": [-1.1] * 5} for i in range(20)]
    with RecordWriter(folder / "lean.parquet") as writer:
        writer.write(lean)
    found.append(Sample("records", folder / "lean.parquet", folder))
    good = str(folder / "full.parquet")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        policy, baseline = str(folder / "gate.yaml"), str(folder / "baseline.json")
        reweigh(["gate", good, "--init", "--policy", policy, "--save-baseline", baseline])
        reweigh(["watch", str(folder), "--once", "--fresh", "--state", str(folder / "watch.state")])
    found += [Sample("policy", Path(policy), folder), Sample("baseline", Path(baseline), folder)]
    found += [Sample("state", folder / "watch.state", folder)]
    configs = json.loads((DATA / "public_configs.json").read_text())
    for i, config in enumerate(rng.sample(configs, 12)):
        yaml, script = folder / f"config_{i}.yaml", folder / f"launch_{i}.sh"
        options = config["options"]
        yaml.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in options.items()))
        flags = " \\\n  ".join(f"{key}={value}" for key, value in list(options.items())[:20] if value is not None)
        script.write_text(f"#!/bin/sh\npython -m {config['framework'].replace('-', '_')}.main \\\n  {flags}\n")
        nested = folder / f"config_{i}.json"
        nested.write_text(json.dumps(options))
        found += [Sample("config", path, folder) for path in (yaml, script, nested)]
    return [sample for sample in found if sample.path.is_file()]


def samples_of_tests() -> list[Sample]:
    """List the files of the readers' tests, and histories of metrics."""
    found: list[Sample] = []
    for path in sorted((DATA / "readers").rglob("*")):
        whole = path.is_file() and path.suffix not in (".py", "") and "whole" not in path.name
        if whole and "__pycache__" not in path.parts:
            found.append(Sample("dump", path, DATA / "readers"))
    found += [Sample("metrics", path, DATA / "metrics") for path in sorted((DATA / "metrics").glob("*.jsonl"))]
    return found


# Mutations


def bytes_mutated(rng: random.Random, data: bytes) -> bytes:
    """Change some bytes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(changed) or 1)
        kind = rng.randrange(6)
        if kind == 0 and changed:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del changed[at : at + rng.randrange(1, 64)]
        elif kind == 2:
            changed[at:at] = changed[at : at + rng.randrange(1, 64)]
        elif kind == 3:
            del changed[at:]
        elif kind == 4:
            changed[at:at] = rng.choice(TOKENS)
        elif changed:
            changed[at] = rng.randrange(256)
    return bytes(changed)


def value_mutated(rng: random.Random, value: Any) -> Any:
    """Change one node of a JSON value: replaced, dropped, doubled, renamed or wrapped."""
    spots = list(_spots(value))
    if not spots:
        return rng.choice(ODD)
    holder, key = rng.choice(spots)
    kind = rng.randrange(6)
    if kind <= 2:
        holder[key] = rng.choice(ODD)
    elif kind == 3:
        del holder[key]
    elif kind == 4 and isinstance(holder, list):
        holder.insert(key, holder[key])
    elif kind == 4:
        holder[rng.choice(("log_mu", "logprobs", "tokens", "x", "", "mask", "id"))] = holder.pop(key)
    else:
        holder[key] = [holder[key]] if rng.random() < 0.5 else {"x": holder[key]}
    return value


def _spots(value: Any) -> Iterator[tuple[Any, Any]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in list(pairs):
        yield value, key
        yield from _spots(child)


def text_mutated(rng: random.Random, text: str) -> tuple[str, str, bool] | None:
    """Change a file of JSON or JSON lines by its values; None if it is none.

    Returns:
        The text, what was done, and whether a command must say something of it.
    """
    lines = text.splitlines()
    try:
        values = [json.loads(line) for line in lines if line.strip()]
        whole = False
    except json.JSONDecodeError:
        try:
            values, whole = [json.loads(text)], True
        except json.JSONDecodeError:
            return None
    if not values:
        return None
    at = rng.randrange(len(values))
    said, must = "a value changed", False
    masks = [(h, k) for h, k in _spots(values[at]) if k in MASKS and isinstance(h[k], list) and h[k]]
    if masks and rng.random() < 0.2:
        holder, key = rng.choice(masks)
        bad = rng.choice(BAD_MASKS)
        holder[key][rng.randrange(len(holder[key]))] = bad
        said, must = f"{bad!r} in {key}", True
    elif not whole and isinstance(values[at], dict) and values[at] and rng.random() < 0.1:
        key = rng.choice(list(values[at]))
        body = json.dumps(values[at])
        out = [json.dumps(v) for v in values]
        out[at] = f"{body[:-1]}, {json.dumps(key)}: {json.dumps(values[at][key])}}}"
        return "\n".join(out) + "\n", f"the key {key} twice", True
    else:
        values[at] = value_mutated(rng, values[at])
    try:
        return "\n".join(json.dumps(v) for v in values) + "\n", said, must
    except ValueError:  # thousands of digits
        return None


def table_mutated(rng: random.Random, path: Path, out: Path) -> tuple[str, bool]:
    """Write a Parquet file with one column changed."""
    table = pq.read_table(path)
    name = rng.choice(table.schema.names)
    at = table.schema.get_field_index(name)
    column = table.column(at)
    kind = rng.randrange(8)
    said, must = f"column {name}: ", False
    if kind == 0:
        table = table.remove_column(at)
        said += "gone"
    elif kind == 1:
        table = table.append_column(table.schema.field(at), column)
        said, must = said + "twice", True
    elif kind == 2:
        values = column.to_pylist()
        spots = list(_spots(values))
        holder, key = rng.choice(spots)
        odd = rng.choice(ODD)
        holder[key] = odd
        said += f"one value {odd!r:.20}"
        if name == "mask" and holder is not values and odd not in (0, 1, None, True, False):
            must = True
        table = _replaced(table, at, name, values, column.type)
    elif kind == 3:
        types = [pa.string(), pa.float16(), pa.float64(), pa.int8(), pa.list_(pa.list_(pa.float32())), pa.binary()]
        made: Any = rng.choice(types)
        said += f"as {made}"
        try:
            table = table.set_column(at, name, column.cast(made))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            table = table.set_column(at, name, pa.nulls(table.num_rows, made))
    elif kind == 4 and pa.types.is_list(column.type):
        values = [v[: rng.randrange(len(v) + 1)] if v and rng.random() < 0.2 else v for v in column.to_pylist()]
        said += "lists cut"
        table = _replaced(table, at, name, values, column.type)
    elif kind == 5:
        table = table.set_column(at, rng.choice(("x", "log_pi", "log_mu", "step", "mask")), column)
        said += "renamed"
    elif kind == 6:
        table = pa.concat_tables([table, table])
        said, must = "every row twice", True
    else:
        table = table.replace_schema_metadata({b"reweigh": bytes_mutated(rng, b'{"schema_version": 1, "engine": "x"}')})
        said = "metadata"
    try:
        pq.write_table(table, out, row_group_size=rng.choice((1, 7, 1000)))
    except pa.ArrowNotImplementedError:  # a type that Parquet has not got, such as a struct of nothing
        shutil.copyfile(path, out)
        return "not mutated", False
    return said, must


def _replaced(table: Any, at: int, name: str, values: list[Any], kind: Any) -> Any:
    for given in (kind, None):
        try:
            return table.set_column(at, name, pa.array(values, type=given))
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError, ValueError):
            continue
    return table.set_column(at, name, pa.array([str(v).encode("utf-8", "replace") for v in values]))


def mutate(rng: random.Random, sample: Sample, out: Path) -> tuple[str, bool]:
    """Write a mutated copy of a sample.

    Returns:
        What was done, and whether a command must say something of it.
    """
    data = sample.path.read_bytes()
    if sample.path.suffix == ".parquet" and rng.random() < 0.7:
        return table_mutated(rng, sample.path, out)
    packed = sample.path.suffix == ".gz"
    if packed:
        data = gzip.decompress(data)
    if sample.path.suffix in (".json", ".jsonl", ".gz") and rng.random() < 0.7:
        found = text_mutated(rng, data.decode())
        if found is not None:
            text, said, must = found
            body = text.encode("utf-8", "surrogatepass")
            out.write_bytes(gzip.compress(body) if packed else body)
            return said, must
    if packed and rng.random() < 0.5:
        out.write_bytes(gzip.compress(bytes_mutated(rng, data)))
    else:
        out.write_bytes(bytes_mutated(rng, gzip.compress(data) if packed else data))
    return "bytes changed", False


# Commands


def of_records(rng: random.Random, path: str, folder: Path, good: str) -> tuple[list[str], bool]:
    """Draw a command that reads records or dumps.

    Returns:
        Its arguments, and whether it reads masks, keys and columns, so that it has to say what is wrong with them.
    """
    out = str(folder / rng.choice(("out.parquet", "out.jsonl", "out.jsonl.gz")))
    cut = rng.choice(([], [], ["--by", "env,step"], ["--by", "lag,turn,position"], ["--limit", "5"], ["--keep-going"]))
    form = rng.choice(([], ["--json"], ["-q"], ["--full"]))
    drawn: list[tuple[list[str], bool]] = [
        (["records", "describe", path], False),
        (["records", "validate", path], True),
        (["records", "convert", path, out], True),
        (["records", "convert", "--skip-bad", path, out], True),
        (["audit", path, "--no-doctor", *cut, *form], True),
        (["audit", path, *cut, *form], True),
        (["audit", path, "--estimators", "seq_tis(2),token_mis", "--html", str(folder / "page.html"), "-q"], True),
        (["doctor", path, *cut, *rng.choice(([], ["--json"]))], True),
        (["table", path, "--of", rng.choice(("token", "sequence")), "--json"], False),
        (["table", path, "--out", str(folder / "t.csv")], False),
        (["plan", "--from", path, "--length", "100"], False),
        (["timeline", path], False),
        (["compare", path, good], True),
        (["compare", good, path, "--json"], True),
        (["gate", path, "--policy", str(Path(good).with_name("gate.yaml"))], True),
        (["watch", str(Path(path).parent), "--once", "--fresh", "--state", str(folder / "w.state")], False),
    ]
    arguments, reads = rng.choice(drawn)
    return arguments, reads and "--limit" not in arguments


def command(rng: random.Random, sample: Sample, path: str, folder: Path, good: str) -> tuple[list[str], bool]:
    """Draw a command for a mutated sample."""
    if sample.name == "config":
        more = rng.choice(([], ["--to", "trl"], ["--to", "verl"], ["--json"]))
        return ["explain", "--config", path, *more], False
    if sample.name == "metrics":
        return ["doctor", "--metrics", path, *rng.choice(([], ["--json"], ["--framework", "verl"]))], False
    if sample.name == "policy":
        return ["gate", good, "--policy", path], False
    if sample.name == "baseline":
        return ["gate", good, "--policy", str(Path(good).with_name("gate.yaml")), "--baseline", path], False
    if sample.name == "state":
        if rng.random() < 0.5:
            return ["audit", good, "--resume", "--state", path, "--no-doctor"], False
        return ["watch", str(Path(good).parent), "--once", "--state", path], False
    return of_records(rng, path, folder, good)


def case_of(seed: int, number: int, samples: Sequence[Sample], good: str, work: Path) -> Case:
    """Make one case, the same for a seed and a number: its input is written below `work`."""
    rng = random.Random(seed * 1_000_003 + number)
    kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
    sample = rng.choice([one for one in samples if one.name == kind])
    folder = work / f"case_{number}"
    shutil.rmtree(folder, ignore_errors=True)
    path = folder / "in" / sample.path.relative_to(sample.folder)
    path.parent.mkdir(parents=True)
    said, must = mutate(rng, sample, path)
    arguments, reads = command(rng, sample, str(path), folder, good)
    if said == "every row twice":  # each is counted once, and a verdict alone has no room for it; a copy is a copy
        reads = reads and not {"convert", "-q"} & set(arguments)
    if {"--keep-going", "-q"} <= set(arguments):  # told to leave it out, and to say nothing but the verdict
        reads = False
    return Case(number, arguments, f"{sample.path.name}: {said}", must and reads)


def outcome(case: Case) -> tuple[Fault | None, float]:
    """Run a case; what it did that it may not, and the seconds that it took."""
    out, err = io.StringIO(), io.StringIO()
    begun = time.monotonic()
    code: int | None = None
    with _alarm(ABORT), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = reweigh(case.arguments)
        except _HangError:
            err.write("ended by the alarm")
        except BaseException:
            err.write(traceback.format_exc())
    seconds = time.monotonic() - begun
    said = err.getvalue()
    kind = ""
    if code is None:
        kind = "hang" if seconds >= ABORT else "internal error"
    elif INTERNAL in said or "Traceback" in said:
        kind = "internal error"
    elif code not in (0, 1, 2):
        kind = f"exit code {code}"
    elif seconds > SECONDS:
        kind = "slow"
    elif code == 2 and "validate" not in case.arguments and said.count("error: ") != 1:
        kind = "not one error"
    elif "Warning: " in said:
        kind = "a warning of Python's"
    elif set(said + out.getvalue()) & {"\x1b", "\x07", "\u202e"} and case.arguments[0] != "table":
        kind = "escapes"
    elif case.must_say and code == 0 and not _tells(case, said, out.getvalue()):
        kind = "silent acceptance"
    return (Fault(case, kind, said[-1500:]) if kind else None), seconds


def _tells(case: Case, err: str, out: str) -> bool:
    words = ("skipped", "left out", "twice", "not read", "read before", "copies")
    return any(word in (err + out).lower() for word in words)


class _HangError(BaseException):
    pass


@contextlib.contextmanager
def _alarm(seconds: int) -> Generator[None, None, None]:
    def ring(*_: object) -> None:
        raise _HangError

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def campaign(
    commands: int, seed: int, work: Path, only: int | None = None, tell: Callable[[str], None] = print
) -> tuple[list[Fault], Counter[str], float]:
    """Run cases.

    Returns:
        What they did that they may not, how many there were of each command, and the seconds of the longest.
    """
    source = work / "samples"
    source.mkdir(parents=True, exist_ok=True)
    samples = made_samples(source) + samples_of_tests()
    counts: Counter[str] = Counter()
    faults: list[Fault] = []
    longest = 0.0
    good = str(source / "full.parquet")
    for number in range(commands) if only is None else (only,):
        case = case_of(seed, number, samples, good, work)
        fault, seconds = outcome(case)
        if fault is not None and fault.kind == "slow":  # another process may have had the machine
            fault, seconds = outcome(case_of(seed, number, samples, good, work))
        longest = max(longest, seconds)
        counts[case.arguments[0]] += 1
        if fault is not None:
            faults.append(fault)
            tell(f"{fault.kind}: --seed {seed} --only {number}: {case.mutation}\n  {' '.join(case.arguments)}")
            tell("  " + "\n  ".join(fault.said.strip().splitlines()[-6:]))
        if only is None:
            shutil.rmtree(work / f"case_{number}", ignore_errors=True)
        if (number + 1) % 1000 == 0:
            tell(f"{number + 1:,} commands, {len(faults)} faults, longest {longest:.1f} s")
    return faults, counts, longest


def main() -> int:
    """Run the campaign that the command line asks for; 1 if a command ended as it may not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--commands", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this command of the seed alone; its input is kept")
    given = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="reweigh-fuzz-"))
    faults, counts, longest = campaign(given.commands, given.seed, work, given.only)
    print(f"{sum(counts.values()):,} commands ({', '.join(f'{n:,} {name}' for name, n in counts.most_common())})")
    print(f"longest {longest:.1f} s; {len(faults)} faults {dict(Counter(f.kind for f in faults))}")
    if given.only is None:
        shutil.rmtree(work, ignore_errors=True)
    else:
        print(f"its input is in {work}")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
