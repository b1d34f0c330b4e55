"""Named estimators that drop what lies outside a trust region: by ratio, by divergence, by advantage sign."""

import math

from reweigh.batchwise import MeanAtMost
from reweigh.divergences import k1, k2, k3, prob_diff, signed_binary_kl
from reweigh.estimators import Estimator, for_advantage, weigh
from reweigh.levels import GEOMETRIC, SEQUENCE, TOKEN, WORST
from reweigh.transforms import AtMost, Reject, Screen, Truncate


def seq_mis(low: float = 0.0, high: float = 2.0) -> Estimator:
    """`w = r 1{low <= r <= high}` with r the sequence ratio: outliers are dropped, survivors keep their ratio.

    When: huge ratios are artefacts and not information; otherwise truncation is better in the worst case: rejecting
    wins only if over `C / (2 (C - 1))` of what is beyond the cap C is spurious (never at 2, 56% at 10). Cost: one sum a
    sequence.

    Args:
        low: ratio pi/mu; 0 is the one-sided form of the blog.
        high: ratio pi/mu.

    Also called: `sequence_mask` (TRL, default, 3.0), `sequence_mask_metric=product` (SkyRL, 0.5 to 2).
    Source: Liu et al. (2025), When speed kills stability; Li and Liu (2025), Part 3.
    """
    return weigh(SEQUENCE, Reject(low, high))


def token_mis(low: float = 0.5, high: float = 5.0) -> Estimator:
    """`w_t = r_t 1{low <= r_t <= high}`: tokens outside the band are dropped, the others keep their ratio. IcePop.

    When: mixture-of-experts models, whose routing flips give a few wild tokens. Watch the gap itself beside it: a mask
    can hide its growth. Cost: one exp a token.

    Args:
        low: ratio pi/mu.
        high: ratio pi/mu.

    Also called: IcePop; `token_mask` (TRL), threshold `"0.5_5.0"` (verl), `icepop` (slime, NeMo-RL, OpenRLHF).
    Source: Ling Team (2025), Every step evolves, 2510.18855.
    """
    return weigh(TOKEN, Reject(low, high))


def geo_rs(low: float = 0.999, high: float = 1.001) -> Estimator:
    """`w = 1{low <= exp(mean log r_t) <= high}`: keep sequences whose geometric ratio is near 1, at weight 1.

    When: to gate whole sequences; multiply with a weight to correct those that stay. It is a test of KL per token, and
    the band does not bound the sequence ratio. Its width should shrink as 1 / sqrt(T): a fixed band drops short ones.
    Cost: one mean a sequence.

    Args:
        low: ratio pi/mu.
        high: ratio pi/mu.

    Also called: `seq_mean_k1` (verl, bounds on mu/pi), `geometric` (SkyRL 0.99 to 1.01), `seq-mask-tis` (NeMo-RL 0.999
    to 1.002, times token ratios).
    Source: Li and Liu (2025), Part 3, 3.3 (Geo-RS, Geo-Mask).
    """
    return weigh(GEOMETRIC, Screen(low, high))


def geo_mis(low: float = 0.999, high: float = 1.001) -> Estimator:
    """`w = g 1{low <= g <= high}` with g the geometric ratio: as `geo_rs`, and survivors weigh g.

    When: to reproduce AReaL or slime with a geometric level. Cost: one mean a sequence.

    Args:
        low: ratio pi/mu.
        high: ratio pi/mu.

    Also called: `level=sequence, metric=ratio, action=mask` (AReaL).
    Source: Li and Liu (2025), Part 3, with AReaL's weight for the survivors.
    """
    return weigh(GEOMETRIC, Reject(low, high))


def k1_rs(nats: float = 1e-3) -> Estimator:
    """`w = 1{|mean k1| <= nats}`: keep sequences whose mean log ratio is within +-nats; `geo_rs(e^-nats, e^nats)`.

    When: a band said as a divergence is easier to choose: centre and width are in the unit of `kl_k1`. Cost: one mean.

    Args:
        nats: a token, at least 0.

    Also called: `seq_mean_k1` with one threshold (verl).
    Source: verl's rollout correction; k1 from Schulman (2020).
    """
    return geo_rs(math.exp(-nats), math.exp(nats))


def k3_rs(nats: float = 0.01) -> Estimator:
    """`w = 1{mean k3 <= nats}`, `k3 = r - 1 - log r`: keep sequences by an estimate of KL that cannot cancel.

    When: `geo_rs` lets a sequence through whose wild ratios cancel (+60 and -60); k3 does not. Cost: an expm1 a token.

    Args:
        nats: a token.

    Also called: `seq_mean_k3` (verl, `decoupled_k3_rs`, 0.01).
    Source: verl's rollout correction; k3 from Schulman (2020).
    """
    return weigh(GEOMETRIC, AtMost(nats), of=k3)


def trm(worst: float | None = 0.1, mean: float | None = 0.002) -> Estimator:
    """`w = 1{max_t k2_t <= worst} 1{mean_t k3_t <= mean}`: trust region masking of whole sequences.

    When: one bad token is reason to distrust the rest. Multiply with `token_is()` for the paper's surrogate, and divide
    by all sequences, not by those that stay. The paper's criteria are exact KLs over the vocabulary; from sampled
    tokens alone k2 and k3 stand in for them, as it proposes. Cost: an expm1 a token.

    Args:
        worst: nats, bound on the largest k2 of a token; None leaves the criterion out (alone, the paper has 0.05).
        mean: nats, bound on the mean k3; None leaves it out (alone, 0.001).

    Also called: `seq_max_k2,seq_mean_k3` (verl).
    Source: Li et al. (2025), Trust region masking for long-horizon LLM reinforcement learning, 2512.23075, algorithm 1.
    """
    by_worst = weigh(WORST, AtMost(worst), of=k2) if worst is not None else Estimator()
    by_mean = weigh(GEOMETRIC, AtMost(mean), of=k3) if mean is not None else Estimator()
    return by_worst * by_mean


def opsm(nats: float = 0.05) -> Estimator:
    """`w = 1 - 1{A < 0} 1{mean_t log(mu_t/pi_t) > nats}`: drop bad samples that pi has left behind.

    When: negative advantages on stale samples push where pi no longer is. Needs the advantage. Cost: one mean a
    sequence.

    Args:
        nats: a token; the source gives no number. Trinity-RFT suggests 0.05 to 0.2, TRL's example has 0.5, slime 1e-4.

    Also called: `off_policy_mask_threshold` (TRL), `--use-opsm` (slime, between the trainer's own policies by default).
    Source: DeepSeek-AI (2025), DeepSeek-V3.2, 2512.02556 (off-policy sequence masking).
    """
    return for_advantage(-1, weigh(GEOMETRIC, AtMost(nats), of=k1))


def dppo_tv(up: float = 0.2, down: float = 0.2, cap: float = math.inf) -> Estimator:
    """`w_t = min(r_t, cap) 1{sign(A) (pi_t - mu_t) <= b}`, b = up where A > 0, down where A < 0: a bound on the move.

    When: a ratio bound punishes rare tokens and lets common ones move too far; a probability bound does neither. Needs
    the advantage. Cost: two exps a token.

    Args:
        up: probability difference pi - mu that a token of positive advantage may reach.
        down: probability difference mu - pi that a token of negative advantage may reach.
        cap: ratio pi/mu; none by default: the paper's scaling runs have 5.

    Also called: `dppo_tv` (verl), the default loss of prime-rl, `dppo` with binary_tv (SkyRL).
    Source: Qi et al. (2026), Rethinking the trust region in LLM reinforcement learning, 2602.04879.
    """
    rise = for_advantage(+1, weigh(TOKEN, AtMost(up), of=prob_diff))
    fall = for_advantage(-1, weigh(TOKEN, AtMost(down), of=prob_diff, scale=-1))
    return rise * fall * weigh(TOKEN, Truncate(cap))


def dppo_kl(nats: float = 0.05, cap: float = math.inf) -> Estimator:
    """`w_t = min(r_t, cap) 1{binary_kl_t <= nats or A (r_t - 1) <= 0}`: a KL bound where r_t moves with the sign of A.

    When: as `dppo_tv`; the KL of "this token or another" is stricter for near-certain tokens. Needs the advantage.
    Cost: logs and exps a token.

    Args:
        nats: bound on the binary KL.
        cap: ratio pi/mu.

    Also called: `dppo_kl` (verl), `dppo` with binary_kl (SkyRL).
    Source: Qi et al. (2026), 2602.04879.
    """
    rise = for_advantage(+1, weigh(TOKEN, AtMost(nats), of=signed_binary_kl))
    fall = for_advantage(-1, weigh(TOKEN, AtMost(nats), of=signed_binary_kl, scale=-1))
    return rise * fall * weigh(TOKEN, Truncate(cap))


def m2po(bound: float = 0.04) -> Estimator:
    """`w_t = 1{(log r_t)^2 <= s}` with the largest s at which the mean of those that stay is at most bound.

    When: very stale data, where fixed clips would drop too much: it drops few tokens, and none if the mean is in bound.
    The choice is over the whole batch. Cost: one sort of the batch.

    Args:
        bound: nats^2, on the mean squared log ratio; 0.04 in the authors' scripts.

    Also called: `m2_threshold` (AReaL, which drops likewise). The authors' own code turns the same constraint into the
    clip bounds of a PPO loss, over harmful tokens only.
    Source: Zheng, Zhao, Chen (2025), Prosperity before collapse, 2510.01161; this form as in AReaL.
    """
    return weigh(TOKEN, MeanAtMost(bound), of=k2, scale=2)
