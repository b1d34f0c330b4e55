"""How far a figure of the model can be believed, and how many digits of it are worth printing."""

import math
from dataclasses import dataclass
from typing import Any, Literal, final

Trust = Literal["good", "rough", "refused"]
CHI2_TRUSTED = 1.0  # of the sequence ratio: up to it the log-normal model is good to 4 to 30% (see `LogNormalRatio`)
SMALLEST = 1e-4  # a rough share below it is only known to be small


@final
@dataclass(frozen=True)
class Figure:
    """A figure of the model.

    Attributes:
        value: None if refused; one significant digit if rough.
        trust: "good": within 4 to 30%; "rough": the ratio's tail is beyond what the model was checked on, read it as an
            order of magnitude; "refused": not known, but for `below`.
        below: what it is under, where it is refused and that is known.
    """

    value: float | None
    trust: Trust = "good"
    below: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"value": self.value, "trust": self.trust} | ({} if self.below is None else {"below": self.below})


def figure(x: float | None, chi2: float) -> Figure:
    """A figure that is as good as the model is at this chi-square of the ratio that it is of.

    Example:
        >>> figure(0.2143, chi2=0.5), figure(0.2143, chi2=9.0)
        (Figure(value=0.2143, trust='good', below=None), Figure(value=0.2, trust='rough', below=None))
        >>> figure(3e-9, chi2=1e8)
        Figure(value=None, trust='refused', below=0.0001)
    """
    if x is None or not math.isfinite(x):
        return Figure(None, "refused")
    if chi2 <= CHI2_TRUSTED or x in (0.0, 1.0):  # these are by construction
        return Figure(x)
    if x < SMALLEST:
        return Figure(None, "refused", SMALLEST)
    return Figure(float(f"{x:.0e}") if x < 1 - 0.05 else x, "rough")
