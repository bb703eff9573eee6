"""A colour scale for lights: black, violet, red, orange, yellow, white, with evenly rising lightness."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NODATA_RGB = (128, 138, 140)
"""A cool grey, which the scale does not contain."""

_ANCHORS = (
    (0.00, 0.12, 0.020, 285.0),
    (0.15, 0.25, 0.100, 290.0),
    (0.35, 0.43, 0.165, 325.0),
    (0.55, 0.61, 0.195, 22.0),
    (0.72, 0.76, 0.160, 60.0),
    (0.88, 0.90, 0.145, 95.0),
    (1.00, 0.99, 0.030, 105.0),
)
"""(position, lightness, chroma, hue in degrees) in OKLCh. Lightness rises evenly: order shows in grey too."""

_TO_CONE = np.array(
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
_TO_LINEAR_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)
"""Both matrices: B. Ottosson, "A perceptual color space for image processing" (OKLab), 2020."""


def light_colours(n: int = 256) -> NDArray[np.uint8]:
    """The scale as n sRGB colours, (n, 3), from dark to bright."""
    position, lightness, chroma, hue = (np.array(column) for column in zip(*_ANCHORS, strict=True))
    t = np.linspace(0.0, 1.0, n)
    angle = np.radians(np.interp(t, position, np.unwrap(hue, period=360.0)))
    c = np.interp(t, position, chroma)
    lab = np.stack([np.interp(t, position, lightness), c * np.cos(angle), c * np.sin(angle)])
    linear = np.clip(_TO_LINEAR_RGB @ (_TO_CONE @ lab) ** 3, 0.0, 1.0)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.round(255.0 * srgb.T), np.uint8)
