"""One set of weights in every form that is measured: checkpoint, ONNX, torch programs.

Speed does not depend on what the weights are, so by default they are seeded random numbers; DEEPLIGHT_BENCH_CHECKPOINT
names a run of deeplight-train to take instead.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from deeplight.engine.network.model import DeepLightSR

VARIABLE = "DEEPLIGHT_BENCH_CHECKPOINT"
SEED = 7


@dataclass(frozen=True)
class Network:
    """run: checkpoint folder. artifact: the same weights for deeplight-infer (ONNX fp32, programs fp32 and bf16)."""

    run: Path
    artifact: Path


def make_network(folder: Path, checkpoint: Path | None = None) -> Network:
    """The network's files in `folder`, made if they are not there yet.

    checkpoint: a run folder; None: the one that DEEPLIGHT_BENCH_CHECKPOINT names, else random weights of preset tiny.
    """
    named = os.environ.get(VARIABLE)
    source = checkpoint or (Path(named) if named else None)
    home = folder / f"network-{_key(source)}"
    network = Network(home / "run", home / "artifact")
    if not network.artifact.exists():
        from deeplight.train.fit.checkpoint import load_checkpoint, save_checkpoint

        model = load_checkpoint(source)[0] if source else random_model()
        shutil.rmtree(home, ignore_errors=True)
        save_checkpoint(network.run, model, {"step": 0})
        _export(model, network.artifact)
    return network


def random_model(preset: str = "tiny") -> DeepLightSR:
    """A network of seeded random weights in which no layer is without effect, in eval mode."""
    import torch

    from deeplight.engine.network.config import PRESETS
    from deeplight.engine.network.model import DeepLightSR

    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model = DeepLightSR(PRESETS[preset])
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.any():  # heads start at zero
                    parameter.normal_(0, 0.02)
    return model.eval()


def _key(source: Path | None) -> str:
    """Changes with the weights, and with what turns them into files."""
    from deeplight.train.fit.run_folder import WEIGHTS

    root = Path(__file__).resolve().parent.parent
    read = [
        root / "engine/network/model.py",
        root / "engine/network/config.py",
        *sorted((root / "export").glob("*.py")),
    ]
    read += sorted((root / "kernels").rglob("*.py"))
    read += [source / WEIGHTS] if source else []
    digest = hashlib.sha256(str(SEED).encode())
    for path in read:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _export(model: DeepLightSR, out: Path) -> None:
    """As deeplight-export writes it, without the comparison: every benchmark compares what it runs."""
    from deeplight.engine.network.receptive import halo, receptive_field
    from deeplight.engine.runtime.artifact import Manifest, write_artifact
    from deeplight.export.build import ONNX_FILES, PROGRAM_FILES, WEIGHTS_FILE
    from deeplight.export.program import to_pt2, to_safetensors, trace
    from deeplight.export.to_onnx import metadata, to_onnx

    programs = {p: PROGRAM_FILES[p] for p in ("fp32", "bf16")}
    manifest = Manifest(
        name="deeplight-bench",
        preset=model.config.preset,
        receptive_field_lr=receptive_field(model.config),
        halo_lr=halo(model.config),
        precisions={"fp32": ONNX_FILES["fp32"]},
        programs=programs,
        weights=WEIGHTS_FILE,
        min_lr=4,
        bytes_per_lr_px=_shipped_bytes_per_lr_px(),
    )
    weights = to_safetensors(model)
    files = {WEIGHTS_FILE: weights}
    for precision, name in programs.items():
        program = trace(model, precision)
        files[name] = to_pt2(program)
        if precision == "fp32":
            digest = hashlib.sha256(weights).hexdigest()
            files[ONNX_FILES[precision]] = to_onnx(program, metadata(manifest, precision, digest))
    write_artifact(out, manifest, files)


def _shipped_bytes_per_lr_px() -> int:
    """Working memory of the shipped model, whose architecture this is, so that `--tiles auto` chooses alike."""
    from deeplight.engine.runtime.artifact import DEFAULT_MODEL, load_artifact

    return load_artifact(DEFAULT_MODEL).manifest.bytes_per_lr_px


def channels_last(model: nn.Module) -> nn.Module:
    """The layout in which PyTorch's convolutions are fastest on a CPU."""
    import torch

    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
