"""Which estimators are tried on records, and which cannot be: those that need a whole batch, turns or advantages."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reweigh.batch import Batch
from reweigh.estimators import Estimator
from reweigh.named import (
    NAMED,
    dppo_tv,
    geo_rs,
    k3_rs,
    naive,
    opsm,
    prefix_tis,
    seq_is,
    seq_mis,
    seq_tis,
    token_mis,
    token_tis,
    trm,
    turn_tis,
)

READS_BATCH = (
    "looks at a whole batch (it normalises, sorts or fits), and records are read in parts of no particular size: "
    "try its factors without that step, or call it on one batch"
)


@dataclass(frozen=True)
class Asked:
    """What a user wants tried.

    Attributes:
        estimators: by the name to show.
        refused: why others that were asked for are not tried, by name.
    """

    estimators: Mapping[str, Estimator]
    refused: Mapping[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def of(cls, estimators: Mapping[str, Estimator]) -> "Asked":
        """Tell those that records can be tried with from those whose result would depend on how they are cut."""
        wrong = {name: READS_BATCH for name, one in estimators.items() if one.reads_batch}
        return cls({name: one for name, one in estimators.items() if name not in wrong}, wrong)


def default_estimators(batch: Batch) -> dict[str, Estimator]:
    """Estimators worth trying, as one would write them; those that need turns or advantages only if the batch has them.

    Example:
        >>> import torch
        >>> from reweigh import Batch
        >>> list(default_estimators(Batch.padded(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1))))[:3]
        ['naive', 'token_tis(2)', 'prefix_tis(2)']
    """
    return possible(_worth_trying(), batch)


def all_estimators() -> dict[str, Estimator]:
    """Every named estimator as it is by default, and the default set; each once.

    Example:
        >>> found = all_estimators()
        >>> print("geo_rs(0.99, 1.01) * token_tis(2)" in found, "snis" in found, "vespo((2, 3), (3, 2))" in found)
        True True True
    """
    found = _worth_trying()
    for name, make in NAMED.items():
        one = make()
        if one not in found.values():
            found[_written(name, make)] = one
    return found


def possible(estimators: Mapping[str, Estimator], batch: Batch) -> dict[str, Estimator]:
    """Those of them that a batch has all columns for."""
    have = {"turns": batch.layout.turn is not None, "advantage": batch.advantage is not None}
    return {name: one for name, one in estimators.items() if all(have[column] for column in needs(one))}


def needs(estimator: Estimator) -> tuple[str, ...]:
    """Columns beside the log-probs that it reads: "turns", "advantage"."""
    turns = any(factor.level.unit == "turn" for factor in estimator.factors)
    sign = any(factor.sign for factor in estimator.factors)
    return (*(("turns",) if turns else ()), *(("advantage",) if sign else ()))


def refuse_batch_readers(estimators: Mapping[str, Estimator]) -> None:
    """Raise if what an estimator does depends on how the records are cut into batches."""
    for name, estimator in estimators.items():
        if estimator.reads_batch:
            raise ValueError(
                f"audit: {name} looks at a whole batch (it normalises, sorts or fits), and records are read "
                "in parts of no particular size\nhint: try its factors without that step, or call it on one batch."
            )


def _worth_trying() -> dict[str, Estimator]:
    return {
        "naive": naive(),
        "token_tis(2)": token_tis(2.0),
        "prefix_tis(2)": prefix_tis(2.0),
        "token_mis(0.5, 5)": token_mis(0.5, 5.0),
        "seq_is": seq_is(),
        "seq_tis(2)": seq_tis(2.0),
        "seq_mis(0, 2)": seq_mis(0.0, 2.0),
        "geo_rs(0.999, 1.001)": geo_rs(0.999, 1.001),
        "geo_rs(0.99, 1.01) * token_tis(2)": geo_rs(0.99, 1.01) * token_tis(2.0),
        "k3_rs(0.01)": k3_rs(0.01),
        "trm(0.1, 0.002)": trm(0.1, 0.002),
        "turn_tis(2)": turn_tis(2.0),
        "opsm(0.05)": opsm(0.05),
        "dppo_tv(0.2, 0.2)": dppo_tv(0.2, 0.2),
    }


def _written(name: str, make: Any) -> str:
    """`geo_rs(0.999, 1.001)`: a call with its default arguments."""
    values = [parameter.default for parameter in inspect.signature(make).parameters.values()]
    return f"{name}({', '.join(map(_value, values))})" if values else name


def _value(x: Any) -> str:
    return f"({', '.join(map(_value, x))})" if isinstance(x, tuple) else f"{x:g}"  # type: ignore[reportUnknownArgumentType]
