"""An engine behind any OpenAI-compatible server that returns token ids: vLLM, SGLang, llama.cpp; and its dialects."""

import random
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from queue import Empty, SimpleQueue
from statistics import median
from typing import Any, Literal, TypeVar

import httpx

from reweigh.probe.engine import CUT, Engine, EngineInfo, ProbeError, Sample, SamplingSettings, silent

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_parallel(
    work: Callable[[Job], Result], jobs: Sequence[Job], workers: int
) -> Generator[tuple[Job, Result], None, None]:
    """Yield each job with its result, in the order they are done.

    The threads are daemons, unlike those of `concurrent.futures`: after Ctrl-C, or once the generator is closed, no new
    job is begun, and the process may end without waiting for those under way (a request may take minutes).

    Raises:
        Exception: whatever a job raised, as soon as it has.
    """
    todo: SimpleQueue[Job] = SimpleQueue()
    done: SimpleQueue[tuple[Job, Result] | Exception] = SimpleQueue()
    stop = threading.Event()
    for job in jobs:
        todo.put(job)

    def loop() -> None:
        while not stop.is_set():
            try:
                job = todo.get_nowait()
            except Empty:
                return
            try:
                done.put((job, work(job)))
            except Exception as error:
                done.put(error)

    for _ in range(min(workers, len(jobs))):
        threading.Thread(target=loop, daemon=True).start()
    try:
        for _ in jobs:
            outcome = done.get()
            if isinstance(outcome, Exception):
                raise outcome
            yield outcome
    finally:
        stop.set()


ServerKind = Literal["vllm", "sglang", "llama.cpp", "openai"]

_LLAMA_CPP_REASONS: Mapping[str, str] = {"eos": "stop", "word": "stop", "limit": "length"}
_OWNERS: Mapping[str, ServerKind] = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama.cpp"}


@dataclass(frozen=True)
class Completion:
    """One response as a server gave it."""

    token_ids: tuple[int, ...]
    log_mu: tuple[float, ...]
    finish_reason: str | None


def endpoint(kind: ServerKind, url: str) -> str:
    """Tell where to ask, from the API's base.

    llama.cpp's own endpoint, because its `/v1/completions` leaves tokens out: those that end inside a character.
    """
    return f"{url.removesuffix('/v1')}/completion" if kind == "llama.cpp" else f"{url}/completions"


def request_body(
    kind: ServerKind, model: str, prompt_ids: Sequence[int], settings: SamplingSettings, seed: int
) -> dict[str, Any]:
    """Make one completion request, with every other way of bending the distribution turned off."""
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
    """Cut before the first token without a log-prob.

    What is left is as drawn, but where it ends was decided by a token that is not in it: ratios of cut responses lean.
    """
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
        if log_mu[-1] == 0 and token.get("top_logprobs", token.get("top_probs")) == []:
            raise ProbeError(
                f"--url: {url} gave log-prob 0 and no top_logprobs for token {len(log_mu) - 1} of a response: a draft "
                "proposed it, and llama.cpp computes no log-prob of such tokens\n"
                "hint: turn speculative decoding off (no --model-draft, no --spec-type) and start the server again."
            )
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
        kind, url = self._server.kind, self._server.url

        def work(job: tuple[int, int]) -> Completion:
            prompt, k = job
            seed = settings.seed_of(prompt, k)
            body = request_body(kind, self._server.model, prompts[prompt], settings, seed) | self._extra
            return to_completion(self._json("POST", endpoint(kind, url), body), kind, url)

        jobs = [(prompt, k) for prompt in range(len(prompts)) for k in range(settings.n)]
        for (prompt, k), reply in in_parallel(work, jobs, self._concurrency):
            on_tokens(len(reply.token_ids))
            yield Sample(prompt, k, reply.token_ids, reply.log_mu, reply.finish_reason)

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
        kind = _OWNERS.get(str(card.get("owned_by")), "openai")
        root, version = url.removesuffix("/v1"), None
        if kind == "vllm":
            version = str(self._json("GET", f"{root}/version")["version"])
        elif kind == "llama.cpp":
            version = str(self._json("GET", f"{root}/props")["build_info"])
        return Server(url, str(card["id"]), kind, version)

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
    """Map prompt and tokens up to it to the log-prob of each drawn token."""
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
