"""Names the causes, and says what is known of each before any data: what it is, how to settle it, how to end it.

The texts and facts stand in `causes.toml`, each once; the tests, the rank, the tables of the terminal, the audit's page
and the documentation read them from here. To add a cause, five places:

1. its name in `CauseId`, where it is tested;
2. its table in `causes.toml`, at the same place;
3. its test in a family of `reweigh/doctor/families/`: the name among the family's `causes`, sums in `measure` if those
   that are there do not show it, and what `examine` concludes from them;
4. a fault that commits it, with three strengths, among the faults of the benchmark;
5. `docs/doctor.md`, which `python docs/doctor.py` writes.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

import tomllib

__all__ = [
    "ABOUT",
    "BENIGN",
    "CAUSES",
    "ENGINES",
    "PROGRAMS",
    "TRAINERS",
    "WRONG",
    "Cause",
    "CauseId",
    "Order",
    "fix_for",
    "read_causes",
]

CauseId = Literal[
    "wrong_units",
    "placeholder_logprob",
    "unmasked_context",
    "retokenisation",
    "shift",
    "wrong_token",
    "raw_logprobs",
    "truncated_sampling",
    "vocab_padding",
    "both_raw",
    "trainer_temperature",
    "repetition_penalty",
    "template_prefix",
    "packing_leak",
    "position_encoding",
    "stale_weights",
    "weight_sync",
    "update_below_precision",
    "stale_kv",
    "dropout",
    "moe_routing",
    "quantised_rollout",
    "engine_decode",
    "numerics",
    "none",
]
"""The fixed names of causes, in the order in which they are tested: structure, normalisation, other proper policies,
then the benign ones."""
CAUSES: tuple[CauseId, ...] = get_args(CauseId)
"""Every cause, in the order of `CauseId`."""

ENGINES = ("vllm", "sglang")
"""Engines that a fix may name options of."""
TRAINERS = ("trl", "verl", "slime", "prime-rl", "skyrl", "nemo-rl")
"""Trainers that a fix may name options of."""
PROGRAMS = ("general", *ENGINES, *TRAINERS)
"""Keys that a fix may have: what holds for all, the engines, the trainers."""

Order = Literal["own evidence", "by evidence", "last", "benign"]
"""Where a cause stands among those that are found: "own evidence" if a column of its own speaks for it (lag, step,
pack, ids, a second pass), so that less is enough to name it; "by evidence" if nothing else is said; "last" if it
explains any gap, so that all others come first; "benign" if it calls for nothing."""


@dataclass(frozen=True)
class Cause:
    """The facts and texts of one cause.

    Attributes:
        id: its name.
        title: the cause in a few plain words.
        meaning: what goes on, one sentence.
        looked_at: the statistic that shows it, in short.
        rules_out: what would show that it is not this.
        fix: what to do, by program; a program of which nothing is known is not there. "general" always is.
        experiment: the cheapest thing to do that decides; empty if the data alone do.
        needs: columns of the rollout record that turn the guess into a proof.
        seen_in: cuts and pictures of an audit in which it has a shape, the plainest first.
        looks_like: causes that it is also taken for, and why: where both are found, the other comes after it.
        order: where it stands among those that are found.
        correctable: whether it leaves the log-probs right and makes the sampler another policy: weights are for that.
        unseen: why a history of scalars may not tell it.
    """

    id: CauseId
    title: str
    meaning: str
    looked_at: str
    rules_out: str
    fix: Mapping[str, str]
    experiment: str = ""
    needs: tuple[str, ...] = ()
    seen_in: tuple[str, ...] = ()
    looks_like: Mapping[CauseId, str] = field(default_factory=dict[CauseId, str])
    order: Order = "by evidence"
    correctable: bool = False
    unseen: str = ""


def read_causes(text: str) -> Mapping[CauseId, Cause]:
    """Reads and checks a table of causes.

    Args:
        text: TOML in the form of `causes.toml`, whose head says what each key is.

    Returns:
        Every cause by its name, in the order of `CauseId`.

    Raises:
        ValueError: it is no TOML, a cause has no table or a table no cause, or they are not in the order of `CauseId`;
            a key is missing, unknown, empty or of another type. The text names the cause and the key.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise ValueError(f"causes.toml: no TOML: {e}") from None
    shared = _Table("shared", tables.pop("shared", {}))
    texts = {name: shared.text(name) for name in shared.values}
    for name in CAUSES:
        if name not in tables:
            raise ValueError(f"causes.toml: {name}: has no table\nhint: every name of CauseId needs one.")
    for name in tables:
        if name not in CAUSES:
            raise ValueError(f"causes.toml: {name}: no such cause\nhint: add the name to CauseId.")
    if (order := tuple(tables)) != CAUSES:
        first = next(name for name, cause in zip(order, CAUSES, strict=True) if name != cause)
        raise ValueError(f"causes.toml: {first}: must stand in the order of CauseId")
    return {cause: _cause(cause, _Table(cause, tables[cause]), texts) for cause in CAUSES}


@dataclass(frozen=True)
class _Table:
    """One table of the file; every error names it and the key."""

    name: str
    values: Any

    def __post_init__(self) -> None:
        if not isinstance(self.values, dict):
            raise ValueError(f"causes.toml: {self.name}: must be a table, got {self.values!r}")

    def error(self, key: str, rule: str) -> ValueError:
        return ValueError(f"causes.toml: {self.name}.{key}: {rule}")

    def text(self, key: str, *, optional: bool = False) -> str:
        if key not in self.values:
            if optional:
                return ""
            raise self.error(key, "is missing")
        value = self.values[key]
        if not isinstance(value, str) or not value or value != " ".join(value.split()):
            raise self.error(key, f"must be a text without spaces to spare, got {value!r}")
        return value

    def filled(self, key: str, shared: Mapping[str, str], *, optional: bool) -> str:
        """Returns a text in which {name} stands for one that several causes share."""
        text = self.text(key, optional=optional)
        for name in re.findall(r"\{(\w*)\}", text):
            if name not in shared:
                raise self.error(key, f"no text {name!r} under [shared], which has {', '.join(shared)}")
            text = text.replace(f"{{{name}}}", shared[name])
        return text

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(x, str) and x for x in cast("list[Any]", value)):
            raise self.error(key, f"must be a list of texts, got {value!r}")
        return tuple(cast("list[str]", value))

    def named(self, key: str, names: Collection[str]) -> dict[str, str]:
        """Returns texts by name, in the order of the names."""
        inner = _Table(f"{self.name}.{key}", self.values.get(key, {}))
        for name in inner.values:
            if name not in names:
                raise inner.error(name, f"must be one of {', '.join(names)}")
        return {name: inner.text(name) for name in names if name in inner.values}


_KEYS = (
    *("title", "meaning", "looked_at", "rules_out", "experiment", "needs", "seen_in", "looks_like"),
    *("order", "correctable", "unseen", "fix"),
)


def _cause(cause: CauseId, table: _Table, shared: Mapping[str, str]) -> Cause:
    for key in table.values:
        if key not in _KEYS:
            raise table.error(key, f"no such key; there are {', '.join(_KEYS)}")
    order = table.values.get("order", "by evidence")
    if order not in get_args(Order):
        raise table.error("order", f"must be one of {', '.join(get_args(Order))}, got {order!r}")
    correctable = table.values.get("correctable", False)
    if not isinstance(correctable, bool):
        raise table.error("correctable", f"must be true or false, got {correctable!r}")
    fix = table.named("fix", PROGRAMS)
    if "general" not in fix:
        raise table.error("fix.general", "is missing")
    benign = order == "benign"
    return Cause(
        id=cause,
        title=table.text("title"),
        meaning=table.text("meaning"),
        looked_at=table.text("looked_at"),
        rules_out=table.text("rules_out"),
        fix=fix,
        experiment=table.filled("experiment", shared, optional=benign),
        needs=table.texts("needs"),
        seen_in=table.texts("seen_in"),
        looks_like=cast("dict[CauseId, str]", table.named("looks_like", CAUSES)),
        order=order,
        correctable=correctable,
        unseen=table.filled("unseen", shared, optional=benign),
    )


ABOUT: Mapping[CauseId, Cause] = read_causes(Path(__file__).with_name("causes.toml").read_text(encoding="utf-8"))
"""What is known of each cause, in the order in which they are tested."""
BENIGN: frozenset[CauseId] = frozenset(cause for cause, known in ABOUT.items() if known.order == "benign")
"""Causes that call for nothing."""
WRONG: frozenset[CauseId] = frozenset(CAUSES[: CAUSES.index("template_prefix")])
"""Causes by which log-probs are not of the policy that sampled or of the one that trains: the structural ones, and
those of how a distribution is normalised or sampled from. What comes after them makes another proper policy."""


def fix_for(cause: CauseId, programs: Collection[str] | None = None) -> dict[str, str]:
    """Says what to do about a cause, in the words of some programs; "general" is always among them.

    Args:
        cause: its name.
        programs: of `PROGRAMS`; None for all. One of which nothing is known for this cause is left out.

    Returns:
        Text by program, in the order of `PROGRAMS`.

    Raises:
        ValueError: a program that has no name here.

    Example:
        >>> for program, text in fix_for("raw_logprobs", ("verl",)).items():
        ...     print(f"{program}: {text}")
        general: Have the engine log what it samples from, or sample at temperature 1 without penalties.
        verl: actor_rollout_ref.rollout.logprobs_mode=processed_logprobs
    """
    for name in programs or ():
        if name not in PROGRAMS:
            raise ValueError(f"fix_for: no program {name!r}\nhint: use one of {', '.join(PROGRAMS)}.")
    wanted = PROGRAMS if programs is None else {"general", *programs}
    return {name: text for name, text in ABOUT[cause].fix.items() if name in wanted}
