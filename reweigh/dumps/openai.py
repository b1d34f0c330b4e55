"""vLLM and other servers of OpenAI's API: saved answers of completions, chat and vLLM's /inference/v1/generate."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from reweigh.dumps.form import (
    JSON,
    BadRecordError,
    Format,
    Head,
    Item,
    Row,
    cut_lines,
    first_object,
    items_of_lines,
    itself,
    kept_ids,
    likeliest,
    number,
    prompt_name,
    same_length,
)
from reweigh.dumps.sglang import answer_of, replayed_log_mu, request_of
from reweigh.records.files import FilePart
from reweigh.records.schema import RunInfo

FLOOR = (
    -9999.0
)  # what servers write for a log-prob of minus infinity, which JSON has not got; and vLLM for a missing one
_PREFIX = "token_id:"
# Of a choice, by server; of its message, by NeMo Gym.
_IDS = ("token_ids", "output_ids", "output_token_ids", "completion_token_ids", "generation_token_ids")
_OVER_ONE = 1.1  # a sum of probabilities that no rounding makes
_SUM_NEAR = 1e-2  # relative: a sum in float32, or rounded to a few digits, is nearer


def _items(part: FilePart) -> Iterator[Item]:
    return items_of_lines(part, partial(_rows, part.path.stem))


def _rows(file: str, record: Mapping[str, Any], number_in_file: int) -> Sequence[Row]:
    answer, request = answer_of(record), request_of(record)
    answer = _as_answer(answer)
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices:
        raise BadRecordError(
            "choices: missing", "the answer has no choices", "the request failed; leave it out (--skip-bad)."
        )
    choices = [_whole(choice) for choice in choices]
    if any("delta" in choice for choice in choices):
        raise BadRecordError(
            "choices: a piece of a stream",
            "the answer is one piece of a stream (it has a delta)",
            "put the pieces together, or ask without stream.",
        )
    prompts = _prompts(answer, request, choices)
    name = str(answer.get("id") or answer.get("request_id") or f"{file}/answer{number_in_file}")
    counts = _counts(answer, request, choices)
    return [_row(*one, request, name) for one in zip(choices, counts, prompts, strict=True)]


def _as_answer(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Put what OpenAI's Responses and vLLM without its server give into the form of the others."""
    if record.get("object") == "response" and isinstance(record.get("output"), list):
        parts = [part for item in record["output"] for part in item.get("content") or () if "text" in part]
        entries = [entry for part in parts for entry in part.get("logprobs") or ()]
        choice: dict[str, Any] = {"index": 0, "finish_reason": record.get("status")}
        choice["text"] = "".join(part["text"] for part in parts)
        usage = record.get("usage") or {}
        counts = {"prompt_tokens": usage.get("input_tokens"), "completion_tokens": usage.get("output_tokens")}
        counts["completion_tokens_details"] = usage.get("output_tokens_details")
        choice["logprobs"] = {"content": entries} if entries else None
        return {**record, "choices": [choice], "usage": counts}
    if isinstance(record.get("outputs"), list) and "prompt_token_ids" in record:
        return {**record, "choices": [_of_request_output(one) for one in record["outputs"]]}
    return record


def _whole(choice: Mapping[str, Any]) -> Mapping[str, Any]:
    """Take to a choice what LiteLLM keeps of it under provider_specific_fields, and NeMo Gym in its message."""
    message = choice.get("message")
    message = message if isinstance(message, Mapping) else {}
    aside = {**(message.get("provider_specific_fields") or {}), **(choice.get("provider_specific_fields") or {})}
    own = {name: message[name] for name in ("generation_token_ids", "prompt_token_ids") if message.get(name)}
    found = {name: value for name, value in {**own, **aside}.items() if name in (*_IDS, "prompt_token_ids") and value}
    values = message.get("generation_log_probs")
    if values is not None and not choice.get("logprobs"):
        found["logprobs"] = {"tokens": [""] * len(values), "token_logprobs": values}
    return {**found, **{name: value for name, value in choice.items() if value is not None or name not in found}}


def _of_request_output(one: Mapping[str, Any]) -> Mapping[str, Any]:
    """A CompletionOutput of vLLM: at each place its log-probs by token id, of which one is the sampled token's."""
    given: Sequence[Mapping[str, Any] | None] | None = one.get("logprobs")
    if given is None:
        return one
    entries: list[Mapping[str, Any]] = []
    for token, at in zip(one["token_ids"], given, strict=False):
        found = (at or {}).get(str(token))
        value = found.get("logprob") if isinstance(found, Mapping) else found
        others = [
            {"token_id": int(i), "logprob": x.get("logprob") if isinstance(x, Mapping) else x}
            for i, x in (at or {}).items()
            if str(i).isdecimal()
        ]
        entries.append({"token_id": token, "logprob": value, "top_logprobs": others})
    return {**one, "logprobs": {"content": entries}}


def _prompts(
    answer: Mapping[str, Any], request: Mapping[str, Any], choices: Sequence[Mapping[str, Any]]
) -> list[Sequence[int] | None]:
    """Find the prompt's ids of each choice: in the answer, else in what was asked."""
    asked = _asked(request)
    each: list[Sequence[int] | None] = [None] * len(choices)
    if _are_ids(asked):
        each = [asked] * len(choices)
    elif isinstance(asked, list) and asked and all(map(_are_ids, asked)) and len(choices) % len(asked) == 0:
        n = len(choices) // len(asked)  # answers to one prompt stand together
        each = [asked[int(choice.get("index", i)) // n] for i, choice in enumerate(choices)]
    of_all = answer.get("prompt_token_ids")
    return [choice.get("prompt_token_ids") or of_all or p for choice, p in zip(choices, each, strict=True)]


def _asked(request: Mapping[str, Any]) -> Any:
    return next((request[name] for name in ("prompt", "prompt_token_ids", "token_ids") if name in request), None)


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(x, int) for x in value)


@dataclass(frozen=True)
class _Counts:
    """What an answer says of the tokens of one of its choices; None where it does not.

    Attributes:
        given: log-probs that there are.
        prompt: tokens of the prompt.
        sampled: tokens that were sampled; `reasoning` of them before the answer itself.
    """

    given: int
    prompt: int | None
    sampled: int | None
    reasoning: int


def _counts(
    answer: Mapping[str, Any], request: Mapping[str, Any], choices: Sequence[Mapping[str, Any]]
) -> list[_Counts]:
    """Count for each choice; refuses an answer that counts its sampled tokens in two ways."""
    usage = answer.get("usage") or {}
    prompt, total = (x if isinstance(x, int) else None for x in map(usage.get, ("prompt_tokens", "completion_tokens")))
    asked = _asked(request)
    if isinstance(asked, list) and len(asked) > 1 and not _are_ids(asked):
        prompt = None  # the sum over several prompts
    reasoning = int((usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0)
    given = [len(_values_of(choice)) for choice in choices]
    listed = [{name: len(choice[name]) for name in _IDS if choice.get(name)} for choice in choices]
    if len(choices) == 1 and total is not None:
        listed[0]["usage.completion_tokens"] = total
    for one, n in zip(listed, given, strict=True):
        if len(set(one.values())) > 1:
            ways = ", ".join(f"{name} {count}" for name, count in one.items())
            raise BadRecordError(
                "counts: disagree",
                f"the answer counts its sampled tokens in two ways: {ways}; it has {n} log-probs",
                "tokens were lost on the way; leave the answer out (--skip-bad).",
            )
    sampled = [next(iter(one.values()), None) for one in listed]
    if total is not None and sum(given) and None in sampled:
        if total == sum(given):
            sampled = list[int | None](given)
        elif prompt is not None and total == sum(given) - len(given) * prompt:
            sampled = [n - prompt for n in given]
        elif total > sum(given):
            raise _uncounted(_Counts(sum(given), prompt, total, reasoning))
    return [_Counts(n, prompt, m, reasoning) for n, m in zip(given, sampled, strict=True)]


def _values_of(choice: Mapping[str, Any]) -> Sequence[Any]:
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, Mapping):
        return ()
    entries = [*(logprobs.get("reasoning_content") or ()), *(logprobs.get("content") or ())]
    return entries or logprobs.get("token_logprobs") or ()


def _row(
    choice: Mapping[str, Any],
    counts: _Counts,
    prompt: Sequence[int] | None,
    request: Mapping[str, Any],
    name: str,
) -> Row:
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, Mapping):
        raise BadRecordError(
            "logprobs: missing",
            f"choice {choice.get('index', 0)} has no logprobs",
            'ask the server with "logprobs": 1 (completions, generate) or "logprobs": true (chat).',
        )
    tokens, values = _tokens(logprobs)
    known = _ids(choice, logprobs, tokens)
    if prompt is not None:
        counts = replace(counts, prompt=len(prompt))
    if counts.sampled is not None:
        start = _counted_start(counts, request, values)
    else:
        start = _told_start(values, counts.prompt, _begin(known, prompt), request)
    ids = _agreed(known, len(values), start)
    _check_sum(choice.get("cumulative_logprob"), values[start:])
    if prompt is None and start:
        whole = next((found for found in known.values() if len(found) == len(values)), None)
        prompt = None if whole is None else whole[:start]
    log_mu = np.array([np.nan if x is None else float(x) for x in values[start:]], np.float64)
    message = choice.get("message")
    row: dict[str, Any] = {
        "sequence_id": f"{name}/{choice.get('index', 0)}",
        "prompt_id": name if prompt is None else prompt_name(prompt),
        "prompt_ids": prompt,
        "prompt_length": counts.prompt,
        "token_ids": None if ids is None else np.array(ids, np.int64),
        "log_mu": np.where(log_mu <= FLOOR, -np.inf, log_mu),
        "finish_reason": choice.get("finish_reason"),
        "text": message.get("content") if isinstance(message, Mapping) else choice.get("text"),
    }
    # vLLM's own, or that of SGLang's chat completions with return_meta_info
    meta = choice.get("meta_info")
    name = "sampling_mask"
    mask = choice.get(name)
    if mask is None and isinstance(meta, Mapping):
        name = "output_token_sampling_mask"
        mask = meta.get(name)
        row["log_mu"] = replayed_log_mu(meta, row["log_mu"])
    return row | kept_ids(mask, name, len(log_mu)) | likeliest(_top(logprobs, tokens)[start:])


def _top(logprobs: Mapping[str, Any], tokens: Sequence[Any]) -> list[list[tuple[Any, Any]]]:
    """Ids and log-probs of the likeliest tokens at each place, where the server gives ids and not texts alone."""
    entries = [t.get("top_logprobs") or () for t in tokens if isinstance(t, Mapping)]
    if entries:
        return [[(_id(one), _floored(one.get("logprob"))) for one in place] for place in entries]
    found = logprobs.get("top_logprobs") or ()
    if len(found) != len(tokens):
        return []
    return [[(_id({"token": text}), _floored(x)) for text, x in (place or {}).items()] for place in found]


def _id(entry: Mapping[str, Any]) -> int | None:
    given = next((entry[name] for name in ("token_id", "id") if isinstance(entry.get(name), int)), None)
    text = str(entry.get("token", ""))
    if given is None and text.startswith(_PREFIX) and text[len(_PREFIX) :].isdecimal() and len(text) < 30:
        return int(text[len(_PREFIX) :])
    return given


def _floored(x: Any) -> Any:
    return -np.inf if isinstance(x, int | float) and x <= FLOOR else x


def _tokens(logprobs: Mapping[str, Any]) -> tuple[Sequence[Any], Sequence[float | None]]:
    """Tokens and their log-probs: entries of both (chat, generate, llama.cpp), or two lists (completions)."""
    entries = [*(logprobs.get("reasoning_content") or ()), *(logprobs.get("content") or ())]
    if entries or "content" in logprobs:
        check_speculation(entries)
        _check_base([[x.get("logprob") for x in e.get("top_logprobs") or ()] for e in entries])
        return entries, [log_prob_of(entry) for entry in entries]
    tokens, values = logprobs.get("tokens") or [], logprobs.get("token_logprobs") or []
    same_length({"tokens": len(tokens), "token_logprobs": len(values)})
    top = logprobs.get("top_logprobs") or []
    _check_base([list(x.values()) if isinstance(x, Mapping) else [] for x in top])
    return tokens, values


def log_prob_of(entry: Mapping[str, Any]) -> float | None:
    """The log-prob of an entry; llama.cpp gives probabilities under their own name when asked for them."""
    if "logprob" in entry:
        return entry["logprob"]
    if "prob" in entry:
        return None if entry["prob"] is None else float(np.log(entry["prob"])) if entry["prob"] > 0 else -np.inf
    raise BadRecordError(
        "logprob: missing",
        f"an entry of logprobs has no logprob, only {', '.join(map(str, entry))}",
        "the answer is of a server that is not known here, or was cut by what saved it.",
    )


def check_speculation(entries: Sequence[Mapping[str, Any]]) -> None:
    """Refuse log-probs of 0 that llama.cpp writes for tokens of a draft, of which it computes none."""
    top = [entry.get("top_logprobs") or entry.get("top_probs") or () for entry in entries]
    bare = [not t and log_prob_of(e) == 0 for e, t in zip(entries, top, strict=True)]
    if any(bare) and any(top):
        raise BadRecordError(
            "logprob: speculation",
            f"{sum(bare)} of {len(entries)} tokens have log-prob 0 and no top_logprobs, which the others have: a draft "
            "proposed them, and llama.cpp computes no log-prob of such tokens",
            "turn speculative decoding off (no draft model, no --spec-type) and sample again.",
        )


def _check_base(top: Sequence[Sequence[float | None]]) -> None:
    """Refuse log-probs whose probabilities add up to more than 1, as those of base 10 do."""
    given = [np.array([x for x in t if x is not None], np.float64) for t in top]
    given = [t for t in given if len(t) > 1 and (t <= 0).all()]
    sums = np.array([np.exp(t).sum() for t in given])
    over = sums > _OVER_ONE
    if not len(sums) or 4 * over.sum() < len(sums):
        return
    tens = max(float((10.0**t).sum()) for t in given)
    base = f"; as logarithms of base 10 they come to at most {tens:.3g}" if tens <= _OVER_ONE else ""
    raise BadRecordError(
        "logprob: not of base e",
        f"the probabilities in top_logprobs of {over.sum()} tokens add up to more than 1, to {sums.max():.3g} at most: "
        f"these are no natural logarithms{base}",
        "multiply by ln 10 = 2.3026 if they are of base 10.",
    )


def _check_sum(whole: Any, values: Sequence[float | None]) -> None:
    """Refuse log-probs that do not add up to what the engine says they do."""
    if not isinstance(whole, int | float) or any(x is None for x in values):
        return
    total = float(sum(x for x in values if x is not None))
    if abs(total - whole) > _SUM_NEAR * max(1.0, abs(whole)):
        raise BadRecordError(
            "logprobs: sum differs",
            f"the log-probs add up to {total:.6g}, and cumulative_logprob is {whole:.6g}",
            "they are not all there, or not of one base; leave the answer out (--skip-bad).",
        )


def _ids(choice: Mapping[str, Any], logprobs: Mapping[str, Any], tokens: Sequence[Any]) -> dict[str, Sequence[int]]:
    """Token ids by where they stand; empty if the server gave only texts."""
    found: dict[str, Sequence[int]] = {}
    for name in _IDS:
        if choice.get(name):
            found[name] = choice[name]
    if logprobs.get("token_ids"):
        found["logprobs.token_ids"] = logprobs["token_ids"]
    entries = [t for t in tokens if isinstance(t, Mapping)]
    for name in ("token_id", "id"):
        given = [e[name] for e in entries if isinstance(e.get(name), int)]
        if given and len(given) < len(entries):
            raise BadRecordError(
                f"{name}: missing",
                f"{len(entries) - len(given)} of {len(entries)} entries of logprobs have no {name}",
                "the answer was cut by what saved it.",
            )
        if given:
            found[f"logprobs.content[].{name}"] = given
    texts = [str(t.get("token", "")) if isinstance(t, Mapping) else str(t) for t in tokens]
    if texts and all(t.startswith(_PREFIX) and t[len(_PREFIX) :].isdecimal() and len(t) < 30 for t in texts):
        found["token_id:N"] = [int(t[len(_PREFIX) :]) for t in texts]
    return found


def _agreed(known: Mapping[str, Sequence[int]], total: int, start: int) -> Sequence[int] | None:
    """The sampled tokens' ids; refused if two places give others."""
    sampled = {name: list(ids[start:] if len(ids) == total else ids) for name, ids in known.items()}
    if not sampled:
        return None
    same_length({"log-probs": total - start, **{name: len(ids) for name, ids in sampled.items()}})
    (one, ids), *others = sampled.items()
    for other, theirs in others:
        if theirs != ids:
            at = next(i for i, (a, b) in enumerate(zip(ids, theirs, strict=True)) if a != b)
            raise BadRecordError(
                "token ids: disagree",
                f"token {at} of the response is {ids[at]} by {one} and {theirs[at]} by {other}",
                "the log-probs may be of other tokens than the ids; leave the answer out (--skip-bad).",
            )
    return ids


def _counted_start(counts: _Counts, request: Mapping[str, Any], values: Sequence[float | None]) -> int:
    """Tell by counting how many of the log-probs are of an echoed prompt, which stands first."""
    given, sampled, before = counts.given, counts.sampled, counts.prompt
    assert sampled is not None
    echo, null = bool(request.get("echo")), bool(values) and values[0] is None
    # vLLM counts one token for an echo with max_tokens 0, and has no log-prob of it
    alone = given == before and given != sampled and sampled <= 1 and (echo or null)
    if given and (request.get("max_tokens") == 0 or sampled == 0 or alone):
        raise BadRecordError(
            "response: nothing was sampled",
            f"nothing was sampled: the {given} log-probs are of the prompt (echo with max_tokens 0)",
            "ask for tokens (max_tokens); log-probs of a prompt have no ratio.",
        )
    if given == sampled and not (echo and null):
        return 0  # a null first log-prob is one that was lost; llama.cpp's server does not heed echo
    if before is not None and given == sampled + before:
        return before
    if before is None and given > sampled and (echo or null):
        return given - sampled
    raise _uncounted(counts)


def _told_start(values: Sequence[float | None], before: int | None, begins: bool, request: Mapping[str, Any]) -> int:
    """Tell it without a count of the sampled tokens: by what was asked, or as the tokens begin with the prompt's."""
    echo, null = bool(request.get("echo")), bool(values) and values[0] is None  # an echo has no first log-prob
    if before is not None and len(values) > before and ((echo and null) or (begins and (echo or null))):
        return before
    if not values or (not echo and (not null or request)):
        return 0
    raise BadRecordError(
        "echo: prompt of unknown length",
        f"the first of {len(values)} tokens may be of an echoed prompt, or not, and nothing in the answer tells which",
        'keep the answer\'s "usage", or ask for token ids (vLLM: return_token_ids).',
    )


def _begin(known: Mapping[str, Sequence[int]], prompt: Sequence[int] | None) -> bool:
    """Whether the tokens begin with the prompt's."""
    return prompt is not None and any(list(ids[: len(prompt)]) == list(prompt) for ids in known.values())


def _uncounted(counts: _Counts) -> BadRecordError:
    given, sampled, before = counts.given, counts.sampled or 0, counts.prompt
    hint = "log-probs were lost on the way; leave the answer out (--skip-bad)."
    if counts.reasoning and given == sampled - counts.reasoning:
        hint = "the log-probs of the reasoning are not in the answer: turn its parser off, or ask for token ids."
    elif given < sampled:
        hint = (
            "ask without stop strings and without tools, which take log-probs away in some servers (llama.cpp), "
            "or leave the answer out (--skip-bad)."
        )
    elif before is not None:
        hint = "an echoed prompt is read where each of its tokens has its place (vLLM), as not in llama-cpp-python."
    prompt = "" if before is None else f" and {before} of the prompt"
    return BadRecordError(
        "logprobs: count differs",
        f"the answer counts {sampled} sampled tokens{prompt}, and has {given} log-probs",
        hint,
    )


def _recognises(head: Head) -> bool:
    answer = answer_of(head.first)
    listed = {name for name in ("choices", "output", "outputs") if isinstance(answer.get(name), list)}
    responses = "output" in listed and answer.get("object") == "response"
    return "choices" in listed or responses or ("outputs" in listed and "prompt_token_ids" in answer)


def _info(path: Path) -> RunInfo:
    first = first_object(path)
    request, model = request_of(first), answer_of(first).get("model")
    sampling = request.get("sampling_params")
    sampling = sampling if isinstance(sampling, Mapping) else request
    return RunInfo(
        model=model if isinstance(model, str) else None,
        temperature=number(sampling.get("temperature")),
        top_p=number(sampling.get("top_p")),
    )


FORMAT = Format(
    name="openai",
    title="vLLM / OpenAI answers: JSON with choices[].logprobs",
    file="answers of `/v1/completions`, `/v1/chat/completions`, `/v1/responses` and vLLM's `/inference/v1/generate`, "
    "of vLLM and other servers; vLLM's `RequestOutput` as JSON",
    ask="`logprobs`, and of vLLM `return_token_ids`; what it kept with `--return-sampling-mask`",
    known="what the sampler kept (`sampling_mask`) and its likeliest tokens, if they have ids",
    both_sides=False,
    endings=JSON,
    kind="json",
    recognises=_recognises,
    items=_items,
    info=_info,
    parts=cut_lines,
    lead=itself,
    option='"logprobs" in the request',
)
