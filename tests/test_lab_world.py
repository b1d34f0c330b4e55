"""Worlds: every sequence, its probability and its score, against plain loops; and what is no world."""

import itertools
import math

import pytest
import torch

from reweigh.theory.lab import Policies, Sequences, World, random_policies, random_world
from reweigh.theory.lab.world import MAX_SLOTS

SHAPES = [(2, 1, None, None), (3, 3, None, None), (2, 4, 1, None), (3, 4, 2, 1), (2, 5, 0, None), (3, 3, None, 0)]


def plain_sequences(vocab, length, eos):
    for tokens in itertools.product(range(vocab), repeat=length):
        if eos in tokens[:-1]:
            end = tokens.index(eos)
            if any(t != 0 for t in tokens[end + 1 :]):
                continue  # one of the ways to fill up what comes after the end
            tokens = tokens[: end + 1]
        yield tokens


@pytest.mark.parametrize(("vocab", "length", "memory", "eos"), SHAPES)
def test_every_sequence_with_its_context_and_probability(vocab, length, memory, eos):
    policies = random_policies(vocab, length, memory, eos, masked=0.2, seed=1)
    s = Sequences.of(policies)
    rows = [tuple(t for t in row if t >= 0) for row in s.tokens.tolist()]
    assert rows == sorted(set(plain_sequences(vocab, length, eos)))
    assert len(rows) == policies.num_sequences
    contexts = policies.contexts()
    depth = length - 1 if memory is None else memory
    for i, row in enumerate(rows):
        log_pi = 0.0
        for t, token in enumerate(row):
            context = row[max(0, t - depth) : t] if depth else ()
            assert contexts[int(s.row[i, t])] == context
            log_pi += float(policies.log_pi[s.row[i, t], token])
        assert float(s.pi[i]) == pytest.approx(math.exp(log_pi), rel=1e-12)
    assert float(s.pi.sum()) == pytest.approx(1, rel=1e-12)
    assert float(s.mu.sum()) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize(("vocab", "length", "memory", "eos"), SHAPES)
def test_scores_are_those_of_autograd(vocab, length, memory, eos):
    policies = random_policies(vocab, length, memory, eos, seed=2)
    s = Sequences.of(policies)
    theta = policies.log_pi.clone().requires_grad_()
    log_pi = torch.where(s.mask, theta.log_softmax(-1)[s.row, s.tokens.clamp(min=0)], 0)
    coef = torch.randn(s.mask.shape, dtype=torch.float64)
    each = [
        torch.autograd.grad(x, theta, retain_graph=True)[0].flatten() for x in (coef * log_pi).sum(-1)
    ]  # one backward pass a sequence
    each = torch.stack(each)
    torch.testing.assert_close(s.dense(coef), each, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(s.total(coef), each.sum(0), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(s.square_norms(coef), each.square().sum(-1), rtol=1e-12, atol=1e-13)
    stacked = torch.stack([coef, 2 * coef])
    torch.testing.assert_close(s.total(stacked), torch.stack([each.sum(0), 2 * each.sum(0)]), rtol=1e-12, atol=1e-13)


def test_the_gradient_is_that_of_the_objective():
    world = random_world(3, 3, memory=1, eos=2, masked=0.3, seed=3)
    s, theta = world.sequences, world.policies.log_pi.clone().requires_grad_()
    log_pi = torch.where(s.mask, theta.log_softmax(-1)[s.row, s.tokens.clamp(min=0)], 0).sum(-1)
    (log_pi.exp() @ world.reward).backward()
    torch.testing.assert_close(world.gradient, theta.grad.flatten(), rtol=1e-12, atol=1e-14)


def test_one_long_sequence_after_another_is_no_square():
    """Sequences of which all but one end early: as many as tokens, and no V^T anywhere."""
    policies = random_policies(2, 300, memory=1, eos=0, seed=4)
    s = Sequences.of(policies)
    assert s.tokens.shape == (301, 300)
    assert float(s.pi.sum()) == pytest.approx(1, rel=1e-12)
    assert torch.equal(s.slot[-1, 1:], torch.ones(299, dtype=torch.int64))  # all but the first token share a context


def test_a_reward_can_be_a_function():
    policies = random_policies(2, 3, memory=0, eos=1)
    world = World.scored(policies, lambda tokens: len(tokens) + 10 * tokens[-1])
    assert world.reward.tolist() == [3, 13, 12, 11]


def test_truncated_support_is_renormalised_and_its_batch_holds_what_mu_samples():
    policies = random_policies(3, 2, masked=0.5, seed=5)
    unsampled = torch.isinf(policies.log_mu)
    assert bool(unsampled.any())
    assert not bool(unsampled.all(-1).any())
    world = World(policies, torch.zeros(9, dtype=torch.float64))
    assert world.batch.layout.num_seqs == int(world.sequences.sampled.sum()) < 9
    assert world.batch.dropped is None
    assert float(world.mu.sum()) == pytest.approx(1, rel=1e-12)


def test_equal_seeds_make_equal_worlds():
    one, two, other = (random_world(2, 3, seed=s, reward="uniform") for s in (7, 7, 8))
    assert torch.equal(one.policies.log_mu, two.policies.log_mu)
    assert torch.equal(one.reward, two.reward)
    assert not torch.equal(one.reward, other.reward)
    assert float(one.reward.abs().max()) <= 1
    assert set(random_world(2, 5, reward="binary").reward.tolist()) == {0.0, 1.0}


def flat(rows, vocab=2):
    return torch.full((rows, vocab), 1 / vocab, dtype=torch.float64).log()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Policies(flat(1) + 0.1, flat(1), 1), r"log_pi does not normalise.* 1 of 1 rows.*row 0 to 1\.105"),
        (lambda: Policies(flat(1), flat(1) * math.nan, 1), "log_mu does not normalise"),
        (lambda: Policies(flat(1).float(), flat(1).float(), 1), "log_pi must be float64"),
        (lambda: Policies(flat(1), flat(1), 0), "length must be >= 1, got 0"),
        (lambda: Policies(flat(1), flat(1), 2), "make 3 contexts, but the tables have 1 rows"),
        (lambda: Policies(flat(1), flat(1), 1, eos=2), "eos must be a token, 0 to 1, got 2"),
        (lambda: Policies(flat(1), flat(2), 1), r"must both be \[contexts, V\]"),
        (lambda: Policies(flat(1), flat(1), 1, memory=-1), "memory must be >= 0"),
        (lambda: Policies(flat(1, 1), flat(1, 1), 1, eos=0), "nothing to say before the end"),
        (
            lambda: Policies(torch.tensor([[0.0, -math.inf]]).double(), flat(1), 1),
            "pi must give every token some probability",
        ),
        (lambda: Policies.softmax(flat(1) * math.inf, flat(1), 1), "pi_logits must be finite, and row 0"),
        (
            lambda: Policies.softmax(flat(1), flat(1), 1, mu_support=torch.tensor([[False, False]])),
            "leaves mu nothing to sample in row 0",
        ),
        (
            lambda: World(random_policies(2, 2), torch.tensor([0, math.nan, 1, math.inf]).double()),
            r"every reward must be finite, and 2 of 4 are not; the first is nan at sequence 1",
        ),
        (lambda: World(random_policies(2, 2), torch.zeros(3).double()), "each of the 4 sequences"),
        (lambda: World(random_policies(2, 2), torch.zeros(4).double(), turn_length=0), "turn_length must be >= 1"),
    ],
)
def test_what_is_no_world_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_too_many_sequences_are_refused_with_their_number_and_what_works():
    with pytest.raises(
        ValueError, match=r"(?s)about 10\^19 sequences of 40 tokens are too many.*\nhint: .*lab.chain has"
    ):
        random_world(3, 40, memory=1)
    with pytest.raises(ValueError, match=r"(?s)10\^19 contexts and about 10\^19 sequences, too many.*\nhint: memory=1"):
        random_world(3, 40)
    at_most = random_policies(2, 17, memory=0)
    assert at_most.check_enumerable() is None
    assert at_most.num_sequences * 17 <= MAX_SLOTS < 2 * at_most.num_sequences * 18
