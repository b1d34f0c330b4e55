"""`reweigh doctor-install`: check that a correction has arrived in a trainer that would not say if it had not."""

from pathlib import Path
from typing import Annotated

import typer

from reweigh.cli.options import Form, Json, Quiet
from reweigh.cli.output import print_json, progress, say, stdout


def doctor_install(
    framework: Annotated[str, typer.Argument(metavar="FRAMEWORK", help="verl.")],
    config: Annotated[
        Path | None, typer.Option("--config", help="The run's resolved configuration, YAML, to check as well.")
    ] = None,
    form: Form = "text",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check that a correction has arrived in a trainer that would not say if it had not.

    verl loads plugins when it is imported and tells nobody if one fails. Run this where the run is started, with the
    same environment. Exit code 0 if every link holds, 1 if one does not, 2 if FRAMEWORK has no such
    check.

    \b
    Examples:
      REWEIGH_CORRECTION=corrections:correction reweigh doctor-install verl
      REWEIGH_CORRECTION=corrections:correction reweigh doctor-install verl --config outputs/.hydra/config.yaml
    """
    if framework != "verl":
        raise ValueError(
            f"doctor-install: framework must be verl, got {framework!r}\n"
            "hint: the other adapters are called by name and fail aloud; see docs/trainers.md."
        )
    from reweigh.rosetta.config import read_config
    from reweigh.trainers.verl_check import check_verl

    with progress("trying each link", quiet=quiet):
        found = list(check_verl(None if config is None else read_config(str(config))))
    broken = [check.name for check in found if not check.ok]
    if as_json or form == "json":
        print_json({"ok": not broken, "checks": [vars(c) for c in found]})
    elif quiet:
        verdict = f"fail: {', '.join(broken)}" if broken else f"ok: {len(found)} links hold"
        stdout().print(verdict, markup=False, soft_wrap=True)
    else:
        for check in found:
            stdout().print(
                f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.found}", markup=False, soft_wrap=True
            )
            if not check.ok:
                say(f"hint: {check.hint}")
    if broken:
        raise typer.Exit(1)
