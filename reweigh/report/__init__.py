"""Reports of what audit, doctor, plan and gate found: on a terminal, as a page, as Markdown, as JSON.

The values themselves draw nothing. What is drawn is made of lines and of one kind of table (`reweigh.report.tables`),
in which each number is rounded once.
"""

from typing import TYPE_CHECKING, Any

from reweigh.audit import Audit
from reweigh.doctor.diagnosis import Diagnosis
from reweigh.gate import Gate
from reweigh.plan import Plan
from reweigh.report import audit as audits
from reweigh.report import causes, gate, plan
from reweigh.report.document import document_of
from reweigh.report.gate import junit, markdown
from reweigh.report.page import page
from reweigh.report.tables import WIDE, to_terminal

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["document", "junit", "markdown", "page", "terminal", "text"]

Result = Audit | Diagnosis | Gate | Plan


def terminal(found: Result, console: "Console", full: bool = False) -> None:
    """Prints a result on a console, the verdict first and, of an audit and a diagnosis, last again.

    Args:
        found: what is to be shown; an audit in at most 100 columns.
        console: where.
        full: an audit with all its tables, and not in some 25 lines.

    Example:
        >>> from rich.console import Console
        >>> from reweigh.plan import plan
        >>> terminal(plan(1e-3, [4096]), Console(width=100))  # doctest: +ELLIPSIS
        ok: ...
    """
    if isinstance(found, Audit):
        to_terminal(audits.on_terminal(found, min(console.width, WIDE), full), console, WIDE)
    elif isinstance(found, Diagnosis):
        to_terminal(causes.on_terminal(found), console)
    else:
        to_terminal(gate.on_terminal(found) if isinstance(found, Gate) else plan.on_terminal(found), console)


def text(found: Result, width: int = WIDE, full: bool = False) -> str:
    """Write a result as `terminal` prints it, without colours."""
    import io

    from rich.console import Console

    out = io.StringIO()
    terminal(found, Console(file=out, width=width, color_system=None), full)
    return out.getvalue().rstrip("\n")


def document(found: Result) -> dict[str, Any]:
    """Turn a result into plain values for JSON; `"reweigh_audit": 2`, say, is the version of an audit's schema.

    No number in it is NaN or infinite: what JSON has not got is null, with the reason beside it.
    """
    return document_of(found) if isinstance(found, Audit) else found.to_dict()
