"""Claims 12 to 16: variance of what corrects nothing or each token by itself, and the bias of what corrects nothing."""

import torch

from reweigh import bounds as b
from reweigh.estimators import Estimator
from reweigh.lab.claims.claim import Claim, Evidence
from reweigh.lab.claims.material import NUMBER, broken, exponent, slack
from reweigh.lab.worst_case import WorstCase, worst_case
from reweigh.named import naive, token_is

LENGTHS = (64, 256)
# A gap that many tokens share, and one in a rare token.
SMOOTH = torch.tensor([[0.5, 0.3, 0.2], [0.495, 0.3, 0.205]], dtype=torch.float64)
RARE = torch.tensor([[0.5994, 0.3996, 0.001], [0.599994, 0.399996, 0.00001]], dtype=torch.float64)
WIDE = torch.tensor([[0.5, 0.3, 0.2], [0.3, 0.3, 0.4]], dtype=torch.float64)


def _at(policies: torch.Tensor, estimator: Estimator) -> tuple[WorstCase, WorstCase]:
    first, second = (worst_case(policies[0], policies[1], t, estimator) for t in LENGTHS)
    return first, second


def _second_power(policies: torch.Tensor, estimator: Estimator) -> float:
    first, second = _at(policies, estimator)
    return exponent((first.second_moment, second.second_moment), LENGTHS)


def _bias_power(policies: torch.Tensor, estimator: Estimator) -> float:
    first, second = _at(policies, estimator)
    return exponent((first.bias, second.bias), LENGTHS)


def _naive_variance() -> Evidence:
    near, far = _second_power(SMOOTH, naive()), _second_power(WIDE, naive())
    sharp, post = "naive 2nd<=Rmax^2Ks^2(sqrtT(1+2D)+2TD)^2", "naive 2nd<=Rmax^2 Ks^2 T^2"
    on = broken("on-policy 2nd: F_pi<=Rmax^2 Ks^2 T")
    return Evidence(
        near < 1.1 and far > 1.8 and broken(post) + broken(sharp) + on == 0,
        f"Worst |R| <= 1, iid tokens, T = 64 to 256: the second moment grows as T^{near:.2f} at Delta = .005, and as "
        f"T^{far:.2f} at Delta = .2, so it does depend on the mismatch. All bounds hold in {NUMBER} worlds; the "
        f"post's has a median slack of {slack(post):.1f}, that of E_pi |f|^2 <= R_max^2 K_s^2 T "
        f"{slack('on-policy 2nd: F_pi<=Rmax^2 Ks^2 T'):.1f}.",
    )


def _token_variance() -> Evidence:
    near, far = _second_power(SMOOTH, token_is()), _second_power(WIDE, token_is())
    post, sharp = "tokIS_Amu 2nd<=T^2 A^2Ks^2(1+chi2max)", "tokIS_R 2nd<=Rmax^2Ks^2 T(1+chi2max)"
    return Evidence(
        abs(near - 1) < 0.01 and abs(far - 1) < 0.01 and broken(post) + broken(sharp) == 0,
        f"Worst |R| <= 1, iid tokens, T = 64 to 256: T^{near:.3f} at Delta = .005 and T^{far:.3f} at Delta = .2. In "
        f"{NUMBER} worlds both bounds hold; median slack {slack(post):.1f} for the post's, {slack(sharp):.1f} for "
        "the linear one.",
    )


def _naive_bias() -> Evidence:
    post, best = "naive bias<=2K TV", "naive bias<=2H sqrt(Fmu+Fpi)"
    return Evidence(
        broken(post) + broken(best) == 0,
        f"Holds in all of {NUMBER} worlds, median slack {slack(post):.1f}; by Hellinger {slack(best):.1f}.",
    )


def _hybrid() -> Evidence:
    names = {
        "sum of E_mu TV(s_t)": "TV<=sum E_dmu TV_t",
        "T Delta": "TV<=T*Delta_max",
        "1 - (1 - Delta)^T": "TV<=1-(1-Delta)^T",
        "Hellinger": "TV<=sqrt(h2(2-h2))",
        "Pinsker": "TV<=sqrt(KL(mu|pi)/2)",
        "sqrt(chi2) / 2": "TV<=sqrt(chi2)/2",
    }
    failed = sum(broken(n) for n in names.values())
    said = ", ".join(f"{short} {slack(n):.2f}" for short, n in names.items())
    return Evidence(
        failed == 0 and slack("TV<=sqrt(h2(2-h2))") < slack("TV<=sum E_dmu TV_t"),
        f"{failed} failures in {NUMBER} worlds; median slack: {said}.",
    )


def _quadratic() -> Evidence:
    smooth, rare = _bias_power(SMOOTH, naive()), _bias_power(RARE, naive())
    smooth_token, rare_token = _bias_power(SMOOTH, token_is()), _bias_power(RARE, token_is())
    held = broken("naive bias<=2 Rmax Ks T^2 Delta")
    first, second = _at(SMOOTH, naive())
    score = float((torch.eye(3).double() - SMOOTH[0]).norm(dim=1).max())
    times = [b.post_quadratic_bias(1.0, score, w.length, 0.005) / w.bias for w in (first, second)]
    return Evidence(
        held == 0 and max(smooth, smooth_token) < 1.1 and max(rare, rare_token) < 1.65 and times[1] > 3 * times[0],
        f"Largest bias over all |R| <= 1, exact, T = 64 to 256: T^{smooth:.2f} (Naive) and T^{smooth_token:.2f} "
        f"(Token-IS) for a gap that tokens share, T^{rare:.2f} and T^{rare_token:.2f} for one in a rare token. The "
        f"post's bound is {times[0]:.0f} times the truth at T = 64 and {times[1]:.0f} times at T = 256; it holds in "
        f"{NUMBER} worlds ({held} failures).",
    )


NAIVE = (
    Claim(
        number=12,
        title="Variance of Naive",
        post="The variance of Naive is O(T^2), whatever the mismatch.",
        verdict="LOOSE",
        why="Scores are martingale differences under pi, so their sum has a second moment that is linear in T. "
        "Under mu they drift, by at most 2 Delta K_s a token.",
        sharper="E |R S|^2 <= R_max^2 K_s^2 (sqrt(T) + 2 T Delta)^2: O(T + T^2 Delta^2), with Delta the largest "
        "total variation of a state.",
        use="`reweigh.bounds.naive_second_moment`. Long sequences are cheaper on-policy than the table of the post "
        "says.",
        evidence=_naive_variance,
    ),
    Claim(
        number=13,
        title="Variance of Token-IS",
        post="The variance of Token-IS is O(T^2 (1 + chi2)).",
        verdict="LOOSE",
        why="True. With the reward of the whole sequence, r_t s_t are martingale differences under mu, so T will do "
        "in place of T^2.",
        sharper="E |R sum r_t s_t|^2 <= R_max^2 K_s^2 T (1 + chi2_max). With an advantage for each token the "
        "mismatch multiplies only the part that is linear in T.",
        use="`reweigh.bounds.token_is_second_moment`, `token_second_moment`.",
        evidence=_token_variance,
    ),
    Claim(
        number=14,
        title="Bias of Naive by total variation",
        post="|bias of Naive| <= 2 sup |f| TV(mu, pi).",
        verdict="OK",
        why="Holds; sup |f| is paid where the mean of |f|^2 would do.",
        sharper="|bias| <= 2 H sqrt(E_mu |f|^2 + E_pi |f|^2), with H the Hellinger distance of sequences.",
        use="`reweigh.bounds.naive_bias_by_hellinger`: H has a bounded estimator, 1 - mean sqrt(r).",
        evidence=_naive_bias,
    ),
    Claim(
        number=15,
        title="Total variation by the hybrid argument",
        post="TV <= sum_t E_mu TV(s_t) <= T Delta.",
        verdict="OK",
        why="Holds, and so do several that are closer.",
        sharper="1 - (1 - Delta)^T; sqrt(H^2 (2 - H^2)); sqrt(KL / 2) and sqrt(1 - e^-KL); sqrt(chi2) / 2.",
        use="From logs, mean (1 - r)_+ estimates TV itself: it is in [0, 1], so its interval is honest.",
        evidence=_hybrid,
    ),
    Claim(
        number=16,
        title="The bias of Naive is O(T^2 Delta)",
        post="Both factors grow linearly, so the bias grows quadratically with the length.",
        verdict="LOOSE",
        why="As an upper bound it holds. The two factors are never large together: where |f| is of order T, the "
        "policies differ by little mass. T^2 is not attained by any reward.",
        sharper="The worst case is of order T sqrt(chi2_state) for a gap that tokens share and T^1.5 Delta for one "
        "in rare events: O(T^1.5 Delta + T^2 Delta^2) by concentration.",
        use="`reweigh.bounds.naive_bias_by_concentration`, `naive_bias_by_chi2`; `reweigh.lab.worst_case` is exact.",
        evidence=_quadratic,
    ),
)
