# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Content of the web page, without the page: a growing answer, and the origin of its words."""

import asyncio
import mimetypes
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..code_generation import TEXT
from ..explain import (
    METHODS,
    Contributions,
    Explanation,
    Target,
    check_method,
    explanation_steps,
    make_target,
    modality_contributions,
    occlusion_runs,
    overlay,
    places_of,
)
from ..images import decode_image
from ..pipeline_codes import room_for
from ..processing_mm import READERS
from .answering import GenerationStream, make_config
from .engine import Engine
from .preparing import encode
from .sampling import Sampling
from .text_streamer import MixedStreamer

Turns = list[dict[str, Any]]

CONTRIBUTIONS = "modality contributions"
VIEWS = (*METHODS, CONTRIBUTIONS)
MOST_RUNS = 256  # rows that an occlusion may score here, where others wait for their answers
SHOWN_WIDTH = 320
STRIP_HEIGHT = 28
STRIP_GREY = 245.0


def user_turn(question: str, files: Sequence[str]) -> dict[str, Any]:
    """Return a user's turn with the files that belong to it."""
    media = [{"type": modality_of(path), "path": path} for path in files]
    text = question.strip()
    return {"role": "user", "content": [*media, *([{"type": "text", "text": text}] if text else [])]}


def modality_of(path: str) -> str:
    """Return the type of a file by its name, of a video its audio; by its content if the name tells nothing."""
    kind = (mimetypes.guess_type(path)[0] or "").partition("/")[0]
    kind = "audio" if kind == "video" else kind
    if kind in READERS or kind == "text":
        return kind if kind in READERS else "file"
    data = Path(path).read_bytes()
    for name, (_, decode) in READERS.items():
        with suppress(ValueError):
            decode(data)
            return name
    return "file"


def check_turn(turn: dict[str, Any]) -> None:
    """
    Check that a user's turn has content, and decode its files.

    Raises:
        ValueError: if the turn is empty, and for a broken file, with its name.
    """
    if not turn["content"]:
        raise ValueError("There is nothing to answer: write a question, or add an image or audio.")
    for part in turn["content"]:
        if part["type"] != "text":
            path = Path(part["path"])
            if part["type"] not in READERS:
                raise ValueError(f"{path.name}: expected a file of type {' or '.join(READERS)}.")
            try:
                READERS[part["type"]][1](path.read_bytes())
            except (OSError, ValueError) as error:
                raise ValueError(f"{path.name}: {error}.") from error


async def stream_answer(
    engine: Engine, processor: Any, turns: Turns, max_new_tokens: int
) -> AsyncGenerator[tuple[str, list[int]], None]:
    """
    Yield the growing answer to a conversation: its text and its tokens. Closing the iterator ends the generation.

    A model whose codecs the processor has may write images and audio in it, one of which has room at least.

    Raises:
        ValueError: for messages that the processor refuses, and for a conversation that is too long for the model.
    """
    model = engine.model
    encoded = await asyncio.to_thread(encode, processor, turns)
    inputs = {name: torch.from_numpy(array).to(model.device) for name, array in encoded.items()}
    written = processor.written
    # The likeliest codes make dull images: whether to sample is up to the model's generation config.
    sampling = Sampling(outputs=(TEXT, *written)) if written else Sampling(temperature=0.0)
    rooms = [room_for(each.tokens, each.codec) for each in written.values()]
    config = make_config(sampling, model, inputs["input_ids"].shape[1], max(max_new_tokens, *rooms, 0))
    make = partial(MixedStreamer, processor.tokenizer, written=[each.tokens for each in written.values()])
    stream = GenerationStream(engine, processor, inputs, config, sampling, streamer=make if written else None)
    text = ""
    try:
        async for piece in stream.pieces():
            text += piece
            yield text, stream.streamer.tokens
        if not text:
            yield text, stream.streamer.tokens  # media alone
    finally:
        stream.streamer.stop()  # the visitor may have left
    stream.generated.result()  # raises the error of the other thread


@dataclass(frozen=True)
class View:
    """
    Origin of an answer, as the page shows it; empty for a conversation without media.

    Args:
        heatmaps: of each word, with the word, over the conversation's last image and all its audio
        table: a row for each word: the word, what each of `columns` adds to its probability
        columns: names of the modalities
    """

    heatmaps: list[tuple[Image.Image, str]] = field(default_factory=list)
    table: list[list[str | float]] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)


def view_steps(
    model: Any, processor: Any, turns: Turns, answer_ids: list[int], view: str = VIEWS[0]
) -> Generator[float, None, View]:
    """
    Explain an answer, in steps that yield the share of the work that is done.

    Args:
        turns: the conversation, up to the question
        answer_ids: tokens of the answer that `stream_answer` gave
        view: one of `VIEWS`: a method of explaining, or the contributions of the modalities

    Raises:
        ValueError: if the model does not allow the method, see [`explain`], and for an occlusion that takes too long.
    """
    parts = [part for turn in turns for part in turn["content"]]
    if all(part["type"] == "text" for part in parts):
        return View()
    if view != CONTRIBUTIONS:
        check_method(model, view)
    target = make_target(model, processor, turns, answer_ids=answer_ids)
    if view == CONTRIBUTIONS:
        return contributions_view(target.words, modality_contributions(target))
    if view == "occlusion":
        check_runs(target)
    seen = yield from explanation_steps(target, view)
    paths = [part["path"] for part in parts if part["type"] == "image"]
    image = decode_image(Path(paths[-1]).read_bytes()) if paths else None
    return View([(heatmap(seen, number, image), word) for number, word in enumerate(seen.words)])


def contributions_view(words: Sequence[str], found: Contributions) -> View:
    """Return what each modality adds to the probability of each word, as a table."""
    columns = {"nothing": found.base, **{f"+ {name}": each for name, each in found.values.items()}, "all": found.full}
    rows: list[list[str | float]] = [
        [word, *(round(each[number].item(), 3) for each in columns.values())] for number, word in enumerate(words)
    ]
    return View(table=rows, columns=["word", *columns])


def check_runs(target: Target) -> None:
    """Raise a ValueError for an occlusion of so many places that other visitors would wait."""
    runs = occlusion_runs(target, places_of(target.model, target.media))
    if runs > MOST_RUNS:
        raise ValueError(
            f"An occlusion of {runs} places and words takes too long here, where {MOST_RUNS} are allowed. Ask about "
            "fewer media, choose another method, or use `modeling-mm ask --explain occlusion`."
        )


async def run_in_turns(engine: Engine, steps: Generator[float, None, View]) -> AsyncGenerator[float | View, None]:
    """
    Yield the share of steps that is done, then their result. The engine answers others between two steps.

    Closing the iterator ends the work after its step.
    """
    result = None
    while result is None:
        # Shielded, as the engine sets the result of a call also if nobody waits for it any more.
        share, result = await asyncio.shield(asyncio.wrap_future(engine.call(advance, steps)))
        yield share if result is None else result


def advance(steps: Generator[float, None, View]) -> tuple[float, View | None]:
    """Return the share that is done behind the next step, and the result behind the last; futures take no end."""
    try:
        return next(steps), None
    except StopIteration as end:
        return 1.0, end.value


def heatmap(attention: Explanation, number: int, image: Image.Image | None) -> Image.Image:
    """Return one word's heat on the image, and on a strip of the audio's moments below it; one scale for all words."""
    heats = [heat.numpy() for heat in (attention.patches, attention.moments) if heat is not None]
    greatest = max([float(heat.max()) for heat in heats if heat.size], default=0.0) or 1.0
    parts = []
    if image is not None and attention.patches is not None:
        height = max(round(image.height * SHOWN_WIDTH / image.width), 1)
        pixels = np.asarray(image.resize((SHOWN_WIDTH, height)).convert("L").convert("RGB"), dtype=np.float64)
        parts.append(overlay(pixels, attention.patches[number, -1].numpy() / greatest))
    if attention.moments is not None:
        strip = np.full((STRIP_HEIGHT, SHOWN_WIDTH, 3), STRIP_GREY)
        parts.append(overlay(strip, attention.moments[number].numpy()[None] / greatest))
    return Image.fromarray(np.concatenate(parts).round().astype(np.uint8))
