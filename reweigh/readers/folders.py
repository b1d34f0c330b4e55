"""From what a user names (files, folders, globs) to the files of a dump."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from os import PathLike
from pathlib import Path
from typing import Any

from reweigh.readers.form import Format
from reweigh.readers.recognition import FORMATS, RECORDS, UnknownFormatError, broken_lines, look, named, recognise
from reweigh.records.paths import Paths, expand
from reweigh.records.violation import UnreadableFileError

_ENDINGS = tuple(dict.fromkeys(e for one in FORMATS.values() for e in one.endings))


@dataclass(frozen=True)
class Found:
    """The files of a dump, each standing for all that is read with it.

    Attributes:
        paths: in order of their names, numbers in them as numbers.
        ignored: files of the folders that no reader knows.
    """

    paths: tuple[Path, ...]
    ignored: tuple[Path, ...] = ()


def find(paths: Paths, reader: str | None = None) -> Found:
    """The files that are meant by files, folders and globs, each once; folders of dumps with their subfolders.

    Args:
        paths: what a user named.
        reader: a format's name, to not look into the files.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a folder has dumps of several formats, or nothing that a reader knows.
    """
    given = [paths] if isinstance(paths, str | PathLike) else list(paths)
    if not given:
        raise ValueError("find: no path was given\nhint: name at least one file, folder or glob.")
    found: dict[Path, Path] = {}
    ignored: list[Path] = []
    for item in map(Path, given):
        if item.is_dir():
            here = _folder(item, reader)
            ignored += here.ignored
            chosen: Sequence[Path] = here.paths
        elif item.exists() or not has_magic(str(item)):
            chosen = [_stands_for(path, reader) for path in _existing(item)]
        else:
            matches = sorted(map(Path, glob(str(item), recursive=True)), key=_natural)
            if not matches:
                raise FileNotFoundError(f"{item}: no file matches\nhint: quote the glob, and check it with ls.")
            chosen = [_stands_for(path, reader) for path in matches if path.is_file()]
        for path in chosen:
            found.setdefault(path.resolve(), path)
    return Found(tuple(found.values()), tuple(ignored))


def _existing(path: Path) -> list[Path]:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    return [path]


def _stands_for(path: Path, reader: str | None) -> Path:
    one = recognise(path) if reader is None else named(reader)
    if one is None:
        return expand(path)[0]
    return one.lead(path) or path


def _folder(folder: Path, reader: str | None) -> Found:
    if reader is not None:
        one = named(reader)
        if one is None:
            return Found(tuple(expand(folder)))
        files = [path for path in _files(folder) if path.name.endswith(one.endings)]
        chosen = [path for path in files if _may_be(one, path)]
        return Found(_leads(chosen or files, one, folder))
    kinds: dict[str, list[Path]] = {}
    beside: dict[str, list[Path]] = {}  # what is read together with others, if these are there
    unknown: list[Path] = []
    broken: list[Path] = []
    for path in _files(folder):
        try:
            if broken_lines(look(path)):
                (broken if path.stat().st_size else unknown).append(path)
                continue
            one = recognise(path)
        except UnknownFormatError:
            unknown.append(path)
        except UnreadableFileError:
            broken.append(path)
        else:
            if one is None and path.parent == folder:
                kinds.setdefault(RECORDS, []).append(path)
            elif one is None:
                unknown.append(path)
            else:
                (kinds if one.lead(path) is not None else beside).setdefault(one.name, []).append(path)
    kinds = kinds or beside
    if len(kinds) > 1:
        listed = "; ".join(f"{name}: {len(files)}, such as {files[0]}" for name, files in kinds.items())
        raise ValueError(
            f"{folder}: files of several formats are in one folder: {listed}\n"
            "hint: name the subfolder or files of one of them, or choose with --reader."
        )
    if not kinds and (broken or unknown):
        recognise([*broken, *unknown][0])  # raises, unless it is broken lines
    if not kinds or RECORDS in kinds:
        return Found(tuple(expand(folder)))
    [(name, files)] = kinds.items()
    # a file that cannot be read, among those that can, is one of them: reading it says what is wrong with it
    homes = {(path.parent, path.suffix) for path in files}
    files += [path for path in broken if (path.parent, path.suffix) in homes]
    ignored = [path for path in (*unknown, *broken) if path not in files]
    return Found(_leads(sorted(files, key=_natural), FORMATS[name], folder), tuple(ignored))


def _may_be(one: Format, path: Path) -> bool:
    """Whether a file is of a format; one that cannot be read is taken, so that reading it says why."""
    try:
        head = look(path)
    except UnreadableFileError:
        return True
    return one.recognises(head) or broken_lines(head)


def _files(folder: Path) -> Iterator[Path]:
    found = (p for p in folder.rglob("*") if p.name.endswith((*_ENDINGS, ".parquet")) and p.is_file())
    yield from sorted(found, key=_natural)


def _leads(files: Sequence[Path], one: Format, folder: Path) -> tuple[Path, ...]:
    leads = dict.fromkeys(lead for path in files if (lead := one.lead(path)) is not None) or dict.fromkeys(files)
    if not leads:
        raise FileNotFoundError(f"{folder}: the folder has no file of {one.title}\nhint: name the files themselves.")
    return tuple(leads)


def _natural(path: Path) -> list[Any]:
    """Order of names in which step_9 comes before step_10."""
    return [(int(x), "") if x.isdigit() else (-1, x) for x in re.split(r"(\d+)", str(path))]
