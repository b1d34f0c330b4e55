"""Estimators as a user names them on the command line: "all", names with arguments, products, or a YAML file."""
# pyright: reportUnknownParameterType=false, reportMissingModuleSource=false
# pyyaml ships no types.

from pathlib import Path
from typing import Any, cast

from reweigh.audit.trial import Asked, all_estimators
from reweigh.estimators import Estimator
from reweigh.spec import TEXT_HINT, from_dict, parse

ALL = "all"
_FILES = (".yaml", ".yml", ".json")


def asked(text: str) -> Asked:
    """Read what `--estimators` asks for.

    Args:
        text: `all`; the path of a YAML or JSON file; or estimators as `reweigh.spec.parse` reads them.

    Raises:
        ValueError: no such estimator, argument or file, with the nearest known word.
    """
    if text.strip() == ALL:
        return Asked.of(all_estimators())
    if text.strip().endswith(_FILES):
        return Asked.of(read_estimators(Path(text.strip())))
    return Asked.of(parse(text, "--estimators"))


def read_estimators(path: Path) -> dict[str, Estimator]:
    """Read a YAML or JSON file: `estimators:` with a mapping of names to `reweigh.spec.from_dict` or text."""
    import yaml

    try:
        data: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file\n{TEXT_HINT}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ValueError(f"{path}: not YAML: {' '.join(str(e).split())}\nhint: docs/trial.md has an example.") from None
    asked_for: Any = cast("dict[str, Any]", data).get("estimators", data) if isinstance(data, dict) else data
    if not isinstance(asked_for, dict) or not asked_for:
        raise ValueError(
            f"{path}: must be a mapping of names to estimators, got {type(asked_for).__name__}\n"
            "hint: estimators: {mine: {name: seq_tis, cap: 2}}; docs/trial.md has all forms."
        )
    return {str(name): _entry(one, f"{path}, {name}") for name, one in cast("dict[Any, Any]", asked_for).items()}


def _entry(value: Any, where: str) -> Estimator:
    if not isinstance(value, str):
        return from_dict(value, where)
    estimators = list(parse(value, where).values())
    if len(estimators) != 1:
        raise ValueError(f"{where}: must be one estimator, got {len(estimators)}\nhint: join factors with *.")
    return estimators[0]
