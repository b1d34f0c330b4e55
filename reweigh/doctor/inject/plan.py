"""Which prompt is answered at which step, how often, and by which versions of the weights."""

import random
from dataclasses import dataclass

from reweigh.doctor.inject.specs import EngineSpec
from reweigh.doctor.inject.worlds import World

# Responses to one prompt at one step.
GROUP = 4
# Share of a step's prompts that an earlier step had as well.
_REUSED = 0.5


@dataclass(frozen=True)
class Planned:
    """One response to come.

    Attributes:
        prompt: its index in the world.
        step: of training.
        draw: which of the step's responses to the prompt.
        seed: of its random numbers.
        version: of the weights that it starts with.
        claimed: the version that its engine says it has.
        cached: version that its prompt's cache is of.
    """

    prompt: int
    step: int
    draw: int
    seed: int
    version: int
    claimed: int
    cached: int


def plan(world: World, spec: EngineSpec, tokens: int, seed: int) -> list[Planned]:
    """About `tokens` response tokens over the world's steps; the same prompts and random numbers for every spec."""
    groups = max(1, round(tokens / world.mean_tokens / GROUP / world.steps))
    random_ = random.Random(seed)
    order = list(range(len(world.prompts)))
    random_.shuffle(order)
    lags = random.Random(seed + 1)
    first_seen: dict[int, int] = {}
    planned: list[Planned] = []
    fresh = 0
    for step in range(world.steps):
        before = sorted(first_seen)
        reused = random_.sample(before, min(len(before), round(groups * _REUSED)))
        new = [order[(fresh + i) % len(order)] for i in range(groups - len(reused))]
        fresh += len(new)
        for prompt in [*reused, *new]:
            first_seen.setdefault(prompt, step)
            for draw in range(GROUP):
                current = max(0, step - lags.choice(spec.lags))
                version = current if spec.delivered else 0
                cached = min(version, first_seen[prompt]) if spec.stale_prompts else version
                number = len(planned) + seed * 100_003
                planned.append(Planned(prompt, step, draw, number, version, current, cached))
    return planned
