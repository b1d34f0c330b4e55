"""The command line as a user meets it: what is printed where, and with which exit code."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from reweigh import native
from reweigh.__main__ import how_to_install, main
from reweigh.records import RecordWriter, RunInfo, read_info

GOOD = [
    {"sequence_id": "a", "prompt_id": "p", "log_mu": [-1.0, -0.5], "log_pi": [-1.5, -0.5], "step": 3, "env": "maths"},
    {"sequence_id": "b", "prompt_id": "p", "log_mu": [-1.0], "log_pi": [-1.0], "mask": [True], "step": 1200},
]


@pytest.fixture
def records(tmp_path):
    path = tmp_path / "run[0].parquet"  # brackets are markup to rich, and a glob to the shell
    with RecordWriter(path, RunInfo(engine="vllm", model="org/m[1]", temperature=0.7)) as writer:
        writer.write(GOOD)
    return path


def run(capsys, *args):
    code = main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    return code, out, err


def test_version_and_help(capsys):
    code, out, _ = run(capsys, "--version")
    first, second = out.splitlines()
    assert (code, first.split()[0], len(first.split())) == (0, "reweigh", 2)
    assert second == f"sums on a CPU: {native.status()}"
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for name in ("probe Sample with", "audit Measure the gap", "records Look into"):
        assert name in " ".join(out.split())
    assert "..." not in out.split("Commands:")[1]  # no summary is cut


@pytest.mark.parametrize("command", ["describe", "validate", "convert"])
def test_every_help_has_examples(capsys, command):
    code, out, _ = run(capsys, "records", command, "--help")
    assert code == 0
    assert f"Examples:\n    reweigh records {command} " in out


def test_listing_commands_imports_none_of_them():
    code = (
        "import sys; from reweigh.__main__ import main; main(['--help']);"
        "heavy = {'pyarrow', 'transformers', 'reweigh.cli.records', 'reweigh.cli.audit', 'reweigh.cli.probe'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_describe(capsys, records, monkeypatch):
    monkeypatch.chdir(records.parent)
    code, out, err = run(capsys, "records", "describe", records.name)
    assert (code, err) == (0, "")
    for text in (
        records.name,
        "3, of which 3 count (are in the mask)",
        "min 1, median 1.5, max 2 tokens",
        "3 to 1,200",
        "maths (1)",
        "run: engine vllm, model org/m[1], temperature 0.7",
    ):
        assert text in out
    line = next(line for line in out.splitlines() if " mask " in line)
    assert "50%" in line
    assert "list<bool>" in line


def test_describe_breaks_a_long_path_and_loses_none_of_it(capsys, tmp_path, records):
    """In a pipe, which is as wide as it is: no name of a folder is longer than a line."""
    folder = tmp_path / ("a" * 150) / ("b" * 90)
    folder.mkdir(parents=True)
    path = shutil.copy(records, folder)
    code, out, _ = run(capsys, "records", "describe", path)
    assert code == 0
    assert str(path) in re.sub(r"\s+", "", out)


def test_describe_json_is_one_object(capsys, records):
    code, out, _ = run(capsys, "records", "describe", records, "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["rows"], found["tokens"], found["prompts"]) == (2, 3, 1)
    assert found["steps"] == {"first": 3, "last": 1200}
    assert found["columns"]["mask"]["null_share"] == 0.5
    assert found["metadata"][0]["model"] == "org/m[1]"


def test_describe_of_several_runs_and_of_a_rollout(capsys, tmp_path, records):
    other = tmp_path / "z.jsonl"
    with RecordWriter(other, RunInfo(engine="sglang")) as writer:
        writer.write([{"sequence_id": "z", "log_mu": [-1.0]}])
    code, out, _ = run(capsys, "records", "describe", tmp_path)
    assert code == 0
    assert f"runof{other}:enginesglang" in "".join(out.split())  # lines are broken where the terminal ends
    code, out, _ = run(capsys, "records", "describe", other)
    assert "rollouts that a trainer has yet to rescore" in out


def test_validate_good(capsys, records):
    code, out, err = run(capsys, "records", "validate", records)
    assert (code, out, err) == (0, "valid: 2 rows in 1 file, no rule is broken\n", "")


def test_validate_bad_and_unreadable(capsys, tmp_path, records):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"sequence_id": "a", "log_mu": [0.5, -1], "log_pi": [-1, -1], "foo": 1}\n')
    code, out, err = run(capsys, "records", "validate", bad, records)
    assert code == 1
    assert out.startswith("not valid: 3 rows in 2 files: 2 rules broken, 0 files unreadable\n")
    assert f"log_mu: positive: 1 tokens\n  first: {bad}:1: log_mu[0] = 0.5 is positive\n  hint: a log-prob is at" in out
    assert f"sequence_id: duplicated: 1 rows\n  first: {records} row 0: sequence_id 'a' was used before\n" in out
    assert f"note: {bad}: foo is not a column of the schema; it is ignored\n" in err
    code, out, _ = run(capsys, "records", "validate", bad, "--json")
    found = json.loads(out)
    assert code == 1
    assert [(v["rule"], v["count"], v["place"]) for v in found["violations"]] == [("log_mu: positive", 1, f"{bad}:1")]
    records.write_bytes(records.read_bytes()[:-9])
    code, out, _ = run(capsys, "records", "validate", bad, records)
    assert code == 2
    assert f"unreadable\n  {records}: truncated or not closed: " in out
    assert "log_mu: positive" in out  # the broken file does not hide the other


def test_convert(capsys, tmp_path, records):
    out_path = tmp_path / "out.jsonl.gz"
    code, out, err = run(capsys, "records", "convert", records, out_path)
    assert (code, out, err) == (0, f"{out_path}\n", f"wrote 2 rows to {out_path}\n")
    assert read_info(out_path) == read_info(records)
    code, _, err = run(capsys, "records", "convert", records, out_path)
    assert (code, err) == (2, f"error: convert: {out_path} exists\nhint: --force replaces it.\n")
    merged = tmp_path / "merged.parquet"
    code, out, err = run(
        capsys, "records", "convert", records, out_path, merged, "--row-group-size", 3, "-q", "--format", "json"
    )
    assert (code, json.loads(out), err) == (0, {"wrote": str(merged), "rows": 4, "left_out": 0}, "")
    code, _, err = run(capsys, "records", "convert", records, merged, "--row-group-size", 0)
    assert code == 2
    assert "--row-group-size" in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("describe", "gone.parquet"), "error: gone.parquet: no such file or folder\n"),
        (("validate", "gone/*.parquet"), "error: gone/*.parquet: no file matches\nhint: quote the glob"),
        (("convert", "gone.parquet", "out.txt"), "error: gone.parquet: no such file"),
    ],
)
def test_a_users_error_has_no_traceback(capsys, args, message):
    code, out, err = run(capsys, "records", *args)
    assert (code, out) == (2, "")
    assert err.startswith(message)
    assert "Traceback" not in err


def test_debug_shows_the_traceback(capsys, monkeypatch):
    with pytest.raises(FileNotFoundError):
        main(["records", "describe", "gone.parquet", "--debug"])
    monkeypatch.setenv("REWEIGH_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        main(["records", "describe", "gone.parquet"])


def test_wrong_usage(capsys):
    code, _, err = run(capsys, "recrods")
    assert code == 2
    assert err == "error: reweigh: no such command 'recrods'\nhint: did you mean records? `reweigh --help` has more.\n"
    code, _, err = run(capsys, "records", "describe")
    assert code == 2
    assert "PATHS" in err


@pytest.mark.slow
def test_python_m_is_the_console_script(records):
    command = [sys.executable, "-m", "reweigh", "records", "validate", str(records)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"})
    assert (done.returncode, done.stdout) == (0, "valid: 2 rows in 1 file, no rule is broken\n")
    done = subprocess.run([*command[:-1], "gone"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: gone: no such file or folder\n")


@pytest.mark.parametrize(
    ("missing", "args", "extra"),
    [
        ("typer", ["--help"], "audit"),
        ("rich", ["records", "describe", "x"], "audit"),
        ("pyarrow", ["records", "describe", "x"], "audit"),
    ],
)
def test_without_an_extra_it_says_which_to_install(missing, args, extra):
    # a finder that does not find it is what an environment without it looks like to the import system
    code = textwrap.dedent(f"""
        import sys
        class Absent:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == {missing!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        sys.meta_path.insert(0, Absent())
        from reweigh.__main__ import main
        sys.exit(main({args!r}))
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: {missing} is not installed\nhint: {how_to_install(extra)}\n"
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, 'pip install "reweigh[audit]"'),
        (
            {"url": "file:///home/a%20b/reweigh", "dir_info": {"editable": True}},
            'pip install -e "/home/a b/reweigh[audit]"',
        ),
        ({"url": "file:///src/reweigh", "dir_info": {}}, 'pip install "/src/reweigh[audit]"'),
        (
            {"url": "file:///dist/reweigh-0.1.0-py3-none-any.whl", "archive_info": {}},
            'pip install "reweigh[audit] @ file:///dist/reweigh-0.1.0-py3-none-any.whl"',
        ),
        (
            {"url": "https://host/reweigh", "vcs_info": {"vcs": "git", "commit_id": "f00"}},
            'pip install "reweigh[audit] @ git+https://host/reweigh@f00"',
        ),
    ],
    ids=["index", "clone", "folder", "wheel", "repository"],
)
def test_what_adds_an_extra_is_of_this_very_installation(origin, command, monkeypatch):
    class Installed:
        def read_text(self, name):
            assert name == "direct_url.json"
            return None if origin is None else json.dumps(origin)

    monkeypatch.setattr("importlib.metadata.distribution", lambda name: Installed())
    assert how_to_install("audit") == command


def test_what_adds_an_extra_to_what_nobody_installed(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.distribution", absent)
    assert how_to_install("audit") == f'pip install -e "{Path(__file__).parents[1]}[audit]"'


def test_a_missing_extra_of_one_command_leaves_the_others(capsys, monkeypatch, records):
    monkeypatch.setitem(sys.modules, "reweigh.cli.probe", None)
    assert run(capsys, "records", "validate", records)[0] == 0


def _page():
    return (Path(__file__).parent.parent / "docs" / "records.md").read_text()


def _blocks(language):
    return [block.split("```")[0] for block in _page().split(f"```{language}\n")[1:]]


@pytest.mark.parametrize(
    ("index", "name"),
    [(0, "with_reweigh.parquet"), (1, "with_pyarrow.parquet"), (2, "with_pandas.parquet"), (3, "read_me.parquet")],
)
def test_each_example_of_the_page_runs_and_writes_a_valid_file(capsys, tmp_path, monkeypatch, index, name):
    monkeypatch.chdir(tmp_path)
    block = _blocks("python")[index]
    if "import pandas" in block:
        pytest.importorskip("pandas")
    exec(compile(block, "docs/records.md", "exec"), {})
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert run(capsys, "records", "validate", name)[0] == 0


def test_the_page_s_json_lines_are_valid(capsys, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(_blocks("json")[0])
    assert read_info(path).engine == "llama.cpp"
    assert run(capsys, "records", "validate", path) == (0, "valid: 1 rows in 1 file, no rule is broken\n", "")


def test_the_page_lists_every_column():
    from reweigh.records import COLUMNS

    page = _page()
    for column in COLUMNS:
        kind = f"list<{column.value_type}>" if column.per_token else str(column.type)
        kind = f"list<{kind}>" if column.many else kind
        row = next((line for line in page.splitlines() if line.startswith(f"| `{column.name}` |")), "")
        assert f"| {kind} |" in row, column.name
        assert column.meaning in row, column.name
