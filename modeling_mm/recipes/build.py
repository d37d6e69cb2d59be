# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Processor, model, data and collator of a recipe."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any, cast

import torch
from accelerate import PartialState
from torch.utils.data import ConcatDataset
from transformers import (
    AutoModelForImageTextToText,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    PreTrainedModel,
    set_seed,
)

from ..configuration_mm import MMConfig
from ..data.cleaning import clean
from ..data.examples import few_of_each
from ..data.mixture import ChatMixture, mix
from ..data.reading import ChatDataset, ChatRow, ChatStream, load_chats
from ..joining import fit_to_tokenizer, joint_generation_config, special_token_ids
from ..modalities import MODALITIES
from ..modeling_mm import MMForConditionalGeneration, MMForSequenceClassification
from ..pretraining import MMForPreTraining
from ..processing_mm import MMProcessor
from ..retrieval import MMForRetrieval
from ..training.arguments import MMTrainingArguments
from ..training.code_cache import CodeCache
from ..training.collators import (
    CachedClassificationCollator,
    CachedCollator,
    ChatCollator,
    ClassificationCollator,
)
from ..training.encoder_cache import EncoderCache
from ..training.freezing import parts_of
from ..training.lora import add_lora
from ..training.matching import CachedRetrievalCollator, RetrievalCollator
from ..training.pretraining import PretrainingCollator
from ..utils.resources import resource_or_path
from .schema import DataSource, ModelSection, Recipe

Chats = ChatDataset | ChatStream
DEFAULT_SEED: int = MMTrainingArguments.__dataclass_fields__["seed"].default  # type: ignore[assignment]

MODEL_CLASSES = {
    "causal_lm": MMForConditionalGeneration,
    "classification": MMForSequenceClassification,
    "pretraining": MMForPreTraining,
    "retrieval": MMForRetrieval,
}
AUTO_CLASSES = {
    "causal_lm": AutoModelForImageTextToText,
    "classification": AutoModelForSequenceClassification,
    "pretraining": AutoModelForPreTraining,
    "retrieval": AutoModelForZeroShotImageClassification,
}


# ---- Processor and model --------------------------------------------------------------------------------------------


def make_processor(section: ModelSection) -> MMProcessor:
    """Load the processor of the recipe or of its joint model, or make one from the components."""
    source = section.processor or section.pretrained
    if source is not None:
        processor = AutoProcessor.from_pretrained(resource_or_path("presets", source))
    else:
        loading = {"trust_remote_code": True} if section.trust_remote_code else {}
        processor = MMProcessor.from_text_vision_audio_pretrained(section.text, **section.encoders, **loading)
    if section.locations:
        processor.add_location_tokens()
    return processor


def make_model(recipe: Recipe, processor: MMProcessor, seed: int) -> PreTrainedModel:
    """Make the model to train, with frozen parts and adapters. New weights depend on the seed alone."""
    set_seed(seed)
    model = load_model(recipe, processor)
    processor.use_codecs(model)
    if recipe.model.locations:
        add_locations(recipe, model, processor)
    if recipe.gradient_cache is not None:
        model.set_gradient_cache(recipe.gradient_cache)
    if recipe.lora is not None:
        return add_lora(model, asdict(recipe.lora))
    parts = {name: parameters for name, parameters in parts_of(model).items() if parameters}
    for name in recipe.frozen:
        if name not in parts:
            raise ValueError(f"frozen.{name}: the model has no such part. It has {', '.join(parts)}.")
        for _, parameter in parts[name]:
            parameter.requires_grad_(False)
    return model


def add_locations(recipe: Recipe, model: PreTrainedModel, processor: MMProcessor) -> None:
    """Give the model location tokens, unless it has them; raise a ValueError if it could not learn new ones."""
    has_learned = recipe.model.pretrained is not None and model.config.location_token_id is not None
    frozen = "lora" if recipe.lora is not None else "frozen.text" if recipe.frozen.get("text") == "always" else None
    if frozen is not None and not has_learned:
        raise ValueError(
            f"model.locations: the embeddings of new location tokens would not learn, because of `{frozen}`. Leave "
            "out one of them, or start from a `pretrained` model that has learned to point."
        )
    model.add_location_tokens(processor)


def load_model(recipe: Recipe, processor: MMProcessor) -> PreTrainedModel:
    """Load a joint model, join components, or make a model with random weights from a preset."""
    section, model_class = recipe.model, MODEL_CLASSES[recipe.objective]
    loading = {name: getattr(section, name) for name in ("dtype", "attn_implementation") if getattr(section, name)}
    options = {**section.config, **({"num_labels": len(recipe.labels)} if recipe.labels else {})}
    if section.ignore_missing and section.preset is None:
        loading["ignore_missing"] = True
    if section.preset is not None:
        config = MMConfig.from_pretrained(
            resource_or_path("presets", section.preset), **options, **special_token_ids(processor)
        )
        fit_to_tokenizer(config, processor)
        model = AUTO_CLASSES[recipe.objective].from_config(config, **loading)
        if model.can_generate():
            model.generation_config = joint_generation_config(model, config, model.generation_config)
    elif section.pretrained is not None:
        # Given to the model, the options would be kept among its generation settings, too.
        config = MMConfig.from_pretrained(section.pretrained, **options) if options else None
        model = model_class.from_pretrained(section.pretrained, config=config, **loading)
    else:
        if section.trust_remote_code:
            loading["trust_remote_code"] = True
        options |= {**section.encoders, **loading}
        model = model_class.from_text_vision_audio_pretrained(section.text, tokenizer=processor, **options)
    if recipe.labels:
        model.config.id2label = dict(enumerate(recipe.labels))
        model.config.label2id = {label: number for number, label in enumerate(recipe.labels)}
    return model


# ---- Data -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RecipeData:
    """Data of a recipe: training sources, evaluation set, test sets by name, alignment sources by modality."""

    train: Sequence[Chats]
    evaluation: ChatDataset | None
    test: Mapping[str, ChatDataset]
    alignment: Mapping[str, Sequence[Chats]] = field(default_factory=dict)


def load_data(recipe: Recipe) -> RecipeData:
    """Load all data of a recipe, cleaned if the recipe says so."""

    def load_all(sources: Sequence[DataSource], name: str) -> list[Chats]:
        datasets = [load_source(source, recipe.training.get("seed", DEFAULT_SEED)) for source in sources]
        if not recipe.data.clean:
            return datasets
        return [cleaned(recipe, d, s, f"{name}-{i}") for i, (d, s) in enumerate(zip(datasets, sources, strict=True))]

    data, alignment = recipe.data, recipe.alignment.sources if recipe.alignment is not None else {}
    train = load_all(data.train, "train")
    check_labels_occur(recipe.labels, train)
    return RecipeData(
        train=train,
        evaluation=concatenated(load_all(data.evaluation, "evaluation")) if data.evaluation else None,
        test={name: concatenated(load_all(sources, name)) for name, sources in data.test.items()},
        alignment={kind: load_all(sources, kind) for kind, sources in alignment.items()},
    )


def check_labels_occur(labels: Sequence[str], datasets: Sequence[Chats]) -> None:
    """
    Check that each label has an example to be learned from. Streams are not read for it.

    Raises:
        ValueError: for labels that are no example's answer.
    """
    if any(isinstance(dataset, ChatStream) for dataset in datasets):
        return
    missing, answers = dict.fromkeys(labels), Counter[str]()
    for row in chain(*map(rows_of, datasets)):
        if not missing:
            return
        missing.pop(row.answer, None)
        answers[row.answer] += 1
    if missing:
        found = ", ".join(f"{answer!r} ({count})" for answer, count in answers.most_common(10))
        raise ValueError(
            f"labels: no example of data.train has the answer {' or '.join(map(repr, missing))}, so that it cannot be "
            f"learned. The answers are {found}. Add examples, or remove the label."
        )


def load_source(source: DataSource, seed: int = DEFAULT_SEED) -> Chats:
    """Load a dataset of a recipe; what is drawn of it depends on the seed."""
    dataset = load_chats(
        source.source, split=source.split, streaming=source.streaming, name=source.subset, limit=source.limit
    )
    return dataset if source.per_answer is None else few_of_each(cast(ChatDataset, dataset), source.per_answer, seed)


def cleaned(recipe: Recipe, dataset: Chats, source: DataSource, name: str) -> ChatDataset:
    """Return the examples that can be learned from, and report on the others."""
    is_main = PartialState().is_main_process
    rows, report = clean(cast(Iterable[Any], dataset), progress=is_main)
    folder = recipe.output_dir / "cleaning" / name.replace("/", "-")
    if is_main:
        report.save(folder)
        print(f"{source.source}: {str(report).splitlines()[0]}")
    if not rows:
        raise ValueError(f"{source.source}: no example is left after cleaning. See {folder}.")
    return ChatDataset(rows)


def concatenated(datasets: Sequence[Chats]) -> ChatDataset:
    if len(datasets) == 1:
        return cast(ChatDataset, datasets[0])
    return ChatDataset(cast(Sequence[ChatRow], ConcatDataset(datasets)))


def mixture(sources: Sequence[DataSource], datasets: Sequence[Chats], seed: int) -> Chats | ChatMixture:
    """Return the only dataset, or a mixture of several by their weights or sizes."""
    if len(datasets) == 1:
        return datasets[0]
    weights = [source.weight for source in sources if source.weight is not None]
    if 0 < len(weights) < len(sources):
        raise ValueError("data.train: some sources have a `weight`. Give every source one, or none to mix by size.")
    if not weights and any(source.streaming for source in sources):
        raise ValueError("data.train: streams have no known size to mix by. Give every source a `weight`.")
    return mix(datasets, weights or [len(cast(ChatDataset, dataset)) for dataset in datasets], seed)


def rows_of(dataset: Chats) -> Iterator[ChatRow]:
    """Yield all rows of a dataset or a stream."""
    return iter(dataset) if isinstance(dataset, ChatStream) else (dataset[i] for i in range(len(dataset)))


# ---- Batches --------------------------------------------------------------------------------------------------------


def make_collator(
    recipe: Recipe, processor: MMProcessor, data: RecipeData, model: PreTrainedModel | None
) -> ChatCollator:
    """Make the collator for training. An encoder cache needs the model, with frozen encoders."""
    section = recipe.data
    common: dict[str, Any] = {"modality_dropout": section.modality_dropout}
    if model is not None and model.config.text_position_encoding == "learned":
        common["most_tokens"] = model.config.text_config.n_positions
    if section.encoder_cache is None or model is None:
        options = {"augmentation": section.augmentation, **common}
        if recipe.objective == "classification":
            return ClassificationCollator(processor, recipe.labels, **options)
        if recipe.objective == "retrieval":
            return RetrievalCollator(processor, **options)
        chats = ChatCollator(processor, **options, pack_length=section.pack_length)
    else:
        cache = filled_cache(recipe, processor, data, model)
        if processor.written:
            common["code_cache"] = CodeCache(section.encoder_cache, processor)
        if recipe.objective == "classification":
            return CachedClassificationCollator(processor, cache, recipe.labels, **common)
        if recipe.objective == "retrieval":
            return CachedRetrievalCollator(processor, cache, **common)
        chats = CachedCollator(processor, cache, **common, pack_length=section.pack_length)
    return PretrainingCollator(processor, recipe.masking, chats) if recipe.objective == "pretraining" else chats


def filled_cache(recipe: Recipe, processor: MMProcessor, data: RecipeData, model: PreTrainedModel) -> EncoderCache:
    """Return the encoder cache with all media of the data. The main process fills it, the others read it."""
    section, base = recipe.data, model.get_base_model() if hasattr(model, "peft_config") else model

    def open_cache() -> EncoderCache:
        dtype = getattr(torch, section.encoder_dtype)
        assert section.encoder_cache is not None
        return EncoderCache(section.encoder_cache, base, processor, section.augmentation, section.views, dtype=dtype)

    state = PartialState()
    if state.is_main_process:
        with encoders_on(base, state.device):
            cache = open_cache()
            for dataset in (*data.train, *chain(*data.alignment.values())):
                cache.fill(rows_of(dataset))
            for measured in (data.evaluation, *data.test.values()):
                if measured is not None:
                    cache.fill(rows_of(measured), views=False)
    state.wait_for_everyone()
    return cache if state.is_main_process else open_cache()


@contextmanager
def encoders_on(model: PreTrainedModel, device: torch.device) -> Iterator[None]:
    """Move the encoders to a device, and back at the end."""
    towers = [getattr(model.base_model, modality.tower_attribute) for modality in MODALITIES.values()]
    homes = [(tower, next(tower.parameters()).device) for tower in towers if tower is not None]
    for tower, _ in homes:
        tower.to(device)
    try:
        yield
    finally:
        for tower, home in homes:
            tower.to(home)
