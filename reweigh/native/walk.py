"""Calls of the compiled walk with tensors; each gives None where it may not be used, and torch does the work."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from reweigh import native
from reweigh.native import ALL, FIELDS, NO_MEMORY, SIZES, Input

KINDS = {getattr(torch, name): kind for name, kind in native.KINDS.items()}


def statistics(
    log_pi: Tensor,
    log_mu: Tensor,
    given: Tensor | None,
    mask: Tensor,
    offsets: Tensor | None,
    turn: Tensor | None,
    group: Tensor | None,
    levels: Sequence[str],
) -> dict[str, dict[str, Tensor]] | None:
    """Sum all that `RatioStats` holds, at each level that is asked for ("token", "turn", "sequence").

    Args:
        log_pi: `[S, T]` or `[N]`, of any float type.
        log_mu: the same.
        given: the same, log ratios in place of the difference.
        mask: the same, bool.
        offsets: `[S + 1]` for `[N]`.
        turn: as log_pi, integers; asked for by "turn".
        group: `[S]`, integers.
        levels: names.

    Returns:
        The fields of `RatioStats` but `level`, by name of the level; or None.
    """
    lib = native.library()
    request = None if lib is None else _request(log_pi, log_mu, given, mask, offsets, turn, group)
    if lib is None or request is None or ("turn" in levels and turn is None):
        return None
    out = torch.empty(len(levels), sum(SIZES), dtype=torch.float64)
    if not _plain(out):
        return None
    place = {name: out.data_ptr() + 8 * i * sum(SIZES) for i, name in enumerate(levels)}
    wanted = (ctypes.c_void_p(place.get(name)) for name in ("token", "sequence", "turn"))
    if not _done(lib.rw_stats(ctypes.byref(request[0]), *wanted)):
        return None
    return {
        name: {field: x.view(shape) for (field, shape), x in zip(FIELDS.items(), flat.split(SIZES), strict=True)}
        for name, flat in zip(levels, out, strict=True)
    }


def sums(
    log_pi: Tensor, log_mu: Tensor, given: Tensor | None, mask: Tensor | None, offsets: Tensor | None, columns: int
) -> tuple[Tensor, int] | None:
    """Sum over each sequence's tokens: `[S, FEW or ALL]` float64; and count log ratios that are not finite.

    These add nothing to the sums, and one to the number of tokens.
    """
    lib = native.library()
    request = None if lib is None else _request(log_pi, log_mu, given, mask, offsets)
    if lib is None or request is None:
        return None
    out, odd = torch.empty(request[0].sequences, columns, dtype=torch.float64), ctypes.c_int64()
    if not _plain(out):
        return None
    call = (ctypes.byref(request[0]), int(columns == ALL), ctypes.c_void_p(out.data_ptr()), ctypes.byref(odd))
    if not _done(lib.rw_fold(*call)) or (given is not None and odd.value):  # a given infinity is meant
        return None
    return out, odd.value


def counts(mask: Tensor, offsets: Tensor | None) -> Tensor | None:
    """Count each sequence's tokens: `[S]` int64."""
    lib = native.library()
    request = None if lib is None else _request(None, None, None, mask, offsets)
    if lib is None or request is None:
        return None
    out = torch.empty(request[0].sequences, dtype=torch.int64)
    if not _plain(out):
        return None
    return out if _done(lib.rw_count(ctypes.byref(request[0]), ctypes.c_void_p(out.data_ptr()))) else None


def spread(weights: Tensor, mask: Tensor, offsets: Tensor | None) -> Tensor | None:
    """Give each token of the mask its sequence's value, and the other slots 0.

    Args:
        weights: `[S]`, float32 or float64.
        mask: `[S, T]` or `[N]`, bool.
        offsets: `[S + 1]` for `[N]`.
    """
    lib = native.library()
    if lib is None or weights.requires_grad or weights.dtype not in (torch.float32, torch.float64):
        return None
    request = _request(None, None, None, mask, offsets)
    if request is None or not _plain(weights) or weights.shape != (request[0].sequences,):
        return None
    weights, out = weights.contiguous(), torch.empty(mask.shape, dtype=weights.dtype)
    if not _plain(out):
        return None
    request[0].kind = KINDS[weights.dtype]
    call = (ctypes.byref(request[0]), ctypes.c_void_p(weights.data_ptr()), ctypes.c_void_p(out.data_ptr()))
    return out if _done(lib.rw_spread(*call)) else None


def _done(answer: int) -> bool:
    if answer == NO_MEMORY:
        raise MemoryError("reweigh: no memory for the sums of a sequence")
    return answer == 0


def _plain(x: Tensor) -> bool:
    """Whether the tensor is numbers in this process's memory, and nothing that stands for them."""
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and x.device.type == "cpu"
        and x.layout is torch.strided
        and not x.is_neg()
    )


def _rows(x: Tensor) -> Tensor:
    """Give the tensor, or a copy, with a row's elements side by side."""
    x = x.detach()
    fine = x.shape[-1] <= 1 or x.stride(-1) == 1
    return x if fine and (x.dim() == 1 or x.stride(0) >= 0) else x.contiguous()


def _request(
    log_pi: Tensor | None,
    log_mu: Tensor | None,
    given: Tensor | None,
    mask: Tensor | None,
    offsets: Tensor | None,
    turn: Tensor | None = None,
    group: Tensor | None = None,
) -> tuple[Input, list[Tensor]] | None:
    """Describe tensors to the kernel; with what must live until it is done. None if they are not for it.

    Every shape is compared here: the kernel reads nothing outside of `[S, T]`, or outside of what the offsets say,
    which it checks itself.
    """
    token_shaped = [x for x in (log_pi, log_mu, given, mask, turn) if x is not None]
    if torch.compiler.is_compiling() or not all(map(_plain, token_shaped)):
        return None
    shape = token_shaped[0].shape
    if len(shape) != (2 if offsets is None else 1) or any(x.shape != shape for x in token_shaped):
        return None
    if mask is not None and mask.dtype != torch.bool:
        return None
    sequences = shape[0] if offsets is None else len(offsets) - 1
    for x, size in ((offsets, sequences + 1), (group, sequences)):
        if x is not None and (not _plain(x) or x.shape != (size,) or x.is_floating_point()):
            return None
    logs = [x for x in (log_pi if given is None else None, log_mu, given) if x is not None]
    dtypes = {x.dtype for x in logs}
    if len(dtypes) > 1 or not dtypes <= set(KINDS):  # mixed: as `Batch.dtype` has it
        wide = torch.promote_types(torch.float32, torch.float64 if torch.float64 in dtypes else torch.float32)
        log_pi, log_mu, given = (None if x is None else x.detach().to(wide) for x in (log_pi, log_mu, given))
        dtypes = {wide}
    pi, mu, ratio, live = (None if x is None else _rows(x) for x in (log_pi, log_mu, given, mask))
    whole = [None if x is None else x.detach().long().contiguous() for x in (offsets, turn, group)]
    held = [pi, mu, ratio, live, *whole]
    rows = [0 if x is None or x.dim() == 1 else x.stride(0) for x in (pi, mu, ratio, live)]
    pointers = [None if x is None else x.data_ptr() for x in held]
    kind = KINDS[dtypes.pop()] if dtypes else 0
    return Input(*pointers, sequences, shape[-1], *rows, kind), [x for x in held if x is not None]
