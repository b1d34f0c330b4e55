"""prime-rl: its default loss, which masks by the change of probability, and `ipo`."""

import torch
from torch import Tensor

from reweigh.estimators import weigh
from reweigh.levels import GEOMETRIC, TOKEN, k3
from reweigh.named import dppo_tv, token_is
from reweigh.rosetta.metrics import Equal
from reweigh.rosetta.parts import prob_gap
from reweigh.rosetta.plan import Plan, keep_infinite
from reweigh.rosetta.profile import (
    Conventions,
    Loss,
    Metric,
    Option,
    Options,
    Profile,
    Quirk,
    Reading,
    RefusedError,
    Template,
    View,
    Word,
)
from reweigh.rosetta.quirks import probabilities_as_they_are, zero_is
from reweigh.transforms import AtMost


def _read(o: Options) -> Reading:
    kind = o.get("type", "default")
    if kind == "ipo":
        plan = Plan(weigh(TOKEN, AtMost(o.get("ipo_threshold", 0.1)), of=prob_gap) * token_is())
    elif kind == "default":
        plan = Plan(dppo_tv(o.get("dppo_mask_high", 0.2), o.get("dppo_mask_low", 0.2)))
    else:
        raise RefusedError(f"prime-rl: no composition of loss type {kind!r}\nhint: default or ipo")
    loss = Loss("ratio", live="log_pi", centre="log_mu", penalty=o.get("kl_tau", 1e-3), scale=o.get("adv_tau", 1.0))
    note = "the gradient flows through the ratio; kl_tau times the squared log ratio is added over all tokens"
    return Reading(plan, loss=loss, notes=(note,))


QUIRKS = (
    Quirk(
        "infinite_kept",
        "A log-prob of -inf stays: its ratio is infinite, the token is masked only where the advantage is positive, "
        "and the loss is inf. Ours leaves the mask and is counted.",
        lambda plan, _: probabilities_as_they_are(keep_infinite(plan)).flagged("infinite_live"),
    ),
    Quirk(
        "infinity_times_zero",
        "The loss multiplies the ratio by the mask, so a masked token whose ratio float32 cannot hold makes it nan. "
        "Ours does not read a masked token.",
        lambda plan, _: plan.flagged("infinity_times_zero"),
    ),
    Quirk(
        "zero_is_negative",
        "An advantage of 0 takes the bound of a negative one. Ours has no gradient there, and passes.",
        zero_is(-1),
    ),
)


def _per_row(masked: bool) -> Equal:
    def equal(view: View, _: str) -> Tensor:
        batch, keep = view.batch(), view.outcome.keep
        mask = batch.layout.mask & (~keep if masked else keep)
        x = torch.where(mask, k3(batch), 0)
        return x.sum(-1) / mask.sum(-1).clamp(min=1)

    return equal


def _masked(side: int) -> Equal:
    def equal(view: View, _: str) -> Tensor:
        batch = view.batch()
        assert batch.advantage is not None
        gone = batch.layout.mask & ~view.outcome.keep
        if side:
            gone = gone & (batch.advantage * side > 0)
        return GEOMETRIC.fold(gone.float(), batch.layout)

    return equal


METRICS = (
    Metric(("unmasked_mismatch_kl",), _per_row(False), "k3 over the kept tokens of each sequence"),
    Metric(("masked_mismatch_kl",), _per_row(True), "k3 over the dropped tokens of each sequence"),
    Metric(("is_masked",), _masked(0), "share of each sequence's tokens that are dropped"),
    Metric(("is_masked_high",), _masked(+1), "of them, those of positive advantage"),
    Metric(("is_masked_low",), _masked(-1), "of them, those of negative advantage"),
    Metric(("masked_advantage_*",), None, "of advantages, not of the gap"),
)

PRIME_RL = Profile(
    name="prime-rl",
    version="559b4477 (2026-08-21)",
    known=("559b4477",),
    section="trainer.loss",
    options=(
        Option("type", "default", "the loss", ("default", "ipo")),
        Option("dppo_mask_low", 0.2, "default: bound on mu - pi where the advantage is negative"),
        Option("dppo_mask_high", 0.2, "default: bound on pi - mu where the advantage is positive"),
        Option("ipo_threshold", 0.1, "ipo: bound on |pi - mu|"),
        Option("adv_tau", 1.0, "multiplies the advantage"),
        Option("kl_tau", 1e-3, "coefficient of the squared log ratio that is added to the loss"),
    ),
    conventions=Conventions(
        ratio="live policy / sampler, always",
        bounds="pi - mu, a probability difference, by the advantage's sign; closed",
        k1="none",
        sequence="none",
        survivors="their own ratio, unbounded",
        not_finite="infinite; the loss inf or nan",
        clamp="none",
        detached="no: the gradient flows through the ratio",
        denominator="tokens of the original mask, of all ranks",
        normalise="none",
    ),
    read=_read,
    words=(
        Word(
            "default",
            "tokens whose probability has moved too far in the direction of the advantage are dropped",
            {"type": "default"},
        ),
        Word(
            "dppo_tv",
            "the default loss: bound on pi - mu by the sign of the advantage, no cap on the ratio",
            {"type": "default"},
        ),
        Word("ipo", "bound on |pi - mu|, whatever the advantage", {"type": "ipo"}),
        Word("kl", "mismatch_kl: k3", metric="unmasked_mismatch_kl"),
    ),
    quirks=QUIRKS,
    metrics=METRICS,
    templates=(
        Template("weights", lambda b: {"type": "ipo", "ipo_threshold": b.bound}),
        Template("weights", lambda b: {"type": "default", "dppo_mask_low": b.bound, "dppo_mask_high": b.bound}),
    ),
)
