"""The dialects of the completions API: what to ask so that token ids and true log-probs come back, and reading them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any, Literal

from reweigh.probe.engine import ProbeError, SamplingSettings

ServerKind = Literal["vllm", "sglang", "llama.cpp", "openai"]

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


def request_body(
    kind: ServerKind, model: str, prompt_ids: Sequence[int], settings: SamplingSettings, seed: int
) -> dict[str, Any]:
    """One completion request, with every other way of bending the distribution turned off."""
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(prompt_ids),
        "max_tokens": settings.max_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "seed": seed,
        "logprobs": 1,
        "top_k": -1,
        "min_p": 0.0,
    }
    if kind == "llama.cpp":
        # Its own order cuts the nucleus before the temperature; these two in this order are what others do, and
        # leave out every sampler that is on by default. Its log-probs are raw unless asked for after sampling.
        return body | {
            "samplers": ["temperature", "top_p"],
            "repeat_penalty": 1.0,
            "post_sampling_probs": not settings.plain,
        }
    return body | {"repetition_penalty": 1.0, "return_token_ids": True}


def to_completion(reply: Any, kind: ServerKind, url: str) -> Completion:
    """Read a reply.

    Raises:
        ProbeError: no choice, no log-probs, no token ids, or not one log-prob a token.
    """
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or len(choices) != 1:
        raise ProbeError(f"--url: {url} gave no completion: {str(reply)[:200]}\nhint: is this a completions API?")
    choice: Any = choices[0]
    logprobs: Any = choice.get("logprobs")
    if not logprobs:
        raise ProbeError(
            f'--url: {url} gave no log-probs ("logprobs" is {logprobs!r})\n'
            "hint: the server must be allowed to return them; some need an option at start."
        )
    if kind == "llama.cpp":
        token_ids, log_mu = _llama_cpp(logprobs, url)
    else:
        token_ids, log_mu = _token_ids(choice, logprobs, url), logprobs.get("token_logprobs")
    if not isinstance(log_mu, list) or len(log_mu) != len(token_ids) or any(x is None for x in log_mu):
        count = len(log_mu) if isinstance(log_mu, list) else 0
        raise ProbeError(
            f"--url: {url} gave {len(token_ids)} token ids and {count} log-probs for one completion\n"
            "hint: they must be one a token; is speculative decoding or a reasoning parser on?"
        )
    return Completion(tuple(int(i) for i in token_ids), tuple(float(x) for x in log_mu), choice.get("finish_reason"))


def _llama_cpp(logprobs: Any, url: str) -> tuple[list[Any], list[Any]]:
    content: Any = logprobs.get("content")
    if not isinstance(content, list) or any("id" not in token for token in content):
        raise _no_ids(url)
    return [token["id"] for token in content], [
        token["logprob"] if "logprob" in token else log(token["prob"]) for token in content
    ]


def _token_ids(choice: Any, logprobs: Any, url: str) -> list[Any]:
    if isinstance(choice.get("token_ids"), list):
        return choice["token_ids"]
    # Some servers know only the older way, where the token's text is its id.
    tokens = logprobs.get("tokens")
    if isinstance(tokens, list) and all(isinstance(t, str) and t.startswith("token_id:") for t in tokens):
        return [t.removeprefix("token_id:") for t in tokens]
    raise _no_ids(url)


def _no_ids(url: str) -> ProbeError:
    return ProbeError(
        f"--url: {url} gave log-probs without token ids\n"
        "hint: text does not say which tokens were drawn, so the trainer cannot score them. vLLM (return_token_ids), "
        "SGLang and llama.cpp's own llama-server give ids; llama-cpp-python's server does not."
    )
