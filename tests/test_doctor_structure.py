"""Structure and normalisation on softmaxes whose truth is known: exact counts, exact realignment, identities."""

import numpy as np
import pytest
from doctor_records import (
    VOCABULARY,
    check,
    diagnosed,
    log_softmax,
    noisy,
    temperature,
    tokens,
    top_p,
    visited,
    world,
)

from reweigh.doctor.clean import CELLS, FARTHEST, KINDS, LONG_RUN, OFFSETS, PLACES, clean


def quiet(**options):
    """A healthy pair: the trainer's logits off by a little. Responses of 40 tokens each."""
    return world(0, prompts=20, **{"length": 40, "pi": noisy(1, 0.02), **options})


def unsure(rows):
    """Without the tokens of which pi is sure, of which a logged 0 may be true."""
    names = ("token_ids", "log_mu", "log_pi", "entropy_pi")
    out = []
    for row in rows:
        keep = row["log_pi"] < np.log(0.4)
        out.append({**row, **{name: row[name][keep] for name in names}})
    return [row for row in out if len(row["log_mu"]) >= 20]


def with_mu(rows, change):
    return [{**r, "log_mu": change(i, r["log_mu"].copy())} for i, r in enumerate(rows)]


def put(where, value):
    def change(i, log_mu):
        log_mu[where] = value
        return log_mu

    return lambda rows: with_mu(rows, change)


def placeholders(rows):
    """`[kind, place]` tokens and runs."""
    return clean(tokens(rows)).sums["placeholder"].total.reshape(len(KINDS), len(PLACES), 3)


# -- placeholders -----------------------------------------------------------------------------------------------------


VALUES = [("zero", 0.0), ("one", 1.0), ("not finite", np.nan), ("not finite", np.inf), ("below -50", -9999.0)]


@pytest.mark.parametrize(("kind", "value"), VALUES)
@pytest.mark.parametrize(
    ("place", "where"),
    [
        ("edge", slice(0, 1)),
        ("edge", slice(-1, None)),
        ("short", slice(5, 7)),
        ("inside", slice(5, 5 + LONG_RUN)),
        ("inside", slice(6, 16)),
        ("end", slice(-6, None)),
        ("end", slice(0, 8)),
    ],
)
def test_a_placeholder_is_counted_where_it_is_and_taken_out(kind, value, place, where):
    rows = unsure(quiet())
    found = placeholders(put(where, value)(rows))
    marked = sum(len(range(*where.indices(len(r["log_mu"])))) for r in rows)
    cell = found[KINDS.index(kind), PLACES.index(place)]
    assert cell[0] == marked == found[:, :, 0].sum()
    assert cell[1] == len(rows) == found[:, :, 1].sum()
    rest = clean(tokens(put(where, value)(rows))).tokens
    left = sum(len(r["log_mu"]) for r in rows) - marked
    assert len(rest) == left
    assert np.abs(rest.gap).max() < 1.0


def test_a_zero_that_both_sides_agree_on_is_a_certain_token():
    rows = quiet()
    for r in rows:
        r["log_mu"][3] = r["log_pi"][3] = 0.0
    assert placeholders(rows).sum() == 0
    assert visited(rows).sums["identity"].total[0, 0] == sum(len(r["log_mu"]) for r in rows)


def test_two_marks_with_a_hole_in_the_mask_between_them_are_two_runs():
    rows = unsure(quiet())
    for r in rows:
        r["log_mu"][4:8] = 1.0
        r["mask"] = np.arange(len(r["log_mu"])) != 6
    found = placeholders(rows)[KINDS.index("one"), PLACES.index("short")]
    assert found[0] == 3 * len(rows)
    assert found[1] == 2 * len(rows)


def test_a_run_does_not_go_on_in_the_next_response():
    rows = unsure(quiet())
    for r in rows:
        r["log_mu"][-2:] = r["log_mu"][:2] = 1.0
    assert placeholders(rows)[KINDS.index("one"), :, 1].sum() == 2 * len(rows)


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan, -9999.0])
def test_stop_tokens_without_log_probs_are_placeholders_and_long_runs_are_other_text(value):
    rows = [{k: v for k, v in r.items() if k != "entropy_pi"} for r in unsure(quiet())]
    ends = diagnosed(put(slice(-1, None), value)(rows))
    assert ends.verdict == "placeholder_logprob"
    inside = diagnosed(put(slice(6, 16), value)(rows))
    assert inside.verdict == "unmasked_context"
    for found, each in ((ends, 1), (inside, 10)):
        check(found)
        first = found.causes[0].evidence[0]
        assert first.value == each * found.sequences
        assert first.n == found.tokens


def test_with_the_text_of_tools_masked_there_is_nothing_to_find():
    rows = put(slice(6, 16), 0.0)(unsure(quiet()))
    for r in rows:
        r["mask"] = np.arange(len(r["log_mu"])) // 10 != 0
        r["mask"][6:16] = False
    assert placeholders(rows).sum() == 0


def test_what_is_no_log_prob_is_left_out():
    rows = quiet()
    values = {"log_pi": (np.nan, 0.5, -np.inf), "log_mu": (0.5,)}
    for name, bad in values.items():
        for i, x in enumerate(bad):
            for r in rows[: 3 + i]:
                r[name][5 + 2 * i + (name == "log_mu")] = x
    rest = clean(tokens(rows)).tokens
    assert len(rest) == sum(len(r["log_mu"]) for r in rows) - 15
    assert np.isfinite(rest.gap).all()
    assert max(rest.log_pi.max(), rest.log_mu.max()) <= 0


# -- alignment --------------------------------------------------------------------------------------------------------


def moved(log_mu, k):
    """log_mu of each token, logged k places further on (earlier if k < 0); neighbours' values at the open end."""
    return np.concatenate([log_mu[-k:], log_mu[:-k]])


@pytest.mark.parametrize("k", OFFSETS)
def test_a_shift_is_undone_exactly(k):
    rows = quiet()
    found = clean(tokens(with_mu(rows, lambda i, x: moved(x, k) if i % 2 else x)))
    total = found.sums["alignment"].total[:, 0]
    shifted = len(rows) // 2
    assert total[CELLS.index(str(k))] == shifted
    assert total[CELLS.index("in place")] == len(rows) - shifted
    assert total.sum() == len(rows)
    straight = tokens(rows)
    at = {(s, p): x for s, p, x in zip(straight.seq, straight.position, straight.log_mu, strict=True)}
    rest = found.tokens
    assert [at[s, p] for s, p in zip(rest.seq, rest.position, strict=True)] == rest.log_mu.tolist()
    assert len(rest) == len(straight) - abs(k) * shifted


@pytest.mark.parametrize("k", [1, -1, FARTHEST])
def test_a_shift_comes_first_and_what_it_explains_goes_away(k):
    found = diagnosed(with_mu(quiet(), lambda i, x: moved(x, k)))
    check(found)
    assert found.verdict == "shift"
    first = found.causes[0]
    assert first.evidence[0].value == 1.0
    assert first.explained_share > 0.9
    assert not [x for x in found.causes[1:] if x.confidence >= 0.5 and x.id not in ("numerics", "quantised_rollout")]


def test_a_shift_beyond_what_is_looked_for_is_not_put_right():
    found = clean(tokens(with_mu(quiet(), lambda i, x: moved(x, FARTHEST + 3))))
    assert found.sums["alignment"].total[: len(OFFSETS), 0].sum() == 0


@pytest.mark.parametrize("length", [120, 240])
def test_where_step_is_lost_part_of_the_way_the_rest_is_left_out(length):
    rows = quiet(length=length)

    def lose(i, x):
        return np.concatenate([x[:48], x[49:], x[:1]]) if i % 4 == 0 else x

    found = clean(tokens(with_mu(rows, lose)))
    total = found.sums["alignment"].total[:, 0]
    assert total[CELLS.index("part of the way")] == len(rows) // 4
    assert total[CELLS.index("in place")] == len(rows) - len(rows) // 4
    rest = found.tokens
    cut = rest.seq % 4 == 0
    assert rest.position[cut].max() < 48
    assert np.bincount(rest.seq[~cut])[1::4].tolist() == [len(r["log_mu"]) for r in rows[1::4]]
    assert np.abs(rest.gap).max() < 1.0
    assert diagnosed(with_mu(rows, lose)).verdict == "retokenisation"


def test_healthy_responses_are_left_as_they_are():
    for rows in (quiet(), quiet(pi=log_softmax), quiet(sample=temperature(0.7)), quiet(sample=top_p(0.9))):
        whole = tokens(rows)
        rest = clean(whole).tokens
        assert len(rest) == len(whole)
        assert np.array_equal(rest.log_mu, whole.log_mu)


def test_even_or_short_responses_count_as_in_place():
    even = [{**r, "log_mu": 0 * r["log_mu"] - 1.0, "log_pi": 0 * r["log_pi"] - 1.01} for r in quiet()]
    short = [{**r, **{k: r[k][:3] for k in ("token_ids", "log_mu", "log_pi", "entropy_pi")}} for r in quiet()]
    for rows in (even, short):
        total = clean(tokens(rows)).sums["alignment"].total[:, 0]
        assert total[CELLS.index("in place")] == total.sum() == len(rows)


# -- foreign text -----------------------------------------------------------------------------------------------------


def test_text_that_neither_side_would_have_sampled_is_found_by_its_entropies():
    rows = quiet(length=60)
    g = np.random.default_rng(0)
    for r in rows:
        n = len(r["log_mu"])
        there = np.arange(n) // 16 == 1
        r["entropy_pi"] = np.where(there, 0.3, r["entropy_pi"])
        r["log_pi"] = np.where(there, -g.uniform(5, 9, n), r["log_pi"])
        r["log_mu"] = np.where(there, r["log_pi"] + 0.01, r["log_mu"])
    found = clean(tokens(rows))
    assert found.sums["surprise"].total[0, 0] == 16 * len(rows)
    assert not (found.tokens.position // 16 == 1).any()
    assert diagnosed(rows).verdict == "unmasked_context"


def test_sampled_text_is_not_foreign_even_when_rare():
    """5,000 tokens in flat and in sharp contexts: whatever was sampled from pi is as surprising as its entropy."""
    assert clean(tokens(quiet(pi=log_softmax))).sums["surprise"].total[0, 0] == 0


# -- identities -------------------------------------------------------------------------------------------------------


def number(found, cause, name):
    """An evidence of a cause, from the sums and not only where the cause is named."""
    for one in found.causes:
        for e in one.evidence:
            if one.id == cause and e.name == name:
                return e
    return pytest.fail(f"{cause} has no {name} in {[x.id for x in found.causes]}")


def means(rows):
    """Mean of pi/mu and of mu/pi over all tokens, with their standard errors."""
    from reweigh.doctor.cells import ratio
    from reweigh.doctor.families.distribution import BACKWARD, FORWARD, N

    m = visited(rows).sums["identity"].data[:, 0]
    return ratio(m[:, FORWARD], m[:, N]), ratio(m[:, BACKWARD], m[:, N])


PROPER = {
    "rounding": {"pi": noisy(1, 0.05)},
    "temperature": {"sample": temperature(1.3)},
    "another policy": {"pi": noisy(1, 0.3)},
}


@pytest.mark.parametrize("name", PROPER)
def test_the_mean_ratio_of_what_was_sampled_is_1(name):
    """Over 20 draws; each 95% interval may miss, but not many of them."""
    missed = 0
    for seed in range(20):
        forward, _ = means(world(seed, prompts=30, each=2, **PROPER[name]))
        low, high = forward.interval
        missed += not low <= 0 <= high
        assert forward.se > 0
    assert missed <= 5


@pytest.mark.parametrize("name", ["rounding", "temperature"])
def test_a_proper_policy_is_not_called_improper(name):
    found = diagnosed(world(0, prompts=60, **PROPER[name]))
    named = {x.id for x in found.causes if x.confidence >= 0.5}
    assert not named & {"raw_logprobs", "truncated_sampling", "vocab_padding", "placeholder_logprob", "shift"}


def test_raw_log_probs_have_a_mean_ratio_over_1_and_the_inverse_at_1():
    rows = world(0, prompts=60, sample=temperature(1.4), mu=log_softmax, pi=temperature(1.4))
    forward, backward = means(rows)
    assert forward.interval[0] > 0
    assert backward.interval[0] < 0 < backward.interval[1]
    found = diagnosed(rows)
    check(found)
    assert found.verdict == "raw_logprobs"
    e = number(found, "raw_logprobs", "mean_ratio_of_clean_tokens")
    assert e.value - 1 == pytest.approx(forward.value, rel=1e-9)
    assert e.low > 1
    assert number(found, "raw_logprobs", "mean_log_ratio").low > 0


def test_truncated_sampling_leaves_mass_out_and_only_one_sign():
    """pi over mu is the mass inside, at every token: never more than 1."""
    rows = world(0, prompts=60, sample=top_p(0.9))
    assert all((r["log_pi"] <= r["log_mu"] + 1e-9).all() for r in rows)
    forward, _ = means(rows)
    assert forward.interval[1] < 0
    assert forward.value > -0.1  # no more is left out than top-p leaves out
    found = diagnosed(rows)
    check(found)
    assert found.verdict == "truncated_sampling"
    assert number(found, "truncated_sampling", "one_sided").value == pytest.approx(1.0)


def test_both_raw_shows_in_the_entropies_alone():
    rows = world(0, prompts=60, sample=temperature(0.7), mu=log_softmax)
    assert all(np.array_equal(r["log_mu"], r["log_pi"]) for r in rows)
    found = diagnosed(rows)
    check(found)
    assert found.verdict == "both_raw"
    surprise = number(found, "both_raw", "surprise")
    exact = np.concatenate([-r["log_pi"] - r["entropy_pi"] for r in rows])
    assert surprise.value == pytest.approx(exact.mean(), rel=1e-5)  # columns are float32
    assert surprise.high < 0
    bare = diagnosed([{k: v for k, v in r.items() if k != "entropy_pi"} for r in rows])
    assert bare.verdict == "none"
    assert {"both_raw": ("entropy_pi",)}.items() <= {x.id: x.needs for x in bare.cannot_tell}.items()


def test_another_token_s_log_probs_are_not_of_what_was_sampled():
    """The engine logs the likeliest token in every fourth place: mean of pi/mu is not bound by 1."""
    g = np.random.default_rng(0)
    rows = world(0, prompts=60, pi=noisy(1, 0.02))
    top = world(
        0,
        prompts=60,
        pi=noisy(1, 0.02),
        mu=lambda logits: np.broadcast_to(log_softmax(logits).max(-1, keepdims=True), logits.shape),
    )
    for a, b in zip(rows, top, strict=True):
        a["log_mu"] = np.where(g.uniform(size=len(a["log_mu"])) < 0.25, b["log_mu"], a["log_mu"])
    found = diagnosed(rows)
    check(found)
    assert found.verdict == "wrong_token"


def test_equal_log_probs_are_no_gap():
    found = diagnosed(world(0))
    check(found)
    assert found.verdict == "none"
    assert [x.id for x in found.causes if x.confidence >= 0.5] == ["none"]


def test_the_world_samples_what_it_logs():
    """Frequencies against probabilities: the tests above stand on it."""
    rows = world(3, prompts=200, each=2)
    log_p = np.concatenate([r["log_mu"] for r in rows])
    entropy = np.concatenate([r["entropy_pi"] for r in rows])
    off = (-log_p - entropy).mean() / ((-log_p - entropy).std() / np.sqrt(len(log_p)))
    assert abs(off) < 3.5
    assert max(r["token_ids"].max() for r in rows) == VOCABULARY - 1


def test_a_certain_engine_that_is_wrong_has_logged_no_placeholders():
    # Logits that reach 60: log_mu is 0 to the last digit at some tokens, and next to it at more. The trainer's own
    # noise contradicts both.
    g = np.random.default_rng(7)
    rows = []
    for i in range(80):
        logits = g.normal(size=(60, 48)) * np.exp(g.uniform(0.5, 3.0, size=(60, 1)))
        logits = logits.astype(np.float32)
        log_mu = log_softmax(logits)
        log_pi = log_softmax(logits * (g.uniform(size=logits.shape) > 0.1))
        ids = (np.exp(log_mu).cumsum(-1) > g.uniform(size=(60, 1))).argmax(-1)
        at = np.arange(60), ids
        rows.append({"sequence_id": f"r{i}", "prompt_id": f"p{i}", "log_mu": log_mu[at], "log_pi": log_pi[at]})
    zeros = [(row["log_mu"] == 0) & (row["log_pi"] < -1) for row in rows]
    assert np.concatenate(zeros).any()
    assert "placeholder_logprob" not in {x.id for x in diagnosed(rows).causes}


@pytest.mark.parametrize("edge", range(58, 63))
def test_a_gap_from_a_place_on_is_a_step_wherever_the_edge_is(edge):
    g = np.random.default_rng(edge)
    rows = world(3, prompts=20, length=120, pi=noisy(4, 0.02))
    for row in rows:
        later = np.arange(len(row["log_mu"])) >= edge
        size = 0.3 * later * (1 - np.exp(row["log_pi"]))
        row["log_pi"] = np.minimum(row["log_pi"] + size * g.normal(size=len(later)) - size**2 / 2, 0.0)
    found = diagnosed(rows)
    assert "position_encoding" not in {x.id for x in found.causes}
    assert found.causes[0].id == "engine_decode"


def _along(sizes):
    rows = []
    for i, size in enumerate(sizes):
        more = world(100 + i, prompts=6, each=4, length=20, pi=noisy(i, size) if size else log_softmax)
        rows += [{**row, "sequence_id": f"{i}-{row['sequence_id']}", "step": i} for row in more]
    return rows


def test_a_gap_that_fades_is_not_taken_for_old_weights():
    # A policy that grows certain: the rounding of its logits fades with what is left to be uncertain about.
    found = diagnosed(_along(0.02 * np.exp(-0.4 * np.arange(20))))
    assert found.verdict not in ("stale_weights", "weight_sync", "update_below_precision")
    assert "the gap is all but gone at some steps" not in found.ruled_out.values()


def test_a_gap_that_comes_and_goes_is_no_rounding(recwarn):
    found = diagnosed(_along([0.0, 0.01, 0.03] * 5))
    assert found.ruled_out["numerics"] == "the gap is all but gone at some steps"
    assert not [x for x in recwarn if issubclass(x.category, RuntimeWarning)]


def test_noise_is_dropout_only_by_a_second_pass():
    rows = world(5, pi=noisy(6, 0.6))
    assert diagnosed(rows).verdict != "dropout"
    again = world(5, pi=noisy(8, 0.6))
    for row, other in zip(rows, again, strict=True):
        row["log_pi_repeat"] = other["log_pi"]
    assert diagnosed(rows).verdict == "dropout"


@pytest.mark.parametrize("entropies", [True, False])
def test_a_tool_that_says_nothing_is_no_text_in_the_loss(entropies):
    g = np.random.default_rng(0)
    rows = quiet()
    for row in rows:
        n = len(row["log_mu"])
        row["turns"], row["mask"] = np.zeros(n, int), np.ones(n, bool)
        for at in (8, 16):
            row["turns"][at:] += 1
            row["mask"][at - 3 : at] = g.random() < 0.4
        if not entropies:
            del row["entropy_pi"]
    assert diagnosed(rows).verdict != "unmasked_context"
