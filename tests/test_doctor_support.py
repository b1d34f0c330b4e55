"""What the doctor concludes where the records say what the sampler kept, or its likeliest tokens."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.special import log_softmax, logsumexp

from reweigh.__main__ import main
from reweigh.doctor import doctor
from reweigh.records import RecordWriter, RunInfo
from reweigh.scan.rows import Rows

VOCABULARY, TOP = 200, 8


def kept_by(log_p, rule, size):
    order = np.argsort(-log_p, -1)
    p = np.exp(np.take_along_axis(log_p, order, -1))
    if rule == "top_p":
        inside = np.cumsum(p, -1) - p < size
    elif rule == "top_k":
        inside = np.broadcast_to(np.arange(p.shape[-1]) < size, p.shape)
    else:
        inside = p >= size * p[..., :1]
    out = np.zeros_like(inside)
    np.put_along_axis(out, order, inside, -1)
    return out


def world(path, seed, rule=None, size=1.0, hot=1.0, noise=0.02, over=False, columns=("mass", "top"), rows=120):
    """Records of a sampler that cuts by a rule, at a temperature that the trainer leaves out."""
    g, out = np.random.default_rng(seed), []
    for i in range(rows):
        length = int(g.integers(20, 60))
        z = g.normal(size=(length, VOCABULARY)) * g.uniform(1.0, 3.5, (length, 1))
        log_p = log_softmax(z / hot, -1)
        inside = np.ones_like(z, bool) if rule is None else kept_by(log_p, rule, size)
        log_mu = log_softmax(np.where(inside, log_p, -np.inf), -1)
        log_pi = log_softmax(z + noise * g.normal(size=z.shape), -1)
        mass = np.minimum(logsumexp(np.where(inside, log_pi, -np.inf), -1), 0)
        if over:  # the trainer has taken it over the same tokens
            log_pi, mass = log_softmax(np.where(inside, log_pi, -np.inf), -1), np.zeros(length)
        token = (log_mu + g.gumbel(size=z.shape)).argmax(-1)
        at = (np.arange(length), token)
        row = {"sequence_id": str(i), "prompt_id": str(i // 4), "token_ids": token}
        row |= {"log_mu": log_mu[at], "log_pi": log_pi[at]}
        if "mass" in columns:
            row |= {"log_support_pi": mass, "support_ids": [np.flatnonzero(x) for x in inside]}
        if "top" in columns:
            top = np.argsort(-log_mu, -1)[:, :TOP]
            row["top_ids"] = top
            row["top_log_mu"], row["top_log_pi"] = (np.take_along_axis(x, top, -1) for x in (log_mu, log_pi))
        out.append(row)
    with RecordWriter(path, RunInfo(engine="vllm")) as writer:
        writer.write(out)
    return out


def number(found, cause, name):
    finding = next(x for x in found.causes if x.id == cause)
    return next(e for e in finding.evidence if e.name == name)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("rule", "size"), [("top_p", 0.9), ("top_p", 0.99), ("top_k", 5), ("top_k", 50), ("min_p", 0.02), ("min_p", 0.2)]
)
def test_a_cut_that_is_on_record_is_proved_with_its_exact_size(tmp_path, rule, size, seed):
    rows = world(tmp_path / "a.parquet", seed, rule, size)
    found = doctor(tmp_path / "a.parquet")
    assert found.verdict == "truncated_sampling"
    mass = np.concatenate([r["log_support_pi"] for r in rows])
    on = number(found, "truncated_sampling", "mass_on_support")
    assert 1 - on.value == pytest.approx(1 - np.exp(mass).mean(), rel=5e-3)  # some tokens may be set aside as fillers
    gap = np.concatenate([r["log_pi"] - r["log_mu"] for r in rows])
    share = 1 - ((gap - mass) ** 2).sum() / (gap**2).sum()
    assert 1 - number(found, "truncated_sampling", "left_over_support").value == pytest.approx(share, rel=1e-3)
    assert next(x for x in found.causes if x.id == "truncated_sampling").explained_share == pytest.approx(
        share, abs=0.02
    )


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("case", ["nothing is cut", "pi is over the same", "replayed"])
def test_where_no_mass_is_lost_no_cut_is_named(tmp_path, case, seed):
    rule = None if case == "nothing is cut" else "top_p"
    world(tmp_path / "a.parquet", seed, rule, 0.9, over=case == "pi is over the same")
    if case == "replayed":
        found = doctor(tmp_path / "a.parquet", rows=Rows(replay=True))
    else:
        found = doctor(tmp_path / "a.parquet")
    assert found.verdict in ("numerics", "none", "not_decided")
    assert all(x.confidence < 0.5 for x in found.causes if x.id not in ("numerics", "none"))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("hot", [0.6, 0.9, 1.1, 1.5])
def test_the_slope_between_likely_tokens_is_the_temperature(tmp_path, hot, seed):
    world(tmp_path / "a.parquet", seed, hot=hot)
    found = doctor(tmp_path / "a.parquet")
    assert found.verdict == "trainer_temperature"
    slope = number(found, "trainer_temperature", "pair_slope")
    assert slope.value == pytest.approx(hot, abs=0.01)
    assert slope.low < hot < slope.high or slope.value == pytest.approx(hot, rel=5e-3)


def test_the_slope_without_noise_is_the_temperature_to_rounding(tmp_path):
    world(tmp_path / "a.parquet", 3, hot=1.3, noise=0.0)
    assert number(doctor(tmp_path / "a.parquet"), "trainer_temperature", "pair_slope").value == pytest.approx(
        1.3, rel=1e-5
    )


def test_the_likeliest_tokens_bound_the_total_variation_and_tell_the_agreement(tmp_path):
    rows = world(tmp_path / "a.parquet", 4, hot=1.5)
    found = doctor(tmp_path / "a.parquet")
    p, q = (
        np.exp(np.concatenate([r[n] for r in rows]).astype(np.float32).astype(float))
        for n in ("top_log_mu", "top_log_pi")
    )
    tv = 0.5 * (np.abs(p - q).sum(-1) + np.abs((p - q).sum(-1)))
    assert number(found, "trainer_temperature", "least_tv").value == pytest.approx(tv.mean(), rel=1e-5)
    same = (p.argmax(-1) == q.argmax(-1)).mean()
    assert number(found, "trainer_temperature", "greedy_agreement").value == pytest.approx(same, abs=1e-3)


def test_they_do_not_mistake_other_gaps_for_a_temperature(tmp_path):
    world(tmp_path / "a.parquet", 5, noise=0.3)
    found = doctor(tmp_path / "a.parquet")
    assert all(x.confidence < 0.5 for x in found.causes if x.id == "trainer_temperature")


def test_an_audit_does_not_read_what_it_has_no_use_for(tmp_path, capsys, monkeypatch):
    world(tmp_path / "a.parquet", 6, rule="top_p", size=0.9, rows=8)
    asked = []
    iterate = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile, "iter_batches", lambda self, *a, **k: asked.append(set(k["columns"])) or iterate(self, *a, **k)
    )
    main(["audit", str(tmp_path / "a.parquet"), "--json", "--workers", "1"])
    json.loads(capsys.readouterr().out)
    assert asked
    assert not set().union(*asked) & {"support_ids", "top_ids", "top_log_mu", "top_log_pi"}
