"""The site builds without a warning, nothing in it leads nowhere, every public name is in it, and its commands run."""

import fcntl
import importlib
import io
import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import griffe
import pytest
import yaml
from browser import CHROMIUM, Browser

import reweigh
from reweigh.__main__ import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
NEAR = ("docs", "examples", "benchmarks", "tests")  # folders whose files a command on a page may name


def built(folder):
    """The site, built as `make docs` does; by the first of several processes that asks."""
    out = folder / "site"
    with (folder / "site.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (out / "done").exists():
            command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(out)]
            done = subprocess.run(
                command,
                cwd=ROOT,
                env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
                capture_output=True,
                text=True,
                check=False,
            )
            assert (done.returncode, done.stdout + done.stderr) == (0, "")
            (out / "done").touch()
    return out


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    return built(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)


class Page(HTMLParser):
    """The anchors of a page, where its links go, and what it loads."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.loads = set(), [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag == "link" and given.get("href"):
            self.loads.append(given["href"])
        elif given.get("src"):
            self.loads.append(given["src"])


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in sorted(site.glob("**/*.html"))}


def broken(pages, site):
    """Each link within the site to a file or an anchor that is not there."""
    for path, page in pages.items():
        for link in page.links + page.loads:
            there, anchor = urldefrag(link)
            if re.match(r"[a-z]+:", there):
                continue
            target = path if not there else (path.parent / unquote(there)).resolve()
            if not target.is_relative_to(site.resolve()) or not target.exists():
                yield f"{path.relative_to(site)}: {link}"
            elif (
                anchor and anchor != "__codelineno" and target in pages and unquote(anchor) not in pages[target].anchors
            ):
                yield f"{path.relative_to(site)}: {link}: no such anchor"


def test_links_lead_somewhere(pages, site):
    resolved = {path.resolve(): page for path, page in pages.items() if path.name != "404.html"}
    assert len(resolved) > 40
    assert list(broken(resolved, site)) == []


def test_a_link_to_nowhere_is_found(tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html#here"></a><a href="b.html#there"></a><a href="c.html"></a>')
    (tmp_path / "b.html").write_text('<h2 id="here"></h2>')
    pages = {path.resolve(): Page(path) for path in tmp_path.glob("*.html")}
    assert list(broken(pages, tmp_path)) == ["a.html: b.html#there: no such anchor", "a.html: c.html"]


def test_nothing_is_loaded_from_elsewhere(pages, site):
    for path, page in pages.items():
        assert not [x for x in page.loads if x.startswith(("http", "//"))], path
        assert "mermaid" not in path.read_text(), f"{path}: the theme would load its renderer from elsewhere"
    for style in site.glob("**/*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style.read_text()), style


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_opened_from_a_folder_it_shows_and_searches(site):
    browser = Browser()
    try:
        for page in ("index.html", "reference/estimators.html"):
            browser.size(400, 900)
            browser.media(dark=True)
            browser.call("Page.navigate", url=(site / page).resolve().as_uri())
            browser.until(f"location.href.endsWith('{page}') && document.readyState === 'complete'")
            assert browser.js("document.documentElement.scrollWidth") <= 400, f"{page} is wider than a narrow screen"
            assert browser.js("document.body.dataset.mdColorScheme") == "slate"
        browser.js("document.querySelector('[data-md-toggle=search]').click()")
        browser.js("document.querySelector('.md-search__input').value = 'geo_rs'")
        browser.until(
            "document.querySelector('.md-search__input').dispatchEvent(new Event('keyup', {bubbles: true})),"
            "document.querySelectorAll('.md-search-result__item').length > 0"
        )
        assert browser.errors == []
        assert not [x for x in browser.requests if not x.startswith(("file:", "data:", "about:", "blob:"))]
    finally:
        browser.close()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_copy_button_of_a_console_copies_the_command_alone(site):
    browser = Browser()
    try:
        browser.call("Page.navigate", url=(site / "start.html").resolve().as_uri())
        browser.until("document.querySelectorAll('.highlight:has(.gp) [data-clipboard-target]').length > 3")
        browser.js("document.querySelectorAll('[data-clipboard-target]').forEach(one => one.click())")
        copied = browser.js(
            "[...document.querySelectorAll('.highlight:has(.gp) [data-clipboard-target]')]"
            ".map(one => one.dataset.clipboardText)"
        )
        page = (ROOT / "docs" / "start.md").read_text()
        blocks = [block.split("```")[0] for block in page.split("```console\n")[1:]]
        assert copied == ["\n".join(re.findall(r"^\$ (.*)", block, re.M)) for block in blocks]
        others = "[...document.querySelectorAll('.highlight:not(:has(.gp)) [data-clipboard-text]')].length"
        assert browser.js(others) == 0
    finally:
        browser.close()


def public_names():
    """What each package says is public."""
    packages = ["reweigh", *(m.name for m in pkgutil.walk_packages(reweigh.__path__, "reweigh.") if m.ispkg)]
    for package in (*packages, "reweigh.doctor.causes"):
        names = getattr(importlib.import_module(package), "__all__", ())
        yield from (f"{package}.{name}" for name in names)


@cache
def sources():
    return griffe.load("reweigh", search_paths=[str(ROOT)], resolve_aliases=True)


def source(name):
    """The object behind a dotted name, where it is defined."""
    found = sources()
    for part in name.split(".")[1:]:
        found = found[part]
    return found.final_target if found.is_alias else found


def silent(found):
    return found.docstring is None or not found.docstring.value.strip()


def test_every_public_name_says_what_it_is():
    """A value does so in a string behind it."""
    assert [name for name in public_names() if silent(source(name))] == []


def test_every_public_name_is_in_the_reference(pages):
    """If this fails, add `::: the.name` to a page of docs/reference."""
    anchors = set().union(*(page.anchors for path, page in pages.items() if path.parent.name == "reference"))
    shown = {source(name).path for name in anchors if re.fullmatch(r"reweigh(\.\w+)+", name) and is_there(name)}
    assert [name for name in public_names() if source(name).path not in shown] == []


def is_there(name):
    """False for an anchor that is inherited from elsewhere."""
    try:
        return source(name) is not None
    except KeyError:
        return False


def test_a_value_without_a_docstring_is_found():
    module = griffe.visit("m", filepath=Path("m.py"), code='A = 1\nB = 2\n"""Two."""\n')
    assert (silent(module["A"]), silent(module["B"])) == (True, False)


def fences(path, *languages):
    """The blocks of a page in one of these languages, each with the line it starts at."""
    text = path.read_text()
    for match in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.M | re.S):
        if match[1] in languages:
            yield text[: match.start()].count("\n") + 2, match[2]


def commands(block):
    """Each `$ command` of a console block, with what is shown below it."""
    for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
        command, _, shown = part.partition("\n")
        yield command, shown


def agrees(shown, printed):
    """Whether output is as a page shows it, where `...` stands for anything."""
    tidy = lambda text: "\n".join(line.rstrip() for line in text.strip().split("\n"))  # noqa: E731
    return re.fullmatch(".*".join(map(re.escape, tidy(shown).split("..."))), tidy(printed), re.S) is not None


@pytest.mark.parametrize(("shown", "fits"), [("a b\n...\n", True), ("a ...c", True), ("b...", False), ("a b", False)])
def test_shown_output_is_compared(shown, fits):
    assert agrees(shown, "a b \nc\n") is fits


WITH_CONSOLE = [page for page in PAGES if any(fences(page, "console"))]


@pytest.mark.parametrize("page", WITH_CONSOLE, ids=lambda p: p.name)
def test_console_blocks_print_what_they_show(page, tmp_path, monkeypatch, capsys):
    """In order, in a folder that has the repository's examples."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "typo.yaml").write_text("version: 1\nbounds:\n  - {number: kl_k4, level: token, at_most: 1}\n")
    for line, block in fences(page, "console"):
        for command, shown in commands(block):
            program, *arguments = shlex.split(command)
            if program == "reweigh":
                code, (out, err) = main(arguments), capsys.readouterr()
            else:
                assert program == "python", f"{page.name}, line {line}: {command}"
                environment = {**os.environ, "PYTHONPATH": str(ROOT)}
                done = subprocess.run(
                    [sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment
                )
                code, out, err = done.returncode, done.stdout, done.stderr
            place = f"{page.name}, after line {line}: {command}\n{out}{err}"
            assert code in ((2,) if shown.startswith("error:") else (0, 1)), place
            assert not shown or agrees(shown, out) or agrees(shown, err) or agrees(shown, err + out), place


def lines_of_shell(page):
    """Command lines of the blocks of a page that are shown and not run, continued ones put together."""
    for first, block in fences(page, "", "bash", "sh"):
        for offset, line in enumerate(block.replace("\\\n", "  ").split("\n")):
            line = re.sub(r"^\$ ", "", line)
            line = re.sub(r"^(\w+=\S+ )+", "", line)
            yield first + offset, line


@cache
def options_of(*command):
    """What its help names, as a set of options; None if there is no such command."""
    out, sys.stdout = sys.stdout, io.StringIO()
    err, sys.stderr = sys.stderr, io.StringIO()
    try:
        code, text = main([*command, "--help"]), sys.stdout.getvalue()
    finally:
        sys.stdout, sys.stderr = out, err
    return None if code else frozenset(re.findall(r"--[a-z][a-z-]*", text))


def wrong(line):
    """What a command line on a page gets wrong, or nothing."""
    code, _, _ = line.partition(" # ")
    program, *rest = code.split() or [""]
    if program == "reweigh" and rest and re.fullmatch(r"[a-z-]+", rest[0]):
        command = rest[:2] if rest[0] in ("records", "canary") and len(rest) > 1 else rest[:1]
        known = options_of(*command)
        if known is None:
            return f"no command {' '.join(command)}"
        return ", ".join(sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", code)) - known))
    if program == "make" and rest:
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        return "" if rest[0] in targets else f"no target {rest[0]}"
    if program == "python" and rest and rest[0].startswith(tuple(f"{x}/" for x in NEAR)):
        return "" if (ROOT / rest[0]).exists() else f"no file {rest[0]}"
    if program == "pip" and (extra := re.search(r"[\"']?(?:\.|reweigh)\[(\w+)\]", code)):
        known = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.M)
        return "" if extra[1] in known else f"no extra {extra[1]}"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_command_lines_name_what_there_is(page):
    """Those that are shown and not run, since they need a model, a dump or a trainer."""
    assert [(number, line, wrong(line)) for number, line in lines_of_shell(page) if wrong(line)] == []


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("reweigh audit PATHS... [--by step] --nonesuch", "--nonesuch"),
        ("reweigh records describe PATHS", ""),
        ("reweigh advise", "no command advise"),
        ("make everything", "no target everything"),
        ("python docs/nothing.py --check", "no file docs/nothing.py"),
        ('pip install "reweigh[everything]"', "no extra everything"),
    ],
)
def test_a_wrong_command_line_is_found(line, why):
    assert wrong(line) == why


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_blocks_of_data_can_be_read(page):
    for _, block in fences(page, "yaml"):
        assert yaml.safe_load(block)
    for _, block in fences(page, "json"):
        assert all(json.loads(line) for line in block.strip().split("\n"))


def test_how_to_cite():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == reweigh.__version__
    assert (cited["license"], (ROOT / "LICENSE").read_text().split()[:2]) == ("Apache-2.0", ["Apache", "License"])
    post = cited["references"][0]
    assert (post["url"], post["date-published"]) == ("https://richardli.xyz/rl-collapse-2", "2025-10-31")
    assert [a["family-names"] for a in post["authors"]] == ["Li", "Liu"]


def test_the_changelog_says_which_numbers_changed():
    versions = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)[1:]
    assert versions
    assert all("### Numerics" in version for version in versions)


def test_how_to_contribute_fits_a_screen():
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 45


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda p: p.name)
def test_workflows_run_what_there_is(path):
    jobs = yaml.safe_load(path.read_text())["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert all("timeout-minutes" in job for job in jobs.values())
    ran = [line for step in steps for line in step.get("run", "").split("\n")]
    assert not [line for line in ran if wrong(line)]
    assert all((ROOT / line).exists() for line in ran if line.startswith(".ci/"))
