"""Write open_instruct/ with its own writers: `python make_open_instruct.py CHECKOUT`, of the project at e6c3044a."""

import logging
import random
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from checkout import load

HERE = Path(__file__).parent / "open_instruct"


def main():
    logging.disable()
    root = Path(sys.argv[1])
    log = {"setup_logger": lambda name: logging.getLogger(name)}
    types = load(root, "open_instruct.data_types", {})
    stubs = {
        "open_instruct.logger_utils": log,
        "open_instruct.model_utils": {},
        "open_instruct.utils": {"get_git_commit": lambda: "0" * 40},
    }
    rl = load(root, "open_instruct.rl_utils", stubs)
    shutil.rmtree(HERE, ignore_errors=True)
    rng = random.Random(0)
    responses = [[50 + t for t in range(n)] for n in (3, 5, 2, 4)]
    result = types.GenerationResult(
        responses=responses,
        finish_reasons=["stop", "length", "stop", "stop"],
        masks=[[1] * len(r) for r in responses],
        request_info=None,
        index=None,
        prompt_id=None,
        logprobs=[[-rng.expovariate(2.0) for _ in r] for r in responses],
    )
    batch = SimpleNamespace(
        queries=[[1, 2], [1, 2], [3, 4, 5], [3, 4, 5]],
        scores=[1.0, 0.0, 0.5, 0.5],
        datasets=["maths", "maths", "code", "code"],
        ground_truths=[None] * 4,
    )
    rl.save_rollout_metadata(str(HERE), "run", "org/model")
    rl._save_rollouts(str(HERE), "run", 6, batch, result, np.array([0.5, -0.5, 0.0, 0.0]), 2, 0)


if __name__ == "__main__":
    main()
