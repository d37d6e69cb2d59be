# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Hyperparameter search over a recipe, by Optuna through `Trainer.hyperparameter_search`.

The folder `search` in the recipe's output folder holds the study, so that a search that was interrupted goes on; and
in the end `trials.json` and `trials.csv`, `search.png`, and `best.yaml`, the recipe with the best values in it. Trials
leave no checkpoints: train by `best.yaml` for the model.
"""

import itertools
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from ..utils.validation import build
from ..utils.yaml_values import parse_yaml, replace_value
from .build import load_data, make_model, make_processor
from .run import RECIPE_FILE, changed_keys, make_trainer, write_text
from .schema import Recipe, to_yaml
from .search_report import write_report
from .search_space import check_space, grid_of, suggest

if TYPE_CHECKING:
    import optuna

STUDY_FILE, STUDY_NAME = "study.db", "search"
REPEATED = "repeated"  # the study's attribute with the numbers of trials that were queued again


def search(recipe: Recipe, trials: int) -> dict[str, Any] | None:
    """
    Tries values of the recipe's `search.space` until `trials` trials have been made, those of earlier calls included.

    Returns:
        the best values by key, on the main process; None on others.

    Raises:
        ValueError: where the recipe has nothing to search or to compare by, and where the folder holds the search of
            another recipe.
        ImportError: where Optuna is not installed.
    """
    check_searchable(recipe, trials)
    recipe.training_arguments()  # they say on which devices the processes are, and must be made before these meet
    folder = Path(recipe.training["output_dir"]) / "search"
    open_folder(folder, recipe)
    study = open_study(folder, recipe) if PartialState().is_main_process else None
    todo = [None if study is None else trials_to_go(study, recipe, trials)]
    broadcast_object_list(todo)
    if todo[0] > 0:
        run_trials(recipe, folder, todo[0], study)
    if study is None:
        return None
    return write_report(folder, study, recipe)


def check_searchable(recipe: Recipe, trials: int) -> None:
    if recipe.search is None:
        raise ValueError("The recipe has no section `search`; it says in its `space` which values are tried.")
    if not recipe.evaluates:
        raise ValueError("A search compares by evaluation: give `data.evaluation` and an `eval_strategy`.")
    if recipe.alignment is not None:
        raise ValueError("A search does not align its models: align one, and search from it (`model.pretrained`).")
    if trials < 1:
        raise ValueError(f"--search: expected at least 1 trial, got {trials}.")
    for values in check_space(recipe.search):
        with_values(recipe, values)


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """
    The recipe with other values under dotted keys.

    Raises:
        ValueError: for keys that there are none of, and values of another type.
    """
    plain: Any = recipe.to_dict()
    for key, value in values.items():
        plain = replace_value(plain, key, value)
    return build(Recipe, plain)


# ---- The study ------------------------------------------------------------------------------------------------------


def open_folder(folder: Path, recipe: Recipe) -> None:
    """
    Raises:
        ValueError: where the folder holds the search of another recipe.
    """
    started = folder / RECIPE_FILE
    if started.is_file() and not recipe.overwrite:
        before, after = parse_yaml(started.read_text(encoding="utf-8"), str(started)), recipe.to_dict()
        changed = changed_keys(before, after) + ["search"] * (before.get("search") != after.get("search"))
        if changed:
            raise ValueError(
                f"{folder} holds a search by another recipe; it differs in {', '.join(changed)}. To go on with it, "
                "give the recipe as it was. Set overwrite=true to start anew, or give another training.output_dir."
            )
    PartialState().wait_for_everyone()  # all processes have looked before one of them writes
    if PartialState().is_main_process:
        if recipe.overwrite and started.is_file():
            shutil.rmtree(folder)
        write_text(started, to_yaml(recipe))
    PartialState().wait_for_everyone()


def study_options(folder: Path, recipe: Recipe, made: int) -> dict[str, Any]:
    """
    How Optuna makes the study, or opens it again.

    Args:
        made: the trials that there are already; a sampler that goes on must not draw what it drew at first
    """
    import optuna

    seed = recipe.training_arguments().seed + made
    samplers = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
        "grid": lambda: optuna.samplers.GridSampler(grid_of(recipe.search), seed=seed),
    }
    return {
        "storage": f"sqlite:///{folder / STUDY_FILE}",
        "study_name": STUDY_NAME,
        "load_if_exists": True,
        "sampler": samplers[recipe.search.method](),
        # Trials are compared by their best evaluation, and short ones look bad early on.
        "pruner": optuna.pruners.NopPruner(),
    }


def open_study(folder: Path, recipe: Recipe) -> "optuna.Study":
    """The study; trials that were interrupted are queued to be made again."""
    import optuna
    from optuna.trial import TrialState

    study = optuna.create_study(direction=recipe.search.direction, **study_options(folder, recipe, 0))
    repeated = list(study.user_attrs.get(REPEATED, []))
    for trial in study.get_trials(deepcopy=False):
        if trial.state == TrialState.RUNNING:
            study.tell(trial.number, state=TrialState.FAIL)
        if trial.state in (TrialState.RUNNING, TrialState.FAIL) and trial.number not in repeated:
            study.enqueue_trial(trial.params)
            repeated.append(trial.number)
    study.set_user_attr(REPEATED, repeated)
    return study


def trials_to_go(study: "optuna.Study", recipe: Recipe, trials: int) -> int:
    """How many trials are still to be made; a grid has no more than its combinations."""
    if recipe.search.method == "grid":
        trials = min(trials, len(list(itertools.product(*grid_of(recipe.search).values()))))
    return max(0, trials - len(completed(study)))


def completed(study: "optuna.Study") -> list["optuna.trial.FrozenTrial"]:
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


# ---- Trials ---------------------------------------------------------------------------------------------------------


class BestSoFar:
    """What a trial is compared by: the best of its evaluations, as a run keeps its best state."""

    def __init__(self, metric: str, direction: str):
        self.metric, self.better = metric, min if direction == "minimize" else max
        self.best: float | None = None

    def __call__(self, metrics: Mapping[str, float]) -> float:
        if self.metric not in metrics:
            raise ValueError(f"search.metric: evaluation gives no {self.metric!r}, only {', '.join(metrics)}.")
        value = metrics[self.metric]
        self.best = value if self.best is None else self.better(value, self.best)
        return self.best


def run_trials(recipe: Recipe, folder: Path, trials: int, study: Any) -> None:
    """Trains once for each trial, by every process together."""
    of_trials = {"output_dir": str(folder / "trials"), "save_strategy": "no", "load_best_model_at_end": False}
    arguments = replace(recipe, training=recipe.training | of_trials).training_arguments()
    processor, data = make_processor(recipe.model), load_data(recipe)
    objective = BestSoFar(recipe.search.metric, recipe.search.direction)

    def model_init(trial: Any):
        objective.best = None
        # Asked for here, as the Trainer makes the model before it asks for the space; the answer stays the same.
        chosen = recipe if trial is None else with_values(recipe, suggest(trial, recipe.search))
        return make_model(chosen, processor, chosen.training.get("seed", arguments.seed))

    def hp_space(trial: Any) -> dict[str, Any]:
        values = suggest(trial, recipe.search)
        prefix = "training."
        return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}

    trainer = make_trainer(recipe, arguments, processor, data, model_init=model_init)
    trainer.hyperparameter_search(
        hp_space=hp_space,
        compute_objective=objective,
        n_trials=trials,
        direction=recipe.search.direction,
        backend="optuna",
        **({} if study is None else study_options(folder, recipe, len(study.get_trials(deepcopy=False)))),
    )
