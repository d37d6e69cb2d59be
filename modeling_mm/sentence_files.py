# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Files by which `sentence_transformers.SentenceTransformer` loads a folder of [`MMForRetrieval`] with its own module.

Its `Transformer` module turns every input (a text, an image, audio, a video, a dict of them) into a message, which
the processor encodes by the template below: the contents one after another, without roles. So rows of all kinds fit
into one batch, and each has the embedding that `MMForRetrieval.embed` gives it. No code is loaded from the folder.
"""

import json
import os
from pathlib import Path
from typing import Any

from .modalities import MODALITIES, VIDEO

MODULES = "modules.json"
MODULE = "sentence_bert_config.json"
SETTINGS = "config_sentence_transformers.json"
KNOWN = tuple(MODALITIES)  # of sentence-transformers too; modalities that users register later are not

TEMPLATE = """
{%- for message in messages -%}
    {%- if message.content is string -%}
        {{- message.content -}}
    {%- else -%}
        {%- for part in message.content -%}
            {{- part.text if part.type == "text" else "<|" ~ part.type ~ "|>" -}}
        {%- endfor -%}
    {%- endif -%}
{%- endfor -%}
""".strip()


def module_settings(config: Any) -> dict[str, Any]:
    """
    Return the settings of the `Transformer` module for a model.

    Args:
        config: an `MMConfig`
    """
    names = [modality.name for modality in config.modalities if modality.name in KNOWN]
    videos = {VIDEO: {"load_audio_from_video": "audio" in names}} if "image" in names else {}
    # Media whose placeholders are in the text belong to it: the embedding of a row is that of the text.
    output = {"method": "forward", "method_output_name": "text_embeds"}
    settings = {
        "transformer_task": "feature-extraction",
        "modality_config": {
            **dict.fromkeys(("text", *names, *videos), output),
            "message": {**output, "format": "structured"},
        },
        "module_output_name": "sentence_embedding",
        # The template ends with the content, so that a cut leaves no end of a turn to restore.
        "processing_kwargs": {"chat_template": {"chat_template": TEMPLATE, "restore_suffix": False}, **videos},
    }
    if config.text_position_encoding == "learned":
        settings["max_seq_length"] = config.text_config.n_positions
    return settings


def write_sentence_files(config: Any, folder: str | os.PathLike) -> None:
    """
    Write the files of sentence-transformers for a model into its folder.

    The list of modules and the prompts of a folder that has them are kept: `SentenceTransformer.save_pretrained` and
    its users write these.
    """
    module = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
    settings: dict[str, Any] = {"model_type": "SentenceTransformer", "prompts": {}, "default_prompt_name": None}
    settings |= {"similarity_fn_name": "cosine"}
    for name, values in {MODULES: [module], SETTINGS: settings, MODULE: module_settings(config)}.items():
        path = Path(folder, name)
        if name == MODULE or not path.exists():
            path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
