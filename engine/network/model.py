"""DeepLightSR: calibration-aware alignment, auxiliary-to-main fusion, auxiliary-embedded refinement.

An open implementation that follows the published description (IJCAI 2024); what is not published (widths, depths,
normalisation, the offset's form) is ours. Scales ×1, ×2, ×4, ×8 are indexed 0 … 3. Nothing here looks at a whole
image: the result at a pixel depends on a bounded neighbourhood (`receptive.py` computes it), so tiles agree.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplight import kernels
from deeplight.engine.network.concatenation import Concatenation
from deeplight.engine.network.config import ModelConfig, Normalisation
from deeplight.engine.network.consistency import Sensor, base, blur_weights, consistent, enlarged
from deeplight.kernels.interpolation import SCALE, interpolation_line

SHIFT_RADIUS = 2
WINDOW_RADIUS = 7
FILL_RADIUS = 3
UNKNOWN_NOISE = 0.05
"""Of NTL whose noise is not known, in its unit: of the order of that of annual VIIRS composites in nW/cm²/sr."""
LEAST_NOISE = 1e-3
VARIANCE_FLOOR = 1e-3
"""Added to variances of log radiance before dividing or taking logs: noise in the dark is no structure."""


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


class Normalise(nn.Module):
    """Physical units ↔ the network's domain, with constants kept as buffers so that every artifact carries them."""

    dmo_mean: Tensor
    dmo_std: Tensor

    def __init__(self, norm: Normalisation) -> None:
        super().__init__()
        self.unit, self.gain = norm.ntl_unit, norm.ntl_gain
        self.ceiling = norm.ntl_max
        self.register_buffer("dmo_mean", torch.tensor(norm.dmo_mean).reshape(1, -1, 1, 1))
        self.register_buffer("dmo_std", torch.tensor(norm.dmo_std).reshape(1, -1, 1, 1))
        self.dem_mean, self.dem_std = norm.dem_mean, norm.dem_std

    def ntl(self, radiance: Tensor) -> Tensor:
        """log1p of the radiance, negatives (noise) clamped to 0."""
        return torch.log1p(radiance.clamp(0.0, self.ceiling) / self.unit) / self.gain

    def radiance(self, value: Tensor) -> Tensor:
        """Inverse of `ntl`, ≥ 0. Clamped above too, so that no weight can make an infinity."""
        top = math.log1p(self.ceiling / self.unit)
        return torch.expm1((value * self.gain).clamp(0.0, top)) * self.unit

    def dmo(self, reflectance: Tensor) -> Tensor:
        """Standardised bands, bounded: clouds and glint must not leave the trained range."""
        return ((reflectance - self.dmo_mean) / self.dmo_std).clamp(-4.0, 8.0)

    def dem(self, metres: Tensor) -> Tensor:
        """Standardised elevation, bounded."""
        return ((metres - self.dem_mean) / self.dem_std).clamp(-4.0, 8.0)


class Localise(nn.Module):
    """Calibration-aware alignment: a dense offset field from the NTL and the auxiliary.

    The auxiliary is turned, pixel by pixel, into the lights it suggests: impervious share at ×4, its area mean at ×1
    together with the bands' means, then a log radiance. These lights, moved by each of the 81 shifts on a half-pixel
    lattice within ±2 LR pixels, are fitted to the NTL over a tapered 23×23 window with a free gain and level, so that
    a town's brightness does not matter. The estimate is the mean shift under the posterior
    exp(−sharpness · residual variance − prior · |shift|²): where nothing can be seen the prior holds it at 0, and
    along a lone road only the shift across it is decided. A small pointwise correction follows.
    """

    shift_xy: Tensor
    shifts: Tensor
    window: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, shifts = config.localise_width, (4 * SHIFT_RADIUS + 1) ** 2
        self.impervious = _pointwise_layers(10, 32, 32, 1)
        self.lights = _pointwise_layers(11, width, width, 1)
        self.certainty = _pointwise_layers(3, 16, 1)
        self.correct = _pointwise_layers(shifts + 3, width, width, 2)
        for layer in (self.certainty[-1], self.correct[-1]):
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.sharpness = nn.Parameter(torch.tensor(4.0))
        self.prior = nn.Parameter(torch.tensor(-1.2))
        self.d_max = config.d_max
        self.align = config.align
        xy, kernels_ = _half_pixel_shifts()
        self.register_buffer("shift_xy", xy)
        self.register_buffer("shifts", kernels_)
        line = torch.hann_window(2 * WINDOW_RADIUS + 3, periodic=False)[1:-1].sqrt()
        self.register_buffer("window", line / line.sum())

    def forward(self, ntl: Tensor, aux: Tensor) -> Tensor:
        """ntl: (B,1,h,w); aux: (B,10,4h,4w), both normalised. Returns (B,2,h,w), (x, y) in LR px, |·| ≤ d_max."""
        if not self.align:
            return torch.zeros_like(ntl).repeat(1, 2, 1, 1)
        residual, state = self._residuals(ntl, self.suggested(aux)[0])
        sharpness = torch.exp(self.sharpness + 2.0 * torch.tanh(_pointwise(self.certainty, state)))
        distance = (self.shift_xy * self.shift_xy).sum(dim=0, keepdim=True).reshape(1, -1, 1, 1)
        share = _softmax(-sharpness * residual - torch.exp(self.prior) * distance)
        offset = F.conv2d(share, self.shift_xy) + _pointwise(
            self.correct, torch.cat([share * 5.0, state], dim=1)
        )
        # scaled tanh: the identity near 0, never beyond d_max
        return self.d_max * torch.tanh(offset * (1.0 / self.d_max))

    def suggested(self, aux: Tensor) -> tuple[Tensor, Tensor]:
        """aux: (B,10,4h,4w). Returns the lights it suggests (B,1,h,w), normalised, and ISP logits (B,1,4h,4w)."""
        logits = _pointwise(self.impervious, aux)
        both = F.avg_pool2d(torch.cat([torch.sigmoid(logits), aux], dim=1), 4)
        radiance = _softplus(_pointwise(self.lights, both))
        return torch.log1p(radiance) * 0.5, logits

    def _residuals(self, ntl: Tensor, lights: Tensor) -> tuple[Tensor, Tensor]:
        """Residual variance per shift (B,81,h,w), and what it was made of (B,3,h,w): two log variances, the mean."""
        moved = self._move(lights)
        mean, moved_mean = self._mean(ntl), self._move(self._mean(lights))
        variance = (self._mean(ntl * ntl) - mean * mean).clamp(min=0.0)
        moved_variance = (self._mean(moved * moved) - moved_mean * moved_mean).clamp(min=0.0)
        covariance = self._mean(ntl * moved) - mean * moved_mean
        gain = (covariance / (moved_variance + VARIANCE_FLOOR)).clamp(0.0, 3.0)
        residual = variance + gain * (gain * moved_variance - 2.0 * covariance)
        # the smallest as −max(−x): exporters know a maximum over channels
        best = -torch.amax(-residual, dim=1, keepdim=True)
        logs = [torch.log(v.clamp(min=0.0) + VARIANCE_FLOOR) for v in (variance, best)]
        return residual, torch.cat([*logs, mean], dim=1)

    def _move(self, x: Tensor) -> Tensor:
        """(B,1,h,w) → (B,81,h,w): x(p + shift) for every shift, linear between pixels, edges repeated."""
        return F.conv2d(F.pad(x, (SHIFT_RADIUS,) * 4, mode="replicate"), self.shifts)

    def _mean(self, x: Tensor) -> Tensor:
        """Mean of each channel over the tapered window, edges repeated."""
        c, n = x.shape[1], 2 * WINDOW_RADIUS + 1
        padded = F.pad(x, (WINDOW_RADIUS,) * 4, mode="replicate")
        rows = F.conv2d(padded, self.window.reshape(1, 1, n, 1).repeat(c, 1, 1, 1), groups=c)
        return F.conv2d(rows, self.window.reshape(1, 1, 1, n).repeat(c, 1, 1, 1), groups=c)


def _half_pixel_shifts() -> tuple[Tensor, Tensor]:
    """Shifts (2,81,1,1) as (x, y) within ±SHIFT_RADIUS in steps of ½, and the kernels (81,1,K,K) that sample there."""
    n = 4 * SHIFT_RADIUS + 1
    at = torch.linspace(-SHIFT_RADIUS, SHIFT_RADIUS, n)
    taps = torch.arange(-SHIFT_RADIUS, SHIFT_RADIUS + 1, dtype=torch.float32)
    line = (1.0 - (at[:, None] - taps[None, :]).abs()).clamp(min=0.0)
    y, x = torch.meshgrid(at, at, indexing="ij")
    sampling = (line[:, None, :, None] * line[None, :, None, :]).reshape(n * n, 1, len(taps), len(taps))
    return torch.stack([x, y]).reshape(2, n * n, 1, 1), sampling


def _softmax(x: Tensor) -> Tensor:
    """Over the channels, written out: runtimes transpose twice for theirs."""
    grown = torch.exp(x - torch.amax(x, dim=1, keepdim=True))
    return grown / grown.sum(dim=1, keepdim=True)


def _softplus(x: Tensor) -> Tensor:
    """log(1 + eˣ) written out, since exporters turn torch's into a selection; 80 keeps the exponential finite."""
    return torch.log1p(torch.exp(x.clamp(max=80.0)))


def _pointwise_layers(*channels: int) -> nn.ModuleList:
    """1×1 convolutions through these channel counts."""
    return nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in itertools.pairwise(channels))


def _pointwise(layers: nn.ModuleList, x: Tensor) -> Tensor:
    """1×1 convolutions with ReLU between them."""
    for layer in layers[:-1]:
        x = F.relu(layer(x))
    out: Tensor = layers[-1](x)
    return out


class Encoder(nn.Module):
    """One modality → features at ×4, ×2, ×1 (returned coarse to fine). Channel −1 of the input is its mask.

    Nothing is computed at ×8: a 4×4 convolution with stride 2 takes the finest pixels in.
    """

    def __init__(self, channels: int, widths: tuple[int, int, int]) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, widths[2], 4, stride=2, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(widths[s + 1], widths[s], 2, stride=2) for s in (1, 0))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> list[Tensor]:
        """x: (B,channels,8h,8w); bias: (B,A) or None, added to the first features. Three tensors, ×1 first."""
        y = self.first(x)
        features = [F.relu(y if bias is None else y + bias[:, :, None, None])]
        for layer in self.down:
            features.append(F.relu(layer(features[-1])))
        return features[::-1]


class Fusion(nn.Module):
    """Parameters of `kernels.fuse` for two modalities. γ and β start at 0: fusion starts as the identity."""

    def __init__(self, main: int, aux: int, modalities: int = 2) -> None:
        super().__init__()
        self.query_aux = nn.Parameter(torch.randn(modalities, aux) * aux**-0.5)
        self.query_main = nn.Parameter(torch.zeros(modalities, main))
        self.query_bias = nn.Parameter(torch.zeros(modalities))
        self.film_weight = nn.Parameter(torch.randn(2 * main, aux) * 0.1 * aux**-0.5)
        self.film_bias = nn.Parameter(torch.zeros(2 * main))

    def forward(self, main: Tensor, aux: list[Tensor], masks: list[Tensor]) -> Tensor:
        """main: (B,C,H,W); aux: per modality (B,A,H,W); masks: per modality (B,1,H,W)."""
        return kernels.fuse(
            main,
            aux,
            masks,
            self.query_aux,
            self.query_main,
            self.query_bias,
            self.film_weight,
            self.film_bias,
        )


class Refine(nn.Module):
    """Auxiliary-embedded refinement: ISP logit, its probability embedded back, then the NTL residual."""

    embed: Tensor

    def __init__(self, width: int, depth: int, embed_isp: bool = True) -> None:
        super().__init__()
        self.isp = nn.Conv2d(width, 1, 1)
        if embed_isp:
            self.embed = nn.Parameter(torch.randn(width) * 0.1)
        else:
            self.register_buffer("embed", torch.zeros(width))
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.residual = nn.Conv2d(width, 1, 1)
        nn.init.zeros_(self.residual.weight)
        nn.init.zeros_(self.residual.bias)  # type: ignore[arg-type]
        nn.init.constant_(self.isp.bias, -2.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor, carried: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """x: (B,C,H,W); carried: (B,1,H,W) or None. Returns features, NTL residual + carried, ISP logits."""
        logits = self.isp(x)
        x = x + torch.sigmoid(logits) * self.embed[None, :, None, None]
        for layer in self.layers:
            x = x + F.relu(layer(x))
        residual = self.residual(x).float()
        return x, residual if carried is None else carried + residual, logits

    def finish(self, x: Tensor, level: Tensor, norm: Normalise) -> tuple[Tensor, Tensor]:
        """x: (B,C,H,W); level: (B,1,H,W), normalised. Returns radiance and ISP probability, (B,1,H,W) each."""
        blocks = [_parameters(layer) for layer in self.layers]
        return kernels.refine(
            x,
            level,
            *_parameters(self.isp),
            self.embed,
            [weight for weight, _ in blocks],
            [bias for _, bias in blocks],
            *_parameters(self.residual),
            range=kernels.Radiance(norm.unit, norm.gain, norm.ceiling),
        )


def _parameters(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution."""
    return layer.weight, layer.bias  # type: ignore[return-value]


def _fusion(config: ModelConfig, scale: int) -> nn.Module:
    kind = Fusion if config.fusion == "modulate" else Concatenation
    return kind(config.main[scale], config.aux[scale])


class DeepLightSR(nn.Module):
    """The network. `predict` gives every supervised output; `forward` gives the deployed ones in physical units.

    What it learns is a residual, in the log domain, to a base that is physics alone (`consistency.base`); the last step
    makes the result agree with the given lights, as their sensor would have seen it.
    """

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

    def predict(self, *inputs: Tensor, known_offset: Tensor | None = None) -> Prediction:
        """Inputs in the order of `deeplight.engine.core.spec.INPUTS`; outputs in the normalised domain.

        known_offset: (B,2,h,w) in LR pixels, aligns the auxiliary in place of the estimate (for training). Reduced
        precision (autocast) does not reach the alignment and the sensor model: they keep 32 bits.
        """
        with torch.autocast(inputs[0].device.type, enabled=False):
            filled, aligned, offset = self._align(*inputs, known_offset=known_offset)
            sensor = self.sensor(filled, *inputs)
            start = self.base(sensor)
        if torch.is_autocast_enabled(aligned.device.type):
            aligned = aligned.to(torch.get_autocast_dtype(aligned.device.type))
        found = self._reconstruct(filled, sensor, aligned, *inputs)
        _, residual, isp = self.refines[2](found.x, kernels.resize_fixed(found.carried, self.cubic, 2))
        with torch.autocast(inputs[0].device.type, enabled=False):
            refined = self.normalise.radiance(self.normalise.ntl(start) + residual.float())
            finest = self.normalise.ntl(self._agreeing(refined, start, sensor))
        coarse = [
            self.normalise.ntl(F.avg_pool2d(start, SCALE // side)) + residual
            for side, residual in zip((2, 4), found.residuals, strict=True)
        ]
        return Prediction([*coarse, finest], [*found.isp_logits, isp], offset, found.widths)

    def sensor(self, filled: Tensor, *inputs: Tensor) -> Sensor:
        """What the sensor saw and how, from the inputs and the normalised NTL with filled holes."""
        ntl, valid, psf, limits = inputs[0], inputs[1], inputs[-2], inputs[-1]
        fwhm = psf.clamp(min=0.0)  # unknown counts as none: nothing is sharpened that may not be blurred
        level, noise = limits[:, :1, None, None], limits[:, 1:, None, None]
        reached = ((ntl - level) >= 0.0).to(ntl.dtype) * (level > 0.0).to(ntl.dtype)
        known = (noise >= 0.0).to(ntl.dtype)
        noise = (noise * known + UNKNOWN_NOISE * (1.0 - known)).clamp(min=LEAST_NOISE)
        rows, columns = blur_weights(fwhm[:, 0]), blur_weights(fwhm[:, 1])
        return Sensor(self.normalise.radiance(filled), valid, reached * valid, rows, columns, noise)

    def base(self, sensor: Sensor) -> Tensor:
        """Radiance (B,1,8h,8w) from the lights and their sensor alone."""
        power = 1.0 + torch.sigmoid(self.base_power)
        return base(sensor, self.cubic_line, self.linear_line, power)

    def _agreeing(self, refined: Tensor, start: Tensor, sensor: Sensor) -> Tensor:
        """The refined radiance, and the base in place of it where nothing but noise is seen, made consistent.

        Without the latter a bias of a thousandth in the log domain, spread over a dark country, is a tenth of its sum.
        """
        share = enlarged(sensor.y / (sensor.y + sensor.noise), self.linear_line)
        return consistent(start + (refined - start) * share, sensor, self.linear_line)

    def _align(self, *inputs: Tensor, known_offset: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised NTL with filled holes, the auxiliary (B,10,8h,8w) aligned to it, and the offset."""
        x, aux = self.layers(*inputs)
        offset = self.localise(x, F.avg_pool2d(aux, 2)) if known_offset is None else known_offset
        return self._fill(x, inputs[1]), kernels.align(aux, offset=offset), offset

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
    ) -> tuple[Tensor, Tensor]:
        """Normalised NTL (B,1,h,w) and auxiliary (B,10,8h,8w) with its masks, not aligned; invalid pixels hold 0."""
        bands = dmo_bands[:, :, None, None]
        aux = torch.cat(
            [
                self.normalise.dmo(dmo) * dmo_valid * bands,
                dmo_valid,
                self.normalise.dem(dem) * dem_valid,
                dem_valid,
            ],
            dim=1,
        )
        return self.normalise.ntl(ntl) * ntl_valid, aux

    def _fill(self, x: Tensor, valid: Tensor) -> Tensor:
        """Nodata holes take the weighted mean of valid neighbours, so that interpolation does not darken rims."""
        near = F.conv2d(x, self.filler, padding=FILL_RADIUS)
        weight = F.conv2d(valid, self.filler, padding=FILL_RADIUS)
        return x + (1.0 - valid) * near / weight.clamp(min=1.0)

    def _reconstruct(self, ntl: Tensor, sensor: Sensor, aux: Tensor, *inputs: Tensor) -> Features:
        """Everything but the last refinement. ntl: normalised, holes filled. aux: aligned."""
        dmo_features = self.dmo_encoder(aux[:, :8], self.band_bias(inputs[4].to(aux.dtype)))
        dem_features = self.dem_encoder(aux[:, 8:])
        masks = [[F.avg_pool2d(aux[:, 7:8], 2)], [F.avg_pool2d(aux[:, 9:10], 2)]]
        for pyramid in masks:
            for _ in range(2):
                pyramid.append(F.avg_pool2d(pyramid[-1], 2))
        dmo_masks, dem_masks = masks[0][::-1], masks[1][::-1]

        # the cast comes behind the convolution: NTL rounded before it costs more than all other roundings together
        x = self.first(torch.cat([ntl, sensor.known, sensor.saturated], dim=1))
        x = F.relu((x + self._sensor_bias(inputs[-2], sensor.noise)).to(aux.dtype))
        x = self.fusions[0](x, [dmo_features[0], dem_features[0]], [dmo_masks[0], dem_masks[0]])
        for layer in self.body:
            x = x + F.relu(layer(x))
        carried: Tensor | None = None
        residuals: list[Tensor] = []
        logits: list[Tensor] = []
        for s in (0, 1):
            x = self._up(x, s)
            x = self.fusions[s + 1](
                x, [dmo_features[s + 1], dem_features[s + 1]], [dmo_masks[s + 1], dem_masks[s + 1]]
            )
            if carried is not None:
                carried = kernels.resize_fixed(carried, self.cubic, 2)
            x, carried, isp = self.refines[s](x, carried)
            residuals.append(carried)
            logits.append(isp)
        widths = F.pixel_shuffle(_softplus(self.spread(x).float()), 2)
        return Features(self._up(x, 2), residuals[-1], widths, residuals, logits)

    def _sensor_bias(self, psf: Tensor, noise: Tensor) -> Tensor:
        """(B,C,1,1) from the blur, whether it is known, and the noise."""
        known = (psf >= 0.0).to(psf.dtype)
        strength = torch.log1p(noise[:, :, 0, 0] / self.normalise.unit)
        return self.sensor_bias(torch.cat([psf * known, known[:, :1], strength], dim=1))[:, :, None, None]

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
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The deployed outputs; inputs as `spec.INPUTS`.

        Returns ntl_hr (B,1,8h,8w) in the input's unit, isp (B,1,8h,8w) in [0, 1], offset (B,2,h,w) in LR px, and
        interval (B,2,8h,8w), its ends low and high, in the input's unit.
        """
        inputs = (ntl, ntl_valid, dmo, dmo_valid, dmo_bands, dem, dem_valid, psf, limits)
        filled, aligned, offset = self._align(*inputs)
        sensor = self.sensor(filled, *inputs)
        found = self._reconstruct(filled, sensor, aligned, *inputs)
        start = self.base(sensor)
        level = self.normalise.ntl(start) + kernels.resize_fixed(found.carried, self.cubic, 2)
        last = self.refines[2]
        assert isinstance(last, Refine)
        refined, isp = last.finish(found.x, level, self.normalise)
        radiance = self._agreeing(refined, start, sensor)
        middle = self.normalise.ntl(radiance)
        ends = [
            self.normalise.radiance(middle - found.widths[:, :1]),
            self.normalise.radiance(middle + found.widths[:, 1:]),
        ]
        # rounding must not put an end on the wrong side
        interval = torch.cat([torch.minimum(ends[0], radiance), torch.maximum(ends[1], radiance)], dim=1)
        return radiance, isp, offset, interval
