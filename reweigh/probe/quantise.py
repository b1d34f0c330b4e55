"""Coarser number formats for a torch model, so that a policy can sample in one and be scored in another."""

import warnings
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from reweigh.probe.engine import ProbeError

NumberFormat = Literal["float32", "bfloat16", "float16", "int8", "int8-weight"]


def number_format(option: str, value: str) -> NumberFormat:
    """Check a name of a number format that came from the command line.

    Raises:
        ProbeError: not one of them.
    """
    for known in get_args(NumberFormat):
        if value == known:
            return known
    raise ProbeError(f"{option}: must be one of {', '.join(get_args(NumberFormat))}, got {value!r}\nhint: bfloat16.")


def in_format(model: PreTrainedModel, dtype: NumberFormat) -> PreTrainedModel:
    """The model with its linear layers in a format.

    - "float32", "bfloat16", "float16": as loaded.
    - "int8-weight": each row of each weight (of a hidden layer) rounded to 255 levels, computed in float32. Mild.
    - "int8": torch's dynamic quantisation, weights by one scale a matrix and activations too, the vocabulary layer
      as well. Harsh: a small model becomes another policy.
    """
    if dtype == "int8-weight":
        return _int8_rows(model)
    if dtype == "int8":
        return _int8_dynamic(model)
    return model


def _int8_rows(model: PreTrainedModel) -> PreTrainedModel:
    head = model.get_output_embeddings()
    for layer in model.modules():
        # The vocabulary layer may share its weight with the embedding, which engines leave alone.
        if isinstance(layer, nn.Linear) and layer is not head:
            layer.weight.data = round_rows(layer.weight.data)
    return model


def round_rows(weight: Tensor) -> Tensor:
    """Round each row to multiples of its largest magnitude / 127: symmetric int8, one scale an output channel."""
    scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny) / 127
    return (weight / scale).round() * scale


def _int8_dynamic(model: PreTrainedModel) -> PreTrainedModel:
    with warnings.catch_warnings():
        # torch announces that this will move to another package; until it does there is nothing a user could do.
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)  # pyright: ignore[reportDeprecated]
