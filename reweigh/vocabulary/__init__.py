"""Log-probs, entropies and exact divergences over the whole vocabulary, without an array of tokens x vocabulary."""

from reweigh.vocabulary.linear import LinearLogits, linear_log_probs
from reweigh.vocabulary.scores import TokenScores, log_probs
from reweigh.vocabulary.states import StateDivergences, StateTotals, state_divergences

__all__ = [
    "LinearLogits",
    "StateDivergences",
    "StateTotals",
    "TokenScores",
    "linear_log_probs",
    "log_probs",
    "state_divergences",
]
