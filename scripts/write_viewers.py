"""Write a page per scan on which the slide can be looked at, with what the models make of its tiles laid over it.

    python scripts/write_viewers.py --scans P01-1_A P01-1_C --checks results/status/checks.tsv \
        --tiles '{"efficientnet_lite0": "results/status/tiles/224px_0.5um.tsv"}' \
        --maps results/heatmaps/response/efficientnet_lite0/robust/status.tsv \
        --results results/viewer --output results/viewer/status.tsv

Writes {scan}.html, the slide as pictures that the page shows (slides/{scan}/), as fine as the models saw it, and
thumbnails/{scan}.jpg. The pages open from the disk, without a server and without a network. Pictures of a slide that
has not changed are kept.
"""

import argparse
import logging
import shutil
from pathlib import Path

import pandas as pd

from isoslide import cli, status
from isoslide.slide import SlideError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--scans", nargs="*", default=[], help="scans to write pages of")
    parser.add_argument("--checks", required=True, help="status table of the checks")
    parser.add_argument("--tiles", type=cli.json_arg, required=True, help="status table of the tiles by encoder, JSON")
    parser.add_argument("--maps", nargs="*", default=[], help="{task}/{encoder}/{arm}/status.tsv of draw_heatmaps.py")
    parser.add_argument("--results", required=True, help="folder of the pages")
    parser.add_argument("--output", required=True, help="status table to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    checks = status.read(args.checks).set_index("scan", drop=False)
    cli.check_named(args.scans, checks.index)
    tiles = {name: status.read(path).set_index("scan", drop=False) for name, path in args.tiles.items()}
    maps = {Path(path).parts[-4:-1]: status.read(path).set_index("scan", drop=False) for path in args.maps}
    rows = [write(scan, checks, tiles, maps, args) for scan in args.scans]
    status.write(args.output, rows)
    logging.info("%d pages: %s", len(rows), status.summary(status.read(args.output)))


def write(scan: str, checks: pd.DataFrame, tiles: dict, maps: dict, args: argparse.Namespace) -> dict:
    from isoslide import atomic, grid, keys, pyramid, viewer
    from isoslide.slide import open_checked

    row, results = checks.loc[scan].to_dict(), Path(args.results)
    if row["status"] != status.OK:
        return status.carried(row)
    models = [model_of(scan, names, table, args.tiles[names[1]]) for names, table in maps.items()]
    shown = [model for model in models if model.values is not None]
    if not shown:
        return status.failed(row, "no_heatmap", models[0].reason if models else "no heatmap was drawn")
    tables = {model.view: tiles[model.encoder] for model in shown}
    views = {view: grid.read_tiles_file(table.loc[scan, "path"]) for view, table in tables.items()}
    try:
        with open_checked(row) as opened:
            fine = max(min(opened.mpp), *(float(own.attrs["mpp"]) for own in views.values()))
            key = keys.content_key(check=row["key"], um_per_px=fine, code=code_of_pictures())
            folder = results / "slides" / scan / key
            if not folder.exists():
                with atomic.folder(folder) as temporary:
                    logging.info("%s: %d pictures", scan, pyramid.write(opened, temporary, fine))
            levels = pyramid.levels(opened.size_um, fine)
    except SlideError as error:
        return status.failed(row, error.status, error.reason)
    for other in set(folder.parent.iterdir()) - {folder}:  # of an earlier slide, or of a killed run
        shutil.rmtree(other)
    with atomic.output(results / "thumbnails" / f"{scan}.jpg") as temporary:
        temporary.write_bytes((folder / "0" / "0_0.jpg").read_bytes())
    page = viewer.render(row, f"slides/{scan}/{key}", levels, views, models)
    atomic.write_text(results / f"{scan}.html", page)
    known = {"specimen": row["specimen"], "scanner": row["scanner"], "models": len(shown)}
    return {"scan": scan, "status": status.OK, "path": results / f"{scan}.html", "key": key, **known}


def code_of_pictures() -> list:
    """Return what decides which pictures are written of a slide."""
    from isoslide import keys, pyramid, slide

    return [keys.code_hash(pyramid), slide.code()]


def model_of(scan: str, names: tuple[str, str, str], table: pd.DataFrame, view: str):
    """Return what an arm makes of a scan, from its row in the table of the heatmaps; `view` names its tiles."""
    from isoslide import tile_objects, viewer

    row = table.loc[scan]
    if row["status"] != status.OK:
        return viewer.Model(*names, reason=row["reason"])
    rows = tile_objects.read_table(Path(row["path"]).parent / "tiles" / f"{scan}.tsv")
    return viewer.Model(
        *names, view=Path(view).stem, values=tile_objects.values(rows, row), n_models=int(row["models"])
    )


if __name__ == "__main__":
    main()
