"""Files of torch and of pickle, read without running any code that they may hold."""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from torch._utils import _rebuild_tensor_v2  # pyright: ignore[reportPrivateUsage]
from torch.serialization import safe_globals

from reweigh.records.schema import UnreadableFileError

_SAFE = "a reader runs no code from a file; only tensors, NumPy arrays, numbers, strings and containers are read."


def load_torch(path: Path) -> Any:
    """Load what `torch.save` wrote; tensors stay on the disk until they are looked at, where the file allows it.

    Raises:
        UnreadableFileError: truncated, not of torch, or with objects that are not plain data.
    """
    mapped = zipfile.is_zipfile(path)  # what torch wrote before 1.6 is no zip, and is read whole
    try:
        with safe_globals(_NUMPY_IN_TORCH):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as e:
        if not mapped and _starts_as_zip(path):
            raise _truncated(path, e) from None
        raise _not_plain(path, _refused(str(e)) or " ".join(str(e).split("\n")[0].split())) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        if isinstance(e, FileNotFoundError | PermissionError):
            raise
        raise _truncated(path, e) from None


def _not_plain(path: Path, what: str) -> UnreadableFileError:
    return UnreadableFileError(
        f"{path}: holds objects that are not plain data, and was not loaded: {what}\nhint: {_SAFE}"
    )


def _truncated(path: Path, error: Exception) -> UnreadableFileError:
    return UnreadableFileError(
        f"{path}: truncated or damaged: {' '.join(str(error).split())[:120]}\n"
        "hint: the writer was stopped, or the copy is not complete; copy the file again, or leave it out."
    )


def _starts_as_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _refused(message: str) -> str:
    """The name of the global that torch refused, out of its long advice."""
    _, _, after = message.partition("GLOBAL ")
    return after.split(" ")[0] if after else ""


def load_pickle(path: Path, package: str, stubs: Mapping[str, Callable[..., Any]]) -> Any:
    """Load what `pickle.dump` wrote, if it is plain data and the classes in `stubs`.

    Args:
        path: the file.
        package: how the names of the framework's modules start.
        stubs: what stands for its own classes and functions, by their bare name.

    Raises:
        UnreadableFileError: truncated, or with anything else.
    """
    with open(path, "rb") as file:
        try:
            return _Restricted(file, path, package, stubs).load()
        except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, TypeError, ValueError, KeyError) as e:
            if isinstance(e, UnreadableFileError):
                raise
            raise _truncated(path, e) from None


class _Restricted(pickle.Unpickler):
    """Knows the names below and no other; a pickle can do nothing but call what it can name."""

    def __init__(self, file: Any, path: Path, package: str, stubs: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__(file)
        self._path = path
        self._package = package
        self._stubs = stubs

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """The object of that name, if it is on the list."""
        if module_name.startswith(self._package) and global_name in self._stubs:
            return self._stubs[global_name]
        found = _ALLOWED.get(f"{module_name}.{global_name}")
        if found is None:
            self._refuse(f"{module_name}.{global_name}")
        return found

    def persistent_load(self, pid: Any, /) -> NoReturn:
        """Refuse: what stands outside the file is not read."""
        self._refuse("an object outside the file")

    def _refuse(self, name: str) -> NoReturn:
        raise _not_plain(self._path, name)


def _load_storage(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=True)


def _dtype(spec: Any, *_: Any) -> np.dtype[Any]:
    return plain_dtype(spec)


def plain_dtype(spec: Any) -> np.dtype[Any]:
    """A NumPy type of numbers or booleans; Python objects are refused."""
    kind = np.dtype(spec) if isinstance(spec, str) else None
    if kind is None or kind.kind not in "fiub":
        raise ValueError(f"dtype {spec!r} is not of numbers")
    return kind


def array_of_numbers(value: Any) -> np.ndarray:
    """An array that was pickled as one, if it is of numbers or booleans."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
        raise ValueError(f"must be an array of numbers, got {type(value).__name__}")
    return value


def _from_buffer(data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], order: Literal["C", "F"]) -> np.ndarray:
    return np.frombuffer(data, dtype).reshape(shape, order=order)


_NUMPY = {
    "multiarray._reconstruct": np.ndarray(0).__reduce__()[0],
    "multiarray.scalar": np.float64(0).__reduce__()[0],
    "numeric._frombuffer": _from_buffer,
}


class _Kind:
    """Stands for numpy.dtype in a torch file: a type of numbers or booleans, or of what is not looked at."""

    def __init__(self, spec: Any = None, *_: Any) -> None:
        self.dtype = np.dtype(spec) if isinstance(spec, str) and np.dtype(spec).kind in "fiub" else None

    def __setstate__(self, state: Any) -> None:
        if self.dtype is not None:
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for numpy.ndarray in a torch file: its numbers, made of the bytes that are written, and nothing else."""

    def __init__(self, *_: Any) -> None:
        self.values: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        if kind.dtype is not None and isinstance(data, bytes):
            self.values = np.frombuffer(data, kind.dtype).reshape(shape, order="F" if fortran else "C")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self.values is None:
            raise TypeError("an array of objects")
        return self.values if dtype is None else self.values.astype(dtype)


class _Number(float):
    """Stands for a NumPy number in a torch file."""

    def __new__(cls, kind: _Kind, data: Any) -> "_Number":
        if kind.dtype is None or not isinstance(data, bytes):
            raise TypeError("a NumPy scalar that is no number")
        return super().__new__(cls, float(np.frombuffer(data, kind.dtype)[0]))


def _encoded(text: str, _: str = "latin1") -> bytes:
    """Stands for codecs.encode, by which a pickle of protocol 2 writes bytes."""
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Stands for bytes(), by which the same pickle writes none."""
    return b""


# What reads arrays and numbers of NumPy, which rewards and routes of experts are in the dumps of some trainers, without
# NumPy's own constructors, which take memory and type as the file says.
_NUMPY_IN_TORCH: list[Any] = [
    *((_Array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_Number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    (_Array, "numpy.ndarray"),
    (_Kind, "numpy.dtype"),
    (_encoded, "_codecs.encode"),
    (_no_bytes, "builtins.bytes"),
    (_no_bytes, "__builtin__.bytes"),
]
_ALLOWED: Mapping[str, Any] = {
    **{f"builtins.{kind.__name__}": kind for kind in (set, frozenset, complex)},
    **{f"{core}.{name}": found for core in ("numpy.core", "numpy._core") for name, found in _NUMPY.items()},
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": _dtype,
    "collections.OrderedDict": OrderedDict,
    "torch.device": torch.device,
    "torch.Size": torch.Size,
    "torch.storage._load_from_bytes": _load_storage,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
}
