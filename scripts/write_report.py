"""Write the page that people read, and its figures one by one.

Example:
    python scripts/write_report.py --config "$(cat config.json)" --sheet config/slides.tsv \
        --status checks=results/status/checks.tsv tissue=results/status/tissue.tsv \
        --splits results/splits/response.tsv --metrics results/evaluations/response/lite0/metrics.tsv \
        --comparisons results/evaluations/response/lite0/comparisons.tsv \
        --predictions results/predictions/response/lite0/*.tsv --models results/models/response/lite0/*/models.tsv \
        --curves results/models/response/lite0/*/curves.tsv \
        --thresholds results/evaluations/response/lite0/thresholds.tsv \
        --embeddings results/evaluations/embeddings/response/lite0/*.tsv \
        --embedding-maps results/evaluations/embeddings/maps/response/lite0/*.tsv --tissue results/tissue \
        --registrations results/registrations --output results/report/index.html --figures results/report/figures

Task, encoder and arm are read from the paths ({task}/{encoder}/metrics.tsv, {task}/{encoder}/{arm}.tsv,
{task}/{encoder}/{arm}/models.tsv); status tables are named by the stage, in the order of the stages.
"""

import argparse
import json
import logging
from pathlib import Path

import pandas as pd

from isoslide import atomic, cli, evaluation, report, run, sheet, status


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--config", type=cli.json_arg, required=True, help="the whole configuration, with defaults")
    parser.add_argument("--sheet", type=Path, required=True, help="the sample sheet")
    parser.add_argument("--status", nargs="+", default=[], metavar="STAGE=TABLE", help="status table of each stage")
    parser.add_argument("--splits", type=Path, nargs="+", required=True, help="{task}.tsv")
    parser.add_argument("--metrics", type=Path, nargs="+", required=True, help="{task}/{encoder}/metrics.tsv")
    parser.add_argument("--comparisons", type=Path, nargs="+", required=True, help="{task}/{encoder}/comparisons.tsv")
    parser.add_argument("--predictions", type=Path, nargs="+", default=[], help="{task}/{encoder}/{arm}.tsv")
    parser.add_argument("--models", type=Path, nargs="+", default=[], help="{task}/{encoder}/{arm}/models.tsv")
    parser.add_argument("--curves", type=Path, nargs="+", default=[], help="{task}/{encoder}/{arm}/curves.tsv")
    parser.add_argument("--thresholds", type=Path, nargs="*", default=[], help="{task}/{encoder}/thresholds.tsv")
    parser.add_argument(
        "--embeddings", type=Path, nargs="*", default=[], help="{task}/{encoder}/{arm}.tsv, embed_tiles.py"
    )
    parser.add_argument(
        "--embedding-maps", type=Path, nargs="*", default=[], help="{task}/{encoder}/{arm}.tsv, its maps"
    )
    parser.add_argument("--features", type=Path, nargs="*", default=[], help="{encoder}.tsv of evaluate_features.py")
    parser.add_argument("--maps", type=Path, nargs="*", default=[], help="{encoder}.tsv, its map")
    parser.add_argument("--facts", type=Path, nargs="*", default=[], help="{encoder}.json, its facts")
    parser.add_argument("--metadata", type=Path, nargs="*", default=[], help="{task}.tsv of evaluate_metadata.py")
    parser.add_argument("--tissue", type=Path, help="folder of the tissue overlays, {scan}.jpg")
    parser.add_argument("--registrations", type=Path, help="folder of the checkerboards, {specimen}.jpg")
    parser.add_argument("--notes", nargs="*", default=[], help="lines of the banner at the top, and of the limits")
    parser.add_argument("--output", type=Path, required=True, help="the page to write")
    parser.add_argument("--figures", type=Path, required=True, help="folder to write the figures into (SVG, PDF, TSV)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    contents = read_run(args)
    with cli.timed("page"):
        page, drawings = report.render(contents)
    for drawing in drawings:
        atomic.write_text(args.figures / f"{drawing.name}.svg", standalone(drawing.svg))
        with atomic.output(args.figures / f"{drawing.name}.pdf") as temporary:
            temporary.write_bytes(drawing.pdf)
        atomic.write_table(args.figures / f"{drawing.name}.tsv", drawing.table)
    atomic.write_text(args.output, page)
    logging.info("%d figures, page of %.1f MB", len(drawings), len(page.encode()) / 1e6)


def read_run(args: argparse.Namespace) -> run.Run:
    """Read every table that the page is written from."""
    return run.Run(
        config=args.config,
        sheet=sheet.read(args.sheet),
        stages=read_stages(args.status),
        splits={path.stem: status.read(path) for path in args.splits},
        results=read_results(args),
        tissue=args.tissue,
        registrations=args.registrations,
        notes=args.notes,
        features=read_features(args),
        metadata={path.stem: read_table(path) for path in args.metadata},
    )


def read_features(args: argparse.Namespace) -> dict[str, run.Features]:
    """Read what is known of each encoder before training."""
    maps, facts = ({path.stem: path for path in paths} for paths in (args.maps, args.facts))
    return {
        path.stem: run.Features(
            metrics=read_table(path),
            map=read_map(maps[path.stem]),
            facts=json.loads(facts[path.stem].read_text()),
        )
        for path in args.features
    }


def read_stages(texts: list[str]) -> dict[str, pd.DataFrame]:
    """Read STAGE=TABLE; a stage with several tables (an encoder each) becomes `stage (table)`."""
    pairs = [(name, Path(path)) for name, _, path in (text.partition("=") for text in texts)]
    names = [name for name, _ in pairs]
    titles = [f"{name} ({path.stem})" if names.count(name) > 1 else name for name, path in pairs]
    return {title: status.read(path) for title, (_, path) in zip(titles, pairs, strict=True)}


def read_results(args: argparse.Namespace) -> list[run.Result]:
    """Read the tables of every task and encoder, in the order of the metrics tables."""
    comparisons = {path.parts[-3:-1]: read_table(path) for path in args.comparisons}
    results = {}
    for path in args.metrics:
        key = path.parts[-3:-1]
        results[key] = run.Result(*key, read_table(path), comparisons[key])
    for path in args.predictions:
        results[path.parts[-3:-1]].predictions[path.stem] = evaluation.read_predictions(path)
    for path in args.models:
        results[path.parts[-4:-2]].models[path.parts[-2]] = read_table(path, seed=int)
    for path in args.curves:
        results[path.parts[-4:-2]].curves[path.parts[-2]] = read_table(path, seed=int)
    for path in args.thresholds:
        results[path.parts[-3:-1]].thresholds = read_table(path, seed=int)
    for path in args.embeddings:
        results[path.parts[-3:-1]].embeddings[path.stem] = read_table(path)
    for path in args.embedding_maps:
        results[path.parts[-3:-1]].embedding_maps[path.stem] = read_map(path)
    return list(results.values())


def read_map(path: Path) -> pd.DataFrame:
    """Read a map of tiles: all but the coordinates is text, empty cells stay empty."""
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    return table.astype({"x": float, "y": float})


def read_table(path: Path, seed: type = str) -> pd.DataFrame:
    """Read a table whose numbers are floats (empty: NaN) and whose names and reasons are text (empty: "")."""
    text = ("arm", "control", "metric", "scope", "reason", "status")
    types = dict.fromkeys(text, str) | {"seed": seed}
    table = pd.read_csv(path, sep="\t", dtype=types, keep_default_na=False, na_values=[""])
    return table.fillna({name: "" for name in text if name in table})


def standalone(svg: str) -> str:
    """Return an inline SVG as a file of its own."""
    return f'<?xml version="1.0" encoding="utf-8"?>\n{svg}\n'


if __name__ == "__main__":
    main()
