# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The work of `train`: a recipe whose data are joined by lessons about the classes of ImageNet."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from modeling_mm import MMForConditionalGeneration
from modeling_mm.connectors import pool_squares
from modeling_mm.data import ChatDataset, ChatRow, media_parts, mix
from modeling_mm.recipes import Recipe, RecipeData, read_recipe, rows_of, run
from modeling_mm.training import CachedCollator, EncoderCache, MMTrainer
from modeling_mm.utils import show_progress

from . import phrases
from .base_folder import VARIANT
from .imagenet import PACKAGE, class_lemmas
from .lessons import ClassLessons, ImageNetHead, LessonCollator, sure_rows
from .lite import PACKAGES, lite_head
from .name_matching import (
    close_over_transcripts,
    first_block,
    match_names,
    name_states,
    spoken_states,
    words_before,
)
from .packages import fetch_package
from .prototypes import align_with_names, open_blocks, stand_in_for_speech

LESSONS = 14.0  # weight of the lessons, beside those of the recipe's sources
SURE = 4.0  # weight of the photographs that the head is sure about
QUESTION = "What is this?"
ENDS = ("?", ".")  # of questions, behind which answers begin
TRANSCRIPTS = 40  # whose speech the stand-ins start from
QUESTIONS = 600  # whose words the queries start from
VERDICT_MARK = phrases.VERDICT.format(text="", verdict="").rstrip()  # behind what was heard
NAMING = {
    "verify_name/en": phrases.VERIFY_NAME,
    "choose_image/en": phrases.CHOOSE_IMAGE,
}  # questions that end in a name, by task
SHOWN = 256  # questions of each kind, from which the gates of blocks learn when to close
OPEN = ("caption", "category", "verify_name", "choose_image")  # tasks that keep them open
AGAIN = 600  # steps after which gates are learned again, as what the blocks add has changed
BATCH = 64  # questions that are read at once
PHOTOGRAPHS = "tuxpaint-"  # with which the names of images that may be photographs begin


def train(arguments: argparse.Namespace) -> None:
    """Follow the recipe."""
    recipe = read_recipe(arguments.recipe, arguments.overrides)
    weights = next(fetch_package(PACKAGES[VARIANT], arguments.packages).rglob("*.pth"))
    names = [lemmas[0] for lemmas in class_lemmas(fetch_package(PACKAGE, arguments.packages))]
    run(recipe, partial(add_lessons, recipe=recipe, head=ImageNetHead(*lite_head(weights)), names=names))


def add_lessons(trainer: MMTrainer, data: RecipeData, *, recipe: Recipe, head: ImageNetHead, names: list[str]) -> None:
    """
    Add lessons about all classes, and photographs that the head is sure about, to the data of a trainer.

    Before the first step the images' connector is aligned with names, and the first block of cross-attention learns to
    find what a name means. Both stay as they are from then on: what they know of a name serves images by other hands,
    and the decoder would spoil it by learning the images of training before it has learned to use it. The other blocks
    start from the alignment. The gates over tokens are frozen, too, and learned by themselves: see [`GatesCallback`].
    """
    known = cast(CachedCollator, trainer.data_collator)
    captions = [row for row in rows_of(data.train[0]) if row.task == "caption/en"]
    alike: dict[str, list[str]] = {}
    for row in captions:
        alike.setdefault(row.answer, []).append(image_of(row))
    collator = LessonCollator(known.processor, known.cache, head=head, alike=alike)
    photographs = [row for row in captions if Path(image_of(row)).name.startswith(PHOTOGRAPHS)]
    sure = sure_rows(photographs, collator, head, names)
    lessons = ClassLessons(names, [image_of(row) for row in captions], QUESTION)
    weights = [source.weight or 1.0 for source in recipe.data.train]
    datasets = cast(list[ChatDataset], [*data.train, ChatDataset(sure), lessons])
    trainer.data_collator = collator
    trainer.train_dataset = mix(datasets, [*weights, SURE, LESSONS], trainer.args.seed)
    model = cast(MMForConditionalGeneration, trainer.model)
    folder = Path(trainer.args.output_dir)
    is_resumed = folder.is_dir() and get_last_checkpoint(str(folder)) is not None
    rows = [row for dataset in data.train for row in rows_of(dataset)]
    gates = GateQuestions(rows, collator)
    trainer.add_callback(GatesCallback(gates, AGAIN))
    collate = collator.for_evaluation()
    if not is_resumed and adds_nothing(model):
        tokens, of_images, kinds = named_tokens([*captions, *sure], rows, known.cache, model.config.vision_pooling)
        align_with_names(
            model, known.processor.tokenizer, tokens, of_images, head, names, kinds=kinds, seed=trainer.args.seed
        )
        heard = spread([row for row in rows if "beside_image" in (row.task or "")], TRANSCRIPTS)
        stand_in_for_speech(model, collate([without_images(row) for row in heard]))
        asked = spread([row for row in rows if row.task == "verify_name/en"], QUESTIONS)
        ends = known.processor.tokenizer(list(ENDS), add_special_tokens=False)["input_ids"]
        open_blocks(model, collate(asked), [each[0] for each in ends], seed=trainer.args.seed)
        find_names(model, tokens, of_images, rows, collator, trainer.args.seed)
    if not is_resumed:
        gates.teach(model)
    for part in parts_that_stay(model):
        part.requires_grad_(False)


def find_names(
    model: MMForConditionalGeneration,
    tokens: torch.Tensor,
    names: Sequence[str],
    rows: Sequence[ChatRow],
    collator: CachedCollator,
    seed: int,
) -> None:
    """
    Teach the first block to find the images of names that are read or heard.

    Args:
        tokens: pooled encoder tokens of images, (N, M, W), of these names.
        rows: of training, whose questions and answers hold names.
    """
    states = states_of_names(model, rows, collator)
    for name, heard in states_of_spoken_names(model, rows, collator).items():
        states.setdefault(name, []).extend(heard)
    match_names(model, tokens, names, states, seed=seed)


class GateQuestions:
    """
    Questions from which the gates of blocks over tokens learn where images have something to say.

    Args:
        rows: of training.
    """

    def __init__(self, rows: Sequence[ChatRow], collator: CachedCollator):
        self.rows = {
            task: spread([row for row in rows if (row.task or "").startswith(task)], SHOWN)
            for task in (*OPEN, "match_audio_image", "transcribe_beside_image")
        }
        self.collate = collator.for_evaluation()
        (self.end,) = collator.processor.tokenizer(VERDICT_MARK, add_special_tokens=False)["input_ids"]

    def batches(self, task: str) -> list[Mapping[str, torch.Tensor]]:
        rows = self.rows[task]
        return [self.collate(rows[start : start + BATCH]) for start in range(0, len(rows), BATCH)]

    def teach(self, model: MMForConditionalGeneration) -> None:
        """Learn the gates again from nothing."""
        others = [batch for task in OPEN for batch in self.batches(task)]
        heard = [(batch, words_before(batch, self.end)) for batch in self.batches("match_audio_image")]
        close_over_transcripts(model, self.batches("transcribe_beside_image"), others, heard)


class GatesCallback(TrainerCallback):
    """Learns the gates again now and then, as blocks that learn change the states from which they are computed."""

    def __init__(self, questions: GateQuestions, steps: int):
        self.questions, self.steps = questions, steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Learn them, but not behind the last step, with which nothing could learn any more."""
        if state.global_step % self.steps == 0 and state.global_step < state.max_steps - self.steps // 2:
            self.questions.teach(kwargs["model"])


def adds_nothing(model: MMForConditionalGeneration) -> bool:
    """Return whether the images' cross-attention is as it was made."""
    return not any(
        block.cross_attn.c_proj.weight.any() for block in model.model.language_model.vision_cross_blocks.values()
    )


def parts_that_stay(model: MMForConditionalGeneration) -> list[nn.Module]:
    """
    Return what the first block finds for a name depends on, itself, media tokens and the states of names, and gates.
    """
    decoder = model.model.language_model
    first = min(int(layer) for layer in decoder.vision_cross_blocks)
    stand_ins = [block.get_submodule("vision_stand_in") for block in decoder.h[: first + 1]]
    gates = [block.get_submodule("gate_token") for block in decoder.vision_cross_blocks.values()]
    return [model.model.vision_connector, first_block(model), *gates, *stand_ins]


def named_tokens(
    rows: Sequence[ChatRow], others: Sequence[ChatRow], cache: EncoderCache, pooling: int
) -> tuple[torch.Tensor, list[str], list[str]]:
    """
    Return the pooled tokens of all views of the rows' images, (N, M, W) in half precision, their names and kinds.

    Args:
        rows: whose answers are names of images.
        others: among which questions of category say what kind of thing some of the images show.
        pooling: tokens at the edge of the squares that are averaged.
    """
    of_images = {image_of(row): row.answer for row in others if row.task == "category/en"}
    found, names, kinds = [], [], []
    for row in show_progress(rows, desc="reading images"):
        (part,) = media_parts(row.messages)
        for view in range(cache.views["image"]):
            (states,) = cache.states(part, view)  # (L, W)
            pooled, _ = pool_squares(states[None].float(), torch.ones(1, len(states), dtype=torch.bool), pooling)
            found.append(pooled[0].half())
            names.append(row.answer)
            kinds.append(of_images.get(image_of(row), ""))
    return torch.stack(found), names, kinds


def states_of_names(
    model: MMForConditionalGeneration, rows: Sequence[ChatRow], collator: CachedCollator
) -> dict[str, list[torch.Tensor]]:
    """Return the states of each name before the first block of images, (T, D), in one question of each kind."""
    found: dict[str, list[torch.Tensor]] = {}
    tokenizer, collate = collator.processor.tokenizer, collator.for_evaluation()
    for task, question in NAMING.items():
        before = question.partition("{name}")[0]
        asked = {asked_name(row, before): row for row in rows if row.task == task}
        names = sorted(asked)
        lengths = [
            len(ids) for ids in tokenizer([f" {name}" for name in names], add_special_tokens=False)["input_ids"]
        ]
        for start in show_progress(range(0, len(names), BATCH), desc=f"reading names, {task}"):
            part = slice(start, start + BATCH)
            batch = collate([asked[name] for name in names[part]])
            for name, states in zip(names[part], name_states(model, batch, lengths[part]), strict=True):
                found.setdefault(name, []).append(states)
    return found


def states_of_spoken_names(
    model: MMForConditionalGeneration, rows: Sequence[ChatRow], collator: CachedCollator
) -> dict[str, list[torch.Tensor]]:
    """Return the states of names in answers that begin with what was heard, (T, D), if it was the image's name."""
    named = {image_of(row): row.answer for row in rows if row.task == "caption/en"}
    heard: dict[str, tuple[ChatRow, str]] = {}
    for row in rows:
        if row.task == "match_audio_image/en" and row.answer.endswith(phrases.YES_NO[0]):
            image, audio = sorted(media_parts(row.messages), key=lambda part: part["type"] != "image")
            heard[str(audio["path"])] = (row, named[str(image["path"])])
    found: dict[str, list[torch.Tensor]] = {}
    tokenizer, collate = collator.processor.tokenizer, collator.for_evaluation()
    verdict = phrases.VERDICT.format(text="", verdict=phrases.YES_NO[0])
    examples = list(heard.values())
    for start in show_progress(range(0, len(examples), BATCH), desc="reading names that are heard"):
        some = examples[start : start + BATCH]
        said = [row.answer.removesuffix(verdict).rstrip(".!?") for row, _ in some]
        lengths = [len(ids) for ids in tokenizer([f" {text}" for text in said], add_special_tokens=False)["input_ids"]]
        for (_, name), states in zip(
            some, spoken_states(model, collate([row for row, _ in some]), lengths), strict=True
        ):
            found.setdefault(name, []).append(states)
    return found


def asked_name(row: ChatRow, before: str) -> str:
    """Return the name at the end of a question, behind its first words."""
    question = next(part["text"] for part in row.messages[0]["content"] if part["type"] == "text")
    return question.removeprefix(before).removesuffix("?")


def spread(rows: Sequence[ChatRow], number: int) -> Sequence[ChatRow]:
    """Return so many rows, evenly from all."""
    return rows[:: max(1, len(rows) // number)][:number]


def without_images(row: ChatRow) -> ChatRow:
    user, *others = row.messages
    content = [part for part in user["content"] if part["type"] == "audio"]
    return replace(row, messages=[{**user, "content": content}, *others])


def image_of(row: ChatRow) -> str:
    (part,) = media_parts(row.messages)
    return str(part["path"])
