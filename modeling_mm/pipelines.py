# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Pipelines of transformers for the models of this package.

For tasks of transformers, such as "automatic-speech-recognition", they serve these models and pass every other model
to the stock pipeline. Two tasks that transformers 5 no longer has are for these models alone. Text generation and
feature extraction work with the stock pipelines.
"""

from types import GeneratorType
from typing import Any

from torch.utils.data import Dataset
from transformers.pipelines import any_to_any
from transformers.pipelines.any_to_any import AnyToAnyPipeline
from transformers.pipelines.base import Pipeline
from transformers.pipelines.image_text_to_text import ImageTextToTextPipeline
from transformers.pipelines.text_classification import TextClassificationPipeline
from transformers.utils.chat_template_utils import Chat

from .modalities import MODALITIES
from .pipeline_answers import MMTranslationPipeline, MMVisualQuestionAnsweringPipeline
from .pipeline_base import MMGenerationPipeline, MMPipeline, Parameters, as_stream, check_keys, messages_of, take
from .pipeline_speech import MMSpeechRecognitionPipeline
from .sources import describe

# ---- Text about media -----------------------------------------------------------------------------------------------


def are_rows(inputs: Any) -> bool:
    """Return True for chats and dicts, one or many, or a dataset or generator of them; False for texts and media."""
    is_list = isinstance(inputs, (list, tuple)) and len(inputs) > 0 and isinstance(inputs[0], (dict, list, tuple))
    return is_list or isinstance(inputs, (dict, Dataset, GeneratorType))


class MMChatPipeline(MMGenerationPipeline):
    """
    Base of the two pipelines that continue a chat, or a text with media beside it.

    A row is a chat, as a list of messages or as a dict with `messages`; or a text; or a dict with some of `text`,
    `images` and `audio`. Datasets and generators of rows are read batch by batch.
    """

    stock_chat: type = Chat

    def _sanitize_parameters(self, generate_kwargs: dict | None = None, **options: Any) -> Parameters:
        assistant = take(options, "assistant_model", "assistant_tokenizer")
        # A copy, because the stock pipeline writes into it; None to keep the preset.
        generate_kwargs = self.options_of_call(generate_kwargs, **assistant) or None
        return super()._sanitize_parameters(generate_kwargs=generate_kwargs, **options)

    def answer_rows(self, rows: Any, **kwargs: Any) -> Any:
        # Not the stock `__call__`, which makes a list of some datasets and no chats of others.
        return Pipeline.__call__(self, list(rows) if isinstance(rows, tuple) else as_stream(rows), **kwargs)

    def preprocess(
        self, inputs: Any = None, timeout: Any = None, continue_final_message: bool | None = None, **options: Any
    ) -> Any:
        if (messages := messages_of(inputs)) is not None:
            inputs = self.stock_chat(messages)
        if not isinstance(inputs, dict):
            return super().preprocess(inputs, timeout, continue_final_message, **options)
        check_keys(inputs, ("text", "videos", *(modality.plural for modality in MODALITIES.values())))
        if timeout is not None:
            raise ValueError("`timeout` is not for this processor, which has its own limit; fetch the media before")
        options = options if options.get("processor_kwargs") is None else options["processor_kwargs"]
        model_inputs = self.encode_text(**inputs, **options)
        model_inputs["text"] = "" if inputs.get("text") is None else inputs["text"]
        return model_inputs

    def _forward(self, model_inputs: dict[str, Any], generate_kwargs: dict | None = None) -> dict[str, Any]:
        return super()._forward(model_inputs, self.with_assistant(generate_kwargs))


class MMImageTextToTextPipeline(MMChatPipeline, ImageTextToTextPipeline):
    """
    `pipeline("image-text-to-text")`; chats may hold audio as well as images.

    ```python
    pipe = pipeline("image-text-to-text", model)
    content = [{"type": "image", "path": "dog.jpg"}, {"type": "audio", "path": "question.flac"}]
    pipe([{"role": "user", "content": content}], return_full_text=False)[0]["generated_text"]
    ```
    """

    stock = ImageTextToTextPipeline

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Any:
        rows = images if text is None else text
        if (images is None or text is None) and are_rows(rows):
            return self.answer_rows(rows, **kwargs)
        return ImageTextToTextPipeline.__call__(self, images, text, **kwargs)


class MMAnyToAnyPipeline(MMChatPipeline, AnyToAnyPipeline):
    """`pipeline("any-to-any")` with text, images and audio to text; it needs neither torchvision nor librosa."""

    stock = AnyToAnyPipeline
    stock_chat = any_to_any.Chat

    def __init__(self, model: Any, processor: Any = None, **kwargs: Any):
        # Not the stock constructor, which asks for packages that this processor does not need.
        Pipeline.__init__(self, **self.complete(model, processor, **kwargs))

    def __call__(
        self, text: Any = None, images: Any = None, videos: Any = None, audio: Any = None, **kwargs: Any
    ) -> Any:
        if images is None and videos is None and audio is None and are_rows(text):
            return self.answer_rows(text, **kwargs)
        return AnyToAnyPipeline.__call__(self, text, images, videos, audio, **kwargs)


# ---- Classification -------------------------------------------------------------------------------------------------


class MMTextClassificationPipeline(MMPipeline, TextClassificationPipeline):
    """
    `pipeline("text-classification")` of texts, with or without media, and of chats.

    Texts are read as they are; chats up to the place of the assistant's answer, as recipes train classifiers.

    ```python
    classify = pipeline("text-classification", model)
    classify({"text": "What a day", "images": ["rain.jpg"], "audio": ["sigh.wav"]})  # {"label": ..., "score": ...}
    ```
    """

    stock = TextClassificationPipeline

    def check_model(self, model: Any) -> None:
        if not hasattr(model, "num_labels"):
            raise ValueError(
                f"expected a model that classifies, MMForSequenceClassification, got a {type(model).__name__}, which "
                "does not; load the weights with that class, or use the pipeline for what this one does"
            )

    def preprocess(self, inputs: Any, **options: Any) -> Any:
        if (messages := messages_of(inputs)) is not None:
            return self.encode_chat(messages, **options)
        inputs = {"text": inputs} if isinstance(inputs, str) else inputs
        if not isinstance(inputs, dict):
            raise ValueError(
                f"expected a text, a dict with `text`, `images` and `audio`, or a chat; got {describe(inputs)}"
            )
        plurals = [modality.plural for modality in MODALITIES.values()]
        check_keys(inputs, ("text", "text_pair", *dict.fromkeys((*MODALITIES, *plurals))))
        text = inputs.get("text")
        media = {each.plural: inputs.get(each.plural, inputs.get(name)) for name, each in MODALITIES.items()}
        if inputs.get("text_pair") is None:
            return self.encode_text(text, **media, **options)
        if any(items is not None for items in media.values()):
            raise ValueError("A pair of texts cannot have media beside it; write both texts into `text`")
        pair = {"text": text, "text_pair": inputs["text_pair"]}
        return super().preprocess(pair, return_token_type_ids=False, **options)


__all__ = [
    "MMAnyToAnyPipeline",
    "MMImageTextToTextPipeline",
    "MMSpeechRecognitionPipeline",
    "MMTextClassificationPipeline",
    "MMTranslationPipeline",
    "MMVisualQuestionAnsweringPipeline",
]
