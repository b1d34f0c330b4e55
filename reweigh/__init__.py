"""Measure, explain and correct the gap between the policy that samples and the policy that trains.

Data -> levels and transforms -> estimators -> losses; and data -> statistics -> verdict.
"""

# ruff: noqa: F405 - the names below come with the star

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reweigh._public import *  # noqa: F403

__version__ = "0.1.0"

# fmt: off
__all__ = [
    # data
    "Batch", "Layout", "Packed", "Padded",
    # per-token statistics
    "binary_kl", "k1", "k2", "k3", "log_ratio", "prob_diff", "signed_binary_kl",
    # levels and transforms
    "GEOMETRIC", "LEVELS", "PREFIX", "SEQUENCE", "SUFFIX", "TOKEN", "TURN", "WORST", "Level",
    "AtMost", "Clip", "Identity", "MeanAtMost", "ParetoSmooth", "Power", "Reject", "Screen", "Shrink", "SoftKernel",
    "Transform", "Truncate",
    # estimators, and the field's names for them
    "Estimator", "Factor", "Weights", "check_estimator", "for_advantage", "self_normalised", "weigh",
    "NAMED", "geo_is", "group_snis", "naive", "prefix_is", "seq_is", "snis", "suffix_is", "token_is",
    "cispo_cap", "post_cap", "prefix_tis", "seq_tis", "token_tis", "turn_tis",
    "dppo_kl", "dppo_tv", "geo_mis", "geo_rs", "k1_rs", "k3_rs", "m2po", "opsm", "seq_mis", "token_mis", "trm",
    "psis", "shrunk_seq_is", "vespo",
    # rules that find a cap in the data: seq_tis(cap=balance())
    "CapRule", "TruncateAt", "balance", "cubic", "post", "post_batch", "sqrt_n", "tradeoff",
    # losses and their denominators
    "cispo", "gspo", "policy_gradient", "ppo_clip",
    "num_kept", "num_sequences", "num_tokens", "per_sequence_mean",
    # from logits, or hidden states and the output matrix
    "LinearLogits", "StateDivergences", "StateTotals", "TokenScores",
    "linear_log_probs", "log_probs", "state_divergences",
    # statistics and the verdict
    "Number", "RatioStats", "Summary", "all_reduce", "log_normaliser", "summarise",
    "excess", "excess_plain", "lost", "min2", "renyi2_at", "renyi2_models", "states_beyond",
    "bernoulli_kl", "clustered", "empirical_bernstein", "Finding", "Verdict", "judge",
]
# fmt: on

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Load the public names, and torch with them, when the first is asked for: `reweigh --help` asks for none."""
        if not name.startswith("__"):
            public = import_module("reweigh._public")
            globals().update({each: getattr(public, each) for each in __all__})
            if name in globals():  # a module of the package, too
                return globals()[name]
        raise AttributeError(f"module 'reweigh' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
