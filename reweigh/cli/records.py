"""`reweigh records`: look into, check and convert record files."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reweigh.cli.options import Form, Json, Quiet, Reader
from reweigh.cli.output import print_json, print_written, progress, say, stdout

if TYPE_CHECKING:
    from reweigh.records import Described, RunInfo, Validation, Violation
    from reweigh.report.tables import Table

records = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Look into, check and convert record files: what two policies said about the same sampled tokens.\n\n"
    "PATHS are files (.parquet, .jsonl, .jsonl.gz, or what a training framework dumped), folders, or quoted globs.\n\n"
    "\b\nExamples:\n  reweigh records describe report/records.parquet\n  reweigh records validate runs/ --format json",
)

_Paths = Annotated[list[str], typer.Argument(metavar="PATHS", help="Files, folders or quoted globs.")]


@records.command(short_help="Rows, tokens, columns, lengths, prompts, steps, run.")
def describe(
    paths: _Paths, form: Form = "text", as_json: Json = False, quiet: Quiet = False, reader: Reader = None
) -> None:
    """Say what is in record files: rows, tokens, columns, lengths, prompts, steps, and the run they came from.

    Exit code 0; 2 if a file cannot be read.

    \b
    Examples:
      reweigh records describe report/records.parquet
      reweigh records describe runs/ --json
      reweigh records describe 'runs/step_*.parquet'
    """
    from reweigh import dumps as readers
    from reweigh import records as rec
    from reweigh.report.tables import to_terminal

    with progress("reading rows", quiet=quiet) as count:
        found = rec.describe(paths, on_rows=count, formats=readers.formats(reader))
    out = stdout()
    if as_json or form == "json":
        print_json(found.to_dict())
        return
    if quiet:
        out.print(
            f"{found.rows:,} rows, {found.tokens:,} tokens in {len(found.files)} file{'s' * (len(found.files) != 1)}"
        )
        return
    to_terminal([_sizes(found), *([_columns(found)] if found.null_rows else [])], out)
    for line in _broken(found.broken):
        out.print(line, markup=False, soft_wrap=True)
    if "log_pi" not in found.null_rows and found.rows:
        out.print("log_pi is not there: these are rollouts that a trainer has yet to rescore.")
    _print_runs(found)


def _broken(violations: "Iterable[Violation]") -> list[str]:
    return [f"{v.rule}: {v.count:,} {v.counted}, first {v.place}: {v.detail}" for v in violations]


def _sizes(found: "Described") -> "Table":
    from reweigh.report.tables import NAMES, Table

    files = found.files[0] if len(found.files) == 1 else f"{len(found.files)}, {found.files[0]} to {found.files[-1]}"
    rows = [("files", str(files)), ("rows", f"{found.rows:,}")]
    rows.append(("tokens", f"{found.tokens:,}, of which {found.tokens_counted:,} count (are in the mask)"))
    if found.lengths is not None:
        rows.append(("length", "min {:,}, median {:,.6g}, max {:,} tokens".format(*found.lengths)))
    rows.append(("prompts", "not known" if found.prompts is None else f"{found.prompts:,}"))
    if found.steps is not None:
        rows.append(("steps", f"{found.steps[0]:,} to {found.steps[1]:,}"))
    if found.envs:
        rows.append(("envs", ", ".join(f"{name} ({n:,})" for name, n in found.envs.items())))
    return Table.of((NAMES, NAMES), rows, frame="none", headed=False)


def _columns(found: "Described") -> "Table":
    from reweigh.records.schema import BY_NAME
    from reweigh.report.tables import Column, Table

    rows: list[list[str]] = []
    for name, nulls in found.null_rows.items():
        column = BY_NAME[name]
        kind = f"list<{column.value_type}>" if column.per_token else str(column.type)
        unit = f" ({column.unit})" if column.unit else ""
        rows.append([name, kind, f"{100 * nulls / found.rows:.3g}%", column.meaning + unit])
    heads = (Column(x, "right" if x == "null" else "left", wrap=True) for x in ("column", "type", "null", "meaning"))
    return Table.of(heads, rows, "columns", frame="box")


def _print_runs(found: "Described") -> None:
    out = stdout()
    distinct: dict[RunInfo, list[Path]] = {}
    for path, info in zip(found.files, found.infos, strict=True):
        distinct.setdefault(info, []).append(path)
    for info, paths in distinct.items():
        whose = (
            "run" if len(distinct) == 1 else f"run of {paths[0]}" + (f" and {len(paths) - 1} more" * (len(paths) > 1))
        )
        values = {name: value for name, value in info.to_dict().items() if name != "schema_version"}
        text = ", ".join(f"{name} {value}" for name, value in values.items()) or "nothing is said of it"
        out.print(f"{whose}: {text}", markup=False)


@records.command(short_help="Check every rule of the format; exit 0, 1 or 2.")
def validate(
    paths: _Paths, form: Form = "text", as_json: Json = False, quiet: Quiet = False, reader: Reader = None
) -> None:
    """Check every rule of the record format.

    Names and types of columns, equal list lengths, finite log-probs of at most 0 on tokens that count, token ids of at
    least 0, sequence ids used once, masks that are not empty. Exit code 0 if all hold, 1 if one is broken, 2 if a file
    cannot be read.

    \b
    Examples:
      reweigh records validate report/records.parquet
      reweigh records validate runs/ --json
    """
    from reweigh import dumps as readers
    from reweigh import records as rec

    with progress("checking rows", quiet=quiet) as count:
        found = rec.validate(paths, on_rows=count, formats=readers.formats(reader))
    if as_json or form == "json":
        print_json(found.to_dict())
    else:
        _print_validation(found, quiet)
    if not found.ok:
        raise typer.Exit(2 if found.unreadable else 1)


def _print_validation(found: "Validation", quiet: bool) -> None:
    out = stdout()
    of = f"{found.rows:,} rows in {len(found.files)} file{'s' * (len(found.files) != 1)}"
    if found.ok:
        out.print(f"valid: {of}, no rule is broken")
    else:
        out.print(f"not valid: {of}: {len(found.violations)} rules broken, {len(found.unreadable)} files unreadable")
    if quiet:
        return
    for violation in found.violations:
        out.print(f"\n{violation.rule}: {violation.count:,} {violation.counted}", markup=False, style="bold")
        out.print(f"  first: {violation.place}: {violation.detail}", markup=False, soft_wrap=True)
        out.print(f"  hint: {violation.hint}", markup=False, soft_wrap=True)
    for message in found.unreadable:
        out.print("\nunreadable", style="bold")
        out.print("  " + message.replace("\n", "\n  "), markup=False, soft_wrap=True)
    for note in found.notes:
        say(f"note: {note}")


@records.command(short_help="Parquet to JSON lines, back, and many files into one.")
def convert(
    inputs: Annotated[list[str], typer.Argument(metavar="IN", help="Files, folders or quoted globs.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write: .parquet, .jsonl or .jsonl.gz.")],
    row_group_size: Annotated[
        int | None,
        typer.Option(min=1, help="Rows of a Parquet row group.", show_default="as many as make a million tokens"),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Merge runs whose metadata disagree, and replace OUT if it exists.")
    ] = False,
    form: Form = "text",
    as_json: Json = False,
    quiet: Quiet = False,
    reader: Reader = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out records and files that are no good, and list them.")
    ] = False,
) -> None:
    """Convert between Parquet and JSON lines, merge many files into one, or turn a framework's dump into records.

    Columns are cast to the types of the schema (half and double log-probs become float32, 64-bit ids 32-bit), columns
    that it does not know are left out. OUT appears only when it is complete, and its path is printed. Exit code 0; 2 if
    a file cannot be read or is not one of records.

    \b
    Examples:
      reweigh records convert records.jsonl.gz records.parquet
      reweigh records convert 'rank_*.parquet' all.parquet --row-group-size 4096
      reweigh records convert records.parquet look.jsonl
      reweigh records convert dump/train_data records.parquet --skip-bad
    """
    from reweigh import dumps as readers
    from reweigh import records as rec
    from reweigh.records.schema import Tally

    skipped = readers.Skipped() if skip_bad else None
    formats, tally = readers.formats(reader, skipped), Tally()
    with progress("writing rows", quiet=quiet) as count:
        rows = rec.convert(
            inputs,
            output,
            rows_per_group=row_group_size,
            force=force,
            formats=formats,
            on_rows=count,
            report=tally,
        )
    if skipped is not None and skipped.count:
        say(f"{skipped.count} bad records are left out:", quiet)
        for line in skipped.lines():
            say(f"  {line}", quiet)
    for line in _broken(tally.by_rule.values()):
        say(f"{'left out' if line.startswith('file: ') else 'as it was in the input'}: {line}", quiet)
    say(f"wrote {rows:,} rows to {output}", quiet)
    print_written(output, "json" if as_json else form, rows=rows, left_out=skipped.count if skipped else 0)
