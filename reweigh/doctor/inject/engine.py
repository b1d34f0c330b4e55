"""The engine: batched sampling with a key-value cache, in which weights, cache and settings may be at fault."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reweigh.doctor.inject.decoder import Cache, Decoder, Options
from reweigh.doctor.inject.sampling import processed
from reweigh.doctor.inject.specs import EngineSpec, KvFormat
from reweigh.probe.logits import draw

# Mixes seed and sequence into one seed; a prime, so that nearby pairs do not meet.
_SEED_STRIDE = 1_000_003


@dataclass(frozen=True)
class Job:
    """One response to sample.

    Attributes:
        prompt: token ids.
        seed: of its random numbers.
        max_tokens: that may be sampled, over all turns.
        tool: token ids put in after the first turn; empty for a single turn.
        first_turn: tokens after which the first turn ends, if it has not ended by itself.
    """

    prompt: tuple[int, ...]
    seed: int
    max_tokens: int
    tool: tuple[int, ...] = ()
    first_turn: int = 0


@dataclass(frozen=True)
class Models:
    """The weights that a batch meets: those that sample; older ones of the prompts' cache; those switched to."""

    first: Decoder
    prompt: Decoder | None = None
    later: Decoder | None = None


@dataclass
class Sample:
    """A response, with a value a token in each list: log-probs as logged; of the most probable token; of the second;
    whether it was sampled, or put in by a tool; its turn; whether the later weights made it."""

    ids: list[int]
    log_mu: list[float]
    log_first: list[float]
    log_second: list[float]
    sampled: list[bool]
    turns: list[int]
    later: list[bool]
    finish: str = "length"


@torch.inference_mode()
def sample(models: Models, jobs: Sequence[Job], spec: EngineSpec, end: int) -> list[Sample]:
    """Sample all jobs as one batch. Each has random numbers of its own, so company matters only through rounding."""
    ids, real = _left_padded([job.prompt for job in jobs])
    longest = max(job.max_tokens + len(job.tool) for job in jobs)
    uniform = torch.stack([_uniform(job.seed, longest) for job in jobs])
    options = _options(spec, spec.kv)
    decode_options = _options(spec, spec.decode_kv or spec.kv)
    model = models.first
    out = [Sample([], [], [], [], [], [], []) for _ in jobs]
    forced: list[list[int]] = [[] for _ in jobs]
    turn, count = [0] * len(jobs), [0] * len(jobs)
    seen = (
        torch.zeros(len(jobs), model.shape.vocab_size, dtype=torch.bool).scatter_(1, ids, real)
        if (spec.repetition_penalty != 1.0)
        else None
    )
    if seen is not None:
        for row, job in enumerate(jobs):
            seen[row, torch.tensor(job.prompt)] = True
    cache, hidden = _prefill(models, ids, real, options)
    if spec.decode_kv is not None:
        cache.layers = [_rounded(kv, spec.decode_kv) for kv in cache.layers]
    live = list(range(len(jobs)))
    position = real.sum(1) - 1
    history = ids
    for t in range(longest):
        logits = model.logits(hidden)
        log_p = processed(logits, seen, spec)
        token = draw(log_p, uniform[live, t])
        for row, job in enumerate(live):
            if forced[job]:
                token[row] = forced[job].pop(0)
                out[job].sampled.append(False)
            else:
                out[job].sampled.append(True)
        logged = log_p if spec.logs == "processed" else torch.log_softmax(logits, dim=-1)
        # What a tool put in may lie outside the nucleus: its log-prob is then that before truncation.
        chosen = logged.gather(-1, token[:, None]).squeeze(-1)
        whole = torch.log_softmax(logits, dim=-1).gather(-1, token[:, None]).squeeze(-1)
        chosen = torch.where(chosen.isinf(), whole, chosen).tolist()
        top = logged.topk(2, dim=-1).values.tolist()
        going: list[int] = []
        for row, (job, token_id) in enumerate(zip(live, token.tolist(), strict=True)):
            one = out[job]
            one.ids.append(token_id)
            one.log_mu.append(chosen[row])
            one.log_first.append(top[row][0])
            one.log_second.append(top[row][1])
            one.later.append(model is models.later)
            one.turns.append(turn[job])
            count[job] += one.sampled[-1]
            if _over(jobs[job], one, forced[job], turn, job, count, end):
                continue
            going.append(row)
        if not going:
            break
        if len(going) < len(live):
            keep = torch.tensor(going)
            cache.select(keep)
            live = [live[row] for row in going]
            token, real, position, history = token[keep], real[keep], position[keep], history[keep]
            seen = None if seen is None else seen[keep]
        if seen is not None:
            seen.scatter_(1, token[:, None], True)
        position = position + 1
        real = torch.cat([real, real.new_ones(len(live), 1)], dim=1)
        history = torch.cat([history, token[:, None]], dim=1)
        if t + 1 == spec.switch_at and models.later is not None:
            model = models.later
            if not spec.keep_kv:
                cache, hidden = _prefill(Models(model), history, real, options)
                continue
        offset = spec.decode_offset if t >= spec.decode_offset_from else 0
        hidden = model(token[:, None], position[:, None] + offset, real[:, None, None, :], cache, decode_options)[:, -1]
    return out


def _over(job: Job, one: Sample, forced: list[int], turn: list[int], index: int, count: list[int], end: int) -> bool:
    """Whether a response is over after its last token; starts the tool's text when the first turn is."""
    if not one.sampled[-1]:
        return False
    ended = one.ids[-1] == end
    if job.tool and turn[index] == 0 and (ended or count[index] >= job.first_turn):
        forced.extend(job.tool)
        turn[index] = 1
        return False
    if ended:
        one.finish = "stop"
    return ended or count[index] >= job.max_tokens


def _prefill(models: Models, ids: Tensor, real: Tensor, options: Options) -> tuple[Cache, Tensor]:
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


def kv_format(kv: KvFormat | None) -> torch.dtype | None:
    """The number type of a key-value cache; None keeps the model's."""
    return None if kv is None else {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}[kv]


def _rounded(kv: tuple[Tensor, Tensor] | None, to: KvFormat) -> tuple[Tensor, Tensor] | None:
    if kv is None:
        return None
    keys, values = kv
    return keys.to(kv_format(to)).to(keys.dtype), values.to(kv_format(to)).to(values.dtype)


def _options(spec: EngineSpec, kv: KvFormat | None) -> Options:
    return Options(kv_format=kv_format(kv), router_bits=spec.router_bits)


def _left_padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    real = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(list(row))
        real[i, width - len(row) :] = True
    return ids, real


def _uniform(seed: int, length: int) -> Tensor:
    return torch.rand(length, generator=torch.Generator().manual_seed(seed * _SEED_STRIDE), dtype=torch.float64)
