# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Prompts of speech recognition, translation, drawing and speech.

A checkpoint that was trained on particular wordings keeps them in its generation config: `transcription_prompts`
(language code to prompt), `translation_prompt`, `drawing_prompt` and `speech_prompt`; and one that was trained on
short audio, `max_windows`. In a user's message media, such as an image to draw after or a voice to speak in, stand
before the prompt.
"""

from collections.abc import Mapping
from typing import Any

from transformers.models.whisper.tokenization_whisper import LANGUAGES  # codes and English names

DEFAULT_TRANSCRIPTION_PROMPT = "Transcribe the speech."
DEFAULT_TRANSLATION_PROMPT = "Translate into {language}: {text}"
DEFAULT_DRAWING_PROMPT = "Draw {text}"  # for an answer that is an image
DEFAULT_SPEECH_PROMPT = "Say: {text}"  # for an answer that is audio


def set_prompts(
    model: Any,
    transcription: Mapping[str, str] | None = None,
    translation: str | None = None,
    max_windows: int | None = None,
    drawing: str | None = None,
    speech: str | None = None,
) -> None:
    """
    Store a model's own prompts in its generation config, so that they are saved and loaded with it.

    Args:
        transcription: prompts by language code; the first one is used when no language is given.
        translation: a prompt with `{language}` and `{text}` in it.
        max_windows: the most audio windows that the model transcribes at once. Longer audio is cut into chunks, whose
            texts are merged.
        drawing: a prompt for an answer that is an image, with `{text}` in it.
        speech: a prompt for an answer that is audio, with `{text}` in it.

    Raises:
        ValueError: for a number of windows below 1.
    """
    config = model.generation_config
    if max_windows is not None:
        config.max_windows = check_windows(max_windows)
    if transcription is not None:
        config.transcription_prompts = dict(transcription)
    for name, prompt in {"translation": translation, "drawing": drawing, "speech": speech}.items():
        if prompt is not None:
            setattr(config, f"{name}_prompt", prompt)
    # transformers saves additional attributes of a config that was made from a model config, but does not load them.
    config._from_model_config = False


def transcription_prompt(model: Any, language: str | None = None) -> str:
    """
    Return the prompt that asks a model for a transcript.

    Args:
        language: a key of the model's `transcription_prompts`; None for the first one.

    Raises:
        ValueError: if the model has no prompt for this language.
    """
    prompts = transcription_languages(model)
    language = next(iter(prompts)) if language is None else language
    if language not in prompts:
        raise ValueError(f"expected a language among {', '.join(prompts)}, got {language!r}")
    return prompts[language]


def transcription_languages(model: Any) -> dict[str, str]:
    """Return a model's transcription prompts by language code, the default first."""
    return getattr(model.generation_config, "transcription_prompts", None) or {"en": DEFAULT_TRANSCRIPTION_PROMPT}


def max_windows(model: Any) -> int | None:
    """
    Return the most audio windows that a model transcribes at once; None if it takes any number.

    Raises:
        ValueError: if the generation config has something else than a number from 1 on.
    """
    windows = getattr(model.generation_config, "max_windows", None)
    return None if windows is None else check_windows(windows)


def check_windows(windows: Any) -> int:
    """Return a number of windows; raise a `ValueError` if it is none, or below 1."""
    if isinstance(windows, bool) or not isinstance(windows, int) or windows < 1:
        raise ValueError(f"generation_config.max_windows must be an integer from 1 on, or None; got {windows!r}")
    return windows


def translation_prompt(model: Any) -> str:
    """Return the prompt that asks a model for a translation, with `{language}` and `{text}` in it."""
    return getattr(model.generation_config, "translation_prompt", None) or DEFAULT_TRANSLATION_PROMPT


def drawing_prompt(model: Any) -> str:
    """Return the prompt that asks a model for an image, with `{text}` in it."""
    return getattr(model.generation_config, "drawing_prompt", None) or DEFAULT_DRAWING_PROMPT


def speech_prompt(model: Any) -> str:
    """Return the prompt that asks a model to say a text, with `{text}` in it."""
    return getattr(model.generation_config, "speech_prompt", None) or DEFAULT_SPEECH_PROMPT


def fill_prompt(prompt: str, **values: str) -> str:
    """
    Return a prompt with the values of its fields.

    Raises:
        ValueError: if the prompt has other fields.
    """
    try:
        return prompt.format(**values).strip()
    except (KeyError, IndexError, ValueError) as error:
        fields = " and ".join(f"{{{name}}}" for name in values)
        raise ValueError(f"expected a prompt with {fields} in it, got {prompt!r}; write other braces twice") from error


def language_name(language: str | None) -> str:
    """
    Return the English name of a language that is given by its name or its code.

    Raises:
        ValueError: if the language is None, or an unknown code, as a bare code in a prompt has no meaning.
    """
    if language is None:
        raise ValueError(
            "expected the language to translate into, got none; pass `tgt_lang`, such as 'French' or 'fr'"
        )
    if language in LANGUAGES:
        return LANGUAGES[language].title()
    if len(language) <= 3:
        raise ValueError(
            f"expected a language by its name in English, or by its code, got {language!r}: write its name"
        )
    return language
