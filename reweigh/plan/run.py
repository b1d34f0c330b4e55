"""Plan from a KL and lengths, or from records: the model, each mode, each default, the band and the caps."""

import math
from collections.abc import Mapping, Sequence
from os import PathLike

from reweigh.estimators import Estimator
from reweigh.plan.advice import advise
from reweigh.plan.measured import Measured, family, measured
from reweigh.plan.model import Band, Expected, MixedRatio, cappings, expect
from reweigh.plan.modes import Mode, defaults, modes
from reweigh.plan.result import AtLength, LengthBand, Plan, Row
from reweigh.records.files import Paths
from reweigh.scan import Engine, Report, Workers, scan
from reweigh.stats.verdict import judge

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
        >>> print(f"{found.row('seq_tis(2)').expected.retained:.2f}", found.advice.mode)
        0.21 token

    Source: `LogNormalRatio`.
    """
    _check(kl, lengths, batch, keep, turns)
    laws = [MixedRatio.of_lengths(kl, [(length, 1.0)]) for length in lengths]
    return Plan(batch, tuple(_at(law, batch, keep, turns) for law in laws))


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

    Raises:
        ValueError: a value out of its range, or of the records, with file, row and remedy; no token at all.
        FileNotFoundError: nothing is there.
    """
    _check(0.0, lengths or (1,), batch, keep, None)
    wanted = {_key(mode): mode.estimator for mode in (*modes(turns=1), *defaults()) if not mode.estimator.normalise}
    found = scan(
        paths,
        [family(wanted)],
        keep_going=keep_going,
        reader=reader,
        engine=engine,
        state=state,
        resume=resume,
        on_progress=on_progress,
    )
    m = measured(found)
    found.done()
    verdict = judge(m.token, m.sequence)
    variance = m.each.variance(m.kl)
    fault = "" if m.token.identity else verdict.reason
    refusal = m.sequence.refusal
    if lengths:
        laws = [MixedRatio.of_lengths(m.kl, [(t, 1.0)], m.each.spread()) for t in lengths]
        return Plan(
            batch, tuple(_at(law, batch, keep, m.turns, None, variance, fault, refusal) for law in laws), m, verdict
        )
    return Plan(batch, (_at(m.law(), batch, keep, m.turns, m, variance, fault, refusal),), m, verdict)


def _at(
    law: MixedRatio,
    batch: float,
    keep: float,
    turns: float | None,
    m: Measured | None = None,
    variance: float | None = None,
    fault: str = "",
    refusal: str = "",
) -> AtLength:
    band = Band.keeping(keep, law.kl, law.length, variance)
    data = _on_data(m)
    return AtLength(
        length=law.length,
        kl=law.kl,
        s2=law.s2,
        chi2=law.chi2,
        advice=advise(law, batch, band, fault, refusal),
        modes=tuple(_row(mode, law, turns, data) for mode in modes(turns)),
        defaults=tuple(_row(mode, law, None, data) for mode in defaults()),
        band=LengthBand(band, keep, None if m is None else m.each.within(band), band.options()),
        caps=cappings(law, batch, None if m is None else m.each.log_ratio),
    )


def _row(mode: Mode, law: MixedRatio, turns: float | None, data: Mapping[str, Expected | None]) -> Row:
    return Row(mode, expect(mode.estimator, law, turns), _chi2(mode.estimator, law, turns), data.get(_key(mode)))


def _on_data(m: Measured | None) -> dict[str, Expected | None]:
    if m is None:
        return {}
    found = {name: tally.expected() for name, tally in m.tallies.items()}
    return found | {"snis": m.tallies["seq_is"].expected(normalised=True)}


def _chi2(estimator: Estimator, law: MixedRatio, turns: float | None) -> float:
    """Of the coarsest ratio that an estimator reads; 0 for bands on means, which look at no tail of a ratio."""
    levels = {f.level.name for f in estimator.factors}
    if levels & {"sequence", "prefix"}:
        return law.chi2
    if "turn" in levels and turns is not None:
        return law.mean(lambda p: p.ratio(p.length / turns).chi2)
    return law.mean(lambda p: p.ratio(1).chi2) if "token" in levels else 0.0


def _key(mode: Mode) -> str:
    return f"{mode.framework} {mode.name}".strip()


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
