"""The estimators that figures compare: how each weighs, and how it is drawn."""

from dataclasses import dataclass

from reweigh import (
    geo_rs,
    naive,
    prefix_is,
    prefix_tis,
    seq_is,
    seq_mis,
    seq_tis,
    suffix_is,
    token_is,
    token_mis,
    token_tis,
)
from reweigh.estimators import Estimator
from reweigh.lab.exact import Loss, PPOClip, reinforce
from reweigh.lab.figures.style import Line

CAP = 2.0
"""Of everything that is truncated or rejected at a number."""


@dataclass(frozen=True)
class Compared:
    """An estimator and its line.

    Attributes:
        line: how it is drawn.
        estimator: its weights.
        loss: what they are put into.
    """

    line: Line
    estimator: Estimator
    loss: Loss = reinforce


def geo_rs_within(low: float, high: float) -> Compared:
    """Geo-RS with a band: the caption is to say which."""
    return Compared(Line("Geo-RS", "#B8A800", (0, (5, 1, 1, 1, 1, 1)), ">"), geo_rs(low, high))


NAIVE = Compared(Line("Naive", "#000000", "-", "o"), naive())
TOKEN_IS = Compared(Line("Token-IS", "#0072B2", "--", "s"), token_is())
TOKEN_TIS = Compared(Line(f"Token-TIS, C = {CAP:g}", "#56B4E9", ":", "D"), token_tis(CAP))
TOKEN_MIS = Compared(Line(f"Token-MIS, C = {CAP:g}", "#8C6BB1", (0, (3, 1, 1, 1)), "p"), token_mis(0.0, CAP))
PPO = Compared(Line("PPO-clip, 0.2", "#999999", "-.", "v"), naive(), PPOClip())
PREFIX_IS = Compared(Line("Prefix-IS", "#7A3E00", (0, (4, 1.5)), "+"), prefix_is())
PREFIX_TIS = Compared(Line(f"Prefix-TIS, C = {CAP:g}", "#7A3E00", (0, (1, 1)), "d"), prefix_tis(CAP))
SUFFIX_IS = Compared(Line("Suffix-IS", "#CC79A7", (0, (2, 1)), "1"), suffix_is())
SEQ_IS = Compared(Line("Seq-IS", "#D55E00", "-", "^"), seq_is())
SEQ_TIS = Compared(Line(f"Seq-TIS, C = {CAP:g}", "#009E73", "-", "x"), seq_tis(CAP))
SEQ_MIS = Compared(Line(f"Seq-MIS, C = {CAP:g}", "#CC79A7", "-.", "<"), seq_mis(high=CAP))

TOKEN_LEVEL = (NAIVE, TOKEN_IS, TOKEN_TIS, TOKEN_MIS, PPO)
"""Those that weigh each token by itself."""
BY_POSITION = (PREFIX_IS, PREFIX_TIS, SUFFIX_IS)
"""Those in which the order of tokens matters."""
SEQUENCE_LEVEL = (SEQ_IS, SEQ_TIS, SEQ_MIS)
"""Those with one weight a sequence; Geo-RS is another, its band differs by figure."""

SNIS = Line("SNIS", "#E69F00", "--", "P")
BALANCE = Line("Seq-TIS, balance", "#009E73", ":", "*")
TRADEOFF = Line("Seq-TIS, tradeoff", "#004D40", "--", "X")
"""Of what depends on the batch size: self-normalised, and with the cap of a rule that is given the exact law."""
