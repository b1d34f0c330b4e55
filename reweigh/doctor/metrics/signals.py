"""Recognises a framework by the names in a history, and translates them into one vocabulary."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from reweigh.doctor.diagnosis import InputNote
from reweigh.doctor.metrics.read import History, Series

Signal = Literal[
    "k1",
    "k3",
    "mean_ratio",
    "mean_abs",
    "max_abs",
    "mean_prob_diff",
    "max_prob_diff",
    "mult_error",
    "chi2",
    "log_ppl_pi",
    "log_ppl_mu",
    "entropy",
    "weight_mean",
    "lag",
    "grad_norm",
    "learning_rate",
]
"""One vocabulary. With Delta = log pi - log mu on sampled tokens: k1 = -mean Delta, k3 = mean(e^Delta - 1 - Delta),
mean_ratio = mean e^Delta, mean_abs = mean |Delta|, prob_diff of |pi - mu|, mult_error = mean e^|Delta|, chi2 = mean
e^(2 Delta) - 1; log_ppl = mean of -log pi or -log mu; entropy of pi; weight_mean is of weights after bounds."""

Mean = Literal["tokens", "sequences"]
_AFTER = "after bounds and masks: it says nothing of the raw ratio"


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
    """

    name: str
    signal: Signal
    over: Mean = "tokens"
    factor: float = 1.0
    caveat: str = ""
    usable: bool = True
    mark: bool = True

    def matches(self, name: str) -> bool:
        """Tells whether a logged name is this one."""
        return name == self.name or name.endswith("/" + self.name)


def _swift_and_verl(prefix: str) -> tuple[Known, ...]:
    """Lists what ms-swift took over from verl."""
    return (
        Known(f"{prefix}/kl", "k1"),
        Known(f"{prefix}/k3_kl", "k3"),
        Known(f"{prefix}/chi2_token", "chi2", caveat="the log ratio is clamped to +-20 first"),
        Known(f"{prefix}/training_log_ppl", "log_ppl_pi", "sequences"),
        Known(f"{prefix}/rollout_log_ppl", "log_ppl_mu", "sequences"),
    )


def _mis(prefix: str) -> tuple[Known, ...]:
    """Lists what the helper of slime and miles logs; its page says mismatch_, its code mis_."""
    return (
        Known(f"{prefix}_kl", "k1", "sequences"),
        Known(f"{prefix}_k3_kl", "k3", "sequences"),
        Known(f"{prefix}_chi2_token", "chi2", "sequences", caveat="the log ratio is clamped to +-20 first"),
        Known(f"{prefix}_training_log_ppl", "log_ppl_pi", "sequences"),
        Known(f"{prefix}_rollout_log_ppl", "log_ppl_mu", "sequences"),
    )


_COMMON = (
    Known("grad_norm", "grad_norm", mark=False),
    Known("lr", "learning_rate", mark=False),
    Known("learning_rate", "learning_rate", mark=False),
)

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
        Known("rollout_corr/rollout_is_mean", "weight_mean", caveat=_AFTER, usable=False),
        Known("training/rollout_probs_diff_mean", "mean_prob_diff"),
        Known("training/rollout_probs_diff_max", "max_prob_diff"),
        Known("actor/entropy", "entropy", mark=False, caveat="mean over tokens by default; log_ppl over sequences"),
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
    ),
    "areal": (
        Known(
            "behave_approx_kl/avg", "k1", factor=-1.0, caveat="over the tokens that are not dropped only", usable=False
        ),
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
        """Returns a signal that tests may use."""
        reading = self.readings.get(signal)
        return reading if reading is not None and reading.usable else None


def recognise(names: Collection[str]) -> str:
    """Finds the framework that most names belong to.

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
                series = history.metrics[name].scaled(entry.factor)
                readings[entry.signal] = Reading(name, series, entry.over, entry.caveat, entry.usable)
    if not any(readings[s].usable for s in readings if s not in _SIDE):
        raise ValueError(
            f"diagnose_metrics: {history.path} has no metric of the gap that {framework} logs\n"
            "hint: log one of " + ", ".join(k.name for k in FRAMEWORKS[framework] if k.usable) + "."
        )
    notes = [*history.notes, *_disagreement(readings)]
    return Signals(framework, _completed(readings), tuple(notes))


_SIDE: frozenset[Signal] = frozenset({"entropy", "lag", "grad_norm", "learning_rate", "weight_mean", "log_ppl_pi"})


def _sum(a: Reading, b: Reading, signs: tuple[int, int], plus: float, formula: str) -> Reading | None:
    """Adds two readings step by step; None if they are means over different things or share no step."""
    x, y = a.series.with_(b.series)
    if a.over != b.over or not len(x):
        return None
    values = signs[0] * x.values + signs[1] * y.values + plus
    caveat = "; ".join(c for c in dict.fromkeys((a.caveat, b.caveat)) if c)
    return Reading(formula, Series(x.steps, values), a.over, caveat)


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
    if not (k1 and k3 and ratio and ratio.usable):
        return []
    difference = _sum(k3, k1, (1, -1), 0.0, "")
    if difference is None:
        return []
    x, y = difference.series.with_(ratio.series)
    off = abs(x.values - (y.values - 1)) > _AGREE * (abs(x.values) + abs(y.values - 1)) + 1e-6
    if not off.any():
        return []
    readings["mean_ratio"] = replace(ratio, usable=False)
    place = f"step {x.steps[off][0]:g}"
    rule = f"{k3.name} - {k1.name} is not {ratio.name} - 1"
    return [
        InputNote(rule, int(off.sum()), "steps", place, "they are of other tokens or means; the mean ratio is left out")
    ]
