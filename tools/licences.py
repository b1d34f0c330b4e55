# ruff: noqa: T201  # what it finds is printed
"""List what an installation of reweigh brings along, with licences: docs/licences.md, of what is installed here.

    python -m tools.licences            # writes docs/licences.md
    python -m tools.licences --check    # is it up to date, and is every licence one that a user can live with?

It follows the requirements that pyproject.toml and the packages' own metadata name, for Python 3.11 on Linux. Exit code
1 if the page is not up to date, or a licence is not among `FINE`.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageMetadata, PackageNotFoundError, distribution
from pathlib import Path

import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "licences.md"
CORE = "core"
OF_DEVELOPERS = ("dev", "docs")  # extras that nobody installs to use reweigh
PLATFORM = {
    "python_version": "3.11",
    "python_full_version": "3.11.0",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "os_name": "posix",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
}

# Identifiers of SPDX: what asks for no more than its own text, and weak copyleft of files that are used as they are.
FINE = frozenset(
    (
        *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "HPND", "ISC"),
        *("LLVM-exception", "MIT", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Python-2.0", "Unlicense", "Zlib"),
    )
)
# As packages write them that have no expression.
WORDS = (
    (r"apache.*2|apache software", "Apache-2.0"),
    (r"mozilla.*2|mpl.?2", "MPL-2.0"),
    (r"bsd.?3|3-clause|new bsd|modified bsd", "BSD-3-Clause"),
    (r"bsd.?2|2-clause|simplified bsd", "BSD-2-Clause"),
    (r"\bbsd\b", "BSD-3-Clause"),
    (r"python software foundation|psf", "PSF-2.0"),
    (r"\bisc\b", "ISC"),
    (r"\bmit\b", "MIT"),
    (r"apache", "Apache-2.0"),
)


@dataclass(frozen=True)
class Brought:
    """A package that comes along.

    Attributes:
        name: as an index knows it.
        licence: in words of SPDX; what it says itself if it cannot be told.
        extras: that bring it; `CORE` for all.
    """

    name: str
    licence: str
    extras: tuple[str, ...]


def licence_of(said: PackageMetadata) -> str:
    """Read a package's licence off its metadata, in words of SPDX where it can be told."""
    if "License-Expression" in said:
        return said["License-Expression"]
    classes = [text for text in said.get_all("Classifier") or [] if text.startswith("License :: ")]
    lines = said["License"].splitlines() if "License" in said else []
    first = next((line.strip() for line in lines if line.strip()), "")
    for text in (first, *(text.rpartition(" :: ")[2] for text in classes)):
        if text and not set(re.findall(r"[\w.+-]+", text)) - FINE - {"AND", "OR", "WITH"}:
            return text
        for pattern, name in WORDS:
            if re.search(pattern, text, re.I):
                return name
    return first[:60] or "not said"


def brought() -> list[Brought]:
    """Follow the requirements of the core and of each extra.

    Raises:
        PackageNotFoundError: one is not installed here.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {CORE: project["dependencies"], **project["optional-dependencies"]}
    found: dict[str, Brought] = {}
    for extra in (name for name in groups if name not in OF_DEVELOPERS):
        seen: set[tuple[str, str]] = set()
        waiting = [Requirement(text) for text in groups[extra]]
        while waiting:
            one = waiting.pop()
            if one.name == "reweigh":  # an extra of ours that this one has
                waiting += [Requirement(text) for name in one.extras for text in groups[name]]
                continue
            asked = {"", *one.extras}
            name = canonicalize_name(one.name)
            if {(name, x) for x in asked} <= seen:
                continue
            seen |= {(name, x) for x in asked}
            there = distribution(name)
            known = found.get(name, Brought(name, licence_of(there.metadata), ()))
            found[name] = replace(known, extras=tuple(dict.fromkeys((*known.extras, extra))))
            needs = [Requirement(text) for text in there.requires or ()]
            waiting += [
                need
                for need in needs
                if need.marker is None or any(need.marker.evaluate({**PLATFORM, "extra": x}) for x in asked)
            ]
    return [found[name] for name in sorted(found)]


def odd(packages: list[Brought]) -> list[Brought]:
    """Pick those whose licence has a word that is not among `FINE`."""
    words = {"AND", "OR", "WITH"}
    return [one for one in packages if set(re.findall(r"[\w.+-]+", one.licence)) - FINE - words]


def page(packages: list[Brought]) -> str:
    """Write the page."""
    rows = "".join(
        f"| {one.name} | {one.licence} | {'every installation' if CORE in one.extras else ', '.join(one.extras)} |\n"
        for one in packages
    )
    return f"""# Licences

What an installation of reweigh (Apache-2.0) brings along, and who asks for it: the core's needs and those of each
extra, with what these need in turn. `python -m tools.licences` writes this page from the metadata of what
`constraints.txt` pins, on Linux; `--check` runs in the tests, and fails on a licence that is neither permissive nor
MPL-2.0.

The wheel itself holds no code of others. A page of an audit embeds plotly.js (MIT) from the package plotly. torch's
builds for CUDA bring NVIDIA's libraries under NVIDIA's own terms; its build for the CPU brings none of them.

| package | licence | asked for by |
|---|---|---|
{rows}"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if the page is not up to date")
    given = parser.parse_args(arguments)
    try:
        packages = brought()
    except PackageNotFoundError as e:
        print(f"error: {e.name} is not installed\nhint: make test installs everything.", file=sys.stderr)
        return 2
    strange = odd(packages)
    for one in strange:
        print(f"{one.name}: {one.licence}: not on the list of licences in {Path(__file__).name}", file=sys.stderr)
    text = page(packages)
    if given.check:
        old = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
        if old != text:
            print(f"{PAGE.relative_to(ROOT)}: not up to date\nhint: python -m tools.licences", file=sys.stderr)
        return int(old != text or bool(strange))
    PAGE.write_text(text, encoding="utf-8")
    print(f"{len(packages)} packages in {PAGE.relative_to(ROOT)}")
    return int(bool(strange))


if __name__ == "__main__":
    sys.exit(main())
