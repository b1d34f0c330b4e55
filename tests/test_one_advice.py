"""One level, one thing to do and one estimator for the same records, whichever command is asked."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from reweigh import report
from reweigh.__main__ import main
from reweigh.audit import audit
from reweigh.records import RecordWriter, RunInfo, read_batches
from reweigh.stats.verdict import judge
from reweigh.trainers.seen import Seen

EXAMPLES = sorted((Path(__file__).parents[1] / "examples" / "records").glob("*.parquet"))
POLICY = "version: 1\nbounds:\n  - {number: kl_k3, level: token, at_most: 1e6}\n"


def logits(g, rows, length, vocabulary=40):
    return (1 + 3 * g.random((rows, length, 1))) * g.normal(size=(rows, length, vocabulary))


def log_softmax(x):
    return torch.from_numpy(x).log_softmax(-1).numpy()


def made(kind, seed=0, rows=96, length=60):
    """Log-probs of both sides of sampled tokens, with a fault of this kind; honest logits otherwise."""
    g = np.random.default_rng(seed)
    base = logits(g, rows, length)
    log_mu, noise = log_softmax(base), g.normal(size=base.shape)
    sizes = {"same": 0.0, "rounding": 0.03, "8 bits": 0.25, "4 bits": 0.9}
    sampled, pi = log_mu, log_softmax(base + sizes.get(kind, 0.01) * noise)
    if kind == "raw":  # sampled and scored at temperature 0.7, logged at 1
        sampled, pi = log_softmax(base / 0.7), log_softmax(base / 0.7)
    elif kind == "both raw":  # and both sides log at 1
        sampled = log_softmax(base / 0.6)
    elif kind == "top-p":  # the ten likeliest alone are sampled, and renormalised in the engine
        kept = np.where(log_mu >= np.sort(log_mu, -1)[..., -10:-9], log_mu, -np.inf)
        sampled = log_mu = log_softmax(kept)
    elif kind == "stale":
        pi = log_softmax(base + 0.3 * g.normal(size=base.shape[-1]) + 0.02 * noise)
    elif kind == "no temperature":
        sampled = log_mu = log_softmax(base / 0.7)
    gumbel = sampled + g.gumbel(size=base.shape)
    token = gumbel.argmax(-1)[..., None]
    log_mu, log_pi = (np.take_along_axis(x, token, -1)[..., 0] for x in (log_mu, pi))
    if kind == "shift":
        log_mu = np.roll(log_mu, 1, 1)
    if kind == "base 10":
        log_mu = log_mu / math.log(10)
    return token[..., 0], log_mu, log_pi


KINDS = (
    *(
        "same",
        "rounding",
        "8 bits",
        "4 bits",
        "stale",
        "raw",
        "both raw",
        "top-p",
        "no temperature",
        "shift",
        "base 10",
    ),
)


def write(path, kind):
    ids, log_mu, log_pi = made(kind)
    with RecordWriter(path, RunInfo(engine="vllm")) as writer:
        writer.write(
            [
                {"sequence_id": str(i), "prompt_id": str(i // 4), "token_ids": ids[i], "log_mu": a, "log_pi": b}
                for i, (a, b) in enumerate(zip(log_mu, log_pi, strict=True))
            ]
        )
    return path


def faults_of(folder):
    """Records of faults that the rig commits, in a world that need not be trained."""
    pytest.importorskip("transformers")
    from test_doctor_faults import small_world

    from faults import Specs, find, run_table

    world = small_world()
    for name in ("placeholder_logprob-zero", "dropout-left-on", "quantised_rollout-int4", "stale_weights-lag"):
        fault = find(name)
        specs = fault.change(Specs(), fault.strong)
        table = run_table(world, specs, tokens=1500, seed=0, with_repeat=True, with_prefill=True)
        path = folder / f"{name}.parquet"
        with RecordWriter(path) as writer:
            writer.write_table(table)
        yield path


@pytest.fixture
def run(capsys):
    def call(*args):
        code = main([str(x) for x in args])
        out, err = capsys.readouterr()
        assert code in (0, 1), err
        return code, out

    return call


def same_everywhere(path, tmp_path, run):
    """Ask every command; return the verdict."""
    code, out = run("audit", path, "--json")
    document = json.loads(out)
    told = document["verdict"]
    assert code == (told["level"] == "fail")
    assert (told["action"] in ("nothing", "fix")) == (told["use"] is None)
    assert document["summary"]["use"] == told["use"]

    said = {"doctor": json.loads(run("doctor", path, "--format", "json")[1])["advice"]}
    said["plan"] = json.loads(run("plan", "--from", path, "--format", "json")[1])["lengths"][0]["advice"]
    said["plan"].pop("sentence")
    folder = tmp_path / f"watched-{path.stem}"
    folder.mkdir()
    (folder / path.name).write_bytes(path.read_bytes())
    state = tmp_path / f"{path.stem}.state"
    said["watch"] = json.loads(run("watch", folder, "--once", "--format", "json", "--state", state)[1])["verdict"]
    for command, one in said.items():
        assert one == told, command

    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    gated = json.loads(run("gate", path, "--policy", policy, "--format", "json")[1])["audit"]
    quiet = run("audit", path, "--quiet")[1]
    assert gated == quiet.rstrip("\n")
    assert quiet.startswith(f"{told['level']}: {told['reason']}")
    trial = json.loads(run("audit", path, "--estimators", "naive, seq_tis(3)", "--json")[1])
    assert trial["verdict"] == told
    assert trial["recommendation"]["use"] == told["use"]

    found = audit(path)
    page = report.page(found)
    assert f"<title>{found.verdict.level}: reweigh audit</title>" in page

    # What trains knows no cause: the same sums, the same words, but that a cause may come before the estimator.
    (part,) = read_batches(path)
    seen = Seen.of(part.batch)
    alone = seen.verdict()
    assert alone == judge(seen.token, seen.sequence)
    assert alone.to_dict() == json.loads(run("audit", path, "--no-doctor", "--json")[1])["verdict"]
    assert seen.flat()["reweigh/level"] == ("ok", "warn", "fail").index(alone.level)
    if told["use"] and alone.use:
        assert told["use"] == alone.use
    assert told["action"] == alone.action or told["action"] == "fix"
    return told


FAST = ("vllm_fp8_kv", "rounding", "raw", "stale")


def cases(names, key=str):
    """All of them; in the fast tests a few."""
    return [pytest.param(x, id=key(x), marks=() if key(x) in FAST else pytest.mark.slow) for x in names]


@pytest.mark.parametrize("path", cases(EXAMPLES, lambda path: path.stem))
def test_examples(path, tmp_path, run):
    told = same_everywhere(path, tmp_path, run)
    assert (told["action"], told["use"]) == {
        "llama_cpp_q4_1": ("correct", "seq_tis(2)"),
        "transformers_bfloat16": ("small", "seq_tis(2)"),
        "transformers_int8": ("reduce", "token_tis(2)"),
        "vllm_bfloat16": ("small", "seq_tis(2)"),
        "vllm_fp8_kv": ("reduce", "token_tis(2)"),
    }[path.stem]


@pytest.mark.parametrize("kind", cases(KINDS))
def test_made_up_pairs(kind, tmp_path, run):
    told = same_everywhere(write(tmp_path / "a.parquet", kind), tmp_path, run)
    expected = {
        "same": ("nothing", "small"),
        "rounding": ("small",),
        "8 bits": ("correct", "reduce"),
        "4 bits": ("reduce",),
        "stale": ("correct", "reduce"),
        **dict.fromkeys(("raw", "top-p", "shift", "base 10"), ("fix",)),
    }
    if kind in expected:
        assert told["action"] in expected[kind], told["reason"]
    if told["action"] == "fix":
        assert told["hint"].startswith("fix that first, no estimator mends it")


@pytest.mark.slow
def test_faults_of_the_rig(tmp_path, run):
    for path in faults_of(tmp_path):
        same_everywhere(path, tmp_path, run)


def test_what_is_advised_never_looks_worse_than_what_comes_next():
    """In the trial's own numbers: mean weight, effective share and worst-case error do not all speak against it."""
    for path in EXAMPLES:
        found = audit(path)
        told, rows = found.verdict, {trial.name: trial for trial in found.trials}
        mine, other = rows[told.use], rows[told.runner_up.name]
        n = found.recommendation.n
        assert math.exp(mine.all.log_mean_weight) == pytest.approx(told.choice.mean_weight, rel=1e-3)
        assert mine.all.effective_share == pytest.approx(told.choice.effective, rel=1e-3)
        worse = (
            abs(mine.all.log_mean_weight) > abs(other.all.log_mean_weight),
            mine.all.effective_share < other.all.effective_share,
            mine.limits.error(n).value > other.limits.error(n).value,
        )
        assert not all(worse), (path.stem, worse)
        if told.use == "seq_tis(2)":  # what decides is the error, and it is the smaller one
            assert not worse[2]
        else:  # what decides is what a cap on sequences would leave
            assert not worse[0]
            assert not worse[1]
