# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Introduction on the page: the model's name, what it reads, its card's summary, and examples."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from ..code_tokens import code_tokens_of
from ..data import ChatRow, load_chats, media_parts, media_source, turn_text
from ..modalities import BUILT_IN, MODALITIES

CARD = "README.md"
SHIPPED = Path(__file__).resolve().parents[2] / "processing" / "corpora" / "unseen" / "questions.jsonl"
MOST_CLICKABLE = 3  # examples, as many as a phone has room for
SUMMARY = re.compile(r"^# .+\n+((?:[^\n#|`<].*\n?)+)", re.MULTILINE)  # the paragraph below a card's title


@dataclass(frozen=True)
class Introduction:
    """
    Introduction of a model.

    Args:
        name: of the model.
        sentence: what it reads, how large it is, and the languages that its card names.
        summary: paragraph of its card.
        examples: questions to click, as `text` and `files`.
    """

    name: str
    sentence: str = ""
    summary: str = ""
    examples: list[dict[str, Any]] = field(default_factory=list)


def introduce(name: str, model: Any, processor: Any, questions: Path | None = None) -> Introduction:
    """
    Introduce a model by its folder or Hub id.

    Args:
        questions: chats whose questions are shown; by default those that ship with the checkout, if this is one.
    """
    kinds = modalities_of(processor)
    languages, summary = read_card(Path(name) / CARD)
    what = listed(["text", *(MODALITIES[kind].plural for kind in kinds)])
    written = [MODALITIES[kind].plural for kind in code_tokens_of(model.config)]
    answers = listed([*(languages or ["text"]), *written])
    size = f"{model.num_parameters() / 1e6:.3g}M"
    return Introduction(
        name=Path(name).resolve().name if Path(name).is_dir() else name,
        sentence=f"A model of {size} parameters that reads {what} and answers in {answers}. Answers can be wrong.",
        summary=summary,
        examples=list(read_examples(questions or SHIPPED, kinds)) if questions or SHIPPED.is_file() else [],
    )


def modalities_of(processor: Any) -> list[str]:
    """Return the modalities that a processor takes, of those that the page can show."""
    return [name for name in BUILT_IN if getattr(processor, MODALITIES[name].processor) is not None]


def listed(words: Sequence[str]) -> str:
    """Return words as a sentence lists them: "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def read_card(path: Path) -> tuple[list[str], str]:
    """Return the languages and the summary of a model's card, nothing if there is no card or it cannot be read."""
    if not path.is_file():
        return [], ""
    try:
        card = ModelCard.load(path)
    except (ValueError, yaml.YAMLError):
        return [], ""
    codes = [card.data.language] if isinstance(card.data.language, str) else card.data.language or []
    found = SUMMARY.search(card.text)
    return [LANGUAGES.get(code, code).title() for code in codes], " ".join(found[1].split()) if found else ""


def read_examples(path: Path, kinds: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the first question about each set of modalities that the model takes, at most `MOST_CLICKABLE`."""
    first: dict[tuple[str, ...], ChatRow] = {}
    for row in load_chats(path):
        parts = media_parts(row.prompt)
        if len(row.prompt) == 1 and parts and all(isinstance(media_source(part), str) for part in parts):
            first.setdefault(tuple(sorted({part["type"] for part in parts})), row)
    fitting = [combination for combination in first if set(combination) <= set(kinds)]
    simple_first = sorted(fitting, key=lambda each: (len(each), *map(kinds.index, each)))
    for row in [first[combination] for combination in simple_first[:MOST_CLICKABLE]]:
        files = [str(media_source(part)) for part in media_parts(row.prompt)]
        yield {"text": turn_text(row.prompt[-1]), "files": files}
