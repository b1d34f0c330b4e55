"""How the package is built: files, lines, arrows, cycles, and how many files and functions a task walks through.

    python benchmarks/structure.py                                         # this checkout
    python benchmarks/structure.py --walk                                  # run an audit, a step and the TRL hook, too
    python benchmarks/structure.py --before ../other --after . --walk      # a Markdown table of two checkouts
    python benchmarks/structure.py --walk --list                           # every function that was passed

Imports are read off the files: late ones count, those under `if TYPE_CHECKING` do not make a cycle. An import of
`package.part.name` is an arrow to the file that holds it, not to the `__init__` files above it.

A walk is the second run in one process, so that what importing calls is not counted. A function is a `def` of the
package that was called, in any thread; lambdas, comprehensions and class bodies belong to the one that holds them.
Opens of the audited file are those by Python and those by pyarrow; a fit of a tail is one of a Pareto distribution.
"""

import argparse
import ast
import contextlib
import inspect
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

HERE = Path(__file__).resolve().parents[1]
RECORDS = Path("examples", "records", "transformers_bfloat16.parquet")
MARK = "structure: "  # before the result in a child's output

# Keys of the result, in the order of the table, and what they are called there.
ROWS = {
    "files": "files in the package",
    "lines": "lines in the package",
    "lines_a_file": "lines a file",
    "one_importer": "modules with one importer",
    "private": "private top-level definitions",
    "private_used_once": "of them used once",
    "cycles": "import cycles",
    "files_in_cycles": "files in cycles",
    "type_cycles": "cycles with imports for types",
    "module_pairs": "arrows between modules",
    "part_pairs": "arrows between top-level parts",
    "package_pairs": "arrows between packages",
    "public_names": "public names at the top",
    "audit_files": "files passed by an audit",
    "audit_functions": "functions passed by an audit",
    "audit_calls": "calls in an audit",
    "audit_loaded": "modules loaded by an audit",
    "audit_opens": "opens of the audited file",
    "audit_fits": "fits of a tail in an audit",
    "audit_tails": "different tails fitted",
    "step_files": "files passed by a training step",
    "step_functions": "functions passed by a training step",
    "step_calls": "calls in a training step",
    "step_loaded": "modules loaded by a training step",
    "trl_files": "files passed by the TRL hook",
    "trl_functions": "functions passed by the TRL hook",
    "trl_calls": "calls in the TRL hook",
    "trl_loaded": "modules loaded by the TRL hook",
}

Graph = dict[str, set[str]]


@dataclass(frozen=True)
class Module:
    """One file of the package, read.

    Attributes:
        name: dotted, that of the folder for an `__init__`.
        path: of the file.
        text: of the file.
        tree: parsed.
    """

    name: str
    path: Path
    text: str
    tree: ast.Module

    @classmethod
    def read(cls, path: Path, root: Path) -> "Module":
        """Read a file under `root`."""
        parts = path.relative_to(root).with_suffix("").parts
        text = path.read_text(encoding="utf-8")
        return cls(".".join(parts[:-1] if parts[-1] == "__init__" else parts), path, text, ast.parse(text))

    def for_types(self) -> set[ast.AST]:
        """Nodes that run under a type checker alone."""
        return {
            node
            for branch in ast.walk(self.tree)
            if isinstance(branch, ast.If) and ast.unparse(branch.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
            for statement in branch.body
            for node in ast.walk(statement)
        }

    def imports(self, types: bool) -> Iterator[tuple[str, str]]:
        """(module, name) of each import, late ones too; `types` includes those for a type checker."""
        hidden = set[ast.AST]() if types else self.for_types()
        package = self.name.split(".") if self.path.name == "__init__.py" else self.name.split(".")[:-1]
        for node in ast.walk(self.tree):
            if node in hidden:
                continue
            if isinstance(node, ast.Import):
                yield from ((alias.name, "") for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                above = package[: len(package) - node.level + 1] if node.level else []
                module = ".".join([*above, *([node.module] if node.module else [])])
                yield from ((module, alias.name) for alias in node.names)
            elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "import_module":
                given = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
                yield from ((name, "") for name in given if isinstance(name, str))


def read_package(root: Path, package: str) -> dict[str, Module]:
    """Every file of the package by its dotted name."""
    paths = sorted((root / package).rglob("*.py"))
    if not paths:
        raise SystemExit(f"structure: {root} holds no package {package!r}")
    modules = [Module.read(path, root) for path in paths]
    return {module.name: module for module in modules}


def graph_of(modules: dict[str, Module], types: bool) -> Graph:
    """Which module imports which of the same package."""
    graph: Graph = {}
    for module in modules.values():
        pairs = list(module.imports(types))
        named = [f"{a}.{b}" if f"{a}.{b}" in modules else a for a, b in pairs]
        graph[module.name] = {name for name in named if name in modules} - {module.name}
    return graph


def cycles_of(graph: Graph) -> list[list[str]]:
    """Strongly connected components of more than one module, the largest first (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            at = stack.index(name)
            component = sorted(stack[at:])
            del stack[at:]
            if len(component) > 1:
                found.append(component)

    sys.setrecursionlimit(max(sys.getrecursionlimit(), 10 * len(graph) + 1000))
    for name in sorted(graph):
        if name not in index:
            visit(name)
    return sorted(found, key=lambda component: (-len(component), component))


def private_definitions(module: Module) -> Iterator[tuple[str, int]]:
    """Private functions and classes at the top of a file, and how often the file uses each."""
    uses = Counter(node.id for node in ast.walk(module.tree) if isinstance(node, ast.Name))
    for node in module.tree.body:
        named = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        if named and node.name.startswith("_") and not node.name.startswith("__"):
            yield node.name, uses[node.name]


def public_names(top: Module) -> int:
    """Length of `__all__`, which need not be a literal list: then the strings in it are counted."""
    for node in top.tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            value: Any = getattr(node, "value", None)
            if isinstance(value, (ast.List, ast.Tuple)) and all(isinstance(x, ast.Constant) for x in value.elts):
                return len(value.elts)
    return _imported(f"import sys, {top.name}; sys.stdout.write(str(len({top.name}.__all__)))", top.path.parents[1])


def _imported(code: str, root: Path) -> int:
    env = os.environ | {"PYTHONPATH": str(root)}
    out = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True)
    return int(out.stdout)


def structure_of(root: Path, package: str) -> dict[str, Any]:
    """All that the files alone tell."""
    modules = read_package(root, package)
    lines = sum(len(module.text.splitlines()) for module in modules.values())
    graph, with_types = graph_of(modules, types=False), graph_of(modules, types=True)
    importers = Counter(name for others in with_types.values() for name in others)
    private = [uses for module in modules.values() for _, uses in private_definitions(module)]
    cycles = cycles_of(graph)
    pairs = [(a, b) for a, others in graph.items() for b in others]
    parts = {(_part(a), _part(b)) for a, b in pairs}
    folders = {name.split(".")[1] for name, module in modules.items() if "." in name and _is_inside(module, root)}
    packages = {tuple(part if part in folders else "(top)" for part in pair) for pair in parts}
    return {
        "files": len(modules),
        "lines": lines,
        "lines_a_file": round(lines / len(modules)),
        "one_importer": sum(importers[name] == 1 for name in modules),
        "private": len(private),
        "private_used_once": private.count(1),
        "cycles": len(cycles),
        "files_in_cycles": sum(map(len, cycles)),
        "type_cycles": len(cycles_of(with_types)),
        "module_pairs": len(pairs),
        "part_pairs": sum(a != b for a, b in parts),
        "package_pairs": sum(a != b for a, b in packages),
        "public_names": public_names(modules[package]),
        "cycle_members": cycles,
    }


def _part(name: str) -> str:
    """The file or folder at the top of the package; "" for its `__init__`."""
    return (name + ".").split(".")[1]


def _is_inside(module: Module, root: Path) -> bool:
    return len(module.path.relative_to(root).parts) > 2


class Walk:
    """Counts the calls of a package's functions, in all threads, while it is entered."""

    def __init__(self, folder: Path) -> None:
        self.calls: Counter[CodeType] = Counter()
        self._folder = str(folder) + os.sep

    def _see(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            self.calls[frame.f_code] += 1

    def __enter__(self) -> "Walk":
        threading.setprofile(self._see)
        sys.setprofile(self._see)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def functions(self) -> dict[tuple[str, str, int], int]:
        """Calls by (file, qualified name, line) of the functions that are a `def` of the package."""
        return {
            (code.co_filename.removeprefix(self._folder), code.co_qualname, code.co_firstlineno): calls
            for code, calls in self.calls.items()
            if code.co_filename.startswith(self._folder)
            and not code.co_name.startswith("<")
            and code.co_flags & inspect.CO_NEWLOCALS  # the body of a class has none
        }


class Opens:
    """Counts how often one file is opened, by Python or by pyarrow."""

    def __init__(self, path: Path) -> None:
        self.count = 0
        self._path = os.path.realpath(path)
        sys.addaudithook(self._audited)
        import pyarrow
        import pyarrow.dataset
        import pyarrow.parquet

        first, self._inside = pyarrow.parquet.ParquetFile.__init__, False

        def opened(file: Any, source: Any, *args: Any, **kwargs: Any) -> None:
            self._seen(source)
            first(file, source, *args, **kwargs)

        pyarrow.parquet.ParquetFile.__init__ = opened
        for module, name in ((pyarrow, "memory_map"), (pyarrow, "OSFile"), (pyarrow.dataset, "dataset")):
            setattr(module, name, self._counted(getattr(module, name)))

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(source: Any, *args: Any, **kwargs: Any) -> Any:
            self._seen(source)
            return function(source, *args, **kwargs)

        return counted

    def _audited(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            self._seen(args[0])

    def _seen(self, source: Any) -> None:
        if isinstance(source, (str, bytes, os.PathLike)) and os.path.realpath(os.fsdecode(source)) == self._path:
            self.count += 1


class Fits:
    """Counts the fits of a tail, and the different tails among them, told by the largest that each was made of."""

    def __init__(self) -> None:
        import numpy as np

        self.tails: list[tuple[float, ...]] = []

        def counted(owner: Any, name: str, sign: float) -> None:
            fit = getattr(owner, name)

            def fitted(values: Any, *args: Any, **kwargs: Any) -> Any:
                top = np.sort(sign * np.ravel(values))[::-1][:5]
                self.tails.append(tuple((top - top[0]).round(9).tolist()))
                return fit(values, *args, **kwargs)

            setattr(owner, name, fitted)

        transforms = import_module("reweigh.transforms")
        if hasattr(transforms, "pareto_fit"):
            counted(transforms, "pareto_fit", 1.0)
        else:  # older checkouts have arviz-stats do it, which takes negative log ratios
            counted(import_module("arviz_stats.base.array").array_stats, "psislw", -1.0)


def an_audit(root: Path, folder: Path) -> Callable[[], object]:
    """The command, in this process."""
    main = import_module("reweigh.__main__").main
    page = folder / "page.html"
    arguments = ["audit", str(root / RECORDS), "--html", str(page), "--workers", "1"]

    def run() -> None:
        page.unlink(missing_ok=True)
        code: object = 0
        try:
            code = main(arguments)
        except SystemExit as end:
            code = end.code
        assert not code, f"reweigh {' '.join(arguments)}: exit code {code}"
        assert page.is_file()

    return run


def a_step(root: Path, folder: Path) -> Callable[[], object]:
    """README's training step, with statistics and verdict."""
    import torch

    import reweigh as rw

    g = torch.Generator().manual_seed(0)
    log_mu = -torch.rand(4, 6, generator=g) - 0.1
    log_old = log_mu + 0.02 * torch.randn(4, 6, generator=g)
    mask, advantage = torch.ones(4, 6), torch.randn(4, generator=g)

    def run() -> None:
        log_pi = log_old.clone().requires_grad_()
        batch = rw.Batch.padded(log_old, log_mu, mask)
        weights = (rw.geo_rs(0.99, 1.01) * rw.token_tis(2.0))(batch)
        loss = rw.ppo_clip(log_pi, log_old, advantage, weights, rw.num_tokens(batch))
        loss.backward()
        assert str(rw.judge(*rw.RatioStats.of_levels(batch, (rw.TOKEN, rw.SEQUENCE))))

    return run


def a_trl_step(root: Path, folder: Path) -> Callable[[], object]:
    """One step of TRL's trainer with our weights, on a model of 29 words."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import GRPOConfig

    import reweigh as rw

    places = ["reweigh.trainers.trl", "reweigh.adapters.trl"]
    at = next(name for name in places if (root / (name.replace(".", "/") + ".py")).is_file())
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}

    def sample(prompts: list[str], trainer: Any) -> dict[str, Any]:
        g = torch.Generator().manual_seed(7)
        ids = torch.randint(3, len(words), (len(prompts), 9), generator=g)
        log_mu = -torch.full(ids.shape, float(len(words))).log() + 0.05 * torch.randn(ids.shape, generator=g)
        asked = [tokenizer(text)["input_ids"] for text in prompts]
        return {"prompt_ids": asked, "completion_ids": ids.tolist(), "logprobs": log_mu.tolist()}

    def run() -> None:
        torch.manual_seed(0)
        trainer = import_module(at).CorrectedGRPOTrainer(
            model=LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **sizes, pad_token_id=0, eos_token_id=1)),
            args=GRPOConfig(
                str(folder), per_device_train_batch_size=8, num_generations=4, max_completion_length=9, max_steps=1,
                report_to=[], save_strategy="no", use_cpu=True, bf16=False, disable_tqdm=True, logging_steps=1, seed=3,
            ),
            processing_class=tokenizer,
            reward_funcs=lambda completions, **_: [float(text.count("e")) for text in completions],
            train_dataset=Dataset.from_list([{"prompt": text} for text in ("a cat", "the sea")]),
            rollout_func=sample,
            correction=rw.geo_rs(0.5, 2.0) * rw.token_tis(2.0),
        )  # fmt: skip
        trainer.train()
        assert any(key.startswith("reweigh/") for row in trainer.state.log_history for key in row), "nothing was logged"

    return run


TASKS = {"audit": an_audit, "step": a_step, "trl": a_trl_step}


def child(task: str, root: Path) -> None:
    """Run one task twice in this process and print what the second run passed."""
    sys.path[:] = [str(root), *(p for p in sys.path if Path(p).resolve() != Path(__file__).resolve().parent)]
    warnings.simplefilter("ignore")
    package = root / "reweigh"
    assert Path(str(import_module("reweigh").__file__)).resolve().parent == package
    watch = (Opens(root / RECORDS), Fits()) if task == "audit" else None
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()), Walk(package) as walk:
        run = TASKS[task](root, Path(name))
        run()
        walk.calls.clear()
        if watch is not None:
            watch[0].count = 0
            watch[1].tails.clear()
        run()
    functions = walk.functions()
    found: dict[str, Any] = {
        f"{task}_files": len({file for file, _, _ in functions}),
        f"{task}_functions": len(functions),
        f"{task}_calls": sum(functions.values()),
        f"{task}_loaded": sum(module.split(".")[0] == "reweigh" for module in sys.modules),
    }
    if watch is not None:
        tails = watch[1].tails
        found |= {"audit_opens": watch[0].count, "audit_fits": len(tails), "audit_tails": len(set(tails))}
    passed = sorted([file, name, calls] for (file, name, _), calls in functions.items())
    sys.stdout.write(f"\n{MARK}{json.dumps(found | {f'{task}_passed': passed})}\n")


def walked(root: Path) -> dict[str, Any]:
    """All tasks, each in a fresh process."""
    found: dict[str, Any] = {}
    for task in TASKS:
        command = [sys.executable, __file__, str(root), "--child", task]
        env = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}
        done = subprocess.run(command, env=env, cwd=tempfile.gettempdir(), capture_output=True, text=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
        if done.returncode or not lines:
            raise SystemExit(f"structure: the task {task!r} failed in {root}\n{done.stderr}")
        found |= json.loads(lines[-1].removeprefix(MARK))
    return found


def measured(root: Path, package: str, walk: bool) -> dict[str, Any]:
    """Everything about one checkout."""
    root = root.resolve()
    return structure_of(root, package) | (walked(root) if walk else {})


def say(found: dict[str, dict[str, Any]]) -> str:
    """A Markdown table, a column a checkout, and the members of each cycle under it."""
    out = [f"| | {' | '.join(found)} |", "|---|" + "---:|" * len(found)]
    for key, label in ROWS.items():
        values = [one.get(key) for one in found.values()]
        if any(value is not None for value in values):
            cells = " | ".join("" if value is None else f"{value:,}" for value in values)
            out.append(f"| {label} | {cells} |")
    for name, one in found.items():
        out += [f"\ncycle of {len(cycle)} in {name}: {', '.join(cycle)}" for cycle in one["cycle_members"]]
    return "\n".join(out)


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, nargs="?", default=HERE, help="the checkout; this one if not given")
    parser.add_argument("--before", type=Path, metavar="DIR", help="compare this checkout ...")
    parser.add_argument("--after", type=Path, metavar="DIR", help="... with this one; ROOT if not given")
    parser.add_argument("--package", default="reweigh", help="name of the package")
    parser.add_argument("--walk", action="store_true", help="also run an audit, a training step and the TRL hook")
    parser.add_argument("--list", action="store_true", help="with --walk: all that was passed, with calls")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    parser.add_argument("--child", choices=sorted(TASKS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.root.resolve())
        return
    roots = {"before": args.before, "after": args.after or args.root} if args.before else {"this": args.root}
    found = {name: measured(root, args.package, args.walk) for name, root in roots.items()}
    if args.json:
        print(json.dumps(found if args.before else found["this"], indent=1))
        return
    print(say(found))
    if args.list:
        for name, one in found.items():
            for task in TASKS:
                for file, function, calls in one.get(f"{task}_passed", []):
                    print(f"{name} {task}: {file} {function} {calls}")


if __name__ == "__main__":
    main()
