# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Configuration of the joint model: a GPT-2-style decoder that reads, sees and hears."""

import copy
import math
import os
from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig
from transformers.dynamic_module_utils import custom_object_save, get_class_from_dynamic_module
from transformers.models.auto.configuration_auto import AutoConfig
from transformers.models.gpt2.configuration_gpt2 import GPT2Config
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME, logging

from .code_tokens import INTERLEAVED, check_code_ranges
from .compat import enter_adapter_defaults, enter_names
from .configuration_codec import MMCodecConfig
from .modalities import BUILT_IN, MODALITIES, Modality, config_defaults
from .sentence_files import write_sentence_files

logger = logging.get_logger(__name__)

SYSTEM_TOKEN = "<|system|>"
USER_TOKEN = "<|user|>"
ASSISTANT_TOKEN = "<|assistant|>"
END_TOKEN = "<|end|>"
PAD_TOKEN = "<|pad|>"

CODEC_FIELDS = tuple(f"{name}_codec_config" for name in BUILT_IN)

# The order in which a processor adds them to a tokenizer and a model appends rows for them to its embedding.
# Padding comes last because a tokenizer with another padding token does not get this one.
PLACEHOLDERS = tuple(modality.token for modality in MODALITIES.values())
SPECIAL_TOKENS = (*PLACEHOLDERS, SYSTEM_TOKEN, USER_TOKEN, ASSISTANT_TOKEN, END_TOKEN, PAD_TOKEN)

# The config fields that hold the ids of the special tokens, in the same order; padding belongs to the text config.
PLACEHOLDER_FIELDS = tuple(modality.token_id_field for modality in MODALITIES.values())
SPECIAL_TOKEN_FIELDS = (
    *PLACEHOLDER_FIELDS,
    "system_token_id",
    "user_token_id",
    "assistant_token_id",
    "end_token_id",
)

# Tokens of the coordinates of boxes and points, appended to a vocabulary in one range.
LOCATION_BINS = 1000
LOCATION_TOKENS = tuple(f"<loc_{number}>" for number in range(LOCATION_BINS))

DIRECT = "direct"
TAG_FIELDS = ("tags", "tag_length", "tag_choices", "tag_rank")
CONNECTORS = ("linear", "mlp", "conv", "gru", "perceiver", DIRECT)
CROSS_ATTENTION_PLACEMENTS = ("before", "inside")
HIDDEN = "hidden"
PLACEHOLDER_KINDS = ("text", HIDDEN)
# Fields of cross-attention in blocks before decoder blocks; GPT-2's, inside them, has no such parts.
BEFORE_ALONE = (
    "cross_attention_gated",
    "cross_attention_feed_forward",
    "cross_attention_feed_forward_size",
    "cross_attention_query_gate",
    "cross_attention_token_gate",
    "cross_attention_stand_in",
    "cross_attention_sink",
)
SINUSOIDAL_2D = "sinusoidal_2d"
MEDIA_POSITION_ENCODINGS = ("sinusoidal", SINUSOIDAL_2D, "learned", "none")
# Connectors that add positions to as many tokens as the encoder gives, so that a grid stays a grid.
CONNECTORS_OF_GRIDS = ("linear", "mlp", "gru")
TEXT_POSITION_ENCODINGS = ("learned", "sinusoidal")
INFO_NCE, SIGMOID = "infonce", "sigmoid"
# Temperatures that training starts from, by the loss of retrieval: CLIP's and SigLIP's.
INITIAL_TEMPERATURES = {INFO_NCE: 0.07, SIGMOID: 0.1}
LOWEST_TEMPERATURE = 0.01

# Objectives of pre-training, each with the field of its weight.
OBJECTIVES = ("causal_lm", "masked_lm", "matching", "contrastive")
OBJECTIVE_WEIGHTS = {name: f"{name}_weight" for name in OBJECTIVES}

RETRIEVAL = "retrieval.MMForRetrieval"
PRETRAINING = "pretraining.MMForPreTraining"

# Which Auto class loads which of our classes when the code travels with the weights.
AUTO_MAP = {
    "AutoConfig": "configuration_mm.MMConfig",
    "AutoProcessor": "processing_mm.MMProcessor",
    "AutoModel": "modeling_mm.MMModel",
    "AutoModelForAudioClassification": "modeling_mm.MMForSequenceClassification",
    "AutoModelForCausalLM": "modeling_mm.MMForConditionalGeneration",
    "AutoModelForImageClassification": "modeling_mm.MMForSequenceClassification",
    "AutoModelForImageTextToText": "modeling_mm.MMForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_mm.MMForConditionalGeneration",
    "AutoModelForPreTraining": PRETRAINING,
    "AutoModelForSequenceClassification": "modeling_mm.MMForSequenceClassification",
    "AutoModelForSpeechSeq2Seq": "modeling_mm.MMForConditionalGeneration",
    "AutoModelForTextToWaveform": "modeling_mm.MMForConditionalGeneration",
    "AutoModelForZeroShotImageClassification": RETRIEVAL,
}

# The name of our class for each Auto class of models.
MODEL_CLASSES = {name: path.split(".")[1] for name, path in AUTO_MAP.items() if name.startswith("AutoModel")}

# Which of our pipelines serves which task, and which Auto class loads the model for it.
PIPELINES = {
    "any-to-any": ("pipelines.MMAnyToAnyPipeline", "AutoModelForMultimodalLM"),
    "audio-classification": ("pipelines.MMAudioClassificationPipeline", "AutoModelForAudioClassification"),
    "automatic-speech-recognition": ("pipelines.MMSpeechRecognitionPipeline", "AutoModelForSpeechSeq2Seq"),
    "feature-extraction": ("pipelines.MMFeatureExtractionPipeline", "AutoModel"),
    "image-classification": ("pipelines.MMImageClassificationPipeline", "AutoModelForImageClassification"),
    "image-feature-extraction": ("pipelines.MMImageFeatureExtractionPipeline", "AutoModel"),
    "image-text-to-text": ("pipelines.MMImageTextToTextPipeline", "AutoModelForImageTextToText"),
    "multimodal-translation": ("pipelines.MMTranslationPipeline", "AutoModelForImageTextToText"),
    "text-classification": ("pipelines.MMTextClassificationPipeline", "AutoModelForSequenceClassification"),
    "text-generation": ("pipelines.MMTextGenerationPipeline", "AutoModelForCausalLM"),
    "text-to-audio": ("pipelines.MMTextToAudioPipeline", "AutoModelForTextToWaveform"),
    "text-to-image": ("pipelines.MMTextToImagePipeline", "AutoModelForMultimodalLM"),
    "visual-question-answering": ("pipelines.MMVisualQuestionAnsweringPipeline", "AutoModelForImageTextToText"),
    "zero-shot-audio-classification": ("pipelines.MMZeroShotAudioClassificationPipeline", "AutoModel"),
    "zero-shot-image-classification": (
        "pipelines.MMZeroShotImageClassificationPipeline",
        "AutoModelForZeroShotImageClassification",
    ),
}

# The classes whose modules lead to all of the code that is saved beside weights.
SAVED_CLASSES = ("pipelines.MMAnyToAnyPipeline", RETRIEVAL, PRETRAINING)

# Whether this module is a copy that came with weights, loaded by `trust_remote_code=True`.
IS_REMOTE_CODE = __name__.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}.")


class SubConfigs:
    """`MMConfig.sub_configs`: the classes of the configs inside, of every modality that is registered by now."""

    def __get__(self, instance: object, owner: type) -> dict[str, Any]:
        return {
            "text_config": GPT2Config,
            **dict.fromkeys((each.config_field for each in MODALITIES.values()), AutoConfig),
            **dict.fromkeys(CODEC_FIELDS, AutoConfig),
        }


@strict
class MMConfig(PreTrainedConfig):
    r"""
    Configuration of [`MMModel`] and the classes on top of it.

    Args:
        text_config (`GPT2Config` or `dict`, *optional*): the decoder; GPT-2 small when it is not given.
        vision_config (`PreTrainedConfig` or `dict`, *optional*):
            Any vision encoder known to [`AutoModel`]; `None` for a model that does not see. Of a two-tower config
            such as CLIP's the vision half is taken.
        audio_config (`PreTrainedConfig` or `dict`, *optional*):
            Any audio encoder known to [`AutoModel`]; `None` for a model that does not hear. Of an encoder-decoder
            such as Whisper the encoder is used.
        cross_attention_layers (`list[int]`, *optional*):
            The decoder blocks that have cross-attention. By default every `cross_attention_interval`-th block. It is
            shared by the modalities that have no separate layers.
        cross_attention_interval (`int`, *optional*, defaults to 4): see above.
        cross_attention_placement (`str`, *optional*, defaults to `"before"`):
            Where cross-attention stands: in a separate block `"before"` the decoder block, or `"inside"` it, between
            self-attention and feed-forward, as in GPT-2 with `add_cross_attention` and in Whisper.
        vision_cross_attention_layers, audio_cross_attention_layers (`list[int]`, *optional*):
            The decoder blocks that have cross-attention to this modality alone, so that what it learns leaves the
            other as it is; by default it shares `cross_attention_layers`.
        vision_cross_attention_placement, audio_cross_attention_placement (`str`, *optional*):
            Where a modality's own cross-attention stands; by default as `cross_attention_placement` says.
        cross_attention_gated (`bool`, *optional*, defaults to `False`):
            Whether both branches of a cross-attention block pass a tanh gate that starts at zero, as Flamingo's do.
            Without gates the last projection of each branch starts at zero instead, so that joining never changes the
            decoder either. A gate is one number that an optimizer opens no faster than it moves a weight, so with
            gates a model learns to see late, unless they have about ten times the learning rate of the rest.
        cross_attention_feed_forward (`bool`, *optional*, defaults to `False`):
            Whether a cross-attention block has a feed-forward branch as Flamingo's do. It is two thirds of a block's
            weights, all read at every decoded token, so it is for those who find that it earns its time. Gates and
            this branch belong to blocks before decoder blocks; inside them there is GPT-2's cross-attention alone.
        cross_attention_feed_forward_size (`int`, *optional*):
            Hidden width of this branch; the decoder's by default.
        cross_attention_query_gate (`bool`, *optional*, defaults to `False`):
            Whether each element of what a text token reads is multiplied by the sigmoid of a linear function of the
            token's state, as in [Gated Attention](https://arxiv.org/abs/2505.06708), so that a frozen decoder's tokens
            take other things from an image for other questions. For blocks before decoder blocks, as the two above.
        cross_attention_token_gate (`bool`, *optional*, defaults to `False`):
            Whether all that a cross-attention block adds to a text token is multiplied by one number, the sigmoid of a
            linear function of the token's state, so that a modality that was added later stays silent where a decoder
            does what it could do before. For blocks before decoder blocks.
        cross_attention_stand_in (`bool`, *optional*, defaults to `False`):
            Whether a token that sees media through blocks before decoder blocks, but none of those that are read
            inside them, adds a learned vector there in place of nothing. A decoder that was trained with
            cross-attention, such as Whisper's, is lost without what it adds.
        cross_attention_sink (`bool`, *optional*, defaults to `False`):
            Whether cross-attention before decoder blocks has a learned key without a value beside the media. A softmax
            shares out all attention, so that without a sink a token cannot read nothing, such as in speech beside an
            image, nor tell how well one image fits it, such as a name that may be the image's or not.
        vision_connector, audio_connector (`str`, *optional*, defaults to `"mlp"`):
            What turns encoder tokens into media tokens: `"linear"`, `"mlp"`, `"conv"` (strided convolutions over the
            token sequence), `"gru"` (recurrent), `"perceiver"` (a resampler with a fixed number of latents) or
            `"direct"`: what the encoder says as it is, through one linear layer where the widths differ, without norm,
            position or modality vector, as encoder-decoders connect their halves.
        vision_connector_size, audio_connector_size (`int`, *optional*):
            Hidden width of the connector (`mlp`, `conv`, `gru`); the decoder's width by default.
        vision_connector_layers, audio_connector_layers (`int`, *optional*, defaults to 1):
            Hidden layers of an `mlp`, convolutions of `conv` (each halves the length), layers of `gru` or `perceiver`.
        vision_latents, audio_latents (`int`, *optional*, defaults to 64): latents of a `perceiver`.
        vision_pooling, audio_pooling (`int`, *optional*, defaults to 1):
            Encoder tokens that are averaged before the connector: squares of so many tokens a side of an image, so
            that 2 leaves a fourth of them, and runs of so many tokens of audio. Not for `"direct"`.
        vision_tags, audio_tags (`int`, *optional*):
            Number of texts of which the likeliest are added to the media tokens of each item, so that a decoder can
            copy the name of what it sees; [`~MMPreTrainedModel.set_tags`] writes them. They cost a linear classifier
            of the mean of the encoder's tokens, and may start from a head that the encoder was trained with. Not for
            `"direct"`.
        vision_tag_length, audio_tag_length (`int`, *optional*, defaults to 4): text tokens of a tag.
        vision_tag_choices, audio_tag_choices (`int`, *optional*, defaults to 1): tags that are shown of each item.
        vision_tag_rank, audio_tag_rank (`int`, *optional*):
            Rank of the classifier's weight, which is then a product of two smaller ones; by default it is whole.
        vision_feature_layers, audio_feature_layers (`list[int]`, *optional*):
            Hidden states of the encoder, by index, whose features stand side by side in each token; by default its
            last state alone. The tokens are those of the first one named, to whose grid maps of another resolution are
            resized; of audio every layer that is named must have as many tokens as the last state, which CLAP's have
            not. Early layers of a convolutional encoder know where things are, late ones what they are; those of an
            encoder that was trained on words know who speaks. For frozen encoders, as layers behind all that are named
            never learn.
        connector_dropout (`float`, *optional*, defaults to 0.0):
            Share of an encoder's features that is dropped before the connector in training, drawn for each image and
            audio window, the same for all its tokens. With few media it keeps the model from recognizing them by
            single features.
        media_position_encoding (`str`, *optional*, defaults to `"sinusoidal"`):
            Position of a media token within its item: `"sinusoidal"`, `"learned"`, `"none"`, or `"sinusoidal_2d"`: of
            the tokens of square images the row and the column, half of the width each, so that a decoder can tell
            where a thing is; of other media as `"sinusoidal"`. It needs an encoder without a class token and, of
            images, a connector that is `"linear"`, `"mlp"` or `"gru"`.
        max_media_positions (`int`, *optional*, defaults to 2048): rows of the learned table of media positions.
        max_media_items (`int`, *optional*):
            Rows of a learned table of the number of an item among its modality's in a row, whose vector is added to
            the item's tokens, so that a text can tell the first image from the second. By default there is none, and
            a text tells items apart by the placeholders between its words alone. Not for `"direct"` connectors.
        text_position_encoding (`str`, *optional*, defaults to `"learned"`):
            `"learned"` as in GPT-2, or `"sinusoidal"`, which has no greatest length.
        modality_embedding (`bool`, *optional*, defaults to `True`):
            Whether a learned vector of the modality is added to media tokens.
        audio_attends_padding (`bool`, *optional*, defaults to `False`):
            Whether the text also sees the tokens of the padding behind an audio window's end, as Whisper's does.
        placeholders (`str`, *optional*, defaults to `"text"`):
            Whether a placeholder is a token of the `"text"`, or `"hidden"`: it only marks the place of its item, has 0
            in the attention mask and takes no position, as is right for a decoder that has never seen one.
        prompt_token_ids (`list[int]`, *optional*):
            What media that come without text are followed by, for a decoder that begins its answers so. Needed with
            hidden placeholders, which leave nothing else to read.
        suppressed_token_ids (`list[int]`, *optional*):
            Tokens that are never generated, beside placeholders, and of which beam search takes no account: those that
            a conversion has added to a trained vocabulary. Take out what the model is to learn to write.
        image_token_id, audio_token_id (`int`, *optional*):
            Placeholder ids: one in the text for each image, one for each audio window. Needed with the modality.
        system_token_id, user_token_id, assistant_token_id, end_token_id (`int`, *optional*):
            Ids of the chat template's role and end-of-turn tokens.
        location_token_id (`int`, *optional*):
            Id of `<loc_0>`, for a model that writes and reads places; `<loc_1>` to `<loc_999>` follow it.
        image_codec_config, audio_codec_config (`PreTrainedConfig` or `dict`, *optional*):
            The codec whose codes the decoder writes, for a model that draws or speaks; see [`add_codec`].
        image_code_range, audio_code_range (`list[int]`, *optional*):
            Ids of the codes: the first, which is the start token's, and the one behind the last. The end token's is
            the second.
        image_code_grid (`list[int]`, *optional*): rows and columns of an image's codes.
        image_codebooks, audio_codebooks (`int`, *optional*, defaults to 1): codebooks of the codec.
        image_code_layout, audio_code_layout (`str`, *optional*, defaults to `"interleaved"`):
            Order of the codes of several codebooks: `"interleaved"`, step by step, or `"delayed"`, as MusicGen's.
        freeze_text, freeze_vision, freeze_audio (`bool`, *optional*, defaults to `False`):
            Which pretrained parts start frozen; of the text its token embeddings too, those of the special tokens
            among them.
        freeze_cross_attention (`bool`, *optional*, defaults to `False`):
            Whether the cross-attention that modalities share starts frozen too, with their `"direct"` connectors, as
            is right where it is pretrained. Other connectors, and the layers of one modality alone, never are.
        frozen_modalities (`list[str]`, *optional*):
            The modalities, by name (`"image"`, `"audio"`), whose connector and whose own cross-attention start frozen
            too: those that a model knew before it was given another one.
        projection_dim (`int`, *optional*):
            Size of the embeddings of [`MMForRetrieval`]; the decoder's width by default.
        retrieval_loss (`str`, *optional*, defaults to `"infonce"`):
            What [`MMForRetrieval`] learns by: `"infonce"`, which picks each row's match among the batch as CLIP does,
            or `"sigmoid"`, which judges each pair by itself as SigLIP does.
        initial_temperature (`float`, *optional*):
            Temperature that the training of [`MMForRetrieval`] starts from; 0.07 for `"infonce"`, 0.1 for `"sigmoid"`.
            It is learned, and never below 0.01.
        matryoshka_dims (`list[int]`, *optional*):
            Numbers of leading dimensions on which the loss of [`MMForRetrieval`] is computed too, beside all of them,
            so that embeddings cut to so many dimensions (`embed(truncate_dim=...)`) still find each other, as in
            [Matryoshka representation learning](https://arxiv.org/abs/2205.13147).
        matryoshka_weights (`list[float]`, *optional*):
            Weight of each of these losses, beside 1 for that of all dimensions; by default 1 for each. The loss is
            their weighted mean.
        causal_lm_weight, masked_lm_weight, matching_weight, contrastive_weight (`float`, *optional*, defaults to 1.0):
            Weights of the losses of [`MMForPreTraining`]; 0 switches an objective off, with all of its cost.
        use_cache (`bool`, *optional*, defaults to `True`): whether generation keeps keys and values.
        tie_word_embeddings (`bool`, *optional*): whether head and embedding are one; as in `text_config` by default.

    Raises:
        ValueError: where a field has a value outside its choices, with the field's name and the choices.
    """

    model_type = "mm"
    sub_configs = SubConfigs()
    keys_to_ignore_at_inference = ["past_key_values"]

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    audio_config: dict | PreTrainedConfig | None = None
    cross_attention_layers: list[int] | None = None
    cross_attention_interval: int = 4
    cross_attention_placement: str = "before"
    vision_cross_attention_layers: list[int] | None = None
    vision_cross_attention_placement: str | None = None
    audio_cross_attention_layers: list[int] | None = None
    audio_cross_attention_placement: str | None = None
    cross_attention_gated: bool = False
    cross_attention_feed_forward: bool = False
    cross_attention_feed_forward_size: int | None = None
    cross_attention_query_gate: bool = False
    cross_attention_token_gate: bool = False
    cross_attention_stand_in: bool = False
    cross_attention_sink: bool = False
    vision_connector: str = "mlp"
    vision_connector_size: int | None = None
    vision_connector_layers: int = 1
    vision_latents: int = 64
    vision_pooling: int = 1
    vision_tags: int | None = None
    vision_tag_length: int = 4
    vision_tag_choices: int = 1
    vision_tag_rank: int | None = None
    vision_feature_layers: list[int] | None = None
    audio_connector: str = "mlp"
    audio_connector_size: int | None = None
    audio_connector_layers: int = 1
    audio_latents: int = 64
    audio_pooling: int = 1
    audio_tags: int | None = None
    audio_tag_length: int = 4
    audio_tag_choices: int = 1
    audio_tag_rank: int | None = None
    audio_feature_layers: list[int] | None = None
    connector_dropout: float = 0.0
    media_position_encoding: str = "sinusoidal"
    max_media_positions: int = 2048
    max_media_items: int | None = None
    text_position_encoding: str = "learned"
    modality_embedding: bool = True
    audio_attends_padding: bool = False
    placeholders: str = "text"
    prompt_token_ids: list[int] | None = None
    suppressed_token_ids: list[int] | None = None
    image_token_id: int | None = None
    audio_token_id: int | None = None
    system_token_id: int | None = None
    user_token_id: int | None = None
    assistant_token_id: int | None = None
    end_token_id: int | None = None
    location_token_id: int | None = None
    image_codec_config: dict | PreTrainedConfig | None = None
    image_code_range: list[int] | None = None
    image_code_grid: list[int] | None = None
    image_codebooks: int = 1
    image_code_layout: str = INTERLEAVED
    audio_codec_config: dict | PreTrainedConfig | None = None
    audio_code_range: list[int] | None = None
    audio_codebooks: int = 1
    audio_code_layout: str = INTERLEAVED
    freeze_text: bool = False
    freeze_vision: bool = False
    freeze_audio: bool = False
    freeze_cross_attention: bool = False
    frozen_modalities: list[str] | None = None
    projection_dim: int | None = None
    retrieval_loss: str = INFO_NCE
    initial_temperature: float | None = None
    matryoshka_dims: list[int] | None = None
    matryoshka_weights: list[float] | None = None
    causal_lm_weight: float | int = 1.0
    masked_lm_weight: float | int = 1.0
    matching_weight: float | int = 1.0
    contrastive_weight: float | int = 1.0
    use_cache: bool = True
    tie_word_embeddings: bool | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if IS_REMOTE_CODE:
            enter_names(self.model_type, MODEL_CLASSES)
        else:
            import_module(".registration", __package__).register_classes()
        self.text_config = text_sub_config(self.text_config)
        for modality in MODALITIES.values():
            for field, default in modality.config_defaults.items():
                if field not in vars(self):  # of a modality that a user has registered
                    setattr(self, field, kwargs.pop(field, default))
            config = encoder_sub_config(modality.config_field, getattr(self, modality.config_field))
            setattr(self, modality.config_field, config)
        for field in CODEC_FIELDS:
            setattr(self, field, codec_sub_config(field, getattr(self, field)))
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = self.text_config.tie_word_embeddings
        self.text_config.tie_word_embeddings = self.tie_word_embeddings
        if self.cross_attention_layers is None:
            check_positive("cross_attention_interval", self.cross_attention_interval)
            self.cross_attention_layers = every_nth(self.cross_attention_interval, self.text_config.n_layer)
        check_registered(kwargs)
        super().__post_init__(**kwargs)
        self.validate_fields()

    def __getattr__(self, name: str) -> Any:
        """Return the default of a field of a modality that was registered after this config was made."""
        if name in (defaults := config_defaults()):
            return defaults[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Values given on top of a file are there at construction, so that what follows from them follows, checked."""
        # `dtype` may be "auto", which means nothing at construction: `pipeline` hands it to tokenizers, they to us.
        names = {*(field.name for field in fields(cls)), *config_defaults()} - {"dtype"}
        given = {name: kwargs.pop(name) for name in list(kwargs) if name in names}
        config_dict = {**config_dict}
        for name, value in given.items():
            nested = isinstance(value, dict) and isinstance(config_dict.get(name), dict)
            config_dict[name] = {**config_dict[name], **value} if nested else value
        text = given.get("text_config")
        new_depth = isinstance(text, PreTrainedConfig) or (
            isinstance(text, dict) and {"n_layer", "num_hidden_layers"} & set(text)
        )
        if ("cross_attention_interval" in given or new_depth) and "cross_attention_layers" not in given:
            config_dict.pop("cross_attention_layers", None)  # they follow from the interval and the decoder's depth
        return super().from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields; PEFT asks for them just before it looks up which modules to adapt by default."""
        inside = [f"{prefix}crossattention.c_proj" for prefix in ("", *(f"{each.tower}_" for each in self.modalities))]
        enter_adapter_defaults(self.model_type, "gpt2", {"c_attn": ["q_attn", "cross_attn.c_proj", *inside]})
        absent = [each for each in MODALITIES.values() if each not in self.modalities]
        unused = {field for each in absent for field in each.config_defaults} - {each.name for each in fields(self)}
        return {name: value for name, value in super().to_dict().items() if name not in unused}

    @property
    def custom_pipelines(self) -> dict[str, dict]:
        """
        Return the pipelines that `transformers.pipeline` loads from beside the weights.

        A copy, because it writes into it. The installed package registers its pipelines, which then need no
        `trust_remote_code`.
        """
        ours = {task: {"impl": impl, "pt": [auto_name]} for task, (impl, auto_name) in PIPELINES.items()}
        return {**(ours if IS_REMOTE_CODE else {}), **copy.deepcopy(self.__dict__.get("custom_pipelines", {}))}

    @custom_pipelines.setter
    def custom_pipelines(self, value: dict[str, dict]) -> None:
        self.__dict__["custom_pipelines"] = value  # saved with the config: pipelines that a user has registered

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Save the config as transformers does, the code of all classes, and what sentence-transformers needs."""
        os.makedirs(save_directory, exist_ok=True)
        if RETRIEVAL.split(".")[1] in (self.architectures or ()):
            write_sentence_files(self, save_directory)
        for path in SAVED_CLASSES:
            if (found := self.find_class(path)) is not None:
                custom_object_save(found, save_directory)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def find_class(self, path: str) -> type | None:
        """
        Import one of our classes, named `module.name`, from the code that this config is of.

        These modules are not imported above: those who load a model alone with remote code would then need the
        libraries of images and audio, and the models import this module.
        """
        if not IS_REMOTE_CODE:
            module, name = path.split(".")
            return getattr(import_module(f".{module}", __package__), name)
        try:  # the loader keeps code from the Hub in a folder named after the commit
            revision = Path(__file__).parent.name
            return get_class_from_dynamic_module(path, self._name_or_path, revision=revision)
        except (OSError, ValueError, ImportError) as error:
            logger.warning(
                f"{path} could not be loaded from {self._name_or_path!r}, so its code is not saved ({error}). Copy it "
                "from the repository of the model if the new folder is to be used without this package."
            )
            return None

    @property
    def modalities(self) -> list[Modality]:
        """The modalities that this model has an encoder for."""
        return [each for each in MODALITIES.values() if getattr(self, each.config_field) is not None]

    @property
    def placeholder_ids(self) -> list[int]:
        """The ids of all placeholders that are set."""
        ids = [getattr(self, modality.token_id_field) for modality in MODALITIES.values()]
        return [token_id for token_id in ids if token_id is not None]

    def validate_fields(self) -> None:
        """Check every field against its choices, at construction and again when the config is saved."""
        check_choice("media_position_encoding", self.media_position_encoding, MEDIA_POSITION_ENCODINGS)
        check_choice("text_position_encoding", self.text_position_encoding, TEXT_POSITION_ENCODINGS)
        check_choice("placeholders", self.placeholders, PLACEHOLDER_KINDS)
        check_positive("cross_attention_interval", self.cross_attention_interval)
        check_positive("max_media_positions", self.max_media_positions)
        if self.max_media_items is not None:
            check_positive("max_media_items", self.max_media_items)
        if not 0 <= self.connector_dropout < 1:
            raise ValueError(f"connector_dropout must be from 0 to below 1, got {self.connector_dropout}.")
        for tower in (modality.tower for modality in MODALITIES.values()):
            check_choice(f"{tower}_connector", getattr(self, f"{tower}_connector"), CONNECTORS)
            for name in ("connector_layers", "connector_size", "latents", "pooling", *TAG_FIELDS):
                field = f"{tower}_{name}"
                if (value := getattr(self, field)) is not None:
                    check_positive(field, value)
            self._check_tags(tower)
            layers = getattr(self, field := f"{tower}_feature_layers", None)
            if layers is not None and (not layers or len(set(layers)) < len(layers)):
                raise ValueError(
                    f"{field} must name distinct hidden states of the encoder, at least one, got {layers}."
                )
        self._check_grids()
        if self.cross_attention_feed_forward_size is not None:
            check_positive("cross_attention_feed_forward_size", self.cross_attention_feed_forward_size)
        self._check_retrieval()
        self._check_objectives()
        for name in self.frozen_modalities or ():
            check_choice("frozen_modalities", name, tuple(modality.name for modality in self.modalities))
        if any(token_id < 0 for token_id in self.suppressed_token_ids or ()):
            raise ValueError(f"suppressed_token_ids must not be negative, got {self.suppressed_token_ids}.")
        self._check_cross_attention()
        self._check_token_ids()

    def _check_tags(self, tower: str) -> None:
        if (tags := getattr(self, f"{tower}_tags")) is None:
            return
        if getattr(self, f"{tower}_connector") == DIRECT:
            raise ValueError(
                f"{tower}_tags is {tags}, but {tower}_connector is {DIRECT!r}, which adds nothing to what the encoder "
                f"says. Use another connector, or leave {tower}_tags out."
            )
        if (choices := getattr(self, f"{tower}_tag_choices")) > tags:
            raise ValueError(
                f"{tower}_tag_choices is {choices}, but {tower}_tags is {tags}. Show no more tags than there are."
            )

    def _check_grids(self) -> None:
        """Check that tokens whose rows and columns positions encode are still a grid behind the connector."""
        for modality in self.modalities if self.media_position_encoding == SINUSOIDAL_2D else ():
            field = f"{modality.tower}_connector"
            if not modality.has_frames and (kind := getattr(self, field)) not in CONNECTORS_OF_GRIDS:
                raise ValueError(
                    f"media_position_encoding is {SINUSOIDAL_2D!r}, but {field} is {kind!r}, which has no rows and "
                    f"columns of tokens to add it to. Use {', '.join(map(repr, CONNECTORS_OF_GRIDS))}, or another "
                    "position encoding."
                )

    def _check_retrieval(self) -> None:
        check_choice("retrieval_loss", self.retrieval_loss, tuple(INITIAL_TEMPERATURES))
        if self.projection_dim is not None:
            check_positive("projection_dim", self.projection_dim)
        if self.initial_temperature is not None and not LOWEST_TEMPERATURE <= self.initial_temperature < math.inf:
            raise ValueError(
                f"initial_temperature must be finite and at least {LOWEST_TEMPERATURE}, got "
                f"{self.initial_temperature}."
            )
        dims, weights, size = self.matryoshka_dims or [], self.matryoshka_weights, self.projection_dim
        size = self.text_config.n_embd if size is None else size
        if sorted(set(dims)) != dims or any(not 1 <= each < size for each in dims):
            raise ValueError(
                f"matryoshka_dims must be ascending, distinct numbers of dimensions from 1 to {size - 1}, fewer than "
                f"an embedding has, got {dims}."
            )
        if weights is not None and (len(weights) != len(dims) or any(not 0 < each < math.inf for each in weights)):
            raise ValueError(
                f"matryoshka_weights must be a finite number above 0 for each of the {len(dims)} matryoshka_dims, got "
                f"{weights}."
            )

    def _check_objectives(self) -> None:
        weights = {field: getattr(self, field) for field in OBJECTIVE_WEIGHTS.values()}
        for field, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"{field} must be finite and not negative, got {weight}.")
        if not any(weights.values()):
            raise ValueError(f"{', '.join(weights)} are all 0, so nothing would be learned. Set one above 0.")

    def _check_cross_attention(self) -> None:
        check_choice("cross_attention_placement", self.cross_attention_placement, CROSS_ATTENTION_PLACEMENTS)
        shared = []
        for modality in MODALITIES.values():
            if (placement := getattr(self, modality.placement_field)) is not None:
                check_choice(modality.placement_field, placement, CROSS_ATTENTION_PLACEMENTS)
            layers = getattr(self, modality.layers_field)
            if layers is not None:
                self._check_layers(modality.layers_field, layers, [modality])
            elif placement is not None:
                raise ValueError(
                    f"{modality.placement_field} is {placement!r}, but {modality.plural} share the others' "
                    f"cross-attention. Name their own blocks by {modality.layers_field}, or set "
                    "cross_attention_placement."
                )
            elif modality in self.modalities:
                shared.append(modality)
        self._check_layers("cross_attention_layers", self.cross_attention_layers or [], shared)
        placements = {self.cross_attention_placement} if shared or not self.modalities else set()
        own = [each for each in self.modalities if each not in shared]
        placements |= {getattr(self, each.placement_field) or self.cross_attention_placement for each in own}
        for field in BEFORE_ALONE:
            if getattr(self, field) and "before" not in placements:
                raise ValueError(
                    f"{field} belongs to cross-attention before decoder blocks, but all of it stands inside them. "
                    f"Leave {field} out, or set cross_attention_placement='before'."
                )

    def _check_layers(self, field: str, layers: list[int], readers: list[Modality]) -> None:
        num_layers = self.text_config.n_layer
        if sorted(set(layers)) != list(layers) or any(not 0 <= layer < num_layers for layer in layers):
            raise ValueError(
                f"{field} must be ascending, distinct indices of decoder blocks from 0 to {num_layers - 1}, got "
                f"{layers}."
            )
        if not layers and set(readers) & set(self.modalities):
            fields = " and ".join(modality.config_field for modality in readers)
            raise ValueError(
                f"{field} is empty, so the decoder could not see any media. Name at least one block, or leave out "
                f"{fields}."
            )

    def _check_token_ids(self) -> None:
        for modality in self.modalities:
            if getattr(self, modality.token_id_field) is None:
                encoder = type(getattr(self, modality.config_field)).__name__
                raise ValueError(
                    f"{modality.token_id_field} must be set when the model has a {encoder} encoder. "
                    "MMConfig.from_text_vision_audio_configs appends the special tokens to the vocabulary and sets it."
                )
        owner: dict[int, str] = {}
        for field in dict.fromkeys((*SPECIAL_TOKEN_FIELDS, *(each.token_id_field for each in MODALITIES.values()))):
            token_id = getattr(self, field)
            if token_id is None:
                continue
            if token_id < 0:
                raise ValueError(f"{field} must not be negative, got {token_id}.")
            if token_id in owner:
                raise ValueError(f"{field} and {owner[token_id]} are both {token_id}. Each special token needs an id.")
            owner[token_id] = field
        self._check_locations(owner)
        taken = {field: (token_id, token_id + 1) for token_id, field in owner.items()}
        if (first := self.location_token_id) is not None:
            taken["location_token_id"] = (first, first + LOCATION_BINS)
        check_code_ranges(self, taken)

    def _check_locations(self, owner: dict[int, str]) -> None:
        """Check that no other token of the config, by its id, lies among the location tokens."""
        if (first := self.location_token_id) is None:
            return
        if first < 0:
            raise ValueError(f"location_token_id must not be negative, got {first}.")
        if inside := [field for token_id, field in owner.items() if first <= token_id < first + LOCATION_BINS]:
            raise ValueError(
                f"{inside[0]} lies among the location tokens, {first} to {first + LOCATION_BINS - 1}. Each special "
                "token needs an id."
            )

    @classmethod
    def from_text_vision_audio_configs(
        cls,
        text: PreTrainedConfig,
        vision: PreTrainedConfig | None = None,
        audio: PreTrainedConfig | None = None,
        **kwargs: Any,
    ) -> "MMConfig":
        """
        Join the configs of three components, which are copied, never changed.

        Unless `image_token_id` (or `audio_token_id`) is given, the special tokens are appended to the vocabulary, in
        the order of `SPECIAL_TOKENS`, which is the order in which [`MMProcessor`] adds them to the tokenizer.

        Args:
            text: a `GPT2Config`.
            vision, audio: the encoders' configs, or `None`.
            **kwargs: fields of [`MMConfig`]; configs of registered modalities by their tower.
        """
        text = text_sub_config(copy.deepcopy(text))
        registered = {each.tower: each.config_field for each in MODALITIES.values() if each.tower in kwargs}
        kwargs |= {field: copy.deepcopy(kwargs.pop(tower)) for tower, field in registered.items()}
        if all(kwargs.get(field) is None for field in PLACEHOLDER_FIELDS):
            first = text.vocab_size
            more = [each.token_id_field for each in MODALITIES.values() if kwargs.get(each.config_field)]
            fields = (*SPECIAL_TOKEN_FIELDS, "pad_token_id", *more)
            ids = {field: first + i for i, field in enumerate(fields)}
            text.vocab_size = first + len(fields)
            if text.pad_token_id is None:
                text.pad_token_id = ids["pad_token_id"]
            del ids["pad_token_id"]
            kwargs = {**ids, **kwargs}
        return cls(text_config=text, vision_config=copy.deepcopy(vision), audio_config=copy.deepcopy(audio), **kwargs)


def first_location_id(vocabulary: Mapping[str, int]) -> int | None:
    """
    Return the id of `<loc_0>` in a vocabulary, None if it has no location tokens.

    Raises:
        ValueError: for a vocabulary that has not all of them, one after the other.
    """
    ids = [vocabulary.get(token) for token in LOCATION_TOKENS]
    if not any(each is not None for each in ids):
        return None
    first = ids[0]
    if first is None or ids != list(range(first, first + LOCATION_BINS)):
        raise ValueError(
            f"The vocabulary has {sum(each is not None for each in ids)} of the {LOCATION_BINS} location tokens, or "
            f"they do not follow each other. Use a tokenizer without them, or with {LOCATION_TOKENS[0]} to "
            f"{LOCATION_TOKENS[-1]} in order."
        )
    return first


def every_nth(interval: int, num_layers: int) -> list[int]:
    """Return the last of each run of `interval` blocks, or the last block of a shorter decoder."""
    return list(range(min(interval, num_layers) - 1, num_layers, interval))


def text_sub_config(config: dict | PreTrainedConfig | None) -> GPT2Config:
    """Return the given `text_config` as a `GPT2Config`."""
    if config is None:
        return GPT2Config()
    if isinstance(config, dict):
        config = AutoConfig.for_model(**{"model_type": "gpt2", **config})
    if not isinstance(config, GPT2Config):
        raise ValueError(
            f"text_config must be of the GPT-2 family (model_type 'gpt2'), got model_type {config.model_type!r}."
        )
    return config


def encoder_sub_config(field: str, config: dict | PreTrainedConfig | None) -> PreTrainedConfig | None:
    """Return an encoder's config, alone or as a part of the given one, see [`part_of_config`]."""
    config = codec_sub_config(field, config)
    return None if config is None else part_of_config(config, field)


def codec_sub_config(field: str, config: dict | PreTrainedConfig | None) -> PreTrainedConfig | None:
    """Return the config of a codec, of which a dict names the model type."""
    if isinstance(config, dict):
        if "model_type" not in config:
            raise ValueError(f"{field} is a dict without a model_type; name one that AutoConfig knows, such as 'vit'.")
        fields = {name: value for name, value in config.items() if name != "model_type"}
        is_own = config["model_type"] == MMCodecConfig.model_type  # known to AutoConfig in an installed package alone
        config = MMCodecConfig(**fields) if is_own else AutoConfig.for_model(config["model_type"], **fields)
    return config


def part_of_config(config: PreTrainedConfig, field: str) -> PreTrainedConfig:
    """Return the part of a config for an encoder: of two towers the one named `field`, of a CTC model its encoder."""
    return getattr(config, field, None) or getattr(config, "encoder_config", None) or config


def check_registered(unknown: dict[str, Any]) -> None:
    """
    Check that no encoder is left out because its modality is not registered.

    Args:
        unknown: values for which there are no fields

    Raises:
        ValueError: for the config of an encoder among them, with its field.
    """
    for field, value in unknown.items():
        tower = field.removesuffix("_config")
        if value is not None and field != tower and f"{tower}_connector" in unknown:
            raise ValueError(
                f"{field} is the config of an encoder whose modality is not registered here. Register its row and its "
                "encoder before: register_modality(Modality(...)), AutoConfig.register and AutoModel.register, with "
                f"tower={tower!r}."
            )


def check_choice(field: str, value: Any, choices: tuple) -> None:
    if value not in choices:
        raise ValueError(f"{field} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def check_positive(field: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{field} must be at least 1, got {value}.")


# Saving a config or a model copies the code that defines it, so that the folder loads without this package.
MMConfig.register_for_auto_class()

__all__ = ["MMConfig"]
