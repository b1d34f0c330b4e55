"""verifiers: traces.jsonl, an episode a line; each root-to-leaf path of a trace's message graph is one response."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from reweigh.dumps.form import (
    LINES,
    BadRecordError,
    Format,
    Row,
    array,
    cut_lines,
    first_object,
    items_of_lines,
    itself,
    mask_of,
    number,
    prompt_name,
    version,
)
from reweigh.records.schema import RunInfo

DECIMALS = 4  # of a log-prob in a record: verifiers' RECORD_FLOAT_DECIMALS
_VERSION = 1
_SPREAD = {"logprobs": "log_mu", "trainer_logprobs": "log_pi", "entropies": "entropy_pi", "advantages": "advantage"}


def _rows(episode: Mapping[str, Any], _: int) -> Sequence[Row]:
    rows: list[Row] = []
    for trace in episode["traces"]:
        for row in _branches(trace, str(episode.get("id", ""))):
            rows.append({**row, **_of_episode(episode, trace, len(row["token_ids"]))})
    return rows


def _of_episode(episode: Mapping[str, Any], trace: Mapping[str, Any], length: int) -> Row:
    env, work = episode.get("env") or {}, (episode.get("run") or {}).get("work") or {}
    row: dict[str, Any] = {"env": env.get("name") or env.get("id") or None, "step": version(work.get("step"))}
    group = (episode.get("group") or {}).get("id") or (trace.get("task") or {}).get("key")
    if group is not None:
        row["prompt_id"] = str(group)
    span = work.get("policy") or {}
    if span.get("start") is not None and span.get("start") == span.get("end"):
        row["versions"] = np.full(length, int(span["start"]), np.int32)  # else which token is of which is not told
    return row


def _branches(trace: Mapping[str, Any], episode: str) -> Iterator[Row]:
    if trace.get("version", _VERSION) != _VERSION:
        raise BadRecordError(
            "version: unknown",
            f"version of the trace must be {_VERSION}, got {trace['version']!r}",
            "another version of verifiers wrote it, and what its fields mean there is not known here.",
        )
    if not (trace.get("agent") or {}).get("trainable", True):
        return  # an agent that the run does not train, a judge for example
    nodes: Sequence[Mapping[str, Any]] = trace.get("nodes") or ()
    _check_tree(nodes)
    parents = {node.get("parent") for node in nodes} | _abandoned(nodes)
    rewards = [r for r in (trace.get("rewards") or {}).values() if r is not None]
    for leaf in (i for i in range(len(nodes)) if i not in parents):
        row = _path(_to_root(nodes, leaf))
        if row is None:
            continue
        yield {
            **row,
            "sequence_id": f"{episode}/{trace.get('id', '')}/{leaf}",
            "reward": sum(float(r["score"]) * float(r.get("weight", 1.0)) for r in rewards) if rewards else None,
            "finish_reason": trace.get("stop_condition"),
        }


def _check_tree(nodes: Sequence[Mapping[str, Any]]) -> None:
    """Refuse nodes whose parents form a ring, from which no leaf would lead to them, or are none of the nodes."""
    rooted: set[int] = set()
    for first in range(len(nodes)):
        path: dict[int, None] = {}
        at: Any = first
        while at is not None and at not in rooted:
            if type(at) is not int or not 0 <= at < len(nodes) or at in path:
                what = "in a ring of parents" if type(at) is int and at in path else f"has a parent that is {at!r:.20}"
                where = first if not path else list(path)[-1]
                raise BadRecordError(
                    "parent: no tree",
                    f"nodes do not form a tree: node {where} of {len(nodes)} {'is ' * ('ring' in what)}{what}",
                    "the trace is damaged; leave it out (--skip-bad).",
                )
            path[at] = None
            at = nodes[at].get("parent")
        rooted.update(path)


def _abandoned(nodes: Sequence[Mapping[str, Any]]) -> set[int | None]:
    """Summaries of a long conversation that the agent did not go on from: no trainer sees them."""
    links = [(i, link) for i, node in enumerate(nodes) for link in node.get("semantic_parents") or ()]
    accepted = {link.get("node") for _, link in links if link.get("type") == "compaction"}
    return {i for i, link in links if link.get("type") == "compaction_attempt" and i not in accepted}


def _to_root(nodes: Sequence[Mapping[str, Any]], leaf: int) -> list[Mapping[str, Any]]:
    path: list[Mapping[str, Any]] = []
    at: int | None = leaf
    while at is not None:
        path.append(nodes[at])
        at = nodes[at].get("parent")
    return path[::-1]


def _path(path: Sequence[Mapping[str, Any]]) -> Row | None:
    """The columns of one path; None if nothing on it was sampled."""
    bare = [node for node in path if node.get("sampled") and not node.get("token_ids")]
    if bare:
        sampled = sum(bool(node.get("sampled")) for node in path)
        raise BadRecordError(
            "token_ids: missing",
            f"{len(bare)} of {sampled} sampled messages of a trace have no token ids",
            "its client asked for none, as in an evaluation; traces of a training run have them (prime-rl). Or leave "
            "the trace out (--skip-bad).",
        )
    of_ids = [array(n.get("token_ids") or [], "token_ids") for n in path]
    of_mask = [mask_of(n.get("mask") or [], "mask") for n in path]
    for i, (some, counts) in enumerate(zip(of_ids, of_mask, strict=True)):
        if len(some) != len(counts):  # of one node: the sums over all may be the same
            raise BadRecordError(
                "lists: lengths differ",
                f"token_ids of message {i} on its path has {len(some)} values, its mask has {len(counts)}",
                "the trace is damaged; leave it out (--skip-bad).",
            )
    ids, mask = np.concatenate(of_ids), np.concatenate(of_mask)
    if not mask.any():
        return None
    start = int(np.argmax(mask))
    row: dict[str, Any] = {
        "token_ids": ids[start:],
        "mask": mask[start:],
        "prompt_ids": ids[:start],
        "prompt_length": start,
        "prompt_id": prompt_name(ids[:start]),
    }
    for name, column in _SPREAD.items():
        values = _spread(path, name, len(ids))
        if values is not None:
            row[column] = values[start:]
    return {**row, "turns": _turns(path)[start:]}


def _spread(path: Sequence[Mapping[str, Any]], name: str, length: int) -> np.ndarray | None:
    """Values of the sampled tokens at their places; NaN elsewhere, and where a node has none."""
    if all(not node.get(name) for node in path):
        return None
    whole, at = np.full(length, np.nan, np.float64), 0
    for node in path:
        mask = mask_of(node.get("mask") or [], "mask")
        values = node.get(name)
        if values:
            if len(values) != mask.sum():
                raise BadRecordError(
                    "lists: lengths differ",
                    f"{name} of a node has {len(values)} values, its mask has {mask.sum()} sampled tokens",
                    "the trace is damaged; leave it out (--skip-bad).",
                )
            whole[at : at + len(mask)][mask] = array(values, name)
        at += len(mask)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is reported as that
        return whole.astype(np.float32)


def _turns(path: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Number sampled messages, each with its template; a tool's output goes with the message before."""
    turns: list[np.ndarray] = []
    turn = -1
    for node in path:
        sampled = mask_of(node.get("mask") or [], "mask")
        turn += bool(sampled.any())
        turns.append(np.full(len(sampled), max(turn, 0), np.int32))
    return np.concatenate(turns)


def _info(path: Path) -> RunInfo:
    first = first_object(path)
    calls = [call for trace in first.get("traces") or () for call in trace.get("calls") or ()]
    sampling: Mapping[str, Any] = next((c["sampling"] for c in calls if c.get("sampling")), {})
    model = next((c["model"] for c in calls if isinstance(c.get("model"), str)), None)
    return RunInfo(
        model=model,
        temperature=number(sampling.get("temperature")),
        top_p=number(sampling.get("top_p")),
        decimals=DECIMALS if _is_rounded(first) else None,
    )


def _is_rounded(episode: Mapping[str, Any]) -> bool:
    """Whether no log-prob of an episode has more decimals than a record keeps."""
    nodes = [node for trace in episode.get("traces") or () for node in trace.get("nodes") or ()]
    values = [x for node in nodes for x in node.get("logprobs") or () if isinstance(x, float)]
    return all(round(x, DECIMALS) == x for x in values)


FORMAT = Format(
    name="verifiers",
    title="verifiers traces: JSON lines with task and traces",
    file="verifiers 0.4, `traces.jsonl`",
    ask="written by prime-rl and by verifiers' own runs",
    known="step, environment, group, reward, turns, weight version, advantage, entropy",
    both_sides=True,
    endings=LINES,
    kind="json",
    recognises=lambda head: "task" in head.first and isinstance(head.first.get("traces"), list),
    items=partial(items_of_lines, rows=_rows),
    info=_info,
    parts=cut_lines,
    lead=itself,
    decimals=DECIMALS,
)
