"""1-NN on the states of the frozen encoder, and scores of a trained classifier."""

import json

import numpy as np
import pytest
import soundfile

from modeling_mm.recipes import read_recipe, run
from scripts.tasks import figures
from scripts.tasks.figures import ScoredTask, nearest_labels, nearest_neighbor
from tests.fakes.recipe_runs import recipe


def test_the_nearest_is_found_by_its_direction_from_the_mean():
    known = np.array([[10.0, 1.0], [10.0, -1.0], [10.0, -3.0]])
    assert nearest_labels(known, ["a", "b", "c"], np.array([[10.0, 9.0], [10.0, -9.0]])) == ["a", "c"]
    known = np.array([[1.0, 0.0], [3.0, 3.0]])  # the direction from zero would say b
    assert nearest_labels(known, ["a", "b"], np.array([[1.2, 1.2]])) == ["a"]


def test_a_row_at_the_mean_is_no_division_by_zero():
    known = np.array([[1.0, 0.0], [-1.0, 0.0]])
    assert nearest_labels(known, ["a", "b"], np.zeros((1, 2))) == ["a"]


@pytest.fixture
def task(tmp_path, monkeypatch):
    """A trained classifier of four sounds, two of each class."""
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        lines = []
        for number in range(4):
            tone = np.sin(np.arange(8000) * (0.1 if number % 2 else 0.9)) / 2 + generator.normal(0, 0.01, 8000)
            soundfile.write(tmp_path / f"{split}{number}.wav", tone, 16_000)
            part = {"type": "audio", "path": f"{split}{number}.wav"}
            turns = [{"role": "user", "content": [part]}, {"role": "assistant", "content": "ab"[number % 2]}]
            lines.append(json.dumps({"messages": turns, "task": "tone"}))
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    values = {"objective": "classification", "labels": ["a", "b"], "frozen": {"audio": "always", "vision": "always"}}
    values |= {"data.train": [{"source": str(tmp_path / "train.jsonl")}], "data.evaluation": []}
    values |= {"data.encoder_cache": str(tmp_path / "cache")}
    found = recipe(tmp_path / "model", values, max_steps=1, eval_strategy="no", per_device_train_batch_size=4)
    run(found)
    scored = object.__new__(ScoredTask)
    scored.recipe, scored.folder, scored.path = found, tmp_path, tmp_path / "model"
    return scored


def test_the_scores_and_the_features_are_those_of_the_trained_model(task):
    scores = task.scores("test")
    assert scores.shape == (4, 2) and scores.sum(-1) == pytest.approx(np.ones(4))
    features, answers = task.features("train")
    assert answers == ["a", "b", "a", "b"] and features.shape[0] == 4
    found = nearest_neighbor(task, "train", "test", "unseen")
    assert found == figures.beside("unseen", "accuracy", "1-NN on the frozen encoder", 1.0)


def test_a_task_reads_the_recipe_of_its_name(tmp_path):
    task = ScoredTask("tasks-category", tmp_path, tmp_path)
    assert task.recipe == read_recipe("configuration/recipes/tasks-category.yaml")
