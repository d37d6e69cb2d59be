# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Conversion: encoder-decoders of transformers become joint models with the same weights and the same answers."""

from copy import deepcopy
from dataclasses import fields
from typing import Any

from transformers import AutoConfig, GenerationConfig, GPT2Config
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from .compat import tells_mask
from .configuration_mm import DIRECT, HIDDEN, SPECIAL_TOKEN_FIELDS, MMConfig
from .converted_weights import (
    SOURCES,
    WHISPER,
    Original,
    encoder_decoder_weights,
    load_original,
    original_of,
    read_captioner,
    whisper_weights,
)
from .encoder_padding import padding_rule
from .encoder_shapes import encoder_class_of
from .joining import (
    LOADING_ARGUMENTS,
    MODEL_ARGUMENTS,
    Component,
    Joint,
    fit_to_tokenizer,
    load_state,
    refuse_unknown,
    special_token_ids,
    with_rows,
)
from .loading import count, shortened
from .modalities import MODALITIES, Modality

logger = logging.get_logger(__name__)

NORM_BEHIND = "normalizes behind each branch, where GPT-2 does so before it"
# Why a decoder cannot become a GPT-2.
OBSTACLES = {
    **dict.fromkeys(
        ("bart", "bert", "camembert", "electra", "marian", "roberta", "trocr", "xlm-roberta"), NORM_BEHIND
    ),
    **dict.fromkeys(("blenderbot", "mbart", "m2m_100", "nllb"), "scales or normalizes its embeddings"),
    **dict.fromkeys(("t5", "mt5", "umt5"), "has relative positions"),
}
CONFIG_ARGUMENTS = (
    "prompt_token_ids",
    *(field.name for field in fields(MMConfig) if field.name.startswith("freeze_")),
)


def convert_pretrained(cls: type[Joint], source: Component, *, tokenizer: Any = None, **kwargs: Any) -> Joint:
    """
    Convert an encoder-decoder, so that logits and generated tokens are those of the original.

    Sources are `VisionEncoderDecoderModel` and `SpeechEncoderDecoderModel` with a GPT-2 decoder, and
    `WhisperForConditionalGeneration`. The prompt is a placeholder for each image or audio window, which the text does
    not see, then `config.prompt_token_ids`: the original's start token and the tokens that it forces. A Whisper of
    many languages, which detects the language of each clip, is told English unless its generation config names one.

    Encoders that mix padding into tokens, as those with group norm (`wav2vec2-base`) or an adapter, compute each clip
    without its padding, which equals the original run clip by clip, not its padded batches.

    Args:
        cls: the joint class to build
        source: a Hub id, a local path or a model in memory, which is not changed
        tokenizer: a tokenizer or processor with our special tokens, as `MMProcessor.from_encoder_decoder` makes it;
            without one their ids are those behind the last row of the original's table
        **kwargs: `prompt_token_ids` and `freeze_text`, ... of [`MMConfig`]; `dtype`, `attn_implementation`,
            `device_map`; and arguments of loading (`cache_dir`, `token`, `revision`, ...)

    Returns:
        the model in evaluation mode.

    Raises:
        ValueError: for a model that cannot be converted, with the reason; for an unknown argument, with the nearest
            valid name; for a special token whose row is another token's; and for weights that are missing.
    """
    known = (*LOADING_ARGUMENTS, *MODEL_ARGUMENTS, *CONFIG_ARGUMENTS, "tokenizer")
    refuse_unknown("from_encoder_decoder", kwargs, known)
    loading = {name: kwargs.pop(name) for name in LOADING_ARGUMENTS if name in kwargs}
    arguments = {name: kwargs.pop(name) for name in MODEL_ARGUMENTS if name in kwargs}
    config = check_convertible(source, loading)
    how = (cls, config, tokenizer, kwargs, arguments)
    if isinstance(source, PreTrainedModel):
        model, missing = build_joint(original_of(source), *how, is_shared=True)
    else:
        loading |= {"dtype": arguments["dtype"]} if "dtype" in arguments else {}
        read = read_captioner(source, config, loading)
        model, missing = build_joint(read or original_of(load_original(source, config, loading)), *how)
        if read and missing:  # only its class knows older names
            model, missing = build_joint(original_of(load_original(source, config, loading)), *how)
    if missing:
        raise ValueError(
            f"{count(missing)} missing in the given model: {shortened(missing)}. Pass a model whose encoder is of the "
            "class that AutoModel has for its config."
        )
    modality = modality_of(encoder_config(config))
    if padding_rule(getattr(model.base_model, modality.tower_attribute)) == "length":
        logger.warning(
            "The encoder mixes padding into the tokens of audio, by a norm over time or by convolutions. Clips of "
            "unlike lengths in a batch are encoded without padding, as the original encodes them one by one; its "
            "padded batches differ."
        )
    return model.eval()


def build_joint(
    original: Original,
    cls: type[Joint],
    config: PreTrainedConfig,
    tokenizer: Any,
    given: dict[str, Any],
    arguments: dict[str, Any],
    is_shared: bool = False,
) -> tuple[Joint, list[str]]:
    """
    Build the joint model of an original, whose weights are taken out of it.

    Memory holds each weight once: those that are transposed or enlarged replace the original's.

    Args:
        original: the parts of the source
        config: of the source
        given: further fields of the joint config
        arguments: see [`joining.load_state`]
        is_shared: whether the weights belong to a model of the caller's, which must not change with ours

    Returns:
        the model, and the names of weights that the original lacks.
    """
    modality, weights = modality_of(encoder_config(config)), original.weights
    pointers = {tensor.data_ptr() for tensor in weights.values()} if is_shared else set()
    joint = converted_config(cls.config_class, config, original.generation, original.is_tied, tokenizer, given)
    rename = whisper_weights if config.model_type == WHISPER else encoder_decoder_weights
    state = rename(weights, modality)
    for name in ("model.language_model.wte.weight", *(() if original.is_tied else ("lm_head.weight",))):
        if name in state:
            state[name] = with_rows(state[name], joint.text_config.vocab_size)
    if original.is_tied:
        state.pop("lm_head.weight", None)
    if is_shared:  # the loader takes tensors as they are
        state = {name: weight.clone() if weight.data_ptr() in pointers else weight for name, weight in state.items()}
    model, report = load_state(cls, joint, state, arguments)
    model.generation_config = converted_generation_config(original.generation, joint, modality)
    return model, sorted(report["missing_keys"])


def check_convertible(source: Component, loading: dict[str, Any]) -> PreTrainedConfig:
    """Return the config of a source; raise a `ValueError` with the reason if it cannot be converted."""
    is_model = isinstance(source, PreTrainedModel)
    config = source.config if is_model else AutoConfig.from_pretrained(source, **loading)
    name = type(source).__name__ if is_model else source
    kind = config.model_type
    if kind not in SOURCES:
        raise ValueError(refusal(f"{name} is of model_type {kind!r}", OBSTACLES.get(kind)))
    expected = SOURCES[kind]
    if is_model and type(source).__name__ != expected:
        raise ValueError(f"Of model_type {kind!r} a {expected} is converted, got {name}. Pass the whole model.")
    if kind == WHISPER:
        if config.scale_embedding:
            raise ValueError(
                f"{name} multiplies its embeddings by the root of their width (scale_embedding=True), but not in the "
                "head that shares them. No checkpoint of OpenAI does so, and GPT-2 has no such factor."
            )
        return config
    decoder, encoder = config.decoder, config.encoder
    if decoder.model_type != "gpt2":
        what = f"The decoder of {name} is of model_type {decoder.model_type!r}"
        raise ValueError(refusal(what, OBSTACLES.get(decoder.model_type)))
    if not decoder.add_cross_attention:
        raise ValueError(f"The decoder of {name} has no cross-attention (add_cross_attention is False in its config).")
    output_width = getattr(encoder, "output_hidden_size", encoder.hidden_size)
    if getattr(encoder, "add_adapter", False) and output_width != encoder.hidden_size:
        raise ValueError(
            f"The encoder of {name} has an adapter of another width (output_hidden_size {output_width}, hidden_size "
            f"{encoder.hidden_size}). Only adapters that keep the width are converted."
        )
    return config


def refusal(what: str, obstacle: str | None) -> str:
    """Return the message for a model that cannot be converted."""
    reason = f", which {obstacle}" if obstacle else ""
    return (
        f"{what}{reason}. VisionEncoderDecoderModel and SpeechEncoderDecoderModel with a GPT-2 decoder and "
        "WhisperForConditionalGeneration can be converted. Of others take the encoder, join it to a GPT-2 "
        "(from_text_vision_audio_pretrained), and train."
    )


def encoder_config(original: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config of a source's encoder; a Whisper's is that of the whole."""
    return original if original.model_type == WHISPER else original.encoder


def modality_of(encoder: PreTrainedConfig) -> Modality:
    """Return the modality that an encoder reads; raise a `ValueError` if it is none of ours."""
    name = encoder_class_of(encoder).main_input_name
    for modality in MODALITIES.values():
        if name in modality.inputs:
            return modality
    raise ValueError(f"The encoder is a {type(encoder).__name__}, which reads {name}, an input of no modality.")


def converted_config(
    config_class: type[MMConfig],
    original: PreTrainedConfig,
    generation: GenerationConfig,
    is_tied: bool,
    tokenizer: Any,
    given: dict[str, Any],
) -> MMConfig:
    """Return the joint config of a source with these configs; `given` are further fields of it."""
    encoder = encoder_config(original)
    modality = modality_of(encoder)
    text = whisper_text_config(original) if original.model_type == WHISPER else deepcopy(original.decoder)
    text.add_cross_attention = text.is_decoder = False  # of GPT-2's own class, which is not used
    text.tie_word_embeddings = is_tied
    for field in ("bos_token_id", "eos_token_id", "pad_token_id"):
        known = (getattr(each, field, None) for each in (generation, original, text))
        setattr(text, field, next((token_id for token_id in known if token_id is not None), None))
    if text.pad_token_id is None:
        text.pad_token_id = text.eos_token_id[0] if isinstance(text.eos_token_id, list) else text.eos_token_id
    num_rows = text.vocab_size
    if tokenizer is None:
        tokens = {field: num_rows + number for number, field in enumerate(SPECIAL_TOKEN_FIELDS)}
        text.vocab_size += len(tokens) + 1  # and one for padding, which a processor may add
    else:
        tokens = special_token_ids(tokenizer)
        check_new(tokens, num_rows, tokenizer)
        tokens.pop("location_token_id", None)  # what is converted never writes them before `add_location_tokens`
    padding = {modality.padding_field: sees_padding(encoder)} if modality.has_frames else {}
    config = config_class.from_text_vision_audio_configs(
        text,
        **{modality.tower: encoder},
        **{
            "cross_attention_layers": list(range(text.n_layer)),
            "cross_attention_placement": "inside",
            f"{modality.tower}_connector": DIRECT,
            "placeholders": HIDDEN,
            "prompt_token_ids": prompt_of(original, generation),
            **padding,
            **tokens,
            **given,
        },
    )
    if tokenizer is not None:
        fit_to_tokenizer(config, tokenizer)
    config.suppressed_token_ids = list(range(num_rows, config.text_config.vocab_size))
    return config


def whisper_text_config(original: PreTrainedConfig) -> GPT2Config:
    """Return the GPT-2 that a Whisper's decoder is."""
    return GPT2Config(
        vocab_size=original.vocab_size,
        n_positions=original.max_target_positions,
        n_embd=original.d_model,
        n_layer=original.decoder_layers,
        n_head=original.decoder_attention_heads,
        n_inner=original.decoder_ffn_dim,
        activation_function=original.activation_function,
        resid_pdrop=original.dropout,
        embd_pdrop=original.dropout,
        attn_pdrop=original.attention_dropout,
        initializer_range=original.init_std,
        bos_token_id=original.bos_token_id,
        eos_token_id=original.eos_token_id,
        pad_token_id=original.pad_token_id,
    )


def check_new(tokens: dict[str, int], num_rows: int, tokenizer: Any) -> None:
    """
    Check that no special token takes the row of another one.

    A tokenizer may lack tokens that the table has rows for, as Whisper's lacks those of times, and then numbers what
    is added to it from there.

    Raises:
        ValueError: for a token whose row the original has, unless it belongs to the tokenizer's own vocabulary.
    """
    own = getattr(tokenizer, "tokenizer", tokenizer).vocab_size
    for field, token_id in tokens.items():
        if own <= token_id < num_rows:
            raise ValueError(
                f"The tokenizer's {field} is {token_id}, but the original has a row for another token there: its "
                f"table has {num_rows} rows. Build the processor with MMProcessor.from_encoder_decoder, or add the "
                "tokens that the tokenizer lacks (Whisper's times, <|0.00|> to <|30.00|>) before the special ones."
            )


def sees_padding(encoder: PreTrainedConfig) -> bool:
    """Return whether an encoder-decoder attends to the padding of audio: some encoders tell it no mask."""
    return not tells_mask(encoder_class_of(encoder))


def prompt_of(original: PreTrainedConfig, generation: GenerationConfig) -> list[int]:
    """
    Return the tokens that an original begins an answer with: its start token and those that it forces.

    Raises:
        ValueError: if no start token is known.
    """
    known = (getattr(each, "decoder_start_token_id", None) for each in (generation, original))
    start = next((token_id for token_id in (*known, generation.bos_token_id) if token_id is not None), None)
    if not isinstance(start, int):
        raise ValueError(f"The start token of answers must be one id, got {start}. Set config.decoder_start_token_id.")
    pairs = getattr(generation, "forced_decoder_ids", None) or getattr(original, "forced_decoder_ids", None) or []
    forced = [token_id for _, token_id in sorted(pairs, key=lambda pair: pair[0]) if token_id is not None]
    if original.model_type == WHISPER:
        forced = whisper_tokens(generation, forced)
    elif generation.forced_bos_token_id is not None:
        forced = [generation.forced_bos_token_id, *forced]
    return [start, *forced]


def whisper_tokens(generation: GenerationConfig, forced: list[int]) -> list[int]:
    """Return a Whisper's tokens of language and task, if it has several, and of an answer without times."""
    languages: dict[str, int] = getattr(generation, "lang_to_id", None) or {}
    tasks: dict[str, int] = getattr(generation, "task_to_id", None) or {}
    if languages:
        language, task = getattr(generation, "language", None), getattr(generation, "task", None)
        named = [token_id for token_id in forced if token_id in languages.values()]
        if language:
            named = [languages[language_token(language)]]
        wanted = [token_id for token_id in forced if token_id in tasks.values()]
        if task or not wanted:
            wanted = [tasks[task or "transcribe"]] if tasks else []
        forced = [*(named or [languages.get("<|en|>", min(languages.values()))]), *wanted]
    without_times = getattr(generation, "no_timestamps_token_id", None)
    return forced if without_times is None or without_times in forced else [*forced, without_times]


def language_token(language: str) -> str:
    """Return Whisper's token of a language, from its name, code or token."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    code = language.lower().strip("<|>")
    return f"<|{TO_LANGUAGE_CODE.get(code, code)}|>"


def converted_generation_config(original: GenerationConfig, config: MMConfig, modality: Modality) -> GenerationConfig:
    """
    Return an original's generation config without what the prompt holds now, and with room for a placeholder.

    That of speech says, as `prompts.set_prompts` does, that there is nothing to ask for, and one window at a time.
    """
    generation = deepcopy(original)
    generation._from_model_config = False  # one of a model's config would lose what it does not know when it is loaded
    for field in ("decoder_start_token_id", "forced_decoder_ids", "forced_bos_token_id"):
        if hasattr(generation, field):
            setattr(generation, field, None)
    for field in ("max_length", "min_length"):
        if getattr(generation, field):
            setattr(generation, field, getattr(generation, field) + 1)
    for field in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(generation, field, getattr(config.text_config, field))
    if modality.has_frames:
        languages = getattr(generation, "lang_to_id", None) or ("<|en|>",)
        generation.transcription_prompts = {token.strip("<|>"): "" for token in languages}
        generation.max_windows = 1
    return generation
