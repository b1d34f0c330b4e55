"""The experiment: its world, its loop, what it writes, and that tables and pictures are made of the results alone."""

import json
import math
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reweigh import Batch, naive, num_tokens, policy_gradient, ppo_clip, seq_tis, token_tis
from reweigh.__main__ import main
from reweigh.audit import audit
from reweigh.experiment import grid as grids
from reweigh.experiment import results
from reweigh.experiment.gradients import _numbers, measure
from reweigh.experiment.train import EVERY, Method, Run, Setting, Training, run
from reweigh.experiment.world import Brackets, Model, as_stored, check_weights, sample, score, warm_start
from reweigh.records import read_batches, validate
from reweigh.report import experiment as shown
from reweigh.theory.sga import Moments

ROOT = Path(__file__).parents[1]
SHORT = Setting(lag=3, stale_from=2, steps=10, warm=3, length=6, prompts=4, answers=4)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("length", [4, 6, 24])
def test_right_answers_are_right_and_changed_ones_are_not(length):
    task = Brackets(length)
    prompts = task.prompts(50, generator())
    answers = task.answers(prompts, generator(1))
    assert answers.shape == (50, length)
    assert task.rewards(prompts, answers).tolist() == [1.0] * 50
    for at in (0, length - 1):  # another kind of bracket, or one that is left open
        wrong = answers.clone()
        wrong[:, at] = torch.where(wrong[:, at] >= 3, 3 + (wrong[:, at] - 2) % 3, (wrong[:, at] + 1) % 3)
        assert task.rewards(prompts, wrong).tolist() == [0.0] * 50
    assert task.rewards(prompts, torch.full((50, length), 6)).sum() == 0


def test_by_hand():
    task = Brackets(6, opened=2)
    prompt = torch.tensor([[0, 2, 6]])  # ( { as far as kinds go
    right = [[5, 3, 0, 3, 1, 4], [5, 3, 0, 1, 4, 3], [1, 4, 5, 3, 2, 5]]
    wrong = [[3, 5, 0, 3, 1, 4], [5, 3, 3, 0, 1, 4], [5, 3, 0, 3, 1, 1], [5, 3, 0, 3, 6, 4]]
    rewards = [task.rewards(prompt, torch.tensor([row])).item() for row in right + wrong]
    assert rewards == [1, 1, 1, 0, 0, 0, 0]


def test_a_length_that_closes_nothing_is_refused():
    with pytest.raises(ValueError, match=r"length must be 4, 6, 8 and so on to close 4 brackets, got 7"):
        Setting(length=7)


def test_the_sampler_says_the_log_probs_that_the_trainer_computes():
    """With its own weights: so that what differs in a run is what was made to differ."""
    task = Brackets(12)
    torch.manual_seed(3)
    model, prompts = Model(task), task.prompts(8, generator())
    drawn = sample(model, prompts, 12, generator(1))
    law = score(model, prompts, drawn.tokens)
    torch.testing.assert_close(law.gather(2, drawn.tokens[..., None])[..., 0], drawn.log_mu, atol=1e-5, rtol=0)
    assert drawn.support is None


def test_top_p_leaves_out_and_replay_leaves_out_the_same():
    task = Brackets(6)
    torch.manual_seed(3)
    model, prompts = Model(task), task.prompts(8, generator())
    drawn = sample(model, prompts, 6, generator(1), top_p=0.6)
    assert 0 < drawn.support.float().mean() < 1
    plain, replayed = (score(model, prompts, drawn.tokens, s) for s in (None, drawn.support))
    own = [law.gather(2, drawn.tokens[..., None])[..., 0] for law in (plain, replayed)]
    assert (own[0] <= drawn.log_mu + 1e-6).all()
    torch.testing.assert_close(own[1], drawn.log_mu, atol=1e-5, rtol=0)


def test_stored_weights_have_few_values_and_embeddings_stay():
    state = warm_start(Brackets(6), 0, 1)
    stored = as_stored(state, "int2/16")
    row = stored["head.weight"][0, :16]
    scale = state["head.weight"][0, :16].abs().max()
    assert {round(x, 4) for x in (row / scale).tolist()} <= {-1.0, 0.0, 1.0}
    assert torch.equal(stored["tokens.weight"], state["tokens.weight"])
    assert not torch.equal(as_stored(state, "bf16")["head.weight"], state["head.weight"])
    for bad in ("int9/64", "int3", "fp4", "int3/0"):
        with pytest.raises(ValueError, match="weights: must be"):
            check_weights(bad)


def test_a_sampler_trails_by_its_lag_once_it_is_left_behind():
    training = Training(SHORT, Method.of("naive()"), 0)
    versions = []
    for _ in range(8):
        rolled = training.rollouts()
        versions.append(rolled.versions[0])
        assert set(rolled.versions) == {versions[-1]}
        law, log_pi, batch = training.batch_of(rolled, rolled.advantage)
        training.update(training.method.objective(law, log_pi, batch, rolled.advantage)[0])
    assert versions == [0, 1, 1, 1, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["seq_tis(2)", "ppo_clip", "token_tis(2)"])
def test_a_step_is_that_of_the_packages_loss(name):
    """Gradient of one step, and that of the loss as a user would call it."""
    training = Training(SHORT, Method.of("naive()"), 1)
    for _ in range(4):
        rolled = training.rollouts()
        law, log_pi, batch = training.batch_of(rolled, rolled.advantage)
        training.update(training.method.objective(law, log_pi, batch, rolled.advantage)[0])
    rolled = training.rollouts()
    law, log_pi, batch = training.batch_of(rolled, rolled.advantage)
    loss, weights = Method.of(name).objective(law, log_pi, batch, rolled.advantage)
    got = torch.autograd.grad(loss, list(training.model.parameters()), retain_graph=True)
    plain = Batch.padded(log_pi, rolled.sampled.log_mu, torch.ones(16, 6))
    if name == "ppo_clip":
        wanted = ppo_clip(log_pi, rolled.sampled.log_mu, rolled.advantage, naive()(plain), num_tokens(plain))
    else:
        made = {"seq_tis(2)": seq_tis(2.0), "token_tis(2)": token_tis(2.0)}[name](plain)
        assert torch.equal(weights, made.per_token)
        wanted = policy_gradient(log_pi, rolled.advantage, made, num_tokens(plain))
    for a, b in zip(got, torch.autograd.grad(wanted, list(training.model.parameters())), strict=True):
        assert torch.equal(a, b)
    assert (plain.log_ratio != 0).any()


@pytest.mark.parametrize("inner", ["naive()", "token_tis(2)", "prefix_tis(2)"])
def test_a_centred_method_is_the_packages_centred_loss(inner):
    """Over every symbol, so that the mean over what could be drawn is known: the same gradient as written out."""
    method = Method.of(f"centred({inner})")
    assert method.name == f"centred({inner})"
    training = Training(SHORT, Method.of("naive()"), 1)
    for _ in range(4):
        rolled = training.rollouts()
        law, log_pi, batch = training.batch_of(rolled, rolled.advantage)
        training.update(training.method.objective(law, log_pi, batch, rolled.advantage)[0])
    rolled = training.rollouts()
    law, log_pi, batch = training.batch_of(rolled, torch.ones(16))
    plain = Method.of(inner).estimator(batch)
    parameters = list(training.model.parameters())
    got = torch.autograd.grad(method.objective(law, log_pi, batch, torch.ones(16))[0], parameters, retain_graph=True)
    mu, ratio = rolled.sampled.law.exp(), (law.detach() - rolled.sampled.law).exp()
    before = (batch.log_ratio.cumsum(1) - batch.log_ratio).exp()[..., None]
    weight = {"naive()": torch.ones_like(ratio), "token_tis(2)": ratio.clamp(max=2)}.get(
        inner, (before * ratio).clamp(max=2)
    )
    drift = (mu * weight * law).sum()
    wanted = torch.autograd.grad(-((plain.per_token * log_pi).sum() - drift) / num_tokens(batch), parameters)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-3)
    for bad in ("centred(seq_tis(2))", "centred()", "centred(ppo_clip)"):
        with pytest.raises(ValueError, match=r"centred|method"):
            Method.of(bad)


def test_a_partial_rollout_is_of_two_versions():
    setting = replace(SHORT, partial=2)
    training = Training(setting, Method.of("naive()"), 0)
    seen = []
    for _ in range(8):
        rolled = training.rollouts()
        half = setting.length // 2
        assert len(set(rolled.versions[:half])) == len(set(rolled.versions[half:])) == 1
        seen.append((rolled.versions[0], rolled.versions[-1]))
        if seen[-1][0] != seen[-1][1]:
            stale = score(training.engine, rolled.prompts, rolled.sampled.tokens)
            own = stale.gather(2, rolled.sampled.tokens[..., None])[..., 0]
            torch.testing.assert_close(own[:, :half], rolled.sampled.log_mu[:, :half], atol=1e-5, rtol=0)
            assert not torch.allclose(own[:, half:], rolled.sampled.log_mu[:, half:], atol=1e-5)
        training.update(-training.batch_of(rolled, rolled.advantage)[1].mean())  # which moves whatever the rewards are
    assert seen == [(0, 0), (1, 1), (1, 2), (1, 3), (1, 3), (2, 4), (3, 5), (4, 6)]
    with pytest.raises(ValueError, match="partial must be between 0 and the lag, 3"):
        replace(SHORT, partial=4)


def test_a_router_sends_a_token_to_one_expert():
    """Its answer by itself, by hand; and the same whether keys are kept or not."""
    task = Brackets(6)
    torch.manual_seed(3)
    model, prompts = Model(task, experts=3), task.prompts(8, generator())
    drawn = sample(model, prompts, 6, generator(1))
    law = score(model, prompts, drawn.tokens)
    torch.testing.assert_close(law.gather(2, drawn.tokens[..., None])[..., 0], drawn.log_mu, atol=1e-5, rtol=0)
    block, x = model.blocks[0], torch.randn(2, 5, 64, generator=generator())
    share = block.router(x).softmax(-1)
    assert len(share.argmax(-1).unique()) > 1
    for i, j in ((0, 0), (1, 4)):
        best = int(share[i, j].argmax())
        up, down = block.up.weight.view(3, 256, 64)[best], block.down.weight.view(3, 64, 256)[best]
        wanted = share[i, j, best] * (down @ torch.nn.functional.gelu(up @ x[i, j]))
        torch.testing.assert_close(block._think(x)[i, j], wanted, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="experts must be 0, or 2 and more, got 1"):
        replace(SHORT, experts=1)


def test_advantages_are_of_the_group():
    rolled = Training(SHORT, Method.of("naive()"), 1).rollouts()
    grouped, rewards = rolled.advantage.view(4, 4), rolled.rewards.view(4, 4)
    assert grouped.sum(1).abs().max() < 1e-4
    for advantage, reward in zip(grouped, rewards, strict=True):
        if reward.std() > 0:
            assert (advantage[reward == 1] > 0).all()
            assert (advantage[reward == 0] < 0).all()


def test_the_same_seed_gives_the_same_run_and_another_does_not():
    one, two, three = (run(SHORT, Method.of("seq_tis(2)"), seed) for seed in (0, 0, 1))
    assert one == two
    assert one != three
    assert one == Run.from_dict(json.loads(json.dumps(one.to_dict())))
    assert len(one.evals) == SHORT.steps // EVERY + 1
    assert {len(values) for values in one.series.values()} == {SHORT.steps}
    assert {len(values) for values in one.windows.values()} == {SHORT.steps // EVERY}


GRID = """
[main]
title = "short"
records = [3, 5]
[[main.block]]
settings = [{ lag = 3, stale_from = 2, steps = 10, warm = 3, length = 6, prompts = 4, answers = 4 }]
methods = ["naive()", "seq_tis(2)"]
seeds = [100, 101]
[twice]
include = ["main"]
[[twice.block]]
settings = [{ lag = 3, stale_from = 2, steps = 10, warm = 3, length = 6, prompts = 4, answers = 4 }]
methods = ["naive()", "token_tis(2)"]
seeds = [100]
"""


@pytest.fixture
def grid_file(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(GRID)
    return path


def test_what_is_done_is_not_done_again_and_an_end_in_a_line_is_made_good(grid_file, tmp_path):
    jobs = grids.grid("main", grid_file).jobs
    whole = grids.do(jobs, tmp_path / "whole")
    lines = (tmp_path / "whole" / grids.RESULTS).read_text().splitlines(keepends=True)
    assert len(lines) == 5
    part = tmp_path / "part"
    part.mkdir()
    (part / grids.RESULTS).write_text("".join(lines[:3]) + lines[3][:100])  # ended in the middle of the third run
    assert [job.key for job in grids.left(jobs, part)] == [job.key for job in jobs[2:]]
    done = []
    assert grids.do(jobs, part, on_done=done.append) == whole
    assert [one.key for one in done] == [job.key for job in jobs[2:]]
    assert grids.read(part / grids.RESULTS) == whole


def test_a_grid_names_each_run_once_and_in_order(grid_file):
    jobs = grids.grid("twice", grid_file).jobs
    assert [(job.method, job.seed) for job in jobs] == [
        *(("naive()", 100), ("seq_tis(2)", 100), ("naive()", 101), ("seq_tis(2)", 101), ("token_tis(2)", 100))
    ]
    assert jobs[0].records == (3, 5)


@pytest.mark.parametrize("name", ["main", "quarter", "hour", "theory"])
def test_our_grids_can_be_run(name):
    found = grids.grid(name)
    assert len({grids.file_name(job) for job in found.jobs}) == len(found.jobs)
    assert all(job.seed >= 100 for job in found.jobs), "seeds under 100 were looked at"
    for job in found.jobs:
        Method.of(job.method)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[other]\n", r"there is no grid 'main'"),
        ('[main]\ninclude = ["main"]\n', r"main: includes itself"),
        ("[main]\n[[main.block]]\nsettings = [{}]\nseeds = [1]\n", r"block 1: must have settings, methods and seeds"),
        (
            '[main]\n[[main.block]]\nsettings = [{}]\nmethods = ["naive()"]\nseeds = ["a"]\n',
            r"seeds must be a list",
        ),
        (
            '[main]\n[[main.block]]\nsettings = [{}]\nmethods = "naive()"\nseeds = [1]\n',
            r"methods must be a list",
        ),
        ("[main]\nrecords = 5\n", r"main: records must be a list of integers, got 5"),
        ('[main]\n[[main.block]]\nsettings = [{lagg = 1}]\nmethods=["naive()"]\nseeds=[1]\n', r"'lagg' is no part"),
        ('[main]\n[[main.block]]\nsettings = [{lag = -1}]\nmethods=["naive()"]\nseeds=[1]\n', r"lag must be >= 0"),
        ('[main]\n[[main.block]]\nsettings = [{lag = "a"}]\nmethods=["naive()"]\nseeds=[1]\n', r"lag must be of type"),
        ('[main]\n[[main.block]]\nsettings = [{}]\nmethods=["naiv()"]\nseeds=[1]\n', r"did you mean naive"),
        ("[main\n", r"is no TOML"),
    ],
)
def test_a_grid_that_cannot_be_run_says_why(text, says, tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=says):
        grids.grid("main", path)


def test_records_are_valid_and_audit_with_the_lag_that_there_was(grid_file, tmp_path):
    job = grids.grid("main", grid_file).jobs[0]
    grids.do([job], tmp_path)
    path = tmp_path / "records" / f"{grids.file_name(job)}.parquet"
    assert not validate([path]).violations
    found = audit([path], by=["lag"])
    assert [row.label for row in found.slices["lag"]] == ["2", "3"]  # steps 3 and 5 sample with versions 1 and 2
    rows = sum(part.batch.layout.num_seqs for part in read_batches(path))
    assert rows == 2 * 16


def made(method, seed, evals, setting=SHORT, **series):
    steps = setting.steps
    noted = dict.fromkeys(("reward", "entropy", "k3", "abs", "sd", "ess", "ratio", "gradient"), (0.5,) * steps)
    windows = {
        "k3": (0.0, 0.2),
        "use": ("", "token_tis(2)"),
        "action": ("nothing", "reduce"),
        "told": (None, "seq_tis(2)"),
        "told_action": (None, "correct"),
        "ratio_token": (1.0, 0.7),
    }
    windows |= {"identity_token": (True, False), "identity_sequence": (True, True)}
    return Run(setting, method, seed, evals, noted | {k: tuple(v) for k, v in series.items()}, windows)


def test_peak_end_and_collapse_by_hand():
    long = Setting(lag=1, steps=40)
    alive = results.Outcome.of(made("a", 0, (0.3, 0.6, 0.9, 0.9, 0.9, 0.8, 0.9, 0.8, 0.9), long))
    assert (round(alive.peak, 3), round(alive.final, 3), alive.collapsed, alive.halved) == (0.9, 0.85, False, None)
    dead = results.Outcome.of(made("a", 0, (0.3, 0.9, 0.9, 0.6, 0.2, 0.0), long))  # it was over before
    assert (round(dead.peak, 3), dead.final, dead.collapsed, dead.halved) == (0.8, 0.0, True, 20)


def test_an_alarm_has_its_threshold_of_one_half_and_is_tested_on_the_other():
    setting = Setting(lag=1, stale_from=2, steps=30)
    quiet, loud = [0.1] * 30, [0.1] * 6 + [0.9] * 24
    dead, alive = (0.9, 0.9, 0.9, 0.1, 0.0, 0.0, 0.0), (0.9,) * 7
    runs = [made("a", seed, dead, setting, sd=loud, reward=[0.9] * 18 + [0.0] * 12) for seed in (0, 1)]
    runs += [made("b", 0, alive, setting, sd=quiet), made("b", 1, alive, setting, sd=loud)]
    first = results.alarms(runs)[0]
    assert first.hits[0] == 1.0
    assert first.false[0] == 1.0  # the odd seed's survivor was loud, whatever the even seeds promised
    assert first.lead == (12, 12, 12)  # from step 7, the second that is loud, to 19, the second without a reward
    assert first.ahead == (8, 8, 8)  # to the measurement at 15
    assert 0.1 <= first.threshold < 0.9


def test_advice_is_judged_by_the_ends_of_all():
    ends = dict(zip(results.FIELD, (0.1, 0.2, 0.9, 0.8, 0.95), strict=True))
    runs = [made(name, 0, (end,) * 3) for name, end in ends.items()]
    (one,) = results.advised(runs)
    assert (one.use, one.action, one.alone) == ("seq_tis(2)", "correct", "token_tis(2)")
    assert not one.among_best(one.use)
    assert one.among_best("ppo_clip")
    assert one.lost(one.alone) == pytest.approx(0.75)
    assert one.at_random == pytest.approx((0.4, 0.36))
    ways, difference = results.worth([one])
    assert [way.name for way in ways][:2] == ["the advice", results.ALONE]
    assert [way.lost[0] for way in ways[:2]] == pytest.approx([0.15, 0.75])
    assert difference[0] == pytest.approx(0.0)
    assert math.isnan(difference[1])


def test_a_method_is_told_at_the_rate_that_other_seeds_chose():
    slow, usual = replace(SHORT, rate=1e-4), replace(SHORT, rate=1e-3)
    runs = [
        *(made("a", seed, (end,) * 3, setting) for seed, setting, end in ((10, slow, 0.9), (10, usual, 0.2))),
        *(made("a", seed, (end,) * 3, setting) for seed, setting, end in ((100, slow, 0.4), (100, usual, 0.8))),
        made("b", 10, (0.5,) * 3, usual),
        made("b", 100, (0.5,) * 3, usual),
        made("c", 100, (0.9,) * 3, slow),
    ]
    (one,) = results.at_best(runs, usual)
    assert (one.method, one.rate, one.chosen_by) == ("a", 1e-4, 1)
    assert (one.row.final[0], one.usual.final[0]) == pytest.approx((0.4, 0.8))


def test_the_doctor_is_asked_in_the_first_windows_with_a_mismatch():
    """By the command's own way, of the records of those steps alone, and of nothing else."""
    setting = Setting(lag=12, stale_from=3, steps=15, warm=60, length=12, prompts=8, answers=4)
    one = run(setting, Method.of("naive()"), 5)
    with_gap = [k3 > 1e-9 for k3 in one.windows["k3"]]
    assert with_gap == [True, True, True]
    assert [x is not None for x in one.windows["told_action"]] == [True, True, False]
    assert run(setting, Method.of("seq_tis(2)"), 5).windows["told_action"] == (None, None, None)


def test_blame_is_counted_by_size():
    (one,) = results.blamed([made("naive()", 0, (0.5,) * 3)])
    assert (one.low, one.windows, one.token, one.sequence, one.either) == (0.05, 1, 1, 0, 1)


def test_gradients_on_policy_are_those_of_pi():
    """With no lag every ratio is 1: one gradient for all, and of the same mean as the true one."""
    training = Training(Setting(warm=60, length=6, prompts=16, answers=4), Method.of("naive()"), 0)
    training.rollouts()
    before = {name: w.clone() for name, w in training.model.state_dict().items()}
    found = measure(training, ["naive()", "seq_is()", "ppo_clip", "token_tis(2)"], batches=12)
    for numbers in found.values():
        assert numbers["noise"] == pytest.approx(found["naive()"]["noise"], rel=1e-2)
        value, error = numbers["cosine"]
        assert abs(value - 1) < 3 * error + 0.05
        assert numbers["efficiency"][0] > 0.1
    assert all(torch.equal(w, before[name]) for name, w in training.model.state_dict().items())
    assert training.model.training


def test_where_pi_has_no_reward_there_is_nothing_to_compare_with():
    training = Training(replace(SHORT, warm=0, length=24), Method.of("naive()"), 0)
    training.rollouts()
    assert measure(training, ["naive()", "seq_is()"], batches=3) == {"naive()": None, "seq_is()": None}


def test_numbers_of_gradients_whose_moments_are_known():
    """Against `Moments`, which has them from the vectors themselves."""
    draws = torch.Generator().manual_seed(1)
    true, own = torch.tensor([3.0, 0.0, 0.0, 0.0]), torch.tensor([2.0, 1.0, 0.0, 0.0])
    rows = own + 2 * torch.randn(4000, 4, generator=draws)
    exact = true + torch.randn(4000, 4, generator=draws)
    found = _numbers(*(x.double() for x in (rows @ rows.T, rows @ exact.T, exact @ exact.T)))
    moments = Moments(true.tolist(), own.tolist(), variance=16.0)
    assert found["cosine"] == pytest.approx(2 / 5**0.5, abs=0.02)
    assert found["bias"] == pytest.approx(moments.bias_norm**2 / 9, abs=0.05)
    assert found["noise"] == pytest.approx(16 / 9, abs=0.05)
    assert found["efficiency"] == pytest.approx(moments.efficiency(), abs=0.02)
    assert found["mse"] == pytest.approx(moments.mse() / 9, abs=0.1)


def test_pictures_and_tables_are_of_the_file_alone(grid_file, tmp_path, capsys):
    """Drawn after the runs, and again from what they wrote: the same to the last byte."""
    out, args = tmp_path / "out", ["--format", "json", "--workers", "1"]
    code = main(
        ["experiment", "--grid", f"{grid_file}:main", "--out", str(out), "--svg", str(tmp_path / "a.svg"), *args]
    )
    assert code == 0
    first = json.loads(capsys.readouterr().out)
    results_file = out / grids.RESULTS
    again = ["--redraw", str(results_file), "--svg", str(tmp_path / "b.svg"), "--html", str(tmp_path / "b.html")]
    assert main(["experiment", *again, *args]) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert (
        (tmp_path / "a.svg").read_text() == (tmp_path / "b.svg").read_text() == shown.picture(grids.read(results_file))
    )
    page = (tmp_path / "b.html").read_text()
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    assert len(first["runs"]) == 4
    assert main(["experiment", *again, *args]) == 0  # over what it made itself
    (tmp_path / "mine.svg").write_text("<svg>mine</svg>")
    assert main(["experiment", "--redraw", str(results_file), "--svg", str(tmp_path / "mine.svg")]) == 2
    assert (tmp_path / "mine.svg").read_text() == "<svg>mine</svg>"


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(grid_file, tmp_path, capsys, monkeypatch):
    command = ["experiment", "--grid", f"{grid_file}:main", "--out", str(tmp_path / "out"), "--workers", "1"]
    told = []

    def line_of(run):
        told.append(run.key)
        if len(told) == 2:
            raise KeyboardInterrupt
        return ""

    monkeypatch.setattr(shown, "line_of", line_of)
    assert main(command) == 130
    assert "interrupted: 2 of 4 runs are done; the same command goes on" in capsys.readouterr().err
    assert len(grids.read(tmp_path / "out" / grids.RESULTS)) == 2
    assert main(command) == 0
    assert len(told) == 4
    assert len(set(told)) == 4


def test_a_file_that_is_none_of_results_is_named_with_its_line(tmp_path, capsys):
    path = tmp_path / "results.jsonl"
    path.write_text('{"reweigh_experiment": 1}\n{"setting": {}}\n')
    assert main(["experiment", "--redraw", str(path)]) == 2
    assert f"{path}:2: not the results of a run" in capsys.readouterr().err


@pytest.mark.slow
def test_the_picture_comes_out_again_on_another_seed(tmp_path):
    """A seed that no page shows: uncorrected it collapses, and two corrections and the control do not."""
    main = grids.grid("main").jobs
    jobs = [replace(job, seed=200, records=()) for job in main if job.seed == 100 and job.method != "ppo_clip"]
    ends = {(one.setting.name, one.method): results.Outcome.of(one) for one in grids.do(jobs, tmp_path, workers=2)}
    assert ends["lag 12", "naive()"].collapsed
    for method in ("seq_tis(2)", "geo_rs(0.95, 1.05) * token_tis(2)"):
        assert not ends["lag 12", method].collapsed
    assert ends["no mismatch", "naive()"].final > 0.9


def test_the_page_has_tables_and_pictures_of_the_results_that_are_shipped():
    script = runpy.run_path(str(ROOT / "docs" / "experiment.py"))
    for path, text in script["files"]().items():
        assert path.read_text() == text, f"{path.name}: python docs/experiment.py"


def test_records_that_are_shipped_are_small_and_valid():
    shipped = sorted((ROOT / "examples" / "collapse").rglob("*.parquet"))
    assert len(shipped) >= 3
    for path in shipped:  # each is a run of its own
        assert not validate([path]).violations
    assert sum(path.stat().st_size for path in shipped) < 3e6
    assert (ROOT / "examples" / "collapse" / "results.jsonl.gz").stat().st_size < 5e6
