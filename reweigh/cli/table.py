"""`reweigh table`: records as a table of tokens, responses or token ids, to look into."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from reweigh.cli.options import Form, Json, KeepGoing, Limit, Quiet, Reader, Replay, Sample, Tokenizer, Where
from reweigh.cli.output import print_json, print_written, progress

Of = Literal["token", "sequence", "id"]  # of reweigh.audit.table, which takes a second to load


def table(
    paths: Annotated[list[str], typer.Argument(metavar="PATHS...", help="Files, folders or quoted globs.")],
    of: Annotated[Of, typer.Option(help="What a row is: a token that counts, a response, or a token id.")] = "sequence",
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write it: .parquet or .csv; CSV is printed without it."),
    ] = None,
    estimators: Annotated[
        str | None,
        typer.Option("--weights", metavar="LIST", help='Weights of these: "seq_tis(2), token_tis(2)", or a YAML file.'),
    ] = None,
    worst: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="The N rows that are farthest off, worst first.")
    ] = None,
    tokenizer: Tokenizer = None,
    form: Form = "text",
    as_json: Json = False,
    where: Where = None,
    limit: Limit = None,
    sample: Sample = None,
    replay: Replay = False,
    keep_going: KeepGoing = False,
    reader: Reader = None,
    quiet: Quiet = False,
) -> None:
    """Write records as a table: ratio, weights and statistics of each token, each response or each token id.

    A response has the sum and mean of its log ratios, k3, its farthest token, and what estimators weigh it (the mean
    over its tokens); a token has both log-probs, its ratio, and the log ratio of the response up to it; a token id what
    it adds to the gap over all records. Exit code 0; 2 if the records cannot be read, 130 after Ctrl-C.

    \b
    Examples:
      reweigh table runs/ --out responses.parquet --weights "seq_tis(2), geo_rs(0.99, 1.01)"
      reweigh table runs/ --of token --worst 20 --tokenizer org/model
      reweigh table runs/ --of id --worst 50 --json
      reweigh table runs/step_10.parquet --of token --where 'length < 100' --out tokens.csv
    """
    form = "json" if as_json else form
    from reweigh.audit.table import Asked, plain_rows, tables, write
    from reweigh.cli.scans import asked as asked_for
    from reweigh.cli.scans import decoder, reporting, rows_of
    from reweigh.scan.engines import single_threaded

    single_threaded()  # a second thread of one small operation mostly waits for the first
    count = 0
    weights = {} if estimators is None else asked_for(estimators).estimators
    question = Asked(of, weights, worst, None if tokenizer is None else decoder(tokenizer))
    with progress("reading records: rows", quiet=quiet or (out is None and worst is None and of != "id")) as bar:
        pieces = tables(
            paths,
            question,
            keep_going=keep_going,
            reader=reader,
            rows=rows_of(where, limit, sample, replay),
            on_progress=reporting(bar, "writing"),
        )
        if out is not None:
            count = write(pieces, out)
        elif form == "json":
            print_json({"reweigh_table": 1, "of": of, "rows": [row for one in pieces for row in plain_rows(one)]})
        else:
            _print_csv(pieces)
    if out is not None:
        print_written(out, form, rows=count)


def _print_csv(pieces: object) -> None:
    import pyarrow as pa
    from pyarrow import csv

    first = True
    for piece in pieces:  # type: ignore[reportGeneralTypeIssues] - of pyarrow, which has no types
        sink = pa.BufferOutputStream()
        csv.write_csv(piece, sink, csv.WriteOptions(include_header=first))
        sys.stdout.write(sink.getvalue().to_pybytes().decode())
        first = False
