"""What is added up of some records, and how: the part of a diagnosis that streams."""
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false, reportAttributeAccessIssue=false
# pyarrow ships no types, and makes the functions of pyarrow.compute when it is imported.

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reweigh.doctor.cells import Cells, Keyed
from reweigh.doctor.clean import clean
from reweigh.doctor.families import FAMILIES
from reweigh.doctor.prompts import Prompts
from reweigh.doctor.tokens import Tokens
from reweigh.records.schema import Tally, Violation

AnySums = Cells | Keyed | Prompts


@dataclass(frozen=True, eq=False)
class Visit:
    """What was added up of some records; `a + b` is of both, however they were cut.

    Attributes:
        sums: by name.
        sequences: responses read.
        notes: rules that do not hold, by rule.
    """

    sums: Mapping[str, AnySums] = field(default_factory=dict[str, AnySums])
    sequences: int = 0
    notes: Mapping[str, Violation] = field(default_factory=dict[str, Violation])

    def __add__(self, other: "Visit") -> "Visit":
        """Both."""
        sums: dict[str, Any] = dict(self.sums)
        for name, x in other.sums.items():
            sums[name] = sums[name] + x if name in sums else x
        tally = Tally(dict(self.notes))
        for violation in other.notes.values():
            tally(violation)
        return Visit(sums, self.sequences + other.sequences, tally.by_rule)


def visit_tokens(tokens: Tokens) -> Visit:
    """Add up some tokens. Sequences without one of them do not count."""
    cleaned = clean(tokens)
    sums: dict[str, AnySums] = dict(cleaned.sums)
    for family in FAMILIES:
        sums.update(family.measure(cleaned.tokens))
    full = 0 if len(tokens) == 0 else int((tokens.seq[1:] != tokens.seq[:-1]).sum()) + 1
    return Visit(sums, full)
