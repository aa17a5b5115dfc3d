"""Train the task models of one arm: every fold and seed, side by side.

    python scripts/train_models.py --splits results/splits/response.tsv \
        --features results/status/features/efficientnet_lite0.tsv --arm robust \
        --settings '{"task": {...}, "arm": {...}, "training": {...}}' --threads 1 \
        --results results/models/response/efficientnet_lite0/robust \
        --curves results/models/response/efficientnet_lite0/robust/curves.tsv \
        --output results/models/response/efficientnet_lite0/robust/models.tsv

Arms that share a sampler see the same batches: a model's numbers follow from its fold and seed. Models whose content
key stands (folds, features, settings and code unchanged) are kept, so adding seeds trains only the new ones. A job that
is killed and started again goes on where it was and ends with the same weights.
"""

import argparse
import logging
from functools import partial
from pathlib import Path

import pandas as pd

from isoslide import atomic, cli

WITHOUT_EFFECT = ("seeds", "device", "preset")  # settings of the training that a model's content key leaves out


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--splits", required=True, help="table of make_splits.py")
    parser.add_argument("--features", required=True, help="status table of the features of an encoder")
    parser.add_argument("--arm", required=True, help="name of the arm, for messages")
    parser.add_argument(
        "--settings", required=True, type=cli.json_arg, help="blocks task, arm and training of the config"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where to train")
    parser.add_argument("--memory-gb", type=float, default=4, help="features above this size stay in their files")
    parser.add_argument("--threads", type=int, default=1, help="threads of the matrix products")
    parser.add_argument("--results", required=True, help="folder of the models")
    parser.add_argument("--curves", required=True, help="table of the training curves to write")
    parser.add_argument("--output", required=True, help="table of the models to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    from isoslide import device

    try:
        args.device = device.claim(args.device)
    except device.DeviceError as error:
        cli.fail(str(error))
    import torch

    from isoslide import bags, sampling, steps

    torch.set_num_threads(args.threads)
    steps.keep_freed_memory()
    rows = pd.read_csv(args.splits, sep="\t", dtype=str, keep_default_na=False)
    try:
        used = rows.loc[rows["role"].isin(("train", "tune")), "scan"]
        cards = train(args, rows, bags.load(args.features, used, args.memory_gb))
    except (bags.BagError, sampling.SamplingError) as error:
        cli.fail(str(error))
    write_tables(args, cards)


def train(args: argparse.Namespace, rows: pd.DataFrame, features) -> list[dict]:
    """Train the models whose card does not stand, and return all cards."""
    from isoslide import layers, models, resuming, sampling, tasks, training

    arm, settings, task = (args.settings[name] for name in ("arm", "training", "task"))
    log_lost(rows, features)
    outputs = tasks.of(task).outputs(task, rows.loc[rows["label"] != "", "label"].nunique())
    folds = training.folds(rows, features, arm, task, outputs)
    fold_specimens = [fold.specimens for fold in folds]
    lacks = partial(tasks.of(task).lacks, outputs=outputs)
    sampling.check(fold_specimens, arm["sampler"], args.arm, arm.get("scanner"), lacks)
    if arm.get("combat") or arm.get("adversarial_weight"):
        sampling.check_scanners([fold.scanners for fold in folds], args.arm)
    sizes = {
        "n_specimens": sampling.batch_size(fold_specimens, arm["sampler"], settings["specimens"]),
        "n_tiles": min(settings["tiles"], max(features.size(i) for i in range(len(features.scans)))),
    }
    logging.info(
        "preset %s: %d steps, %d specimens and %d tiles per scan in a step",
        settings.get("preset", "none"),
        settings["steps"],
        *sizes.values(),
    )
    sizes_of_model = ("width", "layers", "attention", "dropout", "aggregator")
    shape = layers.Shape(features.dim, outputs, *(settings[name] for name in sizes_of_model))
    wanted = [training.Model(fold, seed) for fold in folds for seed in range(settings["seeds"])]
    keys = fold_keys(args, rows, features, sizes)
    paths = [Path(args.results, f"fold{model.fold.number}_seed{model.seed}.safetensors") for model in wanted]
    of_key = {model_key(keys, model): (model, path) for model, path in zip(wanted, paths, strict=True)}
    new = [key for key, (_, path) in of_key.items() if models.card(path).get("key") != key]
    kept = Path(args.results, resuming.NAME)
    begun = resuming.begun(kept)
    if new and set(new) <= set(begun) <= set(of_key):
        new = begun  # a killed job's models, those already written too: bits depend on which train together
    logging.info("%d of %d models stand, %d are trained", len(wanted) - len(new), len(wanted), len(new))
    if new:
        file = resuming.File(kept, new)
        file.begin()
        training.train(
            [of_key[key][0] for key in new], features, shape, arm, settings, **sizes, device=args.device, file=file
        )
        for model, path in (of_key[key] for key in new):
            models.save(path, model.state, card(args, model, shape, features, model_key(keys, model)))
    kept.unlink(missing_ok=True)
    return [models.card(path) for path in paths]


def log_lost(rows: pd.DataFrame, features) -> None:
    """Say how many scans the folds name and the features lack."""
    named = rows[rows["role"].isin(("train", "tune"))].drop_duplicates("scan")
    lost = named[~named["scan"].isin(features.index)]
    logging.info("%d scans to train or tune on, %d of them without features", len(named), len(lost))
    for scanner, n in lost["scanner"].value_counts().sort_index().items():
        logging.warning("scanner %s: %d scans without features are left out", scanner, n)


def fold_keys(args: argparse.Namespace, rows: pd.DataFrame, features, sizes: dict[str, int]) -> dict[int, str]:
    """Return per fold the content key of what its models are made from, but the seed."""
    from isoslide import (
        adversary,
        aggregators,
        combat,
        keys,
        losses,
        optimising,
        sampling,
        selection,
        steps,
        task_losses,
        task_metrics,
        tasks,
        training,
    )

    used = [*aggregators.modules(args.settings["training"]["aggregator"]), losses, optimising, sampling, selection]
    arm = args.settings["arm"]
    used += [adversary] * bool(arm.get("adversarial_weight")) + [combat] * bool(arm.get("combat"))
    code = keys.code_hash(*used, steps, task_losses, task_metrics, tasks, training)
    own = {scan: features.keys[i] for scan, i in features.index.items()}
    settings = {name: block for name, block in args.settings.items() if name != "training"}
    settings["training"] = {
        name: value for name, value in args.settings["training"].items() if name not in WITHOUT_EFFECT
    }
    return {
        int(fold): keys.content_key(
            splits=part.to_dict("records"),
            features=[own.get(scan, "") for scan in part["scan"]],
            settings=settings | sizes,
            code=code,
        )
        for fold, part in rows[rows["role"].isin(("train", "tune"))].groupby("fold")
    }


def model_key(fold_keys: dict[int, str], model) -> str:
    """Return the content key of a model."""
    from isoslide import keys

    return keys.content_key(fold=fold_keys[model.fold.number], seed=model.seed)


def card(args: argparse.Namespace, model, shape, features, key: str) -> dict:
    """Return what there is to say about a model."""
    score = model.score
    return {
        "fold": model.fold.number,
        "seed": model.seed,
        "status": model.status,
        "reason": model.reason,
        "step": model.step,
        "tune_metric": score.metric if score else None,
        "tune_inconsistency": score.inconsistency if score else None,
        "spread": score.spread if score else None,
        "train_loss": model.train_loss,
        "arm": args.arm,
        "settings": args.settings,
        "encoder": features.encoder,
        "shape": shape.as_dict(),
        "fitted": model.fold.fitted,
        "combat": list(model.fold.scanners) if model.fold.harmony else [],
        "curve": model.curve,
        "key": key,
    }


def write_tables(args: argparse.Namespace, cards: list[dict]) -> None:
    """Write models.tsv and curves.tsv, and log how many models came out well."""
    from isoslide import models, training

    table = pd.DataFrame(cards, columns=list(models.COLUMNS))
    curves = [{"fold": one["fold"], "seed": one["seed"]} | row for one in cards for row in one["curve"]]
    atomic.write_table(args.curves, pd.DataFrame(curves, columns=["fold", "seed", *training.CURVE]))
    atomic.write_table(args.output, table)
    bad = table[table["status"] != "ok"]
    for row in bad.itertuples():
        logging.warning("fold %d seed %d: %s, %s", row.fold, row.seed, row.status, row.reason)
    logging.info("%d models: %s", len(table), table["status"].value_counts().to_dict())


if __name__ == "__main__":
    main()
