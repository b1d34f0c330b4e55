"""The console script `reweigh`, the same as `python -m reweigh`."""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_EXTRA_OF = {
    "audit": ("click", "jinja2", "plotly", "pyarrow", "rich", "shellingham", "typer", "yaml"),
    "probe": ("accelerate", "gguf", "httpx", "transformers"),
    "ray": ("ray",),
    "tensorboard": ("tensorboard",),
    "trl": ("trl",),
}
_INTERRUPTED = 130  # what a shell calls a process that Ctrl-C ended: 128 + SIGINT
_PIPE_CLOSED = 141  # and one whose reader had gone: 128 + SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments after the program's name; those of the process if not given.

    Returns:
        The exit code: 0, 1 if a check found something, 2 if the command could not do what was asked, 130 after Ctrl-C,
        141 if what reads the output has gone, as `head` does.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args or os.environ.get("REWEIGH_DEBUG", "0") not in ("", "0")
    args = [arg for arg in args if arg != "--debug"]
    before = _end_in_order()
    try:
        code = _run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at its end
        return _PIPE_CLOSED
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return _INTERRUPTED
    except Exception as e:
        if debug:
            raise
        _print(e)
        return 2
    finally:  # of whoever calls this in a process of his own
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_in_order() -> dict[int, Any]:
    """Let SIGTERM and SIGHUP, unless they are used otherwise, end a command as Ctrl-C does; give what was set."""
    before: dict[int, Any] = {}
    if threading.current_thread() is not threading.main_thread():
        return before
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            before[number] = signal.signal(number, _ended)
    return before


def _ended(number: int, _: object) -> None:
    sys.stderr.write(f"ended by {signal.Signals(number).name}\n")
    raise SystemExit(128 + number)


def _run(args: list[str]) -> int:
    import typer

    from reweigh.cli.app import COMMAND, Errors, app, complete, explained

    complete()
    COMMAND.set(shlex.join(["reweigh", *args]))
    try:
        code = app(args=args, prog_name="reweigh", standalone_mode=False)
    except Errors.NO_ARGUMENTS as e:
        sys.stderr.write(f"{e}\n")
        return 2
    except Errors.ALL as e:
        from reweigh.cli.output import print_error

        print_error(explained(e, args))
        return 2
    except typer.Abort:
        raise KeyboardInterrupt from None
    except SystemExit as e:
        if isinstance(e.__context__, BrokenPipeError):  # which typer and rich turn into this
            raise e.__context__ from None
        return e.code if isinstance(e.code, int) else int(e.code is not None)
    return code if isinstance(code, int) else 0


def how_to_install(extra: str) -> str:
    """Write the command that adds an extra to this very installation: of a clone, a wheel, a repository or an index."""
    import json
    from importlib.metadata import PackageNotFoundError, distribution
    from urllib.parse import unquote, urlsplit

    try:
        where = json.loads(distribution("reweigh").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:  # it is on the path, and nobody installed it
        return f'pip install -e "{Path(__file__).parents[1]}[{extra}]"'
    url = str(where.get("url", ""))
    if "dir_info" in where:
        editable = "-e " if where["dir_info"].get("editable") else ""
        return f'pip install {editable}"{unquote(urlsplit(url).path)}[{extra}]"'
    if "vcs_info" in where:
        url = f"{where['vcs_info']['vcs']}+{url}@{where['vcs_info']['commit_id']}"
    return f'pip install "reweigh[{extra}]{" @ " * bool(url)}{url}"'  # from an index, the name will do


def _print(error: Exception) -> None:
    if isinstance(error, ModuleNotFoundError):
        top = (error.name or "").split(".")[0]
        for extra in (extra for extra, modules in _EXTRA_OF.items() if top in modules):
            sys.stderr.write(f"error: {error.name} is not installed\nhint: {how_to_install(extra)}\n")
            return
    from reweigh.cli.output import print_error

    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        print_error(f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}")
    elif isinstance(error, ValueError | OSError) or "\nhint: " in str(error):
        print_error(error)
    else:
        told = " ".join(str(error).split()) or "it says nothing more"
        print_error(f"{type(error).__name__}: {told}\nhint: the same command with --debug shows where it comes from.")


if __name__ == "__main__":
    sys.exit(main())
