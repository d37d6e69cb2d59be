# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Outputs of the models, and media that are encoded."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    SequenceClassifierOutputWithPast,
)
from transformers.utils import ModelOutput

from .device_reads import read_once
from .modalities import MODALITIES


@dataclass
class MMMediaOutput(ModelOutput):
    """
    Media encoded once; pass it as `media=` to as many prompts as you like. One row serves any number of prompts.

    Args:
        states (`torch.Tensor` of shape `(B, S, D)`): media tokens at the decoder's width; zeros for padding.
        mask (`torch.Tensor` of shape `(B, S)`): bool, which media tokens are real.
        position (`torch.Tensor` of shape `(B, S)`):
            Number of the item that a media token belongs to, within its row and modality, from 0: the item of number k
            belongs to the row's k-th placeholder of that modality. -1 for padding.
        modality (`torch.Tensor` of shape `(B, S)`): index in `MODALITIES`: 0 for images, 1 for audio windows.
        sizes (`tuple[int, ...]`, *optional*):
            How many of the S media tokens are of each modality, in the order of `MODALITIES`, the same in every row.
            Models whose modalities have separate cross-attention layers tell media apart by them.

    Example:

        ```python
        media = model.encode_media(pixel_values=pixel_values)  # of several rows
        model.generate(input_ids=prompts, media=media[0])  # the first row's media for every prompt
        model.generate(input_ids=prompts, media=media.repeat_interleave(2))  # each row's media for two prompts
        ```

    As in every `ModelOutput` a string selects a field (`media["mask"]`) and `to_tuple()` gives all. Anything else
    selects rows. (In other outputs an integer selects a tensor, but media are used by rows.)
    """

    states: torch.Tensor = None  # type: ignore[assignment]
    mask: torch.Tensor = None  # type: ignore[assignment]
    position: torch.Tensor = None  # type: ignore[assignment]
    modality: torch.Tensor = None  # type: ignore[assignment]
    sizes: tuple[int, ...] | None = None

    def __getitem__(self, key: Any) -> Any:
        """Return a tensor by its name, or the media of rows: an integer, a slice, a list or a tensor of indices."""
        if isinstance(key, str):
            return super().__getitem__(key)
        rows = torch.arange(len(self.states))[key.cpu() if isinstance(key, torch.Tensor) else key].reshape(-1)
        return self.map(lambda tensor: tensor[rows.to(tensor.device)])

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The four tensors."""
        return self.states, self.mask, self.position, self.modality

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "MMMediaOutput":
        """Return a copy with `function` applied to each of the four tensors."""
        return MMMediaOutput(*map(function, self.tensors), sizes=self.sizes)

    def repeat_interleave(self, repeats: int) -> "MMMediaOutput":
        """Return the media with each row `repeats` times, as `generate` lays out beams and samples."""
        return self.map(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def count(self, modality: int) -> torch.Tensor:
        """Return the number of real items of a modality in each row, (B,)."""
        real = self.mask & (self.modality == modality)
        return (self.position + 1).masked_fill(~real, 0).amax(-1)

    def item_counts(self) -> dict[str, list[int]]:
        """Return the numbers of real items by modality and row, read from the device once."""
        counts = torch.stack([self.count(number) for number in range(len(MODALITIES))])
        counts = read_once("counts", counts, self.mask, self.position, self.modality)
        return dict(zip(MODALITIES, counts, strict=True))


@dataclass
class MMModelOutput(BaseModelOutputWithPastAndCrossAttentions):
    """
    Output of the model without a head.

    Args:
        last_hidden_state (`torch.Tensor` of shape `(B, L, D)`): after the last layer norm.
        past_key_values (`Cache`): keys and values of the text, and those of the media.
        hidden_states (`tuple` of `(B, L, D)`): the embedding and each decoder block's output.
        attentions (`tuple` of `(B, H, L, K)`): text to text, one for each decoder block.
        cross_attentions (`tuple` of `(B, H, L, S)`):
            Text to media, one for each cross-attention block. Ignore the weights of tokens that see no media: the
            result of their attention is dropped.
        pooler_output (`torch.Tensor` of shape `(B, D)`):
            Only for media without text: the state of a row's last placeholder, which sees all of the row's media.
    """

    pooler_output: torch.Tensor | None = None


@dataclass
class MMCausalLMOutput(CausalLMOutputWithCrossAttentions):
    """
    Output of the model that generates.

    Args:
        loss (`torch.Tensor`): next-token loss, when `labels` or `shift_labels` were given.
        logits (`torch.Tensor` of shape `(B, L, V)`): scores of the next token.
        past_key_values, hidden_states, attentions, cross_attentions: as in [`MMModelOutput`].
    """


@dataclass
class MMSequenceClassifierOutput(SequenceClassifierOutputWithPast):
    """
    Output of the classifier.

    Args:
        loss (`torch.Tensor`): by `config.problem_type`, when `labels` were given.
        logits (`torch.Tensor` of shape `(B, num_labels)`): a score for each label, or the regressed values.
        past_key_values, hidden_states, attentions, cross_attentions: as in [`MMModelOutput`].
    """

    cross_attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class MMRetrievalOutput(ModelOutput):
    """
    Output of the model that embeds, with the fields of CLIP's and CLAP's.

    A side is all texts, all images or all audio of a batch; P is `config.projection_dim`. Embeddings have unit length.
    They are zeros for a row that lacks the side.

    Args:
        loss (`torch.Tensor`): over every pair of sides, with `return_loss=True`.
        logits_per_image (`torch.Tensor` of shape `(images, texts)`): scaled similarities.
        logits_per_audio (`torch.Tensor` of shape `(audio, texts)`): scaled similarities.
        logits_per_text (`torch.Tensor` of shape `(texts, images)`): without images, to audio, (texts, audio).
        text_embeds, image_embeds, audio_embeds (`torch.Tensor` of shape `(rows, P)`): `None` for a side not given.
    """

    loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_audio: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    audio_embeds: torch.Tensor | None = None


@dataclass
class MMPreTrainingOutput(ModelOutput):
    """
    Output of the model with the objectives of pre-training. What belongs to an objective that is off is `None`.

    Args:
        loss (`torch.Tensor`): the sum of `losses`, weighted by the config, when targets were given.
        losses (`dict[str, torch.Tensor]`): the loss of each objective by its name, unweighted.
        logits (`torch.Tensor` of shape `(B, L, V)`): scores of the next token, in the causal mode.
        masked_logits (`torch.Tensor` of shape `(N, V)`): scores of the N masked tokens, row after row.
        matching_logits (`torch.Tensor` of shape `(2 K,)`): above 0 for K texts with their media, then with others'.
        text_embeds, image_embeds, audio_embeds (`torch.Tensor` of shape `(B, P)`):
            As in [`MMRetrievalOutput`]; zeros for a row that lacks the side.
    """

    loss: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None
    logits: torch.Tensor | None = None
    masked_logits: torch.Tensor | None = None
    matching_logits: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    audio_embeds: torch.Tensor | None = None
