"""The folder where what is slow to make is kept: made aside, then renamed, so that nothing half made has a name."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# Part of every name: a change of what is stored must change it.
_FORMAT = "1"


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/reweigh/faults`, or under `~/.cache`; may be deleted at any time."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reweigh" / "faults"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def kept(kind: str, key: object, make: Callable[[], Any]) -> Any:
    """What `make` returns (tensors, numbers, strings, in lists and dicts), from the disk if it was made before.

    Args:
        kind: a word that the file's name begins with.
        key: everything that the value depends on; its `repr` is what counts.
        make: called if there is no file.
    """
    digest = hashlib.sha256(repr((_FORMAT, key)).encode()).hexdigest()[:16]
    path = cache_folder() / f"{kind}-{digest}.pt"
    if path.is_file():
        return torch.load(path, weights_only=True)
    value = make()
    handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
    os.close(handle)
    try:
        torch.save(value, part)
        os.replace(part, path)
    finally:
        Path(part).unlink(missing_ok=True)
    return value
