"""The grammar that all commands share: options, where things are printed, exit codes, errors, completion."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import typer
from test_probe import folder  # noqa: F401 - a fixture: a tiny model on disk

from reweigh.__main__ import main
from reweigh.audit.table import Of
from reweigh.cli import plan, probe, table
from reweigh.cli.app import app
from reweigh.cli.options import CutBy
from reweigh.plan import run as planning
from reweigh.probe.run import EngineName
from reweigh.records import RecordWriter
from reweigh.scan import BYS

ROOT = Path(__file__).parents[1]
RECORDS = str(ROOT / "examples" / "records" / "vllm_bfloat16.parquet")
DATA = ROOT / "tests" / "data"
PYTHON = [sys.executable, "-m", "reweigh"]


def walk(command, ctx, path=()):
    """Every command that does something, by the words that call it."""
    if not hasattr(command, "list_commands"):
        yield path, command
        return
    for name in command.list_commands(ctx):
        _, one, _ = command.resolve_command(ctx, [name])
        yield from walk(one, ctx, (*path, name))


def commands():
    top = typer.main.get_command(app)
    return dict(walk(top, top.make_context("reweigh", ["explain"])))


COMMANDS = commands()


def run(capsys, *args):
    code = main([str(arg) for arg in args])
    return code, *capsys.readouterr()


def arguments(path, tmp_path, model):
    """What the command is run with here."""
    match path:
        case ("probe",):
            return ["--model", model, "--num-prompts", 2, "--max-tokens", 3, "--out", tmp_path / "p.jsonl"]
        case ("rescore",):
            dump = DATA / "readers" / "open_instruct"
            return [dump, "--model", model, "--temperature", 1, "--out", tmp_path / "r.jsonl"]
        case ("audit",) | ("doctor",) | ("records", "describe" | "validate"):
            return [RECORDS]
        case ("table",):
            return [RECORDS, "--worst", 3]
        case ("timeline",):
            for step in range(3):
                with RecordWriter(tmp_path / f"step_{step}.parquet") as writer:
                    writer.write([{"sequence_id": str(step), "step": step, "log_mu": [-1.0], "log_pi": [-1.1]}])
            return [tmp_path / "step_*.parquet"]
        case ("compare",):
            return [RECORDS, RECORDS]
        case ("plan",):
            return ["--kl", 1e-3, "--length", 4096]
        case ("watch",):
            (tmp_path / "dumps").mkdir(exist_ok=True)
            shutil.copy(RECORDS, tmp_path / "dumps")
            return [tmp_path / "dumps", "--once", "--fresh", "--state", tmp_path / "state"]
        case ("gate",):
            policy = tmp_path / "gate.yaml"
            policy.write_text("version: 1\nbounds:\n- {number: kl_k3, level: token, at_most: 0.01}\n")
            return [RECORDS, "--policy", policy]
        case ("lab", "check"):
            whole = json.loads((DATA / "golden_worlds.json").read_text())
            (tmp_path / "golden.json").write_text(json.dumps({**whole, "instances": whole["instances"][:1]}))
            return [tmp_path / "golden.json"]
        case ("lab", "table") | ("lab", "all"):
            return []
        case ("lab", "claims"):
            return [6]
        case ("explain",):
            return ["sequence_mask"]
        case ("conformance",):
            whole = json.loads((DATA / "conformance.json").read_text())
            (tmp_path / "recorded.json").write_text(json.dumps({**whole, "cases": whole["cases"][:2]}))
            return [tmp_path / "recorded.json"]
        case ("doctor-install",):
            return ["verl"]
        case ("canary", "record"):
            return ["--model", model, "--num-prompts", 2, "--max-tokens", 4, "--out", tmp_path / "canary.json"]
        case ("canary", "check"):
            record = ["canary", "record", *arguments(("canary", "record"), tmp_path, model), "-q"]
            assert main([str(x) for x in record]) == 0
            return [tmp_path / "canary.json", "--model", model, "--dtype", "float32"]
        case ("levels",):
            where = ["--folder", tmp_path / "levels"]
            return ["--model", model, "--length", 4, "--num-prompts", 2, *where]
        case ("experiment",):
            setting = "lag = 2, stale_from = 1, steps = 5, warm = 1, length = 4, prompts = 2, answers = 2"
            block = f'[[tiny.block]]\nsettings = [{{ {setting} }}]\nmethods = ["naive()"]\nseeds = [100]\n'
            (tmp_path / "grid.toml").write_text(f"[tiny]\n{block}")
            return ["--grid", f"{tmp_path / 'grid.toml'}:tiny", "--out", tmp_path / "out", "--workers", 1]
        case ("records", "convert"):
            return [RECORDS, tmp_path / "a.jsonl", "--force"]
    raise AssertionError(f"{path}: say here how to run it")


SLOW = {("lab", "table"), ("lab", "all"), ("lab", "figures")}
PATHS = [pytest.param(path, marks=pytest.mark.slow if path in SLOW else ()) for path in COMMANDS]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_has_examples_exit_codes_and_the_options_of_all(path, capsys):
    code, out, err = run(capsys, *path, "--help")
    assert (code, err) == (0, "")
    examples = out.split("Examples:\n")[1].split("\n\n")[0].splitlines()
    assert len(examples) >= 2
    assert all(re.search(rf"^ +([A-Z_]+=\S+ )?reweigh {' '.join(path)}\b", line) for line in examples)
    assert re.search(r"Exit code 0\b", " ".join(out.split()))
    for option in ("--format", "--json", "-q, --quiet"):
        assert option in out
    assert run(capsys, *path, "-h") == (0, out, "")


@pytest.mark.parametrize("path", ["records", "lab", None])
def test_help_of_groups_has_examples(path, capsys):
    _, out, _ = run(capsys, *([path] if path else []), "--help")
    assert out.split("Examples:\n")[1].count("reweigh") >= 2


SHARED = (
    *("--format", "--json", "--quiet", "--reader", "--workers", "--keep-going", "--html", "--estimators", "--by"),
    *("--ray-address", "--resume", "--where", "--limit", "--sample"),
)


def test_an_option_of_several_commands_is_worded_once():
    for name in SHARED:
        found = {
            (option.help, option.metavar, tuple(option.opts))
            for command in COMMANDS.values()
            for option in command.params
            if name in option.opts
        }
        assert len(found) == 1, name


def test_every_command_has_the_short_form_of_json():
    for path, command in COMMANDS.items():
        assert any("--json" in option.opts for option in command.params), path


HEAVY = {"torch", "numpy", "pyarrow", "transformers", "jaxtyping", "yaml", "jinja2", "plotly"}


@pytest.mark.parametrize(
    "lines",
    [
        [["--help"], *([*path, "--help"] for path in COMMANDS)],
        [["audti"], ["audit", "x", "--wokers", "2"], ["probe", "--modle", "x"]],
        [["explain", "sequence_mask"], ["explain"], ["explain", "sequence_maks"]],
    ],
    ids=["help", "typo", "explain"],
)
def test_what_computes_nothing_loads_nothing_heavy(lines):
    code = (
        "import contextlib, io, json, sys; from reweigh.__main__ import main\n"
        f"with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        f"    codes = [main(line) for line in json.loads({json.dumps(json.dumps(lines))})]\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)), codes)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, _, codes = done.stdout.partition("] ")
    assert loaded == "["
    assert set(json.loads(codes)) <= {0, 2}


def test_what_the_command_line_repeats_is_what_the_library_has():
    """Defaults and names that `--help` shows without loading what they are of."""
    assert (plan.BATCH, plan.KEEP) == (planning.BATCH, planning.KEEP)
    assert list(get_args(probe.EngineName)) == [one.value for one in EngineName]
    assert get_args(table.Of) == get_args(Of)


def test_every_command_cuts_by_the_same():
    assert tuple(one.value for one in CutBy) == BYS
    cut = {path[0] for path, command in COMMANDS.items() for option in command.params if "--by" in option.opts}
    assert cut == {"audit", "compare", "doctor", "gate", "watch"}


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_results_go_to_stdout_and_messages_to_stderr(path, capsys, tmp_path, folder, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    given = [*path, *arguments(path, tmp_path, folder)]
    code, out, err = run(capsys, *given)
    assert code in (0, 1), err
    assert out
    assert not re.search(r"^(wrote|warning|error|interrupted|next)\b", out, re.M)
    assert "\x1b" not in out + err
    for line in err.splitlines():
        assert line not in out.splitlines()
    as_json, document, _ = run(capsys, *given, "--format", "json")
    assert as_json == code
    assert isinstance(json.loads(document, parse_constant=lambda word: pytest.fail(f"{word} is not JSON")), dict)
    quiet, short, said = run(capsys, *given, "--quiet")
    assert (quiet, said) == (code, "")
    assert 0 < len(short) <= len(out)
    same = lambda text: re.sub(r'("version": )\d+', r"\1of this run", text)  # noqa: E731 - a canary's counts on
    assert same(run(capsys, *given, "--json", "-q")[1]) == same(document)


@pytest.mark.parametrize("path", [("audit",), ("doctor",), ("plan",), ("gate",), ("explain",), ("records", "describe")])
def test_no_color_means_no_escape_codes(path, capsys, tmp_path, monkeypatch):
    """FORCE_COLOR makes a terminal of what is not one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    given = [*path, *arguments(path, tmp_path, None)]
    colored = run(capsys, *given)[1]
    monkeypatch.setenv("NO_COLOR", "1")
    plain = run(capsys, *given)[1]
    assert "\x1b" not in plain
    if path in {("audit",), ("doctor",)}:
        assert "\x1b[1" in colored


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["audti"], "reweigh: no such command 'audti'\nhint: did you mean audit? `reweigh --help`"),
        (["records", "descrbe"], "reweigh records: no such command 'descrbe'\nhint: did you mean describe?"),
        (["audit", "x", "--wokers", "2"], "reweigh audit: no such option: --wokers\nhint: did you mean --workers?"),
        (["lab", "claims", "--quite"], "reweigh lab claims: no such option: --quite\nhint: did you mean --quiet?"),
        (["audit"], "reweigh audit: missing argument 'PATHS...'\nhint: reweigh audit report/records.parquet; `reweigh"),
        (
            ["gate", "x", "--by", "steps"],
            "'--by': 'steps' is not one of 'step', 'env', 'length', 'position', 'lag', 'turn', 'source'\n",
        ),
        (["gate", "x", "--by", "steps"], "hint: did you mean step? `reweigh gate --help` has more.\n"),
        (["audit", "x", "--format", "jsn"], "hint: did you mean json? "),
        (["plan", "--from"], "reweigh plan: option '--from' requires an argument\nhint: `reweigh plan --help`"),
        (["records", "describe", "gone"], "gone: no such file or folder\n"),
        (["conformance", "gone.json"], "gone.json: no such file or directory\n"),
        (["lab", "claims", "99"], "99"),
    ],
)
def test_a_wrong_command_line_is_told_what_is_near(args, said, capsys):
    code, out, err = run(capsys, *args)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err
    assert "Traceback" not in err


def test_what_nobody_expected_is_told_in_a_line_and_shown_with_debug(capsys, monkeypatch):
    def fails(*_):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("reweigh.cli.rosetta.dictionary", fails)
    code, out, err = run(capsys, "explain")
    assert (code, out) == (2, "")
    assert err == (
        "error: ZeroDivisionError: division by zero\nhint: the same command with --debug shows where it comes from.\n"
    )
    with pytest.raises(ZeroDivisionError):
        main(["explain", "--debug"])


@pytest.mark.parametrize(
    "args",
    [
        ["explain"],
        *(pytest.param(x, marks=pytest.mark.slow) for x in (["audit", RECORDS, "--json"], ["audit", "--help"])),
    ],
)
def test_a_reader_that_goes_away_is_no_error(args):
    reading, writing = os.pipe()
    os.close(reading)  # as `head` does, only surely before anything is written
    done = subprocess.run([*PYTHON, *args], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("args", [["explain"], pytest.param(["lab", "claims", "6"], marks=pytest.mark.slow)])
def test_ctrl_c_is_130_and_a_word(args):
    """Raised in the middle of the work, as the signal's handler does."""
    code = (
        "import os, signal, sys, typing;"
        "from reweigh.__main__ import main; import reweigh.cli.rosetta as r, reweigh.theory.lab.claims as l;"
        f"stop = lambda *_: os.kill(os.getpid(), {int(signal.SIGINT)});"
        "r.dictionary = l.check_claims = stop;"
        f"sys.exit(main({args!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def as_shell(name, tmp_path, *args, **env):
    """Run by a shell of that name: bash, whatever it is called."""
    shell = tmp_path / name
    shutil.copy(shutil.which("bash"), shell)
    line = " ".join([*PYTHON, *args]) + "; exit $?"  # two commands, so that the shell stays the parent
    env = {**os.environ, "HOME": str(tmp_path), **env}
    return subprocess.run([str(shell), "-c", line], capture_output=True, text=True, check=False, env=env)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not here")
@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_completion_is_shown_and_installed(name, tmp_path):
    shown = as_shell(name, tmp_path, "--show-completion")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert f"_REWEIGH_COMPLETE=complete_{name}" in shown.stdout
    installed = as_shell(name, tmp_path, "--install-completion")
    assert (installed.returncode, installed.stdout) == (0, "")
    path = Path(re.fullmatch(r"wrote (.*); it is used by the next shell that starts\n", installed.stderr)[1])
    assert path.is_relative_to(tmp_path)
    assert path.read_text().strip() == shown.stdout.strip()


def completed(*words):
    """What bash would offer for the last word."""
    env = {**os.environ, "_REWEIGH_COMPLETE": "complete_bash", "COMP_WORDS": "\n".join(["reweigh", *words])}
    env["COMP_CWORD"] = str(len(words))
    code = (
        "import sys; from reweigh.__main__ import main; code = main([]); sys.stderr.write(' '.join(sys.modules));"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    return done.stdout.split(), set(done.stderr.split())


@pytest.mark.slow
def test_completion_knows_commands_options_and_values():
    found, loaded = completed("do")
    assert found == ["doctor", "doctor-install"]
    assert "torch" not in loaded
    found, loaded = completed("audit", "runs/st")  # the shell knows the files
    assert found == []
    assert "torch" not in loaded
    assert completed("records", "de")[0] == ["describe"]
    found, loaded = completed("audit", "--fo")
    assert found == ["--format"]
    assert not loaded & HEAVY
    assert completed("explain", "--format", "")[0] == ["text", "json"]


def test_text_of_responses_is_left_out_on_demand(capsys, tmp_path):
    words = "nobody else should read this"
    path = tmp_path / "a.jsonl"
    rows = [
        {
            "sequence_id": str(i),
            "text": words,
            "token_ids": [70017001, 70027002],
            "log_mu": [-1.0, -2.0],
            "log_pi": [-1.1, -2.0],
        }
        for i in range(3)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for option, shown in (("--text", True), ("--no-text", False)):
        page = tmp_path / f"{shown}.html"
        _, out, err = run(capsys, "audit", path, "--format", "json", "--html", page, "--no-doctor", option)
        assert err == f"wrote {page}\n"
        assert (words in page.read_text()) is (words in out) is ("70017001" in out) is shown
        page.unlink()
        run(capsys, "watch", tmp_path, "--once", "--html", page, "--state", tmp_path / f"{shown}.state", option)
        assert (words in page.read_text()) is shown


def test_the_page_names_every_command_and_variable(capsys):
    page = (ROOT / "docs" / "commands.md").read_text()
    for path, command in COMMANDS.items():
        assert f"reweigh {' '.join(path)}`" in page, path
        for option in command.params:
            for variable in [option.envvar] if isinstance(option.envvar, str) else option.envvar or []:
                assert f"`{variable}`" in page, variable
    for variable in ("NO_COLOR", "REWEIGH_DEBUG", "FORCE_COLOR"):
        assert f"`{variable}`" in page
