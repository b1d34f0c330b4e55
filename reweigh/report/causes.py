"""A diagnosis as lines and tables: in short beside an audit, in full on a terminal, and as a section of the page."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from reweigh.audit.recommend import cause_sentence, evidence_sentence, evidence_value, spread_sentence
from reweigh.audit.where import Cut
from reweigh.doctor.causes import ABOUT, BENIGN, CauseId
from reweigh.doctor.diagnosis import NAMED, CannotTell, Diagnosis, Finding, InputNote
from reweigh.doctor.exclude import CLUSTERS, FEWEST
from reweigh.records import RunInfo
from reweigh.report.tables import EMPTY, INTERVAL, MEDIUM, NAMES, Block, Cell, Column, Line, Table, line
from reweigh.report.words import CUT_WORDS
from reweigh.stats.numerals import share, two

MAX_EVIDENCE = 12  # of a cause
MAX_SLICES = 60
_DOUBTS = 3  # of what the records cannot tell, where nothing points anywhere
_BRIEF = 2  # causes that are said in words where there is little room
_BAR = 20  # characters
_SHARE = "Share of the sum of squared log ratios that this cause accounts for."
_CONFIDENCE = f"How sure the doctor is: from {NAMED} on a cause is named, below it is a suspicion."
_PICTURES = {
    "identity": "mean ratio",
    "histogram": "log ratios",
    "tail": "the tail",
    "density": "log ratio by token probability",
}


def in_short(diagnosis: Diagnosis, info: RunInfo | None = None) -> Iterator[Line]:
    """Put a diagnosis beside an audit: the causes it names in full, the others in passing.

    Args:
        diagnosis: what a doctor said.
        info: what the files say of their run: of the fixes, the general one and those of its programs are shown.
    """
    named, suspected = by_confidence(diagnosis)
    some = named or suspected[:3]
    programs = [name.lower() for name in (info.engine, info.trainer) if name] if info is not None else []
    yield EMPTY
    yield line("Causes, the likeliest first" if len(named) > 1 else "Cause" if named else "Cause: not decided")
    if diagnosis.spread is not None:
        yield line(spread_sentence(diagnosis.spread))
    for i, one in enumerate(some, 1):
        explained = "" if one.explained_share is None else f", {share(one.explained_share)} of the squared log ratios"
        yield line(f"{i}. {ABOUT[one.id].title} ({one.id}): confidence {two(one.confidence)}{explained}")
        yield from (line(evidence_sentence(e), indent=3) for e in one.evidence[:1])
        theirs = (f"{name}: {one.fix[name]}" for name in dict.fromkeys(programs) if name in one.fix)
        if not named:
            yield from (line(f"what would decide: {text}", indent=3) for text in [ABOUT[one.id].experiment] if text)
        elif fix := " ".join([*([one.fix["general"]] if "general" in one.fix else []), *theirs]):
            yield line(f"fix: {fix}", indent=3)
    if others := [one for one in suspected if one not in some]:
        yield line(f"suspected, not sure: {', '.join(f'{one.id} {two(one.confidence)}' for one in others)}")
    if out := excluded(diagnosis):
        yield line(f"ruled out: {', '.join(out)}")
    if doubts := untold(diagnosis):
        ids = ", ".join(dict.fromkeys(one.id for one in doubts))
        yield line(f"cannot tell: {ids}; `reweigh doctor FILE` says more")
    for note in diagnosis.notes:
        yield line(f"note: {note.rule}: {note.count:,} {note.counted}{f'; {note.hint}' if note.hint else ''}")


def by_confidence(found: Diagnosis) -> tuple[list[Finding], list[Finding]]:
    """Take causes that are named and those that are suspected apart, each by confidence, the verdict first."""
    ordered = sorted(found.causes, key=lambda one: (one.id != found.verdict, -one.confidence))
    return [x for x in ordered if x.confidence >= NAMED], [x for x in ordered if x.confidence < NAMED]


def excluded(found: Diagnosis) -> list[CauseId]:
    """List the causes that the evidence rules out; that there is no gap is no cause."""
    return [name for name in found.ruled_out if name != "none"]


def untold(found: Diagnosis) -> list[CannotTell]:
    """List what the data cannot decide, without what is named or suspected: nothing is both."""
    shown = {one.id for one in found.causes}
    return [one for one in found.cannot_tell if one.id not in shown]


def in_one_line(said: str, names: Collection[str], width: int) -> str:
    """`ruled out: raw_logprobs, numerics and 3 more`, in at most so many characters."""
    some = list(names)
    for n in range(len(some), 0, -1):
        more = f" and {len(some) - n} more" if n < len(some) else ""
        text = f"{said}: {', '.join(some[:n])}{more}"
        if len(text) <= width or n == 1:
            return text
    return said


def brief(found: Diagnosis, info: RunInfo | None = None) -> Iterator[tuple[str, str, str]]:
    """Put the causes of a diagnosis in a few lines, each a label, a text and a style.

    Args:
        found: what a doctor said.
        info: what the files say of their run: the fix in the words of its programs is shown.
    """
    named, suspected = by_confidence(found)
    programs = [name.lower() for name in (info.engine, info.trainer) if name] if info is not None else []
    for i, one in enumerate(named[:_BRIEF]):
        explained = "" if one.explained_share is None else f", explains {share(one.explained_share)}"
        yield "cause", f"{ABOUT[one.id].title} ({one.id}), confidence {two(one.confidence)}{explained}", "bold"
        if i:
            continue
        yield from (("", evidence_sentence(e), "") for e in one.evidence[:1])
        yield from (("", f"{name}: {one.fix[name]}", "") for name in dict.fromkeys(programs) if name in one.fix)
    if len(named) > _BRIEF:
        yield "", f"and {', '.join(one.id for one in named[_BRIEF:])}", ""
    if not named:
        yield "cause", "not decided", "bold"
    if suspected:
        some = [f"{ABOUT[one.id].title} ({one.id} {two(one.confidence)})" for one in suspected[:_BRIEF]]
        some += [f"{one.id} {two(one.confidence)}" for one in suspected[_BRIEF:]]
        yield "maybe", ", ".join(some), "dim"
        if not named and (text := ABOUT[suspected[0].id].experiment):
            yield "", f"to decide: {text}", "dim"
    if found.spread is not None:
        yield "where", spread_sentence(found.spread), ""


def set_aside(found: Diagnosis, width: int = 92) -> Iterator[tuple[str, str, str]]:
    """Say what is ruled out and what cannot be told, in a line each of at most so many characters; as `brief` does."""
    out, doubts = excluded(found), list(dict.fromkeys(one.id for one in untold(found)))
    if out and doubts and width < MEDIUM:  # lines are short, and a terminal has few
        said = in_one_line("ruled out", out, width // 2)
        yield "", f"{said}; {in_one_line('cannot tell', doubts, width - len(said) - 2)}", "dim"
        return
    if out:
        yield "", in_one_line("ruled out", out, width), "dim"
    if doubts:
        yield "", in_one_line("cannot tell", doubts, width), "dim"


def verdict(found: Diagnosis) -> Line:
    """Put the verdict in a line."""
    if found.verdict == "not_decided":
        some = ", ".join(f"{one.id} {one.confidence:.2f}" for one in found.causes[:3])
        words = f"  candidates: {some}" if some else "  no cause has anything to be said for it"
        small = "; too small to matter: nothing to do" if found.small else ""
        style = "bold ok" if found.small else "bold warn"
        return Line((("verdict: ", "bold"), ("not decided", style), (f"{small}{words}", "")))
    style = "bold ok" if found.benign else "bold fail"
    small = "; too small to matter: nothing to do" if found.small and found.verdict not in BENIGN else ""
    return Line((("verdict: ", "bold"), (found.verdict, style), (f"  {ABOUT[found.verdict].title}{small}", "")))


def on_terminal(found: Diagnosis) -> Iterator[Block]:
    """Show a diagnosis in full: the verdict, what to do, then why."""
    yield verdict(found)
    if (told := found.advice) is not None:
        yield Line(((f"{told.level.upper()}  ", f"bold {told.level}"), (told.reason, "")))
        yield Line((("do    ", "bold"), (told.hint or "nothing", "")))
    if found.verdict == "not_decided":
        few = found.source == "records" and (found.tokens < FEWEST or found.sequences < CLUSTERS)
        read = f"{found.tokens:,} tokens of {found.sequences:,} responses are too few to tell causes apart."
        yield line(read if few else f"No cause is sure enough to be named: {NAMED} and over is.")
        doubts: dict[CauseId, str] = {one.id: one.experiment for one in found.cannot_tell}
        ids: list[CauseId] = [one.id for one in found.causes] or list(doubts)[:_DOUBTS]
        if texts := {name: ABOUT[name].experiment or doubts.get(name, "") for name in ids}:
            yield line("The cheapest things to do next:")
            yield from (line(f"  {name}: {text}") for name, text in texts.items() if text)
    else:
        yield line(ABOUT[found.verdict].meaning)
    if found.spread is not None:
        yield line(spread_sentence(found.spread), "bold")
    if found.source == "records":
        yield line(f"{found.sequences:,} responses, {found.tokens:,} tokens", "dim")
    yield EMPTY
    yield _causes(found)
    yield EMPTY
    named, suspected = by_confidence(found)
    for one in (*named, *suspected):
        if (one.confidence >= NAMED or not found.decided) and one.id not in BENIGN:
            yield from _in_full(one)
    if out := excluded(found):
        yield line(f"ruled out: {', '.join(out)}", "dim")
        yield EMPTY
    if open_ := untold(found):
        yield line("cannot tell", "bold")
        for doubt in open_:
            yield line(f"  {doubt.id}: {doubt.reason}")
            if doubt.experiment:
                yield line(f"    what would decide: {doubt.experiment}", "dim")
        yield EMPTY
    for by, cut in found.slices.items():
        yield _slices(by, cut)
        yield EMPTY
    yield from (line(f"note: {_note(note)}") for note in found.notes)
    yield verdict(found)  # last again, as a terminal shows its end
    if (told := found.advice) is not None:
        yield Line(((f"{told.level.upper()}  ", f"bold {told.level}"), (told.order or "nothing to do", "")))


def _causes(found: Diagnosis) -> Table:
    rows: list[list[Cell]] = []
    named, suspected = by_confidence(found)
    for one in (*named, *suspected):
        explained = one.explained_share
        bar = "" if explained is None else "█" * round(explained * _BAR)
        texts = (one.id, f"{one.confidence:.2f}", _explains(one), bar, ABOUT[one.id].title)
        rows.append([Cell(text, style="" if one.confidence >= NAMED else "dim") for text in texts])
    heads = (Column("cause", "left"), Column("confidence"), Column("explains"), NAMES, NAMES)
    below = "explains: share of the sum of squared log ratios. Dim: a suspicion, not a finding."
    told = any(one.explained_share is not None for one in found.causes)
    return Table.of(heads, rows, notes=[below] if told else [], frame="none")


def _in_full(one: Finding) -> Iterator[Line]:
    yield line(one.id, "bold")
    for e in one.evidence:
        value, ends = evidence_value(e)
        yield line(f"  {' '.join(x for x in (e.name, 'unknown' if value == '-' else value, ends) if x)}  {e.meaning}")
    if one.rules_out:
        yield line(f"  it is not this if: {one.rules_out}")
    for name, text in one.fix.items():
        yield Line((("  ", ""), (f"fix, {name}: " if name != "general" else "fix: ", "bold"), (text, "")))
    yield EMPTY


def _slices(by: str, cut: Mapping[str, Diagnosis]) -> Table:
    rows: list[list[str]] = []
    for label, one in cut.items():
        first = next(iter(one.causes), None)
        sure, explains = ("-", "-") if first is None else (f"{first.confidence:.2f}", _explains(first))
        said = one.verdict if one.decided or first is None else f"not decided ({first.id}?)"
        rows.append([label, said, sure, explains, f"{one.tokens:,}"])
    heads = (Column(by, "left"), Column("verdict", "left"), *map(Column, ("confidence", "explains", "tokens")))
    return Table.of(heads, rows, notes=[] if cut else [f"no record says its {by}"], frame="none")


def _explains(one: Finding) -> str:
    return "-" if one.explained_share is None else share(one.explained_share)


def _note(note: InputNote) -> str:
    place = f", first at {note.place}" if note.place else ""
    return f"{note.rule}: {note.count:,} {note.counted}{place}{f'. {note.hint}' if note.hint else ''}"


@dataclass(frozen=True)
class Card:
    """One cause of the page.

    Attributes:
        id: its name.
        words: its title.
        bars: each with its name, its number, and how much of it is filled, in percent.
        evidence: the numbers that speak for it; None if there are none.
        rules_out: what would show that it is not this.
        fix: what to do, by program.
        seen_in: anchor and words of each picture in which it shows.
    """

    id: str
    words: str
    bars: tuple[tuple[str, Cell, int], ...]
    evidence: Table | None
    rules_out: str
    fix: tuple[tuple[str, str], ...]
    seen_in: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Section:
    """A diagnosis as a section of the page.

    Attributes:
        said: a sentence.
        cards: one for each cause that is named.
        suspected: words and name of each that is only suspected, and how sure that is and what would decide.
        excluded: names of what is ruled out; empty if nothing is.
        tables: under titles of their own.
        notes: of what was read.
    """

    said: str
    cards: tuple[Card, ...]
    suspected: tuple[tuple[str, str, str], ...]
    excluded: str
    tables: tuple[tuple[str, Table], ...]
    notes: tuple[str, ...]


def section(diagnosis: Diagnosis, cuts: Collection[Cut] = ()) -> Section:
    """Make the section, the surest cause first; it points to pictures by the cuts that the page has."""
    read = f"{diagnosis.tokens:,} tokens of {diagnosis.sequences:,} sequences" if diagnosis.tokens else diagnosis.source
    doubts = [(ABOUT[one.id].title, one.reason, ", ".join(one.needs), one.experiment) for one in untold(diagnosis)]
    some = [(by, label, cause_sentence(one)) for by, cut in diagnosis.slices.items() for label, one in cut.items()]
    tables: list[tuple[str, Table]] = []
    if doubts:
        heads = _sentences("why not", "columns that would decide", "cheapest experiment")
        tables.append(("What these records cannot tell", Table.of((Column("cause", "left"), *heads), doubts)))
    if some:
        heads = (Column("cut by", "left"), Column("slice", "left"), *_sentences("cause"))
        tables.append(("Slice by slice", Table.of(heads, some[:MAX_SLICES])))
    named, suspected = by_confidence(diagnosis)
    said = cause_sentence(diagnosis)
    if diagnosis.spread is not None:
        said = f"{said}; {spread_sentence(diagnosis.spread)}"
    return Section(
        f"{said[:1].upper()}{said[1:]}. From {read}; the likeliest first.",
        tuple(_card(one, cuts) for one in named),
        tuple((ABOUT[one.id].title, one.id, _suspicion(one)) for one in suspected),
        ", ".join(excluded(diagnosis)),
        tuple(tables),
        tuple(map(_note, diagnosis.notes)),
    )


def _suspicion(one: Finding) -> str:
    explained = "" if one.explained_share is None else f", {share(one.explained_share)} of the squared log ratios"
    decides = ABOUT[one.id].experiment
    return f"confidence {two(one.confidence)}{explained}{f'. What would decide: {decides}' if decides else ''}"


def _card(one: Finding, cuts: Collection[Cut]) -> Card:
    n = next((e.n for e in one.evidence if e.n is not None), None)
    counted = f"\nn = {n:,}" if n is not None else ""
    explained = None if one.explained_share is None else min(1.0, max(0.0, one.explained_share))
    told = "not in the log ratio" if explained is None else share(explained)
    sure = two(one.confidence)
    rows: list[list[Cell | str]] = []
    for e in one.evidence[:MAX_EVIDENCE]:
        value, ends = evidence_value(e)
        of = f"{e.n:,}" if e.n is not None else ""
        lines = (value, f"95% interval {ends}" if ends else "no interval", f"n = {of}" if of else "", e.meaning)
        rows.append([Cell(e.name, style="code"), Cell(value, "\n".join(x for x in lines if x)), ends, of, e.meaning])
    words: Mapping[str, str] = {cut: CUT_WORDS[cut] for cut in cuts}
    places: list[tuple[str, str]] = []
    for name in ABOUT[one.id].seen_in:
        if name in _PICTURES:
            places.append((f"fig-{name}", _PICTURES[name]))
        elif name == "worst":
            places.append((name, "the worst sequences"))
        elif name in words:
            places.append((f"fig-where-{name}", f"by {words[name]}"))
    heads = (Column("evidence", "left"), Column("value"), INTERVAL, Column("n"), *_sentences("what it means"))
    return Card(
        one.id,
        ABOUT[one.id].title,
        (
            (
                "confidence",
                Cell(sure, f"{sure}\nno interval: a judgement{counted}\n{_CONFIDENCE}"),
                round(100 * min(1.0, max(0.0, one.confidence))),
            ),
            (
                "share of squared log ratios",
                Cell(told, f"{told}\nno interval: a fact about these records{counted}\n{_SHARE}"),
                round(100 * (explained or 0.0)),
            ),
        ),
        Table.of(heads, rows) if rows else None,
        one.rules_out,
        tuple(one.fix.items()),
        tuple(places),
    )


def _sentences(*headings: str) -> tuple[Column, ...]:
    return tuple(Column(heading, "left", prose=True) for heading in headings)
