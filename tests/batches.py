"""Random batches with everything that goes wrong: holes, empty sequences, garbage off the mask."""

import sys

import torch

from reweigh import Batch


def random_batch(seed, spread=0.3, size=(6, 7), dtype=torch.float32, garbage=True):
    """Padded, with holes in the mask; sequence 1 all masked, sequence 2 of length 1."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(size, generator=g) < 0.8
    mask[0] = True
    if size[0] > 2:
        mask[1] = False
        mask[2] = torch.arange(size[1]) == 0
    # With room for ratios of e^spread, as pi can be 1 at most.
    log_mu = -torch.rand(size, generator=g) * 3 - (4 * spread if spread > 5 else 0.5)
    log_pi = (log_mu + spread * torch.randn(size, generator=g)).clamp(max=0)
    advantage = torch.randn(size, generator=g)
    advantage[0, 0] = 0
    turn = torch.randint(0, 2, size, generator=g)
    group = torch.randint(-2, 2, (size[0],), generator=g)
    if garbage:
        log_pi = torch.where(mask, log_pi, torch.nan)
        log_mu = torch.where(mask, log_mu, -torch.inf)
        advantage = torch.where(mask, advantage, 1e30)
    log_pi, log_mu = log_pi.to(dtype), log_mu.to(dtype)
    return Batch.padded(log_pi, log_mu, mask, advantage=advantage, group=group, turn=turn)


def packed(batch):
    """The live and masked slots of a padded batch, end to end."""
    s, t = batch.log_pi.shape
    flat = lambda x: None if x is None else x.reshape(-1)  # noqa: E731
    return Batch.packed(
        batch.log_pi.flatten(),
        batch.log_mu.flatten(),
        torch.arange(0, s * t + 1, t),
        batch.layout.mask.flatten(),
        advantage=flat(batch.advantage),
        group=batch.group,
        turn=flat(batch.layout.turn),
    )


def tight(batch):
    """The live slots only, as lists of tensors: no padding at all. Turns keep their runs."""
    run = torch.zeros_like(batch.layout.turn)
    run[:, 1:] = (batch.layout.turn[:, 1:] != batch.layout.turn[:, :-1]).long().cumsum(-1)
    lists = lambda x: [row[live] for row, live in zip(x, batch.layout.mask, strict=True)]  # noqa: E731
    advantage = None if batch.advantage is None else lists(batch.advantage)
    return Batch.from_lists(
        lists(batch.log_pi), lists(batch.log_mu), advantage=advantage, turn=lists(run), group=batch.group
    )


def rows_of(batch, index):
    """The sequences of a padded batch at `index`, as a batch."""
    pick = lambda x: None if x is None else x[index]  # noqa: E731
    return Batch.padded(
        batch.log_pi[index],
        batch.log_mu[index],
        batch.layout.mask[index],
        advantage=pick(batch.advantage),
        group=pick(batch.group),
        turn=pick(batch.layout.turn),
    )


def blind(monkeypatch):
    """Have the package do as on a device where reading a value waits: no value decides what is computed."""
    for name, module in list(sys.modules.items()):
        if name.startswith("reweigh.") and hasattr(module, "may_look"):
            monkeypatch.setattr(module, "may_look", lambda x: False)
