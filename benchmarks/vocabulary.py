"""Exact divergences and per-token log-probs over a whole vocabulary: time and peak memory against the plain version.

    python benchmarks/vocabulary.py --threads 1
    python benchmarks/vocabulary.py --threads 2 --compile

Times are interleaved: every round runs every case once on the same inputs; medians, and the median of the rounds'
ratios. Peak memory is that of a fresh process a case: the most that the operating system has counted for it during the
call, less what it held with the inputs in place (and a small call behind it, which loads the code).

Peers: the plain formulas in torch; torch's own `linear_cross_entropy` in chunks (torch 2.13 or later); Liger's fused
linear scaled cross entropy if it is installed (`pip install liger-kernel`, which asks for Triton).
"""

import argparse
import importlib.util
import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import linear

from reweigh.logits import (
    LinearLogits,
    linear_candidate_log_probs,
    linear_log_probs,
    linear_support_log_probs,
    log_probs,
    state_divergences,
)

Case = Callable[[], object]
warnings.filterwarnings("ignore", module="torch.*")


def plain_divergences(z_pi: torch.Tensor, z_mu: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The definitions, one line each."""
    log_pi, log_mu = z_pi.log_softmax(-1), z_mu.log_softmax(-1)
    pi, mu = log_pi.exp(), log_mu.exp()
    return (
        (pi - mu).abs().sum(-1) / 2,
        (mu * (log_mu - log_pi)).sum(-1),
        (pi * (log_pi - log_mu)).sum(-1),
        ((pi - mu).square() / mu).sum(-1),
        (pi.sqrt() - mu.sqrt()).square().sum(-1) / 2,
        (log_pi - log_mu).amax(-1),
    )


def ours_divergences(z_pi: torch.Tensor, z_mu: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """All six."""
    return tuple(vars(state_divergences(z_pi, z_mu)).values())


def divergences(states: int, width: int, compiled: bool) -> dict[str, Case]:
    """Two arrays of logits, a tenth of a nat apart."""
    mu = torch.randn(states, width).mul_(3)
    pi = torch.randn(states, width).mul_(0.1).add_(mu)
    cases: dict[str, Case] = {
        "plain": lambda: plain_divergences(pi, mu),
        "reweigh": lambda: ours_divergences(pi, mu),
    }
    if compiled:
        fast, ours = torch.compile(plain_divergences), torch.compile(ours_divergences, fullgraph=True)
        exact = torch.compile(lambda a, b: plain_divergences(a.double(), b.double()))
        cases |= {
            "plain, compiled": lambda: fast(pi, mu),
            "plain in float64, compiled": lambda: exact(pi, mu),
            "reweigh, compiled": lambda: ours(pi, mu),
        }
    return cases


def from_hidden(states: int, width: int, hidden: int) -> dict[str, Case]:
    """The same from two sets of hidden states and one matrix."""
    h_mu, weight = torch.randn(states, hidden), torch.randn(width, hidden).div_(hidden**0.5)
    h_pi = torch.randn(states, hidden).mul_(0.05).add_(h_mu)
    return {
        "plain": lambda: plain_divergences(h_pi @ weight.T, h_mu @ weight.T),
        "reweigh": lambda: state_divergences(LinearLogits(h_pi, weight), LinearLogits(h_mu, weight)),
    }


def logits_scores(states: int, width: int) -> dict[str, Case]:
    """Per-token log-probs of given logits, and the gradient of the logits."""
    logits, tokens = torch.randn(states, width).mul_(3).requires_grad_(), torch.randint(width, (states,))

    def step(score: Callable[[], torch.Tensor]) -> Case:
        return lambda: torch.autograd.grad(score().sum(), logits)

    return {
        "plain": step(lambda: logits.log_softmax(-1).gather(-1, tokens[:, None])),
        "reweigh": step(lambda: log_probs(logits, tokens).log_p),
    }


def hidden_scores(states: int, width: int, hidden: int, with_entropy: bool = False) -> dict[str, Case]:
    """Per-token log-probs of hidden states, and the gradients of hidden states and matrix."""
    h = torch.randn(states, hidden).requires_grad_()
    weight = torch.randn(width, hidden).div_(hidden**0.5).requires_grad_()
    tokens = torch.randint(width, (states,))

    def step(score: Callable[[], tuple[torch.Tensor, torch.Tensor | None]]) -> Case:
        def run() -> object:
            log_p, entropy = score()
            loss = log_p.sum() if entropy is None else log_p.sum() + entropy.sum()
            return torch.autograd.grad(loss, (h, weight))

        return run

    def plain() -> tuple[torch.Tensor, torch.Tensor | None]:
        log_p = linear(h, weight).log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum(-1) if with_entropy else None
        return log_p.gather(-1, tokens[:, None]), entropy

    def ours(keep_in: torch.dtype | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        log_p, entropy = linear_log_probs(h, weight, tokens, keep_in=keep_in)
        return log_p, entropy if with_entropy else None

    cases = {"plain": step(plain), "reweigh": step(lambda: ours(None))}
    cases |= {f"reweigh, keep_in={str(k)[6:]}": step(lambda k=k: ours(k)) for k in (torch.float32, torch.bfloat16)}
    if not with_entropy:
        cases |= {name: step(lambda f=f: (f(h, weight, tokens), None)) for name, f in peers().items()}
    return cases


def some_tokens(states: int, width: int, hidden: int, over_support: bool, k: int = 32) -> dict[str, Case]:
    """Log-probs over a support of k tokens, or those of k tokens over all, and the gradients; the sampled one is in."""
    h = torch.randn(states, hidden).requires_grad_()
    weight = torch.randn(width, hidden).div_(hidden**0.5).requires_grad_()
    ids = torch.randint(width // k, (states, k)) + torch.arange(k) * (width // k)  # none twice
    tokens = ids[:, k // 2].clone()

    def step(score: Callable[[], torch.Tensor]) -> Case:
        return lambda: torch.autograd.grad(score().sum(), (h, weight))

    def plain() -> torch.Tensor:
        logits = linear(h, weight)
        if over_support:
            kept = torch.zeros(states, width, dtype=torch.bool).scatter_(-1, ids, True)
            return logits.masked_fill(~kept, -torch.inf).log_softmax(-1).gather(-1, tokens[:, None])
        return logits.log_softmax(-1).gather(-1, ids)

    def ours() -> torch.Tensor:
        if over_support:
            return linear_support_log_probs(h, weight, tokens, ids).log_p
        return linear_candidate_log_probs(h, weight, tokens, ids)[1]

    return {"plain": step(plain), "reweigh": step(ours)}


def accuracy() -> None:
    """Errors against float64: divergences of close policies, and log-probs and gradients of a bfloat16 head."""
    mu = 3 * torch.randn(64, 50_000)
    print("\n| gap of the logits | what | truth (median state) | plain, float32 | reweigh |\n|---|---|---|---|---|")
    for gap in (1e-2, 1e-4, 1e-6):
        pi = mu + gap * torch.randn(64, 50_000)
        log_pi, log_mu = pi.double().log_softmax(-1), mu.double().log_softmax(-1)
        ratio = log_pi - log_mu
        truth = (log_mu.exp() * torch.expm1(ratio).abs()).sum(-1) / 2, (log_mu.exp() * (ratio.expm1() - ratio)).sum(-1)
        for i, name in enumerate(("TV", "KL(mu\\|\\|pi)")):
            worst = [
                ((out[i].double() - truth[i]).abs() / truth[i]).max().item()
                for out in (plain_divergences(pi, mu), ours_divergences(pi, mu))
            ]
            print(f"| {gap:.0e} | {name} | {truth[i].median():.1e} | {worst[0]:.0e} | {worst[1]:.0e} |")
    hidden, weight = torch.randn(4096, 64), torch.randn(4000, 64).div_(4)
    tokens, by = torch.randint(4000, (4096,)), torch.randn(4096)
    leaves = [x.bfloat16().requires_grad_() for x in (hidden, weight)]
    exact = linear(*(x.double() for x in leaves)).log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    slopes = torch.autograd.grad((exact * by).sum(), leaves)
    versions: dict[str, Callable[[], torch.Tensor]] = {
        "plain": lambda: linear(*leaves).float().log_softmax(-1).gather(-1, tokens[:, None])[:, 0],
        "reweigh": lambda: linear_log_probs(*leaves, tokens).log_p,
        "reweigh, float32 head": lambda: linear_log_probs(*leaves, tokens, multiply_in=torch.float32).log_p,
    } | {name: lambda f=f: f(*leaves, tokens) for name, f in peers().items()}
    print("\n| bfloat16 inputs | dtype of log-probs | largest error, nats | gradient, hidden | gradient, matrix |")
    print("|---|---|---|---|---|")
    for name, run in versions.items():
        log_p = run()
        grads = torch.autograd.grad((log_p * by).sum(), leaves)
        errors = [((a - b).double().norm() / b.double().norm()).item() for a, b in zip(grads, slopes, strict=True)]
        worst_log_p = (log_p - exact).abs().max().item()
        print(f"| {name} | {str(log_p.dtype)[6:]} | {worst_log_p:.0e} | {errors[0]:.1e} | {errors[1]:.1e} |")


def peers() -> dict[str, Callable[..., torch.Tensor]]:
    """What else gives log-probs from hidden states without all logits, as far as it is installed."""
    found: dict[str, Callable[..., torch.Tensor]] = {}
    if hasattr(torch.nn.functional, "linear_cross_entropy"):
        fused, options = torch.nn.functional.linear_cross_entropy, torch.nn.LinearCrossEntropyOptions()
        found["torch, chunked"] = lambda h, w, t: -fused(h, w, t, reduction="none", options=options)
    if importlib.util.find_spec("liger_kernel") is not None:
        from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction

        found["Liger, chunked"] = lambda h, w, t: -LigerFusedLinearScaledCrossEntropyFunction.apply(h, w, t)
    return found


def problems(args: argparse.Namespace) -> dict[str, Callable[[int, int], dict[str, Case]]]:
    """What is measured: makes the cases of a number of states and a vocabulary."""
    return {
        "divergences": lambda s, v: divergences(s, v, args.compile),
        "divergences from hidden states": lambda s, v: from_hidden(s // 2, v, args.hidden),
        "log-probs and gradient": lambda s, v: logits_scores(s // 2, v),
        "log-probs from hidden states and gradient": lambda s, v: hidden_scores(s // 2, v, args.hidden),
        "with entropy": lambda s, v: hidden_scores(s // 2, v, args.hidden, with_entropy=True),
        "over a support of 32, and gradient": lambda s, v: some_tokens(s, v, args.hidden, True),
        "of 32 candidates, and gradient": lambda s, v: some_tokens(s, v, args.hidden, False),
    }


def resident() -> int:
    """Bytes that the system counts for this process now."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096


def peak(run: Case) -> int:
    """Most bytes over what is held before the call, looked up every half millisecond."""
    before, most, stop = resident(), [0], threading.Event()

    def watch() -> None:
        while not stop.wait(5e-4):
            most[0] = max(most[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    kept = run()
    stop.set()
    watcher.join()
    del kept
    return max(most[0] - before, 0)


def main() -> None:
    """Print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", type=int, default=4096, help="half as many where a gradient is taken")
    parser.add_argument("--vocabulary", type=int, default=50_000)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="the divergences compiled, too")
    parser.add_argument("--accuracy", action="store_true", help="print errors instead of times")
    parser.add_argument("--only", action="append", help="one of the problems, by name; may be repeated")
    parser.add_argument("--problem", help=argparse.SUPPRESS)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    chosen = {k: v for k, v in problems(args).items() if args.only is None or k in args.only}
    if args.peak is not None:
        make = problems(args)[args.problem]
        small, large = make(16, args.vocabulary), make(args.states, args.vocabulary)
        small[args.peak]()
        print(peak(large[args.peak]))
        return
    if args.accuracy:
        accuracy()
        return
    size = f"{args.states} states, vocabulary {args.vocabulary}, hidden {args.hidden}, float32"
    print(f"{size}, {args.threads} thread(s), torch {torch.__version__}, median of {args.runs}\n")
    print("| what | version | seconds | plain / this | peak above the inputs, MB | plain / this |")
    print("|---|---|---|---|---|---|")
    for name, make in chosen.items():
        cases = make(args.states, args.vocabulary)
        times: dict[str, list[float]] = {case: [] for case in cases}
        for round_ in range(args.runs + 1):
            for case, run in cases.items():
                start = time.perf_counter()
                run()
                if round_:  # the first warms up
                    times[case].append(time.perf_counter() - start)
        del cases, run
        sizes = {case: peak_in_a_fresh_process(name, case) for case in times}
        for case, seconds in times.items():
            ratio = statistics.median(a / b for a, b in zip(times["plain"], seconds, strict=True))
            cells = (
                f"{statistics.median(seconds):.2f} | {ratio:.2f}",
                f"{sizes[case] / 1e6:.0f} | {sizes['plain'] / sizes[case]:.1f}",
            )
            print(f"| {name} | {case} | {' | '.join(cells)} |", flush=True)


def peak_in_a_fresh_process(name: str, case: str) -> int:
    """The same command, for one case alone."""
    command = [sys.executable, *sys.argv, "--problem", name, "--peak", case]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    main()
