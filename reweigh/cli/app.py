"""The command `reweigh`: its subcommands, each imported only when it is run or its own help is asked for."""

from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup


@dataclass(frozen=True)
class _Lazy:
    name: str
    summary: str
    module: str  # has a function, or a Typer of subcommands, called `name`, with _ for -


_COMMANDS = (
    _Lazy("probe", "Sample with an engine, rescore with a trainer's forward.", "reweigh.cli.probe"),
    _Lazy("rescore", "Add the trainer's log-probs to rollouts without them.", "reweigh.cli.rescore"),
    _Lazy("audit", "Measure the gap between sampler and trainer, and judge it.", "reweigh.cli.audit"),
    _Lazy("plan", "What modes and thresholds would do at a KL and a length.", "reweigh.cli.plan"),
    _Lazy("watch", "Follow a folder of dumps while the run writes them.", "reweigh.cli.watch"),
    _Lazy("gate", "Hold records against a policy and a baseline, for CI.", "reweigh.cli.gate"),
    _Lazy("doctor", "Name the cause of the gap, with evidence and fix.", "reweigh.cli.doctor"),
    _Lazy("lab", "Exact results on small worlds; the post, claim by claim.", "reweigh.cli.lab"),
    _Lazy("explain", "What a trainer's option or configuration really computes.", "reweigh.cli.rosetta"),
    _Lazy("conformance", "Check our numbers against recorded ones of trainers.", "reweigh.cli.conformance"),
    _Lazy("doctor-install", "Check that a correction has arrived in a trainer.", "reweigh.cli.doctor_install"),
    _Lazy("records", "Look into, check and convert record files.", "reweigh.cli.records"),
)


class _LazyGroup(TyperGroup):
    """Lists every command by its summary, and imports the one that runs."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Put the real command in the place of its summary."""
        name, command, rest = super().resolve_command(ctx, args)
        lazy = next((c for c in _COMMANDS if c.name == name), None)
        return name, (command if lazy is None else _load(lazy)), rest


def _load(lazy: _Lazy) -> Any:
    target = getattr(import_module(lazy.module), lazy.name.replace("-", "_"))
    if not isinstance(target, typer.Typer):
        function, target = target, typer.Typer(add_completion=False, rich_markup_mode=None)
        target.command(name=lazy.name)(function)
    command = typer.main.get_command(target)
    command.name = lazy.name
    return command


app = typer.Typer(
    cls=_LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from reweigh import __version__
        from reweigh.cli.output import stdout

        stdout().print(f"reweigh {__version__}")
        raise typer.Exit


@app.callback()
def reweigh(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="On an error, show the traceback. Also REWEIGH_DEBUG=1.")
    ] = False,
) -> None:
    """Measure, explain and correct the gap between the policy that samples and the policy that trains."""


def _placeholder(lazy: _Lazy) -> None:
    def unreachable() -> None:
        raise AssertionError(f"{lazy.name} was not loaded")

    app.command(name=lazy.name, help=lazy.summary)(unreachable)


for _lazy in _COMMANDS:
    _placeholder(_lazy)
