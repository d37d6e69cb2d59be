"""Gain of few labels by pre-training: the runs of each seed, kept ones, and the table."""

import json
from pathlib import Path

import pytest

from modeling_mm.recipes import RECIPE_FILE, RESULT_FILE, Recipe, to_yaml
from scripts.workshop import few_labels_runs as runs

RECIPES = Path("configuration/recipes")
ACCURACIES = {"pretraining": 0.0, "with": 0.7, "without": 0.5}


def fake_run(followed: list[str]):
    """Return a `run` that writes what a real one leaves, with an accuracy by arm and seed."""

    def run(recipe: Recipe) -> dict:
        folder, (arm, seed) = recipe.output_dir, recipe.output_dir.name.rsplit("-", 1)
        followed.append(folder.name)
        sets = {name: {"samples": 8, "accuracy": ACCURACIES[arm] + 0.1 * int(seed)} for name in recipe.data.test}
        folder.mkdir(parents=True)
        (folder / RECIPE_FILE).write_text(to_yaml(recipe))
        (folder / RESULT_FILE).write_text(json.dumps({"figures": sets}))
        return {"figures": sets}

    return run


def test_both_classifiers_differ_in_nothing_but_the_model_they_begin_with(tmp_path):
    found = runs.recipes_of(RECIPES, tmp_path, 4)
    pretraining, *classifiers = found.values()
    assert pretraining.objective == "pretraining" and pretraining.training["seed"] == 4
    plain = [recipe.to_dict() for recipe in classifiers]
    assert [each["model"].pop("pretrained") for each in plain] == [str(pretraining.output_dir), "outputs/base"]
    assert [Path(each["training"].pop("output_dir")).name for each in plain] == ["with-4", "without-4"]
    assert plain[0] == plain[1] and plain[0]["training"]["seed"] == 4
    assert plain[0]["data"]["train"][0]["per_answer"] == 8
    cached = ("encoder_cache", "augmentation", "image_views")
    assert {key: plain[0]["data"][key] for key in cached} == {
        key: pretraining.to_dict()["data"][key] for key in cached
    }


def test_every_seed_is_followed_once_and_the_table_has_its_accuracies(tmp_path, monkeypatch):
    followed: list[str] = []
    monkeypatch.setattr(runs, "run", fake_run(followed))
    table = runs.compare(RECIPES, tmp_path, [1, 2])
    assert followed == ["pretraining-1", "with-1", "without-1", "pretraining-2", "with-2", "without-2"]
    header, _, *rows = table.splitlines()
    assert header == "| test set | images | with pre-training | without | gain, points |"
    assert len(rows) == 2
    assert rows[0] == (
        "| unseen concepts | 8 | 85.0 ± 7.1 (80.0, 90.0) | 65.0 ± 7.1 (60.0, 70.0) | 20.0 ± 0.0 (20.0, 20.0) |"
    )
    assert runs.compare(RECIPES, tmp_path, [1, 2]) == table
    assert len(followed) == 6


def test_a_finished_run_of_another_recipe_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "run", fake_run([]))
    runs.compare(RECIPES, tmp_path, [1])
    path = tmp_path / "with-1" / RECIPE_FILE
    path.write_text(path.read_text().replace("per_answer: 8", "per_answer: 9"))
    with pytest.raises(ValueError, match=r"with-1 holds a finished run of another recipe\. Remove it"):
        runs.compare(RECIPES, tmp_path, [1])
