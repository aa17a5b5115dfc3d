"""How long many experiments take to evaluate, and how large their page is: generated predictions, no slides, no models.

Example:
    python scripts/benchmark_evaluation.py --folder /tmp/benchmark --encoders 8 --tasks 3 --arms 9 --folds 5 --seeds 5

Prints seconds and megabytes. Every specimen of 60 patients was scanned on four scanners; scores are noise around the
outcome.
"""

import argparse
import json
import logging
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

import evaluate_predictions
import write_report
from isoslide import atomic, cli
from isoslide.run import FEATURE_TITLES

SCANNERS = ("A", "B", "C", "D")
CONTROL = "paired"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where everything is written")
    parser.add_argument("--encoders", type=int, default=8, help="number of encoders")
    parser.add_argument("--tasks", type=int, default=3, help="number of tasks; the last is survival")
    parser.add_argument("--arms", type=int, default=9, help="number of arms, the control included")
    parser.add_argument("--folds", type=int, default=5, help="folds")
    parser.add_argument("--seeds", type=int, default=5, help="seeds")
    parser.add_argument("--patients", type=int, default=60, help="patients")
    parser.add_argument("--resamples", type=int, default=2000, help="bootstrap resamples")
    parser.add_argument("--processes", type=int, default=2, help="evaluations at the same time")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    config = make_config(args)
    cases = write_inputs(args, config)
    start, before = time.perf_counter(), sum(os.times()[:4])
    commands = [evaluation_arguments(args.folder, config, task, encoder) for task, encoder in cases]
    if args.processes > 1:
        with ProcessPoolExecutor(args.processes) as pool:
            list(pool.map(evaluate_predictions.main, commands))
    else:
        for command in commands:
            evaluate_predictions.main(command)
    evaluated, times = time.perf_counter(), os.times()
    used = times.user + times.system + times.children_user + times.children_system - before
    write_report.main(report_arguments(args.folder, config))
    done = time.perf_counter()
    size = (args.folder / "index.html").stat().st_size / 1e6
    models = len(cases) * args.arms * args.folds * args.seeds
    logging.info(
        "%d models in %d cases: evaluation %.0f s (%.0f s of processor), page %.0f s, %.1f MB",
        *(models, len(cases), evaluated - start, used, done - evaluated, size),
    )


def make_config(args: argparse.Namespace) -> dict[str, object]:
    """Return a configuration with as many tasks and arms as asked for."""
    survival = {"type": "survival", "time": "months", "event": "event", "poor_before": 24, "good_after": 24}
    names = [f"response{i}" for i in range(1, args.tasks)]
    tasks = {name: {"type": "binary", "label": name, "positive": "positive"} for name in names}
    robust = {
        f"robust{i}": {"sampler": "paired", "embedding_weight": i, "score_weight": i} for i in range(1, args.arms)
    }
    return {
        "encoders": [f"encoder{i}" for i in range(args.encoders)],
        "tasks": tasks | {"survival": survival},
        "arms": {CONTROL: {"sampler": "paired"}} | robust,
        "control": CONTROL,
        "training": {"seeds": args.seeds, "steps": 2000},
        "splits": {"folds": args.folds, "tune": 0.2, "seed": 1},
        "registration": {"limit_um": 5},
        "evaluation": {"resamples": args.resamples, "seed": 1, "level": 0.95},
    }


def make_cohort(patients: int) -> pd.DataFrame:
    """Return a scan of every patient on every scanner: ids, outcome, and the fold that tests it."""
    rng = np.random.default_rng(0)
    number = np.arange(patients)
    names = np.array([f"P{i:04d}" for i in number])
    table = pd.DataFrame({"patient": names, "specimen": names, "number": number})
    table["positive"] = number % 2
    table["months"] = (rng.exponential(30, patients) * (1.5 - table["positive"])).round(1) + 0.5
    table["event"] = rng.integers(0, 4, patients).clip(0, 1)
    table = table.merge(pd.DataFrame({"scanner": SCANNERS}), how="cross")
    return table.assign(scan=table["specimen"] + "_" + table["scanner"])


def write_inputs(args: argparse.Namespace, config: dict[str, object]) -> list[tuple[str, str]]:
    """Write sheet, splits, predictions and curves, and return the (task, encoder) cases."""
    cohort = make_cohort(args.patients)
    columns = ["scan", "scanner", "specimen", "patient"]
    atomic.write_table(args.folder / "sheet.tsv", cohort[columns].assign(path=cohort["scan"] + ".tif"))
    rng, cases = np.random.default_rng(1), []
    for task, settings in config["tasks"].items():
        kind = settings["type"]
        atomic.write_table(args.folder / "splits" / f"{task}.tsv", make_splits(cohort, args.folds, kind))
        for encoder in config["encoders"]:
            cases.append((task, encoder))
            for place, arm in enumerate(config["arms"]):
                effect = 0.9 - 0.08 * place
                predictions = make_predictions(cohort, args.folds, args.seeds, effect, kind, rng)
                atomic.write_table(args.folder / "predictions" / task / encoder / f"{arm}.tsv", predictions)
                curves = make_curves(args.folds, args.seeds, rng)
                atomic.write_table(args.folder / "models" / task / encoder / arm / "curves.tsv", curves)
                measures, tiles = make_embeddings(cohort, args.folds, rng)
                atomic.write_table(args.folder / "embeddings" / task / encoder / f"{arm}.tsv", measures)
                atomic.write_table(args.folder / "maps" / task / encoder / f"{arm}.tsv", tiles)
    return cases


def make_splits(cohort: pd.DataFrame, folds: int, kind: str) -> pd.DataFrame:
    """Return a split table in which D is never trained on."""
    tables = []
    for fold in range(folds):
        tested = cohort["number"] // 2 % folds == fold
        tuned = cohort["number"] // 2 % folds == (fold + 1) % folds
        role = np.select([tested, cohort["scanner"] == "D", tuned], ["test", "unused", "tune"], "train")
        tables.append(cohort[["scan", "specimen", "patient", "scanner"]].assign(fold=fold, role=role))
        tables[-1]["label"] = cohort["positive"] if kind == "binary" else ""
        tables[-1]["time"], tables[-1]["event"] = ("", "") if kind == "binary" else (cohort["months"], cohort["event"])
        tables[-1]["class"] = np.where(
            cohort["positive"] == 1, *(("positive", "negative") if kind == "binary" else ("poor", "good"))
        )
    return pd.concat(tables)


def make_predictions(
    cohort: pd.DataFrame, folds: int, seeds: int, effect: float, kind: str, rng: np.random.Generator
) -> pd.DataFrame:
    """Return scores = outcome + noise of the patient + scanner effect, other for every model; the next fold tunes."""
    shift = cohort["scanner"].map(dict(zip(SCANNERS, (-0.8, 0.1, 0.9, 0.4), strict=True))).to_numpy()
    tables = []
    for seed in range(seeds):
        noise = rng.normal(0, 0.7, cohort["number"].max() + 1)[cohort["number"]]
        logit = 1.5 * (cohort["positive"] - 0.5) + noise + effect * shift + rng.normal(0, 0.3, len(cohort))
        table = cohort[["scan", "specimen", "patient", "scanner"]].assign(seed=seed, n_tiles=100, status="ok")
        table = table.assign(role="test", fold=cohort["number"] // 2 % folds, logit=logit, p=1 / (1 + np.exp(-logit)))
        outcome = {"label": cohort["positive"], "time": "", "event": ""}
        if kind == "survival":
            outcome = {"label": "", "time": cohort["months"], "event": cohort["event"]}
        table = table.assign(**outcome)
        tuned = table[cohort["scanner"] != "D"]
        tables += [table, tuned.assign(role="tune", fold=(tuned["fold"] - 1) % folds)]
    return pd.concat(tables)


def make_curves(folds: int, seeds: int, rng: np.random.Generator, points: int = 40) -> pd.DataFrame:
    """Return training curves of every model."""
    index = pd.MultiIndex.from_product([range(folds), range(seeds), range(50, 50 * points + 1, 50)])
    table = index.to_frame(index=False, name=["fold", "seed", "step"])
    for column in ("task", "embedding", "score", "tune_metric", "tune_inconsistency"):
        table[column] = np.exp(-table["step"] / 500) + rng.normal(0, 0.03, len(table))
    return table


def make_embeddings(cohort: pd.DataFrame, folds: int, rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return measures of tile embeddings, and a map of the first fold's test tiles, eight of each scan."""
    columns = [f"{stage}{limit}" for stage in ("before", "after", "change") for limit in ("", "_low", "_high")]
    measures = pd.DataFrame(rng.uniform(size=(len(FEATURE_TITLES), len(columns))), columns=columns)
    measures.insert(0, "metric", list(FEATURE_TITLES))
    tested = cohort[cohort["number"] // 2 % folds == 0]
    tiles = pd.concat([tested] * 16)[["scan", "scanner", "positive"]].rename(columns={"positive": "class"})
    stages = np.repeat(["before", "after"], 8 * len(tested))
    tiles = tiles.assign(stage=stages, fold=0, x=rng.normal(size=len(tiles)), y=rng.normal(size=len(tiles)))
    return measures.assign(folds=folds, n=2000, reason=""), tiles


def evaluation_arguments(folder: Path, config: dict[str, object], task: str, encoder: str) -> list[str]:
    """Return the command line of one evaluation."""
    predictions = folder / "predictions" / task / encoder
    settings = {"task": config["tasks"][task], "evaluation": config["evaluation"]}
    output = folder / "evaluations" / task / encoder
    return [
        *("--predictions", *(str(predictions / f"{arm}.tsv") for arm in config["arms"])),
        *("--splits", str(folder / "splits" / f"{task}.tsv"), "--control", CONTROL),
        *("--settings", json.dumps(settings)),
        *("--metrics", str(output / "metrics.tsv"), "--comparisons", str(output / "comparisons.tsv")),
        *("--by-model", str(output / "by_model.tsv"), "--thresholds", str(output / "thresholds.tsv")),
    ]


def report_arguments(folder: Path, config: dict[str, object]) -> list[str]:
    """Return the command line of the page."""

    def found(pattern: str) -> list[str]:
        return [str(path) for path in sorted(folder.glob(pattern))]

    return [
        *("--config", json.dumps(config), "--sheet", str(folder / "sheet.tsv")),
        *("--splits", *found("splits/*.tsv")),
        *("--metrics", *found("evaluations/*/*/metrics.tsv")),
        *("--comparisons", *found("evaluations/*/*/comparisons.tsv")),
        *("--predictions", *found("predictions/*/*/*.tsv")),
        *("--curves", *found("models/*/*/*/curves.tsv")),
        *("--thresholds", *found("evaluations/*/*/thresholds.tsv")),
        *("--embeddings", *found("embeddings/*/*/*.tsv"), "--embedding-maps", *found("maps/*/*/*.tsv")),
        *("--output", str(folder / "index.html"), "--figures", str(folder / "figures")),
    ]


if __name__ == "__main__":
    main()
