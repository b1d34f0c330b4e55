#!/usr/bin/env bash
# scipy 1.17.1: `scipy.special.stdtr(1, t)`, Student's t below t with one degree of freedom, is 0.5 + atan(t) / pi. Near 0
# it loses up to half of its digits: at t = -1e-9 it is 0.5 to the last bit, at -7.5e-9 it is off by 5e-9.
# Seen: t, and how far off it is.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet "scipy==1.17.1"
"$folder/bin/python" - <<'PY' | diff - <(printf '%s\n' "-1e-09 6.4e-10" "-7.5e-09 4.7e-09" "-1e-06 2.8e-11" "-0.001 2.3e-14")
import math

from scipy.special import stdtr

for t in (-1e-9, -7.480826455225094e-09, -1e-6, -1e-3):
    off = abs(float(stdtr(1, t)) / (0.5 + math.atan(t) / math.pi) - 1)
    print(f"{t:.2g}", f"{off:.1e}")
PY
