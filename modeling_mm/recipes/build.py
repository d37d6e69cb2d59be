# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""What a recipe names, made: processor, model, data sets, collator."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch.utils.data import ConcatDataset
from transformers import (
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoProcessor,
    PreTrainedModel,
    set_seed,
)

from ..configuration_mm import MMConfig
from ..data.cleaning import clean
from ..data.mixture import mix
from ..data.reading import ChatDataset, ChatRow, ChatStream, load_chats
from ..joining import fit_to_tokenizer, joint_generation_config, special_token_ids
from ..modalities import MODALITIES
from ..modeling_mm import MMForConditionalGeneration, MMForSequenceClassification
from ..processing_mm import MMProcessor
from ..training.collators import CachedCollator, ChatCollator, ClassificationCollator
from ..training.encoder_cache import EncoderCache
from ..training.freezing import parts_of
from ..training.lora import add_lora
from ..utils.resources import resource_or_path
from .schema import DataSource, ModelSection, Recipe

MODEL_CLASSES = {"causal_lm": MMForConditionalGeneration, "classification": MMForSequenceClassification}
AUTO_CLASSES = {"causal_lm": AutoModelForImageTextToText, "classification": AutoModelForSequenceClassification}


# ---- Processor and model --------------------------------------------------------------------------------------------


def make_processor(section: ModelSection) -> MMProcessor:
    """The processor that is named, or that of the joint model, or one made from the parts."""
    source = section.processor or section.pretrained
    if source is not None:
        return AutoProcessor.from_pretrained(resource_or_path("presets", source))
    loading = {"trust_remote_code": True} if section.trust_remote_code else {}
    return MMProcessor.from_text_vision_audio_pretrained(section.text, section.vision, section.audio, **loading)


def make_model(recipe: Recipe, processor: MMProcessor, seed: int) -> PreTrainedModel:
    """
    The model to train: joined, loaded or made from a preset, with what is frozen frozen, and with LoRA where the
    recipe asks for it. New weights are the same for the same seed.
    """
    set_seed(seed)
    model = unfrozen_model(recipe, processor)
    if recipe.lora is not None:
        return add_lora(model, asdict(recipe.lora))
    parts = parts_of(model)
    for name in recipe.frozen:
        if not parts.get(name):
            raise ValueError(
                f"frozen.{name}: the model has no such part; it has {', '.join(k for k in parts if parts[k])}."
            )
        for _, parameter in parts[name]:
            parameter.requires_grad_(False)
    return model


def unfrozen_model(recipe: Recipe, processor: MMProcessor) -> PreTrainedModel:
    section = recipe.model
    model_class = MODEL_CLASSES[recipe.objective]
    how = {name: getattr(section, name) for name in ("dtype", "attn_implementation") if getattr(section, name)}
    labels = {"num_labels": len(recipe.labels)} if recipe.labels else {}
    if section.preset is not None:
        model = model_from_preset(recipe, processor, labels, how)
    elif section.pretrained is not None:
        model = model_class.from_pretrained(section.pretrained, **section.config, **labels, **how)
    else:
        if section.trust_remote_code:
            how["trust_remote_code"] = True
        parts = (section.text, section.vision, section.audio)
        options = {**section.config, **labels, **how}
        model = model_class.from_text_vision_audio_pretrained(*parts, tokenizer=processor, **options)
    if recipe.labels:
        model.config.id2label = dict(enumerate(recipe.labels))
        model.config.label2id = {label: number for number, label in enumerate(recipe.labels)}
    return model


def model_from_preset(recipe: Recipe, processor: MMProcessor, labels: dict, how: dict) -> PreTrainedModel:
    """A model with random weights, whose vocabulary has room for the processor's and whose special tokens are its."""
    given = {**recipe.model.config, **special_token_ids(processor), **labels}
    config = MMConfig.from_pretrained(resource_or_path("presets", recipe.model.preset), **given)
    fit_to_tokenizer(config, processor)
    model = AUTO_CLASSES[recipe.objective].from_config(config, **how)
    if model.can_generate():
        model.generation_config = joint_generation_config(model, config, model.generation_config)
    return model


# ---- Data -----------------------------------------------------------------------------------------------------------


def load_source(source: DataSource) -> ChatDataset | ChatStream:
    return load_chats(
        source.source, split=source.split, streaming=source.streaming, name=source.subset, limit=source.limit
    )


@dataclass(frozen=True)
class RecipeData:
    """What a recipe names, read: the sources to learn from, what it is measured by, and what it is aligned by."""

    train: list[Any]
    evaluation: ChatDataset | None
    test: dict[str, ChatDataset]
    alignment: dict[str, list[ChatDataset]] = field(default_factory=dict)

    @property
    def measured(self) -> list[ChatDataset]:
        return [*([] if self.evaluation is None else [self.evaluation]), *self.test.values()]


def load_data(recipe: Recipe) -> RecipeData:
    """
    All data of a recipe; with `clean`, what cannot be learned from is left out, and reports of it go to the folder
    `cleaning` in the output folder.
    """
    data = recipe.data
    reports = Path(recipe.training["output_dir"]) / "cleaning" if data.clean else None
    alignment = {} if recipe.alignment is None else recipe.alignment.sources

    def load_all(sources: Sequence[DataSource], name: str) -> list[Any]:
        return [load_part(source, reports, f"{name}-{number}") for number, source in enumerate(sources)]

    return RecipeData(
        train=load_all(data.train, "train"),
        evaluation=joined_sources(data.evaluation, reports, "evaluation"),
        test={name: joined_sources(sources, reports, name) for name, sources in data.test.items()},
        alignment={kind: load_all(sources, kind) for kind, sources in alignment.items()},
    )


def load_part(source: DataSource, reports: Path | None, name: str) -> Any:
    """One source, cleaned if there is a folder for the report."""
    dataset: Any = load_source(source)
    if reports is None:
        return dataset
    is_main = PartialState().is_main_process
    rows, report = clean(dataset, progress=is_main)
    if is_main:
        report.save(reports / name.replace("/", "-"))
        print(f"{source.source}: {str(report).splitlines()[0]}")
    if not rows:
        raise ValueError(f"{source.source}: no sample is left after cleaning; see {reports / name}.")
    return ChatDataset(rows)


def joined_sources(sources: Sequence[DataSource], reports: Path | None, name: str) -> ChatDataset | None:
    """All of the sources, one after the other; None where there are none."""
    datasets = [load_part(source, reports, f"{name}-{number}") for number, source in enumerate(sources)]
    if len(datasets) < 2:
        return datasets[0] if datasets else None
    rows: Any = ConcatDataset(datasets)
    return ChatDataset(rows)


def mixture(sources: Sequence[DataSource], datasets: Sequence[Any], seed: int) -> Any:
    """
    What a recipe learns from: one data set, or several mixed by weights.

    Raises:
        ValueError: where some sources have weights and others none, and for streams of unknown length without.
    """
    if len(datasets) == 1:
        return datasets[0]
    weights = [source.weight for source in sources]
    if None in weights and any(weight is not None for weight in weights):
        raise ValueError("data.train: give every source a `weight`, or none, to mix them by their sizes.")
    if None in weights:
        if any(source.streaming for source in sources):
            raise ValueError("data.train: streams have no known size to mix them by; give every source a `weight`.")
        weights = [len(dataset) for dataset in datasets]
    return mix(datasets, weights, seed)


# ---- Batches --------------------------------------------------------------------------------------------------------


def make_collator(recipe: Recipe, processor: MMProcessor, data: RecipeData, model: PreTrainedModel) -> ChatCollator:
    """
    What makes batches of chats, for training; `for_evaluation()` of it changes nothing and leaves nothing out.

    Args:
        model: with an encoder cache, what encodes: its encoders must be frozen
    """
    if recipe.data.encoder_cache is not None:
        cache = filled_cache(recipe, processor, data, model)
        return CachedCollator(processor, cache, modality_dropout=recipe.data.modality_dropout)
    options: dict[str, Any] = {
        "augmentation": recipe.data.augmentation,
        "modality_dropout": recipe.data.modality_dropout,
    }
    if recipe.objective == "classification":
        return ClassificationCollator(processor, recipe.labels, **options)
    return ChatCollator(processor, **options)


def filled_cache(recipe: Recipe, processor: MMProcessor, data: RecipeData, model: PreTrainedModel) -> EncoderCache:
    """The encoder cache with all media of the recipe; one process fills it, and the others read what it wrote."""
    options = recipe.data

    def open_cache() -> EncoderCache:
        return EncoderCache(
            options.encoder_cache,
            base_of(model),
            processor,
            options.augmentation,
            {kind: getattr(options, f"{kind}_views") for kind in MODALITIES},
            dtype=getattr(torch, options.encoder_dtype),
        )

    state = PartialState()
    if state.is_main_process:
        with encoders_on(base_of(model), state.device):
            cache = open_cache()
            for dataset in (*data.train, *chain(*data.alignment.values())):
                cache.fill(rows_of(dataset))
            for dataset in data.measured:
                cache.fill(rows_of(dataset), views=False)
    state.wait_for_everyone()
    return cache if state.is_main_process else open_cache()


def rows_of(dataset: ChatDataset | ChatStream) -> Iterator[ChatRow]:
    """All rows, one after the other."""
    if isinstance(dataset, ChatStream):
        return iter(dataset)
    return (dataset[number] for number in range(len(dataset)))


def base_of(model: PreTrainedModel) -> PreTrainedModel:
    """The model without adapters around it."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


@contextmanager
def encoders_on(model: PreTrainedModel, device: torch.device) -> Iterator[None]:
    """Has the encoders on a device for a while."""
    towers = [tower for tower in (model.base_model.vision_tower, model.base_model.audio_tower) if tower is not None]
    homes = [next(tower.parameters()).device for tower in towers]
    for tower in towers:
        tower.to(device)
    try:
        yield
    finally:
        for tower, home in zip(towers, homes, strict=True):
            tower.to(home)
