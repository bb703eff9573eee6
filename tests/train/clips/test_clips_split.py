"""Splits: whole blocks with a buffer, held-out regions and places, and the refusal of what leaks."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from rasterio.crs import CRS

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.grid import Grid
from deeplight.engine.raster.scene import SceneOptions
from deeplight.train.clips.degrade import Degradation
from deeplight.train.clips.index import ClipRow, check_leaks, pixel_km, read_index, write_index
from deeplight.train.clips.place import PlaceOptions
from deeplight.train.clips.plan import (
    ClipPlanOptions,
    Planned,
    Region,
    parse_name,
    parse_region,
    parse_shares,
    plan_clips,
)
from deeplight.train.clips.tree import ClipTree, open_source
from tests.scenes import write_raster
from tests.train.clips.places import ANY, cut, ntl_place

GRID = Grid(CRS.from_epsg(4326), Affine(1 / 240, 0, 6.0, 0, -1 / 240, 50.0), 201, 173)
PLAN = ClipPlanOptions(clip=12, clip_min=5, block=29, buffer=5)


def everywhere(window: Window) -> bool:
    return True


def distance(a: Window, b: Window) -> int:
    """Pixels between two windows, by looking at all of them."""
    rows = {abs(i - j) - 1 for i in (a.row, a.row + a.height - 1) for j in (b.row, b.row + b.height - 1)}
    cols = {abs(i - j) - 1 for i in (a.col, a.col + a.width - 1) for j in (b.col, b.col + b.width - 1)}
    row_meet = a.row < b.row + b.height and b.row < a.row + a.height
    col_meet = a.col < b.col + b.width and b.col < a.col + a.width
    return max(-1 if row_meet else min(rows), -1 if col_meet else min(cols))


def by_split(planned: list[Planned]) -> dict[str, list[Window]]:
    out: dict[str, list[Window]] = {}
    for clip in planned:
        out.setdefault(clip.split, []).append(clip.window)
    return out


@pytest.mark.parametrize("buffer", [0, 1, 5, 24])
@pytest.mark.parametrize("seed", [0, 1])
def test_splits_keep_their_distance_and_clips_do_not_overlap(buffer: int, seed: int) -> None:
    planned = plan_clips(GRID, "here", everywhere, replace(PLAN, buffer=buffer, seed=seed))
    splits = by_split(planned)
    assert set(splits) == {"train", "val", "test"}
    for one, other in itertools.combinations(splits.values(), 2):
        assert min(distance(a, b) for a in one for b in other) >= buffer
    pixels = np.zeros((201, 173), int)
    for clip in planned:
        w = clip.window
        assert w.clipped(201, 173) == w and 5 <= w.height <= 12 and 5 <= w.width <= 12
        pixels[w.row : w.row + w.height, w.col : w.col + w.width] += 1
    assert pixels.max() == 1
    if buffer == 0:
        assert pixels.mean() > 0.85  # but for edges of blocks under 5 px


def test_shares_count_blocks_and_the_seed_decides() -> None:
    options = replace(PLAN, block=20, clip=10)
    blocks = {(clip.block, clip.split) for clip in plan_clips(GRID, "here", everywhere, options)}
    count = Counter(split for _, split in blocks)
    assert sum(count.values()) == 80 and count == {"train": 64, "val": 8, "test": 8}
    again = plan_clips(GRID, "other name", everywhere, options)
    assert again == plan_clips(GRID, "here", everywhere, options)
    assert again != plan_clips(GRID, "here", everywhere, replace(options, seed=1))
    alone = plan_clips(GRID, "here", everywhere, replace(options, shares=(0.0, 0.0, 1.0)))
    assert {clip.split for clip in alone} == {"test"}


def test_blocks_without_data_belong_to_no_split() -> None:
    def left(window: Window) -> bool:
        return window.col < 60

    planned = plan_clips(GRID, "here", left, PLAN)
    assert {clip.split for clip in planned} == {"train", "val", "test", ""}
    assert all(clip.window.col < 86 for clip in planned if clip.split)  # blocks begin at 0, 28, 57, 86, …


def test_too_few_blocks_are_refused_with_the_remedy() -> None:
    with pytest.raises(InputError, match=r"has 2 blocks of 100 LR pixels .* or `shares=\(1, 0, 0\)`"):
        plan_clips(GRID, "here", everywhere, replace(PLAN, block=100))
    with pytest.raises(InputError, match="no buffer of 30"):
        replace(PLAN, buffer=30)
    with pytest.raises(InputError, match="LEAST between 1 and N"):
        replace(PLAN, clip_min=13)


def test_a_held_out_region_is_a_split_of_its_own() -> None:
    box = (6.1, 49.5, 6.3, 49.7)  # columns 24 … 72, rows 72 … 120
    options = replace(PLAN, regions=(Region("anhui", box),))
    splits = by_split(plan_clips(GRID, "here", everywhere, options))
    assert set(splits) == {"train", "val", "test", "anhui"}
    inside = Window(72, 24, 48, 48)
    for name, windows in splits.items():
        if name != "anhui":
            assert min(distance(inside, w) for w in windows) >= 0
            assert min(distance(a, b) for a in windows for b in splits["anhui"]) >= 5
    assert {(w.row, w.col) for w in splits["anhui"]} == {
        (clip.window.row, clip.window.col)
        for clip in plan_clips(GRID, "here", everywhere, options)
        if clip.split == "anhui"
    }
    covered = sum(w.height * w.width for w in splits["anhui"])
    assert covered > 0.5 * 48 * 48
    whole = plan_clips(GRID, "taiwan", everywhere, replace(PLAN, regions=(Region("taiwan", None),)))
    assert {clip.split for clip in whole} == {"taiwan"}


def test_texts_become_values() -> None:
    assert parse_region("beijing=115.4,39.4,117.5,41.1") == Region("beijing", (115.4, 39.4, 117.5, 41.1))
    assert parse_region("taiwan") == Region("taiwan", None)
    assert parse_shares("8,1,1") == pytest.approx((0.8, 0.1, 0.1))
    for text, message in (
        ("a=1,2,3", "WEST,SOUTH,EAST,NORTH"),
        ("a=5,1,2,3", "is empty"),
        ("train=1,2,3,4", "cannot be called train"),
        ("../a=1,2,3,4", "letters, digits"),
    ):
        with pytest.raises(InputError, match=message):
            parse_region(text)
    for text in ("1,1", "a,b,c", "0,0,0", "-1,1,1", "nan,1,1"):
        with pytest.raises(InputError, match="three numbers"):
            parse_shares(text)
    for text in ("", ".hidden", "a/b", "a b", "x" * 70):
        with pytest.raises(InputError, match="the name"):
            parse_name(text)


def row(clip: str, at: tuple[int, int], side: int = 10, lattice: str = "a", west: float = 6.0) -> ClipRow:
    """A clip on a lattice of 15″ pixels whose corner is (west, 50)."""
    left, top = west + at[1] / 240, 50.0 - at[0] / 240
    right, bottom = left + side / 240, top - side / 240
    return ClipRow(
        clip, "here", "", clip.partition("/")[0], lattice, at[0], at[1], side, side, "0 0", left, bottom, right, top,
        "EPSG:4326", left, bottom, right, top, "ntl", "DN", 3, 0.4634, 1.0, 0.0, 1.0, 5.0,
    )  # fmt: skip


def test_leaks_are_refused_by_name() -> None:
    first = row("train/a", (0, 0))
    check_leaks([first, row("train/b", (0, 0)), row("test/c", (0, 13)), row("val/d", (13, 0))], "it")
    for at, message in (
        ((0, 12), "are 2 LR pixels apart"),
        ((9, 9), "overlap by 1 LR pixels"),
        ((10, 10), "are 0 "),
    ):
        with pytest.raises(InputError, match=message) as error:
            check_leaks([first, row("test/c", at)], "it")
        assert "train/a" in str(error.value) and "test/c" in str(error.value)


def test_leaks_are_seen_between_lattices_and_across_the_antimeridian() -> None:
    first = row("train/a", (0, 0))
    # 3 px of buffer are 1.39 km: 0.0125° of latitude, 0.0195° of longitude at 50° N
    check_leaks([first, row("test/b", (0, 0), lattice="b", west=6.0 + 10 / 240 + 0.0200)], "it")
    with pytest.raises(InputError, match="nearer than their buffer"):
        check_leaks([first, row("test/b", (0, 0), lattice="b", west=6.0 + 10 / 240 + 0.0185)], "it")
    east = row("train/a", (0, 0), west=180.0 - 10 / 240)
    with pytest.raises(InputError, match="nearer than their buffer"):
        check_leaks([east, row("test/b", (0, 0), lattice="b", west=-180.0)], "it")
    check_leaks([east, row("test/b", (0, 0), lattice="b", west=-179.9)], "it")


def test_a_pixel_has_its_size_in_km() -> None:
    assert pixel_km(GRID) == pytest.approx(0.4633, rel=2e-3)
    feet = Grid(CRS.from_epsg(2278), Affine(787.14, 0, 2.1e6, 0, -787.14, 1.36e7), 10, 10)
    assert pixel_km(feet) == pytest.approx(0.23992, rel=1e-4)


def test_a_tree_that_leaks_is_refused_when_opened_and_when_added_to(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    cut(tree, ntl_place(tmp_path))
    rows = read_index(tree)
    near = next(i for i, r in enumerate(rows) if r.split == "test")
    moved = [replace(r, split="train") if i == near + 1 else r for i, r in enumerate(rows)]
    write_index(tree, [replace(r, buffer=9) for r in moved])
    with pytest.raises(InputError, match="leak"):
        ClipTree.open(tree, "train")
    with pytest.raises(InputError, match="leak"):
        open_source(str(tree), "train", "wald", Degradation())
    write_index(tree, rows)
    # the same ground once more on another lattice, 6⅓ pixels away: other blocks, other splits
    other = tmp_path / "other"
    other.mkdir()
    before = sorted(p.name for p in tree.iterdir())
    with pytest.raises(InputError, match=r"the splits of .* with shifted leak"):
        cut(tree, ntl_place(other, west=6.0 + 19 / 720), "shifted")
    assert sorted(p.name for p in tree.iterdir()) == before and read_index(tree) == rows


def test_dates_of_a_place_share_their_splits(tmp_path: Path) -> None:
    """Though other blocks are good at each date, which changes how many there are to share out."""
    for seed in range(4):
        tree, rng = tmp_path / str(seed), np.random.default_rng(seed)
        options = ClipPlanOptions(clip=8, clip_min=8, block=12, buffer=4, seed=seed)
        for date in ("2019", "2020", "2021"):
            values = np.linspace(1, 40, 48 * 48, dtype=np.float32).reshape(48, 48)
            dark = np.kron(rng.random((4, 4)) < 0.3, np.ones((12, 12))) == 1
            values[dark] = np.nan
            path = write_raster(tmp_path / f"{seed}-{date}.tif", values, nodata=float("nan"))
            rules = replace(ANY, min_valid=0.9)
            cut(tree, PlaceOptions(SceneOptions(str(path))), date=date, plan=options, rules=rules)
        rows = read_index(tree)
        splits: dict[str, set[str]] = {}
        for r in rows:
            splits.setdefault(r.block, set()).add(r.split)
        assert all(len(names) == 1 for names in splits.values())
        assert len({r.date for r in rows}) == 3 and len(splits) > 12
        assert len(ClipTree.open(tree, "all")) == len(rows)


def test_places_can_be_left_out_over_several_trees(tmp_path: Path) -> None:
    trees = []
    for place, west in (("a", 6.0), ("b", 20.0), ("c", 40.0)):
        folder = tmp_path / place
        folder.mkdir()
        cut(folder / "tree", ntl_place(folder, west=west), place)
        trees.append(str(folder / "tree"))
    data = ",".join(trees)
    everything = open_source(data, "all", "wald", Degradation(psf_fwhm_lr=0.0))
    counts = {
        split: Counter(row.place for row in ClipTree.open(trees, split, ["b"]).rows)
        for split in ("train", "val", "test")
    }
    assert (
        counts["test"] == {"b": 12}
        and set(counts["train"]) == {"a", "c"}
        and set(counts["val"]) == {"a", "c"}
    )
    assert len(everything) == 36
    held = open_source(data, "test", "wald", Degradation(), hold_out_place=["b"])
    assert len(held) == 12 and all(str(tmp_path / "b") in held.name(i) for i in range(len(held)))
    with pytest.raises(InputError, match="no place d to hold out; its places are a, b, c"):
        open_source(data, "train", "wald", Degradation(), hold_out_place=["d"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"west": float("nan")}, "west is 'nan' and must be a number"),
        ({"top": float("inf")}, "top is 'inf' and must be a number"),
        ({"row": 10**400}, "row is '1000"),
        ({"buffer": -99}, "must not be negative"),
    ],
)
def test_an_index_that_would_hide_a_leak_is_refused(
    change: dict[str, float], words: str, tmp_path: Path
) -> None:
    rows = [row("train/a", (0, 0)), row("test/b", (0, 0), lattice="b")]
    with pytest.raises(InputError, match="leak"):
        check_leaks(rows, "it")
    write_index(tmp_path, [rows[0], replace(rows[1], **change)])  # type: ignore[arg-type]
    with pytest.raises(InputError, match=words) as error:
        read_index(tmp_path)
    assert len(str(error.value)) < 300 and "line 2" in str(error.value)
    with pytest.raises(InputError, match="leak"):
        check_leaks([rows[0], replace(rows[1], west=float("nan"))], "it")
