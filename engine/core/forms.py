"""How the layers of a tile reach a device: pixels of each file on their own grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from deeplight.engine.core.layout import Layout, Part
from deeplight.engine.core.spec import SCALE

LATTICE = 8
"""HR pixels between the nodes of a tile's coordinates: an LR pixel, so that nodes lie alike in every tile."""

Kind = Literal["raw", "own"]


def file_key(layer: str, number: int) -> str:
    """The key of a layer's file among the forms of a tile, from 0: that of the first is the layer itself. Files that
    are read as one (raster.side_by_side) count as one."""
    return layer if number == 0 else f"{layer} {number + 1}"


def layer_of(key: str) -> str:
    """The layer that a file belongs to."""
    return key.partition(" ")[0]


def stride(bands: int) -> int:
    """Elements of a pixel whose bands lie side by side: filled up to 4 or 8, so that a pixel is read at once: as
    16 bytes, for example, of Landsat's seven bands in uint16 or of four bands in float32."""
    return next(room for room in (1, 4, 8) if bands <= room)


@dataclass(frozen=True)
class LayerForm:
    """One file of a layer of a tile as it is sent.

    kind: "raw", pixels (h, w, stride) as in the file; "own", physical float32 pixels on the layer's own grid, for types
    that no kernel reads and where pixels finer than HR pixels were averaged. channels: the layer's in the network, of
    each band that is sent. shape: room for pixels of the own grid, (h, w). dtype: of `raw`. gain, bias, sentinels
    (None: it has none) of each band and limits (low, high) say what is valid in `raw`: see raster.layers.Layer. masked:
    whether a mask comes with the pixels. step: HR pixels between mesh nodes.
    """

    kind: Kind
    channels: tuple[int, ...]
    shape: tuple[int, int]
    dtype: str = "float32"
    gain: tuple[float, ...] = ()
    bias: tuple[float, ...] = ()
    sentinels: tuple[float | None, ...] = ()
    limits: tuple[float, float] | None = None
    masked: bool = True
    step: int = LATTICE

    @property
    def stride(self) -> int:
        """Elements of a pixel."""
        return stride(len(self.channels))

    def parts(self, name: str, height: int, width: int) -> Iterator[Part]:
        """What is sent for a tile of height × width LR pixels."""
        nodes = (2, SCALE * height // self.step + 1, SCALE * width // self.step + 1)
        yield Part(f"{name}.pixels", (*self.shape, self.stride), self.dtype)
        # rows and columns that are filled: what lies beyond is left from another tile
        yield Part(f"{name}.extent", (2,), "int32")
        yield Part(f"{name}.whole", nodes, "int32")
        yield Part(f"{name}.fraction", nodes, "float32")
        if self.masked:
            yield Part(f"{name}.mask", self.shape, "uint8")


@dataclass(frozen=True)
class Conserving:
    """How radiance is brought into agreement with the lights: see run.conserve."""

    powers: tuple[float, ...]
    around: int
    even_share: float


@dataclass(frozen=True)
class Steps:
    """How uint16 holds radiance: see kernels.finish."""

    scale: float
    offset: float
    nodata: float


@dataclass(frozen=True)
class Wanted:
    """What is to come back of every tile.

    bands: extra bands, of run.options.EXTRA_BANDS. count: bands of the output. steps: of an output of uint16, None of
    float32. conserving: None where radiance is not conserved. psf, limits: see spec.INPUTS. ceiling, radius, far: from
    which NTL value a pixel is saturated, how far holes are felt in LR pixels, and from which offset on it counts as
    pressed against its bound (run.quality). holds: lowest and highest radiance that the output's type holds, half a
    step more included.
    """

    bands: tuple[str, ...]
    count: int
    steps: Steps | None
    conserving: Conserving | None
    psf: tuple[float, float]
    limits: tuple[float, float]
    ceiling: float
    radius: int
    far: float
    holds: tuple[float, float]

    @property
    def pixel_bytes(self) -> int:
        """Bytes of an HR pixel of the output, in all bands, and of what is kept beside it for overviews."""
        return self.count * (4 if self.steps is None else 2 + 1)


COUNTS = ("bad", "dmo", "dem", "ntl_alone", "clamped", "light", "largest")
"""What is counted over the valid HR pixels of a core, in float64: values that cannot be radiance, pixels that had
the layers or none, those beyond what the type holds, the sum of radiance and the largest one."""


def sent(forms: Mapping[str, LayerForm], height: int, width: int) -> Layout:
    """What goes to the device for a tile of height × width LR pixels. forms: of the files of "dmo" and "dem", by
    `file_key`.

    ntl, valid: see spec.INPUTS; own: 1 in valid pixels of the core.
    """
    lights = [Part(name, (height, width), "float32") for name in ("ntl", "valid", "own")]
    layers = [part for name, form in forms.items() for part in form.parts(name, height, width)]
    return Layout([*lights, *layers])


def returned(bands: int, height: int, width: int, *, steps: bool = False) -> Layout:
    """What comes back of height × width LR pixels in so many bands: counts (see COUNTS), what the sensor would see, and
    pixels, float32 (bands, 8h, 8w), NaN = nodata. With `steps`, in their place, steps of uint16 and `halves`, float32
    (bands, 4h, 4w): see kernels.finish.
    """
    high, wide = SCALE * height, SCALE * width
    parts = [Part("counts", (len(COUNTS),), "float64"), Part("seen", (height, width), "float32")]
    if not steps:
        return Layout([*parts, Part("pixels", (bands, high, wide), "float32")])
    halves = Part("halves", (bands, high // 2, wide // 2), "float32")
    return Layout([*parts, Part("steps", (bands, high, wide), "uint16"), halves])
