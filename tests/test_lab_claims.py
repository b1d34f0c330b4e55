"""The post claim by claim: every verdict holds, the command says so, and the page is that of the code."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reweigh.theory.lab.claims import CLAIMS, MEANING, ClaimEvidence, check_claims, select_claims
from reweigh.theory.lab.claims.evidence import exponent, iid_law, tiny

pytest.importorskip("typer")

ROOT = Path(__file__).parents[1]


def run(*args):
    path = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-m", "reweigh", "lab", "claims", *args], capture_output=True, text=True, check=False, env=path
    )


@pytest.mark.slow
@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: str(c.number))
def test_every_verdict_holds_and_shows_numbers(claim):
    torch.set_num_threads(1)
    found = claim.evidence()
    assert found.holds is True, found.text  # and no number of NumPy's, which JSON does not know
    assert any(c.isdigit() for c in found.text)
    assert found == claim.evidence(), "not a function of its seeds"


def test_every_claim_is_there_once_and_in_order():
    assert [c.number for c in CLAIMS] == list(range(32))


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: str(c.number))
def test_a_claim_says_all_that_it_should(claim):
    assert claim.verdict in MEANING
    for text in (claim.post, claim.why, claim.sharper, claim.use):
        assert text.endswith((".", "!"))
        assert "  " not in text
    assert not claim.title.endswith(".")


def test_verdicts_of_all_kinds_are_given():
    assert {c.verdict for c in CLAIMS} == set(MEANING)


def test_a_verdict_that_falls_is_reported():
    said = []
    wrong = replace(CLAIMS[4], evidence=Wrong())
    (found,) = check_claims([wrong], said.append)
    assert said == [1]
    assert found.to_dict()["holds"] is False
    assert found.to_dict()["number"] == 4


class Wrong:
    def __call__(self):
        return ClaimEvidence(False, "no 1")


def test_numbers_select_in_the_order_of_the_post():
    assert [c.number for c in select_claims([29, 6, 6])] == [6, 29]
    assert select_claims() == CLAIMS
    with pytest.raises(ValueError, match=r"no claim 32, 99\nhint: they are numbered 0 \(the lemma of Part 1\) to 31"):
        select_claims([99, 5, 32])


def test_the_law_of_iid_tokens_is_that_of_its_chi_square():
    law = iid_law(0.5, 0.4, 6)
    per_token = 0.25 / 0.4 + 0.25 / 0.6
    assert law.m2 == pytest.approx(per_token**6, rel=1e-12)
    assert law.lost(0.0) == pytest.approx(1.0, abs=1e-12)


def test_the_power_of_a_power():
    assert exponent((3 * 8**1.5, 3 * 32**1.5), (8, 32)) == pytest.approx(1.5)
    assert (tiny(3e-16), tiny(2e-3)) == ("1e-11", "2e-03")


@pytest.mark.slow
def test_the_command_prints_what_was_asked():
    done = run("8", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["ok"] is True
    assert [(c["number"], c["verdict"]) for c in said["claims"]] == [(8, "WRONG")]
    assert "17,292" in said["claims"][0]["evidence"]
    text = run("8", "22")
    assert text.stdout.startswith("ok: every verdict holds, of 2 claims")
    assert "8. What 1% of mismatch costs: WRONG" in text.stdout
    assert "\n6. " not in text.stdout


@pytest.mark.slow
def test_the_command_refuses_a_number_that_is_no_claim():
    done = run("32")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no claim 32" in done.stderr
    assert "hint: they are numbered 0" in done.stderr


def test_the_command_fails_if_a_verdict_falls(monkeypatch, capsys):
    from reweigh.__main__ import main
    from reweigh.theory.lab import claims

    wrong = (replace(CLAIMS[4], evidence=Wrong()), CLAIMS[8])
    monkeypatch.setattr(claims, "select_claims", lambda _: wrong)
    monkeypatch.setattr(sys, "argv", ["reweigh", "lab", "claims"])
    assert main() == 1
    assert capsys.readouterr().out.startswith("fail: the verdict on 4 does not hold, of 2 claims")


@pytest.mark.slow
def test_the_page_is_that_of_the_code():
    script, path = ROOT / "docs" / "claims.py", {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False, env=path
    )
    assert (done.returncode, done.stdout.strip()) == (0, "up to date")
