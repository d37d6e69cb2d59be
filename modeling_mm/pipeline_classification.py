# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Classification of texts, chats, images and audio."""

from typing import Any

from transformers.pipelines.audio_classification import AudioClassificationPipeline
from transformers.pipelines.image_classification import ImageClassificationPipeline
from transformers.pipelines.text_classification import TextClassificationPipeline

from .audio import load_audio
from .modalities import MODALITIES
from .pipeline_base import MMPipeline, Parameters, check_keys, check_options, messages_of, refuse_timeout
from .pipeline_speech import as_audio
from .sources import describe


class MMClassificationPipeline(MMPipeline):
    """Base of the pipelines whose model classifies."""

    def check_model(self, model: Any) -> None:
        if not hasattr(model, "num_labels"):
            raise ValueError(
                f"expected a model that classifies, MMForSequenceClassification, got a {type(model).__name__}, which "
                "does not; load the weights with that class, or use the pipeline for what this one does"
            )

    def encode_media(self, part: dict[str, Any], prompt: str | None) -> Any:
        """Return the model's inputs for one image or audio: alone, or in a chat with a prompt behind it."""
        if prompt is None:
            kind = part["type"]
            return self.encode_text(**{MODALITIES[kind].plural: [part[kind]]})
        return self.encode_chat([{"role": "user", "content": [part, {"type": "text", "text": prompt}]}])


class MMTextClassificationPipeline(MMClassificationPipeline, TextClassificationPipeline):
    """
    `pipeline("text-classification")` of texts, with or without media, and of chats.

    Texts are read as they are; chats up to the place of the assistant's answer, as recipes train classifiers.

    ```python
    classify = pipeline("text-classification", model)
    classify({"text": "What a day", "images": ["rain.jpg"], "audio": ["sigh.wav"]})  # {"label": ..., "score": ...}
    ```
    """

    stock = TextClassificationPipeline

    def _sanitize_parameters(self, function_to_apply: Any = None, top_k: Any = "", **options: Any) -> Parameters:
        check_options(options, self.encoding_options(), "function_to_apply", "top_k")
        return super()._sanitize_parameters(function_to_apply, top_k, **options)

    def preprocess(self, inputs: Any, **options: Any) -> Any:
        if (messages := messages_of(inputs)) is not None:
            return self.encode_chat(messages, **options)
        if is_nested_pair(inputs):
            inputs = dict(zip(("text", "text_pair"), inputs[0], strict=True))
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


def is_nested_pair(inputs: Any) -> bool:
    """Return True for a pair of texts inside another list, as the stock pipeline takes it."""
    pair = inputs[0] if isinstance(inputs, list) and len(inputs) == 1 else None
    return isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(text, str) for text in pair)


class MMImageClassificationPipeline(MMClassificationPipeline, ImageClassificationPipeline):
    """
    `pipeline("image-classification")`.

    ```python
    classify = pipeline("image-classification", model)
    classify("dog.jpg", prompt="Which animal is it?")  # [{"label": ..., "score": ...}, ...]
    ```

    Args:
        prompt (`str`, *optional*): a question about the image, as recipes train classifiers; by default none.
    """

    stock = ImageClassificationPipeline

    def _sanitize_parameters(  # type: ignore[override]  # with a parameter more
        self,
        top_k: int | None = None,
        function_to_apply: Any = None,
        timeout: Any = None,
        prompt: str | None = None,
        **options: Any,
    ) -> Parameters:
        refuse_timeout(timeout)
        check_options(options, set(), "top_k", "function_to_apply", "prompt")
        preprocess_params = {} if prompt is None else {"prompt": prompt}
        return preprocess_params, *super()._sanitize_parameters(top_k, function_to_apply)[1:]

    def preprocess(self, image: Any, prompt: str | None = None) -> Any:
        return self.encode_media({"type": "image", "image": image}, prompt)


class MMAudioClassificationPipeline(MMClassificationPipeline, AudioClassificationPipeline):
    """
    `pipeline("audio-classification")`, of any number of channels and any length; without ffmpeg and torchaudio.

    ```python
    classify = pipeline("audio-classification", model)
    classify("bark.wav", prompt="Which animal is it?")  # [{"label": ..., "score": ...}, ...]
    ```

    Args:
        prompt (`str`, *optional*): a question about the audio, as recipes train classifiers; by default none.
    """

    stock = AudioClassificationPipeline

    def _sanitize_parameters(
        self, top_k: int | None = None, function_to_apply: Any = None, prompt: str | None = None, **options: Any
    ) -> Parameters:
        check_options(options, set(), "top_k", "function_to_apply", "prompt")
        preprocess_params = {} if prompt is None else {"prompt": prompt}
        return preprocess_params, *super()._sanitize_parameters(top_k, function_to_apply)[1:]

    def preprocess(self, inputs: Any, prompt: str | None = None) -> Any:
        if self.processor.feature_extractor is None:
            raise ValueError(
                "expected a processor with a feature extractor, got one without; join a model with an audio encoder "
                "to classify audio"
            )
        rate = self.processor.feature_extractor.sampling_rate
        return self.encode_media({"type": "audio", "audio": (load_audio(as_audio(inputs), rate), rate)}, prompt)
