"""Features in short, against numpy."""

import h5py
import numpy as np
import pytest

from isoslide import status, summaries


def write(folder, n_rows, weights="w", **more):
    """Features files of scans with so many tiles, and their status table."""
    rows = []
    for i, n in enumerate(n_rows):
        scan, path = f"s{i}", folder / f"s{i}.h5"
        with h5py.File(path, "w") as file:
            file["features"] = np.random.default_rng(i).normal(3, 2, size=(n, 4)).astype(np.float16)
            own = weights if i else "w"
            file.attrs.update(encoder="toy", weights_sha256=own, tile_px=224, mpp=0.5, **more)
        rows.append({"scan": scan, "status": "ok", "path": path, "specimen": scan, "scanner": "A"})
    rows.append(status.failed({"scan": "z", "specimen": "z", "scanner": "A"}, "no_tissue", "x"))
    status.write(folder / "features.tsv", rows)
    return folder / "features.tsv"


def test_means_and_variances(tmp_path, monkeypatch):
    monkeypatch.setattr(summaries, "BLOCK_ROWS", 3)
    table = write(tmp_path, (1, 7, 6))
    summaries.write(tmp_path / "s.safetensors", summaries.summarise(table))
    found = summaries.read(tmp_path / "s.safetensors")
    assert found.scans == ["s0", "s1", "s2"]
    assert found.n_tiles.tolist() == [1, 7, 6]
    assert found.origin == {"encoder": "toy", "weights_sha256": "w", "tile_px": 224, "mpp": 0.5}
    for i in range(3):
        with h5py.File(tmp_path / f"s{i}.h5") as file:
            values = file["features"][:].astype(float)
        assert found.means[i] == pytest.approx(values.mean(0), rel=1e-6)
        assert found.variances[i] == pytest.approx(values.var(0), rel=1e-6, abs=1e-9)
    turned = found.of(["s2", "s0"])
    assert turned.scans == ["s2", "s0"]
    assert turned.n_tiles.tolist() == [6, 1]
    assert np.array_equal(turned.means, found.means[[2, 0]])


def test_a_scan_without_tiles_is_left_out(tmp_path):
    assert summaries.summarise(write(tmp_path, (3, 0))).scans == ["s0"]


def test_files_of_two_makers_are_refused_in_one_line(tmp_path):
    with pytest.raises(summaries.SummaryError, match=r"features of scan 's0' come from .*, of 's1' from .*: make one"):
        summaries.summarise(write(tmp_path, (3, 3), weights="other"))
    status.write(tmp_path / "none.tsv", [status.failed({"scan": "a", "specimen": "a", "scanner": "A"}, "bad", "x")])
    with pytest.raises(summaries.SummaryError, match="no scan has features"):
        summaries.summarise(tmp_path / "none.tsv")


def test_files_that_are_gone_or_others_are_refused(tmp_path):
    table = write(tmp_path, (3, 3))
    with h5py.File(tmp_path / "s1.h5", "a") as file:
        file.attrs["key"] = "other"
    with pytest.raises(summaries.SummaryError, match="s1.h5: not the features that the status table means: extract"):
        summaries.summarise(table)
    (tmp_path / "s0.h5").unlink()
    with pytest.raises(summaries.SummaryError, match="no file .*s0.h5: extract the features of scan 's0' again"):
        summaries.summarise(table)
