"""The demo cohort's plan: patients, specimens, labels, and which scans may be trained on, from a seed alone.

Everything here is made up. A patient's share of epithelium (dense, nuclear tissue, against fibrous stroma) causes both
the response and the survival time; `demo_tissue` lays out tissue with that share and `demo_scanners` scans it. Labels
are drawn before a pixel exists, so the sample sheet can be written without reading the slide.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

SEED = 1
PATIENTS = 60
TWO_SPECIMENS = 8 / 60  # share of the patients with a second specimen
PEN_STROKES = 0.05  # share of the specimens with ink on the glass
SLIDES = "results/demo/slides"
SCANNERS = ("A", "B", "C", "D")

SHARE = stats.beta(2.2, 3.5)  # of epithelium; median 0.37, SD 0.19
# Log odds of a response per SD of the share. In cohorts of 60 the true share then has an AUC of 0.91 (SD 0.03).
RESPONSE_EFFECT = 2.5
# Log hazard per SD of the share; Weibull times. The true share then has a c-index of 0.82 (SD 0.03).
HAZARD_EFFECT = 1.6
WEIBULL_SHAPE = 1.5
WEIBULL_MONTHS = 33.0  # scale at the median share: median survival 26 months there
CENSORING_MONTHS = (20.0, 70.0)  # uniform, independent of everything: about a third censored
CONFOUNDING = 0.85  # share of the positives that train on scanner A, and of the negatives that train on C

# One stream per purpose, so that a draw more in one never shifts another.
COHORT, PENS, TISSUE, POSE, NOISE = range(5)


@dataclass(frozen=True)
class Specimen:
    """One glass: `index` (from 0, over the cohort) selects its random streams."""

    name: str
    index: int
    share: float  # wanted share of epithelium in its tissue, 0-1
    pen: bool


def rng(seed: int, purpose: int, *indices: int) -> np.random.Generator:
    """Return the generator of one purpose (and specimen, and scanner) of the cohort with this seed."""
    return np.random.default_rng([seed, purpose, *indices])


def patients(n: int = PATIENTS, seed: int = SEED) -> pd.DataFrame:
    """Draw the patients.

    Args:
        n: Number of patients.
        seed: Cohort seed.

    Returns:
        One row per patient: patient, n_specimens, share, response (positive | negative), months, event (1 = event,
        0 = censored), train (the scanner, A or C, whose scans may be trained on next to B).
    """
    draw = rng(seed, COHORT)
    share = SHARE.ppf((draw.permutation(n) + draw.uniform(size=n)) / n)  # one patient from each of n equal strata
    z = (share - SHARE.median()) / SHARE.std()
    # The upper half of the latent scores responds: a logistic model with exactly balanced classes.
    latent = RESPONSE_EFFECT * z + draw.logistic(size=n)
    positive = latent.argsort().argsort() >= n // 2
    event_months = WEIBULL_MONTHS * (draw.exponential(size=n) / np.exp(HAZARD_EFFECT * z)) ** (1 / WEIBULL_SHAPE)
    censor_months = draw.uniform(*CENSORING_MONTHS, size=n)
    second = np.isin(np.arange(n), draw.permutation(n)[: round(TWO_SPECIMENS * n)])
    digits = max(2, len(str(n)))
    return pd.DataFrame(
        {
            "patient": [f"P{i:0{digits}d}" for i in range(1, n + 1)],
            "n_specimens": 1 + second,
            "share": share,
            "response": np.where(positive, "positive", "negative"),
            "months": np.maximum(np.minimum(event_months, censor_months).round(1), 0.1),
            "event": (event_months <= censor_months).astype(int),
            "train": _available(positive, draw),
        }
    )


def specimens(table: pd.DataFrame, seed: int = SEED) -> list[Specimen]:
    """List the glasses of the patients, in order; the share of a patient drives all of his or her specimens."""
    rows = [
        (f"{row.patient}-{i + 1}", row.share) for row in table.itertuples(index=False) for i in range(row.n_specimens)
    ]
    inked = rng(seed, PENS).permutation(len(rows))[: round(PEN_STROKES * len(rows))]
    return [Specimen(name, i, float(share), i in inked) for i, (name, share) in enumerate(rows)]


def sheet(table: pd.DataFrame) -> pd.DataFrame:
    """Return the sample sheet: every specimen on all four scanners.

    Confounding is by availability: of a patient, only the scans on B and on one of A and C may be trained on, which
    of the two depends on the response. Scanner D is never trained on. All other scans are `test`.
    """
    rows = []
    for patient in table.itertuples(index=False):
        for number in range(1, patient.n_specimens + 1):
            specimen = f"{patient.patient}-{number}"
            for scanner in SCANNERS:
                rows.append(
                    {
                        "scan": f"{specimen}_{scanner}",
                        "path": f"{SLIDES}/{specimen}_{scanner}.tif",
                        "scanner": scanner,
                        "specimen": specimen,
                        "patient": patient.patient,
                        "split": "" if scanner in ("B", patient.train) else "test",
                        "response": patient.response,
                        "months": patient.months,
                        "event": patient.event,
                    }
                )
    return pd.DataFrame(rows)


def _available(positive: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Return `A` or `C` per patient; the confounded share is met in both classes to the nearest patient."""
    train = np.where(positive, "A", "C")
    for value, other in ((True, "C"), (False, "A")):
        members = draw.permutation(np.flatnonzero(positive == value))
        train[members[round(CONFOUNDING * len(members)) :]] = other
    return train
