"""Deal the patients of a task to folds: who trains, tunes and tests in each.

    python scripts/make_splits.py --sheet config/slides.tsv --task response \
        --settings '{"task": {"type": "binary", "label": "response", "positive": "positive"},
                     "splits": {"folds": 5, "tune": 0.2, "seed": 1}}' \
        --output results/splits/response.tsv --proof results/splits/proof/response.tsv

Patients are whole, strata (classes, quarters of the values, events) are dealt evenly, and the same seed gives the same
folds. A fold that lacks a class or an event is refused. With `--file` the folds are the user's own, checked alike. The
proof counts, from the finished table, what each part of each fold holds and what it shares with the others.
"""

import argparse
import logging

from isoslide import atomic, cli, outcomes, sheet, split_files, splits


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--sheet", required=True, help="sample sheet")
    parser.add_argument("--task", required=True, help="name of the task, for messages and its draw")
    parser.add_argument("--settings", required=True, type=cli.json_arg, help="blocks task and splits of the config")
    parser.add_argument("--file", help="the user's own folds: tab separated fold, role, and scan or patient")
    parser.add_argument("--output", required=True, help="table to write")
    parser.add_argument("--proof", required=True, help="table of counts and overlaps to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    task, divided = args.settings["task"], args.settings["splits"]
    try:
        scans = sheet.read(args.sheet)
        if args.file:
            table = split_files.make(scans, args.task, task, divided, args.file)
        else:
            table = splits.make(scans, args.task, task, divided)
    except (sheet.SheetError, splits.SplitError) as error:
        cli.fail(str(error))
    proof = splits.proof(table, scans.set_index("scan")["site"])
    if left_out := outcomes.without_outcome(table, scans):
        names = [task[key] for key in ("label", "time", "event") if key in task]
        out = sheet.included(scans)[lambda rows: ~rows["scan"].isin(table["scan"])]
        cells = "; ".join(f"{n} {'/'.join(map(repr, cell))}" for cell, n in out[names].value_counts().items())
        logging.warning("%s; cells of %s: %s", left_out, "/".join(names), cells)
    atomic.write_table(args.proof, proof)
    atomic.write_table(args.output, table)
    for fold, rows in proof.groupby("fold"):
        logging.info("fold %d: patients %s", fold, dict(zip(rows["role"], rows["patients"], strict=True)))


if __name__ == "__main__":
    main()
