"""Bounds: given numbers, every one of them over random worlds by enumeration, where they are attained, and errors."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tabular import Tabular

from reweigh import SEQUENCE, Batch, RatioStats
from reweigh.caps import balance_cap, cubic_cap, post_cap
from reweigh.stats.sums import MOMENTS
from reweigh.theory import bounds
from reweigh.theory.bounds import BOUNDS, about
from reweigh.theory.laws import FiniteRatio, LogNormalRatio

GIVEN = json.loads((Path(__file__).parent / "data" / "golden_worlds.json").read_text())["instances"]
b = bounds


def law_of(world):
    seen = world.p_mu > 0
    with np.errstate(divide="ignore"):
        return FiniteRatio(np.log(world.rho[seen]), world.p_mu[seen])


def seq_mse(world, weight, n):
    estimator = weight[:, None] * world.f
    return world.bias(estimator) ** 2 + world.variance(estimator) / n


def golden_rows(w, C, low, high):
    """(what is bounded, the bound) by the names that the given numbers have."""
    n, law = w.numbers, law_of(w)
    T, K, Ks, R, D, F = n["T"], n["K"], n["K_s"], n["R_max"], n["Delta"], n["F_mu"]
    A = max(n["A_max"], n["A_mu_max"])
    rho, f = w.rho, w.f
    tis, mis = np.minimum(rho, C)[:, None] * f, np.where(rho <= C, rho, 0)[:, None] * f
    length = w.live.sum(1)
    band = (rho ** (1 / length) >= low) & (rho ** (1 / length) <= high)
    advantage = {"Amu": w.advantage(w.mu), "Api": w.advantage(w.pi)}
    tok = {name: w.weighted(w.ratio, a) for name, a in advantage.items()}
    tok_r, clipped = w.weighted(w.ratio), w.weighted(np.minimum(w.ratio, C), advantage["Amu"])
    chi2, excess = n["chi2"], law.excess(C)
    cap, cubic, post = balance_cap(law, 64), cubic_cap(chi2, 64), post_cap(chi2)
    tv, F_sum = n["tv"], (n["F_mu"], n["F_pi"])
    kl = n["kl_max"]
    seq = w.variance(rho[:, None] * f)
    loose = (R * Ks * (math.sqrt(T) * (1 + 2 * D) + 2 * T * D)) ** 2  # a slightly weaker form
    return {
        "TV<=sum E_dmu TV_t": (tv, b.tv_by_states(n["tv_t"])),
        "TV<=T*Delta_max": (tv, b.post_tv(D, T)),
        "TV<=1-(1-Delta)^T": (tv, b.tv_by_coupling(D, T)),
        "TV<=sqrt(KL(mu|pi)/2)": (tv, b.tv_by_kl(n["kl_mu_pi"])),
        "TV<=sqrt(1-exp(-KL))": (tv, math.sqrt(1 - math.exp(-n["kl_mu_pi"]))),
        "TV<=sqrt(chi2)/2": (tv, b.tv_by_chi2(chi2)),
        "TV<=sqrt(h2(2-h2))": (tv, b.tv_by_hellinger(n["hellinger2"])),
        "m2<=(1+chi2max)^T": (n["m2"], b.post_m2(n["chi2_max"], T)),
        "(1+chi2min)^T<=m2": (b.m2_at_least(n["chi2_min"], int(length.min())), n["m2"]),
        "exp(KL(pi|mu))<=m2": (b.m2_at_least_by_kl(n["kl_pi_mu"]), n["m2"]),
        "seqIS var POST: M*Rmax*m2-|g|^2": (seq, b.post_seq_is_variance(n["K_S"], R, n["m2"], n["g_norm"])),
        "seqIS var: M*Rmax^2*m2-|g|^2": (seq, b.seq_is_variance(n["K_S"] * R, n["m2"], n["g_norm"])),
        "seqIS var: K^2*m2-|g|^2": (seq, b.seq_is_variance(K, n["m2"], n["g_norm"])),
        "naive bias<=2K TV": (w.bias(f), b.post_naive_bias(K, tv)),
        "naive bias<=2 K T Delta": (w.bias(f), b.post_naive_bias(K, b.post_tv(D, T))),
        "naive bias<=2 Rmax Ks T^2 Delta": (w.bias(f), b.post_quadratic_bias(R, Ks, T, D)),
        "naive bias<=sqrt(2TV (Fmu+Fpi))": (w.bias(f), b.naive_bias_by_tv(tv, *F_sum)),
        "naive bias<=sqrt(chi2 Fmu)": (w.bias(f), b.naive_bias_by_chi2(chi2, F)),
        "naive bias<=2H sqrt(Fmu+Fpi)": (w.bias(f), b.naive_bias_by_hellinger(n["hellinger2"], *F_sum)),
        "naive bias<=2Rmax*(T^1.5 Delta) conc.": (w.bias(f), b.naive_bias_by_concentration(R, Ks, T, D, tv)),
        "naive 2nd<=Rmax^2 Ks^2 T^2": (F, b.post_naive_second_moment(R, Ks, T)),
        "naive 2nd<=Rmax^2Ks^2(sqrtT(1+2D)+2TD)^2": (F, loose),
        "on-policy 2nd: F_pi<=Rmax^2 Ks^2 T": (n["F_pi"], b.on_policy_second_moment(R, Ks, T)),
        "tokIS_R bias<=2RmaxKs sum TV(pi,h_t)": (w.bias(tok_r), b.token_is_bias_by_hybrids(R, Ks, n["hybrid"])),
        "tokIS_R bias<=2RmaxKs T(T-1)Delta": (w.bias(tok_r), b.token_is_bias(R, Ks, T, D)),
        "tokIS_R bias<=Rmax sqrt(E|U-rhoS|^2)": (w.bias(tok_r), b.token_is_bias_by_martingale(R, n["gap2"])),
        "tokIS_R bias<=RmaxKs T sqrt(2(T-1)klmax)": (w.bias(tok_r), b.token_is_bias_by_kl(R, Ks, T, kl)),
        "tokIS_Api bias<=sum 2TV(d_t)sup|G_t|": (w.bias(tok["Api"]), b.state_bias(n["visit_tv"], n["gain"])),
        "tokIS_Api bias<=RmaxKs T(T-1)Delta": (w.bias(tok["Api"]), b.token_is_bias(R, Ks, T, D) / 2),
        "tokIS_R 2nd<=Rmax^2Ks^2 T(1+chi2max)": (
            w.second(tok_r),
            b.token_is_second_moment(R, Ks, T, 1 + n["chi2_max"]),
        ),
        "tokIS_Amu 2nd<=T^2 A^2Ks^2(1+chi2max)": (
            w.second(tok["Amu"]),
            b.post_token_second_moment(A, Ks, T, 1 + n["chi2_max"]),
        ),
        "tokIS_Api 2nd<=T^2 A^2Ks^2(1+chi2max)": (
            w.second(tok["Api"]),
            b.post_token_second_moment(A, Ks, T, 1 + n["chi2_max"]),
        ),
        "tokTIS_Amu 2nd<=T^2C^2A^2Ks^2": (w.second(clipped), b.post_token_second_moment(A, Ks, T, C**2)),
        "tokTIS_Amu 2nd<=T^2 min(C,1+chi2)A^2Ks^2": (
            w.second(clipped),
            b.post_token_second_moment(A, Ks, T, min(C, 1 + n["chi2_max"])),
        ),
        "seqTIS bias<=2K m2/C": (w.bias(tis), b.post_tis_bias(K, chi2, C)),
        "seqTIS bias<=K E(rho-C)+": (w.bias(tis), b.tis_bias(K, excess)),
        "seqTIS bias<=K m2/(4C)": (w.bias(tis), b.tis_bias(K, b.excess_by_moment(C, 2, n["m2"]))),
        "seqTIS bias<=K chi2/(4(C-1))": (w.bias(tis), b.tis_bias(K, b.excess_by_chi2(C, chi2))),
        "seqTIS bias<=K TV": (w.bias(tis), b.tis_bias(K, tv)),
        "seqTIS var<=K^2C^2": (w.variance(tis), b.post_tis_variance(K, C)),
        "seqTIS 2nd<=C F_pi": (w.second(tis), b.capped_second_moment(C, n["F_pi"])),
        "seqTIS 2nd<=K^2 E min^2": (w.second(tis), b.tis_second_moment(K, law.min2(C))),
        "seqMIS bias<=K P_pi(rho>C)": (w.bias(mis), b.mis_bias(K, law.lost(C))),
        "seqMIS bias<=K m2/C": (w.bias(mis), K * n["m2"] / C),
        "seqMIS bias<=K C TV/(C-1)": (w.bias(mis), K * C * tv / (C - 1)),
        "seqMIS bias<=K C chi2/(C-1)^2": (w.bias(mis), K * C * chi2 / (C - 1) ** 2),
        "seqMIS 2nd<=C F_pi": (w.second(mis), b.capped_second_moment(C, n["F_pi"])),
        "geoRS bias<=K E|1_band-rho|": (w.bias(band[:, None] * f), b.geo_bias(K, w.mean(abs(band - rho)))),
        "POST MSE(C*)<=4K^2 m2 (N=1)": (seq_mse(w, np.minimum(rho, post), 1), b.post_limit(K, chi2)),
        "POST-bound vs Seq-IS bound: 4K^2m2 <= K^2m2": (b.post_limit(K, chi2), b.seq_is_mse(K, n["m2"])),
        "balanced MSE_N<=K^2(b^2+Emin2/N)": (
            seq_mse(w, np.minimum(rho, cap), 64),
            b.tis_mse(K, law.excess(cap), law.min2(cap), 64),
        ),
        "cubic MSE_N<=.75K^2(m2/N)^(2/3)": (
            seq_mse(w, np.minimum(rho, cubic), 64),
            b.tis_mse_cubic(K, n["m2"], 64),
        ),
        "seqTIS(C=1) MSE_N<=K^2(TV^2+1/N)": (seq_mse(w, np.minimum(rho, 1), 64), b.tis_mse_at_one(K, tv, 64)),
        "TRM classical T(T-1)dl": (n["surrogate_error"], b.surrogate_classical(R, T, kl)),
        "TRM Pinsker-marginal 4/3 T^1.5 dl": (n["surrogate_error"], b.surrogate_by_pinsker(R, T, kl)),
        "TRM mixed 2T sqrt(dl KLseq)": (n["surrogate_error"], b.surrogate_mixed(R, T, kl, n["kl_mu_pi"])),
        "TRM adaptive 4 sum Dbar_t min(..)": (n["surrogate_error"], b.surrogate_adaptive(R, n["tv_t"], D, kl)),
    }


@pytest.mark.parametrize("given", [x for x in GIVEN if "bounds" in x], ids=lambda x: x["name"])
def test_given_bounds(given):
    rows = golden_rows(Tabular.of_record(given), given["C"], given["lo"], given["hi"])
    expected = {x["name"]: (x["lhs"], x["rhs"]) for x in given["bounds"]}
    assert set(rows) == set(expected)
    wrong = {k: (rows[k], v) for k, v in expected.items() if rows[k] != pytest.approx(v, rel=1e-11, abs=1e-14)}
    assert not wrong


def rows(w, C, N):
    """(name, what is bounded, the bound) of every bound in `BOUNDS`: names of one bound may come more than once."""
    n, law = w.numbers, law_of(w)
    T, K, Ks, R, H, D = n["T"], n["K"], n["K_s"], n["R_max"], n["half_range"], n["Delta"]
    tv, chi2, m2, kl, kl_max = n["tv"], n["chi2"], n["m2"], n["kl_mu_pi"], n["kl_max"]
    rho, f, length = w.rho, w.f, w.live.sum(1)
    api, amu = w.advantage(w.pi), w.advantage(w.mu)
    seq, tis, mis = (x[:, None] * f for x in (rho, np.minimum(rho, C), np.where(rho <= C, rho, 0)))
    tok, tok_tis = w.weighted(w.ratio), w.weighted(np.minimum(w.ratio, C))
    prefix = w.ratio.cumprod(1)
    low, high = 1 - 0.1 * C, 1 + 0.1 * C
    geo = rho ** (1 / length)
    band = (geo >= low) & (geo <= high)
    w2, A = 1 + n["chi2_max"], n["A_max"]
    excess, lost = b.excess_at_most(C, chi2, tv), b.lost_at_most(C, chi2, tv)
    excess_t = w.mean(np.where(w.live, np.maximum(w.ratio - C, 0), 0))
    excess_prefix = w.mean(np.where(w.live, np.maximum(prefix - C, 0), 0))
    naive, token, error = w.bias(f), w.bias(tok), n["surrogate_error"]
    moments = n["F_mu"], n["F_pi"]
    yield "post_m2", m2, b.post_m2(n["chi2_max"], T)
    yield "post_tv", tv, b.post_tv(D, T)
    yield "post_naive_bias", naive, b.post_naive_bias(K, tv)
    yield "post_quadratic_bias", max(naive, token), b.post_quadratic_bias(R, Ks, T, D)
    yield "post_naive_second_moment", n["F_mu"], b.post_naive_second_moment(R, Ks, T)
    yield "post_token_second_moment", w.second(w.weighted(w.ratio, api)), b.post_token_second_moment(A, Ks, T, w2)
    clipped = w.weighted(np.minimum(w.ratio, C), api)
    yield "post_token_second_moment", w.second(clipped), b.post_token_second_moment(A, Ks, T, min(C, C * C, w2))
    yield "post_tis_variance", w.variance(tis), b.post_tis_variance(K, C)
    yield "post_tis_bias", w.bias(tis), b.post_tis_bias(K, chi2, C)
    yield "post_tis_mse", seq_mse(w, np.minimum(rho, C), N), b.post_tis_mse(K, chi2, C, N)
    yield "post_limit", seq_mse(w, np.minimum(rho, post_cap(chi2)), 1), b.post_limit(K, chi2)
    yield "tv_by_states", tv, b.tv_by_states(n["tv_t"])
    yield "tv_by_coupling", tv, b.tv_by_coupling(D, T)
    yield "tv_by_kl", tv, b.tv_by_kl(kl)
    yield "tv_by_kl", tv, b.tv_by_kl(n["kl_pi_mu"])
    yield "tv_by_chi2", tv, b.tv_by_chi2(chi2)
    yield "tv_by_hellinger", tv, b.tv_by_hellinger(n["hellinger2"])
    yield "m2_at_least", b.m2_at_least(n["chi2_min"], int(length.min())), m2
    yield "m2_at_least_by_kl", b.m2_at_least_by_kl(n["kl_pi_mu"]), m2
    for power in (1.2, 2, 3):
        yield "excess_by_moment", law.excess(C), b.excess_by_moment(C, power, w.mean(rho**power))
    yield "excess_by_chi2", law.excess(C), b.excess_by_chi2(C, chi2)
    yield "excess_at_most", law.excess(C), excess
    yield "min2_at_most", law.min2(C), b.min2_at_most(C, chi2)
    yield "lost_at_most", law.lost(C), lost
    yield "seq_is_variance", w.variance(seq), b.seq_is_variance(K, m2, n["g_norm"])
    yield "seq_is_mse", seq_mse(w, rho, N), b.seq_is_mse(K, m2, N)
    yield "tis_bias", w.bias(tis), b.tis_bias(K, law.excess(C))
    yield "tis_second_moment", w.second(tis), b.tis_second_moment(K, law.min2(C))
    yield "capped_second_moment", max(w.second(tis), w.second(mis)), b.capped_second_moment(C, n["F_pi"])
    yield "tis_mse", seq_mse(w, np.minimum(rho, C), N), b.tis_mse(K, law.excess(C), law.min2(C), N)
    yield "tis_mse_cubic", seq_mse(w, np.minimum(rho, cubic_cap(chi2, N)), N), b.tis_mse_cubic(K, m2, N)
    yield "tis_mse_at_one", seq_mse(w, np.minimum(rho, 1), N), b.tis_mse_at_one(K, tv, N)
    yield "mis_bias", w.bias(mis), b.mis_bias(K, law.lost(C))
    yield "mis_bias", w.bias((band * rho)[:, None] * f), b.mis_bias(K, w.mean(rho * ~band))
    yield "mis_mse", seq_mse(w, np.where(rho <= C, rho, 0), N), b.mis_mse(K, law.lost(C), law.mis_m2(C), N)
    yield "geo_bias", w.bias(band[:, None] * f), b.geo_bias(K, w.mean(abs(band - rho)))
    yield "gradient_norm", n["g_norm"], b.gradient_norm(H, Ks, T)
    yield "on_policy_second_moment", n["F_pi"], b.on_policy_second_moment(R, Ks, T)
    yield "naive_second_moment", n["F_mu"], b.naive_second_moment(R, Ks, T, D)
    yield "naive_bias_by_tv", naive, b.naive_bias_by_tv(tv, *moments)
    yield "naive_bias_by_hellinger", naive, b.naive_bias_by_hellinger(n["hellinger2"], *moments)
    yield "naive_bias_by_chi2", naive, b.naive_bias_by_chi2(chi2, n["F_mu"])
    yield "naive_bias_by_concentration", naive, b.naive_bias_by_concentration(R, Ks, T, D, tv)
    yield "naive_bias_by_concentration", naive, b.naive_bias_by_concentration(R, Ks, T, D, b.tv_by_coupling(D, T))
    for bias in (token, w.bias(w.weighted(w.ratio, amu))):
        yield "token_is_bias", bias, b.token_is_bias(H, Ks, T, D)
        yield "token_is_bias_by_kl", bias, b.token_is_bias_by_kl(H, Ks, T, kl_max)
        yield "token_is_bias_by_hybrids", bias, b.token_is_bias_by_hybrids(H, Ks, n["hybrid"])
        yield "token_is_bias_by_hybrids", bias, b.token_is_bias_by_hybrids(H, Ks, n["hybrid_live"], n["longer"])
        yield "token_is_bias_by_martingale", bias, b.token_is_bias_by_martingale(H, n["gap2"])
    state = w.bias(w.weighted(w.ratio, api))
    yield "state_bias", state, b.state_bias(n["visit_tv"], n["gain"])
    yield "state_bias", state, b.token_is_bias(H, Ks, T, D) / 2
    yield "token_is_second_moment", w.second(tok), b.token_is_second_moment(R, Ks, T, w2)
    yield "token_tis_second_moment", w.second(tok_tis), b.token_tis_second_moment(R, Ks, T, w2, D, C)
    drift = max(n["gain"]) / (A * Ks) if A > 0 else 0.0
    yield "token_second_moment", w.second(w.weighted(w.ratio, api)), b.token_second_moment(A, Ks, T, w2, drift)
    yield "truncation_bias", np.linalg.norm(w.mean(tok - tok_tis)), b.truncation_bias(R, Ks, excess_t)
    capped = w.weighted(np.minimum(prefix, C), api)
    yield "truncation_bias", w.bias(capped), b.truncation_bias(A, Ks, excess_prefix)
    yield "surrogate_classical", error, b.surrogate_classical(H, T, kl_max)
    yield "surrogate_by_pinsker", error, b.surrogate_by_pinsker(H, T, kl_max)
    yield "surrogate_mixed", error, b.surrogate_mixed(H, T, kl_max, kl)
    yield "surrogate_adaptive", error, b.surrogate_adaptive(H, n["tv_t"], D, kl_max)
    yield "surrogate_estimable", error, b.surrogate_estimable(H, n["future"])
    bias, mse = snis(w)
    yield "snis_bias", bias, b.snis_bias(K, m2, 2)
    yield "snis_mse", mse, b.snis_mse(K, m2, 2)
    # No estimator beats it: not even the best cap for the worst reward, whose error the balance cap attains.
    cap = balance_cap(law, N)
    yield "minimax_mse", K**2 * law.minimax(N), b.tis_mse(K, law.excess(cap), law.min2(cap), N)
    mass = np.argsort(rho)[len(rho) // 2 :]
    yield "minimax_mse", b.minimax_mse(K, w.p_pi[mass].sum(), w.p_mu[mass].sum(), N), b.seq_is_mse(K, m2, N)


def snis(w):
    """Bias and error of the self-normalised estimator of two sequences, over all pairs."""
    share = w.rho[:, None] / (w.rho[:, None] + w.rho)
    pairs = np.outer(w.p_mu, w.p_mu)
    two = share[..., None] * w.f[:, None] + (1 - share)[..., None] * w.f - w.g
    return np.linalg.norm(np.tensordot(pairs, two, 2)), np.tensordot(pairs, np.square(two).sum(-1), 2)


# Of these there is a world where they fail, or they are thresholds and bound nothing.
NO_BOUND = {"post_seq_is_variance", "unsupported_bias", "artefacts_for_mis"}
WORLDS = [Tabular.random(seed) for seed in range(60)]


@pytest.mark.parametrize(("C", "N"), [(0.3, 1), (1.0, 16), (1.5, 3), (4.0, 1000)])
def test_every_bound_holds_in_random_worlds(C, N):
    broken, seen = [], set()
    for seed, w in enumerate(WORLDS):
        for name, value, bound in rows(w, C, N):
            seen.add(name)
            if not value <= bound * (1 + 1e-9) + 1e-12:
                broken.append((name, seed, value, bound))
    assert not broken
    assert seen | NO_BOUND == {x.__name__ for x in BOUNDS}


def test_random_worlds_are_of_all_kinds():
    chi2 = [w.numbers["chi2"] for w in WORLDS]
    assert min(chi2) < 0.01
    assert max(chi2) > 10
    assert {w.eos for w in WORLDS} == {None, 0}
    assert {w.order for w in WORLDS} == {None, 0, 1}


def test_the_posts_variance_of_seq_is_is_false():
    """Two equal policies over two tokens and a reward of 4: the variance is 8, not 2."""
    half = np.array([[0.5, 0.5]])
    n = (w := Tabular(half, half, [()], 1, None, [4.0, 4.0], None)).numbers
    value = w.variance(w.rho[:, None] * w.f)
    assert value == pytest.approx(8)
    stated = b.post_seq_is_variance(n["K_S"], n["R_max"], n["m2"], n["g_norm"])
    assert stated == pytest.approx(2)
    assert b.seq_is_variance(n["K_S"] * n["R_max"], n["m2"], n["g_norm"]) == pytest.approx(8)
    assert any(
        w.variance(w.rho[:, None] * w.f)
        > b.post_seq_is_variance(w.numbers["K_S"], w.numbers["R_max"], w.numbers["m2"], w.numbers["g_norm"])
        for w in WORLDS
    )


def test_the_posts_limit_is_four_times_the_bound_of_no_cap():
    assert b.post_limit(2.0, 3.0) == 4 * b.seq_is_mse(2.0, 4.0) == 64
    assert b.post_tis_mse(2.0, 3.0, post_cap(3.0)) == pytest.approx(b.post_limit(2.0, 3.0))
    assert b.post_tis_bias(2.0, 3.0, 5.0) == pytest.approx(8 * b.tis_bias(2.0, b.excess_by_moment(5.0, 2, 4.0)))


def test_growth_that_the_post_prints():
    assert b.post_m2(0.01, 200) == pytest.approx(7.316, abs=1e-3)
    assert b.post_m2(0.05, 200) == pytest.approx(17292.6, abs=0.1)
    assert b.post_m2(1e-4, 200) == pytest.approx(1.02, abs=1e-3)


def test_published_surrogate_bounds():
    """4,096 tokens at a KL of 1e-4, rewards with a range of 2; in [0, 1] all are half."""
    for scale in (1.0, 0.5):
        assert b.surrogate_classical(scale, 4096, 1e-4) == pytest.approx(1677 * scale, abs=0.5)
        assert b.surrogate_by_pinsker(scale, 4096, 1e-4) == pytest.approx(35.0 * scale, abs=0.05)
        assert b.surrogate_mixed(scale, 4096, 1e-4, 0.01) == pytest.approx(8.2 * scale, abs=0.01)
    assert b.surrogate_adaptive(1.0, [0.1, 0.2, 0.3], 0.05) == pytest.approx(4 * (0.1 * 0.1 + 0.2 * 0.05))
    assert b.surrogate_adaptive(1.0, [0.3]) == 0  # one token: ratio and surrogate agree


def test_bounds_of_truncation_are_attained():
    """f of norm 1 wherever r > C, and of one direction: then bias and second moment are the bounds."""
    law = FiniteRatio(np.log([0.5, 1.0, 4.0]), np.array([0.8, 0.1, 0.1]))
    weight = np.minimum(np.exp(law.log_ratio), 2.0)
    assert law.mean(np.exp(law.log_ratio) - weight) == pytest.approx(b.tis_bias(1.0, law.excess(2.0)))
    assert law.mean(weight**2) == pytest.approx(b.tis_second_moment(1.0, law.min2(2.0)))
    # Two outcomes, r = 2 C or 0: the inequality of means is an equality.
    two = FiniteRatio(np.array([-np.inf, math.log(6.0)]), np.array([5 / 6, 1 / 6]))
    assert two.excess(3.0) == pytest.approx(b.excess_by_moment(3.0, 2, two.m2))
    assert two.lost(5.999) == pytest.approx(b.lost_at_most(5.999, two.chi2), rel=1e-3)


def test_truncation_pays_up_to_64_27ths_of_the_second_moment():
    for n, pays in ((2, True), (64 / 27 * 4 - 0.01, True), (64 / 27 * 4 + 0.01, False), (100, False)):
        assert (b.tis_mse_cubic(1.0, 4.0, n) < b.seq_is_mse(1.0, 4.0, n)) == pays


def test_the_balance_cap_is_near_what_no_estimator_can_beat():
    for s2, n, ratio in ((4, 16, 1.4), (4, 64, 1.7), (4, 1024, 2.8), (9, 16, 1.09), (9, 64, 1.16), (9, 1024, 1.40)):
        law = LogNormalRatio(s2)
        cap = balance_cap(law, n)
        assert b.tis_mse(1.0, law.excess(cap), law.min2(cap), n) / law.minimax(n) == pytest.approx(ratio, rel=0.03)


def test_truncated_support_leaves_a_bias_that_no_weight_removes():
    given = next(x for x in GIVEN if x["mu_mask"] is not None)
    w = Tabular.of_record(given)
    missing = 1 - w.mean(w.rho)
    assert missing == pytest.approx(0.13024015091023472, rel=1e-12)
    assert 0 < w.bias(w.rho[:, None] * w.f) <= b.unsupported_bias(w.numbers["K"], missing)


def test_sums_over_live_tokens_need_the_lengths():
    """One first token ends the sequence: mu nearly always stops there, pi goes on, and all later ratios are 1."""
    go_on = np.array([0.5, 0.5])
    rows = [(), (1,), (1, 0), (1, 1)]
    pi, mu = (np.stack([first, go_on, go_on, go_on]) for first in (np.array([0.1, 0.9]), np.array([0.9, 0.1])))
    leaves = Tabular(pi, mu, rows, 3, 0, [], None).leaves
    w = Tabular(pi, mu, rows, 3, 0, [float(y[1:2] == (1,)) for y in leaves], None)
    n, bias = w.numbers, w.bias(w.weighted(w.ratio))
    assert sum(n["hybrid_live"]) == pytest.approx(0, abs=1e-15)
    assert n["longer"] == pytest.approx(0.8 * 1.5)
    assert 0.1 < bias <= b.token_is_bias_by_hybrids(0.5, n["K_s"], n["hybrid_live"], n["longer"])
    assert bias <= b.token_is_bias_by_hybrids(0.5, n["K_s"], n["hybrid"])


def test_stats_keep_what_bounds_the_bias_of_token_is():
    """`sum_t (r_t - r)_+` over three sequences, worked out here."""
    log_ratio = torch.tensor([[0.3, -0.2], [0.1, 0.4], [-0.5, 0.2]], dtype=torch.float64)
    stats = RatioStats.of(Batch.padded(log_ratio - 3, torch.full_like(log_ratio, -3), torch.ones(3, 2)), SEQUENCE)
    r = log_ratio.exp()
    expected = (r - r.prod(1, keepdim=True)).clamp(min=0).sum()
    assert float(stats.moments[MOMENTS.index("hybrid")].sum()) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize(
    ("artefacts", "cap", "choice"),
    [(1.0, 2.0, "tis"), (1.0, 1.0, "tis"), (0.74, 3.0, "tis"), (0.76, 3.0, "mis"), (0.56, 10.0, "mis")],
)
def test_tis_or_mis(artefacts, cap, choice):
    assert b.tis_or_mis(artefacts, cap) == choice
    if choice == "mis":  # the two biases by hand, with genuine excess 2 and P(r > C) = 1
        tis, mis = ((1 - artefacts) * 2 + artefacts * (cap - 1), (1 - artefacts) * (2 + cap) + artefacts)
        assert mis < tis


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b.tv_by_kl(0.5), 0.5),  # sqrt(.5 / 2) is below sqrt(1 - e^-.5) = .627
        (b.tv_by_kl(4.0), math.sqrt(1 - math.exp(-4.0))),
        (b.excess_at_most(3.0, chi2=2.0), 0.25),  # 3 / 12 and 2 / 8 agree at C = (1 + chi2)
        (b.excess_at_most(2.0, chi2=0.4), 0.1),
        (b.excess_at_most(2.0, chi2=8.0, tv=0.3), 0.3),
        (b.excess_at_most(0.5, chi2=0.2, tv=0.1), 0.6),  # below 1 the total variation says nothing
        (b.excess_at_most(0.0), 1.0),
        (b.min2_at_most(3.0, chi2=1.0), 2.0),
        (b.min2_at_most(1.5, chi2=1.0), 1.5),
        (b.min2_at_most(0.5, chi2=1.0), 0.25),
        (b.lost_at_most(10.0, chi2=1.0), 10 / 81),
        (b.lost_at_most(1.5, chi2=0.2), 0.8),
        (b.lost_at_most(3.0, tv=0.2), 0.3),
        (b.lost_at_most(0.0), 1.0),
        (b.unsupported_bias(3.0, 0.1), 0.3),
        (b.mis_mse(2.0, 0.5, 3.0, 4), 4 * (0.25 + 0.75)),
        (b.snis_mse(3.0, 2.0, 8), 9.0),  # 4 * 9 * 2 / 8
        (b.snis_mse(3.0, 2.0, 1), 36.0),
        (b.snis_bias(3.0, 2.0, 8), 2 * 3 * math.sqrt(2) / 8),
        (b.minimax_mse(2.0, 0.5, 0.1, 3), 0.729),
        (b.minimax_mse(2.0, 1.0, 1.0, 1), 0.0),
        (b.gradient_norm(2.0, 3.0, 4), 12.0),
        (b.naive_second_moment(2.0, 3.0, 4, 0.25), (6 * (2 + 2)) ** 2),
        (b.token_is_bias_by_hybrids(2.0, 3.0, [0.1, 0.2], 0.5), 6 * 1.1),
        (b.state_bias([0.1, 0.2], [3.0, 5.0]), 2.6),
        (b.token_second_moment(2.0, 3.0, 4, 2.25, 0.5), (6 * (3 + 2)) ** 2),
        (b.token_tis_second_moment(2.0, 3.0, 4, 9.0, 0.5, 2.25), (6 * (3 + 2)) ** 2),
        (b.token_tis_second_moment(2.0, 3.0, 4, 9.0, 0.5, 0.25), (6 * (1 + 1)) ** 2),
        (b.truncation_bias(2.0, 3.0, [0.1, 0.3]), 2.4),
        (b.surrogate_estimable(0.5, [0.1, 0.3]), 0.4),
    ],
)
def test_by_hand(value, expected):
    assert value == pytest.approx(expected, rel=1e-12)


def test_no_gap_no_bias():
    assert b.naive_bias_by_concentration(1.0, 1.0, 10, 0.0, 0.0) == 0
    assert b.snis_bias(1.0, 1.0, 8) == 0
    assert b.excess_by_chi2(2.0, 0.0) == b.excess_at_most(1.0, 0.0, 0.0) == b.lost_at_most(1.5, 0.0) == 0
    assert b.token_is_bias(1.0, 1.0, 1, 0.5) == 0  # one token: Token-IS is Seq-IS


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda f: f.__name__)
def test_bounds_say_what_they_are(bound):
    told = about(bound)
    assert told.name == bound.__name__
    assert len(told.formula) > 8
    assert told.assumes.endswith(".")
    assert told.source.endswith(".")
    assert ("the post states" in bound.__doc__.lower()) == bound.__name__.startswith("post_")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: b.post_tis_bias(1.0, 1.0, 0.0), "post_tis_bias: cap must be > 0, got 0.0"),
        (lambda: b.tis_mse(1.0, 0.1, 1.0, 0.5), "tis_mse: n must be >= 1, got 0.5"),
        (lambda: b.naive_bias_by_chi2(math.nan, 1.0), "naive_bias_by_chi2: chi2 must be >= 0, got nan"),
        (lambda: b.tv_by_states([0.1, -0.1]), r"tv_by_states: state_tv\[1\] must be >= 0, got -0.1"),
        (lambda: b.excess_by_moment(1.0, 1.0, 1.0), "cap must be > 0 and power > 1, got cap=1.0, power=1.0"),
        (lambda: b.excess_by_moment(0.0, 2.0, 1.0), "cap must be > 0 and power > 1, got cap=0.0, power=2.0"),
        (lambda: b.state_bias([0.1], [0.1, 0.2]), "one entry a step is needed of both, got 1 and 2"),
        (lambda: b.tis_or_mis(1.2, 3.0), r"artefacts must be a share in \[0, 1\], got 1.2"),
        (lambda: b.token_is_bias(1.0, 1.0, 0, 0.1), "token_is_bias: length must be >= 1, got 0"),
        (lambda: about(len), "the documentation of len lacks its formula"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
