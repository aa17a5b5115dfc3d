"""Draw the µm per pixel of a cohort's scans by scanner.

    python scripts/draw_mpp.py --checks results/status/checks.tsv --output results/checks/mpp.svg

A scanner whose scans lie at two values, or apart from what it is known for, shows at a glance.
"""

import argparse
from pathlib import Path

from isoslide import atomic, cli, figures, pictures, status


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--checks", required=True, type=Path, help="status table of the checks stage, all batches")
    parser.add_argument("--output", required=True, type=Path, help="SVG file to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    figure = pictures.mpp_histogram(status.read(args.checks))
    atomic.write_text(args.output, figures.to_svg(figure, "mpp"))


if __name__ == "__main__":
    main()
