# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""From raw media to media tokens: gathering what is real, encoding it, laying it out in rows."""

from collections.abc import Callable

import torch
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import can_return_tuple, is_torchdynamo_compiling

from .configuration_mm import MMConfig
from .connectors import Connector
from .encoders import dtype_of, dummy_item, encode, encoder_width, is_sharded, item_dimensions
from .outputs import AUDIO, IMAGE, MMMediaOutput

# Shape legend: B rows, I images a row, A audio windows a row, N items that are real, L encoder tokens, W the encoder's
# width, M media tokens an item, S media tokens a row, D the decoder's width.


class MediaEncodingMixin:
    """`get_image_features`, `get_audio_features` and `encode_media` for an `nn.Module` with towers and connectors."""

    config: MMConfig
    vision_tower: PreTrainedModel | None
    audio_tower: PreTrainedModel | None
    vision_connector: Connector | None
    audio_connector: Connector | None
    training: bool

    @can_return_tuple
    def get_image_features(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values: (N, 3, H, W), or (B, I, 3, H, W) where every image is real

        Returns:
            `last_hidden_state` (N, L, W) is the encoder's; `pooler_output` (N, M, D) holds the media tokens.
        """
        self.require(self.vision_tower, "images", "vision_config")
        items = pixel_values.flatten(0, -4)
        return self._features(self.vision_tower, self.vision_connector, items, None, **kwargs)[0]

    @can_return_tuple
    def get_audio_features(
        self,
        input_features: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        feature_attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            input_features: (N, n_mels, T), or (B, A, n_mels, T) where every window is real
            input_values: (N, T) for raw-wave encoders, (N, T, n_mels) for AST; or with (B, A, ...)
            feature_attention_mask: (N, T) or (B, A, T), which frames are real

        Returns:
            `last_hidden_state` (N, L, W) is the encoder's; `pooler_output` (N, M, D) holds the media tokens, zeros
            where they stand for no real frame.
        """
        self.require(self.audio_tower, "audio", "audio_config")
        sounds = input_features if input_features is not None else input_values
        items = sounds.flatten(0, -item_dimensions(self.audio_tower) - 1)
        frames = None if feature_attention_mask is None else feature_attention_mask.flatten(0, -2).bool()
        return self._features(self.audio_tower, self.audio_connector, items, frames, **kwargs)[0]

    def _features(
        self, tower: PreTrainedModel, connector: Connector, items: torch.Tensor, frames: torch.Tensor | None, **kwargs
    ) -> tuple[BaseModelOutputWithPooling, torch.Tensor]:
        """Runs one encoder and its connector over real items; the second result is the media tokens' mask (N, M)."""
        kwargs = {name: kwargs[name] for name in ("output_attentions", "output_hidden_states") if name in kwargs}
        encoded, tokens, mask = encode(tower, items, frames, **kwargs)
        states, mask = connector(tokens, mask)
        output = BaseModelOutputWithPooling(
            last_hidden_state=tokens,
            pooler_output=states,
            hidden_states=encoded.get("hidden_states"),
            attentions=encoded.get("attentions"),
        )
        return output, mask

    def encode_media(
        self,
        pixel_values: torch.Tensor | None = None,
        image_mask: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        feature_attention_mask: torch.Tensor | None = None,
        vision_states: torch.Tensor | None = None,
        audio_states: torch.Tensor | None = None,
        audio_states_mask: torch.Tensor | None = None,
    ) -> MMMediaOutput:
        """
        Encodes media once, to be passed as `media=` with any number of prompts.

        Args:
            pixel_values: (B, I, 3, H, W), or (B, 3, H, W) for one image a row
            image_mask: (B, I) bool, which images are real; all of them by default
            input_features: (B, A, n_mels, T), or (B, n_mels, T) for one window a row
            input_values: (B, A, T) or (B, A, T, n_mels); without A one window a row
            feature_attention_mask: (B, A, T), which frames are real; a window without any is absent
            vision_states: (B, I, L, W), what the vision encoder made of the images before, instead of `pixel_values`;
                `image_mask` says which are real. Frozen encoders need to run only once over data that is seen often.
            audio_states: (B, A, L, W), likewise of the audio encoder, instead of its inputs
            audio_states_mask: (B, A, L), which of them stand for real frames; a window without any is absent

        Raises:
            ValueError: for a modality that the model has no encoder for, for one that is given twice, and for masks
                that do not fit.
        """
        media = self._encode(
            pixel_values,
            image_mask,
            input_features,
            input_values,
            feature_attention_mask,
            vision_states,
            audio_states,
            audio_states_mask,
        )
        if media is None:
            raise ValueError(
                "encode_media was given neither pixel_values nor input_features nor input_values, nor what the "
                "encoders made of them (vision_states, audio_states)."
            )
        return media

    def _encode(
        self,
        pixel_values: torch.Tensor | None,
        image_mask: torch.Tensor | None,
        input_features: torch.Tensor | None,
        input_values: torch.Tensor | None,
        feature_attention_mask: torch.Tensor | None,
        vision_states: torch.Tensor | None = None,
        audio_states: torch.Tensor | None = None,
        audio_states_mask: torch.Tensor | None = None,
        absent: tuple[int, torch.device] | None = None,
    ) -> MMMediaOutput | None:
        """
        Images first, then sounds, in every process alike, whatever is there: where weights are sharded, all of them
        gather the same weights at the same time.

        Args:
            absent: number of rows and device of the empty part that stands in for a modality that is not given, where
                other processes wait for it; `None` where nothing stands in
        """
        check_given_once("image", pixel_values=pixel_values, vision_states=vision_states)
        check_given_once("sound", input_features=input_features, input_values=input_values, audio_states=audio_states)
        sounds = input_features if input_features is not None else input_values
        parts = []
        if vision_states is not None:
            self.require(self.vision_tower, "images", "vision_config")
            states = with_items(vision_states, 2)  # (B, I, L, W)
            parts.append(self._connect_items(IMAGE, states, as_mask("image_mask", image_mask, states.shape[:2])))
        elif pixel_values is not None:
            self.require(self.vision_tower, "images", "vision_config")
            images = with_items(pixel_values, 3)  # (B, I, 3, H, W)
            parts.append(self._encode_items(IMAGE, images, as_mask("image_mask", image_mask, images.shape[:2])))
        elif absent is not None and self.vision_tower is not None:
            parts.append(self._dummy_media(IMAGE, *absent))
        if audio_states is not None:
            self.require(self.audio_tower, "audio", "audio_config")
            states = with_items(audio_states, 2)  # (B, A, L, W)
            tokens = as_mask("audio_states_mask", audio_states_mask, states.shape[:3])
            present = None if tokens is None else tokens.any(-1)  # (B, A)
            parts.append(self._connect_items(AUDIO, states, present, tokens))
        elif sounds is not None:
            self.require(self.audio_tower, "audio", "audio_config")
            windows = with_items(sounds, item_dimensions(self.audio_tower))  # (B, A, ...)
            frames = frames_mask(feature_attention_mask, windows, self.audio_tower.main_input_name)
            present = None if frames is None else frames.any(-1)  # (B, A)
            parts.append(self._encode_items(AUDIO, windows, present, frames))
        elif absent is not None and self.audio_tower is not None:
            parts.append(self._dummy_media(AUDIO, *absent))
        return join_media(parts) if parts else None

    def _encode_items(
        self, modality: int, items: torch.Tensor, present: torch.Tensor | None, frames: torch.Tensor | None = None
    ) -> MMMediaOutput:
        """
        Gathers the real items of a batch, encodes them, and lays their tokens out in rows again.

        Args:
            items: (B, I, ...)
            present: (B, I) bool, or `None` where all are real
            frames: (B, I, T) bool
        """
        tower, connector = self.tower_and_connector(modality)

        def encode_and_connect(real: torch.Tensor, real_frames: torch.Tensor | None):
            output, mask = self._features(tower, connector, real, real_frames)
            return output.pooler_output, mask

        return self._in_rows(modality, items, present, frames, encode_and_connect)

    def _connect_items(
        self, modality: int, states: torch.Tensor, present: torch.Tensor | None, tokens: torch.Tensor | None = None
    ) -> MMMediaOutput:
        """
        As `_encode_items`, of what the encoder has made before.

        Args:
            states: (B, I, L, W)
            present: (B, I) bool, or `None` where all are real
            tokens: (B, I, L) bool
        """
        tower, connector = self.tower_and_connector(modality)
        width = encoder_width(tower.config)
        if states.shape[-1] != width:
            name = "vision_states" if modality == IMAGE else "audio_states"
            raise ValueError(
                f"{name} have {states.shape[-1]} features, but {type(tower).__name__} makes {width}. Pass the "
                "`last_hidden_state` of this model's own encoder (get_image_features, get_audio_features)."
            )

        def connect(real: torch.Tensor, real_tokens: torch.Tensor | None):
            if real_tokens is None:
                real_tokens = torch.ones(real.shape[:2], dtype=torch.bool, device=real.device)
            return connector(real.to(dtype_of(connector)), real_tokens)

        return self._in_rows(modality, states, present, tokens, connect)

    def _in_rows(
        self,
        modality: int,
        items: torch.Tensor,
        present: torch.Tensor | None,
        frames: torch.Tensor | None,
        to_media_tokens: Callable[[torch.Tensor, torch.Tensor | None], tuple[torch.Tensor, torch.Tensor]],
    ) -> MMMediaOutput:
        """
        Runs `to_media_tokens` over real items, (N, ...) and their frames (N, T) -> (N, M, D) and mask (N, M), and lays
        the tokens out in rows.

        A compiled graph cannot have shapes that hang on values: it runs over absent items too, and masks their tokens.
        """
        rows, slots = items.shape[:2]
        encodes_all = present is None or is_torchdynamo_compiling()
        if present is None:
            present = torch.ones(rows, slots, dtype=torch.bool, device=items.device)
        if encodes_all:
            real, real_frames = items.flatten(0, 1), None if frames is None else frames.flatten(0, 1)
        else:
            real, real_frames = items[present], None if frames is None else frames[present]  # (N, ...), (N, T)
        if real.shape[0] == 0:
            return self._dummy_media(modality, rows, items.device)
        tokens, mask = to_media_tokens(real, real_frames)  # (N, M, D), (N, M)
        present = present.to(tokens.device)
        if real.shape[0] == rows * slots:
            states, mask = tokens.view(rows, slots, *tokens.shape[1:]), mask.view(rows, slots, -1)
            if is_torchdynamo_compiling():
                mask = mask & present[..., None]
                states = states.masked_fill(~mask[..., None], 0.0)
        else:
            states = tokens.new_zeros(rows, slots, *tokens.shape[1:])  # (B, I, M, D)
            states = states.index_put((present,), tokens)
            mask = mask.new_zeros(rows, slots, mask.shape[1]).index_put((present,), mask)  # (B, I, M)
        number = (present.cumsum(-1) - 1)[..., None].expand_as(mask).masked_fill(~mask, -1)  # (B, I, M)
        return MMMediaOutput(
            states.flatten(1, 2), mask.flatten(1), number.flatten(1), torch.full_like(number.flatten(1), modality)
        )

    def _dummy_media(self, modality: int, rows: int, device: torch.device) -> MMMediaOutput:
        """
        The media of a batch that has none: one masked token a row keeps shapes whole. Where other processes wait for
        this one to take part, it comes from the connector, run over one empty item, and from the encoder where that
        learns too or has its weights gathered.
        """
        tower, connector = self.tower_and_connector(modality)
        states = torch.zeros(rows, 1, self.config.text_config.n_embd, dtype=dtype_of(tower), device=device)
        if self._must_run_all_encoders():
            states = states + 0.0 * self._empty_item(tower, connector, device).sum().to(states)
        nothing = torch.zeros(rows, 1, dtype=torch.bool, device=states.device)
        number = torch.full((rows, 1), -1, device=states.device)
        return MMMediaOutput(states, nothing, number, torch.full_like(number, modality))

    def _empty_item(self, tower: PreTrainedModel, connector: Connector, device: torch.device) -> torch.Tensor:
        """Media tokens (1, M, D) of an item of zeros; a frozen encoder is spared, as its outputs are of no use."""
        learns = any(parameter.requires_grad for parameter in tower.parameters())
        if not learns and not is_sharded(self):  # type: ignore[arg-type]
            tokens = torch.zeros(1, 1, encoder_width(tower.config), dtype=dtype_of(connector), device=device)
            return connector(tokens, torch.ones(1, 1, dtype=torch.bool, device=device))[0]
        training = tower.training
        tower.eval()  # batch statistics must not learn from an empty item
        output, _ = self._features(tower, connector, dummy_item(tower, device), None)
        tower.train(training)
        return output.pooler_output

    def tower_and_connector(self, modality: int) -> tuple[PreTrainedModel | None, Connector | None]:
        if modality == IMAGE:
            return self.vision_tower, self.vision_connector
        return self.audio_tower, self.audio_connector

    def _must_run_all_encoders(self) -> bool:
        """
        Whether a batch without media must use the encoders' and connectors' parameters all the same: with several
        processes, in training, where gradients are averaged over all of them, and wherever weights are sharded.
        """
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not distributed or torch.distributed.get_world_size() == 1:
            return False
        return self.training or is_sharded(self)  # type: ignore[arg-type]

    def require(self, tower: PreTrainedModel | None, what: str, field: str) -> None:
        if tower is None:
            raise ValueError(
                f"This model was given {what}, but it has no encoder for them ({field} is None). Join it with one, or "
                f"leave the {what} out."
            )


def join_media(parts: list[MMMediaOutput]) -> MMMediaOutput:
    """Media of the same rows, one behind the other: (B, S_1), (B, S_2), ... -> (B, S_1 + S_2 + ...)."""
    rows = [len(part.mask) for part in parts]
    if len(set(rows)) > 1:
        raise ValueError(
            f"Images are given for {rows[0]} rows and sounds for {rows[1]}. Media are batch-first: give each row its "
            "images and windows, and say by image_mask and feature_attention_mask which are real."
        )
    # Towers may lie on different devices.
    device = parts[0].states.device
    tuples = (part.map(lambda tensor: tensor.to(device)).to_tuple() for part in parts)
    return MMMediaOutput(*(torch.cat(same, dim=1) for same in zip(*tuples, strict=True)))


def check_given_once(what: str, **inputs: torch.Tensor | None) -> None:
    """
    Raises:
        ValueError: where one modality comes by more than one input.
    """
    given = [name for name, values in inputs.items() if values is not None]
    if len(given) > 1:
        raise ValueError(f"Pass one of {', '.join(inputs)} for the {what}s, not {' and '.join(given)}.")


def with_items(values: torch.Tensor, item_dimensions: int) -> torch.Tensor:
    """(B, ...) with one item a row -> (B, 1, ...); (B, I, ...) stays."""
    if values.ndim == item_dimensions + 1:
        return values[:, None]
    if values.ndim != item_dimensions + 2:
        raise ValueError(
            f"Media must have {item_dimensions + 2} dimensions (rows, items, ...) or {item_dimensions + 1} with one "
            f"item a row, got shape {tuple(values.shape)}."
        )
    return values


def as_mask(name: str, mask: torch.Tensor | None, shape: torch.Size) -> torch.Tensor | None:
    """A mask as bool, with its shape checked against the media's."""
    if mask is not None and mask.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)} as the media have, got {tuple(mask.shape)}.")
    return None if mask is None else mask.bool()


def frames_mask(mask: torch.Tensor | None, windows: torch.Tensor, input_name: str) -> torch.Tensor | None:
    """
    The frame mask as (B, A, T) bool.

    Args:
        mask: (B, A, T), or (B, T) with one window a row
        windows: (B, A, ...); time is the last dimension, but of an AST spectrogram (B, A, T, n_mels) it is the third
    """
    if mask is None:
        return None
    time = windows.shape[2] if input_name == "input_values" else windows.shape[-1]
    if mask.ndim == 2:
        mask = mask[:, None]
    return as_mask("feature_attention_mask", mask, torch.Size([*windows.shape[:2], time]))


def is_empty(past_key_values: Cache | None) -> bool:
    return past_key_values is None or (not is_torchdynamo_compiling() and past_key_values.get_seq_length() == 0)


def check_media_alone(
    attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None, past_key_values: Cache | None
) -> None:
    """
    Raises:
        ValueError: for what belongs to a text, where media are given without one: their placeholders, which stand in
            for it, begin a row and bring a mask and positions of their own.
    """
    given = {
        "attention_mask": attention_mask is not None,
        "position_ids": position_ids is not None,
        "past_key_values": not is_empty(past_key_values),
    }
    if any(given.values()):
        raise ValueError(
            f"Media alone start a row from their placeholders, but {' and '.join(n for n in given if given[n])} came "
            "with them, of a text that is not there. Pass input_ids with a placeholder for each image and each window "
            "of sound (MMProcessor makes them), or the media without anything else."
        )


def placeholder_prompt(media: MMMediaOutput, config: MMConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The prompt of media without text: their placeholders, images first, padded on the left.

    Returns:
        input_ids and attention_mask, (B, L) each
    """
    counts = torch.stack([media.count(IMAGE), media.count(AUDIO)], dim=1).tolist()  # (B, 2)
    rows = [[config.image_token_id] * images + [config.audio_token_id] * sounds for images, sounds in counts]
    longest = max(map(len, rows))
    if [] in rows:
        raise ValueError(f"Row {rows.index([])} has neither text nor media to start from.")
    padding = config.text_config.pad_token_id or 0  # masked, so any id serves
    device = media.states.device
    input_ids = torch.tensor([[padding] * (longest - len(row)) + row for row in rows], device=device)
    attention_mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return input_ids, attention_mask
