# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The processor: text, images and audio in, the model's tensors out."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any

import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.models.auto.feature_extraction_auto import AutoFeatureExtractor
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.tokenization_auto import AutoTokenizer
from transformers.processing_utils import MultiModalData, ProcessingKwargs, ProcessorMixin, Unpack
from transformers.utils.chat_template_utils import render_jinja_template

from .audio import (
    DEFAULT_WINDOW_SECONDS,
    FRAME_SECONDS,
    audio_features,
    is_audio,
    rate_of_arrays,
    raw_input,
    window_length,
)
from .audio_files import decode_audio
from .batching import convert, hide, pad_batch
from .chat import (
    add_assistant_masks,
    add_named_tokens,
    check_media_kept,
    check_media_options,
    check_placeholders_kept,
    collect_sources,
    default_chat_template,
    keys_without_text,
    normalize_conversations,
    option_names,
    pad_left_by_default,
    pick_option,
    pick_template,
    placeholder_tokens,
    set_option,
)
from .code_parts import CodeProcessing, reveal_codes
from .configuration_mm import HIDDEN, PLACEHOLDER_KINDS, check_choice
from .control_tokens import control_tokens, encode, mark, warn_of_other_placeholders
from .converted_processing import converted_processor, load_parts
from .detections import DetectionPostprocessing
from .folders import check_processor_files
from .images import decode_image, image_features, is_image
from .item_reader import ItemReader
from .modalities import MODALITIES, Modality
from .placeholders import Placeholder, Rows, expand_placeholders, items_of, lay_out
from .video_parts import VideoReader, expand_chats, insert_videos

AUTO_CLASSES = {
    "image_processor": AutoImageProcessor,
    "feature_extractor": AutoFeatureExtractor,
    "tokenizer": AutoTokenizer,
}
# Functions that tell one item from a list of items, and that decode the bytes of a file.
READERS: dict[str, tuple[Callable[[Any], bool], Callable[[bytes], Any]]] = {
    "image": (is_image, decode_image),
    "audio": (is_audio, decode_audio),
}


class MMProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    """
    Options of the parts of [`MMProcessor`], in `text_kwargs`, `images_kwargs`, `audio_kwargs` or flat.

    transformers before 5.23 takes every key here for a part.
    """

    _defaults = {}  # type: ignore[misc, var-annotated]  # older transformers look for it


class MMCallKwargs(MMProcessorKwargs, total=False):
    """
    Options of a call of [`MMProcessor`]: those of its parts, and these.

    media_tokens (`dict[str, list[list[int]]]`):
        By modality (`"image"`, `"audio"`) and row, how many placeholders each item takes. For media that were encoded
        before: nothing is loaded.
    max_frames, load_audio_from_video, frame_times:
        Of videos, beside `fps` and `num_frames`, see [`videos.VideoOptions`].
    """

    media_tokens: Mapping[str, list[list[int]]]
    max_frames: int
    load_audio_from_video: bool
    frame_times: bool


class PartNames:
    """`MMProcessor.get_attributes()`: the parts that a processor can have; of an instance, the parts that it has."""

    def __get__(self, instance: object, owner: type) -> Callable[[], list[str]]:
        return lambda: [name for name in AUTO_CLASSES if instance is None or getattr(instance, name, None) is not None]


class MMProcessor(ProcessorMixin, DetectionPostprocessing, CodeProcessing):
    r"""
    Turn text, images and audio into the inputs of [`MMModel`], and items of modalities that you have registered.

    ```python
    processor = MMProcessor.from_pretrained("model_cards/mm-whisper-tiny")
    inputs = processor(text="<|image|>What does the picture show?", images="cat.png", return_tensors="pt")
    ```

    Args:
        image_processor (*optional*): the vision encoder's image processor; None for a model without images.
        feature_extractor (*optional*):
            The audio encoder's feature extractor; None for a model without audio. Log-mel (Whisper), filter bank (AST)
            and raw-wave (wav2vec2, HuBERT, WavLM) extractors are known; others work if they return an attention mask.
        tokenizer: a fast tokenizer. The placeholder and role tokens that it lacks are added to it.
        chat_template (`str`, *optional*): the template of `apply_chat_template`; the package's own by default.
        audio_window_seconds (`float`, *optional*, defaults to 30):
            The longest window of encoders that set no length themselves. Longer audio becomes several windows.
        placeholders (`str`, *optional*, defaults to `"text"`):
            As the model's config has it: whether a placeholder is a token of the `"text"`, or `"hidden"` from it by 0
            in the attention mask.

    Raises:
        ValueError: without a tokenizer, and for a window or placeholders of no meaning.
    """

    valid_processor_kwargs = MMProcessorKwargs
    get_attributes = PartNames()  # type: ignore[assignment]

    def __init__(
        self,
        image_processor: Any = None,
        feature_extractor: Any = None,
        tokenizer: Any = None,
        chat_template: str | dict[str, str] | None = None,
        audio_window_seconds: float = DEFAULT_WINDOW_SECONDS,
        placeholders: str = "text",
        **kwargs: Any,
    ):
        if tokenizer is None:
            raise ValueError("MMProcessor needs a `tokenizer`; `image_processor` and `feature_extractor` are optional")
        if not audio_window_seconds >= FRAME_SECONDS:
            raise ValueError(f"`audio_window_seconds` must be at least {FRAME_SECONDS}, got {audio_window_seconds}")
        check_choice("placeholders", placeholders, PLACEHOLDER_KINDS)
        parts = dict(zip(AUTO_CLASSES, (image_processor, feature_extractor, tokenizer), strict=True))
        for name, part in parts.items():
            setattr(self, name, part)
        self.audio_window_seconds = audio_window_seconds
        self.placeholders = placeholders
        super().__init__(
            **{name: part for name, part in parts.items() if part is not None},
            chat_template=default_chat_template() if chat_template is None else chat_template,
            **kwargs,
        )
        # As `save_pretrained` sets it, so that a processor is the same before and after.
        self.auto_map = {"AutoProcessor": f"{type(self).__module__.split('.')[-1]}.{type(self).__name__}"}
        pad_left_by_default(tokenizer)
        self._take_modalities()

    @classmethod
    def from_text_vision_audio_pretrained(
        cls, text: Any, vision: Any = None, audio: Any = None, **kwargs: Any
    ) -> "MMProcessor":
        """
        Make a processor from the parts of pretrained models, or of whole processors.

        Args:
            text: the tokenizer, a Hub id or a path. Tokens are added to it in place.
            vision (*optional*): the image processor, an id or a path.
            audio (*optional*): the feature extractor, an id or a path.
            kwargs: `chat_template`, `audio_window_seconds` and `placeholders` of the processor; options of loading
                (`revision`, ...).
        """
        names = ("chat_template", "audio_window_seconds", "placeholders")
        own = {key: kwargs.pop(key) for key in names if key in kwargs}
        sources = dict(zip(AUTO_CLASSES, (vision, audio, text), strict=True))
        parts = {
            name: AUTO_CLASSES[name].from_pretrained(source, **kwargs)
            if isinstance(source, (str, os.PathLike))
            else getattr(source, name, source)
            for name, source in sources.items()
        }
        return cls(**parts, **own)

    def _take_modalities(self) -> None:
        """Take the modalities that are registered and not known yet: their tokens, and readers of their items."""
        if all(hasattr(self, modality.token_id_field) for modality in MODALITIES.values()):
            return
        add_named_tokens(self.tokenizer)
        for modality in MODALITIES.values():
            if modality.processor not in AUTO_CLASSES and not hasattr(self, modality.processor):
                setattr(self, modality.processor, ItemReader(modality))
            self._name_token(modality)

    def _name_token(self, modality: Modality) -> None:
        """Set the placeholder of a modality; the inherited methods take None to mean that there is no such one."""
        has_part = getattr(self, modality.processor, None) is not None
        setattr(self, f"{modality.name}_token", modality.token if has_part else None)
        setattr(self, modality.token_id_field, self.tokenizer.convert_tokens_to_ids(modality.token))

    def add_part(self, name: str, source: Any, **kwargs: Any) -> "MMProcessor":
        """
        Return a copy of this processor for a model that was given another modality, with the same tokenizer.

        ```python
        processor = processor.add_part("image", "google/vit-base-patch16-224")
        ```

        Args:
            name: of the modality, `"image"` or `"audio"`
            source: its image processor or feature extractor, a whole processor, an id or a path
            kwargs: options of loading (`revision`, ...)

        Raises:
            ValueError: if this processor has the part already.
        """
        self._take_modalities()
        modality = MODALITIES[name]
        if getattr(self, modality.processor, None) is not None:
            raise ValueError(f"The processor has a `{modality.processor}` already; make a new one to replace it")
        if isinstance(source, (str, os.PathLike)):
            source = AUTO_CLASSES[modality.processor].from_pretrained(source, **kwargs)
        processor = copy(self)
        setattr(processor, modality.processor, getattr(source, modality.processor, source))
        processor._name_token(modality)
        return processor

    @classmethod
    def from_encoder_decoder(cls, source: Any, language: str | None = None, **kwargs: Any) -> "MMProcessor":
        """
        Make the processor of a converted encoder-decoder, the twin of the model's `from_encoder_decoder`.

        Its chat template writes the prompt that the decoder has learned. Whisper's: placeholders, the user's text
        behind `<|startofprev|>`, then `<|startoftranscript|>`, `language` and `task` ("transcribe" or "translate",
        both of multilingual checkpoints), and `<|notimestamps|>` unless `timestamps` is true; these three are options
        of `apply_chat_template`. After [`add_part`] a text about images alone stands behind these, next to the answer.
        A captioner's: placeholders and its first token. Decoders without roles take one user message, and in training
        its answer.

        ```python
        processor = MMProcessor.from_encoder_decoder("openai/whisper-tiny.en")
        ```

        Args:
            source: an id or a path of Whisper, a `VisionEncoderDecoderModel` or a `SpeechEncoderDecoderModel`, or its
                processor, to whose tokenizer tokens are then added in place.
            language (*optional*, defaults to "en"): what the template of a multilingual Whisper writes by default.
            kwargs: `chat_template`, `audio_window_seconds` and `placeholders` of the processor; options of loading.

        Raises:
            ValueError: for another kind of checkpoint, an unknown language, and a tokenizer whose timestamps do not
                have the ids of the weights.
        """
        names = ("chat_template", "audio_window_seconds", "placeholders")
        own = {"placeholders": HIDDEN, **{key: kwargs.pop(key) for key in names if key in kwargs}}
        parts, start_token = load_parts(source, AUTO_CLASSES, **kwargs)
        return converted_processor(cls, parts, start_token, language, **own)

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        # Unlike the inherited method, this one allows absent parts, and does not load the ones that are passed.
        is_whole = not kwargs.get("subfolder") and "tokenizer" not in kwargs
        if is_whole and os.path.isdir(pretrained_model_name_or_path):
            check_processor_files(pretrained_model_name_or_path)
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
        for modality in MODALITIES.values():
            if getattr(self, modality.processor, None) is not None:
                names += [raw_input(getattr(self, modality.processor), modality), modality.mask]
        return names

    @property
    def item_readers(self) -> dict[str, ItemReader]:
        """Readers of the modalities that have neither an image processor nor a feature extractor, by name."""
        parts = {name: getattr(self, modality.processor, None) for name, modality in MODALITIES.items()}
        return {name: part for name, part in parts.items() if isinstance(part, ItemReader)}

    @property
    def option_names(self) -> set[str]:
        """Names of the options of a call, in their groups and inside them."""
        valid = (MMCallKwargs, self.valid_processor_kwargs, getattr(self.image_processor, "valid_kwargs", None))
        return set().union(*map(option_names, valid))

    # ---- Encoding ---------------------------------------------------------------------------------------------------

    # The common tests of transformers take only annotated arguments for inputs.
    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        audio: Any = None,
        **kwargs: Unpack[MMCallKwargs],
    ) -> BatchFeature:
        r"""
        Encode text and media.

        Args:
            images (*optional*):
                Paths, URLs, bytes, PIL images, arrays or `datasets.Image` dicts: a list of lists, one for each text
                (`[]` or None for a text without), or a flat list, which is split by the placeholders in the texts.
            text (`str` or `list[str]`, *optional*):
                Texts with one `<|image|>` for each of their images and one `<|audio|>` for each of their audio inputs;
                in a text without any they are put in front. None: the placeholders alone.
            audio (*optional*):
                Paths, URLs, bytes, arrays, (array, rate) tuples, `{"array", "sampling_rate"}` or `datasets.Audio`
                dicts, listed like `images`. Any rate, any number of channels, any length.
            kwargs:
                Options of the parts, see [`MMCallKwargs`], and `videos`: paths, URLs or bytes, listed like `images`,
                whose frames and audio take the place of `<|video|>`. `sampling_rate` is the rate of arrays that do
                not state it. Rows are padded if tensors are requested. Text is encoded as written;
                `add_special_tokens=True` adds the tokenizer's own tokens. `padding`, `max_length` and `truncation`
                are for text alone.

        Returns:
            `BatchFeature` with `input_ids` and `attention_mask` (B, L); `pixel_values` (B, I, 3, H, W) and
            `image_mask` (B, I), if there are images; `input_features` (B, A, n_mels, T) or `input_values`
            (B, A, samples) or (B, A, T, n_mels), and `feature_attention_mask` (B, A, T), if there is audio.

        Raises:
            ValueError: if text and media do not match, if one of them cannot be read, and if truncation would cut a
                placeholder off; with the row, both counts and the remedy.
        """
        self._take_modalities()
        given: dict[str, Any] = {**kwargs}
        videos, reader = given.pop("videos", None), VideoReader.of(self, given)
        if "audios" in given:
            raise ValueError("MMProcessor takes `audio`, not `audios`")
        if cuts := [name for name in ("truncation", "max_length") if (given.get("audio_kwargs") or {}).get(name)]:
            raise ValueError(
                f"`{cuts[0]}` in `audio_kwargs` would cut audio silently; cut it before, or set the window "
                "(`audio_window_seconds`), whose pieces are all kept"
            )
        media = dict(zip(MODALITIES, (images, audio), strict=False))
        media |= {name: given.pop(each.plural) for name, each in MODALITIES.items() if each.plural in given}
        is_item: dict[str, Callable[[Any], bool]] = {name: tells for name, (tells, _) in READERS.items()}
        is_item |= {name: reader.is_item for name, reader in self.item_readers.items()}
        if videos is not None:
            text, media = insert_videos(text, media, is_item, videos, reader)
        if (media_tokens := given.pop("media_tokens", None)) is not None:
            media, is_item = media_tokens, dict.fromkeys(MODALITIES, lambda tokens: isinstance(tokens, int))
        texts, placeholders, rows = lay_out(text, media, is_item)
        check_placeholders_kept(self.tokenizer, texts, placeholders, rows)
        warn_of_other_placeholders(texts)
        for name, modality in MODALITIES.items():
            row = next((row for row, items in enumerate(rows[name]) if items), None)
            if row is not None and getattr(self, modality.processor, None) is None:
                raise ValueError(
                    f"Row {row} has {len(rows[name][row])} {items_of(modality)}, but this processor has no "
                    f"`{modality.processor}`; leave them out, or make the processor with one"
                )
        options = self._merge_kwargs(
            self.valid_processor_kwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **given
        )
        features: dict[str, Any] = {}
        if media_tokens is None:
            for name, items in rows.items():
                if any(items) and name in self.item_readers:
                    made, rows[name] = self.item_readers[name].features(items)
                    features |= made
                elif any(items):
                    # A subclass adds a modality that takes options by a method of this name.
                    process = getattr(self, f"_process_{name}")
                    made, rows[name] = process(items, options.get(f"{MODALITIES[name].plural}_kwargs", {}))
                    features |= made
        return_tensors = options["text_kwargs"].get("return_tensors")
        inputs = self._tokenize(texts, placeholders, rows, options)
        features = {name: convert(tensor, return_tensors) for name, tensor in features.items()}
        return BatchFeature({**inputs, **features}, return_tensors, self.skip_tensor_conversion)

    def _merge_kwargs(self, *args: Any, **kwargs: Any) -> dict[str, dict]:
        merged = super()._merge_kwargs(*args, **kwargs)
        options = merged["text_kwargs"]
        # BERT's [CLS] and [SEP] would enclose a finished chat, and a prompt that is to be continued.
        options.setdefault("add_special_tokens", False)
        if options.get("return_tensors") is not None:
            options.setdefault("padding", True)
        # GPT-2 would add an embedding for each of them.
        options.setdefault("return_token_type_ids", False)
        return merged

    def _process_image(self, rows: Rows, options: dict[str, Any]) -> tuple[dict[str, torch.Tensor], Rows]:
        return image_features(self.image_processor, rows, options)

    def _process_audio(self, rows: Rows, options: dict[str, Any]) -> tuple[dict[str, torch.Tensor], Rows]:
        return audio_features(self.feature_extractor, rows, options, self.audio_window_seconds)

    def _tokenize(
        self,
        texts: list[str],
        placeholders: list[list[Placeholder]],
        tokens: Mapping[str, list[list[int]]],
        options: dict[str, dict],
    ) -> Mapping[str, Any]:
        """Encode texts, each placeholder repeated for the `tokens` of its item, by modality and row."""
        given = options["text_kwargs"]
        with_types, with_offsets = (
            given.pop(name, options.get(name))
            for name in ("return_mm_token_type_ids", "return_text_replacement_offsets")
        )
        rows = [{name: tokens[name][row] for name in tokens} for row in range(len(texts))]
        expanded = [
            expand_placeholders(text, found, counts)
            for text, found, counts in zip(texts, placeholders, rows, strict=True)
        ]
        inputs = encode(self.tokenizer, [text for text, _ in expanded], **given)
        for row, (ids, counts) in enumerate(zip(inputs["input_ids"], rows, strict=False)):
            for name, items in counts.items():
                found, written = list(ids).count(getattr(self, MODALITIES[name].token_id_field)), sum(items)
                if found != written:
                    raise ValueError(
                        f"Row {row}: its text has {written} {MODALITIES[name].token} tokens, of which truncation left "
                        f"{found}; raise `max_length`, or shorten the text or its media"
                    )
        if self.placeholders == HIDDEN and "attention_mask" in inputs:
            ids = [getattr(self, each.token_id_field) for each in MODALITIES.values()]
            inputs["attention_mask"] = hide(inputs["attention_mask"], inputs["input_ids"], ids)
        if with_offsets:
            inputs["text_replacement_offsets"] = [replacements for _, replacements in expanded]
        if with_types:
            inputs["mm_token_type_ids"] = self.create_mm_token_type_ids(inputs["input_ids"])
        return inputs

    # transformers recognizes a processor that counts its placeholders by these.

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        return self.image_token

    def replace_audio_token(self, audio_inputs: dict, audio_idx: int, num_windows: int = 1, **kwargs: Any) -> str:
        return self.audio_token * num_windows

    def pad(
        self,
        rows: Sequence[Mapping[str, Any]],
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: Any = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        r"""
        Pad rows to a batch, as a tokenizer's `pad` does, media included. See [`batching.pad_batch`].

        ```python
        encoded = [processor(text=text, images=image, return_tensors="pt") for text, image in pairs]
        batch = processor.pad([{name: values[0] for name, values in row.items()} for row in encoded])
        ```

        Args:
            rows: inputs without their batch dimension, with or without media and `labels`.
            padding (*optional*, defaults to True): True for the longest row, `"max_length"` for `max_length`.
            max_length (`int`, *optional*): the length of the text with `padding="max_length"`.
            pad_to_multiple_of (`int`, *optional*): rounds the length of the text up.
            padding_side (`str`, *optional*): of the text; by default the tokenizer's.
            return_tensors (*optional*, defaults to `"pt"`): `"pt"` or `"np"`; None for one array a row.
        """
        batch = pad_batch(
            rows,
            self.tokenizer.pad_token_id,
            self.tokenizer.padding_side if padding_side is None else padding_side,
            (max_length or 0) if padding == "max_length" else 0,
            pad_to_multiple_of or 1,
        )
        return BatchFeature({name: convert(tensor, return_tensors) for name, tensor in batch.items()})

    def post_process_multimodal_output(
        self,
        generated_outputs: Any,
        skip_special_tokens: bool = True,
        generation_mode: str | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """
        Return what a model has written in one modality, for each row; transformers' pipelines ask for it.

        Args:
            generated_outputs: tokens (B, L); for media without the prompt, which may hold some.
            generation_mode (*optional*, defaults to `"text"`): `"text"`, or a modality that a codec decodes.

        Returns:
            texts, PIL images, or samples (length,), see [`decode_media`] for several parts in a row.

        Raises:
            ValueError: without a codec, and for a row without such media.
        """
        if generation_mode in (None, "text"):
            return self.post_process_image_text_to_text(  # type: ignore[return-value]
                generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs
            )
        return self.decode_written(generated_outputs, generation_mode)

    # ---- Chats ------------------------------------------------------------------------------------------------------

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        tools: list[dict] | None = None,
        documents: list[dict[str, str]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        return_assistant_tokens_mask: bool = False,
        tokenize: bool = False,
        return_tensors: Any = None,
        return_dict: bool = False,
        load_audio_from_video: bool | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        sanitize_control_tokens: bool = True,
        **kwargs: Any,
    ) -> Any:
        """
        Write a conversation, or a batch of them, as text, and with `tokenize=True` as the model's inputs.

        Args:
            conversation:
                Messages `{"role": "system" | "user" | "assistant", "content": ...}`, or a list of such lists. The
                content is a string or a list of parts: `{"type": "text", "text": ...}`, `{"type": "image", ...}`,
                `{"type": "audio", ...}`, `{"type": "video", ...}`, with the media under the type, `url`, `path`,
                `base64` or `bytes`. OpenAI's `image_url`, `audio_url`, `video_url` and `input_audio` are understood.
                An assistant's image or audio is written as its codes, if the tokenizer has some, see [`use_codecs`].
            add_generation_prompt, continue_final_message:
                Make the assistant speak next, or continue. Rows are then padded on the left.
            return_assistant_tokens_mask:
                Adds `assistant_masks`, which is 1 for the tokens that the template wraps in `{% generation %}`.
            load_audio_from_video: False leaves audio tracks out, see [`videos.VideoOptions`].
            processor_kwargs: options for `__call__`; `images`, `audio`, `videos` here are for parts that hold none.
            sanitize_control_tokens (*optional*, defaults to True):
                A control token that stands in a text (`"What is <|image|>?"`) is text: it ends no turn and shows no
                media. In the returned text it has U+F0000 behind its first character, which `__call__` takes away.
                With False texts are encoded as they are; only for texts that the program wrote itself.
            kwargs: options for `__call__` by name; anything else is a variable of the template, which also has the
                `placeholders` of all modalities by the type of their parts.

        Returns:
            `str` or `list[str]`; with `tokenize=True` the `input_ids`, with `return_dict=True` the `BatchFeature` of
            `__call__`.

        Raises:
            ValueError: for media that the template leaves out, with their turn; see `__call__` for others.
        """
        if return_assistant_tokens_mask and (continue_final_message or not self.tokenizer.is_fast):
            raise ValueError("`return_assistant_tokens_mask` needs a fast tokenizer and no `continue_final_message`")
        self._take_modalities()
        template = pick_template(self.chat_template, chat_template)
        conversations, is_batched = normalize_conversations(conversation)
        named = {key: kwargs.pop(key) for key in kwargs.keys() & self.option_names}
        options = {**(processor_kwargs or {}), **named}
        if load_audio_from_video is not None:
            options["load_audio_from_video"] = load_audio_from_video
        videos = options.pop("videos", None)
        conversations = self.write_codes(expand_chats(conversations, VideoReader.of(self, options), videos))
        sources = {name: [collect_sources(chat, name) for chat in conversations] for name in MODALITIES}
        if sanitize_control_tokens:
            tokens = control_tokens(self.tokenizer, template)
            conversations, tools, documents = (
                mark(each, tokens, keys_without_text()) for each in (conversations, tools, documents)
            )
            kwargs = mark(kwargs, tokens, tuple(self.tokenizer.special_tokens_map))
        conversations = reveal_codes(conversations)

        def render(chats: list[Any]) -> tuple[list[str], list[Any]]:
            return render_jinja_template(
                conversations=chats,
                tools=tools,
                documents=documents,
                chat_template=template,
                return_assistant_tokens_mask=return_assistant_tokens_mask,
                continue_final_message=continue_final_message,
                add_generation_prompt=add_generation_prompt,
                **{**self.tokenizer.special_tokens_map, "placeholders": placeholder_tokens(), **kwargs},
            )

        text, spans = render(conversations)
        check_media_kept(conversations, text, lambda chat: render([chat])[0][0])
        if not tokenize:
            return text if is_batched else text[0]

        check_media_options(text, sources, options)
        options |= {MODALITIES[name].plural: rows for name, rows in sources.items() if any(rows)}
        if any(sources["audio"]) and self.feature_extractor is not None:
            given = pick_option(options, "audio_kwargs", "sampling_rate")
            rate = rate_of_arrays(sources["audio"], given, self.feature_extractor)
            options = set_option(options, "audio_kwargs", "sampling_rate", rate)
        if return_tensors not in (None, "auto"):
            options["return_tensors"] = return_tensors
        speaks_next = add_generation_prompt or continue_final_message
        if pick_option(options, "text_kwargs", "padding_side") is None:
            options = set_option(options, "text_kwargs", "padding_side", "left" if speaks_next else "right")
        if return_assistant_tokens_mask:
            options |= {"return_offsets_mapping": True, "return_text_replacement_offsets": True}
        inputs = self(text=text, **options)
        if return_assistant_tokens_mask:
            add_assistant_masks(inputs, spans)
            inputs.convert_to_tensors(tensor_type=pick_option(options, "text_kwargs", "return_tensors"))
        return inputs if return_dict else inputs["input_ids"]

    def _get_num_multimodal_tokens(
        self, image_sizes: Sequence[Any] | None = None, audio_lengths: Sequence[int] | None = None, **kwargs: Any
    ) -> MultiModalData:
        """Count the placeholder tokens of images of any size and of audio of given lengths in samples; for vLLM."""
        counts: dict[str, list[int]] = {}
        if image_sizes is not None:
            counts["num_image_tokens"] = counts["num_image_patches"] = [1] * len(image_sizes)
        if audio_lengths is not None:
            window = window_length(self.feature_extractor, self.audio_window_seconds)
            counts["num_audio_tokens"] = [math.ceil(length / window) for length in audio_lengths]
        return MultiModalData(**counts)


MMProcessor.register_for_auto_class()
