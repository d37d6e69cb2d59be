# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The modalities beside text: one row each, with every name that a modality has in configs, inputs and chats."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Modality:
    """
    Names of one modality.

    Args:
        name: in chats (part type), in messages and of `<name>_token_id`: `"image"`.
        tower: prefix of `<tower>_config`, `<tower>_tower`, `<tower>_connector` and `freeze_<tower>`: `"vision"`.
        inputs: raw inputs, of which a batch has at most one.
        mask: which items of a raw input are real, (B, I); with `has_frames`, which frames of them, (B, I, T).
        states: encoder outputs computed before, in place of a raw input, (B, I, L, W).
        states_mask: which of these are real, (B, I); with `has_frames`, which of their tokens, (B, I, L).
        token: placeholder in the text, one for each item.
        plural: the items in messages, and the processor's argument: `"images"`.
        processor: attribute of the processor that makes the raw input.
        has_frames: whether an item has a length of its own, so that masks go by frames.
    """

    name: str
    tower: str
    inputs: tuple[str, ...]
    mask: str
    states: str
    states_mask: str
    token: str
    plural: str
    processor: str
    has_frames: bool = False

    @property
    def config_field(self) -> str:
        return f"{self.tower}_config"

    @property
    def tower_attribute(self) -> str:
        return f"{self.tower}_tower"

    @property
    def connector_attribute(self) -> str:
        return f"{self.tower}_connector"

    @property
    def freeze_field(self) -> str:
        return f"freeze_{self.tower}"

    @property
    def token_id_field(self) -> str:
        return f"{self.name}_token_id"

    @property
    def model_inputs(self) -> tuple[str, ...]:
        """Every argument of the model that belongs to this modality, each once."""
        return tuple(dict.fromkeys((*self.inputs, self.mask, self.states, self.states_mask)))


# The order is that of `MMMediaOutput.modality`: 0 for images, 1 for audio. Every process encodes in this order.
MODALITIES: dict[str, Modality] = {
    modality.name: modality
    for modality in (
        Modality(
            name="image",
            tower="vision",
            inputs=("pixel_values",),
            mask="image_mask",
            states="vision_states",
            states_mask="image_mask",
            token="<|image|>",
            plural="images",
            processor="image_processor",
        ),
        Modality(
            name="audio",
            tower="audio",
            inputs=("input_features", "input_values"),
            mask="feature_attention_mask",
            states="audio_states",
            states_mask="audio_states_mask",
            token="<|audio|>",
            plural="audio",
            processor="feature_extractor",
            has_frames=True,
        ),
    )
}


def media_inputs() -> tuple[str, ...]:
    """Every media argument of the model, over all modalities."""
    return tuple(name for modality in MODALITIES.values() for name in modality.model_inputs)
