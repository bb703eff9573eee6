"""`deeplight-export`: checkpoint → artifact."""

from __future__ import annotations

from pathlib import Path

import click

from deeplight.engine.console import run_cli


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Artifact directory to write.")
@click.option("--format", "formats", type=click.Choice(["onnx"]), default="onnx", show_default=True)
@click.option("--precision", type=click.Choice(["fp32"]), default="fp32", show_default=True)
@click.option("--name", help="Name of the model (default: deeplight-PRESET).")
@click.option("--overwrite", is_flag=True, help="Replace an artifact that is already there.")
def command(
    checkpoint: Path, out: Path, formats: str, precision: str, name: str | None, overwrite: bool
) -> None:
    """Turn CHECKPOINT (a run directory of deeplight-train) into an artifact that deeplight-infer runs.

    The exported file is run and compared with the PyTorch model first; where it differs, nothing is written and
    the exit status is 1. The comparison is kept as parity.json.
    """
    from deeplight.train.requirements import EXPORTING, require

    require("deeplight-export", EXPORTING)
    from deeplight.export.build import export_artifact
    from deeplight.export.parity import table
    from deeplight.train.checkpoint import load_checkpoint

    model, card = load_checkpoint(checkpoint)
    path, rows = export_artifact(model, card, out, name=name, overwrite=overwrite)
    click.echo(table(rows), err=True)
    click.echo(path)


def main() -> None:
    """Entry point of `deeplight-export`."""
    run_cli(command)


if __name__ == "__main__":
    main()
