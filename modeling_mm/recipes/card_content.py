# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Content of the model card of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..hub.card import CardComponent, CardContent, CardSource
from ..modalities import MODALITIES
from ..training.freezing import parts_of
from .schema import Recipe, to_yaml

TITLES = {"text": "decoder", "cross_attention": "cross-attention"} | {
    modality.tower: f"{modality.tower} encoder" for modality in MODALITIES.values()
}


def card_content(recipe: Recipe, model: PreTrainedModel, result: Mapping[str, Any]) -> CardContent:
    """
    Collect what the model card says.

    Args:
        recipe: recipe of the run
        model: trained model, without adapters around it
        result: result of `run`
    """
    card, source, data = recipe.card, recipe.model, recipe.data
    used = [("training", data.train), ("evaluation", data.evaluation), *data.test.items()]
    sources = [(use, source) for use, sources in used for source in sources]
    return CardContent(
        name=card.name or Path(recipe.training["output_dir"]).name,
        result=result,
        recipe=to_yaml(recipe),
        repo_id=card.repo_id,
        summary=card.summary,
        limits=card.limits,
        license=card.license,
        languages=card.languages,
        base_models=[name for name in (source.pretrained, source.text, *source.encoders.values()) if name],
        components=[
            CardComponent(
                name=TITLES.get(part, part),
                weights=weights_of(recipe, part),
                parameters=sum(parameter.numel() for _, parameter in parameters),
                trained=trained(recipe, part, any(parameter.requires_grad for _, parameter in parameters)),
            )
            for part, parameters in parts_of(model).items()
            if parameters
        ],
        sources=[CardSource(use, s.source, s.subset, s.split, s.weight, s.limit) for use, s in sources],
        notes=list(dict.fromkeys(s.note for _, s in sources if s.note)),
        modalities=[name for name, m in MODALITIES.items() if getattr(model.config, m.config_field) is not None],
        writes=[name for name in MODALITIES if getattr(model.config, f"{name}_codec_config", None) is not None],
        labels=recipe.labels,
        is_retrieval=recipe.objective == "retrieval",
        is_pretraining=source.preset is not None,
        has_test_sets=bool(data.test),
        task_types=card.task_types,
        metric_types=card.metric_types,
    )


def weights_of(recipe: Recipe, part: str) -> str:
    """Return the source of a part's weights."""
    if recipe.model.preset is not None:
        return "random"
    source = recipe.model.pretrained or getattr(recipe.model, part, None)
    return "new" if source is None else f"`{source}`"


def trained(recipe: Recipe, part: str, may_learn: bool) -> str:
    """Return if a part was trained, as text; `may_learn`: if the model has not frozen all of it."""
    if recipe.lora is not None:
        if part == "text":
            return "no" if recipe.lora.adapt and part not in recipe.lora.adapt else f"LoRA, r = {recipe.lora.r}"
        return "no" if any(part == modality.tower for modality in MODALITIES.values()) else "yes"
    step = recipe.frozen.get(part)
    if step is None:
        return "yes" if may_learn else "no"
    return "no" if step == "always" else f"from step {step}"
