"""How task models are trained where the configuration does not say: by the cohort's size, or as the reference does.

`training.preset` names where settings come from that `training` leaves out, and the weights that an arm asks for with
the word `preset`. `reference`: those of the method that this is built on, made for thousands of slides. `cohort`, the
default: by the number of specimens that can train in pairs, see docs/small_cohorts.md for the study behind the table.
Light: the Snakefile imports it.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from isoslide import sheet

PRESET = "preset"
"""Instead of a number in an arm: the weight of the preset."""
WEIGHTS = ("embedding_weight", "score_weight")

REFERENCE = {
    "steps": 20000,
    "specimens": 16,
    "tiles": 512,
    "checkpoint_every": 500,
    "head_dropout": "independent",
    "selection": "reference",
}
REFERENCE_WEIGHT = 10

# From so many specimens in pairs: steps, specimens per step, weight of both losses. Studied up to 200; the last row is
# the reference's, and the one before lies between.
COHORT = ((0, 3000, 8, 1), (100, 3000, 8, 3), (300, 5000, 16, 3), (2000, 20000, 16, 10))
CHECKPOINTS, LEAST, MOST = 20, 10, 500  # checkpoints in a run; steps between two


def paired_specimens(table: pd.DataFrame) -> int:
    """Return how many specimens of the sheet may train and have scans on two scanners that may."""
    rows = sheet.included(table)
    rows = rows[rows["split"].isin(("", "train"))]
    return int((rows.groupby("specimen")["scanner"].nunique() > 1).sum())


def chosen(preset: str, n: int) -> tuple[dict[str, Any], float]:
    """Return the settings of the block `training` that a preset gives n specimens in pairs, and the losses' weight."""
    if preset == "reference":
        return dict(REFERENCE), REFERENCE_WEIGHT
    _, steps, specimens, weight = [row for row in COHORT if row[0] <= n][-1]
    return {"steps": steps, "specimens": specimens}, weight


def fill(config: Mapping[str, Any], given: Mapping[str, Any], n: int) -> dict[str, Any]:
    """Return the configuration with the settings of its preset; what was given stays.

    Args:
        config: the complete configuration.
        given: as it was read, without defaults.
        n: specimens in pairs, see `paired_specimens`.
    """
    settings, weight = chosen(config["training"]["preset"], n)
    arms = {name: arm | {key: weight for key in WEIGHTS if arm[key] == PRESET} for name, arm in config["arms"].items()}
    own = dict(given.get("training") or {})
    training = config["training"] | settings | own
    if "checkpoint_every" not in {**settings, **own}:
        training["checkpoint_every"] = min(MOST, max(LEAST, training["steps"] // CHECKPOINTS))
    return {**config, "arms": arms, "training": training}


def sentence(config: Mapping[str, Any], n: int) -> str:
    """Return what training uses, of a filled configuration with n specimens in pairs: a line for the log."""
    training = config["training"]
    names = ("steps", "specimens", "tiles", "checkpoint_every", "head_dropout", "selection")
    weights = ", ".join(
        f"{name} {arm[WEIGHTS[0]]:g} and {arm[WEIGHTS[1]]:g}"
        for name, arm in config["arms"].items()
        if arm[WEIGHTS[0]] or arm[WEIGHTS[1]]
    )
    return (
        f"training: preset {training['preset']}, {n} specimens may train in pairs: "
        + ", ".join(f"{name} {training[name]}" for name in names)
        + (f"; weights of the embedding and the score loss: {weights}" if weights else "")
    )
