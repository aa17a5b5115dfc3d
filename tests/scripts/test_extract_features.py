import json
import shutil
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import synth
import torch
import yaml

import extract_features
from isoslide import extraction, grid, status
from isoslide.slide import Slide
from isoslide.tile_encoder import TileEncoder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """A slide with six tiles, one of them outside; the tables of its batch; a second scan that has no tissue."""
    folder = tmp_path_factory.mktemp("batch")
    path = synth.slide(folder / "a.tif")
    turn = np.array([[0.0, -1, 900], [1, 0, 100]])  # a quarter turn, as a registration gives it
    ids = np.array([0, 1, 2, grid.ROW, grid.ROW + 1, grid.ROW + 2])
    corners = np.column_stack([ids % grid.ROW, ids // grid.ROW]) * 112.0 + 200
    corners[5] = [5000, 5000]
    tiles = grid.Tiles(
        coords=grid.level0_corners(corners, 112, turn, (0.5, 0.5)),
        tile_ids=ids,
        out_of_bounds=grid.outside(corners, 112, turn, (1200, 1000)),
        corners_um=corners,
        affine=turn,
        attrs={"tile_px": 224, "mpp": 0.5, "mpp_x": 0.5, "mpp_y": 0.5, "reference": "r", "paired": True, "scan": "a"},
    )
    grid.write(folder / "tiles/a.h5", tiles, (2400, 2000))
    known = {"specimen": "G", "scanner": "A"}
    check = {"scan": "a", "status": "ok", "path": str(path), "key": "c", "mpp_x": 0.5, "mpp_y": 0.5}
    check |= known | {"width": 2400, "height": 2000}
    row = {"scan": "a", "status": "ok", "n_tiles": 5, "path": str(folder / "tiles/a.h5")} | known
    row["key"] = grid.row_key("c", tiles)
    lost = {"scan": "b", "status": "no_tissue", "reason": "blank"} | known
    status.write(folder / "checks.tsv", [check])
    status.write(folder / "tiles.tsv", [row, lost])
    return folder


def test_features_of_another_precision_do_not_stand(batch, tmp_path, monkeypatch):
    """A cohort encoded on a CPU and then on a GPU is not a mixture of float32 and bfloat16."""
    before = run(batch, tmp_path).loc["a", "key"]
    monkeypatch.setattr(TileEncoder, "precision", "bfloat16")
    assert run(batch, tmp_path).loc["a", "key"] != before


@pytest.mark.parametrize("gone", [True, False])
def test_tiles_that_the_table_does_not_mean_are_not_encoded(batch, tmp_path, gone):
    """A command run by hand with other settings writes other tiles to the same place."""
    shutil.copytree(batch, tmp_path / "batch")
    table = status.read(batch / "tiles.tsv").assign(path=str(tmp_path / "batch/tiles/a.h5"))
    status.write(tmp_path / "batch/tiles.tsv", table.to_dict("records"))
    assert run(tmp_path / "batch", tmp_path).loc["a", "status"] == "ok"
    if gone:
        (tmp_path / "batch/tiles/a.h5").unlink()
    else:
        with h5py.File(tmp_path / "batch/tiles/a.h5", "a") as file:
            file["corners_um"][0] += 1
    run(tmp_path / "batch", tmp_path)  # what is there stands
    (tmp_path / "a.h5").unlink()
    message = "no file .*a.h5" if gone else "are not those of its row"
    with pytest.raises(SystemExit, match=f"error: scan 'a': .*{message}.*: snakemake -R tile_scans"):
        run(tmp_path / "batch", tmp_path)


def run(batch, folder, *more):
    output = folder / "features.tsv"
    arguments = [
        f"--checks={batch}/checks.tsv",
        f"--tiles={batch}/tiles.tsv",
        f"--registry={ROOT}/resources/encoders.yaml",
    ]
    arguments += ["--encoder=efficientnet_lite0", "--weights=unused", f"--results={folder}", f"--output={output}"]
    extract_features.main([*arguments, *more])
    return status.read(output).set_index("scan")


def test_features_are_those_of_the_tiles_one_by_one(batch, tmp_path):
    table = run(batch, tmp_path)
    assert table.loc["a", "n_tiles"] == "5"
    assert table.loc["b", ["status", "reason", "scanner"]].tolist() == ["no_tissue", "blank", "A"]
    with h5py.File(table.loc["a", "path"]) as file:
        values, ids, attrs = file["features"][()], file["tile_ids"][()], dict(file.attrs)
        assert file["coords"].attrs["patch_size_level0"] == 224
    assert values.dtype == np.float16
    assert ids.tolist() == [0, 1, 2, grid.ROW, grid.ROW + 1]
    assert attrs["reference"] == "r"
    assert attrs["n_out_of_bounds"] == 1
    encoder = TileEncoder(encoders_entry(), "unused")
    with Slide(batch / "a.tif") as slide:
        # Tile 1 begins at (312, 200) µm of the reference, which the turn carries to (900 - 200, 100 + 312).
        image = slide.read(np.array([[0, -0.5, 700], [0.5, 0, 412]]), (224, 224))
    expected = encoder(torch.from_numpy(image)[None])[0].numpy()
    np.testing.assert_allclose(values[1], expected, atol=2e-3, rtol=2e-3)


def test_batch_size_and_threads_do_not_matter(batch, tmp_path):
    """Complaint F3: the stated tolerance of docs/features.md; the batch stands in the file."""
    one = content(run(batch, tmp_path / "1", "--batch-size=1"))
    many = content(run(batch, tmp_path / "2", "--batch-size=5", "--threads=2"))
    a, b = (values["features"].astype(float) for values, _ in (one, many))
    cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    print(f"batch 1 and 5: least cosine {cosine.min():.7f}, largest difference {np.abs(a - b).max():.2e}")
    assert cosine.min() > 0.9999
    assert np.abs(a - b).max() < 2e-3 * np.abs(a).max()
    assert [attrs["batch"] for _, attrs in (one, many)] == [1, 5]
    assert many[1]["precision"] == "float32"


def content(table):
    with h5py.File(table.loc["a", "path"]) as file:
        return {name: file[name][()] for name in file}, dict(file.attrs)


def test_short_memory_halves_the_batch(batch, tmp_path, monkeypatch):
    """A device that holds two tiles: the features are those of other batches, and the batch is recorded."""
    expected = content(run(batch, tmp_path / "1", "--batch-size=2"))
    plain = TileEncoder.__call__

    def small(self, tiles):
        if len(tiles) > 2:
            raise torch.OutOfMemoryError
        return plain(self, tiles)

    monkeypatch.setattr(TileEncoder, "__call__", small)
    found = content(run(batch, tmp_path / "2", "--batch-size=5", f"--speed={tmp_path}/speed.json"))
    np.testing.assert_array_equal(found[0]["features"], expected[0]["features"])
    assert found[1]["batch"] == 2
    assert json.loads((tmp_path / "speed.json").read_text())["batch"] == 2
    monkeypatch.setattr(TileEncoder, "__call__", lambda self, tiles: raise_(torch.OutOfMemoryError))
    with pytest.raises(torch.OutOfMemoryError):
        run(batch, tmp_path / "3")


def raise_(error):
    raise error


@pytest.mark.parametrize(("seconds", "bound"), [(0.1, "reading"), (0, "the model")])
def test_a_slow_reader_is_told_from_a_slow_model(batch, tmp_path, monkeypatch, capsys, seconds, bound):
    """Complaint F2: 100 ms a tile are the reader's, and the log and the record say so."""
    plain = Slide.read_tiles

    def slow(self, affines, tile_px, out=None):
        time.sleep(seconds * len(affines))
        return plain(self, affines, tile_px, out)

    def encode(self, tiles):
        time.sleep(0.05)
        return torch.zeros(len(tiles), 1280)

    monkeypatch.setattr(Slide, "read_tiles", slow)
    monkeypatch.setattr(TileEncoder, "__call__", encode)
    monkeypatch.setattr(extraction, "BLOCK", 1)  # runs of a batch, so that there is more than the first
    run(batch, tmp_path, "--batch-size=1", f"--speed={tmp_path}/speed.json")
    assert f"bound by {bound}" in capsys.readouterr().err
    facts = json.loads((tmp_path / "speed.json").read_text())
    assert facts["bound_by"] == bound
    assert facts["tiles"] == 5
    assert facts["seconds_model"] >= 0.25
    assert facts["peak_memory_mb"] > 100
    assert {"device", "name", "uuid", "batch", "threads", "precision", "seconds_waiting"} <= set(facts)


def test_scans_are_read_while_others_are_encoded(batch, tmp_path, monkeypatch):
    """The encoder waits until the second scan is being read: it would wait for ever if reading waited for it."""
    check, row = (status.read(batch / f"{stage}.tsv").to_dict("records")[0] for stage in ("checks", "tiles"))
    folder = tmp_path / "batch"
    absent = {"scan": "c", "path": str(batch / "absent.tif")}
    status.write(folder / "checks.tsv", [*(check | {"scan": name} for name in "abd"), check | absent])
    status.write(folder / "tiles.tsv", [row | {"scan": name} for name in "abcd"])
    second = threading.Event()
    read, encode = extraction.ScanTiles.read, TileEncoder.__call__

    def noted_read(self, *span):
        if self.row["scan"] == "b":
            second.set()
        return read(self, *span)

    def patient_encode(self, tiles):
        assert second.wait(60)
        return encode(self, tiles)

    monkeypatch.setattr(extraction.ScanTiles, "read", noted_read)
    monkeypatch.setattr(TileEncoder, "__call__", patient_encode)
    table = run(folder, tmp_path / "out", "--batch-size=8")
    assert table["status"].tolist() == ["ok", "ok", "missing", "ok"]
    files = [content(table.loc[[name]].rename(index={name: "a"}))[0]["features"] for name in "abd"]
    np.testing.assert_array_equal(files[0], files[1])
    np.testing.assert_array_equal(files[0], files[2])


def test_the_order_of_reading_does_not_show(batch, tmp_path, monkeypatch):
    rows = run(batch, tmp_path / "1")
    monkeypatch.setattr(extraction, "BLOCK", 2)
    assert extraction._reading_order(np.array([0, 1, 2, grid.ROW, grid.ROW + 1])).tolist() == [0, 1, 3, 4, 2]
    blocks = run(batch, tmp_path / "2", "--batch-size=2")
    with h5py.File(rows.loc["a", "path"]) as a, h5py.File(blocks.loc["a", "path"]) as b:
        np.testing.assert_array_equal(a["tile_ids"], b["tile_ids"])
        np.testing.assert_allclose(a["features"][()], b["features"][()], atol=2e-3, rtol=2e-3)


def test_another_way_of_reading_makes_features_again(batch, tmp_path):
    first = run(batch, tmp_path).loc["a", "key"]
    same = run(batch, tmp_path, '--reading={"icc": "ignore", "downsampling": "fast"}').loc["a", "key"]
    other = run(batch, tmp_path, '--reading={"downsampling": "exact"}').loc["a", "key"]
    assert first == same != other


def test_a_damaged_tile_is_the_scans_status(batch, tmp_path):
    checks = status.read(batch / "checks.tsv")
    path = tmp_path / "bad.tif"
    with Slide(checks.loc[0, "path"]) as slide:
        layout = slide._stored.levels[0].layout
    data = bytearray(Path(checks.loc[0, "path"]).read_bytes())
    index = 900 // 256 * layout.columns + 1300 // 256  # the turn carries tile 1 to (1400, 824) px
    data[layout.offsets[index] : layout.offsets[index] + layout.lengths[index]] = bytes(layout.lengths[index])
    path.write_bytes(data)
    folder = tmp_path / "batch"
    status.write(folder / "checks.tsv", checks.assign(path=str(path)).to_dict("records"))
    status.write(folder / "tiles.tsv", status.read(batch / "tiles.tsv").to_dict("records"))
    row = run(folder, tmp_path / "out", "--threads=2").loc["a"]
    assert row["status"] == "partly_unreadable"
    assert "no JPEG start marker" in row["reason"]
    assert "level-0 px (1280, 768)" in row["reason"]
    assert not (tmp_path / "out/a.h5").exists()


def test_what_stands_is_kept_and_what_is_damaged_is_made_again(batch, tmp_path):
    path = Path(run(batch, tmp_path).loc["a", "path"])
    good, time = path.read_bytes(), path.stat().st_mtime_ns
    run(batch, tmp_path)
    assert path.stat().st_mtime_ns == time
    path.write_bytes(good[: len(good) // 2])
    run(batch, tmp_path)
    assert path.read_bytes() == good


def test_non_finite_features_are_a_status(batch, tmp_path, monkeypatch):
    """Complaint G-D3."""
    monkeypatch.setattr(TileEncoder, "__call__", lambda self, tiles: torch.full((len(tiles), 1280), torch.nan))
    table = run(batch, tmp_path)
    assert table.loc["a", "status"] == "non_finite"
    assert "5 of 5 tiles" in table.loc["a", "reason"]
    assert not (tmp_path / "a.h5").exists()


def test_a_gpu_that_is_not_there_is_said_at_once(batch, tmp_path, monkeypatch):
    monkeypatch.setattr("isoslide.device.list_gpus", lambda environment: {})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(SystemExit, match="no GPU on this machine"):
        run(batch, tmp_path, "--device=cuda")


def encoders_entry():
    from isoslide import registry

    return registry.load(ROOT / "resources/encoders.yaml")["efficientnet_lite0"]


def test_normalised_tiles_have_features_of_their_own(batch, tmp_path):
    """The same scan, tiles and encoder; a scan of empty glass has no stain and is given up by name."""
    plain = run(batch, tmp_path / "plain")
    table = run(batch, tmp_path / "stained", "--encoder=efficientnet_lite0+reinhard")
    with h5py.File(plain.loc["a", "path"]) as one, h5py.File(table.loc["a", "path"]) as other:
        assert (one["tile_ids"][:] == other["tile_ids"][:]).all()
        assert np.abs(one["features"][:].astype(float) - other["features"][:]).max() > 0.1
        assert other.attrs["encoder"] == "efficientnet_lite0+reinhard"
    assert table.loc["a", "key"] != plain.loc["a", "key"]
    again = (tmp_path / "stained/a.h5").stat().st_mtime_ns
    run(batch, tmp_path / "stained", "--encoder=efficientnet_lite0+reinhard")
    assert (tmp_path / "stained/a.h5").stat().st_mtime_ns == again


def test_a_scan_without_stain_is_a_row(batch, tmp_path, monkeypatch):
    monkeypatch.setattr("isoslide.stains.FEWEST_PIXELS", 10**9)
    table = run(batch, tmp_path, "--encoder=efficientnet_lite0+macenko")
    assert table.loc["a", "status"] == "no_stain"
    assert table.loc["a", "reason"].startswith("macenko: ")


def test_slides_are_read_from_copies_where_that_is_wanted(batch, tmp_path):
    plain = run(batch, tmp_path / "plain")
    block = json.dumps({"folder": str(tmp_path / "local"), "limit_gb": 1})
    staged = run(batch, tmp_path / "staged", "--staging", block)
    assert [path.name for path in (tmp_path / "local").rglob("*.tif")] == ["a.tif"]
    assert staged["key"].tolist() == plain["key"].tolist()
    with h5py.File(plain.loc["a", "path"]) as one, h5py.File(staged.loc["a", "path"]) as other:
        assert (one["features"][()] == other["features"][()]).all()


def test_a_staging_folder_that_is_none_is_one_line(batch, tmp_path):
    with pytest.raises(SystemExit, match="a variable is not set on this machine"):
        run(batch, tmp_path, "--staging", json.dumps({"folder": "$ISOSLIDE_NOT_SET/x", "limit_gb": 1}))


def test_encoders_that_share_their_tiles(batch, tmp_path, monkeypatch):
    """The same features and keys as alone, every tile read once, rows of both, and only what is missing is made."""
    entries = yaml.safe_load((ROOT / "resources/encoders.yaml").read_text())
    lite = entries["efficientnet_lite0"]
    entries = {"one": lite, "two": lite | {"mean": [0.4, 0.5, 0.6]}}
    (tmp_path / "encoders.yaml").write_text(yaml.safe_dump(entries))
    alone = {}
    for name in entries:
        more = [f"--registry={tmp_path}/encoders.yaml", f"--encoder={name}"]
        alone[name] = run(batch, tmp_path / "alone" / name, *more).loc["a"]
        assert "encoder" not in alone[name]
    read, n_read = extraction.ScanTiles.read, []

    def counted(self, start, stop):
        images = read(self, start, stop)
        n_read.append(len(images))
        return images

    monkeypatch.setattr(extraction.ScanTiles, "read", counted)
    folders = [str(tmp_path / "together" / name) for name in entries]
    together = [f"--registry={tmp_path}/encoders.yaml", "--encoder", *entries, "--results", *folders]
    table = run(batch, tmp_path, *together)
    assert sum(n_read) == 5
    assert table.loc["a", "encoder"].tolist() == ["one", "two"]
    assert table.loc["b", "status"].tolist() == ["no_tissue", "no_tissue"]
    values = []
    for row in table.loc["a"].to_dict("records"):
        assert row["key"] == alone[row["encoder"]]["key"]
        with h5py.File(row["path"]) as one, h5py.File(alone[row["encoder"]]["path"]) as other:
            values.append(one["features"][()])
            assert (values[-1] == other["features"][()]).all()
            assert one.attrs["encoder"] == row["encoder"]
    assert (values[0] != values[1]).any()
    Path(folders[1], "a.h5").unlink()
    calls = []
    monkeypatch.setattr(
        TileEncoder, "__call__", lambda self, images: calls.append(self.entry.id) or torch.ones(len(images), 1280)
    )
    run(batch, tmp_path, *together)
    assert set(calls) == {"two"}


def test_encoders_that_share_their_tiles_have_one_stain_and_a_folder_each(batch, tmp_path):
    with pytest.raises(SystemExit, match="have one stain for all"):
        run(batch, tmp_path, "--encoder", "efficientnet_lite0", "efficientnet_lite0+macenko", "--results", "x", "y")
    with pytest.raises(SystemExit, match="2"):
        run(batch, tmp_path, "--encoder", "efficientnet_lite0", "efficientnet_lite0")
