# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Hidden states of texts, chats and media, from the model below any head."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers.pipelines.feature_extraction import FeatureExtractionPipeline
from transformers.pipelines.image_feature_extraction import ImageFeatureExtractionPipeline

from .modalities import MODALITIES
from .pipeline_base import (
    MMPipeline,
    Parameters,
    check_keys,
    check_options,
    given_media,
    messages_of,
    refuse_timeout,
    take,
)
from .sources import describe


class MMFeaturePipeline(MMPipeline):
    """Base of the pipelines that return hidden states."""

    def check_model(self, model: Any) -> None:
        """Do nothing: every model has a base."""

    def _forward(self, model_inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        if hasattr(self.model, "embed"):
            outputs = self.model.features(**model_inputs)
            pooled = {"pooled": outputs.pooler_output}
        else:
            outputs, pooled = self.model.base_model(**model_inputs, use_cache=False), {}
        return {"features": outputs.last_hidden_state, "mask": model_inputs["attention_mask"], **pooled}

    def postprocess(
        self, model_outputs: dict[str, torch.Tensor], pool: bool = False, return_tensors: bool = False
    ) -> Any:
        """
        Return the states (1, L, D) of a row without its padding.

        Pooled, return the embedding (1, P) of a model that embeds, else the last state (1, D), which has seen all.
        """
        features = model_outputs["features"][:, model_outputs["mask"][0].bool()]
        features = model_outputs.get("pooled", features[:, -1]) if pool else features
        return features if return_tensors else features.tolist()


class MMFeatureExtractionPipeline(MMFeaturePipeline, FeatureExtractionPipeline):
    """
    `pipeline("feature-extraction")` of texts, with or without media, and of chats.

    ```python
    features = pipeline("feature-extraction", model)
    features("a dog", images=["dog.jpg"], pool=True, return_tensors=True)  # (1, D)
    features([{"text": "a dog", "images": ["dog.jpg"]}, {"audio": "bark.wav"}])
    ```

    Args:
        pool (`bool`, *optional*):
            The embedding of [`MMForRetrieval`]; of other models the state of the last token alone, which has seen
            everything before it.
        tokenize_kwargs (`dict`, *optional*): options of the processor, which may be given by name too.
        return_tensors (`bool`, *optional*): a tensor instead of lists.
    """

    stock = FeatureExtractionPipeline

    def _sanitize_parameters(self, tokenize_kwargs: dict | None = None, **options: Any) -> Parameters:
        postprocess_params = take(options, "pool", "return_tensors")
        options = {**(tokenize_kwargs or {}), **options}
        check_options(options, self.encoding_options(), "pool", "tokenize_kwargs", "return_tensors")
        return options, {}, postprocess_params

    def __call__(self, inputs: Any = None, images: Any = None, audio: Any = None, **kwargs: Any) -> Any:
        """
        Return the hidden states of inputs.

        Args:
            inputs: a text, a chat, or a dict with some of `text`, `images` and `audio`; or many of them.
            images, audio (*optional*): media of the text; of a list of texts, lists as long as it.
        """
        columns = given_media(images=images, audio=audio)
        if not columns:
            return super().__call__(inputs, **kwargs)
        if inputs is None or isinstance(inputs, str):
            return super().__call__({"text": inputs, **columns}, **kwargs)
        if not isinstance(inputs, list) or not all(isinstance(text, str) for text in inputs):
            raise ValueError(
                f"expected a text or a list of texts beside `{'` and `'.join(columns)}`, got {describe(inputs)}; pass "
                "dicts with `text`, `images` and `audio`, or put the media into the chat"
            )
        for name, media in columns.items():
            if not isinstance(media, (list, tuple)) or len(media) != len(inputs):
                size = len(media) if isinstance(media, (list, tuple)) else describe(media)
                raise ValueError(f"expected `{name}` for each of {len(inputs)} texts, got {size}; nest the list")
        rows = zip(inputs, *columns.values(), strict=True)
        return super().__call__([dict(zip(("text", *columns), row, strict=True)) for row in rows], **kwargs)

    def preprocess(self, inputs: Any, **options: Any) -> Any:
        if (messages := messages_of(inputs)) is not None:
            return self.encode_chat(messages, **options)
        inputs = {"text": inputs} if isinstance(inputs, str) else inputs
        if not isinstance(inputs, dict):
            raise ValueError(
                f"expected a text, a dict with `text`, `images` and `audio`, or a chat; got {describe(inputs)}"
            )
        check_keys(inputs, ("text", *(modality.plural for modality in MODALITIES.values())))
        return self.encode_text(**inputs, **options)


class MMImageFeatureExtractionPipeline(MMFeaturePipeline, ImageFeatureExtractionPipeline):
    """`pipeline("image-feature-extraction")`: the states of images alone, of which there is one an image."""

    stock = ImageFeatureExtractionPipeline

    def _sanitize_parameters(  # type: ignore[override]  # without the stock's positional order
        self, image_processor_kwargs: dict | None = None, timeout: Any = None, **options: Any
    ) -> Parameters:
        refuse_timeout(timeout)
        postprocess_params = take(options, "pool", "return_tensors")
        check_options(options, set(), "image_processor_kwargs", "pool", "return_tensors")
        return {"images_kwargs": image_processor_kwargs or {}}, {}, postprocess_params

    def preprocess(self, image: Any, images_kwargs: dict[str, Any] | None = None) -> Any:
        return self.encode_text(images=[image], images_kwargs=images_kwargs or {})
