"""Laws that hold for every estimator: the named ones, random products of them, and anyone's composition."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from batches import packed, random_batch, rows_of, tight
from hypothesis import given
from hypothesis import strategies as st

from reweigh import (
    GEOMETRIC,
    PREFIX,
    SEQUENCE,
    SUFFIX,
    TOKEN,
    TURN,
    WORST,
    AtMost,
    Batch,
    Clip,
    Estimator,
    Power,
    Reject,
    Screen,
    Shrink,
    Truncate,
    check_estimator,
    for_advantage,
    naive,
    self_normalised,
    weigh,
)
from reweigh.levels import binary_kl, heads, k2, k3
from reweigh.named import FACTS, NAMED
from reweigh.testing import odd_batch
from reweigh.transforms import SoftKernel, Transform

# The run-time type checks look at random members of a tuple, also while hypothesis builds one.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")

ratios = st.sampled_from([TOKEN, PREFIX, SUFFIX, TURN, SEQUENCE, GEOMETRIC])
bounds = st.tuples(st.floats(0.05, 1.0), st.floats(1.0, 5.0))
transforms = st.one_of(
    bounds.map(lambda b: Clip(*b)),
    bounds.map(lambda b: Reject(*b)),
    bounds.map(lambda b: Screen(*b)),
    st.floats(0.1, 50).map(Shrink),
    st.floats(0, 1).map(Power),
    st.tuples(st.floats(0.5, 3), st.floats(0.5, 3)).map(lambda b: SoftKernel(*b)),
)
weights = st.builds(weigh, ratios, transforms)
screens = st.builds(
    lambda level, nats, of: weigh(level, AtMost(nats), of=of),
    st.sampled_from([TOKEN, SEQUENCE, GEOMETRIC, WORST, TURN]),
    st.floats(0.001, 1),
    st.sampled_from([k2, k3, binary_kl]),
)
factors = st.one_of(weights, screens, st.builds(for_advantage, st.sampled_from([-1, 1]), st.one_of(weights, screens)))
products = st.lists(factors, max_size=4).map(lambda fs: Estimator(tuple(f for e in fs for f in e.factors)))
seeds = st.integers(0, 10_000)


def same(a, b):
    torch.testing.assert_close(a, b, rtol=2e-5, atol=1e-6)


# shrunk_seq_is weighs an on-policy sequence lam / (1 + lam) by its formula, so 16/17; every other name weighs it 1.
ON_POLICY = {"shrunk_seq_is": 16 / 17}


@pytest.mark.parametrize("name", NAMED)
def test_named_estimators_obey_the_laws(name):
    for seed in range(3):
        check_estimator(NAMED[name](), seed)


@given(products, seeds)
def test_products_obey_the_laws(estimator, seed):
    check_estimator(estimator, seed)


@given(products, st.sampled_from(["batch", "prompt"]), seeds)
def test_normalised_products_obey_the_laws(estimator, by, seed):
    check_estimator(self_normalised(estimator, by), seed)


@pytest.mark.parametrize("name", NAMED)
def test_equal_policies_weigh_1(name):
    batch = random_batch(5, spread=0.0)
    w = NAMED[name]()(batch)
    assert w.keep.equal(w.valid)
    assert not w.bounded.any()
    expected = torch.where(batch.layout.mask, ON_POLICY.get(name, 1.0), 0.0)
    torch.testing.assert_close(w.per_token, expected, rtol=1e-6, atol=0)


@given(factors, factors, seeds)
def test_products_commute(a, b, seed):
    batch = random_batch(seed)
    x, y = (a * b)(batch), (b * a)(batch)
    same(x.per_token, y.per_token)
    assert x.keep.equal(y.keep)
    assert x.bounded.equal(y.bounded)
    same(x.per_token, a(batch).per_token * b(batch).per_token)


@given(factors, factors, factors)
def test_products_associate_and_naive_is_their_unit(a, b, c):
    assert (a * b) * c == a * (b * c)
    assert a * naive() == a == naive() * a


@given(products, seeds)
def test_layout_padding_order_and_cutting_change_nothing(estimator, seed):
    batch = random_batch(seed)
    whole, live = estimator(batch).per_token, batch.layout.mask
    same(estimator(packed(batch)).per_token.view(whole.shape), whole)
    same(estimator(tight(batch)).per_token, whole[live])
    order = torch.randperm(6)
    same(estimator(rows_of(batch, order)).per_token, whole[order])
    same(
        torch.cat([estimator(rows_of(batch, torch.arange(a, b))).per_token for a, b in ((0, 1), (1, 4), (4, 6))]), whole
    )


CAPPED = ("token_tis", "prefix_tis", "turn_tis", "seq_tis", "cispo_cap")


@pytest.mark.parametrize("name", CAPPED)
def test_raising_a_cap_never_lowers_a_weight(name):
    for seed in range(5):
        batch = random_batch(seed, spread=1.0)
        steps = [NAMED[name](cap)(batch).per_token for cap in (0.1, 0.5, 1.0, 1.5, 2.0, 8.0, 1e6)]
        assert all((b >= a).all() for a, b in itertools.pairwise(steps))
        assert any((b > a).any() for a, b in itertools.pairwise(steps))


@given(ratios, st.floats(0.01, 3.0), st.floats(1.0, 4.0), seeds)
def test_raising_a_cap_of_any_level_keeps_the_weights_below_it(level, cap, times, seed):
    batch = random_batch(seed, spread=1.0)
    low, high = (weigh(level, Truncate(c))(batch) for c in (cap, cap * times))
    assert (high.per_token >= low.per_token).all()
    assert (low.per_token <= cap * (1 + 1e-6)).all()
    assert low.num_bounded >= high.num_bounded


def wild_batch():
    """Rows of one token or many whose log ratios sum to 300, to -300 and, with +60 and -60, to nearly nothing."""
    lr = torch.zeros(4, 8)
    lr[0, 0], lr[1] = 300.0, 300 / 8
    lr[2] = -300 / 8
    lr[3, :2] = torch.tensor([60.0, -60.0])
    log_mu = torch.full((4, 8), -301.0)
    turn = torch.zeros(4, 8, dtype=torch.long)
    advantage, group = torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.tensor([0, 0, 1, 1])
    return Batch.padded(log_mu + lr, log_mu, torch.ones(4, 8), advantage=advantage, group=group, turn=turn)


# What has no bound may be infinite once it leaves log space: e^300 is no float32.
UNBOUNDED = {name for name, facts in FACTS.items() if facts.bound == "none"} | {"dppo_tv", "dppo_kl", "psis", "pnpo"}


@pytest.mark.parametrize("name", NAMED)
def test_a_sequence_ratio_of_e_300_is_no_special_case(name):
    batch = wild_batch()
    w = NAMED[name]()(batch)
    assert not torch.isnan(w.log_w).any()
    if name not in ("vespo", "sapo"):  # their weights there are e^-(e^300): -inf is their log, 0 their value
        assert torch.isfinite(w.log_w).all()
    assert not torch.isnan(w.per_token).any()
    if name not in UNBOUNDED:
        assert torch.isfinite(w.per_token).all()


def test_self_normalised_weights_of_e_300_add_up():
    for name in ("snis", "group_snis"):
        w = NAMED[name]()(wild_batch())
        assert w.per_unit.mean().item() == pytest.approx(1.0, rel=1e-5), name


@pytest.mark.parametrize(
    "name", [n for n in NAMED if n not in ("psis", "geo_rs", "geo_mis", "k1_rs", "k3_rs", "trm", "opsm")]
)
def test_no_less_exact_than_naive_arithmetic_in_bfloat16(name):
    """Against float64 on the same bfloat16 numbers; the other names only decide, and are 0 or 1 either way."""
    for seed in range(3):
        batch = random_batch(seed, spread=0.05, dtype=torch.bfloat16, garbage=False)
        double = Batch.padded(
            batch.log_pi.double(),
            batch.log_mu.double(),
            batch.layout.mask,
            advantage=batch.advantage,
            group=batch.group,
            turn=batch.layout.turn,
        )
        truth = NAMED[name]()(double)
        ours = NAMED[name]()(batch)
        assert truth.per_token.dtype == torch.float64
        assert ours.per_token.dtype == torch.float32
        assert ours.keep.equal(truth.keep)
        error = (ours.per_token.double() - truth.per_token).abs().max()
        naive_ratio = (batch.log_pi - batch.log_mu).where(batch.layout.mask, torch.tensor(0.0, dtype=torch.bfloat16))
        coarse = NAMED[name]()(
            Batch.padded(
                naive_ratio,
                torch.zeros_like(naive_ratio),
                batch.layout.mask,
                advantage=batch.advantage,
                group=batch.group,
                turn=batch.layout.turn,
                check=False,  # the log ratio stands for log pi
            )
        )
        coarse_error = (coarse.per_token.bfloat16().double() - truth.per_token).abs().max()
        assert error <= coarse_error + 1e-6
        assert error < 1e-5


def test_bfloat16_products_over_a_sequence_keep_their_digits():
    """A thousand tokens: summed in bfloat16 the log ratio would be off by percents, here it is exact to float32."""
    g = torch.Generator().manual_seed(1)
    log_mu = (-torch.rand(4, 1000, generator=g) * 3).bfloat16()
    log_pi = (log_mu.float() + 0.02 * torch.randn(4, 1000, generator=g)).clamp(max=0).bfloat16()
    batch = Batch.padded(log_pi, log_mu, torch.ones(4, 1000))
    truth = (log_pi.double() - log_mu.double()).sum(-1).exp()
    ours = NAMED["seq_is"]()(batch).per_unit.double()
    coarse = (log_pi - log_mu).sum(-1).exp().double()
    assert ((ours - truth) / truth).abs().max() < 1e-5
    assert ((coarse - truth) / truth).abs().max() > 1e-3


# Estimators that break a law, one each; check_estimator must say which.


@dataclass(frozen=True)
class Negative(Transform):
    def __call__(self, x, valid):
        return torch.where(x > 0, x, torch.nan), valid


@dataclass(frozen=True)
class KeepsWhatIsNot(Transform):
    def __call__(self, x, valid):
        return x, torch.ones_like(valid)


@dataclass(frozen=True)
class ReadsItsNeighbours(Transform):
    def __call__(self, x, valid):
        return x - torch.where(valid, x, 0).amax(), valid


@dataclass(frozen=True)
class ByPlace(Transform):
    def __call__(self, x, valid):
        return x + 0.01 * torch.arange(x.numel()).view(x.shape), valid


@dataclass(frozen=True)
class DropsOnPolicy(Transform):
    def __call__(self, x, valid):
        return x, valid & (x != 0)


@dataclass(frozen=True)
class Attached(Transform):
    def __call__(self, x, valid):
        return x + torch.zeros((), requires_grad=True), valid


class Anonymous(Transform):
    def __call__(self, x, valid):
        return x, valid


def of_padding(batch):
    return batch.log_ratio + batch.log_ratio.shape[-1] * 0.01


def of_one_policy(batch):
    return torch.where(batch.layout.mask, batch.log_mu, 0)


BROKEN = [
    (weigh(SEQUENCE, Negative()), "weights are finite"),
    (weigh(SEQUENCE, ReadsItsNeighbours()), "the way a batch is cut changes nothing"),
    (weigh(SEQUENCE, ByPlace()), "the order of sequences changes nothing"),
    (weigh(TOKEN, DropsOnPolicy()), "equal policies keep every unit"),
    (weigh(TOKEN, Attached()), "weights are detached"),
    (weigh(TOKEN, Anonymous()), "it pickles"),
    (weigh(TOKEN, of=of_padding), "padded and packed agree|more padding changes nothing"),
    (weigh(TOKEN, of=of_one_policy), "equal policies give every unit one weight"),
]


@pytest.mark.parametrize(("estimator", "law"), BROKEN, ids=[law for _, law in BROKEN])
def test_broken_laws_are_named(estimator, law):
    with pytest.raises(AssertionError, match=f"check_estimator: broken law: ({law})"):
        check_estimator(estimator)


def test_a_transform_cannot_keep_what_is_not_there():
    check_estimator(weigh(TOKEN, KeepsWhatIsNot()))
    check_estimator(weigh(SEQUENCE, KeepsWhatIsNot()))


def test_awkward_batches_are_awkward():
    """The checks are only as good as what they look at."""
    batch = odd_batch()
    assert batch.layout.lengths.tolist() == [7, 4, 1, 0, 5, 4]
    assert batch.layout.mask[4].tolist()[:2] == [False, False], "left padding"
    assert not torch.isfinite(batch.log_pi[~batch.layout.mask]).all()


NEEDS = [
    ("turn_tis", {}, r"TURN: the batch has no turns(.|\n)*hint: pass turn="),
    ("group_snis", {}, r"by='prompt' needs the prompt(.|\n)*hint: pass group="),
    ("opsm", {}, r"depends on the sign of the advantage and the batch has none(.|\n)*hint: pass advantage="),
]


@pytest.mark.parametrize(("name", "kwargs", "text"), NEEDS)
def test_what_a_batch_lacks_is_said(name, kwargs, text):
    with pytest.raises(ValueError, match=text):
        NAMED[name]()(Batch.padded(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 3), **kwargs))


def test_compositions_that_mean_nothing_are_refused():
    snis = self_normalised(weigh(SEQUENCE))
    with pytest.raises(ValueError, match=r"self-normalise last: write self_normalised\(a \* b\)"):
        snis * naive()
    with pytest.raises(ValueError, match="self-normalise last"):
        for_advantage(1, snis)
    with pytest.raises(ValueError, match=r"sign must be \+1 or -1, got 0"):
        for_advantage(0, naive())
    with pytest.raises(ValueError, match="has a factor with a sign already"):
        for_advantage(1, for_advantage(-1, weigh(TOKEN)))


def test_a_given_normaliser_replaces_the_batchs_own():
    batch = random_batch(2)
    raw = weigh(SEQUENCE)(batch)
    given_one = self_normalised(weigh(SEQUENCE))(batch, log_normaliser=torch.tensor(1.0))
    same(given_one.log_w, raw.log_w - 1)


def test_micro_batches_with_the_whole_batchs_normaliser_are_the_whole_batch():
    batch, e = random_batch(3), NAMED["snis"]()
    shift = weigh(SEQUENCE)(batch).log_normaliser()
    parts = [e(rows_of(batch, torch.arange(a, a + 2)), shift).per_token for a in (0, 2, 4)]
    same(torch.cat(parts), e(batch).per_token)


@given(products, st.sampled_from(["batch", "prompt"]), seeds)
def test_kept_units_of_a_normalised_estimator_have_mean_1(estimator, by, seed):
    batch = random_batch(seed)
    w = self_normalised(estimator, by)(batch)
    one_each = w.keep & heads(batch.layout) if w.unit == "turn" else w.keep
    groups = batch.group if by == "prompt" else torch.zeros(6, dtype=torch.long)
    per_unit = groups if w.unit == "sequence" else groups[:, None].expand(one_each.shape)
    for g in groups.unique():
        mine = w.per_unit[one_each & (per_unit == g)]
        assert not len(mine) or mine.mean().item() == pytest.approx(1.0, rel=1e-4) or (mine == 0).all()
