# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Processors of converted encoder-decoders: the parts of the source, and a chat template that writes its prompt."""

import json
import os
from pathlib import Path
from typing import Any

from transformers.models.auto.configuration_auto import AutoConfig
from transformers.models.whisper.tokenization_whisper import LANGUAGES

# The parts of a processor by the model type of the source.
SOURCES = {
    "whisper": ("feature_extractor", "tokenizer"),
    "speech-encoder-decoder": ("feature_extractor", "tokenizer"),
    "vision-encoder-decoder": ("image_processor", "tokenizer"),
}
PARTS = ("image_processor", "feature_extractor", "tokenizer")

START_OF_TRANSCRIPT = "<|startoftranscript|>"
# Its id in the tokenizers for English alone, which list the languages of the others too.
ENGLISH_START = 50257
NO_TIMESTAMPS = "<|notimestamps|>"
NUM_TIMESTAMPS, TIMESTAMP_SECONDS = 1501, 0.02  # of Whisper's window of 30 s
# Languages written without spaces, before which Whisper writes none either.
UNSPACED_LANGUAGES = ("zh", "ja", "th", "lo", "my", "yue")


def load_parts(source: Any, auto_classes: dict[str, Any], **loading: Any) -> tuple[dict[str, Any], str | None]:
    """
    Load the parts of an encoder-decoder's processor.

    Args:
        source: an id or a path of the checkpoint, or its processor.
        auto_classes: the Auto class of each part.
        loading: options of `from_pretrained`.

    Returns:
        The parts by their names, and the decoder's first token, or None if the source does not tell it.

    Raises:
        ValueError: for a checkpoint of another kind, and for a processor without a tokenizer.
    """
    if not isinstance(source, (str, os.PathLike)):
        parts = {name: getattr(source, name, None) for name in PARTS}
        if parts["tokenizer"] is None:
            raise ValueError(
                f"expected a checkpoint's id, its path or its processor with a tokenizer, got a "
                f"{type(source).__name__} without one"
            )
        return parts, None
    config = AutoConfig.from_pretrained(source, **loading)
    if config.model_type not in SOURCES:
        raise ValueError(
            f"{str(source)!r} is of the model type {config.model_type!r}; expected one of {', '.join(SOURCES)}. Use "
            "MMProcessor.from_text_vision_audio_pretrained for components to be joined."
        )
    parts = {name: auto_classes[name].from_pretrained(source, **loading) for name in SOURCES[config.model_type]}
    decoder = getattr(config, "decoder", config)
    ids = (getattr(config, "decoder_start_token_id", None), decoder.bos_token_id)
    start = next((token_id for token_id in ids if token_id is not None), None)
    return parts, None if start is None else parts["tokenizer"].convert_ids_to_tokens(start)


def converted_processor(
    processor_class: Any, parts: dict[str, Any], start_token: str | None, language: str | None, **options: Any
) -> Any:
    """
    Make the processor of a converted encoder-decoder.

    Args:
        processor_class: the class to make.
        parts: parts of the source. Tokens are added to its tokenizer in place.
        start_token: with which the decoder's answers begin; by default the tokenizer's first token of a text.
        language: that a multilingual Whisper transcribes if none is given; English by default.
        options: of the class.

    Raises:
        ValueError: for a language that the decoder does not know, and if there is no first token.
    """
    tokenizer = parts["tokenizer"]
    if START_OF_TRANSCRIPT in tokenizer.get_vocab():
        add_timestamps(tokenizer)
        template = whisper_template(tokenizer, language)
    else:
        if language is not None:
            raise ValueError(f"`language` is for multilingual Whisper, got {language!r} for another decoder")
        start_token = start_token or tokenizer.bos_token
        if start_token is None or tokenizer.eos_token is None:
            raise ValueError(
                "This tokenizer has no token that begins or none that ends a text, so it is not known how the "
                "decoder's answers begin and end; set `tokenizer.bos_token` and `tokenizer.eos_token`"
            )
        template = with_variables("captioner", start_token=start_token, end_token=tokenizer.eos_token)
    options.setdefault("chat_template", template)
    return processor_class(**{name: part for name, part in parts.items() if part is not None}, **options)


def add_timestamps(tokenizer: Any) -> None:
    """
    Add Whisper's timestamps to a tokenizer without them, with the ids of the rows that the weights have for them.

    As in the published tokenizers they are no special tokens.

    Raises:
        ValueError: if these ids are taken.
    """
    first = tokenizer.convert_tokens_to_ids(NO_TIMESTAMPS) + 1
    stamps = [f"<|{number * TIMESTAMP_SECONDS:.2f}|>" for number in range(NUM_TIMESTAMPS)]
    tokenizer.add_tokens(stamps)
    found = tokenizer.convert_tokens_to_ids([stamps[0], stamps[-1]])
    if found != [first, first + NUM_TIMESTAMPS - 1]:
        raise ValueError(
            f"Whisper's weights have the rows from {first} on for timestamps, but this tokenizer has {stamps[0]} at "
            f"{found[0]} and {stamps[-1]} at {found[1]}; pass the tokenizer of the checkpoint without tokens of yours"
        )


def whisper_languages(tokenizer: Any) -> list[str]:
    """Return the codes of the languages that a multilingual Whisper knows; none of a model for English alone."""
    vocabulary = tokenizer.get_vocab()
    if vocabulary[START_OF_TRANSCRIPT] == ENGLISH_START:
        return []
    known = {code: vocabulary[f"<|{code}|>"] for code in LANGUAGES if f"<|{code}|>" in vocabulary}
    return sorted(known, key=known.__getitem__)


def whisper_template(tokenizer: Any, language: str | None = None) -> str:
    """Return the chat template of a Whisper decoder; see `converted_processor`."""
    languages = whisper_languages(tokenizer)
    default = "en" if language is None else language
    if default not in (languages or ["en"]):
        raise ValueError(f"expected a language among {', '.join(languages or ['en'])}, got {language!r}")
    return with_variables("whisper", languages=languages, default_language=default, unspaced=list(UNSPACED_LANGUAGES))


def with_variables(name: str, **variables: Any) -> str:
    """Return a template of this package, with constants in front of it."""
    template = Path(__file__).with_name(f"{name}_template.jinja").read_text(encoding="utf-8")
    constants = [f"{{%- set {key} = {json.dumps(value)} -%}}\n" for key, value in variables.items()]
    return "".join([*constants, template])
