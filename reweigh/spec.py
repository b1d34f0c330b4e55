"""Estimators as plain dicts (YAML, JSON) and as text, and back; every error names the place and the nearest word."""

import ast
import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, cast, get_args

from reweigh.caps import Balance, CapRule, Cubic, Post, PostBatch, SqrtN, Tradeoff
from reweigh.estimators import Estimator, Factor, Normalise, Statistic, for_advantage, self_normalised
from reweigh.levels import (
    LEVELS,
    Level,
    binary_kl,
    k1,
    k2,
    k3,
    log_ratio,
    prefix_budget,
    prob_diff,
    prob_gap,
    reverse_binary_kl,
    signed_binary_kl,
    signed_gap_of_sequence,
)
from reweigh.named import NAMED
from reweigh.transforms import (
    AtMost,
    Cap,
    Clip,
    Identity,
    MeanAtMost,
    Outside,
    ParetoSmooth,
    Power,
    Reject,
    Screen,
    Shrink,
    SigmoidGate,
    SoftKernel,
    Transform,
    TruncateAt,
)

TRANSFORMS: Mapping[str, type[Transform]] = {
    t.__name__: t
    for t in (
        *(Identity, Clip, Reject, Screen, Outside, AtMost, MeanAtMost),
        *(Shrink, Power, SoftKernel, SigmoidGate, ParetoSmooth, TruncateAt),
    )
}
STATISTICS: Mapping[str, Statistic] = {
    f.__name__: f
    for f in (
        *(log_ratio, k1, k2, k3, prob_diff, prob_gap),
        *(binary_kl, reverse_binary_kl, signed_binary_kl, signed_gap_of_sequence),
    )
}
RULES: Mapping[str, type[CapRule]] = {r.__name__: r for r in (Balance, Cubic, Post, PostBatch, SqrtN, Tradeoff)}
_LEVELS = {level.name: level for level in LEVELS}
_LEVEL_MAKERS: Mapping[str, Callable[..., Level]] = {prefix_budget.__name__: prefix_budget}
_FACTOR_KEYS = ("level", "transform", "of", "sign", "scale")
_FORMS = ("name", "factors", "product", "self_normalised", "for_advantage")
_EXAMPLE = "hint: {name: seq_tis, cap: 2}, or a list of such for their product; docs/trial.md has all forms."
TEXT_HINT = 'hint: --estimators "seq_tis(2), geo_rs(0.99, 1.01) * token_tis(2)", all, or a YAML file.'
_LEVEL_WORDS = {level.name.upper(): level.name for level in LEVELS}
_MAKERS: Mapping[str, Callable[..., Any]] = {**TRANSFORMS, **RULES, **NAMED, **_LEVEL_MAKERS}
_WORDS = (*NAMED, "weigh", "self_normalised", "for_advantage")


def to_dict(estimator: Estimator) -> dict[str, Any]:
    """Write an estimator as factors, of values that JSON has: infinity is "inf", what is as by default is left out.

    Raises:
        ValueError: a part of it is not of this library, or holds stats of its own.

    Example:
        >>> from reweigh import seq_tis
        >>> to_dict(seq_tis(2.0))
        {'factors': [{'level': 'sequence', 'transform': {'name': 'Clip', 'low': 0.0, 'high': 2.0}}]}
    """
    spec: dict[str, Any] = {"factors": [_factor_dict(factor) for factor in estimator.factors]}
    return spec if estimator.normalise is None else spec | {"normalise": estimator.normalise}


def from_dict(value: Any, where: str = "estimator") -> Estimator:
    """Make the estimator that a dict or list says.

    Args:
        value: one of `{"name": "seq_tis", "cap": 2}`: a named one and its arguments; `{"factors": [...]}`: what
            `to_dict` gives; a list, or `{"product": [...]}`: the product; `{"self_normalised": ..., "by": "batch"}`;
            `{"for_advantage": -1, "estimator": ...}`.
        where: what errors call it.

    Raises:
        ValueError: something else, with the place and the nearest known word.

    Example:
        >>> from reweigh import geo_rs, token_tis
        >>> print(from_dict([{"name": "geo_rs"}, {"name": "token_tis", "cap": 2}]) == geo_rs() * token_tis(2.0))
        True
    """
    if isinstance(value, list):
        return _product(cast("list[Any]", value), where)
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: must be a mapping or a list, got {value!r}\n{_EXAMPLE}")
    given = {str(k): v for k, v in cast("Mapping[Any, Any]", value).items()}
    form = next((key for key in _FORMS if key in given), None)
    if form is None:
        raise ValueError(f"{where}: needs one of the keys {', '.join(_FORMS)}, got {_listed(given)}\n{_EXAMPLE}")
    inner = given.pop(form)
    if form == "name":
        return _called(NAMED[_known(inner, NAMED, "estimator", where)], given, f"{where}: {inner}")
    if form == "factors":
        return _of_factors(inner, given, where)
    if form == "product":
        _no_others(given, (), form, where)
        return _product(inner, where)
    if form == "self_normalised":
        _no_others(given, ("by",), form, where)
        return self_normalised(from_dict(inner, f"{where}, self_normalised"), _normalise(given.get("by"), where))
    _no_others(given, ("estimator",), form, where)
    return for_advantage(_integer(inner, f"{where}, for_advantage"), from_dict(given.get("estimator"), where))


def parse(text: str, where: str = "estimators") -> dict[str, Estimator]:
    """Estimators by the name to show, from an expression that is written as in Python; nothing in it is run.

    Args:
        text: estimators separated by commas: names of `NAMED` with their arguments, `weigh(...)`,
            `self_normalised(...)`, `for_advantage(...)`, and products of them with `*`.
        where: what errors call it.

    Raises:
        ValueError: no such estimator or argument, with the nearest known word.

    Example:
        >>> list(parse("seq_tis(2), geo_rs(0.99,1.01)*token_tis(cap=2)"))
        ['seq_tis(2)', 'geo_rs(0.99, 1.01) * token_tis(cap=2)']
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as e:
        at = f" at column {e.offset}" if isinstance(e, SyntaxError) and e.offset else ""
        raise ValueError(f"{where}: cannot be read{at}: {text!r}\n{TEXT_HINT}") from None
    nodes = tree.elts if isinstance(tree, ast.Tuple) else [tree]
    if not nodes:
        raise ValueError(f"{where}: names no estimator\n{TEXT_HINT}")
    return {ast.unparse(node): from_dict(_parsed(node, where), where) for node in nodes}


def nearest(word: object, known: Iterable[str]) -> str:
    """`did you mean seq_tis?`, or the list of known words."""
    words = list(known)
    close = difflib.get_close_matches(str(word), words, 1)
    return f"did you mean {close[0]}?" if close else f"one of {', '.join(words)}."


def _factor_dict(factor: Factor) -> dict[str, Any]:
    name = next((name for name, statistic in STATISTICS.items() if statistic is factor.of), None)
    if name is None:
        raise ValueError(f"to_dict: {factor.of!r} is not a statistic of this library, so no name says it")
    spec: dict[str, Any] = {"level": _level_dict(factor.level)}
    spec["transform"] = _value_dict(factor.transform, TRANSFORMS)
    spec |= {} if name == "log_ratio" else {"of": name}
    spec |= {} if factor.sign == 0 else {"sign": factor.sign}
    return spec if factor.scale == 1 else spec | {"scale": _plain(factor.scale)}


def _level_dict(level: Level) -> str | dict[str, Any]:
    if _LEVELS.get(level.name) == level:
        return level.name
    name = level.name.partition("(")[0]
    if name in _LEVEL_MAKERS and is_dataclass(level.fold) and not isinstance(level.fold, type):
        spec = {"name": name, **{field.name: _plain(getattr(level.fold, field.name)) for field in fields(level.fold)}}
        if _level(spec, "to_dict") == level:
            return spec
    raise ValueError(f"to_dict: {level!r} is not a level of this library, so no name says it")


def _level(value: Any, where: str) -> Level:
    if isinstance(value, Mapping):
        return _named_value(value, _LEVEL_MAKERS, "level", where)
    return _LEVELS[_known(value, _LEVELS, "level", where)]


def _value_dict(value: Any, known: Mapping[str, type]) -> dict[str, Any]:
    name = type(value).__name__
    if known.get(name) is not type(value):
        raise ValueError(f"to_dict: {value!r} is not of this library, so no name says it")
    spec: dict[str, Any] = {"name": name}
    for field in fields(value):
        one = getattr(value, field.name)
        if field.name == "stats":
            if one is not None:
                raise ValueError(f"to_dict: {name} holds stats, which are no part of a specification")
        else:
            spec[field.name] = _value_dict(one, RULES) if isinstance(one, CapRule) else _plain(one)
    return spec


def _plain(x: Any) -> Any:
    return ("inf" if x > 0 else "-inf") if isinstance(x, float) and math.isinf(x) else x


def _product(parts: Any, where: str) -> Estimator:
    if not isinstance(parts, list) or not parts:
        raise ValueError(f"{where}: a product must be a list of estimators, got {parts!r}\n{_EXAMPLE}")
    product = Estimator()
    for i, part in enumerate(cast("list[Any]", parts), 1):
        product = product * from_dict(part, f"{where}, part {i}")
    return product


def _of_factors(factors: Any, rest: Mapping[str, Any], where: str) -> Estimator:
    _no_others(rest, ("normalise",), "factors", where)
    if not isinstance(factors, list):
        raise ValueError(f"{where}: factors must be a list, got {factors!r}\n{_EXAMPLE}")
    made = tuple(_factor(one, f"{where}, factor {i}") for i, one in enumerate(cast("list[Any]", factors), 1))
    normalise = rest.get("normalise")
    return Estimator(made, None if normalise is None else _normalise(normalise, where))


def _factor(value: Any, where: str) -> Factor:
    example = "hint: {level: sequence, transform: {name: Clip, high: 2}}"
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: must be a mapping, got {value!r}\n{example}")
    given = {str(k): v for k, v in cast("Mapping[Any, Any]", value).items()}
    _no_others(given, _FACTOR_KEYS, "a factor", where)
    if "level" not in given:
        raise ValueError(f"{where}: needs a level\n{example}")
    level = _level(given["level"], where)
    of = STATISTICS[_known(given.get("of", "log_ratio"), STATISTICS, "statistic", where)]
    transform = _named_value(given.get("transform", {"name": "Identity"}), TRANSFORMS, "transform", where)
    sign = _integer(given.get("sign", 0), f"{where}, sign")
    if sign not in (-1, 0, 1):
        raise ValueError(f"{where}: sign must be -1, 0 or 1, got {sign}")
    return Factor(level, transform, of, sign, _number(given.get("scale", 1.0), f"{where}, scale"))


def _named_value(value: Any, known: Mapping[str, Callable[..., Any]], kind: str, where: str) -> Any:
    given: dict[str, Any] = (
        {str(k): v for k, v in cast("Mapping[Any, Any]", value).items()}
        if isinstance(value, Mapping)
        else {"name": value}
    )
    if "name" not in given:
        raise ValueError(f"{where}: a {kind} needs a name, got {_listed(given)}\nhint: {nearest('', known)}")
    name = _known(given.pop("name"), known, kind, where)
    return _called(known[name], given, f"{where}: {name}")


def _called(make: Callable[..., Any], given: Mapping[str, Any], where: str) -> Any:
    parameters = inspect.signature(make).parameters
    names = [name for name in parameters if name != "stats"]
    for key in given:
        if key not in names:
            takes = f"takes {', '.join(names)}" if names else "takes no arguments"
            raise ValueError(f"{where}: {takes}, got {key}\nhint: {nearest(key, names) if names else 'leave it out.'}")
    for name in names:
        if name not in given and parameters[name].default is inspect.Parameter.empty:
            raise ValueError(f"{where}: needs {name}\nhint: {name}: 2")
    arguments = {key: _argument(x, parameters[key].annotation, f"{where}, {key}") for key, x in given.items()}
    try:
        return make(**arguments)
    except ValueError as e:
        raise ValueError(f"{where}: {e}") from None


def _argument(value: Any, annotation: Any, where: str) -> Any:
    kinds = get_args(annotation) or (annotation,)
    rule = CapRule in kinds or annotation is Cap
    if value is None and type(None) in kinds:
        return None
    if rule and (isinstance(value, Mapping) or (isinstance(value, str) and value in RULES)):
        return _named_value(value, RULES, "rule", where)
    if isinstance(value, list | tuple) and getattr(annotation, "__origin__", None) is tuple:
        values = cast("list[Any]", value)
        if len(values) != len(kinds):
            raise ValueError(f"{where}: must be {len(kinds)} numbers, got {value!r}")
        return tuple(_number(one, where) for one in values)
    if annotation is Cap or getattr(annotation, "__origin__", None) is tuple:
        what = f"a rule ({', '.join(RULES)})" if rule else f"{len(kinds)} numbers"
        raise ValueError(f"{where}: must be {what}, got {value!r}")
    return _integer(value, where) if annotation is int else _number(value, where)


def _number(value: Any, where: str) -> float:
    if isinstance(value, str):  # YAML 1.1 takes 1e-3 for a word, and JSON has no infinity
        try:
            return float(value)
        except ValueError:
            pass
    elif isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise ValueError(f"{where}: must be a number, got {value!r}")


def _integer(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{where}: must be an integer, got {value!r}")
    return value


def _normalise(value: Any, where: str) -> Normalise:
    return cast("Normalise", _known("batch" if value is None else value, get_args(Normalise), "set", where))


def _known(word: Any, known: Iterable[str], kind: str, where: str) -> str:
    words = list(known)
    if word not in words:
        raise ValueError(f"{where}: no {kind} is called {word!r}\nhint: {nearest(word, words)}")
    return str(word)


def _no_others(given: Mapping[str, Any], known: tuple[str, ...], what: str, where: str) -> None:
    for key in given:
        if key not in known:
            hint = nearest(key, known) if known else "leave it out."
            raise ValueError(f"{where}: {what} does not go with {key}\nhint: {hint}")


def _listed(given: Mapping[str, Any]) -> str:
    return ", ".join(given) or "none"


def _parsed(node: ast.expr, where: str) -> Any:
    """Make of an expression what `from_dict` reads."""
    if isinstance(node, ast.BinOp):
        if not isinstance(node.op, ast.Mult):
            raise ValueError(f"{where}: estimators are joined with *, got {ast.unparse(node)}\n{TEXT_HINT}")
        return {"product": [_parsed(node.left, where), _parsed(node.right, where)]}
    if isinstance(node, ast.Name):
        return {"name": _known(node.id, _WORDS, "estimator", where)}
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise ValueError(f"{where}: not an estimator: {ast.unparse(node)}\n{TEXT_HINT}")
    name, words = _known(node.func.id, _WORDS, "estimator", where), _keywords(node, where)
    if name == "weigh":
        names = ("level", "transform", "of", "scale")
        return {"factors": [_bound(name, names, node.args, words, where, _value)]}
    if name == "self_normalised":
        given = _bound(name, ("estimator", "by"), node.args, words, where, _mixed)
        return {"self_normalised": given.pop("estimator", {}), **given}
    if name == "for_advantage":
        given = _bound(name, ("sign", "estimator"), node.args, words, where, _mixed)
        return {"for_advantage": given.get("sign"), "estimator": given.get("estimator", {})}
    return _call(name, node, where)


def _call(name: str, node: ast.Call, where: str) -> dict[str, Any]:
    names = [x for x in inspect.signature(_MAKERS[name]).parameters if x != "stats"]
    return {"name": name, **_bound(name, names, node.args, _keywords(node, where), where, _value)}


def _bound(
    name: str,
    names: Sequence[str],
    positional: Sequence[ast.expr],
    keywords: Mapping[str, ast.expr],
    where: str,
    read: Callable[[ast.expr, str], Any],
) -> dict[str, Any]:
    if len(positional) > len(names):
        takes = ", ".join(names) or "no arguments"
        raise ValueError(f"{where}: {name} takes {takes}, got {len(positional)} values\nhint: {name}({takes})")
    given = dict(zip(names, positional, strict=False))
    for key, one in keywords.items():
        if key in given:
            raise ValueError(f"{where}: {name} is given {key} twice\nhint: leave one of them out.")
        given[key] = one
    return {key: read(one, where) for key, one in given.items()}


def _keywords(node: ast.Call, where: str) -> dict[str, ast.expr]:
    if any(one.arg is None for one in node.keywords) or any(isinstance(x, ast.Starred) for x in node.args):
        raise ValueError(f"{where}: write the arguments out: {ast.unparse(node)}\n{TEXT_HINT}")
    return {str(one.arg): one.value for one in node.keywords}


def _mixed(node: ast.expr, where: str) -> Any:
    """Read an estimator, or a plain value beside it."""
    plain = isinstance(node, ast.Constant | ast.UnaryOp)
    return _value(node, where) if plain else _parsed(node, where)


def _value(node: ast.expr, where: str) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str | None):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        inner = _value(node.operand, where)
        if isinstance(inner, int | float):
            return -inner if isinstance(node.op, ast.USub) else inner
    if isinstance(node, ast.Tuple | ast.List):
        return [_value(one, where) for one in node.elts]
    if isinstance(node, ast.Name):
        if node.id == "inf":
            return "inf"
        return _LEVEL_WORDS.get(node.id, node.id)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id == "Truncate":
            return {"name": "Clip", **_bound("Truncate", ("high",), node.args, _keywords(node, where), where, _value)}
        return _call(_known(node.func.id, (*TRANSFORMS, *RULES, *_LEVEL_MAKERS), "estimator", where), node, where)
    raise ValueError(f"{where}: not a value: {ast.unparse(node)}\n{TEXT_HINT}")
