"""From what a user names (files, folders, globs) to the list of record files."""

import glob
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Literal

Format = Literal["parquet", "jsonl"]
Paths = str | PathLike[str] | Iterable[str | PathLike[str]]

_FORMATS: tuple[tuple[str, Format], ...] = (
    (".parquet", "parquet"),
    (".pq", "parquet"),
    (".jsonl", "jsonl"),
    (".jsonl.gz", "jsonl"),
)
_IN_FOLDERS = (".parquet", ".jsonl", ".jsonl.gz")


def format_of(path: Path) -> Format:
    """Parquet or JSONL, by the name's ending."""
    for ending, name in _FORMATS:
        if path.name.endswith(ending):
            return name
    raise ValueError(
        f"{path}: records are {', '.join(ending for ending, _ in _FORMATS)}, got {path.suffix or 'no extension'}\n"
        "hint: rename the file if it is one of these."
    )


def expand(paths: Paths) -> list[Path]:
    """List the record files, in the order given; a folder's or glob's files by name, and each file once.

    Args:
        paths: one or many files, folders (their `*.parquet`, `*.jsonl` and `*.jsonl.gz`) or globs.

    Raises:
        FileNotFoundError: nothing is there; a folder has no record file; a glob matches none.
        ValueError: a file's extension is none of those.
    """
    given = [paths] if isinstance(paths, str | PathLike) else list(paths)
    if not given:
        raise ValueError("expand: no path was given\nhint: name at least one file, folder or glob of records.")
    found: dict[Path, Path] = {}
    for item in given:
        for path in _expand_one(Path(item)):
            format_of(path)
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _expand_one(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.name.endswith(_IN_FOLDERS) and p.is_file())
        if not files:
            raise FileNotFoundError(
                f"{path}: the folder has no record file ({', '.join('*' + e for e in _IN_FOLDERS)})\n"
                "hint: subfolders are not searched; name the folder that holds the files, or use a glob."
            )
        return files
    if path.exists():
        return [path]
    if glob.has_magic(str(path)):
        matches = [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
        files = [p for p in matches if p.is_file()]
        if not files:
            raise FileNotFoundError(f"{path}: no file matches\nhint: quote the glob, and check it with ls.")
        return files
    raise FileNotFoundError(f"{path}: no such file or folder")
