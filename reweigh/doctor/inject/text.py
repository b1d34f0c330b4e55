"""Text that every Python has: the functions of its standard library, and a small tokenizer made of them."""

import ast
import random
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

BEGIN, MODULE, SOURCE, TOOL, END = "<|begin|>", "<|module|>", "<|source|>", "<|tool|>", "<|end|>"
SPECIAL = (BEGIN, MODULE, SOURCE, TOOL, END)
# Functions shorter than this say nothing; longer than that they do not fit a context.
_MIN_CHARS, _MAX_CHARS = 200, 1200
# Folders that are tests, or other people's packages.
_LEFT_OUT = ("test", "tests", "idlelib", "site-packages", "lib2to3", "__pycache__", "ensurepip")


@dataclass(frozen=True)
class Function:
    """A function of the standard library: its module, its source, the first paragraph of its docstring."""

    module: str
    source: str
    doc: str


def functions(folder: Path | None = None, max_files: int = 400) -> list[Function]:
    """All functions of a middling length, in the order of file names; files that do not parse are not text of ours."""
    root = folder or Path(sysconfig.get_paths()["stdlib"])
    found: list[Function] = []
    files = [p for p in sorted(root.rglob("*.py")) if not set(p.relative_to(root).parts) & set(_LEFT_OUT)]
    for path in files[:max_files]:
        text = path.read_text("utf-8", errors="replace")
        try:
            tree = ast.parse(text)
        except SyntaxError:
            continue
        module = ".".join(path.relative_to(root).with_suffix("").parts)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                source = "\n".join(text.split("\n")[node.lineno - 1 : node.end_lineno])
                doc = (ast.get_docstring(node) or "").split("\n\n")[0][:200]
                if _MIN_CHARS <= len(source) <= _MAX_CHARS:
                    found.append(Function(module, _dedent(source), doc))
    return found


def tokenizer(corpus: list[Function], vocab_size: int) -> Tokenizer:
    """Byte-pair encoding of the corpus. Runs of spaces stay together, as in tokenizers for code."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n +|[ ]?[A-Za-z]+|[ ]?[0-9]+|[ ]?[^\sA-Za-z0-9]+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator((f.source for f in corpus), trainer)
    return made


def documents(corpus: list[Function], seed: int) -> list[str]:
    """What a model learns from: a function under its module; one in three with a tool's answer in the middle."""
    random_ = random.Random(seed)
    texts: list[str] = []
    for f in corpus:
        lines = f.source.split("\n")
        if f.doc and len(lines) > 3 and random_.random() < 0.5:
            cut = random_.randrange(1, len(lines) - 1)
            body = "\n".join(lines[:cut]) + END + tool_text(f.doc) + "\n".join(lines[cut:])
        else:
            body = f.source
        texts.append(BEGIN + MODULE + f.module + SOURCE + body + END)
    random_.shuffle(texts)
    return texts


def tool_text(doc: str) -> str:
    """What a tool puts between two turns."""
    return TOOL + doc + SOURCE


def _dedent(source: str) -> str:
    lines = source.split("\n")
    indent = len(lines[0]) - len(lines[0].lstrip())
    return "\n".join(line[indent:] if line[:indent].isspace() or not indent else line.lstrip() for line in lines)


def loaded(saved: str) -> Tokenizer:
    """A tokenizer from what `to_str` gave."""
    return Tokenizer.from_str(saved)
