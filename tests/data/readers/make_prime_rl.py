"""Write prime_rl/ with prime-rl's own exporter: `python make_prime_rl.py CHECKOUT`, of the project at 559b4477."""

import random
import shutil
import sys
from pathlib import Path

import torch
from checkout import load

HERE = Path(__file__).parent / "prime_rl"


def ratio_and_kl(trainer, inference):
    log_ratio = trainer - inference
    return log_ratio, log_ratio.exp(), log_ratio.exp() - log_ratio - 1


class Loss:
    dppo_mask_high = dppo_mask_low = 0.2


def main():
    exporter = load(
        Path(sys.argv[1]) / "src",
        "prime_rl.trainer.rl.token_export",
        {
            "prime_rl.configs.trainer": {"DefaultLossConfig": Loss, "TrainerConfig": object},
            "prime_rl.trainer.rl.loss": {"compute_importance_ratio_and_mismatch_kl": ratio_and_kl},
        },
    )
    shutil.rmtree(HERE, ignore_errors=True)
    rng = random.Random(0)
    for rank in (0, 1):
        one = exporter.TokenExporter(HERE, rank)
        for micro_step in (0, 1):
            # two sequences and padding in one packed row
            lengths, prompts = [6, 5, 3], [2, 3, 3]
            mask = [t >= p for n, p in zip(lengths, prompts, strict=True) for t in range(n)]
            mask[3] = rank == 0  # a tool's token in the middle
            log_mu = torch.tensor([[-rng.expovariate(2.0) if m else 0.0 for m in mask]])
            noise = torch.tensor([[rng.gauss(0, 0.01) for _ in mask]])
            log_pi = torch.where(torch.tensor([mask]), (log_mu + noise).clamp(max=0), -11.0)
            log_pi[0, 7] = float("nan")  # off the mask: written as null
            batch = {
                "input_ids": torch.arange(len(mask))[None] + 10 * micro_step,
                "position_ids": torch.arange(len(mask))[None],
                "loss_mask": torch.tensor([mask]),
                "advantages": torch.full((1, len(mask)), 0.5),
                "inference_logprobs": log_mu,
                "env_names": ["maths"] * 11 + [""] * 3,
            }
            model = {"logprobs": log_pi, "entropy": torch.full_like(log_pi, 0.75)}
            one.export(4, micro_step, batch, model, lengths, Loss())
        one.mark_stable()


if __name__ == "__main__":
    main()
