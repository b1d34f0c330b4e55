"""Batches: the log-probs that two policies gave the same sampled tokens, and which of them count."""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reweigh import native
from reweigh.layout import CHUNK_SLOTS, Layout, Packed, Padded, in_a_graph, may_look, ones_of, operator
from reweigh.native import walk

# Log-probs computed in bfloat16 land on a lattice and can come out a little over 0; float32 rounding stays below this.
POSITIVE_TOLERANCE = 1e-4  # nats
NOT_A_NUMBER = 1e30  # nats: a log ratio from here on is of a placeholder for minus infinity, as finfo.min of float32


def log_ratio_of(log_pi: Tensor, log_mu: Tensor, live: Tensor) -> Tensor:
    """`log pi - log mu` where `live`, nats, detached; 0 elsewhere, whatever stands there.

    The one place where the log-probs meet: precision is raised before the difference, and gradients stop.

    Args:
        log_pi: nats, any float type.
        log_mu: nats, same shape.
        live: 1.0 where there is a token that counts, else 0.0, in the type to compute in: float32 or better.
    """
    # `to` keeps a tensor that has the type already, and the difference is new memory, so that it may be written to.
    difference = log_pi.detach().to(live.dtype) - log_mu.detach().to(live.dtype)
    return tame(difference).mul_(live)


def tame(x: Tensor) -> Tensor:
    """Put 0 in place of what is not finite. The argument's memory may be used."""
    if may_look(x) and math.isfinite(float(x.sum())):
        return x
    return x.nan_to_num_(0.0, 0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Candidates:
    """What mu could have sampled at each place: k tokens, and what each policy gave them.

    Either the k that mu thinks likeliest (`complete=False`: the rest of the mass is the tail, of which only its size is
    known), or all that mu could have sampled after top-p, top-k or min-p (`complete=True`: mu is normalised over
    these, and pi too if its ratios are to have mean 1).

    Which tokens stand here must not depend on which one was sampled: a server that adds the sampled token to its k
    likeliest hands back k + 1, of which the last is to be left out. Otherwise what is subtracted follows the sample,
    and `centred` is no longer centred.

    Attributes:
        ids: `[S, T, k]` or `[N, k]`, token ids; -1 where there is none.
        log_mu: the same shape, nats; -inf where there is none.
        log_pi: the same shape, nats, of the policy that the batch's `log_pi` is of; -inf where there is none.
        complete: whether mu could have sampled nothing else.

    Raises:
        ValueError: if something is no tensor, or has another type, or shapes disagree.

    Example:
        >>> import torch
        >>> ids, log_p = torch.tensor([[[5, 7]]]), torch.tensor([[[0.6, 0.3]]]).log()
        >>> Candidates(ids, log_p, log_p)
        Candidates(2 a place at [1, 1]; the likeliest)
    """

    ids: Tensor
    log_mu: Tensor
    log_pi: Tensor
    complete: bool = False

    def __post_init__(self) -> None:
        """Refuse what has not one shape and the right types; values are not read."""
        _check_kinds("Candidates", self.log_pi, self.log_mu, ids=self.ids)
        if self.ids.is_floating_point() or self.ids.dtype == torch.bool:
            raise ValueError(f"Candidates: ids must be integers, -1 where there is none, got {self.ids.dtype}")
        if self.ids.dim() not in (2, 3):
            raise ValueError(f"Candidates: ids must be [S, T, k] or [N, k], got shape {tuple(self.ids.shape)}")
        for name, x in (("log_mu", self.log_mu), ("log_pi", self.log_pi)):
            if x.shape != self.ids.shape:
                raise ValueError(
                    f"Candidates: {name} and ids must have one shape, got {tuple(x.shape)} and {tuple(self.ids.shape)}"
                )

    def __repr__(self) -> str:
        """Say how many there are, and of what kind."""
        place, kind = list(self.ids.shape[:-1]), "all of the support" if self.complete else "the likeliest"
        return f"Candidates({self.ids.shape[-1]} a place at {place}; {kind})"

    @property
    def there(self) -> Bool[Tensor, "*tok k"]:
        """Mark the places of a candidate that hold one which mu could have sampled."""
        return (self.ids >= 0) & (self.log_mu.detach() > -NOT_A_NUMBER)

    def take(self, tokens: slice | Tensor) -> "Candidates":
        """Take those of some rows, or slots, alone."""
        return Candidates(self.ids[tokens], self.log_mu[tokens], self.log_pi[tokens], self.complete)

    def flat(self) -> "Candidates":
        """Lay rows end to end: `[S, T, k]` to `[S * T, k]`."""
        k = self.ids.shape[-1]
        ids, log_mu, log_pi = (x.reshape(-1, k) for x in (self.ids, self.log_mu, self.log_pi))
        return Candidates(ids, log_mu, log_pi, self.complete)

    def check(self, mask: Bool[Tensor, "*tok"]) -> "Candidates":
        """Read the values (a host sync) and raise if they cannot be candidates at the places of the mask.

        Raises:
            ValueError: a log-prob that is NaN or positive; a token with an id and no probability under pi; one token
                twice; masses over 1, or one of mu under 1 over a complete support. Each has the first place and a
                remedy.
        """
        there, live = self.ids >= 0, mask[..., None]
        for name, log_p in (("log_mu", self.log_mu.detach()), ("log_pi", self.log_pi.detach())):
            _refuse_place(
                (torch.isnan(log_p) | (log_p > POSITIVE_TOLERANCE)) & there & live,
                f"{name} is no log-prob",
                "a log-prob is a finite number of at most 0; take log_softmax over the vocabulary, in float32",
            )
            mass = torch.where(there, log_p.double(), -torch.inf).exp().sum(-1)
            _refuse_place(
                (mass > 1 + _MASS_TOLERANCE) & mask,
                f"the probabilities of {name} add up to more than 1",
                "are these of one place, and under the temperature that was sampled at?",
            )
            if self.complete and name == "log_mu":  # pi may be of the whole vocabulary
                _refuse_place(
                    (mass < 1 - _MASS_TOLERANCE) & there.any(-1) & mask,
                    f"the probabilities of {name} add up to less than 1, and complete=True says that these are all",
                    "renormalise mu over its support, or say complete=False for the k likeliest",
                )
        _refuse_place(
            there & live & ~(self.log_pi.detach() > -NOT_A_NUMBER),
            "log_pi gives a candidate no probability",
            "pi has to be computed for every id that is given; -1 stands where there is none",
        )
        ordered = self.ids.sort(-1).values
        twice = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)
        _refuse_place(twice.any(-1) & mask, "a token stands twice", "each candidate once, -1 where there is none")
        return self


_MASS_TOLERANCE = 1e-3  # by how much probabilities given in bfloat16 or rounded text may add up to more than 1


def _refuse_place(bad: Tensor, what: str, hint: str) -> None:
    if bool(bad.any()):
        place = ", ".join(str(int(i)) for i in bad.nonzero()[0])
        raise ValueError(f"Candidates: {what} at {int(bad.sum())} places, first [{place}]\nhint: {hint}.")


@dataclass(frozen=True, eq=False)
class Batch:
    """Two policies' log-probs of the same sampled tokens.

    `log_pi` is the policy that the loss is centred on; `log_mu` is the policy that sampled. Which is which is the
    caller's one decision: there is no mode flag. Both must be log-probs of the *sampled* token under the distribution
    that was really sampled from (same temperature, same top-p support), or no ratio of them means anything.

    Build one with `Batch.padded`, `Batch.packed` or `Batch.from_lists`. A token in the mask whose log-prob is not
    finite, or whose log ratio is 1e30 nats or more, leaves the mask and is counted in `dropped`; call `check()` once on
    new data to have it raised instead. docs/trust.md has the rule for every number.

    Attributes:
        log_pi: nats, any float type, token-shaped (`[S, T]` or `[N]`).
        log_mu: nats, same shape.
        layout: which tokens count, and which belong together.
        advantage: token-shaped; read only by gates that depend on its sign (OPSM, DPPO).
        group: `[S]`, an integer a prompt: the unit of clustering, and of self-normalisation by prompt.
        dropped: token-shaped, True where a token of the given mask had a non-finite log-prob; None if there is none.
        given: token-shaped, a log ratio to take in place of the difference, 0 off the mask; None as a rule.
        seen: what was summed when the tokens were looked at for numbers that are not finite; None if they were not.
        candidates: what else could have been sampled at each place, for `centred`; None if it is not known.
    """

    log_pi: Float[Tensor, "*tok"]
    log_mu: Float[Tensor, "*tok"]
    layout: Layout
    advantage: Float[Tensor, "*tok"] | None = None
    group: Int[Tensor, " S"] | None = None
    dropped: Bool[Tensor, "*tok"] | None = field(default=None, repr=False)
    given: Float[Tensor, "*tok"] | None = field(default=None, repr=False)
    seen: "Seen | None" = field(default=None, repr=False)
    candidates: Candidates | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Name the type that log ratios are computed in: float32, or float64 if a log-prob is."""
        return torch.promote_types(torch.promote_types(self.log_pi.dtype, self.log_mu.dtype), torch.float32)

    @property
    def log_ratio(self) -> Float[Tensor, "*tok"]:
        """`log pi - log mu` in nats, in float32 or better, detached; 0 off the mask.

        Computed anew each time: a batch holds no more than it was given. `with_ratio` keeps it.
        """
        if self.given is not None:
            return self.given
        return log_ratio_of(self.log_pi, self.log_mu, ones_of(self.layout.mask, self.dtype))

    def with_ratio(self) -> "Batch":
        """Keep the log ratio with the batch, for what reads it more than once; costs a token-shaped tensor."""
        if self.given is not None:
            return self
        return Batch(
            *(self.log_pi, self.log_mu, self.layout, self.advantage, self.group, self.dropped, self.log_ratio),
            candidates=self.candidates,
        )

    def parts(self, slots: int = CHUNK_SLOTS) -> "list[Batch]":
        """Cut between sequences into parts of about that many slots, so that what is made of one fits the cache.

        Views, not copies. There is one part where values may not be looked at, or if the batch is small.
        """
        # Where runs of tokens lie is found anew for each part, which should be worth it.
        places = self.layout.parts(slots * (4 if isinstance(self.layout, Packed) else 1))
        if len(places) == 1:
            return [self]
        return [
            Batch(
                self.log_pi[tokens],
                self.log_mu[tokens],
                self.layout.sequences(seqs),
                _cut(self.advantage, tokens),
                _cut(self.group, seqs),
                _cut(self.dropped, tokens),
                _cut(self.given, tokens),
                candidates=None if self.candidates is None else self.candidates.take(tokens),
            )
            for tokens, seqs in places
        ]

    @classmethod
    def padded(
        cls,
        log_pi: Tensor,
        log_mu: Tensor,
        mask: Tensor,
        *,
        advantage: Tensor | None = None,
        group: Tensor | None = None,
        turn: Tensor | None = None,
        candidates: Candidates | None = None,
        check: bool = True,
    ) -> "Batch":
        """Batch from `[S, T]` tensors with a mask, as verl, TRL and SkyRL hold them.

        Args:
            log_pi: `[S, T]` nats. What is at masked slots is never read, so it may be anything.
            log_mu: `[S, T]` nats.
            mask: `[S, T]`, bool or 0/1: the tokens that mu sampled and that count.
            advantage: `[S, T]`, or `[S]` or `[S, 1]` for one value a sequence.
            group: `[S]` integers, equal for responses to the same prompt.
            turn: `[S, T]` integers; a turn is a run of equal values.
            candidates: what else could have been sampled, `[S, T, k]`.
            check: on a CPU, outside of a compiled graph: look at the first 65,536 slots, and refuse what are plainly no
                log-probs (probabilities, logits), and a mask that is not of 0 and 1. `check()` reads everything.

        Raises:
            ValueError: if something is no tensor, or has another type, or shapes disagree; the message names both. With
                `check`, if the values cannot be meant.

        Example:
            >>> import torch
            >>> mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
            >>> batch = Batch.padded(torch.full((2, 3), -1.0), torch.full((2, 3), -1.5), mask)
            >>> batch.log_ratio.tolist()
            [[0.5, 0.5, 0.5], [0.5, 0.0, 0.0]]
        """
        if mask is None:  # type: ignore[reportUnnecessaryComparison] - of a caller without types
            raise ValueError("Batch.padded: mask must be a tensor, got None\nhint: torch.ones_like(log_pi) counts all.")
        _check_kinds("Batch.padded", log_pi, log_mu, mask=mask, advantage=advantage, group=group, turn=turn)
        if log_pi.dim() != 2:
            hint = "\nhint: Batch.packed takes sequences end to end." if log_pi.dim() == 1 else ""
            raise ValueError(f"Batch.padded: log_pi must be [S, T], got shape {tuple(log_pi.shape)}{hint}")
        others = {"log_mu": log_mu, "mask": mask, "turn": turn}
        _check_shapes("Batch.padded", log_pi, others, log_pi.shape[0], advantage, group)
        _check_candidates("Batch.padded", log_pi, candidates)
        if check and may_look(log_pi):
            _look("Batch.padded", log_pi, log_mu, mask)
        layout, dropped, seen = _looked_at(log_pi, log_mu, mask, lambda live: Padded(live, turn))
        if advantage is not None and advantage.shape != log_pi.shape:
            advantage = layout.spread(advantage.flatten())
        return cls(log_pi, log_mu, layout, advantage, group, dropped, seen=seen, candidates=candidates)

    @classmethod
    def packed(
        cls,
        log_pi: Tensor,
        log_mu: Tensor,
        cu_seqlens: Tensor,
        mask: Tensor | None = None,
        *,
        advantage: Tensor | None = None,
        group: Tensor | None = None,
        turn: Tensor | None = None,
        candidates: Candidates | None = None,
        check: bool = True,
    ) -> "Batch":
        """Batch from `[N]` tensors, sequences end to end, as AReaL, prime-rl and slime hold them.

        Args:
            log_pi: `[N]` nats.
            log_mu: `[N]` nats.
            cu_seqlens: `[S + 1]` integer offsets: 0, then the running total of lengths, ending at N.
            mask: `[N]`, bool or 0/1; all tokens count if not given.
            advantage: `[N]`, or `[S]` for one value a sequence.
            group: `[S]` integers, equal for responses to the same prompt.
            turn: `[N]` integers; a turn is a run of equal values within a sequence.
            candidates: what else could have been sampled, `[N, k]`.
            check: as of `padded`; and that offsets rise from 0 to N.

        Raises:
            ValueError: as of `padded`.

        Example:
            >>> import torch
            >>> batch = Batch.packed(torch.full((4,), -1.0), torch.full((4,), -1.5), torch.tensor([0, 3, 4]))
            >>> batch.layout.sum(batch.log_ratio).tolist()
            [1.5, 0.5]
        """
        _check_kinds(
            "Batch.packed",
            *(log_pi, log_mu),
            **{"cu_seqlens": cu_seqlens, "mask": mask, "advantage": advantage, "group": group, "turn": turn},
        )
        if log_pi.dim() != 1:
            hint = "\nhint: Batch.padded takes rows of one length with a mask." if log_pi.dim() == 2 else ""
            raise ValueError(f"Batch.packed: log_pi must be [N], got shape {tuple(log_pi.shape)}{hint}")
        if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 1 or cu_seqlens.is_floating_point():
            raise ValueError(
                f"Batch.packed: cu_seqlens must be integers [S + 1], got {cu_seqlens.dtype} {tuple(cu_seqlens.shape)}"
            )
        others = {"log_mu": log_mu, "mask": mask, "turn": turn}
        _check_shapes("Batch.packed", log_pi, others, cu_seqlens.shape[0] - 1, advantage, group)
        _check_candidates("Batch.packed", log_pi, candidates)
        if check and may_look(log_pi):
            _check_offsets(cu_seqlens, log_pi.shape[0])
            _look("Batch.packed", log_pi, log_mu, mask)
        layout, dropped, seen = _looked_at(log_pi, log_mu, mask, lambda live: Packed(live, cu_seqlens, turn))
        if advantage is not None and advantage.shape != log_pi.shape:
            advantage = layout.spread(advantage.flatten())
        return cls(log_pi, log_mu, layout, advantage, group, dropped, seen=seen, candidates=candidates)

    @classmethod
    def from_lists(
        cls,
        log_pi: Sequence[Tensor],
        log_mu: Sequence[Tensor],
        masks: Sequence[Tensor] | None = None,
        *,
        advantage: Sequence[Tensor] | None = None,
        group: Tensor | None = None,
        turn: Sequence[Tensor] | None = None,
        candidates: Candidates | None = None,
        check: bool = True,
    ) -> "Batch":
        """Batch from one 1-D tensor a sequence, as slime, prime-rl and tinker hand them to a loss.

        Args:
            log_pi: one `[len_i]` tensor a sequence, nats.
            log_mu: the same for the sampling policy.
            masks: the same for the mask; all tokens count if not given.
            advantage: the same, token by token.
            group: `[S]` integers, equal for responses to the same prompt.
            turn: the same as masks, integers.
            candidates: what else could have been sampled, `[N, k]`, sequences end to end.
            check: as of `padded`.

        Raises:
            ValueError: if a sequence's lengths disagree; the message names the sequence. As of `padded`.

        Example:
            >>> import torch
            >>> batch = Batch.from_lists([torch.zeros(3) - 1, torch.zeros(1) - 1], [torch.zeros(3) - 2, torch.zeros(1)])
            >>> batch.layout.lengths.tolist()
            [3, 1]
        """
        others = {"log_mu": log_mu, "masks": masks, "advantage": advantage, "turn": turn}
        for name, parts in {"log_pi": log_pi, **others}.items():
            if parts is None:
                continue
            if isinstance(parts, Tensor) or not all(_is_row(x) for x in parts):
                hint = _hint_of(parts) or "one tensor [len_i] a sequence; Batch.padded takes a tensor [S, T]."
                raise ValueError(
                    f"Batch.from_lists: {name} must be a list of 1-D tensors, got {_kind(parts)}\nhint: {hint}"
                )
            if len(parts) != len(log_pi):
                raise ValueError(f"Batch.from_lists: {name} has {len(parts)} sequences, log_pi has {len(log_pi)}")
            for i, (a, b) in enumerate(zip(log_pi, parts, strict=True)):
                if a.shape != b.shape:
                    raise ValueError(
                        f"Batch.from_lists: sequence {i}: {name} has shape {tuple(b.shape)}, log_pi {tuple(a.shape)}"
                    )
        lengths = torch.tensor([0] + [len(x) for x in log_pi], device=log_pi[0].device if len(log_pi) else None)
        return cls.packed(
            _cat(log_pi),
            _cat(log_mu),
            lengths.cumsum(0),
            None if masks is None else _cat(masks),
            advantage=None if advantage is None else _cat(advantage),
            group=group,
            turn=None if turn is None else _cat(turn, torch.int64),
            candidates=candidates,
            check=check,
        )

    def __repr__(self) -> str:
        """Say what is in it in a line; values are read on a CPU alone."""
        packed = isinstance(self.layout, Packed)
        shape = f"{self.layout.num_seqs} sequences, " + (
            f"packed, {self.log_pi.shape[0]:,} slots" if packed else f"padded to {self.log_pi.shape[1]:,}"
        )
        said = [shape]
        if may_look(self.log_pi):
            said.append(f"{int(self.layout.mask.sum()):,} tokens count")
            if self.dropped is not None and (left := int(self.dropped.sum())):
                said.append(f"{left:,} left out for their log-probs")
        said.append(f"{str(self.log_pi.dtype).removeprefix('torch.')} on {self.log_pi.device}")
        held = {"advantage": self.advantage, "group": self.group, "turn": self.layout.turn}
        held["candidates"] = None if self.candidates is None else self.candidates.ids
        if any(x is not None for x in held.values()):
            said.append("with " + ", ".join(name for name, x in held.items() if x is not None))
        return f"Batch({'; '.join(said)})"

    def _repr_html_(self) -> str:
        """Say the same in a notebook."""
        return f"<code>{html.escape(repr(self))}</code>"

    def check(self) -> "Batch":
        """Read the values once (a host sync) and raise if they cannot be log-probs of these sequences.

        Returns:
            The batch itself, so that `Batch.padded(...).check()` is one line.

        Raises:
            ValueError: offsets that do not rise from 0 to N; log-probs that are NaN, infinite or positive on a token
                of the mask; a mask with no token; candidates that are none (`Candidates.check`). Each message has the
                count, the first place and a remedy.
        """
        if isinstance(self.layout, Packed):
            _check_offsets(self.layout.cu_seqlens, self.log_pi.shape[0])
        mask = self.layout.mask if self.dropped is None else self.layout.mask | self.dropped
        for name, log_p in (("log_pi", self.log_pi), ("log_mu", self.log_mu)):
            _check_log_probs(name, log_p.detach(), mask)
        if self.candidates is not None:
            self.candidates.check(mask)
        if not bool(mask.any()):
            raise ValueError(
                f"Batch: the mask is empty: 0 of {mask.numel()} tokens count.\n"
                "hint: is the mask 1 for response tokens and 0 for prompt and padding?"
            )
        return self


def _is_row(x: object) -> bool:
    return isinstance(x, Tensor) and x.dim() == 1


def _kind(x: object) -> str:
    """Say what something is, in a few words."""
    shape, dtype = getattr(x, "shape", None), getattr(x, "dtype", None)
    if shape is not None and dtype is not None:
        return f"{type(x).__module__.partition('.')[0]}.{type(x).__name__} {dtype} {tuple(shape)}"
    if isinstance(x, list | tuple):
        of = f" of {_kind(x[0])}" if x else ""  # type: ignore[reportUnknownArgumentType]
        return f"a {type(x).__name__}{of}"
    return type(x).__name__


def _hint_of(x: object) -> str:
    """Say how to make a tensor of it; nothing if it is far from one."""
    if isinstance(x, list | tuple):
        return _hint_of(x[0]) if x and not isinstance(x[0], list | Tensor) else ""  # type: ignore[reportUnknownArgumentType]
    if type(x).__module__.partition(".")[0] == "numpy":
        return "torch.from_numpy(x) makes a tensor of an array of NumPy."
    return "torch.tensor(x) makes a tensor of numbers." if isinstance(x, int | float) else ""


def _check_kinds(where: str, log_pi: object, log_mu: object, **others: object) -> None:
    """Refuse what is no tensor, and log-probs that are no floats."""
    for name, x in {"log_pi": log_pi, "log_mu": log_mu, **others}.items():
        if x is None and name in others:
            continue
        if not isinstance(x, Tensor):
            lists = "torch.tensor(x), or Batch.from_lists for sequences of unequal lengths."
            hint = _hint_of(x) if not isinstance(x, list | tuple) else lists
            told = f"{where}: {name} must be a tensor, got {_kind(x)}"
            raise ValueError(f"{told}\nhint: {hint}" if hint else told)
        if name.startswith("log_") and not x.is_floating_point():
            raise ValueError(
                f"{where}: {name} must be log-probs of a floating type, got {x.dtype}\n"
                "hint: are these token ids? log_pi and log_mu are what the two policies say of them, in nats."
            )


_LOOKED_AT = 1 << 16  # slots that are looked at when a batch is made: some ten microseconds
_ROUNDED = 0.1  # nats: log-probs computed in bfloat16 may come out so far over 0
_MANY = 0.25  # share of tokens with a log-prob over 0 from which on none of them is taken for one


def _look(where: str, log_pi: Tensor, log_mu: Tensor, mask: Tensor | None) -> None:
    """Refuse values that are plainly no log-probs, and a mask that is none, by the first slots."""
    live = None
    if mask is not None:
        given = mask.detach().flatten()[:_LOOKED_AT]
        live = given.bool()
        if given.dtype != torch.bool and not bool((given == live).all()):
            wrong = given[given != live][0]
            raise ValueError(
                f"{where}: mask must be 0 or 1, got {float(wrong):g}\n"
                "hint: 1 for response tokens that count, 0 for prompt, padding and tools; weights belong in the loss."
            )
    for name, log_p in (("log_pi", log_pi), ("log_mu", log_mu)):
        some = log_p.detach().flatten()[:_LOOKED_AT]
        if len(some) and float(some.amax()) <= POSITIVE_TOLERANCE:  # masked ones too: to pick tokens out takes longer
            continue
        some = some if live is None else some[live]
        if not len(some) or not float(some.amax()) > POSITIVE_TOLERANCE:  # a NaN is for the audit to count
            continue
        over = float((some > _ROUNDED).double().mean())
        if over < _MANY:
            continue
        low, high = (float(x) for x in (some.amin(), some.amax()))
        what, hint = "no log-probs", "a log-prob is at most 0: take log_softmax of logits; is the sign turned?"
        if 0 <= low <= high <= 1 + POSITIVE_TOLERANCE:
            what, hint = "probabilities", f"take their logarithm: {name}.log()"
        raise ValueError(
            f"{where}: {name} looks like {what}: {over:.0%} of the tokens are over 0, from {low:.3g} to {high:.3g}\n"
            f"hint: {hint}."
        )


def _check_shapes(
    where: str,
    log_pi: Tensor,
    others: dict[str, Tensor | None],
    num_seqs: int,
    advantage: Tensor | None,
    group: Tensor | None,
) -> None:
    """Refuse what is not shaped as the log-probs are, or not one a sequence where that is asked for."""
    for name, x in others.items():
        if x is not None and x.shape != log_pi.shape:
            raise ValueError(
                f"{where}: {name} and log_pi must have one shape, got {tuple(x.shape)} and {tuple(log_pi.shape)}.\n"
                "hint: log-probs, mask and turns are all of the response tokens, shifted the same way."
            )
    if (
        advantage is not None
        and advantage.shape != log_pi.shape
        and (advantage.numel() != num_seqs or advantage.shape[0] != num_seqs)
    ):
        raise ValueError(
            f"{where}: advantage must have one value a token {tuple(log_pi.shape)} or one a sequence ({num_seqs},), "
            f"got {tuple(advantage.shape)}"
        )
    if group is not None and (group.shape != (num_seqs,) or group.is_floating_point()):
        raise ValueError(
            f"{where}: group must be integers, one a sequence ({num_seqs},), got {group.dtype} {tuple(group.shape)}"
        )


def _check_candidates(where: str, log_pi: Tensor, candidates: object) -> None:
    """Refuse candidates that are not of the places of the log-probs."""
    if candidates is None:
        return
    if not isinstance(candidates, Candidates):
        raise ValueError(
            f"{where}: candidates must be Candidates, got {_kind(candidates)}\n"
            "hint: reweigh.Candidates(ids, log_mu, log_pi), each of the shape of log_pi and one more, k."
        )
    if candidates.ids.shape[:-1] != log_pi.shape:
        raise ValueError(
            f"{where}: candidates must stand at the places of log_pi, {(*log_pi.shape, 'k')}, "
            f"got {tuple(candidates.ids.shape)}"
        )


def _check_offsets(cu_seqlens: Tensor, num_tokens: int) -> None:
    """Refuse offsets that do not rise from 0 to the number of tokens; reads them."""
    offsets = cu_seqlens.long()
    falls = offsets.diff() < 0
    if bool(falls.any()):
        i = int(falls.nonzero()[0])
        raise ValueError(
            f"Batch.packed: cu_seqlens must not decrease, got {int(offsets[i])} "
            f"then {int(offsets[i + 1])} at index {i + 1}"
        )
    if int(offsets[0]) != 0 or int(offsets[-1]) != num_tokens:
        raise ValueError(
            f"Batch.packed: cu_seqlens must run from 0 to the number of tokens ({num_tokens}), "
            f"got {int(offsets[0])} to {int(offsets[-1])}"
        )


def _check_log_probs(name: str, log_p: Tensor, mask: Tensor) -> None:
    """Refuse what cannot be the log-probs of sampled tokens; reads them."""
    total = int(mask.sum())
    rules = (
        (
            torch.isnan(log_p),
            "NaN",
            "a NaN log-prob is a placeholder or an overflow; take the token out of the mask, or compute it again",
        ),
        (
            log_p.abs() >= NOT_A_NUMBER,
            "infinite",
            "the token was sampled, so no policy that produced it can say probability 0; look for top-p or top-k on "
            "one side only, a wrong token id, or a float16 overflow",
        ),
        (
            log_p > POSITIVE_TOLERANCE,
            "positive",
            "a log-prob is at most 0; compute the log-softmax in float32, or check that these are not logits",
        ),
    )
    for rule, word, hint in rules:
        bad = rule & mask
        count = int(bad.sum())
        if count:
            first = tuple(int(i) for i in bad.nonzero()[0])
            place = f"[{', '.join(map(str, first))}]"
            raise ValueError(
                f"Batch: {name} is {word} on {count} of {total} tokens in the mask, "
                f"first {name}{place} = {float(log_p[first]):.6g}\nhint: {hint}."
            )


@dataclass(frozen=True, eq=False)
class Seen:
    """The log ratio of each sequence, summed in the one walk that found all log-probs finite; and of which tensors.

    A batch that is made of other tensors with `replace` has no use for it, nor has one whose tensors were written to.

    Attributes:
        log_ratio: `[S]`, nats, float64.
        of: log_pi, log_mu and the mask.
        versions: theirs, which torch counts up when they are written to.
    """

    log_ratio: Float[Tensor, " S"]
    of: tuple[Tensor, Tensor, Tensor]
    versions: tuple[int, ...]

    @classmethod
    def of_tokens(cls, log_pi: Tensor, log_mu: Tensor, layout: Layout) -> "Seen | None":
        """Look at the tokens; None without the compiled kernel, and if a log ratio is not finite."""
        of = log_pi, log_mu, layout.mask
        if not may_look(log_pi) or any(x.is_inference() for x in of):  # those have no version
            return None
        found = walk.sums(log_pi, log_mu, None, layout.mask, layout.runs, native.FEW)
        if found is None or found[1]:
            return None
        return cls(found[0][:, 1], of, tuple(x._version for x in of))

    def is_of(self, batch: Batch) -> bool:
        """Whether the batch's tokens are those that were looked at."""
        own = batch.log_pi, batch.log_mu, batch.layout.mask
        same = batch.given is None and all(a is b for a, b in zip(self.of, own, strict=True))
        return same and self.versions == tuple(x._version for x in own)


def _looked_at(
    log_pi: Tensor, log_mu: Tensor, mask: Tensor | None, lay_out: Callable[[Tensor], Layout]
) -> tuple[Layout, Tensor | None, Seen | None]:
    """Lay tokens out without those whose log-probs are not finite; tell which these are, and what was summed.

    Args:
        log_pi: nats.
        log_mu: nats.
        mask: what counts; None if all tokens do.
        lay_out: makes the layout of a mask.
    """
    given = torch.ones_like(log_pi, dtype=torch.bool) if mask is None else mask.bool()
    if may_look(log_pi) and native.library() is not None:
        layout = lay_out(given)
        if (seen := Seen.of_tokens(log_pi, log_mu, layout)) is not None:
            return layout, None, seen
    live, dropped = _live_of(log_pi, log_mu, given)
    return lay_out(live), dropped, None


def _live_of(log_pi: Tensor, log_mu: Tensor, given: Tensor) -> tuple[Tensor, Tensor | None]:
    """Tell tokens that count from those that would if their log-probs were finite: None if there are none of these."""
    log_pi, log_mu = log_pi.detach(), log_mu.detach()
    if in_a_graph(log_pi):
        return _finite_op(log_pi, log_mu, given)
    dtype = torch.promote_types(torch.promote_types(log_pi.dtype, log_mu.dtype), torch.float32)
    if may_look(log_pi):
        # A finite norm says that no number, masked ones included, is beyond the root of the largest: no difference
        # overflows. One that overflows says nothing, which costs time only.
        floats = [log_p if log_p.is_floating_point() else log_p.to(dtype) for log_p in (log_pi, log_mu)]
        if sum(float(torch.linalg.vector_norm(log_p, dtype=dtype)) for log_p in floats) < NOT_A_NUMBER:
            return given, None
    live = given & ((log_pi.to(dtype) - log_mu.to(dtype)).abs() < NOT_A_NUMBER)  # False for NaN too
    return live, given ^ live


def _finite_alone(log_pi: Tensor, log_mu: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    live, dropped = _live_of(log_pi, log_mu, mask)
    return (mask.clone(), torch.zeros_like(mask)) if dropped is None else (live, dropped)


def _finite_shapes(log_pi: Tensor, log_mu: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(mask), torch.empty_like(mask)


# A compiled graph on a CPU calls it as one operator: there the compiler takes bools one at a time.
_finite_op = operator(
    "finite",
    _finite_alone,
    "(Tensor log_pi, Tensor log_mu, Tensor mask) -> (Tensor, Tensor)",
    _finite_shapes,
)


def _cut(x: Tensor | None, where: slice) -> Tensor | None:
    return None if x is None else x[where]


def _cat(parts: Sequence[Tensor], none: torch.dtype = torch.float32) -> Tensor:
    return torch.cat(list(parts)) if len(parts) else torch.zeros(0, dtype=none)
