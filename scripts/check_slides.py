"""Open every scan of a batch and write down what later stages rely on.

    python scripts/check_slides.py --sheet config/slides.tsv --scans P01-1_A P01-1_B \
        --settings '{"assume_mpp_from_power": false}' --known-slide resources/CMU-1-Small-Region.svs --output checks.tsv

One row per scan: status, µm/px and where it comes from, size, vendor, colour profile, fingerprint of the file.
A scan that cannot be used is a row with its reason; it stops nothing. A slide whose pixels are known comes first: where
the installed libraries read it wrongly, nothing is checked.
"""

import argparse
import functools
import logging
from concurrent.futures import ThreadPoolExecutor

from isoslide import checks, cli, known_slide, sheet, status
from isoslide.slide import SlideError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--sheet", required=True, help="sample sheet")
    parser.add_argument("--scans", nargs="+", help="scans of the batch; default: all of the sheet")
    parser.add_argument("--settings", type=cli.json_arg, default={}, help="the config's block checks, as JSON")
    parser.add_argument("--known-slide", help="the slide of resources/, to try the readers on")
    parser.add_argument("--threads", type=int, default=1, help="slides opened at the same time")
    parser.add_argument("--output", required=True, help="status table to write")
    return parser.parse_args(argv)


def check(row: dict[str, str], assume_from_power: bool) -> dict:
    try:
        return checks.check(row, assume_from_power)
    except SlideError as error:
        return status.failed(row, error.status, error.reason)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    try:
        if args.known_slide:
            known_slide.check(args.known_slide)
        table = sheet.included(sheet.read(args.sheet))
    except (sheet.SheetError, known_slide.ReaderError) as error:
        cli.fail(str(error))
    if args.scans:
        unknown = set(args.scans) - set(table["scan"])
        if unknown:
            cli.fail(f"{args.sheet}: no scan {min(unknown)!r}: name scans of the sheet")
        table = table[table["scan"].isin(args.scans)]
    check_row = functools.partial(check, assume_from_power=args.settings.get("assume_mpp_from_power", False))
    with ThreadPoolExecutor(args.threads) as pool:
        rows = list(pool.map(check_row, table.to_dict("records")))
    status.write(args.output, rows)
    logging.info("checked %d scans: %s", len(rows), status.summary(status.read(args.output)))


if __name__ == "__main__":
    main()
