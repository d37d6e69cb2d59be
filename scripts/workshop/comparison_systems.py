# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Systems of the comparison: ways to pass the outputs of a frozen vision encoder to the same pretrained decoder.

All of them read `<|image|><|assistant|> caption <|end|>`. Ours and `VisionEncoderDecoderModel` pass the image through
cross-attention; a prefix puts the image's tokens in the place of `<|image|>`, as LLaVA does.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, VisionEncoderDecoderModel
from transformers.modeling_outputs import BaseModelOutput

from modeling_mm import MODALITIES
from modeling_mm.configuration_mm import ASSISTANT_TOKEN, END_TOKEN
from modeling_mm.encoder_shapes import encoder_width
from modeling_mm.modeling_mm import MMForConditionalGeneration
from modeling_mm.training import part_of

# Shape legend: B rows, L text tokens, S encoder tokens of an image, W the encoder's width, D the decoder's, V tokens.


@dataclass(frozen=True)
class Components:
    """
    Components of every system.

    Args:
        decoder: the pretrained decoder.
        vision: the frozen vision encoder.
        processor: the processor of both.
    """

    decoder: GPT2LMHeadModel
    vision: PreTrainedModel
    processor: Any

    def token_ids(self) -> tuple[int, int, int, int]:
        """Return the tokens of an image, the assistant, the end and padding."""
        tokenizer = self.processor.tokenizer
        image, assistant, end = tokenizer.convert_tokens_to_ids(
            [MODALITIES["image"].token, ASSISTANT_TOKEN, END_TOKEN]
        )
        return image, assistant, end, tokenizer.pad_token_id


class CaptionModel(nn.Module, ABC):
    """
    System with the three methods that the comparison needs.

    Args:
        model: the model.
        components: the components that it is made of.
    """

    model: Any

    def __init__(self, model: nn.Module, components: Components):
        super().__init__()
        self.model = model
        image, assistant, self.end, self.pad = components.token_ids()
        self.start = (image, assistant)

    @abstractmethod
    def logits(self, states: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return logits (B, L, V) for images (B, S, W), text (B, L) and its mask."""

    @abstractmethod
    def captions(self, states: torch.Tensor, max_new_tokens: int) -> torch.Tensor:
        """Generate the captions of images (B, S, W) greedily, as tokens (B, up to max_new_tokens)."""

    @abstractmethod
    def part_of(self, name: str) -> str:
        """Return `"text"` for a parameter of the decoder, `"vision"` of the encoder, or the name of a new part."""

    def prompt(self, rows: int) -> torch.Tensor:
        """Return `<|image|><|assistant|>`, (B, 2)."""
        return torch.tensor([self.start]).expand(rows, -1)

    def greedy(self, max_new_tokens: int) -> dict[str, Any]:
        ends = {"eos_token_id": self.end, "pad_token_id": self.pad}
        return {"max_new_tokens": max_new_tokens, "do_sample": False, **ends}


class CrossAttention(CaptionModel):
    """Our model, with `fields` of `MMConfig`."""

    def __init__(self, components: Components, **fields: Any):
        model = MMForConditionalGeneration.from_text_vision_audio_pretrained(
            components.decoder, components.vision, tokenizer=components.processor, freeze_vision=True, **fields
        )
        super().__init__(model, components)

    def logits(self, states: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        text = {"input_ids": input_ids, "attention_mask": attention_mask}
        return self.model(**text, vision_states=states[:, None], use_cache=False).logits

    def captions(self, states: torch.Tensor, max_new_tokens: int) -> torch.Tensor:
        prompt = self.prompt(len(states))
        output = self.model.generate(input_ids=prompt, vision_states=states[:, None], **self.greedy(max_new_tokens))
        return output[:, prompt.shape[1] :]

    def part_of(self, name: str) -> str:
        return part_of(name)


class EncoderDecoder(CaptionModel):
    """`VisionEncoderDecoderModel`: a linear layer, then cross-attention without gates in every block."""

    def __init__(self, components: Components):
        vision = copy.deepcopy(components.vision).requires_grad_(False)
        vision.config.hidden_size = encoder_width(vision.config)  # the model reads the width under this name only
        config = GPT2Config.from_dict({**components.decoder.config.to_dict(), "add_cross_attention": True})
        config.is_decoder = True
        decoder = GPT2LMHeadModel(config)
        report = decoder.load_state_dict(components.decoder.state_dict(), strict=False)
        if report.unexpected_keys or any("cross" not in name for name in report.missing_keys):
            raise ValueError(f"The decoder's weights do not fit into it with cross-attention: {report}.")
        super().__init__(VisionEncoderDecoderModel(encoder=vision, decoder=decoder), components)

    def logits(self, states: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        text = {"decoder_input_ids": input_ids, "decoder_attention_mask": attention_mask}
        encoded = BaseModelOutput(last_hidden_state=states)
        return self.model(encoder_outputs=encoded, **text, use_cache=False).logits

    def captions(self, states: torch.Tensor, max_new_tokens: int) -> torch.Tensor:
        prompt = self.prompt(len(states))
        encoded = BaseModelOutput(last_hidden_state=states)
        # Without it `generate` puts its own start token before the prompt.
        options = {**self.greedy(max_new_tokens), "decoder_start_token_id": self.start[0]}
        return self.model.generate(encoder_outputs=encoded, decoder_input_ids=prompt, **options)[:, prompt.shape[1] :]

    def part_of(self, name: str) -> str:
        if ".encoder." in name:
            return "vision"
        if "enc_to_dec_proj" in name:
            return "connectors"
        return "cross_attention" if "crossattention" in name or "ln_cross" in name else "text"


class Prefix(CaptionModel):
    """Image tokens before the text, through two linear layers with a GELU between them (LLaVA-1.5)."""

    def __init__(self, components: Components):
        super().__init__(copy.deepcopy(components.decoder), components)
        width, size = encoder_width(components.vision.config), components.decoder.config.n_embd
        self.projector = nn.Sequential(nn.Linear(width, size), nn.GELU(), nn.Linear(size, size))

    def embed(self, states: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Embed images (B, S, W) and text (B, L) as (B, S + L - 1, D): the image replaces the first token."""
        words = self.model.get_input_embeddings()(input_ids[:, 1:])
        return torch.cat([self.projector(states), words], dim=1)

    def logits(self, states: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        mask = torch.cat([attention_mask.new_ones(states.shape[:2]), attention_mask[:, 1:]], dim=1)
        # The last token of the image takes the place of the placeholder.
        kept = {"logits_to_keep": input_ids.shape[1], "use_cache": False}
        return self.model(inputs_embeds=self.embed(states, input_ids), attention_mask=mask, **kept).logits

    def captions(self, states: torch.Tensor, max_new_tokens: int) -> torch.Tensor:
        embedded = self.embed(states, self.prompt(len(states)))
        mask = torch.ones(embedded.shape[:2], dtype=torch.long)
        return self.model.generate(inputs_embeds=embedded, attention_mask=mask, **self.greedy(max_new_tokens))

    def part_of(self, name: str) -> str:
        return "connectors" if name.startswith("projector.") else "text"


def ours(**fields: Any) -> Callable[[Components], CaptionModel]:
    return lambda components: CrossAttention(components, **fields)


# In the order of the table.
SYSTEMS: dict[str, Callable[[Components], CaptionModel]] = {
    "cross-attention, mlp, gated": ours(vision_connector="mlp", cross_attention_gated=True),
    "cross-attention, mlp, ungated": ours(vision_connector="mlp", cross_attention_gated=False),
    "cross-attention, perceiver, gated": ours(vision_connector="perceiver", cross_attention_gated=True),
    "cross-attention, perceiver, ungated": ours(vision_connector="perceiver", cross_attention_gated=False),
    "VisionEncoderDecoderModel": EncoderDecoder,
    "prefix (LLaVA)": Prefix,
}
