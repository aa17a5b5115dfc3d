"""Lay one grid of tiles per specimen on its reference scan and carry it to the specimen's other scans.

    python scripts/tile_scans.py --checks results/status/checks/b0.tsv --tissue results/status/tissue/b0.tsv \
        --registrations results/status/registrations/b0.tsv --view '{"tile_px": 224, "mpp": 0.5}' \
        --settings '{"min_tissue": 0.5, "overlap": 0, "max_tiles": 0, "seed": 1, "max_ink": 0.1, ...}' \
        --results results/tiles/224px_0.5um --output results/status/tiles/224px_0.5um/b0.tsv

Writes {scan}.h5 into the results folder for every scan that has a tile. A scan that is not registered gets a grid of
its own, on its own tissue, and pairs with no other. Filters look at each scan by itself. The counts add up: n_grid =
n_capped + n_black + n_ink + n_white + n_blurred + n_outside + n_tiles.
"""

import argparse
import logging
from pathlib import Path

from isoslide import atomic, cli, grid, status, tiling


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--checks", required=True, type=Path, help="status table of the checks stage")
    parser.add_argument("--tissue", required=True, type=Path, help="status table of the tissue stage")
    parser.add_argument("--registrations", required=True, type=Path, help="status table of the registrations stage")
    parser.add_argument("--view", required=True, type=cli.json_arg, help="tile_px (px) and mpp (µm/px), as JSON")
    parser.add_argument("--settings", required=True, type=cli.json_arg, help="the config's block tiles, as JSON")
    parser.add_argument("--results", required=True, type=Path, help="folder for the scans' files")
    parser.add_argument("--scans", nargs="+", metavar="ID", help="only these scans")
    parser.add_argument("--output", required=True, type=Path, help="status table to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    atomic.sweep(args.results)
    batch = tiling.Batch(
        checks=_by_scan(args.checks),
        tissue=_by_scan(args.tissue),
        registrations=_by_scan(args.registrations),
        view=grid.View(**args.view),
        settings=args.settings,
    )
    scans = [scan for scan in batch.checks if not args.scans or scan in args.scans]
    unknown = [scan for scan in scans if scan not in batch.tissue]
    if unknown:
        cli.fail(f"scan {unknown[0]!r} has no row in the tissue table: run the stage 'tissue' again")
    with cli.timed("tiles"):
        rows = [tiling.process(scan, batch, args.results) for scan in scans]
    status.write(args.output, rows)
    logging.info("%s", status.summary(status.read(args.output)))


def _by_scan(path: Path) -> dict[str, tiling.Row]:
    return {row["scan"]: row for row in status.read(path).to_dict("records")}


if __name__ == "__main__":
    main()
