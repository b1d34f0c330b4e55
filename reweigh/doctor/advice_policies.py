"""Advice on a sampler that is a proper policy, but another one than the trainer's because of how it is set up."""

from reweigh.doctor.advice_form import EAGER, PLAIN_BATCH, RATE_ZERO, RESCORE_TWICE, Advice
from reweigh.doctor.diagnosis import CauseId

SETTINGS: dict[CauseId, Advice] = {
    "trainer_temperature": Advice(
        title="the trainer leaves out the temperature",
        meaning="The engine samples at a temperature that the trainer does not divide its logits by, or not the same.",
        rules_out="Sampling was at temperature 1, or unlikely tokens have log ratios of both signs alike.",
        fix={
            "general": "Divide the trainer's logits by the sampling temperature before the softmax, once.",
            "trl": "temperature= of the trainer's config goes to both sides; do not set it on the server alone.",
            "verl": "actor_rollout_ref.rollout.temperature goes to both sides; do not set it in engine_kwargs.",
            "slime": "--rollout-temperature goes to both sides; do not override it in a custom rollout function.",
            "prime-rl": "Set temperature in the orchestrator's sampling, not in extra_body.",
            "skyrl": "trainer.algorithm.temperature must equal generator.sampling_params.temperature; over HTTP "
            "endpoints it has to be set by hand.",
            "nemo-rl": "Set policy.generation.temperature only.",
        },
        experiment=PLAIN_BATCH,
        needs=("entropy_pi", "entropy_mu"),
    ),
    "repetition_penalty": Advice(
        title="a repetition or presence penalty in the engine",
        meaning="The engine lowers tokens that have occurred, and the trainer does not know of it.",
        rules_out="Tokens that have occurred before and new ones have the same mean log ratio.",
        fix={
            "general": "Set every penalty to its neutral value by hand: a model's generation_config.json may set one.",
            "vllm": "--generation-config vllm, and repetition_penalty=1.0 in every request.",
            "sglang": "--sampling-defaults openai, and repetition_penalty=1.0 in every request.",
            "trl": "repetition_penalty=1.0, and nothing in generation_kwargs.",
            "verl": "Its agent loop sends 1.0; look for a penalty in your own loop and in engine_kwargs.",
            "prime-rl": "Leave repetition_penalty out of the extra_body of the orchestrator's sampling.",
            "skyrl": "Leave repetition_penalty out of generator.sampling_params.additional_kwargs.",
            "nemo-rl": "policy.generation.vllm_kwargs.generation_config=vllm",
        },
        experiment=PLAIN_BATCH,
        needs=("token_ids",),
    ),
    "template_prefix": Advice(
        title="the two sides see another prompt",
        meaning="Chat template, first token or system prompt differ, so that the first tokens are the worst.",
        rules_out="The gap at the first tokens of a response is that of later ones of like probability.",
        fix={
            "general": "Print the ids that each side has before the response, and make them equal.",
            "vllm": "Send token ids as the prompt; or compare --chat-template with the tokenizer's own.",
            "trl": "chat_template_kwargs must reach both sides; a server with its own --chat-template does not know.",
            "verl": "Check actor_rollout_ref.rollout.multi_turn.use_inference_chat_template.",
            "slime": "Check --apply-chat-template and --apply-chat-template-kwargs.",
            "prime-rl": "Check orchestrator.renderer against inference.vllm.chat_template.",
            "skyrl": "Check generator.chat_template and generator.chat_template_kwargs.",
            "nemo-rl": "Check policy.tokenizer.chat_template_kwargs.",
        },
        experiment="Render one prompt on both sides and compare the ids.",
        needs=("prompt_length", "token_ids", "log_mu_prefill"),
    ),
    "packing_leak": Advice(
        title="packed sequences see each other",
        meaning="Rows packed into one forward pass share attention or state, so that only the first is clean.",
        rules_out="The first sequence of a packed row has the gap of the others.",
        fix={
            "general": "Pass sequence boundaries (cu_seqlens) and positions that start at 0 to every layer, the "
            "linear-attention ones too; or switch packing off.",
            "trl": "The asynchronous trainer packs; GRPOTrainer pads, which cannot leak.",
            "verl": "actor_rollout_ref.model.use_remove_padding=False for a test.",
            "skyrl": "trainer.remove_microbatch_padding=false for a test.",
            "nemo-rl": "policy.sequence_packing.enabled=false for a test.",
        },
        experiment="Score one batch with packing and one row at a time, and compare log_pi.",
        needs=("pack_index", "log_pi_repeat"),
    ),
    "position_encoding": Advice(
        title="positions are encoded in another way",
        meaning="Rotary base, its scaling factor, a window or attention sinks differ between trainer and engine.",
        rules_out="The gap does not change with the position in the context, at like probability.",
        fix={
            "general": "Compare rope parameters, sliding window and sinks that each side has loaded, layer by layer.",
            "vllm": "Check --hf-overrides and the model's rope parameters; --max-model-len may switch scaling on.",
            "prime-rl": "Check inference.vllm.rope_scaling against the trainer's model.",
        },
        experiment="Score one long text on both sides and plot the gap against the position.",
        needs=("prompt_length", "log_pi_repeat", "log_mu_prefill"),
    ),
    "dropout": Advice(
        title="dropout is on in the trainer",
        meaning="The trainer scores in training mode, so that each pass is of another random network.",
        rules_out="Two passes of the trainer over the same tokens agree.",
        fix={
            "general": "Set every dropout of the model and of adapters to 0, or score in evaluation mode.",
            "trl": "disable_dropout=True, and lora_dropout=0 in the adapter's config.",
            "verl": "actor_rollout_ref.model.override_config.attention_dropout=0., or lora dropout 0.",
            "slime": "--attention-dropout 0.0 --hidden-dropout 0.0 (Megatron's defaults are 0.1).",
            "skyrl": "Set dropout of trainer.policy.model.lora to 0.",
            "nemo-rl": "Set dropout of the LoRA config to 0.0; check hidden_dropout and attention_dropout.",
        },
        experiment=RESCORE_TWICE,
        needs=("log_pi_repeat",),
    ),
    "moe_routing": Advice(
        title="experts are chosen in another way",
        meaning="A router near a tie sends tokens to other experts in the engine than in the trainer.",
        rules_out="The model has no experts, or the gap has no bursts and no heavy tail for its probabilities.",
        fix={
            "general": "Replay the engine's routes in the trainer, or mask tokens with ratios outside [0.5, 5].",
            "vllm": "--enable-return-routed-experts returns the routes.",
            "verl": "actor_rollout_ref.actor.router_replay.mode=R3 "
            "actor_rollout_ref.rollout.enable_rollout_routing_replay=True",
            "slime": "--use-rollout-routing-replay",
            "prime-rl": "trainer.enable_router_replay = true",
            "skyrl": "generator.inference_engine.enable_return_routed_experts=true "
            "trainer.policy.megatron_config.moe_enable_routing_replay=true",
            "nemo-rl": "policy.router_replay.enabled=true",
        },
        experiment="Replay the routes on one batch, and compare the gap.",
        needs=("log_pi_repeat", "log_mu_prefill"),
    ),
    "quantised_rollout": Advice(
        title="the engine computes in fewer bits",
        meaning="Weights, activations or the KV cache of the engine are fp8, int8 or less; the trainer's are not.",
        rules_out="The engine runs in the trainer's number type, or the gap is that of such an engine.",
        fix={
            "general": "Expect five to ten times the gap of bf16; truncate token ratios at 2, or quantise both sides.",
            "vllm": "Leave --quantization out and set --kv-cache-dtype auto for a test.",
            "sglang": "Leave --quantization out and set --kv-cache-dtype auto for a test.",
            "verl": "actor_rollout_ref.rollout.quantization=null for a test.",
            "slime": "Leave --sglang-kv-cache-dtype out for a test.",
            "prime-rl": "Leave inference.vllm.quantization out for a test.",
            "skyrl": "Leave quantization out of generator.inference_engine.engine_init_kwargs for a test.",
            "nemo-rl": "policy.generation.vllm_cfg.precision and policy.generation.vllm_cfg.kv_cache_dtype=auto "
            "for a test.",
        },
        experiment="Sample one batch with the engine in bf16 from the same weights, and compare.",
        needs=("log_mu_prefill", "log_pi_repeat"),
    ),
    "engine_decode": Advice(
        title="decoding differs from the engine's own prefill",
        meaning="The same engine gives other log-probs when it scores its tokens as a prompt: kernels, speculation.",
        rules_out="log_mu and log_mu_prefill agree as well as two prefills do.",
        fix={
            "general": "Switch off, one at a time: speculative decoding, captured graphs, cascade or split attention.",
            "vllm": "--enforce-eager; no --speculative-config; disable_cascade_attn=True before cascade attention "
            "was removed (without effect in 0.32).",
            "sglang": "--disable-cuda-graph; no --speculative-algorithm.",
            "verl": "actor_rollout_ref.rollout.enforce_eager=True; with vLLM of 2025 "
            "+actor_rollout_ref.rollout.engine_kwargs.vllm.disable_cascade_attn=True",
            "slime": "--sglang-disable-cuda-graph; no --sglang-speculative-algorithm.",
            "prime-rl": "inference.vllm.enforce_eager = true",
            "skyrl": "generator.inference_engine.enforce_eager=true",
            "nemo-rl": "policy.generation.vllm_cfg.enforce_eager=true",
        },
        experiment=EAGER + " Or score the responses by the engine's prefill.",
        needs=("log_mu_prefill",),
    ),
    "numerics": Advice(
        title="rounding",
        meaning="Both sides compute the same thing with other kernels, batch sizes or number types.",
        rules_out="The gap has structure: by position, lag, step, turn, or a heavy tail for its probabilities.",
        fix={
            "general": "Mostly nothing. To make it smaller: float32 for the last projection, equal micro-batches on "
            "both passes, batch-invariant kernels, fp16 instead of bf16.",
            "vllm": "VLLM_BATCH_INVARIANT=1 makes log-probs independent of the batch.",
            "sglang": "--enable-deterministic-inference",
            "trl": "cast_lm_head_to_fp32=True",
            "slime": "--sglang-enable-deterministic-inference --deterministic-mode",
            "prime-rl": "inference.enable_fp32_lm_head = true",
            "nemo-rl": "policy.logprob_batch_size equal to policy.train_micro_batch_size",
        },
        experiment=RESCORE_TWICE + " " + RATE_ZERO,
        needs=("log_pi_repeat", "log_mu_prefill"),
    ),
    "none": Advice(
        title="no gap",
        meaning="Trainer and engine agree within what a gap has to be to matter.",
        rules_out="The log-probs of both sides come from one array: then they agree whatever is wrong.",
        fix={"general": "Nothing to do. Make sure that log_mu is the engine's and not a copy of log_pi."},
        experiment="",
        needs=("entropy_pi",),
    ),
}
"""Causes in what a program is told to do or in the numbers that it computes with."""
