"""The gradient that each method means, and how much it is off by chance, against the one that pi's own answers give."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from reweigh.experiment.train import Method, Rollouts, Training

BATCHES = 32  # of 128 answers: from pi, and as many from mu
SEED = 5
CAPS = (1.0, 2.0, 4.0, 8.0, 16.0, 64.0)
METHODS = (
    *("naive()", "token_is()", "token_tis(2)", "prefix_tis(2)", "ppo_clip", "geo_rs(0.95, 1.05) * token_tis(2)"),
    *("seq_mis(0, 2)", "seq_is()", "snis()", "seq_tis(Balance())", "seq_tis(Tradeoff())", "seq_tis(Post())"),
    *(f"seq_tis({cap:g})" for cap in CAPS),
)
NUMBERS = ("cosine", "bias", "noise", "efficiency", "mse")
"""Of a batch's gradient: cosine of its mean with the true gradient, squared length of its bias, its variance and its
mean squared error, each over the squared length of the true gradient, and the share of the possible gain that is
guaranteed (`Moments.efficiency`)."""


def measure(
    training: Training, methods: Sequence[str] = METHODS, batches: int = BATCHES
) -> dict[str, dict[str, tuple[float, float]] | None]:
    """Measure each method's gradient where a run is, on batches that the run itself does not see.

    The true gradient is that of the reward under pi, from answers of pi itself; a method's is of the engine's answers.
    Both have the mean of the prompt's other answers for a baseline, which biases neither. Squared lengths and products
    are of different batches, so that noise adds nothing to them in the mean.

    Args:
        training: between its sampling and its update; it is left as it was.
        methods: names, as of `Method.of`.
        batches: from each policy; the cost is a backward pass a method and batch.

    Returns:
        By method, each of `NUMBERS` with its standard error, from leaving out each batch in turn. None where the true
        gradient cannot be told from 0, as where pi has no reward at all: there is nothing to compare with.
    """
    draws = torch.Generator().manual_seed(SEED)
    training.model.eval()
    parameters = list(training.model.parameters())
    found: dict[str, list[Tensor]] = {name: [] for name in methods}
    true: list[Tensor] = []
    for _ in range(batches):
        true += _gradient(training, training.drawn(draws, from_pi=True), ["naive()"], parameters)
        mine = _gradient(training, training.drawn(draws), methods, parameters)
        for name, gradient in zip(methods, mine, strict=True):
            found[name].append(gradient)
    training.model.train()
    exact = torch.stack(true).double()
    return {name: _compared(torch.stack(rows).double(), exact) for name, rows in found.items()}


def _gradient(
    training: Training, rolled: Rollouts, methods: Sequence[str], parameters: Sequence[Tensor]
) -> list[Tensor]:
    """Ascent direction of each method on one batch, flat."""
    answers = training.setting.answers
    rewards = rolled.rewards.view(-1, answers)
    advantage = (rewards - (rewards.sum(1, keepdim=True) - rewards) / (answers - 1)).flatten()
    law, log_pi, batch = training.batch_of(rolled, advantage)
    out: list[Tensor] = []
    for name in methods:
        loss, _ = Method.of(name).objective(law, log_pi, batch, advantage)
        parts = torch.autograd.grad(-loss, parameters, retain_graph=True)
        out.append(torch.cat([part.flatten() for part in parts]))
    return out


def _compared(rows: Tensor, exact: Tensor) -> dict[str, tuple[float, float]] | None:
    """Numbers of a method from its batches' gradients and the true ones, each with a jackknife's standard error."""
    own, both, true = rows @ rows.T, rows @ exact.T, exact @ exact.T
    if min(_between(_without(true, i, i)) for i in range(len(exact))) <= 0:
        return None
    whole = _numbers(own, both, true)
    by_rows = [_numbers(_without(own, i, i), _without(both, i, None), true) for i in range(len(rows))]
    by_true = [_numbers(own, _without(both, None, i), _without(true, i, i)) for i in range(len(exact))]
    errors = {name: math.sqrt(_jackknife(by_rows, name) + _jackknife(by_true, name)) for name in NUMBERS}
    return {name: (_short(whole[name]), _short(errors[name])) for name in NUMBERS}


def _numbers(own: Tensor, both: Tensor, true: Tensor) -> dict[str, float]:
    n = len(own)
    mean2, along, true2 = _between(own), float(both.mean()), _between(true)
    each = float(own.diagonal().mean())  # E |g|^2 of one batch
    variance = max(0.0, each - mean2) if n > 1 else 0.0
    size = max(mean2, 1e-300)
    return {
        "cosine": along / math.sqrt(size * true2) if mean2 > 0 else 0.0,
        "bias": (mean2 - 2 * along + true2) / true2,
        "noise": variance / true2,
        "efficiency": max(0.0, along) ** 2 / (true2 * max(each, 1e-300)),
        "mse": (mean2 - 2 * along + true2 + variance) / true2,
    }


def _between(products: Tensor) -> float:
    """Mean product of two different batches: the squared length of their mean, without the noise's."""
    n = len(products)
    return float((products.sum() - products.diagonal().sum()) / (n * (n - 1)))


def _without(products: Tensor, row: int | None, column: int | None) -> Tensor:
    for at, dim in ((row, 0), (column, 1)):
        if at is not None:
            kept = [i for i in range(products.shape[dim]) if i != at]
            products = products.index_select(dim, torch.tensor(kept))
    return products


def _jackknife(left_out: Sequence[Mapping[str, float]], name: str) -> float:
    values = [one[name] for one in left_out]
    n, mean = len(values), sum(values) / len(values)
    return (n - 1) / n * sum((x - mean) ** 2 for x in values)


def _short(x: float) -> float:
    return float(f"{x:.3g}") if math.isfinite(x) else 0.0
