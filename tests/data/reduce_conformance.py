"""Reduce recorded outputs of other frameworks to what `reweigh conformance` reads, in short decimals.

    python tests/data/reduce_conformance.py recorded.json tests/data/conformance.json

A recording holds, for a few small batches, what each framework's own functions returned under each of its options;
this keeps the batches, the options, weights, masks, losses, gradients and metrics, at the shortest decimals that are
the same float32.
"""

import json
import sys
from pathlib import Path

import numpy as np

KEPT = ("weight_per_token", "weight_per_sequence", "mask_out", "keep_per_sequence", "sample_mask", "raises")
KEPT += ("loss", "grad_per_token", "metrics", "metrics_per_sequence")
OF_A_CASE = ("id", "framework", "version_or_commit", "function", "kind", "option", "batch", "inputs")


def shorten(x):
    if isinstance(x, list):
        return [shorten(v) for v in x]
    if isinstance(x, dict):
        return {k: shorten(v) for k, v in x.items()}
    return float(str(np.float32(x))) if isinstance(x, float) else x


def reduce(recorded):
    batches = {name: {k: shorten(v) for k, v in b.items()} for name, b in recorded["batches"].items()}
    cases = []
    for c in recorded["cases"]:
        outputs = {k: shorten(v) for k, v in c["outputs"].items() if k in KEPT}
        cases.append({k: c[k] for k in OF_A_CASE} | {"outputs": outputs})
    head = {k: recorded[k] for k in ("format", "conventions", "torch")}
    return head | {"batches": batches, "cases": cases}


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    reduced = reduce(json.loads(source.read_text()))
    lines = [json.dumps(c) for c in reduced.pop("cases")]
    head = json.dumps(reduced)[:-1]
    target.write_text(head + ', "cases": [\n' + ",\n".join(lines) + "\n]}\n")
