# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The modalities beside text: one row each, with every name that a modality has in configs, inputs and chats."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar


@dataclass(frozen=True)
class Modality:
    """
    Names of one modality.

    Args:
        name: in chats (part type), in messages and of `<name>_token_id`: `"image"`.
        tower: prefix of `<tower>_config`, `<tower>_tower`, `<tower>_connector` and `freeze_<tower>`: `"vision"`. By
            default the name.
        inputs: raw inputs, of which a batch has at most one. By default one, `<name>_values`.
        dimensions: of one item of each raw input, without rows and items: 3 for an image (channels, height, width).
            Always given.
        mask: which items of a raw input are real, (B, I); with `has_frames`, which frames of them, (B, I, T). By
            default `<name>_mask`.
        states: encoder outputs computed before, in place of a raw input, (B, I, L, W). By default `<tower>_states`.
        states_mask: which of these are real, (B, I), by default `mask`; with `has_frames`, which of their tokens,
            (B, I, L), by default `<tower>_states_mask`.
        token: placeholder in the text, one for each item; by default `<|name|>`.
        plural: the items in messages, and the processor's argument: `"images"`. By default the name with an "s".
        processor: attribute of the processor that makes the raw input; by default `<name>_processor`, for which the
            processor takes an [`ItemReader`].
        frame_axes: axis of the frames in each raw input, (B, I, ...), for items with a length: masks go by frames.
        read: for a modality of your own, what turns one item as users give it (a path, an object) into an array of
            `dimensions`; by default items are arrays, lists of numbers or `.npy` files.

    Raises:
        ValueError: for inputs, dimensions and axes of frames that differ in number.

    Example:
        >>> Modality("motion", dimensions=(2,), frame_axes=(2,)).inputs  # recordings (T, sensors) of any length
        ('motion_values',)
    """

    name: str
    tower: str = ""
    inputs: tuple[str, ...] = ()
    dimensions: tuple[int, ...] = ()
    mask: str = ""
    states: str = ""
    states_mask: str = ""
    token: str = ""
    plural: str = ""
    processor: str = ""
    frame_axes: tuple[int, ...] = ()
    read: Callable[[Any], Any] | None = None

    # Names that follow.
    config_field: str = field(init=False)
    tower_attribute: str = field(init=False)
    connector_attribute: str = field(init=False)
    freeze_field: str = field(init=False)
    token_id_field: str = field(init=False)
    layers_field: str = field(init=False)
    placement_field: str = field(init=False)
    padding_field: str = field(init=False)
    sources: tuple[str, ...] = field(init=False)  # raw and encoded, of which a batch has at most one
    model_inputs: tuple[str, ...] = field(init=False)  # every argument of the model, each once

    def __post_init__(self) -> None:
        tower = self.tower or self.name
        mask = self.mask or f"{self.name}_mask"
        usual = {
            "tower": tower,
            "inputs": (f"{self.name}_values",),
            "mask": mask,
            "states": f"{tower}_states",
            "states_mask": f"{tower}_states_mask" if self.frame_axes else mask,
            "token": f"<|{self.name}|>",
            "plural": f"{self.name}s",
            "processor": f"{self.name}_processor",
        }
        for name, value in usual.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)
        sizes = {len(self.inputs), len(self.dimensions), len(self.frame_axes or self.inputs)}
        if len(sizes) > 1:
            raise ValueError(
                f"Modality {self.name!r} has inputs {self.inputs}, dimensions {self.dimensions} and frame_axes "
                f"{self.frame_axes}. Give each input its dimensions, and an axis of frames if items have a length."
            )
        inputs = (*self.inputs, self.mask, self.states, self.states_mask)
        names = {
            "config_field": f"{self.tower}_config",
            "tower_attribute": f"{self.tower}_tower",
            "connector_attribute": f"{self.tower}_connector",
            "freeze_field": f"freeze_{self.tower}",
            "token_id_field": f"{self.name}_token_id",
            "layers_field": f"{self.tower}_cross_attention_layers",
            "placement_field": f"{self.tower}_cross_attention_placement",
            "padding_field": f"{self.tower}_attends_padding",
            "sources": (*self.inputs, self.states),
            "model_inputs": tuple(dict.fromkeys(inputs)),
        }
        for name, value in names.items():
            object.__setattr__(self, name, value)

    @property
    def has_frames(self) -> bool:
        return bool(self.frame_axes)

    def frame_axis(self, source: str) -> int | None:
        """Return the axis of the frames in a source (B, I, ...), `None` for items without."""
        if not self.frame_axes:
            return None
        return 2 if source == self.states else self.frame_axes[self.inputs.index(source)]

    @property
    def config_defaults(self) -> dict[str, Any]:
        """Every config field of this modality with its default; `MMConfig` declares those of images and audio."""
        padding = {self.padding_field: False} if self.has_frames else {}
        return {
            self.config_field: None,
            self.layers_field: None,
            self.placement_field: None,
            **padding,
            f"{self.tower}_connector": "mlp",
            f"{self.tower}_connector_size": None,
            f"{self.tower}_connector_layers": 1,
            f"{self.tower}_latents": 64,
            f"{self.tower}_pooling": 1,
            f"{self.tower}_tags": None,
            f"{self.tower}_tag_length": 4,
            f"{self.tower}_tag_choices": 1,
            f"{self.tower}_tag_rank": None,
            f"{self.tower}_feature_layers": None,
            self.token_id_field: None,
            self.freeze_field: False,
        }


# Type of a part of a chat, but not a modality: it becomes parts of images and audio (see `video_parts`).
VIDEO = "video"

# The order is that of `MMMediaOutput.modality`: 0 for images, 1 for audio. Every process encodes in this order.
MODALITIES: dict[str, Modality] = {
    modality.name: modality
    for modality in (
        Modality(
            name="image",
            tower="vision",
            inputs=("pixel_values",),
            dimensions=(3,),
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
            dimensions=(2, 1),
            mask="feature_attention_mask",
            states="audio_states",
            states_mask="audio_states_mask",
            token="<|audio|>",
            plural="audio",
            processor="feature_extractor",
            frame_axes=(3, 2),
        ),
    )
}

BUILT_IN = tuple(MODALITIES)  # the others are registered by users

Forward = TypeVar("Forward", bound=Callable[..., object])
# Forwards decorated with `show_media_inputs`, each with its other parameters.
_FORWARDS: list[tuple[Callable[..., object], list[inspect.Parameter]]] = []


@cache
def media_inputs() -> tuple[str, ...]:
    """Return every media argument of the model, over all modalities."""
    return tuple(name for modality in MODALITIES.values() for name in modality.model_inputs)


@cache
def config_defaults() -> dict[str, Any]:
    """Return the config fields of every modality with their defaults."""
    return {name: value for modality in MODALITIES.values() for name, value in modality.config_defaults.items()}


def register_modality(modality: Modality) -> None:
    """
    Add a modality; a model has it if its config sets `<tower>_config`.

    Register it, and its encoder with `AutoConfig` and `AutoModel`, before a folder with it is loaded. A model that was
    loaded before is given it by [`adding.add_modality`].

    Example:
        >>> register_modality(Modality("motion", dimensions=(2,), frame_axes=(2,)))

    Raises:
        ValueError: if another modality has the name, the tower or one of the inputs.
    """
    names = {"text", VIDEO, *(name for each in MODALITIES.values() for name in (each.name, each.tower))}
    taken = {modality.name, modality.tower} & names | set(modality.model_inputs) & set(media_inputs())
    if taken:
        raise ValueError(f"Modality {modality.name!r} cannot be registered: {', '.join(sorted(taken))} is taken.")
    MODALITIES[modality.name] = modality
    _refresh_signatures()


def unregister_modality(name: str) -> None:
    """Remove a modality that `register_modality` has added."""
    del MODALITIES[name]
    _refresh_signatures()


def show_media_inputs(base: Callable[..., object] | None = None) -> Callable[[Forward], Forward]:
    """
    Show in the signature of a `forward` the media inputs that it takes as keywords.

    Also the parameters of the forward `base` that it hands its arguments to. By signatures `generate` refuses keywords
    and `Trainer` drops columns.
    """

    def decorate(forward: Forward) -> Forward:
        shown = [inspect.signature(function).parameters.values() for function in (base, forward) if function]
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        own = [parameter for parameters in shown for parameter in parameters if parameter.kind in kinds]
        own.append(inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD))
        _FORWARDS.append((forward, own))
        _refresh_signatures()
        return forward

    return decorate


def _refresh_signatures() -> None:
    media_inputs.cache_clear()
    config_defaults.cache_clear()
    media = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in media_inputs()]
    for forward, own in _FORWARDS:
        parameters = {parameter.name: parameter for parameter in (*own, *media)}
        ordered = sorted(parameters.values(), key=lambda parameter: parameter.kind)
        forward.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
