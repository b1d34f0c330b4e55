"""Named estimators that bend large ratios back smoothly, with no edge."""

from reweigh.batchwise import ParetoSmooth
from reweigh.estimators import Estimator, for_advantage, weigh
from reweigh.levels import SEQUENCE
from reweigh.transforms import Shrink, SoftKernel


def psis() -> Estimator:
    """`w = min(Pareto(r), max r)`: the sequence ratio, its largest values replaced by those of a fitted Pareto tail.

    When: some tens of sequences or more, a tail index below 0.7 (see `khat`). The fit is over the batch. Cost: a sort
    and a fit on the host; needs `pip install "reweigh[audit]"`; not for `torch.compile`.

    Source: Vehtari, Simpson, Gelman, Yao, Gabry (2024), Pareto smoothed importance sampling, JMLR 25.
    """
    return weigh(SEQUENCE, ParetoSmooth())


def shrunk_seq_is(lam: float = 16.0) -> Estimator:
    """`w = lam r / (r^2 + lam)` with r the sequence ratio: small ratios stay, large ones fall back to 0.

    When: in place of a cap, if extreme ratios are more likely artefacts than information. Cost: one sum a sequence.

    Args:
        lam: ratio squared; the largest weight is `sqrt(lam) / 2`, at `r = sqrt(lam)`: 2 at r = 4 by default.

    Source: Su, Dimakopoulou, Krishnamurthy, Dudik (2020), Doubly robust off-policy evaluation with shrinkage.
    """
    return weigh(SEQUENCE, Shrink(lam))


def vespo(
    rise: tuple[float, float] = (2.0, 3.0),
    fall: tuple[float, float] = (3.0, 2.0),
) -> Estimator:
    """`w = r^a e^(b (1 - r))` with r the sequence ratio and (a, b) by the advantage's sign: a soft kernel around 1.

    When: asynchronous training, as a smooth gate on the sequence ratio. 1 at r = 1, largest at r = a / b, falling
    exponentially beyond. Needs the advantage. Cost: one sum and two exps a sequence.

    Args:
        rise: (a, b) for positive advantages.
        fall: (a, b) for negative advantages.

    Also called: `loss_type="vespo"` (TRL, Liger), where part of the ratio has been truncated before.
    Source: Shen, Zhao, Cheng, Huang, Yu (2026), VESPO, 2602.10693, eq. 17.
    """
    return for_advantage(+1, weigh(SEQUENCE, SoftKernel(*rise))) * for_advantage(-1, weigh(SEQUENCE, SoftKernel(*fall)))
