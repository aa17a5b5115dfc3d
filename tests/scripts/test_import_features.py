import json
import pickle
from pathlib import Path

import foreign
import h5py
import numpy as np
import pytest
import torch

import collect_status
import import_features
from isoslide import bags, config, status

ROOT = Path(__file__).resolve().parents[2]
LEAST = {"sheet": "slides.tsv", "encoders": ["mine"]}


def settings(**changes):
    """A block of the configuration's import with the schema's defaults."""
    full = config.complete(LEAST | {"import": {"mine": changes}}, ROOT / "workflow/schemas/config.schema.yaml")
    return full["import"]["mine"]


def run(folder, rows, *more, **changes):
    """Import for a sheet of (scan, specimen, scanner, mpp); return the status table by scan."""
    lines = ["scan\tspecimen\tscanner\tmpp", *("\t".join(row) for row in rows)]
    (folder / "slides.tsv").write_text("\n".join(lines) + "\n")
    changes.setdefault("path", f"{folder}/{{scan}}.h5")
    arguments = ["--sheet", str(folder / "slides.tsv"), "--name", "mine", "--settings", json.dumps(settings(**changes))]
    arguments += ["--results", str(folder / "out"), "--output", str(folder / "mine.tsv"), *more]
    import_features.main(arguments)
    return status.read(folder / "mine.tsv").set_index("scan")


def content(row):
    with h5py.File(row["path"]) as file:
        return {name: file[name][()] for name in file}, dict(file.attrs)


@pytest.mark.parametrize("name", foreign.FORMATS)
def test_every_format_gives_the_same_file(tmp_path, name):
    """Features by place: what was written is what comes out, whatever the format, its order and its unit."""
    features, corners = foreign.tiles()
    suffix = name.partition(".")[2]
    foreign.FORMATS[name](tmp_path / f"s1.{suffix}", features, corners)
    coords = f"{tmp_path}/{{scan}}.h5" if name == "clam.pt" else ""
    table = run(tmp_path, [("s1", "", "A", "0.5")], path=f"{tmp_path}/{{scan}}.{suffix}", coords=coords, tile_um=256)
    assert table.loc["s1", ["status", "n_tiles"]].tolist() == ["ok", "12"]
    assert table.loc["s1", "why_alone"] == "the file has no tile ids"
    arrays, attrs = content(table.loc["s1"])
    assert arrays["features"].dtype == np.float16
    assert arrays["tile_ids"].tolist() == list(range(12))
    per_unit = [attrs["um_per_unit_x"], attrs["um_per_unit_y"]]
    np.testing.assert_allclose(arrays["coords"] * per_unit / 256, corners)
    rounding = 2**-7 if name == "plain.pt" else 2**-10
    np.testing.assert_allclose(arrays["features"], features, rtol=rounding, atol=1e-6)
    loaded = bags.load(tmp_path / "mine.tsv")
    assert (loaded.scans, loaded.dim, loaded.encoder, loaded.references) == (["s1"], 8, "mine", [""])


def test_the_side_follows_from_what_is_known(tmp_path):
    """TRIDENT says it in level-0 px, so µm per pixel give it; and it says µm per pixel where the side is given."""
    foreign.trident(tmp_path / "s1.h5", *foreign.tiles())
    attrs = content(run(tmp_path, [("s1", "", "A", "0.25")]).loc["s1"])[1]
    assert (attrs["tile_um"], attrs["um_per_unit_x"]) == (128, 0.25)
    row = run(tmp_path, [("s1", "", "A", "")], tile_um=128).loc["s1"]
    assert content(row)[1]["um_per_unit_y"] == 0.25
    with h5py.File(row["path"]) as file:
        assert file["coords"].attrs["patch_size_level0"] == 512
    assert "tile_um" not in content(run(tmp_path, [("s1", "", "A", "")]).loc["s1"])[1]


def test_coordinates_in_one_frame_pair_scans(tmp_path):
    """The second scan misses three tiles and has one more; its corners are off by 10 µm: nine places are common."""
    features, corners = foreign.tiles()
    foreign.npz(tmp_path / "a.npz", features, corners)
    rest = np.flatnonzero((corners != corners[0]).any(axis=1))[: len(corners) - 3]
    others = np.concatenate([corners[rest] + 10 / 256, [[30, 30]]])
    foreign.npz(tmp_path / "b.npz", np.concatenate([features[rest], features[:1]]), others)
    rows = [("a", "G", "A", ""), ("b", "G", "B", "")]
    table = run(tmp_path, rows, path=f"{tmp_path}/{{scan}}.npz", pairing="common")
    assert table["n_paired"].tolist() == ["9", "9"]
    loaded = bags.load(tmp_path / "mine.tsv")
    one, other = loaded.common(0, 1)
    assert len(one) == 9
    np.testing.assert_array_equal(loaded.features[one], loaded.features[other])
    near = run(tmp_path, rows, path=f"{tmp_path}/{{scan}}.npz", pairing="common", tolerance_um=10)
    assert near["n_paired"].tolist() == ["0", "0"]  # 14 µm on the diagonal
    assert near.loc["b", "why_alone"] == "no tile within 10 µm of one of a: 14 µm in the median"


def test_registrations_pair_scans(tmp_path):
    """The second scan is turned by a quarter and shifted; the registration says so; the third is not registered."""
    features, corners = foreign.tiles()
    foreign.trident(tmp_path / "a.h5", features, corners)
    turned = np.column_stack([7 - 1 - corners[:, 1], corners[:, 0] + 2])  # tile (x, y) lies at (6 - y, x + 2)
    order = np.random.default_rng(5).permutation(len(turned))
    foreign.trident(tmp_path / "b.h5", features[order], turned[order], side_px=256)
    foreign.trident(tmp_path / "c.h5", features, corners)
    entry = {"status": "ok", "reason": "", "correction": None}
    scans = {
        "a": entry | {"affine": [[1, 0, 0], [0, 1, 0]]},
        "b": entry | {"affine": [[0, -1, 7 * 128], [1, 0, 2 * 128]]},
    }
    scans["c"] = {"status": "not_registered", "reason": "another glass", "affine": None, "correction": None}
    (tmp_path / "G.json").write_text(json.dumps({"reference": "a", "scans": scans}))
    mpps = {"a": 0.25, "b": 0.5, "c": 0.25}
    checks = [{"scan": scan, "status": "ok", "mpp_x": mpp, "mpp_y": mpp} for scan, mpp in mpps.items()]
    status.write(tmp_path / "checks.tsv", checks)
    rows = [(scan, "G", scan.upper(), "") for scan in "abc"]
    more = ["--registrations", str(tmp_path), "--checks", str(tmp_path / "checks.tsv")]
    table = run(tmp_path, rows, *more, pairing="registered", tile_um=128)
    assert table["n_paired"].tolist() == ["12", "12", "0"]
    assert table.loc["c", "why_alone"] == "not registered: another glass"
    loaded = bags.load(tmp_path / "mine.tsv")
    one, other = loaded.common(0, 1)
    np.testing.assert_array_equal(loaded.features[one], loaded.features[other])
    assert len(loaded.common(0, 2)[0]) == 0


def test_our_own_files_come_back_with_their_pairs(tmp_path):
    features, corners = foreign.tiles()
    for scan, paired in (("a", True), ("b", True), ("c", False)):
        foreign.trident(tmp_path / f"{scan}.h5", features, corners)
        with h5py.File(tmp_path / f"{scan}.h5", "a") as file:
            file["tile_ids"] = corners[:, 1] * 1_000_000 + corners[:, 0]
            file.attrs.update(reference="a", paired=paired)
    table = run(tmp_path, [(scan, "G", scan, "0.25") for scan in "abc"])
    assert table["n_paired"].tolist() == ["12", "12", "0"]
    assert table.loc["c", "why_alone"] == "its file says that it is not registered"
    assert content(table.loc["b"])[0]["tile_ids"].max() == 2_000_003


def test_one_scan_by_hand_keeps_its_pairs(tmp_path):
    """The other scans of its specimen count too, as in the job that it is taken from."""
    for scan in "ab":
        foreign.clam(tmp_path / f"{scan}.h5", *foreign.tiles(seed=ord(scan)))
    rows = [("a", "G", "A", "0.25"), ("b", "G", "B", "0.25"), ("c", "H", "B", "0.25")]
    foreign.clam(tmp_path / "c.h5", *foreign.tiles(seed=5))
    table = run(tmp_path, rows, pairing="common", tile_um=128)
    before = content(table.loc["b"])
    again = run(tmp_path, rows, "--scans", "b", pairing="common", tile_um=128)
    assert again.index.tolist() == ["a", "b"]
    after = content(again.loc["b"])
    assert (
        (after[1]["reference"], after[1]["key"])
        == (before[1]["reference"], before[1]["key"])
        == ("a", table.loc["b", "key"])
    )


@pytest.mark.parametrize("name", ["stamp1", "stamp2"])
def test_the_unit_of_coordinates_outlives_a_second_import(tmp_path, name):
    """Files that were imported once keep their unit: µm are not taken for pixels."""
    getattr(foreign, name)(tmp_path / "a.h5", *foreign.tiles())
    first = content(run(tmp_path, [("a", "", "A", "0.25")], tile_um=256.0).loc["a"])
    (tmp_path / "again").mkdir()
    table = run(tmp_path / "again", [("a", "", "A", "0.25")], path=f"{tmp_path}/out/{{scan}}.h5")
    second = content(table.loc["a"])
    for key in ("um_per_unit_x", "um_per_unit_y", "tile_um"):
        assert second[1][key] == first[1][key], key
    np.testing.assert_array_equal(second[0]["coords"], first[0]["coords"])


def write(path, change):
    features, corners = foreign.tiles()
    values = {"features": features, "coords": corners * 512}
    change(values)
    with h5py.File(path, "w") as file:
        for name, value in values.items():
            file[name] = value


def test_a_path_that_the_disk_refuses_is_a_missing_file(tmp_path):
    foreign.clam(tmp_path / "a.h5", *foreign.tiles())
    (tmp_path / "slides.tsv").write_text(f"scan\tscanner\tfile\na\tA\ta\nb\tA\t{'x' * 300}\n")
    arguments = ["--sheet", str(tmp_path / "slides.tsv"), "--name", "mine", "--results", str(tmp_path / "out")]
    arguments += ["--settings", json.dumps(settings(path=f"{tmp_path}/{{file}}.h5"))]
    import_features.main([*arguments, "--output", str(tmp_path / "mine.tsv")])
    assert status.read(tmp_path / "mine.tsv")["status"].tolist() == ["ok", "no_features"]


BAD = {
    "no_features": (None, "no file "),
    "unreadable": (lambda v: v.update(embedding=v.pop("features")), "none of them called features or feats"),
    "wrong_shape": (lambda v: v.update(coords=v["coords"][:5]), r"coords (5, 2) int64 for 12 tiles, where (12, 2)"),
    "wrong_shape ": (lambda v: v.update(features=v["features"][0]), "features (8,) float32, where (tiles, dimension)"),
    "wrong_shape  ": (lambda v: v.update(features=v["features"].astype(int)), "features (12, 8) int64"),
    "wrong_shape   ": (lambda v: v.update(augmented=np.zeros(3, bool)), "augmented (3,) bool for 12 tiles"),
    "unreadable ": (lambda v: v.update(features=h5py.Empty("f4")), "features is no array"),
    "unreadable  ": (lambda v: v.update({"coords/x": v.pop("coords")[:, 0]}), "coords is no array"),
    "zero_tiles ": (lambda v: v.update(augmented=np.ones(12, bool)), "no tiles but augmented ones"),
    "zero_tiles": (lambda v: v.update(features=v["features"][:0], coords=v["coords"][:0]), "no tiles"),
    "duplicate_tiles": (
        lambda v: v["coords"].__setitem__(3, v["coords"][4]),
        "1 of 12 tiles have the coords of another",
    ),
    "non_finite": (
        lambda v: v["features"].__setitem__((3, 1), np.nan),
        "1 of 12 tiles have features that are no finite",
    ),
    "non_finite ": (lambda v: v["features"].__setitem__((7, 1), 1e5), "first tile 7"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_a_status(tmp_path, name):
    change, reason = BAD[name]
    if change:
        write(tmp_path / "bad.h5", change)
    foreign.clam(tmp_path / "good.h5", *foreign.tiles())
    table = run(tmp_path, [("bad", "", "A", ""), ("good", "", "B", "")])
    assert table.loc["good", "status"] == "ok"
    assert table.loc["bad", "status"] == name.strip()
    assert reason in table.loc["bad", "reason"]
    assert not (tmp_path / "out/bad.h5").exists()


def test_damaged_and_evil_files(tmp_path):
    foreign.clam(tmp_path / "cut.h5", *foreign.tiles())
    cut = (tmp_path / "cut.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(cut[: len(cut) // 2])
    (tmp_path / "text.h5").write_text("no features")
    foreign.clam(tmp_path / "good.h5", *foreign.tiles())
    table = run(tmp_path, [("cut", "", "A", ""), ("text", "", "B", ""), ("good", "", "B", "")])
    assert table["status"].to_dict() == {"cut": "unreadable", "text": "unreadable", "good": "ok"}
    (tmp_path / "text.pt").write_bytes(b"hello")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    torch.save(torch.zeros(2, 8), tmp_path / "plain.pt")
    rows = [(scan, "", "A", "") for scan in ("evil", "plain", "text", "empty")]
    table = run(tmp_path, rows, path=f"{tmp_path}/{{scan}}.pt")
    assert table["status"].to_dict() == dict.fromkeys(("empty", "evil", "text"), "unreadable") | {"plain": "ok"}
    assert "damaged, or no .pt file" in table.loc["text", "reason"]
    with open(tmp_path / "bare.npz", "wb") as file:
        np.save(file, np.ones((2, 8)))
    assert run(tmp_path, [("bare", "", "A", "")], path=f"{tmp_path}/{{scan}}.npz").loc["bare", "status"] == "unreadable"
    assert not (tmp_path / "touched").exists()


class Evil:
    def __reduce__(self):
        return (Path("touched").touch, ())


def test_no_match_shows_both_sides(tmp_path):
    """Complaint G-G3."""
    for name in "uvwxyz":
        foreign.clam(tmp_path / f"slide-{name}.h5", *foreign.tiles())
    rows = [(f"s{i}", "", "A", "") for i in range(7)]
    with pytest.raises(SystemExit, match="none of the 7 scans has a file") as error:
        run(tmp_path, rows)
    text = str(error.value)
    assert all(f"{tmp_path}/s{i}.h5" in text for i in range(5))
    assert "s5.h5" not in text
    assert f"{tmp_path}/slide-u.h5" in text
    assert "and 1 more" in text
    with pytest.raises(SystemExit, match="no column 'slide' in the sheet"):
        run(tmp_path, rows, path=f"{tmp_path}/{{slide}}.h5")
    with pytest.raises(SystemExit, match="is one file for all scans"):
        run(tmp_path, rows, path=str(tmp_path))
    with pytest.raises(SystemExit, match="There: no folder"):
        run(tmp_path, rows, path=f"{tmp_path}/absent/{{scan}}.h5")


def test_what_stands_is_kept_and_what_changed_is_made_again(tmp_path):
    features, corners = foreign.tiles()
    foreign.clam(tmp_path / "s1.h5", features, corners)
    first = run(tmp_path, [("s1", "", "A", "")]).loc["s1"]
    time = Path(first["path"]).stat().st_mtime_ns
    assert run(tmp_path, [("s1", "", "A", "")]).loc["s1", "key"] == first["key"]
    assert Path(first["path"]).stat().st_mtime_ns == time
    foreign.clam(tmp_path / "s1.h5", features + 1, corners)
    again = run(tmp_path, [("s1", "", "A", "")]).loc["s1"]
    assert again["key"] != first["key"]
    assert content(again)[0]["features"].mean() > 0.5


def test_two_scans_with_one_file_stop_the_run(tmp_path):
    """They would agree perfectly, whatever the scanners do."""
    foreign.clam(tmp_path / "G.h5", *foreign.tiles())
    foreign.clam(tmp_path / "H.h5", *foreign.tiles(seed=1))
    rows = [("a", "G", "A", ""), ("b", "G", "B", ""), ("c", "H", "A", "")]
    run(tmp_path, rows, path=f"{tmp_path}/{{specimen}}.h5")
    arguments = ["--tables", str(tmp_path / "mine.tsv"), "--stage", "features/mine", "--expect", "3"]
    with pytest.raises(SystemExit, match="some scans have one and the same file"):
        collect_status.main([*arguments, "--on-bad-slide", "skip", "--output", str(tmp_path / "all.tsv")])


def test_real_features_of_stamp(tmp_path, shared):
    """Two slides of TCGA, CTransPath by STAMP 1: tiles of 224 px at 2 µm/px."""
    folder = shared / "data/features-tcga-crc-ctranspath"
    if not folder.is_dir():
        pytest.skip("no real features here")
    names = sorted(path.stem for path in folder.glob("*.h5"))[:2]
    table = run(tmp_path, [(name, "", "A", "") for name in names], path=f"{folder}/{{scan}}.h5", tile_um=448)
    assert table["n_tiles"].astype(int).tolist() == [2318, 2339]
    loaded = bags.load(tmp_path / "mine.tsv")
    assert loaded.features.shape == (4657, 768)
    arrays, attrs = content(table.iloc[0])
    assert attrs["source"] == "stamp"
    assert attrs["um_per_unit_x"] == 2.0
    with h5py.File(folder / f"{names[0]}.h5") as file:
        np.testing.assert_array_equal(file["feats"][()], arrays["features"])
