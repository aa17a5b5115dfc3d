"""Import features that were made elsewhere: check them, pair the scans of each specimen, and write them as our own.

    python scripts/import_features.py --sheet config/slides.tsv --name uni_trident \
        --settings '{"path": "features_uni_v1/{scan}.h5", "coords": "", "unit": "auto", "tile_um": 128,
            "pairing": "tile_ids", "tolerance_um": 25}' \
        --results results/features/uni_trident --output results/status/features/uni_trident.tsv

Reads TRIDENT, CLAM, STAMP and Isoslide HDF5, .npz and .pt files (docs/features.md). With `"pairing": "registered"` give
the folder of the registrations, and the status table of the checks for the µm per pixel.
"""

import argparse
import logging
from pathlib import Path

from pandas import DataFrame

from isoslide import atomic, cli, importing, imports, sheet, status


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--sheet", required=True, help="the sample sheet")
    parser.add_argument("--scans", nargs="+", help="only these scans and the others of their specimens")
    parser.add_argument("--name", required=True, help="of the set of features, as the config's encoders name it")
    parser.add_argument("--settings", type=cli.json_arg, required=True, help="its block of the config's import")
    parser.add_argument("--checks", help="status table of the checks, for µm per pixel; else those of the sheet count")
    parser.add_argument("--registrations", default="", help="folder of {specimen}.json, for pairing 'registered'")
    parser.add_argument("--results", type=Path, required=True, help="folder of the features files")
    parser.add_argument("--output", required=True, help="status table to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    atomic.sweep(args.results)
    table = sheet.included(sheet.read(args.sheet))
    if args.scans:
        whole = set(table.loc[table["scan"].isin(args.scans), "specimen"])  # a scan is paired with the others of it
        table = table[table["specimen"].isin(whole)]
    else:
        try:
            imports.check(args.name, args.settings, table)
        except sheet.SheetError as error:
            cli.fail(str(error))
    mpps = read_mpps(args.checks) if args.checks else sheet_mpps(table)
    rows = []
    for specimen, own in table.groupby("specimen", sort=True):
        record = importing.read_record(args.registrations, str(specimen))
        rows += importing.import_specimen(own.to_dict("records"), args.name, args.settings, mpps, record, args.results)
    status.write(args.output, rows)
    logging.info("%d scans: %s", len(rows), status.summary(status.read(args.output)))
    alone = [row for row in rows if row.get("why_alone")]
    for row in alone[:5]:
        logging.info("%s is never one of a pair: %s", row["scan"], row["why_alone"])
    logging.info("%d scans share tiles with another scan of their specimen", sum(bool(r.get("n_paired")) for r in rows))


def sheet_mpps(table: DataFrame) -> dict[str, tuple[float, float]]:
    """Return the µm per pixel that the sheet says, by scan."""
    return {row["scan"]: (float(row["mpp"]),) * 2 for row in table.to_dict("records") if row["mpp"]}


def read_mpps(path: str) -> dict[str, tuple[float, float]]:
    """Return the µm per pixel that the checks found, by scan."""
    rows = status.read(path).to_dict("records")
    return {row["scan"]: (float(row["mpp_x"]), float(row["mpp_y"])) for row in rows if row["status"] == status.OK}


if __name__ == "__main__":
    main()
