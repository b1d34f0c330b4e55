"""Hand the numbers of `Seen.flat` to Weights & Biases, trackio, MLflow or TensorBoard, under the same names."""
# pyright: reportMissingImports=false

from collections.abc import Mapping
from typing import Any, Literal, Protocol, get_args

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
