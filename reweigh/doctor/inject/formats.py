"""A copy of a model with its weights in a coarser number format."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from reweigh.doctor.inject.decoder import Decoder
from reweigh.doctor.inject.specs import Weights
from reweigh.probe.models import round_rows

# The largest number of fp8 e4m3.
_FP8_MAX = 448.0
# Weights that share a scale in the usual 4-bit formats.
_INT4_GROUP = 32


def in_format(model: Decoder, weights: Weights, layers: float = 1.0) -> Decoder:
    """The model in a format: a copy, or itself in float32.

    - "float32", "bfloat16": weights and products.
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
    if weights == "bfloat16":
        return made.to(torch.bfloat16)
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
