"""Metrics of every arm with patient-bootstrap intervals, and each arm minus the control.

Example:
    python scripts/evaluate_predictions.py --predictions results/predictions/response/lite0/{paired,robust}.tsv \
        --models results/models/response/lite0/{paired,robust}/models.tsv \
        --splits results/splits/response.tsv --control paired \
        --settings '{"task": {"type": "binary"}, "evaluation": {"resamples": 1000, "seed": 1, "level": 0.95}}' \
        --metrics metrics.tsv --comparisons comparisons.tsv --by-model by_model.tsv --thresholds thresholds.tsv

The name of a predictions file is the name of its arm. Column meanings: `isoslide/evaluation.py`.
"""

import argparse
import logging
from pathlib import Path

from isoslide import atomic, cli, evaluation, scopes, status, thresholds
from isoslide.measures import MAIN


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--predictions", type=Path, nargs="+", required=True, help="one table per arm, {arm}.tsv")
    parser.add_argument(
        "--models", type=Path, nargs="*", default=[], help="{arm}/models.tsv: models without predictions"
    )
    parser.add_argument(
        "--splits", type=Path, required=True, help="the task's split table: who is unseen, who external"
    )
    parser.add_argument("--control", required=True, help="arm that the others are compared with")
    parser.add_argument("--settings", type=cli.json_arg, required=True, help='{"task": ..., "evaluation": ...}')
    parser.add_argument("--metrics", type=Path, required=True, help="output table")
    parser.add_argument("--comparisons", type=Path, required=True, help="output table")
    parser.add_argument(
        "--by-model", type=Path, required=True, help="output table: every metric of every fold and seed"
    )
    parser.add_argument(
        "--thresholds", type=Path, required=True, help="output table: of each model, by its tuning scans"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    kind = args.settings["task"]["type"]
    if kind not in MAIN:
        cli.fail(f"task type {kind!r} is not evaluated (allowed: {', '.join(MAIN)})")
    models = {path.parent.name: status.read(path) for path in args.models}
    splits = status.read(args.splits)
    frames = {path.stem: scopes.mark(evaluation.read_predictions(path), splits) for path in args.predictions}
    classes = evaluation.class_names(splits, kind)
    tuning = {path.stem: evaluation.read_predictions(path, "tune") for path in args.predictions}
    cuts = thresholds.choose(tuning, kind)
    with cli.timed("evaluation"):
        metrics, comparisons, by_model = evaluation.evaluate(
            frames, args.control, kind, args.settings["evaluation"], models, cuts, classes
        )
    for arm in frames:
        if reason := evaluation.is_collapsed(metrics, arm):
            logging.warning("%s collapsed: %s", arm, reason)
    atomic.write_table(args.metrics, metrics)
    atomic.write_table(args.comparisons, comparisons)
    atomic.write_table(args.by_model, by_model)
    atomic.write_table(args.thresholds, cuts)
    logging.info("%d arms, %d metric rows, %d comparisons", len(frames), len(metrics), len(comparisons))


if __name__ == "__main__":
    main()
