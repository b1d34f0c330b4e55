"""Plan from a KL and lengths, or from records: the model, each mode, each default, the band, the caps, and advice."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Final, final

from reweigh import doctor as diagnosing
from reweigh.estimators import Estimator
from reweigh.named import geo_rs, prefix_tis, seq_is, seq_mis, seq_tis, snis, token_mis, token_tis, turn_tis
from reweigh.plan.measured import MeasuredRun, family, measured
from reweigh.plan.model import SMALLEST, Band, Capping, Expected, Figure, MixedRatio, cappings, expect, figure
from reweigh.records.files import Paths
from reweigh.rosetta.frameworks import profile_of
from reweigh.rosetta.words import formula
from reweigh.scan import Engine, Report, Workers, look, scan
from reweigh.scan.rows import EVERY, Rows
from reweigh.stats.numerals import plain
from reweigh.stats.summary import VERDICT_CAP
from reweigh.stats.verdict import SEQUENCE_CAP, TOKEN_CAP, Gap, Option, Verdict, advise, judge, wrong_of


@dataclass(frozen=True)
class Mode:
    """An estimator under the name that one knows it by.

    Attributes:
        name: as one would write it.
        estimator: what it computes.
        framework: whose default it is; empty if it is nobody's in particular.
        options: of the framework, those that are set.
    """

    name: str
    estimator: Estimator
    framework: str = ""
    options: Mapping[str, Any] | None = None

    @property
    def key(self) -> str:
        """The name with the framework's before it, which no other mode has."""
        return f"{self.framework} {self.name}".strip()

    @property
    def formula(self) -> str:
        """`w = ...`."""
        return formula(self.estimator)


def modes(turns: float | None = None) -> tuple[Mode, ...]:
    """List modes from the finest level to the coarsest; turns only if there are any."""
    estimators = {
        "token_tis(2)": token_tis(2.0),
        "token_mis(0.5, 5)": token_mis(0.5, 5.0),
        "prefix_tis(2)": prefix_tis(2.0),
        **({} if turns is None else {"turn_tis(2)": turn_tis(2.0)}),
        "seq_is": seq_is(),
        "snis": snis(),
        "seq_tis(2)": seq_tis(2.0),
        "seq_tis(10)": seq_tis(10.0),
        "seq_mis(0, 2)": seq_mis(0.0, 2.0),
        "seq_mis(0.5, 2)": seq_mis(0.5, 2.0),
        "geo_rs(0.999, 1.001)": geo_rs(0.999, 1.001),
        "geo_rs(0.99, 1.01)": geo_rs(0.99, 1.01),
    }
    return tuple(Mode(name, estimator) for name, estimator in estimators.items())


# Name, framework, options that a user sets; what is not set is the framework's own default.
_DEFAULTS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("sequence mask 3.0", "trl", {}),
    ("token 2.0", "verl", {"rollout_is": "token"}),
    ("sequence 2.0", "verl", {"rollout_is": "sequence"}),
    ("geo 0.999-1.001", "verl", {"rollout_rs": "seq_mean_k1", "rollout_rs_threshold": "0.999_1.001"}),
    (
        "seq-mask-tis 0.999-1.002",
        "nemo-rl",
        {
            "use_importance_sampling_correction": True,
            "truncated_importance_sampling_type": "seq-mask-tis",
            "truncated_importance_sampling_ratio": 1.002,
            "truncated_importance_sampling_ratio_min": 0.999,
        },
    ),
    ("seq-mask-tis 0.5-5.0", "openrlhf", {"is_correction_level": "seq"}),
    ("token mask 0.5-5.0", "openrlhf", {"is_correction_level": "token"}),
    ("geometric 0.99-1.01", "skyrl", {"sequence_mask_metric": "geometric"}),
    ("product mask 0.5-2.0", "skyrl", {"sequence_mask_metric": "product"}),
    ("sequence 5.0", "skyrl", {"tis_ratio_type": "sequence"}),
)


def defaults() -> tuple[Mode, ...]:
    """Read popular defaults by the profiles of their frameworks (`reweigh explain --from ...`)."""
    listed: list[Mode] = []
    for name, framework, options in _DEFAULTS:
        profile = profile_of(framework)
        listed.append(Mode(name, profile.read(options).plan.estimator, profile.name, options))
    return tuple(listed)


def gap_of_law(law: MixedRatio) -> Gap:
    """Take the numbers of a verdict from the model in place of a sample."""
    kept, square, token = 1 - law.excess(VERDICT_CAP), law.min2(VERDICT_CAP), expect(token_tis(VERDICT_CAP), law)
    assert token is not None
    at = f"at KL {law.kl:.2g} and {law.length:,.0f} tokens"
    words = f"{at} a sequence product keeps {said(figure(law.ess_fraction, law.chi2))} effective"
    return Gap(
        law.kl,
        law.excess(1.0),
        law.ess_fraction,
        "",
        Option(SEQUENCE_CAP, kept, kept * kept / square if square > 0 else 0.0, 1 - kept),
        Option(TOKEN_CAP, token.retained, token.ess, min(1.0, 2 * law.excess(1.0))),
        words=words if law.kl else f"{at} there is no gap",
    )


def said(f: Figure) -> str:
    """Write a share in percent, with no more digits than it has; `~` before a rough one.

    Example:
        >>> said(Figure(0.0312)), said(Figure(0.2, "rough")), said(Figure(None, "refused", 1e-4))
        ('3.1%', '~20%', '<0.01%')
    """
    if f.value is None:
        return "refused" if f.below is None else f"<{100 * f.below:.2g}%"
    percent = 100 * f.value
    if f.trust == "rough":
        return f"~{percent:.2g}%" if percent < 99.5 else "~100%"
    if 0 < f.value < SMALLEST:
        return f"<{100 * SMALLEST:.2g}%"
    if 99 < percent < 100:
        return f"{percent:.2f}%" if percent < 99.995 else ">99.99%"
    if percent >= 9.95 or percent == 0:
        return f"{percent:.0f}%"
    return f"{percent:.1f}%" if percent >= 0.95 else f"{percent:.2g}%"


SCHEMA: Final = 1
FIGURES: Final = ("dropped", "capped", "retained", "over_kept", "ess")


@final
@dataclass(frozen=True)
class ModeRow:
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
        """Figures of the model, by name; see `FIGURES`."""
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
            "model": {name: one.to_dict() for name, one in self.figures().items()},
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
    """A plan for one length, or for the lengths of the records.

    Attributes:
        length: tokens; the mean if there are several.
        kl: of a token, nats.
        s2: variance of a sequence's log ratio under the model, nats squared.
        chi2: of the sequence ratio under the model.
        advice: the verdict: of the records at their own lengths, of the model elsewhere.
        modes: the modes of the field.
        defaults: popular defaults.
        band: the length-aware band.
        caps: of the sequence ratio, by rule.
    """

    length: float
    kl: float
    s2: float
    chi2: float
    advice: Verdict
    modes: tuple[ModeRow, ...]
    defaults: tuple[ModeRow, ...]
    band: LengthBand
    caps: tuple[Capping, ...]

    @property
    def trusted(self) -> bool:
        """Whether the model was checked this far: a chi-square of the sequence ratio up to 1."""
        return self.chi2 <= 1

    def row(self, name: str) -> ModeRow:
        """The mode of that name; of a default, `framework name`."""
        return next(r for r in (*self.modes, *self.defaults) if name in (r.mode.name, r.mode.key))

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "length": self.length,
            "kl": self.kl,
            "s2": self.s2,
            "chi2": plain(self.chi2),
            "trusted": self.trusted,
            "advice": self.advice.to_dict() | {"sentence": self.advice.sentence},
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
    """A plan for each length, as `plan` and `plan_records` make it.

    Attributes:
        batch: sequences in a step.
        at: one entry a length.
        measured: of the records; None without any.
        verdict: of the records, with the cause if a doctor names one; None without any.
    """

    batch: float
    at: tuple[AtLength, ...]
    measured: MeasuredRun | None = None
    verdict: Verdict | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; `reweigh_plan` is the version of the schema."""
        return {
            "reweigh_plan": SCHEMA,
            "batch": self.batch,
            "records": None if self.measured is None else _of_records(self.measured, self.verdict),
            "lengths": [one.to_dict() for one in self.at],
        }


def _of_records(m: MeasuredRun, verdict: Verdict | None) -> dict[str, Any]:
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
        "verdict": None if verdict is None else verdict.to_dict(),
    }


QUANTILES: Final = {"least": 0.0, "tenth": 0.1, "median": 0.5, "ninetieth": 0.9, "most": 1.0}


def variance_over_model(m: MeasuredRun) -> float | None:
    """Variance of a sequence's log ratio, over that of the model: 1 if the gaps of its tokens are independent."""
    return m.each.variance(m.kl) / (2 * m.kl) if m.kl > 0 else None


MOST = 4_000_000  # tokens that the cause is looked for in: seconds, as `reweigh audit` does
BATCH = 1024  # sequences in a step, if nobody says
KEEP = 0.95  # share of sequences that the length-aware band keeps


def plan(
    kl: float, lengths: Sequence[float], batch: float = BATCH, *, keep: float = KEEP, turns: float | None = None
) -> Plan:
    """What each mode and popular default would do at a KL a token and these lengths, under the log-normal model.

    Args:
        kl: KL(mu||pi) of a token, nats, at least 0.
        lengths: tokens of a response, each at least 1.
        batch: sequences in a step, at least 1.
        keep: share of sequences that the length-aware band is to keep.
        turns: how many a response has; without it no mode of turns is planned.

    Raises:
        ValueError: if a value is out of its range.

    Example:
        >>> from reweigh.plan import plan
        >>> (found,) = plan(1e-3, [4096]).at
        >>> print(f"{found.row('seq_tis(2)').expected.retained:.2f}", found.advice.action, found.advice.use)
        0.21 small token_tis(2)

    Source: `LogNormalRatio`.
    """
    _check(kl, lengths, batch, keep, turns)
    laws = [MixedRatio.of_lengths(kl, [(length, 1.0)]) for length in lengths]
    return Plan(batch, tuple(_at(law, advise(gap_of_law(law)), batch, keep, turns) for law in laws))


def plan_records(
    paths: Paths,
    lengths: Sequence[float] = (),
    batch: float = BATCH,
    *,
    keep: float = KEEP,
    keep_going: bool = False,
    reader: str | None = None,
    engine: Engine = Workers(1),  # noqa: B008 - a frozen value
    state: str | PathLike[str] | None = None,
    resume: bool = False,
    on_progress: Report | None = None,
    rows: Rows = EVERY,
) -> Plan:
    """The same with KL, lengths and spread of records, and beside the model what each mode did to these very sequences.

    Args:
        paths: files, folders or globs with both sides' log-probs.
        lengths: tokens: plan for these, with the records' KL and spread; for the records' own lengths if not given.
        batch: sequences in a step, at least 1.
        keep: share of sequences that the length-aware band is to keep.
        keep_going: leave out rows and tokens that cannot be used, and count them; otherwise the first is an error.
        reader: name of the files' format; recognised by their content if not given.
        engine: what runs it: `Workers(8)` processes, `OnRay()`; this process alone if not given.
        state: file to keep what was merged in, written every few seconds and when interrupted, deleted at the end.
        resume: go on from `state`; from the beginning if there is no such file.
        on_progress: called after each part.
        rows: which rows are read.

    Raises:
        ValueError: a value out of its range, or of the records, with file, row and remedy; no token at all.
        FileNotFoundError: nothing is there.
    """
    _check(0.0, lengths or (1,), batch, keep, None)
    wanted = {mode.key: mode.estimator for mode in (*modes(turns=1), *defaults()) if not mode.estimator.normalise}
    known = look(paths, reader, rows=rows)
    scanned = scan(
        known,
        [family(wanted), diagnosing.question(known, most=MOST)],
        keep_going=keep_going,
        engine=engine,
        state=state,
        resume=resume,
        on_progress=on_progress,
    )
    m = measured(scanned)
    cause = diagnosing.answer(scanned).cause
    scanned.done()
    verdict = judge(m.token, m.sequence, cause=cause, positive=m.positive)
    wrong = wrong_of((m.token, m.sequence))
    variance = m.each.variance(m.kl)
    if lengths:
        laws = [MixedRatio.of_lengths(m.kl, [(t, 1.0)], m.each.spread()) for t in lengths]
        told = [advise(gap_of_law(law), wrong, cause) for law in laws]
        at = (_at(law, one, batch, keep, m.turns, None, variance) for law, one in zip(laws, told, strict=True))
        return Plan(batch, tuple(at), m, verdict)
    return Plan(batch, (_at(m.law(), verdict, batch, keep, m.turns, m, variance),), m, verdict)


def _at(
    law: MixedRatio,
    told: Verdict,
    batch: float,
    keep: float,
    turns: float | None,
    m: MeasuredRun | None = None,
    variance: float | None = None,
) -> AtLength:
    band = Band.keeping(keep, law.kl, law.length, variance)
    data: dict[str, Expected | None] = {}
    if m is not None:
        data = {name: tally.expected() for name, tally in m.tallies.items()}
        data["snis"] = m.tallies["seq_is"].expected(normalised=True)
    return AtLength(
        length=law.length,
        kl=law.kl,
        s2=law.s2,
        chi2=law.chi2,
        advice=told,
        modes=tuple(_row(mode, law, turns, data) for mode in modes(turns)),
        defaults=tuple(_row(mode, law, None, data) for mode in defaults()),
        band=LengthBand(band, keep, None if m is None else m.each.within(band), band.options()),
        caps=cappings(law, batch, None if m is None else m.each.log_ratio),
    )


def _row(mode: Mode, law: MixedRatio, turns: float | None, data: Mapping[str, Expected | None]) -> ModeRow:
    return ModeRow(mode, expect(mode.estimator, law, turns), _chi2(mode.estimator, law, turns), data.get(mode.key))


def _chi2(estimator: Estimator, law: MixedRatio, turns: float | None) -> float:
    """Take that of the coarsest ratio an estimator reads; 0 for bands on means, which look at no tail of a ratio."""
    levels = {f.level.name for f in estimator.factors}
    if levels & {"sequence", "prefix"}:
        return law.chi2
    if "turn" in levels and turns is not None:
        return law.mean(lambda p: p.ratio(p.length / turns).chi2)
    return law.mean(lambda p: p.ratio(1).chi2) if "token" in levels else 0.0


def _check(kl: float, lengths: Sequence[float], batch: float, keep: float, turns: float | None) -> None:
    if not 0 <= kl < math.inf:
        raise ValueError(
            f"plan: kl must be >= 0 and finite, nats a token, got {kl}\n"
            "hint: KL(mu||pi) by k3, as `reweigh audit` prints it; a mean of log pi - log mu is minus that."
        )
    if not lengths:
        raise ValueError("plan: at least one length is needed\nhint: --length 4096, or --from with records.")
    for length in lengths:
        if not 1 <= length < math.inf:
            raise ValueError(f"plan: length must be >= 1, tokens, got {length}\nhint: --length 4096")
    if not 1 <= batch < math.inf:
        raise ValueError(f"plan: batch must be >= 1, sequences in a step, got {batch}\nhint: --batch 1024")
    if not 0 < keep < 1:
        raise ValueError(
            f"plan: keep must be over 0 and under 1, got {keep}\nhint: --keep 0.95 keeps 95% of sequences."
        )
    if turns is not None and not 1 <= turns < math.inf:
        raise ValueError(f"plan: turns must be >= 1, turns of a response, got {turns}\nhint: --turns 8")
