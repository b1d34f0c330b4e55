"""Estimators as a user names them on the command line: "all", names with arguments, products, or a YAML file."""
# pyright: reportUnknownParameterType=false, reportMissingModuleSource=false
# pyyaml ships no types.

import ast
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from reweigh.audit.trial import Asked, all_estimators
from reweigh.estimators import Estimator
from reweigh.levels import LEVELS
from reweigh.named import NAMED
from reweigh.spec import RULES, TRANSFORMS, from_dict, nearest

ALL = "all"
_FILES = (".yaml", ".yml", ".json")
_LEVELS = {level.name.upper(): level.name for level in LEVELS}
_MAKERS: Mapping[str, Any] = {**TRANSFORMS, **RULES, **NAMED}
_WORDS = (*NAMED, "weigh", "self_normalised", "for_advantage")
_EXAMPLE = 'hint: --estimators "seq_tis(2), geo_rs(0.99, 1.01) * token_tis(2)", all, or a YAML file.'


def asked(text: str) -> Asked:
    """What `--estimators` asks for.

    Args:
        text: `all`; the path of a YAML or JSON file; or estimators as one writes them in Python, separated by commas:
            names of `reweigh.NAMED` with their arguments, `weigh(...)`, `self_normalised(...)`, `for_advantage(...)`,
            and products of them with `*`. Nothing in it is run.

    Raises:
        ValueError: no such estimator, argument or file, with the nearest known word.
    """
    if text.strip() == ALL:
        return Asked.of(all_estimators())
    if text.strip().endswith(_FILES):
        return Asked.of(read_estimators(Path(text.strip())))
    return Asked.of(parse(text))


def parse(text: str, where: str = "--estimators") -> dict[str, Estimator]:
    """Estimators by the name to show, from an expression.

    Example:
        >>> list(parse("seq_tis(2), geo_rs(0.99,1.01)*token_tis(cap=2)"))
        ['seq_tis(2)', 'geo_rs(0.99, 1.01) * token_tis(cap=2)']
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as e:
        at = f" at column {e.offset}" if isinstance(e, SyntaxError) and e.offset else ""
        raise ValueError(f"{where}: cannot be read{at}: {text!r}\n{_EXAMPLE}") from None
    nodes = tree.elts if isinstance(tree, ast.Tuple) else [tree]
    if not nodes:
        raise ValueError(f"{where}: names no estimator\n{_EXAMPLE}")
    return {ast.unparse(node): from_dict(_spec(node, where), where) for node in nodes}


def read_estimators(path: Path) -> dict[str, Estimator]:
    """Estimators of a YAML or JSON file: `estimators:` with a mapping of names to `reweigh.spec.from_dict` or text."""
    import yaml

    try:
        data: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file\n{_EXAMPLE}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ValueError(f"{path}: not YAML: {' '.join(str(e).split())}\nhint: docs/trial.md has an example.") from None
    found: Any = cast("dict[str, Any]", data).get("estimators", data) if isinstance(data, dict) else data
    if not isinstance(found, dict) or not found:
        raise ValueError(
            f"{path}: must be a mapping of names to estimators, got {type(found).__name__}\n"
            "hint: estimators: {mine: {name: seq_tis, cap: 2}}; docs/trial.md has all forms."
        )
    return {str(name): _entry(one, f"{path}, {name}") for name, one in cast("dict[Any, Any]", found).items()}


def _entry(value: Any, where: str) -> Estimator:
    if not isinstance(value, str):
        return from_dict(value, where)
    found = list(parse(value, where).values())
    if len(found) != 1:
        raise ValueError(f"{where}: must be one estimator, got {len(found)}\nhint: join factors with *.")
    return found[0]


def _spec(node: ast.expr, where: str) -> Any:
    """What `from_dict` reads."""
    if isinstance(node, ast.BinOp):
        if not isinstance(node.op, ast.Mult):
            raise ValueError(f"{where}: estimators are joined with *, got {ast.unparse(node)}\n{_EXAMPLE}")
        return {"product": [_spec(node.left, where), _spec(node.right, where)]}
    if isinstance(node, ast.Name):
        return {"name": _named(node.id, _WORDS, where)}
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise ValueError(f"{where}: not an estimator: {ast.unparse(node)}\n{_EXAMPLE}")
    name, words = _named(node.func.id, _WORDS, where), _keywords(node, where)
    if name == "weigh":
        names = ("level", "transform", "of", "scale")
        return {"factors": [_bound(name, names, node.args, words, where, _value)]}
    if name == "self_normalised":
        found = _bound(name, ("estimator", "by"), node.args, words, where, _mixed)
        return {"self_normalised": found.pop("estimator", {}), **found}
    if name == "for_advantage":
        found = _bound(name, ("sign", "estimator"), node.args, words, where, _mixed)
        return {"for_advantage": found.get("sign"), "estimator": found.get("estimator", {})}
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
    read: Any,
) -> dict[str, Any]:
    if len(positional) > len(names):
        takes = ", ".join(names) or "no arguments"
        raise ValueError(f"{where}: {name} takes {takes}, got {len(positional)} values\nhint: {name}({takes})")
    found = dict(zip(names, positional, strict=False))
    for key, one in keywords.items():
        if key in found:
            raise ValueError(f"{where}: {name} is given {key} twice\nhint: leave one of them out.")
        found[key] = one
    return {key: read(one, where) for key, one in found.items()}


def _keywords(node: ast.Call, where: str) -> dict[str, ast.expr]:
    if any(one.arg is None for one in node.keywords) or any(isinstance(x, ast.Starred) for x in node.args):
        raise ValueError(f"{where}: write the arguments out: {ast.unparse(node)}\n{_EXAMPLE}")
    return {str(one.arg): one.value for one in node.keywords}


def _mixed(node: ast.expr, where: str) -> Any:
    """An estimator, or a plain value beside it."""
    plain = isinstance(node, ast.Constant | ast.UnaryOp)
    return _value(node, where) if plain else _spec(node, where)


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
        return _LEVELS.get(node.id, node.id)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id == "Truncate":
            return {"name": "Clip", **_bound("Truncate", ("high",), node.args, _keywords(node, where), where, _value)}
        return _call(_named(node.func.id, (*TRANSFORMS, *RULES), where), node, where)
    raise ValueError(f"{where}: not a value: {ast.unparse(node)}\n{_EXAMPLE}")


def _named(word: str, known: Sequence[str], where: str) -> str:
    if word in known:
        return word
    raise ValueError(f"{where}: no estimator is called {word!r}\nhint: {nearest(word, known)}")
