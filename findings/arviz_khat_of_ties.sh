#!/usr/bin/env bash
# arviz-stats 0.8.0, psislw: where many of the largest weights are equal (log-probs that came in few bits, or a cap), the
# fit to the tail divides by zero. It answers with a tail index of 0.035, which reads as "as good as it gets", and every
# smoothed weight is nan. Where all of the tail is equal, it raises; in between, only the weights tell.
# Seen: 2,000 log-weights of spread 1.5 have khat 0.64; rounded to whole nats, khat 0.035 and 2,000 weights that are nan;
# 1,000 times as wide, where one weight is all there is, khat 0.035 again.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet "arviz-stats==0.8.0" "numpy==2.4.6" "scipy==1.17.1"
"$folder/bin/python" -W ignore - <<'PY' | diff /dev/fd/3 - 3<<'SEEN'
import numpy as np
from arviz_stats.base.array import array_stats

log_w = 1.5 * np.random.default_rng(0).normal(size=2000)
for name, values in (("as they are", log_w), ("whole nats", np.round(log_w)), ("1,000 times", 1000 * log_w)):
    smoothed, khat = array_stats.psislw(values)
    print(f"{name}: khat {khat:.3f}, {np.isnan(smoothed).sum()} of {smoothed.size} weights are nan")
PY
as they are: khat 0.642, 0 of 2000 weights are nan
whole nats: khat 0.035, 2000 of 2000 weights are nan
1,000 times: khat 0.035, 2000 of 2000 weights are nan
SEEN
