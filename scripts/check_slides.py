"""Open every scan of a batch and write down what later stages rely on.

    python scripts/check_slides.py --sheet config/slides.tsv --scans P01-1_A P01-1_B --output checks.tsv

One row per scan: status, µm/px and where it comes from, size, vendor, colour profile, fingerprint of the file.
A scan that cannot be used is a row with its reason; it stops nothing.
"""

import argparse
import logging
from concurrent.futures import ThreadPoolExecutor

from isoslide import checks, cli, sheet, status
from isoslide.slide import SlideError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--sheet", required=True, help="sample sheet")
    parser.add_argument("--scans", nargs="+", help="scans of the batch; default: all of the sheet")
    parser.add_argument("--threads", type=int, default=1, help="slides opened at the same time")
    parser.add_argument("--output", required=True, help="status table to write")
    return parser.parse_args(argv)


def check(row: dict[str, str]) -> dict:
    try:
        return checks.check(row)
    except SlideError as error:
        return status.failed(row, error.status, error.reason)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    try:
        table = sheet.included(sheet.read(args.sheet))
    except sheet.SheetError as error:
        cli.fail(str(error))
    if args.scans:
        unknown = set(args.scans) - set(table["scan"])
        if unknown:
            cli.fail(f"{args.sheet}: no scan {min(unknown)!r}: name scans of the sheet")
        table = table[table["scan"].isin(args.scans)]
    with ThreadPoolExecutor(args.threads) as pool:
        rows = list(pool.map(check, table.to_dict("records")))
    status.write(args.output, rows)
    logging.info("checked %d scans: %s", len(rows), status.summary(status.read(args.output)))


if __name__ == "__main__":
    main()
