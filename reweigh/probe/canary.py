"""Canary prompts: what a trainer says of a few tokens at a weight version, and which fault an engine's answer is like.

`record` keeps the trainer's log-probs and commits each fault that it knows on the trainer's own weights, so `check`
need not guess at patterns: it compares the engine's answer with what every fault would have answered.
"""

import json
import math
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from reweigh.guard import loads, write_whole
from reweigh.probe.engine import ProbeError
from reweigh.probe.models import round_rows
from reweigh.probe.scorer import Response, Scorer, log_softmax

Kind = Literal[
    "nothing_pushed",
    "part_of_fused",
    "layers_left_out",
    "stale_cache",
    "tied_head",
    "lora_not_applied",
    "lora_twice",
    "precision",
]
TITLES: Mapping[Kind, str] = {
    "nothing_pushed": "nothing was pushed: the engine answers with the weights before",
    "part_of_fused": "a part of a fused tensor was not pushed",
    "layers_left_out": "some layers were not pushed",
    "stale_cache": "a prefix cache of the weights before is still used",
    "tied_head": "head and embedding are tied in the trainer, and one of them was not pushed",
    "lora_not_applied": "the adapter is not applied: the engine answers with the base model",
    "lora_twice": "the adapter is applied twice",
    "precision": "the engine's weights are in a coarser number type",
}
_FORMAT = 1
_FUSED = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_GROUPS = 3  # runs of layers that are left out in turn

# Natural logs of a likelihood ratio. Of noise that a fault has nothing to do with, one in about 200,000 looks so much
# like it (a normal deviate over sqrt(2 * 10)); engine noise is not independent over tokens, which the margin is for.
SURE = 10.0
TOLD_APART = 3.0
# Root mean square of the engine's noise by that of the trainer's own bfloat16 forward: sdpa against eager is 1.3
# (docs/probe.md).
MOST_NOISE = 3.0
_LEAST_SPREAD = 0.02  # of 1 - p, for tokens that are all but certain
_LEAST_NOISE = 1e-4  # nats: two float32 forwards


@dataclass(frozen=True)
class CanaryFault:
    """What the engine would answer with one fault.

    Attributes:
        kind: which.
        what: of what, such as "q_proj"; may be empty.
        log_pi: nats, of each token.
    """

    kind: Kind
    what: str
    log_pi: list[list[float]]


@dataclass(frozen=True)
class Canary:
    """A few prompts and responses with what a trainer says of them at one weight version.

    Attributes:
        version: of the weights, as the user counts them.
        model: its name.
        responses: token ids, the same from version to version.
        log_pi: nats, of each token, in the trainer's precision.
        rounded: the same in bfloat16, for how large honest noise is.
        faults: what each fault would answer.
    """

    version: int
    model: str
    responses: list[Response]
    log_pi: list[list[float]]
    rounded: list[list[float]]
    faults: list[CanaryFault]

    def save(self, path: Path) -> None:
        """Write it as JSON, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps({"reweigh_canary": _FORMAT, **asdict(self)}))


def load_canary(path: Path) -> Canary:
    """Read what `Canary.save` wrote.

    Raises:
        ProbeError: no such file, or something else.
    """
    if not path.is_file():
        raise ProbeError(f"canary: no file {path}\nhint: write one with `reweigh canary record`.")
    try:
        row: Any = loads(path.read_text("utf-8"))
        if row.pop("reweigh_canary") != _FORMAT:
            raise KeyError("reweigh_canary")
        row["responses"] = [Response(**one) for one in row["responses"]]
        row["faults"] = [CanaryFault(**one) for one in row["faults"]]
        return Canary(**row)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProbeError(f"canary: {path} is no canary: {error}\nhint: `reweigh canary record` writes one.") from error


State = Mapping[str, Tensor]


def state_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """A copy of a model's weights by name, to be the `previous` of a later record."""
    return {name: value.detach().clone() for name, value in model.named_parameters()}


@torch.inference_mode()
def record(
    model: PreTrainedModel,
    responses: Sequence[Response],
    *,
    name: str,
    version: int = 0,
    previous: State | None = None,
    base: State | None = None,
    told: Callable[[str], None] = lambda _: None,
) -> Canary:
    """Keep the trainer's log-probs of these responses, and what each fault that can be committed would make of them.

    Args:
        model: the trainer's, in float32, with the weights that are pushed (an adapter merged in). It is left as it was.
        responses: prompts and tokens; the same for each version.
        name: of the model, for messages.
        version: of the weights.
        previous: the weights that the engine had before; without them only faults that need none are known.
        base: the weights without the adapter, if one is trained.
        told: called with the name of each fault before it is committed.

    Raises:
        ProbeError: weights of another model.
    """
    params = dict(model.named_parameters())
    for option, state in (("previous", previous), ("base", base)):
        if state is not None and {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in params.items()}:
            raise ProbeError(
                f"canary: {option} has other tensors than the model\nhint: the same model, another version."
            )
    scorer = Scorer(model, "float32", with_entropy=False)

    def scored() -> list[list[float]]:
        return [one.log_pi for one in scorer.score(responses)]

    faults: list[CanaryFault] = []

    def commit(kind: Kind, what: str, state: State) -> None:
        told(f"{kind} {what}".strip())
        with _changed(params, state):
            faults.append(CanaryFault(kind, what, scored()))

    log_pi = scored()
    told("bfloat16")
    with (
        _changed(params, {k: v.bfloat16().to(v.dtype) for k, v in params.items()}),
        torch.autocast(model.device.type, torch.bfloat16),
    ):
        rounded = scored()
    if previous is not None:
        moved = {k for k, v in params.items() if not torch.equal(v, previous[k])}
        commit("nothing_pushed", "", previous)
        for word in _FUSED:
            if some := {k: previous[k] for k in moved if f".{word}." in k}:
                commit("part_of_fused", word, some)
        for what, some in _runs_of_layers(previous):
            if moved & set(some):
                commit("layers_left_out", what, some)
        head: Any = model.get_output_embeddings()
        embedding: Any = model.get_input_embeddings()
        if head.weight is embedding.weight and not torch.equal(head.weight, _old(params, previous, head.weight)):
            for what, module in (("head", head), ("embedding", embedding)):
                told(f"tied_head {what}")
                with _untied(module, _old(params, previous, head.weight)):
                    faults.append(CanaryFault("tied_head", what, scored()))
        told("stale_cache")
        faults.append(CanaryFault("stale_cache", "", _with_stale_cache(model, params, previous, responses)))
    if base is not None:
        commit("lora_not_applied", "", base)
        commit("lora_twice", "", {k: 2 * v - base[k] for k, v in params.items()})
    matrices = _matrices(model)
    commit("precision", "int8", {k: round_rows(v) for k, v in params.items() if k in matrices})
    commit("precision", "fp8", {k: _fp8(v) for k, v in params.items() if k in matrices})
    return Canary(version, name, list(responses), log_pi, rounded, faults)


@contextmanager
def _changed(params: Mapping[str, Tensor], state: State) -> Generator[None, None, None]:
    """Put other values in the place of some weights while the block runs."""
    kept = {name: params[name].data for name in state}
    try:
        for name, value in state.items():
            params[name].data = value.to(params[name])
        yield
    finally:
        for name, value in kept.items():
            params[name].data = value


@contextmanager
def _untied(module: Any, weight: Tensor) -> Generator[None, None, None]:
    """Give one of two layers that share a weight another one while the block runs."""
    kept = module.weight
    try:
        module.weight = nn.Parameter(weight.to(kept), requires_grad=False)
        yield
    finally:
        module.weight = kept


def _old(params: Mapping[str, Tensor], previous: State, weight: Tensor) -> Tensor:
    return next(previous[name] for name, value in params.items() if value is weight)


def _runs_of_layers(state: State) -> list[tuple[str, dict[str, Tensor]]]:
    numbers = {name: int(found[1]) for name in state if (found := _LAYER.search(name))}
    count = max(numbers.values(), default=-1) + 1
    runs: list[tuple[str, dict[str, Tensor]]] = []
    for i in range(_GROUPS if count >= _GROUPS else 0):
        low, high = i * count // _GROUPS, (i + 1) * count // _GROUPS
        runs.append((f"{low} to {high - 1}", {k: state[k] for k, n in numbers.items() if low <= n < high}))
    return runs


def _matrices(model: PreTrainedModel) -> set[str]:
    head = model.get_output_embeddings()
    return {
        f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and layer is not head
    }


def _fp8(weight: Tensor) -> Tensor:
    """Round a matrix to float8 (e4m3) with one scale."""
    scale = weight.abs().max().clamp(min=torch.finfo(torch.float32).tiny) / torch.finfo(torch.float8_e4m3fn).max
    return (weight / scale).to(torch.float8_e4m3fn).to(weight.dtype) * scale


def _with_stale_cache(
    model: PreTrainedModel, params: Mapping[str, Tensor], previous: State, responses: Sequence[Response]
) -> list[list[float]]:
    """Score each response with the weights of now, its prompt's keys and values being of the weights before."""
    caches = [DynamicCache(config=model.config) for _ in responses]
    with _changed(params, previous):
        for cache, one in zip(caches, responses, strict=True):
            if len(one.prompt_ids) > 1:
                _forward(model, one.prompt_ids[:-1], cache)
    values: list[list[float]] = []
    for cache, one in zip(caches, responses, strict=True):
        logits = _forward(model, [one.prompt_ids[-1], *one.token_ids[:-1]], cache)
        log_p = log_softmax(logits, 1.0)
        ids = torch.tensor(list(one.token_ids), device=logits.device)
        values.append(log_p.gather(-1, ids[:, None]).squeeze(-1).tolist())
    return values


def _forward(model: PreTrainedModel, ids: Sequence[int], cache: DynamicCache) -> Tensor:
    given: Any = model
    return given(torch.tensor([list(ids)], device=model.device), past_key_values=cache, use_cache=True).logits[0]


@dataclass(frozen=True)
class Likeness:
    """How well one fault explains the engine's answer, beside no fault: a log-likelihood ratio, natural."""

    kind: Kind
    what: str
    evidence: float

    @property
    def title(self) -> str:
        """Say it in words."""
        return TITLES[self.kind] + (f" ({self.what})" if self.what else "")


@dataclass(frozen=True)
class CanaryCheck:
    """What a check found.

    Attributes:
        code: 0 as pushed; 1 a fault; 2 it cannot be told.
        sentence: which, and why.
        likely: the fault that explains the answer best, and those that cannot be told apart from it.
        hidden: faults whose effect is too small here to be ruled out.
        noise: root mean square of engine against trainer, nats after division by 1 - p.
        usual: the same of the trainer's own bfloat16 forward.
        step: of the weights before against these; None without them.
    """

    code: Literal[0, 1, 2]
    sentence: str
    likely: tuple[Likeness, ...]
    hidden: tuple[Likeness, ...]
    noise: float
    usual: float
    step: float | None


def check(canary: Canary, log_mu: Sequence[Sequence[float]]) -> CanaryCheck:
    """Tell what an engine's log-probs of a canary's tokens look like.

    Noise is taken to be alike over tokens after division by 1 - p, of a size that is what each explanation leaves.

    Args:
        canary: of the weights that were pushed.
        log_mu: nats, of each token of each response, at temperature 1 and without truncation.

    Raises:
        ProbeError: not one finite log-prob a token.
    """
    lengths = [len(one.token_ids) for one in canary.responses]
    if [len(one) for one in log_mu] != lengths:
        raise ProbeError(
            f"canary: log-probs of {[len(one) for one in log_mu]} tokens, the canary has {lengths}\n"
            "hint: one log-prob for each token of each response, in order."
        )
    now, engine = _flat(canary.log_pi), _flat(log_mu)
    if not np.isfinite(engine).all():
        raise ProbeError("canary: a log-prob is not finite\nhint: score at temperature 1, without top-p or top-k.")
    spread = np.maximum(-np.expm1(now), _LEAST_SPREAD)
    x = (engine - now) / spread
    n = len(x)

    def left(delta: np.ndarray) -> float:
        return float(((x - delta) ** 2).mean()) + _LEAST_NOISE**2

    nothing = left(np.zeros(n))
    noise, usual = math.sqrt(nothing), _rms((_flat(canary.rounded) - now) / spread)
    deltas = [(one, (_flat(one.log_pi) - now) / spread) for one in canary.faults]
    ranked = sorted(
        (Likeness(one.kind, one.what, n / 2 * math.log(nothing / left(delta))) for one, delta in deltas),
        key=lambda one: -one.evidence,
    )
    step = next((_rms(delta) for one, delta in deltas if one.kind == "nothing_pushed"), None)
    hidden = tuple(one for one in ranked if -TOLD_APART < one.evidence < SURE)
    sizes = f"engine against trainer {noise:.2g} nats (usual in bfloat16: {usual:.2g})"

    def found(code: Literal[0, 1, 2], sentence: str, likely: Sequence[Likeness] = ()) -> CanaryCheck:
        return CanaryCheck(code, sentence, tuple(likely), hidden, noise, usual, step)

    if ranked and ranked[0].evidence >= SURE:
        best = ranked[0]
        near = [one for one in ranked if one.evidence > best.evidence - TOLD_APART]
        kinds = dict.fromkeys(one.kind for one in near)
        rest = math.sqrt(nothing * math.exp(-2 * best.evidence / n))
        if rest > MOST_NOISE * max(usual, _LEAST_NOISE):
            return found(
                1, f"a fault, of no kind that is known: nearest is {best.kind}, which leaves {rest:.2g} nats; {sizes}"
            )
        if len(kinds) > 1:
            return found(1, f"a fault: {' or '.join(kinds)}, which cannot be told apart here; {sizes}", near)
        return found(1, f"{best.title}; {sizes}", near)
    if noise > MOST_NOISE * max(usual, _LEAST_NOISE):
        return found(1, f"a fault, of no kind that is known: {sizes}")
    before = next((one for one in ranked if one.kind == "nothing_pushed"), None)
    if before is not None and before.evidence > -TOLD_APART:
        return found(
            2,
            f"cannot tell whether the weights were pushed: they moved these log-probs by {step:.2g} nats, and {sizes}; "
            "compare with an older version, or use more prompts",
            [before],
        )
    if before is None:
        return found(0, f"as the trainer's, as far as can be told without the weights before; {sizes}")
    return found(0, f"as pushed: {sizes}; the weights before would differ by {step:.2g}")


def _flat(rows: Sequence[Sequence[float]]) -> np.ndarray:
    return np.array([value for row in rows for value in row], dtype=np.float64)


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt((x**2).mean()))
