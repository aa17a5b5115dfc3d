import os

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
