"""What eleven frameworks' own functions returned comes out of our compositions, or of a quirk that a profile names."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reweigh.conformance import check, check_case, loss_of, matrix, read_recording
from reweigh.rosetta import PROFILES, Plan, Reading, RefusedError, Situation, Tensors, profile_of, run

FILE = Path(__file__).parent / "data" / "conformance.json"
RECORDING = read_recording(str(FILE))
CASES = [pytest.param(c, id=c.id) for c in RECORDING.cases]
# Random batches of other shapes and options, with log-probs that are infinite or NaN: those that together need every
# combination of quirks that 5,000 such cases of the same functions did.
FRESH = read_recording(str(FILE.with_name("conformance_fresh.json")))
ORDINARY = ("plain", "holes", "certain", "wide", "one", "adv0")
# How many of each framework's cases are ours as they are; the others need a quirk.
AGREE = {
    "verl": 27,
    "slime": 29,
    "skyrl": 25,
    "areal": 28,
    "ms-swift": 7,
    "openrlhf": 15,
    "nemo-rl": 14,
    "trl": 17,
    "prime-rl": 3,
    "roll": 15,
    "open-instruct": 10,
}


@pytest.fixture(scope="module")
def checked():
    return {c.case.id: c for c in check(RECORDING)}


@pytest.fixture(scope="module")
def fresh():
    return check(FRESH)


@pytest.mark.parametrize("framework", AGREE)
def test_every_fresh_case_agrees_or_a_named_quirk_reproduces_it(framework, fresh):
    found = [c for c in fresh if c.case.framework == framework]
    assert len(found) >= 8
    assert {c.case.id: c.unexplained for c in found if c.status == "differs"} == {}
    assert all(c.compared for c in found)


def test_fresh_cases_of_ordinary_log_probs_need_no_quirk(fresh):
    """But for what is divided by nothing, or asserted."""
    for found in fresh:
        if found.case.batch.partition(":")[2].rstrip("0123456789") in ORDINARY and "raises" not in found.case.outputs:
            kinds = {"weights", "mask", "loss", "gradient"} & set(found.differing)
            allowed = {"mean_of_nothing", "mean_of_rows", "mean_of_all", "m2po_keeps_one", "zero_is_negative"}
            allowed |= {"empty_rows_count"} | ({"screens_clamp_tokens"} if found.case.framework == "verl" else set())
            assert not kinds or {q.name for q in found.quirks} <= allowed, found.case.id


@pytest.mark.parametrize("case", CASES)
def test_every_case_agrees_or_a_named_quirk_reproduces_it(case, checked):
    found = checked[case.id]
    assert found.status != "differs", found.unexplained
    assert bool(found.quirks) == (found.status == "explained") == bool(found.differing)
    assert found.compared  # none is skipped


def test_as_many_cases_agree_without_a_quirk_as_did(checked):
    found = {f: sum(c.status == "agrees" for c in checked.values() if c.case.framework == f) for f in AGREE}
    assert found == AGREE
    assert len(checked) == len(RECORDING.cases) == 328


def test_ordinary_batches_need_no_quirk_for_weights_masks_losses_and_gradients(checked):
    """Infinities, overflow, sequences without tokens: there frameworks part. Elsewhere the composition is theirs."""
    for found in checked.values():
        if found.case.batch == "small" and "raises" not in found.case.outputs and "vespo" not in found.case.id:
            assert not {"weights", "mask", "loss", "gradient"} & set(found.differing), found.case.id


def test_every_recorded_metric_is_compared_or_has_a_reason(checked):
    for found in checked.values():
        recorded = {*found.case.outputs.get("metrics", {}), *found.case.outputs.get("metrics_per_sequence", {})}
        reasons = dict(found.no_equal)
        assert recorded <= {*found.compared, *reasons}, found.case.id
        assert "the profile does not name it" not in reasons.values(), (found.case.id, reasons)


def test_every_quirk_is_one(checked, fresh):
    used = {(c.case.framework, q.name) for c in (*checked.values(), *fresh) for q in c.quirks}
    named = {(p.name, q.name) for p in PROFILES for q in p.quirks if p.name in AGREE}
    assert named == used


def test_the_mean_over_all_units_counts_what_a_band_zeroed():
    ratio = torch.tensor([[1.0, 3.0, 1.0, 1.0]])
    tensors = Tensors(ratio.log(), torch.zeros(1, 4), torch.ones(1, 4, dtype=torch.bool), torch.ones(1))
    verl = profile_of("verl")
    options = {"rollout_is": "token", "rollout_is_threshold": "0.5_2.0", "rollout_is_batch_normalize": True}
    reading = verl.read(options)
    quirk = next(q for q in verl.quirks if q.name == "mean_of_all")
    torch.testing.assert_close(run(reading.plan, tensors).per_token, torch.tensor([[1.0, 0.0, 1.0, 1.0]]))
    switched = quirk.apply(reading.plan, Situation(verl.given(options), tensors, reading))
    torch.testing.assert_close(run(switched, tensors).per_token, torch.tensor([[4 / 3, 0.0, 4 / 3, 4 / 3]]))


def test_a_clamped_probability_can_pass_where_ours_is_infinitely_far():
    openrlhf = profile_of("openrlhf")
    options = {
        "is_correction_level": "token",
        "is_correction_gating": "binary_kl",
        "is_correction_threshold": [0, 0.7],
    }
    reading = openrlhf.read(options)
    # mu = 1/2 and pi = 1: the KL is infinite; of pi = 1 - 1e-6 it is 6.2; at mu = 1e-9, pi = 1/2 it is 0.69.
    log_pi, log_mu = torch.tensor([[0.0, 0.5]]), torch.tensor([[0.5, 1e-9]])
    log_pi[0, 0] = 1.0
    tensors = Tensors(log_pi.log(), log_mu.log(), torch.ones(1, 2, dtype=torch.bool), torch.ones(1))
    quirk = next(q for q in openrlhf.quirks if q.name == "probabilities_clamped")
    switched = quirk.apply(reading.plan, Situation(openrlhf.given(options), tensors, reading))
    assert run(switched, tensors).keep.tolist() == [[False, True]]
    assert switched.estimator != reading.plan.estimator


ROUNDED = {
    "verl": {"loss_mode": "dppo_kl", "clip_ratio_low": 10, "clip_ratio_high": 10},
    "skyrl": {"policy_loss_type": "dppo", "dppo_type": "binary_kl", "delta_low": 10, "delta_high": 10},
}


@pytest.mark.parametrize("framework", sorted(ROUNDED))
def test_a_binary_kl_of_rounded_probabilities_passes_where_ours_is_far(framework):
    profile = profile_of(framework)
    reading = profile.read(ROUNDED[framework])
    # mu = 1/2. Of 1 - pi = 1e-12 the KL is 13.1 nats; of 1 - pi = 1e-8 it is 8.5. Then mu = 0, which is 0.69 from 1/2.
    log_pi = torch.tensor([[math.log1p(-1e-12), math.log(0.5), math.log(0.5)]], dtype=torch.float64).float()
    log_mu = torch.tensor([[math.log(0.5), math.log(0.5), -math.inf]])
    tensors = Tensors(log_pi, log_mu, torch.ones(1, 3, dtype=torch.bool), torch.ones(1))
    situation, switched = Situation(profile.given(ROUNDED[framework]), tensors, reading), reading.plan
    for quirk in profile.quirks:
        if quirk.name in ("infinite_kept", "kl_rounded"):
            switched = quirk.apply(switched, situation)
    ours, theirs = (run(plan, tensors).keep[0].tolist() for plan in (reading.plan, switched))
    assert ours[:2] == [False, True]
    assert theirs[:2] == [True, True]
    assert theirs[2] is (framework == "skyrl")


@pytest.mark.parametrize("framework", ["verl", "openrlhf", "skyrl"])
def test_a_clamp_of_the_losss_own_ratio_ends_its_gradient(framework):
    profile = profile_of(framework)
    loss = replace(profile.read({}).loss, low=1.0, high=math.inf, dual=None, over="sum")
    tensors = Tensors(*(torch.zeros(1, 2) - 1 for _ in range(2)), torch.ones(1, 2, dtype=torch.bool), torch.ones(1))
    live = torch.tensor([[-31.0, -2.0]])  # 30 nats below, and 1
    quirk = next(q for q in profile.quirks if q.name == "loss_clamps_ratio")
    plan = Plan()
    outcome = run(plan, tensors)
    value, grad = loss_of(loss, plan, outcome, tensors.mask, tensors.advantage, live, tensors.log_pi)
    torch.testing.assert_close(grad, -torch.exp(live + 1))
    switched = quirk.apply(plan, Situation(profile.given({}), tensors, Reading(plan)))
    value, grad = loss_of(loss, switched, outcome, tensors.mask, tensors.advantage, live, tensors.log_pi)
    torch.testing.assert_close(grad, torch.tensor([[0.0, -math.exp(-1)]]))
    torch.testing.assert_close(value, torch.tensor(-math.exp(-20) - math.exp(-1)))


def mutated(case, **outputs):
    return replace(case, outputs={**case.outputs, **outputs})


def test_a_wrong_number_is_noticed():
    case = next(c for c in RECORDING.cases if c.id == "trl/sequence_mask/small")
    batch = RECORDING.batches["small"]
    assert check_case(case, batch).status == "agrees"
    off = [1.0001 * w for w in case.outputs["weight_per_sequence"]]
    assert check_case(mutated(case, weight_per_sequence=off), batch).unexplained == ("weights",)
    metrics = {k: v + 1e-3 for k, v in case.outputs["metrics"].items()}
    assert set(check_case(mutated(case, metrics=metrics), batch).unexplained) == set(metrics)


def test_a_wrong_mask_is_noticed():
    case = next(c for c in RECORDING.cases if c.id == "verl/rs_token_k1/small")
    mask = matrix(case.outputs["mask_out"])
    mask[0, 0] = 1 - mask[0, 0]
    assert "mask" in check_case(mutated(case, mask_out=mask.tolist()), RECORDING.batches["small"]).unexplained


def test_a_wrong_gradient_is_noticed():
    case = next(c for c in RECORDING.cases if c.id == "slime/loss_ppo_clip_tis/small")
    grad = (matrix(case.outputs["grad_per_token"]) * 1.001).nan_to_num(0).tolist()
    assert check_case(mutated(case, grad_per_token=grad), RECORDING.batches["small"]).unexplained == ("gradient",)


def test_a_metric_that_no_profile_names_is_told():
    case = next(c for c in RECORDING.cases if c.id == "trl/token_mask/small")
    found = check_case(mutated(case, metrics={"sampling/new": 1.0}), RECORDING.batches["small"])
    assert found.no_equal == (("sampling/new", "the profile does not name it"),)


def test_what_they_refuse_we_refuse_or_name(checked):
    raised = {i: c for i, c in checked.items() if "raises" in c.case.outputs}
    assert {i for i, c in raised.items() if c.status == "explained"} == {
        "verl/is_token_all_masked_batch/small",
        "slime/mis_geometric_truncate_batchnorm/small",
        "slime/mis_metrics_only_without_bounds/small",
    }
    assert {i for i, c in raised.items() if c.status == "agrees"} == {
        "skyrl/loss_cispo_rollout_with_tis/small",
        "areal/invalid_clamp_k2/small",
        "openrlhf/invalid_seq_clip/small",
        "openrlhf/invalid_tv_band/small",
        "nemo-rl/invalid_icepop_without_min/small",
    }


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": "conformance-9"}, "format must be 'conformance-1', got 'conformance-9'"),
        ({"cases": []}, "has no cases"),
        ({"batches": {}}, "has no batches"),
        ({"cases": [{"id": "a"}]}, "case 1: framework, option, batch, outputs missing"),
        (
            {"cases": [{"id": "a", "framework": "verl", "option": {}, "batch": "none", "outputs": {}}]},
            "case 1 (a): no batch 'none'",
        ),
    ],
)
def test_a_file_that_is_none_says_where(tmp_path, change, says):
    data = json.loads(FILE.read_text()) | change
    path = tmp_path / "recorded.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="hint: ") as e:
        read_recording(str(path))
    assert says in str(e.value)
    assert str(path) in str(e.value)


def test_a_batch_of_another_shape_says_which(tmp_path):
    data = json.loads(FILE.read_text())
    data["batches"]["small"]["log_mu"] = [[0.0]]
    path = tmp_path / "recorded.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"batch 'small': log_mu has shape \(1, 1\), mask has \(6, 11\)"):
        read_recording(str(path))


def test_no_json_is_said(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        read_recording(str(path))


# What a slot off the mask holds: nothing (0), a weight that a later mask removes (1), or the bounded ratio of garbage.
OFF_THE_MASK = {
    "verl/is_token_tis": 0,
    "slime/mis_token_truncate": 0,
    "areal/token_mask_ratio": 0,
    "open-instruct/rho_clamp": 0,
    "trl/token_truncate": 1,
    "skyrl/tis_token": "ratio",
    "ms-swift/token_truncate": "ratio",
    "nemo-rl/token_tis": "ratio",
    "roll/weight_token": "ratio",
}


@pytest.mark.parametrize(("name", "holds"), OFF_THE_MASK.items())
def test_off_the_mask_ours_is_0_and_theirs_is_what_is_said(name, holds):
    cases = {c.id: c for c in RECORDING.cases}
    case = cases.get(f"{name}/holes") or cases[f"{name}/small"]
    batch = RECORDING.batches[case.batch]
    got = matrix(case.outputs["weight_per_token"])
    off = ~batch.mask & ~torch.isnan(got)
    assert off.any()
    reading = profile_of(case.framework).read({"function": case.function, **case.option})
    assert (run(reading.plan, batch.tensors(reading)).per_token[off] == 0).all()
    ratio = (batch.fields["log_pi"] - batch.fields["log_mu"]).exp()
    expected = (
        torch.full_like(got, holds) if isinstance(holds, int) else ratio.clamp(max=float(got[off | batch.mask].max()))
    )
    torch.testing.assert_close(got[off], expected[off], rtol=1e-6, atol=1e-7)


def test_the_recording_covers_the_frameworks():
    counts = {p.name: sum(c.framework == p.name for c in RECORDING.cases) for p in PROFILES if p.name in AGREE}
    assert min(counts.values()) >= 8
    assert sum(counts.values()) == len(RECORDING.cases)


def test_a_refusal_says_what_is_allowed():
    with pytest.raises(
        RefusedError, match="areal: action=clamp is of the ratio only, got metric=kl_k2\nhint: action=mask"
    ):
        profile_of("areal").read({"action": "clamp", "metric": "kl_k2"})


@pytest.mark.parametrize(("framework", "option"), [("verl", "loss_mode"), ("skyrl", "policy_loss_type")])
def test_a_sequence_ratio_is_clamped_from_above_where_its_gradient_ends(framework, option):
    profile = profile_of(framework)
    reading = profile.read({option: "gspo"})
    loss = replace(reading.loss, low=1.0, high=math.inf, over="sum")
    tensors = Tensors(*(torch.full((2, 2), -20.0) for _ in range(2)), torch.ones(2, 2, dtype=torch.bool), torch.ones(2))
    live = torch.tensor([[-8.0, -6.0], [-19.0, -21.0]])  # 13 nats above on average, and none
    quirk = next(q for q in profile.quirks if q.name == "loss_clamps_ratio")
    plan = quirk.apply(Plan(), Situation(profile.given({}), tensors, reading))
    value, grad = loss_of(loss, plan, run(plan, tensors), tensors.mask, tensors.advantage, live, tensors.log_pi)
    assert value.item() == pytest.approx(-2 * math.exp(10) - 2, rel=1e-5)
    assert grad.tolist() == [[0.0, 0.0], [-1.0, -1.0]]
