"""`deeplight-export`: training run → model folder with ONNX files and plans."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from deeplight.engine.core.terminal import Command, Parsed, logging_to, parse_folder, run_cli

FORMATS = ("onnx", "tensorrt", "tensorrt-rtx", "triton-repo")
PRECISIONS = ("fp32", "fp16", "bf16")
_GONE = {
    "torch": "needs no file: deeplight-infer --backend torch runs the weights of any model folder",
    "int8": "was slower and worse than fp32 on CPUs, so it is no longer made",
}
"""What could be asked for in version 0.2, and what became of it."""


def _list(accepted: tuple[str, ...], text: str) -> tuple[str, ...]:
    """Names separated by commas. Raises ValueError naming the first that is not accepted."""
    names = tuple(dict.fromkeys(n.strip() for n in text.split(",")))
    for name in names:
        if name not in accepted:
            why = f" ({name} {_GONE[name]})" if name in _GONE else ""
            raise ValueError(f"{name!r} is not one of {', '.join(accepted)}{why}")
    return names


def _plain(text: str) -> str:
    """A name that may be a folder's, as in a model repository. Raises ValueError."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", text):
        raise ValueError(f"{text!r} is not a plain name: use letters, digits, dots, hyphens and underscores")
    return text


@click.command(
    cls=Command, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.argument("run")
@click.option("--out", type=Parsed("dir", parse_folder), required=True, help="Model folder to write.")
@click.option(
    "--format",
    "formats",
    type=Parsed("formats", lambda text: _list(FORMATS, text)),
    default="onnx",
    show_default=True,
    help=f"Of {', '.join(FORMATS)}, separated by commas.",
)
@click.option(
    "--precision",
    "precisions",
    type=Parsed("precisions", lambda text: _list(PRECISIONS, text)),
    default="fp32",
    show_default=True,
    help=f"Of {', '.join(PRECISIONS)}; ONNX in fp32 is always written. bf16 is for OpenVINO.",
)
@click.option(
    "--data", type=click.Path(path_type=Path), help="Folder with ntl.tif …: compare on its tiles too."
)
@click.option(
    "--plugins",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    help="TensorRT: our kernels in the plan (experimental: nobody has run them so far)",
)
@click.option(
    "--version-compatible", is_flag=True, help="TensorRT: plans for later versions too (lean runtime)"
)
@click.option(
    "--hardware",
    type=click.Choice(["none", "ampere_plus", "same_compute_capability"]),
    default="none",
    help="TensorRT: other GPUs that plans shall run on",
)
@click.option("--name", type=Parsed("name", _plain), help="Name of the model (default: deeplight-PRESET).")
@click.option("--overwrite", is_flag=True, help="Replace a model folder that is already there.")
def command(
    run: str,
    out: Path,
    formats: tuple[str, ...],
    precisions: tuple[str, ...],
    data: Path | None,
    name: str | None,
    overwrite: bool,
    **plans: Any,
) -> None:
    """Make of RUN (a folder that deeplight-train wrote, RUN/best, or any model) a model that runs without PyTorch.

    Every exported file is run and compared with the PyTorch model first; where one differs, nothing is written and
    the exit status is 1. The comparison is kept as parity.json.
    """
    from deeplight.train.fit.requirements import EXPORTING, require

    require("deeplight-export", EXPORTING)
    from deeplight.export import to_tensorrt_rtx
    from deeplight.export.build import Request, export_artifact
    from deeplight.export.parity import ParityError, table
    from deeplight.export.to_tensorrt import PlanOptions, require_builder
    from deeplight.export.triton_repo import check_free, write_repository
    from deeplight.train.fit.checkpoint import load_checkpoint

    options = PlanOptions(plans["plugins"], plans["hardware"], plans["version_compatible"])
    request, repository = Request(formats, precisions, data, options), Path(f"{out}-triton")
    request.check(out, overwrite=overwrite)
    if "tensorrt" in formats:
        require_builder()
    if "tensorrt-rtx" in formats:
        to_tensorrt_rtx.require_builder()
    if "triton-repo" in formats:
        check_free(repository, overwrite=overwrite)
    model, training = load_checkpoint(run)
    with logging_to(lambda line: click.echo(line, err=True)):
        try:
            exported = export_artifact(model, training, out, request, name=name, overwrite=overwrite)
        except ParityError as error:
            click.echo(table(error.rows), err=True)
            raise
    for line in (table(exported.rows), *exported.notes):
        click.echo(line, err=True)
    click.echo(exported.path)
    if "triton-repo" in formats:
        click.echo(write_repository(exported.path, repository, overwrite=overwrite))


def main() -> None:
    """Entry point of `deeplight-export`."""
    run_cli(command)


if __name__ == "__main__":
    main()
