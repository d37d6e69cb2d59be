# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Recipes as the command line names them: paths, or names of packaged recipes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..modalities import MODALITIES
from ..recipes import Recipe, read_recipe
from ..utils import find_resource

# Keys of a recipe that name inputs, and folders of the checkout that the packaged recipes read them from.
TOWERS = tuple(modality.tower for modality in MODALITIES.values())
INPUTS = ("source", "pretrained", "text", *TOWERS, "processor", "preset")
FOLDERS = ("configuration/", "data/", "outputs/", "processing/")
SHOWN = 6  # of the inputs that are missing


def load_recipe(name: str, overrides: Sequence[str]) -> Recipe:
    """
    Read a recipe from a path, or the packaged recipe of that name.

    Raises:
        FileNotFoundError: if there is neither, or if a packaged recipe names inputs that are not here.
    """
    path = Path(name)
    if path.suffix or len(path.parts) > 1:
        return read_recipe(path, overrides)
    recipe = read_recipe(find_resource("recipes", name), overrides)
    if missing := list(missing_inputs(recipe.to_dict())):
        more = f", and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise FileNotFoundError(
            f"The packaged recipe {name} names inputs that are not here: {', '.join(missing[:SHOWN])}{more}. Override "
            f"these keys, such as {missing[0].partition('=')[0]}=PATH."
        )
    return recipe


def missing_inputs(values: Any, where: str = "") -> Iterator[str]:
    """Yield `key=value` for each local input that does not exist."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        if key in INPUTS and isinstance(value, str) and value.startswith(FOLDERS) and not Path(value).exists():
            yield f"{where}{key}={value}"
        yield from missing_inputs(value, f"{where}{key}.")
