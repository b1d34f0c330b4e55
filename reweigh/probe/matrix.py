"""A matrix of probes: options of engine and trainer varied on the same prompts and tokens, and what each one does."""

import hashlib
import itertools
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
import tomllib

from reweigh.guard import loads, write_whole
from reweigh.probe.engine import ProbeError, Prompt, SamplingSettings
from reweigh.probe.models import number_format
from reweigh.probe.part import run_part
from reweigh.probe.run import EngineName, EngineOptions, Rollout, ScorerOptions, read_rollouts, writing
from reweigh.records import RunInfo
from reweigh.stats.intervals import Number, t_quantile

Design = Literal["one", "pairs", "full"]
Value = str | int | float | bool | None
_MOST_ARMS = 64
_SERVER_SECONDS = 300.0  # that a server which an arm starts may take until it answers
_COUNTS = 0.1  # share of the gap from which on a flag is worth changing
_MOST_REASON = 300  # characters

_ENGINE = {"model", "dtype", "device", "batch_size", "url", "served_model", "concurrency"}
_SAMPLING = {"temperature", "top_p"}
_TRAINER = {
    "trainer_model": "model",
    "trainer_dtype": "dtype",
    "trainer_attention": "attention",
    "trainer_batch_tokens": "batch_tokens",
    "trainer_device": "device",
}


@dataclass(frozen=True)
class Setup:
    """All that one arm runs with.

    Attributes:
        engine: what samples.
        sampling: how.
        scorer: what scores.
        python: the interpreter that the engine runs in; None is this one.
        start: a command that is run while the arm is, until its server answers at `engine.url`.
    """

    engine: EngineOptions
    sampling: SamplingSettings
    scorer: ScorerOptions
    python: str | None = None
    start: str | None = None

    def with_changes(self, changes: Mapping[str, Value]) -> "Setup":
        """Change options by name; a name that is none of the probe's is an argument of the engine.

        Raises:
            ProbeError: a value that the option cannot have.
        """
        engine: dict[str, Any] = asdict(self.engine)
        sampling, scorer = asdict(self.sampling), asdict(self.scorer)
        more: dict[str, Any] = {"python": self.python, "start": self.start}
        args = dict(self.engine.args)
        for name, value in changes.items():
            key = name.replace("-", "_")
            if key == "engine":
                names = [one.value for one in EngineName]
                if value not in names:
                    raise ProbeError(
                        f"{name}: must be one of {', '.join(names)}, got {value!r}\nhint: see docs/probe.md"
                    )
                engine["name"] = EngineName(str(value))
            elif key in _ENGINE:
                engine[key] = _typed(name, value, engine[key], EngineOptions)
            elif key in _SAMPLING:
                sampling[key] = _typed(name, value, sampling[key], SamplingSettings)
            elif key in _TRAINER:
                inner = _TRAINER[key]
                scorer[inner] = number_format(name, str(value)) if inner == "dtype" else value
            elif key in more:
                more[key] = value
            else:
                args[name] = value
        engine["args"] = args
        return Setup(EngineOptions(**engine), SamplingSettings(**sampling), ScorerOptions(**scorer), **more)


def _typed(name: str, value: Value, before: Any, owner: type) -> Any:
    wanted = {one.name: one.type for one in fields(owner)}[name.replace("-", "_")]
    number = {int: int, float: (int, float)}.get(wanted) if isinstance(wanted, type) else None
    if number is not None and (isinstance(value, bool) or not isinstance(value, number) or value <= 0):
        raise ProbeError(
            f"{name}: must be a number over 0, as {before} is, got {value!r}\nhint: --vary {name}={before},..."
        )
    return value


@dataclass(frozen=True)
class Varied:
    """An option that is varied: the value of the base first, then the others."""

    name: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Arm:
    """One cell of the matrix: a name, and what it changes of the base."""

    name: str
    changes: Mapping[str, Value] = field(default_factory=dict[str, Value])


BASE = "base"


def parse_vary(text: str) -> Varied:
    """Read `NAME=a,b,...`: values are JSON where they can be, otherwise words; the first is the base's.

    Example:
        >>> parse_vary("batch_size=1,32").values
        (1, 32)
        >>> parse_vary("kv-cache-dtype=fp8,auto")
        Varied(name='kv_cache_dtype', values=('fp8', 'auto'))
    """
    name, equals, rest = text.partition("=")
    values = tuple(dict.fromkeys(_value(x) for x in rest.split(","))) if rest else ()
    if not equals or not name.strip() or len(values) < 2:
        raise ProbeError(
            f"--vary: must be NAME=a,b with two values or more, got {text!r}\n"
            "hint: --vary dtype=bfloat16,float32: the first is the base, the others are tried in its place."
        )
    return Varied(name.strip().replace("-", "_"), values)


def _value(text: str) -> Value:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return value if isinstance(value, str | int | float | bool) or value is None else text


def read_arms(path: Path) -> tuple[dict[str, Value], list[Arm]]:
    """Read arms from TOML: a table `[base]` with options of all, and one `[[arm]]` each with a `name`.

    Raises:
        ProbeError: no such file, or not of this form.
    """
    if not path.is_file():
        raise ProbeError(f"--arms: no file {path}\nhint: TOML with [[arm]] tables; docs/probe.md has an example.")
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProbeError(f"--arms: {path}: not TOML: {error}\nhint: docs/probe.md has an example.") from error
    if unknown := sorted(set(table) - {"base", "arm"}):
        raise ProbeError(f"--arms: {path}: unknown {', '.join(unknown)}\nhint: it may have [base] and [[arm]].")
    base, rows = table.get("base", {}), table.get("arm", [])
    if not isinstance(base, dict) or not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ProbeError(
            f"--arms: {path}: [base] must be a table and [[arm]] tables\nhint: docs/probe.md has an example."
        )
    arms: list[Arm] = []
    for i, row in enumerate(rows, 1):
        name = row.get("name")
        if not isinstance(name, str) or not name.strip() or name in {BASE, *(arm.name for arm in arms)}:
            raise ProbeError(
                f'--arms: {path}: arm {i}: name must be a word of its own, got {name!r}\nhint: name = "fp8"'
            )
        bad = next((k for k, v in row.items() if not isinstance(v, str | int | float | bool)), None)
        if bad is not None:
            raise ProbeError(f'--arms: {path}: arm {i}: {bad} must be a text, number or boolean\nhint: {bad} = "..."')
        arms.append(Arm(name, {k: v for k, v in row.items() if k != "name"}))
    return dict(base), arms


def arms_of(factors: Sequence[Varied], design: Design, more: Sequence[Arm] = ()) -> list[Arm]:
    """Lay out the arms: the base, each option changed alone, then pairs and all together, or every combination.

    Raises:
        ProbeError: an option twice, or more arms than can be told apart.
    """
    names = [one.name for one in factors]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ProbeError(f"--vary: {twice[0]} is given twice\nhint: once, with all its values: {twice[0]}=a,b,c")
    base: dict[str, Value] = {}
    if design == "full":
        choices = [[{}, *({one.name: v} for v in one.values[1:])] for one in factors]
        combined = [dict(pair for part in parts for pair in part.items()) for parts in itertools.product(*choices)]
    else:
        combined = [base, *({one.name: v} for one in factors for v in one.values[1:])]
        if design == "pairs" and len(factors) > 1:
            firsts = [(one.name, one.values[1]) for one in factors]
            combined += [dict(pair) for pair in itertools.combinations(firsts, 2)]
            if len(factors) > 2:
                combined.append(dict(firsts))
    combined.sort(key=len)
    arms = [Arm(_name(changes), changes) for changes in combined]
    arms += [one for one in more if one.name not in {arm.name for arm in arms}]
    if len(arms) > _MOST_ARMS:
        raise ProbeError(f"--vary: {len(arms)} arms, at most {_MOST_ARMS}\nhint: --design one, or fewer values.")
    return arms


def _name(changes: Mapping[str, Value]) -> str:
    return " + ".join(f"{k}={_word(v)}" for k, v in changes.items()) or BASE


def _word(value: Value) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True)
class ArmResult:
    """One arm that is done.

    Attributes:
        arm: which.
        records: its file.
        paired: True if its log-probs are of the base's own tokens.
        prompts: by prompt, sum of the gap over its tokens, sum of |log ratio|, and number of tokens.
        parts: mean squares of the log ratio and of its links, nats squared; those that the engine can tell apart.
        seconds: of the engine and of the trainer for these tokens, without their start.
    """

    arm: Arm
    records: Path
    paired: bool
    prompts: Mapping[str, tuple[float, float, int]]
    parts: Mapping[str, float]
    seconds: tuple[float, float]


@dataclass(frozen=True)
class ArmFailure:
    """One arm that could not be measured, and why."""

    arm: Arm
    reason: str


@dataclass(frozen=True)
class MatrixPlan:
    """What a matrix runs: the folder, the base, its arms and prompts.

    Attributes:
        folder: keeps records and parts; a second run with the same folder goes on.
        base: the setup that arms change.
        arms: the first is the base.
        prompts: the same for all.
        seconds: that a part may take; None is no limit.
        isolate: run each part in a process of its own, so that one that dies takes nothing with it.
    """

    folder: Path
    base: Setup
    arms: Sequence[Arm]
    prompts: Sequence[Prompt]
    seconds: float | None = None
    isolate: bool = True


Told = Callable[[int, Arm, "ArmResult | ArmFailure | None", float | None], None]


def run_matrix(plan: MatrixPlan, told: Told) -> list[ArmResult | ArmFailure]:
    """Measure each arm, or say why not; what a run before has measured in the folder is taken over.

    Args:
        plan: what to run.
        told: called with an arm's number when it begins (None) and when it is done, and the seconds left, if known.

    Raises:
        ProbeError: the base fails, so that there is nothing to compare with; or the folder is of another matrix.
    """
    setups = [plan.base.with_changes(arm.changes) for arm in plan.arms]  # a wrong option is told before any work
    _claim(plan)
    results: list[ArmResult | ArmFailure] = []
    spent: list[float] = []
    tokens: Path | None = None
    for i, (arm, setup) in enumerate(zip(plan.arms, setups, strict=True)):
        told(i, arm, None, _left(spent, len(plan.arms) - i))
        start = time.monotonic()
        try:
            result: ArmResult | ArmFailure = _measure(plan, arm, setup, tokens)
        except (ProbeError, OSError, RuntimeError, MemoryError, ValueError) as error:
            result = ArmFailure(arm, _reason(error))
        if tokens is None:
            if isinstance(result, ArmFailure):
                raise ProbeError(
                    f"the base could not be measured: {result.reason}\n"
                    f"hint: `reweigh probe` with the same options alone shows more; {plan.folder} keeps what there is."
                )
            tokens = _rollouts(plan, setup, None)
        results.append(result)
        spent.append(time.monotonic() - start)
        told(i, arm, result, _left(spent, len(plan.arms) - i - 1))
    return results


def _left(spent: Sequence[float], arms: int) -> float | None:
    worked = [x for x in spent if x > 1]  # not those that were there already
    return sum(worked) / len(worked) * arms if worked else None


def _claim(plan: MatrixPlan) -> None:
    """Make the folder, and see that another matrix's prompts and settings are not mixed with these."""
    head = {"reweigh_matrix": 1, "base": _plain(plan.base), "prompts": [asdict(one) for one in plan.prompts]}
    path = plan.folder / "matrix.json"
    if path.exists():
        if loads(path.read_text("utf-8")) != json.loads(json.dumps(head)):
            raise ProbeError(
                f"{plan.folder}: holds a matrix of another base or other prompts\n"
                "hint: name another folder with --matrix DIR, or give the options of that run to go on with it."
            )
        return
    if plan.folder.is_dir() and any(plan.folder.iterdir()):
        raise ProbeError(
            f"{plan.folder}: is not empty, and holds no matrix\nhint: name another folder with --matrix DIR."
        )
    plan.folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(head, indent=1))


def _plain(setup: Setup) -> dict[str, Any]:
    plain = asdict(setup)
    plain["engine"].pop("api_key")
    plain["engine"]["name"] = setup.engine.name.value
    return plain


def _key(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _engine_key(setup: Setup, tokens: Path | None) -> str:
    plain = _plain(setup)
    return _key(plain["engine"], plain["sampling"], plain["python"], plain["start"], tokens and tokens.name)


def _rollouts(plan: MatrixPlan, setup: Setup, tokens: Path | None) -> Path:
    return plan.folder / "parts" / f"engine-{_engine_key(setup, tokens)}.rollouts"


def _measure(plan: MatrixPlan, arm: Arm, setup: Setup, base_tokens: Path | None) -> ArmResult:
    given = base_tokens if base_tokens and setup.sampling == plan.base.sampling else None
    # The base's own engine is not asked again: its tokens have their log-probs.
    same = given is not None and _engine_key(setup, None) == _engine_key(plan.base, None)
    rollouts = given if same and given is not None else _rollouts(plan, setup, given)
    engine = _engine_part(plan, setup, None if same else given, rollouts)
    own_tokens = bool(engine["own"])
    source = rollouts if own_tokens or given is None else given
    scored = _score_part(plan, setup, source)
    reference = None if own_tokens else read_rollouts(source).rollouts
    rows = read_rollouts(rollouts).rollouts
    records = plan.folder / "records" / f"{_key(_plain(setup), arm.name)}.parquet"
    if not records.exists():
        _records(records, rows, engine, scored, setup)
    paired = not own_tokens or same or base_tokens is None
    sums, parts = _sums(rows, reference, engine, scored)
    return ArmResult(arm, records, paired, sums, parts, (engine["seconds"], scored["seconds"]))


def _engine_part(plan: MatrixPlan, setup: Setup, tokens: Path | None, rollouts: Path) -> dict[str, Any]:
    out = rollouts.with_suffix(".json")
    if not (out.exists() and rollouts.exists()):
        plain = _plain(setup)["engine"] | {"api_key": setup.engine.api_key}
        job = {
            "kind": "engine",
            "engine": plain,
            "settings": asdict(setup.sampling),
            "prompts": [asdict(one) for one in plan.prompts],
            "tokens": None if tokens is None else str(tokens.resolve()),
            "rollouts": str(rollouts.resolve()),
            "out": str(out.resolve()),
        }
        with _server(setup, out.with_suffix(".log")):
            _run_job(plan, job, out, setup.python)
    return loads(out.read_text("utf-8"))


def _score_part(plan: MatrixPlan, setup: Setup, tokens: Path) -> dict[str, Any]:
    scorer = asdict(setup.scorer) | {"repeat": True}
    out = plan.folder / "parts" / f"trainer-{_key(scorer, tokens.name)}.json"
    if not out.exists():
        job = {"kind": "score", "scorer": scorer, "tokens": str(tokens.resolve()), "out": str(out.resolve())}
        _run_job(plan, job, out, None)
    return loads(out.read_text("utf-8"))


def _run_job(plan: MatrixPlan, job: dict[str, Any], out: Path, python: str | None) -> None:
    if not plan.isolate and python is None:
        run_part(job)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    path, error = out.with_suffix(".job"), out.with_suffix(".error")
    error.unlink(missing_ok=True)
    # It may hold the server's key.
    path.touch(mode=0o600)
    path.write_text(json.dumps(job), encoding="utf-8")
    root = str(Path(__file__).parents[2])
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
    log = out.with_suffix(".log")
    try:
        with log.open("ab") as file:
            child = subprocess.Popen(
                [python or sys.executable, "-m", "reweigh.probe.part", str(path.resolve())],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=env,
                start_new_session=True,
            )
            try:
                code = child.wait(plan.seconds)
            except subprocess.TimeoutExpired:
                raise ProbeError(
                    f"slow: not done after {plan.seconds:g} s\nhint: --arm-timeout gives it more; see {log}"
                ) from None
            finally:
                _end(child)
    finally:
        path.unlink(missing_ok=True)
    if error.exists():
        raise ProbeError(error.read_text("utf-8"))
    if code < 0:
        name = signal.Signals(-code).name
        more = ", which is how a system ends what takes too much memory" if name == "SIGKILL" else ""
        raise ProbeError(f"died of {name}{more}\nhint: see {log}")
    if code or not out.exists():
        raise ProbeError(f"ended with {code}: {_last_line(log)}\nhint: see {log}")


def _end(child: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # whatever it has begun, too
    child.wait()


def _last_line(path: Path) -> str:
    lines = [x for x in path.read_text("utf-8", "replace").split("\n") if x.strip()]
    return lines[-1].strip()[:_MOST_REASON] if lines else "it said nothing"


@contextmanager
def _server(setup: Setup, log: Path) -> Generator[None, None, None]:
    if not setup.start:
        yield
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        try:
            child = subprocess.Popen(
                shlex.split(setup.start), stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )
        except OSError as error:
            raise ProbeError(f"start: cannot run {setup.start!r}: {error}\nhint: the path of the program.") from error
        try:
            _wait(setup.engine.url.rstrip("/") + "/models", child, log)
            yield
        finally:
            _end(child)


def _wait(url: str, child: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + _SERVER_SECONDS
    with httpx.Client(timeout=2.0, trust_env=False) as client:
        while time.monotonic() < until:
            if child.poll() is not None:
                raise ProbeError(f"start: the server ended with {child.returncode}: {_last_line(log)}\nhint: see {log}")
            try:
                if client.get(url).status_code == 200:
                    return
            except httpx.TransportError:
                pass  # not up yet
            time.sleep(0.5)
    raise ProbeError(f"start: nothing answers at {url} after {_SERVER_SECONDS:g} s\nhint: see {log}")


def _reason(error: BaseException) -> str:
    told = str(error) if isinstance(error, ProbeError) else f"{type(error).__name__}: {error}"
    return " ".join(told.split("\nhint:")[0].split())[:_MOST_REASON]


def _records(
    path: Path, rows: Sequence[Rollout], engine: Mapping[str, Any], scored: Mapping[str, Any], setup: Setup
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    told, sampling = engine["info"], setup.sampling
    info = RunInfo(
        engine=told["name"],
        engine_version=told["version"],
        trainer="transformers",
        trainer_version=scored["version"],
        model=told["model"],
        dtype_mu=told["dtype"],
        dtype_pi=setup.scorer.dtype,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=0,
        min_p=0.0,
        repetition_penalty=1.0,
        logprobs_mode=told["logprobs_mode"],
        seed=sampling.seed,
        note="; ".join(dict.fromkeys(filter(None, (told["note"], scored["note"])))) or None,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    prefill = engine["prefill"] or [None] * len(rows)
    columns = zip(rows, scored["log_pi"], scored["log_pi_repeat"], scored["entropy_pi"], prefill, strict=True)
    part = path.with_suffix(".partial.parquet")
    with writing(part, info) as writer:
        writer.write(
            [
                {
                    "sequence_id": one.sequence_id,
                    "prompt_id": one.prompt_id,
                    "prompt_length": len(one.prompt_ids),
                    "token_ids": one.token_ids,
                    "mask": [math.isfinite(x) for x in one.log_mu],
                    "log_mu": one.log_mu,
                    "log_mu_prefill": again,
                    "log_pi": log_pi,
                    "log_pi_repeat": repeat,
                    "entropy_pi": nats,
                    "finish_reason": one.finish_reason,
                    "text": one.text,
                }
                for one, log_pi, repeat, nats, again in columns
            ]
        )
    os.replace(part, path)


def _sums(
    rows: Sequence[Rollout],
    reference: Sequence[Rollout] | None,
    engine: Mapping[str, Any],
    scored: Mapping[str, Any],
) -> tuple[dict[str, tuple[float, float, int]], dict[str, float]]:
    """Sum the gap by prompt: `q`, which drew the tokens, is the engine itself or the base's."""
    sums: dict[str, tuple[float, float, int]] = {}
    links: dict[str, list[float]] = {"all": [], "decode_prefill": [], "prefill_trainer": [], "trainer_itself": []}
    for i, one in enumerate(rows):
        mu = np.asarray(one.log_mu)
        pi = np.asarray(scored["log_pi"][i])
        q = mu if reference is None else np.asarray(reference[i].log_mu)
        gap = token_kl(pi, mu, q)
        size = np.abs(np.where(np.isfinite(mu), pi - mu, 0.0))
        a, b, n = sums.get(one.prompt_id, (0.0, 0.0, 0))
        sums[one.prompt_id] = (a + float(gap.sum()), b + float(size.sum()), n + len(mu))
        live = np.isfinite(mu)
        links["all"] += ((pi - mu)[live] ** 2).tolist()
        links["trainer_itself"] += ((np.asarray(scored["log_pi_repeat"][i]) - pi) ** 2).tolist()
        if engine["prefill"]:
            again = np.asarray(engine["prefill"][i])
            both = live & np.isfinite(again)
            links["decode_prefill"] += ((again - mu)[both] ** 2).tolist()
            links["prefill_trainer"] += ((pi - again)[both] ** 2).tolist()
    return sums, {name: float(np.mean(x)) for name, x in links.items() if x}


def token_kl(log_pi: np.ndarray, log_mu: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """Estimate KL(mu||pi) of each token's context from a token that `q` drew: `(mu/q) (pi/mu - 1 - log(pi/mu))`.

    Never negative, and unbiased for any q that can draw what mu can: of contexts that q came to. With q = mu it is k3.
    """
    finite = np.isfinite(log_mu)
    mu = np.where(finite, log_mu, 0.0)
    d = log_pi - mu
    with np.errstate(over="ignore"):
        inside = np.exp(mu - log_q) * (np.expm1(d) - d)
        return np.where(finite, inside, np.exp(log_pi - log_q))


@dataclass(frozen=True)
class Effect:
    """What changing one option, or two beyond each alone, takes off the gap.

    Attributes:
        names: of the option changed, as `dtype=float32`, or of both.
        removed: nats a token; below 0 if it adds to the gap.
        share: of the base's gap.
        carried: share with half of each interaction that was measured; None without any.
        cost: seconds with it changed by seconds of the base; None for an interaction.
    """

    names: tuple[str, ...]
    removed: Number
    share: Number
    carried: Number | None = None
    cost: float | None = None


@dataclass(frozen=True)
class Matrix:
    """The result.

    Attributes:
        results: a line an arm, in the order they were laid out.
        gaps: KL(mu||pi) of a token of each arm that was measured, nats.
        sizes: mean |log ratio| of each.
        effects: of single changes, the largest first.
        interactions: of pairs whose interval excludes 0, and how many were measured in all.
        num_pairs: how many pairs were measured.
        together: all changes at once, if there are several and the arm was measured.
        unexplained: what single changes and pairs leave of `together`, as a share of the base's gap.
        cheapest: the single change to make, or None if none is worth it.
        why: one sentence on `cheapest`.
    """

    results: tuple[ArmResult | ArmFailure, ...]
    gaps: Mapping[str, Number]
    sizes: Mapping[str, Number]
    effects: tuple[Effect, ...]
    interactions: tuple[Effect, ...]
    num_pairs: int
    together: Effect | None
    unexplained: Number | None
    cheapest: Effect | None
    why: str

    @property
    def measured(self) -> tuple[ArmResult, ...]:
        """The arms that have numbers."""
        return tuple(x for x in self.results if isinstance(x, ArmResult))

    @property
    def failed(self) -> tuple[ArmFailure, ...]:
        """The arms that have none."""
        return tuple(x for x in self.results if isinstance(x, ArmFailure))


def analyse(results: Sequence[ArmResult | ArmFailure]) -> Matrix:
    """Work out what each change does; the first result is the base, and must have been measured.

    Intervals are 95%, of the paired difference, with prompts as clusters: each arm's mean is linearised in the sums of
    a prompt, and a difference or share in those means.
    """
    done = {x.arm.name: x for x in results if isinstance(x, ArmResult)}
    base = next(x for x in results if isinstance(x, ArmResult))
    calculator = _Linear(done, base)
    by_changes = {frozenset(x.arm.changes.items()): x.arm.name for x in done.values()}
    singles = {next(iter(k)): name for k, name in by_changes.items() if len(k) == 1}
    extra = {name: x for name, x in done.items() if name != base.arm.name and _name(x.arm.changes) != name}
    pairs = {k: name for k, name in by_changes.items() if len(k) == 2 and all(x in singles for x in k)}
    at = base.arm.name
    pair_terms = {k: {singles[x]: 1.0 for x in k} | {at: -1.0, name: -1.0} for k, name in pairs.items()}
    effects: list[Effect] = []
    for change, name in singles.items():
        if name in extra:
            continue
        terms = {at: 1.0, name: -1.0}
        carried = None
        if mine := [terms_of for k, terms_of in pair_terms.items() if change in k]:
            total = dict(terms)
            for some in mine:
                for k, c in some.items():
                    total[k] = total.get(k, 0.0) + c / 2
            carried = calculator.share(total)
        effects.append(
            Effect((name,), calculator.value(terms), calculator.share(terms), carried, calculator.cost(name))
        )
    for name in extra:
        terms = {at: 1.0, name: -1.0}
        effects.append(Effect((name,), calculator.value(terms), calculator.share(terms), None, calculator.cost(name)))
    effects.sort(key=lambda one: -(one.removed.value or 0.0))
    interactions = [
        Effect(tuple(sorted(_name(dict([x])) for x in k)), calculator.value(terms), calculator.share(terms))
        for k, terms in pair_terms.items()
    ]
    sure = [one for one in interactions if _excludes_0(one.removed)]
    sure.sort(key=lambda one: -abs(one.removed.value or 0.0))
    together, unexplained = _together(by_changes, singles, pair_terms, calculator, at)
    cheapest, why = _cheapest(effects)
    return Matrix(
        tuple(results),
        {name: calculator.value({name: 1.0}) for name in done},
        {name: calculator.value({name: 1.0}, 1) for name in done},
        tuple(effects),
        tuple(sure),
        len(interactions),
        together,
        unexplained,
        cheapest,
        why,
    )


def _together(
    by_changes: Mapping[frozenset[tuple[str, Value]], str],
    singles: Mapping[tuple[str, Value], str],
    pair_terms: Mapping[frozenset[tuple[str, Value]], Mapping[str, float]],
    calculator: "_Linear",
    at: str,
) -> tuple[Effect | None, Number | None]:
    widest = max(by_changes, key=len)
    if len(widest) < 2:
        return None, None
    name = by_changes[widest]
    terms = {at: 1.0, name: -1.0}
    whole = Effect((name,), calculator.value(terms), calculator.share(terms), None, calculator.cost(name))
    inside = [frozenset(x) for x in itertools.combinations(sorted(widest, key=str), 2)]
    if not all(x in singles for x in widest) or not all(x in pair_terms for x in inside):
        return whole, None
    left = dict(terms)
    for change in widest:
        left[at] = left.get(at, 0.0) - 1.0
        left[singles[change]] = left.get(singles[change], 0.0) + 1.0
    for pair in inside:
        for k, c in pair_terms[pair].items():
            left[k] = left.get(k, 0.0) - c
    return whole, calculator.share(left)


def _cheapest(effects: Sequence[Effect]) -> tuple[Effect | None, str]:
    useful = [one for one in effects if (one.share.low or 0.0) > 0 and (one.share.value or 0.0) >= _COUNTS]
    if not useful:
        return None, f"no single change is sure to take off a tenth of the gap ({len(effects)} tried)"
    most = max(one.removed.value or 0.0 for one in useful)
    near = [one for one in useful if (one.removed.value or 0.0) >= most / 2]
    best = min(near, key=lambda one: one.cost if one.cost is not None else math.inf)
    return best, (
        f"of {len(near)} that take off at least half of what the best one does, it costs least time: "
        f"{best.cost or 1.0:.2g} times the base's here"
    )


def _excludes_0(x: Number) -> bool:
    return x.low is not None and x.high is not None and (x.low > 0 or x.high < 0)


class _Linear:
    """Values and intervals of sums of the arms' means."""

    def __init__(self, done: Mapping[str, ArmResult], base: ArmResult) -> None:
        self._done, self._base = done, base
        self._prompts = list(dict.fromkeys(p for one in done.values() for p in one.prompts))

    def value(self, terms: Mapping[str, float], which: int = 0) -> Number:
        """The sum itself, nats."""
        mean, psi = self._sum(terms, which)
        return self._number(mean, psi, "nats")

    def share(self, terms: Mapping[str, float]) -> Number:
        """The sum by the base's gap."""
        whole, base_psi = self._sum({self._base.arm.name: 1.0}, 0)
        if not whole > 0:
            return Number(None, refused="the base has no gap to share out")
        mean, psi = self._sum(terms, 0)
        return self._number(mean / whole, (psi - mean / whole * base_psi) / whole, "")

    def cost(self, name: str) -> float | None:
        """Seconds of an arm by those of the base."""
        base = sum(self._base.seconds)
        return sum(self._done[name].seconds) / base if base > 0 else None

    def _sum(self, terms: Mapping[str, float], which: int) -> tuple[float, np.ndarray]:
        mean, psi = 0.0, np.zeros(len(self._prompts))
        for name, c in terms.items():
            rows = [self._done[name].prompts.get(p, (0.0, 0.0, 0)) for p in self._prompts]
            total, count = np.array([row[which] for row in rows]), np.array([float(row[2]) for row in rows])
            m = total.sum() / count.sum()
            mean += c * m
            psi += c * (total - m * count) / count.sum()
        return float(mean), psi

    def _number(self, mean: float, psi: np.ndarray, unit: str) -> Number:
        groups = len(psi)
        if groups < 2:
            return Number(mean, sample=mean, unit=unit)
        half = t_quantile(0.975, groups - 1) * math.sqrt(groups / (groups - 1) * float((psi**2).sum()))
        return Number(mean, mean - half, mean + half, mean, unit)
