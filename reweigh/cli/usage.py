"""What a wrong command line is told: what is wrong with it, and the nearest that there is."""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import typer

# The parser that typer is built on has moved between its versions; its errors are where this one of them is.
_ERRORS: Any = import_module(typer.BadParameter.__module__)
_MOST = 3  # names to suggest


class Errors:
    """Those that a wrong command line raises."""

    NO_ARGUMENTS: Any = getattr(_ERRORS, "NoArgsIsHelpError", ())  # click before 8.2 prints the help by itself
    NO_OPTION: Any = _ERRORS.NoSuchOption
    MISSING: Any = _ERRORS.MissingParameter
    ALL: Any = _ERRORS.ClickException


def explained(error: Any, args: Sequence[str]) -> str:
    """`where: what` and a hint on a line of its own.

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
        if error.option_name == "--json" and "--format" in known:
            return "did you mean --format json? "
        return _did_you_mean(error.option_name, [name for name in known if name.startswith("--")])
    if isinstance(error, Errors.MISSING):
        found = re.search(rf"^\s*({re.escape(ctx.command_path)} .*)$", ctx.command.help or "", re.M)
        return f"{found[1]}; " if found else ""
    words = re.findall(r"'([^']*)'", message)
    if message.startswith("No such command") and words:
        return _did_you_mean(words[0], ctx.command.list_commands(ctx))
    if " is not one of " in message:
        return _did_you_mean(words[1], words[2:])
    return ""


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    found = get_close_matches(word, list(known), _MOST)
    return f"did you mean {' or '.join(found)}? " if found else ""
