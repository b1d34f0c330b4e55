"""Training a small model on the spot, in about a minute on one core."""

import math

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from reweigh.doctor.inject.decoder import Decoder, Shape
from reweigh.doctor.inject.experts import Experts

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
