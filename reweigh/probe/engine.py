"""Engines: anything that turns prompts into tokens and says how probable each was; and the prompts."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

LogprobsMode = Literal["processed", "raw"]

# The finish reason of a response that was cut before a token whose log-prob the engine did not give.
CUT = "cut"


# Mixes seed and sequence into one seed; a prime, so that nearby pairs do not meet.
SEED_STRIDE = 1_000_003
_MOST_SEED = (1 << 31) - 1  # what every server takes for a seed; prime too


class ProbeError(ValueError):
    """A probe that cannot go on, with what was tried and a remedy after "hint:"."""


@dataclass(frozen=True)
class SamplingSettings:
    """How to draw: `p(token) ~ softmax(logits / temperature)`, cut to the nucleus of mass `top_p`.

    Attributes:
        temperature: over 0; greedy decoding has no ratio.
        top_p: in (0, 1]; 1 keeps the whole vocabulary.
        max_tokens: responses end here at the latest.
        seed: equal seeds draw equal samples, where the engine can.
        n: responses to each prompt.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 64
    seed: int = 0
    n: int = 2

    def __post_init__(self) -> None:
        """Refuse what cannot be sampled with."""
        if not self.temperature > 0:
            raise ProbeError(
                f"SamplingSettings: temperature must be > 0, got {self.temperature}\n"
                "hint: greedy decoding gives every token probability 1, so there is no ratio to measure; use 1.0."
            )
        if not 0 < self.top_p <= 1:
            raise ProbeError(f"SamplingSettings: top_p must be in (0, 1], got {self.top_p}\nhint: 1.0 turns it off.")
        for name, value in (("max_tokens", self.max_tokens), ("n", self.n)):
            if value < 1:
                raise ProbeError(f"SamplingSettings: {name} must be >= 1, got {value}\nhint: ask for one at least.")

    def seed_of(self, prompt: int, draw: int) -> int:
        """Give each response a seed of its own, and to runs of other seeds other ones: a positive 31-bit integer."""
        return (self.seed * SEED_STRIDE + prompt * self.n + draw) % _MOST_SEED

    @property
    def plain(self) -> bool:
        """True if tokens are drawn from the model's own softmax, so raw and processed log-probs are the same."""
        return self.temperature == 1 and self.top_p == 1


@dataclass(frozen=True)
class Sample:
    """One response.

    Attributes:
        prompt: index of its prompt in the list that was given.
        draw: which of the prompt's `n` responses it is.
        token_ids: the response, with its end token if it drew one; may be empty if it was cut.
        log_mu: nats, of each token under the distribution it was drawn from.
        finish_reason: "stop", "length", CUT, or the engine's own word.
        support: ids that could have been drawn at each token, where that was asked for and is not all.
    """

    prompt: int
    draw: int
    token_ids: tuple[int, ...]
    log_mu: tuple[float, ...]
    finish_reason: str | None
    support: tuple[tuple[int, ...], ...] | None = None


@dataclass(frozen=True)
class EngineInfo:
    """An engine as it describes itself, for the record's metadata; None is unknown."""

    name: str
    version: str | None
    model: str | None
    dtype: str | None
    logprobs_mode: LogprobsMode | None
    note: str | None = None


def silent(tokens: int) -> None:
    """Ignore progress: the default for `on_tokens`."""


class Engine(ABC):
    """Samples tokens with their log-probs. To add one, write these three methods."""

    @property
    @abstractmethod
    def info(self) -> EngineInfo:
        """Name, version, model and number format, as the engine knows them."""

    @abstractmethod
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        settings: SamplingSettings,
        on_tokens: Callable[[int], None] = silent,
    ) -> Generator[Sample, None, None]:
        """Draw `settings.n` responses to each prompt, given as token ids, and yield each as soon as it is whole.

        Args:
            prompts: token ids, with whatever the chat template adds.
            settings: how to draw.
            on_tokens: called with a number of tokens whenever that many more were drawn.

        Yields:
            Samples in any order. Closing the generator early stops the engine.

        Raises:
            ProbeError: the engine cannot do it, or its log-probs are not of what it drew from.
        """

    @abstractmethod
    def close(self) -> None:
        """Give back what the engine holds: memory, connections, processes."""


Pass = Literal["decode", "prefill"]


class ForcingEngine(Engine):
    """An engine that also tells the log-probs of tokens that it is given, so that two settings see the same tokens."""

    @property
    @abstractmethod
    def passes(self) -> tuple[Pass, ...]:
        """The ways it can: token by token as when it samples, or all in one forward."""

    @abstractmethod
    def force(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        settings: SamplingSettings,
        way: Pass,
        on_tokens: Callable[[int], None] = silent,
    ) -> list[list[float]]:
        """Give the log-prob of each token of each response after its prompt, nats, under temperature and top-p.

        Raises:
            ProbeError: the engine cannot do it that way.
        """


@dataclass(frozen=True)
class Prompt:
    """A question and the name it has in the records."""

    prompt_id: str
    text: str


def load_prompts(path: Path | None = None, limit: int | None = None) -> list[Prompt]:
    """Read prompts: the package's own, or a file.

    Args:
        path: `.jsonl`, one `{"prompt": ..., "id": ...}` a line (`id` optional), or text, one prompt a line; blank
            lines are skipped.
        limit: take the first so many.

    Raises:
        ProbeError: no such file, a line that is not a prompt, or fewer prompts than `limit`.
    """
    if path is None:
        text, place = files("reweigh.probe").joinpath("prompts.jsonl").read_text("utf-8"), "prompts.jsonl"
    else:
        if not path.is_file():
            raise ProbeError(f"--prompts: no file {path}\nhint: give a .txt with one prompt a line, or a .jsonl.")
        text, place = path.read_text("utf-8"), str(path)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    prompts = [_prompt(line, place, number) for number, line in lines]
    if not prompts:
        raise ProbeError(f"--prompts: {place} has no prompts\nhint: one a line.")
    if limit is not None and len(prompts) < limit:
        raise ProbeError(
            f"--num-prompts: {limit} asked for, {place} has {len(prompts)}\n"
            f"hint: give --prompts FILE with more, or --num-prompts {len(prompts)} and more --samples-per-prompt."
        )
    return prompts[:limit]


def tokenize(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of each prompt as one user message, with the chat template if the tokenizer has one."""
    return [_ids(prompt.text, tokenizer) for prompt in prompts]


def _ids(text: str, tokenizer: Any) -> list[int]:
    if tokenizer.chat_template is None:
        return list(tokenizer(text)["input_ids"])
    message = {"role": "user", "content": text}
    return list(tokenizer.apply_chat_template([message], add_generation_prompt=True, return_dict=False))


def _prompt(line: str, place: str, number: int) -> Prompt:
    name = f"line-{number}"
    if not place.endswith(".jsonl"):
        return Prompt(name, line.rstrip("\r"))
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ProbeError(f"--prompts: {place} line {number} is not JSON: {error}\nhint: one object a line.") from error
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise ProbeError(
            f'--prompts: {place} line {number} has no text under "prompt"\nhint: {{"prompt": "Why is the sky blue?"}}'
        )
    return Prompt(str(row.get("id", name)), row["prompt"])
