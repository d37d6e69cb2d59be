# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Presets, recipes, accelerate settings and templates, found by name in an installed wheel or in a checkout."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from .spelling import suggestion

Kind = Literal["presets", "recipes", "accelerate", "templates"]
PACKAGE = Path(__file__).resolve().parents[1]
PACKAGE_DATA = PACKAGE / "package_data"  # filled when the wheel is built; absent in a checkout
CHECKOUT_FOLDERS: dict[str, str] = {
    "presets": "configuration/presets",
    "recipes": "configuration/recipes",
    "accelerate": "configuration/accelerate",
    "templates": "model_cards",
}


def find_resource(kind: Kind, name: str) -> Path:
    """
    Return the path of a file or folder that ships with the package.

    Args:
        kind: `presets`, `recipes`, `accelerate` or `templates`
        name: with or without its suffix, such as `tiny`, `tiny.json` or `tiny-processor`

    Raises:
        FileNotFoundError: if nothing of this kind has the name. The message lists the names that exist.

    Example:
        >>> find_resource("presets", "tiny").name
        'tiny.json'
    """
    known = {path.name: path for path in _paths(kind)}
    by_stem = {path.stem: path for path in known.values()}
    path = known.get(name) or by_stem.get(name)
    if path is None:
        listed = ", ".join(sorted(by_stem)) or "none, as the installation is incomplete"
        raise FileNotFoundError(f"No {name!r} in {kind}.{suggestion(name, [*by_stem, *known])} Available: {listed}.")
    return path


def resource_or_path(kind: Kind, name: str) -> str:
    """Return the path of a shipped resource if `name` is one, else `name` itself. A folder like it is `./name`."""
    return str(find_resource(kind, name)) if name in list_resources(kind) else name


def list_resources(kind: Kind) -> list[str]:
    """Return the names that `find_resource` accepts, without suffixes."""
    return sorted(path.stem for path in _paths(kind))


def _paths(kind: str) -> Iterator[Path]:
    folder = PACKAGE_DATA / kind
    if not folder.is_dir():
        folder = PACKAGE.parent / CHECKOUT_FOLDERS[kind]
    for path in folder.glob("*"):
        # Of `model_cards` only the template is a resource; the folders in it are releases.
        if not path.name.startswith((".", "README")) and not (kind == "templates" and path.is_dir()):
            yield path
