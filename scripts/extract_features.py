"""Encode the tiles of a batch of scans with one encoder.

    python scripts/extract_features.py --checks results/status/checks/b0.tsv --tiles results/status/tiles/T/b0.tsv \
        --encoder efficientnet_lite0 --registry resources/encoders.yaml --weights resources/weights \
        --results results/features/efficientnet_lite0 --output results/status/features/efficientnet_lite0/b0.tsv

The encoder is loaded once. Each scan's features are written when complete, and kept by a rerun as long as their content
key stands (tiles, encoder, weights and code unchanged), so a killed job loses at most the scan it was on.
"""

import argparse
import logging
from pathlib import Path

from pandas import DataFrame

from isoslide import atomic, cli, device, registry, status, weights
from isoslide.slide import SlideError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--checks", required=True, help="status table of the checks")
    parser.add_argument("--tiles", required=True, help="status table of the tiles")
    parser.add_argument("--scans", nargs="+", help="only these scans")
    parser.add_argument("--encoder", required=True, help="id in the registry")
    parser.add_argument("--registry", required=True, help="YAML file of encoders")
    parser.add_argument("--weights", required=True, help="folder of weights")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the encoder runs")
    parser.add_argument("--threads", type=int, default=1, help="threads for reading, and for the encoder on a CPU")
    parser.add_argument("--batch-size", type=int, default=4, help="tiles per forward pass")
    parser.add_argument("--reading", type=cli.json_arg, default={}, help="the block 'reading' of the config")
    parser.add_argument("--results", required=True, help="folder of the features files")
    parser.add_argument("--output", required=True, help="status table to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    atomic.sweep(args.results)
    entry = registry.load(args.registry, [args.encoder], args.weights)[args.encoder]
    try:
        args.device = device.claim(args.device)
    except device.DeviceError as error:
        cli.fail(str(error))
    checks = status.read(args.checks).set_index("scan", drop=False)
    tiles = status.read(args.tiles)
    if args.scans:
        tiles = tiles[tiles["scan"].isin(args.scans)]
    rows = encode(args, entry, checks, tiles)
    status.write(args.output, rows)
    logging.info("%d scans: %s", len(rows), status.summary(status.read(args.output)))


def encode(args: argparse.Namespace, entry: registry.Encoder, checks: DataFrame, table: DataFrame) -> list[dict]:
    import torch

    from isoslide import features, features_file, grid, keys, slide, tile_encoder

    torch.set_num_threads(args.threads)
    if args.device == "cuda" and not torch.cuda.is_available():
        cli.fail("a GPU was asked for and torch sees none: check the driver, or set 'device: cpu' in the config")
    try:
        encoder = tile_encoder.TileEncoder(entry, args.weights, args.device)
    except weights.EncoderError as error:
        cli.fail(str(error))
    reading = slide.Reading(**args.reading)
    code = [tile_encoder.code(entry), slide.code(reading), keys.code_hash(features.extract)]
    clock = features.Clock()
    rows = []
    for row in table.to_dict("records"):
        if row["status"] != status.OK:
            rows.append(status.carried(row))
            continue
        path = Path(args.results, f"{row['scan']}.h5")
        key = keys.content_key(tiles=row["key"], encoder=entry.defining(), weights=encoder.weights_hash, code=code)
        try:
            if features_file.stored_key(path) != key:
                tiles = grid.read_tiles_file(row["path"])
                check = checks.loc[row["scan"]]
                values = features.extract(encoder, check, tiles, reading, args.threads, args.batch_size, clock)
                features.write(path, values, tiles, row["path"], encoder, key)
        except SlideError as error:
            rows.append(status.failed(row, error.status, error.reason))
            continue
        done = {"scan": row["scan"], "status": status.OK, "n_tiles": row["n_tiles"], "path": path, "key": key}
        rows.append(done | {"specimen": row["specimen"], "scanner": row["scanner"]})
    logging.info("%s", clock)
    return rows


if __name__ == "__main__":
    main()
