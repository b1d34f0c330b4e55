"""Write miles/ with miles' own writers: `python make_miles.py CHECKOUT`, of github.com/radixark/miles at 31f1ca96."""

import json
import logging
import random
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from checkout import load

HERE = Path(__file__).parent / "miles"
CP, TP = 2, 2  # each slice is written by two ranks


def main():
    logging.disable()
    root = Path(sys.argv[1])
    state = SimpleNamespace(cp=SimpleNamespace(rank=0, size=CP))
    stubs = {"miles.backends.training_utils.parallel": {"get_parallel_state": lambda: state}}
    types = load(root, "miles.utils.types", {})
    debug = load(root, "miles.ray.rollout.debug_data", {})
    cut = load(root, "miles.backends.training_utils.cp_utils", stubs)
    train = load(root, "miles.utils.train_dump_utils", stubs)
    shutil.rmtree(HERE, ignore_errors=True)
    args = SimpleNamespace(
        save_debug_train_data=f"{HERE}/train_data/{{rollout_id}}_{{rank}}.pt",
        save_debug_rollout_data=f"{HERE}/rollout_data/{{rollout_id}}.pt",
        save_debug_trajectory_data=None,
        qkv_format="thd",
    )
    rng = random.Random(0)
    samples = [sample(types.Sample, rng, i) for i in range(3)]
    debug.save_debug_rollout_data(args, samples, rollout_id=0, evaluation=False)
    shutil.rmtree(HERE / "dashboard_columns", ignore_errors=True)
    full = columns(rng, samples)
    for rank in range(CP * TP):
        state.cp.rank = rank // TP
        mine = dict(full)
        for name in ("rollout_log_probs", "log_probs", "advantages", "entropy"):
            mine[name] = [
                cut.slice_log_prob_with_cp(x, len(s.tokens), s.response_length)
                for x, s in zip(full[name], samples, strict=True)
            ]
        train.save_debug_train_data_for_rank(
            args, rollout_id=0, rollout_data=mine, rank=rank, cp_rank=state.cp.rank, cp_size=CP
        )
    whole = {name: [x.tolist() for x in full[name]] for name in ("rollout_log_probs", "log_probs")}
    (HERE / "whole.json").write_text(json.dumps(whole) + "\n")  # what the slices must become again


def sample(kind, rng, i):
    length = (1, 6, 13)[i]
    return kind(
        group_index=0,
        index=100 + i,
        prompt="question",
        tokens=[1, 2, 3] + [50 + t for t in range(length)],
        response="...",
        response_length=length,
        reward=float(i % 2),
        rollout_log_probs=[-rng.expovariate(2.0) for _ in range(length)],
        weight_versions=["5"],
        status=kind.Status.COMPLETED,
    )


def columns(rng, samples):
    log_mu = [torch.tensor(s.rollout_log_probs) for s in samples]
    return {
        "tokens": [torch.tensor(s.tokens) for s in samples],
        "response_lengths": [s.response_length for s in samples],
        "total_lengths": [len(s.tokens) for s in samples],
        "rewards": [s.reward for s in samples],
        "raw_reward": [s.reward for s in samples],
        "truncated": [0 for _ in samples],
        "sample_indices": [s.index for s in samples],
        "loss_masks": [torch.ones(s.response_length, dtype=torch.int32) for s in samples],
        "weight_versions": [s.weight_versions for s in samples],
        "rollout_log_probs": log_mu,
        "log_probs": [(x + torch.tensor([rng.gauss(0, 0.01) for _ in x])).clamp(max=0) for x in log_mu],
        "advantages": [torch.full_like(x, 0.5) for x in log_mu],
        "entropy": [torch.full_like(x, 0.75) for x in log_mu],
    }


if __name__ == "__main__":
    main()
