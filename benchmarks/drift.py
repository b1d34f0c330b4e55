"""Measure what truncating estimators make of an advantage that says nothing, before and after centring.

python benchmarks/drift.py                    # on simulated places
python benchmarks/drift.py --write FILE       # makes records: SmolLM2 in bfloat16 samples, in float32 it trains
python benchmarks/drift.py FILE ...           # on records that hold the sampler's k likeliest tokens of both policies

At a place, an advantage of 1 moves the logits by `mu_v w_v - (sum_u mu_u w_u) pi_v` in the mean: half of the sum of its
absolute values is the probability that is pushed about, a unit of advantage a token. It needs no sampling: candidates
are at hand, and what is not named stands as one more token. After centring with all of them nothing would be left by
construction, so the k likeliest are cut to half (or to `--keep`), and the others are what it is judged on. Intervals
are 95%, over sequences.
"""

import argparse
import math
from dataclasses import replace

import torch
from torch import Tensor

from reweigh import (
    Batch,
    Candidates,
    Estimator,
    centred,
    cispo_cap,
    ctpo,
    dppo_kl,
    dppo_tv,
    ipo,
    kpop,
    minpro,
    naive,
    pnpo,
    prefix_tis,
    rec_one_side,
    rec_ring,
    sapo,
    token_is,
    token_mis,
    token_tis,
)
from reweigh.centring import tail_of
from reweigh.records import read_batches

ESTIMATORS = {
    "naive": naive(),
    "token_is": token_is(),
    "token_tis(2)": token_tis(2.0),
    "token_tis(1)": token_tis(1.0),
    "cispo_cap": cispo_cap(),
    "token_mis": token_mis(),
    "dppo_tv": dppo_tv(),
    "dppo_kl": dppo_kl(),
    "ipo": ipo(),
    "kpop": kpop(),
    "sapo": sapo(),
    "rec_one_side": rec_one_side(),
    "rec_ring": rec_ring(),
    "prefix_tis(2)": prefix_tis(2.0),
    "ctpo": ctpo(),
    "pnpo": pnpo(),
    "minpro": minpro(),
}


def pushed(batch: Batch, estimator: Estimator, keep: int) -> tuple[Tensor, Tensor]:
    """Probability that is pushed about at each place, before and after centring with the first `keep` candidates."""
    given = batch.candidates
    centre = centred(estimator)(batch).centre
    mass = centre.log_mass.exp()
    pi = torch.where(centre.there, given.log_pi, -torch.inf).exp()
    some = centre.there.any(-1, keepdim=True)
    if centre.log_tail is not None:
        mass = torch.cat([mass, torch.where(some[..., 0], centre.log_tail.exp(), 0)[..., None]], -1)
        pi = torch.cat([pi, torch.where(some, tail_of(pi.log()[..., : given.ids.shape[-1]], some).exp(), 0)], -1)
    head = replace(
        given,
        ids=given.ids[..., :keep],
        log_mu=given.log_mu[..., :keep],
        log_pi=given.log_pi[..., :keep],
        complete=False,
    )
    small = centred(estimator)(replace(batch, candidates=head)).centre
    rest = tail_of(torch.where(small.there, head.log_pi, -torch.inf), some)
    alpha = torch.where(some, (small.log_tail[..., None] - rest).exp(), 0)
    left = torch.cat([alpha * pi[..., :keep], mass[..., keep:]], -1)
    return tuple((x - x.sum(-1, keepdim=True) * pi).abs().sum(-1) / 2 for x in (mass, left))


def interval(values: list[Tensor], counts: list[Tensor]) -> tuple[float, float]:
    """Mean a token and half the width of its interval, from sums and counts of sequences."""
    total, n = torch.cat(values).double(), torch.cat(counts).double()
    total, n = total[n > 0], n[n > 0]
    mean = float(total.sum() / n.sum())
    away = (total - mean * n) / n.mean()
    return mean, 1.96 * float(away.std()) / math.sqrt(len(n)) if len(n) > 1 else math.nan


def simulated(gap: float, k: int, seed: int = 0, sequences: int = 64, length: int = 64, vocab: int = 5000) -> Batch:
    """Places with logits of a language model's spread; mu's are off by normal noise of `gap` nats."""
    g = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(sequences):
        logits = 3 * torch.randn(length, vocab, generator=g) + 3 * torch.rand(length, 1, generator=g) * torch.randn(
            length, vocab, generator=g
        )
        log_pi = logits.log_softmax(-1)
        log_mu = (logits + gap * torch.randn(length, vocab, generator=g)).log_softmax(-1)
        token = torch.multinomial(log_mu.exp(), 1, generator=g)
        top, ids = log_mu.topk(k, -1)
        own = (p.gather(-1, token)[:, 0] for p in (log_pi, log_mu))
        rows.append((*own, ids, top, log_pi.gather(-1, ids)))
    log_pi, log_mu, ids, top_mu, top_pi = (torch.stack(x) for x in zip(*rows, strict=True))
    return Batch.padded(log_pi, log_mu, torch.ones_like(log_pi), candidates=Candidates(ids, top_mu, top_pi))


PROMPTS = (
    "The capital of France is a city that",
    "To bake bread one needs",
    "Question: what is 17 times 24? Answer: let us",
    "def fibonacci(n):",
    "In the year 1850 the railway",
    "The doctor told her patient that",
    "Water boils at a lower temperature when",
    "Once upon a time a fox",
)


@torch.inference_mode()
def write(path: str, k: int, each: int = 4, tokens: int = 40) -> None:
    """Sample from SmolLM2 in bfloat16 with a cache, score in float32 without one, and keep the k likeliest of both."""
    from reweigh.probe.models import find_model, load_model, load_tokenizer
    from reweigh.records import RecordWriter

    source = find_model("smollm2")
    tokenizer, sampler, trainer = load_tokenizer(source), load_model(source, "bfloat16"), load_model(source, "float32")
    g = torch.Generator().manual_seed(0)
    with RecordWriter(path) as out:
        for number, prompt in enumerate(PROMPTS):
            start = tokenizer(prompt, return_tensors="pt").input_ids.expand(each, -1)
            ids, cache, whole, held = start, None, start, []
            for _ in range(tokens):
                made = sampler(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache, log_p = made.past_key_values, made.logits[:, -1].float().log_softmax(-1)
                ids = torch.multinomial(log_p.exp(), 1, generator=g)
                whole = torch.cat([whole, ids], 1)
                held.append((log_p.gather(-1, ids)[:, 0], *log_p.topk(k, -1)))
            log_mu, top_mu, top = (torch.stack(x, 1) for x in zip(*held, strict=True))
            logits = trainer(input_ids=whole).logits[:, start.shape[1] - 1 : -1].float().log_softmax(-1)
            own = whole[:, start.shape[1] :]
            log_pi = logits.gather(-1, own[..., None])[..., 0]
            top_pi = logits.gather(-1, top)
            out.write(
                [
                    {
                        "prompt_id": str(number),
                        "sequence_id": f"{number}-{i}",
                        "log_mu": log_mu[i].tolist(),
                        "log_pi": log_pi[i].tolist(),
                        "token_ids": own[i].tolist(),
                        "top_ids": top[i].tolist(),
                        "top_log_mu": top_mu[i].tolist(),
                        "top_log_pi": top_pi[i].tolist(),
                    }
                    for i in range(each)
                ]
            )


def measure(batches: list[Batch], keep: int | None) -> str:
    """The table."""
    held = {name: ([], [], []) for name in ESTIMATORS}
    for batch in batches:
        batch = replace(batch, advantage=torch.ones_like(batch.log_mu))
        kept = batch.candidates.ids.shape[-1] // 2 if keep is None else keep
        on = batch.candidates.there.any(-1) & batch.layout.mask
        for name, estimator in ESTIMATORS.items():
            for out, x in zip(held[name], (*pushed(batch, estimator, kept), on.float()), strict=True):
                out.append(batch.layout.sum(torch.where(on, x, 0).float()))
    lines = [f"{'estimator':16s} {'before':>24s} {'after':>24s}"]
    for name, (before, after, counts) in held.items():
        cells = ["{:.2e} +- {:.1e}".format(*interval(x, counts)) for x in (before, after)]
        lines.append(f"{name:16s} {cells[0]:>24s} {cells[1]:>24s}")
    return "\n".join(lines)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*")
    parser.add_argument("--write", help="where to write records of SmolLM2, sampled in bfloat16 and scored in float32")
    parser.add_argument("--keep", type=int, help="candidates to centre with; half of them if not given")
    parser.add_argument("--gap", type=float, nargs="*", default=[0.02, 0.2], help="nats, of simulated logits")
    parser.add_argument("--k", type=int, default=40, help="candidates of simulated places")
    args = parser.parse_args()
    if args.write:
        write(args.write, args.k)
        return
    for path in args.files:
        batches = [replace(one.batch, candidates=one.candidates) for one in read_batches(path)]
        held = [b for b in batches if b.candidates is not None]
        if not held:
            raise SystemExit(f"{path}: no candidates\nhint: records with top_ids, top_log_mu and top_log_pi hold them.")
        print(f"{path}\n{measure(held, args.keep)}")
    for gap in [] if args.files else args.gap:
        print(f"simulated, gap of logits {gap:g} nats, k = {args.k}\n{measure([simulated(gap, args.k)], args.keep)}")


if __name__ == "__main__":
    main()
