"""Advice on faults of bookkeeping: the numbers are not those of the sampled token."""

from reweigh.doctor.advice_form import PLAIN_BATCH, PREFILL, RATE_ZERO, Advice
from reweigh.doctor.diagnosis import CauseId

STRUCTURE: dict[CauseId, Advice] = {
    "placeholder_logprob": Advice(
        title="a placeholder stands where a log-prob should be",
        meaning="Counted tokens carry exactly 0, 1, -9999 or another stand-in as log_mu, because nobody sampled them.",
        rules_out="Tokens with such a value have a log_pi next to it: the model is just certain of them.",
        fix={
            "general": "Set the loss mask to 0 on tokens that the code added (forced end of sequence, tool marks). "
            "Keep an end of sequence that the model sampled, with its own log-prob.",
            "vllm": "Ask for logprobs=0 or 1 on every request; -9999.0 in a reply is a floor, not a log-prob.",
            "trl": "Return NaN for a token that cannot be scored (1.16 gives it the ratio 1), or mask it.",
            "verl": "Set response_mask to 0 where the agent loop appends tokens that the model did not sample.",
            "slime": "Set loss_mask to 0 on such tokens; rollout_log_probs must be as long as the response.",
            "skyrl": "Set loss_masks to 0 on a synthetic end of sequence, whose rollout log-prob is 0.",
        },
        experiment=PREFILL,
        needs=("token_ids", "log_mu_prefill", "finish_reason"),
    ),
    "unmasked_context": Advice(
        title="tool or prompt tokens are counted",
        meaning="Tokens that came from the environment are in the loss as if the policy had sampled them.",
        rules_out="The runs of odd values do not start and end where turns do.",
        fix={
            "general": "Give tool results, observations and the prompt a loss mask of 0 in the rollout code.",
            "trl": "Return env_mask from rollout_func: 1 for tokens of the model, 0 for those of tools.",
            "verl": "In an agent loop, set response_mask to 0 on tool and user tokens.",
            "slime": "Set loss_mask of each Sample to 0 on observations; check --loss-mask-type for multi-turn data.",
            "skyrl": "Set loss_masks to 0 on observations in the generator's output.",
            "nemo-rl": "Set token_loss_mask to 0 on every message whose role is not the assistant.",
        },
        experiment="Print ten responses with their masked-in tokens in colour, and read them.",
        needs=("turns", "token_ids", "text"),
    ),
    "retokenisation": Advice(
        title="the trainer scored other tokens than were sampled",
        meaning="Text was decoded and encoded again on the way, and some of it came back as other tokens.",
        rules_out="Token ids of both sides are equal, one by one.",
        fix={
            "general": "Pass token ids from the engine to the trainer, all the way; never encode the text again.",
            "vllm": "Set return_token_ids=true in requests to the server, and train on those ids.",
            "sglang": "Send input_ids and take the ids out of meta_info.output_token_logprobs.",
            "trl": "Return prompt_ids and completion_ids from rollout_func as the engine gave them.",
            "verl": "Use an agent loop that keeps token ids; "
            "actor_rollout_ref.rollout.multi_turn.tokenization_sanity_check_mode=strict reports drift.",
        },
        experiment="Compare the ids that the engine returned with those that the trainer scored.",
        needs=("token_ids", "text", "log_mu_prefill"),
    ),
    "shift": Advice(
        title="the two log-probs are off by one position",
        meaning="log_mu of a token stands beside log_pi of its neighbour, in all rows or in some.",
        rules_out="log_pi goes together with log_mu of the same position at least as well as of the next.",
        fix={
            "general": "The logits at position t are of token t + 1: check the slice logits[:, :-1] against "
            "labels[:, 1:], and the padding side of both arrays.",
            "nemo-rl": "Compare [:, 1:] of generation_logprobs with [:, 1:] of prev_logprobs: index 0 is a dummy.",
            "prime-rl": "In token exports, index 0 of a sequence is a dummy for both log-probs.",
        },
        experiment="Correlate log_pi with log_mu moved by -1, 0 and +1 on ten responses.",
        needs=("token_ids", "log_mu_prefill"),
    ),
    "wrong_token": Advice(
        title="log_mu is of another token, mostly the likeliest one",
        meaning="The reader took the first entry of the engine's list, which is not always the sampled token.",
        rules_out="Some log_mu lie far below what the likeliest token of any distribution can have.",
        fix={
            "general": "Look the sampled id up in the list of log-probs; do not take its first entry.",
            "vllm": "Take output.logprobs[t][token_ids[t]].logprob, not the first value of the dict.",
            "sglang": "Take meta_info.output_token_logprobs, not output_top_logprobs.",
        },
        experiment=PREFILL,
        needs=("token_ids", "log_mu_prefill"),
    ),
}
"""Causes that are exact: with the columns there, they can be seen in the rows."""

NORMALISATION: dict[CauseId, Advice] = {
    "raw_logprobs": Advice(
        title="the engine logs before temperature",
        meaning="log_mu is of the model's own distribution, but sampling was from another one: temperature, penalties.",
        rules_out="The mean ratio is 1 within its interval, or sampling was at temperature 1 without penalties.",
        fix={
            "general": "Have the engine log what it samples from, or sample at temperature 1 without penalties.",
            "vllm": "--logprobs-mode processed_logprobs (logprobs_mode= in the engine arguments); raw_logprobs is "
            "the default.",
            "sglang": "Leave SGLANG_RETURN_ORIGINAL_LOGPROB unset: set, it logs before temperature.",
            "trl": "Start the server with --logprobs-mode processed_logprobs, or use vllm_mode=colocate.",
            "verl": "actor_rollout_ref.rollout.logprobs_mode=processed_logprobs",
            "slime": "Leave SGLANG_RETURN_ORIGINAL_LOGPROB unset for the engines.",
            "prime-rl": "Leave the inference server at its own default, processed_logprobs.",
            "skyrl": "generator.inference_engine.engine_init_kwargs.logprobs_mode=processed_logprobs",
            "nemo-rl": "policy.generation.vllm_cfg.logprobs_mode=processed_logprobs",
        },
        experiment=PLAIN_BATCH,
        needs=("log_mu_prefill", "entropy_mu"),
    ),
    "truncated_sampling": Advice(
        title="top-p, top-k or min-p on one side only",
        meaning="The engine's log-probs are of the truncated distribution, the trainer's of the whole one.",
        rules_out="Log ratios above 0 are as common as those below, or sampling used no truncation.",
        fix={
            "general": "Sample with top-p 1, top-k off, min-p 0; or apply the same set of kept tokens in the trainer.",
            "vllm": "top_p=1, top_k=-1, min_p=0 in every request, and --generation-config vllm so that the model's "
            "own file does not set them; from 0.28 --return-sampling-mask returns the kept set.",
            "sglang": "top_p=1, top_k=-1, min_p=0 in every request; --sampling-defaults openai.",
            "trl": "top_p=1.0, top_k=0, min_p=None in the trainer's config.",
            "verl": "actor_rollout_ref.rollout.top_p=1 actor_rollout_ref.rollout.top_k=-1",
            "slime": "--rollout-top-p 1.0 --rollout-top-k -1",
            "prime-rl": "Leave top_p, top_k and min_p out of the extra_body of the orchestrator's sampling.",
            "skyrl": "generator.sampling_params.top_p=1.0 generator.sampling_params.top_k=-1 "
            "generator.sampling_params.min_p=0.0",
            "nemo-rl": "policy.generation.top_p=1.0 policy.generation.top_k=null",
        },
        experiment=PLAIN_BATCH,
        needs=("log_mu_prefill", "entropy_mu"),
    ),
    "vocab_padding": Advice(
        title="one side normalises over more ids than exist",
        meaning="The trainer's softmax runs over padded rows of the vocabulary, which takes mass from every token.",
        rules_out="The log ratio varies from token to token, or is 0 on tokens that are certain.",
        fix={
            "general": "Cut the logits to the tokenizer's true size before the softmax, on both sides.",
        },
        experiment="Compare the width of the logits on both sides with the size of the tokenizer.",
        needs=("token_ids",),
    ),
    "both_raw": Advice(
        title="both sides log before temperature or truncation",
        meaning="The log ratio is near 0, yet the tokens were sampled from another distribution than either logs.",
        rules_out="The mean of -log_pi equals the mean entropy of the trainer's distribution on the same tokens.",
        fix={
            "general": "Sample at temperature 1 and top-p 1; or apply both in the engine's log-probs and the trainer.",
            "vllm": "--logprobs-mode processed_logprobs, and divide the trainer's logits by the same temperature.",
            "sglang": "Leave SGLANG_RETURN_ORIGINAL_LOGPROB unset, and divide the trainer's logits likewise.",
            "trl": "temperature=1.0, top_p=1.0, top_k=0 in the trainer's config.",
            "verl": "actor_rollout_ref.rollout.temperature=1.0 actor_rollout_ref.rollout.top_p=1",
            "slime": "--rollout-temperature 1 --rollout-top-p 1.0 --rollout-top-k -1",
            "prime-rl": "Set temperature = 1.0 in the orchestrator's sampling.",
            "skyrl": "generator.sampling_params.temperature=1.0 generator.sampling_params.top_p=1.0",
            "nemo-rl": "policy.generation.temperature=1.0 policy.generation.top_p=1.0",
        },
        experiment=PLAIN_BATCH + " " + RATE_ZERO,
        needs=("entropy_pi", "entropy_mu"),
    ),
}
"""Causes after which the mean ratio is not 1, or after which it is for the wrong reason."""
