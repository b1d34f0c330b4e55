"""Docstrings in the form that the generated reference knows: an example is a section, a label begins a paragraph."""

import re
from typing import Any

import griffe

LABEL = re.compile(r"^(When|Cost|Also called|Assumes|Source|Note):(?= |$)", re.M)
INLINE = re.compile(r"(?<=[.;]) (?=Cost: )")


class Labels(griffe.Extension):
    """Turns `Example:` into the section `Examples:`, and gives `Source:` and its like a paragraph of their own."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each class, function and value."""
        if obj.docstring is not None:
            obj.docstring.value = formed(obj.docstring.value)


def formed(text: str) -> str:
    """The docstring as it is to be shown."""
    text = re.sub(r"^Example:[ ]*$", "Examples:", text, flags=re.M)
    text = INLINE.sub("\n", text)
    return LABEL.sub(r"\n**\1:**", text)
