# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The joint model: encoders, connectors and the decoder, and the heads on top of it."""

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, is_torchdynamo_compiling

from .configuration_mm import AUTO_MAP, SPECIAL_TOKEN_FIELDS, MMConfig
from .connectors import Connector
from .decoder import MMDecoder
from .encoders import build_encoder, encoder_width, supported_attention
from .generation import MMGenerationMixin
from .joining import join_pretrained
from .layers import init_weights
from .losses import causal_lm_loss, classification_loss, problem_type
from .masks import check_placeholders, media_indices
from .media import MediaEncodingMixin, check_media_alone, is_empty, placeholder_prompt
from .outputs import (
    AUDIO,
    IMAGE,
    MMCausalLMOutput,
    MMMediaOutput,
    MMModelOutput,
    MMSequenceClassifierOutput,
)

# Shape legend: B rows, L text tokens, I images a row, A audio windows a row, N items that are real, M media tokens an
# item, S media tokens a row, D the decoder's width, W an encoder's width, V the vocabulary.


class MMPreTrainedModel(PreTrainedModel):
    """What all our models share: what they support, how they start, how they are joined from pretrained parts."""

    config: MMConfig
    config_class = MMConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "audio", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _no_split_modules = ["DecoderBlock", "GatedCrossAttentionBlock", "ResamplerLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    loaded_revision: str | None = None  # of the Hub; a pipeline loads the processor of the same one

    def _init_weights(self, module: nn.Module) -> None:
        init_weights(module, self.config.text_config)

    @classmethod
    def is_custom_code(cls) -> bool:
        """
        Our initialisation goes through `transformers.initialization`, which leaves loaded tensors alone. What
        transformers does to be safe from other people's code, to skip modules without parameters of their own, would
        leave encoders half initialised: Whisper's position table is set by a module that owns none.
        """
        return False

    def save_pretrained(self, save_directory, **kwargs):
        self.config.auto_map = dict(AUTO_MAP)
        return super().save_pretrained(save_directory, **kwargs)

    def set_attn_implementation(self, attn_implementation: str | dict, **kwargs) -> None:
        """As in transformers; an encoder that lacks what is asked of the whole model takes the nearest that it has."""
        if isinstance(attn_implementation, str):
            base, asked = self.base_model, attn_implementation
            attn_implementation = {"": asked, "text_config": asked}
            for field, tower in (("vision_config", base.vision_tower), ("audio_config", base.audio_tower)):
                if tower is not None:
                    attn_implementation[field] = supported_attention(type(tower), asked)
        super().set_attn_implementation(attn_implementation, **kwargs)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        loaded = super().from_pretrained(*args, **kwargs)
        # Loading puts new, trainable parameters in the place of those that were frozen when the model was made.
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.freeze()
        model.loaded_revision = kwargs.get("revision")
        return loaded

    def freeze(self) -> None:
        """Freezes the pretrained parts that the config names; connectors and cross-attention blocks stay trainable."""
        config, base = self.config, self.base_model
        for tower, frozen in ((base.vision_tower, config.freeze_vision), (base.audio_tower, config.freeze_audio)):
            if tower is not None and frozen:
                tower.requires_grad_(False)
        if config.freeze_text:
            base.language_model.requires_grad_(False)
            base.language_model.cross_blocks.requires_grad_(True)
            if (head := self.get_output_embeddings()) is not None:
                head.requires_grad_(False)

    @classmethod
    def from_text_vision_audio_pretrained(cls, text, vision=None, audio=None, **kwargs) -> "MMPreTrainedModel":
        """
        Joins pretrained parts; see [`joining.join_pretrained`] for the arguments.

        ```python
        model = MMForConditionalGeneration.from_text_vision_audio_pretrained(
            "openai-community/gpt2", "google/vit-base-patch16-224", "openai/whisper-tiny", freeze_vision=True
        )
        ```
        """
        return join_pretrained(cls, text, vision=vision, audio=audio, **kwargs)


class MMModel(MediaEncodingMixin, MMPreTrainedModel):
    """Encoders, connectors and decoder, without a head on top."""

    def __init__(self, config: MMConfig):
        super().__init__(config)
        check_vocabulary(config)
        self.vision_tower = build_encoder("vision_config", config.vision_config)
        self.audio_tower = build_encoder("audio_config", config.audio_config)
        self.vision_connector = build_connector(config, "vision")
        self.audio_connector = build_connector(config, "audio")
        self.language_model = MMDecoder(config)
        self.post_init()
        self.freeze()

    def train(self, mode: bool = True) -> "MMModel":
        """As `nn.Module.train`, but a frozen encoder stays in evaluation: no dropout, no moving batch statistics."""
        super().train(mode)
        for tower in (self.vision_tower, self.audio_tower):
            if tower is not None and not any(p.requires_grad for p in tower.parameters()):
                tower.eval()
        return self

    def get_input_embeddings(self) -> nn.Embedding:
        return self.language_model.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.language_model.wte = value

    def placeholders(self, input_ids, inputs_embeds, token_id: int | None) -> torch.Tensor:
        """Which tokens are placeholders of a modality, (B, L) bool; embeddings are compared with the placeholder's."""
        if input_ids is not None:
            return input_ids == (-1 if token_id is None else token_id)
        if token_id is None:
            return torch.zeros(inputs_embeds.shape[:2], dtype=torch.bool, device=inputs_embeds.device)
        embedding = self.get_input_embeddings()(torch.tensor(token_id, device=inputs_embeds.device))  # (D,)
        return (inputs_embeds == embedding.to(inputs_embeds.dtype)).all(-1)

    def media_positions(self, media: MMMediaOutput | None, input_ids, inputs_embeds) -> torch.Tensor | None:
        """
        The index among these tokens of each media token's placeholder, (B, S).

        Raises:
            ValueError: where a row's placeholders are not as many as its media. Embeddings without any media are the
                caller's own affair.
        """
        if media is None and input_ids is None:
            return None
        index = None
        for modality, name, token_id in (
            (IMAGE, "image", self.config.image_token_id),
            (AUDIO, "audio", self.config.audio_token_id),
        ):
            is_placeholder = self.placeholders(input_ids, inputs_embeds, token_id)
            if not is_torchdynamo_compiling():
                check_rows(media, is_placeholder)
                counts = is_placeholder.sum(-1)
                items = torch.zeros_like(counts) if media is None else media.count(modality)
                check_placeholders(name, token_id, counts.tolist(), items.tolist())
            if media is not None:
                found = media_indices(is_placeholder.to(media.position.device), media.position)
                index = found if index is None else torch.where(media.modality == modality, found, index)
        return index

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_mask: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        feature_attention_mask: torch.Tensor | None = None,
        vision_states: torch.Tensor | None = None,
        audio_states: torch.Tensor | None = None,
        audio_states_mask: torch.Tensor | None = None,
        media: MMMediaOutput | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],  # type: ignore[misc]
    ) -> MMModelOutput:
        """
        Args:
            input_ids: (B, L), or `inputs_embeds` (B, L, D); media without either are read through their placeholders
            attention_mask: (B, past + L), 0 for padding
            position_ids: (B, L); they count the real tokens by default
            pixel_values, image_mask: see [`~MMModel.encode_media`]
            input_features, input_values, feature_attention_mask: see [`~MMModel.encode_media`]
            vision_states, audio_states, audio_states_mask: see [`~MMModel.encode_media`]
            media: media that `encode_media` has encoded, instead of the raw inputs
            past_key_values: a cache; it remembers media as well as text, so media are passed once
            use_cache: whether to return one; `config.use_cache` by default
            **kwargs: for the decoder, such as `output_attentions`

        Raises:
            ValueError: for placeholders that do not match the media, row by row, for rows that are too long, and for
                media alone with a mask, positions or a cache of a text.
                `torch.compile` leaves these checks out: they look at values, which a graph does not have.
        """
        text = input_ids if input_ids is not None else inputs_embeds
        raw = (pixel_values, input_features, input_values, vision_states, audio_states)
        if text is None and media is None and all(values is None for values in raw):
            raise ValueError(
                "Pass input_ids or inputs_embeds, with a placeholder for each image and each window of sound; "
                "MMProcessor makes them. Or pass media alone, to start from their placeholders."
            )
        is_media_alone = text is None
        if is_media_alone:
            check_media_alone(attention_mask, position_ids, past_key_values)
        if media is None:
            # Other processes may wait for a batch without media, or without one of them, to use all encoders; see
            # `_dummy_media`.
            rows = text if text is not None else next(values for values in raw if values is not None)
            waited_for = is_empty(past_key_values) and self._must_run_all_encoders()
            absent = (len(rows), rows.device) if waited_for else None
            media = self._encode(
                pixel_values,
                image_mask,
                input_features,
                input_values,
                feature_attention_mask,
                vision_states,
                audio_states,
                audio_states_mask,
                absent,
            )
        elif any(values is not None for values in raw):
            raise ValueError("Pass either media or the raw inputs it was encoded from, not both.")
        if is_media_alone:
            input_ids, attention_mask = placeholder_prompt(media, self.config)
            text = input_ids
        if media is not None:
            media = media.map(lambda tensor: tensor.to(text.device))
        media_index = None
        # Without media a row must not have placeholders either, unless their media are in the cache.
        if media is not None or is_empty(past_key_values):
            media_index = self.media_positions(media, input_ids, inputs_embeds)
        outputs = self.language_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            media_states=None if media is None else media.states,
            media_mask=None if media is None else media.mask,
            media_index=media_index,
            use_cache=self.config.use_cache if use_cache is None else use_cache,
            **kwargs,
        )
        if is_media_alone:
            outputs.pooler_output = outputs.last_hidden_state[:, -1]  # rows are padded on the left
        return outputs


class MMForConditionalGeneration(MMPreTrainedModel, MMGenerationMixin):
    """The model with a language modeling head: it answers, captions, transcribes, translates."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.wte.weight"}

    def __init__(self, config: MMConfig):
        super().__init__(config)
        self.model = MMModel(config)
        self.lm_head = nn.Linear(config.text_config.n_embd, config.text_config.vocab_size, bias=False)
        self.loss_function = causal_lm_loss
        self.post_init()
        self.freeze()

    def encode_media(self, **kwargs) -> MMMediaOutput:
        """See [`MMModel.encode_media`]."""
        return self.model.encode_media(**kwargs)

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs):
        """See [`MMModel.get_image_features`]."""
        return self.model.get_image_features(pixel_values, **kwargs)

    def get_audio_features(self, input_features: torch.Tensor | None = None, **kwargs):
        """See [`MMModel.get_audio_features`]."""
        return self.model.get_audio_features(input_features, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_mask: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        feature_attention_mask: torch.Tensor | None = None,
        vision_states: torch.Tensor | None = None,
        audio_states: torch.Tensor | None = None,
        audio_states_mask: torch.Tensor | None = None,
        media: MMMediaOutput | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],  # type: ignore[misc]
    ) -> MMCausalLMOutput:
        """
        Args:
            labels: (B, L), -100 where nothing is to be learned; they are shifted inside
            logits_to_keep: compute logits for the last tokens only, or for those at the given indices; 0 for all. With
                a mask (B, L) they are (K, V), of the tokens where it is true, and the loss is over these alone
            **kwargs: for the loss (`num_items_in_batch`, `shift_labels`) and the decoder (`output_attentions`, ...)

        The other arguments are those of [`MMModel.forward`].
        """
        outputs: MMModelOutput = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            pixel_values=pixel_values,
            image_mask=image_mask,
            input_features=input_features,
            input_values=input_values,
            feature_attention_mask=feature_attention_mask,
            vision_states=vision_states,
            audio_states=audio_states,
            audio_states_mask=audio_states_mask,
            media=media,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        states = outputs.last_hidden_state  # (B, L, D)
        if isinstance(logits_to_keep, int):
            states = states[:, -logits_to_keep:]
        elif logits_to_keep.dtype == torch.bool:
            states = states[logits_to_keep]  # (K, D)
            if kwargs.get("shift_labels") is not None:
                kwargs["shift_labels"] = kwargs["shift_labels"][logits_to_keep]  # (K,)
        else:
            states = states[:, logits_to_keep]
        logits = self.lm_head(states)  # (B, L, V), or (K, V)
        loss = None
        if labels is not None or kwargs.get("shift_labels") is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return MMCausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )


class MMForSequenceClassification(MMPreTrainedModel):
    """The model with a classification or regression head on the last real text token, as GPT-2's classifier has."""

    def __init__(self, config: MMConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = MMModel(config)
        self.score = nn.Linear(config.text_config.n_embd, self.num_labels, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_mask: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        feature_attention_mask: torch.Tensor | None = None,
        vision_states: torch.Tensor | None = None,
        audio_states: torch.Tensor | None = None,
        audio_states_mask: torch.Tensor | None = None,
        media: MMMediaOutput | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],  # type: ignore[misc]
    ) -> MMSequenceClassifierOutput:
        """
        Args:
            labels:
                (B,) class ids for `single_label_classification`, (B, num_labels) zeros and ones for
                `multi_label_classification`, (B,) or (B, num_labels) values for `regression`; `config.problem_type`
                says which, or it is told from `num_labels` and the labels' type.
            **kwargs: for the loss (`num_items_in_batch`) and the decoder (`output_attentions`, ...)

        The other arguments are those of [`MMModel.forward`].
        """
        outputs: MMModelOutput = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            pixel_values=pixel_values,
            image_mask=image_mask,
            input_features=input_features,
            input_values=input_values,
            feature_attention_mask=feature_attention_mask,
            vision_states=vision_states,
            audio_states=audio_states,
            audio_states_mask=audio_states_mask,
            media=media,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        states = outputs.last_hidden_state  # (B, L, D)
        last = last_real_token(input_ids, attention_mask, self.config.text_config.pad_token_id, states)  # (B,)
        logits = self.score(states[torch.arange(len(states), device=states.device), last])  # (B, num_labels)
        loss = None
        if labels is not None:
            self.config.problem_type = problem_type(self.config.problem_type, self.num_labels, labels)
            loss = classification_loss(logits, labels, self.config.problem_type, kwargs.get("num_items_in_batch"))
        return MMSequenceClassifierOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )


def build_connector(config: MMConfig, modality: str) -> Connector | None:
    encoder_config = getattr(config, f"{modality}_config")
    return None if encoder_config is None else Connector(config, modality, encoder_width(encoder_config))


def check_vocabulary(config: MMConfig) -> None:
    """
    Raises:
        ValueError: for a special token that the embedding has no row for.
    """
    for field in SPECIAL_TOKEN_FIELDS:
        token_id, vocab_size = getattr(config, field), config.text_config.vocab_size
        if token_id is not None and token_id >= vocab_size:
            raise ValueError(
                f"{field} is {token_id}, but the vocabulary has {vocab_size} tokens. Make text_config.vocab_size "
                "larger (MMConfig.from_text_vision_audio_configs does so), or choose an id within it."
            )


def check_rows(media: MMMediaOutput | None, is_placeholder: torch.Tensor) -> None:
    """
    Raises:
        ValueError: where text and media have different numbers of rows.
    """
    if media is not None and media.mask.shape[0] != is_placeholder.shape[0]:
        raise ValueError(
            f"The text has {is_placeholder.shape[0]} rows, the media have {media.mask.shape[0]}. Media are "
            "batch-first: pad each row to the same number of images or windows, and say by image_mask or "
            "feature_attention_mask which are real."
        )


def last_real_token(
    input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, pad_token_id: int | None, states: torch.Tensor
) -> torch.Tensor:
    """
    The index of each row's last token that is no padding, (B,): by the padding id, as GPT-2's classifier tells it;
    without one, or for embeddings, by the attention mask; else the last.
    """
    if input_ids is not None and pad_token_id is not None:
        real = input_ids != pad_token_id
    elif attention_mask is not None and attention_mask.ndim == 2:
        real = attention_mask[:, -states.shape[1] :].bool()
    else:
        real = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    index = torch.arange(states.shape[1], device=states.device)
    return (index * real.to(index)).argmax(-1)


MMModel.register_for_auto_class("AutoModel")
MMForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
MMForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")

__all__ = ["MMForConditionalGeneration", "MMForSequenceClassification", "MMModel", "MMPreTrainedModel"]
