"""All samples of a run: planned responses grouped by the weights that they meet, sampled, and kept on the disk."""

from collections import defaultdict
from collections.abc import Sequence

from reweigh.doctor.inject.cache import kept
from reweigh.doctor.inject.decoder import Decoder
from reweigh.doctor.inject.engine import Models, sample
from reweigh.doctor.inject.flight import Job, Sample
from reweigh.doctor.inject.formats import in_format
from reweigh.doctor.inject.plan import Planned
from reweigh.doctor.inject.specs import Specs
from reweigh.doctor.inject.worlds import World


def rollouts(
    world: World, weights: Sequence[Decoder], planned: Sequence[Planned], specs: Specs, key: object
) -> list[Sample]:
    """Sample every planned response with the engine of `specs`.

    Args:
        world: the model's prompts and limits.
        weights: versions 0, 1, ... in float32.
        planned: what to sample.
        specs: the engine is what counts, and what the versions were made by.
        key: what tells this plan from others.
    """
    whole = (key, identity(world), specs.engine, specs.training, specs.size)
    return [Sample(**one) for one in kept("rollouts", whole, lambda: _sampled(world, weights, planned, specs))]


def identity(world: World) -> tuple[object, ...]:
    """All of a world that its samples depend on."""
    return (world.name, world.seed, world.max_tokens, world.lr, world.trained, world.steps, world.batch_prompts)


def served(weights: Sequence[Decoder], specs: Specs) -> list[Decoder]:
    """Each version as the engine holds it."""
    return [in_format(model, specs.engine.weights, specs.engine.quantised_layers) for model in weights]


def _sampled(
    world: World, weights: Sequence[Decoder], planned: Sequence[Planned], specs: Specs
) -> list[dict[str, object]]:
    engine = served(weights, specs)
    groups: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for i, one in enumerate(planned):
        later = one.step if specs.engine.switch_at is not None else one.version
        groups[one.version, one.cached, later].append(i)
    found: dict[int, Sample] = {}
    for (version, cached, later), members in sorted(groups.items()):
        models = Models(
            engine[version],
            engine[cached] if cached != version else None,
            engine[later] if later != version else None,
        )
        # Prompts of about one length together, so that little is padded.
        members.sort(key=lambda i: len(world.prompts[planned[i].prompt].ids))
        for start in range(0, len(members), specs.engine.batch_size):
            part = members[start : start + specs.engine.batch_size]
            answers = sample(models, [_job(world, planned[i]) for i in part], specs.engine, world.end)
            found.update(zip(part, answers, strict=True))
    return [vars(found[i]) for i in range(len(planned))]


def _job(world: World, one: Planned) -> Job:
    prompt = world.prompts[one.prompt]
    return Job(prompt.ids, one.seed, world.max_tokens, prompt.tool, prompt.first_turn)
