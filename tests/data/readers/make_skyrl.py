"""Write skyrl/ with SkyRL's own batch: `python make_skyrl.py CHECKOUT`, of github.com/NovaSky-AI/SkyRL at a9564572."""

import random
import shutil
import sys
from pathlib import Path

import torch
from checkout import load

HERE = Path(__file__).parent / "skyrl" / "dumped_data"


def main():
    root = Path(sys.argv[1])
    batches = load(
        root, "skyrl.backends.skyrl_train.training_batch", {"skyrl.backends.skyrl_train.utils.replay_utils": {}}
    )
    tensors = load(
        root,
        "skyrl.train.dataset.preprocess",
        {
            "skyrl.backends.skyrl_train.utils.replay_utils": {},
            "skyrl.backends.skyrl_train.utils.routed_experts": {},
        },
    )
    shutil.rmtree(HERE.parent, ignore_errors=True)
    HERE.mkdir(parents=True)
    rng = random.Random(0)
    uids = ["p0", "p0", "p1"]
    prompts, lengths = [[1, 2], [1, 2], [3, 4, 5, 6]], [2, 5, 3]
    responses = [[50 + t for t in range(n)] for n in lengths]
    masks = [[1, 1], [1, 0, 0, 1, 1], [1, 1, 1]]
    log_mu = [[-rng.expovariate(2.0) for _ in range(n)] for n in lengths]
    rewards = [[0.0] * (n - 1) + [1.0] for n in lengths]
    sequences, attention, response, _, loss, rollout, _ = tensors.convert_prompts_responses_to_batch_tensors(
        0, prompts, responses, rewards, masks, log_mu
    )
    noise = torch.tensor([[rng.gauss(0, 0.01) for _ in row] for row in rollout])
    batch = batches.TrainingInputBatch(
        {
            "sequences": sequences,
            "attention_mask": attention,
            "response_mask": response,
            "loss_mask": loss,
            "rollout_logprobs": rollout,
            "rollout_expert_indices": None,
            "action_log_probs": ((rollout + noise).clamp(max=0) * response).to(torch.bfloat16),
            "base_action_log_probs": rollout,
            "values": None,
            "returns": torch.ones_like(rollout),
            "advantages": torch.full_like(rollout, 0.5),
            "kl": torch.zeros_like(rollout),
            "pixel_values": batches.TensorList([torch.zeros(1, 2) for _ in uids]),
        }
    )
    batch.metadata = {"policy_prompt_boundaries": tensors.compute_prompt_boundaries(uids), "response_length": 5}
    batch.save(HERE / "global_step_12_training_input.pkl")


if __name__ == "__main__":
    main()
