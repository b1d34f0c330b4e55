"""Measure what truncating estimators make of an advantage that says nothing, plain and centred, with intervals.

python benchmarks/drift.py                    # on simulated places: noise of an engine, and lag
python benchmarks/drift.py FILE ...           # on records that hold the sampler's k likeliest tokens of both policies

At a place, an advantage of 1 moves the logits by `mu_v w_v - (sum_u mu_u w_u) pi_v` in the mean: half of the sum of
its absolute values is the probability that is pushed about, a unit of advantage a token. It needs no sampling: the
candidates are at hand, and what is not named stands as one more token. After centring with all of them nothing would
be left by construction, so the k likeliest are cut to half (or to `--keep`), and the others are what centring is
judged on. Intervals are 95%, over sequences.
"""

import argparse
import math
from dataclasses import replace

import torch
from torch import Tensor

from reweigh import (
    Batch,
    Candidates,
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


def pushed(batch: Batch, estimator, keep: int) -> tuple[Tensor, Tensor]:
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
    parser.add_argument("--keep", type=int, help="candidates to centre with; half of them if not given")
    parser.add_argument("--gap", type=float, nargs="*", default=[0.02, 0.2], help="nats, of simulated logits")
    parser.add_argument("--k", type=int, default=40, help="candidates of simulated places")
    args = parser.parse_args()
    for path in args.files:
        batches = [one.batch for one in read_batches(path)]
        held = [b for b in batches if b.candidates is not None]
        if not held:
            raise SystemExit(f"{path}: no candidates\nhint: records with top_ids, top_log_mu and top_log_pi hold them.")
        print(f"{path}\n{measure(held, args.keep)}")
    for gap in [] if args.files else args.gap:
        print(f"simulated, gap of logits {gap:g} nats, k = {args.k}\n{measure([simulated(gap, args.k)], args.keep)}")


if __name__ == "__main__":
    main()
