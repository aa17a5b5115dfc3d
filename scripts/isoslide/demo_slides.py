"""The demo cohort's files: a pyramidal TIFF of every specimen on every scanner, and the manifest of true geometry."""

import functools
import hashlib
import logging
import multiprocessing
import struct
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import tifffile
from tqdm import tqdm

from isoslide import atomic, demo, demo_scanners, demo_tissue, keys

TILE = 256  # px
LEVELS = 3  # each half the one before
OVERVIEW_QUALITY = 20  # by how much the JPEG quality of the smaller levels lies below that of level 0


def make_cohort(
    slide: Path, folder: Path, specimens: list[demo.Specimen], threads: int, seed: int = demo.SEED
) -> pd.DataFrame:
    """Make all slides that are not in the folder yet, one specimen a task, and return the manifest.

    Returns:
        One row per scan: scan, path, key, mpp, and a00 a01 a02 a10 a11 a12, the affine from the µm of the specimen's
        scan on A to the µm of this scan.
    """
    identity = {
        "code": keys.code_hash(demo, demo_tissue, demo_scanners, sys.modules[__name__]),
        "slide": hashlib.sha256(slide.read_bytes()).hexdigest(),
        "seed": seed,
    }
    make = functools.partial(make_specimen, slide=slide, folder=folder, identity=identity)
    results = []
    show = functools.partial(tqdm, total=len(specimens), desc="specimens", disable=None)
    if threads == 1:
        results = list(show(map(make, specimens)))
    else:
        # Fresh processes: forked ones could inherit locks of OpenCV's threads.
        with ProcessPoolExecutor(threads, multiprocessing.get_context("spawn")) as pool:
            results = list(show(pool.map(make, specimens)))
    made = sum(n for _, n in results)
    rows = [row for specimen_rows, _ in results for row in specimen_rows]
    logging.info("%d scans: %d made, %d kept", len(rows), made, len(rows) - made)
    return pd.DataFrame(rows)


def make_specimen(
    specimen: demo.Specimen, slide: Path, folder: Path, identity: dict[str, Any]
) -> tuple[list[dict[str, Any]], int]:
    """Make the scans of a specimen that are not there with the right key.

    Args:
        specimen: The glass.
        slide: Real slide that the tissue is taken from.
        folder: Where the scans go, as `{specimen}_{scanner}.tif`.
        identity: What else the pixels depend on, for the content key; `seed` is used.

    Returns:
        The rows of the manifest, and how many scans had to be made.
    """
    cv2.setNumThreads(1)  # the other cores have specimens of their own
    seed = identity["seed"]
    outline = demo_tissue.draw_outline(specimen, seed)
    poses = {name: demo_scanners.pose(name, specimen, outline.size_um, seed) for name in demo.SCANNERS}
    glass, rows, made = None, [], 0
    for number, name in enumerate(demo.SCANNERS):
        scanner = demo_scanners.exaggerated(demo_scanners.SCANNERS[name])
        scan, path = f"{specimen.name}_{name}", folder / f"{specimen.name}_{name}.tif"
        key = keys.content_key(**identity, specimen=asdict(specimen), scanner=asdict(scanner))
        description = f"Isoslide demo, simulated scan {scan}, key {key}"
        affine = demo_scanners.between(poses["A"], poses[name])
        rows.append({"scan": scan, "path": str(path), "key": key, "mpp": scanner.mpp} | _columns(affine))
        if description_of(path) == description:
            continue
        if glass is None:
            source = _source(slide)
            glass = demo_tissue.lay_tissue(specimen, outline, source, seed)
        size = demo_scanners.scan_size(scanner, outline.size_um)
        noise = demo.rng(seed, demo.NOISE, specimen.index, number)
        picture = demo_scanners.scan(glass, source.mpp, poses[name], size, scanner, noise)
        with atomic.output(path) as temporary:
            write_tiff(temporary, picture, scanner.mpp, scanner.quality, description)
        made += 1
    return rows, made


def write_tiff(path: Path, picture: np.ndarray, mpp: float, quality: int, description: str) -> None:
    """Write a tiled pyramid of JPEGs that OpenSlide reads as `generic-tiff`, with its µm/px.

    Nothing in the file depends on the time or the place of writing: equal pictures give equal bytes.
    """
    per_cm = 1e4 / mpp
    with tifffile.TiffWriter(path) as tiff:
        for level in range(LEVELS):
            if level:
                picture = cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
            tiff.write(
                picture,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": quality - (OVERVIEW_QUALITY if level else 0)},
                subsampling=(2, 2),
                subfiletype=1 if level else 0,
                resolution=(per_cm / 2**level, per_cm / 2**level),
                resolutionunit="CENTIMETER",
                description=description if level == 0 else None,
                software=False,
                metadata=None,
                maxworkers=1,
            )


def description_of(path: Path) -> str:
    """Return the description in a file written by `write_tiff`; empty if there is none, or no such TIFF."""
    try:
        with tifffile.TiffFile(path) as tiff:
            return tiff.pages[0].description
    except (FileNotFoundError, tifffile.TiffFileError, struct.error):  # the last where the file is cut short
        return ""


@functools.lru_cache(maxsize=1)
def _source(slide: Path) -> demo_tissue.Source:
    """Read the slide once per process; it takes a second."""
    return demo_tissue.read_source(slide)


def _columns(affine: np.ndarray) -> dict[str, float]:
    return {f"a{row}{column}": float(affine[row, column]) for row in range(2) for column in range(3)}
