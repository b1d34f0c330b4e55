"""What is no batch, and in which words it is refused: shapes that disagree, offsets and values that cannot be."""

from collections.abc import Callable

import torch
from torch import Tensor

# Log-probs computed in bfloat16 land on a lattice and can come out a little over 0; float32 rounding stays below this.
POSITIVE_TOLERANCE = 1e-4  # nats


def same_shape(where: str, log_pi: Tensor, **others: Tensor | None) -> None:
    """Refuse what is not shaped as the log-probs are."""
    for name, x in others.items():
        if x is not None and x.shape != log_pi.shape:
            raise ValueError(
                f"{where}: {name} and log_pi must have one shape, got {tuple(x.shape)} and {tuple(log_pi.shape)}.\n"
                "hint: log-probs, mask and turns are all of the response tokens, shifted the same way."
            )


def per_token(
    where: str, advantage: Tensor | None, log_pi: Tensor, num_seqs: int, spread: Callable[[Tensor], Tensor]
) -> Tensor | None:
    """The advantage of each token, from one a token or one a sequence."""
    if advantage is None or advantage.shape == log_pi.shape:
        return advantage
    if advantage.numel() == num_seqs and advantage.shape[0] == num_seqs:
        return spread(advantage.flatten()).expand(log_pi.shape)
    raise ValueError(
        f"{where}: advantage must have one value a token {tuple(log_pi.shape)} or one a sequence ({num_seqs},), "
        f"got {tuple(advantage.shape)}"
    )


def group_shape(where: str, group: Tensor | None, num_seqs: int) -> None:
    """Refuse a group that is not one integer a sequence."""
    if group is not None and (group.shape != (num_seqs,) or group.is_floating_point()):
        raise ValueError(
            f"{where}: group must be integers, one a sequence ({num_seqs},), got {group.dtype} {tuple(group.shape)}"
        )


def check_offsets(cu_seqlens: Tensor, num_tokens: int) -> None:
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


def check_values(name: str, x: Tensor, mask: Tensor) -> None:
    """Refuse what cannot be the log-probs of sampled tokens; reads them."""
    total = int(mask.sum())
    rules = (
        (
            torch.isnan(x),
            "NaN",
            "a NaN log-prob is a placeholder or an overflow; take the token out of the mask, or compute it again",
        ),
        (
            torch.isinf(x),
            "infinite",
            "the token was sampled, so no policy that produced it can say probability 0; look for top-p or top-k on "
            "one side only, a wrong token id, or a float16 overflow",
        ),
        (
            x > POSITIVE_TOLERANCE,
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
                f"first {name}{place} = {float(x[first]):.6g}\nhint: {hint}."
            )
