"""Completion of commands and options in the shell: its script, printed or installed."""
# pyright: reportPrivateImportUsage=false
# typer imports what it completes with into this module of its own, and lists none of it.

import os
from pathlib import Path

import typer
from typer import completion

VARIABLE = "_REWEIGH_COMPLETE"  # set by the shell's script when it asks for words
SHELLS = ("bash", "zsh", "fish")


def prepare() -> None:
    """Make ready to answer the shell."""
    completion.completion_init()


def show() -> None:
    """Print the script of this shell."""
    from reweigh.cli.output import stdout

    script = completion.get_completion_script(prog_name="reweigh", complete_var=VARIABLE, shell=_shell())
    stdout().print(script, markup=False, soft_wrap=True)
    raise typer.Exit


def install() -> None:
    """Write the script of this shell to where the shell looks for it."""
    from reweigh.cli.output import say

    _, path = completion.install(shell=_shell(), prog_name="reweigh", complete_var=VARIABLE)
    say(f"wrote {path}; it is used by the next shell that starts")
    raise typer.Exit


def _shell() -> str:
    """Of the shell that started us, or else of the one that the user logs in with."""
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
