"""Diagnose record files: the doctor's sums as one family of a scan, and what they say, of all and of each slice."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from os import PathLike
from typing import Any, cast

import numpy as np
import torch

from reweigh.doctor.causes import ENGINES, TRAINERS, CauseId, fix_for
from reweigh.doctor.cells import Cells, Keyed, Prompts, Responses
from reweigh.doctor.clean import clean
from reweigh.doctor.confidence import confidences, features
from reweigh.doctor.diagnosis import CannotTell, Diagnosis, InputNote, Spread, Suspicion, diagnose
from reweigh.doctor.exclude import by_mean, by_size, excluded, held_back, to_test_first, too_small
from reweigh.doctor.families import FAMILIES
from reweigh.doctor.families.responses import spread_of
from reweigh.doctor.family import AnySums, Case, Sums
from reweigh.records.files import Paths
from reweigh.records.schema import ROLLOUT_REQUIRED, RunInfo
from reweigh.scan import levels
from reweigh.scan.cuts import (
    NAMES,
    OTHER,
    By,
    Key,
    in_ranges,
    label,
    merge,
    names_of,
    refuse_other_cuts,
    width_of,
    without,
)
from reweigh.scan.engines import Engine, Workers
from reweigh.scan.measure import ENGINE_STANDS_IN, Family
from reweigh.scan.rows import EVERY, Rows
from reweigh.scan.run import Known, Report, Scanned, look, scan
from reweigh.scan.tokens import MISSING, Ints, Part, Tokens
from reweigh.stats.sums import length_bin

MOST_SLICES = 12  # of numbers that are joined into ranges, and of names; each is a diagnosis of its own


@dataclass(frozen=True, eq=False)
class Visit:
    """The sums of some records; `a + b` is of both, however they were cut.

    Attributes:
        sums: by name.
        sequences: responses read.
    """

    sums: Sums = field(default_factory=dict[str, AnySums])
    sequences: int = 0

    def __add__(self, other: "Visit") -> "Visit":
        """Add the sums of other records."""
        sums: dict[str, Any] = merge(self.sums, cast("Mapping[str, Any]", other.sums))
        return Visit(sums, self.sequences + other.sequences)

    @property
    def tokens(self) -> int:
        """Count the tokens that were looked at."""
        whole = self.sums.get("whole")
        return int(whole.total[0, 0]) if isinstance(whole, Cells) else 0


@dataclass(frozen=True, eq=False)
class Slices:
    """A visit of each slice; `a + b` is of both.

    Attributes:
        by: what the records are cut by.
        visits: by the first number of a range, a name, or the index of a bin.
        width: of a range of numbers.
    """

    by: By
    visits: Mapping[Key, Visit] = field(default_factory=dict[Key, Visit])
    width: int = 1

    def __add__(self, other: "Slices") -> "Slices":
        """Add the slices of other records."""
        width = max(self.width, other.width)
        return Slices(self.by, merge(self._at(width).visits, other._at(width).visits), width).limited()

    def labelled(self) -> dict[str, Visit]:
        """Call each slice by its name, in order."""
        numbers = sorted(k for k in self.visits if isinstance(k, int) and self.by not in NAMES)
        names = sorted(k for k in self.visits if isinstance(k, str))
        keys: list[Key] = [*numbers, *names, *([OTHER] if self.by in NAMES and OTHER in self.visits else [])]
        return {label(self.by, key, self.width): self.visits[key] for key in keys}

    def limited(self) -> "Slices":
        """Join neighbours, and the names that are not told apart, until there are no more than the most."""
        some = self._at(max(self.width, width_of(self.by, self.visits, MOST_SLICES)))
        kept = names_of(self.by, some.visits, MOST_SLICES)
        return some if kept is None else Slices(self.by, without(some.visits, kept), some.width)

    def _at(self, width: int) -> "Slices":
        return self if width == self.width else Slices(self.by, in_ranges(self.visits, width), width)


@dataclass(frozen=True, eq=False)
class Read:
    """The sums of record files; `a + b` is of both.

    Attributes:
        whole: of all that was looked at.
        slices: of what was asked for.
        share: of the records that is looked at.
    """

    whole: Visit = field(default_factory=Visit)
    slices: tuple[Slices, ...] = ()
    share: float = 1.0

    def __add__(self, other: "Read") -> "Read":
        """Add the sums of other records."""
        slices = tuple(a + b for a, b in zip(self.slices, other.slices, strict=True)) if self.slices else other.slices
        return Read(self.whole + other.whole, slices, min(self.share, other.share))


def visit_tokens(tokens: Tokens) -> Visit:
    """Add up some tokens. Sequences without one of them do not count."""
    cleaned = clean(tokens)
    sums: dict[str, AnySums] = dict(cleaned.sums)
    for family in FAMILIES:
        sums.update(family.measure(cleaned.tokens))
    return Visit(sums, int((tokens.counts > 0).sum()))


def doctor(
    paths: Paths,
    *,
    by: Iterable[By] = (),
    baseline: Paths | None = None,
    programs: Collection[str] | None = None,
    keep_going: bool = True,
    reader: str | None = None,
    engine: Engine = Workers(1),  # noqa: B008 - a frozen value
    state: str | PathLike[str] | None = None,
    resume: bool = False,
    most: int | None = None,
    on_progress: Report | None = None,
    rows: Rows = EVERY,
) -> Diagnosis:
    """Name the causes of the gap between sampler and trainer in records, ranked, with what speaks for each.

    Records are read once, in parts, and memory does not grow with their number; the sums do not depend on how they are
    cut.

    Args:
        paths: files, folders or globs with both sides' log-probs: records, or dumps of training frameworks.
        by: also diagnose each slice by "step", "env", "length", "position", "lag", "turn" or "source" (file); what the
            records do not say is in no slice.
        baseline: records of the same engine and trainer from before the trouble, such as a run's first step: sizes
            are judged by what was normal there.
        programs: whose options to name in the fixes ("vllm", "trl", ...); the engine and trainer that the files name if
            not given, or all.
        keep_going: leave out rows and tokens that cannot be used, and count them in the diagnosis's notes; otherwise
            the first is an error.
        reader: name of the files' format (see `reweigh.dumps.FORMATS`); recognised by their content if not given.
        engine: what runs it: `Workers(8)` processes, `OnRay()`; this process alone if not given.
        state: file to keep what was merged in, written every few seconds and when interrupted, deleted at the end.
        resume: go on from `state`; from the beginning if there is no such file.
        most: look at about so many tokens only, in pieces spread evenly over the files, and say so in the notes.
        on_progress: called after each part.
        rows: which rows are read, of the records and the baseline.

    Raises:
        ValueError: a file cannot be read or has no log_pi or log_mu, or there is nothing to look at.
        FileNotFoundError: nothing is there.

    Example:
        >>> from reweigh.doctor import doctor
        >>> found = doctor("examples/records/vllm_bfloat16.parquet")
        >>> found.verdict
        'numerics'
    """
    by = refuse_other_cuts("doctor", by)
    fix_for("none", programs)  # refuses a program that it does not know, before anything is read
    known = _known(paths, reader, rows)
    before = None if baseline is None else look(baseline, reader, rows=rows)
    scanned = scan(
        known,
        [question(known, by, most, candidates=True), levels.question()],
        keep_going=keep_going,
        engine=engine,
        state=state,
        resume=resume,
        on_progress=on_progress,
    )
    usual = None
    if before is not None:
        usual = scan(before, [question(before, (), most, candidates=True)], keep_going=keep_going, engine=engine)
    result = answer(scanned, usual, programs)
    scanned.done()
    return result


def _known(paths: Paths, reader: str | None, rows: Rows) -> Known:
    """Find the files; those without a log_pi are looked at too if the engine's prefill can stand in for it."""
    try:
        return look(paths, reader, rows=rows)
    except ValueError as missing:
        if "column log_pi is missing" not in str(missing):
            raise
        try:
            return look(paths, reader, (*ROLLOUT_REQUIRED, "log_mu_prefill"), rows)
        except ValueError:
            raise missing from None


def question(
    known: Known | None = None, by: Iterable[By] = (), most: int | None = None, *, candidates: bool = False
) -> Family:
    """Ask for a diagnosis of what is scanned; see `doctor` for the arguments. `known` is needed to look at a share.

    With `candidates` the log-probs of the sampler's likeliest tokens are read too, which are most of a file.
    """
    cuts, share = refuse_other_cuts("doctor", by), 1.0 if known is None else known.share(most)
    return Family(
        "doctor",
        partial(_measure, cuts, share),
        None,
        (Read, Visit, Slices, Cells, Keyed, Prompts, Responses),
        {"cuts of the doctor": list(cuts), "tokens that the doctor looks at": most},
        without_pi=True,
        many=("top_log_mu", "top_log_pi") if candidates else (),
        per_file="source" in cuts,
    )


def answer(found: Scanned, baseline: Scanned | None = None, programs: Collection[str] | None = None) -> Diagnosis:
    """Make the diagnosis of what was scanned.

    Args:
        found: the records.
        baseline: those from before the trouble.
        programs: see `doctor`.

    Raises:
        ValueError: there is nothing to look at.
    """
    read, info = _looked_at(found), found.info
    before = None if baseline is None else _looked_at(baseline).whole
    if programs is None:  # the engine and the trainer that the files name, and all of a kind that they do not name
        names = {str(x).lower().replace("_", "-") for x in (info.engine, info.trainer) if x}
        chosen = [x for kind in (ENGINES, TRAINERS) for x in ([y for y in kind if y in names] or kind)]
        programs = None if len(chosen) == len(ENGINES) + len(TRAINERS) else chosen
    whole = conclude(read.whole, info, before, programs)
    slices = {s.by: {k: conclude(v, info, before, programs) for k, v in s.labelled().items()} for s in read.slices}
    notes = [InputNote(v.rule, v.count, v.counted, v.place, v.hint) for v in found.notes.values()]
    if read.share < 1:
        rows, hint = sum(file.rows for file in found.files), "`reweigh doctor` looks at all of them."
        of, place = f"of {rows:,} rows", str(found.files[0].path)
        notes.append(InputNote("looked at a sample", read.whole.sequences, of, place, hint))
    advice = None
    if levels.holds(found) and ENGINE_STANDS_IN not in found.notes:  # of the engine alone there is no verdict
        advice = levels.answer(found, whole.cause)
    return replace(whole, slices=slices, notes=tuple(notes), advice=advice)


def _looked_at(found: Scanned) -> Read:
    """Returns what was added up, if there is anything."""
    read: Read = found.sums.get("doctor", Read())
    if read.whole.tokens == 0:
        reasons = ", ".join(f"{v.rule} ({v.count:,} {v.counted})" for v in found.notes.values())
        hint = next((f"{v.hint} " for v in found.notes.values() if v.hint), "")
        raise ValueError(
            f"doctor: no token to look at in {read.whole.sequences} responses{reasons and f': {reasons}'}\n"
            f"hint: {hint}`reweigh records describe` says what files hold, `reweigh records validate` what is wrong."
        )
    return read


def conclude(
    visit: Visit, info: RunInfo, baseline: Visit | None = None, programs: Collection[str] | None = None
) -> Diagnosis:
    """Examine the sums of some records."""
    return weigh(visit, info, baseline).diagnosis(programs=programs)


@dataclass(frozen=True, eq=False)
class Weighing:
    """What the tests concluded from some records, before it is ranked.

    Attributes:
        said: by all families.
        features: the numbers that confidences stand on.
        ruled_out: causes that the evidence excludes, and why.
        by_mean: causes that the mean ratio excludes, unless one that moves it is named, and why.
        held_back: causes that are candidates at most, and why.
        by_size: confidence in rounding and in fewer bits where only the size of the gap speaks.
        to_test_first: what the shape of the gap points to, though nothing here can prove it.
        spread: the few responses that carry the gap, if it is so.
        small: whether the gap is too small to matter.
        tokens: that were looked at.
        sequences: that were looked at.
    """

    said: tuple[Suspicion | CannotTell, ...]
    features: Mapping[str, float]
    ruled_out: Mapping[CauseId, str]
    by_mean: Mapping[CauseId, str]
    held_back: Mapping[CauseId, str]
    by_size: Mapping[CauseId, float]
    to_test_first: Suspicion | None
    spread: Spread | None
    small: bool
    tokens: int
    sequences: int

    def diagnosis(
        self, weighed: Mapping[CauseId, float] | None = None, programs: Collection[str] | None = None
    ) -> Diagnosis:
        """Rank it, by these confidences or by the doctor's own."""
        result = diagnose(
            self.said,
            confidences(self.features) if weighed is None else weighed,
            programs,
            ruled_out=self.ruled_out,
            by_mean=self.by_mean,
            held_back=self.held_back,
            by_size=self.by_size,
            to_test_first=self.to_test_first,
            spread=self.spread,
            small=self.small,
            tokens=self.tokens,
        )
        return replace(result, sequences=self.sequences)


def weigh(visit: Visit, info: RunInfo, baseline: Visit | None = None) -> Weighing:
    """Let the families conclude, and put together what they found."""
    case = Case(visit.sums, info.to_dict(), None if baseline is None else baseline.sums)
    said = tuple(x for family in FAMILIES for x in family.examine(case))
    found, spread = features(case, said), spread_of(case)
    return Weighing(
        said,
        found,
        excluded(case, found, spread),
        by_mean(case),
        held_back(case, found),
        by_size(case),
        to_test_first(case, spread),
        spread,
        too_small(case),
        visit.tokens,
        visit.sequences,
    )


def weighing(paths: Paths) -> Weighing:
    """Weigh record files without ranking what is found; see `doctor`."""
    known = look(paths)
    scanned = scan(known, [question(known, candidates=True)], keep_going=True)
    return weigh(_looked_at(scanned).whole, scanned.info)


def _measure(by: tuple[By, ...], share: float, part: Part) -> Read:
    total = Read(slices=tuple(Slices(name) for name in by), share=share)
    for tokens in part.pieces(share):
        whole = replace(visit_tokens(tokens), sequences=len(tokens.rows.sizes))
        slices = (Slices(name, {key: visit_tokens(x) for key, x in _cut(name, tokens, part)}) for name in by)
        total += Read(whole, tuple(one.limited() for one in slices))
    return total


def _cut(by: By, tokens: Tokens, part: Part) -> Iterator[tuple[Key, Tokens]]:
    if by == "source":
        yield str(part.path), tokens
    elif by == "env":
        names = tokens.rows.env
        for name in () if names is None else dict.fromkeys(names.tolist()):
            if name is not None:
                yield name, tokens.take((names == name)[tokens.seq])
    elif (codes := _CODES[by](tokens)) is not None:
        for code in np.unique(codes[codes != MISSING]):
            yield int(code), tokens.take(codes == code)


def _bin(numbers: Ints) -> Ints:
    return length_bin(torch.from_numpy(numbers)).numpy()


_CODES: Mapping[str, Callable[[Tokens], Ints | None]] = {
    "step": lambda tokens: tokens.step,
    "lag": lambda tokens: tokens.lag,
    "turn": lambda tokens: tokens.turn,
    "length": lambda tokens: _bin(tokens.counts)[tokens.seq],
    "position": lambda tokens: _bin(tokens.position),
}
