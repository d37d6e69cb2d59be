# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
From a recipe to a trained folder.

The output folder holds, besides the checkpoints and TensorBoard's files: `recipe.yaml`, what is being followed;
the trained model as it goes to the Hub (weights, config, processor, code, model card); and `run.json`, its figures,
written last, which marks the run as finished.

A folder whose run was interrupted is gone on with from its last checkpoint. One whose run is finished is refused, as
is one in which another recipe was followed, unless the recipe says `overwrite: true`, which starts anew.
"""

import json
import os
import platform
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from accelerate.utils import DistributedType
from transformers import EarlyStoppingCallback, PreTrainedModel, TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled

from ..data.reading import ChatDataset
from ..hub.card import write_card
from ..processing_mm import MMProcessor
from ..training.alignment import AlignmentOptions, NamedMedium, align, named_media
from ..training.arguments import MMTrainingArguments
from ..training.callbacks import SPEED, LossProgressCallback, ThawCallback, TimerCallback
from ..training.checkpoints import last_whole_checkpoint
from ..training.collators import accuracy
from ..training.trainer import MMTrainer
from ..utils.files import write_text
from ..utils.tables import format_table
from ..utils.yaml_values import parse_yaml
from .build import RecipeData, load_data, make_collator, make_model, make_processor, mixture, rows_of
from .card_content import card_content
from .schema import Recipe, to_yaml

RECIPE_FILE = "recipe.yaml"
RESULT_FILE = "run.json"
ADAPTER_FOLDER = "adapter"


def run(recipe: Recipe) -> dict[str, Any]:
    """
    Follows a recipe to its end.

    Returns:
        what `run.json` holds: `figures` (for each test set its metrics), `seconds` of training, `steps`, `epochs`,
        `best` (the metric of the best state, if that was kept), `processes`, `device`, `versions`.

    Raises:
        ValueError: where the output folder must not be written to, and for all that is wrong in recipe and data.
    """
    arguments = recipe.training_arguments()
    checkpoint = open_folder(recipe, arguments)
    processor = make_processor(recipe.model)
    data = load_data(recipe)
    model = make_model(recipe, processor, arguments.seed)
    trainer = make_trainer(recipe, arguments, processor, data, model)
    trainer.add_callback(TimerCallback())
    if recipe.alignment is not None and checkpoint is None:
        align_model(recipe.alignment, arguments, processor, data, trainer)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.remove_callback(EarlyStoppingCallback)  # what is measured now decides nothing
    figures = measure(trainer, data)
    result = {
        "figures": figures,
        "seconds": round(elapsed(trainer), 1),
        "steps": trainer.state.global_step,
        "epochs": round(trainer.state.epoch or 0.0, 3),
        "best": trainer.state.best_metric if arguments.load_best_model_at_end else None,
        "processes": arguments.world_size,
        "device": device_name(arguments),
        "versions": versions(),
    }
    save(trainer, recipe, processor, result)
    return result


def make_trainer(
    recipe: Recipe,
    arguments: MMTrainingArguments,
    processor: MMProcessor,
    data: RecipeData,
    model: PreTrainedModel | None = None,
    model_init: Callable[..., PreTrainedModel] | None = None,
) -> MMTrainer:
    """A trainer with the recipe's data and callbacks, for a model or for what makes one."""
    check_lora(recipe)
    encodes = model_init(None) if model is None and recipe.data.encoder_cache else model
    collator = make_collator(recipe, processor, data, encodes)
    trainer = MMTrainer(
        model=model,
        model_init=model_init,
        args=arguments,
        processing_class=processor,
        data_collator=collator,
        train_dataset=mixture(recipe.data.train, data.train, arguments.seed),
        eval_dataset=data.evaluation,
        callbacks=callbacks(recipe),
        compute_metrics=accuracy if recipe.objective == "classification" else None,
    )
    LossProgressCallback.take_over(trainer)
    return trainer


def align_model(
    options: AlignmentOptions,
    arguments: MMTrainingArguments,
    processor: MMProcessor,
    data: RecipeData,
    trainer: MMTrainer,
) -> None:
    """The stage before training, on the trainer's model and with its collator."""

    def named(datasets: list[ChatDataset], kind: str) -> list[NamedMedium]:
        return named_media((row for dataset in datasets for row in rows_of(dataset)), kind, processor.tokenizer)

    losses = align(
        trainer.model,
        trainer.data_collator,
        {kind: named(datasets, kind) for kind, datasets in data.alignment.items()},
        options,
        arguments.seed,
        torch.bfloat16 if arguments.bf16 else torch.float32,
    )
    if PartialState().is_main_process:
        print("aligned: " + ", ".join(f"{name} {value:.3f}" for name, value in losses.items()))


def callbacks(recipe: Recipe) -> list[TrainerCallback]:
    found: list[TrainerCallback] = []
    steps = {part: step for part, step in recipe.frozen.items() if step != "always"}
    if steps:
        found.append(ThawCallback(steps))
    if recipe.early_stopping is not None:
        found.append(EarlyStoppingCallback(recipe.early_stopping.patience, recipe.early_stopping.threshold))
    return found


def elapsed(trainer: MMTrainer) -> float:
    """The trainer's own stopwatch, which on resuming is another than the one that was given to it."""
    return sum(
        callback.seconds for callback in trainer.callback_handler.callbacks if isinstance(callback, TimerCallback)
    )


# ---- The output folder ----------------------------------------------------------------------------------------------


def open_folder(recipe: Recipe, arguments: MMTrainingArguments) -> str | None:
    """
    Prepares the output folder.

    Returns:
        the checkpoint to go on from, or None for a fresh start.

    Raises:
        ValueError: where the folder holds a finished run, a run of another recipe, or what no run has made.
    """
    folder = Path(arguments.output_dir)
    if not recipe.overwrite:
        check_folder(folder, recipe)
    PartialState().wait_for_everyone()  # all processes have looked before one of them writes
    if PartialState().is_main_process:
        if recipe.overwrite:
            clear_folder(folder)
        write_text(folder / RECIPE_FILE, to_yaml(recipe))
    PartialState().wait_for_everyone()
    return arguments.resume_from_checkpoint or last_whole_checkpoint(folder)


def check_folder(folder: Path, recipe: Recipe) -> None:
    started, finished = folder / RECIPE_FILE, folder / RESULT_FILE
    anew = "Set overwrite=true to start anew in it, or give another training.output_dir."
    if finished.is_file():
        raise ValueError(f"{folder} holds a run that is finished. {anew}")
    if not started.is_file():
        strangers = [name for name in ("config.json", "README.md", "model.safetensors") if (folder / name).exists()]
        if strangers:
            raise ValueError(f"{folder} holds {', '.join(strangers)} that no run has written there. {anew}")
        return
    before = parse_yaml(started.read_text(encoding="utf-8"), str(started))
    changed = changed_keys(before, recipe.to_dict())
    if changed:
        raise ValueError(
            f"{folder} holds an unfinished run of another recipe; it differs in {', '.join(changed)}. To go on with "
            f"it, give the recipe as it was. {anew}"
        )


# How long and how often, and where: what may change when a run goes on.
MAY_CHANGE = {
    *("training.num_train_epochs", "training.max_steps", "training.logging_steps", "training.save_total_limit"),
    *("training.output_dir", "training.per_device_eval_batch_size", "training.report_to", "training.use_cpu"),
    *("training.dataloader_num_workers", "training.resume_from_checkpoint", "training.disable_tqdm"),
    *("card", "search", "overwrite"),
}


def changed_keys(before: Any, after: Any, where: str = "") -> list[str]:
    """The dotted keys in which two recipes differ so that one cannot go on with the other's checkpoint."""
    if where in MAY_CHANGE or before == after:
        return []
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        names = [*before, *(name for name in after if name not in before)]
        return [
            key
            for name in names
            for key in changed_keys(before.get(name), after.get(name), f"{where}.{name}" if where else str(name))
        ]
    return [where]


def clear_folder(folder: Path) -> None:
    """Removes what a run writes, and nothing else: checkpoints, TensorBoard's files, and the marks of a run."""
    for path in [*folder.glob("checkpoint-*"), folder / "runs", folder / ADAPTER_FOLDER]:
        if path.is_dir():
            shutil.rmtree(path)
    for name in (RESULT_FILE, RECIPE_FILE):
        (folder / name).unlink(missing_ok=True)


# ---- The end --------------------------------------------------------------------------------------------------------


def measure(trainer: MMTrainer, data: RecipeData) -> dict[str, dict[str, float]]:
    """The figures of the test sets, or of the evaluation set where there are none, by name."""
    sets = data.test
    if not sets and data.evaluation is not None:
        sets = {"evaluation": data.evaluation}
    return {name: measure_one(trainer, name, dataset) for name, dataset in sets.items()}


def measure_one(trainer: MMTrainer, name: str, dataset: ChatDataset) -> dict[str, float]:
    metrics = trainer.evaluate(dataset, metric_key_prefix=name)
    figures = {
        key.removeprefix(f"{name}_"): value
        for key, value in metrics.items()
        if key.startswith(f"{name}_") and not key.endswith(SPEED)
    }
    return {"samples": len(dataset), **figures}


def check_lora(recipe: Recipe) -> None:
    """
    Raises:
        ValueError: where the weights are spread over processes, so that no one of them could merge the adapter.
    """
    spread = PartialState().distributed_type
    if recipe.lora is not None and (spread == DistributedType.FSDP or is_deepspeed_zero3_enabled()):
        raise ValueError(
            "lora: the trained model is saved with its adapter merged into it, which weights that are spread over "
            "processes do not allow. Use configuration/accelerate/ddp.yaml: with LoRA only the adapter has gradients "
            "anyway."
        )


def save(trainer: MMTrainer, recipe: Recipe, processor: MMProcessor, result: dict[str, Any]) -> None:
    """The trained folder as it goes to the Hub; `run.json` last."""
    folder = Path(trainer.args.output_dir)
    if recipe.lora is None:
        trainer.save_model(str(folder))  # by every process: the weights may be spread over them
        model = trainer.accelerator.unwrap_model(trainer.model)
    else:
        trainer.save_model(str(folder / ADAPTER_FOLDER))
        model = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
        if trainer.args.should_save:
            model.save_pretrained(folder)
    if not trainer.args.should_save:
        return
    processor.save_pretrained(folder)
    (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle, which nobody should have to load
    write_card(folder, card_content(recipe, model, result))
    write_text(folder / RESULT_FILE, json.dumps(result, indent=2, ensure_ascii=False) + "\n")


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def device_name(arguments: MMTrainingArguments) -> str:
    if arguments.device.type == "cuda":
        return torch.cuda.get_device_name(arguments.device)
    return f"{arguments.device.type}, {os.cpu_count()} cores"


def report(result: dict[str, Any], recipe: Recipe) -> None:
    """Prints the figures of a run."""
    if PartialState().is_main_process:
        print(figures_table(result["figures"]))
        print(f"{result['steps']} steps in {result['seconds']:.0f} s. Saved to {recipe.training['output_dir']}.")


def figures_table(figures: dict[str, dict[str, float]]) -> str:
    """Sets, metrics and values as a table."""
    rows = [
        (name, metric, f"{value:.4f}" if isinstance(value, float) else value)
        for name, metrics in figures.items()
        for metric, value in metrics.items()
    ]
    return format_table(("set", "metric", "value"), rows, right=(2,))
