# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Pipelines of transformers for the models of this package.

For tasks of transformers, such as "automatic-speech-recognition", they serve these models and pass every other model
to the stock pipeline. Two tasks that transformers 5 no longer has, and "text-to-image", are for these models alone.
"""

import inspect
from types import GeneratorType
from typing import Any

from torch.utils.data import Dataset
from transformers.generation import GenerationConfig
from transformers.pipelines import any_to_any
from transformers.pipelines.any_to_any import AnyToAnyPipeline
from transformers.pipelines.base import Pipeline
from transformers.pipelines.image_text_to_text import ImageTextToTextPipeline
from transformers.pipelines.text_generation import TextGenerationPipeline
from transformers.utils.chat_template_utils import Chat

from .chat import parts_of
from .code_tokens import TEXT
from .modalities import MODALITIES, VIDEO
from .pipeline_answers import MMTranslationPipeline, MMVisualQuestionAnsweringPipeline
from .pipeline_base import (
    MMGenerationPipeline,
    Parameters,
    as_stream,
    check_keys,
    check_options,
    given_media,
    messages_of,
    refuse_timeout,
    take,
)
from .pipeline_classification import (
    MMAudioClassificationPipeline,
    MMImageClassificationPipeline,
    MMTextClassificationPipeline,
)
from .pipeline_codes import MMTextToAudioPipeline, MMTextToImagePipeline, check_writes, writing_options
from .pipeline_features import MMFeatureExtractionPipeline, MMImageFeatureExtractionPipeline
from .pipeline_speech import MMSpeechRecognitionPipeline
from .pipeline_zero_shot import MMZeroShotAudioClassificationPipeline, MMZeroShotImageClassificationPipeline

# Options of `generate` that a call may give by name.
GENERATION_OPTIONS = {name for name in vars(GenerationConfig()) if not name.startswith("_")} | {
    *("generation_config", "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "streamer"),
}

# ---- Text about media -----------------------------------------------------------------------------------------------


def are_rows(inputs: Any) -> bool:
    """Return True for chats and dicts, one or many, or a dataset or generator of them; False for texts and media."""
    is_list = isinstance(inputs, (list, tuple)) and len(inputs) > 0 and isinstance(inputs[0], (dict, list, tuple))
    return is_list or isinstance(inputs, (dict, Dataset, GeneratorType))


class MMChatPipeline(MMGenerationPipeline):
    """
    Base of the two pipelines that continue a chat, or a text with media beside it.

    A row is a chat, as a list of messages or as a dict with `messages`; or a text; or a dict with some of `text`,
    `images`, `audio` and `videos`. Datasets and generators of rows are read batch by batch.
    """

    stock_chat: type = Chat

    def _sanitize_parameters(self, generate_kwargs: dict | None = None, **options: Any) -> Parameters:
        stock = inspect.signature(type(self).stock._sanitize_parameters).parameters  # type: ignore[union-attr]
        encoding = self.encoding_options()
        names = GENERATION_OPTIONS - stock.keys() - encoding
        given = take(options, "assistant_model", "assistant_tokenizer", *names)
        check_options(options, {*stock, *encoding}, *stock, "an option of `generate`")
        # A copy, because the stock pipeline writes into it; None to keep the preset.
        generate_kwargs = self.options_of_call(generate_kwargs, **given) or None
        return super()._sanitize_parameters(generate_kwargs=generate_kwargs, **options)

    def answer_rows(self, rows: Any, **kwargs: Any) -> Any:
        # Not the stock `__call__`, which makes a list of some datasets and no chats of others.
        return Pipeline.__call__(self, list(rows) if isinstance(rows, tuple) else as_stream(rows), **kwargs)

    def preprocess(
        self, inputs: Any = None, timeout: Any = None, continue_final_message: bool | None = None, **options: Any
    ) -> Any:
        if (messages := messages_of(inputs)) is not None:
            inputs = self.stock_chat(messages)
        inputs = {"text": inputs} if isinstance(inputs, str) else inputs
        if not isinstance(inputs, dict):
            return super().preprocess(inputs, timeout, continue_final_message, **options)
        check_keys(inputs, ("text", "videos", *(modality.plural for modality in MODALITIES.values())))
        refuse_timeout(timeout)
        options = options if options.get("processor_kwargs") is None else options["processor_kwargs"]
        model_inputs = self.encode_text(**inputs, **options)
        model_inputs["text"] = "" if inputs.get("text") is None else inputs["text"]
        return model_inputs

    def _forward(self, model_inputs: dict[str, Any], generate_kwargs: dict | None = None) -> dict[str, Any]:
        return super()._forward(model_inputs, self.complete_options(generate_kwargs))


class MMImageTextToTextPipeline(MMChatPipeline, ImageTextToTextPipeline):
    """
    `pipeline("image-text-to-text")`; chats may hold audio and videos as well as images.

    ```python
    pipe = pipeline("image-text-to-text", model)
    content = [{"type": "image", "path": "dog.jpg"}, {"type": "audio", "path": "question.flac"}]
    pipe([{"role": "user", "content": content}], return_full_text=False)[0]["generated_text"]
    pipe(text="<|video|>What moves?", videos="clip.mp4", fps=2, return_full_text=False)[0]["generated_text"]
    ```
    """

    stock = ImageTextToTextPipeline

    def __call__(self, images: Any = None, text: Any = None, videos: Any = None, **kwargs: Any) -> Any:
        if videos is not None:
            return self.answer_rows({"text": text, **given_media(images=images, videos=videos)}, **kwargs)
        rows = images if text is None else text
        if (images is None or text is None) and are_rows(rows):
            return self.answer_rows(rows, **kwargs)
        return ImageTextToTextPipeline.__call__(self, images, text, **kwargs)


class MMAnyToAnyPipeline(MMChatPipeline, AnyToAnyPipeline):
    """
    `pipeline("any-to-any")` with text, images and audio to text, or to images or audio that the model writes.

    ```python
    pipe = pipeline("any-to-any", model)
    pipe(chat, generation_mode="image")[0]["generated_image"]  # a PIL image
    pipe(chat, generation_mode="audio")[0]["generated_audio"]  # (samples,), at the record's `sampling_rate`
    pipe(chat, output_modalities=("text", "image"))[0]["generated_parts"]  # parts of a message
    ```

    It needs neither torchvision nor librosa.
    """

    stock = AnyToAnyPipeline
    stock_chat = any_to_any.Chat

    def __init__(
        self,
        model: Any,
        processor: Any = None,
        generation_mode: str | None = None,
        output_modalities: Any = None,
        **kwargs: Any,
    ):
        self.preset = {"generation_mode": generation_mode, "output_modalities": output_modalities}
        # Not the stock constructor, which asks for packages that this processor does not need.
        Pipeline.__init__(self, **self.complete(model, processor, **kwargs))

    def __call__(
        self, text: Any = None, images: Any = None, videos: Any = None, audio: Any = None, **kwargs: Any
    ) -> Any:
        media = given_media(images=images, videos=videos, audio=audio)
        if not media and are_rows(text):
            return self.answer_rows(text, **kwargs)
        return AnyToAnyPipeline.__call__(self, text, **media, **kwargs)

    def _sanitize_parameters(
        self, output_modalities: Any = None, generation_mode: str | None = None, **options: Any
    ) -> Parameters:
        if output_modalities is None and generation_mode is None:  # the stock pipeline forgets those it was made with
            output_modalities, generation_mode = self.preset["output_modalities"], self.preset["generation_mode"]
        if output_modalities is not None and generation_mode is not None:
            raise ValueError("pass generation_mode for one modality, or output_modalities for parts, not both")
        is_text = generation_mode in (None, TEXT)
        if not is_text and generation_mode in MODALITIES:
            check_writes(self.model, str(generation_mode))
        preprocess, forward, postprocess = super()._sanitize_parameters(generation_mode=generation_mode, **options)
        given = forward["generate_kwargs"]
        given.pop("generation_mode", None)  # of `generate` of other models
        if not is_text:
            forward["generate_kwargs"] = writing_options(self, str(generation_mode), given)
        if output_modalities is not None:
            given["output_modalities"] = output_modalities
            postprocess["has_parts"] = True
        return preprocess, forward, postprocess

    def postprocess(self, model_outputs: dict[str, Any], has_parts: bool = False, **options: Any) -> list[Any]:
        mode = options.get("generation_mode")
        if not has_parts and mode in (None, TEXT):
            return super().postprocess(model_outputs, **options)
        sequences, prompt = model_outputs["generated_sequence"], model_outputs["prompt_text"]
        written = sequences.flatten(0, -2)[:, model_outputs["input_ids"].shape[1] :]
        prompt = prompt[0] if isinstance(prompt, list) else prompt
        row = {"input_text": getattr(prompt, "messages", prompt)}
        if has_parts:
            return [{**row, "generated_parts": parts} for parts in self.processor.decode_media(written)]
        if mode == "audio":
            row["sampling_rate"] = self.processor.written_modality(mode).codec.sampling_rate
        media = self.processor.post_process_multimodal_output(written, generation_mode=mode)
        return [{**row, f"generated_{mode}": each} for each in media]


# ---- Text alone -----------------------------------------------------------------------------------------------------


class MMTextGenerationPipeline(MMGenerationPipeline, TextGenerationPipeline):
    """`pipeline("text-generation")` of texts and of chats without media."""

    stock = TextGenerationPipeline

    def preprocess(  # type: ignore[override]  # the stock pipeline names each option
        self,
        prompt_text: Any,
        continue_final_message: bool | None = None,
        tokenizer_encode_kwargs: dict | None = None,
        tools: Any = None,
        documents: Any = None,
        **options: Any,
    ) -> Any:
        messages = messages_of(prompt_text)
        chosen = {"tokenizer_encode_kwargs": tokenizer_encode_kwargs, "tools": tools, "documents": documents}
        if messages is None:
            return super().preprocess(prompt_text, continue_final_message=continue_final_message, **chosen, **options)
        for kind in (*MODALITIES, VIDEO):
            turn = next((i for i, message in enumerate(messages) if parts_of(message, kind)), None)
            if turn is not None:
                raise ValueError(
                    f"Turn {turn} holds {kind}, and this pipeline reads text alone; use "
                    "pipeline('image-text-to-text') or pipeline('any-to-any')"
                )
        if continue_final_message is None:  # as the stock pipeline: an answer that was begun
            continue_final_message = messages[-1]["role"] == "assistant"
        names = ("truncation", "padding", "max_length")
        inputs = self.processor.apply_chat_template(
            messages,
            add_generation_prompt=not continue_final_message,
            continue_final_message=continue_final_message,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            tools=tools,
            documents=documents,
            **{name: options[name] for name in names if options.get(name) is not None},
            **(tokenizer_encode_kwargs or {}),
        )
        return {**inputs, "prompt_text": prompt_text}

    def _forward(self, model_inputs: dict[str, Any], **generate_kwargs: Any) -> dict[str, Any]:
        return super()._forward(model_inputs, **self.complete_options(generate_kwargs))


__all__ = [
    "MMAnyToAnyPipeline",
    "MMAudioClassificationPipeline",
    "MMFeatureExtractionPipeline",
    "MMImageClassificationPipeline",
    "MMImageFeatureExtractionPipeline",
    "MMImageTextToTextPipeline",
    "MMSpeechRecognitionPipeline",
    "MMTextClassificationPipeline",
    "MMTextGenerationPipeline",
    "MMTextToAudioPipeline",
    "MMTextToImagePipeline",
    "MMTranslationPipeline",
    "MMVisualQuestionAnsweringPipeline",
    "MMZeroShotAudioClassificationPipeline",
    "MMZeroShotImageClassificationPipeline",
]
