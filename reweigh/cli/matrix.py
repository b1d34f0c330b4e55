"""`reweigh probe --vary` and `--arms`: the matrix that they ask for, with its progress."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from reweigh.cli.options import FormName
from reweigh.cli.output import print_json, stdout, write_output

if TYPE_CHECKING:
    from reweigh.probe.engine import Prompt
    from reweigh.probe.matrix import Arm, ArmFailure, ArmResult, Design, Setup


def matrix(
    console: Console,
    setup: "Setup",
    prompts: "Sequence[Prompt]",
    vary: Sequence[str],
    arms: Path | None,
    design: "Design",
    folder: Path,
    seconds: float | None,
    html: Path | None,
    form: FormName,
) -> None:
    """Run the matrix, and print what each change does."""
    from reweigh.probe.matrix import MatrixPlan, analyse, arms_of, parse_vary, read_arms, run_matrix
    from reweigh.report.matrix import on_terminal, page, to_dict
    from reweigh.report.tables import to_terminal

    factors = [parse_vary(one) for one in vary]
    shared, more = read_arms(arms) if arms is not None else ({}, [])
    base = setup.with_changes(shared | {one.name: one.values[0] for one in factors})
    plan = MatrixPlan(folder, base, arms_of(factors, design, more), prompts, seconds)
    console.print(f"{len(plan.arms)} arms of {len(prompts)} prompts; {folder} keeps them", markup=False, soft_wrap=True)
    try:
        results = run_matrix(plan, lambda i, arm, result, left: _tell(console, len(plan.arms), i, arm, result, left))
    except KeyboardInterrupt:
        console.print(f"kept: arms that are done, in {folder}; the same command goes on", markup=False, soft_wrap=True)
        raise
    found = analyse(results)
    write_output(folder / "result.html", page(found))
    if html is not None:
        write_output(html, page(found))
    if form == "json":
        print_json(to_dict(found))
    else:
        to_terminal(on_terminal(found), stdout())


def _tell(
    console: Console, num_arms: int, i: int, arm: "Arm", result: "ArmResult | ArmFailure | None", left: float | None
) -> None:
    from reweigh.probe.matrix import ArmFailure

    start = f"arm {i + 1} of {num_arms}: {arm.name}"
    time_left = "" if left is None or left < 1 else f"; about {left:.0f} s left"
    if result is None:
        console.print(f"{start} ...{time_left}", markup=False, soft_wrap=True)
    elif isinstance(result, ArmFailure):
        console.print(f"{start}: failed: {result.reason}{time_left}", markup=False, soft_wrap=True)
    else:
        total, _, tokens = (sum(x) for x in zip(*result.prompts.values(), strict=True))
        console.print(f"{start}: KL {total / tokens:.2g} nats a token", markup=False, soft_wrap=True)
