"""TRL: a `GRPOTrainer` that multiplies its loss by the weights of any estimator, logs raw ratios and keeps records."""
# pyright: reportPrivateImportUsage=false, reportOptionalMemberAccess=false

import copy
import logging
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from reweigh.batch import Batch
from reweigh.estimators import Estimator
from reweigh.trainers.capture import Capture, prompt_id
from reweigh.trainers.seen import PREFIX, Measuring, Seen, factor, hold, refuse_centred, wide
from reweigh.trainers.versions import failed, is_known, require

# TRL exports its names lazily, and a trainer has its model once it is made.


VERSION = require("trl")

_LOG = logging.getLogger("reweigh")


_LOGGED = "sampling/importance_sampling_ratio/"
_NEEDED = ("old_per_token_logps", "sampling_per_token_logps", "importance_sampling_ratio", "completion_mask")


class CorrectedGRPOTrainer(GRPOTrainer):
    """TRL's `GRPOTrainer` with `loss_t <- w_t loss_t`, w from an estimator of `pi_old / mu`, detached.

    Everything else is TRL's: loss types, clip, KL, groups, `steps_per_generation`, `num_iterations`. `mu` is what
    sampled: vLLM in server or colocate mode, or a `rollout_func` that returns `logprobs`, with vLLM or without.
    `pi_old` is the trainer's forward before the first update on the batch. With a correction the options
    `vllm_importance_sampling_*` have no effect; `sampling/importance_sampling_ratio/*` are of what is multiplied in.
    Rejected tokens stay in the denominator, as TRL's own do. With several processes the weights are computed on the
    gathered batch, so that an estimator that reads the batch, or each prompt's group, does not depend on their number.

    With a version of TRL that is not known, and where Unsloth has been imported, the first step computes its loss three
    more times, without gradients, with other weights: a loss that does not follow them stops the run.

    Args:
        args: as of `GRPOTrainer`, as are `kwargs`.
        correction: the estimator; None leaves the ratio of `vllm_importance_sampling_mode` in place, and measures.
            Log-probs are at the trainer's `temperature`; a `rollout_func` must return those that were sampled from.
        capture: where to write records of what was sampled; None writes none. Which weights sampled is recorded where
            TRL hands them to vLLM, and where a `rollout_func` returns `versions`: a step a response, or one a token.
        check: on the first batch, raise if log-probs cannot be log-probs; later a token without a finite log-prob has
            weight 0 and is counted (`reweigh/token/dropped`).
        kwargs: passed on.

    Raises:
        ValueError: nothing tells the sampler's log-probs; `loss_type="vespo"`, whose kernel takes the ratio; or
            Unsloth has put its own trainer in TRL's place, which never reads the weights.
        UnknownVersionError: another version of TRL, and weights that do not arrive.

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
        _refuse_unsloth()
        refuse_centred("CorrectedGRPOTrainer", correction)
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
        _warn_of_support(self.args, correction is not None)
        self._vllm_samples, self._unchecked = self.use_vllm, check
        self._unproven = not is_known("trl", VERSION) or "unsloth" in sys.modules
        self._versions: Any = None
        self._seen: dict[str, Seen] = {}
        self._measuring = Measuring()

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
        inner = self.rollout_func
        self.rollout_func = None if inner is None else self._noted(inner)
        try:
            with self._ratio_enters(False):
                return super()._generate(prompts)
        finally:
            self.rollout_func = inner

    def _noted(self, rollout: Callable[..., Any]) -> Callable[..., Any]:
        """Keep what a rollout says of the weights that sampled."""

        def noted(*args: Any) -> Any:
            made = rollout(*args)
            self._versions = made.get("versions")
            size = len(made.get("completion_ids", ()))
            if self._versions is not None and len(self._versions) != size:
                raise ValueError(
                    f"CorrectedGRPOTrainer: rollout_func returned versions of {len(self._versions)} responses for "
                    f"{size}\nhint: one number a response, the step whose weights sampled it, or a list of one a token."
                )
            return made

        return noted

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Compute TRL's loss, multiplied by the weights."""
        with self._ratio_enters(True):
            if self._unproven and self.correction is not None and self.model.training:
                self._prove(model, inputs)
            return super().compute_loss(model, inputs, *args, **kwargs)

    def _prove(self, model: Any, inputs: dict[str, Any]) -> None:
        """Raise unless the loss follows the weights: by twice as much when they are twice as large.

        Advantages are 1 meanwhile, so that there is a loss to see; what it adds to metrics goes to a copy. Processes
        agree on whether it has been shown, as a model in shards is computed by all of them or none.
        """
        ratio = inputs["importance_sampling_ratio"]
        spread = 0.5 + torch.rand(ratio.shape, generator=torch.Generator().manual_seed(0)).to(ratio)
        stand_in = copy.copy(self)
        stand_in._metrics = copy.deepcopy(self._metrics)
        device, losses = self.accelerator.device, []
        for scale in (0.0, 1.0, 2.0):
            changed = {"importance_sampling_ratio": scale * spread, "advantages": torch.ones_like(inputs["advantages"])}
            devices = [device] if device.type == "cuda" else []
            with torch.no_grad(), torch.random.fork_rng(devices):  # the same dropout each time
                torch.manual_seed(0)
                losses.append(super(CorrectedGRPOTrainer, stand_in).compute_loss(model, inputs | changed).float())
        none, once, twice = losses
        moves = (once - none).abs() > 1e-6 * (1 + none.abs())
        follows = (twice - none - 2 * (once - none)).abs() <= 0.02 * (once - none).abs()
        counts = (inputs["completion_mask"] * inputs.get("tool_mask", 1)).any()
        told: Any = self.accelerator.gather(torch.stack([counts, moves & follows]).to(device)[None])
        counted, proven = told[:, 0], told[:, 1]
        if bool((counted & ~proven).any()):
            numbers = ", ".join(f"{x.item():.6g}" for x in losses)
            raise failed(
                "trl",
                VERSION,
                f"the loss does not follow the weights, which were 0, u and 2 u: it was {numbers}",
            )
        self._unproven = not bool(proven.any())

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        self._versions = None
        with self._ratio_enters(True):
            output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        absent = [name for name in _NEEDED if output.get(name) is None]
        if absent:
            raise failed("trl", VERSION, f"what its batches held is not there: {', '.join(absent)}")
        mode, rank = "train" if self.model.training else "eval", self.accelerator.process_index
        per_prompt = self.num_generations if mode == "train" else self.num_generations_eval
        batch = self._whole_batch(output, int(per_prompt or 1))
        weights = None if self.correction is None else hold(self.correction(batch))
        self._measuring(lambda: self._see(mode, Seen.of(batch, weights)), None)
        size, width = output["completion_ids"].shape
        mine = slice(rank * size, (rank + 1) * size)
        if weights is not None:
            ratio = factor(weights)
            output["importance_sampling_ratio"] = ratio[mine, :width]
            live = ratio[batch.layout.mask]
            ends = (live.min(), live.mean(), live.max()) if live.numel() else (ratio.new_zeros(()),) * 3
            for name, value in zip(("min", "mean", "max"), ends, strict=True):
                self._metrics[mode][_LOGGED + name][-1] = value.item()
        capture = self.capture
        if capture is not None and mode == "train" and capture.wants(self.state.global_step):
            # what is written is put together of the batch, which another version may hold otherwise
            self._measuring(lambda: self._write(capture, batch, output, mine), None)
        if self._unchecked:  # after it is written: what stops the run is in the record
            batch.check()
            self._unchecked = False
        return output

    def _see(self, mode: str, seen: Seen) -> None:
        self._seen[mode] = self._seen[mode] + seen if mode in self._seen else seen

    def _whole_batch(self, output: dict[str, Any], per_prompt: int) -> Batch:
        """Gather the batch of all processes; each has whole rows, of its own width, in the order of ranks."""
        mask = output["completion_mask"] * output.get("tool_mask", 1)
        fields = (output["old_per_token_logps"], output["sampling_per_token_logps"], mask)
        log_pi, log_mu, mask = (self._gathered(x) for x in fields)
        advantage: Any = self.accelerator.gather(output["advantages"])
        group = torch.arange(len(mask), device=mask.device) // per_prompt
        return Batch.padded(wide(log_pi), wide(log_mu), mask, advantage=advantage, group=group, check=False)

    def _gathered(self, x: Tensor) -> Tensor:
        whole: Any = self.accelerator.gather(self.accelerator.pad_across_processes(x, dim=1))
        return whole

    def _write(self, capture: Capture, batch: Batch, output: dict[str, Any], mine: slice) -> None:
        size, width = output["completion_ids"].shape
        given = batch.layout.mask if batch.dropped is None else batch.layout.mask | batch.dropped
        own = Batch.padded(
            *(x[mine, :width] for x in (batch.log_pi, batch.log_mu, given)),
            advantage=None if batch.advantage is None else batch.advantage[mine, :width],
            check=False,
        )
        prompts = [ids[live.bool()] for ids, live in zip(output["prompt_ids"], output["prompt_mask"], strict=True)]
        known = {"trainer": "trl", "trainer_version": VERSION, "temperature": float(self.temperature)}
        info = replace(capture.info, **(known | {k: v for k, v in capture.info.to_dict().items() if k in known}))
        columns: dict[str, Any] = {} if (sampled := self._sampled_by(size, width)) is None else {"versions": sampled}
        replace(capture, info=info).write(
            own,
            self.state.global_step,
            self.accelerator.process_index,
            prompt_id=[prompt_id(ids) for ids in prompts],
            prompt_length=[len(ids) for ids in prompts],
            token_ids=list(output["completion_ids"]),
            trainer_version=[self.state.global_step] * size,
            **columns,
        )

    def _sampled_by(self, size: int, width: int) -> list[Tensor] | None:
        """Give the step whose weights sampled each token, a row a response; None if nobody says it."""
        given = self._versions
        if given is None:
            loaded = getattr(self, "_last_loaded_step", None) if self._vllm_samples and not self.rollout_func else None
            return None if loaded is None else [torch.full((width,), int(loaded))] * size
        rows = [torch.as_tensor(row) for row in given]
        return [
            row.expand(width) if row.dim() == 0 else torch.nn.functional.pad(row[:width], (0, width - len(row[:width])))
            for row in rows
        ]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add raw ratios and weights since the last call to what TRL sends to its loggers, under `reweigh/`."""
        mode = "train" if self.model.training else "eval"
        prefix = PREFIX if mode == "train" else f"eval_{PREFIX}"
        if (seen := self._seen.pop(mode, None)) is not None:
            logs.update(self._measuring(lambda: seen.flat(prefix), {}))
        if self._measuring.failed:
            logs[f"{prefix}unmeasured"] = float(self._measuring.failed)
        if self.capture is not None and mode == "train":
            logs.update(self.capture.metrics(prefix))
        super().log(logs, start_time)


def _warn_of_support(args: Any, corrected: bool) -> None:
    """Say once what truncated sampling does to ratios of a trainer that does not know the sampler's support."""
    given: dict[str, float | None] = {name: getattr(args, name, None) for name in ("top_p", "top_k", "min_p")}
    acting = [f"{k}={x:g}" for k, x in given.items() if x is not None and (x < 1 if k == "top_p" else x > 0)]
    if acting:
        _LOG.warning(
            "CorrectedGRPOTrainer: %s: what is sampled from is renormalised over fewer tokens, and TRL's forward is of "
            "all: each %s is too small by the mass that was kept, if the sampler's log-probs are of what it sampled "
            "from. TRL does not hand on the sampler's support. Sample from the whole vocabulary: top_p=1, top_k=0, "
            "min_p=None.",
            ", ".join(acting),
            "weight" if corrected else "ratio",
        )


def _refuse_unsloth() -> None:
    """Raise if a class of Unsloth stood in the place of TRL's trainer when this module was imported."""
    for base in CorrectedGRPOTrainer.__mro__[1:]:
        if "unsloth" in f"{base.__module__}.{base.__name__}".lower():
            raise ValueError(
                f"CorrectedGRPOTrainer: Unsloth has put {base.__name__} in the place of TRL's GRPOTrainer; it computes "
                "a loss of its own and never reads the weights\n"
                "hint: train without importing unsloth, or with GRPOTrainer and Unsloth's own "
                "vllm_importance_sampling_mode; `reweigh explain --from unsloth` says what that computes."
            )
