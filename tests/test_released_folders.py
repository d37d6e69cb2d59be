"""Every released folder: its size and code, its weights, its card, and that it loads without the package."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import modeling_mm
from modeling_mm.recipes import read_recipe, to_yaml
from tests.fakes.without_package import run_without_package

ROOT = Path(__file__).resolve().parent.parent
LAST_RECIPES = {"mm-whisper-tiny": "mm-whisper-tiny", "mm-studio": "mm-studio-together"}  # that made the weights
LARGEST = {"mm-whisper-tiny": 95_000_000, "mm-studio": 42_000_000}  # bytes of the weights
SUFFIXES = {
    "mm-whisper-tiny": {".safetensors", ".json", ".md", ".py", ".jinja"},
    "mm-studio": {".safetensors", ".json", ".md", ".py", ".jinja", ".png"},
}


@pytest.fixture(params=LARGEST)
def folder(request) -> Path:
    return ROOT / "model_cards" / request.param


def test_these_are_all_of_them():
    assert {path.name for path in (ROOT / "model_cards").iterdir() if path.is_dir()} == {*LARGEST}


def test_it_is_small_enough_for_the_repository(folder):
    sizes = {path.name: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    assert sizes.pop("model.safetensors") <= LARGEST[folder.name]
    assert sum(sizes.values()) < 5_000_000


def test_it_holds_no_pickle_and_its_code_is_that_of_the_package(folder):
    package = Path(modeling_mm.__file__).parent
    for path in filter(Path.is_file, folder.iterdir()):
        assert path.suffix in SUFFIXES[folder.name], path.name
        if path.suffix == ".py":
            assert path.is_symlink() and path.resolve() == (package / path.name).resolve()
            assert not path.readlink().is_absolute()
    assert {path.name for path in folder.glob("*.safetensors")} == {"model.safetensors"}


def test_its_weights_are_in_half_precision_and_finite(folder):
    with safe_open(folder / "model.safetensors", "pt") as weights:
        for name in weights.keys():  # noqa: SIM118  (it has no __iter__)
            tensor = weights.get_tensor(name)
            assert tensor.dtype == torch.float16 or not tensor.is_floating_point(), name
            assert torch.isfinite(tensor.float()).all(), name


def test_its_config_names_no_folder_of_the_machine_it_was_made_on(folder):
    for path in folder.glob("*config.json"):  # the vocabulary has slashes
        assert not re.search(r'"(/|outputs/)', path.read_text(encoding="utf-8")), path.name


def test_the_card_shows_the_recipe_as_the_repository_has_it(folder):
    recipe = to_yaml(read_recipe(ROOT / "configuration" / "recipes" / f"{LAST_RECIPES[folder.name]}.yaml"))
    assert recipe.strip() in (folder / "README.md").read_text(encoding="utf-8")


def test_it_loads_from_a_copy_where_the_package_is_not_installed(folder, tmp_path):
    """A copy has files where the repository has links, as the Hub's client uploads them."""
    shutil.copytree(folder, tmp_path / "copy")
    script = (
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n"
        "model = AutoModelForImageTextToText.from_pretrained('copy', trust_remote_code=True)\n"
        "processor = AutoProcessor.from_pretrained('copy', trust_remote_code=True)\n"
        "print(type(model).__module__, type(processor).__module__)"
    )
    assert run_without_package(script, tmp_path).count("transformers_modules") == 2
