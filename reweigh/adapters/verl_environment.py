"""The correction that the environment names: what all of verl's processes share with the one that starts them."""

import os
from importlib import import_module

from reweigh.adapters.verl import Correction

VARIABLE = "REWEIGH_CORRECTION"


def named(value: str) -> Correction:
    """The correction that `module:name` names.

    Raises:
        ValueError: not of that form, or something else stands there; the message says what.
    """
    module, _, name = value.partition(":")
    if not module or not name:
        raise ValueError(f"{VARIABLE}: must be module:name, got {value!r}\nhint: for example corrections:correction.")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{VARIABLE}: cannot load {value!r}: {error}\n"
            "hint: the module must be importable in every process of the run: install it, or set PYTHONPATH."
        ) from error
    if not isinstance(found, Correction):
        raise ValueError(
            f"{VARIABLE}: {value!r} is a {type(found).__name__}, not a Correction\n"
            "hint: correction = reweigh.adapters.verl.Correction(estimator)"
        )
    return found


def load() -> Correction | None:
    """Install what the environment names; nothing if it names nothing."""
    value = os.environ.get(VARIABLE)
    if not value:
        return None
    correction = named(value)
    correction.install()
    return correction
