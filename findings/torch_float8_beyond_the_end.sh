#!/usr/bin/env bash
# torch 2.13.0 and ml_dtypes 0.6.0, CPU: what is too large for an 8-bit float becomes the largest number, infinity or nan,
# by the type; for e4m3fn the two libraries differ, and torch makes of infinity a number like any other (448). The scale
# type e8m0fnu, which has no sign, takes -2 as 2 in torch, and as nan in ml_dtypes; 0 as 2^-127, and as nan.
# Seen: as below. A checkpoint whose weights overflow is finite from the one and nan from the other.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet "torch==2.13.0" "ml_dtypes==0.6.0" "numpy==2.4.6"
"$folder/bin/python" -W ignore - <<'PY' | diff /dev/fd/3 - 3<<'SEEN'
import ml_dtypes
import numpy as np
import torch

values = np.array([1e6, np.inf, -2.0, 0.0], np.float32)
for name in ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"):
    ours = torch.from_numpy(values).to(getattr(torch, name)).float().tolist()
    theirs = values.astype(getattr(ml_dtypes, name)).astype(np.float32).tolist()
    print(f"{name}: torch {ours}, ml_dtypes {theirs}")
PY
float8_e4m3fn: torch [448.0, 448.0, -2.0, 0.0], ml_dtypes [nan, nan, -2.0, 0.0]
float8_e4m3fnuz: torch [nan, nan, -2.0, 0.0], ml_dtypes [nan, nan, -2.0, 0.0]
float8_e5m2: torch [inf, inf, -2.0, 0.0], ml_dtypes [inf, inf, -2.0, 0.0]
float8_e5m2fnuz: torch [nan, nan, -2.0, 0.0], ml_dtypes [nan, nan, -2.0, 0.0]
float8_e8m0fnu: torch [1048576.0, nan, 2.0, 5.877471754111438e-39], ml_dtypes [1048576.0, nan, nan, nan]
SEEN
