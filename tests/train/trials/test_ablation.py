"""The ablation: switches that leave the network alone by default, equal budgets, a table that says what was run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.spec import INPUTS, input_shape
from deeplight.engine.network.config import ModelConfig, preset
from deeplight.engine.network.model import DeepLightSR
from deeplight.train.fit.checkpoint import save_checkpoint
from deeplight.train.fit.settings import settings_from
from deeplight.train.trials import ablation
from deeplight.train.trials import training as trials
from deeplight.train.trials.ablation import VARIANTS, Budget, ablate, chosen, command, gain, to_markdown
from deeplight.train.trials.training import with_alignment

SMALL = ModelConfig(main=(8, 8, 4, 4), aux=(8, 4, 4), localise_width=8)
WIDTHS = {"main": [8, 8, 4, 4], "aux": [8, 4, 4], "localise_width": 8}


def network(**changes: Any) -> DeepLightSR:
    torch.manual_seed(0)
    model = DeepLightSR(replace(SMALL, **changes)).eval()
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not name.endswith("bias"):
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def inputs() -> list[torch.Tensor]:
    torch.manual_seed(2)
    return [torch.rand(input_shape(spec, 1, 9, 7)) for spec in INPUTS]


def test_the_default_network_is_the_shipped_one() -> None:
    tiny = preset("tiny")
    assert tiny.align and tiny.embed_isp and tiny.fusion == "modulate"
    assert sum(p.numel() for p in DeepLightSR(tiny).parameters()) == 245_452, "docs/model-card.md"
    older = {k: v for k, v in tiny.to_dict().items() if k not in ("align", "fusion", "embed_isp")}
    assert ModelConfig.from_dict(older) == tiny, "checkpoints from before the switches"


def test_without_alignment_the_offset_is_zero() -> None:
    with torch.no_grad():
        assert network()(*inputs())[2].abs().max() > 0
        assert network(align=False)(*inputs())[2].abs().max() == 0


def test_concatenation_starts_as_the_identity_and_uses_the_layers() -> None:
    torch.manual_seed(0)
    layer = DeepLightSR(replace(SMALL, fusion="concatenate")).fusions[1]
    main, aux = torch.rand(1, 8, 6, 6), [torch.rand(1, 4, 6, 6) for _ in range(2)]
    masks = [torch.ones(1, 1, 6, 6), torch.zeros(1, 1, 6, 6)]
    assert torch.equal(layer(main, aux, masks), main)
    layer.mix.weight.data.normal_()
    moved = layer(main, aux, masks)
    assert not torch.equal(moved, main)
    other = [aux[0], aux[1] + 1]
    assert torch.equal(layer(main, other, masks), moved), "what is masked is not seen"


def test_without_embedding_isp_does_not_reach_the_lights() -> None:
    with torch.no_grad():
        for embed_isp in (True, False):
            model = network(embed_isp=embed_isp)
            before = model(*inputs())
            for refine in model.refines:
                refine.isp.bias += 3.0  # type: ignore[operator, union-attr]
            after = model(*inputs())
            assert not torch.equal(before[1], after[1])
            assert torch.equal(before[0], after[0]) != embed_isp
    assert not any(r.embed.requires_grad for r in network(embed_isp=False).refines)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"align": 1}, "align must be true or false"),
        ({"fusion": "sum"}, "fusion must be modulate or concatenate"),
    ],
)
def test_switches_are_checked(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ModelConfig.from_dict({**SMALL.to_dict(), **changes})


def test_every_variant_is_a_setting_and_has_the_same_number_of_steps() -> None:
    budget = Budget()
    found = [settings_from(budget.of(variant, seed=3)) for variant in VARIANTS]
    assert len(VARIANTS) == 6 and all(s.training.seed == 3 for s in found)
    image = {s.training.steps + s.training.told_steps for s in found}
    assert image == {budget.steps + budget.told}, "of everything but the offset's own layers"
    full = found[0]
    for variant, settings in zip(VARIANTS[1:], found[1:], strict=True):
        assert settings != full, variant.name
        assert (
            replace(settings.training, steps=0) == replace(full.training, steps=0) or not settings.model.align
        )
    assert found[4].objective.literal_isp and found[3].objective.alpha == 1 and not found[5].augment.drop_dmo


def scores(value: float) -> dict[str, Any]:
    one = {"psnr_log1p": 28 + value, "psnr_log1p_bicubic": 28.0, "rmse": 2.0, "sum_of_lights_error": -0.01}
    return {name: {**one, "offset_epe_lit_px": 0.3} for name in ablation.LAYERS}


def test_the_table_compares_equal_seeds() -> None:
    runs = [
        {"variant": name, "seed": seed, "seconds": 1.0, "scores": scores(value + seed)}
        for seed in (0, 1)
        for name, value in (("full", 3.0), ("no alignment", 2.5))
    ]
    found = {"budget": Budget().__dict__, "held_out_seeds": [5, 8], "runs": runs}
    rows = [line for line in to_markdown(found, VARIANTS).splitlines() if line.startswith("| ")]
    assert rows[1].startswith("| full | +3.50 [+3.00, +4.00] |  |")
    assert rows[2].startswith("| no alignment | +3.00 [+2.50, +3.50] | -0.50 [-0.50, -0.50] |")
    assert len(rows) == 3, "what was not run is not in the table"
    assert "seeds 0, 1" in to_markdown(found, VARIANTS) and "countries 5 to 7" in to_markdown(found, VARIANTS)


def test_unknown_configurations_are_named() -> None:
    assert [v.name for v in chosen("no alignment, full")] == ["full", "no alignment"]
    with pytest.raises(InputError, match="'no such' is no configuration: choose from full,"):
        chosen("full,no such")


def test_a_table_is_not_replaced_without_being_asked(tmp_path: Path) -> None:
    (tmp_path / "ablation.json").write_text("{}")
    done = CliRunner().invoke(command, ["--out", str(tmp_path)])
    assert isinstance(done.exception, InputError) and "already holds" in str(done.exception)


def test_runs_may_share_a_trained_offset_estimator(tmp_path: Path) -> None:
    """Its weights are the checkpoint's, all others depend on the seed alone."""
    trained = DeepLightSR(settings_from({"model": WIDTHS}).model)
    with torch.no_grad():
        for value in trained.parameters():
            value.fill_(0.25)
    save_checkpoint(tmp_path, trained, {"model": trained.config.to_dict()})
    tables = [{"model": WIDTHS, "training": {"seed": seed}} for seed in (1, 1, 2)]
    first, again, other = (with_alignment(settings_from(t), tmp_path).state_dict() for t in tables)
    for name, value in first.items():
        if name.startswith("localise."):
            assert torch.equal(value, trained.state_dict()[name])
        assert torch.equal(value, again[name])
    assert not torch.equal(first["first.weight"], other["first.weight"])
    wider = {"model": WIDTHS | {"localise_width": 16}}
    with pytest.raises(InputError, match="another offset estimator"):
        with_alignment(settings_from(wider), tmp_path)


@pytest.mark.slow
def test_one_command_trains_scores_and_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = Budget(steps=2, told=1, localise=0, regions=1, countries=1, batch=1, crop=14)
    seen = []
    real = trials.train_once

    def small(tables: Any, *rest: Any, **more: Any) -> DeepLightSR:
        tables = ablation.merged(tables, {"model": WIDTHS})
        seen.append(settings_from(tables))
        return real(tables, *rest, **more)

    monkeypatch.setattr(trials, "train_once", small)
    ablate(VARIANTS[3:4], [7], budget, tmp_path, lambda text: None)
    assert [(s.model.fusion, s.model.refine, s.training.seed) for s in seen] == [
        ("modulate", (0, 0, 0), 7),
    ]
    found = json.loads((tmp_path / "ablation.json").read_text())
    for run in found["runs"]:
        assert set(run["scores"]) == set(ablation.LAYERS)
        assert gain(run["scores"]["none"]) != gain(run["scores"]["DMO + DEM"])
    assert "| no refinement with ISP | " in (tmp_path / "ablation.md").read_text()
