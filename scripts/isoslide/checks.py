"""What can be known of a scan before work starts: does it open, how large is a pixel, is the pyramid sound."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from isoslide import keys, status
from isoslide.slide import Slide, SlideError, file_mpp, slide_file

PLAUSIBLE_MPP = (0.05, 5.0)  # µm per pixel of level 0
MPP_DISAGREEMENT = 0.05  # of the sheet's and the file's value, relative
SAMPLE_BYTES = 4096
SAMPLES = 32


def check(row: Mapping[str, str]) -> dict[str, Any]:
    """Return the checks row of a scan of the sheet.

    Args:
        row: scan, path, scanner, specimen and mpp (µm/px or empty) of the sample sheet.

    Raises:
        SlideError: `missing`, `unreadable`, `no_mpp`, `mpp_conflict`, `implausible_mpp`, `inconsistent_pyramid`,
            `partly_unreadable`.
    """
    with Slide(row["path"], _stated_mpp(row)) as slide:
        mpp, source = _decide_mpp(row, file_mpp(slide.properties))
        _check_pyramid(slide)
        _check_decoding(slide)
        properties = slide.properties
        fingerprint = file_fingerprint(slide_file(slide.path), properties.get("openslide.quickhash-1", ""))
        facts = {
            "mpp_x": round(mpp[0], 6),
            "mpp_y": round(mpp[1], 6),
            "width": slide.size[0],
            "height": slide.size[1],
        }
        return {
            "scan": row["scan"],
            "status": status.OK,
            "path": row["path"],
            "key": keys.content_key(fingerprint=fingerprint, **facts),
            "specimen": row["specimen"],
            "scanner": row["scanner"],
            **facts,
            "mpp_source": source,
            "levels": len(slide.levels),
            "vendor": properties.get("openslide.vendor", "image"),
            "icc": "yes" if "openslide.icc-size" in properties else "no",
            "bytes": slide_file(slide.path).stat().st_size,
            "fingerprint": fingerprint,
        }


def file_fingerprint(path: Path, salt: str = "") -> str:
    """Return 16 hex digits of a file's size and 32 samples spread over it: copies agree, touching changes nothing."""
    size = path.stat().st_size
    digest = hashlib.sha256(f"{salt} {size}".encode())
    with open(path, "rb") as file:
        for start in np.linspace(0, max(0, size - SAMPLE_BYTES), SAMPLES).astype(int):
            file.seek(start)
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def _stated_mpp(row: Mapping[str, str]) -> tuple[float, float] | None:
    return (float(row["mpp"]), float(row["mpp"])) if row["mpp"] else None


def _decide_mpp(row: Mapping[str, str], in_file: tuple[float, float] | None) -> tuple[tuple[float, float], str]:
    stated = _stated_mpp(row)
    if in_file is None:
        assert stated is not None  # Slide has refused a scan with neither
        return stated, "sheet"
    if stated and not all(abs(a / b - 1) <= MPP_DISAGREEMENT for a, b in zip(stated, in_file, strict=True)):
        raise SlideError(
            "mpp_conflict",
            f"the sheet says {stated[0]:g} µm/px, the file {in_file[0]:g} x {in_file[1]:g}: correct the sheet, "
            "or empty its cell to trust the file",
        )
    if not all(PLAUSIBLE_MPP[0] <= value <= PLAUSIBLE_MPP[1] for value in in_file):
        raise SlideError(
            "implausible_mpp",
            f"the file says {in_file[0]:g} x {in_file[1]:g} µm/px, outside {PLAUSIBLE_MPP[0]:g}-{PLAUSIBLE_MPP[1]:g}",
        )
    return in_file, "file"


def _check_pyramid(slide: Slide) -> None:
    """Refuse levels that grow or change the aspect ratio (a file above 4 GB read with 32-bit offsets does)."""
    for (size, downsample), (before, _) in zip(slide.levels[1:], slide.levels, strict=False):
        if size[0] > before[0] or size[1] > before[1]:
            raise SlideError("inconsistent_pyramid", f"a level of {size} px after one of {before} px")
        expected = (slide.size[0] / downsample, slide.size[1] / downsample)
        if any(abs(a - b) > 2 + 0.02 * b for a, b in zip(size, expected, strict=True)):
            raise SlideError("inconsistent_pyramid", f"a level of {size} px where {expected} px were expected")


def _check_decoding(slide: Slide) -> None:
    """Decode a small region in the middle of level 0 and the coarsest level: names an unsupported codec at once."""
    mpp = np.array(slide.mpp)
    corner = np.array(slide.size_um) / 2
    for step in (1.0, slide.levels[-1][1]):
        slide.read(np.column_stack([np.diag(mpp * step), corner - 32 * mpp * step]), (64, 64))
