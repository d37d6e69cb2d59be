# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Whisper's own generation for models that were converted from it.

The routine of transformers runs as it is: language detection, timestamps and their rules, audio of any length window
by window with the text before, thresholds with rising temperatures, words by cross-attention. Only the steps that ask
its model are replaced by ours.
"""

from types import SimpleNamespace
from typing import Any

import torch
from transformers.generation import LogitsProcessor, LogitsProcessorList, SuppressTokensLogitsProcessor
from transformers.generation.utils import GenerationMixin
from transformers.models.whisper.generation_whisper import WhisperGenerationMixin

from .configuration_mm import SPECIAL_TOKEN_FIELDS

# Shape legend: B rows, L tokens of the prompt, T frames of a window.

MEDIAN_FILTER_WIDTH = 7  # of the weights by which words are timed, in all published checkpoints


def is_whisper(model: Any) -> bool:
    """Return True for a model whose generation config has the settings of a Whisper decoder."""
    config = model.generation_config
    audio = model.config.audio_config
    return audio is not None and audio.model_type == "whisper" and hasattr(config, "no_timestamps_token_id")


class BehindPlaceholder(LogitsProcessor):
    """A logits processor that counts tokens from the prompt's first on, without the placeholder in front."""

    def __init__(self, processor: LogitsProcessor):
        self.processor = processor

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Apply the processor to scores (B, V)."""
        return self.processor(input_ids[:, 1:], scores)


class WindowGeneration(GenerationMixin):
    """The steps that ask the model, for one window a row: a prompt behind its placeholder."""

    mm_model: Any

    def inputs_of(
        self, input_features: torch.Tensor, prompt: torch.Tensor, prompt_mask: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Return our inputs for windows (B, n_mels, T) and prompts (B, L)."""
        placeholder = prompt.new_full((len(prompt), 1), self.mm_model.config.audio_token_id)
        mask = torch.ones_like(prompt) if prompt_mask is None else prompt_mask.long()
        return {
            "input_ids": torch.cat([placeholder, prompt], dim=1),
            "attention_mask": torch.cat([torch.zeros_like(placeholder), mask], dim=1),
            "input_features": input_features[:, None],
            "feature_attention_mask": torch.ones_like(input_features[:, :1], dtype=torch.long),
        }

    def generate(  # type: ignore[override]  # as Whisper's routine calls it
        self,
        inputs: torch.Tensor,
        decoder_input_ids: torch.Tensor,
        generation_config: Any,
        logits_processor: Any = None,
        decoder_attention_mask: torch.Tensor | None = None,
        attention_mask: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Generate behind prompts (B, L); what is returned has no placeholder."""
        config = self.mm_model.config
        added = [getattr(config, field) for field in SPECIAL_TOKEN_FIELDS]
        added = [token_id for token_id in added if token_id is not None]
        processors = [SuppressTokensLogitsProcessor(added, device=str(inputs.device)), *(logits_processor or [])]
        if generation_config.max_new_tokens is None and generation_config.max_length is not None:
            generation_config.max_length += 1
        output = self.mm_model.generate(
            **self.inputs_of(inputs, decoder_input_ids, decoder_attention_mask),
            generation_config=generation_config,
            logits_processor=LogitsProcessorList(BehindPlaceholder(each) for each in processors),
            **kwargs,
        )
        if isinstance(output, torch.Tensor):
            return output[:, 1:]
        output.sequences = output.sequences[:, 1:]
        if output.get("cross_attentions") is not None:
            first, *others = output.cross_attentions
            output.cross_attentions = (tuple(weights[:, :, 1:] for weights in first), *others)
        return output


class WhisperGeneration(WhisperGenerationMixin, WindowGeneration):
    """
    A converted model as Whisper's generation sees it.

    ```python
    WhisperGeneration(model).generate(input_features, return_timestamps=True)
    ```

    Args:
        model: an `MMForConditionalGeneration`, for which `is_whisper` is true.
    """

    def __init__(self, model: Any):
        self.mm_model = model
        text, audio, encoder = model.config.text_config, model.config.audio_config, model.model.audio_tower
        self.config = SimpleNamespace(
            decoder_layers=text.n_layer,
            forced_decoder_ids=None,
            is_encoder_decoder=True,
            max_source_positions=audio.max_source_positions,
            max_target_positions=text.n_positions,
            median_filter_width=getattr(audio, "median_filter_width", MEDIAN_FILTER_WIDTH),
            vocab_size=text.vocab_size,
            _get_generation_parameters=dict,
        )
        self.model = SimpleNamespace(encoder=encoder, config=model.config)
        self.generation_config = model.generation_config

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.mm_model.device

    def __call__(
        self, input_features: torch.Tensor, decoder_input_ids: torch.Tensor, use_cache: bool = False, **kwargs: Any
    ) -> Any:
        """Return the model's output for windows and prompts, without the placeholder's column of logits."""
        output = self.mm_model(**self.inputs_of(input_features, decoder_input_ids), use_cache=use_cache)
        output.logits = output.logits[:, 1:]
        return output
