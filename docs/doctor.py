"""Write the table of causes into the doctor's page, and, given the benchmark's results, its tables.

python docs/doctor.py                      # rewrites the table of causes in docs/doctor.md
python docs/doctor.py --check              # says whether it is up to date; exit code 1 if not
python docs/doctor.py --results FOLDER     # also the tables of `python benchmarks/doctor.py`, from its results
"""

import argparse
import re
import sys
from pathlib import Path

from reweigh.doctor.causes import ABOUT
from reweigh.doctor.families import FAMILIES

PAGE = Path(__file__).parent / "doctor.md"
RESULTS = ("judged", "clean", "martingale", "speed")
PICTURES = {"judged": ("doctor-risk", "doctor-calibration"), "speed": ("doctor-speed",)}


def causes() -> str:
    """The table of causes, in the order in which they are tested."""
    families = {cause: ", ".join(one.name for one in FAMILIES if cause in one.causes) for cause in ABOUT}
    rows = [
        "| cause | what it is | family | looked at | helped by columns | it is not this if | also looks like |",
        "|---|---|---|---|---|---|---|",
    ]
    for cause, known in ABOUT.items():
        needs = ", ".join(f"`{name}`" for name in known.needs)
        like = "; ".join(f"`{name}`: {why}" for name, why in known.looks_like.items())
        cells = (f"`{cause}`", known.title, families[cause], known.looked_at, needs, known.rules_out, like)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def lost() -> str:
    """What each column is for, from the families."""
    rows = ["| without | is lost |", "|---|---|"]
    found: dict[str, list[str]] = {}
    for family in FAMILIES:
        for column, loss in family.needs.items():
            found.setdefault(column, []).append(loss)
    rows += [f"| `{column}` | {'; '.join(dict.fromkeys(losses))} |" for column, losses in found.items()]
    return "\n".join(rows)


def put(page: str, name: str, text: str) -> str:
    """The page with another text between a name's markers."""
    between = re.compile(rf"(<!-- {name}: made by docs/doctor.py -->\n).*?(<!-- /{name} -->)", re.S)
    if not between.search(page):
        raise SystemExit(f"error: {PAGE.name} has no markers of {name}")
    return between.sub(lambda match: f"{match[1]}\n{text.strip()}\n\n{match[2]}", page)


def result(folder: Path, name: str) -> str | None:
    """Tables of one part of the benchmark, and its pictures, if it was run."""
    path = folder / f"{name}.md"
    if not path.is_file():
        print(f"docs/doctor.py: no {path}: left as it is", file=sys.stderr)
        return None
    shown = ""
    for picture in PICTURES.get(name, ()):
        image = PAGE.parent / "images" / f"{picture}.png"
        if (made := folder / image.name).is_file():
            image.write_bytes(made.read_bytes())
        shown += f"![{picture}](images/{image.name})\n\n" if image.is_file() else ""
    return shown + path.read_text()


def main() -> int:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--results", type=Path, metavar="FOLDER")
    args = parser.parse_args()
    before = PAGE.read_text()
    page = put(put(before, "causes", causes()), "columns", lost())
    if args.check:
        print("up to date" if page == before else "stale: docs/doctor.md; run: python docs/doctor.py")
        return int(page != before)
    for name in RESULTS if args.results else ():
        text = result(args.results, name)
        page = page if text is None else put(page, name, text)
    PAGE.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
