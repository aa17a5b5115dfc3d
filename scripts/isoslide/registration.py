"""Maps between scans of one glass slide, made exact on small patches spread over the tissue.

All geometry is in µm. A map is a (2, 3) affine A from the reference scan's µm to another scan's:
q = A[:, :2] @ p + A[:, 2]. Image sizes are bounded (one picture a scan, patches), so time and memory do not grow with
the slide.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np

from isoslide import geojson
from isoslide.geojson import Polygon
from isoslide.registration_warp import Warp, straight

Affine = np.ndarray  # (2, 3)
Reader = Callable[[Affine, tuple[int, int]], np.ndarray]  # Slide.read

IDENTITY = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
MARGIN_UM = 150.0  # around the tissue's box, so that patches at its edge lie in the picture
DETAIL_PX = 25  # structures larger than this are removed before patches are compared: nuclei count, stain does not
SEARCH_PX = 24  # how far a patch may be off, to each side
GLASS_SD = 4.0  # grey levels; noise of empty glass stays below, pale tissue passes 6
MIN_NCC = 0.1  # correlation that chance is taken to reach even where the shuffled patches stay below
EMPTY_SD = 1.0  # correlations of less are 0 / 0
FEW_PATCHES = 12
SMALL_PX = 128  # a patch of this side keeps 80 px for the comparison; a smaller one too few
ROUGH_PATCHES = 16  # per round before the last
MAX_CHANGE = 0.1  # of a map's scale and angle in one round; more is a chance fit
PYRAMID_STEP = 4  # from one resolution of the patches to the next


@dataclass(frozen=True)
class View:
    """A scan as registration sees it: a reader, the tissue, and one picture of the box around the tissue.

    Attributes:
        read: reads an image under a map from its pixels to µm, like `Slide.read`.
        size_um: (width, height) of the scan.
        tissue: polygons in µm.
        picture: (rows, cols, 3) uint8 RGB.
        origin: (2,) µm of the picture's top left corner.
        um_per_px: of the picture.
    """

    read: Reader
    size_um: tuple[float, float]
    tissue: Sequence[Polygon]
    picture: np.ndarray
    origin: np.ndarray
    um_per_px: float

    @cached_property
    def grey_picture(self) -> np.ndarray:
        """(rows, cols) uint8 grey values of the picture."""
        return cv2.cvtColor(self.picture, cv2.COLOR_RGB2GRAY)

    def rgb(self, affine: Affine, size: tuple[int, int]) -> np.ndarray:
        """Return (h, w, 3) uint8 under a map from output pixels to µm, from the picture or else the slide."""
        return _warp(self, self.picture, affine, size) if self._serves(affine, size) else self.read(affine, size)

    def grey(self, affine: Affine, size: tuple[int, int]) -> np.ndarray:
        """Return (h, w) float32 grey values, read like `rgb`."""
        if self._serves(affine, size):
            return _warp(self, self.grey_picture, affine, size).astype(np.float32)
        return cv2.cvtColor(self.read(affine, size), cv2.COLOR_RGB2GRAY).astype(np.float32)

    def _serves(self, affine: Affine, size: tuple[int, int]) -> bool:
        """Whether the picture is fine enough (small tissue), and covers the part of the place that the scan covers."""
        corners = apply(affine, np.array([[0, 0], [size[0], 0], [0, size[1]], size]))
        to_picture = (np.clip(corners, 0, self.size_um) - self.origin) / self.um_per_px
        covered = ((to_picture > -1) & (to_picture < np.array(self.picture.shape[1::-1]) + 1)).all()
        return bool(covered) and scale(affine) > 0.95 * self.um_per_px


@dataclass(frozen=True)
class Matches:
    """Patches of the reference found again in another scan.

    Attributes:
        places: (n, 2) µm in the reference.
        found: (n, 2) µm in the other scan.
        ncc: (n,) correlation there, 0 where a patch is empty.
        null: (m,) best correlation with patches of other places: what chance gives.
    """

    places: np.ndarray
    found: np.ndarray
    ncc: np.ndarray
    null: np.ndarray


def view(read: Reader, size_um: tuple[float, float], tissue: Sequence[Polygon], settings: Mapping[str, Any]) -> View:
    """Return the view of a scan.

    Its picture is at `um_per_px`, or coarser where its long side would pass `overview_px`.
    """
    points = np.concatenate([polygon[0] for polygon in tissue])
    low = np.clip(points.min(axis=0) - MARGIN_UM, 0, size_um)
    high = np.clip(points.max(axis=0) + MARGIN_UM, 0, size_um)
    um_per_px = max(settings["um_per_px"], float((high - low).max()) / settings["overview_px"])
    size = np.maximum(1, np.ceil((high - low) / um_per_px)).astype(int)
    picture = read(np.column_stack([np.eye(2) * um_per_px, low]), (int(size[0]), int(size[1])))
    return View(read, size_um, tissue, picture, low, um_per_px)


def compose(second: Affine, first: Affine) -> Affine:
    """Return the map that applies `first`, then `second`."""
    return np.column_stack([second[:, :2] @ first[:, :2], second[:, :2] @ first[:, 2] + second[:, 2]])


def apply(affine: Affine, points: np.ndarray) -> np.ndarray:
    """Return the points (n, 2) under the map."""
    return points @ affine[:, :2].T + affine[:, 2]


def scale(affine: Affine) -> float:
    """Return the map's mean scale: the square root of its change of area."""
    return math.sqrt(abs(float(np.linalg.det(affine[:, :2]))))


def raster(tissue: Sequence[Polygon], origin: np.ndarray, um_per_px: float, size: tuple[int, int]) -> np.ndarray:
    """Return a (h, w) uint8 mask, 1 in tissue, of the box of `size` (w, h) px that begins at `origin` (µm)."""
    moved = [[ring - origin for ring in polygon] for polygon in tissue]
    return geojson.rasterise(moved, um_per_px, (size[1], size[0])).astype(np.uint8)


def fine(reference: View, other: View, affine: Affine, settings: Mapping[str, Any]) -> tuple[Affine, Matches]:
    """Return the map improved on patches spread over the tissue, and the last round's patches.

    From the overview's resolution down to `um_per_px`, each round four times finer; two rounds at the last.
    """
    target, last = settings["um_per_px"], max(reference.um_per_px, other.um_per_px)
    rounds = []
    while last > target * PYRAMID_STEP:
        last /= PYRAMID_STEP
        rounds.append(last)
    rough = {**settings, "max_patches": min(ROUGH_PATCHES, settings["max_patches"])}
    for um_per_px in [*rounds, target]:
        matches = measure(reference, other, straight(affine), um_per_px, rough)
        sure = matches.ncc > MIN_NCC  # an empty patch is "found" where the map puts it, and would hold it there
        tolerance = max(settings["limit_um"], 3 * um_per_px)
        affine = fit(matches.places[sure], matches.found[sure], affine, tolerance)
    matches = measure(reference, other, straight(affine), target, settings, null=True)
    sure = matches.ncc > MIN_NCC
    return fit(matches.places[sure], matches.found[sure], affine, settings["limit_um"]), matches


def measure(
    reference: View, other: View, warp: Warp, um_per_px: float, settings: Mapping[str, Any], null: bool = False
) -> Matches:
    """Find the reference's patches in the other scan, near where the map puts them.

    Patches that show only glass on the reference, or that the map puts outside the other scan, are left out. With
    `null`, each patch is also sought at another patch's place.
    """
    side, centres = patches(reference, um_per_px, settings)
    centres = centres[inside(other.size_um, warp, centres, side * um_per_px)]
    places, maps, fixed, moving = [], [], [], []
    for place, affine in zip(centres, warp.local(centres, side * um_per_px), strict=True):
        to_reference = np.column_stack([np.eye(2) * um_per_px, place - side / 2 * um_per_px])
        patch = _detail(reference.grey(to_reference, (side, side)))[SEARCH_PX:-SEARCH_PX, SEARCH_PX:-SEARCH_PX]
        if patch.std() < GLASS_SD:
            continue
        places.append(place)
        maps.append(affine)
        fixed.append(patch)
        moving.append(_detail(other.grey(compose(affine, to_reference), (side, side))))
    n = len(places)
    results = np.array([match(a, b) for a, b in zip(fixed, moving, strict=True)]).reshape(n, 3)
    middles, local = np.array(places).reshape(n, 2), np.array(maps).reshape(n, 2, 3)
    found = np.einsum("nij,nj->ni", local[:, :, :2], middles + results[:, :2] * um_per_px) + local[:, :, 2]
    chance = [match(fixed[i], moving[i - n // 2])[2] for i in range(n)] if null and n > 1 else []
    return Matches(middles, found, results[:, 2], np.array(chance))


def match(fixed: np.ndarray, moving: np.ndarray) -> tuple[float, float, float]:
    """Return the shift (dx, dy) in px of the smaller image from the larger one's middle, and the correlation there.

    Normalised cross-correlation, to a fraction of a pixel by a parabola through the peak and its neighbours; (0, 0, 0)
    where either image is empty.
    """
    if fixed.std() < EMPTY_SD or moving.std() < EMPTY_SD:
        return 0.0, 0.0, 0.0
    surface = cv2.matchTemplate(moving, fixed, cv2.TM_CCOEFF_NORMED)
    _, peak, _, (x, y) = cv2.minMaxLoc(surface)
    if moving[y : y + fixed.shape[0], x : x + fixed.shape[1]].std() < EMPTY_SD:  # OpenCV calls 0 / 0 a match
        return 0.0, 0.0, 0.0
    middle = (surface.shape[1] - 1) / 2, (surface.shape[0] - 1) / 2
    dx, dy = x + _summit(surface[y], x) - middle[0], y + _summit(surface[:, x], y) - middle[1]
    return dx, dy, float(peak)


def fit(places: np.ndarray, found: np.ndarray, start: Affine, tolerance_um: float) -> Affine:
    """Return the affine map places -> found, outliers left out; `start` where too few agree.

    A full affine needs 6 agreeing patches, a similarity 4. Of those that agree to the tolerance, the ones beyond three
    times the median distance are left out of a second fit: false matches land within the tolerance, too.
    """
    here = apply(start, places)  # the correction is a small motion, never a flip
    for estimate, fewest in ((cv2.estimateAffine2D, 6), (cv2.estimateAffinePartial2D, 4)):
        if len(places) < fewest:
            continue
        correction, inliers = _agreed(estimate, here, found, tolerance_um)
        if correction is not None and inliers.sum() >= fewest and abs(correction - IDENTITY)[:, :2].max() < MAX_CHANGE:
            return compose(correction, start)
    return start


def _agreed(
    estimate: Callable[..., tuple[Affine | None, np.ndarray]], here: np.ndarray, found: np.ndarray, tolerance_um: float
) -> tuple[Affine | None, np.ndarray]:
    """Return the map that most points follow, and (n,) bool: those it was fitted to."""
    options = {"method": cv2.RANSAC, "maxIters": 2000, "confidence": 0.999}
    matrix, inliers = estimate(here, found, ransacReprojThreshold=tolerance_um, **options)
    if matrix is None:
        return None, np.zeros(len(here), bool)
    kept = inliers[:, 0] > 0
    distance = np.hypot(*(apply(matrix, here) - found).T)
    close = kept & (distance <= 3 * np.median(distance[kept]))
    if 6 <= close.sum() < kept.sum():
        tighter, _ = estimate(here[close], found[close], ransacReprojThreshold=tolerance_um, **options)
        if tighter is not None:
            return tighter, close
    return matrix, kept


def patches(reference: View, um_per_px: float, settings: Mapping[str, Any]) -> tuple[int, np.ndarray]:
    """Return the patches' side in px and centres (n, 2) µm; the side is halved where few patches fit the tissue."""
    size = settings["patch_px"]
    places = spread(reference, size * um_per_px, settings["max_patches"])
    if len(places) >= FEW_PATCHES or size <= SMALL_PX:
        return size, places
    return size // 2, spread(reference, size // 2 * um_per_px, settings["max_patches"])


def spread(reference: View, patch_um: float, max_patches: int) -> np.ndarray:
    """Return centres (n, 2) µm of patches in the reference's tissue, each as far as can be from those before it.

    Neighbours overlap by a quarter of their side at most.
    """
    size_um = np.array(reference.picture.shape[1::-1]) * reference.um_per_px
    step = max(patch_um / 8, float(size_um.max()) / 256)
    size = np.maximum(1, np.ceil(size_um / step)).astype(int)
    mask = raster(reference.tissue, reference.origin, step, (int(size[0]), int(size[1])))
    width = max(1, round(patch_um / step))
    share = cv2.blur(mask.astype(np.float32), (width, width), borderType=cv2.BORDER_CONSTANT)
    rows, cols = np.nonzero(share >= min(0.4, 0.8 * float(share.max())))
    if not len(rows) or not share.max():
        return np.empty((0, 2))
    candidates = np.column_stack([cols, rows]) * step + step / 2 + reference.origin
    chosen = [int(np.argmax(share[rows, cols]))]
    distance = np.full(len(candidates), np.inf)
    while len(chosen) < max_patches:
        distance = np.minimum(distance, np.hypot(*(candidates - candidates[chosen[-1]]).T))
        farthest = int(distance.argmax())
        if distance[farthest] < 0.75 * patch_um:
            break
        chosen.append(farthest)
    return candidates[chosen]


def inside(size_um: tuple[float, float], warp: Warp, places: np.ndarray, patch_um: float) -> np.ndarray:
    """Return (n,) bool: the middle half of the patch lies in the scan."""
    half = patch_um / 4
    kept = np.ones(len(places), bool)
    for corner in ((-half, -half), (half, -half), (-half, half), (half, half)):
        points = warp.apply(places + np.array(corner))
        kept &= ((points >= 0) & (points <= size_um)).all(axis=1)
    return kept


def _warp(view: View, image: np.ndarray, affine: Affine, size: tuple[int, int]) -> np.ndarray:
    """Return an image of `size` (w, h) from one that lies like the view's picture; `affine` maps its pixels to µm."""
    to_picture = np.column_stack([affine[:, :2], affine[:, 2] - view.origin]) / view.um_per_px
    # cv2 counts from pixel centres, our maps from pixel edges
    to_picture[:, 2] += to_picture[:, :2].sum(axis=1) * 0.5 - 0.5
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, to_picture, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _detail(grey: np.ndarray) -> np.ndarray:
    return grey - cv2.blur(grey, (DETAIL_PX, DETAIL_PX))


def _summit(values: np.ndarray, peak: int) -> float:
    if not 0 < peak < len(values) - 1:
        return 0.0
    before, top, after = (float(value) for value in values[peak - 1 : peak + 2])
    curvature = before - 2 * top + after
    return 0.0 if curvature >= 0 else 0.5 * (before - after) / curvature
