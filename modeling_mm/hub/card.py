# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The model card, from `model_cards/TEMPLATE.md` and what a training run knows."""

import copy
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined
from transformers import PreTrainedModel

from ..evaluation.evaluate import Figure, figures_markdown
from ..recipes.schema import DataSource, Recipe, to_yaml
from ..training.freezing import parts_of
from ..utils.files import write_text
from ..utils.tables import markdown_table
from .emissions import Emissions, estimate

TEMPLATE = Path(__file__).resolve().parents[2] / "model_cards" / "TEMPLATE.md"
TITLES = {
    "text": "decoder",
    "vision": "vision encoder",
    "audio": "audio encoder",
    "connectors": "connectors",
    "cross_attention": "cross-attention",
}
NOT_ASSESSED = "Not assessed beyond the figures above."
TAGS = ["multimodal", "gpt2", "cross-attention"]
TOLD_LICENSE = "as-told-in-the-card"  # where the Hub has no short name for a licence; the link says where
# The Hub's names of our metrics, where they differ, and of our tasks, by what stands before the "/" of their names.
METRIC_TYPES = {"spoken_wer": "wer", "last_word": "accuracy"}
TASK_TYPES = {"transcribe": "automatic-speech-recognition", "sentence": "automatic-speech-recognition"}


def write_card(folder: str | os.PathLike, recipe: Recipe, model: PreTrainedModel, result: Mapping[str, Any]) -> Path:
    """
    Writes `README.md`, the model card, into a trained folder.

    Args:
        folder: the output folder
        recipe: what was followed
        model: the trained model, without adapters around it
        result: what `modeling_mm.recipes.run.run` returns
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
    emissions = estimate(result["seconds"], result["device"], result["processes"])
    return {
        "metadata": metadata(recipe, result, emissions),
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
        "training": training_text(recipe, result, emissions),
        "figures": figures_text(recipe, result["figures"]),
        "limits": card.limits or NOT_ASSESSED,
    }


def with_figures(values: Mapping[str, Any], figures: Sequence[Figure]) -> dict[str, Any]:
    """`card_values` with the figures of `scripts/evaluate.py` in place of the run's own, as text and as metadata."""
    data: ModelCardData = copy.deepcopy(values["metadata"])
    data["model_name"] = values["model_name"]
    data["eval_results"] = [
        eval_result(figure.dataset, figure.task, figure.metric, figure.model, data["pipeline_tag"])
        for figure in figures
    ]
    return {**values, "metadata": data, "figures": figures_markdown(figures)}


# ---- What the Hub reads ---------------------------------------------------------------------------------------------


def metadata(recipe: Recipe, result: Mapping[str, Any], emissions: Emissions) -> ModelCardData:
    """The card's head: what is not known is left out."""
    card, name = recipe.card, recipe.card.name or Path(recipe.training["output_dir"]).name
    tag = "text-classification" if recipe.labels else "image-text-to-text"
    bases = [recipe.model.pretrained, recipe.model.text, recipe.model.vision, recipe.model.audio]
    sources = [source.source for source in recipe.data.train]
    results = eval_results(result["figures"], tag)
    link = card.repo_id and f"https://huggingface.co/{card.repo_id}#limits"  # without its place nobody finds it
    return ModelCardData(
        library_name="transformers",
        license=card.license,
        license_name=TOLD_LICENSE if card.license == "other" else None,
        license_link=link if card.license == "other" else None,
        pipeline_tag=tag,
        tags=TAGS,
        base_model=[base for base in bases if base and is_hub_id(base)] or None,
        datasets=list(dict.fromkeys(source for source in sources if is_hub_id(source))) or None,
        language=card.languages or None,
        co2_eq_emissions={
            "emissions": round(emissions.grams, 1),
            "source": emissions.how,
            "training_type": "pre-training" if recipe.model.preset else "fine-tuning",
            "hardware_used": result["device"],
        },
        eval_results=results or None,
        model_name=name if results else None,
    )


def eval_results(figures: Mapping[str, Mapping[str, float]], task_type: str) -> list[EvalResult]:
    """What a run measured of each set and of each of its tasks."""
    metrics = metric_names(figures)
    return [
        eval_result(name, "" if task == "all" else task, metric, value, task_type)
        for name, values in figures.items()
        for task, found in figures_by_task(values, metrics).items()
        for metric, value in found.items()
    ]


def eval_result(dataset: str, task: str, metric: str, value: float, task_type: str) -> EvalResult:
    """One figure. The Hub keeps results apart by the dataset's type and config: ours are its name and the task."""
    return EvalResult(
        task_type=TASK_TYPES.get(task.split("/")[0], task_type),
        dataset_type=re.sub(r"[^a-z0-9]+", "-", dataset.lower()).strip("-"),
        dataset_name=f"{dataset}, {task}" if task else dataset,
        dataset_config=task or None,
        metric_type=METRIC_TYPES.get(metric, metric),
        metric_name=metric,
        metric_value=round(float(value), 4),
    )


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


def training_text(recipe: Recipe, result: Mapping[str, Any], emissions: Emissions) -> str:
    best = "" if result["best"] is None else f" The best state in evaluation was kept ({result['best']:.4f})."
    processes = "" if result["processes"] == 1 else f" by {result['processes']} processes"
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    text = (
        f"{result['steps']} steps ({result['epochs']:g} epochs) in {duration(result['seconds'])} on "
        f"{result['device']}{processes}; {versions}.{best} Carbon: about {emissions} ({emissions.how})."
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


def figures_by_task(values: Mapping[str, float], metrics: Sequence[str]) -> dict[str, dict[str, float]]:
    """The figures of one set: those of all of it under `all`, then those of each task."""
    tasks: dict[str, dict[str, float]] = {"all": {}}
    for key, value in values.items():
        metric = next((metric for metric in metrics if key == metric or key.endswith(f"_{metric}")), None)
        if metric is not None:
            task = "all" if key == metric else key.removesuffix(f"_{metric}")
            tasks.setdefault(task, {})[metric] = value
    return tasks


def figure_rows(name: str, values: Mapping[str, float], metrics: Sequence[str]) -> list[tuple[str, ...]]:
    tasks = figures_by_task(values, metrics)
    samples = str(values.get("samples", ""))
    return [
        (name, task, samples if task == "all" else "", *(number(found.get(metric)) for metric in metrics))
        for task, found in tasks.items()
    ]


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
