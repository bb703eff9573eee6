# %% [markdown]
# # A model of your own region
#
# This example turns rasters into clips, clips into a model, and uses the model for a map. Training needs PyTorch:
# `pip install torch --index-url https://download.pytorch.org/whl/cpu`, then `pip install '.[train]'`.
#
# The rasters here are synthetic and include the finer lights that a better sensor would see (`ntl_hr.tif`). If you have
# no such lights, leave `--ntl-hr` out and add `--protocol wald` to the training, which then learns from coarser lights.

# %%
import subprocess
import sys

import deeplight as dl

STEPS = "30"  # this is far too little for a good model; docs/training.md says what is usual


def command(module, *arguments):
    """Run one of DeepLight's command lines, in a terminal deeplight-data and deeplight-train."""
    subprocess.run([sys.executable, "-m", f"deeplight.train.{module}", *arguments], check=True)


command("data_cli", "synth", "--out", "region", "--lr-size", "128", "--seed", "3", "--overwrite")

# %% [markdown]
# ## Clips
#
# Every layer is resampled to one grid, and the place is cut into blocks for training and for validation that do not
# touch each other.

# %%
layers = {"ntl": "ntl", "ntl-hr": "ntl_hr", "dmo": "dmo", "dem": "dem", "isp": "isp"}
files = [text for option, name in layers.items() for text in (f"--{option}", f"region/{name}.tif")]
blocks = ["--clip", "32,24", "--block", "32", "--buffer", "4", "--shares", "0.7,0.3,0"]
command("data_cli", "clip", "--out", "region/clips", "--place", "here", *files, *blocks, "--overwrite")

# %% [markdown]
# ## Training
#
# The network is small and trained for a few steps, so that this takes a minute. For a real model leave out `--set` and
# `--steps`, or start from the built-in weights with `--start deeplight-tiny`.

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
