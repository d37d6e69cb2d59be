"""Hyperparameter search: by grid, random and TPE; it goes on, and ends with a table, a plot and the best recipe."""

import csv
import importlib
import json
from dataclasses import replace

import pytest
from PIL import Image

from modeling_mm.recipes import Range, read_recipe, search
from tests.fakes.recipe_runs import recipe

searching = importlib.import_module("modeling_mm.recipes.search")  # the face has the function of this name
spaces = importlib.import_module("modeling_mm.recipes.search_space")

RATES = [1e-4, 3e-3]
DECAYS = {"low": 0, "high": 0.2, "step": 0.1}


def searched(folder, space, values=None, **fields):
    return recipe(folder, {"search": {"space": space, **fields}, **(values or {})}, max_steps=2, eval_steps=1)


# ---- The space ------------------------------------------------------------------------------------------------------


def test_a_space_is_lists_and_ranges():
    space = {"training.seed": {"low": 1, "high": 5, "step": 2}, "training.weight_decay": DECAYS, "lora.r": [2, None]}
    found = searched("x", space).search
    assert found.space["training.weight_decay"] == Range(0, 0.2, step=0.1)
    assert spaces.grid_of(found) == {
        "training.seed": [1, 3, 5],
        "training.weight_decay": [0.0, 0.1, 0.2],
        "lora.r": [2, None],
    }


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "search.space: expected at least one key"),
        (
            {"data.clean": [True]},
            "search.space.data.clean: trials only change keys of training, model.config and",
        ),
        ({"training.seed": 3}, "search.space.training.seed: expected a list or a mapping, got 3."),
        ({"training.seed": []}, "expected a list of values"),
        ({"training.seed": [[1]]}, "search.space.training.seed.0: expected a valid string or a valid integer or"),
        (
            {"training.seed": {"low": 1, "hihg": 2}},
            "search.space.training.seed.hihg: unknown key 'hihg'.",
        ),
        ({"training.seed": {"low": 1}}, "`high` is missing"),
        ({"training.seed": {"low": 2, "high": 2}}, "`low` must be below `high`, got 2 and 2"),
        ({"training.seed": {"low": 0, "high": 2, "log": True}}, "with `log`, `low` must be above 0"),
        ({"training.seed": {"low": 1, "high": 2, "log": True, "step": 1}}, "excludes `log`"),
        ({"training.learning_rat": [1.0]}, "Did you mean 'learning_rate'?"),
        ({"training.learning_rate": ["fast"]}, 'training.learning_rate: expected a valid number, got "fast".'),
        ({"lora.rr": [1]}, "lora.rr: unknown key 'rr'."),
    ],
)
def test_a_space_that_is_wrong_is_refused(tmp_path, space, message):
    with pytest.raises(ValueError) as caught:
        search(searched(tmp_path, space), 1)
    assert message in str(caught.value)
    assert not (tmp_path / "search").exists()


def test_a_grid_needs_values_that_can_be_counted(tmp_path):
    with pytest.raises(ValueError, match="a grid needs a list of values, or a range with a `step`"):
        search(searched(tmp_path, {"training.weight_decay": {"low": 0, "high": 0.5}}, method="grid"), 1)


def test_a_search_needs_a_section_evaluation_and_trials(tmp_path):
    found = searched(tmp_path, {"training.seed": [1]})
    with pytest.raises(ValueError, match="no section `search`"):
        search(replace(found, search=None), 1)
    with pytest.raises(ValueError, match="A search compares evaluations"):
        search(replace(found, data=replace(found.data, evaluation=[])), 1)
    with pytest.raises(ValueError, match="at least 1 trial, got 0"):
        search(found, 0)
    with pytest.raises(ValueError, match="evaluation gives no 'eval_los', only eval_loss"):
        search(searched(tmp_path, {"training.seed": [1]}, metric="eval_los"), 1)


def test_a_trial_is_compared_by_its_best_evaluation(tmp_path):
    """With a high learning rate, the two evaluations of a trial differ; which is the best depends on the direction."""
    losses = {}
    for direction in ("minimize", "maximize"):
        section = {"space": {"training.learning_rate": [0.3]}, "direction": direction}
        folder = tmp_path / direction
        search(recipe(folder, {"search": section}, max_steps=2, eval_steps=1), 1)
        losses[direction] = json.loads((folder / "search" / "trials.json").read_text())[0]["eval_loss"]
    assert losses["minimize"] < losses["maximize"] - 1.0


# ---- Searching ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A grid over a learning rate and a depth of the model, asked for more trials than it has."""
    folder = tmp_path_factory.mktemp("grid") / "mine"
    space = {"training.learning_rate": RATES, "model.config.cross_attention_interval": [1, 2]}
    found = searched(folder, space, method="grid")
    return folder / "search", found, search(found, 9)


def test_a_grid_tries_every_combination_once(grid):
    folder, _, best = grid
    rows = json.loads((folder / "trials.json").read_text())
    keys = ("training.learning_rate", "model.config.cross_attention_interval")
    assert sorted(tuple(row[key] for key in keys) for row in rows) == [(r, i) for r in RATES for i in (1, 2)]
    losses = [row["eval_loss"] for row in rows]
    assert losses == sorted(losses) and len(set(losses)) == 4, "the best first, and each key changes something"
    assert best == {key: rows[0][key] for key in keys}
    assert best["training.learning_rate"] == 3e-3


def test_table_plot_and_best_recipe(grid):
    folder, found, best = grid
    with (folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [row["eval_loss"] for row in json.loads((folder / "trials.json").read_text())]
    assert [float(row["eval_loss"]) for row in rows] == losses
    assert Image.open(folder / "search.png").size[0] > 900
    written = read_recipe(folder / "best.yaml")
    assert written.training == found.training | {
        "learning_rate": best["training.learning_rate"],
        "output_dir": found.training["output_dir"] + "/best",
    }
    assert not list(folder.glob("trials/**/*.safetensors"))


def test_a_finished_search_only_reports_again(grid, capsys, monkeypatch):
    _, found, best = grid
    monkeypatch.setattr(searching, "run_trials", lambda *_: pytest.fail("there is nothing left to try"))
    assert search(found, 4) == best
    printed = capsys.readouterr().out
    assert printed.count("│") > 20 and "4 trials by grid" in printed and "best.yaml" in printed


def test_another_recipe_does_not_go_on_with_a_search(grid):
    _, found, _ = grid
    other = replace(found, search=replace(found.search, method="random"))
    with pytest.raises(ValueError, match="holds a search of another recipe, which differs in search"):
        search(other, 9)
    with pytest.raises(ValueError, match=r"differs in training.seed"):
        search(searching.with_values(found, {"training.seed": 3}), 9)


@pytest.mark.parametrize("method", ["tpe", pytest.param("random", marks=pytest.mark.slow)])
def test_a_search_that_was_interrupted_goes_on(tmp_path, monkeypatch, method):
    """The trial that was cut off is made again with its values, and the sampler does not start over."""
    found = searched(tmp_path, {"training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}, method=method)
    make_model, made = searching.make_model, []

    def cut_off(*arguments):
        made.append(arguments)
        if len(made) == 4:  # one for the trainer itself, then one a trial
            raise KeyboardInterrupt
        return make_model(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(searching, "make_model", cut_off)
        with pytest.raises(KeyboardInterrupt):
            search(found, 4)
    assert not (tmp_path / "search" / "trials.json").exists()
    interrupted = made[3][0].training["learning_rate"]
    search(found, 4)
    rates = [row["training.learning_rate"] for row in json.loads((tmp_path / "search" / "trials.json").read_text())]
    assert len(rates) == len(set(rates)) == 4
    assert interrupted in rates
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)


@pytest.mark.slow
def test_a_search_is_started_anew_when_it_is_to_be_overwritten(tmp_path):
    found = searched(tmp_path, {"training.seed": [1, 2, 3]}, metric="eval_exact_match", direction="maximize")
    values = {"training.predict_with_generate": True, "training.generation_max_new_tokens": 2}
    found = searching.with_values(found, values)
    search(found, 1)
    search(replace(found, overwrite=True, search=replace(found.search, space={"training.seed": [7]})), 1)
    assert [row["training.seed"] for row in json.loads((tmp_path / "search" / "trials.json").read_text())] == [7]


def test_a_trial_that_diverges_fails_and_the_search_goes_on(tmp_path):
    space = {"training.learning_rate": [1e30, 1e-3]}
    found = searched(tmp_path, space, {"training.lr_scheduler_type": "constant"}, method="grid")
    assert search(found, 2) == {"training.learning_rate": 1e-3}
    rows = json.loads((tmp_path / "search" / "trials.json").read_text())
    assert [row["training.learning_rate"] for row in rows] == [1e-3]
