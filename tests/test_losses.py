"""Losses by hand: value and gradient, what is detached, and what the denominator does."""

import math

import pytest
import torch
from batches import packed, random_batch

from reweigh import (
    SEQUENCE,
    TOKEN,
    Batch,
    Reject,
    advantage_over_length,
    cispo,
    gspo,
    naive,
    num_kept,
    num_sequences,
    num_tokens,
    policy_gradient,
    ppo_clip,
    seq_tis,
    token_tis,
    weigh,
)

# Two sequences; the ratios of the live policy to the old one and of the old one to the sampler are powers of 2.
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])
MU = torch.full((2, 3), -3.0)
OLD = MU + math.log(2) * torch.tensor([[1.0, -1.0, 9.0], [0.0, 0.0, 2.0]])
RATIO = torch.tensor([[2.0, 0.5, 9.0], [1.0, 2.0, 0.5]])
A = torch.tensor([1.0, -2.0])


def live_policy():
    return (OLD + RATIO.log()).requires_grad_()


def naive_weights():
    return naive()(Batch.padded(OLD, MU, MASK))


def grad_of(loss, log_pi):
    loss.backward()
    return log_pi.grad


def test_policy_gradient_by_hand():
    """Weights min(old / mu, 2): 2, 1/2, . and 1, 1, 2; the loss is -(1/5) sum w A log pi."""
    log_pi = live_policy()
    weights = token_tis(2.0)(Batch.padded(OLD, MU, MASK))
    loss = policy_gradient(log_pi, A, weights, 5.0)
    w_a = torch.tensor([[2.0, 0.5, 0.0], [-2.0, -2.0, -4.0]])
    assert loss.item() == pytest.approx(-(w_a * log_pi.detach()).sum().item() / 5, rel=1e-6)
    torch.testing.assert_close(grad_of(loss, log_pi), -w_a / 5)


def test_ppo_clip_by_hand():
    """A = 1: min(r, 1.2) is 1.2, 0.5. A = -2: -2 max(r, 0.8) is -2, -4, -1.6. Clipped terms have no gradient."""
    log_pi = live_policy()
    loss = ppo_clip(log_pi, OLD, A, naive_weights(), 10.0)
    assert loss.item() == pytest.approx(-(1.2 + 0.5 - 2 - 4 - 1.6) / 10, rel=1e-5)
    expected = -torch.tensor([[0.0, 0.5, 0.0], [-2.0, -4.0, 0.0]]) / 10
    torch.testing.assert_close(grad_of(loss, log_pi), expected)


def test_dual_clip_by_hand():
    """With dual = 1.5 the term of ratio 2 and A = -2 is -3, not -4, and has no gradient."""
    log_pi = live_policy()
    loss = ppo_clip(log_pi, OLD, A, naive_weights(), 10.0, dual=1.5)
    assert loss.item() == pytest.approx(-(1.2 + 0.5 - 2 - 3 - 1.6) / 10, rel=1e-5)
    torch.testing.assert_close(grad_of(loss, log_pi), -torch.tensor([[0.0, 0.5, 0.0], [-2.0, 0.0, 0.0]]) / 10)


def test_decoupled_and_two_policy_use_differ_by_what_is_passed():
    log_pi, batch = live_policy(), Batch.padded(OLD, MU, MASK)
    decoupled = ppo_clip(log_pi, OLD, A, weigh(TOKEN)(batch), 1.0, low=0.2, high=0.28)
    w = torch.tensor([[2.0, 0.5, 0.0], [1.0, 1.0, 4.0]])
    gain = torch.tensor([[1.28, 0.5, 0.0], [-2.0, -4.0, -1.6]])
    assert decoupled.item() == pytest.approx(-(w * gain).sum().item(), rel=1e-5)
    two = ppo_clip(log_pi, MU, A, naive_weights(), 1.0, low=0.2, high=0.28)  # ratios pi / mu: 4, 1/4 and 1, 2, 2
    assert two.item() == pytest.approx(-(1.28 + 0.25 - 2 - 4 - 4), rel=1e-5)


def test_cispo_by_hand():
    """Ratios 2, 1/2 and 1, 2, 1/2 clipped into [0.7, 1.5] multiply A log pi; every token keeps a gradient."""
    log_pi = live_policy()
    loss = cispo(log_pi, OLD, A, naive_weights(), 2.0, low=0.3, high=0.5)
    c_a = torch.tensor([[1.5, 0.7, 0.0], [-2.0, -3.0, -1.4]])
    assert loss.item() == pytest.approx(-(c_a * log_pi.detach()).sum().item() / 2, rel=1e-5)
    torch.testing.assert_close(grad_of(loss, log_pi), -c_a / 2)


def test_gspo_by_hand():
    """Geometric ratios (2 / 2)^(1/2) = 1 and (2 / 2)^(1/3) = 1: each token's gradient is -A s / D."""
    log_pi = live_policy()
    loss = gspo(log_pi, OLD, A, naive_weights(), 5.0)
    assert loss.item() == pytest.approx(-(2 * 1.0 + 3 * -2.0) / 5, rel=1e-5)
    torch.testing.assert_close(grad_of(loss, log_pi), -torch.tensor([[1.0, 1.0, 0.0], [-2.0, -2.0, -2.0]]) / 5)


def test_gspo_off_centre_by_hand():
    """All ratios 2 in the first, 1/2 in the second: s = 2 is over 1.1 with A = 1, s = 1/2 under 0.9 with A = -2."""
    log_pi = (OLD + math.log(2) * torch.tensor([[1.0], [-1.0]])).requires_grad_()
    loss = gspo(log_pi, OLD, A, naive_weights(), 1.0, low=0.1, high=0.1)
    assert loss.item() == pytest.approx(-(2 * 1.1 + 3 * 0.9 * -2), rel=1e-5)
    assert grad_of(loss, log_pi).abs().max() == 0
    log_pi = (OLD + math.log(2) * torch.tensor([[-1.0], [1.0]])).requires_grad_()
    torch.testing.assert_close(
        grad_of(gspo(log_pi, OLD, A, naive_weights(), 1.0, low=0.1, high=0.1), log_pi),
        -torch.tensor([[0.5, 0.5, 0.0], [-4.0, -4.0, -4.0]]),
    )


LOSSES = {
    "policy_gradient": lambda log_pi, old, a, w, d: policy_gradient(log_pi, a, w, d),
    "ppo_clip": ppo_clip,
    "dual": lambda *args: ppo_clip(*args, dual=3.0),
    "cispo": cispo,
    "gspo": lambda *args: gspo(*args, low=0.1, high=0.1),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_garbage_off_the_mask_reaches_neither_value_nor_gradient(loss):
    batch = random_batch(1)
    log_pi = batch.log_pi.clone().requires_grad_()
    advantage = torch.where(batch.layout.mask, 1.0, torch.nan)
    value = loss(log_pi, batch.log_mu, advantage, token_tis(2.0)(batch), num_tokens(batch))
    assert torch.isfinite(value)
    grad = grad_of(value, log_pi)
    assert torch.isfinite(grad).all()
    assert (grad[~batch.layout.mask] == 0).all()
    assert (grad[batch.layout.mask] != 0).any()


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_dropped_tokens_have_no_gradient_and_the_rest_is_as_before(loss):
    batch = random_batch(1)
    keep = weigh(SEQUENCE, Reject(0.7, 1.5))(batch)
    assert 0 < int(keep.num_kept) < int(keep.num_units)
    one, all_of = (batch.log_mu.clone().requires_grad_() for _ in range(2))
    grad = grad_of(loss(one, batch.log_mu, batch.advantage, keep, 7.0), one)
    whole = grad_of(loss(all_of, batch.log_mu, batch.advantage, naive()(batch), 7.0), all_of)
    torch.testing.assert_close(grad, whole * keep.per_token, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_packed_is_padded(loss):
    batch = random_batch(2)
    flat = packed(batch)
    one, two = batch.log_pi.clone().requires_grad_(), flat.log_pi.clone().requires_grad_()
    a = loss(one, batch.log_mu, batch.advantage, seq_tis(2.0)(batch), num_tokens(batch))
    b = loss(two, flat.log_mu, flat.advantage, seq_tis(2.0)(flat), num_tokens(flat))
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(grad_of(a, one).flatten(), grad_of(b, two))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_only_the_live_policy_is_differentiated(loss):
    batch = random_batch(3)
    log_pi, old, advantage = (batch.log_mu.clone().requires_grad_() for _ in range(3))
    loss(
        log_pi, old, advantage, token_tis(2.0)(Batch.padded(log_pi, old, batch.layout.mask)), num_tokens(batch)
    ).backward()
    assert log_pi.grad is not None
    assert old.grad is None
    assert advantage.grad is None


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_on_policy_every_loss_has_the_same_gradient(loss):
    """At pi = old the ratio is 1 and no clip acts, so all are REINFORCE."""
    batch = random_batch(4)
    log_pi, plain = (batch.log_mu.clone().requires_grad_() for _ in range(2))
    w = token_tis(2.0)(batch)
    grad = grad_of(loss(log_pi, batch.log_mu, batch.advantage, w, 3.0), log_pi)
    torch.testing.assert_close(grad, grad_of(policy_gradient(plain, batch.advantage, w, 3.0), plain))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_half_precision_is_summed_in_float32_and_the_gradient_comes_back_in_half(loss):
    batch = random_batch(5)
    log_pi = batch.log_pi.bfloat16().requires_grad_()
    value = loss(log_pi, batch.log_mu, batch.advantage, naive()(batch), num_tokens(batch))
    assert value.dtype == torch.float32
    assert grad_of(value, log_pi).dtype == torch.bfloat16


def test_micro_batches_with_the_global_denominator_add_up():
    batch = random_batch(6, garbage=False)
    log_pi = batch.log_pi.clone().requires_grad_()
    d = num_tokens(batch)
    whole = policy_gradient(log_pi, batch.advantage, token_tis(2.0)(batch), d)
    parts = []
    for rows in (slice(0, 2), slice(2, 6)):
        part = Batch.padded(batch.log_pi[rows], batch.log_mu[rows], batch.layout.mask[rows])
        parts.append(policy_gradient(log_pi[rows], batch.advantage[rows], token_tis(2.0)(part), d))
    torch.testing.assert_close(sum(parts), whole)


def test_denominators_by_hand():
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]])
    batch = Batch.padded(torch.tensor([[-1.0] * 3, [-3.0] * 3, [0.0] * 3]), torch.full((3, 3), -1.0), mask)
    assert int(num_tokens(batch)) == 4
    assert int(num_sequences(batch)) == 2
    assert int(num_kept(weigh(SEQUENCE, Reject(0.5, 2.0))(batch))) == 3
    assert advantage_over_length(batch.layout, torch.tensor([6.0, 5.0, 4.0])).tolist() == [
        [2.0, 2.0, 2.0],
        [5.0, 0.0, 0.0],
        [0.0] * 3,
    ]


def test_no_tokens_no_loss():
    """An all-masked micro-batch gives 0 with a zero gradient: it must not stop a step."""
    batch = Batch.padded(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3))
    assert [int(f(batch)) for f in (num_tokens, num_sequences)] == [1, 1]
    assert int(num_kept(naive()(batch))) == 1
    for loss in LOSSES.values():
        log_pi = torch.zeros(2, 3, requires_grad=True)
        value = loss(log_pi, batch.log_mu, torch.ones(2), naive()(batch), num_tokens(batch))
        assert value.item() == 0
        assert grad_of(value, log_pi).abs().max() == 0


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda w: ppo_clip(OLD, OLD, A, w, 1.0, dual=1.0), r"ppo_clip: dual must be > 1, got 1\.0"),
        (lambda w: ppo_clip(OLD, OLD, A, w, 1.0, low=-0.1), r"ppo_clip: low and high must be >= 0, got low=-0\.1"),
        (lambda w: cispo(OLD, OLD, A, w, 1.0, high=math.nan), r"cispo: low and high must be >= 0.*high=nan"),
        (lambda w: gspo(OLD, OLD, A, w, 1.0, high=-1.0), r"gspo: low and high must be >= 0"),
        (
            lambda w: policy_gradient(OLD, torch.ones(3), w, 1.0),
            r"advantage must have one value a token \(2, 3\) or one a sequence \(2,\), got \(3,\)",
        ),
    ],
)
def test_arguments_that_mean_nothing_are_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call(naive_weights())


def test_an_advantage_a_sequence_is_spread_in_any_shape():
    w, log_pi = naive_weights(), live_policy().detach()
    values = [policy_gradient(log_pi, a, w, 1.0) for a in (A, A[:, None], A[:, None].expand(2, 3))]
    assert values[0] == values[1] == values[2]


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_dropped_token_may_have_any_ratio(loss, advantage):
    """Its weight is 0, and 0 times an infinite ratio would be NaN: a rejection that poisons what it should protect."""
    log_mu = torch.tensor([[-1.0, -1.0], [-400.0, -1.0]])
    log_pi = torch.tensor([[-1.0, -1.0], [-1.0, -torch.inf]])  # the old policy had given the last one -2
    keep = weigh(SEQUENCE, Reject(0.5, 2.0))(
        Batch.padded(torch.tensor([[-1.0, -1.0], [-1.0, -2.0]]), log_mu, torch.ones(2, 2))
    )
    assert keep.keep.tolist() == [True, False]
    live = log_pi.clone().requires_grad_()
    value = loss(live, log_mu, torch.full((2,), advantage), keep, 4.0)
    assert torch.isfinite(value)
    grad = grad_of(value, live)
    assert torch.isfinite(grad).all()
    assert (grad[1] == 0).all()
    assert (grad[0] != 0).all()


@pytest.mark.parametrize(("advantage", "kwargs"), [(1.0, {}), (-1.0, {"dual": 3.0}), (0.0, {})])
def test_a_clipped_ratio_may_be_one_that_no_float_holds(advantage, kwargs):
    """A ratio of e^100 is cut off: its term is the bound, and its gradient 0 and not 0 times infinity."""
    old = torch.tensor([[-101.0, -1.0]])
    log_pi = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    value = ppo_clip(
        log_pi, old, torch.full((1, 2), advantage), naive()(Batch.padded(old, old, torch.ones(1, 2))), 1.0, **kwargs
    )
    assert value.item() == pytest.approx({1.0: -2.2, -1.0: 4.0, 0.0: 0.0}[advantage], rel=1e-6)
    assert grad_of(value, log_pi).tolist() == [[0.0, pytest.approx(-advantage)]]


def test_default_bounds_are_those_that_are_documented():
    """CISPO clips at 5 and not below, GSPO at 1 - 3e-4 and 1 + 4e-4, PPO at .8 and 1.2; ratios lie on both sides."""
    g = torch.Generator().manual_seed(4)
    old = -torch.rand(40, 5, generator=g, dtype=torch.float64) - 3.0
    mask, advantage = torch.ones(40, 5), torch.tensor([1.0, -1.0]).repeat(20).double()
    for loss, spread, bounds in (
        (cispo, 2.5, {"low": 1.0, "high": 4.0}),
        (gspo, 1e-3, {"low": 3e-4, "high": 4e-4}),
        (ppo_clip, 0.6, {"low": 0.2, "high": 0.2}),
    ):
        pi = (old + spread * torch.randn(40, 5, generator=g)).clamp(max=-1e-3)
        weights = naive()(Batch.padded(pi, old, mask))
        assert torch.equal(loss(pi, old, advantage, weights, 7.0), loss(pi, old, advantage, weights, 7.0, **bounds))
        for name, value in bounds.items():  # each bound is in use; a low of 1 is none
            moved = bounds | {name: value * 0.7 if value != 1.0 else 0.5}
            assert not torch.equal(
                loss(pi, old, advantage, weights, 7.0), loss(pi, old, advantage, weights, 7.0, **moved)
            )
