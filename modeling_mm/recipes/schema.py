# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Schema of a recipe, a YAML file that says what is trained on what, and how. `modeling_mm.recipes.run` follows it.

Every key and value is checked, in the file and in overrides; an unknown key is refused with the nearest one. Paths
start at the working directory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import yaml
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from transformers import GPT2Config

from ..configuration_mm import MMConfig
from ..evaluation.metrics import METRICS, check_metrics
from ..evaluation.scored import CLASS_METRICS
from ..modalities import MODALITIES
from ..training.alignment import AlignmentOptions
from ..training.arguments import MMTrainingArguments
from ..training.augmentation import Augmentation, ModalityDropout
from ..training.freezing import PARTS
from ..training.lora import LoraOptions
from ..training.pretraining import Masking
from ..utils.validation import build, mapping_of, type_hints
from ..utils.yaml_values import read_values

if TYPE_CHECKING:
    ConfigFields = dict[str, Any]
    TrainingFields = dict[str, Any]
    Part = str
else:
    # The fields of MMConfig itself, without those of PreTrainedConfig, and those of GPT-2's config in it.
    text_fields = mapping_of(dict.fromkeys([*(f.name for f in fields(GPT2Config)), *GPT2Config.attribute_map], Any))
    ConfigFields = mapping_of({**MMConfig.__annotations__, "text_config": text_fields})
    TrainingFields = mapping_of(type_hints(MMTrainingArguments))
    Part = Literal[PARTS]

# Defaults that differ from those of transformers. Restored callbacks make a resumed run equal an unbroken one.
DEFAULTS = {"logging_steps": 10, "report_to": "tensorboard", "save_total_limit": 2}
DEFAULTS |= {"restore_callback_states_from_checkpoint": True}
# With evaluation, the best state is kept rather than the last.
WITH_EVALUATION = {"eval_strategy": "epoch", "load_best_model_at_end": True, "metric_for_best_model": "loss"}


@dataclass(frozen=True)
class ModelSection:
    """
    Source of the model: components to join (`text`, with `vision`, `audio` or both), `pretrained`, or `preset`.

    Args:
        text, vision, audio: Hub ids or paths of pretrained models
        pretrained: Hub id or path of a joint model
        preset: name of a shipped preset, such as `tiny`, or path of an MMConfig in JSON; the weights are random
        processor: Hub id, path or shipped name; by default that of `pretrained`, or made from the components
        config: fields of MMConfig
        dtype: precision of the weights; by default that of the components
        attn_implementation: `sdpa`, `eager`, ...
        trust_remote_code: if components may bring their own code
        ignore_missing: if weights that a checkpoint lacks start at random, such as those of new cross-attention blocks
        locations: if processor and model get the tokens of boxes and points, to learn to point; those of a
            `pretrained` model that has them stay as they are
    """

    text: str | None = None
    vision: str | None = None
    audio: str | None = None
    pretrained: str | None = None
    preset: str | None = None
    processor: str | None = None
    config: ConfigFields = field(default_factory=dict)
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    ignore_missing: bool = False
    locations: bool = False

    @property
    def encoders(self) -> dict[str, str]:
        """Return the encoders to join."""
        sources = {modality.tower: getattr(self, modality.tower, None) for modality in MODALITIES.values()}
        return {tower: source for tower, source in sources.items() if source}

    def __post_init__(self) -> None:
        encoders = self.encoders
        given = [name for name in ("text", "pretrained", "preset") if getattr(self, name)]
        if len(given) != 1 or (encoders and given != ["text"]):
            names = " and ".join([*given, *encoders]) or "none of them"
            raise ValueError(f"expected `text` with encoders, `pretrained` or `preset`; got {names}.")
        if self.preset and not self.processor:
            raise ValueError("`processor` is missing: a preset has no tokenizer.")
        for name in self.config:
            if name.startswith("freeze_"):
                raise ValueError(f"model.config.{name}: write `frozen: {{{name[7:]}: always}}` instead.")
            if self.text and name in MMConfig.sub_configs:
                raise ValueError(f"model.config.{name}: for presets only, as pretrained components have their own.")


@dataclass(frozen=True)
class DataSource:
    """
    One dataset of chats.

    Args:
        source: a .jsonl file, a folder or the Hub id of a dataset, as `load_chats` takes them
        split, subset: part of a dataset
        weight: share of the training examples, in proportion to the weights of the other sources; by default the size
        limit: largest number of examples that are used
        per_answer: largest number of examples of each answer, drawn by `training.seed`, to learn from few labels
        streaming: if examples are read during training, for datasets that are larger than the disk
        note: a sentence on origin and license for the model card
    """

    source: str
    split: str = "train"
    subset: str | None = None
    weight: PositiveFloat | None = None
    limit: PositiveInt | None = None
    per_answer: PositiveInt | None = None
    streaming: bool = False
    note: str | None = None

    def __post_init__(self) -> None:
        if self.streaming and self.per_answer is not None:
            raise ValueError("`per_answer` counts all examples before training. Leave out it or `streaming`.")


def check_used_whole(groups: Mapping[str, Sequence[DataSource]]) -> None:
    """Refuse weights, streams and draws in groups of sources that are used whole."""
    for name, sources in groups.items():
        for source in sources:
            for key in (key for key in ("streaming", "weight", "per_answer") if getattr(source, key)):
                raise ValueError(f"`{key}` in `{name}` has no meaning, as all of it is used. Leave it out.")


@dataclass(frozen=True)
class DataSection:
    """
    Data of a run.

    Args:
        train: training data, mixed by weight
        evaluation: data for evaluation during training, all of it; it chooses the best state
        test: data for the figures of the model card, by name; by default `evaluation`
        clean: if examples that cannot be learned from are left out, and listed in the output's folder `cleaning`. All
            media are read once for it. Without it, the first such example stops the run
        augmentation: random changes of `image` and `audio` in training
        modality_dropout: how often images or audio of an example are removed in training
        encoder_cache: folder for the outputs of frozen encoders, so that each file is encoded once
        image_views, audio_views: with `encoder_cache` and `augmentation`, number of cached views of each file; the
            first is the file as it is
        encoder_dtype: precision of the encoders that fill the cache; bfloat16 is two to three times as fast on
            hardware that has it
        pack_length: pack the examples of a training batch into fewer rows of at most so many tokens, which see
            nothing of each other; for answers (`objective: causal_lm`) that are short or unequal in length
    """

    train: list[DataSource]
    evaluation: list[DataSource] = field(default_factory=list)
    test: dict[str, list[DataSource]] = field(default_factory=dict)
    clean: bool = False
    augmentation: Augmentation | None = None
    modality_dropout: ModalityDropout | None = None
    encoder_cache: str | None = None
    image_views: PositiveInt = 1
    audio_views: PositiveInt = 1
    encoder_dtype: Literal["float32", "bfloat16"] = "float32"
    pack_length: PositiveInt | None = None

    def __post_init__(self) -> None:
        if not self.train:
            raise ValueError("`train` has no source. Name at least one.")
        check_used_whole({"evaluation": self.evaluation} | {f"test.{name}": s for name, s in self.test.items()})
        if any(source.streaming for source in self.train):
            for key, is_set in (("clean", self.clean), ("encoder_cache", self.encoder_cache)):
                if is_set:
                    raise ValueError(f"`{key}` reads all examples before training. Leave out it or `streaming`.")
        self._check_views()

    @property
    def views(self) -> dict[str, int]:
        """Return the number of views by modality."""
        return {kind: getattr(self, f"{kind}_views") for kind in MODALITIES if hasattr(self, f"{kind}_views")}

    def _check_views(self) -> None:
        augmentation = self.augmentation or Augmentation()
        for kind, views in self.views.items():
            if (views > 1) != bool(self.encoder_cache and getattr(augmentation, kind).is_on):
                raise ValueError(
                    f"`{kind}_views` must be above 1 if the `encoder_cache` keeps media changed by "
                    f"`augmentation.{kind}`, and 1 otherwise, got {views}."
                )
        # These depend on more than the file.
        for name in ("image.flip", "audio.mask_time_prob", "audio.mask_feature_prob"):
            kind, _, change = name.partition(".")
            if self.encoder_cache and getattr(getattr(augmentation, kind), change) > 0:
                raise ValueError(f"augmentation.{name} does not work with an `encoder_cache`. Leave one of them out.")


@dataclass(frozen=True)
class Alignment(AlignmentOptions):
    """
    Stage before training in which the connectors learn the decoder's words; see `modeling_mm.training.align`.

    Args:
        images: examples with one image each, whose answers name what it shows
        audio: examples with one audio each, whose answers are the words spoken in it
    """

    images: list[DataSource] = field(default_factory=list)
    audio: list[DataSource] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        groups = {modality.plural: self.sources[kind] for kind, modality in MODALITIES.items() if kind in self.sources}
        if not any(groups.values()):
            raise ValueError(f"expected {' or '.join(f'`{name}`' for name in groups)}, or all of them, got none.")
        check_used_whole(groups)

    @property
    def sources(self) -> dict[str, list[DataSource]]:
        """Return the sources by modality."""
        return {kind: getattr(self, m.plural) for kind, m in MODALITIES.items() if hasattr(self, m.plural)}


@dataclass(frozen=True)
class EarlyStopping:
    """Stop if `patience` evaluations in a row are not better than the best by more than `threshold`."""

    patience: int = 3
    threshold: float = 0.0


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included, integers if both are; on a `log` scale or with a `step`."""

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"`low` must be below `high`, got {self.low} and {self.high}.")
        if self.log and self.low <= 0:
            raise ValueError(f"with `log`, `low` must be above 0, got {self.low}.")
        if self.step is not None and (self.log or self.step <= 0):
            raise ValueError(f"`step` must be above 0 and excludes `log`, got {self.step}.")

    @property
    def is_whole(self) -> bool:
        return all(isinstance(value, int) for value in (self.low, self.high, self.step or 1))


@dataclass(frozen=True)
class Search:
    """
    Hyperparameter search of `--search N`.

    Args:
        space: values of each dotted key: a list, or `low` and `high` with `log: true` or `step`
        method: `tpe` (Optuna's, learns from earlier trials), `random`, or `grid` (every combination, in any order)
        metric: metric to compare, such as `eval_loss` or `eval_exact_match`
        direction: `minimize` or `maximize` it
    """

    space: dict[str, list[str | int | float | bool | None] | Range]
    method: Literal["tpe", "random", "grid"] = "tpe"
    metric: str = "eval_loss"
    direction: Literal["minimize", "maximize"] = "minimize"

    def __post_init__(self) -> None:
        if not self.space:
            raise ValueError("search.space: expected at least one key with its values, got none.")
        for key, values in self.space.items():
            # Data and processor are the same for all trials.
            if not key.startswith(("training.", "model.config.", "lora.")):
                raise ValueError(f"search.space.{key}: trials only change keys of training, model.config and lora.")
            if not values:
                raise ValueError(f"search.space.{key}: expected a list of values, or `low` and `high`, got [].")


@dataclass(frozen=True)
class Card:
    """
    Statements of the model card that only its author can make.

    Args:
        name: title; by default the name of the output folder
        repo_id: repository that the example loads; by default the name
        summary, limits: one paragraph each
        license, languages: the Hub's name of the license, and codes of the languages
        task_types: the Hub's names of tasks, by their kind (the part before the "/")
        metric_types: the Hub's names of metrics, if they differ
    """

    name: str | None = None
    repo_id: str | None = None
    summary: str | None = None
    license: str | None = None
    languages: list[str] = field(default_factory=list)
    limits: str | None = None
    task_types: dict[str, str] = field(default_factory=dict)
    metric_types: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """
    Recipe of a training run.

    Args:
        objective: `causal_lm` (the model learns the answers), `classification` (it learns which of `labels` the
            answer is), `retrieval` (it learns to match each answer, as a text, with its images and audio) or
            `pretraining` (all of these but classification, and masked words, by the weights in `model.config`)
        labels: answers of a classification
        masking: of `pretraining`, the share of `tokens` that are masked, and how often `modalities` are hidden
        gradient_cache: of `retrieval`, rows that are encoded at a time, so that batches may be larger than memory
        frozen: parts that do not learn from the start (text, cross_attention, connectors, vision, audio), each with
            `always` or the steps before it learns; with 0 it learns although the config of the model has frozen it
        lora: low-rank adapters instead of whole matrices, such as `{r: 8}`; see `modeling_mm.training.LoraOptions`.
            They freeze all other parts. The model is saved with the adapters merged, and the adapters beside it
        training: fields of MMTrainingArguments, which extend transformers' TrainingArguments
        task_metrics: metrics beside `exact_match` for `modeling-mm evaluate`, by the part of a task's name before "/";
            those of scores, such as `eer`, for classifications
        overwrite: if a run in the output folder is replaced, instead of resumed or, if it is finished, refused

    Example:
        >>> recipe = read_recipe(find_resource("recipes", "tiny-sample"), ["training.max_steps=3"])
        >>> result = run(recipe)
    """

    model: ModelSection
    data: DataSection
    objective: Literal["causal_lm", "classification", "retrieval", "pretraining"] = "causal_lm"
    labels: list[str] = field(default_factory=list)
    masking: Masking | None = None
    gradient_cache: PositiveInt | None = None
    frozen: dict[Part, NonNegativeInt | Literal["always"]] = field(default_factory=dict)
    lora: LoraOptions | None = None
    training: TrainingFields = field(default_factory=dict)
    alignment: Alignment | None = None
    task_metrics: dict[str, list[str]] = field(default_factory=dict)
    early_stopping: EarlyStopping | None = None
    search: Search | None = None
    card: Card = field(default_factory=Card)
    overwrite: bool = False

    def __post_init__(self) -> None:
        known = METRICS | (CLASS_METRICS if self.objective == "classification" else {})
        check_metrics((name for names in self.task_metrics.values() for name in names), known)
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels must be distinct, got {self.labels}.")
        if self.data.pack_length is not None and self.objective != "causal_lm":
            raise ValueError(
                f"`data.pack_length` packs answers in tokens, which `objective: {self.objective}` does not learn "
                "alone. Leave it out."
            )
        if (self.objective == "classification") != bool(self.labels):
            raise ValueError("`labels` and `objective: classification` belong together. Give both or none.")
        self._check_comparing()
        keeps_best, cache = self.training.get("load_best_model_at_end"), self.data.encoder_cache
        for key, is_set in (("early_stopping", self.early_stopping), ("training.load_best_model_at_end", keeps_best)):
            if is_set and not self.evaluates:
                raise ValueError(f"{key}: it needs evaluations. Give `data.evaluation` and an `eval_strategy`.")
        for key, is_set in (("lora", self.lora), ("labels", self.labels)):
            if self.alignment and is_set:
                raise ValueError(f"alignment: it needs a whole model that generates. Leave out it or `{key}`.")
        if self.lora and self.frozen:
            raise ValueError("lora: it freezes all other parts. Leave out `frozen`.")
        for tower in (modality.tower for modality in MODALITIES.values()):
            has_tower = self.model.text is None or tower in self.model.encoders
            if cache and has_tower and self.frozen.get(tower, "always") != "always":
                raise ValueError(
                    f"frozen.{tower}: it starts to learn at step {self.frozen[tower]}, but `data.encoder_cache` keeps "
                    "its outputs. Leave one of them out."
                )

    @property
    def compares(self) -> bool:
        """Return if the rows of a batch are compared, so that one row alone teaches nothing."""
        return self.objective in ("retrieval", "pretraining")

    def _check_comparing(self) -> None:
        if self.objective != "retrieval" and self.gradient_cache is not None:
            raise ValueError("gradient_cache: only `objective: retrieval` has one. Leave it out.")
        if self.objective != "pretraining" and self.masking is not None:
            raise ValueError("masking: only `objective: pretraining` has one. Leave it out.")
        if not self.compares:
            return
        # Adapters would leave the temperature frozen; the others need answers that are written.
        for key, is_set in (("lora", self.lora), ("alignment", self.alignment), ("task_metrics", self.task_metrics)):
            if is_set:
                raise ValueError(f"{key}: not with `objective: {self.objective}`. Leave one of them out.")

    @property
    def evaluates(self) -> bool:
        """Return if the run evaluates during training."""
        return bool(self.data.evaluation) and self.training.get("eval_strategy") != "no"

    @property
    def output_dir(self) -> Path:
        return Path(self.training["output_dir"])

    def training_arguments(self) -> MMTrainingArguments:
        """Return the training arguments: those of the recipe, on top of the defaults of this module."""
        given: dict[str, Any] = DEFAULTS | {"dataloader_pin_memory": torch.cuda.is_available()}
        if self.compares:
            given["dataloader_drop_last"] = True  # a last batch of one row would have nothing to compare
        given |= (WITH_EVALUATION if self.evaluates else {}) | self.training
        if given.get("load_best_model_at_end"):
            # Keeping the best state needs a checkpoint of each evaluation.
            given.setdefault("save_strategy", given["eval_strategy"])
            if "eval_steps" in given:
                given.setdefault("save_steps", given["eval_steps"])
        return MMTrainingArguments(**given)

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain values, without defaults, and without `overwrite`, which is for one run."""
        return _plain(replace(self, overwrite=False))


def _plain(value: Any) -> Any:
    """Return lists and mappings in place of tuples and dataclasses, without the fields that have their defaults."""
    if hasattr(value, "__dataclass_fields__"):
        given = {}
        for item in fields(value):
            default = item.default if item.default_factory is MISSING else item.default_factory()
            if getattr(value, item.name) != default:
                given[item.name] = _plain(getattr(value, item.name))
        return given
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


# ---- Reading and writing --------------------------------------------------------------------------------------------


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """
    Read a recipe.

    Args:
        path: the YAML file
        overrides: `key=value` each, with a dotted key (`data.train.0.limit=100`) and a value in YAML

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: for an unknown key or a wrong value, with the key and what was expected.
    """
    path = Path(path)
    values = read_values(path, overrides)
    # The output folder is named after the recipe, unless the recipe names another.
    if isinstance(values, dict) and isinstance(values.get("training", {}), dict):
        values = {**values, "training": {"output_dir": f"outputs/{path.stem}", **values.get("training", {})}}
    return build(Recipe, values)


def to_yaml(recipe: Recipe) -> str:
    """Return a recipe as text that `read_recipe` reads."""
    return yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True, width=110)
