"""Centring: what to subtract from a weighted score so that a constant advantage has no expected gradient."""

from dataclasses import dataclass

import torch
from torch import Tensor

from reweigh.batch import Batch, Candidates
from reweigh.estimators import Centre, Estimator, Statistic, Weights, check_estimator_kind, sign_gate
from reweigh.levels import (
    Unit,
    binary_kl,
    k1,
    k2,
    k3,
    log_ratio,
    prob_diff,
    prob_gap,
    reverse_binary_kl,
    signed_binary_kl,
)

# Mass that sums of probabilities in float32 do not resolve: a smaller tail is taken for this one, as verl and vime do.
UNRESOLVED = 1e-6


@dataclass(frozen=True)
class Centred:
    """An estimator whose weighted scores have mean 0 under mu at every place; `centred` makes one.

    Calling it on a batch with `candidates` gives the estimator's own `Weights`, and in `Weights.centre` what a loss
    subtracts.

    Attributes:
        estimator: whose weights.
    """

    estimator: Estimator

    @property
    def unit(self) -> Unit:
        """Always "token"."""
        return self.estimator.unit

    @property
    def reads_batch(self) -> bool:
        """Never: a token's weight and what is subtracted depend on its sequence alone."""
        return self.estimator.reads_batch

    def __mul__(self, other: object) -> "Centred":
        """Refuse: the product of centred weights is not centred.

        Raises:
            ValueError: always.
        """
        raise ValueError("centred: centre last: write centred(a * b)")

    def __call__(self, batch: Batch) -> Weights:
        """Weigh the batch's tokens and work out what is to be subtracted at each place.

        Raises:
            ValueError: the batch has no candidates.
        """
        weights = self.estimator(batch)
        if batch.candidates is None:
            raise ValueError(
                "centred: the batch does not say what else could have been sampled.\n"
                "hint: Batch.padded(..., candidates=Candidates(ids, log_mu, log_pi)): the k likeliest tokens of the "
                "sampler at each place, or all of its support."
            )
        centre = _centre(self.estimator, batch, batch.candidates)
        return Weights(
            *(weights.log_w, weights.keep, weights.bounded, weights.valid, weights.unit, weights.layout), centre
        )


def centred(estimator: Estimator) -> Centred:
    """Subtract from each token's weighted score its mean under mu: `w_a s_a - sum_v mu_v w_v s_v`, s the score.

    A weight that is truncated or rejected has `E_mu[w s] != 0`: even an advantage that is the same for all tokens then
    moves the policy, towards what is cut off. What is subtracted does not depend on the sampled token, so it is a
    control variate for a constant advantage: exact over a complete support; with the k likeliest tokens alone, the
    others are taken for copies of pi, scaled to the mass that mu has left. `docs/centring.md` has the derivation.

    When: a cap, a band or a gate acts on tokens, and the candidates are at hand. It removes what a mean advantage
    does, not the bias in how tokens compare. With `token_is` there is nothing to remove. Cost: k weights a token, and
    the log-probs of k tokens with their gradient.

    It applies where a weight depends on the token's own ratio or probabilities and on those of *earlier* tokens: levels
    TOKEN, PREFIX and the other running ones, with transforms that look at one unit. For weights of sequences, turns or
    suffixes the mean over the next token is not known: it depends on tokens that were never sampled.

    Args:
        estimator: such a product.

    Raises:
        ValueError: another estimator, with what of it is in the way.

    Example:
        >>> import torch
        >>> from reweigh import Batch, Candidates, policy_gradient, token_tis
        >>> log_mu = torch.tensor([[0.5, 0.3, 0.2]]).log()
        >>> logits = torch.tensor([[0.0, 0.0, 3.0]], requires_grad=True)
        >>> log_pi = logits.log_softmax(-1).expand(3, 1, 3)  # each token sampled once, at its place
        >>> sampled = log_pi[[0, 1, 2], 0, [0, 1, 2], None], log_mu[0, :, None]
        >>> ids = torch.arange(3).expand(3, 1, 3)
        >>> every = Candidates(ids, log_mu.expand(3, 1, 3), log_pi, complete=True)
        >>> weights = centred(token_tis(2.0))(Batch.padded(*sampled, torch.ones(3, 1), candidates=every))
        >>> loss = policy_gradient(sampled[0], log_mu[0].exp(), weights, 1.0, candidates=log_pi)  # as often as mu
        >>> loss.backward()
        >>> bool(logits.grad.abs().max() < 1e-6)  # without centring it is .25
        True

    Also called: score centring (`score_centering` of prime-rl, verl, miles, vime).
    Source: Marek, Ryabinin (2026), Score centering stabilizes off-policy reinforcement learning, 2609.20807; the form
    for prefixes is this library's.
    """
    check_estimator_kind("centred", "estimator", estimator)
    if estimator.normalise is not None:
        raise ValueError(
            "centred: self-normalised weights depend on what else was sampled, so their mean at a place is not known\n"
            "hint: centre the estimator without the normalisation."
        )
    for factor in estimator.factors:
        if factor.transform.reads_batch:
            raise ValueError(
                f"centred: {factor.transform} chooses by the whole batch, so the mean of the weight at a place is not "
                "known\nhint: a fixed cap, as token_tis(2.0)."
            )
        if factor.level.instead is None:
            raise ValueError(
                f"centred: the weight at level {factor.level.name} depends on tokens that come later, so its mean over "
                "the next token is not known\n"
                "hint: centre a weight of tokens or prefixes: centred(token_tis(2.0)), centred(prefix_tis(2.0)); "
                "docs/centring.md says why there is no form for others."
            )
        if not _of_its_own_token(factor.of):
            raise ValueError(
                f"centred: the statistic {factor.of.__name__} of a token depends on other tokens of its sequence, so "
                "its value for a token that was not sampled is not known\n"
                "hint: a statistic of a token alone: log_ratio, k1, k2, k3, prob_diff, prob_gap, binary_kl, ..."
            )
    return Centred(estimator)


_OWN = (log_ratio, k1, k2, k3, prob_diff, prob_gap, binary_kl, reverse_binary_kl, signed_binary_kl)


def _of_its_own_token(of: Statistic) -> bool:
    """Whether a statistic's value at a token is of that token alone; of one that is not ours, by trying it."""
    if of in _OWN:
        return True
    log_pi, log_mu = torch.tensor([[-0.5, -1.0, -2.0]]), torch.tensor([[-1.0, -0.7, -2.5]])
    together = of(Batch.padded(log_pi, log_mu, torch.ones(1, 3)))
    apart = of(Batch.padded(log_pi.T, log_mu.T, torch.ones(3, 1)))
    return torch.allclose(together.flatten(), apart.flatten())


def _centre(estimator: Estimator, batch: Batch, candidates: Candidates) -> Centre:
    """Weigh every candidate at its place; the tail stands as one more, of the mass that is left."""
    layout = batch.layout
    there = candidates.there & layout.mask[..., None]
    log_mu, log_pi = (
        torch.where(there, x.detach(), -torch.inf).to(batch.dtype) for x in (candidates.log_mu, candidates.log_pi)
    )
    k = there.shape[-1]
    some = there.any(-1, keepdim=True)
    all_mu, all_pi, present = log_mu, log_pi, there
    if not candidates.complete:
        all_mu, all_pi = (torch.cat([x, tail_of(x, some)], -1) for x in (log_mu, log_pi))
        present = torch.cat([there, some], -1)
    # Each place is a row of its own; what is not there is off the mask, and so never read.
    shape = present.shape
    flat = [x.reshape(-1, shape[-1]) for x in (all_pi, all_mu, present)]
    others = Batch.padded(flat[0], flat[1], flat[2], check=False).with_ratio()
    own = batch.with_ratio()
    log_w, keep = torch.zeros(shape, dtype=batch.dtype, device=present.device), present
    values: dict[Statistic, tuple[Tensor, Tensor]] = {}
    for f in estimator.factors:
        if f.of not in values:
            values[f.of] = f.of(own), f.of(others).view(shape)
        x, alternatives = (value if f.scale == 1 else value * f.scale for value in values[f.of])
        assert f.level.instead is not None
        lw, kept = f.transform(f.level.instead(x, alternatives, layout), present)
        if f.sign:
            gate = sign_gate(batch, f.sign)[..., None]
            lw, kept = torch.where(gate, lw, 0), kept | ~gate
        log_w, keep = log_w + lw, keep & kept
    log_mass = torch.where(keep & present, all_mu + log_w, -torch.inf)
    tail = None if candidates.complete else log_mass[..., k]
    return Centre(log_mass[..., :k], tail, there)


def tail_of(log_p: Tensor, some: Tensor) -> Tensor:
    """Log of the mass that candidates leave, `[..., 1]` nats, at least that of `UNRESOLVED`; 0 where there are none.

    Args:
        log_p: `[..., k]` nats; -inf where there is none.
        some: `[..., 1]`, whether there are candidates.
    """
    left = -torch.expm1(torch.logsumexp(torch.where(some, log_p, -1.0), -1, keepdim=True))
    return torch.where(some, left.clamp(min=UNRESOLVED).log(), 0)
