"""A batch of responses on their way: what each has so far, and what comes next for it."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Job:
    """One response to sample.

    Attributes:
        prompt: token ids.
        seed: of its random numbers.
        max_tokens: that may be sampled, over all turns.
        tool: token ids put in after the first turn; empty for a single turn.
        first_turn: tokens after which the first turn ends, if it has not ended by itself.
    """

    prompt: tuple[int, ...]
    seed: int
    max_tokens: int
    tool: tuple[int, ...] = ()
    first_turn: int = 0


@dataclass
class Sample:
    """A response that grows; each list has a value a token.

    Attributes:
        ids: token ids.
        log_mu: log-probs as the engine logs them, nats.
        log_first: of the most probable token.
        log_second: of the second most probable one.
        sampled: False where a tool put the token in.
        turns: 0 before the tool, 1 from its first token on.
        later: True where the weights switched to made the token.
        finish: why it ended, "stop" or "length".
    """

    ids: list[int] = field(default_factory=list[int])
    log_mu: list[float] = field(default_factory=list[float])
    log_first: list[float] = field(default_factory=list[float])
    log_second: list[float] = field(default_factory=list[float])
    sampled: list[bool] = field(default_factory=list[bool])
    turns: list[int] = field(default_factory=list[int])
    later: list[bool] = field(default_factory=list[bool])
    finish: str = "length"


class Flight:
    """The responses of one batch. Those that are over leave it."""

    def __init__(self, jobs: Sequence[Job], end: int) -> None:
        self.jobs, self.end = jobs, end
        self.samples = [Sample() for _ in jobs]
        self.live = list(range(len(jobs)))
        self._forced: list[list[int]] = [[] for _ in jobs]

    @property
    def longest(self) -> int:
        """Tokens that no response of the batch exceeds."""
        return max(job.max_tokens + len(job.tool) for job in self.jobs)

    def forced(self) -> dict[int, int]:
        """Token ids that tools put in now, by row."""
        return {row: self._forced[job][0] for row, job in enumerate(self.live) if self._forced[job]}

    def add(
        self, ids: Sequence[int], log_mu: Sequence[float], top: Sequence[Sequence[float]], *, later: bool
    ) -> list[int]:
        """Add a token to every row; returns the rows that go on."""
        going: list[int] = []
        for row, job in enumerate(self.live):
            one = self.samples[job]
            one.ids.append(ids[row])
            one.log_mu.append(log_mu[row])
            one.log_first.append(top[row][0])
            one.log_second.append(top[row][1])
            one.later.append(later)
            one.sampled.append(not self._forced[job])
            one.turns.append(self._turn(job))
            if self._forced[job]:
                self._forced[job].pop(0)
                going.append(row)
            elif not self._over(job):
                going.append(row)
        return going

    def keep(self, rows: Sequence[int]) -> None:
        """Let only these rows go on."""
        self.live = [self.live[row] for row in rows]

    def _turn(self, job: int) -> int:
        return int(bool(self._forced[job]) or 1 in self.samples[job].turns[-1:])

    def _over(self, job: int) -> bool:
        """Whether a response is over after a token that was sampled; has the tool speak when its first turn is."""
        one, wanted = self.samples[job], self.jobs[job]
        ended = one.ids[-1] == self.end
        if wanted.tool and one.turns[-1] == 0 and (ended or len(one.ids) >= wanted.first_turn):
            self._forced[job].extend(wanted.tool)
            return False
        if ended:
            one.finish = "stop"
        return ended or sum(one.sampled) >= wanted.max_tokens
