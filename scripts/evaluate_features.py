"""How much of the scanner is in an encoder's features: retrieval, linear probe, robustness index, and a map.

Example:
    python scripts/evaluate_features.py --features results/status/features/lite0.tsv --sheet config/slides.tsv \
        --splits results/splits/response.tsv results/splits/survival.tsv \
        --settings '{"resamples": 1000, "seed": 1, "level": 0.95, "sample_specimens": 200, "sample_tiles": 8}' \
        --metrics lite0.tsv --map lite0_map.tsv --facts lite0.json

Looks at a sample of tiles, before any training. What each number is: `isoslide/embedding.py`.
"""

import argparse
import logging
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from isoslide import atomic, cli, embedding, neighbours, sheet, status
from isoslide.metrics import Undefined

FACTS = ("encoder", "weights_sha256", "precision", "torch", "version", "tile_px", "mpp")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--features", type=Path, required=True, help="status table of the encoder's features")
    parser.add_argument("--sheet", type=Path, required=True, help="the sample sheet: patient and scanner of each scan")
    parser.add_argument("--splits", type=Path, nargs="*", default=[], help="{task}.tsv: the class of each scan")
    parser.add_argument("--settings", type=cli.json_arg, required=True, help="the configuration's block evaluation")
    parser.add_argument("--metrics", type=Path, required=True, help="output table")
    parser.add_argument("--map", type=Path, required=True, help="output table of the map")
    parser.add_argument("--facts", type=Path, required=True, help="output: what the features were made with, JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    scans = usable(args.features, args.sheet)
    classes = {path.stem: classes_of(status.read(path)) for path in args.splits}
    settings, encoder = args.settings, args.features.stem
    rng = np.random.default_rng(settings["seed"])
    try:
        sample = embedding.draw_sample(scans, settings["sample_specimens"], settings["sample_tiles"], rng)
    except Undefined as undefined:
        cli.fail(f"{args.features}: {undefined.reason}: no scan has features, see its column reason")
    weights, index = embedding.draw_weights(sample.tiles, settings["resamples"], rng)
    with cli.timed("retrieval and probe"):
        found = embedding.retrieval(sample, weights, index)
        weights, index = embedding.draw_weights(sample.tiles, settings["resamples"], rng)
        found["scanner_probe", "pooled"] = embedding.scanner_probe(sample, weights, index)
    with cli.timed("neighbours"):
        for task, named in classes.items():
            near = neighbours.neighbours(sample, named, weights, index)
            found |= {(metric, task): measured for metric, measured in near.items()}
    rows = [measured.row(*key, settings["level"]) for key, measured in found.items()]
    with cli.timed("map"):
        tiles = embedding.plane(sample, settings["seed"])
    tiles = tiles.assign(**{task: tiles["scan"].map(named).fillna("") for task, named in classes.items()})
    atomic.write_table(args.metrics, pd.DataFrame(rows).assign(encoder=encoder)[embedding.COLUMNS])
    atomic.write_table(args.map, tiles)
    atomic.write_json(args.facts, facts(scans) | {"scans": len(scans), "sampled_tiles": len(sample.tiles)})
    logging.info("%d tiles of %d specimens", len(sample.tiles), sample.tiles["specimen"].nunique())


def usable(features: Path, sheet_path: Path) -> pd.DataFrame:
    """Return the scans with features: `scan`, `specimen`, `patient`, `scanner`, `path`."""
    table = status.read(features)
    table = table.loc[table["status"] == status.OK, ["scan", "path"]]
    who = sheet.included(sheet.read(sheet_path))[["scan", "specimen", "patient", "scanner"]]
    return who.merge(table, on="scan")


def classes_of(splits: pd.DataFrame) -> pd.Series:
    """Return the class of each scan that has one."""
    named = splits[splits["class"] != ""].drop_duplicates("scan")
    return named.set_index("scan")["class"]


def facts(scans: pd.DataFrame) -> dict[str, object]:
    """Return what the first features file says of the encoder, its weights and its tiles."""
    with h5py.File(scans["path"].iloc[0], "r") as file:
        found = {name: file.attrs[name] for name in FACTS if name in file.attrs}
        found["dim"] = int(file["features"].shape[1])
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in found.items()}


if __name__ == "__main__":
    main()
