"""The STAC item of the model that made an output, so that a catalogue says what a map comes from."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplight.engine.core.files import write_file
from deeplight.engine.runtime.manifest import WEIGHTS

if TYPE_CHECKING:
    from pystac import Asset, Item

    from deeplight.engine.runtime.manifest import Manifest, TensorInfo

MLM = "https://stac-extensions.github.io/mlm/v1.4.0/schema.json"
"""The newest version of the extension that pystac reads."""
FILE = "https://stac-extensions.github.io/file/v2.1.0/schema.json"
_ANY_TIME = {"start_datetime": "1900-01-01T00:00:00Z", "end_datetime": "9999-12-31T23:59:59Z"}
"""How the extension wants models to be dated that are of no time."""
_TASKS = {"ntl_hr": "super-resolution", "interval": "super-resolution"}
_OTHER_TASK = "regression"


def model_item_name(model: Manifest) -> str:
    """Of the file beside an output. The model's digest is in it: another of the same name has another item."""
    return f"{model.name}-{model.identity[:8]}.stac.json"


def write_model_item(folder: Path, model: Manifest) -> Path:
    """Write the item of a model into `folder` and return its path. The same model gives the same item.

    Raises DeepLightError where the disk refuses.
    """
    content = _item(model).to_dict(include_self_link=False, transform_hrefs=False)
    path = folder / model_item_name(model)
    write_file(path, [(json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()])
    return path


def link_model(item: Item, model: Manifest) -> None:
    """Say in the item of an output, which lies beside that of the model, what it comes from."""
    import pystac

    href = f"./{model_item_name(model)}"
    link = pystac.Link("derived_from", href, pystac.MediaType.GEOJSON, extra_fields={"mlm:name": model.name})
    item.add_link(link)
    item.properties["processing:level"] = "L4"
    item.properties["processing:expression"] = {"format": "stac-mlm", "expression": href}


def _item(model: Manifest) -> Item:
    """Of no place and no time: where a model may be used is for its card to say."""
    import pystac

    properties = {
        "description": f"Refines nighttime lights {model.scale}×, with daytime bands and elevation where there are any",
        **_ANY_TIME,
        "mlm:name": model.name,
        "mlm:architecture": "DeepLightSR",
        "mlm:tasks": sorted({_task(tensor) for tensor in model.outputs}, reverse=True),
        "mlm:framework": "PyTorch",
        "mlm:accelerator": None,
        "mlm:input": [_input(tensor, model) for tensor in model.inputs],
        "mlm:output": [
            {"name": t.name, "description": _described(t), "tasks": [_task(t)], "result": _array(t)}
            for t in model.outputs
        ],
        "mlm:hyperparameters": {
            "preset": model.preset,
            "scale": model.scale,
            "halo_lr": model.halo_lr,
            "multiple_lr": model.multiple_lr,
            "min_lr": model.min_lr,
        },
        "bands": _bands(model),
    }
    name = model_item_name(model).removesuffix(".stac.json")
    item = pystac.Item(name, None, None, None, properties, stac_extensions=[MLM, FILE])
    kinds = {WEIGHTS: "safetensors.torch.save_file", **dict.fromkeys(model.precisions.values(), "onnx")}
    for file, kind in kinds.items():
        item.add_asset(file, _asset(file, kind, model))
    return item


def _bands(model: Manifest) -> list[dict[str, str]]:
    """In the item and its assets: the extension asks for one, STAC for both or none."""
    return [{"name": slot} for slot in model.dmo_slots]


def _task(tensor: TensorInfo) -> str:
    return _TASKS.get(tensor.name, _OTHER_TASK)


def _input(tensor: TensorInfo, model: Manifest) -> dict[str, Any]:
    bands = list(model.dmo_slots) if tensor.name == "dmo" else []
    found = {"name": tensor.name, "description": _described(tensor), "bands": bands}
    # physical units go in: normalisation is a part of the model
    return {**found, "input": _array(tensor, "bands" if bands else "channel"), "value_scaling": None}


def _described(tensor: TensorInfo) -> str:
    grids = {"lr": "a pixel of the lights", "hr": "a pixel of the result", "none": "one vector for a tile"}
    return f"{grids[tensor.grid]}, in {tensor.unit}"


def _array(tensor: TensorInfo, channels: str = "channel") -> dict[str, Any]:
    """Shape, dimensions and type; sides of tiles are free."""
    flat = tensor.grid == "none"
    return {
        "shape": [-1, tensor.channels] + ([] if flat else [-1, -1]),
        "dim_order": ["batch", channels] + ([] if flat else ["height", "width"]),
        "data_type": "float32",
    }


def _asset(file: str, kind: str, model: Manifest) -> Asset:
    """A file of the model, named by what is in it: the model's folder is not where the maps are."""
    import pystac

    info = model.files[file]
    digest = base64.urlsafe_b64encode(bytes.fromhex(info.sha256)).decode().rstrip("=")
    return pystac.Asset(
        f"ni:///sha-256;{digest}",
        f"{file} of the model {model.name}",
        f"In the folder of {model.name}, or in the package; the address is of its bytes (RFC 6920)",
        "application/octet-stream",
        ["mlm:model", "mlm:weights"] if file == WEIGHTS else ["mlm:model"],
        {
            "mlm:artifact_type": kind,
            "bands": _bands(model),
            "file:size": info.bytes,
            "file:checksum": f"1220{info.sha256}",
        },
    )
