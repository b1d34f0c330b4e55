"""A case: a run with its faults committed for real, as the records that such a run would leave."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownParameterType=false
# pyarrow ships no types.

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from faults.catalogue import Clean, Fault, Level, find
from faults.engine import GROUP, Planned, Sample, identity, in_format, kv_format, plan, rollouts, served
from faults.models import Decoder, Options
from faults.specs import LogSpec, Specs, TrainerSpec
from faults.trainer import Row, Score, advantages, prefill, reward, score, versions
from faults.worlds import World, WorldName, kept, library_world, smollm2_world
from reweigh.records import RecordWriter, RunInfo
from reweigh.records.schema import BY_NAME


@dataclass(frozen=True, eq=False)
class Case:
    """A run with its faults.

    Attributes:
        table: one row a response, in the columns of the rollout record.
        info: what the run says of itself: nothing that gives the fault away.
        faults: those committed; none in a clean pair.
        strengths: of each.
    """

    table: pa.Table
    info: RunInfo
    faults: tuple[Fault, ...]
    strengths: tuple[float, ...]

    def write(self, path: Path) -> None:
        """Write it as a record file; values that a fault made impossible are written as they are."""
        with RecordWriter(path, self.info) as writer:
            writer.write_table(self.table)


def commit(
    fault: Fault,
    world: World,
    strength: float | Level,
    tokens: int,
    seed: int,
    *,
    with_repeat: bool | None = None,
    with_prefill: bool | None = None,
    training_seed: int | None = None,
) -> Case:
    """Run the world with one fault.

    Args:
        fault: one of `FAULTS`.
        world: one of `fault.worlds`.
        strength: in the fault's unit, or a level.
        tokens: in the responses, about.
        seed: of training, prompts and samples; other seeds give other runs.
        with_repeat: also score twice; None is yes in the small worlds.
        with_prefill: also let the engine score its samples; None is yes in the small worlds.
        training_seed: of the training alone, so that many runs share one; None is `seed`.

    Raises:
        ValueError: the fault cannot be committed in this world.
    """
    return _committed([(fault, strength)], world, tokens, seed, with_repeat, with_prefill, training_seed)


def pair(
    first: tuple[Fault, float | Level],
    second: tuple[Fault, float | Level],
    world: World,
    tokens: int,
    seed: int,
    *,
    with_repeat: bool | None = None,
    with_prefill: bool | None = None,
) -> Case:
    """Run the world with two faults at once, each with its strength: the changes of the first, then of the second."""
    return _committed([first, second], world, tokens, seed, with_repeat, with_prefill)


def clean(world: World, kind: Clean, tokens: int, seed: int) -> Case:
    """Run the world without a fault: the engine in bfloat16, both in bfloat16, or both in float32."""
    variant = {"bf16": "numerics-bf16", "bf16-both": "numerics-bf16-both", "float32": "none-float32"}[kind]
    return commit(find(variant), world, "medium", tokens, seed)


def world_of(name: WorldName, seed: int = 0) -> World:
    """A world by its name."""
    return smollm2_world(seed) if name == "smollm2" else library_world(name, seed)


def _committed(
    faults: Sequence[tuple[Fault, float | Level]],
    world: World,
    tokens: int,
    seed: int,
    with_repeat: bool | None,
    with_prefill: bool | None,
    training_seed: int | None = None,
) -> Case:
    specs, strengths = Specs(), list[float]()
    for fault, strength in faults:
        if world.name not in fault.worlds:
            raise ValueError(
                f"commit: {fault.name} can be committed in {', '.join(fault.worlds)}, got world {world.name!r}\n"
                f"hint: world_of({fault.worlds[0]!r})."
            )
        strengths.append(fault.strength(strength) if isinstance(strength, str) else strength)
        specs = fault.change(specs, strengths[-1])
    small = world.name != "smollm2"
    table = run_table(
        world,
        specs,
        tokens=tokens,
        seed=seed,
        training_seed=training_seed,
        with_repeat=small if with_repeat is None else with_repeat,
        with_prefill=small if with_prefill is None else with_prefill,
    )
    info = RunInfo(engine="reweigh", trainer="reweigh", model=world.name, seed=seed)
    return Case(table, info, tuple(fault for fault, _ in faults), tuple(strengths))


# Stands in the log for tokens that a tool put in and the mask leaves out.
_NOT_SAMPLED = 0.0
# Stands where a shifted log-prob would come from outside the response.
_OUTSIDE = 0.0


@dataclass(frozen=True)
class Logged:
    """A response as the trainer gets it; each list has a value a token."""

    ids: tuple[int, ...]
    log_mu: tuple[float, ...]
    mask: tuple[bool, ...]
    turns: tuple[int, ...]
    later: tuple[bool, ...]
    finish: str


def logged(samples: Sequence[Sample], spec: LogSpec, end: int, seed: int) -> list[Logged]:
    """Write down each sample; what is drawn depends on the seed alone."""
    return [_one(sample, spec, end, random.Random(seed * 1_000_003 + i)) for i, sample in enumerate(samples)]


def _one(sample: Sample, spec: LogSpec, end: int, random_: random.Random) -> Logged:
    log_mu = [_in_unit(x, spec.unit) for x in sample.log_mu]
    other = sample.log_first if spec.other_token == "first" else sample.log_second
    for t in range(len(log_mu)):
        if spec.other_share and random_.random() < spec.other_share:
            log_mu[t] = other[t]
    places = random_.choice(spec.shift)
    if random_.random() < spec.shift_share:
        log_mu = _shifted(log_mu, places)
    if not spec.forced_end and spec.placeholder_share:
        log_mu = [spec.placeholder if random_.random() < spec.placeholder_share else x for x in log_mu]
    unmasked = not all(sample.sampled) and random_.random() < spec.unmask_share
    mask = [True] * len(log_mu) if unmasked else list(sample.sampled)
    keep = unmasked and spec.unmask_log == "prefill"
    log_mu = [x if real or keep else _NOT_SAMPLED for x, real in zip(log_mu, sample.sampled, strict=True)]
    whole = Logged(
        tuple(sample.ids), tuple(log_mu), tuple(mask), tuple(sample.turns), tuple(sample.later), sample.finish
    )
    if spec.forced_end and sample.finish == "length" and random_.random() < spec.placeholder_share:
        return _ended(whole, end, spec.placeholder)
    return whole


def _in_unit(log_p: float, unit: str) -> float:
    if unit == "probabilities":
        return math.exp(log_p)
    return log_p / math.log(10) if unit == "base 10" else log_p


def _shifted(values: list[float], places: int) -> list[float]:
    n = len(values)
    return [values[t - places] if 0 <= t - places < n else _OUTSIDE for t in range(n)]


def _ended(one: Logged, end: int, value: float) -> Logged:
    return replace(
        one,
        ids=(*one.ids, end),
        log_mu=(*one.log_mu, value),
        mask=(*one.mask, True),
        turns=(*one.turns, one.turns[-1]),
        later=(*one.later, one.later[-1]),
        finish="stop",
    )


def run_table(
    world: World,
    specs: Specs,
    *,
    tokens: int,
    seed: int,
    with_repeat: bool,
    with_prefill: bool,
    training_seed: int | None = None,
) -> pa.Table:
    """Sample, log and score a run; one row a response, in the columns of the rollout record.

    Args:
        world: model and prompts.
        specs: of engine, log and trainer.
        tokens: in the responses, about.
        seed: of the run: its training, its prompts, its samples.
        with_repeat: score a second time, in other company, for `log_pi_repeat`.
        with_prefill: let the engine score its own samples, for `log_mu_prefill`.
        training_seed: of its training; None is `seed`.
    """
    torch.manual_seed(seed)
    trained_by = seed if training_seed is None else training_seed
    weights = versions(world, trained_by, specs.training, specs.size)
    planned = plan(world, specs.engine, tokens, seed)
    key = (tokens, seed) if trained_by == seed else (tokens, seed, trained_by)
    samples = rollouts(world, weights, planned, specs, key)
    written = logged(samples, specs.log, world.end, seed)
    rows = [
        _row(world, one, log, random.Random(seed * 7919 + i), specs.trainer)
        for i, (one, log) in enumerate(zip(planned, written, strict=True))
    ]
    trained = [in_format(model, specs.trainer.weights) for model in weights]
    scores = _by_step(planned, rows, lambda step, part: score(trained[step], part, specs.trainer))
    order = list(range(len(planned)))
    repeat = None
    if with_repeat:
        random.Random(seed + 5).shuffle(order)
        found = _by_step(
            [planned[i] for i in order],
            [rows[i] for i in order],
            lambda step, part: score(trained[step], part, specs.trainer),
        )
        repeat = dict(zip(order, found, strict=True))
    shown = None
    if with_prefill:
        ends = (specs.log.forced_end, specs.log.placeholder_share) if specs.log.forced_end else ()
        shown = kept(
            "prefill",
            (*key, identity(world), specs.engine, specs.training, specs.size, ends),
            lambda: _prefilled(world, weights, planned, written, specs),
        )
    worth = advantages([reward(one, world.model.shape.vocab_size) for one in samples], GROUP)
    records: list[dict[str, Any]] = []
    packs = _packs(planned, specs.trainer.pack)
    for i, (one, log) in enumerate(zip(planned, written, strict=True)):
        records.append(
            _record(world, one, log, scores[i], worth[i], packs[i])
            | ({"log_pi_repeat": repeat[i].log_pi} if repeat else {})
            | ({"log_mu_prefill": shown[i]} if shown else {})
        )
    return _table([_cut(record) for record in records])


def _record(world: World, one: Planned, log: Logged, scored: Score, worth: float, pack: int) -> dict[str, Any]:
    prompt = world.prompts[one.prompt]
    return {
        "sequence_id": f"step-{one.step}-{prompt.prompt_id}-{one.draw}",
        "prompt_id": prompt.prompt_id,
        "step": one.step,
        "env": prompt.env,
        "prompt_length": len(prompt.ids),
        "token_ids": log.ids,
        "log_mu": log.log_mu,
        "log_pi": scored.log_pi,
        "mask": log.mask,
        "advantage": [worth] * len(log.ids),
        "versions": [one.step if later else one.claimed for later in log.later],
        "trainer_version": one.step,
        "turns": log.turns,
        "entropy_pi": scored.entropy,
        "pack_index": pack,
        "finish_reason": log.finish,
    }


def _row(world: World, one: Planned, log: Logged, random_: random.Random, spec: TrainerSpec) -> Row:
    through_text, other = random_.random() < spec.retokenised, random_.random() < spec.template_share
    ids = tuple(world.encode(world.decode(list(log.ids)))) if through_text else log.ids
    return Row(world.prompts[one.prompt].templates[spec.template if other else "same"], ids)


def _by_step(
    planned: Sequence[Planned], rows: Sequence[Row], scored: Callable[[int, Sequence[Row]], list[Score]]
) -> list[Score]:
    """Score the rows of each step with that step's weights, in the order given."""
    found: dict[int, Score] = {}
    for step in sorted({one.step for one in planned}):
        members = [i for i, one in enumerate(planned) if one.step == step]
        found.update(zip(members, scored(step, [rows[i] for i in members]), strict=True))
    return [found[i] for i in range(len(planned))]


def _prefilled(
    world: World, weights: Sequence[Decoder], planned: Sequence[Planned], written: Sequence[Logged], specs: Specs
) -> list[list[float]]:
    engine = served(weights, specs)
    spec = specs.engine
    options = Options(kv_format=kv_format(spec.kv), router_bits=spec.router_bits)
    rows = [Row(world.prompts[one.prompt].ids, log.ids) for one, log in zip(planned, written, strict=True)]
    found: list[list[float]] = [[] for _ in planned]
    for version in range(len(engine)):
        begun = [i for i, one in enumerate(planned) if one.version == version]
        for i, values in zip(begun, prefill(engine[version], [rows[i] for i in begun], spec, options), strict=True):
            found[i] = values
    # What later weights made is shown to those.
    for step in range(len(engine)):
        switched = [i for i, one in enumerate(planned) if one.step == step and any(written[i].later)]
        for i, values in zip(switched, prefill(engine[step], [rows[i] for i in switched], spec, options), strict=True):
            found[i] = [b if later else a for a, b, later in zip(found[i], values, written[i].later, strict=True)]
    return found


def _packs(planned: Sequence[Planned], size: int) -> list[int]:
    """Number of the packed row of each response: a step's responses, `size` at a time."""
    numbers: list[int] = []
    number, filled, step = -1, 0, -1
    for one in planned:
        if one.step != step or filled == size:
            number, filled, step = number + 1, 0, one.step
        filled += 1
        numbers.append(number)
    return numbers


def _cut(record: dict[str, Any]) -> dict[str, Any]:
    """Cut every list to the shortest: a trainer that has fewer tokens than the engine drops the rest."""
    length = min(len(value) for value in record.values() if isinstance(value, list | tuple))
    return {name: value[:length] if isinstance(value, list | tuple) else value for name, value in record.items()}


def _table(records: Sequence[dict[str, Any]]) -> pa.Table:
    names = [name for name in BY_NAME if name in records[0]]
    arrays = [pa.array([record[name] for record in records], type=BY_NAME[name].type) for name in names]
    return pa.table(arrays, names=names)
