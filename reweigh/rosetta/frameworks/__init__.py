"""The frameworks that have a profile: for each a module of what computes, and a data file of what is written down.

A new version of a framework is followed in at most three places:

1. its data file (`verl.toml`): the version, options with defaults and words, presets, metrics; the docstring of
   `reweigh.rosetta.profile` has the form, and a key that does not fit is told when it is read;
2. its module (`verl.py`), only if an option computes something new;
3. the recording, `tests/data/conformance.json`, only if the framework's own functions return something new: the counts
   that `tests/test_conformance.py` holds go with it.

`python docs/rosetta.py` then writes the page anew. A new framework is a pair of files and a line below.
"""

import difflib

from reweigh.rosetta.frameworks.areal import AREAL
from reweigh.rosetta.frameworks.ms_swift import MS_SWIFT
from reweigh.rosetta.frameworks.nemo_rl import NEMO_RL
from reweigh.rosetta.frameworks.open_instruct import OPEN_INSTRUCT
from reweigh.rosetta.frameworks.openrlhf import OPENRLHF
from reweigh.rosetta.frameworks.prime_rl import PRIME_RL
from reweigh.rosetta.frameworks.roll import ROLL
from reweigh.rosetta.frameworks.skyrl import SKYRL
from reweigh.rosetta.frameworks.slime import SLIME
from reweigh.rosetta.frameworks.tinker import TINKER
from reweigh.rosetta.frameworks.trl import TRL
from reweigh.rosetta.frameworks.unsloth import UNSLOTH
from reweigh.rosetta.frameworks.verl import VERL
from reweigh.rosetta.frameworks.vime import VIME
from reweigh.rosetta.profile import Profile

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
    UNSLOTH,
    TINKER,
    VIME,
)
"""The frameworks that are known, in the order in which they are shown."""


def profile_of(name: str) -> Profile:
    """Find the profile of a framework by its name or alias; case, `-` and `_` do not matter.

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
