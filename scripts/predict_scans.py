"""Score the test and tuning scans of every fold with that fold's models, on all tiles.

    python scripts/predict_scans.py --models results/models/response/efficientnet_lite0/robust/models.tsv \
        --splits results/splits/response.tsv --features results/status/features/efficientnet_lite0.tsv \
        --output results/predictions/response/efficientnet_lite0/robust.tsv

One row per model and scan: `role` is that of the scan in the model's fold (`test`, or `tune`: the scans that its
checkpoint was chosen on, and a threshold may be), the score is `logit` and `p` (in survival higher is worse), of three
classes or more also `p_0`, `p_1`, …; what they are for each kind of task stands in `isoslide/tasks.py`. `status` is
that of the model. Scans without features are counted in the log.
"""

import argparse
import itertools
import logging

import numpy as np
import pandas as pd

from isoslide import atomic, cli

ROLES = ("test", "tune")
COLUMNS = (
    "role",
    "fold",
    "seed",
    "scan",
    "specimen",
    "patient",
    "scanner",
    "label",
    "time",
    "event",
    "n_tiles",
    "logit",
    "p",
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--models", required=True, help="table of train_models.py")
    parser.add_argument("--splits", required=True, help="table of make_splits.py")
    parser.add_argument("--features", required=True, help="status table of the features of an encoder")
    parser.add_argument("--memory-gb", type=float, default=4, help="features above this size stay in their files")
    parser.add_argument("--threads", type=int, default=1, help="threads of the matrix products")
    parser.add_argument("--output", required=True, help="table to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cli.start_logging(args)
    import torch

    from isoslide import bags

    torch.set_num_threads(args.threads)
    rows = pd.read_csv(args.splits, sep="\t", dtype=str, keep_default_na=False)
    models = pd.read_csv(args.models, sep="\t", dtype=str, keep_default_na=False)
    scored = rows[rows["role"].isin(ROLES)]
    try:
        features = bags.load(args.features, scored["scan"], args.memory_gb)
    except bags.BagError as error:
        cli.fail(str(error))
    present = scored["scan"].isin(features.index)
    lost = scored[~present].drop_duplicates(["role", "scan"])
    for (role, scanner), n in lost.groupby(["role", "scanner"]).size().items():
        logging.warning("scanner %s: %d %s scans without features are not scored", scanner, n, role)
    table = predict(models[models["path"] != ""], scored[present], features)
    atomic.write_table(args.output, table, digits=12)  # with six, probabilities of 0.9999999 would all be ties
    counts = ", ".join(f"{n} {role}" for role, n in table["role"].value_counts().items())
    logging.info("%d scores (%s) of %d scans; %d lost", len(table), counts, table["scan"].nunique(), len(lost))


def predict(table: pd.DataFrame, scored: pd.DataFrame, features) -> pd.DataFrame:
    """Return one row per model and scan of its fold: first all of the role test, then those of the role tune."""
    from isoslide import scoring

    matrix = features.tensor()
    parts = []
    for role, (fold, own) in itertools.product(ROLES, table.groupby("fold", sort=False)):
        rows = scored[(scored["role"] == role) & (scored["fold"] == fold)]
        if rows.empty:
            continue
        scans = np.array([features.index[scan] for scan in rows["scan"]], dtype=np.int64)
        members = scoring.trained(list(own["path"]))
        logits = scoring.logits(members, matrix, features, scans, rows["scanner"].to_numpy())
        for model, columns in zip(own.itertuples(), scoring.columns(members, logits), strict=True):
            part = rows.assign(seed=model.seed, n_tiles=[features.size(scan) for scan in scans])
            parts.append(part.assign(**columns, status=model.status))
    if not parts:
        return pd.DataFrame(columns=[*COLUMNS, "status"])
    table = pd.concat(parts)
    return table[[*COLUMNS, *(name for name in table if name.startswith("p_")), "status"]]


if __name__ == "__main__":
    main()
