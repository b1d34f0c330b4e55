"""Read a policy from YAML; every error names file, line and key."""
# pyright: reportUnknownParameterType=false, reportMissingModuleSource=false
# pyyaml ships no types.

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, get_args

from reweigh.audit.slices import BYS
from reweigh.gate.numbers import KINDS, LEVEL_NAMES
from reweigh.gate.policy import RULES, Bound, Policy, Rule, Severity, Undecided, known

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
        found: dict[str, _Value] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if key in found:
                at = key_node.start_mark.line + 1
                raise ValueError(
                    f"{file}, line {at}: {key} stands twice, first in line {found[key].line}\nhint: keep one of them."
                )
            value = _value(value_node, file, inner)
            found[key] = _Value(value.data, key_node.start_mark.line + 1, file)
        return _Value(found, line, file)
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
    found: list[Bound] = []
    for one in bounds.data:
        found += _bounds(one)
    return Policy(tuple(found), source=file, **words)  # type: ignore[arg-type] # checked by Policy


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
    found: list[Bound] = []
    for rule in rules:
        found.append(
            Bound(rule=rule, limit=_limit(entry[rule], rule), by=by, label=label, place=entry[rule].place, **words)  # type: ignore[arg-type]
        )
    return found


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
