"""Whether a correction has arrived in verl: each link of the chain tried in this process, in order."""

import os
import warnings
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from reweigh.trainers.verl import LOSSES, VARIABLE, Correction, Link, in_place, named, same_weights
from reweigh.trainers.versions import KNOWN, NotInstalledError, is_known, require


def check_verl(config: Mapping[str, Any] | None = None) -> Iterator[Link]:
    """Try each link, stopping at the first that the others need and that does not hold.

    Args:
        config: verl's configuration, resolved; None leaves it out.
    """
    version = _version()
    yield version
    yield _entry_point()
    correction = _named()
    yield correction[1]
    if not version.ok or correction[0] is None:
        return
    import_module("verl")
    places = list(in_place(correction[0]))
    yield from places
    if all(place.ok for place in places):
        yield same_weights(correction[0])
    if config is not None:
        yield from _config(correction[0], config)


def _version() -> Link:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is said here
            installed = require("verl")
    except NotInstalledError as error:
        message, _, hint = str(error).partition("\nhint: ")
        return Link("version", False, message, hint)
    known = ", ".join(KNOWN["verl"])
    if is_known("verl", installed):
        return Link("version", True, f"verl {installed}; known are {known}")
    return Link("version", True, f"verl {installed} is not known ({known} are): the links below are what there is")


def _entry_point() -> Link:
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip()
    names = [e.name for e in entry_points(group="verl.plugins")]
    if "reweigh" not in names:
        hint = "install reweigh as a package in verl's environment; a folder on PYTHONPATH has no entry point."
        return Link("entry point", False, f"verl.plugins has {', '.join(names) or 'none'}", hint)
    if policy.lower() != "auto" and "reweigh" not in [name.strip() for name in policy.split(",")]:
        hint = "unset it, or add reweigh to it."
        return Link("entry point", False, f"VERL_USE_EXTERNAL_PLUGINS={policy} leaves it out", hint)
    return Link("entry point", True, f"verl.plugins has reweigh; VERL_USE_EXTERNAL_PLUGINS={policy}")


def _named() -> tuple[Correction | None, Link]:
    value = os.environ.get(VARIABLE)
    if not value:
        hint = f"{VARIABLE}=corrections:correction, set where the run is started; Ray hands it to its workers."
        return None, Link(
            "correction", False, f"{VARIABLE} is not set, so verl trains as if reweigh were not there", hint
        )
    try:
        correction = named(value)
    except ValueError as error:
        message, _, hint = str(error).partition("\nhint: ")
        return None, Link("correction", False, message, hint)
    return correction, Link("correction", True, f"{value}: {correction.mode}, {correction.estimator}")


def _config(correction: Correction, config: Mapping[str, Any]) -> Iterator[Link]:
    rollout = _at(config, "actor_rollout_ref.rollout.calculate_log_probs")
    hint = "actor_rollout_ref.rollout.calculate_log_probs=True; without it verl skips every correction in silence."
    yield Link("config", rollout is True, f"calculate_log_probs is {rollout}", hint)
    section = _at(config, "algorithm.rollout_correction")
    bypass = bool(_at(config, "algorithm.rollout_correction.bypass_mode"))
    wanted = correction.mode == "bypass"
    hint = f"algorithm.rollout_correction.bypass_mode={wanted}, or Correction(..., mode=...) to match."
    said = "there is no algorithm.rollout_correction" if section is None else f"bypass_mode is {bypass}"
    yield Link("config", section is not None and bypass == wanted, f"{said}; the correction is {correction.mode}", hint)
    mode = _at(config, "actor_rollout_ref.actor.policy_loss.loss_mode")
    if wanted:
        hint = "actor_rollout_ref.actor.policy_loss.loss_mode=reweigh"
        yield Link("config", mode in LOSSES, f"loss_mode is {mode}", hint)


def _at(config: Mapping[str, Any], path: str) -> Any:
    value: Any = config
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return None
        value = value[name]
    return value
