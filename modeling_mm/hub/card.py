# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Model cards, rendered from `model_cards/TEMPLATE.md`."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined

from ..evaluation.figures import Figure, figures_markdown
from ..utils.files import write_text
from ..utils.resources import find_resource
from .emissions import Emissions, estimate
from .weights import measured_on, weights_digest

TAGS = ["multimodal", "gpt2", "cross-attention"]
TOLD_LICENSE = "as-told-in-the-card"  # `license_name` of a license that the Hub has no short name for


@dataclass(frozen=True)
class CardComponent:
    """Row of the table of components: name, source of the weights, number of parameters, and if it was trained."""

    name: str
    weights: str
    parameters: int
    trained: str


@dataclass(frozen=True)
class CardSource:
    """Row of the table of data. `use` is `training`, `evaluation` or a test set; a `limit` of None means all of it."""

    use: str
    source: str
    subset: str | None = None
    split: str = "train"
    weight: float | None = None
    limit: int | None = None


@dataclass(frozen=True)
class CardContent:
    """
    Everything that a model card says.

    Args:
        name: title of the card
        result: result of `modeling_mm.recipes.run`: `figures` by dataset, `seconds`, `steps`, `device`, ...
        recipe: training recipe in YAML
        repo_id: repository that the example loads; by default `name`
        base_models: sources of the pretrained weights; paths are left out of the metadata
        components, sources, notes: rows of the two tables, and paragraphs below the second
        modalities: names of the modalities that the model takes beside text
        writes: names of the modalities that it writes beside text, by codecs
        labels: answers of a classifier
        is_retrieval: if the model embeds
        is_pretraining: if the run started from random weights
        has_test_sets: if the figures are of data that chose nothing
        task_types, metric_types: the Hub's names of tasks and metrics, if they differ from ours; of a task such as
            `caption/en` by its kind, `caption`
        figures: figures of `modeling_mm.evaluation.evaluate`, which replace those of `result`
        weights: SHA-256 of the weights that the figures were measured on, see [`weights_digest`]

    Example:
        >>> result = {"figures": {"test": {"samples": 8, "loss": 1.5}}, "seconds": 60.0, "steps": 4, "epochs": 1.0}
        >>> result |= {"best": None, "processes": 1, "device": "cpu, 2 cores", "versions": {"torch": "2.13"}}
        >>> "| test | all | 8 | 1.500 |" in render_card(CardContent("mine", result, "model: {preset: tiny}"))
        True
    """

    name: str
    result: Mapping[str, Any]
    recipe: str
    repo_id: str | None = None
    summary: str | None = None
    limits: str | None = None
    license: str | None = None
    languages: Sequence[str] = ()
    base_models: Sequence[str] = ()
    components: Sequence[CardComponent] = ()
    sources: Sequence[CardSource] = ()
    notes: Sequence[str] = ()
    modalities: Sequence[str] = ()
    writes: Sequence[str] = ()
    labels: Sequence[str] = ()
    is_retrieval: bool = False
    is_pretraining: bool = False
    has_test_sets: bool = True
    task_types: Mapping[str, str] = field(default_factory=dict)
    metric_types: Mapping[str, str] = field(default_factory=dict)
    figures: Sequence[Figure] | None = None
    weights: str | None = None

    @property
    def emissions(self) -> Emissions:
        return estimate(self.result["seconds"], self.result["device"], self.result["processes"])

    @property
    def pipeline_tag(self) -> str:
        if self.is_retrieval:
            return "feature-extraction"
        if self.writes:
            return "any-to-any"
        return "text-classification" if self.labels else "image-text-to-text"


def write_card(folder: str | os.PathLike, content: CardContent) -> Path:
    """
    Write the card into a folder as `README.md`, and return its path.

    The folder's weights are taken for those that the figures were measured on, unless the content names others.
    """
    path = Path(folder) / "README.md"
    write_text(path, render_card(replace(content, weights=content.weights or weights_digest(folder))))
    return path


def render_card(content: CardContent, template: Path | None = None) -> str:
    """
    Fill in a template, by default the one that ships with the package.

    Raises:
        jinja2.UndefinedError: if the template names a value that does not exist.
    """
    template = template or find_resource("templates", "TEMPLATE.md")
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    environment.filters |= {"duration": duration, "short_number": short_number, "figures_markdown": figures_markdown}
    has_figures = content.figures is not None or bool(content.result["figures"])
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        card=content,
        metadata=metadata(content).to_yaml(),
        metrics=metric_names(content.result["figures"]),
        figures_by_task=figures_by_task,
        question="What is this?",
        measured_on=measured_on(content.weights) if has_figures else "",
    )


# ---- Metadata, which the Hub reads ----------------------------------------------------------------------------------


def metadata(content: CardContent) -> ModelCardData:
    """Return the head of the card without the fields that are not known."""
    is_other = content.license == "other"
    results = list(eval_results(content))
    return ModelCardData(
        library_name="transformers",
        license=content.license,
        license_name=TOLD_LICENSE if is_other else None,
        # A link without the repository would lead nowhere.
        license_link=f"https://huggingface.co/{content.repo_id}#limits" if is_other and content.repo_id else None,
        pipeline_tag=content.pipeline_tag,
        tags=[*TAGS, *(["sentence-transformers"] if content.is_retrieval else [])],
        base_model=hub_ids(content.base_models) or None,
        datasets=hub_ids(source.source for source in content.sources if source.use == "training") or None,
        language=list(content.languages) or None,
        co2_eq_emissions={
            "emissions": round(content.emissions.grams, 1),
            "source": content.emissions.how,
            "training_type": "pre-training" if content.is_pretraining else "fine-tuning",
            "hardware_used": content.result["device"],
        },
        eval_results=results or None,
        model_name=content.name if results else None,
    )


def eval_results(content: CardContent) -> Iterator[EvalResult]:
    """Yield the figures as the Hub stores them."""
    if content.figures is not None:
        for figure in content.figures:
            yield eval_result(content, figure.dataset, figure.task, figure.metric, figure.model)
        return
    for dataset, values in content.result["figures"].items():
        for task, found in figures_by_task(values, metric_names(content.result["figures"])).items():
            for metric, value in found.items():
                yield eval_result(content, dataset, "" if task == "all" else task, metric, value)


def eval_result(content: CardContent, dataset: str, task: str, metric: str, value: float) -> EvalResult:
    """Return one figure. The Hub tells results apart by the dataset's type and config: here its name and the task."""
    return EvalResult(
        task_type=content.task_types.get(task.split("/")[0], content.pipeline_tag),
        dataset_type=re.sub(r"[^a-z0-9]+", "-", dataset.lower()).strip("-"),
        dataset_name=f"{dataset}, {task}" if task else dataset,
        dataset_config=task or None,
        metric_type=content.metric_types.get(metric, metric),
        metric_name=metric,
        metric_value=round(float(value), 4),
    )


def hub_ids(sources: Iterable[str]) -> list[str]:
    """Return the sources that are names on the Hub rather than paths, each once."""
    names = dict.fromkeys(source for source in sources if not source.startswith((".", "/")) and source.count("/") < 2)
    return [name for name in names if not Path(name).exists()]


def metric_names(figures: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the metrics of whole datasets. Those of one task, such as `caption/en_cer`, end with the name of one."""
    names = list(dict.fromkeys(key for values in figures.values() for key in values if key != "samples"))
    return [name for name in names if not any(name != other and name.endswith(f"_{other}") for other in names)]


def figures_by_task(values: Mapping[str, float], metrics: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the figures of one dataset by task, first those of the whole dataset as `all`."""
    tasks: dict[str, dict[str, float]] = {"all": {}}
    for key, value in values.items():
        metric = next((metric for metric in metrics if key == metric or key.endswith(f"_{metric}")), None)
        if metric is not None:
            task = "all" if key == metric else key.removesuffix(f"_{metric}")
            tasks.setdefault(task, {})[metric] = value
    return tasks


def short_number(count: int) -> str:
    """Return a number of parameters, rounded: 1234567 -> 1.2M."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)


def duration(seconds: float) -> str:
    """Return seconds as text: 42 s, 3 min, 2 h 05 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
