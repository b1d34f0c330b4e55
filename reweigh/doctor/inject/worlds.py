"""A world: a language model, its tokenizer and its prompts, in which faults can be committed."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from reweigh.doctor.inject import text
from reweigh.doctor.inject.cache import kept
from reweigh.doctor.inject.decoder import Decoder, Shape
from reweigh.doctor.inject.pretrain import pretrain, stream_of

WorldName = Literal["tiny", "moe", "smollm2"]
# Functions that the model does not learn from, but is asked to write.
_HELD_OUT = 600
_VOCABULARY = 1000
# Brings the entropy of a token down to about 2 nats.
_SHARPNESS = 1.4


@dataclass(frozen=True)
class Prompt:
    """What a response follows, as the engine has it and as trainers with another template have it.

    Attributes:
        prompt_id: its name.
        env: "write", or "tool" if a tool speaks after the first turn.
        ids: token ids.
        templates: token ids by `TrainerSpec.template`.
        tool: token ids that the tool puts in; empty without.
        first_turn: tokens after which the tool speaks at the latest.
    """

    prompt_id: str
    env: str
    ids: tuple[int, ...]
    templates: dict[str, tuple[int, ...]]
    tool: tuple[int, ...] = ()
    first_turn: int = 0


@dataclass(frozen=True, eq=False)
class World:
    """A model and what it is asked.

    Attributes:
        name: of the world; `seed` what it was made with.
        model: in float32.
        encode: text to token ids; `decode` back.
        prompts: in the order in which they are used.
        end: the token that ends a turn.
        lr: of a usual step of training (Adam).
        max_tokens: sampled in one response.
        mean_tokens: in one response, about, tools included.
        trained: layers that training moves, from the last.
        steps: of a run.
        batch_prompts: in a step of training.
    """

    name: WorldName
    seed: int
    model: Decoder
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    prompts: tuple[Prompt, ...]
    end: int
    lr: float
    max_tokens: int
    mean_tokens: int
    trained: int
    steps: int = 8
    batch_prompts: int = 12


def tiny_world(seed: int = 0) -> World:
    """A three-layer model of 770,000 weights, trained in a minute on the standard library's source, then kept."""
    shape = Shape(_VOCABULARY, width=128, layers=3, heads=4, kv_heads=4, hidden=384)
    return _library_world("tiny", shape, seed, steps=800)


def moe_world(seed: int = 0) -> World:
    """A two-layer mixture of eight experts, two a token, on the same text."""
    shape = Shape(_VOCABULARY, width=128, layers=2, heads=4, kv_heads=4, hidden=192, experts=8)
    return _library_world("moe", shape, seed, steps=600)


def _library_world(name: WorldName, shape: Shape, seed: int, steps: int) -> World:
    made = kept(f"{name}-world", (shape, seed, steps, _SHARPNESS), lambda: _made(shape, seed, steps))
    model = Decoder(shape)
    model.load_state_dict(made["weights"])
    model.eval()
    model.requires_grad_(False)
    tokenizer = text.loaded(made["tokenizer"])

    def encode(one: str) -> list[int]:
        return tokenizer.encode(one).ids

    def decode(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=False)

    held = [text.Function(*one) for one in made["held_out"]]
    prompts = _prompts(held, encode, seed)
    end = encode(text.END)[0]
    return World(
        name, seed, model, encode, decode, prompts, end, lr=4e-4, max_tokens=160, mean_tokens=104, trained=shape.layers
    )


def _made(shape: Shape, seed: int, steps: int) -> dict[str, object]:
    corpus = text.functions()
    random.Random(seed).shuffle(corpus)
    held, learnt = corpus[:_HELD_OUT], corpus[_HELD_OUT:]
    tokenizer = text.tokenizer(learnt, shape.vocab_size)
    stream = stream_of(text.documents(learnt, seed), tokenizer)
    model = pretrain(shape, stream, seed=seed, steps=steps, batch=6, length=192, lr=6e-3, sharpness=_SHARPNESS)
    held_out = [(f.module, f.source, f.doc) for f in held]
    return {"weights": model.state_dict(), "tokenizer": tokenizer.to_str(), "held_out": held_out}


def _prompts(held: list[text.Function], encode: Callable[[str], list[int]], seed: int) -> tuple[Prompt, ...]:
    """The beginning of each function, 2 to 100 tokens after its module; two in five have a tool."""
    random_ = random.Random(seed)
    prompts: list[Prompt] = []
    for i, f in enumerate(held):
        ids = encode(f.source)
        start = ids[: random_.randint(2, max(3, min(100, len(ids) // 2)))]
        module = encode(f.module)
        begin, header, source = encode(text.BEGIN), encode(text.MODULE), encode(text.SOURCE)
        other = encode(f"# {f.module}\n")
        templates = {
            "same": [*begin, *header, *module, *source, *start],
            "no-begin": [*header, *module, *source, *start],
            "no-header": [*begin, *source, *start],
            "other": [*begin, *source, *other, *start],
        }
        has_tool = bool(f.doc) and random_.random() < 0.6
        prompts.append(
            Prompt(
                f"prompt-{i}",
                "tool" if has_tool else "write",
                tuple(templates["same"]),
                {name: tuple(one) for name, one in templates.items()},
                tuple(encode(text.tool_text(f.doc))) if has_tool else (),
                random_.randint(16, 64) if has_tool else 0,
            )
        )
    return tuple(prompts)


def generator(seed: int) -> torch.Generator:
    """Random numbers of their own."""
    return torch.Generator().manual_seed(seed)
