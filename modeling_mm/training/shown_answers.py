# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Answered examples of an evaluation in TensorBoard: their media, and a table of questions, answers and truths."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from transformers.integrations import TensorBoardCallback

from ..audio import load_audio
from ..data.chat_row import ChatRow, media_parts, media_source, turn_text
from ..images import load_image

MOST_SHOWN = 8
SHOWN_SIDE = 320  # pixels
SHOWN_RATE = 16_000


@dataclass
class ShownAnswers:
    """
    First answers of an evaluation, until they are written.

    Args:
        prefix: of the figures, such as `eval`
    """

    prefix: str
    rows: list[tuple[int, ChatRow, str]] = field(default_factory=list)

    def add(self, number: int, row: ChatRow, answer: str) -> None:
        """Keep the answer to a row of the dataset, if it is one of the first."""
        if len(self.rows) < MOST_SHOWN:
            self.rows.append((number, row, answer))

    def write(self, callbacks: Iterable[Any], step: int) -> None:
        """Write to the TensorBoard of a trainer's callbacks, if there is one that is open."""
        writers = [each.tb_writer for each in callbacks if isinstance(each, TensorBoardCallback)]
        for writer in [each for each in writers if each is not None and self.rows]:
            place = self.prefix.replace("_", "/", 1)  # as the figures are shown
            writer.add_text(f"{place}/answers", as_table(self.rows), step)
            for number, row, _ in self.rows:
                for item, part in enumerate(media_parts(row.prompt)):
                    write_media(writer, f"{place}/row {number}, {part['type']} {item}", part, step)
            writer.flush()


def as_table(rows: Sequence[tuple[int, ChatRow, str]]) -> str:
    """Return a table in Markdown."""
    cells = [["row", "question", "answer", "truth"], ["---"] * 4]
    for number, row, answer in rows:
        question = turn_text(next((turn for turn in reversed(row.prompt) if turn["role"] == "user"), row.messages[0]))
        cells.append([str(number), *(text.replace("|", "\\|") for text in (question, answer, row.answer))])
    return "\n".join("| " + " | ".join(" ".join(cell.split()) for cell in line) + " |" for line in cells)


def write_media(writer: Any, place: str, part: dict[str, Any], step: int) -> None:
    """Write a media part of a message; parts of modalities that TensorBoard cannot show are left out."""
    if part["type"] == "image":
        image = Image.fromarray(np.asarray(load_image(media_source(part))))
        image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
        writer.add_image(place, np.asarray(image), step, dataformats="HWC")
    if part["type"] == "audio":
        samples = load_audio(media_source(part), SHOWN_RATE, part.get("sampling_rate"))
        writer.add_audio(place, samples[None].clip(-1, 1), step, SHOWN_RATE)  # (1, samples)
