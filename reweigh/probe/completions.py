"""The dialects of the completions API: what to ask so that token ids and true log-probs come back, and reading them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any, Literal

from reweigh.probe.engine import CUT, ProbeError, SamplingSettings

ServerKind = Literal["vllm", "sglang", "llama.cpp", "openai"]

_LLAMA_CPP_REASONS: Mapping[str, str] = {"eos": "stop", "word": "stop", "limit": "length"}
_OWNERS: Mapping[str, ServerKind] = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama.cpp"}


@dataclass(frozen=True)
class Completion:
    """One response as a server gave it."""

    token_ids: tuple[int, ...]
    log_mu: tuple[float, ...]
    finish_reason: str | None


def server_kind(owned_by: str) -> ServerKind:
    """Whose server it is, by the `owned_by` of its model card; "openai" if it does not say."""
    return _OWNERS.get(owned_by, "openai")


def endpoint(kind: ServerKind, url: str) -> str:
    """Where to ask, from the API's base.

    llama.cpp's own endpoint, because its `/v1/completions` leaves tokens out: those that end inside a character.
    """
    return f"{url.removesuffix('/v1')}/completion" if kind == "llama.cpp" else f"{url}/completions"


def request_body(
    kind: ServerKind, model: str, prompt_ids: Sequence[int], settings: SamplingSettings, seed: int
) -> dict[str, Any]:
    """One completion request, with every other way of bending the distribution turned off."""
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(prompt_ids),
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "seed": seed,
    }
    if kind == "llama.cpp":
        # Its own order cuts the nucleus before the temperature; these two in this order are what others do, and
        # leave out every sampler that is on by default. Its log-probs are raw unless asked for after sampling.
        return body | {
            "n_predict": settings.max_tokens,
            "samplers": ["temperature", "top_p"],
            "n_probs": 1,
            "post_sampling_probs": not settings.plain,
            "return_tokens": True,
        }
    return body | {
        "max_tokens": settings.max_tokens,
        "logprobs": 1,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "return_token_ids": True,
    }


def to_completion(reply: Any, kind: ServerKind, url: str) -> Completion:
    """Read a reply.

    Raises:
        ProbeError: no choice, no log-probs, no token ids, or not one log-prob a token.
    """
    if not isinstance(reply, dict):
        raise _no_completion(reply, url)
    return _llama_cpp(reply, url) if kind == "llama.cpp" else _openai(reply, url)


def _openai(reply: dict[str, Any], url: str) -> Completion:
    choices = reply.get("choices")
    if not isinstance(choices, list) or len(choices) != 1:
        raise _no_completion(reply, url)
    choice: Any = choices[0]
    logprobs: Any = choice.get("logprobs")
    if not logprobs:
        raise _no_log_probs(logprobs, url)
    token_ids, log_mu = _token_ids(choice, logprobs, url), logprobs.get("token_logprobs")
    if not isinstance(log_mu, list) or len(log_mu) != len(token_ids) or any(x is None for x in log_mu):
        count = len(log_mu) if isinstance(log_mu, list) else 0
        raise ProbeError(
            f"--url: {url} gave {len(token_ids)} token ids and {count} log-probs for one completion\n"
            "hint: they must be one a token; is speculative decoding or a reasoning parser on?"
        )
    return Completion(tuple(int(i) for i in token_ids), tuple(float(x) for x in log_mu), choice.get("finish_reason"))


def _token_ids(choice: Any, logprobs: Any, url: str) -> list[Any]:
    if isinstance(choice.get("token_ids"), list):
        return choice["token_ids"]
    # Some servers know only the older way, where the token's text is its id.
    tokens = logprobs.get("tokens")
    if isinstance(tokens, list) and all(isinstance(t, str) and t.startswith("token_id:") for t in tokens):
        return [t.removeprefix("token_id:") for t in tokens]
    raise ProbeError(
        f"--url: {url} gave log-probs without token ids\n"
        "hint: text does not say which tokens were drawn, so the trainer cannot score them. vLLM (return_token_ids), "
        "SGLang and llama.cpp's own llama-server give ids."
    )


def _llama_cpp(reply: dict[str, Any], url: str) -> Completion:
    """Cut before the first token without a log-prob: a stopping rule, so what is left is as drawn and fit to weigh."""
    token_ids: Any = reply.get("tokens")
    if not isinstance(token_ids, list) or not token_ids:
        raise _no_completion(reply, url)
    given: Any = reply.get("completion_probabilities")
    if given is None:
        raise _no_log_probs(given, url)
    log_mu: list[float] = []
    for token_id, token in zip(token_ids, given, strict=False):
        if token["id"] != token_id:
            break
        log_mu.append(float(token["logprob"] if "logprob" in token else log(token["prob"])))
    whole = len(log_mu) == len(token_ids)
    reason = _LLAMA_CPP_REASONS.get(str(reply.get("stop_type"))) if whole else CUT
    return Completion(tuple(int(i) for i in token_ids[: len(log_mu)]), tuple(log_mu), reason)


def _no_completion(reply: Any, url: str) -> ProbeError:
    return ProbeError(f"--url: {url} gave no completion: {str(reply)[:200]}\nhint: is this a completions API?")


def _no_log_probs(value: Any, url: str) -> ProbeError:
    return ProbeError(
        f"--url: {url} gave no log-probs (got {value!r})\n"
        "hint: the server must be allowed to return them; some need an option at start."
    )
