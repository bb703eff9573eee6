"""What a folder of dates refuses before anything is computed, and what it takes for its own."""

from __future__ import annotations

import re
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deeplight.engine.core.errors import InputError
from deeplight.engine.output.parts import Mode
from deeplight.engine.stack.run import infer_dates
from tests.engine.stack.months import NODATA, Months, name
from tests.scenes import write_raster


@pytest.fixture(scope="module")
def months(tmp_path_factory: pytest.TempPathFactory) -> Months:
    return Months.write(tmp_path_factory.mktemp("months"), 3)


def refused(months: Months, out: Path, *ntl: object, dates: str = "", mode: Mode = Mode.NEW) -> str:
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} if out.is_dir() else {}
    with pytest.raises(InputError) as error:
        months.run(out, *ntl, dates=dates, mode=mode)
    assert "\n" not in str(error.value)
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} if out.is_dir() else {}
    assert before == after, "nothing is made, changed or removed"
    return str(error.value)


def test_dates_in_different_units(months: Months, tmp_path: Path) -> None:
    other = write_raster(tmp_path / "dn-2022.tif", months.lights[0], nodata=NODATA, units=["DN"])
    first = months.folder / "ntl-2020-01.tif"
    message = refused(months, tmp_path / "out", first, other)
    assert f"the lights of 2020-01 ({first}) are in nW/cm²/sr and those of 2022 ({other}) in DN" in message


def test_bands_without_dates(months: Months, tmp_path: Path) -> None:
    three = write_raster(tmp_path / "three.tif", np.repeat(months.lights[:1], 3, 0), nodata=NODATA)
    message = refused(months, tmp_path / "out", three)
    assert "three.tif has 3 bands of lights and does not say a date of its own for each: say them" in message
    message = refused(months, tmp_path / "out", three, dates="2019,2020")
    assert "three.tif has 3 bands of lights and 2 dates are given: give `dates` one for each band" in message


def test_a_file_where_the_folder_should_be(months: Months, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "file is a file, and the maps of 3 dates go into a folder" in refused(months, tmp_path / "file")
    assert refused(months, tmp_path / "file" / "x").endswith(
        "cannot be made: " + str(tmp_path / "file is a file")
    )
    assert "gone is not there; create it first" in refused(months, tmp_path / "gone" / "x")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("file", ["run.json", "lights.vrt"])
def test_files_of_others_are_not_taken_over(months: Months, tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_text('{"mine": 1}')
    assert f"{file} exists: use `overwrite=True`" in refused(months, tmp_path, mode=Mode.RESUME)


def test_a_map_that_is_no_raster_is_found_before_the_first_date(months: Months, tmp_path: Path) -> None:
    (tmp_path / f"{name(2)}.tif").write_text("mine")
    message = refused(months, tmp_path, mode=Mode.RESUME)
    assert "2020-02.tif is there and is no raster that can be read: move it away" in message


def test_a_map_with_more_layers_is_of_another_run(months: Months, tmp_path: Path) -> None:
    months.run(tmp_path / "out")
    fewer = months.request(tmp_path / "out", mode=Mode.RESUME)
    scene = replace(fewer.run.scene, dem=None)
    with pytest.raises(
        InputError, match=r"of another run \(DEEPLIGHT_INPUT_DEM is .* there and absent here\)"
    ):
        infer_dates(replace(fewer, run=replace(fewer.run, scene=scene)))


def test_a_later_date_of_another_run_is_found_before_the_first(months: Months, tmp_path: Path) -> None:
    """Its finished map, and packs of it that a stopped run left."""
    files = [months.folder / f"ntl-{name(m)}.tif" for m in (1, 2)]
    months.single(tmp_path / f"{name(2)}.tif", files[1], conserve_radiance=True)
    message = refused(months, tmp_path, *files, mode=Mode.RESUME)
    assert message.startswith(f"{name(2)}: ") and "is complete but of another run" in message

    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deeplight.engine.run.pipeline.Run.assemble", interrupted)
        with pytest.raises(KeyboardInterrupt):
            months.run(out, files[1])
    (out / "run.json").unlink()
    other = months.request(out, *files, mode=Mode.RESUME)
    before = set(out.rglob("*"))
    with pytest.raises(
        InputError, match=f"{name(2)}: .*cannot be resumed: the option dtype was float32 and is now uint16"
    ):
        infer_dates(replace(other, run=replace(other.run, dtype="uint16")))
    assert set(out.rglob("*")) == before


def interrupted(_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("out", ["out", "x.zarr"])
def test_the_space_of_all_dates(
    months: Months, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    """Enough for each date, and not for both together."""
    files = [months.folder / f"ntl-{name(m)}.tif" for m in (1, 2)]
    if out.endswith(".zarr"):
        pytest.importorskip("zarr", reason="zarr is not installed")
    usage, free = namedtuple("usage", "total used free"), [0.0]
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(0, 0, int(free[0])))
    message = refused(months, tmp_path / out, files[0])
    needed = re.search(r"needs about ([\d.]+) MB for 1 date and 0\.0 MB are free", message)
    assert needed is not None
    free[0] = 1.2e6 * float(needed[1])
    assert f"{out} needs about" in refused(months, tmp_path / out, *files) and not any(tmp_path.iterdir())
    months.run(tmp_path / out, files[0])
