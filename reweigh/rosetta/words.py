"""What a word means in each framework: the formula, numbers on one small batch, and our composition."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from reweigh.rosetta.catalogue import PROFILES
from reweigh.rosetta.formula import code, formula
from reweigh.rosetta.plan import Tensors, run
from reweigh.rosetta.profile import Metric, Profile, Reading, Situation, View, Word

# Three sequences of 4, 3 and 2 tokens. The last token of the second was sampled with less than a tenth of pi.
RATIOS = ((1.5, 1.2, 0.9, 1.1), (1.3, 0.8, 4.0), (0.5, 0.9))
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
    options: Mapping[str, Any] | None
    formula: str
    code: str
    weights: tuple[tuple[float, ...], ...] | None
    value: float | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return dict(self.__dict__)


def example() -> Tensors:
    """The batch that numbers are computed on."""
    width = max(map(len, RATIOS))
    mask = torch.tensor([[i < len(r) for i in range(width)] for r in RATIOS])
    ratio = torch.tensor([[*r, *[1.0] * (width - len(r))] for r in RATIOS])
    log_mu = torch.tensor([[*m, *[1.0] * (width - len(m))] for m in _MU]).log()
    log_pi = log_mu + ratio.log()
    return Tensors(log_pi, log_mu, mask, torch.tensor(ADVANTAGE), log_old=log_pi)


def all_words() -> dict[str, tuple[str, ...]]:
    """Each word, and the frameworks that use it."""
    words = sorted({w.word for p in PROFILES for w in p.words})
    return {word: tuple(p.name for p in PROFILES if any(w.word == word for w in p.words)) for word in words}


def meanings(word: str) -> tuple[Meaning, ...]:
    """Every framework's meaning of a word, or of an option's name.

    Raises:
        ValueError: if none uses it; the message names the nearest.
    """
    wanted = _plain(word)
    found = tuple(_meaning(p, w) for p in PROFILES for w in p.words if _plain(w.word) == wanted)
    found += tuple(
        _of_option(p, o.name, o.says, o.default) for p in PROFILES for o in p.options if _plain(o.name) == wanted
    )
    if found:
        return found
    known = {_plain(w): w for w in [*(o.name for p in PROFILES for o in p.options), *all_words()]}
    near = [known[n] for n in difflib.get_close_matches(wanted, known, 4, 0.5)]
    like = f"did you mean {', '.join(near)}? " if near else ""
    raise ValueError(f"explain: no framework's word or option {word!r}\nhint: {like}`reweigh explain` lists the words")


def weights_of(reading: Reading) -> tuple[tuple[float, ...], ...]:
    """What a reading weighs on the example, per token."""
    tensors = example()
    per_token = run(reading.plan, tensors).per_token
    return tuple(tuple(round(float(x), 4) for x in row[: len(r)]) for row, r in zip(per_token, RATIOS, strict=True))


def _meaning(profile: Profile, word: Word) -> Meaning:
    if word.options is None:
        value = _value(profile, word.metric) if word.metric else None
        return Meaning(profile.name, profile.version, word.word, word.says, None, "", "", None, value, ())
    reading = profile.read(word.options)
    return Meaning(
        framework=profile.name,
        version=profile.version,
        word=word.word,
        says=word.says,
        options=word.options,
        formula=formula(reading.plan.estimator),
        code=code(reading.plan.estimator),
        weights=weights_of(reading),
        value=_value(profile, word.metric) if word.metric else None,
        notes=reading.notes,
    )


def _of_option(profile: Profile, name: str, says: str, default: Any) -> Meaning:
    told = f"{says} (default {default!r})"
    return Meaning(profile.name, profile.version, name, told, None, "", "", None, None, ())


def _value(profile: Profile, name: str) -> float | None:
    metric: Metric | None = next((m for m in profile.metrics if name in m.names), None)
    if metric is None or metric.equal is None:
        return None
    reading, tensors = Reading(profile.read({}).plan), example()
    view = View(Situation({}, tensors, reading), reading.plan, run(reading.plan, tensors))
    return round(float(torch.as_tensor(metric.equal(view, name)).max()), 6)


def _plain(word: str) -> str:
    return word.lower().replace("-", "_").strip("_ ")
