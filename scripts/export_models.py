"""Put the models of an arm into a folder that scores new slides elsewhere: models, card, training range, ONNX graph.

    python scripts/export_models.py --task response --arm robust --encoder '{"id": "efficientnet_lite0", ...}' \
        --models results/models/response/efficientnet_lite0/robust/models.tsv \
        --splits results/splits/response.tsv --summaries results/exports/summaries/efficientnet_lite0.safetensors \
        --slides results/status/checks.tsv results/status/tissue.tsv \
        --metrics results/evaluations/response/efficientnet_lite0/metrics.tsv \
        --thresholds results/evaluations/response/efficientnet_lite0/thresholds.tsv \
        --settings '{"reading": {...}, "tissue": {...}, "tiles": {...}}' \
        --output results/exports/response/efficientnet_lite0/robust/card.json

The folder is that of the card, which is written last. Models that never came to a checkpoint are left out.
"""

import argparse
import logging
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from isoslide import atomic, cli, keys, model_folder, status


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--task", required=True, help="name of the task")
    parser.add_argument("--arm", required=True, help="name of the arm")
    parser.add_argument("--encoder", required=True, type=cli.json_arg, help="what the registry says of the encoder")
    parser.add_argument("--models", required=True, help="table of train_models.py")
    parser.add_argument("--splits", required=True, help="table of make_splits.py")
    parser.add_argument("--summaries", required=True, help="features in short, of summarise_features.py")
    parser.add_argument("--slides", nargs="*", default=[], help="status tables of the checks and the tissue")
    parser.add_argument("--metrics", required=True, help="metrics of evaluate_predictions.py")
    parser.add_argument("--thresholds", required=True, help="thresholds of evaluate_predictions.py")
    parser.add_argument("--settings", required=True, type=cli.json_arg, help="blocks reading, tissue, tiles")
    parser.add_argument("--output", required=True, type=Path, help="card to write, in the folder of the models")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    from isoslide import exporting, models, ranges, summaries

    found = status.read(args.models)
    found = found[found["path"] != ""]
    if found.empty:
        cli.fail(f"{args.models}: no model came to a checkpoint, so there is nothing to export: see its column reason")
    cards = {row.path: models.card(Path(row.path)) for row in found.itertuples()}
    splits, short = status.read(args.splits), summaries.read(args.summaries)
    arm = next(iter(cards.values()))["settings"]["arm"]
    rows = exporting.training_rows(splits, arm, short.scans)
    for path in args.slides:
        table = status.read(path)
        rows = rows.merge(table[[name for name in ("scan", *ranges.SLIDE_COLUMNS) if name in table]], on="scan")
    folder = args.output.parent
    members = [copy(Path(path), card, folder) for path, card in cards.items()]
    ranges.write(folder / model_folder.RANGE, ranges.build(rows, short.of(rows["scan"])))
    card = describe(args, cards, members, splits, rows, short.origin)
    card["onnx"] = graph(folder, list(cards))
    known = {args.output.name, model_folder.RANGE, card["onnx"]["file"], *(one["file"] for one in members)}
    for path in folder.iterdir():  # of seeds or folds that are no more
        if path.name not in known and path.suffix in (".safetensors", ".onnx"):
            path.unlink()
    atomic.write_json(args.output, card)
    logging.info("%d models of %d training scans in %s", len(members), len(rows), folder)


def copy(path: Path, card: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Copy a model into the folder, and return what the folder's card says of it."""
    with atomic.output(folder / path.name) as temporary:
        shutil.copyfile(path, temporary)
    kept = ("fold", "seed", "status", "reason", "step", "shape", "fitted", "combat", "key")
    return {"file": path.name, "sha256": keys.file_hash(path)} | {name: card[name] for name in kept}


def describe(
    args: argparse.Namespace,
    cards: dict[str, dict[str, Any]],
    members: list[dict[str, Any]],
    splits: pd.DataFrame,
    rows: pd.DataFrame,
    origin: dict[str, Any],
) -> dict[str, Any]:
    """Return the card of the folder, but for the ONNX graph."""
    from isoslide import exporting

    settings = next(iter(cards.values()))["settings"]
    task = settings["task"]
    stain = settings["arm"].get("stain") or ""
    made = {
        "weights_sha256": origin.get("weights_sha256", ""),
        "precision": origin.get("precision", ""),
        "stain": stain,
    }
    sizes = {name: origin[name] for name in ("tile_px", "mpp", "tile_um") if name in origin}
    cuts = exporting.thresholds(status.read(args.thresholds), args.arm, members)
    return {
        "format": model_folder.FORMAT,
        "task": {"name": args.task, "settings": task, "classes": exporting.class_names(splits, task)},
        "score": exporting.score_meaning(task),
        "threshold": exporting.threshold(cuts, task),
        "arm": {"name": args.arm, "settings": settings["arm"], "training": settings["training"]},
        "encoder": args.encoder | {"dim": members[0]["shape"]["inputs"]} | sizes | made,
        "preprocessing": args.settings,
        "cohort": exporting.cohort(rows, task),
        "range": {
            "file": model_folder.RANGE,
            "sha256": keys.file_hash(args.output.parent / model_folder.RANGE),
        },
        "metrics": exporting.metrics(status.read(args.metrics), args.arm),
        "models": [one | {"threshold": cut} for one, cut in zip(members, cuts, strict=True)],
        "intended_use": exporting.INTENDED_USE,
        "limits": exporting.limits(args.encoder.get("pathology", True)),
        "versions": exporting.versions(),
    }


def graph(folder: Path, paths: list[str]) -> dict[str, Any]:
    """Write the ONNX graph where there can be one, and return what the card says of it."""
    from isoslide import onnx_models, scoring

    members = scoring.trained(paths)
    if reason := onnx_models.lacks(members):
        return {"file": "", "reason": reason}
    onnx_models.write(folder / model_folder.ONNX, members)
    return {"file": model_folder.ONNX, "sha256": keys.file_hash(folder / model_folder.ONNX), "reason": ""}


if __name__ == "__main__":
    main()
