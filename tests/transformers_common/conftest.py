"""Fetches transformers' common tests, tells them the names of our classes, opens the gates of our models."""

import pytest
from transformers.models.auto import modeling_auto

from tests.transformers_common import fetch

fetch.make_importable()

# Their tests look classes up by name in these tables, to know which labels a class takes and that a base model has no
# loss. Registering a class with AutoModel does not enter its name here.
_NAMES = {
    "MODEL_MAPPING_NAMES": "MMModel",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES": "MMForConditionalGeneration",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": "MMForSequenceClassification",
}


@pytest.fixture(scope="session", autouse=True)
def names_of_our_classes():
    for table, name in _NAMES.items():
        getattr(modeling_auto, table)["mm"] = name
    yield
    for table in _NAMES:
        getattr(modeling_auto, table).pop("mm", None)


@pytest.fixture(autouse=True)
def open_gates(monkeypatch):
    """
    A fresh model's gates are zero, so that media would pass through it without effect and every comparison of two
    ways to compute it would hold whatever they did with the media. Here a gate's weight counts from 1 instead.
    """
    monkeypatch.setattr("modeling_mm.layers.TanhGate.forward", lambda self, x: x * (self.weight + 1.0).tanh())
