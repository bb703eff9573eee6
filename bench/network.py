"""One set of weights in both forms that are measured: a training run and an exported model.

Speed does not depend on what the weights are, so by default they are seeded random numbers; DEEPLIGHT_BENCH_CHECKPOINT
names a run of deeplight-train to take instead.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from deeplight.engine.runtime.backends import BACKENDS

if TYPE_CHECKING:
    from torch import nn

    from deeplight.engine.network.model import DeepLightSR

VARIABLE = "DEEPLIGHT_BENCH_CHECKPOINT"
SEED = 7
PRECISIONS = ("fp32", "bf16")
"""Of the ONNX files."""
RUNTIMES = (*(f"{name} fp32" for name in BACKENDS), "openvino bf16")
"""Backend and precision of what the engine can run them with."""


@dataclass(frozen=True)
class Network:
    """run: as deeplight-train leaves it. artifact: the same weights with ONNX files of PRECISIONS."""

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
                if not parameter.any():  # heads are zero at first, so they are set to other values
                    parameter.normal_(0, 0.02)
    return model.eval()


def _key(source: Path | None) -> str:
    """A digest that changes with the weights and with the code that turns them into files."""
    from deeplight.engine.runtime.manifest import WEIGHTS

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
    """Write the model folder as deeplight-export does, but without its comparison, since every benchmark compares."""
    from deeplight.engine.network.weights import to_safetensors
    from deeplight.engine.runtime.artifact import write_artifact
    from deeplight.engine.runtime.manifest import WEIGHTS
    from deeplight.engine.runtime.models import manifest_of
    from deeplight.export.build import ONNX_FILES
    from deeplight.export.to_onnx import metadata, to_onnx
    from deeplight.export.trace import trace

    manifest = replace(
        manifest_of(model, {}, name="deeplight-bench"),
        precisions={precision: ONNX_FILES[precision] for precision in PRECISIONS},
        bytes_per_lr_px=_shipped_bytes_per_lr_px(),
    )
    weights = to_safetensors(model)
    digest = hashlib.sha256(weights).hexdigest()
    files = {
        file: to_onnx(trace(model, precision), metadata(manifest, precision, digest))
        for precision, file in manifest.precisions.items()
    }
    write_artifact(out, manifest, {WEIGHTS: weights, **files})


def _shipped_bytes_per_lr_px() -> int:
    """The working memory of the shipped model, which has this architecture; `--tiles auto` then chooses as with it."""
    from deeplight.engine.runtime.artifact import DEFAULT_MODEL, load_artifact

    return load_artifact(DEFAULT_MODEL).manifest.bytes_per_lr_px


def channels_last(model: nn.Module) -> nn.Module:
    """Bring a model or tensor into the memory layout in which PyTorch's convolutions are fastest on a CPU."""
    import torch

    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
