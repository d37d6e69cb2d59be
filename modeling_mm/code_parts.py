# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Images and audio that the assistant writes: parts of chats as codes in a text, and generated ids as parts.

A codec is a model, which the processor does not load: `processor.use_codecs(model)` lends it those of a model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken

from .audio import load_audio
from .chat import CODES, media_source
from .code_tokens import EDGES, Block, CodeTokens, code_tokens_in, code_tokens_of, edge_tokens, split_blocks
from .images import load_image
from .modalities import MODALITIES

# Shape legend: K codebooks, T time steps, H and W of an image.


@dataclass
class WrittenModality:
    """
    The codes of a modality, as a processor writes and reads them.

    Args:
        tokens: their ids.
        codec: what encodes and decodes media; see [`codec_interface.MediaCodec`].
    """

    tokens: CodeTokens
    codec: Any

    def __deepcopy__(self, memo: dict) -> "WrittenModality":
        """Return itself: transformers copies a processor to save it, without the model's weights."""
        return self


class CodeProcessing:
    """Methods of [`MMProcessor`] for media that a model writes."""

    tokenizer: Any
    written: Mapping[str, WrittenModality] = {}

    def add_codec(self, codec: Any) -> int:
        """
        Give the tokenizer the tokens of a codec's codes, in place; the model's method of this name is its twin.

        ```python
        codec = load_codec("kyutai/mimi", num_codebooks=8)
        processor.add_codec(codec)
        model.add_codec(codec, processor)
        processor.use_codecs(model)
        ```

        Returns:
            the id of the start token; the others follow.

        Raises:
            ValueError: if the tokenizer has tokens of this modality for a codec of another size.
        """
        name = codec.modality
        tokens = CodeTokens(name, len(self.tokenizer), codec.codebook_size, codec.num_codebooks)
        if (span := code_tokens_in(self.tokenizer.get_vocab(), name)) is not None:
            if span[1] - span[0] != tokens.stop - tokens.first:
                raise ValueError(
                    f"The tokenizer has {span[1] - span[0] - EDGES} codes of {name} already, but the codec has "
                    f"{codec.num_codebooks * codec.codebook_size}. Use a tokenizer without them."
                )
            return span[0]
        start, end, *codes = tokens.token_strings
        # A start token in a person's text is plain text; codes are no special tokens, so that decoding keeps them.
        self.tokenizer.add_tokens([AddedToken(each, special=True, normalized=False) for each in (start, end)], True)
        self.tokenizer.add_tokens([AddedToken(each, special=False, normalized=False) for each in codes])
        added = code_tokens_in(self.tokenizer.get_vocab(), name)
        assert added is not None
        return added[0]

    def use_codecs(self, model: Any) -> None:
        """
        Take a model's codecs, which are not copied, to encode assistants' media and to decode generated ones.

        Args:
            model: any of our models; one without codecs leaves the processor without.

        Raises:
            ValueError: if the tokenizer has the codes under other ids.
        """
        vocabulary, found = self.tokenizer.get_vocab(), {}
        for name, tokens in code_tokens_of(model.config).items():
            if (span := code_tokens_in(vocabulary, name)) != (tokens.first, tokens.stop):
                raise ValueError(
                    f"The model has codes of {name} from id {tokens.first} to {tokens.stop - 1}, the tokenizer "
                    f"{'has none' if span is None else f'from {span[0]} to {span[1] - 1}'}. Use the model's tokenizer."
                )
            found[name] = WrittenModality(tokens, getattr(model.base_model, f"{name}_codec"))
        self.written = found

    # ---- Encoding ---------------------------------------------------------------------------------------------------

    def encode_codes(self, part: Mapping[str, Any]) -> list[list[int]]:
        """
        Return the codes (K, T) of a part of a chat that holds an image or audio.

        Raises:
            ValueError: without a codec, and for media that cannot be read.
        """
        name, codec = part["type"], self.written_modality(part["type"]).codec
        if (source := media_source(dict(part))) is None:
            raise ValueError(
                f"The assistant's part {{'type': {name!r}}} holds no {name}. Give it one, as the {name} is learned."
            )
        if codec.sampling_rate is None:
            media = pixels(load_image(source), codec.image_size)
        else:
            media = torch.from_numpy(load_audio(source, codec.sampling_rate, part.get("sampling_rate")))
        codes: list[list[int]] = codec.encode(media[None].to(device_of(codec)))[0].tolist()
        return codes

    def write_codes(self, conversations: Sequence[Sequence[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
        """
        Return conversations whose assistants' images and audio are text parts that hold their codes.

        Only of modalities that the tokenizer has codes of. A part may hold its `codes` (K, T) in place of media.
        """
        names = [name for name in MODALITIES if self.has_codes(name)]
        if not names:
            return [list(chat) for chat in conversations]

        def written(part: Any) -> Any:
            if not isinstance(part, dict) or part.get("type") not in names:
                return part
            codes = part[CODES] if part.get(CODES) is not None else self.encode_codes(part)
            ids = self.written_modality(part["type"]).tokens.to_ids(torch.as_tensor(codes).tolist())
            return {"type": "text", "text": "", CODES: "".join(self.tokenizer.convert_ids_to_tokens(ids))}

        return [
            [
                {**turn, "content": [written(part) for part in turn["content"]]}
                if turn.get("role") == "assistant" and isinstance(turn.get("content"), (list, tuple))
                else turn
                for turn in chat
            ]
            for chat in conversations
        ]

    def written_modality(self, name: str) -> WrittenModality:
        """
        Return the codes of a modality and what encodes and decodes them.

        Raises:
            ValueError: without a codec.
        """
        if name not in self.written:
            raise ValueError(
                f"{name.capitalize()} of an assistant is written as codes, but this processor has no codec for it. "
                "Call processor.use_codecs(model) with the model whose tokenizer this is."
            )
        return self.written[name]

    def has_codes(self, name: str) -> bool:
        """Return True if the tokenizer has codes of a modality; it is found without a copy of the vocabulary."""
        token_id = self.tokenizer.convert_tokens_to_ids(edge_tokens(name)[0])
        return token_id is not None and token_id != self.tokenizer.unk_token_id

    # ---- Decoding ---------------------------------------------------------------------------------------------------

    def decode_media(self, ids: Any) -> list[Any]:
        """
        Return what a model has written as parts of a chat.

        ```python
        ids = model.generate(**inputs, output_modalities=("text", "image"))
        parts = processor.decode_media(ids[0, inputs["input_ids"].shape[1] :])
        ```

        Args:
            ids: generated tokens (L,) or (B, L), without the prompt.

        Returns:
            Parts in order, or for (B, L) a list of them for each row: `{"type": "text", "text": str}`,
            `{"type": "image", "image": PIL image}`, `{"type": "audio", "audio": (samples, rate)}`. A part that was
            cut has `is_cut`: True, and what can be decoded: of an image its whole rows of codes, of audio its whole
            steps; None if there is nothing.

        Raises:
            ValueError: for codes in another order, and without a codec.
        """
        if isinstance(ids, (torch.Tensor, np.ndarray)):
            ids = ids.tolist()
        if ids and isinstance(ids[0], (list, tuple)):
            return [self.decode_media(row) for row in ids]
        parts = []
        for block in split_blocks(ids, {name: each.tokens for name, each in self.written.items()}):
            if block.tokens is not None:
                parts.append(self._decode_block(block))
            elif text := self.tokenizer.decode(block.ids, skip_special_tokens=True):
                parts.append({"type": "text", "text": text})
        return parts

    def decode_written(self, ids: Any, name: str) -> list[Any]:
        """
        Return the first image or audio of each row of generated tokens (B, L), without the prompt.

        Returns:
            PIL images, or samples (length,).

        Raises:
            ValueError: for a row without any that can be decoded.
        """
        written, media = self.written_modality(name), []
        for row, parts in enumerate(self.decode_media(ids)):
            found = next((part[name] for part in parts if part["type"] == name), None)
            if found is None:
                raise ValueError(
                    f"Row {row} has no {name} that can be decoded. Raise max_new_tokens, or shorten the prompt: each "
                    f"step of its codes takes {written.tokens.codebooks} tokens behind the start token."
                )
            media.append(found[0] if written.tokens.grid is None else found)
        return media

    def _decode_block(self, block: Block) -> dict[str, Any]:
        """Return the part of a block of codes."""
        assert block.tokens is not None
        name = block.tokens.name
        codes, is_cut = block.tokens.to_codes(block.ids)
        decode = decode_audio if block.tokens.grid is None else decode_image
        part = {"type": name, name: decode(self.written[name].codec, torch.tensor(codes))}
        return part if block.is_ended and not is_cut else {**part, "is_cut": True}


def reveal_codes(conversations: Sequence[Sequence[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    """Return conversations with the codes of [`CodeProcessing.write_codes`] as their texts."""

    def revealed(part: Any) -> Any:
        return {"type": "text", "text": part[CODES]} if isinstance(part, dict) and CODES in part else part

    return [
        [
            {**turn, "content": [revealed(part) for part in turn["content"]]}
            if isinstance(turn.get("content"), (list, tuple))
            else turn
            for turn in chat
        ]
        for chat in conversations
    ]


def device_of(codec: Any) -> torch.device:
    return next(codec.parameters()).device  # type: ignore[no-any-return]


def decode_image(codec: Any, codes: torch.Tensor) -> Image.Image | None:
    """Return the image of codes (K, T); of a grid that is not full the part above its first row that is not."""
    rows, columns = codec.grid
    whole = codes.shape[1] // columns
    if whole == 0:
        return None
    missing = rows * columns - codes.shape[1]
    codes = torch.cat([codes, codes[:, -1:].expand(-1, missing)], dim=1)  # a codec decodes a whole grid
    image = codec.decode(codes[None].to(device_of(codec)))[0]  # (3, H, W)
    image = image[:, : image.shape[1] * whole // rows]
    return Image.fromarray((image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def decode_audio(codec: Any, codes: torch.Tensor) -> tuple[np.ndarray, int] | None:
    """Return the samples of codes (K, T), float32, and their rate."""
    if codes.shape[1] == 0:
        return None
    samples = codec.decode(codes[None].to(device_of(codec)))[0]
    return samples.float().cpu().numpy(), codec.sampling_rate


def pixels(image: Any, size: tuple[int, int]) -> torch.Tensor:
    """Return an image as (3, H, W) from 0 to 1, resized to a height and a width."""
    height, width = size
    array = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    return torch.from_numpy(array / 255).permute(2, 0, 1)
