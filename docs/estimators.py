"""Write the table of estimators, from their docstrings and from what is known of each, into the README and a page.

python docs/estimators.py            # rewrites README.md (between the markers) and docs/estimators.md
python docs/estimators.py --check    # says whether they are up to date; exit code 1 if not
"""

import inspect
import re
import sys
from pathlib import Path

from reweigh.named import FACTS, NAMED

ROOT = Path(__file__).parent.parent
START, END = "<!-- estimators: made by docs/estimators.py -->", "<!-- /estimators -->"


def first_formula(doc: str) -> str:
    """The formula in backticks that the docstring begins with."""
    return re.match(r"`([^`]*)`", doc).group(1)


def table() -> str:
    """The table of the README."""
    rows = ["| name | weight | unbiased? | at most | source |", "|---|---|---|---|---|"]
    for name, make in NAMED.items():
        doc = inspect.getdoc(make)
        facts = FACTS[name]
        unbiased = "**yes**" if facts.unbiased == "yes" else facts.unbiased
        formula = first_formula(doc).replace("|", "\\|")
        rows.append(f"| `{name}` | `{formula}` | {unbiased} | {facts.bound} | {facts.source} |")
    return "\n".join(rows)


def page() -> str:
    """The page with every docstring whole."""
    parts = ["# Estimators", "Made from the docstrings by `docs/estimators.py`.", table()]
    parts.append(
        "Names that one may miss here: [looked for, and not here](concepts/estimators.md#looked-for-and-not-here)."
    )
    for name, make in NAMED.items():
        parts.append(f"## `{name}{inspect.signature(make)}`".replace(" -> reweigh.estimators.Estimator", ""))
        parts.append(inspect.getdoc(make))
    return "\n\n".join(parts) + "\n"


def readme() -> str:
    """The README with its table made anew."""
    text = (ROOT / "README.md").read_text()
    before, rest = text.split(START)
    return f"{before}{START}\n{table()}\n{END}{rest.split(END)[1]}"


def main() -> int:
    """Write, or check, both."""
    made = {ROOT / "README.md": readme(), ROOT / "docs" / "estimators.md": page()}
    if "--check" in sys.argv[1:]:
        stale = [str(path.relative_to(ROOT)) for path, text in made.items() if path.read_text() != text]
        print(f"stale: {', '.join(stale)}; run: python docs/estimators.py" if stale else "up to date")
        return int(bool(stale))
    for path, text in made.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
