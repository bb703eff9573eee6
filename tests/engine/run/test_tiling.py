"""Tile requests, sizes that fit the memory, windows that a model accepts; what the machine says it has."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.machine import (
    available_cpus,
    available_memory,
    bytes_moved,
    cpu_has_bf16,
    peak_memory,
)
from deeplight.engine.core.windows import Window, core_share, split
from deeplight.engine.run.tiling import (
    EDGE,
    TileRequest,
    common_sides,
    cores,
    pack_side,
    parse_tiles,
    plan_tiles,
    tile_window,
    window_of_sides,
)
from tests.engine.analytic import manifest

GB = 1 << 30
WIDE = manifest(halo_lr=12, receptive_field_lr=12.0, bytes_per_lr_px=60_000)


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("auto", TileRequest()),
        ("1", TileRequest(1)),
        ("128", TileRequest(128)),
        ("128+16", TileRequest(128, 16)),
        ("7+0", TileRequest(7, 0)),
    ],
)
def test_tiles_are_parsed_and_printed(text: str, request_: TileRequest) -> None:
    assert parse_tiles(text) == request_
    assert str(request_) == text


@pytest.mark.parametrize("text", ["", "0", "-3", "12+", "+4", "a", "12+4+4", "1.5", "12 + 4", "9999999"])
def test_bad_tiles_say_what_is_accepted(text: str) -> None:
    with pytest.raises(
        ValueError, match=re.escape("give auto, CORE or CORE+HALO in LR pixels, as in 128+16")
    ):
        parse_tiles(text)


@pytest.mark.parametrize(
    ("core", "side"), [(1, 256), (256, 256), (257, 512), (512, 512), (513, 1024), (3000, 4096)]
)
def test_pack_is_the_smallest_that_holds_the_core(core: int, side: int) -> None:
    assert pack_side(core) == side


def test_given_core_is_used_and_small_halo_refused() -> None:
    assert plan_tiles(TileRequest(17), WIDE, 500, 500, 1, 8 * GB).core == 17
    plan = plan_tiles(TileRequest(17, 20), WIDE, 500, 500, 1, 8 * GB)
    assert (plan.core, plan.halo, plan.describe()) == (17, 20, "17+20")
    with pytest.raises(
        InputError, match=r'`tiles="17\+11"`: the halo is below the 12 LR pixels .* give 17\+12'
    ):
        plan_tiles(TileRequest(17, 11), WIDE, 500, 500, 1, 8 * GB)


@pytest.mark.parametrize("memory", [3 * GB, 4 * GB, 8 * GB, 64 * GB])
def test_auto_keeps_the_share_cuts_the_pack_evenly_and_fits(memory: int) -> None:
    plan = plan_tiles(TileRequest(), WIDE, 8192, 8192, 1, memory)
    assert plan.core is not None and plan.estimate <= memory
    assert core_share(plan.core, plan.halo) >= 0.6
    assert plan.pack - plan.core * (plan.pack // plan.core) in (0, *range(plan.core - 4, plan.core))


def test_auto_grows_with_memory_but_not_with_the_scene() -> None:
    small = plan_tiles(TileRequest(), WIDE, 8192, 8192, 1, 2 * GB)
    large = plan_tiles(TileRequest(), WIDE, 8192, 8192, 1, 32 * GB)
    assert small.core is not None and large.core is not None and small.core < large.core
    four_times = plan_tiles(TileRequest(), WIDE, 16384, 16384, 1, 2 * GB)
    assert (four_times.core, four_times.estimate) == (small.core, small.estimate)


def test_auto_takes_less_where_memory_is_short_and_refuses_where_nothing_fits() -> None:
    tight = plan_tiles(TileRequest(), WIDE, 8192, 8192, 1, int(1.05 * GB))
    assert tight.core is not None and core_share(tight.core, tight.halo) < 0.6
    with pytest.raises(InputError, match="smallest tile of analytic needs about"):
        plan_tiles(TileRequest(), WIDE, 8192, 8192, 1, GB // 4)
    with pytest.raises(InputError, match="can be used: use fewer `workers` than 64 a host"):
        plan_tiles(TileRequest(), WIDE, 8192, 8192, 1, GB // 4, beside=64)


@pytest.mark.parametrize(
    ("core", "streams", "peak"),
    [(64, 1, 821e6), (128, 1, 1274e6), (64, 2, 1165e6), (128, 2, 2077e6), (256, 2, 5104e6)],
)
def test_estimate_covers_what_was_measured(core: int, streams: int, peak: float) -> None:
    """Peaks of the shipped model over 256 × 1024 LR pixels, a DMO of 30 m and a DEM, on 2 CPUs with one reader."""
    tiny = manifest(halo_lr=20, receptive_field_lr=20.0, bytes_per_lr_px=23_810)
    estimate = plan_tiles(TileRequest(core), tiny, 256, 1024, 1, 64 * GB, streams=streams).estimate
    assert peak <= estimate <= 1.2 * peak


def test_auto_computes_two_tiles_at_once_where_memory_allows_and_there_are_two() -> None:
    assert plan_tiles(TileRequest(), WIDE, 8192, 8192, 1, 64 * GB, streams=None).streams == 2
    tight = plan_tiles(TileRequest(), WIDE, 8192, 8192, 1, 64 * GB)
    assert tight.streams == 1
    just = int(tight.estimate / 0.69)
    assert plan_tiles(TileRequest(), WIDE, 8192, 8192, 1, just, streams=None) == tight
    assert plan_tiles(TileRequest(), WIDE, 100, 120, 1, 64 * GB, streams=None).streams == 1


def test_whole_scene_fits_or_asks_for_tiles() -> None:
    assert plan_tiles(None, WIDE, 95, 87, 1, 8 * GB).core is None
    with pytest.raises(InputError, match=r"8192×8192 LR pixels in one piece .*: leave out `tiles=None`"):
        plan_tiles(None, WIDE, 8192, 8192, 1, 8 * GB)


@pytest.mark.parametrize("core", [17, 100, 256])
def test_cores_partition_a_pack(core: int) -> None:
    plan = plan_tiles(TileRequest(core), WIDE, 300, 260, 1, 8 * GB)
    pack = Window(256, 0, 44, 256)
    count = np.zeros((300, 260), int)
    for w in cores(pack, plan):
        assert max(w.shape) <= core
        count[w.slices_in(Window(0, 0, 300, 260))] += 1
    assert (count[256:, :256] == 1).all() and count.sum() == 44 * 256


@pytest.mark.parametrize(("multiple", "least"), [(1, 1), (4, 1), (1, 40), (8, 24), (4, 100)])
@pytest.mark.parametrize("halo", [2, 9, 20])
@pytest.mark.parametrize("size", [(41, 83), (30, 200)])
def test_tile_windows_end_at_one_place_beyond_the_scene(
    multiple: int, least: int, halo: int, size: tuple[int, int]
) -> None:
    """What a core needs is there: its halo, or where that leaves the scene as much as the whole scene's window has."""
    m = manifest(multiple_lr=multiple, min_lr=least)
    whole = tile_window(Window(0, 0, *size), halo, m, size)
    for axis in (0, 1):  # no more than asked for, but for the rules on shapes
        assert (whole.row, whole.col)[axis] > -min(halo, EDGE) - multiple
        assert whole.shape[axis] < max(size[axis] + 2 * EDGE + 2 * multiple, least + multiple)
    for core in split(Window(0, 0, *size), 17):
        w = tile_window(core, halo, m, size)
        assert w.row % multiple == w.col % multiple == w.height % multiple == w.width % multiple == 0
        assert min(w.shape) >= least
        w.slices_in(whole)
        needed = core.grown(halo)
        top, left = max(needed.row, whole.row), max(needed.col, whole.col)
        bottom = min(needed.row + needed.height, whole.row + whole.height)
        right = min(needed.col + needed.width, whole.col + whole.width)
        Window(top, left, bottom - top, right - left).slices_in(w)


@pytest.mark.parametrize(("multiple", "least"), [(1, 1), (4, 1), (1, 40), (8, 24), (4, 100)])
@pytest.mark.parametrize("size", [(41, 83), (300, 700), (256, 257), (1024, 530)])
@pytest.mark.parametrize("core", [64, 100, 250, 256])
def test_windows_of_few_shapes_hold_what_each_core_needs(
    multiple: int, least: int, size: tuple[int, int], core: int
) -> None:
    """At most two sides along an axis, inside what the whole scene's window shows, on the model's lattice."""
    m = manifest(multiple_lr=multiple, min_lr=least, halo_lr=20, receptive_field_lr=20.0)
    plan = plan_tiles(TileRequest(core), m, *size, 1, 64 * GB)
    sides = common_sides(plan, m, size)
    whole = tile_window(Window(0, 0, *size), plan.halo, m, size)
    assert all(len(along) <= 2 and list(along) == sorted(along) for along in sides)
    found = []
    for pack in split(Window(0, 0, *size), plan.pack):
        for place in cores(pack, plan):
            own = tile_window(place, plan.halo, m, size)
            window = window_of_sides(own, sides, plan.halo, m, size)
            own.slices_in(window)
            window.slices_in(whole)
            assert window.row % multiple == window.col % multiple == 0
            assert window.height in sides[0] and window.width in sides[1]
            found.append(window)
    assert {w.height for w in found} == set(sides[0]) and {w.width for w in found} == set(sides[1])
    larger = Window(0, 0, whole.height + multiple, 8)  # of another plan, which asks for more than these sides
    assert window_of_sides(larger, sides, plan.halo, m, size).height == larger.height
    small = Window(0, 0, 1, sides[1][0] // 2 - 1)
    assert window_of_sides(small, sides, plan.halo, m, size) == small


def test_automatic_tiles_of_few_shapes_compute_the_fewest_pixels() -> None:
    """Of 320², tiles of 256 leave slivers that may have a shape of their own; of 390² halves would be left."""
    m = manifest(halo_lr=20, receptive_field_lr=20.0, bytes_per_lr_px=20_000)
    plan = plan_tiles(TileRequest(256), m, 320, 320, 1, 64 * GB, few_shapes=True)
    assert common_sides(plan, m, (320, 320)) == ((88, 280), (88, 280))
    assert plan_tiles(TileRequest(), m, 390, 390, 1, 64 * GB, few_shapes=True).core == 128
    assert plan_tiles(TileRequest(), m, 390, 390, 1, 64 * GB).core == 256
    assert common_sides(plan, m, (512, 512)) == ((280,), (280,))
    assert common_sides(plan, m, (1000, 1100)) == ((296,), (100, 296))
    # what short tiles are computed with holds memory beside the others'
    one, two = (
        plan_tiles(TileRequest(256), m, 1000, width, 1, 64 * GB, few_shapes=True).estimate
        for width in (1200, 1100)
    )
    ov = plan_tiles(TileRequest(256), m, 1000, 1200, 1, 64 * GB, few_shapes=True, model_memory=1.5).estimate
    assert ov - one == pytest.approx(0.5 * 1.1 * 20_000 * 296**2, rel=1e-3)
    share = 100 / 296
    assert two - one == pytest.approx(share * 1.1 * 20_000 * 296**2, rel=1e-3)


def test_small_scenes_take_half_of_the_automatic_core() -> None:
    m = manifest(halo_lr=20, receptive_field_lr=20.0, bytes_per_lr_px=20_000)
    sizes = [(40, 40), (256, 256), (384, 384), (385, 385), (100, 400), (8192, 8192)]
    found = [plan_tiles(TileRequest(), m, *size, 1, 64 * GB).core for size in sizes]
    assert found == [128, 128, 128, 256, 256, 256]
    assert plan_tiles(TileRequest(256), m, 100, 100, 1, 64 * GB).core == 256, "as it is asked for"


@pytest.mark.parametrize(("multiple", "least"), [(1, 1), (4, 1), (1, 40), (8, 24)])
def test_tile_window_obeys_the_shape_rules(multiple: int, least: int) -> None:
    m = manifest(multiple_lr=multiple, min_lr=least)
    for core in (Window(0, 0, 1, 1), Window(17, 34, 17, 5), Window(255, 3, 64, 64)):
        w = tile_window(core, 2, m)
        core.grown(2).slices_in(w)
        assert w.row % multiple == w.col % multiple == w.height % multiple == w.width % multiple == 0
        assert min(w.shape) >= least
        assert max(w.shape) < max(max(core.shape) + 4 + 2 * multiple, least + multiple)


def fake_machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 16000 kB\nMemAvailable: 8000 kB\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8_192_000),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max"}, 8_192_000),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/b/memory.current": "5000\n",
                "sys/fs/cgroup/a/memory.max": "100000\n",
                "sys/fs/cgroup/a/memory.current": "60000\n",
                "sys/fs/cgroup/a/memory.stat": "anon 1\ninactive_file 10000\n",
            },
            50_000,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu,memory:/docker/x\n1:name=systemd:/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "4000\n",
                "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 500\n",
            },
            5_500,
        ),
        (
            {
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": "10",
                "sys/fs/cgroup/memory.current": "20",
            },
            0,
        ),
    ],
    ids=["none", "unlimited", "v2 parent", "v1 in a container", "over the limit"],
)
def test_memory_respects_control_groups(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert available_memory(fake_machine(tmp_path, {**MEMINFO, **files})) == expected


@pytest.mark.parametrize(
    "files",
    [
        {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "50000 100000\n"},
        {
            "proc/self/cgroup": "3:cpu,cpuacct:/a\n",
            "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "50000",
            "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000",
        },
    ],
    ids=["v2", "v1"],
)
def test_half_a_cpu_is_one(tmp_path: Path, files: dict[str, str]) -> None:
    assert available_cpus(fake_machine(tmp_path, files)) == 1


@pytest.mark.parametrize(
    ("text", "has"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16\n", True),
        ("processor : 0\nFeatures : fp asimd bf16\n", True),
        ("flags : fpu avx2\n", False),
        ("", False),
    ],
)
def test_bfloat16_is_what_the_processor_says(tmp_path: Path, text: str, has: bool) -> None:
    assert cpu_has_bf16(fake_machine(tmp_path, {"proc/cpuinfo": text})) == has
    assert not cpu_has_bf16(tmp_path / "nowhere")


def test_this_machine_has_something() -> None:
    assert available_memory() > 0 and available_cpus() >= 1 and peak_memory() > 1 << 20
    moved = bytes_moved()
    assert moved is None or moved[0] > 0
