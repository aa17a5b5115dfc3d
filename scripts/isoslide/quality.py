"""Numbers that say whether a scan can be trusted: sharpness, colour, black places, levels that show the same."""

from dataclasses import dataclass

import cv2
import numpy as np

from isoslide.slide import Slide

SHARPNESS_UM_PER_PX = 1.0
SHARPNESS_WINDOW_PX = 160
SHARPNESS_WINDOWS = 4
PLACES = 100
MAX_SIDE_PX = 64  # of what is read at a place
BLACK = 8  # grey level; what a scanner or a converter left out is 0, ink and pigment are brighter
LEVELS_DIFFERENCE = 20.0  # grey levels; levels of sound slides differ by 1 to 3 in the mean


@dataclass(frozen=True)
class Places:
    """What level 0 shows at places in the tissue.

    Attributes:
        black: share of the places that are black, 0 to 1.
        difference: largest over the channels of |mean at level 0 - mean of the overview| at the places that are not
            black, in grey levels.
    """

    black: float
    difference: float


def sharpness(slide: Slide, mask: np.ndarray, um_per_px: float) -> float:
    """Return how much fine detail the tissue shows: higher is sharper; 0 without tissue or detail.

    Variance of the Laplacian of the grey value over the variance of the grey value, at 1 µm/px, in up to four windows
    of 160 µm that lie in tissue; the median of the windows. The ratio takes out the strength of the stain. Scans
    coarser than 1 µm/px cannot show that detail and score low.

    Args:
        slide: to read the windows from.
        mask: (rows, cols) bool, tissue.
        um_per_px: of the mask.
    """
    side_um = SHARPNESS_WINDOW_PX * SHARPNESS_UM_PER_PX
    cells = tuple(max(1, int(extent * um_per_px / side_um)) for extent in mask.shape)
    share = cv2.resize(mask.astype(np.float32), cells[::-1], interpolation=cv2.INTER_AREA).ravel()
    if share.max() == 0:
        return 0.0
    full = np.flatnonzero(share >= min(0.8, share.max()))
    chosen = full[np.unique(np.linspace(0, len(full) - 1, SHARPNESS_WINDOWS).round().astype(int))]
    step = np.array(mask.shape) * um_per_px / cells  # µm a cell, (y, x)
    values = []
    for cell in chosen:
        y, x = (np.array(divmod(int(cell), cells[1])) + 0.5) * step - side_um / 2
        affine = np.array([[SHARPNESS_UM_PER_PX, 0, x], [0, SHARPNESS_UM_PER_PX, y]])
        window = slide.read(affine, (SHARPNESS_WINDOW_PX, SHARPNESS_WINDOW_PX))
        values.append(detail(window))
    return float(np.median(values))


def detail(window: np.ndarray) -> float:
    """Return variance of the Laplacian / variance of the grey value of a window (h, w, 3) at 1 µm/px; 0 where flat."""
    grey = cv2.cvtColor(window, cv2.COLOR_RGB2GRAY).astype(np.float32)
    spread = float(grey.var())
    return float(cv2.Laplacian(grey, cv2.CV_32F).var()) / spread if spread > 1 else 0.0


def colour(rgb: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Return mean and standard deviation of red, green and blue (0 to 255) over the mask; 0 where it is empty."""
    pixels = rgb[mask] if mask.any() else np.zeros((1, 3))
    names = ("red", "green", "blue")
    return {f"{name}_mean": float(pixels[:, i].mean()) for i, name in enumerate(names)} | {
        f"{name}_sd": float(pixels[:, i].std()) for i, name in enumerate(names)
    }


def black_pixels(rgb: np.ndarray) -> np.ndarray:
    """Return the pixels (rows, cols) whose three channels are all at most `BLACK`."""
    return (rgb <= BLACK).all(axis=-1)


def places(slide: Slide, rgb: np.ndarray, where: np.ndarray, um_per_px: float) -> Places:
    """Look at up to 100 pixels of the overview at level 0, drawn at random (the same ones every time).

    A conversion may lose parts of level 0 that the other levels still show, and a reader may decode one level in other
    colours: neither raises an error.

    Args:
        slide: to read level 0 from.
        rgb: (rows, cols, 3) uint8, overview.
        where: (rows, cols) bool; places to choose from.
        um_per_px: of the overview.
    """
    candidates = np.flatnonzero(where)
    if not len(candidates):
        return Places(0.0, 0.0)
    chosen = np.sort(np.random.default_rng(0).permutation(candidates)[:PLACES])
    mpp = np.array(slide.mpp)
    size = np.clip(np.round(um_per_px / mpp), 1, MAX_SIDE_PX).astype(int)  # a pixel of the overview in level-0 px
    means, black = [], []
    for y, x in zip(*np.unravel_index(chosen, where.shape), strict=True):
        corner = (np.array([x, y]) + 0.5) * um_per_px - size * mpp / 2
        pixels = slide.read(np.column_stack([np.diag(mpp), corner]), (int(size[0]), int(size[1])))
        means.append(pixels.mean(axis=(0, 1)))
        black.append(black_pixels(pixels).mean() > 0.9)
    sound = ~np.array(black)
    if not sound.any():
        return Places(1.0, 0.0)
    gap = np.array(means)[sound] - rgb.reshape(-1, 3)[chosen[sound]]
    return Places(float(np.mean(black)), float(np.abs(gap.mean(axis=0)).max()))
