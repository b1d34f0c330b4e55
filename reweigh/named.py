"""The field's names for estimators: one expression and one screen of docstring each."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec

from reweigh.caps import CapRule
from reweigh.estimators import Estimator, for_advantage, self_normalised, weigh
from reweigh.levels import (
    GEOMETRIC,
    PREFIX,
    PREFIX_LEAST,
    PREFIX_MEAN,
    PREFIX_ROOT,
    SEQUENCE,
    SUFFIX,
    TOKEN,
    TURN,
    WORST,
    Level,
    binary_kl,
    k1,
    k2,
    k3,
    prefix_budget,
    prob_diff,
    prob_gap,
    reverse_binary_kl,
    signed_binary_kl,
    signed_gap_of_sequence,
)
from reweigh.transforms import (
    AtMost,
    Clip,
    MeanAtMost,
    Outside,
    ParetoSmooth,
    Reject,
    Screen,
    Shrink,
    SigmoidGate,
    SoftKernel,
    Truncate,
    TruncateAt,
)


@dataclass(frozen=True)
class Facts:
    """What is known of a named estimator, in the words of the table of estimators.

    Attributes:
        unbiased: whether, or when, its mean is the gradient of a terminal reward.
        bound: the largest weight of a unit.
        source: who proposed it, in short; the docstring has it whole. "-" if nobody is known to have.
    """

    unbiased: str
    bound: str
    source: str


Made = ParamSpec("Made")

NAMED: dict[str, Callable[..., Estimator]] = {}
"""Every named estimator by its name, in the order of the table; each can be called without arguments."""
FACTS: dict[str, Facts] = {}
"""Facts of each by its name."""


def _named(
    *, unbiased: str, bound: str, source: str
) -> Callable[[Callable[Made, Estimator]], Callable[Made, Estimator]]:
    """Put a function that makes an estimator into `NAMED`, and what is known of it into `FACTS`."""

    def keep(make: Callable[Made, Estimator]) -> Callable[Made, Estimator]:
        NAMED[make.__name__], FACTS[make.__name__] = make, Facts(unbiased, bound, source)
        return make

    return keep


@_named(unbiased="no", bound="1", source="-")
def naive() -> Estimator:
    """`w = 1`: the gradient as if pi had sampled. Mean: `grad E_mu[R log pi]`, biased by up to O(T) in the mismatch.

    When: the gap is below what matters (check with `judge`), or as the baseline to compare with. Cost: none. Unlike
    the weighted estimators its mean changes when a constant is added to the reward.

    Example:
        >>> naive() * token_tis(2.0) == token_tis(2.0)
        True

    Also called: `rollout_is=null` (verl), `vllm_importance_sampling_correction=False` (TRL), no `--use-tis` (slime).
    Source: the uncorrected baseline; for what its mean is, Li and Liu (2025), Part 2.
    """
    return Estimator()


@_named(unbiased="yes", bound="none", source="Liu et al. 2025")
def seq_is() -> Estimator:
    """`w = prod_t pi_t/mu_t`, the sequence ratio. Unbiased; its variance can grow exponentially with length.

    When: short sequences or tiny gaps, with more sequences than `1 + chi2`. Cost: one sum a sequence.

    Example:
        >>> seq_is().unit
        'sequence'

    Also called: `sequence_truncate` without a cap (TRL), `sequence_level_importance_ratios` (NeMo-RL). `sequence` means
    the geometric mean in ms-swift, AReaL and TRL's `importance_sampling_level`: that is `geo_is`.
    Source: Liu et al. (2025), When speed kills stability, 4.2.1; Li and Liu (2025), Part 2, Analysis 1.
    """
    return weigh(SEQUENCE)


@_named(unbiased="as N grows", bound="N", source="Owen; Swaminathan, Joachims 2015")
def snis() -> Estimator:
    """`w_i = r_i / mean_j r_j` over the batch: bounded, with a bias of order `(1 + chi2) / N`.

    When: the scale of the step should not follow the luck of the batch. Normalise over the global batch
    (`distributed.log_normaliser`), never over a micro-batch. Cost: one log-sum-exp; two tiny collectives over ranks.

    Also called: `rollout_is_batch_normalize` (verl, after truncation, rejected rows included).
    Source: Owen, Monte Carlo theory, methods and examples, chapter 9; Swaminathan and Joachims (2015).
    """
    return self_normalised(seq_is())


@_named(unbiased="as G grows", bound="G", source="as `snis`, by prompt")
def group_snis() -> Estimator:
    """`w_i = r_i / mean_{j of its prompt} r_j`, over the responses to the same prompt; needs `Batch.group`.

    When: group baselines (GRPO, RLOO), where each prompt is an estimate of its own. With G responses no weight is over
    G.
    Cost: as `snis`, per prompt. All responses to a prompt must be in the batch.

    Source: self-normalisation (Swaminathan and Joachims 2015) applied to each prompt's group.
    """
    return self_normalised(seq_is(), by="prompt")


@_named(unbiased="no", bound="none", source="Li, Liu 2025")
def token_is() -> Estimator:
    """`w_t = pi_t/mu_t`, each token its own ratio. Variance linear in T; blind to how states and returns shift.

    When: small gaps; the mean is the gradient of the surrogate `E_mu[R sum_t r_t]`, exact if the advantage is of pi and
    states are alike. Cost: one exp a token.

    Also called: `importance_sampling` (tinker), `truncated_importance_sampling_ratio=null` (NeMo-RL), prime-rl's ratio.
    Source: Li and Liu (2025), Part 2, Analysis 2; its bias is bounded by `2 R K T (T - 1) Delta` with R half the
    reward's range.
    """
    return weigh(TOKEN)


@_named(unbiased="with advantages of pi", bound="none", source="Precup et al. 2000")
def prefix_is() -> Estimator:
    """`w_t = prod_{s <= t} pi_s/mu_s`, the prefix ratio. Unbiased with an advantage of pi or with rewards per step.

    When: there is a critic for pi. With one terminal reward it corrects states but not returns. Cost: one running sum.

    Also called: per-decision importance sampling.
    Source: Precup, Sutton, Singh (2000), Eligibility traces for off-policy policy evaluation.
    """
    return weigh(PREFIX)


@_named(unbiased="no", bound="none", source="-")
def suffix_is() -> Estimator:
    """`w_t = prod_{s >= t} pi_s/mu_s`: corrects returns but not states: its mean is token IS with the advantage of pi.

    When: to split the bias of token IS into its two halves. Cost: one running sum. No framework offers it.

    Source: no published name is known to us; it is the complement of `prefix_is`, which see.
    """
    return weigh(SUFFIX)


@_named(unbiased="no", bound="none", source="Zheng et al. 2025 (GSPO)")
def geo_is() -> Estimator:
    """`w = exp(mean_t log pi_t/mu_t)`, the geometric ratio: near 1 at any length, and no importance weight of anything.

    When: to compare with GSPO or ms-swift; it damps sequences that pi likes less, and corrects no expectation.
    Cost: one mean a sequence.

    Also called: GSPO's ratio, `sequence_truncate` (ms-swift), `tis_level=geometric` (slime), `agg=mean` (AReaL).
    Source: Zheng et al. (2025), Group sequence policy optimization, eq. 7.
    """
    return weigh(GEOMETRIC)


@_named(unbiased="no", bound="cap", source="Yao et al. 2025; Ionides 2008")
def token_tis(cap: float | CapRule = 2.0) -> Estimator:
    """`w_t = min(pi_t/mu_t, cap)`: token IS without its tail.

    When: the default of most frameworks; second moment at most `min(cap, 1 + chi2)` a token. Cost: one exp a token.

    Args:
        cap: ratio pi/mu, or a rule such as `Balance()`; 2 in verl, slime, SkyRL, ms-swift; 3 in TRL; 5 in AReaL and
            OpenRLHF; 1.2 in ROLL.

    Also called: `rollout_is=token` (verl), `token_truncate` (TRL), `--use-tis` (slime), `tis` (NeMo-RL).
    Source: Yao et al. (2025), Your efficient RL framework secretly brings you off-policy RL training; Ionides (2008).
    """
    return _truncated(TOKEN, cap)


@_named(unbiased="no", bound="cap", source="Precup et al. 2000; Ionides 2008")
def prefix_tis(cap: float | CapRule = 2.0) -> Estimator:
    """`w_t = min(prod_{s <= t} pi_s/mu_s, cap)`: the prefix ratio with a cap.

    When: as `prefix_is`, at lengths where the prefix ratio has a tail. Bias at most
    `K sum_t E(r_{0:t} - cap)_+` with an advantage of pi. Cost: one running sum and an exp a token.

    Args:
        cap: ratio pi/mu, or a rule such as `Balance()`.

    Also called: close to V-trace's product of truncated ratios, which caps each factor and not the product.
    Source: Precup et al. (2000) for the ratio, Ionides (2008) for the cap.
    """
    return _truncated(PREFIX, cap)


@_named(unbiased="no", bound="cap", source="-")
def turn_tis(cap: float = 2.0) -> Estimator:
    """`w_t = min(prod_{s in turn of t} pi_s/mu_s, cap)`: one weight a turn; needs turns in the batch.

    When: agents with many turns, where the sequence ratio is hopeless and a turn is what one decides. The product is
    over the turn's tokens. Cost: one scatter-add.

    Args:
        cap: ratio pi/mu.

    Also called: `segment` in ROLL and `gspo_turn` are turn levels too, of the geometric mean.
    Source: a product at turn level is this library's reading; for geometric ones see Li, Elmahdy et al. (2025),
    2511.20718.
    """
    return weigh(TURN, Truncate(cap))


@_named(unbiased="as cap grows", bound="cap", source="Li, Liu 2025")
def seq_tis(cap: float | CapRule = 2.0) -> Estimator:
    """`w = min(prod_t pi_t/mu_t, cap)`: the sequence ratio with a cap; bias at most `K E(r - cap)_+`.

    When: the gap matters and batches are large against `1 + chi2`. A fixed cap loses mass as sequences get longer:
    look at what `reweigh audit` says is retained. Cost: one sum and an exp a sequence.

    Args:
        cap: ratio pi/mu, or a rule that the data resolve, such as `Tradeoff()` or `Balance()`; `Post()` is the
            blog's rule, which ignores N.

    Also called: `rollout_is=sequence` (verl), `sequence_truncate` (TRL), `tis_level=sequence` (slime), cap 5 in SkyRL.
    Source: Li and Liu (2025), Part 2, Trade-offs; the bound used here is sharper than the post's by at least 8.
    """
    return _truncated(SEQUENCE, cap)


@_named(unbiased="no", bound="high", source="MiniMax 2025")
def cispo_cap(high: float = 5.0, low: float = 0.0) -> Estimator:
    """`w_t = min(max(pi_t/mu_t, low), high)`: the clipped, detached ratio of CISPO as a weight.

    When: two-policy use, with `policy_gradient`. With `low = 0` it is `token_tis(high)`. Cost: one exp a token.

    Args:
        high: ratio pi/mu, the cap itself and not one minus it: TRL's `epsilon_high` is the cap, SkyRL's is cap - 1.
        low: ratio pi/mu; the paper has none in effect.

    Also called: `cispo` (TRL, verl, slime, SkyRL).
    Source: MiniMax (2025), MiniMax-M1, 2506.13585.
    """
    return weigh(TOKEN, Clip(low, high))


@_named(unbiased="as high grows", bound="high", source="Liu et al. 2025")
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


@_named(unbiased="no", bound="high", source="Ling Team 2025 (IcePop)")
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


_GEO_HIGH = 1.001


def _refuse_a_width(name: str, low: float, high: float) -> None:
    if 0 < low < 0.5 and high == _GEO_HIGH:
        raise ValueError(
            f"{name}: bounds are ratios around 1, got low={low:g} and the default high={high:g}\n"
            f"hint: {name}({1 - low:.6g}, {1 + low:.6g}) is a band of that width on either side."
        )


@_named(unbiased="no", bound="1", source="Li, Liu 2025, Part 3")
def geo_rs(low: float = 0.999, high: float = 1.001) -> Estimator:
    """`w = 1{low <= exp(mean log r_t) <= high}`: keep sequences whose geometric ratio is near 1, at weight 1.

    When: to gate whole sequences; multiply with a weight to correct those that stay. It is a test of KL per token, and
    the band does not bound the sequence ratio. Its width should shrink as 1 / sqrt(T): a fixed band drops short ones.
    Cost: one mean a sequence.

    Args:
        low: ratio pi/mu; a little under 1.
        high: ratio pi/mu; a little over 1.

    Raises:
        ValueError: unless low <= high; a low far from 1 with the default high, which is a width and no bound.

    Also called: `seq_mean_k1` (verl, bounds on mu/pi), `geometric` (SkyRL 0.99 to 1.01), `seq-mask-tis` (NeMo-RL 0.999
    to 1.002, times token ratios).
    Source: Li and Liu (2025), Part 3, 3.3 (Geo-RS, Geo-Mask).
    """
    _refuse_a_width("geo_rs", low, high)
    return weigh(GEOMETRIC, Screen(low, high))


@_named(unbiased="no", bound="high", source="AReaL")
def geo_mis(low: float = 0.999, high: float = 1.001) -> Estimator:
    """`w = g 1{low <= g <= high}` with g the geometric ratio: as `geo_rs`, and survivors weigh g.

    When: to reproduce AReaL or slime with a geometric level. Cost: one mean a sequence.

    Args:
        low: ratio pi/mu; as of `geo_rs`.
        high: ratio pi/mu.

    Raises:
        ValueError: as `geo_rs`.

    Also called: `level=sequence, metric=ratio, action=mask` (AReaL).
    Source: Li and Liu (2025), Part 3, with AReaL's weight for the survivors.
    """
    _refuse_a_width("geo_mis", low, high)
    return weigh(GEOMETRIC, Reject(low, high))


@_named(unbiased="no", bound="1", source="verl; Schulman 2020")
def k1_rs(nats: float = 1e-3) -> Estimator:
    """`w = 1{|mean k1| <= nats}`: keep sequences whose mean log ratio is within +-nats; `geo_rs(e^-nats, e^nats)`.

    When: a band said as a divergence is easier to choose: centre and width are in the unit of `kl_k1`. Cost: one mean.

    Args:
        nats: a token, at least 0.

    Also called: `seq_mean_k1` with one threshold (verl).
    Source: verl's rollout correction; k1 from Schulman (2020).
    """
    return geo_rs(math.exp(-nats), math.exp(nats))


@_named(unbiased="no", bound="1", source="verl; Schulman 2020")
def k3_rs(nats: float = 0.01) -> Estimator:
    """`w = 1{mean k3 <= nats}`, `k3 = r - 1 - log r`: keep sequences by an estimate of KL that cannot cancel.

    When: `geo_rs` lets a sequence through whose wild ratios cancel (+60 and -60); k3 does not. Cost: an expm1 a token.

    Args:
        nats: a token.

    Also called: `seq_mean_k3` (verl, `decoupled_k3_rs`, 0.01).
    Source: verl's rollout correction; k3 from Schulman (2020).
    """
    return weigh(GEOMETRIC, AtMost(nats), of=k3)


@_named(unbiased="no", bound="1", source="Li et al. 2025 (TRM)")
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


@_named(unbiased="no", bound="1", source="DeepSeek-AI 2025 (V3.2)")
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


@_named(unbiased="no", bound="cap", source="Qi et al. 2026 (DPPO)")
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


@_named(unbiased="no", bound="cap", source="Qi et al. 2026 (DPPO)")
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


@_named(unbiased="no", bound="1", source="Zheng et al. 2025 (M2PO), AReaL")
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


@_named(unbiased="as N grows", bound="largest ratio", source="Vehtari et al. 2024")
def psis() -> Estimator:
    """`w = min(Pareto(r), max r)`: the sequence ratio, its largest values replaced by those of a fitted Pareto tail.

    When: some tens of sequences or more, a tail index below 0.7 (see `khat`). The fit is over the batch. Cost: a sort
    and a fit on the host; not for `torch.compile`.

    Source: Vehtari, Simpson, Gelman, Yao, Gabry (2024), Pareto smoothed importance sampling, JMLR 25.
    """
    return weigh(SEQUENCE, ParetoSmooth())


@_named(unbiased="as lam grows", bound="sqrt(lam)/2", source="Su et al. 2020")
def shrunk_seq_is(lam: float = 16.0) -> Estimator:
    """`w = lam r / (r^2 + lam)` with r the sequence ratio: small ratios stay, large ones fall back to 0.

    When: in place of a cap, if extreme ratios are more likely artefacts than information. Cost: one sum a sequence.

    Args:
        lam: ratio squared; the largest weight is `sqrt(lam) / 2`, at `r = sqrt(lam)`: 2 at r = 4 by default.

    Source: Su, Dimakopoulou, Krishnamurthy, Dudik (2020), Doubly robust off-policy evaluation with shrinkage.
    """
    return weigh(SEQUENCE, Shrink(lam))


@_named(unbiased="no", bound="(a/b)^a e^(b-a)", source="Shen et al. 2026")
def vespo(
    rise: tuple[float, float] = (2.0, 3.0),
    fall: tuple[float, float] = (3.0, 2.0),
) -> Estimator:
    """`w = r^a e^(b (1 - r))` with r the sequence ratio and (a, b) by the advantage's sign: a soft kernel around 1.

    When: asynchronous training, as a smooth gate on the sequence ratio. 1 at r = 1, largest at r = a / b, falling
    exponentially beyond. Needs the advantage. Cost: one sum and two exps a sequence.

    Args:
        rise: (a, b) for positive advantages.
        fall: (a, b) for negative advantages.

    Also called: `loss_type="vespo"` (TRL, Liger), where part of the ratio has been truncated before.
    Source: Shen, Zhao, Cheng, Huang, Yu (2026), VESPO, 2602.10693, eq. 17.
    """
    return for_advantage(+1, weigh(SEQUENCE, SoftKernel(*rise))) * for_advantage(-1, weigh(SEQUENCE, SoftKernel(*fall)))


@_named(unbiased="no", bound="none", source="Zhang et al. 2026 (CTPO)")
def ctpo(low: float = 0.025, high: float = 0.05) -> Estimator:
    """`w_t = R_t 1{sign(A) log R_t <= b sqrt(t)}`, R_t the prefix ratio; b = high where A > 0, low where A < 0.

    When: prefixes are to be corrected, and a fixed band would cut late tokens alone: the log of the prefix ratio
    spreads as the root of its length, and so do the bounds. Needs the advantage. Cost: one running sum and an exp a
    token.

    Args:
        low: nats, at the first token: how far a prefix of negative advantage may fall; the authors' script has .025.
        high: nats, at the first token: how far a prefix of positive advantage may rise; the authors' script has .05.

    Also called: `cum-token-cumprod-la` (the authors' verl), whose dual clip is not here.
    Source: Zhang et al. (2026), Rethinking importance sampling in LLM policy optimization, 2605.07331, as the weight of
    each token's own score.
    """
    rise = for_advantage(+1, weigh(PREFIX_ROOT, AtMost(high)))
    fall = for_advantage(-1, weigh(PREFIX_ROOT, AtMost(low), scale=-1))
    return rise * fall * weigh(PREFIX)


@_named(unbiased="no", bound="high", source="Zhang et al. 2026 (PNPO)")
def pnpo(low: float = 0.0, high: float = math.inf) -> Estimator:
    """`w_t = g_t 1{low <= g_t <= high}`, `g_t = exp(mean_{s <= t} log r_s)`: the geometric mean of the prefix.

    When: rollouts are used several times; it keeps what led to a token in view at the size of one ratio. No importance
    weight of anything. Cost: two running sums and an exp a token.

    Args:
        low: ratio pi/mu; none by default: the paper rejects by this mean too, at bounds that we could not verify.
        high: ratio pi/mu; likewise.

    Source: Zhang et al. (2026), Reusing rollouts under policy lag, 2608.01418; the weight, not the bounds.
    """
    return weigh(PREFIX_MEAN, Reject(low, high))


@_named(unbiased="no", bound="high", source="Lei et al. 2026 (MinPRO)")
def minpro(low: float = 0.0, high: float = 5.0) -> Estimator:
    """`w_t = min(max(r_t min_{s < t} r_s, low), high)`: the token's ratio times the least before it.

    When: data are far off-policy: one token that pi has left behind damps all that follow. The first token weighs its
    own ratio. Cost: a running minimum and an exp a token.

    Args:
        low: ratio, `1 - epsilon_low` of the paper, whose numbers we could not verify; none by default.
        high: ratio, `1 + epsilon_high` of the paper; as of `cispo_cap`.

    Source: Lei, Cheng, Tao (2026), A step back: prefix importance ratio stabilizes policy optimization, 2601.22718.
    """
    return weigh(PREFIX_LEAST, Clip(low, high))


@_named(unbiased="no", bound="none", source="Mao et al. 2026 (CPPO)")
def cppo(bound: float = 0.15, mean: float = 0.02, floor: float = 0.8) -> Estimator:
    """`w_t = r_t 1{A (r_t - 1) <= 0 or (v_t d_t <= b and S_t <= b + m V_{t-1})}`, `d_t = |pi_t - mu_t|`.

    With weights v that fall from 1 to `floor` over the response, `S_t = sum_{s <= t} v_s d_s` and
    `V_t = sum_{s <= t} v_s`: a token may move so far, and its prefix in all. When: as `dppo_tv`, where early tokens
    matter more than late ones. Needs the advantage, and the whole response: v depends on its length. Cost: two running
    sums and two exps a token.

    Args:
        bound: b, a probability; .15 for dense models, .2 for a mixture of experts.
        mean: m, a probability: what a prefix may move by on average.
        floor: weight of the last token.

    Source: Mao et al. (2026), Beyond uniform token-level trust region, 2606.10968, eq. 8 to 11, with the binary TV of
    its ablation; slime's `cppo` is of log ratios, and another rule.
    """
    level = prefix_budget(mean, floor)
    rise = for_advantage(+1, weigh(level, AtMost(bound), of=prob_diff))
    fall = for_advantage(-1, weigh(level, AtMost(bound), of=prob_diff, scale=-1))
    return rise * fall * weigh(TOKEN)


@_named(unbiased="no", bound="none", source="Gao et al. 2025 (SAPO)")
def sapo(rise: float = 1.0, fall: float = 1.05) -> Estimator:
    """`w_t = r_t sech^2(tau (r_t - 1) / 2)`, tau = rise where A > 0, fall where A < 0: a smooth trust region.

    When: in place of a clip, without an edge: 1 at r = 1, near r below, falling as `4 r e^(-tau r)` above. Needs the
    advantage. Cost: three exps a token.

    Args:
        rise: temperature for positive advantages; the larger, the narrower.
        fall: temperature for negative advantages.

    Also called: `loss_type="sapo"` (TRL, ms-swift), `sapo` (verl, SkyRL, Trinity), `use_sapo_loss` (AReaL): objectives
    `4 sigmoid(tau (r - 1)) / tau`, whose gradient is this weight times the score.
    Source: Gao et al. (2025), Soft adaptive policy optimization, 2511.20347.
    """
    return for_advantage(+1, weigh(TOKEN, SigmoidGate(rise))) * for_advantage(-1, weigh(TOKEN, SigmoidGate(fall)))


@_named(unbiased="no", bound="cap", source="prime-rl 2026")
def ipo(gap: float = 0.3, cap: float = 1e4) -> Estimator:
    """`w_t = min(r_t, cap) 1{|pi_t - mu_t| <= gap}`: a bound on the move of a probability, either way.

    When: as `dppo_tv`, without regard to the advantage's sign, so that it can be centred by one mean. Cost: two exps a
    token.

    Args:
        gap: probability difference; .3 in prime-rl, .1 before.
        cap: ratio pi/mu.

    Also called: `loss.type="ipo"` (prime-rl), with `score_centering` the `centred` one.
    Source: prime-rl's `IPOLoss`; the measure is DPPO's (Qi et al. 2026), 2602.04879.
    """
    return weigh(TOKEN, AtMost(gap), of=prob_gap) * weigh(TOKEN, Truncate(cap))


@_named(unbiased="no", bound="none", source="Zhang 2026 (FlashREINFORCE)")
def flash_reinforce(nats: float = 1e-3) -> Estimator:
    """`w_t = r_t 1{mean_t binary_kl_t <= nats}`: token ratios of the sequences that stayed near mu.

    When: one rollout a prompt, asynchronously. Divide by all tokens and sequences, those that are dropped too. Cost:
    logs and exps a token.

    Args:
        nats: a token; .001 in verl, .003 to .005 in slime's scripts.

    Also called: `loss_mode=flash_reinforce` (verl), `binary_kl_trust_region_function` (slime), both of which clamp log
    ratios beyond 20 or 30 nats.
    Source: FlashREINFORCE (2026), as in verl's documentation of it and NVIDIA's labs-molt.
    """
    return weigh(TOKEN) * weigh(GEOMETRIC, AtMost(nats), of=binary_kl)


@_named(unbiased="no", bound="1", source="AReaL 2026")
def kpop(nats: float = 2.0) -> Estimator:
    """`w_t = 1{max(KL(mu||pi), KL(pi||mu)) <= nats}` of "this token or another one": a mask by a divergence, both ways.

    When: as IcePop (`token_mis`), by a bound that does not punish rare tokens; multiply with `token_is()` for weights.
    Cost: logs and exps a token.

    Args:
        nats: bound on either binary KL.

    Also called: KPop, `rejection_sampling.metric=binary_kl` (AReaL, 2.0), proposed for verl as `rollout_rs=binary_kl`.
    Source: AReaL's documentation of KPop (2026).
    """
    return weigh(TOKEN, AtMost(nats), of=binary_kl) * weigh(TOKEN, AtMost(nats), of=reverse_binary_kl)


@_named(unbiased="no", bound="none", source="Honari et al. 2026; open-instruct")
def vaco(bound: float = 2.0) -> Estimator:
    """`w_t = r_t 1{mean_t |r_t - 1| <= bound or A log r_t <= 0}`: far sequences keep what brings them back.

    When: the gap of a whole sequence is what one fears, and tokens that narrow it are welcome. Needs the advantage.
    Cost: a mean a sequence and an exp a token.

    Args:
        bound: of the sequence's mean `|r - 1|`, twice an estimate of its total variation.

    Also called: `rho_mask_tv_divergence` (open-instruct until it took binary divergences; ratios capped at 2 there).
    Source: Honari et al. (2026), Align and filter, 2603.01365: the filter alone, as open-instruct had it; the realigned
    advantages (V-trace) are no weight.
    """
    rise = for_advantage(+1, weigh(TOKEN, AtMost(bound), of=signed_gap_of_sequence))
    fall = for_advantage(-1, weigh(TOKEN, AtMost(bound), of=signed_gap_of_sequence, scale=-1))
    return rise * fall * weigh(TOKEN)


@_named(unbiased="no", bound="1", source="Le Roux et al. 2025 (TOPR)")
def topr(cap: float = 1.0) -> Estimator:
    """`w = 1{A > 0} + min(r, cap) 1{A < 0}`, r the sequence ratio: failures fade as pi leaves them, successes stay.

    When: offline, or far off-policy, with many failures: what pi no longer says is pushed down no further. Needs the
    advantage, with the sign of the reward. Cost: one sum a sequence.

    Args:
        cap: ratio pi/mu; 1 in the paper.

    Also called: `use_topr_neg_loss_coef` (ROLL).
    Source: Le Roux et al. (2025), Tapered off-policy REINFORCE, 2503.14286.
    """
    return for_advantage(-1, weigh(SEQUENCE, Truncate(cap)))


@_named(unbiased="no", bound="1", source="Yao et al. 2025 (REC)")
def rec_one_side(low: float = 0.2, high: float = 0.2) -> Estimator:
    """`w_t = 1{A > 0: r_t <= 1 + high; A < 0: r_t >= 1 - low}`: the mask of PPO's clip, without its ratio.

    When: to see what the clip alone does; the ratio is no part of it. Multiply with `token_is()` for REC-OneSide-IS.
    Needs the advantage. Cost: a comparison a token.

    Args:
        low: below 1, a ratio difference.
        high: above 1, a ratio difference; up to 2 in the paper.

    Also called: REC-OneSide-NoIS, `clip_mode="one-side"` (Trinity).
    Source: Yao et al. (2025), Group-relative REINFORCE is secretly an off-policy algorithm, 2509.24203.
    """
    rise = for_advantage(+1, weigh(TOKEN, Screen(0.0, 1 + high)))
    return rise * for_advantage(-1, weigh(TOKEN, Screen(1 - low)))


@_named(unbiased="no", bound="1", source="Yao et al. 2025 (REC)")
def rec_ring(low: float = 0.2, high: float = 0.2, far_low: float = 0.6, far_high: float = 2.0) -> Estimator:
    """`w_t = 1{1 - low <= r_t <= 1 + high, or A > 0 and r_t <= 1 - far_low, or A < 0 and r_t >= 1 + far_high}`.

    When: tokens far on the side that the advantage pulls back from are to be pulled; those a little off are left alone.
    Needs the advantage. Cost: comparisons a token.

    Args:
        low: below 1, a ratio difference.
        high: above 1, a ratio difference.
        far_low: below 1, at least low.
        far_high: above 1, at least high.

    Also called: REC-Ring-NoIS, `clip_mode="ring"` (Trinity).
    Source: Yao et al. (2025), 2509.24203, as in Trinity.
    """
    rise = weigh(TOKEN, Screen(0.0, 1 + high)) * weigh(TOKEN, Outside(1 - far_low, 1 - low))
    fall = weigh(TOKEN, Screen(1 - low)) * weigh(TOKEN, Outside(1 + high, 1 + far_high))
    return for_advantage(+1, rise) * for_advantage(-1, fall)


def _truncated(level: Level, cap: float | CapRule) -> Estimator:
    if not isinstance(cap, CapRule):
        return weigh(level, Truncate(cap))
    if cap.stats is not None and cap.stats.level.name != level.name:
        raise ValueError(
            f"{type(cap).__name__}: the cap is of {level.name} ratios, and the stats are {cap.stats.level.name} stats\n"
            "hint: RatioStats.of(batch, level) with the level of the estimator; a rule without stats reads the batch."
        )
    return weigh(level, TruncateAt(cap))
