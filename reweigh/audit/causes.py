"""A doctor's causes as an audit speaks of them: titles, which of them weights are made for, where each can be seen."""

from collections.abc import Mapping

from reweigh.doctor.diagnosis import CauseId

CAUSE_WORDS: Mapping[CauseId, str] = {
    "placeholder_logprob": "placeholders stand where log-probs should",
    "unmasked_context": "tokens that nobody sampled are in the mask",
    "retokenisation": "text was tokenised again and the tokens differ",
    "shift": "log-probs are shifted by one token",
    "wrong_token": "the log-probs are of another token than the sampled one",
    "raw_logprobs": "the engine logs before temperature",
    "truncated_sampling": "sampling was truncated (top-p, top-k, min-p) on one side only",
    "vocab_padding": "padding of the vocabulary takes mass on one side",
    "both_raw": "both sides log before temperature, and what was sampled is neither",
    "trainer_temperature": "the trainer scores at another temperature",
    "repetition_penalty": "a repetition penalty was applied on one side only",
    "template_prefix": "the two sides see different prompts",
    "packing_leak": "packed sequences see each other in the trainer",
    "position_encoding": "positions are encoded differently",
    "stale_weights": "the engine samples with old weights",
    "weight_sync": "some weights never reach the engine",
    "update_below_precision": "updates are smaller than the engine's number type can hold",
    "stale_kv": "the engine's cache outlives a change of weights",
    "dropout": "dropout is on while the trainer scores",
    "moe_routing": "experts are chosen differently on the two sides",
    "quantised_rollout": "the engine's weights or cache are quantised",
    "engine_decode": "the engine's decoding differs from its own prefill",
    "numerics": "rounding of number types and kernels",
    "none": "no gap that needs a cause",
}
"""Each cause in a few plain words, as they go after `likely cause: `."""
CORRECTABLE: frozenset[CauseId] = frozenset(
    {"stale_weights", "moe_routing", "quantised_rollout", "engine_decode", "numerics", "none"}
)
"""Causes that leave the log-probs right and make the sampler another policy: weights are made for those."""
SEEN_IN: Mapping[CauseId, tuple[str, ...]] = {
    "placeholder_logprob": ("density", "histogram"),
    "unmasked_context": ("turn", "identity"),
    "retokenisation": ("worst", "density"),
    "shift": ("density", "identity"),
    "wrong_token": ("density", "identity"),
    "raw_logprobs": ("identity", "density"),
    "truncated_sampling": ("identity", "density"),
    "vocab_padding": ("identity",),
    "both_raw": ("identity",),
    "trainer_temperature": ("density", "probability"),
    "repetition_penalty": ("position", "identity"),
    "template_prefix": ("position",),
    "packing_leak": ("position",),
    "position_encoding": ("position", "length"),
    "stale_weights": ("lag", "step"),
    "weight_sync": ("step", "lag"),
    "update_below_precision": ("step",),
    "stale_kv": ("position", "step"),
    "dropout": ("histogram", "density"),
    "moe_routing": ("tail", "worst"),
    "quantised_rollout": ("density", "histogram"),
    "engine_decode": ("position",),
    "numerics": ("density",),
    "none": ("histogram",),
}
"""Cuts and pictures in which a cause has a shape, the plainest first; a cut only if the records tell it."""
