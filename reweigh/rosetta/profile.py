"""What is known of a framework: its options, its conventions, its words, its quirks and its metrics, as data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from reweigh.batch import Batch
from reweigh.rosetta.parts import Rule, as_it_comes
from reweigh.rosetta.plan import Outcome, Plan, Tensors

Options = Mapping[str, Any]
Field = Literal["log_pi", "log_mu", "log_live"]
Over = Literal["tokens", "means", "sums", "row_means", "sum"]


class RefusedError(ValueError):
    """A combination of options, or a batch, that the framework refuses or fails on."""


@dataclass(frozen=True)
class Option:
    """One option: where it stands, what it is if not given, which values it takes, what it means.

    Attributes:
        name: exact upstream name.
        default: its value if not given.
        says: what it does, in our words, in one line.
        values: the words that it takes, if it takes words.
    """

    name: str
    default: Any
    says: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Conventions:
    """How a framework does what everyone does somehow. Each in a few words, for tables.

    Attributes:
        ratio: whose probabilities are divided.
        bounds: on what the bounds act, and whether the bound itself is inside.
        k1: its direction.
        sequence: what a sequence level is: the product or the geometric mean.
        survivors: what a unit weighs that a mask left.
        not_finite: what a non-finite ratio becomes.
        clamp: of log ratios, before anything else.
        detached: whether weights carry a gradient.
        denominator: of the loss, after a rejection.
        normalise: over what weights are divided by their mean.
    """

    ratio: str
    bounds: str
    k1: str
    sequence: str
    survivors: str
    not_finite: str
    clamp: str
    detached: str
    denominator: str
    normalise: str


@dataclass(frozen=True)
class Loss:
    """Which of our losses a framework's is, and its constants.

    Attributes:
        kind: `ppo_clip`, `cispo`, `gspo` or `policy_gradient`; `ratio` is `ppo_clip` without a clip: `-w r A`, with
            gradient through r.
        live: the policy with gradient.
        centre: the policy that its ratio is divided by.
        low: clip below 1.
        high: clip above 1.
        dual: dual clip, or None.
        over: what the sum is divided by: tokens, sequences with a token (of means or sums over their tokens), all rows
            (of means), or nothing.
        survivors: whether tokens and sequences are counted after screens.
        penalty: coefficient of a squared log ratio that is added, over all tokens of the mask; None if it has no such.
        clamp: the framework's own clamp of the live log ratio, nats; read by a quirk.
        scale: multiplies the advantage.
    """

    kind: Literal["ppo_clip", "cispo", "gspo", "policy_gradient", "ratio"]
    live: Field = "log_live"
    centre: Field = "log_pi"
    low: float = 0.2
    high: float = 0.2
    dual: float | None = None
    over: Over = "tokens"
    survivors: bool = False
    penalty: float | None = None
    clamp: float | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Reading:
    """A set of options, read: a plan, of which two policies, and inside which loss.

    Attributes:
        plan: what multiplies and drops.
        pi: the policy on top of the ratio.
        mu: the policy below.
        loss: the loss around the weights, if the options say.
        notes: what a plan cannot say.
        screen_pi: the policy on top in screens, if it is another one than in weights.
        inside: whether the framework's loss does it all inside, so that no mask or weight of its own shows it.
    """

    plan: Plan
    pi: Field = "log_pi"
    mu: Field = "log_mu"
    loss: Loss | None = None
    notes: tuple[str, ...] = ()
    screen_pi: Field | None = None
    inside: bool = False


@dataclass(frozen=True, eq=False)
class Situation:
    """What a quirk may depend on."""

    options: Options
    tensors: Tensors
    reading: Reading


@dataclass(frozen=True)
class Quirk:
    """Something that the framework does and a plan, as we run it, does not; switched on, its numbers come out.

    Attributes:
        name: short, unique in the profile.
        says: what the framework does, and what we do.
        apply: the switch: the plan with the quirk in it. Raises `RefusedError` where the framework fails.
    """

    name: str
    says: str
    apply: Callable[[Plan, Situation], Plan] = field(repr=False)


@dataclass(frozen=True, eq=False)
class View:
    """What a metric is computed from: the batch, the plan that ran, and what came out."""

    situation: Situation
    plan: Plan
    outcome: Outcome

    @property
    def tensors(self) -> Tensors:
        """The recorded log-probs and mask."""
        return self.situation.tensors

    def batch(self, rule: Rule = as_it_comes) -> Batch:
        """The batch: ours, or under a quirk the framework's, by the rule that it has for this metric."""
        return self.tensors.batch(rule if self.plan.metrics_as_they else None)

    def mean_over_rows(self, rows: Tensor, batch: Batch) -> Tensor:
        """Mean of `[S]` over sequences with a token; under a quirk over all rows, empty ones as they are."""
        return rows.mean() if self.plan.empty_rows else rows[batch.layout.lengths > 0].mean()


@dataclass(frozen=True)
class Metric:
    """A metric that the framework logs, and our equal of it.

    Attributes:
        names: its names, as shell patterns.
        equal: how it comes out of our functions; None if it has no equal.
        says: what it is, in our words; for one without an equal, why.
    """

    names: tuple[str, ...]
    equal: Callable[[View, str], Tensor | float] | None = field(repr=False)
    says: str


@dataclass(frozen=True)
class Word:
    """One meaning of a word: options, or a metric of that name.

    Attributes:
        word: as the framework writes it.
        options: options that a user would set, with the framework's own default or recommended bounds.
        metric: the metric that is called so, if it is one.
        says: what sets this meaning apart.
    """

    word: str
    says: str
    options: Options | None = None
    metric: str = ""


@dataclass(frozen=True)
class Bounds:
    """What fills a template: bounds on pi/mu, and one in the unit of a divergence."""

    low: float
    high: float
    bound: float


@dataclass(frozen=True)
class Template:
    """Options of a framework with bounds left open; `kind` says what they make."""

    kind: Literal["weights", "screens"]
    options: Callable[[Bounds], Options] = field(repr=False)


@dataclass(frozen=True)
class Profile:
    """A framework as far as it is known.

    Attributes:
        name: as users write it; `aliases`: other names, and forks with its options.
        version: what was read and run.
        known: versions that the same holds for.
        section: where its options stand in a configuration; "" for the top.
        options: what it takes.
        conventions: see there.
        read: options, those given, to a reading.
        words: its meanings of words that others use too.
        quirks: what our plans do not do.
        metrics: what it logs.
        templates: for finding its nearest option to someone else's.
    """

    name: str
    version: str
    section: str
    options: tuple[Option, ...]
    conventions: Conventions
    read: Callable[[Options], Reading] = field(repr=False)
    words: tuple[Word, ...]
    quirks: tuple[Quirk, ...]
    metrics: tuple[Metric, ...]
    templates: tuple[Template, ...] = ()
    aliases: tuple[str, ...] = ()
    known: tuple[str, ...] = ()

    def option(self, name: str) -> Option | None:
        """The option of that name."""
        return next((o for o in self.options if o.name == name), None)


def flat(options: Options, *sections: str) -> dict[str, Any]:
    """Options with those of nested sections lifted to the top."""
    out = {k: v for k, v in options.items() if k not in sections}
    for s in sections:
        out |= options.get(s) or {}
    return out
