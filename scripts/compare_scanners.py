"""Draw two scans of one specimen side by side: the tiles' scores on each scanner and their difference, arm by arm.

    python scripts/compare_scanners.py --scans P01-1_A P01-1_C \
        --checks results/status/checks.tsv --tiles results/status/tiles/224px_0.5um.tsv \
        --maps results/heatmaps/response/efficientnet_lite0/paired/status.tsv \
            results/heatmaps/response/efficientnet_lite0/robust/status.tsv \
        --results results/scanner_pairs/response/efficientnet_lite0 \
        --output results/scanner_pairs/response/efficientnet_lite0/status.tsv

Of the scans given, the first of each specimen stands beside each other one of it. Writes {scan}/{other}.png; a row per
pair says how far the two scores of a tile lie apart in the mean, and how far the tiles of one scan do (`spread`: where
an arm gives all tiles the same score, small differences mean nothing). Scores are those of tiles alone.
"""

import argparse
import logging
from pathlib import Path

import pandas as pd

from isoslide import cli, status
from isoslide.slide import SlideError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--scans", nargs="*", default=[], help="scans to draw")
    parser.add_argument("--checks", required=True, help="status table of the checks")
    parser.add_argument("--tiles", required=True, help="status table of the tiles")
    parser.add_argument("--maps", nargs="+", required=True, help="{arm}/status.tsv of draw_heatmaps.py")
    parser.add_argument("--results", required=True, help="folder of the pictures")
    parser.add_argument("--output", required=True, help="status table to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    from isoslide import scanner_pairs

    checks, tiles = (status.read(path).set_index("scan", drop=False) for path in (args.checks, args.tiles))
    maps = {Path(path).parts[-2]: status.read(path).set_index("scan", drop=False) for path in args.maps}
    cli.check_named(args.scans, checks.index)
    pairs = scanner_pairs.pairs(args.scans, checks["specimen"])
    if not pairs:
        logging.warning("config heatmaps names no two scans of one specimen: there is nothing to compare")
    rows = [compare(pair, checks, tiles, maps, Path(args.results)) for pair in pairs]
    status.write(args.output, rows)
    logging.info("%d pairs: %s", len(rows), status.summary(status.read(args.output)))


def compare(
    pair: tuple[str, str], checks: pd.DataFrame, tiles: pd.DataFrame, maps: dict[str, pd.DataFrame], folder: Path
) -> dict:
    from isoslide import grid, heatmaps, scanner_pairs
    from isoslide.slide import open_checked

    row = checks.loc[pair[0]].to_dict()
    more = {"other": pair[1], "other_scanner": checks.loc[pair[1], "scanner"]}
    for scan in pair:
        for arm, table in maps.items():
            if table.loc[scan, "status"] != status.OK:
                reason = f"{scan}, arm {arm}: {table.loc[scan, 'reason']}"
                return status.failed(row, table.loc[scan, "status"], reason) | more
    both = tuple(grid.read_tiles_file(tiles.loc[scan, "path"]) for scan in pair)
    if both[0].attrs["reference"] != both[1].attrs["reference"] or not len(scanner_pairs.common_corners(both)):
        return status.failed(row, "not_paired", f"{pair[0]} and {pair[1]} have no tiles in common") | more
    arms, meaning = seen(pair, maps)
    names = (row["scanner"], more["other_scanner"])
    title = f"{row['specimen']}: {meaning} of each tile alone, {pair[0]} and {pair[1]}"
    try:
        with open_checked(checks.loc[pair[0]]) as first, open_checked(checks.loc[pair[1]]) as second:
            figure = scanner_pairs.draw((first, second), both, arms, names, meaning, title)
    except SlideError as error:
        return status.failed(row, error.status, error.reason) | more
    path = folder / pair[0] / f"{pair[1]}.png"
    heatmaps.write(path, figure)
    known = {"scan": pair[0], "status": status.OK, "n_tiles": len(arms[0].first), "path": path}
    known |= {"specimen": row["specimen"], "scanner": row["scanner"]} | more
    for place, own in zip(("control", "robust"), arms, strict=False):
        known |= {f"{place}_arm": own.arm, f"{place}_difference": own.difference, f"{place}_spread": own.spread}
        known |= {f"{place}_first": own.bags[0], f"{place}_second": own.bags[1]}
    return known


def seen(pair: tuple[str, str], maps: dict[str, pd.DataFrame]) -> tuple[list, str]:
    """Return what each arm makes of a pair, and what the scores are.

    Of several classes it is the one that the first arm gives the first scan.
    """
    from isoslide import scanner_pairs, tile_objects

    meaning = next(iter(maps.values())).loc[pair[0], "meaning"]
    number = meaning.rpartition("probability of class ")[2]
    column, bag = (f"p_{number}", f"p_{number}") if meaning != number else ("score", "p")
    found = []
    for arm, table in maps.items():
        folder = Path(table.loc[pair[0], "path"]).parent / "tiles"
        tables = tuple(tile_objects.read_table(folder / f"{scan}.tsv") for scan in pair)
        bags = tuple(float(table.loc[scan, bag]) for scan in pair)
        found.append(scanner_pairs.seen(arm, tables, column, bags))
    return found, meaning


if __name__ == "__main__":
    main()
