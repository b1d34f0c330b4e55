"""The public names, each from the module it lives in; `reweigh` hands them out when the first is asked for."""
# ruff: noqa: F401
# pyright: reportUnusedImport=false

from reweigh.batch import Batch
from reweigh.caps import CapRule, TruncateAt, balance, cubic, post, post_batch, post_cap, sqrt_n, tradeoff
from reweigh.distributed import all_reduce, log_normaliser
from reweigh.estimators import Estimator, Factor, Weights, for_advantage, self_normalised, weigh
from reweigh.layout import Layout, Packed, Padded
from reweigh.levels import (
    GEOMETRIC,
    LEVELS,
    PREFIX,
    SEQUENCE,
    SUFFIX,
    TOKEN,
    TURN,
    WORST,
    Level,
    binary_kl,
    k1,
    k2,
    k3,
    log_ratio,
    prob_diff,
    signed_binary_kl,
)
from reweigh.logits import (
    LinearLogits,
    StateDivergences,
    StateTotals,
    TokenScores,
    linear_log_probs,
    log_probs,
    state_divergences,
)
from reweigh.losses import (
    cispo,
    gspo,
    num_kept,
    num_sequences,
    num_tokens,
    per_sequence_mean,
    policy_gradient,
    ppo_clip,
)
from reweigh.named import (
    NAMED,
    cispo_cap,
    dppo_kl,
    dppo_tv,
    geo_is,
    geo_mis,
    geo_rs,
    group_snis,
    k1_rs,
    k3_rs,
    m2po,
    naive,
    opsm,
    prefix_is,
    prefix_tis,
    psis,
    seq_is,
    seq_mis,
    seq_tis,
    shrunk_seq_is,
    snis,
    suffix_is,
    token_is,
    token_mis,
    token_tis,
    trm,
    turn_tis,
    vespo,
)
from reweigh.stats.intervals import Number, bernoulli_kl, clustered, empirical_bernstein
from reweigh.stats.summary import (
    Summary,
    excess,
    excess_plain,
    lost,
    min2,
    renyi2_at,
    renyi2_models,
    states_beyond,
    summarise,
)
from reweigh.stats.sums import RatioStats
from reweigh.stats.verdict import Finding, Verdict, judge
from reweigh.testing import check_estimator
from reweigh.transforms import (
    AtMost,
    Clip,
    Identity,
    MeanAtMost,
    ParetoSmooth,
    Power,
    Reject,
    Screen,
    Shrink,
    SoftKernel,
    Transform,
    Truncate,
)
