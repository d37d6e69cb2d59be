"""Fetches transformers' common tests, tells them the names of our classes, opens the cross-attention of our models."""

import pytest
from transformers.models.auto import modeling_auto

from modeling_mm.layers import ResidualProjection
from tests.transformers_common import fetch

fetch.make_importable()

# Their tests look classes up by name in these tables, to know which labels a class takes and that a base model has no
# loss. Our config enters them too; a table that is read before any config was made has them from here.
_NAMES = {
    "MODEL_MAPPING_NAMES": "MMModel",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES": "MMForConditionalGeneration",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": "MMForSequenceClassification",
}


@pytest.fixture(scope="session", autouse=True)
def names_of_our_classes():
    before = {table: getattr(modeling_auto, table).get("mm") for table in _NAMES}
    for table, name in _NAMES.items():
        getattr(modeling_auto, table)["mm"] = name
    yield
    for table, name in before.items():
        if name is None:
            getattr(modeling_auto, table).pop("mm", None)


@pytest.fixture(autouse=True)
def open_cross_attention(monkeypatch):
    """
    Open every cross-attention block as training does.

    A fresh block adds exactly nothing, since its last projections are zero, and every comparison of two ways to
    compute media would hold whatever they did with them. Here zero projections are drawn as all others are.
    """
    start = ResidualProjection.__init__
    monkeypatch.setattr(ResidualProjection, "__init__", lambda self, nf, nx, zero=False: start(self, nf, nx))
