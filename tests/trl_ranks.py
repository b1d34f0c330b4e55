"""One of two processes of a TRL run, whose one prompt has responses on both: prints what its loss is handed."""

import json
import os
import sys
import tempfile

import torch
from trl_tiny import noisy, quietly, scored, trainer

from reweigh import group_snis

if __name__ == "__main__":
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    # They meet at a file: a port that is free now may not be when the other process comes to it.
    torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
    made = trainer(tempfile.mkdtemp(), group_snis(), per_device_train_batch_size=4, num_generations=8)
    made.rollout_func = noisy(made.rollout_func, 0.2 + 0.1 * rank)
    out = quietly(scored, made)
    logs = {}
    quietly(made.log, logs)
    names = ("old_per_token_logps", "sampling_per_token_logps", "completion_mask", "importance_sampling_ratio")
    rows = {name: out[name].tolist() for name in names}
    with open(sys.argv[1], "w") as file:
        json.dump(rows | {"n": logs["reweigh/sequence/n"]}, file)
    torch.distributed.destroy_process_group()
