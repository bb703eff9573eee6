"""DeepLightSR: calibration-aware alignment, auxiliary-to-main fusion, auxiliary-embedded refinement.

An open implementation that follows the published description (IJCAI 2024); what is not published (widths, depths,
normalisation, the offset's form) is ours. Scales ×1, ×2, ×4, ×8 are indexed 0 … 3. Nothing here looks at a whole
image: the result at a pixel depends on a bounded neighbourhood (`receptive.py` computes it), so tiles agree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplight import kernels
from deeplight.engine.network.blocks import Encoder, Fusion, Refine
from deeplight.engine.network.concatenation import Concatenation
from deeplight.engine.network.config import ModelConfig
from deeplight.engine.network.consistency import agreeing, base, sensor_of, settled, trust
from deeplight.engine.network.localise import Localise
from deeplight.engine.network.normalise import Normalise
from deeplight.kernels import Sensor
from deeplight.kernels.dispatch import exporting
from deeplight.kernels.interpolation import SCALE, interpolation_line
from deeplight.kernels.suggest.reference import softplus

FILL_RADIUS = 3

Auxiliary = tuple[Tensor, ...]
"""Normalised DMO with its mask and DEM with its own, 0 where invalid: (B,8,8h,8w) and (B,2,8h,8w) in the features' type
on a GPU, elsewhere (B,10,8h,8w) in float32."""


class Prediction(NamedTuple):
    """ntl: radiance (B,1,2h,2w), (B,1,4h,4w), (B,1,8h,8w) in the normalised (log) domain, coarse to fine.

    isp_logits: the same shapes. offset: (B,2,h,w), (x, y) in LR pixels. widths: (B,2,8h,8w), how far below and above
    the finest radiance the interval reaches, ≥ 0, in the normalised domain.
    """

    ntl: list[Tensor]
    isp_logits: list[Tensor]
    offset: Tensor
    widths: Tensor


class Features(NamedTuple):
    """What the last refinement begins with. x: (B,C,8h,8w). carried: the residuals so far (B,1,4h,4w), float32.

    widths: (B,2,8h,8w). residuals, isp_logits: of the refinements at ×2 and ×4.
    """

    x: Tensor
    carried: Tensor
    widths: Tensor
    residuals: list[Tensor]
    isp_logits: list[Tensor]


def apart(x: Tensor) -> bool:
    """Whether DMO and DEM are tensors of their own, beside lights such as x."""
    return x.is_cuda and not exporting()


def area_means(aux: Auxiliary) -> Tensor:
    """Area means of the auxiliary at ×4: (B,10,4h,4w), float32."""
    means = [F.avg_pool2d(part.float(), 2) for part in aux]
    return means[0] if len(means) == 1 else torch.cat(means, dim=1)


def _fusion(config: ModelConfig, scale: int) -> nn.Module:
    kind = Fusion if config.fusion == "modulate" else Concatenation
    return kind(config.main[scale], config.aux[scale])


class DeepLightSR(nn.Module):
    """The network. `predict` gives every supervised output; `forward` gives the deployed ones in physical units.

    What it learns is a residual, in the log domain, to a base that is physics alone (`consistency.base`); the last step
    makes the result agree with the given lights, as their sensor would have seen it.
    """

    features: ClassVar[torch.dtype | None] = None
    """Element type of the features; None: that of the inputs."""
    cubic: Tensor
    cubic_line: Tensor
    linear_line: Tensor
    filler: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        main, aux = config.main, config.aux
        self.normalise = Normalise(config.normalisation)
        self.localise = Localise(config)
        self.dmo_encoder = Encoder(8, aux)
        self.dem_encoder = Encoder(2, aux)
        self.band_bias = nn.Linear(7, aux[2])
        self.first = nn.Conv2d(3, main[0], 3, padding=1)
        self.sensor_bias = nn.Linear(4, main[0])
        self.body = nn.ModuleList(nn.Conv2d(main[0], main[0], 3, padding=1) for _ in range(config.body))
        self.fusions = nn.ModuleList(_fusion(config, s) for s in range(3))
        self.ups = nn.ModuleList(nn.Conv2d(main[s], 4 * main[s + 1], 3, padding=1) for s in range(3))
        self.refines = nn.ModuleList(
            Refine(main[s + 1], config.refine[s], config.embed_isp) for s in range(3)
        )
        self.spread = nn.Conv2d(main[2], 2 * 4, 1)
        self.base_power = nn.Parameter(torch.tensor(3.0))
        nn.init.zeros_(self.sensor_bias.weight)
        nn.init.zeros_(self.spread.weight)
        nn.init.constant_(self.spread.bias, -2.0)  # type: ignore[arg-type]
        self.register_buffer("cubic", kernels.interpolation_kernel(2, "cubic"))
        self.register_buffer("cubic_line", interpolation_line(SCALE, "cubic"))
        self.register_buffer("linear_line", interpolation_line(SCALE, "linear"))
        line = torch.tensor([1.0, 4.0, 16.0, 64.0, 16.0, 4.0, 1.0])
        self.register_buffer("filler", (line[:, None] * line[None, :])[None, None])

    def predict(
        self, *inputs: Tensor, known_offset: Tensor | None = None, holds_sums: bool = True
    ) -> Prediction:
        """Inputs in the order of `deeplight.engine.core.spec.INPUTS`; outputs in the normalised domain.

        known_offset: (B,2,h,w) in LR pixels, aligns the auxiliary in place of the estimate. holds_sums: see
        `consistency.agreeing`. Reduced precision (autocast) does not reach the alignment and the sensor model: they
        keep 32 bits.
        """
        with torch.autocast(inputs[0].device.type, enabled=False):
            filled, aligned, offset = self._align(*self.layers(*inputs), inputs[1], offset=known_offset)
            sensor = self.sensor(filled, *inputs)
            start = self.base(sensor)
        if torch.is_autocast_enabled(filled.device.type):
            dtype = torch.get_autocast_dtype(filled.device.type)
            aligned = (aligned[0].to(dtype), aligned[1].to(dtype))
        found = self._reconstruct(filled, sensor, aligned, *inputs)
        _, residual, isp = self.refines[2](found.x, kernels.resize_fixed(found.carried, self.cubic, 2))
        with torch.autocast(inputs[0].device.type, enabled=False):
            refined = self.normalise.radiance(self.normalise.ntl(start) + residual.float())
            agreed = agreeing(refined, start, sensor, self.linear_line, holds_sums=holds_sums)
            finest = self.normalise.ntl(agreed)
        coarse = [
            self.normalise.ntl(F.avg_pool2d(start, SCALE // side)) + residual
            for side, residual in zip((2, 4), found.residuals, strict=True)
        ]
        return Prediction([*coarse, finest], [*found.isp_logits, isp], offset, found.widths)

    def sensor(self, filled: Tensor, *inputs: Tensor) -> Sensor:
        """What the sensor saw and how, from the inputs and the normalised NTL with filled holes."""
        ntl, valid, psf, limits = inputs[0], inputs[1], inputs[-2], inputs[-1]
        return sensor_of(self.normalise.radiance(filled), ntl, valid, psf, limits)

    def base(self, sensor: Sensor) -> Tensor:
        """Radiance (B,1,8h,8w) from the lights and their sensor alone."""
        power = 1.0 + torch.sigmoid(self.base_power)
        return base(sensor, self.cubic_line, self.linear_line, power)

    def _align(
        self,
        x: Tensor,
        aux: Auxiliary,
        valid: Tensor,
        *,
        lights: Tensor | None = None,
        offset: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
        """Normalised NTL with filled holes, DMO (B,8,8h,8w) and DEM (B,2,8h,8w) with their masks aligned to it, and the
        offset. x, aux: from `layers`. lights: from `suggest`. lights and offset are found where they are not given."""
        if offset is None:
            found = self.localise
            offset = found(x, area_means(aux)) if lights is None else found.offset(x, lights)
        moved = [kernels.align(part, offset=offset, dtype=self.features) for part in aux]
        dmo, dem = moved if len(moved) == 2 else (moved[0][:, :8], moved[0][:, 8:])
        return self._fill(x, valid), (dmo, dem), offset

    def suggest(self, aux: Auxiliary) -> Tensor:
        """The lights (B,1,h,w) that the auxiliary, from `layers`, suggests, normalised."""
        return self.localise.suggest(area_means(aux))

    def layers(
        self,
        ntl: Tensor,
        ntl_valid: Tensor,
        dmo: Tensor,
        dmo_valid: Tensor,
        dmo_bands: Tensor,
        dem: Tensor,
        dem_valid: Tensor,
        *_: Tensor,
    ) -> tuple[Tensor, Auxiliary]:
        """Normalised NTL (B,1,h,w) and the auxiliary with its masks, not aligned; invalid pixels hold 0.

        On a GPU, DMO and DEM are apart and channels-last. Kernels and convolutions there first copy whatever is not:
        120 bytes for each HR pixel. They also are of the features' type, which they become when they are moved: rounded
        before, they cost half the bytes, and move the estimated offset by 8e-6 LR pixels (fp16; bf16: 4e-5) in the
        mean. An exported graph has one `align` for all ten channels.
        """
        bands = dmo_bands[:, :, None, None]
        parts = [
            self.normalise.dmo(dmo) * dmo_valid * bands,
            dmo_valid,
            self.normalise.dem(dem) * dem_valid,
            dem_valid,
        ]
        lights = self.lights(ntl, ntl_valid)
        if not apart(lights):
            return lights, (torch.cat(parts, dim=1),)
        # joined along the last axis: Inductor may write what is only asked to become channels-last twice
        pairs = ([x.movedim(1, -1) for x in pair] for pair in (parts[:2], parts[2:]))
        dtype = lights.dtype if self.features is None else self.features
        return lights, tuple(torch.cat(pair, dim=-1).to(dtype).movedim(-1, 1) for pair in pairs)

    def lights(self, ntl: Tensor, valid: Tensor) -> Tensor:
        """Normalised NTL, 0 where it is invalid."""
        return self.normalise.ntl(ntl) * valid

    def _fill(self, x: Tensor, valid: Tensor) -> Tensor:
        """Nodata holes take the weighted mean of valid neighbours, so that interpolation does not darken rims."""
        near = F.conv2d(x, self.filler, padding=FILL_RADIUS)
        weight = F.conv2d(valid, self.filler, padding=FILL_RADIUS)
        return x + (1.0 - valid) * near / weight.clamp(min=1.0)

    def _reconstruct(
        self, ntl: Tensor, sensor: Sensor, aligned: tuple[Tensor, Tensor], *inputs: Tensor
    ) -> Features:
        """Everything but the last refinement. ntl: normalised, holes filled. aligned: from `_align`."""
        dmo, dem = aligned
        dmo_features = self.dmo_encoder(dmo, self.band_bias(inputs[4].to(dmo.dtype)))
        dem_features = self.dem_encoder(dem)
        masks = [[F.avg_pool2d(dmo[:, 7:8], 2)], [F.avg_pool2d(dem[:, 1:2], 2)]]
        for pyramid in masks:
            for _ in range(2):
                pyramid.append(F.avg_pool2d(pyramid[-1], 2))
        dmo_masks, dem_masks = masks[0][::-1], masks[1][::-1]

        def fused(x: Tensor, s: int) -> Tensor:
            out: Tensor = self.fusions[s](x, [dmo_features[s], dem_features[s]], [dmo_masks[s], dem_masks[s]])
            return out

        return self._decoded(self._first(ntl, sensor, inputs[-2], dmo.dtype), fused)

    def _first(self, ntl: Tensor, sensor: Sensor, psf: Tensor, dtype: torch.dtype) -> Tensor:
        """Features (B,C,h,w) of the lights, in the type of features."""
        # the cast comes behind the convolution: NTL rounded before it costs more than all other roundings together
        x = self.first(torch.cat([ntl, sensor.known, sensor.saturated], dim=1))
        return F.relu((x + self._sensor_bias(psf, sensor.noise)).to(dtype))

    def _decoded(self, x: Tensor, fused: Callable[[Tensor, int], Tensor]) -> Features:
        """From the features of the lights up to ×8. fused: the features at ×1, ×2 or ×4 with those of the auxiliary."""
        x = fused(x, 0)
        for layer in self.body:
            x = x + F.relu(layer(x))
        carried: Tensor | None = None
        residuals: list[Tensor] = []
        logits: list[Tensor] = []
        for s in (0, 1):
            x = fused(self._up(x, s), s + 1)
            if carried is not None:
                carried = kernels.resize_fixed(carried, self.cubic, 2)
            x, carried, isp = self.refines[s](x, carried)
            residuals.append(carried)
            logits.append(isp)
        widths = F.pixel_shuffle(softplus(self.spread(x).float()), 2)
        return Features(self._up(x, 2), residuals[-1], widths, residuals, logits)

    def _sensor_bias(self, psf: Tensor, noise: Tensor) -> Tensor:
        """(B,C,1,1) from the blur, whether it is known, and the noise."""
        known = (psf >= 0.0).to(psf.dtype)
        strength = torch.log1p(noise[:, :, 0, 0] / self.normalise.unit)
        bias: Tensor = self.sensor_bias(torch.cat([psf * known, known[:, :1], strength], dim=1))
        return bias[:, :, None, None]

    def _up(self, x: Tensor, s: int) -> Tensor:
        """Features at twice the scale."""
        up = self.ups[s]
        assert isinstance(up, nn.Conv2d) and up.bias is not None
        return kernels.upsample(x, up.weight, up.bias)

    def forward(
        self,
        ntl: Tensor,
        ntl_valid: Tensor,
        dmo: Tensor,
        dmo_valid: Tensor,
        dmo_bands: Tensor,
        dem: Tensor,
        dem_valid: Tensor,
        psf: Tensor,
        limits: Tensor,
        known_offset: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The deployed outputs; inputs as `spec.INPUTS`. known_offset: see `predict`.

        Returns ntl_hr (B,1,8h,8w) in the input's unit, isp (B,1,8h,8w) in [0, 1], offset (B,2,h,w) in LR px, and
        interval (B,2,8h,8w), its ends low and high, in the input's unit.
        """
        inputs = (ntl, ntl_valid, dmo, dmo_valid, dmo_bands, dem, dem_valid, psf, limits)
        return self._aligned(*self._align(*self.layers(*inputs), ntl_valid, offset=known_offset), *inputs)

    def rest(self, aux: Auxiliary, lights: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`forward` behind `layers`, which gave aux, and `suggest`, which gave the lights, of these inputs or of others
        with the same layers. What the inputs hold of the layers is not read again."""
        x = self.lights(inputs[0], inputs[1])
        return self._aligned(*self._align(x, aux, inputs[1], lights=lights), *inputs)

    def _aligned(
        self, filled: Tensor, aligned: tuple[Tensor, Tensor], offset: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`forward` behind `_align`."""
        sensor = self.sensor(filled, *inputs)
        found = self._reconstruct(filled, sensor, aligned, *inputs)
        radiance, isp, interval = self._deployed(found, sensor, inputs[-2])
        return radiance, isp, offset, interval

    def lights_alone(
        self, ntl: Tensor, ntl_valid: Tensor, psf: Tensor, limits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`forward` where no pixel has daytime bands or elevation: ntl_hr, isp and interval, without alignment and
        encoders. Where all masks are 0, fusion changes each channel by constants."""
        inputs = (ntl, ntl_valid, psf, limits)
        filled = self._fill(self.lights(ntl, ntl_valid), ntl_valid)
        sensor = self.sensor(filled, *inputs)
        dtype = filled.dtype if self.features is None else self.features

        def fused(x: Tensor, s: int) -> Tensor:
            fusion = self.fusions[s]
            assert isinstance(fusion, Fusion | Concatenation)
            return fusion.without(x)

        found = self._decoded(self._first(filled, sensor, psf, dtype), fused)
        return self._deployed(found, sensor, psf)

    def _deployed(self, found: Features, sensor: Sensor, psf: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Radiance, impervious probability and interval, in physical units."""
        start = self.base(sensor)
        under = kernels.Base(start, found.carried, trust(sensor))
        last = self.refines[2]
        assert isinstance(last, Refine)
        restored, isp = last.restore(found.x, under, self.normalise, self.cubic, self.linear_line)
        radiance = settled(restored, start, sensor, psf, self.linear_line)
        middle = self.normalise.ntl(radiance)
        ends = [
            self.normalise.radiance(middle - found.widths[:, :1]),
            self.normalise.radiance(middle + found.widths[:, 1:]),
        ]
        # rounding must not put an end on the wrong side
        interval = torch.cat([torch.minimum(ends[0], radiance), torch.maximum(ends[1], radiance)], dim=1)
        return radiance, isp, interval
