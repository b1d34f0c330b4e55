"""From options as a user gives them to an engine that is ready to sample and a scorer that is ready to score."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from reweigh.probe.engine import Engine, ProbeError
from reweigh.probe.engine_openai import OpenAIEngine
from reweigh.probe.engine_transformers import TransformersEngine, end_ids
from reweigh.probe.engine_vllm import VLLMEngine
from reweigh.probe.models import find_model, load_model
from reweigh.probe.quantise import NumberFormat, number_format
from reweigh.probe.rollouts import RolloutFile
from reweigh.probe.scorer import Scorer, check_head

_DTYPE = "bfloat16"  # what engines sample in, unless told


class EngineName(str, Enum):
    """What can sample."""

    TRANSFORMERS = "transformers"
    OPENAI = "openai"
    VLLM = "vllm"


@dataclass(frozen=True)
class EngineOptions:
    """Which engine, and how to start it; each reads what is its own.

    Attributes:
        name: which.
        model: as `find_model` takes it.
        dtype: number format of the transformers engine, or vLLM's `dtype` (None is bfloat16); for the record only,
            that of a server.
        device: torch device of the transformers engine.
        batch_size: sequences in flight of the transformers engine.
        url: of the server.
        served_model: the server's name for the model.
        api_key: for the server.
        concurrency: requests in flight at the server.
        args: further arguments of `vllm.LLM`, or further fields of each request to the server.
    """

    name: EngineName
    model: str
    dtype: str | None = None
    device: str = "cpu"
    batch_size: int = 32
    url: str = "http://127.0.0.1:8000/v1"
    served_model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    concurrency: int = 32
    args: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        """Refuse what the transformers engine does not know."""
        if self.name is not EngineName.TRANSFORMERS:
            return
        number_format("--dtype", self.dtype or _DTYPE)
        if self.args:
            raise ProbeError(
                f"--engine-arg: the transformers engine takes none, got {', '.join(self.args)}\n"
                "hint: its options are --dtype, --device and --batch-size."
            )


@dataclass(frozen=True)
class ScorerOptions:
    """What scores.

    Attributes:
        model: as `find_model` takes it; None is the model that sampled.
        dtype: number format.
        device: of torch.
        entropy: record entropies.
        repeat: score a second time.
    """

    model: str | None
    dtype: NumberFormat = "float32"
    device: str = "cpu"
    entropy: bool = True
    repeat: bool = False


def start_engine(options: EngineOptions) -> Engine:
    """Load the model, or connect to the server."""
    if options.name is EngineName.OPENAI:
        return OpenAIEngine(
            options.url,
            model=options.served_model,
            dtype=options.dtype,
            api_key=options.api_key,
            concurrency=options.concurrency,
            extra=options.args,
        )
    source = find_model(options.model)
    if options.name is EngineName.VLLM:
        return VLLMEngine(source.folder, name=source.name, dtype=options.dtype or _DTYPE, args=options.args)
    dtype = number_format("--dtype", options.dtype or _DTYPE)
    model = load_model(source, dtype, options.device)
    return TransformersEngine(
        model, name=source.name, dtype=dtype, end_ids=end_ids(model), batch_size=options.batch_size
    )


def start_scorer(options: ScorerOptions, source: RolloutFile) -> Scorer:
    """Load the trainer's model, to score samples as they were drawn."""
    model = load_model(find_model(options.model or source.model), options.dtype, options.device)
    check_head(model)
    return Scorer(
        model,
        options.dtype,
        source.settings.temperature,
        source.settings.top_p,
        with_entropy=options.entropy,
        with_repeat=options.repeat,
    )
