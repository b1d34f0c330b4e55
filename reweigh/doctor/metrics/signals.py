"""Recognises a framework by the names in a history, and translates them into one vocabulary."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from reweigh.doctor.diagnosis import InputNote
from reweigh.doctor.metrics.history import Array, History, Series

Signal = Literal[
    "k1",
    "k2",
    "k3",
    "mean_ratio",
    "mean_abs",
    "max_abs",
    "mean_prob_diff",
    "max_prob_diff",
    "correlation",
    "mult_error",
    "chi2",
    "log_ppl_pi",
    "log_ppl_mu",
    "entropy",
    "weight_mean",
    "lag",
    "length",
    "epoch",
    "grad_norm",
    "learning_rate",
]
"""One vocabulary. With Delta = log pi - log mu on sampled tokens: k1 = -mean Delta, k2 = mean Delta^2 / 2, k3 =
mean(e^Delta - 1 - Delta), mean_ratio = mean e^Delta, mean_abs = mean |Delta|, prob_diff of |pi - mu|, correlation that
of pi with mu over tokens, mult_error = mean e^|Delta|, chi2 = mean e^(2 Delta) - 1; log_ppl = mean of -log pi or
-log mu; entropy of pi; weight_mean is of weights after bounds; length of responses in tokens."""

Mean = Literal["tokens", "sequences"]
_AFTER = "after bounds and masks: it says nothing of the raw ratio"
_PRODUCT = "of the product over a sequence: it says nothing of the mean over tokens"


@dataclass(frozen=True)
class Known:
    """A metric that a framework logs.

    Attributes:
        name: as logged; parts before it, joined by "/", may differ.
        signal: what it is here.
        over: what the mean is over.
        factor: to multiply by: -1 if the framework has the other sign.
        caveat: what keeps it from being quite that.
        usable: False if tests must not use it, because of the caveat.
        mark: True if the name belongs to this framework alone.
        logarithm: True if the signal is its logarithm, times the factor.
    """

    name: str
    signal: Signal
    over: Mean = "tokens"
    factor: float = 1.0
    caveat: str = ""
    usable: bool = True
    mark: bool = True
    logarithm: bool = False

    def matches(self, name: str) -> bool:
        """Tells whether a logged name is this one, also where a tracker has changed its separators.

        Example:
            >>> kl = Known("rollout_corr/kl", "k1")
            >>> [kl.matches(n) for n in ("actor/rollout_corr/kl", "rollout_corr / kl", "rollout_corr.kl", "kl")]
            [True, True, True, False]
        """
        name = _as_logged(name)
        if name == self.name:
            return True
        if name.endswith("/" + self.name):
            return not _ASIDE.match(name)
        mangled = self.name.replace("/", "_")
        return (
            "/" in self.name
            and re.fullmatch(rf"(?:data_|train_|actor_|policy_)*{re.escape(mangled)}", name) is not None
        )


_ASIDE = re.compile(r"^(?:eval|validation|test)(?:[_/])")
_REDUCED = re.compile(
    r"(?:[:@]|_at_)(?:mean|sum|max|min)$"
)  # SkyRL's ":mean", ROLL's "@sum", which MLflow spells "_at_sum"


def _as_logged(name: str) -> str:
    """Undoes what trackers and exports do to a name."""
    name = _REDUCED.sub("", name.strip().lower().replace(" / ", "/"))
    return name if "/" in name else name.replace(".", "/")


def _swift_and_verl(prefix: str) -> tuple[Known, ...]:
    """Lists what ms-swift took over from verl."""
    return (
        Known(f"{prefix}/kl", "k1"),
        Known(f"{prefix}/k3_kl", "k3"),
        Known(f"{prefix}/chi2_token", "chi2", caveat="the log ratio is clamped to +-20 first"),
        Known(f"{prefix}/training_log_ppl", "log_ppl_pi", "sequences"),
        Known(f"{prefix}/rollout_log_ppl", "log_ppl_mu", "sequences"),
    )


def _mis(prefix: str, over: Mean = "sequences") -> tuple[Known, ...]:
    """Lists what the helper of slime and miles logs; its page says mismatch_, its code mis_. verl 0.6 has them too."""
    return (
        Known(f"{prefix}_kl", "k1", over),
        Known(f"{prefix}_k3_kl", "k3", over),
        Known(f"{prefix}_chi2_token", "chi2", over, caveat="the log ratio is clamped to +-20 first"),
        Known(f"{prefix}_training_log_ppl", "log_ppl_pi", "sequences"),
        Known(f"{prefix}_rollout_log_ppl", "log_ppl_mu", "sequences"),
    )


def _roll(kind: str) -> str:
    return f"actor/train_infer_{kind}_mean"


_COMMON = (
    *(Known(n, "grad_norm", mark=False) for n in ("grad_norm", "actor_grad_norm", "raw_grad_norm")),
    *(Known(n, "learning_rate", mark=False) for n in ("lr", "learning_rate", "actor_lr", "policy_lr", "lr-pg_0")),
    *(
        Known(n, "length", mark=False)
        for n in (
            "response_length/mean",
            "response_length_mean",
            "response_length",
            "response_len/mean",
            "response_lengths",
            "completions/mean_length",
            "completion_length",
            "mean_gen_tokens_per_sample",
            "sequence_lengths",
            "avg_num_tokens",
            "num_output_tokens/mean",
            "num_total_tokens/mean",
            "seq_len/mean",
        )
    ),
    *(Known(n, "epoch", mark=False) for n in ("epoch", "training/epoch", "progress/epoch")),
    *(Known(n, "lag", mark=False) for n in ("staleness_mean", "staleness/mean", "lag/mean", "off_policy/mean")),
)
"""What several frameworks log under one name."""

FRAMEWORKS: Mapping[str, tuple[Known, ...]] = {
    "reweigh": (
        Known("token/kl_k1", "k1"),
        Known("token/kl_k3", "k3"),
        Known("token/mean_ratio", "mean_ratio"),
        Known("token/mean_abs", "mean_abs"),
        Known("weight/mean", "weight_mean", caveat=_AFTER, usable=False),
    ),
    "verl": (
        *_swift_and_verl("rollout_corr"),
        *_mis("mismatch/mismatch", "tokens"),  # verl 0.6
        Known("rollout_corr/rollout_is_mean", "weight_mean", caveat=_AFTER, usable=False),
        Known("mismatch/rollout_is_mean", "weight_mean", caveat=_AFTER, usable=False),
        Known("training/rollout_probs_diff_mean", "mean_prob_diff"),
        Known("training/rollout_probs_diff_max", "max_prob_diff"),
        Known("training/rollout_actor_probs_pearson_corr", "correlation"),
        Known("training/rollout_probs_pearson_corr", "correlation"),
        Known("actor/entropy", "entropy", mark=False, caveat="mean over tokens by default; log_ppl over sequences"),
        Known(
            "actor/entropy_loss", "entropy", mark=False, caveat="mean over tokens by default; log_ppl over sequences"
        ),
    ),
    "ms-swift": (
        *_swift_and_verl("rollout_correction"),
        Known("rollout_correction/is_weight_mean", "weight_mean", caveat=_AFTER, usable=False),
    ),
    "slime": (
        *_mis("mis"),
        *_mis("mismatch"),
        Known("rollout/log_probs", "log_ppl_pi", "sequences", -1.0),
        Known("rollout/rollout_log_probs", "log_ppl_mu", "sequences", -1.0),
        Known("train_rollout_logprob_abs_diff", "mean_abs", "sequences"),
        Known("train_rollout_kl", "k3", "sequences", caveat="of miles; the log ratio is clamped to +-10 first"),
        Known("tis", "mean_ratio", "sequences", caveat="the raw ratio of the built-in correction"),
        Known("is_ratio_mean_after_tis_rs", "weight_mean", "sequences", caveat=_AFTER, usable=False),
        Known("entropy_loss", "entropy", "sequences", mark=False, caveat="of the full distribution, also under top-p"),
    ),
    "nemo-rl": (
        Known("gen_kl_error", "k3"),
        Known("token_mult_prob_error", "mult_error"),
        Known("sampling_importance_ratio", "mean_ratio", caveat="after bounds if the correction is on"),
        Known("avg_trajectory_age", "lag", mark=False),
    ),
    "prime-rl": (
        Known("mismatch_kl/all/mean", "k3"),
        Known("mismatch_kl/mean", "k3"),
        Known("entropy/all/mean", "entropy", mark=False),
        Known("off_policy/mean", "lag", mark=False),
    ),
    "trl": (
        Known("sampling/sampling_logp_difference/mean", "mean_abs", caveat="mean over ranks of their means"),
        Known("sampling/sampling_logp_difference/max", "max_abs"),
        Known("sampling/importance_sampling_ratio/mean", "weight_mean", caveat=_AFTER, usable=False),
        Known("sample/staleness_mean", "lag", mark=False),
        Known("entropy", "entropy", mark=False),
    ),
    "skyrl": (
        Known("policy/rollout_train_logprobs_abs_diff_mean", "mean_abs"),
        Known("policy/minibatch_rollout_logprobs_abs_diff_mean", "mean_abs"),
        Known("policy/rollout_train_logprobs_abs_diff_max", "max_abs"),
        Known("is_ratio_mean", "mean_ratio", caveat="mean over micro-batches; the log ratio is clamped to +-20 first"),
        Known("policy/policy_entropy", "entropy", mark=False),
        Known("async/staleness_mean", "lag", mark=False),
    ),
    "openrlhf": (
        Known("vllm_kl", "k1"),
        Known("is_filter_ratio", "weight_mean", caveat="a share of what is dropped", usable=False),
    ),
    "tinker": (
        Known("optim/kl_sample_train_v1", "k1"),
        Known("optim/kl_sample_train_v2", "k2"),
        Known(
            "optim/entropy",
            "entropy",
            mark=False,
            caveat="mean of -log mu over samples, not of a distribution",
            usable=False,
        ),
    ),
    "open-instruct": (
        Known("debug/vllm_vs_local_logprob_diff_mean", "mean_abs"),
        Known("debug/vllm_vs_local_logprob_diff_max", "max_abs"),
        Known("val/rho_weight", "weight_mean", caveat=_AFTER, usable=False),
        Known("policy/entropy_avg", "entropy", mark=False),
    ),
    "areal": (
        Known("behave_approx_kl/avg", "k1", factor=-1.0, caveat="over the tokens that are not dropped only"),
        Known("behave_imp_weight/avg", "weight_mean", caveat=_AFTER, usable=False),
        Known("sample_staleness_theta_avg", "lag", mark=False),
        Known("sample_staleness_proximal_avg", "lag", mark=False),
    ),
    "roll": (
        Known(_roll("ratio_token"), "mean_ratio", "sequences"),
        Known(_roll("ratio_geometric"), "k1", "sequences", -1.0, "of the mean of geometric means", logarithm=True),
        Known(_roll("ratio_sequence"), "weight_mean", "sequences", caveat=_PRODUCT, usable=False),
    ),
}
"""Metrics by framework. reweigh's own names come first: its numbers are raw."""


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
        rounded: it was printed with four decimals.
    """

    name: str
    series: Series
    over: Mean = "tokens"
    caveat: str = ""
    usable: bool = True
    rounded: bool = False


@dataclass(frozen=True, eq=False)
class Signals:
    """A history in one vocabulary.

    Attributes:
        framework: whose names they are.
        readings: by signal.
        notes: what does not fit together.
        last: the last step at which the run logged anything.
        resumed: steps from which the run went on from a checkpoint.
    """

    framework: str
    readings: Mapping[Signal, Reading]
    notes: tuple[InputNote, ...] = ()
    last: float = 0.0
    resumed: frozenset[float] = frozenset()

    def get(self, signal: Signal) -> Reading | None:
        """Returns a signal that tests may use."""
        reading = self.readings.get(signal)
        return reading if reading is not None and reading.usable and len(reading.series) else None

    def between(self, first: float, end: float) -> "Signals":
        """Keeps the steps from `first` on and before `end`."""
        kept = {
            signal: replace(r, series=r.series.at((r.series.steps >= first) & (r.series.steps < end)))
            for signal, r in self.readings.items()
        }
        return replace(self, readings=kept)


def recognise(names: Collection[str]) -> str:
    """Finds the framework that most names belong to; a name belongs to whose metric it spells out most.

    Raises:
        ValueError: none, or several equally.

    Example:
        >>> recognise(["rollout_corr/kl", "rollout_corr/k3_kl", "actor/grad_norm"])
        'verl'
    """
    score = dict.fromkeys(FRAMEWORKS, 0)
    for name in names:
        longest = {
            f: max((len(k.name) for k in ks if k.mark and k.matches(name)), default=0) for f, ks in FRAMEWORKS.items()
        }
        for framework, length in longest.items():
            score[framework] += length > 0 and length == max(longest.values())
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
    """Translates a history into one vocabulary; makes k1, k3 or the mean ratio out of the other two.

    Args:
        history: of one run.
        framework: whose names they are; None to recognise it.

    Raises:
        ValueError: no such framework, or none of its metrics is there.
    """
    if framework is not None and framework not in FRAMEWORKS:
        raise ValueError(f"diagnose_metrics: no framework {framework!r}\nhint: use one of {', '.join(FRAMEWORKS)}.")
    framework = framework or recognise(history.metrics)
    readings: dict[Signal, Reading] = {}
    for entry in (*FRAMEWORKS[framework], *_COMMON):
        for name in sorted(history.metrics, key=len):
            if entry.matches(name) and entry.signal not in readings:
                series = _translated(history.metrics[name], entry)
                rounded = name in history.rounded
                readings[entry.signal] = Reading(name, series, entry.over, entry.caveat, entry.usable, rounded)
    if not any(readings[s].usable for s in readings if s not in _SIDE):
        raise ValueError(
            f"diagnose_metrics: {history.path} has no metric of the gap that {framework} logs\n"
            "hint: log one of " + ", ".join(k.name for k in FRAMEWORKS[framework] if k.usable) + "."
        )
    notes = [*history.notes, *_unmeasured(readings, history), *_contradictions(readings), *_disagreement(readings)]
    return Signals(framework, _completed(readings), tuple(notes), history.last, history.resumed)


def _translated(series: Series, entry: Known) -> Series:
    if entry.logarithm:
        series = series.at(series.values > 0)
        series = Series(series.steps, np.log(series.values))
    return series.scaled(entry.factor)


_SIDE: frozenset[Signal] = frozenset(
    {"entropy", "lag", "length", "epoch", "grad_norm", "learning_rate", "weight_mean", "log_ppl_pi", "log_ppl_mu"}
)
_NOTHING: Mapping[Signal, float] = {
    "k1": 0.0,
    "k2": 0.0,
    "k3": 0.0,
    "mean_abs": 0.0,
    "max_abs": 0.0,
    "mean_prob_diff": 0.0,
    "max_prob_diff": 0.0,
    "chi2": 0.0,
    "correlation": 0.0,
    "mult_error": 1.0,
    "mean_ratio": 1.0,
}
"""What loggers write if they have nothing to take a mean of."""
_WITNESS = re.compile(
    r"(?:^|/)(?:loss|policy_loss|pg_loss|grad_norm|actor_grad_norm|entropy|entropy_loss|policy_entropy)(?:/all)?(?:/mean)?$"
)
_VALID = "rollout_probs_diff_valid"  # of verl: 0 if no token counted, beside differences of 0 and a correlation of 0


_BLANK = "without the steps at which nothing was measured"


def _unmeasured(readings: dict[Signal, Reading], history: History) -> list[InputNote]:
    """Takes out values that stand for nothing: an exact 0 at a step at which nothing shows that a token counted.

    TRL 1.16 logs a difference of 0, a ratio of 1 and a loss of 0 when no token counts; so do others. A gap of exactly
    0 is real where two engines agree to the bit: then the loss, the gradient or the entropy is not 0.
    """
    k3 = readings.get("k3")
    if k3 is not None and k3.name.endswith("token/kl_k3"):  # reweigh's own numbers: without a token it logs none
        return []
    seen = {
        float(step)
        for name, metric in history.metrics.items()
        if _WITNESS.search(_as_logged(name))
        for step in metric.steps[metric.values != 0]
    }
    invalid: set[float] = set()
    for name, series in history.metrics.items():
        if name.endswith(_VALID):
            invalid |= set(series.steps[series.values == 0].tolist())
    names: dict[tuple[int, str, bool], list[str]] = {}
    for signal, nothing in _NOTHING.items():
        reading = readings.get(signal)
        if reading is None or reading.rounded or not reading.usable:
            continue
        steps, values = reading.series.steps, reading.series.values
        blank = (values == nothing) & ~np.isin(steps, list(seen))
        if signal == "correlation":
            blank |= values == nothing
        if "prob" in signal or signal == "correlation":
            blank |= np.isin(steps, list(invalid))
        if blank.any():
            count, some = int(blank.sum()), not blank.all()
            caveat = f"{reading.caveat}; {_BLANK}" if reading.caveat else _BLANK
            readings[signal] = replace(reading, series=reading.series.at(~blank), usable=some, caveat=caveat)
            names.setdefault((count, f"step {steps[blank][0]:g}", some), []).append(reading.name)
    hint = "no measurement: left out"
    return [
        InputNote(
            f"{', '.join(of)} exactly as where nothing is measured, and nothing shows that a token counted",
            count,
            "steps",
            place,
            hint if some else f"{hint}; log the loss or the entropy beside it",
        )
        for (count, place, some), of in names.items()
    ]


def _below(x: Array, bound: Array, room: float) -> NDArray[np.bool_]:
    return x > bound * (1 + room) + 1e-5


@dataclass(frozen=True)
class _Law:
    """What holds of two means over the same tokens, whatever the two log-probs.

    Attributes:
        text: how it reads.
        signals: the two.
        broken: tells where it does not hold; the last argument is how much relative room there is.
    """

    text: str
    signals: tuple[Signal, Signal]
    broken: Callable[[Array, Array, float], NDArray[np.bool_]]

    def contradicts(self, a: Array, b: Array, room: float) -> NDArray[np.bool_]:
        """Tell where it does not hold; numbers that no mean of log-probs has overflow to what no mean has."""
        with np.errstate(over="ignore", invalid="ignore"):
            return self.broken(a, b, room)


def _log(x: Array) -> Array:
    return np.log(np.maximum(x, 1e-300))


def _least_k3(shift: Array) -> Array:
    """Give the least k3 that log ratios of this mean have: e^-x - 1 + x."""
    return np.expm1(np.clip(-shift, -700.0, 700.0)) + shift


_LAWS = (
    _Law("k3 >= ratio - 1 - log ratio", ("k3", "mean_ratio"), lambda a, b, r: _below(b - 1 - _log(b), a, r)),
    _Law("k1 >= -log ratio", ("k1", "mean_ratio"), lambda a, b, r: _below(-_log(b), np.abs(a), r + 0.05)),
    _Law("mean |log ratio| >= |k1|", ("mean_abs", "k1"), lambda a, b, r: _below(np.abs(b), a, r)),
    _Law("mean |log ratio| >= -log ratio", ("mean_abs", "mean_ratio"), lambda a, b, r: _below(-_log(b), a, r + 0.05)),
    _Law(
        "log mean e^|log ratio| >= |log ratio|",
        ("mult_error", "mean_ratio"),
        lambda a, b, r: _below(np.abs(_log(b)), _log(a), r),
    ),
    _Law("mean e^|log ratio| - 1 >= k3", ("mult_error", "k3"), lambda a, b, r: _below(b, a - 1, r)),
    _Law(
        "log mean e^|log ratio| >= mean |log ratio|", ("mult_error", "mean_abs"), lambda a, b, r: _below(b, _log(a), r)
    ),
    _Law("mean |log ratio| >= mean |pi - mu|", ("mean_abs", "mean_prob_diff"), lambda a, b, r: _below(b, a, r)),
    _Law(
        "k3 <= e^M - 1 - M for M = max |log ratio|",
        ("max_abs", "k3"),
        lambda a, b, r: _below(b, np.expm1(np.minimum(a, 700.0)) - a, r),
    ),
    _Law("log ratio <= max |log ratio|", ("max_abs", "mean_ratio"), lambda a, b, r: _below(_log(b), a, r)),
    _Law(
        "k3 >= e^-k1 - 1 + k1",
        ("k3", "k1"),
        lambda a, b, r: _below(_least_k3(b), a, r),
    ),
    _Law("max |log ratio| >= mean |log ratio|", ("max_abs", "mean_abs"), lambda a, b, r: _below(b, a, r)),
    _Law(
        "k3 >= e^-m - 1 + m for m = mean |log ratio|",
        ("k3", "mean_abs"),
        lambda a, b, r: _below(_least_k3(b), a, r),
    ),
    _Law(
        "k3 >= e^-d - 1 + d for d = mean |pi - mu|",
        ("k3", "mean_prob_diff"),
        lambda a, b, r: _below(_least_k3(b), a, r),
    ),
    _Law("chi2 + 1 >= ratio^2", ("chi2", "mean_ratio"), lambda a, b, r: _below(b * b, a + 1, r)),
)
"""Inequalities by Jensen: exact for sample means over the same tokens."""
_ROOM = {True: 0.1, False: 2.0}  # relative, where both are means over tokens or both over sequences, and where not
_LESS_TRUSTED: tuple[Signal, ...] = (
    *("mean_ratio", "chi2", "max_abs", "k1", "mean_prob_diff", "mult_error", "mean_abs", "k3"),
)
"""Which of two that contradict each other is left out first: a mean ratio is often of a product over sequences, or of
weights after bounds."""


def _contradictions(readings: dict[Signal, Reading]) -> list[InputNote]:
    """Finds signals that cannot be of the same log-probs, and takes those out that fit the others least."""
    found: dict[tuple[Signal, Signal], tuple[_Law, int, float]] = {}
    for law in _LAWS:
        a, b = (readings.get(s) for s in law.signals)
        if a is None or b is None or not a.usable or not b.usable or a.rounded or b.rounded:
            continue
        x, y = a.series.with_(b.series)
        if not len(x):
            continue
        broken = law.contradicts(x.values, y.values, _ROOM[a.over == b.over])
        if broken.sum() > len(x) / 2:
            found[law.signals] = (law, int(broken.sum()), float(x.steps[broken][0]))
    notes: list[InputNote] = []
    while found:
        often: dict[Signal, int] = {s: sum(s in pair for pair in found) for pair in found for s in pair}
        worst: Signal = max(often, key=lambda s: (often[s], -_LESS_TRUSTED.index(s)))
        pair, (law, count, step) = next((p, v) for p, v in found.items() if worst in p)
        other = pair[0] if pair[1] == worst else pair[1]
        gone: tuple[Signal, ...] = (worst,) if often[worst] > 1 or worst == "mean_ratio" else pair
        rule = (
            f"{readings[worst].name} cannot be of the same quantity as {readings[other].name}: {law.text} does not hold"
        )
        left = "it is" if len(gone) == 1 else "both are"
        hint = (
            f"{left} left out: a sum over a sequence, weights after bounds, or other tokens; no cause follows from it"
        )
        notes.append(InputNote(rule, count, "steps", f"step {step:g}", hint))
        for signal in gone:
            readings[signal] = replace(readings[signal], usable=False, caveat="it contradicts the other signals")
        found = {p: v for p, v in found.items() if not set(p) & set(gone)}
    return notes


def _sum(a: Reading, b: Reading, signs: tuple[int, int], plus: float, formula: str) -> Reading | None:
    """Adds two readings step by step; None if they are means over different things or share no step."""
    x, y = a.series.with_(b.series)
    if a.over != b.over or not len(x):
        return None
    values = signs[0] * x.values + signs[1] * y.values + plus
    caveat = "; ".join(c for c in dict.fromkeys((a.caveat, b.caveat)) if c)
    return Reading(formula, Series(x.steps, values), a.over, caveat, rounded=a.rounded or b.rounded)


def _completed(readings: dict[Signal, Reading]) -> dict[Signal, Reading]:
    """Fills in the third of k1, k3 and the mean ratio from any two; a difference of log-perplexities gives k1."""
    out = dict(readings)
    usable = {s: r for s, r in readings.items() if r.usable}
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


def _disagreement(readings: dict[Signal, Reading]) -> list[InputNote]:
    """Notes where k3 - k1 = mean ratio - 1 fails: it is algebra, so they are of other masks or reductions."""
    k1, k3, ratio = readings.get("k1"), readings.get("k3"), readings.get("mean_ratio")
    if not (k1 and k3 and ratio and k1.usable and k3.usable and ratio.usable):
        return []
    difference = _sum(k3, k1, (1, -1), 0.0, "")
    if difference is None:
        return []
    x, y = difference.series.with_(ratio.series)
    off = abs(x.values - (y.values - 1)) > _AGREE * (abs(x.values) + abs(y.values - 1)) + 1e-6
    if not off.any():
        return []
    readings["mean_ratio"] = replace(ratio, usable=False, caveat="it is of other tokens or means than k1 and k3")
    place = f"step {x.steps[off][0]:g}"
    rule = f"{k3.name} - {k1.name} is not {ratio.name} - 1"
    return [
        InputNote(rule, int(off.sum()), "steps", place, "they are of other tokens or means; the mean ratio is left out")
    ]
