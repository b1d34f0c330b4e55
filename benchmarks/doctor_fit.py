"""Fits the doctor's confidences on cases of many worlds, and judges each world by weights that it had no part in.

Of each cause a logistic regression (scikit-learn, L2) over the numbers of `reweigh.doctor.confidence.features`. A case is
looked at whole and in samples, with all columns and with fewer.
"""

import json
import pickle
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reweigh.doctor import CAUSES, CauseId
from reweigh.doctor.confidence import limited

PENALTY = 0.15  # C of scikit-learn; chosen by leaving out one world at a time, among .02, .05, .15, .5


@dataclass(frozen=True)
class Row:
    """One way of looking at one case.

    Attributes:
        world: in which it was committed; a loop's kind of policy is a world.
        name: of the case.
        truth: causes that are there.
        unsure: causes of which nobody can say whether they are there: in no regression of theirs.
        columns: what was looked at.
        features: see `reweigh.doctor.confidence.features`.
        weight: of the row; those of one case add up to 1.
    """

    world: str
    name: str
    truth: frozenset[CauseId]
    unsure: frozenset[CauseId]
    columns: str
    features: Mapping[str, float]
    weight: float


def names_of(rows: Iterable[Row]) -> tuple[str, ...]:
    """Lists the numbers that a few rows in a hundred have at least, by name."""
    rows = list(rows)
    count: dict[str, int] = {}
    for row in rows:
        for name in row.features:
            count[name] = count.get(name, 0) + 1
    return tuple(sorted(name for name, n in count.items() if n >= 0.02 * len(rows)))


def fitted(rows: Sequence[Row], names: Sequence[str], penalty: float = PENALTY) -> dict[CauseId, np.ndarray]:
    """Fits the weights of each cause that some case has: `[1 + names]`, the constant first."""
    from sklearn.linear_model import LogisticRegression

    x = matrix(rows, names)
    found: dict[CauseId, np.ndarray] = {}
    for cause in CAUSES:
        known = np.array([cause not in row.unsure for row in rows])
        y = np.array([cause in row.truth for row in rows])
        weight = np.array([row.weight for row in rows])
        if not y[known].any():
            continue
        model = LogisticRegression(C=penalty, max_iter=2000)
        model.fit(x[known], y[known], weight[known])
        found[cause] = np.concatenate([model.intercept_, model.coef_[0]])
    return found


def matrix(rows: Sequence[Row], names: Sequence[str]) -> np.ndarray:
    """Puts numbers into columns; 0 where a row has none."""
    return np.array([[limited(row.features.get(name, 0.0)) for name in names] for row in rows])


def save(path: Path, names: Sequence[str], weights: Mapping[CauseId, np.ndarray], source: str) -> None:
    """Writes the weights as the doctor reads them, to four digits."""
    data = {
        "source": source,
        "features": list(names),
        "weights": {cause: [float(f"{x:.4g}") for x in w] for cause, w in weights.items()},
    }
    path.write_text(json.dumps(data, indent=None, separators=(",", ":")).replace('"weights":{', '"weights":{\n').replace("],", "],\n") + "\n")
