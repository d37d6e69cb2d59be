"""Saved models for `pipeline`, and the pipelines of them."""

from pathlib import Path

import pytest
from transformers import pipeline

from modeling_mm import MMForConditionalGeneration, MMForRetrieval, MMForSequenceClassification
from tests.fakes.pipeline_parts import build, folder_of
from tests.fakes.writers import writing


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> Path:
    """A folder with a folder each for the `model`, the `classifier`, the `retriever` and the `writer` of codes."""
    folders = tmp_path_factory.mktemp("pipelines")
    for name, cls, fields in (
        ("model", MMForConditionalGeneration, {}),
        ("classifier", MMForSequenceClassification, {"num_labels": 3}),
        ("retriever", MMForRetrieval, {"projection_dim": 8}),
    ):
        model, processor = build(cls, **fields)
        model.save_pretrained(folders / name)
        processor.save_pretrained(folders / name)
    model, processor = writing()
    model.save_pretrained(folders / "writer")
    processor.save_pretrained(folders / "writer")
    return folders


@pytest.fixture(scope="session")
def pipes(folders):
    """`pipes(task)` is the pipeline, made once."""
    made = {}

    def pipe(task: str):
        if task not in made:
            made[task] = pipeline(task, str(folders / folder_of(task)), device="cpu")
        return made[task]

    return pipe
