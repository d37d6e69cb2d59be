# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""What `generate` needs to know about media: they are encoded once, before rows are repeated for beams and samples."""

from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin, LogitsProcessor, LogitsProcessorList

from .encoders import is_sharded
from .masks import check_placeholders
from .media import check_media_alone, placeholder_prompt
from .outputs import AUDIO, IMAGE, MMMediaOutput

MEDIA_INPUTS = (
    "pixel_values",
    "image_mask",
    "input_features",
    "input_values",
    "feature_attention_mask",
    "vision_states",
    "audio_states",
    "audio_states_mask",
)


class SuppressPlaceholders(LogitsProcessor):
    """
    Never generates a placeholder: it stands for media that were given, and a generated one would stand for nothing.

    It does what `suppress_tokens` of a generation config does, without comparing the whole vocabulary at every step,
    and holds whatever generation config is used.
    """

    def __init__(self, token_ids: list[int]):
        self.token_ids = torch.tensor(token_ids)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(B, L), (B, V) -> (B, V)"""
        return scores.index_fill(1, self.token_ids.to(scores.device), -torch.inf)


class MMGenerationMixin(GenerationMixin):
    """`GenerationMixin` for a model with `encode_media` and a `forward` that takes `media`."""

    def _prepare_model_inputs(self, inputs, bos_token_id, model_kwargs):
        model_kwargs = dict(model_kwargs)
        media_inputs = {name: model_kwargs.pop(name) for name in MEDIA_INPUTS if name in model_kwargs}
        media_inputs = {name: value for name, value in media_inputs.items() if value is not None}
        if media_inputs and model_kwargs.get("media") is not None:
            raise ValueError(f"Pass either media or the raw {', '.join(media_inputs)}, not both.")
        text = (inputs, model_kwargs.get("input_ids"), model_kwargs.get("inputs_embeds"))
        has_text = any(given is not None for given in text)
        is_media_alone = not has_text and (bool(media_inputs) or model_kwargs.get("media") is not None)
        if is_media_alone:
            of_a_text = ("attention_mask", "position_ids", "past_key_values")
            check_media_alone(*(model_kwargs.get(name) for name in of_a_text))
        if media_inputs and is_media_alone and is_sharded(self):
            raise ValueError(
                "Sharded weights are there within `forward` only, so media alone cannot be encoded before it. Pass "
                "input_ids with a placeholder for each image and each window of sound; MMProcessor makes them."
            )
        if media_inputs and is_sharded(self):
            # Sharded weights are there within `forward` only: its first step encodes the media.
            model_kwargs.update(media_inputs)
        elif media_inputs:
            with torch.no_grad():
                model_kwargs["media"] = self.encode_media(**media_inputs)
            model_kwargs["media_inputs"] = media_inputs  # an assistant model encodes them in its own way
        if is_media_alone:
            inputs, attention_mask = placeholder_prompt(model_kwargs["media"], self.config)
            model_kwargs["attention_mask"] = attention_mask
            model_kwargs.pop("input_ids", None)
        return super()._prepare_model_inputs(inputs, bos_token_id, model_kwargs)

    def _expand_inputs_for_generation(self, expand_size: int = 1, **kwargs) -> tuple[torch.Tensor, dict[str, Any]]:
        input_ids, model_kwargs = super()._expand_inputs_for_generation(expand_size=expand_size, **kwargs)
        if expand_size > 1 and model_kwargs.get("media") is not None:
            model_kwargs["media"] = model_kwargs["media"].map(lambda x: x.repeat_interleave(expand_size, dim=0))
        return input_ids, model_kwargs

    def _get_logits_processor(self, *args, **kwargs) -> LogitsProcessorList:
        processors = super()._get_logits_processor(*args, **kwargs)
        placeholders = [i for i in (self.config.image_token_id, self.config.audio_token_id) if i is not None]
        if placeholders:
            # First, so that no filter (top-k, top-p, ...) can leave placeholders as the only choice.
            processors.insert(0, SuppressPlaceholders(placeholders))
        return processors

    def _get_candidate_generator(self, *, model_kwargs, assistant_model=None, **kwargs):
        media, media_inputs = model_kwargs.get("media"), model_kwargs.get("media_inputs")
        text_kwargs = {name: value for name, value in model_kwargs.items() if name not in ("media", "media_inputs")}
        if media is not None and isinstance(assistant_model, MMGenerationMixin):
            if media_inputs is not None and assistant_model is not self:
                with torch.no_grad():
                    media = assistant_model.encode_media(**media_inputs)
            text_kwargs["media"] = media
        return super()._get_candidate_generator(model_kwargs=text_kwargs, assistant_model=assistant_model, **kwargs)

    def _prefill(self, input_ids, generation_config, model_kwargs, *args, **kwargs):
        if generation_config.prefill_chunk_size is not None and model_kwargs.get("media") is not None:
            raise ValueError(
                "prefill_chunk_size cuts a prompt without regard to its images and sounds. Leave it out for prompts "
                "with media; they take no room among the text tokens."
            )
        return super()._prefill(input_ids, generation_config, model_kwargs, *args, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids,
        past_key_values=None,
        media=None,
        media_inputs=None,
        inputs_embeds=None,
        is_first_iteration=False,
        **kwargs,
    ):
        model_inputs = super().prepare_inputs_for_generation(
            input_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        # The cache remembers the media that it has been shown: they are passed once, unless there is no cache. An
        # assistant model's first step is not marked as such, hence the look at the cache.
        unseen = is_first_iteration or not kwargs.get("use_cache", True) or not has_cached_media(past_key_values)
        if media is not None and unseen:
            from_embeds = model_inputs.get("inputs_embeds") is not None
            text = {"input_ids": None, "inputs_embeds": inputs_embeds} if from_embeds else {"input_ids": input_ids}
            new_tokens = model_inputs["inputs_embeds" if from_embeds else "input_ids"].shape[1]
            model_inputs["media"] = self.unseen_media(media, new_tokens, **text)
        return model_inputs

    def unseen_media(
        self,
        media: MMMediaOutput,
        new_tokens: int,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> MMMediaOutput | None:
        """
        The media whose placeholders are among the last `new_tokens` of a text, renumbered.

        A generation that goes on from an older cache may be given the media of the whole conversation or only those
        that are new; which of the two is told from their number.

        Args:
            input_ids: (B, L), or `inputs_embeds` (B, L, D), with what is in the cache already

        Raises:
            ValueError: where it is neither.
        """
        if new_tokens == (input_ids if input_ids is not None else inputs_embeds).shape[1]:
            return media
        position = media.position
        for modality, name, token_id in (
            (IMAGE, "image", self.config.image_token_id),
            (AUDIO, "audio", self.config.audio_token_id),
        ):
            is_placeholder = self.model.placeholders(input_ids, inputs_embeds, token_id)  # (B, L)
            is_placeholder = is_placeholder.to(media.position.device)
            given, total = media.count(modality), is_placeholder.sum(-1)  # (B,) each
            if torch.equal(given, is_placeholder[:, -new_tokens:].sum(-1)):
                continue
            check_placeholders(name, token_id, total.tolist(), given.tolist())
            seen = is_placeholder[:, :-new_tokens].sum(-1, keepdim=True)  # (B, 1)
            position = torch.where(media.modality == modality, position - seen, position)
        mask = media.mask & (position >= 0)
        if not bool(mask.any()):
            return None
        return MMMediaOutput(media.states, mask, position.masked_fill(~mask, -1), media.modality)


def has_cached_media(cache: Cache | None) -> bool:
    return getattr(cache, "cross_attention_cache", None) is not None
