"""The compiled walk over a batch's tokens, behind ctypes: whether it is here, and its three calls.

`kernel.cpp` makes what `stats/sums.py`, `levels.py` and `layout.py` make with torch, in one walk. torch stays the
reference: every call gives None where it cannot or may not be used, and the caller goes on as if it were not there.
That is so where the package was built without it, with `REWEIGH_NATIVE=0`, on other devices, in compiled graphs, for
tensors that are not plain ones, and after a self-test that gave other bits than were recorded.
"""

import ctypes
import hashlib
import os
import struct
import sys
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

VERSION = 1  # of the interface: kernel.h has the same
NAME = {"win32": "kernel.dll", "darwin": "kernel.dylib"}.get(sys.platform, "kernel.so")
OFF = "REWEIGH_NATIVE"  # 0: not to be used
KINDS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
# Fields of RatioStats and their shapes, in the order in which the kernel writes them.
FIELDS = {
    "moments": (13, 14),
    "shift": (14,),
    "powers": (5, 14),
    "grid": (3, 14, 50),
    "blocks": (3, 4),
    "peaks": (3,),
    "top": (256,),
    "clusters": (64, 7),
    "dropped": (),
}
SIZES = [torch.Size(shape).numel() for shape in FIELDS.values()]
# Sums by sequence: the number of tokens, of l, then of l^2 and of k3, and the largest and the smallest l.
FEW, ALL = 2, 6
_NO_MEMORY = 1
# BLAKE2 of what the self-test gives, the same on every processor; `tests/test_native.py` prints it if it changes.
SELF_TEST = "93796f61175596888720df7fed26d8d4"


class _Input(ctypes.Structure):
    """`Input` of kernel.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("pi", "mu", "given", "mask", "offsets", "turn", "group")),
        *((name, ctypes.c_int64) for name in ("sequences", "slots", "pi_row", "mu_row", "given_row", "mask_row")),
        ("kind", ctypes.c_int32),
    ]


@cache
def _loaded() -> tuple[ctypes.CDLL | None, str]:
    """Load the library once: it, and in words what is used; or None, and why not."""
    if os.environ.get(OFF, "1") == "0":
        return None, f"torch alone ({OFF}=0)"
    path = Path(__file__).with_name(NAME)
    if not path.exists():
        return None, "torch alone (installed without the compiled kernel)"
    try:
        lib = ctypes.CDLL(str(path))
        lib.rw_level.restype = lib.rw_version.restype = ctypes.c_int32
        version = lib.rw_version()
        got = self_test(lib) if version == VERSION else ""
    except (OSError, AttributeError) as e:
        return None, _refused(f"it cannot be loaded: {e}")
    if version != VERSION:
        return None, _refused(f"it is of version {version}, not {VERSION}; install reweigh again")
    if got != SELF_TEST:
        return None, _refused("its self-test gave other numbers than were recorded; please report this processor")
    level = lib.rw_level(9)
    names = {1: "x86-64", 3: "x86-64-v3 (AVX2)", 4: "x86-64-v4 (AVX-512)"}
    return lib, f"compiled, {names.get(level, 'baseline')}"


def _refused(why: str) -> str:
    warnings.warn(f"reweigh: the compiled kernel is not used, torch does its work: {why}", RuntimeWarning, stacklevel=4)
    return f"torch alone (the compiled kernel is not used: {why})"


def library() -> ctypes.CDLL | None:
    """Give the library if it may be used."""
    return _loaded()[0]


def status() -> str:
    """Say in a line what computes statistics and weights on a CPU: the compiled kernel, or torch and why."""
    return _loaded()[1]


def self_test(lib: ctypes.CDLL) -> str:
    """Walk a few kilobytes of made-up log-probs and give the hash of every number that comes out.

    Near and far tokens, a mask with holes, a NaN, ratios that need a shift, turns and groups; as rows of 203 slots.
    """
    state, numbers = 12345, list[float]()
    for i in range(2 * 3 * 203):
        state = (state * 1103515245 + 12345) % 2**31
        x = state / 2**31
        numbers.append(-3 * x if i % 2 else (x - 0.5) * (0.1 if i % 14 else 40.0))
    mu = numbers[1::2]
    pi = [a + b for a, b in zip(mu, numbers[::2], strict=True)]
    pi[5], mu[500] = float("nan"), 0.5
    size = len(mu)
    arrays = [
        struct.pack(f"<{size}f", *pi),
        struct.pack(f"<{size}f", *mu),
        bytes(i % 11 != 7 or 203 <= i < 330 for i in range(size)),
        struct.pack(f"<{size}q", *(i // 17 for i in range(size))),
        struct.pack("<3q", 5, 9, 5),
    ]
    held = [ctypes.create_string_buffer(x, len(x)) for x in arrays]
    log_pi, log_mu, mask, turn, group = (ctypes.addressof(x) for x in held)
    request = _Input(log_pi, log_mu, None, mask, None, turn, group, 3, 203, 203, 203, 0, 203, 0)
    out = (ctypes.c_double * (3 * sum(SIZES) + 3 * ALL))()
    place, each = ctypes.addressof(out), 8 * sum(SIZES)
    lib.rw_stats(ctypes.byref(request), *(ctypes.c_void_p(place + i * each) for i in range(3)))
    odd = ctypes.c_int64()
    lib.rw_fold(ctypes.byref(request), 1, ctypes.c_void_p(place + 3 * each), ctypes.byref(odd))
    return hashlib.blake2b(bytes(out) + bytes([odd.value]), digest_size=16).hexdigest()


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
    lib = library()
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
    lib = library()
    request = None if lib is None else _request(log_pi, log_mu, given, mask, offsets)
    if lib is None or request is None:
        return None
    out, odd = torch.empty(request[0].sequences, columns, dtype=torch.float64), ctypes.c_int64()
    if not _plain(out):
        return None
    call = (ctypes.byref(request[0]), int(columns == ALL), ctypes.c_void_p(out.data_ptr()), ctypes.byref(odd))
    return (out, odd.value) if _done(lib.rw_fold(*call)) else None


def counts(mask: Tensor, offsets: Tensor | None) -> Tensor | None:
    """Count each sequence's tokens: `[S]` int64."""
    lib = library()
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
    lib = library()
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
    if answer == _NO_MEMORY:
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
) -> tuple[_Input, list[Tensor]] | None:
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
    return _Input(*pointers, sequences, shape[-1], *rows, kind), [x for x in held if x is not None]
