import fcntl
import json

import cv2
import h5py
import numpy as np
import pytest
import stages
import synth

import segment_tissue
import tile_scans
from isoslide import checks, geojson, grid, status
from isoslide.slide import open_checked

TISSUE = json.loads(stages.settings("tissue"))
OFF = {"overlap": 0, "max_ink": 1, "max_black": 1, "max_white": 1, "min_sharpness": 0}
TILES = {"min_tissue": 0.5, "max_tiles": 0, "seed": 1} | OFF
VIEW = {"tile_px": 224, "mpp": 0.5}
BLOB = ((500, 500, 300),)


class Cohort:
    """The tables of earlier stages in a folder, made from slides given as (scan, specimen, path)."""

    def __init__(self, folder, scans):
        self.folder = folder
        rows = [
            {"scan": scan, "path": str(path), "scanner": scan, "specimen": specimen, "mpp": ""}
            for scan, specimen, path in scans
        ]
        self.specimens = {row["scan"]: row["specimen"] for row in rows}
        status.write(folder / "checks.tsv", [checks.check(row) for row in rows])
        self.segment()
        self.register({})

    def segment(self, **settings):
        segment_tissue.main(
            [
                *("--checks", str(self.folder / "checks.tsv"), "--settings", json.dumps(TISSUE | settings)),
                *("--results", str(self.folder / "tissue"), "--output", str(self.folder / "tissue.tsv")),
            ]
        )

    def register(self, affines, reference=None, failed=()):
        """Write a registration as the stage does: affines by scan, all of one specimen."""
        path = self.folder / "registration.json"
        scans = {scan: {"status": "ok", "affine": np.asarray(affine).tolist()} for scan, affine in affines.items()}
        path.write_text(json.dumps({"reference": reference, "scans": scans}))
        row = {"n_tiles": "", "path": str(path), "key": "r", "reference": reference}
        rows = [
            {"scan": scan, "status": "ok", "reason": "", "specimen": self.specimens[scan], "scanner": scan, **row}
            for scan in affines
        ]
        for scan in failed:
            bad = {"scan": scan, "specimen": self.specimens[scan], "scanner": scan}
            rows.append(status.failed(bad, "not_registered", "error 9.1 µm above the limit"))
        status.write(self.folder / "registrations.tsv", rows)

    def tile(self, view=VIEW, **settings):
        """Run the script; return its table by scan."""
        tile_scans.main(
            [
                *("--checks", str(self.folder / "checks.tsv"), "--tissue", str(self.folder / "tissue.tsv")),
                *("--registrations", str(self.folder / "registrations.tsv")),
                *("--view", json.dumps(view), "--settings", json.dumps(TILES | settings)),
                *("--results", str(self.folder / "tiles"), "--output", str(self.folder / "tiles.tsv")),
            ]
        )
        return status.read(self.folder / "tiles.tsv").set_index("scan")

    def read(self, scan):
        """Return the scan's tiles."""
        return grid.read_tiles_file(self.folder / f"tiles/{scan}.h5")


def cohort(folder, **scans):
    """Return a cohort of synthetic scans of specimens of their own."""
    return Cohort(folder, [(name, name, synth.slide(folder / f"{name}.tif", **how)) for name, how in scans.items()])


def test_tiles_are_those_that_the_disc_fills(tmp_path):
    made = cohort(tmp_path, a={"blobs": BLOB})
    table = made.tile()
    tiles = made.read("a")
    # independent count: share of the disc by 1 µm points
    y, x = np.mgrid[0:1120, 0:1232] + 0.5
    share = ((x - 500) ** 2 + (y - 500) ** 2 < 300**2).reshape(10, 112, 11, 112).mean(axis=(1, 3))
    got = np.zeros((10, 11), bool)
    got[tuple(np.divmod(tiles.tile_ids, grid.ROW))] = True
    assert (got | (share < 0.6)).all()
    assert (~got | (share > 0.4)).all()
    assert int(table["n_tiles"]["a"]) == got.sum()
    assert np.array_equal(tiles.coords, tiles.corners_um * 2)  # level 0 is 0.5 µm/px
    assert table["reason"]["a"] == "own grid: not registered"
    assert tiles.attrs["paired"] is False
    assert tiles.attrs["reference"] == "a"


def test_slides_without_tiles_are_rows_with_a_reason(tmp_path):
    made = cohort(
        tmp_path,
        small={"blobs": ((500, 500, 150),)},  # complaint G-C1: a 300 µm blob and tiles of 512 µm
        blank={"blobs": ()},
        pen={"blobs": (), "pen": "blue"},
        coarse={"mpp": 0.8},
        frame={"frame_um": 60},
    )
    table = made.tile({"tile_px": 1024, "mpp": 0.5})
    assert table["status"].to_dict() == {
        "small": "zero_tiles",
        "blank": "no_tissue",
        "pen": "no_tissue",
        "coarse": "too_coarse",
        "frame": "zero_tiles",
    }
    assert "no tile of 512 µm has 50% tissue" in table["reason"]["frame"]
    assert "smaller than a tile" in table["reason"]["small"]
    assert table["n_tiles"]["small"] == ""
    assert not (tmp_path / "tiles/small.h5").exists()


def test_pen_beside_tissue_and_dark_frame_give_no_tiles(tmp_path):
    made = cohort(tmp_path, plain={}, pen={"pen": "red"}, frame={"frame_um": 60})
    made.tile()
    for scan in ("pen", "frame"):
        assert np.array_equal(made.read(scan).tile_ids, made.read("plain").tile_ids)


def test_same_tiles_at_both_resolutions(tmp_path):
    """Complaints G-B4, G-C2."""
    made = cohort(tmp_path, half={"mpp": 0.5}, quarter={"mpp": 0.25})
    made.tile()
    half, quarter = made.read("half"), made.read("quarter")
    assert np.array_equal(half.tile_ids, quarter.tile_ids)
    assert np.array_equal(half.coords * 2, quarter.coords)


def turn(degrees, shift):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, shift[0]], [s, c, shift[1]]])


def inverse(affine):
    linear = np.linalg.inv(affine[:, :2])
    return np.column_stack([linear, -linear @ affine[:, 2]])


@pytest.mark.parametrize(
    ("degrees", "shift", "size_um"),
    [(2, (40, -15), (1200, 1000)), (90, (1000, 0), (1000, 1200)), (0, (7, 3), (900, 900))],
)
def test_grid_is_carried_to_the_same_tissue(tmp_path, degrees, shift, size_um):
    affine = turn(degrees, shift)  # from µm of the reference to µm of the other scan
    scans = [("ref", "s", synth.slide(tmp_path / "ref.tif", noise=0))]
    path = synth.slide(tmp_path / "other.tif", mpp=0.4, size_um=size_um, transform=inverse(affine), noise=0)
    made = Cohort(tmp_path, [*scans, ("other", "s", path)])
    made.register({"ref": grid.IDENTITY, "other": affine}, "ref")
    table = made.tile()
    ref, other = made.read("ref"), made.read("other")
    assert np.array_equal(ref.tile_ids, other.tile_ids)
    assert (other.attrs["reference"], other.attrs["paired"], table["paired"]["other"]) == ("ref", True, "yes")
    rows = {row["scan"]: row for row in status.read(tmp_path / "checks.tsv").to_dict("records")}
    inside = np.flatnonzero(~ref.out_of_bounds & ~other.out_of_bounds)
    assert len(inside) > 10
    for index in inside[::5]:
        images = []
        for scan, tiles in (("ref", ref), ("other", other)):
            maps = grid.tile_affines(tiles.corners_um, 112.0, 224, tiles.affine)
            with open_checked(rows[scan]) as slide:
                images.append(slide.read(maps[index], (224, 224)).astype(float).ravel())
        assert np.corrcoef(*images)[0, 1] > 0.9


def test_tiles_outside_the_other_scan_are_marked_and_not_counted(tmp_path):
    scans = [(name, "s", synth.slide(tmp_path / f"{name}.tif")) for name in ("ref", "cut")]
    made = Cohort(tmp_path, scans)
    made.register({"ref": grid.IDENTITY, "cut": [[1, 0, -450], [0, 1, 0]]}, "ref")
    table = made.tile()
    ref, cut = made.read("ref"), made.read("cut")
    assert np.array_equal(cut.out_of_bounds, ref.corners_um[:, 0] < 450)
    assert int(table["n_tiles"]["cut"]) == (~cut.out_of_bounds).sum() < len(cut.tile_ids)
    made.register({"ref": grid.IDENTITY, "cut": [[1, 0, -5000], [0, 1, 0]]}, "ref")
    table = made.tile()
    assert table["status"]["cut"] == "zero_tiles"
    assert "over this scan's edge" in table["reason"]["cut"]
    assert not (tmp_path / "tiles/cut.h5").exists()


def test_scan_that_is_not_registered_gets_its_own_grid(tmp_path):
    scans = [(name, "s", synth.slide(tmp_path / f"{name}.tif", blobs=BLOB)) for name in ("ref", "alone")]
    made = Cohort(tmp_path, scans)
    made.register({"ref": grid.IDENTITY}, "ref", failed=["alone"])
    table = made.tile()
    assert table["status"]["alone"] == "ok"
    assert "above the limit" in table["reason"]["alone"]
    assert (table["reference"]["alone"], table["paired"]["alone"]) == ("alone", "no")


def test_reference_without_tissue_leaves_the_others_their_own_grid(tmp_path):
    scans = [("ref", "s", synth.slide(tmp_path / "ref.tif", blobs=())), ("b", "s", synth.slide(tmp_path / "b.tif"))]
    made = Cohort(tmp_path, scans)
    made.register({"ref": grid.IDENTITY, "b": grid.IDENTITY}, "ref")
    table = made.tile()
    assert table["status"].to_dict() == {"ref": "no_tissue", "b": "ok"}
    assert table["paired"]["b"] == "no"


def test_cap_takes_the_same_tiles_in_all_scans(tmp_path):
    scans = [(name, "s", synth.slide(tmp_path / f"{name}.tif", mpp=mpp)) for name, mpp in (("ref", 0.5), ("b", 0.4))]
    made = Cohort(tmp_path, scans)
    made.register({"ref": grid.IDENTITY, "b": grid.IDENTITY}, "ref")
    made.tile()
    every = set(made.read("ref").tile_ids)
    table = made.tile(max_tiles=7)
    assert set(table["n_tiles"]) == {"7"}
    assert np.array_equal(made.read("ref").tile_ids, made.read("b").tile_ids)
    assert set(made.read("ref").tile_ids) < every


def test_kept_when_nothing_changed_and_made_again_where_it_did(tmp_path):
    scans = [(name, "s", synth.slide(tmp_path / f"{name}.tif")) for name in ("ref", "b")]
    made = Cohort(tmp_path, scans)
    made.register({"ref": grid.IDENTITY, "b": grid.IDENTITY}, "ref")
    first, files = made.tile(), {name: (tmp_path / f"tiles/{name}.h5").stat().st_ino for name in ("ref", "b")}
    again = made.tile()
    assert first.equals(again)
    assert {name: (tmp_path / f"tiles/{name}.h5").stat().st_ino for name in files} == files
    made.register({"ref": grid.IDENTITY, "b": [[1, 0, 3], [0, 1, 0]]}, "ref")
    moved = made.tile()
    assert moved["key"]["ref"] == first["key"]["ref"]
    assert moved["key"]["b"] != first["key"]["b"]
    # an outline drawn by hand on the reference moves all scans of the specimen
    geojson.write(tmp_path / "tissue/ref.geojson", [[np.array([[0, 0], [448, 0], [448, 448], [0, 448]], float)]], {})
    path = tmp_path / "tissue/ref.geojson"
    path.write_text(path.read_text().replace("geometry", "was"))
    path.write_text(path.read_text().replace('"was":{', '"geometry":{'))
    made.segment()
    made.tile()
    assert made.read("b").tile_ids.tolist() == [0, 1, 1_000_000, 1_000_001]


def test_svs_and_its_dicom_copy_have_the_same_tiles(tmp_path, shared):
    slides = shared / "data/slides"
    made = Cohort(
        tmp_path,
        [
            ("svs", "1", slides / "CMU-1-Small-Region.svs"),
            ("dicom", "2", slides / "CMU-1-Small-Region.dicom/level-0-frames-0-30.dcm"),
        ],
    )
    made.tile()
    assert np.array_equal(made.read("svs").tile_ids, made.read("dicom").tile_ids)


def test_scan_missing_from_the_tissue_table_stops_with_one_line(tmp_path):
    made = cohort(tmp_path, a={})
    status.write(tmp_path / "tissue.tsv", [])
    with pytest.raises(SystemExit, match="run the stage 'tissue' again"):
        made.tile()


COUNTS = ("n_capped", "n_black", "n_ink", "n_white", "n_blurred", "n_outside", "n_tiles")


def counts_of(table, scan):
    return {name: int(table[name][scan] or 0) for name in COUNTS if table[name][scan] not in ("", "0")}


def spoil(path, boxes, mpp=0.5):
    """Write a slide of a disc of tissue with boxes (x0, y0, x1, y1 in µm) of black, ink, glass and blur over it."""
    image = synth.render((2400, 2000), mpp, ((500, 500, 400),))
    image += np.random.default_rng(0).normal(0, 2, (2000, 2400, 1))
    blurred = cv2.GaussianBlur(image, (0, 0), 16)
    for name, box in boxes.items():
        x0, y0, x1, y1 = (round(value / mpp) for value in box)
        looks = {"black": (5, 5, 5), "ink": synth.PENS["blue"], "white": synth.GLASS, "blurred": blurred[y0:y1, x0:x1]}
        image[y0:y1, x0:x1] = looks[name]
    synth.write(path, np.clip(image, 0, 255).astype(np.uint8), mpp)
    return path


def box(row, column, n=1):
    return (column * 112, row * 112, (column + n) * 112, (row + 1) * 112)


FILTERS = {"max_ink": 0.5, "max_black": 0.5, "max_white": 0.5, "min_sharpness": 0.2}
WHOLE = json.dumps({"type": "Polygon", "coordinates": [[[450, 450], [1600, 450], [1600, 1600], [450, 1600]]]})


def test_filters_drop_and_count_each_tile_once(tmp_path):
    """Counts are conserved: every tile of the grid is used or has its reason (complaints G-A1, G-C7)."""
    boxes = {"black": box(2, 3), "ink": box(3, 3, 2), "white": box(4, 3), "blurred": box(5, 3, 3)}
    made = Cohort(tmp_path, [("a", "a", spoil(tmp_path / "a.tif", boxes))])
    (tmp_path / "tissue/a.geojson").write_text(WHOLE)  # an outline that takes in all of it
    made.segment(max_black=1)
    table = made.tile()
    n_grid = int(table["n_grid"]["a"])
    assert counts_of(table, "a") == {"n_tiles": n_grid}
    table = made.tile(**FILTERS)
    dropped = {"n_black": 1, "n_ink": 2, "n_white": 1, "n_blurred": 3}
    assert counts_of(table, "a") == dropped | {"n_tiles": n_grid - 7}
    places = {2: [3], 3: [3, 4], 4: [3], 5: [3, 4, 5]}
    gone = [row * grid.ROW + column for row, columns in places.items() for column in columns]
    assert not set(gone) & set(made.read("a").tile_ids)
    table = made.tile(**FILTERS, max_tiles=10)
    assert counts_of(table, "a") == dropped | {"n_capped": n_grid - 17, "n_tiles": 10}


def test_a_tile_may_drop_out_of_one_scan_of_a_specimen(tmp_path):
    scans = [("ref", "s", spoil(tmp_path / "ref.tif", {})), ("b", "s", spoil(tmp_path / "b.tif", {"ink": box(3, 3)}))]
    made = Cohort(tmp_path, scans)
    made.register({"ref": grid.IDENTITY, "b": [[1, 0, 0], [0, 1, 0]]}, "ref")
    table = made.tile(**FILTERS)
    assert counts_of(table, "b")["n_ink"] == 1
    assert set(made.read("ref").tile_ids) - set(made.read("b").tile_ids) == {3 * grid.ROW + 3}
    for scan in ("ref", "b"):
        assert sum(counts_of(table, scan).values()) == int(table["n_grid"][scan])


def test_filters_that_leave_nothing_are_a_status(tmp_path):
    """Complaint G-C5: artefact removal takes the whole slide."""
    table = cohort(tmp_path, a={}).tile(min_sharpness=1000)
    assert table["status"]["a"] == "qc_removed_all"
    assert table["reason"]["a"] == "the filters of tiles left none of 21: 21 blurred; see config tiles"


def test_overlap(tmp_path):
    made = cohort(tmp_path, a={"blobs": BLOB})
    made.tile()
    plain = made.read("a")
    made.tile(overlap=0.5)
    half = made.read("a")
    assert {tuple(corner) for corner in plain.corners_um} < {tuple(corner) for corner in half.corners_um}
    assert len(half.tile_ids) == pytest.approx(4 * len(plain.tile_ids), rel=0.2)
    assert np.array_equal(half.corners_um[:, 0], half.tile_ids % grid.ROW * 56.0)
    with h5py.File(tmp_path / "tiles/a.h5") as file:
        assert file["coords"].attrs["overlap"] == 112


def test_features_stand_while_the_tiles_do(tmp_path):
    """The key that features depend on follows the tiles, not the settings that led to them."""
    made = cohort(tmp_path, a={})
    first = made.tile()["key"]["a"]
    assert made.tile(max_tiles=1000)["key"]["a"] == first
    assert made.tile(max_tiles=3)["key"]["a"] != first


def test_a_file_cut_short_or_of_other_origin_is_made_again(tmp_path):
    """Complaints G-D1, G-D2: that a file exists does not mean that it is done."""
    made = cohort(tmp_path, a={})
    made.tile()
    path = tmp_path / "tiles/a.h5"
    good = path.read_bytes()
    for bad in (good[: len(good) // 2], b"", b"text"):
        path.write_bytes(bad)
        made.tile()
        assert path.read_bytes() == good
    with h5py.File(path, "w") as file:
        file["coords"] = np.zeros((2, 2))
    made.tile()
    assert path.read_bytes() == good


def test_a_lock_of_another_program_does_not_matter(tmp_path):
    """Complaint G-D5: errno 11 on shared disks."""
    made = cohort(tmp_path, a={})
    made.tile()
    with open(tmp_path / "tiles/a.h5", "rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(BlockingIOError):
            h5py.File(tmp_path / "tiles/a.h5", "r")
        assert len(made.read("a").tile_ids) == 21
        assert made.tile()["status"]["a"] == "ok"
