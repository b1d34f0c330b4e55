"""Log-probs, entropies and exact divergences over the whole vocabulary, without an array of tokens x vocabulary."""

from reweigh.logits.candidates import linear_candidate_log_probs, linear_support_log_probs
from reweigh.logits.states import StateDivergences, StateTotals, state_divergences
from reweigh.logits.tokens import LinearLogits, TokenScores, linear_log_probs, log_probs

__all__ = [
    "LinearLogits",
    "StateDivergences",
    "StateTotals",
    "TokenScores",
    "linear_candidate_log_probs",
    "linear_log_probs",
    "linear_support_log_probs",
    "log_probs",
    "state_divergences",
]
