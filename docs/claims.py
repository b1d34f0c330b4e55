"""Write the page that goes through the post claim by claim, with evidence computed on the spot.

python docs/claims.py            # rewrites docs/claims.md; takes as long as `reweigh lab claims`
python docs/claims.py --check    # says whether it is up to date; exit code 1 if not
"""

import sys
from pathlib import Path

import torch

from reweigh.theory.lab.claims import CLAIMS, MEANING, Checked, check_claims

PAGE = Path(__file__).parent / "claims.md"

OPENING = """# The post, claim by claim

"Part 2: Applying the SGA Framework, Token v.s. Sequence-level Correction" (Yingru Li and Jiacai Liu, 2025) asks the
right question: what do bias and variance of an off-policy gradient cost in progress, and which level of correction
pays? Its frame, its estimators and most of its inequalities stand. Some steps are loose, a few are slips, and some
conclusions go further than their proofs. This page says which is which, and what holds instead.

`reweigh lab claims` computes everything under *Evidence* anew, on worlds small enough to go through every sequence, or
by closed forms and dynamic programming, from fixed seeds, and exits 1 if a verdict no longer holds. `reweigh lab claims
6 29` takes these two. Bounds, caps and estimators are the library's own. Nothing here was measured on a neural network.

pi trains, mu samples; r is the sequence ratio pi/mu, r_t that of a token; R is the reward, S the score of a sequence, f
= R S, K = sup |f|, g = E_pi f; T is the length, N the sequences of a batch, C a cap; chi2, TV and KL are of sequences
unless said to be of a state; m2 = E_mu r^2; Delta is the largest TV of a state, K_s the largest norm of the score of a
token, half_range half of the range of R. *Slack* is a bound over what it bounds. Seq-IS, Seq-TIS, Seq-MIS, Token-IS and
so on are `seq_is`, `seq_tis`, `seq_mis`, `token_is` of [estimators](estimators.md)."""


def entry(found: Checked) -> str:
    """One claim."""
    c = found.claim
    stands = "" if found.evidence.holds else " (against the verdict)"
    return "\n\n".join(
        (
            f"## {c.number}. {field(c.title)}: {c.verdict}",
            f"**The post:** {field(c.post)}",
            f"**Verdict:** {field(c.why)}",
            f"**Evidence{stands}:** {field(found.evidence.text)}",
            f"**Sharper:** {field(c.sharper)}",
            f"**Use:** {field(c.use)}",
        )
    )


def page() -> str:
    """The whole page."""
    torch.set_num_threads(1)
    found = check_claims(CLAIMS, lambda _: None)
    meaning = ["| verdict | meaning | claims |", "|---|---|---|"]
    for verdict, words in MEANING.items():
        numbers = ", ".join(str(c.number) for c in CLAIMS if c.verdict == verdict)
        meaning.append(f"| {verdict} | {words} | {numbers} |")
    parts = [OPENING, "Made by `docs/claims.py`.", "\n".join(meaning), *(entry(f) for f in found)]
    return "\n\n".join(parts) + "\n"


def field(text: str) -> str:
    """Text in which no `<`, `_` or `*` of a formula is taken for markup; code in backticks stays as it is."""
    pieces = text.split("`")
    pieces[::2] = [p.replace("_", r"\_").replace("*", r"\*").replace("<", "&lt;") for p in pieces[::2]]
    return "`".join(pieces)


def main() -> int:
    """Write, or check."""
    made = page()
    if "--check" in sys.argv[1:]:
        stale = not PAGE.exists() or PAGE.read_text() != made
        print("stale: docs/claims.md; run: python docs/claims.py" if stale else "up to date")
        return int(stale)
    PAGE.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
