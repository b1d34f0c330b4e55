"""The engine: batched sampling with a key-value cache, in which weights, cache and settings may be at fault."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reweigh.doctor.inject.decoder import Cache, Decoder, Options
from reweigh.doctor.inject.flight import Flight, Job, Sample
from reweigh.doctor.inject.sampling import logged_log_probs, processed
from reweigh.doctor.inject.specs import EngineSpec, KvFormat
from reweigh.probe.scorer import draw

# Mixes seed and sequence into one seed; a prime, so that nearby pairs do not meet.
_SEED_STRIDE = 1_000_003


@dataclass(frozen=True, eq=False)
class Models:
    """The weights that a batch meets: those that sample; older ones of the prompts' cache; those switched to."""

    first: Decoder
    prompt: Decoder | None = None
    later: Decoder | None = None


@torch.inference_mode()
def sample(models: Models, jobs: Sequence[Job], spec: EngineSpec, end: int) -> list[Sample]:
    """Sample all jobs as one batch. Each has random numbers of its own, so company matters only through rounding.

    Args:
        models: the weights.
        jobs: what to sample.
        spec: how.
        end: the token that ends a turn.
    """
    flight = Flight(jobs, end)
    model = models.first
    history, real = _left_padded([job.prompt for job in jobs])
    uniform = torch.stack([_uniform(job.seed, flight.longest) for job in jobs])
    seen = _seen(jobs, model.shape.vocab_size) if spec.repetition_penalty != 1.0 else None
    cache, hidden = _prefill(models, history, real, _options(spec, spec.kv))
    if spec.decode_kv is not None:
        cache.convert(kv_format(spec.decode_kv))
    for t in range(flight.longest):
        logits = model.logits(hidden)
        log_p = processed(logits, seen, spec)
        token = draw(log_p, uniform[flight.live, t])
        for row, token_id in flight.forced().items():
            token[row] = token_id
        log_mu, top = logged_log_probs(logits, log_p, token, spec)
        going = flight.add(token.tolist(), log_mu.tolist(), top.tolist(), later=model is models.later)
        if not going:
            break
        if len(going) < len(flight.live):
            keep = torch.tensor(going)
            flight.keep(going)
            cache.select(keep)
            token, real, history = token[keep], real[keep], history[keep]
            seen = None if seen is None else seen[keep]
        if seen is not None:
            seen.scatter_(1, token[:, None], value=True)
        real = torch.cat([real, real.new_ones(len(going), 1)], dim=1)
        history = torch.cat([history, token[:, None]], dim=1)
        if t + 1 == spec.switch_at and models.later is not None:
            model = models.later
            if not spec.keep_kv:
                cache, hidden = _prefill(Models(model), history, real, _options(spec, spec.kv))
                continue
        position = real.sum(1) - 1 + (spec.decode_offset if t >= spec.decode_offset_from else 0)
        options = _options(spec, spec.decode_kv or spec.kv)
        hidden = model(token[:, None], position[:, None], real[:, None, None, :], cache, options)[:, -1]
    return flight.samples


def kv_format(kv: KvFormat | None) -> torch.dtype | None:
    """The number type of a key-value cache; None keeps the model's."""
    return None if kv is None else {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}[kv]


def _options(spec: EngineSpec, kv: KvFormat | None) -> Options:
    return Options(kv_format=kv_format(kv), router_bits=spec.router_bits)


def _prefill(
    models: Models, ids: Int[Tensor, "B T"], real: Bool[Tensor, "B T"], options: Options
) -> tuple[Cache, Float[Tensor, "B W"]]:
    positions = real.cumsum(1).sub(1).clamp(min=0)
    width = ids.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    # Padding attends to itself, since a row that attends to nothing has no mean.
    mask = ((causal & real[:, None, :]) | torch.eye(width, dtype=torch.bool))[:, None]
    cache = Cache(models.first.shape.layers)
    if models.prompt is None:
        return cache, models.first(ids, positions, mask, cache, options)[:, -1]
    # The last token of a prompt is always computed: its scores are not in the cache.
    models.prompt(ids[:, :-1], positions[:, :-1], mask[:, :, :-1, :-1], cache, options)
    return cache, models.first(ids[:, -1:], positions[:, -1:], mask[:, :, -1:], cache, options)[:, -1]


def _left_padded(rows: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    real = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(list(row))
        real[i, width - len(row) :] = True
    return ids, real


def _seen(jobs: Sequence[Job], vocab_size: int) -> Bool[Tensor, "B V"]:
    seen = torch.zeros(len(jobs), vocab_size, dtype=torch.bool)
    for row, job in enumerate(jobs):
        seen[row, torch.tensor(job.prompt)] = True
    return seen


def _uniform(seed: int, length: int) -> Float[Tensor, " T"]:
    return torch.rand(length, generator=torch.Generator().manual_seed(seed * _SEED_STRIDE), dtype=torch.float64)
