"""What DATA names, looked at before anything heavy is loaded."""

from __future__ import annotations

from pathlib import Path

from deeplight.engine.core.errors import InputError


def data_folders(data: str) -> list[Path]:
    """Return the folders that a text names, separated by commas. Raises InputError where there are none, or one does
    not exist."""
    folders = [Path(part.strip()) for part in data.split(",") if part.strip()]
    if not folders:
        raise InputError(
            "no data are given; name a clip tree, several separated by commas, or a scene's folder"
        )
    for folder in folders:
        if not folder.is_dir():
            raise InputError(
                f"the data {folder} is not a folder; give a clip tree, several separated by commas, or a scene's folder"
            )
    return folders
