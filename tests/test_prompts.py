"""prompts.py: a model's own prompts are saved and loaded with it; others get the general ones."""

from types import SimpleNamespace

import pytest
from transformers import GenerationConfig

from modeling_mm import MMForConditionalGeneration
from modeling_mm.prompts import (
    DEFAULT_TRANSCRIPTION_PROMPT,
    DEFAULT_TRANSLATION_PROMPT,
    language_name,
    max_windows,
    set_prompts,
    transcription_prompt,
    translation_prompt,
)
from tests.fakes.tiny import gpt2, joined


def model_with(**prompts) -> SimpleNamespace:
    return SimpleNamespace(generation_config=GenerationConfig(**prompts))


def test_a_model_without_prompts_gets_the_general_ones():
    assert transcription_prompt(model_with()) == DEFAULT_TRANSCRIPTION_PROMPT
    assert translation_prompt(model_with()) == DEFAULT_TRANSLATION_PROMPT


def test_the_first_language_is_the_default_and_an_unknown_one_an_error():
    model = model_with(transcription_prompts={"fr": "Que dit la voix ?", "en": "What is said?"})
    assert [transcription_prompt(model, language) for language in (None, "fr", "en")] == [
        *["Que dit la voix ?"] * 2,
        "What is said?",
    ]
    with pytest.raises(ValueError, match="a language among fr, en, got 'de'"):
        transcription_prompt(model, "de")
    with pytest.raises(ValueError, match="among en, got 'fr'"):
        transcription_prompt(model_with(), "fr")


def test_prompts_survive_saving_and_loading(tmp_path):
    """A generation config that was made from a model config saves additional attributes, and loses them on loading."""
    model = joined(gpt2())
    set_prompts(model, {"en": "What is said?"}, "{text}, in {language}")
    model.save_pretrained(tmp_path)
    loaded = MMForConditionalGeneration.from_pretrained(tmp_path)
    assert transcription_prompt(loaded) == "What is said?"
    assert translation_prompt(loaded) == "{text}, in {language}"


def test_the_most_windows_are_saved_and_checked(tmp_path):
    model = joined(gpt2())
    assert max_windows(model) is None
    set_prompts(model, max_windows=2)
    model.save_pretrained(tmp_path)
    assert max_windows(MMForConditionalGeneration.from_pretrained(tmp_path)) == 2
    for wrong in (0, -1, True, 1.5, "1"):
        with pytest.raises(ValueError, match="max_windows must be an integer from 1 on"):
            set_prompts(model, max_windows=wrong)
        with pytest.raises(ValueError, match="max_windows must be an integer from 1 on"):
            max_windows(model_with(max_windows=wrong))


def test_languages_are_written_by_name():
    assert language_name("fr") == "French" and language_name("Old Norse") == "Old Norse"
