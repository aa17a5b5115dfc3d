"""What can be known of a scan before work starts: does it open, how large is a pixel, is the pyramid sound."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from isoslide import keys, status
from isoslide.slide import Slide, SlideError, file_mpp, slide_file

PLAUSIBLE_MPP = (0.05, 5.0)  # µm per pixel of level 0
MPP_DISAGREEMENT = 0.05  # of the sheet's and the file's value, relative
UNKNOWN_MPP = (1.0, 1.0)  # to open a file before its µm/px is decided; nothing here depends on it
SAMPLE_BYTES = 4096
SAMPLES = 32


def check(row: Mapping[str, str], assume_from_power: bool = False) -> dict[str, Any]:
    """Return the checks row of a scan of the sheet.

    Args:
        row: scan, path, scanner, specimen, mpp (µm/px or empty) and mpp_override (`yes` or empty) of the sample sheet.
        assume_from_power: whether 10 / nominal power may stand in for µm/px that nobody states.

    Raises:
        SlideError: `missing`, `unreadable`, `no_mpp`, `mpp_conflict`, `implausible_mpp`, `inconsistent_pyramid`,
            `partly_unreadable`.
    """
    with Slide(row["path"], UNKNOWN_MPP) as slide:
        mpp, source = decide_mpp(row, slide.properties, assume_from_power)
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
            "software": _software(properties),
            "icc": "yes" if "openslide.icc-size" in properties else "no",
            "bytes": slide_file(slide.path).stat().st_size,
            "fingerprint": fingerprint,
            "reference": row.get("reference", ""),
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


def decide_mpp(
    row: Mapping[str, str], properties: Mapping[str, str], assume_from_power: bool
) -> tuple[tuple[float, float], str]:
    """Return the µm/px (x, y) of level 0 and where it comes from: `file`, `sheet` or `assumed`.

    Args:
        row: mpp and mpp_override of the sample sheet.
        properties: what the file says of itself, by OpenSlide's names.
        assume_from_power: whether 10 / nominal power may stand in; scanners of one nominal power differ by a tenth
            and more.
    """
    in_file = file_mpp(properties)
    stated = (float(row["mpp"]), float(row["mpp"])) if row["mpp"] else None
    if stated and (in_file is None or row.get("mpp_override")):
        return stated, "sheet"
    if in_file is None:
        return _assumed_mpp(properties, assume_from_power), "assumed"
    if stated and not all(abs(a / b - 1) <= MPP_DISAGREEMENT for a, b in zip(stated, in_file, strict=True)):
        raise SlideError(
            "mpp_conflict",
            f"the sheet says {stated[0]:g} µm/px, the file {in_file[0]:g} x {in_file[1]:g}: correct the sheet, "
            "empty its cell to trust the file, or write yes into its column 'mpp_override' to trust the sheet",
        )
    _check_plausible(in_file, "the file says {0:g} x {1:g} µm/px")
    return in_file, "file"


def _software(properties: Mapping[str, str]) -> str:
    """Return what wrote the file, as far as it says so: a converted slide differs there from an original."""
    for name in ("tiff.Software", "dicom.SoftwareVersions[0]", "openslide.comment"):
        if properties.get(name, "").strip():
            return properties[name].strip().splitlines()[0][:60].strip()
    return ""


def _assumed_mpp(properties: Mapping[str, str], allowed: bool) -> tuple[float, float]:
    power = properties.get("openslide.objective-power", "")
    try:
        usable = float(power) > 0
    except ValueError:
        usable = False
    if not allowed or not usable:
        known = f"only its nominal power, {power}" if usable else "nor its nominal power"
        raise SlideError("no_mpp", f"the file does not say its µm/px ({known}): give it in the sheet's column 'mpp'")
    mpp = (10 / float(power),) * 2
    _check_plausible(mpp, f"the nominal power {power} gives {{0:g}} µm/px")
    return mpp


def _check_plausible(mpp: tuple[float, float], what: str) -> None:
    if not all(PLAUSIBLE_MPP[0] <= value <= PLAUSIBLE_MPP[1] for value in mpp):
        raise SlideError(
            "implausible_mpp",
            f"{what.format(*mpp)}, outside {PLAUSIBLE_MPP[0]:g}-{PLAUSIBLE_MPP[1]:g}: give it in the sheet's column "
            "'mpp' with yes in 'mpp_override'",
        )


def mark_duplicates(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with the status `duplicate_file` for scans whose files are one and the same (`fingerprint`)."""
    table = table.reset_index(drop=True)
    good = table[table["status"] == status.OK]
    if good.empty:  # then no row has the columns of a scan that opened
        return table
    for _, same in good.groupby("fingerprint"):
        for index in same.index if len(same) > 1 else []:
            others = ", ".join(same["scan"].drop(index))
            table.loc[index, "status"] = "duplicate_file"
            table.loc[index, "reason"] = f"the same file as scan {others}: correct a path, or exclude all but one"
    return table


def cohort_warnings(table: pd.DataFrame) -> list[str]:
    """Return what is odd of the scans as a cohort, a sentence each: µm/px, colour profiles, file formats.

    Args:
        table: of the checks stage, all batches.
    """
    good = table[table["status"] == status.OK]
    if good.empty:
        return []
    assumed = good[good["mpp_source"] == "assumed"]
    lines = []
    if len(assumed):
        lines.append(f"µm/px of {len(assumed)} scans is assumed from the nominal power: {_some(assumed['scan'])}")
    with_profile = sorted(good[good["icc"] == "yes"]["scanner"].unique())
    without = sorted(good[good["icc"] == "no"]["scanner"].unique())
    if with_profile and without:
        lines.append(
            f"slides of scanner {', '.join(with_profile)} hold a colour (ICC) profile and slides of scanner "
            f"{', '.join(without)} hold none: were some of them converted?"
        )
    for scanner, rows in good.groupby("scanner"):
        counts = rows["vendor"].value_counts()
        if len(counts) > 1:
            named = ", ".join(f"{n} {vendor}" for vendor, n in counts.items())
            lines.append(f"slides of scanner {scanner} are of several formats ({named}): is it one scanner?")
        values = rows["mpp_x"].astype(float)
        odd = rows[(values / values.median() - 1).abs() > MPP_DISAGREEMENT]
        if len(odd):
            lines.append(
                f"µm/px of scanner {scanner} is {values.median():g} in the median, and more than "
                f"{MPP_DISAGREEMENT:.0%} off in {len(odd)} of {len(rows)} scans: {_some(odd['scan'])}"
            )
    return lines


def _some(scans: pd.Series) -> str:
    names = scans.tolist()
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


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
