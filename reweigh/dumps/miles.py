"""miles: one file a rank, of which each holds two slices of every response under context parallelism; joined here."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from reweigh.dumps.form import TORCH, BadRecordError, Format, Item, Row, array, has, number, one_version, whole
from reweigh.dumps.slime import Rollouts, response
from reweigh.dumps.tensors import load_torch
from reweigh.records.files import FilePart
from reweigh.records.schema import RunInfo, UnreadableFileError

_NAME = re.compile(r"(?P<rollout>.+)_(?P<rank>\d+)")
_KEYS = ("rollout_id", "rank", "rollout_data")
_Key = tuple[Any, ...]
_SLICED = ("rollout_log_probs", "log_probs", "advantages", "entropy")


def _ranks(path: Path) -> list[Path]:
    """The files of all ranks of one rollout, by rank."""
    name = _NAME.fullmatch(path.stem)
    if name is None:
        return [path]
    by_rank: dict[int, Path] = {}
    for other in path.parent.glob("*.pt"):
        match = _NAME.fullmatch(other.stem)
        if match is not None and match["rollout"] == name["rollout"]:
            by_rank[int(match["rank"])] = other
    return [by_rank[rank] for rank in sorted(by_rank)]


@dataclass(frozen=True)
class _Slice:
    """One rank's copy of a sample."""

    dump: Mapping[str, Any]
    row: int

    def get(self, name: str) -> Any:
        column = self.dump["rollout_data"].get(name)
        return None if column is None else column[self.row]

    def tokens(self) -> bytes:
        """Its tokens, to tell it from other samples."""
        return array(self.get("tokens"), "tokens").astype("<i8").tobytes()


def _items(part: FilePart) -> Iterator[Item]:
    dumps = [_dump(path) for path in _ranks(part.path)]
    samples: dict[_Key, list[_Slice]] = {}
    for dump in dumps:
        columns = dump["rollout_data"]
        indices, seen = columns.get("sample_indices"), dict[_Key, int]()
        for row in range(len(columns["response_lengths"])):
            one = _Slice(dump, row)
            # without indices, files of several ranks cannot be matched: each row is a sample of its own
            key = (dump["rank"], row) if indices is None else (int(indices[row]), one.tokens())
            if indices is not None:  # a conversation that branches is several samples of one index
                seen[key] = seen.get(key, -1) + 1
                key = (*key, seen[key])
            samples.setdefault(key, []).append(one)
    name = _NAME.fullmatch(part.path.stem)
    rollouts = Rollouts.beside(part.path, None if name is None else name["rollout"])
    named: dict[str, int] = {}
    for i, (key, slices) in enumerate(samples.items()):
        one, index = slices[0], None if len(key) == 2 else int(key[0])
        # of a dump that does not number its samples
        text = f"rank{one.dump['rank']}-{one.row}" if index is None else str(index)
        named[text] = named.get(text, -1) + 1
        text += f".{named[text]}" if named[text] else ""
        yield Item(partial(_rows, text, index, slices, rollouts), i)


def _dump(path: Path) -> Mapping[str, Any]:
    dump = load_torch(path)
    if not isinstance(dump, Mapping) or not set(_KEYS) <= set(dump):
        raise UnreadableFileError(f"{path}: must be a train dump like its neighbours\nhint: move it to another folder.")
    return dump


def _rows(name: str, index: int | None, slices: Sequence[_Slice], rollouts: Rollouts) -> Sequence[Row]:
    one = slices[0]
    length, total = int(one.get("response_lengths")), int(one.get("total_lengths"))
    step = int(one.dump["rollout_id"])
    whole = {name: _restored(name, slices, total, length) for name in _SLICED}
    row = response(
        one.get("tokens"),
        length,
        log_mu=whole["rollout_log_probs"],
        log_pi=whole["log_probs"],
        mask=one.get("loss_masks"),
        advantage=whole["advantages"],
        entropy=whole["entropy"],
    )
    versions = one_version(one.get("weight_versions") or (), length)
    row |= {"step": step, "sequence_id": f"rollout{step}/{name}"}
    if versions is not None:
        row["versions"] = versions
    truncated = one.get("truncated")
    if truncated is not None:
        row["finish_reason"] = "length" if truncated else "stop"
    rewards = one.dump["rollout_data"].get("raw_reward")
    if rewards is not None and len(rewards) == len(one.dump["rollout_data"]["response_lengths"]):
        row["reward"] = number(rewards[one.row])  # else it is of the whole batch, in the rollout's order
    return [{**row, **rollouts.columns(index, None, length, one.get("tokens"))}]


def _restored(name: str, slices: Sequence[_Slice], total: int, length: int) -> np.ndarray | None:
    """One value a response token, from the slices of as many ranks as there are; None if no rank has the column."""
    held = {
        int(one.dump.get("cp_rank") or 0): array(one.get(name), name)
        for one in reversed(slices)
        if one.get(name) is not None
    }
    if not held:
        return None
    size = int(slices[0].dump.get("cp_size") or 1)
    if size == 1:
        values = held[min(held)]
        if len(values) != length and "cp_size" not in slices[0].dump:
            raise BadRecordError(
                "cp_size: not recorded",
                f"{name} has {len(values)} of {length} values, and the dump does not say how they were cut",
                "an older version wrote it, which did not record cp_rank and cp_size; write the dump with a newer one.",
            )
        return values
    missing = sorted(set(range(size)) - set(held))
    if missing:
        raise BadRecordError(
            "context parallelism: ranks missing",
            f"{name} is cut over {size} ranks, and cp_rank {', '.join(map(str, missing))} is not in the folder",
            "bring the files of all ranks into one folder.",
        )
    padded = _padded_length(slices[0], total)
    restored = np.full(length, np.nan, np.float64)
    for rank, values in held.items():
        taken = 0
        for start, stop in zigzag(total, length, rank, size, padded):
            restored[start:stop] = values[taken : taken + stop - start]
            taken += stop - start
        if taken != len(values):
            raise BadRecordError(
                "context parallelism: slice of another length",
                f"{name} of cp_rank {rank} has {len(values)} values, its two slices are of {taken}",
                "the dump is damaged, or its ranks are of different runs.",
            )
    return restored


def _padded_length(one: _Slice, total: int) -> int:
    """Find the length that is cut: of the sequence, or in the padded layout the longest of its micro-batch."""
    if one.dump.get("qkv_format", "thd") == "thd":
        return total
    longest = one.get("max_seq_lens")
    if longest is None:
        raise BadRecordError(
            "max_seq_lens: missing",
            "qkv_format is bshd, and max_seq_lens is not in the dump",
            "dump with qkv_format thd.",
        )
    return int(longest)


def zigzag(total: int, length: int, rank: int, size: int, padded: int) -> list[tuple[int, int]]:
    """Tell which response tokens a rank holds: chunk `rank` and chunk `2 size - 1 - rank` of `2 size` equal ones.

    The chunks are of the logits, which stand one place before their token.

    Returns:
        (start, stop) of each stretch, counted from the response's first token; empty ones are left out.
    """
    chunk = -(-padded // (2 * size))
    before = total - length - 1  # where the logits of the response's first token stand
    stretches: list[tuple[int, int]] = []
    for k in (rank, 2 * size - 1 - rank):
        start, stop = max(k * chunk, before), min((k + 1) * chunk, total - 1)
        if start < stop:
            stretches.append((start - before, stop - before))
    return stretches


FORMAT = Format(
    name="miles",
    title="miles train dump: torch files {rollout}_{rank}.pt with rollout_data",
    file="miles, `train_data/{id}_{rank}.pt`",
    ask="`--dump-details DIR`",
    known="the same",
    both_sides=True,
    endings=TORCH,
    kind="torch",
    recognises=has(*_KEYS),
    items=_items,
    info=lambda path: RunInfo(engine="sglang"),
    parts=whole,
    lead=lambda path: _ranks(path)[0],
)
