"""What an engine, a log and a trainer do, as values: a fault is a change of these, and two faults are both changes."""

from dataclasses import dataclass, field
from typing import Literal

Weights = Literal["float32", "bfloat16", "float16", "bfloat16-stored", "int8", "int8-dynamic", "fp8", "int4"]
KvFormat = Literal["e4m3", "e5m2"]
Training = Literal["policy-gradient", "tiny-steps", "adapter"]


@dataclass(frozen=True)
class EngineSpec:
    """The program that samples.

    Attributes:
        weights: number format of the weights and of the products; "bfloat16-stored" is of the weights alone.
        quantised_layers: share of the layers in that format, from the last; the others are in bfloat16.
        kv: an 8-bit float: rounds the key-value cache, for prompt and response alike.
        decode_kv: the same, but only once decoding begins.
        decode_offset: positions by which decoding is off, from `decode_offset_from` tokens on.
        lags: versions by which it may be behind the trainer; a sequence has one of them, drawn.
        switch_at: all sequences in flight go over to the trainer's weights after so many tokens; None never.
        keep_kv: the cache of older weights is kept over that switch.
        stale_prompts: a prompt seen at an earlier step keeps the cache it was given then.
        delivered: False serves version 0 for ever, and says otherwise.
        temperature: of sampling, as are the four below.
        repetition_penalty: divides positive scores of tokens seen before, multiplies negative ones
            (Keskar et al. 2019).
        logs: log-probs after ("processed") or before ("raw") temperature, truncation and penalty.
        router_bits: bits of mantissa of the router's scores (mixture of experts); None keeps all.
        batch_size: sequences in flight.
    """

    weights: Weights = "bfloat16"
    quantised_layers: float = 1.0
    kv: KvFormat | None = None
    decode_kv: KvFormat | None = None
    decode_offset: int = 0
    decode_offset_from: int = 0
    lags: tuple[int, ...] = (0,)
    switch_at: int | None = None
    keep_kv: bool = False
    stale_prompts: bool = False
    delivered: bool = True
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    logs: Literal["processed", "raw"] = "processed"
    router_bits: int | None = None
    batch_size: int = 64


@dataclass(frozen=True)
class LogSpec:
    """What is written down of a sample, between the engine and the trainer.

    Attributes:
        unit: in which log-probs are written.
        shift: places by which log-probs stand off their tokens, one of them drawn a sequence: 1 = each token has
            that of the token before it.
        shift_share: of the sequences.
        other_token: the log-prob is that of the most probable token, or of the second.
        other_share: of the tokens.
        placeholder: written in place of a log-prob.
        placeholder_share: of the tokens; of the sequences for `forced_end`.
        forced_end: sequences cut off at their length are given an end token with `placeholder`.
        unmask_share: of the sequences with a tool's text, those in which it counts as sampled.
        unmask_log: what stands for its log-prob: 0, or the engine's own.
    """

    unit: Literal["nats", "probabilities", "base 10"] = "nats"
    shift: tuple[int, ...] = (0,)
    shift_share: float = 1.0
    other_token: Literal["first", "second"] = "first"
    other_share: float = 0.0
    placeholder: float = 0.0
    placeholder_share: float = 0.0
    forced_end: bool = False
    unmask_share: float = 0.0
    unmask_log: Literal["zero", "prefill"] = "zero"


@dataclass(frozen=True)
class TrainerSpec:
    """The program that scores and trains.

    Attributes:
        weights: number format.
        temperature: that it divides scores by.
        top_p: mass to which it truncates, the sampled token always kept.
        dropout: left on while scoring.
        rope_base: factor on the rotary base.
        rope_scale: positions are divided by it.
        position_gap: positions left out between prompt and response.
        template: the prompt as the engine had it, or without its first token, without its header, or with another.
        template_share: of the sequences that have another template.
        pack: sequences in one packed row.
        pack_mask: False lets a sequence see those before it in the row.
        pack_positions: False numbers positions through the row.
        padded_rows: untrained rows that the vocabulary layer has beyond the vocabulary, as a share of it.
        retokenised: share of the sequences that it had as text.
        batch_size: packed rows scored together.
    """

    weights: Literal["float32", "bfloat16"] = "float32"
    temperature: float = 1.0
    top_p: float = 1.0
    dropout: float = 0.0
    rope_base: float = 1.0
    rope_scale: float = 1.0
    position_gap: int = 0
    template: Literal["same", "no-begin", "no-header", "other"] = "same"
    template_share: float = 1.0
    pack: int = 4
    pack_mask: bool = True
    pack_positions: bool = True
    padded_rows: float = 0.0
    retokenised: float = 0.0
    batch_size: int = 8


@dataclass(frozen=True)
class Specs:
    """Everything that a case is made by.

    Attributes:
        training: what lies between versions: policy-gradient steps; such steps too small for bfloat16; or steps of a
            low-rank adapter alone.
        size: of the steps, in units of the usual ones.
    """

    engine: EngineSpec = field(default_factory=EngineSpec)
    log: LogSpec = field(default_factory=LogSpec)
    trainer: TrainerSpec = field(default_factory=TrainerSpec)
    training: Training = "policy-gradient"
    size: float = 1.0
