"""TRL's real trainer with our ratio: it enters the loss, is logged, and records of it are kept."""

import importlib
import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest
import torch
from trl import GRPOTrainer
from trl_tiny import EXAMPLE, noisy, quietly, scored, trainer

from reweigh import (
    SEQUENCE,
    TOKEN,
    Batch,
    Clip,
    RatioStats,
    centred,
    group_snis,
    naive,
    seq_mis,
    seq_tis,
    summarise,
    token_tis,
    weigh,
)
from reweigh.doctor import CAUSES
from reweigh.records import RunInfo, read_batches, read_info, validate
from reweigh.trainers.capture import Capture
from reweigh.trainers.seen import factor, wide
from reweigh.trainers.versions import KNOWN, NotInstalledError, UnknownVersionError, UnknownVersionWarning, require

ROOT = Path(__file__).parents[1]


def made(tmp_path, correction, **options):
    trl = trainer(tmp_path, correction, **options)
    trl.rollout_func = noisy(trl.rollout_func)
    return trl


def loss_and_gradient(trl, inputs):
    trl.current_gradient_accumulation_steps = 1
    trl.model.zero_grad()
    loss = quietly(trl.compute_loss, trl.model, inputs)
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in trl.model.parameters()])


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo"])
def test_the_ratio_multiplies_the_loss_of_every_type(tmp_path, loss_type):
    plain = made(tmp_path, naive(), loss_type=loss_type, epsilon_high=5.0)
    inputs = quietly(scored, plain)
    assert torch.equal(inputs["importance_sampling_ratio"], inputs["completion_mask"].float())
    loss, gradient = loss_and_gradient(plain, inputs)
    plain.correction = weigh(TOKEN, Clip(3.0, 3.0))  # every weight is 3
    again = quietly(scored, plain)["importance_sampling_ratio"]
    assert set(again.unique().tolist()) <= {0.0, 3.0}
    inputs["importance_sampling_ratio"] = 3.0 * inputs["completion_mask"]
    three_times, steeper = loss_and_gradient(plain, inputs)
    assert three_times == pytest.approx(3 * loss, abs=1e-6)
    torch.testing.assert_close(steeper, 3 * gradient, rtol=1e-4, atol=1e-6)
    assert gradient.abs().max() > 1e-4


@pytest.mark.parametrize(
    ("options", "said"),
    [({"top_p": 0.9}, "top_p=0.9"), ({"top_k": 20, "min_p": 0.1}, "top_k=20, min_p=0.1"), ({}, "")],
    ids=["top_p", "both", "none"],
)
def test_truncated_sampling_without_its_support_is_said(tmp_path, caplog, options, said):
    with caplog.at_level("WARNING", logger="reweigh"):
        made(tmp_path, token_tis(2.0), **options)
    told = [r.getMessage() for r in caplog.records if "renormalised over fewer tokens" in r.getMessage()]
    assert len(told) == bool(said)
    assert all(f"CorrectedGRPOTrainer: {said}: " in line and "each weight is too small" in line for line in told)


def test_a_centred_estimator_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"CorrectedGRPOTrainer: it multiplies a loss by weights(.|\n)*hint: "):
        trainer(tmp_path, centred(token_tis(2.0)))


def test_what_is_rejected_moves_nothing(tmp_path):
    trl = made(tmp_path, seq_mis(1e6, 1e7), learning_rate=1.0)
    before = [p.detach().clone() for p in trl.model.parameters()]
    quietly(trl.train)
    assert all(torch.equal(a, b) for a, b in zip(before, trl.model.parameters(), strict=True))
    assert trl.state.log_history[0]["reweigh/weight/kept_fraction"] == 0


def test_without_a_correction_trl_multiplies_its_own(tmp_path):
    """TRL's default is `sequence_mask` at 3: the Rosetta page says it is `seq_mis(0, 3)`."""
    trl = trainer(tmp_path, None)
    trl.rollout_func = noisy(trl.rollout_func, 0.6)
    out = quietly(scored, trl)
    batch = Batch.padded(
        wide(out["old_per_token_logps"]), wide(out["sampling_per_token_logps"]), out["completion_mask"]
    )
    ours = seq_mis(0.0, 3.0)(batch).per_unit.float()
    torch.testing.assert_close(out["importance_sampling_ratio"][:, 0], ours, rtol=1e-5, atol=0)
    assert 0 < (ours > 0).sum() < len(ours)
    logs = {}
    quietly(trl.log, logs)
    assert "reweigh/sequence/tv" in logs
    assert "reweigh/weight/mean" not in logs


def test_what_is_logged_is_of_raw_ratios_and_of_the_weights_multiplied_in(tmp_path):
    trl = made(tmp_path, token_tis(1.1))
    out = quietly(scored, trl)
    batch = Batch.padded(
        wide(out["old_per_token_logps"]), wide(out["sampling_per_token_logps"]), out["completion_mask"]
    )
    logs = {}
    quietly(trl.log, logs)
    token = summarise(RatioStats.of(batch, TOKEN))
    group = torch.arange(8) // 4
    grouped = Batch.padded(batch.log_pi, batch.log_mu, out["completion_mask"], group=group)
    assert logs["reweigh/token/mean_ratio"] == token.value("mean_ratio")
    assert logs["reweigh/token/n"] == out["completion_mask"].sum()
    assert logs["reweigh/sequence/tv"] == summarise(RatioStats.of(grouped, SEQUENCE)).value("tv")
    ratio = out["importance_sampling_ratio"][out["completion_mask"].bool()]
    for name, value in (("min", ratio.min()), ("mean", ratio.mean()), ("max", ratio.max())):
        assert logs[f"sampling/importance_sampling_ratio/{name}"] == pytest.approx(value.item())
    assert ratio.max() == pytest.approx(1.1)
    assert all(isinstance(v, float | int) for v in logs.values())
    later = {}
    quietly(trl.log, later)
    assert not any(name.startswith("reweigh/") for name in later)


def test_metrics_reach_the_loggers_of_the_trainer(tmp_path):
    """W&B, TensorBoard, trackio and MLflow are callbacks of the trainer: what one gets, all get."""
    from transformers import TrainerCallback

    seen = []

    class Logger(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            seen.append(dict(logs))

    trl = made(tmp_path, seq_tis(2.0), max_steps=2)
    trl.add_callback(Logger())
    quietly(trl.train)
    assert [row["reweigh/sequence/n"] for row in seen if "reweigh/sequence/n" in row] == [8, 8]
    json.dumps(seen, allow_nan=False)


def test_evaluation_is_logged_apart(tmp_path):
    trl = made(tmp_path, seq_tis(2.0), per_device_eval_batch_size=8)
    quietly(trl.evaluate, trl.train_dataset)
    row = trl.state.log_history[-1]
    assert row["eval_reweigh/sequence/n"] > 0
    assert "reweigh/sequence/n" not in row


def test_batches_that_are_used_for_many_steps_keep_their_weights(tmp_path):
    trl = made(
        tmp_path, seq_tis(2.0), steps_per_generation=2, num_iterations=2, max_steps=4, per_device_train_batch_size=4
    )
    quietly(trl.train)
    rows = [row["reweigh/sequence/n"] for row in trl.state.log_history if "reweigh/sequence/n" in row]
    assert rows == [8]


def test_records_are_written_while_training_and_read_by_the_audit(tmp_path):
    folder = tmp_path / "records"
    trl = made(tmp_path, seq_tis(2.0), max_steps=4, capture=Capture(folder, RunInfo(engine="transformers"), every=2))
    quietly(trl.train)
    assert sorted(p.name for p in folder.iterdir()) == [f"step_{i:08d}_rank_0000.parquet" for i in (0, 2)]
    assert validate([folder]).ok
    info = read_info(folder / "step_00000000_rank_0000.parquet")
    assert (info.trainer, info.trainer_version) == ("trl", version("trl"))
    assert (info.engine, info.temperature) == ("transformers", 1.0)
    (first, second) = read_batches([folder])
    assert first.batch.layout.num_seqs == 8
    assert set(first.column("step")) == {0}
    assert set(second.column("step")) == {2}
    assert len(set(first.column("prompt_id"))) == 2
    assert (first.tokens("advantage") != 0).any()


def test_a_record_holds_what_the_loss_was_weighed_by(tmp_path):
    folder = tmp_path / "records"
    trl = made(tmp_path, seq_tis(2.0), capture=Capture(folder))
    out = quietly(scored, trl)
    (part,) = read_batches([folder])
    mask = out["completion_mask"].bool()
    assert torch.equal(part.batch.log_pi, out["old_per_token_logps"][mask])
    assert torch.equal(part.batch.log_mu, out["sampling_per_token_logps"][mask])
    assert part.tokens("token_ids").tolist() == out["completion_ids"][mask].tolist()


def test_the_first_batch_is_checked_and_later_ones_are_counted(tmp_path):
    broken = {"at": 0}

    def breaks(inner):
        def rollout(prompts, trainer):
            out = inner(prompts, trainer)
            out["logprobs"][0][0] = None if broken["at"] == 0 else out["logprobs"][0][0]
            return out

        return rollout

    trl = made(tmp_path, seq_tis(2.0), capture=Capture(tmp_path / "stopped"))
    trl.rollout_func = breaks(trl.rollout_func)
    with pytest.raises(ValueError, match=r"Batch: log_mu is NaN on 1 of \d+ tokens in the mask, first log_mu\[0, 0\]"):
        quietly(scored, trl)
    (part,) = read_batches([tmp_path / "stopped"])
    assert part.batch.log_mu.isnan().sum() == part.batch.dropped.sum() == 1
    lenient = made(tmp_path, token_tis(2.0), check=False)
    lenient.rollout_func = breaks(lenient.rollout_func)
    out = quietly(scored, lenient)
    assert out["importance_sampling_ratio"][0, 0] == 0
    assert torch.isfinite(out["importance_sampling_ratio"]).all()
    logs = {}
    quietly(lenient.log, logs)
    assert logs["reweigh/token/dropped"] == 1


def test_tool_tokens_are_not_the_policys(tmp_path):
    trl = made(tmp_path, seq_tis(2.0))
    inner = trl.rollout_func

    def with_tools(prompts, trainer):
        out = inner(prompts, trainer)
        env = [[i != 1 for i in range(len(ids))] for ids in out["completion_ids"]]
        for row in out["logprobs"]:
            row[1:2] = [-50.0] * len(row[1:2])
        return out | {"env_mask": [[int(x) for x in row] for row in env]}

    trl.rollout_func = with_tools
    out = quietly(scored, trl)
    assert (out["importance_sampling_ratio"][:, 1] == 0).all()
    assert out["importance_sampling_ratio"].max() <= 2.0
    assert (out["importance_sampling_ratio"][:, 0] > 0).all()


def test_a_trainer_that_cannot_know_the_sampler_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nothing tells the sampler's log-probs\nhint: set use_vllm=True, or give"):
        trainer(tmp_path, seq_tis(2.0), rollout=None)


def test_vespo_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"loss_type='vespo' takes the ratio inside its kernel"):
        trainer(tmp_path, seq_tis(2.0), loss_type="vespo")


def test_another_version_is_warned_of_by_name(monkeypatch):
    monkeypatch.setitem(KNOWN, "trl", ("1.1", "1.12.2"))
    there = re.escape(version("trl"))
    rule = rf"trl {there} is not known; known versions are 1\.1, 1\.12\.2.*\nhint: pip install \"trl==1\.12\.2\""
    with pytest.warns(UnknownVersionWarning, match=rule):
        assert require("trl") == version("trl")
    monkeypatch.setitem(KNOWN, "no-such-package", ("2.1",))
    with pytest.raises(NotInstalledError, match=r"no-such-package is not installed; known versions are 2\.1\nhint:"):
        require("no-such-package")


def history(trl):
    quietly(trl.train)
    timed = ("runtime", "per_second", "step_time")
    return [{k: v for k, v in row.items() if not any(t in k for t in timed)} for row in trl.state.log_history]


def test_another_version_trains_as_a_known_one_does_once_the_weights_are_seen_to_arrive(tmp_path, monkeypatch):
    known = history(made(tmp_path, seq_tis(1.2), max_steps=2))
    monkeypatch.setitem(KNOWN, "trl", ("0.1",))
    other = history(made(tmp_path, seq_tis(1.2), max_steps=2))
    assert other == known  # its metrics too: the check leaves no trace


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo", "sapo"])
@pytest.mark.parametrize("reason", ["version", "unsloth"])
def test_weights_that_do_not_arrive_stop_a_run_that_is_not_known(tmp_path, monkeypatch, loss_type, reason):
    """As a release would that reads them under another name, or what Unsloth has patched."""
    if reason == "version":
        monkeypatch.setitem(KNOWN, "trl", ("0.1",))
    else:
        monkeypatch.setitem(sys.modules, "unsloth", ModuleType("unsloth"))
    trl = made(tmp_path, seq_tis(1.2), loss_type=loss_type)
    quietly(trl.train)  # as it is, the weights arrive
    theirs = GRPOTrainer.compute_loss

    def deaf(self, model, inputs, *args, **kwargs):
        return theirs(self, model, inputs | {"importance_sampling_ratio": torch.ones(())}, *args, **kwargs)

    monkeypatch.setattr(GRPOTrainer, "compute_loss", deaf)
    trl = made(tmp_path, seq_tis(1.2), loss_type=loss_type)
    rule = r"its self-check fails: the loss does not follow the weights, which were 0, u and 2 u: it was"
    with pytest.raises(UnknownVersionError, match=rule):
        quietly(trl.train)


def test_a_version_whose_batches_lack_a_name_stops(tmp_path, monkeypatch):
    monkeypatch.setitem(KNOWN, "trl", ("0.1",))
    trl = made(tmp_path, seq_tis(1.2))
    theirs = GRPOTrainer._generate_and_score_completions

    def renamed(self, inputs):
        out = theirs(self, inputs)
        return out | {"sampling_logps": out.pop("sampling_per_token_logps")}

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", renamed)
    with pytest.raises(UnknownVersionError, match=r"what its batches held is not there: sampling_per_token_logps"):
        quietly(scored, trl)


def test_unsloths_trainer_is_refused_by_name(tmp_path, monkeypatch):
    """`import unsloth` puts a class of its own at `trl.GRPOTrainer`, whose loss is compiled apart."""
    import trl

    patched = type("UnslothGRPOTrainer", (GRPOTrainer,), {"__module__": "UnslothGRPOTrainer"})
    monkeypatch.setattr(trl, "GRPOTrainer", patched)
    monkeypatch.delitem(sys.modules, "reweigh.trainers.trl")
    ours = importlib.import_module("reweigh.trainers.trl")
    monkeypatch.setitem(sys.modules, "reweigh.trainers.trl", ours)
    with pytest.raises(ValueError, match=r"Unsloth has put UnslothGRPOTrainer in the place of TRL's.*\nhint: train wi"):
        trainer(tmp_path, seq_tis(2.0))


class Engine:
    """What TRL calls in place of vLLM: its weights are handed over, and it samples with them."""

    def __init__(self, model, processing_class, temperature, **_):
        self.model, self.tokenizer, self.temperature, self.synchronised = model, processing_class, temperature, 0

    def sync_weights(self):
        self.synchronised += 1

    def generate(self, prompts, images, num_generations, profiler=None):
        g = torch.Generator().manual_seed(self.synchronised)
        ids = [torch.randint(3, 20, (5,), generator=g).tolist() for _ in prompts]
        return prompts, ids, [[[-2.5] for _ in row] for row in ids], None


def test_which_weights_sampled_is_recorded_where_trl_hands_them_over(tmp_path, monkeypatch):
    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", Engine)
    folder = tmp_path / "records"
    trl = trainer(tmp_path, token_tis(2.0), rollout=None, capture=Capture(folder), use_vllm=True, max_steps=3,
        vllm_mode="colocate", steps_per_generation=1)  # fmt: skip
    quietly(trl.train)
    for step, part in enumerate(read_batches([folder])):
        assert part.tokens("versions").tolist() == [step] * 8 * 5
        assert part.column("trainer_version").tolist() == [step] * 8


@pytest.mark.slow
def test_a_rollout_says_which_weights_sampled(tmp_path):
    """Every other response is of the weights of two steps ago: `--by lag` tells them apart."""
    folder = tmp_path / "records"
    trl = made(tmp_path, seq_tis(2.0), max_steps=4, capture=Capture(folder))
    inner = trl.rollout_func

    def lagging(prompts, trainer):
        out, now = inner(prompts, trainer), trainer.state.global_step
        behind = [max(0, now - 2 * (i % 2)) for i in range(len(prompts))]
        by_token = [[v] * len(ids) for v, ids in zip(behind, out["completion_ids"], strict=True)]
        return out | {"versions": by_token if now % 2 else behind}

    trl.rollout_func = lagging
    quietly(trl.train)
    assert validate([folder]).ok
    parts = list(read_batches([folder]))
    assert all((part.tokens("versions") >= 0).all() for part in parts)
    assert sorted(set(parts[3].tokens("versions").tolist())) == [1, 3]
    rows = json.loads(run_reweigh("audit", str(folder), "--by", "lag", "--json", "--no-doctor"))["where"]["lag"]["rows"]
    assert {row["label"] for row in rows} >= {"0", "2"}
    silent = made(tmp_path, seq_tis(2.0), capture=Capture(tmp_path / "silent"))
    named = silent.rollout_func
    silent.rollout_func = lambda *args: {k: v for k, v in named(*args).items() if k != "versions"}
    quietly(scored, silent)
    (part,) = read_batches([tmp_path / "silent"])
    assert part.tokens("versions") is None  # nobody has said it, so it is not known
    silent.rollout_func = lambda prompts, trainer: inner(prompts, trainer) | {"versions": [0]}
    with pytest.raises(ValueError, match=r"rollout_func returned versions of 1 responses for 8\nhint: one number a"):
        quietly(scored, silent)


def run_reweigh(*arguments):
    run = [sys.executable, "-m", "reweigh", *arguments]
    done = subprocess.run(run, capture_output=True, text=True, check=False, cwd=ROOT, env=_environment())
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_example_learns_and_its_records_pass_the_audit(tmp_path):
    """As in the docs, at small size: a real trainer, another number format for the sampler, rewards that rise."""
    run = [sys.executable, "-W", "ignore", str(EXAMPLE), "--tiny", "--steps", "12", "--out", str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True, check=False, cwd=ROOT, env=_environment())
    assert done.returncode == 0, done.stderr[-2000:]
    first, last = (float(word) for word in done.stdout.split() if word.replace(".", "").isdigit())
    assert last > first + 0.3, done.stdout
    assert validate([tmp_path]).ok
    audit = [sys.executable, "-m", "reweigh", "audit", str(tmp_path), "--json"]
    done = subprocess.run(audit, capture_output=True, text=True, check=False, cwd=ROOT, env=_environment())
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)["diagnosis"]
    # The sampler rounds its weights to int8, and its gap grows with the weights: what captured records must not show is
    # log-probs that are not of their tokens, or not of what was sampled.
    named = {x["id"] for x in found["causes"] if x["confidence"] >= 0.5}
    sound = CAUSES[: CAUSES.index("trainer_temperature")]
    assert not named & set(sound), found["causes"]
    assert found["tokens"] > 0


@pytest.mark.slow
def test_a_prompt_whose_responses_are_on_two_ranks_is_one_group(tmp_path):
    """The weights are those of the whole batch, to the bit: normalised over a prompt that no rank has whole."""
    outs = [tmp_path / f"{rank}.json" for rank in range(2)]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(ROOT / "tests" / "trl_ranks.py"), str(out), str(tmp_path / "meet")],
            env=_environment() | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, out in enumerate(outs)
    ]
    errors = [rank.communicate(timeout=600)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors[0][-1500:] + errors[1][-1500:]
    parts = [json.loads(out.read_text()) for out in outs]
    assert [part["n"] for part in parts] == [8, 8]  # what is logged is of the whole batch, on each
    width = max(len(part["completion_mask"][0]) for part in parts)
    tensors = []
    for name in ("old_per_token_logps", "sampling_per_token_logps", "completion_mask", "importance_sampling_ratio"):
        rows = [row + [0.0] * (width - len(row)) for part in parts for row in part[name]]
        tensors.append(torch.tensor(rows))
    pi, mu, mask, ratio = tensors
    whole = group_snis()(Batch.padded(wide(pi), wide(mu), mask, group=torch.zeros(8, dtype=torch.int64)))
    assert torch.equal(ratio, factor(whole))
    assert ratio[:, 0].mean() == pytest.approx(1.0)
    assert ratio[:4, 0].mean() != pytest.approx(1.0, abs=1e-3)


def _environment():
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
