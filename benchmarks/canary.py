"""Commit faults of a weight push on SmolLM2 and see what `reweigh.probe.canary` says of them, and of honest pushes.

    python benchmarks/canary.py --minutes 10 --out canary.jsonl

A push is a step of `-lr sign(gradient)` from the weights before, the gradient that of a few tokens with random signs.
The engine is the same model in bfloat16 by `transformers`, with other attention kernels and batches than the trainer's.
"""

import argparse
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from reweigh.probe import canary
from reweigh.probe.engine import SamplingSettings, load_prompts
from reweigh.probe.engine_transformers import TransformersEngine, end_ids
from reweigh.probe.models import find_model, load_model, load_tokenizer, round_rows
from reweigh.probe.scorer import Response

State = Mapping[str, torch.Tensor]

STEPS = (1e-4, 3e-5, 1e-6)
PROMPTS, TOKENS = 8, 24


def pushed(model: Any, params: State, old: State, seed: int, size: float) -> State:
    """The weights after a step of this size, from a gradient of this seed."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(100, 40_000, (1, 48), generator=generator)
    signs = torch.randint(0, 2, (47,), generator=generator) * 2.0 - 1
    for value in params.values():
        value.requires_grad_(True)
        value.grad = None
    log_p = torch.log_softmax(model(ids).logits[0, :-1].float(), -1)
    (log_p.gather(-1, ids[0, 1:, None]).squeeze(-1) * signs).mean().backward()
    with torch.no_grad():
        new = {name: old[name] - size * value.grad.sign() for name, value in params.items()}
    for value in params.values():
        value.requires_grad_(False)
        value.grad = None
    return new


def faults_of(params: State, old: State, new: State, base: State, seed: int) -> Iterator[tuple[str, str, State]]:
    """Weights that the engine has after each faulty push, by kind; the layers of one are drawn by the seed."""
    generator = torch.Generator().manual_seed(10_000 + seed)
    layers = len({canary._LAYER.search(name)[1] for name in params if canary._LAYER.search(name)})
    length = int(torch.randint(6, 14, (1,), generator=generator))
    first = int(torch.randint(0, layers - length, (1,), generator=generator))
    part = canary._FUSED[seed % len(canary._FUSED)]

    def left_out(keep: Callable[[str], bool]) -> State:
        return {name: old[name] if keep(name) else value for name, value in new.items()}

    def layer(name: str) -> int:
        found = canary._LAYER.search(name)
        return int(found[1]) if found else -1

    linear = [n for n in new if n.endswith("_proj.weight")]
    yield "nothing_pushed", "", old
    yield "part_of_fused", part, left_out(lambda name: f".{part}." in name)
    yield "layers_left_out", f"{first} to {first + length - 1}", left_out(lambda n: first <= layer(n) < first + length)
    yield "lora_not_applied", "", base
    yield "lora_twice", "", {name: 2 * value - base[name] for name, value in new.items()}
    yield "precision", "int8", {n: round_rows(v) if n in linear else v for n, v in new.items()}


def main() -> int:
    """Push, check, write a line a check, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("canary.jsonl"))
    args = parser.parse_args()
    source = find_model("smollm2")
    model, engine_models = (
        load_model(source, "float32"),
        {kernel: load_model(source, "bfloat16", attention=kernel) for kernel in ("sdpa", "eager")},
    )
    tokenizer = load_tokenizer(source)
    prompts = [tokenizer(one.text)["input_ids"] for one in load_prompts(limit=PROMPTS)]
    sampler = TransformersEngine(model, name="smollm2", dtype="float32", end_ids=end_ids(model))
    samples = sorted(sampler.sample(prompts, SamplingSettings(max_tokens=TOKENS, n=1)), key=lambda one: one.prompt)
    responses = [Response(prompts[one.prompt], one.token_ids) for one in samples]
    params = dict(model.named_parameters())
    old = canary.state_of(model)
    generator = torch.Generator().manual_seed(7)

    def base_of(size: float) -> State:  # a model without an adapter of rank 4 on q_proj and v_proj
        base = dict(old)
        for name, value in old.items():
            if ".q_proj." in name or ".v_proj." in name:
                a = torch.randn(value.shape[0], 4, generator=generator)
                b = torch.randn(4, value.shape[1], generator=generator)
                base[name] = value - 10 * size * a @ b
        return base

    def ask(state: State, kernel: str, batch_size: int, stale: State | None = None) -> list[list[float]]:
        engine = engine_models[kernel]
        own = dict(engine.named_parameters())
        with torch.no_grad(), canary._changed(own, state):
            if stale is not None:
                return canary._with_stale_cache(engine, own, stale, responses)
            asked = TransformersEngine(engine, name="", dtype="bfloat16", end_ids=[], batch_size=batch_size)
            return asked.force(
                [r.prompt_ids for r in responses], [r.token_ids for r in responses], SamplingSettings(), "prefill"
            )

    start, seed = time.monotonic(), args.seed
    table = defaultdict(Counter)
    with args.out.open("a") as file:
        while time.monotonic() - start < 60 * args.minutes:
            size = STEPS[seed % len(STEPS)]
            new, base = pushed(model, params, old, seed, size), base_of(size)
            with canary._changed(params, new):
                kept = canary.record(model, responses, name="smollm2", previous=old, base=base)

            def note(kind: str, what: str, answer: Any, size: float = size, kept: Any = kept, seed: int = seed) -> None:
                found = canary.check(kept, answer)
                said = (
                    "+".join(dict.fromkeys(x.kind for x in found.likely)) if found.code == 1 else f"exit {found.code}"
                )
                table[size, kind][said or "unknown"] += 1
                row = {"seed": seed, "size": size, "kind": kind, "what": what, "said": said, "code": found.code}
                file.write(json.dumps(row | {"noise": found.noise, "usual": found.usual, "step": found.step}) + "\n")
                file.flush()

            for kernel in engine_models:
                for batch_size in (1, 3, 8) if kernel == "sdpa" else (8,):  # of eager the batch changes nothing
                    note("honest", f"{kernel} {batch_size}", ask(new, kernel, batch_size))
            kernel = ("sdpa", "eager")[seed % 2]
            for kind, what, state in faults_of(params, old, new, base, seed):
                note(kind, what, ask(state, kernel, 3))
            note("stale_cache", "", ask(new, kernel, 3, stale=old))
            engine = engine_models[kernel]
            head = engine.get_output_embeddings()
            with canary._untied(head, old["model.embed_tokens.weight"]):
                note("tied_head", "head", ask(new, kernel, 3))
            seed += 1
    for (size, kind), said in sorted(table.items()):
        print(f"{size:g} {kind}: {dict(said)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
