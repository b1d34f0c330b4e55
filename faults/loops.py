"""Trains small policies of many kinds from scratch, sampled by a rounded copy, and gives the records of each run.

Nothing is wrong in these loops, or the copy is late by a stated number of steps: what a doctor says of them beyond
rounding and lag is a false alarm. Logits grow while they learn, and the rounding grows with them.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownParameterType=false
# pyarrow ships no types.

import copy
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional

from faults.models import Decoder, Shape
from faults.worlds import smollm2_world
from reweigh.records.schema import BY_NAME

Policy = Literal["gru", "lstm", "state-space", "transformer", "window", "experts"]
"""Kinds of policies."""
POLICIES: tuple[Policy, ...] = get_args(Policy)
"""Every kind that is made on the spot."""
PRETRAINED = "smollm2"
"""SmolLM2-135M-Instruct, the last layers of which learn: minutes a loop."""
Sampler = Literal["bfloat16", "float16", "float32", "stored"]
"""What the copy that samples is in; "stored" has bfloat16 weights and float32 products."""


@dataclass(frozen=True)
class Loop:
    """One training run.

    Attributes:
        policy: kind of model, or `PRETRAINED`.
        seed: of weights, prompts and samples.
        sampler: number type of the copy.
        every: steps from one copy to the next; 1 has no lag.
        steps: of training.
        prompts: of a step; `group` responses each.
        group: responses to a prompt.
        length: tokens of a response.
        vocabulary: ids.
        lr: of Adam.
        reward: what is learnt: "copy" a prompt's ids, "sorted" ids that do not fall, "even" ids alone.
        optimizer: "adam" or "sgd".
    """

    policy: Policy | Literal["smollm2"] = "gru"
    seed: int = 0
    sampler: Sampler = "bfloat16"
    every: int = 1
    steps: int = 24
    prompts: int = 8
    group: int = 4
    length: int = 24
    vocabulary: int = 32
    lr: float = 3e-3
    reward: Literal["copy", "sorted", "even"] = "even"
    optimizer: Literal["adam", "sgd"] = "adam"


class _Recurrent(nn.Module):
    def __init__(self, size: int, width: int, kind: type[nn.Module]) -> None:
        super().__init__()
        self.embed = nn.Embedding(size, width)
        self.core: Any = kind(width, width, batch_first=True)
        self.head = nn.Linear(width, size)

    def forward(self, ids: Tensor) -> Tensor:
        out, _ = self.core(self.embed(ids))
        return self.head(out)


class _StateSpace(nn.Module):
    """A diagonal linear recurrence with a gate, in two layers."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(size, width)
        self.into = nn.ModuleList([nn.Linear(width, 2 * width) for _ in range(2)])
        self.decay = nn.ParameterList([nn.Parameter(torch.linspace(-1.0, 4.0, width)) for _ in range(2)])
        self.norm = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.head = nn.Linear(width, size)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for into, decay, norm in zip(self.into, self.decay, self.norm, strict=True):
            value, gate = into(norm(x)).chunk(2, -1)
            keep, state, out = torch.sigmoid(decay), torch.zeros_like(value[:, 0]), list[Tensor]()
            for t in range(value.shape[1]):
                state = keep * state + (1 - keep) * value[:, t]
                out.append(state)
            x = x + torch.stack(out, 1) * functional.silu(gate)
        return self.head(x)


class _Window(nn.Module):
    """A perceptron over the last four ids, dense or of four experts, one a token."""

    def __init__(self, size: int, width: int, experts: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(size, width)
        self.first = nn.ModuleList([nn.Linear(4 * width, 2 * width) for _ in range(experts)])
        self.router = nn.Linear(4 * width, experts)
        self.head = nn.Linear(2 * width, size)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(functional.pad(ids, (3, 0)))
        x = torch.cat([x[:, i : i + ids.shape[1]] for i in range(4)], -1)
        share = self.router(x).softmax(-1)
        chosen = share.argmax(-1)
        outs = torch.stack([layer(x) for layer in self.first], -2)
        picked = outs.gather(-2, chosen[..., None, None].expand(*chosen.shape, 1, outs.shape[-1])).squeeze(-2)
        return self.head(torch.tanh(picked * share.gather(-1, chosen[..., None])))


class _Transformer(nn.Module):
    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.core = Decoder(Shape(size, width=width, layers=2, heads=4, kv_heads=2, hidden=2 * width))
        for weight in self.core.parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.08)

    def forward(self, ids: Tensor) -> Tensor:
        return self.core.logits(self.core(ids, torch.arange(ids.shape[1]).expand_as(ids)))


class _Pretrained(nn.Module):
    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        world = smollm2_world()
        self.core = world.model
        for layer in list(self.core.layers)[-layers:]:
            layer.requires_grad_(True)
        # Their ends, so that all are of one length; the header of the answer is in it.
        self.prompts = torch.tensor([prompt.ids[-16:] for prompt in world.prompts if len(prompt.ids) >= 16])

    def forward(self, ids: Tensor) -> Tensor:
        return self.core.logits(self.core(ids, torch.arange(ids.shape[1]).expand_as(ids)))


def policy(kind: Policy | Literal["smollm2"], size: int, width: int = 48) -> nn.Module:
    """Make a policy, untrained but for `PRETRAINED`: ids `[B, T]` to logits `[B, T, V]`."""
    if kind == PRETRAINED:
        return _Pretrained()
    if kind in ("gru", "lstm"):
        return _Recurrent(size, width, nn.GRU if kind == "gru" else nn.LSTM)
    if kind == "state-space":
        return _StateSpace(size, width)
    if kind == "transformer":
        return _Transformer(size, width)
    return _Window(size, width, 4 if kind == "experts" else 1)


def _rounded(model: nn.Module, sampler: Sampler) -> nn.Module:
    made = copy.deepcopy(model).eval()
    if sampler == "stored":
        return made.to(torch.bfloat16).float()
    return made.to({"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[sampler])


def _rewards(loop: Loop, prompts: Tensor, ids: Tensor) -> Tensor:
    if loop.reward == "copy":
        want = prompts[:, torch.arange(ids.shape[1]) % prompts.shape[1]]
        return (ids == want).float().mean(1)
    if loop.reward == "sorted":
        return (ids[:, 1:] >= ids[:, :-1]).float().mean(1)
    return (ids % 2 == 0).float().mean(1)


@torch.no_grad()
def _sample(engine: nn.Module, prompts: Tensor, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    ids, logged = prompts, list[Tensor]()
    for _ in range(length):
        log_p = engine(ids)[:, -1].float().log_softmax(-1)
        token = torch.multinomial(log_p.exp(), 1, generator=generator)
        logged.append(log_p.gather(-1, token))
        ids = torch.cat([ids, token], 1)
    return ids[:, prompts.shape[1] :], torch.cat(logged, 1)


def run(loop: Loop, *, entropies: bool = True, versions: bool = True) -> pa.Table:
    """Train by REINFORCE with a group's mean as baseline; one row a response, in the columns of the rollout record.

    Args:
        loop: what to run.
        entropies: record the trainer's entropies.
        versions: record which weights sampled.
    """
    torch.manual_seed(loop.seed)
    generator = torch.Generator().manual_seed(loop.seed)
    model = policy(loop.policy, loop.vocabulary)
    make = torch.optim.Adam if loop.optimizer == "adam" else torch.optim.SGD
    optimizer = make([x for x in model.parameters() if x.requires_grad], lr=loop.lr)
    engine, made_at = _rounded(model, loop.sampler), 0
    rows: list[dict[str, Any]] = []
    for step in range(loop.steps):
        if step % loop.every == 0:
            engine, made_at = _rounded(model, loop.sampler), step
        if isinstance(model, _Pretrained):
            few = model.prompts[torch.randint(len(model.prompts), (loop.prompts,), generator=generator)]
        else:
            few = torch.randint(loop.vocabulary, (loop.prompts, 4), generator=generator)
        prompts = few.repeat_interleave(loop.group, 0)
        ids, log_mu = _sample(engine, prompts, loop.length, generator)
        logits = model(torch.cat([prompts, ids], 1))[:, prompts.shape[1] - 1 : -1].float()
        log_p = logits.log_softmax(-1)
        log_pi = log_p.gather(-1, ids[..., None]).squeeze(-1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        reward = _rewards(loop, prompts, ids).view(loop.prompts, loop.group)
        worth = ((reward - reward.mean(1, keepdim=True)) / reward.std(1, keepdim=True).clamp(min=1e-6)).flatten()
        for i in range(len(ids)):
            rows.append(
                {
                    "sequence_id": f"{step}-{i}",
                    "prompt_id": f"{step}-{i // loop.group}",
                    "step": step,
                    "token_ids": ids[i].tolist(),
                    "log_mu": log_mu[i].tolist(),
                    "log_pi": log_pi[i].tolist(),
                    "mask": [True] * loop.length,
                    "advantage": [float(worth[i])] * loop.length,
                    "reward": float(reward.flatten()[i]),
                }
                | ({"versions": [made_at] * loop.length, "trainer_version": step} if versions else {})
                | ({"entropy_pi": entropy[i].tolist()} if entropies else {})
            )
        optimizer.zero_grad(set_to_none=True)
        (-(worth[:, None] * log_pi).mean()).backward()
        optimizer.step()
    names = [name for name in BY_NAME if name in rows[0]]
    return pa.table([pa.array([row[name] for row in rows], type=BY_NAME[name].type) for name in names], names=names)


def clean_loops(count: int, first_seed: int = 0) -> list[Loop]:
    """Give so many loops without a fault and without lag, of every policy, task, number type, size and rate in turn."""
    samplers: tuple[Sampler, ...] = ("bfloat16", "bfloat16", "float16", "stored", "float32")
    return [
        Loop(
            POLICIES[i % len(POLICIES)],
            first_seed + i,
            samplers[i % len(samplers)],
            reward=("even", "sorted", "copy")[i // 2 % 3],
            lr=(1e-3, 3e-3, 1e-2, 3e-2)[i // 3 % 4],
            vocabulary=(12, 32, 200)[i // 4 % 3],
            length=(16, 24, 48)[i // 5 % 3],
            steps=(12, 24, 40)[i // 7 % 3],
        )
        for i in range(count)
    ]


def pretrained_loop(every: int = 1, seed: int = 0, steps: int = 8) -> Loop:
    """Give the loop of `PRETRAINED`, its copy made every so many steps."""
    return Loop(PRETRAINED, seed, every=every, steps=steps, prompts=4, length=32, vocabulary=49152, lr=2e-5)


def lagging_loops(count: int, first_seed: int = 1000) -> list[Loop]:
    """Give so many loops whose copy is made every second to eighth step."""
    return [
        Loop(
            POLICIES[i % len(POLICIES)],
            first_seed + i,
            ("bfloat16", "float32")[i % 2],
            every=(2, 3, 4, 8)[i % 4],
            reward=("even", "sorted", "copy")[i // 2 % 3],
            lr=(1e-3, 3e-3, 1e-2)[i // 3 % 3],
            vocabulary=(12, 32, 200)[i // 4 % 3],
            length=(16, 24, 48)[i // 5 % 3],
            steps=24,
        )
        for i in range(count)
    ]
