"""The engine: plans a run's responses, and samples them with weights, cache and settings that may be at fault."""

import copy
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from faults.models import Cache, Decoder, Options
from faults.specs import EngineSpec, KvFormat, Specs, Weights
from faults.worlds import World, kept
from reweigh.probe.models import round_rows
from reweigh.probe.scorer import draw, log_softmax, nucleus

# The largest number of fp8 e4m3.
_FP8_MAX = 448.0
# Weights that share a scale in the usual 4-bit formats.
_INT4_GROUP = 32


def in_format(model: Decoder, weights: Weights, layers: float = 1.0) -> Decoder:
    """The model in a format: a copy, or itself in float32.

    - "float32", "bfloat16", "float16": weights and products.
    - "bfloat16-stored": weights in bfloat16, products in float32.
    - "int8", "fp8", "int4": each linear layer's weight rounded (one scale a row, a row, 32 numbers), products in
      bfloat16.
    - "int8-dynamic": torch's own, weights by one scale a matrix and activations too, the rest in float32.

    Args:
        model: in float32.
        weights: the format.
        layers: share of the decoder's layers that are in it, counted from the last; above 1 the vocabulary layer too.
    """
    if weights == "float32":
        return model
    made = copy.deepcopy(model)
    made.requires_grad_(False)
    made.eval()
    if weights in ("bfloat16", "float16"):
        return made.to(getattr(torch, weights))
    if weights == "bfloat16-stored":
        return made.to(torch.bfloat16).float()
    count = min(len(made.layers), round(layers * len(made.layers)))
    chosen = list(made.layers)[len(made.layers) - count :]
    if weights == "int8-dynamic":
        for layer in chosen:
            _dynamic(layer)
        return made
    for layer in chosen:
        for part in layer.modules():
            if isinstance(part, nn.Linear):
                part.weight.data = _rounded(part.weight.data, weights)
    if layers > 1:
        made.embed_tokens.weight.data = _rounded(made.embed_tokens.weight.data, weights)
    return made.to(torch.bfloat16)


def _rounded(weight: Tensor, weights: Weights) -> Tensor:
    if weights == "int8":
        return round_rows(weight)
    if weights == "fp8":
        scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny) / _FP8_MAX
        return (weight / scale).to(torch.float8_e4m3fn).to(weight.dtype) * scale
    groups = weight.reshape(-1, _INT4_GROUP)
    scale = groups.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny) / 7
    return ((groups / scale).round() * scale).view_as(weight)


def _dynamic(layer: Any) -> None:
    import warnings

    with warnings.catch_warnings():
        # torch announces that this will move to another package; until it does there is nothing a user could do.
        warnings.simplefilter("ignore")
        torch.ao.quantization.quantize_dynamic(layer, {nn.Linear}, dtype=torch.qint8, inplace=True)  # pyright: ignore[reportDeprecated]


def processed(logits: Float[Tensor, "B V"], seen: Bool[Tensor, "B V"] | None, spec: EngineSpec) -> Float[Tensor, "B V"]:
    """Log-probs as drawn from: -inf for what was cut off. `seen` marks the tokens of prompt and response so far."""
    logits = logits.float()
    if seen is not None and spec.repetition_penalty != 1.0:
        penalty = spec.repetition_penalty
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    log_p = log_softmax(logits, spec.temperature)
    if spec.top_k:
        least = log_p.topk(min(spec.top_k, log_p.shape[-1]), dim=-1).values[:, -1:]
        log_p = log_p.masked_fill(log_p < least, -torch.inf)
        log_p = torch.log_softmax(log_p, dim=-1)
    if spec.top_p < 1:
        log_p = torch.log_softmax(log_p.masked_fill(~nucleus(log_p, spec.top_p), -torch.inf), dim=-1)
    if spec.min_p > 0:
        least = log_p.amax(-1, keepdim=True) + torch.tensor(spec.min_p).log()
        log_p = torch.log_softmax(log_p.masked_fill(log_p < least, -torch.inf), dim=-1)
    return log_p


def logged_log_probs(
    logits: Float[Tensor, "B V"], log_p: Float[Tensor, "B V"], token: Int[Tensor, " B"], spec: EngineSpec
) -> tuple[Float[Tensor, " B"], Float[Tensor, "B 2"]]:
    """What an engine logs of tokens: their log-probs, and those of the two most probable ones.

    What a tool put in may lie outside what is drawn from: its log-prob is that before processing.
    """
    raw = log_softmax(logits, 1.0)
    logged = raw if spec.logs == "raw" else log_p
    value = logged.gather(-1, token[:, None]).squeeze(-1)
    value = torch.where(value.isinf(), raw.gather(-1, token[:, None]).squeeze(-1), value)
    return value, logged.topk(2, dim=-1).values


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


@dataclass
class Sample:
    """A response that grows; each list has a value a token.

    Attributes:
        ids: token ids.
        log_mu: log-probs as the engine logs them, nats.
        log_first: of the most probable token.
        log_second: of the second most probable one.
        sampled: False where a tool put the token in.
        turns: 0 before the tool, 1 from its first token on.
        later: True where the weights switched to made the token.
        finish: why it ended, "stop" or "length".
    """

    ids: list[int] = field(default_factory=list[int])
    log_mu: list[float] = field(default_factory=list[float])
    log_first: list[float] = field(default_factory=list[float])
    log_second: list[float] = field(default_factory=list[float])
    sampled: list[bool] = field(default_factory=list[bool])
    turns: list[int] = field(default_factory=list[int])
    later: list[bool] = field(default_factory=list[bool])
    finish: str = "length"


class Flight:
    """The responses of one batch. Those that are over leave it."""

    def __init__(self, jobs: Sequence[Job], end: int) -> None:
        self.jobs, self.end = jobs, end
        self.samples = [Sample() for _ in jobs]
        self.live = list(range(len(jobs)))
        self._forced: list[list[int]] = [[] for _ in jobs]

    @property
    def longest(self) -> int:
        """Tokens that no response of the batch exceeds."""
        return max(job.max_tokens + len(job.tool) for job in self.jobs)

    def forced(self) -> dict[int, int]:
        """Token ids that tools put in now, by row."""
        return {row: self._forced[job][0] for row, job in enumerate(self.live) if self._forced[job]}

    def add(
        self, ids: Sequence[int], log_mu: Sequence[float], top: Sequence[Sequence[float]], *, later: bool
    ) -> list[int]:
        """Add a token to every row; returns the rows that go on."""
        going: list[int] = []
        for row, job in enumerate(self.live):
            one = self.samples[job]
            one.ids.append(ids[row])
            one.log_mu.append(log_mu[row])
            one.log_first.append(top[row][0])
            one.log_second.append(top[row][1])
            one.later.append(later)
            one.sampled.append(not self._forced[job])
            one.turns.append(self._turn(job))
            if self._forced[job]:
                self._forced[job].pop(0)
                going.append(row)
            elif not self._over(job):
                going.append(row)
        return going

    def keep(self, rows: Sequence[int]) -> None:
        """Let only these rows go on."""
        self.live = [self.live[row] for row in rows]

    def _turn(self, job: int) -> int:
        return int(bool(self._forced[job]) or 1 in self.samples[job].turns[-1:])

    def _over(self, job: int) -> bool:
        """Whether a response is over after a token that was sampled; has the tool speak when its first turn is."""
        one, wanted = self.samples[job], self.jobs[job]
        ended = one.ids[-1] == self.end
        if wanted.tool and one.turns[-1] == 0 and (ended or len(one.ids) >= wanted.first_turn):
            self._forced[job].extend(wanted.tool)
            return False
        if ended:
            one.finish = "stop"
        return ended or sum(one.sampled) >= wanted.max_tokens


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
            for answer in range(GROUP):
                current = max(0, step - lags.choice(spec.lags))
                version = current if spec.delivered else 0
                cached = min(version, first_seen[prompt]) if spec.stale_prompts else version
                number = len(planned) + seed * 100_003
                planned.append(Planned(prompt, step, answer, number, version, current, cached))
    return planned


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
    made = (world.max_tokens, world.lr, world.trained, world.steps, world.batch_prompts)
    return (world.name, world.seed, *made, world.recipe)


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
