"""`tools.upstream`: what ours rests on in other packages, compared with what they are now."""

from pathlib import Path

import pytest

from reweigh.rosetta import PROFILES
from tools.upstream import Rest, hash_of, main, names_in, read_rests, source_of, write_rests

ROOT = Path(__file__).parent.parent
LOSS = """\
MODES = ("token", "sequence")


class Loss:
    clip: float = 2.0

    def forward(self, log_ratio, mode):
        # Truncated.
        if mode == "truncate":
            return log_ratio.exp().clamp(max=self.clip)
        return log_ratio


def other(x):
    return x
"""


@pytest.fixture
def watched(tmp_path):
    """A framework of one file, three rests on it, and their data file, recorded."""
    (tmp_path / "sources" / "fw" / "fw").mkdir(parents=True)
    file = tmp_path / "sources" / "fw" / "fw" / "loss.py"
    file.write_text(LOSS)
    (tmp_path / "sources" / "fw" / "fw_pkg-1.2.dist-info").mkdir()
    data = tmp_path / "upstream.json"
    rests = [
        Rest("fw", "o/fw", "fw-pkg", "1.1", "fw/loss.py", s, ("ours.toml",)) for s in ("Loss.forward", "MODES", "")
    ]
    write_rests(rests, data)
    arguments = ["--sources", str(tmp_path / "sources"), "--data", str(data)]
    assert main([*arguments, "--record"]) == 0
    return file, data, arguments


def test_what_did_not_change_is_not_told(watched, capsys):
    file, data, arguments = watched
    capsys.readouterr()
    assert main(arguments) == 0
    assert capsys.readouterr().out == "3 compared, 0 changed\n"
    assert {r.version for r in read_rests(data)} == {"1.2"}
    file.write_text(LOSS.replace("# Truncated.", "# Otherwise said.\n").replace("def other", "# New.\n\n\ndef other"))
    assert main(arguments) == 0


def test_what_changed_is_named_with_what_it_touches(watched, capsys):
    file, _, arguments = watched
    file.write_text(LOSS.replace('mode == "truncate"', 'mode == "mask" and self.low').replace("mode)", "mode, low)"))
    capsys.readouterr()
    assert main(arguments) == 1
    out = capsys.readouterr().out
    assert "fw 1.2 -> 1.2: Loss.forward of fw/loss.py changed; new: low, mask; gone: truncate" in out
    assert "touches ours.toml" in out
    assert "MODES" not in out


def test_what_is_gone_is_named(watched, capsys):
    file, _, arguments = watched
    file.write_text(LOSS.replace("def forward", "def __call__"))
    assert main(arguments) == 1
    assert "Loss.forward is gone from fw/loss.py" in capsys.readouterr().out
    file.unlink()
    assert main(arguments) == 1
    assert capsys.readouterr().out.count("fw/loss.py is gone") == 3


def test_a_comparison_with_nothing_is_no_success(watched, tmp_path, capsys):
    _, data, _ = watched
    (tmp_path / "empty").mkdir()
    assert main(["--sources", str(tmp_path / "empty"), "--data", str(data)]) == 2
    assert "not here, not compared: fw" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["nobody", "--data", str(data)])


def test_a_symbol_with_its_decorators_and_its_names():
    source = "@register('x')\ndef f(a, *, b=1):\n    return a['key'] + b\n"
    assert source_of(source + "\ndef g(): ...\n", "f") == source.rstrip()
    assert source_of(source, "g") is None
    assert names_in(source) == ("a", "b", "key")
    assert hash_of("    x = 1\n\n    # said\n") == hash_of("x = 1")


def test_everything_recorded_was_read_and_touches_files_that_are():
    rests = read_rests()
    assert all(r.hash for r in rests)
    assert len({(r.framework, r.path, r.symbol, r.parts) for r in rests}) == len(rests)
    assert not [p for r in rests for p in r.parts if not (ROOT / p).is_file()]
    touched = {p for r in rests for p in r.parts}
    assert not [
        p.name for p in PROFILES if f"reweigh/rosetta/frameworks/{p.name.replace('-', '_')}.toml" not in touched
    ]
    hooks = {f"reweigh/trainers/{n}.py" for n in ("nemo_rl", "prime_rl", "skyrl", "slime", "tinker", "trl", "verl")}
    assert hooks <= touched


def test_what_is_installed_is_found(capsys):
    pytest.importorskip("trl")
    assert main(["trl"]) in (0, 1)  # another version may be installed
    assert "is gone" not in capsys.readouterr().out
