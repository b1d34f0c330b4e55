"""The script that measures the package: right on a made-up one, and it runs on ours."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "structure.py"

MADE_UP = {
    "__init__.py": '__all__ = ["one", "two", "three"]\n',
    "low.py": "X = 1\n\n\ndef _once(): ...\n\n\ndef _twice():\n    return _once()\n\n\nY = _twice(), _twice\n",
    "high.py": "from made_up import low\nfrom made_up.deep.a import f\n\nZ = low.X, f\n",
    "deep/__init__.py": "",
    "deep/a.py": "from made_up.deep.b import g\n\n\nclass _Unused:\n    pass\n\n\ndef f():\n    return g\n",
    "deep/b.py": "from ..low import X\n\n\ndef g():\n    from made_up.deep import a\n\n    return a, X\n",
    "typed/__init__.py": "",
    "typed/c.py": "from made_up.typed.d import D\n\nC = D\n",
    "typed/d.py": "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from made_up.typed.c import C\n\nD = 1\n",
}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("structure", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["structure"] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["structure"]


@pytest.fixture
def made_up(tmp_path):
    for name, text in MADE_UP.items():
        path = tmp_path / "made_up" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_a_made_up_package_is_counted_by_hand(script, made_up):
    found = script.structure_of(made_up, "made_up")
    assert found == {
        "files": 9,
        "lines": sum(text.count("\n") for text in MADE_UP.values()),
        "lines_a_file": 5,
        "one_importer": 3,  # deep.b by a; typed.d by c, typed.c by d for its types
        "private": 3,
        "private_used_once": 1,  # _once; _twice is used twice, _Unused never
        "cycles": 1,
        "files_in_cycles": 2,
        "cycle_members": [["made_up.deep.a", "made_up.deep.b"]],  # through a late import
        "type_cycles": 2,  # c and d only for types
        "module_pairs": 6,
        "part_pairs": 3,  # high to low, high to deep, deep to low
        "package_pairs": 2,  # the top to deep, and back
        "public_names": 3,
    }


def test_one_arrow_back_is_a_cycle_wherever_it_stands(script):
    chain = {str(i): {str(i + 1)} for i in range(5)} | {"5": set()}
    assert script.cycles_of(chain) == []
    assert script.cycles_of(chain | {"4": {"1", "5"}}) == [["1", "2", "3", "4"]]
    assert script.cycles_of({"a": {"b"}, "b": {"a", "c"}, "c": {"d"}, "d": {"c", "e"}, "e": {"c"}}) == [
        ["c", "d", "e"],
        ["a", "b"],
    ]


def test_names_that_are_not_a_literal_list_are_counted_too(script, made_up):
    (made_up / "made_up" / "__init__.py").write_text('_MAP = {"one": "low", "two": "low"}\n__all__ = [*_MAP]\n')
    assert script.structure_of(made_up, "made_up")["public_names"] == 2


def test_a_folder_without_the_package_is_refused(script, tmp_path):
    with pytest.raises(SystemExit, match="holds no package 'made_up'"):
        script.structure_of(tmp_path, "made_up")


def run(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_this_checkout_beside_a_made_up_one(made_up):
    (made_up / "made_up").rename(made_up / "reweigh")
    table = run("--before", made_up, "--after", ROOT)
    files = len(list((ROOT / "reweigh").rglob("*.py")))
    assert f"| files in the package | 9 | {files:,} |" in table


@pytest.mark.slow
def test_the_walk_through_this_checkout():
    found = json.loads(run("--walk", "--json"))
    for task in ("audit", "step", "trl"):
        assert 0 < found[f"{task}_files"] <= found[f"{task}_loaded"] <= found["files"]
        assert found[f"{task}_files"] <= found[f"{task}_functions"] <= found[f"{task}_calls"]
        assert len(found[f"{task}_passed"]) == found[f"{task}_functions"]
    assert found["step_functions"] < found["trl_functions"] < found["audit_functions"]
    assert found["audit_opens"] >= 1
    assert found["audit_fits"] >= found["audit_tails"] >= 1
