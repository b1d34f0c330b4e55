#!/usr/bin/env bash
# datasets 5.2.0, with_format("numpy"): a float64 value is float64 when its row is read and float32 when its column is,
# so that a log-prob loses half its digits by how it is asked for; and an unsigned id from 2^63 on comes back negative.
# Plain Python, pandas and Arrow formats give the value that was put in.
# Seen: -0.1234567890123 by row, -0.12345679 by column; 9223372036854775813 reads as -9223372036854775803.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet "datasets==5.2.0" "numpy==2.4.6" "pyarrow==26.0.1" "pandas==3.1.1"
cat >"$folder/try.py" <<'PY'
import numpy as np
from datasets import Dataset

rows = Dataset.from_dict({"log_mu": [-0.1234567890123], "id": np.array([2**63 + 5], np.uint64)})
print({name: kind.dtype for name, kind in rows.features.items()})
asked = rows.with_format("numpy")
print("row", repr(asked[0]["log_mu"]), asked[0]["id"])
print("column", repr(asked[:]["log_mu"]), asked[:]["id"][0])
print("python", rows[:]["log_mu"][0], rows[:]["id"][0])
PY
HF_HOME="$folder" "$folder/bin/python" "$folder/try.py" | diff /dev/fd/3 - 3<<'SEEN'
{'log_mu': 'float64', 'id': 'uint64'}
row np.float64(-0.1234567890123) 9223372036854775813
column array([-0.12345679], dtype=float32) -9223372036854775803
python -0.1234567890123 9223372036854775813
SEEN
