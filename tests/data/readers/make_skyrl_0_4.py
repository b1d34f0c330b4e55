"""Write skyrl_0_4/ with SkyRL 0.4.0's own batch: `python make_skyrl_0_4.py`, under Python 3.12 with skyrl==0.4.0."""

import random
import shutil
from pathlib import Path

import numpy as np
import torch
from skyrl.backends.skyrl_train.training_batch import TensorList, TrainingInputBatch, pad_training_input_batch
from skyrl.train.dataset.preprocess import compute_prompt_boundaries, convert_prompts_responses_to_batch_tensors

HERE = Path(__file__).parent / "skyrl_0_4" / "dumped_data"


def main():
    shutil.rmtree(HERE.parent, ignore_errors=True)
    HERE.mkdir(parents=True)
    rng = random.Random(0)
    uids = ["p0", "p0", "p1"]
    prompts, lengths = [[1, 2], [1, 2], [3, 4, 5, 6]], [2, 5, 3]
    responses = [[50 + t for t in range(n)] for n in lengths]
    masks = [[1, 1], [1, 0, 0, 1, 1], [1, 1, 1]]
    log_mu = [[-rng.expovariate(2.0) for _ in range(n)] for n in lengths]
    rewards = [[0.0] * (n - 1) + [1.0] for n in lengths]
    routes = [np.tile(np.uint8([0, 1]), (len(p) + n, 2, 1)) for p, n in zip(prompts, lengths, strict=True)]
    support = [np.arange(3 * n, dtype=np.int32).reshape(n, 3) for n in lengths]
    sequences, attention, response, _, loss, rollout, experts, kept = convert_prompts_responses_to_batch_tensors(
        0, prompts, responses, rewards, masks, log_mu, routes, support
    )
    noise = torch.tensor([[rng.gauss(0, 0.01) for _ in row] for row in rollout])
    batch = TrainingInputBatch(
        {
            "sequences": sequences,
            "attention_mask": attention,
            "response_mask": response,
            "loss_mask": loss,
            "rollout_logprobs": rollout,
            "rollout_expert_indices": experts,  # packed, written as a view of an array
            "rollout_sample_support": kept,
            "action_log_probs": ((rollout + noise).clamp(max=0) * response).to(torch.bfloat16),
            "base_action_log_probs": rollout,
            "values": None,
            "returns": torch.ones_like(rollout),
            "advantages": torch.full_like(rollout, 0.5),
            "kl": torch.zeros_like(rollout),
            "pixel_values": TensorList([torch.zeros(1, 2) for _ in uids]),
        }
    )
    batch.metadata = {
        "policy_prompt_boundaries": compute_prompt_boundaries(uids),
        "response_length": rollout.shape[1],
        "avg_response_length": sum(lengths) / len(lengths),
        "metrics": {"avg_final_rewards": np.float64(1.0)},
    }
    pad_training_input_batch(batch, 1).save(HERE / "global_step_3_training_input.pkl")


if __name__ == "__main__":
    main()
