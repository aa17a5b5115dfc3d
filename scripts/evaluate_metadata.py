"""Can the label be told from facts about the scan alone: scanner, site, µm/px, tiles, tissue, colour?

Example:
    python scripts/evaluate_metadata.py --splits results/splits/response.tsv --sheet config/slides.tsv \
        --status results/status/checks.tsv results/status/tissue.tsv results/status/tiles/224px_0.5um.tsv \
        --settings '{"resamples": 1000, "seed": 1, "level": 0.95}' --output metadata.tsv

The task is the name of the split table. Predictors and method: `isoslide/metadata.py`.
"""

import argparse
import logging
from pathlib import Path

from isoslide import atomic, cli, metadata, sheet, status


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--splits", type=Path, required=True, help="{task}.tsv")
    parser.add_argument("--sheet", type=Path, required=True, help="the sample sheet")
    parser.add_argument("--status", type=Path, nargs="*", default=[], help="status tables with numbers of each scan")
    parser.add_argument("--settings", type=cli.json_arg, required=True, help="the configuration's block evaluation")
    parser.add_argument("--output", type=Path, required=True, help="output table")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    # Numbers of tiles stand in several tables; the last given, the tiles' own, is the one that counts.
    stages = {str(path): status.read(path) for path in reversed(args.status)}
    table = metadata.cases(status.read(args.splits), sheet.read(args.sheet), stages)
    result = metadata.baseline(table, args.splits.stem, args.settings)
    atomic.write_table(args.output, result)
    logging.info("%d scans, %d groups of predictors", len(table), len(result))


if __name__ == "__main__":
    main()
