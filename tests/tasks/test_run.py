"""Names of tasks, their recipes and the table of their figures."""

import argparse
import json
from pathlib import Path

import pytest

from modeling_mm.recipes import read_recipe
from scripts.tasks import run as task_run
from scripts.tasks.build import RECIPES, task_module, task_names
from scripts.tasks.figures import beside, figure
from scripts.tasks.run import table, table_rows

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", task_names())
def test_a_task_has_a_module_a_recipe_and_a_test_that_belong_together(name):
    module, recipe = task_module(name), read_recipe(RECIPES / f"tasks-{name}.yaml")
    assert recipe.labels == list(getattr(module, "LABELS", []))
    files = [source.source for source in recipe.data.train]
    files += [source.source for sources in recipe.data.test.values() for source in sources]
    assert all(Path(file).parent.as_posix() == f"outputs/tasks/{name}" for file in files)
    assert {dataset for dataset, _ in module.REACH} <= {*recipe.data.test, *getattr(module, "MEASURED", ())}
    assert (ROOT / f"tests/tasks/test_{name.replace('-', '_')}.py").is_file()


def test_what_a_recipe_starts_from_is_trained_first(monkeypatch, tmp_path):
    words, paths = [], {"corpora": tmp_path, "packages": tmp_path, "folder": tmp_path}
    monkeypatch.setattr(task_run, "build", lambda *given: {"train": 1})
    monkeypatch.setattr(task_run, "command", lambda *given: words.append(given))
    monkeypatch.setattr(task_module("translation"), "measure", lambda model, sources: [])
    task_run.run("translation", argparse.Namespace(measure=False, **paths))
    first, trained, evaluated = words
    assert first == ("train", "translation-texts", "training.output_dir=outputs/translation-texts", "overwrite=true")
    assert trained[1:3] == ("tasks-translation", "training.output_dir=outputs/tasks-translation")
    assert evaluated[:3] == ("evaluate", "tasks-translation", "outputs/tasks-translation")
    assert read_recipe(RECIPES / "tasks-translation.yaml").model.pretrained == "outputs/translation-texts"
    words.clear()
    task_run.run("translation", argparse.Namespace(measure=True, **paths))
    assert [each[0] for each in words] == ["evaluate"]


def test_an_unknown_task_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"Unknown task 'catgory'; known are .*category"):
        task_module("catgory")


def test_the_table_shows_the_figures_that_are_to_be_reached(tmp_path):
    shown = {"dataset": "unseen", "metric": "accuracy", "model": 0.75, "majority": 0.25, "samples": 8}
    figures = [shown | {"text_only": 0.5}, shown | {"metric": "f1", "text_only": None}]
    (tmp_path / "figures.json").write_text(json.dumps(figures))
    (tmp_path / "further.json").write_text(
        json.dumps([beside("unseen", "accuracy", "nearest", 0.625), figure("unknown", "eer", 0.05, 9)])
    )
    reach = {("unseen", "accuracy"): "0.7", ("unseen", "f1"): "", ("unknown", "eer"): "0.1"}
    assert table_rows("name", tmp_path, reach) == [
        ("name", "unseen", "accuracy", "8", "0.750", "0.250", "0.500", "0.625 nearest", "0.7"),
        ("name", "unseen", "f1", "8", "0.750", "0.250", "", "", ""),
        ("name", "unknown", "eer", "9", "0.050", "", "", "", "0.1"),
    ]
    assert table_rows("name", tmp_path / "nothing", reach) == []
    assert table(["category"], tmp_path).startswith("| task | test set | metric |")


def test_the_table_shows_sides_that_find_each_other_and_rows_that_a_task_measures(tmp_path):
    figures = {"recall_at_1": 0.5, "map": 0.625}
    sides = {"dataset": "unseen", "query": "text", "item": "image", "rows": 40, "dimensions": 8, "chance": 0.025}
    (tmp_path / "figures.json").write_text(json.dumps([{**sides, "figures": figures}]))
    measured = {"dataset": "unseen", "metric": "hit@10", "model": 0.75, "majority": 0.125, "text_only": 0.25}
    baseline = {"dataset": "unseen", "metric": "text_to_image_recall_at_1", "name": "CCA", "value": 0.375}
    (tmp_path / "further.json").write_text(json.dumps([{**measured, "samples": 9}, baseline]))
    names = ("text_to_image_recall_at_1", "text_to_image_map", "hit@10")
    assert table_rows("name", tmp_path, {("unseen", name): "" for name in names}) == [
        ("name", "unseen", names[0], "40", "0.500", "0.025", "", "0.375 CCA", ""),
        ("name", "unseen", names[1], "40", "0.625", "", "", "", ""),
        ("name", "unseen", names[2], "9", "0.750", "0.125", "0.250", "", ""),
    ]
