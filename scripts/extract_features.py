"""Encode the tiles of a batch of scans with one encoder, or with several that want the same tiles.

    python scripts/extract_features.py --checks results/status/checks/b0.tsv --tiles results/status/tiles/T/b0.tsv \
        --encoder efficientnet_lite0 --registry resources/encoders.yaml --weights resources/weights \
        --results results/features/efficientnet_lite0 --output results/status/features/efficientnet_lite0/b0.tsv

An encoder is loaded once; several encoders share one reading of each tile. Each scan's features are written when
complete, and kept by a rerun as long as their content key stands (tiles, encoder, weights and code unchanged), so a
killed job loses at most the scans it was on.
"""

import argparse
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pandas import DataFrame

from isoslide import atomic, cli, device, registry, staging, status, weights
from isoslide.slide import SlideError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--checks", required=True, help="status table of the checks")
    parser.add_argument("--tiles", required=True, help="status table of the tiles")
    parser.add_argument("--scans", nargs="+", help="only these scans")
    parser.add_argument(
        "--encoder", required=True, nargs="+", help="ids in the registry; ID+macenko or ID+reinhard: stain first"
    )
    parser.add_argument("--registry", required=True, help="YAML file of encoders")
    parser.add_argument("--weights", required=True, help="folder of weights")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the encoder runs")
    parser.add_argument("--threads", type=int, default=1, help="threads for reading, and for the encoder on a CPU")
    parser.add_argument(
        "--batch-size", type=int, default=4, help="tiles per forward pass; less where GPU memory is short"
    )
    parser.add_argument("--reading", type=cli.json_arg, default={}, help="the block 'reading' of the config")
    parser.add_argument("--staging", type=cli.json_arg, default={}, help="the block 'staging' of the config")
    parser.add_argument("--results", required=True, nargs="+", help="folder of the features files of each encoder")
    parser.add_argument("--speed", help="JSON to write: tiles per second, where the seconds went, peak memory")
    parser.add_argument("--output", required=True, help="status table to write; of several encoders it names them")
    args = parser.parse_args(argv)
    if len(args.results) != len(args.encoder):
        parser.error("--results takes one folder for each encoder")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    names, stains = zip(*(name.partition("+")[::2] for name in args.encoder), strict=True)
    if len(set(stains)) > 1:
        cli.fail(f"--encoder {' '.join(args.encoder)}: encoders that share their tiles have one stain for all")
    args.stain = stains[0]
    known = registry.load(args.registry, names, args.weights)
    try:
        args.device = device.claim(args.device)
        args.staging = staging.Staging(**args.staging) if args.staging.get("folder") else None
    except (device.DeviceError, staging.StagingError) as error:
        cli.fail(str(error))
    checks = status.read(args.checks).set_index("scan", drop=False)
    tiles = status.read(args.tiles)
    if args.scans:
        tiles = tiles[tiles["scan"].isin(args.scans)]
    rows = encode(args, [known[name] for name in names], checks, tiles)
    if len(names) == 1:
        rows = [{name: value for name, value in row.items() if name != "encoder"} for row in rows]
    status.write(args.output, rows)
    logging.info("%d rows: %s", len(rows), status.summary(status.read(args.output)))


def encode(
    args: argparse.Namespace, entries: list[registry.Encoder], checks: DataFrame, table: DataFrame
) -> list[dict]:
    import torch

    from isoslide import extraction, pace, slide, stains

    torch.set_num_threads(args.threads)
    reading = slide.Reading(**args.reading)
    encoders, facts = load_encoders(args, entries, reading)
    tiles_of = partial(stains.NormalisedTiles, args.stain) if args.stain else extraction.ScanTiles
    clock, rows = pace.Clock(), []

    def wanted() -> Iterator[tuple[extraction.ScanTiles, list[extraction.Feeder]]]:
        for row in table.to_dict("records"):
            if row["status"] != status.OK:
                rows.extend({"encoder": one.name} | status.carried(row) for one in encoders)
                continue
            standing, lacking = sort_out(encoders, row)
            rows.extend(standing)
            if lacking:
                tiles = read_tiles(row, checks.loc[row["scan"]])
                told = {"scan": row["scan"], "tiles": row["path"], "lacking": lacking}
                scan = tiles_of(told, checks.loc[row["scan"]], tiles, reading, args.staging)
                yield scan, [one.feeder for one, _ in lacking]

    for scan, found in extraction.encode_scans(wanted(), args.threads, clock):
        for (one, done), features in zip(scan.row["lacking"], found, strict=True):
            if isinstance(features, SlideError):
                rows.append({"encoder": one.name} | status.failed(done, features.status, features.reason))
                continue
            extraction.write(done["path"], features, scan, scan.row["tiles"], one.feeder, done["key"])
            rows.append(done)
    logging.info("%s", clock)
    if args.speed:
        made = {"encoder": " ".join(args.encoder), "threads": args.threads}
        made |= {"batch": encoders[0].feeder.batch, "precision": encoders[0].feeder.encoder.precision}
        atomic.write_json(args.speed, clock.facts() | facts | made)
    return rows


def read_tiles(row: Mapping[str, Any], check: Mapping[str, Any]) -> Any:
    """Return the tiles (`grid.Tiles`) of a row of their table; those that it does not mean end the job."""
    from isoslide import grid

    try:
        tiles = grid.read_tiles_file(row["path"])
    except FileNotFoundError:
        cli.fail(f"scan {row['scan']!r}: no file {row['path']}: run the stage again: snakemake -R tile_scans")
    if grid.row_key(check["key"], tiles) != row["key"]:
        cli.fail(
            f"scan {row['scan']!r}: the tiles in {row['path']} are not those of its row in the table: run the stage "
            "again: snakemake -R tile_scans"
        )
    return tiles


@dataclass
class Coder:
    """An encoder at work: its feeder, the folder of its files, and what their content keys are made of."""

    name: str
    feeder: Any  # extraction.Feeder: torch is not imported yet
    folder: str
    parts: dict[str, Any]

    def done(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the status row of a scan, from its row of the tiles, once its features are there."""
        from isoslide import keys

        row_key = keys.content_key(tiles=row["key"], **self.parts)
        path = Path(self.folder, f"{row['scan']}.h5")
        known = {name: row[name] for name in ("scan", "n_tiles", "specimen", "scanner")}
        return known | {"status": status.OK, "path": path, "key": row_key, "encoder": self.name}


def sort_out(coders: list[Coder], row: Mapping[str, Any]) -> tuple[list[dict], list[tuple[Coder, dict]]]:
    """Return the status rows of the features of a scan that are there, and encoders and rows of those that are not."""
    from isoslide import features_file

    standing, lacking = [], []
    for one in coders:
        done = one.done(row)
        if features_file.stored_key(done["path"]) == done["key"]:
            standing.append(done)
        else:
            lacking.append((one, done))
    return standing, lacking


def reader_code(reading: Any, stain: str) -> list[Any]:
    """Return what the code is that the encoders' pixels depend on, and how they are read."""
    from isoslide import extraction, grid, keys, slide, stains

    places = (grid.tile_affines, grid.carry)
    parts = [slide.code(reading), keys.code_hash(extraction.ScanTiles, extraction.Feeder, extraction._finish, *places)]
    # which tiles a stain is fitted on goes by the order in which they are read
    return parts + ([stain, keys.code_hash(stains, extraction._reading_order)] if stain else [])


def load_encoders(
    args: argparse.Namespace, entries: list[registry.Encoder], reading: Any
) -> tuple[list[Coder], dict[str, str]]:
    """Return the encoders on their device, and what is known of the device."""
    import torch

    from isoslide import extraction, stains, tile_encoder

    if args.device == "cuda" and not torch.cuda.is_available():
        cli.fail("a GPU was asked for and torch sees none: check the driver, or set 'device: cpu' in the config")
    if args.stain not in ("", *stains.FITS):
        cli.fail(f"--encoder {' '.join(args.encoder)}: after the + stands one of {sorted(stains.FITS)}")
    facts = device.describe(args.device)
    logging.info("device: %s", json.dumps(facts))
    reader = reader_code(reading, args.stain)
    coders = []
    for name, entry, folder in zip(args.encoder, entries, args.results, strict=True):
        atomic.sweep(folder)
        try:
            encoder = tile_encoder.TileEncoder(entry, args.weights, args.device)
        except weights.EncoderError as error:
            cli.fail(str(error))
        code = [tile_encoder.code(entry), *reader]
        parts = {"encoder": entry.defining(), "weights": encoder.weights_hash, "code": code}
        parts |= {"precision": encoder.precision}  # so that no cohort is encoded in part on a CPU, in part on a GPU
        encoder.entry = replace(entry, id=name)
        coders.append(Coder(name, extraction.Feeder(encoder, args.batch_size), folder, parts))
    return coders, facts


if __name__ == "__main__":
    main()
