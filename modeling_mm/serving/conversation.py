# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""What the web page shows, without the page: a conversation's answer as it grows, and what its words looked at."""

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from PIL import Image

from ..audio import decode_audio
from ..explain.attention import AnswerAttention, attend
from ..images import decode_image
from .answering import Answer, encode, room_after

Turns = list[dict[str, Any]]

GLOW = np.array([255.0, 120.0, 0.0])  # laid over the places that a word looked at
GLOW_SHARE = 0.75
SHOWN_WIDTH = 320
STRIP_HEIGHT = 28
PAPER = 245


def user_turn(question: str, picture: str | None, sound: str | None) -> dict[str, Any]:
    """
    A question with at most one picture and one sound, as files.

    Raises:
        ValueError: where there is nothing to ask about, and for a broken file, by its own name.
    """
    content = []
    for kind, path, decode in (("image", picture, decode_image), ("audio", sound, decode_audio)):
        if path:
            try:
                decode(Path(path).read_bytes())
            except (OSError, ValueError) as error:
                raise ValueError(f"{Path(path).name}: {error}.") from error
            content.append({"type": kind, "path": path})
    question = question.strip()
    if question:
        content.append({"type": "text", "text": question})
    if not content:
        raise ValueError("There is nothing to answer: write a question, or add a picture or a sound.")
    return {"role": "user", "content": content}


def stream_answer(
    model: Any, processor: Any, turns: Turns, max_new_tokens: int
) -> Generator[tuple[str, list[int]], None, None]:
    """
    The answer to a conversation, longer at each step: its text, and a list of its tokens, which is whole at the end.
    Closing the iterator ends the generation.

    Raises:
        ValueError: for what the processor cannot read, and for a conversation that is too long for the model.
    """
    inputs = encode(model, processor, turns)
    room = room_after(model, inputs["input_ids"].shape[1])
    length = max_new_tokens if room is None else min(max_new_tokens, room)
    pieces: SimpleQueue[str | None] = SimpleQueue()
    answer = Answer(processor.tokenizer, pieces.put)
    with ThreadPoolExecutor(1) as pool:
        options = {"do_sample": False, "max_new_tokens": length, **answer.options()}
        generated = pool.submit(model.generate, **inputs, **options)
        generated.add_done_callback(lambda _: pieces.put(None))
        try:
            text = ""
            while (piece := pieces.get()) is not None:
                text += piece
                yield text, answer.tokens
        finally:
            answer.stop()  # whoever asked may have gone
        generated.result()  # raises what went wrong there


def has_media(turns: Turns) -> bool:
    return any(part["type"] != "text" for turn in turns for part in turn["content"])


def look(model: Any, processor: Any, turns: Turns, answer_ids: list[int]) -> list[tuple[Image.Image, str]]:
    """
    What each word of an answer looked at: the conversation's last picture and its sounds, lit where the word looked.

    Args:
        turns: up to the question
        answer_ids: the tokens of the answer that `stream_answer` gave

    Returns:
        a picture and the word for each word; nothing for a conversation without media.

    Raises:
        ValueError: where the model's attention cannot be told, see `attend`.
    """
    if not has_media(turns):
        return []
    attention = attend(model, processor, turns, answer_ids=answer_ids)
    paths = [part["path"] for turn in turns for part in turn["content"] if part["type"] == "image"]
    picture = decode_image(Path(paths[-1]).read_bytes()) if paths else None
    return [(light(attention, number, picture), word) for number, word in enumerate(attention.words)]


def light(attention: AnswerAttention, number: int, picture: Image.Image | None) -> Image.Image:
    """One word's places: the picture above, a strip of the sound's moments below it. Equal heat is equal colour."""
    heats = [heat.numpy() for heat in (attention.patches, attention.moments) if heat is not None]
    greatest = max([float(heat.max()) for heat in heats if heat.size], default=0.0) or 1.0
    parts = []
    if picture is not None and attention.patches is not None:
        height = max(round(picture.height * SHOWN_WIDTH / picture.width), 1)
        pixels = np.asarray(picture.resize((SHOWN_WIDTH, height)).convert("L").convert("RGB"), dtype=np.float64)
        parts.append(glow(pixels, attention.patches[number, -1].numpy() / greatest))
    if attention.moments is not None:
        strip = np.full((STRIP_HEIGHT, SHOWN_WIDTH, 3), float(PAPER))
        parts.append(glow(strip, attention.moments[number].numpy()[None] / greatest))
    return Image.fromarray(np.concatenate(parts).round().astype(np.uint8))


def glow(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """(H, W, 3) pixels of 0 to 255 under heat (h, w) of 0 to 1."""
    size = (pixels.shape[1], pixels.shape[0])
    spread = np.asarray(Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.NEAREST))
    share = GLOW_SHARE * np.clip(spread, 0, 1)[..., None]
    return pixels * (1 - share) + GLOW * share
