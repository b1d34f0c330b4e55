"""Calls of the compiled walk with tensors; each gives None where it may not be used, and torch does the work."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reweigh import native
from reweigh.native import ALL, FIELDS, HOW, LEVELS, NO_MEMORY, PLACES, SIZES, Factor, Input, Places, Tables, Trial

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


def where(
    given: Tensor, log_mu: Tensor, mask: Tensor, offsets: Tensor, bucket: Tensor, column: Tensor, row: Tensor
) -> dict[str, Tensor] | None:
    """Sum where the gap sits, and count tokens by the first bits of their log-probs; see `Places` of kernel.h.

    Args:
        given: `[N]` float32, log ratios.
        log_mu: the same.
        mask: `[N]`, bool.
        offsets: `[S + 1]`.
        bucket: `[S]` int64, 0 to 63.
        column: `[1024]` int32, of a cell of the density, by the first ten bits of log mu.
        row: the same, by those of the log ratio.
    """
    lib = native.library()
    request = None if lib is None else _request(None, log_mu, given, mask, offsets)
    fixed = (bucket, torch.int64), (column, torch.int32), (row, torch.int32)
    if lib is None or request is None or not all(_plain(x) and x.is_contiguous() and x.dtype == t for x, t in fixed):
        return None
    if len(bucket) != request[0].sequences or len(column) != 1024 or len(row) != 1024:
        return None
    if int(column.min()) < 0 or int(row.min()) < 0 or int(column.max()) + int(row.max()) >= PLACES["density"][0][0] - 1:
        return None
    out: dict[str, Tensor] = {}
    for name, (shape, counts) in PLACES.items():
        shape = (request[0].sequences, shape[1]) if name == "sequences" else shape
        out[name] = torch.zeros(shape, dtype=torch.int64 if counts else torch.float64)
    tables, places = Tables(column.data_ptr(), row.data_ptr()), Places(*(x.data_ptr() for x in out.values()))
    call = (ctypes.byref(request[0]), ctypes.c_void_p(bucket.data_ptr()), ctypes.byref(tables), ctypes.byref(places))
    return out if _done(lib.rw_where(*call)) else None


@dataclass(frozen=True)
class Tried:
    """An estimator whose weights are of tokens, as the compiled walk reads it.

    Attributes:
        factors: of its tokens: level ("token", "prefix"), how ("clip", "reject", "screen"), bounds in nats, and scale.
        log_w: `[S]` float32, what its factors of sequences come to, nats; None without such factors.
        keep: `[S]` bool, sequences that they keep.
        moved: `[S]` bool, sequences that they moved to a bound.
    """

    factors: tuple[tuple[str, str, float, float, float], ...]
    log_w: Tensor | None = None
    keep: Tensor | None = None
    moved: Tensor | None = None


def weigh(given: Tensor, mask: Tensor, offsets: Tensor, ratios: Tensor, tried: Sequence[Tried]) -> list[Tensor] | None:
    """Try estimators on tokens: for each `[S, 6]` float64, by sequence: tokens that are kept, kept ones at a bound, the
    largest log-weight, and the sums of weights, of their squares, and of what they have over the sequence's ratio.

    Args:
        given: `[N]` float32, log ratios.
        mask: `[N]`, bool.
        offsets: `[S + 1]`.
        ratios: `[S]` float32, of the sequences.
        tried: the estimators; no log-weight of theirs may be over 80.
    """
    lib = native.library()
    request = None if lib is None else _request(None, None, given, mask, offsets)
    wholes = [x for one in tried for x in (one.log_w, one.keep, one.moved) if x is not None]
    if lib is None or request is None or given.dtype != torch.float32 or not all(map(_plain, (ratios, *wholes))):
        return None
    if ratios.dtype != torch.float32 or any(x.shape != (request[0].sequences,) for x in (ratios, *wholes)):
        return None
    out = [torch.empty(request[0].sequences, 6, dtype=torch.float64) for _ in tried]
    held: list[Tensor] = [ratios.contiguous()]
    asked: list[Trial] = []
    for one, to in zip(tried, out, strict=True):
        rows = [Factor(LEVELS[level], HOW[how], *numbers) for level, how, *numbers in one.factors]
        parts = [None if x is None else x.contiguous() for x in (one.log_w, one.keep, one.moved)]
        held += [x for x in parts if x is not None]
        pointers = [None if x is None else x.data_ptr() for x in parts]
        asked.append(Trial((Factor * max(1, len(rows)))(*rows), len(rows), *pointers, to.data_ptr()))
    table = (Trial * max(1, len(asked)))(*asked)
    call = (ctypes.byref(request[0]), ctypes.c_void_p(held[0].data_ptr()), table, ctypes.c_int64(len(asked)))
    return out if _done(lib.rw_weigh(*call)) else None


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
