"""The lemma of stochastic gradient ascent, which the post takes from its Part 1: claim 0."""

from torch import Tensor

from reweigh.lab.claims.claim import Claim, Evidence
from reweigh.lab.claims.material import tiny, value
from reweigh.lab.distances import norms
from reweigh.lab.exact import coefficients, exact
from reweigh.lab.world import World, random_world
from reweigh.named import naive, seq_is, seq_tis, token_is
from reweigh.sga import Moments, softmax_smoothness

STEPS = (0.3, 1.0, 3.0)  # in units of 1 / L
BATCHES = (1, 2)


def _steps_of(world: World, coef: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Every gradient that a batch of n can give, and its probability."""
    each, p = world.sampled.dense(coef), world.mu
    if n == 1:
        return each, p
    return ((each[:, None] + each) / 2).flatten(0, 1), (p[:, None] * p).flatten()


def _lemma() -> Evidence:
    cases = broken = helped = 0
    margin, rescaled = float("inf"), 0.0
    for seed in range(6):
        world = random_world(vocab=2, length=3, gap=0.8, seed=seed)
        curvature = softmax_smoothness(norms(world).half_range)
        start = value(world, world.policies.log_pi)
        for estimator in (naive(), token_is(), seq_is(), seq_tis(2.0)):
            coef, found = coefficients(world, estimator), exact(world, estimator)
            lemma = found.lemma
            helped += lemma.gain(0.5 / curvature, curvature).bias > 1e-12
            small = Moments(found.g.numpy(), found.mean.numpy() / 10, found.trace_cov / 100)
            rescaled = max(rescaled, abs(small.efficiency(64) - lemma.efficiency(64)))
            for n in BATCHES:
                grads, p = _steps_of(world, coef, n)
                for step in STEPS:
                    at = world.policies.log_pi + step / curvature * grads.unflatten(1, world.policies.log_pi.shape)
                    gain = float(p @ (value(world, at) - start))
                    bound = lemma.gain(step / curvature, curvature, n).total
                    cases, broken = cases + 1, broken + (gain < bound - 1e-12)
                    margin = min(margin, gain - bound)
    total = 6 * 4
    return Evidence(
        broken == 0 and helped > 0 and rescaled < 1e-12,
        f"E J(theta + step ghat_N) over every batch against A + B - C, {cases} cases (6 worlds, 4 estimators, N = 1 "
        f"and 2, steps of {', '.join(f'{s:g}' for s in STEPS)} / L): {broken} below the bound, smallest margin "
        f"{margin:.2g}. Term B is positive in {helped} of {total} cases: bias can help. A tenfold smaller estimator "
        f"has the same efficiency (difference at most {tiny(rescaled)}).",
    )


LEMMA = (
    Claim(
        number=0,
        title="The lemma of stochastic gradient ascent",
        post="Progress of a step is bounded below by three terms: A, of the true gradient; B, of the bias, measured "
        "by total variation; C, of the variance, measured by chi-square.",
        verdict="OK+",
        why="It needs an objective that is L-smooth everywhere, plain gradient ascent (not Adam) and a batch that "
        "the parameters did not see. Term B has either sign, and total variation and chi-square bound bias and "
        "variance from above: they do not measure them.",
        sharper="At the best step the guaranteed gain is Gamma_N |g|^2 / (2 L), with Gamma_N = <g, m>_+^2 / (|g|^2 "
        "(|m|^2 + Var / N)) = cos^2(g, m) SNR / (1 + SNR), in [0, 1], where m is the mean of the estimator and SNR "
        "= N |m|^2 / Var. Unlike the mean squared error it does not reward an estimator for being small.",
        use="Compare estimators by `Exact.efficiency(n)` or `Moments.efficiency(n)`, at the batch size that you "
        "train with; `Moments.gain` has the three terms.",
        evidence=_lemma,
    ),
)
