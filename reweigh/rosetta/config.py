"""Read a framework's configuration, and say what it computes."""

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from reweigh.rosetta.catalogue import profile_of
from reweigh.rosetta.profile import Profile, Reading


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
    """A YAML, JSON or TOML file.

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
    """`key=value` options; a dotted key is nested.

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
