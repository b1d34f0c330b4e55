# ruff: noqa: T201  # what it finds is printed
"""Change the core in one place at a time, and tell whether its tests notice (docs/trust.md).

    python -m tools.mutants                         # 400 changes, drawn at random: half an hour on one core
    python -m tools.mutants --count 20 --seed 3 --only stats.sums
    python -m tools.mutants --only losses --at 137  # those of one line

A mutant is a comparison, an operation, a number or a condition that is another one. It is run in a process of its own,
which imports the changed module in the place of the file, with the fast tests of that module, until one fails. Texts,
annotations and what only words an error are left alone. A mutant that no test notices is printed with its line: either
a test is missing, or the change means nothing.
"""

import argparse
import ast
import copy
import importlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SECONDS = 240  # that the tests of a mutant may take: one that hangs is noticed
_STATS = (
    "test_stats",
    "test_laws",
    "test_intervals",
    "test_verdict",
    "test_golden_statistics",
    "test_summary",
    "test_native",
)
_FACTORS = ("test_transforms", "test_laws", "test_named", "test_caps", "test_capped", "test_stats")
TESTS = {
    "stats.sums": _STATS,
    "stats.summary": ("test_summary", *_STATS),
    "stats.intervals": ("test_intervals", "test_summary", "test_stats", "test_bounds", "test_bootstrap"),
    "stats.verdict": ("test_verdict", "test_trial", "test_plan", "test_doctor_stale"),
    "losses": ("test_losses", "test_centring"),
    "layout": ("test_batch", "test_laws", "test_stats", "test_losses", "test_native"),
    "batch": ("test_batch", "test_losses", "test_centring"),
    "levels": _FACTORS,
    "estimators": (*_FACTORS, "test_losses"),
    "transforms": _FACTORS,
    "caps": ("test_caps", "test_capped", "test_transforms"),
}
_COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_DONE: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Add,
}
_WORDED = ("__repr__", "__str__", "_repr_html_", "to_dict")


@dataclass(frozen=True)
class Mutant:
    """A change: the module, the number of the node in its tree, which change of it, its line, and what was there."""

    module: str
    node: int
    which: int
    line: int
    text: str


def changes(node: ast.AST) -> list[ast.AST]:
    """Give what could stand in the place of a node."""
    out: list[ast.AST] = []
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            other = copy.deepcopy(node)
            other.ops[i] = _COMPARED[type(op)]()
            out.append(other)
    elif isinstance(node, ast.BinOp) and type(node.op) in _DONE and not _is_text(node):
        other = copy.deepcopy(node)
        other.op = _DONE[type(node.op)]()
        out.append(other)
    elif isinstance(node, ast.BoolOp):
        other = copy.deepcopy(node)
        other.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        out.append(other)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        out.append(copy.deepcopy(node.operand))
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        value = node.value
        new = (not value) if isinstance(value, bool) else value + 1 if isinstance(value, int) else value * 1.5 + 1e-3
        out.append(ast.Constant(new))
    elif isinstance(node, ast.IfExp):
        other = copy.deepcopy(node)
        other.body, other.orelse = other.orelse, other.body
        out.append(other)
    return [ast.copy_location(one, node) for one in out]


def _is_text(node: ast.BinOp) -> bool:
    """Whether strings or types are put together."""
    return any(
        isinstance(x, ast.JoinedStr) or (isinstance(x, ast.Constant) and isinstance(x.value, str))
        for x in ast.walk(node)
    )


def places(tree: ast.AST) -> Iterator[tuple[ast.AST, str, int | None]]:
    """Walk the nodes that may be changed, each with its parent's field and its index there."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list", "keywords") and not isinstance(tree, ast.Call):
            continue
        many = isinstance(value, list)
        for i, one in enumerate(value if many else [value]):
            if not isinstance(one, ast.AST) or isinstance(
                one, ast.Raise | ast.JoinedStr | ast.Assert | ast.Import | ast.ImportFrom
            ):
                continue
            if isinstance(one, ast.FunctionDef) and one.name in _WORDED:
                continue
            if isinstance(one, ast.Subscript) and name == "slice":
                continue
            yield tree, name, i if many else None
            yield from places(one)


def _at(place: tuple[ast.AST, str, int | None]) -> ast.AST:
    parent, name, i = place
    value: Any = getattr(parent, name)
    return value if i is None else value[i]


def mutants(module: str) -> list[Mutant]:
    """List all changes of a module."""
    path = path_of(module)
    text = path.read_text("utf-8")
    lines = text.splitlines()
    found: list[Mutant] = []
    for number, place in enumerate(places(ast.parse(text))):
        node = _at(place)
        for which, new in enumerate(changes(node)):
            line = getattr(node, "lineno", 0)
            said = f"{ast.unparse(node)}  ->  {ast.unparse(new)}"
            found.append(Mutant(module, number, which, line, f"{lines[line - 1].strip()[:70]}   [{said[:80]}]"))
    return found


def path_of(module: str) -> Path:
    """Find the file of a module of the core."""
    return ROOT / "reweigh" / f"{module.replace('.', '/')}.py"


def changed(mutant: Mutant) -> ast.Module:
    """Give the module's tree with the change in it."""
    tree = ast.parse(path_of(mutant.module).read_text("utf-8"))
    place = next(p for i, p in enumerate(places(tree)) if i == mutant.node)
    parent, name, i = place
    new = changes(_at(place))[mutant.which]
    if i is None:
        setattr(parent, name, new)
    else:
        getattr(parent, name)[i] = new
    return ast.fix_missing_locations(tree)


def overlay(folder: Path) -> None:
    """Make a package of links to every file of ours, one of which is then replaced."""
    for path in (ROOT / "reweigh").rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            link = folder / path.relative_to(ROOT)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)


def run(mutant: Mutant | None, tests: Sequence[str], folder: Path, seconds: float = SECONDS) -> bool:
    """Run tests in a process of their own, on the package in a folder; tell whether one failed, or it did not end."""
    link = None
    if mutant is not None:
        link = folder / path_of(mutant.module).relative_to(ROOT)
        link.unlink()
        link.write_text(ast.unparse(changed(mutant)), "utf-8")
    try:
        return _fails(tests, folder, seconds, keep=mutant is None)
    finally:
        if link is not None:
            link.unlink()
            link.symlink_to(ROOT / link.relative_to(folder))


def _fails(tests: Sequence[str], folder: Path, seconds: float, keep: bool) -> bool:
    child = os.fork()
    if child == 0:
        os.setsid()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        code = 1
        try:
            sys.dont_write_bytecode = not keep  # of what is changed
            sys.path.insert(0, str(folder))
            import pytest

            paths = [str(ROOT / "tests" / f"{name}.py") for name in dict.fromkeys(tests)]
            options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-o", "pythonpath=", "-m", "not slow"]
            code = int(pytest.main([*options, *paths]))
            import reweigh

            if not (reweigh.__file__ or "").startswith(str(folder)):
                code = 99  # it was another that was tested
        finally:
            os._exit(code)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 99:
                raise SystemExit("the tests import another reweigh than the changed one")
            return status != 0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 if at least 92% were noticed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(TESTS), default=list(TESTS))
    parser.add_argument("--at", type=int, help="a line")
    args = parser.parse_args(argv)
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT / "tests"))
    import torch

    importlib.import_module("pyarrow")  # what each process has then
    torch.set_num_threads(1)
    every = [one for module in args.only for one in mutants(module) if args.at in (None, one.line)]
    some = random.Random(args.seed).sample(every, min(args.count, len(every)))
    missed: list[Mutant] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        overlay(folder)
        for module in dict.fromkeys(one.module for one in some):
            if run(None, TESTS[module], folder):
                raise SystemExit(f"the tests of {module} fail without a change: {', '.join(TESTS[module])}")
        for number, one in enumerate(some, 1):
            if not run(one, TESTS[one.module], folder):
                missed.append(one)
                print(f"not noticed: {one.module}:{one.line}: {one.text}", flush=True)
            if number % 20 == 0:
                print(f"{number} of {len(some)}, {len(missed)} not noticed", flush=True)
    noticed = len(some) - len(missed)
    print(f"{noticed} of {len(some)} noticed: {noticed / max(len(some), 1):.1%}")
    return int(noticed < 0.92 * len(some))


if __name__ == "__main__":
    sys.exit(main())
