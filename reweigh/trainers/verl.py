"""verl: an estimator on the driver, where the whole batch is, or as the policy loss; and what its processes share."""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from itertools import count
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from reweigh.batch import Batch
from reweigh.estimators import Estimator
from reweigh.trainers.capture import Capture
from reweigh.trainers.seen import (
    PREFIX,
    Measuring,
    averaged,
    factor,
    hold,
    per_token,
    refuse_advantage,
    refuse_whole_batch,
    wide,
)
from reweigh.trainers.versions import failed, is_known, require

HELPER = "verl.trainer.ppo.rollout_corr_helper"
DRIVER = "compute_rollout_correction_and_add_to_batch"
USERS = ("verl.trainer.ppo.v1.trainer_base",)
"""Modules that copy the driver's function when they are imported; the others look it up when they call it."""
LOSSES = ("reweigh", "bypass_mode")
"""`bypass_mode` too: the name that verl's trainer selects when `rollout_correction.bypass_mode` is on."""


@dataclass(frozen=True)
class Correction:
    """An estimator for verl, and where it goes in.

    "decoupled": `rollout_is_weights` of `pi_old / mu` and a `response_mask` without rejected tokens, computed once on
    the driver over the whole batch, prompts (`uid`) and all; any `loss_mode` that takes the weights multiplies them in.
    "bypass": the loss `-w_t A_t log pi_t`, w of `pi / mu`, aggregated by `loss_agg_mode`; one micro-batch a call.

    The options `rollout_is` and `rollout_rs` are not read. verl must keep the sampler's log-probs:
    `actor_rollout_ref.rollout.calculate_log_probs=True`. To install it in every process, put it in a module of yours
    and name it in the environment (`reweigh doctor-install verl` checks that it arrived):

        # corrections.py
        correction = Correction(geo_rs(0.99, 1.01) * seq_tis(2.0))

        REWEIGH_CORRECTION=corrections:correction python -m verl.trainer.main_ppo ...

    Args:
        estimator: in decoupled mode one without advantage signs, in bypass mode one that does not read the batch.
        mode: as above.
        capture: decoupled mode: where the driver writes records; None writes none.
        check: decoupled mode: on the first batch, raise if log-probs cannot be log-probs.

    Raises:
        ValueError: the estimator cannot be computed where the mode computes it.
    """

    estimator: Estimator
    mode: Literal["decoupled", "bypass"] = "decoupled"
    capture: Capture | None = None
    check: bool = True
    calls: Iterator[int] = field(default_factory=count, repr=False, compare=False)
    measuring: Measuring = field(default_factory=Measuring, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse what the hook cannot compute."""
        if self.mode == "decoupled":
            refuse_advantage("Correction", self.estimator)
        elif self.mode == "bypass":
            refuse_whole_batch("Correction", "one micro-batch", self.estimator)
        else:
            raise ValueError(f"Correction: mode must be decoupled or bypass, got {self.mode!r}")

    def install(self) -> None:
        """Put it in verl's place for it, in this process.

        In a version that is not known the correction is then called through verl's own names, on a trial batch.

        Raises:
            NotInstalledError: verl is not installed.
            UnknownVersionError: another version, in which the correction does not arrive.
        """
        installed = require("verl")
        if is_known("verl", installed):
            self._put()
            return
        try:
            self._put()
            # verl may be half imported: what copies the driver's function later gets ours
            links = list(in_place(self, [name for name in USERS if name in sys.modules]))
            links += [same_weights(self)] if all(link.ok for link in links) else []
        except Exception as error:  # what another version lacks may be missing in any way
            raise failed("verl", installed, f"{type(error).__name__}: {error}") from error
        for link in links:
            if not link.ok:
                raise failed("verl", installed, f"{link.name}: {link.found}")

    def _put(self) -> None:
        if self.mode == "bypass":
            for name in LOSSES:
                import_module("verl.trainer.ppo.core_algos").register_policy_loss(name)(self.loss)
            return
        for module in (import_module(HELPER), *(sys.modules[name] for name in USERS if name in sys.modules)):
            if not hasattr(module, DRIVER):
                raise AttributeError(f"{module.__name__} has no {DRIVER}")
            setattr(module, DRIVER, self.on_driver)

    def on_driver(self, batch: Any, rollout_corr_config: Any) -> tuple[Any, dict[str, float]]:
        """In place of `compute_rollout_correction_and_add_to_batch`.

        Args:
            batch: a `DataProto` with `old_log_probs`, `rollout_log_probs`, `response_mask`, and `uid` if there is one.
            rollout_corr_config: not read.

        Returns:
            The batch with `rollout_is_weights` and `response_mask`, and metrics.
        """
        data, call = batch.batch, next(self.calls)
        uid = batch.non_tensor_batch.get("uid")
        codes = None if uid is None else np.unique(uid.astype(str), return_inverse=True)[1]
        group = None if codes is None else torch.as_tensor(codes, device=data["response_mask"].device)
        tokens = Batch.padded(
            wide(data["old_log_probs"]),
            wide(data["rollout_log_probs"]),
            data["response_mask"],
            group=group,
            check=False,
        )
        if self.capture is not None and self.capture.wants(call):
            self._write(self.capture, batch, tokens, uid, call)
        if call == 0 and self.check:  # after it is written: what stops the run is in the record
            tokens.check()
        weights = hold(self.estimator(tokens))
        keep = weights.keep_tokens
        if bool(keep.any()):  # if all is rejected the weights are 0, and an empty mask would be divided by
            data["response_mask"] = keep.to(data["response_mask"].dtype)
        data["rollout_is_weights"] = factor(weights)
        metrics = self.measuring.flat(tokens, weights)
        return batch, metrics if self.capture is None else metrics | self.capture.metrics(PREFIX)

    def _write(self, capture: Capture, batch: Any, tokens: Batch, uid: Any, call: int) -> None:
        columns: dict[str, Any] = {} if uid is None else {"prompt_id": [str(u) for u in uid]}
        if "responses" in batch.batch:
            columns["token_ids"] = list(batch.batch["responses"])
        if "token_level_scores" in batch.batch:
            columns["reward"] = batch.batch["token_level_scores"].sum(-1).tolist()
        capture.write(tokens, call, **columns)

    def loss(
        self,
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """A policy loss of verl's registry, for bypass mode, where `old_log_prob` is the sampler's."""
        if rollout_is_weights is not None:
            raise ValueError(
                "Correction.loss: rollout_is_weights were computed on the driver, so this run is decoupled\n"
                'hint: use Correction(..., mode="decoupled") and a loss_mode of verl\'s, or turn bypass_mode on.'
            )
        batch = Batch.padded(wide(log_prob), wide(old_log_prob), response_mask, advantage=advantages, check=False)
        weights = hold(self.estimator(batch))
        keep = weights.keep_tokens
        gain = factor(weights) * torch.where(keep, advantages, 0) * torch.where(keep, log_prob, 0)
        whole: dict[str, Any] = {} if config is None else config.global_batch_info
        agg_loss = import_module("verl.trainer.ppo.core_algos").agg_loss
        loss = agg_loss(loss_mat=-gain, loss_mask=response_mask, loss_agg_mode=loss_agg_mode, **whole)
        means = averaged(per_token(batch, weights), response_mask.sum().clamp(min=1))
        return loss, {name: float(value) for name, value in means.items()}


@dataclass(frozen=True)
class Link:
    """One link: its name, whether it holds, what was found, and what to do if it does not."""

    name: str
    ok: bool
    found: str
    hint: str = ""


def in_place(correction: Correction, users: Sequence[str] = USERS) -> Iterator[Link]:
    """Tell of each place in verl whether the correction stands there.

    Args:
        correction: that was put there.
        users: modules that copy the driver's function; those that cannot be imported here are left out.
    """
    if correction.mode == "bypass":
        losses = import_module("verl.trainer.ppo.core_algos").POLICY_LOSS_REGISTRY
        ours = [name for name in LOSSES if getattr(losses.get(name), "__self__", None) == correction]
        what = "policy losses " + ", ".join(f"{name}: {'ours' if name in ours else 'not ours'}" for name in LOSSES)
        yield Link("in place", len(ours) == len(LOSSES), what, _AGAIN)
        return
    for name in (HELPER, *users):
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


def same_weights(correction: Correction) -> Link:
    """Send three sequences through verl's own door, and through the estimator."""
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
        proto = import_module("verl.protocol").DataProto.from_single_dict(tensors)
        proto.non_tensor_batch["uid"] = import_module("numpy").array(["a", "a", "a"], dtype=object)
        quiet = Correction(correction.estimator, correction.mode)
        arrived = quiet.on_driver(proto, None)[0].batch["rollout_is_weights"]
    same = bool(torch.equal(arrived, expected))
    what = "weights of a trial batch are " + ("the estimator's, bit for bit" if same else "other than the estimator's")
    return Link("weights", same, what, "please report this with the version of verl.")


VARIABLE = "REWEIGH_CORRECTION"


def named(value: str) -> Correction:
    """Load the correction that `module:name` names.

    Raises:
        ValueError: not of that form, or something else stands there; the message says what.
    """
    module, _, name = value.partition(":")
    if not module or not name:
        raise ValueError(f"{VARIABLE}: must be module:name, got {value!r}\nhint: for example corrections:correction.")
    try:
        correction = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{VARIABLE}: cannot load {value!r}: {error}\n"
            "hint: the module must be importable in every process of the run: install it, or set PYTHONPATH."
        ) from error
    if not isinstance(correction, Correction):
        raise ValueError(
            f"{VARIABLE}: {value!r} is a {type(correction).__name__}, not a Correction\n"
            "hint: correction = reweigh.trainers.verl.Correction(estimator)"
        )
    return correction


def load() -> Correction | None:
    """Install what the environment names; nothing if it names nothing."""
    value = os.environ.get(VARIABLE)
    if not value:
        return None
    correction = named(value)
    correction.install()
    return correction
