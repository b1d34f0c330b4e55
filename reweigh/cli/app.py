"""The command `reweigh`: its subcommands, each imported only when it runs, and what a wrong command line is told."""
# pyright: reportPrivateImportUsage=false
# typer imports what it completes with into a module of its own, and lists none of it.

import gc
import os
import re
import sys
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer
from typer import completion
from typer.core import TyperGroup

# The parser that typer is built on has moved between its versions; its errors are where this one of them is.
_ERRORS: Any = import_module(typer.BadParameter.__module__)
_MOST = 3  # names to suggest
_AS_NEAR = 0.15  # of likeness to the nearest: what is farther off is not meant
COMMAND = ContextVar("command", default="")  # as it was typed; empty if none runs
COMPLETE = "_REWEIGH_COMPLETE"  # set by the shell's script when it asks for words
SHELLS = ("bash", "zsh", "fish")


@dataclass(frozen=True)
class _Lazy:
    name: str
    summary: str
    module: str  # has a function, or a Typer of subcommands, called `name`, with _ for -
    has_commands: bool = False
    takes_flags: bool = False  # of others: what is no option of ours is an argument


_COMMANDS = (
    _Lazy("probe", "Sample with an engine, rescore with a trainer's forward.", "reweigh.cli.probe"),
    _Lazy("canary", "Ask the engine after a push of weights what it has.", "reweigh.cli.canary", has_commands=True),
    _Lazy("levels", "Measure what gap is normal for a model and engine.", "reweigh.cli.levels"),
    _Lazy("rescore", "Add the trainer's log-probs to rollouts without them.", "reweigh.cli.rescore"),
    _Lazy("audit", "Measure the gap between sampler and trainer, and judge it.", "reweigh.cli.audit"),
    _Lazy("compare", "Hold two sets of records side by side.", "reweigh.cli.compare"),
    _Lazy("timeline", "The gap of each step, beside reward, entropy and the like.", "reweigh.cli.timeline"),
    _Lazy("table", "Ratios, weights and statistics, a row a token or response.", "reweigh.cli.table"),
    _Lazy("plan", "What modes and thresholds would do at a KL and a length.", "reweigh.cli.plan"),
    _Lazy("watch", "Follow a folder of dumps while the run writes them.", "reweigh.cli.watch"),
    _Lazy("gate", "Hold records against a policy and a baseline, for CI.", "reweigh.cli.gate"),
    _Lazy("doctor", "Name the cause of the gap, with evidence and fix.", "reweigh.cli.doctor"),
    _Lazy("lab", "Exact results on small worlds; the post, claim by claim.", "reweigh.cli.lab", has_commands=True),
    _Lazy("experiment", "Watch small policies collapse, and survive, on a laptop.", "reweigh.cli.experiment"),
    _Lazy(
        "explain", "What a trainer's option or configuration really computes.", "reweigh.cli.rosetta", takes_flags=True
    ),
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
        target = getattr(_loaded(lazy.module), lazy.name.replace("-", "_"))
        if not isinstance(target, typer.Typer):
            function, target = target, typer.Typer(add_completion=False, rich_markup_mode=None)
            settings = {"ignore_unknown_options": True} if lazy.takes_flags else {}
            target.command(name=lazy.name, context_settings=settings)(function)
        command = typer.main.get_command(target)
        command.name = lazy.name
        return name, command, rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command; Ctrl-C ends it with a word and not with a traceback."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            from reweigh.cli.output import INTERRUPTED, say

            say("interrupted")
            raise typer.Exit(INTERRUPTED) from None


def _loaded(module: str) -> ModuleType:
    """Import a command with all that it needs. That makes a million objects, none of them garbage: the collector need
    not look through them while they are made, which takes a tenth of the time of `import torch`, nor afterwards."""
    if module in sys.modules or not gc.isenabled():
        return import_module(module)
    gc.disable()
    try:
        return import_module(module)
    finally:
        gc.freeze()
        gc.enable()


def _completes_a_path(lazy: _Lazy, before: list[str]) -> bool:
    """Tell whether the shell itself knows best what may come: then nothing need be loaded, which takes seconds."""
    typed = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or ""
    words = (*before[-1:], re.split(r"\s", typed)[-1])
    return not lazy.has_commands and not any(word.startswith("-") for word in words)


app = typer.Typer(
    cls=_LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def complete() -> None:
    """Make ready to answer the shell, if it is the shell that asks."""
    if COMPLETE in os.environ:
        completion.completion_init()


def _at_once(option: typer.CallbackParam, wanted: bool) -> None:
    """Do what an option asks for in place of a command, and end."""
    if not wanted:
        return
    from reweigh.cli.output import say, stdout

    if option.name == "version":
        from reweigh import __version__, native

        stdout().print(f"reweigh {__version__}\nsums on a CPU: {native.status()}", markup=False, soft_wrap=True)
    elif option.name == "show_completion":
        script = completion.get_completion_script(prog_name="reweigh", complete_var=COMPLETE, shell=_shell())
        stdout().print(script, markup=False, soft_wrap=True)
    else:
        _, path = completion.install(shell=_shell(), prog_name="reweigh", complete_var=COMPLETE)
        say(f"wrote {path}; it is used by the next shell that starts")
    raise typer.Exit


def _shell() -> str:
    """Name the shell that started us, or else the one that the user logs in with."""
    import shellingham

    try:
        name = shellingham.detect_shell()[0]
    except shellingham.ShellDetectionFailure:
        name = Path(os.environ.get("SHELL", "")).name
    if name not in SHELLS:
        raise ValueError(
            f"completion: the shell must be one of {', '.join(SHELLS)}, got {name or 'none that is known'!r}\n"
            "hint: run it from one of them: bash -c 'reweigh --show-completion; true'"
        )
    return name


@app.callback()
def reweigh(
    version: Annotated[
        bool, typer.Option("--version", callback=_at_once, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="On an error, show the traceback. Also REWEIGH_DEBUG=1.")
    ] = False,
    install_completion: Annotated[
        bool,
        typer.Option(
            "--install-completion",
            callback=_at_once,
            is_eager=True,
            help="Have this shell (bash, zsh, fish) complete commands and options.",
        ),
    ] = False,
    show_completion: Annotated[
        bool,
        typer.Option("--show-completion", callback=_at_once, is_eager=True, help="Print the script that does so."),
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


def _unreachable() -> None:
    raise AssertionError("the command was not loaded")


for _lazy in _COMMANDS:
    app.command(name=_lazy.name, help=_lazy.summary)(_unreachable)


class Errors:
    """Names the errors that a wrong command line raises."""

    NO_ARGUMENTS: Any = getattr(_ERRORS, "NoArgsIsHelpError", ())  # click before 8.2 prints the help by itself
    NO_OPTION: Any = _ERRORS.NoSuchOption
    MISSING: Any = _ERRORS.MissingParameter
    ALL: Any = _ERRORS.ClickException


def explained(error: Any, args: Sequence[str]) -> str:
    """Say of a wrong command line `where: what`, and a hint with the nearest that there is on a line of its own.

    Args:
        error: what the parser raised.
        args: of the command line.
    """
    named = [*args[:1]] if args and not args[0].startswith("-") else []
    where = error.ctx.command_path if error.ctx else " ".join(["reweigh", *named])
    message: str = error.message if isinstance(error, Errors.NO_OPTION) else error.format_message()
    what = message[:1].lower() + message[1:].rstrip(".")
    what = what.split(" Did you mean", 1)[0].rstrip(".").replace(": Value error, ", ": ")
    return f"{where}: {what}\nhint: {_near(error, message)}`{where} --help` has more."


def _near(error: Any, message: str) -> str:
    ctx = error.ctx
    if ctx is None:
        return ""
    if isinstance(error, Errors.NO_OPTION):
        known = [name for one in ctx.command.get_params(ctx) for name in (*one.opts, *one.secondary_opts)]
        return _did_you_mean(error.option_name, [name for name in known if name.startswith("--")])
    if isinstance(error, Errors.MISSING):
        example = re.search(rf"^\s*({re.escape(ctx.command_path)} .*)$", ctx.command.help or "", re.M)
        return f"{example[1]}; " if example else ""
    words = re.findall(r"'([^']*)'", message)
    if message.startswith("No such command") and words:
        return _did_you_mean(words[0], ctx.command.list_commands(ctx))
    if " is not one of " in message:
        return _did_you_mean(words[1], words[2:])
    return ""


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    near = get_close_matches(word, list(known), _MOST)
    like = [SequenceMatcher(None, word, one).ratio() for one in near]
    near = [one for one, ratio in zip(near, like, strict=True) if ratio > like[0] - _AS_NEAR]
    return f"did you mean {' or '.join(near)}? " if near else ""
