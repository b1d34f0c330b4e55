"""verl's presets: the factory methods of its `RolloutCorrectionConfig`, with their default bounds."""

from typing import Any

from reweigh.rosetta.profile import Word

_GEO, _K3, _ICEPOP = ("seq_mean_k1", "0.999_1.001"), ("seq_mean_k3", 0.01), "0.5_5.0"
# Name: (level of the weights, their threshold, screen with its threshold, loss in bypass mode).
_PRESETS: dict[str, tuple[str | None, Any, tuple[str, Any] | None, str | None]] = {
    "decoupled_token_is": ("token", 2.0, None, None),
    "decoupled_seq_is": ("sequence", 2.0, None, None),
    "decoupled_token_icepop": ("token", _ICEPOP, None, None),
    "decoupled_seq_is_rs": ("sequence", 2.0, ("seq_sum_k1", "0.5_2.0"), None),
    "decoupled_geo_rs": (None, 2.0, _GEO, None),
    "decoupled_geo_rs_seq_tis": ("sequence", 2.0, _GEO, None),
    "decoupled_geo_rs_token_tis": ("token", 2.0, _GEO, None),
    "decoupled_k3_rs": (None, 2.0, _K3, None),
    "decoupled_k3_rs_seq_tis": ("sequence", 2.0, _K3, None),
    "decoupled_k3_rs_token_tis": ("token", 2.0, _K3, None),
    "bypass_ppo_clip": (None, 2.0, None, "ppo_clip"),
    "bypass_ppo_clip_geo_rs": (None, 2.0, _GEO, "ppo_clip"),
    "bypass_ppo_clip_k3_rs": (None, 2.0, _K3, "ppo_clip"),
    "bypass_pg_is": ("sequence", 2.0, None, "reinforce"),
    "bypass_pg_token_icepop": ("token", _ICEPOP, None, "reinforce"),
    "bypass_pg_geo_rs": (None, 2.0, _GEO, "reinforce"),
    "bypass_pg_geo_rs_seq_tis": ("sequence", 2.0, _GEO, "reinforce"),
    "bypass_pg_geo_rs_token_tis": ("token", 2.0, _GEO, "reinforce"),
}


def _word(name: str) -> Word:
    level, threshold, screen, bypass = _PRESETS[name]
    options: dict[str, Any] = {}
    if level is not None:
        options |= {"rollout_is": level, "rollout_is_threshold": threshold}
    if screen is not None:
        options |= {"rollout_rs": screen[0], "rollout_rs_threshold": screen[1]}
    if bypass is not None:
        options |= {"bypass_mode": True, "loss_type": bypass}
    return Word(name, "a preset", options)


PRESETS = tuple(map(_word, _PRESETS))
