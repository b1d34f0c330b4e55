"""All that is made of the whole vocabulary equals the plain softmax version, in less memory, whatever the shape."""

import importlib
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import linear
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import reweigh.logits.states
import reweigh.logits.tokens
from reweigh import Batch, naive, num_tokens, policy_gradient, ppo_clip, seq_tis
from reweigh.logits import LinearLogits, StateTotals, linear_log_probs, log_probs, state_divergences

NAMES = ("tv", "kl_mu_pi", "kl_pi_mu", "chi2", "hellinger2", "max_log_ratio")
shapes = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 40), st.integers(1, 6))
seeds = st.integers(0, 1000)
dtypes = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few rows, so that small inputs are cut and the last block is not full."""
    monkeypatch.setattr(reweigh.logits.tokens, "in_cache", lambda device: 64)
    monkeypatch.setattr(reweigh.logits.tokens, "LEAST_TILE", 3)


def plain_scores(logits, tokens, temperature=1.0, softcap=None):
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    log_p = (z / temperature).log_softmax(-1)
    entropy = -torch.where(log_p > -torch.inf, log_p.exp() * log_p, 0).sum(-1)
    return log_p.gather(-1, tokens[..., None])[..., 0], entropy


def plain_divergences(pi, mu):
    """In float64, straight from the definitions: terms where both are 0 are 0."""
    log_pi, log_mu = pi.double().log_softmax(-1), mu.double().log_softmax(-1)
    p, q = log_pi.exp(), log_mu.exp()
    term = lambda w, x: torch.where(w > 0, w * x, 0).sum(-1)  # noqa: E731
    gap = (p - q) ** 2
    return {
        "tv": (p - q).abs().sum(-1) / 2,
        "kl_mu_pi": term(q, log_mu - log_pi),
        "kl_pi_mu": term(p, log_pi - log_mu),
        "chi2": torch.where(gap > 0, gap / q, 0).sum(-1),
        "hellinger2": ((p.sqrt() - q.sqrt()) ** 2).sum(-1) / 2,
        "max_log_ratio": torch.where(p > 0, log_pi - log_mu, -torch.inf).amax(-1),
    }


def peak_bytes(run):
    """Most bytes that were allocated at once during a call, from the allocator's own events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        run()
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert events
    live = most = 0
    for e in sorted(events, key=lambda e: e.start_ns()):
        live += e.nbytes()
        most = max(most, live)
    return most


def grads(outputs, by, inputs):
    return torch.autograd.grad(sum((o * g).sum() for o, g in zip(outputs, by, strict=True)), inputs)


TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@given(shapes, seeds, dtypes, st.sampled_from([1.0, 0.6]))
def test_log_probs_are_the_plain_ones(shape, seed, dtype, temperature):
    s, t, v, _ = shape
    g = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(s, t + 1, v, generator=g)).to(dtype).requires_grad_()
    tokens = torch.randint(v, (s, t), generator=g)
    by = [torch.randn(s, t, generator=g) for _ in range(2)]
    expected = plain_scores(logits[:, :-1], tokens, temperature)
    got = log_probs(logits[:, :-1], tokens, temperature=temperature)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)
    for terms in (slice(2), slice(1), slice(1, 2)):  # both outputs, or only one of them
        a, b = (grads(out[terms], by[terms], logits)[0] for out in (got, expected))
        torch.testing.assert_close(a, b, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        got, expected = (
            log_probs(logits[:, :-1], tokens, temperature=temperature),
            plain_scores(logits[:, :-1], tokens, temperature),
        )


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("cut", [slice(None), slice(None, -1)])
def test_blocks_that_do_not_divide_change_nothing(overwrite, cut):
    source, tokens = torch.randn(3, 8, 29, dtype=torch.float64), torch.randint(29, (3, 8))[:, cut]
    one, two = (source.clone().requires_grad_() for _ in range(2))
    by = [torch.randn(tokens.shape) for _ in range(2)]
    a = log_probs((one * 1.0)[:, cut], tokens, temperature=1.7, overwrite=overwrite)
    b = plain_scores(two[:, cut], tokens, 1.7)
    torch.testing.assert_close(tuple(a), b)
    torch.testing.assert_close(grads(a, by, one), grads(b, by, two))


def test_overwritten_logits_are_not_used_again():
    """Autograd itself refuses what would read the gradient as if it were logits."""
    logits = torch.randn(4, 9, requires_grad=True) * 1.0
    value = log_probs(logits, torch.arange(4), overwrite=True).log_p.sum()
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@pytest.mark.usefixtures("small_blocks")
@given(
    shapes,
    seeds,
    dtypes,
    st.integers(1, 300),
    st.sampled_from([None, 4.0]),
    st.booleans(),
    st.sampled_from([None, torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_linear_log_probs_are_the_plain_ones(shape, seed, dtype, chunk, softcap, biased, keep_in):
    s, t, v, h = shape
    g = torch.Generator().manual_seed(seed)
    make = lambda *size: torch.randn(*size, generator=g).to(dtype).requires_grad_()  # noqa: E731
    hidden, weight, bias = make(s, t, h), make(v, h), make(v) if biased else None
    tokens, by = torch.randint(v, (s, t), generator=g), [torch.randn(s, t, generator=g) for _ in range(2)]
    leaves = [x for x in (hidden, weight, bias) if x is not None]
    wide = [None if x is None else x.double() for x in (hidden, weight, bias)]
    expected = plain_scores(linear(*wide), tokens, 1.3, softcap)
    how = {"bias": bias, "temperature": 1.3, "softcap": softcap, "chunk": chunk}
    got = linear_log_probs(hidden, weight, tokens, keep_in=keep_in, **how)
    for a, b in zip(got, linear_log_probs(hidden, weight, tokens, **how), strict=True):
        assert torch.equal(a, b)  # what is kept has no part in the values
    tolerance = 4 * TOLERANCE[dtype]
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)
    tolerance = max(tolerance, 4 * TOLERANCE[keep_in or dtype])
    for a, b in zip(grads(got, by, leaves), grads(expected, by, leaves), strict=True):
        assert a.dtype == dtype
        scale = max(1.0, float(b.abs().max()))
        torch.testing.assert_close(a / scale, b / scale, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("keep_in", [None, torch.float64])
def test_gradients_agree_with_finite_differences(softcap, keep_in):
    hidden, weight, bias = (torch.randn(*n, dtype=torch.float64, requires_grad=True) for n in ((5, 3), (11, 3), (11,)))
    tokens = torch.randint(11, (5,))

    def both(*x):
        how = {"softcap": softcap, "temperature": 0.8, "chunk": 40, "keep_in": keep_in}
        return tuple(linear_log_probs(x[0], x[1], tokens, bias=x[2], **how))

    assert torch.autograd.gradcheck(both, (hidden, weight, bias))
    logits = torch.randn(5, 11, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: tuple(log_probs(z, tokens, temperature=0.8)), (logits,))


def test_only_what_needs_a_gradient_gets_one():
    hidden, weight = torch.randn(4, 3, requires_grad=True), torch.randn(7, 3)
    linear_log_probs(hidden, weight, torch.arange(4)).log_p.sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None
    assert not linear_log_probs(hidden.detach(), weight, torch.arange(4)).log_p.requires_grad


@pytest.mark.parametrize("softcap", [None, 30.0])
def test_kept_probabilities_take_excluded_and_sure_tokens(softcap):
    """A sure token's 1 - p is 3e-4, which bfloat16 rounds to 0; the last column's p is 0 in every type."""
    eye = torch.eye(3)
    logits = torch.tensor([[9.0, 0.0, -200.0], [0.0, 9.0, -29.0]])
    tokens = torch.tensor([0, 1])
    by = [torch.ones(2), torch.full((2,), 0.5)]
    exact = logits.double().requires_grad_()
    (expected,) = grads(plain_scores(exact, tokens, softcap=softcap), by, exact)
    for keep_in in (torch.float32, torch.bfloat16):
        hidden = logits.clone().requires_grad_()
        got = linear_log_probs(hidden, eye, tokens, softcap=softcap, keep_in=keep_in)
        (grad,) = grads(got, by, hidden)
        torch.testing.assert_close(grad.double(), expected, rtol=1e-2, atol=1e-9)


@pytest.mark.usefixtures("small_blocks")
def test_what_is_kept_is_used_again_and_again():
    """The second backward pass of one graph gives what the first did: what is kept is not written over."""
    hidden, weight = torch.randn(7, 4, requires_grad=True), torch.randn(23, 4, requires_grad=True)
    out = linear_log_probs(hidden, weight, torch.arange(7), softcap=5.0, keep_in=torch.float32)
    value = out.log_p.sum() + out.entropy.sum()
    once, twice = (torch.autograd.grad(value, (hidden, weight), retain_graph=True) for _ in range(2))
    for a, b in zip(once, twice, strict=True):
        assert torch.equal(a, b)


def test_a_float32_head_keeps_what_bfloat16_rounds_away():
    hidden, weight, tokens = torch.randn(64, 32).bfloat16(), torch.randn(300, 32).bfloat16(), torch.randint(300, (64,))
    exact, _ = plain_scores(hidden.double() @ weight.double().T, tokens)
    error = [
        (linear_log_probs(hidden, weight, tokens, multiply_in=m).log_p - exact).abs().max()
        for m in (None, torch.float32)
    ]
    assert error[0] > 5e-3
    assert error[1] < 1e-5


def test_a_float32_head_has_bfloat16_gradients():
    hidden, weight = (torch.randn(*n).bfloat16().requires_grad_() for n in ((64, 32), (300, 32)))
    tokens, by = torch.randint(300, (64,)), [torch.randn(64), torch.randn(64)]
    got = grads(linear_log_probs(hidden, weight, tokens, multiply_in=torch.float32), by, (hidden, weight))
    exact = grads(plain_scores(hidden.double() @ weight.double().T, tokens), by, (hidden, weight))
    for a, b in zip(got, exact, strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


def test_autocast_multiplies_as_a_linear_layer_does():
    hidden, weight = (torch.randn(*n, requires_grad=True) for n in ((8, 16), (30, 16)))
    tokens, by = torch.randint(30, (8,)), [torch.randn(8), torch.randn(8)]
    with torch.autocast("cpu", torch.bfloat16):
        got = linear_log_probs(hidden, weight, tokens)
        expected = plain_scores(linear(hidden, weight), tokens)
    torch.testing.assert_close(tuple(got), expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(grads(got, by, (hidden, weight)), grads(expected, by, (hidden, weight)), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


def test_a_float32_head_is_one_under_autocast_too():
    hidden, weight, tokens = torch.randn(8, 16), torch.randn(30, 16), torch.randint(30, (8,))
    exact = linear_log_probs(hidden, weight, tokens)
    logits = LinearLogits(hidden, weight, multiply_in=torch.float32)
    rough = LinearLogits(hidden, weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linear_log_probs(hidden, weight, tokens, multiply_in=torch.float32).log_p, exact.log_p)
        assert state_divergences(logits, hidden.double() @ weight.double().T).tv.max() < 1e-5
        assert state_divergences(rough, hidden.double() @ weight.double().T).tv.max() > 1e-4


def test_a_sure_token_keeps_its_digits():
    """A logit of 2,000 has no digit below 1e-4, but the log-prob of -1e-6 that it stands for has them all."""
    logits = torch.tensor([[2000.0, 2000.0 - 13.8125]])
    assert log_probs(logits, torch.tensor([0])).log_p.item() == pytest.approx(-math.log1p(math.exp(-13.8125)), rel=0.1)


def test_excluded_tokens_have_no_part_in_the_entropy_or_the_gradient():
    logits = torch.tensor([[0.0, 0.0, -torch.inf]], requires_grad=True)
    log_p, entropy = log_probs(logits, torch.tensor([0]))
    assert entropy.item() == pytest.approx(math.log(2))
    (grad,) = torch.autograd.grad((log_p + entropy).sum(), logits)
    torch.testing.assert_close(grad, torch.tensor([[0.5, -0.5, 0.0]]))


@pytest.mark.parametrize("token", [-100, -1, 5])
def test_a_token_outside_the_vocabulary_is_nan_and_has_no_gradient_off_the_mask(token):
    hidden, weight = torch.randn(2, 3, requires_grad=True), torch.randn(5, 3)
    tokens, mask = torch.tensor([[1, token]]), torch.tensor([[True, False]])
    for score in (
        lambda: linear_log_probs(hidden[None], weight, tokens).log_p,
        lambda: log_probs((hidden @ weight.T)[None], tokens).log_p,
    ):
        log_p = score()
        assert log_p.isnan().tolist() == [[False, True]]
        batch = Batch.padded(log_p, torch.full((1, 2), -2.0), mask)
        value = policy_gradient(log_p, torch.ones(1), seq_tis(2.0)(batch), 1.0)
        (grad,) = torch.autograd.grad(value, hidden)
        assert (grad[0] != 0).all()
        assert grad[1].tolist() == [0, 0, 0]


def test_no_tokens():
    hidden, weight = torch.zeros(0, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    out = linear_log_probs(hidden, weight, torch.zeros(0, dtype=torch.long))
    (out.log_p.sum() + out.entropy.sum()).backward()
    assert weight.grad.abs().max() == 0
    logits = torch.zeros(2, 0, 5, requires_grad=True)
    log_probs(logits, torch.zeros(2, 0, dtype=torch.long)).log_p.sum().backward()
    assert logits.grad.shape == (2, 0, 5)
    assert state_divergences(logits, logits).tv.shape == (2, 0)


LOSSES = {
    "policy_gradient": lambda log_p, old, a, w, d: policy_gradient(log_p, a, w, d),
    "ppo_clip": ppo_clip,
}


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_loss_on_hidden_states_is_the_loss_on_logits(loss):
    hidden, weight = torch.randn(3, 7, 4, requires_grad=True), torch.randn(23, 4, requires_grad=True)
    tokens, advantage = torch.randint(23, (3, 7)), torch.tensor([1.0, -2.0, 0.5])
    mask = torch.arange(7) < torch.tensor([[7], [3], [0]])
    values, gradients = [], []
    for log_p in (linear_log_probs(hidden, weight, tokens, chunk=50).log_p, plain_scores(hidden @ weight.T, tokens)[0]):
        log_mu = log_p.detach() + 0.2 * torch.linspace(-1, 1, 21).view(3, 7)
        batch = Batch.padded(log_p, log_mu, mask)
        value = loss(log_p, log_mu, advantage, seq_tis(2.0)(batch), num_tokens(batch))
        values.append(value)
        gradients.append(torch.autograd.grad(value, (hidden, weight)))
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)


def test_peak_memory_of_a_loss_on_hidden_states():
    """Plain: logits, their log-softmax and the gradient, three arrays. Here a chunk and what a block makes of it."""
    n, h, v = 512, 16, 4001
    hidden, weight, tokens = torch.randn(1, n, h, requires_grad=True), torch.randn(v, h), torch.randint(v, (1, n))
    whole, mask = n * v * 4, torch.ones(1, n)

    def step(score):
        def run():
            log_p = score()
            batch = Batch.padded(log_p, log_p.detach() - 0.1, mask)
            policy_gradient(log_p, torch.ones(1), naive()(batch), num_tokens(batch)).backward()

        return run

    how = {"chunk": n * v // 16}
    chunked = step(lambda: linear_log_probs(hidden, weight, tokens, **how).log_p)
    kept, half = (
        step(lambda k=k: linear_log_probs(hidden, weight, tokens, keep_in=k, **how).log_p)
        for k in (torch.float32, torch.bfloat16)
    )
    assert peak_bytes(step(lambda: plain_scores(hidden @ weight.T, tokens)[0])) > 2.9 * whole
    assert peak_bytes(chunked) < 0.25 * whole
    assert whole < peak_bytes(kept) < 1.25 * whole
    assert 0.5 * whole < peak_bytes(half) < 0.75 * whole

    def scored():
        with torch.no_grad():
            linear_log_probs(hidden, weight, tokens, keep_in=torch.float32, **how)

    assert peak_bytes(scored) < 0.25 * whole


def test_peak_memory_of_log_probs():
    n, v = 512, 4001
    logits, tokens = torch.randn(n, v, requires_grad=True) * 1.0, torch.randint(v, (n,))
    whole = n * v * 4
    assert peak_bytes(lambda: torch.autograd.grad(log_probs(logits, tokens).log_p.sum(), logits)) < 1.2 * whole
    run = lambda: torch.autograd.grad(log_probs(logits, tokens, overwrite=True).log_p.sum(), logits)  # noqa: E731
    assert peak_bytes(run) < 0.2 * whole


@given(shapes, seeds, dtypes, st.sampled_from([0.01, 0.5, 8.0]))
def test_divergences_are_the_plain_ones(shape, seed, dtype, gap):
    s, t, v, _ = shape
    g = torch.Generator().manual_seed(seed)
    mu = (3 * torch.randn(s, t, v, generator=g)).to(dtype)
    pi = (mu + gap * torch.randn(s, t, v, generator=g)).to(dtype) + 5
    expected = plain_divergences(pi / 0.7, mu / 1.2) if dtype == torch.float64 else None
    if expected is None:
        expected = plain_divergences(pi.double() / 0.7, mu.double() / 1.2)
    got = state_divergences(pi, mu, temperature_pi=0.7, temperature_mu=1.2)
    for name in NAMES:
        value = getattr(got, name)
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-13, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("cut", [slice(None), slice(None, -1)])
def test_divergences_in_blocks_of_slices_and_of_hidden_states(cut):
    hidden_pi, hidden_mu = torch.randn(3, 8, 4, dtype=torch.float64), torch.randn(3, 8, 5, dtype=torch.float64)
    weight_pi, weight_mu = torch.randn(29, 4, dtype=torch.float64), torch.randn(29, 5, dtype=torch.float64)
    pi, mu = LinearLogits(hidden_pi[:, cut], weight_pi), LinearLogits(hidden_mu[:, cut], weight_mu, softcap=2.0)
    logits_pi, logits_mu = hidden_pi @ weight_pi.T, 2 * torch.tanh(hidden_mu @ weight_mu.T / 2)
    expected = plain_divergences(logits_pi[:, cut], logits_mu[:, cut])
    for a in (pi, logits_pi[:, cut], logits_pi[:, cut].contiguous()):
        for b in (mu, logits_mu[:, cut], logits_mu[:, cut].contiguous()):
            got = state_divergences(a, b, chunk=100)
            for name in NAMES:
                torch.testing.assert_close(getattr(got, name), expected[name])


def test_divergences_by_hand():
    """mu = (1/2, 1/2), pi = (3/4, 1/4): the gap is 1/4 at each token."""
    got = state_divergences(torch.tensor([[0.75, 0.25]]).double().log(), torch.zeros(1, 2))
    assert got.tv.item() == pytest.approx(0.25)
    assert got.chi2.item() == pytest.approx(2 * (1 / 16) / 0.5)
    assert got.kl_mu_pi.item() == pytest.approx(-math.log(0.75) / 2 - math.log(0.25) / 2 - math.log(2))
    assert got.kl_pi_mu.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert got.hellinger2.item() == pytest.approx(1 - math.sqrt(0.375) - math.sqrt(0.125))
    assert got.max_log_ratio.item() == pytest.approx(math.log(1.5))


@pytest.mark.parametrize("gap", [1e-3, 1e-5, 1e-6])
def test_small_divergences_have_their_digits(gap):
    """Logits of +-c against 0: TV = tanh(c) / 2, KL(mu||pi) = log cosh c, KL(pi||mu) = c tanh c - log cosh c.

    c is a power of 2, which float32 holds; the expected values are series, as their formulas lose digits themselves.
    """
    c = 2.0 ** round(math.log2(gap))
    mu, sign = torch.zeros(1, 1000), torch.where(torch.arange(1000) % 2 == 0, 1.0, -1.0)
    got = state_divergences(mu + c * sign, mu)
    assert got.tv.item() == pytest.approx(math.tanh(c) / 2, rel=1e-9)
    assert got.chi2.item() == pytest.approx(math.tanh(c) ** 2, rel=1e-9)
    assert got.hellinger2.item() == pytest.approx(c**2 / 8, rel=2e-6)
    assert got.kl_mu_pi.item() == pytest.approx(c**2 / 2 - c**4 / 12, abs=1e-15)
    assert got.kl_pi_mu.item() == pytest.approx(c**2 / 2 - c**4 / 4, abs=1e-15)


def test_small_divergences_of_peaked_policies():
    """Float32 softmax alone is off by 1e-7; against a float64 reference nothing is lost but what the inputs lack."""
    g = torch.Generator().manual_seed(3)
    mu = 6 * torch.randn(20, 5000, generator=g)
    pi = mu + 1e-5 * torch.randn(20, 5000, generator=g)
    got, expected = state_divergences(pi, mu), plain_divergences(pi, mu)
    assert 1e-7 < got.tv.max() < 1e-4
    torch.testing.assert_close(got.tv, expected["tv"], rtol=1e-8, atol=0)
    torch.testing.assert_close(got.chi2, expected["chi2"], rtol=1e-8, atol=0)
    torch.testing.assert_close(got.kl_mu_pi, got.chi2 / 2, rtol=1e-3, atol=4e-15)
    torch.testing.assert_close(got.kl_pi_mu, got.chi2 / 2, rtol=1e-3, atol=4e-15)
    torch.testing.assert_close(got.hellinger2, got.chi2 / 8, rtol=1e-3, atol=0)


def test_the_same_logits_have_no_distance_and_a_constant_makes_none():
    logits = torch.randn(4, 50)
    for name in NAMES:
        assert getattr(state_divergences(logits, logits), name).abs().max() == 0
        assert getattr(state_divergences(logits.double() + 1000, logits), name).abs().max() < 1e-10


def test_what_mu_cannot_give_is_infinitely_far():
    """Top-p took the last token from mu: TV and Hellinger are finite, KL(mu||pi) too, KL(pi||mu) and chi2 are not."""
    pi, mu = torch.zeros(2, 4), torch.tensor([[0.0, 0.0, 0.0, -torch.inf], [0.0] * 4])
    got = state_divergences(pi, mu)
    assert got.tv.tolist() == [pytest.approx(0.25), 0]
    assert got.kl_mu_pi.tolist() == [pytest.approx(math.log(4 / 3)), 0]
    assert got.hellinger2.tolist() == [pytest.approx(1 - math.sqrt(3) / 2), 0]
    assert [getattr(got, n).tolist() for n in ("kl_pi_mu", "chi2", "max_log_ratio")] == [[math.inf, 0]] * 3
    back = state_divergences(mu, pi)
    assert back.kl_mu_pi.tolist() == [math.inf, 0]
    assert back.kl_pi_mu.tolist() == [pytest.approx(math.log(4 / 3)), 0]
    assert back.chi2.tolist() == [pytest.approx(1 / 3), 0]
    assert back.max_log_ratio.tolist() == [pytest.approx(math.log(4 / 3)), 0]


def test_what_both_exclude_does_not_count():
    """Also where every other token's logits lie far from 0, on both sides."""
    pi, mu = torch.randn(6, 9) - 40, torch.randn(6, 9) + 70
    rest = state_divergences(pi[:, :5], mu[:, :5])
    pi[:, 5:], mu[:, 5:] = -torch.inf, -torch.inf
    both = state_divergences(pi, mu)
    for name in NAMES:
        torch.testing.assert_close(getattr(both, name), getattr(rest, name))


@pytest.mark.parametrize("excluded", [torch.finfo(torch.float32).min, -1e30])
def test_the_least_float_excludes_as_minus_infinity_does(excluded):
    got = state_divergences(torch.zeros(1, 2), torch.tensor([[0.0, excluded]]))
    assert (got.kl_pi_mu.item(), got.chi2.item(), got.kl_mu_pi.item()) == (
        math.inf,
        math.inf,
        pytest.approx(math.log(2)),
    )


def test_far_apart_but_supported_is_finite():
    """A ratio of e^200 has a KL of 200 nats, and a chi2 of e^200, which float64 holds; e^2000 is beyond it."""
    got = state_divergences(torch.zeros(1, 2), torch.tensor([[0.0, -200.0]]))
    assert got.kl_pi_mu.item() == pytest.approx(100 - math.log(2))
    assert math.log(got.chi2.item()) == pytest.approx(200 - math.log(4))
    got = state_divergences(torch.zeros(1, 2), torch.tensor([[0.0, -2000.0]]))
    assert got.kl_pi_mu.item() == pytest.approx(1000 - math.log(2))
    assert got.chi2.item() == math.inf
    assert got.tv.item() == pytest.approx(0.5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_row_that_is_no_policy_is_nan_and_its_neighbour_is_not(bad):
    pi, mu = torch.zeros(2, 3), torch.zeros(2, 3)
    mu[0, 1] = bad
    got = state_divergences(pi, mu)
    assert got.tv.isnan().tolist() == [True, False]
    assert state_divergences(pi, torch.full((2, 3), -torch.inf)).tv.isnan().all()
    assert log_probs(mu, torch.tensor([0, 0])).log_p.isnan().tolist() == [True, False]


def test_float32_precision_is_float32():
    mu = torch.randn(5, 300)
    pi = mu + 0.1 * torch.randn(5, 300)
    got, exact = state_divergences(pi, mu, precision=torch.float32), state_divergences(pi, mu)
    for name in NAMES:
        assert getattr(got, name).dtype == torch.float32
        torch.testing.assert_close(getattr(got, name).double(), getattr(exact, name), rtol=1e-4, atol=1e-6)


@given(shapes, seeds)
def test_the_inequalities_that_tie_them(shape, seed):
    s, t, v, _ = shape
    g = torch.Generator().manual_seed(seed)
    pi, mu = (4 * torch.randn(s, t, v + 1, generator=g) for _ in range(2))
    d, slack = state_divergences(pi, mu), 1e-12
    for kl in (d.kl_mu_pi, d.kl_pi_mu):
        assert (d.tv <= (kl / 2).sqrt() + slack).all()
        assert (2 * d.hellinger2 <= kl + slack).all()
    assert (d.hellinger2 <= d.tv + slack).all()
    assert (d.kl_pi_mu <= torch.log1p(d.chi2) + slack).all()
    assert (4 * d.tv**2 <= d.chi2 + slack).all()
    assert (d.kl_pi_mu <= d.max_log_ratio + slack).all()


def test_totals_by_hand_and_merged():
    pi, mu = torch.randn(4, 6, 9), torch.randn(4, 6, 9)
    mu[0, 0, 2] = -torch.inf
    mask = torch.rand(4, 6) < 0.7
    mask[0, 0], mask[3] = True, False
    d = state_divergences(pi, mu)
    whole = d.totals(mask)
    assert int(whole.num_states) == int(mask.sum())
    assert int(whole.num_unsupported) == 1
    assert whole.tv.item() == pytest.approx(d.tv[mask].sum().item())
    assert whole.chi2.item() == math.inf
    assert whole.max_tv.item() == d.tv[mask].max().item()
    parts = [state_divergences(pi[i : i + 1], mu[i : i + 1]).totals(mask[i : i + 1]) for i in range(4)]
    merged = parts[0] + parts[1] + parts[2] + parts[3]
    for name, value in vars(whole).items():
        torch.testing.assert_close(getattr(merged, name), value)
    assert parts[3].max_tv.item() == -math.inf
    assert int(parts[3].num_states) == 0
    assert isinstance(merged, StateTotals)


def test_garbage_off_the_mask_reaches_no_total():
    pi, mu = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    pi[0, 1], mu[1, 2] = torch.nan, torch.nan
    mask = torch.tensor([[True, False, True], [True, True, False]])
    assert all(torch.isfinite(x) for x in vars(state_divergences(pi, mu).totals(mask)).values())


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda v: v.log_probs(torch.zeros(2, 3), torch.zeros(2).long(), temperature=0.0),
            "log_probs: temperature must be > 0",
        ),
        (
            lambda v: v.log_probs(torch.zeros(4, 3), torch.zeros(3).long()),
            r"one id a row \(4,\), got \(3,\)\nhint: the logits",
        ),
        (
            lambda v: v.linear_log_probs(torch.zeros(4, 3), torch.zeros(3, 9), torch.zeros(4).long()),
            r"weight must be \[vocabulary, 3\], got \(3, 9\)\nhint: `model.lm_head.weight`",
        ),
        (
            lambda v: v.linear_log_probs(torch.zeros(4, 3), torch.zeros(9, 3), torch.zeros(4).long(), chunk=0),
            r"chunk must be >= 1 logit, got 0",
        ),
        (
            lambda v: v.linear_log_probs(torch.zeros(4, 3), torch.zeros(9, 3), torch.zeros(4).long(), softcap=0.0),
            r"softcap must be > 0, got 0\.0",
        ),
        (
            lambda v: v.linear_log_probs(
                torch.zeros(4, 3), torch.zeros(9, 3), torch.zeros(4).long(), keep_in=torch.int8
            ),
            r"keep_in must be one of torch\.float64, .* got torch\.int8\nhint: torch\.bfloat16 halves",
        ),
        (
            lambda v: v.state_divergences(torch.zeros(1, 3), torch.zeros(1, 4)),
            r"got \(1, 3\) and \(1, 4\)\nhint: cut a padded",
        ),
        (
            lambda v: v.state_divergences(torch.zeros(1, 3), torch.zeros(1, 3), temperature_mu=-1.0),
            r"temperature_mu must be > 0, got -1\.0",
        ),
    ],
)
def test_arguments_that_mean_nothing_are_refused(unchecked, call, text):
    assert unchecked
    with pytest.raises(ValueError, match=text):
        call(importlib.import_module("reweigh.logits"))


def cases(vocabulary):
    """Name, function of tensors, inputs, how many of them are differentiated."""
    hidden, weight, logits = torch.randn(24, 5), torch.randn(31, 5), torch.randn(24, 31)
    tokens = torch.randint(31, (24,))

    def head(h, w, keep_in=None):
        out = vocabulary.linear_log_probs(h, w, tokens, temperature=1.2, softcap=4.0, chunk=200, keep_in=keep_in)
        return [out.log_p, out.entropy]

    def scores(z):
        return [*vocabulary.log_probs(z, tokens, temperature=1.2)]

    def states(z, h, w):
        out = []
        for pi in (z * 1.1, vocabulary.LinearLogits(h, w)):
            d = vocabulary.state_divergences(pi, z, temperature_mu=1.1)
            out += [*vars(d).values(), *vars(d.totals(tokens > 3)).values()]
        return out

    return {
        "head": (head, (hidden, weight), 2),
        "kept": (lambda h, w: head(h, w, torch.float32), (hidden, weight), 2),
        "scores": (scores, (logits,), 1),
        "states": (states, (logits, hidden, weight), 0),
    }


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", ["head", *(pytest.param(x, marks=pytest.mark.slow) for x in ("kept", "scores", "states"))]
)
def test_compiles_to_one_graph(unchecked, name, backend):
    torch._dynamo.reset()
    run, inputs, num = cases(importlib.import_module("reweigh.logits"))[name]
    inputs = [x.clone().requires_grad_(i < num) for i, x in enumerate(inputs)]
    got, expected = torch.compile(run, fullgraph=True, backend=backend)(*inputs), run(*inputs)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    if num:
        by = [torch.randn(24), torch.randn(24)]
        torch.testing.assert_close(
            grads(got, by, inputs[:num]), grads(expected, by, inputs[:num]), rtol=1e-4, atol=1e-5
        )
    torch._dynamo.reset()


class NoWaiting(TorchDispatchMode):
    """Fails where a value would have to come to the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device():
    """What is an operator of its own hides its inside: its function is called on tensors without values instead."""
    run, inputs, _ = cases(reweigh.logits)["scores"]
    logits = inputs[0].requires_grad_()
    with NoWaiting():
        torch.autograd.grad(sum(x.sum() for x in run(logits)), logits)
        state_divergences(logits, logits).totals(torch.ones(24, dtype=torch.bool))
    hidden, weight, bias = (torch.empty(*n, device="meta") for n in ((24, 5), (31, 5), (31,)))
    tokens = torch.empty(24, dtype=torch.long, device="meta")
    sides, how = (hidden, weight, bias, tokens), (1.2, 4.0, None)
    for keep_in in (None, torch.bfloat16):
        log_p, entropy, lse, kept = reweigh.logits.tokens.scores_in_chunks(*sides, *how, keep_in, 200)
        told = (log_p, lse, entropy, None if keep_in is None else kept)
        out = reweigh.logits.tokens.gradients_in_tiles(*sides, *told, log_p, entropy, *how, 200)
        assert [x.shape for x in out] == [hidden.shape, weight.shape, bias.shape]
    side = (hidden, weight, bias, 4.0, torch.float32, 1.2)
    values = reweigh.logits.states.compared_in_blocks(*side, *side, torch.float64, 200)
    assert values.shape == (6, 24)
