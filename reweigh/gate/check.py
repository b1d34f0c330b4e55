"""Hold records against a policy and a baseline."""

from dataclasses import replace
from difflib import get_close_matches
from os import PathLike

from reweigh.gate.numbers import Cut, Run, read_baseline, read_run
from reweigh.gate.policy import EACH, HISTORICAL, Bound, Policy, read_policy
from reweigh.gate.result import Check, Gate, decide
from reweigh.records.files import Paths
from reweigh.scan import Engine, Report, Workers
from reweigh.scan.cuts import COLUMNS_OF
from reweigh.stats.intervals import Number

# Numbers of sequences grow with their length, those of tokens hardly. From a fifth on this is worth a word; ours.
LENGTH_CHANGE = 1.2
NOT_RECORDED = "not recorded"  # the slice of what does not say, as the audit calls it
MOST_LISTED = 15  # names in a hint


def gate(
    records: Paths | Run,
    policy: Policy | str | PathLike[str],
    baseline: Run | str | PathLike[str] | None = None,
    *,
    keep_going: bool = False,
    reader: str | None = None,
    engine: Engine = Workers(1),  # noqa: B008 - a frozen value
    on_progress: Report | None = None,
) -> Gate:
    """Hold the numbers of records against bounds; a bound is broken only when the whole 95% interval is beyond it.

    Args:
        records: files, folders or globs, as `reweigh.audit.audit` takes them; or what `read_run` made of them.
        policy: bounds, or the YAML file that has them.
        baseline: an earlier run, or the file that `reweigh gate --save-baseline` wrote of one.
        keep_going: leave out rows and tokens that cannot be used, and count them; otherwise the first is an error.
        reader: name of the files' format; recognised by their content if not given.
        engine: what runs it: `Workers(8)` processes, `OnRay()`; this process alone if not given.
        on_progress: called after each part.

    Raises:
        ValueError: a policy, a baseline or records that cannot be used; a bound on what this data or the baseline
            has not got, with its line.
        FileNotFoundError: nothing is there.

    Example:
        >>> from reweigh.gate import Bound, Policy, gate
        >>> policy = Policy((Bound("kl_k3", "token", "at_most", 0.01),))
        >>> gate("examples/records/vllm_bfloat16.parquet", policy).level  # doctest: +SKIP
        'ok'
    """
    policy = policy if isinstance(policy, Policy) else read_policy(policy)
    if policy.historical and baseline is None:
        first = policy.historical[0]
        raise ValueError(
            f"{first.place}: {first.text}: there is no baseline\n"
            "hint: give one with --baseline; `reweigh gate --save-baseline FILE RECORDS` writes it."
        )
    base = baseline if isinstance(baseline, Run) or baseline is None else read_baseline(baseline)
    if isinstance(records, Run):
        run = records
    else:
        run = read_run(records, policy.by, keep_going=keep_going, reader=reader, engine=engine, on_progress=on_progress)
    checks = [_check(one, policy, run, base) for bound in policy.bounds for one in _each(bound, run, base)]
    return Gate(tuple(checks), policy, run, base, _notes(policy, run, base))


def _each(bound: Bound, run: Run, base: Run | None) -> list[Bound]:
    """The bound on every slice; against a baseline also on those that only it has, which is then an error."""
    if bound.by is None or bound.label != EACH:
        return [bound]
    labels = run.labels(bound.by)
    if bound.rule in HISTORICAL and base is not None:
        labels = tuple(dict.fromkeys((*labels, *base.labels(bound.by))))
    if labels in ((), (NOT_RECORDED,)):
        columns = " and ".join(COLUMNS_OF.get(bound.by, (bound.by,)))
        raise ValueError(
            f"{bound.place}: {bound.text}: no record of {run.source} says its {bound.by}\n"
            f"hint: records need the column {columns}, or leave the slice out."
        )
    return [replace(bound, label=label) for label in labels]


def _check(bound: Bound, policy: Policy, run: Run, base: Run | None) -> Check:
    cut, number = _find(bound, run)
    before = None
    if bound.rule in HISTORICAL and base is not None:
        before = _find(bound, base)[1]
    return Check.of(bound, number, before, decide(bound, number, before), policy, cut.sequences)


def _find(bound: Bound, run: Run) -> tuple[Cut, Number]:
    cut = run.find(bound.level, bound.by, bound.label)
    if cut is None:
        have = run.labels(bound.by) if bound.by is not None else tuple(c.level for c in run.cuts if c.by is None)
        if bound.by is not None and bound.label in have:
            have = tuple(c.level for c in run.cuts if (c.by, c.label) == (bound.by, bound.label))
        wanted = str(bound.label) if bound.by is not None else bound.level
        hint = f"it has {_listed(have)}." if have else f"it was not cut by {bound.by}: write it again with --policy."
        if close := get_close_matches(wanted, have, 1, 0.6):
            hint = f"did you mean {close[0]}? {hint}"
        raise ValueError(f"{bound.place}: {bound.text}: {run.source} has no {bound.cut}\nhint: {hint}")
    number = cut.numbers.get(bound.number)
    if number is None:
        raise ValueError(
            f"{bound.place}: {bound.text}: {run.source} has no {bound.number} for {bound.cut}\n"
            f"hint: it has {', '.join(cut.numbers)}."
        )
    return cut, number


def _listed(names: tuple[str, ...]) -> str:
    more = len(names) - MOST_LISTED
    return ", ".join(names[:MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


def _notes(policy: Policy, run: Run, base: Run | None) -> tuple[str, ...]:
    notes = list(run.notes)
    if all(bound.severity == "warn" for bound in policy.bounds):
        notes.append(f"every bound of {policy.source} has the severity warn: nothing can fail")
    if base is not None and not policy.historical:
        notes.append(f"no bound of {policy.source} is against a baseline: {base.source} was not looked at")
    if base is None or not policy.historical:
        return tuple(notes)
    for name, (before, now) in base.info.disagreements(run.info).items():
        notes.append(f"{name} was {before} in the baseline, and is {now}")
    before, now = base.find("sequence", None, None), run.find("sequence", None, None)
    if before is not None and now is not None:
        was, is_ = before.tokens / before.sequences, now.tokens / now.sequences
        if not 1 / LENGTH_CHANGE < is_ / was < LENGTH_CHANGE:
            notes.append(
                f"responses have {is_:,.0f} tokens on average, and had {was:,.0f} in the baseline: numbers of "
                "sequences change with length, those of tokens hardly"
            )
    return tuple(notes)
