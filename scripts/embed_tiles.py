"""How much of the scanner is left in the tile embeddings of trained models, beside the features they started from.

Example:
    python scripts/embed_tiles.py --models results/models/response/lite0/robust/models.tsv \
        --splits results/splits/response.tsv --features results/status/features/lite0.tsv \
        --settings '{"resamples": 1000, "seed": 1, "level": 0.95, "sample_specimens": 200, "sample_tiles": 8}' \
        --metrics robust.tsv --map robust_map.tsv

Only tiles of test specimens are looked at, each by the model of its own fold. Which models, and what each number is:
`isoslide/tile_embeddings.py`. The map shows the first fold: its tiles in the features (`stage` before) and in the
embeddings (after), each laid out by itself. An arm without a model gives empty tables.
"""

import argparse
import logging
from pathlib import Path

import numpy as np
import pandas as pd

from isoslide import atomic, cli, status
from isoslide.metrics import Undefined

MAP_COLUMNS = ("scan", "specimen", "patient", "scanner", "tile_id", "place", "x", "y")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--models", type=Path, required=True, help="models.tsv of an arm")
    parser.add_argument("--splits", type=Path, required=True, help="the task's split table")
    parser.add_argument("--features", type=Path, required=True, help="status table of the arm's features")
    parser.add_argument("--settings", type=cli.json_arg, required=True, help="the configuration's block evaluation")
    parser.add_argument("--threads", type=int, default=1, help="threads of the matrix products")
    parser.add_argument("--metrics", type=Path, required=True, help="output table")
    parser.add_argument("--map", type=Path, required=True, help="output table of the maps")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    import torch

    from isoslide import tile_embeddings

    torch.set_num_threads(args.threads)
    splits, settings = status.read(args.splits), args.settings
    scans, paths = tested(splits, status.read(args.features)), first_seed(status.read(args.models))
    classes = splits[splits["class"] != ""].drop_duplicates("scan").set_index("scan")["class"]
    try:
        folds = tile_embeddings.draw_folds(scans, paths, settings, np.random.default_rng(settings["seed"]))
    except Undefined as undefined:
        logging.warning("nothing to look at: %s", undefined.reason)
        atomic.write_table(args.metrics, pd.DataFrame(columns=tile_embeddings.COLUMNS))
        atomic.write_table(args.map, pd.DataFrame(columns=[*MAP_COLUMNS, "fold", "stage", "class"]))
        return
    samples = {"before": [fold.sample for fold in folds]}
    samples["after"] = [tile_embeddings.embed(paths[fold.name], fold.sample) for fold in folds]
    found, maps = {}, []
    for stage, own in samples.items():
        with cli.timed(stage):
            parts = [tile_embeddings.measure(*pair, classes) for pair in zip(folds, own, strict=True)]
            found[stage] = tile_embeddings.over_folds(parts)
            maps.append(tile_embeddings.plane(own[0], settings["seed"]).assign(fold=folds[0].name, stage=stage))
    tiles = pd.concat(maps)
    table = tile_embeddings.rows(found["before"], found["after"], len(folds), settings["level"])
    atomic.write_table(args.metrics, table)
    atomic.write_table(args.map, tiles.assign(**{"class": tiles["scan"].map(classes).fillna("")}))
    logging.info("%d tiles of %d folds", sum(len(fold.sample.tiles) for fold in folds), len(folds))


def tested(splits: pd.DataFrame, features: pd.DataFrame) -> pd.DataFrame:
    """Return the test scans that have features: `fold`, `scan`, `specimen`, `patient`, `scanner`, `path`."""
    usable = features.loc[features["status"] == status.OK, ["scan", "path"]]
    rows = splits.loc[splits["role"] == "test", ["fold", "scan", "specimen", "patient", "scanner"]]
    return rows.merge(usable, on="scan")


def first_seed(table: pd.DataFrame) -> dict[str, str]:
    """Return the file of the model with the lowest seed of each fold that has one."""
    made = table[table["path"] != ""].sort_values("seed", key=lambda seed: seed.astype(int), kind="stable")
    return made.drop_duplicates("fold").set_index("fold")["path"].to_dict()


if __name__ == "__main__":
    main()
