"""One run: a policy that is trained on what a stale or rounded copy of itself samples, and what is seen meanwhile."""

import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor, nn

from reweigh.batch import Batch, Candidates
from reweigh.centring import Centred, centred
from reweigh.doctor import doctor
from reweigh.estimators import Estimator
from reweigh.experiment.world import (
    CACHES,
    Brackets,
    Model,
    Sampled,
    State,
    as_stored,
    check_weights,
    chosen,
    entropy_of,
    sample,
    score,
    warm_start,
)
from reweigh.levels import SEQUENCE, TOKEN
from reweigh.losses import num_tokens, policy_gradient, ppo_clip
from reweigh.named import naive
from reweigh.records import RecordWriter, RunInfo
from reweigh.spec import parse
from reweigh.stats.summary import Summary, summarise
from reweigh.stats.sums import RatioStats
from reweigh.stats.verdict import advise, gap_of, wrong_of

NAIVE = "naive()"
MISMATCH = 1e-9  # nats a token of k3: under it pi and mu are the same but for rounding
ASKED = 2  # windows with a mismatch in which the doctor is asked
EVERY = 5  # steps between two measurements of pi's own reward, and in one window of the verdict
EVALS = 256  # answers to one prompt each, always the same prompts
EVAL_SEED = 7
GONE, GONE_FOR = 0.01, 4  # a run that has that reward, or less, so many times in a row is over
PPO = "ppo_clip"
CLIP = 1.0  # of the gradient's norm
BETAS = (0.9, 0.99)
_LITTLE = 1e-4  # beside a group's standard deviation

SERIES = (
    *("reward", "entropy", "k3", "abs", "sd", "ess", "ratio"),
    *("gradient", "kept", "weight"),
)
"""What is noted at every step: the rollouts' mean reward, entropy of pi (nats), k3 and mean |log ratio| a token (nats),
standard deviation of the sequence's log ratio (nats), effective share of sequences, mean token ratio, norm of the
gradient before it is clipped, share of tokens kept, mean weight of all tokens."""


@dataclass(frozen=True)
class Setting:
    """What is as it is for every method that is compared.

    Attributes:
        lag: updates that the sampler trails by in the end.
        stale_from: first step whose sampler is behind: it keeps the weights of the step before until it is.
        rate: Adam's learning rate.
        length: symbols of an answer.
        steps: updates.
        warm: steps of the warm start.
        weights: number type of the sampler's weights, as "int3/64"; empty for the trainer's own.
        cache: number type of the sampler's keys and values: "fp8", or empty.
        top_p: of the sampler; its log-probs are those after it.
        replay: whether the trainer leaves out what the sampler's top-p did.
        dropout: left on in the trainer.
        partial: updates by which the weights of the second half of an answer are newer: they are exchanged while it is
            written, and what was written is not gone over again.
        experts: of each layer, one of which a router chooses for a token; 0 for none.
        prompts: of a batch.
        answers: to each prompt.

    Raises:
        ValueError: a value that cannot be.
    """

    lag: int = 0
    stale_from: int = 15
    rate: float = 1e-3
    length: int = 24
    steps: int = 80
    warm: int = 180
    weights: str = ""
    cache: str = ""
    top_p: float = 1.0
    replay: bool = False
    dropout: float = 0.0
    partial: int = 0
    experts: int = 0
    prompts: int = 16
    answers: int = 8

    def __post_init__(self) -> None:
        """Refuse what cannot be run, by name."""
        self.task  # noqa: B018 - it refuses lengths
        check_weights(self.weights)
        rules: tuple[tuple[str, bool, str], ...] = (
            ("lag", self.lag >= 0, ">= 0"),
            ("stale_from", self.stale_from >= 0, ">= 0"),
            ("rate", 0 < self.rate < 1, "in (0, 1)"),
            ("steps", self.steps >= 1, ">= 1"),
            ("warm", self.warm >= 0, ">= 0"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("dropout", 0 <= self.dropout < 1, "in [0, 1)"),
            ("partial", 0 <= self.partial <= self.lag, f"between 0 and the lag, {self.lag}"),
            ("experts", self.experts >= 0 and self.experts != 1, "0, or 2 and more"),
            ("prompts", self.prompts >= 1, ">= 1"),
            ("answers", self.answers >= 2, ">= 2"),
            ("cache", self.cache in CACHES, f"one of {', '.join(map(repr, CACHES))}"),
        )
        for name, holds, rule in rules:
            if not holds:
                raise ValueError(f"Setting: {name} must be {rule}, got {getattr(self, name)!r}")

    @property
    def task(self) -> Brackets:
        """Make the task."""
        return Brackets(self.length)

    @property
    def others(self) -> dict[str, Any]:
        """Give what is not as by default, by name: what a line of results says of a setting."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}

    @property
    def name(self) -> str:
        """Say what is not as by default: `lag 12, rate 0.0003`; `no mismatch` if nothing is."""
        said = [name if value is True else f"{name} {value}" for name, value in self.others.items()]
        return ", ".join(said) or "no mismatch"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "setting") -> "Setting":
        """Read what `others` gave.

        Raises:
            ValueError: a name that is none, or a value that cannot be.
        """
        known = {f.name: f for f in fields(cls)}
        for name, value in values.items():
            if name not in known:
                raise ValueError(f"{where}: {name!r} is no part of a setting\nhint: one of {', '.join(known)}.")
            kind = type(known[name].default)
            if not isinstance(value, kind | int if kind is float else kind) or (
                isinstance(value, bool) and kind is not bool
            ):
                raise ValueError(f"{where}: {name} must be of type {kind.__name__}, got {value!r}")
        try:
            return cls(**values)
        except ValueError as e:
            raise ValueError(f"{where}: {e}") from None


@dataclass(frozen=True)
class Method:
    """An estimator in its loss.

    Attributes:
        name: as one would write it.
        estimator: the weights, centred or not.
        loss: REINFORCE with the weights, or PPO's clip of the ratio to mu.
    """

    name: str
    estimator: Estimator | Centred
    loss: Literal["policy_gradient", "ppo_clip"] = "policy_gradient"

    @classmethod
    def of(cls, name: str) -> "Method":
        """Read an estimator as `reweigh audit --estimators` does, or such a one within `centred( )`; `ppo_clip` is the
        clip alone, at .2.

        Raises:
            ValueError: it is none, or more than one.
        """
        if name.strip() == PPO:
            return cls(PPO, naive(), "ppo_clip")
        inner = re.fullmatch(r"\s*centred\((.*)\)\s*", name)
        found = parse(inner[1] if inner else name, "method")
        if len(found) != 1:
            raise ValueError(f"method: must be one estimator, got {name!r}")
        said, estimator = next(iter(found.items()))
        return cls(f"centred({said})", centred(estimator)) if inner else cls(said, estimator)

    def objective(self, law: Tensor, log_pi: Tensor, batch: Batch, advantage: Tensor) -> tuple[Tensor, Tensor]:
        """Give the loss, a mean over all tokens of the batch, and the weight of each token.

        Args:
            law: log-probs of every symbol, with their gradient.
            log_pi: of the answers, with its gradient.
            batch: of the same.
            advantage: one a sequence.
        """
        weights = self.estimator(batch)
        if self.loss == "ppo_clip":
            loss = ppo_clip(log_pi, batch.log_mu, advantage, weights, num_tokens(batch))
        else:
            every = law if isinstance(self.estimator, Centred) else None
            loss = policy_gradient(log_pi, advantage, weights, num_tokens(batch), candidates=every)
        return loss, weights.per_token


@dataclass(frozen=True)
class Run:
    """What came out of a run: a line of results.

    Attributes:
        setting: of the run.
        method: name of the method.
        seed: of warm start, prompts and draws.
        evals: pi's own reward, at step 0, 5, 10 and so on: of answers drawn from pi itself.
        series: a number a step, by name of `SERIES`.
        windows: what a verdict on the records of each 5 steps alone says, by name of `seen`; and "told" and
            "told_action", what `reweigh doctor` advises of them, in the first two windows with a mismatch of an
            uncorrected run, None in the others.
        stopped: whether it was over before its last step.
        gradients: what `gradients.measure` found, and at which step, where it was asked.
        seconds: of one core, without the warm start.
    """

    setting: Setting
    method: str
    seed: int
    evals: tuple[float, ...]
    series: dict[str, tuple[float, ...]]
    windows: dict[str, tuple[Any, ...]] = field(default_factory=dict[str, tuple[Any, ...]])
    stopped: bool = False
    gradients: tuple[dict[str, Any], ...] = ()
    seconds: float = field(default=0.0, compare=False)

    @property
    def key(self) -> str:
        """Name the run: what is run once."""
        return key_of(self.setting, self.method, self.seed)

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for JSON."""
        return {**asdict(self), "setting": self.setting.others}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Run":
        """Read what `to_dict` gave.

        Raises:
            ValueError: it is something else.
        """
        try:
            setting = Setting.from_dict(values["setting"])
            series = {str(k): tuple(float(x) for x in v) for k, v in values["series"].items()}
            return cls(
                setting,
                str(values["method"]),
                int(values["seed"]),
                tuple(float(x) for x in values["evals"]),
                series,
                {str(k): tuple(v) for k, v in values["windows"].items()},
                bool(values.get("stopped", False)),
                tuple(dict(x) for x in values.get("gradients", ())),
                float(values.get("seconds", 0.0)),
            )
        except (KeyError, TypeError, AttributeError) as e:
            raise ValueError(f"not the results of a run: {type(e).__name__}: {e}") from None


def key_of(setting: Setting, method: str, seed: int) -> str:
    """Name a run by what decides it."""
    return f"{setting.name} | {method} | {seed}"


@dataclass(frozen=True, eq=False)
class Rollouts:
    """A batch of answers as it came, before the trainer has looked at it.

    Attributes:
        prompts: `[S, P]`.
        sampled: the answers, with the sampler's log-probs.
        rewards: `[S]`.
        advantage: `[S]`.
        versions: updates that the sampler's weights are of, one a place of an answer.
    """

    prompts: Tensor
    sampled: Sampled
    rewards: Tensor
    advantage: Tensor
    versions: tuple[int, ...]


class Training:
    """A run in progress, a step at a time; what a step needs of the last ones is here and nowhere else."""

    def __init__(self, setting: Setting, method: Method, seed: int, folder: Path | None = None) -> None:
        self.setting, self.method, self.step = setting, method, 0
        task = setting.task
        start = warm_start(task, seed, setting.warm, folder, setting.experts)
        torch.manual_seed(seed)  # of dropout, the one draw that has no generator of its own
        self.model = Model(task, dropout=setting.dropout, experts=setting.experts)
        self.engine = Model(task, experts=setting.experts).eval()
        self.later = Model(task, experts=setting.experts).eval() if setting.partial else None
        self.model.load_state_dict(start)
        self.draws = torch.Generator().manual_seed(seed)
        self.group = torch.arange(setting.prompts).repeat_interleave(setting.answers)
        self.mask = torch.ones(len(self.group), setting.length, dtype=torch.bool)
        self._adam = torch.optim.Adam(self.model.parameters(), setting.rate, betas=BETAS)
        self._past: deque[State] = deque(maxlen=setting.lag + 1)

    def reward_of_pi(self) -> float:
        """Measure the reward of answers drawn from pi itself."""
        draws, task = torch.Generator().manual_seed(EVAL_SEED), self.setting.task
        prompts = task.prompts(EVALS, draws)
        self.model.eval()
        answers = sample(self.model, prompts, task.length, draws).tokens
        self.model.train()
        return float(task.rewards(prompts, answers).mean())

    def rollouts(self) -> Rollouts:
        """Sample a batch with the weights that the sampler has at this step, once a step."""
        if self.step < self.setting.stale_from:
            self._past.clear()
        self._past.append({name: w.detach().clone() for name, w in self.model.state_dict().items()})
        self.engine.load_state_dict(as_stored(self._past[0], self.setting.weights))
        if self.later is not None:
            self.later.load_state_dict(as_stored(self._past[self._newer], self.setting.weights))
        return self.drawn(self.draws)

    @property
    def _newer(self) -> int:
        """By how many updates the second half of an answer is newer than the first."""
        return min(self.setting.partial, len(self._past) - 1)

    def drawn(self, draws: torch.Generator, from_pi: bool = False) -> Rollouts:
        """Draw a batch from the engine as it is, or from pi itself."""
        setting, task = self.setting, self.setting.task
        prompts = task.prompts(setting.prompts, draws).repeat_interleave(setting.answers, 0)
        if from_pi:
            sampled = sample(self.model, prompts, task.length, draws)
        else:
            sampled = sample(self.engine, prompts, task.length, draws, setting.top_p, setting.cache, self.later)
        rewards = task.rewards(prompts, sampled.tokens)
        grouped = rewards.view(-1, setting.answers)
        spread = grouped.std(1, keepdim=True) + _LITTLE
        advantage = ((grouped - grouped.mean(1, keepdim=True)) / spread).flatten()
        first, half = self.step - len(self._past) + 1, task.length // 2
        versions = (first,) * half + (first + self._newer,) * (task.length - half)
        return Rollouts(prompts, sampled, rewards, advantage, versions)

    def batch_of(self, rolled: Rollouts, advantage: Tensor, check: bool = False) -> tuple[Tensor, Tensor, Batch]:
        """Score the answers as the trainer does: log-probs of every symbol and of the answers, with their gradient, and
        the batch, with every symbol as a candidate.
        """
        sampled = rolled.sampled
        law = score(self.model, rolled.prompts, sampled.tokens, sampled.support if self.setting.replay else None)
        log_pi = chosen(law, sampled.tokens)
        ids = torch.arange(law.shape[-1]).expand_as(law).where(sampled.law.isfinite(), -1)
        batch = Batch.padded(
            log_pi,
            sampled.log_mu,
            self.mask,
            advantage=advantage[:, None].expand_as(log_pi),
            group=self.group,
            candidates=Candidates(ids, sampled.law, law.detach(), complete=True),
            check=check,
        )
        return law, log_pi, batch

    def update(self, loss: Tensor) -> float:
        """Take Adam's step, and give the norm that the gradient had."""
        self._adam.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self._adam.step()
        self.step += 1
        return float(norm)


def run(
    setting: Setting,
    method: Method,
    seed: int,
    folder: Path | None = None,
    records: tuple[Path, Sequence[int]] | None = None,
    look: Callable[[Training], None] | None = None,
) -> Run:
    """Train, and note what is to be seen.

    Args:
        setting: of the run.
        method: what corrects.
        seed: of everything that is drawn.
        folder: where warm starts are kept.
        records: a Parquet file, and the steps whose rollouts are written to it as records.
        look: called at each step with what is trained, after the sampler has sampled and before the update.
    """
    began = time.process_time()
    training = Training(setting, method, seed, folder)
    began = time.process_time() if folder is not None else began
    evals: list[float] = []
    noted: list[list[float]] = []
    windows: list[dict[str, Any]] = []
    window: tuple[RatioStats, ...] | None = None
    asked, rows = 0, list[dict[str, Any]]()
    writer = None if records is None else RecordWriter(records[0], info_of(setting, method, seed))
    stopped = False
    try:
        for step in range(setting.steps + 1):
            if step % EVERY == 0 or step == setting.steps:
                evals.append(training.reward_of_pi())
                stopped = len(evals) >= GONE_FOR and max(evals[-GONE_FOR:]) < GONE and step < setting.steps
            if step == setting.steps or stopped:
                break
            rolled = training.rollouts()
            if look is not None:
                look(training)
            law, log_pi, batch = training.batch_of(rolled, rolled.advantage, check=step == 0)
            entropy = entropy_of(law)
            loss, weights = method.objective(law, log_pi, batch, rolled.advantage)
            stats = RatioStats.of_levels(batch, (TOKEN, SEQUENCE))
            written = rows_of(training, rolled, log_pi.detach(), entropy)
            if writer is not None and records is not None and step in records[1]:
                writer.write(written)
            if method.name == NAIVE and asked < ASKED:
                rows += written
            norm = training.update(loss)
            noted.append([float(rolled.rewards.mean()), float(entropy.mean()), *_numbers(stats), norm, *_of(weights)])
            window = stats if window is None else tuple(a + b for a, b in zip(window, stats, strict=True))
            if training.step % EVERY == 0:
                windows.append(seen(*window) | {"told": None, "told_action": None})
                if rows and windows[-1]["k3"] > MISMATCH:
                    windows[-1] |= told(rows, info_of(setting, method, seed))
                    asked += 1
                window, rows = None, []
    finally:
        if writer is not None:
            writer.close()
    series = {
        name: tuple(_short(x) for x in values) for name, values in zip(SERIES, zip(*noted, strict=True), strict=True)
    }
    seconds = round(time.process_time() - began, 2)
    found = {name: tuple(one[name] for one in windows) for name in (windows[0] if windows else ())}
    return Run(setting, method.name, seed, tuple(round(x, 4) for x in evals), series, found, stopped, (), seconds)


def seen(token: RatioStats, sequence: RatioStats) -> dict[str, Any]:
    """Say what the package's verdict is on sums: the rule that every command has, and nothing else.

    `use`: the estimator of the verdict; `even`: the same if nothing were thought wrong with the log-probs; `action`,
    `identity` of token and sequence, mean ratios, k3, and mean weights that a cap of 2 leaves.
    """
    levels = summarise(token), summarise(sequence)
    gap, wrong = gap_of(*levels), wrong_of(levels)
    verdict, even = advise(gap, wrong), advise(gap)
    found: dict[str, Any] = {"use": verdict.use, "even": even.use, "action": verdict.action, "even_action": even.action}
    for name, level in zip(("token", "sequence"), levels, strict=True):
        found[f"identity_{name}"] = level.identity
        found[f"ratio_{name}"] = _short(level["mean_ratio"].sample or 0.0)
        found[f"kept_{name}"] = _short(level["kept_2"].sample or 0.0)
        found[f"refused_{name}"] = bool(level.refusal)
    found["k3"] = _short(levels[0]["kl_k3"].sample or 0.0)
    found["ess"] = _short(levels[1]["ess_fraction"].sample or 0.0)
    return found


def told(rows: Sequence[Mapping[str, Any]], info: RunInfo) -> dict[str, Any]:
    """Say what `reweigh doctor` advises of records, with the cause that it finds or suspects: an estimator, or none."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "window.parquet"
        with RecordWriter(path, info) as writer:
            writer.write(rows)
        advice = doctor(path).advice
    return {"told": advice.use, "told_action": advice.action} if advice is not None else {}


def _numbers(stats: tuple[RatioStats, ...]) -> list[float]:
    token, sequence = (summarise(one) for one in stats)
    wanted: tuple[tuple[Summary, str], ...] = (
        *((token, "kl_k3"), (token, "mean_abs")),
        *((sequence, "sd"), (sequence, "ess_fraction"), (token, "mean_ratio")),
    )
    return [level[name].sample or 0.0 for level, name in wanted]


def _of(weights: Tensor) -> tuple[float, float]:
    return float((weights != 0).float().mean()), float(weights.mean())


def _short(x: float) -> float:
    """Three digits: a line of results is kept with the repository."""
    return float(f"{x:.3g}")


def info_of(setting: Setting, method: Method, seed: int) -> RunInfo:
    """Say in a file's own words what run wrote it."""
    return RunInfo(
        engine="reweigh experiment",
        trainer="reweigh experiment",
        model=f"brackets of {setting.length}",
        dtype_mu=setting.weights or "float32",
        dtype_pi="float32",
        temperature=1.0,
        top_p=setting.top_p,
        logprobs_mode="processed",
        seed=seed,
        note=f"{setting.name}; {method.name}",
    )


def rows_of(training: Training, rolled: Rollouts, log_pi: Tensor, entropy: Tensor) -> list[dict[str, Any]]:
    """Write the rollouts of a step as records; log pi is of before the step, and so is its version."""
    step, setting, sampled = training.step, training.setting, rolled.sampled
    lists = {
        "token_ids": sampled.tokens.tolist(),
        "log_mu": sampled.log_mu.tolist(),
        "log_pi": log_pi.tolist(),
        "entropy_pi": entropy.tolist(),
        "entropy_mu": sampled.entropy.tolist(),
    }
    return [
        {
            **{name: values[i] for name, values in lists.items()},
            "sequence_id": f"{step}-{i}",
            "prompt_id": f"{step}-{i // setting.answers}",
            "step": step,
            "env": "brackets",
            "prompt_length": rolled.prompts.shape[1],
            "reward": float(rolled.rewards[i]),
            "advantage": float(rolled.advantage[i]),
            "versions": list(rolled.versions),
            "trainer_version": step,
            "finish_reason": "length",
        }
        for i in range(len(rolled.rewards))
    ]
