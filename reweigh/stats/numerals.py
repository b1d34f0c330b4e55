"""Numbers as a reader wants them: two significant digits, more only as far as the interval allows."""

import math

from reweigh.stats.intervals import Number

_PLAIN = (-4, 6)  # powers of ten that are written out
_MOST_DIGITS = 5  # beyond it an interval is tighter than anybody reads
_LARGEST = math.log(1e300)  # nats; beyond it a weight is written as a power of e
_OVER = ">1e308"  # what a float64 cannot hold
_ROUNDING = 1e-9  # this near to 1 a share is 1: sums of float32 within a sequence
SMALLEST = 1e-12  # below it a number is written as 0: rounding of sums in float64


def plain(x: float | None) -> float | None:
    """None for what JSON has not got."""
    return x if x is not None and math.isfinite(x) else None


def count(n: int, word: str) -> str:
    """`1 token`, `1,024 tokens`."""
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def two(x: float) -> str:
    """Two significant digits.

    Example:
        >>> two(0.012345), two(12345), two(0.0000123), two(1.0)
        ('0.012', '12,000', '1.2e-05', '1.0')
    """
    return digits(x, 2)


def digits(x: float, count: int) -> str:
    """So many significant digits, in plain notation from 0.0001 to a million."""
    if abs(x) < SMALLEST:
        return "0"
    if not math.isfinite(x):
        return "-" if math.isnan(x) else _OVER if x > 0 else f"-{_OVER}"
    rounded = float(f"{x:.{count - 1}e}")
    exponent = math.floor(math.log10(abs(rounded)))
    if not _PLAIN[0] <= exponent < _PLAIN[1]:
        return f"{x:.{count - 1}e}"
    return f"{rounded:,.{max(0, count - 1 - exponent)}f}"


def of_log(log_x: float) -> str:
    """Two significant digits of a number given by its logarithm, however large.

    Example:
        >>> of_log(0.0), of_log(812.3)
        ('1.0', 'e^812')
    """
    return f"e^{log_x:,.0f}" if log_x > _LARGEST else two(math.exp(log_x))


def share(x: float) -> str:
    """A share in percent: 0% and 100% only where it is so, else as many digits as tell it from either.

    Example:
        >>> share(0.123), share(0.99962), share(0.0004), share(1.0)
        ('12%', '99.96%', '0.040%', '100%')
    """
    if not math.isfinite(x):
        return "-"
    if abs(x) < SMALLEST or abs(1 - x) < _ROUNDING or x > 1:
        return f"{x:.0%}"
    percent = 100 * x
    missing = min(percent, 100 - percent)
    # 12% and 98% need no decimals, 1.2% and 99.6% one: on the high side it is what is missing that counts.
    decimals = max(0, (1 if percent < 50 else 0) - math.floor(math.log10(missing)))
    return f"{percent:.{min(decimals, 6)}f}%"


def interval(number: Number) -> tuple[str, str]:
    """Value and `[low, high]` with as many digits as the interval's width supports; empty where there is none."""
    value, low, high = number.value, number.low, number.high
    if value is None:
        return ("refused" if number.refused else "-"), ""
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return two(value), ""
    half, size = (high - low) / 2, max(abs(value), SMALLEST)
    exponent = math.floor(math.log10(size))
    spare = exponent - math.floor(math.log10(half)) + 1 if half > SMALLEST else _MOST_DIGITS
    if spare < 1 or not _PLAIN[0] <= exponent < _PLAIN[1]:
        return two(value), f"[{two(low)}, {two(high)}]"
    decimals = max(0, min(max(2, spare), _MOST_DIGITS) - 1 - exponent)
    value, low, high = (f"{x:,.{decimals}f}" if abs(x) >= SMALLEST else "0" for x in (value, low, high))
    return value, f"[{low}, {high}]"
