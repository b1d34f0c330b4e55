"""Whatever is wrong with records is named and counted, and never ends in a traceback or a warning."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from doctor_records import check, diagnosed, diagnosis, every_column, noisy, table, world, write
from hypothesis import given
from hypothesis import strategies as st

from reweigh.doctor import doctor
from reweigh.doctor.diagnose import conclude, visit_tokens
from reweigh.doctor.diagnosis import NAMED
from reweigh.records.schema import Origin, RunInfo, Tally
from reweigh.records.table import aligned, conform
from reweigh.scan.tokens import tokens_of

BYS = ("step", "lag", "turn", "env", "source")
ROWS = every_column(prompts=15)
TOKENS = sum(int(r["mask"].sum()) for r in ROWS)
LISTS = [name for name, x in ROWS[0].items() if isinstance(x, np.ndarray)]
OPTIONAL = [name for name in ROWS[0] if name not in ("sequence_id", "log_mu", "log_pi")]


def notes(found):
    return {x.rule: x.count for x in found.notes}


def without(*names):
    return [{k: v for k, v in r.items() if k not in names} for r in ROWS]


def cut(rows, n):
    return [{**r, **{name: r[name][:n] for name in LISTS if name in r}} for r in rows]


# -- columns ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONAL)
def test_each_optional_column_may_be_missing_or_null(name, tmp_path):
    gone = diagnosis(tmp_path, without(name), by=BYS)
    null = diagnosis(tmp_path, [{**r, name: None} for r in ROWS], by=BYS)
    assert gone.to_dict() == null.to_dict()
    assert gone.sequences == len(ROWS)
    assert notes(gone) == {}


NEEDED = {
    "log_pi_repeat": ["dropout"],
    "log_mu_prefill": ["engine_decode"],
    "entropy_pi": ["both_raw"],
    "token_ids": ["repetition_penalty"],
    "pack_index": ["packing_leak"],
    "trainer_version": ["stale_weights"],
    "versions": ["stale_weights"],
}


@pytest.mark.parametrize("name", NEEDED)
def test_what_is_lost_without_a_column_is_said_with_its_name(name, tmp_path):
    before = {x.id for x in diagnosis(tmp_path, ROWS).cannot_tell}
    gone = ("trainer_version", "step") if name == "trainer_version" else (name,)  # either says what trained
    for one in diagnosis(tmp_path, without(*gone)).cannot_tell:
        if one.id in NEEDED[name]:
            assert one.id not in before
            assert name in one.needs
            assert one.experiment
            break
    else:
        pytest.fail(f"nothing is said of {NEEDED[name]}")


def test_the_bare_minimum_is_enough_for_a_verdict(tmp_path):
    found = diagnosis(tmp_path, without(*OPTIONAL), by=BYS)
    undecided = {x.id: x.needs for x in found.cannot_tell}
    for name, causes in NEEDED.items():
        assert any(name in undecided.get(cause, ()) for cause in causes)
    assert all(undecided.values())
    assert {by: list(x) for by, x in found.slices.items() if by != "source"} == {
        "step": [],
        "lag": [],
        "turn": list(found.slices["turn"]),
        "env": [],
    }


@pytest.mark.parametrize("name", ["sequence_id", "log_mu", "log_pi"])
def test_a_required_column_must_be_there(name, tmp_path):
    rows = table(ROWS).drop_columns([name, "log_mu_prefill"])  # which stands in for log_pi
    with pytest.raises(ValueError, match=rf"records\.parquet: column {name} is missing\nhint: ."):
        doctor(write(tmp_path / "records.parquet", rows))


def test_a_column_of_another_type_is_named(tmp_path):
    odd = table(ROWS)
    at = odd.schema.names.index("versions")
    words = pa.array([["a"] * len(r["versions"]) for r in ROWS])
    found = doctor(write(tmp_path / "records.parquet", odd.set_column(at, "versions", words)))
    check(found)
    assert list(notes(found)) == ["versions: wrong type"]
    assert {x.id: x.needs for x in found.cannot_tell}["stale_weights"] == ("versions", "trainer_version")


def test_log_probs_that_are_words_are_refused_for_what_they_are(tmp_path):
    odd = table(ROWS)
    at = odd.schema.names.index("log_pi")
    words = pa.array([["a"] * len(r["log_pi"]) for r in ROWS])
    with pytest.raises(ValueError, match=r"log_pi must be list<.*float>, got list<.*string>"):
        doctor(write(tmp_path / "records.parquet", odd.set_column(at, "log_pi", words)))


def test_a_mask_may_be_ones_and_zeros(tmp_path):
    plain = diagnosis(tmp_path, ROWS).to_dict()
    odd = table(ROWS)
    at = odd.schema.names.index("mask")
    ints = pa.array([r["mask"].astype(int).tolist() for r in ROWS], pa.list_(pa.int64()))
    assert doctor(write(tmp_path / "ints.parquet", odd.set_column(at, "mask", ints))).to_dict() == plain


def test_float64_and_large_lists_read_as_well(tmp_path):
    odd = table(ROWS)
    at = odd.schema.names.index("log_mu")
    wide = odd.set_column(at, "log_mu", odd.column("log_mu").cast(pa.large_list(pa.float64())))
    assert doctor(write(tmp_path / "a.parquet", wide)).to_dict() == diagnosis(tmp_path, ROWS).to_dict()


# -- values -----------------------------------------------------------------------------------------------------------


def spoilt(name, value, every=7):
    """The value at one counted token of every seventh response, and how many that are."""
    rows, marked = [], 0
    for i, r in enumerate(ROWS):
        x = np.array(r[name], dtype=float)
        if i % every == 0:
            x[5] = value
            marked += 1
        rows.append({**r, name: x})
    return rows, marked


@pytest.mark.parametrize("name", ["log_pi", "log_mu"])
@pytest.mark.parametrize(
    ("value", "rule"),
    [(np.nan, "not finite"), (np.inf, "not finite"), (-np.inf, "not finite"), (0.5, "positive"), (3e38, "positive")],
)
def test_what_is_no_log_prob_is_named_with_its_place_and_counted(name, value, rule, tmp_path):
    rows, marked = spoilt(name, value)
    found = diagnosis(tmp_path, rows, by=BYS)
    assert notes(found) == {f"{name}: {rule}": marked}
    note = found.notes[0]
    assert note.counted == "tokens"
    assert note.place.endswith("records.parquet row 0")
    assert note.hint
    assert found.sequences == len(rows)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.5])
def test_tokens_that_cannot_be_used_change_nothing_else(value, tmp_path):
    rows, marked = spoilt("log_pi", value)
    found = diagnosis(tmp_path, rows)
    assert found.tokens == TOKENS - marked
    for r in rows[::7]:
        r["mask"] = r["mask"] & (np.arange(len(r["mask"])) != 5)
    same = diagnosis(tmp_path, rows)
    assert [x.id for x in same.causes] == [x.id for x in found.causes]
    assert same.verdict == found.verdict
    assert same.notes == ()


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("entropy_pi", -1.0, "entropy_pi: negative"),
        ("entropy_pi", -np.inf, "entropy_pi: negative"),
        ("log_pi_repeat", 0.5, "log_pi_repeat: positive"),
        ("log_mu_prefill", 0.5, "log_mu_prefill: positive"),
        ("token_ids", -1, "token_ids: negative"),
        ("versions", -1, "versions: negative"),
    ],
)
def test_bad_values_beside_the_log_probs_are_named_and_not_used(name, value, rule, tmp_path):
    rows, marked = spoilt(name, value)
    found = diagnosis(tmp_path, rows, by=BYS)
    assert notes(found)[rule] == marked
    assert found.tokens == TOKENS
    everywhere = [{**r, name: 0.0 * r[name] + value} for r in ROWS]
    without_it = diagnosis(tmp_path, without(name))
    assert diagnosis(tmp_path, everywhere).verdict == without_it.verdict


@pytest.mark.parametrize("name", ["log_pi", "log_mu", "entropy_pi", "log_pi_repeat", "log_mu_prefill"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.5, 0.0, -1.0, -1e9, -3e38, -1e-30])
def test_a_column_of_one_value_is_no_crash(name, value, tmp_path):
    rows = [{**r, name: 0.0 * r[name] + value} for r in ROWS]
    if (name == "log_pi" and not value <= 0) or (name == "log_pi" and value == -np.inf):
        with pytest.raises(ValueError, match=r"no token to look at in 60 responses.*log_pi") as e:
            diagnosis(tmp_path, rows)
        assert f"({TOKENS:,} tokens)" in str(e.value)
        assert "\nhint: " in str(e.value)
    elif name == "log_mu" and value == 0.5:
        with pytest.raises(ValueError, match=r"no token to look at in 60 responses.*log_mu: positive"):
            diagnosis(tmp_path, rows)
    else:
        diagnosis(tmp_path, rows, by=BYS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["step", "trainer_version", "prompt_length", "pack_index"])
@pytest.mark.parametrize("value", [-1, 0, 2**62, -(2**63), 2**63 - 1])
def test_any_whole_number_of_a_row_is_no_crash(name, value, tmp_path):
    diagnosis(tmp_path, [{**r, name: value if i % 2 else r[name]} for i, r in enumerate(ROWS)], by=BYS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["versions", "turns", "token_ids"])
@pytest.mark.parametrize("value", [-1, 0, 2**31 - 1, -(2**31)])
def test_any_whole_number_of_a_token_is_no_crash(name, value, tmp_path):
    diagnosis(tmp_path, [{**r, name: 0 * r[name] + value if i % 2 else r[name]} for i, r in enumerate(ROWS)], by=BYS)


# -- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sequence_id", "log_mu", "log_pi"])
def test_rows_without_a_required_value_are_left_out_and_counted(name, tmp_path):
    rows = [{**r, name: None} if i in (3, 8) else r for i, r in enumerate(ROWS)]
    found = diagnosis(tmp_path, rows)
    assert notes(found) == {f"{name}: value is null": 2}
    assert found.notes[0].place.endswith("row 3")
    assert found.sequences == len(ROWS) - 2


@pytest.mark.parametrize("name", [name for name in LISTS if name != "log_mu"])
@pytest.mark.parametrize("change", [lambda x: x[:-1], lambda x: np.append(x, x[-1:]), lambda x: x[:0]])
def test_rows_whose_lists_are_out_of_step_are_left_out_and_counted(name, change, tmp_path):
    rows = [{**r, name: change(r[name])} if i in (3, 8) else r for i, r in enumerate(ROWS)]
    found = diagnosis(tmp_path, rows)
    assert notes(found) == {f"{name}: list length differs": 2}
    assert found.sequences == len(ROWS) - 2
    assert found.notes[0].place.endswith("row 3")
    good = [r for i, r in enumerate(ROWS) if i not in (3, 8)]
    assert found.verdict == diagnosis(tmp_path, good).verdict


def test_a_null_in_a_mask_is_counted(tmp_path):
    odd = table(ROWS)
    masks = [r["mask"].tolist() for r in ROWS]
    masks[4][2] = None
    found = doctor(
        write(tmp_path / "a.parquet", odd.set_column(odd.schema.names.index("mask"), "mask", pa.array(masks)))
    )
    assert notes(found) == {"mask: entry is null": 1}


def test_empty_and_masked_responses_are_counted(tmp_path):
    rows = [cut([r], 0)[0] if i % 3 == 0 else {**r, "mask": r["mask"] & (i % 3 == 1)} for i, r in enumerate(ROWS)]
    found = diagnosis(tmp_path, rows, by=BYS)
    assert sum(x.count for x in found.notes if "no" in x.rule and "token" in x.rule) == 40
    assert found.sequences == 60
    assert found.tokens == sum(int(r["mask"].sum()) for r in ROWS[1::3])


@pytest.mark.parametrize("rows", [cut(ROWS, 0), [{**r, "mask": r["mask"] & False} for r in ROWS]])
def test_with_nothing_counted_there_is_nothing_to_say(rows, tmp_path):
    with pytest.raises(ValueError, match=r"no token to look at in 60 responses") as e:
        diagnosis(tmp_path, rows, by=BYS)
    assert "\nhint: " in str(e.value)


def test_a_file_without_a_row_is_refused_kindly(tmp_path):
    with pytest.raises(ValueError, match="no token to look at in 0 responses"):
        doctor(write(tmp_path / "none.parquet", table(ROWS).slice(0, 0)))
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises((ValueError, FileNotFoundError), match=r"hint|no token"):
        doctor(tmp_path / "none.jsonl")


def test_an_empty_file_beside_a_good_one_changes_nothing(tmp_path):
    good = diagnosis(tmp_path, ROWS).to_dict()
    write(tmp_path / "z.parquet", table(ROWS).slice(0, 0))
    assert doctor(tmp_path).to_dict() == good


def test_an_environment_without_a_counted_token_is_a_slice_without_a_finding(tmp_path):
    rows = [{**r, "mask": r["mask"] & (r["env"] == "code")} for r in ROWS]
    found = diagnosis(tmp_path, rows, by=BYS)
    assert found.tokens == sum(one.tokens for one in found.slices["env"].values())
    assert found.slices["env"]["code"].tokens == found.tokens


FEW = {
    "one row": ROWS[:1],
    "one token": cut(ROWS[:1], 1),
    "equal": [{**r, "prompt_id": "a", "log_pi": r["log_mu"]} for r in ROWS],
}
PROVEN = {"placeholder_logprob", "unmasked_context", "retokenisation", "shift", "wrong_token"}


@pytest.mark.parametrize("name", FEW)
def test_one_cluster_is_too_few_for_a_statistic(name, tmp_path):
    found = diagnosis(tmp_path, FEW[name], by=BYS)
    assert {x.id for x in found.causes if x.confidence >= NAMED} <= {"none"}


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_responses_of_a_few_tokens_are_no_crash(length, tmp_path):
    found = diagnosis(tmp_path, cut(ROWS, length), by=BYS)
    assert found.sequences == 60


def test_constant_log_probs_are_no_crash(tmp_path):
    for a, b in ((0.0, 0.0), (-1.0, -1.0), (-1.0, -2.0), (-2.0, -1.0), (0.0, -1.0), (-1e-30, -1e-30)):
        rows = [
            {"sequence_id": r["sequence_id"], "log_mu": 0 * r["log_mu"] + a, "log_pi": 0 * r["log_pi"] + b}
            for r in ROWS
        ]
        found = diagnosis(tmp_path, rows, by=BYS)
        assert (found.verdict == "none") == (a == b), (a, b, found.verdict)


def test_one_wild_trainer_value_does_not_hide_the_rest():
    """A log_pi of -1e9 is a trainer's mask, not a log-prob: a sampled token is never less likely than e^-50."""
    rows = world(0, prompts=60, pi=noisy(1, 0.02))
    for r in rows[:60:20]:
        r["log_pi"][7] = -1e9
    for r in rows:
        r["log_mu"] = np.append(r["log_mu"][1:], r["log_mu"][:1])
    found = diagnosed(rows)
    check(found)
    assert found.verdict == "shift"


# -- options ----------------------------------------------------------------------------------------------------------


def test_options_that_are_not_there_are_refused_before_anything_is_read(tmp_path):
    path = write(tmp_path / "a.parquet", [{**r, "log_pi": r["log_mu"], "log_pi_repeat": r["log_mu"]} for r in ROWS])
    with pytest.raises(
        ValueError, match=r"by must be one of step, env, length, position, lag, turn, source, got 'epoch'"
    ):
        doctor(path, by=("epoch",))
    with pytest.raises(ValueError, match=r"no program 'nope'\nhint: use one of .*vllm"):
        doctor(path, programs=("nope",))
    with pytest.raises(FileNotFoundError):
        doctor(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError):
        doctor(path, baseline=tmp_path / "nowhere")


@pytest.mark.parametrize("same", [True, False])
def test_a_baseline_without_a_gap_is_a_baseline(same, tmp_path):
    before = write(tmp_path / "before.parquet", [{**r, "log_pi": r["log_mu"]} if same else r for r in ROWS])
    found = diagnosis(tmp_path, ROWS, baseline=before)
    assert found.tokens == TOKENS


def test_records_that_are_like_their_baseline_are_not_a_noisy_engine(tmp_path):
    rows = world(0, prompts=60, pi=noisy(1, 0.3))
    before = write(tmp_path / "before.parquet", world(7, prompts=60, pi=noisy(8, 0.3)))
    found = diagnosis(tmp_path, rows, baseline=before)
    assert "quantised_rollout" not in {x.id for x in found.causes if x.confidence >= 0.5}


def test_lines_are_read_as_parquet_is(tmp_path):
    pq.write_table(table(ROWS), tmp_path / "a.parquet")
    import json

    lines = [json.dumps({k: v for k, v in r.items() if v is not None}) for r in table(ROWS).to_pylist()]
    (tmp_path / "b.jsonl").write_text("\n".join(lines) + "\n")
    a, b = doctor(tmp_path / "a.parquet").to_dict(), doctor(tmp_path / "b.jsonl").to_dict()
    assert a == b


# -- anything ---------------------------------------------------------------------------------------------------------

LOG_PROB = st.one_of(
    st.floats(-9, 0, width=32),
    st.sampled_from([0.0, 1.0, 0.5, -1e-7, -49.9, -50.1, -9999.0, -3e38, np.nan, np.inf, -np.inf]),
)
WHOLE = st.one_of(st.none(), st.integers(-2, 5), st.sampled_from([2**63 - 1, -(2**63)]))
SMALL = st.one_of(st.integers(-1, 3), st.sampled_from([2**31 - 1, -(2**31)]))


@st.composite
def nasty_rows(draw):
    names = {
        "token_ids": SMALL,
        "versions": SMALL,
        "turns": SMALL,
        "mask": st.booleans(),
        "entropy_pi": st.one_of(LOG_PROB, st.floats(0, 4, width=32)),
        "log_pi_repeat": LOG_PROB,
        "log_mu_prefill": LOG_PROB,
    }
    there = draw(st.sets(st.sampled_from([*names, "step", "trainer_version", "prompt_length", "pack_index", "env"])))
    rows = []
    for i in range(draw(st.integers(1, 6))):
        n = draw(st.integers(0, 12))

        def values(of, n=n):
            size = n if draw(st.integers(0, 15)) else draw(st.integers(0, 12))
            return draw(st.lists(of, min_size=size, max_size=size)) if draw(st.integers(0, 15)) else None

        row = {"sequence_id": f"s{i}", "prompt_id": draw(st.sampled_from(["a", "b", None]))}
        row |= {"log_mu": values(LOG_PROB), "log_pi": values(LOG_PROB)}
        row |= {name: values(of) for name, of in names.items() if name in there}
        row |= {
            name: draw(WHOLE) for name in ("step", "trainer_version", "prompt_length", "pack_index") if name in there
        }
        if "env" in there:
            row["env"] = draw(st.sampled_from(["", "x", None, "others"]))
        rows.append(row)
    return rows


@given(nasty_rows())
def test_no_table_is_too_odd(rows):
    tally, origin = Tally(), Origin("here", 0)
    whole = conform(table(rows), origin, tally)
    kept = aligned(whole, origin, ("sequence_id", "log_mu", "log_pi"), tally)
    assert kept.all() or tally.by_rule
    found = visit_tokens(tokens_of(whole.filter(pa.array(kept))))
    said = conclude(found, RunInfo())
    check(said)
    again = conclude(found + visit_tokens(tokens_of(whole.slice(0, 0))), RunInfo())
    assert again.verdict == said.verdict
    counted = sum(len(r["log_mu"]) for r, k in zip(rows, kept, strict=True) if k)
    assert said.tokens <= counted


@given(nasty_rows())
def test_no_file_is_too_odd(tmp_path_factory, rows):
    path = write(tmp_path_factory.mktemp("odd") / "records.parquet", rows)
    try:
        check(doctor(path, by=BYS))
    except ValueError as e:
        assert re.search(r"no token to look at in \d+ responses.*\nhint: ", str(e), re.DOTALL), e  # noqa: PT017
