"""Write the table of causes into the doctor's page, and, given the benchmark's results, its tables.

python docs/doctor.py                      # rewrites the table of causes in docs/doctor.md
python docs/doctor.py --check              # says whether it is up to date; exit code 1 if not
python docs/doctor.py --results FOLDER     # also the tables of `python benchmarks/doctor.py`, from its results
"""

import argparse
import re
import sys
from pathlib import Path

from reweigh.doctor.advice import ADVICE
from reweigh.doctor.diagnosis import CAUSES
from reweigh.doctor.families import FAMILIES

PAGE = Path(__file__).parent / "doctor.md"
RESULTS = ("scores", "clean", "pairs", "martingale", "speed")

# What each test looks at, in short; the evidence of a diagnosis has the numbers.
STATISTICS = {
    "placeholder_logprob": "tokens with log_mu of 0, 1, -9999 or NaN that log_pi contradicts",
    "unmasked_context": "runs of such tokens inside a response; windows far more surprising than the entropy",
    "retokenisation": "responses in which the two log-probs lose step part of the way",
    "shift": "responses in which log_pi fits log_mu of a neighbour; squares that undoing it saves",
    "wrong_token": "rare tokens of pi that log_mu puts at the likeliest's level; mean ratio over 1, unlike any law",
    "raw_logprobs": "mean ratio over 1 with mean log ratio over 0, while the mean inverse ratio is 1",
    "truncated_sampling": "mean ratio under 1 with log ratios all on one side, and no rare tokens",
    "vocab_padding": "the same, while rare tokens are as frequent as their entropy says",
    "both_raw": "mean of -log_pi less the entropy, where the log ratio shows nothing",
    "trainer_temperature": "share of squares that token probability and entropy explain, with a mean ratio of 1",
    "repetition_penalty": "mean log ratio of tokens whose id stood before, less that of new ones of like probability",
    "template_prefix": "fall of the gap's size along the response",
    "packing_leak": "size in later responses of a packed row over that in first ones",
    "position_encoding": "growth of the gap's size along the context",
    "stale_weights": "size on tokens of older weights over that on newer ones of the same step",
    "weight_sync": "growth of the size along the steps at one lag, by 2.5 times and more",
    "update_below_precision": "the same growth, but slower",
    "stale_kv": "size after a change of weights inside a response, or on prompts that older weights had answered",
    "dropout": "distance of two passes of the trainer; without them, large noise that is fresh at every token",
    "moe_routing": "tokens over twelve times the median size, one by one, on a floor of rounding",
    "quantised_rollout": "median size over that of bfloat16, of the baseline, or of the engine's own noise",
    "engine_decode": "distance of the engine's decode to its own prefill over the trainer's distance to it",
    "numerics": "what is left",
    "none": "no gap",
}


def causes() -> str:
    """The table of causes, in the order in which they are tested."""
    family = {cause: one.name for one in FAMILIES for cause in one.causes}
    rows = [
        "| cause | what it is | family | looked at | helped by columns | it is not this if |",
        "|---|---|---|---|---|---|",
    ]
    for cause in CAUSES:
        advice = ADVICE[cause]
        needs = ", ".join(f"`{name}`" for name in advice.needs)
        cells = (f"`{cause}`", advice.title, family.get(cause, ""), STATISTICS[cause], needs, advice.rules_out)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def lost() -> str:
    """What each column is for, from the families."""
    rows = ["| without | is lost |", "|---|---|"]
    found: dict[str, list[str]] = {}
    for family in FAMILIES:
        for column, loss in family.needs.items():
            found.setdefault(column, []).append(loss)
    rows += [f"| `{column}` | {'; '.join(dict.fromkeys(losses))} |" for column, losses in found.items()]
    return "\n".join(rows)


def put(page: str, name: str, text: str) -> str:
    """The page with another text between a name's markers."""
    between = re.compile(rf"(<!-- {name}: made by docs/doctor.py -->\n).*?(<!-- /{name} -->)", re.S)
    if not between.search(page):
        raise SystemExit(f"error: {PAGE.name} has no markers of {name}")
    return between.sub(lambda match: f"{match[1]}\n{text.strip()}\n\n{match[2]}", page)


def result(folder: Path, name: str) -> str | None:
    """Tables of one part of the benchmark, and its picture, if it was run."""
    path = folder / f"{name}.md"
    if not path.is_file():
        print(f"docs/doctor.py: no {path}: left as it is", file=sys.stderr)
        return None
    picture = {"scores": "doctor-confusion", "speed": "doctor-speed"}.get(name)
    image = PAGE.parent / "images" / f"{picture}.png"
    shown = f"![{picture}](images/{image.name})\n\n" if picture and image.is_file() else ""
    return shown + path.read_text()


def main() -> int:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--results", type=Path, metavar="FOLDER")
    args = parser.parse_args()
    before = PAGE.read_text()
    page = put(put(before, "causes", causes()), "columns", lost())
    if args.check:
        print("up to date" if page == before else "stale: docs/doctor.md; run: python docs/doctor.py")
        return int(page != before)
    for name in RESULTS if args.results else ():
        text = result(args.results, name)
        page = page if text is None else put(page, name, text)
    PAGE.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
