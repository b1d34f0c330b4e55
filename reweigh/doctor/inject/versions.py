"""The weights of a run, version by version: real optimiser steps on the model's own samples."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from reweigh.doctor.inject.cache import kept
from reweigh.doctor.inject.decoder import Decoder
from reweigh.doctor.inject.engine import Models, sample
from reweigh.doctor.inject.flight import Job, Sample
from reweigh.doctor.inject.formats import in_format
from reweigh.doctor.inject.specs import EngineSpec, Training
from reweigh.doctor.inject.worlds import World, generator

# Responses a prompt in a step of training.
_GROUP = 4
# The usual learning rate times this is too small for bfloat16 to hold the step.
_TINY = 0.05
_RANK, _ADAPTER_LR = 4, 12.0


def versions(world: World, seed: int, training: Training, size: float) -> list[Decoder]:
    """Models of versions 0, 1, ... in float32; made once, then kept on the disk."""
    key = (world.name, world.seed, seed, training, size, world.lr, world.trained, world.steps, world.batch_prompts)
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
    chosen = torch.randperm(len(world.prompts), generator=generator(seed))[: world.batch_prompts].tolist()
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
