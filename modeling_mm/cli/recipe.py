# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Recipes as the command line names them: paths, or names of packaged recipes. Checked without torch."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..modalities import MODALITIES
from ..utils.declared import declared_constant, declared_mapping, declared_types
from ..utils.resources import find_resource
from ..utils.validation import build, mapping_of
from ..utils.yaml_values import read_values

if TYPE_CHECKING:
    from ..recipes import Recipe

# Keys of a recipe that name inputs, and folders of the checkout that the packaged recipes read them from.
TOWERS = tuple(modality.tower for modality in MODALITIES.values())
INPUTS = ("source", "pretrained", "text", *TOWERS, "processor", "preset")
FOLDERS = ("configuration/", "data/", "outputs/", "processing/")
FILES = (".csv", ".json", ".jsonl", ".parquet", ".yaml")
MOST_INPUTS = 6  # of the inputs that are missing
GPT2 = "transformers.models.gpt2.configuration_gpt2", "GPT2Config"


def load_recipe(name: str, overrides: Sequence[str]) -> "Recipe":
    """
    Read a recipe from a path, or the packaged recipe of that name.

    Raises:
        FileNotFoundError: if there is neither.
        ValueError: for an unknown key or a wrong value.
    """
    from ..recipes import read_recipe

    return read_recipe(recipe_path(name), overrides)


def check_recipe(name: str, overrides: Sequence[str], sections: Sequence[str] = ()) -> dict[str, Any]:
    """
    Return the values of a recipe whose keys and types are right and whose local inputs exist.

    Args:
        sections: whose inputs are needed; by default all.

    Raises:
        FileNotFoundError: if there is no such recipe, or if it names inputs that are not here.
        ValueError: for an unknown key or a value of another type.
    """
    path = recipe_path(name)
    values = build(recipe_type(), read_values(path, overrides))
    is_packaged = path != Path(name)
    needed = {key: value for key, value in values.items() if not sections or key in sections}
    if missing := list(missing_inputs(needed, is_packaged)):
        more = f", and {len(missing) - MOST_INPUTS} more" if len(missing) > MOST_INPUTS else ""
        listed = f"names inputs that are not here: {', '.join(missing[:MOST_INPUTS])}{more}."
        key = missing[0].partition("=")[0]
        what = f"The packaged recipe {name}" if is_packaged else name
        raise FileNotFoundError(f"{what} {listed} Override these keys, such as {key}=PATH.")
    return values


def recipe_path(name: str) -> Path:
    """Return the path of a recipe; a plain name is that of a packaged recipe."""
    path = Path(name)
    return path if path.suffix or len(path.parts) > 1 else find_resource("recipes", name)


def recipe_type() -> Any:
    """Return the type of a recipe as the sources of its classes declare it, which import torch and transformers."""
    from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

    text = [*declared_types(*GPT2), *declared_constant(*GPT2, "attribute_map")]
    config = declared_types("modeling_mm.configuration_mm", "MMConfig", bases=False)
    known = {
        "NonNegativeInt": NonNegativeInt,
        "PositiveFloat": PositiveFloat,
        "PositiveInt": PositiveInt,
        "Part": Literal[("text", "cross_attention", "connectors", *TOWERS)],
        "ConfigFields": mapping_of({**config, "text_config": mapping_of(dict.fromkeys(text, Any))}),
        "TrainingFields": declared_mapping("modeling_mm.training.arguments", "MMTrainingArguments"),
    }
    return declared_mapping("modeling_mm.recipes.schema", "Recipe", known)


def missing_inputs(values: Any, is_packaged: bool, where: str = "") -> Iterator[str]:
    """Yield `key=value` for each local input that does not exist."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        if key in INPUTS and isinstance(value, str) and is_local(value, is_packaged) and not Path(value).exists():
            yield f"{where}{key}={value}"
        yield from missing_inputs(value, is_packaged, f"{where}{key}.")


def is_local(value: str, is_packaged: bool) -> bool:
    """Return if a value can only be a path; `data/captions` is one in a packaged recipe, else maybe a Hub id."""
    is_path = value.startswith(("/", "./", "../")) or value.endswith(FILES) or value.count("/") > 1
    return "://" not in value and (is_path or (is_packaged and value.startswith(FOLDERS)))
