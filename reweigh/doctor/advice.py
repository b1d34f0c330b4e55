"""For every cause: what it is in plain words, what would rule it out, what to do about it, and how to be sure."""

from collections.abc import Collection, Mapping

from reweigh.doctor.advice_form import ENGINES, PROGRAMS, TRAINERS, Advice
from reweigh.doctor.advice_policies import SETTINGS
from reweigh.doctor.advice_structure import NORMALISATION, STRUCTURE
from reweigh.doctor.advice_weights import WEIGHTS
from reweigh.doctor.diagnosis import CAUSES, CauseId

__all__ = ["ADVICE", "ENGINES", "PROGRAMS", "TRAINERS", "Advice", "fix_for"]

_ALL: dict[CauseId, Advice] = {**STRUCTURE, **NORMALISATION, **SETTINGS, **WEIGHTS}
ADVICE: Mapping[CauseId, Advice] = {cause: _ALL[cause] for cause in CAUSES}
"""What to say of each cause, in the order in which they are tested."""


def fix_for(cause: CauseId, programs: Collection[str] | None = None) -> dict[str, str]:
    """What to do about a cause, in the words of some programs; "general" is always among them.

    Args:
        cause: its name.
        programs: of `PROGRAMS`; None for all. One of which nothing is known for this cause is left out.

    Returns:
        Text by program, in the order of `PROGRAMS`.

    Raises:
        ValueError: a program that has no name here.

    Example:
        >>> for program, text in fix_for("raw_logprobs", ("verl",)).items():
        ...     print(f"{program}: {text}")
        general: Have the engine log what it samples from, or sample at temperature 1 without penalties.
        verl: actor_rollout_ref.rollout.logprobs_mode=processed_logprobs
    """
    for name in programs or ():
        if name not in PROGRAMS:
            raise ValueError(f"fix_for: no program {name!r}\nhint: use one of {', '.join(PROGRAMS)}.")
    fix = ADVICE[cause].fix
    wanted = PROGRAMS if programs is None else {"general", *programs}
    return {name: fix[name] for name in PROGRAMS if name in fix and name in wanted}
