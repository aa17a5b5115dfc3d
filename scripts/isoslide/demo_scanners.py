"""Four simulated scanners: what each makes of the same glass, and where on its scan it puts it.

A scanner differs from A, the reference, in µm/px, colour, sharpness, noise, JPEG quality and white point, in how the
glass lies in it, and C turns the picture by a quarter. `STRENGTH` multiplies all differences but those of geometry.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from isoslide import demo

STRENGTH = 1.5
SHIFT_UM = 30.0  # largest shift along x and y
TURN_DEGREES = 2.0  # largest rotation of B, C, D; the glass lies straight in A
SIZE_STEP = 64  # px; three levels, each half the one before, then all end with a whole JPEG block of 16 px
BLOCK, HALO = 256, 8  # px; rendered block by block, which stays in the processor's cache: twice as fast
NOISE_POOL = 2**20  # values drawn per scan; each block reads a stretch of them
LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Scanner:
    """A scanner's properties.

    Attributes:
        mpp: µm/px of level 0. The tissue holds no detail below the source's 0.499 µm; a finer scan oversamples it.
        gain: Of R, G, B.
        blur_um: SD of the Gaussian point spread function.
        sharpen: Amount of unsharp masking over 1 px.
        noise: SD in grey values.
        quality: Of the JPEG tiles.
        white: Grey value of clear glass before the gain.
        quarter_turns: Of the picture, counter-clockwise.
    """

    mpp: float
    gain: tuple[float, float, float]
    saturation: float
    gamma: float
    blur_um: float
    sharpen: float
    noise: float
    quality: int
    white: float
    quarter_turns: int = 0


SCANNERS = {
    "A": Scanner(0.50, (1.0, 1.0, 1.0), 1.0, 1.0, 0.20, 0.0, 1.0, 72, 244),
    "B": Scanner(0.46, (1.0, 0.985, 0.955), 1.12, 0.90, 0.14, 0.6, 1.5, 66, 248),
    "C": Scanner(0.55, (0.97, 0.985, 1.0), 0.88, 1.12, 0.44, 0.0, 2.0, 60, 236, quarter_turns=1),
    "D": Scanner(0.35, (1.0, 0.97, 0.99), 1.18, 1.08, 0.35, 0.3, 1.5, 68, 245),
}


def exaggerated(scanner: Scanner, strength: float = STRENGTH) -> Scanner:
    """Return the scanner with `strength` times its difference from A; of the gamma, its power."""
    reference = SCANNERS["A"]

    def stretch(name: str) -> float:
        return getattr(reference, name) + strength * (getattr(scanner, name) - getattr(reference, name))

    return Scanner(
        mpp=scanner.mpp,
        gain=tuple(1 + strength * (gain - 1) for gain in scanner.gain),
        saturation=stretch("saturation"),
        gamma=scanner.gamma**strength,
        blur_um=max(stretch("blur_um"), 0.0),
        sharpen=stretch("sharpen"),
        noise=stretch("noise"),
        quality=round(stretch("quality")),
        white=min(stretch("white"), 255.0),
        quarter_turns=scanner.quarter_turns,
    )


def scan_size(scanner: Scanner, glass_um: tuple[float, float]) -> tuple[int, int]:
    """Return width and height in px: the glass, rounded up to `SIZE_STEP`."""
    width, height = glass_um if scanner.quarter_turns % 2 == 0 else glass_um[::-1]
    return tuple(int(np.ceil(size / scanner.mpp / SIZE_STEP)) * SIZE_STEP for size in (width, height))


def pose(name: str, specimen: demo.Specimen, glass_um: tuple[float, float], seed: int) -> np.ndarray:
    """Return the affine (2, 3) from the glass's µm to the µm of its scan on the scanner `name`."""
    rng = demo.rng(seed, demo.POSE, specimen.index, demo.SCANNERS.index(name))
    scanner = SCANNERS[name]
    shift = rng.uniform(-SHIFT_UM, SHIFT_UM, 2)
    degrees = 0.0 if name == "A" else rng.uniform(-TURN_DEGREES, TURN_DEGREES)
    angle = np.deg2rad(degrees - 90 * scanner.quarter_turns)  # y points down
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = np.array(scan_size(scanner, glass_um)) * scanner.mpp / 2
    return np.column_stack([turn, centre + shift - turn @ np.array(glass_um) / 2])


def between(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the affine (2, 3) from the first scan's µm to the second's, given the two from the glass."""
    turn = second[:, :2] @ np.linalg.inv(first[:, :2])
    return np.column_stack([turn, second[:, 2] - turn @ first[:, 2]])


def scan(
    glass: np.ndarray,
    glass_mpp: float,
    to_scan: np.ndarray,
    size: tuple[int, int],
    scanner: Scanner,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the picture (h, w, 3) uint8 that the scanner takes of the glass.

    Args:
        glass: Light let through, (h, w, 3) float32, 0-1.
        glass_mpp: µm/px of `glass`.
        to_scan: Affine (2, 3) from the glass's µm to the scan's.
        size: Width and height in px.
        scanner: The scanner, at the strength wanted.
        rng: For the noise.
    """
    picture = np.empty((size[1], size[0], 3), np.uint8)
    pool = rng.standard_normal(NOISE_POOL, np.float32) * np.float32(scanner.noise)
    clear = np.tile(np.float32(scanner.white) * np.array(scanner.gain, np.float32), (BLOCK, BLOCK, 1))
    for top in range(0, size[1], BLOCK):
        for left in range(0, size[0], BLOCK):
            block = picture[top : top + BLOCK, left : left + BLOCK]
            light = _sample(glass, glass_mpp, to_scan, (left, top), block.shape[1::-1], scanner.mpp)
            grey = clear[: block.shape[0], : block.shape[1]] if light is None else _expose(light, scanner)
            start = rng.integers(NOISE_POOL - block.size)
            noise = pool[start : start + block.size].reshape(block.shape)
            block[:] = cv2.add(grey, noise, dtype=cv2.CV_8U)  # rounds and clips to 0-255
    return picture


def _sample(
    glass: np.ndarray,
    glass_mpp: float,
    to_scan: np.ndarray,
    corner: tuple[int, int],
    size: tuple[int, int],
    mpp: float,
) -> np.ndarray | None:
    """Return the light on a block of the scan's pixels and `HALO` more on each side; None if all of it is clear glass.

    There is one resampling only, from the centres of the glass's pixels to those of the scan.
    """
    inverse = np.linalg.inv(to_scan[:, :2])
    first = (np.array(corner) - HALO + 0.5) * mpp  # centre of the first pixel, µm
    linear, offset = inverse * mpp / glass_mpp, inverse @ (first - to_scan[:, 2]) / glass_mpp - 0.5
    width, height = size[0] + 2 * HALO, size[1] + 2 * HALO
    corners = linear @ np.array([[0, width, 0, width], [0, 0, height, height]]) + offset[:, None]
    (x0, y0), (x1, y1) = np.maximum(corners.min(axis=1) - 3, 0).astype(int), np.maximum(corners.max(axis=1) + 4, 0)
    if glass[y0 : int(y1), x0 : int(x1)].min(initial=1) > 0.9999:  # half of the blocks
        return None
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    matrix = np.column_stack([linear, offset])
    return cv2.warpAffine(
        glass, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=(1, 1, 1)
    )


def _expose(light: np.ndarray, scanner: Scanner) -> np.ndarray:
    """Return the grey values that the light gives without noise; float32, without the halo."""
    colour = scanner.saturation * np.eye(3) + (1 - scanner.saturation) * np.tile(LUMA, (3, 1))
    colour = (scanner.white * np.diag(scanner.gain) @ colour).astype(np.float32)
    if scanner.blur_um > 0:
        light = cv2.GaussianBlur(light, (0, 0), scanner.blur_um / scanner.mpp)
    picture = cv2.transform(cv2.pow(np.clip(light, 1e-4, 1), scanner.gamma), colour)
    if scanner.sharpen > 0:
        picture = cv2.addWeighted(
            picture, 1 + scanner.sharpen, cv2.GaussianBlur(picture, (0, 0), 1), -scanner.sharpen, 0
        )
    return np.ascontiguousarray(picture[HALO:-HALO, HALO:-HALO])
