"""The trainer: scores what the engine sampled, with faults of its own, and moves the weights by real steps."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from faults.engine import Job, Models, Sample, in_format, logged_log_probs, processed, sample
from faults.models import Decoder, Options
from faults.specs import EngineSpec, TrainerSpec, Training
from faults.worlds import World, kept
from reweigh.probe.scorer import entropy, log_softmax, nucleus

# Scale of weights that nothing has trained.
_UNTRAINED = 0.02
_PADDING_SEED = 7


@dataclass(frozen=True)
class Row:
    """Tokens to score, after their prompt."""

    prompt: tuple[int, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Score:
    """Nats, a value a token: log-probs, and the entropy of the distribution that they are of."""

    log_pi: list[float]
    entropy: list[float]


@torch.inference_mode()
def score(model: Decoder, rows: Sequence[Row], spec: TrainerSpec) -> list[Score]:
    """Score each row. With boundaries in place packed rows are computed as rows of their own, which is the same."""
    leaks = not (spec.pack_mask and spec.pack_positions)
    size = spec.pack if leaks else 1
    packs = [rows[i : i + size] for i in range(0, len(rows), size)]
    scores: list[Score] = []
    batch = spec.batch_size if leaks else spec.batch_size * spec.pack
    for start in range(0, len(packs), batch):
        scores += _batch(model, packs[start : start + batch], spec)
    return scores


@torch.inference_mode()
def prefill(
    model: Decoder, rows: Sequence[Row], spec: EngineSpec, options: Options, batch: int = 32
) -> list[list[float]]:
    """The engine's own log-probs of tokens that it is shown, rather than decoding; its settings as for sampling."""
    found: list[list[float]] = []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        hidden = _hidden(model, [[row] for row in part], TrainerSpec(), options)
        for i, row in enumerate(part):
            n = len(row.ids)
            logits = model.logits(hidden[i, len(row.prompt) - 1 : len(row.prompt) - 1 + n])
            seen = _seen(row, logits.shape[-1]) if spec.repetition_penalty != 1.0 else None
            value, _ = logged_log_probs(logits, processed(logits, seen, spec), torch.tensor(row.ids), spec)
            found.append(value.tolist())
    return found


def _batch(model: Decoder, packs: Sequence[Sequence[Row]], spec: TrainerSpec) -> list[Score]:
    options = Options(dropout=spec.dropout, rope_base=spec.rope_base, rope_scale=spec.rope_scale)
    hidden = _hidden(model, packs, spec, options)
    scores: list[Score] = []
    for i, pack in enumerate(packs):
        start = 0
        for row in pack:
            first, n = start + len(row.prompt) - 1, len(row.ids)
            scores.append(_scored(model, hidden[i, first : first + n], row, spec))
            start += len(row.prompt) + n
    return scores


def _scored(model: Decoder, hidden: Tensor, row: Row, spec: TrainerSpec) -> Score:
    logits = model.logits(hidden)
    if spec.padded_rows:
        logits = torch.cat([logits, hidden.float() @ _untrained(model, spec.padded_rows).T], dim=-1)
    log_p = log_softmax(logits, spec.temperature)
    ids = torch.tensor(row.ids, dtype=torch.int64)[:, None]
    if spec.top_p < 1:
        inside = nucleus(log_p, spec.top_p).scatter(-1, ids, True)
        log_p = torch.log_softmax(log_p.masked_fill(~inside, -torch.inf), dim=-1)
    return Score(log_p.gather(-1, ids).squeeze(-1).tolist(), entropy(log_p).tolist())


def _hidden(model: Decoder, packs: Sequence[Sequence[Row]], spec: TrainerSpec, options: Options) -> Tensor:
    width = max(sum(len(row.prompt) + len(row.ids) for row in pack) for pack in packs)
    ids = torch.zeros(len(packs), width, dtype=torch.int64)
    positions = torch.arange(width).repeat(len(packs), 1)
    owner = torch.zeros(len(packs), width, dtype=torch.int64)
    for i, pack in enumerate(packs):
        start = 0
        for j, row in enumerate(pack):
            whole = [*row.prompt, *row.ids]
            end = start + len(whole)
            ids[i, start:end] = torch.tensor(whole)
            owner[i, start:end] = j
            if spec.pack_positions:
                positions[i, start:] = torch.arange(width - start)
            positions[i, start + len(row.prompt) :] += spec.position_gap
            start = end
    mask = None
    if len(packs[0]) > 1 and spec.pack_mask:
        causal = torch.ones(width, width, dtype=torch.bool).tril()
        mask = (causal & (owner[:, :, None] == owner[:, None, :]))[:, None]
    return model(ids, positions, mask, None, options)


def _seen(row: Row, size: int) -> Tensor:
    seen = torch.zeros(len(row.ids), size, dtype=torch.bool)
    seen[:, torch.tensor(row.prompt)] = True
    for t in range(1, len(row.ids)):
        seen[t:, row.ids[t - 1]] = True
    return seen


def _untrained(model: Decoder, share: float) -> Tensor:
    shape = model.shape
    count = max(1, round(share * shape.vocab_size))
    return torch.randn(count, shape.width, generator=torch.Generator().manual_seed(_PADDING_SEED)) * _UNTRAINED


# Responses a prompt in a step of training.
_GROUP = 4
# The usual learning rate times this is too small for bfloat16 to hold the step.
_TINY = 0.05
_RANK, _ADAPTER_LR = 4, 12.0


def versions(world: World, seed: int, training: Training, size: float) -> list[Decoder]:
    """Models of versions 0, 1, ... in float32; made once, then kept on the disk."""
    run = (world.lr, world.trained, world.steps, world.batch_prompts, world.recipe)
    key = (world.name, world.seed, seed, training, size, *run)
    deltas = kept("versions", key, lambda: _trained(world, seed, training, size))
    start = _start(world, training).state_dict()
    made: list[Decoder] = []
    for weights in deltas:
        with torch.device("meta"):
            model = Decoder(world.model.shape)
        # What did not move is shared, not copied.
        model.load_state_dict({**start, **weights}, assign=True)
        model.requires_grad_(False)
        made.append(model.eval())
    return made


def _trained(world: World, seed: int, training: Training, size: float) -> list[dict[str, Tensor]]:
    torch.manual_seed(seed)
    start = _start(world, training)
    model = copy.deepcopy(start)
    lr = world.lr * size * (_TINY if training == "tiny-steps" else 1.0)
    layers: Any = model.layers[len(model.layers) - world.trained :]
    adapters: list[_Adapter] = []
    if training == "adapter":
        adapters = [_Adapter(part) for layer in layers for part in _projections(layer)]
        moving = [weight for one in adapters for weight in (one.down, one.up)]
        lr *= _ADAPTER_LR
    else:
        layers.requires_grad_(True)
        moving = list(layers.parameters())
    optimizer = torch.optim.Adam(moving, lr=lr, betas=(0.9, 0.95))
    found = [_moved(model, start)]
    for step in range(world.steps - 1):
        _improve(world, model, optimizer, adapters, seed * 1000 + step)
        found.append(_moved(model, start))
    return found


def _improve(
    world: World, model: Decoder, optimizer: torch.optim.Optimizer, adapters: Sequence["_Adapter"], seed: int
) -> None:
    """One policy-gradient step on fresh samples; advantages are rewards less their group's mean."""
    chosen = torch.randperm(len(world.prompts), generator=torch.Generator().manual_seed(seed))[
        : world.batch_prompts
    ].tolist()
    jobs = [
        Job(world.prompts[p].ids, seed * 977 + i * _GROUP + k, world.max_tokens)
        for i, p in enumerate(chosen)
        for k in range(_GROUP)
    ]
    answers = sample(Models(in_format(model, "bfloat16")), jobs, EngineSpec(), world.end)
    worth = advantages([reward(one, world.model.shape.vocab_size) for one in answers], _GROUP)
    total = sum(len(one.ids) for one in answers)
    optimizer.zero_grad(set_to_none=True)
    for start in range(0, len(jobs), 8):
        for one in adapters:
            one.attach()
        loss = _loss(model, jobs[start : start + 8], answers[start : start + 8], worth[start : start + 8]) / total
        loss.backward()
    optimizer.step()
    for one in adapters:
        one.merge()


def _loss(model: Decoder, jobs: Sequence[Job], answers: Sequence[Sample], worth: Sequence[float]) -> Tensor:
    rows = [torch.tensor([*job.prompt, *one.ids]) for job, one in zip(jobs, answers, strict=True)]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    logits = model.logits(model(ids, positions))[:, :-1]
    log_pi = -functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(rows), -1)
    loss = log_pi.new_zeros(())
    for i, (job, one) in enumerate(zip(jobs, answers, strict=True)):
        start = len(job.prompt) - 1
        loss = loss - worth[i] * log_pi[i, start : start + len(one.ids)].sum()
    return loss


def reward(one: Sample, vocab_size: int) -> float:
    """Something that training can raise whatever the length: the share of tokens in the upper half of the ids."""
    return sum(i >= vocab_size // 2 for i in one.ids) / max(1, len(one.ids))


def advantages(rewards: Sequence[float], group: int) -> list[float]:
    """Rewards less their group's mean, over its standard deviation (Shao et al. 2024); 0 where all are alike."""
    table = torch.tensor(rewards, dtype=torch.float64).view(-1, group)
    spread = table.std(dim=1, correction=0, keepdim=True)
    centred = table - table.mean(dim=1, keepdim=True)
    return torch.where(spread > 0, centred / spread.clamp(min=1e-6), centred).flatten().tolist()


class _Adapter:
    """A low-rank addition to one projection: `weight + up @ down`."""

    def __init__(self, part: nn.Linear) -> None:
        rows, columns = part.weight.shape
        self.part, self.base = part, part.weight.detach().clone()
        self.down = (torch.randn(_RANK, columns) / columns**0.5).requires_grad_(True)
        self.up = torch.zeros(rows, _RANK, requires_grad=True)

    def attach(self) -> None:
        """Let gradients through to the addition: the weight becomes a function of it."""
        del self.part.weight
        self.part.weight = self.base + self.up @ self.down

    def merge(self) -> None:
        """Make the weight a plain one again."""
        del self.part.weight
        self.part.weight = nn.Parameter((self.base + self.up @ self.down).detach(), requires_grad=False)


def _projections(layer: Any) -> list[nn.Linear]:
    return [layer.self_attn.q_proj, layer.self_attn.v_proj]


def _start(world: World, training: Training) -> Decoder:
    # For steps that are too small the checkpoint is as it is shipped: every weight a bfloat16 number.
    return in_format(world.model, "bfloat16-stored" if training == "tiny-steps" else "float32")


def _moved(model: Decoder, base: Decoder) -> dict[str, Tensor]:
    before = base.state_dict()
    return {n: w.detach().clone() for n, w in model.state_dict().items() if not torch.equal(w, before[n])}
