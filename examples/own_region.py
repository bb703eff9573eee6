# %% [markdown]
# # A model of your own region
#
# From rasters to clips, from clips to a model, from the model to a map. Training needs PyTorch:
# `pip install torch --index-url https://download.pytorch.org/whl/cpu`, then `pip install '.[train]'`.
#
# The rasters here are synthetic, with the finer lights that a better sensor would see (`ntl_hr.tif`). Where you have
# none, leave `--ntl-hr` out and add `--protocol wald` to the training: it learns from lights made coarser.

# %%
import subprocess
import sys

import deeplight as dl

STEPS = "30"  # far too few for a good model: docs/training.md says what is usual


def command(module, *arguments):
    """One of DeepLight's command lines; in a terminal deeplight-data and deeplight-train."""
    subprocess.run([sys.executable, "-m", f"deeplight.train.{module}", *arguments], check=True)


command("data_cli", "synth", "--out", "region", "--lr-size", "128", "--seed", "3", "--overwrite")

# %% [markdown]
# ## Clips
#
# Every layer is brought onto one grid, and the place is cut into blocks for training and for validation that do not
# touch each other.

# %%
layers = {"ntl": "ntl", "ntl-hr": "ntl_hr", "dmo": "dmo", "dem": "dem", "isp": "isp"}
files = [text for option, name in layers.items() for text in (f"--{option}", f"region/{name}.tif")]
blocks = ["--clip", "32,24", "--block", "32", "--buffer", "4", "--shares", "0.7,0.3,0"]
command("data_cli", "clip", "--out", "region/clips", "--place", "here", *files, *blocks, "--overwrite")

# %% [markdown]
# ## Training
#
# A small network and a few steps, so that this takes a minute. Leave out `--set` and `--steps` for a real one, or go
# on from the built-in weights with `--start deeplight-tiny`.

# %%
small = ["--set", "model.main=[8,8,8,8]", "--set", "model.aux=[8,8,8]", "--set", "training.crop=16"]
small += ["--set", "training.margin=2", "--batch", "1"]
command("cli", "--data", "region/clips", "--out", "region/run", "--steps", STEPS, *small, "--overwrite")

# %% [markdown]
# ## The map
#
# The folder of a run is a model. `deeplight-export` adds an ONNX file to it, which needs no PyTorch.

# %%
scene = dl.open_scene("region/ntl.tif", dmo="region/dmo.tif", dem="region/dem.tif")
model = dl.load_model("region/run")
print(model)
run = dl.refine(scene, model, out="region/lights.tif", overwrite=True, progress=True)
print(run)
