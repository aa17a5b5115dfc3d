import io

import h5py
import numpy as np
import pytest
import torch

from isoslide import bags, status, stored_features


def write(folder, scan, tile_ids, dim=4, reference="r", paired=True, encoder="e", value=None):
    path = folder / f"{scan}.h5"
    features = np.array(tile_ids, dtype=np.float16)[:, None] + np.arange(dim, dtype=np.float16) / 8
    with h5py.File(path, "w") as file:
        file["features"] = features if value is None else np.full_like(features, value)
        file["tile_ids"] = np.array(tile_ids, dtype=np.int64)
        file.attrs.update(reference=reference, paired=paired, encoder=encoder)
    return {"scan": scan, "status": "ok", "reason": "", "n_tiles": len(tile_ids), "path": path, "key": f"key-{scan}"}


def load(folder, rows, **kwargs):
    status.write(folder / "table.tsv", rows)
    return bags.load(folder / "table.tsv", **kwargs)


def test_scans_are_packed_in_order_of_their_tiles(tmp_path):
    rows = [write(tmp_path, "b", [5, 1, 3]), write(tmp_path, "a", [2])]
    packed = load(tmp_path, rows)
    assert packed.scans == ["a", "b"]
    assert packed.offsets.tolist() == [0, 1, 4]
    assert packed.tile_ids.tolist() == [2, 1, 3, 5]
    assert packed.features[:, 0].tolist() == [2, 1, 3, 5]
    assert packed.features.dtype == np.float32
    assert packed.rows(1).tolist() == [1, 2, 3]
    assert (packed.size(0), packed.dim, packed.keys, packed.encoder) == (1, 4, ["key-a", "key-b"], "e")


def test_common_tiles_of_two_scans(tmp_path):
    packed = load(tmp_path, [write(tmp_path, "a", [0, 1, 4, 7]), write(tmp_path, "b", [7, 1, 2])])
    one, other = packed.common(0, 1)
    assert packed.tile_ids[one].tolist() == packed.tile_ids[other].tolist() == [1, 7]
    assert packed.common(1, 0)[0].tolist() == other.tolist()


def test_scans_on_different_grids_have_no_tiles_in_common(tmp_path):
    rows = [
        write(tmp_path, "a", [0, 1]),
        write(tmp_path, "b", [0, 1], reference="other"),
        write(tmp_path, "c", [0, 1], paired=False),
    ]
    packed = load(tmp_path, rows)
    assert all(len(packed.common(0, i)[0]) == 0 for i in (1, 2))


def test_bad_and_empty_and_unasked_scans_are_absent(tmp_path):
    rows = [write(tmp_path, "a", [0]), write(tmp_path, "b", []), write(tmp_path, "c", [1])]
    rows.append({"scan": "d", "status": "no_tissue", "reason": "none", "n_tiles": "", "path": "", "key": ""})
    assert load(tmp_path, rows).scans == ["a", "c"]
    assert load(tmp_path, rows, scans=["c", "d"]).scans == ["c"]
    with pytest.raises(bags.BagError, match="no scan has features"):
        load(tmp_path, rows, scans=["d"])


def test_large_features_stay_float16(tmp_path, monkeypatch):
    monkeypatch.setattr(bags, "FLOAT32_LIMIT", 8)
    assert load(tmp_path, [write(tmp_path, "a", [0])]).features.dtype == np.float16


def test_files_that_the_table_does_not_mean_are_refused(tmp_path):
    row = write(tmp_path, "a", [0, 1])
    with h5py.File(row["path"], "a") as file:
        file.attrs["key"] = row["key"]
    assert load(tmp_path, [row]).scans == ["a"]
    with pytest.raises(bags.BagError, match="a.h5: not the features that the status table means: extract .* 'a' again"):
        load(tmp_path, [row | {"key": "other"}])
    row["path"].unlink()
    with pytest.raises(bags.BagError, match="no file .*a.h5: extract the features of scan 'a' again"):
        load(tmp_path, [row])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"dim": 3}, "dim is 4"), ({"encoder": "f"}, "encoder is 'e'"), ({"value": np.nan}, "not finite")],
)
def test_features_that_do_not_fit_together_are_refused(tmp_path, change, message):
    with pytest.raises(bags.BagError, match=message):
        load(tmp_path, [write(tmp_path, "a", [0, 1]), write(tmp_path, "b", [0, 1], **change)])


def test_repeated_tile_is_refused(tmp_path):
    with pytest.raises(bags.BagError, match="stands twice"):
        load(tmp_path, [write(tmp_path, "a", [1, 1])])


def chunked(folder, scan, tile_ids):
    """The same file as of `write`, compressed: its rows do not lie in one piece."""
    row = write(folder, scan, tile_ids)
    with h5py.File(row["path"], "r+") as file:
        features = file["features"][:]
        del file["features"]
        file.create_dataset("features", data=features, chunks=(1, 4), compression="gzip")
    return row


def test_features_that_stay_in_their_files_are_the_same(tmp_path):
    """Whole and compressed files, sorted and not, float32 too: any rows are what is read into memory."""
    rows = [write(tmp_path, "a", [2]), write(tmp_path, "b", [5, 1, 3]), chunked(tmp_path, "c", [4, 0, 9, 7])]
    rows.append(write(tmp_path, "d", list(range(50))))
    with h5py.File(rows[0]["path"], "r+") as file:
        features = file["features"][:].astype(np.float32)
        del file["features"]
        file["features"] = features
    whole, stored = load(tmp_path, rows), load(tmp_path, rows, memory_gb=0)
    assert isinstance(whole.features, np.ndarray)
    assert isinstance(stored.features, bags.Stored)
    assert stored.features.shape == whole.features.shape == (58, 4)
    assert (whole.dim, stored.dim) == (4, 4)
    rng = np.random.default_rng(0)
    for index in (np.arange(58), rng.integers(58, size=200), np.array([57, 0, 57]), np.array([], dtype=int)):
        drawn = stored.tensor()[torch.from_numpy(index)]
        assert drawn.dtype == torch.float16
        assert torch.equal(drawn.float(), whole.tensor()[torch.from_numpy(index)])
    for name in ("scans", "keys", "references", "encoder"):
        assert getattr(stored, name) == getattr(whole, name)
    assert (stored.tile_ids == whole.tile_ids).all()


def test_our_own_files_lie_in_one_piece(tmp_path):
    """As extract_features.py writes them: by way of a file in memory."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset("features", data=np.ones((700, 5), dtype=np.float16))
    (tmp_path / "a.h5").write_bytes(buffer.getvalue())
    with h5py.File(tmp_path / "a.h5") as file:
        assert stored_features.locate(file, np.arange(700)).offset > 0


def test_few_pairs_are_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(bags, "COMMON_PAIRS", 2)
    packed = load(tmp_path, [write(tmp_path, name, [0, 1, int(ord(name))]) for name in "abcd"])
    for one, other in ((0, 1), (1, 2), (2, 3), (0, 1)):
        assert packed.tile_ids[packed.common(one, other)[0]].tolist() == [0, 1]
        assert len(packed._common) <= 2
