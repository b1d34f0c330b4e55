"""Every named estimator and every number of the statistics in plain Python floats, written from their formulas."""

import math
from dataclasses import dataclass, field


@dataclass
class Seq:
    """One sequence as lists; slots with `mask` False do not exist."""

    log_pi: list[float]
    log_mu: list[float]
    mask: list[bool]
    advantage: list[float] = field(default_factory=list)
    turn: list[int] = field(default_factory=list)
    group: int = 0

    def live(self):
        return [t for t, m in enumerate(self.mask) if m]

    def lr(self, t):
        return self.log_pi[t] - self.log_mu[t]

    def r(self, t):
        return math.exp(self.lr(t))

    def sum(self):
        return math.fsum(self.lr(t) for t in self.live())

    def mean(self, f):
        return math.fsum(f(t) for t in self.live()) / len(self.live())

    def same_turn(self, t):
        """Live slots of the run of equal turns that holds t."""
        low = high = t
        while low > 0 and self.turn[low - 1] == self.turn[t]:
            low -= 1
        while high + 1 < len(self.turn) and self.turn[high + 1] == self.turn[t]:
            high += 1
        return [s for s in self.live() if low <= s <= high]


def rows(batch):
    """The sequences of a padded batch."""
    nothing = [[0] * batch.log_pi.shape[1]] * batch.log_pi.shape[0]
    get = lambda x: nothing if x is None else x.tolist()  # noqa: E731
    turn, group = batch.layout.turn, [0] * len(nothing) if batch.group is None else batch.group.tolist()
    lists = (batch.log_pi.double().tolist(), batch.log_mu.double().tolist(), batch.layout.mask.tolist())
    return [Seq(*x) for x in zip(*lists, get(batch.advantage), get(turn), group, strict=True)]


def exp(x):
    """0 and inf where a float has no more room."""
    return math.inf if x > 709 else math.exp(x)


def k2(s, t):
    return s.lr(t) ** 2 / 2


def k3(s, t):
    return exp(s.lr(t)) - 1 - s.lr(t)


def binary_kl(s, t):
    mu, pi = math.exp(s.log_mu[t]), math.exp(s.log_pi[t])
    if mu >= 1:
        return mu * (s.log_mu[t] - s.log_pi[t])
    return math.inf if pi >= 1 else mu * math.log(mu / pi) + (1 - mu) * math.log((1 - mu) / (1 - pi))


def per_token(seqs, f):
    """f(sequence, slot) on every live slot, 0 elsewhere."""
    return [[f(s, t) if s.mask[t] else 0.0 for t in range(len(s.mask))] for s in seqs]


def per_seq(seqs, f):
    """f(sequence) on every live slot of it, 0 elsewhere."""
    values = [f(s) if any(s.mask) else 0.0 for s in seqs]
    return [[w if m else 0.0 for m in s.mask] for s, w in zip(seqs, values, strict=True)]


def naive(seqs):
    return per_token(seqs, lambda s, t: 1.0)


def seq_is(seqs):
    return per_seq(seqs, lambda s: exp(s.sum()))


def snis(seqs):
    live = [s for s in seqs if any(s.mask)]
    mean = sum(exp(s.sum()) for s in live) / len(live)
    return per_seq(seqs, lambda s: exp(s.sum()) / mean)


def group_snis(seqs):
    def weight(s):
        same = [exp(q.sum()) for q in seqs if q.group == s.group and any(q.mask)]
        return exp(s.sum()) / (sum(same) / len(same))

    return per_seq(seqs, weight)


def token_is(seqs):
    return per_token(seqs, lambda s, t: s.r(t))


def prefix_is(seqs):
    return per_token(seqs, lambda s, t: exp(sum(s.lr(u) for u in s.live() if u <= t)))


def suffix_is(seqs):
    return per_token(seqs, lambda s, t: exp(sum(s.lr(u) for u in s.live() if u >= t)))


def geo_is(seqs):
    return per_seq(seqs, lambda s: exp(s.mean(s.lr)))


def token_tis(seqs, cap=2.0):
    return per_token(seqs, lambda s, t: min(s.r(t), cap))


def prefix_tis(seqs, cap=2.0):
    return per_token(seqs, lambda s, t: min(exp(sum(s.lr(u) for u in s.live() if u <= t)), cap))


def turn_tis(seqs, cap=2.0):
    return per_token(seqs, lambda s, t: min(exp(sum(s.lr(u) for u in s.same_turn(t))), cap))


def seq_tis(seqs, cap=2.0):
    return per_seq(seqs, lambda s: min(exp(s.sum()), cap))


def cispo_cap(seqs, high=5.0, low=0.0):
    return per_token(seqs, lambda s, t: min(max(s.r(t), low), high))


def seq_mis(seqs, low=0.0, high=2.0):
    return per_seq(seqs, lambda s: exp(s.sum()) if low <= exp(s.sum()) <= high else 0.0)


def token_mis(seqs, low=0.5, high=5.0):
    return per_token(seqs, lambda s, t: s.r(t) if low <= s.r(t) <= high else 0.0)


def geo_rs(seqs, low=0.999, high=1.001):
    return per_seq(seqs, lambda s: float(low <= exp(s.mean(s.lr)) <= high))


def geo_mis(seqs, low=0.999, high=1.001):
    return per_seq(seqs, lambda s: exp(s.mean(s.lr)) if low <= exp(s.mean(s.lr)) <= high else 0.0)


def k1_rs(seqs, nats=1e-3):
    return per_seq(seqs, lambda s: float(abs(s.mean(s.lr)) <= nats))


def k3_rs(seqs, nats=0.01):
    return per_seq(seqs, lambda s: float(s.mean(lambda t: k3(s, t)) <= nats))


def trm(seqs, worst=0.1, mean=0.002):
    def keep(s):
        return max(k2(s, t) for t in s.live()) <= worst and s.mean(lambda t: k3(s, t)) <= mean

    return per_seq(seqs, lambda s: float(keep(s)))


def opsm(seqs, nats=0.05):
    def weight(s, t):
        return 0.0 if s.advantage[t] < 0 and s.mean(lambda u: -s.lr(u)) > nats else 1.0

    return per_token(seqs, weight)


def dppo_tv(seqs, up=0.2, down=0.2, cap=math.inf):
    def weight(s, t):
        rise = math.exp(s.log_pi[t]) - math.exp(s.log_mu[t])
        drop = (s.advantage[t] > 0 and rise > up) or (s.advantage[t] < 0 and -rise > down)
        return 0.0 if drop else min(s.r(t), cap)

    return per_token(seqs, weight)


def dppo_kl(seqs, nats=0.05, cap=math.inf):
    def weight(s, t):
        drop = binary_kl(s, t) > nats and s.lr(t) * s.advantage[t] > 0
        return 0.0 if drop else min(s.r(t), cap)

    return per_token(seqs, weight)


def m2po(seqs, bound=0.04):
    left = sorted((s.lr(t) ** 2, i, t) for i, s in enumerate(seqs) for t in s.live())
    while left and sum(x for x, _, _ in left) / len(left) > bound:
        left.pop()
    kept = {(i, t) for _, i, t in left}
    return [[float((i, t) in kept) for t in range(len(s.mask))] for i, s in enumerate(seqs)]


def shrunk_seq_is(seqs, lam=16.0):
    return per_seq(seqs, lambda s: lam * exp(s.sum()) / (exp(s.sum()) ** 2 + lam))


def vespo(seqs, rise=(2.0, 3.0), fall=(3.0, 2.0)):
    def weight(s, t):
        if s.advantage[t] == 0:
            return 1.0
        a, b = rise if s.advantage[t] > 0 else fall
        return exp(s.sum()) ** a * math.exp(b * (1 - exp(s.sum())))

    return per_token(seqs, weight)


def prefix_sum(s, t):
    return sum(s.lr(u) for u in s.live() if u <= t)


def place(s, t):
    """Number of the token among the live ones, from 1."""
    return s.live().index(t) + 1


def sign(x):
    return (x > 0) - (x < 0)


def ctpo(seqs, low=0.025, high=0.05):
    def weight(s, t):
        total, root = prefix_sum(s, t), math.sqrt(place(s, t))
        drop = (s.advantage[t] > 0 and total > high * root) or (s.advantage[t] < 0 and -total > low * root)
        return 0.0 if drop else exp(total)

    return per_token(seqs, weight)


def pnpo(seqs, low=0.0, high=math.inf):
    def weight(s, t):
        g = exp(prefix_sum(s, t) / place(s, t))
        return g if low <= g <= high else 0.0

    return per_token(seqs, weight)


def minpro(seqs, low=0.0, high=5.0):
    def weight(s, t):
        before = [s.lr(u) for u in s.live() if u < t]
        return min(max(exp(s.lr(t) + min(before, default=0.0)), low), high)

    return per_token(seqs, weight)


def cppo(seqs, bound=0.15, mean=0.02, floor=0.8):
    def keep(s, target):
        """Algorithm 1 of the paper, up to the token."""
        total = weights = 0.0
        for t in s.live():
            v = 1 - (1 - floor) * (place(s, t) - 1) / max(1, len(s.live()) - 1)
            z = v * abs(math.exp(s.log_pi[t]) - math.exp(s.log_mu[t]))
            if t == target:
                return s.advantage[t] * (s.r(t) - 1) <= 0 or z <= min(bound, bound + mean * weights - total)
            total, weights = total + z, weights + v
        raise AssertionError

    return per_token(seqs, lambda s, t: s.r(t) if keep(s, t) else 0.0)


def sapo(seqs, rise=1.0, fall=1.05):
    def weight(s, t):
        if s.advantage[t] == 0:
            return 1.0
        tau = rise if s.advantage[t] > 0 else fall
        p = 1 / (1 + math.exp(-tau * (s.r(t) - 1)))
        return 4 * p * (1 - p) * s.r(t)

    return per_token(seqs, weight)


def prob_gap(s, t):
    return abs(math.exp(s.log_pi[t]) - math.exp(s.log_mu[t]))


def ipo(seqs, gap=0.3, cap=1e4):
    return per_token(seqs, lambda s, t: min(s.r(t), cap) if prob_gap(s, t) <= gap else 0.0)


def flash_reinforce(seqs, nats=1e-3):
    return per_token(seqs, lambda s, t: s.r(t) if s.mean(lambda u: binary_kl(s, u)) <= nats else 0.0)


def kpop(seqs, nats=2.0):
    def worse(s, t):
        turned = Seq(s.log_mu, s.log_pi, s.mask)
        return max(binary_kl(s, t), binary_kl(turned, t))

    return per_token(seqs, lambda s, t: float(worse(s, t) <= nats))


def vaco(seqs, bound=2.0):
    def weight(s, t):
        far = s.mean(lambda u: abs(s.r(u) - 1)) > bound
        return 0.0 if far and sign(s.advantage[t]) * s.lr(t) > 0 else s.r(t)

    return per_token(seqs, weight)


def topr(seqs, cap=1.0):
    return per_token(seqs, lambda s, t: min(exp(s.sum()), cap) if s.advantage[t] < 0 else 1.0)


def rec_one_side(seqs, low=0.2, high=0.2):
    def keep(s, t):
        a, r = s.advantage[t], s.r(t)
        return r <= 1 + high if a > 0 else r >= 1 - low if a < 0 else True

    return per_token(seqs, lambda s, t: float(keep(s, t)))


def rec_ring(seqs, low=0.2, high=0.2, far_low=0.6, far_high=2.0):
    def keep(s, t):
        a, r = s.advantage[t], s.r(t)
        return a == 0 or 1 - low <= r <= 1 + high or (r <= 1 - far_low if a > 0 else r >= 1 + far_high)

    return per_token(seqs, lambda s, t: float(keep(s, t)))


def psis(seqs, min_units=25):
    """Pareto smoothing as in Vehtari et al. (2024), appendix: fit of Zhang and Stephens (2009), with its prior."""
    live = [i for i, s in enumerate(seqs) if any(s.mask)]
    w = {i: exp(seqs[i].sum()) for i in live}
    n = len(live)
    if n >= min_units:
        size = int(min(n // 5, 3 * math.sqrt(n)))
        order = sorted(live, key=lambda i: w[i])
        cut, tail = w[order[-size - 1]], order[-size:]
        k, sigma = fit_pareto([w[i] - cut for i in tail])
        largest = w[order[-1]]
        for z, i in enumerate(tail):
            p = (z + 0.5) / size
            w[i] = min(largest, cut + sigma * math.expm1(-k * math.log1p(-p)) / k)
    return [[w[i] if m else 0.0 for m in s.mask] for i, s in enumerate(seqs)]


def fit_pareto(x):
    """Shape and scale of a generalised Pareto distribution of the ascending x."""
    n, quarter = len(x), x[int(len(x) / 4 + 0.5) - 1]
    points = 30 + int(math.sqrt(n))
    b = [(1 - math.sqrt(points / (j - 0.5))) / (3 * quarter) + 1 / x[-1] for j in range(1, points + 1)]
    ks = [sum(math.log1p(-v * y) for y in x) / n for v in b]
    like = [n * (math.log(-v / k) - k - 1) for v, k in zip(b, ks, strict=True)]
    weight = [1 / sum(math.exp(other - own) for other in like) for own in like]
    best = sum(v * w for v, w in zip(b, weight, strict=True)) / sum(weight)
    k = sum(math.log1p(-best * y) for y in x) / n
    return (k * n + 5) / (n + 10), -k / best


# Statistics.


def unit_logs(seqs, level):
    """Log ratios of the units, in the order of sequences, with the number of the sequence of each."""
    out = []
    for i, s in enumerate(seqs):
        if level == "token":
            out += [(s.lr(t), i) for t in s.live()]
        elif level == "turn":
            heads = [t for t in s.live() if s.same_turn(t)[0] == t]
            out += [(sum(s.lr(u) for u in s.same_turn(t)), i) for t in heads]
        elif any(s.mask):
            out.append((s.sum(), i))
    return out


def numbers(seqs, level):
    """The numbers of a summary that a formula gives; logs of sums of powers where those would overflow."""
    l = [x for x, _ in unit_logs(seqs, level)]
    n, top = len(l), max([x for x, _ in unit_logs(seqs, level)] + [0.0])
    s1, s2 = sum(math.exp(x - top) for x in l), sum(math.exp(2 * (x - top)) for x in l)
    k1 = -sum(l) / n
    out = {
        "mean_ratio": exp(math.log(s1 / n) + top),
        "kl_k1": k1,
        "mean_abs": sum(map(abs, l)) / n,
        "sd": math.sqrt(sum(x * x for x in l) / n - k1 * k1),
        "tv": sum(max(0.0, 1 - exp(x)) for x in l) / n,
        "hellinger": max(0.0, 1 - sum(math.exp(x / 2) for x in l) / n),
        "renyi2": math.log(n * s2 / (s1 * s1)),
        "ess": s1 * s1 / s2,
        "ess_fraction": s1 * s1 / s2 / n,
        "largest_share": math.exp(max(l) - top) / s1,
    }
    if level == "token":
        pairs = [(math.exp(s.log_pi[t]), math.exp(s.log_mu[t])) for s in seqs for t in s.live()]
        out |= {
            "kl_k3": sum(exp(x) - 1 - x for x in l) / n,
            "prob_gap": sum(abs(p - m) for p, m in pairs) / n,
            "state_tv_at_most": sum(1 - min(p, m) for p, m in pairs) / n,
            "largest_gap": max(abs(p - m) for p, m in pairs),
            "beyond_2x": sum(x >= math.log(2) or x < -math.log(2) for x in l) / n,
        }
    return out


def excess(seqs, level, cap):
    """`1 - mean min(r, C)`."""
    l = [x for x, _ in unit_logs(seqs, level)]
    return 1 - sum(min(exp(x), cap) for x in l) / len(l)


def hybrid(seqs, top=math.inf):
    """Sum over sequences of `sum_t (min(r_t, top) - min(r, top))_+`, and of its squares."""
    each = [sum(max(0.0, min(s.r(t), top) - min(exp(s.sum()), top)) for t in s.live()) for s in seqs]
    return sum(each), sum(x * x for x in each)


def blocks(seqs, size):
    """Log ratios of the blocks of `size` slots, from a sequence's first on, that are all live."""
    out = []
    for s in seqs:
        for start in range(0, len(s.mask) - size + 1, size):
            slots = range(start, start + size)
            if all(s.mask[t] for t in slots):
                out.append(sum(s.lr(t) for t in slots))
    return out
