"""From features made elsewhere to the report, without a slide."""

import re
import subprocess
from pathlib import Path

import foreign
import numpy as np
import pandas as pd
import pytest
import yaml

from isoslide import status

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {
    "sheet": "slides.tsv",
    "encoders": ["mine"],
    "import": {"mine": {"path": "features/{scan}.npz", "pairing": "common"}},
    "on_bad_slide": "skip",
    "tasks": {"response": {"type": "binary", "label": "response", "positive": "yes"}},
    "arms": {"paired": {"sampler": "paired"}, "robust": {"sampler": "paired", "score_weight": 1}},
    "splits": {"folds": 2, "tune": 0.3},
    "training": {
        "seeds": 1,
        "steps": 40,
        "specimens": 4,
        "tiles": 6,
        "width": 8,
        "attention": 4,
        "checkpoint_every": 20,
    },
    "evaluation": {"resamples": 100},
}


@pytest.mark.e2e
def test_features_of_another_tool_to_the_report(tmp_path):
    """Twenty patients on two scanners; one file is missing; the class shifts the first feature."""
    rng = np.random.default_rng(1)
    (tmp_path / "features").mkdir()
    rows = []
    for patient in range(20):
        features, corners = foreign.tiles(seed=patient)
        features[:, 0] += 3 * (patient % 2)
        for scanner in "AB":
            scan = f"P{patient:02d}_{scanner}"
            row = {
                "scan": scan,
                "scanner": scanner,
                "specimen": f"P{patient:02d}",
                "response": ("no", "yes")[patient % 2],
            }
            rows.append(row)
            if scan != "P00_B":
                noise = rng.normal(size=features.shape).astype(np.float32) / 5
                foreign.npz(tmp_path / f"features/{scan}.npz", features + noise, corners)
    pd.DataFrame(rows).to_csv(tmp_path / "slides.tsv", sep="\t", index=False)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    command = ["snakemake", "--cores", "2", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(tmp_path)]
    command += ["--configfile", str(tmp_path / "config.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.search(r"rule (check_slides|segment_tissue|register_scans|tile_scans|extract_features)", done.stderr)
    table = status.read(tmp_path / "results/status/features/mine.tsv").set_index("scan")
    assert table["status"].value_counts().to_dict() == {"ok": 39, "no_features": 1}
    assert table.loc["P00_A", "n_paired"] == "0"
    assert set(table.drop(["P00_A", "P00_B"])["n_paired"]) == {"12"}
    metrics = pd.read_csv(tmp_path / "results/evaluations/response/mine/metrics.tsv", sep="\t").set_index("metric")
    pooled = metrics[(metrics["scope"] == "pooled") & (metrics["seed"] == "mean")]
    assert pooled.loc["auc", "value"].min() > 0.9
    page = (tmp_path / "results/report/index.html").read_text()
    assert "Features mine were made elsewhere and imported." in page
    assert "P00_B" in page
