"""`reweigh explain`: what a trainer's option or configuration really computes."""

import json
import pkgutil
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.markup import escape
from rich.table import Table

from reweigh.cli.options import Form, FormName, Json, Quiet
from reweigh.cli.output import print_json, stderr, stdout
from reweigh.guard import finite

if TYPE_CHECKING:
    from reweigh.rosetta.config import Nearest, Translated


def explain(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[WORD | KEY=VALUE | --FLAG VALUE]...", help="A word, or options of a trainer."),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="FRAMEWORK", help="Whose options: a name, or name@version. Found if not given."),
    ] = None,
    target: Annotated[
        str | None, typer.Option("--to", metavar="FRAMEWORK", help="Find the nearest options of this one.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="YAML, JSON, TOML, a launch script or Python (read, not run)."),
    ] = None,
    form: Form = "text",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """What an option computes: a word in every framework, or a configuration of one.

    Without arguments it lists the words that frameworks use. Options are given as `key=value`, as launch flags or in a
    file. Exit code 0; 2 on an unknown word, framework or option value, and on what a framework refuses.

    \b
    Examples:
      reweigh explain
      reweigh explain sequence_mask
      reweigh explain --from verl rollout_is=sequence rollout_is_threshold=2.0
      reweigh explain --from slime --use-tis --tis-clip 2.0
      reweigh explain --config ppo.yaml --to trl
    """
    form = "json" if as_json else form
    words = words or []
    for file in (w for w in words if config is None and "=" not in w and Path(w).is_file()):
        raise ValueError(f"explain: {file} is a file, not a word\nhint: `reweigh explain --config {file}`")
    if source is None and config is None and not any("=" in w or w.startswith("-") for w in words):
        if target is not None:
            raise ValueError("explain: --to needs options\nhint: --from verl, say, or --config FILE")
        _explain_words(words, form, quiet)
        return
    _misspelled(words)
    from reweigh.rosetta.config import detect, mistaken, nearest, parse_pairs, read_source, translate
    from reweigh.rosetta.frameworks import profile_of
    from reweigh.rosetta.others import other_program, refuse_others
    from reweigh.rosetta.sources import Source, merged

    read = Source({}) if config is None else read_source(config)
    values = merged(read.values, parse_pairs(words))
    given = replace(read, values=values)
    refuse_others(given)
    framework = source or detect(given).name
    other = None if source is None else mistaken(given, source)
    try:
        told = translate(framework, values, read.environment)
    except ValueError as e:
        if other is not None:
            what, _, _ = str(e).partition("\nhint: ")
            raise ValueError(f"{what}\nhint: these are options of {other}: --from {other}, or no --from") from None
        if not read.absent:
            raise
        base = f"it inherits from {', '.join(read.absent)}, which is not beside it and may say more"
        raise ValueError(f"{e}{'; ' if 'hint: ' in str(e) else f'{chr(10)}hint: '}{base}") from None
    mine = {o.rpartition(".")[2] for o in told.options}
    under = [k for k in read.conditional if k.rpartition(".")[2].replace("-", "_") in mine]
    said = f"set under a condition, taken as set: {', '.join(under)}"
    cautions = (*read.cautions, said) if under else read.cautions
    if other is not None:
        cautions = (f"these seem to be options of {other}, read as of {framework}; --from {other}?", *cautions)
    program = other_program(read.text) if told.profile.name == "verl" else ""
    cautions = (*cautions, program) if program else cautions
    found = None if target is None else nearest(told.reading.plan.estimator, profile_of(target))
    name = "" if target is None else profile_of(target).name
    if form == "json":
        print_json(_as_dict(told, name, found, cautions))
    else:
        if source is None:
            stderr(quiet).print(f"taken for {told.profile.name}; --from says otherwise", markup=False)
        _print_translated(told, name, found, quiet, cautions)


_OWN = ("--from", "--to", "--config", "--format", "--quiet", "--help")


def _misspelled(words: list[str]) -> None:
    """Tell a misspelled option of ours from a flag of a trainer's."""
    for word in words:
        near = get_close_matches(word.partition("=")[0], _OWN, 1, 0.8) if word.startswith("--") else []
        if near:
            raise ValueError(f"explain: no such option: {word}\nhint: did you mean {near[0]}?")


def _explain_words(words: list[str], form: FormName, quiet: bool) -> None:
    told = dictionary()
    if not words:
        known: dict[str, list[str]] = told["words"]
        if form == "json":
            print_json({"words": known, "frameworks": told["frameworks"]})
            return
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(no_wrap=True)
        table.add_column()
        for word, frameworks in known.items():
            table.add_row(escape(word), ", ".join(frameworks))
        stdout().print(table)
        return
    found = [m for word in words for m in _meanings(word, told)]
    if form == "json":
        print_json({"example": {"ratios": told["ratios"]}, "meanings": found})
        return
    for m in found:
        _print_meaning(m)
    if quiet:
        return
    _print_example(told)


def dictionary() -> dict[str, Any]:
    """Read what is known of words, computed by the profiles and kept beside them, which take a second to load."""
    return json.loads(pkgutil.get_data("reweigh", "rosetta/words.json") or b"")


def _meanings(word: str, told: dict[str, Any]) -> list[dict[str, Any]]:
    known, wanted = told["meanings"], word.lower().replace("-", "_").strip("_ ")
    if wanted not in known:  # as `reweigh.rosetta.words.meanings` says it
        near = [known[name][0]["word"] for name in get_close_matches(wanted, known, 4, 0.5)]
        like = f"did you mean {', '.join(near)}? " if near else ""
        raise ValueError(
            f"explain: no framework's word or option {word!r}\nhint: {like}`reweigh explain` lists the words"
        )
    return known[wanted]


def _print_example(told: dict[str, Any]) -> None:
    out, example = stdout(), _rows(told["ratios"])
    out.print(f"Example: token ratios pi/mu of three sequences: {example}", markup=False, soft_wrap=True)
    out.print(told["symbols"], markup=False, soft_wrap=True)


def _print_meaning(m: dict[str, Any]) -> None:
    out = stdout()
    out.print(f"[bold]{escape(m['framework'])}[/] {escape(m['version'])}: {escape(m['says'])}", soft_wrap=True)
    rows = [("options", _options(m["options"]))] if m["options"] is not None else []
    rows += [("formula", m["formula"]), ("ours", m["code"])] if m["code"] else []
    rows += [("weights", _rows(m["weights"]))] if m["weights"] is not None else []
    rows += [("value", f"{m['value']:.4g}")] if m["value"] is not None else []
    rows += [("note", n) for n in m["notes"]]
    _print_rows(rows)


def _print_rows(rows: list[tuple[str, str]]) -> None:
    for name, text in rows:
        stdout().print(f"  {name:<11}{text}", markup=False, soft_wrap=True)
    stdout().print()


def _warnings(told: "Translated", cautions: tuple[str, ...]) -> list[str]:
    """What is said however quiet it is asked to be: where the answer may not be of what was meant."""
    p = told.profile
    found = [*([told.version] if told.version else []), *cautions, *told.former]
    for option, near in told.unknown:
        if option in told.suspicious:
            like = f"; did you mean {', '.join(near)}?" if near else "; it looks like a correction and is not read"
            found.append(f"{p.name} has no option {option}{like}")
    if told.unresolved:
        found.append(f"not said here, so read as the defaults: {', '.join(told.unresolved)}")
    return found


def _print_translated(
    told: "Translated", name: str, found: "Nearest | None", quiet: bool, cautions: tuple[str, ...]
) -> None:
    from reweigh.rosetta.frameworks import profile_of
    from reweigh.rosetta.words import code, formula, weights_of

    p, plan, messages = told.profile, told.reading.plan, stderr(quiet)
    for warning in _warnings(told, cautions):
        stderr().print(f"[bold]warning:[/] {escape(warning)}", soft_wrap=True)
    strange = [option for option, _ in told.unknown if option not in told.suspicious]
    if strange:
        known = ", ".join(o.name for o in p.options if not o.former)
        message = f"not known of {p.name}, and not read: {', '.join(strange)}\nknown: {known}"
        messages.print(message, markup=False, soft_wrap=True)
    if told.ignored:
        messages.print(f"read nothing of {told.ignored} settings that are not about the correction")
    stdout().print(f"[bold]{escape(p.name)}[/] {escape(p.version)}", soft_wrap=True)
    rows = [("options", _options(told.options) or "none: the defaults"), ("formula", formula(plan.estimator))]
    rows += [("ours", code(plan.estimator)), ("weights", _rows(weights_of(told.reading)))]
    if told.of_before:
        rows.append(
            ("holds of", f"the earlier version that had these options; {p.name} {p.version} does not read them")
        )
    rows += [("note", n) for n in told.reading.notes]
    rows += [("sampling", n) for n in told.sampling]
    c = p.conventions
    rows += [("ratio", c.ratio), ("survivors", c.survivors), ("inf, nan", c.not_finite), ("loss over", c.denominator)]
    _print_rows(rows)
    if found is not None:
        says = "the same" if found.exact else f"cannot be expressed{'; the nearest:' if found.options else ''}"
        stdout().print(f"[bold]{escape(name)}[/]: {says}", soft_wrap=True)
        rows = [("options", _options(found.options) or "none"), ("formula", formula(found.estimator))]
        rows += [("differs", d) for d in found.differs] + [("note", n) for n in found.notes]
        ours, theirs = p.conventions, profile_of(name).conventions
        for what in ("ratio", "not_finite", "denominator"):
            a, b = getattr(ours, what), getattr(theirs, what)
            if a != b:
                rows.append(("besides", f"{what.replace('_', ' ')}: {b}; in {p.name}: {a}"))
        _print_rows(rows)
    if not quiet:
        _print_example(dictionary())


def _as_dict(told: "Translated", name: str, found: "Nearest | None", cautions: tuple[str, ...]) -> dict[str, Any]:
    from reweigh.rosetta.words import code, formula, weights_of

    estimator = told.reading.plan.estimator
    out: dict[str, Any] = {
        "framework": told.profile.name,
        "version": told.profile.version,
        "options": {k: _plain(v) for k, v in told.options.items()},
        "formula": formula(estimator),
        "ours": code(estimator),
        "weights": [list(r) for r in weights_of(told.reading)],
        "notes": [*told.reading.notes, *([told.version] if told.version else [])],
        "sampling": list(told.sampling),
        "former": list(told.former),
        "of_before": told.of_before,
        "warnings": _warnings(told, cautions),
        "unknown": {k: list(v) for k, v in told.unknown},
        "conventions": dict(told.profile.conventions.__dict__),
    }
    if found is not None:
        out["to"] = {
            "framework": name,
            "exact": found.exact,
            "options": dict(found.options),
            "formula": formula(found.estimator),
            "differs": list(found.differs),
        }
    return out


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in cast("dict[str, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in cast("list[Any]", value)]
    return value if finite(value) or value is None or isinstance(value, str) else str(value)


def _options(options: Any) -> str:
    return ", ".join(f"{k}={v!r}" for k, v in (options or {}).items())


def _rows(rows: Any) -> str:
    return " | ".join(" ".join(f"{x:.3g}" for x in row) for row in rows)
