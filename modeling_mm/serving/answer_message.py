# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Message of a chat's answer: its text, and the images and audio that the model writes as codes.

OpenAI's protocol has a form for audio, and none for images. They have that of OpenRouter and of Vercel's gateway: a
list `images` beside the content, with data URLs.
"""

import base64
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import numpy as np
from PIL import Image

from ..audio_streamer import AUDIO
from ..code_tokens import TEXT, split_blocks
from .answering import GenerationStream
from .audio_output import encoder_of
from .chat_request import ChatRequest
from .image_output import to_part
from .kept_audio import KeptAudio

NOTHING = np.zeros(0, np.float32)


class AnswerMessage:
    """
    Message of one answer, whole or as deltas of its pieces: texts, PIL images, and samples (length,).

    The text is the content, and the transcript of the audio too: nothing else says what is spoken.

    Args:
        stream: of the answer
        chat: the request
        processor: with the model's codecs
        kept: takes the codes of its audio
    """

    def __init__(self, stream: GenerationStream, chat: ChatRequest, processor: Any, kept: KeptAudio):
        self._stream, self._kept = stream, kept
        self.text = ""
        self._audio_id = f"audio_{uuid4().hex}"
        self._has_audio = False
        self._written = {name: processor.written[name] for name in chat.sampling.outputs if name != TEXT}
        if chat.audio_format is not None:
            rate = self._written[AUDIO].codec.sampling_rate
            self._encoder = encoder_of(rate, chat.audio_format, chat.stream)

    def whole(self, pieces: Sequence[Any]) -> dict[str, Any]:
        """Return the message of all pieces."""
        self.text = "".join(piece for piece in pieces if isinstance(piece, str))
        images = [to_part(piece) for piece in pieces if isinstance(piece, Image.Image)]
        samples = [piece for piece in pieces if isinstance(piece, np.ndarray)]
        content = self.text or (None if images or samples else "")
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if images:
            message["images"] = images
        if samples:
            data = self._encoder.encode(np.concatenate(samples), is_last=True)
            message[AUDIO] = {
                "id": self._audio_id,
                "data": base64.b64encode(data).decode(),
                "transcript": self.text,
                "expires_at": self._keep(),
            }
        return message

    def deltas(self, piece: Any) -> list[dict[str, Any]]:
        """Return the deltas of the next piece; none of audio that is held back."""
        if isinstance(piece, str):
            self.text += piece
            return [{"content": piece}]
        if isinstance(piece, Image.Image):
            return [{"images": [to_part(piece)]}]
        return self._audio_deltas(self._encoder.encode(piece))

    def last_deltas(self) -> list[dict[str, Any]]:
        """Return the deltas behind the last piece: the rest of the audio, its transcript, the end of its keeping."""
        if not self._has_audio:
            return []
        deltas = self._audio_deltas(self._encoder.encode(NOTHING, is_last=True))
        if self.text:
            deltas.append({AUDIO: {"transcript": self.text}})
        return [*deltas, {AUDIO: {"expires_at": self._keep()}}]

    def media_tokens(self) -> dict[str, int]:
        """Return the tokens of each kind of media that the answer may have, with the start and end of blocks."""
        spans = {name: range(each.tokens.first, each.tokens.stop) for name, each in self._written.items()}
        tokens = self._stream.streamer.tokens
        return {name: sum(token in span for token in tokens) for name, span in spans.items()}

    def _audio_deltas(self, data: bytes) -> list[dict[str, Any]]:
        """Return a delta of bytes, if there are any; the first delta of audio has its id."""
        head = {} if self._has_audio else {"id": self._audio_id}
        self._has_audio = True
        found = {**head, **({"data": base64.b64encode(data).decode()} if data else {})}
        return [{AUDIO: found}] if found else []

    def _keep(self) -> int:
        """Keep the whole steps of the audio's codes; return the Unix time until which they are kept."""
        tokens = self._written[AUDIO].tokens
        strings = tokens.token_strings
        blocks = split_blocks(self._stream.streamer.tokens, {AUDIO: tokens})
        steps = [tokens.to_codes(block.ids)[0] for block in blocks if block.tokens is not None]
        ids = [each for codes in steps if codes[0] for each in tokens.to_ids(codes)]
        return self._kept.keep(self._audio_id, "".join(strings[each - tokens.first] for each in ids))
