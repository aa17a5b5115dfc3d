"""Generated results of a whole run, for the tests of the evaluation and the report: no slide, no model.

60 patients (some with two specimens) x 4 scanners, scanner D never trained on, 5 folds x 3 seeds, a binary and a
survival task (more kinds: `MORE`), four arms: `mixed` and `paired` (scanner effect 0.9), `robust` (0.35) and
`robust_reference`, which has collapsed for response: scores near 0.5, small scanner effect, no signal.

By hand, to look at a page: `python tests/fake_results.py FOLDER [TASK ...]`.
"""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from isoslide import outcomes

SCANNERS = ("A", "B", "C", "D")
SHIFT = {"A": -0.8, "B": 0.1, "C": 0.9, "D": 0.4}
FOLDS, SEEDS = 5, (1, 2, 3)
ENCODER = "efficientnet_lite0"
ARMS = {
    "mixed": {"signal": 1.2, "scanner": 0.9, "scale": 2.2},
    "paired": {"signal": 1.4, "scanner": 0.8, "scale": 2.2},
    "robust": {"signal": 1.4, "scanner": 0.35, "scale": 1.8},
    "robust_reference": {"signal": 0.1, "scanner": 0.2, "scale": 0.15},
}
CONFIG = {
    "sheet": "config/slides.tsv",
    "encoders": [ENCODER],
    "tile": {"px": 224, "um": 0.5},
    "tasks": {
        "response": {"type": "binary", "label": "response", "positive": "positive"},
        "survival": {"type": "survival", "time": "months", "event": "event", "poor_before": 24, "good_after": 24},
    },
    "arms": {
        "mixed": {"sampler": "mixed"},
        "paired": {"sampler": "paired"},
        "robust": {"sampler": "paired", "embedding_weight": 1, "score_weight": 1},
        "robust_reference": {"sampler": "paired", "embedding_weight": 10, "score_weight": 10},
    },
    "control": "paired",
    "training": {"seeds": 3, "steps": 500, "specimens": 8, "tiles": 16, "head_dropout": "paired"},
    "splits": {"folds": FOLDS, "tune": 0.2, "seed": 1},
    "registration": {"limit_um": 5, "um_per_px": 1.0},
    "evaluation": {"resamples": 200, "seed": 1, "level": 0.95, "sample_specimens": 200, "sample_tiles": 8},
}

MORE = {
    "grade": {"type": "multiclass", "label": "grade", "classes": ["low", "middle", "high"]},
    "percent": {"type": "regression", "label": "percent"},
    "risk": {"type": "survival", "loss": "cox", "time": "months", "event": "event"},
}
"""Tasks of the other kinds."""
TASKS = CONFIG["tasks"] | MORE


def make_sheet(patients: int = 60, seed: int = 0) -> pd.DataFrame:
    """Return a sample sheet in which positives train on A and B, negatives on B and C, mostly; D only in test."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(1, patients + 1):
        response = "positive" if number % 2 else "negative"
        months = round(float(rng.exponential(20 if response == "positive" else 45)) + 0.5, 1)
        event = int(rng.uniform() < 0.65)
        for block in range(1 + (number % 6 == 0)):
            specimen = f"P{number:02d}-{block + 1}"
            left_out = "C" if (response == "positive") == (rng.uniform() < 0.85) else "A"
            for scanner in SCANNERS:
                rows.append(
                    {
                        "scan": f"{specimen}_{scanner}",
                        "path": f"results/demo/slides/{specimen}_{scanner}.tif",
                        "scanner": scanner,
                        "specimen": specimen,
                        "patient": f"P{number:02d}",
                        "site": "",
                        "stain": "",
                        "mpp": "",
                        "split": "test" if scanner in ("D", left_out) else "",
                        "exclude": "pen over the tissue" if (number, scanner) == (7, "A") else "",
                        "response": response,
                        "months": str(months),
                        "event": str(event),
                        "grade": ("low", "middle", "high")[number % 3],
                        "percent": str(10 * (number % 7)),
                    }
                )
    return pd.DataFrame(rows)


def make_splits(sheet: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Return the split table: patients dealt to folds in turn, a fifth of the others tune."""
    sheet = sheet[sheet["exclude"] == ""]
    number = sheet["patient"].str[1:].astype(int)
    tables = []
    for fold in range(FOLDS):
        tested, tune = (number // 2) % FOLDS == fold, (number // 2) % FOLDS == (fold + 1) % FOLDS
        role = np.where(tested, "test", np.where(sheet["split"] == "test", "unused", np.where(tune, "tune", "train")))
        table = sheet[["scan", "specimen", "patient", "scanner"]].assign(fold=fold, role=role)
        if kind in ("multiclass", "regression", "cox"):
            settings = next(task for task in MORE.values() if outcomes.kind_of(task) == kind)
            names = ["label", "class", "time", "event"]
            tables.append(table.join(outcomes.outcomes(sheet, "task", settings)[names]))
            continue
        positive = (sheet["response"] == "positive").astype(int)
        table["label"] = positive.astype(str) if kind == "binary" else ""
        months, event = sheet["months"].astype(float), sheet["event"] == "1"
        outcome = np.select([event & (months < 24), months > 24], ["poor", "good"], "")
        table["class"] = sheet["response"] if kind == "binary" else outcome
        table["time"], table["event"] = (sheet["months"], sheet["event"]) if kind == "survival" else ("", "")
        tables.append(table)
    columns = ["fold", "scan", "specimen", "patient", "scanner", "role", "label", "class", "time", "event"]
    return pd.concat(tables, ignore_index=True)[columns]


def make_predictions(splits: pd.DataFrame, arm: str, kind: str, seed: int = 0) -> pd.DataFrame:
    """Return predictions of an arm: patient signal + specimen noise + scanner effect, other for each model.

    The test scans come first; the tuning scans are drawn from a generator of their own.
    """
    setting = dict(ARMS[arm])
    if kind == "survival" and arm == "robust_reference":
        setting.update(signal=0.8, scale=1.0)
    specimens = sorted(splits.loc[splits["role"] == "test", "specimen"].unique())
    noise = dict(zip(specimens, np.random.default_rng(seed).normal(0, 0.8, len(specimens)), strict=True))
    tables = []
    for role, model_seed in itertools.product(("test", "tune"), SEEDS):
        if model_seed == SEEDS[0]:
            rng = np.random.default_rng([seed, len(arm), len(kind), *([1] if role == "tune" else [])])
        scans = splits[splits["role"] == role].sort_values(["fold", "scan"])
        for fold, rows in scans.groupby("fold"):
            outcome = outcome_of(rows, kind)
            table = rows.drop(columns=["class"]).assign(fold=fold, seed=model_seed)
            shift = rows["scanner"].map(SHIFT) * rng.uniform(0.6, 1.4)
            signal = setting["signal"] * 1.2 * (outcome - 0.5) + 0.6 * rows["specimen"].map(noise)
            logit = signal + setting["scanner"] * shift + rng.normal(0, 0.35 * setting["scanner"] + 0.1, len(rows))
            table["logit"] = setting["scale"] * (logit + rng.normal(0, 0.2))
            table["p"] = 1 / (1 + np.exp(-table["logit"]))
            if kind == "regression":
                table["p"] = 30 + 15 * table["logit"]
            if kind == "multiclass":
                each = np.exp([2 * table["logit"] * (c - 1) - abs(c - 1) * setting["scale"] / 2 for c in range(3)])
                table[["p_0", "p_1", "p_2"]] = (each / each.sum(0)).T
                table["p"] = table[["p_0", "p_1", "p_2"]].max(axis=1)
            table["n_tiles"] = 24
            bad = arm == "robust_reference" and kind == "binary" and (fold + model_seed) % 4 != 0
            table["status"] = "collapsed" if bad else "ok"
            tables.append(table)
    columns = ["role", "fold", "seed", "scan", "specimen", "patient", "scanner", "label", "time", "event", "n_tiles"]
    of_classes = ["p_0", "p_1", "p_2"] if kind == "multiclass" else []
    return pd.concat(tables, ignore_index=True)[[*columns, "logit", "p", *of_classes, "status"]]


def outcome_of(rows: pd.DataFrame, kind: str) -> pd.Series:
    """Return how ill each scan's patient is, from 0 to 1."""
    if kind in ("survival", "cox"):
        return 1 - np.log1p(rows["time"].astype(float)) / 4
    return rows["label"].astype(float) / {"binary": 1, "multiclass": 2, "regression": 60}[kind]


def make_curves(arm: str, steps: int = 500) -> pd.DataFrame:
    """Return training curves of every model of an arm."""
    weight = CONFIG["arms"][arm].get("embedding_weight", 0)
    rng = np.random.default_rng(len(arm))
    rows = []
    for fold in range(FOLDS):
        for seed in SEEDS:
            for step in range(50, steps + 1, 50):
                x, noise = step / steps, rng.normal(0, 0.04)
                task = (0.69 * np.exp(-3 * x) + 0.02 if weight < 10 else 0.69) + rng.normal(0, 0.02)
                embedding = 1.79 * np.exp(-2 * x * (weight > 0)) + rng.normal(0, 0.03)
                score = 2.0 * np.exp(-3 * x * (weight > 0)) * (1 + rng.normal(0, 0.1))
                row = {"fold": fold, "seed": seed, "step": step, "task": task, "embedding": embedding, "score": score}
                row |= {
                    "total": task + weight * (embedding + score),
                    "lr": 0.01 * x,
                    "tune_metric": 0.5 + 0.25 * x + noise,
                }
                rows.append(row | {"tune_inconsistency": 0.6 - 0.2 * x * (weight > 0) + noise})
    return pd.DataFrame(rows)


def make_models(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the table of models that made the predictions."""
    models = predictions.groupby(["fold", "seed"], as_index=False).agg(status=("status", "first"), spread=("p", "std"))
    bad = models["status"] != "ok"
    models["reason"] = np.where(bad, "scores of the tuning scans are all alike", "")
    models["step"], models["tune_metric"], models["tune_inconsistency"] = 450, 0.74, 0.41
    models["train_loss"] = np.where(bad, 0.69, 0.12)
    models["path"] = [f"fold{f}_seed{s}.safetensors" for f, s in zip(models["fold"], models["seed"], strict=True)]
    models["key"] = "0123456789abcdef"
    return models


def make_status(sheet: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the status tables of every stage, with a few scans lost on the way."""
    rng = np.random.default_rng(2)
    kept = sheet[sheet["exclude"] == ""]
    base = kept[["scan", "specimen", "scanner"]].reset_index(drop=True)
    base = base.assign(status="ok", reason="", n_tiles=24, path="", key="k")
    lost = {
        "checks": ("P03-1_B", "unreadable", "the file ends in the middle of a tile"),
        "tissue": ("P11-1_C", "no_tissue", "no tissue above 10000 µm²"),
        "features": ("P20-1_D", "non_finite", "features are not finite"),
    }
    tables, gone = {}, {}
    for stage in ("checks", "tissue", "registrations", "tiles", "features"):
        if stage in lost:
            gone[lost[stage][0]] = lost[stage][1:]
        table = base.copy()
        for scan, (status, reason) in gone.items():
            table.loc[table["scan"] == scan, ["status", "reason"]] = status, reason
        tables[stage] = table
    reference = tables["registrations"]["specimen"] + "_B"
    tables["registrations"]["reference"] = reference
    error = np.where(tables["registrations"]["scan"] == reference, 0, rng.gamma(4, 0.35, len(base)))
    tables["registrations"]["error_um"] = np.round(error, 2)
    high = tables["registrations"]["scan"].isin(["P05-1_C", "P31-1_D"])
    tables["registrations"].loc[high, ["status", "reason"]] = "not_registered", "error 7.9 µm above the limit of 5 µm"
    tables["registrations"].loc[high, "error_um"] = 7.9
    for stage in ("tiles", "features"):
        table = tables[stage]
        table.loc[table["status"] != "ok", "n_tiles"] = 0
    return tables


def make_pictures(folder: Path, names: list[str], size: tuple[int, int], rng: np.random.Generator) -> None:
    """Write a small picture of a blob of tissue per name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        image = Image.new("RGB", size, (244, 242, 245))
        draw = ImageDraw.Draw(image)
        angle = np.linspace(0, 2 * np.pi, 40)
        radius = min(size) * (0.3 + 0.08 * np.sin(3 * angle + rng.uniform(0, 6)))
        points = np.c_[size[0] / 2 + 1.3 * radius * np.cos(angle), size[1] / 2 + radius * np.sin(angle)]
        draw.polygon([tuple(point) for point in points], fill=(190, 120, 170), outline=(0, 114, 178), width=3)
        image.save(folder / f"{name}.jpg")


def write(
    root: Path, patients: int = 60, arms: tuple[str, ...] = tuple(ARMS), tasks: tuple[str, ...] = tuple(CONFIG["tasks"])
) -> None:
    """Write sheet and results under `root`, all but the evaluations."""
    results = root / "results"
    sheet = make_sheet(patients)
    write_table(root / "config" / "slides.tsv", sheet)
    (root / "config.json").write_text(json.dumps(CONFIG | {"tasks": {name: TASKS[name] for name in tasks}}))
    for stage, table in make_status(sheet).items():
        name = {"tiles": "tiles/224px_0.5um", "features": f"features/{ENCODER}"}.get(stage, stage)
        write_table(results / "status" / f"{name}.tsv", table)
    rng = np.random.default_rng(0)
    make_pictures(results / "tissue", list(sheet["scan"])[:60], (300, 200), rng)
    make_pictures(results / "registrations", sorted(sheet["specimen"].unique())[:30], (600, 600), rng)
    for task in tasks:
        kind = TASKS[task]["type"] if task in CONFIG["tasks"] else outcomes.kind_of(TASKS[task])
        splits = make_splits(sheet, kind)
        write_table(results / "splits" / f"{task}.tsv", splits)
        for arm in arms:
            predictions = make_predictions(splits, arm, kind)
            write_table(results / "predictions" / task / ENCODER / f"{arm}.tsv", predictions)
            models = results / "models" / task / ENCODER / arm
            write_table(models / "models.tsv", make_models(predictions))
            write_table(models / "curves.tsv", make_curves(arm))


def make_features(encoder: str, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, object]]:
    """Return metrics, map and facts of an encoder as evaluate_features.py writes them."""
    rng = np.random.default_rng(seed)
    rows = []
    for metric, value in {"top1": 0.7, "top10": 0.9, "same_cosine": 0.8, "other_cosine": 0.4}.items():
        for scope in ("pair:A-B", "pair:A-C", "pooled"):
            rows.append((metric, scope, value + rng.normal(0, 0.02), value - 0.05, value + 0.05, 800, ""))
    rows.append(("scanner_probe", "pooled", 0.91, 0.88, 0.94, 1600, "a guess: 0.25"))
    for task in CONFIG["tasks"]:
        rows.append(("robustness_index", task, 0.53, np.nan, np.nan, 1600, "k = 51"))
        rows.append(("croma", task, np.nan, np.nan, np.nan, 1600, "too few neighbours"))
    metrics = pd.DataFrame(rows, columns=["metric", "scope", "value", "low", "high", "n", "reason"])
    scanner = np.resize(list(SCANNERS), 200)
    tiles = pd.DataFrame({"scan": [f"s{i}" for i in range(200)], "scanner": scanner, "x": rng.normal(size=200)})
    tiles["y"] = rng.normal(size=200) + (scanner == "A")
    for task, names in {"response": ("negative", "positive"), "survival": ("good", "poor")}.items():
        tiles[task] = np.where(rng.uniform(size=200) < 0.5, *names)
    facts = {"encoder": encoder, "weights_sha256": "0123abcd", "dim": 1280, "tile_px": 224, "mpp": 0.5, "version": "0"}
    return metrics.assign(encoder=encoder), tiles, facts


def make_embeddings(arm: str, splits: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return measures and maps of an arm's tile embeddings as embed_tiles.py writes them."""
    rng = np.random.default_rng(len(arm))
    gain = ARMS[arm]["scanner"]
    rows = []
    for metric, before, after in (("top1", 0.7, 1 - 0.3 * gain), ("scanner_probe", 0.9, 0.3 + 0.5 * gain)):
        limits = [(v, v - 0.03, v + 0.03) for v in (before, after, after - before)]
        rows.append([metric, *(value for triple in limits for value in triple), FOLDS, 400, ""])
    rows.append(["robustness_index", 0.53, 0.5, 0.56, *[np.nan] * 6, FOLDS, 400, "only one class"])
    columns = ["metric", "before", "before_low", "before_high", "after", "after_low", "after_high"]
    columns += ["change", "change_low", "change_high", "folds", "n", "reason"]
    scans = splits[(splits["role"] == "test") & (splits["fold"] == 0)]
    tiles = pd.concat([scans[["scan", "scanner", "class"]].assign(stage=stage) for stage in ("before", "after")])
    tiles = tiles.assign(x=rng.normal(size=len(tiles)), y=rng.normal(size=len(tiles)), fold=0)
    return pd.DataFrame(rows, columns=columns), tiles


def evaluate(root: Path, tasks: tuple[str, ...] = tuple(CONFIG["tasks"])) -> None:
    """Write the evaluations of the results under `root` with the script that the workflow uses."""
    import evaluate_metadata
    import evaluate_predictions

    results = root / "results"
    for task in tasks:
        folder = results / "evaluations" / task / ENCODER
        predictions = sorted((results / "predictions" / task / ENCODER).glob("*.tsv"))
        evaluate_predictions.main(
            [
                "--predictions",
                *map(str, predictions),
                "--models",
                *(str(results / "models" / task / ENCODER / path.stem / "models.tsv") for path in predictions),
                *("--splits", str(results / "splits" / f"{task}.tsv"), "--control", CONFIG["control"]),
                *("--settings", json.dumps({"task": TASKS[task], "evaluation": CONFIG["evaluation"]})),
                *("--metrics", str(folder / "metrics.tsv"), "--comparisons", str(folder / "comparisons.tsv")),
                *("--by-model", str(folder / "by_model.tsv"), "--thresholds", str(folder / "thresholds.tsv")),
            ]
        )
        splits = pd.read_csv(results / "splits" / f"{task}.tsv", sep="\t", dtype={"class": str})
        for path in predictions:
            measures, tiles = make_embeddings(path.stem, splits)
            embeddings = results / "evaluations" / "embeddings"
            write_table(embeddings / task / ENCODER / path.name, measures)
            write_table(embeddings / "maps" / task / ENCODER / path.name, tiles)
        evaluate_metadata.main(
            [
                *("--splits", str(results / "splits" / f"{task}.tsv"), "--sheet", str(root / "config" / "slides.tsv")),
                *("--status", str(results / "status" / "tissue.tsv")),
                *("--settings", json.dumps(CONFIG["evaluation"])),
                *("--output", str(results / "evaluations" / "metadata" / f"{task}.tsv")),
            ]
        )
    folder = results / "evaluations" / "features"
    for encoder in sorted({path.name for path in (results / "predictions").glob("*/*")}):
        metrics, tiles, facts = make_features(encoder)
        write_table(folder / f"{encoder}.tsv", metrics)
        write_table(folder / "maps" / f"{encoder}.tsv", tiles)
        (folder / "facts").mkdir(exist_ok=True)
        (folder / "facts" / f"{encoder}.json").write_text(json.dumps(facts))


def report_arguments(root: Path) -> list[str]:
    """Return the command line that writes the report of the results under `root` into `root`/out."""
    results = root / "results"

    def found(pattern: str) -> list[str]:
        return [str(path) for path in sorted(results.glob(pattern))]

    stages = ("checks", "tissue", "registrations", "tiles/224px_0.5um", f"features/{ENCODER}")
    return [
        *("--config", (root / "config.json").read_text(), "--sheet", str(root / "config" / "slides.tsv")),
        *("--status", *(f"{stage}={results / 'status' / stage}.tsv" for stage in stages)),
        *("--splits", *found("splits/*.tsv")),
        *("--metrics", *found("evaluations/*/*/metrics.tsv")),
        *("--comparisons", *found("evaluations/*/*/comparisons.tsv")),
        *("--predictions", *found("predictions/*/*/*.tsv")),
        *("--models", *found("models/*/*/*/models.tsv")),
        *("--curves", *found("models/*/*/*/curves.tsv")),
        *("--thresholds", *found("evaluations/*/*/thresholds.tsv")),
        *("--embeddings", *found(f"evaluations/embeddings/[!m]*/{ENCODER}/*.tsv")),
        *("--embedding-maps", *found("evaluations/embeddings/maps/*/*/*.tsv")),
        *("--features", *found("evaluations/features/*.tsv"), "--maps", *found("evaluations/features/maps/*.tsv")),
        *("--facts", *found("evaluations/features/facts/*.json")),
        *("--metadata", *found("evaluations/metadata/*.tsv")),
        *("--tissue", str(results / "tissue"), "--registrations", str(results / "registrations")),
        *("--notes", "Scanners and labels of this cohort are SIMULATED.", "The encoder is no pathology model."),
        *("--output", str(root / "out" / "index.html"), "--figures", str(root / "out" / "figures")),
    ]


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a TSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, sep="\t", index=False)


if __name__ == "__main__":
    write(Path(sys.argv[1]), tasks=tuple(sys.argv[2:]) or tuple(CONFIG["tasks"]))
