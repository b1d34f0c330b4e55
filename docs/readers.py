"""Write the tables of formats into the page of readers.

python docs/readers.py            # rewrites the tables in docs/readers.md
python docs/readers.py --check    # says whether they are up to date; exit code 1 if not
"""

import sys
from pathlib import Path

from reweigh.dumps import FORMATS

PAGE = Path(__file__).parent / "readers.md"


def table(both_sides: bool) -> str:
    """The formats that have both sides, or those that have the sampler's only."""
    names = ("`--reader`", "framework and file", "how to turn it on", "known beside the log-probs")
    rows = [names if both_sides else ("`--reader`", "file", "what to ask for")]
    for one in FORMATS.values():
        if one.both_sides == both_sides:
            rows.append((f"`{one.name}`", one.file, one.ask, one.known)[: len(rows[0])])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def page(text: str) -> str:
    """The page with its tables made again."""
    for name, both_sides in (("both", True), ("sampler", False)):
        start, end = f"<!-- {name}: made by docs/readers.py -->\n", f"\n<!-- /{name} -->"
        before, found, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"{PAGE}: must have one place for the table {name!r}")
        text = before + start + table(both_sides) + end + after
    return text


def main() -> int:
    """Write, or check."""
    before = PAGE.read_text()
    made = page(before)
    if "--check" in sys.argv[1:]:
        print("stale: docs/readers.md; run: python docs/readers.py" if made != before else "up to date")
        return int(made != before)
    PAGE.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
