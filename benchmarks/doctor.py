"""How often the doctor names the cause of a mismatch: faults committed for real on a small language model, and scored.

    python benchmarks/doctor.py generate                 # make the cases (hours on one core; resumes where it stopped)
    python benchmarks/doctor.py judge                    # each world by weights fitted on the others
    python benchmarks/doctor.py judge --again            # tables and pictures from the answers of the last time
    python benchmarks/doctor.py fit                      # weights of all worlds into the package
    python benchmarks/doctor.py clean --world small deep # false alarms on 400 pairs without a fault, in these worlds
    python benchmarks/doctor.py martingale               # side by side with martingale 0.2.0
    python benchmarks/doctor.py speed                    # time and memory at 1, 3 and 10 million tokens
    python benchmarks/doctor.py generate --seeds 1 0 0 --only raw_logprobs --tokens 2000     # a look

A case is a run of eight training steps with one fault: 50,000 tokens that an engine really sampled and logged and a
trainer really scored (`faults`). Smaller samples are all responses to some of a run's prompts. Cases are
kept as record files, by default under ~/.cache/reweigh/doctor-benchmark; results go to its folder `results` as JSON,
Markdown and pictures, and Markdown to the standard output. Progress goes to the standard error.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import doctor_fit
import doctor_martingale
import doctor_speed
import doctor_tables
from doctor_cases import CLEAN, LEVEL_ORDER, QUANTISED, TOKENS, Run, clean_runs, generate, pair_runs, runs_of

import reweigh.doctor
from faults import FAULTS, RECIPES, Fault

GENERATE = "hint: python benchmarks/doctor.py generate --world tiny small deep"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reweigh" / "doctor-benchmark"


def chosen(names: Sequence[str] | None) -> list[Fault]:
    """Faults of these causes or variants; all if there are none."""
    known = {f.id for f in FAULTS} | {f.name for f in FAULTS}
    for name in names or ():
        if name not in known:
            raise SystemExit(f"error: no fault {name!r}\nhint: python -m faults --list")
    return [f for f in FAULTS if not names or f.id in names or f.name in names]


def runs(args: argparse.Namespace) -> list[Run]:
    """The cases that were asked for."""
    seeds = dict(zip(("medium", "strong", "weak"), args.seeds, strict=True))
    return runs_of(chosen(args.only), seeds, tokens=args.tokens, worlds=args.world, levels=LEVEL_ORDER)


def report(args: argparse.Namespace, name: str, numbers: Any, text: str) -> None:
    """Write and print."""
    out = folder(args)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(numbers, indent=1))
    (out / f"{name}.md").write_text(text + "\n")
    print(text)


def folder(args: argparse.Namespace) -> Path:
    """Of the results."""
    return args.out or args.cases / "results"


def judge_command(args: argparse.Namespace) -> None:
    """Leave out one world at a time, write and print; or print again what was written."""
    out = folder(args)
    if args.again:
        found = doctor_tables.load(out / "judged.json")
    else:
        doctor_fit.make_loops(args.cases, args.loops, args.loops // 2, 0)
        looks = doctor_fit.looked_at(args.cases, args.cases / "looks.pickle", args.processes)
        if len({look.world for look in looks}) < 2:
            raise SystemExit(f"error: no cases of two worlds in {args.cases}\n{GENERATE}")
        found = [doctor_tables.Said.of(look, said) for look, said in doctor_fit.judged(looks)]
    single = [x for x in found if "+" not in x.case]
    doctor_tables.risk_picture(single, (args.images or out) / "doctor-risk.png")
    doctor_tables.calibration_picture(single, (args.images or out) / "doctor-calibration.png")
    report(args, "judged", doctor_tables.rows_of(found), doctor_tables.whole_table(found))


def fit_command(args: argparse.Namespace) -> None:
    """Fit on all that is there."""
    looks = doctor_fit.looked_at(args.cases, args.cases / "looks.pickle", args.processes)
    if not looks:
        raise SystemExit(f"error: no cases in {args.cases}\n{GENERATE}")
    doctor_fit.save(Path(reweigh.doctor.__file__).with_name("confidence.json"), looks)


def clean_command(args: argparse.Namespace) -> None:
    """False alarms on pairs that nothing is fitted on, each world by the weights of the others."""
    made = args.cases / "clean"
    wanted = clean_runs(args.draws, args.world, CLEAN, 100, args.tokens)
    wanted += clean_runs(args.draws // 4, args.world, QUANTISED, 1100, args.tokens)
    generate(wanted, made, args.processes)
    learnt = doctor_fit.looked_at(args.cases, args.cases / "looks.pickle", args.processes)
    if len({look.world for look in learnt}) < 2:
        raise SystemExit(f"error: no cases of two worlds in {args.cases}\n{GENERATE}")
    looks = doctor_fit.looked_at(made, made / "looks.pickle", args.processes, ("all", "one-pass", "minimal"))
    found = [doctor_tables.Said.of(look, said) for look, said in doctor_fit.judged(looks, learnt=learnt)]
    report(args, "clean", doctor_tables.rows_of(found), doctor_tables.alarms_table(found))


def martingale_command(args: argparse.Namespace) -> None:
    """Both doctors, ours by weights that were fitted without the world of the case."""
    wanted = [run for run in runs(args) if run.causes[0] in doctor_martingale.CAUSES]
    doctor_martingale.require()
    wanted = [run for run in wanted if (args.cases / run.file).is_file()]
    looks = doctor_fit.looked_at(args.cases, args.cases / "looks.pickle", args.processes)
    if not wanted or len({look.world for look in looks}) < 2:
        raise SystemExit(f"error: no cases of two worlds in {args.cases}\n{GENERATE}")
    weights = {world: doctor_fit.weights_without(looks, world) for world in {run.world for run in wanted}}
    found = doctor_martingale.side_by_side(wanted, args.cases, args.size, args.processes, weights)
    report(args, "martingale", doctor_martingale.rows_of(found), doctor_martingale.table(found))


def speed_command(args: argparse.Namespace) -> None:
    """Time and memory."""
    if args.child:
        doctor_speed.child(args.child, args.workers)
        return
    found = doctor_speed.curve(args.sizes, args.workers, Path(__file__))
    doctor_speed.picture(found, args.workers, (args.images or folder(args)) / "doctor-speed.png")
    report(args, "speed", doctor_speed.rows_of(found), doctor_speed.table(found))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    whole = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = whole.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--cases", type=Path, default=CACHE, help="folder of the cases")
    shared.add_argument("--processes", type=int, default=1)
    shared.add_argument("--tokens", type=int, default=TOKENS, help="of a run")
    shared.add_argument("--out", type=Path, help="folder of the results; `results` in that of the cases")
    shared.add_argument("--images", type=Path, help="folder of the pictures; that of the results if not given")
    which = argparse.ArgumentParser(add_help=False)
    which.add_argument("--seeds", type=int, nargs=3, default=(3, 1, 1), metavar="N", help="of medium, strong, weak")
    which.add_argument("--only", nargs="+", metavar="FAULT", help="causes or variants")
    names = (*RECIPES, "smollm2")
    which.add_argument(
        "--world", choices=names, nargs="+", default=["tiny"], metavar="WORLD", help=f"of {', '.join(names)}"
    )
    making = commands.add_parser("generate", parents=[shared, which], help="make the cases")
    making.add_argument("--pairs", type=int, default=0, metavar="N", help="also two faults at once, N seeds of a world")
    judge = commands.add_parser("judge", parents=[shared], help="each world by weights fitted on the others")
    judge.add_argument("--loops", type=int, default=60, help="training loops without a fault; half as many lag")
    judge.add_argument("--again", action="store_true", help="tables and pictures from the answers of the last time")
    commands.add_parser("fit", parents=[shared], help="weights of all worlds, into the package")
    clean = commands.add_parser("clean", parents=[shared, which], help="false alarms on runs without a fault")
    clean.add_argument("--draws", type=int, default=400, help="runs without a fault; a quarter as many are quantised")
    peer = commands.add_parser("martingale", parents=[shared, which], help="side by side with martingale 0.2.0")
    peer.add_argument("--size", type=int, default=10_000, help="tokens of a sample")
    speed = commands.add_parser("speed", parents=[shared], help="time and memory")
    speed.add_argument("--sizes", type=float, nargs="+", default=(1e6, 3e6, 10e6), help="tokens")
    speed.add_argument("--workers", type=int, default=2)
    speed.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    return whole


COMMANDS = {
    "judge": judge_command,
    "fit": fit_command,
    "clean": clean_command,
    "martingale": martingale_command,
    "speed": speed_command,
}


def main() -> None:
    """Run what was asked for."""
    args = parser().parse_args()
    if args.command == "generate":
        two = pair_runs(args.pairs, args.world, args.tokens)
        generate(runs(args) + two, args.cases, args.processes)
    else:
        COMMANDS[args.command](args)


if __name__ == "__main__":
    main()
