"""The engine that needs nothing but torch: batched sampling with a key-value cache, in any number format."""

import copy
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from reweigh.probe.engine import SEED_STRIDE, EngineInfo, ForcingEngine, Pass, Sample, SamplingSettings, silent
from reweigh.probe.models import NumberFormat, rope_note
from reweigh.probe.scorer import draw, sampling_log_probs


class TransformersEngine(ForcingEngine):
    """Samples from a `transformers` model on this machine.

    Sequences that end leave their batch. Each sequence has random numbers of its own, so a sample depends on the batch
    it shares only through rounding.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        name: str,
        dtype: NumberFormat,
        end_ids: Sequence[int],
        batch_size: int = 32,
        fp8_cache: bool = False,
        float32_head: bool = False,
        note: str | None = None,
    ) -> None:
        """Wrap a loaded model.

        Args:
            model: in inference mode, on its device.
            name: what to call it in a record.
            dtype: the number format that it was loaded in.
            end_ids: tokens that end a response.
            batch_size: sequences in flight; throughput against memory.
            fp8_cache: keys and values are rounded to float8 (e4m3) as they enter the cache.
            float32_head: the vocabulary layer in float32, whatever the rest is in.
            note: what else sets it apart, for the record.
        """
        self._model = model
        self._name = name
        self._dtype = dtype
        self._end_ids = torch.tensor(list(end_ids), dtype=torch.int64, device=model.device)
        self._batch_size = batch_size
        self._fp8_cache = fp8_cache
        head: Any = model.get_output_embeddings()
        self._head: Any = copy.deepcopy(head).float() if float32_head else None
        self._note = note

    @property
    def info(self) -> EngineInfo:
        """Log-probs are "processed": taken from the very row that the token was drawn from."""
        note = "; ".join(filter(None, (self._note, rope_note(self._model)))) or None
        return EngineInfo("transformers", transformers.__version__, self._name, self._dtype, "processed", note)

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        settings: SamplingSettings,
        on_tokens: Callable[[int], None] = silent,
    ) -> Generator[Sample, None, None]:
        """Draw, a batch of prompts of about one length at a time."""
        jobs = [(prompt, draw) for prompt in range(len(prompts)) for draw in range(settings.n)]
        jobs.sort(key=lambda job: len(prompts[job[0]]))
        for start in range(0, len(jobs), self._batch_size):
            yield from self._batch(jobs[start : start + self._batch_size], prompts, settings, on_tokens)

    def close(self) -> None:
        """Nothing to give back: the model is the caller's."""

    @torch.inference_mode()
    def _batch(
        self,
        jobs: Sequence[tuple[int, int]],
        prompts: Sequence[Sequence[int]],
        settings: SamplingSettings,
        on_tokens: Callable[[int], None],
    ) -> list[Sample]:
        device = self._model.device
        ids, mask = _left_padded([prompts[prompt] for prompt, _ in jobs], device)
        uniform = torch.stack([_uniform(settings, prompt * settings.n + k) for prompt, k in jobs]).to(device)
        cache = self._cache()
        token_ids: list[list[int]] = [[] for _ in jobs]
        log_mu: list[list[float]] = [[] for _ in jobs]
        stopped = [False] * len(jobs)
        live = torch.arange(len(jobs), device=device)  # the job of each row still in flight
        position = mask.cumsum(-1).sub(1).clamp(min=0)
        for t in range(settings.max_tokens):
            logits = self._logits(ids, mask, position, cache)[:, -1]
            log_p = sampling_log_probs(logits, settings.temperature, settings.top_p)
            token = draw(log_p, uniform[live, t])
            chosen = log_p.gather(-1, token[:, None]).squeeze(-1)
            ended = torch.isin(token, self._end_ids)
            rows = zip(live.tolist(), token.tolist(), chosen.tolist(), ended.tolist(), strict=True)
            for job, token_id, value, is_end in rows:
                token_ids[job].append(token_id)
                log_mu[job].append(value)
                stopped[job] = is_end
            on_tokens(len(live))
            going = (~ended).nonzero().squeeze(-1)
            if len(going) == 0:
                break
            if len(going) < len(live):
                cache.batch_select_indices(going)
                live, token, mask, position = live[going], token[going], mask[going], position[going]
            ids = token[:, None]
            mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)
            position = position[:, -1:] + 1
        return [
            Sample(prompt, k, tuple(token_ids[i]), tuple(log_mu[i]), "stop" if stopped[i] else "length")
            for i, (prompt, k) in enumerate(jobs)
        ]

    @property
    def passes(self) -> tuple[Pass, ...]:
        """Both: it does not choose the tokens, so any will do."""
        return "decode", "prefill"

    @torch.inference_mode()
    def force(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        settings: SamplingSettings,
        way: Pass,
        on_tokens: Callable[[int], None] = silent,
    ) -> list[list[float]]:
        """Go the way of sampling with the tokens given: the same batches, the same cache, a token at a time."""
        result: list[list[float]] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for start in range(0, len(order), self._batch_size):
            rows = order[start : start + self._batch_size]
            some = [list(prompts[i]) for i in rows], [list(responses[i]) for i in rows]
            values = self._decoded(*some, settings) if way == "decode" else self._prefilled(*some, settings)
            for i, value in zip(rows, values, strict=True):
                result[i] = value
                on_tokens(len(value))
        return result

    def _decoded(
        self, prompts: list[list[int]], responses: list[list[int]], settings: SamplingSettings
    ) -> list[list[float]]:
        device = self._model.device
        ids, mask = _left_padded(prompts, device)
        position = mask.cumsum(-1).sub(1).clamp(min=0)
        cache = self._cache()
        live = list(range(len(prompts)))
        values: list[list[float]] = [[] for _ in prompts]
        for t in range(max(map(len, responses))):
            if t:  # a response that has ended leaves its batch, as it does in sampling
                going = [k for k, i in enumerate(live) if t < len(responses[i])]
                if len(going) < len(live):
                    kept = torch.tensor(going, device=device)
                    cache.batch_select_indices(kept)
                    mask, position, live = mask[kept], position[kept], [live[k] for k in going]
                ids = torch.tensor([[responses[i][t - 1]] for i in live], device=device)
                mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)
                position = position[:, -1:] + 1
            log_p = sampling_log_probs(
                self._logits(ids, mask, position, cache)[:, -1], settings.temperature, settings.top_p
            )
            for k, i in enumerate(live):
                values[i].append(float(log_p[k, responses[i][t]]))
        return values

    def _prefilled(
        self, prompts: list[list[int]], responses: list[list[int]], settings: SamplingSettings
    ) -> list[list[float]]:
        device = self._model.device
        ids, mask = _left_padded([a + b for a, b in zip(prompts, responses, strict=True)], device)
        position = mask.cumsum(-1).sub(1).clamp(min=0)
        longest = max(map(len, responses))
        logits = self._logits(ids, mask, position, self._cache(), longest + 1)
        values: list[list[float]] = []
        for k, response in enumerate(responses):
            log_p = sampling_log_probs(logits[k, -len(response) - 1 : -1], settings.temperature, settings.top_p)
            values.append(log_p.gather(-1, torch.tensor(response, device=device)[:, None]).squeeze(-1).tolist())
        return values

    def _logits(self, ids: Tensor, mask: Tensor, position: Tensor, cache: DynamicCache, keep: int = 1) -> Tensor:
        given: dict[str, Any] = {"attention_mask": mask, "position_ids": position, "past_key_values": cache}
        if self._head is None:
            return self._model(input_ids=ids, use_cache=True, logits_to_keep=keep, **given).logits
        hidden = self._model.base_model(input_ids=ids, use_cache=True, **given).last_hidden_state
        return self._head(hidden[:, -keep:].float())

    def _cache(self) -> DynamicCache:
        return _Fp8Cache(config=self._model.config) if self._fp8_cache else DynamicCache(config=self._model.config)


class _Fp8Cache(DynamicCache):
    """A cache that holds what float8 can: each entry rounded to e4m3, without a scale, and used as rounded."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Round what enters."""
        return super().update(_fp8(key_states), _fp8(value_states), *args, **kwargs)


def _fp8(x: Tensor) -> Tensor:
    most = torch.finfo(torch.float8_e4m3fn).max
    return x.clamp(-most, most).to(torch.float8_e4m3fn).to(x.dtype)


def _left_padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    # What stands in padding is never attended to, so any valid id will do.
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(list(row))
        mask[i, width - len(row) :] = 1
    return ids.to(device), mask.to(device)


def _uniform(settings: SamplingSettings, sequence: int) -> Tensor:
    generator = torch.Generator().manual_seed(settings.seed * SEED_STRIDE + sequence)
    return torch.rand(settings.max_tokens, generator=generator, dtype=torch.float64)


def end_ids(model: PreTrainedModel) -> list[int]:
    """Tokens that end a response by the model's own settings."""
    ids: int | list[int] | None = model.generation_config.eos_token_id
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else list(ids)
