"""The post claim by claim: what it says, what we say of it, and the evidence, computed on the spot.

The texts stand in `claims.toml`; `evidence.py` computes what each verdict rests on.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

import tomllib

from reweigh.theory.lab.claims.evidence import EVIDENCE, ClaimEvidence

__all__ = ["CLAIMS", "MEANING", "Checked", "Claim", "ClaimEvidence", "Verdict", "check_claims", "select_claims"]

Verdict = Literal["OK", "OK+", "LOOSE", "WRONG", "NON-SEQUITUR", "MISLEADING", "NOT PROVED"]
"""Verdict on a claim; `MEANING` has the words."""

MEANING: dict[Verdict, str] = {
    "OK": "holds as stated",
    "OK+": "holds under an assumption that is not stated",
    "LOOSE": "holds, and something much stronger does too",
    "WRONG": "there is a counterexample",
    "NON-SEQUITUR": "does not follow from what is given for it, whether true or not",
    "MISLEADING": "true to the letter, and says less than it seems to",
    "NOT PROVED": "asserted as a theorem, and no proof of it is given",
}
"""Meaning of each verdict."""


@dataclass(frozen=True)
class Claim:
    """One claim of the post.

    Attributes:
        number: 0 is the lemma that the post takes from its Part 1.
        title: what it is about.
        post: what the post says, in short.
        verdict: ours.
        why: the verdict in a sentence or two.
        sharper: what holds.
        use: what to do with it.
        evidence: computes, on the spot and from fixed seeds, what the verdict rests on.
    """

    number: int
    title: str
    post: str
    verdict: Verdict
    why: str
    sharper: str
    use: str
    evidence: Callable[[], ClaimEvidence]


@dataclass(frozen=True)
class Checked:
    """A claim with its evidence.

    Attributes:
        claim: the claim.
        evidence: what was found.
    """

    claim: Claim
    evidence: ClaimEvidence

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        claim = {k: v for k, v in self.claim.__dict__.items() if k != "evidence"}
        return {**claim, "holds": self.evidence.holds, "evidence": self.evidence.text}


def _claim(number: int, verdict: Verdict, **texts: str) -> Claim:
    """Join a row of `claims.toml`, whose texts may take several lines, with its evidence."""
    joined = {name: " ".join(lines.split()) for name, lines in texts.items()}
    return Claim(number=number, verdict=verdict, **joined, evidence=EVIDENCE[number])


_ROWS = tomllib.loads(files(__name__).joinpath("claims.toml").read_text(encoding="utf-8"))["claim"]
CLAIMS: tuple[Claim, ...] = tuple(_claim(**row) for row in _ROWS)
"""All of them, in the order of the post; 0 is the lemma of Part 1."""


def select_claims(numbers: Iterable[int] = ()) -> tuple[Claim, ...]:
    """Pick the claims with these numbers, in the order of the post; all if none is given.

    Raises:
        ValueError: if there is no claim of a number.
    """
    wanted = set(numbers)
    unknown = sorted(wanted - {c.number for c in CLAIMS})
    if unknown:
        raise ValueError(
            f"claims: there is no claim {', '.join(map(str, unknown))}\nhint: they are numbered 0 (the lemma of Part "
            f"1) to {CLAIMS[-1].number}"
        )
    return tuple(c for c in CLAIMS if not wanted or c.number in wanted)


def check_claims(claims: Iterable[Claim], count: Callable[[int], None]) -> tuple[Checked, ...]:
    """Compute the evidence of each claim.

    Args:
        claims: see `select_claims`.
        count: called with 1 after each.
    """
    out: list[Checked] = []
    for claim in claims:
        out.append(Checked(claim, claim.evidence()))
        count(1)
    return tuple(out)
