"""Ranges of what bounds are computed from."""

from collections.abc import Iterable


def positive(bound: str, **values: float) -> None:
    """Refuse a value that is negative or NaN.

    Raises:
        ValueError: with the name of the bound and of the value.
    """
    for name, value in values.items():
        least(bound, name, value, 0)


def series(bound: str, name: str, values: Iterable[float]) -> list[float]:
    """The values as a list, if none is negative or NaN.

    Raises:
        ValueError: with the name of the bound, and the place of the value.
    """
    return [least(bound, f"{name}[{t}]", x, 0) for t, x in enumerate(values)]


def least(bound: str, name: str, value: float, low: float) -> float:
    """The value, if it is at least `low`.

    Raises:
        ValueError: if it is less, or NaN.
    """
    if not value >= low:
        raise ValueError(f"{bound}: {name} must be >= {low:g}, got {value}")
    return value


def over(bound: str, name: str, value: float, low: float) -> float:
    """The value, if it is over `low`.

    Raises:
        ValueError: if it is not, or NaN.
    """
    if not value > low:
        raise ValueError(f"{bound}: {name} must be > {low:g}, got {value}")
    return value
