"""An ONNX model cut down to what the tiles of a run ask of it, before a runtime sees it."""

from __future__ import annotations

from collections.abc import Sequence

from deeplight.engine.core.errors import ArtifactError
from deeplight.engine.core.spec import OFFSET
from deeplight.engine.runtime.onnx_alone import lights_alone
from deeplight.engine.runtime.onnx_offset import with_offset
from deeplight.engine.runtime.onnx_outputs import with_outputs


def made_by(outputs: Sequence[str], *, offset: bool) -> list[str]:
    """Those of the outputs that the model makes. offset: whether tiles come with theirs."""
    return [name for name in outputs if not (offset and name == OFFSET.name)]


def asked(model: bytes, outputs: Sequence[str], *, layers: bool, offset: bool) -> bytes:
    """The serialised ModelProto that computes these outputs and no more; see Backend.split.

    Raises ArtifactError where it cannot be given an offset, ValueError where it is not well-formed protobuf.
    """
    made = made_by(outputs, offset=offset)
    if offset:
        try:
            model = with_offset(model)
        except ValueError as e:
            raise ArtifactError(
                f"the model cannot be given an offset ({e}): use one that aligns layers"
            ) from None
    return (None if layers else lights_alone(model, made)) or with_outputs(model, made)
