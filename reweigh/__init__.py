"""Measure, explain and correct the gap between the policy that samples and the policy that trains.

Data -> levels and transforms -> estimators -> losses; and data -> statistics -> verdict.
"""

import ast
import pkgutil
from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def _modules() -> dict[str, str]:
    """Read the map of public names to the modules that they live in, which `__init__.pyi` is, for type checkers too."""
    stub = ast.parse(pkgutil.get_data(__name__, "__init__.pyi") or b"")
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


_MODULES = _modules()
__all__ = [*_MODULES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Load the public names, and torch with them, when the first is asked for: `reweigh --help` asks for none."""
    if not name.startswith("__"):
        globals().update({each: getattr(import_module(module), each) for each, module in _MODULES.items()})
        if name in globals():  # a module of the package, too
            return globals()[name]
    raise AttributeError(f"module 'reweigh' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
