"""Read a framework's configuration, say what it computes, and find the options of another that come nearest."""

import difflib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any, cast

from reweigh.estimators import Estimator, Factor
from reweigh.levels import log_ratio
from reweigh.rosetta.frameworks import profile_of
from reweigh.rosetta.plan import Reading, RefusedError
from reweigh.rosetta.profile import Bounds, Profile
from reweigh.rosetta.words import formula
from reweigh.transforms import AtMost, Clip, Identity, Reject, Screen


@dataclass(frozen=True)
class Translated:
    """A configuration, read.

    Attributes:
        profile: of which framework.
        options: those that were given, by name.
        reading: what they compute.
        unknown: options of the correction that the profile does not know, each with the nearest that it does.
        ignored: how many other settings there were.
        version: what there is to say about the version that was asked for; "" if nothing.
    """

    profile: Profile
    options: Mapping[str, Any]
    reading: Reading
    unknown: tuple[tuple[str, tuple[str, ...]], ...]
    ignored: int
    version: str


def translate(framework: str, config: Mapping[str, Any]) -> Translated:
    """Read a framework's options out of a configuration, nested or flat.

    Args:
        framework: a name, or `name@version`.
        config: the whole configuration or the part about the correction.

    Raises:
        ValueError: on a framework without a profile, and on options that the framework refuses.

    Example:
        >>> translate("trl", {"vllm_importance_sampling_mode": "token_mask"}).reading.plan.estimator
        Estimator(factors=(TOKEN Reject(low=0.0, high=3.0),), normalise=None)
    """
    name, _, version = framework.replace("==", "@").partition("@")
    profile = profile_of(name)
    taken: dict[str, Any] = {}
    unknown: list[tuple[str, tuple[str, ...]]] = []
    ignored = 0
    names = {o.name: o for o in profile.options}
    nested = any(isinstance(v, dict) and k not in names for k, v in config.items())
    section = profile.section.split(".")[-1]
    for path, key, value in _leaves(config, names):
        inside = (path[-1] == section if path else not nested) if section or not path else False
        if key in names and (inside or not path or "_" in key):
            taken[key] = _value(value)
        elif inside:
            unknown.append((".".join((*path, key)), tuple(difflib.get_close_matches(key, names, 3, 0.7))))
        else:
            ignored += 1
    if not taken and unknown:
        known = ", ".join(names)
        raise ValueError(
            f"explain: {profile.name} has no option {', '.join(n for n, _ in unknown[:5])}\nhint: known are {known}"
        )
    return Translated(profile, taken, profile.read(taken), tuple(unknown), ignored, _version(profile, version))


def read_config(path: str) -> dict[str, Any]:
    """Read a YAML, JSON or TOML file.

    Raises:
        ValueError: if it is none, or not a mapping.
        ModuleNotFoundError: YAML without pyyaml.
    """
    text = Path(path).read_text()
    try:
        data = _parse(path, text)
    except ValueError as e:
        raise ValueError(f"{path}: cannot be read: {str(e).splitlines()[0]}\nhint: YAML, JSON or TOML") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a mapping of options, got {type(data).__name__}\nhint: key: value")
    return cast("dict[str, Any]", data)


def parse_pairs(pairs: list[str]) -> dict[str, Any]:
    """Read `key=value` options; a dotted key is nested.

    Raises:
        ValueError: on one without `=`.

    Example:
        >>> parse_pairs(["rollout_is=token", "rollout_is_threshold=0.5_5.0"])
        {'rollout_is': 'token', 'rollout_is_threshold': '0.5_5.0'}
    """
    out: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.lstrip("-+").partition("=")
        if not equals or not key:
            raise ValueError(f"explain: {pair!r} is not an option\nhint: key=value")
        *path, last = key.split(".")
        place = out
        for step in path:
            place = place.setdefault(step, {})
        place[last.replace("-", "_")] = _word(value)
    return out


def _parse(path: str, text: str) -> Any:
    suffix = Path(path).suffix.lower()
    if suffix == ".json":
        return json.loads(text)
    if suffix == ".toml":
        try:
            import tomllib
        except ModuleNotFoundError:
            raise ValueError("TOML needs Python 3.11") from None
        return tomllib.loads(text)
    try:
        import yaml
    except ModuleNotFoundError:
        raise ValueError(f"{path}: YAML needs pyyaml\nhint: pip install pyyaml, or give JSON") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise ValueError(str(e)) from None


def _leaves(config: Mapping[str, Any], names: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[Any]:
    for key, value in config.items():
        key = str(key)
        if isinstance(value, dict) and key not in names:
            yield from _leaves(cast("dict[str, Any]", value), names, (*path, key))
        else:
            *steps, last = key.lstrip("-").split(".")
            yield (*path, *steps), last.replace("-", "_"), value


def _word(text: str) -> Any:
    if text.lower() in ("null", "none", "~", ""):
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _value(value: Any) -> Any:
    """YAML 1.1 takes `1e-4` for a word."""
    if isinstance(value, str) and "_" not in value:
        try:
            return float(value)
        except ValueError:
            return _word(value) if value.lower() in ("null", "none", "true", "false") else value
    return value


def _version(profile: Profile, version: str) -> str:
    if not version or version in profile.known or any(k.startswith(version) for k in profile.known):
        return ""
    return f"{profile.name} {version} has not been looked at: what follows is known of {profile.version}"


# The nearest options of another framework.


_NO_BOUND = 2e-9  # a ratio that no one reaches: some options cannot be left open
# The cost of a difference when the nearest is looked for: the unit matters most, the bound least.
_LEVEL, _STATISTIC, _TRANSFORM, _SIGN, _BOUND, _MISSING = 3.0, 4.0, 2.0, 3.0, 0.5, 5.0


@dataclass(frozen=True)
class Nearest:
    """The nearest options.

    Attributes:
        options: of the other framework; empty if nothing of it comes near.
        estimator: what they compute.
        exact: whether that is the same composition.
        differs: in which way it is not.
        notes: what holds of the options there.
    """

    options: Mapping[str, Any]
    estimator: Estimator
    exact: bool
    differs: tuple[str, ...]
    notes: tuple[str, ...]


def nearest(estimator: Estimator, profile: Profile) -> Nearest:
    """Find the options of `profile` whose composition is the nearest to `estimator`; never a silent approximation."""
    best: tuple[float, Mapping[str, Any], Estimator, tuple[str, ...], tuple[str, ...]] | None = None
    for options in _candidates(estimator, profile):
        try:
            reading = profile.read(options)
        except RefusedError:
            continue
        theirs = reading.plan.estimator
        cost, differs = _compare(estimator, theirs)
        if best is None or (cost, len(options)) < (best[0], len(best[1])):
            best = (cost, options, theirs, differs, reading.notes)
    assert best is not None  # no options at all is always a candidate
    cost, options, theirs, differs, notes = best
    return Nearest(options, theirs, cost == 0, differs, notes)


def _candidates(estimator: Estimator, profile: Profile) -> Iterator[Mapping[str, Any]]:
    yield {}
    off = {o.name: False for o in profile.options if o.default is True and "correction" in o.name}
    yield off
    bounds = [b for f in estimator.factors if (b := _bounds(f)) is not None] or [Bounds(0.0, math.inf, math.inf)]
    weights = [t for t in profile.templates if t.makes == "weights"]
    screens = [t for t in profile.templates if t.makes == "screens"]
    for b in bounds:
        for t in (*weights, *screens):
            yield {**(off if t.makes == "screens" else {}), **t.fill(b)}
    for b, c in permutations(bounds, 2):
        for t in weights:
            for s in screens:
                first, second = t.fill(b), s.fill(c)
                if all(first.get(k, v) == v for k, v in second.items()):
                    yield {**first, **second}


def _bounds(f: Factor) -> Bounds | None:
    t = f.transform
    if isinstance(t, (Clip, Reject, Screen)):
        return Bounds(t.low, t.high, abs(math.log(t.high)) if 0 < t.high < math.inf else math.inf)
    if isinstance(t, AtMost):
        return Bounds(math.exp(-t.bound), math.exp(t.bound), t.bound)
    return None


def _compare(wanted: Estimator, found: Estimator) -> tuple[float, tuple[str, ...]]:
    """Least cost of pairing the factors, and what differs in that pairing."""
    a, b = list(wanted.factors), list(found.factors)
    pad = max(len(a), len(b))
    best: tuple[float, list[str]] = (math.inf, [])
    rows: list[Factor | None] = [*a, *[None] * (pad - len(a))]
    columns: list[Factor | None] = [*b, *[None] * (pad - len(b))]
    for order in permutations(columns) if pad <= 4 else [tuple(columns)]:
        cost, says = 0.0, list[str]()
        for x, y in zip(rows, order, strict=True):
            c, s = _pair(x, y)
            cost, says = cost + c, says + s
        if cost < best[0]:
            best = (cost, says)
    if wanted.normalise != found.normalise:
        best = (best[0] + _TRANSFORM, [*best[1], "the weights are divided by their mean in one of the two only"])
    return best[0], tuple(best[1])


def _pair(x: Factor | None, y: Factor | None) -> tuple[float, list[str]]:
    if x == y or (x is not None and y is not None and _same(x, y)):
        return 0.0, []
    if x is None or y is None:
        only = x or y
        assert only is not None
        told = formula(Estimator((only,))).removeprefix("w = ")
        if told in ("1", "r_t") and x is None and told == "1":
            return 0.0, []
        return _MISSING, [f"{told} is not expressed" if y is None else f"{told} comes with it"]
    cost, says = 0.0, list[str]()
    if x.of is not y.of:
        cost, says = cost + _STATISTIC, [*says, f"compares {y.of.__name__}, not {x.of.__name__}"]
    if x.level != y.level:
        cost, says = cost + _LEVEL, [*says, f"acts on the {_level(y)}, not on the {_level(x)}"]
    if x.sign != y.sign:
        cost, says = cost + _SIGN, [*says, "depends on the sign of the advantage otherwise"]
    if type(x.transform) is not type(y.transform):
        cost, says = cost + _TRANSFORM, [*says, f"{_does(y)}, where the other {_does(x)}"]
    elif x.transform != y.transform or x.scale != y.scale:
        cost, says = cost + _BOUND, [*says, f"bounds are {y.transform}, not {x.transform}"]
    return cost, says


def _same(x: Factor, y: Factor) -> bool:
    """Equal but for the rounding of bounds that were written as text, and for bounds that nothing reaches."""
    if (x.level, x.of, x.sign, x.scale, type(x.transform)) != (y.level, y.of, y.sign, y.scale, type(y.transform)):
        return False
    if not isinstance(x.transform, (Clip, Reject, Screen)) or not isinstance(y.transform, (Clip, Reject, Screen)):
        return x.transform == y.transform
    lows, highs = (x.transform.low, y.transform.low), (x.transform.high, y.transform.high)
    return math.isclose(*lows, rel_tol=1e-6, abs_tol=_NO_BOUND) and math.isclose(
        *(1 / h if h else math.inf for h in highs), rel_tol=1e-6, abs_tol=_NO_BOUND
    )


def _level(f: Factor) -> str:
    names = {"sequence": "product of the sequence", "geometric": "geometric mean of the sequence"}
    return names.get(f.level.name, f.level.name.replace("_", " "))


def _does(f: Factor) -> str:
    t = f.transform
    if isinstance(t, Clip):
        return "moves what is outside to the bound"
    if isinstance(t, Reject):
        return "drops what is outside and survivors keep their ratio"
    if isinstance(t, (Screen, AtMost)):
        return "drops what is outside and survivors weigh 1"
    return "weighs by the ratio itself" if isinstance(t, Identity) and f.of is log_ratio else repr(t)
