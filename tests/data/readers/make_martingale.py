"""Write martingale/ with martingale's own recorder: `pip install --no-deps martingale==0.2.0`, then run this file."""

import random
import shutil
import sqlite3
from pathlib import Path

from martingale.record import Recorder, SamplerConfig

HERE = Path(__file__).parent / "martingale"


def main():
    shutil.rmtree(HERE, ignore_errors=True)
    recorder = Recorder(HERE)
    sampler = SamplerConfig(
        temperature=0.7, top_p=1.0, logprobs_mode="processed_logprobs", engine="vllm", dtype="bfloat16"
    )
    rng = random.Random(0)
    revisions = [recorder.publish_revision(f"{i:064x}", f"{99:064x}", sampler, step=i) for i in (4, 5, 6)]
    for i in range(3):
        with recorder.sequence(actor_id=0, sequence_id=f"q{i}", prompt_ids=[1, 2, 3 + i // 2]) as sequence:
            for t in range(4 + i):
                # the weights change in the middle of the last sequence
                sampled_by = revisions[1 if i == 2 and t > 2 else 0]
                sequence.token(sampled_by.digest, 50 + t, -rng.expovariate(2.0))
            sequence.reward(1.0 - i)
        if i < 2:  # the last one was never trained on
            for scored_by in revisions[1 : 2 + i]:  # the second one twice
                log_pi = [-rng.expovariate(2.0) for _ in range(4 + i)]
                recorder.score(sequence.record.digest, scored_by.digest, log_pi)
    recorder.ledger.close()
    with sqlite3.connect(HERE / "tokens.db") as db:
        db.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it


if __name__ == "__main__":
    main()
