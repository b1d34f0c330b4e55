"""Write the page of what trainers' options compute, and what `reweigh explain WORD` prints, from the profiles.

python docs/rosetta.py            # rewrites docs/rosetta.md and reweigh/rosetta/words.json
python docs/rosetta.py --check    # says whether they are up to date; exit code 1 if not
"""

import json
import sys
from pathlib import Path

from reweigh.rosetta.frameworks import PROFILES
from reweigh.rosetta.words import RATIOS, SYMBOLS, all_words, dictionary, meanings

PAGE = Path(__file__).parent / "rosetta.md"
WORDS = Path(__file__).parents[1] / "reweigh" / "rosetta" / "words.json"

OPENING = """# What trainers' options compute

Every trainer corrects for the gap between the policy that samples and the one that trains, and no two mean the same by
the same word. This page says what each option is, in one vocabulary, with the composition of ours that computes it.

```
reweigh explain                                                  # the words
reweigh explain sequence_mask                                    # one word, everywhere
reweigh explain --from verl rollout_is=token --to trl            # an option elsewhere, and what differs
reweigh explain --config ppo.yaml                                # what a configuration computes: YAML, JSON, TOML,
                                                                 # a launch script or Python, read and not run
reweigh explain --from slime --use-tis --tis-clip 2.0            # launch flags
reweigh conformance recorded.json                                # our numbers against theirs
```

An option, or a value of one, of which nothing is known is refused (exit code 2), with the nearest that is. What a
file does not say is not guessed: a variable that it does not set, a base that it inherits from (`defaults:`) and that
is not beside it. A launch script is read with its variables, arrays and branches; a Python launcher with the flags in
its texts. The version that a profile was read at stands in its table; an option of an earlier one is answered as it
computed then, with its successor.

`reweigh conformance` recomputes a file of recorded outputs: what the frameworks' own functions returned, for each
option on a few small batches with padding, holes, infinities and overflow. A case *agrees* if weights, mask, loss,
gradient and every metric that has an equal come out of our compositions to float32 rounding. It is *explained* if
quirks that the framework's profile names, switched on, make them so; they are listed below. It *differs* otherwise, and
the exit code is 1. Metrics with no equal of ours are named with the reason (`--verbose`).

A value of which nothing is known is refused, with the nearest that is (exit code 2), as is what the framework itself
refuses. What looks like a correction and is no option of the framework is a warning that `-q` does not hide, as are
options of earlier versions, which are read as that version read them. Options of sampling are read with the
correction: the answer says whether the two log-probs can be of the same law.

From Python: `reweigh.rosetta.config.translate("verl", options).reading.plan.estimator` is the `Estimator`.

Made by `docs/rosetta.py` from the profiles in `reweigh/rosetta/`."""

CONVENTIONS = (
    ("ratio", "which ratio"),
    ("bounds", "bounds act on"),
    ("k1", "k1 is"),
    ("sequence", "a sequence level is"),
    ("survivors", "survivors of a mask weigh"),
    ("not_finite", "a non-finite ratio"),
    ("clamp", "log ratios are clamped"),
    ("detached", "weights detached"),
    ("denominator", "the loss is divided by"),
    ("normalise", "weights are normalised over"),
)


def page() -> str:
    """The whole page."""
    parts = [OPENING, f"{field(SYMBOLS[0].upper() + SYMBOLS[1:])}.", same_word(), words(), conventions()]
    return "\n\n".join([*parts, *(framework(p) for p in PROFILES)]) + "\n"


def same_word() -> str:
    """Words that more than one framework uses, with what they weigh on one small batch."""
    example = " | ".join(" ".join(f"{x:g}" for x in row) for row in RATIOS)
    parts = [
        "## Same word, different mathematics",
        f"Weights are of three sequences with token ratios {field(example)}, and advantages 1, 1, -1, at the "
        "framework's own default or recommended bounds.",
    ]
    for word in (
        "sequence_mask",
        "sequence_truncate",
        "token_mask",
        "icepop",
        "geometric",
        "opsm",
        "k1",
        "k3",
        "chi2_seq",
    ):
        rows = ["| framework | meaning | weight | on the example |", "|---|---|---|---|"]
        for m in meanings(word):
            shown = " \\| ".join(" ".join(f"{x:.3g}" for x in row) for row in m.weights) if m.weights else ""
            shown = shown or ("" if m.value is None else f"{m.value:.4g}")
            rows.append(f"| {m.framework} | {field(m.says)} | {code(m.formula)} | {shown} |")
        parts += [f"### {field(word)}", "\n".join(rows)]
    return "\n\n".join(parts)


def words() -> str:
    """Which framework uses which word."""
    rows = ["| word | frameworks |", "|---|---|"]
    rows += [f"| `{word}` | {', '.join(frameworks)} |" for word, frameworks in all_words().items()]
    return "\n\n".join(("## Words", "\n".join(rows)))


def conventions() -> str:
    """One table, a row a framework for each question."""
    parts = ["## Conventions"]
    for attribute, heading in CONVENTIONS:
        rows = [f"| | {heading} |", "|---|---|"]
        rows += [f"| {p.name} | {field(getattr(p.conventions, attribute))} |" for p in PROFILES]
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def framework(p) -> str:  # noqa: ANN001 - a Profile
    """One framework's options, compositions, quirks and metrics."""
    also = f", {', '.join(p.aliases)}" if p.aliases else ""
    where = f"Options of `{p.section}`." if p.section else "Options of the top level."
    options = ["| option | default | what it does |", "|---|---|---|"]
    former = ["| option of before | version | now |", "|---|---|---|"]
    for o in p.options:
        values = f" ({', '.join(o.values)})" if o.values else ""
        if o.former:
            former.append(f"| `{o.name}` | {o.former} | {field(o.now) or 'nothing'} |")
        else:
            options.append(f"| `{o.name}` | `{o.default}` | {field(o.says + values)} |")
        for w, says in o.was.items():
            version, _, now = says.partition(": ")
            former.append(f"| `{o.name}={w}` | {version} | {field(now)} |")
    changes = [f"- `{o.name}={w}` {field(n)}" for o in p.options for w, n in o.notes.items()]
    compositions = ["| options | weight | ours |", "|---|---|---|"]
    for w in p.words:
        if w.options is not None:
            m = next(m for m in meanings(w.word) if m.framework == p.name and m.options == w.options)
            told = ", ".join(f"{k}={v}" for k, v in w.options.items())
            compositions.append(f"| {code(told)} | {code(m.formula)} | {code(m.code)} |")
    quirks = [f"- **{q.name}**: {field(q.says)}" for q in p.quirks]
    metrics = ["| metric | ours |", "|---|---|"]
    for m in p.metrics:
        names = ", ".join(f"`{n}`" for n in m.names)
        metrics.append(f"| {names} | {field(m.says) if m.equal is not None else '*no equal*: ' + field(m.says)} |")
    return "\n\n".join(
        (
            f"## {p.name}{also}, {p.version}",
            where,
            "\n".join(options),
            *(["Of their values:", "\n".join(changes)] if changes else []),
            *(["\n".join(former)] if len(former) > 2 else []),
            "Compositions:",
            "\n".join(compositions),
            "Quirks, that a switch reproduces:",
            "\n".join(quirks),
            "Metrics:",
            "\n".join(metrics),
        )
    )


def code(text: str) -> str:
    """Text in backticks, fit for a cell."""
    return f"`{text}`".replace("|", "\\|") if text else ""


def field(text: str) -> str:
    """Text in which nothing of a formula is taken for markup."""
    for mark, safe in (("_", r"\_"), ("*", r"\*"), ("<", "&lt;"), ("|", "\\|")):
        text = text.replace(mark, safe)
    return text


def main() -> int:
    """Write, or check."""
    made = {PAGE: page(), WORDS: json.dumps(dictionary(), indent=1, ensure_ascii=False) + "\n"}
    if "--check" in sys.argv[1:]:
        stale = [path.name for path, text in made.items() if not path.exists() or path.read_text() != text]
        print(f"stale: {', '.join(stale)}; run: python docs/rosetta.py" if stale else "up to date")
        return int(bool(stale))
    for path, text in made.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
