"""Faults are committed for real: each does to a small model's records what it says, and nothing else."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

import faults
from faults import (
    Decoder,
    EngineSpec,
    Job,
    LogSpec,
    Models,
    Options,
    Prompt,
    Row,
    Shape,
    Specs,
    TrainerSpec,
    World,
    decoder_of,
    in_format,
    keep_bits,
    prefill,
    processed,
    run_table,
    sample,
    score,
    versions,
)
from reweigh.doctor import CAUSES, doctor
from reweigh.records import RecordWriter, validate

EXACT = EngineSpec(weights="float32")
HONEST, SAME = LogSpec(), TrainerSpec()
# float32 sums of a small model, in another order
ROUNDING = 2e-4


def small_model(experts=0, seed=0):
    torch.manual_seed(seed)
    model = Decoder(Shape(40, width=32, layers=2, heads=2, kv_heads=1, hidden=48, experts=experts))
    for weight in model.parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.25)
    return model.requires_grad_(False).eval()


def small_world(experts=0):
    """Numbers for tokens, two of which stand together as a token of their own; nothing is learnt."""

    def decode(ids):
        return "".join(f"{i}," for i in ids)

    def prompt(i):
        ids = tuple((7 * i + j) % 37 + 2 for j in range(3 + i % 5))
        templates = {"same": ids, "no-begin": ids[1:], "no-header": (ids[0], ids[-1]), "other": (9, *ids)}
        return Prompt(f"p{i}", "tool" if i % 2 else "write", ids, templates, (5, 6, 7) if i % 2 else (), 6)

    prompts = tuple(prompt(i) for i in range(12))
    return World(
        "moe" if experts else "tiny",
        99,
        small_model(experts),
        merged,
        decode,
        prompts,
        end=1,
        lr=3e-3,
        max_tokens=24,
        mean_tokens=20,
        trained=2,
        steps=3,
        batch_prompts=2,
    )


def merged(text):
    """A tokenizer that writes two equal tokens as 39, which a model may sample apart."""
    ids = [int(i) for i in text.split(",") if i]
    out = []
    for i in ids:
        if out and out[-1] == i:
            out[-1] = 39
        else:
            out.append(i)
    return out


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield small_world()


def table(world, engine=EXACT, log=HONEST, trainer=SAME, **other):
    settings = {"tokens": 900, "seed": 0, "with_repeat": True, "with_prefill": True}
    specs = Specs(engine, log, trainer, **{k: other.pop(k) for k in ("training", "size") if k in other})
    return Columns(run_table(world, specs, **(settings | other)))


class Columns:
    """A table with its list columns flat."""

    def __init__(self, whole):
        self.table, self.rows = whole, whole.to_pylist()

    def __getattr__(self, name):
        values = [row[name] for row in self.rows]
        return np.concatenate([np.asarray(v) for v in values]) if isinstance(values[0], list) else np.asarray(values)

    @property
    def delta(self):
        return (self.log_pi - self.log_mu)[self.mask]

    def per_token(self, name):
        return np.repeat(getattr(self, name), [len(row["log_mu"]) for row in self.rows])


def test_without_a_fault_engine_and_trainer_agree(world):
    clean = table(world)
    assert len(clean.delta) > 500
    assert np.abs(clean.delta).max() < ROUNDING
    assert np.abs(clean.log_pi - clean.log_pi_repeat).max() < ROUNDING
    assert np.abs((clean.log_mu - clean.log_mu_prefill)[clean.mask]).max() < ROUNDING


def test_every_case_has_the_same_columns(world):
    names = set(table(world).table.schema.names)
    assert names == {
        *("sequence_id", "prompt_id", "step", "env", "prompt_length", "token_ids", "log_mu", "log_pi", "mask"),
        *("advantage", "versions", "trainer_version", "turns", "entropy_pi", "log_pi_repeat", "log_mu_prefill"),
        *("pack_index", "finish_reason"),
    }
    for fault in faults.FAULTS:
        if fault.id in ("shift", "stale_weights", "retokenisation", "dropout"):
            assert set(faults.commit(fault, world, "strong", 300, 0).table.schema.names) == names


def test_the_run_has_steps_groups_reused_prompts_and_tools(world):
    run = table(world)
    assert set(run.step) == {0, 1, 2}
    steps_of = {p: set(run.step[run.prompt_id == p]) for p in set(run.prompt_id)}
    assert any(len(steps) > 1 for steps in steps_of.values())
    assert any(len(steps) == 1 for steps in steps_of.values())
    counts = [np.sum((run.prompt_id == p) & (run.step == s)) for p, steps in steps_of.items() for s in steps]
    assert set(counts) == {4}
    assert set(run.token_ids[~run.mask]) == {5, 6, 7}
    assert set(run.finish_reason) == {"stop", "length"}


def test_versions_are_other_weights_by_real_steps(world):
    made = versions(world, 0, "policy-gradient", 1.0)
    assert len(made) == world.steps
    moved = [(b.layers[0].mlp.up_proj.weight - made[0].layers[0].mlp.up_proj.weight).abs().max() for b in made]
    assert moved[0] == 0
    assert 0 < moved[1] < moved[2]


def test_tiny_steps_leave_the_engine_where_it_was(world):
    made = versions(world, 0, "tiny-steps", 0.05)
    assert all(torch.equal(w, w.bfloat16().float()) for w in made[0].parameters())
    moved, same = 0, 0
    for a, b in zip(made[0].layers.parameters(), made[-1].layers.parameters(), strict=True):
        moved += int((a != b).sum())
        same += int(((a != b) & (a.bfloat16() == b.bfloat16())).sum())
    assert same > 0.9 * moved > 0
    gap = table(world, EngineSpec(weights="bfloat16-stored"), training="tiny-steps", size=1.0)
    by_step = [np.abs(gap.delta[gap.per_token("step")[gap.mask] == s]).mean() for s in range(3)]
    assert by_step[0] < ROUNDING / 10
    assert by_step[0] < by_step[1] < by_step[2]


def test_an_adapter_changes_only_its_projections_and_by_its_rank(world):
    made = versions(world, 0, "adapter", 1.0)
    for name, weight in made[-1].named_parameters():
        change = weight - dict(made[0].named_parameters())[name]
        if "q_proj" in name or "v_proj" in name:
            assert 0 < torch.linalg.matrix_rank(change, tol=1e-5) <= 4
        else:
            assert not change.any()


@pytest.mark.parametrize(
    ("engine", "kept"),
    [({"top_p": 0.7}, None), ({"top_k": 5}, None), ({"min_p": 0.2}, None)],
)
def test_truncation_leaves_the_log_of_the_kept_mass(world, engine, kept):
    run = table(world, replace(EXACT, **engine))
    assert run.delta.max() < ROUNDING
    assert run.delta.mean() < -0.01
    row = next(row for row in run.rows if row["step"] == 0 and row["env"] == "write" and len(row["log_mu"]) > 3)
    prompt = next(p for p in world.prompts if p.prompt_id == row["prompt_id"])
    ids = torch.tensor([[*prompt.ids, *row["token_ids"]]])
    p = world.model.logits(world.model(ids, torch.arange(ids.shape[1])[None]))[0].softmax(-1)[len(prompt.ids) - 1 : -1]
    for t in range(len(row["log_mu"])):
        ordered = p[t].sort(descending=True).values
        if "top_p" in engine:
            mass = ordered[: int((ordered.cumsum(0) - ordered < engine["top_p"]).sum())].sum()
        elif "top_k" in engine:
            mass = ordered[: engine["top_k"]].sum()
        else:
            mass = ordered[ordered >= engine["min_p"] * ordered[0]].sum()
        assert row["log_pi"][t] - row["log_mu"][t] == pytest.approx(math.log(mass), abs=2e-3)


def test_a_penalty_divides_positive_scores_and_multiplies_negative_ones():
    logits = torch.tensor([[2.0, -2.0, 1.0, -1.0]])
    seen = torch.tensor([[True, True, False, False]])
    got = processed(logits, seen, EngineSpec(repetition_penalty=2.0))
    assert torch.allclose(got, torch.tensor([[1.0, -4.0, 1.0, -1.0]]).log_softmax(-1))


def test_the_penalty_of_decoding_is_that_of_prefill(world):
    run = table(world, replace(EXACT, repetition_penalty=1.5))
    assert np.abs((run.log_mu - run.log_mu_prefill)[run.mask]).max() < ROUNDING
    assert np.abs(run.delta).mean() > 0.02


def test_raw_logging_makes_the_mean_ratio_too_large_or_too_small(world):
    cooler = table(world, replace(EXACT, temperature=0.7, logs="raw"), trainer=TrainerSpec(temperature=0.7))
    hotter = table(world, replace(EXACT, temperature=1.4, logs="raw"), trainer=TrainerSpec(temperature=1.4))
    told = table(world, replace(EXACT, temperature=0.7), trainer=TrainerSpec(temperature=0.7))
    assert np.exp(cooler.delta).mean() > 1.1
    assert cooler.delta.mean() > 0
    assert hotter.delta.mean() != 0
    assert np.abs(told.delta).max() < ROUNDING


def test_both_raw_shows_in_the_entropy_alone(world):
    run = table(world, replace(EXACT, temperature=0.5, logs="raw"))
    assert np.abs(run.delta).max() < ROUNDING
    surprise = -run.log_pi[run.mask] - run.entropy_pi[run.mask]
    assert surprise.mean() < -0.1


def test_shifts_move_log_probs_by_places(world):
    clean, right = table(world), table(world, log=LogSpec(shift=(1,)))
    left = table(world, log=LogSpec(shift=(-1,)))
    for before, after, back in zip(clean.rows, right.rows, left.rows, strict=True):
        if before["env"] == "write":
            assert after["log_mu"][1:] == before["log_mu"][:-1]
            assert back["log_mu"][:-1] == before["log_mu"][1:]
    some = table(world, log=LogSpec(shift=(-2, -1, 1, 2), shift_share=0.3))
    moved = [a["log_mu"] != b["log_mu"] for a, b in zip(clean.rows, some.rows, strict=True) if len(a["log_mu"]) > 2]
    assert 0.1 < np.mean(moved) < 0.6


def test_wrong_tokens_are_the_first_or_second(world):
    clean = table(world)
    first = table(world, log=LogSpec(other_token="first", other_share=1.0))
    second = table(world, log=LogSpec(other_token="second", other_share=1.0))
    assert (first.log_mu >= clean.log_mu).all()
    assert (first.log_mu[first.mask] > second.log_mu[second.mask]).all()


@pytest.mark.parametrize("value", [0.0, 1.0, -9999.0])
def test_placeholders_stand_on_their_share_of_tokens(world, value):
    run = table(world, log=LogSpec(placeholder=value, placeholder_share=0.1))
    assert 0.05 < np.mean(run.log_mu[run.mask] == value) < 0.16


def test_units_are_those_of_another_base_or_of_probabilities(world):
    clean, tenths = table(world), table(world, log=LogSpec(unit="base 10"))
    some = clean.mask
    assert np.allclose(tenths.log_mu[some] * math.log(10), clean.log_mu[some], atol=ROUNDING)
    shares = table(world, log=LogSpec(unit="probabilities"))
    assert np.allclose(shares.log_mu[some], np.exp(clean.log_mu[some]), atol=ROUNDING)
    assert np.array_equal(tenths.log_pi, clean.log_pi)


def test_wrong_units_are_named_by_the_doctor(world, tmp_path):
    faults.commit(faults.find("wrong_units-base-10"), world, "medium", 900, 0).write(tmp_path / "case.parquet")
    assert doctor(tmp_path / "case.parquet").verdict == "wrong_units"


def test_forced_ends_are_tokens_that_were_not_sampled(world):
    clean, run = table(world), table(world, log=LogSpec(placeholder_share=1.0, forced_end=True))
    cut = [i for i, row in enumerate(clean.rows) if row["finish_reason"] == "length"]
    assert cut
    for i in cut:
        assert run.rows[i]["token_ids"] == [*clean.rows[i]["token_ids"], world.end]
        assert run.rows[i]["log_mu"][-1] == 0.0
        assert run.rows[i]["mask"][-1]
        assert run.rows[i]["log_pi"][-1] < -0.1
    assert set(run.finish_reason) == {"stop"}


def test_a_tools_text_can_be_left_in_the_mask(world):
    zero = table(world, log=LogSpec(unmask_share=1.0))
    assert zero.mask.all()
    tool = np.isin(zero.token_ids, (5, 6, 7)) & (zero.log_mu == 0.0)
    assert tool.sum() == 3 * sum(row["turns"][-1] == 1 for row in zero.rows)
    assert (zero.log_pi[tool] < 0).all()
    shown = table(world, log=LogSpec(unmask_share=1.0, unmask_log="prefill"))
    assert np.abs(shown.delta).max() < ROUNDING


def test_retokenised_sequences_have_log_probs_of_other_ids(world):
    clean, run = table(world, tokens=4000), table(world, trainer=TrainerSpec(retokenised=1.0), tokens=4000)
    hit = 0
    for a, b in zip(clean.rows, run.rows, strict=True):
        ids = a["token_ids"]
        again = merged(world.decode(ids))
        before = next((t for t in range(len(again)) if ids[t] != again[t]), len(again))
        assert b["token_ids"] == ids[: len(again)]
        assert a["log_pi"][:before] == pytest.approx(b["log_pi"][:before], abs=ROUNDING)
        if before < len(again):
            hit += 1
            assert abs(a["log_pi"][before] - b["log_pi"][before]) > ROUNDING
    assert 0 < hit < len(clean.rows)


def test_a_sequence_in_a_pack_is_as_it_is_alone(world):
    rows = [Row((3, 4, 5), (6, 7, 8, 9)), Row((10,), (11, 12)), Row((13, 14), (15,))]
    model = world.model
    alone = score(model, rows, TrainerSpec(batch_size=1, pack=1))
    # With both leaks named but one sequence a row there is nothing to leak from.
    packed = score(model, rows, TrainerSpec(pack=3, pack_positions=False))  # mask holds; rotary positions are relative
    leaked = score(model, rows, TrainerSpec(pack=3, pack_mask=False))
    for one, two in zip(alone, packed, strict=True):
        assert one.log_pi == pytest.approx(two.log_pi, abs=ROUNDING)
    assert leaked[0].log_pi == pytest.approx(alone[0].log_pi, abs=ROUNDING)
    assert leaked[1].log_pi != pytest.approx(alone[1].log_pi, abs=1e-2)


def test_pack_index_numbers_the_rows_that_leak(world):
    run = table(world, trainer=TrainerSpec(pack=3, pack_mask=False))
    clean = table(world)
    for pack in set(run.pack_index):
        members = np.flatnonzero(run.pack_index == pack)
        assert len(members) <= 3
        assert (np.diff(members) == 1).all()
        first = run.rows[members[0]]
        assert first["log_pi"] == pytest.approx(clean.rows[members[0]]["log_pi"], abs=ROUNDING)
    assert np.abs(run.delta).max() > 0.05


@pytest.mark.parametrize(
    "trainer",
    [
        TrainerSpec(rope_base=4.0),
        TrainerSpec(rope_scale=1.5),
        TrainerSpec(position_gap=8),
        TrainerSpec(temperature=0.8),
        TrainerSpec(template="no-begin"),
        TrainerSpec(template="no-header"),
        TrainerSpec(template="other"),
    ],
    ids=str,
)
def test_another_trainer_is_another_policy_that_repeats_itself(world, trainer):
    run = table(world, trainer=trainer)
    assert np.abs(run.delta).mean() > 5e-3
    assert np.abs(run.log_pi - run.log_pi_repeat).max() < ROUNDING


def test_dropout_alone_does_not_repeat_itself(world):
    run = table(world, trainer=TrainerSpec(dropout=0.1))
    assert np.abs(run.log_pi - run.log_pi_repeat).mean() > 0.05


def test_padded_rows_take_mass_from_all_tokens(world):
    run = table(world, trainer=TrainerSpec(padded_rows=1.0))
    assert run.delta.max() < ROUNDING
    assert run.delta.mean() < -1e-3


def test_stale_weights_are_those_of_the_version_that_is_named(world):
    run = table(world, replace(EXACT, lags=(0, 2)))
    made = versions(world, 0, "policy-gradient", 1.0)
    assert set(run.versions) == {0, 1, 2}
    prompts = {p.prompt_id: p.ids for p in world.prompts}
    for row in run.rows[-8:]:
        version = row["versions"][0]
        (again,) = prefill(made[version], [Row(prompts[row["prompt_id"]], tuple(row["token_ids"]))], EXACT, Options())
        assert [x for x, m in zip(row["log_mu"], row["mask"], strict=True) if m] == pytest.approx(
            [x for x, m in zip(again, row["mask"], strict=True) if m], abs=ROUNDING
        )
    lag = (run.per_token("trainer_version") - run.versions)[run.mask]
    assert np.abs(run.delta[lag == 0]).max() < ROUNDING < np.abs(run.delta[lag == 2]).mean()


def test_what_is_not_delivered_says_that_it_is(world):
    run = table(world, replace(EXACT, delivered=False))
    assert (run.versions == run.per_token("step")).all()
    by_step = [np.abs(run.delta[run.per_token("step")[run.mask] == s]).mean() for s in range(3)]
    assert by_step[0] < ROUNDING < by_step[1] < by_step[2]


def test_a_switch_in_flight_changes_versions_inside_a_sequence(world):
    engine = replace(EXACT, lags=(2,), switch_at=8)
    fresh, stale = table(world, engine), table(world, replace(engine, keep_kv=True))
    for run in (fresh, stale):
        long = [row for row in run.rows if row["step"] == 2 and len(row["log_mu"]) > 10]
        assert long
        assert all(row["versions"][7:9] == [0, 2] for row in long)
    new = fresh.versions == fresh.per_token("step")
    assert np.abs((fresh.log_pi - fresh.log_mu)[new & fresh.mask]).max() < ROUNDING
    new = stale.versions == stale.per_token("step")
    assert np.abs((stale.log_pi - stale.log_mu)[new & stale.mask & (stale.per_token("step") > 0)]).mean() > ROUNDING


def test_a_stale_prompt_cache_shows_on_prompts_seen_before_alone(world):
    run = table(world, replace(EXACT, stale_prompts=True), size=2.0)
    first = {}
    for row in run.rows:
        first.setdefault(row["prompt_id"], row["step"])
    seen = np.asarray([row["step"] > first[row["prompt_id"]] for row in run.rows])
    gap = np.asarray([np.abs(np.subtract(r["log_pi"], r["log_mu"])[r["mask"]]).mean() for r in run.rows])
    assert gap[~seen].max() < ROUNDING < gap[seen].mean()
    assert np.abs((run.log_pi - run.log_mu_prefill)[run.mask]).max() < ROUNDING


@pytest.mark.parametrize("weights", ["bfloat16", "int8", "fp8", "int4", "int8-dynamic"])
def test_coarser_weights_are_another_policy_in_prefill_too(world, weights):
    run = table(world, EngineSpec(weights=weights))
    floor = np.abs((run.log_mu - run.log_mu_prefill)[run.mask]).mean()
    assert np.abs(run.delta).mean() > 1e-4
    if weights != "int8-dynamic":  # whose scale of the activations depends on how many there are
        assert floor < np.abs(run.delta).mean()


def test_the_share_of_quantised_layers_counts_from_the_last(world):
    made = in_format(world.model, "int4", 0.5)
    kept, rounded = (made.layers[i].mlp.up_proj.weight for i in (0, 1))
    assert torch.equal(kept, world.model.layers[0].mlp.up_proj.weight.bfloat16())
    assert len(rounded[0, :32].unique()) <= 15


def test_decoding_is_wrong_where_prefill_is_right(world):
    run = table(world, replace(EXACT, decode_offset=1, decode_offset_from=5))
    assert np.abs((run.log_pi - run.log_mu_prefill)[run.mask]).max() < ROUNDING
    early = np.concatenate([np.arange(len(row["log_mu"])) for row in run.rows]) <= 5
    gap = np.abs(run.log_pi - run.log_mu)
    assert gap[early & run.mask].max() < ROUNDING < gap[~early & run.mask].mean()
    cache = table(world, replace(EXACT, decode_kv="e4m3"))
    assert np.abs((cache.log_pi - cache.log_mu_prefill)[cache.mask]).max() < ROUNDING
    both = table(world, replace(EXACT, kv="e4m3"))
    assert np.abs((both.log_mu - both.log_mu_prefill)[both.mask]).max() < ROUNDING
    assert np.abs(both.delta).mean() > 1e-3


def test_a_coarser_router_picks_other_experts():
    x = torch.tensor([1.0, 1.0625, -3.3, 0.0])
    assert keep_bits(x, 3).tolist() == [1.0, 1.0, -3.25, 0.0]
    assert torch.equal(keep_bits(torch.linspace(-5, 5, 99), 7), torch.linspace(-5, 5, 99).bfloat16().float())
    moe = small_model(experts=4)
    rows = [Row((3, 4), tuple((5 * i) % 37 + 2 for i in range(30)))]
    exact = prefill(moe, rows, EXACT, Options())[0]
    coarse = prefill(moe, rows, EXACT, Options(router_bits=1))[0]
    assert np.abs(np.subtract(exact, coarse)).max() > 1e-2


def test_a_batch_does_not_change_what_is_sampled(world):
    jobs = [Job(p.ids, i, 12, p.tool, p.first_turn) for i, p in enumerate(world.prompts[:6])]
    together = sample(Models(world.model), jobs, EXACT, world.end)
    alone = [sample(Models(world.model), [job], EXACT, world.end)[0] for job in jobs]
    for one, two in zip(together, alone, strict=True):
        assert one.ids == two.ids
        assert one.turns == two.turns
        assert one.log_mu == pytest.approx(two.log_mu, abs=ROUNDING)


def test_two_faults_are_both(world):
    stale, raw = faults.find("stale_weights-lag"), faults.find("raw_logprobs-cooler")
    case = faults.pair((stale, 2), (raw, 0.7), world, 900, 0)
    assert case.strengths == (2, 0.7)
    run = Columns(case.table)
    assert (run.versions < run.per_token("step")).any()
    assert np.exp(run.delta).mean() > 1.1


def test_every_cause_can_be_committed_and_every_name_is_one():
    names = [fault.name for fault in faults.FAULTS]
    assert len(names) == len(set(names))
    assert {fault.id for fault in faults.FAULTS} == set(CAUSES)
    assert faults.find("shift-left").strength("strong") == 2
    with pytest.raises(ValueError, match="no fault 'shift-up'\nhint: one of wrong_units-probabilities"):
        faults.find("shift-up")


def test_a_fault_of_another_world_is_refused(world):
    with pytest.raises(ValueError, match="moe_routing-router can be committed in moe, got world 'tiny'"):
        faults.commit(faults.find("moe_routing-router"), world, "medium", 100, 0)


def check_valid(fault, world, tmp_path):
    path = tmp_path / f"{fault.name}.parquet"
    case = faults.commit(fault, world, "medium", 300, 0)
    case.write(path)
    found = validate(path)
    # A log-prob of 1 is what that fault is about.
    assert found.ok == (fault.name not in ("placeholder_logprob-one", "wrong_units-probabilities")), found.violations
    assert case.info.to_dict().keys() == {"schema_version", "engine", "trainer", "model", "seed"}


@pytest.mark.parametrize(
    "fault", [f for f in faults.FAULTS if f.id in ("retokenisation", "shift", "none")], ids=lambda f: f.name
)
def test_a_case_is_a_valid_record(world, tmp_path, fault):
    check_valid(fault, world, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [f for f in faults.FAULTS if "tiny" in f.worlds], ids=lambda f: f.name)
def test_every_case_is_a_valid_record(world, tmp_path, fault):
    check_valid(fault, world, tmp_path)


def test_a_case_can_be_written_again_from_its_rows(world, tmp_path):
    case = faults.clean(world, "float32", 300, 0)
    with RecordWriter(tmp_path / "again.parquet", case.info) as writer:
        writer.write(case.table.to_pylist())
    assert validate(tmp_path / "again.parquet").ok


def test_pairs_are_of_faults_that_leave_each_other_alone():
    assert len(set(faults.PAIRS)) >= 20
    for names in faults.PAIRS:
        one, two = (faults.find(name) for name in names)
        plain = Specs()
        together = two.change(one.change(plain, one.medium), two.medium)
        other = one.change(two.change(plain, two.medium), one.medium)
        assert together == other, names


def test_the_decoder_is_the_llama_of_transformers():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, initializer_range=0.3,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(config).eval()
    ours = decoder_of(theirs)
    ids = torch.randint(50, (3, 17))
    with torch.no_grad():
        hidden = ours(ids, torch.arange(17).expand(3, 17))
        assert torch.allclose(ours.logits(hidden), theirs(input_ids=ids).logits, atol=1e-4)


@pytest.mark.slow
def test_the_trained_world_speaks_and_moves():
    world = faults.tiny_world(0)
    run = Columns(faults.clean(world, "bf16", 4000, 0).table)
    assert 1.0 < run.entropy_pi[run.mask].mean() < 3.5
    assert 0.3 < np.mean(run.finish_reason == "stop") < 0.95
    floor = np.abs(run.delta).mean()
    stale = Columns(faults.commit(faults.find("stale_weights-lag"), world, "medium", 4000, 0).table)
    assert np.abs(stale.delta).mean() > 2 * floor
    assert 1e-4 < -stale.delta.mean() < 1e-2
