"""Products of nighttime lights: how they are recognised, and what is known of the sensor behind each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from deeplight.engine.raster.units import DN_UNIT, RADIANCE_UNIT

Pair = tuple[float, float]

_METRES_OF_ARC = 30.888
"""Of a second of latitude. Products lie on 15″ and 30″; exports in metres keep about that, as Google's 463.83 m."""
_SAME_PIXEL = 0.01

IN_NANOWATTS = re.compile(r"vnp46|vj[12]46|dnb_brdf|snow_free|vcms?l?cfg|rade9|avg_rad|vnl_(?:v\d|npp|j01)")
"""Names of products in nW/cm²/sr: Black Marble's files and layers, EOG's composites, Google's bands of them."""
_DAILY = re.compile(r"v(?:np|j1|j2)46a[12](?!\d)|dnb_brdf")
_DMSP = re.compile(
    r"dmsp|(?<![a-z0-9])f1[0-8]_?(?:19|20)\d\d|stable_lights|avg_vis|avg_lights_x_pct|harmonized_dn|simviirs"
)
_CALIBRATED = re.compile(r"(?<![a-z0-9])f1\d.*rad_v\d")


@dataclass(frozen=True)
class Product:
    """fwhm_m: FWHM in metres on the ground of the blur before pixels are averaged. unit: that noise and ceiling are in.
    noise: standard deviation; None: not known. saturates: whether values end at a ceiling that lights reach."""

    name: str
    fwhm_m: float
    unit: str = RADIANCE_UNIT
    noise: float | None = None
    saturates: bool = False

    def limits(self, unit: str, ceiling: float) -> Pair:
        """(saturation level, noise) of lights in `unit`, as spec.INPUTS takes them: negative where there is none."""
        if unit != self.unit:
            return NO_LIMITS
        return (ceiling if self.saturates else -1.0), (-1.0 if self.noise is None else self.noise)


NO_LIMITS: Pair = (-1.0, -1.0)

PRODUCTS: Mapping[str, Product] = MappingProxyType(
    {
        # The day/night band's footprint is 742 m all across the swath (Elvidge et al. 2013). Assumed: the blur of a
        # composite is as wide as one footprint.
        "viirs": Product("VIIRS", 742.0),
        # The same sensor in one night: it finds a change of 0.45 nW/cm²/sr (Román et al. 2018, a light in Puerto Rico).
        "daily": Product("Black Marble of one night", 742.0, noise=0.45),
        # Composites are made of OLS' smooth data, in pixels of 2.7 km. The blur is a Gaussian (Abrahams et al. 2018),
        # the footprint 5 km (Elvidge et al. 2013), blooming reaches 3.5 km (Cao et al. 2019). Assumed: the least of
        # these, since too wide a blur makes detail that is not there. Noise: of whole numbers, 1/√12.
        "dmsp": Product("DMSP-OLS", 2700.0, DN_UNIT, noise=0.29, saturates=True),
        # The same without saturation, in a unit of its own.
        "calibrated": Product("radiance-calibrated DMSP-OLS", 2700.0),
    }
)
"""What is known, and from where; docs/inputs.md has the references."""


def product_of(name: str, unit: str, row_m: float) -> Product | None:
    """The product that lights are of: from their name (lower case), else from their unit ("": not known, which is taken
    as radiance) and the metres from row to row, which are a product's own; None where neither says it."""
    for pattern, key in (
        (_CALIBRATED, "calibrated"),
        (_DMSP, "dmsp"),
        (_DAILY, "daily"),
        (IN_NANOWATTS, "viirs"),
    ):
        if pattern.search(name):
            return PRODUCTS[key]
    for arc, units, key in ((30.0, (DN_UNIT,), "dmsp"), (15.0, (RADIANCE_UNIT, ""), "viirs")):
        if unit in units and abs(row_m / (arc * _METRES_OF_ARC) - 1.0) < _SAME_PIXEL:
            return PRODUCTS[key]
    return None
