"""The frameworks that have a profile."""

import difflib

from reweigh.rosetta.areal import AREAL
from reweigh.rosetta.ms_swift import MS_SWIFT
from reweigh.rosetta.nemo_rl import NEMO_RL
from reweigh.rosetta.open_instruct import OPEN_INSTRUCT
from reweigh.rosetta.openrlhf import OPENRLHF
from reweigh.rosetta.prime_rl import PRIME_RL
from reweigh.rosetta.profile import Profile
from reweigh.rosetta.roll import ROLL
from reweigh.rosetta.skyrl import SKYRL
from reweigh.rosetta.slime import SLIME
from reweigh.rosetta.trl import TRL
from reweigh.rosetta.verl import VERL

PROFILES: tuple[Profile, ...] = (
    VERL,
    TRL,
    SLIME,
    PRIME_RL,
    SKYRL,
    OPENRLHF,
    NEMO_RL,
    AREAL,
    MS_SWIFT,
    ROLL,
    OPEN_INSTRUCT,
)


def profile_of(name: str) -> Profile:
    """The profile of a framework by its name or alias; case, `-` and `_` do not matter.

    Raises:
        ValueError: if there is none; the message names the nearest.
    """
    wanted = _plain(name)
    names = {_plain(n): p for p in PROFILES for n in (p.name, *p.aliases)}
    if wanted in names:
        return names[wanted]
    near = difflib.get_close_matches(wanted, names, 3, 0.5)
    like = f"did you mean {', '.join(names[n].name for n in near)}? " if near else ""
    raise ValueError(f"rosetta: no profile of {name!r}\nhint: {like}there are {', '.join(p.name for p in PROFILES)}")


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").replace(" ", "")
