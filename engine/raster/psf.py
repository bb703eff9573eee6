"""What `psf` says: the FWHM of the blur of the lights in LR pixels. Standard library only."""

from __future__ import annotations

Fwhm = tuple[float, float]
"""FWHM of the blur before pixels are averaged, in LR pixels, along rows (y) and along columns (x)."""

WIDEST = 3.2
"""FWHM in LR pixels up to which models are trained."""
UNKNOWN: Fwhm = (-1.0, -1.0)


def parse_psf(text: str) -> Fwhm | str:
    """`FWHM`, `FWHM,FWHM` (rows, columns; LR pixels), `auto` or `unknown`. Raises ValueError in one sentence."""
    if text in ("auto", "unknown"):
        return text
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 2) or not all(0 <= v <= WIDEST for v in values):
        raise ValueError(
            f"{text!r} is not the FWHM of a blur of 0 to {WIDEST} LR pixels: give one for both axes as 1.6, or those "
            "along rows and columns as 1.6,2.4, or auto or unknown"
        )
    return values[0], values[-1]


def shown_psf(fwhm: Fwhm) -> str:
    """As the command line spells it."""
    return "unknown" if min(fwhm) < 0 else f"{fwhm[0]:.15g},{fwhm[1]:.15g}"
