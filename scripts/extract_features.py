"""Encode the tiles of a batch of scans with one encoder.

    python scripts/extract_features.py --checks results/status/checks/b0.tsv --tiles results/status/tiles/T/b0.tsv \
        --encoder efficientnet_lite0 --registry resources/encoders.yaml --weights resources/weights \
        --results results/features/efficientnet_lite0 --output results/status/features/efficientnet_lite0/b0.tsv

The encoder is loaded once. Each scan's features are written when complete, and kept by a rerun as long as their content
key stands (tiles, encoder, weights and code unchanged), so a killed job loses at most the scans it was on.
"""

import argparse
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from pandas import DataFrame

from isoslide import atomic, cli, device, registry, staging, status, weights
from isoslide.slide import SlideError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--checks", required=True, help="status table of the checks")
    parser.add_argument("--tiles", required=True, help="status table of the tiles")
    parser.add_argument("--scans", nargs="+", help="only these scans")
    parser.add_argument("--encoder", required=True, help="id in the registry; ID+macenko or ID+reinhard: stain first")
    parser.add_argument("--registry", required=True, help="YAML file of encoders")
    parser.add_argument("--weights", required=True, help="folder of weights")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the encoder runs")
    parser.add_argument("--threads", type=int, default=1, help="threads for reading, and for the encoder on a CPU")
    parser.add_argument(
        "--batch-size", type=int, default=4, help="tiles per forward pass; less where GPU memory is short"
    )
    parser.add_argument("--reading", type=cli.json_arg, default={}, help="the block 'reading' of the config")
    parser.add_argument("--staging", type=cli.json_arg, default={}, help="the block 'staging' of the config")
    parser.add_argument("--results", required=True, help="folder of the features files")
    parser.add_argument("--speed", help="JSON to write: tiles per second, where the seconds went, peak memory")
    parser.add_argument("--output", required=True, help="status table to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    atomic.sweep(args.results)
    name, _, args.stain = args.encoder.partition("+")
    entry = registry.load(args.registry, [name], args.weights)[name]
    try:
        args.device = device.claim(args.device)
    except device.DeviceError as error:
        cli.fail(str(error))
    checks = status.read(args.checks).set_index("scan", drop=False)
    tiles = status.read(args.tiles)
    if args.scans:
        tiles = tiles[tiles["scan"].isin(args.scans)]
    try:
        args.staging = staging.Staging(**args.staging) if args.staging.get("folder") else None
    except staging.StagingError as error:
        cli.fail(str(error))
    rows = encode(args, entry, checks, tiles)
    status.write(args.output, rows)
    logging.info("%d scans: %s", len(rows), status.summary(status.read(args.output)))


def encode(args: argparse.Namespace, entry: registry.Encoder, checks: DataFrame, table: DataFrame) -> list[dict]:
    import torch

    from isoslide import extraction, features_file, grid, keys, pace, slide, stains, tile_encoder

    torch.set_num_threads(args.threads)
    encoder, facts = load_encoder(args, entry)
    reading = slide.Reading(**args.reading)
    code = [tile_encoder.code(entry), slide.code(reading), keys.code_hash(extraction.ScanTiles, extraction.Feeder)]
    tiles_of = extraction.ScanTiles
    if args.stain:
        tiles_of = partial(stains.NormalisedTiles, args.stain)
        code += [args.stain, keys.code_hash(stains)]
    feeder, clock, rows = extraction.Feeder(encoder, args.batch_size), pace.Clock(), []

    def wanted() -> Iterator[extraction.ScanTiles]:
        for row in table.to_dict("records"):
            if row["status"] != status.OK:
                rows.append(status.carried(row))
                continue
            path = Path(args.results, f"{row['scan']}.h5")
            key = keys.content_key(tiles=row["key"], encoder=entry.defining(), weights=encoder.weights_hash, code=code)
            done = {"scan": row["scan"], "status": status.OK, "n_tiles": row["n_tiles"], "path": path, "key": key}
            done |= {"specimen": row["specimen"], "scanner": row["scanner"]}
            if features_file.stored_key(path) == key:
                rows.append(done)
                continue
            tiles = grid.read_tiles_file(row["path"])
            yield tiles_of(done | {"tiles": row["path"]}, checks.loc[row["scan"]], tiles, reading, args.staging)

    for scan, found in extraction.encode_scans(feeder, wanted(), args.threads, clock):
        done = {name: value for name, value in scan.row.items() if name != "tiles"}
        if isinstance(found, SlideError):
            rows.append(status.failed(done, found.status, found.reason))
            continue
        extraction.write(done["path"], found, scan, scan.row["tiles"], feeder, done["key"])
        rows.append(done)
    logging.info("%s", clock)
    if args.speed:
        made = {"encoder": entry.id, "batch": feeder.batch, "threads": args.threads, "precision": encoder.precision}
        atomic.write_json(args.speed, clock.facts() | facts | made)
    return rows


def load_encoder(args: argparse.Namespace, entry: registry.Encoder):
    """Return the encoder on its device, and what is known of the device."""
    import torch

    from isoslide import stains, tile_encoder

    if args.device == "cuda" and not torch.cuda.is_available():
        cli.fail("a GPU was asked for and torch sees none: check the driver, or set 'device: cpu' in the config")
    if args.stain not in ("", *stains.FITS):
        cli.fail(f"--encoder {args.encoder}: after the + stands one of {sorted(stains.FITS)}")
    facts = device.describe(args.device)
    logging.info("device: %s", json.dumps(facts))
    try:
        encoder = tile_encoder.TileEncoder(entry, args.weights, args.device)
    except weights.EncoderError as error:
        cli.fail(str(error))
    encoder.entry = replace(entry, id=args.encoder)
    return encoder, facts


if __name__ == "__main__":
    main()
