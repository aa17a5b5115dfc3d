"""A full disk, a folder that may not be written to: one line, no half file, and a rerun that finishes (G-M2)."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import synth
from stages import ROOT, Stages, files, settings

from isoslide import atomic


@pytest.fixture
def stages(tmp_path):
    rows = [
        {"scan": f"s{i}", "path": synth.slide(tmp_path / f"{i}.tif", size_um=(900, 900), seed=i), "scanner": "A"}
        for i in range(4)
    ]
    made = Stages(tmp_path, rows)
    made.checks()
    return made


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 40 kB, or the test is skipped where disks cannot be mounted."""
    folder = tmp_path / "tissue"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def command(stages, results):
    return [
        *(sys.executable, str(ROOT / "scripts/segment_tissue.py"), "--checks", str(stages.folder / "checks.tsv")),
        *("--settings", settings("tissue"), "--results", str(results)),
        *("--output", str(stages.folder / "tissue.tsv")),
    ]


def assert_one_line(done, reason):
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 2  # the first is the version and the arguments
    assert re.search(rf"ERROR cannot write .*: {reason}$", lines[1])


def test_full_disk(stages, small_disk):
    done = subprocess.run(command(stages, small_disk), capture_output=True, text=True)
    assert_one_line(done, "No space left on device")
    assert not (stages.folder / "tissue.tsv").exists()
    left = {path.name: path.read_bytes() for path in small_disk.iterdir()}
    assert not [name for name in left if name.startswith(".")]
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    stages.tissue()
    whole = files(small_disk)
    assert len(whole) == 8
    assert left.items() <= whole.items()  # what was visible was whole


def test_folder_that_may_not_be_written_to(stages):
    folder = stages.folder / "tissue"
    folder.mkdir()
    try:
        folder.chmod(0o555)
        if os.access(folder, os.W_OK):  # root may always
            pytest.skip("this user may write anywhere")
        assert_one_line(subprocess.run(command(stages, folder), capture_output=True, text=True), "Permission denied")
    finally:
        folder.chmod(0o755)


def test_read_only_disk(stages, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = subprocess.run(command(stages, small_disk), capture_output=True, text=True)
    assert_one_line(done, "Read-only file system")


def test_tiles_on_a_full_disk_leave_no_half_file(stages, monkeypatch):
    """HDF5 reports a full disk in its own way, on a write or only when the file is closed."""
    stages.tissue()
    folder = stages.folder / "tiles"
    folder.mkdir()
    for size in ("4k", "8k", "12k"):
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("no right to mount a small disk")
        try:
            with pytest.raises(atomic.WriteError, match="No space left on device$"):
                stages.tiles()
            assert not [path for path in folder.iterdir() if path.name.startswith(".")]
        finally:
            subprocess.run(["umount", str(folder)], check=True)


def test_a_full_scratch_folder_does_not_matter(stages, small_disk):
    """Jobs write beside their results and nowhere else: no slide, tile or feature goes through TMPDIR (G-M2)."""
    (small_disk / "filler").write_bytes(bytes(40_000 - 4096))
    environment = {**os.environ, "TMPDIR": str(small_disk)}
    done = subprocess.run(command(stages, stages.folder / "outlines"), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in small_disk.iterdir()] == ["filler"]
