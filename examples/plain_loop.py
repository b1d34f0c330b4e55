"""Forty lines of plain PyTorch: sample with a stale, rounded copy, correct the gradient, log the gap. Seconds."""

import torch

from reweigh import Batch, num_tokens, policy_gradient, seq_tis
from reweigh.trainers.seen import Seen

WORDS, LENGTH, RESPONSES = 16, 8, 64
torch.manual_seed(0)


def log_probs(table, tokens):  # of each token after the one before it
    before = torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1]], 1)
    return table[before].log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


def sample(table):
    tokens = torch.zeros(RESPONSES, LENGTH + 1, dtype=torch.long)
    for t in range(LENGTH):
        tokens[:, t + 1] = torch.distributions.Categorical(logits=table[tokens[:, t]]).sample()
    return tokens[:, 1:], log_probs(table, tokens[:, 1:])


policy, estimator = torch.zeros(WORDS, WORDS, requires_grad=True), seq_tis(2.0)
optimizer = torch.optim.Adam([policy], lr=0.05)
for step in range(80):
    if step % 4 == 0:  # the sampler lags behind, and its weights are rounded
        sampler = policy.detach().bfloat16().float()
    tokens, log_mu = sample(sampler)
    reward = (tokens == 3).float().mean(-1)
    log_pi = log_probs(policy, tokens)
    batch = Batch.padded(log_pi, log_mu, torch.ones_like(log_mu))
    weights = estimator(batch)
    loss = policy_gradient(log_pi, reward - reward.mean(), weights, num_tokens(batch))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        logged = Seen.of(batch, weights).flat()  # one flat dict of floats, for any logger
        print(f"step {step + 1}: reward {reward.mean():.3f}, tv {logged['reweigh/sequence/tv']:.3f}")
