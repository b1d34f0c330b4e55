"""slime: the train dump (version 2), joined with the rollout dump beside it, and the rollout dump alone."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from reweigh.dumps.form import (
    TORCH,
    BadRecordError,
    Format,
    Item,
    Row,
    array,
    get,
    has,
    itself,
    mask_of,
    number,
    one_version,
    prompt_name,
    turns_of,
    unknown_version,
    whole,
)
from reweigh.dumps.tensors import load_torch
from reweigh.records.files import FilePart
from reweigh.records.schema import RunInfo, UnreadableFileError

_VERSION = 2


def _train_items(part: FilePart) -> Iterator[Item]:
    dump = load_torch(part.path)
    if dump.get("format_version") != _VERSION:
        raise unknown_version(
            part.path, "format_version of slime's train dump", str(_VERSION), dump.get("format_version")
        )
    rollouts = Rollouts.beside(part.path)
    for i, sample in enumerate(dump["samples"]):
        yield Item(partial(_train_rows, sample, i, dump, rollouts), i)


def _rollout_items(part: FilePart) -> Iterator[Item]:
    dump = load_torch(part.path)
    for i, sample in enumerate(dump["samples"]):
        yield Item(partial(_rollout_rows, sample, i, dump["rollout_id"]), i)


def _train_rows(sample: Mapping[str, Any], i: int, dump: Mapping[str, Any], rollouts: "Rollouts") -> Sequence[Row]:
    length = int(get(sample, "response_lengths"))
    position = sample.get("rollout_position")
    rewards = dump.get("raw_reward")
    row = response(
        get(sample, "tokens"),
        length,
        log_mu=sample.get("rollout_log_probs"),
        log_pi=sample.get("log_probs"),
        mask=sample.get("loss_masks"),
        advantage=sample.get("advantages"),
        entropy=sample.get("entropy"),
    )
    if position is not None and isinstance(rewards, Sequence) and position < len(rewards):
        row["reward"] = number(rewards[position])
    step = int(dump["rollout_id"])
    index = sample.get("sample_index")
    row |= {"step": step, "sequence_id": f"rollout{step}/{i if position is None else position}"}
    return [{**row, **rollouts.columns(index, position, length, sample["tokens"])}]


def _rollout_rows(sample: Mapping[str, Any], i: int, rollout_id: int) -> Sequence[Row]:
    length = int(get(sample, "response_length"))
    mask = sample.get("loss_mask")
    if sample.get("remove_sample"):
        mask = [0] * length
    row = response(get(sample, "tokens"), length, log_mu=sample.get("rollout_log_probs"), mask=mask)
    row |= {"step": rollout_id, "sequence_id": f"rollout{rollout_id}/{i}"}
    return [{**row, **rollout_columns(sample, rollout_id, length)}]


def response(
    tokens: Any,
    length: int,
    *,
    log_mu: Any,
    log_pi: Any = None,
    mask: Any = None,
    advantage: Any = None,
    entropy: Any = None,
) -> dict[str, Any]:
    """The columns of one sample: its tokens are of prompt and response, its other lists of the response alone."""
    ids = array(tokens, "tokens")
    if not 0 <= length <= len(ids):
        raise BadRecordError(
            "response_length: too long", f"response_length is {length}, tokens has {len(ids)}", "the dump is damaged."
        )
    prompt = ids[: len(ids) - length]
    row: dict[str, Any] = {
        "token_ids": ids[len(ids) - length :],
        "prompt_ids": prompt,
        "prompt_length": len(prompt),
        "prompt_id": prompt_name(prompt),
    }
    columns = {"log_mu": log_mu, "log_pi": log_pi, "advantage": advantage, "entropy_pi": entropy}
    row |= {name: array(value, name) for name, value in columns.items() if value is not None}
    if mask is not None:
        row["mask"] = mask_of(mask, "mask")
        row["turns"] = turns_of(row["mask"])
    return row


def rollout_columns(sample: Mapping[str, Any], rollout_id: int, length: int) -> Row:
    """Take what only the rollout side knows of a sample: its group, reward, versions, end and text."""
    row: dict[str, Any] = {"finish_reason": sample.get("status"), "text": sample.get("response")}
    group = sample.get("group_index")
    if group is not None:
        row["prompt_id"] = f"rollout{rollout_id}/group{group}"
    reward = number(sample.get("reward"))
    if reward is not None:
        row["reward"] = reward
    versions = one_version(sample.get("weight_versions") or (), length)
    if versions is not None:
        row["versions"] = versions
    return row


class Rollouts:
    """The rollout dump of the same id, if it is there: `rollout_data/7.pt` beside `train_data/7.pt`."""

    def __init__(self, path: Path, rollout_id: int, samples: Sequence[Mapping[str, Any]]) -> None:
        self._path = path
        self._rollout_id = rollout_id
        self._samples = samples
        self._by_index: dict[Any, list[Mapping[str, Any]]] = {}
        for one in samples:
            if one.get("index") is not None:
                self._by_index.setdefault(one["index"], []).append(one)

    @classmethod
    def beside(cls, train: Path, rollout_id: str | None = None) -> "Rollouts":
        """Look for it; without one, nothing is joined."""
        path = train.parent.parent / "rollout_data" / f"{train.stem if rollout_id is None else rollout_id}.pt"
        if train.parent.name == "rollout_data" or not path.is_file():
            return cls(path, 0, ())
        dump = load_torch(path)
        if not isinstance(dump, Mapping) or "samples" not in dump:
            raise UnreadableFileError(
                f"{path}: must be a rollout dump with samples\nhint: move it away to read the train dump alone."
            )
        return cls(path, int(dump["rollout_id"]), dump["samples"])

    def columns(self, index: int | None, position: int | None, length: int, tokens: Any) -> Row:
        """Take what it says of a sample of the train dump; empty if there is no dump, or the sample is not in it.

        An agent's conversation that branches is several samples of one index: they are told apart by their tokens.
        """
        samples = self._by_index.get(index, []) if index is not None else []
        if len(samples) > 1:
            ids = array(tokens, "tokens").tolist()
            samples = [one for one in samples if array(one["tokens"], "tokens").tolist() == ids][:1]
        sample = samples[0] if samples else None
        if sample is None and index not in self._by_index and position is not None and position < len(self._samples):
            sample = self._samples[position]
        if sample is None:
            return {}
        if int(sample["response_length"]) != length:
            raise BadRecordError(
                "rollout dump: another response",
                f"sample {index} has {length} response tokens here, and {sample['response_length']} in {self._path}",
                "the two dumps are of different runs; move the rollout dump away to read the train dump alone.",
            )
        return rollout_columns(sample, self._rollout_id, length)


def info(path: Path) -> RunInfo:
    """slime samples with SGLang and trains with Megatron; no dump says at which temperature."""
    return RunInfo(engine="sglang", trainer="megatron")


TRAIN = Format(
    name="slime",
    title="slime train dump: a torch file with format_version 2, samples and dp_shards",
    file="slime, `train_data/{id}.pt`, format version 2",
    ask="`--dump-details DIR` or `--save-debug-train-data`",
    known="step, advantage, entropy, reward; with `rollout_data/{id}.pt` beside it: prompt group, weight version, end, "
    "text",
    both_sides=True,
    endings=TORCH,
    kind="torch",
    recognises=has("samples", "dp_shards"),
    items=_train_items,
    info=info,
    parts=whole,
    lead=itself,
    option="return_logprob in the rollout function, which fills Sample.rollout_log_probs with it,",
)


def _alone(path: Path) -> Path | None:
    # beside its train dump it is read with it
    joined = path.parent.name == "rollout_data" and any((path.parent.parent / "train_data").glob("*.pt"))
    return None if joined or path.stem.startswith("eval_") else path


ROLLOUT = Format(
    name="slime_rollout",
    title="slime or miles rollout dump: a torch file with rollout_id and samples",
    file="slime's and miles' `rollout_data/{id}.pt` without its train dump",
    ask="`--save-debug-rollout-data`",
    both_sides=False,
    endings=TORCH,
    kind="torch",
    recognises=lambda head: head.first.keys() >= {"samples", "rollout_id"} and "dp_shards" not in head.first,
    items=_rollout_items,
    info=info,
    parts=whole,
    lead=_alone,
)
