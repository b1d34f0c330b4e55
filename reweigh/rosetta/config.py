"""Read a framework's configuration, say what it computes, and find the options of another that come nearest."""

import difflib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import permutations
from typing import Any, cast

from reweigh.estimators import Estimator, Factor
from reweigh.guard import finite
from reweigh.levels import log_ratio
from reweigh.rosetta.frameworks import PROFILES, profile_of
from reweigh.rosetta.plan import Reading, RefusedError
from reweigh.rosetta.profile import FOLDER, Bounds, Option, Profile
from reweigh.rosetta.sampling import of_sampling
from reweigh.rosetta.sources import Source, Unresolved, parse_pairs, read_config, read_source, word
from reweigh.rosetta.words import formula
from reweigh.transforms import AtMost, Clip, Identity, Reject, Screen

__all__ = ["Nearest", "Translated", "detect", "nearest", "parse_pairs", "read_config", "read_source", "translate"]


@dataclass(frozen=True)
class Translated:
    """A configuration, read.

    Attributes:
        profile: of which framework.
        options: those that were given, by name.
        reading: what they compute.
        unknown: options that the framework does not have, each with the nearest that it has.
        suspicious: those of them that look like a correction, or stand where corrections do.
        former: options and words of earlier versions, each with the version and the successor.
        of_before: whether what is shown is what such an earlier version computed.
        sampling: whether the ratios can be right, by the options of sampling.
        unresolved: options whose value the file does not say, read as their defaults.
        ignored: how many other settings there were.
        version: what there is to say about the version that was asked for; "" if nothing.
    """

    profile: Profile
    options: Mapping[str, Any]
    reading: Reading
    unknown: tuple[tuple[str, tuple[str, ...]], ...]
    ignored: int
    version: str
    suspicious: tuple[str, ...] = ()
    former: tuple[str, ...] = ()
    of_before: bool = False
    sampling: tuple[str, ...] = ()
    unresolved: tuple[str, ...] = ()


def translate(framework: str, config: Mapping[str, Any], environment: Mapping[str, Any] | None = None) -> Translated:
    """Read a framework's options out of a configuration, nested or flat.

    Args:
        framework: a name, or `name@version`.
        config: the whole configuration or the part about the correction.
        environment: variables that are set, by name.

    Raises:
        ValueError: on a framework without a profile, on options that the framework refuses, and on values of which
            nothing is known.

    Example:
        >>> translate("trl", {"vllm_importance_sampling_mode": "token_mask"}).reading.plan.estimator
        Estimator(factors=(TOKEN Reject(low=0.0, high=3.0),), normalise=None)
    """
    name, _, version = framework.replace("==", "@").partition("@")
    profile = profile_of(name)
    sorted_out = _sort(profile, config, environment or {})
    taken, unresolved = dict[str, Any](), list[str]()
    for option, value in sorted_out.taken:
        if isinstance(value, Unresolved) and value.apart and profile.bare_flags and option.kind == "flag":
            taken[option.name] = True  # what follows is more flags
        elif isinstance(value, Unresolved):
            if option.role in ("weight", "switch"):
                raise ValueError(
                    f"explain: cannot tell: {option.name} is {value}, which is not said here\n"
                    f"hint: give it: {option.name}=VALUE ({option.says})"
                )
            unresolved.append(f"{option.name}={value}")
        else:
            taken[option.name] = value
    if not taken and sorted_out.unknown and not unresolved:
        known = ", ".join(o.name for o in profile.options if not o.former)
        names = ", ".join(n for n, _ in sorted_out.unknown[:5])
        raise ValueError(f"explain: {profile.name} has no option {names}\nhint: known are {known}")
    reading = profile.read(taken)
    unless = tuple(o.unless for o in profile.options if o.unless and o.name not in taken)
    reading = replace(reading, notes=(*reading.notes, *unless))
    return Translated(
        profile,
        taken,
        reading,
        sorted_out.unknown,
        sorted_out.ignored,
        _version(profile, version),
        sorted_out.suspicious,
        tuple(_former(profile, taken)),
        _of_before(profile, taken, reading),
        of_sampling(profile, profile.given(taken), reading),
        tuple(unresolved),
    )


def detect(source: Source) -> Profile:
    """Find the framework that a configuration is of: by names that only it has, and by what a script launches.

    Raises:
        ValueError: if none or more than one may be meant.
    """
    scores: dict[str, float] = {}
    for profile in PROFILES:
        scores[profile.name] = 3.0 * any(m in source.text for m in profile.markers)
        for option, _ in _sort(profile, source.values, source.environment).taken:
            scores[profile.name] += 1 / len(_owners(option.name))
    ranked = sorted(scores, key=lambda n: -scores[n])
    best, second = (scores[n] for n in ranked[:2])
    names = ", ".join(p.name for p in PROFILES)
    if best < _SURE:
        raise ValueError(f"explain: cannot tell of which framework this is\nhint: --from, one of {names}")
    alike = [n for n in ranked if scores[n] > best - _SURE / 4]
    if best - second < _SURE / 4 and not any(set(alike) <= set(family) for family in _FORKS):
        raise ValueError(f"explain: cannot tell whether this is of {' or '.join(alike)}\nhint: --from {alike[0]}")
    return profile_of(min(alike, key=lambda n: [p.name for p in PROFILES].index(n)))


def mistaken(source: Source, framework: str) -> str | None:
    """Name the framework that a configuration is of, if it is not the one that it is taken for: another of which it has
    more options.

    Args:
        source: the configuration.
        framework: that it is taken for, `name` or `name@version`.
    """
    try:
        found, given = detect(source), profile_of(framework.partition("@")[0])
    except ValueError:
        return None
    taken, meant = (len(_sort(p, source.values, source.environment).taken) for p in (given, found))
    fork = any({found.name, given.name} <= set(family) for family in _FORKS)
    return found.name if found.name != given.name and not fork and meant > taken else None


_SURE = 0.4  # of a name's share: it is had by two frameworks at most
_FORKS = (("slime", "vime"), ("trl", "unsloth"))  # the same options: the first is meant unless more is said


@lru_cache
def _owners(name: str) -> tuple[str, ...]:
    """Frameworks that have an option of this name."""
    return tuple(p.name for p in PROFILES if any(o.name == name for o in p.options))


@lru_cache
def registered(framework: str) -> frozenset[str]:
    """Names of all options that a framework registers, whatever they are about; of the version that was read."""
    data = json.loads((FOLDER / "registered.json").read_text(encoding="utf-8"))
    return frozenset(str(data[framework]["names"]).split()) if framework in data else frozenset()


_Standing = Callable[[tuple[str, ...], str], list[Option]]  # options that a name at a place may be


@dataclass(frozen=True)
class _Sorted:
    taken: tuple[tuple[Option, Any], ...]
    unknown: tuple[tuple[str, tuple[str, ...]], ...]
    suspicious: tuple[str, ...]
    ignored: int


def _sort(profile: Profile, config: Mapping[str, Any], environment: Mapping[str, Any]) -> _Sorted:
    """Tell options of the profile from those that it has besides, and from those that it has not."""
    options: dict[str, list[Option]] = {}
    for option in profile.options:
        options.setdefault(option.name.rpartition(".")[2], []).append(option)
    current = [o.name for o in profile.options if not o.former]
    taken: list[tuple[Option, Any]] = []
    unknown: list[tuple[str, tuple[str, ...]]] = []
    suspicious: list[str] = []
    ignored = 0
    section = profile.section.split(".")[-1]
    tables = {o.name for o in profile.options}
    nested = any(isinstance(v, dict) and k not in tables for k, v in config.items())

    def standing(path: tuple[str, ...], key: str) -> list[Option]:
        inside = bool(section and path and path[-1] == section)
        return [o for o in options.get(key, ()) if _stands(o, path, inside, nested, section)]

    leaves = [*_leaves(config, standing), *(((), k, v) for k, v in environment.items() if k in options)]
    for path, key, value in leaves:
        inside = bool(section and path and path[-1] == section)
        here = standing(path, key)
        if here:
            taken.append((max(here, key=lambda o: len(o.name)), _value(value)))
            continue
        full = ".".join((*path, key))
        top = not path and (not section or not nested)
        had, alike = key in registered(profile.name), _alike(key, value)
        if inside or (not had and (top or alike)):
            near = tuple(difflib.get_close_matches(key, current, 3, 0.7))
            unknown.append((full, near))
            if alike or (not had and (inside or near)):
                suspicious.append(full)
        else:
            ignored += 1
    return _Sorted(tuple(taken), tuple(unknown), tuple(suspicious), ignored)


def _stands(option: Option, path: tuple[str, ...], inside: bool, nested: bool, section: str) -> bool:
    """Tell whether a name at this place is this option."""
    *before, _ = option.name.split(".")
    if before and path[-len(before) :] != tuple(before):
        return False
    path = path[: len(path) - len(before)] if before else path
    if option.at:
        return not path or any(path[-len(a.split(".")) :] == tuple(a.split(".")) for a in option.at)
    if before:
        return True
    key = option.name
    return inside or (not path and not (nested and section and "_" not in key)) or (bool(path) and "_" in key)


_ALIKE = re.compile(
    r"(^|[_.])(tis|mis|is|rs|imp|icepop|opsm|rho|veto|offpolicy|importance|mismatch|correction|off_policy)([_.]|$)"
    r"|^rollout_(is|rs|corr|imp|token|log)|truncated_imp"
)


def looks_like_a_correction(name: str) -> bool:
    """Tell whether an option's name is made as those of corrections are."""
    return bool(_ALIKE.search(name.lower())) or name.startswith("rollout_")


def _alike(name: str, value: Any) -> bool:
    """Tell whether a setting is made as those of corrections are; `is_tuned: true` says what something is."""
    if "/" in name or (isinstance(value, bool) and re.match(r"is_", name)):
        return looks_like_a_correction(name.removeprefix("is_")) and "/" not in name
    return looks_like_a_correction(name)


def _of_before(profile: Profile, taken: Mapping[str, Any], reading: Reading) -> bool:
    """Tell whether options or words of earlier versions make the answer another one."""
    former = [o for o in profile.options if o.name in taken and (o.former or str(taken[o.name]) in o.was)]
    if not former:
        return False
    try:
        now = profile.read({k: v for k, v in taken.items() if not any(o.name == k for o in former)})
    except RefusedError:
        return True
    return now.plan != reading.plan or now.loss != reading.loss


def _former(profile: Profile, taken: Mapping[str, Any]) -> Iterator[str]:
    for option in profile.options:
        if option.name not in taken:
            continue
        if option.former:
            now = f"; now {option.now}" if option.now else "; nothing has taken its place"
            yield f"{option.name} is of {profile.name} {option.former}{now}"
        told = option.was.get(str(taken[option.name]))
        if told:
            yield f"{option.name}={taken[option.name]} is of {profile.name} {told}"


def _leaves(config: Mapping[str, Any], standing: _Standing, path: tuple[str, ...] = ()) -> Iterator[Any]:
    """Each setting with its place and its name; a table that is an option itself is one."""
    for key, value in config.items():
        *steps, last = str(key).lstrip("-").split(".")
        place, name = (*path, *steps), last.replace("-", "_")
        if isinstance(value, dict) and not standing(place, name):
            yield from _leaves(cast("dict[str, Any]", value), standing, (*place, name))
        else:
            yield place, name, value


def _value(value: Any) -> Any:
    """YAML 1.1 takes `1e-4` for a word; an integer of hundreds of digits is no number that an option takes."""
    if isinstance(value, int) and not finite(value):
        return math.inf if value > 0 else -math.inf
    if isinstance(value, str) and "_" not in value:
        try:
            return float(value)
        except ValueError:
            return word(value) if value.lower() in ("null", "none", "true", "false") else value
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
