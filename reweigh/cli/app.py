"""The command `reweigh`: its subcommands, each imported only when it is run or its own help is asked for."""

import os
import re
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
    has_commands: bool = False


_COMMANDS = (
    _Lazy("probe", "Sample with an engine, rescore with a trainer's forward.", "reweigh.cli.probe"),
    _Lazy("rescore", "Add the trainer's log-probs to rollouts without them.", "reweigh.cli.rescore"),
    _Lazy("audit", "Measure the gap between sampler and trainer, and judge it.", "reweigh.cli.audit"),
    _Lazy("plan", "What modes and thresholds would do at a KL and a length.", "reweigh.cli.plan"),
    _Lazy("watch", "Follow a folder of dumps while the run writes them.", "reweigh.cli.watch"),
    _Lazy("gate", "Hold records against a policy and a baseline, for CI.", "reweigh.cli.gate"),
    _Lazy("doctor", "Name the cause of the gap, with evidence and fix.", "reweigh.cli.doctor"),
    _Lazy("lab", "Exact results on small worlds; the post, claim by claim.", "reweigh.cli.lab", has_commands=True),
    _Lazy("explain", "What a trainer's option or configuration really computes.", "reweigh.cli.rosetta"),
    _Lazy("conformance", "Check our numbers against recorded ones of trainers.", "reweigh.cli.conformance"),
    _Lazy("doctor-install", "Check that a correction has arrived in a trainer.", "reweigh.cli.doctor_install"),
    _Lazy("records", "Look into, check and convert record files.", "reweigh.cli.records", has_commands=True),
)


class _LazyGroup(TyperGroup):
    """Lists every command by its summary, and imports the one that runs."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Put the real command in the place of its summary."""
        name, command, rest = super().resolve_command(ctx, args)
        lazy = next((c for c in _COMMANDS if c.name == name), None)
        if lazy is None or (ctx.resilient_parsing and _completes_a_path(lazy, rest)):
            return name, command, rest
        return name, _load(lazy), rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command; Ctrl-C ends it with a word and not with a traceback."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            from reweigh.cli.output import INTERRUPTED, say

            say("interrupted")
            raise typer.Exit(INTERRUPTED) from None


def _completes_a_path(lazy: _Lazy, before: list[str]) -> bool:
    """Whether the shell itself knows best what may come: then nothing need be loaded, which takes seconds."""
    typed = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or ""
    words = (*before[-1:], re.split(r"\s", typed)[-1])
    return not lazy.has_commands and not any(word.startswith("-") for word in words)


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


def complete() -> None:
    """Make ready to answer the shell, if it is the shell that asks."""
    if "_REWEIGH_COMPLETE" in os.environ:
        from reweigh.cli import completion

        completion.prepare()


def _install_completion(wanted: bool) -> None:
    if wanted:
        from reweigh.cli import completion

        completion.install()


def _show_completion(wanted: bool) -> None:
    if wanted:
        from reweigh.cli import completion

        completion.show()


@app.callback()
def reweigh(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="On an error, show the traceback. Also REWEIGH_DEBUG=1.")
    ] = False,
    install_completion: Annotated[
        bool,
        typer.Option(
            "--install-completion",
            callback=_install_completion,
            is_eager=True,
            help="Have this shell (bash, zsh, fish) complete commands and options.",
        ),
    ] = False,
    show_completion: Annotated[
        bool,
        typer.Option(
            "--show-completion", callback=_show_completion, is_eager=True, help="Print the script that does so."
        ),
    ] = False,
) -> None:
    """Measure, explain and correct the gap between the policy that samples and the policy that trains.

    Results go to stdout, messages to stderr. Exit code 0 if all is well, 1 if a check found something, 2 if the command
    could not do what was asked, 130 after Ctrl-C.

    \b
    Examples:
      reweigh audit runs/ --html report.html
      reweigh doctor runs/ --format json
      reweigh explain sequence_mask
      reweigh COMMAND --help
    """


def _placeholder(lazy: _Lazy) -> None:
    def unreachable() -> None:
        raise AssertionError(f"{lazy.name} was not loaded")

    app.command(name=lazy.name, help=lazy.summary)(unreachable)


for _lazy in _COMMANDS:
    _placeholder(_lazy)
