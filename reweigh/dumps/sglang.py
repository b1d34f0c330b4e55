"""SGLang: answers of its /generate, with the sampler's log-probs in meta_info."""

from collections.abc import Iterator, Mapping, Sequence
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
    kept_ids,
    likeliest,
    number,
    one_version,
    prompt_name,
)
from reweigh.records.files import FilePart
from reweigh.records.schema import RunInfo


def answer_of(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The server's answer, alone or saved beside what was asked as {"request": ..., "response": ...}."""
    answer = record.get("response", record)
    answer = answer.get("body", answer) if isinstance(answer, Mapping) else record  # OpenAI's batches
    return answer if isinstance(answer, Mapping) else record


def request_of(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Take what was asked, if it was saved with the answer."""
    request = record.get("request")
    request = request.get("body", request) if isinstance(request, Mapping) else {}
    return request if isinstance(request, Mapping) else {}


def _items(part: FilePart) -> Iterator[Item]:
    return items_of_lines(part, partial(_rows, part.path.stem))


def _rows(file: str, record: Mapping[str, Any], number_in_file: int) -> Sequence[Row]:
    answer, request = answer_of(record), request_of(record)
    meta = answer.get("meta_info")
    if not isinstance(meta, Mapping):
        raise BadRecordError(
            "meta_info: missing", "the answer has no meta_info", "the request failed, or it is of another server."
        )
    triples = meta.get("output_token_logprobs")
    if triples is None:
        raise BadRecordError(
            "output_token_logprobs: missing",
            "the answer has no output_token_logprobs",
            'ask the server with "return_logprob": true.',
        )
    ids = [one[1] for one in triples]
    _check_counts(answer, meta, ids)
    # input_token_logprobs start where logprob_start_len said: only if they cover the prompt are they its ids
    before = meta.get("input_token_logprobs") or ()
    prompt = request.get("input_ids") or [one[1] for one in before]
    known = bool(prompt) and len(prompt) == meta.get("prompt_tokens", len(prompt))
    finish = meta.get("finish_reason")
    row: dict[str, Any] = {
        "sequence_id": str(meta.get("id", f"{file}/answer{number_in_file}")),
        "prompt_length": meta.get("prompt_tokens"),
        "token_ids": np.array(ids, np.int64),
        "log_mu": np.array([np.nan if one[0] is None else one[0] for one in triples], np.float64),
        "versions": one_version([meta.get("weight_version")], len(triples)),
        "finish_reason": finish.get("type") if isinstance(finish, Mapping) else finish,
        "text": answer.get("text"),
    }
    row["log_mu"] = replayed_log_mu(meta, row["log_mu"])
    row |= kept_ids(meta.get("output_token_sampling_mask"), "output_token_sampling_mask", len(triples))
    top = meta.get("output_top_logprobs") or ()
    if len(top) == len(triples):
        row |= likeliest([[(one[1], one[0]) for one in place or ()] for place in top])
    if known:
        row |= {"prompt_ids": prompt, "prompt_id": prompt_name(prompt)}
    return [row]


def replayed_log_mu(meta: Mapping[str, Any], log_mu: np.ndarray) -> np.ndarray:
    """Take the log-probs over what the sampler kept where the answer has them: `log_mu` is of the whole vocabulary."""
    given = meta.get("output_token_sampling_logprobs")
    if not given:
        return log_mu
    values = [one[0] if isinstance(one, list | tuple) and one else one for one in given]
    if len(values) != len(log_mu) or not all(x is None or isinstance(x, int | float) for x in values):
        raise BadRecordError(
            "output_token_sampling_logprobs: count differs",
            f"output_token_sampling_logprobs has {len(values)} values that are not one number for each of the "
            f"{len(log_mu)} tokens",
            "places were lost on the way; leave the answer out (--skip-bad).",
        )
    return np.array([np.nan if x is None else x for x in values], np.float64)


def _check_counts(answer: Mapping[str, Any], meta: Mapping[str, Any], ids: Sequence[int]) -> None:
    """Refuse an answer whose log-probs are not of the tokens that it says it sampled."""
    output = answer.get("output_ids")
    counts = {"meta_info.completion_tokens": meta.get("completion_tokens")}
    counts["output_ids"] = None if output is None else len(output)
    for name, count in counts.items():
        if isinstance(count, int) and count != len(ids):
            raise BadRecordError(
                "output_token_logprobs: count differs",
                f"output_token_logprobs has {len(ids)} tokens, {name} {'is' if '.' in name else 'has'} {count}",
                "log-probs were lost on the way (an answer put together of pieces of a stream, for one); ask without "
                "stream, or leave the answer out (--skip-bad).",
            )
    if output is not None and list(output) != list(ids):
        at = next(i for i, (a, b) in enumerate(zip(output, ids, strict=True)) if a != b)
        raise BadRecordError(
            "token ids: disagree",
            f"token {at} of the response is {output[at]} in output_ids and {ids[at]} in output_token_logprobs",
            "the log-probs are of other tokens than the ids; leave the answer out (--skip-bad).",
        )


def _info(path: Path) -> RunInfo:
    params = request_of(first_object(path)).get("sampling_params") or {}
    return RunInfo(
        engine="sglang",
        temperature=number(params.get("temperature")),
        top_p=number(params.get("top_p")),
    )


FORMAT = Format(
    name="sglang",
    title="SGLang /generate: JSON answers with meta_info.output_token_logprobs",
    file="answers of SGLang's `/generate`",
    ask="`return_logprob`, and `input_ids` or `logprob_start_len: 0` for the prompt; `return_sampling_mask` for "
    "what was kept, `top_logprobs_num` for the likeliest",
    both_sides=False,
    endings=JSON,
    kind="json",
    recognises=lambda head: isinstance(answer_of(head.first).get("meta_info"), Mapping),
    items=_items,
    info=_info,
    parts=cut_lines,
    lead=itself,
    option='"return_logprob" in the request',
)
