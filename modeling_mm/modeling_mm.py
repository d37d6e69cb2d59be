# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The joint model: encoders, connectors and the decoder, and the heads on top of it."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import can_return_tuple, is_torchdynamo_compiling

from .adding import add_location_tokens, add_modality
from .codec_adding import add_codec, build_codecs, freeze_codecs
from .codec_interface import MediaCodec
from .compat import comes_from_auto_class, enter_names, nearest_attention, plan_sharding
from .configuration_mm import (
    AUTO_MAP,
    DIRECT,
    HIDDEN,
    LOCATION_BINS,
    MODEL_CLASSES,
    RETRIEVAL,
    SPECIAL_TOKEN_FIELDS,
    MMConfig,
)
from .connectors import build_connector
from .conversion import convert_pretrained
from .cross_attention import CROSS_ATTENTION
from .decoder import MMDecoder
from .device_reads import read_once
from .encoders import build_encoder
from .folders import CONFIGS, check_configs
from .generation import MMGenerationMixin
from .head_loss import head_loss, takes_states
from .int8 import register_int8
from .joining import Component, join_pretrained
from .layers import Head, init_weights, range_logits
from .loading import check_finite, check_missing, check_shapes, check_weight_files, source_of
from .losses import causal_lm_loss, check_classes, classification_loss, problem_type, shifted
from .masks import check_hidden, check_placeholders, hide_placeholders, packed_examples, wrong_rows
from .media import MediaBatch, MediaEncodingMixin, check_media_alone, placeholder_prompt
from .media_cache import SeenItems, text_length
from .modalities import MODALITIES, Modality, show_media_inputs
from .outputs import MMCausalLMOutput, MMMediaOutput, MMModelOutput, MMSequenceClassifierOutput
from .quick_steps import quick_states
from .shared_prefix import SharedPrefix
from .tags import Tagger, set_tags

if TYPE_CHECKING:
    from typing_extensions import Unpack
else:
    from transformers.processing_utils import Unpack

# Shape legend: B rows, L text tokens, I images a row, A audio windows a row, S media tokens a row, D the decoder's
# width, V the vocabulary.


class MMKeywords(TypedDict, total=False):
    """Inputs of all our models that are passed on by keyword: media, and options of the decoder and of losses."""

    pixel_values: torch.Tensor | None
    image_mask: torch.Tensor | None
    input_features: torch.Tensor | None
    input_values: torch.Tensor | None
    feature_attention_mask: torch.Tensor | None
    vision_states: torch.Tensor | None
    audio_states: torch.Tensor | None
    audio_states_mask: torch.Tensor | None
    output_attentions: bool | None
    output_hidden_states: bool | None
    is_causal: bool
    num_items_in_batch: torch.Tensor | int | None
    shift_labels: torch.Tensor | None


class MMInputs(MMKeywords, total=False):
    """Inputs of all our models; see [`MMModel.forward`]."""

    input_ids: torch.Tensor | None
    attention_mask: torch.Tensor | None
    position_ids: torch.Tensor | None
    media: MMMediaOutput | None
    past_key_values: Cache | None
    inputs_embeds: torch.Tensor | None
    use_cache: bool | None


class MMPreTrainedModel(PreTrainedModel):
    """Base of all our models: what they support, how they start, how they are joined from pretrained components."""

    config: MMConfig
    config_class = MMConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = (*MODALITIES, "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _no_split_modules = ["DecoderBlock", "GatedCrossAttentionBlock", "ResamplerLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    loaded_revision: str | None = None  # of the Hub; a pipeline loads the processor of the same one

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Enter subclasses in the tables of names that their bases are in: a user's, and those that FSDP2 makes."""
        super().__init_subclass__(**kwargs)
        bases = {base.__name__ for base in cls.__mro__[1:]}
        names = {auto_name: cls.__name__ for auto_name, base in MODEL_CLASSES.items() if base in bases}
        enter_names(f"mm.{cls.__name__}", names)  # no model type, nor a name that `Trainer` refuses as a model type

    def post_init(self) -> None:
        super().post_init()
        plan_sharding(self)

    def _init_weights(self, module: nn.Module) -> None:
        init_weights(module, self.config.text_config)
        if isinstance(module, Tagger):
            init.zeros_(module.ids)

    @classmethod
    def is_custom_code(cls) -> bool:
        """
        Return False, because our initialization leaves loaded tensors alone.

        It goes through `transformers.initialization`. For custom code transformers skips modules without parameters,
        which would leave encoders half initialized: Whisper's position table is set by a module that owns none.
        """
        return False

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        self.config.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, **kwargs)
        share_weights(save_directory)

    def set_attn_implementation(self, attn_implementation: str | dict, **kwargs: Any) -> None:
        """As in transformers; an encoder that lacks the implementation of the whole model takes the nearest it has."""
        if isinstance(attn_implementation, str):
            by_config: dict[str, str | None] = {"": attn_implementation, "text_config": attn_implementation}
            for modality in self.config.modalities:
                tower = getattr(self.base_model, modality.tower_attribute)
                by_config[modality.config_field] = nearest_attention(type(tower), attn_implementation)
            attn_implementation = by_config
        super().set_attn_implementation(attn_implementation, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *args: Any,
        ignore_missing: bool | None = None,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        **kwargs: Any,
    ) -> Any:
        """
        Load a model as transformers does, from safetensors alone, and check what was loaded.

        Args:
            ignore_missing: start weights that the checkpoint lacks at random. Without it only a head may be new, such
                as a classifier's on a checkpoint of another class. By default True if `output_loading_info` asks for
                their names instead of an error

        Raises:
            ValueError: if weights are missing, NaN or infinite, or a file of a local folder is damaged, with names.
            RuntimeError: if weights have another shape, unless `ignore_mismatched_sizes`.
        """
        name, state = pretrained_model_name_or_path, kwargs.get("state_dict")
        if name is not None and os.path.isdir(name) and kwargs.get("variant") is None:
            folder = Path(name, kwargs.get("subfolder") or "")
            is_given = kwargs.get("config") is not None or (folder / "adapter_config.json").exists()
            check_configs(folder, CONFIGS, required=() if is_given else CONFIGS[:1])
            check_weight_files(folder)
        kwargs = {"use_safetensors": True, **kwargs, "ignore_mismatched_sizes": True, "output_loading_info": True}
        model, report = super().from_pretrained(name, *args, **kwargs)
        source = source_of(name)
        if not ignore_mismatched_sizes:
            check_shapes(report["mismatched_keys"], source)
        is_free = output_loading_info if ignore_missing is None else ignore_missing
        if not is_free and state != {}:  # no weights at all are a way to ask for random ones
            check_missing(model, report["missing_keys"], source)
        check_finite(model, source)
        # Loading replaces the parameters that were frozen when the model was made by new, trainable ones.
        model.freeze()
        model.loaded_revision = kwargs.get("revision")
        return (model, report) if output_loading_info else model

    def freeze(self) -> None:
        """Freeze the pretrained parts that the config names; new connectors and cross-attention stay trainable."""
        base = self.base_model
        freeze_codecs(base)
        for modality in self.config.modalities:
            if getattr(self.config, modality.freeze_field):
                getattr(base, modality.tower_attribute).requires_grad_(False)
        is_cross_frozen, known = self.config.freeze_cross_attention, self.config.frozen_modalities or ()
        frozen = [modality for modality in self.config.modalities if modality.name in known]
        for modality in self.config.modalities:
            is_direct = getattr(self.config, f"{modality.tower}_connector") == DIRECT
            is_shared = getattr(self.config, modality.layers_field) is None
            if modality in frozen or (is_cross_frozen and is_direct and is_shared):
                getattr(base, modality.connector_attribute).requires_grad_(False)
        own_frozen = {f"{modality.tower}_" for modality in frozen}
        for name, parameter in base.language_model.named_parameters():
            if (cross := CROSS_ATTENTION.search(f".{name}")) is None:
                is_frozen = self.config.freeze_text
            else:
                is_frozen = cross[1] in own_frozen if cross[1] else is_cross_frozen
            if is_frozen:
                parameter.requires_grad_(False)
        if self.config.freeze_text and (head := self.get_output_embeddings()) is not None:
            head.requires_grad_(False)

    @classmethod
    def from_text_vision_audio_pretrained(
        cls, text: Component, vision: Component | None = None, audio: Component | None = None, **kwargs: Any
    ) -> "MMPreTrainedModel":
        """
        Join pretrained components; see [`joining.join_pretrained`] for the arguments.

        ```python
        model = MMForConditionalGeneration.from_text_vision_audio_pretrained(
            "openai-community/gpt2", "google/vit-base-patch16-224", "openai/whisper-tiny", freeze_vision=True
        )
        ```
        """
        return join_pretrained(cls, text, vision=vision, audio=audio, **kwargs)

    def add_vision(self, component: Component, **kwargs: Any) -> "MMPreTrainedModel":
        """
        Return a copy of this model that sees, too; see [`adding.add_modality`] for the arguments.

        ```python
        model = MMForConditionalGeneration.from_encoder_decoder("openai/whisper-tiny")
        model = model.add_vision("google/vit-base-patch16-224", cross_attention_layers=[0, 1])
        ```
        """
        return add_modality(self, "image", component, **kwargs)

    def add_audio(self, component: Component, **kwargs: Any) -> "MMPreTrainedModel":
        """Return a copy of this model that hears, too; see [`adding.add_modality`] for the arguments."""
        return add_modality(self, "audio", component, **kwargs)

    def add_modality(self, name: str, component: Component, **kwargs: Any) -> "MMPreTrainedModel":
        """Return a copy of this model that has a modality more; see [`adding.add_modality`] for the arguments."""
        return add_modality(self, name, component, **kwargs)

    def add_location_tokens(self, tokenizer: Any) -> None:
        """Give this model the tokens of boxes and points, in place; see [`adding.add_location_tokens`]."""
        add_location_tokens(self, tokenizer)

    def set_tags(self, name: str, tokenizer: Any, texts: Sequence[str], **kwargs: Any) -> None:
        """Write the texts of the tags of a modality into this model, in place; see [`tags.set_tags`]."""
        set_tags(self, name, tokenizer, texts, **kwargs)

    def add_codec(self, codec: MediaCodec, tokenizer: Any, layout: str = "interleaved") -> None:
        """Let this model draw or speak by a codec, in place; see [`codec_adding.add_codec`]."""
        add_codec(self, codec, tokenizer, layout)


class MMModel(MediaEncodingMixin, MMPreTrainedModel):
    """Encoders, connectors and decoder, without a head on top."""

    def __init__(self, config: MMConfig):
        super().__init__(config)
        check_vocabulary(config)
        for modality in MODALITIES.values():
            layers = getattr(config, f"{modality.tower}_feature_layers", None)
            encoder = build_encoder(modality, getattr(config, modality.config_field), layers)
            setattr(self, modality.tower_attribute, encoder)
        for modality in MODALITIES.values():
            setattr(self, modality.connector_attribute, build_connector(modality, config))
        self.language_model = MMDecoder(config)
        build_codecs(self, config)
        self.post_init()
        self.freeze()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *args: Any, **kwargs: Any
    ) -> Any:
        """As for all our models, but `AutoModel` makes the model that embeds of its folder, as of a CLIP's."""
        config = kwargs.get("config")
        is_auto = cls is MMModel and comes_from_auto_class(kwargs)
        is_ours = is_auto and "MMForRetrieval" in (config.architectures or ())
        if is_ours and (found := config.find_class(RETRIEVAL)) is not None:
            return found.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def train(self, mode: bool = True) -> "MMModel":
        """As `nn.Module.train`, but a frozen encoder stays in evaluation: no dropout, no moving batch statistics."""
        super().train(mode)
        for modality in self.config.modalities:
            tower = getattr(self, modality.tower_attribute)
            if not any(parameter.requires_grad for parameter in tower.parameters()):
                tower.eval()
        return self

    def get_input_embeddings(self) -> nn.Embedding:
        return self.language_model.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.language_model.wte = value

    @show_media_inputs()
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        media: MMMediaOutput | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[MMKeywords],
    ) -> MMModelOutput:
        """
        Resolve media, find their positions, run the decoder.

        Args:
            input_ids: (B, L), or `inputs_embeds` (B, L, D); without either, media are read through their placeholders
            attention_mask: (B, past + L), 0 for padding
            position_ids: (B, L); they count the real tokens by default. Where they start again at 0, the next of
                several examples begins that are packed into the row: it sees its own tokens and media alone
            media: media that `encode_media` has encoded, instead of the raw inputs; one row is for all rows of text
            past_key_values: a cache of text and media, so that media are passed once
            use_cache: whether to return a cache; by default `config.use_cache` in evaluation, and not in training
            **kwargs: media, raw or as states of their encoders, with their masks: see [`~MMModel.encode_media`]; and
                options of the decoder, such as `output_attentions`. With `is_causal=False`, in the bidirectional mode,
                each token reads all of its row and all of its media, and there is no cache

        Raises:
            ValueError: for placeholders that do not match the media, row by row, for rows that are too long, and for
                media alone with a mask, positions or a cache of a text. Not under `torch.compile`: these checks read
                values, which a graph does not have.
        """
        options = dict(kwargs)
        text = input_ids if input_ids is not None else inputs_embeds
        batches = self.read_media(options, text)
        if media is not None and batches:
            raise ValueError("Pass either media or the raw inputs it was encoded from, not both.")
        is_default = use_cache is None
        if is_default:
            use_cache = self.config.use_cache and not self.training and kwargs.get("is_causal", True)
        if text is None:
            check_media_alone(attention_mask, position_ids, past_key_values)
            return self._start_from_media(media, batches, use_cache=use_cache, **options)

        is_start = past_key_values is None or (
            not is_torchdynamo_compiling() and past_key_values.get_seq_length() == 0
        )
        self._check_items(text, attention_mask, batches, media, is_start)
        if media is None:
            # Other processes may wait for a batch without media, or without one of them, to use all encoders.
            is_awaited = is_start and self._must_run_all_encoders()
            media = self._encode(batches, absent=(text.shape[0], text.device) if is_awaited else None)
        elif media.states.device != text.device:
            media = media.map(lambda tensor: tensor.to(text.device))
        index = None if media is None else self.media_positions(media, text)  # (B, S)
        shown, is_numbered = None, self.config.max_media_items is not None
        if is_start and is_numbered:
            SeenItems.forget(past_key_values)
        examples = None
        if is_start and position_ids is not None and not is_torchdynamo_compiling():
            is_prepared = attention_mask is not None and attention_mask.ndim != 2
            examples = None if is_prepared else packed_examples(position_ids, attention_mask)  # (B, L)
            use_cache = use_cache and not (is_default and examples is not None)
        if media is not None and index is not None and is_numbered:
            past_length = text_length(past_key_values)
            if examples is not None:
                media = replace(media, position=self.numbers_within(examples, media, index, text))
            media, numbers = self.number_items(media, SeenItems.of(past_key_values), past_length)
            shown = SeenItems(numbers, media.modality, index + past_length)
        outputs = self.language_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            media_states=None if media is None else media.states,
            media_mask=None if media is None else media.mask,
            media_index=index,
            media_sizes=None if media is None else media.sizes,
            use_cache=use_cache,
            examples=examples,
            **options,
        )
        if shown is not None and outputs.past_key_values is not None:
            shown.put_on(outputs.past_key_values)
        return outputs

    def _start_from_media(
        self, media: MMMediaOutput | None, batches: dict[str, MediaBatch], **kwargs: Any
    ) -> MMModelOutput:
        """Read media through their placeholders, which make the prompt."""
        if media is None:
            items = next((batch.items for batch in batches.values()), None)
            is_awaited = items is not None and self._must_run_all_encoders()
            media = self._encode(batches, absent=(items.shape[0], items.device) if is_awaited else None)
        if media is None:
            raise ValueError(
                "Pass input_ids or inputs_embeds, with a placeholder for each image and each audio window; "
                "MMProcessor makes them. Or pass media alone, to start from their placeholders."
            )
        input_ids, attention_mask = placeholder_prompt(media, self.config)
        outputs = self.forward(input_ids, attention_mask, media=media, return_dict=True, **kwargs)
        outputs.pooler_output = outputs.last_hidden_state[:, -1]  # rows are padded on the left
        return outputs

    def encode_batch(
        self, inputs: dict, text: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None
    ) -> MMMediaOutput | None:
        """
        Check and encode the media of a batch once, for several passes of the decoder.

        Args:
            inputs: media of [`~MMModel.encode_media`], which are taken out of it
            text: ids (B, L), if the media have placeholders
            attention_mask: (B, L)

        Returns:
            `None` without media, unless other processes wait for this one: then their padding

        Raises:
            ValueError: as `forward`.
        """
        batches = self.read_media(inputs, text)
        if text is not None:
            self._check_items(text, attention_mask, batches, None, True)
        like = text if text is not None else next((batch.items for batch in batches.values()), None)
        is_awaited = like is not None and self._must_run_all_encoders()
        return self._encode(batches, absent=(like.shape[0], like.device) if is_awaited else None)

    def _check_items(
        self,
        text: torch.Tensor,
        attention_mask: torch.Tensor | None,
        batches: dict[str, MediaBatch],
        media: MMMediaOutput | None,
        is_start: bool,
    ) -> None:
        """
        Check each row's placeholders against its media.

        Raises:
            ValueError: if a row has other numbers of placeholders and items. Without media it must not have
                placeholders, unless their media are in the cache. Embeddings without media are not checked. Also if a
                hidden placeholder is not masked.
        """
        is_text_alone = media is None and not batches
        if is_torchdynamo_compiling() or (is_text_alone and (text.ndim == 3 or not is_start)):
            return
        rows = text.shape[0]
        read_from = (text,) if text.ndim == 2 else (text, self.get_input_embeddings().weight)
        items = None if media is None else media.item_counts()
        for name, modality in MODALITIES.items():
            if items is not None:
                counts = items[name]
                counts = counts * rows if len(counts) == 1 else counts  # one row is for all
            else:
                counts = batches[name].counts if name in batches else [0] * rows
            if len(counts) != rows:
                raise wrong_rows(rows, len(counts))
            token_id = getattr(self.config, modality.token_id_field)
            found = self.placeholders(token_id, text).sum(-1)
            check_placeholders(name, token_id, read_once(("placeholders", token_id), found, *read_from), counts)
            if any(counts) and self.config.max_media_items is not None:
                self.parts_of(modality)[1].check_items(max(counts))
        if self.config.placeholders == HIDDEN:
            self._check_hidden(text, attention_mask)

    def _check_hidden(self, text: torch.Tensor, attention_mask: torch.Tensor | None) -> None:
        """Check that hidden placeholders among these tokens are masked; a prepared 4-D mask is taken as it is."""
        if attention_mask is not None and attention_mask.ndim != 2:
            return
        for name, modality in MODALITIES.items():
            token_id = getattr(self.config, modality.token_id_field)
            found = self.placeholders(token_id, text)  # (B, L)
            read_from = [text] if text.ndim == 2 else [text, self.get_input_embeddings().weight]
            if attention_mask is not None:
                found = found & attention_mask[:, -text.shape[1] :].bool()
                read_from.append(attention_mask)
            check_hidden(name, read_once(("visible", token_id), found.sum(-1), *read_from))

    def count_placeholders(self, modality: Modality, text: torch.Tensor) -> list[int]:
        """Return how many placeholders of a modality each row of ids (B, L) or embeddings (B, L, D) has."""
        token_id = getattr(self.config, modality.token_id_field)
        read_from = (text,) if text.ndim == 2 else (text, self.get_input_embeddings().weight)
        return read_once(("placeholders", token_id), self.placeholders(token_id, text).sum(-1), *read_from)

    def placeholders(self, token_id: int | None, text: torch.Tensor) -> torch.Tensor:
        """Return which tokens of ids (B, L) or embeddings (B, L, D) are a placeholder, (B, L) bool."""
        if token_id is None:
            return torch.zeros(text.shape[:2], dtype=torch.bool, device=text.device)
        if text.ndim == 2:
            return text == token_id
        embedding = self.get_input_embeddings()(torch.full((), token_id, device=text.device))  # (D,)
        return (text == embedding.to(text.dtype)).all(-1)

    def numbers_within(
        self, examples: torch.Tensor, media: MMMediaOutput, index: torch.Tensor, text: torch.Tensor
    ) -> torch.Tensor:
        """
        Return the number of each media token's item within its packed example, (B, S).

        Args:
            examples: (B, L), see [`masks.packed_examples`]
            index: (B, S), of each media token's placeholder
        """
        own = examples.gather(1, index.clamp(max=text.shape[1] - 1))  # (B, S)
        first = torch.searchsorted(examples, own)  # index of the example's first token
        position = media.position
        for number, modality in enumerate(MODALITIES.values()):
            found = self.placeholders(getattr(self.config, modality.token_id_field), text).long()  # (B, L)
            before = (found.cumsum(-1) - found).gather(1, first)
            position = torch.where(media.mask & (media.modality == number), position - before, position)
        return position

    def media_positions(self, media: MMMediaOutput, text: torch.Tensor) -> torch.Tensor:
        """Return the index among these tokens of each media token's placeholder, (B, S)."""
        index = media.position
        for number, modality in enumerate(MODALITIES.values()):
            is_placeholder = self.placeholders(getattr(self.config, modality.token_id_field), text)
            # The index of a row's k-th placeholder is the first at which more than k have been counted.
            position = media.position.expand(text.shape[0], -1).contiguous()
            found = torch.searchsorted(is_placeholder.cumsum(-1), position, right=True)
            index = found if number == 0 else torch.where(media.modality == number, found, index)
        return index


class MMForConditionalGeneration(MMPreTrainedModel, MMGenerationMixin):
    """The model with a language modeling head: it answers, captions, transcribes, translates."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.wte.weight"}

    def __init__(self, config: MMConfig):
        super().__init__(config)
        self.model = MMModel(config)
        self.lm_head = Head(config.text_config.n_embd, config.text_config.vocab_size, bias=False)
        self.loss_function = causal_lm_loss
        self.loss_type = "ForCausalLM"  # transformers guesses it from the class's name, and counts targets by it
        self.post_init()
        self.freeze()

    @classmethod
    def from_encoder_decoder(
        cls, source: Component, *, tokenizer: Any = None, **kwargs: Any
    ) -> "MMForConditionalGeneration":
        """
        Convert a captioner or a Whisper; see [`conversion.convert_pretrained`] for sources and arguments.

        ```python
        model = MMForConditionalGeneration.from_encoder_decoder("openai/whisper-tiny")
        ```
        """
        return convert_pretrained(cls, source, tokenizer=tokenizer, **kwargs)

    def encode_media(self, *, text: torch.Tensor | None = None, **inputs: torch.Tensor | None) -> MMMediaOutput:
        """See [`MMModel.encode_media`]."""
        return self.model.encode_media(text=text, **inputs)

    @torch.no_grad()
    def read_prefix(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **media: Any
    ) -> SharedPrefix:
        """
        Read a prefix that many prompts share once; its method `followed_by` makes inputs of `generate`.

        Args:
            input_ids: (1, P)
            attention_mask: (1, P)
            **media: of this row, raw or as `media=`; see [`~MMModel.encode_media`]

        Raises:
            ValueError: for several rows, and for placeholders that do not match the media.
        """
        if input_ids.shape[0] != 1:
            raise ValueError(f"A shared prefix is one row, got {input_ids.shape[0]}. Read each in a separate call.")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
            if self.config.placeholders == HIDDEN:
                found = [self.model.placeholders(each, input_ids) for each in self.config.placeholder_ids]
                attention_mask = hide_placeholders(attention_mask, found)
        cache = DynamicCache(config=self.config.text_config)
        self.model(input_ids, attention_mask, past_key_values=cache, use_cache=True, **media)
        return SharedPrefix(input_ids, attention_mask, cache)

    def get_image_features(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPooling:
        """See [`MMModel.get_image_features`]."""
        return self.model.get_image_features(*args, **kwargs)

    def get_audio_features(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPooling:
        """See [`MMModel.get_audio_features`]."""
        return self.model.get_audio_features(*args, **kwargs)

    @show_media_inputs(MMModel.forward)
    @can_return_tuple
    def forward(
        self,
        *args: Any,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        token_range: tuple[int, int] | None = None,
        skip_logits: bool = False,
        **inputs: Unpack[MMInputs],
    ) -> MMCausalLMOutput:
        """
        Return logits of the next token, and the loss if there are labels.

        Args:
            *args, **inputs: for [`MMModel.forward`], and for the loss (`num_items_in_batch`, `shift_labels`)
            labels: (B, L), -100 for tokens that are not learned; they are shifted inside
            logits_to_keep: compute logits for the last tokens only, or for those at the given indices; 0 for all. With
                a mask (B, L) they are (K, V), of the tokens where it is true, and the loss is over these alone
            token_range: compute logits of the tokens from the first id to below the second one; others are -inf
            skip_logits: return the loss without logits, which then need not exist for all tokens at once; see
                [`head_loss.head_loss`]. [`MMTrainer`] does so if nobody reads them
        """
        cache, states = inputs.get("past_key_values"), None
        if cache is not None and labels is None and not args:
            states = quick_states(self.model, inputs)
        if states is None:
            outputs: MMModelOutput = self.model(*args, **inputs)
            states = outputs.last_hidden_state
        else:
            outputs = MMModelOutput(last_hidden_state=states, past_key_values=cache)
        shift_labels = inputs.get("shift_labels")  # (B, L)
        if isinstance(logits_to_keep, torch.Tensor) or logits_to_keep:
            states, shift_labels = kept_tokens(states, shift_labels, logits_to_keep)
        targets, count = shift_labels, inputs.get("num_items_in_batch")
        if targets is None and labels is not None:
            targets = shifted(labels)
        is_stock = self.loss_function is causal_lm_loss and token_range is None
        loss = logits = None
        if skip_logits and targets is not None and is_stock and takes_states(self.lm_head, states):
            loss = head_loss(states, self.lm_head, targets, count)
        else:
            # (B, L, V), or (K, V)
            logits = self.lm_head(states) if token_range is None else range_logits(self.lm_head, states, token_range)
            if targets is not None:
                loss = self.loss_function(
                    logits=logits,
                    labels=labels,
                    vocab_size=self.config.text_config.vocab_size,
                    shift_labels=shift_labels,
                    num_items_in_batch=count,
                )
        return MMCausalLMOutput(
            loss=loss,
            logits=None if skip_logits and targets is not None else logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )


class MMForSequenceClassification(MMPreTrainedModel):
    """
    The model with a classification or regression head on the last real text token, as GPT-2's classifier has.

    Not a `GenericForSequenceClassification`: that one scores every token, refuses several rows without a padding id,
    reads no attention mask, and ignores `num_items_in_batch`.
    """

    def __init__(self, config: MMConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = MMModel(config)
        self.score = nn.Linear(config.text_config.n_embd, self.num_labels, bias=False)
        self.loss_type = "ForSequenceClassification"
        self.post_init()

    @show_media_inputs(MMModel.forward)
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *args: Any,
        labels: torch.Tensor | None = None,
        **inputs: Unpack[MMKeywords],
    ) -> MMSequenceClassifierOutput:
        """
        Return a score for each label, and the loss if there are labels.

        Args:
            input_ids, attention_mask, *args, **inputs: for [`MMModel.forward`]
            num_items_in_batch: see [`losses.classification_loss`]
            labels:
                (B,) class ids for `single_label_classification`, (B, num_labels) zeros and ones for
                `multi_label_classification`, (B,) or (B, num_labels) values for `regression`. Without
                `config.problem_type` the problem follows from `num_labels` and the labels' type.

        Raises:
            ValueError: for a class id that the model does not have, and as [`MMModel.forward`].
        """
        outputs: MMModelOutput = self.model(input_ids, attention_mask, *args, **inputs)
        states = outputs.last_hidden_state  # (B, L, D)
        last = last_real_token(input_ids, attention_mask, self.config.text_config.pad_token_id, states)  # (B,)
        logits = self.score(states[torch.arange(states.shape[0], device=states.device), last])  # (B, num_labels)
        loss = None
        if labels is not None:
            self.config.problem_type = problem_type(self.config.problem_type, self.num_labels, labels)
            if self.config.problem_type == "single_label_classification" and not is_torchdynamo_compiling():
                check_classes(labels, self.num_labels)
            loss = classification_loss(logits, labels, self.config.problem_type, inputs.get("num_items_in_batch"))
        return MMSequenceClassifierOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )


def kept_tokens(
    states: torch.Tensor, shift_labels: torch.Tensor | None, logits_to_keep: int | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Return the states (B, L, D), and the targets (B, L) of those tokens, that logits are for.

    Args:
        logits_to_keep: see [`MMForConditionalGeneration.forward`]; with a mask the results are (K, D) and (K,)
    """
    if isinstance(logits_to_keep, int):
        return states[:, -logits_to_keep:], shift_labels
    if logits_to_keep.dtype != torch.bool:
        return states[:, logits_to_keep], shift_labels
    return states[logits_to_keep], None if shift_labels is None else shift_labels[logits_to_keep]


def share_weights(folder: str | os.PathLike) -> None:
    """Give saved weights the mode of the configuration beside them, as safetensors makes its files private."""
    for config, weights in (("config.json", "model*.safetensors"), ("adapter_config.json", "adapter_model*")):
        if (beside := Path(folder) / config).is_file():
            for path in Path(folder).glob(weights):
                if path.stat().st_mode & 0o777 == 0o600:
                    shutil.copymode(beside, path)


def check_vocabulary(config: MMConfig) -> None:
    """
    Check that every special token has a row in the embedding.

    Raises:
        ValueError: for a special token that the embedding has no row for.
    """
    for field in (*SPECIAL_TOKEN_FIELDS, *(modality.token_id_field for modality in MODALITIES.values())):
        token_id, vocab_size = getattr(config, field), config.text_config.vocab_size
        if token_id is not None and token_id >= vocab_size:
            raise ValueError(
                f"{field} is {token_id}, but the vocabulary has {vocab_size} tokens. Make text_config.vocab_size "
                "larger (MMConfig.from_text_vision_audio_configs does so), or choose an id within it."
            )
    if (first := config.location_token_id) is not None and first + LOCATION_BINS > config.text_config.vocab_size:
        raise ValueError(
            f"location_token_id is {first}, and {LOCATION_BINS} location tokens follow from there, but the vocabulary "
            f"has {config.text_config.vocab_size} tokens. Let `add_location_tokens` of the model set it."
        )


def last_real_token(
    input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, pad_token_id: int | None, states: torch.Tensor
) -> torch.Tensor:
    """
    Return the index of each row's last token that is not padding, (B,).

    It follows from the padding id, as in GPT-2's classifier; without one, or for embeddings, from the attention mask;
    else it is the last.
    """
    if input_ids is not None and pad_token_id is not None:
        real = input_ids != pad_token_id
    elif attention_mask is not None and attention_mask.ndim == 2:
        real = attention_mask[:, -states.shape[1] :].bool()
    else:
        real = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    index = torch.arange(states.shape[1], device=states.device)
    return (index * real.to(index)).argmax(-1)


register_int8()  # before any folder with weights of 8 bits is loaded
MMModel.register_for_auto_class("AutoModel")
MMForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
MMForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")

__all__ = ["MMForConditionalGeneration", "MMForSequenceClassification", "MMModel", "MMPreTrainedModel"]
