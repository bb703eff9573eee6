"""Units of lights as products, papers and people spell them; those of other quantities are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from deeplight.engine.core.errors import InputError
from deeplight.engine.raster.scene import Scene, SceneOptions
from deeplight.engine.raster.units import canonical, radiance_factor
from tests.field.lights import lights, put

NANOWATTS = [
    "nW cm−2 sr−1", "nW cm^{-2} sr^{-1}", "nW⋅cm^-2⋅sr^-1", "nW cm⁻² sr⁻¹", "1e-9 W/cm2/sr", "10^-9 W/cm2/sr",
    "10⁻⁹ W cm⁻² sr⁻¹", "10**-9 W/cm2/sr", "1 nW/cm2/sr", "nW/sq.cm/sr", "nW/sq. cm/sr", "nW/cm2-sr", "nW/(cm**2*sr)",
    "nanowatts per square centimeter per steradian", "Nanowatts per square centimetre per steradian",
    "nanowatts / cm squared / sr", "nanoWatts/centimeter^2/steradian",
]  # fmt: skip
OTHERS = ["K", "Kelvin", "degC", "°C", "%", "percent", "cd/m2", "mcd/m²", "cd m−2", "lux", "mag/arcsec²"]


@pytest.mark.parametrize("text", NANOWATTS)
def test_spellings_of_nanowatts(text: str, tmp_path: Path) -> None:
    """In the file, and from the user."""
    assert radiance_factor(text) == 1.0 and canonical(text) == "nW/cm²/sr"
    path = put(tmp_path, lights(), units=[text])
    for options in (SceneOptions(path), SceneOptions(path, ntl_unit=text)):
        with Scene.open(options) as scene:
            assert scene.unit == "nW/cm²/sr"


@pytest.mark.parametrize(
    ("text", "factor"),
    [
        ("Watts per square meter per steradian", "100000"), ("1e-6 W/cm2/sr", "1000"), ("0.1 nW/cm2/sr", "0.1"),
        ("10^-3 W m^{-2} sr^{-1}", "100"),
    ],
)  # fmt: skip
def test_other_powers_are_refused_with_their_factor(text: str, factor: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"is in .* is needed; pass `ntl_scale={factor}`$"):
        Scene.open(SceneOptions(put(tmp_path, lights(), units=[text])))


@pytest.mark.parametrize("text", OTHERS)
def test_units_of_other_quantities_are_refused(text: str, tmp_path: Path) -> None:
    path = put(tmp_path, lights(), units=[text])
    with pytest.raises(InputError, match=r"is in .*, the unit of .*pass `ntl_unit=\"nW/cm²/sr\"`$"):
        Scene.open(SceneOptions(path))
    with pytest.raises(InputError, match=r"correct `ntl_unit`"):
        Scene.open(SceneOptions(path, ntl_unit=text))
    with Scene.open(SceneOptions(path, ntl_unit="nW/cm²/sr")) as scene:
        assert scene.unit == "nW/cm²/sr"


@pytest.mark.parametrize("text", ["W m-2 sr-1 um-1", "nanowatts", "kW", "1e-9", "per sr", "arbitrary"])
def test_what_is_no_radiance_of_a_whole_band(text: str) -> None:
    assert radiance_factor(text) is None
