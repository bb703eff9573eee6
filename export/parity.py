"""Parity: the exported files, run through the engine's own backends, against the float32 PyTorch model."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from deeplight.engine.core.arrays import to_hr
from deeplight.engine.core.errors import ArtifactError, DeepLightError, InputError
from deeplight.engine.core.spec import INPUTS, SCALE
from deeplight.engine.core.windows import Window
from deeplight.engine.network.model import DeepLightSR
from deeplight.engine.runtime.artifact import Artifact
from deeplight.engine.runtime.backends import BACKENDS, open_backend
from deeplight.engine.runtime.backends.base import Backend
from deeplight.engine.runtime.compare import Difference, difference, failures, table
from deeplight.export.emulate import EMULATED, Emulated
from deeplight.kernels.float32 import exact_float32
from deeplight.train.synth import Country, CountryConfig

PARITY_SEED = 990_001
USER_TILES = 4
BRIGHT, BRIGHT_SIGMA = (70.0, 300.0, 1000.0, 3000.0), 0.8
"""Peaks of lone lights, in the unit of the radiance, and how wide they are, in LR pixels."""
COMPILED = ("torch", "cuda", "fp16")
"""Backend, device and precision that are compared compiled as well, as `deeplight-infer` runs them there."""

Inputs = dict[str, NDArray[np.float32]]

__all__ = [
    "ParityError",
    "ParityTile",
    "cases_of",
    "check_measured",
    "check_parity",
    "compare_all",
    "parity_cases",
    "report",
    "scene_inputs",
    "table",
]
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ParityTile:
    """inputs and truth (None where unknown) of a tile, and what the float32 PyTorch model makes of it."""

    name: str
    inputs: Inputs
    truth: NDArray[np.float32] | None
    want: NDArray[np.float32]


@cache
def parity_cases() -> dict[str, tuple[Inputs, NDArray[np.float32] | None]]:
    """Return inputs and truth, None where unknown, by name: a synthetic town with each combination of layers, with
    holes, saturation and an unknown blur, in two tile shapes, and with very bright lights.

    Made once for a process, so not to be changed.
    """
    country = Country(CountryConfig(seed=PARITY_SEED))
    cases: dict[str, tuple[Inputs, NDArray[np.float32] | None]] = {}
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
        bright = _with_bright_lights(full, h, w)
        cases["very bright lights"] = (bright, None)
        cases["very bright, NTL alone"] = (_without(bright, "dmo", "dem"), None)
    return cases


def _full_inputs(ntl: NDArray[np.float32], dmo: NDArray[np.float32], dem: NDArray[np.float32]) -> Inputs:
    values = {
        "ntl": ntl[None, None],
        "dmo": dmo[None],
        "dem": dem[None, None],
        "dmo_bands": np.ones((1, 7), np.float32),
        "psf": np.array([[1.3, 1.1]], np.float32),
        "limits": np.array([[-1.0, 0.05]], np.float32),
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
    out["psf"][:], out["limits"][:] = -1.0, (30.0, -1.0)
    out["dmo"][:, [0, 5, 6]] = 0.0
    lr = (..., slice(h // 3, h // 2), slice(w // 4, w // 2))
    hr = (..., slice(h * SCALE // 2, h * SCALE), slice(0, w * SCALE // 3))
    for layer, hole in (("ntl", lr), ("dmo", hr)):
        out[layer][hole] = 0.0
        out[f"{layer}_valid"][hole] = 0.0
    return out


def _with_bright_lights(inputs: Inputs, h: int, w: int) -> Inputs:
    """With four lone lights of 70 to 3,000, hardly wider than a pixel, and an unknown blur: what a network sharpens
    most is what rounding changes most."""
    out = {name: a.copy() for name, a in inputs.items()}
    row, col = np.mgrid[:h, :w].astype(np.float32)
    places = ((0.23, 0.22), (0.27, 0.74), (0.74, 0.28), (0.7, 0.78))
    for (down, across), peak in zip(places, BRIGHT, strict=True):
        square = (row - down * h) ** 2 + (col - across * w) ** 2
        out["ntl"][0, 0] += peak * np.exp(-square / (2.0 * BRIGHT_SIGMA**2))
    out["psf"][:] = -1.0
    return out


def scene_inputs(folder: Path, halo: int) -> Iterator[tuple[str, Inputs]]:
    """Return tiles of the user's own scene: `folder` holds ntl.tif and, where there are any, dmo.tif and dem.tif.

    Raises InputError where the folder or a raster is not such.
    """
    from deeplight.engine.raster.scene import Scene, SceneOptions
    from deeplight.engine.run.precision import places

    if not (folder / "ntl.tif").is_file():
        raise InputError(f"{folder} has no ntl.tif: give a folder as deeplight-data synth writes it")
    dmo, dem = (str(f) if (f := folder / f"{name}.tif").is_file() else None for name in ("dmo", "dem"))
    with Scene.open(SceneOptions(ntl=str(folder / "ntl.tif"), dmo=dmo, dem=dem)) as scene:
        for window in places(scene, USER_TILES):
            yield f"{folder.name} {window.row}, {window.col}", scene.read_inputs(window.grown(halo))


def cases_of(
    model: DeepLightSR,
    folder: Path | None = None,
    halo: int = 0,
    tile: tuple[int, int, int] | None = None,
) -> list[ParityTile]:
    """Return the synthetic cases and those of `folder`, each run once through the model in float32.

    tile: batch and LR sides of one more case, of the size that a plan is tuned for: it runs other kernels there.
    """
    given: list[tuple[str, Inputs, NDArray[np.float32] | None]]
    given = [(name, inputs, truth) for name, (inputs, truth) in parity_cases().items()]
    if tile is not None:
        batch, h, w = tile
        sample = Country(CountryConfig(seed=PARITY_SEED)).sample(Window(64, 64, h, w))
        full = _full_inputs(sample.ntl, sample.dmo, sample.dem)
        repeated = {name: np.repeat(a, batch, axis=0) for name, a in full.items()}
        given.append((f"a tile of {h}×{w}", repeated, np.repeat(sample.ntl_hr[None, None], batch, axis=0)))
    if folder is not None:
        given += [(name, inputs, None) for name, inputs in scene_inputs(folder, halo)]
    with torch.no_grad(), exact_float32():
        return [
            ParityTile(
                name, inputs, truth, model(*(torch.from_numpy(inputs[s.name]) for s in INPUTS))[0].numpy()
            )
            for name, inputs, truth in given
        ]


def compare_all(artifact: Artifact, cases: Sequence[ParityTile]) -> tuple[list[Difference], list[str]]:
    """Compare every precision of the folder on every backend and device of this machine. Returns a row each, and a
    sentence for each that was not run.

    PyTorch's network runs as it is, on CUDA also compiled in one precision (COMPILED): Inductor takes long for each
    tile shape. Reduced ONNX files are also run with their roundings (`emulate`), which ONNX Runtime leaves out.

    Raises ArtifactError where a file of the artifact cannot be loaded.
    """
    rows: list[Difference] = []
    absent: list[str] = []
    for name, device, precision, compiling in _runs(artifact):
        try:
            backend = open_backend(name, artifact, precision=precision, device=device, compiling=compiling)
        except ArtifactError:
            raise
        except InputError as e:
            # the reason without its remedy, which names this machine's Python
            absent.append(f"{name} {device} {precision}: {str(e).partition(': ')[0]}")
            continue
        how = ", compiling" if compiling else ""
        with backend:
            _LOG.info("comparing %s on %s, %s%s, with the float32 model", precision, name, device, how)
            rows += [compare(case, backend, precision, how) for case in cases]
    for precision in EMULATED:
        if precision in artifact.manifest.precisions:
            with Emulated.open(artifact, precision, "cpu", 1) as backend:
                rows += [compare(case, backend, precision) for case in cases]
    return rows, list(dict.fromkeys(absent))


def _runs(artifact: Artifact) -> Iterator[tuple[str, str, str, bool]]:
    """Backend, device, precision, and whether the backend may compile the network."""
    for name, entry in BACKENDS.items():
        for device, precision in product(entry.devices, artifact.offered(entry.kind)):
            yield name, device, precision, False
            if (name, device, precision) == COMPILED:
                yield name, device, precision, True


def compare(case: ParityTile, backend: Backend, precision: str, how: str = "") -> Difference:
    """Compare one backend in one precision. Pixels where NTL is nodata do not count: the engine never writes them. how:
    in which way the backend runs, where there are several."""
    got = backend.run(case.inputs)["ntl_hr"]
    valid = to_hr(case.inputs["ntl_valid"] > 0)
    truth = None if case.truth is None else case.truth[valid]
    where = backend.name if backend.device == "cpu" else f"{backend.name} {backend.device}"
    return difference(case.name, where + how, precision, got[valid], case.want[valid], truth)


class ParityError(DeepLightError):
    """An exported file differs from the model by more than its precision may. rows: the whole comparison."""

    def __init__(self, rows: Sequence[Difference]) -> None:
        self.rows = list(rows)
        super().__init__(
            f"the exported model does not match its weights, so nothing is written: {failures(rows)}"
        )


def check_parity(rows: Sequence[Difference]) -> None:
    """Raise ParityError unless every row is within its limits."""
    if not all(row.passed for row in rows):
        raise ParityError(rows)


def check_measured(rows: Sequence[Difference], absent: Sequence[str], precisions: Sequence[str]) -> None:
    """Raise DeepLightError unless the TensorRT plan of every precision was run and compared on this machine.

    absent: what was not run, and why, as `compare_all` says it.
    """
    measured = {row.precision for row in rows if row.backend.split(" ")[0] == "tensorrt"}
    for precision in (p for p in precisions if p not in measured):
        why = next(
            (a for a in absent if a.startswith("tensorrt ") and a.split(": ")[0].endswith(precision)), ""
        )
        raise DeepLightError(
            f"the TensorRT plan in {precision} could not be compared on this GPU, so nothing is written ({why})"
        )


def report(rows: Sequence[Difference], absent: Sequence[str] = ()) -> Mapping[str, object]:
    """Return the content of parity.json."""
    return {
        "schema": 1,
        "passed": all(r.passed for r in rows),
        "rows": [r.to_dict() for r in rows],
        "not_run": list(absent),
    }
