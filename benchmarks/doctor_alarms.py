"""Two more questions to the doctor: how often it cries wolf, and whether it finds both of two faults."""

import functools
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from doctor_cases import TOKENS, Answer, Run, ask, each, exact_interval, generate, samples, say, written

from reweigh.scan.engines import single_threaded

HARMLESS = ("numerics", "quantised_rollout", "none", "not_decided")
CLEAN = ("numerics-bf16", "numerics-bf16-both", "none-float32", "none-float32")  # the last in the mixture of experts
QUANTISED = tuple(f"quantised_rollout-{kind}" for kind in ("int8", "int8-dynamic", "fp8", "int4", "fp8-kv"))
PER_RUN = 4  # disjoint samples of 10,000 tokens that 50,000 hold for certain
SIZE = 10_000

PAIRS: tuple[tuple[str, str], ...] = (
    ("placeholder_logprob-zero", "stale_weights-lag"),
    ("placeholder_logprob-minus-9999", "raw_logprobs-cooler"),
    ("placeholder_logprob-forced-end", "template_prefix-no-header"),
    ("unmasked_context-zero", "quantised_rollout-int8"),
    ("unmasked_context-prefill", "stale_weights-lag"),
    ("retokenisation-text", "dropout-left-on"),
    ("shift-some", "raw_logprobs-cooler"),
    ("shift-some", "stale_weights-lag"),
    ("wrong_token-second", "weight_sync-not-delivered"),
    ("raw_logprobs-cooler", "dropout-left-on"),
    ("packing_leak-attention", "unmasked_context-zero"),
    ("truncated_sampling-top-p", "stale_weights-lag"),
    ("trainer_temperature-missing", "shift-some"),
    ("trainer_temperature-extra", "dropout-left-on"),
    ("repetition_penalty-processed", "shift-some"),
    ("weight_sync-not-delivered", "template_prefix-other"),
    ("template_prefix-other", "placeholder_logprob-one"),
    ("position_encoding-base", "stale_weights-lag"),
    ("engine_decode-position", "stale_weights-lag"),
    ("stale_kv-prompts", "placeholder_logprob-zero"),
)
"""Of different families, such as a run may well have both, and of comparable size: dropout, packing leaks and
temperatures make gaps ten times as large as old weights or another prompt do, and hide them."""


def clean_runs(draws: int, kinds: Sequence[str] = CLEAN, first_seed: int = 100, tokens: int = TOKENS) -> list[Run]:
    """Runs without a fault for so many samples, the kinds in turn, each with a seed of its own."""
    count = -(-draws // PER_RUN)
    chosen = [(i % len(kinds), first_seed + i) for i in range(count)]
    return [
        Run((kinds[k],), "medium", seed, tokens, "moe" if k and kinds[k] == kinds[k - 1] else "tiny")
        for k, seed in chosen
    ]


def false_alarms(
    draws: int, folder: Path, kinds: Sequence[str], first_seed: int, processes: int, tokens: int = TOKENS
) -> list[Answer]:
    """Make clean runs, cut each into disjoint samples, and ask about these."""
    runs = clean_runs(draws, kinds, first_seed, tokens)
    generate(runs, folder, processes)
    work = functools.partial(_samples, folder=folder, size=min(SIZE, tokens // (PER_RUN + 1)))
    found: list[Answer] = []
    for run, answers in zip(runs, each(work, runs, processes), strict=True):
        say(f"{run.file}: {', '.join(a.verdict for a in answers)}")
        found += answers
    return found[:draws]


def _samples(run: Run, folder: Path, size: int) -> list[Answer]:
    single_threaded()
    parts = samples(pq.read_table(folder / run.file), size, PER_RUN, run.seed)
    with tempfile.TemporaryDirectory() as scratch:
        return [ask(run, path, size, draw=draw) for draw, path in enumerate(written(parts, Path(scratch)))]


def alarm_summary(answers: Sequence[Answer]) -> dict[str, Any]:
    """Counts, with the interval as if samples were independent, and the count of runs."""
    wrong = [a for a in answers if a.verdict not in HARMLESS]
    low, high = exact_interval(len(wrong), len(answers))
    return {
        "samples": len(answers),
        "runs": len({(a.faults, a.seed) for a in answers}),
        "false_alarms": len(wrong),
        "runs_with_one": len({(a.faults, a.seed) for a in wrong}),
        "share": len(wrong) / len(answers),
        "interval": [low, high],
        "said": dict(Counter(a.verdict for a in answers)),
    }


def alarm_table(answers: Sequence[Answer]) -> str:
    """By kind, and together."""
    rows = ["| kind | model | samples | runs | false alarms | 95% | verdicts |", "|---|---|---|---|---|---|---|"]
    kinds = sorted({(a.faults[0], a.world) for a in answers})
    groups = [(name, world, [a for a in answers if (a.faults[0], a.world) == (name, world)]) for name, world in kinds]
    for name, world, those in [*groups, ("together", "", list(answers))]:
        s = alarm_summary(those)
        said = ", ".join(f"`{v}` {k}" for v, k in Counter(s["said"]).most_common())
        low, high = s["interval"]
        rows.append(
            f"| {name} | {world} | {s['samples']} | {s['runs']} | {s['false_alarms']} in {s['runs_with_one']} runs | "
            f"{100 * low:.1f}% to {100 * high:.1f}% | {said} |"
        )
    return "\n".join(rows)


def pair_runs(tokens: int = TOKENS, seed: int = 0, pairs: Sequence[tuple[str, str]] = PAIRS) -> list[Run]:
    """A run for each pair, both at medium strength."""
    return [Run(two, "medium", seed, tokens) for two in pairs]


def ask_whole(run: Run, folder: Path) -> Answer:
    """About all of a run."""
    single_threaded()
    return ask(run, folder / run.file, run.tokens)


def both_found(runs: Sequence[Run], folder: Path, processes: int) -> list[Answer]:
    """Make the runs and ask about each."""
    generate(runs, folder, processes)
    found: list[Answer] = []
    for answer in each(functools.partial(ask_whole, folder=folder), runs, processes):
        say(f"{' + '.join(answer.faults)}: {', '.join(answer.causes[:3])}")
        found.append(answer)
    return found


def pair_table(answers: Sequence[Answer]) -> str:
    """A row a pair."""
    rows = ["| first | second | both in the first three | said, in order |", "|---|---|---|---|"]
    for a in answers:
        said = ", ".join(f"`{c}` {p:.2f}" for c, p in zip(a.causes[:4], a.confidence[:4], strict=True))
        rows.append(f"| `{a.faults[0]}` | `{a.faults[1]}` | {'yes' if a.within(3) else '**no**'} | {said} |")
    both = sum(a.within(3) for a in answers)
    low, high = exact_interval(both, len(answers))
    rows.append(f"\nBoth in the first three: {both} of {len(answers)} ({100 * low:.0f}% to {100 * high:.0f}%).")
    return "\n".join(rows)
