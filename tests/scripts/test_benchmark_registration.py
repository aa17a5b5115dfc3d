import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synth

import benchmark_registration
from isoslide import registration_benchmark
from isoslide.registration import apply
from isoslide.slide import Slide

ROOT = Path(__file__).parents[2]
SLIDE = ROOT / "resources" / "CMU-1-Small-Region.svs"
CONFIG = ["--config", str(ROOT / "config/config.yaml"), "--schema", str(ROOT / "workflow/schemas/config.schema.yaml")]


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Two slides of 700 µm with different tissue in white glass."""
    folder = tmp_path_factory.mktemp("slides")
    paths = []
    for name, corner in (("a", (200.0, 250)), ("b", (450.0, 850))):
        with Slide(SLIDE) as slide:
            crop = slide.read(np.array([[0.5, 0, corner[0]], [0, 0.5, corner[1]]]), (1100, 1100))
        image = np.full((1400, 1400, 3), 244, np.uint8)
        image[150:-150, 150:-150] = crop
        paths.append(str(folder / f"{name}.tif"))
        synth.write(Path(paths[-1]), image, 0.5)
    return paths


def test_simulated_compares_with_the_truth_and_swaps_slides(slides, tmp_path, caplog):
    output = tmp_path / "table.tsv"
    arguments = ["--slides", *slides, "--number", "3", "--output", str(output), *CONFIG]
    benchmark_registration.main(["simulated", *arguments])
    table = pd.read_csv(output, sep="\t")
    same, swapped = table[table["same_glass"]], table[~table["same_glass"]]
    assert len(same) == 3
    assert same["reason"].isna().all()
    assert (same["median_um"] < 1).all()
    assert swapped["reason"].notna().all()
    assert len(swapped) == 2


def test_a_wrong_map_that_passes_ends_the_script(slides, tmp_path, monkeypatch):
    register = benchmark_registration._register

    def wrong(*args):
        view, found = register(*args)
        found.warp.affine[:, 2] += 20
        return view, found

    monkeypatch.setattr(benchmark_registration, "_register", wrong)
    output = tmp_path / "table.tsv"
    with pytest.raises(SystemExit, match="1 wrong maps passed"):
        benchmark_registration.main(
            ["simulated", "--slides", slides[0], "--number", "1", "--output", str(output), *CONFIG]
        )


def test_large_measures_two_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_registration, "GLASS_UM", 1000.0)
    output = tmp_path / "large.tsv"
    sides = ["--side", "2000", "--small-side", "1600"]
    benchmark_registration.main(["large", "--slides", str(SLIDE), *sides, "--output", str(output), *CONFIG])
    table = pd.read_csv(output, sep="\t")
    assert table["reason"].isna().all()
    assert (table["true_error_um"] < 0.3).all()
    assert (table["peak_mb"] > table["before_mb"]).all()


def test_the_true_map_is_where_the_pixels_are():
    rng = np.random.default_rng(0)
    image = np.full((600, 600, 3), 240, np.uint8)
    dots = np.array([[150, 200], [400, 180], [320, 430]])
    for x, y in dots:
        image[y - 4 : y + 4, x - 4 : x + 4] = 0
    how = registration_benchmark.Draw(33, True, 1.02, 0.8, (0.0, 0.0), 6.0, 400.0, 0.2, 90)
    other, truth = registration_benchmark.another_scan(registration_benchmark.Picture(image, 0.5), how, rng)
    for place in truth(dots * 0.5):
        x, y = np.floor(place / other.mpp[0]).astype(int)
        window = 255.0 - other.image[y - 12 : y + 13, x - 12 : x + 13, 1]
        window[window < 120] = 0
        rows, cols = np.mgrid[y - 12 : y + 13, x - 12 : x + 13] + 0.5
        centre = np.array([(cols * window).sum(), (rows * window).sum()]) / window.sum() * other.mpp[0]
        assert np.hypot(*(centre - place)) < 0.25
    assert apply(registration_benchmark.inverse(np.array([[2.0, 0, 1], [0, 4, 2]])), np.array([[3.0, 6]])).tolist() == [
        [1, 1]
    ]


def test_help():
    script = Path(benchmark_registration.__file__)
    text = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True).stdout
    assert "python scripts/benchmark_registration.py" in text
