# %% [markdown]
# # Lights over time, by region
#
# This example finds out how much light each region emits at several dates. It refines each date, then makes a table of
# the maps by region. It needs `pip install 'deeplight[zonal]'`.

# %%
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import rasterio

import deeplight as dl

synth = [sys.executable, "-m", "deeplight.train.data_cli", "synth", "--out", "totals"]
subprocess.run([*synth, "--lr-size", "64", "--seed", "7", "--overwrite"], check=True)

# %% [markdown]
# ## Three dates
#
# The west of a synthetic place grows brighter. The lights are arrays here, to show how these are given: a `Layer` says
# where an array lies. With files of your own, `dates` would be {"2019": "viirs-2019.tif", …}.

# %%
with rasterio.open("totals/ntl.tif") as file:
    values, nodata = file.read(1), file.nodata
    grid = dl.Grid(file.crs, file.transform, file.height, file.width)

growth = np.where(np.arange(grid.width) < grid.width // 2, 0.2, 0.0)
dates = {}
for year in (2019, 2020, 2021):
    brighter = np.where(values == nodata, nodata, values * (1 + growth * (year - 2019)))
    dates[year] = dl.Layer(brighter.astype("float32"), grid, nodata=nodata, unit="nW/cm²/sr")

# %% [markdown]
# ## A map of each date
#
# `conserve_radiance` makes the fine lights agree with the coarse ones, so that totals stay those of the sensor.

# %%
model = dl.load_model("deeplight-tiny")
maps = {}
for year, lights in dates.items():
    with dl.open_scene(lights, dmo="totals/dmo.tif", dem="totals/dem.tif") as scene:
        out = f"totals/lights-{year}.tif"
        maps[year] = dl.refine(scene, model, out=out, conserve_radiance=True, overwrite=True).path

# %% [markdown]
# ## Regions
#
# There is a polygon for the west and one for the east. Your own file may be any vector file, in any CRS.

# %%
west, south, east, north = grid.bounds_xy
middle = (west + east) / 2


def region(name, left, right):
    """A polygon from south to north."""
    corners = [(left, south), (right, south), (right, north), (left, north), (left, south)]
    shape = {"type": "Polygon", "coordinates": [corners]}
    return {"type": "Feature", "properties": {"name": name}, "geometry": shape}


regions = [region("west", west, middle), region("east", middle, east)]
Path("totals/regions.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": regions}))

# %% [markdown]
# ## The table
#
# The table has a row for each region and date. Sums over fine pixels are 64 times those over coarse ones, because a
# fine pixel is 1/64 of a coarse one; the sum of radiance times km² does not depend on the size of pixels. docs/zonal.md
# explains each column.

# %%
table = dl.zonal(maps, "totals/regions.geojson", by="name")
print(
    table[["region", "date", "share_with_data", "sum_nW_cm2_sr_km2", "lit_area_km2"]].to_string(index=False)
)

# %%
light = table.pivot(index="date", columns="region", values="sum_nW_cm2_sr_pixels") / 64
light.index = light.index.year
print(light.round(1))
