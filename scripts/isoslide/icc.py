"""Colour profiles: from the scanner's colours, as its profile describes them, to sRGB."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms

Transform = Callable[[np.ndarray], np.ndarray]


def to_srgb(profile: ImageCms.ImageCmsProfile) -> Transform:
    """Return a function from images (h, w, 3) uint8 in the profile's colours to images in sRGB.

    Relative colorimetric: white stays white.

    Raises:
        ImageCms.PyCMSError: a damaged profile, or not of an RGB device.
    """
    transform = ImageCms.buildTransform(
        profile,
        ImageCms.createProfile("sRGB"),
        "RGB",
        "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
    )
    return lambda image: np.asarray(ImageCms.applyTransform(Image.fromarray(image), transform))
