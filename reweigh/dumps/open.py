"""Dumps as tables of the record schema: which files are meant, who wrote them, and the loop that reads."""
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false, reportAttributeAccessIssue=false

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from glob import has_magic
from os import PathLike
from pathlib import Path
from typing import Any

import pyarrow as pa

from reweigh.dumps import (
    martingale,
    miles,
    nemo_rl,
    open_instruct,
    openai,
    prime_rl,
    servers,
    sglang,
    skyrl,
    slime,
    verifiers,
)
from reweigh.dumps.form import (
    LINES,
    BadRecordError,
    Constant,
    Format,
    Head,
    Item,
    Kind,
    Row,
    Skipped,
    check_row,
    first_object,
)
from reweigh.dumps.skip import unreadable, without_bad
from reweigh.dumps.tensors import load_torch
from reweigh.guard import is_unfinished, shown
from reweigh.records.files import (
    FilePart,
    Formats,
    Opened,
    Paths,
    Source,
    expand,
    files_in,
    format_of,
    matching,
    natural,
    parquet_names,
    source_of,
)
from reweigh.records.schema import RECORDS_LOST, Origin, Report, RunInfo, Tally, UnreadableFileError, Violation, fail
from reweigh.records.table import table_of

FORMATS: Mapping[str, Format] = {
    one.name: one
    for one in (
        slime.TRAIN,
        slime.ROLLOUT,
        miles.FORMAT,
        nemo_rl.FORMAT,
        prime_rl.FORMAT,
        verifiers.FORMAT,
        skyrl.FORMAT,
        martingale.FORMAT,
        open_instruct.FORMAT,
        openai.FORMAT,
        sglang.FORMAT,
        servers.LLAMA_CPP,
        servers.TGI,
    )
}
"""Every format that is read as it is, by the name that `--reader` takes."""
RECORDS = "records"
"""The name of reweigh's own format, Parquet or JSON lines, where a format is named."""

_START = 1 << 12  # bytes looked at; a pickle names its class in the first hundred
_MAGIC: tuple[tuple[bytes, Kind], ...] = (
    (b"SQLite format 3\0", "sqlite"),
    (b"PK\x03\x04", "torch"),
    (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", "torch"),  # before torch 1.6
    (b"\x80", "pickle"),
    (b"PAR1", "parquet"),
)
_OUR_OWN = {"reweigh", "log_mu", "log_pi", "sequence_id"}
_HOOK = "record them while training: docs/trainers.md has a hook for {}, docs/records.md the writer for anything else."
# The lines that make records of a run, where its framework's own files have no log-probs.
_VERL = """
    # corrections.py, where every process of the run can import it; weights stay 1
    from reweigh import naive
    from reweigh.trainers.capture import Capture
    from reweigh.trainers.verl import Correction
    correction = Correction(naive(), capture=Capture("records"))"""
_TRL = """
    from reweigh.trainers.capture import Capture
    from reweigh.trainers.trl import CorrectedGRPOTrainer  # in place of GRPOTrainer, with all of its arguments
    trainer = CorrectedGRPOTrainer(..., correction=None, capture=Capture("records"))"""
_OPENRLHF = """
    # openrlhf/models/loss.py, at the top
    from itertools import count; from reweigh import Batch; from reweigh.trainers.capture import Capture
    RECORDS, CALLS = Capture("records"), count()
    # and as the first lines of PolicyLoss.forward
    batch = Batch.padded(old_log_probs, rollout_log_probs, action_mask)
    RECORDS.write(batch, next(CALLS), rank=torch.distributed.get_rank())"""
_THEN = "\nthen `reweigh audit records`; docs/trainers.md has more."
_LOG_PROBS = {"logprobs", "log_probs", "rollout_log_probs", "completion_logprobs", "sampling_logprobs"}
# What other files of these frameworks have: text, or one side's log-probs without the other's. By the names that stand
# in them, what that is, and what to do.
_NO_LOG_PROBS = (
    (
        {"input", "output", "score"},
        "verl's rollout dump",
        "set actor_rollout_ref.rollout.calculate_log_probs=True and REWEIGH_CORRECTION=corrections:correction; write:"
        f"{_VERL}{_THEN} `REWEIGH_CORRECTION=corrections:correction reweigh doctor-install verl` checks it.",
    ),
    ({"seqlen", "prompt_len", "completion"}, "AReaL's rollout dump", _HOOK.format("trainers")),
    (
        {"content", "rewards", "idx"},
        "NeMo-RL's validation data",
        "name train_data_step*.jsonl beside it, which has both sides.",
    ),
    (
        {"input_prompt", "output_response"},
        "SkyRL's evaluation dump",
        "set trainer.dump_data_batch=true, whose dumps have both sides.",
    ),
    ({"responses", "scores", "sampling_params"}, "ROLL's rollout dump", _HOOK.format("trainers")),
    (
        {"input", "output", "reward"},
        "OpenRLHF's batch inference",
        "set --algo.advantage.is_correction_level token, with which the engine's log-probs are kept (before 0.11.1: "
        f"--algo.advantage.is_correction_enable), and write in the loss:{_OPENRLHF}{_THEN}",
    ),
    (
        {"example_id", "prompt", "completion"},
        "verifiers' results of before 0.4",
        "keep traces.jsonl, which verifiers 0.4 writes.",
    ),
    (
        {"steps", "total_reward", "final_ob_len"},
        "tinker-cookbook's summary of rollouts",
        "give what forward_backward took and returned to reweigh.dumps.tinker_rows.",
    ),
    (
        {"prompt", "completion"},
        "completions that a trainer logged (TRL, ms-swift)",
        "set use_vllm=True with vllm_importance_sampling_correction=True, and write:" + _TRL + _THEN,
    ),
)
# Names that people give to columns of records.
_RENAMED = {
    **dict.fromkeys(
        (
            *("logprobs", "log_probs", "rollout_log_probs", "rollout_logprobs", "completion_logprobs"),
            *("sampling_logprobs", "sampling_per_token_logps", "inference_logprobs", "generation_logprobs"),
        ),
        "log_mu",
    ),
    **dict.fromkeys(
        ("old_log_probs", "trainer_logprobs", "old_per_token_logps", "prev_logprobs", "policy_logprobs"), "log_pi"
    ),
    **dict.fromkeys(("completion_ids", "response_ids", "output_ids", "output_token_ids"), "token_ids"),
}
_TRAINER_ONLY = (
    ({"response_tokens", "logprobs", "ref_logprobs"}, "ROLL's logging board"),
    ({"old_log_probs", "responses"}, "a batch of verl"),
)


# Files that have less than one beside them.
_ELSEWHERE = (
    (
        {"call", "samples", "ppo_kl"},
        "what miles dumps of one call of its loss",
        "train_data, with whole responses and tokens",
    ),
    (
        {"sample_index", "response_length", "rollout_log_probs"},
        "miles' columns for its dashboard",
        "rollout_data or train_data",
    ),
)


class UnknownFormatError(UnreadableFileError):
    """A file that no reader knows."""


def _look(file: Opened) -> Head:
    """Read what recognition goes by.

    Raises:
        UnreadableFileError: a torch file that is damaged, or that holds more than plain data.
    """
    path, start = file.path, file.stream().read(_START)
    packed = start[:2] == b"\x1f\x8b"
    kind: Kind = "json" if packed or start.lstrip()[:1] in (b"{", b"[") else "other"
    for magic, name in _MAGIC:
        if start.startswith(magic):
            kind = name
            break
    first: Any = {}
    if kind == "json":
        first = first_object(path, file)
    elif kind == "torch":
        first = load_torch(path)
    return Head(path, kind, first if isinstance(first, Mapping) else {}, start)


def recognise(path: str | PathLike[str] | Opened) -> Format | None:
    """Tell the format of a file by its content; None for reweigh's own.

    Raises:
        UnknownFormatError: no reader knows it; the message lists what was tried, and what the file looks like.
        UnreadableFileError: it is damaged.
    """
    file = path if isinstance(path, Opened) else Opened(Path(path))
    head = _look(file)
    for one in FORMATS.values():
        if _is_of(one, head):
            return one
    if head.path.name.endswith((".parquet", ".pq")):
        try:
            ours = bool(_OUR_OWN & set(parquet_names(file)))
        except UnreadableFileError:
            ours = True
        if ours:
            return None  # what is damaged is told by the reader of records
        head = replace(head, first=dict.fromkeys(parquet_names(file)))
    if _broken_lines(head) or (_is_lines(head) and _OUR_OWN & set(head.first)):
        return None  # what is broken is told by the reader of records
    if not head.start:
        raise UnknownFormatError(
            f"{head.path}: the file is empty (0 bytes)\nhint: its writer was stopped, or had nothing to write."
        )
    raise _unknown(head)


def _is_lines(head: Head) -> bool:
    return head.kind in ("json", "other") and head.path.name.endswith(LINES)


def _broken_lines(head: Head) -> bool:
    """Whether a file is named as JSON lines and does not begin with a JSON object."""
    return _is_lines(head) and not head.first


def _unknown(head: Head) -> UnknownFormatError:
    fields = ", ".join(shown(str(x), one_line=True)[:40] for x in list(head.first)[:12])
    looks = {"json": "JSON", "torch": "a torch file", "pickle": "a pickle", "sqlite": "an SQLite database"}
    seen = looks.get(head.kind, head.kind if head.kind == "parquet" else f"a file that starts with {head.start[:8]!r}")
    if fields:
        seen += f" with {fields}"
    for names, what, other in _ELSEWHERE:
        if names <= set(head.first):
            return UnknownFormatError(
                f"{head.path}: {what} is not read: it is {seen}\nhint: name the folder beside it: {other}."
            )
    for names, what in _TRAINER_ONLY:
        if names <= set(head.first):
            return UnknownFormatError(
                f"{head.path}: {what} has the trainer's log-probs and none of the sampler's, so there is nothing to "
                f"compare: it is {seen}\nhint: {_HOOK.format('trainers')}"
            )
    for names, what, remedy in _NO_LOG_PROBS:
        if names <= set(head.first) and not _LOG_PROBS & set(head.first):
            return UnknownFormatError(
                f"{head.path}: {what} has text and no log-probs, so there is nothing to compare: it is {seen}\n"
                f"hint: {remedy}"
            )
    likely = [f"{name} to {ours}" for name, ours in _RENAMED.items() if name in head.first]
    if any(text.endswith(("log_mu", "log_pi")) for text in likely):
        return UnknownFormatError(
            f"{head.path}: no reader knows this file. It is {seen}\n"
            f"hint: it seems to have log-probs: rename {', '.join(likely)} if that is what they are, and name each "
            "response (sequence_id); then it is a file of records, see docs/records.md. --reader NAME takes it as "
            "another format."
        )
    tried = "".join(f"\n  {name}: {one.title}" for name, one in FORMATS.items())
    return UnknownFormatError(
        f"{head.path}: no reader knows this file. It is {seen}. Tried:{tried}\n"
        f"  {RECORDS}: Parquet or JSON lines with log_mu\n"
        "hint: --reader NAME takes it as that format; docs/records.md says how to write records from anything."
    )


def _is_of(one: Format, head: Head) -> bool:
    """Whether a file is of a format, by its beginning; one whose fields are something else is of none."""
    try:
        return head.kind == one.kind and one.recognises(head)
    except UnreadableFileError:
        raise
    except Exception:  # of fields that are something else than a reader takes them for
        return False


def _run_of(one: Format, path: Path) -> RunInfo:
    """Read what a file says of its run: nothing, if its first record is not as it should be; reading it says so."""
    try:
        return one.info(path)
    except UnreadableFileError:
        raise
    except Exception:  # of whatever it is: reading the file says so
        return RunInfo()


def named(reader: str) -> Format | None:
    """The format that `--reader` names; None for reweigh's own."""
    if reader == RECORDS:
        return None
    if reader not in FORMATS:
        raise ValueError(f"--reader: must be one of {', '.join((*FORMATS, RECORDS))}, got {reader!r}")
    return FORMATS[reader]


_ENDINGS = tuple(dict.fromkeys(e for one in FORMATS.values() for e in one.endings))


@dataclass(frozen=True)
class Found:
    """The files of a dump, each standing for all that is read with it.

    Attributes:
        paths: in order of their names, numbers in them as numbers.
        ignored: files of the folders that no reader knows.
    """

    paths: tuple[Path, ...]
    ignored: tuple[Path, ...] = ()


def find(paths: Paths, reader: str | None = None) -> Found:
    """Find the files that are meant by files, folders and globs, each once; folders of dumps with their subfolders.

    Args:
        paths: what a user named.
        reader: a format's name, to not look into the files.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a folder has dumps of several formats, or nothing that a reader knows.
    """
    return _Known(reader).find(paths)


def _may_be(one: Format, path: Path) -> bool:
    """Whether a file is of a format; one that cannot be read is taken, so that reading it says why."""
    try:
        head = _look(Opened(path))
    except UnreadableFileError:
        return True
    return _is_of(one, head) or _broken_lines(head)


def _files(folder: Path) -> list[Path]:
    return list(files_in(folder, (*_ENDINGS, ".parquet")))


def _leads(files: Sequence[Path], one: Format, folder: Path) -> tuple[Path, ...]:
    leads = dict.fromkeys(lead for path in files if (lead := one.lead(path)) is not None) or dict.fromkeys(files)
    if not leads:
        raise FileNotFoundError(f"{folder}: the folder has no file of {one.title}\nhint: name the files themselves.")
    return tuple(leads)


# pyarrow ships no types, and makes the functions of pyarrow.compute when it is imported.


_SHAPE_HINT = "the dump is damaged, or of another version of the framework."
_MAX_ROWS = 65_536  # of one table, however short the rows


@dataclass(frozen=True)
class DumpRow:
    """One row of a dump.

    Attributes:
        columns: by name of the record schema; arrays are of NumPy, and what the dump has not got is left out or None.
        prompt_ids: token ids of the prompt, where the dump has them.
        place: file and line, or file and record.
    """

    columns: dict[str, Any]
    prompt_ids: Sequence[int] | None
    place: str


def source(path: Path, reader: str | None = None, skipped: Skipped | None = None) -> Source:
    """Know how to read a file, whoever wrote it: a dump by its content, records by their name.

    Args:
        path: the file.
        reader: a format's name, to not look into the file.
        skipped: where to list records that are no good; without it the first of them is an error.
    """
    return _Known(reader, skipped).source(path)


def formats(reader: str | None = None, skipped: Skipped | None = None) -> Formats:
    """Take dumps and records alike, for the functions that read record files.

    What is found out of a file is kept with what is returned, and the file stays open for whoever reads it next.

    Args:
        reader: a format's name, to not look into the files.
        skipped: where to list records that are no good; without it the first of them is an error.
    """
    known = _Known(reader, skipped)
    return Formats(known.expand, known.source, known.ignored, known.left_out)


_MOST_OPEN = 64  # files; of more, the first are closed, and opened again when they are read
_MOST_KNOWN = 4096  # files whose footer is remembered


class _Known:
    """Files that were looked into: open, with the format that each is of."""

    def __init__(self, reader: str | None, skipped: Skipped | None = None) -> None:
        self._reader, self._skipped = reader, skipped
        self._ignored: dict[Path, None] = {}
        self._files: dict[Path, Opened] = {}
        self._open: dict[Path, Opened] = {}
        self._formats: dict[Path, Format | None] = {}
        self._left_out: dict[Path, Violation] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process, which has to look for itself."""
        return _Known, (self._reader, self._skipped)

    def expand(self, paths: Paths) -> list[Path]:
        """List the files that are meant, see `find`."""
        found = self.find(paths)
        self._ignored.update(dict.fromkeys(found.ignored))
        return list(found.paths)

    def ignored(self) -> tuple[Path, ...]:
        """List the files of folders that `expand` has left out, as no reader knows them."""
        return tuple(self._ignored)

    def source(self, path: Path) -> Source:
        """Know how to read one of them."""
        one = self._format_of(path)
        if one is None and self._skipped is not None:
            return without_bad(self._opened(path), self._skipped)
        if one is None:
            return source_of(self._opened(path))
        return Source(
            path,
            partial(_run_of, one, path),
            partial(_names, one, path),
            partial(one.parts, path),
            partial(_tables, one, self._skipped),
        )

    def find(self, paths: Paths) -> Found:
        """Find the files that are meant, see `find`."""
        given = [paths] if isinstance(paths, str | PathLike) else list(paths)
        if not given:
            raise ValueError("find: no path was given\nhint: name at least one file, folder or glob.")
        chosen: dict[Path, Path] = {}
        ignored: list[Path] = []
        for item in map(Path, given):
            if item.is_dir():
                here = self._folder(item)
                ignored += here.ignored
                for path in here.paths:
                    chosen.setdefault(path.resolve(), path)
                continue
            if item.exists():
                matches = [item]
            elif not has_magic(str(item)):
                raise FileNotFoundError(f"{item}: no such file or folder")
            else:
                matches = self._told_empty(sorted(matching(item), key=natural))
                if not matches:
                    raise FileNotFoundError(f"{item}: no file matches\nhint: quote the glob, and check it with ls.")
            for path in matches:
                try:
                    one = self._format_of(path)
                except UnreadableFileError as e:
                    if self._skipped is None or isinstance(e, UnknownFormatError):
                        raise
                    self._skipped(unreadable(path, e))
                    continue
                if one is None:
                    format_of(path)  # refuses a name that no record file has
                else:
                    path = one.lead(path) or path
                chosen.setdefault(path.resolve(), path)
        return Found(tuple(chosen.values()), tuple(ignored))

    def _folder(self, folder: Path) -> Found:
        if self._reader is not None:
            one = named(self._reader)
            if one is None:
                return Found(tuple(self._told(expand(folder))))
            files = self._told([path for path in _files(folder) if path.name.endswith(one.endings)])
            likely = [path for path in files if _may_be(one, path)]
            return Found(_leads(likely or files, one, folder))
        kinds: dict[str, list[Path]] = {}
        beside: dict[str, list[Path]] = {}  # what is read together with others, if these are there
        unknown: list[Path] = []
        broken: list[Path] = []
        empty: list[Path] = []
        below: list[Path] = []  # records of subfolders
        for path in self._told(_files(folder), empty=False):
            try:
                if not path.stat().st_size:
                    empty.append(path)
                    continue
                if path.name.endswith(LINES) and _broken_lines(_look(self._opened(path))):
                    broken.append(path)
                    continue
                one = self._format_of(path)
            except UnknownFormatError:
                unknown.append(path)
            except UnreadableFileError:
                broken.append(path)
            else:
                if one is None:
                    # with another file's ids, say rewards by response, it is none of records
                    home = kinds.setdefault(RECORDS, []) if path.parent == folder else below
                    (home if self._has_log_probs(path) else unknown).append(path)
                else:
                    (kinds if one.lead(path) is not None else beside).setdefault(one.name, []).append(path)
        if not kinds.get(RECORDS, True):
            del kinds[RECORDS]
        if kinds.keys() <= {RECORDS} and below and not beside:
            kinds[RECORDS] = sorted([*kinds.get(RECORDS, []), *below], key=natural)
        else:  # beside a dump, they are something else
            unknown += below
        kinds = kinds or beside
        if len(kinds) > 1:
            listed = "; ".join(f"{name}: {len(files)}, such as {files[0]}" for name, files in kinds.items())
            raise ValueError(
                f"{folder}: files of several formats are in one folder: {listed}\n"
                "hint: name the subfolder or files of one of them, or choose with --reader."
            )
        if not kinds and (broken or unknown or empty):
            self._format_of([*broken, *unknown, *empty][0])  # raises, unless it is broken lines
        if not kinds:
            return Found(tuple(self._told(expand(folder))))
        [(name, files)] = kinds.items()
        endings = (".parquet", *LINES) if name == RECORDS else FORMATS[name].endings
        self._told_empty([path for path in empty if path.name.endswith(endings)], alone=False)
        # a file that cannot be read, among those that can, is one of them: reading it says what is wrong with it
        homes = {(path.parent, path.suffix) for path in files}
        files += [path for path in broken if (path.parent, path.suffix) in homes]
        ignored = tuple(path for path in (*unknown, *broken) if path not in files)
        if name == RECORDS:
            return Found(tuple(sorted(files, key=natural)), ignored)
        return Found(_leads(sorted(files, key=natural), FORMATS[name], folder), ignored)

    def _has_log_probs(self, path: Path) -> bool:
        """Whether a file with a name of records has any; one that cannot be read, or is empty, may have."""
        try:
            names = source_of(self._opened(path)).names()
        except UnreadableFileError:
            return True
        return not names or bool({"log_mu", "log_pi"} & set(names))

    def _told(self, files: list[Path], *, empty: bool = True, alone: bool = True) -> list[Path]:
        """Leave out, and say so, parts of files that a writer left behind, and empty files unless all are.

        Args:
            files: of one folder.
            empty: whether to look for those.
            alone: whether they are all that there is.
        """
        whole: list[Path] = []
        for path in files:
            if is_unfinished(path):
                self._leave_out(
                    "file: unfinished", path, "the part of a file whose writer was stopped, or still writes"
                )
            else:
                whole.append(path)
        return self._told_empty(whole, alone) if empty else whole

    def _told_empty(self, files: list[Path], alone: bool = True) -> list[Path]:
        some = [path for path in files if path.stat().st_size]
        if alone and not some:
            return files
        for path in files:
            if not path.stat().st_size:
                self._leave_out("file: empty", path, "the file is empty (0 bytes)")
        return some

    def _leave_out(self, rule: str, path: Path, why: str) -> None:
        hint = "what its writer would have written is not in the numbers; delete the file if that is as it should be."
        self._left_out.setdefault(path, Violation(rule, str(path), why, hint, counted="files"))

    def left_out(self) -> tuple[Violation, ...]:
        """Say which files were not taken, one violation a rule."""
        tally = Tally()
        for one in self._left_out.values():
            tally(one)
        return tuple(tally.by_rule.values())

    def _format_of(self, path: Path) -> Format | None:
        if self._reader is not None:
            return named(self._reader)
        if path not in self._formats:
            self._formats[path] = recognise(self._opened(path))
        return self._formats[path]

    def _opened(self, path: Path) -> Opened:
        file = self._files.pop(path, None) or Opened(path)
        self._files[path] = self._open[path] = file
        if len(self._open) > _MOST_OPEN:
            self._open.pop(next(iter(self._open))).rest()
        if len(self._files) > _MOST_KNOWN:
            del self._files[next(iter(self._files))]
        return file


def info_of(path: Path, reader: str | None = None) -> RunInfo:
    """Read what a file says of the run."""
    return source(path, reader).info()


def read(
    paths: Paths,
    *,
    reader: str | None = None,
    skip_bad: bool = False,
    skipped: Skipped | None = None,
) -> Iterator[DumpRow]:
    """Stream the rows of dumps, one at a time. Those of a rollout-side dump have no `log_pi`.

    Args:
        paths: files, folders or globs of dumps, not of records.
        reader: a format's name, to not look into the files.
        skip_bad: leave out records that are no good, and list them in `skipped`.
        skipped: the list; one of your own, to look at afterwards.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a record or file is no good, with its place and what to do.

    Example:
        >>> from reweigh.dumps import Skipped, read
        >>> skipped = Skipped()
        >>> for row in read("dumps/train_data", skip_bad=True, skipped=skipped):  # doctest: +SKIP
        ...     print(row.columns["sequence_id"], len(row.columns["log_mu"]))
    """
    report: Report = fail
    if skip_bad:
        report = Skipped() if skipped is None else skipped
    for path in find(paths, reader).paths:
        try:
            one = recognise(path) if reader is None else named(reader)
            if one is None:
                raise UnreadableFileError(
                    f"{path}: is a file of records, not a dump\nhint: reweigh.records.read_batches reads it."
                )
            for item, row in _good(one, FilePart(path), report):
                columns = dict(row)
                yield DumpRow(columns, columns.pop("prompt_ids", None), item.place(path))
        except UnreadableFileError as e:
            if report is fail:
                raise
            report(unreadable(path, e))


def _shape(one: Format, error: Exception) -> str:
    told = shown(" ".join(str(error).split()))
    return f"not as {one.name} writes it: {type(error).__name__}: {told if len(told) <= 120 else told[:117] + '...'}"


def _items(one: Format, part: FilePart) -> Iterator[Item]:
    try:
        yield from one.items(part)
    except UnreadableFileError:
        raise
    except Exception as e:  # of whatever a file makes of a reader
        raise UnreadableFileError(f"{part.path}: {_shape(one, e)}\nhint: {_SHAPE_HINT}") from e


def _good(one: Format, part: FilePart, report: Report) -> Iterator[tuple[Item, Row]]:
    """Rows with the record they are of; records that are no good are reported instead.

    Raises:
        UnreadableFileError: a column of log-probs is one number over and over.
    """
    constant, waiting = Constant(), list[tuple[Item, Row]]()
    rows = _each(one, part, report)
    for item, row in rows:
        waiting.append((item, row))
        if constant(row):
            break
    constant.check(part.path)
    yield from waiting
    yield from rows


def _each(one: Format, part: FilePart, report: Report) -> Iterator[tuple[Item, Row]]:
    for item in _items(one, part):
        try:
            rows = item.load()
            for row in rows:
                check_row(row, one.option)
        except BadRecordError as e:
            report(Violation(e.rule, item.place(part.path), e.detail, e.hint, counted=RECORDS_LOST))
            continue
        except UnreadableFileError as e:  # of a file beside it
            detail, _, hint = str(e).partition("\nhint: ")
            report(Violation("record: unreadable", item.place(part.path), detail, hint, counted=RECORDS_LOST))
            continue
        except Exception as e:  # of whatever a record makes of a reader
            shape = _shape(one, e)
            report(Violation("record: another shape", item.place(part.path), shape, _SHAPE_HINT, counted=RECORDS_LOST))
            continue
        for row in rows:
            yield item, row


def _names(one: Format, path: Path) -> list[str]:
    """Columns of the first good row."""
    for _, row in _each(one, FilePart(path), lambda violation: None):
        return [name for name, value in row.items() if value is not None and name != "prompt_ids"]
    return []


def _origin(path: Path, items: Sequence[Item]) -> Origin:
    lines = tuple(item.line for item in items if item.line is not None)
    if len(lines) == len(items):
        return Origin(path, items[0].number, lines)
    numbers = [item.number for item in items]
    first = numbers[0]
    as_counted = numbers == list(range(first, first + len(numbers)))
    return Origin(path, first) if as_counted else Origin(path, 0, kept=numbers)


def _tables(
    one: Format,
    skipped: Skipped | None,
    part: FilePart,
    columns: Sequence[str] | None,
    max_tokens: int,
    report: Report,
) -> Iterator[tuple[pa.Table, Origin]]:
    rows: list[Row] = []
    items: list[Item] = []
    tokens = 0

    def table() -> tuple[pa.Table, Origin]:
        origin = _origin(part.path, items)
        return table_of(rows, origin, report), origin

    try:
        for item, row in _good(one, part, report if skipped is None else skipped):
            size = len(row["log_mu"])
            if rows and (tokens + size > max_tokens or len(rows) == _MAX_ROWS):
                yield table()
                rows, items, tokens = [], [], 0
            rows.append(row if columns is None else {k: v for k, v in row.items() if k in columns})
            items.append(item)
            tokens += size
    except UnreadableFileError as e:
        if skipped is None:
            raise
        skipped(unreadable(part.path, e))
    if rows:
        yield table()
