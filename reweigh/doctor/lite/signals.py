"""Recognises a framework by the names in a history, and translates them into one vocabulary."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from reweigh.doctor.diagnosis import InputNote
from reweigh.doctor.lite.history import History, Series
from reweigh.doctor.lite.names import FRAMEWORKS, Known, Mean, Signal, known

_AGREE = 1e-3  # of k3 and of 1e-6 nats, what rounding in a log file may make of an exact identity


@dataclass(frozen=True, eq=False)
class Reading:
    """One signal: its series, and where it comes from.

    Attributes:
        name: the metric's own name, or a formula of such names.
        series: its values.
        over: what each value is a mean over.
        caveat: what keeps it from being quite what the signal says.
        usable: False if no test may use it.
    """

    name: str
    series: Series
    over: Mean
    caveat: str = ""
    usable: bool = True


@dataclass(frozen=True, eq=False)
class Signals:
    """A history in one vocabulary.

    Attributes:
        framework: whose names they are.
        readings: by signal.
        notes: what does not fit together.
    """

    framework: str
    readings: Mapping[Signal, Reading]
    notes: tuple[InputNote, ...] = ()

    def get(self, signal: Signal) -> Reading | None:
        """A signal that tests may use."""
        reading = self.readings.get(signal)
        return reading if reading is not None and reading.usable else None


def recognise(names: Collection[str]) -> str:
    """The framework that most names belong to.

    Raises:
        ValueError: none, or several equally.

    Example:
        >>> recognise(["rollout_corr/kl", "rollout_corr/k3_kl", "actor/grad_norm"])
        'verl'
    """
    score = {f: sum(any(k.matches(n) for n in names) for k in ks if k.mark) for f, ks in FRAMEWORKS.items()}
    best = [f for f in score if score[f] == max(score.values())]
    if score[best[0]] == 0:
        shown = ", ".join(sorted(names)[:8])
        raise ValueError(
            f"diagnose_metrics: no metric of a gap between sampler and trainer, got {shown}\n"
            "hint: log one of " + ", ".join(ks[0].name for ks in FRAMEWORKS.values()) + "."
        )
    if "reweigh" in best or len(best) == 1:
        return best[0]
    raise ValueError(f"diagnose_metrics: the names fit {' and '.join(best)} equally\nhint: say framework={best[0]!r}.")


def translate(history: History, framework: str | None = None) -> Signals:
    """A history in one vocabulary; k1, k3 and the mean ratio each from the other two where one is missing.

    Args:
        history: of one run.
        framework: whose names they are; None to recognise it.

    Raises:
        ValueError: no such framework, or none of its metrics is there.
    """
    if framework is not None and framework not in FRAMEWORKS:
        raise ValueError(f"diagnose_metrics: no framework {framework!r}\nhint: use one of {', '.join(FRAMEWORKS)}.")
    framework = framework or recognise(history.metrics)
    found: dict[Signal, Reading] = {}
    for entry in known(framework):
        for name in sorted(history.metrics, key=len):
            if entry.matches(name) and entry.signal not in found:
                found[entry.signal] = _reading(entry, name, history.metrics[name])
    if not any(found[s].usable for s in found if s not in _SIDE):
        raise ValueError(
            f"diagnose_metrics: {history.path} has no metric of the gap that {framework} logs\n"
            "hint: log one of " + ", ".join(k.name for k in FRAMEWORKS[framework] if k.usable) + "."
        )
    notes = [*history.notes, *_disagreement(found)]
    return Signals(framework, _completed(found), tuple(notes))


_SIDE: frozenset[Signal] = frozenset({"entropy", "lag", "grad_norm", "learning_rate", "weight_mean", "log_ppl_pi"})


def _reading(entry: Known, name: str, series: Series) -> Reading:
    return Reading(name, series.scaled(entry.factor), entry.over, entry.caveat, entry.usable)


def _sum(a: Reading, b: Reading, signs: tuple[int, int], plus: float, formula: str) -> Reading | None:
    """Of two readings step by step; None if they are means over different things or share no step."""
    x, y = a.series.with_(b.series)
    if a.over != b.over or not len(x):
        return None
    values = signs[0] * x.values + signs[1] * y.values + plus
    caveat = "; ".join(c for c in dict.fromkeys((a.caveat, b.caveat)) if c)
    return Reading(formula, Series(x.steps, values), a.over, caveat)


def _completed(found: dict[Signal, Reading]) -> dict[Signal, Reading]:
    """k3 - k1 = mean ratio - 1 gives the third of any two; a difference of log-perplexities gives k1."""
    out = dict(found)
    usable = {s: r for s, r in found.items() if r.usable}
    pi, mu = usable.get("log_ppl_pi"), usable.get("log_ppl_mu")
    if "k1" not in usable and pi and mu:
        made = _sum(pi, mu, (1, -1), 0.0, f"{pi.name} - {mu.name}")
        if made:
            out["k1"] = usable["k1"] = made
    k1, k3, ratio = usable.get("k1"), usable.get("k3"), usable.get("mean_ratio")
    if k1 and k3 and not ratio:
        made = _sum(k3, k1, (1, -1), 1.0, f"{k3.name} - {k1.name} + 1")
        if made:
            out["mean_ratio"] = made
    elif k1 and ratio and not k3:
        made = _sum(ratio, k1, (1, 1), -1.0, f"{ratio.name} - 1 + {k1.name}")
        if made:
            out["k3"] = made
    elif k3 and ratio and not k1:
        made = _sum(k3, ratio, (1, -1), 1.0, f"{k3.name} - {ratio.name} + 1")
        if made:
            out["k1"] = made
    return out


def _disagreement(found: dict[Signal, Reading]) -> list[InputNote]:
    """The identity is algebra: where all three are logged and it fails, they are of other masks or reductions."""
    k1, k3, ratio = found.get("k1"), found.get("k3"), found.get("mean_ratio")
    if not (k1 and k3 and ratio and ratio.usable):
        return []
    difference = _sum(k3, k1, (1, -1), 0.0, "")
    if difference is None:
        return []
    x, y = difference.series.with_(ratio.series)
    off = abs(x.values - (y.values - 1)) > _AGREE * (abs(x.values) + abs(y.values - 1)) + 1e-6
    if not off.any():
        return []
    found["mean_ratio"] = replace(ratio, usable=False)
    place = f"step {x.steps[off][0]:g}"
    rule = f"{k3.name} - {k1.name} is not {ratio.name} - 1"
    return [
        InputNote(rule, int(off.sum()), "steps", place, "they are of other tokens or means; the mean ratio is left out")
    ]
