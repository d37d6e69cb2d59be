# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Base classes of the pipelines: the models they serve, their processor, their batches, and generation.

Shape legend: B rows, L tokens, K answers of a row.
"""

import os
from collections.abc import Collection, Mapping, Sized
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset
from transformers.pipelines.base import ChunkPipeline, Pipeline, load_assistant_model, no_collate_fn
from transformers.pipelines.pt_utils import (
    KeyDataset,
    PipelineChunkIterator,
    PipelineDataset,
    PipelineIterator,
    PipelinePackIterator,
)
from transformers.utils import logging
from transformers.utils.chat_template_utils import is_valid_message

from .code_tokens import code_tokens_of
from .compat import merge_generate_kwargs, template_variables
from .configuration_mm import IS_REMOTE_CODE, MMConfig
from .control_tokens import mark
from .modalities import MODALITIES
from .processing_mm import AUTO_CLASSES, MMProcessor
from .sources import describe

logger = logging.get_logger(__name__)

Parameters = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]  # of preprocess, forward and postprocess


def load_processor(model: Any, parts: dict[str, Any]) -> MMProcessor:
    """
    Load the processor from where a model was loaded, with the given parts; or make one of the parts alone.

    Raises:
        ValueError: if there is no processor and no tokenizer.
    """
    parts = {name: part for name, part in parts.items() if part is not None}
    if source := model.config._name_or_path:
        options: dict[str, Any] = {} if model.loaded_revision is None else {"revision": model.loaded_revision}
        if IS_REMOTE_CODE:  # this is code of that folder, which the caller has allowed
            options["trust_remote_code"] = True
        try:
            return MMProcessor.from_pretrained(source, **options, **parts)
        except OSError as error:
            logger.warning(f"No processor could be loaded from {source!r}, so it is made of the parts: {error}")
    if "tokenizer" not in parts:
        raise ValueError(
            f"expected a processor, or the parts of one ({', '.join(AUTO_CLASSES)}) with a tokenizer among them; got "
            f"{', '.join(parts) or 'none'}, and a model without a folder or repository: pass `processor=`"
        )
    if model.config.prompt_token_ids is not None:  # it was converted
        return MMProcessor.from_encoder_decoder(SimpleNamespace(**parts), placeholders=model.config.placeholders)
    return MMProcessor(**parts)


def messages_of(inputs: Any) -> list[dict[str, Any]] | None:
    """Return the messages of a chat: a list, wrapped by `Pipeline`, or in a dict; None for anything else."""
    if isinstance(inputs, dict) and "messages" in inputs:
        check_keys(inputs, ("messages",))
        return inputs["messages"]
    messages = getattr(inputs, "messages", inputs)
    is_chat = isinstance(messages, (list, tuple)) and len(messages) > 0 and is_valid_message(messages[0])
    return messages if is_chat else None


def as_stream(inputs: Any) -> Any:
    """Wrap a `KeyDataset`, of which `Pipeline` would read all rows to see if they are chats."""
    return Subset(inputs, range(len(inputs))) if isinstance(inputs, KeyDataset) else inputs


def check_keys(inputs: dict, known: tuple[str, ...]) -> None:
    """Raise a `ValueError` for unknown keys, which would be ignored."""
    if unknown := set(inputs) - set(known):
        raise ValueError(
            f"expected a dict with keys among {', '.join(known)}; got {sorted(unknown)} too: leave them out, or "
            "rename them"
        )


def check_options(options: Mapping[str, Any], known: Collection[str], *named: str) -> None:
    """
    Raise a `ValueError` for options that a pipeline would ignore.

    Args:
        known: names of options that are used.
        named: names for the message, where `known` are many.
    """
    if unknown := sorted(set(options) - set(known)):
        others = ", ".join(name for name in named if name not in ("self", "kwargs", "generate_kwargs"))
        raise ValueError(
            f"got {', '.join(unknown)}, which this pipeline does not use for such an input; expected one of {others}"
            f"{', or an option of the processor or its chat template' if known else ''}. Leave it out, correct its "
            "name, or pass media with their text as one input"
        )


def refuse_timeout(timeout: Any) -> None:
    """Raise a `ValueError` for a limit on downloads that would not hold."""
    if timeout is not None:
        raise ValueError("`timeout` is not for this processor, which has its own limit; fetch the media before")


def take(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """Move options of these names out of `options`; leave out those with the value None."""
    return {name: value for name in names if (value := options.pop(name, None)) is not None}


def given_media(**media: Any) -> dict[str, Any]:
    """Return the media that a caller has passed, by the names of their arguments."""
    return {name: value for name, value in media.items() if value is not None}


def rows_with_media(text: Any, **media: Any) -> Any:
    """
    Return a dict for each text with its media, or inputs that are rows already.

    Args:
        text: a text, a list of texts, or rows of any kind, which are returned as they are.
        media: of the text by name; lists as long as the list of texts; None for none.

    Raises:
        ValueError: for lists of unequal lengths.
    """
    media = given_media(**media)
    if text is None or isinstance(text, str):
        return {"text": text, **media}
    if not media and not (isinstance(text, list) and text and all(isinstance(each, str) for each in text)):
        return text
    columns = {"text": text, **media}
    if any(not isinstance(column, list) or len(column) != len(text) for column in columns.values()):
        sizes = {name: len(c) if isinstance(c, list) else describe(c) for name, c in columns.items()}
        raise ValueError(
            "expected lists of one length for texts and media, got "
            f"{', '.join(f'{size} ({name})' for name, size in sizes.items())}; pass a dict for each text instead"
        )
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


class MMPipeline(Pipeline):
    """
    A pipeline for the models of this package.

    `stock` is transformers' pipeline of the same task, which serves every other model; None if there is none.
    """

    stock: type[Pipeline] | None = None
    processor: Any  # an MMProcessor, whose options are declared by its parts

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        model = kwargs.get("model", args[0] if args else None)
        if model is None or getattr(model.config, "model_type", None) == MMConfig.model_type:
            return super().__new__(cls)
        if cls.stock is None:
            raise ValueError(
                f"{cls.__name__} serves models of the type {MMConfig.model_type!r}, got a {type(model).__name__} of "
                f"the type {model.config.model_type!r}; use `pipeline('image-text-to-text')`, if it is for that"
            )
        return cls.stock(*args, **kwargs)

    def __init__(self, model: Any, processor: MMProcessor | None = None, **kwargs: Any):
        super().__init__(**self.complete(model, processor, **kwargs))

    def complete(self, model: Any, processor: MMProcessor | None, **kwargs: Any) -> dict[str, Any]:
        """Return the arguments of `Pipeline` for a model that was checked, with a processor if none was given."""
        self.check_model(model)
        if processor is None:
            # Stock pipelines of some tasks use none, so `pipeline` does not load it.
            processor = load_processor(model, {name: kwargs.get(name) for name in AUTO_CLASSES})
        if code_tokens_of(model.config):
            processor.use_codecs(model)
        return {"model": model, "processor": processor, **kwargs}

    def check_model(self, model: Any) -> None:
        """Raise a `ValueError` for a model whose head is not for this task."""
        raise NotImplementedError(f"{type(self).__name__} does not say which heads it serves")

    def check_model_type(self, supported_models: Any) -> None:
        """Do nothing: `check_model` has checked more than names."""

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save model and processor; transformers would save the parts of the processor, which do not make one."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Call `Pipeline`, and read a `KeyDataset` of chats as it is needed."""
        return super().__call__(as_stream(inputs), **kwargs)

    def collate(self, rows: list[Mapping[str, Any]]) -> dict[str, Any]:
        """Pad the tensors of rows, each a batch of one, on the left; anything else becomes a list."""
        tensors = [{name: v[0] for name, v in row.items() if isinstance(v, torch.Tensor)} for row in rows]
        padded = self.processor.pad(tensors, padding_side="left")
        names = dict.fromkeys(name for row in rows for name in row if name not in padded)
        return {**padded, **{name: [row.get(name) for row in rows] for name in names}}

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> PipelineIterator:
        """Build transformers' iterator, with rows batched by [`collate`]."""
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the data loader may fork
        is_chunked = isinstance(self, ChunkPipeline)
        kinds = (PipelineChunkIterator, PipelineDataset, PipelineIterator)
        rows = kinds[0 if is_chunked else 1 if isinstance(inputs, Sized) else 2](
            inputs, self.preprocess, preprocess_params
        )
        if isinstance(rows, PipelineIterator):
            num_workers = min(num_workers, 1)  # each worker would read all of it
        collate = no_collate_fn if batch_size == 1 else self.collate
        loader = DataLoader(rows, num_workers=num_workers, batch_size=batch_size, collate_fn=collate)
        iterator = PipelinePackIterator if is_chunked else PipelineIterator
        outputs = iterator(loader, self.forward, forward_params, loader_batch_size=batch_size)
        return PipelineIterator(outputs, self.postprocess, postprocess_params)

    def encoding_options(self) -> set[str]:
        """Return the names of options that reach the processor, or a variable of its chat templates."""
        templates = self.processor.chat_template or ""
        texts = templates.values() if isinstance(templates, dict) else [templates]
        variables = frozenset().union(*map(template_variables, texts))
        own = {"sanitize_control_tokens", "chat_template", "tools", "documents"}
        return self.processor.option_names | own | variables - {"messages", "placeholders", "add_generation_prompt"}

    def encode_chat(self, messages: list[dict[str, Any]], **options: Any) -> Any:
        """Return the model's inputs for a chat, up to where the assistant speaks next."""
        inputs = self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **options
        )
        return inputs.to(dtype=self.dtype)

    def encode_text(self, text: Any = None, **inputs: Any) -> Any:
        """Return the model's inputs for a text as it is and its media, with options of the processor."""
        plurals = [*(modality.plural for modality in MODALITIES.values()), "videos"]
        if text is None and all(inputs.get(plural) is None for plural in plurals):
            raise ValueError(f"There is nothing to read: pass `text`, {' or '.join(f'`{each}`' for each in plurals)}")
        check_options(inputs, {*plurals, *self.processor.option_names}, *plurals)
        text = "" if text is None else text
        if all(inputs.get(plural) is None for plural in plurals):  # a placeholder in it belongs to no media
            text = mark(text, tuple(modality.token for modality in MODALITIES.values()))
        return self.processor(text=text, return_tensors="pt", **inputs).to(dtype=self.dtype)


class MMGenerationPipeline(MMPipeline):
    """A pipeline whose model generates text."""

    def check_model(self, model: Any) -> None:
        if not model.can_generate():
            raise ValueError(
                f"expected a model that generates, MMForConditionalGeneration, got a {type(model).__name__}, which "
                "does not; load the weights with that class, or use the pipeline for what this one does "
                "('text-classification', 'feature-extraction', 'image-feature-extraction')"
            )

    def options_of_call(
        self,
        generate_kwargs: dict | None,
        assistant_model: Any = None,
        assistant_tokenizer: Any = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Return the caller's options of `generate`, with the ones given by name; an assistant may be a path."""
        assistant = load_assistant_model(self.model, assistant_model, assistant_tokenizer)
        return {**(generate_kwargs or {}), **options, **self.name_assistant(*assistant)}

    def name_assistant(self, assistant: Any, tokenizer: Any) -> dict[str, Any]:
        """Return the options that name an assistant; one with another tokenizer needs both tokenizers."""
        named = {} if assistant is None else {"assistant_model": assistant}
        both = {"tokenizer": self.processor.tokenizer, "assistant_tokenizer": tokenizer}
        return named if tokenizer is None else {**named, **both}

    def complete_options(self, generate_kwargs: dict[str, Any] | None) -> dict[str, Any]:
        """
        Return the options of a call, with what the pipeline has for `generate`.

        That is the pipeline's own assistant, unless they name another, and the tokenizer, which finds `stop_strings`.
        """
        given = generate_kwargs or {}
        preset = self.name_assistant(self.assistant_model, self.assistant_tokenizer)
        return {"tokenizer": self.processor.tokenizer, **({} if "assistant_model" in given else preset), **given}

    def ask(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the model's inputs for one message of a user."""
        return dict(self.encode_chat([{"role": "user", "content": content}]))

    def answer(self, model_inputs: dict[str, Any], generate_kwargs: dict, **overrides: Any) -> dict[str, Any]:
        """
        Generate answers.

        Returns:
            `tokens` (B, K, L) without the prompt, and `scores` (B, K), the likelihood of an answer's average token, or
            None if `generate` returns no scores.
        """
        rows, length = model_inputs["input_ids"].shape
        given = self.complete_options(generate_kwargs)
        options = merge_generate_kwargs(self, given, return_dict_in_generate=True, **overrides)
        output = self.model.generate(**model_inputs, **options)
        scores = output.get("sequences_scores")
        return {
            "tokens": output.sequences[:, length:].unflatten(0, (rows, -1)),
            "scores": None if scores is None else scores.unflatten(0, (rows, -1)).exp(),
        }

    def decode(self, tokens: torch.Tensor) -> list[str]:
        """Decode (K, L) to K texts."""
        return [text.strip() for text in self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
