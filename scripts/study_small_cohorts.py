"""Study which settings let small cohorts gain from the robustness losses, on simulated features.

    python scripts/study_small_cohorts.py --specimens 20 60 200 500 --steps 200 400 1000 --weights 0 1 10 \
        --seeds 3 --output study.tsv

Features with a known signal and a known scanner shift: tiles vary along few directions (eigenvalue j of their
covariance is j to the power of minus --spectrum; 0: white noise) and a little by specimen; they are of two kinds, whose
shares follow the specimen's label; each scanner scales and shifts every feature in its own way and adds noise.
Three-fold cross-validation, one model per fold and seed; a row per model: AUC and inconsistency of its test scans (of a
simulated cohort also 60 specimens more, which no model trains on, so that small cohorts are not judged by a handful),
and whether it counts as trained. The table is written anew after each choice of settings. With --splits and --features
the same on a cohort of one's own. docs/small_cohorts.md holds the results, and the defaults that follow from them.
"""

import argparse
import itertools
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from isoslide import atomic, cli

if TYPE_CHECKING:
    from isoslide.bags import Bags

DIM, TILES, SCANNERS = 128, 24, "ABC"
KINDS_APART = 1.2  # distance of the two kinds of tiles, in SDs of a tile
SHIFT, SCALE, NOISE = 0.6, 0.2, 0.3  # SDs over features of a scanner's shift and log scale; of a scan's noise
SPECIMEN = 0.3  # SD of what the tiles of a specimen have in common
SPECTRUM = 0.8  # of EfficientNet-Lite0 on the demo's tiles, from the 5th eigenvalue to the 200th
FOLDS, TESTED = 3, 60  # folds; specimens that are only tested


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--specimens", type=int, nargs="+", default=[20, 60, 200, 500], help="sizes of cohorts")
    parser.add_argument("--spectrum", type=float, default=SPECTRUM, help="fall of the eigenvalues of the tiles")
    parser.add_argument("--splits", help="table of make_splits.py, of a task of two classes, instead of simulation")
    parser.add_argument("--features", help="status table of its features")
    parser.add_argument("--steps", type=int, nargs="+", default=[200, 400, 1000], help="lengths of training")
    parser.add_argument("--weights", type=float, nargs="+", default=[0, 1, 10], help="weights of both losses")
    parser.add_argument("--masks", nargs="+", default=["paired"], choices=("paired", "independent"))
    parser.add_argument("--warmup", type=float, nargs="+", default=[0], help="share of the steps")
    parser.add_argument("--batch", type=int, nargs="+", default=[8], help="specimens per step")
    parser.add_argument("--selection", nargs="+", default=["normalised"], help="rules for the checkpoint")
    parser.add_argument("--width", type=int, default=128, help="of the tile network; the attention network has half")
    parser.add_argument("--seeds", type=int, default=3, help="models per fold")
    parser.add_argument("--cohorts", type=int, default=1, help="cohorts of each size")
    parser.add_argument("--threads", type=int, default=1, help="threads of the matrix products")
    parser.add_argument("--output", required=True, help="table to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    import torch

    torch.set_num_threads(args.threads)
    rows = []
    for n, cohort, table, bags in cohorts(args):
        choices = (args.steps, args.weights, args.masks, args.warmup, args.batch, args.selection)
        for choice in itertools.product(*choices):
            names = ("steps", "weight", "mask", "warmup", "batch", "selection")
            settings = dict(zip(names, choice, strict=True))
            if settings["weight"] == 0 and (settings["mask"], settings["warmup"]) != (args.masks[0], args.warmup[0]):
                continue  # neither changes anything without the losses
            found = run(table, bags, settings, args.seeds, args.width)
            rows += [{"specimens": n, "cohort": cohort} | settings | row for row in found]
            means = pd.DataFrame(found).mean(numeric_only=True)
            logging.info(
                "%d specimens, %s: AUC %.3f, inconsistency %.3f", n, settings, means["auc"], means["inconsistency"]
            )
            atomic.write_table(args.output, pd.DataFrame(rows))


def cohorts(args: argparse.Namespace) -> Iterator[tuple[int, int, pd.DataFrame, "Bags"]]:
    """Yield number of specimens, number of the cohort, folds and features."""
    if args.splits:
        from isoslide import bags

        table = pd.read_csv(args.splits, sep="\t", dtype=str, keep_default_na=False)
        features = bags.load(args.features)
        table = table[table["scan"].isin(features.index)]
        yield table["specimen"].nunique(), 0, table, features
        return
    for cohort, n in itertools.product(range(args.cohorts), args.specimens):
        yield n, cohort, *simulate(n, cohort, args.spectrum)


def simulate(n: int, seed: int, spectrum: float = SPECTRUM) -> tuple[pd.DataFrame, "Bags"]:
    """Return folds and features of n specimens and those only tested, each on three scanners."""
    from isoslide import splits
    from isoslide.bags import Bags

    rng = np.random.default_rng([n, seed])
    labels = np.arange(n + TESTED) % 2
    share = 1 / (1 + np.exp(-(rng.normal(0, 1, len(labels)) + 1.8 * (labels - 0.5))))  # of the second kind of tile
    variances = np.arange(1, DIM + 1) ** -spectrum
    axes = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0] * np.sqrt(variances / variances.mean())  # columns
    kind = axes @ rng.normal(size=DIM)
    kind *= KINDS_APART / np.linalg.norm(kind) * np.sqrt(DIM) / 4
    scale = np.exp(rng.normal(0, SCALE, (len(SCANNERS), DIM)))
    shift = rng.normal(0, SHIFT, (len(SCANNERS), DIM))
    scans, features = [], []
    for i, split in enumerate([""] * n + ["test"] * TESTED):
        common = SPECIMEN * rng.normal(size=DIM)
        content = (rng.normal(size=(TILES, DIM)) + common) @ axes.T + np.outer(rng.random(TILES) < share[i], kind)
        for s, scanner in enumerate(SCANNERS):
            name = f"S{i:03d}"
            one = {"scan": name + scanner, "specimen": name, "patient": name, "scanner": scanner, "split": split}
            scans.append(one | {"exclude": "", "label": "ab"[labels[i]]})
            features.append(content * scale[s] + shift[s] + rng.normal(0, NOISE, content.shape))
    table = pd.DataFrame(scans)
    task = {"type": "binary", "label": "label", "positive": "b"}
    folds = splits.make(table, "study", task, {"folds": FOLDS, "tune": 0.2, "seed": seed})
    bags = Bags(
        scans=list(table["scan"]),
        features=np.concatenate(features).astype(np.float32),
        offsets=np.arange(len(table) + 1) * TILES,
        tile_ids=np.tile(np.arange(TILES), len(table)),
        references=list(table["specimen"]),
        keys=[""] * len(table),
    )
    return folds, bags


def run(table: pd.DataFrame, bags: "Bags", settings: dict, seeds: int, width: int = 128) -> list[dict]:
    """Train and test the models of one choice of settings; return a row for each."""
    from isoslide import layers, sampling, training

    arm = {
        **{"sampler": "paired", "embedding_weight": settings["weight"], "score_weight": settings["weight"]},
        **{"embedding_loss": "info_nce", "score_loss": "mse", "negatives": "other_specimens", "n_negatives": 5},
        **{"n_anchors": 128, "temperature": 0.1, "warmup_steps": round(settings["warmup"] * settings["steps"])},
    }
    choices = {
        **{"optimiser": "sgd_onecycle", "precision": "float32", "patience": 0, "steps": settings["steps"]},
        **{"learning_rate": 0.01, "weight_decay": 0.02, "clip": 20, "head_dropout": settings["mask"]},
        **{"checkpoint_every": max(25, settings["steps"] // 10), "selection": settings["selection"]},
    }
    task = {"type": "binary"}
    folds = training.folds(table, bags, arm, task, 2)
    models = [training.Model(fold, seed) for fold in folds for seed in range(seeds)]
    shape = layers.Shape(bags.dim, 2, width=width, attention=width // 2)
    batch = sampling.batch_size([fold.specimens for fold in folds], "paired", settings["batch"])
    training.train(models, bags, shape, arm, choices, batch, 16)
    return [
        {"fold": m.fold.number, "seed": m.seed, "status": m.status, **tested(m, table, bags, shape)} for m in models
    ]


def tested(model, table: pd.DataFrame, bags: "Bags", shape) -> dict[str, float]:
    """Return AUC and inconsistency of the test scans of a model's fold, and the spread of their scores."""
    import torch

    from isoslide import aggregators, metrics

    rows = table[(table["fold"].astype(int) == model.fold.number) & (table["role"] == "test")]
    state = {name: tensor[None] for name, tensor in model.state.items()}
    scans = [bags.index[scan] for scan in rows["scan"]]
    logits = aggregators.predict_scans(state, shape, torch.from_numpy(bags.features), bags, scans)
    p = logits[0].double().softmax(-1)[:, 1].numpy()
    return {
        "auc": metrics.auc(rows["label"].astype(int).to_numpy(), p),
        "inconsistency": metrics.inconsistency(p, rows["specimen"].to_numpy()),
        "spread": p.std(),
    }


if __name__ == "__main__":
    main()
