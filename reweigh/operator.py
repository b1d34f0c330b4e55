"""Functions that a compiler sees as one call: their loops are not unrolled, and their temporaries are not kept."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Differentiate = Callable[..., tuple[Tensor | None, ...]]
Keep = Callable[[Any, tuple[Any, ...], Any], None]


def operator(
    name: str,
    function: Callable[..., Any],
    signature: str,
    shapes: Callable[..., Any],
    differentiate: tuple[Differentiate, Keep] | None = None,
) -> Callable[..., Any]:
    """Make `torch.ops.reweigh.<name>`.

    Args:
        name: of the operator.
        function: what it does, without gradients.
        signature: in torch's language for operators.
        shapes: makes empty outputs from the same arguments.
        differentiate: its backward pass, and what saves the inputs for it.
    """
    try:  # a second import of the package must not replace what the first one still calls
        return getattr(torch.ops.reweigh, name).default
    except AttributeError:
        made = torch.library.custom_op(f"reweigh::{name}", function, mutates_args=(), schema=signature)
    made.register_fake(shapes)
    if differentiate is not None:
        made.register_autograd(differentiate[0], setup_context=differentiate[1])
    return getattr(torch.ops.reweigh, name).default
