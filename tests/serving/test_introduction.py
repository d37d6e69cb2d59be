"""introduction.py: the page says what is true of the model, from its configuration and its card, and no more."""

import json
from pathlib import Path

import pytest

from modeling_mm.serving.introduction import SHIPPED, introduce, listed, read_card, read_examples
from tests.fakes.processor_parts import make
from tests.fakes.ranks import ROOT
from tests.fakes.serving_parts import model
from tests.fakes.tiny_chats import processor
from tests.fakes.writers import writing

CARD = """---
language: {language}
---

# A model

It names colors,
and sounds.

| part | weights |
"""


def test_a_model_is_introduced_by_what_it_is(tmp_path):
    shown = introduce("me/my-model", model(), processor())
    size = f"{model().num_parameters() / 1e6:.3g}M"
    assert (shown.name, shown.summary) == ("me/my-model", "")
    assert shown.sentence == (
        f"A model of {size} parameters that reads text, images and audio and answers in text. Answers can be wrong."
    )
    folder = tmp_path / "colors"
    folder.mkdir()
    (folder / "README.md").write_text(CARD.format(language="[en, fr, xx]"))
    shown = introduce(f"{folder}/", model(), make(audio=False))
    assert (shown.name, shown.summary) == ("colors", "It names colors, and sounds.")
    assert "that reads text and images and answers in English, French and Xx." in shown.sentence


def test_what_a_model_draws_and_says_is_named():
    shown = introduce("me/my-model", *writing())
    assert "that reads text, images and audio and answers in text, images and audio." in shown.sentence


@pytest.mark.parametrize(
    ("text", "languages", "summary"),
    [
        (CARD.format(language="de"), ["German"], "It names colors, and sounds."),
        (CARD.format(language="[de"), [], ""),
        ("---\n- a list\n---\n\n# A model\n\nText.", [], ""),
        ("# A model\n\n| no | words |", [], ""),
        ("No title, no data.", [], ""),
    ],
)
def test_a_card_says_what_it_can(tmp_path, text, languages, summary):
    (tmp_path / "README.md").write_text(text)
    assert read_card(tmp_path / "README.md") == (languages, summary)


def test_the_released_card_is_read():
    languages, summary = read_card(ROOT / "model_cards" / "mm-whisper-tiny" / "README.md")
    assert languages == ["English"]
    assert summary.startswith("Whisper tiny.en that has learned to see.")
    assert summary.endswith("is not a general assistant.")


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (["image", "audio"], [{".png"}, {".flac"}, {".png", ".flac"}]),
        (["image"], [{".png"}]),
        (["audio"], [{".flac"}]),
        ([], []),
    ],
)
def test_the_shipped_examples_are_those_that_the_model_takes(kinds, expected):
    examples = list(read_examples(SHIPPED, kinds))
    assert [{Path(file).suffix for file in example["files"]} for example in examples] == expected
    assert all(Path(file).is_file() for example in examples for file in example["files"])
    for example in examples:
        is_speech = all(file.endswith(".flac") for file in example["files"])  # which needs no question
        assert bool(example["text"]) != is_speech


def test_given_examples_take_the_place_of_the_shipped_ones(tmp_path):
    content = [{"type": "image", "path": "cat.png"}, {"type": "text", "text": "What?"}]
    answer = {"role": "assistant", "content": "cat"}
    later = [{"role": "user", "content": "More?"}, answer]
    rows = [
        {"messages": [{"role": "user", "content": "Text alone"}, answer]},
        {"messages": [{"role": "user", "content": content}, answer, *later]},
        {"messages": [{"role": "user", "content": content}, answer]},
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shown = introduce("tiny", model(), processor(), tmp_path / "mine.jsonl")
    assert shown.examples == [{"text": "What?", "files": [str(tmp_path / "cat.png")]}]


def test_words_are_listed_as_a_sentence_does():
    assert [listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
