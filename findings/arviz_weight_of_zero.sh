#!/usr/bin/env bash
# arviz-stats 0.8.0, psislw: one weight of exactly zero (a token that the target cannot say: log-weight -inf) makes the
# tail index and all weights nan, though the tail is the same. A weight that is infinite is not noticed: the tail index
# is finite, and the weights add up to one as if it were not there.
# Seen: khat 0.642 of 2,000 log-weights; nan with one of them at -inf; 0.642 with one at +inf.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet "arviz-stats==0.8.0" "numpy==2.4.6" "scipy==1.17.1"
"$folder/bin/python" -W ignore - <<'PY' | diff /dev/fd/3 - 3<<'SEEN'
import numpy as np
from arviz_stats.base.array import array_stats

log_w = 1.5 * np.random.default_rng(0).normal(size=2000)
for first in (log_w[0], -np.inf, np.inf):
    values = log_w.copy()
    values[0] = first
    smoothed, khat = array_stats.psislw(values)
    print(f"first {first:.3f}: khat {khat:.3f}, weights add up to {np.exp(smoothed).sum():.3f}")
PY
first 0.189: khat 0.642, weights add up to 1.000
first -inf: khat nan, weights add up to nan
first inf: khat 0.642, weights add up to 1.000
SEEN
