"""Files of torch and of pickle as data: their opcodes are read here, one by one, and nothing that they name is called.

Python's unpickler looks up what a file names and calls it with what the file says. This one looks nothing up: a name is
a text, and the few that stand for data (an array, a tensor, a set) are made here from their bytes, once size, shape and
place are known to lie inside the file.
"""

import io
import math
import mmap
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from reweigh.guard import open_regular, shown
from reweigh.records.schema import UnreadableFileError

_SAFE = "a reader runs no code from a file; only tensors, NumPy arrays, numbers, strings and containers are read."
GROWTH_TIMES = 10  # tensors may take so many times the file's size in memory,
GROWTH_FREE = 64 << 20  # or so much, whichever is more: a torch file may say of one number that it is a million
_MOST_KEYS = 10_000  # of one dictionary or set, of kinds whose hashes a file can choose
_HASHED = 1 << 60  # smaller integers are their own hash, and so spread
_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"


def load_torch(path: Path) -> Any:
    """Load what `torch.save` wrote, tensors as NumPy arrays; they stay on the disk until they are looked at.

    Raises:
        UnreadableFileError: truncated, not of torch, with objects that are not plain data, or with tensors that take
            much more memory than the file.
    """
    with open_regular(path) as file:
        size = file.seek(0, io.SEEK_END)
        if not size:
            raise _truncated(path, "the file is empty")
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return _loaded(path, lambda: torch_value(view))


def load_pickle(path: Path, package: str, stubs: Mapping[str, str]) -> Any:
    """Load what `pickle.dump` wrote, if it is plain data and the classes in `stubs`.

    Args:
        path: the file.
        package: how the names of the framework's modules start.
        stubs: its own classes and functions, by their bare name, with what they hold: they come as `Made`.

    Raises:
        UnreadableFileError: truncated, or with anything else.
    """

    def load() -> Any:
        with open_regular(path) as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            return _Reader(file, _Budget.of(size), package=package, stubs=stubs).load()

    return _loaded(path, load)


def torch_value(data: "memoryview | bytes", budget: "_Budget | None" = None) -> Any:
    """Load the bytes that `torch.save` wrote.

    Args:
        data: the bytes.
        budget: how much memory its tensors may take; by its size if not given.

    Raises:
        ValueError, KeyError, TypeError, IndexError, struct.error, zipfile.BadZipFile: they are damaged.
    """
    view = memoryview(data)
    budget = _Budget.of(len(view)) if budget is None else budget
    if bytes(view[:4]) == b"PK\x03\x04":
        return _of_zip(view, budget)
    if bytes(view[: len(_LEGACY)]) == _LEGACY:
        return _of_legacy(view, budget)
    raise ValueError(f"not a file of torch: it starts with {bytes(view[:8])!r}")


TEXT, WITH_STATE = "a text", "what is made of a class and a state"
"""What a stub of `load_pickle` may stand for beside `Made`, or where its state is."""


class _NotPlainError(ValueError):
    """A file that names something that is not data."""


class _TooLargeError(ValueError):
    """A file whose tensors are out of proportion."""


# What a damaged or a hostile file makes of reading opcodes; none of it runs code of the file.
DAMAGED = (
    *(ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError, EOFError),
    *(struct.error, zipfile.BadZipFile, zlib.error, NotImplementedError, UnicodeError, RuntimeError),
)


def _loaded(path: Path, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except _NotPlainError as e:
        raise UnreadableFileError(
            f"{path}: holds objects that are not plain data, and was not loaded: {e}\nhint: {_SAFE}"
        ) from None
    except _TooLargeError as e:
        raise UnreadableFileError(
            f"{path}: {e}: not read, as it may be made to fill the memory\n"
            "hint: if it is a good file, save contiguous copies of its tensors (tensor.clone())."
        ) from None
    except UnreadableFileError:
        raise
    except DAMAGED as e:
        raise _truncated(path, str(e) or type(e).__name__) from None


def _truncated(path: Path, why: str) -> UnreadableFileError:
    return UnreadableFileError(
        f"{path}: truncated or damaged: {' '.join(shown(why).split())[:120]}\n"
        "hint: the writer was stopped, or the copy is not complete; copy the file again, or leave it out."
    )


def plain_dtype(spec: Any) -> np.dtype[Any]:
    """A NumPy type of numbers or booleans; Python objects are refused."""
    kind = np.dtype(spec) if isinstance(spec, str) and len(spec) < 16 else None
    if kind is None or kind.kind not in "fiub" or kind.subdtype is not None:
        raise ValueError(f"dtype {spec!r:.40} is not of numbers")
    return kind


def array_of_numbers(value: Any) -> np.ndarray:
    """An array that was pickled as one, if it is of numbers or booleans."""
    if not isinstance(value, np.ndarray):
        raise ValueError(f"must be an array of numbers, got {type(value).__name__}")
    return value


@dataclass(eq=False)
class Made:
    """An object of a framework as a file describes it: a value, on which nothing was called.

    Attributes:
        name: of the class or function, without its module.
        args: what it would have been called with.
        state: what it would have been filled with.
    """

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None


@dataclass(frozen=True)
class _Name:
    """Something that a file names by module and name."""

    text: str
    bare: str


class _Mark:
    """Where the items of a container begin on the stack."""


@dataclass
class _Budget:
    """How much memory tensors may still take."""

    left: int

    @classmethod
    def of(cls, size: int) -> "_Budget":
        return cls(max(GROWTH_FREE, GROWTH_TIMES * size))

    def take(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise _TooLargeError("its tensors take much more memory than the file")


class _Kind:
    """Stands for numpy.dtype: a type of numbers or booleans, or of what is not looked at."""

    def __init__(self, spec: Any) -> None:
        try:
            self.dtype = plain_dtype(spec)
        except (ValueError, TypeError):
            self.dtype = None

    def fill(self, state: Any) -> None:
        """Take the byte order."""
        if self.dtype is not None:
            self.dtype = self.dtype.newbyteorder("big" if state[1] == ">" else "little")


class _Array:
    """Stands for numpy.ndarray until it is told what is in it; what it stays for is an array of objects."""

    def made(self, state: Any) -> "np.ndarray | _Array":
        """Make the array of its shape, type and bytes."""
        _, shape, kind, fortran, data = state
        if isinstance(data, str):  # of Python 2
            data = data.encode("latin1")
        if isinstance(kind, _Kind) and kind.dtype is not None and isinstance(data, bytes | bytearray):
            return _array_of(data, kind.dtype, shape, "F" if fortran else "C")
        return self


def _array_of(data: "bytes | bytearray", kind: np.dtype[Any], shape: Any, order: str) -> np.ndarray:
    shape = _sizes(shape)
    if math.prod(shape) * kind.itemsize != len(data):
        raise ValueError(f"an array of shape {shape} of {kind} is not {len(data)} bytes")
    return np.frombuffer(data, kind).reshape(shape, order="F" if order == "F" else "C")


def _sizes(shape: Any) -> tuple[int, ...]:
    shape = (shape,) if isinstance(shape, int) else shape
    if not isinstance(shape, tuple | list) or len(shape) > 8 or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("a shape must be some integers from 0 on")
    return tuple(shape)


_STORAGES: Mapping[str, str] = {
    **{"DoubleStorage": "f8", "FloatStorage": "f4", "HalfStorage": "f2", "BFloat16Storage": "bfloat16"},
    **{"LongStorage": "i8", "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1"},
    **{"ByteStorage": "u1", "BoolStorage": "b1", "UntypedStorage": "bytes"},
}
_TORCH_TYPES: Mapping[str, str] = {
    **{"float64": "f8", "float32": "f4", "float16": "f2", "bfloat16": "bfloat16", "int64": "i8", "int32": "i4"},
    **{"int16": "i2", "int8": "i1", "uint8": "u1", "bool": "b1", "uint16": "u2", "uint32": "u4", "uint64": "u8"},
}


@dataclass(eq=False)
class _Storage:
    """The numbers of a tensor: bytes, with the type that they are of."""

    kind: str
    data: "memoryview | None"
    order: Literal["<", ">"] = "<"

    def values(self, kind: str) -> np.ndarray:
        """Give them, numbers of bfloat16 as the integers that they are written as."""
        assert self.data is not None
        dtype = np.dtype("u2" if kind == "bfloat16" else kind).newbyteorder(self.order)
        return np.frombuffer(self.data, dtype, len(self.data) // dtype.itemsize)


_Storages = Callable[[str, str, int], _Storage]  # of a type, a key and a number of elements


# What a file may name, and what is made of it.
_ALLOWED: Mapping[str, str] = {
    **{f"{home}.set": "set" for home in ("builtins", "__builtin__")},
    **{f"{home}.frozenset": "set" for home in ("builtins", "__builtin__")},
    **{f"{home}.list": "list" for home in ("builtins", "__builtin__")},
    **{f"{home}.complex": "complex" for home in ("builtins", "__builtin__")},
    **{f"{home}.bytes": "bytes" for home in ("builtins", "__builtin__")},
    **{f"{home}.bytearray": "bytes" for home in ("builtins", "__builtin__")},
    "_codecs.encode": "bytes",
    "collections.OrderedDict": "dict",
    "collections.Counter": "dict",
    "collections.defaultdict": "dict of a default",
    **{f"numpy.{core}.multiarray._reconstruct": "array" for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": "number" for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": "array of a buffer" for core in ("core", "_core")},
    "numpy.ndarray": "name",
    "numpy.dtype": "kind",
    "torch.device": "text",
    "torch.Size": "sizes",
    "torch.storage._load_from_bytes": "storage",
    "torch._utils._rebuild_tensor": "tensor",
    "torch._utils._rebuild_tensor_v2": "tensor",
    "torch._utils._rebuild_tensor_v3": "tensor of a type",
    "torch._utils._rebuild_parameter": "parameter",
    **{f"torch.{name}": "name" for name in _STORAGES},
    **{f"torch.storage.{name}": "name" for name in ("UntypedStorage", "TypedStorage")},
    **{f"torch.{name}": "name" for name in _TORCH_TYPES},
}


@dataclass
class _Reader:
    """Reads one pickle: a stack of values, and opcodes that put some there."""

    file: Any
    budget: _Budget
    storages: "_Storages | None" = None
    package: str = ""
    stubs: Mapping[str, str] = field(default_factory=dict[str, str])
    stack: list[Any] = field(default_factory=list[Any])
    memo: dict[int, Any] = field(default_factory=dict[int, Any])
    unmade: dict[int, int] = field(default_factory=dict[int, int])  # where arrays stand in it that are yet to be made

    def load(self) -> Any:
        """Read it to its end.

        Raises:
            _NotPlainError: it names what is not data.
            ValueError: it is damaged, as are the other errors that reading may raise.
        """
        for op, arg, _ in pickletools.genops(self.file):
            name = op.name
            if name == "STOP":
                value = self.stack.pop()
                if self.stack or isinstance(value, _Mark | _Name):
                    raise ValueError("a pickle must end with one value")
                return value
            self._step(name, arg)
        raise ValueError("a pickle must end with STOP")

    def _step(self, name: str, arg: Any) -> None:
        stack = self.stack
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _VALUES:
            stack.append(arg)
        elif name in ("PROTO", "FRAME"):
            pass
        elif name == "MARK":
            stack.append(_Mark())
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            place = len(self.memo) if name == "MEMOIZE" else int(arg)
            self.memo[place] = stack[-1]
            if isinstance(stack[-1], _Array):
                self.unmade[id(stack[-1])] = place
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[int(arg)])
        elif name == "APPEND":
            value = stack.pop()
            self._append([value])
        elif name in ("APPENDS", "ADDITEMS"):
            self._append(self._items())
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            self._set([key, value])
        elif name == "SETITEMS":
            self._set(self._items())
        elif name in _TUPLES:
            count = _TUPLES[name]
            items = stack[len(stack) - count :]
            if len(items) != count or any(isinstance(x, _Mark) for x in items):
                raise ValueError("the stack of the pickle is too short")
            del stack[len(stack) - count :]
            stack.append(tuple(items))
        elif name == "TUPLE":
            stack.append(tuple(self._items()))
        elif name == "LIST":
            stack.append(self._items())
        elif name == "FROZENSET":
            items = self._items()
            stack.append(_set_of(items))
        elif name == "DICT":
            items = self._items()
            stack.append({})
            self._set(items)
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            self._items()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "GLOBAL":
            module, _, bare = arg.partition(" ")
            stack.append(self._named(module, bare))
        elif name == "STACK_GLOBAL":
            bare, module = stack.pop(), stack.pop()
            stack.append(self._named(module, bare))
        elif name in ("REDUCE", "NEWOBJ"):
            args, what = stack.pop(), stack.pop()
            stack.append(self._made(what, args))
        elif name == "NEWOBJ_EX":
            keywords, args, what = stack.pop(), stack.pop(), stack.pop()
            if keywords:
                raise _NotPlainError("an object that is made with names of arguments")
            stack.append(self._made(what, args))
        elif name == "BUILD":
            state = stack.pop()
            stack[-1] = self._built(stack[-1], state)
        elif name == "BINPERSID" and self.storages is not None:
            stack.append(self._storage(stack.pop()))
        else:
            raise _NotPlainError(f"an opcode that is not for data ({name})")

    def _items(self) -> list[Any]:
        """Take what stands on the stack down to the last mark."""
        items: list[Any] = []
        while not isinstance(self.stack[-1], _Mark):
            items.append(self.stack.pop())
        self.stack.pop()
        return items[::-1]

    def _append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is set:
            target |= _set_of(items, len(target))
        elif type(target) is list:
            target += items
        elif not isinstance(target, Made):  # what is put into an object of the framework is not looked at
            raise _NotPlainError("items of what is no list or set")

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Made):
            return
        if type(target) is not dict or len(items) % 2:
            raise _NotPlainError("keys and values of what is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            _check_key(key, len(target))
            if key in target:
                raise ValueError(f"the key {key!r:.40} stands twice in one dictionary")
            target[key] = value

    def _named(self, module: Any, bare: Any) -> _Name:
        if not isinstance(module, str) or not isinstance(bare, str):
            raise ValueError("a name must be a text")
        text = f"{module}.{bare}"
        known = bare in self.stubs and (
            module == self.package or module.startswith((f"{self.package}.", f"{self.package}_"))
        )
        if not known and text not in _ALLOWED:
            raise _NotPlainError(shown(text, one_line=True)[:100])
        return _Name("" if known else text, bare)

    def _made(self, what: Any, args: Any) -> Any:
        if not isinstance(what, _Name) or not isinstance(args, tuple):
            raise _NotPlainError("a call of what is no name")
        if not what.text:
            meaning = self.stubs[what.bare]
            return (
                str(args[0]) if meaning == TEXT else Made(what.bare, args, args[1] if meaning == WITH_STATE else None)
            )
        return _value_of(_ALLOWED[what.text], args, self)

    def _built(self, target: Any, state: Any) -> Any:
        if isinstance(target, _Array):
            made = target.made(state)
            place = self.unmade.pop(id(target), None)
            if place is not None:
                self.memo[place] = made
            return made
        if isinstance(target, Made):
            target.state = state
        elif isinstance(target, _Kind):
            target.fill(state)
        elif type(target) is not dict:  # the attributes of an OrderedDict are not looked at
            raise _NotPlainError("a state for what has none")
        return target

    def _storage(self, pid: Any) -> _Storage:
        kind, what, key, _, count, *view = pid
        if kind != "storage" or not isinstance(what, _Name) or (view and view != [None]):
            raise _NotPlainError("an object outside the file")
        assert self.storages is not None
        name = _STORAGES.get(what.bare)
        if name is None or type(count) is not int or count < 0:
            raise ValueError(f"a storage of {what.bare} is not read")
        return self.storages(name, str(key), count)


_CONSTANTS: Mapping[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = frozenset(
    [
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING"),
        *("SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES"),
        *("SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    ]
)
_EMPTY: Mapping[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
    "EMPTY_TUPLE": tuple,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _check_key(key: Any, count: int) -> None:
    plain = key is None or type(key) in (str, bytes, bool) or (type(key) is int and -_HASHED < key < _HASHED)
    if not plain and (count > _MOST_KEYS or type(key) not in (int, float, complex, tuple)):
        raise ValueError(f"a key of {type(key).__name__} is not read")


def _set_of(items: list[Any], before: int = 0) -> set[Any]:
    for i, item in enumerate(items):
        _check_key(item, before + i)
    return set(items)


def _value_of(what: str, args: tuple[Any, ...], reader: _Reader) -> Any:
    """Make the value that a name of `_ALLOWED` and its arguments stand for."""
    if what == "array":
        return _Array()
    if what == "kind":
        return _Kind(args[0])
    if what == "number":
        kind, data = args
        data = data.encode("latin1") if isinstance(data, str) else data
        if kind.dtype is None or not isinstance(data, bytes) or len(data) != kind.dtype.itemsize:
            raise TypeError("a NumPy scalar that is no number")
        return np.frombuffer(data, kind.dtype)[0].item()
    if what == "array of a buffer":
        data, kind, shape, order = args
        return _Array() if kind.dtype is None else _array_of(data, kind.dtype, shape, order)
    if what == "tensor":
        storage, offset, size, stride = args[:4]
        return _tensor(storage, storage.kind, offset, size, stride, reader.budget)
    if what == "tensor of a type":
        storage, offset, size, stride, _, _, kind, *_ = args
        return _tensor(storage, _TORCH_TYPES[kind.bare], offset, size, stride, reader.budget)
    if what == "parameter":
        return args[0]
    if what == "storage":
        reader.budget.take(len(args[0]))  # however many of them stand in each other
        found = torch_value(args[0], reader.budget)
        if not isinstance(found, _Storage):
            raise ValueError("a storage must be one")
        return found
    return _container_of(what, args)


def _container_of(what: str, args: tuple[Any, ...]) -> Any:
    first = args[0] if args else ()
    if what == "set":
        return _set_of(_listed(first))
    if what == "list":
        return list(_listed(first))
    if what == "sizes":
        return _sizes(tuple(_listed(first)))
    if what == "complex":
        return complex(float(args[0]), float(args[1]))
    if what == "bytes":
        if isinstance(first, str):
            return first.encode("latin1")
        if isinstance(first, bytes | bytearray):
            return bytes(first)
        if first == ():
            return b""
    if what == "text":
        return ":".join(str(x) for x in args if isinstance(x, str | int))
    if what == "dict of a default":
        return {}
    if what == "dict":
        found: dict[Any, Any] = {}
        pairs = first.items() if isinstance(first, dict) else _listed(first)
        for key, value in pairs:
            _check_key(key, len(found))
            found[key] = value
        return found
    raise _NotPlainError(f"a call for {what}")


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple | set):
        raise ValueError("a container must be made of a list")
    return list(value)


def _tensor(storage: Any, kind: str, offset: Any, size: Any, stride: Any, budget: _Budget) -> "np.ndarray | None":
    """Make a view of a storage, once it is known to lie in it."""
    if not isinstance(storage, _Storage) or kind == "bytes":
        raise ValueError("a tensor must be of a storage with a type")
    if storage.data is None:  # of a first look, at what storages there are
        return None
    size, stride, (offset,) = _sizes(size), _sizes(stride), _sizes((offset,))
    if len(size) != len(stride):
        raise ValueError("a tensor must have a stride for each axis")
    values = storage.values(kind)
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else offset
    if last >= len(values) + (not count):
        raise ValueError(f"a tensor of shape {size} is not inside its storage of {len(values)} numbers")
    budget.take(count * values.dtype.itemsize * (2 if kind == "bfloat16" else 1))
    if not count:
        view = np.empty(size, values.dtype)
    else:
        steps = tuple(step * values.dtype.itemsize for step in stride)
        view = np.ndarray(size, values.dtype, values[offset:].data, strides=steps)
    if kind == "bfloat16":  # the upper half of a float32
        return (view.astype(np.uint32) << 16).view(np.float32)
    return view


class _Bytes(io.RawIOBase):
    """Reads bytes where they are, without a copy of them all."""

    def __init__(self, view: memoryview) -> None:
        self._view, self._at = view, 0

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Say that it has a place."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to a place."""
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._view)}[whence]
        if at < 0:
            raise ValueError(f"a place before the beginning ({at})")
        self._at = at
        return at

    def readinto(self, buffer: Any, /) -> int:
        """Read on."""
        piece = self._view[self._at : self._at + len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


def _stream(view: memoryview) -> io.BufferedReader:
    return io.BufferedReader(_Bytes(view), 1 << 16)


def _of_zip(view: memoryview, budget: _Budget) -> Any:
    """Read a torch file as it has been since 1.6: a zip that holds a pickle, and each storage as a file of its own."""
    with zipfile.ZipFile(_stream(view)) as archive:
        members: dict[str, zipfile.ZipInfo] = {}
        for one in archive.infolist():
            name = one.filename.partition("/")[2]
            if name in members:
                raise ValueError(f"{name!r:.40} stands twice in the archive")
            members[name] = one
    if "data.pkl" not in members:
        raise ValueError("no data.pkl in the archive: not a file of torch, or not all of it")
    order: Literal["<", ">"] = (
        ">" if "byteorder" in members and bytes(_member(view, members["byteorder"])) == b"big" else "<"
    )
    held: dict[str, _Storage] = {}

    def storage(kind: str, key: str, count: int) -> _Storage:
        if key not in held:
            data = _member(view, members[f"data/{key}"])
            if len(data) < count * _width(kind):
                raise ValueError(f"storage {key!r:.20} has {len(data)} bytes, and must have {count} of {kind}")
            held[key] = _Storage(kind, data, order)
        if held[key].kind != kind:
            return _Storage(kind, held[key].data, order)
        return held[key]

    return _Reader(_stream(_member(view, members["data.pkl"])), budget, storage).load()


def _width(kind: str) -> int:
    return {"bfloat16": 2, "bytes": 1}.get(kind) or np.dtype(kind).itemsize


def _member(view: memoryview, one: zipfile.ZipInfo) -> memoryview:
    """Find the bytes of a file in a zip, which torch does not pack."""
    if one.compress_type != zipfile.ZIP_STORED or one.flag_bits & 1:
        raise ValueError(f"{one.filename!r:.40} is packed in the archive, as torch.save does not do")
    at = one.header_offset
    if bytes(view[at : at + 4]) != b"PK\x03\x04":
        raise ValueError(f"{one.filename!r:.40} is not where the archive says it is")
    names, extra = struct.unpack("<HH", view[at + 26 : at + 30])
    start = at + 30 + names + extra
    data = view[start : start + one.file_size]
    if len(data) != one.file_size:
        raise ValueError(f"{one.filename!r:.40} is cut short")
    if one.CRC and zlib.crc32(data) != one.CRC:  # torch.save can be told to write none
        raise ValueError(f"{one.filename!r:.40} is damaged: its checksum is another one")
    return data


def _of_legacy(view: memoryview, budget: _Budget) -> Any:
    """Read a torch file of before 1.6: pickles one after the other, then the storages' bytes."""
    file = _stream(view)
    _, _, system = (_Reader(file, budget).load() for _ in range(3))
    if not system.get("little_endian", True):
        raise ValueError("written by torch before 1.6 on a big-endian machine, which is not read")
    start, kinds = file.tell(), dict[str, str]()

    def noted(kind: str, key: str, count: int) -> _Storage:
        kinds[key] = kind
        return _Storage(kind, None)

    _Reader(file, budget, noted).load()
    keys = _Reader(file, budget).load()
    held: dict[str, memoryview] = {}
    at = file.tell()
    for key in map(str, keys):
        [count] = struct.unpack("<q", view[at : at + 8])
        size = count * _width(kinds[key])
        if key in held or count < 0 or at + 8 + size > len(view):
            raise ValueError(f"storage {key!r:.20} is cut short")
        held[key] = view[at + 8 : at + 8 + size]
        at += 8 + size

    def storage(kind: str, key: str, count: int) -> _Storage:
        if len(held[key]) < count * _width(kind):
            raise ValueError(f"storage {key!r:.20} is cut short")
        return _Storage(kind, held[key])

    file.seek(start)
    return _Reader(file, budget, storage).load()
