"""How large automatic tiles on a device are: what is compared, when, what is kept of it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.forms import Wanted, returned
from deeplight.engine.core.windows import Window
from deeplight.engine.output.parts import Mode
from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.run import device_tiles, device_work, tiling
from deeplight.engine.run.device_path import MEASURED, WARM_UPS, DevicePath, TileShape
from deeplight.engine.run.device_work import DeviceWork
from deeplight.engine.run.meter import Meter
from deeplight.engine.run.slots import page_locked
from deeplight.engine.run.tiling import TilePlan
from deeplight.engine.runtime.device import OutOfDeviceMemory
from tests.engine.analytic import onnx_bytes, write_model
from tests.engine.device.runs import run
from tests.engine.device.standin import StandIn
from tests.scenes import write_raster

WANTED = Wanted((), 1, None, None, (1.0, 1.0), (-1.0, 0.1), 1e9, 2, 1.8, (-np.inf, np.inf))
HALO = 20
PLAN = TilePlan(256, HALO, 256, 0, chosen=True)


class Path_:
    """A device path whose tiles take as long, and as much memory, as a test says. speeds: core → HR pixels of it a
    second. most: the largest core that fits. made: what was prepared, in order; held: programs that are kept."""

    def __init__(self, speeds: dict[int, float], most: int = 1 << 20) -> None:
        self.device, self.wanted, self.meter = StandIn(), WANTED, Meter()
        self.speeds, self.most = speeds, most
        self.made: list[int] = []
        self.held: set[TileShape] = set()

    def returned(self, height: int, width: int, *, physical: bool = False) -> Any:
        return returned(1, 1, 1)  # no memory is needed to choose

    failing = DevicePath.failing

    def prepare(self, shape: TileShape, slot: Any, core: Window, window: Window) -> float:
        self.made.append(core.height)
        if core.height > self.most:
            raise OutOfDeviceMemory("the memory is full")
        self.held.add(shape)
        return 64 * core.height * core.width / self.speeds[core.height]

    def forget(self, keep: TileShape | None = None) -> None:
        self.held &= {keep}
        self.device.release()


class Counting(StandIn):
    """A device that counts pieces of page-locked memory by their size, of which there are `most` of one of them."""

    def __init__(self, most: dict[int, int] | None = None, room: int = 1 << 34) -> None:
        super().__init__(room=room)
        self.locked, self.most_locked = Counter[int](), most or {}

    def pinned(self, size: int) -> Any:
        self.locked[size] += 1
        if self.locked[size] > self.most_locked.get(size, 1 << 20):
            raise RuntimeError("CUDA error: out of memory")
        return super().pinned(size)


def sent(core: int) -> int:
    """Bytes that go up of a tile of lights alone."""
    return TileShape(core + 2 * HALO, core + 2 * HALO, ()).sent.size


def work(path: Path_, height: int, width: int, largest: tuple[int, int] | None = None) -> DeviceWork:
    """Over a scene of lights alone, of which nothing is read."""
    manifest = SimpleNamespace(multiple_lr=1, min_lr=1)
    grid = SimpleNamespace(height=height, width=width, shape=(height, width))
    scene = SimpleNamespace(grid=grid, auxiliary={})
    backend = SimpleNamespace(largest_tile=largest)
    host: Any = SimpleNamespace(scene=scene, backend=backend, manifest=manifest, halo=HALO, products=None)
    return DeviceWork(host, path, 2)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def plenty(monkeypatch: pytest.MonkeyPatch) -> None:
    """No scene is too small and no program too dear, so that nothing depends on the machine."""
    monkeypatch.setattr(device_tiles, "PAYS", 0.0)
    monkeypatch.setattr(device_work, "available_memory", lambda: 1 << 40)


LARGE = (40_000, 40_000)


@pytest.mark.parametrize(
    ("speeds", "core", "made"),
    [
        ({256: 1e9, 512: 1.2e9, 1024: 1.4e9}, 1024, [256, 512, 1024]),
        ({256: 1e9, 512: 1.2e9, 1024: 1.0e9}, 512, [256, 512, 1024, 512]),
        ({256: 1e9, 512: 1.02e9}, 256, [256, 512, 256]),  # no more than two measurements differ by
    ],
)
def test_a_larger_tile_is_taken_where_it_is_faster(
    speeds: dict[int, float], core: int, made: list[int]
) -> None:
    path = Path_(speeds)
    chosen = work(path, *LARGE)
    plan = chosen.fit(PLAN)
    assert (plan.core, plan.pack) == (core, tiling.pack_side(core)) and path.made == made
    assert path.meter.facts(1.0)["tiles_tried"] == {c: pytest.approx(speeds[c] / 1e6) for c in set(made)}
    # tiles are cut as the plan says, and one program is kept
    assert chosen.window(Window(0, 0, 1, 1)).height == core + 2 * HALO
    assert {shape.height for shape in path.held} == {core + 2 * HALO}


def test_one_that_does_not_fit_leaves_the_best_that_did() -> None:
    path = Path_({256: 1e9, 512: 1.2e9}, most=512)
    assert work(path, *LARGE).fit(PLAN).core == 512
    assert path.made == [256, 512, 1024, 512] and len(path.held) == 1
    assert list(path.meter.tried) == [256, 512]


@pytest.mark.parametrize(
    ("largest", "made"), [((512, 512), [256]), ((552, 600), [256, 512]), ((295, 512), [128])]
)
def test_one_that_the_engine_does_not_take_is_not_tried(largest: tuple[int, int], made: list[int]) -> None:
    path = Path_({128: 1e9, 256: 1.2e9, 512: 1.4e9})
    assert work(path, *LARGE, largest).fit(PLAN).core == made[-1]
    assert path.made == made


@pytest.mark.parametrize(("left", "core"), [(128, 128), (0, None)])
def test_memory_that_others_have_taken_meanwhile_makes_tiles_smaller(left: int, core: int | None) -> None:
    path = Path_({128: 0.5e9, 256: 1e9, 512: 0.5e9})
    make = path.prepare

    def later(*given: Any) -> float:
        path.most = left if len(path.made) == 2 else path.most
        return make(*given)

    path.prepare = later  # type: ignore[method-assign]
    if core is None:
        with pytest.raises(InputError, match=r"tiles of 8 LR pixels do not fit.*use smaller `tiles`"):
            work(path, *LARGE).fit(PLAN)
        assert not path.held
    else:
        assert work(path, *LARGE).fit(PLAN).core == core
        assert path.made == [256, 512, 256, 128]  # what is larger is not compared again


def test_only_the_size_that_is_kept_is_page_locked_for_all_tiles() -> None:
    """And all of it before the first of them."""
    path = Path_({256: 1e9, 512: 1.2e9, 1024: 1.0e9})
    path.device = device = Counting()
    chosen = work(path, *LARGE)
    chosen.fit(PLAN)
    slots = chosen.ring.count
    # that of 512 is timed, and its slot let go of while 1024 is
    assert [device.locked[sent(core)] for core in (256, 512, 1024)] == [1, 1 + slots, 1]
    taken = device.pieces
    held = [chosen.ring.take() for _ in range(slots)]
    for lease in held:
        lease.slot.reserve(sent(512), 1)
    assert device.pieces == taken


def test_a_size_whose_slots_do_not_fit_on_the_device_is_not_timed() -> None:
    path = Path_({256: 1e9, 512: 1.2e9})
    slots = work(path, *LARGE).ring.count
    # the smaller ones twice, since a stand-in does not see what is let go of
    path.device = Counting(room=slots * sent(512) - 1)
    assert 2 * sent(256) * slots < path.device.room
    assert work(path, *LARGE).fit(PLAN).core == 256
    assert path.made == [256, 256]


def test_page_locked_memory_that_does_not_suffice_in_the_end_makes_tiles_smaller() -> None:
    speeds = {core: core * 1e7 for core in (128, 256, 512, 1024)}
    for lacking, core, made in (
        ((1024,), 512, [256, 512, 1024, 512]),
        ((1024, 512), 256, [256, 512, 1024, 512, 256]),
        ((1024, 512, 256), 128, [256, 512, 1024, 512, 256, 128]),
    ):
        path = Path_(speeds)
        # one slot to time each, and another where its program is made again
        path.device = Counting({sent(core): 3 for core in lacking})
        assert work(path, *LARGE).fit(PLAN).core == core
        assert path.made == made and {shape.height for shape in path.held} == {core + 2 * HALO}
    path.device = Counting({sent(300): 3})
    path.speeds[300] = 1e9
    with pytest.raises(InputError, match=r"tiles of 300 LR pixels do not fit.*use smaller `tiles`"):
        work(path, *LARGE).fit(TilePlan(300, HALO, 512, 0))
    assert not path.held


def test_nothing_is_compared_where_it_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    few = 14 * 512  # two tiles of 512 for each of seven slots
    for size, compared in (((512, few), True), ((512, few - 512), False)):
        path = Path_({256: 1e9, 512: 0.9e9})
        work(path, *size).fit(PLAN)
        assert (512 in path.made) == compared


@pytest.mark.parametrize(
    ("seconds", "least"),
    [
        ((10.0,), 20 * 4 * 10),  # it has four times the pixels, and may be compiled anew
        ((5.0, 60.0), 20 * (60 + 4 * 60)),  # as 512 was; what it took has been spent
        ((60.0, 5.0), 20 * (5 + 4 * 60)),  # 512 was found in a cache, where 1024 need not be
    ],
)
def test_comparing_takes_a_twentieth_of_a_run(
    seconds: tuple[float, ...], least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is as fast as decoding where the device is faster."""
    monkeypatch.setattr(device_tiles, "PAYS", 20.0)
    tried = [
        device_tiles.DeviceTiles(256 << k, 0, TileShape(1, 1, ()), (1, 1), rate=1e9, seconds=s)
        for k, s in enumerate(seconds)
    ]
    enough = int(least * device_tiles.DECODED / 64 / 10_000)
    for width, pays in ((enough + 1, True), (enough - 1, False)):
        assert device_tiles.worth_trying(tried, 256 << len(tried), (10_000, width), 1) == pays


def test_tiles_that_were_asked_for_are_compared_with_nothing() -> None:
    path = Path_({300: 1e9})
    assert work(path, *LARGE).fit(TilePlan(300, HALO, 512, 0)).core == 300
    assert path.made == [300]


def test_page_locked_memory_is_counted_as_it_is_taken() -> None:
    assert [page_locked(n) for n in (1, 2, 3, 4096, 4097)] == [1, 2, 4, 4096, 8192]


def test_a_run_says_what_it_compared_and_a_resumed_one_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiling, "_AUTO_CORES", (16,))
    monkeypatch.setattr(tiling, "LEAST_SHARE", 0.2)
    monkeypatch.setattr(device_tiles, "LARGEST", 64)
    model = str(write_model(tmp_path / "analytic", onnx_bytes(), halo_lr=4))
    ntl = np.random.default_rng(3).gamma(0.5, 8.0, (4, 700)).astype(np.float32)
    scene = SceneOptions(ntl=str(write_raster(tmp_path / "ntl.tif", ntl)))
    report = run(monkeypatch, scene, model, tmp_path / "o.tif", StandIn(), core=0)
    # a stand-in's clock counts steps, so a larger tile is always faster; of 64 there are too few
    assert report.tiles["core"] == 32 and report.device is not None
    assert set(json.loads(report.to_json())["device"]["tiles_tried"]) == {"16", "32"}
    run(monkeypatch, scene, model, tmp_path / "asked.tif", StandIn(), core=32)
    assert (tmp_path / "asked.tif").read_bytes() == (tmp_path / "o.tif").read_bytes()

    with pytest.raises(Exception, match="`resume=True`"):
        # at the last of 22 tiles, after those of two programs: seven are on their way at most, so a pack is whole
        run(
            monkeypatch,
            scene,
            model,
            tmp_path / "r.tif",
            StandIn(fails_at=2 * (WARM_UPS + MEASURED) + 22),
            core=0,
        )
    monkeypatch.setattr(device_tiles, "LARGEST", 16)
    resumed = run(monkeypatch, scene, model, tmp_path / "r.tif", StandIn(), core=0, mode=Mode.RESUME)
    assert resumed.tiles["core"] == 32 and resumed.packs["kept_from_earlier_run"] >= 1
    assert resumed.device is not None and set(resumed.device["tiles_tried"]) == {32}
    assert (tmp_path / "r.tif").read_bytes() == (tmp_path / "o.tif").read_bytes()
