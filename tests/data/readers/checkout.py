"""For the make_*.py here: run one module of a framework's checkout with its heavy imports replaced by empty ones."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


class _Kind(type):
    def __getattr__(cls, name: str) -> Any:
        return _Anything


class _Anything(metaclass=_Kind):
    """Stands for whatever a module imports and the writer does not use."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and callable(args[0]) else _Anything()

    def __getattr__(self, name: str) -> Any:
        return _Anything()

    def __class_getitem__(cls, item: Any) -> Any:
        return cls


class _Empty(ModuleType):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything


def load(root: Path, name: str, stubs: dict[str, dict[str, Any]]) -> ModuleType:
    """Import `name` from its file under `root`; modules in `stubs` are empty but for what is given there."""
    for stub, names in stubs.items():
        sys.modules[stub] = _Empty(stub)
        for key, value in names.items():
            setattr(sys.modules[stub], key, value)
    parts = name.split(".")
    for i in range(1, len(parts)):
        sys.modules.setdefault(".".join(parts[:i]), _Empty(".".join(parts[:i])))
    for stub in stubs:  # for `from package import module`
        parent, _, child = stub.rpartition(".")
        if parent in sys.modules:
            setattr(sys.modules[parent], child, sys.modules[stub])
    path = root.joinpath(*parts).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
