from __future__ import annotations

import pytest

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.spec import DMO_SLOTS
from deeplight.engine.raster.bands import assign_bands, parse_bands, parse_scale


def test_parse_scale() -> None:
    assert parse_scale("0.1") == (0.1, 0.0)
    assert parse_scale("0.0000275,-0.2") == (0.0000275, -0.2)
    for text in ("", "a", "0", "1,2,3", "nan", "1,inf", "1;2"):
        with pytest.raises(InputError, match=r"is not F or F,OFFSET"):
            parse_scale(text)


def test_parse_bands() -> None:
    assert parse_bands("nir=4, blue = 1") == {"nir": 4, "blue": 1}
    for text in ("", "nir", "nir=", "nir=0", "nir=x", "nir=1.5", "nir=-1", "infrared=1", "nir=²"):
        with pytest.raises(InputError, match="is not SLOT=NUMBER; slots are coastal"):
            parse_bands(text)
    for text in ("nir=1,nir=2", "nir=1,red=1"):
        with pytest.raises(InputError, match="repeats"):
            parse_bands(text)


SENTINEL = "B1 B2 B3 B4 B5 B6 B7 B8 B8A B9 B11 B12"


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        ("coastal blue green red nir swir1 swir2", [1, 2, 3, 4, 5, 6, 7]),
        ("NIR Red foo Blue", [0, 4, 0, 2, 1, 0, 0]),
        ("coastal blue green red nir08 swir16 swir22", [1, 2, 3, 4, 5, 6, 7]),
        ("blue nir nir08", [0, 1, 0, 0, 2, 0, 0]),
        ("SR_B1 SR_B2 SR_B3 SR_B4 SR_B5 SR_B6 SR_B7", [1, 2, 3, 4, 5, 6, 7]),
        ("LC09_SR_B7 LC09_SR_B6 LC09_SR_B4", [0, 0, 0, 3, 0, 2, 1]),
        ("SR_B1 SR_B2 SR_B3 SR_B4 SR_B5 SR_B7", [0, 1, 2, 3, 4, 5, 6]),
        ("TM_B1 TM_B2 TM_B3 TM_B4 TM_B5 TM_B6 TM_B7", [0, 1, 2, 3, 4, 5, 7]),
        ("B02 B03 B04 B08", [0, 1, 2, 3, 4, 0, 0]),
        ("B02 B03 B04 B08 B11 B12 B01", [7, 1, 2, 3, 4, 5, 6]),
        (SENTINEL, [1, 2, 3, 4, 8, 11, 12]),
        ("B01 B02 B03 B04 B05 B06 B07 B09", [1, 2, 3, 4, 5, 6, 7]),
        ("B1 B2 B3 B4 B5 B6 B7 B8 B9 B10 B11", [1, 2, 3, 4, 5, 6, 7]),
        ("sur_refl_b01 sur_refl_b02 sur_refl_b03 sur_refl_b04", [0, 3, 4, 1, 2, 0, 0]),
    ],
)
def test_bands_by_the_file_s_names(names: str, numbers: list[int]) -> None:
    labels = names.split()
    found = assign_bands("DMO", labels, range(1, len(labels) + 1), None)
    assert [found.get(slot, 0) for slot in DMO_SLOTS] == numbers
    assert list(found) == [slot for slot in DMO_SLOTS if slot in found]


@pytest.mark.parametrize("names", [[""] * 7, [f"Band {k}" for k in range(1, 8)]])
def test_seven_bands_without_names_are_taken_in_slot_order_and_logged(
    names: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert assign_bands("DMO x.tif", names, range(1, 8), None) == {s: k + 1 for k, s in enumerate(DMO_SLOTS)}
    assert "x.tif: seven bands without names, taken as coastal, blue" in caplog.text


@pytest.mark.parametrize(
    "names",
    [
        [""],
        [""] * 3,
        [""] * 8,
        ["ndvi"] * 7,
        ["B5", "B6"],
        ["B2", "B3", "B4", "B5", "B6", "B7", "B8"],
        ["red", "red"],
    ],
)
def test_bands_that_stay_unknown_are_refused(names: list[str]) -> None:
    with pytest.raises(InputError, match=r"--dmo-bands (blue|red)=1"):
        assign_bands("DMO", names, range(1, len(names) + 1), None)


def test_given_bands_win_and_must_exist() -> None:
    assert assign_bands("DMO", ["blue", "red"], [1, 2], {"swir1": 2}) == {"swir1": 2}
    with pytest.raises(InputError, match="no data band 3 for red; its bands are 1, 2"):
        assign_bands("DMO", ["blue", "red"], [1, 2], {"red": 3})
