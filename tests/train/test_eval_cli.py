"""deeplight-eval as a user runs it: a small province through the engine, a checkpoint, and what it refuses."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from click.testing import CliRunner

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.extras import install_command
from deeplight.engine.core.progress import Silent
from deeplight.engine.core.spec import INPUTS, input_shape
from deeplight.engine.core.windows import Window
from deeplight.engine.network.config import ModelConfig
from deeplight.engine.network.model import DeepLightSR
from deeplight.engine.network.receptive import halo
from deeplight.engine.raster.scene import Scene, SceneOptions
from deeplight.train.eval_cli import command
from deeplight.train.evaluation import run as eval_run
from deeplight.train.evaluation.blocks import ScoreSettings
from deeplight.train.evaluation.models import EvaluatedNetwork
from deeplight.train.evaluation.run import EvalOptions, run
from deeplight.train.evaluation.sources import HeldOutCountries, Province
from deeplight.train.fit.checkpoint import load_checkpoint, save_checkpoint
from deeplight.train.synth import CountryConfig
from deeplight.train.synth.write import write_country
from tests.train.test_train_cli import BLOCK

SMALL = ModelConfig(main=(8, 8, 4, 4), aux=(8, 4, 4), localise_width=8)
SIZE = (26, 33)


@pytest.fixture(scope="module")
def province(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("province")
    config = CountryConfig(seed=910_004, lr_height=SIZE[0], lr_width=SIZE[1])
    write_country(config, folder, overwrite=False, progress=Silent())
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    save_checkpoint(folder, DeepLightSR(SMALL), {"step": 7})
    return folder


def call(*arguments: object) -> Any:
    return CliRunner().invoke(command, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def evaluated(province: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scores") / "out"
    done = call("--model", "deeplight-tiny", "--data", province, "--out", out, "--tiles", 16, "--block", 8)
    assert done.exit_code == 0, done.output
    return out


def test_a_province_goes_through_the_engine(evaluated: Path, province: Path) -> None:
    values = json.loads((evaluated / "metrics.json").read_text())
    with rasterio.open(province / "ntl_hr.tif") as file:
        truth = file.read(1, masked=True).astype(float).filled(np.nan)
    for method, name in (("network", "map.tif"), ("network, no auxiliary", "map_no_auxiliary.tif")):
        with rasterio.open(evaluated / name) as file:
            out = file.read(1, masked=True).astype(float).filled(np.nan)
            assert out.shape == truth.shape == tuple(8 * n for n in SIZE)
        error = (out - truth)[np.isfinite(out) & np.isfinite(truth)]
        found = values["methods"][method]["strata"]["all"]
        assert found["n"] == error.size == values["pixels"]["scored"]
        rmse = math.sqrt((error**2).mean())
        assert found["rmse"] == pytest.approx(rmse, rel=1e-9)
        assert found["psnr"] == pytest.approx(20 * math.log10(200 / rmse), abs=1e-4)
        # the halo is whole, so borders of tiles are no worse than others; the scene's own gradients differ by place
        assert abs(values["methods"][method]["seam"]) < 0.5
    assert values["settings"]["unit"] == "nW/cm²/sr" and values["settings"]["saturated_from"] == 6553.4
    assert values["data"]["split"] is None and values["model"]["name"] == "deeplight-tiny"


def test_the_page_holds_everything_in_itself(evaluated: Path) -> None:
    text = (evaluated / "page.html").read_text()
    pictures = re.findall(r'src="data:image/png;base64,([A-Za-z0-9+/=]{1000,})"', text)
    assert len(pictures) >= 3 and len(re.findall("<img", text)) == len(pictures)
    assert not re.search(r'(src|href)="(?!data:)', text)
    for word in ("Output against truth", "Histogram", "error", "bicubic"):
        assert word in text
    assert (
        re.search(r"<body><h1>DeepLight is [^<]*bicubic", text) and "<td>network, no auxiliary</td>" in text
    )
    first = (evaluated / "metrics.md").read_text().splitlines()[0]
    assert first.startswith("# DeepLight is ") and "bicubic" in first and "sum of lights" in first


def test_results_are_not_replaced_without_being_asked(evaluated: Path, province: Path) -> None:
    before = (evaluated / "metrics.json").read_bytes()
    done = call("--model", "deeplight-tiny", "--data", province, "--out", evaluated)
    assert isinstance(done.exception, InputError) and "already holds metrics.json" in str(done.exception)
    assert (evaluated / "metrics.json").read_bytes() == before


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of a small evaluation's time goes into them."""
    monkeypatch.setattr(eval_run, "page", lambda *_: "")


@pytest.mark.usefixtures("no_pictures")
def test_a_run_is_mapped_by_the_engine(province: Path, checkpoint: Path, tmp_path: Path) -> None:
    """As an exported model is. Against the network over the whole province at once."""
    options = EvalOptions(
        str(checkpoint), str(province), tmp_path, settings=ScoreSettings(block=8), threads=1, overwrite=True
    )
    values = run(options, Silent())
    with Province(province) as source:
        sample = source.read(0, Window(0, 0, *SIZE))
    inputs = {spec.name: getattr(sample, spec.name)[None] for spec in INPUTS}
    # training is not told the blur of lights that were not degraded; the engine takes the product's
    with Scene.open(SceneOptions(str(province / "ntl.tif"))) as scene:
        inputs["psf"] = np.asarray(scene.psf, np.float32)[None]
    network = EvaluatedNetwork(str(checkpoint), 1)
    out = network.run(inputs).astype(float)
    error = (out - sample.ntl_hr[0])[sample.ntl_hr_valid[0] > 0]
    found = values["methods"]["network"]["strata"]["all"]
    # at the scene's edge the network repeats what it sees, while tiles see nodata beyond it
    assert found["rmse"] == pytest.approx(math.sqrt((error**2).mean()), rel=0.02)
    assert values["model"]["step"] == 7 and values["model"]["backend"] == "torch"
    assert (tmp_path / "map.tif").exists()


def test_a_network_reads_its_receptive_field(checkpoint: Path) -> None:
    network = EvaluatedNetwork(str(checkpoint), 1)
    assert network.window(Window(3, 4, 5, 6)) == Window(3, 4, 5, 6).grown(halo(SMALL))
    model = load_checkpoint(checkpoint)[0]
    rng = np.random.default_rng(0)
    inputs = {s.name: rng.random(input_shape(s, 1, 6, 5), np.float32) for s in INPUTS}
    with torch.no_grad():
        wanted = model(*(torch.from_numpy(inputs[s.name]) for s in INPUTS))[0][0, 0].numpy()
    # channels-last convolutions may order sums differently
    np.testing.assert_allclose(network.run(inputs), wanted, rtol=1e-5, atol=1e-5 * wanted.max())


@pytest.mark.usefixtures("no_pictures")
def test_synthetic_countries(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(seeds: range) -> HeldOutCountries:
        return HeldOutCountries(seeds[:2], side=10)

    monkeypatch.setattr(eval_run, "HeldOutCountries", small)
    done = call("--model", checkpoint, "--data", "synthetic", "--out", tmp_path, "--block", 8)
    assert done.exit_code == 0, done.output
    values = json.loads((tmp_path / "metrics.json").read_text())
    assert list(values["places"]) == ["country 900000", "country 900001"]
    assert values["pixels"]["scored"] == 2 * 6400


def test_what_cannot_be_used_is_said_in_one_sentence(
    province: Path, checkpoint: Path, tmp_path: Path
) -> None:
    def refused(words: str, *arguments: object) -> None:
        done = call("--out", tmp_path / "out", *arguments)
        assert isinstance(done.exception, InputError), done.output
        assert words in str(done.exception) and "\n" not in str(done.exception)

    tiny = ("--model", "deeplight-tiny", "--data")
    refused("nowhere is not a folder", *tiny, tmp_path / "nowhere")
    refused("nowhere is not a folder", *tiny, f"{province},{tmp_path / 'nowhere'}")
    refused("has no index.csv", *tiny, f"{province},{province}")  # several: trees
    refused("--degradation belongs to --protocol wald", *tiny, province, "--degradation", "psf=1")
    refused("is scored whole: leave --split out", *tiny, province, "--split", "val")
    refused("--split test is for clips", *tiny, "synthetic", "--split", "test")
    refused("--tiles is for a province", *tiny, "synthetic", "--tiles", 16)
    refused("has no split exam", *tiny, province, "--split", "exam", "--protocol", "wald")
    refused("unknown model 'large': give a built-in name", "--model", "large", "--data", "synthetic")
    refused("give paired", "--model", checkpoint, "--data", "synthetic", "--protocol", "wald")
    assert not (tmp_path / "out").exists(), "a refusal leaves no folder"


def test_a_checkpoint_that_was_trained_on_the_province_is_warned_about(
    province: Path, tmp_path: Path
) -> None:
    class Said(Silent):
        def __init__(self) -> None:
            self.lines: list[str] = []

        def log(self, message: str) -> None:
            self.lines.append(message)

    for name, warned in ((province.name, 1), ("another", 0)):
        save_checkpoint(tmp_path / name, DeepLightSR(SMALL), {"data": {"kind": "folder", "name": name}})
        said, out = Said(), tmp_path / f"scores of {name}"
        out.mkdir()
        with ExitStack() as stack:
            eval_run._province(EvalOptions(str(tmp_path / name), str(province), out, threads=1), said, stack)
        assert sum("was trained on a folder called" in line for line in said.lines) == warned


def test_a_truth_on_another_grid_is_refused(province: Path, tmp_path: Path) -> None:
    for path in province.glob("*.tif"):
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "ntl_hr.tif").unlink()
    with rasterio.open(province / "ntl_hr.tif") as file:
        values, profile = file.read(), file.profile
    profile.update(height=values.shape[1] - 8, tiled=False)
    with rasterio.open(
        tmp_path / "ntl_hr.tif", "w", **{k: v for k, v in profile.items() if "block" not in k}
    ) as new:
        new.write(values[:, :-8])
    with pytest.raises(InputError, match=r"has 264×200 pixels .* must lie on the NTL grid cut 8×, 264×208"):
        Province(tmp_path)


def test_help_is_short_and_loads_no_torch() -> None:
    code = "import sys; from deeplight.train.eval_cli import command; command.main(['--help'], standalone_mode=False)"
    check = f"{code}; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"
    wide = CliRunner().invoke(command, ["--help"], terminal_width=100).output.splitlines()
    assert len(wide) <= 40 and max(map(len, wide)) <= 100


def test_a_missing_package_is_named_with_its_remedy(tmp_path: Path) -> None:
    code = BLOCK.format(blocked=("torchmetrics",), program="train").replace("train.cli", "train.eval_cli")
    arguments = ["--model", "deeplight-tiny", "--data", "synthetic", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert done.stderr == f"error: deeplight-eval needs torchmetrics: {install_command('eval')}\n"
