#!/usr/bin/env bash
# torch 2.13.0, CPU: five ways to add up 4,096 ones in bfloat16. `sum`, `cumsum` and `scatter_add` keep more bits inside and
# give 4,096; `segment_reduce` and `index_add`, the ways to add by segment (a sequence's tokens), do not, and stop at 256,
# where one more is less than half a step. None warns, and scatter_add and index_add are the same sum here.
# Seen: sum 4096, cumsum 4096, scatter_add 4096; segment_reduce 256, index_add 256.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet "torch==2.13.0" "numpy==2.4.6"
"$folder/bin/python" - <<'PY' | diff /dev/fd/3 - 3<<'SEEN'
import torch

n = 4096
ones, zero = torch.ones(n, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.bfloat16)
where = torch.zeros(n, dtype=torch.long)
print("sum", ones.sum().item())
print("cumsum", ones.cumsum(0)[-1].item())
print("segment_reduce", torch.segment_reduce(ones, "sum", lengths=torch.tensor([n])).item())
print("index_add", zero.index_add(0, where, ones).item())
print("scatter_add", zero.scatter_add(0, where, ones).item())
PY
sum 4096.0
cumsum 4096.0
segment_reduce 256.0
index_add 256.0
scatter_add 4096.0
SEEN
