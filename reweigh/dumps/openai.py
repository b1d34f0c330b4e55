"""vLLM and other servers of OpenAI's API: saved answers of /v1/completions and /v1/chat/completions with log-probs."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from reweigh.dumps.form import (
    JSON,
    BadRecordError,
    Format,
    Row,
    cut_lines,
    first_object,
    items_of_lines,
    itself,
    number,
    prompt_name,
    same_length,
)
from reweigh.dumps.sglang import answer_of, request_of
from reweigh.records.schema import RunInfo

_FLOOR = -9999.0  # what vLLM writes for a log-prob of minus infinity, which JSON has not got
_PREFIX = "token_id:"


def _rows(record: Mapping[str, Any], number_in_file: int) -> Sequence[Row]:
    answer, request = answer_of(record), request_of(record)
    choices = answer.get("choices")
    if not isinstance(choices, list):
        raise BadRecordError(
            "choices: missing", "the answer has no choices", "the request failed; leave it out (--skip-bad)."
        )
    prompts = [c.get("prompt_token_ids") or answer.get("prompt_token_ids") for c in choices]
    asked = request.get("prompt")
    if isinstance(asked, list) and asked and all(isinstance(x, int) for x in asked):
        prompts = [asked if p is None else p for p in prompts]
    name = str(answer.get("id", f"answer{number_in_file}"))
    return [_row(choice, answer, prompt, name) for choice, prompt in zip(choices, prompts, strict=True)]


def _row(choice: Mapping[str, Any], answer: Mapping[str, Any], prompt: Sequence[int] | None, name: str) -> Row:
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, Mapping):
        raise BadRecordError(
            "logprobs: missing",
            f"choice {choice.get('index', 0)} has no logprobs",
            'ask the server with "logprobs": 1 (completions) or "logprobs": true (chat).',
        )
    if "content" in logprobs:
        entries = logprobs["content"] or []
        tokens, values = [e["token"] for e in entries], [e["logprob"] for e in entries]
    else:
        tokens, values = logprobs.get("tokens") or [], logprobs.get("token_logprobs") or []
    same_length({"tokens": len(tokens), "token_logprobs": len(values)})
    ids = _ids(tokens, choice.get("token_ids"))
    start = _echoed(answer, values, prompt)
    if prompt is None and ids is not None and len(ids) == len(tokens) and start:
        prompt = ids[:start]
    log_mu = np.array([np.nan if x is None else float(x) for x in values[start:]])
    message = choice.get("message")
    row: dict[str, Any] = {
        "sequence_id": f"{name}/{choice.get('index', 0)}",
        "prompt_id": name if prompt is None else prompt_name(prompt),
        "prompt_ids": prompt,
        "prompt_length": len(prompt) if prompt is not None else (answer.get("usage") or {}).get("prompt_tokens"),
        "token_ids": None if ids is None else np.array(ids[start:] if len(ids) == len(tokens) else ids, np.int64),
        "log_mu": np.where(log_mu <= _FLOOR, -np.inf, log_mu),
        "finish_reason": choice.get("finish_reason"),
        "text": message.get("content") if isinstance(message, Mapping) else choice.get("text"),
    }
    return row


def _ids(tokens: Sequence[str], ids: Any) -> Sequence[int] | None:
    """Token ids, from vLLM's own field or from tokens written as ids; None if the server gave only texts."""
    if ids:
        return ids
    if tokens and all(t.startswith(_PREFIX) and t[len(_PREFIX) :].isdigit() for t in tokens):
        return [int(t[len(_PREFIX) :]) for t in tokens]
    return None


def _echoed(answer: Mapping[str, Any], values: Sequence[Any], prompt: Sequence[int] | None) -> int:
    """Count the tokens that are the prompt's: an echoed one stands first, and its first token has no log-prob."""
    if not values or values[0] is not None:
        return 0
    usage = answer.get("usage") or {}
    length = usage.get("prompt_tokens") if prompt is None else len(prompt)
    if not isinstance(length, int) or length > len(values):
        raise BadRecordError(
            "echo: prompt of unknown length",
            "the first token has no log-prob, so the prompt was echoed, and the answer does not say how long it is",
            'ask without "echo", or keep the answer\'s "usage".',
        )
    return length


def _info(path: Path) -> RunInfo:
    first = first_object(path)
    request, model = request_of(first), answer_of(first).get("model")
    return RunInfo(
        model=model if isinstance(model, str) else None,
        temperature=number(request.get("temperature")),
        top_p=number(request.get("top_p")),
    )


FORMAT = Format(
    name="openai",
    title="vLLM / OpenAI answers: JSON with choices[].logprobs",
    file="answers of `/v1/completions` and `/v1/chat/completions` of vLLM and other servers",
    ask="`logprobs`, and of vLLM `return_token_ids`",
    both_sides=False,
    endings=JSON,
    kind="json",
    recognises=lambda head: isinstance(answer_of(head.first).get("choices"), list),
    items=partial(items_of_lines, rows=_rows),
    info=_info,
    parts=cut_lines,
    lead=itself,
)
