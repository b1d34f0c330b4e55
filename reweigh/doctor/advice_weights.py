"""Advice on an engine that samples from other weights than the trainer has, or from what they left behind."""

from reweigh.doctor.advice_form import RATE_ZERO, RESTART, Advice
from reweigh.doctor.diagnosis import CauseId

WEIGHTS: dict[CauseId, Advice] = {
    "stale_weights": Advice(
        title="the sampler is some updates behind",
        meaning="Responses were sampled by older weights, as asynchronous training does by design.",
        rules_out="The gap of responses sampled by the newest weights is as large.",
        fix={
            "general": "Allow fewer steps of lag, or keep it and correct by a bounded ratio; look at the gap by lag.",
            "trl": "Lower max_staleness or weight_sync_steps of the asynchronous trainer.",
            "verl": "Lower async_training.staleness_threshold.",
            "slime": "--update-weights-interval 1; with --partial-rollout also --mask-offpolicy-in-partial-rollout.",
            "prime-rl": "Lower orchestrator.max_off_policy_steps.",
            "skyrl": "Lower trainer.fully_async.max_staleness_steps.",
            "nemo-rl": "Lower grpo.async_grpo.max_trajectory_age_steps.",
        },
        experiment="Run one step with no lag: wait for the update before sampling.",
        needs=("versions", "trainer_version", "step"),
    ),
    "weight_sync": Advice(
        title="updates do not reach the engine",
        meaning="Weights or an adapter are not delivered, or in part, so that the engine stays where it started.",
        rules_out="The gap goes back to its first level after an engine has been given the newest weights.",
        fix={
            "general": "Compare checksums of tensors on both sides after an update; look for tied heads, adapters and "
            "buffers that are not sent.",
            "vllm": "llm_engine.list_loras() says which adapters are there; sleep level 2 drops the weights, so load "
            "them again after it.",
            "trl": "vllm_enable_sleep_mode=False for a test.",
            "verl": "With LoRA, actor_rollout_ref.rollout.load_format=safetensors is required; merge the adapter for a "
            "test.",
            "slime": "--check-weight-update-equal",
            "prime-rl": "Compare the newest checkpoint with what the server has loaded.",
            "skyrl": "With LoRA on Megatron, merge_lora decides whether adapters or merged weights are sent.",
            "nemo-rl": "Its guide takes a token_mult_prob_error that rises by more than 1 to 2% for this; check that "
            "buffers of the model are sent too.",
        },
        experiment=RESTART + " Or score one batch with the first checkpoint: if that fits log_mu, nothing arrived.",
        needs=("step", "versions", "trainer_version", "log_mu_prefill"),
    ),
    "update_below_precision": Advice(
        title="updates are smaller than the engine can hold",
        meaning="A float32 trainer moves weights by less than half a step of bf16, and the engine rounds it away.",
        rules_out="The engine's weights change with every update, or the trainer's weights are bf16 themselves.",
        fix={
            "general": "Nothing to repair: correct by the ratio, or keep the engine in float32 or fp16, or take "
            "larger and fewer updates. Score with weights rounded to the engine's type to see it.",
            "vllm": "--dtype float32 for a test.",
            "sglang": "--dtype float32 for a test.",
            "verl": "actor_rollout_ref.rollout.dtype=float32 for a test.",
            "skyrl": "generator.inference_engine.model_dtype=float32 for a test.",
            "nemo-rl": "policy.generation.vllm_cfg.precision=float32 for a test.",
        },
        experiment="Score one batch with the trainer's weights rounded to the engine's number type.",
        needs=("step", "versions", "log_pi_repeat"),
    ),
    "stale_kv": Advice(
        title="the cache holds keys of older weights",
        meaning="A prefix cache survives an update of the weights, so that shared prompts are read by old weights.",
        rules_out="Prompts that were seen before an update have the gap of new ones.",
        fix={
            "general": "Empty the engine's cache after every update, and let running requests compute theirs again.",
            "vllm": "Call reset_prefix_cache() after each update, or run without --enable-prefix-caching.",
            "sglang": "Call /flush_cache after each update, or --disable-radix-cache.",
            "verl": "actor_rollout_ref.rollout.enable_prefix_caching=False for a test; keep free_cache_engine=True.",
            "slime": "--sglang-disable-radix-cache for a test; it calls flush_cache on each update.",
            "prime-rl": "inference.vllm.enable_prefix_caching = false for a test.",
            "skyrl": "trainer.fully_async.clear_kv_cache_on_weight_sync=true",
            "nemo-rl": "grpo.async_grpo.recompute_kv_cache_after_weight_updates=true",
        },
        experiment="Run with the prefix cache off. " + RATE_ZERO + " " + RESTART,
        needs=("prompt_id", "prompt_length", "versions", "log_mu_prefill"),
    ),
}
"""Causes in what the engine holds, which a restart from the newest checkpoint would end."""
