"""Every sequence of a tabular world in plain NumPy, and each quantity that a bound is about, by its definition."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np


def softmax(logits, mask=None):
    p = np.exp(logits - logits.max(-1, keepdims=True)) * (1 if mask is None else mask)
    return p / p.sum(-1, keepdims=True)


@dataclass(frozen=True, eq=False)
class Tabular:
    pi: np.ndarray  # [rows, V]
    mu: np.ndarray
    contexts: list  # the last tokens that choose the row
    length: int
    eos: int | None
    reward: list
    order: int | None  # how many last tokens choose the row; None: all

    @classmethod
    def of_record(cls, x):
        order = {"prefix": None, "iid": 0}.get(x["ctx"], int(x["ctx"].split(":")[-1]) if ":" in x["ctx"] else None)
        mask = None if x["mu_mask"] is None else np.array(x["mu_mask"])
        pi, mu = softmax(np.array(x["pi_logits"])), softmax(np.array(x["mu_logits"]), mask)
        return cls(pi, mu, [tuple(c) for c in x["contexts"]], x["T"], x["eos"], x["R"], order)

    @classmethod
    def random(cls, seed):
        """Vocabulary 2 or 3, length 2 to 5, prefix, Markov or iid contexts, EOS or not, a gap from tiny to large."""
        g = np.random.default_rng(seed)
        vocab, order = int(g.integers(2, 4)), [None, 0, 1][seed % 3]
        length = int(g.integers(2, 6 if vocab == 2 else 5))
        eos = 0 if seed % 4 == 3 else None
        depth = length - 1 if order is None else order
        contexts = [c for n in range(depth + 1) for c in np.ndindex(*(vocab,) * n) if eos is None or eos not in c]
        logits = g.normal(size=(len(contexts), vocab))
        gap = 10 ** g.uniform(-1.5, 0.4)
        mu = logits + gap * g.normal(size=logits.shape)
        if seed % 5 == 4:  # the gap in one row only
            mu[1:] = logits[1:]
        bare = cls(softmax(logits), softmax(mu), contexts, length, eos, [], order)
        n = len(bare.leaves)
        kind = seed % 7
        reward = g.integers(0, 2, n) if kind < 3 else g.normal(size=n) * 10 ** g.uniform(-1, 1) + (kind == 3) * 3
        return cls(bare.pi, bare.mu, contexts, length, eos, [float(x) for x in reward], order)

    @cached_property
    def leaves(self):
        out, stack = [], [()]
        while stack:
            y = stack.pop()
            if len(y) == self.length or (y and y[-1] == self.eos):
                out.append(y)
            else:
                stack += [(*y, v) for v in reversed(range(self.pi.shape[1]))]
        return out

    def row(self, prefix):
        return self.contexts.index(prefix if self.order is None else prefix[max(0, len(prefix) - self.order) :])

    @cached_property
    def _rows(self):
        rows = np.full((len(self.leaves), self.length), -1)
        tokens = np.zeros((len(self.leaves), self.length), int)
        for i, y in enumerate(self.leaves):
            for t, v in enumerate(y):
                rows[i, t], tokens[i, t] = self.row(y[:t]), v
        return rows, tokens

    @cached_property
    def live(self):
        return self._rows[0] >= 0

    def _token(self, table):
        rows, tokens = self._rows
        return np.where(self.live, table[rows, tokens], 1.0)

    @cached_property
    def p_pi(self):
        return self._token(self.pi).prod(1)

    @cached_property
    def p_mu(self):
        return self._token(self.mu).prod(1)

    @cached_property
    def ratio(self):
        """`[n, T]`: of each token, 1 after the end; 0 where mu never goes."""
        mu = self._token(self.mu)
        return np.where(mu > 0, self._token(self.pi) / np.where(mu > 0, mu, 1), 0)

    @cached_property
    def rho(self):
        return self.ratio.prod(1)

    @cached_property
    def score(self):
        """`[n, T, d]`."""
        rows, tokens = self._rows
        n, vocab = self.pi.shape
        s = np.zeros((*rows.shape, n, vocab))
        i, t = np.nonzero(self.live)
        s[i, t, rows[i, t]] = np.eye(vocab)[tokens[i, t]] - self.pi[rows[i, t]]
        return s.reshape(*rows.shape, n * vocab)

    @cached_property
    def seq_score(self):
        return self.score.sum(1)

    @cached_property
    def rewards(self):
        return np.array(self.reward)

    @cached_property
    def f(self):
        return self.rewards[:, None] * self.seq_score

    @cached_property
    def g(self):
        return self.p_pi @ self.f

    def mean(self, x):
        return np.tensordot(self.p_mu, x, 1)[()]

    def bias(self, estimator):
        return float(np.linalg.norm(self.mean(estimator) - self.g))

    def second(self, estimator):
        return self.mean(np.square(estimator).sum(-1))

    def variance(self, estimator):
        return self.second(estimator) - np.square(self.mean(estimator)).sum()

    def weighted(self, weight, signal=None):
        """`sum_t w_t X_t s_t`, X the reward or one signal a token."""
        signal = self.rewards[:, None] if signal is None else signal
        return ((weight * signal)[:, :, None] * self.score).sum(1)

    def values(self, table):
        """`{prefix: value}` when tokens come from `table`, for every prefix, whole sequences included."""
        out = dict(zip(self.leaves, self.rewards, strict=True))
        for prefix in sorted({y[:t] for y in self.leaves for t in range(len(y))}, key=len, reverse=True):
            out[prefix] = sum(table[self.row(prefix)][v] * out[(*prefix, v)] for v in range(table.shape[1]))
        return out

    def advantage(self, table):
        """`[n, T]`: Q - V when the rest comes from `table`; V under the same."""
        value = self.values(table)
        out = np.zeros(self.live.shape)
        for i, y in enumerate(self.leaves):
            for t in range(len(y)):
                out[i, t] = value[y[: t + 1]] - value[y[:t]]
        return out

    def reach(self, table):
        """`{prefix: probability}` of every prefix that is not a whole sequence."""
        out = {(): 1.0}
        for prefix in sorted({y[:t] for y in self.leaves for t in range(1, len(y))}, key=len):
            out[prefix] = out[prefix[:-1]] * table[self.row(prefix[:-1])][prefix[-1]]
        return out

    @cached_property
    def numbers(self):
        """Every number that the bounds ask for."""
        pi, mu, rho, r = self.p_pi, self.p_mu, self.rho, self.ratio
        rows = sorted(set(self._rows[0][self.live]))
        P, M = self.pi[rows], self.mu[rows]
        safe = np.where(M > 0, M, 1)
        state_tv = np.abs(self.pi - self.mu).sum(1) / 2
        tv_of = np.where(self.live, state_tv[self._rows[0]], 0)
        f, s = np.linalg.norm(self.f, axis=1), np.linalg.norm(self.score, axis=2)
        a, b = self.reach(self.pi), self.reach(self.mu)
        advantage = self.advantage(self.pi)
        gain = np.zeros(self.length)
        visits = np.zeros(self.length)
        value = self.values(self.pi)
        for prefix in a:
            visits[len(prefix)] += abs(b[prefix] - a[prefix]) / 2
            p = self.pi[self.row(prefix)]
            q = np.array([value[(*prefix, v)] for v in range(len(p))])
            # sum_v p_v (q_v - V) (e_v - p)
            gain[len(prefix)] = max(gain[len(prefix)], np.linalg.norm(p * (q - p @ q)))
        with np.errstate(divide="ignore", invalid="ignore"):
            kl = np.where(M > 0, M * np.log(M / P), 0).sum(1)
            kl_pi_mu = np.where(pi > 0, pi * np.log(pi / mu), 0).sum()
            kl_mu_pi = np.where(mu > 0, mu * np.log(mu / pi), 0).sum()
        after = np.stack([r[:, t + 1 :].prod(1) for t in range(self.length)], 1)
        surrogate = self.mean(self.rewards * (r - 1).sum(1))
        out = {
            "T": self.length,
            "K": f.max(),
            "K_s": s.max(),
            "K_S": np.linalg.norm(self.seq_score, axis=1).max(),
            "R_max": np.abs(self.rewards).max(),
            "half_range": np.ptp(self.rewards) / 2,
            "A_max": np.abs(advantage).max(),
            "A_mu_max": np.abs(self.advantage(self.mu)).max(),
            "g_norm": np.linalg.norm(self.g),
            "F_pi": pi @ f**2,
            "F_mu": mu @ f**2,
            "m2": self.mean(rho**2),
            "chi2": self.mean((rho - 1) ** 2),
            "tv": np.abs(pi - mu).sum() / 2,
            "hellinger2": 1 - np.sqrt(pi * mu).sum(),
            "kl_mu_pi": kl_mu_pi,
            "kl_pi_mu": kl_pi_mu,
            "Delta": np.abs(P - M).sum(1).max() / 2,
            "chi2_max": ((P - M) ** 2 / safe).sum(1).max(),
            "chi2_min": ((P - M) ** 2 / safe).sum(1).min(),
            "kl_max": kl.max(),
            "tv_t": self.mean(tv_of),
            "hybrid": self.mean(np.maximum(r - rho[:, None], 0)),  # r is 1 after the end
            "hybrid_live": self.mean(np.where(self.live, np.maximum(r - rho[:, None], 0), 0)),
            "longer": (pi - mu) @ self.live.sum(1),
            "visit_tv": visits,
            "gain": gain,
            "gap2": self.second(self.weighted(r, np.ones_like(r)) - rho[:, None] * self.seq_score),
            "future": self.mean(np.abs(r - 1) * np.maximum(1 - after, 0)),
            "surrogate_error": abs(pi @ self.rewards - mu @ self.rewards - surrogate),
        }
        return {name: np.asarray(x).tolist() for name, x in out.items()}
