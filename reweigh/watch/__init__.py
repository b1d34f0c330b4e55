"""Watch a run: follow a folder of dumps that grows, and keep the audit of it up to date."""

from reweigh.watch.folder import Look, Memory, ReadSoFar, Trouble, Watched, look

__all__ = [
    "Look",
    "Memory",
    "ReadSoFar",
    "Trouble",
    "Watched",
    "look",
]
