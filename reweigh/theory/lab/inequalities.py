"""The inequalities of a golden file by name: both sides, from exact results and the library's bounds."""

import math

import torch

from reweigh.caps import Balance, Cubic, Post
from reweigh.named import geo_rs, naive, seq_is, seq_mis, seq_tis, token_is, token_tis
from reweigh.theory import bounds as b
from reweigh.theory.lab.distances import Distances, Norms, StateDistances, ratio_law
from reweigh.theory.lab.exact import Advantage, exact, prefixes
from reweigh.theory.lab.world import World

Sides = tuple[float, float]


def inequalities(
    world: World, d: Distances, k: Norms, cap: float, band: tuple[float, float], n: float
) -> dict[str, Sides]:
    """Left and right side of every inequality, by the file's name for it.

    Args:
        world: of the instance.
        d: its distances.
        k: its constants.
        cap: C.
        band: of the geometric ratio.
        n: N, of the bounds that ask for a batch size.
    """
    out = _token_truncated(world, k, cap) | _sequence(world, d, k, cap, band) | _mse(world, d, k, n)
    for part in (_divergences, _naive, _token, _surrogate):
        out |= part(world, d, k)
    return out


def _divergences(world: World, d: Distances, k: Norms) -> dict[str, Sides]:
    states, length = StateDistances.of(world.policies), world.policies.length
    delta, fewest = float(states.tv.max()), float(world.sequences.lengths.min())
    return {
        "TV<=sum E_dmu TV_t": (d.tv, b.tv_by_states([d.tv_tokens])),
        "TV<=T*Delta_max": (d.tv, b.post_tv(delta, length)),
        "TV<=1-(1-Delta)^T": (d.tv, b.tv_by_coupling(delta, length)),
        # `tv_by_kl` is the smaller of the next two.
        "TV<=sqrt(KL(mu|pi)/2)": (d.tv, math.sqrt(d.kl_mu_pi / 2)),
        "TV<=sqrt(1-exp(-KL))": (d.tv, math.sqrt(-math.expm1(-d.kl_mu_pi))),
        "TV<=sqrt(chi2)/2": (d.tv, b.tv_by_chi2(d.chi2)),
        "TV<=sqrt(h2(2-h2))": (d.tv, b.tv_by_hellinger(max(0.0, d.hellinger2))),
        "m2<=(1+chi2max)^T": (d.m2, b.post_m2(float(states.chi2.max()), length)),
        "(1+chi2min)^T<=m2": (b.m2_at_least(float(states.chi2.min()), fewest), d.m2),
        "exp(KL(pi|mu))<=m2": (b.m2_at_least_by_kl(max(0.0, d.kl_pi_mu)), d.m2),
    }


def _naive(world: World, d: Distances, k: Norms) -> dict[str, Sides]:
    plain, length = exact(world, naive()), world.policies.length
    delta, bias = float(StateDistances.of(world.policies).tv.max()), plain.bias_norm
    second = b.token_second_moment(k.reward, k.score_token, length, (1 + 2 * delta) ** 2, 2 * delta)
    return {
        "naive bias<=2K TV": (bias, b.post_naive_bias(k.integrand, d.tv)),
        "naive bias<=2 K T Delta": (bias, b.post_naive_bias(k.integrand, b.post_tv(delta, length))),
        "naive bias<=2 Rmax Ks T^2 Delta": (bias, b.post_quadratic_bias(k.reward, k.score_token, length, delta)),
        "naive bias<=sqrt(2TV (Fmu+Fpi))": (bias, b.naive_bias_by_tv(d.tv, k.integrand2_mu, k.integrand2_pi)),
        "naive bias<=sqrt(chi2 Fmu)": (bias, b.naive_bias_by_chi2(d.chi2, k.integrand2_mu)),
        "naive bias<=2H sqrt(Fmu+Fpi)": (
            bias,
            b.naive_bias_by_hellinger(max(0.0, d.hellinger2), k.integrand2_mu, k.integrand2_pi),
        ),
        "naive bias<=2Rmax*(T^1.5 Delta) conc.": (
            bias,
            b.naive_bias_by_concentration(k.reward, k.score_token, length, delta, d.tv),
        ),
        "naive 2nd<=Rmax^2 Ks^2 T^2": (
            plain.second_moment,
            b.post_naive_second_moment(k.reward, k.score_token, length),
        ),
        "naive 2nd<=Rmax^2Ks^2(sqrtT(1+2D)+2TD)^2": (plain.second_moment, second),
        "on-policy 2nd: F_pi<=Rmax^2 Ks^2 T": (
            k.integrand2_pi,
            b.on_policy_second_moment(k.reward, k.score_token, length),
        ),
    }


def _token(world: World, d: Distances, k: Norms) -> dict[str, Sides]:
    # The file has the largest |R| where half the range of R would do.
    states, length = StateDistances.of(world.policies), world.policies.length
    delta, weight_m2 = float(states.tv.max()), 1 + float(states.chi2.max())
    raw, of_pi, of_mu = (exact(world, token_is(), a) for a in (None, Advantage("pi"), Advantage("mu")))
    post = b.post_token_second_moment(_largest_advantage(world), k.score_token, length, weight_m2)
    token, whole = (e(world.batch).per_token for e in (token_is(), seq_is()))
    gap2 = float(world.mu @ world.sampled.square_norms(token - whole))  # E_mu |sum_t r_t s_t - r S|^2
    return {
        "tokIS_R bias<=2RmaxKs sum TV(pi,h_t)": (
            raw.bias_norm,
            b.token_is_bias_by_hybrids(k.reward, k.score_token, d.tv_one_step),
        ),
        "tokIS_R bias<=2RmaxKs T(T-1)Delta": (
            raw.bias_norm,
            b.token_is_bias(k.reward, k.score_token, length, delta),
        ),
        "tokIS_R bias<=Rmax sqrt(E|U-rhoS|^2)": (raw.bias_norm, b.token_is_bias_by_martingale(k.reward, gap2)),
        "tokIS_R bias<=RmaxKs T sqrt(2(T-1)klmax)": (
            raw.bias_norm,
            b.token_is_bias_by_kl(k.reward, k.score_token, length, float(states.kl_mu_pi.max())),
        ),
        "tokIS_Api bias<=sum 2TV(d_t)sup|G_t|": (of_pi.bias_norm, b.state_bias(d.tv_states, _signal(world))),
        "tokIS_Api bias<=RmaxKs T(T-1)Delta": (
            of_pi.bias_norm,
            b.token_is_bias(k.reward / 2, k.score_token, length, delta),
        ),
        "tokIS_R 2nd<=Rmax^2Ks^2 T(1+chi2max)": (
            raw.second_moment,
            b.token_is_second_moment(k.reward, k.score_token, length, weight_m2),
        ),
        "tokIS_Amu 2nd<=T^2 A^2Ks^2(1+chi2max)": (of_mu.second_moment, post),
        "tokIS_Api 2nd<=T^2 A^2Ks^2(1+chi2max)": (of_pi.second_moment, post),
    }


def _token_truncated(world: World, k: Norms, cap: float) -> dict[str, Sides]:
    second = exact(world, token_tis(cap), Advantage("mu")).second_moment
    weight_m2 = 1 + float(StateDistances.of(world.policies).chi2.max())
    largest, length = _largest_advantage(world), world.policies.length
    return {
        "tokTIS_Amu 2nd<=T^2C^2A^2Ks^2": (
            second,
            b.post_token_second_moment(largest, k.score_token, length, cap**2),
        ),
        "tokTIS_Amu 2nd<=T^2 min(C,1+chi2)A^2Ks^2": (
            second,
            b.post_token_second_moment(largest, k.score_token, length, min(cap, weight_m2)),
        ),
    }


def _sequence(world: World, d: Distances, k: Norms, cap: float, band: tuple[float, float]) -> dict[str, Sides]:
    plain, tis, mis = (exact(world, e) for e in (seq_is(), seq_tis(cap), seq_mis(0.0, cap)))
    at, f = weights_at(world, cap), k.integrand
    kept = geo_rs(*band)(world.batch).keep.double()
    r = seq_is()(world.batch).per_unit
    out = {
        "seqIS var POST: M*Rmax*m2-|g|^2": (
            plain.trace_cov,
            b.post_seq_is_variance(k.score, k.reward, d.m2, k.gradient),
        ),
        "seqIS var: M*Rmax^2*m2-|g|^2": (
            plain.trace_cov,
            b.seq_is_variance(k.score * k.reward, d.m2, k.gradient),
        ),
        "seqIS var: K^2*m2-|g|^2": (plain.trace_cov, b.seq_is_variance(f, d.m2, k.gradient)),
        "seqTIS bias<=2K m2/C": (tis.bias_norm, b.post_tis_bias(f, d.chi2, cap)),
        "seqTIS bias<=K E(rho-C)+": (tis.bias_norm, b.tis_bias(f, at["E_excess"])),
        "seqTIS bias<=K m2/(4C)": (tis.bias_norm, b.tis_bias(f, b.excess_by_moment(cap, 2, d.m2))),
        "seqTIS bias<=K chi2/(4(C-1))": (tis.bias_norm, b.tis_bias(f, b.excess_by_chi2(cap, d.chi2))),
        "seqTIS bias<=K TV": (tis.bias_norm, b.tis_bias(f, d.tv)),
        "seqTIS var<=K^2C^2": (tis.trace_cov, b.post_tis_variance(f, cap)),
        "seqTIS 2nd<=C F_pi": (tis.second_moment, b.capped_second_moment(cap, k.integrand2_pi)),
        "seqTIS 2nd<=K^2 E min^2": (tis.second_moment, b.tis_second_moment(f, at["E_min2"])),
        "seqMIS bias<=K P_pi(rho>C)": (mis.bias_norm, b.mis_bias(f, at["P_pi_gt"])),
        # `lost_at_most` is the smallest of the next three and 1.
        "seqMIS bias<=K m2/C": (mis.bias_norm, b.mis_bias(f, d.m2 / cap)),
        "seqMIS 2nd<=C F_pi": (mis.second_moment, b.capped_second_moment(cap, k.integrand2_pi)),
        "geoRS bias<=K E|1_band-rho|": (
            exact(world, geo_rs(*band)).bias_norm,
            b.geo_bias(f, float(world.mu @ (kept - r).abs()) + d.unsupported),
        ),
    }
    if cap > 1:
        out["seqMIS bias<=K C TV/(C-1)"] = (mis.bias_norm, b.mis_bias(f, cap / (cap - 1) * d.tv))
        out["seqMIS bias<=K C chi2/(C-1)^2"] = (mis.bias_norm, b.mis_bias(f, cap / (cap - 1) ** 2 * d.chi2))
    return out


def _mse(world: World, d: Distances, k: Norms, n: float) -> dict[str, Sides]:
    law, f = ratio_law(world), k.integrand
    balance = Balance(n=n).of_law(law)

    def mse(cap: float, n: float) -> float:
        return exact(world, seq_tis(cap)).mse(n)

    return {
        "POST MSE(C*)<=4K^2 m2 (N=1)": (mse(Post().of_chi2(d.chi2), 1), b.post_limit(f, d.chi2)),
        "POST-bound vs Seq-IS bound: 4K^2m2 <= K^2m2": (b.post_limit(f, d.chi2), b.seq_is_mse(f, d.m2)),
        "balanced MSE_N<=K^2(b^2+Emin2/N)": (
            mse(balance, n),
            b.tis_mse(f, law.excess(balance), law.min2(balance), n),
        ),
        "cubic MSE_N<=.75K^2(m2/N)^(2/3)": (mse(Cubic(n=n).of_chi2(d.chi2), n), b.tis_mse_cubic(f, d.m2, n)),
        "seqTIS(C=1) MSE_N<=K^2(TV^2+1/N)": (mse(1.0, n), b.tis_mse_at_one(f, d.tv, n)),
    }


def _surrogate(world: World, d: Distances, k: Norms) -> dict[str, Sides]:
    # The file has the published constants, for rewards of size up to the largest |R|.
    states, length = StateDistances.of(world.policies), world.policies.length
    s, mu = world.sampled, world.mu
    ratio = world.batch.log_ratio.exp()
    first_order = torch.where(s.mask, ratio - 1, 0).sum(-1)
    error = abs(world.value_pi - world.value_mu - float(mu @ (world.sampled_reward * first_order)))
    kl, delta = float(states.kl_mu_pi.max()), float(states.tv.max())
    by_step = (mu[:, None] * torch.where(s.mask, states.tv[s.row], 0)).sum(0).tolist()
    return {
        "TRM classical T(T-1)dl": (error, b.surrogate_classical(k.reward, length, kl)),
        "TRM Pinsker-marginal 4/3 T^1.5 dl": (error, b.surrogate_by_pinsker(k.reward, length, kl)),
        "TRM mixed 2T sqrt(dl KLseq)": (error, b.surrogate_mixed(k.reward, length, kl, d.kl_mu_pi)),
        "TRM adaptive 4 sum Dbar_t min(..)": (error, b.surrogate_adaptive(k.reward, by_step, delta, kl)),
    }


def _largest_advantage(world: World) -> float:
    return max(float(Advantage(p).of(world).abs().max()) for p in ("mu", "pi"))


def _signal(world: World) -> list[float]:
    """Find the largest norm of `E_pi[A^pi s]` at a state of each step."""
    s = world.sequences
    out: list[float] = []
    coef = torch.zeros_like(s.log_pi)
    coef[s.sampled] = Advantage("pi").of(world)
    for t in range(world.policies.length):
        group, count = prefixes(s, t)
        here = torch.zeros_like(coef)
        here[:, t] = coef[:, t]
        rest = s.log_pi[:, t:].sum(-1).exp()
        rows = s.each(here)[torch.arange(len(s.tokens)), s.slot[:, t]] * rest[:, None]
        mean = rows.new_zeros(count, rows.shape[1]).index_add(0, group, rows)
        out.append(float(mean.norm(dim=-1).max()))
    return out


def weights_at(world: World, cap: float) -> dict[str, float]:
    """Measure what truncation and rejection at a cap leave, by the library's weights."""
    law = ratio_law(world)
    truncated, rejected = (e(world.batch).per_unit for e in (seq_tis(cap), seq_mis(0.0, cap)))
    return {
        "E_excess": law.excess(cap),
        "E_min": float(world.mu @ truncated),
        "E_min2": float(world.mu @ truncated.square()),
        "P_mu_gt": law.above(cap),
        "P_pi_gt": law.lost(cap),
        "E_mis2": float(world.mu @ rejected.square()),
    }
