from __future__ import annotations

import re

import pytest

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.spec import DMO_SLOTS
from deeplight.engine.core.wording import in_flags
from deeplight.engine.raster import sensors
from deeplight.engine.raster.bands import (
    FactorOnly,
    assign_bands,
    band_files,
    parse_band_file,
    parse_bands,
    parse_scale,
)
from deeplight.engine.raster.wavelengths import band_wavelength


def test_parse_scale() -> None:
    assert parse_scale("0.1") == (0.1, 0.0)
    assert parse_scale("0.0000275,-0.2") == (0.0000275, -0.2)
    assert isinstance(parse_scale("0.0001"), FactorOnly) and not isinstance(
        parse_scale("0.0001,0"), FactorOnly
    )
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


def test_parse_band_file() -> None:
    pairs = [parse_band_file(text) for text in ("nir=a=b.tif", "blue=B2.tif")]
    assert list((band_files(pairs) or {}).items()) == [("blue", "B2.tif"), ("nir", "a=b.tif")]
    assert band_files([]) is None
    for text in ("", "B2.tif", "blue=", "pink=B2.tif"):
        with pytest.raises(InputError, match="is not SLOT=FILE; slots are coastal"):
            parse_band_file(text)
    with pytest.raises(InputError, match="gives nir twice"):
        band_files([("nir", "a"), ("nir", "b")])


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


GEE_LANDSAT_8 = "SR_B1 SR_B2 SR_B3 SR_B4 SR_B5 SR_B6 SR_B7 ST_B10 QA_PIXEL"
L8 = "LC08_L2SP_196025_20240806_20240814_02_T1.tif"
L5 = "LT52240631988227CUB02.tif"
S2 = "T31UFQ_20240824T104031.tif"


@pytest.mark.parametrize(
    ("file", "names", "numbers"),
    [
        ("", GEE_LANDSAT_8, [1, 2, 3, 4, 5, 6, 7]),
        ("", "SR_B3 SR_B4 SR_B5 ST_B10", [0, 0, 1, 2, 3, 0, 0]),
        ("", "SR_B3 SR_B4 SR_B5 ST_B6", [0, 0, 0, 1, 2, 3, 0]),
        ("", "TM_B1 TM_B6", [0, 1, 0, 0, 0, 0, 0]),
        ("", "B02 B03 B04 B8A B11 B12", [0, 1, 2, 3, 4, 5, 6]),
        ("", "B2 B3 B4 B8", [0, 1, 2, 3, 4, 0, 0]),
        ("", "B01 B02 B03 B04 B05 B06 B07 B09 B10 B11", [1, 2, 3, 4, 5, 6, 7]),
        ("", "B1 B2 B3 B4 B5 B7", [0, 1, 2, 3, 4, 5, 6]),
        (L8, "B2 B3 B4 B5", [0, 1, 2, 3, 4, 0, 0]),
        (L5, "B1 B2 B3 B4 B5 B6 B7", [0, 1, 2, 3, 4, 5, 7]),
        (S2, "B02 B03 B04", [0, 1, 2, 3, 0, 0, 0]),
        ("HLS.L30.T31UFQ.2024237T104031.v2.0.tif", "B02 B03 B04 B05 B06 B07", [0, 1, 2, 3, 4, 5, 6]),
        ("MOD09GA.A2024237.h18v04.061.tif", "b01 b02 b03 b04", [0, 3, 4, 1, 2, 0, 0]),
        ("LC09_L2SP_196025_20240806_20240814_02_T1_SR_B4.TIF", "-", [0, 0, 0, 1, 0, 0, 0]),
        ("S2B_MSIL2A_20240824T104031.tif", "B4 B3 B2", [0, 3, 2, 1, 0, 0, 0]),
        ("T31UFQ_20240824T104031_B8A_20m.jp2", "-", [0, 0, 0, 0, 1, 0, 0]),
    ],
)
def test_bands_of_a_sensor_that_a_name_tells(file: str, names: str, numbers: list[int]) -> None:
    labels = [name.strip("-") for name in names.split()]
    found = assign_bands("DMO", labels, range(1, len(labels) + 1), None, file)
    assert [found.get(slot, 0) for slot in DMO_SLOTS] == numbers


def test_wavelengths_tell_bands_where_names_do_not() -> None:
    centres = [0.4825, 0.5625, 0.655, 0.865, 1.61, 2.2, 10.9, None]
    found = assign_bands("DMO", ["B5"] * 8, range(1, 9), None, "", centres)
    assert list(found.values()) == [1, 2, 3, 4, 5, 6] and "coastal" not in found
    with pytest.raises(InputError, match="does not say what its 2 bands are"):
        assign_bands("DMO", ["", ""], [1, 2], None, "", [0.842, 0.865])


@pytest.mark.parametrize(
    ("description", "metadata", "centre"),
    [
        ("B4, central wavelength 665 nm", {}, 0.665),
        ("Band 7 (2.2 Micrometers)", {}, 2.2),
        ("", {"wavelength": "1610.5"}, 1.6105),
        ("", {"CENTRAL_WAVELENGTH_UM": "0.865"}, 0.865),
        ("B8A", {"STATISTICS_MEAN": "700"}, None),
        ("", {"wavelength": "red"}, None),
    ],
)
def test_where_metadata_say_the_wavelength(
    description: str, metadata: dict[str, str], centre: float | None
) -> None:
    assert band_wavelength(description, metadata) == centre


ALL_SEVEN = "--dmo-bands coastal=1,blue=2,green=3,red=4,nir=5,swir1=6,swir2=7 for Landsat 8/9"
WITHOUT_THERMAL = "--dmo-bands blue=1,green=2,red=3,nir=4,swir1=5,swir2=7 for Landsat 4–7"
FOUR = "--dmo-bands coastal=1,blue=2,green=3,red=4 for Sentinel-2"
AS_MODIS = "--dmo-bands blue=3,green=4,red=1,nir=2,swir1=6,swir2=7 for MODIS"


@pytest.mark.parametrize(
    ("names", "file", "lines"),
    [
        ([f"B{k}" for k in range(1, 8)], "", [ALL_SEVEN, WITHOUT_THERMAL, FOUR, AS_MODIS]),
        ([f"B{k}" for k in range(1, 8)], L5.replace("LT5", "XX5"), [ALL_SEVEN, WITHOUT_THERMAL]),
        ([""] * 7, "", [ALL_SEVEN, WITHOUT_THERMAL, AS_MODIS]),
        ([f"Band {k}" for k in range(1, 8)], "", [ALL_SEVEN, WITHOUT_THERMAL, AS_MODIS]),
        ([f"b{k}" for k in range(1, 13)], "", ["nir=8,swir1=11,swir2=12 for Sentinel-2"]),
        ([""] * 13, "", ["nir=8,swir1=12,swir2=13 for Sentinel-2"]),
        ([""] * 7, L5, [WITHOUT_THERMAL]),
        (["SR_B2", "SR_B3", "SR_B4"], "", ["blue=1,green=2,red=3 for Landsat 8/9", "nir=3 for Landsat 4–7"]),
        (
            ["B2", "B3", "B4"],
            "",
            ["blue=1,green=2,red=3 for Landsat 8/9 and Sentinel-2", "nir=3 for Landsat"],
        ),
        (["B2", "B3", "B4", "B11"], "", ["red=3 for Landsat 8/9", "swir1=4 for Sentinel-2"]),
        (["B5", "B6"], "", ["nir=1,swir1=2 for Landsat 8/9", "swir1=1 for Landsat 4–7"]),
        (["B2", "B3", "B4", "B5", "B6", "B7", "B8"], "", ["nir=7 for Sentinel-2"]),
        (
            [""],
            "B3.tif",
            ["green=1 for Landsat 8/9 and Sentinel-2", "red=1 for Landsat 4–7", "blue=1 for MODIS"],
        ),
        ([""], "", []),
        ([""] * 3, "", []),
        ([""] * 8, "", [ALL_SEVEN]),
        (["ndvi"] * 7, "", []),
        (["B12"] * 2, "", []),
        (["B2", "SR_B3"], "", []),
        (["B8A", "B12"], L8, []),
    ],
)
def test_bands_that_stay_unknown_are_asked_about(names: list[str], file: str, lines: list[str]) -> None:
    numbers = range(1, len(names) + 1)
    with pytest.raises(InputError, match=r"does not say what its (\d+ bands are|band is) \(") as error:
        assign_bands("DMO", names, numbers, None, file)
    message = str(error.value)
    told = in_flags(message, {"dmo_bands": "--dmo-bands"})
    for line in lines or ["for example --dmo-bands blue=1,green=2,red=3,nir=4"]:
        assert line in told
    for text in re.findall(r"--dmo-bands (\S+) for", told):
        assert assign_bands("DMO", names, numbers, parse_bands(text), file)


def test_a_name_that_stands_twice_is_asked_about() -> None:
    with pytest.raises(InputError, match=r'2 bands named red \(1, 2\).*`dmo_bands={"red": 1}`'):
        assign_bands("DMO", ["red", "red"], [1, 2], None)


@pytest.mark.parametrize(
    ("names", "number"),
    [("TM_B5 TM_B6", 2), ("SR_B6 ST_B10", 2), ("swir1 thermal_infrared", 2), ("B1 B2 B3 B4 B5 B6", 6)],
)
def test_a_thermal_band_is_no_reflectance_whoever_says_so(names: str, number: int) -> None:
    labels = names.split()
    file = L5 if "B1" in labels else ""
    with pytest.raises(InputError, match=f"band {number} .*given for swir1, is thermal"):
        assign_bands("DMO", labels, range(1, len(labels) + 1), {"swir1": number}, file)
    assert assign_bands("DMO", labels, range(1, len(labels) + 1), {"swir1": number - 1}, file)


def test_given_bands_win_and_must_exist() -> None:
    assert assign_bands("DMO", ["blue", "red"], [1, 2], {"swir1": 2}) == {"swir1": 2}
    with pytest.raises(InputError, match="no data band 3 for red; its bands are 1, 2"):
        assign_bands("DMO", ["blue", "red"], [1, 2], {"red": 3})


@pytest.mark.parametrize("name", ["B6_VCID_1", "TIRS_B10", "brightness_temperature", "LST_Day_1km", "lst"])
def test_thermal_bands_are_known_by_their_other_names(name: str) -> None:
    assert sensors._THERMAL.search(name.lower())
    assert not any(sensors._THERMAL.search(n) for n in ("sr_b4", "blue", "nir08", "b10", "coastal_aerosol"))
