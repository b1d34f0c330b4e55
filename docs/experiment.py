"""Write tables and pictures of docs/experiment.md out of examples/collapse/results.jsonl.gz, which its commands made.

python docs/experiment.py            # rewrites them
python docs/experiment.py --check    # says whether they are up to date; exit code 1 if not
"""

import re
import sys
from pathlib import Path

from reweigh.experiment.grid import grid, read
from reweigh.report.experiment import picture, strength, tables
from reweigh.report.tables import Table, to_markdown

HERE = Path(__file__).parent
PAGE, IMAGES = HERE / "experiment.md", HERE / "images"
RESULTS = HERE.parent / "examples" / "collapse" / "results.jsonl.gz"
PLACE = re.compile(r"(<!-- made by docs/experiment.py: (.+?) -->\n).*?(\n<!-- /made -->)", re.S)


def written(table: Table) -> str:
    """A table and its notes."""
    return "\n\n".join([to_markdown(table), *table.notes])


def page(text: str, made: dict[str, Table]) -> str:
    """The page with its tables made again.

    Raises:
        ValueError: it asks for a table that there is not.
    """
    for _, title, _ in PLACE.findall(text):
        if title not in made:
            raise ValueError(f"{PAGE}: there is no table {title!r}\nhint: one of {'; '.join(made)}")
    return PLACE.sub(lambda found: found[1] + written(made[found[2]]) + found[3], text)


def files() -> dict[Path, str]:
    """What is to stand in each file."""
    runs = read(RESULTS)
    first = {job.key for job in grid("main").jobs}
    lags = strength(runs)
    assert lags is not None, "there are too few lags to draw"
    return {
        PAGE: page(PAGE.read_text("utf-8"), {table.title: table for table in tables(runs)}),
        IMAGES / "collapse.svg": picture([run for run in runs if run.key in first]),
        IMAGES / "collapse-lags.svg": lags,
    }


def main() -> int:
    """Write, or check."""
    made = files()
    stale = [path.name for path, text in made.items() if not path.exists() or path.read_text("utf-8") != text]
    if "--check" in sys.argv[1:]:
        print(f"stale: {', '.join(stale)}; run: python docs/experiment.py" if stale else "up to date")
        return int(bool(stale))
    for path, text in made.items():
        path.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
