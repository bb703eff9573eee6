"""The operations that DeepLightSR is built from, as functions of tensors."""

from deeplight.kernels.reference import (
    fuse,
    interpolation_kernel,
    resample_offset,
    resize_fixed,
    upsample,
)

__all__ = ["fuse", "interpolation_kernel", "resample_offset", "resize_fixed", "upsample"]
