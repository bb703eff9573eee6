"""Parity: the exported file, run through the engine's own backend, against the float32 PyTorch model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from deeplight.engine.backends.base import Backend
from deeplight.engine.spec import INPUTS, SCALE
from deeplight.engine.tiles import Window
from deeplight.train.metrics import psnr
from deeplight.train.model import DeepLightSR
from deeplight.train.synth import Country, CountryConfig

TOLERANCE = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 1.5e-2}
"""Largest relative L2 error in radiance. fp32: what reordered sums cost; the others: see DESIGN's numbers."""

PSNR_TOLERANCE_DB = 0.05
PARITY_SEED = 990_001

Inputs = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class ParityRow:
    """One case: errors of the exported file against PyTorch, in the unit of the radiance unless named otherwise."""

    case: str
    backend: str
    precision: str
    max_abs: float
    relative_l2: float
    psnr_change_db: float
    sum_of_lights_change: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether both limits hold; a NaN fails."""
        return self.relative_l2 <= self.tolerance and abs(self.psnr_change_db) <= PSNR_TOLERANCE_DB

    def to_dict(self) -> dict[str, object]:
        """JSON-ready."""
        return {**asdict(self), "passed": self.passed}


def parity_cases() -> dict[str, tuple[Inputs, NDArray[np.float32]]]:
    """Name → (inputs, truth): a synthetic town under each combination of layers, with holes; two tile shapes."""
    country = Country(CountryConfig(seed=PARITY_SEED))
    cases = {}
    for name, window in (("town", Window(64, 64, 40, 56)), ("odd", Window(200, 31, 37, 29))):
        sample = country.sample(window)
        h, w = window.shape
        full = _full_inputs(sample.ntl, sample.dmo, sample.dem)
        truth = sample.ntl_hr[None, None]
        cases[f"{name}, all layers"] = (full, truth)
        if name == "odd":
            continue
        cases["NTL alone"] = (_without(full, "dmo", "dem"), truth)
        cases["NTL and DEM"] = (_without(full, "dmo"), truth)
        cases["four bands and holes"] = (_with_holes(full, h, w), truth)
    return cases


def _full_inputs(ntl: NDArray[np.float32], dmo: NDArray[np.float32], dem: NDArray[np.float32]) -> Inputs:
    values = {
        "ntl": ntl[None, None],
        "dmo": dmo[None],
        "dem": dem[None, None],
        "dmo_bands": np.ones((1, 7), np.float32),
    }
    for name, like in (("ntl_valid", ntl), ("dmo_valid", dem), ("dem_valid", dem)):
        values[name] = np.ones((1, 1, *like.shape), np.float32)
    return {spec.name: values[spec.name] for spec in INPUTS}


def _without(inputs: Inputs, *layers: str) -> Inputs:
    gone = {f"{layer}{part}" for layer in layers for part in ("", "_valid", "_bands")}
    return {name: np.zeros_like(a) if name in gone else a for name, a in inputs.items()}


def _with_holes(inputs: Inputs, h: int, w: int) -> Inputs:
    out = {name: a.copy() for name, a in inputs.items()}
    out["dmo_bands"][0, [0, 5, 6]] = 0.0
    out["dmo"][:, [0, 5, 6]] = 0.0
    lr = (..., slice(h // 3, h // 2), slice(w // 4, w // 2))
    hr = (..., slice(h * SCALE // 2, h * SCALE), slice(0, w * SCALE // 3))
    for layer, hole in (("ntl", lr), ("dmo", hr)):
        out[layer][hole] = 0.0
        out[f"{layer}_valid"][hole] = 0.0
    return out


def compare(model: DeepLightSR, backend: Backend, precision: str) -> list[ParityRow]:
    """One row a case. Pixels that NTL's nodata covers do not count: the engine never writes them."""
    rows = []
    for case, (inputs, truth) in parity_cases().items():
        with torch.no_grad():
            want = model(*(torch.from_numpy(inputs[s.name]) for s in INPUTS))[0].double().numpy()
        got = backend.run(inputs)["ntl_hr"].astype(np.float64)
        valid = np.kron(inputs["ntl_valid"][0, 0], np.ones((SCALE, SCALE)))[None, None] > 0
        rows.append(
            _row(case, backend.name, precision, got[valid], want[valid], truth[valid].astype(np.float64))
        )
    return rows


def _row(
    case: str,
    backend: str,
    precision: str,
    got: NDArray[np.float64],
    want: NDArray[np.float64],
    truth: NDArray[np.float64],
) -> ParityRow:
    scale = float(np.ptp(truth))
    quality = [psnr(float(np.mean((x - truth) ** 2)), scale) for x in (got, want)]
    norm = float(np.linalg.norm(want))
    return ParityRow(
        case=case,
        backend=backend,
        precision=precision,
        max_abs=float(np.abs(got - want).max()),
        relative_l2=float(np.linalg.norm(got - want)) / norm if norm > 0 else math.inf,
        psnr_change_db=quality[0] - quality[1],
        sum_of_lights_change=float(got.sum() / want.sum() - 1.0),
        tolerance=TOLERANCE[precision],
    )


def table(rows: list[ParityRow]) -> str:
    """The rows as aligned text."""
    head = f"{'case':<24}{'backend':<14}{'max |Δ|':>10}{'rel. L2':>10}{'ΔPSNR dB':>10}{'Δsum':>10}"
    lines = [head]
    for r in rows:
        mark = "" if r.passed else "  FAILED"
        lines.append(
            f"{r.case:<24}{r.backend + ' ' + r.precision:<14}{r.max_abs:>10.1e}{r.relative_l2:>10.1e}"
            f"{r.psnr_change_db:>10.5f}{r.sum_of_lights_change:>10.1e}{mark}"
        )
    return "\n".join(lines)


def report(rows: list[ParityRow]) -> Mapping[str, object]:
    """The content of parity.json."""
    return {"schema": 1, "passed": all(r.passed for r in rows), "rows": [r.to_dict() for r in rows]}
