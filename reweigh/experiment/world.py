"""The world of the experiment: brackets to close, a transformer of 0.1 M parameters, engines that are not quite it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn
from torch.nn import functional

State = dict[str, Tensor]
CACHES: Mapping[str, torch.dtype | None] = {"": None, "fp8": torch.float8_e4m3fn}
WARM_RATE, WARM_BATCH, WARM_POOL, WARM_UP = 5e-3, 128, 4096, 20
_SMALLEST = 1e-8  # a scale: what a group of zeros is divided by


@dataclass(frozen=True)
class Brackets:
    """Brackets of a few kinds: a prompt opens some, an answer of a given length closes everything.

    The reward is 1 if all is balanced at the end of the answer and never wrong before, else 0. There are thousands of
    right answers to a prompt, so that a policy can be right and keep its entropy.

    Attributes:
        length: symbols of an answer.
        opened: brackets that a prompt leaves open.
        kinds: of brackets.

    Raises:
        ValueError: no answer of that length can close everything.
    """

    length: int = 24
    opened: int = 4
    kinds: int = 3

    def __post_init__(self) -> None:
        """Refuse lengths without a right answer."""
        if self.length < self.opened or (self.length - self.opened) % 2:
            raise ValueError(
                f"Brackets: length must be {self.opened}, {self.opened + 2}, {self.opened + 4} and so on to close "
                f"{self.opened} brackets, got {self.length}"
            )

    @property
    def vocabulary(self) -> int:
        """Count the symbols: what opens, what closes, and what ends a prompt."""
        return 2 * self.kinds + 1

    @property
    def prompt_length(self) -> int:
        """Count the symbols of a prompt."""
        return self.opened + 1

    def prompts(self, count: int, generator: Generator) -> Int[Tensor, "S P"]:
        """Draw prompts."""
        opened = torch.randint(self.kinds, (count, self.opened), generator=generator)
        return torch.cat([opened, torch.full((count, 1), 2 * self.kinds)], 1)

    def answers(self, prompts: Int[Tensor, "S P"], generator: Generator) -> Int[Tensor, "S T"]:
        """Draw right answers: at each symbol a coin says whether to open or to close, where both can end well."""
        count = len(prompts)
        stack = torch.zeros(count, self.opened + self.length + 1, dtype=torch.long)
        stack[:, : self.opened] = prompts[:, :-1]
        depth = torch.full((count,), self.opened)
        written: list[Tensor] = []
        for left in range(self.length, 0, -1):
            coin = torch.rand(count, generator=generator) < 0.5
            kind = torch.randint(self.kinds, (count,), generator=generator)
            opens = (depth == 0) | (coin & (depth + 2 <= left))
            last = stack.gather(1, (depth - 1).clamp(min=0)[:, None])[:, 0]
            written.append(torch.where(opens, kind, self.kinds + last))
            stack.scatter_(1, depth[:, None], kind[:, None])  # over the top of the stack, where it is not read
            depth = depth + torch.where(opens, 1, -1)
        return torch.stack(written, 1)

    def rewards(self, prompts: Int[Tensor, "S P"], answers: Int[Tensor, "S T"]) -> Float[Tensor, " S"]:
        """Give 1 to each answer that closes everything in order, 0 to the others."""
        count = len(prompts)
        stack = torch.zeros(count, self.opened + self.length + 1, dtype=torch.long)
        stack[:, : self.opened] = prompts[:, :-1]
        depth, right = torch.full((count,), self.opened), torch.ones(count, dtype=torch.bool)
        for symbol in answers.T:
            opens = symbol < self.kinds
            last = stack.gather(1, (depth - 1).clamp(min=0)[:, None])[:, 0]
            right &= opens | ((depth > 0) & (symbol - self.kinds == last))
            stack.scatter_(1, depth[:, None], symbol[:, None])
            depth = (depth + torch.where(opens, 1, -1)).clamp(min=0)
        return (right & (depth == 0)).float()


class Block(nn.Module):
    """A layer of a decoder: attention, then two matrices, each after a norm and beside what came in.

    With experts, a router sends each token to the one that it thinks likeliest, whose answer counts by that
    probability, as in a switch transformer (Fedus et al., 2021).
    """

    def __init__(self, width: int, heads: int, dropout: float, experts: int = 0) -> None:
        super().__init__()
        self.heads, self.dropout, self.experts = heads, dropout, experts
        self.before_mix, self.before_think = nn.RMSNorm(width), nn.RMSNorm(width)
        self.mix, self.mixed = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        each = max(experts, 1)
        self.up = nn.Linear(width, each * 4 * width, bias=False)
        self.down = nn.Linear(4 * width, each * width, bias=False)
        self.router = nn.Linear(width, experts, bias=False) if experts else None

    def forward(self, x: Tensor, cache: Tensor | None, at: int) -> Tensor:
        """Give the next layer's input; with a cache, of tokens that begin at position `at`."""
        rows, new, width = x.shape
        query, *held = self.mix(self.before_mix(x)).view(rows, new, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if cache is not None:
            cache[:, :, :, at : at + new] = torch.stack(held)
            held = list(cache[:, :, :, : at + new].to(query.dtype))
        seen = functional.scaled_dot_product_attention(query, held[0], held[1], is_causal=new > 1)
        x = x + self._drop(self.mixed(seen.transpose(1, 2).reshape(rows, new, width)))
        return x + self._drop(self._think(self.before_think(x)))

    def _think(self, x: Tensor) -> Tensor:
        if self.router is None:
            return self.down(functional.gelu(self.up(x)))
        *places, width = x.shape
        share, which = self.router(x).softmax(-1).max(-1, keepdim=True)
        thought = functional.gelu(self.up(x)).view(*places, self.experts, 4 * width)
        thought = thought.gather(-2, which[..., None].expand(*places, 1, 4 * width))[..., 0, :]
        said = self.down(thought).view(*places, self.experts, width)
        return share * said.gather(-2, which[..., None].expand(*places, 1, width))[..., 0, :]

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training) if self.dropout else x


class Model(nn.Module):
    """A decoder with learned positions and a head of its own."""

    def __init__(
        self, task: Brackets, width: int = 64, layers: int = 2, heads: int = 4, dropout: float = 0.0, experts: int = 0
    ) -> None:
        super().__init__()
        context = task.prompt_length + task.length
        self.shape = heads, context, width // heads  # of keys, a row
        self.tokens, self.places = nn.Embedding(task.vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout, experts) for _ in range(layers))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, task.vocabulary, bias=False)
        for matrix in self.parameters():
            if matrix.dim() > 1:
                nn.init.normal_(matrix, std=0.5 / math.sqrt(width))

    def forward(self, tokens: Tensor, caches: list[Tensor] | None = None, at: int = 0) -> Tensor:
        """Give logits of what follows each token; with caches, of tokens that begin at position `at`."""
        x = self.tokens(tokens) + self.places.weight[at : at + tokens.shape[1]]
        for i, block in enumerate(self.blocks):
            x = block(x, None if caches is None else caches[i], at)
        return self.head(self.norm(x))

    def caches(self, rows: int, kind: str) -> list[Tensor]:
        """Make room for keys and values: one tensor a layer."""
        number = CACHES[kind] or self.head.weight.dtype
        return [torch.zeros(2, rows, *self.shape, dtype=number) for _ in self.blocks]


@dataclass(frozen=True, eq=False)
class Sampled:
    """Answers, and what the engine knows of them.

    Attributes:
        tokens: `[S, T]`.
        log_mu: of the distribution that they were drawn from, nats.
        entropy: of that distribution, nats.
        support: `[S, T, V]`, what top-p left to choose from; None without top-p.
        law: `[S, T, V]`, log-probs of every symbol that could have been drawn, nats; -inf where top-p left it out.
    """

    tokens: Int[Tensor, "S T"]
    log_mu: Float[Tensor, "S T"]
    entropy: Float[Tensor, "S T"]
    support: Bool[Tensor, "S T V"] | None
    law: Float[Tensor, "S T V"]


@torch.no_grad()
def sample(
    model: Model,
    prompts: Int[Tensor, "S P"],
    length: int,
    generator: Generator,
    top_p: float = 1.0,
    cache: str = "",
    then: Model | None = None,
) -> Sampled:
    """Draw an answer to each prompt, symbol by symbol, with keys and values kept.

    Args:
        model: the engine's own copy.
        prompts: one a row.
        length: of the answers.
        generator: of the draws.
        top_p: leaves out what is less likely than the most likely symbols that have this share together.
        cache: number type of keys and values, a name of `CACHES`.
        then: weights that stand in for the model's from the middle of each answer on; keys and values stay.
    """
    caches, new, at = model.caches(len(prompts), cache), prompts, 0
    drawn: list[Tensor] = []
    laws: list[Tensor] = []
    for i in range(length):
        now = model if then is None or i < length // 2 else then
        law = now(new, caches, at)[:, -1].float().log_softmax(-1)
        if top_p < 1:
            falling, order = law.sort(-1, descending=True)
            before = falling.exp().cumsum(-1) - falling.exp()
            out = torch.zeros_like(law, dtype=torch.bool).scatter(1, order, before >= top_p)
            law = law.masked_fill(out, -math.inf).log_softmax(-1)
        at += new.shape[1]
        new = torch.multinomial(law.exp(), 1, generator=generator)
        drawn.append(new)
        laws.append(law)
    tokens, law = torch.cat(drawn, 1), torch.stack(laws, 1)
    return Sampled(tokens, chosen(law, tokens), entropy_of(law), law.isfinite() if top_p < 1 else None, law)


def score(
    model: Model, prompts: Int[Tensor, "S P"], tokens: Int[Tensor, "S T"], support: Tensor | None = None
) -> Float[Tensor, "S T V"]:
    """Give the log-probs of every symbol at each place of an answer, in one pass as a trainer does.

    Args:
        model: with its gradient.
        prompts: one a row.
        tokens: the answers.
        support: what the engine left to choose from, to leave out the same here; None takes all.
    """
    logits = model(torch.cat([prompts, tokens[:, :-1]], 1))[:, prompts.shape[1] - 1 :]
    return (logits if support is None else logits.masked_fill(~support, -math.inf)).log_softmax(-1)


def chosen(law: Float[Tensor, "S T V"], tokens: Int[Tensor, "S T"]) -> Float[Tensor, "S T"]:
    """Pick the log-probs of the tokens."""
    return law.gather(2, tokens[..., None])[..., 0]


def entropy_of(law: Float[Tensor, "S T V"]) -> Float[Tensor, "S T"]:
    """Entropy of each place's distribution, nats; what cannot come adds nothing."""
    law = law.detach()
    return -torch.where(law.isfinite(), law.exp() * law, 0).sum(-1)


def check_weights(kind: str) -> None:
    """Refuse a number type of weights that is none.

    Raises:
        ValueError: it is neither empty nor one of bf16 and intBITS/GROUP.
    """
    bits, _, group = kind.removeprefix("int").partition("/")
    known = kind in ("", "bf16") or (kind.startswith("int") and bits.isdecimal() and group.isdecimal())
    if not known or (kind.startswith("int") and not (2 <= int(bits) <= 8 and int(group) >= 1)):
        raise ValueError(f'weights: must be "", "bf16" or as "int3/64" (bits, group), got {kind!r}')


def as_stored(state: Mapping[str, Tensor], kind: str) -> State:
    """Give the weights as an engine holds them: rounded to the nearest of what bits and a scale a group can say.

    Args:
        state: the trainer's.
        kind: "", "bf16", or "int3/64" for 3 bits and a scale for each 64 weights of a row. Embeddings stay.
    """
    if not kind:
        return dict(state)
    if kind == "bf16":
        return {name: w.bfloat16().float() for name, w in state.items()}
    bits, group = (int(x) for x in kind.removeprefix("int").split("/"))
    most, out = 2 ** (bits - 1) - 1, dict(state)
    for name, w in state.items():
        if w.dim() == 2 and name not in ("tokens.weight", "places.weight"):
            parts = w.reshape(-1, min(group, w.shape[1]))
            scale = parts.abs().amax(1, keepdim=True).clamp(min=_SMALLEST) / most
            out[name] = ((parts / scale).round() * scale).view_as(w)
    return out


def warm_start(task: Brackets, seed: int, steps: int, folder: Path | None = None, experts: int = 0) -> State:
    """Teach a model right answers until it gives some of its own: the policy that every run of a seed begins with.

    Args:
        task: what to learn.
        seed: of the model and of what it is shown.
        steps: of Adam.
        folder: where it is kept, to be made once; None keeps nothing.
        experts: of each layer.
    """
    name = f"warm-{task.length}-{task.opened}-{task.kinds}-{steps}-{seed}" + (f"-{experts}" if experts else "")
    kept = None if folder is None else folder / f"{name}.pt"
    if kept is not None and kept.exists():
        return torch.load(kept, weights_only=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1000 + seed)
        model = Model(task, experts=experts)
    generator = torch.Generator().manual_seed(2000 + seed)
    prompts = task.prompts(WARM_POOL, generator)
    answers = task.answers(prompts, generator)
    adam = torch.optim.Adam(model.parameters(), WARM_RATE, betas=(0.9, 0.98))
    for step in range(steps):
        adam.param_groups[0]["lr"] = WARM_RATE * min(1.0, (step + 1) / WARM_UP)
        rows = torch.randint(WARM_POOL, (WARM_BATCH,), generator=generator)
        loss = -chosen(score(model, prompts[rows], answers[rows]), answers[rows]).mean()
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
    state = {name: w.detach().clone() for name, w in model.state_dict().items()}
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(kept)
    return state
