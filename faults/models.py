"""A Llama-type language model, dense or of experts: each step that a mismatch can come from is an argument."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional


class Experts(nn.Module):
    """Top-k routing, the chosen experts' outputs weighted by the softmax over the chosen scores (as in Mixtral)."""

    def __init__(self, width: int, hidden: int, experts: int, per_token: int) -> None:
        super().__init__()
        self._per_token = per_token
        self.router = nn.Linear(width, experts, bias=False)
        self.gate = nn.ModuleList([nn.Linear(width, hidden, bias=False) for _ in range(experts)])
        self.up = nn.ModuleList([nn.Linear(width, hidden, bias=False) for _ in range(experts)])
        self.down = nn.ModuleList([nn.Linear(hidden, width, bias=False) for _ in range(experts)])
        self.balance: Tensor | None = None

    def forward(self, x: Tensor, router_bits: int | None) -> Tensor:
        """Route; `router_bits` is how many bits of mantissa the scores keep. `balance` is left for pretraining."""
        flat = x.reshape(-1, x.shape[-1])
        scores = self.router(flat).float()
        if router_bits is not None:
            scores = keep_bits(scores, router_bits)
        top, chosen = scores.topk(self._per_token, dim=-1)
        share = top.softmax(-1).to(x.dtype)
        out = torch.zeros_like(flat)
        for e in range(len(self.gate)):
            rows, slot = (chosen == e).nonzero(as_tuple=True)
            if len(rows) == 0:
                continue
            inside = flat[rows]
            y = self.down[e](functional.silu(self.gate[e](inside)) * self.up[e](inside))
            out = out.index_add(0, rows, y * share[rows, slot, None])
        if self.training:
            # Switch Transformer (Fedus et al. 2021), equation 4: experts times (share of tokens * mean probability).
            used = functional.one_hot(chosen, scores.shape[-1]).float().mean((0, 1))
            self.balance = scores.shape[-1] * (used * scores.softmax(-1).mean(0)).sum()
        return out.view_as(x)


def keep_bits(x: Tensor, bits: int) -> Tensor:
    """Round to `bits` bits of mantissa after the leading one: 7 is bfloat16's, 3 that of fp8 e4m3."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2 ** (bits + 1)).round() / 2 ** (bits + 1), exponent)


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; `experts` is 0 for a dense one."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5
    experts: int = 0
    experts_per_token: int = 2

    @property
    def head_width(self) -> int:
        """Numbers in one attention head."""
        return self.width // self.heads


@dataclass(frozen=True)
class Options:
    """How one forward is computed, apart from the weights.

    Attributes:
        dropout: share of what each layer adds that is dropped, drawn anew each time.
        rope_base: the rotary base is multiplied by this.
        rope_scale: positions are divided by this (linear scaling).
        kv_format: keys and values are rounded to this as they are stored; None keeps them.
        router_bits: bits of mantissa that router scores keep; None keeps all.
    """

    dropout: float = 0.0
    rope_base: float = 1.0
    rope_scale: float = 1.0
    kv_format: torch.dtype | None = None
    router_bits: int | None = None


PLAIN = Options()


class Cache:
    """Keys and values of the tokens so far, layer by layer."""

    def __init__(self, layers: int) -> None:
        self.layers: list[tuple[Tensor, Tensor] | None] = [None] * layers

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append to a layer and return all of it."""
        before = self.layers[layer]
        if before is not None:
            keys, values = torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)
        self.layers[layer] = (keys, values)
        return keys, values

    def convert(self, to: torch.dtype | None) -> None:
        """Round all of it to a number type."""
        self.layers = [
            None if kv is None else (kv[0].to(to).to(kv[0].dtype), kv[1].to(to).to(kv[1].dtype)) for kv in self.layers
        ]

    def select(self, rows: Tensor) -> None:
        """Keep only some sequences."""
        self.layers = [None if kv is None else (kv[0][rows], kv[1][rows]) for kv in self.layers]


class Decoder(nn.Module):
    """Token ids to hidden states to logits. Weights have the names of `transformers`' Llama; the head is tied."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.width)
        self.layers = nn.ModuleList([_Layer(shape) for _ in range(shape.layers)])
        self.norm = _Norm(shape)

    def forward(
        self,
        ids: Int[Tensor, "B T"],
        positions: Int[Tensor, "B T"],
        mask: Bool[Tensor, "B 1 T S"] | None = None,
        cache: Cache | None = None,
        options: Options = PLAIN,
    ) -> Float[Tensor, "B T W"]:
        """Hidden states. `mask` says what each token attends to; None is all before it, without a cache."""
        x = functional.dropout(self.embed_tokens(ids), options.dropout)
        turn = _rotation(positions, self.shape, options)
        for i, layer in enumerate(self.layers):
            x = layer(x, turn, mask, cache, i, options)
        return self.norm(x)

    def logits(self, hidden: Float[Tensor, "*n W"]) -> Float[Tensor, "*n V"]:
        """Scores of the next token, in float32 after a product in the model's own format."""
        return functional.linear(hidden, self.embed_tokens.weight).float()


class _Norm(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape.width))
        self._eps = shape.norm_eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self._eps)).to(x.dtype)


class _Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = _Norm(shape)
        self.self_attn = _Attention(shape)
        self.post_attention_layernorm = _Norm(shape)
        self.mlp = (
            _Gated(shape)
            if shape.experts == 0
            else Experts(shape.width, shape.hidden, shape.experts, shape.experts_per_token)
        )

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor | None, cache: Cache | None, i: int, options: Options
    ) -> Tensor:
        added = self.self_attn(self.input_layernorm(x), turn, mask, cache, i, options)
        x = x + functional.dropout(added, options.dropout)
        added = self.mlp(self.post_attention_layernorm(x), options.router_bits)
        return x + functional.dropout(added, options.dropout)


class _Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self._heads, self._kv_heads, self._head_width = shape.heads, shape.kv_heads, shape.head_width
        self.q_proj = nn.Linear(shape.width, shape.heads * shape.head_width, bias=False)
        self.k_proj = nn.Linear(shape.width, shape.kv_heads * shape.head_width, bias=False)
        self.v_proj = nn.Linear(shape.width, shape.kv_heads * shape.head_width, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_width, shape.width, bias=False)

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor | None, cache: Cache | None, i: int, options: Options
    ) -> Tensor:
        batch, time, _ = x.shape
        q = _rotate(self.q_proj(x).view(batch, time, self._heads, self._head_width).transpose(1, 2), turn)
        k = _rotate(self.k_proj(x).view(batch, time, self._kv_heads, self._head_width).transpose(1, 2), turn)
        v = self.v_proj(x).view(batch, time, self._kv_heads, self._head_width).transpose(1, 2)
        if options.kv_format is not None:
            k, v = k.to(options.kv_format).to(x.dtype), v.to(options.kv_format).to(x.dtype)
        if cache is not None:
            k, v = cache.extend(i, k, v)
        group = self._heads // self._kv_heads
        if group > 1:
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, time, -1))


class _Gated(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.hidden, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.hidden, bias=False)
        self.down_proj = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor, router_bits: int | None) -> Tensor:
        del router_bits  # a dense layer has no router
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


def _rotation(positions: Tensor, shape: Shape, options: Options) -> tuple[Tensor, Tensor]:
    half = torch.arange(0, shape.head_width, 2, device=positions.device, dtype=torch.float32) / shape.head_width
    speed = (shape.rope_base * options.rope_base) ** -half
    angle = (positions.float() / options.rope_scale)[:, None, :, None] * speed
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def _rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    cos, sin = turn[0].to(x.dtype), turn[1].to(x.dtype)
    return x * cos + torch.cat([-right, left], dim=-1) * sin
