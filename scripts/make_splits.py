"""Deal the patients of a task to folds: who trains, tunes and tests in each.

    python scripts/make_splits.py --sheet config/slides.tsv --task response \
        --settings '{"task": {"type": "binary", "label": "response", "positive": "positive"},
                     "splits": {"folds": 5, "tune": 0.2, "seed": 1}}' \
        --output results/splits/response.tsv

Patients are whole, strata (classes, quarters of the values, events) are dealt evenly, and the same seed gives the same
folds. A fold that lacks a class or an event is refused.
"""

import argparse
import logging

from isoslide import atomic, cli, sheet, splits


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--sheet", required=True, help="sample sheet")
    parser.add_argument("--task", required=True, help="name of the task, for messages and its draw")
    parser.add_argument("--settings", required=True, type=cli.json_arg, help="blocks task and splits of the config")
    parser.add_argument("--output", required=True, help="table to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    try:
        table = splits.make(sheet.read(args.sheet), args.task, args.settings["task"], args.settings["splits"])
    except (sheet.SheetError, splits.SplitError) as error:
        cli.fail(str(error))
    atomic.write_table(args.output, table)
    patients = table.drop_duplicates(["fold", "patient", "role"])
    for fold, rows in patients[patients["role"] != splits.UNUSED].groupby("fold"):
        logging.info("fold %d: patients %s", fold, rows["role"].value_counts().to_dict())


if __name__ == "__main__":
    main()
