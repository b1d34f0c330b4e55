"""Which mode is sane at a KL and a length, in a sentence."""

from dataclasses import dataclass
from typing import Literal, final

from reweigh.caps import Tradeoff
from reweigh.named import geo_rs, seq_tis, token_tis
from reweigh.plan.model import SMALLEST, Band, Figure, MixedRatio, expect, figure
from reweigh.stats.verdict import ESS_GOOD, ESS_POOR, KL_LARGE

Sane = Literal["any", "sequence", "capped sequence", "token", "none"]
ANY = 0.2  # chi-square up to which rows of the table in docs/caps.md differ by less than its worlds do


@final
@dataclass(frozen=True)
class Advice:
    """What to use.

    Attributes:
        mode: "any", "sequence", "capped sequence", "token", or "none": fix the cause first.
        sentence: with its reason.
        use: as one would write it; empty for "any" and "none".
    """

    mode: Sane
    sentence: str
    use: str = ""


def advise(law: MixedRatio, n: float, band: Band, fault: str = "", refusal: str = "") -> Advice:
    """The sane mode: by the effective share that sequence ratios leave, `e^-s2` in the model.

    From 50% on sequence ratios serve, from 30% on with a cap, below it they do not (both from verl's guide to its
    rollout correction); from a KL of 0.01 a token on the cause comes first (tinker-cookbook, prime-rl).

    Args:
        law: the model.
        n: sequences in a step.
        band: to drop whole sequences with.
        fault: what is wrong with the records, if something is.
        refusal: why the records' sequence ratios are no weights, if they are not.
    """
    at = f"at KL {law.kl:.2g} and {law.length:,.0f} tokens"
    ess, cap = law.ess_fraction, Tradeoff(n=n).of_law(law)
    if fault:
        return Advice("none", f"fix the cause first: {fault}; what follows supposes that pi covers mu")
    if law.kl == 0:
        return Advice("any", "there is no gap: nothing is to be corrected")
    if law.chi2 <= ANY:
        why = f"sequence ratios keep {ess:.0%} effective"
        return Advice("any", f"{at} {why}, so any mode serves, uncapped or with a cap of 2; fixed tight bands do not")
    left = f"a sequence product keeps {said(figure(ess, law.chi2))} effective"
    if law.kl >= KL_LARGE:
        return Advice("none", f"{at} {left}: fix the cause first, a KL of {KL_LARGE:g} is more than numerics explain")
    if ess >= ESS_GOOD and not refusal:
        return Advice("sequence", f"{at} {left}: it serves, with a cap as a guard", f"seq_tis({cap:.3g})")
    if ess >= ESS_POOR:
        kept = expect(seq_tis(cap), law)
        part = "" if kept is None else f", which retains {said(figure(kept.retained, law.chi2))} of the weight"
        left += f" in the model, but on these records {refusal}" if refusal else ""
        why = f"{left}: only with a cap for a batch of {n:,.0f}{part}"
        return Advice("capped sequence", f"{at} {why}; or token ratios", f"seq_tis({cap:.3g})")
    capped, token = expect(seq_tis(2.0), law), expect(token_tis(2.0), law)
    assert capped is not None
    assert token is not None
    retained = said(figure(capped.retained, law.chi2))
    why = f"{left}, and one capped at 2 retains {retained} of the weight: do not"
    instead = f"use token ratios, token_tis(2), which keep {said(figure(token.ess, 0))}"
    fixed = expect(geo_rs(0.999, 1.001), law)
    tight = "" if fixed is None else f" (0.999 to 1.001 would drop {said(figure(fixed.dropped, 0))})"
    return Advice("token", f"{at} {why}; {instead}, and to drop whole sequences {band.code}{tight}", "token_tis(2)")


def said(f: Figure) -> str:
    """A share in percent, with no more digits than it has; `~` before a rough one.

    Example:
        >>> said(Figure(0.0312)), said(Figure(0.2, "rough")), said(Figure(None, "refused", 1e-4))
        ('3.1%', '~20%', '<0.01%')
    """
    if f.value is None:
        return "refused" if f.below is None else f"<{100 * f.below:.2g}%"
    percent = 100 * f.value
    mark = "~" if f.trust == "rough" else ""
    if f.trust != "rough" and 0 < f.value < SMALLEST:
        return f"<{100 * SMALLEST:.2g}%"
    digits = 0 if percent >= 9.95 or percent == 0 else 1
    if f.trust == "rough":
        return f"{mark}{percent:.2g}%" if percent < 99.5 else "~100%"
    if 99 < percent < 100:
        return f"{percent:.2f}%" if percent < 99.995 else ">99.99%"
    return f"{mark}{percent:.{digits}f}%" if percent >= 0.95 or percent == 0 else f"{mark}{percent:.2g}%"
