# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Pipelines of transformers for our models.

Of tasks that transformers has, such as "automatic-speech-recognition", these are pipelines that serve our models and
hand every other model to the stock one. Two tasks that transformers 5 no longer has are here for our models alone.
Text generation and feature extraction need nothing of ours.
"""

import os
from collections.abc import Iterator, Mapping, Sized
from types import GeneratorType
from typing import Any

import torch
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset
from transformers.generation import GenerationConfig
from transformers.pipelines import any_to_any
from transformers.pipelines.any_to_any import AnyToAnyPipeline
from transformers.pipelines.automatic_speech_recognition import AutomaticSpeechRecognitionPipeline
from transformers.pipelines.base import ChunkPipeline, Pipeline, no_collate_fn
from transformers.pipelines.image_text_to_text import ImageTextToTextPipeline
from transformers.pipelines.pt_utils import (
    PipelineChunkIterator,
    PipelineDataset,
    PipelineIterator,
    PipelinePackIterator,
)
from transformers.pipelines.text_classification import TextClassificationPipeline
from transformers.utils import logging
from transformers.utils.chat_template_utils import Chat

from .audio import load_audio
from .configuration_mm import MMConfig
from .images import describe
from .processing_mm import AUTO_CLASSES, MMProcessor
from .transcripts import chunk_sizes, cut_into_chunks, merge_transcripts

logger = logging.get_logger(__name__)

# How our corpora ask (modeling_mm/data/phrases.py); other wordings are for models that have learned them.
TRANSCRIPTION_PROMPT = "Transcribe the speech."
TRANSLATION_PROMPT = "Translate this caption into {language}: {text}"
LANGUAGE_NAMES = {
    "ar": "Arabic", "bg": "Bulgarian", "ca": "Catalan", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek",
    "en": "English", "es": "Spanish", "fi": "Finnish", "fr": "French", "he": "Hebrew", "hi": "Hindi",
    "hu": "Hungarian", "id": "Indonesian", "it": "Italian", "ja": "Japanese", "ko": "Korean", "nl": "Dutch",
    "no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sv": "Swedish",
    "th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip

# The inputs of rows whose second dimension counts images or windows; of all others it counts tokens.
MEDIA_INPUTS = ("pixel_values", "image_mask", "input_features", "input_values", "feature_attention_mask")

# Shape legend: B rows, L tokens, I images or windows of a row, K answers to a row.


# ---- Rows to batches ------------------------------------------------------------------------------------------------


def collate_rows(rows: list[Mapping[str, Any]], pad_token_id: int) -> dict[str, Any]:
    """
    Batches rows that the processor has made one by one.

    Tokens are padded on the left. Images and windows are padded with absent ones, so that rows with media and rows
    without go together. What is no tensor becomes a list.
    """
    batch: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        if not any(isinstance(value, torch.Tensor) for value in values):
            batch[name] = values
        elif name in MEDIA_INPUTS:
            batch[name] = pad_media(name, values)
        else:
            batch[name] = pad_tokens(values, pad_token_id if name == "input_ids" else 0)
    return batch


def pad_tokens(values: list[torch.Tensor], padding: int) -> torch.Tensor:
    """(1, L) each -> (B, max(L)), padded on the left."""
    longest = max(value.shape[1] for value in values)
    return torch.cat([pad(value, (longest - value.shape[1], 0), value=padding) for value in values])


def pad_media(name: str, values: list[torch.Tensor | None]) -> torch.Tensor:
    """
    (1, I, ...) each, or None -> (B, max(I), ...), zeros where there is nothing; sounds are padded in time too.

    Raises:
        ValueError: for pictures of different sizes.
    """
    present = [value for value in values if value is not None]
    sizes = {tuple(value.shape[2:]) for value in present}
    if name == "pixel_values" and len(sizes) > 1:
        raise ValueError(
            f"the pictures of a batch must have one size, got {sorted(sizes)} from the image processor; give it a "
            "fixed `size`, or leave `batch_size` at 1"
        )
    shape = [max(sizes) for sizes in zip(*(value.shape[1:] for value in present), strict=True)]
    batch = present[0].new_zeros(len(values), *shape)
    for row, value in zip(batch, values, strict=True):
        if value is not None:
            row[tuple(slice(size) for size in value.shape[1:])] = value[0]
    return batch


# ---- What all our pipelines share -----------------------------------------------------------------------------------


def is_ours(model: Any) -> bool:
    return getattr(model.config, "model_type", None) == MMConfig.model_type


def generation_options(pipe: Pipeline, given: dict, **overrides) -> dict:
    """What `generate` is called with: the caller's options on top of the pipeline's own, in the way of its version."""
    if hasattr(pipe, "_prepare_generate_kwargs"):
        return pipe._prepare_generate_kwargs(given, **overrides)
    return {"generation_config": pipe.generation_config, **given, **overrides}


class MMPipeline(Pipeline):
    """
    A pipeline for our models. `stock` is the pipeline of transformers for its task, which gets every other model as if
    we were not there; None where there is none.
    """

    stock: type[Pipeline] | None = None
    processor: Any

    def __new__(cls, *args, **kwargs):
        model = kwargs.get("model", args[0] if args else None)
        if model is None or is_ours(model):
            return super().__new__(cls)
        if cls.stock is None:
            raise ValueError(
                f"{cls.__name__} serves models of the type {MMConfig.model_type!r}, got a {type(model).__name__} of "
                f"the type {model.config.model_type!r}; ask it by `pipeline('image-text-to-text')`, if it is for that"
            )
        if cls.stock._load_processor is False:
            kwargs.pop("processor", None)  # it was loaded because the model could have been ours
        return cls.stock(*args, **kwargs)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.ensure_processor()

    def ensure_processor(self) -> None:
        """A processor of the parts that were given, where it was not given itself."""
        if self.processor is None:
            self.processor = MMProcessor(**{name: getattr(self, name) for name in AUTO_CLASSES})

    def check_model_type(self, supported_models) -> None:
        """Nothing is left to check: `__new__` did."""

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """Saves model and processor; the parts of a processor, which transformers saves, do not make one again."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def collate(self, rows: list[Mapping[str, Any]]) -> dict[str, Any]:
        return collate_rows(rows, self.processor.tokenizer.pad_token_id)

    def get_iterator(
        self, inputs, num_workers: int, batch_size: int, preprocess_params, forward_params, postprocess_params
    ) -> PipelineIterator:
        """As in transformers, except that rows are batched by [`collate_rows`]."""
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the data loader may fork
        is_chunked = isinstance(self, ChunkPipeline)
        if is_chunked:
            rows = PipelineChunkIterator(inputs, self.preprocess, preprocess_params)
        elif isinstance(inputs, Sized):
            rows = PipelineDataset(inputs, self.preprocess, preprocess_params)
        else:
            rows = PipelineIterator(inputs, self.preprocess, preprocess_params)
        if isinstance(rows, PipelineIterator):
            num_workers = min(num_workers, 1)  # each worker would go through all of it
        collate = no_collate_fn if batch_size == 1 else self.collate
        loader = DataLoader(rows, num_workers=num_workers, batch_size=batch_size, collate_fn=collate)
        iterator = PipelinePackIterator if is_chunked else PipelineIterator
        outputs = iterator(loader, self.forward, forward_params, loader_batch_size=batch_size)
        return PipelineIterator(outputs, self.postprocess, postprocess_params)

    def ask(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        """The model's inputs for one message of a user, to which it answers."""
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        return dict(inputs.to(dtype=self.dtype))

    def answer(self, model_inputs: dict[str, Any], generate_kwargs: dict, **overrides) -> dict[str, Any]:
        """
        Returns:
            `tokens` (B, K, L) without the prompt, and `scores` (B, K), the likelihood of an answer's average token, or
            None where `generate` was not asked for scores.
        """
        rows, length = model_inputs["input_ids"].shape
        options = generation_options(self, generate_kwargs, return_dict_in_generate=True, **overrides)
        output = self.model.generate(**model_inputs, **options)
        scores = output.get("sequences_scores")
        return {
            "tokens": output.sequences[:, length:].unflatten(0, (rows, -1)),
            "scores": None if scores is None else scores.unflatten(0, (rows, -1)).exp(),
        }

    def decode(self, tokens: torch.Tensor) -> list[str]:
        """(K, L) -> K texts"""
        return [text.strip() for text in self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)]


class MMImageTextToTextPipeline(MMPipeline, ImageTextToTextPipeline):
    """
    `pipeline("image-text-to-text")`; chats may hold sounds as well as pictures.

    ```python
    pipe = pipeline("image-text-to-text", model)
    content = [{"type": "image", "path": "dog.jpg"}, {"type": "audio", "path": "question.flac"}]
    pipe([{"role": "user", "content": content}], return_full_text=False)[0]["generated_text"]
    ```
    """

    stock = ImageTextToTextPipeline


class MMAnyToAnyPipeline(MMPipeline, AnyToAnyPipeline):
    """`pipeline("any-to-any")` with text, pictures and sounds to text; it needs neither torchvision nor librosa."""

    stock = AnyToAnyPipeline

    def __init__(self, *args, **kwargs):
        # Past the stock one, which asks for packages that our processor does without.
        Pipeline.__init__(self, *args, **kwargs)
        self.ensure_processor()

    def preprocess(self, inputs=None, timeout=None, continue_final_message=None, **options):
        if isinstance(inputs, Chat):  # what `Pipeline` makes of the chats of a generator
            inputs = any_to_any.Chat(inputs.messages)
        if not isinstance(inputs, dict):
            return super().preprocess(inputs, timeout, continue_final_message, **options)
        check_keys(inputs, ("text", "images", "videos", "audio"))
        options = options if options.get("processor_kwargs") is None else options["processor_kwargs"]
        text = "" if inputs.get("text") is None else inputs["text"]
        model_inputs = self.processor(**{**inputs, "text": text}, return_tensors="pt", **options).to(dtype=self.dtype)
        model_inputs["text"] = text
        return model_inputs


def check_keys(inputs: dict, known: tuple[str, ...]) -> None:
    """
    Raises:
        ValueError: for keys that nothing is known of, as they would be left out silently.
    """
    if unknown := set(inputs) - set(known):
        raise ValueError(
            f"expected a dict with the keys {', '.join(known)}, as far as there are any; got {sorted(unknown)} too: "
            "leave them out, or rename them"
        )


# ---- Classification -------------------------------------------------------------------------------------------------


class MMTextClassificationPipeline(MMPipeline, TextClassificationPipeline):
    """
    `pipeline("text-classification")` of texts and of texts with media beside them, taken as they are, and of chats, up
    to where the assistant would answer, which is what recipes train classifiers on.

    ```python
    classify = pipeline("text-classification", model)
    classify({"text": "What a day", "images": ["rain.jpg"], "audio": ["sigh.wav"]})  # {"label": ..., "score": ...}
    ```
    """

    stock = TextClassificationPipeline
    _load_processor = None  # stock models are not to miss one

    def preprocess(self, inputs, **options):
        if isinstance(inputs, Chat):
            row = self.processor.apply_chat_template(
                inputs.messages,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                **options,
            )
            return row.to(dtype=self.dtype)
        inputs = {"text": inputs} if isinstance(inputs, str) else inputs
        if not isinstance(inputs, dict):
            raise ValueError(
                "expected a text, a dict with `text`, `images` and `audio`, or a chat; got " + describe(inputs)
            )
        check_keys(inputs, ("text", "text_pair", "images", "image", "audio"))
        text, second = inputs.get("text"), inputs.get("text_pair")
        images, audio = inputs.get("images", inputs.get("image")), inputs.get("audio")
        if text is None and images is None and audio is None:
            raise ValueError("There is nothing to classify: pass `text`, `images` or `audio`")
        if second is None:
            row = self.processor(
                text="" if text is None else text, images=images, audio=audio, return_tensors="pt", **options
            )
            return row.to(dtype=self.dtype)
        if images is not None or audio is not None:
            raise ValueError("A pair of texts cannot have media beside it; write both texts into `text`")
        return super().preprocess({"text": text, "text_pair": second}, return_token_type_ids=False, **options)


# ---- Speech ---------------------------------------------------------------------------------------------------------


def as_sound(source: Any) -> Any:
    """
    What the stock pipeline takes, as [`audio.load_audio`] takes it: samples may be called `raw`.

    Raises:
        ValueError: for a dict with samples and no rate, and for keys that mean nothing here.
    """
    if not isinstance(source, dict):
        return source
    if "stride" in source:
        raise ValueError("A `stride` in the input is for CTC models; leave it out, and pass `chunk_length_s` instead")
    check_keys(source, ("raw", "array", "sampling_rate", "bytes", "path"))
    sound = {key: value for key, value in source.items() if key != "raw"}
    if source.get("raw") is not None:
        sound["array"] = source["raw"]
    if sound.get("array") is not None and sound.get("sampling_rate") is None:
        raise ValueError(
            "expected samples (`raw` or `array`) with their `sampling_rate`, got them without; add it, in Hz"
        )
    return sound


class MMSpeechRecognitionPipeline(MMPipeline, AutomaticSpeechRecognitionPipeline):
    """
    `pipeline("automatic-speech-recognition")`. Takes what the stock pipeline takes: a path, a URL, bytes, samples at
    the encoder's rate, or a dict with `raw` or `array` and `sampling_rate`.

    ```python
    transcribe = pipeline("automatic-speech-recognition", model)
    transcribe("lecture.mp3", chunk_length_s=30, batch_size=8)["text"]
    ```

    Without `chunk_length_s` the model gets the whole sound at once, in as many windows as it takes, and answers within
    `max_new_tokens`; an answer that was cut off there is warned of.

    Args:
        prompt (`str`, *optional*): how the model is asked, after the sound.
        chunk_length_s (`float`, *optional*): cuts long sounds into chunks of so many seconds.
        stride_length_s (`float` or two of them, *optional*, defaults to a sixth of a chunk):
            How much of a chunk, at its left and right end, the chunks beside it have too. Their texts are merged.
    """

    stock = AutomaticSpeechRecognitionPipeline
    _load_processor = None  # stock models are not to miss one
    _default_generation_config = GenerationConfig(max_new_tokens=256)  # the stock one asks for Whisper's five beams

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.type = "seq2seq"  # the stock one looks names up that are not there where the code came with the weights
        if self.model.config.audio_config is None or self.processor.feature_extractor is None:
            raise ValueError(
                "expected a model that hears, got one without an audio encoder, or a processor without a feature "
                "extractor; join a model with an audio encoder for speech recognition"
            )

    def _sanitize_parameters(
        self,
        chunk_length_s=None,
        stride_length_s=None,
        prompt=None,
        generate_kwargs=None,
        ignore_warning=None,
        return_timestamps=None,
        return_language=None,
        decoder_kwargs=None,
        **options,
    ):
        refused = {
            "return_timestamps": return_timestamps,
            "return_language": return_language,
            "decoder_kwargs": decoder_kwargs,
        }
        for name, value in refused.items():
            if value:
                raise ValueError(f"`{name}` is not possible: the model writes what is said, and no more; leave it out")
        named = {"chunk_length_s": chunk_length_s, "stride_length_s": stride_length_s, "prompt": prompt}
        if getattr(self, "assistant_model", None) is not None:
            options["assistant_model"] = self.assistant_model
        return {k: v for k, v in named.items() if v is not None}, {**(generate_kwargs or {}), **options}, {}

    def preprocess(
        self, inputs, chunk_length_s=0, stride_length_s=None, prompt=TRANSCRIPTION_PROMPT
    ) -> Iterator[dict[str, Any]]:
        rate = self.processor.feature_extractor.sampling_rate
        samples = load_audio(as_sound(inputs), rate)
        length, overlap = len(samples), 0
        if chunk_length_s:
            length, overlap = chunk_sizes(chunk_length_s, stride_length_s, rate)
        chunks = cut_into_chunks(samples, length, overlap)
        for number, chunk in enumerate(chunks, 1):
            content = [{"type": "audio", "audio": (chunk, rate)}, {"type": "text", "text": prompt}]
            yield {**self.ask(content), "share": overlap / len(chunk), "is_last": number == len(chunks)}

    def _forward(self, model_inputs, **generate_kwargs) -> dict[str, Any]:
        beside = {"share": model_inputs.pop("share"), "is_last": model_inputs.pop("is_last")}
        tokens = self.answer(model_inputs, generate_kwargs)["tokens"]  # (B, K, L)
        if tokens.shape[1] != 1:
            raise ValueError(
                f"expected one transcript for each sound, got {tokens.shape[1]}; leave `num_return_sequences` out"
            )
        return {"tokens": tokens, **beside}

    def postprocess(self, model_outputs: list[dict[str, Any]]) -> dict[str, str]:
        ends = self.model.generation_config.eos_token_id
        ends = torch.tensor([] if ends is None else ends)
        cut_off = [output for output in model_outputs if not torch.isin(output["tokens"], ends).any()]
        if cut_off and ends.numel():
            logger.warning(
                f"{len(cut_off)} of {len(model_outputs)} transcripts of this sound were cut off after "
                f"{cut_off[0]['tokens'].shape[-1]} tokens; raise `max_new_tokens`, or shorten `chunk_length_s`."
            )
        transcripts = [self.decode(output["tokens"][0])[0] for output in model_outputs]
        return {"text": merge_transcripts(transcripts, [output["share"] for output in model_outputs])}


# ---- Questions and translations -------------------------------------------------------------------------------------


class MMAnsweringPipeline(MMPipeline):
    """What pipelines share that ask the model something about media and give its answers back."""

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False
    _pipeline_calls_generate = True
    _default_generation_config = GenerationConfig(max_new_tokens=256)

    def _forward(self, model_inputs, **generate_kwargs) -> dict[str, Any]:
        return self.answer(model_inputs, generate_kwargs)


class MMVisualQuestionAnsweringPipeline(MMAnsweringPipeline):
    """
    `pipeline("visual-question-answering")`, which transformers 5 has removed.

    ```python
    answer = pipeline("visual-question-answering", model)
    answer("dog.jpg", "What colour is it?")  # [{"answer": "brown"}]
    answer({"image": "dog.jpg", "question": "What colour is it?"}, top_k=3)  # [{"answer": ..., "score": ...}, ...]
    ```
    """

    def __init__(self, *args, top_k: int | None = None, **kwargs):
        super().__init__(*args, **kwargs)  # which would take `top_k` for an option of `generate`
        if top_k is not None:
            self._forward_params["top_k"] = top_k

    def _sanitize_parameters(self, top_k=None, generate_kwargs=None, **options):
        answers = {} if top_k is None else {"top_k": top_k}
        return {}, {**(generate_kwargs or {}), **options, **answers}, {}

    def __call__(self, image: Any, question: str | list[str] | None = None, **kwargs) -> Any:
        """
        Args:
            image: a path, a URL, bytes, a picture or an array, or a list, dataset or generator of them; or, without
                `question`, a dict with `image` and `question`, or a list, dataset or generator of such dicts. A list
                as `image` in a dict is one question about several pictures.
            question (`str` or `list[str]`, *optional*): asked of each picture; of several, all of each.
            top_k (`int`, *optional*, defaults to 1): how many answers, found by beam search, the likeliest first.
            generate_kwargs (`dict`, *optional*): options of `generate`, which may be given by their names too.

        Returns:
            A list of `{"answer": ...}`, with the `score` of each where they are several; a list of such lists for a
            list, an iterator over them for a dataset or a generator.
        """
        if question is None:
            return super().__call__(image, **kwargs)
        if isinstance(image, (Dataset, GeneratorType)):
            if not isinstance(question, str):
                raise ValueError(
                    "expected one question for a dataset or a generator of pictures, got "
                    f"{describe(question)}; yield dicts with `image` and `question`"
                )
            return super().__call__(({"image": picture, "question": question} for picture in image), **kwargs)
        if not isinstance(image, list) and isinstance(question, str):
            return super().__call__({"image": image, "question": question}, **kwargs)
        pictures = image if isinstance(image, list) else [image]
        questions = [question] if isinstance(question, str) else list(question)
        return super().__call__([{"image": p, "question": q} for q in questions for p in pictures], **kwargs)

    def preprocess(self, inputs) -> dict[str, Any]:
        if not isinstance(inputs, dict) or not isinstance(inputs.get("question"), str) or inputs.get("image") is None:
            raise ValueError(
                f"expected a picture with a question, as a dict with `image` and `question`; got {describe(inputs)}"
            )
        check_keys(inputs, ("image", "question"))
        images = inputs["image"] if isinstance(inputs["image"], (list, tuple)) else [inputs["image"]]
        parts = [{"type": "image", "image": image} for image in images]
        return self.ask([*parts, {"type": "text", "text": inputs["question"]}])

    def _forward(self, model_inputs, top_k: int = 1, **generate_kwargs) -> dict[str, Any]:
        if top_k < 1:
            raise ValueError(f"expected at least one answer, got top_k={top_k}")
        if top_k == 1:
            return self.answer(model_inputs, generate_kwargs)
        beams = max(top_k, generate_kwargs.get("num_beams") or 1)
        several = {"num_beams": beams, "num_return_sequences": top_k, "do_sample": False, "output_scores": True}
        return self.answer(model_inputs, generate_kwargs, **several)

    def postprocess(self, model_outputs: dict[str, Any]) -> list[dict[str, Any]]:
        answers = [{"answer": answer} for answer in self.decode(model_outputs["tokens"][0])]
        if model_outputs["scores"] is None:
            return answers
        scores = model_outputs["scores"][0].tolist()
        return [{**answer, "score": score} for answer, score in zip(answers, scores, strict=True)]


class MMTranslationPipeline(MMAnsweringPipeline):
    """
    `pipeline("multimodal-translation")`: a text in another language, with the picture or the sound it belongs to.

    ```python
    translate = pipeline("multimodal-translation", model, tgt_lang="fr")
    translate("a seal on the beach", image="seal.jpg")  # [{"translation_text": ...}]
    ```

    Args:
        tgt_lang (`str`): the language, by its name in English, or by its code (`"fr"`) if it is one of
            `LANGUAGE_NAMES`.
        prompt (`str`, *optional*): how the model is asked, with `{language}` and `{text}` in it.
    """

    def _sanitize_parameters(self, tgt_lang=None, prompt=None, generate_kwargs=None, **options):
        named = {"tgt_lang": tgt_lang, "prompt": prompt}
        return {k: v for k, v in named.items() if v is not None}, {**(generate_kwargs or {}), **options}, {}

    def __call__(self, text: Any = None, image: Any = None, audio: Any = None, **kwargs) -> Any:
        """
        Args:
            text: a text; or a list of texts; or a dict with `text`, `image`, `audio`, or a list, dataset or generator
                of such dicts, which may have a `tgt_lang` of their own.
            image, audio (*optional*): what the text belongs to; lists as long as that of the texts.
            generate_kwargs (`dict`, *optional*): options of `generate`, which may be given by their names too.

        Returns:
            A list of `{"translation_text": ...}`, one unless `num_return_sequences` asks for more; a list of such
            lists for a list, an iterator over them for a dataset or a generator.
        """
        if text is None or isinstance(text, str):
            return super().__call__({"text": text, "image": image, "audio": audio}, **kwargs)
        if image is None and audio is None and not (isinstance(text, list) and text and isinstance(text[0], str)):
            return super().__call__(text, **kwargs)
        columns = {"text": text, "image": image, "audio": audio}
        columns = {name: column for name, column in columns.items() if column is not None}
        if any(not isinstance(column, list) or len(column) != len(text) for column in columns.values()):
            raise ValueError(
                "expected lists of one length for texts and media, got "
                + ", ".join(
                    f"{len(c) if isinstance(c, list) else describe(c)} ({name})" for name, c in columns.items()
                )
                + "; pass a dict for each text instead"
            )
        rows = zip(*columns.values(), strict=True)
        return super().__call__([dict(zip(columns, row, strict=True)) for row in rows], **kwargs)

    def preprocess(self, inputs, tgt_lang=None, prompt=TRANSLATION_PROMPT) -> dict[str, Any]:
        inputs = {"text": inputs} if isinstance(inputs, str) else inputs
        is_dict = isinstance(inputs, dict)
        text = inputs.get("text") if is_dict else None
        if not is_dict or not isinstance(text, (str, type(None))) or (text is None and inputs.get("audio") is None):
            raise ValueError(
                "expected something to translate, as a dict with a string as `text`, or with `audio` that says it, "
                f"and perhaps an `image`; got {describe(inputs)}"
            )
        check_keys(inputs, ("text", "image", "audio", "tgt_lang"))
        language = language_name(inputs.get("tgt_lang", tgt_lang))
        try:
            question = prompt.format(language=language, text=text or "").strip()
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"expected a prompt with {{language}} and {{text}} in it, got {prompt!r}; write other braces twice"
            ) from error
        parts = [{"type": kind, kind: inputs[kind]} for kind in ("image", "audio") if inputs.get(kind) is not None]
        return self.ask([*parts, {"type": "text", "text": question}])

    def postprocess(self, model_outputs: dict[str, Any]) -> list[dict[str, str]]:
        return [{"translation_text": text} for text in self.decode(model_outputs["tokens"][0])]


def language_name(language: str | None) -> str:
    """
    A language by its name in English.

    Raises:
        ValueError: where none is given, or a code that is not known: a prompt with a bare code has no meaning.
    """
    if language is None:
        raise ValueError(
            "expected the language to translate into, got none; pass `tgt_lang`, such as 'French' or 'fr'"
        )
    if len(language) <= 3 and language not in LANGUAGE_NAMES:
        raise ValueError(
            f"expected a language by its name in English, or one of the codes {', '.join(LANGUAGE_NAMES)}; got "
            f"{language!r}: write its name"
        )
    return LANGUAGE_NAMES.get(language, language)


__all__ = [
    "MMAnyToAnyPipeline",
    "MMImageTextToTextPipeline",
    "MMSpeechRecognitionPipeline",
    "MMTextClassificationPipeline",
    "MMTranslationPipeline",
    "MMVisualQuestionAnsweringPipeline",
]
