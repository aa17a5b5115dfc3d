"""First guesses of the map between two scans: features of the tissue matched, a similarity that many of them follow."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from isoslide.registration import Affine, View, raster, scale

FEATURES_UM = 4.0  # µm/px at which features are sought where the tissue is small
FEATURES_MIN_PX = 350  # ... unless the picture then had fewer pixels than this on its long side
MAX_FEATURES = 1500  # per scan; the strongest
RATIO = 0.9  # of the best to the second best descriptor distance (Lowe 2004 proposes 0.8; RANSAC sorts out the rest)
MIN_INLIERS = 6  # a similarity is fixed by 2; the patches have the last word


@dataclass(frozen=True)
class Features:
    """What stands out in a scan's tissue.

    Attributes:
        places: (n, 2) µm.
        sizes: (n,) µm.
        descriptors: (n, 128) float32 unit vectors.
        um_per_px: at which the features were sought.
    """

    places: np.ndarray
    sizes: np.ndarray
    descriptors: np.ndarray
    um_per_px: float


def find(view: View) -> Features:
    """Return the strongest features of the scan's tissue."""
    grey = view.grey_picture
    extent = max(grey.shape) * view.um_per_px
    um_per_px = max(view.um_per_px, min(FEATURES_UM, extent / FEATURES_MIN_PX))
    size = tuple(max(1, round(n * view.um_per_px / um_per_px)) for n in grey.shape[::-1])
    grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    step = np.array([view.picture.shape[1], view.picture.shape[0]]) * view.um_per_px / size
    mask = cv2.dilate(raster(view.tissue, view.origin, float(step.mean()), size), np.ones((9, 9), np.uint8))
    grey = _stretch(grey, mask)
    points, descriptors = cv2.SIFT_create(MAX_FEATURES, contrastThreshold=0.02).detectAndCompute(grey, mask)
    if not points:
        return Features(np.empty((0, 2)), np.empty(0), np.empty((0, 128), np.float32), um_per_px)
    places = (np.array([point.pt for point in points]) + 0.5) * step + view.origin
    sizes = np.array([point.size for point in points]) * um_per_px
    # square roots of relative values (RootSIFT, Arandjelović 2012) are unit vectors: their dot product is a similarity
    descriptors = np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-6))
    return Features(places, sizes, descriptors, um_per_px)


def candidates(reference: Features, other: Features, scale_tolerance: float) -> list[Affine]:
    """Return similarity maps worth a closer look, best first: any rotation, mirrored or not.

    SIFT (Lowe 2004) keeps rotation and brightness out; the mirror image is tried by mirroring the descriptors. The
    µm/px are known, so pairs of features whose sizes differ too much and maps whose scale is off are dropped.
    """
    spacing = max(reference.um_per_px, other.um_per_px)
    found = []
    for mirrored in (False, True):
        here, there = _pairs(reference, other, mirrored, scale_tolerance)
        if len(here) < MIN_INLIERS:
            continue
        flip = np.array([1.0, -1.0]) if mirrored else np.ones(2)
        matrix, inliers = cv2.estimateAffinePartial2D(
            here * flip, there, method=cv2.RANSAC, ransacReprojThreshold=3 * spacing, maxIters=5000, confidence=0.999
        )
        if matrix is None or abs(scale(matrix) - 1) > scale_tolerance or inliers.sum() < MIN_INLIERS:
            continue
        found.append((int(inliers.sum()), matrix * np.array([*flip, 1.0])))
    return [matrix for _, matrix in sorted(found, key=lambda item: -item[0])]


def _stretch(grey: np.ndarray, mask: np.ndarray) -> np.ndarray:
    low, high = np.percentile(grey[mask > 0] if mask.any() else grey, (1, 99))
    return np.clip((grey - low) * (255 / max(high - low, 1)), 0, 255).astype(np.uint8)


def _pairs(
    reference: Features, other: Features, mirrored: bool, scale_tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the places (n, 2) of features that are each other's best match."""
    descriptors = _mirror(reference.descriptors) if mirrored else reference.descriptors
    if min(len(descriptors), len(other.descriptors)) < 2:
        return np.empty((0, 2)), np.empty((0, 2))
    similarity = descriptors @ other.descriptors.T
    best = similarity.argmax(axis=1)
    rows = np.arange(len(best))
    top = similarity[rows, best]
    mutual = similarity.argmax(axis=0)[best] == rows
    similarity[rows, best] = -1
    # distances of unit vectors: d² = 2 - 2 s
    clear = 1 - top < RATIO**2 * (1 - similarity.max(axis=1))
    alike = np.abs(np.log(other.sizes[best] / reference.sizes)) < math.log((1 + scale_tolerance) * 1.25)
    kept = mutual & clear & alike
    return reference.places[kept], other.places[best[kept]]


def _mirror(descriptors: np.ndarray) -> np.ndarray:
    """Return the descriptors (n, 128) that a mirrored image has: of the 4 x 4 cells of 8 directions, rows and angles
    run the other way.
    """
    cells = descriptors.reshape(-1, 4, 4, 8)[:, ::-1]
    return cells[..., (8 - np.arange(8)) % 8].reshape(len(descriptors), 128)
