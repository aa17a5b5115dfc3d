"""A cohort of features with a known signal, small enough to train on in a second, and the training of an arm on it."""

import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

import train_models
from isoslide import atomic, config, splits, status

TASK = {"type": "binary", "label": "label", "positive": "b"}
ARM = {
    "sampler": "paired",
    "embedding_weight": 1,
    "score_weight": 1,
    "embedding_loss": "info_nce",
    "score_loss": "mse",
    "negatives": "other_specimens",
    "n_negatives": 5,
    "n_anchors": 128,
    "temperature": 0.1,
    "warmup_steps": 0,
}
SCHEMA = Path(train_models.__file__).parents[1] / "workflow/schemas/config.schema.yaml"
DEFAULTS = config.complete({"sheet": "s.tsv", "encoders": ["e"]}, SCHEMA)["training"]
TRAINING = DEFAULTS | {
    "seeds": 2,
    "steps": 30,
    "specimens": 4,
    "tiles": 5,
    "width": 8,
    "layers": 2,
    "attention": 4,
    "dropout": 0.2,
    "head_dropout": "paired",
    "learning_rate": 0.05,
    "weight_decay": 0.02,
    "clip": 20,
    "checkpoint_every": 10,
    "selection": "normalised",
}


def write_cohort(folder: Path, n=18, scanners="ABD", dim=6, tiles=6):
    """Splits, features and their status table; scan S00B has none, scanner D is for tests only."""
    rng = np.random.default_rng(0)
    rows, table = [], []
    (folder / "features").mkdir()
    for i in range(n):
        content = rng.normal(size=(tiles, dim))
        content[:, 0] += 2 * (i % 2)
        for s, scanner in enumerate(scanners):
            scan = f"S{i:02d}{scanner}"
            common = {"scan": scan, "scanner": scanner, "specimen": scan[:3]}
            split = "test" if scanner == "D" else ""
            rows.append(common | {"patient": scan[:3], "split": split, "exclude": "", "label": "ab"[i % 2]})
            if scan == "S00B":
                table.append(status.failed(common, "no_tissue", "nothing found"))
                continue
            path = folder / "features" / f"{scan}.h5"
            with h5py.File(path, "w") as file:
                file["features"] = (content + 0.5 * s * np.eye(dim)[1]).astype(np.float16)
                file["tile_ids"] = np.arange(tiles)
                file.attrs.update(reference=f"{scan[:3]}A", paired=True, encoder="toy")
            table.append({"scan": scan, "status": "ok", "path": path, "n_tiles": tiles, "key": f"k{scan}"} | common)
    status.write(folder / "features.tsv", table)
    atomic.write_table(
        folder / "splits.tsv", splits.make(pd.DataFrame(rows), "t", TASK, {"folds": 3, "tune": 0.25, "seed": 0})
    )


def train(folder: Path, arm=ARM, results="models", memory_gb=4, **changes):
    settings = json.dumps({"task": TASK, "arm": arm, "training": TRAINING | changes})
    out = folder / results
    train_models.main(
        f"--splits {folder}/splits.tsv --features {folder}/features.tsv --arm robust --threads 1 --results {out} "
        f"--memory-gb {memory_gb} --curves {out}/curves.tsv --output {out}/models.tsv --settings".split()
        + [settings]
    )
    return pd.read_csv(out / "models.tsv", sep="\t")
