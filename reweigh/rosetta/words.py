"""A composition in words: its formula, the code that makes it, and what a word means in each framework."""

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from reweigh.estimators import Estimator, Factor, Statistic
from reweigh.levels import (
    binary_kl,
    k1,
    k2,
    k3,
    log_ratio,
    prob_diff,
    prob_gap,
    reverse_binary_kl,
    signed_binary_kl,
    signed_gap_of_sequence,
)
from reweigh.rosetta.frameworks import PROFILES
from reweigh.rosetta.metrics import View
from reweigh.rosetta.parts import BandAboveZero, Within, fold_of_ratio, k3_reversed
from reweigh.rosetta.plan import Reading, Situation, Tensors, run
from reweigh.rosetta.profile import Profile, Word
from reweigh.transforms import AtMost, Clip, Identity, MeanAtMost, Outside, Reject, Screen, SigmoidGate, SoftKernel

_RATIOS = {
    "token": "r_t",
    "turn": "prod_turn r_t",
    "turn_geometric": "exp(mean_turn log r_t)",
    "sequence": "r",
    "geometric": "g",
    "worst": "max_t r_t",
    "prefix": "prod_{s <= t} r_s",
    "prefix_mean": "exp(mean_{s <= t} log r_s)",
    "prefix_least": "r_t min_{s < t} r_s",
}
_FOLDS = {
    "token": "",
    "prefix_root": "sum_{s <= t} / sqrt(t) ",
    "sequence": "sum_t ",
    "geometric": "mean_t ",
    "worst": "max_t ",
    "turn": "sum_turn ",
}
_STATISTICS: dict[Statistic, str] = {
    k1: "k1_t",
    k2: "k2_t",
    k3: "k3_t",
    k3_reversed: "(1/r_t - 1 + log r_t)",
    prob_diff: "(pi_t - mu_t)",
    prob_gap: "|pi_t - mu_t|",
    binary_kl: "binary_kl_t",
    reverse_binary_kl: "reverse_binary_kl_t",
    signed_binary_kl: "sign(log r_t) binary_kl_t",
    fold_of_ratio: "e^|log r_t|",
    signed_gap_of_sequence: "sign(log r_t) mean_t |r_t - 1|",
}
SYMBOLS = (
    "r_t = pi_t / mu_t, a token's ratio; r = prod_t r_t, the sequence's; g = exp(mean_t log r_t), its geometric mean; "
    "k1 = -log r_t, k2 = (log r_t)^2 / 2, k3 = r_t - 1 - log r_t; A the advantage; 1{...} is 1 or 0"
)


def formula(estimator: Estimator) -> str:
    """Write the composition as `w = ...`, one term a factor.

    Example:
        >>> from reweigh import SEQUENCE, Reject, weigh
        >>> formula(weigh(SEQUENCE, Reject(0.5, 2.0)))
        'w = r 1{0.5 <= r <= 2}'
    """
    terms = " * ".join(map(_term, estimator.factors)) or "1"
    over = {None: "", "batch": " / its mean over the batch", "prompt": " / its mean over the prompt"}
    return f"w = {terms}{over[estimator.normalise]}"


def code(estimator: Estimator) -> str:
    """Write the call that makes the composition.

    Example:
        >>> from reweigh import SEQUENCE, Reject, weigh
        >>> code(weigh(SEQUENCE, Reject(0.5, 2.0)))
        'weigh(SEQUENCE, Reject(0.5, 2))'
    """
    product = " * ".join(_call(f) for f in estimator.factors) or "naive()"
    by = "" if estimator.normalise == "batch" else ', by="prompt"'
    return f"self_normalised({product}{by})" if estimator.normalise else product


def _term(f: Factor) -> str:
    where = {0: "", 1: " where A > 0", -1: " where A < 0"}[f.sign]
    gates = (AtMost, MeanAtMost, Within, BandAboveZero)
    text = _gate(f) if f.of is not log_ratio or isinstance(f.transform, gates) else _weight(f)
    return f"({text}{where})" if where else text


def _weight(f: Factor) -> str:
    x, t = _RATIOS.get(f.level.name, f.level.name.replace("_", " ")), f.transform
    if isinstance(t, Identity) or (isinstance(t, Clip) and t == Clip()):
        return x
    if isinstance(t, Clip):
        inner = x if t.low == 0 else f"max({x}, {t.low:g})"
        return inner if math.isinf(t.high) else f"min({inner}, {t.high:g})"
    if isinstance(t, Reject):
        return f"{x} {_inside(x, t.low, t.high)}"
    if isinstance(t, Screen):
        return _inside(x, t.low, t.high)
    if isinstance(t, SoftKernel):
        return f"{x}^{t.a:g} e^({t.b:g} (1 - {x}))"
    if isinstance(t, SigmoidGate):
        return f"{x} sech^2({t.tau / 2:g} ({x} - 1))"
    if isinstance(t, Outside):
        return f"1{{{x} <= {t.low:g} or {x} >= {t.high:g}}}"
    return f"{t!r} of {x}"


def _inside(x: str, low: float, high: float) -> str:
    below, above = "" if low in (0, -math.inf) else f"{low:g} <= ", "" if math.isinf(high) else f" <= {high:g}"
    return f"1{{{below}{x}{above}}}" if below or above else "1"


def _gate(f: Factor) -> str:
    x = _FOLDS.get(f.level.name, f"{f.level.name} of ") + _STATISTICS.get(f.of, f.of.__name__)
    if isinstance(f.transform, MeanAtMost):
        return f"1{{the smallest {f.scale:g} {x}, as many as keep their mean <= {f.transform.bound:g}}}"
    if isinstance(f.transform, BandAboveZero):
        return f"1{{{x} <= 0 or {f.transform.low:g} <= it <= {f.transform.high:g}}}"
    if isinstance(f.transform, Within):
        return _inside(x, f.transform.low, f.transform.high)
    if not isinstance(f.transform, AtMost):
        return f"{f.transform!r} of {x}"
    bound = f.transform.bound
    if f.scale < 0:
        return f"1{{{x} >= {-bound / -f.scale:g}}}"
    return f"1{{{x} <= {bound / f.scale:g}}}"


def _call(f: Factor) -> str:
    level = f.level.name.upper() if f.level.name in _RATIOS else f"{f.level.name}"
    parts = [level] if f.transform == Identity() else [level, _transform(f)]
    parts += [f"of={f.of.__name__}"] if f.of is not log_ratio else []
    parts += [f"scale={f.scale:g}"] if f.scale != 1 else []
    call = f"weigh({', '.join(parts)})"
    return f"for_advantage({f.sign:+d}, {call})" if f.sign else call


def _transform(f: Factor) -> str:
    t = f.transform
    if isinstance(t, Clip) and t.low == 0:
        return "Identity()" if math.isinf(t.high) else f"Truncate({t.high:g})"
    if isinstance(t, (Clip, Reject, Screen, Within, BandAboveZero)):
        return f"{type(t).__name__}({t.low:g}, {'math.inf' if math.isinf(t.high) else f'{t.high:g}'})"
    if isinstance(t, (AtMost, MeanAtMost)):
        return f"{type(t).__name__}({t.bound:g})"
    return repr(t)


# Words.


# Three sequences of 4, 3 and 2 tokens. The last token of the second was sampled with less than a tenth of pi.
RATIOS = ((1.5, 1.2, 0.9, 1.1), (1.3, 0.8, 4.0), (0.5, 0.9))
"""Token ratios of the three sequences that a meaning is shown on."""
_MU = ((0.3, 0.5, 0.4, 0.6), (0.4, 0.5, 0.09), (0.5, 0.6))
ADVANTAGE = (1.0, 1.0, -1.0)


@dataclass(frozen=True)
class Meaning:
    """One framework's meaning of a word.

    Attributes:
        framework: its name.
        version: of the profile.
        word: as it writes it.
        says: what sets it apart.
        options: the options that it stands for; None if it is a metric, or only words.
        formula: `w = ...`, or "" for a metric.
        code: our composition, or "".
        weights: on the example, per token (rows of unequal length); None if it is no option.
        value: of the metric on the example; None if it is none, or has no equal of ours.
        notes: what the composition cannot say.
    """

    framework: str
    version: str
    word: str
    says: str
    options: Mapping[str, Any] | None = None
    formula: str = ""
    code: str = ""
    weights: tuple[tuple[float, ...], ...] | None = None
    value: float | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        return dict(self.__dict__)


def example() -> Tensors:
    """Make the batch that numbers are computed on."""
    width = max(map(len, RATIOS))
    mask = torch.tensor([[i < len(r) for i in range(width)] for r in RATIOS])
    ratio = torch.tensor([[*r, *[1.0] * (width - len(r))] for r in RATIOS])
    log_mu = torch.tensor([[*m, *[1.0] * (width - len(m))] for m in _MU]).log()
    log_pi = log_mu + ratio.log()
    return Tensors(log_pi, log_mu, mask, torch.tensor(ADVANTAGE), log_old=log_pi)


def all_words() -> dict[str, tuple[str, ...]]:
    """List each word with the frameworks that use it."""
    words = sorted({w.word for p in PROFILES for w in p.words})
    return {word: tuple(p.name for p in PROFILES if any(w.word == word for w in p.words)) for word in words}


def meanings(word: str) -> tuple[Meaning, ...]:
    """Find every framework's meaning of a word, or of an option's name.

    Raises:
        ValueError: if none uses it; the message names the nearest.
    """
    wanted = _plain(word)
    known_as = tuple(_meaning(p, w) for p in PROFILES for w in p.words if _plain(w.word) == wanted)
    known_as += tuple(
        Meaning(p.name, p.version, o.name, f"{o.says} (default {o.default!r})")
        for p in PROFILES
        for o in p.options
        if _plain(o.name) == wanted
    )
    if known_as:
        return known_as
    known = {_plain(w): w for w in [*(o.name for p in PROFILES for o in p.options), *all_words()]}
    near = [known[n] for n in difflib.get_close_matches(wanted, known, 4, 0.5)]
    like = f"did you mean {', '.join(near)}? " if near else ""
    raise ValueError(f"explain: no framework's word or option {word!r}\nhint: {like}`reweigh explain` lists the words")


def dictionary() -> dict[str, Any]:
    """Gather all that can be said of a word, as plain values: what `words.json` holds, so that `reweigh explain WORD`
    need not load what computes it, and `docs/rosetta.py` writes."""
    names = {_plain(name) for name in (*all_words(), *(o.name for p in PROFILES for o in p.options))}
    found = {
        "frameworks": [p.name for p in PROFILES],
        "words": all_words(),
        "ratios": RATIOS,
        "symbols": SYMBOLS,
        "meanings": {name: [m.to_dict() for m in meanings(name)] for name in sorted(names)},
    }
    return json.loads(json.dumps(found))


def weights_of(reading: Reading) -> tuple[tuple[float, ...], ...]:
    """Weigh the example as a reading does, per token."""
    tensors = example()
    per_token = run(reading.plan, tensors).per_token
    return tuple(tuple(round(float(x), 4) for x in row[: len(r)]) for row, r in zip(per_token, RATIOS, strict=True))


def _meaning(profile: Profile, word: Word) -> Meaning:
    value = _value(profile, word.metric) if word.metric else None
    meaning = Meaning(profile.name, profile.version, word.word, word.says, word.options, value=value)
    if word.options is None:
        return meaning
    reading = profile.read(word.options)
    product = reading.plan.estimator
    return replace(
        meaning, formula=formula(product), code=code(product), weights=weights_of(reading), notes=reading.notes
    )


def _value(profile: Profile, name: str) -> float | None:
    metric = next((m for m in profile.metrics if name in m.names), None)
    if metric is None or metric.equal is None:
        return None
    reading, tensors = Reading(profile.read({}).plan), example()
    view = View(Situation(profile.given({}), tensors, reading), reading.plan, run(reading.plan, tensors))
    return round(float(torch.as_tensor(metric.equal(view, name)).max()), 6)


def _plain(word: str) -> str:
    return word.lower().replace("-", "_").strip("_ ")
