# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Questions about images, and translations of texts with media: two tasks that transformers 5 no longer has."""

from types import GeneratorType
from typing import Any

from torch.utils.data import Dataset
from transformers.generation import GenerationConfig

from .modalities import MODALITIES
from .pipeline_base import MMGenerationPipeline, Parameters, check_keys, rows_with_media, take
from .prompts import fill_prompt, language_name, translation_prompt
from .sources import describe

# Beams for each of several answers: some of them have the same text in other tokens.
BEAMS_AN_ANSWER = 2


class MMAnsweringPipeline(MMGenerationPipeline):
    """Base of pipelines that ask the model about media and return its answers."""

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False
    _pipeline_calls_generate = True
    _default_generation_config = GenerationConfig(max_new_tokens=256)

    def _forward(self, model_inputs: dict[str, Any], **generate_kwargs: Any) -> dict[str, Any]:
        return self.answer(model_inputs, generate_kwargs)


class MMVisualQuestionAnsweringPipeline(MMAnsweringPipeline):
    """
    `pipeline("visual-question-answering")`, which transformers 5 has removed.

    ```python
    answer = pipeline("visual-question-answering", model)
    answer("dog.jpg", "What color is it?")  # [{"answer": "brown"}]
    answer({"image": "dog.jpg", "question": "What color is it?"}, top_k=3)  # [{"answer": ..., "score": ...}, ...]
    ```
    """

    def __init__(self, model: Any, processor: Any = None, top_k: int | None = None, **kwargs: Any):
        super().__init__(model, processor, **kwargs)  # which would take `top_k` for an option of `generate`
        if top_k is not None:
            self._forward_params["top_k"] = self._postprocess_params["top_k"] = top_k

    def _sanitize_parameters(self, generate_kwargs: dict | None = None, **options: Any) -> Parameters:
        answers = take(options, "top_k")
        return {}, {**self.options_of_call(generate_kwargs, **options), **answers}, answers

    def __call__(self, image: Any, question: str | list[str] | None = None, **kwargs: Any) -> Any:
        """
        Answer questions about images.

        Args:
            image: a path, a URL, bytes, a PIL image or an array, or a list, dataset or generator of them; or, without
                `question`, a dict with `image` and `question`, or a list, dataset or generator of such dicts. A list
                as `image` in a dict is one question about several images.
            question (`str` or `list[str]`, *optional*): asked about each image; of several, all about each.
            top_k (`int`, *optional*, defaults to 1):
                The number of different answers, the likeliest first. More than one are found by beam search, and there
                are fewer if its beams hold no more.
            generate_kwargs (`dict`, *optional*): options of `generate`, which may be given by name too.

        Returns:
            A list of `{"answer": ...}`, with the `score` of each of several; a list of such lists for a list, an
            iterator over them for a dataset or a generator.
        """
        if question is None:
            return super().__call__(image, **kwargs)
        if isinstance(image, (Dataset, GeneratorType)):
            if not isinstance(question, str):
                raise ValueError(
                    f"expected one question for a dataset or a generator of images, got {describe(question)}; yield "
                    "dicts with `image` and `question`"
                )
            return super().__call__(({"image": each, "question": question} for each in image), **kwargs)
        if not isinstance(image, list) and isinstance(question, str):
            return super().__call__({"image": image, "question": question}, **kwargs)
        images = image if isinstance(image, list) else [image]
        questions = [question] if isinstance(question, str) else list(question)
        return super().__call__([{"image": i, "question": q} for q in questions for i in images], **kwargs)

    def preprocess(self, inputs: Any) -> dict[str, Any]:
        if not isinstance(inputs, dict) or not isinstance(inputs.get("question"), str) or inputs.get("image") is None:
            raise ValueError(
                f"expected an image with a question, as a dict with `image` and `question`; got {describe(inputs)}"
            )
        check_keys(inputs, ("image", "question"))
        images = inputs["image"] if isinstance(inputs["image"], (list, tuple)) else [inputs["image"]]
        parts = [{"type": "image", "image": image} for image in images]
        return self.ask([*parts, {"type": "text", "text": inputs["question"]}])

    def _forward(self, model_inputs: dict[str, Any], top_k: int = 1, **generate_kwargs: Any) -> dict[str, Any]:
        if top_k < 1:
            raise ValueError(f"expected at least one answer, got top_k={top_k}")
        if top_k == 1:
            return self.answer(model_inputs, generate_kwargs)
        beams = max(BEAMS_AN_ANSWER * top_k, generate_kwargs.get("num_beams") or 1)
        search = {"num_return_sequences": beams, "do_sample": False, "length_penalty": 1.0}
        if refused := [name for name, value in search.items() if generate_kwargs.get(name, value) != value]:
            raise ValueError(
                f"top_k={top_k} answers are found by beam search, whose scores belong to an average token; leave "
                f"{', '.join(refused)} out, or ask for one answer"
            )
        return self.answer(model_inputs, generate_kwargs, num_beams=beams, output_scores=True, **search)

    def postprocess(self, model_outputs: dict[str, Any], top_k: int = 1) -> list[dict[str, Any]]:
        texts = self.decode(model_outputs["tokens"][0])
        if model_outputs["scores"] is None:
            return [{"answer": text} for text in texts]
        best: dict[str, float] = {}
        for text, score in zip(texts, model_outputs["scores"][0].tolist(), strict=True):
            best[text] = max(score, best.get(text, 0.0))
        ranked = sorted(best, key=lambda text: best[text], reverse=True)
        return [{"answer": text, "score": best[text]} for text in ranked[:top_k]]


class MMTranslationPipeline(MMAnsweringPipeline):
    """
    `pipeline("multimodal-translation")`: a text in another language, with the image or the audio it belongs to.

    ```python
    translate = pipeline("multimodal-translation", model, tgt_lang="fr")
    translate("a seal on the beach", image="seal.jpg")  # [{"translation_text": ...}]
    ```

    Args:
        tgt_lang (`str`): the language, by its name in English, or by its code (`"fr"`).
        prompt (`str`, *optional*, defaults to the model's own `translation_prompt`):
            The question for the model, with `{language}` and `{text}` in it.
    """

    def _sanitize_parameters(self, generate_kwargs: dict | None = None, **options: Any) -> Parameters:
        preprocess_params = take(options, "tgt_lang", "prompt")
        return preprocess_params, self.options_of_call(generate_kwargs, **options), {}

    def __call__(self, text: Any = None, image: Any = None, audio: Any = None, **kwargs: Any) -> Any:
        """
        Translate texts.

        Args:
            text: a text; or a list of texts; or a dict with `text`, `image`, `audio`, or a list, dataset or generator
                of such dicts, each with an optional `tgt_lang`.
            image, audio (*optional*): media of the text; lists as long as the list of texts.
            generate_kwargs (`dict`, *optional*): options of `generate`, which may be given by name too.

        Returns:
            A list of `{"translation_text": ...}`, one unless `num_return_sequences` is larger; a list of such lists
            for a list, an iterator over them for a dataset or a generator.
        """
        return super().__call__(rows_with_media(text, image=image, audio=audio), **kwargs)

    def preprocess(self, inputs: Any, tgt_lang: str | None = None, prompt: str | None = None) -> dict[str, Any]:
        inputs = {"text": inputs} if isinstance(inputs, str) else inputs
        is_dict = isinstance(inputs, dict)
        text = inputs.get("text") if is_dict else None
        if not is_dict or not isinstance(text, (str, type(None))) or (text is None and inputs.get("audio") is None):
            raise ValueError(
                "expected a dict to translate, with a string as `text`, or with `audio` that says it, and optionally "
                f"an `image`; got {describe(inputs)}"
            )
        check_keys(inputs, ("text", *MODALITIES, "tgt_lang"))
        language = language_name(inputs.get("tgt_lang", tgt_lang))
        prompt = translation_prompt(self.model) if prompt is None else prompt
        question = fill_prompt(prompt, language=language, text=text or "")
        parts = [{"type": kind, kind: inputs[kind]} for kind in MODALITIES if inputs.get(kind) is not None]
        return self.ask([*parts, {"type": "text", "text": question}])

    def postprocess(self, model_outputs: dict[str, Any]) -> list[dict[str, str]]:
        return [{"translation_text": text} for text in self.decode(model_outputs["tokens"][0])]
