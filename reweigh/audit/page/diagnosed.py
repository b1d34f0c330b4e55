"""A diagnosis as the page shows it: causes with bars and evidence, what cannot be told, and the slices."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from reweigh.audit.causes import cause_sentence, evidence_value
from reweigh.audit.labels import CUT_WORDS
from reweigh.audit.page.cells import Cell
from reweigh.audit.where import Cut
from reweigh.doctor.causes import ABOUT, CauseId
from reweigh.doctor.diagnosis import CannotTell, Diagnosis, Evidence, Finding
from reweigh.stats.numerals import share, two

MAX_EVIDENCE = 12  # of a cause
MAX_SLICES = 60
_SHARE = "Share of the sum of squared log ratios that this cause accounts for."
_CONFIDENCE = "How sure the doctor is: from 0.5 on a cause is named, below it is a suspicion."

_PICTURES = {  # by what `Cause.seen_in` calls them
    "identity": "mean ratio",
    "histogram": "log ratios",
    "tail": "the tail",
    "density": "log ratio by token probability",
}


@dataclass(frozen=True)
class EvidenceRow:
    """One number that speaks for a cause."""

    name: str
    value: Cell
    interval: str
    n: str
    meaning: str


@dataclass(frozen=True)
class CauseCard:
    """One cause."""

    id: str
    words: str
    confidence: Cell
    confidence_width: int
    share: Cell
    share_width: int
    evidence: tuple[EvidenceRow, ...]
    rules_out: str
    fix: tuple[tuple[str, str], ...]
    seen_in: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class TellRow:
    """What the records cannot decide."""

    words: str
    reason: str
    needs: str
    experiment: str


@dataclass(frozen=True)
class CauseSection:
    """All of it."""

    said: str
    found: tuple[CauseCard, ...]
    cannot_tell: tuple[TellRow, ...]
    slices: tuple[tuple[str, str, str], ...]
    notes: tuple[str, ...]


def cause_section(diagnosis: Diagnosis, cuts: Collection[Cut] = ()) -> CauseSection:
    """The section, in the diagnosis' own order; it points to pictures by the cuts that the page has."""
    read = f"{diagnosis.tokens:,} tokens of {diagnosis.sequences:,} sequences" if diagnosis.tokens else diagnosis.source
    slices = [
        (by, label, ABOUT[one.verdict].title) for by, cut in diagnosis.slices.items() for label, one in cut.items()
    ]
    notes = tuple(
        f"{note.rule}: {note.count:,} {note.counted}{f', first at {note.place}' if note.place else ''}"
        f"{f'. {note.hint}' if note.hint else ''}"
        for note in diagnosis.notes
    )
    sentence = cause_sentence(diagnosis)
    return CauseSection(
        f"{sentence[:1].upper()}{sentence[1:]}. From {read}; the likeliest first.",
        tuple(_card(one, cuts) for one in diagnosis.causes),
        tuple(_tell(one) for one in diagnosis.cannot_tell),
        tuple(slices[:MAX_SLICES]),
        notes,
    )


def _card(one: Finding, cuts: Collection[Cut]) -> CauseCard:
    explained = one.explained_share
    n = next((e.n for e in one.evidence if e.n is not None), None)
    counted = f"\nn = {n:,}" if n is not None else ""
    said = "not in the log ratio" if explained is None else share(min(1.0, max(0.0, explained)))
    return CauseCard(
        one.id,
        ABOUT[one.id].title,
        Cell(two(one.confidence), f"{two(one.confidence)}\nno interval: a judgement{counted}\n{_CONFIDENCE}"),
        round(100 * min(1.0, max(0.0, one.confidence))),
        Cell(said, f"{said}\nno interval: a fact about these records{counted}\n{_SHARE}"),
        round(100 * min(1.0, max(0.0, explained or 0.0))),
        tuple(_evidence(e) for e in one.evidence[:MAX_EVIDENCE]),
        one.rules_out,
        tuple(one.fix.items()),
        tuple(_places(one.id, cuts)),
    )


def _places(cause: CauseId, cuts: Collection[Cut]) -> Iterator[tuple[str, str]]:
    """Anchor and words of each picture in which the cause shows."""
    words: Mapping[str, str] = {cut: CUT_WORDS[cut] for cut in cuts}
    for name in ABOUT[cause].seen_in:
        if name in _PICTURES:
            yield f"fig-{name}", _PICTURES[name]
        elif name == "worst":
            yield name, "the worst sequences"
        elif name in words:
            yield f"fig-where-{name}", f"by {words[name]}"


def _evidence(one: Evidence) -> EvidenceRow:
    value, ends = evidence_value(one)
    n = f"{one.n:,}" if one.n is not None else ""
    lines = (value, f"95% interval {ends}" if ends else "no interval", f"n = {n}" if n else "", one.meaning)
    return EvidenceRow(one.name, Cell(value, "\n".join(x for x in lines if x)), ends, n, one.meaning)


def _tell(one: CannotTell) -> TellRow:
    return TellRow(ABOUT[one.id].title, one.reason, ", ".join(one.needs), one.experiment)
