# ruff: noqa: T201  # what it finds is printed
"""End commands at random points, and tell what was lost of what they had reported done (docs/trust.md).

    python -m tools.kills                           # 20 points of each command: a quarter of an hour
    python -m tools.kills --points 3 --only audit convert --seed 5

A point is a time between the start and the end of a run that nobody ended, and a signal: SIGKILL, SIGTERM or SIGINT in
turn. After it no process of the run is left within ten seconds; what it wrote is whole or not there; what it had
reported done is there; and the same command, once more, ends with what it would have ended with.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from reweigh.probe.run import read_rollouts
from reweigh.records import RecordWriter, validate

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
GONE = 10.0  # seconds, by which no process of a run is left
_CAPTURE = """
import sys, torch
from reweigh import Batch
from reweigh.trainers.capture import Capture
g = torch.Generator().manual_seed(0)
capture = Capture(sys.argv[1])
for step in range(int(sys.argv[2])):
    log_mu = -torch.rand(16, 400, generator=g)
    if capture.write(Batch.padded(log_mu - 0.01, log_mu, torch.ones(16, 400)), step) is not None:
        print(step, flush=True)
"""


@dataclass(frozen=True)
class Case:
    """A command that is ended.

    Attributes:
        name: of it.
        line: its arguments, given the folder that it reads and the one that it writes to.
        result: what it came to, given the folder and what it printed; equal for a run that was ended and done again.
        left: what is wrong with what an ended run left, given the folder and what it had printed; empty if nothing.
        again: its arguments when it is done once more; as the first time if None.
        ours: whether it is our own command, which ends without a traceback.
    """

    name: str
    line: Callable[[Path, Path], list[str]]
    result: Callable[[Path, str], object]
    left: Callable[[Path, str], str]
    again: Callable[[Path, Path], list[str]] | None = None
    ours: bool = True


def reweigh(*args: object) -> list[str]:
    """The command, in a process of its own."""
    return [sys.executable, "-m", "reweigh", *(str(x) for x in args)]


def make(folder: Path, tokens: int) -> None:
    """Write what the commands read: records in a few files, samples without log_pi, and a tiny model."""
    g = np.random.default_rng(0)
    (folder / "records").mkdir()
    for i in range(8):
        with RecordWriter(folder / "records" / f"{i}.parquet") as writer:
            for group in range(4):
                rows = []
                for j in range(max(1, tokens // 32 // 500)):
                    log_mu = -g.exponential(size=500).astype(np.float32)
                    log_pi = np.minimum(log_mu + 0.05 * g.normal(size=500).astype(np.float32), 0)
                    name = f"{i}-{group}-{j}"
                    rows.append({"sequence_id": name, "prompt_id": name, "log_mu": log_mu, "log_pi": log_pi})
                writer.write(rows)
    _model(folder / "model")


def _model(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        eos_token_id=256,
        pad_token_id=0,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(vocab={**letters, "<end>": 256}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    prompts = [{"id": f"p{i}", "prompt": f"{i} and {i}"} for i in range(12)]
    (folder.parent / "prompts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in prompts))


def whole(path: Path) -> str:
    """Say what is wrong with a file of records, if it is there at all."""
    if not path.exists():
        return ""
    try:
        found = validate([path])
    except (ValueError, OSError) as e:
        return f"{path.name}: {e}"
    return "; ".join(str(one) for one in found.violations)


def rows_of(path: Path) -> object:
    """What a file of records holds."""
    return pq.read_table(path).to_pydict() if path.exists() else None


def _sampling(read: Path, samples: Path) -> list[str]:
    prompts = read / "prompts.jsonl"
    return reweigh(
        "probe", "--model", read / "model", "--prompts", prompts, "--max-tokens", 40, "--sample-only", samples
    )


def _captured(out: Path, said: str) -> str:
    done = [int(line) for line in said.split()]
    missing = [step for step in done if not (out / "dumps" / f"step_{step:08d}_rank_0000.parquet").exists()]
    bad = [text for path in (out / "dumps").glob("step_*.parquet") if (text := whole(path))]
    return "; ".join([*(f"step {step} was reported and is not there" for step in missing), *bad])


def _sampled(out: Path, _: str) -> str:
    path = out / "a.rollouts"
    try:
        whole_lines = path.read_bytes().count(b"\n") if path.exists() else 0
        kept = len(read_rollouts(path).rollouts) if whole_lines > 1 else 0
    except ValueError as e:
        return f"what was sampled cannot be read: {e}"
    return "" if kept == max(whole_lines - 1, 0) else f"{kept} of {whole_lines - 1} samples are read"


def _lines(out: Path, _: str) -> object:
    again = out / "b.rollouts"
    path = again if again.exists() else out / "a.rollouts"
    rows = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    return sorted((row["prompt_id"], len(row["token_ids"])) for row in rows)


def _told(_: Path, said: str) -> object:
    return json.loads(said) if said.strip() else None


def _last(_: Path, said: str) -> object:
    last = json.loads(said.splitlines()[-1])
    return {name: last[name] for name in ("rows", "tokens", "verdict") if name in last}


CASES = (
    Case(
        "audit",
        lambda read, out: reweigh(
            *("audit", read / "records", "--workers", 2, "--state", out / "a.state", "--json", "--no-doctor")
        ),
        _told,
        lambda out, said: "",
        lambda read, out: reweigh(
            *("audit", read / "records", "--workers", 2, "--state", out / "a.state", "--json", "--no-doctor"),
            *(["--resume"] if (out / "a.state").exists() else []),
        ),
    ),
    Case(
        "convert",
        lambda read, out: reweigh("records", "convert", read / "records", out / "a.parquet"),
        lambda out, said: rows_of(out / "a.parquet"),
        lambda out, said: whole(out / "a.parquet"),
        lambda read, out: reweigh("records", "convert", read / "records", out / "a.parquet", "--force"),
    ),
    Case(
        "watch",
        lambda read, out: reweigh("watch", read / "records", "--once", "--state", out / "a.state", "--json"),
        _last,
        lambda out, said: "",
    ),
    Case(
        "capture",
        lambda read, out: [sys.executable, "-c", _CAPTURE, str(out / "dumps"), "60"],
        lambda out, said: len(list((out / "dumps").glob("step_*.parquet"))),
        _captured,
        ours=False,
    ),
    Case(
        "probe",
        lambda read, out: _sampling(read, out / "a.rollouts"),
        _lines,
        _sampled,
        lambda read, out: _sampling(read, out / "b.rollouts"),  # what was sampled stays, and is not gone on with
    ),
    Case(
        "rescore",
        lambda read, out: reweigh("probe", "--rescore", read / "a.rollouts", "--out", out / "a.parquet"),
        lambda out, said: rows_of(out / "a.parquet"),
        lambda out, said: whole(out / "a.parquet"),
    ),
)


def members(group: int) -> list[int]:
    """Processes of a group that are alive."""
    alive: list[int] = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            stat = (path / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(stat[2]) == group and stat[0] != "Z":
            alive.append(int(path.name))
    return alive


def run(
    line: Sequence[str], after: float | None = None, number: signal.Signals = signal.SIGKILL, ours: bool = True
) -> tuple[str, str]:
    """Run a command, and end it after so many seconds if it is not done.

    Returns:
        What it printed, and what is wrong with how it ended: empty if nothing.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(line, stdout=out, stderr=err, start_new_session=True, env=environment)
        wrong = ""
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, number)
            begun = time.monotonic()
            try:
                process.wait(GONE)
            except subprocess.TimeoutExpired:
                wrong = f"{number.name} did not end it within {GONE:g} s"
            while members(process.pid) and time.monotonic() - begun < GONE:
                time.sleep(0.05)
            orphans = members(process.pid)
            if orphans:
                wrong = wrong or f"{len(orphans)} processes left {GONE:g} s after {number.name}"
                os.killpg(process.pid, signal.SIGKILL)
        out.seek(0)
        err.seek(0)
        said, told = out.read(), err.read()
    if after is None and process.returncode not in (0, 1):
        wrong = f"exit code {process.returncode}: {told.strip()[-500:]}"
    if "Traceback" in told and ours:
        wrong = wrong or f"a traceback: {told.strip()[-500:]}"
    return said, wrong


def killed(case: Case, read: Path, points: int, rng: random.Random) -> tuple[list[str], int]:
    """End a command at so many points.

    Returns:
        What went wrong, a line each, and how often it was really ended before it was done.
    """
    failures: list[str] = []
    ended = 0
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "whole"
        out.mkdir()
        begun = time.monotonic()
        said, wrong = run(case.line(read, out))
        seconds = time.monotonic() - begun
        if wrong:
            return [f"{case.name}: {wrong}"], 0
        expected = case.result(out, said)
        for point in range(points):
            out = Path(folder) / f"{point}"
            out.mkdir()
            after, number = rng.uniform(0.1, 1.0) * seconds, SIGNALS[point % len(SIGNALS)]
            said, wrong = run(case.line(read, out), after, number, case.ours)
            where = f"{case.name}, {number.name} after {after:.2f} of {seconds:.2f} s"
            try:
                done = case.result(out, said) == expected
            except (OSError, ValueError, KeyError, IndexError):
                done = False
            ended += not done
            wrong = wrong or case.left(out, said)
            if not wrong:
                said, wrong = run((case.again or case.line)(read, out))
                if not wrong and case.result(out, said) != expected:
                    wrong = "done again, it came to something else"
            if wrong:
                failures.append(f"{where}: {wrong}")
            shutil.rmtree(out)
    return failures, ended


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=20, help="of each command")
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=8_000_000, help="of the records")
    args = parser.parse_args(argv)
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        read = Path(folder)
        make(read, args.tokens)
        said, wrong = run(CASES[4].line(read, read))
        if wrong:
            raise SystemExit(f"the samples to rescore could not be made: {wrong}{said}")
        for case in CASES:
            if args.only is None or case.name in args.only:
                found, ended = killed(case, read, args.points, random.Random(f"{args.seed} {case.name}"))
                failures += found
                print(
                    f"{case.name}: {args.points} points, {ended} before it was done, {len(found)} failures", flush=True
                )
                for line in found:
                    print(f"  {line}", flush=True)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
