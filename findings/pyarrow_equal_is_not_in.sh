#!/usr/bin/env bash
# pyarrow 26.0.1, filters of read_table: on a float32 column, `("x", "==", 0.1)` widens the column to float64 and finds
# nothing, while `("x", "in", [0.1])` narrows the number to float32 and finds the row. A slice of records by temperature or
# top_p kept in float32 is empty or not by how the question is put.
# Seen: 0 rows with ==, 1 row with in, and 1 row with != (the same row).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet "pyarrow==26.0.1"
"$folder/bin/python" - <<'PY' | diff /dev/fd/3 - 3<<'SEEN'
import io

import pyarrow as pa
import pyarrow.parquet as pq

file = io.BytesIO()
pq.write_table(pa.table({"temperature": pa.array([0.1], pa.float32())}), file)
for operator, value in (("==", 0.1), ("in", [0.1]), ("!=", 0.1), ("not in", [0.1])):
    print(operator, pq.read_table(file, filters=[("temperature", operator, value)]).num_rows)
PY
== 0
in 1
!= 1
not in 0
SEEN
