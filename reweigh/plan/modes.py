"""What a plan goes through: the modes of the field, and the defaults of popular frameworks as these compute them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reweigh.estimators import Estimator
from reweigh.named import geo_rs, prefix_tis, seq_is, seq_mis, seq_tis, snis, token_mis, token_tis, turn_tis
from reweigh.rosetta.frameworks import profile_of
from reweigh.rosetta.words import formula


@dataclass(frozen=True)
class Mode:
    """An estimator under the name that one knows it by.

    Attributes:
        name: as one would write it.
        estimator: what it computes.
        framework: whose default it is; empty if it is nobody's in particular.
        options: of the framework, those that are set.
    """

    name: str
    estimator: Estimator
    framework: str = ""
    options: Mapping[str, Any] | None = None

    @property
    def formula(self) -> str:
        """`w = ...`."""
        return formula(self.estimator)


def modes(turns: float | None = None) -> tuple[Mode, ...]:
    """From the finest level to the coarsest; turns only if there are any."""
    found = {
        "token_tis(2)": token_tis(2.0),
        "token_mis(0.5, 5)": token_mis(0.5, 5.0),
        "prefix_tis(2)": prefix_tis(2.0),
        **({} if turns is None else {"turn_tis(2)": turn_tis(2.0)}),
        "seq_is": seq_is(),
        "snis": snis(),
        "seq_tis(2)": seq_tis(2.0),
        "seq_tis(10)": seq_tis(10.0),
        "seq_mis(0, 2)": seq_mis(0.0, 2.0),
        "seq_mis(0.5, 2)": seq_mis(0.5, 2.0),
        "geo_rs(0.999, 1.001)": geo_rs(0.999, 1.001),
        "geo_rs(0.99, 1.01)": geo_rs(0.99, 1.01),
    }
    return tuple(Mode(name, estimator) for name, estimator in found.items())


# Name, framework, options that a user sets; what is not set is the framework's own default.
_DEFAULTS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("sequence mask 3.0", "trl", {}),
    ("token 2.0", "verl", {"rollout_is": "token"}),
    ("sequence 2.0", "verl", {"rollout_is": "sequence"}),
    ("geo 0.999-1.001", "verl", {"rollout_rs": "seq_mean_k1", "rollout_rs_threshold": "0.999_1.001"}),
    (
        "seq-mask-tis 0.999-1.002",
        "nemo-rl",
        {
            "use_importance_sampling_correction": True,
            "truncated_importance_sampling_type": "seq-mask-tis",
            "truncated_importance_sampling_ratio": 1.002,
            "truncated_importance_sampling_ratio_min": 0.999,
        },
    ),
    ("seq-mask-tis 0.5-5.0", "openrlhf", {"is_correction_level": "seq"}),
    ("token mask 0.5-5.0", "openrlhf", {"is_correction_level": "token"}),
    ("geometric 0.99-1.01", "skyrl", {"sequence_mask_metric": "geometric"}),
    ("product mask 0.5-2.0", "skyrl", {"sequence_mask_metric": "product"}),
    ("sequence 5.0", "skyrl", {"tis_ratio_type": "sequence"}),
)


def defaults() -> tuple[Mode, ...]:
    """Popular defaults, read by the profiles of their frameworks (`reweigh explain --from ...`)."""
    found: list[Mode] = []
    for name, framework, options in _DEFAULTS:
        profile = profile_of(framework)
        found.append(Mode(name, profile.read(options).plan.estimator, profile.name, options))
    return tuple(found)
