"""The bounds of the blog post "Token v.s. Sequence-level Correction", as it states them, true or not."""

from reweigh.theory.bounds.divergence import least, over, positive

# Each says where it stands today: what holds instead is in the module's siblings.


def post_m2(state_chi2_max: float, length: float) -> float:
    """`E_mu r^2 <= (1 + chi2_max)^T`: the second moment of the sequence ratio.

    The post states this, and it holds. It is an *upper* bound: it does not show that the second moment explodes. It
    does where KL(pi||mu) grows with the length, since `m2_at_least_by_kl`; a gap confined to a few tokens does not.
    At chi2_max = .01 and T = 200 it is 7.3, and the gap that this means is not "1% per token" but a ratio that is 10%
    off in root mean square.

    Args:
        state_chi2_max: largest chi-square of a state.
        length: T, most tokens of a sequence.

    Assumes: mu covers pi.

    Source: Li and Liu (2025), Part 2, Analysis 1.
    """
    return (1 + least("post_m2", "state_chi2_max", state_chi2_max, 0)) ** least("post_m2", "length", length, 0)


def post_seq_is_variance(seq_score_max: float, reward_max: float, m2: float, gradient_norm: float) -> float:
    """`Var(Seq-IS) <= K_S^2 R_max E_mu r^2 - |g|^2`: false.

    The post states this. The reward must be squared: with pi = mu uniform over two tokens and reward 4 everywhere the
    variance is 8 and this says 2. `seq_is_variance` is the corrected form.

    Args:
        seq_score_max: K_S, largest norm of the score of a sequence; its square is the post's M.
        reward_max: largest |R|.
        m2: `E_mu r^2` of sequences.
        gradient_norm: |g|.

    Assumes: that |R| <= 1, without saying so.

    Source: Li and Liu (2025), Part 2, Analysis 1.
    """
    positive("post_seq_is_variance", seq_score_max=seq_score_max, reward_max=reward_max, m2=m2)
    return seq_score_max**2 * reward_max * m2 - gradient_norm**2


def post_tv(state_tv_max: float, length: float) -> float:
    """`TV <= T Delta`: total variation of sequences, by the hybrid argument.

    The post states this, and it holds; `tv_by_coupling` is below it, and below 1.

    Args:
        state_tv_max: Delta, largest total variation of a state.
        length: T, most tokens of a sequence.

    Assumes: nothing.

    Source: Li and Liu (2025), Part 2, Analysis 2.
    """
    positive("post_tv", state_tv_max=state_tv_max, length=length)
    return length * state_tv_max


def post_naive_bias(f_max: float, tv: float) -> float:
    """`|bias of Naive| <= 2 K TV`.

    The post states this, and it holds; `naive_bias_by_hellinger` is as a rule the tightest of the better ones.

    Args:
        f_max: K, largest norm of R times the score of a sequence.
        tv: total variation of sequences; `post_tv` makes it the post's `2 K T Delta`.

    Assumes: nothing.

    Source: Li and Liu (2025), Part 2, Analysis 2.
    """
    positive("post_naive_bias", f_max=f_max, tv=tv)
    return 2 * f_max * tv


def post_quadratic_bias(reward_max: float, score_max: float, length: float, state_tv_max: float) -> float:
    """`|bias of Naive or Token-IS| <= 2 R_max K_s T^2 Delta`.

    The post states this for Naive, where it holds, and says that it is the same for Token-IS "because it comes from the
    sampling distribution". Seq-IS samples from mu as well, and has no bias: that is no proof. `token_is_bias` is one.
    As a rate `T^2` is never attained: over all rewards the worst bias grows as T, or `T^1.5` for rare gaps.

    Args:
        reward_max: largest |R|.
        score_max: K_s, largest norm of the score of a token.
        length: T, most tokens of a sequence.
        state_tv_max: Delta, largest total variation of a state.

    Assumes: nothing.

    Source: Li and Liu (2025), Part 2, Analysis 2.
    """
    return post_naive_bias(reward_max * score_max * length, post_tv(state_tv_max, length))


def post_naive_second_moment(reward_max: float, score_max: float, length: float) -> float:
    """`E |Naive|^2 <= (R_max K_s T)^2`.

    The post states this, and it holds. Scores are martingale differences, so on-policy it is linear in T:
    `on_policy_second_moment`; off-policy see `naive_second_moment`.

    Args:
        reward_max: largest |R|.
        score_max: K_s, largest norm of the score of a token.
        length: T, most tokens of a sequence.

    Assumes: nothing.

    Source: Li and Liu (2025), Part 2, Analysis 2.
    """
    positive("post_naive_second_moment", reward_max=reward_max, score_max=score_max, length=length)
    return (reward_max * score_max * length) ** 2


def post_token_second_moment(advantage_max: float, score_max: float, length: float, weight_m2: float) -> float:
    """`E |sum_t w_t A_t s_t|^2 <= (T A_max K_s)^2 E w^2`: of Token-IS and Token-TIS.

    The post states this with `E w^2 <= 1 + chi2_max` for Token-IS and C^2 for Token-TIS, and it holds. Under
    truncation `min(C, 1 + chi2_max)` holds as well, and with the reward of the whole sequence as advantage both are
    linear in T: `token_is_second_moment`.

    Args:
        advantage_max: largest |A|.
        score_max: K_s, largest norm of the score of a token.
        length: T, most tokens of a sequence.
        weight_m2: bound of `E_mu w^2` at every state.

    Assumes: nothing.

    Source: Li and Liu (2025), Part 2, Analyses 2 and 3.
    """
    positive("post_token_second_moment", advantage_max=advantage_max, score_max=score_max, length=length)
    positive("post_token_second_moment", weight_m2=weight_m2)
    return (length * advantage_max * score_max) ** 2 * weight_m2


def post_tis_variance(f_max: float, cap: float) -> float:
    """`Var(Seq-TIS) <= K^2 C^2`.

    The post states this, and it holds. `tis_second_moment` and `capped_second_moment` are linear in C.

    Args:
        f_max: K, largest norm of R times the score of a sequence.
        cap: C.

    Assumes: nothing.

    Source: Li and Liu (2025), Part 2, Seq-TIS.
    """
    positive("post_tis_variance", f_max=f_max, cap=cap)
    return (f_max * cap) ** 2


def post_tis_bias(f_max: float, chi2: float, cap: float) -> float:
    """`|bias of Seq-TIS| <= 2 K (1 + chi2) / C`.

    The post states this, and it holds with at least 8 to spare: `excess_by_moment` gives `K (1 + chi2) / (4 C)`. At a
    fixed gap per token chi2 itself grows exponentially in the length, and C would have to.

    Args:
        f_max: K, largest norm of R times the score of a sequence.
        chi2: of sequences.
        cap: C, over 0.

    Assumes: mu covers pi.

    Source: Li and Liu (2025), Part 2, Seq-TIS.
    """
    positive("post_tis_bias", f_max=f_max, chi2=chi2)
    return 2 * f_max * (1 + chi2) / over("post_tis_bias", "cap", cap, 0)


def post_tis_mse(f_max: float, chi2: float, cap: float, n: float = 1) -> float:
    """`MSE(Seq-TIS) <= (2 K (1 + chi2) / C)^2 + K^2 C^2 / N`.

    The post states this at N = 1, and it holds; its minimum over C is at `reweigh.caps.post_batch_cap`.

    Args:
        f_max: K, largest norm of R times the score of a sequence.
        chi2: of sequences.
        cap: C, over 0.
        n: N, sequences of the batch.

    Assumes: mu covers pi.

    Source: Li and Liu (2025), Part 2, The optimal balance.
    """
    return post_tis_bias(f_max, chi2, cap) ** 2 + post_tis_variance(f_max, cap) / least("post_tis_mse", "n", n, 1)


def post_limit(f_max: float, chi2: float) -> float:
    """`MSE(Seq-TIS at the post's cap) <= 4 K^2 (1 + chi2)`: "the fundamental limit".

    The post states this. As a bound it holds, but it is four times that of Seq-IS, `seq_is_mse`, which has no bias;
    and no limit: nothing in the post is a lower bound. `minimax_mse` is one.

    Args:
        f_max: K, largest norm of R times the score of a sequence.
        chi2: of sequences.

    Assumes: mu covers pi; a batch of one sequence.

    Source: Li and Liu (2025), Part 2, The optimal balance.
    """
    positive("post_limit", f_max=f_max, chi2=chi2)
    return 4 * f_max**2 * (1 + chi2)
