"""DeepLightSR: shapes, bounds, what it ignores, and that nothing depends on the tile."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.spec import INPUTS, LIGHTS_ALONE, OF_LIGHTS_ALONE, OUTPUTS, input_shape
from deeplight.engine.network.config import PRESETS, ModelConfig, preset
from deeplight.engine.network.consistency import LAST_NOISE
from deeplight.engine.network.model import DeepLightSR
from deeplight.engine.network.precision import in_precision
from deeplight.engine.network.receptive import halo
from deeplight.kernels.settle.reference import step

SMALL = ModelConfig(main=(8, 8, 4, 4), aux=(8, 4, 4), localise_width=8)


def make(config: ModelConfig = SMALL, wild: float = 0.0) -> DeepLightSR:
    """An untrained network; `wild` perturbs every weight, so that zero-initialised heads speak too."""
    torch.manual_seed(3)
    model = DeepLightSR(config).eval()
    for p in model.parameters():
        p.data += wild * torch.randn_like(p)
    return model


def inputs(b: int, h: int, w: int, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    values = {s.name: torch.rand(input_shape(s, b, h, w), generator=g) for s in INPUTS}
    values["ntl"] = values["ntl"] * 60 - 0.5
    values["dem"] = values["dem"] * 900
    for name in ("ntl_valid", "dmo_valid", "dem_valid", "dmo_bands"):
        values[name] = torch.ones_like(values[name])
    values["psf"] = torch.tensor([[1.1, 0.9]]).repeat(b, 1)
    values["limits"] = torch.tensor([[-1.0, 0.1]]).repeat(b, 1)
    return values


@pytest.mark.parametrize(("b", "h", "w"), [(1, 5, 7), (3, 8, 4)])
def test_output_shapes_and_ranges(b: int, h: int, w: int) -> None:
    with torch.no_grad():
        outputs = make(wild=0.3)(*inputs(b, h, w).values())
    for spec, value in zip(OUTPUTS, outputs, strict=True):
        assert tuple(value.shape) == input_shape(spec, b, h, w)
        assert torch.isfinite(value).all()
    assert outputs[0].min() >= 0
    assert outputs[1].min() >= 0 and outputs[1].max() <= 1
    assert outputs[2].abs().max() <= SMALL.d_max


def test_it_starts_as_the_consistent_base() -> None:
    model, values = make(), inputs(1, 9, 9)
    with torch.no_grad():
        got = model(*values.values())
        filled = model.normalise.ntl(values["ntl"])
        sensor = model.sensor(filled, *values.values())
        start = model.base(sensor)
        want = step(start, sensor, model.linear_line, LAST_NOISE)
    assert torch.allclose(got[0], want, rtol=1e-4, atol=1e-4)


def test_the_interval_holds_the_radiance() -> None:
    model, values = make(wild=0.2), inputs(2, 6, 5)
    with torch.no_grad():
        radiance, _, _, interval = model(*values.values())
    low, high = interval[:, :1], interval[:, 1:]
    assert (low >= 0).all() and (low <= radiance).all() and (radiance <= high).all()
    assert float((high - low).mean()) > 0.1


@pytest.mark.parametrize("psf", [(0.0, 0.0), (1.0, 2.0), (-1.0, -1.0)])
def test_no_weights_can_take_the_light_away(psf: tuple[float, float]) -> None:
    """What the sensor would see of the result is close to what it saw, whatever the residual says."""
    model, values = make(wild=0.1), inputs(1, 24, 24)
    values["ntl"] = F.avg_pool2d(values["ntl"].clamp(min=1.0), 5, stride=1, padding=2)
    values["psf"] = torch.tensor([psf])
    with torch.no_grad():
        radiance = model(*values.values())[0]
    inner = (slice(None), slice(None), slice(4, -4), slice(4, -4))
    total, given = F.avg_pool2d(radiance, 8)[inner].sum(), values["ntl"][inner].sum()
    assert abs(float(total / given) - 1.0) < 0.02


def test_normalisation_round_trip() -> None:
    norm = make().normalise
    x = torch.tensor([0.0, 0.05, 1.0, 63.0, 6553.4, 340_573.0])
    # expm1 of a log1p: relative rounding grows with the exponent
    assert torch.allclose(norm.radiance(norm.ntl(x)), x, rtol=2e-5, atol=1e-7)
    assert float(norm.ntl(torch.tensor(-1.5))) == 0.0


def test_missing_layers_do_not_matter_whatever_lies_under_the_mask() -> None:
    model = make(wild=0.2)
    one = inputs(1, 8, 8)
    one["dmo_valid"].zero_()
    one["dmo_bands"].zero_()
    two = {k: v.clone() for k, v in one.items()}
    two["dmo"] = two["dmo"] * 3 + 1
    with torch.no_grad():
        assert torch.equal(model(*one.values())[0], model(*two.values())[0])


@pytest.mark.parametrize("fusion", ["modulate", "concatenate"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_lights_alone_are_what_the_whole_network_gives_without_layers(fusion: str, precision: str) -> None:
    model = in_precision(make(dataclasses.replace(SMALL, fusion=fusion), wild=0.3), precision)
    values = inputs(2, 8, 9)
    values["ntl_valid"][0, 0, 3, 4] = 0.0
    for name in set(values) - set(LIGHTS_ALONE):
        values[name] = torch.zeros_like(values[name])
    with torch.no_grad():
        whole = dict(zip((s.name for s in OUTPUTS), model(*values.values()), strict=True))
        alone = model.lights_alone(*(values[name] for name in LIGHTS_ALONE))
    # sums of fewer terms, where the whole network adds zeros, may be added in another order by concatenation
    tolerance = 0.0 if fusion == "modulate" else {"fp32": 1e-5, "fp16": 1e-2, "bf16": 8e-2}[precision]
    for name, got in zip(OF_LIGHTS_ALONE, alone, strict=True):
        torch.testing.assert_close(got, whole[name], rtol=tolerance, atol=tolerance)


def test_an_absent_band_does_not_matter() -> None:
    model = make(wild=0.2)
    one = inputs(1, 8, 8)
    one["dmo_bands"][:, 4] = 0
    two = {k: v.clone() for k, v in one.items()}
    two["dmo"][:, 4] = 9.0
    with torch.no_grad():
        assert torch.equal(model(*one.values())[0], model(*two.values())[0])


def test_a_nodata_hole_does_not_darken_its_rim() -> None:
    model, values = make(), inputs(1, 12, 12)
    values["ntl"] = torch.full_like(values["ntl"], 20.0)
    values["ntl"][..., 5:7, 5:7] = 0
    values["ntl_valid"][..., 5:7, 5:7] = 0
    with torch.no_grad():
        out = model(*values.values())[0]
    outside = torch.ones(96, 96, dtype=torch.bool)
    outside[40:56, 40:56] = False
    assert (out[0, 0][outside] - 20.0).abs().max() < 0.05


def test_tiles_equal_the_whole() -> None:
    model, reach = make(wild=0.15), halo(SMALL)
    side = 2 * reach + 11
    values = inputs(1, side, side)
    with torch.no_grad():
        whole = model(*values.values())
        part = {k: crop(v, 3, side - 2) for k, v in values.items()}
        tiled = model(*part.values())
    r0, r1 = reach, side - 5 - reach
    want = whole[0][..., (r0 + 3) * 8 : (r1 + 3) * 8, (r0 + 3) * 8 : (r1 + 3) * 8]
    got = tiled[0][..., r0 * 8 : r1 * 8, r0 * 8 : r1 * 8]
    assert whole[2].abs().max() > 0.2, "offsets must be at work, or this shows nothing"
    assert (want - got).abs().max() <= 1e-5 * float(whole[0].max() - whole[0].min())


def crop(x: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Rows and columns [start, stop) in LR px of an input; vectors stay."""
    if x.ndim == 2:
        return x
    f = 8 if x.shape[-1] % 8 == 0 and x.shape[-1] > stop + 8 else 1
    return x[..., start * f : stop * f, start * f : stop * f]


def test_every_parameter_gets_a_gradient() -> None:
    model = make(wild=0.1)
    p = model.predict(*inputs(1, 8, 8).values())
    (p.ntl[-1].sum() + sum(x.sum() for x in p.isp_logits) + p.offset.sum() + p.widths.sum()).backward()
    silent = [name for name, q in model.named_parameters() if q.grad is None or not q.grad.abs().sum() > 0]
    assert silent == []


def test_presets() -> None:
    counts = {
        name: sum(p.numel() for p in DeepLightSR(config).parameters()) for name, config in PRESETS.items()
    }
    assert counts["tiny"] < 300_000
    assert 1_500_000 < counts["base"] < 2_500_000
    with pytest.raises(InputError, match="tiny, base"):
        preset("huge")


def test_config_survives_json() -> None:
    import json

    for config in PRESETS.values():
        assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert ModelConfig.from_dict(dataclasses.replace(SMALL, d_max=1.5).to_dict()).d_max == 1.5
