"""From a country to a batch: what is kept in half precision, and nothing else that changes a bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deeplight.engine.core.spec import INPUTS
from deeplight.engine.core.windows import Window
from deeplight.train.clips.samples import Sample
from deeplight.train.fit.batch import FixedBatches
from deeplight.train.fit.pool import REGION, country_config, synthetic_source
from deeplight.train.synth import Country

SEED = 900_001
"""A country whose lights are displaced."""


def test_a_batch_holds_the_country_s_rasters_in_half_precision_bit_for_bit() -> None:
    """Other types, orders or roundings on the way would train another model."""
    source = synthetic_source(range(SEED, SEED + 1), 1)
    (batch,) = FixedBatches(source, 1, 20)
    config = country_config(SEED)
    row, col = (int(v) for v in np.random.default_rng((SEED, 0)).integers(0, 4096, 2))
    side = batch.inputs[0].shape[2]
    rim = (REGION - side) // 2
    made = Country(config).sample(Window(row + rim, col + rim, side, side))

    def halved(values: object) -> np.ndarray:
        return np.asarray(values, np.float32).astype(np.float16).astype(np.float32)

    given = dict(zip((spec.name for spec in INPUTS), batch.inputs, strict=True))
    for name in ("ntl", "dmo", "dem"):
        want = halved(getattr(made, name))
        assert given[name].dtype == torch.float32
        assert np.array_equal(given[name][0].numpy().reshape(want.shape), want), name
    for name in ("ntl_valid", "dmo_valid", "dem_valid", "dmo_bands"):
        assert bool((given[name] == 1).all()), name
    assert np.array_equal(given["psf"][0].numpy(), halved([config.psf_fwhm_lr] * 2))
    assert np.array_equal(given["limits"][0].numpy(), halved([-1.0, config.noise]))
    assert np.array_equal(batch.ntl_hr[0, 0].numpy(), halved(made.ntl_hr))
    assert np.array_equal(batch.isp[0, 0].numpy(), halved(made.isp))
    assert batch.offset is not None and np.array_equal(batch.offset[0].numpy(), halved(made.offset))
    assert batch.offset.any() and batch.ntl_hr_valid is None and batch.isp_valid is None


def test_a_sample_is_cut_on_both_grids_and_its_masks_cannot_be_written_to() -> None:
    lr, hr = np.arange(12, dtype=np.float16).reshape(1, 3, 4), np.zeros((1, 24, 32), np.float16)
    hr[0, 8, 16] = 1
    sample = Sample.complete(lr, hr, hr, np.repeat(hr, 7, 0), hr, np.repeat(lr, 2, 0), psf=lr[0, 0, :2])  # type: ignore[arg-type]
    part = sample.cut(Window(1, 2, 2, 2))
    assert part.ntl.tolist() == [[[6, 7], [10, 11]]] and part.offset is not None
    assert part.offset.shape == (2, 2, 2) and part.dmo.shape == (7, 16, 16) and part.isp[0, 0, 0] == 1
    assert part.ntl.dtype == part.psf.dtype == np.float32 and part.psf.tolist() == [0, 1]
    assert part.limits.tolist() == [-1, -1] and part.dem_valid.all()
    with pytest.raises(ValueError, match="read-only"):
        sample.isp_valid[0, 0, 0] = 0
