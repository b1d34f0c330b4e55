"""Centred estimators: what a constant advantage does, by hand, exactly over all tokens, with the k likeliest alone."""

import pickle

import pytest
import torch
from batches import packed, random_batch, tight

from reweigh import (
    PREFIX,
    SEQUENCE,
    TOKEN,
    Batch,
    Candidates,
    Clip,
    Power,
    Reject,
    Screen,
    Shrink,
    Truncate,
    centred,
    check_estimator,
    cispo,
    cispo_cap,
    cppo,
    ctpo,
    dppo_kl,
    dppo_tv,
    flash_reinforce,
    for_advantage,
    gspo,
    ipo,
    kpop,
    m2po,
    minpro,
    naive,
    pnpo,
    policy_gradient,
    ppo_clip,
    prefix_is,
    prefix_tis,
    rec_one_side,
    rec_ring,
    sapo,
    seq_tis,
    snis,
    suffix_is,
    token_is,
    token_mis,
    token_tis,
    turn_tis,
    vaco,
    weigh,
)
from reweigh.levels import Level, k2
from reweigh.named import NAMED
from reweigh.testing import drift
from reweigh.transforms import AtMost


def twice(batch):
    """A statistic of one's own."""
    return 2 * batch.log_ratio


APPLIES = [
    naive(),
    token_is(),
    token_tis(1.0),
    token_mis(0.7, 1.4),
    cispo_cap(1.2, 0.9),
    dppo_tv(0.05, 0.02, 1.3),
    dppo_kl(0.01),
    prefix_is(),
    prefix_tis(1.1),
    weigh(TOKEN, Shrink(1.0)) * weigh(TOKEN, AtMost(0.2), of=k2),
    weigh(TOKEN, Power(0.5)) * for_advantage(-1, weigh(PREFIX, Screen(0.5, 2.0))),
    weigh(PREFIX, Reject(0.8, 3.0)),
    ctpo(0.2, 0.3),
    pnpo(0.7, 1.4),
    minpro(0.3, 1.2),
    sapo(1.5, 2.0),
    ipo(0.1, 1.3),
    kpop(0.05),
    rec_one_side(),
    rec_ring(0.2, 0.2, 0.4, 0.6),
    weigh(TOKEN, Clip(0.8, 1.3), of=twice),
]


@pytest.mark.parametrize("estimator", APPLIES, ids=str)
def test_a_constant_advantage_has_no_expected_gradient(estimator):
    check_estimator(centred(estimator))
    for sign in (1.0, -1.0):
        assert drift(centred(estimator), sign).abs().max() < 1e-12


@pytest.mark.parametrize("estimator", [e for e in APPLIES if e not in (token_is(), prefix_is())], ids=str)
def test_without_centring_it_has_one(estimator):
    """Else the law above would hold of anything."""
    assert max(drift(estimator, sign).norm() for sign in (1.0, -1.0)) > 1e-3


def test_the_issues_softmax_of_seven_tokens():
    """Token TIS with cap 1 is off by about a tenth, centred by nothing."""
    before, after = (drift(e, vocab=7, length=1, gap=0.5).norm() for e in (token_tis(1.0), centred(token_tis(1.0))))
    assert 0.02 < before < 0.5
    assert after < 1e-12


def test_every_named_estimator_is_centred_or_refused_by_name():
    applies = {name for name in NAMED if _takes(NAMED[name]())}
    for name in applies:
        assert drift(centred(NAMED[name]())).abs().max() < 1e-12, name
    assert {"naive", "token_is", "token_tis", "token_mis", "cispo_cap", "dppo_tv", "dppo_kl"} <= applies
    assert {"prefix_is", "prefix_tis", "ctpo", "pnpo", "minpro"} <= applies
    assert {"sapo", "ipo", "kpop", "rec_one_side", "rec_ring"} <= applies
    assert not applies & {"seq_is", "snis", "group_snis", "suffix_is", "geo_is", "turn_tis", "seq_tis", "seq_mis"}
    assert not applies & {"geo_rs", "geo_mis", "k1_rs", "k3_rs", "trm", "opsm", "m2po", "psis", "vespo", "topr"}


def _takes(estimator):
    try:
        centred(estimator)
    except ValueError:
        return False
    return True


# By hand: mu = (1/2, 1/4, 1/8, 1/8), pi = (1/8, 1/4, 1/2, 1/8); ratios 1/4, 1, 4, 1.
MU, PI = (0.5, 0.25, 0.125, 0.125), (0.125, 0.25, 0.5, 0.125)


def one_place(keep=4, complete=True, dtype=torch.float64, sampled=2, advantage=1.0):
    """A batch of one token, with so many of the four as candidates."""
    log_mu, log_pi = (torch.tensor(p, dtype=dtype).log() for p in (MU, PI))
    head = Candidates(
        torch.arange(keep).view(1, 1, keep), log_mu[:keep].view(1, 1, keep), log_pi[:keep].view(1, 1, keep), complete
    )
    return Batch.padded(
        log_pi[sampled].view(1, 1),
        log_mu[sampled].view(1, 1),
        torch.ones(1, 1),
        advantage=torch.tensor([advantage], dtype=dtype),
        candidates=head,
    )


def test_masses_by_hand():
    centre = centred(token_tis(2.0))(one_place()).centre
    assert centre.log_mass.exp().flatten().tolist() == pytest.approx([0.125, 0.25, 0.25, 0.125])
    assert centre.log_tail is None
    centre = centred(token_mis(0.5, 2.0))(one_place()).centre
    assert centre.log_mass.exp().flatten().tolist() == pytest.approx([0, 0.25, 0, 0.125])


def test_the_tail_by_hand():
    """Of two candidates: tails are 1/4 of mu and 5/8 of pi, so rho = 2/5, and the tail's ratio 5/2 is cut to 2."""
    batch = one_place(2, complete=False)
    weights = centred(token_tis(2.0))(batch)
    assert weights.centre.log_tail.exp().item() == pytest.approx(0.25 * 2)
    now = batch.candidates.log_pi.clone().requires_grad_()
    loss = policy_gradient(batch.log_pi, torch.ones(1), weights, 1.0, candidates=now)
    (slope,) = torch.autograd.grad(loss, now)
    alpha = 0.4 * 2  # rho f(1 / rho)
    assert slope.flatten().tolist() == pytest.approx([0.125 - alpha * 0.125, 0.25 - alpha * 0.25])


def test_a_dropped_token_is_centred_too():
    weights = centred(token_mis(0.5, 2.0))(one_place())  # the sampled token's ratio is 4
    assert not weights.keep.any()
    now = one_place().candidates.log_pi.clone().requires_grad_()
    loss = policy_gradient(one_place().log_pi, torch.tensor([-3.0]), weights, 2.0, candidates=now)
    (slope,) = torch.autograd.grad(loss, now)
    assert slope.flatten().tolist() == pytest.approx([0, -1.5 * 0.25, 0, -1.5 * 0.125])


def test_a_gate_on_a_sign_looks_at_the_places_advantage():
    gate = for_advantage(+1, weigh(TOKEN, Screen(0.5, 2.0)))
    up, down = (centred(gate)(one_place(advantage=a)).centre.log_mass.exp().flatten().tolist() for a in (1.0, -1.0))
    assert up == pytest.approx([0, 0.25, 0, 0.125])
    assert down == pytest.approx(MU)


def test_on_policy_it_is_the_score_less_its_mean():
    """With w = 1 what is subtracted is sum_v mu_v s_v, which is 0 where mu is pi."""
    batch = one_place()
    same = Candidates(batch.candidates.ids, batch.candidates.log_pi, batch.candidates.log_pi, complete=True)
    equal = Batch.padded(batch.log_pi, batch.log_pi, torch.ones(1, 1), candidates=same)
    logits = torch.tensor(PI, dtype=torch.float64).log().requires_grad_()
    now = logits.log_softmax(-1).view(1, 1, 4)
    loss = policy_gradient(now[..., 2], torch.ones(1), centred(naive())(equal), 1.0, candidates=now)
    (slope,) = torch.autograd.grad(loss, logits)
    assert slope.tolist() == pytest.approx([p - (i == 2) for i, p in enumerate(PI)])


@pytest.mark.parametrize("estimator", [naive(), token_tis(1.0), token_mis(0.7, 1.4), prefix_tis(1.1)], ids=str)
def test_the_k_likeliest_come_to_the_whole_as_k_grows(estimator):
    off = [float(drift(centred(estimator), k=k, vocab=12, length=2, gap=0.7).norm()) for k in (1, 3, 6, 9, 11, 12)]
    whole = float(drift(estimator, vocab=12, length=2, gap=0.7).norm())
    assert off[-1] < 1e-12
    assert off[-2] < 1e-12, "one token left out is the tail itself"
    assert off[3] < 0.15 * whole
    assert off[3] < off[1] < whole


def test_a_tail_that_is_pi_scaled_is_exact():
    """If mu is a multiple of pi off the head, the model of the tail is no model."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(10, generator=g, dtype=torch.float64, requires_grad=True)
    log_pi = logits.log_softmax(-1)
    shift = torch.zeros(10, dtype=torch.float64)
    shift[:3] = torch.tensor([1.0, -0.5, 0.7])
    log_mu = (log_pi.detach() + shift).log_softmax(-1)
    ids = torch.arange(3).expand(10, 1, 3)
    head = Candidates(ids, log_mu[ids], log_pi[ids])
    batch = Batch.padded(log_pi[:, None], log_mu[:, None], torch.ones(10, 1), candidates=head)
    for estimator in (naive(), token_tis(0.9), token_mis(0.6, 1.2)):
        loss = policy_gradient(batch.log_pi, log_mu.exp(), centred(estimator)(batch), 1.0, candidates=log_pi[ids])
        (slope,) = torch.autograd.grad(loss, logits, retain_graph=True)
        assert slope.abs().max() < 1e-12, estimator


LOSSES = {
    "ppo_clip": (ppo_clip, {"low": 0.1, "high": 0.15}),
    "ppo_clip dual": (ppo_clip, {"low": 0.1, "high": 0.15, "dual": 1.3}),
    "cispo": (cispo, {"low": 0.2, "high": 0.3}),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("k", [None, 5])
def test_losses_with_a_third_policy_are_centred(name, sign, k):
    """pi has moved from the batch's policy: the law is of what the clip leaves of each score."""
    make, bounds = LOSSES[name]
    g = torch.Generator().manual_seed(3)
    logits = torch.randn(6, generator=g, dtype=torch.float64, requires_grad=True)
    old, log_mu = (
        (logits.detach() + s * torch.randn(6, generator=g, dtype=torch.float64)).log_softmax(-1) for s in (0.3, 0.7)
    )
    now = logits.log_softmax(-1)
    ids = (torch.arange(6) if k is None else log_mu.topk(k).indices).expand(6, 1, -1)
    head = Candidates(ids, log_mu[ids], old[ids], complete=k is None)
    batch = Batch.padded(old[:, None], log_mu[:, None], torch.ones(6, 1), candidates=head)
    advantage = sign * log_mu.exp()

    def slope(estimator, candidates):
        then = None if candidates is None else old[ids]
        given = {"candidates": candidates, "old_candidates": then, **bounds}
        loss = make(now[:, None], old[:, None], advantage, estimator(batch), 1.0, **given)
        return torch.autograd.grad(loss, logits, retain_graph=True)[0]

    assert slope(centred(token_tis(1.1)), now[ids]).abs().max() < 1e-12  # five of six leave a tail of one token
    assert slope(token_tis(1.1), None).norm() > 1e-2


@pytest.mark.parametrize("name", LOSSES)
def test_the_denominator_divides_what_is_subtracted_too(name):
    make, bounds = LOSSES[name]
    batch = random_batch(0)
    head = random_candidates(batch)
    batch = Batch.padded(batch.log_pi, batch.log_mu, batch.layout.mask, candidates=head)
    weights, advantage = centred(token_tis(1.1))(batch), torch.ones(batch.layout.num_seqs)
    given = {"candidates": head.log_pi, "old_candidates": head.log_mu, **bounds}
    whole, part = (make(batch.log_pi, batch.log_mu, advantage, weights, d, **given) for d in (1.0, 4.0))
    assert weights.centre is not None
    torch.testing.assert_close(part, whole / 4)


def random_candidates(batch, k=5, seed=0, complete=False):
    """Candidates at the places of a padded batch, with nonsense where the mask is off."""
    g = torch.Generator().manual_seed(seed)
    shape = (*batch.log_pi.shape, k)
    dtype = batch.log_pi.dtype
    log_p = [torch.randn(*shape[:-1], k + 3, generator=g, dtype=dtype).log_softmax(-1)[..., :k] for _ in range(2)]
    if complete:
        log_p = [x.log_softmax(-1) for x in log_p]
    ids = torch.arange(k).expand(shape).clone()
    off = ~batch.layout.mask[..., None]
    return Candidates(ids, *(torch.where(off, torch.nan, x) for x in log_p), complete=complete)


def with_candidates(batch, **kwargs):
    return Batch.padded(
        *(batch.log_pi, batch.log_mu, batch.layout.mask),
        advantage=batch.advantage,
        turn=batch.layout.turn,
        candidates=random_candidates(batch, **kwargs),
    )


def odd(seed=0, **kwargs):

    return with_candidates(random_batch(seed), **kwargs)


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize("estimator", [token_tis(1.1), dppo_tv(0.05, 0.02), prefix_tis(1.1)], ids=str)
def test_both_layouts_and_cuts_give_the_same(estimator, complete):
    batch = odd(complete=complete)
    live = batch.layout.mask
    whole = centred(estimator)(batch).centre
    flat = Batch.packed(
        batch.log_pi.flatten(),
        batch.log_mu.flatten(),
        torch.arange(0, live.numel() + 1, live.shape[1]),
        live.flatten(),
        advantage=batch.advantage.flatten(),
        candidates=batch.candidates.flat(),
    )
    other = centred(estimator)(flat).centre
    torch.testing.assert_close(other.log_mass.view(whole.log_mass.shape), whole.log_mass, rtol=2e-5, atol=1e-6)
    lists = tight(batch)
    dense = Batch(lists.log_pi, lists.log_mu, lists.layout, lists.advantage, candidates=batch.candidates.take(live))
    got = centred(estimator)(dense).centre
    torch.testing.assert_close(got.log_mass, whole.log_mass[live], rtol=2e-5, atol=1e-6)
    if not complete:
        torch.testing.assert_close(got.log_tail, whole.log_tail[live], rtol=2e-5, atol=1e-6)
    assert torch.isinf(whole.log_mass[~live]).all()
    assert packed(batch).candidates is None  # that helper makes a batch without: it must be asked for


@pytest.mark.parametrize("complete", [False, True])
def test_nonsense_off_the_mask_reaches_no_gradient(complete):
    batch = odd(complete=complete)
    now = batch.candidates.log_pi.clone().requires_grad_()
    weights = centred(token_tis(1.1))(batch)
    loss = policy_gradient(batch.log_pi, batch.advantage, weights, 3.0, candidates=now)
    (slope,) = torch.autograd.grad(loss, now)
    assert torch.isfinite(loss)
    assert torch.isfinite(slope).all()
    assert (slope[~batch.layout.mask] == 0).all()
    assert (slope[batch.layout.mask] != 0).any()


def test_places_without_candidates_are_left_as_they_are():
    batch = one_place()
    none = Candidates(torch.full((1, 1, 4), -1), *[torch.full((1, 1, 4), torch.nan)] * 2)
    bare = Batch.padded(batch.log_pi, batch.log_mu, torch.ones(1, 1), candidates=none)
    weights = centred(token_tis(2.0))(bare)
    assert int(weights.centre.num_places) == 0
    now = torch.zeros(1, 1, 4, dtype=torch.float64, requires_grad=True)
    plain = policy_gradient(batch.log_pi, torch.ones(1), token_tis(2.0)(bare), 1.0)
    loss = policy_gradient(batch.log_pi, torch.ones(1), weights, 1.0, candidates=now)
    assert loss.item() == plain.item()
    assert torch.autograd.grad(loss, now)[0].abs().max() == 0


def test_a_head_of_all_the_mass_leaves_a_tail_of_nothing():
    """Rounding may leave 1 - Q at 0 or below: no coefficient may blow up, and what is left is nothing."""
    head = one_place(4, complete=False, dtype=torch.float32)
    for estimator in (naive(), token_is(), token_tis(2.0)):
        logits = torch.tensor(PI).log().requires_grad_()
        now = logits.log_softmax(-1).view(1, 1, 4)
        got, exact = (
            torch.autograd.grad(
                policy_gradient(now[..., 2], torch.ones(1), centred(estimator)(b), 1.0, candidates=now),
                logits,
                retain_graph=True,
            )[0]
            for b in (head, one_place(4, dtype=torch.float32))
        )
        torch.testing.assert_close(got, exact, rtol=1e-5, atol=2e-6)


def test_manners_of_a_value():
    value = centred(token_tis(2.0))
    assert value == centred(token_tis(2.0)) != centred(token_tis(3.0))
    assert pickle.loads(pickle.dumps(value)) == value
    assert repr(value) == f"Centred(estimator={token_tis(2.0)!r})"
    assert value.unit == "token"
    assert not value.reads_batch
    batch = one_place()
    weights = value(batch)
    assert weights.per_token.equal(token_tis(2.0)(batch).per_token)
    assert repr(weights).endswith("; 1 at a bound; 1 places centred)")


REFUSED = [
    (seq_tis(2.0), "at level sequence depends on tokens that come later"),
    (token_tis(2.0) * weigh(SEQUENCE, Clip(0.5, 2.0)), "at level sequence depends on tokens that come later"),
    (suffix_is(), "at level suffix depends"),
    (turn_tis(), "at level turn depends"),
    (snis(), "self-normalised weights depend on what else was sampled"),
    (vaco(), "the statistic signed_gap_of_sequence of a token depends on other tokens"),
    (flash_reinforce(), "at level geometric depends on tokens that come later"),
    (cppo(), r"at level prefix_budget\(0.02, 0.8\) depends on tokens that come later"),
    (m2po(), r"MeanAtMost\(bound=0.04\) chooses by the whole batch"),
]


@pytest.mark.parametrize(("estimator", "text"), REFUSED)
def test_what_has_no_mean_at_a_place_is_refused_when_it_is_made(estimator, text):
    with pytest.raises(ValueError, match=text + r"(.|\n)*hint: "):
        centred(estimator)


def test_what_is_missing_is_said():
    batch = one_place()
    bare = Batch.padded(batch.log_pi, batch.log_mu, torch.ones(1, 1))
    value = centred(token_tis(2.0))
    with pytest.raises(ValueError, match=r"does not say what else could have been sampled(.|\n)*hint: Batch.padded"):
        value(bare)
    with pytest.raises(ValueError, match=r"centre last: write centred\(a \* b\)"):
        value * naive()
    with pytest.raises(ValueError, match=r"the log-probs of the candidates are needed(.|\n)*shaped \(1, 1, 4\)"):
        policy_gradient(batch.log_pi, torch.ones(1), value(batch), 1.0)
    with pytest.raises(ValueError, match=r"candidates are for centred weights, and these are not"):
        policy_gradient(batch.log_pi, torch.ones(1), naive()(batch), 1.0, candidates=batch.candidates.log_pi)
    with pytest.raises(ValueError, match=r"what log_old's policy gave the candidates is needed(.|\n)*old_candidates="):
        ppo_clip(*(batch.log_pi, batch.log_mu, torch.ones(1), value(batch), 1.0), candidates=batch.candidates.log_pi)
    with pytest.raises(ValueError, match=r"must be shaped as the batch's, \(1, 1, 4\), got \(1, 1, 3\)"):
        policy_gradient(batch.log_pi, torch.ones(1), value(batch), 1.0, candidates=torch.zeros(1, 1, 3))
    with pytest.raises(ValueError, match=r"gspo: its ratio is one of the whole sequence"):
        gspo(batch.log_pi, batch.log_mu, torch.ones(1), value(batch), 1.0)
    with pytest.raises(ValueError, match="estimator must be an Estimator"):
        centred("token_tis")


def test_the_law_finds_a_mean_that_is_none():
    """A level that forgets what came before its token, when it is asked for others."""
    wrong = Level("prefix", "token", PREFIX.fold, TOKEN.instead)
    with pytest.raises(AssertionError, match="broken law: constant advantage: zero expected gradient"):
        check_estimator(centred(weigh(wrong, Truncate(1.1))))
