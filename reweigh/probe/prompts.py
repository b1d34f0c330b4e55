"""Prompts for a probe: 64 short ones that come with the package, or the lines of a file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from reweigh.probe.engine import ProbeError


@dataclass(frozen=True)
class Prompt:
    """A question and the name it has in the records."""

    prompt_id: str
    text: str


def load_prompts(path: Path | None = None, limit: int | None = None) -> list[Prompt]:
    """Read prompts: the package's own, or a file.

    Args:
        path: `.jsonl`, one `{"prompt": ..., "id": ...}` a line (`id` optional), or text, one prompt a line; blank
            lines are skipped.
        limit: take the first so many.

    Raises:
        ProbeError: no such file, a line that is not a prompt, or fewer prompts than `limit`.
    """
    if path is None:
        text, place = files("reweigh.probe").joinpath("prompts.jsonl").read_text("utf-8"), "prompts.jsonl"
    else:
        if not path.is_file():
            raise ProbeError(f"--prompts: no file {path}\nhint: give a .txt with one prompt a line, or a .jsonl.")
        text, place = path.read_text("utf-8"), str(path)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    prompts = [_prompt(line, place, number) for number, line in lines]
    if not prompts:
        raise ProbeError(f"--prompts: {place} has no prompts\nhint: one a line.")
    if limit is not None and len(prompts) < limit:
        raise ProbeError(
            f"--num-prompts: {limit} asked for, {place} has {len(prompts)}\n"
            f"hint: give --prompts FILE with more, or --num-prompts {len(prompts)} and more --samples-per-prompt."
        )
    return prompts[:limit]


def tokenize(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of each prompt as one user message, with the chat template if the tokenizer has one."""
    return [_ids(prompt.text, tokenizer) for prompt in prompts]


def _ids(text: str, tokenizer: Any) -> list[int]:
    if tokenizer.chat_template is None:
        return list(tokenizer(text)["input_ids"])
    message = {"role": "user", "content": text}
    return list(tokenizer.apply_chat_template([message], add_generation_prompt=True, return_dict=False))


def _prompt(line: str, place: str, number: int) -> Prompt:
    name = f"line-{number}"
    if not place.endswith(".jsonl"):
        return Prompt(name, line.rstrip("\r"))
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ProbeError(f"--prompts: {place} line {number} is not JSON: {error}\nhint: one object a line.") from error
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise ProbeError(
            f'--prompts: {place} line {number} has no text under "prompt"\nhint: {{"prompt": "Why is the sky blue?"}}'
        )
    return Prompt(str(row.get("id", name)), row["prompt"])
