"""Our correction inside verl 0.9.1's own functions. Needs an environment with verl, so it is not collected by itself:

pip install verl==0.9.1 && pip install -e ".[audit]" pytest && pytest tests/frameworks/check_verl.py
"""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import verl as framework
from verl.trainer.ppo import core_algos, ray_trainer, rollout_corr_helper

from reweigh import Batch, group_snis, self_normalised, seq_mis, seq_tis, token_tis
from reweigh.records import read_batches, validate
from reweigh.rosetta.config import translate
from reweigh.trainers.capture import Capture
from reweigh.trainers.seen import factor, wide
from reweigh.trainers.verl import DRIVER, Correction

OPTIONS = [
    {"rollout_is": "token", "rollout_is_threshold": 2.0},
    {"rollout_is": "token", "rollout_is_threshold": "0.8_1.2"},
    {"rollout_is": "sequence", "rollout_is_threshold": 2.0},
    {"rollout_is": "sequence", "rollout_is_threshold": 2.0, "rollout_is_batch_normalize": True},
    {"rollout_rs": "token_k1", "rollout_rs_threshold": "0.8_1.2"},
    {"rollout_rs": "token_k2", "rollout_rs_threshold": "0.02"},
    {"rollout_rs": "seq_sum_k1", "rollout_rs_threshold": "0.5_2.0"},
    {"rollout_rs": "seq_mean_k1", "rollout_rs_threshold": "0.97_1.02"},
    {"rollout_rs": "seq_mean_k3", "rollout_rs_threshold": "0.02"},
    {"rollout_rs": "seq_max_k2", "rollout_rs_threshold": "0.1"},
    {
        "rollout_is": "token",
        "rollout_is_threshold": 2.0,
        "rollout_rs": "seq_max_k3,seq_mean_k3",
        "rollout_rs_threshold": "0.3,0.03",
    },
]


@pytest.fixture
def batch():
    """A real DataProto: 12 responses of 3 prompts, right-padded."""
    g = torch.Generator().manual_seed(1)
    mu = -torch.rand(12, 30, generator=g) * 3 - 0.5
    pi = mu + (0.05 + 0.2 * torch.rand(12, 1, generator=g)) * torch.randn(12, 30, generator=g)
    mask = torch.arange(30) < torch.randint(1, 31, (12, 1), generator=g)
    tensors = {"old_log_probs": pi, "rollout_log_probs": mu, "response_mask": mask.long(),
        "token_level_scores": torch.randn(12, 30, generator=g),
        "responses": torch.arange(360).view(12, 30)}  # fmt: skip
    proto = framework.DataProto.from_single_dict(tensors)
    proto.non_tensor_batch["uid"] = np.array([f"p{i // 4}" for i in range(12)], dtype=object)
    return proto


@pytest.fixture
def installed():
    """Put a correction in verl's places; give the places back afterwards."""
    kept = getattr(rollout_corr_helper, DRIVER), dict(core_algos.POLICY_LOSS_REGISTRY)
    yield lambda correction: correction.install()
    setattr(rollout_corr_helper, DRIVER, kept[0])
    core_algos.POLICY_LOSS_REGISTRY.clear()
    core_algos.POLICY_LOSS_REGISTRY.update(kept[1])


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_the_driver_gives_what_verls_own_options_give(batch, installed, options):
    """The composition that the Rosetta profile reads, through our hook, against verl's function."""
    data = batch.batch
    theirs, mask, _ = rollout_corr_helper.compute_rollout_correction_and_rejection_mask(
        data["old_log_probs"],
        data["rollout_log_probs"],
        data["response_mask"],
        **{"rollout_is_threshold": 2.0} | options,
    )
    weight = 1.0 if theirs is None else theirs.batch["rollout_is_weights"]
    wanted = mask * weight
    plan = translate("verl", options).reading.plan
    estimator = plan.weights * plan.screens
    installed(Correction(self_normalised(estimator) if plan.normalise else estimator))
    out, metrics = rollout_corr_helper.compute_rollout_correction_and_add_to_batch(batch, {"rollout_is": None})
    ours = out.batch["response_mask"] * out.batch["rollout_is_weights"]
    torch.testing.assert_close(ours, wanted.float(), rtol=2e-5, atol=1e-6)
    assert out.batch["rollout_is_weights"].shape == (12, 30)
    json.dumps(metrics, allow_nan=False)


def test_advantages_are_computed_on_what_the_driver_made(batch, installed, tmp_path):
    installed(Correction(group_snis(), capture=Capture(tmp_path)))
    batch.batch["token_level_rewards"] = batch.batch["token_level_scores"]
    out, _ = rollout_corr_helper.compute_rollout_correction_and_add_to_batch(batch, None)
    out = ray_trainer.compute_advantage(out, adv_estimator="grpo", gamma=1.0, lam=1.0, num_repeat=4)
    assert torch.isfinite(out.batch["advantages"]).all()
    per_prompt = (out.batch["rollout_is_weights"][:, 0]).view(3, 4).mean(1)
    torch.testing.assert_close(per_prompt, torch.ones(3))
    assert validate([tmp_path]).ok
    (part,) = read_batches([tmp_path])
    assert part.batch.group.unique().numel() == 3


def test_the_weights_reach_verls_losses(batch, installed):
    """Decoupled: each of verl's losses that takes weights, with ours, is its own loss times a weight of 1.5."""
    from reweigh import TOKEN, Clip, weigh

    installed(Correction(weigh(TOKEN, Clip(1.5, 1.5))))
    out, _ = rollout_corr_helper.compute_rollout_correction_and_add_to_batch(batch, None)
    old, mask = out.batch["old_log_probs"], out.batch["response_mask"]
    advantages = torch.randn(12, 30, generator=torch.Generator().manual_seed(2))
    for name in ("vanilla", "gspo", "cispo"):
        fn, losses = core_algos.get_policy_loss_fn(name), []
        for weights in (None, out.batch["rollout_is_weights"]):
            config = actor_config()
            losses.append(fn(old, old + 0.01, advantages, mask, "token-mean", config, weights)[0])
        torch.testing.assert_close(losses[1], 1.5 * losses[0])


def actor_config(**more):
    from verl.workers.config import ActorConfig

    return ActorConfig(strategy="fsdp", rollout_n=4, ppo_micro_batch_size_per_gpu=4, **more)


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_bypass_loss_is_verls_own_where_both_have_the_estimator(batch, installed, mode, level):
    data, config = batch.batch, actor_config()
    own = core_algos.get_policy_loss_fn("bypass_mode")
    chosen = {"loss_type": "reinforce", "rollout_is": level, "rollout_is_threshold": 1.5}
    settings = SimpleNamespace(policy_loss={"rollout_correction": chosen}, global_batch_info=config.global_batch_info)
    advantages = torch.randn(12, 30, generator=torch.Generator().manual_seed(3))
    arguments = (data["rollout_log_probs"],), (advantages, data["response_mask"], mode)
    gradients = []
    installed(Correction({"token": token_tis(1.5), "sequence": seq_tis(1.5)}[level], mode="bypass"))
    for fn, given in ((own, settings), (core_algos.get_policy_loss_fn("bypass_mode"), config)):
        live = data["old_log_probs"].clone().requires_grad_()
        loss, metrics = fn(*arguments[0], live, *arguments[1], given)
        loss.backward()
        gradients.append((loss.detach(), live.grad))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=2e-5, atol=1e-6)
    assert core_algos.get_policy_loss_fn("reweigh") == core_algos.get_policy_loss_fn("bypass_mode")
    assert "reweigh/weight" in metrics


def test_bypass_weights_are_the_estimators_bits(batch, installed):
    installed(Correction(seq_mis(0.5, 2.0), mode="bypass"))
    data = batch.batch
    live = data["old_log_probs"].clone().requires_grad_()
    fn = core_algos.get_policy_loss_fn("reweigh")
    fn(data["rollout_log_probs"], live, torch.ones(12, 30), data["response_mask"], "token-sum")[0].backward()
    want = seq_mis(0.5, 2.0)(Batch.padded(wide(live), wide(data["rollout_log_probs"]), data["response_mask"]))
    assert torch.equal(-live.grad, factor(want))


def doctor(tmp_path, value, *arguments, **environment):
    (tmp_path / "corrections.py").write_text(
        "from reweigh import seq_tis\nfrom reweigh.trainers.verl import Correction\n"
        "correction = Correction(seq_tis(2.0))\nbypass = Correction(seq_tis(2.0), mode='bypass')\n"
    )
    run = [sys.executable, "-W", "ignore", "-m", "reweigh", "doctor-install", "verl", "--json", *arguments]
    path = os.pathsep.join([str(tmp_path), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    env = {**os.environ, "REWEIGH_CORRECTION": value, "PYTHONPATH": path} | environment
    done = subprocess.run(run, capture_output=True, text=True, check=False, env=env)
    return done.returncode, {c["name"]: c for c in json.loads(done.stdout)["checks"]}


@pytest.mark.parametrize("name", ["correction", "bypass"])
def test_doctor_install_passes_when_verl_loads_the_plugin(tmp_path, name):
    code, checks = doctor(tmp_path, f"corrections:{name}")
    assert code == 0, checks
    assert {"version", "entry point", "correction", "in place", "weights"} == set(checks)


@pytest.mark.parametrize(
    ("value", "environment", "failing"),
    [
        ("", {}, "correction"),
        ("corrections:absent", {}, "correction"),
        ("corrections:correction", {"VERL_USE_EXTERNAL_PLUGINS": "none"}, "in place"),
        ("corrections:bypass", {"VERL_USE_EXTERNAL_PLUGINS": "other"}, "entry point"),
    ],
)
def test_doctor_install_says_which_link_fails(tmp_path, value, environment, failing):
    code, checks = doctor(tmp_path, value, **environment)
    assert code == 1
    assert not checks[failing]["ok"]
    assert checks[failing]["hint"]


def test_doctor_install_reads_the_configuration(tmp_path):
    config = tmp_path / "run.json"
    rollout = {"actor_rollout_ref": {"rollout": {"calculate_log_probs": False}}}
    config.write_text(json.dumps(rollout | {"algorithm": {"rollout_correction": {"bypass_mode": False}}}))
    code, _ = doctor(tmp_path, "corrections:correction", "--config", str(config))
    assert code == 1
    code, _ = doctor(tmp_path, "corrections:correction")
    assert code == 0


def test_a_correction_that_cannot_be_loaded_stops_verl(tmp_path):
    """verl itself would log it at DEBUG and train on without it."""
    env = {**os.environ, "REWEIGH_CORRECTION": "no_module_of_this_name:x"}
    done = subprocess.run([sys.executable, "-c", "import verl"], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 1
    assert "cannot load 'no_module_of_this_name:x'" in done.stderr


def test_the_newer_trainer_takes_the_driver_too(tmp_path):
    """verl's V1 trainer copies the function's name when it is imported, which is after the plugin."""
    pytest.importorskip("transfer_queue", reason="verl's V1 trainer needs TransferQueue")
    doctor(tmp_path, "corrections:correction")
    code = f"from verl.trainer.ppo.v1 import trainer_base as t; print(type(t.{DRIVER}.__self__).__name__)"
    env = {**os.environ, "REWEIGH_CORRECTION": "corrections:correction", "PYTHONPATH": str(tmp_path)}
    run = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, check=False, env=env)
    assert done.stdout.strip().endswith("Correction"), done.stderr[-500:]
