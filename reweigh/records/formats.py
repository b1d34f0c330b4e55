"""Which files are read and how: the one thing that the functions on record files take to read other files too."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from reweigh.records.paths import Paths
from reweigh.records.reader import Reader


@dataclass(frozen=True)
class Formats:
    """A set of file formats, as two functions of paths.

    Attributes:
        expand: from what a user names (files, folders, globs) to the files, each once, in the order to read them.
        reader_of: how to read one of them; travels to other processes by name.
    """

    expand: Callable[[Paths], list[Path]]
    reader_of: Callable[[Path], Reader]
