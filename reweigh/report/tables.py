"""Tables and lines of a report, each number of them rounded once, and how a terminal, a page and Markdown show them."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Literal

from reweigh.guard import shown as visible

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

WIDE = 100  # characters of a terminal from which on a table has all its columns, and beyond which none grows
MEDIUM = 80  # and from which on most
Frame = Literal["rule", "none", "box"]
MAX_NAME = 120  # characters of a name that the records or the user gave, in a table of a page
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red", "code": ""}
_GAPS = {1: (0, 1, 0, 0), 2: (0, 1), 3: (0, 3, 0, 0)}  # spaces between columns, as rich pads cells


@dataclass(frozen=True)
class Cell:
    """A text.

    Attributes:
        text: as it is shown.
        tip: what it says to who points at it; nothing if empty.
        style: words out of "bold", "dim", "ok", "warn" and "fail" for a terminal, or "code" for a page.
    """

    text: str
    tip: str = ""
    style: str = ""


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        heading: of it.
        align: of what is in it.
        wrap: whether a terminal may break its lines.
        most: characters beyond which a terminal cuts a cell off; 0 for no limit.
        width: characters that a terminal gives it at least; 0 for as many as are needed.
        short: the heading on a terminal, which has less room than a page; None for the same.
        spare: characters of a terminal under which it goes without it; 0 for none.
        prose: whether it holds sentences, which a page breaks.
    """

    heading: str = ""
    align: Literal["left", "right"] = "right"
    wrap: bool = False
    most: int = 0
    width: int = 0
    short: str | None = None
    spare: int = 0
    prose: bool = False


NAMES = Column(align="left", wrap=True)
INTERVAL = Column("95% interval", "left")


@dataclass(frozen=True)
class Table:
    """Rows of cells under headings; the first cell of a row heads it.

    Attributes:
        columns: their headings, and how they are set.
        rows: of as many cells; a text is a cell without a tip.
        title: above it; empty for none.
        notes: what to say under it.
        frame: a "rule" under the headings, "none", or a "box".
        gap: spaces between columns, 1 to 3.
        headed: whether the headings are shown.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""
    notes: tuple[str, ...] = ()
    frame: Frame = "rule"
    gap: int = 2
    headed: bool = True

    @classmethod
    def of(
        cls,
        columns: Iterable[Column],
        rows: Iterable[Iterable[Cell | str]],
        title: str = "",
        notes: Iterable[str] = (),
        frame: Frame = "rule",
        gap: int = 2,
        headed: bool = True,
    ) -> "Table":
        """Makes cells of texts, and empty ones of those that are missing at the end of a row."""
        heads = tuple(columns)
        filled: list[tuple[Cell, ...]] = []
        for row in rows:
            cells = [Cell(x) if isinstance(x, str) else x for x in row]
            filled.append((*cells, *[Cell("")] * (len(heads) - len(cells))))
        return cls(heads, tuple(filled), title, tuple(notes), frame, gap, headed)

    def only(self, *columns: int, title: str, notes: Iterable[str] = ()) -> "Table":
        """Some of its columns, by number, as a table of its own."""
        rows = tuple(tuple(row[i] for i in columns) for row in self.rows)
        return replace(self, columns=tuple(self.columns[i] for i in columns), rows=rows, title=title, notes=(*notes,))


@dataclass(frozen=True)
class Line:
    """A paragraph.

    Attributes:
        parts: texts, each with its style.
        indent: spaces before each of its lines.
        wrap: whether it is broken at the width, or left to the reader's.
        words: whether one that is left to the reader's is broken between words all the same if that is a terminal.
    """

    parts: tuple[tuple[str, str], ...]
    indent: int = 0
    wrap: bool = True
    words: bool = False

    @property
    def text(self) -> str:
        """Leaves the styles out."""
        return " " * self.indent + "".join(text for text, _ in self.parts)


Block = Line | Table
EMPTY = Line((("", ""),))


def line(text: str, style: str = "", indent: int = 0) -> Line:
    """Make a paragraph in one style, which a terminal breaks at its width."""
    return Line(((text, style),), indent)


def unbroken(text: str, style: str = "", words: bool = True) -> Line:
    """Make a paragraph in one style, as long as it is; a terminal breaks it between words, or not if it is copied."""
    return Line(((text, style),), wrap=False, words=words)


def to_terminal(blocks: Iterable[Block], console: "Console", most: int | None = None) -> None:
    """Prints blocks on a console, in at most so many columns of it."""
    width = None if most is None else min(most, console.width)
    for block in blocks:
        if isinstance(block, Table):
            console.print(rendered(block, console.width), width=width)
            for note in block.notes:
                console.print(rendered(line(note, "dim"), console.width), width=width)
        elif block.wrap or (block.words and console.is_terminal):
            console.print(rendered(block, console.width), width=width)
        else:
            console.print(rendered(block, console.width), soft_wrap=True)


def rendered(block: Block, width: int) -> "RenderableType":
    """Draw a block by rich; the notes of a table are left to who prints it.

    Args:
        block: a line or a table.
        width: characters of the terminal, for what a narrow one goes without.
    """
    from rich import box
    from rich.padding import Padding
    from rich.table import Table as Drawn
    from rich.text import Text

    if isinstance(block, Line):
        text = Text.assemble(*((visible(part), _colour(style)) for part, style in block.parts))
        return Padding(text, (0, 0, 0, block.indent)) if block.indent else text
    boxed = block.frame == "box"
    drawn = Drawn(
        title=Text(visible(block.title), "bold") if block.title else None,
        title_justify="left",
        box={"rule": box.SIMPLE_HEAD, "none": None, "box": box.HEAVY_HEAD}[block.frame],
        pad_edge=boxed,
        show_edge=boxed,
        show_header=block.headed,
        padding=_GAPS[block.gap],
    )
    shown = [i for i, column in enumerate(block.columns) if width >= column.spare]
    for column in (block.columns[i] for i in shown):
        drawn.add_column(
            Text(column.heading if column.short is None else column.short),
            justify=column.align,
            no_wrap=not column.wrap,
            overflow="fold" if column.wrap else "ellipsis",  # a long path is broken, and nothing of it lost
            max_width=column.most or None,
            width=column.width or None,
        )
    for row in block.rows:
        drawn.add_row(*(Text(visible(row[i].text, one_line=True), _colour(row[i].style)) for i in shown))
    return drawn


def to_html(table: Table) -> str:
    """Write a table of a page; its title stands above it, and its notes below."""
    out = [f"<h2>{escape(table.title)}</h2>"] if table.title else []
    region = f' tabindex="0" role="region" aria-label="{escape(table.title)}"' if table.title else ""
    out.append(f'<div class="scroll"{region}>\n<table>\n<thead><tr>')
    kinds = [
        f' class="{"words" if x.prose else "range" if x.heading == INTERVAL.heading else "text"}"' * (x.align == "left")
        for x in table.columns
    ]
    out += [f'<th scope="col"{kind}>{escape(x.heading)}</th>' for x, kind in zip(table.columns, kinds, strict=True)]
    out.append("</tr></thead>\n<tbody>")
    for row in table.rows:
        first, *rest = (
            cell_html(cell if column.prose else replace(cell, text=cut_off(cell.text, MAX_NAME)))
            for column, cell in zip(table.columns, row, strict=True)
        )
        cells = (f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds[1:], rest, strict=True))
        strong = ' class="use"' if "bold" in row[0].style else ""
        out.append(f'\n<tr{strong}><th scope="row">{first}</th>{"".join(cells)}</tr>')
    out.append("\n</tbody>\n</table>\n</div>")
    out += [f'\n<p class="soft">{escape(note)}</p>' for note in table.notes]
    return "".join(out)


def cell_html(cell: Cell) -> str:
    """Write a cell of a page; one with a tip can be pointed at, and moved to with the keyboard."""
    words = escape(visible(cell.text))
    text = f"<code>{words}</code>" if cell.style == "code" else words
    if not cell.tip:
        return text
    tip = escape(cell.tip)
    return f'<span class="n" tabindex="-1" title="{tip}">{text}</span>'  # which the page's script shows at once


def cut_off(text: str, most: int) -> str:
    """Cut off a text that does not fit."""
    return text if len(text) <= most else text[: most - 3] + "..."


def to_markdown(table: Table) -> str:
    """Write a table of a Markdown document; no markup of a name in it is taken for ours."""
    heads = [column.heading for column in table.columns]
    lines = ["|" + "|".join(f" {in_markdown(x)} " if x else " " for x in heads) + "|", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(in_markdown(cell.text) for cell in row) + " |" for row in table.rows]
    return "\n".join(lines)


_CONTROL = re.compile(r"[^\x20-\x7e\u00a0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def one_line(words: str) -> str:
    """Leave out line breaks and control characters, which a name in a record may hold."""
    return _CONTROL.sub("\ufffd", " ".join(words.split()))


def in_markdown(words: str) -> str:
    """Write a text of Markdown, in one line."""
    words = one_line(words).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([|`*_\[\]~@#])", r"\\\1", words)


def columns(*headings: str, first: Sequence[Column] = (NAMES,), wrap: bool = False) -> tuple[Column, ...]:
    """Columns of names, then of numbers under these headings; those of intervals are set to the left."""
    return (*first, *(INTERVAL if x == INTERVAL.heading else Column(x, wrap=wrap) for x in headings))


def _colour(style: str) -> str:
    return " ".join(_COLOURS.get(word, word) for word in style.split())
