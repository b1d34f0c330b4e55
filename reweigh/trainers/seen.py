"""What went through a correction: tensors widened, sums that add, one flat dict for any logger."""
# pyright: reportMissingImports=false

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from itertools import pairwise
from os import PathLike
from typing import Any, Literal, Protocol, TypeVar, get_args

import torch
from torch import Tensor

from reweigh.batch import Batch
from reweigh.centring import Centred
from reweigh.estimators import Estimator, Weights
from reweigh.levels import SEQUENCE, TOKEN, heads, k3
from reweigh.stats.summary import summarise
from reweigh.stats.sums import MIN_UNITS, RatioStats
from reweigh.stats.verdict import SEVERITIES, Verdict, judge

_LOG = logging.getLogger("reweigh")
T = TypeVar("T")


def wide(log_prob: Tensor) -> Tensor:
    """Detach log-probs and widen them to float64 (float32 on a device that has none).

    A difference of two float32 log-probs is exact in float64, and so is a sum of many thousands: nothing is rounded
    until the weight itself is. So padded, packed or one sequence a call, all frameworks get the same bits.
    """
    return log_prob.detach().to(torch.float32 if log_prob.device.type == "mps" else torch.float64)


LARGEST = 2.0**64
"""A weight from here on is not multiplied in: float32 cannot hold its square, so a norm of gradients is infinite."""


@dataclass(frozen=True, eq=False)
class HeldWeights(Weights):
    """Weights without those from `LARGEST` on, whose units are not kept: their weight is 0, and they are counted.

    Attributes:
        overflow: units that were kept, and whose weight is `LARGEST` or more.
    """

    overflow: Tensor = field(kw_only=True)

    @property
    def overflow_tokens(self) -> Tensor:
        """Mark the tokens of such units."""
        per_seq = self.unit == "sequence"
        return self.layout.spread(self.overflow) & self.layout.mask if per_seq else self.overflow


def refuse_centred(where: str, estimator: object) -> None:
    """Raise if what is to be multiplied in is centred: a hook multiplies, and nothing of what it is given subtracts.

    Args:
        where: the hook.
        estimator: what it was given.

    Raises:
        ValueError: it is `centred(...)`.
    """
    if isinstance(estimator, Centred):
        raise ValueError(
            f"{where}: it multiplies a loss by weights, and what centring subtracts needs log-probs of the sampler's "
            "candidates with their gradient, which nobody hands to it\n"
            "hint: the trainer's own score centring, if it has one (docs/trainers.md), or policy_gradient in a loop of "
            "your own; here, the estimator inside."
        )


def hold(weights: Weights) -> HeldWeights:
    """Take out the weights that float32 cannot be trained with; every hook does, before it multiplies.

    Args:
        weights: what an estimator made; one without a bound may give `e^89` to a single token.
    """
    if isinstance(weights, HeldWeights):
        return weights
    small = weights.log_w < math.log(LARGEST)  # False for NaN
    keep, overflow = weights.keep & small, weights.keep & ~small
    parts = weights.log_w, keep, weights.bounded & keep, weights.valid, weights.unit, weights.layout, weights.centre
    return HeldWeights(*parts, overflow=overflow)


def factor(weights: Weights) -> Tensor:
    """Give what multiplies each token's loss: float32, token-shaped, 0 where dropped, off the mask, too large."""
    return hold(weights).per_token.float()


def refuse_whole_batch(where: str, sees: str, estimator: Estimator) -> None:
    """Raise if the estimator's weights depend on the batch, and this hook sees only a part of it.

    Args:
        where: the adapter, for the message.
        sees: what the hook is given, for example "one sequence".
        estimator: the user's.

    Raises:
        ValueError: it does.
    """
    refuse_centred(where, estimator)
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
    refuse_centred(where, estimator)
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


COUNTS = (f"{PREFIX}dropped", f"{PREFIX}overflow")
"""Of `per_token`, what is to be added up; the others are to be averaged."""


def per_token(batch: Batch, weights: Weights) -> dict[str, Tensor]:
    """Measure each token, for hooks that add up by themselves: float32, 0 off the mask; `kl_*` in nats of mu to pi.

    `dropped` marks the tokens of the given mask without a finite log-prob, `overflow` those whose weight could not be
    held. `kl_k3` of a token is at most `LARGEST`, so that its mean is a number.

    Args:
        batch: its raw ratios.
        weights: what an estimator made of them.
    """
    on, held = batch.layout.mask, hold(weights)
    values = {
        "weight": held.per_token,
        "rejected": on & ~held.keep_tokens,
        "kl_k1": -batch.log_ratio,
        "kl_k3": torch.where(on, k3(batch), 0).clamp(max=LARGEST),
        "dropped": torch.zeros_like(on) if batch.dropped is None else batch.dropped,
        "overflow": held.overflow_tokens,
    }
    return {f"{PREFIX}{name}": value.float() for name, value in values.items()}


def averaged(values: Mapping[str, Tensor], count: Tensor | float) -> dict[str, Tensor]:
    """Sum what is to be added up, and average the others over the tokens that count: 0-d tensors.

    Args:
        values: of `per_token`.
        count: of tokens, at least 1.
    """
    sums = {name: value.double().sum() for name, value in values.items()}
    return {name: (total if name in COUNTS else total / count).float() for name, total in sums.items()}


@dataclass(frozen=True, eq=False)
class WeightSums:
    """Sums over the weights that were multiplied in; `a + b` is that of both. 0-d tensors, no host sync.

    Attributes:
        units: how many exist; kept: of these; bounded: of the kept, those whose ratio was moved to a bound.
        total: sum of kept weights, largest: the largest of them.
        overflow: units that are not kept because float32 cannot hold their weight.
    """

    units: Tensor
    kept: Tensor
    bounded: Tensor
    total: Tensor
    largest: Tensor
    overflow: Tensor

    @classmethod
    def of(cls, weights: Weights) -> "WeightSums":
        """Sum the weights of one batch, as `hold` leaves them."""
        held = hold(weights)
        w = held.per_unit.double()
        once = w * heads(held.layout) if held.unit == "turn" else w
        largest = w.amax() if w.numel() else w.new_zeros(())
        overflow = held.once(held.overflow).sum()
        return cls(held.num_units, held.num_kept, held.num_bounded, once.sum(), largest, overflow)

    def __add__(self, other: "WeightSums") -> "WeightSums":
        """Add the sums of two sets of weights."""
        return WeightSums(
            self.units + other.units,
            self.kept + other.kept,
            self.bounded + other.bounded,
            self.total + other.total,
            torch.maximum(self.largest, other.largest),
            self.overflow + other.overflow,
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
        """Measure one batch, and the weights that it got if they were ours. No host sync."""
        token, sequence = RatioStats.of_levels(batch, (TOKEN, SEQUENCE))
        return cls(token, sequence, None if weights is None else WeightSums.of(weights))

    def __add__(self, other: "Seen") -> "Seen":
        """Add what two batches have shown; the weights only if both have them."""
        both = None if self.weights is None or other.weights is None else self.weights + other.weights
        return Seen(self.token + other.token, self.sequence + other.sequence, both)

    def verdict(self) -> Verdict:
        """Judge the raw ratios, as `reweigh audit` judges those of records, but for the cause. One host sync."""
        return judge(self.token, self.sequence)

    def flat(self, prefix: str = PREFIX, *, intervals: bool = False) -> dict[str, float]:
        """Names to finite floats: for `wandb.log`, `trackio.log`, `mlflow.log_metrics`, TensorBoard, a trainer's own.

        A number that the data cannot carry is left out, and `refused` of its level is 1, or `few` where there are under
        25 units, too few to tell a tail; what the sample alone says stands under `..._in_sample` in any case.
        `identity` is 0 if the mean ratio cannot be 1: then the log-probs are not those that were sampled from, and no
        correction is right. `level` is 0, 1 or 2: the verdict is ok, warn or fail, to alarm on. One host sync.

        Args:
            prefix: before every name.
            intervals: also `..._low` and `..._high`, the ends of each 95% interval.
        """
        out: dict[str, float] = {}
        levels = (summarise(self.token), summarise(self.sequence))
        if all(summary.n for summary in levels):
            out[f"{prefix}level"] = float(SEVERITIES.index(judge(*levels).level))
        for summary in levels:
            at = f"{prefix}{summary.level}/"
            out |= {f"{at}n": float(summary.n), f"{at}dropped": float(summary.dropped)}
            if not summary.n:
                continue
            few = summary.n < MIN_UNITS  # which is so at every step of a small batch, and nothing to be woken by
            refused = float(bool(summary.refusal) and not few)
            out |= {f"{at}identity": float(summary.identity), f"{at}refused": refused, f"{at}few": float(few)}
            for name in SHOWN[summary.level]:
                number = summary[name]
                if number.value is not None:
                    out[at + name] = number.value
                elif number.sample is not None:
                    out[f"{at}{name}_in_sample"] = number.sample
                ends = {f"{at}{name}_low": number.low, f"{at}{name}_high": number.high} if intervals else {}
                out |= {end: value for end, value in ends.items() if value is not None}
        if self.weights is not None:
            columns = [x.double() for x in vars(self.weights).values()]
            units, kept, bounded, total, largest, overflow = torch.stack(columns).tolist()
            if units:
                out |= {f"{prefix}weight/kept_fraction": kept / units, f"{prefix}weight/overflow": overflow}
            if kept:
                means = {"mean": total / kept, "max": largest, "bounded_fraction": bounded / kept}
                out |= {f"{prefix}weight/{name}": value for name, value in means.items()}
        return {name: value for name, value in out.items() if math.isfinite(value)}


class Measuring:
    """Measures for a log, and never stops the run that is measured: what fails is counted, and the first logged.

    Attributes:
        failed: how often it did.
    """

    def __init__(self) -> None:
        self.failed = 0

    def __call__(self, measure: Callable[[], T], instead: T) -> T:
        """Give what is measured, or what stands for nothing if that fails."""
        try:
            return measure()
        except Exception as e:  # of any kind: a number for a log is not worth a run
            self.failed += 1
            if self.failed == 1:
                _LOG.warning(
                    "the numbers of a step were not measured, and the run goes on: %s: %s", type(e).__name__, e
                )
            return instead

    def flat(self, batch: Batch, weights: Weights | None, prefix: str = PREFIX) -> dict[str, float]:
        """Measure one batch, as `Seen.of(batch, weights).flat(prefix)` does."""
        found = self(lambda: Seen.of(batch, weights).flat(prefix), {})
        return found | ({f"{prefix}unmeasured": float(self.failed)} if self.failed else {})


EDGES = tuple(math.sinh(x / 4.0) / 100.0 for x in range(-32, 33))
"""Edges of a histogram of log ratios, nats: .0025 wide at 0, and 15 at its ends."""


@dataclass(frozen=True, eq=False)
class Bars:
    """A histogram with fixed edges, so that those of micro-batches and ranks add up; 0-d sync-free until `log_to`.

    Attributes:
        counts: `[bins]` float64; what is beyond the last edge counts in the last bin.
        edges: `[bins + 1]`, rising.
    """

    counts: Tensor
    edges: tuple[float, ...] = EDGES

    @classmethod
    def of(cls, values: Tensor, on: Tensor, edges: tuple[float, ...] = EDGES) -> "Bars":
        """Count the values where `on`."""
        inner = torch.tensor(edges[1:-1], dtype=torch.float64, device=values.device)
        cell = torch.bucketize(values.detach().double().flatten(), inner, right=True)
        counts = torch.zeros(len(edges) - 1, dtype=torch.float64, device=values.device)
        return cls(counts.index_add(0, cell, on.flatten().double()), edges)

    def __add__(self, other: "Bars") -> "Bars":
        """Add the counts of two sets of values.

        Raises:
            ValueError: the edges differ.
        """
        if self.edges != other.edges:
            raise ValueError("Bars: histograms add up if their edges are the same")
        return Bars(self.counts + other.counts, self.edges)


def histograms(batch: Batch, weights: Weights | None = None) -> dict[str, Bars]:
    """Histograms for a logger: log ratios of tokens and of sequences, nats, and the weights that were multiplied in.

    Args:
        batch: its raw ratios.
        weights: what an estimator made of them, if it was ours.

    Example:
        >>> import torch
        >>> from reweigh import Batch
        >>> batch = Batch.padded(torch.full((3, 4), -1.0), torch.full((3, 4), -1.1), torch.ones(3, 4))
        >>> {name: int(bars.counts.sum()) for name, bars in histograms(batch).items()}
        {'reweigh/token/log_ratio': 12, 'reweigh/sequence/log_ratio': 3}
    """
    layout, log_ratio = batch.layout, batch.log_ratio
    found = {
        f"{PREFIX}token/log_ratio": Bars.of(log_ratio, layout.mask),
        f"{PREFIX}sequence/log_ratio": Bars.of(layout.sum(log_ratio), layout.lengths > 0),
    }
    if weights is not None:
        held = hold(weights)
        edges = tuple(2.0 ** (x / 4.0) for x in range(-16, 17))
        found[f"{PREFIX}weight/of_kept"] = Bars.of(held.per_unit, held.once(held.keep), (0.0, *edges))
    return found


LoggerName = Literal["wandb", "trackio", "mlflow"]
NAMES: tuple[LoggerName, ...] = get_args(LoggerName)


class ScalarWriter(Protocol):
    """Writes numbers as TensorBoard's `SummaryWriter` does, that of torch and that of tensorboardX."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int, /) -> Any:
        """Write one number at a step."""
        ...


def log_to(
    logger: LoggerName | ScalarWriter,
    metrics: Mapping[str, float],
    step: int,
    *,
    bars: Mapping[str, Bars] | None = None,
    page: str | PathLike[str] | None = None,
) -> None:
    """Log numbers at a training step, to the run that is active in that logger.

    Args:
        logger: "wandb", "trackio" or "mlflow", whose run the trainer has started; or a TensorBoard `SummaryWriter`.
        metrics: names to finite numbers: `Seen.of(batch, weights).flat()`.
        step: the training step. Weights & Biases drops what comes with a step below its last one.
        bars: `histograms(batch, weights)`, for Weights & Biases and TensorBoard.
        page: a file, such as what `reweigh audit --html` wrote, to keep with the run as an artefact: Weights & Biases
            and MLflow.

    Raises:
        ModuleNotFoundError: the logger is not installed.
        ValueError: another name, no run has been started, or the logger has no histograms or no artefacts.

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
        _refuse_page("TensorBoard", page)
        for name, value in metrics.items():
            logger.add_scalar(name, value, step)
        for name, one in (bars or {}).items():
            _to_tensorboard(logger, name, one, step)
        return
    if logger not in NAMES:
        raise ValueError(
            f"log_to: logger must be one of {', '.join(NAMES)} or a SummaryWriter, got {logger!r}\n"
            "hint: from torch.utils.tensorboard import SummaryWriter; log_to(SummaryWriter(folder), metrics, step)"
        )
    try:
        module: Any = import_module(logger)
        if logger == "wandb":
            log, run, start = module.log, module.run, "wandb.init(...)"
        elif logger == "trackio":
            run = import_module("trackio.context_vars").current_run.get()
            log, start = module.log, "trackio.init(project=...)"
        else:  # which would start a run of its own, and leave it open
            log, run, start = module.log_metrics, module.active_run(), "mlflow.start_run()"
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError(
            f"log_to: {e.name} is not installed\nhint: pip install {logger}, or log the dict yourself.", name=e.name
        ) from None
    if run is None:
        raise ValueError(f"log_to: {logger} has no active run\nhint: call {start} before.")
    if bars and logger != "wandb":
        raise ValueError(
            f"log_to: {logger} keeps no histograms\nhint: bars are for wandb and TensorBoard; leave them out."
        )
    if logger == "trackio":
        _refuse_page(logger, page)
    drawn = {name: module.Histogram(np_histogram=_counted(one)) for name, one in (bars or {}).items()}
    log({**metrics, **drawn}, step=step)
    if page is not None and logger == "wandb":
        artifact = module.Artifact("reweigh", type="report")
        artifact.add_file(str(page))
        run.log_artifact(artifact)
    elif page is not None:
        module.log_artifact(str(page))


def _refuse_page(logger: str, page: str | PathLike[str] | None) -> None:
    if page is not None:
        raise ValueError(f"log_to: {logger} keeps no files\nhint: page is for wandb and mlflow; leave it out.")


def _counted(bars: Bars) -> tuple[list[float], list[float]]:
    return bars.counts.tolist(), list(bars.edges)


def _to_tensorboard(writer: Any, name: str, bars: Bars, step: int) -> None:
    """Write the counts of a histogram; its sums are of the middles of the bins, which is all that is known."""
    counts, edges = _counted(bars)
    middles = [(a + b) / 2 for a, b in pairwise(edges)]
    first, last = (next((i for i in order if counts[i]), 0) for order in (range(len(counts)), range(len(counts))[::-1]))
    writer.add_histogram_raw(
        name,
        edges[first],
        edges[last + 1],
        int(sum(counts)),
        sum(n * x for n, x in zip(counts, middles, strict=True)),
        sum(n * x * x for n, x in zip(counts, middles, strict=True)),
        edges[1:],
        counts,
        step,
    )
