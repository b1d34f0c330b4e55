"""A sample of prompts, the same however records are cut: what their responses were like each time they were used."""

from dataclasses import dataclass

import numpy as np

from reweigh.doctor.cells import Array, Ints

MOST = 4096  # prompts: those with the lowest hash; all of them in most runs


@dataclass(frozen=True, eq=False)
class Prompts:
    """Sums of moments of each prompt at each version; `a + b` is of both.

    Attributes:
        group: `[P]` hash of the prompt.
        version: `[P]` of the weights that sampled, or the training step.
        sums: `[P, M]`.
    """

    group: Ints
    version: Ints
    sums: Array

    @classmethod
    def of(cls, group: Ints, version: Ints, *moments: Array) -> "Prompts":
        """Add up moments, each `[N]`."""
        return _added(group, version, np.stack(moments, -1))

    def __add__(self, other: "Prompts") -> "Prompts":
        """Both."""
        return _added(
            np.concatenate([self.group, other.group]),
            np.concatenate([self.version, other.version]),
            np.concatenate([self.sums, other.sums]),
        )


def _added(group: Ints, version: Ints, moments: Array) -> Prompts:
    if not len(group):
        return Prompts(group, version, moments)
    keys, code = np.unique(np.stack([group, version], -1), axis=0, return_inverse=True)
    code = code.reshape(-1)
    sums: Array = np.stack([np.bincount(code, weights=m, minlength=len(keys)) for m in moments.T], -1).astype(
        np.float64
    )
    groups = np.unique(keys[:, 0])
    keep = slice(None)
    if len(groups) > MOST:  # sorted by hash, so that the same stay whatever came first
        keep = keys[:, 0] < groups[MOST]
    return Prompts(keys[keep, 0], keys[keep, 1], sums[keep])
