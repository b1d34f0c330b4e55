"""The same estimator gives the same bits through every adapter, on tensors that TRL's trainer made."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from trl_tiny import noisy, quietly, scored, trainer

from reweigh import (
    Batch,
    geo_mis,
    geo_rs,
    group_snis,
    k3_rs,
    naive,
    prefix_tis,
    psis,
    seq_is,
    seq_mis,
    seq_tis,
    snis,
    token_mis,
    token_tis,
    trm,
)
from reweigh.trainers import nemo_rl, prime_rl, skyrl, slime, tinker, verl
from reweigh.trainers.seen import factor, wide

BY_SEQUENCE = {
    "naive": naive(),
    "token_tis": token_tis(1.2),
    "token_mis": token_mis(0.8, 1.5),
    "prefix_tis": prefix_tis(1.5),
    "seq_is": seq_is(),
    "seq_tis": seq_tis(2.0),
    "seq_mis": seq_mis(0.5, 6.0),
    "geo_mis": geo_mis(0.9, 1.3),
    "product": geo_rs(0.9, 1.25) * token_tis(1.2),
    "k3_rs": k3_rs(0.04),
    "trm": trm(0.6, 0.05),
}
BY_BATCH = {"snis": snis(), "group_snis": group_snis(), "psis": psis()}


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """What TRL's own code made of rollouts: `old_per_token_logps`, `sampling_per_token_logps`, masks."""
    made = trainer(tmp_path_factory.mktemp("trl"), naive())
    first, drawn = noisy(made.rollout_func), []

    def replay(prompts, trainer):
        if not drawn:
            drawn.append(first(prompts, trainer))
        return {name: [list(row) for row in rows] for name, rows in drawn[0].items()}

    made.rollout_func = replay
    return made, quietly(scored, made)


@pytest.fixture(scope="module")
def tensors(output):
    _, out = output
    mask = out["completion_mask"].bool()
    return SimpleNamespace(pi=out["old_per_token_logps"], mu=out["sampling_per_token_logps"], mask=mask)


def rows(x, t):
    """One tensor a sequence, without padding."""
    return [row[:n] for row, n in zip(x, t.mask.sum(-1), strict=True)]


def padded_like(parts, t):
    out = torch.zeros(t.mask.shape)
    out[t.mask] = torch.cat(list(parts))
    return out


def by_trl(estimator, t, output):
    """The ratio that TRL's `_compute_loss` is handed: its own code, on the same rollouts."""
    made, _ = output
    made.correction = estimator
    again = quietly(scored, made)
    assert torch.equal(again["old_per_token_logps"], t.pi)
    assert torch.equal(again["sampling_per_token_logps"], t.mu)
    return again["importance_sampling_ratio"]


def by_verl(estimator, t, output):
    data = {"old_log_probs": t.pi, "rollout_log_probs": t.mu, "response_mask": t.mask.long()}
    uid = np.array(["b"] * 4 + ["a"] * 4, dtype=object)
    batch = SimpleNamespace(batch=data, non_tensor_batch={"uid": uid})
    return verl.Correction(estimator).on_driver(batch, None)[0].batch["rollout_is_weights"]


def by_tinker(estimator, t, output):
    inputs = {"logprobs": rows(t.mu, t), "advantages": rows(torch.ones_like(t.mu), t)}
    data = [SimpleNamespace(loss_fn_inputs={k: v[i] for k, v in inputs.items()}) for i in range(len(t.mu))]
    live = [x.clone().requires_grad_() for x in rows(t.pi, t)]
    loss, _ = tinker.CustomLoss(estimator, denominator=1.0, group=[5] * 4 + [2] * 4)(data, live)
    loss.backward()
    return -padded_like([x.grad for x in live], t)


def by_slime(estimator, t, output):
    lengths = t.mask.sum(-1).tolist()
    flat, _, _ = slime.CustomTis(estimator)(
        SimpleNamespace(context_parallel_size=1, use_tis=True),
        pg_loss=torch.ones(sum(lengths)),
        train_log_probs=rows(t.pi, t),
        rollout_log_probs=rows(t.mu, t),
        loss_masks=rows(t.mask.float(), t),
        total_lengths=[n + 3 for n in lengths],
        response_lengths=lengths,
        max_seq_lens=None,  # miles passes more
    )
    return padded_like([flat], t)


def by_prime_rl(estimator, t, output):
    parts = []
    for pi, mu in zip(rows(t.pi, t), rows(t.mu, t), strict=True):
        live = pi.clone().requires_grad_()
        inputs = SimpleNamespace(trainer_logprobs=live, inference_logprobs=mu, advantages=torch.ones_like(mu),
            loss_mask=torch.ones_like(mu, dtype=torch.bool), loss_weights=None)  # fmt: skip
        prime_rl.CustomLoss(estimator, outputs=SimpleNamespace)(inputs).loss.backward()
        parts.append(-live.grad)
    return padded_like(parts, t)


def by_skyrl(estimator, t, output):
    live = t.pi.clone().requires_grad_()
    config = SimpleNamespace(eps_clip_low=0.2, eps_clip_high=0.2)
    loss, _ = skyrl.PolicyLoss(estimator)(live, t.pi, torch.ones_like(t.pi), config, t.mask.float(), t.mu)
    loss.backward()
    return -live.grad


def by_nemo_rl(estimator, t, output):
    one = torch.zeros(len(t.pi), 1)
    ahead = lambda x: torch.cat([one, x.float()], 1)  # noqa: E731 - NeMo-RL's tensors begin with a token of the prompt
    data = {"prev_logprobs": ahead(t.pi), "generation_logprobs": ahead(t.mu), "token_mask": ahead(t.mask),
        "advantages": ahead(torch.ones_like(t.pi)), "sample_mask": torch.ones(len(t.pi))}  # fmt: skip
    live = t.pi.clone().requires_grad_()
    loss, _ = nemo_rl.CorrectedLoss(estimator, interfaces=NEMO)(live, data, torch.tensor(8.0), torch.tensor(1.0))
    loss.backward()
    return -live.grad


NEMO = SimpleNamespace(
    LossType=SimpleNamespace(TOKEN_LEVEL="token_level"),
    LossInputType=SimpleNamespace(LOGPROB="logprob"),
    MetricNormalizer=SimpleNamespace(NONE="none"),
)
WHOLE = {"trl": by_trl, "verl": by_verl, "tinker": by_tinker}
ALL = WHOLE | {"slime": by_slime, "prime_rl": by_prime_rl, "skyrl": by_skyrl, "nemo_rl": by_nemo_rl}


def expected(estimator, t):
    group = torch.arange(8) // 4
    return factor(estimator(Batch.padded(wide(t.pi), wide(t.mu), t.mask, group=group)))


@pytest.mark.parametrize("adapter", ALL)
@pytest.mark.parametrize("name", BY_SEQUENCE)
def test_weights_are_bit_equal(name, adapter, tensors, output):
    want = expected(BY_SEQUENCE[name], tensors)
    got = ALL[adapter](BY_SEQUENCE[name], tensors, output)
    assert got.dtype == torch.float32
    assert torch.equal(torch.where(tensors.mask, got, 0), want)
    if name != "naive":  # the tensors are such that something happens
        assert len(want[tensors.mask].unique()) > 1


@pytest.mark.parametrize("adapter", WHOLE)
@pytest.mark.parametrize("name", BY_BATCH)
def test_weights_that_read_the_batch_are_bit_equal_where_it_is_seen(name, adapter, tensors, output):
    want = expected(BY_BATCH[name], tensors)
    assert torch.equal(torch.where(tensors.mask, WHOLE[adapter](BY_BATCH[name], tensors, output), 0), want)


@pytest.mark.parametrize(
    "make",
    [slime.CustomTis, prime_rl.CustomLoss, skyrl.PolicyLoss, nemo_rl.CorrectedLoss,
     lambda e: verl.Correction(e, mode="bypass")],
)  # fmt: skip
@pytest.mark.parametrize("estimator", BY_BATCH.values(), ids=BY_BATCH)
def test_hooks_that_see_a_part_refuse_estimators_of_the_whole(make, estimator):
    rule = r"reads the whole batch and this hook sees one (micro-batch|sequence), got .*\nhint: use an estimator whose"
    with pytest.raises(ValueError, match=rule):
        make(estimator)
