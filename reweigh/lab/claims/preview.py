"""Claims 30 and 31, of the preview of Part 3: long sequences, and what a huge ratio means."""

from statistics import median

from reweigh import bounds as b
from reweigh.estimators import Estimator
from reweigh.lab.advantages import Reward
from reweigh.lab.claims.claim import Claim, Evidence
from reweigh.lab.claims.material import tiny
from reweigh.lab.exact import exact
from reweigh.lab.traps import trap_a
from reweigh.lab.world import World, random_world
from reweigh.named import geo_rs, seq_is, seq_mis, seq_tis
from reweigh.planner import LogNormalRatio

LENGTHS = (1, 4, 10)
SEEDS = 40


def _mass(world: World, estimator: Estimator) -> list[float]:
    """Share of pi's mass at each length that an estimator's weights leave."""
    s, w = world.sampled, estimator(world.batch).per_unit
    return [float((world.mu * w)[s.lengths == t].sum() / s.pi[s.lengths == t].sum()) for t in LENGTHS]


def _long() -> Evidence:
    found: dict[str, list[list[float]]] = {"Seq-IS": [], "TIS(2)": [], "MIS(2)": []}
    for seed in range(SEEDS):
        world = random_world(vocab=3, length=10, memory=0, eos=0, gap=0.8, seed=seed)
        for (_, into), e in zip(found.items(), (seq_is(), seq_tis(2.0), seq_mis(0.0, 2.0)), strict=True):
            into.append(_mass(world, e))
    middle = {name: [median(row[i] for row in rows) for i in range(3)] for name, rows in found.items()}
    off = max(abs(x - 1) for row in found["Seq-IS"] for x in row)
    # Each token with KL(mu||pi) = .0002; the band of geo_rs.
    geo = [LogNormalRatio.of_length(2e-4, t).geo_accept(0.999, 1.001, t) for t in (10, 100, 1000)]
    one = random_world(vocab=3, length=8, memory=1, gap=0.05, seed=0)
    kept = float(one.mu[geo_rs(0.99, 1.01)(one.batch).keep].sum())
    short = random_world(vocab=3, length=2, memory=1, gap=0.05, seed=0)
    kept_short = float(short.mu[geo_rs(0.99, 1.01)(short.batch).keep].sum())
    falls = all(middle[name][2] < middle[name][1] < middle[name][0] for name in ("TIS(2)", "MIS(2)"))
    said = "; ".join(f"{name} {', '.join(f'{x:.2f}' for x in middle[name])}" for name in ("TIS(2)", "MIS(2)"))
    return Evidence(
        off < 1e-11 and falls and geo[0] < geo[1] < geo[2] and kept_short < kept,
        f"E_mu[w 1{{length}}] over pi(length), lengths {', '.join(map(str, LENGTHS))}, {SEEDS} worlds with an eos: "
        f"Seq-IS 1 (to {tiny(off)}); medians {said}. A band of .999 to 1.001 on the geometric ratio keeps "
        f"{', '.join(f'{x:.2f}' for x in geo)} of sequences of 10, 100, 1000 tokens at KL .0002 a token; in a world, "
        f"one of 1% keeps {kept_short:.2f} at T = 2 and {kept:.2f} at T = 8.",
    )


def _artefacts() -> Evidence:
    world = trap_a(100)
    tis, mis = (exact(world, e, Reward("value")).cosine for e in (seq_tis(2.0), seq_mis(0.0, 2.0)))
    dropped = ~seq_mis(0.0, 2.0)(world.batch).keep
    successes = float(world.sampled_reward[dropped].min())
    agree = 0
    cases = [(cap, excess) for cap in (3.0, 10.0) for excess in (0.5, 5.0, 50.0)]
    for cap, excess in cases:
        share = b.artefacts_for_mis(cap)
        sides = [(1 - s) * excess + s * (cap - 1) > (1 - s) * (excess + cap) + s for s in (share - 1e-6, share + 1e-6)]
        agree += sides == [False, True]
    shares = ", ".join(f"{b.artefacts_for_mis(c):.2f} at C = {c:g}" for c in (2.0, 3.0, 10.0))
    return Evidence(
        tis > 0.9 > 0 > mis and successes == 1.0 and agree == len(cases),
        f"Trap A, T = 100: what Seq-MIS(2) rejects are successes, all with reward {successes:.0f}, and its cosine "
        f"with g is {mis:.2f}; Seq-TIS(2) has {tis:.2f}. Share of artefacts from which rejecting has less bias: "
        f"{shares}, whatever the size of the excess (sides change there in {agree} of {len(cases)} cases).",
    )


PREVIEW = (
    Claim(
        number=30,
        title="Importance sampling penalises long sequences",
        post="Standard importance sampling systematically penalises long sequences.",
        verdict="WRONG",
        why="Not importance sampling: E_mu[r 1{length}] is pi(length), exactly. Truncation and rejection at a fixed "
        "cap do, and so does a typical small batch, in which the rare large ratios are missing.",
        sharper="The mass that TIS and MIS leave falls with the length. A fixed band on the geometric ratio does "
        "the opposite as long as KL per token is inside: log r / T has variance of order 1 / T, so it rejects "
        "*short* sequences.",
        use="Read the mean weight by length in the audit; let the width of a geometric band shrink as 1 / sqrt(T), "
        "centred at minus the KL per token.",
        evidence=_long,
    ),
    Claim(
        number=31,
        title="A huge ratio is an artefact",
        post="Samples with extreme ratios are out of distribution, and should be rejected and not truncated.",
        verdict="OK+",
        why="It is an assumption about the data, and a reasonable one for numerical noise. Where large ratios are "
        "rare successes, rejecting them turns the gradient round.",
        sharper="If a share of the ratios over C is spurious (true weight about 1), rejecting has less bias than "
        "truncating iff that share is over C / (2 (C - 1)).",
        use="`reweigh.bounds.tis_or_mis(share, cap)`; find out what the largest ratios are before dropping them. At "
        "C = 2 rejecting never has less bias.",
        evidence=_artefacts,
    ),
)
