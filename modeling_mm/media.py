# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""From raw media to media tokens: gather what is real, encode it, connect it to the decoder's width, scatter it."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import can_return_tuple, is_torchdynamo_compiling

from .configuration_mm import HIDDEN, MMConfig
from .connectors import Connector, DirectConnector
from .device_reads import read_once
from .encoder_shapes import dtype_of, dummy_item, item_dimensions
from .encoders import encode, is_sharded, prepare_call, read_tokens
from .masks import mask_of_padding
from .media_cache import SeenItems
from .modalities import MODALITIES, Modality
from .onednn import quick_linear
from .outputs import MMMediaOutput

# Shape legend: B rows, I items (images or audio windows) a row, N items that are real, T frames, L encoder tokens, W
# the encoder's width, M media tokens an item, S media tokens a row, D the decoder's width.


AnyConnector: TypeAlias = Connector | DirectConnector


@dataclass
class MediaBatch:
    """
    The items of one modality in a batch.

    Args:
        modality: of all items
        is_encoded: whether the items are states of the encoder, or raw
        items: (B, I, ...); (B, I, L, W) if they are encoded
        present: which items are real, (B, I) bool; `None` if all are
        frames: which frames or states are real, (B, I, T) bool; `None` if all are, or items have none
        counts: number of real items in each row, read from the device; in a compiled graph that of all items
        is_unmasked: whether the items came without a mask
    """

    modality: Modality
    is_encoded: bool
    items: torch.Tensor
    present: torch.Tensor | None
    frames: torch.Tensor | None
    counts: list[int]
    is_unmasked: bool = False


class MediaEncodingMixin:
    """`get_image_features`, `get_audio_features` and `encode_media` for a model with towers and connectors."""

    config: MMConfig
    training: bool
    language_model: Any
    count_placeholders: Callable[[Modality, torch.Tensor], list[int]]

    @can_return_tuple
    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """
        Encode images, each by itself.

        Args:
            pixel_values: (N, 3, H, W), or (B, I, 3, H, W) if every image is real

        Returns:
            `last_hidden_state` (N, L, W) of the encoder, and the media tokens as `pooler_output` (N, M, D).
        """
        return self.get_media_features("image", pixel_values, **kwargs)

    @can_return_tuple
    def get_audio_features(
        self,
        input_features: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        feature_attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """
        Encode audio windows, each by itself.

        Args:
            input_features: (N, n_mels, T), or (B, A, n_mels, T) if every window is real
            input_values: (N, T) for raw-wave encoders, (N, T, n_mels) for AST; or with (B, A, ...)
            feature_attention_mask: (N, T) or (B, A, T), which frames are real

        Returns:
            `last_hidden_state` (N, L, W) of the encoder, and the media tokens as `pooler_output` (N, M, D), zeros for
            tokens without a real frame.
        """
        windows = input_features if input_features is not None else input_values
        if windows is None:
            raise ValueError("get_audio_features was given no audio. Pass input_features or input_values.")
        return self.get_media_features("audio", windows, feature_attention_mask, **kwargs)

    def get_media_features(
        self, name: str, items: torch.Tensor, frame_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Run the encoder and the connector of a modality over real items; see [`~MMModel.get_audio_features`]."""
        tower, connector = self.parts_of(MODALITIES[name])
        items = items.flatten(0, -item_dimensions(tower) - 1)
        frame_mask = None if frame_mask is None else frame_mask.flatten(0, -2).bool()
        options = {key: kwargs[key] for key in ("output_attentions", "output_hidden_states") if key in kwargs}
        with nullcontext() if torch.is_grad_enabled() else quick_linear():
            encoded, tokens, mask = encode(tower, items, frame_mask, **options)
            if frame_mask is not None and getattr(self.config, MODALITIES[name].padding_field):
                mask = mask.any(-1, keepdim=True).expand_as(mask)
            pooled, kept = connector(tokens, mask)
            if connector.tagger is not None:
                pooled, _ = connector.tagger(tokens, mask, (pooled, kept), self.language_model.wte)
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens,
            pooler_output=pooled,
            hidden_states=encoded.get("hidden_states"),
            attentions=encoded.get("attentions"),
        )

    def encode_media(self, *, text: torch.Tensor | None = None, **inputs: torch.Tensor | None) -> MMMediaOutput:
        """
        Encode media once, to be passed as `media=` with any number of prompts.

        Args:
            pixel_values: (B, I, 3, H, W), or (B, 3, H, W) for one image a row
            image_mask: (B, I) bool, which images are real; all of them by default
            input_features: (B, A, n_mels, T), or (B, n_mels, T) for one window a row
            input_values: (B, A, T) or (B, A, T, n_mels); without A one window a row
            feature_attention_mask: (B, A, T), which frames are real; a window without real frames is absent
            vision_states: (B, I, L, W), the vision encoder's states of the images, instead of `pixel_values`, with the
                same `image_mask`. Frozen encoders need to run only once over data that is used often.
            audio_states: (B, A, L, W), likewise of the audio encoder, instead of its inputs
            audio_states_mask: (B, A, L), which states are of real frames; a window without any is absent
            text: ids (B, L) or embeddings (B, L, D) that the media belong to. Without a mask, items beyond a row's
                placeholders are then absent if they are zeros, as padding is.

        Raises:
            ValueError: for a modality that the model has no encoder for, for one that is given twice, and for masks
                that do not fit.
        """
        media = self._encode(self.read_media(inputs, text))
        if inputs:
            raise TypeError(f"encode_media got unexpected arguments: {', '.join(inputs)}.")
        if media is None:
            sources = [name for modality in MODALITIES.values() for name in modality.sources]
            raise ValueError(f"encode_media was given no media. Pass one of {', '.join(sources)}.")
        return media

    def read_media(self, inputs: dict, text: torch.Tensor | None = None) -> dict[str, MediaBatch]:
        """
        Take the media inputs out of `inputs` and return their items by modality.

        Masks are read here, before anything is launched, so that Python waits once for the device, or not at all if it
        has read these masks before. Some callers, such as TRL's GRPO, hand on the media of a text without their masks.
        """
        batches = {}
        for modality in MODALITIES.values():
            given = {name: inputs.pop(name) for name in modality.model_inputs if name in inputs}
            given = {name: value for name, value in given.items() if value is not None}
            sources = [name for name in modality.sources if name in given]
            if len(sources) > 1:
                names = ", ".join(modality.sources)
                raise ValueError(f"Pass one of {names} for the {modality.plural}, not {' and '.join(sources)}.")
            if sources:
                tower, connector = self.parts_of(modality)
                batch = make_batch(modality, tower, connector.width, sources[0], given)
                if text is not None and batch.is_unmasked and not is_torchdynamo_compiling():
                    batch = without_padding(batch, self.count_placeholders(modality, text))
                batches[modality.name] = batch
        rows = [batch.items.shape[0] for batch in batches.values()]
        if len(set(rows)) > 1:
            raise ValueError(
                f"Media are given for {' and '.join(map(str, rows))} rows. Media are batch-first: give each row its "
                "items, padded to the same number, and mask those that are not real."
            )
        return batches

    def _encode(
        self, batches: dict[str, MediaBatch], absent: tuple[int, torch.device] | None = None
    ) -> MMMediaOutput | None:
        """
        Encode one modality after the other.

        The order is the same in every process, whatever is given: processes that share sharded weights gather the same
        ones at the same time.

        Args:
            absent: number of rows and device of the padding that replaces a modality that is not given, if other
                processes wait for it
        """
        parts: dict[str, tuple[torch.Tensor, ...]] = {}
        for modality in MODALITIES.values():
            batch = batches.get(modality.name)
            if batch is None or not any(batch.counts):
                padding = absent if batch is None else (batch.items.shape[0], batch.items.device)
                if padding is not None and getattr(self, modality.tower_attribute, None) is not None:
                    parts[modality.name] = self._dummy_media(modality, *padding)
                continue
            tower, connector = self.parts_of(modality)
            items, frames, index = gather(batch)  # (N, ...), (N, T), (N,)
            if batch.is_encoded:
                tokens = items.to(dtype_of(connector, tower))  # (N, L, W)
                mask = tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if frames is None else frames
            else:
                # The encoder is called here instead of in `encode`, so that a traceback into it is short.
                call, arguments, needs_grad = prepare_call(tower, items, frames)
                with torch.set_grad_enabled(needs_grad), nullcontext() if needs_grad else quick_linear():
                    output = call(**arguments)
                tokens, mask = read_tokens(tower, output, frames)  # (N, L, W), (N, L)
            if frames is not None and getattr(self.config, modality.padding_field):
                mask = mask.any(-1, keepdim=True).expand_as(mask)  # all tokens of a real item
            with nullcontext() if torch.is_grad_enabled() else quick_linear():
                states, kept = connector(tokens, mask)  # (N, M, D), (N, M)
                if connector.tagger is not None:
                    states, kept = connector.tagger(tokens, mask, (states, kept), self.language_model.wte)
            parts[modality.name] = scatter(batch, index, states, kept)  # (B, S, D), (B, S), ...
        return join_modalities(parts)

    def _dummy_media(self, modality: Modality, rows: int, device: torch.device) -> tuple[torch.Tensor, ...]:
        """
        Return the padding of a batch without a modality, one masked token a row.

        If other processes wait for this one, it is computed by the connector from an empty item, and by the encoder if
        that is trained or sharded.
        """
        tower, connector = self.parts_of(modality)
        states = torch.zeros(rows, 1, self.config.text_config.n_embd, dtype=dtype_of(tower), device=device)
        if self._must_run_all_encoders():
            states = states + 0.0 * self._empty_item(tower, connector, device).sum().to(states)
        mask = torch.zeros(rows, 1, dtype=torch.bool, device=device)
        position = torch.full((rows, 1), -1, device=device)
        return states, mask, position, torch.full_like(position, list(MODALITIES).index(modality.name))

    def _empty_item(self, tower: PreTrainedModel, connector: AnyConnector, device: torch.device) -> torch.Tensor:
        """Return media tokens (1, M, D) of an item of zeros; a frozen encoder need not run for them."""
        learns = any(parameter.requires_grad for parameter in tower.parameters())
        if not learns and not is_sharded(self):  # type: ignore[arg-type]
            tokens = torch.zeros(1, 1, connector.width, dtype=dtype_of(connector, tower), device=device)
            mask = torch.ones(1, 1, dtype=torch.bool, device=device)
        else:
            training = tower.training
            tower.eval()  # batch statistics must not learn from an empty item
            _, tokens, mask = encode(tower, dummy_item(tower, device))
            tower.train(training)
        media = connector(tokens, mask)
        if connector.tagger is not None:
            media = connector.tagger(tokens, mask, media, self.language_model.wte)
        return media[0]

    def number_items(
        self, media: MMMediaOutput, seen: SeenItems | None, past_length: int | torch.Tensor
    ) -> tuple[MMMediaOutput, torch.Tensor]:
        """
        Add the vectors of their items' numbers to media tokens, if the model has any.

        It is done where media meet their text, because an item that is encoded once may be the first of one row and
        the second of another, or follow those of an earlier step.

        Args:
            seen: the items of earlier steps
            past_length: text tokens in the cache

        Returns:
            the media, and the number of each token's item among those of its modality in the row, (B, S), -1 for
            padding

        Raises:
            ValueError: for a row that has more than `max_media_items` items with those of earlier steps.
        """
        states, numbers = media.states, media.position
        for place, modality in enumerate(MODALITIES.values()):
            connector = getattr(self, modality.connector_attribute, None)
            if connector is None or (media.sizes is not None and not media.sizes[place]):
                continue
            own = media.mask & (media.modality == place)  # (B, S)
            if seen is not None:
                numbers = numbers + own * seen.count(place, past_length)[:, None]
                if not is_torchdynamo_compiling():
                    connector.check_items(int(numbers.masked_fill(~own, -1).max()) + 1)
            states = connector.number(states, numbers.masked_fill(~own, -1))
        return replace(media, states=states), numbers

    def parts_of(self, modality: Modality) -> tuple[PreTrainedModel, AnyConnector]:
        """
        Return the encoder and the connector of a modality.

        Raises:
            ValueError: if this model has none.
        """
        tower = getattr(self, modality.tower_attribute, None)
        if tower is None:
            raise ValueError(
                f"This model was given {modality.plural}, but it has no encoder for them ({modality.config_field} is "
                f"None). Join it with one, or leave the {modality.plural} out."
            )
        return tower, getattr(self, modality.connector_attribute)

    def _must_run_all_encoders(self) -> bool:
        """
        Return whether a batch without media must use the parameters of all encoders and connectors all the same.

        It must with several processes, in training, because gradients are averaged over all of them, and if weights
        are sharded.
        """
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not distributed or torch.distributed.get_world_size() == 1:
            return False
        return self.training or is_sharded(self)  # type: ignore[arg-type]


def make_batch(
    modality: Modality, tower: PreTrainedModel, width: int, source: str, inputs: dict[str, torch.Tensor]
) -> MediaBatch:
    """
    Return the items of one input, with their mask.

    Raises:
        ValueError: for items, states or a mask of the wrong shape.
    """
    items, is_encoded = inputs[source], source == modality.states
    dimensions = 2 if is_encoded else item_dimensions(tower)
    if items.ndim == dimensions + 1:  # one item a row
        items = items[:, None]
    if items.ndim != dimensions + 2:
        raise ValueError(
            f"{source} must have {dimensions + 2} dimensions (rows, items, ...) or {dimensions + 1} with one item a "
            f"row, got shape {tuple(items.shape)}."
        )
    if is_encoded and items.shape[-1] != width:
        raise ValueError(
            f"{source} have {items.shape[-1]} features, but {type(tower).__name__} makes {width}. "
            "Pass the `last_hidden_state` of this model's own encoder."
        )
    rows, slots = items.shape[:2]
    mask_name = modality.states_mask if is_encoded else modality.mask
    given = inputs.get(mask_name)
    if given is None:
        return MediaBatch(modality, is_encoded, items, None, None, [slots] * rows, is_unmasked=True)
    shape: tuple[int, ...] = (rows, slots)
    if modality.frame_axes:
        shape += (items.shape[2 if is_encoded else modality.frame_axes[modality.inputs.index(source)]],)
    mask = given[:, None] if modality.frame_axes and given.ndim == 2 else given  # one item a row
    if mask.shape != shape:
        raise ValueError(f"{mask_name} must have shape {shape} as the media have, got {tuple(mask.shape)}.")
    frames = mask.bool() if modality.frame_axes else None
    present = mask.bool() if frames is None else frames.any(-1)
    if is_torchdynamo_compiling():
        return MediaBatch(modality, is_encoded, items, present, frames, [slots] * rows)
    counts = read_once(mask_name, present.sum(-1), given)
    return MediaBatch(modality, is_encoded, items, None if min(counts) == slots else present, frames, counts)


def without_padding(batch: MediaBatch, placeholders: list[int]) -> MediaBatch:
    """Return a batch without the zeros that pad rows to one number of items, inferred from their placeholders."""
    present = mask_of_padding(batch.items, placeholders)
    return batch if present is None else replace(batch, present=present, counts=placeholders)


def gather(batch: MediaBatch) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """
    Return the real items (N, ...), their frames (N, T), and their indices among all items of the batch, (N,).

    The shapes of a compiled graph cannot depend on values: it takes absent items too, and `scatter` masks them.
    """
    items, frames = batch.items.flatten(0, 1), None if batch.frames is None else batch.frames.flatten(0, 1)
    if batch.present is None or is_torchdynamo_compiling():
        return items, frames, None
    # Sorted, as `nonzero` would wait for the device to report a number that is known already.
    index = batch.present.flatten().int().argsort(descending=True, stable=True)[: sum(batch.counts)]
    return items[index], None if frames is None else frames[index], index


def scatter(
    batch: MediaBatch, index: torch.Tensor | None, states: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """
    Lay out media tokens in rows.

    Args:
        index: of the real items, as `gather` returns it
        states: (N, M, D)
        mask: (N, M) bool

    Returns:
        the tensors of a [`MMMediaOutput`], with S = I * M, on the items' device
    """
    rows, slots = batch.items.shape[:2]
    device, present = batch.items.device, batch.present
    states, mask = states.to(device), mask.to(device)
    if index is not None:
        states = states.new_zeros(rows * slots, *states.shape[1:]).index_copy(0, index, states)
        mask = mask.new_zeros(rows * slots, mask.shape[1]).index_copy(0, index, mask)
    elif present is not None:
        mask = mask & present.flatten()[:, None]
        states = states.masked_fill(~mask[..., None], 0.0)
    number = torch.arange(slots, device=device) if present is None else present.cumsum(-1) - 1  # (I,) or (B, I)
    mask = mask.view(rows, slots, -1)  # (B, I, M)
    position = number[..., None].expand_as(mask).masked_fill(~mask, -1)
    modality = torch.full_like(position, list(MODALITIES).index(batch.modality.name))
    return states.reshape(rows, -1, states.shape[-1]), mask.flatten(1), position.flatten(1), modality.flatten(1)


def join_modalities(parts: Mapping[str, tuple[torch.Tensor, ...]]) -> MMMediaOutput | None:
    """Return the media of several modalities, each laid out as `scatter` does, one behind the other in each row."""
    if not parts:
        return None
    sizes = tuple([parts[name][1].shape[1] if name in parts else 0 for name in MODALITIES])
    tensors = [same[0] if len(same) == 1 else torch.cat(same, dim=1) for same in zip(*parts.values(), strict=True)]
    return MMMediaOutput(*tensors, sizes=sizes)


def is_empty(past_key_values: Cache | None) -> bool:
    return past_key_values is None or (not is_torchdynamo_compiling() and past_key_values.get_seq_length() == 0)


def check_media_alone(
    attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None, past_key_values: Cache | None
) -> None:
    """
    Refuse arguments of a text for media without text.

    Raises:
        ValueError: for arguments of a text, if media are given without one: their placeholders start a row, with a
            mask and positions that follow from them.
    """
    given = {
        "attention_mask": attention_mask is not None,
        "position_ids": position_ids is not None,
        "past_key_values": not is_empty(past_key_values),
    }
    if any(given.values()):
        raise ValueError(
            f"Media alone start a row from their placeholders, but {' and '.join(n for n in given if given[n])} of a "
            "text came with them. Pass input_ids with a placeholder for each item (MMProcessor makes them), or the "
            "media without anything else."
        )


def placeholder_prompt(media: MMMediaOutput, config: MMConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Return the prompt of media without text: their placeholders, in the order of the modalities, padded on the left.

    `config.prompt_token_ids` follow; hidden placeholders are masked.

    Returns:
        input_ids and attention_mask, (B, L) each

    Raises:
        ValueError: for a row without media, and if nothing but hidden placeholders would be left to start from.
    """
    if config.placeholders == HIDDEN and not config.prompt_token_ids:
        raise ValueError(
            "Media came without text, and this model's placeholders are hidden, so that nothing is left to start "
            "from. Pass input_ids (MMProcessor makes them), or set config.prompt_token_ids to what answers begin with."
        )
    prompt = list(config.prompt_token_ids or ())
    is_seen = int(config.placeholders != HIDDEN)
    device = media.states.device
    rows: list[list[int]] = [[] for _ in media.mask]
    for name, numbers in media.item_counts().items():
        token_id = getattr(config, MODALITIES[name].token_id_field)
        rows = [row + [token_id] * number for row, number in zip(rows, numbers, strict=True)]
    if [] in rows:
        raise ValueError(f"Row {rows.index([])} has neither text nor media to start from.")
    longest = max(map(len, rows))
    padding = config.text_config.pad_token_id or 0  # masked, so any id serves
    ids = [[padding] * (longest - len(row)) + row + prompt for row in rows]
    mask = [[0] * (longest - len(row)) + [is_seen] * len(row) + [1] * len(prompt) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
