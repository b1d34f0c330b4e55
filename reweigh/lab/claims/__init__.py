"""The post claim by claim: what it says, what we say of it, and the evidence, computed on the spot."""

from collections.abc import Callable, Iterable

from reweigh.lab.claims.claim import MEANING, Checked, Claim, Evidence, Verdict
from reweigh.lab.claims.growth import GROWTH
from reweigh.lab.claims.lemma import LEMMA
from reweigh.lab.claims.naive import NAIVE
from reweigh.lab.claims.preview import PREVIEW
from reweigh.lab.claims.self_normalised import SELF_NORMALISED
from reweigh.lab.claims.sequence_is import SEQUENCE_IS
from reweigh.lab.claims.token_bias import TOKEN_BIAS
from reweigh.lab.claims.token_clipping import TOKEN_CLIPPING
from reweigh.lab.claims.truncation import TRUNCATION

__all__ = ["CLAIMS", "MEANING", "Checked", "Claim", "Evidence", "Verdict", "check_claims", "select_claims"]

CLAIMS: tuple[Claim, ...] = (
    *LEMMA,
    *SEQUENCE_IS,
    *GROWTH,
    *SELF_NORMALISED,
    *NAIVE,
    *TOKEN_BIAS,
    *TOKEN_CLIPPING,
    *TRUNCATION,
    *PREVIEW,
)
"""All of them, in the order of the post; 0 is the lemma of Part 1."""


def select_claims(numbers: Iterable[int] = ()) -> tuple[Claim, ...]:
    """The claims with these numbers, in the order of the post; all if none is given.

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
