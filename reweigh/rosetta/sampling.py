"""Whether the ratios of a configuration can be right: of which laws its two log-probs are."""

from collections.abc import Iterator, Mapping
from typing import Any

from reweigh.rosetta.plan import Options, Reading
from reweigh.rosetta.profile import Profile

# What options of sampling are called, and the value at which they change nothing.
NAMES: Mapping[str, str] = {
    "rollout_temperature": "temperature",
    "rollout_top_p": "top_p",
    "rollout_top_k": "top_k",
    "vllm_top_p": "top_p",
    "rollout.temperature": "temperature",
    "rollout.top_p": "top_p",
    "greedy": "greedy",
    "use_beam_search": "greedy",
}
_PENALTIES = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
_EVERY_TOKEN = 1_000_000  # a top_k that no vocabulary reaches
_LENGTH = 100  # tokens of the sequence that the loss of a product is shown for


def of_sampling(profile: Profile, options: Options, reading: Reading) -> tuple[str, ...]:
    """Say of each option of sampling what it does to the ratios, and what to do.

    Args:
        profile: of which framework.
        options: as they are.
        reading: what they compute.
    """
    law = _law(profile, options)
    if not law:
        return ()
    return tuple(_said(profile, options, reading, law))


def _law(profile: Profile, options: Options) -> dict[str, Any]:
    """Values of the options of sampling, by what they are called here; those of no option are left out."""
    found: dict[str, Any] = {}
    given = [o for o in profile.options if o.role == "sampling" and o.name in options]
    odd = [o for o in profile.options if o.role == "sampling" and o.name not in options and o.default is not None]
    for option in (*odd, *given):
        found[NAMES.get(option.name, option.name.rpartition(".")[2])] = options[option.name]
    neutral = {"temperature": 1.0, "top_p": 1.0, "do_sample": True}
    asked = bool(given) or any(k in neutral and v != neutral[k] for k, v in found.items())
    return {k: v for k, v in found.items() if v is not None} if asked else {}


def _said(profile: Profile, o: Options, reading: Reading, law: Mapping[str, Any]) -> Iterator[str]:
    mode, t = _mode(profile, law), law.get("temperature", 1.0)
    compared = _compared(reading)
    cut = _truncated(law)
    penal = {k: law[k] for k, none in _PENALTIES.items() if law.get(k, none) != none}
    if t == 0 or law.get("do_sample") is False or law.get("greedy") is True:
        yield "greedy: one token is certain, so there is no law to divide by: no ratio can be right; sample instead"
        return
    if t != 1:
        yield _of_temperature(profile, t, mode)
    if cut:
        same = profile.sampling.same
        names = ", ".join(f"{k}={v:g}" for k, v in cut.items())
        if same and o[same]:
            yield f"{names} with {same}: the trainer scores over the tokens that were kept: the ratios can be right"
        else:
            yield _of_truncation(profile, names, cut, mode)
    if penal:
        names = ", ".join(f"{k}={v:g}" for k, v in penal.items())
        if mode == "raw":
            said = "tokens were sampled with it, and neither log-prob has it: the ratio is of two other laws"
            yield f"{names}: {said}; {_OFF}"
        else:
            has = "the sampler's log-probs have it" if mode == "processed" else "the sampler's log-probs may have it"
            yield f"{names}: {has} and the trainer's do not: ratios of repeated tokens are wrong; {_OFF}"
    if mode == "raw" and t == 1 and not cut and not penal:
        yield "raw log-probs at temperature 1 with nothing truncated are those of the law that was sampled from"
    if t == 1 and not cut and not penal and mode != "raw":
        yield "temperature 1, nothing truncated, no penalty: both log-probs can be of the same law"
    if compared is False and (cut or penal or (t != 1 and mode == "raw")):
        yield "no weight corrects for it here"
    if profile.sampling.says:
        yield profile.sampling.says


_OFF = "set it to what changes nothing"


def _mode(profile: Profile, law: Mapping[str, Any]) -> str:
    told = str(law.get("logprobs_mode", ""))
    if "processed" in told:
        return "processed"
    return "raw" if told.startswith("raw") else profile.sampling.logprobs


def _compared(reading: Reading) -> bool:
    plan, loss = reading.plan, reading.loss
    acts = bool(plan.estimator.factors)
    return acts or (loss is not None and loss.centre == "log_mu")


def _truncated(law: Mapping[str, Any]) -> dict[str, float]:
    cut: dict[str, float] = {}
    for name in ("top_p", "top_k", "min_p"):
        value = law.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if (
            (name == "top_p" and value < 1)
            or (name == "top_k" and 0 < value < _EVERY_TOKEN)
            or (name == "min_p" and value > 0)
        ):
            cut[name] = float(value)
    return cut


def _of_temperature(profile: Profile, t: float, mode: str) -> str:
    at = f"temperature={t:g}"
    if mode == "processed" and profile.sampling.temperature:
        return (
            f"{at}: the trainer divides its logits by it, too, and the sampler's log-probs are of what it sampled from"
        )
    if mode == "raw":
        return (
            f"{at}: the sampler's log-probs are raw, of temperature 1, and not of the law that was sampled from: "
            "no ratio is right; logprobs_mode=processed_logprobs, or temperature=1"
        )
    if not profile.sampling.temperature:
        return f"{at}: the trainer's log-probs are of temperature 1: ratios compare two laws; temperature=1"
    return (
        f"{at}: the trainer divides its logits by it; whether the sampler's log-probs are of it, too, is the engine's "
        "logprobs mode, which is not said here (vLLM's default is raw): logprobs_mode=processed_logprobs"
    )


def _of_truncation(profile: Profile, names: str, cut: Mapping[str, float], mode: str) -> str:
    mass = cut.get("top_p")
    alone = "" if len(cut) == 1 else "by top_p alone "
    least = f" ({alone}down to a factor {mass:g} a token, {mass**_LENGTH:.0e} in {_LENGTH} tokens)" if mass else ""
    same = f", or {profile.sampling.same}=true" if profile.sampling.same else ""
    remedy = f"sample with top_p=1, top_k off and min_p=0{same}"
    if mode == "raw":
        return (
            f"{names}: tokens were sampled from the law cut to those kept, and both log-probs are of the whole one: "
            f"the ratio leaves out the kept mass{least}; {remedy}"
        )
    sure = "" if mode == "processed" else "if the engine gives processed log-probs, "
    return (
        f"{names}: {sure}the sampler's log-probs are of the law renormalised over the tokens kept, the trainer's of "
        f"the whole vocabulary: every ratio is too small by the kept mass{least}, so caps act late and products fall "
        f"with length; {remedy}"
    )
