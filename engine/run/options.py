"""What a run is asked to do, and the texts of the command line turned into values. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.spec import Quality
from deeplight.engine.core.wording import mention
from deeplight.engine.output.acquired import Span
from deeplight.engine.output.parts import Mode, parts_folder
from deeplight.engine.output.shards import Shard
from deeplight.engine.run.tiling import AUTOMATIC, TileRequest
from deeplight.engine.run.workers.request import Workers
from deeplight.engine.runtime.artifact import DEFAULT_MODEL

if TYPE_CHECKING:
    from deeplight.engine.raster.scene import SceneOptions

QUALITY_BAND = "quality (bit flags: " + ", ".join(f"{flag.value} {flag.name}" for flag in Quality) + ")"
"""The quality band's description. Its flags are float32 numbers, as all bands share one type; 0 … 31 are exact."""

INTERVAL = 0.9
"""Share of the pixels whose true radiance lies between the two bands of `interval`."""

EXTRA_BANDS: Mapping[str, tuple[tuple[str, str | None], ...]] = {
    "isp": (("isp", "probability"),),
    "offset": (("offset_x", "LR px"), ("offset_y", "LR px")),
    "quality": ((QUALITY_BAND, ""),),
    "interval": (
        (f"ntl_low (lower end of the {INTERVAL:.0%} interval)", None),
        (f"ntl_high (upper end of the {INTERVAL:.0%} interval)", None),
    ),
}
"""Optional outputs → (description, unit) of the bands that they become after the radiance band; None: its unit."""


def band_count(extra: Iterable[str]) -> int:
    """Bands of an output: radiance, and what the names of EXTRA_BANDS become."""
    return 1 + sum(len(EXTRA_BANDS[name]) for name in extra)


UINT16_SCALE, UINT16_NODATA = 0.1, 65535.0
"""Black Marble's encoding of radiance: 0 … 6553.4 in steps of 0.1."""


@dataclass(frozen=True)
class RunOptions:
    """One run of `pipeline.infer`.

    tiles: automatic unless given; None runs the scene in one piece. bands: of EXTRA_BANDS. threads: of the backend;
    None: all. streams: tiles computed at once, sharing the threads; None: one, or with automatic tiles two where the
    runtime gains by it (Backend.threads_a_stream) and the memory allows it. compiling: let PyTorch on CUDA compile the
    network's glue for each tile shape.
    report, quicklook, page, events: files to write beside the output. verify_seams: how many places across tile borders
    to compute again and compare. check: how many tiles to compare with float32 first. trust: let native code in the
    model's folder run. stac: write a STAC item beside it. conserve_radiance:
    bring the output, as the sensor would see it, into agreement with the NTL. when: the time that the NTL covers, in
    place of what its metadata or name says. shard: compute that share of
    the packs alone; None: all, and the output. workers: processes that compute packs; None: this one does. beside:
    processes that compute on this host with its memory. split: write the output in regions of so many LR pixels a side
    into the folder `out`.
    """

    scene: SceneOptions
    out: Path
    model: str = DEFAULT_MODEL
    tiles: TileRequest | None = AUTOMATIC
    backend: str = "auto"
    device: str = "auto"
    precision: str = "fp32"
    dtype: Literal["float32", "uint16"] = "float32"
    compression: Literal["zstd", "deflate"] = "zstd"
    conserve_radiance: bool = False
    mode: Mode = Mode.NEW
    bands: tuple[str, ...] = ()
    threads: int | None = None
    streams: int | None = None
    compiling: bool = True
    report: Path | None = None
    quicklook: Path | None = None
    page: Path | None = None
    events: Path | None = None
    verify_seams: int = 0
    check: int = 0
    trust: bool = False
    stac: bool = False
    when: Span | None = None
    shard: Shard | None = None
    workers: Workers | None = None
    beside: int = 1
    split: int | None = None

    @property
    def part(self) -> bool:
        """Whether others compute packs of the same output, perhaps on other hosts."""
        return self.shard is not None or self.workers is not None


def as_shard(options: RunOptions) -> RunOptions:
    """What a shard does of a run: it goes on where it finds packs, and leaves files beside the output to the run that
    assembles it. Raises InputError where the run has no packs to share, or would drop those of others."""
    if options.tiles is None:
        raise InputError(
            "`tiles=None` computes the scene in one piece, which no `shard` can do a part of: leave one out"
        )
    if options.mode is Mode.OVERWRITE:
        raise InputError(
            "`overwrite=True` would drop what other shards have computed: leave it out with `shard`, and remove "
            f"{options.out} and {parts_folder(options.out)} first, where they are of an older run"
        )
    nothing = {
        "report": None,
        "quicklook": None,
        "page": None,
        "events": None,
        "verify_seams": 0,
        "stac": False,
    }
    return replace(options, mode=Mode.RESUME, **nothing)  # type: ignore[arg-type]


def check_workers(options: RunOptions) -> None:
    """Raises InputError where workers cannot do what is asked of them."""
    if options.tiles is None:
        raise InputError(
            "`tiles=None` computes the scene in one piece, which `workers` cannot share: leave one out"
        )
    if options.shard is not None:
        raise InputError(
            "`shard` is one process of a job array, and `workers` starts processes of its own: leave one out"
        )
    if options.device.startswith("cuda:"):
        raise InputError(
            f'`device="{options.device}"` is one GPU, and each of `workers` has its own: use {mention(device="cuda")}'
        )


def chosen_mode(resume: bool, overwrite: bool) -> Mode:
    """What to do with an output, or parts of one, that is there already. Raises InputError for both."""
    if resume and overwrite:
        raise InputError("`resume=True` and `overwrite=True` exclude each other: give one of them")
    return Mode.RESUME if resume else Mode.OVERWRITE if overwrite else Mode.NEW


def parse_extra_bands(text: str) -> tuple[str, ...]:
    """`isp,offset` → the names, in the order of EXTRA_BANDS. Raises ValueError in one sentence."""
    names = [n.strip() for n in text.split(",")]
    for name in names:
        if name not in EXTRA_BANDS:
            raise ValueError(f"{name!r} is not an extra band: choose from {', '.join(EXTRA_BANDS)}")
    return tuple(n for n in EXTRA_BANDS if n in names)


def parse_shard(text: str) -> Shard:
    """`I/N`. Raises ValueError in one sentence."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ValueError(
            f"{text!r} is not a shard: give I/N, with I from 0 to N − 1, as in 0/4, 1/4, 2/4 and 3/4; N "
            "has at most six digits"
        )
    return Shard(int(match[1]), int(match[2]))


def parse_number(text: str) -> float:
    """A number, `nan` included. Raises ValueError in one sentence."""
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number: give one such as 0, -999.3 or nan") from None
