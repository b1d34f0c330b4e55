"""Every bound by its name, each a function that gives a number and says what it assumes and where it is from.

Names that open with `post_` are the blog post's, as it states them; all others hold under what they assume.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass

from reweigh.theory.bounds.divergence import (
    excess_at_most,
    excess_by_chi2,
    excess_by_moment,
    lost_at_most,
    m2_at_least,
    m2_at_least_by_kl,
    min2_at_most,
    surrogate_adaptive,
    surrogate_by_pinsker,
    surrogate_classical,
    surrogate_estimable,
    surrogate_mixed,
    tv_by_chi2,
    tv_by_coupling,
    tv_by_hellinger,
    tv_by_kl,
    tv_by_states,
)
from reweigh.theory.bounds.estimators import (
    artefacts_for_mis,
    capped_second_moment,
    geo_bias,
    gradient_norm,
    minimax_mse,
    mis_bias,
    mis_mse,
    naive_bias_by_chi2,
    naive_bias_by_concentration,
    naive_bias_by_hellinger,
    naive_bias_by_tv,
    naive_second_moment,
    on_policy_second_moment,
    seq_is_mse,
    seq_is_variance,
    snis_bias,
    snis_mse,
    state_bias,
    tis_bias,
    tis_mse,
    tis_mse_at_one,
    tis_mse_cubic,
    tis_second_moment,
    token_is_bias,
    token_is_bias_by_hybrids,
    token_is_bias_by_kl,
    token_is_bias_by_martingale,
    token_is_second_moment,
    token_second_moment,
    token_tis_second_moment,
    truncation_bias,
    unsupported_bias,
)
from reweigh.theory.bounds.estimators import (
    tis_or_mis as tis_or_mis,
)
from reweigh.theory.bounds.post import (
    post_limit,
    post_m2,
    post_naive_bias,
    post_naive_second_moment,
    post_quadratic_bias,
    post_seq_is_variance,
    post_tis_bias,
    post_tis_mse,
    post_tis_variance,
    post_token_second_moment,
    post_tv,
)

# fmt: off
BOUNDS: tuple[Callable[..., float], ...] = (
    post_m2, post_seq_is_variance, post_tv, post_naive_bias, post_quadratic_bias, post_naive_second_moment,
    post_token_second_moment, post_tis_variance, post_tis_bias, post_tis_mse, post_limit, tv_by_states,
    tv_by_coupling, tv_by_kl, tv_by_chi2, tv_by_hellinger, m2_at_least, m2_at_least_by_kl, excess_by_moment,
    excess_by_chi2, excess_at_most, min2_at_most, lost_at_most, seq_is_variance, seq_is_mse, unsupported_bias,
    geo_bias, snis_mse, snis_bias, minimax_mse, tis_bias, tis_second_moment, capped_second_moment, tis_mse,
    tis_mse_cubic, tis_mse_at_one, mis_bias, mis_mse, artefacts_for_mis, gradient_norm, on_policy_second_moment,
    naive_second_moment, naive_bias_by_hellinger, naive_bias_by_chi2, naive_bias_by_tv,
    naive_bias_by_concentration, token_is_bias, token_is_bias_by_kl, token_is_bias_by_hybrids,
    token_is_bias_by_martingale, state_bias, token_is_second_moment, token_tis_second_moment, token_second_moment,
    truncation_bias, surrogate_classical, surrogate_by_pinsker, surrogate_mixed, surrogate_adaptive,
    surrogate_estimable,
)
# fmt: on
"""All of them, in reading order."""


@dataclass(frozen=True)
class About:
    """A bound's account of itself.

    Attributes:
        name: its name.
        formula: in words and letters, as its documentation opens.
        assumes: what it needs to hold.
        source: where it is from.
    """

    name: str
    formula: str
    assumes: str
    source: str


def about(bound: Callable[..., float]) -> About:
    """Read what a bound of `BOUNDS` says of itself in its documentation.

    Raises:
        ValueError: if it lacks a part of it, as all do under `python -OO`.

    Example:
        >>> print(about(tis_bias).formula)
        |bias of Seq-TIS| <= K E_mu (r - C)_+
    """
    doc = inspect.getdoc(bound) or ""
    parts = [
        re.search(p, doc, re.M | re.S)
        for p in (r"`(.+?)`", *(rf"^{x}: (.+?)(?=\n\n|\Z)" for x in ("Assumes", "Source")))
    ]
    if None in parts:
        raise ValueError(f"about: the documentation of {bound.__name__} lacks its formula, Assumes: or Source:")
    formula, assumes, source = (" ".join(p[1].split()) for p in parts if p)
    return About(bound.__name__, formula, assumes, source)
