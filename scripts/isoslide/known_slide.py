"""A look at a slide whose pixels are known, before any other: a broken native library is found on the first job.

Some builds of the libraries under OpenSlide have drawn black boxes into good slides without a word.
"""

from pathlib import Path

import numpy as np

from isoslide.slide import Reading, Slide

CORNER_UM = (700.0, 300.0)
STEP_UM, SIDE = 24.0, 8  # µm per value and values per side: 192 µm of tissue
TOLERANCE = 2.0  # grey levels; other versions of the JPEG library differ by less than 1 in such means
GREEN = (  # means of the green channel of resources/CMU-1-Small-Region.svs
    (115, 111, 123, 112, 243, 244, 243, 244),
    (185, 132, 128, 84, 239, 243, 244, 243),
    (153, 118, 42, 62, 180, 243, 243, 243),
    (76, 70, 54, 66, 186, 243, 243, 243),
    (72, 115, 70, 53, 184, 242, 237, 243),
    (101, 100, 69, 85, 214, 243, 243, 243),
    (61, 69, 76, 70, 189, 243, 243, 243),
    (66, 46, 33, 52, 161, 182, 218, 243),
)


class ReaderError(Exception):
    """The libraries that read slides give wrong pixels; the message is one line."""


def check(path: str | Path) -> None:
    """Read the known slide by the fast path and through OpenSlide.

    Args:
        path: resources/CMU-1-Small-Region.svs.

    Raises:
        ReaderError: its pixels are not as they should be.
        SlideError: it cannot be read at all.
    """
    for way in ("JPEG tiles", "OpenSlide"):
        with Slide(path, reading=Reading(downsampling="exact")) as slide:
            if way == "OpenSlide":
                slide.read_through_openslide()
            wrong = np.abs(means(slide) - np.array(GREEN, float)).max()
        if wrong > TOLERANCE:
            raise ReaderError(
                f"{path} read through {way} is {wrong:.0f} grey levels off its known pixels: the installed OpenSlide "
                "or JPEG library is broken; install the versions of envs/base.yaml"
            )


def means(slide: Slide) -> np.ndarray:
    """Return (8, 8) means of green over squares of 24 µm."""
    step = slide.mpp[0]
    side = round(STEP_UM / step)
    affine = np.array([[step, 0, CORNER_UM[0]], [0, step, CORNER_UM[1]]])
    green = slide.read(affine, (side * SIDE, side * SIDE))[..., 1]
    return green.reshape(SIDE, side, SIDE, side).mean(axis=(1, 3))
