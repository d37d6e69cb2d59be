"""Shipped files are found by name, in a checkout and in an installed package."""

from pathlib import Path

import pytest

from modeling_mm.utils import find_resource, list_resources, resource_or_path, resources

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("kind", "name", "path"),
    [
        ("presets", "tiny", "configuration/presets/tiny.json"),
        ("presets", "tiny.json", "configuration/presets/tiny.json"),
        ("presets", "tiny-processor", "configuration/presets/tiny-processor"),
        ("recipes", "caption-gpt2-siglip", "configuration/recipes/caption-gpt2-siglip.yaml"),
        ("accelerate", "ddp", "configuration/accelerate/ddp.yaml"),
        ("templates", "TEMPLATE.md", "model_cards/TEMPLATE.md"),
    ],
)
def test_a_checkout_has_its_resources_in_the_top_level_folders(kind, name, path):
    assert find_resource(kind, name) == ROOT / path


def test_an_installed_package_has_its_own_copies(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text("")
    (tmp_path / "recipes" / "README.md").write_text("")
    monkeypatch.setattr(resources, "PACKAGE_DATA", tmp_path)
    assert find_resource("recipes", "mine") == tmp_path / "recipes" / "mine.yaml"
    assert list_resources("recipes") == ["mine"]


def test_a_shipped_name_wins_over_a_folder_and_all_else_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert resource_or_path("presets", "tiny") == str(ROOT / "configuration/presets/tiny.json")
    for other in ("./tiny", "tinny", "me/tiny"):
        assert resource_or_path("presets", other) == other


def test_an_unknown_name_is_refused_with_the_nearest_and_all_others():
    with pytest.raises(FileNotFoundError, match=r"No 'tinny' in presets. Did you mean 'tiny'\? Available: gpt2-large"):
        find_resource("presets", "tinny")
