"""What all commands that scan records do: what runs the scan, its state, how far it is, and what to try."""
# pyright: reportUnknownParameterType=false, reportMissingModuleSource=false
# pyyaml ships no types.

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from reweigh.audit.trial import Asked, all_estimators
from reweigh.cli.options import EngineName
from reweigh.cli.output import Bar, say
from reweigh.estimators import Estimator
from reweigh.scan import Engine, OnRay, Progress, Report, Workers
from reweigh.scan.rows import Rows
from reweigh.scan.state import noted_state
from reweigh.spec import TEXT_HINT, from_dict, parse

ALL = "all"
_FILES = (".yaml", ".yml", ".json")


def engine_of(command: str, name: EngineName, workers: int | None, ray_address: str | None) -> Engine:
    """Choose what runs a scan.

    Raises:
        ValueError: the address of a cluster that is not asked for.
    """
    if name == "ray":
        return OnRay(ray_address, workers)
    if ray_address is not None:
        raise ValueError(f"{command}: --ray-address is of a Ray cluster\nhint: add --engine ray, or leave it out.")
    return Workers(workers)


def rows_of(where: list[str] | None, limit: int | None, sample: float | None, replay: bool = False) -> Rows:
    """Choose the rows that a scan reads.

    Raises:
        ValueError: a condition that is none, or a share that is none.
    """
    return Rows.of(where or (), 1.0 if sample is None else sample, limit, replay)


def state_of(command: str, state: Path | None, html: Path | None = None) -> Path:
    """Say where a command keeps what it goes on from: where it is told, beside its page, or here."""
    return state or (Path(f"reweigh-{command}.state") if html is None else html.with_name(f"{html.name}.state"))


def say_interrupted(error: KeyboardInterrupt, kept: Path) -> None:
    """Say what to do after Ctrl-C."""
    saved = noted_state(error, kept)
    after = "nothing had been saved yet" if saved is None else f"the same command with --resume goes on from {saved}"
    say(f"interrupted: {after}")


def reporting(bar: Bar, then: str = "working out intervals") -> Report:
    """Show how far a scan is.

    Args:
        bar: that shows it.
        then: what comes after the last row.
    """

    def update(done: Progress) -> None:
        rate = (done.tokens - done.resumed) / max(bar.seconds, 1e-9)
        bar.at(done.rows, done.total_rows, f"{done.tokens:,} tokens, {rate:,.0f} tokens/s")
        if done.rows == done.total_rows:
            bar.stage(then)

    return update


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


def decoder(name: str) -> Callable[[int], str]:
    """Load a tokenizer, by the name that `--tokenizer` takes, to write the text of a token id."""
    from transformers.utils import logging as transformers_logging

    from reweigh.probe.models import find_model, load_tokenizer

    transformers_logging.set_verbosity_error()
    loaded = load_tokenizer(find_model(name))
    return lambda i: str(loaded.decode([i]))  # type: ignore[reportUnknownMemberType]
