"""The field's names for estimators: one line of code and one screen of docstring each."""

from reweigh.named.screens import dppo_kl, dppo_tv, geo_mis, geo_rs, k1_rs, k3_rs, m2po, opsm, seq_mis, token_mis, trm
from reweigh.named.smooth import psis, shrunk_seq_is, vespo
from reweigh.named.weights import (
    cispo_cap,
    geo_is,
    group_snis,
    naive,
    prefix_is,
    prefix_tis,
    seq_is,
    seq_tis,
    snis,
    suffix_is,
    token_is,
    token_tis,
    turn_tis,
)

NAMED = {
    f.__name__: f
    for f in (
        *(naive, seq_is, snis, group_snis, token_is, prefix_is, suffix_is, geo_is),
        *(token_tis, prefix_tis, turn_tis, seq_tis, cispo_cap),
        *(seq_mis, token_mis, geo_rs, geo_mis, k1_rs, k3_rs, trm, opsm, dppo_tv, dppo_kl, m2po),
        *(psis, shrunk_seq_is, vespo),
    )
}
"""Every named estimator by its name; each can be called without arguments."""

# fmt: off
__all__ = [
    "NAMED", "cispo_cap", "dppo_kl", "dppo_tv", "geo_is", "geo_mis", "geo_rs", "group_snis", "k1_rs", "k3_rs", "m2po",
    "naive", "opsm", "prefix_is", "prefix_tis", "psis", "seq_is", "seq_mis", "seq_tis", "shrunk_seq_is", "snis",
    "suffix_is", "token_is", "token_mis", "token_tis", "trm", "turn_tis", "vespo",
]
# fmt: on
