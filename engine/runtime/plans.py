"""TensorRT plans on disk: what a plan is for is in its name and in a sidecar, and it is loaded for nothing else.

A plan is native code. One that this machine did not build runs only where it is trusted. Standard library only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deeplight.engine.core.errors import ArtifactError, InputError
from deeplight.engine.runtime.artifact import Artifact

FOLDER = "plans"
_MAX_SIDECAR = 1 << 16


@dataclass(frozen=True)
class PlanKey:
    """Everything that a plan depends on.

    gpu: its name. capability: as in "9.0". tensorrt: version. model: SHA-256 of the ONNX file. compatibility:
    "none", "ampere_plus" or "same_compute_capability". version_compatible: also for later versions of the same major.
    tile: batch and LR sides (h, w) of the profile for the engine's tiles.
    """

    gpu: str
    capability: str
    tensorrt: str
    precision: str
    model: str
    compatibility: str = "none"
    version_compatible: bool = False
    tile: tuple[int, int, int] = (1, 96, 96)

    def file_name(self) -> str:
        """Readable parts, then a hash of all of them."""
        plain = re.sub(r"[^a-z0-9]+", "-", self.gpu.lower()).strip("-")
        parts = (
            plain,
            f"sm{self.capability.replace('.', '')}",
            f"trt{self.tensorrt}",
            self.precision,
            self.model[:12],
        )
        return f"{'_'.join(parts)}_{self.digest()[:12]}.plan"

    def digest(self) -> str:
        """SHA-256 over all fields."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()

    def timing_cache_name(self) -> str:
        """Timings hold for a GPU and a TensorRT version, whatever the model."""
        return "_".join(self.file_name().split("_")[:3]) + ".timing"


def save_plan(folder: Path, key: PlanKey, plan: bytes) -> Path:
    """Write a plan that this machine built, its sidecar, and the note that makes it trusted here."""
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(plan).hexdigest()
    path = folder / key.file_name()
    for target, data in (
        (path, plan),
        (
            _sidecar(path),
            json.dumps({"schema": 1, "sha256": digest, **dataclasses.asdict(key)}, indent=1).encode(),
        ),
    ):
        temporary = target.with_name(f".{target.name}.tmp")
        temporary.write_bytes(data)
        temporary.replace(target)
    remember(plan)
    return path


def remember(plan: bytes) -> None:
    """Note that this machine built a plan or an engine."""
    mark = _marks() / hashlib.sha256(plan).hexdigest()
    mark.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    mark.touch(mode=0o600)


def was_built_here(digest: str) -> bool:
    """Whether this machine built the plan or engine of this SHA-256."""
    return (_marks() / digest).is_file()


def load_plan(artifact: Artifact, here: PlanKey) -> bytes:
    """The plan that was built for this model and runs on what `here` describes, built here or trusted.

    Raises InputError or ArtifactError saying what is there instead and what to do.
    """
    folder = artifact.path / FOLDER
    reasons = []
    for path in sorted(folder.glob("*.plan")) if folder.is_dir() else []:
        sidecar = _read_sidecar(path)
        reason = misfit(sidecar, here)
        if reason is None:
            return _checked(path, str(sidecar.get("sha256")), artifact.trusted)
        reasons.append(f"{path.name} is for {reason}")
    raise InputError(
        f"{artifact.manifest.name} has no TensorRT plan for {here.gpu} (compute capability {here.capability}), "
        f"TensorRT {here.tensorrt} and {here.precision}{''.join(f'; {r}' for r in reasons[:3])}; "
        "build one on this machine: deeplight-export … --format onnx,tensorrt"
    )


def misfit(sidecar: Mapping[str, object], here: PlanKey) -> str | None:
    """What a plan was built for that is not here; None where it fits.

    A plan for compute capability 8.0 and above (ampere_plus), or for one capability, may meet another GPU; a version-
    compatible one a later TensorRT of the same major version. All others need exactly what they were built with.
    """
    for name in ("model", "precision"):
        if sidecar.get(name) != getattr(here, name):
            return f"{name} {sidecar.get(name)!r}"
    level = sidecar.get("compatibility")
    same_capability = sidecar.get("capability") == here.capability
    ampere = level == "ampere_plus" and int(here.capability.split(".")[0]) >= 8
    exact = same_capability and sidecar.get("gpu") == here.gpu
    if not (exact or ampere or (level == "same_compute_capability" and same_capability)):
        return f"{sidecar.get('gpu')} of compute capability {sidecar.get('capability')}"
    theirs, ours = str(sidecar.get("tensorrt")), here.tensorrt
    later = _version(ours)[:1] == _version(theirs)[:1] and _version(ours) >= _version(theirs)
    if theirs != ours and not (sidecar.get("version_compatible") is True and later):
        return f"TensorRT {theirs}"
    return None


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text))


def _checked(path: Path, wanted: str, trusted: bool) -> bytes:
    plan = path.read_bytes()
    digest = hashlib.sha256(plan).hexdigest()
    if digest != wanted:
        raise ArtifactError(f"{path} does not match its SHA-256: build it again")
    if not trusted and not was_built_here(digest):
        raise ArtifactError(
            f"{path} is native code that this machine did not build: build it here, or use `trust=True`"
        )
    return plan


def _read_sidecar(path: Path) -> dict[str, object]:
    sidecar = _sidecar(path)
    try:
        if sidecar.stat().st_size > _MAX_SIDECAR:
            raise ValueError("too large")
        content = json.loads(sidecar.read_bytes())
    except (OSError, ValueError, RecursionError) as e:
        raise ArtifactError(f"{sidecar} cannot be read ({e}): build the plan again") from None
    if not isinstance(content, dict) or content.get("schema") != 1:
        raise ArtifactError(f"{sidecar} is of an unknown schema: build the plan again")
    return content


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _marks() -> Path:
    """One empty file for each plan that was built here."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "deeplight" / "plans-built-here"
