# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Whisper's own generation for models that were converted from it.

The routine of transformers runs as it is: language detection, timestamps and their rules, audio of any length window
by window with the text before, thresholds with rising temperatures, words by cross-attention. Only the steps that ask
its model are replaced by ours.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from transformers.generation import (
    GenerateEncoderDecoderOutput,
    LogitsProcessor,
    LogitsProcessorList,
)
from transformers.generation.utils import GenerationMixin
from transformers.models.whisper.generation_whisper import WhisperGenerationMixin

from .control_tokens import control_tokens, encode, mark

# Shape legend: B rows, L tokens of the prompt, T frames of a window.

SETTINGS = ("no_timestamps_token_id", "is_multilingual", "prev_sot_token_id")
START_OF_PREVIOUS = "<|startofprev|>"
TASKS = ("transcribe", "translate")
MEDIAN_FILTER_WIDTH = 7  # of the weights by which words are timed, in all published checkpoints


def is_whisper(model: Any) -> bool:
    """Return True for a model whose generation config has the settings of a Whisper decoder."""
    config, audio = model.config, model.config.audio_config
    has_prompt = audio is not None and audio.model_type == "whisper" and config.prompt_token_ids is not None
    # A GPT-2 that reads a Whisper's encoder has none of these.
    return has_prompt and any(hasattr(getattr(model, "generation_config", None), name) for name in SETTINGS)


def prompt_ids(processor: Any, text: str, most: int) -> torch.Tensor:
    """
    Return the ids (L,) of the text before an audio, as `prompt_ids` of Whisper's `generate`.

    Control tokens in it are plain text. Of a long one the last `most` tokens are kept.
    """
    tokenizer = processor.tokenizer
    marked = mark(" " + text.strip(), control_tokens(tokenizer))
    start, *ids = encode(tokenizer, [START_OF_PREVIOUS + marked], add_special_tokens=False)["input_ids"][0]
    return torch.tensor([start, *ids[-most:]])


@contextmanager
def returning_weights(model: Any) -> Iterator[None]:
    """Let the attention of a model return its weights, which fused kernels do not."""
    before = model.config.text_config._attn_implementation
    model.model.language_model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.model.language_model.set_attn_implementation(before)


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
        prompt_mask, generation_config = decoder_attention_mask, copy.copy(generation_config)
        timed = generation_config.output_attentions
        generation_config.output_attentions = False
        if generation_config.max_new_tokens is None and generation_config.max_length is not None:
            generation_config.max_length += 1
        output = self.mm_model.generate(
            **self.inputs_of(inputs, decoder_input_ids, prompt_mask),
            generation_config=generation_config,
            logits_processor=LogitsProcessorList(BehindPlaceholder(each) for each in logits_processor or ()),
            **kwargs,
        )
        if isinstance(output, torch.Tensor):
            return output[:, 1:]
        return GenerateEncoderDecoderOutput(
            sequences=output.sequences[:, 1:],
            scores=chosen_scores(output),
            cross_attentions=(self.cross_attentions(inputs, output.sequences[:, 1:-1], prompt_mask),)
            if timed
            else None,
        )

    @torch.no_grad()
    def cross_attentions(
        self, inputs: torch.Tensor, tokens: torch.Tensor, prompt_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        """Return what tokens (B, L) pay attention to in windows, (B, H, L, S) for each decoder block."""
        mask = None
        if prompt_mask is not None:
            answer = prompt_mask.new_ones(len(tokens), tokens.shape[1] - prompt_mask.shape[1])
            mask = torch.cat([prompt_mask, answer], dim=1)
        with returning_weights(self.mm_model):
            output = self.mm_model(**self.inputs_of(inputs, tokens, mask), use_cache=False, output_attentions=True)
        return tuple(weights[:, :, 1:] for weights in output.cross_attentions)


def chosen_scores(output: Any) -> tuple[torch.Tensor, ...] | None:
    """Return the scores of each step, (B, V), of the sequences that were chosen, whichever beams they were in."""
    if output.scores is None or (beams := output.get("beam_indices")) is None:
        return output.scores
    return tuple(scores[beams[:, step].clamp(min=0)] for step, scores in enumerate(output.scores))


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
        # Its config is what the routine asks for eager attention, which our step sees to.
        self.model = SimpleNamespace(encoder=encoder, config=SimpleNamespace())
        self.generation_config = copy.deepcopy(model.generation_config)
        self.generation_config.decoder_start_token_id = model.config.prompt_token_ids[0]
        if self.generation_config.max_length is not None:
            self.generation_config.max_length -= 1  # the placeholder's

    @property
    def longest_context(self) -> int:
        """The most tokens of text before the audio that Whisper takes into account."""
        return self.config.max_target_positions // 2 - 1

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.mm_model.device

    def forward(
        self,
        input_features: torch.Tensor,
        decoder_input_ids: torch.Tensor,
        decoder_attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the model's output for windows and prompts, without the placeholder's column of logits."""
        inputs = self.inputs_of(input_features, decoder_input_ids, decoder_attention_mask)
        output = self.mm_model(**inputs, use_cache=False)
        output.logits = output.logits[:, 1:]
        return output

    __call__ = forward

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the prompt under the name that [`forward`] has for it."""
        return {"decoder_input_ids": input_ids}
