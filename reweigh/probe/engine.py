"""What samples: anything that turns prompts into tokens and says how probable each token was when it drew it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Literal

LogprobsMode = Literal["processed", "raw"]

# The finish reason of a response that was cut before a token whose log-prob the engine did not give.
CUT = "cut"


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
    """

    prompt: int
    draw: int
    token_ids: tuple[int, ...]
    log_mu: tuple[float, ...]
    finish_reason: str | None


@dataclass(frozen=True)
class EngineInfo:
    """What an engine says of itself, for the record's metadata; None is unknown."""

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
