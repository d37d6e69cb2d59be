"""retrieving.py: figures of every pair of sides, in both directions."""

import numpy as np
import pytest

from modeling_mm.evaluation import score_retrieval
from modeling_mm.evaluation.retrieving import FIGURES


def unit(*angles: float) -> list[np.ndarray]:
    return [np.array([np.cos(angle), np.sin(angle)]) for angle in angles]


def test_both_directions_are_measured_apart():
    texts, images = unit(0.0, 1.0, 2.0), unit(0.1, 1.1, 0.2)  # the third image lies beside the first text
    rows = [{"text": text, "image": image} for text, image in zip(texts, images, strict=True)]
    found = score_retrieval(rows, ["a", "b", "c"])
    assert set(found) == {f"{pair}_{name}" for pair in ("text_to_image", "image_to_text") for name in FIGURES}
    assert found["text_to_image_recall_at_1"] == pytest.approx(2 / 3)
    # The third text ranks image 1, 2, 0 by angles 0.9, 1.8, 1.9: its own is second.
    assert found["text_to_image_map"] == pytest.approx((1 + 1 + 1 / 2) / 3)
    # The third image ranks texts 0, 1, 2: its own is last.
    assert found["image_to_text_map"] == pytest.approx((1 + 1 + 1 / 3) / 3)
    assert found["image_to_text_median_rank"] == 1.0
    assert found["image_to_text_recall_at_5"] == 1.0


def test_rows_with_the_same_words_match_each_other():
    """Else one of two rows with the same caption would always be wrong, whatever the model."""
    texts, images = unit(0.0, 0.0, 2.0), unit(0.1, 0.2, 1.9)
    rows = [{"text": text, "image": image} for text, image in zip(texts, images, strict=True)]
    assert score_retrieval(rows, ["a", "a", "b"])["text_to_image_map"] == 1.0
    assert score_retrieval(rows, ["a", "c", "b"])["text_to_image_recall_at_1"] == pytest.approx(2 / 3)


def test_a_pair_is_measured_on_the_rows_that_have_both():
    (text,), (image,) = unit(0.0), unit(0.1)
    rows = [{"text": text, "image": image}, {"text": -text, "image": -image, "audio": text}, {"text": text}]
    found = score_retrieval(rows, ["a", "b", "c"])
    assert {name.rpartition("_map")[0] for name in found if name.endswith("_map")} == {
        "text_to_image",
        "image_to_text",
    }
    assert found["text_to_image_recall_at_1"] == 1.0
    assert score_retrieval([], []) == {}
