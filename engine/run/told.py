"""The facts of a run that the page shows beside the map."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from deeplight.engine.raster.psf import shown_psf
from deeplight.engine.raster.units import shown

if TYPE_CHECKING:
    from deeplight.engine.output.packs import OutputSpec
    from deeplight.engine.raster.scene import Scene
    from deeplight.engine.run.report import RunReport


def facts_of(scene: Scene, spec: OutputSpec, report: RunReport | None) -> list[tuple[str, str]]:
    """Pairs (name, text), those that most people ask for first. report: None where the output was complete already;
    facts that only the run itself counted are left out then."""
    return [*_map(scene, spec), *(_counted(scene, report) if report is not None else ()), *_made(spec.tags)]


def _map(scene: Scene, spec: OutputSpec) -> Iterator[tuple[str, str]]:
    yield "model", spec.tags["DEEPLIGHT_MODEL"]
    yield "input", f"{scene.grid.width:,} × {scene.grid.height:,} pixels, {shown(scene.unit)}"
    yield "blur", f"{shown_psf(scene.psf)} input pixels (FWHM along rows, columns)"
    if spec.tags.get("DEEPLIGHT_OPTION_CONSERVE_RADIANCE"):
        yield "radiance", "conserved: seen through the blur, the result is the input"


def _counted(scene: Scene, report: RunReport) -> Iterator[tuple[str, str]]:
    lights = report.lights
    came, went = lights.get("mean_in_negatives_as_zero"), lights.get("mean_out")
    pixels = lights["valid_lr_pixels"]
    if came and went is not None:
        sums = f"sum {_number(came * pixels)} → {_number(went * pixels)} ({went / came - 1:+.1%})"
        yield "lights", f"{sums}, {shown(scene.unit)} × input pixels"
    yield "data", f"{pixels / (scene.grid.height * scene.grid.width):.1%} of the pixels"
    had = ", ".join(
        f"{name.upper()} for {report.inputs[name]['share_of_output']:.1%}"
        for name in ("dmo", "dem")
        if report.inputs.get(name) and report.inputs[name].get("share_of_output") is not None
    )
    yield "daytime", had or "none: made of the lights alone"
    yield "time", f"{report.seconds['total']:,.1f} s on {report.backend['device']}, {report.backend['name']}"


def _number(value: float) -> str:
    """A number with at least four significant digits, and commas between thousands."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _made(tags: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    yield "made by", f"DeepLight {tags['DEEPLIGHT_VERSION']}, model {tags['DEEPLIGHT_MODEL_SHA256'][:12]}"
