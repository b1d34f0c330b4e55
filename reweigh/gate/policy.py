"""A policy: bounds on numbers of an audit, read from YAML by line and key, or drafted from a good run."""
# pyright: reportUnknownParameterType=false, reportMissingModuleSource=false

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

from reweigh.audit import By
from reweigh.gate.numbers import INSTEAD, KINDS, LEVEL_NAMES, LevelName, Run
from reweigh.guard import finite
from reweigh.scan.cuts import BYS
from reweigh.stats.intervals import Number

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
        if not finite(limit):
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


# pyyaml ships no types.


POLICY_VERSION = 1
_POLICY_KEYS = ("version", "undecided", "refused", "bounds")
_BOUND_KEYS = ("number", "level", "slice", *RULES, "severity", "reason", "undecided")
_NAMES: Mapping[str, tuple[str, ...]] = {
    "number": tuple(KINDS),
    "level": LEVEL_NAMES,
    "severity": get_args(Severity),
    "undecided": get_args(Undecided),
}
_EXAMPLE = "hint: - {number: kl_k3, level: token, at_most: 0.002, reason: more is a bug}"


@dataclass(frozen=True)
class _Value:
    """One value of the file, and where it stands."""

    data: Any  # str, int, float, bool, None, or list and dict of values
    line: int
    file: str

    @property
    def place(self) -> str:
        return f"{self.file}, line {self.line}"


def read_policy(path: str | PathLike[str]) -> Policy:
    """Read a policy file: `version`, `undecided`, `refused`, and a list of `bounds` (docs/gate.md).

    Raises:
        ValueError: no YAML, an unknown key (with the nearest known one), a value of another type, a bound that no data
            could break or keep; with file and line.
        FileNotFoundError: nothing is there.
    """
    import yaml

    file = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise ValueError(f"{file}: not UTF-8: {e}\nhint: examples/gate.yaml is a policy that works.") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        where = file if mark is None else f"{file}, line {mark.line + 1}"
        said = getattr(e, "problem", None) or str(e).splitlines()[0]
        raise ValueError(f"{where}: not YAML: {said}\nhint: examples/gate.yaml is a policy that works.") from None
    if node is None:
        raise ValueError(f"{file}: empty\nhint: `reweigh gate --init --policy {file} RECORDS` writes a policy.")
    return _policy(_value(node, file, frozenset()), file)


def _value(node: Any, file: str, open_nodes: frozenset[int]) -> _Value:
    """The node with its lines; keys that stand twice are refused, as YAML would keep the last one in silence."""
    import yaml

    line = node.start_mark.line + 1
    if id(node) in open_nodes:
        raise ValueError(f"{file}, line {line}: an alias holds itself\nhint: write the value out.")
    inner = open_nodes | {id(node)}
    if isinstance(node, yaml.MappingNode):
        entries: dict[str, _Value] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if key in entries:
                at = key_node.start_mark.line + 1
                raise ValueError(
                    f"{file}, line {at}: {key} stands twice, first in line {entries[key].line}\nhint: keep one of them."
                )
            value = _value(value_node, file, inner)
            entries[key] = _Value(value.data, key_node.start_mark.line + 1, file)
        return _Value(entries, line, file)
    if isinstance(node, yaml.SequenceNode):
        return _Value([_value(one, file, inner) for one in node.value], line, file)
    try:
        return _Value(yaml.constructor.SafeConstructor().construct_object(node), line, file)
    except (yaml.YAMLError, ValueError) as e:
        raise ValueError(
            f"{file}, line {line}: not a value: {str(e).splitlines()[0]}\nhint: quote it, if it is text."
        ) from None


def _policy(value: _Value, file: str) -> Policy:
    top = _mapping(value, _POLICY_KEYS, "the policy", f"version: {POLICY_VERSION}, and bounds: with a list")
    version = top.get("version")
    if version is None or type(version.data) is not int or version.data != POLICY_VERSION:
        got = "nothing" if version is None else repr(version.data)
        where = value if version is None else version
        raise ValueError(f"{where.place}: version must be {POLICY_VERSION}, got {got}\nhint: version: {POLICY_VERSION}")
    bounds = top.get("bounds")
    if bounds is None or not isinstance(bounds.data, list):
        where = value if bounds is None else bounds
        raise ValueError(f"{where.place}: bounds must be a list\n{_EXAMPLE}")
    words = {key: _text(top[key], key) for key in ("undecided", "refused") if key in top}
    listed: list[Bound] = []
    for one in bounds.data:
        listed += _bounds(one)
    return Policy(tuple(listed), source=file, **words)  # type: ignore[arg-type] # checked by Policy


def _bounds(value: _Value) -> list[Bound]:
    """The bounds of one entry: one for each rule in it."""
    entry = _mapping(value, _BOUND_KEYS, "a bound", _EXAMPLE.removeprefix("hint: "))
    for key in ("number", "level"):
        if key not in entry:
            raise ValueError(f"{value.place}: a bound needs a {key}\n{_EXAMPLE}")
    rules = [rule for rule in RULES if rule in entry]
    if not rules:
        raise ValueError(f"{value.place}: a bound needs a limit: one of {', '.join(RULES)}\n{_EXAMPLE}")
    words = {
        key: _text(entry[key], key) for key in ("number", "level", "severity", "reason", "undecided") if key in entry
    }
    by, label = _slice(entry["slice"]) if "slice" in entry else (None, None)
    for key, names in _NAMES.items():  # here, since a bound does not know where its words stand
        if key in words:
            known(words[key], names, key, entry[key].place)
    one_a_rule: list[Bound] = []
    for rule in rules:
        one_a_rule.append(
            Bound(rule=rule, limit=_limit(entry[rule], rule), by=by, label=label, place=entry[rule].place, **words)  # type: ignore[arg-type]
        )
    return one_a_rule


def _slice(value: _Value) -> tuple[Any, str]:
    example = 'slice: {env: math}, or {env: "*"} for each one'
    data = _mapping(value, BYS, "a slice", example)
    if len(data) != 1:
        raise ValueError(f"{value.place}: a slice has one key, got {len(data)}\nhint: {example}")
    by, label = next(iter(data.items()))
    if isinstance(label.data, bool) or not isinstance(label.data, str | int):
        raise ValueError(f"{label.place}: {by} must be a label, got {label.data!r}\nhint: {example}; quote it.")
    return by, str(label.data)


def _limit(value: _Value, rule: Rule) -> float:
    if rule == "no_worse_than_baseline":
        data = _mapping(value, ("factor",), rule, "{factor: 1.2}")
        if "factor" not in data:
            raise ValueError(f"{value.place}: {rule} needs a factor\nhint: {rule}: {{factor: 1.2}}")
        return _number(data["factor"], "factor")
    return _number(value, rule)


def _number(value: _Value, key: str) -> float:
    data = value.data
    if isinstance(data, str):  # YAML 1.1 takes 1e-3 for a word
        try:
            return float(data)
        except ValueError:
            pass
    elif type(data) in (int, float):
        return float(data)
    raise ValueError(f"{value.place}: {key} must be a number, got {_shown(data)}\nhint: {key}: 0.002")


def _text(value: _Value, key: str) -> str:
    if not isinstance(value.data, str):
        raise ValueError(f"{value.place}: {key} must be text, got {_shown(value.data)}\nhint: quote it.")
    return value.data


def _mapping(value: _Value, keys: tuple[str, ...], what: str, example: str) -> Mapping[str, _Value]:
    data = value.data
    if not isinstance(data, dict):
        raise ValueError(f"{value.place}: {what} must have keys, got {_shown(data)}\nhint: {example}")
    for key, one in data.items():
        known(key, keys, f"key of {what}" if what != "the policy" else "key", one.place)
    return data


def _shown(data: Any) -> str:
    return "a list" if isinstance(data, list) else "a mapping" if isinstance(data, dict) else repr(data)


# A run of the same size from the same engine has an estimate within sqrt(2) half-widths of this one, 19 times of 20,
# and then half a width more to the end of its own interval: that end is what the limit must let pass.
HEADROOM = 1 + math.sqrt(2)  # half-widths
_EDGE = 0.5  # share of a bounded number's range; a limit beyond it says less than nothing of a gap


@dataclass(frozen=True)
class _Line:
    """One number that a first policy bounds: why, and what others say of it."""

    number: str
    level: LevelName
    reason: str
    others: str
    severity: str = "fail"


_LINES = (
    _Line(
        "mean_ratio",
        "token",
        "pi/mu must be 1 on average: beyond this the log-probs are not of what was sampled",
        "it is 1 by definition, whatever the gap; see docs/audit.md",
    ),
    _Line(
        "kl_k3",
        "token",
        "the gap between sampler and trainer has grown",
        "NeMo-RL's guide wants less than 0.001 nats a token; tinker-cookbook and prime-rl less than 0.01",
    ),
    _Line(
        "mean_abs",
        "token",
        "the typical token is further off than it was",
        "no figure is in common use; a few extreme tokens move it less than they move the KL",
    ),
    _Line(
        "prob_gap",
        "token",
        "probabilities differ by more than they did",
        "verl's FAQ: below 0.005 is fine, above 0.01 something is wrong with the engine",
    ),
    _Line(
        "beyond_2x",
        "token",
        "more tokens are off by a factor of 2",
        "AReaL counts the same tokens, |log ratio| over log 2, as extreme",
    ),
    _Line(
        "mean_abs",
        "sequence",
        "whole responses are further off than they were",
        "no figure is in common use; it grows with the length of responses",
        "warn",
    ),
    _Line(
        "ess_fraction",
        "sequence",
        "importance sampling would leave fewer sequences effective",
        "verl's guide: over 0.5 is good, under 0.3 is not",
        "warn",
    ),
)
_HISTORICAL = ("kl_k3", "mean_abs")
# Two runs: their estimates differ by sqrt(2) half-widths 19 times of 20, and so wide is the interval of the difference.
HEADROOM_OF_TWO = 2 * math.sqrt(2)  # half-widths, of the logarithm


def draft(run: Run, *, historical: bool) -> str:
    """A commented policy that a run as good as this one passes.

    Args:
        run: a good run.
        historical: whether bounds against a baseline are live; commented out otherwise.

    Raises:
        ValueError: no bound can be drawn from so little.
    """
    bounds = [text for line in _LINES if (text := _bound(line, run))]
    if not any(text.startswith("  - ") or "\n  - " in text for text in bounds):
        raise ValueError(
            f"{run.source}: too little to draw bounds from: no number has an interval that leaves headroom\n"
            "hint: give more sequences, of two prompts at least."
        )
    sequences = run.find("token", None, None)
    size = 0 if sequences is None else sequences.sequences
    head = [
        "# A policy for `reweigh gate`. Every limit is what the run below measured, plus the headroom that its own",
        f"# intervals ask for: {HEADROOM:.2f} half-widths, so that a run of the same size from the same engine passes.",
        "# With more sequences the intervals are narrower and the limits can be tighter.",
        f"# run: {_comment(run.source)}, {size:,} sequences; the audit says {_comment(run.verdict)}",
        "version: 1",
        "undecided: warn # pass, warn or fail: when the interval straddles the limit",
        "refused: fail   # warn or fail: when the data cannot tell the number",
        "bounds:",
    ]
    return "\n".join([*head, *bounds, *_against(run, historical)]) + "\n"


def _bound(line: _Line, run: Run) -> str:
    cut = run.find(line.level, None, None)
    number = None if cut is None else cut.numbers.get(line.number)
    if cut is None or number is None:
        return ""
    measured = "refused"
    if not (number.value is None or number.low is None or number.high is None):
        measured = f"this run: {number.value:.3g} [{number.low:.3g}, {number.high:.3g}], {cut.n:,} {line.level}s"
    limits = list(_limits(line.number, number))
    if not limits:
        why = number.refused or "its interval leaves no room: more sequences would"
        return f"  # no bound on {line.level} {line.number}: {_comment(why)}\n"
    return "\n".join(
        [
            f"  - number: {line.number} # {measured}",
            f"    level: {line.level}",
            *(f"    {rule}: {limit:g}" for rule, limit in limits),
            f"    severity: {line.severity}",
            f'    reason: "{line.reason}"',
            f"    # what others use: {line.others}",
            "",
        ]
    )


def _limits(name: str, number: Number) -> Iterator[tuple[str, float]]:
    kind, value, low, high = KINDS[name], number.value, number.low, number.high
    if value is None or low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return
    if kind.worse == "either":  # around 1, the one value that it may have
        room = abs(value - 1) + HEADROOM * max(high - value, value - low)
        if 0 < room < _EDGE:
            yield "at_least", _rounded(1 - room, up=False)
            yield "at_most", _rounded(1 + room, up=True)
    elif kind.worse == "more":
        limit = _rounded(value + HEADROOM * (high - value), up=True)
        if limit < (kind.high * _EDGE if math.isfinite(kind.high) else math.inf):
            yield "at_most", limit
    else:
        limit = _rounded(value - HEADROOM * (value - low), up=False)
        if limit > kind.low:
            yield "at_least", limit


def _against(run: Run, historical: bool) -> list[str]:
    cut = run.find("token", None, None)
    lines = [
        "  # Against a baseline: `reweigh gate RECORDS --policy FILE --baseline BASE.json`. Both intervals count.",
        f"  # The factor is e to {HEADROOM_OF_TWO:.2f} half-widths of this run's logarithm: two runs of its size pass.",
    ]
    for name in _HISTORICAL:
        number = None if cut is None else cut.numbers.get(name)
        factor = None if number is None else _factor(number)
        if factor is None:
            lines.append(f"  # no factor for {name}: its interval reaches 0: more sequences would help")
            continue
        entry = [
            f"  - number: {name}",
            "    level: token",
            f"    no_worse_than_baseline: {{factor: {factor:g}}}",
            '    reason: "the gap has grown since the baseline"',
        ]
        lines += entry if historical else [f"  #{line[1:]}" for line in entry]
    return lines


def _factor(number: Number) -> float | None:
    value, low, high = number.value, number.low, number.high
    if value is None or low is None or high is None or low <= 0 or not math.isfinite(high):
        return None
    half = max(math.log(high / value), math.log(value / low))
    return math.ceil(100 * max(1.01, math.exp(HEADROOM_OF_TWO * half))) / 100


def _rounded(x: float, *, up: bool) -> float:
    """To two significant digits of the distance from 1 (near 1) or from 0, away from what was measured."""
    base = 1.0 if 0.5 < x < 2 else 0.0
    rest = x - base
    if rest == 0:
        return x
    step = 10.0 ** (math.floor(math.log10(abs(rest))) - 1)
    count = rest / step
    return round(base + step * (math.ceil(count - 1e-9) if up else math.floor(count + 1e-9)), 12)


def _comment(words: str) -> str:
    return " ".join(words.split())
