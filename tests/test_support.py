"""What the sampler could have sampled: its columns in records, ratios over its support, and their log-probs."""

import json
import math
from dataclasses import replace
from importlib import import_module

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from test_probe import END, PROMPTS, folder, tiny  # noqa: F401 - a fixture

from reweigh import centred, num_tokens, policy_gradient, token_tis
from reweigh.__main__ import main
from reweigh.dumps import formats
from reweigh.logits import linear_candidate_log_probs, linear_log_probs, linear_support_log_probs
from reweigh.probe.engine import SamplingSettings
from reweigh.probe.engine_transformers import TransformersEngine
from reweigh.probe.scorer import Response, Scorer
from reweigh.records import ROLLOUT_REQUIRED, RecordWriter, RunInfo, read_batches, read_info, read_tables

ROW = {
    "sequence_id": "a",
    "token_ids": [3, 4],
    "log_mu": [-1.0, -0.5],
    "log_pi": [-1.1, -0.5],
    "support_ids": [[3, 5, 9], None],
    "log_support_pi": [-0.1, 0.0],
    "top_ids": [[3, 5], [4, 1]],
    "top_log_mu": [[-1.0, -2.0], [-0.5, -3.0]],
    "top_log_pi": [[-1.1, -2.0], [-0.5, -math.inf]],
}
NONE = {"sequence_id": "b", "token_ids": [7], "log_mu": [-1.0], "log_pi": [-1.0]}


# records ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.jsonl.gz"])
def test_they_are_read_as_they_were_written(tmp_path, name):
    with RecordWriter(tmp_path / name) as writer:
        writer.write([ROW, NONE])
    (part,) = read_batches(tmp_path / name)
    part.check()
    support = part.many("support_ids")
    assert support.values.tolist() == [3, 5, 9]
    assert (support.counts.tolist(), support.there.tolist()) == ([3, 0, 0], [True, False, False])
    found = part.candidates
    assert found.ids.tolist() == [[3, 5], [4, 1], [-1, -1]]
    torch.testing.assert_close(found.log_mu, torch.tensor([[-1.0, -2], [-0.5, -3], [-math.inf, -math.inf]]))
    assert found.log_pi[1, 1] == -math.inf
    assert part.tokens("log_support_pi")[:2].tolist() == [np.float32(-0.1), 0]
    with pytest.raises(ValueError, match=r"RecordBatch.tokens: top_ids has many values a token\nhint: use .many"):
        part.tokens("top_ids")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"support_ids": [[5, 9], None]}, "support_ids[0] has 2 ids without 3, which was sampled there"),
        ({"support_ids": [[3, 5], [1, 2]]}, "support_ids[1] has 2 ids without 4, which was sampled there"),
        ({"support_ids": [[3, 3], None]}, "support_ids[0] names an id twice"),
        ({"support_ids": [3, 4]}, "support_ids must be a list of lists, one a token, got [3, 4]"),
        ({"support_ids": [[3]]}, "support_ids has 1 values, log_mu has 2"),
        ({"top_ids": [[3, 5], [4, -2]]}, "top_ids[1] has the id -2"),
        ({"top_ids": [[3, 5, 6], [4, 1]]}, "top_log_mu[0] has 2 values, top_ids has 3"),
        ({"top_log_mu": [[-2.0, -1.0], [-0.5, -3.0]]}, "top_log_mu[0] has a likelier token after a less likely one"),
        ({"top_log_mu": [[-1.0, -2.0], [-0.1, -0.2]]}, "top_log_mu[1] adds up to a mass of 1.7"),
        ({"top_log_pi": [[-1.0, -2.0], [-0.1, 0.4]]}, "top_log_pi[1] has 0.4"),
        ({"top_log_pi": [[-1.0, math.nan], [-0.1, -2.0]]}, "top_log_pi[0] has nan"),
        ({"log_support_pi": [0.3, 0.0]}, "log_support_pi[0] = 0.3 is positive"),
    ],
)
def test_what_cannot_be_is_named_with_row_and_place(tmp_path, columns, message):
    with RecordWriter(tmp_path / "a.parquet") as writer:
        writer.write([NONE])
        with pytest.raises(ValueError, match="row 1: ") as error:
            writer.write([NONE, ROW | columns])
    assert message in str(error.value)
    assert "\nhint: " in str(error.value)
    assert pq.read_metadata(tmp_path / "a.parquet").num_rows == 1  # nothing that was there is lost


def test_off_the_mask_anything_may_stand(tmp_path):
    with RecordWriter(tmp_path / "a.parquet") as writer:
        writer.write([ROW | {"mask": [False, True], "support_ids": [[5, 9], None]}])


def test_records_of_version_1_are_read(tmp_path):
    path = tmp_path / "a.parquet"
    with RecordWriter(path, RunInfo(schema_version=1, engine="vllm")) as writer:
        writer.write([NONE])
    assert read_info(path).schema_version == 1
    (part,) = read_batches(path)
    assert part.candidates is None


def test_candidates_of_records_centre_a_loss(tmp_path):
    g = np.random.default_rng(0)
    logits = [2 * g.normal(size=(200, 12)) for _ in range(2)]
    log_mu, log_pi = (x - np.logaddexp.reduce(x, 1, keepdims=True) for x in logits)
    token = (log_mu + g.gumbel(size=log_mu.shape)).argmax(1)
    top = np.argsort(-log_mu, 1)[:, :5]
    at = (np.arange(200), token)
    row = {"sequence_id": "a", "token_ids": token, "log_mu": log_mu[at], "log_pi": log_pi[at], "top_ids": top}
    for name, side in (("top_log_mu", log_mu), ("top_log_pi", log_pi)):
        row[name] = np.take_along_axis(side, top, 1)
    with RecordWriter(tmp_path / "a.parquet") as writer:
        writer.write([row])
    (part,) = read_batches(tmp_path / "a.parquet")
    batch = replace(part.batch, candidates=part.candidates)
    weights = centred(token_tis(2.0))(batch)
    heads = torch.from_numpy(row["top_log_pi"]).float().requires_grad_()
    loss = policy_gradient(batch.log_pi, torch.ones(200), weights, num_tokens(batch), candidates=heads)
    loss.backward()
    assert heads.grad.abs().sum() > 0


# ratios over the support --------------------------------------------------------------------------------------------


def cut(path, share=0.9, rows=60, length=40, **more):
    """Records of an engine that samples by top-p and a trainer that is the same but for rounding."""
    g, out = np.random.default_rng(0), []
    for i in range(rows):
        z = 2 * g.normal(size=(length, 30))
        log_p = z - np.logaddexp.reduce(z, 1, keepdims=True)
        order = np.argsort(-log_p, 1)
        p = np.take_along_axis(np.exp(log_p), order, 1)
        inside = np.zeros_like(p, bool)
        np.put_along_axis(inside, order, np.cumsum(p, 1) - p < share, 1)
        kept = np.where(inside, log_p, -np.inf)
        log_mu = kept - np.logaddexp.reduce(kept, 1, keepdims=True)
        token = (log_mu + g.gumbel(size=z.shape)).argmax(1)
        at = (np.arange(length), token)
        pi = z + 0.02 * g.normal(size=z.shape)
        log_pi = pi - np.logaddexp.reduce(pi, 1, keepdims=True)
        mass = np.logaddexp.reduce(np.where(inside, log_pi, -np.inf), 1)
        support = [np.flatnonzero(x).tolist() for x in inside]
        columns = {"log_mu": log_mu[at], "log_pi": log_pi[at], "log_support_pi": mass, "support_ids": support}
        out.append({"sequence_id": str(i), "prompt_id": str(i // 4), "token_ids": token, **columns} | more)
    with RecordWriter(path, RunInfo(engine="vllm", top_p=share)) as writer:
        writer.write(out)
    return path


def asked(capsys, *args):
    code = main([str(x) for x in args])
    return code, json.loads(capsys.readouterr().out)


def test_ratios_over_the_support_have_mean_1_where_those_over_all_have_the_mass(tmp_path, capsys):
    path = cut(tmp_path / "a.parquet")
    code, raw = asked(capsys, "audit", path, "--json")
    assert code == 1
    assert raw["diagnosis"]["verdict"] == "truncated_sampling"
    (cause,) = [one for one in raw["diagnosis"]["causes"] if one["id"] == "truncated_sampling"]
    assert cause["evidence"][0]["name"] == "mass_on_support"
    (part,) = read_batches(path)
    gap = part.batch.log_ratio.numpy().astype(float)
    over = gap - part.tokens("log_support_pi")
    assert cause["explained_share"] == pytest.approx(1 - (over**2).sum() / (gap**2).sum(), abs=1e-3)
    mass = np.concatenate([part.tokens("log_support_pi") for part in read_batches(path)])
    mean = raw["levels"]["token"]["numbers"]["mean_ratio"]
    assert (mean["value"] or mean["sample"]) == pytest.approx(np.exp(mass).mean(), abs=0.01)
    code, over = asked(capsys, "audit", path, "--json", "--replay")
    assert (code, over["verdict"]["level"]) == (0, "ok")
    mean = over["levels"]["token"]["numbers"]["mean_ratio"]
    assert mean["low"] < 1 < mean["high"]
    assert mean["high"] - mean["low"] < 0.01
    for command in (("doctor", path), ("plan", "--from", path)):
        code, _ = asked(capsys, *command, "--json", "--replay")
        assert code == 0
    code, _ = asked(capsys, "table", path, "--of", "token", "--json", "--replay", "--limit", "1")
    assert code == 0


def test_replay_without_the_masses_is_refused(tmp_path, capsys):
    with RecordWriter(tmp_path / "a.parquet") as writer:
        writer.write([NONE])
    assert main(["audit", str(tmp_path / "a.parquet"), "--replay"]) == 2
    err = capsys.readouterr().err
    assert "row 0: --replay needs log_support_pi in every row" in err
    assert "hint: have the engine return what it kept" in err


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_an_engine_that_says_what_it_kept_is_matched_exactly(folder, temperature):  # noqa: F811 - the fixture
    model = tiny(folder)
    engine = TransformersEngine(model, name="tiny", dtype="float32", end_ids=[END], support=True)
    settings = SamplingSettings(temperature, 0.6, max_tokens=24, n=8)
    samples = list(engine.sample(PROMPTS, settings))
    assert all(len(one.support) == len(one.token_ids) for one in samples)
    assert all(token in ids for one in samples for token, ids in zip(one.token_ids, one.support, strict=True))
    scorer = Scorer(model, "float32", temperature, 0.6)
    scores = scorer.score([Response(PROMPTS[one.prompt], one.token_ids, one.support) for one in samples])
    log_mu = np.concatenate([one.log_mu for one in samples])
    log_pi = np.concatenate([one.log_pi for one in scores])
    mass = np.concatenate([one.log_support_pi for one in scores])
    np.testing.assert_allclose(log_pi - mass, log_mu, atol=2e-5)
    assert np.exp(mass).mean() < 0.9  # which is what ratios over all of the vocabulary are too small by


# log-probs of some tokens --------------------------------------------------------------------------------------------


def problem(dtype=torch.float64, n=12, width=40, hidden=6, k=5):
    g = torch.Generator().manual_seed(0)
    h, w = (torch.randn(a, hidden, generator=g, dtype=dtype).requires_grad_() for a in (n, width))
    ids = torch.stack([torch.randperm(width, generator=g)[:k] for _ in range(n)])
    tokens = ids[:, 2].clone()
    ids[3, 3:] = -1
    return h, w, tokens, ids


@pytest.mark.parametrize(("temperature", "softcap", "bias"), [(1.0, None, False), (0.7, 5.0, True)])
@pytest.mark.parametrize("chunk", [1 << 24, 50])
def test_they_are_those_of_the_whole_softmax(temperature, softcap, bias, chunk):
    h, w, tokens, ids = problem()
    b = torch.linspace(-1, 1, len(w), dtype=torch.float64).requires_grad_() if bias else None
    z = h @ w.T + (0 if b is None else b)
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    z = z / temperature
    kept = torch.zeros(z.shape, dtype=torch.bool)
    for row, some in zip(kept, ids, strict=True):
        row[some[some >= 0]] = True
    cut_ = z.masked_fill(~kept, -torch.inf).log_softmax(-1)
    entropy = -(cut_.exp() * cut_.masked_fill(~kept, 0)).sum(-1)
    how = {"bias": b, "temperature": temperature, "softcap": softcap, "chunk": chunk}
    over = linear_support_log_probs(h, w, tokens, ids, **how)
    leaves = [x for x in (h, w, b) if x is not None]
    g = torch.linspace(-1, 2, len(h), dtype=torch.float64)

    def same(got, want, scalar_of):
        for a, c in zip(got, want, strict=True):
            torch.testing.assert_close(a, c, rtol=1e-12, atol=1e-12)
        slopes = (torch.autograd.grad(scalar_of(*x), leaves, retain_graph=True) for x in (got, want))
        for a, c in zip(*slopes, strict=True):
            torch.testing.assert_close(a, c, rtol=1e-10, atol=1e-12)

    same(tuple(over), (cut_.gather(-1, tokens[:, None])[:, 0], entropy), lambda p, e: (g * p + 0.3 * e).sum())
    whole = z.log_softmax(-1)
    one, others = linear_candidate_log_probs(h, w, tokens, ids, **how)
    want = torch.where(ids >= 0, whole.gather(-1, ids.clamp(min=0)), -torch.inf)
    live = lambda p, o: (g * p).sum() + (torch.where(ids >= 0, o, 0) * g[:, None]).sum()  # noqa: E731
    same((one.log_p, others), (whole.gather(-1, tokens[:, None])[:, 0], want), live)


def test_places_without_a_support_and_tokens_outside_of_it():
    h, w, tokens, ids = problem()
    ids[0], ids[1, 2] = -1, -1
    found = linear_support_log_probs(h, w, tokens, ids)
    assert found.log_p[0].isnan()
    assert found.log_p[1] == -math.inf
    live = torch.ones(len(h), dtype=torch.bool)
    live[:2] = False
    (slope,) = torch.autograd.grad(torch.where(live, found.log_p, 0).sum(), h)
    assert slope.isfinite().all()
    assert (slope[:2] == 0).all()


def test_one_compiled_graph_gives_the_same(unchecked):
    assert unchecked
    h, w, tokens, ids = problem(torch.float32)
    over = import_module("reweigh.logits").linear_support_log_probs
    step = lambda h, w: over(h, w, tokens, ids).log_p.sum()  # noqa: E731
    compiled = torch.compile(step, fullgraph=True)
    for a, b in zip(*(torch.autograd.grad(f(h, w), (h, w)) for f in (step, compiled)), strict=True):
        torch.testing.assert_close(a, b)


def test_bfloat16_and_packed_shapes():
    h, w, tokens, ids = problem(torch.bfloat16)
    found = linear_support_log_probs(h.view(3, 4, -1), w, tokens.view(3, 4), ids.view(3, 4, -1))
    assert found.log_p.dtype == torch.float32
    assert found.log_p.shape == (3, 4)
    torch.testing.assert_close(found.log_p.flatten(), linear_support_log_probs(h, w, tokens, ids).log_p)
    all_ids = torch.arange(len(w)).expand(len(h), -1)
    whole = linear_log_probs(h, w, tokens, multiply_in=torch.float32).log_p
    every = linear_support_log_probs(h, w, tokens, all_ids, multiply_in=torch.float32).log_p
    torch.testing.assert_close(every, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature must be > 0"),
        ({"softcap": -1.0}, "softcap must be > 0"),
        ({"ids": torch.zeros(3, 2, dtype=torch.int64)}, r"ids must be \(12, 'k'\)"),
        ({"weight": torch.zeros(6, 40)}, r"weight must be \[vocabulary, 6\]"),
        ({"tokens": torch.zeros(3, dtype=torch.int64)}, r"tokens must be \(12,\)"),
    ],
)
def test_wrong_shapes_and_settings(unchecked, change, message):
    assert unchecked
    h, w, tokens, ids = problem()
    given = {"ids": ids, "weight": w, "tokens": tokens} | change
    more = {k: v for k, v in given.items() if k in ("temperature", "softcap")}
    with pytest.raises(ValueError, match=f"linear_support_log_probs: {message}"):
        import_module("reweigh.logits").linear_support_log_probs(
            h, given["weight"], given["tokens"], given["ids"], **more
        )


# dumps of servers ----------------------------------------------------------------------------------------------------


def read(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ((table, _),) = read_tables(path, required=ROLLOUT_REQUIRED, formats=formats())
    return table.to_pylist()[0]


def test_the_likeliest_tokens_of_sglang(tmp_path):
    meta = {
        "id": "a",
        "output_token_logprobs": [[-1.0, 7, None], [-2.5, 9, None]],
        "output_top_logprobs": [
            [[-0.5, 3, None], [-1.0, 7, None]],
            [[-0.7, 1, None], [-1.2, 4, None], [-2.5, 9, None]],
        ],
        "completion_tokens": 2,
    }
    row = read(tmp_path / "a.jsonl", {"text": "ab", "meta_info": meta})
    assert row["top_ids"] == [[3, 7], [1, 4]]  # 9 stands there because it was sampled
    assert row["top_log_mu"][1] == pytest.approx([-0.7, -1.2])


@pytest.mark.parametrize("form", ["chat", "completions", "offline"])
def test_the_likeliest_tokens_of_openai_servers_by_id(tmp_path, form):
    top = [{5: -0.4, 7: -1.2}, {7: -2.0, 2: -0.3, 5: -1.9}]
    tokens = [7, 7]
    if form == "chat":
        content = [
            {
                "token": f"token_id:{t}",
                "logprob": at[t],
                "top_logprobs": [{"token": f"token_id:{i}", "logprob": x} for i, x in at.items()],
            }
            for t, at in zip(tokens, top, strict=True)
        ]
        choice = {"index": 0, "message": {"content": "x"}, "logprobs": {"content": content}, "finish_reason": "stop"}
        line = {"id": "a", "object": "chat.completion", "choices": [choice], "usage": {"completion_tokens": 2}}
    elif form == "completions":
        listed = {
            "tokens": [f"token_id:{t}" for t in tokens],
            "token_logprobs": [at[t] for t, at in zip(tokens, top, strict=True)],
            "top_logprobs": [{f"token_id:{i}": x for i, x in at.items()} for at in top],
        }
        choice = {"index": 0, "text": "x", "logprobs": listed, "finish_reason": "stop"}
        line = {"id": "a", "object": "text_completion", "choices": [choice], "usage": {"completion_tokens": 2}}
    else:
        given = [{str(i): {"logprob": x, "rank": 1} for i, x in at.items()} for at in top]
        one = {"index": 0, "text": "x", "token_ids": tokens, "logprobs": given, "finish_reason": "stop"}
        line = {"request_id": "a", "prompt_token_ids": [1, 2], "outputs": [one]}
    row = read(tmp_path / "a.jsonl", line)
    assert row["token_ids"] == tokens
    assert row["top_ids"] == [[5, 7], [2, 5]]
    assert row["top_log_mu"][0] == pytest.approx([-0.4, -1.2])


def test_texts_without_ids_make_no_candidates(tmp_path):
    content = [{"token": "x", "logprob": -1.0, "top_logprobs": [{"token": "x", "logprob": -1.0}]}]
    choice = {"index": 0, "message": {"content": "x"}, "logprobs": {"content": content}, "finish_reason": "stop"}
    line = {"id": "a", "object": "chat.completion", "choices": [choice], "usage": {"completion_tokens": 1}}
    assert "top_ids" not in read(tmp_path / "a.jsonl", line)


@pytest.mark.parametrize("form", ["server", "offline", "offsets"])
def test_what_vllm_kept(tmp_path, form):
    if form == "server":
        content = [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": 0.0}]
        choice = {"index": 0, "token_ids": [7, 9], "logprobs": {"content": content}, "sampling_mask": [[7, 3], [9]]}
        line = {"id": "a", "choices": [choice | {"finish_reason": "stop"}]}
    else:
        mask = {"token_ids": [[7, 3], [9]]} if form == "offline" else {"token_ids": [7, 3, 9], "offsets": [0, 2, 3]}
        given = [{"7": {"logprob": -0.5}}, {"9": {"logprob": 0.0}}]
        one = {"index": 0, "text": "x", "token_ids": [7, 9], "logprobs": given, "sampling_mask": mask}
        line = {"request_id": "a", "prompt_token_ids": [1, 2], "outputs": [one | {"finish_reason": "stop"}]}
    row = read(tmp_path / "a.jsonl", line)
    assert row["support_ids"] == [[7, 3], [9]]
    assert "top_ids" not in row  # one a place is the sampled one


MASKED = {
    "id": "a",
    "output_token_logprobs": [[-1.0, 7, None], [-2.5, 9, None]],
    "output_token_sampling_mask": [[7, 3], [9]],
    "output_token_sampling_logprobs": [-0.75, 0.0],
    "completion_tokens": 2,
}


@pytest.mark.parametrize("server", ["generate", "chat"])
def test_what_sglang_kept_and_the_log_probs_over_it(tmp_path, server):
    line = {"text": "ab", "meta_info": MASKED}
    if server == "chat":
        content = [{"token": "a", "logprob": -1.0}, {"token": "b", "logprob": -2.5}]
        choice = {"index": 0, "message": {"content": "ab"}, "logprobs": {"content": content}, "meta_info": MASKED}
        line = {"id": "a", "choices": [choice | {"finish_reason": "stop"}], "usage": {"completion_tokens": 2}}
    row = read(tmp_path / "a.jsonl", line)
    assert row["support_ids"] == [[7, 3], [9]]
    assert row["log_mu"] == [-0.75, 0.0]  # output_token_logprobs are of the whole vocabulary


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output_token_sampling_mask": [[7, 3]]}, "has 1 lists, and 2 tokens were sampled"),
        ({"output_token_sampling_mask": [[7, 3], 9]}, "must be one list of ids a token"),
        ({"output_token_sampling_mask": [[7, 3.5], [9]]}, "output_token_sampling_mask\\[0\\] holds"),
        ({"output_token_sampling_logprobs": [-0.75]}, "has 1 values that are not one number for each of the 2 tokens"),
    ],
)
def test_masks_that_do_not_line_up(tmp_path, change, message):
    with pytest.raises(ValueError, match=f"a.jsonl:1: .*{message}"):
        read(tmp_path / "a.jsonl", {"text": "ab", "meta_info": MASKED | change})
