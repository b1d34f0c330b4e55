"""A policy: bounds on numbers of an audit, each of a kind that some data can break and some can keep."""

import math
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, get_args

from reweigh.audit import By
from reweigh.gate.numbers import INSTEAD, KINDS, LEVEL_NAMES, LevelName

Rule = Literal["at_most", "at_least", "no_worse_than_baseline", "rise_at_most", "fall_at_most"]
RULES: tuple[Rule, ...] = get_args(Rule)
HISTORICAL: tuple[Rule, ...] = ("no_worse_than_baseline", "rise_at_most", "fall_at_most")
Severity = Literal["warn", "fail"]
Undecided = Literal["pass", "warn", "fail"]
EACH = "*"  # as a label: every slice there is


@dataclass(frozen=True)
class Bound:
    """One bound on one number.

    Attributes:
        number: its name, one of `reweigh.gate.numbers.KINDS`.
        level: "token", "sequence" or "turn".
        rule: "at_most" or "at_least" a limit; "no_worse_than_baseline" by more than a factor; "rise_at_most" or
            "fall_at_most" from the baseline by an amount.
        limit: in the number's unit; a factor of at least 1 for "no_worse_than_baseline".
        by: what to cut the records by; None for all of them.
        label: which slice, as `reweigh audit --by` calls it; "*" for each of them.
        severity: what a broken bound comes to.
        reason: why there is such a bound, for the person who reads that it is broken.
        undecided: what it comes to if the interval straddles the limit; the policy's choice if None.
        place: file and line, for messages.

    Raises:
        ValueError: no such number, level or rule; a limit that no data could break, or that none could keep.

    Example:
        >>> Bound("kl_k3", "token", "at_most", 0.002).text
        'token kl_k3 at most 0.002'
        >>> Bound("tv", "sequence", "at_most", 1.0)
        Traceback (most recent call last):
        ValueError: Bound: no data could break it: tv is never over 1, and may be at most 1
        hint: lower the limit, or leave the bound out.
    """

    number: str
    level: LevelName
    rule: Rule
    limit: float
    by: By | None = None
    label: str | None = None
    severity: Severity = "fail"
    reason: str = ""
    undecided: Undecided | None = None
    place: str = "Bound"

    def __post_init__(self) -> None:
        """Refuse what cannot be decided."""
        known(self.number, tuple(KINDS), "number", self.place)
        for name, value, all_of in (
            ("level", self.level, LEVEL_NAMES),
            ("rule", self.rule, RULES),
            ("severity", self.severity, get_args(Severity)),
            ("undecided", self.undecided, (None, *get_args(Undecided))),
            ("slice", self.by, (None, *get_args(By))),
        ):
            if value not in all_of:
                known(str(value), tuple(x for x in all_of if x is not None), name, self.place)
        if (self.by is None) != (self.label is None):
            raise ValueError(f'{self.place}: a slice needs both what it is cut by and its label\nhint: {{env: "math"}}')
        self._check_level()
        self._check_limit()

    @property
    def cut(self) -> str:
        """`token`, or `token, env math`."""
        return self.level if self.by is None else f"{self.level}, {self.by} {self.label}"

    @property
    def text(self) -> str:
        """The bound in words."""
        rules: dict[Rule, str] = {
            "at_most": f"at most {self.limit:g}",
            "at_least": f"at least {self.limit:g}",
            "no_worse_than_baseline": f"no worse than {self.limit:g} times the baseline",
            "rise_at_most": f"at most {self.limit:g} over the baseline",
            "fall_at_most": f"at most {self.limit:g} below the baseline",
        }
        where = "" if self.by is None else f" of {self.by} {'each' if self.label == EACH else self.label}"
        return f"{self.level} {self.number}{where} {rules[self.rule]}"

    def _check_level(self) -> None:
        levels = KINDS[self.number].levels
        if self.level not in levels:
            raise ValueError(
                f"{self.place}: {self.number} is a number of the {' and '.join(levels)} level, got {self.level}\n"
                f"hint: level: {levels[0]}"
            )
        sliced = LEVEL_NAMES if self.by is None else ("token",) if self.by == "position" else ("token", "sequence")
        if self.level not in sliced:
            raise ValueError(
                f"{self.place}: slices by {self.by} have the {' and '.join(sliced)} level only, got {self.level}\n"
                f"hint: level: {sliced[-1]}"
            )

    def _check_limit(self) -> None:
        kind, limit = KINDS[self.number], self.limit
        if not math.isfinite(limit):
            raise ValueError(f"{self.place}: {self.rule} must be a finite number, got {limit}\nhint: write the limit.")
        if self.rule in HISTORICAL:
            self._check_historical()
            return
        up = self.rule == "at_most"
        end, other = (kind.high, kind.low) if up else (kind.low, kind.high)
        over, under = ("over", "under") if up else ("under", "over")
        move = "lower" if up else "raise"
        back = "raise" if up else "lower"
        said = f"and may be {'at most' if up else 'at least'} {limit:g}"
        if (limit >= end) if up else (limit <= end):
            raise ValueError(
                f"{self.place}: no data could break it: {self.number} is never {over} {end:g}, {said}\n"
                f"hint: {move} the limit, or leave the bound out."
            )
        if (limit < other) if up else (limit > other):
            raise ValueError(
                f"{self.place}: no data could keep it: {self.number} is never {under} {other:g}, {said}\n"
                f"hint: {back} the limit."
            )

    def _check_historical(self) -> None:
        kind, limit = KINDS[self.number], self.limit
        if kind.exact:
            raise ValueError(
                f"{self.place}: {self.number} is a fact about the very records, and other records have another\n"
                f"hint: bound it by {'at_least' if kind.worse == 'less' else 'at_most'}."
            )
        if self.rule == "no_worse_than_baseline":
            if not kind.scale:
                raise ValueError(
                    f"{self.place}: a multiple of {self.number} says nothing: it can be "
                    f"{'too large and too small' if kind.worse == 'either' else 'negative'}\n"
                    "hint: rise_at_most, fall_at_most, or absolute bounds."
                )
            if limit < 1:
                raise ValueError(
                    f"{self.place}: the factor must be at least 1, got {limit:g}: the baseline itself would break it\n"
                    "hint: 1.2 lets it be a fifth worse."
                )
        elif limit < 0:
            raise ValueError(
                f"{self.place}: {self.rule} must be at least 0, got {limit:g}: the baseline itself would break it\n"
                "hint: give the change that is still good."
            )


@dataclass(frozen=True)
class Policy:
    """Bounds, and what is made of those that the data cannot decide.

    Attributes:
        bounds: at least one, none twice.
        undecided: what an interval that straddles its limit comes to.
        refused: what a number comes to that the data cannot tell; never a pass.
        source: the file, for messages.

    Raises:
        ValueError: no bound, or one bound twice.
    """

    bounds: tuple[Bound, ...]
    undecided: Undecided = "warn"
    refused: Severity = "fail"
    source: str = "Policy"

    def __post_init__(self) -> None:
        """Refuse a policy that would pass everything."""
        for name, value, all_of in (
            ("undecided", self.undecided, get_args(Undecided)),
            ("refused", self.refused, get_args(Severity)),
        ):
            if value not in all_of:
                known(str(value), all_of, name, self.source)
        if not self.bounds:
            raise ValueError(f"{self.source}: there are no bounds: everything would pass\nhint: `reweigh gate --init`")
        seen: dict[tuple[object, ...], Bound] = {}
        for bound in self.bounds:
            key = (bound.number, bound.level, bound.rule, bound.by, bound.label)
            if key in seen:
                raise ValueError(
                    f"{bound.place}: {bound.text}: {seen[key].place} bounds the same ({seen[key].limit:g})\n"
                    "hint: keep one of them."
                )
            seen[key] = bound

    @property
    def by(self) -> tuple[By, ...]:
        """What records must be cut by."""
        return tuple(dict.fromkeys(b.by for b in self.bounds if b.by is not None))

    @property
    def historical(self) -> tuple[Bound, ...]:
        """Bounds that need a baseline."""
        return tuple(b for b in self.bounds if b.rule in HISTORICAL)


def known(name: str, names: tuple[str, ...], what: str, place: str) -> None:
    """Refuse a name that is none of `names`.

    Raises:
        ValueError: with the nearest of them.
    """
    if name in names:
        return
    if what == "number" and name in INSTEAD:
        raise ValueError(f"{place}: {name} cannot be bounded\nhint: {INSTEAD[name]}.")
    close = get_close_matches(name, names, 3, 0.6)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(names)}."
    raise ValueError(f"{place}: there is no {what} {name!r}\nhint: {hint}")
