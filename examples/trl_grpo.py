"""TRL's GRPOTrainer on a CPU: a model learns from what an 8-bit copy of it sampled, with the gap corrected.

python examples/trl_grpo.py --out report/trl                    # SmolLM2-135M: two minutes of one core
python examples/trl_grpo.py --out report/mask --correction trl  # TRL's own sequence_mask in place of ours
python examples/trl_grpo.py --out report/tiny --tiny --steps 12 # seconds; a model of 30 words, as in CI
reweigh audit report/trl
"""

import argparse
import copy
import json
import warnings
from pathlib import Path

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback
from trl import GRPOConfig

from reweigh import seq_tis
from reweigh.probe.engine import SamplingSettings
from reweigh.probe.engine_transformers import TransformersEngine
from reweigh.probe.models import find_model, in_format, load_model, load_tokenizer
from reweigh.records import RunInfo
from reweigh.trainers.capture import Capture
from reweigh.trainers.trl import CorrectedGRPOTrainer

LETTERS, PROMPTS = "abcdefghijklmnopqrstuvwxyz", ["a cat", "the sea", "my day", "two men", "an old dog", "one hat"]


def tiny():
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *LETTERS])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **sizes, pad_token_id=0, eos_token_id=1)), tokenizer


def letter_e(completions, **_):
    return [text.count("e") / max(1, len(text.replace(" ", ""))) for text in completions]


class Sampler:
    """Draws with today's weights in 8 bits and bfloat16: another policy than the one that trains."""

    def __init__(self, model):
        self.model = copy.deepcopy(model).eval()  # before the trainer changes its forward

    def __call__(self, prompts, trainer):
        self.model.float().load_state_dict(trainer.accelerator.unwrap_model(trainer.model).state_dict())
        in_format(self.model, "int8-weight").bfloat16()
        ends = [trainer.processing_class.eos_token_id]
        engine = TransformersEngine(self.model, name="policy", dtype="bfloat16", end_ids=ends)
        ids = [trainer.processing_class(text)["input_ids"] for text in prompts]
        seed = 1000 * trainer.args.seed + trainer.state.global_step
        how = SamplingSettings(max_tokens=trainer.max_completion_length, seed=seed, n=1)
        drawn = sorted(engine.sample(ids, how), key=lambda sample: sample.prompt)
        tokens, log_mu = [list(s.token_ids) for s in drawn], [list(s.log_mu) for s in drawn]
        versions = [[trainer.state.global_step] * len(row) for row in tokens]  # which weights sampled, for the records
        return {"prompt_ids": ids, "completion_ids": tokens, "logprobs": log_mu, "versions": versions}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--correction", choices=["reweigh", "trl"], default="reweigh")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    source = None if args.tiny else find_model("smollm2")
    model, tokenizer = tiny() if source is None else (load_model(source, "float32"), load_tokenizer(source))
    model.requires_grad_(True)
    sizes = {"per_device_train_batch_size": 16, "num_generations": 8, "max_completion_length": 16}
    rate = 1e-2 if args.tiny else 3e-4
    config = GRPOConfig(str(args.out), **sizes, max_steps=args.steps, learning_rate=rate, lr_scheduler_type="constant",
        logging_steps=1, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, bf16=True,
        gradient_checkpointing=False, seed=args.seed)  # fmt: skip
    warnings.filterwarnings("ignore", message="You are using 'rollout_func'")  # TRL calls it experimental
    warnings.filterwarnings("ignore", category=FutureWarning)  # names that transformers will change
    sampler = RunInfo(engine="transformers", dtype_mu="int8-weight", dtype_pi="bfloat16", logprobs_mode="processed")
    trainer = CorrectedGRPOTrainer(
        model=model, args=config, processing_class=tokenizer, reward_funcs=letter_e, rollout_func=Sampler(model),
        train_dataset=Dataset.from_list([{"prompt": text} for text in PROMPTS]),
        correction=seq_tis(2.0) if args.correction == "reweigh" else None, capture=Capture(args.out, sampler),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)  # it prints every number at every step
    trainer.train()
    (args.out / "log.json").write_text(json.dumps(trainer.state.log_history))
    rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    third = max(1, len(rewards) // 3)
    print(f"reward {sum(rewards[:third]) / third:.3f} at first, {sum(rewards[-third:]) / third:.3f} at last")


if __name__ == "__main__":
    main()
