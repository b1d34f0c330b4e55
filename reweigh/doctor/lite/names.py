"""What each framework calls a number about the gap, and what it is computed from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Signal = Literal[
    "k1",
    "k3",
    "mean_ratio",
    "mean_abs",
    "max_abs",
    "mean_prob_diff",
    "max_prob_diff",
    "mult_error",
    "chi2",
    "log_ppl_pi",
    "log_ppl_mu",
    "entropy",
    "weight_mean",
    "lag",
    "grad_norm",
    "learning_rate",
]
"""One vocabulary. With Delta = log pi - log mu on sampled tokens: k1 = -mean Delta, k3 = mean(e^Delta - 1 - Delta),
mean_ratio = mean e^Delta, mean_abs = mean |Delta|, prob_diff of |pi - mu|, mult_error = mean e^|Delta|, chi2 = mean
e^(2 Delta) - 1; log_ppl = mean of -log pi or -log mu; entropy of pi; weight_mean is of weights after bounds."""

Mean = Literal["tokens", "sequences"]
SEQUENCES = "mean over sequences of the mean of each"
_AFTER = "after bounds and masks: it says nothing of the raw ratio"


@dataclass(frozen=True)
class Known:
    """A metric that a framework logs.

    Attributes:
        name: as logged; parts before it, joined by "/", may differ.
        signal: what it is here.
        over: what the mean is over.
        factor: to multiply by: -1 if the framework has the other sign.
        caveat: what keeps it from being quite that.
        usable: False if tests must not use it, because of the caveat.
        mark: True if the name belongs to this framework alone.
    """

    name: str
    signal: Signal
    over: Mean = "tokens"
    factor: float = 1.0
    caveat: str = ""
    usable: bool = True
    mark: bool = True

    def matches(self, name: str) -> bool:
        """Whether a logged name is this one."""
        return name == self.name or name.endswith("/" + self.name)


def _swift_and_verl(prefix: str) -> tuple[Known, ...]:
    """ms-swift took these over from verl."""
    return (
        Known(f"{prefix}/kl", "k1"),
        Known(f"{prefix}/k3_kl", "k3"),
        Known(f"{prefix}/chi2_token", "chi2", caveat="the log ratio is clamped to +-20 first"),
        Known(f"{prefix}/training_log_ppl", "log_ppl_pi", "sequences"),
        Known(f"{prefix}/rollout_log_ppl", "log_ppl_mu", "sequences"),
    )


def _mis(prefix: str) -> tuple[Known, ...]:
    """The helper of slime and miles; its page says mismatch_, its code mis_."""
    return (
        Known(f"{prefix}_kl", "k1", "sequences"),
        Known(f"{prefix}_k3_kl", "k3", "sequences"),
        Known(f"{prefix}_chi2_token", "chi2", "sequences", caveat="the log ratio is clamped to +-20 first"),
        Known(f"{prefix}_training_log_ppl", "log_ppl_pi", "sequences"),
        Known(f"{prefix}_rollout_log_ppl", "log_ppl_mu", "sequences"),
    )


_COMMON = (
    Known("grad_norm", "grad_norm", mark=False),
    Known("lr", "learning_rate", mark=False),
    Known("learning_rate", "learning_rate", mark=False),
)

FRAMEWORKS: Mapping[str, tuple[Known, ...]] = {
    "reweigh": (
        Known("token/kl_k1", "k1"),
        Known("token/kl_k3", "k3"),
        Known("token/mean_ratio", "mean_ratio"),
        Known("token/mean_abs", "mean_abs"),
        Known("weight/mean", "weight_mean", caveat=_AFTER, usable=False),
    ),
    "verl": (
        *_swift_and_verl("rollout_corr"),
        Known("rollout_corr/rollout_is_mean", "weight_mean", caveat=_AFTER, usable=False),
        Known("training/rollout_probs_diff_mean", "mean_prob_diff"),
        Known("training/rollout_probs_diff_max", "max_prob_diff"),
        Known("actor/entropy", "entropy", mark=False, caveat="mean over tokens by default; log_ppl over sequences"),
    ),
    "ms-swift": (
        *_swift_and_verl("rollout_correction"),
        Known("rollout_correction/is_weight_mean", "weight_mean", caveat=_AFTER, usable=False),
    ),
    "slime": (
        *_mis("mis"),
        *_mis("mismatch"),
        Known("rollout/log_probs", "log_ppl_pi", "sequences", -1.0),
        Known("rollout/rollout_log_probs", "log_ppl_mu", "sequences", -1.0),
        Known("train_rollout_logprob_abs_diff", "mean_abs", "sequences"),
        Known("train_rollout_kl", "k3", "sequences", caveat="of miles; the log ratio is clamped to +-10 first"),
        Known("tis", "mean_ratio", "sequences", caveat="the raw ratio of the built-in correction"),
        Known("is_ratio_mean_after_tis_rs", "weight_mean", "sequences", caveat=_AFTER, usable=False),
        Known("entropy_loss", "entropy", "sequences", mark=False, caveat="of the full distribution, also under top-p"),
    ),
    "nemo-rl": (
        Known("gen_kl_error", "k3"),
        Known("token_mult_prob_error", "mult_error"),
        Known("sampling_importance_ratio", "mean_ratio", caveat="after bounds if the correction is on"),
    ),
    "prime-rl": (
        Known("mismatch_kl/all/mean", "k3"),
        Known("mismatch_kl/mean", "k3"),
        Known("entropy/all/mean", "entropy", mark=False),
        Known("off_policy/mean", "lag", mark=False),
    ),
    "trl": (
        Known("sampling/sampling_logp_difference/mean", "mean_abs", caveat="mean over ranks of their means"),
        Known("sampling/sampling_logp_difference/max", "max_abs"),
        Known("sampling/importance_sampling_ratio/mean", "weight_mean", caveat=_AFTER, usable=False),
        Known("sample/staleness_mean", "lag", mark=False),
        Known("entropy", "entropy", mark=False),
    ),
    "skyrl": (
        Known("policy/rollout_train_logprobs_abs_diff_mean", "mean_abs"),
        Known("policy/minibatch_rollout_logprobs_abs_diff_mean", "mean_abs"),
        Known("policy/rollout_train_logprobs_abs_diff_max", "max_abs"),
        Known("is_ratio_mean", "mean_ratio", caveat="mean over micro-batches; the log ratio is clamped to +-20 first"),
        Known("policy/policy_entropy", "entropy", mark=False),
        Known("async/staleness_mean", "lag", mark=False),
    ),
    "openrlhf": (
        Known("vllm_kl", "k1"),
        Known("is_filter_ratio", "weight_mean", caveat="a share of what is dropped", usable=False),
    ),
    "tinker": (
        Known("optim/kl_sample_train_v1", "k1"),
        Known(
            "optim/entropy",
            "entropy",
            mark=False,
            caveat="mean of -log mu over samples, not of a distribution",
            usable=False,
        ),
    ),
    "open-instruct": (
        Known("debug/vllm_vs_local_logprob_diff_mean", "mean_abs"),
        Known("debug/vllm_vs_local_logprob_diff_max", "max_abs"),
    ),
    "areal": (
        Known(
            "behave_approx_kl/avg", "k1", factor=-1.0, caveat="over the tokens that are not dropped only", usable=False
        ),
    ),
}
"""Metrics by framework. reweigh's own names come first: its numbers are raw."""


def known(framework: str) -> tuple[Known, ...]:
    """What a framework logs, and what all log."""
    return (*FRAMEWORKS[framework], *_COMMON)
