"""Claims 20 to 23: truncated token ratios, what PPO does, and whether the token level can be enough."""

import math
from statistics import median

import torch

from reweigh import bounds as b
from reweigh.lab.advantages import PerSequence, Reward
from reweigh.lab.claims.claim import Claim, Evidence
from reweigh.lab.claims.material import NUMBER, broken, exponent, relative, slack, tiny, worlds
from reweigh.lab.distances import StateDistances, norms
from reweigh.lab.exact import PPOClip, coefficients, exact
from reweigh.lab.policies import Policies
from reweigh.lab.splits import truncated_bias
from reweigh.lab.traps import trap_a, trap_b
from reweigh.lab.world import World, random_policies, random_world
from reweigh.lab.worst_case import worst_case
from reweigh.named import naive, seq_is, seq_tis, token_is, token_tis

VALUE = Reward("value")
CAPS = (1.05, 1.2, 2.0)
GRID = tuple(2.0**k for k in range(-4, 7))  # caps that Seq-TIS may choose from, knowing the answer
SMALL = 24  # Markov worlds


def _bias_on_bias() -> Evidence:
    smaller = cases = 0
    identity = 0.0
    for world in worlds():
        for cap in CAPS:
            parts = truncated_bias(world, cap)
            identity = max(identity, relative(parts.mismatch + parts.truncation, parts.total))
            smaller += float(parts.total.norm()) < float(parts.mismatch.norm()) * (1 - 1e-9)
            cases += 1
    return Evidence(
        smaller > 0 and identity < 1e-9,
        f"{NUMBER} worlds, caps {', '.join(f'{c:g}' for c in CAPS)}: the two parts add up to the bias (to "
        f"{tiny(identity)}), and in {smaller} of {cases} cases Token-TIS is less biased than Token-IS.",
    )


def _truncated_variance() -> Evidence:
    pi, mu = torch.tensor([[0.5, 0.3, 0.2], [0.495, 0.455, 0.05]], dtype=torch.float64)
    first, second = (worst_case(pi, mu, t, token_tis(2.0)).second_moment for t in (4, 16))
    plain = [worst_case(pi, mu, t, token_is()).second_moment for t in (4, 16)]
    post, sharp = "tokTIS_Amu 2nd<=T^2C^2A^2Ks^2", "tokTIS_Amu 2nd<=T^2 min(C,1+chi2)A^2Ks^2"
    linear = 0
    for world in worlds():
        k, states = norms(world), StateDistances.of(world.policies)
        bound = b.token_tis_second_moment(
            k.reward, k.score_token, world.policies.length, 1 + float(states.chi2.max()), float(states.tv.max()), 2.0
        )
        linear += exact(world, token_tis(2.0)).second_moment > bound
    return Evidence(
        broken(post) + broken(sharp) + linear == 0 and first < plain[0] and second < plain[1],
        f"In {NUMBER} worlds at C = 2 all three bounds hold; median slack {slack(post):.1f} for T^2 C^2 and "
        f"{slack(sharp):.1f} for T^2 min(C, 1 + chi2). With a gap of .15 in a rare token the second moment at T = 4 "
        f"to 16 grows as T^{exponent((first, second), (4, 16)):.2f}.",
    )


def _ppo() -> Evidence:
    pi = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    ratios = torch.tensor([0.6, 2.0, 12.0], dtype=torch.float64)
    mu = pi / ratios
    mu = mu / mu.sum()
    world = World(Policies(pi.log(), mu.log(), 1), torch.zeros(3, dtype=torch.float64))
    ratio = (world.sampled.log_pi - world.sampled.log_mu).exp()[:, 0]
    seen: dict[str, list[float]] = {}
    for name, estimator, kind in (("PPO", naive(), PPOClip()), ("TIS", token_tis(1.2), None)):
        for sign in (1.0, -1.0):
            advantage = PerSequence(torch.full((3,), sign, dtype=torch.float64))
            found = (
                coefficients(world, estimator, advantage)
                if kind is None
                else coefficients(world, estimator, advantage, loss=kind)
            )
            seen[f"{name}, A {'>' if sign > 0 else '<'} 0"] = (found[:, 0] * sign + 0.0).tolist()  # no -0
    up, down = seen["PPO, A > 0"], seen["PPO, A < 0"]
    expected = all(
        math.isclose(u, 0 if r > 1.2 else r, abs_tol=1e-12) and math.isclose(d, 0 if r < 0.8 else r, abs_tol=1e-12)
        for u, d, r in zip(up, down, ratio.tolist(), strict=True)
    )
    said = "; ".join(f"{name}: {', '.join(f'{x:.2f}' for x in w)}" for name, w in seen.items())
    return Evidence(
        expected and max(down) > 2,
        f"Weights in the gradient of three tokens with ratios {', '.join(f'{r:.2f}' for r in ratio.tolist())}, clip "
        f".2, cap 1.2: {said}.",
    )


def _many_zeros(tokens: tuple[int, ...]) -> float:
    return float(2 * tokens.count(0) >= len(tokens))


def _duel(contests: list[World]) -> tuple[int, float, float]:
    """How often Token-TIS beats Seq-TIS at its best cap, and the median efficiency of each."""
    token = [exact(w, token_tis(2.0), VALUE).efficiency(64) for w in contests]
    sequence = [max(exact(w, seq_tis(c), VALUE).efficiency(64) for c in GRID) for w in contests]
    return sum(a > b for a, b in zip(token, sequence, strict=True)), median(token), median(sequence)


def _token_level() -> Evidence:
    trap = [exact(trap_a(100), e, VALUE).cosine for e in (token_is(), seq_is())]
    other = [exact(trap_b(100), e, VALUE).efficiency(64) for e in (token_is(), seq_is())]
    policies = [random_policies(vocab=3, length=6, memory=1, gap=1.0, seed=seed) for seed in range(SMALL)]
    ordered = _duel([World.scored(p, _many_zeros) for p in policies])
    chaotic = _duel([random_world(vocab=3, length=6, memory=1, gap=1.0, reward="binary", seed=s) for s in range(SMALL)])
    said = [f"{wins} of {SMALL} ({token:.2f} against {sequence:.2f})" for wins, token, sequence in (ordered, chaotic)]
    return Evidence(
        trap[0] < 0 < trap[1] and other[0] > other[1] and ordered[0] > SMALL / 2,
        f"For: in trap A at T = 100, Delta = .01, the cosine with g is {trap[0]:.2f} for Token-IS and {trap[1]:.2f} "
        f"for Seq-IS. Against: in trap B Token-IS has no bias and an efficiency of {other[0]:.2f} at N = 64, Seq-IS "
        f"{other[1]:.2f}. Token-TIS at C = 2 against Seq-TIS at the best of {len(GRID)} caps, {SMALL} random Markov "
        f"worlds, by efficiency at N = 64 (medians): it wins {said[0]} if the reward is whether half of the tokens "
        f"are of one kind, and {said[1]} if every sequence's reward is a coin toss.",
    )


TOKEN_CLIPPING = (
    Claim(
        number=20,
        title="Bias on bias",
        post="Truncating token ratios only adds a second bias to the one that is there.",
        verdict="WRONG",
        why="The decomposition is right. The two parts are vectors, and may point in opposite directions: "
        "truncation can take bias away.",
        sharper="|truncation part| <= X_max K_s sum_t E_mu (r_t - C)_+: linear in T.",
        use="`reweigh.lab.truncated_bias` splits it; `reweigh.bounds.truncation_bias` bounds it from logs.",
        evidence=_bias_on_bias,
    ),
    Claim(
        number=21,
        title="Variance of Token-TIS",
        post="O(T^2 C^2), and O(T^2 (1 + chi2)) in the summary table.",
        verdict="LOOSE",
        why="Both hold for Token-TIS, the table's since min(r, C) <= r. But min(r, C)^2 <= C r too, which is better "
        "than C^2 whenever C > 1.",
        sharper="With the reward of the whole sequence R_max^2 K_s^2 (sqrt(T min(C, 1 + chi2)) + T Delta)^2, for C "
        ">= 1.",
        use="`reweigh.bounds.token_tis_second_moment`.",
        evidence=_truncated_variance,
    ),
    Claim(
        number=22,
        title="PPO is Token-TIS at heart",
        post="The core mechanism of PPO is identical to min(r_t, C).",
        verdict="WRONG",
        why="The gradient of PPO has weight r_t or 0, by the sign of the advantage: a one-sided rejection. For "
        "negative advantages a large ratio is not limited at all.",
        sharper="weight = r_t unless (A > 0 and r_t > 1 + eps) or (A < 0 and r_t < 1 - eps), then 0. Dual clip "
        "bounds what is left.",
        use="`ppo_clip(..., dual=3.0)` if ratios can be large; `token_tis(cap)` if you want truncation.",
        evidence=_ppo,
    ),
    Claim(
        number=23,
        title="The token level cannot solve it",
        post="The problem cannot be solved at the token level if the length or the gap is large.",
        verdict="NOT PROVED",
        why="Upper bounds prove no impossibility. There are problems on which the token level points the wrong way, "
        "and problems on which it beats truncation of the sequence ratio at every cap tried.",
        sharper="Neither level dominates: it depends on N against 1 + chi2, and on where in the sequence the reward "
        "is decided. As N grows past 1 + chi2 the efficiency of Seq-IS tends to 1, and that of what is biased does "
        "not.",
        use="Compare on your data: `reweigh.lab.exact(...).efficiency(n)` on a world like yours, with a baseline, "
        "which is often worth more than the choice of level.",
        evidence=_token_level,
    ),
)
