"""Liger's fused loss with our weights as `vllm_is_ratio`, on a CPU: its gradient is that of `policy_gradient`.

pip install --no-deps liger-kernel && pytest tests/frameworks/check_liger.py
"""

import pytest
import torch
from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

from reweigh import Batch, geo_rs, num_tokens, policy_gradient, seq_tis, token_mis, token_tis
from reweigh.trainers.seen import factor, wide

S, T, WIDTH, WORDS = 5, 7, 16, 23


@pytest.mark.parametrize("estimator", [token_tis(1.1), seq_tis(1.5), token_mis(0.8, 1.2), geo_rs(0.9, 1.1)], ids=repr)
def test_the_fused_gradient_is_ours(estimator):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(S, T, WIDTH, generator=g)
    head = torch.randn(WORDS, WIDTH, generator=g) / 4
    tokens = torch.randint(0, WORDS, (S, T), generator=g)
    mask = (torch.arange(T) < torch.tensor([[7], [3], [5], [1], [6]])).float()
    advantage = torch.randn(S, generator=g)
    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    log_pi = (ours @ head.T).log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    log_mu = log_pi.detach() + 0.2 * torch.randn(S, T, generator=g)
    batch = Batch.padded(wide(log_pi), wide(log_mu), mask)
    weights = estimator(batch)
    policy_gradient(log_pi, advantage, weights, num_tokens(batch)).backward()
    fused = LigerFusedLinearGRPOLoss(beta=0.0, compiled=False, use_ref_model=False, loss_type="bnpo", chunk_size=S)
    fused(theirs, head, tokens, mask, advantage, vllm_is_ratio=factor(weights))[0].backward()
    torch.testing.assert_close(theirs.grad, ours.grad.to(theirs.grad.dtype), rtol=1e-4, atol=1e-6)
    assert (factor(weights)[mask.bool()] != 1).any()
