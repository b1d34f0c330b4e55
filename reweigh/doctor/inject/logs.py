"""What is written down of a sample before the trainer sees it, and what goes wrong there."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from reweigh.doctor.inject.flight import Sample
from reweigh.doctor.inject.specs import LogSpec

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
    log_mu = list(sample.log_mu)
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
