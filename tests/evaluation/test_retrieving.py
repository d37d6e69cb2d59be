"""retrieving.py: figures of every pair of sides, in both directions."""

import numpy as np
import pytest

from modeling_mm.evaluation import measure_retrieval, retrieval_section, score_retrieval
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


def test_leading_dimensions_are_compared_at_unit_length():
    """In two dimensions the first text lies nearer its image, in the first one alone all are 1 or -1."""
    rows = [{"text": text, "image": image} for text, image in zip(unit(0.0, 1.0), unit(0.1, 1.7), strict=True)]
    whole, short = measure_retrieval(rows, ["a", "b"])[0], measure_retrieval(rows, ["a", "b"], "captions", 1)[0]
    assert (whole.dimensions, whole.figures["recall_at_1"]) == (2, 1.0)
    assert (short.dimensions, short.figures["recall_at_1"]) == (1, 0.5)
    assert (short.dataset, short.query, short.item, short.rows) == ("captions", "text", "image", 2)


def test_chance_is_the_share_of_matches():
    rows = [{"text": text, "image": image} for text, image in zip(unit(0, 1, 2), unit(0, 1, 2), strict=True)]
    assert measure_retrieval(rows, ["a", "a", "b"])[0].chance == pytest.approx(5 / 9)


def test_a_section_has_a_table_for_each_set():
    rows = [{"text": text, "image": image} for text, image in zip(unit(0.0, 1.0), unit(0.1, 0.9), strict=True)]
    figures = [figure for name in ("seen", "unseen") for figure in measure_retrieval(rows, ["a", "b"], name)]
    text = retrieval_section(figures)
    assert "**Seen**, among 2 rows" in text and "**Unseen**, among 2 rows" in text
    assert text.count("| text | image | 2 | 1.000 | 1.000 | 1.000 | 1 | 1.000 | 0.500 |") == 2
