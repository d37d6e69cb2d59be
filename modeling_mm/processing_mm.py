# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The processor: text, pictures and sounds in, the model's tensors out."""

import math
import os
from collections.abc import Callable
from typing import Any

from transformers.feature_extraction_utils import BatchFeature
from transformers.models.auto.feature_extraction_auto import AutoFeatureExtractor
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.tokenization_auto import AutoTokenizer
from transformers.processing_utils import MultiModalData, ProcessingKwargs, ProcessorMixin, Unpack
from transformers.utils import logging
from transformers.utils.chat_template_utils import render_jinja_template

from .audio import (
    DEFAULT_WINDOW_SECONDS,
    FRAME_SECONDS,
    check_rate,
    cut_into_windows,
    extract_features,
    is_sound,
    lacks_rate,
    load_audio,
    window_length,
)
from .chat import (
    add_assistant_masks,
    add_named_tokens,
    collect_sources,
    default_chat_template,
    normalize_conversations,
    option_names,
    pad_left_unless_told,
    pick_option,
    pick_template,
    set_option,
)
from .compat import mark_control_tokens
from .configuration_mm import AUDIO_TOKEN, IMAGE_TOKEN
from .images import is_picture, load_image
from .placeholders import (
    Rows,
    check_counts,
    convert,
    count_placeholders,
    load_rows,
    make_placeholder_rows,
    pad_rows,
    place_placeholders,
    split_by_row,
)

logger = logging.get_logger(__name__)

AUTO_CLASSES = {
    "image_processor": AutoImageProcessor,
    "feature_extractor": AutoFeatureExtractor,
    "tokenizer": AutoTokenizer,
}
# Text options that would cut or pad sounds too, were they handed on; sounds are cut into windows instead.
WINDOW_OPTIONS = (
    "padding",
    "max_length",
    "truncation",
    "pad_to_multiple_of",
    "return_attention_mask",
    "return_tensors",
)


class MMProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    """Options of [`MMProcessor`]: those of its parts, in `text_kwargs`, `images_kwargs`, `audio_kwargs` or flat."""

    _defaults = {}  # type: ignore[misc, var-annotated]  # older transformers look for it


class PartNames:
    """`MMProcessor.get_attributes()` names the parts a processor can have; on an instance, those that it has."""

    def __get__(self, instance: Any, owner: type) -> Callable[[], list[str]]:
        return lambda: [name for name in AUTO_CLASSES if instance is None or getattr(instance, name, None) is not None]


class MMProcessor(ProcessorMixin):
    r"""
    Turns text, pictures and sounds into what [`MMModel`] reads.

    Args:
        image_processor (*optional*): the vision encoder's image processor; None for a model that does not see.
        feature_extractor (*optional*):
            The audio encoder's feature extractor; None for a model that does not hear. Log-mel (Whisper), filter
            bank (AST) and raw-wave (wav2vec2, HuBERT, WavLM) extractors are known; others work if they return an
            attention mask.
        tokenizer: a fast tokenizer. The placeholder and role tokens that it lacks are added to it.
        chat_template (`str`, *optional*): the template of `apply_chat_template`; our own by default.
        audio_window_seconds (`float`, *optional*, defaults to 30):
            Longest window for encoders that set no length of their own. Longer sounds become several windows.
    """

    valid_processor_kwargs = MMProcessorKwargs
    get_attributes = PartNames()  # type: ignore[assignment]

    def __init__(
        self,
        image_processor=None,
        feature_extractor=None,
        tokenizer=None,
        chat_template=None,
        audio_window_seconds: float = DEFAULT_WINDOW_SECONDS,
        **kwargs,
    ):
        if tokenizer is None:
            raise ValueError("MMProcessor needs a `tokenizer`; `image_processor` and `feature_extractor` are optional")
        if not audio_window_seconds >= FRAME_SECONDS:
            raise ValueError(f"`audio_window_seconds` must be at least {FRAME_SECONDS}, got {audio_window_seconds}")
        parts = {"image_processor": image_processor, "feature_extractor": feature_extractor, "tokenizer": tokenizer}
        for name, part in parts.items():
            setattr(self, name, part)
        self.audio_window_seconds = audio_window_seconds
        super().__init__(
            **{name: part for name, part in parts.items() if part is not None},
            chat_template=default_chat_template() if chat_template is None else chat_template,
            **kwargs,
        )
        # What `save_pretrained` would set, so that a processor is the same before and after.
        self.auto_map = {"AutoProcessor": f"{type(self).__module__.split('.')[-1]}.{type(self).__name__}"}
        add_named_tokens(tokenizer)
        pad_left_unless_told(tokenizer)
        # The inherited methods take None to mean that this modality is not there.
        self.image_token = None if image_processor is None else IMAGE_TOKEN
        self.audio_token = None if feature_extractor is None else AUDIO_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self.audio_token_id = tokenizer.convert_tokens_to_ids(AUDIO_TOKEN)

    @classmethod
    def from_text_vision_audio_pretrained(cls, text, vision=None, audio=None, **kwargs) -> "MMProcessor":
        """
        Make a processor from the parts of pretrained models.

        Args:
            text: the tokenizer, or a Hub id or local path to load it from. Tokens are added to it in place.
            vision (*optional*): the image processor, an id or a path.
            audio (*optional*): the feature extractor, an id or a path.
            kwargs: `chat_template` and `audio_window_seconds` for the processor; the rest (`revision`, `token`,
                `cache_dir`, ...) for loading. In place of a part, a whole processor may be given that has it.
        """
        own = {key: kwargs.pop(key) for key in ("chat_template", "audio_window_seconds") if key in kwargs}
        sources = {"image_processor": vision, "feature_extractor": audio, "tokenizer": text}
        parts = {}
        for name, source in sources.items():
            if isinstance(source, (str, os.PathLike)):
                parts[name] = AUTO_CLASSES[name].from_pretrained(source, **kwargs)
            else:
                parts[name] = getattr(source, name, source)
        return cls(**parts, **own)

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        # Unlike the inherited method this one knows parts that are not there, and does not load what is passed in.
        saved = processor_dict or {}
        given = {name: kwargs.pop(name) for name in AUTO_CLASSES if name in kwargs}
        parts = []
        for name in cls.get_attributes():
            is_absent = name != "tokenizer" and "processor_class" in saved and saved.get(name) is None
            if name in given or is_absent:
                parts.append(given.get(name))
            else:
                parts.append(AUTO_CLASSES[name].from_pretrained(pretrained_model_name_or_path, **kwargs))
        return parts

    @property
    def model_input_names(self) -> list[str]:
        names = ["input_ids", "attention_mask"]
        if self.image_processor is not None:
            names += ["pixel_values", "image_mask"]
        if self.feature_extractor is not None:
            names += [self.feature_extractor.model_input_names[0], "feature_attention_mask"]
        return names

    # The common tests of transformers take only annotated arguments for inputs.
    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        audio: Any = None,
        **kwargs: Unpack[MMProcessorKwargs],
    ) -> BatchFeature:
        r"""
        Args:
            images (*optional*):
                Paths, URLs, bytes, PIL images, arrays or `datasets.Image` dicts: a list of lists, one for each text
                (`[]` or None for a text without), or a flat list, which is dealt out by the placeholders in the texts.
            text (`str` or `list[str]`, *optional*):
                Each with one `<|image|>` for each of its images and one `<|audio|>` for each of its sounds, or without
                any, to have them put in front. None: the placeholders alone.
            audio (*optional*):
                Paths, URLs, bytes, arrays, (array, rate) tuples, `{"array", "sampling_rate"}` or `datasets.Audio`
                dicts, listed like `images`. Any rate, any number of channels, any length.
            kwargs:
                Options of the parts. `sampling_rate` is the rate of arrays that come without one. Rows are padded if
                tensors are asked for; text is encoded as written, without tokens that the tokenizer would add
                (`add_special_tokens=True` adds them); `padding`, `max_length` and `truncation` are for text alone.

        Returns:
            `BatchFeature` with `input_ids` and `attention_mask` (B, L); `pixel_values` (B, I, 3, H, W) and
            `image_mask` (B, I), if there are images; `input_features` (B, A, n_mels, T) or `input_values`
            (B, A, samples) or (B, A, T, n_mels), and `feature_attention_mask` (B, A, T), if there are sounds.

        Raises:
            ValueError: where text and media do not match, where one of them cannot be read, and where truncation would
                cut a placeholder away; with the row, both counts and the remedy.
        """
        if kwargs.pop("videos", None) is not None:  # type: ignore[typeddict-item]  # pipelines pass None
            raise ValueError("MMProcessor takes no videos; pass some of their frames as images")
        if "audios" in kwargs:
            raise ValueError("MMProcessor takes `audio`, not `audios`")
        for name in ("truncation", "max_length"):
            if (kwargs.get("audio_kwargs") or {}).get(name):
                raise ValueError(
                    f"`{name}` in `audio_kwargs` would cut sounds silently; cut them before, or set the window "
                    "(`audio_window_seconds`), whose pieces are all kept"
                )
        return super().__call__(images=images, text=text, audio=audio, **kwargs)

    def _merge_kwargs(self, *args, **kwargs) -> dict[str, dict]:
        merged = super()._merge_kwargs(*args, **kwargs)
        options = merged["text_kwargs"]
        # BERT's [CLS] and [SEP] would enclose what a chat template has already laid out, and a prompt to go on from.
        options.setdefault("add_special_tokens", False)
        if options.get("return_tensors") is not None:
            options.setdefault("padding", True)
        # GPT-2 would add an embedding for each of them.
        options.setdefault("return_token_type_ids", False)
        return merged

    def prepare_inputs_layout(self, images=None, text=None, videos=None, audio=None, **kwargs):
        """
        Bring every input into rows and load the media.

        Returns:
            images: one list of pictures a row, or None if no row has any; text: one string a row, with its
            placeholders; None; audio: one list of mono sample arrays a row, or None.
        """
        if text is None:
            text = make_placeholder_rows(images, audio)
        text = [text] if isinstance(text, str) else list(text)
        for row, sample in enumerate(text):
            if not isinstance(sample, str):
                raise ValueError(
                    f"`text` must be a string or a list of strings, but row {row} is a {type(sample).__name__}"
                )
        if not text:
            raise ValueError("There is nothing to process: pass `text`, `images` or `audio`, with at least one row")
        image_rows = split_by_row(images, text, IMAGE_TOKEN, "images", is_picture)
        audio_rows = split_by_row(audio, text, AUDIO_TOKEN, "audio inputs", is_sound)
        text = [
            place_placeholders(sample, len(pictures), len(sounds))
            for sample, pictures, sounds in zip(text, image_rows, audio_rows, strict=True)
        ]
        self._check_layout(text, image_rows, audio_rows)
        return self._load_images(image_rows, kwargs), text, None, self._load_audio(audio_rows, kwargs)

    def _check_layout(self, text: list[str], images: Rows, audio: Rows) -> None:
        for rows, kind, name in ((images, "images", "image_processor"), (audio, "audio inputs", "feature_extractor")):
            row = next((row for row, items in enumerate(rows) if items), None)
            if row is not None and getattr(self, name) is None:
                raise ValueError(
                    f"Row {row} has {len(rows[row])} {kind}, but this processor has no `{name}`; leave them out, or "
                    "make the processor with one"
                )
        check_counts(text, images, IMAGE_TOKEN, "images")
        check_counts(text, audio, AUDIO_TOKEN, "audio inputs")

    def _load_images(self, rows: Rows, kwargs: dict) -> Rows | None:
        if not any(rows):
            return None
        layout = pick_option(kwargs, "images_kwargs", "input_data_format")
        channels_first = None if layout is None else getattr(layout, "value", layout) == "channels_first"
        is_scaled = pick_option(kwargs, "images_kwargs", "do_rescale") is False
        return load_rows(rows, lambda source: load_image(source, is_scaled, channels_first), "images")

    def _load_audio(self, rows: Rows, kwargs: dict) -> Rows | None:
        if not any(rows):
            return None
        rate = self._array_rate(rows, kwargs)
        target = self.feature_extractor.sampling_rate
        return load_rows(rows, lambda source: load_audio(source, target, rate), "audio inputs")

    def _array_rate(self, rows: Rows, kwargs: dict) -> float:
        """The rate of arrays that come without one: `sampling_rate`, or the encoder's, which is said once."""
        rate = pick_option(kwargs, "audio_kwargs", "sampling_rate")
        if rate is not None:
            return check_rate(rate)
        rate = self.feature_extractor.sampling_rate
        if any(lacks_rate(item) for items in rows for item in items):
            logger.warning_once(
                f"Sounds were passed as arrays without their sampling rate; {rate} Hz, the encoder's, is assumed. "
                "Pass `sampling_rate=`, or (array, sampling_rate) tuples."
            )
        return rate

    def validate_inputs(self, images=None, text=None, videos=None, audio=None, **kwargs) -> None:
        """Nothing is left to check: `prepare_inputs_layout` does so before it loads anything."""

    def _process_images(self, images: Rows, **kwargs) -> tuple[dict[str, Any], list[str]]:
        return_tensors = kwargs.pop("return_tensors", None)
        kwargs.pop("input_data_format", None)  # settled when the images were loaded
        flat = [picture for pictures in images for picture in pictures]
        pixels = self.image_processor(images=flat, return_tensors="pt", **kwargs)["pixel_values"]  # (images, 3, H, W)
        if pixels.ndim != 4 or len(pixels) != len(flat):
            raise ValueError(
                f"{type(self.image_processor).__name__} makes pixel values of shape {tuple(pixels.shape)} of "
                f"{len(flat)} images; an image processor is needed that makes one (3, H, W) array of each"
            )
        pixel_values, image_mask = pad_rows(pixels, [len(pictures) for pictures in images])
        data = {
            "pixel_values": convert(pixel_values, return_tensors),
            "image_mask": convert(image_mask, return_tensors),
        }
        return data, [self.replace_image_token(data, index) for index in range(len(flat))]

    def _process_audio(self, audio: Rows, **kwargs) -> tuple[dict[str, Any], list[str]]:
        return_tensors = kwargs.get("return_tensors")
        options = {key: value for key, value in kwargs.items() if key not in (*WINDOW_OPTIONS, "sampling_rate")}
        length = window_length(self.feature_extractor, self.audio_window_seconds)
        pieces = [[cut_into_windows(sound, length) for sound in sounds] for sounds in audio]
        windows_a_row = [[window for sound in sounds for window in sound] for sounds in pieces]
        features, frames = extract_features(
            self.feature_extractor, [window for row in windows_a_row for window in row], options
        )
        counts = list(map(len, windows_a_row))
        name = self.feature_extractor.model_input_names[0]
        data = {
            name: convert(pad_rows(features, counts)[0], return_tensors),
            "feature_attention_mask": convert(pad_rows(frames, counts)[0], return_tensors),
        }
        windows = [len(sound) for sounds in pieces for sound in sounds]
        return data, [self.replace_audio_token(data, index, num_windows=count) for index, count in enumerate(windows)]

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """What an image's placeholder becomes in the text: itself, as the model has one token for each image."""
        return self.image_token

    def replace_audio_token(self, audio_inputs: dict, audio_idx: int, num_windows: int = 1, **kwargs) -> str:
        """What a sound's placeholder becomes in the text: one for each of its windows."""
        return self.audio_token * num_windows

    def _check_special_mm_tokens(self, text: list[str], text_inputs: Any, modalities: list[str]) -> None:
        for modality in modalities:
            token, token_id = getattr(self, f"{modality}_token", None), getattr(self, f"{modality}_token_id", None)
            if token is None:
                continue
            for row, (sample, ids) in enumerate(zip(text, text_inputs["input_ids"], strict=False)):
                found, written = list(ids).count(token_id), count_placeholders(sample, token)
                if found != written:
                    raise ValueError(
                        f"Row {row}: its text has {written} {token} tokens, of which truncation left {found}; raise "
                        "`max_length`, or shorten the text or its media"
                    )

    def apply_chat_template(
        self,
        conversation,
        chat_template=None,
        tools=None,
        documents=None,
        add_generation_prompt=False,
        continue_final_message=False,
        return_assistant_tokens_mask=False,
        tokenize=False,
        return_tensors=None,
        return_dict=False,
        load_audio_from_video=False,
        processor_kwargs=None,
        sanitize_control_tokens=False,
        **kwargs,
    ):
        """
        Write a conversation, or a batch of them, as text, and with `tokenize=True` as the model's inputs.

        Unlike the inherited method it keeps the rows of sounds apart, decodes them without further packages, and
        counts sounds of several windows in the assistant mask, on every supported version of transformers.

        Args:
            conversation:
                Messages `{"role": "system" | "user" | "assistant", "content": ...}`, or a list of such lists. The
                content is a string or a list of parts: `{"type": "text", "text": ...}`, `{"type": "image", ...}`,
                `{"type": "audio", ...}`, with the picture or sound under the part's type, `url`, `path`, `base64` or
                `bytes`. OpenAI's `image_url`, `audio_url` and `input_audio` parts are understood too.
            add_generation_prompt, continue_final_message:
                Whether the assistant is to speak next, or to go on. Rows are then padded on the left.
            return_assistant_tokens_mask:
                Adds `assistant_masks`, which is 1 for the tokens that the template wraps in `{% generation %}`.
            processor_kwargs: options for `__call__`; `images` and `audio` here stand for parts that hold none.
            kwargs: options for `__call__` by their names; anything else is a variable of the template.

        Returns:
            `str` or `list[str]`; with `tokenize=True` the `input_ids`; with `return_dict=True` too the whole
            `BatchFeature` of `__call__`.
        """
        if load_audio_from_video:
            raise ValueError("MMProcessor takes no videos; pass the sound track as an audio part")
        if return_assistant_tokens_mask and (continue_final_message or not self.tokenizer.is_fast):
            raise ValueError("`return_assistant_tokens_mask` needs a fast tokenizer and no `continue_final_message`")
        template = pick_template(self.chat_template, chat_template)
        conversations, is_batched = normalize_conversations(conversation)
        names = option_names(self.valid_processor_kwargs) | option_names(
            getattr(self.image_processor, "valid_kwargs", None)
        )
        options = {**(processor_kwargs or {}), **{key: kwargs.pop(key) for key in list(kwargs) if key in names}}
        media = {kind: [collect_sources(chat, kind) for chat in conversations] for kind in ("image", "audio")}
        if sanitize_control_tokens:
            conversations, tools, documents, kwargs = mark_control_tokens(
                self.tokenizer,
                template,
                conversations,
                tools,
                documents,
                kwargs,
                tokenize,
                return_assistant_tokens_mask,
            )
            options["sanitize_control_tokens"] = True
        text, spans = render_jinja_template(
            conversations=conversations,
            tools=tools,
            documents=documents,
            chat_template=template,
            return_assistant_tokens_mask=return_assistant_tokens_mask,
            continue_final_message=continue_final_message,
            add_generation_prompt=add_generation_prompt,
            **{**self.tokenizer.special_tokens_map, **kwargs},
        )
        if not tokenize:
            return text if is_batched else text[0]

        given_images, given_audio = options.pop("images", None), options.pop("audio", None)
        images = media["image"] if any(media["image"]) or given_images is None else given_images
        audio = media["audio"] if any(media["audio"]) or given_audio is None else given_audio
        images = split_by_row(images, text, IMAGE_TOKEN, "images", is_picture)
        audio = split_by_row(audio, text, AUDIO_TOKEN, "audio inputs", is_sound)
        placed = list(map(place_placeholders, text, map(len, images), map(len, audio)))

        if any(audio) and self.feature_extractor is not None:
            options = set_option(options, "audio_kwargs", "sampling_rate", self._array_rate(audio, options))
        if return_tensors not in (None, "auto"):
            options["return_tensors"] = return_tensors
        speaks_next = add_generation_prompt or continue_final_message
        if pick_option(options, "text_kwargs", "padding_side") is None:
            options = set_option(options, "text_kwargs", "padding_side", "left" if speaks_next else "right")
        if return_assistant_tokens_mask:
            options |= {"return_offsets_mapping": True, "return_text_replacement_offsets": True}
        inputs = self(text=placed, images=images, audio=audio, **options)
        if return_assistant_tokens_mask:
            moves = [len(after) - len(before) for before, after in zip(text, placed, strict=True)]
            spans = [
                [(start + move, end + move) for start, end in row] for row, move in zip(spans, moves, strict=True)
            ]
            add_assistant_masks(inputs, spans)
            inputs.convert_to_tensors(tensor_type=pick_option(options, "text_kwargs", "return_tensors"))
        return inputs if return_dict else inputs["input_ids"]

    def _get_num_multimodal_tokens(self, image_sizes=None, audio_lengths=None, **kwargs) -> MultiModalData:
        """How many placeholder tokens images (of any size) and sounds (of given lengths in samples) take; for vLLM."""
        counts: dict[str, list[int]] = {}
        if image_sizes is not None:
            counts["num_image_tokens"] = counts["num_image_patches"] = [1] * len(image_sizes)
        if audio_lengths is not None:
            window = window_length(self.feature_extractor, self.audio_window_seconds)
            counts["num_audio_tokens"] = [math.ceil(length / window) for length in audio_lengths]
        return MultiModalData(**counts)


MMProcessor.register_for_auto_class()
