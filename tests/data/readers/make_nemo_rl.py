"""Write nemo_rl/ with NeMo-RL's own logger: `python make_nemo_rl.py CHECKOUT`, of NVIDIA-NeMo/RL at 7ea279ab."""

import random
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from checkout import load

HERE = Path(__file__).parent / "nemo_rl"
LENGTHS, PROMPTS = [5, 7, 4], [2, 2, 3]


def main():
    root = Path(sys.argv[1])
    none = {
        name: {}
        for name in (
            *("mlflow", "ray", "swanlab", "wandb", "requests", "prometheus_client", "prometheus_client.parser"),
            *(
                "prometheus_client.samples",
                "torch.utils.tensorboard",
                "tensorboard",
                "rich",
                "rich.box",
                "rich.console",
            ),
            *("rich.logging", "rich.panel", "matplotlib", "nemo_rl.data.interfaces", "nemo_rl.config.base"),
            *("nemo_rl.data.multimodal_utils", "nemo_rl.data.packing", "nemo_rl.distributed.collectives"),
        )
    }
    batches = load(root, "nemo_rl.distributed.batched_data_dict", none)
    logger = load(root, "nemo_rl.utils.logger", none)
    shutil.rmtree(HERE, ignore_errors=True)
    rng = random.Random(0)
    width = max(LENGTHS)
    mask = torch.tensor([[p <= t < n for t in range(width)] for n, p in zip(LENGTHS, PROMPTS, strict=True)]).float()
    log_mu = torch.tensor([[-rng.expovariate(2.0) for _ in range(width)] for _ in LENGTHS]) * mask
    noise = torch.tensor([[rng.gauss(0, 0.01) for _ in range(width)] for _ in LENGTHS])
    prompts = torch.tensor([[1, 2, 0], [1, 2, 0], [5, 6, 7]])
    ids = torch.arange(width).repeat(3, 1) + 50
    for i, n in enumerate(PROMPTS):
        ids[i, :n] = prompts[i, :n]
    log_data = {  # as grpo.py puts it together
        "content": [f"text {i}" for i in range(3)],
        "rewards": torch.tensor([1.0, 0.0, 1.0]).tolist(),
        "input_lengths": torch.tensor(LENGTHS).tolist(),
        "token_ids": ids.tolist(),
        "token_loss_mask": mask.tolist(),
        "sample_loss_mask": torch.tensor([1.0, 1.0, 0.0]).tolist(),
        "advantages": (torch.full((3, width), 0.5) * mask).tolist(),
        "generation_logprobs": log_mu.tolist(),
        "prev_logprobs": ((log_mu + noise).clamp(max=0)).tolist(),
    }
    writer = SimpleNamespace(base_log_dir=str(HERE))
    logger.Logger.log_batched_dict_as_jsonl(writer, batches.BatchedDataDict(log_data), "train_data_step3.jsonl")


if __name__ == "__main__":
    main()
