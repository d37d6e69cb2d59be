# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Hyperparameter search over a recipe, by Optuna through `Trainer.hyperparameter_search`.

The folder `search` in the output folder holds the study, so that an interrupted search resumes, and at the end
`trials.json`, `trials.csv`, `search.png`, and `best.yaml`, the recipe with the best values. Trials leave no
checkpoints: train `best.yaml` to get the model.
"""

import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from ..training.trainer import MMTrainer
from .build import load_data, make_model, make_processor
from .run import make_trainer, write_recipe
from .schema import Recipe, Search
from .search_report import write_report
from .search_space import check_space, grid_of, suggest, with_values

if TYPE_CHECKING:
    import optuna

logger = logging.get_logger(__name__)

REPEATED = "repeated"  # attribute of the study: numbers of the trials that were queued again


def search(recipe: Recipe, trials: int) -> dict[str, Any] | None:
    """
    Try values of the recipe's `search.space` until there are `trials` trials, with those of earlier calls.

    Returns:
        the best values by key, in the main process; None in others.

    Raises:
        ValueError: if the recipe has no search or no evaluation, or the folder holds the search of another recipe.
        ImportError: if Optuna is not installed.
    """
    section = check_searchable(recipe, trials)
    recipe.training_arguments()  # they set up the devices, before the processes communicate
    folder = recipe.output_dir / "search"
    write_recipe(folder, recipe, "a search", partial(shutil.rmtree, ignore_errors=True), keys=("search",))
    study = open_study(folder, recipe, section) if PartialState().is_main_process else None
    to_run = [0 if study is None else trials_to_run(study, section, trials)]
    broadcast_object_list(to_run)
    if to_run[0] > 0:
        run_trials(recipe, section, folder, to_run[0], study)
    return None if study is None else write_report(folder, study, recipe, section)


def check_searchable(recipe: Recipe, trials: int) -> Search:
    if recipe.search is None:
        raise ValueError("The recipe has no section `search`. Its `space` says which values are tried.")
    if not recipe.evaluates:
        raise ValueError("A search compares evaluations. Give `data.evaluation` and an `eval_strategy`.")
    if recipe.alignment is not None:
        raise ValueError("A search cannot align models. Align one first and search from it (`model.pretrained`).")
    if trials < 1:
        raise ValueError(f"--search: expected at least 1 trial, got {trials}.")
    check_space(recipe, recipe.search)
    return recipe.search


# ---- The study ------------------------------------------------------------------------------------------------------


def study_options(folder: Path, recipe: Recipe, section: Search, made: int) -> dict[str, Any]:
    """Return arguments of Optuna that create or open the study, in which `made` trials exist."""
    import optuna

    seed = recipe.training_arguments().seed + made  # a resumed sampler must not repeat its draws
    if section.method == "grid":
        sampler: optuna.samplers.BaseSampler = optuna.samplers.GridSampler(grid_of(section), seed=seed)
    else:
        samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
        sampler = samplers[section.method](seed=seed)
    # No pruner: trials are compared by their best evaluation, and short ones look bad early on.
    study = {"storage": f"sqlite:///{folder / 'study.db'}", "study_name": "search", "load_if_exists": True}
    return {**study, "sampler": sampler, "pruner": optuna.pruners.NopPruner()}


def open_study(folder: Path, recipe: Recipe, section: Search) -> "optuna.Study":
    """Create or open the study, and queue interrupted trials again."""
    import optuna
    from optuna.trial import TrialState

    study = optuna.create_study(direction=section.direction, **study_options(folder, recipe, section, 0))
    repeated = list(study.user_attrs.get(REPEATED, []))
    for trial in study.get_trials(deepcopy=False):
        if trial.state == TrialState.RUNNING:
            study.tell(trial.number, state=TrialState.FAIL)
        if trial.state in (TrialState.RUNNING, TrialState.FAIL) and trial.number not in repeated:
            study.enqueue_trial(trial.params)
            repeated.append(trial.number)
    study.set_user_attr(REPEATED, repeated)
    return study


def trials_to_run(study: "optuna.Study", section: Search, trials: int) -> int:
    """Return the number of missing trials; a grid has as many as it has combinations at most."""
    from optuna.trial import TrialState

    if section.method == "grid":
        trials = min(trials, math.prod(len(values) for values in grid_of(section).values()))
    return max(0, trials - len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))))


class TrialTrainer(MMTrainer):
    """Trainer of a search, which goes on when a trial diverges."""

    objective: float | None

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as usual; a trial that diverges fails in Optuna, which only the main process asks."""
        try:
            return super().train(*args, **kwargs)
        except FloatingPointError as error:
            logger.warning(f"A trial has failed. {error}")
            if self.is_world_process_zero():
                raise
            self.objective = math.nan
            return TrainOutput(self.state.global_step, math.nan, {})


# ---- Trials ---------------------------------------------------------------------------------------------------------


def run_trials(recipe: Recipe, section: Search, folder: Path, trials: int, study: "optuna.Study | None") -> None:
    """Train once for each trial, in all processes together."""
    overrides = {"output_dir": str(folder / "trials"), "save_strategy": "no", "load_best_model_at_end": False}
    arguments = replace(recipe, training=recipe.training | overrides).training_arguments()
    processor, data = make_processor(recipe.model), load_data(recipe)
    values: list[float] = []  # of the current trial

    def objective(metrics: Mapping[str, float]) -> float:
        """Return the best evaluation so far, as a run keeps its best state."""
        if section.metric not in metrics:
            raise ValueError(f"search.metric: evaluation gives no {section.metric!r}, only {', '.join(metrics)}.")
        values.append(metrics[section.metric])
        return (min if section.direction == "minimize" else max)(values)

    def model_init(trial: Any) -> PreTrainedModel:
        values.clear()
        # `Trainer` makes the model before it asks for the space; a trial repeats its answers.
        chosen = recipe if trial is None else with_values(recipe, suggest(trial, section))
        return make_model(chosen, processor, {"seed": arguments.seed, **chosen.training}["seed"])

    def hp_space(trial: "optuna.Trial") -> dict[str, Any]:
        chosen = suggest(trial, section).items()
        return {key.removeprefix("training."): value for key, value in chosen if key.startswith("training.")}

    trainer = make_trainer(recipe, arguments, processor, data, model_init=model_init, trainer_class=TrialTrainer)
    made = 0 if study is None else len(study.get_trials(deepcopy=False))
    trainer.hyperparameter_search(
        hp_space=hp_space,
        compute_objective=objective,
        n_trials=trials,
        direction=section.direction,
        backend="optuna",
        catch=(FloatingPointError,),
        **({} if study is None else study_options(folder, recipe, section, made)),
    )
