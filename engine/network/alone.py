"""The network for scenes of lights alone, as a module of its own."""

from __future__ import annotations

from torch import Tensor, nn

from deeplight.engine.network.model import DeepLightSR


class LightsAlone(nn.Module):
    """`DeepLightSR.lights_alone` of a network, whose weights it shares."""

    def __init__(self, network: DeepLightSR) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, ntl: Tensor, ntl_valid: Tensor, psf: Tensor, limits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """ntl_hr, isp and interval, with shapes and units as spec.OUTPUTS has them."""
        return self.network.lights_alone(ntl, ntl_valid, psf, limits)
