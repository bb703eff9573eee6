"""DeepLightSR: calibration-aware alignment, auxiliary-to-main fusion, auxiliary-embedded refinement.

An open implementation that follows the published description (IJCAI 2024); what is not published (widths, depths,
normalisation, the offset's form) is ours. Scales ×1, ×2, ×4, ×8 are indexed 0 … 3. Nothing here looks at a whole
image: the result at a pixel depends on a bounded neighbourhood (`train/receptive.py` computes it), so tiles agree.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplight import kernels
from deeplight.train.config import ModelConfig, Normalisation

SHIFT_RADIUS = 2
WINDOW_RADIUS = 3
SMOOTHING_RADIUS = 2
FILL_RADIUS = 2
VARIANCE_FLOOR = 1e-2
"""Added to the variances of the correlation: noise in the dark must not look like structure."""


class Prediction(NamedTuple):
    """ntl: radiance (B,1,2h,2w), (B,1,4h,4w), (B,1,8h,8w) in the normalised (log) domain, coarse to fine.

    isp_logits: the same shapes. offset: (B,2,h,w), (x, y) in LR pixels.
    """

    ntl: list[Tensor]
    isp_logits: list[Tensor]
    offset: Tensor


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
    """Calibration-aware alignment: a dense offset field from the NTL and the area mean of the auxiliary.

    The auxiliary is turned, pixel by pixel, into one channel that should look like the lights. That channel, moved
    by each of the 25 whole shifts within ±2 LR pixels, is correlated with the NTL (zero-mean normalised
    cross-correlation over a tapered 7×7 window, so neither a town's brightness nor the background matters). The mean
    shift under softmax(correlation) plus a small pointwise correction is the estimate; its average over a 5×5 window,
    weighted by its own confidence, lets lit structure decide for its dark surroundings.
    """

    shift_xy: Tensor
    shifts: Tensor
    window: Tensor
    smoother: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, shifts = config.localise_width, (2 * SHIFT_RADIUS + 1) ** 2
        self.lights = nn.ModuleList(
            [nn.Conv2d(10, width, 1), nn.Conv2d(width, width, 1), nn.Conv2d(width, 1, 1)]
        )
        self.correct = nn.ModuleList(
            [nn.Conv2d(shifts + 2, width, 1), nn.Conv2d(width, width, 1), nn.Conv2d(width, 3, 1)]
        )
        nn.init.zeros_(self.correct[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.correct[-1].bias)  # type: ignore[arg-type]
        self.sharpness = nn.Parameter(torch.tensor(1.5))
        axis = torch.arange(-SHIFT_RADIUS, SHIFT_RADIUS + 1, dtype=torch.float32)
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        self.prior = nn.Parameter(-0.3 * (x**2 + y**2).reshape(1, shifts, 1, 1))
        self.d_max = config.d_max
        self.register_buffer("shift_xy", torch.stack([x, y]).reshape(2, shifts, 1, 1))
        self.register_buffer("shifts", torch.eye(shifts).reshape(shifts, 1, *x.shape))
        self.register_buffer("window", _taper([1.0, 2.0, 3.0, 3.0, 3.0, 2.0, 1.0]))
        self.register_buffer("smoother", _taper([1.0, 4.0, 6.0, 4.0, 1.0]))

    def forward(self, ntl: Tensor, aux: Tensor) -> Tensor:
        """ntl: (B,1,h,w); aux: (B,10,h,w), both normalised. Returns (B,2,h,w), (x, y) in LR px, |·| ≤ d_max."""
        correlation, contrast = self._correlate(ntl, _pointwise(self.lights, aux))
        share = torch.softmax(torch.exp(self.sharpness) * correlation + self.prior, dim=1)
        estimate = F.conv2d(share, self.shift_xy)
        dx, dy, confidence = _pointwise(self.correct, torch.cat([correlation, contrast], dim=1)).chunk(
            3, dim=1
        )
        # scaled tanh: the identity near 0, never beyond d_max
        offset = self.d_max * torch.tanh((estimate + torch.cat([dx, dy], dim=1)) * (1.0 / self.d_max))
        weight = torch.exp(4.0 * torch.tanh(confidence * 0.25))
        smooth = _window_mean(torch.cat([offset * weight, weight], dim=1), self.smoother)
        return smooth[:, :2] / smooth[:, 2:]

    def _correlate(self, ntl: Tensor, lights: Tensor) -> tuple[Tensor, Tensor]:
        """Correlation per shift (B,25,h,w), and the log variances of both images (B,2,h,w)."""
        both = torch.cat([ntl, lights], dim=1)
        mean = _window_mean(both, self.window)
        variance = (_window_mean(both * both, self.window) - mean * mean).clamp(min=0.0) + VARIANCE_FLOOR
        moved, moved_mean, moved_variance = (self._move(t) for t in (lights, mean[:, 1:], variance[:, 1:]))
        covariance = _window_mean(ntl * moved, self.window) - mean[:, :1] * moved_mean
        return covariance * torch.rsqrt(variance[:, :1] * moved_variance), torch.log(variance)

    def _move(self, x: Tensor) -> Tensor:
        """(B,1,h,w) → (B,25,h,w): x(p + shift) for every shift, edges repeated."""
        return F.conv2d(F.pad(x, (SHIFT_RADIUS,) * 4, mode="replicate"), self.shifts)


def _taper(line: list[float]) -> Tensor:
    """Separable window (1,1,K,K) that sums to 1."""
    t = torch.tensor(line)
    return (t[:, None] * t[None, :] / t.sum() ** 2)[None, None]


def _window_mean(x: Tensor, window: Tensor) -> Tensor:
    """Weighted mean of each channel over the window, edges repeated."""
    radius, c = window.shape[-1] // 2, x.shape[1]
    return F.conv2d(F.pad(x, (radius,) * 4, mode="replicate"), window.repeat(c, 1, 1, 1), groups=c)


def _pointwise(layers: nn.ModuleList, x: Tensor) -> Tensor:
    """1×1 convolutions with ReLU between them."""
    for layer in layers[:-1]:
        x = F.relu(layer(x))
    out: Tensor = layers[-1](x)
    return out


class Encoder(nn.Module):
    """One modality → features at ×8, ×4, ×2, ×1 (returned coarse to fine). Channel −1 of the input is its mask."""

    def __init__(self, channels: int, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, widths[3], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(widths[s + 1], widths[s], 2, stride=2) for s in (2, 1, 0))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> list[Tensor]:
        """x: (B,channels,8h,8w); bias: (B,A) or None, added to the first features. Four tensors, ×1 first."""
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

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.isp = nn.Conv2d(width, 1, 1)
        self.embed = nn.Parameter(torch.randn(width) * 0.1)
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.residual = nn.Conv2d(width, 1, 1)
        nn.init.zeros_(self.residual.weight)
        nn.init.zeros_(self.residual.bias)  # type: ignore[arg-type]
        nn.init.constant_(self.isp.bias, -2.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor, base: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x: (B,C,H,W); base: (B,1,H,W). Returns features, NTL = base + residual, ISP logits."""
        logits = self.isp(x)
        x = x + torch.sigmoid(logits) * self.embed[None, :, None, None]
        for layer in self.layers:
            x = x + F.relu(layer(x))
        return x, base + self.residual(x), logits

    def finish(self, x: Tensor, level: Tensor, norm: Normalise) -> tuple[Tensor, Tensor]:
        """x: (B,C,H,W); level: (B,1,H/2,W/2), normalised. Returns radiance and ISP probability, (B,1,H,W) each."""
        blocks = [_parameters(layer) for layer in self.layers]
        return kernels.refine(
            x,
            level,
            *_parameters(self.isp),
            self.embed,
            [weight for weight, _ in blocks],
            [bias for _, bias in blocks],
            *_parameters(self.residual),
            finish=kernels.Finish(norm.unit, norm.gain, norm.ceiling),
        )


def _parameters(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution."""
    return layer.weight, layer.bias  # type: ignore[return-value]


class DeepLightSR(nn.Module):
    """The network. `predict` gives every supervised output; `forward` gives the deployed ones in physical units."""

    cubic: Tensor
    filler: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        main, aux = config.main, config.aux
        self.normalise = Normalise(config.normalisation)
        self.localise = Localise(config)
        self.dmo_encoder = Encoder(8, aux)
        self.dem_encoder = Encoder(2, aux)
        self.band_bias = nn.Linear(7, aux[3])
        self.first = nn.Conv2d(2, main[0], 3, padding=1)
        self.body = nn.ModuleList(nn.Conv2d(main[0], main[0], 3, padding=1) for _ in range(config.body))
        self.fusions = nn.ModuleList(Fusion(main[s], aux[s]) for s in range(4))
        self.ups = nn.ModuleList(nn.Conv2d(main[s], 4 * main[s + 1], 3, padding=1) for s in range(3))
        self.refines = nn.ModuleList(Refine(main[s + 1], config.refine[s]) for s in range(3))
        self.register_buffer("cubic", kernels.interpolation_kernel(2, "cubic"))
        line = torch.tensor([1.0, 2.0, 4.0, 2.0, 1.0])
        self.register_buffer("filler", (line[:, None] * line[None, :])[None, None])

    def predict(
        self,
        ntl: Tensor,
        ntl_valid: Tensor,
        dmo: Tensor,
        dmo_valid: Tensor,
        dmo_bands: Tensor,
        dem: Tensor,
        dem_valid: Tensor,
    ) -> Prediction:
        """Inputs as `deeplight.engine.spec.INPUTS`; outputs in the normalised domain."""
        filled, aligned, offset = self._align(ntl, ntl_valid, dmo, dmo_valid, dmo_bands, dem, dem_valid)
        x, level, outputs, logits = self._reconstruct(filled, ntl_valid, aligned, dmo_bands)
        _, level, isp = self.refines[2](x, kernels.resize_fixed(level, self.cubic, 2))
        return Prediction([*outputs, level], [*logits, isp], offset)

    def _align(
        self,
        ntl: Tensor,
        ntl_valid: Tensor,
        dmo: Tensor,
        dmo_valid: Tensor,
        dmo_bands: Tensor,
        dem: Tensor,
        dem_valid: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised NTL with filled holes, the auxiliary (B,10,8h,8w) aligned to it, and the offset."""
        x = self.normalise.ntl(ntl) * ntl_valid
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
        offset = self.localise(x, F.avg_pool2d(aux, 8))
        return self._fill(x, ntl_valid), kernels.align(aux, offset=offset), offset

    def _fill(self, x: Tensor, valid: Tensor) -> Tensor:
        """Nodata holes take the weighted mean of valid neighbours, so that interpolation does not darken rims."""
        near = F.conv2d(x, self.filler, padding=FILL_RADIUS)
        weight = F.conv2d(valid, self.filler, padding=FILL_RADIUS)
        return x + (1.0 - valid) * near / weight.clamp(min=1.0)

    def _reconstruct(
        self, ntl: Tensor, ntl_valid: Tensor, aux: Tensor, dmo_bands: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        """Everything but the last refinement: fused features at ×8, then NTL at ×4, outputs and ISP logits so far."""
        dmo_features = self.dmo_encoder(aux[:, :8], self.band_bias(dmo_bands))
        dem_features = self.dem_encoder(aux[:, 8:])
        masks = [[aux[:, 7:8]], [aux[:, 9:10]]]
        for pyramid in masks:
            for _ in range(3):
                pyramid.append(F.avg_pool2d(pyramid[-1], 2))
        dmo_masks, dem_masks = masks[0][::-1], masks[1][::-1]

        x = F.relu(self.first(torch.cat([ntl, ntl_valid], dim=1)))
        x = self.fusions[0](x, [dmo_features[0], dem_features[0]], [dmo_masks[0], dem_masks[0]])
        for layer in self.body:
            x = x + F.relu(layer(x))
        level, outputs, logits = ntl, [], []
        for s in (1, 2, 3):
            up = self.ups[s - 1]
            assert isinstance(up, nn.Conv2d) and up.bias is not None
            x = kernels.upsample(x, up.weight, up.bias)
            x = self.fusions[s](x, [dmo_features[s], dem_features[s]], [dmo_masks[s], dem_masks[s]])
            if s < 3:
                x, level, isp = self.refines[s - 1](x, kernels.resize_fixed(level, self.cubic, 2))
                outputs.append(level)
                logits.append(isp)
        return x, level, outputs, logits

    def forward(
        self,
        ntl: Tensor,
        ntl_valid: Tensor,
        dmo: Tensor,
        dmo_valid: Tensor,
        dmo_bands: Tensor,
        dem: Tensor,
        dem_valid: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns ntl_hr (B,1,8h,8w) in the input's unit, isp (B,1,8h,8w) in [0, 1], offset (B,2,h,w) in LR px."""
        filled, aligned, offset = self._align(ntl, ntl_valid, dmo, dmo_valid, dmo_bands, dem, dem_valid)
        x, level, _, _ = self._reconstruct(filled, ntl_valid, aligned, dmo_bands)
        last = self.refines[2]
        assert isinstance(last, Refine)
        radiance, isp = last.finish(x, level, self.normalise)
        return radiance, isp, offset
