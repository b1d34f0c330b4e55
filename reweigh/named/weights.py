"""Named estimators that keep every token: no weight, the ratio itself, or the ratio with a cap."""

from reweigh.adaptive import CapRule, TruncateAt
from reweigh.estimators import Estimator, self_normalised, weigh
from reweigh.levels import GEOMETRIC, PREFIX, SEQUENCE, SUFFIX, TOKEN, TURN, Level
from reweigh.transforms import Clip, Truncate


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


def snis() -> Estimator:
    """`w_i = r_i / mean_j r_j` over the batch: bounded, with a bias of order `(1 + chi2) / N`.

    When: the scale of the step should not follow the luck of the batch. Normalise over the global batch
    (`distributed.log_normaliser`), never over a micro-batch. Cost: one log-sum-exp; two tiny collectives over ranks.

    Also called: `rollout_is_batch_normalize` (verl, after truncation, rejected rows included).
    Source: Owen, Monte Carlo theory, methods and examples, chapter 9; Swaminathan and Joachims (2015).
    """
    return self_normalised(seq_is())


def group_snis() -> Estimator:
    """`w_i = r_i / mean_{j of its prompt} r_j`, over the responses to the same prompt; needs `Batch.group`.

    When: group baselines (GRPO, RLOO), where each prompt is an estimate of its own. With G responses no weight is over
    G.
    Cost: as `snis`, per prompt. All responses to a prompt must be in the batch.

    Source: self-normalisation (Swaminathan and Joachims 2015) applied to each prompt's group.
    """
    return self_normalised(seq_is(), by="prompt")


def token_is() -> Estimator:
    """`w_t = pi_t/mu_t`, each token its own ratio. Variance linear in T; blind to how states and returns shift.

    When: small gaps; the mean is the gradient of the surrogate `E_mu[R sum_t r_t]`, exact if the advantage is of pi and
    states are alike. Cost: one exp a token.

    Also called: `importance_sampling` (tinker), `truncated_importance_sampling_ratio=null` (NeMo-RL), prime-rl's ratio.
    Source: Li and Liu (2025), Part 2, Analysis 2; its bias is bounded by `2 R K T (T - 1) Delta` with R half the
    reward's range.
    """
    return weigh(TOKEN)


def prefix_is() -> Estimator:
    """`w_t = prod_{s <= t} pi_s/mu_s`, the prefix ratio. Unbiased with an advantage of pi or with rewards per step.

    When: there is a critic for pi. With one terminal reward it corrects states but not returns. Cost: one running sum.

    Also called: per-decision importance sampling.
    Source: Precup, Sutton, Singh (2000), Eligibility traces for off-policy policy evaluation.
    """
    return weigh(PREFIX)


def suffix_is() -> Estimator:
    """`w_t = prod_{s >= t} pi_s/mu_s`: corrects returns but not states: its mean is token IS with the advantage of pi.

    When: to split the bias of token IS into its two halves. Cost: one running sum. No framework offers it.

    Source: no published name is known to us; it is the complement of `prefix_is`, which see.
    """
    return weigh(SUFFIX)


def geo_is() -> Estimator:
    """`w = exp(mean_t log pi_t/mu_t)`, the geometric ratio: near 1 at any length, and no importance weight of anything.

    When: to compare with GSPO or ms-swift; it damps sequences that pi likes less, and corrects no expectation.
    Cost: one mean a sequence.

    Also called: GSPO's ratio, `sequence_truncate` (ms-swift), `tis_level=geometric` (slime), `agg=mean` (AReaL).
    Source: Zheng et al. (2025), Group sequence policy optimization, eq. 7.
    """
    return weigh(GEOMETRIC)


def token_tis(cap: float | CapRule = 2.0) -> Estimator:
    """`w_t = min(pi_t/mu_t, cap)`: token IS without its tail.

    When: the default of most frameworks; second moment at most `min(cap, 1 + chi2)` a token. Cost: one exp a token.

    Args:
        cap: ratio pi/mu, or a rule such as `balance()`; 2 in verl, slime, SkyRL, ms-swift; 3 in TRL; 5 in AReaL and
            OpenRLHF; 1.2 in ROLL.

    Also called: `rollout_is=token` (verl), `token_truncate` (TRL), `--use-tis` (slime), `tis` (NeMo-RL).
    Source: Yao et al. (2025), Your efficient RL framework secretly brings you off-policy RL training; Ionides (2008).
    """
    return _truncated(TOKEN, cap)


def prefix_tis(cap: float | CapRule = 2.0) -> Estimator:
    """`w_t = min(prod_{s <= t} pi_s/mu_s, cap)`: the prefix ratio with a cap.

    When: as `prefix_is`, at lengths where the prefix ratio has a tail. Bias at most
    `K sum_t E(r_{0:t} - cap)_+` with an advantage of pi. Cost: one running sum and an exp a token.

    Args:
        cap: ratio pi/mu, or a rule such as `balance()`.

    Also called: close to V-trace's product of truncated ratios, which caps each factor and not the product.
    Source: Precup et al. (2000) for the ratio, Ionides (2008) for the cap.
    """
    return _truncated(PREFIX, cap)


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


def seq_tis(cap: float | CapRule = 2.0) -> Estimator:
    """`w = min(prod_t pi_t/mu_t, cap)`: the sequence ratio with a cap; bias at most `K E(r - cap)_+`.

    When: the gap matters and batches are large against `1 + chi2`. A fixed cap loses mass as sequences get longer:
    look at what `reweigh audit` says is retained. Cost: one sum and an exp a sequence.

    Args:
        cap: ratio pi/mu, or a rule that the data resolve, such as `tradeoff()` or `balance()`. `post_cap(chi2)` gives
            the blog's rule, which ignores N.

    Also called: `rollout_is=sequence` (verl), `sequence_truncate` (TRL), `tis_level=sequence` (slime), cap 5 in SkyRL.
    Source: Li and Liu (2025), Part 2, Trade-offs; the bound used here is sharper than the post's by at least 8.
    """
    return _truncated(SEQUENCE, cap)


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


def _truncated(level: Level, cap: float | CapRule) -> Estimator:
    if not isinstance(cap, CapRule):
        return weigh(level, Truncate(cap))
    if cap.stats is not None and cap.stats.level.name != level.name:
        raise ValueError(
            f"{type(cap).__name__}: the cap is of {level.name} ratios, and the stats are {cap.stats.level.name} stats\n"
            "hint: RatioStats.of(batch, level) with the level of the estimator; a rule without stats reads the batch."
        )
    return weigh(level, TruncateAt(cap))
