"""DeepLightSR in a reduced precision, with the parts that need float32 left in it."""

from __future__ import annotations

import torch

from deeplight.engine.network.model import DeepLightSR

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Precision → element type of the features and of the weights that meet them."""

FEATURES = ("dmo_encoder", "dem_encoder", "band_bias", "body", "fusions", "ups", "refines", "spread")
"""Modules of the network that compute in the reduced type. All others keep float32."""


class Reduced(DeepLightSR):
    """The network with features of another type between float32 ends.

    In float32 stay: log1p and standardisation, the localisation network with its offsets, the gathers through them,
    the first convolution of the NTL, the sensor's blur with the base and the last step, the exponentials of the
    fusion's softmax, its 1 + γ and β, the last residual, the chain of NTL levels (base + residual at each scale, so the
    last accumulation too) and expm1. So it is in the ONNX files.
    """


class Half(Reduced):
    """float16 features."""

    features = torch.float16


class BFloat16(Reduced):
    """bfloat16 features."""

    features = torch.bfloat16


def in_precision(model: DeepLightSR, precision: str) -> DeepLightSR:
    """The model itself for "fp32", else a copy with rounded weights, in eval mode. precision: a key of DTYPES."""
    if precision == "fp32":
        return model.eval()
    kind = {"fp16": Half, "bf16": BFloat16}[precision]
    reduced = kind(model.config)
    reduced.load_state_dict(model.state_dict())
    for name in FEATURES:
        getattr(reduced, name).to(kind.features)
    return reduced.eval()
