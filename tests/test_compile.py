"""The hot path compiles without a graph break, gives what eager gives, and never waits for the device."""

import pytest
import torch
from batches import blind
from torch.utils._python_dispatch import TorchDispatchMode

layouts = pytest.mark.parametrize("kind", ["padded", pytest.param("packed", marks=pytest.mark.slow)])
TOGETHER = ["seq_tis", "turn_tis", "dppo_kl", "group_snis"]


def tensors(seed=0, s=6, t=40, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    log_mu = -torch.rand(s, t, generator=g) * 3 - 0.5
    log_pi = (log_mu + 0.3 * torch.randn(s, t, generator=g)).clamp(max=0)
    mask = torch.rand(s, t, generator=g) < 0.8
    mask[1] = False
    return {
        "log_pi": log_pi.to(dtype),
        "log_mu": log_mu.to(dtype),
        "mask": mask,
        "advantage": torch.randn(s, generator=g),
        "group": torch.arange(s) // 2,
        "turn": torch.arange(t).div(7, rounding_mode="floor").expand(s, t).contiguous(),
    }


def flatten(x):
    s, t = x["log_pi"].shape
    flat = {k: v.reshape(-1) if v.dim() == 2 else v for k, v in x.items()}
    return flat | {"cu_seqlens": torch.arange(0, s * t + 1, t)}


def step(rw, estimators, levels, losses=True, kind="padded"):
    """What one training step computes: weights, losses and statistics."""
    make = getattr(rw.Batch, kind)

    def run(**x):
        batch = make(**x)
        out = []
        for e in estimators:
            w = e(batch)
            out += [w.per_token, w.num_kept, w.num_bounded, w.keep_tokens]
            if losses:
                d = rw.num_tokens(batch)
                out.append(rw.policy_gradient(batch.log_pi, x["advantage"], w, d))
                out.append(rw.ppo_clip(batch.log_pi, batch.log_mu, x["advantage"], w, d, dual=3.0))
                out.append(rw.cispo(batch.log_pi, batch.log_mu, x["advantage"], w, d))
                out.append(rw.gspo(batch.log_pi, batch.log_mu, x["advantage"], w, d))
        for level in levels:
            stats = rw.RatioStats.of(batch, level)
            stats = stats + stats
            out += [v for k, v in vars(stats).items() if k != "level"]
        return out

    return run


def assert_equal(got, expected, rtol=2e-5):
    assert len(got) == len(expected)
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-6, msg=lambda m, i=i: f"output {i}: {m}")


def levels_of(rw):
    return [rw.TOKEN, rw.TURN, rw.SEQUENCE]


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@layouts
def test_the_whole_step_is_one_graph(unchecked, kind):
    rw = unchecked
    x = tensors() if kind == "padded" else flatten(tensors())
    run = step(rw, [rw.named.NAMED[name]() for name in TOGETHER], levels_of(rw), kind=kind)
    assert_equal(torch.compile(run, fullgraph=True, backend="eager", dynamic=False)(**x), run(**x))


@layouts
def test_every_estimator_is_one_graph(unchecked, kind):
    rw = unchecked
    x = tensors() if kind == "padded" else flatten(tensors())
    names = [n for n in rw.named.NAMED if n != "psis"]  # its fit is NumPy's, on the host
    run = step(rw, [rw.named.NAMED[n]() for n in names], [], losses=False, kind=kind)
    assert_equal(torch.compile(run, fullgraph=True, backend="eager")(**x), run(**x))


@layouts
def test_other_shapes_need_no_other_graph(unchecked, kind):
    """Every batch of rollouts has another length; a compilation for each would cost more than it saves.

    (One of sequences under 64 tokens is another, and so is one with fewer slots than the largest ratios that are kept.)
    """
    rw = unchecked
    run = step(rw, [rw.seq_tis(), rw.token_mis()], [rw.TOKEN, rw.SEQUENCE], kind=kind)
    compiled = torch.compile(run, fullgraph=True, backend="eager", dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for s, t in ((9, 140), (16, 133), (11, 170)):
            x = tensors(s, s, t)
            x = x if kind == "padded" else flatten(x)
            assert_equal(compiled(**x), run(**x))


GENERATED = {
    "estimators": (TOGETHER, []),
    "token": ([], ["TOKEN"]),
    "turn": (["seq_tis"], ["TURN"]),
    "sequence": (["turn_tis"], ["SEQUENCE"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", GENERATED)
@pytest.mark.parametrize("kind", ["padded", "packed"])
def test_generated_kernels_agree(unchecked, kind, what):
    """Fourteen sequences: as many as there are length bins, so that a kernel could take one for the other."""
    rw = unchecked
    names, levels = GENERATED[what]
    x = tensors(s=14) if kind == "padded" else flatten(tensors(s=14))
    run = step(rw, [rw.named.NAMED[n]() for n in names], [getattr(rw, level) for level in levels], kind=kind)
    assert_equal(torch.compile(run, fullgraph=True, backend="inductor")(**x), run(**x))


@pytest.mark.slow
def test_generated_kernels_for_any_shape_agree(unchecked):
    rw = unchecked
    run = step(rw, [rw.seq_tis(), rw.turn_tis()], [])
    compiled = torch.compile(run, fullgraph=True, backend="inductor", dynamic=True)
    for s, t in ((14, 40), (9, 33)):
        x = tensors(s, s, t)
        assert_equal(compiled(**x), run(**x))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_gradients_through_a_compiled_loss_agree(unchecked, backend):
    rw = unchecked
    x = tensors()

    def loss(log_pi):
        batch = rw.Batch.padded(log_pi, x["log_mu"], x["mask"], advantage=x["advantage"])
        w = (rw.geo_rs(0.9, 1.1) * rw.token_tis(2.0))(batch)
        d = rw.num_tokens(batch)
        return rw.ppo_clip(log_pi, x["log_mu"], x["advantage"], w, d, dual=3.0) + rw.gspo(
            log_pi, x["log_mu"], x["advantage"], w, d
        )

    grads = []
    for f in (loss, torch.compile(loss, fullgraph=True, backend=backend)):
        log_pi = x["log_pi"].clone().requires_grad_()
        f(log_pi).backward()
        grads.append(log_pi.grad)
    assert grads[0].abs().max() > 0
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-8)


def test_autocast_changes_nothing(unchecked):
    """Log ratios and their sums stay in float32 under autocast, compiled or not."""
    rw = unchecked
    x = tensors(dtype=torch.bfloat16)
    run = step(rw, [rw.seq_tis(), rw.token_mis()], [rw.SEQUENCE])
    expected = run(**x)
    with torch.autocast("cpu", torch.bfloat16):
        eager = run(**x)
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")(**x)
    for got in (eager, compiled):
        assert [t.dtype for t in got] == [t.dtype for t in expected]
        assert_equal(got, expected)


class NoSync(TorchDispatchMode):
    """Raises on what has to know a value on the host: there a GPU's queue would run dry."""

    WAITS = (
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "item",
        "unique",
        "equal",
        "is_nonzero",
        "repeat_interleave.Tensor",
    )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        if any(f"aten.{w}" in name for w in self.WAITS):
            raise AssertionError(f"a host sync: {name}")
        indexed = "index.Tensor" in name or "index_put" in name
        if indexed and any(i is not None and i.dtype == torch.bool for i in args[1]):
            raise AssertionError(f"a host sync: {name} by a mask")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["padded", "packed"])
def test_nothing_waits_for_the_device(unchecked, kind, monkeypatch):
    """A CPU has nothing to wait for, so there values are looked at; here it does as another device would."""
    rw = unchecked
    blind(monkeypatch)
    x = tensors() if kind == "padded" else flatten(tensors())
    run = step(rw, [f() for n, f in rw.named.NAMED.items() if n != "psis"], levels_of(rw), kind=kind)
    with NoSync():
        run(**x)


def test_the_watch_sees_a_sync(unchecked):
    rw = unchecked
    x = tensors()
    batch = rw.Batch.padded(**x)
    for wait in (
        batch.check,
        lambda: batch.log_pi[batch.layout.mask],
        lambda: rw.psis()(batch),
        lambda: batch.log_pi.sum().item(),
    ):
        with NoSync(), pytest.raises(AssertionError, match="a host sync"):
            wait()


@pytest.mark.parametrize("kind", ["padded", "packed"])
def test_without_values_there_is_nothing_to_wait_for(unchecked, kind):
    """On the meta device tensors have shapes only: whatever runs there reads no value."""
    rw = unchecked
    x = tensors() if kind == "padded" else flatten(tensors())
    run = step(rw, [f() for n, f in rw.named.NAMED.items() if n != "psis"], levels_of(rw), kind=kind)
    expected = run(**x)
    got = run(**{k: v.to("meta") for k, v in x.items()})
    assert [(t.shape, t.dtype) for t in got] == [(t.shape, t.dtype) for t in expected]
    assert all(t.is_meta for t in got)


@layouts
def test_centred_weights_and_their_losses_are_one_graph(unchecked, kind):
    rw = unchecked
    x = tensors() if kind == "padded" else flatten(tensors())
    g = torch.Generator().manual_seed(5)
    heads = [torch.randn(*x["log_pi"].shape, 9, generator=g).log_softmax(-1)[..., :5] for _ in range(2)]
    ids = torch.arange(5).expand(heads[0].shape)
    estimators = [rw.centred(rw.token_tis(1.1)), rw.centred(rw.prefix_tis(1.1) * rw.dppo_tv(0.05, 0.02))]

    def run(head):
        candidates = rw.Candidates(ids, heads[0], head)
        batch = getattr(rw.Batch, kind)(**x, candidates=candidates)
        out = []
        for weights in (e(batch) for e in estimators):
            out += [weights.centre.log_mass, weights.centre.log_tail]
            out.append(rw.policy_gradient(batch.log_pi, x["advantage"], weights, 3.0, candidates=head))
            rest = x["advantage"], weights, 3.0
            given = {"candidates": head, "old_candidates": heads[0]}
            out.append(rw.ppo_clip(batch.log_pi, batch.log_mu, *rest, dual=3.0, **given))
            out.append(rw.cispo(batch.log_pi, batch.log_mu, *rest, **given))
        return out

    inputs = [heads[1].clone().requires_grad_() for _ in range(2)]
    plain, fast = run(inputs[0]), torch.compile(run, fullgraph=True)(inputs[1])
    assert_equal(fast, plain)
    slopes = [
        torch.autograd.grad(sum(o for o in out if o.dim() == 0), y)[0]
        for out, y in ((plain, inputs[0]), (fast, inputs[1]))
    ]
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-4, atol=1e-6)
