"""What went through a correction: tensors widened, sums that add, one flat dict for any logger, and known versions."""
# pyright: reportMissingImports=false

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from reweigh.batch import Batch
from reweigh.estimators import Estimator, Weights
from reweigh.levels import SEQUENCE, TOKEN, heads, k3
from reweigh.stats.summary import Summary, summarise
from reweigh.stats.sums import RatioStats

KNOWN: dict[str, tuple[str, ...]] = {"trl": ("1.16",), "verl": ("0.9.1",)}
"""By package: release numbers or their beginnings. A framework that makes no releases is known by its arguments."""


class UnknownVersionError(ImportError):
    """A framework is a version that the adapter has not been checked with."""


class NotInstalledError(ModuleNotFoundError):
    """A framework is not there."""


def require(package: str) -> str:
    """Return the installed version of a package that an adapter knows.

    Args:
        package: a name in `KNOWN`.

    Raises:
        NotInstalledError: it is not installed.
        UnknownVersionError: it is another version; the message says which are known.
    """
    known = KNOWN[package]
    named = ", ".join(known)
    try:
        found = version(package)
    except PackageNotFoundError:
        raise NotInstalledError(
            f"reweigh.trainers.{package}: {package} is not installed; known versions are {named}\n"
            f'hint: pip install "{package}=={pin(known[-1])}"',
            name=package,
        ) from None
    if not any(found == k or found.startswith(f"{k}.") for k in known):
        raise UnknownVersionError(
            f"reweigh.trainers.{package}: {package} {found} is not known; known versions are {named}\n"
            "hint: the adapter reaches into parts that change between releases; "
            f'pip install "{package}=={pin(known[-1])}", or a newer reweigh.'
        )
    return found


def pin(known: str) -> str:
    """What to write behind `==`: a whole number as it is, the beginning of one with a star."""
    return known if known.count(".") >= 2 else f"{known}.*"


def wide(log_prob: Tensor) -> Tensor:
    """The log-probs detached and in float64 (float32 on a device that has none).

    A difference of two float32 log-probs is exact in float64, and so is a sum of many thousands: nothing is rounded
    until the weight itself is. So padded, packed or one sequence a call, all frameworks get the same bits.
    """
    return log_prob.detach().to(torch.float32 if log_prob.device.type == "mps" else torch.float64)


def factor(weights: Weights) -> Tensor:
    """What to multiply each token's loss by: float32, token-shaped, 0 where dropped or off the mask."""
    return weights.per_token.float()


def refuse_whole_batch(where: str, sees: str, estimator: Estimator) -> None:
    """Raise if the estimator's weights depend on the batch, and this hook sees only a part of it.

    Args:
        where: the adapter, for the message.
        sees: what the hook is given, for example "one sequence".
        estimator: the user's.

    Raises:
        ValueError: it does.
    """
    if estimator.reads_batch:
        raise ValueError(
            f"{where}: the estimator reads the whole batch and this hook sees {sees}, got {estimator}\n"
            "hint: use an estimator whose weights are of one sequence each, such as seq_tis(2.0); self-normalised and "
            "fitted ones need a hook that sees the batch: TRL, verl's driver, tinker."
        )


def refuse_advantage(where: str, estimator: Estimator) -> None:
    """Raise if the estimator depends on the advantage's sign, and this hook has no advantage.

    Raises:
        ValueError: it does.
    """
    if any(f.sign for f in estimator.factors):
        raise ValueError(
            f"{where}: the estimator depends on the advantage's sign and this hook is called before or without "
            f"advantages, got {estimator}\nhint: use an estimator without a sign, such as geo_rs(0.99, 1.01)."
        )


PREFIX = "reweigh/"
SHOWN = {
    "token": ("mean_ratio", "kl_k1", "kl_k3", "mean_abs", "tv", "beyond_2x", "largest_gap"),
    "sequence": ("mean_ratio", "kl_k1", "sd", "tv", "renyi2", "ess_fraction", "largest_share", "khat"),
}
"""By level, the numbers of a `Summary` that go to a logger; docs/intervals.md says what they are."""


def per_token(batch: Batch, weights: Weights) -> dict[str, Tensor]:
    """For hooks that add up tokens by themselves: token-shaped float32, 0 off the mask; `kl_*` in nats of mu to pi.

    Args:
        batch: its raw ratios.
        weights: what an estimator made of them.
    """
    on = batch.layout.mask
    values = {
        "weight": weights.per_token,
        "rejected": on & ~weights.keep_tokens,
        "kl_k1": -batch.log_ratio,
        "kl_k3": torch.where(on, k3(batch), 0),
    }
    return {f"{PREFIX}{name}": value.float() for name, value in values.items()}


@dataclass(frozen=True, eq=False)
class WeightSums:
    """Sums over the weights that were multiplied in; `a + b` is that of both. 0-d tensors, no host sync.

    Attributes:
        units: how many exist; kept: of these; bounded: of the kept, those whose ratio was moved to a bound.
        total: sum of kept weights, largest: the largest of them.
    """

    units: Tensor
    kept: Tensor
    bounded: Tensor
    total: Tensor
    largest: Tensor

    @classmethod
    def of(cls, weights: Weights) -> "WeightSums":
        """Of one batch's weights."""
        w = weights.per_unit.double()
        once = w * heads(weights.layout) if weights.unit == "turn" else w
        largest = w.amax() if w.numel() else w.new_zeros(())
        return cls(weights.num_units, weights.num_kept, weights.num_bounded, once.sum(), largest)

    def __add__(self, other: "WeightSums") -> "WeightSums":
        """Of both."""
        return WeightSums(
            self.units + other.units,
            self.kept + other.kept,
            self.bounded + other.bounded,
            self.total + other.total,
            torch.maximum(self.largest, other.largest),
        )


@dataclass(frozen=True, eq=False)
class Seen:
    """Raw ratios at two levels, before any bound, and the weights after; `a + b` is what both have seen.

    Example:
        >>> import torch
        >>> from reweigh import Batch, seq_tis
        >>> batch = Batch.padded(torch.full((30, 4), -1.0), torch.full((30, 4), -1.1), torch.ones(30, 4))
        >>> logged = Seen.of(batch, seq_tis(1.2)(batch)).flat()
        >>> print(round(logged["reweigh/sequence/mean_ratio"], 3), round(logged["reweigh/weight/mean"], 3))
        1.492 1.2
    """

    token: RatioStats
    sequence: RatioStats
    weights: WeightSums | None = None

    @classmethod
    def of(cls, batch: Batch, weights: Weights | None = None) -> "Seen":
        """Of one batch and the weights that it got, if they were ours. No host sync."""
        token, sequence = RatioStats.of_levels(batch, (TOKEN, SEQUENCE))
        return cls(token, sequence, None if weights is None else WeightSums.of(weights))

    def __add__(self, other: "Seen") -> "Seen":
        """Of both; of the weights of both only if both have them."""
        both = None if self.weights is None or other.weights is None else self.weights + other.weights
        return Seen(self.token + other.token, self.sequence + other.sequence, both)

    def flat(self, prefix: str = PREFIX, *, intervals: bool = False) -> dict[str, float]:
        """Names to finite floats: for `wandb.log`, `trackio.log`, `mlflow.log_metrics`, TensorBoard, a trainer's own.

        A number that the data cannot carry is left out, and `refused` of its level is 1; what the sample alone says
        stands under `..._in_sample` in any case. `identity` is 0 if the mean ratio cannot be 1: then the log-probs
        are not those that were sampled from, and no correction is right. One host sync.

        Args:
            prefix: before every name.
            intervals: also `..._low` and `..._high`, the ends of each 95% interval.
        """
        out = {
            f"{prefix}{summary.level}/{name}": value
            for summary in (summarise(self.token), summarise(self.sequence))
            for name, value in _numbers(summary, intervals)
        }
        if self.weights is not None:
            out |= {f"{prefix}weight/{name}": value for name, value in _of_weights(self.weights)}
        return {name: value for name, value in out.items() if math.isfinite(value)}


def _of_weights(sums: WeightSums) -> Iterator[tuple[str, float]]:
    units, kept, bounded, total, largest = torch.stack([x.double() for x in vars(sums).values()]).tolist()
    if units:
        yield "kept_fraction", kept / units
    if kept:
        yield "mean", total / kept
        yield "max", largest
        yield "bounded_fraction", bounded / kept


def _numbers(summary: Summary, intervals: bool) -> Iterator[tuple[str, float]]:
    yield "n", float(summary.n)
    yield "dropped", float(summary.dropped)
    if not summary.n:
        return
    yield "identity", float(summary.identity)
    yield "refused", float(bool(summary.refusal))
    for name in SHOWN[summary.level]:
        number = summary[name]
        if number.value is not None:
            yield name, number.value
        elif number.sample is not None:
            yield f"{name}_in_sample", number.sample
        if intervals and number.low is not None:
            yield f"{name}_low", number.low
        if intervals and number.high is not None:
            yield f"{name}_high", number.high


LoggerName = Literal["wandb", "trackio", "mlflow"]
NAMES: tuple[LoggerName, ...] = get_args(LoggerName)


class ScalarWriter(Protocol):
    """What TensorBoard's `SummaryWriter` offers, that of torch and that of tensorboardX."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int, /) -> Any:
        """Write one number."""
        ...


def log_to(logger: LoggerName | ScalarWriter, metrics: Mapping[str, float], step: int) -> None:
    """Log numbers at a training step, to the run that is active in that logger.

    Args:
        logger: "wandb", "trackio" or "mlflow", whose run the trainer has started; or a TensorBoard `SummaryWriter`.
        metrics: names to finite numbers: `Seen.of(batch, weights).flat()`.
        step: the training step. Weights & Biases drops what comes with a step below its last one.

    Raises:
        ModuleNotFoundError: the logger is not installed.
        ValueError: another name, or no run has been started.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> from torch.utils.tensorboard import SummaryWriter
        >>> folder = mkdtemp()
        >>> with SummaryWriter(folder) as writer:
        ...     log_to(writer, {"reweigh/sequence/tv": 0.02}, step=1)
        >>> len(list(Path(folder).iterdir()))
        1

    Also called: `wandb.log`, `trackio.log`, `mlflow.log_metrics`, `SummaryWriter.add_scalar`.
    """
    if not isinstance(logger, str):
        for name, value in metrics.items():
            logger.add_scalar(name, value, step)
    elif logger == "wandb":
        _wandb(metrics, step)
    elif logger == "trackio":
        _trackio(metrics, step)
    elif logger == "mlflow":
        _mlflow(metrics, step)
    else:
        raise ValueError(
            f"log_to: logger must be one of {', '.join(NAMES)} or a SummaryWriter, got {logger!r}\n"
            "hint: from torch.utils.tensorboard import SummaryWriter; log_to(SummaryWriter(folder), metrics, step)"
        )


def _wandb(metrics: Mapping[str, float], step: int) -> None:
    try:
        import wandb
    except ModuleNotFoundError as e:
        raise _missing("wandb", e) from None
    if wandb.run is None:
        raise _no_run("wandb", "wandb.init(...)")
    wandb.log(dict(metrics), step=step)


def _trackio(metrics: Mapping[str, float], step: int) -> None:
    try:
        import trackio
        from trackio import context_vars
    except ModuleNotFoundError as e:
        raise _missing("trackio", e) from None
    if context_vars.current_run.get() is None:
        raise _no_run("trackio", "trackio.init(project=...)")
    trackio.log(dict(metrics), step=step)


def _mlflow(metrics: Mapping[str, float], step: int) -> None:
    try:
        import mlflow
    except ModuleNotFoundError as e:
        raise _missing("mlflow", e) from None
    if mlflow.active_run() is None:  # it would start one of its own, and leave it open
        raise _no_run("mlflow", "mlflow.start_run()")
    mlflow.log_metrics(dict(metrics), step=step)


def _missing(name: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"log_to: {error.name} is not installed\nhint: pip install {name}, or log the dict yourself.", name=error.name
    )


def _no_run(name: str, start: str) -> ValueError:
    return ValueError(f"log_to: {name} has no active run\nhint: call {start} before.")
