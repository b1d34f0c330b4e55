"""Rules that choose the cap of a truncated ratio."""

import math


def post_cap(chi2: float) -> float:
    """`C = sqrt(2 (1 + chi2))`: the cap of the blog post, from the chi-square of pi from mu at the level to cap.

    It minimises the post's bound on the error of *one* sequence. It ignores the batch size (the same bounds give
    `sqrt(2 (1 + chi2)) N^(1/4)`), and its bound is four times that of no cap at all, so read it as a starting point.

    Args:
        chi2: at least 0; infinite gives no cap.

    Returns:
        A ratio pi/mu, at least sqrt(2).

    Raises:
        ValueError: if chi2 is negative or NaN: no chi-square is.

    Example:
        >>> post_cap(1.0)
        2.0

    Source: Li and Liu (2025), Part 2, The optimal balance.
    """
    if not chi2 >= 0:
        raise ValueError(f"post_cap: chi2 must be >= 0, got {chi2}")
    return math.sqrt(2 * (1 + chi2))
