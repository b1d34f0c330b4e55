"""Pages of the site that stand elsewhere in the repository: the changelog, how to contribute, and files linked to."""

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
LANGUAGES = {".py": "python", ".sh": "bash", ".yaml": "yaml", ".yml": "yaml", ".cff": "yaml"}
LINK = re.compile(r"(?<=\]\()([^)#\s]+)(#[^)\s]*)?(?=\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages, and one for each file outside of the folder that some page links to."""
    docs = Path(config.docs_dir)
    wanted = dict(PAGES)
    for path in sorted(docs.rglob("*.md")):
        for link in LINK.finditer(path.read_text()):
            name = outside(path.relative_to(docs).as_posix(), link[1])
            if name:
                wanted.setdefault(name, address(name))
    for name, uri in wanted.items():
        files.append(File.generated(config, uri, content=text_of(name, uri)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links out of the folder into links to the pages that were added."""
    here = page.file.src_uri
    if here in (*PAGES.values(), "files") or here.startswith("files/"):
        return markdown

    def moved(link: re.Match[str]) -> str:
        name = outside(here, link[1])
        return relpath(PAGES.get(name, address(name)), str(PurePosixPath(here).parent)) if name else link[0]

    return tidy(LINK.sub(moved, markdown))


def outside(page: str, link: str) -> str:
    """The name from the root of the repository if the link of a page leaves the folder, else nothing."""
    if "://" in link or link.startswith(("/", "mailto:")):
        return ""
    name = normpath(str(PurePosixPath("docs") / PurePosixPath(page).parent / link))
    return "" if name == "docs" or name.startswith("docs/") else name


def address(name: str) -> str:
    """Where a file of the repository stands in the site."""
    return f"files/{name}.md"


def text_of(name: str, uri: str) -> str:
    """The page of a file of the repository: itself, its code, or what is in the folder.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    path = ROOT / name
    if path.is_dir():
        rows = [f"| `{one.name}` | {one.stat().st_size:,} |" for one in sorted(path.iterdir()) if one.is_file()]
        return "\n".join(
            [f"# {name}", "", "A folder of the repository.", "", "| file | bytes |", "|---|---|", *rows, ""]
        )
    text = path.read_text()
    if path.suffix != ".md":
        return f"# {name}\n\nA file of the repository.\n\n````{LANGUAGES.get(path.suffix, 'text')}\n{text}````\n"

    def moved(link: re.Match[str]) -> str:
        there = PurePosixPath(link[1])
        if "://" in link[1] or there.parts[0] != "docs":
            return link[0]
        return relpath(str(PurePosixPath(*there.parts[1:])), str(PurePosixPath(uri).parent)) + (link[2] or "")

    return tidy(LINK.sub(moved, text))


def tidy(markdown: str) -> str:
    """A bar that a table's code must escape for other readers of Markdown need not show its backslash here."""
    lines = markdown.split("\n")
    return "\n".join(unescaped(line) if line.startswith("|") else line for line in lines)


def unescaped(row: str) -> str:
    """A row of a table whose code spans with escaped bars are written as HTML."""

    def code(span: re.Match[str]) -> str:
        if "\\|" not in span[1]:
            return span[0]
        plain = span[1].replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return f"<code>{plain.replace(chr(92) + '|', '&#124;')}</code>"

    return re.sub(r"`([^`]+)`", code, row)
