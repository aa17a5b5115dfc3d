"""Rival arm `stain`: tiles with the colours of one target before an encoder sees them, fitted scan by scan.

`macenko` (Macenko et al. 2009): the two stain vectors of a scan are the extremes, at the 1st and 99th percentile, of
the angles that stained pixels make in the plane of most variation of optical density; amounts of stain, scaled to the
99th percentile of the target, are then shown in the target's vectors. Target: vectors and amounts of the authors' code.

`reinhard` (Reinhard et al. 2001): mean and standard deviation of the stained pixels in each channel of CIELAB become
those of the target, the tissue of OpenSlide's CMU-1-Small-Region.

What is fitted rests on tiles spread over the scan, the same for all its tiles. A scan with too few stained pixels has
no fit, and is given up as `no_stain`.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np

from isoslide import grid
from isoslide.extraction import ScanTiles
from isoslide.slide import Reading, SlideError
from isoslide.staging import Staging

SAMPLE_TILES = 32
SAMPLE_PIXELS = 200_000
GLASS = 240.0  # grey value of no stain
STAINED = 0.15  # least optical density (natural logarithm) in every channel
FEWEST_PIXELS = 1000
PERCENTILES = (1, 99)

TARGET_VECTORS = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])  # haematoxylin, eosin: R, G, B
TARGET_AMOUNTS = np.array([1.9705, 1.0308])
TARGET_MEAN = np.array([41.8, 29.2, -14.4])  # L, a, b
TARGET_SD = np.array([16.1, 12.0, 9.2])

Normalise = Callable[[np.ndarray], np.ndarray]
"""Tiles (n, px, px, 3) uint8 to tiles with the target's colours."""


class StainError(ValueError):
    """The stain of a scan cannot be estimated; the message says why."""


def macenko(pixels: np.ndarray) -> Normalise:
    """Return what brings tiles of the scan that the pixels (n, 3) uint8 come from to the target.

    Raises:
        StainError: with too few stained pixels, or pixels of one stain only.
    """
    vectors, amounts = stain_vectors(pixels)
    mixing = np.linalg.pinv(vectors) @ (np.diag(TARGET_AMOUNTS / amounts) @ TARGET_VECTORS)  # (3, 3), OD to OD
    table = density(np.arange(256)).astype(np.float32)
    mixing = mixing.astype(np.float32)

    def normalise(tiles: np.ndarray) -> np.ndarray:
        shown = GLASS * np.exp(-(table[tiles] @ mixing))
        return np.clip(np.rint(shown), 0, 255).astype(np.uint8)

    return normalise


def stain_vectors(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the unit vectors (2, 3) of haematoxylin and eosin in optical density, and the large amounts (2,) of each.

    The one with more red density is haematoxylin.

    Raises:
        StainError: see `macenko`.
    """
    stained = _stained(density(pixels))
    _, axes = np.linalg.eigh(np.cov(stained.T))
    plane = axes[:, [2, 1]]  # most variation first
    plane = plane * np.where(plane.sum(0) < 0, -1, 1)
    on_plane = stained @ plane
    angles = np.arctan2(on_plane[:, 1], on_plane[:, 0])
    vectors = np.array([[np.cos(a), np.sin(a)] for a in np.percentile(angles, PERCENTILES)]) @ plane.T
    vectors = vectors[np.argsort(-vectors[:, 0])]
    if abs(vectors[0] @ vectors[1]) > 0.9999:
        raise StainError("its pixels show one stain only")
    amounts = np.percentile(stained @ np.linalg.pinv(vectors), PERCENTILES[1], axis=0)
    if (amounts <= 0).any():
        raise StainError("the amounts of its stains cannot be told")
    return vectors, amounts


def reinhard(pixels: np.ndarray) -> Normalise:
    """Return what brings tiles of the scan that the pixels (n, 3) uint8 come from to the target.

    Raises:
        StainError: with too few stained pixels, or pixels of one colour.
    """
    mean, sd = lab_moments(pixels)
    if (sd < 1e-3).any():
        raise StainError("its pixels have one colour")
    scale, shift = (TARGET_SD / sd).astype(np.float32), (TARGET_MEAN - mean * TARGET_SD / sd).astype(np.float32)

    def normalise(tiles: np.ndarray) -> np.ndarray:
        lab = _lab(tiles.reshape(-1, tiles.shape[-2], 3)) * scale + shift
        rgb = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
        return np.clip(np.rint(rgb * 255), 0, 255).astype(np.uint8).reshape(tiles.shape)

    return normalise


def lab_moments(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation (3,) of the stained pixels in CIELAB."""
    kept = pixels[_is_stained(density(pixels))]
    _enough(len(kept))
    lab = _lab(kept[None])[0].astype(float)
    return lab.mean(0), lab.std(0)


FITS: Mapping[str, Callable[[np.ndarray], Normalise]] = {"macenko": macenko, "reinhard": reinhard}


class NormalisedTiles(ScanTiles):
    """The tiles of a scan in the target's colours; the first thread that reads some fits the scan."""

    def __init__(
        self,
        kind: str,
        row: Mapping[str, Any],
        check: Mapping[str, str],
        tiles: grid.Tiles,
        reading: Reading,
        staging: Staging | None = None,
    ):
        super().__init__(row, check, tiles, reading, staging)
        self._kind = kind
        self._normalise: Normalise | None = None
        self._fitting = threading.Lock()

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return tiles (n, tile_px, tile_px, 3) uint8, counted in the order of reading.

        Raises:
            SlideError: `no_stain`, or as for tiles as they are.
        """
        images = super().read(start, stop)
        with self._fitting:
            if self._normalise is None:
                self._normalise = self._fit()
        return self._normalise(images)

    def _fit(self) -> Normalise:
        chosen = np.unique(np.linspace(0, self.n_tiles - 1, SAMPLE_TILES).round().astype(int))
        pixels = np.concatenate([super(NormalisedTiles, self).read(i, i + 1).reshape(-1, 3) for i in chosen])
        try:
            return FITS[self._kind](pixels[:: max(1, len(pixels) // SAMPLE_PIXELS)])
        except StainError as error:
            raise SlideError(
                "no_stain", f"{self._kind}: {error}: leave the scan out, or the arms with 'stain'"
            ) from None


def density(values: np.ndarray) -> np.ndarray:
    """Return the optical density of grey values, -ln((value + 1) / GLASS)."""
    return -np.log((values.astype(float) + 1) / GLASS)


def _is_stained(od: np.ndarray) -> np.ndarray:
    return (od > STAINED).all(1)


def _stained(od: np.ndarray) -> np.ndarray:
    kept = od[_is_stained(od)]
    _enough(len(kept))
    return kept


def _enough(n: int) -> None:
    if n < FEWEST_PIXELS:
        raise StainError(f"{n} stained pixels in {SAMPLE_TILES} tiles, at least {FEWEST_PIXELS} are needed")


def _lab(rgb: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
