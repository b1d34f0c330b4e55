#!/usr/bin/env bash
# pyarrow 26.0.1 beside pandas 3.1.1: `ParquetFile.read` leaves pandas alone, but `pa.array([1.0])`, `pa.scalar(0)`, a
# fill of nulls by a number, or `to_numpy` of a plain float column imports the whole of it, though no object of pandas is
# near. A command that reads a small file pays for that import (a third of a second) wherever pandas is installed.
# Seen: False after reading, True after each of the four, each in a process of its own.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet "pyarrow==26.0.1" "pandas==3.1.1"
"$folder/bin/python" -c "
import sys, pyarrow as pa, pyarrow.parquet as pq
pq.write_table(pa.table({'x': [1.0, 2.0]}), sys.argv[1])" "$folder/x.parquet"
for line in "table" "pa.array([1.0])" "pa.scalar(0)" "pc.fill_null(table['x'], 0.0)" "table['x'].chunk(0).to_numpy()"; do
  "$folder/bin/python" - "$folder/x.parquet" "$line" <<'PY'
import sys

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

table = pq.ParquetFile(sys.argv[1]).read()
before = "pandas" in sys.modules
eval(sys.argv[2])
print(sys.argv[2], before, "pandas" in sys.modules)
PY
done | diff /dev/fd/3 - 3<<'SEEN'
table False False
pa.array([1.0]) False True
pa.scalar(0) False True
pc.fill_null(table['x'], 0.0) False True
table['x'].chunk(0).to_numpy() False True
SEEN
