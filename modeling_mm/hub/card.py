# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The model card, from `model_cards/TEMPLATE.md` and what a training run knows."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from transformers import PreTrainedModel

from ..data.files import write_text
from ..explain.table import markdown_table
from ..training.freezing import parts_of
from ..training.recipe import DataSource, Recipe, to_yaml

TEMPLATE = Path(__file__).resolve().parents[2] / "model_cards" / "TEMPLATE.md"
TITLES = {
    "text": "decoder",
    "vision": "vision encoder",
    "audio": "audio encoder",
    "connectors": "connectors",
    "cross_attention": "cross-attention",
}
NOT_ASSESSED = "Not assessed beyond the figures above."


def write_card(folder: str | os.PathLike, recipe: Recipe, model: PreTrainedModel, result: Mapping[str, Any]) -> Path:
    """
    Writes `README.md`, the model card, into a trained folder.

    Args:
        folder: the output folder
        recipe: what was followed
        model: the trained model, without adapters around it
        result: what `modeling_mm.training.run.run` returns
    """
    path = Path(folder) / "README.md"
    write_text(path, render(card_values(recipe, model, result)))
    return path


def render(values: Mapping[str, Any], template: Path = TEMPLATE) -> str:
    """
    The template filled in.

    Raises:
        jinja2.UndefinedError: for a name in the template that has no value.
    """
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    return environment.from_string(template.read_text(encoding="utf-8")).render(**values)


def card_values(recipe: Recipe, model: PreTrainedModel, result: Mapping[str, Any]) -> dict[str, Any]:
    """What the template's names stand for."""
    card, folder = recipe.card, Path(recipe.training["output_dir"])
    sources = [source.source for source in recipe.data.train if source.format == "chat"]
    bases = [recipe.model.pretrained, recipe.model.text, recipe.model.vision, recipe.model.audio]
    return {
        "license": card.license,
        "pipeline_tag": "text-classification" if recipe.labels else "image-text-to-text",
        "metadata": {
            "base_model": [base for base in bases if base and is_hub_id(base)],
            "datasets": list(dict.fromkeys(source for source in sources if is_hub_id(source))),
            "language": card.languages,
        },
        "model_name": card.name or folder.name,
        "repo_id": card.repo_id or card.name or folder.name,
        "summary": card.summary or "A GPT-2-style decoder that sees and hears through cross-attention.",
        "parts": part_rows(recipe, model),
        "labels": recipe.labels,
        "auto_class": "AutoModelForSequenceClassification" if recipe.labels else "AutoModelForImageTextToText",
        "sees": model.config.vision_config is not None,
        "hears": model.config.audio_config is not None,
        "question": "What is this?",
        "data": data_text(recipe),
        "training": training_text(recipe, result),
        "figures": figures_text(recipe, result["figures"]),
        "limits": card.limits or NOT_ASSESSED,
    }


def is_hub_id(source: str) -> bool:
    """Whether a source is a name on the Hub rather than a path."""
    return not Path(source).exists() and not source.startswith((".", "/")) and source.count("/") <= 1


def part_rows(recipe: Recipe, model: PreTrainedModel) -> list[dict[str, str]]:
    """A row for each part that the model has: where its weights came from, how many, and whether they were trained."""
    rows = []
    for part, named in parts_of(model).items():
        if named:
            count = sum(parameter.numel() for _, parameter in named)
            rows.append(
                {
                    "name": TITLES[part],
                    "weights": weights_of(recipe, part),
                    "parameters": in_words(count),
                    "trained": trained(recipe, part),
                }
            )
    return rows


def weights_of(recipe: Recipe, part: str) -> str:
    if recipe.model.preset is not None:
        return "random"
    source = recipe.model.pretrained or getattr(recipe.model, part, None)
    return "new" if source is None else f"`{source}`"


def in_words(count: int) -> str:
    """A number of parameters, rounded: 1234567 -> 1.2M."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)


def trained(recipe: Recipe, part: str) -> str:
    """Whether a part was trained, in words."""
    if recipe.lora is not None:
        if part == "text":
            return "no" if recipe.lora.adapt and part not in recipe.lora.adapt else f"LoRA, r = {recipe.lora.r}"
        return "no" if part in ("vision", "audio") else "yes"
    step = recipe.frozen.get(part)
    if step is None:
        return "yes"
    return "no" if step == "always" else f"from step {step}"


def data_text(recipe: Recipe) -> str:
    rows = [source_row("training", source) for source in recipe.data.train]
    rows += [source_row("evaluation", source) for source in recipe.data.evaluation]
    rows += [source_row(name, source) for name, sources in recipe.data.test.items() for source in sources]
    table = markdown_table(("used for", "source", "split", "weight", "at most"), rows)
    notes = dict.fromkeys(source.note for source in all_sources(recipe) if source.note)
    return "\n\n".join([table, *notes])


def all_sources(recipe: Recipe) -> list[DataSource]:
    data = recipe.data
    return [*data.train, *data.evaluation, *(source for sources in data.test.values() for source in sources)]


def source_row(use: str, source: DataSource) -> tuple[str, ...]:
    name = source.source if source.subset is None else f"{source.source} ({source.subset})"
    weight = "" if source.weight is None else f"{source.weight:g}"
    return use, f"`{name}`", source.split, weight, "all" if source.limit is None else str(source.limit)


def training_text(recipe: Recipe, result: Mapping[str, Any]) -> str:
    best = "" if result["best"] is None else f" The best state in evaluation was kept ({result['best']:.4f})."
    processes = "" if result["processes"] == 1 else f" by {result['processes']} processes"
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    text = (
        f"{result['steps']} steps ({result['epochs']:g} epochs) in {duration(result['seconds'])} on "
        f"{result['device']}{processes}; {versions}.{best}"
    )
    return f"{text} The recipe, as `scripts/train.py` takes it:\n\n```yaml\n{to_yaml(recipe).rstrip()}\n```"


def duration(seconds: float) -> str:
    """Seconds in words: 42 s, 3 min, 2 h 05 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def figures_text(recipe: Recipe, figures: Mapping[str, Mapping[str, float]]) -> str:
    """The figures of each set, a row for all of it and one for each of its tasks."""
    if not figures:
        return "None were measured: the recipe has neither `data.test` nor `data.evaluation`."
    metrics = metric_names(figures)
    rows = [row for name, values in figures.items() for row in figure_rows(name, values, metrics)]
    table = markdown_table(("set", "task", "samples", *metrics), rows)
    if recipe.data.test:
        return table
    return f"{table}\n\nThe state that was kept was chosen by this set, so that its figures flatter it a little."


def metric_names(figures: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The metrics without those of single tasks, which end with the name of one and say which task before it."""
    names = list(dict.fromkeys(key for values in figures.values() for key in values if key != "samples"))
    return [name for name in names if not any(name != other and name.endswith(f"_{other}") for other in names)]


def figure_rows(name: str, values: Mapping[str, float], metrics: Sequence[str]) -> list[tuple[str, ...]]:
    tasks: dict[str, dict[str, float]] = {"all": {}}
    for key, value in values.items():
        metric = next((metric for metric in metrics if key == metric or key.endswith(f"_{metric}")), None)
        if metric is not None:
            task = "all" if key == metric else key.removesuffix(f"_{metric}")
            tasks.setdefault(task, {})[metric] = value
    samples = str(values.get("samples", ""))
    return [
        (name, task, samples if task == "all" else "", *(number(found.get(metric)) for metric in metrics))
        for task, found in tasks.items()
    ]


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
