import errno
import os

import h5py
import numpy as np
import pandas as pd
import pytest

from isoslide import atomic


def test_nothing_is_visible_until_the_block_ends(tmp_path):
    path = tmp_path / "new" / "a.tsv"
    with atomic.output(path) as temporary:
        temporary.write_text("whole")
        assert temporary.suffix == ".tsv"
        assert not path.exists()
    assert path.read_text() == "whole"
    assert [file.name for file in path.parent.iterdir()] == ["a.tsv"]


def test_an_error_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def half_written():
        with atomic.output(path) as temporary:
            temporary.write_text("half")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        half_written()
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_mode_follows_the_umask_and_long_names_fit(tmp_path):
    path = tmp_path / ("é" * 100 + ".txt")
    atomic.write_text(path, "x")
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_tables_are_deterministic(tmp_path):
    atomic.write_table(tmp_path / "a.tsv", pd.DataFrame({"x": [1 / 3, None], "y": ["a", ""]}))
    assert (tmp_path / "a.tsv").read_text() == "x\ty\n0.333333\ta\n\t\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_disk_that_refuses_is_said_in_one_line_and_leaves_nothing(tmp_path, number):
    """Complaint G-M2."""

    def refused():
        with atomic.output(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise OSError(number, os.strerror(number))

    with pytest.raises(atomic.WriteError) as error:
        refused()
    assert str(error.value) == f"cannot write {tmp_path}/a.txt: {os.strerror(number)}"
    assert not list(tmp_path.iterdir())


def test_hdf5_says_it_in_its_own_way(tmp_path):
    def refused():
        with atomic.output(tmp_path / "a.h5"):
            raise RuntimeError(f"Problems closing file (file write failed: x\n, errno = {errno.ENOSPC}, error message)")

    with pytest.raises(atomic.WriteError, match="a.h5: No space left on device$"):
        refused()


def test_other_errors_are_not_taken_for_the_disks(tmp_path):
    def cut_short():
        with atomic.output(tmp_path / "a.h5"):
            (tmp_path / "b.h5").write_text("text")
            h5py.File(tmp_path / "b.h5", "r")

    with pytest.raises(OSError, match="signature") as error:
        cut_short()
    assert not isinstance(error.value, atomic.WriteError)


def test_sweep_removes_only_old_rests(tmp_path):
    def killed():
        with atomic.output(tmp_path / "a b.h5") as temporary:
            temporary.write_text("half")
            os.link(temporary, tmp_path / "kept")  # the temporary name is removed, so keep its content
            names.append(temporary.name)

    names = []
    killed()
    rest = tmp_path / names[0]
    os.rename(tmp_path / "kept", rest)
    for name in (".hidden.h5", ".a.tmp", "a.12345678.tmp.h5"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    atomic.sweep(tmp_path)
    assert rest.exists()  # of a job that may be alive
    os.utime(rest, (0, 0))
    atomic.sweep(tmp_path)
    assert not rest.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.tmp", ".hidden.h5", "a b.h5", "a.12345678.tmp.h5"]
    atomic.sweep(tmp_path / "absent")


def test_a_file_that_is_not_there_after_its_renaming_fails_the_job(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic.os, "replace", lambda source, target: None)
    with pytest.raises(FileNotFoundError, match="table.tsv"), atomic.output(tmp_path / "table.tsv") as temporary:
        temporary.write_text("x")


def test_a_folder_is_whole_or_absent(tmp_path):
    with atomic.folder(tmp_path / "new/f") as temporary:
        (temporary / "a.txt").write_text("a")
        assert not (tmp_path / "new/f").exists()
    assert (tmp_path / "new/f/a.txt").read_text() == "a"

    def fail():
        with atomic.folder(tmp_path / "g") as temporary:
            (temporary / "a.txt").write_text("a")
            raise OSError(errno.ENOSPC, "no space")

    with pytest.raises(atomic.WriteError, match=r"cannot write .*/g: No space left on device"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_digits_of_a_table(tmp_path):
    """Two probabilities close to 1 are ties with six digits, and in order with twelve."""
    table = pd.DataFrame({"p": 1 / (1 + np.exp([-14.0, -14.001]))})
    for digits, n in ((6, 1), (12, 2)):
        atomic.write_table(tmp_path / "t.tsv", table, digits)
        read = pd.read_csv(tmp_path / "t.tsv", sep="\t")["p"]
        assert read.nunique() == n
        assert read.is_monotonic_increasing
