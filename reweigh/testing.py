"""The laws that every estimator obeys, as one public check for anyone's composition."""

import pickle
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from reweigh.batch import Batch, Candidates
from reweigh.centring import Centred
from reweigh.estimators import Estimator, Weights, weigh
from reweigh.levels import TOKEN
from reweigh.losses import policy_gradient
from reweigh.transforms import Clip


def odd_batch(seed: int = 0, spread: float = 0.3, dtype: torch.dtype = torch.float32) -> Batch:
    """A padded batch of awkward sequences: full, with holes, of length 1, all masked, left-padded.

    Args:
        seed: of the generator.
        spread: standard deviation of the log ratio of a token, nats.
        dtype: of the log-probs.
    """
    g = torch.Generator().manual_seed(seed)
    mask = torch.tensor(
        [
            [1, 1, 1, 1, 1, 1, 1],
            [1, 0, 1, 1, 0, 1, 0],
            [1, 0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0, 0],
            [0, 0, 1, 1, 1, 1, 1],
            [1, 1, 1, 1, 0, 0, 0],
        ]
    )
    size = mask.shape
    log_mu = -torch.rand(size, generator=g) * 3 - 0.5
    log_pi = (log_mu + spread * torch.randn(size, generator=g)).clamp(max=0)
    garbage = torch.where(torch.rand(size, generator=g) < 0.5, torch.nan, 1e30)  # padding may hold anything
    advantage = torch.randn(size[0], generator=g)
    turn = torch.tensor([[0, 0, 0, 1, 1, 2, 2]]).expand(size)
    return Batch.padded(
        torch.where(mask.bool(), log_pi, garbage).to(dtype),
        torch.where(mask.bool(), log_mu, garbage).to(dtype),
        mask,
        advantage=advantage,
        group=torch.tensor([0, 0, 7, 7, 7, -3]),
        turn=turn,
    )


Loss = Callable[[Tensor, Batch, Weights, Tensor], Tensor]
"""`(log_pi, batch, weights, log_pi of the candidates)` -> the sum of a loss; the advantage is the batch's."""


def drift(
    estimator: Estimator | Centred,
    sign: float = 1.0,
    *,
    loss: Loss | None = None,
    k: int | None = None,
    vocab: int = 4,
    length: int = 3,
    gap: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """Work out the expected gradient of a loss under an advantage that is the same for every sequence.

    Exactly, over all sequences that mu can sample, in float64: what an estimator makes of an advantage that says
    nothing. For importance sampling, and for what is `centred`, it is 0.

    Args:
        estimator: any that does not read the batch, or a centred one.
        sign: the advantage.
        loss: `policy_gradient` if not given.
        k: how many of mu's likeliest tokens are candidates; all, said to be complete, if not given.
        vocab: tokens.
        length: of every sequence.
        gap: standard deviation of the logits' difference, nats.
        seed: of the policies.

    Returns:
        `[contexts, vocab]`, of the logits of pi.
    """
    g = torch.Generator().manual_seed(seed)
    starts = [sum(vocab**t for t in range(n)) for n in range(length + 1)]
    logits = torch.randn(starts[-1], vocab, generator=g, dtype=torch.float64)
    log_mu = (logits + gap * torch.randn(logits.shape, generator=g, dtype=torch.float64)).log_softmax(-1)
    tokens = torch.cartesian_prod(*[torch.arange(vocab)] * length).view(-1, length)
    base = vocab ** torch.arange(length - 1, -1, -1)
    codes = [(tokens[:, :t] * base[length - t :]).sum(-1) for t in range(length)]  # the prefix as a number
    row = torch.stack([starts[t] + code for t, code in enumerate(codes)], -1)
    log_pi = logits.requires_grad_().log_softmax(-1)
    chances = log_mu[row, tokens].sum(-1).exp()
    ids = torch.arange(vocab).expand(*row.shape, vocab)
    if k is not None:
        ids = log_mu[row].topk(k, -1).indices
    heads = [table[row].gather(-1, ids) for table in (log_mu, log_pi)]
    batch = Batch.padded(
        log_pi[row, tokens],
        log_mu[row, tokens],
        torch.ones_like(row),
        advantage=sign * chances,  # so that a sum over sequences is a mean over mu
        candidates=Candidates(ids, *heads, complete=k is None),
    )
    weights = estimator(batch)
    if loss is not None:
        total = loss(batch.log_pi, batch, weights, heads[1])
    else:
        candidates = None if weights.centre is None else heads[1]
        total = policy_gradient(batch.log_pi, sign * chances, weights, 1.0, candidates=candidates)
    return torch.autograd.grad(total, logits)[0]


def check_estimator(estimator: Estimator | Centred, seed: int = 0) -> None:
    """Raise unless the estimator obeys the laws of the algebra on awkward batches.

    Weights are finite, at least 0, detached, 0 off the mask and on dropped units; padded and packed agree; the order of
    sequences, the padding and, unless the estimator reads the whole batch, the way a batch is cut change nothing; equal
    policies give every unit one weight and keep all; it pickles, prints, and commutes with another factor. If it is
    `centred`: a constant advantage has no expected gradient, which is 0 to 1e-12 over all tokens.

    Args:
        estimator: any composition, or a centred one.
        seed: of the batches.

    Raises:
        AssertionError: naming the law, with the largest difference.

    Example:
        >>> from reweigh import check_estimator, geo_rs, token_tis
        >>> check_estimator(geo_rs(0.9, 1.1) * token_tis(2.0))
    """
    if isinstance(estimator, Centred):
        for sign in (1.0, -1.0):
            size = float(drift(estimator, sign, seed=seed).abs().max())
            _law(f"constant advantage: zero expected gradient (largest component {size:.2g})", size < 1e-12)
        _law("it pickles", pickle.loads(pickle.dumps(estimator)) == estimator)
        estimator = estimator.estimator
    batch = odd_batch(seed)
    w = estimator(batch)
    tokens = w.per_token
    _law("weights are detached", not tokens.requires_grad)
    _law("weights are finite", bool(torch.isfinite(tokens).all()), tokens)
    _law("weights are at least 0", bool((tokens >= 0).all()), tokens)
    _law("weights are 0 off the mask", bool((tokens[~batch.layout.mask] == 0).all()), tokens)
    _law("dropped tokens weigh 0", bool((tokens[~w.keep_tokens] == 0).all()), tokens)
    _law("kept units exist", bool((w.keep & ~w.valid).sum() == 0))
    _law("bounded units are kept", bool((w.bounded & ~w.keep).sum() == 0))
    _same("padded and packed agree", _packed(estimator, batch), tokens)
    order = torch.tensor([3, 5, 0, 2, 4, 1])
    _same("the order of sequences changes nothing", estimator(_take(batch, order)).per_token, tokens[order])
    _same("more padding changes nothing", estimator(_pad(batch, 4)).per_token[:, :-4], tokens)
    if not estimator.reads_batch:
        parts = [estimator(_take(batch, torch.arange(a, b))).per_token for a, b in ((0, 2), (2, 3), (3, 6))]
        _same("the way a batch is cut changes nothing", torch.cat(parts), tokens)
    for sign in (1.0, -1.0):  # a gate may weigh one sign otherwise than the other
        equal = replace(batch, log_pi=batch.log_mu)
        on_policy = estimator(replace(equal, advantage=torch.full_like(batch.log_ratio, sign)))
        live = on_policy.per_token[batch.layout.mask]
        _same("equal policies give every unit one weight", live, live[:1].expand_as(live))
        _law("equal policies keep every unit", bool((on_policy.keep == on_policy.valid).all()))
    if estimator.normalise is None:
        other = weigh(TOKEN, Clip(0.5, 1.5))
        one, two = (other * estimator)(batch).per_token, (estimator * other)(batch).per_token
        _same("it commutes with another factor", one, two)
    _law("it pickles", pickle.loads(pickle.dumps(estimator)) == estimator)
    _law("it prints", "<function" not in repr(estimator))
    one, zero = torch.ones(1, 1), torch.zeros(1, dtype=torch.long)
    grad = Batch.padded(-one.clone().requires_grad_(), -one, one, advantage=one, group=zero, turn=zero[None])
    _law("weights are detached", not estimator(grad).per_token.requires_grad)


def _law(name: str, holds: bool, value: Tensor | None = None) -> None:
    if not holds:
        raise AssertionError(f"check_estimator: broken law: {name}" + ("" if value is None else f"\n{value}"))


def _same(name: str, got: Tensor, expected: Tensor) -> None:
    off = float((got.double() - expected.double()).abs().max()) if got.numel() else 0.0
    # float32 sums taken in another order differ in the last digits, and an exp multiplies that by the log's size.
    _law(f"{name} (largest difference {off:.2g})", torch.allclose(got, expected, rtol=2e-5, atol=1e-6))


def _packed(estimator: Estimator, batch: Batch) -> Tensor:
    """Weights of the same tokens in the other layout, laid out as the batch."""
    size, turn = batch.log_pi.shape, batch.layout.turn
    assert batch.advantage is not None
    cu = torch.arange(0, size[0] * size[1] + 1, size[1])
    flat = Batch.packed(
        batch.log_pi.flatten(),
        batch.log_mu.flatten(),
        cu,
        batch.layout.mask.flatten(),
        advantage=batch.advantage.flatten(),
        group=batch.group,
        turn=None if turn is None else turn.flatten(),
    )
    weights: Weights = estimator(flat)
    return weights.per_token.view(size)


def _take(batch: Batch, rows: Tensor) -> Batch:
    pick = [None if x is None else x[rows] for x in (batch.advantage, batch.group, batch.layout.turn)]
    return Batch.padded(
        batch.log_pi[rows], batch.log_mu[rows], batch.layout.mask[rows], advantage=pick[0], group=pick[1], turn=pick[2]
    )


def _pad(batch: Batch, slots: int) -> Batch:
    assert batch.advantage is not None
    assert batch.layout.turn is not None

    def grow(x: Tensor, value: float) -> Tensor:
        return torch.nn.functional.pad(x, (0, slots), value=value)

    return Batch.padded(
        grow(batch.log_pi, 5.0),
        grow(batch.log_mu, -torch.inf),
        grow(batch.layout.mask, 0),
        advantage=grow(batch.advantage, 0.0),
        group=batch.group,
        turn=grow(batch.layout.turn, 9),
    )
