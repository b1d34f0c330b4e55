"""A doctor's causes in plain words, and its diagnosis in the order in which a reader needs it."""

import math
from collections.abc import Mapping

from reweigh.doctor.diagnosis import CauseId, Diagnosis, Evidence, Finding
from reweigh.stats.intervals import Number
from reweigh.stats.numerals import interval

NAMED_FROM = 0.5  # confidence from which a cause is named and not only suspected; as `Finding.confidence` says

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


def first_cause(diagnosis: Diagnosis | None) -> Finding | None:
    """The cause that the verdict names, if there is something to be said for it."""
    if diagnosis is None:
        return None
    return next((one for one in diagnosis.causes if one.id == diagnosis.verdict), None)


def cause_sentence(diagnosis: Diagnosis) -> str:
    """`likely cause: the engine logs before temperature`."""
    found = first_cause(diagnosis)
    if diagnosis.verdict == "none":
        return CAUSE_WORDS["none"]
    sure = found is None or found.confidence >= NAMED_FROM
    return f"{'likely' if sure else 'possible'} cause: {CAUSE_WORDS[diagnosis.verdict]}"


def evidence_value(one: Evidence) -> tuple[str, str]:
    """Value and interval as shown; `-` if it could not be had."""
    if not math.isfinite(one.value):
        return "-", ""
    return interval(Number(one.value, one.low, one.high))


def evidence_sentence(one: Evidence) -> str:
    """`mean_ratio 1.052 [1.041, 1.063]: mean token ratio, which must be 1`."""
    return f"{' '.join(x for x in (one.name, *evidence_value(one)) if x)}: {one.meaning}"
