"""Write the table of known gaps into docs/normal.md, out of `reweigh/audit/known.toml`.

python docs/normal.py            # rewrites the table
python docs/normal.py --check    # says whether it is up to date; exit code 1 if not
"""

import sys
from pathlib import Path

from reweigh.audit.known import KnownRun, known_runs
from reweigh.stats.numerals import two

PAGE = Path(__file__).parent / "normal.md"
START, END = "<!-- made by docs/normal.py -->\n", "\n<!-- /made -->"
HEADS = ("sampled by", "number type", "rescored by", "model", "tokens", "KL, nats", "mean abs log ratio", "source")


def _row(one: KnownRun) -> str:
    who = " ".join(x for x in (one.engine, one.version) if x)
    types = ", ".join(x for x in (one.types, one.more) if x)
    model = one.model + (f", {one.size:g}B" if one.size and one.size >= 1 else "") + (", MoE" if one.moe else "")
    fault = f"; **a fault: {one.fault}**" if one.fault else ""
    sizes = (two(x) if x else "" for x in (one.kl, one.mean_abs))
    cells = (who, types, one.trainer, model, f"{one.length}" if one.length else "", *sizes, one.source + fault)
    return f"| {' | '.join(cells)} |"


def table() -> str:
    """All runs, those that were measured first, each kind in the order of the file."""
    order = ("measured", "reported", "fault")
    rows = [_row(one) for state in order for one in known_runs() if one.state == state]
    return "\n".join([f"| {' | '.join(HEADS)} |", "|" + "---|" * len(HEADS), *rows])


def page(text: str) -> str:
    """The page with its table made again."""
    before, found, rest = text.partition(START)
    _, closed, after = rest.partition(END)
    if not (found and closed):
        raise ValueError(f"{PAGE}: must have one place for the table")
    return before + START + table() + END + after


def main() -> int:
    """Write, or check."""
    before = PAGE.read_text()
    made = page(before)
    if "--check" in sys.argv[1:]:
        print("stale: docs/normal.md; run: python docs/normal.py" if made != before else "up to date")
        return int(made != before)
    PAGE.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
