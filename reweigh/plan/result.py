"""A plan: what each mode and default would do at one length or on one set of records, as values and as JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, final

from reweigh.plan.advice import Advice
from reweigh.plan.measured import Measured
from reweigh.plan.model import Band, Capping, Expected, Figure, figure
from reweigh.plan.modes import Mode
from reweigh.stats.numerals import plain
from reweigh.stats.verdict import Verdict

SCHEMA: Final = 1
FIGURES: Final = ("dropped", "capped", "retained", "over_kept", "ess")


@final
@dataclass(frozen=True)
class Row:
    """One mode.

    Attributes:
        mode: what it is.
        expected: under the model; None if it has no closed form.
        chi2: of the ratio that it weighs by: how far the model can be believed.
        on_data: the same on the records; None without records.
    """

    mode: Mode
    expected: Expected | None
    chi2: float
    on_data: Expected | None = None

    def figures(self) -> dict[str, Figure]:
        """Of the model, by name; see `FIGURES`."""
        if self.expected is None:
            return dict.fromkeys(FIGURES, Figure(None, "refused"))
        return {name: figure(getattr(self.expected, name), self.chi2) for name in FIGURES}

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "name": self.mode.name,
            "framework": self.mode.framework or None,
            "options": None if self.mode.options is None else dict(self.mode.options),
            "formula": self.mode.formula,
            "unit": self.mode.estimator.unit,
            "model": {name: found.to_dict() for name, found in self.figures().items()},
            "on_data": None if self.on_data is None else {name: getattr(self.on_data, name) for name in FIGURES},
        }


@final
@dataclass(frozen=True)
class LengthBand:
    """A band, the share that it keeps under the model, and on the records each at its own length."""

    band: Band
    keeps: float
    on_data: float | None
    options: Mapping[str, Mapping[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "length": self.band.length,
            "centre": -self.band.kl,
            "width": self.band.width,
            "low": self.band.low,
            "high": self.band.high,
            "keeps": self.keeps,
            "keeps_on_data": self.on_data,
            "code": self.band.code,
            "options": {name: dict(options) for name, options in self.options.items()},
        }


@final
@dataclass(frozen=True)
class AtLength:
    """All there is to say of one length, or of the lengths of the records.

    Attributes:
        length: tokens; the mean if there are several.
        kl: of a token, nats.
        s2: variance of a sequence's log ratio under the model, nats squared.
        chi2: of the sequence ratio under the model.
        advice: which mode is sane.
        modes: the modes of the field.
        defaults: popular defaults.
        band: the length-aware band.
        caps: of the sequence ratio, by rule.
    """

    length: float
    kl: float
    s2: float
    chi2: float
    advice: Advice
    modes: tuple[Row, ...]
    defaults: tuple[Row, ...]
    band: LengthBand
    caps: tuple[Capping, ...]

    @property
    def trusted(self) -> bool:
        """Whether the model was checked this far: a chi-square of the sequence ratio up to 1."""
        return self.chi2 <= 1

    def row(self, name: str) -> Row:
        """The mode of that name; of a default, `framework name`."""
        return next(r for r in (*self.modes, *self.defaults) if name in (r.mode.name, _full(r.mode)))

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "length": self.length,
            "kl": self.kl,
            "s2": self.s2,
            "chi2": plain(self.chi2),
            "trusted": self.trusted,
            "advice": {"mode": self.advice.mode, "sentence": self.advice.sentence, "use": self.advice.use or None},
            "modes": [row.to_dict() for row in self.modes],
            "defaults": [row.to_dict() for row in self.defaults],
            "band": self.band.to_dict(),
            "caps": [
                {"rule": c.rule, "cap": c.cap.to_dict(), "on_data": plain(c.on_data)}
                | {"retained": None if c.expected is None else figure(c.expected.retained, self.chi2).to_dict()}
                | {"ess": None if c.expected is None else figure(c.expected.ess, self.chi2).to_dict()}
                for c in self.caps
            ],
        }


@final
@dataclass(frozen=True)
class Plan:
    """What `plan` and `plan_records` give.

    Attributes:
        batch: sequences in a step.
        at: one entry a length.
        measured: of the records; None without any.
        verdict: of the records; None without any.
    """

    batch: float
    at: tuple[AtLength, ...]
    measured: Measured | None = None
    verdict: Verdict | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; `reweigh_plan` is the version of the schema."""
        return {
            "reweigh_plan": SCHEMA,
            "batch": self.batch,
            "records": None if self.measured is None else _of_records(self.measured, self.verdict),
            "lengths": [one.to_dict() for one in self.at],
        }


def _full(mode: Mode) -> str:
    return f"{mode.framework} {mode.name}"


def _of_records(m: Measured, verdict: Verdict | None) -> dict[str, Any]:
    kl = m.token.numbers["kl_k3"]
    lengths = sorted(m.each.length.tolist())
    return {
        "sequences": m.sequence.n,
        "tokens": m.token.n,
        "kl": {"value": m.kl, "low": plain(kl.low), "high": plain(kl.high)},
        "length": {name: lengths[int(q * (len(lengths) - 1))] for name, q in QUANTILES.items()},
        "spread": m.each.spread(),
        "variance_over_model": plain(variance_over_model(m)),
        "turns": m.turns,
        "verdict": None if verdict is None else {"level": verdict.level, "reason": verdict.reason},
    }


QUANTILES: Final = {"least": 0.0, "tenth": 0.1, "median": 0.5, "ninetieth": 0.9, "most": 1.0}


def variance_over_model(m: Measured) -> float | None:
    """Variance of a sequence's log ratio, over that of the model: 1 if the gaps of its tokens are independent."""
    return m.each.variance(m.kl) / (2 * m.kl) if m.kl > 0 else None
