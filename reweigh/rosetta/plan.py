"""A translated option, and how to run it: what multiplies the loss, what drops, in which order."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from reweigh.batch import Batch
from reweigh.estimators import Estimator, Factor, Weights
from reweigh.layout import Padded
from reweigh.rosetta.parts import Rule, as_it_comes

Mean = Literal["kept", "all", "rows"]
_ONE = Estimator()  # weighs everything 1


@dataclass(frozen=True)
class Plan:
    """What an option does to the loss, as compositions of ours.

    Attributes:
        weights: what multiplies; it may drop, too.
        screens: what only drops.
        screens_first: whether the weights see only the tokens that `screens` left.
        then: what drops last, with the weights; apart only because it sees what they see.
        normalise: None, or over what the mean is taken that the weights (alone, before screens) are divided by: the
            units that the weights keep; all units of the mask, dropped ones as 0; all rows, empty ones as 0.
        mean_of: what that mean is of, if not of the weights.
        rule: what becomes of log ratios that the weights see; None is ours: a non-finite one leaves the mask.
        screen_rule: the same for screens.
        zero_advantage: the sign that gates see where the advantage is 0; 0 is ours: it passes.
        metrics_as_they: whether metrics treat infinities and bounds of the log ratio as the framework does.
        empty_rows: whether metrics count a sequence with no token, as 0.
        applied: whether the weights multiply; if not, they are only logged.
        flags: switches that only losses and metrics read.
        ratio_of: where the weights' log ratios come from; None is `log pi - log mu`.
    """

    weights: Estimator = _ONE
    screens: Estimator = _ONE
    screens_first: bool = False
    then: Estimator = _ONE
    normalise: Mean | None = None
    mean_of: Estimator | None = None
    rule: Rule | None = None
    screen_rule: Rule | None = None
    zero_advantage: int = 0
    metrics_as_they: bool = False
    empty_rows: bool = False
    applied: bool = True
    flags: frozenset[str] = frozenset()
    ratio_of: "Callable[[Tensors], Tensor] | None" = None

    @property
    def estimator(self) -> Estimator:
        """One product, as a user of the library would write it; the order of `screens_first` is lost in it."""
        product = (self.weights if self.applied else _ONE) * self.screens * self.then
        return replace(product, normalise="batch") if self.normalise else product

    def mapped(self, change: Callable[[Factor], Factor]) -> "Plan":
        """The same plan with each factor changed."""
        parts = {
            name: Estimator(tuple(map(change, e.factors)), e.normalise)
            for name, e in (("weights", self.weights), ("screens", self.screens), ("then", self.then))
        }
        return replace(self, **parts)

    def flagged(self, *flags: str) -> "Plan":
        """The same plan with these switches on."""
        return replace(self, flags=self.flags | set(flags))


@dataclass(frozen=True, eq=False)
class Tensors:
    """Two log-probs of the same tokens `[S, T]`, a mask, and an advantage for each sequence.

    `log_old` is the trainer's own log-prob from before the update where `log_pi` is another one, and
    `log_pi_of_screens` the policy that screens look at where it is not `log_pi`.
    """

    log_pi: Tensor
    log_mu: Tensor
    mask: Tensor
    advantage: Tensor
    log_old: Tensor | None = None
    log_pi_of_screens: Tensor | None = None

    @property
    def log_ratio(self) -> Tensor:
        """`log pi - log mu` as it comes, infinities included."""
        return self.log_pi - self.log_mu

    def batch(self, rule: Rule | None = None, mask: Tensor | None = None, zero_advantage: int = 0) -> Batch:
        """A batch; with a rule, one whose log ratios are what the rule makes of them and that no token leaves."""
        mask = self.mask if mask is None else mask
        advantage = torch.where(self.advantage == 0, float(zero_advantage), self.advantage)
        turn = (~self.mask).cumsum(-1)  # a run of tokens of the mask is a turn, as far as a mask can tell
        if rule is None:
            return Batch.padded(self.log_pi, self.log_mu, mask, advantage=advantage, turn=turn)
        raw = self.log_ratio
        spread = advantage[:, None].expand(raw.shape)
        lost = self.mask & ~mask & ~torch.isfinite(raw)
        log_ratio = torch.where(mask, rule(raw), 0)
        return Batch(self.log_pi, self.log_mu, Padded(mask, turn), spread, None, lost, log_ratio)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a plan made of a batch.

    Attributes:
        per_token: the weight of each token, 0 if dropped.
        keep: tokens that take part: kept, with a weight that is not 0.
        alone: the weights before screens, per token; 0 off the mask.
        mean: what the weights were divided by, or None.
        left: the mask that the weights saw.
        masked: tokens that all screens left.
        batch: what the weights were computed from.
    """

    per_token: Tensor
    keep: Tensor
    alone: Tensor
    mean: Tensor | None
    left: Tensor
    masked: Tensor
    batch: Batch


def run(plan: Plan, tensors: Tensors) -> Outcome:
    """Weights and keeps of a plan."""
    zero = plan.zero_advantage
    of_screens = tensors.log_pi if tensors.log_pi_of_screens is None else tensors.log_pi_of_screens
    screened = plan.screens(replace(tensors, log_pi=of_screens).batch(plan.screen_rule, None, zero))
    left = screened.keep_tokens if plan.screens_first else tensors.mask
    batch = tensors.batch(plan.rule, left, zero)
    if plan.ratio_of is not None:
        batch = replace(batch, given=torch.where(left, plan.ratio_of(tensors), 0), layout=batch.layout.masked(left))
    weights, last = plan.weights(batch), plan.then(batch)
    alone, mean = weights.per_token, None
    if plan.normalise is not None:
        of = weights if plan.mean_of is None else plan.mean_of(batch)
        mean = _mean(of, of.per_token, plan.normalise)
        alone = alone / mean
    masked = screened.keep_tokens & last.keep_tokens
    if not plan.applied:
        return Outcome(masked.to(alone.dtype), masked, alone, mean, left, masked, batch)
    keep = weights.keep_tokens & masked
    per_token = torch.where(keep, alone * torch.where(last.keep_tokens, last.per_token, 0), 0)
    return Outcome(per_token, keep & (per_token != 0), alone, mean, left, masked, batch)


def _mean(weights: Weights, per_token: Tensor, over: Mean) -> Tensor:
    if over == "kept":
        return weights.log_normaliser().exp()
    total = weights.per_unit.sum()
    if over == "all":
        return total / weights.valid.sum().clamp(min=1)
    # Rows: the mean over rows of the mean over their tokens.
    return total / per_token.shape[0] if weights.unit == "sequence" else total / weights.layout.mask.sum()


def keep_infinite(plan: Plan) -> Plan:
    """A switch: infinite log ratios stay in, and so do the metrics' own rules for them."""
    return replace(plan, rule=as_it_comes, screen_rule=as_it_comes, metrics_as_they=True)


def count_empty_rows(plan: Plan) -> Plan:
    """A switch: metrics count a sequence with no token."""
    return replace(plan, empty_rows=True)
