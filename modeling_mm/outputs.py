# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""What the models return."""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    SequenceClassifierOutputWithPast,
)
from transformers.utils import ModelOutput

IMAGE, AUDIO = 0, 1  # values of `MMMediaOutput.modality`


@dataclass
class MMMediaOutput(ModelOutput):
    """
    Media encoded once; pass it as `media=` to as many prompts as you like.

    Args:
        states (`torch.Tensor` of shape `(B, S, D)`): media tokens at the decoder's width; zeros where there is none.
        mask (`torch.Tensor` of shape `(B, S)`): bool, which media tokens are real.
        position (`torch.Tensor` of shape `(B, S)`):
            Which item of its row and modality a media token belongs to, counted from 0: its item's placeholder is the
            one of that number in the text. -1 for padding.
        modality (`torch.Tensor` of shape `(B, S)`): 0 for images, 1 for audio windows.
    """

    states: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    position: torch.Tensor | None = None
    modality: torch.Tensor | None = None

    def map(self, function) -> "MMMediaOutput":
        """A copy with `function` applied to each of the four tensors."""
        return MMMediaOutput(*(function(tensor) for tensor in self.to_tuple()))

    def count(self, modality: int) -> torch.Tensor:
        """The number of real items of a modality in each row, (B,)."""
        real = self.mask & (self.modality == modality)
        return (self.position + 1).masked_fill(~real, 0).amax(-1)


@dataclass
class MMModelOutput(BaseModelOutputWithPastAndCrossAttentions):
    """
    Args:
        last_hidden_state (`torch.Tensor` of shape `(B, L, D)`): after the last layer norm.
        past_key_values (`Cache`): keys and values of the text; it remembers those of the media too.
        hidden_states (`tuple` of `(B, L, D)`): the embedding and each decoder block's output.
        attentions (`tuple` of `(B, H, L, K)`): text to text, one for each decoder block.
        cross_attentions (`tuple` of `(B, H, L, S)`):
            Text to media, one for each cross-attention block. Tokens that see no media have even weights here, which
            mean nothing: what they attend to is dropped.
        pooler_output (`torch.Tensor` of shape `(B, D)`):
            Of media without text: the state of a row's last placeholder, which has seen all of the row's media.
    """

    pooler_output: torch.Tensor | None = None


@dataclass
class MMCausalLMOutput(CausalLMOutputWithCrossAttentions):
    """
    Args:
        loss (`torch.Tensor`): next-token loss, when `labels` or `shift_labels` were given.
        logits (`torch.Tensor` of shape `(B, L, V)`): scores of the next token.
        past_key_values, hidden_states, attentions, cross_attentions: as in [`MMModelOutput`].
    """


@dataclass
class MMSequenceClassifierOutput(SequenceClassifierOutputWithPast):
    """
    Args:
        loss (`torch.Tensor`): by `config.problem_type`, when `labels` were given.
        logits (`torch.Tensor` of shape `(B, num_labels)`): a score for each label, or the regressed values.
        past_key_values, hidden_states, attentions, cross_attentions: as in [`MMModelOutput`].
    """

    cross_attentions: tuple[torch.Tensor, ...] | None = None
