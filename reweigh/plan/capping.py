"""The caps of the lab's rules at a batch size: from the model, and from the sequences of records."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from reweigh.adaptive import CapRule, balance, cubic, post, post_batch, sqrt_n
from reweigh.caps import balance_cap, cubic_cap, mis_balance_cap, post_batch_cap, post_cap, sqrt_n_cap
from reweigh.named import seq_mis, seq_tis
from reweigh.plan.expect import Expected, expect
from reweigh.plan.law import MixedRatio
from reweigh.plan.trust import CHI2_TRUSTED, Figure, Trust
from reweigh.tradeoff_caps import tradeoff, tradeoff_cap


@final
@dataclass(frozen=True)
class Capping:
    """One rule.

    Attributes:
        rule: its name in `reweigh.caps` or `reweigh.adaptive`.
        cap: under the model; a ratio pi/mu.
        expected: what truncation at it (for `mis_balance`: rejection) does under the model; None where there is no cap.
        on_data: the cap from the records' sequences; None without records, or where no sample can tell.
    """

    rule: str
    cap: Figure
    expected: Expected | None
    on_data: float | None


def cappings(law: MixedRatio, n: float, log_ratio: NDArray[np.float64] | None = None) -> tuple[Capping, ...]:
    """Every rule's cap of the sequence ratio.

    Args:
        law: the model.
        n: sequences in a step, at least 1.
        log_ratio: of the records' sequences, nats.

    Raises:
        ValueError: if n is below 1.
    """
    chi2 = law.chi2
    trust: Trust = "good" if chi2 <= CHI2_TRUSTED else "rough"
    found: dict[str, Figure] = {
        "balance": Figure(balance_cap(law, n), trust),
        "mis_balance": Figure(mis_balance_cap(law, n), trust),
        "tradeoff": Figure(tradeoff_cap(law, n), trust),
        "sqrt_n": Figure(sqrt_n_cap(n)),
        "post": _known(post_cap, chi2),
        "post_batch": _known(lambda x: post_batch_cap(x, n), chi2),
        "cubic": _known(lambda x: cubic_cap(x, n), chi2),
    }
    rules: Mapping[str, CapRule] = {
        "balance": balance(n=n),
        "tradeoff": tradeoff(n=n),
        "sqrt_n": sqrt_n(n=n),
        "post": post(n=n),
        "post_batch": post_batch(n=n),
        "cubic": cubic(n=n),
    }
    out: list[Capping] = []
    for name, cap in found.items():
        estimator = None if cap.value is None else (seq_mis(0.0, cap.value) if "mis" in name else seq_tis(cap.value))
        on_data = None
        if log_ratio is not None and name in rules:
            l = torch.as_tensor(log_ratio, dtype=torch.float64)
            on_data = float(rules[name].log_cap(l, torch.ones_like(l, dtype=torch.bool)).exp())
        out.append(Capping(name, cap, None if estimator is None else expect(estimator, law), on_data))
    return tuple(out)


def _known(rule: Callable[[float], float], chi2: float) -> Figure:
    """A cap that follows from the chi-square itself, which the model does not know once it is over 1."""
    return Figure(rule(chi2)) if chi2 <= CHI2_TRUSTED else Figure(None, "refused")
