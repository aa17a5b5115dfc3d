"""Tissue outlines by a network of TRIDENT (config `tissue.method`). Pixels are read by us, so any format will do.

TRIDENT builds the network, prepares its pixels and runs it; what it calls tissue becomes outlines by the same limits in
µm² as those of the classical method. Light, as the Snakefile asks here what is missing.
"""

import hashlib
import itertools
import json
import pickle
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # the Snakefile imports this module, and Slide brings the readers
    from pandas import DataFrame

    from isoslide.geojson import Polygon
    from isoslide.slide import Slide

PREFIX = "trident:"
HUB = "MahmoodLab/hest-tissue-seg"
FILES = {"hest": "deeplabv3_seg_v4.ckpt", "grandqc": "Tissue_Detection_MPP10.pth", "otsu": ""}  # weights on the hub
HE_ONLY = ("grandqc",)  # trained on H&E; finds other stains in part
HE = (
    "",
    "he",
    "hes",
    "heandeosin",
    "haematoxylineosin",
    "hematoxylineosin",
    "haematoxylinandeosin",
    "hematoxylinandeosin",
)
BATCH = 8  # blocks per forward pass
INSTALL = "TRIDENT is not installed for this: run snakemake with --software-deployment-method conda (docs/encoders.md)"


class SegmenterError(Exception):
    """The network cannot be had; the message is one line with the remedy."""


def weights_path(method: str, folder: str | Path) -> Path | None:
    """Return the weights file of a method `trident:NAME`; None where it has no weights.

    Raises:
        SegmenterError: saying how to get it.
    """
    name = method.removeprefix(PREFIX)
    if not FILES[name]:
        return None
    path = Path(folder, "trident", name, FILES[name])
    if not path.exists():
        raise SegmenterError(
            f"config tissue.method {method!r}: no weights at {path}: get them once, where there is a network: "
            f"hf download {HUB} {path.name} --local-dir {path.parent}"
        )
    return path


def missing(method: str, folder: str | Path, own_environment: bool) -> str:
    """Return what a method lacks here and how to get it, or nothing.

    Args:
        method: `classical` or `trident:NAME`.
        folder: of weights.
        own_environment: whether jobs get TRIDENT's environment from Snakemake; else it must be that of `python`.
    """
    if not method.startswith(PREFIX):
        return ""
    try:
        weights_path(method, folder)
    except SegmenterError as error:
        return str(error)
    look = "import importlib.util; raise SystemExit(importlib.util.find_spec('trident') is None)"
    if own_environment or subprocess.run(["python", "-c", look], check=False).returncode == 0:
        return ""
    return f"config tissue.method {method!r}: {INSTALL}"


def options(config: Mapping[str, Any], rows: "DataFrame") -> str:
    """Return options of segment_tissue.py for a network: weights, device, and the stains that the batch's rows name."""
    if not config["tissue"]["method"].startswith(PREFIX):
        return ""
    stains = {scan: stain for scan, stain in zip(rows["scan"], rows["stain"], strict=True) if stain}
    places = ["--weights", config["weights"], "--device", config["device"]]
    return shlex.join([*places, "--stains", json.dumps(stains)])


def fallback(method: str, stain: str) -> str:
    """Return why a scan of this stain is outlined by the classical method instead, or nothing."""
    name = method.removeprefix(PREFIX)
    if name not in HE_ONLY or re.sub("[^a-z]", "", stain.lower()) in HE:
        return ""
    return f"stain {stain!r}: {name} knows H&E only, so the classical method drew the outline"


class Segmenter:
    """A network of TRIDENT on its device.

    Args:
        method: `trident:NAME`.
        folder: of weights.
        device: `cpu` or `cuda`.

    Attributes:
        weights_hash: 16 hex digits of the network's parameters.

    Raises:
        SegmenterError: TRIDENT or the weights are missing, or the weights are not those of the network.
    """

    def __init__(self, method: str, folder: str | Path, device: str = "cpu"):
        path = weights_path(method, folder)
        try:
            from trident.segmentation_models import load
        except ImportError as error:
            raise SegmenterError(
                f"config tissue.method {method!r}: TRIDENT cannot be imported ({error}): {INSTALL}"
            ) from error
        with _offline(load, path):
            try:
                self.network = load.segmentation_model_factory(method.removeprefix(PREFIX))
            except (RuntimeError, OSError, KeyError, EOFError, pickle.UnpicklingError) as error:
                text = " ".join(str(error).split())[:200]
                raise SegmenterError(f"config tissue.method {method!r}: {path} cannot be used: {text}") from error
        self.device = device
        self.network.to(device)
        self.um_per_px = 10 / self.network.target_mag  # TRIDENT's 10x is 1 µm per pixel
        digest = hashlib.sha256()
        for name, value in sorted(self.network.state_dict().items()):
            digest.update(name.encode() + value.cpu().numpy().tobytes())
        self.weights_hash = digest.hexdigest()[:16]

    def outline(self, image: "Slide", settings: Mapping[str, Any]) -> "list[Polygon]":
        """Return the tissue of a slide in level-0 px, largest piece first.

        Args:
            image: the slide.
            settings: the config's `tissue` block; its limits of areas hold.
        """
        from isoslide import geojson, tissue

        mask, um_per_px = self.mask(image, settings["um_per_px"])
        mask = ~tissue.without_specks(~mask, settings["min_hole_um2"] / um_per_px**2)
        mask = tissue.without_specks(mask, settings["min_area_um2"] / um_per_px**2)
        return geojson.trace(mask, (um_per_px / image.mpp[0], um_per_px / image.mpp[1]))

    def mask(self, image: "Slide", um_per_px: float) -> tuple[np.ndarray, float]:
        """Return where the network sees tissue, (rows, cols) bool, and its µm/px.

        The network looks at blocks side by side, at its own µm/px. Its answer is shrunk by the largest power of 2 that
        stays at `um_per_px` or finer; tissue is what is tissue in half of it.
        """
        import cv2
        import torch

        side = self.network.input_size
        shrink = next(n for n in (32, 16, 8, 4, 2, 1) if side % n == 0 and (n == 1 or n * self.um_per_px <= um_per_px))
        columns, rows = (max(1, int(np.ceil(extent / self.um_per_px / side))) for extent in image.size_um)
        small = side // shrink
        mask = np.zeros((rows * small, columns * small), bool)
        places = list(itertools.product(range(rows), range(columns)))
        for start in range(0, len(places), BATCH):
            part = places[start : start + BATCH]
            with torch.inference_mode():
                found = self._run([self._block(image, row, column) for row, column in part])
            for (row, column), one in zip(part, found, strict=True):
                share = cv2.resize(one.astype(np.float32), (small, small), interpolation=cv2.INTER_AREA)
                mask[row * small : (row + 1) * small, column * small : (column + 1) * small] = share >= 0.5
        height, width = (max(1, round(extent / self.um_per_px / shrink)) for extent in image.size_um[::-1])
        return mask[:height, :width], self.um_per_px * shrink

    def _block(self, image: "Slide", row: int, column: int) -> Any:
        from PIL import Image

        side, step = self.network.input_size, self.um_per_px
        affine = np.array([[step, 0, column * side * step], [0, step, row * side * step]])
        return self.network.eval_transforms(Image.fromarray(image.read(affine, (side, side))))

    def _run(self, blocks: list[Any]) -> np.ndarray:
        """Return the network's answer (n, side, side); half precision on a GPU only, where TRIDENT asks for it."""
        import torch

        half = self.device == "cuda" and self.network.precision != torch.float32
        with torch.autocast(self.device, self.network.precision if half else torch.bfloat16, enabled=half):
            return self.network(torch.stack(blocks).to(self.device)).cpu().numpy() > 0


@contextmanager
def _offline(load: Any, path: Path | None) -> Iterator[None]:
    """Let TRIDENT take its weights from `path` while it builds a network, and nothing from the network of computers.

    It knows no other way than a file inside its package, and torchvision would fetch a backbone that is then written
    over.
    """
    from torchvision.models import segmentation

    saved = load.get_weights_path, segmentation.deeplabv3_resnet50
    load.get_weights_path = lambda *names: str(path or "")
    segmentation.deeplabv3_resnet50 = lambda **options: saved[1](**options, weights_backbone=None)
    try:
        yield
    finally:
        load.get_weights_path, segmentation.deeplabv3_resnet50 = saved
