# %% [markdown]
# # A first map
#
# Nighttime lights, daytime bands and elevation of one place become a map of lights that is 8× finer along each axis.
# The rasters here are synthetic, so that nothing is downloaded; replace their paths by those of your own rasters.
#
# This file runs as a script, or cell by cell in editors that know `# %%`; Jupyter opens it with jupytext.

# %%
import subprocess
import sys

import deeplight as dl

synth = [sys.executable, "-m", "deeplight.train.data_cli", "synth", "--out", "first-map"]
subprocess.run([*synth, "--lr-size", "64", "--seed", "7", "--overwrite"], check=True)

# %% [markdown]
# ## The scene
#
# Each layer may have its own grid, coordinate system and units. Input that cannot be right is refused with one sentence
# that says what to do. `dmo` and `dem` may be left out. `psf` is the blur of the lights in pixels. It is 1.2 for the
# synthetic sensor; for files of VIIRS or DMSP it is known and need not be given.

# %%
scene = dl.open_scene("first-map/ntl.tif", dmo="first-map/dmo.tif", dem="first-map/dem.tif", psf=1.2)
print(scene)

# %% [markdown]
# ## A look at one part
#
# A model is called with a scene, or with a part of it in pixels of the nighttime lights, and returns arrays.
# In a notebook, the result as the last line of a cell is a picture.

# %%
model = dl.load_model("deeplight-tiny")
town = model(scene[8:40, 16:48])
print(town)
print(f"brightest pixel: {town.radiance.max():.1f} {town.unit}; imperviousness up to {town.isp.max():.0%}")
town.show()

# %% [markdown]
# ## The whole map
#
# `refine` works in tiles, so that a country needs no more memory than a town. After an interruption, the same call with
# `resume=True` continues.

# %%
run = dl.refine(
    scene, model, out="first-map/lights.tif", quicklook="first-map/lights.png", overwrite=True, progress=True
)
print(run)
print(f"sum of lights: {run.report['lights']}")
