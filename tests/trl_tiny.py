"""TRL's trainer on a model of thirty words, for the tests of its adapter."""

import importlib.util
import warnings
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples" / "trl_grpo.py"


def example():
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("trl_grpo", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
    return module


def trainer(folder, correction, *, rollout="sampler", capture=None, cls=None, check=True, **options):
    """A `CorrectedGRPOTrainer` ready to train: 8 responses a step, 2 prompts of 4, on the CPU."""
    import torch
    from datasets import Dataset
    from trl import GRPOConfig

    from reweigh.trainers.trl import CorrectedGRPOTrainer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = example()
        torch.manual_seed(0)
        model, tokenizer = ours.tiny()
        given = {"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 9, "max_steps": 1,
            "report_to": [], "save_strategy": "no", "use_cpu": True, "bf16": False, "disable_tqdm": True,
            "learning_rate": 1e-2, "lr_scheduler_type": "constant", "logging_steps": 1, "seed": 3}  # fmt: skip
        made = (CorrectedGRPOTrainer if cls is None else cls)(
            model=model,
            args=GRPOConfig(str(folder), **given | options),
            processing_class=tokenizer,
            reward_funcs=ours.letter_e,
            train_dataset=Dataset.from_list([{"prompt": text} for text in ("a cat", "the sea")]),
            rollout_func=ours.Sampler(model) if rollout == "sampler" else rollout,
            **({"correction": correction, "capture": capture, "check": check} if cls is None else {}),
        )
    from transformers import PrinterCallback

    made.remove_callback(PrinterCallback)
    return made


def noisy(inner, spread=0.3):
    """A rollout_func whose log-probs are off by noise, so that weights are not all about 1."""

    def rollout(prompts, trainer):
        import torch

        out = inner(prompts, trainer)
        g = torch.Generator().manual_seed(7)
        shaken = [[min(0.0, x + spread * torch.randn((), generator=g).item()) for x in row] for row in out["logprobs"]]
        return out | {"logprobs": shaken}

    return rollout


def scored(made):
    """One generation batch, as the trainer prepares it: old and sampling log-probs, mask, ratio."""
    batch = next(iter(made.get_train_dataloader()))
    made.model.train()
    return made._generate_and_score_completions(batch)


def quietly(function, *args):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args)
