"""Copies of slides on a local disk: whole, bounded, shared, and never in the way."""

import logging
import multiprocessing
import os
import signal
import time

import pytest

from isoslide import staging
from isoslide.staging import Staging

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def slides(tmp_path):
    """Five slides of 300 kB each."""
    paths = [tmp_path / f"s{i}.svs" for i in range(5)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]) * 300_000)
    return paths


def copies(folder):
    return sorted(path.name for path in folder.rglob("*.svs"))


def test_a_copy_is_made_once_and_equals_the_slide(slides, tmp_path):
    stage = Staging(str(tmp_path / "local"), 1)
    with stage.copy(slides[0]) as path:
        assert path != slides[0]
        assert path.read_bytes() == slides[0].read_bytes()
        inode = path.stat().st_ino
    with stage.copy(slides[0]) as path:
        assert path.stat().st_ino == inode
    slides[0].write_bytes(b"another slide")
    with stage.copy(slides[0]) as path:
        assert path.read_bytes() == b"another slide"


def test_slides_of_one_name_are_told_apart(tmp_path):
    stage = Staging(str(tmp_path / "local"), 1)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "s.svs").write_text(name)
    with stage.copy(tmp_path / "one/s.svs") as one, stage.copy(tmp_path / "two/s.svs") as two:
        assert (one.read_text(), two.read_text()) == ("one", "two")


def test_the_least_recently_used_copies_make_room(slides, tmp_path):
    stage = Staging(str(tmp_path / "local"), 0.00095)  # three slides
    for path in (*slides[:3], slides[0], slides[3]):
        with stage.copy(path) as copy:
            assert copy != path
        time.sleep(0.02)
    assert copies(tmp_path / "local") == ["s0.svs", "s2.svs", "s3.svs"]


def test_a_copy_that_is_read_stays(slides, tmp_path):
    stage = Staging(str(tmp_path / "local"), 0.00035)  # one slide
    with stage.copy(slides[0]) as first, stage.copy(slides[1]) as second:
        assert first.exists()
        assert second == slides[1]
    with stage.copy(slides[1]) as second:
        assert second != slides[1]
    assert copies(tmp_path / "local") == ["s1.svs"]


def test_a_slide_larger_than_the_limit_or_the_disk_is_read_in_place(slides, tmp_path, monkeypatch, caplog):
    with Staging(str(tmp_path / "local"), 0.0001).copy(slides[0]) as path:
        assert path == slides[0]
    monkeypatch.setattr(staging, "SPARE", 2**60)
    with caplog.at_level(logging.WARNING), Staging(str(tmp_path / "local"), 1).copy(slides[0]) as path:
        assert path == slides[0]
    assert "is read where it is: no room for its 0.0 GB" in caplog.text


def test_slides_of_several_files(tmp_path):
    folder = tmp_path / "dicom"
    folder.mkdir()
    for name in ("a.dcm", "b.dcm"):
        (folder / name).write_text(name)
    (tmp_path / "m").mkdir()
    (tmp_path / "m/Slidedat.ini").write_text("x")
    (tmp_path / "m.mrxs").write_text("")
    stage = Staging(str(tmp_path / "local"), 1)
    with stage.copy(folder) as path:
        assert sorted(file.name for file in path.glob("*.dcm")) == ["a.dcm", "b.dcm"]
    with stage.copy(folder / "a.dcm") as path:
        assert (path.name, path.with_name("b.dcm").exists()) == ("a.dcm", True)
    with stage.copy(tmp_path / "m.mrxs") as path:
        assert (path.with_suffix("") / "Slidedat.ini").read_text() == "x"


def test_what_cannot_be_copied_is_read_in_place(tmp_path):
    stage = Staging(str(tmp_path / "local"), 1)
    (tmp_path / "s.vms").write_text("names other files")
    for name in ("s.vms", "gone.svs"):
        with stage.copy(tmp_path / name) as path:
            assert path == tmp_path / name


def test_copying_that_fails_half_way_leaves_nothing(slides, tmp_path, monkeypatch, caplog):
    def full(source, target):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(staging.shutil, "copy2", full)
    with caplog.at_level(logging.WARNING), Staging(str(tmp_path / "local"), 1).copy(slides[0]) as path:
        assert path == slides[0]
    assert "copying failed: No space left on device" in caplog.text
    assert not copies(tmp_path / "local")


def test_a_job_killed_while_copying(slides, tmp_path, monkeypatch):
    """Its lock ends with it and its half copy goes."""
    stage = Staging(str(tmp_path / "local"), 1)

    def copy_and_die(source, target):
        target.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    def work():
        monkeypatch.setattr(staging.shutil, "copy2", copy_and_die)
        with stage.copy(slides[0]):
            pass

    process = FORK.Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert copies(tmp_path / "local") == ["s0.svs"]
    with stage.copy(slides[0]) as path:
        assert path.read_bytes() == slides[0].read_bytes()
    assert copies(tmp_path / "local") == ["s0.svs"]


def test_jobs_at_the_same_slides(slides, tmp_path):
    def work(seed):
        stage = Staging(str(tmp_path / "local"), 0.00065)  # two slides
        for i in range(40):
            path = slides[(seed + i * 3) % 5]
            with stage.copy(path) as copy:
                if copy.read_bytes() != path.read_bytes():
                    os._exit(1)

    processes = [FORK.Process(target=work, args=(seed,)) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(copies(tmp_path / "local")) <= 2


def test_folder_that_cannot_be_used(tmp_path, monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises(staging.StagingError, match=r"'\$NOWHERE/x': a variable is not set"):
        Staging("$NOWHERE/x", 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(staging.StagingError, match="Not a directory: name a local disk"):
        Staging(str(tmp_path / "file"), 1)
    monkeypatch.setenv("SOMEWHERE", str(tmp_path))
    Staging("$SOMEWHERE/local", 1)
    assert (tmp_path / "local").is_dir()


def test_dicom_files_come_along_whatever_their_names(tmp_path):
    """OpenSlide finds the levels of a DICOM slide by what files hold, not by how they are called."""
    folder = tmp_path / "dicom"
    folder.mkdir()
    names = {"A.DCM", "b.dcm", "level2", "1.2.840.113"}
    for name in (*names, "other.svs"):
        (folder / name).write_text(name)
    assert staging.parts(tmp_path / "gone/a.dcm") == []
    for path in (folder, folder / "A.DCM", folder / "b.dcm"):
        assert {file.name for file in staging.parts(path)} == names
        with staging.Staging(str(tmp_path / "fast"), 1).copy(path) as copy:
            place = copy if copy.is_dir() else copy.parent
            assert copy.exists()
            assert {file.name for file in place.iterdir()} - {staging.LOCK} == names
