"""cli/recipe.py: recipes are checked without torch, and with the words of the full schema."""

import pytest

from modeling_mm.cli.recipe import recipe_type
from modeling_mm.recipes import read_recipe
from modeling_mm.training import PARTS
from modeling_mm.utils import build, find_resource, list_resources, read_values


def test_every_shipped_recipe_has_the_declared_type():
    for name in list_resources("recipes"):
        build(recipe_type(), read_values(find_resource("recipes", name)))


@pytest.mark.parametrize(
    "override",
    [
        "trainin.seed=1",
        "training.sed=1",
        "training.seed=one",
        "training.report_to=3",
        "training.save_strategy=never",
        "model.txt=a",
        "model.config.text_config.n_layr=2",
        "data.train=[]x",
        "data.train.0.weight=-1",
        "data.train.0={}",
        "data.modality_dropout.unchanged_tasks=[1]",
        "objective=classify",
        "frozen.texts=always",
        "frozen.text=never",
        "lora.train=[1]",
        "alignment={}",
        "search.space={training.learning_rate: {low: a, high: 2}}",
        "early_stopping.patience=1.5",
        "card.languages=en",
        "overwrite=1",
    ],
)
def test_both_say_the_same_of_a_slip(override):
    path = find_resource("recipes", "tiny-sample")
    with pytest.raises(ValueError) as early:
        build(recipe_type(), read_values(path, [override]))
    with pytest.raises(ValueError) as late:
        read_recipe(path, [override])
    assert str(early.value) == str(late.value)


def test_the_parts_that_can_be_frozen_are_those_of_training():
    frozen = recipe_type().__annotations__["frozen"]
    assert set(frozen.__args__[0].__args__) == set(PARTS)
