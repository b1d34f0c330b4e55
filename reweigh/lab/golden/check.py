"""A golden file checked whole: every number in it is an input, or is recomputed and compared."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reweigh.lab.distances import distances, norms
from reweigh.lab.golden import instance as ours
from reweigh.lab.golden.bounds import inequalities
from reweigh.lab.golden.compare import Comparison, Tally
from reweigh.lab.golden.samples import MODEL_INPUTS, SAMPLE_INPUTS, log_normal, sample_statistics

Json = Mapping[str, Any]
_PROSE = ("format", "conventions")
_GRADIENTS = ("mean", "bias", "bias_norm", "delta_bias", "delta_bias_norm")


@dataclass(frozen=True)
class GoldenCheck:
    """What came of checking a file.

    Attributes:
        path: the file.
        instances: names of its worlds.
        tallies: one for each kind of quantity.
        uncovered: places in the file that nothing was computed for; empty if all was.
    """

    path: str
    instances: tuple[str, ...]
    tallies: tuple[Tally, ...]
    uncovered: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many numbers were compared."""
        return sum(t.count for t in self.tallies)

    @property
    def ok(self) -> bool:
        """Whether everything in the file was compared and is within its tolerance."""
        return not self.uncovered and all(t.ok for t in self.tallies)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; an error that is not finite is null."""
        return {
            "path": self.path,
            "ok": self.ok,
            "instances": list(self.instances),
            "count": self.count,
            "groups": [
                {
                    "group": t.group,
                    "count": t.count,
                    "worst": t.worst if t.worst < float("inf") else None,
                    "tolerance": t.tolerance,
                    "where": t.where,
                    "ok": t.ok,
                }
                for t in self.tallies
            ],
            "uncovered": list(self.uncovered),
        }


def check_golden(path: str | Path, on_instance: Callable[[int], None] | None = None) -> GoldenCheck:
    """Recompute every quantity of a golden file and compare.

    Args:
        path: a JSON file of the format that its `conventions` describe.
        on_instance: called with 1 after each world.

    Raises:
        ValueError: if the file is not of that format, or describes no world.
        OSError: if it cannot be read.
    """
    data = _read(Path(path))
    found = Comparison()
    for i, given in enumerate(data["instances"]):
        missing = [key for key in ours.INPUTS if key not in given]
        if missing:
            raise ValueError(f"{path}: instance {i} has no {', '.join(missing)}\nhint: see the file's `conventions`")
        _instance(found, given)
        if on_instance is not None:
            on_instance(1)
    if "sample_stats" in data:
        given = _without(data["sample_stats"], SAMPLE_INPUTS)
        found.walk("sample_stats", "sample_stats", given, sample_statistics(data["sample_stats"]))
    for i, row in enumerate(data.get("lognormal", [])):
        found.walk("lognormal", f"lognormal[{i}]", _without(row, MODEL_INPUTS), log_normal(row))
    for key in data:
        if key not in (*_PROSE, "instances", "sample_stats", "lognormal"):
            found.uncovered.append(key)
    names = tuple(str(given["name"]) for given in data["instances"])
    return GoldenCheck(str(path), names, tuple(found.tallies.values()), tuple(found.uncovered))


def _instance(found: Comparison, given: Json) -> None:
    name, world = str(given["name"]), ours.world_of(given)
    d, k = distances(world), norms(world)
    cap, band = float(given["C"]), (float(given["lo"]), float(given["hi"]))
    g = k.gradient
    sizes = {"": g * g, **dict.fromkeys(_GRADIENTS, g)}
    snis_sizes = sizes | {"N": 1.0, "E_inv_ess": 1.0}
    group_sizes = {"mean_self": g, "mean_loo": g}
    computed: dict[str, Callable[[Any], Any]] = {
        "leaves": lambda _: ours.leaves(world),
        "dist": lambda _: ours.dist(world, d, k),
        "weights_at_C": lambda _: ours.weights_at(world, cap),
        "seq": lambda _: ours.sequences(world),
        "geo_accept_mu": lambda _: ours.accepted(world, *band),
        "snis": lambda x: ours.snis(x, world),
        "grpo": lambda x: ours.groups(x, world, cap),
        "C_rules": lambda x: ours.caps(x, world, d.m2),
    }
    for key, value in given.items():
        where = f"{name}.{key}"
        if key in ours.INPUTS and key != "leaves":
            continue
        if key == "estimators":
            exact = ours.estimators(given, world)
            for estimator, entries in value.items():
                mine = ours.moments(entries, exact[estimator]) if estimator in exact else None
                found.walk("estimators", f"{where}.{estimator}", entries, mine, sizes)
        elif key == "snis":
            mine = computed[key](value)
            for n, entries in value.items():
                found.walk("snis", f"{where}.{n}", entries, mine[n], snis_sizes)
        elif key == "grpo":
            mine = computed[key](value)
            for weight, entries in value.items():
                found.walk("grpo", f"{where}.{weight}", entries, mine.get(weight), group_sizes)
        elif key == "bounds":
            n = float(given.get("C_rules", {}).get("N", 64))
            sides = inequalities(world, d, k, cap, band, n)
            for row in value:
                left, right = sides.get(row["name"], (None, None))
                found.add("bounds.lhs", f"{where}[{row['name']}].lhs", row["lhs"], left)
                found.add("bounds.rhs", f"{where}[{row['name']}].rhs", row["rhs"], right)
        elif key == "g":
            found.add(key, where, value, world.gradient.tolist(), g)
        else:
            found.walk(key, where, value, computed[key](value) if key in computed else None)


def _without(given: Json, names: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key not in names}


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ValueError(f"{path}: not JSON: {e}\nhint: `lab check` takes a golden file of the lab") from e
    if not isinstance(data, dict) or not isinstance(data.get("instances"), list):  # pyright: ignore[reportUnknownMemberType]
        raise ValueError(f'{path}: a golden file is an object with "instances", a list\nhint: see its "conventions"')
    return data  # pyright: ignore[reportUnknownVariableType]
