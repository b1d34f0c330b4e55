"""A claim of the post, what we say of it, and how to compute whether we are right."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["OK", "OK+", "LOOSE", "WRONG", "NON-SEQUITUR", "MISLEADING", "NOT PROVED"]
"""What is said of a claim; `MEANING` has the words."""

MEANING: dict[Verdict, str] = {
    "OK": "holds as stated",
    "OK+": "holds under an assumption that is not stated",
    "LOOSE": "holds, and something much stronger does too",
    "WRONG": "there is a counterexample",
    "NON-SEQUITUR": "does not follow from what is given for it, whether true or not",
    "MISLEADING": "true to the letter, and says less than it seems to",
    "NOT PROVED": "asserted as a theorem, and no proof of it is given",
}
"""What each verdict means."""


@dataclass(frozen=True)
class Evidence:
    """What a computation found.

    Attributes:
        holds: whether our verdict stands.
        text: what was computed, with its numbers.
    """

    holds: bool
    text: str


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
    evidence: Callable[[], Evidence]


@dataclass(frozen=True)
class Checked:
    """A claim with its evidence.

    Attributes:
        claim: the claim.
        evidence: what was found.
    """

    claim: Claim
    evidence: Evidence

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        c = self.claim
        return {
            "number": c.number,
            "title": c.title,
            "post": c.post,
            "verdict": c.verdict,
            "why": c.why,
            "sharper": c.sharper,
            "use": c.use,
            "holds": self.evidence.holds,
            "evidence": self.evidence.text,
        }
