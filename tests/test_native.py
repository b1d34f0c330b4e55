"""The compiled kernel: that it is used, its numbers against torch in float64, equal bits, no byte too far."""

import ctypes
import math
import mmap
import os
import platform
import random
import shutil
import subprocess
import sys
import zipfile
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from batches import packed, random_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from reweigh import GEOMETRIC, SEQUENCE, TOKEN, TURN, WORST, Batch, RatioStats, native, seq_tis, weigh
from reweigh.audit.pictures import Density, Histogram
from reweigh.audit.trial import Trial, trials_of
from reweigh.audit.walked import Walked
from reweigh.audit.where import TokenRows
from reweigh.layout import Padded
from reweigh.levels import PREFIX, k1, k2, k3, log_ratio, prob_diff
from reweigh.named import NAMED, geo_rs, naive, prefix_tis, token_mis
from reweigh.native import walk
from reweigh.scan.tokens import Shared
from reweigh.stats import sums
from reweigh.transforms import Clip, ParetoSmooth, Screen

LEVELS = (TOKEN, TURN, SEQUENCE)
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def kernel():
    """The library; without it nothing here can be tested, and under CI it must be there."""
    library = native.library()
    if library is None:
        pytest.skip(native.status())
    yield library
    library.rw_level(9)


def by_torch(monkeypatch, work):
    """What `work` gives without the kernel."""
    with monkeypatch.context() as patch:
        patch.setattr(native, "library", lambda: None)
        return work()


def arrays(stats):
    return {f.name: getattr(stats, f.name) for f in fields(stats) if f.name != "level"}


def same_bits(a, b):
    return all(torch.equal(x, y) for x, y in zip(arrays(a).values(), arrays(b).values(), strict=True))


def test_it_computes_statistics_and_weights(monkeypatch):
    """Not silently torch: what torch would do is taken away."""
    assert native.status().startswith("compiled, ")
    batch = random_batch(1)
    batches = [batch, packed(batch), replace(batch, given=batch.log_ratio)]
    batches += [random_batch(1, dtype=dtype) for dtype in (torch.float64, torch.bfloat16, torch.float16)]
    monkeypatch.setattr(sums, "_in_one_pass", None)
    monkeypatch.setattr(sums, "_of_turns", None)
    monkeypatch.setattr(Batch, "with_ratio", None)
    for b in batches:
        RatioStats.of_levels(b, LEVELS)
        monkeypatch.setattr(type(b.layout), "spread_by_torch", None)
        for level in (SEQUENCE, GEOMETRIC, WORST):
            for of in (log_ratio, k1, k2, k3):
                assert weigh(level, of=of)(b).per_token.shape == b.log_pi.shape


def test_it_is_not_used_where_it_may_not_be(monkeypatch):
    batch = random_batch(1)
    calls = []
    monkeypatch.setattr(walk, "_request", lambda *x: calls.append(x))
    monkeypatch.setattr(native, "library", lambda: None)
    RatioStats.of_levels(batch, LEVELS)
    seq_tis(2.0)(batch).per_token.sum()
    assert not calls
    for command, word in (({native.OFF: "0"}, "torch alone (REWEIGH_NATIVE=0)"), ({}, "compiled, ")):
        code = "from reweigh import native; print(native.status())"
        env = {k: v for k, v in os.environ.items() if k != native.OFF} | command
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith(word)


def test_another_version_or_other_bits_are_refused_with_a_reason(monkeypatch):
    for name, value, why in (("VERSION", 99, "of version"), ("SELF_TEST", "00", "self-test")):
        with monkeypatch.context() as patch:
            patch.setattr(native, name, value)
            with pytest.warns(RuntimeWarning, match=f"the compiled kernel is not used.*{why}"):
                library, status = native._loaded.__wrapped__()
            assert library is None
            assert why in status


# Every number against torch in float64.

LENGTHS = st.lists(st.integers(0, 70) | st.sampled_from([0, 1, 16, 63, 64, 65, 300, 1100]), min_size=0, max_size=6)
SPREADS = st.sampled_from([0.0, 1e-4, 0.02, 0.3, 1.0, 8.0, 40.0])
ODD = st.sampled_from(["none", "nan", "far", "one", "masked", "left"])


def made(lengths, spread, odd, seed, dtype=torch.float32):
    """Packed tensors of sequences, with one thing or another that is rare."""
    g = torch.Generator().manual_seed(seed)
    n = sum(lengths)
    log_mu = -3 * torch.rand(n, generator=g) - (0.01 if spread < 5 else 90.0)
    log_ratio = spread * torch.randn(n, generator=g)
    mask = torch.rand(n, generator=g) < 0.95
    if odd == "far":
        log_ratio = 1.0 + log_ratio.abs()
    elif odd == "one":  # a ratio of e^300 or more in the sequence
        log_ratio[::7] += 60
        log_mu -= 400
    elif odd == "masked":
        mask[n // 3 :] = False
    elif odd == "left":
        mask[: 2 * n // 3] = False
    if n:
        log_mu -= (log_mu + log_ratio).max().clamp(min=0)  # no log-prob is over 0
    log_pi, log_mu = (log_mu + log_ratio).to(dtype), log_mu.to(dtype)
    if odd == "nan" and n:
        log_pi[n // 2], log_mu[n // 3], log_pi[n // 4] = math.nan, -math.inf, -math.inf
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    turn = torch.randint(0, 3, (n,), generator=g).repeat_interleave(5)[:n]
    group = torch.randint(-3, 3, (len(lengths),), generator=g)
    return Batch.packed(log_pi, log_mu, offsets, mask, turn=turn, group=group)


def in_float64(monkeypatch, batch):
    """The statistics by torch, of the same log ratios, in float64."""
    exact = replace(batch, log_mu=batch.log_mu.double(), given=batch.log_ratio.double())
    return by_torch(monkeypatch, lambda: RatioStats.of_levels(exact, LEVELS))


def assert_close(got, expected, digits, nats=0.0):
    """Equal to so many digits; sums of numbers of both signs to so many of the sum of their sizes, `nats`."""
    shift = torch.maximum(got.shift, expected.shift)
    down = torch.maximum(got.blocks[:, 3], expected.blocks[:, 3])
    x, y = (arrays(s.rescaled(shift, down)) for s in (got, expected))
    if expected.moments[0].sum() == 0:  # the largest of nothing may be said in two ways
        x["peaks"], y["peaks"] = torch.zeros(3), torch.zeros(3)
    both_signs = ("l", "hybrid", "hybrid2", "longer", "pu")
    rows = torch.tensor([nats if name in both_signs else 0.0 for name in sums.MOMENTS], dtype=torch.float64)
    columns = torch.tensor([nats if name == "l" else 0.0 for name in sums.CLUSTER], dtype=torch.float64)
    for name in x:
        size = {"moments": rows[:, None], "clusters": columns, "top": nats, "peaks": nats}.get(name, 0.0)
        same = (x[name] == y[name]) | ((x[name] - y[name]).abs() <= digits * (y[name].abs() + size + 1e-6))
        assert same.all(), (name, x[name][~same], y[name][~same], (~same).nonzero())
    assert torch.equal(x["grid"][0], y["grid"][0])
    assert torch.equal(x["moments"][[0, 1, 12]], y["moments"][[0, 1, 12]])


@settings(max_examples=60)
@given(lengths=LENGTHS, spread=SPREADS, odd=ODD, seed=st.integers(0, 99))
def test_every_field_is_that_of_torch_in_float64(lengths, spread, odd, seed):
    with pytest.MonkeyPatch.context() as patch:
        batch = made(lengths, spread, odd, seed)
        got, expected = RatioStats.of_levels(batch, LEVELS), in_float64(patch, batch)
        nats = float(expected[0].moments[4].sum())
        for level, a, b in zip(LEVELS, got, expected, strict=True):
            # A sequence of many nats: its float32 sum has seven digits, and its ratio that many less.
            assert_close(a, b, 1e-6 * (1 + (level is not TOKEN) * nats), nats)


@given(lengths=LENGTHS, spread=SPREADS, odd=ODD, seed=st.integers(0, 99))
def test_float64_has_the_digits_of_float64(lengths, spread, odd, seed):
    with pytest.MonkeyPatch.context() as patch:
        batch = made(lengths, spread, odd, seed, torch.float64)
        expected = in_float64(patch, batch)
        nats = float(expected[0].moments[4].sum())
        for a, b in zip(RatioStats.of_levels(batch, LEVELS), expected, strict=True):
            assert_close(a, b, 1e-13 * (100 + nats), nats)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_read_exactly(dtype):
    """Every number that 16 bits can say, as log mu and as log pi: the same bits as of the same numbers in float32."""
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    log_pi, log_mu = every.roll(1)[None], every[None]
    mask = (log_pi.float() - log_mu.float()).isfinite()
    half, single = (Batch(a, b, Padded(mask)) for a, b in ((log_pi, log_mu), (log_pi.float(), log_mu.float())))
    for a, b in zip(
        RatioStats.of_levels(half, (TOKEN, SEQUENCE)), RatioStats.of_levels(single, (TOKEN, SEQUENCE)), strict=True
    ):
        for name, x in arrays(a).items():
            torch.testing.assert_close(x, arrays(b)[name], rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.parametrize("spread", [0.001, 0.3, 8.0])
def test_layouts_views_and_levels_of_the_processor_give_the_same_bits(kernel, spread):
    batch = random_batch(3, spread, size=(9, 1200))
    first = RatioStats.of_levels(batch, LEVELS)
    wide = lambda x: torch.cat([x, x.flip(1)], 1)[:, : x.shape[1]]  # noqa: E731
    layout = replace(batch.layout, mask=wide(batch.layout.mask), turn=wide(batch.layout.turn))
    view = replace(batch, log_pi=wide(batch.log_pi), log_mu=wide(batch.log_mu), layout=layout)
    columns = replace(batch, log_pi=batch.log_pi.T.contiguous().T)
    assert not columns.log_pi.is_contiguous()
    for other in (packed(batch), view, columns):
        assert all(map(same_bits, RatioStats.of_levels(other, LEVELS), first))
    weights = weigh(WORST, of=k3)(batch).per_token
    for level in (1, 3, 4):
        kernel.rw_level(level)
        assert all(map(same_bits, RatioStats.of_levels(batch, LEVELS), first))
        assert torch.equal(weigh(WORST, of=k3)(batch).per_token, weights)


def test_what_is_written_to_a_batch_after_it_was_made_counts():
    log_mu = torch.full((2, 5), -1.0)
    batch = Batch.padded(log_mu.clone(), log_mu, torch.ones(2, 5))
    batch.log_pi[1] += 0.1
    assert seq_tis(9.0)(batch).log_w.tolist() == pytest.approx([0.0, 0.5])
    other = replace(batch, log_pi=batch.log_pi + 0.1)
    assert seq_tis(9.0)(other).log_w.tolist() == pytest.approx([0.5, 1.0])
    half = replace(other, layout=other.layout.masked(torch.arange(5) < 2 * torch.ones(2, 1)))
    assert seq_tis(9.0)(half).log_w.tolist() == pytest.approx([0.2, 0.4])


@pytest.mark.parametrize("places", [(0, None), (None, 5), (0, 16)])
def test_a_placeholder_is_no_token_though_another_cancels_it(places):
    """Minus the largest float32, on either side or on both in one lane: where the sum of the two would be none."""
    log_pi, log_mu = torch.full((1, 40), -1.0), torch.full((1, 40), -1.5)
    for x, place in zip((log_pi, log_mu), places, strict=True):
        if place is not None:
            x[0, place] = torch.finfo(torch.float32).min
    batch = Batch.padded(log_pi, log_mu, torch.ones(1, 40))
    count = 2 - places.count(None)
    assert batch.dropped is not None
    assert int(batch.dropped.sum()) == count
    assert weigh(SEQUENCE)(batch).log_w.tolist() == [0.5 * (40 - count)]


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("spread", [0.02, 0.5])
def test_every_estimator_weighs_as_with_torch(name, spread, monkeypatch):
    estimator, batch = NAMED[name](), random_batch(5, spread, size=(40, 70), dtype=torch.float64)
    for b in (batch, packed(batch)):
        got = estimator(b)
        expected = by_torch(monkeypatch, lambda b=b: estimator(replace(b, seen=None)))
        rel = 1e-6 if any(isinstance(f.transform, ParetoSmooth) for f in estimator.factors) else 1e-9
        torch.testing.assert_close(got.per_token, expected.per_token, rtol=rel, atol=rel)
        assert (got.num_kept, got.num_bounded) == (expected.num_kept, expected.num_bounded)


@pytest.mark.parametrize("scale", [1.0, -1.0, 0.5])
@pytest.mark.parametrize("of", [log_ratio, k1, k2, k3, prob_diff])
@pytest.mark.parametrize("level", [SEQUENCE, GEOMETRIC, WORST], ids=lambda v: v.name)
def test_folds_are_those_of_torch(level, of, scale, monkeypatch):
    for dtype, digits in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)):
        batch = random_batch(6, 0.4, size=(30, 90), dtype=dtype)
        estimator = weigh(level, of=of, scale=scale)
        for b in (batch, packed(batch), replace(batch, given=batch.log_ratio)):
            got = estimator(b)
            expected = by_torch(monkeypatch, lambda b=b, e=estimator: e(replace(b, seen=None)))
            torch.testing.assert_close(got.log_w, expected.log_w, rtol=digits, atol=digits)
            assert got.log_w.dtype == expected.log_w.dtype


def records_of(lengths, spread, seed):
    """A packed batch with holes in its mask, seen as the scan sees it."""
    g = torch.Generator().manual_seed(seed)
    n = sum(lengths)
    log_mu = -4 * torch.rand(n, generator=g) ** 3
    log_pi = log_mu + spread * torch.randn(n, generator=g)
    offsets, mask = torch.tensor([0, *lengths]).cumsum(0), torch.rand(n, generator=g) < 0.8
    group = torch.randint(0, 9, (len(lengths),), generator=g)
    return Shared.of(Batch.packed(log_pi, log_mu, offsets, mask, group=group, check=False).with_ratio())


@pytest.mark.parametrize("spread", [0.0, 0.02, 0.5, 8.0, 60.0])
@pytest.mark.parametrize("lengths", [[], [0], [1], [3, 0, 16, 17, 64, 65, 0, 300], [70_000], [9] * 40])
def test_where_the_gap_sits_is_what_numpy_finds(lengths, spread):
    batch = records_of(lengths, spread, len(lengths))
    walked = Walked.of(batch)
    assert walked is not None
    rows = TokenRows.of(batch)
    pieces = rows.by_position()
    index = pieces.code * 64 + rows.buckets[pieces.seq]
    expected = [np.bincount(index, row, 53 * 64).reshape(53, 64) for row in pieces.sums]
    scale = 1e-6 * max(1.0, spread) * max([1, *lengths])
    for got, want in zip(walked.positions.swapaxes(0, 1), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=scale)
    np.testing.assert_allclose(walked.sequences, rows.by_sequence(pieces), rtol=1e-5, atol=scale)
    log_ratio, live = batch.batch.log_ratio, batch.runs.mask
    assert torch.equal(Histogram.of_shapes(walked.shapes).counts, Histogram.of(log_ratio[live]).counts)
    assert np.array_equal(walked.density, Density.of(batch).counts.numpy())
    bins = (batch.batch.log_mu[live] * np.float32(-4 / math.log(10))).clamp(0, 24).long()
    for k, x in enumerate((torch.ones_like(log_ratio), log_ratio, log_ratio.abs(), log_ratio.square())):
        want = torch.zeros(25, dtype=torch.float64).index_add(0, bins, x[live].double())
        np.testing.assert_allclose(walked.probabilities[:, k].sum(-1), want, rtol=1e-6, atol=scale)


TOKENWISE = {
    "one": weigh(TOKEN, Clip(0.5, 2.0)),
    "reject": token_mis(0.5, 5.0),
    "prefix": prefix_tis(2.0),
    "screen": weigh(PREFIX, Screen(0.7, 1.5)),
    "scaled": weigh(TOKEN, Clip(0.0, 3.0), scale=-2.0),
    "small": weigh(TOKEN, Clip(0.0, 1e-30)),
    "mixed": geo_rs(0.9, 1.1) * prefix_tis(2.0) * token_mis(0.5, 2.0) * seq_tis(1.5),
}


@pytest.mark.parametrize("spread", [0.0, 0.02, 0.5, 8.0])
@pytest.mark.parametrize("lengths", [[0], [1], [3, 0, 16, 17, 64, 65, 0, 300], [5_000], [9] * 40])
def test_trials_are_those_of_torch(lengths, spread, monkeypatch):
    def tried():
        return trials_of(TOKENWISE | {"naive": naive()}, records_of(lengths, spread, 3))

    with monkeypatch.context() as patch:
        patch.setattr(Trial, "of_weights", None)  # so that every one of them is walked
        got = tried()
    for name, want in by_torch(monkeypatch, tried).items():
        one = got[name]
        assert torch.equal(one.counts, want.counts), name
        for field in ("log_weight", "log_square", "log_largest"):
            torch.testing.assert_close(getattr(one, field), getattr(want, field), rtol=1e-5, atol=2e-5, msg=name)
        torch.testing.assert_close(one.limits, want.limits, rtol=1e-4, atol=1e-4 * max(1, len(lengths)), msg=name)


@pytest.mark.parametrize("value", [0.5, math.inf, math.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spread_puts_a_value_on_tokens_alone(value, dtype):
    mask = torch.rand(3, 50) < 0.5
    w = torch.tensor([1.0, value, 3.0], dtype=dtype)
    expected = torch.where(mask, w[:, None], 0)
    torch.testing.assert_close(walk.spread(w, mask, None), expected, rtol=0, atol=0, equal_nan=True)
    flat = walk.spread(w, mask.flatten(), torch.tensor([0, 50, 100, 150]))
    torch.testing.assert_close(flat, expected.flatten(), rtol=0, atol=0, equal_nan=True)


# No byte too far.


def test_offsets_that_reach_outside_are_refused_before_anything_is_read():
    source = random.Random(1)
    x, mask = torch.zeros(40), torch.ones(40, dtype=torch.bool)
    refused = 0
    for _ in range(2000):
        size = source.randint(1, 5)
        some = [source.choice([0, 1, 7, 39, 40, 41, -1, 2**62, -(2**63), source.randint(0, 40)]) for _ in range(size)]
        offsets = torch.tensor(sorted(some) if source.random() < 0.7 else some)
        sound = some[0] >= 0 and offsets[-1] <= 40 and bool((offsets.diff() >= 0).all()) and bool((offsets >= 0).all())
        got = [
            walk.statistics(x, x, None, mask, offsets, None, None, ["token"]),
            walk.sums(x, x, None, mask, offsets, native.ALL),
            walk.counts(mask, offsets),
            walk.spread(torch.ones(size - 1), mask, offsets) if size > 1 else sound or None,
        ]
        assert [g is not None for g in got] == [sound] * 4, offsets
        refused += not sound
    assert 200 < refused < 1800


@pytest.mark.skipif(sys.platform != "linux", reason="pages are protected by mprotect")
@pytest.mark.parametrize("end", ["last", "first"])
def test_no_byte_beside_the_tensors_is_read(kernel, end):
    """Every array lies against a page that cannot be read: a byte too far ends the process."""
    page, libc = mmap.PAGESIZE, ctypes.CDLL(None, use_errno=True)
    held = []

    def guarded(data):
        room = -(-max(1, len(data)) // page) * page
        memory = mmap.mmap(-1, room + 2 * page)
        base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for place in (base, base + page + room):
            assert libc.mprotect(ctypes.c_void_p(place), page, 0) == 0
        at = base + page + (room - len(data) if end == "last" else 0)
        ctypes.memmove(at, bytes(data), len(data))
        held.append(memory)
        return at

    source = random.Random(2)
    out = guarded(bytes(8 * 3 * sum(native.SIZES)))
    odd = ctypes.c_int64()
    for _ in range(60):
        rows, slots, kind = (
            source.randint(1, 3),
            source.choice([0, 1, 15, 16, 17, 63, 64, 65, 300]),
            source.randrange(4),
        )
        each, n = {0: 4, 1: 8, 2: 2, 3: 2}[kind], rows * slots
        pi, mu = (guarded(source.randbytes(n * each)) for _ in range(2))
        mask = guarded(bytes(source.random() < 0.7 for _ in range(n))) if source.random() < 0.7 else None
        turn = guarded(source.randbytes(8 * n))
        group = guarded(source.randbytes(8 * rows))
        given = pi if source.random() < 0.3 else None
        request = native.Input(pi, mu, given, mask, None, turn, group, rows, slots, slots, slots, slots, slots, kind)
        places = [ctypes.c_void_p(out + 8 * i * sum(native.SIZES)) for i in range(3)]
        assert kernel.rw_stats(ctypes.byref(request), *places) == 0
        by_seq = guarded(bytes(8 * 6 * rows))
        assert kernel.rw_fold(ctypes.byref(request), 1, ctypes.c_void_p(by_seq), ctypes.byref(odd)) == 0
        assert kernel.rw_fold(ctypes.byref(request), 0, ctypes.c_void_p(by_seq), ctypes.byref(odd)) == 0
        if mask:
            assert kernel.rw_count(ctypes.byref(request), ctypes.c_void_p(by_seq)) == 0
        request.kind = kind % 2
        weights, spread = guarded(source.randbytes(8 * rows)), guarded(bytes(n * (8 if kind % 2 else 4)))
        assert kernel.rw_spread(ctypes.byref(request), ctypes.c_void_p(weights), ctypes.c_void_p(spread)) == 0


@pytest.mark.slow
def test_sanitizers_find_nothing(tmp_path):
    """Random bytes of every kind, in memory of just their size, under the sanitizers of addresses and behaviour."""
    assert shutil.which("g++"), "the sanitizers come with g++"
    program = tmp_path / "fuzz"
    flags = [
        "-O1",
        "-g",
        "-std=c++20",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        "-ffp-contract=off",
        "-w",
    ]
    folder = ROOT / "reweigh" / "native"
    subprocess.run(
        ["g++", *flags, f"-I{folder}", str(ROOT / "tests" / "native_fuzz.cpp"), "-o", str(program)], check=True
    )
    done = subprocess.run([str(program), "5000"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("5000 inputs ")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="programs are built for Linux")
def test_arm64_and_x86_64_give_the_same_bits(tmp_path):
    """Every number of the same 3,000 random inputs, of four types and both layouts; the foreign processor emulated."""
    told: dict[str, str] = {}
    for machine in ("x86_64", "aarch64"):
        program = tmp_path / machine
        compiler = [sys.executable, "-m", "ziglang", "c++", "-target", f"{machine}-linux-musl", "-static", "-w"]
        flags = ["-O3", "-std=c++20", "-ffp-contract=off", "-fno-sanitize=all"]
        sources = [f"-I{ROOT / 'reweigh' / 'native'}", str(ROOT / "tests" / "native_fuzz.cpp"), "-o", str(program)]
        subprocess.run([*compiler, *flags, *sources], check=True)
        emulator = [] if machine == platform.machine() else [f"qemu-{machine}"]
        if emulator and not shutil.which(emulator[0]):
            pytest.skip(f"no {emulator[0]}, which comes with qemu-user")
        done = subprocess.run([*emulator, str(program), "3000"], capture_output=True, text=True, check=True)
        told[machine] = done.stdout
    assert told["x86_64"].startswith("3000 inputs ")
    assert told["x86_64"] == told["aarch64"]


@pytest.mark.slow
def test_a_wheel_has_the_kernel_and_one_without_compiler_has_none(tmp_path):
    """From the sources as a release has them, in an environment of its own; then from the same with no compiler."""
    source, wheels = tmp_path / "source", tmp_path / "wheels"
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "reweigh"], cwd=ROOT, capture_output=True)
    names = listed.stdout.decode().split() or [str(p.relative_to(ROOT)) for p in ROOT.glob("reweigh/**/*.*")]
    for name in ["pyproject.toml", "hatch_build.py", "README.md", "LICENSE", *names]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "build", "--wheel", "-o", str(wheels), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    [wheel] = wheels.glob("*.whl")
    assert wheel.name.startswith("reweigh-")
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("-any.whl")
    assert f"reweigh/native/{native.NAME}" in zipfile.ZipFile(wheel).namelist()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "there")
    code = "from reweigh import native; print(native.__file__, native.status())"
    env = {k: v for k, v in os.environ.items() if k != native.OFF} | {"PYTHONPATH": str(tmp_path / "there")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(str(tmp_path))
    assert " compiled, " in done.stdout
    # A compiler that fails, as one that is not there: an installation goes on without.
    wheel.unlink()
    (source / "reweigh" / "native" / "kernel.h").write_text("#error no compiler\n")
    subprocess.run(build, check=True, capture_output=True)
    [wheel] = wheels.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert f"reweigh/native/{native.NAME}" not in zipfile.ZipFile(wheel).namelist()


@pytest.mark.slow
def test_the_core_passes_its_tests_with_torch_alone():
    """The other files ran with the kernel; these run once more without."""
    names = ("stats", "golden_statistics", "batch", "levels", "laws", "losses", "named")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
    done = subprocess.run(
        [*command, *(f"tests/test_{name}.py" for name in names)],
        env=os.environ | {native.OFF: "0"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
