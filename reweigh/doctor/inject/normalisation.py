"""Faults of normalisation: a log-prob is of another distribution than the one that was drawn from."""

from reweigh.doctor.inject.fault import Fault, both, engine, trainer

_T = "temperature"
_P = "mass kept"

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
