"""The operations that DeepLightSR is built from, as functions of tensors.

`align`, `suggest`, `locate`, `fuse`, `upsample`, `base`, `refine`, `restore`, `settle` and `finish` have Triton kernels
and a plain-PyTorch reference each; the rest is PyTorch.
"""

from deeplight.kernels.agree.entry import base
from deeplight.kernels.agree.reference import Sensor
from deeplight.kernels.align.entry import align
from deeplight.kernels.align.reference import TileMesh, split_nodes
from deeplight.kernels.dispatch import Implementation
from deeplight.kernels.finish.entry import finish
from deeplight.kernels.fuse.entry import fuse
from deeplight.kernels.interpolation import interpolation_kernel, resample_offset, resize_fixed, sample
from deeplight.kernels.locate.entry import locate
from deeplight.kernels.locate.reference import Weights as LocateWeights
from deeplight.kernels.locate.reference import half_pixel_shifts
from deeplight.kernels.refine.entry import refine
from deeplight.kernels.refine.reference import Radiance
from deeplight.kernels.restore.entry import restore
from deeplight.kernels.restore.reference import Base
from deeplight.kernels.settle.entry import settle
from deeplight.kernels.settle.reference import Belief
from deeplight.kernels.suggest.entry import suggest
from deeplight.kernels.upsample.entry import upsample

__all__ = [
    "Base",
    "Belief",
    "Implementation",
    "LocateWeights",
    "Radiance",
    "Sensor",
    "TileMesh",
    "align",
    "base",
    "finish",
    "fuse",
    "half_pixel_shifts",
    "interpolation_kernel",
    "locate",
    "refine",
    "resample_offset",
    "resize_fixed",
    "restore",
    "sample",
    "settle",
    "split_nodes",
    "suggest",
    "upsample",
]
