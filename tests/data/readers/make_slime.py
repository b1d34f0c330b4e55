"""Write slime/ with slime's own writers: `python make_slime.py CHECKOUT`, of THUDM/slime at 624b824a."""

import logging
import random
import shutil
import sys
from pathlib import Path

import torch
from checkout import load

HERE = Path(__file__).parent / "slime"
VERSIONS = {0: ["3"], 1: ["3"], 2: ["3", "4"], 3: ["4"]}  # the third response was sampled across an update


def main():
    logging.disable()
    root = Path(sys.argv[1])
    types = load(root, "slime.utils.types", {"slime.utils.misc": {}})
    rollout = load(root, "slime.observability.rollout_data_utils", {})
    train = load(root, "slime.observability.train_data_utils", {})
    shutil.rmtree(HERE, ignore_errors=True)
    rng = random.Random(0)
    for rollout_id in (7, 10):
        samples = [sample(types.Sample, rng, rollout_id, i) for i in range(4)]
        rollout.save_debug_rollout_data(
            f"{HERE}/rollout_data/{{rollout_id}}.pt", samples, rollout_id=rollout_id, evaluation=False
        )
        shards = [shard(rng, samples, rank, partition) for rank, partition in enumerate(([0, 3], [2, 1]))]
        payload = train._build_dump_payload(shards, rollout_id=rollout_id, writer_rank=0)
        (HERE / "train_data").mkdir(exist_ok=True)
        torch.save(payload, HERE / f"train_data/{rollout_id}.pt")


def sample(kind, rng, rollout_id, i):
    length = 3 + i
    one = kind(
        group_index=rollout_id * 2 + i // 2,
        index=rollout_id * 4 + i,
        prompt="question",
        tokens=[1, 2, 3 + i // 2] + [50 + t for t in range(length)],
        response="...",
        response_length=length,
        reward=float(i % 2),
        loss_mask=[1] * length if i < 3 else [1, 1, 0, 0, 1, 1],  # a tool's output inside the last one
        weight_versions=VERSIONS[i],
        rollout_log_probs=[-rng.expovariate(2.0) for _ in range(length)],
    )
    one.status = kind.Status.TRUNCATED if i == 2 else kind.Status.COMPLETED
    return one


def shard(rng, samples, rank, partition):
    """What the actor holds when it dumps: columns of its samples, and the whole batch's rewards and lengths."""
    mine = [samples[i] for i in partition]
    log_mu = [torch.tensor(s.rollout_log_probs) for s in mine]
    columns = {
        "partition": partition,
        "tokens": [torch.tensor(s.tokens) for s in mine],
        "response_lengths": [s.response_length for s in mine],
        "total_lengths": [len(s.tokens) for s in mine],
        "rewards": [s.reward - 0.5 for s in mine],
        "truncated": [0 for _ in mine],
        "loss_masks": [torch.tensor(s.loss_mask, dtype=torch.int) for s in mine],
        "sample_indices": [s.index for s in mine],
        "rollout_ids": [s.index for s in mine],
        "rollout_log_probs": log_mu,
        "log_probs": [(x + torch.tensor([rng.gauss(0, 0.01) for _ in x])).clamp(max=0) for x in log_mu],
        "advantages": [torch.full_like(x, s.reward - 0.5) for x, s in zip(log_mu, mine, strict=True)],
        "entropy": [torch.full_like(x, 0.75) for x in log_mu],
        "raw_reward": [s.reward for s in samples],
        "global_batch_sizes": [4],
        "num_microbatches": [1],
        "micro_batch_indices": [[0, 1]],
    }
    return {"rank": rank, "data_parallel_rank": rank, "rollout_data": columns}


if __name__ == "__main__":
    main()
