"""Where pixels come from: versions, the tags of the output, and what a resumed run must find unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from deeplight.engine.core.machine import processor
from deeplight.engine.output.acquired import time_tags
from deeplight.engine.output.taken import taken
from deeplight.engine.raster.psf import shown_psf
from deeplight.engine.run.inputs import Compared, described, field_of
from deeplight.engine.run.options import INTERVAL
from deeplight.engine.runtime.backends import BACKENDS

if TYPE_CHECKING:
    from deeplight.engine.raster.scene import Scene
    from deeplight.engine.run.options import RunOptions
    from deeplight.engine.runtime.artifact import Artifact
    from deeplight.engine.runtime.backends.base import Backend


def versions(backend: Backend) -> dict[str, str]:
    """Versions of everything that can change a pixel or a byte of the output."""
    import numpy
    import rasterio
    import tifffile

    return {
        "deeplight": deeplight_version(),
        "numpy": numpy.__version__,
        "rasterio": rasterio.__version__,
        "gdal": rasterio.__gdal_version__,
        "tifffile": tifffile.__version__,
        **backend.versions(),
    }


@cache
def deeplight_version() -> str:
    """The installed version, "unknown" in a source tree that is not installed."""
    try:
        return version("deeplight")
    except PackageNotFoundError:
        return "unknown"


def pixel_options(options: RunOptions, scene: Scene, backend: Backend) -> dict[str, str]:
    """The options that decide pixels and their encoding: no paths, no thread counts, not how it was
    started; `compiling` only where the backend compiles. psf is the value that was taken, wherever it came from."""
    files = ("ntl", "ntl_valid", "dmo", "dmo_files", "dem", "offset", "allow_remote")
    of_scene = {k: v for k, v in asdict(options.scene).items() if k not in files}
    chosen = {
        **of_scene,
        "psf": shown_psf(scene.psf),
        "dtype": options.dtype,
        "compression": options.compression,
        "conserve_radiance": "yes" if options.conserve_radiance else "",
        "bands": ",".join(options.bands),
        "precision": options.precision,
        "split": options.split,
        "compile": "off" if backend.compiles and not options.compiling else "",
    }
    return {k: _text(v) for k, v in chosen.items() if v is not None and v != ""}


def _option_tag(name: str) -> str:
    return f"DEEPLIGHT_OPTION_{name.upper()}"


def _option_field(name: str) -> str:
    return f"the option {name}"


def said_blur(facts: Mapping[str, str]) -> str | None:
    """The blur in the tags of a map or in the fields of a fingerprint, as `psf` spells it; None where there is none."""
    return facts.get(_option_tag("psf")) or facts.get(_option_field("psf"))


def _text(value: Any) -> str:
    """An option as the command line spells it."""
    if isinstance(value, Mapping):
        return ",".join(f"{k}={v}" for k, v in value.items())
    if isinstance(value, tuple):
        return ",".join(f"{v:.15g}" for v in value)
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def output_tags(options: RunOptions, scene: Scene, artifact: Artifact, backend: Backend) -> dict[str, str]:
    """Metadata items of the output. Equal runs give equal ones: no paths, times or resume flags.

    Tile size and thread count are left out: they move no pixel by more than the tolerance of the seam test (1e-5
    of the range), so an output stands for all of them. `fingerprint` holds them, since a resumed run must give the
    same bits (which any number of streams gives), and run.json, for whoever wants these again.
    """
    tags = {
        "DEEPLIGHT_VERSION": deeplight_version(),
        "DEEPLIGHT_MODEL": artifact.manifest.name,
        "DEEPLIGHT_MODEL_SHA256": artifact.digest,
        "DEEPLIGHT_BACKEND": backend.name,
    }
    tags |= {f"DEEPLIGHT_INPUT_{_tag(k)}": v for k, v in described(options, Compared.ANYWHERE).items()}
    tags |= {_option_tag(k): v for k, v in pixel_options(options, scene, backend).items()}
    tags |= time_tags(options.when or taken(scene.ntl_raster, scene.ntl_band))
    if "interval" in options.bands:
        tags["DEEPLIGHT_INTERVAL"] = f"{INTERVAL:g}"
    others = {k: v for k, v in versions(backend).items() if k != "deeplight"}
    return tags | {f"DEEPLIGHT_{k.upper()}_VERSION": v for k, v in others.items()}


def fingerprint(
    options: RunOptions,
    scene: Scene,
    artifact: Artifact,
    backend: Backend,
    threads: int,
    files: Mapping[str, str],
) -> dict[str, str]:
    """What a resumed run must find as it was, by name for the message that says what changed. files: the inputs, as
    inputs.described."""
    fields = {field_of(k): v for k, v in files.items()}
    fields["the model"] = f"{artifact.manifest.name} {artifact.digest[:16]}"
    fields["the model's file"] = _file_of(artifact, backend, options.precision)
    fields["the backend"] = (
        f"{backend.name} on {backend.device.partition(':')[0]}"  # GPUs of one model are as one
    )
    fields["the processor"] = processor()
    fields |= backend.origins()
    fields["`tiles`"] = "absent (`tiles=None`)" if options.tiles is None else str(options.tiles)
    fields["`threads`"] = str(threads)
    fields |= {_option_field(k): v for k, v in pixel_options(options, scene, backend).items()}
    return fields | {f"the version of {k}": v for k, v in versions(backend).items()}


def _file_of(artifact: Artifact, backend: Backend, precision: str) -> str:
    """What the backend runs of the model: the same weights exported anew may differ in their last bits."""
    name = artifact.file(precision, BACKENDS[backend.name].kind).name
    return f"{name} {artifact.manifest.files[name].sha256[:16]}"


def _tag(option: str) -> str:
    """As the name of a metadata item: "dmo-band blue" → DMO_BAND_BLUE."""
    return option.replace("-", "_").replace(" ", "_").upper()


def differing_tag(written: Mapping[str, str], wanted: Mapping[str, str]) -> str | None:
    """The first provenance tag in which a finished output differs from this run's; None where none does.

    Both ways: an input or an option that only the output has makes it another run's, too.
    """
    beyond = {name for name in written if name.startswith(("DEEPLIGHT_INPUT_", "DEEPLIGHT_OPTION_"))}
    for name in sorted({*wanted, *beyond}):
        there, here = written.get(name, "absent"), wanted.get(name, "absent")
        if there != here:
            return f"{name} is {there} there and {here} here"
    return None
