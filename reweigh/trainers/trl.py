"""TRL: a `GRPOTrainer` that multiplies its loss by the weights of any estimator, logs raw ratios and keeps records."""
# pyright: reportPrivateImportUsage=false, reportOptionalMemberAccess=false

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from reweigh.batch import Batch
from reweigh.estimators import Estimator
from reweigh.trainers.capture import Capture, prompt_id
from reweigh.trainers.seen import PREFIX, Seen, factor, hold, wide
from reweigh.trainers.versions import require

# TRL exports its names lazily, and a trainer has its model once it is made.


VERSION = require("trl")


_LOGGED = "sampling/importance_sampling_ratio/"


class CorrectedGRPOTrainer(GRPOTrainer):
    """TRL's `GRPOTrainer` with `loss_t <- w_t loss_t`, w from an estimator of `pi_old / mu`, detached.

    Everything else is TRL's: loss types, clip, KL, groups, `steps_per_generation`, `num_iterations`. `mu` is what
    sampled: vLLM in server or colocate mode, or a `rollout_func` that returns `logprobs`, with vLLM or without.
    `pi_old` is the trainer's forward before the first update on the batch. With a correction the options
    `vllm_importance_sampling_*` have no effect; `sampling/importance_sampling_ratio/*` are of what is multiplied in.
    Rejected tokens stay in the denominator, as TRL's own do. With several processes the weights are computed on the
    gathered batch, so that an estimator that reads the batch, or each prompt's group, does not depend on their number.

    Args:
        args: as of `GRPOTrainer`, as are `kwargs`.
        correction: the estimator; None leaves the ratio of `vllm_importance_sampling_mode` in place, and measures.
            Log-probs are at the trainer's `temperature`; a `rollout_func` must return those that were sampled from.
        capture: where to write records of what was sampled; None writes none.
        check: on the first batch, raise if log-probs cannot be log-probs; later a token without a finite log-prob has
            weight 0 and is counted (`reweigh/token/dropped`).
        kwargs: passed on.

    Raises:
        ValueError: nothing tells the sampler's log-probs, or `loss_type="vespo"`, whose kernel takes the ratio.

    Also called: `vllm_importance_sampling_mode` (TRL), for four of the estimators.
    """

    def __init__(
        self,
        *args: Any,
        correction: Estimator | None,
        capture: Capture | None = None,
        check: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not self.use_vllm and self.rollout_func is None:
            raise ValueError(
                "CorrectedGRPOTrainer: without vLLM and rollout_func nothing tells the sampler's log-probs\n"
                "hint: set use_vllm=True, or give a rollout_func that returns logprobs."
            )
        if self.loss_type == "vespo":
            raise ValueError(
                "CorrectedGRPOTrainer: loss_type='vespo' takes the ratio inside its kernel, not as a weight\n"
                "hint: use GRPOTrainer for it, or another loss_type with an estimator, such as reweigh.vespo()."
            )
        self.correction, self.capture = correction, capture
        self._vllm_samples, self._unchecked = self.use_vllm, check
        self._seen: dict[str, Seen] = {}

    @contextmanager
    def _ratio_enters(self, enters: bool) -> Generator[None, None, None]:
        """TRL asks two attributes whether to compute `pi_old` and multiply by a ratio, and one also who samples."""
        before = self.use_vllm, self.vllm_importance_sampling_correction
        self.use_vllm, self.vllm_importance_sampling_correction = enters or self._vllm_samples, enters
        try:
            yield
        finally:
            self.use_vllm, self.vllm_importance_sampling_correction = before

    def _generate(self, prompts: Any) -> Any:
        with self._ratio_enters(False):
            return super()._generate(prompts)

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        with self._ratio_enters(True):
            return super()._compute_loss(model, inputs)

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        with self._ratio_enters(True):
            output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        mode, rank = "train" if self.model.training else "eval", self.accelerator.process_index
        per_prompt = self.num_generations if mode == "train" else self.num_generations_eval
        batch = self._whole_batch(output, int(per_prompt or 1))
        if self._unchecked:
            batch.check()
            self._unchecked = False
        weights = None if self.correction is None else hold(self.correction(batch))
        seen = Seen.of(batch, weights)
        self._seen[mode] = self._seen[mode] + seen if mode in self._seen else seen
        size, width = output["completion_ids"].shape
        mine = slice(rank * size, (rank + 1) * size)
        if weights is not None:
            ratio = factor(weights)
            output["importance_sampling_ratio"] = ratio[mine, :width]
            live = ratio[batch.layout.mask]
            ends = (live.min(), live.mean(), live.max()) if live.numel() else (ratio.new_zeros(()),) * 3
            for name, value in zip(("min", "mean", "max"), ends, strict=True):
                self._metrics[mode][_LOGGED + name][-1] = value.item()
        if self.capture is not None and mode == "train" and self.capture.wants(self.state.global_step):
            self._write(self.capture, batch, output, mine)
        return output

    def _whole_batch(self, output: dict[str, Any], per_prompt: int) -> Batch:
        """Gather the batch of all processes; each has whole rows, of its own width, in the order of ranks."""
        mask = output["completion_mask"] * output.get("tool_mask", 1)
        fields = (output["old_per_token_logps"], output["sampling_per_token_logps"], mask)
        log_pi, log_mu, mask = (self._gathered(x) for x in fields)
        advantage: Any = self.accelerator.gather(output["advantages"])
        group = torch.arange(len(mask), device=mask.device) // per_prompt
        return Batch.padded(wide(log_pi), wide(log_mu), mask, advantage=advantage, group=group)

    def _gathered(self, x: Tensor) -> Tensor:
        whole: Any = self.accelerator.gather(self.accelerator.pad_across_processes(x, dim=1))
        return whole

    def _write(self, capture: Capture, batch: Batch, output: dict[str, Any], mine: slice) -> None:
        size, width = output["completion_ids"].shape
        own = Batch.padded(
            *(x[mine, :width] for x in (batch.log_pi, batch.log_mu, batch.layout.mask)),
            advantage=None if batch.advantage is None else batch.advantage[mine, :width],
        )
        prompts = [ids[live.bool()] for ids, live in zip(output["prompt_ids"], output["prompt_mask"], strict=True)]
        known = {"trainer": "trl", "trainer_version": VERSION, "temperature": float(self.temperature)}
        info = replace(capture.info, **(known | {k: v for k, v in capture.info.to_dict().items() if k in known}))
        replace(capture, info=info).write(
            own,
            self.state.global_step,
            self.accelerator.process_index,
            prompt_id=[prompt_id(ids) for ids in prompts],
            prompt_length=[len(ids) for ids in prompts],
            token_ids=list(output["completion_ids"]),
            trainer_version=[self.state.global_step] * size,
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add raw ratios and weights since the last call to what TRL sends to its loggers, under `reweigh/`."""
        mode = "train" if self.model.training else "eval"
        if mode in self._seen:
            logs.update(self._seen.pop(mode).flat(PREFIX if mode == "train" else f"eval_{PREFIX}"))
        super().log(logs, start_time)
