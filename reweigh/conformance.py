"""Recompute what frameworks' own functions returned, from our compositions, and tell what differs and why."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from reweigh.estimators import Weights
from reweigh.layout import Padded
from reweigh.levels import GEOMETRIC
from reweigh.losses import cispo, policy_gradient, ppo_clip
from reweigh.rosetta.frameworks import profile_of
from reweigh.rosetta.metrics import View
from reweigh.rosetta.plan import Field, Loss, Outcome, Plan, Reading, RefusedError, Situation, Tensors, run
from reweigh.rosetta.profile import Metric, Profile, Quirk

FORMAT = "conformance-1"
_SPECIAL = {None: math.nan, "nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_FIELDS: tuple[Field, ...] = ("log_pi", "log_mu", "log_live")
_NEEDED = ("id", "framework", "option", "batch", "outputs")


@dataclass(frozen=True, eq=False)
class RecordedBatch:
    """One batch: three log-probs `[S, T]` in nats, the mask, and an advantage for each sequence.

    `slots` are those that a sequence has, masked ones included, where its rows were cut to their lengths.
    """

    fields: Mapping[Field, Tensor]
    mask: Tensor
    advantage: Tensor
    slots: Tensor

    def cut(self) -> "RecordedBatch":
        """Take what stands beyond a sequence's end out."""
        fields: dict[Field, Tensor] = {f: torch.where(self.slots, x, 0) for f, x in self.fields.items()}
        return replace(self, fields=fields)

    def tensors(self, reading: Reading, mask: Tensor | None = None) -> Tensors:
        """Pick the two policies that a reading compares."""
        return Tensors(
            self.fields[reading.pi],
            self.fields[reading.mu],
            self.mask if mask is None else mask,
            self.advantage,
            log_old=self.fields["log_pi"],
            log_pi_of_screens=None if reading.screen_pi is None else self.fields[reading.screen_pi],
            slots=self.slots,
        )


@dataclass(frozen=True)
class RecordedCase:
    """One option of one framework on one batch."""

    id: str
    framework: str
    version: str
    function: str
    kind: str
    option: Mapping[str, Any]
    batch: str
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Recording:
    """A file's batches by name, and its cases."""

    batches: Mapping[str, RecordedBatch]
    cases: tuple[RecordedCase, ...]


def scalar(value: Any) -> float:
    """Read a recorded number: null is NaN here, and so is "nan"."""
    return _SPECIAL[value] if value is None or isinstance(value, str) else float(value)


def matrix(rows: Any) -> Tensor:
    """Read a recorded `[S, T]`."""
    return torch.tensor([[scalar(v) for v in row] for row in rows], dtype=torch.float32)


def vector(row: Any) -> Tensor:
    """Read a recorded `[S]`."""
    return torch.tensor([scalar(v) for v in row], dtype=torch.float32)


def read_recording(path: str) -> Recording:
    """Read and check a conformance file.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no JSON, has another format, lacks something, or a case names a batch that is not there;
            the message says where.
    """
    try:
        data: Any = json.loads(Path(path).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ValueError(f"{path}: not JSON: {e}\nhint: a conformance file is one JSON object") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected one JSON object, got {type(data).__name__}\nhint: is it the right file?")
    top = cast("dict[str, Any]", data)
    told = top.get("format", FORMAT)
    if told != FORMAT:
        raise ValueError(f"{path}: format must be {FORMAT!r}, got {told!r}\nhint: this version reads {FORMAT} only")
    for name in ("batches", "cases"):
        if not top.get(name):
            raise ValueError(f"{path}: has no {name}\nhint: a conformance file has batches and cases")
    batches = {name: _batch(path, name, b) for name, b in top["batches"].items()}
    return Recording(batches, tuple(_case(path, i, c, batches) for i, c in enumerate(top["cases"])))


def _batch(path: str, name: str, b: Any) -> RecordedBatch:
    where = f"{path}: batch {name!r}"
    try:
        fields: dict[Field, Tensor] = {f: matrix(b[f]) for f in _FIELDS}
        mask, advantage = matrix(b["mask"]) > 0, vector(b["advantage"])
    except KeyError as e:
        raise ValueError(
            f"{where}: {e} is missing\nhint: a batch has log_pi, log_mu, log_live, mask, advantage"
        ) from None
    except (TypeError, ValueError) as e:
        raise ValueError(f"{where}: not a table of numbers: {e}\nhint: rows of equal length, [S, T]") from None
    for f, x in fields.items():
        if x.shape != mask.shape:
            raise ValueError(
                f"{where}: {f} has shape {tuple(x.shape)}, mask has {tuple(mask.shape)}\nhint: both are [S, T]"
            )
    if advantage.shape != mask.shape[:1]:
        raise ValueError(f"{where}: {mask.shape[0]} sequences, {len(advantage)} advantages\nhint: one each")
    lengths = torch.tensor(b.get("lengths", [mask.shape[1]] * mask.shape[0]))
    return RecordedBatch(fields, mask, advantage, torch.arange(mask.shape[1]) < lengths[:, None])


def _case(path: str, i: int, c: Any, batches: Mapping[str, RecordedBatch]) -> RecordedCase:
    where = f"{path}: case {i + 1}"
    missing = [k for k in _NEEDED if not isinstance(c, dict) or k not in c]
    if missing:
        raise ValueError(f"{where}: {', '.join(missing)} missing\nhint: a case has {', '.join(_NEEDED)}")
    if c["batch"] not in batches:
        raise ValueError(f"{where} ({c['id']}): no batch {c['batch']!r}\nhint: there are {', '.join(batches)}")
    return RecordedCase(
        id=c["id"],
        framework=c["framework"],
        version=str(c.get("version_or_commit", "")),
        function=c.get("function", ""),
        kind=c.get("kind", ""),
        option=c["option"],
        batch=c["batch"],
        inputs=c.get("inputs", {}),
        outputs=c["outputs"],
    )


Status = Literal["agrees", "explained", "differs"]
# Float32 throughout, in sums of another order. A sum of log ratios rounds with its largest partial sum, so that where
# +60 and -60 nats cancel, a weight is good to 1e-5 only: both grow by that rounding.
WEIGHT_TOLERANCE, TOLERANCE = 3e-6, 2e-5
_NOTHING = 1e-8  # of a weight: e^-20, where frameworks clamp, is under it


@dataclass(frozen=True)
class Recomputed:
    """One case, recomputed.

    Attributes:
        case: which.
        status: whether ours are their numbers, whether named quirks make them so, or neither.
        differing: what differs from ours without quirks.
        quirks: the quirks that reproduce it; empty if it agrees.
        unexplained: what differs even with every quirk of the profile switched on.
        compared: names of what was compared.
        no_equal: metrics that have no equal, and why.
    """

    case: RecordedCase
    status: Status
    differing: tuple[str, ...]
    quirks: tuple[Quirk, ...]
    unexplained: tuple[str, ...]
    compared: tuple[str, ...]
    no_equal: tuple[tuple[str, str], ...]


def check(recording: Recording, step: Callable[[int], None] = lambda n: None) -> tuple[Recomputed, ...]:
    """Recompute every case of a recording; none is skipped.

    Raises:
        ValueError: if a case is of a framework that has no profile.
    """
    out: list[Recomputed] = []
    for case in recording.cases:
        out.append(check_case(case, recording.batches[case.batch]))
        step(1)
    return tuple(out)


def check_case(case: RecordedCase, batch: RecordedBatch) -> Recomputed:
    """Recompute one case, without quirks and with those that it takes."""
    profile = profile_of(case.framework)
    if any("rows cut to lengths" in str(v) for v in case.inputs.values()):
        batch = batch.cut()
    else:
        batch = replace(batch, slots=torch.ones_like(batch.mask))
    named = _Comparison(profile, case, batch)
    differing, compared = named.differences(())
    no_equal = tuple(named.no_equal())
    if not differing:
        return Recomputed(case, "agrees", (), (), (), compared, no_equal)
    quirks = profile.quirks
    left, _ = named.differences(quirks)
    if left:
        return Recomputed(case, "differs", differing, (), left, compared, no_equal)
    for q in profile.quirks:  # drop those that it does not take
        fewer = tuple(x for x in quirks if x is not q)
        if not named.differences(fewer)[0]:
            quirks = fewer
    return Recomputed(case, "explained", differing, quirks, (), compared, no_equal)


@dataclass(frozen=True, eq=False)
class _Comparison:
    profile: Profile
    case: RecordedCase
    batch: RecordedBatch

    def differences(self, quirks: Iterable[Quirk]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Compare with these quirks on: what differs, and what was compared."""
        raises = "raises" in self.case.outputs
        try:
            options = {"function": self.case.function, **self.case.option}  # some choose by the function
            reading = self.profile.read(options)
            zeros = any(str(v).startswith("zeros like mask") for v in self.case.inputs.values())
            tensors = self.batch.tensors(reading, torch.zeros_like(self.batch.mask) if zeros else None)
            situation = Situation(self.profile.given(options), tensors, reading)
            plan = reading.plan
            for q in quirks:
                plan = q.apply(plan, situation)
        except RefusedError:
            return (() if raises else ("refused by us",)), ("refusal",)
        if raises:
            return ("refused by them, not by us",), ("refusal",)
        pairs = [*self._pairs(reading, plan, situation)]
        if not pairs:
            return ("nothing to compare",), ()
        # The rounding of a sum of one sequence's log ratios in float32, nats.
        gaps = torch.where(tensors.mask & torch.isfinite(tensors.log_ratio), tensors.log_ratio, 0)
        rounding = torch.finfo(torch.float32).eps * float(gaps.abs().sum(-1).max())
        differing = tuple(n for n, ours, theirs, t in pairs if not _close(ours, theirs, t, rounding))
        return differing, tuple(n for n, *_ in pairs)

    def no_equal(self) -> Iterable[tuple[str, str]]:
        """Recorded metrics that are not compared, each with its reason."""
        for name in _metrics(self.case.outputs):
            known = metric_of(self.profile, name)
            if known is None:
                yield name, "the profile does not name it"
            elif known.equal is None:
                yield name, known.says

    def _pairs(self, reading: Reading, plan: Plan, situation: Situation) -> Iterable[tuple[str, Any, Any, float]]:
        outcome, out, mask = run(plan, situation.tensors), self.case.outputs, situation.tensors.mask
        theirs = their_weights(out, mask)
        if theirs is not None and not reading.inside:
            if _weighs(out) or "loss" not in out:
                yield "weights", torch.where(outcome.keep, outcome.per_token, 0), theirs[0], WEIGHT_TOLERANCE
            # A weight that no comparison of weights would tell from 0 takes part or not.
            light = (outcome.per_token < _NOTHING) & torch.tensor(_weighs(out))
            yield "mask", (outcome.keep & ~light).float(), theirs[1].float(), 0.0
        if reading.loss is not None and "loss" in out:
            live, centre = self.batch.fields[live_of(self.case, reading)], self.batch.fields[reading.loss.centre]
            value, grad = loss_of(reading.loss, plan, outcome, mask, self.batch.advantage, live, centre)
            yield "loss", value, torch.tensor(scalar(out["loss"])), TOLERANCE
            if "grad_per_token" in out:
                their_grad = matrix(out["grad_per_token"])
                ours, theirs = (torch.where(torch.isnan(g) & ~mask, 0, g) for g in (grad, their_grad))
                yield "gradient", ours, theirs, TOLERANCE
        view = View(situation, plan, outcome)
        for name, value in _metrics(out).items():
            known = metric_of(self.profile, name)
            if known is not None and known.equal is not None:
                told = vector(value) if isinstance(value, list) else torch.tensor(scalar(value))
                yield name, torch.as_tensor(known.equal(view, name)).detach(), told, TOLERANCE


def metric_of(profile: Profile, name: str) -> Metric | None:
    """Find the profile's entry for a metric's name, or None."""
    return next((m for m in profile.metrics if any(fnmatchcase(name, p) for p in m.names)), None)


def live_of(case: RecordedCase, reading: Reading) -> Field:
    """Tell which recorded log-prob the loss is differentiated by."""
    assert reading.loss is not None
    arguments = ("log_prob", "log_probs", "logprobs", "next_token_logprobs", "per_token_logps", "trainer_logprobs")
    told = [str(case.inputs[a]).split(" ")[0] for a in arguments if a in case.inputs]
    return cast("Field", told[0]) if told else reading.loss.live


def their_weights(out: Any, mask: Tensor) -> tuple[Tensor, Tensor] | None:
    """(weight, keep) of each token: where it multiplies the loss, and where it is 0, by a mask or by itself."""
    parts = ("weight_per_token", "weight_per_sequence", "mask_out", "keep_per_sequence", "sample_mask")
    if not any(out.get(p) is not None for p in parts):
        return None
    weight, keep = torch.ones(mask.shape), mask.clone()
    if out.get("weight_per_token") is not None:
        weight = matrix(out["weight_per_token"])
    if out.get("weight_per_sequence") is not None:
        weight = vector(out["weight_per_sequence"])[:, None].expand(mask.shape)
    if out.get("mask_out") is not None:
        keep &= matrix(out["mask_out"]) > 0
    for name in ("keep_per_sequence", "sample_mask"):
        if out.get(name) is not None:
            keep &= vector(out[name])[:, None] > 0
    keep &= ~(weight.abs() < _NOTHING)
    return torch.where(keep, weight, 0), keep


def _weighs(out: Any) -> bool:
    return out.get("weight_per_token") is not None or out.get("weight_per_sequence") is not None


def _metrics(out: Any) -> dict[str, Any]:
    return {**out.get("metrics", {}), **out.get("metrics_per_sequence", {})}


def _close(ours: Tensor, theirs: Tensor, tolerance: float, rounding: float) -> bool:
    if ours.shape != theirs.shape:
        raise ValueError(f"conformance: shapes {tuple(ours.shape)} and {tuple(theirs.shape)} cannot be compared")
    ours, theirs = ours.double(), theirs.double()
    if tolerance == 0:
        return bool((ours == theirs).all())
    small = max(torch.finfo(torch.float32).eps, tolerance / 30, rounding)
    return bool(torch.isclose(ours, theirs, rtol=tolerance + rounding, atol=small, equal_nan=True).all())


# A framework's loss out of ours.


def loss_of(
    loss: Loss, plan: Plan, outcome: Outcome, mask: Tensor, advantage: Tensor, live: Tensor, centre: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the loss and its gradient for each token.

    Args:
        loss: which, and its constants.
        plan: read for the quirks that act on a loss: `clamp_live`, `infinite_live`.
        outcome: the weights.
        mask: `[S, T]`, tokens of the mask as given.
        advantage: `[S]`.
        live: log-probs with gradient, nats.
        centre: log-probs that the loss's ratio is divided by, nats.
    """
    live = live.detach().clone().requires_grad_()
    keep = outcome.keep
    if "infinite_live" not in plan.flags:
        keep = keep & torch.isfinite(live) & torch.isfinite(centre)
    layout = Padded(mask)
    # In a `ratio` loss the weight is the ratio with gradient itself; what is left of the weights is whom they keep.
    log_w = torch.where(keep & torch.tensor(loss.kind != "ratio"), outcome.per_token.log(), 0)
    weights = Weights(log_w, keep, torch.zeros_like(keep), mask, "token", layout)
    per_token = loss.scale * advantage[:, None].expand(mask.shape)
    counted = outcome.masked if loss.survivors else mask
    lengths, sequences = counted.sum(-1, keepdim=True).clamp(min=1), (counted.sum(-1) > 0).sum().clamp(min=1)
    divisor = {  # of each token's term, broadcastable to the tokens
        "tokens": counted.sum().clamp(min=1),
        "sums": sequences,
        "sums_of_width": sequences * mask.shape[-1],
        "means": sequences * lengths,
        "row_means": len(counted) * lengths,
        "row_sums": torch.tensor(float(len(counted))),
        "sum": torch.ones(()),
    }[loss.over]
    if "multiplied_out" in plan.flags:
        value = _multiplied_out(loss, plan, outcome, mask, per_token, live, centre, divisor)
        (grad,) = torch.autograd.grad(value, live)
        return value.detach(), grad
    scaled = per_token / divisor
    top, below = live, centre
    clamp = loss.clamp if "clamp_live" in plan.flags else None
    if loss.kind == "gspo" or loss.level == "sequence":
        averaged = Padded(outcome.masked) if loss.mean_of_kept else layout
        known = torch.isfinite(live) & torch.isfinite(centre) | torch.tensor("infinite_live" in plan.flags)
        gap = torch.where(averaged.mask & known, live - centre, 0)
        mean = averaged.spread(GEOMETRIC.fold(gap, averaged))
        if loss.kind == "cispo":
            below = live.detach() - mean.detach()
        else:
            top = mean if loss.slope == "mean" else mean.detach() + live - live.detach()
            top, below = top if clamp is None else torch.where(mean > clamp, clamp, top), torch.zeros_like(centre)
    elif clamp is not None:
        gap = live - centre
        if loss.kind in ("ppo_clip", "ratio"):
            top, below = gap.clamp(-clamp, clamp), torch.zeros_like(centre)
        elif loss.kind == "cispo":
            below = live.detach() - gap.detach().clamp(-clamp, clamp)
    value = _value(loss, top, below, scaled, weights)
    if loss.penalty is not None:
        penalised = mask if "infinite_live" in plan.flags else mask & torch.isfinite(centre)
        gap = torch.where(penalised, live - centre, 0)
        value = value + loss.penalty * (gap.square() / divisor).sum()
    (grad,) = torch.autograd.grad(value + 0 * torch.where(torch.isfinite(live), live, 0).sum(), live)
    if "mean_of_nothing" in plan.flags and loss.over != "sum" and not bool(counted.any()):
        value = torch.full_like(value, torch.nan)
    return value.detach(), grad.detach()


def _multiplied_out(
    loss: Loss,
    plan: Plan,
    outcome: Outcome,
    mask: Tensor,
    advantage: Tensor,
    live: Tensor,
    centre: Tensor,
    divisor: Tensor,
) -> Tensor:
    """Compute the loss in plain arithmetic, as frameworks write it: each term, times its weight, times the masks."""
    averaged = (outcome.masked if loss.mean_of_kept else mask).to(live.dtype)
    clamp = loss.clamp if "clamp_live" in plan.flags else None
    gap = live - centre
    if loss.kind == "gspo" or loss.level == "sequence":
        mean = (gap * averaged).sum(-1, keepdim=True) / averaged.sum(-1, keepdim=True).clamp(min=1)
        # Through the mean there is one ratio a sequence, so that its gradient is summed before it meets an infinity.
        gap = mean if loss.slope == "mean" else mean.detach() + live - live.detach()
        gap = gap if clamp is None else gap.clamp(max=clamp)
        advantage = advantage[:, :1] if loss.slope == "mean" and loss.kind != "cispo" else advantage
    elif clamp is not None:
        gap = gap.clamp(-clamp, clamp)
    ratio, bounds = gap.exp(), (1 - loss.low, 1 + loss.high)
    if "ratio_times_mask" in plan.flags and loss.kind == "gspo":
        ratio = ratio * mask
    if loss.kind == "policy_gradient":
        term = -advantage * live
    elif loss.kind == "ratio":
        term = -advantage * ratio
    elif loss.kind == "cispo":
        term = -advantage * ratio.clamp(*bounds).detach() * live
    else:
        term = -torch.min(ratio * advantage, ratio.clamp(*bounds) * advantage)
        if loss.dual is not None:
            term = torch.where(advantage < 0, torch.min(term, -loss.dual * advantage), term)
    # A weight stands on masked tokens too: a sequence's as on its others, a token's finite. What the weights drop is 0.
    weight = torch.where(outcome.left, torch.where(outcome.keep | ~outcome.masked, outcome.alone, 0), 1)
    if plan.weights.unit == "sequence":
        weight = torch.where(outcome.left, weight, -torch.inf).amax(-1, keepdim=True)
        weight = torch.where(outcome.left.any(-1, keepdim=True), weight, 1)
        raw = outcome.batch.log_pi - outcome.batch.log_mu
        lost = (~outcome.left & ~torch.isfinite(raw)).any(-1, keepdim=True)
        weight = torch.where(lost & torch.tensor("folds_multiply" in plan.flags), torch.nan, weight)
    if loss.kind == "ratio" or not plan.applied:
        weight = outcome.keep
    value = (term * weight * outcome.masked / divisor).sum()
    if loss.penalty is not None:
        value = value + loss.penalty * (mask * (live - centre).square() / divisor).sum()
    if "starts_at_zero_times" in plan.flags:
        value = value + 0 * live[0].sum()
    empty = loss.survivors and loss.over != "sum" and not bool(outcome.masked.any())
    return value + torch.nan if empty and "mean_of_nothing" in plan.flags else value


def _value(loss: Loss, live: Tensor, centre: Tensor, advantage: Tensor, weights: Weights) -> Tensor:
    if loss.kind == "policy_gradient":
        return policy_gradient(live, advantage, weights, 1.0)
    if loss.kind == "ratio":
        return ppo_clip(live, centre, advantage, weights, 1.0, low=1.0, high=torch.inf)
    if loss.kind == "cispo":
        return cispo(live, centre, advantage, weights, 1.0, low=loss.low, high=loss.high)
    return ppo_clip(live, centre, advantage, weights, 1.0, low=loss.low, high=loss.high, dual=loss.dual)
