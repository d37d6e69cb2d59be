# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
A recipe: one YAML file that says what is trained on what, and how. `modeling_mm.recipes.run` follows it.

`read_recipe(path, ["training.learning_rate=1e-4", "lora.r=8"])` reads one, with values put on top of the file's. Every
key is checked, in the file and on top; a wrong one is refused with the nearest that is right. Paths are taken from the
folder in which the command is run, like those of any other command.
"""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from transformers import GPT2Config

from ..configuration_mm import MMConfig
from ..evaluation.metrics import check_metrics
from ..modalities import MODALITIES
from ..training.alignment import AlignmentOptions
from ..training.arguments import MMTrainingArguments
from ..training.augmentation import Augmentation, ModalityDropout
from ..training.freezing import PARTS
from ..training.lora import LoraOptions
from ..utils.validation import build, check_mapping, check_names, type_hints
from ..utils.yaml_values import apply_override, parse_yaml

# What a recipe changes of the defaults of transformers, unless it says otherwise: a loss on the bar and in TensorBoard
# soon, and a run that goes on from where it stopped as if it had not.
DEFAULTS = {
    "logging_steps": 10,
    "report_to": "tensorboard",
    "save_total_limit": 2,
    "restore_callback_states_from_checkpoint": True,
}
# With data to evaluate on, the best state is kept rather than the last.
DEFAULTS_WITH_EVALUATION = {
    "eval_strategy": "epoch",
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
}


@dataclass(frozen=True)
class ModelSection:
    """
    Where the model comes from. One of three: parts to join (`text`, with `vision`, `audio` or both); `pretrained`, a
    joint model to go on from; `preset`, a whole configuration, for random weights.

    Args:
        text, vision, audio: Hub ids or paths of pretrained models
        pretrained: Hub id or path of a joint model
        preset: name of a shipped preset, such as `tiny`, or path of an MMConfig in JSON
        processor: Hub id, path or shipped name of a processor; by default that of `pretrained`, or made from the parts
        config: fields of MMConfig
        dtype: the precision of the weights, such as `float32` or `bfloat16`; that of the parts by default
        attn_implementation: `sdpa`, `eager`, ...
        trust_remote_code: whether parts may bring code of their own
    """

    text: str | None = None
    vision: str | None = None
    audio: str | None = None
    pretrained: str | None = None
    preset: str | None = None
    processor: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self):
        ways = {
            "text (with vision and audio)": self.text or self.vision or self.audio,
            "pretrained": self.pretrained,
            "preset": self.preset,
        }
        given = [name for name, value in ways.items() if value]
        if len(given) != 1:
            raise ValueError(
                f"expected exactly one of {'; '.join(ways)}, got {' and '.join(given) or 'none of them'}."
            )
        if self.text is None and (self.vision or self.audio):
            raise ValueError("`text` is missing: encoders are joined to a decoder.")
        if self.preset and not self.processor:
            raise ValueError("`processor` is missing: a preset is a model's configuration and has no tokenizer.")
        check_config(self.config, "model.config", joins=self.text is not None)

    @staticmethod
    def free_keys() -> dict[str, list[str]]:
        return {"config": list(MMConfig.__annotations__)}


@dataclass(frozen=True)
class DataSource:
    """
    One set of chat samples.

    Args:
        source: a .jsonl file, a folder or the Hub id of a data set, as `load_chats` takes them
        split, subset: which part of a data set
        weight: its share of what is learned from, in proportion to the weights of the other sources; by default that
            of its size
        limit: how many samples of it are used at most
        streaming: read while training, for data sets that are larger than the disk
        note: where it comes from and its licence, a sentence for the model card
    """

    source: str
    split: str = "train"
    subset: str | None = None
    weight: float | None = None
    limit: int | None = None
    streaming: bool = False
    note: str | None = None

    def __post_init__(self):
        if self.weight is not None and not self.weight > 0:
            raise ValueError(f"weight must be above 0, got {self.weight}; leave the source out instead.")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1, got {self.limit}.")


@dataclass(frozen=True)
class DataSection:
    """
    Args:
        train: what is learned from, mixed by weight
        evaluation: what is looked at during training, all of it; the best state is chosen by it
        test: what the card's figures are from, by name; `evaluation` where there is none
        clean: leave out samples that cannot be learned from, and list them in the folder `cleaning` of the output; all
            media are read once for it. Otherwise the first such sample stops the run
        augmentation: `image` and `audio`, each with fields of its own; in training alone
        modality_dropout: how often the pictures or sounds of a sample are taken away; in training alone
        encoder_cache: a folder for the outputs of frozen encoders, so that each picture and sound is encoded once
        image_views, audio_views: with `encoder_cache` and `augmentation`, in how many ways each file is kept: as it
            is, and otherwise changed
        encoder_dtype: what the encoders compute in for the cache; bfloat16 is two to three times as fast where the
            machine has it
    """

    train: list[DataSource]
    evaluation: list[DataSource] = field(default_factory=list)
    test: dict[str, list[DataSource]] = field(default_factory=dict)
    clean: bool = False
    augmentation: Augmentation | None = None
    modality_dropout: ModalityDropout | None = None
    encoder_cache: str | None = None
    image_views: int = 1
    audio_views: int = 1
    encoder_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        if not self.train:
            raise ValueError("`train` has no source; name at least one.")
        for name, sources in (("evaluation", self.evaluation), *((f"test.{n}", s) for n, s in self.test.items())):
            for source in sources:
                if source.weight is not None or source.streaming:
                    key = "streaming" if source.streaming else "weight"
                    raise ValueError(f"`{key}` in `{name}` has no meaning: all of it is used. Leave it out.")
        if self.clean and any(source.streaming for source in self.train):
            raise ValueError("clean: it reads all samples before training, which a stream is too long for.")
        self._check_cache()

    def _check_cache(self):
        augmentation = self.augmentation or Augmentation()
        for name, is_on in (("image", augmentation.image.is_on), ("audio", augmentation.audio.is_on)):
            views = getattr(self, f"{name}_views")
            if views < 1 or (views > 1 and not (self.encoder_cache and is_on)):
                raise ValueError(
                    f"{name}_views: expected 1, or more with `encoder_cache` and `augmentation.{name}`; got {views}."
                )
            if self.encoder_cache and is_on and views == 1:
                raise ValueError(
                    f"augmentation.{name} has no effect with an `encoder_cache` that keeps one view of each file: set "
                    f"{name}_views to the number to keep, or leave one of them out."
                )
        if not self.encoder_cache:
            return
        for name, value in (
            ("image.flip", augmentation.image.flip),
            ("audio.mask_time_prob", augmentation.audio.mask_time_prob),
            ("audio.mask_feature_prob", augmentation.audio.mask_feature_prob),
        ):
            if value > 0:
                raise ValueError(
                    f"augmentation.{name} depends on more than the file and cannot be kept in an `encoder_cache`: "
                    "leave one of them out."
                )
        if any(source.streaming for source in self.train):
            raise ValueError(
                "encoder_cache: it is filled before training, which a stream is too long for. Leave one out."
            )


@dataclass(frozen=True)
class Alignment(AlignmentOptions):
    """
    A stage before training in which the connectors learn the decoder's words; see `modeling_mm.training.alignment`.

    Args:
        images: samples with one image each, whose answers name what it shows
        audio: samples with one audio each, whose answers are the words spoken in it
    """

    images: list[DataSource] = field(default_factory=list)
    audio: list[DataSource] = field(default_factory=list)

    def __post_init__(self):
        super().__post_init__()
        if not any(self.sources.values()):
            raise ValueError("expected `images`, `audio` or both, got none of them.")
        for name, sources in self.sources.items():
            for source in sources:
                if source.weight is not None or source.streaming:
                    key = "streaming" if source.streaming else "weight"
                    raise ValueError(f"`{key}` in `{name}` has no meaning: all of it is used. Leave it out.")

    @property
    def sources(self) -> dict[str, list[DataSource]]:
        """Return the sources by modality."""
        return {kind: getattr(self, modality.plural) for kind, modality in MODALITIES.items()}


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when `patience` evaluations in a row were not better than the best by more than `threshold`."""

    patience: int = 3
    threshold: float = 0.0


@dataclass(frozen=True)
class Search:
    """
    What `--search N` tries.

    Args:
        space: for each dotted key its values: a list of choices, or `low` and `high` with `log: true` (a scale by
            factors) or `step`
        method: `tpe` (Optuna's, learns from the trials before), `random`, or `grid` (every combination, in any order)
        metric: what is compared, such as `eval_loss` or `eval_exact_match`
        direction: `minimize` or `maximize` it
    """

    space: dict[str, Any]
    method: Literal["tpe", "random", "grid"] = "tpe"
    metric: str = "eval_loss"
    direction: Literal["minimize", "maximize"] = "minimize"


@dataclass(frozen=True)
class Card:
    """
    Statements of the model card that only its author can make.

    Args:
        name: title; by default the name of the output folder
        repo_id: repository that the example loads; by default the name
        summary, limits: one paragraph each
        license, languages: the Hub's name of the license, and codes of the languages
        task_types: the Hub's names of tasks, by their kind (what stands before the "/")
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
    Args:
        objective: `causal_lm` (it learns the answers) or `classification` (it learns which of `labels` the answer is)
        labels: the answers of a classification
        frozen: for each part that does not learn from the start (text, cross_attention, connectors, vision, audio)
            `always`, or the step at which it begins to
        lora: low-rank adapters instead of whole matrices, such as `{r: 8}`; see LoraOptions. All parts but what these
            name are frozen. The trained model is saved with the adapters merged, and these beside it
        training: fields of MMTrainingArguments, which are those of transformers' TrainingArguments and a few more
        alignment: a stage before training in which the connectors learn the decoder's words
        task_metrics: for `modeling-mm evaluate`, metrics beside `exact_match` by the part of a task's name before "/"
        overwrite: start anew in an output folder that holds a run, instead of going on (or, where that run has ended,
            of refusing)
    """

    model: ModelSection
    data: DataSection
    objective: Literal["causal_lm", "classification"] = "causal_lm"
    labels: list[str] = field(default_factory=list)
    frozen: dict[str, int | Literal["always"]] = field(default_factory=dict)
    lora: LoraOptions | None = None
    training: dict[str, Any] = field(default_factory=dict)
    alignment: Alignment | None = None
    task_metrics: dict[str, list[str]] = field(default_factory=dict)
    early_stopping: EarlyStopping | None = None
    search: Search | None = None
    card: Card = field(default_factory=Card)
    overwrite: bool = False

    def __post_init__(self):
        check_metrics(name for names in self.task_metrics.values() for name in names)
        check_names(self.frozen, PARTS, "frozen")
        for part, step in self.frozen.items():
            if step != "always" and step < 1:
                raise ValueError(f"frozen.{part}: expected `always` or a step of at least 1, got {step}.")
        check_mapping(self.training, type_hints(MMTrainingArguments), "training")
        if (self.objective == "classification") != bool(self.labels):
            raise ValueError("`labels` and `objective: classification` belong together: give both or none.")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels: expected distinct texts, got {self.labels}.")
        needs_evaluation = {
            "early_stopping": self.early_stopping is not None,
            "training.load_best_model_at_end": self.training.get("load_best_model_at_end", False),
        }
        for key, is_wanted in needs_evaluation.items():
            if is_wanted and not self.evaluates:
                raise ValueError(f"{key}: it looks at evaluations; give `data.evaluation` and an `eval_strategy`.")
        if self.lora is not None and self.frozen:
            raise ValueError("lora: it freezes every part by itself; leave out `frozen`.")
        if self.alignment is not None:
            for key, is_given in (("lora", self.lora is not None), ("labels", bool(self.labels))):
                if is_given:
                    raise ValueError(f"alignment: it is for a whole model that writes; leave it or `{key}` out.")
        if self.data.encoder_cache:
            self._check_cache()

    def _check_cache(self):
        if self.objective == "classification":
            raise ValueError("data.encoder_cache: it is for `objective: causal_lm`; leave it out.")
        for part in ("vision", "audio"):
            has_part = self.model.text is None or getattr(self.model, part) is not None
            if has_part and self.lora is None and self.frozen.get(part, "always") != "always":
                raise ValueError(
                    f"frozen.{part}: it thaws at step {self.frozen[part]}, and `data.encoder_cache` keeps what it "
                    "made before. Leave one of them out."
                )

    @staticmethod
    def free_keys() -> dict[str, list[str]]:
        return {"training": [f.name for f in fields(MMTrainingArguments) if f.init]}

    @property
    def evaluates(self) -> bool:
        """Whether it is looked at `data.evaluation` during training."""
        return bool(self.data.evaluation) and self.training.get("eval_strategy") != "no"

    def training_arguments(self) -> MMTrainingArguments:
        """The recipe's TrainingArguments: its own, on top of the defaults of this module."""
        given: dict[str, Any] = DEFAULTS | {"dataloader_pin_memory": torch.cuda.is_available()}
        given |= (DEFAULTS_WITH_EVALUATION if self.evaluates else {}) | self.training
        if given.get("load_best_model_at_end"):
            # The best state can only be kept if there is one saved for each evaluation.
            given.setdefault("save_strategy", given["eval_strategy"])
            if "eval_steps" in given:
                given.setdefault("save_steps", given["eval_steps"])
        return MMTrainingArguments(**given)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain values, without what is as by default, and `overwrite`, which is for one time."""
        return without_defaults(replace(self, overwrite=False))


def without_defaults(section: Any) -> dict[str, Any]:
    values = {}
    for item in fields(section):
        value = getattr(section, item.name)
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        if value != default:
            values[item.name] = plain(value)
    return values


def plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return without_defaults(value)
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def check_config(config: dict[str, Any], where: str, joins: bool) -> None:
    """
    Raises:
        ValueError: for what is no field of MMConfig or of GPT-2's config, and for what has another place in a recipe.
    """
    check_mapping(config, MMConfig.__annotations__, where)  # not the fields of PreTrainedConfig
    for name in config:
        if name.startswith("freeze_"):
            raise ValueError(f"{where}.{name}: write `frozen: {{{name.removeprefix('freeze_')}: always}}` instead.")
        if joins and name in ("text_config", "vision_config", "audio_config"):
            raise ValueError(f"{where}.{name}: the pretrained parts bring theirs; it is for a preset.")
    if isinstance(config.get("text_config"), dict):
        names = [item.name for item in fields(GPT2Config)]
        check_names(config["text_config"], [*names, *GPT2Config.attribute_map], f"{where}.text_config")


# ---- Reading and writing --------------------------------------------------------------------------------------------


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """
    Args:
        path: the YAML file
        overrides: `key=value` each, the key dotted (`data.train.0.limit=100`), the value in YAML

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for unknown keys and wrong values, with the key, what was expected and what came.
    """
    path = Path(path)
    if not path.is_file():
        shipped = ", ".join(str(other) for other in sorted(path.parent.glob("*.yaml"))) or "none"
        raise FileNotFoundError(f"There is no recipe {path}. Recipes beside it: {shipped}.")
    values = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    for override in overrides:
        values = apply_override(values, override)
    return build(Recipe, with_output_folder(values, path.stem))


def with_output_folder(values: Any, name: str) -> Any:
    """The output folder and the card's name are the recipe's name, unless it says otherwise."""
    if not isinstance(values, dict) or not isinstance(values.get("training", {}), dict):
        return values
    return {**values, "training": {"output_dir": f"outputs/{name}", **values.get("training", {})}}


def to_yaml(recipe: Recipe) -> str:
    """A recipe as a file that `read_recipe` takes."""
    return yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True, width=110)
