#!/usr/bin/env bash
# pyarrow 26.0.1, a cast from list_view to list: it raises nothing and gives an array whose offsets are too short, which
# only `validate` says. A file with a column of list views, read and cast to what a schema asks for, is not what it was.
# Seen: the cast gives list<item: float>, and validate raises ArrowInvalid.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet "pyarrow==26.0.1"
"$folder/bin/python" - <<'PY' | diff /dev/fd/3 - 3<<'SEEN'
import pyarrow as pa

offsets, sizes = pa.array([3, 0], pa.int32()), pa.array([2, 3], pa.int32())
views = pa.ListViewArray.from_arrays(offsets, sizes, pa.array([1.0, 2, 3, 4, 5], pa.float32()))
views.validate(full=True)
print("views", views.to_pylist())
lists = views.cast(pa.list_(pa.float32()))
print("cast", lists.type)
try:
    lists.validate(full=True)
except pa.ArrowInvalid as e:
    print("validate", e)
PY
views [[4.0, 5.0], [1.0, 2.0, 3.0]]
cast list<item: float>
validate Offsets buffer size (bytes): 8 isn't large enough for length: 2 and offset: 0
SEEN
