# ruff: noqa: T201  # what it finds is printed
"""Compare what profiles, readers and hooks rest on in other people's packages with what those packages are today.

    python -m tools.upstream                        # with what is installed here
    python -m tools.upstream --sources FOLDER       # with FOLDER/FRAMEWORK: unpacked wheels, or clones
    python -m tools.upstream --sources FOLDER --fetch           # with the newest wheels and clones, fetched to FOLDER
    python -m tools.upstream --sources FOLDER --record verl     # take what is there as read

`upstream.json` has a row for each thing rested on: repository, version, path, symbol, a hash of its source, and the
names in it (parameters, fields, and words that it compares with). Exit code 1 if one changed or is gone, 2 if nothing
could be compared. It runs nothing of what it reads.
"""

import argparse
import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

DATA = Path(__file__).with_name("upstream.json")


@dataclass(frozen=True)
class Rest:
    """One thing that a part of ours rests on.

    Attributes:
        framework: its name here.
        repository: owner and name.
        package: the distribution that has it; empty where there is none.
        version: of the distribution, or the commit, that was read.
        path: of the file, from the folder that a wheel unpacks to, or from the root of the repository.
        symbol: dotted, in that file; empty for the whole file.
        parts: files of ours that are touched when it changes.
        hash: of its source without comments and blank lines; empty if it was never read.
        names: parameters, fields and words in it.
    """

    framework: str
    repository: str
    package: str
    version: str
    path: str
    symbol: str
    parts: tuple[str, ...]
    hash: str = ""
    names: tuple[str, ...] = ()


def read_rests(path: Path = DATA) -> list[Rest]:
    """Read the data file."""
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    lists = ("parts", "names")
    values: list[dict[str, Any]] = [{**row, **{k: tuple(row.get(k, ())) for k in lists}} for row in rows]
    return [Rest(**value) for value in values]


def write_rests(rests: Sequence[Rest], path: Path = DATA) -> None:
    """Write the data file, a row a line."""
    lines = ",\n".join(json.dumps({k: v for k, v in asdict(r).items() if v or k != "names"}) for r in rests)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def source_of(text: str, symbol: str) -> str | None:
    """The source of a symbol, or of the whole file; None if it is not there."""
    if not symbol:
        return text
    body: Sequence[ast.AST] = ast.parse(text).body
    node: ast.AST | None = None
    for name in symbol.split("."):
        node = next((n for n in _defined(body) if name in _names_of(n)), None)
        if node is None:
            return None
        body = getattr(node, "body", [])
    first = min([getattr(node, "lineno", 1), *(d.lineno for d in getattr(node, "decorator_list", []))])
    return "\n".join(text.splitlines()[first - 1 : getattr(node, "end_lineno", None)])


def _defined(body: Sequence[ast.AST]) -> Iterator[ast.AST]:
    """Statements of a body, those under a condition too."""
    for node in body:
        yield node
        if isinstance(node, (ast.If, ast.Try)):
            yield from _defined([*node.body, *node.orelse])


def _names_of(node: ast.AST) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [t.id for t in targets if isinstance(t, ast.Name)]


def hash_of(source: str) -> str:
    """Hash a source; its comments, blank lines and depth do not count."""
    lines = [line.rstrip() for line in textwrap.dedent(source).splitlines()]
    kept = [line for line in lines if line and not line.lstrip().startswith("#")]
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:16]


def names_in(source: str) -> tuple[str, ...]:
    """Parameters, fields, and words that are compared with or listed: what an option of it may be."""
    found: set[str] = set()
    try:
        tree = ast.parse(textwrap.dedent(source))
    except SyntaxError:
        return ()
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.ClassDef):
            found |= {n for statement in node.body for n in _names_of(statement) if not n.startswith("_")}
        elif isinstance(node, (ast.Compare, ast.Subscript, ast.Dict, ast.Set, ast.Tuple, ast.List)):
            words = [n.value for n in ast.iter_child_nodes(node) if isinstance(n, ast.Constant)]
            found |= {w for w in words if isinstance(w, str) and w.isidentifier() and len(w) <= 40}
    return tuple(sorted(found - {"self", "cls"}))


def file_of(rest: Rest, sources: Path | None) -> Path | None:
    """The file of a row: under the folder of sources, or where its package is installed."""
    if sources is not None:
        roots = [sources / rest.framework, *sorted((sources / rest.framework).glob("*.data/purelib")), sources]
        return next((r / rest.path for r in roots if (r / rest.path).is_file()), None)
    if not rest.package:
        return None
    try:
        spec = importlib.util.find_spec(rest.path.split("/")[0])
    except (ImportError, ValueError):
        return None
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    return next((p for place in places if (p := Path(place).parent / rest.path).is_file()), None)


def _there(rest: Rest, sources: Path | None) -> bool:
    """Tell whether anything of the row's framework is there to be compared with."""
    if sources is not None:
        return (sources / rest.framework).is_dir() or (sources / rest.path.split("/")[0]).is_dir()
    try:
        return bool(rest.package) and bool(importlib.metadata.version(rest.package))
    except importlib.metadata.PackageNotFoundError:
        return False


def version_of(rest: Rest, sources: Path | None) -> str:
    """The version or commit that is compared with; empty where the sources do not say."""
    if sources is None:
        return importlib.metadata.version(rest.package)
    folder, name = sources / rest.framework, rest.package.replace("-", "_").lower()
    told = [
        i.name.removesuffix(".dist-info").split("-")[1]
        for i in folder.glob("*.dist-info")
        if i.name.lower().startswith(f"{name}-")
    ]
    if not told and (folder / ".git").exists():
        command = ["git", "-C", str(folder), "rev-parse", "--short=10", "HEAD"]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return told[0] if told else ""


def compare(rest: Rest, sources: Path | None) -> tuple[str, Rest]:
    """Say what changed, nothing if nothing did; and the row as it would be now."""
    path = file_of(rest, sources)
    if path is None:
        return f"{rest.path} is gone", rest
    try:
        source = source_of(path.read_text(encoding="utf-8", errors="replace"), rest.symbol)
    except SyntaxError as e:
        return f"{rest.path}:{e.lineno}: is no Python that this one reads", rest
    if source is None:
        return f"{rest.symbol} is gone from {rest.path}", rest
    now = replace(rest, hash=hash_of(source), names=names_in(source), version=version_of(rest, sources) or rest.version)
    if now.hash == rest.hash:
        return "", now
    came, went = set(now.names) - set(rest.names), set(rest.names) - set(now.names)
    told = [f"new: {', '.join(sorted(came))}"] if came else []
    told += [f"gone: {', '.join(sorted(went))}"] if went else []
    return f"{rest.symbol or 'it'} of {rest.path} changed{'; ' if told else ''}{'; '.join(told)}", now


def fetch(rests: Sequence[Rest], sources: Path) -> list[str]:
    """Fetch the newest wheel of each package, unpacked, and a clone of what has none; name what cannot be had."""
    failed: list[str] = []
    wheels = sources / "wheels"
    for framework, package, repository in dict.fromkeys((r.framework, r.package, r.repository) for r in rests):
        folder = sources / framework
        if package:
            to = wheels / package
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "-q"]
            # The newest of some needs a newer Python than this one; its source is read all the same.
            command += ["--ignore-requires-python", "-d", str(to), package]
        else:
            command = ["git", "clone", "--depth", "1", "-q", f"https://github.com/{repository}", str(folder)]
        if subprocess.run(command, check=False).returncode:
            failed.append(package or repository)
        elif package:
            for wheel in (wheels / package).glob("*.whl"):
                with zipfile.ZipFile(wheel) as archive:
                    archive.extractall(folder)
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison and print what is touched."""
    parser = argparse.ArgumentParser(prog="python -m tools.upstream", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("frameworks", nargs="*", help="all if none is named")
    parser.add_argument("--sources", type=Path, help="a folder of sources; what is installed if not given")
    parser.add_argument("--data", type=Path, default=DATA, help="the data file")
    parser.add_argument("--fetch", action="store_true", help="fetch the newest of everything to that folder first")
    parser.add_argument("--record", action="store_true", help="take what is there as read")
    given = parser.parse_args(arguments)
    rests = read_rests(given.data)
    known = {r.framework for r in rests}
    unknown = set(given.frameworks) - known
    if unknown:
        parser.error(f"nothing is recorded of {', '.join(sorted(unknown))}; known are {', '.join(sorted(known))}")
    if given.fetch and given.sources is None:
        parser.error("--fetch needs --sources FOLDER")
    mine = [r for r in rests if not given.frameworks or r.framework in given.frameworks]
    failed = fetch(mine, given.sources) if given.fetch else []
    rows: list[Rest] = []
    changes, compared, absent = 0, 0, set[str]()
    for rest in rests:
        rows.append(rest)
        if rest not in mine:
            continue
        if not _there(rest, given.sources):
            absent.add(rest.framework)
            continue
        compared += 1
        said, now = compare(rest, given.sources)
        if given.record:
            rows[-1] = now
        if said:
            changes += 1
            where = f"{rest.framework} {rest.version} -> {version_of(rest, given.sources) or 'these sources'}"
            print(f"{where}: {said}\n  touches {', '.join(rest.parts)}")
    if failed:
        print(f"could not be fetched: {', '.join(failed)}")
    if absent:
        print(f"not here, not compared: {', '.join(sorted(absent))}")
    print(f"{compared} compared, {changes} changed")
    if given.record:
        write_rests(rows, given.data)
        return 0
    return 2 if not compared else 1 if changes else 0


if __name__ == "__main__":
    sys.exit(main())
