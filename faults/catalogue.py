"""The faults that can be committed, each a change of what engine, log and trainer do, with three strengths."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from faults.specs import Specs
from faults.worlds import RECIPES, WorldName
from reweigh.doctor import CauseId

Level = Literal["weak", "medium", "strong"]
"""Names of the strengths at which a fault is committed."""
LEVELS: tuple[Level, ...] = ("weak", "medium", "strong")
"""The strengths, the weakest first."""
DENSE: tuple[WorldName, ...] = (*(name for name in RECIPES if name != "moe"), "smollm2")
ALL: tuple[WorldName, ...] = (*DENSE, "moe")
Change = Callable[[Specs, float], Specs]
Fields = Callable[[float], dict[str, Any]]

# Units of strengths that several faults share.
_TOKENS = "share of the tokens"
_SEQUENCES = "share of the sequences"
_T = "temperature"
_P = "mass kept"
_LAYERS = "share of the layers; 2 = the vocabulary layer too"
_VERSIONS = "versions"
_STEPS = "size of the steps, in usual ones"


@dataclass(frozen=True)
class Fault:
    """One way of committing a cause.

    Attributes:
        id: the cause.
        variant: which way.
        what: it does, in a sentence.
        unit: what a strength means.
        weak, medium, strong: strengths; medium is what is met in practice.
        change: of the specs, given a strength.
        worlds: in which it can be committed.
    """

    id: CauseId
    variant: str
    what: str
    unit: str
    weak: float
    medium: float
    strong: float
    change: Change
    worlds: tuple[WorldName, ...] = ALL

    @property
    def name(self) -> str:
        """Cause and variant: "raw_logprobs-cooler"."""
        return f"{self.id}-{self.variant}"

    def strength(self, level: Level) -> float:
        """The strength of a level."""
        return {"weak": self.weak, "medium": self.medium, "strong": self.strong}[level]


def engine(fields: Fields) -> Change:
    """A change of the engine: the fields that a strength gives."""
    return lambda specs, strength: replace(specs, engine=replace(specs.engine, **fields(strength)))


def log(fields: Fields) -> Change:
    """A change of the log."""
    return lambda specs, strength: replace(specs, log=replace(specs.log, **fields(strength)))


def trainer(fields: Fields) -> Change:
    """A change of the trainer."""
    return lambda specs, strength: replace(specs, trainer=replace(specs.trainer, **fields(strength)))


def training(fields: Fields) -> Change:
    """A change of what lies between versions."""
    return lambda specs, strength: replace(specs, **fields(strength))


def both(first: Change, second: Change) -> Change:
    """One change after the other, of one strength."""
    return lambda specs, strength: second(first(specs, strength), strength)


BOOKKEEPING = (
    Fault(
        "wrong_units",
        "probabilities",
        "The engine's probabilities stand under the name of log-probs.",
        "none",
        1,
        1,
        1,
        log(lambda s: {"unit": "probabilities"}),
    ),
    Fault(
        "wrong_units",
        "base-10",
        "The engine logs to base 10.",
        "none",
        1,
        1,
        1,
        log(lambda s: {"unit": "base 10"}),
    ),
    Fault(
        "placeholder_logprob",
        "zero",
        "A token whose log-prob is missing is given 0.",
        _TOKENS,
        0.002,
        0.01,
        0.05,
        log(lambda s: {"placeholder": 0.0, "placeholder_share": s}),
    ),
    Fault(
        "placeholder_logprob",
        "forced-end",
        "A sequence cut off at its length is given an end token, log-prob 0.",
        "share of the sequences cut off",
        0.1,
        0.5,
        1.0,
        log(lambda s: {"placeholder": 0.0, "placeholder_share": s, "forced_end": True}),
    ),
    Fault(
        "placeholder_logprob",
        "one",
        "A token whose log-prob is missing is given 1.",
        _TOKENS,
        0.002,
        0.01,
        0.05,
        log(lambda s: {"placeholder": 1.0, "placeholder_share": s}),
    ),
    Fault(
        "placeholder_logprob",
        "minus-9999",
        "A token whose log-prob is missing is given -9999.",
        _TOKENS,
        0.002,
        0.01,
        0.05,
        log(lambda s: {"placeholder": -9999.0, "placeholder_share": s}),
    ),
    Fault(
        "unmasked_context",
        "zero",
        "A tool's text counts as sampled, with log-prob 0.",
        "share of the sequences with a tool",
        0.1,
        0.5,
        1.0,
        log(lambda s: {"unmask_share": s}),
    ),
    Fault(
        "unmasked_context",
        "prefill",
        "A tool's text counts as sampled, with the log-probs of the engine's prefill.",
        "share of the sequences with a tool",
        0.1,
        0.5,
        1.0,
        log(lambda s: {"unmask_share": s, "unmask_log": "prefill"}),
    ),
    Fault(
        "retokenisation",
        "text",
        "The trainer gets the response as text and finds other token ids in it.",
        _SEQUENCES,
        0.1,
        0.5,
        1.0,
        trainer(lambda s: {"retokenised": s}),
    ),
    Fault(
        "shift",
        "right",
        "Each token has the log-prob of a token before it.",
        "places",
        1,
        1,
        2,
        log(lambda s: {"shift": (int(s),)}),
    ),
    Fault(
        "shift",
        "left",
        "Each token has the log-prob of a token after it.",
        "places",
        1,
        1,
        2,
        log(lambda s: {"shift": (-int(s),)}),
    ),
    Fault(
        "shift",
        "some",
        "In some sequences log-probs stand one or two places off, either way.",
        _SEQUENCES,
        0.05,
        0.25,
        0.75,
        log(lambda s: {"shift": (-2, -1, 1, 2), "shift_share": s}),
    ),
    Fault(
        "wrong_token",
        "first",
        "The log-prob is that of the most probable token.",
        _TOKENS,
        0.05,
        0.5,
        1.0,
        log(lambda s: {"other_token": "first", "other_share": s}),
    ),
    Fault(
        "wrong_token",
        "second",
        "The log-prob is that of the second most probable token.",
        _TOKENS,
        0.05,
        0.5,
        1.0,
        log(lambda s: {"other_token": "second", "other_share": s}),
    ),
)


NORMALISATION = (
    Fault(
        "raw_logprobs",
        "cooler",
        "Sampled and trained at a temperature below 1, logged before it.",
        _T,
        0.9,
        0.7,
        0.5,
        both(engine(lambda s: {"temperature": s, "logs": "raw"}), trainer(lambda s: {"temperature": s})),
    ),
    Fault(
        "raw_logprobs",
        "hotter",
        "Sampled and trained at a temperature above 1, logged before it.",
        _T,
        1.1,
        1.2,
        1.5,
        both(engine(lambda s: {"temperature": s, "logs": "raw"}), trainer(lambda s: {"temperature": s})),
    ),
    Fault(
        "truncated_sampling",
        "top-p",
        "The engine samples from a nucleus, the trainer scores without it.",
        _P,
        0.98,
        0.95,
        0.8,
        engine(lambda s: {"top_p": s}),
    ),
    Fault(
        "truncated_sampling",
        "top-k",
        "The engine samples from the k best tokens, the trainer scores all.",
        "tokens kept",
        100,
        50,
        20,
        engine(lambda s: {"top_k": int(s)}),
    ),
    Fault(
        "truncated_sampling",
        "min-p",
        "The engine leaves out tokens far below the best, the trainer scores all.",
        "least share of the best token's probability",
        0.01,
        0.05,
        0.1,
        engine(lambda s: {"min_p": s}),
    ),
    Fault(
        "vocab_padding",
        "untrained",
        "The trainer's vocabulary layer has rows that the engine cuts off.",
        "rows, as a share of the vocabulary",
        0.03,
        0.28,
        1.0,
        trainer(lambda s: {"padded_rows": s}),
    ),
    Fault(
        "both_raw",
        "temperature",
        "Sampled at another temperature than 1; both log-probs are before it.",
        _T,
        0.9,
        0.7,
        0.5,
        engine(lambda s: {"temperature": s, "logs": "raw"}),
    ),
    Fault(
        "both_raw",
        "top-p",
        "Sampled from a nucleus; both log-probs are before it.",
        _P,
        0.98,
        0.9,
        0.7,
        engine(lambda s: {"top_p": s, "logs": "raw"}),
    ),
)


OTHER_POLICY = (
    Fault(
        "trainer_temperature",
        "missing",
        "The engine samples and logs at a temperature, the trainer scores at 1.",
        _T,
        0.9,
        0.7,
        0.5,
        engine(lambda s: {"temperature": s}),
    ),
    Fault(
        "trainer_temperature",
        "missing-hotter",
        "The same with a temperature above 1.",
        _T,
        1.1,
        1.2,
        1.5,
        engine(lambda s: {"temperature": s}),
    ),
    Fault(
        "trainer_temperature",
        "extra",
        "The trainer scores at a temperature, the engine samples and logs at 1.",
        _T,
        0.9,
        0.7,
        0.5,
        trainer(lambda s: {"temperature": s}),
    ),
    Fault(
        "repetition_penalty",
        "processed",
        "The engine samples and logs with a repetition penalty.",
        "penalty",
        1.02,
        1.1,
        1.3,
        engine(lambda s: {"repetition_penalty": s}),
    ),
    Fault(
        "template_prefix",
        "no-begin",
        "The trainer's prompt lacks its first token.",
        _SEQUENCES,
        0.2,
        1.0,
        1.0,
        trainer(lambda s: {"template": "no-begin", "template_share": s}),
    ),
    Fault(
        "template_prefix",
        "no-header",
        "The trainer's prompt lacks its header or system message.",
        _SEQUENCES,
        0.2,
        1.0,
        1.0,
        trainer(lambda s: {"template": "no-header", "template_share": s}),
    ),
    Fault(
        "template_prefix",
        "other",
        "The trainer writes the prompt in another template.",
        _SEQUENCES,
        0.2,
        1.0,
        1.0,
        trainer(lambda s: {"template": "other", "template_share": s}),
    ),
    Fault(
        "packing_leak",
        "attention",
        "Sequences packed into one row see those before them.",
        "sequences a row",
        2,
        4,
        8,
        trainer(lambda s: {"pack": int(s), "pack_mask": False}),
    ),
    Fault(
        "packing_leak",
        "positions-too",
        "The same, and positions run on through the row.",
        "sequences a row",
        2,
        4,
        8,
        trainer(lambda s: {"pack": int(s), "pack_mask": False, "pack_positions": False}),
    ),
    Fault(
        "position_encoding",
        "base",
        "The trainer's rotary base is larger.",
        "factor",
        1.2,
        2.0,
        10.0,
        trainer(lambda s: {"rope_base": s}),
    ),
    Fault(
        "position_encoding",
        "scaling",
        "The trainer divides positions, as for a longer context.",
        "factor",
        1.02,
        1.1,
        2.0,
        trainer(lambda s: {"rope_scale": s}),
    ),
    Fault(
        "position_encoding",
        "gap",
        "The trainer leaves out positions between prompt and response.",
        "positions",
        4,
        16,
        64,
        trainer(lambda s: {"position_gap": int(s)}),
    ),
    Fault(
        "dropout",
        "left-on",
        "The trainer scores with dropout on.",
        "share dropped",
        0.02,
        0.05,
        0.1,
        trainer(lambda s: {"dropout": s}),
    ),
)


OTHER_WEIGHTS = (
    Fault(
        "stale_weights",
        "lag",
        "Sequences are sampled by weights 0 to so many versions old.",
        _VERSIONS,
        1,
        3,
        6,
        engine(lambda s: {"lags": tuple(range(int(s) + 1))}),
    ),
    Fault(
        "stale_weights",
        "partial",
        "Responses begun by older weights are finished by new ones, prefix recomputed.",
        _VERSIONS,
        1,
        3,
        6,
        engine(lambda s: {"lags": tuple(range(int(s) + 1)), "switch_at": 32}),
    ),
    Fault(
        "weight_sync",
        "not-delivered",
        "The engine serves version 0 for ever and says that it is up to date.",
        _STEPS,
        0.5,
        1.0,
        2.0,
        both(training(lambda s: {"size": s}), engine(lambda s: {"delivered": False})),
    ),
    Fault(
        "weight_sync",
        "adapter",
        "A low-rank adapter is trained and never reaches the engine.",
        _STEPS,
        0.5,
        1.0,
        2.0,
        both(training(lambda s: {"size": s, "training": "adapter"}), engine(lambda s: {"delivered": False})),
    ),
    Fault(
        "update_below_precision",
        "stored",
        "Steps are too small for bfloat16 weights to hold; products in float32.",
        _STEPS,
        0.5,
        1.0,
        2.0,
        both(
            training(lambda s: {"size": s, "training": "tiny-steps"}), engine(lambda s: {"weights": "bfloat16-stored"})
        ),
        DENSE,
    ),
    Fault(
        "update_below_precision",
        "computed",
        "Steps are too small for bfloat16 weights to hold; products in it too.",
        _STEPS,
        2.0,
        4.0,
        8.0,
        training(lambda s: {"size": s, "training": "tiny-steps"}),
        ("smollm2",),  # in the tiny world all of it stays below the rounding of the products
    ),
    Fault(
        "stale_kv",
        "prompts",
        "The cache of prompts seen before is kept when the weights change.",
        _STEPS,
        1.0,
        2.0,
        4.0,
        both(training(lambda s: {"size": s}), engine(lambda s: {"stale_prompts": True})),
    ),
    Fault(
        "stale_kv",
        "partial",
        "Responses begun by older weights are finished by new ones on the old cache.",
        _VERSIONS,
        1,
        3,
        6,
        engine(lambda s: {"lags": tuple(range(int(s) + 1)), "switch_at": 32, "keep_kv": True}),
    ),
    Fault(
        "moe_routing",
        "router",
        "The engine's router keeps fewer digits, and picks other experts at near ties.",
        "bits of mantissa",
        7,
        5,
        3,
        engine(lambda s: {"router_bits": int(s)}),
        ("moe",),
    ),
    Fault(
        "quantised_rollout",
        "int8",
        "The engine's weights are in 8-bit integers, a scale a row.",
        _LAYERS,
        1.0,
        2.0,
        2.0,
        engine(lambda s: {"weights": "int8", "quantised_layers": s}),
        DENSE,
    ),
    Fault(
        "quantised_rollout",
        "int8-dynamic",
        "The engine's weights and activations are in 8-bit integers.",
        _LAYERS,
        0.34,
        1.0,
        1.0,
        engine(lambda s: {"weights": "int8-dynamic", "quantised_layers": s}),
        DENSE,
    ),
    Fault(
        "quantised_rollout",
        "fp8",
        "The engine's weights are in 8-bit floats (e4m3).",
        _LAYERS,
        0.34,
        1.0,
        2.0,
        engine(lambda s: {"weights": "fp8", "quantised_layers": s}),
        DENSE,
    ),
    Fault(
        "quantised_rollout",
        "int4",
        "The engine's weights are in 4-bit integers, a scale for 32.",
        _LAYERS,
        0.34,
        1.0,
        2.0,
        engine(lambda s: {"weights": "int4", "quantised_layers": s}),
        DENSE,
    ),
    Fault(
        "quantised_rollout",
        "fp8-kv",
        "The engine's key-value cache is in 8-bit floats.",
        "bits of mantissa given up",
        4,
        4,
        5,
        engine(lambda s: {"kv": "e4m3" if s < 5 else "e5m2"}),
        DENSE,
    ),
    Fault(
        "engine_decode",
        "fp8-kv",
        "The engine's cache is in 8-bit floats in decoding, not in prefill.",
        "bits of mantissa given up",
        4,
        5,
        5,
        engine(lambda s: {"decode_kv": "e4m3" if s < 5 else "e5m2"}),
    ),
    Fault(
        "engine_decode",
        "position",
        "Positions are one off in decoding, from the token of that number on.",
        "tokens before",
        64,
        32,
        0,
        engine(lambda s: {"decode_offset": 1, "decode_offset_from": int(s)}),
    ),
    Fault(
        "numerics",
        "bf16",
        "The engine computes in bfloat16, the trainer in float32.",
        "none",
        1,
        1,
        1,
        engine(lambda s: {}),
        DENSE,
    ),
    Fault(
        "numerics",
        "bf16-both",
        "Both compute in bfloat16, in batches of different sizes.",
        "none",
        1,
        1,
        1,
        trainer(lambda s: {"weights": "bfloat16"}),
        DENSE,
    ),
    Fault(
        "numerics",
        "fp16",
        "The engine computes in float16, the trainer in float32.",
        "none",
        1,
        1,
        1,
        engine(lambda s: {"weights": "float16"}),
        DENSE,
    ),
    Fault(
        "none",
        "float32",
        "Both compute in float32.",
        "none",
        1,
        1,
        1,
        engine(lambda s: {"weights": "float32"}),
        ALL,
    ),
)


PAIRS: tuple[tuple[str, str], ...] = (
    ("stale_weights-lag", "raw_logprobs-cooler"),
    ("stale_weights-lag", "truncated_sampling-top-p"),
    ("stale_weights-lag", "trainer_temperature-extra"),
    ("stale_weights-lag", "dropout-left-on"),
    ("stale_weights-lag", "template_prefix-other"),
    ("stale_weights-lag", "placeholder_logprob-zero"),
    ("stale_weights-lag", "vocab_padding-untrained"),
    ("weight_sync-not-delivered", "raw_logprobs-cooler"),
    ("weight_sync-not-delivered", "packing_leak-attention"),
    ("weight_sync-not-delivered", "truncated_sampling-top-k"),
    ("dropout-left-on", "truncated_sampling-top-p"),
    ("dropout-left-on", "raw_logprobs-hotter"),
    ("dropout-left-on", "unmasked_context-zero"),
    ("dropout-left-on", "engine_decode-fp8-kv"),
    ("shift-some", "stale_weights-lag"),
    ("shift-some", "truncated_sampling-top-p"),
    ("retokenisation-text", "truncated_sampling-min-p"),
    ("unmasked_context-zero", "template_prefix-no-header"),
    ("unmasked_context-zero", "raw_logprobs-cooler"),
    ("placeholder_logprob-forced-end", "trainer_temperature-missing"),
    ("repetition_penalty-processed", "dropout-left-on"),
    ("position_encoding-scaling", "placeholder_logprob-zero"),
    ("packing_leak-attention", "truncated_sampling-top-p"),
    ("quantised_rollout-int4", "shift-some"),
    ("vocab_padding-untrained", "engine_decode-position"),
    ("placeholder_logprob-minus-9999", "raw_logprobs-cooler"),
    ("placeholder_logprob-forced-end", "template_prefix-no-header"),
    ("unmasked_context-zero", "quantised_rollout-int8"),
    ("unmasked_context-prefill", "stale_weights-lag"),
    ("retokenisation-text", "dropout-left-on"),
    ("shift-some", "raw_logprobs-cooler"),
    ("wrong_token-second", "weight_sync-not-delivered"),
    ("raw_logprobs-cooler", "dropout-left-on"),
    ("packing_leak-attention", "unmasked_context-zero"),
    ("trainer_temperature-missing", "shift-some"),
    ("trainer_temperature-extra", "dropout-left-on"),
    ("repetition_penalty-processed", "shift-some"),
    ("weight_sync-not-delivered", "template_prefix-other"),
    ("template_prefix-other", "placeholder_logprob-one"),
    ("position_encoding-base", "stale_weights-lag"),
    ("engine_decode-position", "stale_weights-lag"),
    ("stale_kv-prompts", "placeholder_logprob-zero"),
)
"""Names of two faults that a run may have at once, mostly of comparable size: dropout, packing leaks and temperatures
make gaps ten times as large as old weights or another prompt do, and hide them."""

FAULTS: tuple[Fault, ...] = (*BOOKKEEPING, *NORMALISATION, *OTHER_POLICY, *OTHER_WEIGHTS)
"""Every fault that can be committed."""
Clean = Literal["bf16", "bf16-both", "float32"]
CLEAN: tuple[Clean, ...] = get_args(Clean)
"""Kinds of pairs without a fault: number types of the two sides."""


def find(name: str) -> Fault:
    """Find the fault of a name such as "shift-left".

    Raises:
        ValueError: none of that name.
    """
    for fault in FAULTS:
        if fault.name == name:
            return fault
    raise ValueError(f"faults: no fault {name!r}\nhint: one of {', '.join(f.name for f in FAULTS)}.")
