"""The operations that DeepLightSR is built from, as functions of tensors.

`align`, `fuse`, `upsample` and `refine` have a Triton kernel and a plain-PyTorch reference each; the rest is PyTorch.
"""

from deeplight.kernels._align import align
from deeplight.kernels._fuse import fuse
from deeplight.kernels._refine import refine
from deeplight.kernels._upsample import upsample
from deeplight.kernels.dispatch import Implementation
from deeplight.kernels.reference import (
    Finish,
    Mesh,
    interpolation_kernel,
    resample_offset,
    resize_fixed,
    sample,
    split_nodes,
)

__all__ = [
    "Finish",
    "Implementation",
    "Mesh",
    "align",
    "fuse",
    "interpolation_kernel",
    "refine",
    "resample_offset",
    "resize_fixed",
    "sample",
    "split_nodes",
    "upsample",
]
