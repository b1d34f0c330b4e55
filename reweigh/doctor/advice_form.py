"""What the doctor knows about a cause before it has seen any data: what it is, how to settle it, how to end it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

ENGINES = ("vllm", "sglang")
"""Engines that a fix may name options of."""
TRAINERS = ("trl", "verl", "slime", "prime-rl", "skyrl", "nemo-rl")
"""Trainers that a fix may name options of."""
PROGRAMS = ("general", *ENGINES, *TRAINERS)
"""Keys that a fix may have: what holds for all, the engines, the trainers."""

RESCORE_TWICE = "Let the trainer compute log_pi of one batch twice, in another order, and write it as log_pi_repeat."
PREFILL = "Let the engine score its own responses again as a prompt, and write that as log_mu_prefill."
PLAIN_BATCH = "Sample one batch at temperature 1, top-p 1, top-k and min-p off, penalties off, and compare."
RATE_ZERO = "Run a few steps at learning rate 0: what still grows does not come from training."
RESTART = "Restart the engine from the newest checkpoint and compare the gap before and after."
EAGER = "Run the engine in eager mode, without captured graphs or compilation, on one batch."


@dataclass(frozen=True)
class Advice:
    """What to say of one cause.

    Attributes:
        title: the cause in a few plain words.
        meaning: what goes on, one sentence.
        rules_out: what would show that it is not this.
        fix: what to do, by program; a program of which nothing is known is not there. "general" always is.
        experiment: the cheapest thing to do that decides; empty if the data alone do.
        needs: columns of the rollout record that turn the guess into a proof.
    """

    title: str
    meaning: str
    rules_out: str
    fix: Mapping[str, str] = field(default_factory=dict[str, str])
    experiment: str = ""
    needs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a fix for a program that has no name here, and one without the general part."""
        unknown = [name for name in self.fix if name not in PROGRAMS]
        if unknown or "general" not in self.fix:
            raise ValueError(
                f'Advice: fix must have "general" and otherwise only names of {PROGRAMS}, got {tuple(self.fix)}'
            )
