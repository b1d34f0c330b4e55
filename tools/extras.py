# ruff: noqa: T201  # what it tries is printed
"""Try one extra of an installation: what it is for works, with nothing else that is installed.

    python -m tools.extras trl          # core, audit, probe, ray, trl, tensorboard or docs

Run it in an environment that has this extra alone; it imports `reweigh` from there. It ends with an error if something
fails.
"""

import importlib
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples" / "records" / "vllm_bfloat16.parquet"


def command(*arguments: str) -> None:
    """Run a command of reweigh; one that cannot do what was asked is an error.

    Raises:
        RuntimeError: it ended with neither 0 nor 1.
    """
    done = subprocess.run([sys.executable, "-m", "reweigh", *arguments], capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"reweigh {' '.join(arguments)}: exit code {done.returncode}: {done.stderr}")


def _imports(*names: str) -> None:
    for name in names:
        importlib.import_module(name)


def _core() -> None:
    import torch

    import reweigh

    batch = reweigh.Batch.padded(-torch.ones(2, 3), -torch.ones(2, 3), torch.ones(2, 3))
    weights = reweigh.seq_tis(2.0)(batch)
    assert weights.per_token.tolist() == [[1.0] * 3] * 2
    assert reweigh.judge(*reweigh.RatioStats.of_levels(batch, (reweigh.TOKEN, reweigh.SEQUENCE))).level


def _audit() -> None:
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "report.html")
        command("audit", str(EXAMPLE), "--html", str(page))
        assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    command("explain", "--from", "trl", "vllm_importance_sampling_correction=true")
    command("plan", "--length", "100", "--kl", "0.001")


def _probe() -> None:
    _audit()
    _imports("reweigh.probe", "accelerate", "gguf", "httpx", "transformers")
    command("probe", "--help")


def _ray() -> None:
    command("audit", str(EXAMPLE), "--engine", "ray", "-q")


def _trl() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TRL
        _imports("reweigh.trainers.trl", "reweigh.trainers.capture")


def _tensorboard() -> None:
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    with tempfile.TemporaryDirectory() as folder:
        writer = EventFileWriter(folder)
        for step in range(20):
            event = Event(step=step, wall_time=float(step))
            value = event.summary.value.add(tag="rollout_corr/k3_kl")
            value.simple_value = 0.001 + 0.0001 * (step % 3)
            writer.add_event(event)
        writer.close()
        command("doctor", "--metrics", folder)


def _docs() -> None:
    _imports("mkdocs", "material", "mkdocstrings", "matplotlib", "PIL")


TRIALS: Mapping[str, tuple[Callable[[], None], ...]] = {
    "core": (_core,),
    "audit": (_core, _audit),
    "probe": (_core, _probe),
    "ray": (_core, _audit, _ray),
    "trl": (_core, _audit, _trl),
    "tensorboard": (_core, _audit, _tensorboard),
    "docs": (_core, _audit, _docs),
}


def main() -> int:
    """Try the extra that the command line names."""
    if sys.argv[1:2] == [] or sys.argv[1] not in TRIALS:
        print(f"error: name one of {', '.join(TRIALS)}", file=sys.stderr)
        return 2
    for trial in TRIALS[sys.argv[1]]:
        trial()
    print(f"{sys.argv[1]}: works")
    return 0


if __name__ == "__main__":
    sys.exit(main())
