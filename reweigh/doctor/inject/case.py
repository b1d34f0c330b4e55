"""A case: a run with its faults committed, as a table of records."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownParameterType=false
# pyarrow ships no types.

import random
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import torch

from reweigh.doctor.inject.cache import kept
from reweigh.doctor.inject.decoder import Decoder, Options
from reweigh.doctor.inject.engine import kv_format
from reweigh.doctor.inject.formats import in_format
from reweigh.doctor.inject.logs import Logged, logged
from reweigh.doctor.inject.plan import GROUP, Planned, plan
from reweigh.doctor.inject.rollouts import identity, rollouts, served
from reweigh.doctor.inject.specs import Specs, TrainerSpec
from reweigh.doctor.inject.trainer import Row, Score, prefill, score
from reweigh.doctor.inject.versions import advantages, reward, versions
from reweigh.doctor.inject.worlds import World
from reweigh.records.schema import BY_NAME


def run_table(world: World, specs: Specs, *, tokens: int, seed: int, with_repeat: bool, with_prefill: bool) -> pa.Table:
    """Sample, log and score a run; one row a response, in the columns of the rollout record.

    Args:
        world: model and prompts.
        specs: of engine, log and trainer.
        tokens: in the responses, about.
        seed: of the run: its training, its prompts, its samples.
        with_repeat: score a second time, in other company, for `log_pi_repeat`.
        with_prefill: let the engine score its own samples, for `log_mu_prefill`.
    """
    torch.manual_seed(seed)
    weights = versions(world, seed, specs.training, specs.size)
    planned = plan(world, specs.engine, tokens, seed)
    samples = rollouts(world, weights, planned, specs, (tokens, seed))
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
            (tokens, seed, identity(world), specs.engine, specs.training, specs.size, ends),
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
