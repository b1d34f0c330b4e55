"""Records whose truth is known: tokens really sampled from softmaxes of random contexts, with exact log-probs."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reweigh.doctor import doctor
from reweigh.doctor.diagnose import conclude, visit_tokens
from reweigh.doctor.diagnosis import NAMED
from reweigh.records.schema import BY_NAME, Origin, RunInfo, fail
from reweigh.records.table import conform
from reweigh.scan.tokens import Part

VOCABULARY = 48


def log_softmax(logits):
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def temperature(t):
    return lambda logits: log_softmax(logits / t)


def top_p(p):
    """The likeliest tokens until they have p of the mass; the others cannot be sampled."""

    def cut(logits):
        log_p = log_softmax(logits)
        order = np.argsort(-log_p, -1)
        before = np.cumsum(np.exp(np.take_along_axis(log_p, order, -1)), -1)
        inside = np.empty(log_p.shape, bool)
        np.put_along_axis(inside, order, before - np.exp(np.take_along_axis(log_p, order, -1)) < p, -1)
        return log_softmax(np.where(inside, logits, -np.inf))

    return cut


def noisy(seed, size):
    """Another proper policy nearby, as rounding makes it."""
    g = np.random.default_rng(seed)
    return lambda logits: log_softmax(logits + size * g.normal(size=logits.shape))


def world(seed=0, *, prompts=40, each=4, length=40, sample=log_softmax, mu=None, pi=log_softmax, **columns):
    """Rows of responses: each token has a context of its own, is sampled, and has both sides' log-probs.

    Args:
        seed: of contexts and sampling.
        prompts: clusters.
        each: responses to one prompt.
        length: tokens of a response; about, they vary by a third.
        sample: logits [N, V] -> log-probs that tokens are sampled from.
        mu: logits -> log-probs that the engine logs; those it samples from if None.
        pi: logits -> log-probs of the trainer.
        columns: further columns, `(row number, length, generator) -> value`.
    """
    g = np.random.default_rng(seed)
    rows = []
    for i in range(prompts * each):
        n = int(g.integers(length - length // 3, length + length // 3 + 1))
        logits = g.normal(size=(n, VOCABULARY)) * np.exp(g.uniform(-0.5, 1.6, size=(n, 1)))
        sampled = sample(logits)
        ids = (np.exp(sampled).cumsum(-1) > g.uniform(size=(n, 1))).argmax(-1)
        logged = sampled if mu is None else mu(logits)
        trained = pi(logits)
        at = (np.arange(n), ids)
        p = np.exp(trained)
        row = {
            "sequence_id": f"r{i}",
            "prompt_id": f"p{i // each}",
            "token_ids": ids,
            "log_mu": logged[at],
            "log_pi": trained[at],
            "entropy_pi": -np.where(p > 0, p * np.where(p > 0, trained, 0.0), 0.0).sum(-1),
        }
        rows.append({**row, **{name: f(i, n, g) for name, f in columns.items()}})
    return rows


def every_column(seed=0, **options):
    """A world with all columns that the doctor reads."""
    columns = {
        "step": lambda i, n, g: i % 5,
        "env": lambda i, n, g: ("code", "maths", None)[i % 3],
        "prompt_length": lambda i, n, g: 7 + i % 11,
        "mask": lambda i, n, g: np.arange(n) % 9 != 4,
        "versions": lambda i, n, g: np.where(np.arange(n) < n // 2, max(i % 5 - i % 2, 0), i % 5),
        "trainer_version": lambda i, n, g: i % 5,
        "turns": lambda i, n, g: (np.arange(n) + 4) // 9,
        "pack_index": lambda i, n, g: i // 3,
    }
    rows = world(seed, pi=noisy(seed + 1, 0.05), **{**columns, **options})
    g = np.random.default_rng(seed + 2)
    for row in rows:
        for name, of in (("log_pi_repeat", "log_pi"), ("log_mu_prefill", "log_mu")):
            row[name] = np.minimum(row[of] + 0.01 * g.normal(size=len(row[of])), 0.0)
    return rows


def table(rows):
    """As an Arrow table, with whatever values there are: nothing is checked."""
    names = [name for name in BY_NAME if any(name in row for row in rows)]
    return pa.table({name: pa.array([_plain(row.get(name)) for row in rows], BY_NAME[name].type) for name in names})


def _plain(value):
    return value.tolist() if isinstance(value, np.ndarray) else value


def write(path, rows, *, row_group=1 << 20, info=None):
    """To a Parquet file."""
    whole = rows if isinstance(rows, pa.Table) else table(rows)
    metadata = (info or RunInfo()).to_metadata()
    pq.write_table(whole.replace_schema_metadata(metadata), path, row_group_size=row_group)
    return str(path)


def tokens(rows):
    """The doctor's tokens of good rows."""
    (piece,) = Part(conform(table(rows), Origin("here", 0), fail), Origin("here", 0)).pieces()
    return piece


def visited(rows):
    return visit_tokens(tokens(rows))


def diagnosed(rows, info=None, baseline=None):
    """Diagnosis of good rows, without a file."""
    return conclude(visited(rows), info or RunInfo(), baseline)


def diagnosis(tmp_path, rows, **options):
    """Diagnosis of any rows, by way of a file; checked to be what programs may rely on."""
    found = doctor(write(tmp_path / "records.parquet", rows), **options)
    check(found)
    return found


def check(found):
    """The laws that every diagnosis keeps."""
    document = found.to_dict()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    ids = [one.id for one in found.causes]
    assert len(set(ids)) == len(ids)
    for one in found.causes:
        assert 0 <= one.confidence <= 1
        assert one.explained_share is None or math.isnan(one.explained_share) or 0 <= one.explained_share <= 1
        assert "general" in one.fix
        for e in one.evidence:
            assert e.meaning
            assert (e.low is None) == (e.high is None)
            assert e.low is None or math.isnan(e.value) or e.low <= e.value <= e.high
    if found.decided:
        assert found.causes[0].id == found.verdict
        assert found.causes[0].confidence >= NAMED
        assert found.verdict not in found.ruled_out
    else:
        assert all(one.confidence < NAMED for one in found.causes)
        assert len(found.causes) <= 3
    for doubt in found.cannot_tell:
        assert doubt.reason
        assert doubt.id not in {one.id for one in found.causes if one.confidence >= NAMED}
    for cut in found.slices.values():
        for one in cut.values():
            check(one)


def assert_same(a, b, tolerance=1e-9, at=""):
    """Equal documents; numbers to a relative tolerance."""
    if isinstance(a, dict):
        assert list(a) == list(b), f"{at}: {list(a)} {list(b)}"
        for key, x in a.items():
            assert_same(x, b[key], tolerance, f"{at}/{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), f"{at}: {a} {b}"
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, tolerance, f"{at}/{i}")
    elif isinstance(a, float) and isinstance(b, float):
        assert abs(a - b) <= tolerance * max(1.0, abs(a), abs(b)), f"{at}: {a} {b}"
    else:
        assert a == b, f"{at}: {a!r} {b!r}"
