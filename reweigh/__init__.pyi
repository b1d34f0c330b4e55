"""The public names of `reweigh`, and the module that each lives in: read by type checkers and by `__init__.py`."""

__version__: str

from reweigh.batch import (
    Batch as Batch,
)
from reweigh.batch import (
    Candidates as Candidates,
)
from reweigh.centring import (
    Centred as Centred,
)
from reweigh.centring import (
    centred as centred,
)
from reweigh.distributed import all_reduce as all_reduce
from reweigh.estimators import (
    Estimator as Estimator,
)
from reweigh.estimators import (
    Weights as Weights,
)
from reweigh.estimators import (
    for_advantage as for_advantage,
)
from reweigh.estimators import (
    self_normalised as self_normalised,
)
from reweigh.estimators import (
    weigh as weigh,
)
from reweigh.levels import (
    GEOMETRIC as GEOMETRIC,
)
from reweigh.levels import (
    PREFIX as PREFIX,
)
from reweigh.levels import (
    PREFIX_LEAST as PREFIX_LEAST,
)
from reweigh.levels import (
    PREFIX_MEAN as PREFIX_MEAN,
)
from reweigh.levels import (
    PREFIX_ROOT as PREFIX_ROOT,
)
from reweigh.levels import (
    SEQUENCE as SEQUENCE,
)
from reweigh.levels import (
    SUFFIX as SUFFIX,
)
from reweigh.levels import (
    TOKEN as TOKEN,
)
from reweigh.levels import (
    TURN as TURN,
)
from reweigh.levels import (
    WORST as WORST,
)
from reweigh.losses import (
    advantage_over_length as advantage_over_length,
)
from reweigh.losses import (
    cispo as cispo,
)
from reweigh.losses import (
    gspo as gspo,
)
from reweigh.losses import (
    num_kept as num_kept,
)
from reweigh.losses import (
    num_sequences as num_sequences,
)
from reweigh.losses import (
    num_tokens as num_tokens,
)
from reweigh.losses import (
    policy_gradient as policy_gradient,
)
from reweigh.losses import (
    ppo_clip as ppo_clip,
)
from reweigh.named import (
    cispo_cap as cispo_cap,
)
from reweigh.named import (
    cppo as cppo,
)
from reweigh.named import (
    ctpo as ctpo,
)
from reweigh.named import (
    dppo_kl as dppo_kl,
)
from reweigh.named import (
    dppo_tv as dppo_tv,
)
from reweigh.named import (
    flash_reinforce as flash_reinforce,
)
from reweigh.named import (
    geo_is as geo_is,
)
from reweigh.named import (
    geo_mis as geo_mis,
)
from reweigh.named import (
    geo_rs as geo_rs,
)
from reweigh.named import (
    group_snis as group_snis,
)
from reweigh.named import (
    ipo as ipo,
)
from reweigh.named import (
    k1_rs as k1_rs,
)
from reweigh.named import (
    k3_rs as k3_rs,
)
from reweigh.named import (
    kpop as kpop,
)
from reweigh.named import (
    m2po as m2po,
)
from reweigh.named import (
    minpro as minpro,
)
from reweigh.named import (
    naive as naive,
)
from reweigh.named import (
    opsm as opsm,
)
from reweigh.named import (
    pnpo as pnpo,
)
from reweigh.named import (
    prefix_is as prefix_is,
)
from reweigh.named import (
    prefix_tis as prefix_tis,
)
from reweigh.named import (
    psis as psis,
)
from reweigh.named import (
    rec_one_side as rec_one_side,
)
from reweigh.named import (
    rec_ring as rec_ring,
)
from reweigh.named import (
    sapo as sapo,
)
from reweigh.named import (
    seq_is as seq_is,
)
from reweigh.named import (
    seq_mis as seq_mis,
)
from reweigh.named import (
    seq_tis as seq_tis,
)
from reweigh.named import (
    shrunk_seq_is as shrunk_seq_is,
)
from reweigh.named import (
    snis as snis,
)
from reweigh.named import (
    suffix_is as suffix_is,
)
from reweigh.named import (
    token_is as token_is,
)
from reweigh.named import (
    token_mis as token_mis,
)
from reweigh.named import (
    token_tis as token_tis,
)
from reweigh.named import (
    topr as topr,
)
from reweigh.named import (
    trm as trm,
)
from reweigh.named import (
    turn_tis as turn_tis,
)
from reweigh.named import (
    vaco as vaco,
)
from reweigh.named import (
    vespo as vespo,
)
from reweigh.stats.summary import summarise as summarise
from reweigh.stats.sums import RatioStats as RatioStats
from reweigh.stats.verdict import judge as judge
from reweigh.testing import check_estimator as check_estimator
from reweigh.transforms import (
    AtMost as AtMost,
)
from reweigh.transforms import (
    Clip as Clip,
)
from reweigh.transforms import (
    Outside as Outside,
)
from reweigh.transforms import (
    Power as Power,
)
from reweigh.transforms import (
    Reject as Reject,
)
from reweigh.transforms import (
    Screen as Screen,
)
from reweigh.transforms import (
    Shrink as Shrink,
)
from reweigh.transforms import (
    Truncate as Truncate,
)
