"""Baskets of one category, and how often the wanted item is found."""

import numpy as np
import pytest

from scripts.tasks import recommendation
from scripts.tasks.captions import read_images
from scripts.tasks.examples import answer_of
from scripts.tasks.recommendation import (
    Basket,
    baskets,
    catalog,
    code_of,
    hits,
    items_of,
    popular_hits,
    read_categories,
    similarities,
)
from tests.tasks.tiny_captions import KNOWN, UNSEEN, UNSEEN_HAND, media, write_corpora


@pytest.fixture
def sources(tmp_path):
    return write_corpora(tmp_path)


CATEGORY = {code: kind for code, kind, *_ in KNOWN + UNSEEN}
TITLES = {name: code for code, _, _, names in KNOWN + UNSEEN for name in names}


def test_a_title_is_in_one_language_whoever_drew_the_item(sources):
    items = items_of(read_images(sources, "train"), read_categories(sources))
    assert len(items) == 16  # the stamp is no item
    by_code = {}
    for item in items:
        by_code.setdefault(code_of(item), set()).add((item["language"], item["title"]))
    assert all(len(each) == 1 for each in by_code.values())
    assert len({language for each in by_code.values() for language, _ in each}) > 1


def test_a_basket_holds_items_of_one_category_and_not_the_wanted_one(sources):
    categories = read_categories(sources)
    for split, size, count in (("test_hand", 3, 8), ("test_concepts", 2, 3)):
        items = catalog(sources, split, categories)
        found = baskets(items, size)
        assert len(found) == count and {item["hand"] for item in items} == {UNSEEN_HAND}
        for basket in found:
            assert len({*basket.liked, basket.wanted}) == size + 1
            assert len({items[number]["category"] for number in (*basket.liked, basket.wanted)}) == 1
        assert found == baskets(items, size)


def test_training_pairs_an_image_with_its_title_and_those_of_its_category(sources):
    splits = recommendation.build(sources)
    assert len(splits["train"]) == 16 * 3
    same = 0
    for row in splits["train"]:
        (image,) = media(row)
        seen, told = image.partition("-")[2][:5], TITLES[answer_of(row)]
        assert CATEGORY[seen] == CATEGORY[told]
        same += seen == told
    assert same == 16
    wanted = {row["id"].rpartition("-")[2][:5]: TITLES[answer_of(row)] for row in splits["test_hand"]}
    assert all(code == told for code, told in wanted.items() if code != "1f407")  # kiwi is kiwi in three languages
    assert all(len(media(row)) == 3 for row in splits["test_hand"])


def test_hits_are_counted_among_what_is_not_in_the_basket(monkeypatch):
    monkeypatch.setattr(recommendation, "TOP", 1)
    vectors = np.array([[1.0, 0], [2, 0.1], [1, 0.3], [0, 1], [0.1, 3]])
    wished = [Basket((0, 1), 2), Basket((3,), 4), Basket((4,), 0)]
    assert hits(similarities(vectors, wished), wished) == pytest.approx(2 / 3)
    scaled = vectors * np.array([[9.0], [1], [1], [1], [1]])
    assert similarities(scaled, wished) == pytest.approx(similarities(vectors, wished))  # at unit length
    monkeypatch.setattr(recommendation, "TOP", 4)
    assert hits(similarities(vectors, wished), wished) == 1.0


def test_an_image_is_not_compared_with_the_title_of_another_item():
    wished = [Basket((0, 1), 2)]
    image, title = np.array([[1.0, 0], [1, 0], [1, 0]]), np.array([[0.0, 1], [0, 1], [0.6, 0.8]])
    assert similarities(image, wished) + similarities(title, wished) == pytest.approx(np.array([[2.0, 2.0, 1.8]]))


def test_popularity_counts_the_other_baskets_alone(monkeypatch):
    monkeypatch.setattr(recommendation, "TOP", 1)
    wished = [Basket((0,), 1), Basket((0,), 2), Basket((2,), 0)]
    # Without its own basket: 0, 0, 2, 1 for the first (2 is wanted 2 times), and so on.
    assert popular_hits(4, wished) == pytest.approx(1 / 3)  # only the last wants what the others have
    assert popular_hits(4, [Basket((0,), 1), Basket((2,), 3)]) == 0.0  # what only this basket has is not popular


def test_figures_stand_for_image_and_title_and_for_either_alone(sources, monkeypatch):
    import scripts.tasks.frozen as frozen

    categories = read_categories(sources)
    told = {"fruit": [1.0, 0.0], "role": [0.0, 1.0]}

    class Known:
        """Images tell the category, titles nothing."""

        def __init__(self, model, task):
            assert task == "recommendation"

        def embed(self, rows, sides):
            assert sides == ("text", "image")
            codes = [row.messages[0]["content"][0]["path"].rpartition("-")[2][:5] for row in rows]
            image = np.array([[*told[CATEGORY[code]], 0.0] for code in codes])
            return {"image": image, "text": np.tile([0.0, 0.0, 1.0], (len(rows), 1))}

    monkeypatch.setattr(frozen, "Retriever", Known)
    monkeypatch.setattr(recommendation, "TOP", 2)
    found = recommendation.measure(sources.folder, sources)
    rows = [each for each in found if "model" in each]
    assert {(each["dataset"], each["metric"]) for each in rows} == {*recommendation.REACH}
    assert [each["samples"] for each in rows] == [8, 3] and len(catalog(sources, "test_concepts", categories)) == 4
    alone = {(each["dataset"], each["name"]): each["value"] for each in found if "name" in each}
    known = rows[0]  # of unseen items two are left, which both are among the first two
    assert known["model"] == alone[known["dataset"], "image alone"] == 1.0 and known["text_only"] == 0.0
    assert alone["unseen items", "image alone"] == 1.0 and alone["unseen items", "chance"] == 1.0
    assert alone["known items by an unseen hand", "chance"] == pytest.approx(2 / 5)
