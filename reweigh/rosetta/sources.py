"""What a configuration, a launch script, a Python file or a command line sets, as nested options; nothing is run."""

import ast
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

Tree = dict[str, Any]


@dataclass(frozen=True)
class Unresolved:
    """A value that the file itself does not say: a variable of the shell, an interpolation, a call.

    Attributes:
        text: how it is written.
        apart: whether it is a word of its own after a flag: its value, or more flags.
    """

    text: str
    apart: bool = False

    def __str__(self) -> str:
        """Give it as it is written."""
        return self.text


@dataclass(frozen=True)
class Source:
    """What a file sets.

    Attributes:
        values: options, nested as their dotted names are.
        environment: variables that it sets, by name.
        text: the file itself, for what names the framework.
        cautions: what may not hold of it.
        absent: files that it inherits from and that are not beside it.
        conditional: options that are set under a condition, and are taken as set.
    """

    values: Tree
    environment: Mapping[str, Any] = field(default_factory=dict[str, Any])
    text: str = ""
    cautions: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    conditional: tuple[str, ...] = ()


_SCRIPTS = (".sh", ".bash", ".zsh", ".slurm", ".sbatch", ".txt", ".cmd")


def read_config(path: str) -> Tree:
    """Read a YAML, JSON, TOML, Python or shell file.

    Raises:
        ValueError: if it is none, or not a mapping.
        ModuleNotFoundError: YAML without pyyaml.
    """
    return read_source(path).values


def read_source(path: str) -> Source:
    """Read a file with its environment variables, and what may not hold of it.

    Raises:
        ValueError: if it is none of those that are read.
        ModuleNotFoundError: YAML without pyyaml.
    """
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    suffix = Path(path).suffix.lower()
    if suffix in _SCRIPTS or (text.startswith("#!") and "python" not in text.splitlines()[0]):
        return read_script(text)
    if suffix == ".py" or text.startswith("#!"):
        return read_python(path, text)
    try:
        data = _parse(path, suffix, text)
    except ValueError as e:
        raise ValueError(
            f"{path}: cannot be read: {str(e).splitlines()[0]}\nhint: YAML, JSON, TOML, a shell script or Python"
        ) from None
    if not isinstance(data, dict):
        if suffix not in (".yaml", ".yml", ".json", ".toml") and re.search(r"(^|\s)--?[A-Za-z]", text):
            return read_script(text)
        raise ValueError(f"{path}: expected a mapping of options, got {type(data).__name__}\nhint: key: value")
    tree, absent = _inherited(Path(path), cast("Tree", data))
    said = f"inherits from {', '.join(absent)}, which is not beside it: what it says there is not read"
    return Source(cast("Tree", _interpolated(tree, tree)), {}, text, (said,) if absent else (), absent)


def merged(under: Tree, over: Tree) -> Tree:
    """Put options over others, table by table."""
    out = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merged(out[key], cast("Tree", value)) if both else value
    return out


def _inherited(path: Path, tree: Tree, depth: int = 0) -> tuple[Tree, tuple[str, ...]]:
    """Put a configuration over those that its `defaults` name; those that are not there are named."""
    told: Any = tree.get("defaults")
    names = [told] if isinstance(told, str) else cast("list[Any]", told) if isinstance(told, list) else []
    under, absent = Tree(), list[str]()
    for name in names if depth < 8 else []:
        stem, _, package = str(name).partition("@")
        if not isinstance(name, str) or stem == "_self_" or package not in ("", "_here_"):
            continue  # a part of hydra's under another name
        found = next((f for f in (path.parent / stem, path.parent / f"{stem}.yaml") if f.is_file()), None)
        data = _parse(str(found), ".yaml", found.read_text(encoding="utf-8")) if found else None
        if found is None or not isinstance(data, dict):
            absent.append(stem)
            continue
        base, more = _inherited(found, cast("Tree", data), depth + 1)
        under, absent = merged(under, base), [*absent, *more]
    return (merged(under, tree), tuple(absent)) if names else (tree, ())


def parse_pairs(pairs: Sequence[str]) -> Tree:
    """Read `key=value` options and launch flags, `--key value` or `--key`; a dotted key is nested.

    Raises:
        ValueError: on a word that is neither.

    Example:
        >>> parse_pairs(["rollout_is=token", "rollout_is_threshold=0.5_5.0"])
        {'rollout_is': 'token', 'rollout_is_threshold': '0.5_5.0'}
        >>> parse_pairs(["--use-tis", "--tis-clip", "2.0"])
        {'use_tis': True, 'tis_clip': 2.0}
    """
    words: list[str] = []
    for pair in pairs:
        words += shlex.split(pair) if pair.startswith("-") and re.search(r"\s", pair) else [pair]
    out: Tree = {}
    for key, value in _arguments(words, strict=True):
        _put(out, key, value)
    return out


# Files of settings.


def _parse(path: str, suffix: str, text: str) -> Any:
    if suffix in (".json", ".jsonc"):
        return json.loads(text)
    if suffix == ".toml":
        try:
            import tomllib
        except ModuleNotFoundError:
            raise ValueError("TOML needs Python 3.11") from None
        return tomllib.loads(text)
    try:
        import yaml
    except ModuleNotFoundError:
        raise ValueError(f"{path}: YAML needs pyyaml\nhint: pip install pyyaml, or give JSON") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise ValueError(str(e)) from None


_INTERPOLATION = re.compile(r"\$\{([^${}]*)\}")


def _interpolated(value: Any, root: Tree, depth: int = 0) -> Any:
    """Replace `${a.b}` by what stands there; what the file does not say stays unresolved."""
    if isinstance(value, dict):
        return {k: _interpolated(v, root, depth) for k, v in cast("Tree", value).items()}
    if isinstance(value, list):
        return [_interpolated(v, root, depth) for v in cast("list[Any]", value)]
    if not isinstance(value, str) or "${" not in value:
        return value
    whole = _INTERPOLATION.fullmatch(value.strip())
    if whole is None or depth > 5:
        return Unresolved(value)
    resolver, _, rest = whole[1].rpartition(":")
    if resolver in ("oc.env", "oc.select"):
        name, comma, otherwise = rest.partition(",")
        found = _lookup(root, name) if resolver == "oc.select" else None
        if found is not None:
            return _interpolated(found, root, depth + 1)
        return word(otherwise.strip()) if comma else Unresolved(value)
    found = None if resolver else _lookup(root, rest)
    return Unresolved(value) if found is None else _interpolated(found, root, depth + 1)


def _lookup(root: Tree, dotted: str) -> Any:
    place: Any = root
    for step in dotted.strip().split("."):
        if not isinstance(place, dict) or step not in place:
            return None
        place = cast("Tree", place)[step]
    return place


# Command lines.


def _is_flag(text: str) -> bool:
    return bool(re.match(r"--?[A-Za-z]", text))


def _arguments(words: Sequence[str], strict: bool = False) -> Iterator[tuple[str, Any]]:
    """Options of a list of words, in their order; other words are passed over, or an error if strict."""
    i = 0
    while i < len(words):
        text = words[i]
        i += 1
        key, equals, value = text.lstrip("-+").partition("=")
        if _is_flag(text) and not equals:
            values: list[str] = []
            while i < len(words) and not _is_flag(words[i]) and not re.match(r"\+{0,2}[A-Za-z_][\w./@-]*=", words[i]):
                values.append(words[i])
                i += 1
            if len(key) == 1:
                continue
            while len(values) > 1 and "$" in values[-1]:  # a variable with more flags in it
                values.pop()
            if not values and key.startswith("no-") and len(key) > 3:
                yield key[3:], False
            if len(values) == 1 and "$" in values[0]:
                yield key, Unresolved(values[0], apart=True)
                continue
            yield key, True if not values else word(values[0]) if len(values) == 1 else [word(v) for v in values]
        elif equals and key and re.match(r"[A-Za-z_][\w.@/-]*$", key):
            yield key, word(value)
        elif strict:
            raise ValueError(f"explain: {text!r} is not an option\nhint: key=value, or a flag: --key value")


def _put(out: Tree, key: str, value: Any) -> None:
    *path, last = re.split(r"[./]", key.partition("@")[0])
    place = out
    for step in path:
        inner = place.get(step)
        if not isinstance(inner, dict):
            inner = place[step] = {}
        place = cast("Tree", inner)
    place[last.replace("-", "_")] = value


def word(text: str) -> Any:
    """Take a word of a command line for the value that it writes."""
    if "$" in text:
        return Unresolved(text)
    if text.lower() in ("null", "none", "~", ""):
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    inside = re.fullmatch(r"\[(.*)\]", text)  # a list as hydra writes it
    if inside is not None and "{" not in text:
        return [word(x.strip().strip("'\"")) for x in inside[1].split(",") if x.strip()]
    return text.strip("'\"") if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


# Shell scripts.

_OPENS = re.compile(r"^\s*(if|for|while|until|case|select)\b")
_CLOSES = re.compile(r"^\s*(fi|done|esac)\b")
_SET = re.compile(r"^(?:export\s+|local\s+|readonly\s+|declare\s+(?:-\w+\s+)?)?([A-Za-z_]\w*)(\+?)=(.*)$", re.S)
_VARIABLE = re.compile(r"\$\{(\w+)(?:(:?-|:?=)([^${}]*))?\}|\$(\w+)")


def read_script(text: str) -> Source:
    """Read the flags, overrides and variables of a shell script; nothing is run, and every branch is read.

    Example:
        >>> read_script('CLIP=2.0\\nARGS=(\\n  --use-tis\\n  --tis-clip $CLIP\\n)').values
        {'use_tis': True, 'tis_clip': 2.0}
    """
    variables: dict[str, Any] = {}
    found = _Found()
    for words, conditional in _lines(text):
        arguments: list[str] = []
        first = True
        for raw in words:
            told = _SET.match(raw) if first or raw.startswith("export ") else None
            if first and raw in ("export", "local", "env", "readonly", "declare", "run", "exec", "nohup", "srun"):
                continue
            if told and not _is_flag(raw) and "." not in told[1]:
                value = _expanded(told[3], variables)
                known = told[1] in variables and variables[told[1]] != value
                variables[told[1]] = Unresolved(f"${told[1]}") if known and conditional else value
                continue
            first = False
            if re.fullmatch(r"\$\{?\w+\[[@*]\]\}?|\$[@*]|\$\{@\}", raw):
                continue
            arguments.append(str(_expanded(raw, variables)))
        inner = [c for b, f, c in zip(arguments, arguments[1:], arguments[2:], strict=False) if _wraps(b, f)]
        for command in inner:  # with its own flags, after those of what starts the shell
            for told_words, within in _lines(re.sub(r"\s(?:&&|\|\||;)\s", "\n", command)):
                read = [str(_expanded(w, variables)) for w in told_words]
                found.add(_of_the_program(read), conditional or within)
        if not inner:
            found.add(_of_the_program(arguments), conditional)
    environment = {k: v for k, v in variables.items() if k.isupper()}
    return Source(found.values, environment, text, conditional=found.conditional)


@dataclass
class _Found:
    """What the commands of a script set, one after the other."""

    values: Tree = field(default_factory=dict[str, Any])
    places: dict[str, tuple[Any, bool]] = field(default_factory=dict[str, tuple[Any, bool]])

    def add(self, words: Sequence[str], conditional: bool) -> None:
        """Set what the words say; what is set twice, once under a condition, is not known."""
        for key, value in _arguments(words):
            before = self.places.get(key)
            if before is not None and before[0] != value and (conditional or before[1]):
                value = Unresolved(f"{before[0]} or {value}")
            self.places[key] = (value, conditional)
            _put(self.values, key, value)

    @property
    def conditional(self) -> tuple[str, ...]:
        return tuple(key for key, (_, conditional) in self.places.items() if conditional)


_LAUNCHERS = {"python", "python3", "torchrun", "accelerate", "deepspeed", "uv", "ray"}
_OTHERS = {"set", "pip", "pip3", "apt", "apt-get", "curl", "wget", "grep", "mkdir", "rm", "cd", "cp", "docker", "git"}


def _wraps(shell: str, flag: str) -> bool:
    """Tell whether the next word is a command of its own, as of `srun --nodes=1 bash -c "..."`."""
    return shell.rpartition("/")[2] in ("bash", "sh") and bool(re.fullmatch(r"-\w*c", flag))


def _of_the_program(words: list[str]) -> list[str]:
    """Leave the words of the launcher out, and commands that train nothing."""
    program = words[0].rpartition("/")[2] if words else ""
    if program in _OTHERS or (program == "ray" and words[1:2] == ["start"]):
        return []
    launched = False
    for i, text in enumerate(words):
        launched = launched or text.rpartition("/")[2] in _LAUNCHERS
        if launched and text in ("-m", "--module"):
            return words[i + 2 :]
        if launched and text.endswith(".py") and "=" not in text:
            return words[i + 1 :]
    return words


def _lines(text: str) -> Iterator[tuple[list[str], bool]]:
    """Words of each command of a script, and whether it stands under a condition; no comments, no here-documents."""
    depth, pending, quoted, here = 0, "", 0, ""
    follows = False
    words: list[str] = []
    for line in text.replace("\r", "").split("\n"):
        if here:
            here = "" if line.strip() == here else here
            continue
        if not pending and not follows:
            depth += bool(_OPENS.match(line)) - bool(_CLOSES.match(line) and depth > 0)
        document = re.search(r"<<-?\s*['\"]?(\w+)['\"]?", line)
        if document and not pending:
            here, line = document[1], line[: document.start()]
        pending, quoted = (f"{pending}\n{line}", quoted + 1) if pending else (line, 0)
        opened = re.sub(r"([A-Za-z_]\w*)\+?=\(|^\s*\)\s*$|(?<=\s)\)(?=\s|$)", " ", pending)
        opened, more = re.subn(r"\\\s*$", "", opened)
        try:
            found = shlex.split(opened, comments=True)
        except ValueError:
            if quoted < 60:
                continue
            found = opened.split()
        pending = ""
        found = [f.removesuffix(")") if f.count("(") < f.count(")") else f for f in found]
        if follows:
            words += found
        else:
            words = found
        follows = bool(more) or (not found and follows and line.strip().startswith("#"))
        if not follows:
            yield [w for w in words if w], depth > 0
            words = []
    if words or pending:
        yield [w for w in (words or pending.split()) if w], depth > 0


def _expanded(text: str, variables: Mapping[str, Any]) -> Any:
    """Put the values of variables that the script sets in their places."""
    if "$(" in text or "`" in text:
        return Unresolved(text)
    whole = re.fullmatch(r"\$\{?(\w+)\}?", text)
    if whole and whole[1] in variables:
        return variables[whole[1]]

    def value(m: re.Match[str]) -> str:
        name = m[1] or m[4]
        if name in variables and not isinstance(variables[name], Unresolved):
            return str(variables[name])
        return m[3] if m[2] and name not in variables else m[0]

    return _VARIABLE.sub(value, text)


# Python.


def read_python(path: str, text: str) -> Source:
    """Read the keywords of calls that make configurations, environment variables and flags in texts; nothing is run.

    Raises:
        ValueError: if it is no Python.

    Example:
        >>> read_python("x.py", "args = GRPOConfig(top_p=0.9)").values
        {'GRPOConfig': {'top_p': 0.9}}
    """
    try:
        tree = ast.parse(text)
    except SyntaxError as e:
        raise ValueError(f"{path}:{e.lineno}: is no Python: {e.msg}\nhint: a configuration or a script") from None
    names: dict[str, Any] = {}
    environment: dict[str, Any] = {}
    found = _Found()
    out = found.values
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
            if isinstance(target, ast.Name):
                names[target.id] = _literal(node.value, names)
            elif isinstance(target, ast.Subscript) and ast.unparse(target.value) == "os.environ":
                environment[str(_literal(target.slice, names))] = _literal(node.value, names)
        elif isinstance(node, ast.Call):
            function = ast.unparse(node.func)
            short = function.rpartition(".")[2]
            if function == "os.environ.setdefault" and len(node.args) == 2:
                environment[str(_literal(node.args[0], names))] = _literal(node.args[1], names)
            elif re.search(r"(Config|Args|Arguments|Params)$", short) or short.startswith("forward_backward"):
                place = cast("Tree", out.setdefault(short, {}))
                place.update({k.arg: _literal(k.value, names) for k in node.keywords if k.arg})
    for words, conditional in _flags(tree, names):
        found.add(words, conditional)
    environment = {k: word(v) if isinstance(v, str) else v for k, v in environment.items()}
    return Source(out, environment, text, conditional=found.conditional)


_SPEAKS = re.compile(r"(add_argument|print|log|info|warning|warn|error|debug|Error|Exception|match|search|sub|Option)$")


def _flags(node: ast.AST, names: Mapping[str, Any], conditional: bool = False) -> Iterator[tuple[list[str], bool]]:
    """Words of each text of a program that holds flags, and whether it stands under a condition."""
    text = _text(node, names)
    if text is not None:
        if re.search(r"(^|\s)--[A-Za-z]", text):
            try:
                yield _of_the_program(shlex.split(text, comments=True)), conditional
            except ValueError:
                yield text.split(), conditional
        return
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return  # a docstring
    if isinstance(node, ast.Call) and _SPEAKS.search(ast.unparse(node.func)):
        return
    if isinstance(node, (ast.List, ast.Tuple)):
        words = [t for e in node.elts if (t := _text(e, names)) is not None]
        if len(words) == len(node.elts) and any(re.match(r"--[A-Za-z][\w.-]*(=|$)", w) for w in words):
            yield words, conditional
            return
    if isinstance(node, (ast.Assert, ast.Raise, ast.Compare)):
        return
    below = conditional or isinstance(node, (ast.If, ast.IfExp))
    for child in ast.iter_child_nodes(node):
        yield from _flags(child, names, below)


def _text(node: ast.AST, names: Mapping[str, Any]) -> str | None:
    """A text as it is written, with `$` and a name where something is put in that is not said."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if not isinstance(node, ast.JoinedStr):
        return None
    parts: list[str] = []
    for part in node.values:
        if isinstance(part, ast.FormattedValue):
            value = _literal(part.value, names)
            parts.append(
                f"${{{re.sub(chr(92) + 'W+', '_', str(value))}}}" if isinstance(value, Unresolved) else str(value)
            )
        else:
            parts.append(str(cast("ast.Constant", part).value))
    return "".join(parts)


def _literal(node: ast.expr, names: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    try:
        return ast.literal_eval(node)
    except ValueError:
        return Unresolved(ast.unparse(node))
