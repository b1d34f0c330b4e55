"""`reweigh explain`: what a trainer's option or configuration really computes."""

from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from reweigh.cli.options import Form, FormName, Quiet
from reweigh.cli.output import print_json, stderr, stdout
from reweigh.rosetta.config import Nearest, Translated, nearest, parse_pairs, read_config, translate
from reweigh.rosetta.frameworks import PROFILES, profile_of
from reweigh.rosetta.words import RATIOS, SYMBOLS, Meaning, all_words, code, formula, meanings, weights_of


def explain(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[WORD | KEY=VALUE]...", help="A word; with --from, options.")
    ] = None,
    source: Annotated[
        str | None, typer.Option("--from", metavar="FRAMEWORK", help="Read options of this framework, or name@version.")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--to", metavar="FRAMEWORK", help="Find the nearest options of this one.")
    ] = None,
    config: Annotated[
        str | None, typer.Option(metavar="FILE", help="A configuration: YAML, JSON or TOML, whole or in part.")
    ] = None,
    form: Form = "text",
    quiet: Quiet = False,
) -> None:
    """What an option computes: a word in every framework, or a configuration of one.

    Without arguments it lists the words that frameworks use. Exit code 0; 2 on an unknown word, framework or option
    value.

    \b
    Examples:
      reweigh explain
      reweigh explain sequence_mask
      reweigh explain --from verl rollout_is=sequence rollout_is_threshold=2.0
      reweigh explain --from verl --config ppo.yaml --to trl
    """
    if source is None:
        if target is not None or config is not None:
            raise ValueError("explain: --config and --to need --from\nhint: --from verl, say")
        _explain_words(words or [], form, quiet)
        return
    given = (read_config(config) if config is not None else {}) | parse_pairs(words or [])
    told = translate(source, given)
    found = None if target is None else nearest(told.reading.plan.estimator, profile_of(target))
    name = "" if target is None else profile_of(target).name
    if form == "json":
        print_json(_as_dict(told, name, found))
    else:
        _print_translated(told, name, found, quiet)


def _explain_words(words: list[str], form: FormName, quiet: bool) -> None:
    if not words:
        known = all_words()
        if form == "json":
            print_json({"words": {w: list(f) for w, f in known.items()}, "frameworks": [p.name for p in PROFILES]})
            return
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(no_wrap=True)
        table.add_column()
        for word, frameworks in known.items():
            table.add_row(escape(word), ", ".join(frameworks))
        stdout().print(table)
        return
    found = [m for w in words for m in meanings(w)]
    if form == "json":
        print_json({"example": {"ratios": [list(r) for r in RATIOS]}, "meanings": [m.to_dict() for m in found]})
        return
    out = stdout()
    for m in found:
        _print_meaning(m)
    if quiet:
        return
    out.print(f"Example: token ratios pi/mu of three sequences: {_rows(RATIOS)}", markup=False, soft_wrap=True)
    out.print(SYMBOLS, markup=False, soft_wrap=True)


def _print_meaning(m: Meaning) -> None:
    out = stdout()
    out.print(f"[bold]{escape(m.framework)}[/] {escape(m.version)}: {escape(m.says)}", soft_wrap=True)
    rows = [("options", _options(m.options))] if m.options is not None else []
    rows += [("formula", m.formula), ("ours", m.code)] if m.code else []
    rows += [("weights", _rows(m.weights))] if m.weights is not None else []
    rows += [("value", f"{m.value:.4g}")] if m.value is not None else []
    rows += [("note", n) for n in m.notes]
    _print_rows(rows)


def _print_rows(rows: list[tuple[str, str]]) -> None:
    for name, text in rows:
        stdout().print(f"  {name:<11}{text}", markup=False, soft_wrap=True)
    stdout().print()


def _print_translated(told: Translated, name: str, found: Nearest | None, quiet: bool) -> None:
    p, plan, messages = told.profile, told.reading.plan, stderr(quiet)
    if told.version:
        messages.print(f"[bold]warning:[/] {escape(told.version)}", soft_wrap=True)
    for option, near in told.unknown:
        if near:
            like = f"; did you mean {', '.join(near)}?"
            messages.print(f"[bold]warning:[/] {p.name} has no option {escape(option)}{escape(like)}", soft_wrap=True)
    strange = [option for option, near in told.unknown if not near]
    if strange:
        known = ", ".join(o.name for o in p.options)
        message = f"not known of {p.name}, and not read: {', '.join(strange)}\nknown: {known}"
        messages.print(message, markup=False, soft_wrap=True)
    if told.ignored:
        messages.print(f"read nothing of {told.ignored} settings that are not about the correction")
    stdout().print(f"[bold]{escape(p.name)}[/] {escape(p.version)}", soft_wrap=True)
    rows = [("options", _options(told.options) or "none: the defaults"), ("formula", formula(plan.estimator))]
    rows += [("ours", code(plan.estimator)), ("weights", _rows(weights_of(told.reading)))]
    rows += [("note", n) for n in told.reading.notes]
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
    if quiet:
        return
    stdout().print(f"Example: token ratios pi/mu of three sequences: {_rows(RATIOS)}", markup=False, soft_wrap=True)
    stdout().print(SYMBOLS, markup=False, soft_wrap=True)


def _as_dict(told: Translated, name: str, found: Nearest | None) -> dict[str, Any]:
    estimator = told.reading.plan.estimator
    out: dict[str, Any] = {
        "framework": told.profile.name,
        "version": told.profile.version,
        "options": dict(told.options),
        "formula": formula(estimator),
        "ours": code(estimator),
        "weights": [list(r) for r in weights_of(told.reading)],
        "notes": [*told.reading.notes, *([told.version] if told.version else [])],
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


def _options(options: Any) -> str:
    return ", ".join(f"{k}={v!r}" for k, v in (options or {}).items())


def _rows(rows: Any) -> str:
    return " | ".join(" ".join(f"{x:.3g}" for x in row) for row in rows)
