"""Tell what is not of the frameworks that are known: runs that sample nothing, and programs of others."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

from reweigh.rosetta.plan import RefusedError
from reweigh.rosetta.sources import Source

_PREFERENCE = r"dpo|ipo|kto|orpo|cpo|simpo|bco|apo"
_KINDS = {
    "sft": "an SFT run: it learns from text that is given",
    "preference": "a preference run: it learns from pairs or labels that are given",
    "reward": "a reward model's run: it learns from labels that are given",
    "pretraining": "a run of pretraining: it learns from text that is given",
    "sft or preference": "an SFT or preference run: it learns from text or pairs that are given",
}
# What a script or a Python file starts, in the words that only that program has. Modules and classes end there:
# DPOTrainer is not OnlineDPOTrainer, which samples.
_PROGRAMS: tuple[tuple[str, str], ...] = (
    (r"openrlhf[./]cli[./]train_(?:sft)\b", "sft"),
    (r"openrlhf[./]cli[./]train_(?:dpo|kto)\b", "preference"),
    (r"openrlhf[./]cli[./]train_(?:rm|prm)\b", "reward"),
    (r"verl[./]trainer[./](?:fsdp_)?sft_trainer\w*", "sft"),
    (r"open_instruct[./](?:finetune|olmo_core_finetune)\b", "sft"),
    (r"open_instruct[./](?:dpo\w*)", "preference"),
    (r"open_instruct[./](?:reward_modeling)\b", "reward"),
    (r"\brun_sft\.py", "sft"),
    (rf"\brun_(?:{_PREFERENCE})\.py", "preference"),
    (r"\brun_rm\.py", "reward"),
    (r"prime_rl[./]trainer[./]sft\b|\buv run(?: --\S+)* sft\b", "sft"),
    (r"\b(?:swift|megatron) sft\b", "sft"),
    (r"\b(?:swift|megatron) pt\b", "pretraining"),
    (rf"\b(?:swift|megatron) rlhf\b[^&;|]*?--rlhf_type[\s=]+[\"']?(?:{_PREFERENCE})\b", "preference"),
    (r"\b(?:swift|megatron) rlhf\b[^&;|]*?--rlhf_type[\s=]+[\"']?rm\b", "reward"),
    (r"\btrl sft\b|\btrl[./]scripts[./]sft\b", "sft"),
    (rf"\btrl (?:{_PREFERENCE})\b|\btrl[./]scripts[./](?:{_PREFERENCE})\b", "preference"),
    (r"\btrl reward\b|\btrl[./]scripts[./]reward\b", "reward"),
    (r"\bsft_rollout\b|--loss[-_]type[\s=]+sft_loss\b", "sft"),
    (r"\bSFT(?:Trainer|Config)\(", "sft"),
    (r"(?<!Online)\b(?:DPO|KTO|ORPO|CPO|BCO|SimPO)(?:Trainer|Config)\(", "preference"),
    (r"\b(?:Reward|PRM)(?:Trainer|Config)\(", "reward"),
)
_SAMPLES = re.compile(
    r"\b(?:\w*GRPO|\w*RLOO|\w*PPO|OnlineDPO|NashMD|XPO|GKD|GOLD)(?:Trainer|Config)\(|main_ppo|main_dapo|train_ppo\w*|"
    r"run_grpo|open_instruct[./](?:grpo|ppo)\w*|\btrl (?:grpo|rloo|online_dpo|nash_md|xpo)\b|"
    r"--rlhf_type[\s=]+[\"']?(?:grpo|ppo)\b|--advantage-estimator"
)
_KEYS: tuple[tuple[tuple[str, ...], re.Pattern[str], str], ...] = (
    # key: the value that says so (LLaMA-Factory's stage, axolotl's rl, ms-swift's rlhf_type, ROLL's pipeline, ...)
    (("stage", "rl", "rlhf_type", "task", "train_type"), re.compile(rf"(?:{_PREFERENCE})$", re.I), "preference"),
    (("stage", "rlhf_type"), re.compile(r"rm$"), "reward"),
    (("stage", "task"), re.compile(r"sft$"), "sft"),
    (("stage",), re.compile(r"pt$"), "pretraining"),
    (("loss_type",), re.compile(r"sft_loss$"), "sft"),
    # Losses on pairs that TRL's GRPOConfig has no words for.
    (
        ("loss_type", "pref_loss", "dpo_loss_type", "rpo_loss"),
        re.compile(
            r"(?:sigmoid|hinge|ipo|exo_pair|nca_pair|robust|bco_pair|sppo_hard|aot|aot_pair|aot_unpaired|discopop|"
            r"apo_zero|apo_down|sigmoid_norm|kto|bco|simpo|orpo|dpo|dpo_norm|wpo)$"
        ),
        "preference",
    ),
    (("pipeline_cls",), re.compile(r".*\bDPOPipeline$"), "preference"),
    (("pipeline_cls",), re.compile(r".*\bSFTPipeline$"), "sft"),
    (("pipeline_cls",), re.compile(r".*\b(?:RM|Reward)Pipeline$"), "reward"),
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Options that only one kind of trainer has: two of them say which it is, where none of the others is there.
_OWN: Mapping[str, frozenset[str]] = {
    "sft": _words(
        """
        dataset_text_field packing packing_strategy completion_only_loss assistant_only_loss eos_token
        max_seq_length sample_packing pad_to_sequence_len train_on_inputs partial_pretrain prompt_key
        response_key messages_key neftune_noise_alpha sft_train dataset_kwargs eval_packing
        """
    ),
    "preference": _words(
        """
        rpo_alpha label_smoothing reference_free ref_model_init_kwargs precompute_ref_log_probs sync_ref_model
        desirable_weight undesirable_weight pref_beta pref_ftx simpo_gamma cpo_alpha orpo_alpha orpo_beta
        dpo_beta dpo_label_smoothing kto_desirable_weight chosen_key rejected_key field_chosen field_rejected
        truncation_mode
        """
    ),
}
_ONLINE = _words(
    """
        num_generations rollout actor_rollout_ref grpo rollout_batch_size n_samples_per_prompt reward_funcs
        use_vllm generator orchestrator inference rollout_config gconfig reward_fn num_return_sequences_in_group
        vllm_mode importance_sampling_level advantage_estimator scale_rewards num_samples_per_prompt_rollout
        max_completion_length response_length total_episodes num_sample_generations
        """
)
_SECTIONS = {"sft": "sft", "dpo": "preference", "rm": "reward", "kto": "preference", "orpo": "preference"}


def refuse_others(source: Source) -> None:
    """Refuse a configuration of a run that samples nothing, or of a program that has no profile.

    Raises:
        RefusedError: if what the file starts, a word or options of it say that it is one; the message says which.
    """
    foreign = _foreign(source)
    if foreign is not None:
        raise RefusedError(f"explain: {foreign}\nhint: only the frameworks of `reweigh explain` are known")
    found = _started(source.text) or _told(source.values)
    if found is None:
        return
    kind, evidence = found
    raise RefusedError(
        f"explain: {evidence}: this is {_KINDS[kind]}; nothing is sampled, so there is no importance ratio to weigh by "
        "or to correct\nhint: only runs that sample (GRPO, PPO, RLOO and the like) have one"
    )


def other_program(text: str) -> str:
    """Name the program that a script of verl's options starts, if it is none of verl's own; "" if it is."""
    code = _code(text)
    started = re.findall(r"python3?(?: -\S+)* -m\s+([A-Za-z_][\w.]*)", code)
    other = [m for m in started if not m.startswith("verl.") and re.search(r"main|train|ppo", m)]
    if not other or len(other) < len([m for m in started if re.search(r"main|train|ppo", m)]):
        return ""
    return f"it starts {other[0]}, not verl's own trainer: what that changes of the loss or the weights is not known"


def _foreign(source: Source) -> str | None:
    """Say of which program without a profile it is."""
    keys = [key for key, _ in _leaves(source.values)]
    if re.search(r"\bverl\.trainer\.main\b(?!_)", _code(source.text)) or any(
        key.startswith(("worker.actor.", "worker.rollout.")) for key in keys
    ):
        return "this is of EasyR1, a fork of verl with options of its own (worker.actor): it has no profile"
    own = [key for key in keys if "rllm." in f"{key}." and "rollout_correction" in key]
    if own:
        return f"{own[0]} is rLLM's own, and what it corrects is done there: it has no profile"
    return None


def _code(text: str) -> str:
    """Give a text without its comments, on unbroken lines."""
    return re.sub(r"(?m)(?:^|(?<=\s))#.*$", "", text).replace("\\\n", " ")


def _started(text: str) -> tuple[str, str] | None:
    """Find the program that a text starts, comments aside; none if one that samples is started as well."""
    code = _code(text)
    for pattern, kind in _PROGRAMS:
        found = re.search(pattern, code)
        if found and ((kind == "sft" and "sft_loss" in found[0]) or not _SAMPLES.search(code)):
            return kind, " ".join(found[0].rstrip("(").split())[:80]
    return None


def _told(values: Mapping[str, Any]) -> tuple[str, str] | None:
    """Find what keys and words of a configuration say of it."""
    keys = dict(_leaves(values))
    if _ONLINE & {part for key in keys for part in key.split(".")}:
        return None
    for key, value in keys.items():
        name = key.rpartition(".")[2]
        for names, pattern, kind in _KEYS:
            if name in names and isinstance(value, str) and pattern.match(value):
                return kind, f"{key}={value}"
        if isinstance(value, list) and {"chosen", "rejected"} <= {v for v in value if isinstance(v, str)}:
            return "preference", f"{key} are chosen and rejected"
    for section, kind in _SECTIONS.items():
        if isinstance(values.get(section), Mapping):
            return kind, f"a section {section}, and none of a run that samples"
    dataset = values.get("train_dataset")
    if isinstance(dataset, Mapping) and cast("Mapping[str, Any]", dataset).get("type") in ("sft", "rw"):
        return ("sft" if dataset["type"] == "sft" else "reward"), f"train_dataset.type={dataset['type']}"
    if "base_model" in values and isinstance(values.get("datasets"), list) and "rl" not in values:
        return "sft", "base_model and datasets without rl"
    names = {key.rpartition(".")[2] for key in keys} | {part for key in keys for part in key.split(".")}
    for kind, own in _OWN.items():
        if len(own & names) >= 2:
            return kind, "options " + " and ".join(sorted(own & names)[:3])
    lengths = names & {"max_length", "max_seq_length"}  # of prompt and answer in one: GRPOConfig has none
    if lengths and "model_name_or_path" in names and names & {"dataset_name", "dataset_mixture", "dataset_mixer"}:
        return "sft or preference", f"{lengths.pop()}, and none of a run that samples"
    return None


def _leaves(values: Any, under: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        path = f"{under}.{key}" if under else str(key)
        if isinstance(value, Mapping):
            yield from _leaves(value, path)
        elif isinstance(value, list):
            yield path, value
            for item in cast("list[Any]", value):
                if isinstance(item, Mapping):
                    yield from _leaves(item, path)
        else:
            yield path, value
