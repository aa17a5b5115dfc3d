"""Outlines by a segmenter of TRIDENT, with a stand-in for it: it is not installed where these tests run."""

import json
import sys
import types

import numpy as np
import pytest
import stages
import synth
import torch
from PIL import Image
from test_segment_tissue import DISC_MM2, write_checks
from torch import nn
from torchvision.models import segmentation
from torchvision.transforms.v2 import functional

import draw_contact_sheet
import segment_tissue
from isoslide import geojson, segmenters, status
from isoslide.slide import Slide

MPP, SIDE = 1.0, 512  # of the stand-in, as of hest


class Network(nn.Module):
    """Calls tissue what is darker than glass in green, at 1 µm per pixel."""

    input_size, target_mag, precision = SIDE, 10, torch.float16

    def __init__(self):
        super().__init__()
        self.limit = nn.Parameter(torch.tensor(230.0), requires_grad=False)
        self.blocks = []

    def eval_transforms(self, picture):
        assert isinstance(picture, Image.Image)
        return functional.pil_to_tensor(picture).float()

    def forward(self, pixels):
        assert pixels.dtype == torch.float32  # half precision is for a GPU
        self.blocks += list(pixels)
        return (pixels[:, 1] < self.limit).to(torch.uint8)


@pytest.fixture
def trident(monkeypatch):
    """A package `trident` with what is used of it; its attribute `made` lists the networks."""
    module = types.SimpleNamespace(made=[], names=[])
    load = types.ModuleType("trident.segmentation_models.load")
    load.get_weights_path = lambda kind, name: ""

    def factory(name):
        module.names.append((name, load.get_weights_path("seg", name)))
        module.made.append(Network())
        return module.made[-1]

    load.segmentation_model_factory = factory
    package = types.ModuleType("trident.segmentation_models")
    package.load = load
    monkeypatch.setitem(sys.modules, "trident", types.ModuleType("trident"))
    monkeypatch.setitem(sys.modules, "trident.segmentation_models", package)
    monkeypatch.setitem(sys.modules, "trident.segmentation_models.load", load)
    module.load = load
    return module


def run(folder, method="trident:otsu", stains=None, **settings):
    settings = json.loads(stages.settings("tissue")) | {"method": method} | settings
    segment_tissue.main(
        [
            *("--checks", str(folder / "checks.tsv"), "--settings", json.dumps(settings)),
            *("--results", str(folder / "tissue"), "--weights", str(folder / "w")),
            *("--stains", json.dumps(stains or {}), "--output", str(folder / "tissue.tsv")),
        ]
    )
    return status.read(folder / "tissue.tsv").set_index("scan")


def test_table_outlines_and_pictures_are_those_of_the_classical_method(tmp_path, trident):
    slides = {"coarse": synth.slide(tmp_path / "a.tif"), "fine": synth.slide(tmp_path / "b.tif", mpp=0.25)}
    slides["blank"] = synth.slide(tmp_path / "c.tif", blobs=())
    slides["gone"] = tmp_path / "none.tif"
    write_checks(tmp_path, slides)
    classical = run(tmp_path, "classical")
    found = run(tmp_path)
    assert list(found.columns) == list(classical.columns)
    assert found["status"].to_dict() == {"coarse": "ok", "fine": "ok", "blank": "no_tissue", "gone": "missing"}
    for scan in ("coarse", "fine"):
        assert float(found["tissue_mm2"][scan]) == pytest.approx(DISC_MM2, rel=0.02)
        outlines = geojson.read(tmp_path / f"tissue/{scan}.geojson")
        assert not outlines.edited
        assert found["key"][scan] == geojson.geometry_hash(outlines.polygons)
    assert len(trident.made) == 1  # for all scans
    assert {tuple(block.shape) for block in trident.made[0].blocks} == {(3, SIDE, SIDE)}
    for name in ("sharpness", "red_mean", "black_places"):
        assert float(found[name]["coarse"]) == pytest.approx(float(classical[name]["coarse"]), rel=0.1, abs=0.01)
    draw_contact_sheet.main(
        [
            *("--tissue", str(tmp_path / "tissue.tsv"), "--pictures", str(tmp_path / "tissue")),
            *("--output", str(tmp_path / "sheet.html")),
        ]
    )
    assert "coarse" in (tmp_path / "sheet.html").read_text()


def test_second_run_does_nothing_and_other_weights_make_it_again(tmp_path, trident):
    write_checks(tmp_path, {"s1": synth.slide(tmp_path / "s1.tif")})
    run(tmp_path)
    before = stages.files(tmp_path)
    run(tmp_path)
    assert stages.files(tmp_path) == before
    assert not trident.made[1].blocks
    trident.load.segmentation_model_factory = lambda name: trident.made[0]
    trident.made[0].limit += 5
    trident.made[0].blocks.clear()
    run(tmp_path)
    assert trident.made[0].blocks


def test_an_edited_outline_is_honoured(tmp_path, trident):
    write_checks(tmp_path, {"s1": synth.slide(tmp_path / "s1.tif")})
    square = np.array([[800, 800], [1200, 800], [1200, 1200], [800, 1200]])
    (tmp_path / "tissue").mkdir()
    (tmp_path / "tissue/s1.geojson").write_text(
        json.dumps({"type": "Polygon", "coordinates": [[*square.tolist(), square[0].tolist()]]})
    )
    found = run(tmp_path)
    assert found["reason"]["s1"] == "edited by hand"
    assert float(found["tissue_mm2"]["s1"]) == pytest.approx(0.04, rel=0.01)
    assert not trident.made[0].blocks


def test_small_pieces_and_holes_go_by_the_limits_in_um2(tmp_path, trident):
    speck, hole = (150, 850, 40), (500, 500, 30)
    path = synth.slide(tmp_path / "s1.tif", blobs=((500, 500, 300), speck), noise=0)
    write_checks(tmp_path, {"s1": path})
    run(tmp_path)
    assert len(geojson.read(tmp_path / "tissue/s1.geojson").polygons) == 1  # 5,000 µm² of 10,000
    run(tmp_path, min_area_um2=1000)
    assert len(geojson.read(tmp_path / "tissue/s1.geojson").polygons) == 2
    network = trident.made[-1]
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    inside = torch.from_numpy((x - hole[0]) ** 2 + (y - hole[1]) ** 2 < hole[2] ** 2)
    trident.load.segmentation_model_factory = lambda name: network
    network.forward = lambda pixels: ((pixels[:, 1] < 230) & ~inside).to(torch.uint8)
    for limit, rings in ((5000, 1), (1000, 2)):
        run(tmp_path, min_hole_um2=limit, um_per_px=4)
        assert len(geojson.read(tmp_path / "tissue/s1.geojson").polygons[0]) == rings


def test_mask_is_the_networks_answer_block_by_block(tmp_path, trident):
    """Against the network on the whole overview at 1 µm per pixel, then means of 8 x 8."""
    segmenter = segmenters.Segmenter("trident:otsu", tmp_path)
    with Slide(synth.slide(tmp_path / "s1.tif", size_um=(1304, 1000), noise=0)) as image:
        mask, um_per_px = segmenter.mask(image, 8)
        whole = image.overview(1.0)[..., 1] < 230
    assert um_per_px == 8
    np.testing.assert_array_equal(mask, whole.reshape(125, 8, 163, 8).mean(axis=(1, 3)) >= 0.5)


def test_grandqc_leaves_other_stains_to_the_classical_method(tmp_path, trident):
    """Complaint G-C6."""
    (tmp_path / "w/trident/grandqc").mkdir(parents=True)
    (tmp_path / "w/trident/grandqc/Tissue_Detection_MPP10.pth").touch()
    slides = {name: synth.slide(tmp_path / f"{name}.tif", seed=i) for i, name in enumerate(("a", "b", "c"))}
    write_checks(tmp_path, slides)
    for _ in range(2):  # the second run finds the files there
        found = run(tmp_path, "trident:grandqc", stains={"a": "IHC Ki-67", "b": "H&E"})
        assert found["reason"].to_dict() == {
            "a": "stain 'IHC Ki-67': grandqc knows H&E only, so the classical method drew the outline",
            "b": "",
            "c": "",
        }
        assert (found["status"] == "ok").all()
    assert len(trident.made[0].blocks) == 2 * 6
    assert segmenters.fallback("trident:hest", "IHC") == ""
    assert segmenters.fallback("trident:grandqc", "Haematoxylin & Eosin") == ""


def test_weights_come_from_the_folder_and_nothing_is_fetched(tmp_path, trident, monkeypatch):
    path = tmp_path / "trident/hest/deeplabv3_seg_v4.ckpt"
    path.parent.mkdir(parents=True)
    path.touch()

    def fetch(*arguments, **options):
        raise AssertionError("a file was fetched")

    def factory(name):
        assert trident.load.get_weights_path("seg", name) == str(path)
        segmentation.deeplabv3_resnet50(weights=None)
        return Network()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    before = segmentation.deeplabv3_resnet50
    trident.load.segmentation_model_factory = factory
    segmenters.Segmenter("trident:hest", tmp_path)
    assert segmentation.deeplabv3_resnet50 is before
    assert trident.load.get_weights_path("seg", "hest") == ""


def test_what_is_missing_is_one_line(tmp_path, trident, monkeypatch):
    with pytest.raises(segmenters.SegmenterError, match=r"no weights at .*_v4.ckpt: get them .*: hf download Mahmood"):
        segmenters.Segmenter("trident:hest", tmp_path)

    def damaged(name):
        raise RuntimeError("PytorchStreamReader failed\nreading zip archive")

    trident.load.segmentation_model_factory = damaged
    with pytest.raises(segmenters.SegmenterError, match="cannot be used: PytorchStreamReader failed reading zip"):
        segmenters.Segmenter("trident:otsu", tmp_path)
    monkeypatch.setitem(sys.modules, "trident.segmentation_models", None)
    write_checks(tmp_path, {})
    with pytest.raises(SystemExit, match="TRIDENT cannot be imported .* --software-deployment-method conda") as error:
        run(tmp_path)
    assert "\n" not in str(error.value)
