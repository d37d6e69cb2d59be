# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Private or changing APIs of transformers, one function each, so that an upgrade is checked in one file."""

import re
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from functools import cache
from importlib import import_module
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers import AutoModel, GenerationConfig, LogitsProcessorList
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

TRANSFORMERS = Version(transformers.__version__).release  # a development version counts as its release


def auto_model_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """
    Return the class that `AutoModel` builds for a config; it offers no such lookup without building the model.

    Some halves of two-tower models, such as CLAP's audio encoder, are in the table of configs, but not of models:
    their class is the one of that name beside the config.
    """
    found = AutoModel._model_mapping.get(type(config), None)
    if found is not None:
        return found[0] if isinstance(found, (tuple, list)) else found
    package, _, module = type(config).__module__.rpartition(".configuration_")
    if package.startswith("transformers.models."):
        models = import_module(f"{package}.modeling_{module}")
        return getattr(models, type(config).__name__.removesuffix("Config") + "Model", None)
    return None


def comes_from_auto_class(arguments: Mapping[str, Any]) -> bool:
    """Return whether an Auto class calls `from_pretrained`: it hands on its config and the arguments of adapters."""
    return arguments.get("config") is not None and "adapter_kwargs" in arguments


def enter_names(key: str, classes: Mapping[str, str]) -> None:
    """
    Enter classes in the tables of names by which `Trainer`, pipelines and `serve` decide what a model is.

    `Auto*.register` leaves these tables alone, and remote code registers with the Auto class that loads it only.

    Args:
        key: the model type, or, for a subclass, any key that no other model has
        classes: the name of the class for each Auto class
    """
    for auto_name, class_name in classes.items():
        getattr(transformers, auto_name)._model_mapping._model_mapping[key] = class_name


def enter_adapter_defaults(model_type: str, like: str, more: Mapping[str, list[str]]) -> None:
    """
    Let PEFT's methods adapt a model by default where they adapt another one; its configs may name no modules.

    Nothing happens until PEFT is imported, as its import takes seconds.

    Args:
        like: the model type whose modules have the same names
        more: modules that the first model has beside one of the other's
    """
    constants = sys.modules.get("peft.utils.constants")
    for table, defaults in list(vars(constants).items()) if constants else ():
        if re.fullmatch(r"TRANSFORMERS_MODELS_TO_\w+_MODULES_MAPPING", table) and like in defaults:
            names = [defaults[like]] if isinstance(defaults[like], str) else list(defaults[like])
            extra = [name for known, added in more.items() if known in names for name in added]
            defaults.setdefault(model_type, [*names, *extra])


def plan_sharding(model: PreTrainedModel) -> None:
    """
    Set how `from_pretrained(distributed_config=...)` shards a model over processes: every block by itself.

    transformers' own plan has Llama's names. This one follows from the modules, those of any encoder among them. What
    is in no block, the table and the head among them, belongs to the root, which is whole during a step.
    """
    blocks = model._no_split_modules or ()
    names = [name for name, module in model.named_modules() if type(module).__name__ in blocks]
    model._fsdp_plan = {re.sub(r"\.\d+(?=\.|$)", ".*", name): "free_full_weight" for name in names}


def nearest_attention(model_class: type[PreTrainedModel], implementation: str | None) -> str | None:
    """Return an attention implementation, or the nearest that a class has: its flags are private."""
    has_flash, has_sdpa = model_class._supports_flash_attn, model_class._supports_sdpa
    known: dict[str | None, bool] = {"sdpa": has_sdpa, "flex_attention": model_class._supports_flex_attn}
    if has_flash if "flash" in (implementation or "") else known.get(implementation, True):
        return implementation
    return "sdpa" if has_sdpa else "eager"


def tells_mask(encoder_class: type[PreTrainedModel]) -> bool:
    """Return whether an encoder has the private method by which `SpeechEncoderDecoderModel` masks its tokens."""
    return hasattr(encoder_class, "_get_feature_vector_attention_mask")


def downsampled_lengths(encoder: PreTrainedModel, lengths: torch.Tensor) -> torch.Tensor | None:
    """Return how many tokens inputs of `lengths` (N,) become; speech encoders have it as a private method."""
    if not hasattr(encoder, "_get_feat_extract_output_lengths"):
        return None
    return encoder._get_feat_extract_output_lengths(lengths)


def rename_published_weights(model: PreTrainedModel, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename and convert weights of a published checkpoint as `from_pretrained` does; it takes no state dict alone."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    transforms = get_model_conversion_mapping(model, add_legacy=False)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    renamed: dict[str, torch.Tensor] = {}
    pending: dict[str, Any] = {}
    for name, weight in state.items():
        own_name, pattern = rename_source_key(name, renamings, converters)
        if pattern is None:
            renamed[own_name] = weight
        else:
            converter = pending.setdefault(own_name, deepcopy(by_pattern[pattern]))
            converter.add_tensor(own_name, name, pattern, weight)
    for own_name, converter in pending.items():
        for target, value in converter.convert(own_name, model=model, config=model.config).items():
            renamed[target] = value[0] if isinstance(value, list) else value
    return renamed


def only_records_outputs(hook: Any) -> bool:
    """Return whether a hook is one that `output_hidden_states` has left on a module; it is idle without it."""
    return getattr(hook, "__module__", None) == "transformers.utils.output_capturing"


def with_offloaded_weights(module: nn.Module) -> AbstractContextManager:
    """Return a context in which a module's own weights are there if accelerate, an extra, has offloaded them."""
    if not hasattr(module, "_hf_hook"):
        return nullcontext()
    return import_module("accelerate.utils").align_module_device(module)


def set_named_tokens(tokenizer: Any, tokens: dict[str, str]) -> None:
    """Give a tokenizer special tokens under new attributes; public only as arguments of its constructor."""
    tokenizer._set_model_specific_special_tokens(tokens)


@cache
def template_variables(template: str) -> frozenset[str]:
    """Return the names of the variables that a chat template reads; only transformers' environment can parse one."""
    from jinja2.meta import find_undeclared_variables
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return frozenset(find_undeclared_variables(_compile_jinja_template(template).environment.parse(template)))


def restore_task(task: str) -> None:
    """Let `pipeline` look a task up again that it refuses by name from 5.19 on."""
    if TRANSFORMERS >= (5, 19):
        transformers.pipelines.REMOVED_TASKS.pop(task, None)


def merge_generate_kwargs(pipe: Any, given: dict, **overrides: Any) -> dict:
    """Return arguments of `generate`: options of the call on top of the pipeline's, which 5.20 merges itself."""
    if TRANSFORMERS >= (5, 20):
        return pipe._prepare_generate_kwargs(given, **overrides)
    return {"generation_config": pipe.generation_config, **given, **overrides}


def chosen_generate_kwargs(pipe: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return options of `generate` that a call gives, on top of the pipeline's, which 5.20 keeps apart.

    Of older ones it is `max_new_tokens` alone, unless it is the model's, or that of every pipeline of the task.
    """
    if TRANSFORMERS >= (5, 20):
        return {**pipe._generate_kwargs, **given}
    most = pipe.generation_config.max_new_tokens
    others = (pipe.model.generation_config.max_new_tokens, pipe._default_generation_config.max_new_tokens)
    return {**({} if most in others else {"max_new_tokens": most}), **given}


def logits_processors(
    model: Any, config: GenerationConfig, prompt_length: int, further: LogitsProcessorList
) -> LogitsProcessorList:
    """Return what `generate` applies to the scores of a prompt without padding; its own loop offers no single step."""
    prepared, model_kwargs = model._prepare_generation_config(config)
    model._prepare_special_tokens(prepared, device=model.device)
    if prepared.max_new_tokens is not None:
        prepared.max_length = prompt_length + prepared.max_new_tokens
    return model._get_logits_processor(
        prepared,
        input_ids_seq_length=prompt_length,
        logits_processor=further,
        device=model.device,
        model_kwargs=model_kwargs,
    )


def spec_augment_spans(*args: Any, **kwargs: Any) -> Any:
    """Draw the spans of SpecAugment, (N, T) numpy bool; every speech model has its own private copy."""
    from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices

    return _compute_mask_indices(*args, **kwargs)


def decode_whisper(tokenizer: Any, outputs: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    """Return the text of a Whisper's tokens, with its chunks, their timestamps and languages if options want them."""
    text, more = tokenizer._decode_asr(outputs, **options)
    return {"text": text, **more}
