"""Runs of a small language model with one fault each, and what frameworks would log of them, by their formulas."""

import csv
import json
import math
from dataclasses import dataclass

import numpy as np
import torch

V, ROWS, LENGTH = 120, 24, 48  # tokens in the vocabulary, sequences a step, tokens a sequence


@dataclass(frozen=True)
class Step:
    """One step's pairs: log_pi, log_mu and the entropy of pi, [ROWS, LENGTH]; mask; lag; learning rate."""

    log_pi: np.ndarray
    log_mu: np.ndarray
    entropy: np.ndarray
    mask: np.ndarray
    lag: float = 0.0
    rate: float = 1e-6


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def top_p(log_p, p):
    """Renormalised over the smallest set with mass p, as engines do."""
    order = np.argsort(-log_p, -1)
    mass = np.cumsum(np.exp(np.take_along_axis(log_p, order, -1)), -1)
    keep_sorted = np.concatenate([np.ones_like(mass[..., :1], bool), mass[..., :-1] < p], -1)
    keep = np.zeros_like(keep_sorted)
    np.put_along_axis(keep, order, keep_sorted, -1)
    return log_softmax(np.where(keep, log_p, -np.inf))


class Model:
    """Bigram logits, steep like those of a language model, that training moves."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        base = -1.4 * np.log(np.arange(1, V + 1))
        self.start = np.stack([self.rng.permutation(base) for _ in range(V)]) * self.rng.uniform(0.6, 4.0, (V, 1))
        self.direction = self.rng.normal(size=(V, V))

    def at(self, size):
        """Logits after updates of this size in one direction."""
        return self.start + size * self.direction

    def engine(self, size, decimals_like=torch.bfloat16):
        """The same, as an engine in bf16 computes them."""
        return torch.tensor(self.at(size)).to(decimals_like).double().numpy()

    def sample(self, log_q, rows=ROWS, length=LENGTH):
        """Token ids and the ids before them, one after the other from the table [before, token]."""
        before = self.rng.integers(0, V, rows)
        ids, previous = [], []
        for _ in range(length):
            cdf = np.exp(log_q[before]).cumsum(-1)
            token = (self.rng.random((rows, 1)) * cdf[:, -1:] > cdf).sum(-1).clip(0, V - 1)
            ids, previous, before = [*ids, token], [*previous, before], token
        return np.stack(ids, 1), np.stack(previous, 1)

    def step(self, sampled, logged, scored, **more):
        """Sample from one table, log from a second, score by a third."""
        ids, before = self.sample(sampled)
        lengths = self.rng.integers(LENGTH // 2, LENGTH + 1, ROWS)
        h = -(np.exp(scored) * scored).sum(-1)
        mask = np.arange(LENGTH) < lengths[:, None]
        return Step(scored[before, ids], logged[before, ids], h[before], mask, **more)


def run(fault, steps=40, seed=0):
    """Steps of a run with a fault; "clean" has none but rounding to bf16."""
    m = Model(seed)
    out = []
    for i in range(steps):
        pi = log_softmax(m.at(0.0))
        mu = log_softmax(m.engine(0.0))
        if fault == "raw":
            sampled = log_softmax(m.engine(0.0) / 0.7)
            out.append(m.step(sampled, mu, log_softmax(m.at(0.0) / 0.7)))
        elif fault == "both_raw":
            out.append(m.step(log_softmax(m.engine(0.0) / 0.7), mu, pi))
        elif fault == "top_p":
            kept = top_p(mu, 0.9)
            out.append(m.step(kept, kept, pi))
        elif fault == "padding":
            out.append(m.step(mu, mu, pi + math.log(0.97)))
        elif fault == "no_temperature":
            q = log_softmax(m.engine(0.0) / 0.7)
            out.append(m.step(q, q, pi))
        elif fault == "top_1":
            s = m.step(mu, np.broadcast_to(mu.max(-1, keepdims=True), mu.shape), pi)
            out.append(s)
        elif fault == "shift":
            s = m.step(mu, mu, pi)
            out.append(Step(s.log_pi, np.roll(s.log_mu, 1, 1), s.entropy, s.mask))
        elif fault == "not_delivered":  # the trainer moves, the engine stays
            out.append(m.step(mu, mu, log_softmax(m.at(0.012 * i))))
        elif fault == "rolled_back":  # the first update is large, and the engine never has it
            out.append(m.step(mu, mu, log_softmax(m.at(0.0 if i == 0 else 0.25)), rate=1e-4))
        elif fault == "lag":
            lag = int(m.rng.integers(0, 5))
            old = log_softmax(m.engine(0.03 * (10 - lag)))
            out.append(m.step(old, old, log_softmax(m.at(0.3)), lag=float(lag)))
        elif fault == "restarts":  # the gap grows until the engine is restarted every ten steps
            old = log_softmax(m.engine(0.0))
            out.append(m.step(old, old, log_softmax(m.at(0.01 + 0.03 * (i % 10)))))
        elif fault == "dropout":
            noise = 0.9 * m.rng.normal(size=(V, V))
            out.append(m.step(mu, mu, log_softmax(m.at(0.0) + noise)))
        elif fault == "copied":
            out.append(m.step(pi, pi, pi))
        else:
            out.append(m.step(mu, mu, pi))
    return out


def _pairs(s):
    on = s.mask
    return (s.log_pi - s.log_mu)[on], s.log_pi[on], s.log_mu[on], s.entropy[on]


def _rows(values, mask):
    return float(np.mean([v[k].mean() for v, k in zip(values, mask, strict=True)]))


def verl(s):
    """verl 0.9.1 trainer/ppo/rollout_corr_helper.py compute_offpolicy_metrics, utils/debug/metrics.py."""
    d, pi, mu, h = _pairs(s)
    gap = np.abs(np.exp(pi) - np.exp(mu))
    return {
        "rollout_corr/kl": float(-d.mean()),
        "rollout_corr/k3_kl": float((np.exp(d) - d - 1).mean()),
        "rollout_corr/training_log_ppl": _rows(-s.log_pi, s.mask),
        "rollout_corr/rollout_log_ppl": _rows(-s.log_mu, s.mask),
        "rollout_corr/chi2_token": float((np.exp(2 * d.clip(-20, 20))).mean() - 1),
        "rollout_corr/rollout_is_mean": float(np.exp(d.clip(-20, 20)).clip(max=2).mean()),
        "training/rollout_probs_diff_mean": float(gap.mean()),
        "training/rollout_probs_diff_max": float(gap.max()),
        "actor/entropy": float(h.mean()),
        "actor/grad_norm": 0.1,
        "actor/lr": s.rate,
    }


def slime(s):
    """slime examples/train_infer_mismatch_helper/mis.py and backends/megatron_utils/loss.py: means of row means."""
    d = s.log_pi - s.log_mu
    return {
        "train/mis_kl": _rows(-d, s.mask),
        "train/mis_k3_kl": _rows(np.exp(d) - d - 1, s.mask),
        "train/mis_training_log_ppl": _rows(-s.log_pi, s.mask),
        "train/mis_rollout_log_ppl": _rows(-s.log_mu, s.mask),
        "train/train_rollout_logprob_abs_diff": _rows(np.abs(d), s.mask),
        "train/entropy_loss": _rows(s.entropy, s.mask),
        "train/is_ratio_mean_after_tis_rs": _rows(np.exp(d).clip(max=2), s.mask),
        "train/grad_norm": 0.1,
    }


def slime_plain(s):
    """slime without the helper: observability/train_metric_utils.py logs the two means."""
    d = s.log_pi - s.log_mu
    return {
        "rollout/log_probs": _rows(s.log_pi, s.mask),
        "rollout/rollout_log_probs": _rows(s.log_mu, s.mask),
        "train/train_rollout_logprob_abs_diff": _rows(np.abs(d), s.mask),
        "train/entropy_loss": _rows(s.entropy, s.mask),
    }


def nemo_rl(s):
    """NeMo-RL algorithms/loss/loss_functions.py, correction off."""
    d, *_ = _pairs(s)
    return {
        "train/gen_kl_error": float((np.exp(d) - d - 1).mean()),
        "train/policy_kl_error": float((np.exp(-d) + d - 1).mean()),
        "train/token_mult_prob_error": float(np.exp(np.abs(d)).mean()),
        "train/sampling_importance_ratio": float(np.exp(d).mean()),
        "train/grad_norm": 0.1,
    }


def prime_rl(s):
    """prime-rl trainer/rl/train.py: k3 over all tokens."""
    d, _, _, h = _pairs(s)
    return {
        "mismatch_kl/all/mean": float((np.exp(d) - d - 1).mean()),
        "mismatch_kl/all/max": float((np.exp(d) - d - 1).max()),
        "entropy/all/mean": float(h.mean()),
        "off_policy/mean": s.lag,
        "optim/lr": s.rate,
    }


def trl(s):
    """TRL 1.16 trainer/grpo_trainer.py: |log ratio|, and the ratio after the default sequence mask at 3."""
    d, _, _, h = _pairs(s)
    w = np.exp(np.where(s.mask, s.log_pi - s.log_mu, 0).sum(-1))
    return {
        "sampling/sampling_logp_difference/mean": float(np.abs(d).mean()),
        "sampling/sampling_logp_difference/max": float(np.abs(d).max()),
        "sampling/importance_sampling_ratio/mean": float(np.where(w > 3, 0, w).mean()),
        "entropy": float(h.mean()),
        "learning_rate": s.rate,
    }


def skyrl(s):
    """SkyRL off_policy_correction_utils.py and trainer.py."""
    d, _, _, h = _pairs(s)
    return {
        "policy/rollout_train_logprobs_abs_diff_mean": float(np.abs(d).mean()),
        "policy/rollout_train_logprobs_abs_diff_max": float(np.abs(d).max()),
        "policy/is_ratio_mean": float(np.exp(d).mean()),
        "policy/policy_entropy": float(h.mean()),
        "async/staleness_mean": s.lag,
    }


def openrlhf(s):
    """OpenRLHF models/loss.py: vllm_kl is the mean of log mu - log pi."""
    d, *_ = _pairs(s)
    return {"vllm_kl": float(-d.mean()), "ppo_kl": 0.0, "policy_loss": -0.01}


def reweigh(s):
    """What `Seen.flat` gives to a logger."""
    from reweigh import Batch
    from reweigh.trainers.seen import Seen

    return Seen.of(Batch.padded(torch.tensor(s.log_pi), torch.tensor(s.log_mu), torch.tensor(s.mask))).flat()


LOGGERS = {
    "verl": verl,
    "slime": slime,
    "nemo-rl": nemo_rl,
    "prime-rl": prime_rl,
    "trl": trl,
    "skyrl": skyrl,
    "openrlhf": openrlhf,
    "reweigh": reweigh,
}


def to_csv(path, steps, logger):
    rows = [{"step": i, **logger(s)} for i, s in enumerate(steps)]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


def to_jsonl(path, steps, logger):
    """As verl's own file logger writes: {"step": ..., "data": {...}}."""
    path.write_text("".join(json.dumps({"step": i, "data": logger(s)}) + "\n" for i, s in enumerate(steps)))
    return path
