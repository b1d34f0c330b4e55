"""Estimators: products of factors that turn a batch into one weight for each unit, and sums of weights that merge."""

import html
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from reweigh.batch import Batch
from reweigh.layout import Layout, may_look
from reweigh.levels import Level, Unit, folded, heads, log_ratio
from reweigh.transforms import Identity, Transform

Statistic = Callable[[Batch], Tensor]
Normalise = Literal["batch", "prompt"]


@dataclass(frozen=True)
class Factor:
    """One level, one transform, one statistic; and, for a gate, the sign of advantage that it applies to.

    Attributes:
        level: how token values become unit values.
        transform: how unit values become log-weights and keeps.
        of: the per-token statistic that the level folds.
        sign: +1 or -1 applies the factor only to tokens of that advantage sign, the others pass with weight 1; 0 is
            all.
        scale: multiplies the statistic before the level, so that -1 turns a bound from above into one from below.
    """

    level: Level
    transform: Transform
    of: Statistic = log_ratio
    sign: int = 0
    scale: float = 1.0

    def __repr__(self) -> str:
        """Write the factor as one would."""
        extra = "" if self.of is log_ratio else f", of={self.of.__name__}"
        extra += f", scale={self.scale:g}" if self.scale != 1 else ""
        extra += f", sign={self.sign:+d}" if self.sign else ""
        return f"{self.level.name.upper()} {self.transform}{extra}"


@dataclass(frozen=True)
class Estimator:
    """A product of factors: log-weights add, keeps AND. `Estimator()` is the unit of the product: naive.

    All factors read the original batch, so the order of a product never matters. Calling it on a `Batch` gives
    `Weights`; nothing is synchronised with the host and the weights are detached.

    Attributes:
        factors: what is multiplied.
        normalise: None, or the set over whose kept units the weights are divided by their mean.
    """

    factors: tuple[Factor, ...] = ()
    normalise: Normalise | None = None

    def __mul__(self, other: "Estimator") -> "Estimator":
        """Multiply; self-normalisation is not a factor, so it must come last.

        Raises:
            ValueError: if either side is self-normalised, or the other is no estimator.
        """
        check_estimator_kind("Estimator", "what is multiplied", other)
        if self.normalise or other.normalise:
            raise ValueError("Estimator: self-normalise last: write self_normalised(a * b)")
        return Estimator(self.factors + other.factors)

    @property
    def unit(self) -> Unit:
        """Find the finest unit of any factor, to which a weight belongs; a gate on a sign is per token."""
        units = {"token" if f.sign else f.level.unit for f in self.factors} or {"token"}
        return "token" if "token" in units else "turn" if "turn" in units else "sequence"

    @property
    def reads_batch(self) -> bool:
        """Tell whether a unit's weight depends on the others of the batch (normalised, fitted or sorted)."""
        return self.normalise is not None or any(f.transform.reads_batch for f in self.factors)

    def __call__(self, batch: Batch, log_normaliser: Tensor | None = None) -> "Weights":
        """Weigh the batch's units.

        Args:
            batch: the tokens.
            log_normaliser: log of the mean weight over kept units, 0-d or `[S]` nats, to divide by in place of this
                batch's own: what `log_normaliser` merged over micro-batches or ranks.

        Raises:
            ValueError: it is no batch.
        """
        if not isinstance(batch, Batch):  # type: ignore[reportUnnecessaryIsInstance] - of a caller without a type checker
            raise ValueError(
                f"Estimator: an estimator weighs a Batch, got {type(batch).__name__}\n"
                "hint: estimator(Batch.padded(log_pi, log_mu, mask)), or .packed, or .from_lists."
            )
        layout, unit = batch.layout, self.unit
        valid = layout.lengths > 0 if unit == "sequence" else layout.mask
        log_w = torch.zeros(valid.shape, dtype=batch.dtype, device=valid.device)
        keep, bounded = valid, torch.zeros_like(valid)
        for f, x in zip(self.factors, self._units(batch), strict=True):
            lw, k = f.transform(x, f.level.valid(layout))
            moved = (lw != x) & k if f.transform.moves_to_bound else None
            if f.level.unit == "sequence" and unit != "sequence":
                lw, k = layout.spread(lw), layout.spread(k)
                moved = None if moved is None else layout.spread(moved)
            if f.sign:
                gate = sign_gate(batch, f.sign)
                lw, k = torch.where(gate, lw, 0), k | ~gate
                moved = None if moved is None else moved & gate
            log_w, keep = log_w + lw, keep & k
            bounded = bounded if moved is None else bounded | moved
        weights = Weights(log_w, keep, bounded & keep, valid, unit, layout)
        if self.normalise is None:
            return weights
        shift = weights.log_normaliser(None if self.normalise == "batch" else _group(batch))
        shift = shift if log_normaliser is None else log_normaliser
        if shift.dim() and unit != "sequence":
            shift = layout.spread(shift)
        return Weights(log_w - shift, weights.keep, weights.bounded, valid, unit, layout)

    def _units(self, batch: Batch) -> list[Tensor]:
        """Fold each factor's statistic to the factor's level."""
        made = [folded(batch, f.of, f.level, f.scale) for f in self.factors]
        whole = [i for i, f in enumerate(self.factors) if f.level.unit == "sequence" and made[i] is None]
        others = [i for i, f in enumerate(self.factors) if f.level.unit != "sequence"]
        if others:  # values of the tokens' size come of it in any case, so the ratio is made once for all factors
            batch = batch.with_ratio()
        units: list[list[Tensor]] = [[] for _ in self.factors]
        # One value a sequence: nothing of the tokens' size is kept, so go part by part.
        for which, parts in ((others, [batch]), (whole, batch.parts() if whole else [])):
            for part in parts:
                # Factors often share a statistic, and a log ratio is computed anew at each call.
                part = part.with_ratio() if which else part
                values: dict[Statistic, Tensor] = {}
                for i in which:
                    f = self.factors[i]
                    if f.of not in values:
                        values[f.of] = f.of(part)
                    x = values[f.of]
                    units[i].append(f.level.fold(x if f.scale == 1 else x * f.scale, part.layout))
        rest = [values[0] if len(values) == 1 else torch.cat(values) if values else None for values in units]
        return [x for pair in zip(made, rest, strict=True) for x in pair if x is not None]


@dataclass(frozen=True, eq=False)
class Centre:
    """What a loss subtracts at each place so that a constant advantage moves nothing in the mean; see `centred`.

    Attributes:
        log_mass: `[..., k]`, nats: log of `mu_v w_v` of each candidate; -inf where the estimator drops it.
        log_tail: `[...]`, nats: the same of all other tokens together; None if there are no others.
        there: `[..., k]`, which candidates there are.
    """

    log_mass: Float[Tensor, "*tok k"]
    log_tail: Float[Tensor, "*tok"] | None
    there: Bool[Tensor, "*tok k"]

    @property
    def num_places(self) -> Tensor:
        """Count the tokens at whose places something is subtracted, 0-d."""
        return self.there.any(-1).sum()


@dataclass(frozen=True, eq=False)
class Weights:
    """One weight for each unit of a batch, and what was done to it. All detached.

    Attributes:
        log_w: nats; `[S]` if the unit is a sequence, else token-shaped.
        keep: units that take part.
        bounded: kept units whose ratio a `Clip`, `Truncate` or `TruncateAt` moved.
        valid: units that exist.
        unit: "token", "turn" or "sequence".
        layout: the batch's.
        centre: what a loss subtracts; None unless the estimator is `centred`.
    """

    log_w: Float[Tensor, "*unit"]
    keep: Bool[Tensor, "*unit"]
    bounded: Bool[Tensor, "*unit"]
    valid: Bool[Tensor, "*unit"]
    unit: Unit
    layout: Layout
    centre: Centre | None = None

    def __repr__(self) -> str:
        """Say in a line what the weights are; they are read on a CPU alone."""
        if not may_look(self.log_w):
            return f"Weights(by {self.unit}; {tuple(self.log_w.shape)} on {self.log_w.device})"
        kept = self.per_unit[self.once(self.keep)].double()
        said = f"by {self.unit}; {int(self.num_kept):,} of {int(self.num_units):,} kept"
        if len(kept):
            said += f"; mean {float(kept.mean()):.3g}, {float(kept.min()):.3g} to {float(kept.max()):.3g}"
        bounded = int(self.num_bounded)
        said += f"; {bounded:,} at a bound" if bounded else ""
        return f"Weights({said}{'' if self.centre is None else f'; {int(self.centre.num_places):,} places centred'})"

    def _repr_html_(self) -> str:
        """Say the same in a notebook."""
        return f"<code>{html.escape(repr(self))}</code>"

    @property
    def per_unit(self) -> Float[Tensor, "*unit"]:
        """The weight of each unit; 0 if it was dropped or does not exist."""
        return torch.where(self.keep, self.log_w.exp(), 0)

    @property
    def per_token(self) -> Float[Tensor, "*tok"]:
        """The weight that multiplies each token's loss term; 0 if dropped or off the mask."""
        w = self.per_unit
        return self.layout.spread_zeroed(w) if self.unit == "sequence" else w

    @property
    def keep_tokens(self) -> Bool[Tensor, "*tok"]:
        """Mark the tokens that are kept."""
        return self.layout.spread(self.keep) & self.layout.mask if self.unit == "sequence" else self.keep

    @property
    def num_units(self) -> Tensor:
        """Count the units that exist, 0-d."""
        return self.once(self.valid).sum()

    @property
    def num_kept(self) -> Tensor:
        """Count the units that are kept, 0-d."""
        return self.once(self.keep).sum()

    @property
    def num_bounded(self) -> Tensor:
        """Count the kept units whose ratio was moved to a bound, 0-d."""
        return self.once(self.bounded).sum()

    def log_normaliser(self, group: Tensor | None = None) -> Tensor:
        """`log(sum of weights / number)` over kept units, nats: what self-normalisation subtracts.

        Args:
            group: `[S]` integers: one normaliser a group, in place of one for the batch.

        Returns:
            0-d, or `[S]` if a group was given. 0 where no unit is kept.
        """
        one_each = self.once(self.keep)
        log_w = torch.where(one_each, self.log_w, -torch.inf)
        if group is None:
            total = torch.logsumexp(log_w.flatten().double(), 0)
            count = one_each.sum()
            return torch.where(count > 0, total - count.log(), 0).to(self.log_w.dtype)
        per_seq = self.unit == "sequence"
        top = log_w if per_seq else self.layout.max(log_w)
        same = (group[:, None] == group[None, :]).double()  # [S, S], so no value of group is an index
        if not len(group):  # no sequence: nothing to divide by
            return torch.zeros_like(top)
        top = torch.where(same.bool(), top[None, :], -torch.inf).amax(1)
        shift = torch.where(torch.isfinite(top), top, 0)
        scaled = (log_w - (shift if per_seq else self.layout.spread(shift))).exp()
        sums = scaled if per_seq else self.layout.sum(torch.where(one_each, scaled, 0))
        counts = one_each if per_seq else self.layout.sum(one_each.to(scaled.dtype))
        total, count = same @ sums.double(), same @ counts.double()
        return torch.where(count > 0, shift + (total / count).log(), 0).to(self.log_w.dtype)

    def once(self, units: Tensor) -> Tensor:
        """Mark each of some units once: a turn at its first token."""
        return units & heads(self.layout) if self.unit == "turn" else units


def weigh(
    level: Level, transform: Transform | None = None, of: Statistic = log_ratio, *, scale: float = 1.0
) -> Estimator:
    """Make an estimator of one factor: fold `of` (times `scale`) to `level`, then `transform`; the ratio if not given.

    Example:
        >>> from reweigh import SEQUENCE, Reject, weigh
        >>> weigh(SEQUENCE, Reject(0.5, 2.0))
        Estimator(factors=(SEQUENCE Reject(low=0.5, high=2.0),), normalise=None)
    """
    if not isinstance(level, Level):  # type: ignore[reportUnnecessaryIsInstance] - of a caller without a type checker
        hint = f"reweigh.{level.upper()}" if isinstance(level, str) else "reweigh.TOKEN, SEQUENCE, GEOMETRIC, TURN, ..."
        raise ValueError(f"weigh: level must be a Level, got {level!r}\nhint: {hint}")
    if not isinstance(transform, Transform | None):  # type: ignore[reportUnnecessaryIsInstance]
        raise ValueError(
            f"weigh: transform must be a Transform, got {transform!r}\nhint: Truncate(2.0), Reject(0.5, 2.0), ..."
        )
    return Estimator((Factor(level, Identity() if transform is None else transform, of, scale=scale),))


def self_normalised(estimator: Estimator, by: Normalise = "batch") -> Estimator:
    """Divide the weights by their mean over kept units, of the batch or of each prompt's group (`Batch.group`).

    The mean is over *kept* units and, with `log_normaliser`, over the global batch; a mean per micro-batch would make
    the result depend on how the batch was cut.

    Raises:
        ValueError: it is no estimator, or `by` is another word.
    """
    check_estimator_kind("self_normalised", "estimator", estimator)
    if by not in get_args(Normalise):
        raise ValueError(
            f"self_normalised: by must be {' or '.join(map(repr, get_args(Normalise)))}, got {by!r}\n"
            "hint: over a step of several micro-batches, hand the estimator their merged log_normaliser."
        )
    return replace(estimator, normalise=by)


def for_advantage(sign: int, estimator: Estimator) -> Estimator:
    """Apply the estimator only where the advantage has this sign; other tokens are kept with weight 1.

    Args:
        sign: +1 or -1. A token of advantage 0 has no gradient and passes.
        estimator: any product that is not self-normalised.

    Raises:
        ValueError: on another sign, a self-normalised estimator, or one that has a sign already.
    """
    check_estimator_kind("for_advantage", "estimator", estimator)
    if sign not in (-1, 1):
        raise ValueError(f"for_advantage: sign must be +1 or -1, got {sign}")
    if estimator.normalise:
        raise ValueError("for_advantage: self-normalise last: write self_normalised(for_advantage(sign, e))")
    if any(f.sign for f in estimator.factors):
        raise ValueError("for_advantage: the estimator has a factor with a sign already")
    return Estimator(tuple(replace(f, sign=sign) for f in estimator.factors))


def check_estimator_kind(where: str, name: str, x: object) -> None:
    """Refuse what is no estimator, with what it may have been meant to be."""
    if isinstance(x, Estimator):
        return
    if isinstance(x, str):
        hint = f"\nhint: reweigh.spec.parse({x!r}) reads estimators from text; or call it, as reweigh.seq_tis(2.0)."
    elif isinstance(x, Weights):
        hint = "\nhint: multiply estimators before they weigh a batch: (a * b)(batch)."
    elif callable(x):
        hint = f"\nhint: call it first: {getattr(x, '__name__', 'it')}(...)."
    else:
        hint = ""
    raise ValueError(f"{where}: {name} must be an Estimator, got {_short(x)}{hint}")


def _short(x: object) -> str:
    text = repr(x)
    return text if len(text) <= 60 else type(x).__name__


def check_weights(where: str, weights: object) -> None:
    """Refuse what is not the weights of a batch.

    Args:
        where: the function that was given it.
        weights: what it was given.

    Raises:
        ValueError: it is something else, with what to do.
    """
    if isinstance(weights, Weights):
        return
    hint = "an estimator called on a batch gives them: seq_tis(2.0)(batch)."
    if isinstance(weights, Estimator):
        hint = f"an estimator is yet to weigh the batch: {where}(..., estimator(batch), ...)."
    raise ValueError(f"{where}: weights must be Weights, got {_short(weights)}\nhint: {hint}")


def sign_gate(batch: Batch, sign: int) -> Tensor:
    """Mark the tokens whose advantage has this sign."""
    if batch.advantage is None:
        raise ValueError(
            "Estimator: a factor depends on the sign of the advantage and the batch has none.\n"
            "hint: pass advantage= to Batch.padded, packed or from_lists."
        )
    return batch.advantage * sign > 0


def _group(batch: Batch) -> Tensor:
    if batch.group is None:
        raise ValueError(
            "self_normalised: by='prompt' needs the prompt of each sequence and the batch has none.\n"
            "hint: pass group= ([S] integers, equal for responses to one prompt) to Batch.padded, packed or from_lists."
        )
    return batch.group


@dataclass(frozen=True, eq=False)
class Normaliser:
    """Sum and number of the kept weights, for a self-normalisation over micro-batches (`+`) and ranks (`all_reduce`).

    Attributes:
        shift: 0-d, nats: the largest log-weight; -inf if no unit is kept.
        total: 0-d: sum of `e^(log_w - shift)`.
        count: 0-d: kept units.

    Example:
        >>> import torch
        >>> from reweigh import Batch, seq_is, snis
        >>> from reweigh.estimators import Normaliser
        >>> full = lambda x: torch.full((2, 1), x)
        >>> parts = [Batch.padded(full(x), full(-2.0), full(1)) for x in (-1.0, -2.0)]
        >>> one, other = (Normaliser.of(seq_is()(part)) for part in parts)
        >>> weights = snis()(parts[0], (one + other).log)
        >>> round(float(weights.per_token[0, 0]), 3)  # e / ((e + e + 1 + 1) / 4)
        1.462
    """

    shift: Tensor
    total: Tensor
    count: Tensor

    @classmethod
    def of(cls, weights: Weights) -> "Normaliser":
        """Sums of the weights of an estimator *before* self-normalisation; all float64."""
        units = weights.once(weights.keep)
        log_w = torch.where(units, weights.log_w, -torch.inf).double().flatten()
        shift = torch.cat([log_w, log_w.new_full((1,), -torch.inf)]).max()
        return cls(shift, torch.exp(log_w - _finite(shift)).sum(), units.sum().double())

    def __add__(self, other: "Normaliser") -> "Normaliser":
        """Merge the sums of two sets of weights."""
        shift = torch.maximum(self.shift, other.shift)
        a, b = self.scaled(shift), other.scaled(shift)
        return Normaliser(shift, a + b, self.count + other.count)

    @property
    def log(self) -> Tensor:
        """`log(sum of weights / number)`, 0-d nats: what `estimator(batch, it)` subtracts. 0 if no unit is kept."""
        return torch.where(self.count > 0, _finite(self.shift) + (self.total / self.count).log(), 0)

    def scaled(self, shift: Tensor) -> Tensor:
        """Write the total with another shift, no smaller than its own."""
        return torch.where(torch.isfinite(self.shift), self.total * torch.exp(self.shift - shift), 0)


def _finite(shift: Tensor) -> Tensor:
    return torch.where(torch.isfinite(shift), shift, 0)
