"""Whether a correction has arrived in verl: each link of the chain tried in this process, in order."""

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

import torch

from reweigh.batch import Batch
from reweigh.trainers.seen import factor, wide
from reweigh.trainers.verl import DRIVER, HELPER, LOSSES, USERS, VARIABLE, Correction, named
from reweigh.trainers.versions import KNOWN, NotInstalledError, UnknownVersionError, require


@dataclass(frozen=True)
class Link:
    """One link: its name, whether it holds, what was found, and what to do if it does not."""

    name: str
    ok: bool
    found: str
    hint: str = ""


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
    places = list(_in_place(correction[0]))
    yield from places
    if all(place.ok for place in places):
        yield _same_weights(correction[0])
    if config is not None:
        yield from _config(correction[0], config)


def _version() -> Link:
    try:
        return Link("version", True, f"verl {require('verl')}; known are {', '.join(KNOWN['verl'])}")
    except (NotInstalledError, UnknownVersionError) as error:
        message, _, hint = str(error).partition("\nhint: ")
        return Link("version", False, message, hint)


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


def _in_place(correction: Correction) -> Iterator[Link]:
    if correction.mode == "bypass":
        losses = import_module("verl.trainer.ppo.core_algos").POLICY_LOSS_REGISTRY
        ours = [name for name in LOSSES if getattr(losses.get(name), "__self__", None) == correction]
        what = "policy losses " + ", ".join(f"{name}: {'ours' if name in ours else 'not ours'}" for name in LOSSES)
        yield Link("in place", len(ours) == len(LOSSES), what, _AGAIN)
        return
    for name in (HELPER, *USERS):
        module, needs = _imported(name)
        if module is None:
            yield Link("in place", True, f"{name}: not tried, as it needs {needs}; it copies the one above")
            continue
        ours = getattr(getattr(module, DRIVER), "__self__", None) == correction
        yield Link("in place", ours, f"{name}: {DRIVER} is {'ours' if ours else 'not ours'}", _AGAIN)


_AGAIN = "something replaced it after verl was imported; look for another plugin, or VERL_USE_EXTERNAL_MODULES."


def _imported(name: str) -> tuple[Any, str]:
    """Import a module; or give None and the package whose absence keeps it from being imported here."""
    if name in sys.modules or find_spec(name.rpartition(".")[0]) is not None:
        try:
            return import_module(name), ""
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] == "verl":
                raise
            return None, str(error.name)
    return None, name


def _same_weights(correction: Correction) -> Link:
    """Three sequences through verl's own door, and through the estimator."""
    log_mu = -torch.rand(3, 5, generator=torch.Generator().manual_seed(0)) - 0.5
    log_pi = log_mu + torch.linspace(-0.3, 0.3, 15).view(3, 5)
    mask = torch.arange(5) < torch.tensor([[5], [3], [4]])
    batch = Batch.padded(wide(log_pi), wide(log_mu), mask, advantage=torch.ones(3, 5), group=torch.zeros(3).long())
    expected = factor(correction.estimator(batch))
    if correction.mode == "bypass":
        core = import_module("verl.trainer.ppo.core_algos")
        live = log_pi.clone().requires_grad_()
        core.get_policy_loss_fn(LOSSES[0])(log_mu, live, torch.ones(3, 5), mask, "token-sum")[0].backward()
        arrived = torch.zeros(3, 5) if live.grad is None else -live.grad
    else:
        tensors = {"old_log_probs": log_pi, "rollout_log_probs": log_mu, "response_mask": mask.long()}
        proto = import_module("verl").DataProto.from_single_dict(tensors)
        proto.non_tensor_batch["uid"] = import_module("numpy").array(["a", "a", "a"], dtype=object)
        quiet = Correction(correction.estimator, correction.mode)
        arrived = quiet.on_driver(proto, None)[0].batch["rollout_is_weights"]
    same = bool(torch.equal(arrived, expected))
    what = "weights of a trial batch are " + ("the estimator's, bit for bit" if same else "other than the estimator's")
    return Link("weights", same, what, "please report this with the version of verl.")


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
