"""What training leaves is a model folder, whole at every moment; damaged ones are refused in one sentence."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from deeplight.engine.core import files
from deeplight.engine.core.errors import InputError
from deeplight.engine.network.config import ModelConfig
from deeplight.engine.network.model import DeepLightSR
from deeplight.engine.runtime import artifact
from deeplight.engine.runtime.artifact import load_artifact
from deeplight.engine.runtime.manifest import MANIFEST_NAME, WEIGHTS
from deeplight.engine.runtime.models import load_network
from deeplight.train.fit.checkpoint import (
    MOST_VALIDATIONS,
    check_start,
    load_checkpoint,
    save_checkpoint,
    thinned,
)

SMALL = ModelConfig(main=(8, 8, 4, 4), aux=(8, 4, 4), localise_width=8)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "run", DeepLightSR(SMALL), {"step": 0})
    return tmp_path / "run"


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    model = DeepLightSR(SMALL)
    save_checkpoint(tmp_path / "run", model, {"step": 5})
    again, training = load_checkpoint(tmp_path / "run")
    assert again.config == SMALL and not again.training and training["step"] == 5
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [MANIFEST_NAME, WEIGHTS]


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\x08" + b"\0" * 7 + b"{not it}"])
def test_weights_that_were_changed(run: Path, content: bytes) -> None:
    (run / WEIGHTS).write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors (has \d+ bytes, not|does not match)") as e:
        load_checkpoint(run)
    assert "\n" not in str(e.value)


class Dying(files.Disk):
    """The disk of a process that is killed after some operations."""

    def __init__(self, operations: int) -> None:
        self.left = operations

    def _one(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt

    def create(self, path):  # type: ignore[no-untyped-def]
        self._one()
        return super().create(path)

    def sync(self, file):  # type: ignore[no-untyped-def]
        self._one()
        super().sync(file)

    def replace(self, source, target):  # type: ignore[no-untyped-def]
        self._one()
        super().replace(source, target)

    def sync_folder(self, folder):  # type: ignore[no-untyped-def]
        self._one()
        super().sync_folder(folder)


def saved_until(monkeypatch: pytest.MonkeyPatch, run: Path, step: int, operations: int) -> bool:
    """Saves other weights on a disk that dies; whether the save came to its end."""
    disk = Dying(operations)
    monkeypatch.setattr(artifact, "DISK", disk)
    monkeypatch.setattr(artifact, "write_file", lambda *a: files.write_file(*a, disk=disk))
    torch.manual_seed(step)
    try:
        save_checkpoint(run, DeepLightSR(SMALL), {"step": step})
    except KeyboardInterrupt:
        return False
    return True


@pytest.mark.parametrize("first", range(11))
def test_writers_killed_at_any_moment_leave_a_pair_that_belongs_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """Two in a row, each killed after any of its operations: what is read is one of the steps, with its weights."""
    digests: dict[int, str] = {}
    for step in (0, 8, 9):
        assert saved_until(monkeypatch, tmp_path / str(step), step, 99)
        digests[step] = load_artifact(tmp_path / str(step)).digest
    for second in range(13):
        run = tmp_path / f"run{second}"
        shutil.copytree(tmp_path / "0", run)
        ended = saved_until(monkeypatch, run, 8, first)
        found = load_artifact(run)
        assert found.digest == digests[found.manifest.training["step"]]
        assert not ended or found.manifest.training["step"] == 8
        ended = saved_until(monkeypatch, run, 9, second)
        found = load_artifact(run)
        assert found.digest == digests[found.manifest.training["step"]]
        assert not ended or found.manifest.training["step"] == 9
        assert ended or second < 12, "twelve operations make a save, the first of them finishing another's"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("main", [8, 8, 4]),
        ("main", [8, 8, 4, 0]),
        ("aux", [8, 4, "4"]),
        ("aux", 8),
        ("main", [8, 8, 4, True]),
        ("refine", [1, 1]),
        ("refine", [1, 1, -1]),
        ("refine", [1, 1, 0.5]),
        ("body", -1),
        ("localise_width", 8.0),
        ("normalisation", {"dmo_mean": [0.1]}),
        ("normalisation", {"dem_std": "500"}),
        ("d_max", 10**400),
        ("normalisation", {"ntl_unit": 0}),
        ("normalisation", {"ntl_unit": -1.0}),
        ("normalisation", {"ntl_gain": 0.0}),
        ("normalisation", {"dem_std": 1e-60}),
        ("normalisation", {"dem_mean": 1e39}),
        ("normalisation", {"dmo_std": [0.04, 0, 0.06, 0.07, 0.11, 0.11, 0.10]}),
    ],
)
def test_a_configuration_that_describes_no_network(run: Path, field: str, value: object) -> None:
    values = json.loads((run / MANIFEST_NAME).read_text())
    values["configuration"][field] = value
    (run / MANIFEST_NAME).write_text(json.dumps(values))
    with pytest.raises(
        InputError, match=rf"configuration of .* is not one of this version: {field}.* must be "
    ) as e:
        load_checkpoint(run)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("value", [float("nan"), 0])
def test_a_manifest_whose_offsets_have_no_bound(run: Path, value: float) -> None:
    """The quality band asks the manifest for it, so that it is refused before the network is."""
    values = json.loads((run / MANIFEST_NAME).read_text())
    values["configuration"]["d_max"] = value
    (run / MANIFEST_NAME).write_text(json.dumps(values))
    with pytest.raises(InputError, match=r'cannot be used: .*"d_max" must be a number above 0$'):
        load_checkpoint(run)


def put(run: Path, tensors: dict[str, torch.Tensor], **configuration: object) -> None:
    """Give a run these weights and fields of its configuration, and a manifest that lists them."""
    manifest = load_artifact(run).manifest
    changed = replace(manifest, configuration={**manifest.configuration, **configuration})
    artifact.put_weights(run, changed, save(tensors))


def test_weights_that_the_network_cannot_take_are_refused_before_it_is_made(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is wrong with them: nothing is allocated for a configuration that they do not fit."""
    good = load(load_artifact(run).weights)
    vast = {"main": [10**6, 8, 4, 4]}
    rest = {k: v for k, v in good.items() if not k.startswith("first.")}
    norm = SMALL.to_dict()["normalisation"] | {"dmo_std": [0.5] * 7}
    made: list[str] = []
    make = DeepLightSR.__init__

    def noted(self: DeepLightSR, config: ModelConfig) -> None:
        made.append(torch.get_default_device().type)
        make(self, config)

    monkeypatch.setattr(DeepLightSR, "__init__", noted)
    cases: list[tuple[dict[str, torch.Tensor], dict[str, object], str]] = [
        (rest, vast, r"they lack 'first\.\w+'"),
        (
            {**good, "first.weight": torch.tensor(1.0)},
            vast,
            r"first\.weight is float32 \(\), not float32 \(1",
        ),
        ({**good, "extra": torch.ones(2)}, {}, "the network has no 'extra'$"),
        ({**good, "first.bias": torch.ones(9)}, {}, r"first\.bias is float32 \(9,\), not float32 \(8,\)$"),
        ({**good, "first.bias": torch.ones(8).double()}, {}, r"first\.bias is float64 \(8,\), not float32"),
        ({**good, "first.bias": torch.ones(8).long()}, {}, r"first\.bias is int64 \(8,\), not float32"),
        (
            {**good, "first.bias": torch.full((8,), float("nan"))},
            {},
            r"NaN or infinity in 'first\.bias': copy",
        ),
        (
            {**good, "first.bias": torch.full((8,), float("inf"))},
            {},
            r"NaN or infinity in 'first\.bias': copy",
        ),
        (good, {"main": [2**40, 8, 4, 4]}, r"main is \(1099511627776"),
        (rest, {"main": [2**62, 8, 4, 4]}, "do not fit its configuration: .*overflow"),
        (
            good,
            {"normalisation": norm},
            r"\.dmo_std is \(0\.5, .* there and something else in the weights",
        ),
    ]
    for tensors, configuration, words in cases:
        put(
            run,
            tensors,
            **{"main": [8, 8, 4, 4], "normalisation": SMALL.to_dict()["normalisation"], **configuration},
        )
        with pytest.raises(InputError, match=words) as e:
            load_checkpoint(run)
        assert "\n" not in str(e.value)
    assert set(made) == {"meta"}


def test_a_network_is_the_same_however_its_numbers_are_written(run: Path) -> None:
    then = load_artifact(run).digest
    norm = SMALL.to_dict()["normalisation"] | {"ntl_unit": 1, "dem_mean": 400}
    put(run, load(load_artifact(run).weights), d_max=2, normalisation=norm)
    assert load_artifact(run).digest == then
    assert load_checkpoint(run)[0].config == SMALL
    put(run, load(load_artifact(run).weights), d_max=1)
    assert load_artifact(run).digest != then


def test_a_run_of_an_older_version_is_told_how_to_become_new(run: Path) -> None:
    (run / MANIFEST_NAME).rename(run / "checkpoint.json")
    with pytest.raises(
        InputError, match=r"older version .* no training state: train it again .* --overwrite$"
    ):
        load_checkpoint(run)
    (run / "state.safetensors").touch()
    with pytest.raises(InputError, match=r"run of an older version .* command that made it and --resume$"):
        load_checkpoint(run)


def test_a_built_in_model_is_a_checkpoint_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, training = load_checkpoint("deeplight-tiny")
    assert model.config.preset == "tiny" and training["data"]["kind"] == "synthetic"
    save_checkpoint(tmp_path / "deeplight-tiny", DeepLightSR(SMALL), {"step": 0})
    assert load_checkpoint("deeplight-tiny")[0].config == model.config, "a built-in name wins"
    assert load_checkpoint(tmp_path / "deeplight-tiny")[0].config == SMALL
    for name in ("deeplight-huge", "models/deeplight-tiny", "deeplight-tiny/gone"):
        with pytest.raises(
            InputError, match=r"unknown model .*: give a built-in name \(deeplight-tiny\), or a"
        ):
            load_checkpoint(name)


def test_training_goes_on_from_a_checkpoint_of_the_same_network_only(run: Path) -> None:
    check_start(run, load_checkpoint(run)[0].config, SMALL)
    with pytest.raises(InputError, match=r"of another network \(body 2, not 3\); start from one like"):
        check_start(run, SMALL, replace(SMALL, body=3))


def test_the_manifest_of_a_long_run_can_be_read_again(run: Path) -> None:
    """Every validation of a very long run would make it larger than readers accept."""
    scores = {f"score_{i}": 0.123456789012345678 for i in range(30)}
    history = [{"step": float(i), **scores} for i in range(9_999)]
    assert thinned(history[:1000]) == history[:1000] and thinned([]) == []
    save_checkpoint(run, DeepLightSR(SMALL), {"history": thinned(history)})
    kept = [int(entry["step"]) for entry in load_artifact(run).manifest.training["history"]]
    assert len(kept) <= MOST_VALIDATIONS and kept[-1] == 9_998
    assert {b - a for a, b in itertools.pairwise(kept)} == {10}


def meanwhile(monkeypatch: pytest.MonkeyPatch, run: Path, times: int) -> None:
    """Let a training save other weights `times` times, each just after a reader has read the manifest."""
    read, left = artifact._manifest_text, iter(range(1, times + 1))

    def then_saved(folder: Path) -> bytes:
        text = read(folder)
        for step in itertools.islice(left, 1):
            torch.manual_seed(step)
            save_checkpoint(run, DeepLightSR(SMALL), {"step": step})
        return text

    monkeypatch.setattr(artifact, "_manifest_text", then_saved)


def test_a_run_that_is_saved_while_it_is_read_is_read_again(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meanwhile(monkeypatch, run, 3)
    assert load_artifact(run).manifest.training["step"] == 3
    meanwhile(monkeypatch, run, 99)
    with pytest.raises(InputError, match=r"run was changed while it was read: run the same command again$"):
        load_artifact(run)


def test_a_run_that_is_saved_after_it_was_opened_gives_the_weights_it_was_opened_with(run: Path) -> None:
    opened, first = load_artifact(run), load_checkpoint(run)[0].state_dict()
    save_checkpoint(run, DeepLightSR(SMALL), {"step": 1})
    again = load_network(opened).state_dict()
    assert all(torch.equal(value, first[name]) for name, value in again.items())
