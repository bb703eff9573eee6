"""Where a run computes: device, precision and the processes that torchrun started, behind Lightning Fabric."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.precision.amp import MixedPrecision
from lightning.fabric.strategies.ddp import DDPStrategy

from deeplight.engine.core.errors import InputError


class _Amp(MixedPrecision):
    """Autocast that leaves the inputs alone: radiance, metres and offsets do not fit into 16 bits."""

    def convert_input(self, data: Any) -> Any:
        """Return the data as they are: autocast converts what each operation needs."""
        return data


def make_fabric(device: str, precision: str) -> Fabric:
    """Make and launch Fabric for this process. device: auto, cpu or cuda. precision: 32-true, bf16-mixed or 16-mixed.

    Under torchrun each device has one process, and gradients are averaged. Raises InputError where the machine has no
    such device or precision.
    """
    kind = check_device(device, precision)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    here, everywhere = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), int(os.environ.get("WORLD_SIZE", 1))
    fabric = Fabric(
        accelerator=kind,
        devices=here,
        num_nodes=everywhere // here,
        strategy=DDPStrategy() if everywhere > 1 else "auto",
        plugins=None if precision == "32-true" else [_Amp(precision, kind)],  # type: ignore[arg-type]
    )
    fabric.launch()
    return fabric


def check_device(device: str, precision: str) -> str:
    """Return the kind of device, cpu or cuda. Raises what `make_fabric` raises, before anything is made ready."""
    kind = _device(device)
    _check_precision(kind, precision)
    return kind


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(
            '`device="cuda"`: PyTorch sees no CUDA device; give `device="cpu"`, or install a CUDA build of PyTorch'
        )
    return name


def _check_precision(kind: str, precision: str) -> None:
    if precision == "16-mixed" and kind == "cpu":
        raise InputError('`precision="16-mixed"` needs a GPU; on a CPU give 32-true or bf16-mixed')
    if precision == "bf16-mixed" and kind == "cuda" and not torch.cuda.is_bf16_supported():
        raise InputError('`precision="bf16-mixed"`: this GPU has no bfloat16; give 16-mixed or 32-true')


def worker_count(asked: int, fabric: Fabric, cpus: int) -> int:
    """Return how many processes read: `asked`, or, where that is −1, none on a CPU and up to eight for each GPU."""
    if asked >= 0:
        return asked
    return 0 if fabric.device.type == "cpu" else max(1, min(8, cpus // fabric.world_size))
