# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The work of `train_detr`."""

import argparse
import json
from pathlib import Path

from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from modeling_mm.recipes import read_recipe
from modeling_mm.training import TimerCallback
from modeling_mm.utils import write_text

from .detr import SceneMaps, StatesDetr, collate, detr_config, map_of, open_cache, save_detr
from .find_scenes import question, scenes_of

RUN_FILE = "run.json"


def train_detr(arguments: argparse.Namespace) -> str:
    """
    Train a DETR, or resume from the last checkpoint, and save it in `arguments.folder`.

    Returns:
        a line with what it took.
    """
    run = arguments.folder / RUN_FILE
    if run.is_file():
        return f"{arguments.folder}: finished before, {run.read_text(encoding='utf-8').strip()}"
    recipe = read_recipe(arguments.recipe)
    if recipe.model.pretrained is None or recipe.data.encoder_cache is None:
        raise ValueError(f"{arguments.recipe}: expected model.pretrained and data.encoder_cache, got none.")
    cache = open_cache(Path(recipe.model.pretrained), Path(recipe.data.encoder_cache))
    steps = recipe.training_arguments().max_steps if arguments.steps is None else arguments.steps
    scenes = scenes_of(arguments.scenes, "train", arguments.limit)
    cache.fill([question(scene.path, "") for scene in scenes])
    names = sorted({each.label for scene in scenes for each in scene.objects})
    set_seed(arguments.seed)
    model = StatesDetr(detr_config(names), len(map_of(cache, scenes[0].path)))
    checkpoints = arguments.folder / "checkpoints"
    settings = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=steps,
        per_device_train_batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": steps * 3 // 8},
        warmup_steps=min(200, steps // 10),
        weight_decay=1e-4,
        max_grad_norm=0.1,
        use_cpu=True,
        bf16=arguments.bf16,
        save_steps=max(1, steps // 16),
        save_total_limit=2,
        logging_steps=max(1, steps // 160),
        remove_unused_columns=False,
        restore_callback_states_from_checkpoint=True,
        report_to=[],
        seed=arguments.seed,
        dataloader_pin_memory=False,
    )
    data = SceneMaps(cache, scenes, names)
    timer = TimerCallback()
    trainer = Trainer(model, settings, data_collator=collate, train_dataset=data, callbacks=[timer])
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    timers = [each for each in trainer.callback_handler.callbacks if isinstance(each, TimerCallback)]
    save_detr(model, arguments.folder)
    result = {"steps": trainer.state.global_step, "seconds": round(sum(each.seconds for each in timers), 1)}
    result |= {"parameters": sum(each.numel() for each in model.parameters()), "classes": len(names)}
    write_text(run, json.dumps(result))
    return f"{arguments.folder}: {json.dumps(result)}"
