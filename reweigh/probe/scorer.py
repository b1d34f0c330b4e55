"""Score tokens that something else sampled with a model: the trainer's half of a probe."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from reweigh.probe.engine import ProbeError, silent
from reweigh.probe.models import NumberFormat, rope_note


def log_softmax(logits: Float[Tensor, "N V"], temperature: float) -> Float[Tensor, "N V"]:
    """`log softmax(logits / temperature)`, in float32 whatever comes in."""
    return torch.log_softmax(logits.float() / temperature, dim=-1)


def nucleus(log_p: Float[Tensor, "N V"], top_p: float) -> Bool[Tensor, "N V"]:
    """The fewest most probable tokens whose mass reaches `top_p`; always one at least.

    Also called: top-p (Holtzman et al. 2020). A token is in if the mass of those before it is under `top_p`, which is
    the rule of vLLM, SGLang and transformers.
    """
    ordered, order = log_p.sort(dim=-1, descending=True, stable=True)
    p = ordered.exp()
    inside = p.cumsum(-1) - p < top_p
    inside[:, 0] = True
    return torch.zeros_like(inside).scatter(-1, order, inside)


def sampling_log_probs(logits: Float[Tensor, "N V"], temperature: float, top_p: float) -> Float[Tensor, "N V"]:
    """Log-probs after temperature and top-p, as drawn from: -inf outside the nucleus, which is scaled up to mass 1."""
    log_p = log_softmax(logits, temperature)
    if top_p >= 1:
        return log_p
    return torch.log_softmax(log_p.masked_fill(~nucleus(log_p, top_p), -torch.inf), dim=-1)


def score_log_probs(
    logits: Float[Tensor, "N V"], token_ids: Int[Tensor, " N"], temperature: float, top_p: float
) -> tuple[Float[Tensor, "N V"], Bool[Tensor, " N"]]:
    """Log-probs that another policy gives on the support that the sampler drew from.

    The sampler's nucleus is not on record, but each sampled token was in it. So the nucleus is the scorer's own, with
    the sampled token put in where it is missing: the log-prob of a sampled token is always finite, and two equal
    policies score equally.

    Returns:
        `[N, V]` log-probs, and `[N]`: True where the sampled token lay outside the scorer's own nucleus.
    """
    log_p = log_softmax(logits, temperature)
    if top_p >= 1:
        return log_p, torch.zeros_like(token_ids, dtype=torch.bool)
    inside = nucleus(log_p, top_p)
    outside = ~inside.gather(-1, token_ids[:, None]).squeeze(-1)
    inside = inside.scatter(-1, token_ids[:, None], value=True)
    return torch.log_softmax(log_p.masked_fill(~inside, -torch.inf), dim=-1), outside


def entropy(log_p: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    """`-sum p log p`, nats."""
    return torch.special.entr(log_p.exp()).sum(-1)


def log_mass(log_p: Float[Tensor, "N V"], support: Sequence[Sequence[int] | None]) -> Float[Tensor, " N"]:
    """`log sum_{v in S} p_v` of each row, nats; 0 where S is None."""
    kept = [torch.tensor([] if ids is None else list(ids), dtype=torch.int64, device=log_p.device) for ids in support]
    rows = [log_p[i, ids].logsumexp(0) if len(ids) else log_p.new_zeros(()) for i, ids in enumerate(kept)]
    return torch.stack(rows) if rows else log_p.new_zeros(0)


def draw(log_p: Float[Tensor, "N V"], uniform: Float[Tensor, " N"]) -> Int[Tensor, " N"]:
    """One token a row by inverting the cumulative distribution, so that a uniform number decides a token alone.

    In float64: a float32 running sum over a large vocabulary would lose its tail.
    """
    mass = log_p.double().exp().cumsum(-1)
    return torch.searchsorted(mass, (uniform.to(mass) * mass[:, -1])[:, None], right=True).squeeze(-1)


# Tokens whose logits are in memory at once: a few copies of 256 x 50,000 floats are 50 MB each.
_HEAD_TOKENS = 256
# Tokens in one forward, padding included.
_FORWARD_TOKENS = 4096


@dataclass(frozen=True)
class Response:
    """Tokens to score, after their prompt.

    Attributes:
        prompt_ids: what came before.
        token_ids: what is scored.
        support_ids: what the sampler kept at each token, None at one where it kept all; None if that is not known.
    """

    prompt_ids: Sequence[int]
    token_ids: Sequence[int]
    support_ids: Sequence[Sequence[int] | None] | None = None


@dataclass(frozen=True)
class Score:
    """The scorer's numbers of one response; each list has a value a token.

    Attributes:
        log_pi: nats, under the temperature and top-p that it was sampled with.
        entropy_pi: nats, of the distribution that `log_pi` is of, or None.
        log_pi_repeat: nats, scored a second time, in other company, or None.
        num_outside: tokens outside the scorer's own nucleus (top-p below 1 only).
        log_support_pi: nats, log of the mass on what the sampler kept, if that is known: `log_pi` is then of the whole
            vocabulary, and `log_pi - log_support_pi` is what the sampler's log-prob is to be compared with.
    """

    log_pi: list[float]
    entropy_pi: list[float] | None
    log_pi_repeat: list[float] | None
    num_outside: int
    log_support_pi: list[float] | None = None


@dataclass(frozen=True, eq=False)
class Scorer:
    """Scores responses with a `transformers` model: one forward, then the vocabulary a few tokens at a time.

    Attributes:
        model: in inference mode, on its device.
        dtype: the number format that it was loaded in.
        temperature: as sampled.
        top_p: as sampled.
        with_entropy: also compute the entropy, nearly free.
        with_repeat: also score a second time, in batches of one; equal numbers mean that the batch does not matter.
        forward_tokens: tokens in one forward, padding included; None is 4,096.
    """

    model: PreTrainedModel
    dtype: NumberFormat
    temperature: float = 1.0
    top_p: float = 1.0
    with_entropy: bool = True
    with_repeat: bool = False
    forward_tokens: int | None = None

    @property
    def version(self) -> str:
        """Version of the library that does the forward."""
        return transformers.__version__

    @property
    def note(self) -> str | None:
        """What of the model makes a score depend on more than its own row; None if nothing does."""
        return rope_note(self.model)

    def score(self, responses: Sequence[Response], on_tokens: Callable[[int], None] = silent) -> list[Score]:
        """Score each response, in the order given; longest together, so that little is padded.

        Raises:
            ProbeError: a token id that the model does not have.
        """
        self._check_ids(responses)
        scores: dict[int, Score] = {}
        for rows in _batches(responses, self.forward_tokens or _FORWARD_TOKENS):
            parts = self._forward([responses[i] for i in rows])
            for i, (log_pi, nats, outside, mass) in zip(rows, parts, strict=True):
                repeat = self._forward([responses[i]])[0][0].tolist() if self.with_repeat else None
                entropies = nats.tolist() if self.with_entropy else None
                kept = None if responses[i].support_ids is None else mass.tolist()
                scores[i] = Score(log_pi.tolist(), entropies, repeat, int(outside.sum()), kept)
                on_tokens(len(log_pi))
        return [scores[i] for i in range(len(responses))]

    @torch.inference_mode()
    def _forward(self, rows: Sequence[Response]) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        device = self.model.device
        width = max(len(row.prompt_ids) + len(row.token_ids) for row in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.int64)
        mask = torch.zeros(len(rows), width, dtype=torch.int64)
        for i, row in enumerate(rows):
            whole = [*row.prompt_ids, *row.token_ids]
            ids[i, : len(whole)] = torch.tensor(whole)
            mask[i, : len(whole)] = 1
        hidden = _trunk(self.model)(
            input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False
        ).last_hidden_state
        results: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for i, row in enumerate(rows):
            # The logits at a position are of the token after it.
            start, length = len(row.prompt_ids) - 1, len(row.token_ids)
            token_ids = torch.tensor(list(row.token_ids), dtype=torch.int64, device=device)
            results.append(self._vocabulary(hidden[i, start : start + length], token_ids, row.support_ids))
        return results

    def _vocabulary(
        self, hidden: Tensor, token_ids: Tensor, support: Sequence[Sequence[int] | None] | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        log_pi, nats, outside, mass = ([hidden.new_zeros(0)] for _ in range(4))
        top_p = self.top_p if support is None else 1.0  # what was kept is on record: it is not to be guessed
        for start in range(0, len(token_ids), _HEAD_TOKENS):
            ids = token_ids[start : start + _HEAD_TOKENS]
            logits = _head(self.model)(hidden[start : start + _HEAD_TOKENS])
            log_p, out = score_log_probs(logits, ids, self.temperature, top_p)
            if support is not None:
                mass.append(log_mass(log_p, support[start : start + _HEAD_TOKENS]))
            log_pi.append(log_p.gather(-1, ids[:, None]).squeeze(-1))
            nats.append(entropy(log_p) if self.with_entropy else log_p.new_zeros(len(ids)))
            outside.append(out)
        return torch.cat(log_pi), torch.cat(nats), torch.cat(outside), torch.cat(mass)

    def _check_ids(self, responses: Sequence[Response]) -> None:
        size = int(self.model.config.vocab_size)
        for i, row in enumerate(responses):
            if not row.prompt_ids:
                raise ProbeError(f"scorer: response {i} has an empty prompt\nhint: one token at least comes before it.")
            worst = max([*row.prompt_ids, *row.token_ids, *(x for ids in row.support_ids or () for x in ids or ())])
            if worst >= size:
                raise ProbeError(
                    f"scorer: response {i} has token id {worst}, the trainer's model has {size} tokens\n"
                    "hint: engine and trainer must be the same model; check --model, --trainer-model and the server."
                )


def check_head(model: PreTrainedModel) -> None:
    """Check that the vocabulary layer alone turns hidden states into logits, as the scorer assumes.

    Raises:
        ProbeError: the model does something more (soft-capping, a logit scale), which would be left out.
    """
    ids = torch.arange(2, 6, device=model.device)[None]
    with torch.inference_mode():
        whole = model(input_ids=ids, use_cache=False).logits.float()
        parts = _head(model)(_trunk(model)(input_ids=ids, use_cache=False).last_hidden_state).float()
    gap = float((whole - parts).abs().max())
    # Far over any rounding of equal computations, far under any soft-cap or scale.
    if gap > 1e-2 * float(whole.abs().max()):
        raise ProbeError(
            f"scorer: {type(model).__name__} changes its logits after the vocabulary layer (by up to {gap:.3g})\n"
            "hint: the scorer does not know how; score with a model that has a plain vocabulary layer."
        )


def _trunk(model: PreTrainedModel) -> Any:
    return model.base_model


def _head(model: PreTrainedModel) -> Any:
    return model.get_output_embeddings()


def _batches(responses: Sequence[Response], max_tokens: int) -> Iterator[list[int]]:
    """Indices by falling length, cut so that rows x longest stays within `max_tokens`; one row at least."""

    def length(i: int) -> int:
        return len(responses[i].prompt_ids) + len(responses[i].token_ids)

    batch: list[int] = []
    for i in sorted(range(len(responses)), key=length, reverse=True):
        if batch and (len(batch) + 1) * length(batch[0]) > max_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
