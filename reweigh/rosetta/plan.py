"""A set of options as a composition: what multiplies the loss, what drops, in which order, of which two policies."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any, Literal

import torch
from torch import Tensor

from reweigh.batch import Batch
from reweigh.estimators import Estimator, Factor, Statistic, Weights
from reweigh.layout import Padded
from reweigh.levels import WORST, k1, log_ratio, prob_diff, prob_gap, signed_binary_kl
from reweigh.rosetta.parts import (
    NanPasses,
    OrNan,
    Rule,
    as_it_comes,
    fold_of_ratio,
    prob_diff_from_probs,
    prob_gap_from_probs,
    signed_binary_kl_from_probs,
)

Mean = Literal["kept", "all", "rows"]
Field = Literal["log_pi", "log_mu", "log_live"]
Over = Literal["tokens", "means", "sums", "sums_of_width", "row_means", "row_sums", "sum"]
_ABOUT_ZERO = 1e-8  # of verl and of slime's helper
_ONE = Estimator()  # weighs everything 1


class RefusedError(ValueError):
    """A combination of options, or a batch, that the framework refuses or fails on."""


def unknown_word(framework: str, name: str, value: Any, words: Iterable[str], null: bool = False) -> RefusedError:
    """Say that a value is none of an option's, with the nearest that is."""
    known = [*words]
    nearest = max(known, key=lambda w: SequenceMatcher(None, str(value).lower(), w.lower()).ratio())
    every = f"{', '.join(known)} or null" if null else ", ".join(known)
    like = f"the nearest is {nearest}; " if value is not None else ""
    return RefusedError(f"{framework}: no {name} {value!r}: it must be {every}\nhint: {like}nothing is known of others")


@dataclass(frozen=True)
class Options:
    """Options as they were given, over the framework's defaults.

    `options[name]` is the value that holds; `name in options` and `options.get(name)` are of what was given alone.

    Attributes:
        framework: its name, for what it refuses.
        given: by name.
        defaults: of every option that the framework has.
        values: the words that an option takes, of those that take words.
    """

    framework: str
    given: Mapping[str, Any]
    defaults: Mapping[str, Any]
    values: Mapping[str, tuple[str, ...]]

    def __getitem__(self, name: str) -> Any:
        """Give the value given, or the default."""
        return self.given[name] if name in self.given else self.defaults[name]

    def __contains__(self, name: str) -> bool:
        """Tell whether it was given."""
        return name in self.given

    def get(self, name: str, otherwise: Any = None) -> Any:
        """Give the value given, or `otherwise`, whatever the default is."""
        return self.given.get(name, otherwise)

    def word(self, name: str) -> Any:
        """Give the value of an option that takes words.

        Raises:
            RefusedError: if it is none of them; None is one where it is the default.
        """
        value, words = self[name], self.values[name]
        if value in words or (value is None and self.defaults[name] is None):
            return value
        raise unknown_word(self.framework, name, value, words, self.defaults[name] is None)


@dataclass(frozen=True)
class Plan:
    """The work of an option on the loss, as compositions of ours.

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
        """Change each factor of the plan."""
        parts = {
            name: Estimator(tuple(map(change, e.factors)), e.normalise)
            for name, e in (("weights", self.weights), ("screens", self.screens), ("then", self.then))
        }
        return replace(self, **parts)

    def flagged(self, *flags: str) -> "Plan":
        """Switch these flags on."""
        return replace(self, flags=self.flags | set(flags))


@dataclass(frozen=True, eq=False)
class Tensors:
    """Two log-probs of the same tokens `[S, T]`, a mask, and an advantage for each sequence.

    `log_old` is the trainer's own log-prob from before the update where `log_pi` is another one,
    `log_pi_of_screens` the policy that screens look at where it is not `log_pi`, and `slots` those that a framework of
    rows without padding has, all if None.
    """

    log_pi: Tensor
    log_mu: Tensor
    mask: Tensor
    advantage: Tensor
    log_old: Tensor | None = None
    log_pi_of_screens: Tensor | None = None
    slots: Tensor | None = None

    @property
    def masked_slots(self) -> Tensor:
        """Slots that are there and not of the mask."""
        return ~self.mask if self.slots is None else self.slots & ~self.mask

    @property
    def log_ratio(self) -> Tensor:
        """`log pi - log mu` as it comes, infinities included."""
        return self.log_pi - self.log_mu

    def batch(self, rule: Rule | None = None, mask: Tensor | None = None, zero_advantage: int = 0) -> Batch:
        """Make a batch; with a rule, one whose log ratios are what the rule makes of them and that no token leaves."""
        mask = self.mask if mask is None else mask
        advantage = torch.where(self.advantage == 0, float(zero_advantage), self.advantage)
        turn = (~self.mask).cumsum(-1)  # a run of tokens of the mask is a turn, as far as a mask can tell
        if rule is None:
            return Batch.padded(self.log_pi, self.log_mu, mask, advantage=advantage, turn=turn, check=False)
        raw = self.log_ratio
        spread = advantage[:, None].expand(raw.shape)
        lost = self.mask & ~mask & ~torch.isfinite(raw)
        log_ratio = torch.where(mask, rule(raw), 0)
        return Batch(self.log_pi, self.log_mu, Padded(mask, turn), spread, None, lost, log_ratio)


@dataclass(frozen=True, eq=False)
class Outcome:
    """The result of a plan on a batch.

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
    """Compute the weights and keeps of a plan."""
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
        if plan.normalise != "kept":  # as frameworks have it: by a mean of about 0, or of NaN, nothing is divided
            mean = torch.where(mean > _ABOUT_ZERO, mean, 1)
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


@dataclass(frozen=True)
class Loss:
    """A framework's loss: which of ours it is, and its constants.

    Attributes:
        kind: `ppo_clip`, `cispo`, `gspo` or `policy_gradient`; `ratio` is `ppo_clip` without a clip: `-w r A`, with
            gradient through r.
        live: the policy with gradient.
        centre: the policy that its ratio is divided by.
        low: clip below 1.
        high: clip above 1.
        dual: dual clip, or None.
        level: of the loss's own ratio, where the kind does not say: a token's, or the geometric mean of the sequence's.
        slope: where the ratio of a sequence has its gradient: on each token `own`, by the token's weight, or through
            the `mean`, so that a token that weighs nothing has the gradient of its sequence's others.
        over: what the sum is divided by: tokens, sequences with a token (of means or sums over their tokens, or of sums
            over the padded length), all rows (of means or sums), or nothing.
        survivors: whether tokens and sequences are counted after screens.
        mean_of_kept: whether the ratio of a sequence is the mean over the tokens that screens left.
        penalty: coefficient of a squared log ratio that is added, over all tokens of the mask; None if it has no such.
        clamp: the framework's own clamp of the live log ratio, nats; read by a quirk.
        scale: multiplies the advantage.
    """

    kind: Literal["ppo_clip", "cispo", "gspo", "policy_gradient", "ratio"]
    live: Field = "log_live"
    centre: Field = "log_pi"
    low: float = 0.2
    high: float = 0.2
    dual: float | None = None
    level: Literal["token", "sequence"] = "token"
    slope: Literal["own", "mean"] = "own"
    over: Over = "tokens"
    survivors: bool = False
    mean_of_kept: bool = False
    penalty: float | None = None
    clamp: float | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Reading:
    """A set of options, read: a plan, of which two policies, and inside which loss.

    Attributes:
        plan: what multiplies and drops.
        pi: the policy on top of the ratio.
        mu: the policy below.
        loss: the loss around the weights, if the options say.
        notes: what a plan cannot say.
        screen_pi: the policy on top in screens, if it is another one than in weights.
        inside: whether the framework's loss does it all inside, so that no mask or weight of its own shows it.
    """

    plan: Plan
    pi: Field = "log_pi"
    mu: Field = "log_mu"
    loss: Loss | None = None
    notes: tuple[str, ...] = ()
    screen_pi: Field | None = None
    inside: bool = False


@dataclass(frozen=True, eq=False)
class Situation:
    """All that a quirk may depend on."""

    options: Options
    tensors: Tensors
    reading: Reading


Apply = Callable[[Plan, Situation], Plan]
"""A quirk's switch: the plan with the quirk in it. Raises `RefusedError` where the framework fails."""


# Switches that several frameworks share, under the names of their quirks.


def infinite_kept(plan: Plan, _: Situation) -> Plan:
    """Keep infinite log ratios, and the metrics' own rules for them."""
    return replace(plan, rule=as_it_comes, screen_rule=as_it_comes, metrics_as_they=True)


def empty_rows_count(plan: Plan, _: Situation) -> Plan:
    """Count a sequence with no token in metrics."""
    return replace(plan, empty_rows=True)


def loss_clamps_ratio(plan: Plan, _: Situation) -> Plan:
    """Clamp the loss's own log ratio."""
    return plan.flagged("clamp_live")


def infinity_times_zero(plan: Plan, _: Situation) -> Plan:
    """Multiply by masks, in folds to sequences and in the loss: what is masked and infinite becomes NaN there."""

    def change(f: Factor) -> Factor:
        if f.level.unit != "sequence" or f.level is WORST or f.of not in (log_ratio, k1, fold_of_ratio):
            return f
        # A mean of k1 is asked whether it is over a bound, which NaN is not.
        return replace(f, of=OrNan(f.of), transform=NanPasses(f.transform) if f.of is k1 else f.transform)

    return multiplied_out(plan.mapped(change), _).flagged("folds_multiply")


def multiplied_out(plan: Plan, _: Situation) -> Plan:
    """Compute the loss by multiplying with weights and masks, as it is written: 0 times infinity is NaN."""
    return plan.flagged("multiplied_out")


SWITCHES: Mapping[str, Apply] = {
    f.__name__: f for f in (infinite_kept, empty_rows_count, loss_clamps_ratio, infinity_times_zero, multiplied_out)
}


_FROM_PROBABILITIES: Mapping[Statistic, Statistic] = {
    prob_gap: prob_gap_from_probs,
    prob_diff: prob_diff_from_probs,
    signed_binary_kl: signed_binary_kl_from_probs,
}


def probabilities_as_they_are(plan: Plan) -> Plan:
    """Take statistics of probabilities from the probabilities themselves, one of which may be 0."""
    return swapped(plan, _FROM_PROBABILITIES)


def swapped(plan: Plan, statistics: Mapping[Statistic, Statistic]) -> Plan:
    """Replace statistics of the plan's factors."""

    def change(f: Factor) -> Factor:
        return replace(f, of=statistics.get(f.of, f.of))

    return plan.mapped(change)
