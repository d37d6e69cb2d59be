# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""`modeling-mm evaluate`: figures of the test sets of a recipe, task by task."""

import json
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME, cached_file

from .. import MMForPreTraining, MMForRetrieval
from ..data import ChatDataset, ChatRow
from ..evaluation import (
    RetrievalFigure,
    confusion,
    confusion_markdown,
    evaluate,
    evaluation_section,
    examples_page,
    figures_markdown,
    is_classifier,
    labels_of,
    majority_answers,
    measure_retrieval,
    retrieval_section,
)
from ..hub import measured_on, weights_digest
from ..recipes import Recipe, RecipeData, load_source
from ..recipes.build import filled_cache, rows_of
from ..training import CachedCollator, CachedRetrievalCollator, PretrainingCollator, RetrievalCollator
from ..training.answers import in_groups
from ..training.matching import embed_rows
from ..training.pretraining import measure_objectives
from ..utils import write_lines, write_text
from ..utils.tables import markdown_table
from .loading import MEASURED, load_model
from .recipe import load_recipe

ROWS_AT_ONCE = 64


def run(options: Namespace) -> None:
    """
    Print the figures, and write the files of the output folder.

    `figures.json` and `figures.md` hold the figures, `answers.jsonl` every answer, `card.md` a section for a model
    card, and `examples.html` good and bad answers with their media. A model that embeds or is pre-trained has figures
    alone.
    """
    recipe = load_recipe(options.recipe, options.overrides)
    sets = test_sets(recipe, options.only, options.limit)
    model, processor = load_model(options.model, options.device, "float32", heads=MEASURED)
    cache = None
    if recipe.data.encoder_cache and not options.no_cache:
        data = RecipeData([], None, {name: ChatDataset(rows) for name, rows in sets.items()})
        cache = filled_cache(recipe, processor, data, model.requires_grad_(False))
    if isinstance(model, MMForRetrieval):
        collator = RetrievalCollator(processor)
        if cache is not None:
            collator = CachedRetrievalCollator(processor, cache, shows_views=False)
        found = retrieval_figures(model, collator, sets)
        write_figures(options, [asdict(each) for each in found], retrieval_section(found))
        return
    chats = None if cache is None else CachedCollator(processor, cache, shows_views=False)
    if isinstance(model, MMForPreTraining):
        run_pretraining(model, PretrainingCollator(processor, recipe.masking, chats), sets, options)
        return
    majority: dict[str, str] = {}
    for source in recipe.data.train:
        majority |= majority_answers(rows_of(load_source(source)))
    figures, records = evaluate(
        model,
        processor,
        sets,
        majority,
        None if chats is None else chats.prompt_batch,
        with_text_only=not options.no_text_only,
        max_new_tokens=recipe.training.get("generation_max_new_tokens", 64),
        task_metrics=recipe.task_metrics,
    )
    folder, text = Path(options.out), figures_markdown(figures)
    if is_classifier(model):
        text += "".join(f"\n\n**Confusion, {name}**\n\n{table}" for name, table in confusions(model, records).items())
    values = [asdict(figure) for figure in figures]
    write_text(folder / "figures.json", json.dumps(values, indent=1, ensure_ascii=False))
    write_text(folder / "figures.md", text + "\n")
    write_lines(folder / "answers.jsonl", records)
    write_text(folder / "card.md", with_weights(evaluation_section(figures), options.model))
    title = f"Evaluation of {Path(options.model).name}"
    write_text(folder / "examples.html", examples_page(title, figures, sets, records, options.examples))
    print(text)


def retrieval_figures(
    model: MMForRetrieval | MMForPreTraining,
    collator: RetrievalCollator | PretrainingCollator,
    sets: dict[str, list[ChatRow]],
) -> list[RetrievalFigure]:
    """
    Measure how well the rows of each set find each other, in both directions of every pair of sides.

    A model that was trained with `matryoshka_dims` is measured with so many dimensions too.

    Raises:
        ValueError: for a set without a pair of sides that two of its rows have.
    """
    figures = []
    for name, rows in sets.items():
        embedded = []
        for batch in in_groups(enumerate(rows), ROWS_AT_ONCE):
            embedded += embed_rows(model, collator, batch)
        sides, texts = [row.sides for row in embedded], [row.text for row in embedded]
        for size in (None, *reversed(model.config.matryoshka_dims or ())):
            found = measure_retrieval(sides, texts, name, size)
            if not found:
                raise ValueError(
                    f"The set {name} has no two rows with the same two of text (the answer), images and audio, so "
                    "that there is nothing to find. Add images or audio to its questions."
                )
            figures += found
    return figures


def run_pretraining(
    model: MMForPreTraining, collator: PretrainingCollator, sets: dict[str, list[ChatRow]], options: Namespace
) -> None:
    """Print the loss and the accuracy of each objective, and how well rows find each other, and write them."""
    measured = {name: measure_objectives(model, collator, rows, ROWS_AT_ONCE) for name, rows in sets.items()}
    table = [
        (name, str(len(sets[name])), figure.replace("_", " "), f"{value:.3f}")
        for name, figures in measured.items()
        for figure, value in figures.items()
    ]
    text = (
        "## Objectives\n\nMatching is measured against the most similar media among the rows of a batch, so that its "
        f"accuracy by chance is 0.5.\n\n{markdown_table(('set', 'rows', 'figure', 'value'), table)}\n"
    )
    found = retrieval_figures(model, collator, sets) if model.config.contrastive_weight else []
    values = {"objectives": measured, "retrieval": [asdict(figure) for figure in found]}
    write_figures(options, values, f"{text}\n{retrieval_section(found)}" if found else text)


def write_figures(options: Namespace, values: Any, text: str) -> None:
    """Print a section of a model card, and write it with the values that it shows."""
    folder = Path(options.out)
    write_text(folder / "figures.json", json.dumps(values, indent=1, ensure_ascii=False))
    write_text(folder / "figures.md", text)
    write_text(folder / "card.md", with_weights(text, options.model))
    print(text)


def with_weights(section: str, model: str) -> str:
    """Return a section of a card with what it says of the weights of a model, a folder or a name on the Hub."""
    stated = measured_on(weights_digest(Path(cached_file(model, CONFIG_NAME)).parent))
    return f"{section}\n{stated}\n" if stated else section


def confusions(model: Any, records: list[dict[str, str]]) -> dict[str, str]:
    """Return a classifier's table of confusion for each test set."""
    labels, tables = labels_of(model), {}
    for name in dict.fromkeys(record["dataset"] for record in records):
        pairs = [(record["answer"], record["truth"]) for record in records if record["dataset"] == name]
        counts = confusion(labels, [answer for answer, _ in pairs], [truth for _, truth in pairs])
        tables[name] = confusion_markdown(labels, counts)
    return tables


def test_sets(recipe: Recipe, only: list[str] | None, limit: int | None) -> dict[str, list[ChatRow]]:
    """
    Read the test sets of a recipe, or else its evaluation set, at most `limit` rows of each source.

    Raises:
        ValueError: if the recipe has no test set of a name in `only`, or neither test nor evaluation sets, and for a
            set without examples.
    """
    data = recipe.data
    known = data.test or ({"evaluation": data.evaluation} if data.evaluation else {})
    if not known:
        raise ValueError(
            "The recipe has neither `data.test` nor `data.evaluation`, so that there is nothing to measure."
        )
    if unknown := sorted(set(only or ()) - set(known)):
        raise ValueError(f"The recipe has no test set {', '.join(unknown)}. It has {', '.join(known)}.")
    sets = {
        name: [row for source in sources for row in list(rows_of(load_source(source)))[:limit]]
        for name, sources in known.items()
        if not only or name in only
    }
    if empty := [name for name, rows in sets.items() if not rows]:
        raise ValueError(f"The set {', '.join(empty)} of the recipe has no examples.")
    return sets
