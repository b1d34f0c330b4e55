"""Side by side with the doctor of martingale 0.2.0, on the cases that its record can hold.

Its record binds each token to the weights that sampled it and to those that scored it, with both log-probs. From these
its doctor splits the gap into staleness and an engine floor (lag 0), and raises alarms step by step. So the cases are
those of weights (lag, delivery, precision) and clean and quantised pairs; for the rest it has no word. What it says is
read as one of five answers:

    staleness        more than half of the gap of older tokens is above the floor ("Staleness dominates")
    other weights    a token at lag 0 that the engine held for likely and the trainer does not (alarm `stale_server`)
    ordinary tokens  the floor is above .01 and the median ratio is not 1
    tail             the floor is above .01 and the median ratio is 1: rounding
    quiet            none of these

All that apply are kept, and the first is the one that counts. Both doctors get what the records hold: digests stand for
weight versions as the engine claims them, and no sampler settings are given. (Where a step holds several lags its alarm
`weights_unchanged` goes off: it takes a step for one generation; alarms are listed, only `stale_server` is read.)
"""

import functools
import hashlib
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from doctor_cases import Answer, Run, ask, each, samples, say, written
from doctor_fit import Weights, diagnosed

from reweigh.scan.engines import single_threaded

CAUSES = ("stale_weights", "weight_sync", "update_below_precision", "quantised_rollout", "numerics", "none")
RIGHT: dict[str, tuple[str, ...]] = {
    "stale_weights": ("staleness",),
    "weight_sync": ("other weights",),
    "update_below_precision": ("other weights",),
    "quantised_rollout": ("quiet", "tail", "ordinary tokens"),
    "numerics": ("quiet", "tail"),
    "none": ("quiet",),
}
"""Its answers that are no mistake."""


@dataclass(frozen=True)
class Theirs:
    """What martingale says of one sample.

    Attributes:
        answers: that apply, see above; the first is the one that counts.
        alarms: kinds, with the number of steps that raised them.
        lines: its diagnosis in words.
        seconds: to write its record, and to read it.
    """

    answers: tuple[str, ...]
    alarms: dict[str, int]
    lines: tuple[str, ...]
    seconds: float


def require() -> None:
    """Say what to do if it is not there."""
    try:
        import martingale  # noqa: F401
    except ModuleNotFoundError as e:
        if e.name != "martingale":
            raise
        raise SystemExit(
            "error: martingale is not installed: this comparison runs its doctor\n"
            "hint: pip install --no-deps martingale==0.2.0"
        ) from e


def theirs(path: Path) -> Theirs:
    """Write its record of a record file, step by step, and let it diagnose."""
    from martingale.diagnostics import AlarmHistory, IncrementalDiagnosis, attribute, decompose, diagnosis, evaluate
    from martingale.record import Recorder
    from martingale.record.revision import SamplerConfig

    start = time.perf_counter()
    rows = pq.read_table(path).to_pylist()
    last = max(row["trainer_version"] for row in rows)
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(folder, keep_prompt_ids=False)
        live, history = IncrementalDiagnosis(recorder.ledger), AlarmHistory()
        alarms: Counter[str] = Counter()
        made = [
            recorder.publish_revision(_digest(f"version {v}"), _digest("tokenizer"), SamplerConfig(), v)
            for v in range(last + 1)
        ]
        for step in sorted({row["step"] for row in rows}):
            for row in (row for row in rows if row["step"] == step):
                inside = [i for i, sampled in enumerate(row["mask"]) if sampled]
                if not inside:
                    continue
                with recorder.sequence(0, row["sequence_id"], [_number(row["prompt_id"])]) as sequence:
                    for i in inside:
                        sequence.token(made[row["versions"][i]].digest, row["token_ids"][i], row["log_mu"][i])
                    sequence.reward(row["advantage"][inside[0]])
                scores = [row["log_pi"][i] for i in inside]
                recorder.score(sequence.record.digest, made[row["trainer_version"]].digest, scores)
            alarms.update({alarm.kind for alarm in evaluate(live.update(step), history)})
        found = decompose(recorder.ledger)
        lines = diagnosis(found)
        stale = attribute(found)["float_informational"]["staleness_share"]
        recorder.ledger.close()
    return Theirs(_read(stale, alarms, lines), dict(alarms), tuple(lines), time.perf_counter() - start)


def _read(stale: float | None, alarms: Counter[str], lines: Sequence[str]) -> tuple[str, ...]:
    answers: list[str] = []
    if stale is not None and stale > 0.5:
        answers.append("staleness")
    if alarms["stale_server"] or any("DIFFERENT WEIGHTS" in line for line in lines):
        answers.append("other weights")
    elif any("disagree on ordinary tokens" in line for line in lines):
        answers.append("ordinary tokens")
    elif any("tail effect" in line for line in lines):
        answers.append("tail")
    return tuple(answers) or ("quiet",)


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:3], "big")  # stands for the prompt's token ids


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=32).hexdigest()


def side_by_side(
    runs: Sequence[Run], folder: Path, size: int, processes: int, weights: Mapping[str, Weights]
) -> list[tuple[Answer, Theirs]]:
    """Both doctors on one sample of each run; ours by the weights that are given for the run's world."""
    found: list[tuple[Answer, Theirs]] = []
    for one in each(functools.partial(_both, folder=folder, size=size, weights=weights), runs, processes):
        said = ", ".join(one[1].answers)
        say(f"{one[0].faults[0]} {one[0].level} {one[0].seed}: {one[0].verdict}; martingale: {said}")
        found.append(one)
    return found


def _both(run: Run, folder: Path, size: int, weights: Mapping[str, Weights]) -> tuple[Answer, Theirs]:
    single_threaded()
    table = pq.read_table(folder / run.file)
    parts = [table] if size >= run.tokens else samples(table, size, 1, run.seed)
    with tempfile.TemporaryDirectory() as scratch:
        path = next(written(parts, Path(scratch)))
        return ask(run, path, size, diagnose=functools.partial(diagnosed, weights[run.world])), theirs(path)


def rows_of(found: Sequence[tuple[Answer, Theirs]]) -> list[dict[str, Any]]:
    """For JSON."""
    return [
        {"answer": asdict(a), "martingale": asdict(t), "right": a.right, "martingale_right": _right(a, t)}
        for a, t in found
    ]


def _right(a: Answer, t: Theirs) -> bool:
    return t.answers[0] in RIGHT[a.truth[0]]


def table(found: Sequence[tuple[Answer, Theirs]]) -> str:
    """A row a variant."""
    rows = [
        "| variant | samples | reweigh right | not decided | martingale right | martingale said | its alarms |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(a.faults[0] for a, _ in found):
        those = [(a, t) for a, t in found if a.faults[0] == name]
        said = ", ".join(f"{v} {k}" for v, k in Counter(t.answers[0] for _, t in those).most_common())
        alarms = ", ".join(f"`{v}`" for v in sorted({kind for _, t in those for kind in t.alarms}))
        ours, silent = sum(a.right for a, _ in those), sum(a.verdict == "not_decided" for a, _ in those)
        right = sum(_right(a, t) for a, t in those)
        rows.append(f"| `{name}` | {len(those)} | {ours} | {silent} | {right} | {said} | {alarms} |")
    ours, other = sum(a.right for a, _ in found), sum(_right(a, t) for a, t in found)
    silent = sum(a.verdict == "not_decided" for a, _ in found)
    mine, its = sum(a.seconds for a, _ in found), sum(t.seconds for _, t in found)
    tokens = sum(a.tokens for a, _ in found)
    rows.append(
        f"\nTogether, of {len(found)}: reweigh {ours} right, {silent} not decided, {len(found) - ours - silent} wrong; "
        f"martingale {other} right, {len(found) - other} wrong. "
        f"{mine / tokens * 1e6:.1f} and {its / tokens * 1e6:.0f} microseconds a token (martingale's with writing its "
        "record)."
    )
    return "\n".join(rows)
