"""Put the tissue outlines of all scans on one page, to look through 200 slides in a minute.

    python scripts/draw_contact_sheet.py --tissue results/status/tissue.tsv --pictures results/tissue \
        --output results/tissue/contact_sheet.html

Scans that were given up come first, then those whose numbers are worth a look. The page shows the overlays where they
lie, so it belongs beside them.
"""

import argparse
import logging
import os
from pathlib import Path

from isoslide import atomic, cli, pictures, status


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--tissue", required=True, type=Path, help="status table of the tissue stage, all batches")
    parser.add_argument("--pictures", required=True, type=Path, help="folder of the overlays {scan}.jpg")
    parser.add_argument("--output", required=True, type=Path, help="HTML page to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    table = status.read(args.tissue)
    folder = os.path.relpath(args.pictures, args.output.parent)
    present = set(os.listdir(args.pictures)) if args.pictures.is_dir() else set()
    found = {scan: os.path.join(folder, f"{scan}.jpg") for scan in table["scan"] if f"{scan}.jpg" in present}
    atomic.write_text(args.output, pictures.contact_sheet(table, found))
    logging.info("%d scans, %d pictures", len(table), len(found))


if __name__ == "__main__":
    main()
