# %% [markdown]
# # Lights over time, by region
#
# How much light each region gives off, at several dates: refine each date, then add up the pixels of each region.
# Regions are polygons here, GeoJSON geometries as any vector file gives them. A raster of region numbers does as well.

# %%
import subprocess
import sys

import numpy as np
import rasterio
from rasterio.features import rasterize

import deeplight as dl

synth = [sys.executable, "-m", "deeplight.train.data_cli", "synth", "--out", "totals"]
subprocess.run([*synth, "--lr-size", "64", "--seed", "7", "--overwrite"], check=True)

# %% [markdown]
# ## Three dates
#
# One synthetic place whose west grows brighter. They are arrays, to show how those are given: a `Layer` says where
# an array lies. With files of your own, `dates` would be {"2019": "viirs-2019.tif", …}.

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
# A polygon for the west and one for the east, in the coordinates of the lights.

# %%
west, south, east, north = grid.bounds_xy
middle = (west + east) / 2


def box(left, right):
    """A polygon from south to north."""
    corners = [(left, south), (right, south), (right, north), (left, north), (left, south)]
    return {"type": "Polygon", "coordinates": [corners]}


regions = {1: ("west", box(west, middle)), 2: ("east", box(middle, east))}


# %% [markdown]
# ## Totals
#
# Block by block, so that a country needs little memory. A fine pixel is 1/64 of a coarse one: sums over 64 are those of
# the coarse pixels, and dates can be compared with other sums of lights.


# %%
def totals(path):
    """Sum of lights by region number, in units of coarse pixels."""
    sums = np.zeros(max(regions) + 1)
    shapes = [(shape, number) for number, (_, shape) in regions.items()]
    with rasterio.open(path) as file:
        for _, window in file.block_windows(1):
            lights = file.read(1, window=window)
            labels = rasterize(shapes, lights.shape, transform=file.window_transform(window), dtype="uint8")
            lit = np.isfinite(lights)
            sums += np.bincount(labels[lit], weights=lights[lit], minlength=len(sums))
    return sums / 64


table = {year: totals(path) for year, path in maps.items()}
print("year " + "".join(f"{name:>12}" for name, _ in regions.values()))
for year, sums in table.items():
    print(f"{year} " + "".join(f"{sums[number]:12.1f}" for number in regions))
