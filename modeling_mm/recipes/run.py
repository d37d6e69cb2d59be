# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
From a recipe to a trained folder.

Besides checkpoints and TensorBoard's files, the output folder holds `recipe.yaml`, the recipe of the run; the trained
model as it goes to the Hub (weights, config, processor, code, model card); and `run.json`, the results, written last.

An interrupted run resumes from its last checkpoint. A folder with a finished run, or with a run of another recipe, is
refused, unless the recipe says `overwrite: true`.
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

from ..hub.card import write_card
from ..processing_mm import MMProcessor
from ..training.alignment import AlignmentOptions, align, named_media
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
OVERWRITE = "Set overwrite=true to replace it, or give another training.output_dir."


Prepare = Callable[[MMTrainer, RecipeData], None]


def run(recipe: Recipe, prepare: Prepare | None = None) -> dict[str, Any]:
    """
    Follow a recipe to its end.

    Args:
        prepare: called with the trainer and the data before anything is learned, to change what a recipe cannot say,
            such as the collator or further training data

    Returns:
        contents of `run.json`: `figures` (metrics of each test set), `seconds` of training, `steps`, `epochs`, `best`
        (metric of the best state, if that was kept), `processes`, `device`, `versions`.

    Raises:
        ValueError: if the output folder holds something else, and for errors in the recipe and the data.
    """
    arguments = recipe.training_arguments()
    checkpoint = open_output(recipe, arguments)
    processor = make_processor(recipe.model)
    data = load_data(recipe)
    model = make_model(recipe, processor, arguments.seed)
    trainer = make_trainer(recipe, arguments, processor, data, model)
    trainer.add_callback(TimerCallback())
    if prepare is not None:
        prepare(trainer, data)
    if recipe.alignment is not None and checkpoint is None:
        align_model(recipe.alignment, arguments, processor, data, trainer)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.remove_callback(EarlyStoppingCallback)  # evaluations from here on must not count
    figures = measure(trainer, data)
    # Resuming replaces the timer that was added above.
    timers = (c for c in trainer.callback_handler.callbacks if isinstance(c, TimerCallback))
    on_gpu = arguments.device.type == "cuda"
    result = {
        "figures": figures,
        "seconds": round(sum(timer.seconds for timer in timers), 1),
        "steps": trainer.state.global_step,
        "epochs": round(trainer.state.epoch or 0.0, 3),
        "best": trainer.state.best_metric if arguments.load_best_model_at_end else None,
        "processes": arguments.world_size,
        "device": torch.cuda.get_device_name() if on_gpu else f"{arguments.device.type}, {os.cpu_count()} cores",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
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
    trainer_class: type[MMTrainer] = MMTrainer,
) -> MMTrainer:
    """Make a trainer with the recipe's data and callbacks, for a model or for a function that makes one."""
    is_sharded = PartialState().distributed_type == DistributedType.FSDP or is_deepspeed_zero3_enabled()
    if recipe.lora is not None and is_sharded:
        raise ValueError(
            "lora: the adapter is merged into the model at the end, but the weights are sharded over processes. Use "
            "configuration/accelerate/ddp.yaml: with LoRA, only the adapter has gradients anyway."
        )
    # The encoder cache needs a separate model if the trainer makes one for each trial.
    encodes = model_init(None) if model_init is not None and recipe.data.encoder_cache else model
    trainer = trainer_class(
        model=model,
        model_init=model_init,
        args=arguments,
        processing_class=processor,
        data_collator=make_collator(recipe, processor, data, encodes),
        train_dataset=mixture(recipe.data.train, data.train, arguments.seed),
        eval_dataset=data.evaluation,
        callbacks=make_callbacks(recipe),
        compute_metrics=accuracy if recipe.objective == "classification" else None,
    )
    LossProgressCallback.take_over(trainer)
    return trainer


def make_callbacks(recipe: Recipe) -> list[TrainerCallback]:
    found: list[TrainerCallback] = []
    steps = {part: step for part, step in recipe.frozen.items() if step != "always"}
    if steps:
        found.append(ThawCallback(steps))
    if recipe.early_stopping is not None:
        found.append(EarlyStoppingCallback(recipe.early_stopping.patience, recipe.early_stopping.threshold))
    return found


def align_model(
    options: AlignmentOptions,
    arguments: MMTrainingArguments,
    processor: MMProcessor,
    data: RecipeData,
    trainer: MMTrainer,
) -> None:
    """Align the trainer's model before training, with the trainer's collator."""
    media = {
        kind: named_media((row for dataset in datasets for row in rows_of(dataset)), kind, processor.tokenizer)
        for kind, datasets in data.alignment.items()
    }
    dtype = torch.bfloat16 if arguments.bf16 else torch.float32
    losses = align(trainer.model, trainer.data_collator, media, options, arguments.seed, dtype)
    if PartialState().is_main_process:
        print("aligned: " + ", ".join(f"{name} {value:.3f}" for name, value in losses.items()))


# ---- The output folder ----------------------------------------------------------------------------------------------


def open_output(recipe: Recipe, arguments: MMTrainingArguments) -> str | None:
    """Prepare the output folder, unless it holds something else, and return the checkpoint to resume from, if any."""
    folder = Path(arguments.output_dir)
    if not recipe.overwrite:
        if (folder / RESULT_FILE).is_file():
            raise ValueError(f"{folder} holds a finished run. {OVERWRITE}")
        foreign = [name for name in ("config.json", "README.md", "model.safetensors") if (folder / name).exists()]
        if foreign and not (folder / RECIPE_FILE).is_file():
            raise ValueError(f"{folder} holds {', '.join(foreign)}, but no run. {OVERWRITE}")
    write_recipe(folder, recipe, "an unfinished run", clear_run)
    return arguments.resume_from_checkpoint or last_whole_checkpoint(folder)


def write_recipe(
    folder: Path, recipe: Recipe, what: str, clear: Callable[[Path], object], keys: tuple[str, ...] = ()
) -> None:
    """
    Write the recipe into a folder, unless it holds another one. With `overwrite`, clear the folder before.

    Args:
        what: content of the folder, for the message
        keys: keys that must not change, although those of a resumed run may
    """
    path = folder / RECIPE_FILE
    if path.is_file() and not recipe.overwrite:
        before, after = parse_yaml(path.read_text(encoding="utf-8"), str(path)), recipe.to_dict()
        changed = changed_keys(before, after) + [key for key in keys if before.get(key) != after.get(key)]
        if changed:
            raise ValueError(
                f"{folder} holds {what} of another recipe, which differs in {', '.join(changed)}. To resume it, "
                f"restore them. {OVERWRITE}"
            )
    PartialState().wait_for_everyone()  # all processes have checked before one of them writes
    if PartialState().is_main_process:
        if recipe.overwrite:
            clear(folder)
        write_text(path, to_yaml(recipe))
    PartialState().wait_for_everyone()


# Keys that may change when a run resumes: its length, its logs and its place.
MAY_CHANGE = {
    *("training.num_train_epochs", "training.max_steps", "training.logging_steps", "training.save_total_limit"),
    *("training.output_dir", "training.per_device_eval_batch_size", "training.report_to", "training.use_cpu"),
    *("training.dataloader_num_workers", "training.resume_from_checkpoint", "training.disable_tqdm"),
    *("card", "search", "task_metrics", "overwrite"),
}


def changed_keys(before: Any, after: Any, where: str = "") -> list[str]:
    """Return the dotted keys in which two recipes differ, but for those in `MAY_CHANGE`."""
    if where in MAY_CHANGE or before == after:
        return []
    if not (isinstance(before, Mapping) and isinstance(after, Mapping)):
        return [where]
    return [
        key
        for name in dict.fromkeys([*before, *after])
        for key in changed_keys(before.get(name), after.get(name), f"{where}.{name}" if where else str(name))
    ]


def clear_run(folder: Path) -> None:
    """Remove checkpoints, TensorBoard's files, the adapter and the marks of a run."""
    for path in [*folder.glob("checkpoint-*"), folder / "runs", folder / ADAPTER_FOLDER]:
        if path.is_dir():
            shutil.rmtree(path)
    for name in (RESULT_FILE, RECIPE_FILE):
        (folder / name).unlink(missing_ok=True)


# ---- The end --------------------------------------------------------------------------------------------------------


def measure(trainer: MMTrainer, data: RecipeData) -> dict[str, dict[str, float]]:
    """Evaluate the test sets, or the evaluation set if there are none, and return their figures by name."""
    figures = {}
    sets = data.test or ({} if data.evaluation is None else {"evaluation": data.evaluation})
    for name, dataset in sets.items():
        key = name if name == "test" else f"test_{name}"  # TensorBoard shows what begins with test_ as test/...
        prefix = f"{key}_"
        metrics = trainer.evaluate(dataset, metric_key_prefix=key)
        kept = [key for key in metrics if key.startswith(prefix) and not key.endswith(SPEED)]
        figures[name] = {"samples": len(dataset), **{key.removeprefix(prefix): metrics[key] for key in kept}}
    return figures


def save(trainer: MMTrainer, recipe: Recipe, processor: MMProcessor, result: dict[str, Any]) -> None:
    """Save the trained folder as it goes to the Hub; `run.json` comes last."""
    folder = Path(trainer.args.output_dir)
    if recipe.lora is None:
        trainer.save_model(str(folder))  # in every process, as the weights may be sharded
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


def report(result: Mapping[str, Any], recipe: Recipe) -> None:
    """Print the figures of a run, in the main process."""
    if PartialState().is_main_process:
        rows = [
            (name, metric, f"{value:.4f}" if isinstance(value, float) else value)
            for name, metrics in result["figures"].items()
            for metric, value in metrics.items()
        ]
        print(format_table(("set", "metric", "value"), rows, right=(2,)))
        print(f"{result['steps']} steps in {result['seconds']:.0f} s. Saved to {recipe.output_dir}.")
