"""tinker: data sent to forward_backward and what came back, as the SDK's objects or as plain values."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, cast

import numpy as np
import torch

from reweigh.dumps.form import BadRecordError, array, check_row, mask_of, prompt_name, same_length, turns_of

MASK_LOGPROB = -99999.0
"""The log-prob that tinker's own tools write for a token that was not sampled."""


class TensorLike(Protocol):
    """tinker.TensorData."""

    def to_numpy(self) -> np.ndarray:
        """The values."""
        ...


class DatumLike(Protocol):
    """tinker.Datum."""

    @property
    def model_input(self) -> Any:
        """Tokens that the model reads."""
        ...

    @property
    def loss_fn_inputs(self) -> Mapping[str, Any]:
        """Values that the loss reads: target_tokens, logprobs, advantages, mask."""
        ...


def tinker_rows(
    data: Iterable[DatumLike],
    outputs: Iterable[Mapping[str, Any]],
    *,
    step: int | None = None,
    prompt_ids: Iterable[str | None] | None = None,
    name: str = "datum",
) -> Iterator[dict[str, Any]]:
    """Rows for `RecordWriter.write`: the sampler's log-probs are in tinker's data, the trainer's in what came back.

    Args:
        data: what was given to `forward_backward`; with the cookbook, before it takes "mask" out of the inputs.
        outputs: `ForwardBackwardOutput.loss_fn_outputs`, one a datum, each with "logprobs".
        step: training step.
        prompt_ids: the group of each datum; data with equal tokens before their first sampled one, if not given.
        name: what sequence ids begin with; unique over what is read together.

    Yields:
        Rows of the record schema. Tokens before the first that was sampled are the prompt.

    Raises:
        ValueError: data and outputs are not as many, a field is missing, or lists differ in length.

    Example:
        >>> import numpy as np
        >>> from types import SimpleNamespace
        >>> from reweigh.dumps import tinker_rows
        >>> inputs = {"target_tokens": [5, 6, 7], "logprobs": [0.0, -1.0, -2.0], "mask": [0.0, 1.0, 1.0]}
        >>> datum = SimpleNamespace(model_input=None, loss_fn_inputs=inputs)
        >>> [row] = tinker_rows([datum], [{"logprobs": np.array([-9.0, -1.5, -2.0])}], step=3)
        >>> row["log_pi"].tolist(), row["log_mu"].tolist(), row["prompt_length"]
        ([-1.5, -2.0], [-1.0, -2.0], 2)
    """
    given = None if prompt_ids is None else iter(prompt_ids)
    data, outputs = list(data), list(outputs)
    if len(data) != len(outputs):
        raise ValueError(
            f"tinker_rows: data and outputs must be as many, got {len(data)} and {len(outputs)}\n"
            "hint: pass loss_fn_outputs of the very call that the data went to."
        )
    for i, (datum, output) in enumerate(zip(data, outputs, strict=True)):
        group = None if given is None else next(given, None)
        try:
            row = _row(datum, output)
            check_row(row)
        except BadRecordError as e:
            raise ValueError(f"tinker_rows: datum {i}: {e}") from None
        row |= {"sequence_id": f"{name}-{'' if step is None else f'{step}-'}{i}", "step": step}
        yield row | ({} if group is None else {"prompt_id": group})


def _row(datum: DatumLike, output: Mapping[str, Any]) -> dict[str, Any]:
    inputs = datum.loss_fn_inputs
    for where, mapping, field in (
        ("inputs", inputs, "logprobs"),
        ("inputs", inputs, "target_tokens"),
        ("output", output, "logprobs"),
    ):
        if field not in mapping:
            hint = "use a loss that weighs by the ratio, such as importance_sampling or ppo: only these take log-probs."
            raise BadRecordError(
                f"{field}: missing", f"the loss function's {where} have no {field}, only {', '.join(mapping)}", hint
            )
    tokens, log_mu, log_pi = (
        _values(x, n)
        for x, n in (
            (inputs["target_tokens"], "target_tokens"),
            (inputs["logprobs"], "logprobs"),
            (output["logprobs"], "logprobs of the output"),
        )
    )
    # the server does not take a mask, so it may be gone: what was not sampled then has log-prob 0 or MASK_LOGPROB
    sampled = (log_mu != 0) & (log_mu > MASK_LOGPROB)
    if "mask" in inputs:
        sampled = mask_of(_values(inputs["mask"], "mask"), "mask")
    same_length(
        {
            "target_tokens": len(tokens),
            "logprobs": len(log_mu),
            "mask": len(sampled),
            "logprobs of the output": len(log_pi),
        }
    )
    start = int(np.argmax(sampled)) if sampled.any() else len(sampled)
    row: dict[str, Any] = {
        "token_ids": tokens[start:],
        "prompt_length": start + 1,  # targets are shifted by one: the first token of all is no target
        "prompt_id": prompt_name(tokens[:start]),
        "log_mu": log_mu[start:],
        "log_pi": log_pi[start:],
        "mask": sampled[start:],
    }
    row["turns"] = turns_of(row["mask"])
    if "advantages" in inputs:
        row["advantage"] = _values(inputs["advantages"], "advantages")[start:]
    return row


def _values(value: Any, name: str) -> np.ndarray:
    """An SDK's tensor, its JSON ({"data", "dtype", "shape"}), a tensor, an array or a list."""
    if isinstance(value, Mapping):
        value = cast("Mapping[str, Any]", value)["data"]
    elif not isinstance(value, list | np.ndarray | torch.Tensor):
        value = cast("TensorLike", value).to_numpy()
    return array(value, name)
