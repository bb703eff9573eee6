"""What an ONNX file says about where it comes from, and whether that is the model folder that it lies in.

Read from the file itself, so that a backend can ask that never loads it (TensorRT). Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping

from deeplight.engine.core.errors import ArtifactError
from deeplight.engine.runtime.manifest import CONFIGURATION_NOTE, HALO_NOTE, WEIGHTS, WEIGHTS_NOTE, Manifest
from deeplight.engine.runtime.protobuf import fields_of

_METADATA, _KEY, _VALUE = 14, 1, 2
"""Field numbers of ModelProto.metadata_props and its entries: ONNX IR specification, onnx.proto3."""


def check_origin(manifest: Manifest, model: bytes) -> None:
    """Refuse an ONNX file that needs more halo than the manifest claims, or was made of other weights or another
    configuration than the folder's. A file that says nothing about one of them passes. Raises ArtifactError.
    """
    try:
        notes = notes_of(model)
    except ValueError as e:
        raise ArtifactError(
            f"the ONNX file of {manifest.name} is damaged: {e}; export the model again"
        ) from None
    halo = notes.get(HALO_NOTE, "0")
    if not halo.isdecimal() or int(halo) > manifest.halo_lr:
        raise ArtifactError(
            f"the ONNX file of {manifest.name} needs a halo of {halo} LR pixels and the manifest claims "
            f"{manifest.halo_lr}: export the model again"
        )
    for note, digest, what in (
        (WEIGHTS_NOTE, manifest.files[WEIGHTS].sha256, f"other weights than {WEIGHTS}"),
        (CONFIGURATION_NOTE, manifest.configuration_digest, "another configuration than the manifest's"),
    ):
        if notes.get(note, digest) != digest:
            raise ArtifactError(
                f"the ONNX file of {manifest.name} was made from {what}: export the model again"
            )


def notes_of(model: bytes) -> Mapping[str, str]:
    """The metadata of a serialised ONNX ModelProto. Raises ValueError where it is not well-formed."""
    notes = {}
    for number, value, _ in fields_of(memoryview(model)):
        if number == _METADATA and isinstance(value, memoryview):
            entry = {k: bytes(v).decode() for k, v, _ in fields_of(value) if isinstance(v, memoryview)}
            notes[entry.get(_KEY, "")] = entry.get(_VALUE, "")
    return notes
