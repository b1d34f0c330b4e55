"""The compiled walk over a batch's tokens, loaded once, tried, and described; `walk.py` calls it with tensors.

`kernel.cpp` makes what `stats/sums.py`, `levels.py` and `layout.py` make with torch, in one walk. torch stays the
reference, and does the work where the package was built without the kernel, with `REWEIGH_NATIVE=0`, on other devices,
in compiled graphs, for tensors that are not plain ones, and after a self-test that gave other bits than were recorded.
"""

import ctypes
import hashlib
import math
import os
import struct
import warnings
from functools import cache
from pathlib import Path

VERSION = 3  # of the interface: kernel.h has the same
NAME = "kernel.bin"  # on every system: a name that Python does not take for an extension module
OFF = "REWEIGH_NATIVE"  # 0: not to be used
KINDS = {"float32": 0, "float64": 1, "bfloat16": 2, "float16": 3}
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
SIZES = [math.prod(shape) for shape in FIELDS.values()]
# Sums by sequence: the number of tokens, of l, then of l^2 and of k3, and the largest and the smallest l.
FEW, ALL = 2, 6
NO_MEMORY = 1
# BLAKE2 of what the self-test gives, the same on every processor; `tests/test_native.py` prints it if it changes.
SELF_TEST = "5f120b710c810c4168fed74eded05649"


class Input(ctypes.Structure):
    """`Input` of kernel.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("pi", "mu", "given", "mask", "offsets", "turn", "group")),
        *((name, ctypes.c_int64) for name in ("sequences", "slots", "pi_row", "mu_row", "given_row", "mask_row")),
        ("kind", ctypes.c_int32),
    ]


class Tables(ctypes.Structure):
    """`Tables` of kernel.h."""

    _fields_ = [("column", ctypes.c_void_p), ("row", ctypes.c_void_p)]


# What `rw_where` adds up, see `Places` of kernel.h: shapes, and whether they count.
PLACES: dict[str, tuple[tuple[int, ...], bool]] = {
    "sequences": ((0, 8), False),
    "positions": ((53, 64, 5), False),
    "probabilities": ((25, 64, 4), False),
    "shapes": ((2**14 + 1,), True),
    "density": ((50 * 85 + 1,), True),
}


class Places(ctypes.Structure):
    """`Places` of kernel.h."""

    _fields_ = [(name, ctypes.c_void_p) for name in PLACES]


class Factor(ctypes.Structure):
    """`Factor` of kernel.h."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("level", "how")),
        *((name, ctypes.c_float) for name in ("low", "high", "scale")),
    ]


class Trial(ctypes.Structure):
    """`Trial` of kernel.h."""

    _fields_ = [
        ("factors", ctypes.POINTER(Factor)),
        ("size", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("log_w", "keep", "moved", "out")),
    ]


LEVELS = {"token": 0, "prefix": 1}
HOW = {"clip": 0, "reject": 1, "screen": 2}


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
        return None, _refused(f"its self-test gave {got} in place of {SELF_TEST}; please report this processor")
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
    request = Input(log_pi, log_mu, None, mask, None, turn, group, 3, 203, 203, 203, 0, 203, 0)
    out = (ctypes.c_double * (3 * sum(SIZES) + 3 * ALL))()
    place, each = ctypes.addressof(out), 8 * sum(SIZES)
    lib.rw_stats(ctypes.byref(request), *(ctypes.c_void_p(place + i * each) for i in range(3)))
    odd = ctypes.c_int64()
    lib.rw_fold(ctypes.byref(request), 1, ctypes.c_void_p(place + 3 * each), ctypes.byref(odd))
    return hashlib.blake2b(bytes(out) + bytes([odd.value]), digest_size=16).hexdigest()
