"""Each framework's hook, called as the framework calls it: losses, masks, metrics, refusals."""

import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from batches import random_batch

from reweigh import (
    Batch,
    Weights,
    centred,
    dppo_tv,
    geo_rs,
    group_snis,
    ipo,
    naive,
    opsm,
    seq_is,
    seq_mis,
    seq_tis,
    token_is,
    token_mis,
    token_tis,
    turn_tis,
)
from reweigh.doctor import doctor as diagnose
from reweigh.records import read_batches, validate
from reweigh.rosetta.config import translate
from reweigh.trainers import nemo_rl, prime_rl, skyrl, slime, tinker, verl
from reweigh.trainers import verl as verl_environment
from reweigh.trainers.capture import Capture, prompt_id
from reweigh.trainers.seen import Seen, factor, wide
from reweigh.trainers.versions import KNOWN, UnknownVersionError, UnknownVersionWarning

NEMO = SimpleNamespace(
    LossType=SimpleNamespace(TOKEN_LEVEL="token_level"),
    LossInputType=SimpleNamespace(LOGPROB="logprob"),
    MetricNormalizer=SimpleNamespace(NONE="none"),
)


@pytest.fixture
def tokens():
    """Padded tensors of six sequences: holes, one empty, one of length 1; finite everywhere."""
    b = random_batch(3, garbage=False)
    pick = {"pi": b.log_pi, "mu": b.log_mu, "mask": b.layout.mask, "advantage": b.advantage}
    return SimpleNamespace(**pick)


def lists(x):
    return list(x)


def prime_rl_default():
    """As docs/trainers.md writes it."""
    return ipo(0.3, 1e4)


# slime and miles


def call_slime(hook, t, *, use_tis=True, pg_loss=None, **kwargs):
    s, n = t.mask.shape
    return hook(
        SimpleNamespace(context_parallel_size=1, use_tis=use_tis),
        pg_loss=torch.ones(s * n) if pg_loss is None else pg_loss,
        train_log_probs=lists(t.pi),
        rollout_log_probs=lists(t.mu),
        loss_masks=lists(t.mask.float()),
        total_lengths=[n + 2] * s,
        response_lengths=[n] * s,
        **kwargs,
    )


def test_slime_takes_rejected_tokens_out_of_the_masks(tokens):
    estimator = token_mis(0.8, 1.2)
    loss, masks, metrics = call_slime(slime.CustomTis(estimator), tokens, parallel_state=None, max_seq_lens=None)
    weights = estimator(Batch.padded(tokens.pi, tokens.mu, tokens.mask))
    assert torch.equal(torch.stack(masks).bool(), weights.keep_tokens)
    assert masks[0].dtype == torch.float32
    torch.testing.assert_close(loss.view(tokens.mask.shape), weights.per_token)
    assert metrics["reweigh/rejected"].sum() == (tokens.mask & ~weights.keep_tokens).sum()
    assert all(m.shape == loss.shape for m in metrics.values())


def test_slime_metrics_alone_leave_the_loss(tokens):
    given = torch.randn(tokens.mask.numel())
    loss, masks, metrics = call_slime(slime.CustomTis(seq_mis(2, 3)), tokens, use_tis=False, pg_loss=given)
    assert loss is given
    assert torch.equal(torch.stack(masks), tokens.mask.float())
    assert metrics["reweigh/kl_k1"].abs().sum() > 0


def test_slime_keeps_gradients_finite_where_a_token_was_dropped(tokens):
    tokens.pi = tokens.pi.clone()
    tokens.pi[0, 0] = -torch.inf
    live = torch.ones(tokens.mask.numel(), requires_grad=True)
    broken = live * torch.where(torch.isfinite(tokens.pi.flatten()), 1.0, torch.nan)
    loss, masks, _ = call_slime(slime.CustomTis(seq_tis(2.0)), tokens, pg_loss=broken)
    assert torch.isfinite(loss).all()
    assert masks[0][0] == 0


def test_slime_asks_its_framework_for_whole_sequences(tokens, monkeypatch):
    """With context parallelism ranks hold slices: here every other token, put together by slime's own two names."""
    rows = {id(x): whole for x, whole in ()}
    whole = {"pi": lists(tokens.pi), "mu": lists(tokens.mu)}
    slices = {k: [x[::2].clone() for x in xs] for k, xs in whole.items()}
    for k in whole:
        rows.update({id(x): w for x, w in zip(slices[k], whole[k], strict=True)})
    cp = SimpleNamespace(
        all_gather_with_cp=lambda x, total, response: rows[id(x)],
        slice_log_prob_with_cp=lambda x, total, response: x[::2],
    )
    asked = []
    monkeypatch.setattr(slime, "import_module", lambda name: asked.append(name) or cp)
    s, n = tokens.mask.shape
    loss, masks, _ = slime.CustomTis(seq_tis(2.0), framework="miles")(
        SimpleNamespace(context_parallel_size=2, use_tis=True),
        pg_loss=torch.ones(s * len(range(0, n, 2))),
        train_log_probs=slices["pi"],
        rollout_log_probs=slices["mu"],
        loss_masks=lists(tokens.mask.float()),
        total_lengths=[n] * s,
        response_lengths=[n] * s,
    )
    assert asked == ["miles.backends.training_utils.cp_utils"]
    want = factor(seq_tis(2.0)(Batch.padded(wide(tokens.pi), wide(tokens.mu), tokens.mask)))
    assert torch.equal(loss, want[:, ::2].flatten())
    assert masks[0].shape == (n,)


@pytest.mark.parametrize(("framework", "layout"), [("slime", "thd"), ("miles", "thd"), ("miles", "bshd")])
def test_ranks_of_a_context_together_have_the_weights_of_whole_sequences(tokens, monkeypatch, framework, layout):
    """Each of two ranks holds the first and last, or the second and third, quarter of each sample: of its own length,
    or in miles' padded layout of the width that it was padded to. What each weighs is its slice of the whole."""
    n, prompt, width = tokens.mask.shape[1], 4, 24
    total = prompt + n

    def slots(rank, layout="thd", padded=None):
        quarter = -(-(total if layout == "thd" else padded) // 4)
        both = [(rank * quarter, (rank + 1) * quarter), ((3 - rank) * quarter, (4 - rank) * quarter)]
        inside = [(max(a, prompt - 1), min(b, total - 1)) for a, b in both]
        return [i - (prompt - 1) for a, b in inside for i in range(a, b)]

    def ranks(x, *place):
        return [x[slots(rank, *place)] for rank in range(2)]

    got = torch.zeros(tokens.mask.shape)
    estimator = token_tis(1.2) if layout == "thd" else seq_tis(1.5)
    place = () if layout == "thd" else (layout, width)
    whole = {}
    for rank in range(2):
        sides = {}
        for side in ("pi", "mu"):
            sides[side] = []
            for x in lists(getattr(tokens, side)):
                part = ranks(x, *place)[rank]
                whole[id(part)] = x
                sides[side].append(part)

        def gather(part, total, response, *given):
            x = whole[id(part)]
            out = torch.zeros(response)
            for each in range(2):
                out[slots(each, *given)] = x[slots(each, *place)] if given == place else torch.nan
            return out

        def cut(x, total, response, *given, rank=rank):
            return x[slots(rank, *given)]

        cp = SimpleNamespace(all_gather_with_cp=gather, slice_log_prob_with_cp=cut)
        monkeypatch.setattr(slime, "import_module", lambda name, cp=cp: cp)
        here = slots(rank, *place)
        loss, masks, metrics = slime.CustomTis(estimator, framework=framework)(
            SimpleNamespace(context_parallel_size=2, use_tis=True, qkv_format=layout),
            pg_loss=torch.ones(len(tokens.pi) * len(here)),
            train_log_probs=sides["pi"],
            rollout_log_probs=sides["mu"],
            loss_masks=lists(tokens.mask.float()),
            total_lengths=[total] * len(tokens.pi),
            response_lengths=[n] * len(tokens.pi),
            max_seq_lens=[width] * len(tokens.pi) if layout == "bshd" else None,
            parallel_state=None,
        )
        got[:, here] = loss.view(len(tokens.pi), len(here))
        assert all(m.shape == loss.shape for m in metrics.values())
        assert masks[0].shape == (n,)
    want = factor(estimator(Batch.padded(wide(tokens.pi), wide(tokens.mu), tokens.mask)))
    assert torch.equal(got, want)
    assert len(want[tokens.mask].unique()) > 1


def test_miles_padded_layout_without_widths_is_refused(tokens, monkeypatch):
    monkeypatch.setattr(slime, "import_module", lambda name: SimpleNamespace())
    hook = slime.CustomTis(seq_tis(2.0), framework="miles")
    call = {"pg_loss": None, "train_log_probs": [], "rollout_log_probs": [], "loss_masks": []}
    with pytest.raises(ValueError, match=r"qkv_format=bshd needs max_seq_lens, got none\nhint: miles hands them over"):
        hook(SimpleNamespace(context_parallel_size=2, use_tis=True, qkv_format="bshd"), **call,
            total_lengths=[], response_lengths=[])  # fmt: skip


def test_slime_refuses_signs_and_unknown_frameworks():
    with pytest.raises(ValueError, match=r"CustomTis: the estimator depends on the advantage's sign"):
        slime.CustomTis(opsm(1e-4))
    with pytest.raises(ValueError, match=r"framework must be slime or miles, got 'verl'"):
        slime.CustomTis(naive(), framework="verl")


# prime-rl


def inputs_of(t, i, live, weights=None):
    return SimpleNamespace(trainer_logprobs=live, inference_logprobs=t.mu[i], ref_logprobs=None,
        advantages=t.advantage[i], loss_mask=t.mask[i], loss_weights=weights)  # fmt: skip


@pytest.mark.parametrize("weighted", [False, True])
def test_prime_rl_default_is_a_composition(tokens, weighted):
    """Its own default loss, written out from its formula, has the gradient of `dppo_tv(0.2)`."""
    hook, seen = prime_rl.CustomLoss(dppo_tv(0.2), kl_tau=1e-3, outputs=SimpleNamespace), 0
    for i in range(len(tokens.pi)):
        w = torch.rand(tokens.mask.shape[1]) if weighted else None
        ours = (tokens.mu[i] + 0.9 * torch.randn(tokens.mask.shape[1])).clamp(max=0).requires_grad_()
        theirs = ours.detach().clone().requires_grad_()
        hook(inputs_of(tokens, i, ours, w)).loss.backward()
        a, log_ratio = tokens.advantage[i], theirs - tokens.mu[i]
        gap = theirs.exp() - tokens.mu[i].exp()
        bad = torch.where(a > 0, gap > 0.2, gap < -0.2)
        keep = tokens.mask[i] & ~bad
        per_token = -(keep * a * log_ratio.exp()) + 1e-3 * tokens.mask[i] * log_ratio**2
        (per_token * (1 if w is None else w)).sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)
        seen += int((tokens.mask[i] & bad).sum())
    assert seen > 0


@pytest.mark.parametrize("weighted", [False, True])
def test_prime_rl_centres_over_the_replayed_mask(tokens, weighted):
    """As its own `score_centering` is written: A sum_v sg(q w) log p, w 0 beyond eps, over the mask, on every token."""
    g = torch.Generator().manual_seed(1)
    hook, size = prime_rl.CustomLoss(centred(ipo(0.1, 1.5)), outputs=SimpleNamespace), tokens.mask.shape[1]
    for i in range(len(tokens.pi)):
        w = torch.rand(size, generator=g) if weighted else None
        mu = torch.randn(size, 4, generator=g)
        mu[::2, 3] = -torch.inf  # shorter masks are padded
        mu = mu.log_softmax(-1)
        p = (mu + 0.4 * torch.randn(size, 4, generator=g)).log_softmax(-1)
        heads = [torch.where(mu.isfinite(), p, 0.0).requires_grad_() for _ in range(2)]
        live = tokens.pi[i].clone()
        inputs = inputs_of(tokens, i, live, w)
        inputs.trainer_mask_logprobs, inputs.inference_mask_logprobs = heads[0], mu
        plain = prime_rl.CustomLoss(ipo(0.1, 1.5), outputs=SimpleNamespace)(inputs_of(tokens, i, live, w)).loss
        loss = hook(inputs).loss
        with torch.no_grad():
            q, now = mu.exp(), heads[1].exp()
            ratio = (heads[1] - mu).clamp(max=math.log(1.5)).exp()
            coef = torch.where(mu.isfinite() & ((now - q).abs() <= 0.1), q * ratio, 0.0)
        terms = tokens.advantage[i] * (coef * heads[1]).sum(-1) * (1 if w is None else w)
        extra = terms[tokens.mask[i]].sum()
        torch.testing.assert_close(loss, plain + extra, rtol=1e-5, atol=1e-6)
        got, expected = (torch.autograd.grad(x, head)[0] for x, head in ((loss, heads[0]), (extra, heads[1])))
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"needs the log-probs of the sampling mask(.|\n)*hint: sample with top_p"):
        hook(inputs_of(tokens, 0, tokens.pi[0]))


@pytest.mark.parametrize(
    "make",
    [
        nemo_rl.CorrectedLoss,
        skyrl.PolicyLoss,
        slime.CustomTis,
        tinker.CustomLoss,
        verl.Correction,
        lambda e: verl.Correction(e, mode="bypass"),
    ],
)
def test_hooks_that_cannot_subtract_refuse_what_is_centred(make):
    with pytest.raises(ValueError, match=r"what centring subtracts needs log-probs of the sampler's candidates"):
        make(centred(token_tis(2.0)))


def test_prime_rl_metrics_are_of_one_sequence_and_need_no_host(tokens):
    out = prime_rl.CustomLoss(token_tis(1.1), outputs=SimpleNamespace)(inputs_of(tokens, 0, tokens.pi[0]))
    assert all(isinstance(v, torch.Tensor) and v.dim() == 0 for v in out.metrics.values())
    l = (tokens.pi[0] - tokens.mu[0])[tokens.mask[0]]
    assert out.metrics["reweigh/kl_k1"].item() == pytest.approx(-l.mean().item())
    assert out.metrics["reweigh/weight"].item() == pytest.approx(l.exp().clamp(max=1.1).mean().item())


# SkyRL


def test_skyrl_decoupled_clips_the_live_ratio_and_weighs_the_old_one(tokens):
    live = (tokens.pi + 0.3 * torch.randn(tokens.pi.shape)).clamp(max=0).requires_grad_()
    config = SimpleNamespace(eps_clip_low=0.1, eps_clip_high=0.3)
    loss, metrics = skyrl.PolicyLoss(seq_tis(1.5))(
        live, tokens.pi, tokens.advantage, config, tokens.mask.float(), tokens.mu
    )
    w = seq_tis(1.5)(Batch.padded(tokens.pi, tokens.mu, tokens.mask)).per_token
    r = (live - tokens.pi).exp()
    hand = -(w * torch.min(r * tokens.advantage, r.clamp(0.9, 1.3) * tokens.advantage) * tokens.mask).sum()
    torch.testing.assert_close(loss, hand)
    assert loss.dtype == torch.float32
    assert metrics["reweigh/weight/max"] <= 1.5


def test_skyrl_two_policies_weigh_the_live_one(tokens):
    live = tokens.pi.clone().requires_grad_()
    hook = skyrl.PolicyLoss(token_tis(1.2), objective="policy_gradient")
    loss, _ = hook(live, tokens.pi - 9, tokens.advantage, None, tokens.mask.float(), tokens.mu)
    loss.backward()
    w = token_tis(1.2)(Batch.padded(tokens.pi, tokens.mu, tokens.mask)).per_token
    torch.testing.assert_close(live.grad, -w * torch.where(tokens.mask, tokens.advantage, 0))


def test_skyrl_says_what_is_missing(tokens):
    with pytest.raises(ValueError, match=r"rollout_logprobs is None.*\nhint: set generator\.sampling_params\.logprobs"):
        skyrl.PolicyLoss(naive())(tokens.pi, tokens.pi, tokens.advantage, None, tokens.mask)
    with pytest.raises(ValueError, match=r"objective must be ppo_clip or policy_gradient, got 'gspo'"):
        skyrl.PolicyLoss(naive(), objective="gspo")


# NeMo-RL


def test_nemo_rl_micro_batches_add_up(tokens):
    loss_fn = nemo_rl.CorrectedLoss(geo_rs(0.5, 2.0) * token_tis(1.3), low=0.2, high=0.4, interfaces=NEMO)
    pad = lambda x: torch.cat([torch.zeros(len(x), 1), x.float()], 1)  # noqa: E731
    data = {"prev_logprobs": pad(tokens.pi), "generation_logprobs": pad(tokens.mu), "token_mask": pad(tokens.mask),
        "advantages": pad(tokens.advantage), "sample_mask": torch.tensor([1.0, 1, 0, 1, 1, 1])}  # fmt: skip
    live = (tokens.pi + 0.1).clamp(max=0)
    count = (tokens.mask * data["sample_mask"][:, None]).sum()
    whole, metrics = loss_fn(live, data, torch.tensor(5.0), count)
    parts = [
        loss_fn(live[i : i + 2], {k: v[i : i + 2] for k, v in data.items()}, torch.tensor(5.0), count)
        for i in range(0, 6, 2)
    ]
    torch.testing.assert_close(sum(loss for loss, _ in parts), whole)
    for name, value in metrics.items():
        assert sum(m[name] for _, m in parts) == pytest.approx(value, abs=1e-6), name
    mask = tokens.mask & data["sample_mask"].bool()[:, None]
    w = loss_fn.estimator(Batch.padded(tokens.pi, tokens.mu, mask)).per_token
    r = (live - tokens.pi).exp()
    hand = -(w * torch.min(r * tokens.advantage, r.clamp(0.8, 1.4) * tokens.advantage))[mask].sum() / count
    torch.testing.assert_close(whole, hand)
    assert (loss_fn.loss_type, loss_fn.input_type) == ("token_level", "logprob")


# tinker


def datum(**inputs):
    return SimpleNamespace(loss_fn_inputs=inputs)


def test_tinker_reads_tensor_data_and_masks(tokens):
    tensor_data = lambda x: SimpleNamespace(to_torch=lambda: x)  # noqa: E731 - tinker's own type has this method
    data = [
        datum(logprobs=tensor_data(m), advantages=tensor_data(a), mask=tensor_data(k.float()))
        for m, a, k in zip(tokens.mu, tokens.advantage, tokens.mask, strict=True)
    ]
    live = [x.clone().requires_grad_() for x in tokens.pi]
    loss, metrics = tinker.CustomLoss(token_tis(1.2))(data, live)
    loss.backward()
    w = token_tis(1.2)(Batch.padded(tokens.pi, tokens.mu, tokens.mask)).per_token
    want = -w * torch.where(tokens.mask, tokens.advantage, 0) / tokens.mask.sum()
    torch.testing.assert_close(torch.stack([x.grad for x in live]), want)
    assert metrics["reweigh/token/n"] == tokens.mask.sum()
    assert loss.dtype == torch.float32


def test_tinker_says_which_datum_lacks_what():
    whole = datum(logprobs=torch.zeros(2), advantages=torch.ones(2))
    with pytest.raises(ValueError, match=r"datum 1: loss_fn_inputs has no 'logprobs', got advantages, target_tokens"):
        tinker.CustomLoss(naive())([whole, datum(advantages=torch.ones(2), target_tokens=[1])], [torch.zeros(2)] * 2)


def test_tinker_writes_records(tokens, tmp_path):
    data = [
        datum(logprobs=m, advantages=a, mask=k)
        for m, a, k in zip(tokens.mu, tokens.advantage, tokens.mask, strict=True)
    ]
    hook = tinker.CustomLoss(group_snis(), group=[0, 0, 0, 1, 1, 1], capture=Capture(tmp_path), step=7)
    hook(data, list(tokens.pi))
    assert validate([tmp_path]).ok
    (part,) = read_batches([tmp_path])
    assert part.batch.layout.num_seqs == 5  # one sequence has no token
    assert part.batch.group.unique().numel() == 2
    assert part.path.name == "step_00000007_rank_0000.parquet"


# verl, as far as it goes without verl: tests/frameworks/check_verl.py goes through its own functions


def proto(t, **more):
    data = {"old_log_probs": t.pi, "rollout_log_probs": t.mu, "response_mask": t.mask.long()} | more
    return SimpleNamespace(batch=data, non_tensor_batch={"uid": np.array(list("bbaabb"), dtype=object)})


def test_verl_driver_sees_groups_and_writes_weights_and_mask(tokens):
    hook = verl.Correction(group_snis())
    out, metrics = hook.on_driver(proto(tokens), {"rollout_is": "token"})
    group = torch.tensor([1, 1, 0, 0, 1, 1])
    want = group_snis()(Batch.padded(wide(tokens.pi), wide(tokens.mu), tokens.mask, group=group))
    assert torch.equal(out.batch["rollout_is_weights"], factor(want))
    assert out.batch["response_mask"].dtype == torch.int64
    json.dumps(metrics, allow_nan=False)
    assert metrics["reweigh/weight/mean"] == pytest.approx(1.0)


def test_verl_driver_rejects_from_the_mask_unless_nothing_would_be_left(tokens):
    out, _ = verl.Correction(token_mis(0.9, 1.1)).on_driver(proto(tokens), None)
    keep = token_mis(0.9, 1.1)(Batch.padded(tokens.pi, tokens.mu, tokens.mask)).keep_tokens
    assert torch.equal(out.batch["response_mask"].bool(), keep)
    assert 0 < keep.sum() < tokens.mask.sum()
    out, metrics = verl.Correction(seq_mis(1e6, 1e7)).on_driver(proto(tokens), None)
    assert torch.equal(out.batch["response_mask"].bool(), tokens.mask)
    assert out.batch["rollout_is_weights"].abs().sum() == 0
    assert metrics["reweigh/weight/kept_fraction"] == 0


def test_verl_driver_writes_records_and_checks_the_first_batch(tokens, tmp_path):
    hook = verl.Correction(seq_tis(2.0), capture=Capture(tmp_path, every=2))
    more = {"responses": torch.arange(42).view(6, 7), "token_level_scores": torch.eye(6, 7)}
    for _ in range(3):
        hook.on_driver(proto(tokens, **more), None)
    assert [p.name for p in sorted(tmp_path.iterdir())] == [f"step_{i:08d}_rank_0000.parquet" for i in (0, 2)]
    part = next(iter(read_batches([tmp_path])))
    assert part.column("reward").tolist() == [1.0] * 5
    assert part.tokens("token_ids")[:7].tolist() == list(range(7))
    broken = proto(SimpleNamespace(pi=tokens.pi, mu=tokens.mu * torch.nan, mask=tokens.mask))
    with pytest.raises(ValueError, match=r"log_mu is NaN"):
        verl.Correction(seq_tis(2.0)).on_driver(broken, None)
    hook.on_driver(broken, None)  # later batches leave such tokens out
    first = verl.Correction(seq_tis(2.0), capture=Capture(tmp_path / "stopped"))
    with pytest.raises(ValueError, match=r"log_mu is NaN"):
        first.on_driver(broken, None)
    (part,) = read_batches([tmp_path / "stopped"])  # what stopped the run is in the record
    assert part.batch.dropped.sum() == tokens.mask.sum()


def test_verl_refuses_what_a_mode_cannot_compute():
    with pytest.raises(ValueError, match=r"depends on the advantage's sign and this hook is called before"):
        verl.Correction(opsm(1e-4))
    assert verl.Correction(opsm(1e-4), mode="bypass").mode == "bypass"
    with pytest.raises(ValueError, match=r"mode must be decoupled or bypass, got 'async'"):
        verl.Correction(naive(), mode="async")
    with pytest.raises(ValueError, match=r"rollout_is_weights were computed on the driver, so this run is decoupled"):
        verl.Correction(naive(), mode="bypass").loss(*[torch.zeros(1, 1)] * 4, rollout_is_weights=torch.ones(1, 1))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("corrections", r"must be module:name, got 'corrections'"),
        ("no_such_module_here:x", r"cannot load 'no_such_module_here:x': No module named"),
        ("math:tau_of_reweigh", r"has no attribute 'tau_of_reweigh'\nhint: the module must be importable"),
        ("math:pi", r"'math:pi' is a float, not a Correction"),
    ],
)
def test_the_environment_must_name_a_correction(value, message):
    with pytest.raises(ValueError, match=message):
        verl_environment.named(value)


def test_nothing_named_installs_nothing(monkeypatch):
    monkeypatch.delenv(verl_environment.VARIABLE, raising=False)
    assert verl_environment.load() is None


def proto_of(tensors):
    return SimpleNamespace(batch=dict(tensors), non_tensor_batch={})


@pytest.fixture
def other_verl(monkeypatch):
    """verl of a version to come, as far as the hook reaches into it."""
    registry = {}

    def register(name):
        return lambda loss: registry.setdefault(name, loss)

    def summed(loss_mat, loss_mask, loss_agg_mode):
        return (loss_mat * loss_mask).sum()

    parts = {
        verl.HELPER: {verl.DRIVER: lambda batch, config: (batch, {})},
        "verl.trainer.ppo.core_algos": {"register_policy_loss": register, "POLICY_LOSS_REGISTRY": registry,
            "get_policy_loss_fn": registry.get, "agg_loss": summed},
        "verl.protocol": {"DataProto": SimpleNamespace(from_single_dict=proto_of)},
        "verl": {}, "verl.trainer": {}, "verl.trainer.ppo": {},
    }  # fmt: skip
    for name, names in parts.items():
        module = ModuleType(name)
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("reweigh.trainers.versions.version", lambda package: "0.12.0")
    return sys.modules


@pytest.mark.parametrize("mode", ["decoupled", "bypass"])
def test_another_version_of_verl_is_warned_of_and_the_weights_are_seen_to_arrive(mode, other_verl):
    correction = verl.Correction(seq_tis(2.0), mode=mode)
    with pytest.warns(UnknownVersionWarning, match=r"verl 0\.12\.0 is not known; known versions are 0\.9\.1"):
        correction.install()
    if mode == "decoupled":
        assert getattr(other_verl[verl.HELPER], verl.DRIVER) == correction.on_driver
    else:
        assert other_verl["verl.trainer.ppo.core_algos"].POLICY_LOSS_REGISTRY["reweigh"] == correction.loss


@pytest.mark.filterwarnings("ignore:.*is not known")
@pytest.mark.parametrize(
    ("mode", "at", "names", "what"),
    [
        ("decoupled", verl.HELPER, {verl.DRIVER: None}, r"AttributeError: .*helper has no compute_rollout"),
        ("bypass", "verl.trainer.ppo.core_algos", {"register_policy_loss": lambda name: lambda loss: loss},
            r"in place: policy losses reweigh: not ours"),
        ("bypass", "verl.trainer.ppo.core_algos",
            {"agg_loss": lambda loss_mat, loss_mask, loss_agg_mode: loss_mat.sum() / 0.5},
            r"weights: weights of a trial batch are other than the estimator's"),
        ("decoupled", "verl.protocol", {"DataProto": None}, r"AttributeError: module 'verl.protocol' has no"),
    ],
)  # fmt: skip
def test_another_version_of_verl_in_which_the_weights_do_not_arrive_is_refused(mode, at, names, what, other_verl):
    for name, value in names.items():
        if value is None:
            delattr(other_verl[at], name)
        else:
            setattr(other_verl[at], name, value)
    with pytest.raises(UnknownVersionError, match=rf"verl 0\.12\.0 is not known, and its self-check fails: {what}"):
        verl.Correction(seq_tis(2.0), mode=mode).install()


# what they share


def called(hook, t, core=None):
    """The loss of a hook that sees live log-probs, its gradient, and what it logs."""
    live = t.pi.clone().requires_grad_()
    if isinstance(hook, prime_rl.CustomLoss):
        outs = [hook(inputs_of(t, i, live[i])) for i in range(len(live))]
        loss = sum(out.loss for out in outs)
        logged = {k: sum(float(out.metrics[k]) for out in outs) for k in outs[0].metrics}
    elif isinstance(hook, skyrl.PolicyLoss):
        loss, logged = hook(live, t.pi, t.advantage, None, t.mask.float(), t.mu)
    elif isinstance(hook, nemo_rl.CorrectedLoss):
        pad = lambda x: torch.cat([torch.zeros(len(x), 1), x.float()], 1)  # noqa: E731
        data = {"prev_logprobs": pad(t.pi), "generation_logprobs": pad(t.mu), "token_mask": pad(t.mask),
            "advantages": pad(t.advantage), "sample_mask": torch.ones(len(live))}  # fmt: skip
        loss, logged = hook(live, data, torch.tensor(float(len(live))), t.mask.sum())
    elif isinstance(hook, tinker.CustomLoss):
        parts = zip(t.mu, t.advantage, t.mask, strict=True)
        loss, logged = hook([datum(logprobs=m, advantages=a, mask=k) for m, a, k in parts], list(live))
    elif isinstance(hook, verl.Correction):
        loss, logged = hook.loss(t.mu, live, t.advantage, t.mask)
    else:
        terms = torch.where(torch.isfinite(live), -t.advantage * live, live)
        loss, _, metrics = call_slime(hook, t, pg_loss=terms.flatten())
        loss, logged = loss.sum(), {name: float(value.sum()) for name, value in metrics.items()}
    loss.backward()
    return loss, live.grad, logged


def hooks(estimator):
    return {
        "prime_rl": prime_rl.CustomLoss(estimator, kl_tau=1e-3, outputs=SimpleNamespace),
        "skyrl": skyrl.PolicyLoss(estimator, objective="policy_gradient"),
        "nemo_rl": nemo_rl.CorrectedLoss(estimator, objective="policy_gradient", interfaces=NEMO),
        "tinker": tinker.CustomLoss(estimator),
        "verl": verl.Correction(estimator, mode="bypass"),
        "slime": slime.CustomTis(estimator),
    }


HOOKS = tuple(hooks(naive()))


@pytest.fixture
def core_algos(monkeypatch):
    """verl's `agg_loss`, as far as the token sum."""
    summed = SimpleNamespace(agg_loss=lambda loss_mat, loss_mask, loss_agg_mode: (loss_mat * loss_mask).sum())
    monkeypatch.setitem(sys.modules, "verl.trainer.ppo.core_algos", summed)


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_logs_how_many_tokens_it_dropped(name, tokens, core_algos):
    at = tokens.mask.nonzero()[[2, 9, 11]].tolist()
    _, _, logged = called(hooks(token_tis(2.0))[name], tokens)
    (dropped,) = [key for key in logged if key in ("reweigh/dropped", "reweigh/token/dropped")]
    assert logged[dropped] == 0
    tokens.mu = tokens.mu.clone()
    for (i, j), value in zip(at, (torch.nan, -torch.inf, torch.nan), strict=True):
        tokens.mu[i, j] = value
    loss, gradient, logged = called(hooks(token_tis(2.0))[name], tokens)
    assert logged[dropped] == 3
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
    assert all(gradient[i, j] == 0 for i, j in at)


@pytest.mark.parametrize("name", HOOKS)
@pytest.mark.parametrize("estimator", [token_is(), seq_is(), token_tis(1e30)], ids=["token", "sequence", "cap"])
def test_a_weight_that_float32_cannot_hold_is_left_out_and_counted(name, estimator, tokens, core_algos):
    """log mu = -91 and log pi = -2: the ratio is e^89, which is infinite in float32."""
    _, _, calm = called(hooks(estimator)[name], tokens)
    (overflow,) = [key for key in calm if key in ("reweigh/overflow", "reweigh/weight/overflow")]
    assert calm[overflow] == 0
    tokens.pi, tokens.mu = tokens.pi.clone(), tokens.mu.clone()
    i, j = tokens.mask.nonzero()[4].tolist()
    tokens.mu[i, j], tokens.pi[i, j] = -91.0, -2.0
    loss, gradient, logged = called(hooks(estimator)[name], tokens)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
    assert logged[overflow] >= 1
    assert all(math.isfinite(value) for value in logged.values())
    others = [k for k in range(6) if k != i]
    assert gradient[others].abs().sum() > 0  # the rest of the batch goes on


def test_drivers_and_recipes_leave_such_weights_out_too(tokens):
    i, j = tokens.mask.nonzero()[4].tolist()
    tokens.mu, tokens.pi = tokens.mu.clone(), tokens.pi.clone()
    tokens.mu[i, j], tokens.pi[i, j] = -91.0, -2.0
    out, metrics = verl.Correction(token_is()).on_driver(proto(tokens), None)
    assert out.batch["rollout_is_weights"][i, j] == out.batch["response_mask"][i, j] == 0
    assert metrics["reweigh/weight/overflow"] == 1
    assert math.isfinite(metrics["reweigh/weight/mean"])
    assert torch.isfinite(factor(token_is()(Batch.padded(tokens.pi, tokens.mu, tokens.mask)))).all()


@pytest.mark.parametrize("estimator", [prime_rl_default(), dppo_tv(0.2), token_tis(2.0)], ids=["docs", "dppo", "tis"])
def test_the_start_that_the_docs_give_for_prime_rl_is_safe(estimator):
    live = torch.tensor([-0.5, -2.0, -1.0], requires_grad=True)
    inputs = SimpleNamespace(trainer_logprobs=live, inference_logprobs=torch.tensor([-0.5, -91.0, -1.0]),
        advantages=torch.tensor([1.0, -1.0, 1.0]), loss_mask=torch.ones(3).bool(), loss_weights=None)  # fmt: skip
    out = prime_rl.CustomLoss(estimator, outputs=SimpleNamespace)(inputs)
    out.loss.backward()
    assert torch.isfinite(out.loss)
    assert live.grad.abs().max() <= 1e4
    assert (live.grad[[0, 2]] == -1).all()
    assert out.metrics["reweigh/overflow"] == (estimator == dppo_tv(0.2))


def test_the_start_for_prime_rl_is_its_own_default():
    b = random_batch(2, garbage=False)
    theirs = translate("prime-rl", {}).reading.plan.estimator
    assert torch.equal(prime_rl_default()(b).per_token, theirs(b).per_token)


@pytest.mark.parametrize(
    "hook",
    [slime.CustomTis(seq_tis(2.0)), prime_rl.CustomLoss(token_is()), skyrl.PolicyLoss(seq_tis(2.0)),
     nemo_rl.CorrectedLoss(seq_tis(2.0), interfaces=NEMO), tinker.CustomLoss(group_snis())],
)  # fmt: skip
def test_hooks_travel_to_other_processes(hook):
    again = pickle.loads(pickle.dumps(hook))
    assert again.estimator == hook.estimator


def test_what_was_seen_adds_up_over_batches():
    parts = [random_batch(seed, garbage=False) for seed in range(4)]
    join = lambda name: torch.cat([getattr(b, name) for b in parts])  # noqa: E731
    whole = Batch.padded(join("log_pi"), join("log_mu"), torch.cat([b.layout.mask for b in parts]),
        group=torch.cat([b.group for b in parts]))  # fmt: skip
    estimator = token_tis(1.2)
    total = Seen.of(parts[0], estimator(parts[0]))
    for b in parts[1:]:
        total = total + Seen.of(b, estimator(b))
    one = Seen.of(whole, estimator(whole)).flat(intervals=True)
    many = total.flat(intervals=True)
    assert one.keys() == many.keys()
    for name, value in one.items():
        assert many[name] == pytest.approx(value, rel=1e-6), name
    assert one["reweigh/token/tv_low"] <= one["reweigh/token/tv"] <= one["reweigh/token/tv_high"]
    assert all(math.isfinite(v) for v in one.values())


def test_a_batch_of_nothing_is_logged_as_nothing():
    empty = Batch.padded(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3))
    logged = Seen.of(empty, seq_tis(2.0)(empty)).flat("x/")
    assert logged == {"x/token/n": 0, "x/token/dropped": 0, "x/sequence/n": 0, "x/sequence/dropped": 0}


def test_turn_weights_count_once_a_turn():
    b = random_batch(0, garbage=False)
    weights: Weights = turn_tis(2.0)(b)
    logged = Seen.of(b, weights).flat()
    per_turn = weights.per_unit[weights.valid & (weights.per_unit > 0)]
    assert logged["reweigh/weight/max"] == pytest.approx(per_turn.max().item(), rel=1e-6)
    assert 0 < logged["reweigh/weight/mean"] <= 2.0


def test_records_hold_responses_without_padding(tmp_path):
    b = random_batch(5, garbage=False)
    path = Capture(tmp_path / "new").write(b, 3, rank=2, prompt_id=[f"p{i}" for i in range(6)])
    assert path.name == "step_00000003_rank_0002.parquet"
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no half-written file is left beside
    (part,) = read_batches([path])
    assert torch.equal(part.batch.layout.lengths, b.layout.lengths[b.layout.lengths > 0])
    torch.testing.assert_close(part.batch.log_ratio[part.batch.layout.mask], b.log_ratio[b.layout.mask])
    with pytest.raises(ValueError, match=r"Capture: every must be >= 1, got 0"):
        Capture(tmp_path, every=0)


@pytest.mark.parametrize("packed", [False, True])
def test_a_record_keeps_what_was_no_log_prob(tmp_path, packed):
    """NaN, infinity and a log-prob over 0 stay as they were, in the mask: they are the evidence."""
    pi, mu = -torch.ones(3, 4), -torch.ones(3, 4)
    mu[0, 1], mu[1, 2], pi[0, 3], mu[2] = torch.nan, -torch.inf, 0.01, torch.nan
    batch = Batch.from_lists(list(pi), list(mu)) if packed else Batch.padded(pi, mu, torch.ones(3, 4))
    Capture(tmp_path).write(batch, 0)
    (part,) = read_batches([tmp_path])
    torch.testing.assert_close(part.batch.log_mu.view(3, 4), mu, equal_nan=True)
    torch.testing.assert_close(part.batch.log_pi.view(3, 4), pi)
    assert part.batch.dropped.sum() == batch.dropped.sum() == 6
    broken = validate([tmp_path])
    assert {rule.rule: rule.count for rule in broken.violations} == {"log_mu: not finite": 6, "log_pi: positive": 1}


def test_the_doctor_says_of_a_capture_what_it_says_of_a_dump(tmp_path):
    """One response without log-probs, and one token: as after logits that are NaN."""
    g = torch.Generator().manual_seed(0)
    mu = -torch.rand(16, 60, generator=g) * 2 - 0.05
    pi = mu + 0.02 * torch.randn(16, 60, generator=g)
    mu[5] = mu[9, 30] = torch.nan
    Capture(tmp_path / "captured").write(Batch.padded(pi, mu, torch.ones(16, 60)), 0)
    lists = pa.list_(pa.float32())
    columns = {"log_mu": pa.array(mu.tolist(), lists), "log_pi": pa.array(pi.tolist(), lists)}
    pq.write_table(pa.table({"sequence_id": [f"s{i}" for i in range(16)], **columns}), tmp_path / "dump.parquet")
    captured, dump = diagnose(tmp_path / "captured"), diagnose(tmp_path / "dump.parquet")
    assert captured.verdict == dump.verdict == "placeholder_logprob"
    assert [(c.id, c.confidence) for c in captured.causes] == [(c.id, c.confidence) for c in dump.causes]
    assert [(n.rule, n.count) for n in captured.notes] == [(n.rule, n.count) for n in dump.notes]


def test_packed_batches_are_recorded_too(tmp_path):
    pi = [torch.tensor([-1.0, -2.0]), torch.tensor([-3.0])]
    Capture(tmp_path).write(Batch.from_lists(pi, [x - 0.5 for x in pi]), 0)
    (part,) = read_batches([tmp_path])
    assert part.batch.log_pi.tolist() == [-1.0, -2.0, -3.0]


def test_prompts_have_one_name_everywhere():
    assert prompt_id([1, 2]) == prompt_id(torch.tensor([1, 2])) != prompt_id([12])


@pytest.mark.slow
def test_the_plain_loop_learns():
    """As the docs show it: forty lines, whole, and the reward rises."""
    path = Path(__file__).parents[1] / "examples" / "plain_loop.py"
    assert len(path.read_text().splitlines()) == 40
    env = {**os.environ, "PYTHONPATH": str(path.parents[1])}
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    rewards = [float(line.split("reward ")[1].split(",")[0]) for line in done.stdout.splitlines()]
    assert rewards[-1] > rewards[0] + 0.5


def doctor(*arguments, start=("-m", "reweigh"), **environment):
    root = Path(__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": str(root)} | environment
    run = [sys.executable, *start, "doctor-install", *arguments]
    return subprocess.run(run, capture_output=True, text=True, check=False, env=env)


WITHOUT_VERL = """
import importlib.metadata as metadata, sys
there = metadata.version
def version(package):
    if package == "verl":
        raise metadata.PackageNotFoundError(package)
    return there(package)
metadata.version = version
from reweigh.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_doctor_install_without_verl_says_so():
    """With it: tests/frameworks/check_verl.py."""
    done = doctor("verl", start=("-c", WITHOUT_VERL))
    assert done.returncode == 1
    known = KNOWN["verl"]
    assert f"verl: verl is not installed; known versions are {', '.join(known)}" in done.stdout
    assert f'hint: pip install "verl=={known[-1]}"' in done.stderr


def test_doctor_install_knows_one_framework():
    done = doctor("trl")
    assert done.returncode == 2
    assert "framework must be verl, got 'trl'" in done.stderr
