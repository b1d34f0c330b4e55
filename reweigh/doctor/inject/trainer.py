"""The trainer: what a model says of tokens that something else sampled, with the trainer's own faults."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reweigh.doctor.inject.decoder import Decoder, Options
from reweigh.doctor.inject.sampling import logged_log_probs, processed
from reweigh.doctor.inject.specs import EngineSpec, TrainerSpec
from reweigh.probe.scorer import entropy, log_softmax, nucleus

# Scale of weights that nothing has trained.
_UNTRAINED = 0.02
_PADDING_SEED = 7


@dataclass(frozen=True)
class Row:
    """Tokens to score, after their prompt."""

    prompt: tuple[int, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Score:
    """Nats, a value a token: log-probs, and the entropy of the distribution that they are of."""

    log_pi: list[float]
    entropy: list[float]


@torch.inference_mode()
def score(model: Decoder, rows: Sequence[Row], spec: TrainerSpec) -> list[Score]:
    """Score each row. With boundaries in place packed rows are computed as rows of their own, which is the same."""
    leaks = not (spec.pack_mask and spec.pack_positions)
    size = spec.pack if leaks else 1
    packs = [rows[i : i + size] for i in range(0, len(rows), size)]
    scores: list[Score] = []
    batch = spec.batch_size if leaks else spec.batch_size * spec.pack
    for start in range(0, len(packs), batch):
        scores += _batch(model, packs[start : start + batch], spec)
    return scores


@torch.inference_mode()
def prefill(
    model: Decoder, rows: Sequence[Row], spec: EngineSpec, options: Options, batch: int = 32
) -> list[list[float]]:
    """The engine's own log-probs of tokens that it is shown, rather than decoding; its settings as for sampling."""
    found: list[list[float]] = []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        hidden = _hidden(model, [[row] for row in part], TrainerSpec(), options)
        for i, row in enumerate(part):
            n = len(row.ids)
            logits = model.logits(hidden[i, len(row.prompt) - 1 : len(row.prompt) - 1 + n])
            seen = _seen(row, logits.shape[-1]) if spec.repetition_penalty != 1.0 else None
            value, _ = logged_log_probs(logits, processed(logits, seen, spec), torch.tensor(row.ids), spec)
            found.append(value.tolist())
    return found


def _batch(model: Decoder, packs: Sequence[Sequence[Row]], spec: TrainerSpec) -> list[Score]:
    options = Options(dropout=spec.dropout, rope_base=spec.rope_base, rope_scale=spec.rope_scale)
    hidden = _hidden(model, packs, spec, options)
    scores: list[Score] = []
    for i, pack in enumerate(packs):
        start = 0
        for row in pack:
            first, n = start + len(row.prompt) - 1, len(row.ids)
            scores.append(_scored(model, hidden[i, first : first + n], row, spec))
            start += len(row.prompt) + n
    return scores


def _scored(model: Decoder, hidden: Tensor, row: Row, spec: TrainerSpec) -> Score:
    logits = model.logits(hidden)
    if spec.padded_rows:
        logits = torch.cat([logits, hidden.float() @ _untrained(model, spec.padded_rows).T], dim=-1)
    log_p = log_softmax(logits, spec.temperature)
    ids = torch.tensor(row.ids, dtype=torch.int64)[:, None]
    if spec.top_p < 1:
        inside = nucleus(log_p, spec.top_p).scatter(-1, ids, True)
        log_p = torch.log_softmax(log_p.masked_fill(~inside, -torch.inf), dim=-1)
    return Score(log_p.gather(-1, ids).squeeze(-1).tolist(), entropy(log_p).tolist())


def _hidden(model: Decoder, packs: Sequence[Sequence[Row]], spec: TrainerSpec, options: Options) -> Tensor:
    width = max(sum(len(row.prompt) + len(row.ids) for row in pack) for pack in packs)
    ids = torch.zeros(len(packs), width, dtype=torch.int64)
    positions = torch.arange(width).repeat(len(packs), 1)
    owner = torch.zeros(len(packs), width, dtype=torch.int64)
    for i, pack in enumerate(packs):
        start = 0
        for j, row in enumerate(pack):
            whole = [*row.prompt, *row.ids]
            end = start + len(whole)
            ids[i, start:end] = torch.tensor(whole)
            owner[i, start:end] = j
            if spec.pack_positions:
                positions[i, start:] = torch.arange(width - start)
            positions[i, start + len(row.prompt) :] += spec.position_gap
            start = end
    mask = None
    if len(packs[0]) > 1 and spec.pack_mask:
        causal = torch.ones(width, width, dtype=torch.bool).tril()
        mask = (causal & (owner[:, :, None] == owner[:, None, :]))[:, None]
    return model(ids, positions, mask, None, options)


def _seen(row: Row, size: int) -> Tensor:
    seen = torch.zeros(len(row.ids), size, dtype=torch.bool)
    seen[:, torch.tensor(row.prompt)] = True
    for t in range(1, len(row.ids)):
        seen[t:, row.ids[t - 1]] = True
    return seen


def _untrained(model: Decoder, share: float) -> Tensor:
    shape = model.shape
    count = max(1, round(share * shape.vocab_size))
    return torch.randn(count, shape.width, generator=torch.Generator().manual_seed(_PADDING_SEED)) * _UNTRAINED
