import hashlib
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import openslide
import pandas as pd
import pytest

import make_demo
from isoslide import demo, demo_scanners

REPOSITORY = Path(__file__).resolve().parents[2]
SLIDE = REPOSITORY / "resources/CMU-1-Small-Region.svs"


def run(folder: Path, *more: str) -> pd.DataFrame:
    make_demo.main(
        ["--slide", str(SLIDE), "--folder", str(folder / "slides"), "--output", str(folder / "manifest.tsv")]
        + ["--patients", "2", *more]
    )
    return pd.read_csv(folder / "manifest.tsv", sep="\t").set_index("scan")


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("slides/*"))}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("demo")
    return folder, run(folder)


def test_slides_are_those_of_the_sheet(made: tuple[Path, pd.DataFrame]) -> None:
    folder, manifest = made
    scans = demo.sheet(demo.patients(2))
    assert list(manifest.index) == list(scans["scan"])
    assert list(manifest.columns) == ["path", "key", "mpp", "a00", "a01", "a02", "a10", "a11", "a12"]
    assert sorted(path.name for path in folder.glob("slides/*")) == sorted(Path(path).name for path in scans["path"])
    assert all(Path(path).exists() for path in manifest["path"])


def test_openslide_reads_microns_per_pixel_and_levels(made: tuple[Path, pd.DataFrame]) -> None:
    for row in made[1].itertuples():
        with openslide.OpenSlide(row.path) as slide:
            assert slide.properties["openslide.vendor"] == "generic-tiff"
            assert slide.level_count == 3
            assert slide.level_downsamples == (1, 2, 4)
            assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(row.mpp, rel=1e-3)
            assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(row.mpp, rel=1e-3)


def test_second_run_keeps_everything_and_a_lost_or_foreign_slide_is_made_again(
    made: tuple[Path, pd.DataFrame],
) -> None:
    folder, manifest = made
    before = digests(folder)
    paths = sorted(folder.glob("slides/*"))
    paths[0].unlink()
    paths[5].write_bytes(paths[4].read_bytes())
    stamps = {path.name: path.stat().st_mtime_ns for path in paths[1:]}
    pd.testing.assert_frame_equal(run(folder), manifest)
    assert digests(folder) == before
    changed = [path.name for path in paths[1:] if path.stat().st_mtime_ns != stamps[path.name]]
    assert changed == [paths[5].name]


def test_same_bytes_on_every_run_and_for_any_number_of_threads(made: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    run(tmp_path, "--threads", "2")
    assert digests(tmp_path) == digests(made[0])


@pytest.mark.parametrize("scanner", ["A", "B", "C", "D"])
def test_manifest_lays_each_scan_onto_the_reference(made: tuple[Path, pd.DataFrame], scanner: str) -> None:
    """Phase correlation of the scan, warped by the manifest's affine, with the scan on A: within 1 µm."""
    manifest = made[1]
    grey = {}
    for scan in ("P01-1_A", f"P01-1_{scanner}"):
        with openslide.OpenSlide(manifest.loc[scan, "path"]) as slide:
            grey[scan[-1]] = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("L")).astype(np.float32)
    row = manifest.loc[f"P01-1_{scanner}"]
    affine = row[["a00", "a01", "a02", "a10", "a11", "a12"]].to_numpy(float).reshape(2, 3)
    pixel = 0.5  # µm, of A
    # Centres of A's pixels to the scan's pixels.
    linear = affine[:, :2] * pixel / row["mpp"]
    offset = (affine[:, :2] @ np.full(2, pixel / 2) + affine[:, 2]) / row["mpp"] - 0.5
    height, width = grey["A"].shape
    back = cv2.warpAffine(
        grey[scanner],
        np.column_stack([linear, offset]),
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderValue=float(np.median(grey[scanner])),
    )
    # 1024 px around the middle: a size that the transform would pad to an odd one shifts OpenCV's peak by half a pixel.
    middle = np.s_[height // 2 - 512 : height // 2 + 512, width // 2 - 512 : width // 2 + 512]
    window = cv2.createHanningWindow((1024, 1024), cv2.CV_32F)
    (dx, dy), response = cv2.phaseCorrelate(grey["A"][middle].copy(), back[middle].copy(), window)
    assert np.hypot(dx, dy) * pixel < 0.25
    assert response > 0.2
    inner = np.s_[height // 3 : -height // 3, width // 3 : -width // 3]
    assert np.corrcoef(grey["A"][inner].ravel(), back[inner].ravel())[0, 1] > 0.8


def test_scanners_differ_in_colour(made: tuple[Path, pd.DataFrame]) -> None:
    means = []
    for scanner in demo.SCANNERS:
        with openslide.OpenSlide(made[1].loc[f"P01-1_{scanner}", "path"]) as slide:
            means.append(np.asarray(slide.get_thumbnail((200, 200))).reshape(-1, 3).mean(axis=0))
    distances = [np.abs(a - b).max() for i, a in enumerate(means) for b in means[:i]]
    assert min(distances) > 3


def test_keys_follow_what_makes_the_picture(made: tuple[Path, pd.DataFrame], monkeypatch: pytest.MonkeyPatch) -> None:
    from isoslide import demo_slides

    monkeypatch.setattr(demo_slides, "write_tiff", lambda path, *_: Path(path).write_bytes(b"x"))
    stronger = {name: demo_scanners.exaggerated(scanner, 1.1) for name, scanner in demo_scanners.SCANNERS.items()}
    monkeypatch.setattr(demo_scanners, "SCANNERS", stronger)
    specimen = demo.specimens(demo.patients(2))[0]
    folder = made[0] / "other"
    rows, n_made = demo_slides.make_specimen(specimen, SLIDE, folder, {"seed": 1})
    old = made[1].loc[[row["scan"] for row in rows], "key"]
    assert n_made == 4
    assert not set(old) & {row["key"] for row in rows}


def test_sheet_is_written(tmp_path: Path) -> None:
    make_demo.main(["--sheet", str(tmp_path / "slides.tsv")])
    assert (tmp_path / "slides.tsv").read_bytes() == (REPOSITORY / "config/slides.tsv").read_bytes()


@pytest.mark.parametrize(
    "argv", [[], ["--slide", "x"], ["--sheet", "x", "--folder", "y"], ["--sheet", "x", "--patients", "1"]]
)
def test_incomplete_arguments_are_refused(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        make_demo.main(argv)
    assert error.value.code == 2


def test_missing_slide_is_one_line(tmp_path: Path) -> None:
    argv = ["--slide", str(tmp_path / "no.svs"), "--folder", str(tmp_path / "s"), "--output", str(tmp_path / "m.tsv")]
    with pytest.raises(SystemExit, match=r"no slide .*no\.svs"):
        make_demo.main(argv)
    assert not (tmp_path / "m.tsv").exists()


def test_help_runs_without_image_libraries() -> None:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "scripts")}
    command = [sys.executable, str(REPOSITORY / "scripts/make_demo.py"), "--help"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "python scripts/make_demo.py --sheet config/slides.tsv" in result.stdout
