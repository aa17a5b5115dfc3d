"""Draw where the models of an arm look on a scan, what each tile adds to its score, and what each tile alone would say.

    python scripts/draw_heatmaps.py --scans P01-1_A P01-1_C \
        --checks results/status/checks.tsv --tiles results/status/tiles/224px_0.5um.tsv \
        --features results/status/features/efficientnet_lite0.tsv \
        --splits results/splits/response.tsv --models results/models/response/efficientnet_lite0/robust/models.tsv \
        --results results/heatmaps/response/efficientnet_lite0/robust \
        --output results/heatmaps/response/efficientnet_lite0/robust/status.tsv

Each scan is shown as the models of the fold that tests it see it, mean over seeds: the score in the title is the mean
of the scan's rows in the predictions (of several classes, of the class that the mean predicts). Writes {scan}.png,
gallery/{scan}.png with the tiles that contribute most and least, tiles/{scan}.tsv with the values of every tile, and
geojson/{scan}.geojson, the same as objects that QuPath opens. A scan that no fold tests is a row with its reason.
"""

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from isoslide import cli, status
from isoslide.slide import SlideError

if TYPE_CHECKING:
    from isoslide import tile_values


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--scans", nargs="*", default=[], help="scans to draw")
    parser.add_argument("--checks", required=True, help="status table of the checks")
    parser.add_argument("--tiles", required=True, help="status table of the tiles")
    parser.add_argument("--features", required=True, help="status table of the features")
    parser.add_argument("--splits", required=True, help="folds of the task")
    parser.add_argument("--models", required=True, help="models of the arm")
    parser.add_argument("--results", required=True, help="folder of the pictures")
    parser.add_argument("--output", required=True, help="status table to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    tables = {name: status.read(getattr(args, name)) for name in ("checks", "tiles", "features", "splits", "models")}
    cli.check_named(args.scans, tables["checks"]["scan"])
    rows = [draw(scan, tables, Path(args.results)) for scan in args.scans]
    status.write(args.output, rows)
    logging.info("%d heatmaps: %s", len(rows), status.summary(status.read(args.output)))


def draw(scan: str, tables: dict[str, pd.DataFrame], folder: Path) -> dict:
    import h5py
    import numpy as np

    from isoslide import atomic, gallery, grid, heatmaps, tile_objects, tile_values
    from isoslide.slide import open_checked

    of = {name: tables[name].set_index("scan", drop=False) for name in ("checks", "tiles", "features")}
    row = of["features"].loc[scan]
    if row["status"] != status.OK:
        return status.carried(row)
    splits, models = tables["splits"], tables["models"]
    folds = splits[(splits["scan"] == scan) & (splits["role"] == "test")]["fold"]
    paths = models[models["fold"].isin(folds) & (models["path"] != "")]["path"]
    if paths.empty:
        return status.failed(row, "not_tested", "no model of a fold that tests this scan")
    tiles = grid.read_tiles_file(of["tiles"].loc[scan, "path"])
    with h5py.File(row["path"]) as file:
        features, ids = file["features"][()], file["tile_ids"][()]
    if not np.array_equal(ids, tiles.tile_ids[~tiles.out_of_bounds]):
        return status.failed(row, "other_tiles", "its features are not those of its tiles: run the features again")
    values = tile_values.of_scan(list(paths), features, row["scanner"])
    title = title_of(row, values, len(paths))
    try:
        with open_checked(of["checks"].loc[scan]) as slide:
            figure = heatmaps.draw(slide, tiles, values, title)
            picture = gallery.draw(slide, tiles, values, title)
            mpp = slide.mpp
    except SlideError as error:
        return status.failed(row, error.status, error.reason)
    facts = {"scan": scan, "scanner": row["scanner"], "models": list(paths), "p": values.bag, "meaning": values.meaning}
    rows, corners = tile_objects.table(tiles, values), heatmaps.outlines(tiles) / np.array(mpp)
    heatmaps.write(folder / f"{scan}.png", figure)
    gallery.write(folder / "gallery" / f"{scan}.png", picture)
    atomic.write_table(folder / "tiles" / f"{scan}.tsv", rows)
    tile_objects.write_geojson(folder / "geojson" / f"{scan}.geojson", rows, corners, facts)
    known = {"specimen": row["specimen"], "scanner": row["scanner"], "models": len(paths), "p": values.bag}
    known |= {"meaning": values.meaning, "total": values.total, "total_meaning": values.total_meaning}
    known |= {"bounded": values.bounded, "no_contribution": values.no_contribution}
    known |= values.bag_classes
    return {"scan": scan, "status": status.OK, "n_tiles": len(values.p), "path": folder / f"{scan}.png", **known}


def title_of(row: Mapping[str, str], values: "tile_values.TileValues", n_models: int) -> str:
    """Return the title of a scan's pictures."""
    score = f"{values.meaning} {values.bag:.3f}"
    return f"{row['scan']} (scanner {row['scanner']}): {score}, mean of {n_models} models"


if __name__ == "__main__":
    main()
