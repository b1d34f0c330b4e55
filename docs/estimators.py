"""Write the table of estimators, from their docstrings and from what is known of each, into the README and a page.

python docs/estimators.py            # rewrites README.md (between the markers) and docs/estimators.md
python docs/estimators.py --check    # says whether they are up to date; exit code 1 if not
"""

import inspect
import re
import sys
from pathlib import Path

from reweigh import NAMED

ROOT = Path(__file__).parent.parent
START, END = "<!-- estimators: made by docs/estimators.py -->", "<!-- /estimators -->"

# Unbiased for the gradient of a terminal reward? Largest weight of a unit? Source, in short.
FACTS = {
    "naive": ("no", "1", "-"),
    "seq_is": ("**yes**", "none", "Liu et al. 2025"),
    "snis": ("as N grows", "N", "Owen; Swaminathan, Joachims 2015"),
    "group_snis": ("as G grows", "G", "as `snis`, by prompt"),
    "token_is": ("no", "none", "Li, Liu 2025"),
    "prefix_is": ("with advantages of pi", "none", "Precup et al. 2000"),
    "suffix_is": ("no", "none", "-"),
    "geo_is": ("no", "none", "Zheng et al. 2025 (GSPO)"),
    "token_tis": ("no", "cap", "Yao et al. 2025; Ionides 2008"),
    "prefix_tis": ("no", "cap", "Precup et al. 2000; Ionides 2008"),
    "turn_tis": ("no", "cap", "-"),
    "seq_tis": ("as cap grows", "cap", "Li, Liu 2025"),
    "cispo_cap": ("no", "high", "MiniMax 2025"),
    "seq_mis": ("as high grows", "high", "Liu et al. 2025"),
    "token_mis": ("no", "high", "Ling Team 2025 (IcePop)"),
    "geo_rs": ("no", "1", "Li, Liu 2025, Part 3"),
    "geo_mis": ("no", "high", "AReaL"),
    "k1_rs": ("no", "1", "verl; Schulman 2020"),
    "k3_rs": ("no", "1", "verl; Schulman 2020"),
    "trm": ("no", "1", "Li et al. 2025 (TRM)"),
    "opsm": ("no", "1", "DeepSeek-AI 2025 (V3.2)"),
    "dppo_tv": ("no", "cap", "Qi et al. 2026 (DPPO)"),
    "dppo_kl": ("no", "cap", "Qi et al. 2026 (DPPO)"),
    "m2po": ("no", "1", "Zheng et al. 2025 (M2PO), AReaL"),
    "psis": ("as N grows", "largest ratio", "Vehtari et al. 2024"),
    "shrunk_seq_is": ("as lam grows", "sqrt(lam)/2", "Su et al. 2020"),
    "vespo": ("no", "(a/b)^a e^(b-a)", "Shen et al. 2026"),
}


def first_formula(doc: str) -> str:
    """The formula in backticks that the docstring begins with."""
    return re.match(r"`([^`]*)`", doc).group(1)


def table() -> str:
    """The table of the README."""
    rows = ["| name | weight | unbiased? | at most | source |", "|---|---|---|---|---|"]
    for name, make in NAMED.items():
        doc = inspect.getdoc(make)
        unbiased, bound, source = FACTS[name]
        formula = first_formula(doc).replace("|", "\\|")
        rows.append(f"| `{name}` | `{formula}` | {unbiased} | {bound} | {source} |")
    return "\n".join(rows)


def page() -> str:
    """The page with every docstring whole."""
    parts = ["# Estimators", "Made from the docstrings by `docs/estimators.py`.", table()]
    for name, make in NAMED.items():
        parts.append(f"## `{name}{inspect.signature(make)}`".replace(" -> reweigh.estimators.Estimator", ""))
        parts.append(inspect.getdoc(make))
    return "\n\n".join(parts) + "\n"


def readme() -> str:
    """The README with its table made anew."""
    text = (ROOT / "README.md").read_text()
    before, rest = text.split(START)
    return f"{before}{START}\n{table()}\n{END}{rest.split(END)[1]}"


def main() -> int:
    """Write, or check, both."""
    made = {ROOT / "README.md": readme(), ROOT / "docs" / "estimators.md": page()}
    if "--check" in sys.argv[1:]:
        stale = [str(path.relative_to(ROOT)) for path, text in made.items() if path.read_text() != text]
        print(f"stale: {', '.join(stale)}; run: python docs/estimators.py" if stale else "up to date")
        return int(bool(stale))
    for path, text in made.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
