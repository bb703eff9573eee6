"""Registers the plugins with the stand-in for TensorRT, runs their functions and prints a line of JSON for each."""

from __future__ import annotations

import json
import re
import types
from typing import Any

from deeplight.export.plugins import register
from tests.export.fake_tensorrt import DataType, PluginModule, TensorDesc, number

HALF, FLOAT = DataType("HALF"), DataType("FLOAT")
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "fuse": {
        "main": (1, 32, 64, 64),
        "aux0": (1, 16, 64, 64),
        "aux1": (1, 16, 64, 64),
        "mask0": (1, 1, 64, 64),
        "mask1": (1, 1, 64, 64),
        "query_aux": (2, 16),
        "query_main": (2, 32),
        "query_bias": (2,),
        "film_weight": (64, 16),
        "film_bias": (64,),
    },
    "upsample": {"x": (1, 32, 64, 64), "weight": (9, 32, 32), "bias": (32,)},
    "refine": {
        "x": (1, 8, 64, 64),
        "level": (1, 1, 64, 64),
        "isp_weight": (1, 8, 1, 1),
        "isp_bias": (1,),
        "embed": (8,),
        "weight": (9, 8, 8),
        "bias": (8,),
        "residual_weight": (1, 8, 1, 1),
        "residual_bias": (1,),
    },
}
ATTRIBUTES = {"refine": {"unit": 1.0, "gain": 2.0, "top": 13.8}}


def text(value: Any) -> str:
    return getattr(value, "text", None) or str(value)


def main() -> None:
    trtp = PluginModule()
    register(types.SimpleNamespace(float32=FLOAT), trtp, 90)
    for plugin, entry in trtp.registered.items():
        name = plugin.removeprefix("deeplight::")
        shapes = SHAPES[name]
        assert list(shapes) == entry["tensors"]
        tensors = [TensorDesc(n, s, FLOAT if n == "level" else HALF) for n, s in shapes.items()]
        attributes = list(ATTRIBUTES.get(name, {}).values())
        described = entry["register"](*tensors, *attributes)
        outputs = described if isinstance(described, tuple) else (described,)
        assert len(outputs) == entry["outputs"]
        combination = entry["autotune"](*tensors, *attributes, outputs)[0]
        kernel, ptx, launch, scalars = entry["aot_impl"](*tensors, *attributes, outputs, 0)
        head = re.search(rf"\.entry\s+{kernel}\s*\(([^)]*)\)", ptx)
        assert head is not None
        target = re.search(r"\.target\s+(\w+)", ptx)
        assert target is not None
        row = {
            "plugin": name,
            "parameters": re.findall(r"\.param\s+\.(u64|u32)", head.group(1)),
            "scalars": [text(s) for s in scalars],
            "output": [text(e) for e in outputs[0].shape_expr],
            "places": combination.places,
            "target": target.group(1),
            "threads": launch.block_x,
            "grid": number(launch.grid_x),
        }
        print(json.dumps(row))


if __name__ == "__main__":
    main()
