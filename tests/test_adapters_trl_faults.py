"""TRL's real trainer while something of ours goes wrong: the run goes on, and what was lost is counted."""

import gc
import logging
import math
import os
import resource
import shutil
import signal

import pytest
import torch
from test_disk_full import full_after
from transformers import TrainerCallback
from trl_tiny import noisy, quietly, trainer

from reweigh import seq_tis
from reweigh.guard import claimed
from reweigh.records import validate
from reweigh.trainers.capture import Capture

STEPS = 5
FAULTY = 2  # the step at which it happens


class At(TrainerCallback):
    """Does something before one step, and undoes it after that."""

    def __init__(self, begin, end=lambda: None):
        self.begin, self.end = begin, end

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == FAULTY:
            self.begin()

    def on_step_end(self, args, state, control, **_):
        if state.global_step == FAULTY + 1:
            self.end()


def trained(folder, *, callback=None, rollout=None, steps=STEPS, check=False):
    """A run that kept records of each step, with what it logged."""
    made = trainer(folder / "run", seq_tis(2.0), max_steps=steps, capture=Capture(folder / "records"), check=check)
    made.rollout_func = noisy(made.rollout_func) if rollout is None else rollout(noisy(made.rollout_func))
    if callback is not None:
        made.add_callback(callback)
    quietly(made.train)
    assert made.state.global_step == steps
    assert all(torch.isfinite(p).all() for p in made.model.parameters())
    return made, [row for row in made.state.log_history if "loss" in row]


def failed(logs):
    return max(row.get("reweigh/capture/failed", 0.0) for row in logs)


def spoilt(value):
    """A sampler that gives another log-prob for one token, at one step."""

    def around(inner):
        def rollout(prompts, made):
            out = inner(prompts, made)
            if made.state.global_step == FAULTY:
                out["logprobs"][0][1] = value
            return out

        return rollout

    return around


FOLDERS = ("gone", "a file", "a link to nowhere", "full")


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_that_cannot_be_written_to_costs_its_steps(tmp_path, kind, caplog):
    folder, stack = tmp_path / "records", []

    def begin():
        if kind == "full":
            stack.append(full_after(0))
            stack[0].__enter__()
            return
        shutil.rmtree(folder)
        if kind == "a file":
            folder.write_text("not ours")
        if kind == "a link to nowhere":
            folder.symlink_to(tmp_path / "nowhere" / "at" / "all")

    def end():
        if stack:
            stack.pop().__exit__(None, None, None)

    with caplog.at_level(logging.WARNING, "reweigh"):
        _, logs = trained(tmp_path, callback=At(begin, end))
    lost = {"gone": 0, "full": 1}.get(kind, STEPS - FAULTY)  # a folder that is gone is made again
    assert failed(logs) == lost
    assert sum("was not written" in line for line in caplog.messages) == (lost > 0)
    if kind in ("gone", "full"):
        assert validate([folder]).ok
    if kind == "a file":
        assert folder.read_text() == "not ours"


@pytest.mark.parametrize("value", [0.01, math.nan, -math.inf, -9999.0, None])
def test_a_log_prob_that_is_none_costs_its_token(tmp_path, value):
    _, logs = trained(tmp_path, rollout=spoilt(value))
    assert len(logs) == STEPS
    dropped = [row.get("reweigh/token/dropped", 0.0) for row in logs]
    bad = value is None or not math.isfinite(value)
    assert sum(dropped) == (1.0 if bad else 0.0)
    assert all(math.isfinite(row["loss"]) for row in logs)
    assert failed(logs) == 0


def test_another_writer_of_a_step_costs_that_step_at_most(tmp_path):
    """The name of the file is held by another process, as it would be by a second run in one folder."""
    folder, held = tmp_path / "records", []

    def begin():
        held.append(claimed(folder / f"step_{FAULTY:08d}_rank_0000.parquet"))
        held[0].__enter__()

    _, logs = trained(tmp_path, callback=At(begin, lambda: held.pop().__exit__(None, None, None)))
    assert failed(logs) <= 1
    assert validate([folder]).ok


def test_a_signal_that_is_not_for_us_is_the_trainers(tmp_path):
    """Ours is no handler of signals in a training: one that the user set stays."""
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
    try:
        trained(tmp_path, callback=At(lambda: os.kill(os.getpid(), signal.SIGUSR1)), steps=3)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [1]


@pytest.mark.slow
def test_memory_is_flat_over_many_steps(tmp_path):
    """By tensors that are alive: REWEIGH_STEPS=2000 for docs/trust.md, 60 here."""
    steps, counts = int(os.environ.get("REWEIGH_STEPS", "60")), []

    class Count(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step % (steps // 6) == 0:
                gc.collect()
                alive = [x for x in gc.get_objects() if isinstance(x, torch.Tensor)]
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
                counts.append((len(alive), sum(x.numel() for x in alive), peak))

    trained(tmp_path, callback=Count(), steps=steps)
    assert len(counts) == 6
    print(f"tensors, values, peak MB after each sixth of {steps} steps: {counts}")
    early, late = counts[1], counts[-1]
    assert late[0] <= early[0] * 1.02 + 5
    assert late[1] <= early[1] * 1.02 + 10_000
