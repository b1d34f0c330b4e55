"""The planner: closed forms against Monte Carlo and given tables, records beside the model, and the command."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from reweigh import Batch, geo_rs, k3_rs, prefix_tis, seq_is, seq_mis, seq_tis, snis, token_is, token_mis, token_tis
from reweigh.__main__ import main
from reweigh.estimators import weigh
from reweigh.levels import SEQUENCE, TURN
from reweigh.named import turn_tis
from reweigh.plan import Band, MixedRatio, expect, length_band, plan, plan_records
from reweigh.plan.measured import WeightTally
from reweigh.plan.model import figure
from reweigh.plan.run import defaults
from reweigh.records import RecordWriter, RunInfo
from reweigh.theory.laws import LogNormalRatio
from reweigh.transforms import Clip, Screen

EXAMPLES = Path(__file__).parents[1] / "examples" / "records"


def sampled(kl, lengths, n=3000, seed=0, turns=None):
    """A batch whose token log ratios are independent N(-kl, 2 kl): what the model supposes."""
    g = torch.Generator().manual_seed(seed)
    width = max(lengths)
    length = torch.tensor(lengths).repeat_interleave(n)
    mask = torch.arange(width)[None] < length[:, None]
    l = torch.randn(len(length), width, generator=g, dtype=torch.float64) * math.sqrt(2 * kl) - kl
    turn = None if turns is None else (torch.arange(width) * turns // width).expand_as(l)
    log_mu = torch.full_like(l, -1.0)
    return Batch.padded(log_mu + torch.where(mask, l, 0), log_mu, mask, turn=turn)


def clustered_error(values, owner):
    """Mean and its standard error, where the units of one sequence are one draw."""
    sums = np.bincount(owner, values)
    counts = np.bincount(owner)
    mean = sums.sum() / counts.sum()
    return mean, math.sqrt(((sums - mean * counts) ** 2).sum()) / counts.sum()


ESTIMATORS = {
    "token_tis": token_tis(1.05),
    "token_mis": token_mis(0.9, 1.1),
    "prefix_tis": prefix_tis(1.2),
    "seq_is": seq_is(),
    "seq_tis": seq_tis(2.0),
    "two-sided clip": weigh(SEQUENCE, Clip(0.7, 1.5)),
    "seq_mis": seq_mis(0.5, 2.0),
    "screen": weigh(SEQUENCE, Screen(0.5, 2.0)),
    "screen and ratio": weigh(SEQUENCE, Screen(0.5, 2.0)) * seq_is(),
    "geo": geo_rs(0.99, 1.005),
    "geo and tokens": geo_rs(0.99, 1.005) * token_tis(1.05),
    "length band": length_band(2e-3, 1.5 * math.sqrt(4e-3)),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_closed_forms_against_monte_carlo(name):
    """The estimator itself on draws of the model; five standard errors of the draws, clustered by sequence."""
    kl, lengths = 2e-3, [24, 96, 150]
    batch = sampled(kl, lengths)
    w = ESTIMATORS[name](batch)
    law = MixedRatio.of_lengths(kl, [(t, 1 / 3) for t in lengths])
    found = expect(ESTIMATORS[name], law)
    owner = np.arange(batch.layout.num_seqs)
    if w.unit == "token":
        owner = np.broadcast_to(owner[:, None], w.valid.shape)
    valid = w.valid.numpy()
    weight = w.per_unit.numpy()
    values = {"kept": w.keep, "capped": w.bounded, "retained": weight, "square": weight**2}
    # the mean of 64 prefixes in place of 24 to 150, and tokens of a sequence that were taken as independent of its mean
    slack = {"prefix_tis": 0.004, "geo and tokens": 1e-3}.get(name, 1e-12)
    for what, x in values.items():
        mean, error = clustered_error(np.asarray(x, float)[valid], owner[valid])
        assert abs(mean - getattr(found, what)) <= 5 * error + slack, what
    assert found.ess == pytest.approx(found.retained**2 / found.square)


def test_turns_against_monte_carlo():
    batch = sampled(5e-3, [120], turns=4)
    w = turn_tis(1.5)(batch)
    tally = WeightTally.of(w).expected()
    found = expect(turn_tis(1.5), MixedRatio.of_lengths(5e-3, [(120, 1.0)]), turns=4)
    assert WeightTally.of(w).units == 4 * 3000
    for what in ("capped", "retained", "square"):
        assert getattr(tally, what) == pytest.approx(getattr(found, what), abs=5 * 0.6 / math.sqrt(12_000))
    assert expect(turn_tis(1.5), MixedRatio.of_lengths(5e-3, [(120, 1.0)])) is None
    assert TURN.name == "turn"


def test_snis_has_mean_one_and_the_share_of_importance_sampling():
    law = MixedRatio.of_lengths(1e-3, [(256, 1.0)])
    found = expect(snis(), law)
    assert (found.kept, found.retained) == (1, 1)
    assert (
        found.ess == pytest.approx(LogNormalRatio.of_length(1e-3, 256).ess_fraction) == pytest.approx(0.60, abs=0.005)
    )


def test_what_has_no_closed_form_says_so():
    law = MixedRatio.of_lengths(1e-3, [(256, 1.0)])
    for estimator in (k3_rs(0.01), geo_rs(0.99, 1.01) * seq_tis(2.0), seq_tis(2.0) * seq_is(), seq_is() * prefix_tis()):
        assert expect(estimator, law) is None, estimator
    assert expect(k3_rs(0.01) * token_is(), law) is None


# KL a token, length, E min(r, 2), effective share, dropped by 0.999-1.001 and by 0.99-1.01: the research table
TABLE = [
    (1e-4, 1024, 0.98, 0.81, 0.03, 0.0),
    (1e-4, 16384, 0.50, 0.04, 0.0, 0.0),
    (1e-3, 256, 0.91, 0.60, 0.74, 0.001),
    (1e-3, 1024, 0.64, 0.13, 0.58, 0.0),
    (1e-3, 4096, 0.21, 3e-4, 0.50, 0.0),
    (2e-3, 4096, 0.06, 8e-8, 0.85, 0.0),
    (5e-3, 1024, 0.15, 4e-5, 0.93, 0.05),
    (1e-2, 1024, 0.03, 1e-9, 0.99, 0.50),
]


@pytest.mark.parametrize(("kl", "length", "retained", "ess", "narrow", "wide"), TABLE)
def test_the_table(kl, length, retained, ess, narrow, wide):
    (at,) = plan(kl, [length]).at
    assert at.row("seq_tis(2)").expected.retained == pytest.approx(retained, abs=0.0051)
    assert at.row("seq_is").expected.ess == pytest.approx(ess, rel=0.5, abs=0.0051)
    assert at.row("geo_rs(0.999, 1.001)").expected.dropped == pytest.approx(narrow, abs=0.0051)
    assert at.row("skyrl geometric 0.99-1.01").expected.dropped == pytest.approx(wide, abs=0.0051)


def test_popular_defaults_are_what_their_profiles_compute():
    found = {(m.framework, m.name): m.formula for m in defaults()}
    assert found["trl", "sequence mask 3.0"] == "w = r 1{r <= 3}"
    assert found["verl", "token 2.0"] == "w = min(r_t, 2)"
    assert found["nemo-rl", "seq-mask-tis 0.999-1.002"] == "w = r_t * 1{0.999 <= g <= 1.002}"
    assert "1{0.5 <= g <= 5}" in found["openrlhf", "seq-mask-tis 0.5-5.0"]
    assert found["skyrl", "geometric 0.99-1.01"] == "w = 1{0.99 <= g <= 1.01}"
    (at,) = plan(1e-3, [4096]).at
    assert all(row.expected is not None for row in at.defaults)


@pytest.mark.parametrize("length", [16, 512, 30_000])
def test_a_length_aware_band_keeps_its_share_at_every_length(length):
    band = Band.keeping(0.9, kl=1e-3, length=length)
    law = LogNormalRatio.of_length(1e-3, length)
    assert law.geo_accept(band.low, band.high, length) == pytest.approx(0.9, abs=0.01)
    exact = expect(length_band(1e-3, band.width), MixedRatio.of_lengths(1e-3, [(length, 1.0)]))
    assert exact.kept == pytest.approx(0.9, abs=1e-9)
    assert math.log(band.high / band.low) * math.sqrt(length) == pytest.approx(2 * band.width, rel=0.02)


def test_the_band_as_options_of_frameworks():
    band = Band.keeping(0.95, kl=1e-3, length=4096)
    options = band.options()
    assert band.code == "geo_rs(0.99763, 1.00037)"
    assert options["skyrl"] == {
        "sequence_mask_metric": "geometric",
        "geo_mask_low": 0.99763,
        "geo_mask_high": 1.00037,
    }
    low, high = map(float, options["verl"]["rollout_rs_threshold"].split("_"))  # on mu/pi there
    assert (1 / high, 1 / low) == pytest.approx((band.low, band.high), rel=1e-9)
    assert "trl" not in options  # has none


def test_the_model_is_judged_as_records_are():
    told = {
        (kl, t): plan(kl, [t]).at[0].advice
        for kl, t in ((1e-6, 100), (1e-4, 2048), (1e-3, 4096), (4e-3, 500), (2e-2, 30), (2e-2, 4096))
    }
    actions = [(one.level, one.action, one.use) for one in told.values()]
    assert actions == [
        ("ok", "nothing", ""),
        ("ok", "small", "seq_tis(2)"),
        ("ok", "small", "token_tis(2)"),
        ("warn", "correct", "token_tis(2)"),
        ("warn", "correct", "seq_tis(2)"),
        ("fail", "reduce", "token_tis(2)"),
    ]
    (at,) = plan(1e-3, [4096]).at
    assert "keeps ~0.03% effective" in at.advice.reason
    assert "seq_tis(2) would leave 0.21" in at.advice.hint
    assert not at.trusted
    assert "no gap" in plan(0.0, [4096]).at[0].advice.reason


def test_what_the_model_does_not_know_is_marked():
    assert (figure(0.2143, 0.9).value, figure(0.2143, 1.1).value) == (0.2143, 0.2)
    (small,) = plan(1e-4, [1024]).at
    (large,) = plan(1e-3, [16_384]).at
    assert all(c.cap.trust == "good" for c in small.caps)
    assert {c.rule for c in large.caps if c.cap.trust == "refused"} == {"post", "post_batch", "cubic"}
    assert large.row("seq_is").figures()["ess"].below == 1e-4
    assert large.row("token_tis(2)").figures()["ess"].trust == "good"


def test_caps_are_those_of_the_lab():
    (at,) = plan(1e-3, [300], batch=64).at
    caps = {c.rule: c.cap.value for c in at.caps}
    law = LogNormalRatio.of_length(1e-3, 300)
    from reweigh.caps import Balance, Cubic, Post, PostBatch, Tradeoff, mis_balance_cap

    assert caps == pytest.approx(
        {
            "balance": Balance(n=64).of_law(law),
            "mis_balance": mis_balance_cap(law, 64),
            "tradeoff": Tradeoff(n=64).of_law(law),
            "sqrt_n": 8.0,
            "post": Post().of_chi2(law.chi2),
            "post_batch": PostBatch(n=64).of_chi2(law.chi2),
            "cubic": Cubic(n=64).of_chi2(law.chi2),
        }
    )


def written(path, kl, lengths, n=400, spread=0.0, shift=0.0):
    """Records with Gaussian gaps; `spread`: squared coefficient of variation of a sequence's own KL."""
    g = np.random.default_rng(0)
    rows = []
    for i in range(n):
        rate = kl * (g.gamma(1 / spread, spread) if spread else 1.0)
        t = lengths[i % len(lengths)]
        gap = math.sqrt(2 * rate) * g.normal(size=t) - rate + shift
        log_mu = np.full(t, -2.0)
        rows.append({"sequence_id": str(i), "log_mu": log_mu.astype("f4"), "log_pi": (log_mu + gap).astype("f4")})
    with RecordWriter(path, RunInfo()) as writer:
        writer.write(rows)
    return str(path)


@pytest.mark.slow
def test_records_give_back_what_they_were_made_of(tmp_path):
    even = plan_records(written(tmp_path / "even.parquet", 1e-3, [64, 256])).measured
    uneven = plan_records(written(tmp_path / "uneven.parquet", 1e-3, [64, 256], spread=0.5)).measured
    tokens = 400 * 160
    assert even.kl == pytest.approx(1e-3, abs=5 * 1e-3 * math.sqrt(2 / tokens))
    assert even.each.spread() == pytest.approx(0, abs=0.02)
    assert uneven.each.spread() == pytest.approx(0.5, abs=0.2)
    assert even.each.variance(1e-3) == pytest.approx(2e-3, abs=5 * 2e-3 * math.sqrt(2 / 400))
    lengths = even.each.grouped()
    assert (len(lengths), lengths[0][0], lengths[-1][0]) == (24, 64, 256)
    assert sum(share for _, share in lengths) == pytest.approx(1)
    assert even.law().length == pytest.approx(160)
    assert uneven.law().chi2 > even.law().chi2


def test_the_data_column_is_the_estimator_on_the_records(tmp_path):
    path = written(tmp_path / "a.parquet", 2e-3, [100, 30], n=300)
    (at,) = plan_records(path).at
    from reweigh.records import read_batches

    (part,) = read_batches(path)
    for name, estimator in (("seq_tis(2)", seq_tis(2.0)), ("geo_rs(0.99, 1.01)", geo_rs(0.99, 1.01)), ("snis", snis())):
        w, found = estimator(part.batch), at.row(name).on_data
        assert found.retained == pytest.approx(float(w.per_unit.double().mean()), rel=1e-5)
        assert found.dropped == pytest.approx(1 - float(w.num_kept) / float(w.num_units), abs=1e-9)
        # and the model, made of the same records, is near: five standard errors of 300 sequences
        expected = at.row(name).expected
        assert found.retained == pytest.approx(expected.retained, abs=5 * math.sqrt(expected.square / 300))
    band = at.band.band
    kept = length_band(band.kl, band.width)(part.batch)
    assert at.band.on_data == pytest.approx(float(kept.num_kept / kept.num_units), abs=1 / 300)


@pytest.mark.slow
def test_records_in_parts_add_up(tmp_path, monkeypatch):
    path = written(tmp_path / "a.parquet", 2e-3, [100, 30, 7], n=90)
    whole = plan_records(path).to_dict()
    monkeypatch.setattr("reweigh.scan.run.BATCH_TOKENS", 500)
    parts = plan_records(path).to_dict()
    assert parts["records"]["sequences"] == whole["records"]["sequences"] == 90
    for a, b in zip(whole["lengths"][0]["modes"], parts["lengths"][0]["modes"], strict=True):
        assert b["on_data"] == (None if a["on_data"] is None else pytest.approx(a["on_data"], rel=1e-6))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transformers_bfloat16", "vllm_bfloat16"])
def test_on_real_records_the_model_is_near(name):
    """64 sequences each: an honest model of numerics alone is within five standard errors on every sequence mode."""
    found = plan_records(EXAMPLES / f"{name}.parquet", batch=64)
    (at,) = found.at
    assert found.measured.sequence.n == 64
    for row in (*at.modes, *at.defaults):
        if row.mode.estimator.unit == "sequence":
            assert row.on_data.retained == pytest.approx(row.expected.retained, abs=5 * math.sqrt(0.25 / 64)), (
                row.mode.name
            )
    assert {c.rule for c in at.caps if c.on_data is None} == {"mis_balance"}


def test_a_fault_of_the_records_comes_first(tmp_path):
    found = plan_records(written(tmp_path / "off.parquet", 1e-3, [64], shift=0.05))
    assert (found.at[0].advice.level, found.at[0].advice.action) == ("fail", "fix")
    assert found.at[0].advice == found.verdict
    far = plan_records(str(tmp_path / "off.parquet"), [4096]).at[0].advice
    assert (far.action, far.reason) == ("fix", found.verdict.reason)


@pytest.mark.parametrize("length", [[], ["--length", 4096]])
def test_one_placeholder_whose_ratio_no_float_holds(tmp_path, capsys, length):
    log_mu = np.full(64, -1.0, "f4")
    log_mu[7] = -9999.0
    with RecordWriter(tmp_path / "a.parquet", RunInfo()) as writer:
        log_pi = np.full(64, -1.01, "f4")
        writer.write([{"sequence_id": str(i), "log_mu": log_mu, "log_pi": log_pi} for i in range(24)])
    code, out, err = run(capsys, "--from", tmp_path / "a.parquet", *length)
    assert (code, err) == (0, "")
    assert out.startswith("fail: ")
    assert "fix that first" in out


@pytest.mark.parametrize("kl", [1e-12, 3, 10, 800, 1e6, 1e200])
@pytest.mark.parametrize("length", [1, 1000])
def test_any_gap_can_be_planned_for(capsys, kl, length):
    code, out, err = run(capsys, "--kl", kl, "--length", length)
    assert (code, err) == (0, "")
    assert "Length-aware band" in out


def run(capsys, *args):
    code = main(["plan", *map(str, args)])
    return code, *capsys.readouterr()


def test_the_command_says_the_verdict_first(capsys):
    code, out, err = run(capsys, "--kl", "1e-3", "--length", "4096", "--batch", "1024")
    assert (code, err) == (0, "")
    assert out.startswith("ok: small: at KL 0.001 and 4,096 tokens a sequence product keeps ~0.03% effective")
    assert "\x1b" not in out
    rows = {line.split("  ")[0]: line.split() for line in out.splitlines()}
    assert rows["geo_rs(0.999, 1.001)"][-5:] == ["50%", "0%", "50%", "100%", "50%"]
    assert rows["openrlhf seq-mask-tis 0.5-5.0"][3:6] == ["token", "0%", "0%"]
    assert rows["post"][1] == "refused"
    assert "rollout_rs_threshold='0.9996" in out
    assert max(len(line) for line in out.splitlines() if line.startswith(("geo", "seq", "trl", "verl "))) <= 120


def test_a_sweep_has_a_line_a_length(capsys):
    code, out, _ = run(capsys, "--kl", "1e-3", "--length", "256:1000", "--length", 4096)
    assert code == 0
    lines = [line.split()[0] for line in out.splitlines() if line[:6].strip().replace(",", "").isdigit()]
    assert lines == ["256", "512", "1,000", "4,096"]
    assert "…" not in out


def test_quiet_is_a_sentence_a_length(capsys):
    code, out, _ = run(capsys, "--kl", "1e-3", "--length", "256:1024", "--quiet")
    assert code == 0
    assert [line[:35] for line in out.splitlines()] == [
        "ok: small: at KL 0.001 and 256 toke",
        "ok: small: at KL 0.001 and 512 toke",
        "ok: small: at KL 0.001 and 1,024 to",
    ]


@pytest.mark.parametrize("kl", ["0", "1e-3", "3"])
def test_json_is_versioned_and_has_no_nan(capsys, kl):
    code, out, _ = run(capsys, "--kl", kl, "--length", "64", "--length", "100000", "--turns", "4", "--format", "json")
    assert code == 0
    document = json.loads(out, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert (document["reweigh_plan"], document["batch"], document["records"]) == (1, 1024, None)
    for at in document["lengths"]:
        assert set(at) == {
            *("length", "kl", "s2", "chi2", "trusted", "advice", "modes", "defaults", "band", "caps"),
        }
        assert "turn_tis(2)" in {row["name"] for row in at["modes"]}
        for row in (*at["modes"], *at["defaults"]):
            assert set(row["model"]) == {"dropped", "capped", "retained", "over_kept", "ess"}
            for found in row["model"].values():
                assert found["trust"] in ("good", "rough", "refused")
                assert (found["value"] is None) == (found["trust"] == "refused")


def test_json_of_records(capsys):
    code, out, _ = run(capsys, "--from", EXAMPLES / "vllm_fp8_kv.parquet", "--format", "json")
    assert code == 0
    document = json.loads(out, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert document["records"]["sequences"] == 64
    assert document["records"]["length"]["most"] == 128
    assert document["lengths"][0]["modes"][0]["on_data"]["retained"] == pytest.approx(0.993, abs=0.001)
    assert document["lengths"][0]["advice"]["action"] == "reduce"


def test_records_at_another_length(capsys):
    code, out, _ = run(capsys, "--from", EXAMPLES / "vllm_bfloat16.parquet", "--length", 8192)
    assert code == 0
    assert out.startswith("warn: worth correcting: at KL 0.0014 and 8,192 tokens")
    assert "use token_tis(2)" in out
    assert "dropped*" not in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "error: plan: a KL or records are needed, got neither\nhint: --kl 1e-3 --length 4096"),
        (["--kl", "1e-3"], "error: plan: at least one length is needed\nhint: --length 4096"),
        (
            ["--kl", "-1e-3", "--length", "10"],
            "error: plan: kl must be >= 0 and finite, nats a token, got -0.001\nhint: ",
        ),
        (["--kl", "nan", "--length", "10"], "kl must be >= 0 and finite, nats a token, got nan"),
        (["--kl", "1e-3", "--length", "0"], "length must be >= 1"),
        (["--kl", "1e-3", "--length", "9:8"], "a:b must rise, got '9:8'"),
        (["--kl", "1e-3", "--length", "long"], "length must be a number of tokens or a:b, got 'long'"),
        (["--kl", "1e-3", "--length", "9", "--batch", "0"], "batch must be >= 1, sequences in a step, got 0"),
        (["--kl", "1e-3", "--length", "9", "--keep", "1"], "keep must be over 0 and under 1, got 1"),
        (["--kl", "1e-3", "--length", "9", "--turns", "0"], "turns must be >= 1"),
        (["--from", "nowhere.parquet"], "nowhere.parquet: no such file or folder"),
        (["--from", "a.parquet", "--kl", "1e-3"], "records have their own KL and turns, got --kl beside --from"),
    ],
)
def test_errors(capsys, args, message):
    code, out, err = run(capsys, *args)
    assert (code, out) == (2, "")
    assert message in err


def test_records_without_a_token_and_with_a_wrong_one(tmp_path, capsys):
    empty = tmp_path / "empty.jsonl"
    empty.write_text(json.dumps({"sequence_id": "a", "log_mu": [-1.0], "log_pi": [-1.0], "mask": [False]}) + "\n")
    code, _, err = run(capsys, "--from", empty)
    assert code == 2
    assert f"plan: no token counts in {empty}" in err
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text(json.dumps({"sequence_id": "a", "log_mu": [0.5, -1.0], "log_pi": [-1.0, -1.0]}) + "\n")
    code, _, err = run(capsys, "--from", wrong)
    assert code == 2
    assert "log_mu" in err
    assert "wrong.jsonl:1: log_mu[0] = 0.5 is positive" in err


def test_bad_bands():
    with pytest.raises(ValueError, match=r"length_band: kl must be >= 0 and finite, got -0.1"):
        length_band(-0.1, 0.2)
    with pytest.raises(ValueError, match="length_band: width must be >= 0 and finite, got inf"):
        length_band(0.1, math.inf)
