"""Endpoints of their own: saved answers of llama.cpp's /completion and of TGI's /generate."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from reweigh.dumps.form import (
    JSON,
    BadRecordError,
    Format,
    Item,
    Row,
    cut_lines,
    first_object,
    items_of_lines,
    itself,
    number,
    prompt_name,
)
from reweigh.dumps.openai import FLOOR, check_speculation, log_prob_of
from reweigh.dumps.sglang import answer_of, request_of
from reweigh.records.files import FilePart
from reweigh.records.schema import RunInfo

_REASONS = {"eos": "stop", "word": "stop", "limit": "length"}


def _named(
    rows: Callable[[str, Mapping[str, Any], int], Sequence[Row]],
) -> Callable[[FilePart], Iterator[Item]]:
    """Read lines whose answers have no name of their own: they are named by file and number."""
    return lambda part: items_of_lines(part, partial(rows, part.path.stem))


def _llama_rows(file: str, record: Mapping[str, Any], number_in_file: int) -> Sequence[Row]:
    answer, request = answer_of(record), request_of(record)
    entries = answer.get("completion_probabilities")
    if not entries:
        raise BadRecordError(
            "completion_probabilities: missing",
            "the answer has no completion_probabilities",
            'ask the server with "n_probs": 1 and "return_tokens": true, and without stream.',
        )
    if "probs" in entries[0]:
        entries = [_of_december_2024(entry) for entry in entries]
    check_speculation(entries)
    values = [np.nan if x is None else float(x) for x in map(log_prob_of, entries)]
    tokens = answer.get("tokens") or []
    ids = [entry.get("id") for entry in entries]
    sampled = len(tokens) or answer.get("tokens_predicted") or len(entries)
    if tokens:
        values, ids = _at_their_tokens(tokens, ids, values), tokens
    elif sampled != len(entries):
        raise BadRecordError(
            "completion_probabilities: count differs",
            f"the answer counts {sampled} sampled tokens, and has the log-probs of {len(entries)}",
            'ask with "return_tokens": true, which says which tokens have none: those of a stop string, and those that '
            "end inside a character.",
        )
    prompt = request.get("prompt")
    prompt = prompt if isinstance(prompt, list) and all(isinstance(x, int) for x in prompt) else None
    log_mu = np.array(values, np.float64)
    row: dict[str, Any] = {
        "sequence_id": f"{file}/answer{number_in_file}/{answer.get('index', 0)}",
        "prompt_length": answer.get("tokens_evaluated") if prompt is None else len(prompt),
        "token_ids": None if None in ids else np.array(ids, np.int64),
        "log_mu": np.where(log_mu <= FLOOR, -np.inf, log_mu),
        "finish_reason": _REASONS.get(str(answer.get("stop_type"))),
        "text": answer.get("content"),
    }
    if prompt is not None:
        row |= {"prompt_ids": prompt, "prompt_id": prompt_name(prompt)}
    elif isinstance(answer.get("prompt"), str):
        row["prompt_id"] = answer["prompt"]
    return [row]


def _of_december_2024(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """An entry of a server of before: a text and the likeliest tokens with their probabilities, without ids."""
    text, top = entry.get("content"), entry["probs"]
    drawn = next((x.get("prob") for x in top if x.get("tok_str") == text), None)
    return {"token": text, "prob": drawn, "top_probs": top}


def _at_their_tokens(tokens: Sequence[int], ids: Sequence[Any], values: Sequence[float]) -> list[float]:
    """Spread log-probs over all tokens of a response; NaN where there is none, and where it is not told whose it is.

    The server leaves out log-probs of a stop string's tokens and of tokens that end inside a character.
    """
    first = _matched(list(tokens), ids)
    last = [len(tokens) - 1 - i for i in _matched(list(tokens)[::-1], ids[::-1])][::-1]
    if len(first) < len(ids) or len(last) < len(ids):
        raise BadRecordError(
            "completion_probabilities: other tokens",
            f"ids of completion_probabilities ({len(ids)}) are not among tokens ({len(tokens)}) in their order",
            "the answer was cut by what saved it; leave it out (--skip-bad).",
        )
    spread = [np.nan] * len(tokens)
    for one, other, value in zip(first, last, values, strict=True):
        if one == other:
            spread[one] = value
    return spread


def _matched(tokens: Sequence[int], ids: Sequence[Any]) -> list[int]:
    """Places of the ids among the tokens, each as early as can be."""
    places: list[int] = []
    for at, token in enumerate(tokens):
        if len(places) < len(ids) and ids[len(places)] == token:
            places.append(at)
    return places


def _llama_info(path: Path) -> RunInfo:
    answer = answer_of(first_object(path))
    settings: Mapping[str, Any] = answer.get("generation_settings") or request_of(first_object(path))
    used = settings.get("samplers")

    def of(name: str, sampler: str) -> float | None:
        return number(settings.get(name)) if used is None or sampler in used else None

    top_k = of("top_k", "top_k")
    after = settings.get("post_sampling_probs")
    model = answer.get("model")
    return RunInfo(
        engine="llama.cpp",
        model=model if isinstance(model, str) else None,
        temperature=of("temperature", "temperature"),
        top_p=of("top_p", "top_p"),
        min_p=of("min_p", "min_p"),
        top_k=int(top_k) if top_k and top_k > 0 else None,
        repetition_penalty=of("repeat_penalty", "penalties"),
        logprobs_mode=None if after is None else "processed" if after else "raw",
    )


def _tgi_rows(file: str, record: Mapping[str, Any], number_in_file: int) -> Sequence[Row]:
    answer, request = answer_of(record), request_of(record)
    details = answer.get("details")
    if not isinstance(details, Mapping) or details.get("tokens") is None:
        raise BadRecordError(
            "details: missing",
            "the answer has a generated_text and no details.tokens",
            'ask the server with "details": true, and for the prompt with "decoder_input_details": true.',
        )
    sequences: list[Mapping[str, Any]] = [
        {**details, "generated_text": answer.get("generated_text")},
        *(details.get("best_of_sequences") or ()),
    ]
    prompt = [x["id"] for x in details.get("prefill") or ()]
    rows: list[Row] = []
    for i, one in enumerate(sequences):
        tokens: Sequence[Mapping[str, Any]] = one["tokens"]
        count = one.get("generated_tokens")
        if count is not None and count != len(tokens):
            raise BadRecordError(
                "tokens: count differs",
                f"the answer counts {count} generated_tokens, and has {len(tokens)} in tokens",
                "tokens were lost on the way; leave the answer out (--skip-bad).",
            )
        row: dict[str, Any] = {
            "sequence_id": f"{file}/answer{number_in_file}/{i}",
            "token_ids": np.array([x["id"] for x in tokens], np.int64),
            "log_mu": np.array([np.nan if x.get("logprob") is None else x["logprob"] for x in tokens], np.float64),
            "finish_reason": "length" if one.get("finish_reason") == "length" else "stop",
            "text": one.get("generated_text"),
        }
        asked = request.get("inputs")
        if prompt:
            row |= {"prompt_ids": prompt, "prompt_length": len(prompt), "prompt_id": prompt_name(prompt)}
        elif isinstance(asked, str):
            row["prompt_id"] = asked
        rows.append(row)
    return rows


def _tgi_info(path: Path) -> RunInfo:
    parameters: Mapping[str, Any] = request_of(first_object(path)).get("parameters") or {}
    return RunInfo(
        engine="tgi",
        temperature=number(parameters.get("temperature")),
        top_p=number(parameters.get("top_p")),
        repetition_penalty=number(parameters.get("repetition_penalty")),
    )


LLAMA_CPP = Format(
    name="llama_cpp",
    title="llama.cpp /completion: JSON answers with completion_probabilities",
    file="answers of llama.cpp's `/completion`",
    ask="`n_probs: 1`, `return_tokens: true`, the prompt as ids, no speculation",
    both_sides=False,
    endings=JSON,
    kind="json",
    recognises=lambda head: bool({"completion_probabilities", "tokens_predicted"} & answer_of(head.first).keys()),
    items=_named(_llama_rows),
    info=_llama_info,
    parts=cut_lines,
    lead=itself,
)
TGI = Format(
    name="tgi",
    title="TGI /generate: JSON answers with generated_text and details.tokens",
    file="answers of TGI's `/generate`",
    ask="`details`, and `decoder_input_details` for the prompt",
    both_sides=False,
    endings=JSON,
    kind="json",
    recognises=lambda head: "generated_text" in answer_of(head.first),
    items=_named(_tgi_rows),
    info=_tgi_info,
    parts=cut_lines,
    lead=itself,
)
