# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""What all our pipelines share: which models they serve, their processor, their batches, and how they generate."""

import os
from collections.abc import Mapping, Sized
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

from .compat import merge_generate_kwargs
from .configuration_mm import MMConfig
from .processing_mm import AUTO_CLASSES, MMProcessor

logger = logging.get_logger(__name__)

# Shape legend: B rows, L tokens, K answers to a row.


def is_ours(model: Any) -> bool:
    return getattr(model.config, "model_type", None) == MMConfig.model_type


def load_processor(model: Any, parts: dict[str, Any]) -> MMProcessor:
    """
    The processor that lies where a model came from, with the parts that are there already; of these parts alone, where
    none lies there, or the model was made in memory.

    Raises:
        ValueError: where there is no tokenizer either.
    """
    parts = {name: part for name, part in parts.items() if part is not None}
    if source := model.config._name_or_path:
        revision = {} if model.loaded_revision is None else {"revision": model.loaded_revision}
        try:
            return MMProcessor.from_pretrained(source, **revision, **parts)
        except OSError as error:
            logger.warning(f"No processor could be loaded from {source!r}, so it is made of the parts: {error}")
    if "tokenizer" not in parts:
        raise ValueError(
            f"expected a processor, or the parts of one ({', '.join(AUTO_CLASSES)}) with a tokenizer among them; got "
            f"{', '.join(parts) or 'none'}, and no place where the model came from: pass `processor=`"
        )
    return MMProcessor(**parts)


def messages_of(inputs: Any) -> list[dict[str, Any]] | None:
    """The messages of a chat: as they are, as `Pipeline` wraps them, or in a dict; None where it is no chat."""
    if isinstance(inputs, dict) and "messages" in inputs:
        check_keys(inputs, ("messages",))
        return inputs["messages"]
    messages = getattr(inputs, "messages", inputs)
    is_chat = isinstance(messages, (list, tuple)) and len(messages) > 0 and is_valid_message(messages[0])
    return messages if is_chat else None


def as_stream(inputs: Any) -> Any:
    """A `KeyDataset` that `Pipeline` does not take for one: it would read all rows to see whether they are chats."""
    return Subset(inputs, range(len(inputs))) if isinstance(inputs, KeyDataset) else inputs


def check_keys(inputs: dict, known: tuple[str, ...]) -> None:
    """
    Raises:
        ValueError: for keys that nothing is known of, as they would be left out silently.
    """
    if unknown := set(inputs) - set(known):
        raise ValueError(
            f"expected a dict with the keys {', '.join(known)}, as far as there are any; got {sorted(unknown)} too: "
            "leave them out, or rename them"
        )


class MMPipeline(Pipeline):
    """
    A pipeline for our models. `stock` is the pipeline of transformers for its task, which gets every other model as if
    we were not there; None where there is none.
    """

    stock: type[Pipeline] | None = None
    processor: Any  # an MMProcessor

    def __new__(cls, *args, **kwargs):
        model = kwargs.get("model", args[0] if args else None)
        if model is None or is_ours(model):
            return super().__new__(cls)
        if cls.stock is None:
            raise ValueError(
                f"{cls.__name__} serves models of the type {MMConfig.model_type!r}, got a {type(model).__name__} of "
                f"the type {model.config.model_type!r}; ask it by `pipeline('image-text-to-text')`, if it is for that"
            )
        return cls.stock(*args, **kwargs)

    def __init__(self, model: Any, processor: MMProcessor | None = None, **kwargs):
        super().__init__(**self.complete(model, processor, **kwargs))

    def complete(self, model: Any, processor: MMProcessor | None, **kwargs) -> dict[str, Any]:
        """The arguments of `Pipeline`, for a model that was checked, and with a processor where none was given."""
        self.check_model(model)
        if processor is None:
            # Stock pipelines of some tasks go without one, so `pipeline` does not load it.
            processor = load_processor(model, {name: kwargs.get(name) for name in AUTO_CLASSES})
        return {"model": model, "processor": processor, **kwargs}

    def check_model(self, model: Any) -> None:
        """
        Raises:
            ValueError: for a model of ours whose head is not for this task.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say which heads it serves")

    def check_model_type(self, supported_models) -> None:
        """Nothing is left to check, and by more than names: see `check_model`."""

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """Saves model and processor; the parts of a processor, which transformers saves, do not make one again."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def __call__(self, inputs: Any, **kwargs) -> Any:
        """As in transformers, and a `KeyDataset` of chats is read as it is needed."""
        return super().__call__(as_stream(inputs), **kwargs)

    def collate(self, rows: list[Mapping[str, Any]]) -> dict[str, Any]:
        """Pad the tensors of rows, each a batch of one, on the left; anything else becomes a list."""
        tensors = [{name: v[0] for name, v in row.items() if isinstance(v, torch.Tensor)} for row in rows]
        padded = self.processor.pad(tensors, padding_side="left")
        names = dict.fromkeys(name for row in rows for name in row if name not in padded)
        return {**padded, **{name: [row.get(name) for row in rows] for name in names}}

    def get_iterator(
        self, inputs, num_workers: int, batch_size: int, preprocess_params, forward_params, postprocess_params
    ) -> PipelineIterator:
        """As in transformers, except that rows are batched by [`collate`]."""
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the data loader may fork
        is_chunked = isinstance(self, ChunkPipeline)
        if is_chunked:
            rows = PipelineChunkIterator(inputs, self.preprocess, preprocess_params)
        elif isinstance(inputs, Sized):
            rows = PipelineDataset(inputs, self.preprocess, preprocess_params)
        else:
            rows = PipelineIterator(inputs, self.preprocess, preprocess_params)
        if isinstance(rows, PipelineIterator):
            num_workers = min(num_workers, 1)  # each worker would go through all of it
        collate = no_collate_fn if batch_size == 1 else self.collate
        loader = DataLoader(rows, num_workers=num_workers, batch_size=batch_size, collate_fn=collate)
        iterator = PipelinePackIterator if is_chunked else PipelineIterator
        outputs = iterator(loader, self.forward, forward_params, loader_batch_size=batch_size)
        return PipelineIterator(outputs, self.postprocess, postprocess_params)

    def encode_chat(self, messages: list[dict[str, Any]], **options) -> Any:
        """The model's inputs for a chat, up to where the assistant is to speak."""
        inputs = self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **options
        )
        return inputs.to(dtype=self.dtype)

    def encode_text(self, text: Any = None, images: Any = None, audio: Any = None, **options) -> Any:
        """
        The model's inputs for a text, taken as it is, and the media beside it.

        Raises:
            ValueError: where there is none of them.
        """
        if text is None and images is None and audio is None:
            raise ValueError("There is nothing to read: pass `text`, `images` or `audio`")
        text = "" if text is None else text
        inputs = self.processor(text=text, images=images, audio=audio, return_tensors="pt", **options)
        return inputs.to(dtype=self.dtype)


class MMGenerationPipeline(MMPipeline):
    """A pipeline whose model writes."""

    def check_model(self, model: Any) -> None:
        if not model.can_generate():
            raise ValueError(
                f"expected a model that generates, MMForConditionalGeneration, got a {type(model).__name__}, which "
                "does not; load the weights with that class, or take the pipeline for what this one does "
                "('text-classification', 'feature-extraction', 'image-feature-extraction')"
            )

    def options_of_call(
        self, generate_kwargs: dict | None, assistant_model: Any = None, assistant_tokenizer: Any = None, **options
    ) -> dict[str, Any]:
        """The caller's options for `generate`, those given by their names too; an assistant may be a path."""
        assistant = load_assistant_model(self.model, assistant_model, assistant_tokenizer)
        return {**(generate_kwargs or {}), **options, **self.name_assistant(*assistant)}

    def name_assistant(self, assistant: Any, tokenizer: Any) -> dict[str, Any]:
        """A tokenizer is there where it is not the model's own; `generate` then wants both."""
        named = {} if assistant is None else {"assistant_model": assistant}
        both = {"tokenizer": self.processor.tokenizer, "assistant_tokenizer": tokenizer}
        return named if tokenizer is None else {**named, **both}

    def with_assistant(self, generate_kwargs: dict[str, Any] | None) -> dict[str, Any]:
        """The options of a call, with the assistant that the pipeline was made with unless they name another."""
        given = generate_kwargs or {}
        preset = self.name_assistant(self.assistant_model, self.assistant_tokenizer)
        return {**({} if "assistant_model" in given else preset), **given}

    def ask(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        """The model's inputs for one message of a user, to which it answers."""
        return dict(self.encode_chat([{"role": "user", "content": content}]))

    def answer(self, model_inputs: dict[str, Any], generate_kwargs: dict, **overrides) -> dict[str, Any]:
        """
        Returns:
            `tokens` (B, K, L) without the prompt, and `scores` (B, K), the likelihood of an answer's average token, or
            None where `generate` was not asked for scores.
        """
        rows, length = model_inputs["input_ids"].shape
        given = self.with_assistant(generate_kwargs)
        options = merge_generate_kwargs(self, given, return_dict_in_generate=True, **overrides)
        output = self.model.generate(**model_inputs, **options)
        scores = output.get("sequences_scores")
        return {
            "tokens": output.sequences[:, length:].unflatten(0, (rows, -1)),
            "scores": None if scores is None else scores.unflatten(0, (rows, -1)).exp(),
        }

    def decode(self, tokens: torch.Tensor) -> list[str]:
        """(K, L) -> K texts"""
        return [text.strip() for text in self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
