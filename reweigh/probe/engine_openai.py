"""The engine behind any OpenAI-compatible server that returns token ids: vLLM, SGLang, llama.cpp."""

import random
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import httpx

from reweigh.probe.completions import Completion, ServerKind, request_body, server_kind, to_completion
from reweigh.probe.engine import Engine, EngineInfo, ProbeError, Sample, SamplingSettings, silent

# What a busy or restarting server answers; anything else will not get better by asking again.
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
# A greedy-looking token's probability: the probe of a server's log-probs mode calls a token certain above it.
_CERTAIN_LOG_PROB = -0.01
_CERTAIN_SHARE = 0.9


@dataclass(frozen=True)
class Retry:
    """How often to ask again after a passing failure, and how long to wait: `first * 2^k` seconds, jittered."""

    times: int = 5
    first: float = 0.5


@dataclass(frozen=True)
class Server:
    """A model at a server.

    Attributes:
        url: the API's base, with its `/v1`.
        model: the name that the server gives the model.
        kind: whose dialect it speaks.
        version: the server's, if it tells.
    """

    url: str
    model: str
    kind: ServerKind
    version: str | None


class OpenAIEngine(Engine):
    """Samples through `POST {url}/completions`, one response a request, several at once."""

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        concurrency: int = 32,
        timeout: float = 600.0,
        retry: Retry | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Connect and find the model.

        Args:
            url: the API's base, such as `http://127.0.0.1:8000/v1`.
            model: the server's name for the model; not needed if it serves one.
            api_key: sent as a bearer token.
            concurrency: requests in flight.
            timeout: seconds that one response may take.
            retry: after a passing failure (connection lost, 429, 5xx).
            extra: further fields of each request.

        Raises:
            ProbeError: unreachable, or no such model there; the message names the url and the models it has.
        """
        self._retry = Retry() if retry is None else retry
        self._extra = dict(extra or {})
        self._concurrency = concurrency
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout, connect=10.0),
            limits=httpx.Limits(max_connections=concurrency),
            trust_env=False,
        )
        self._server = self._connect(url.rstrip("/"), model)

    @property
    def info(self) -> EngineInfo:
        """The number format is the server's secret; log-probs are checked to be processed before sampling."""
        server = self._server
        return EngineInfo(server.kind, server.version, server.model, None, "processed", f"server at {server.url}")

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        settings: SamplingSettings,
        on_tokens: Callable[[int], None] = silent,
    ) -> Generator[Sample, None, None]:
        """Draw through the server; refuses if its log-probs are not those of the distribution it draws from."""
        if not settings.plain:
            self._check_processed(prompts, settings)
        jobs = [(prompt, k) for prompt in range(len(prompts)) for k in range(settings.n)]
        pool = ThreadPoolExecutor(self._concurrency)
        try:
            futures = {
                pool.submit(self._complete, prompts[prompt], settings, settings.seed + prompt * settings.n + k): (prompt, k)
                for prompt, k in jobs
            }
            for future in as_completed(futures):
                prompt, k = futures[future]
                reply = future.result()
                on_tokens(len(reply.token_ids))
                yield Sample(prompt, k, reply.token_ids, reply.log_mu, reply.finish_reason)
        finally:
            # On an error or an interrupt, requests not yet sent are dropped; those in flight end by themselves.
            pool.shutdown(wait=False, cancel_futures=True)

    def _complete(self, prompt: Sequence[int], settings: SamplingSettings, seed: int) -> Completion:
        server = self._server
        body = request_body(server.kind, server.model, prompt, settings, seed) | self._extra
        return to_completion(self._json("POST", f"{server.url}/completions", body), server.kind, server.url)

    def _check_processed(self, prompts: Sequence[Sequence[int]], settings: SamplingSettings) -> None:
        """Ask at a setting where every token is nearly certain: processed log-probs are then 0, raw ones are not."""
        checks = {
            "temperature": (settings.temperature != 1, SamplingSettings(0.01, 1.0, 16, 0, 1)),
            "top_p": (settings.top_p < 1, SamplingSettings(1.0, 1e-6, 16, 0, 1)),
        }
        for name, (needed, extreme) in checks.items():
            if not needed:
                continue
            log_mu = [x for prompt in prompts[:4] for x in self._complete(prompt, extreme, 0).log_mu]
            certain = sum(x > _CERTAIN_LOG_PROB for x in log_mu)
            if certain < _CERTAIN_SHARE * len(log_mu):
                raise ProbeError(
                    f"--engine openai: {self._server.url} returns log-probs without the {name} it samples with: at "
                    f"{name} {getattr(extreme, name)} only {certain} of {len(log_mu)} tokens have probability near 1\n"
                    "hint: start vLLM with --logprobs-mode processed_logprobs, or sample with temperature 1 and top_p 1."
                )

    def _connect(self, url: str, model: str | None) -> Server:
        reply = self._json("GET", f"{url}/models")
        cards = reply.get("data") if isinstance(reply, dict) else None
        if not isinstance(cards, list) or not cards:
            raise ProbeError(f"--url: {url}/models lists no model, got {str(reply)[:200]}\nhint: does it end in /v1?")
        names = [str(card.get("id")) for card in cards]
        if model is None and len(names) > 1:
            raise ProbeError(f"--served-model: {url} has {', '.join(names)}\nhint: name one of them.")
        if model is not None and model not in names:
            raise ProbeError(
                f"--served-model: {model!r} is not at {url}, which has {', '.join(names)}\nhint: use one of these names."
            )
        card = cards[0 if model is None else names.index(model)]
        kind = server_kind(str(card.get("owned_by")))
        return Server(url, str(card["id"]), kind, self._version(url, kind))

    def _version(self, url: str, kind: ServerKind) -> str | None:
        root = url.removesuffix("/v1")
        if kind == "vllm":
            return str(self._json("GET", f"{root}/version")["version"])
        if kind == "llama.cpp":
            return str(self._json("GET", f"{root}/props")["build_info"])
        return None

    def _json(self, method: str, url: str, body: Mapping[str, Any] | None = None) -> Any:
        """Ask, again after a passing failure, and read the answer."""
        problem = ""
        for attempt in range(self._retry.times + 1):
            if attempt:
                # Spread out, so that many requests that failed together do not come back together.
                time.sleep(self._retry.first * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
            try:
                reply = self._client.request(method, url, json=body)
            except httpx.ConnectError as error:
                problem = f"cannot connect: {error}"
                continue
            except httpx.InvalidURL as error:
                raise ProbeError(f"--url: {url!r} is not a URL: {error}\nhint: http://127.0.0.1:8000/v1") from error
            except httpx.UnsupportedProtocol as error:
                raise ProbeError(f"--url: {url!r} has no http://\nhint: http://127.0.0.1:8000/v1") from error
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if reply.status_code in _TRANSIENT:
                problem = f"{reply.status_code} {reply.text[:200].strip()}"
                continue
            return _read(reply)
        raise ProbeError(
            f"--url: {method} {url} failed {self._retry.times + 1} times; the last time: {problem}\n"
            "hint: is the server up, at this host and port? Its own log has the reason for a 5xx."
        )


def _read(reply: httpx.Response) -> Any:
    url, text = str(reply.url), reply.text[:300].strip()
    if reply.status_code in (401, 403):
        raise ProbeError(f"--url: {url} answers {reply.status_code}: {text}\nhint: set REWEIGH_API_KEY or --api-key.")
    if reply.status_code == 404:
        raise ProbeError(
            f"--url: {url} answers 404: {text}\nhint: the base url ends in /v1, and --served-model is the server's name."
        )
    if reply.status_code >= 400:
        raise ProbeError(f"--url: {url} answers {reply.status_code}: {text}\nhint: the server refused this request.")
    try:
        return reply.json()
    except ValueError as error:
        raise ProbeError(f"--url: {url} answers no JSON: {text}\nhint: is this an OpenAI-compatible API?") from error
