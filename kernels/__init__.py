"""The operations that DeepLightSR is built from, as functions of tensors.

`align`, `fuse`, `upsample`, `refine` and `finish` have a Triton kernel and a plain-PyTorch reference each; the rest is
PyTorch.
"""

from deeplight.kernels.align.entry import align
from deeplight.kernels.align.reference import Mesh, split_nodes
from deeplight.kernels.dispatch import Implementation
from deeplight.kernels.finish.entry import finish
from deeplight.kernels.fuse.entry import fuse
from deeplight.kernels.interpolation import interpolation_kernel, resample_offset, resize_fixed, sample
from deeplight.kernels.refine.entry import refine
from deeplight.kernels.refine.reference import Radiance
from deeplight.kernels.upsample.entry import upsample

__all__ = [
    "Implementation",
    "Mesh",
    "Radiance",
    "align",
    "finish",
    "fuse",
    "interpolation_kernel",
    "refine",
    "resample_offset",
    "resize_fixed",
    "sample",
    "split_nodes",
    "upsample",
]
