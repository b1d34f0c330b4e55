"""The engine behind any OpenAI-compatible server that returns token ids: vLLM, SGLang, llama.cpp."""

import random
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import httpx

from reweigh.probe.completions import Completion, ServerKind, endpoint, request_body, server_kind, to_completion
from reweigh.probe.engine import Engine, EngineInfo, ProbeError, Sample, SamplingSettings, silent
from reweigh.probe.parallel import in_parallel

# What a busy or restarting server answers; anything else will not get better by asking again.
_TRANSIENT = frozenset({408, 425, 429, 502, 503, 504})
# Tokens drawn in one context at both of these have other log-probs, unless temperature is left out of them.
_WARM = SamplingSettings(temperature=1.0, max_tokens=8, n=8)
_COOL = SamplingSettings(temperature=0.5, max_tokens=8, n=8)
_TELLING_LOG_PROB = -0.05  # nats; a token more certain than this hardly changes
_SAME_LOG_PROB = 0.01  # nats; a batch's rounding is less, halving the temperature is more
# A nucleus this small is one token, whose probability is 1.
_NARROW = SamplingSettings(top_p=1e-6, max_tokens=16, n=1)
_NARROW_LOG_PROB = -1e-3
_CHECK_PROMPTS = 4


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
    """Samples through the server's completions, one response a request, several at once."""

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        dtype: str | None = None,
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
            dtype: what the server computes in, for the record; it does not say itself.
            api_key: sent as a bearer token.
            concurrency: requests in flight.
            timeout: seconds that one response may take.
            retry: after a passing failure (connection lost, 429, 5xx).
            extra: further fields of each request.

        Raises:
            ProbeError: unreachable, or no such model there; the message names the url and the models it has.
        """
        self._retry = Retry() if retry is None else retry
        self._dtype = dtype
        self._extra = dict(extra or {})
        self._concurrency = concurrency
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout, connect=10.0),
            limits=httpx.Limits(max_connections=concurrency),
            trust_env=False,
        )
        try:
            self._server = self._connect(url.rstrip("/"), model)
        except BaseException:
            self.close()
            raise

    @property
    def info(self) -> EngineInfo:
        """Name and version by the server; log-probs are "processed" because sampling checks that they are."""
        server = self._server
        return EngineInfo(server.kind, server.version, server.model, self._dtype, "processed", "completions API")

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        settings: SamplingSettings,
        on_tokens: Callable[[int], None] = silent,
    ) -> Generator[Sample, None, None]:
        """Draw through the server; refuses if its log-probs are not those of the distribution it draws from."""
        if settings.temperature != 1:
            self._check_temperature(prompts[:_CHECK_PROMPTS])
        if settings.top_p < 1:
            self._check_top_p(prompts[:_CHECK_PROMPTS])
        yield from self._draw(prompts, settings, on_tokens)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _draw(
        self, prompts: Sequence[Sequence[int]], settings: SamplingSettings, on_tokens: Callable[[int], None]
    ) -> Generator[Sample, None, None]:
        def work(job: tuple[int, int]) -> Completion:
            prompt, k = job
            return self._complete(prompts[prompt], settings, settings.seed + prompt * settings.n + k)

        jobs = [(prompt, k) for prompt in range(len(prompts)) for k in range(settings.n)]
        for (prompt, k), reply in in_parallel(work, jobs, self._concurrency):
            on_tokens(len(reply.token_ids))
            yield Sample(prompt, k, reply.token_ids, reply.log_mu, reply.finish_reason)

    def _complete(self, prompt: Sequence[int], settings: SamplingSettings, seed: int) -> Completion:
        server = self._server
        body = request_body(server.kind, server.model, prompt, settings, seed) | self._extra
        return to_completion(self._json("POST", endpoint(server.kind, server.url), body), server.kind, server.url)

    def _check_temperature(self, prompts: Sequence[Sequence[int]]) -> None:
        """Draw the same contexts at two temperatures: raw log-probs of the same token are equal, true ones are not."""
        warm, cool = (_by_context(self._draw(prompts, settings, silent)) for settings in (_WARM, _COOL))
        gaps = [abs(warm[key] - cool[key]) for key in warm.keys() & cool.keys() if warm[key] < _TELLING_LOG_PROB]
        if gaps and median(gaps) < _SAME_LOG_PROB:
            raise self._is_raw("temperature", f"{len(gaps)} tokens have equal ones at temperatures 0.5 and 1")

    def _check_top_p(self, prompts: Sequence[Sequence[int]]) -> None:
        """Draw from a nucleus of one token, whose true log-prob is 0."""
        lowest = min(x for one in self._draw(prompts, _NARROW, silent) for x in one.log_mu)
        if lowest < _NARROW_LOG_PROB:
            raise self._is_raw("top_p", f"the only choice has {lowest:.2g} nats at top_p {_NARROW.top_p:g}, not 0")

    def _is_raw(self, name: str, evidence: str) -> ProbeError:
        return ProbeError(
            f"--engine openai: {self._server.url} returns log-probs without the {name} it samples with: {evidence}\n"
            "hint: start vLLM with --logprobs-mode processed_logprobs, or use temperature 1 and top_p 1."
        )

    def _connect(self, url: str, model: str | None) -> Server:
        # A server that is not there is more likely a wrong url than a passing failure.
        reply = self._json("GET", f"{url}/models", times=min(1, self._retry.times))
        cards = reply.get("data") if isinstance(reply, dict) else None
        if not isinstance(cards, list) or not cards:
            raise ProbeError(f"--url: {url}/models lists no model, got {str(reply)[:200]}\nhint: does it end in /v1?")
        names = [str(card.get("id")) for card in cards]
        if model is None and len(names) > 1:
            raise ProbeError(f"--served-model: {url} has {', '.join(names)}\nhint: name one of them.")
        if model is not None and model not in names:
            raise ProbeError(
                f"--served-model: {model!r} is not at {url}, which has {', '.join(names)}\nhint: use one of these."
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

    def _json(self, method: str, url: str, body: Mapping[str, Any] | None = None, times: int | None = None) -> Any:
        """Ask, again after a passing failure, and read the answer."""
        times = self._retry.times if times is None else times
        problem = ""
        for attempt in range(times + 1):
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
            except (httpx.ReadTimeout, httpx.PoolTimeout) as error:
                raise ProbeError(
                    f"--url: {method} {url} gave no answer within {self._client.timeout.read:g} s\n"
                    "hint: a lower --concurrency makes each answer faster; so does a lower --max-tokens."
                ) from error
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if reply.status_code in _TRANSIENT:
                problem = f"{reply.status_code} {reply.text[:200].strip()}"
                continue
            return _read(reply)
        raise ProbeError(
            f"--url: {method} {url} failed {times + 1} times; the last time: {problem}\n"
            "hint: is the server up, at this host and port? Its own log has the reason for a 5xx."
        )


def _by_context(samples: Iterable[Sample]) -> dict[tuple[int, tuple[int, ...]], float]:
    """The log-prob of each drawn token, by prompt and tokens up to it."""
    return {(one.prompt, one.token_ids[: t + 1]): x for one in samples for t, x in enumerate(one.log_mu)}


def _read(reply: httpx.Response) -> Any:
    url, text = str(reply.url), reply.text[:300].strip()
    if reply.status_code in (401, 403):
        raise ProbeError(f"--url: {url} answers {reply.status_code}: {text}\nhint: set REWEIGH_API_KEY or --api-key.")
    if reply.status_code == 404:
        raise ProbeError(
            f"--url: {url} answers 404: {text}\nhint: the base url ends in /v1; --served-model is the server's name."
        )
    if reply.status_code >= 400:
        raise ProbeError(
            f"--url: {url} answers {reply.status_code}: {text}\n"
            "hint: it must take prompts of token ids; its own log may have more."
        )
    try:
        return reply.json()
    except ValueError as error:
        raise ProbeError(f"--url: {url} answers no JSON: {text}\nhint: is this an OpenAI-compatible API?") from error
