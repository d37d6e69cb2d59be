# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Classification of images and audio by labels in words, with a model that embeds both."""

from typing import Any, ClassVar

import torch
from transformers.pipelines.base import Pipeline
from transformers.pipelines.zero_shot_audio_classification import ZeroShotAudioClassificationPipeline
from transformers.pipelines.zero_shot_image_classification import ZeroShotImageClassificationPipeline

from .audio import load_audio
from .configuration_mm import SIGMOID
from .modalities import MODALITIES
from .pipeline_base import MMPipeline, Parameters, as_stream, check_options, refuse_timeout
from .pipeline_speech import as_audio

# Shape legend: B rows, K labels.


class MMZeroShotPipeline(MMPipeline):
    """
    Base of the two pipelines.

    Args:
        candidate_labels (`list[str]`): the labels.
        hypothesis_template (`str`, *optional*): the text that is compared, with `{}` for the label.
        tokenizer_kwargs (`dict`, *optional*): options of the processor for these texts.
    """

    modality: ClassVar[str]

    def check_model(self, model: Any) -> None:
        if not hasattr(model, "embed"):
            raise ValueError(
                f"expected a model that embeds, MMForRetrieval, got a {type(model).__name__}, which does not; load "
                "the weights with that class, or use the pipeline for what this one does"
            )

    def _sanitize_parameters(
        self,
        candidate_labels: Any = None,
        hypothesis_template: str | None = None,
        tokenizer_kwargs: dict | None = None,
        timeout: Any = None,
        **options: Any,
    ) -> Parameters:
        refuse_timeout(timeout)
        check_options(options, set(), "candidate_labels", "hypothesis_template", "tokenizer_kwargs")
        given = {"candidate_labels": candidate_labels, "hypothesis_template": hypothesis_template}
        given["tokenizer_kwargs"] = tokenizer_kwargs
        return {name: value for name, value in given.items() if value is not None}, {}, {}

    def encode(
        self, item: Any, candidate_labels: Any, hypothesis_template: str, tokenizer_kwargs: dict | None
    ) -> dict[str, Any]:
        """Return the inputs of one image or audio, with those of the labels' texts."""
        labels = [candidate_labels] if isinstance(candidate_labels, str) else list(candidate_labels or ())
        if not labels:
            raise ValueError("expected `candidate_labels`, the words to choose among; got none")
        if "{}" not in hypothesis_template:
            raise ValueError(
                f"expected a `hypothesis_template` with {{}} in the place of a label; got {hypothesis_template!r}"
            )
        texts = [hypothesis_template.replace("{}", label) for label in labels]
        encoded = self.encode_text(texts, **{"padding": True, **(tokenizer_kwargs or {})})
        media = self.encode_text(**{MODALITIES[self.modality].plural: [item]})
        return {**media, "labels_and_texts": {"labels": labels, "texts": dict(encoded)}}

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        labels_and_texts = model_inputs["labels_and_texts"]
        is_batch = isinstance(labels_and_texts, list)  # the same for each row
        first = labels_and_texts[0] if is_batch else labels_and_texts
        names = MODALITIES[self.modality].model_inputs
        media = {name: model_inputs[name] for name in names if name in model_inputs}
        outputs = self.model(**first["texts"], **media)
        logits = outputs[f"logits_per_{self.modality}"]  # (B, K)
        return {"logits": logits, "labels": [first["labels"]] * len(logits) if is_batch else first["labels"]}

    def postprocess(self, model_outputs: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the labels with their scores, the likeliest first."""
        logits = model_outputs["logits"][0].float()  # (K,)
        is_each = self.model.config.retrieval_loss == SIGMOID
        scores: torch.Tensor = logits.sigmoid() if is_each else logits.softmax(-1)
        pairs = zip(scores.tolist(), model_outputs["labels"], strict=True)
        return [{"score": score, "label": label} for score, label in sorted(pairs, key=lambda pair: -pair[0])]


class MMZeroShotImageClassificationPipeline(MMZeroShotPipeline, ZeroShotImageClassificationPipeline):
    """
    `pipeline("zero-shot-image-classification")`.

    ```python
    classify = pipeline("zero-shot-image-classification", model)
    classify("dog.jpg", candidate_labels=["dog", "cat"])  # [{"score": ..., "label": ...}, ...]
    ```
    """

    stock = ZeroShotImageClassificationPipeline
    modality = "image"

    def __call__(self, image: Any = None, candidate_labels: Any = None, **kwargs: Any) -> Any:
        image = kwargs.pop("images", image)
        given = {} if candidate_labels is None else {"candidate_labels": candidate_labels}
        return Pipeline.__call__(self, as_stream(image), **given, **kwargs)

    def preprocess(  # type: ignore[override]  # without the stock's timeout
        self,
        image: Any,
        candidate_labels: Any = None,
        hypothesis_template: str = "This is a photo of {}.",
        tokenizer_kwargs: dict | None = None,
    ) -> Any:
        return self.encode(image, candidate_labels, hypothesis_template, tokenizer_kwargs)


class MMZeroShotAudioClassificationPipeline(MMZeroShotPipeline, ZeroShotAudioClassificationPipeline):
    """
    `pipeline("zero-shot-audio-classification")`, of any number of channels and any length.

    ```python
    classify = pipeline("zero-shot-audio-classification", model)
    classify("bark.wav", candidate_labels=["dog", "cat"])  # [{"score": ..., "label": ...}, ...]
    ```
    """

    stock = ZeroShotAudioClassificationPipeline
    modality = "audio"

    def __call__(self, audios: Any, **kwargs: Any) -> Any:
        return Pipeline.__call__(self, as_stream(audios), **kwargs)

    def preprocess(
        self,
        audio: Any,
        candidate_labels: Any = None,
        hypothesis_template: str = "This is a {} in a recording.",
        tokenizer_kwargs: dict | None = None,
    ) -> Any:
        if self.processor.feature_extractor is None:
            raise ValueError(
                "expected a processor with a feature extractor, got one without; join a model with an audio encoder "
                "to classify audio"
            )
        rate = self.processor.feature_extractor.sampling_rate
        item = (load_audio(as_audio(audio), rate), rate)
        return self.encode(item, candidate_labels, hypothesis_template, tokenizer_kwargs)


__all__ = ["MMZeroShotAudioClassificationPipeline", "MMZeroShotImageClassificationPipeline"]
