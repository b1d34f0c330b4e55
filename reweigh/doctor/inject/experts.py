"""A mixture-of-experts layer: a router sends each token to a few of several small networks."""

import torch
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
