"""Jobs that are killed, and jobs that run twice at once, end with the bytes of an undisturbed run (complaint G-D1)."""

import multiprocessing
import shutil
import time

import cv2
import numpy as np
import pytest
import synth
from stages import Stages, files

from isoslide import encoders  # noqa: F401 - loads torch before the forks

FORK = multiprocessing.get_context("fork")  # the child has everything imported: a kill hits the work


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Five small slides, one of them blank and one no slide at all."""
    folder = tmp_path_factory.mktemp("slides")
    rows = []
    for i in range(4):
        path = synth.slide(folder / f"{i}.tif", size_um=(900, 900), blobs=((450, 450, 120 * i),) if i else (), seed=i)
        rows.append({"scan": f"s{i}", "path": path, "scanner": "A"})
    (folder / "text.svs").write_text("no slide")
    return [*rows, {"scan": "s4", "path": folder / "text.svs", "scanner": "A"}]


def tissue_and_tiles(folder, rows):
    cv2.setNumThreads(1)
    stages = Stages(folder, rows)
    stages.tissue()
    stages.tiles()


def features(folder, rows):
    Stages(folder, rows).features()


def undisturbed(folder, rows):
    """Run all in a folder; return the files and the seconds."""
    stages = Stages(folder, rows)
    stages.checks()
    start = time.perf_counter()
    tissue_and_tiles(folder, rows)
    return time.perf_counter() - start


def start(work, folder, rows):
    process = FORK.Process(target=work, args=(folder, rows))
    process.start()
    return process


def kill_and_finish(work, folder, rows, delays):
    """Start, kill -9 after each delay, then run to the end; return how many of the kills hit a living process."""
    hits = 0
    for delay in delays:
        process = start(work, folder, rows)
        time.sleep(delay)
        hits += process.is_alive()
        process.kill()
        process.join()
    process = start(work, folder, rows)
    process.join(60)
    assert process.exitcode == 0
    return hits


def made(folder):
    return {name: content for name, content in files(folder).items() if not name.startswith("slides")}


def test_twenty_kills_of_tissue_and_tiles(tmp_path, slides, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    seconds = undisturbed(folder, slides)
    expected = made(folder)
    assert {"tiles/s1.h5", "tiles/s3.h5", "tissue/s0.geojson"} <= set(expected)
    shutil.copy(folder / "checks.tsv", tmp_path)
    rng = np.random.default_rng(1)
    # What is done stands, so later kills need shorter delays to hit; after five all is made again.
    hits = 0
    for _ in range(4):
        shutil.rmtree(folder)
        folder.mkdir()
        shutil.copy(tmp_path / "checks.tsv", folder)
        hits += kill_and_finish(tissue_and_tiles, folder, slides, np.sort(rng.uniform(0, 0.8 * seconds, 5))[::-1])
        assert made(folder) == expected
    assert hits >= 8


def test_kills_of_features(tmp_path, slides):
    folder = tmp_path / "run"
    folder.mkdir()
    undisturbed(folder, slides[:3])
    process = start(features, folder, slides[:3])
    begun = time.perf_counter()
    process.join(60)
    seconds = time.perf_counter() - begun
    assert process.exitcode == 0
    expected = made(folder)
    shutil.rmtree(folder / "features")
    # The earliest first: a machine that has become quicker since the timed run may be done before a late one.
    hits = kill_and_finish(features, folder, slides[:3], seconds * np.array([0.3, 0.6, 0.9]))
    assert hits >= 1
    assert made(folder) == expected
    assert "features/s1.h5" in expected


def test_two_jobs_at_the_same_scans_at_once(tmp_path, slides):
    folder = tmp_path / "run"
    folder.mkdir()
    undisturbed(folder, slides)
    expected = made(folder)
    for name in ("tissue", "tiles"):
        shutil.rmtree(folder / name)
    both = [start(tissue_and_tiles, folder, slides) for _ in range(2)]
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert made(folder) == expected
    assert not [path for path in folder.rglob(".*") if path.is_file()]
