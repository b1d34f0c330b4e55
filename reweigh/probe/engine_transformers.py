"""The engine that needs nothing but torch: batched sampling with a key-value cache, in any number format."""

from collections.abc import Callable, Generator, Sequence

import torch
import transformers
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from reweigh.probe.engine import SEED_STRIDE, Engine, EngineInfo, Sample, SamplingSettings, silent
from reweigh.probe.models import NumberFormat, rope_note
from reweigh.probe.scorer import draw, sampling_log_probs


class TransformersEngine(Engine):
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
        support: bool = False,
    ) -> None:
        """Wrap a loaded model.

        Args:
            model: in inference mode, on its device.
            name: what to call it in a record.
            dtype: the number format that it was loaded in.
            end_ids: tokens that end a response.
            batch_size: sequences in flight; throughput against memory.
            support: also give what could have been drawn at each token, where top-p leaves any out.
        """
        self._model = model
        self._name = name
        self._dtype = dtype
        self._end_ids = torch.tensor(list(end_ids), dtype=torch.int64, device=model.device)
        self._batch_size = batch_size
        self._support = support

    @property
    def info(self) -> EngineInfo:
        """Log-probs are "processed": taken from the very row that the token was drawn from."""
        note = rope_note(self._model)
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
        cache = DynamicCache(config=self._model.config)
        token_ids: list[list[int]] = [[] for _ in jobs]
        log_mu: list[list[float]] = [[] for _ in jobs]
        support: list[list[tuple[int, ...]]] = [[] for _ in jobs]
        keeps = self._support and settings.top_p < 1
        stopped = [False] * len(jobs)
        live = torch.arange(len(jobs), device=device)  # the job of each row still in flight
        position = mask.cumsum(-1).sub(1).clamp(min=0)
        for t in range(settings.max_tokens):
            logits = self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            log_p = sampling_log_probs(logits, settings.temperature, settings.top_p)
            token = draw(log_p, uniform[live, t])
            chosen = log_p.gather(-1, token[:, None]).squeeze(-1)
            ended = torch.isin(token, self._end_ids)
            rows = zip(live.tolist(), token.tolist(), chosen.tolist(), ended.tolist(), strict=True)
            for job, token_id, value, is_end in rows:
                token_ids[job].append(token_id)
                log_mu[job].append(value)
                stopped[job] = is_end
            if keeps:
                for job, row in zip(live.tolist(), log_p.isfinite(), strict=True):
                    support[job].append(tuple(row.nonzero().squeeze(-1).tolist()))
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
            Sample(
                prompt,
                k,
                tuple(token_ids[i]),
                tuple(log_mu[i]),
                "stop" if stopped[i] else "length",
                tuple(support[i]) if keeps else None,
            )
            for i, (prompt, k) in enumerate(jobs)
        ]


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
